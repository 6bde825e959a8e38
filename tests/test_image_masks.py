"""Masks of one image: run lengths, nesting, the flat id map, the file, and Segment Anything's own reading of them."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cgc.errors import InputError
from cgc.masks.id_maps import read_id_map
from cgc.masks.image_masks import ImageMasks, bounding_box, decode, encode, read_facts, read_wholes


def disc(height, width, y, x, r):
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= r * r


pictures = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=60, deadline=None)
@given(mask=pictures)
def test_run_lengths_are_those_of_segment_anything(mask):
    import torch
    from segment_anything.utils.amg import mask_to_rle_pytorch, rle_to_mask

    counts = encode(mask)
    theirs = mask_to_rle_pytorch(torch.from_numpy(mask[None].copy()))[0]
    assert counts.tolist() == theirs["counts"]
    assert np.array_equal(rle_to_mask({"size": list(mask.shape), "counts": counts.tolist()}), mask)
    assert np.array_equal(decode(counts, *mask.shape), mask)


@settings(max_examples=60, deadline=None)
@given(ids=arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4)))
def test_id_maps_become_masks(ids):
    made = ImageMasks.from_id_maps([ids])
    wanted = sorted((ids == i).sum() for i in np.unique(ids[ids > 0]))
    assert sorted(made.areas.tolist()) == wanted
    for i in range(len(made)):
        mask = made.mask(i)
        inside = np.unique(ids[mask])
        assert len(inside) == 1 and np.array_equal(mask, ids == inside[0])


@settings(max_examples=60, deadline=None)
@given(masks=arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8))))
def test_nesting_against_a_slow_reference(masks):
    made = ImageMasks.from_masks(masks, *masks.shape[1:])
    pictures = [made.mask(i) for i in range(len(made))]
    assert made.areas.tolist() == sorted((int(m.sum()) for m in masks if m.any()), reverse=True)
    for i, mask in enumerate(pictures):
        holds = [
            j for j, other in enumerate(pictures)
            if (mask & other).sum() >= 0.9 * mask.sum() and other.sum() >= 1.1 * mask.sum()
        ]  # fmt: skip
        parent = max(holds, default=-1)  # sorted by size: the last is the smallest
        assert made.parents[i] == parent
        assert made.levels[i] == (made.levels[parent] + 1 if parent >= 0 else 0)


@settings(max_examples=60, deadline=None)
@given(masks=arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 2), st.integers(1, 8))))
def test_flat_takes_the_smallest_mask_of_a_pixel(masks):
    made = ImageMasks.from_masks(masks, *masks.shape[1:])  # two rows at most: no slivers are looked for
    ids = made.flat()
    wanted = np.full(ids.shape, -1)
    for i in range(len(made)):
        wanted[made.mask(i)] = i
    for i in np.unique(wanted):
        assert len(np.unique(ids[wanted == i])) == 1
    assert ((ids == 0) == (wanted < 0)).all()
    assert len(np.unique(ids[ids > 0])) == len(np.unique(wanted[wanted >= 0])) == ids.max()


def nested():
    whole, part, small = disc(60, 80, 30, 40, 25), disc(60, 80, 30, 30, 8), disc(60, 80, 30, 30, 3)
    aside = disc(60, 80, 8, 8, 6)
    return ImageMasks.from_masks([small, aside, whole, part], 60, 80, [0.5, 0.6, 0.9, 0.8])


def test_levels_and_scores():
    made = nested()
    assert made.levels.tolist() == [0, 1, 0, 2]  # whole, part, aside, small
    assert made.parents.tolist() == [-1, 0, -1, 1]
    assert np.allclose(made.scores, [0.9, 0.8, 0.6, 0.5])
    assert len(np.unique(made.flat())) == 5
    assert len(np.unique(made.flat(level=0))) == 3
    assert len(np.unique(made.flat(min_area=100))) == 4  # aside has 113, small 29


def test_slivers_go_and_thin_things_stay():
    table = np.zeros((40, 60), bool)
    table[10:39] = True
    plate = np.zeros_like(table)
    plate[12:36, 1:30] = True  # leaves a strip of one pixel of the table at its left
    pen = np.zeros_like(table)
    pen[20:22, 35:55] = True  # two pixels wide
    ids = ImageMasks.from_masks([table, plate, pen], 40, 60).flat()
    assert (ids[12:36, 0] == 0).all()
    assert (ids[pen] == ids[20, 40]).all() and ids[20, 40] > 0 and len(np.unique(ids)) == 4
    assert (ids[30, 56:] == ids[30, 32]).all() and ids[30, 32] > 0


def test_exact_nested_truth_loses_no_instance():
    rng = np.random.default_rng(0)
    cells = np.kron(np.arange(1, 61).reshape(6, 10), np.ones((12, 12), int)).astype(np.int32)
    cells[rng.random(cells.shape) < 0.02] = 0
    wholes = (cells > 0) * (1 + (cells - 1) // 5)
    ids = ImageMasks.from_id_maps([cells, wholes.astype(np.int32)]).flat(min_area=60)
    kept = {tuple(np.unique(ids[cells == i])) for i in range(1, 61)}
    assert len({max(k) for k in kept}) == 60


def test_the_bundled_scenes_nested_truth_loses_no_instance():
    """Finest ids and what they are parts of, both exact: every instance over the least area has its own id."""
    scene = Path(__file__).parent.parent / "data" / "demo"
    rows = json.loads((scene / "instances.json").read_text())["instances"]
    up = np.arange(1 + max(row["id"] for row in rows))
    for row in rows:
        up[row["id"]] = row.get("parent") or row["id"]
    for path in sorted((scene / "instance").glob("*.png"))[::9]:
        ids = read_id_map(path)
        flat = ImageMasks.from_id_maps([ids, up[ids].astype(np.int32)]).flat(min_area=12)
        for i, size in zip(*np.unique(ids[ids > 0], return_counts=True)):
            shown = np.bincount(flat[ids == i])[1:]
            assert size < 12 or shown.max() > 0.5 * size, (path.name, i)


def test_runs_that_are_one_number_are_said(tmp_path):
    ImageMasks.from_masks([np.ones((4, 5), bool)] * 2, 4, 5).save(tmp_path / "a.npz")
    columns = dict(np.load(tmp_path / "a.npz")) | {"runs": np.array(20)}
    np.savez(tmp_path / "a.npz", **columns)
    with pytest.raises(InputError, match="cover 0 pixels"):
        ImageMasks.load(tmp_path / "a.npz")


def test_a_thousand_masks(tmp_path):
    tiles = np.arange(1, 1201).reshape(30, 40)
    ids = np.kron(tiles, np.ones((20, 25), int)).astype(np.int32)  # 600 x 1000
    wholes = np.kron((tiles - 1) // 40 + 1, np.ones((20, 25), int)).astype(np.int32)
    start = time.perf_counter()
    made = ImageMasks.from_id_maps([ids, wholes])
    assert len(made) == 1230 and made.levels.max() == 1
    assert len(np.unique(made.flat())) == 1200
    made.save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size < 600_000
    assert np.array_equal(ImageMasks.load(tmp_path / "a.npz").flat(), made.flat())
    assert time.perf_counter() - start < 60


def test_a_mask_a_pixel_is_no_matter():
    ids = np.arange(1, 30_001, dtype=np.int32).reshape(150, 200)
    made = ImageMasks.from_id_maps([ids])
    assert len(made) == 30_000 and (made.areas == 1).all() and (made.parents == -1).all()
    assert not made.flat(min_area=2).any()


def test_file(tmp_path):
    made = nested()
    made.save(tmp_path / "a.npz", generator="by hand", key="7")
    back = ImageMasks.load(tmp_path / "a.npz")
    assert read_facts(tmp_path / "a.npz") == {"generator": "by hand", "key": "7"}
    assert all(np.array_equal(a, b) for a, b in zip(made.counts, back.counts, strict=True))
    assert np.array_equal(made.scores, back.scores) and np.array_equal(made.parents, back.parents)
    empty = ImageMasks.from_masks([], 4, 5)
    empty.save(tmp_path / "b.npz")
    assert len(ImageMasks.load(tmp_path / "b.npz")) == 0 and not empty.flat().any()
    blob = (tmp_path / "a.npz").read_bytes()
    for cut in (0, 10, len(blob) // 2, len(blob) - 3):
        (tmp_path / "c.npz").write_bytes(blob[:cut])
        with pytest.raises(InputError, match="make them again"):
            ImageMasks.load(tmp_path / "c.npz")
        assert read_facts(tmp_path / "c.npz") == {}
    np.savez(tmp_path / "d.npz", format=1, size=[4, 5], runs=np.array([3], np.uint32), lengths=[1], scores=[1.0])
    with pytest.raises(InputError, match="cover 3 pixels"):
        ImageMasks.load(tmp_path / "d.npz")


@pytest.mark.parametrize("wholes", [[], [1.0], [-1], [[1]], [2**31], [2**63]])
def test_wholes_that_are_no_numbers_of_masks(tmp_path, wholes):
    nested().save(tmp_path / "a.npz", painted=np.array([-1, 0, 1]))
    assert read_wholes(tmp_path / "a.npz")[0] == 0
    np.savez(tmp_path / "a.npz", wholes=np.array(wholes))
    with pytest.raises(InputError, match="do not say which parts are of what"):
        read_wholes(tmp_path / "a.npz")


def test_counts_are_those_of_coco():
    from pycocotools import mask as coco

    made = nested()
    for i, counts in enumerate(made.counts):
        packed = coco.frPyObjects({"size": [60, 80], "counts": counts.tolist()}, 60, 80)
        assert np.array_equal(coco.decode(packed).astype(bool), made.mask(i)) and made.areas[i] == coco.area(packed)
        assert list(bounding_box(counts, 60)) == coco.toBbox(packed).tolist()


@pytest.mark.parametrize(
    ("counts", "says"),
    [([[3, 2]], "cover 5 pixels"), ([[-1, 21]], "0 or more"), ([[1.5, 18.5]], "whole numbers"), ([[[20]]], "list")],
)
def test_bad_run_lengths(counts, says):
    with pytest.raises(InputError, match=says):
        ImageMasks.from_counts([np.array(c) for c in counts], 4, 5)


def test_bad_scores():
    with pytest.raises(InputError, match="one finite score"):
        ImageMasks.from_counts([np.array([0, 20])], 4, 5, [np.nan])
    with pytest.raises(InputError, match="its image is"):
        ImageMasks.from_masks([np.ones((3, 3), bool)], 4, 5)
    with pytest.raises(InputError, match="equally large"):
        ImageMasks.from_id_maps([np.ones((3, 3), int), np.ones((3, 4), int)])
