"""Borders drawn to a photo's edges, against a loop over pixels, and where they must come to lie."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2lab

from cgc.kernels import threads
from cgc.masks.id_maps import resize_nearest
from cgc.segmentation import edges
from cgc.segmentation.edges import ALIKE, NEAR, REACH, follow_edges, share_of


def slow(ids: np.ndarray, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vote as the module's docstring has it, pixel by pixel: winners, and each id's share [h, w, ids]."""
    (height, width), (h, w) = photo.shape[:2], ids.shape
    lab, given = rgb2lab(photo), resize_nearest(ids, width, height)
    sy, sx = height / h, width / w
    found, shares = given.copy(), np.zeros((height, width, ids.max() + 1))
    for y in range(height):
        for x in range(width):
            row, column = (2 * y + 1) * h // (2 * height), (2 * x + 1) * w // (2 * width)
            around = ids[max(row - REACH, 0) : row + REACH + 1, max(column - REACH, 0) : column + REACH + 1]
            sums = np.zeros(ids.max() + 1)
            for i in range(-REACH, REACH + 1):
                for j in range(-REACH, REACH + 1):
                    v, u = y + i * max(round(sy), 1), x + j * max(round(sx), 1)
                    if 0 <= v < height and 0 <= u < width:
                        far = ((v - y) / sy) ** 2 + ((u - x) / sx) ** 2
                        unlike = ((lab[v, u] - lab[y, x]) ** 2).sum()
                        sums[given[v, u]] += np.exp(-far / (2 * NEAR**2) - unlike / (2 * ALIKE**2))
            if (around != around[0, 0]).any():
                best = sums.argmax()
                found[y, x] = best if sums[best] > sums[given[y, x]] else given[y, x]
            else:
                sums = np.eye(len(sums))[given[y, x]]
            shares[y, x] = sums / sums.sum()
    return found, shares


@pytest.mark.parametrize("size", [(9, 14), (18, 28), (21, 23), (7, 40)])
def test_the_vote_is_that_of_a_loop_over_pixels(size, monkeypatch):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (9, 14))
    photo = rng.integers(0, 256, (*size, 3), dtype=np.uint8) // 8 + 90  # colours near enough to count
    found, _ = slow(ids, photo)
    assert (found != resize_nearest(ids, size[1], size[0])).mean() > 0.1
    for at_once, count in ((1 << 20, 1), (1 << 20, 3), (3 * size[1], 2), (1, 1)):  # in one band, or in several
        monkeypatch.setattr(edges, "_PIXELS", at_once)
        with threads(count):
            np.testing.assert_array_equal(follow_edges(ids, photo), found)
    mask = resize_nearest(ids, size[1], size[0]) == 2
    np.testing.assert_allclose(share_of(mask, photo), slow(mask.astype(int), photo)[1][..., 1], atol=1e-4)


@pytest.mark.parametrize("scale", [1, 3, 5])
def test_borders_come_to_lie_on_the_edges_of_the_photo(scale):
    photo = np.full((30 * scale, 40 * scale, 3), 60, np.uint8)
    photo[8 * scale : 20 * scale, 12 * scale : 31 * scale - scale // 2] = (200, 40, 40)
    thing = (photo[..., 0] == 200).astype(np.int32)
    ids = np.zeros((30, 40), np.int32)
    ids[7:21, 13:31] = 5  # a pixel too high and too low, one too narrow, up to half of one too wide
    np.testing.assert_array_equal(follow_edges(ids, photo), 5 * thing)


def test_what_no_edge_parts_stays_nearly_where_it_was():
    ids = np.zeros((24, 24), np.int32)
    ids[6:18, 6:18] = 7
    found = follow_edges(ids, np.full((24, 24, 3), 128, np.uint8))
    np.testing.assert_array_equal(found[:, 8:16], ids[:, 8:16])
    assert (found != ids).sum() <= 4 * 3  # corners are rounded
    flat = np.full((6, 5), 300, np.int32)
    np.testing.assert_array_equal(follow_edges(flat, np.zeros((12, 11, 3), np.uint8)), np.full((12, 11), 300))
