"""The last vote: brute force, laws, and what it is for."""

import numpy as np
import torch
from scipy.sparse import csr_matrix
from tiny import clumps

from cgc.clustering.settle import PIXELS, Look, believed_pixels, look_at, settle
from cgc.clustering.vote import NOISE, OWN
from cgc.rasterize.base import Contributions
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera


def a_look(weights, masks):
    """A look given as a dense [P, N] array."""
    w = csr_matrix(np.asarray(weights, np.float32))
    indptr, ids, values = (torch.from_numpy(a) for a in (w.indptr.astype(np.int64), w.indices, w.data))
    rows = Contributions(indptr, ids, values, torch.arange(w.shape[0]), w.shape[0], 1, w.shape[1])
    return Look(rows, np.asarray(masks))


def slow(labels, looks):
    """Do as `settle`, one mask, pixel and Gaussian at a time."""
    n, k = len(labels), labels.max() + 2
    votes = np.zeros((n, k))
    for dense, masks in looks:
        shown = np.zeros((len(dense), k))
        for g in range(n):
            shown[:, labels[g] + 1] += dense[:, g]
        said, purity, kept = {}, {}, np.zeros(k)
        for m in set(masks.tolist()) - {0}:
            area = shown[masks == m].sum(0)
            said[m] = 1 + int(area[1:].argmax())
            purity[m] = area[said[m]] / max(area.sum(), 1e-9)
            kept[said[m]] += area[said[m]]
        missed = 1 - kept / np.maximum(shown.sum(0), 1e-9)
        missed[0] = 0
        for p, m in enumerate(masks.tolist()):
            if m:
                clear = 1 - (shown[p] * missed).sum() / max(shown[p].sum(), 1e-9)
                votes[:, said[m]] += dense[p] * purity[m] ** 2 * clear
        for g in range(n):
            votes[g, labels[g] + 1] += OWN * dense[:, g].sum()
    total = votes.sum(1)
    best = np.where(total > 0, votes.argmax(1) - 1, labels)
    return best, votes.max(1) / np.maximum(total, 1e-12)


def test_settling_equals_brute_force():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 4, 60)
    looks = []
    for _ in range(3):
        dense = rng.random((200, 60)) * (rng.random((200, 60)) < 0.1)
        dense[:, :2] = 0  # never seen
        looks.append((dense, rng.integers(0, 6, 200)))
    found, shares = settle(labels, [a_look(*look) for look in looks])
    expected, expected_shares = slow(labels, looks)
    assert np.array_equal(found, expected) and found.dtype == np.int32
    assert np.allclose(shares, expected_shares, atol=1e-5)
    assert np.array_equal(found[:2], labels[:2]) and (shares[:2] == 0).all()


def test_a_border_goes_to_whom_most_of_it_shows_in():
    labels = np.array([0, 1, 0])  # the last one shows in the other label's mask, mostly
    dense = np.zeros((20, 3))
    dense[:10, 0] = dense[10:, 1] = 1.0
    dense[8:16, 2] = 0.2
    found, shares = settle(labels, [a_look(dense, np.repeat([7, 3], 10))])
    assert found.tolist() == [0, 1, 1] and (shares > 0.5).all()


def test_what_masks_have_missed_is_not_given_to_what_it_lies_on():
    """A pen on a table: one view of three has a mask of it; two have left it to the table's."""
    dense = np.zeros((104, 2))
    dense[:100, 0] = dense[100:, 1] = 1.0  # 100 pixels of the table, 4 of the pen
    missed, found = np.ones(104, int), np.repeat([1, 2], [100, 4])
    labels = np.array([0, 1])
    settled, _ = settle(labels, [a_look(dense, missed), a_look(dense, missed), a_look(dense, found)])
    assert settled.tolist() == [0, 1]
    _, believed = believed_pixels(csr_matrix(np.column_stack([np.zeros(104), dense])), missed)
    assert (believed[:100] > 0.9).all() and (believed[100:] == 0).all()


def test_nothing_is_said_outside_of_masks_nor_for_noise():
    dense = np.eye(3)
    labels = np.array([0, NOISE, NOISE])
    settled, _ = settle(labels, [a_look(dense, [0, 0, 4])])
    assert np.array_equal(settled, labels)
    assert settle(np.array([0, NOISE]), [a_look([[1.0, 0.0], [0.6, 0.4]], [4, 4])])[0].tolist() == [0, 0]


def test_without_looks_labels_stay():
    labels = np.array([2, NOISE, 0])
    settled, shares = settle(labels, [])
    assert np.array_equal(settled, labels) and not shares.any()


def test_looks_spread_evenly_over_the_masked_views():
    splats, _ = clumps()
    cameras = [Camera.look_at([0, 0, -4], [0, 0, 0], width=w, height=200, focal=200.0) for w in (100, 1000, 50)]
    maps = {1: np.arange(200_000).reshape(200, 1000) % 7, 0: np.ones((200, 100), int)}
    small, large = look_at(splats, cameras, maps, CpuRasterizer())
    assert len(small.masks) == 20_000 and (small.masks == 1).all()
    step = 200_000 // PIXELS
    assert np.array_equal(large.rows.pixels.numpy(), np.arange(1, 200_000, step))
    assert np.array_equal(large.masks, maps[1].ravel()[1::step]) and len(large.rows) == len(large.masks)
