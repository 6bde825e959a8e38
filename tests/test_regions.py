"""Segmentation without weights: laws of the maps, shapes that must be found, merging against a slow reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgc.errors import InputError
from cgc.masks import relief as relief_module
from cgc.masks.contrast import _largest_difference, border_strength, distribution_planes
from cgc.masks.merging import MergeRules, merge_levels, shared_borders
from cgc.masks.regions import PRESETS, RegionMerging
from cgc.masks.relief import Relief, bends, weigh_borders

segment = PRESETS["default"]
COLOURS = np.array([[220, 40, 30], [30, 90, 210], [40, 170, 60], [240, 200, 40], [150, 60, 160]], np.uint8)


def draw_discs(height: int, width: int, columns: int, rows: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """A grid of coloured discs on grey: image [H, W, 3] and true ids [H, W], 0 = ground; share: radius over cell."""
    y, x = np.mgrid[:height, :width] + 0.5
    row, column = (y * rows / height).astype(int), (x * columns / width).astype(int)
    dy, dx = y - (row + 0.5) * height / rows, x - (column + 0.5) * width / columns
    inside = np.hypot(dy, dx) < share * min(height / rows, width / columns)
    ids = np.where(inside, row * columns + column + 1, 0)
    image = np.where(inside[..., None], COLOURS[(row * 3 + column) % len(COLOURS)], np.uint8(190))
    return image.astype(np.uint8), ids


def noisy(image: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def best_iou(region: np.ndarray, ids: np.ndarray) -> float:
    """The IoU of a region [H, W] bool with the id that fits best."""
    both, every = np.bincount(ids[region], minlength=ids.max() + 1), np.bincount(ids.ravel())
    return float((both / (region.sum() + every - both)).max())


def check_laws(maps: list[np.ndarray], shape: tuple[int, ...]) -> None:
    for ids in maps:
        assert ids.shape == shape and ids.dtype == np.int32
        assert np.array_equal(np.unique(ids), np.arange(1, ids.max() + 1))
    for coarse, fine in pairwise(maps):
        pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
        assert pairs.shape[1] == fine.max()  # a fine region lies in one coarse region


# ---- laws


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99), block=st.integers(1, 9))
def test_maps_are_nested_numbered_and_the_same_again(height, width, seed, block):
    colours = np.random.default_rng(seed).integers(0, 256, (40 // block + 1, 40 // block + 1, 3), np.uint8)
    image = colours.repeat(block, 0).repeat(block, 1)[:height, :width]
    for segmenter in (segment, replace(segment, max_side=16)):
        maps = segmenter(image)
        check_laws(maps, (height, width))
        assert all(np.array_equal(a, b) for a, b in zip(maps, segmenter(image.copy())))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_the_laws_on_a_textured_photo(name):
    image = noisy(draw_discs(150, 220, 6, 4, 0.35)[0], 25)
    maps = PRESETS[name](image)
    check_laws(maps, (150, 220))
    assert maps[-1].max() >= 24


def test_regions_hang_together():
    from scipy import ndimage

    ids = segment(noisy(draw_discs(120, 160, 5, 4, 0.4)[0], 20))[-1]
    assert ids.max() > 5
    assert all(ndimage.label(ids == i)[1] == 1 for i in range(1, ids.max() + 1))


@pytest.mark.parametrize("flip", [np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]])
def test_a_flipped_photo_gives_flipped_regions(flip):
    image, truth = draw_discs(96, 128, 4, 3, 0.3)
    straight, flipped = segment(image)[-1], segment(np.ascontiguousarray(image[flip]))[-1][flip]
    assert straight.max() == flipped.max() == truth.max() + 1
    assert all(best_iou(straight == i, flipped) > 0.95 for i in range(1, straight.max() + 1))


def test_the_order_of_colours_does_not_matter():
    image, truth = draw_discs(96, 128, 4, 3, 0.3)
    for order in ([1, 2, 0], [2, 1, 0]):
        ids = segment(np.ascontiguousarray(image[..., order]))[-1]
        assert ids.max() == truth.max() + 1


# ---- what must be found


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sigma", [0.0, 3.0])
def test_flat_shapes_are_recovered(name, sigma):
    image = np.full((240, 320, 3), 200, np.uint8)
    y, x = np.mgrid[:240, :320]
    shapes = [
        np.hypot(y - 60, x - 70) < 40,
        (abs(y - 160) < 50) & (abs(x - 80) < 45),
        (y > 40) & (y - 40 < (x - 180) * 1.2) & (x < 300) & (x > 180),
        np.hypot((y - 220) / 0.4, x - 230) < 40,
    ]
    for shape, colour in zip(shapes, COLOURS):
        image[shape] = colour
    ids = PRESETS[name](noisy(image, sigma) if sigma else image)[-1]
    assert ids.max() <= 4 * len(shapes)
    assert min(best_iou(shape, ids) for shape in shapes) > 0.95


def test_a_shaded_sphere_stays_one():
    y, x = np.mgrid[:200, :200]
    dy, dx = (y - 100) / 70, (x - 100) / 70
    inside = dy**2 + dx**2 < 1
    depth = np.sqrt(np.maximum(1 - dy**2 - dx**2, 0))
    light = 0.5 + 0.5 * np.maximum((-dy - dx + 2 * depth) / np.sqrt(6), 0)
    image = np.where(inside[..., None], light[..., None] * [210, 70, 50], [120, 160, 210])
    for ids in segment(np.rint(image).astype(np.uint8))[:2]:
        assert ids.max() <= 3 and best_iou(inside, ids) > 0.95


def test_an_even_texture_is_one_region():
    checks = (np.indices((160, 160)) // 4).sum(0) % 2
    image = np.full((160, 240, 3), [60, 60, 200], np.uint8)
    image[:, :160] = np.where(checks[..., None], [230, 220, 200], [120, 110, 90])
    left = np.arange(240)[None] < np.full((160, 1), 160)
    ids = segment(image)[1]
    assert best_iou(left, ids) > 0.95


def test_a_thousand_things_stay_apart():
    image, truth = draw_discs(500, 800, 40, 25, 0.38)
    ids = segment(noisy(image))[-1]
    overlap = np.zeros((1001, ids.max() + 1))
    np.add.at(overlap, (truth.ravel(), ids.ravel()), 1)
    iou = overlap / (overlap.sum(1)[:, None] + overlap.sum(0) - overlap + 1e-9)
    assert (iou.max(1)[1:] > 0.75).mean() >= 0.99


def test_a_large_photo_is_cut_on_a_copy():
    image, truth = draw_discs(600, 900, 3, 2, 0.3)
    ids = replace(segment, max_side=300)(image)[-1]
    assert ids.max() == 7
    assert min(best_iou(truth == i, ids) for i in range(7)) > 0.95


# ---- edges


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_blank_photo_is_one_region(value):
    for ids in segment(np.full((60, 90, 3), value, np.uint8)):
        assert (ids == 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (2, 2), (3, 5), (1, 3000)])
def test_thin_and_tiny_photos(shape):
    image = np.zeros((*shape, 3), np.uint8)
    image[shape[0] // 2 :, shape[1] // 2 :] = [250, 120, 20]
    check_laws(segment(image), shape)


def test_a_line_of_pixels_is_cut_where_its_colour_changes():
    image = np.zeros((1, 300, 3), np.uint8)
    image[:, 120:] = 255
    ids = segment(image)[-1]
    assert ids.max() == 2 and abs(int((ids == ids[0, 0]).sum()) - 120) <= 2


def test_grey_photos_are_cut_by_lightness():
    _, truth = draw_discs(120, 160, 4, 3, 0.35)
    grey = np.where(truth > 0, 40, 200).astype(np.uint8)[..., None].repeat(3, 2)
    assert segment(grey)[-1].max() == 13


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_photo_is_refused(image):
    with pytest.raises(InputError, match=r"expected an image \[H, W, 3\]"):
        segment(image)


@pytest.mark.parametrize(
    "change",
    [
        {"levels": (5.0, 8.0, 11.0)},
        {"levels": (5.0,)},
        {"levels": (), "min_area": ()},
        {"levels": (3.0, 2.0, -1.0)},
        {"min_area": (1e-4, 1e-3, 1e-3)},
        {"distances": (0.01,)},
        {"distance_weights": (0.0, 0.0, 0.0)},
        {"max_side": 0},
        {"small": 0.0},
        {"lightness": float("nan")},
        {"levels": (float("nan"), 2.0, 1.0)},
        {"border": 1.5},
        {"enclosed": -0.1},
    ],
)
def test_settings_without_sense_are_refused(change):
    with pytest.raises(InputError, match="expected"):
        RegionMerging(**change)


# ---- the steps


def test_even_ground_has_no_border_and_an_edge_is_as_strong_as_its_colours_differ():
    image = np.full((40, 60, 3), 50, np.uint8)
    image[:, 30:] = 200
    planes = distribution_planes(image, 1.0, 0.0)
    strength = border_strength(planes, [2.0], [1.0])
    from skimage.color import rgb2lab

    light = rgb2lab(np.array([[[50] * 3, [200] * 3]], np.uint8))[0, :, 0]
    assert strength[:, :20].max() < 1e-3 and strength[:, 40:].max() < 1e-3
    assert strength[20, 29:31].min() == pytest.approx(light[1] - light[0], rel=0.2)
    twice = border_strength(distribution_planes(image, 2.0, 0.0), [2.0], [1.0])
    np.testing.assert_allclose(twice, 2 * strength, rtol=1e-4, atol=1e-4)


def test_the_two_sides_of_a_pixel_are_compared_in_every_direction():
    """Against slow loops over pixels, directions and planes; past the picture's edge lie its last pixels."""
    patches = np.random.default_rng(0).random((5, 7, 3), np.float32)
    offsets = np.array([[0, 2], [1, 1], [3, 0], [1, -2]])
    found = _largest_difference(patches, offsets)
    for y, x in np.ndindex(5, 7):
        apart = [
            np.abs(patches[at(y - i, 5), at(x - j, 7)] - patches[at(y + i, 5), at(x + j, 7)]).sum() for i, j in offsets
        ]
        assert found[y, x] == pytest.approx(max(apart), rel=1e-6)


def at(k: int, size: int) -> int:
    return min(max(k, 0), size - 1)


def test_shared_borders_are_counted():
    regions = np.array([[0, 0, 1], [0, 2, 1], [2, 2, 1]])
    strength = np.arange(9, dtype=np.float32).reshape(3, 3)
    borders = shared_borders(regions, strength)
    assert borders.ends.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert borders.lengths.tolist() == [1, 3, 2]
    assert borders.strengths.tolist() == [2, 4 + 4 + 6, 5 + 8]
    assert borders.steps.tolist() == [0, 0, 0]
    assert shared_borders(regions, strength, strength[::-1].copy()).steps.tolist() == [8, 4 + 7 + 3, 5 + 2]


def slow_merge(regions, strength, planes, levels, min_areas, rules, steps):
    """The obvious way: look at every pair of neighbours again after each merge."""
    owner, found = regions.copy(), []
    outside = shared_borders(regions, strength, steps)
    for level, least in zip(levels, min_areas):
        while True:
            costs = {}
            links = {}
            for (a, b), *sums in zip(outside.ends, outside.lengths, outside.strengths, outside.steps):
                pair = (owner[regions == a][0], owner[regions == b][0])
                if pair[0] != pair[1]:
                    key = (min(pair), max(pair))
                    links[key] = links.get(key, np.zeros(3)) + np.array(sums)
            for (a, b), (length, total, step) in links.items():
                sides = [owner == a, owner == b]
                area = min(side.sum() for side in sides)
                means = [planes[:, side].mean(1) for side in sides]
                outline = min(sum(x[0] for key, x in links.items() if i in key) for i in (a, b))
                rest = min(strength[side].mean() for side in sides)
                cost = (total / length) ** rules.border * abs(means[0] - means[1]).sum() ** (1 - rules.border)
                cost *= (1 - rules.enclosed * length / outline) / (1 + min(rules.unrest * rest, 1))
                cost += step / length
                cost *= min(1, area / rules.small) ** rules.favour_small
                if cost <= level or area < least:
                    costs[(a, b)] = cost
            if not costs:
                break
            a, b = min(costs, key=costs.__getitem__)
            owner[owner == b] = a
        found.append(owner.copy())
    return found


@pytest.mark.parametrize("apart", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_merging_matches_the_slow_reference(seed, apart):
    generator = np.random.default_rng(seed)
    regions = np.arange(30).reshape(5, 6).repeat(3, 0).repeat(3, 1)
    strength = generator.random(regions.shape, np.float32) * 10
    planes = generator.random((4, *regions.shape), np.float32) * 5
    planes += generator.random((4, 30), np.float32)[:, regions] * 5
    rules = MergeRules(border=0.4, enclosed=0.5, unrest=0.1, small=60.0, favour_small=0.3)
    levels, least = (1.5, 1.8, 1.9), (1.0, 1.0, 10.0)
    steps = generator.random(regions.shape, np.float32) * np.float32(apart) if apart else None
    owners = merge_levels(regions, strength, planes, levels, least, rules, steps)
    expected = slow_merge(regions, strength, planes, levels, least, rules, steps)
    counts = []
    for owner, slow in zip(owners, expected):
        pairs = np.unique(np.stack([owner[regions].ravel(), slow.ravel()]), axis=1)
        counts.append(len(np.unique(slow)))
        assert pairs.shape[1] == counts[-1] == len(np.unique(owner))
    assert 30 >= counts[0] > counts[1] > counts[2] >= 1, counts


def test_only_what_is_smaller_than_the_least_area_must_merge():
    regions = np.arange(3).repeat(4)[None].repeat(3, 0)  # of 12 pixels each
    planes = np.float32([1, 5, 9])[regions][None]
    rules = MergeRules(border=0.4, enclosed=0.5, unrest=0.1, small=60.0, favour_small=0.3)
    strength = np.full(regions.shape, 5, np.float32)
    for least, left in ((12, 3), (13, 1)):
        owners = merge_levels(regions, strength, planes, [0.0], [least], rules)
        assert len(np.unique(owners)) == left


# ---- with depth


def floor_and_post(height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] of a slanted floor with a post on it, and where the post is, [H, W] bool."""
    y, x = np.mgrid[:height, :width] + 0.5
    floor = 1 / (0.02 + 0.004 * y)  # 1 / depth is linear on a plane
    post = (np.abs(x - 60) < 14) & (y > 25) & (y < 65)
    return np.where(post, floor[65, 0], floor).astype(np.float32), post


@settings(max_examples=30, deadline=None)
@given(
    slopes=st.tuples(*[st.floats(-0.9, 0.9)] * 2), near=st.floats(0.1, 100), size=st.tuples(*[st.integers(1, 50)] * 2)
)
def test_no_plane_bends(slopes, near, size):
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    depth = (near / (1 + 0.5 * slopes[0] * x + 0.5 * slopes[1] * y)).astype(np.float32)
    folds, ridges = bends(depth, np.ones(size, bool), Relief(smoothing=0))
    inner = np.s_[4:-4, 4:-4]  # a median levels the edge of a picture
    assert folds[inner].max(initial=0) < 1e-3 and ridges[inner].max(initial=0) < 1e-3


def test_folds_and_ridges_are_told_apart_whatever_the_unit():
    depth, _ = floor_and_post()
    folds, ridges = bends(depth, depth > 0, Relief())
    assert folds[60:70, 60].max() > 0.01 > 10 * ridges[60:70, 60].max()  # where it stands
    assert folds[25, 60] < 0.01 < 0.1 < ridges[25, 60]  # its own edge; what is behind is folded
    assert folds[24, 60] > 0.1
    for scale in (0.01, 100.0):
        again = bends(depth * scale, depth > 0, Relief())
        assert np.allclose(again[0], folds, atol=1e-4) and np.allclose(again[1], ridges, atol=1e-4)


def test_past_the_median_depth_bends_are_less():
    d = np.ones((100, 100), np.float32)
    d[:40] = 0.2 + 0.01 * np.abs(np.arange(100) - 50)  # a fold five times as far away as most
    folds, _ = bends(1 / d, d > 0, Relief(distances=(0.05,), smoothing=0))
    assert folds[15, 50] == pytest.approx(2 * 0.25 - 2 * 0.21, abs=1e-5)  # 0.21: the median of five of them


def bent(monkeypatch, fold, ridge):
    """Let depth bend evenly, in units of what counts wholly; return what `weigh_borders` makes of borders of 3."""
    even = np.full((9, 9), Relief().bend, np.float32)
    monkeypatch.setattr(relief_module, "bends", lambda *_: (fold * even, ridge * even))
    return [weigh_borders(0 * even + 3, 1 + even, Relief(noise=noise)) for noise in (Relief().noise, 0)]


def test_what_bends_everywhere_is_noise_and_no_step(monkeypatch):
    (_, steps), (_, without) = bent(monkeypatch, 4, 0)
    assert steps.max() == 0 and np.allclose(without, 0.5)


def test_a_ridge_in_a_fold_takes_nothing_from_colours(monkeypatch):
    assert np.allclose(bent(monkeypatch, 1, 1)[0][0], 3 + Relief().border)


def test_depth_finds_what_has_no_colour_of_its_own():
    depth, post = floor_and_post()
    image = noisy(np.full((90, 120, 3), 150, np.uint8), 3)
    alone, seen = segment(image), segment(image, depth)
    assert max(best_iou(post, ids) for ids in alone) < 0.4 < 0.8 < max(best_iou(post, ids) for ids in seen)
    check_laws(seen, (90, 120))


def test_print_on_a_plane_counts_less():
    image, ids = draw_discs(90, 120, 4, 3, 0.35)
    pale = (0.5 * 190 + 0.5 * image).astype(np.uint8)
    y, _ = np.mgrid[:90, :120]
    plane = (1 / (0.1 + 0.004 * y)).astype(np.float32)
    assert segment(noisy(pale))[0].max() > segment(noisy(pale), plane)[0].max()
    assert max(best_iou(ids == 1, found) for found in segment(noisy(image), plane)) > 0.8  # but it counts


def test_unknown_depth_leaves_colours_alone():
    image = noisy(draw_discs(90, 120, 4, 3, 0.35)[0], 10)
    depth, _ = floor_and_post()
    assert all(np.array_equal(a, b) for a, b in zip(segment(image), segment(image, np.zeros_like(depth))))
    broken = depth.copy()
    broken[:, :40], broken[5, 80] = 0, np.nan
    broken[80, 100] = np.inf
    strength = np.full((90, 120), 5, np.float32)
    found, steps = weigh_borders(strength, broken, Relief())
    assert np.isfinite(found).all() and (found[:, :38] == 5).all() and (found[:, 60:] != 5).any()
    assert not steps[:, :38].any() and 0 < steps.max() <= 1
    with pytest.raises(InputError, match=r"\[90, 120\]"):
        segment(image, depth[:-1])


def test_depth_of_a_photo_that_is_shrunk():
    depth, post = floor_and_post()
    image = noisy(np.full((90, 120, 3), 150, np.uint8), 3).repeat(2, 0).repeat(2, 1)
    maps = replace(segment, max_side=120)(image, depth.repeat(2, 0).repeat(2, 1))
    check_laws(maps, (180, 240))
    assert max(best_iou(post.repeat(2, 0).repeat(2, 1), ids) for ids in maps) > 0.8
