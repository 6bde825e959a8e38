"""Evaluation room: picture scores and instance scores against slow, obvious references and their laws."""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cgc.errors import InputError
from cgc.evaluation import pictures
from cgc.evaluation.instances import InstanceScores, score_instances, trace_instances
from cgc.evaluation.pictures import load_lpips, lpips, psnr, ssim
from cgc.evaluation.truth import IGNORE, merge_parts, read_drawn, read_truth
from cgc.masks.id_maps import write_id_map

# --- pictures ---------------------------------------------------------------------------------------------


def test_psnr_by_hand():
    a = torch.full((4, 5, 3), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr(a.numpy(), a.numpy() - np.float32(0.01)) == pytest.approx(40.0, abs=1e-3)
    assert psnr(a, a) == 100.0


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Every window written out; what lies outside of the picture is zero."""
    height, width, channels = a.shape
    weight = np.array([[math.exp(-((dy * dy + dx * dx) / (2 * 1.5**2))) for dx in range(-5, 6)] for dy in range(-5, 6)])
    weight /= weight.sum()
    total = 0.0
    for y, x, c in itertools.product(range(height), range(width), range(channels)):
        ex = ey = exx = eyy = exy = 0.0
        for dy, dx in itertools.product(range(-5, 6), range(-5, 6)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                p, q, w = a[y + dy, x + dx, c], b[y + dy, x + dx, c], weight[dy + 5, dx + 5]
                ex, ey, exx, eyy, exy = (
                    ex + w * p,
                    ey + w * q,
                    exx + w * p * p,
                    eyy + w * q * q,
                    exy + w * p * q,
                )
        luminance = (2 * ex * ey + 1e-4) / (ex * ex + ey * ey + 1e-4)
        total += luminance * (2 * (exy - ex * ey) + 9e-4) / (exx - ex * ex + eyy - ey * ey + 9e-4)
    return total / (height * width * channels)


def test_ssim_is_the_slow_one():
    rng = np.random.default_rng(0)
    a = rng.random((13, 9, 3))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-9)
    assert ssim(torch.tensor(a), torch.tensor(b)) == ssim(a, b) == ssim(b, a)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, 1 - a) < ssim(a, b) < 1


@pytest.mark.parametrize("score", [psnr, ssim])
def test_pictures_that_cannot_be_compared(score):
    a = np.zeros((4, 5, 3))
    with pytest.raises(InputError, match=r"\(4, 5, 3\) and \(5, 4, 3\)"):
        score(a, np.zeros((5, 4, 3)))
    with pytest.raises(InputError, match="uint8"):
        score(a, np.zeros((4, 5, 3), np.uint8))


class Halves(torch.nn.Module):
    """A distance that a hand can work out: what differs in the left half counts twice."""

    def forward(self, a, b):
        assert a.shape == b.shape == (1, 3, 4, 6) and a.min() >= -1 and a.max() <= 1
        return (a - b).abs().mean() + (a - b)[..., :3].abs().mean()


def test_lpips_asks_the_network_for_pictures_in_its_range():
    a = np.zeros((4, 6, 3), np.float32)
    b = a.copy()
    b[:, :3, 0] = 0.5  # 1 in -1..1, on a sixth of all numbers, a third of the left ones
    assert lpips(a, b, Halves()) == pytest.approx(1 / 6 + 1 / 3)
    assert lpips(torch.tensor(a), torch.tensor(b), Halves()) == lpips(b, a, Halves())
    assert lpips(a, a, Halves()) == 0


def test_lpips_that_cannot_be_had_is_said_in_a_sentence(monkeypatch):
    class Package:
        def LPIPS(self, net, verbose):
            raise OSError("no network")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(pictures.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"not installed; pip install 'contrastive-gaussian-clustering\[lpips\]'"):
        load_lpips()
    monkeypatch.setattr(pictures.importlib, "import_module", lambda name: Package())
    with pytest.raises(InputError, match=r"the weights of its VGG backbone could not be loaded \(no network\)"):
        load_lpips()


# --- instances --------------------------------------------------------------------------------------------


def pixels(maps: list, i: int, ignore: list) -> set:
    return {
        (v, y, x) for v, m in enumerate(maps) for y, x in np.ndindex(m.shape) if m[y, x] == i and not ignore[v][y, x]
    }


def border(maps: list, i: int, ignore: list) -> set:
    """The pixels of segment i from which a pixel of another segment (or the outside) is within the band."""
    found = set()
    for v, y, x in pixels(maps, i, ignore):
        height, width = maps[v].shape
        d = max(1, round(0.02 * math.hypot(height, width)))
        for dy, dx in itertools.product(range(-d, d + 1), range(-d, d + 1)):
            inside = 0 <= y + dy < height and 0 <= x + dx < width
            if not inside or (maps[v][y + dy, x + dx] != i and not ignore[v][y + dy, x + dx]):
                found.add((v, y, x))
    return found


def overlap(a: set, b: set) -> float:
    return len(a & b) / max(len(a | b), 1)


def check_against_loops(truth, predicted, stuff, ignore_id, min_pixels) -> InstanceScores:
    """Hold every number against sets of pixels and a search through all matchings."""
    scores = score_instances(truth, predicted, stuff, ignore_id, min_pixels)
    ignore = [m == ignore_id for m in truth]
    guess = [np.zeros_like(t) if p is None else p for t, p in zip(truth, predicted)]
    true_ids = sorted({int(i) for m in truth for i in np.unique(m)} - {0, ignore_id})
    seen = {i: pixels(truth, i, ignore) for i in true_ids}
    things = [i for i in true_ids if len(seen[i]) >= min_pixels and i not in stuff]
    pred_ids = sorted({int(i) for m in guess for i in np.unique(m)} - {0})
    drawn = {p: pixels(guess, p, ignore) for p in pred_ids}
    assert scores.skipped == tuple(i for i in true_ids if len(seen[i]) < min_pixels)

    places = [*pred_ids, *[None] * len(things)]
    totals = [
        sum(overlap(seen[t], drawn[p]) for t, p in zip(things, order) if p is not None)
        for order in set(itertools.permutations(places, len(things)))
    ]
    assert scores.miou_things * len(things) == pytest.approx(max(totals))

    assert [r.id for r in scores.rows] == things
    used = [r.predicted for r in scores.rows if r.predicted]
    assert len(used) == len(set(used))
    for r in scores.rows:
        assert r.pixels == len(seen[r.id])
        assert r.iou == pytest.approx(overlap(seen[r.id], drawn.get(r.predicted, set())))
        edges = border(truth, r.id, ignore), border(guess, r.predicted, ignore) if r.predicted else set()
        assert r.boundary_iou == pytest.approx(overlap(*edges))
    good = {(t, p): x for t in things for p in pred_ids if (x := overlap(seen[t], drawn[p])) > 0.5}
    on_things = set().union(*(seen[t] for t in things))
    wrong = [
        p
        for p in pred_ids
        if p not in {p for _, p in good}
        and len(drawn[p]) >= min_pixels
        and len(drawn[p] & on_things) > len(drawn[p]) / 2
    ]
    counts = scores.true_positives, scores.false_positives, scores.false_negatives
    assert counts == (len(good), len(wrong), len(things) - len(good))
    quality = sum(good.values()) / max(len(good) + 0.5 * len(wrong) + 0.5 * (len(things) - len(good)), 1e-9)
    assert scores.pq == pytest.approx(quality) == pytest.approx(scores.sq * scores.rq)
    assert scores.boundary_iou == pytest.approx(np.mean([r.boundary_iou for r in scores.rows]))
    assert scores.recall_iou50 == pytest.approx(len(good) / len(things))
    return scores


def blocks(rng: np.random.Generator, shape: tuple[int, int], ids: int, cell: int) -> np.ndarray:
    """A random id map of square cells, so that segments have insides."""
    coarse = rng.integers(0, ids + 1, (shape[0] // cell + 1, shape[1] // cell + 1))
    return np.repeat(np.repeat(coarse, cell, 0), cell, 1)[: shape[0], : shape[1]]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), cell=st.integers(1, 4), ignore_id=st.sampled_from([None, 0, 4]),
    stuff=st.sampled_from([set(), {2}]), min_pixels=st.sampled_from([1, 12]), gap=st.booleans(),
)  # fmt: skip
def test_scores_are_the_slow_ones(seed, cell, ignore_id, stuff, min_pixels, gap):
    rng = np.random.default_rng(seed)
    truth = [blocks(rng, shape, 4, cell) for shape in ((9, 11), (8, 6))]
    truth[0][:5, :5] = 1  # one thing at least
    predicted = [blocks(rng, m.shape, 3, cell) for m in truth]
    check_against_loops(truth, [None if gap else predicted[0], predicted[1]], stuff, ignore_id, min_pixels)


def test_wide_band_is_the_slow_one():
    rng = np.random.default_rng(5)
    truth = blocks(rng, (60, 100), 2, 25)  # diagonal 116.6: a band of 2 pixels
    predicted = np.roll(truth, (2, 3), (0, 1))
    scores = check_against_loops([truth], [predicted], set(), None, 60)
    assert 0.1 < scores.boundary_iou < scores.miou_things < 1


def test_scores_by_hand():
    truth = np.zeros((10, 20), int)
    truth[:, :10] = 7  # 100 pixels
    truth[:5, 10:] = 8  # 50 pixels
    truth[5:, 10:] = 9  # stuff
    predicted = np.zeros((10, 20), int)
    predicted[:, :8] = 3  # 80 of 7
    predicted[:5, 8:12] = 4  # 10 of 7, 10 of 8
    predicted[5:, 10:] = 5  # on stuff: no false positive
    scores = score_instances([truth], [predicted], {9}, min_pixels=20)
    first, second = scores.rows
    assert (first.id, first.pixels, first.predicted, first.iou) == (7, 100, 3, 0.8)
    assert (second.id, second.pixels, second.predicted) == (8, 50, 4)
    assert second.iou == pytest.approx(10 / 60)
    assert scores.miou_things == pytest.approx((0.8 + 1 / 6) / 2)
    assert scores.miou_all == pytest.approx((0.8 + 1 / 6 + 1) / 3)
    # 7's band is the rim of 10x10: 36 pixels; of 3 it is the rim of 10x8: 32; they share 10 + 7 + 7
    assert first.boundary_iou == pytest.approx(24 / (36 + 32 - 24))
    # 3 matches 7; 4 lies on things but matches nothing above 0.5; 8 is not found
    assert (scores.true_positives, scores.false_positives, scores.false_negatives) == (1, 1, 1)
    assert (scores.sq, scores.rq) == pytest.approx((0.8, 0.5))
    assert scores.recall_iou50 == 0.5


@pytest.fixture
def three_views() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [blocks(rng, (40, 50), 6, 10) for _ in range(3)]


def test_perfect_prediction_is_one(three_views):
    scores = score_instances(three_views, three_views, {6})
    wanted = [scores.miou_things, scores.miou_all, scores.boundary_iou, scores.pq, scores.recall_iou50]
    assert wanted == [1.0] * 5
    assert [r.predicted for r in scores.rows] == [r.id for r in scores.rows]
    assert scores.missing_views == 0


def test_names_of_predicted_ids_do_not_matter(three_views):
    rng = np.random.default_rng(2)
    predicted = [np.where(rng.random(m.shape) < 0.2, 0, m) for m in three_views]
    names = np.array([0, 40_000, 3, 70_000, 1, 9, 2])
    one = score_instances(three_views, predicted, {6})
    two = score_instances(three_views, [names[p] for p in predicted], {6})
    assert [(r.id, r.iou, r.boundary_iou, names[r.predicted]) for r in one.rows] == [
        (r.id, r.iou, r.boundary_iou, r.predicted) for r in two.rows
    ]
    assert (one.pq, one.miou_things, one.miou_all) == (two.pq, two.miou_things, two.miou_all)


def test_ids_swapped_in_one_view_are_punished(three_views):
    swap = np.array([0, 2, 1, 3, 4, 5, 6])
    predicted = [three_views[0], swap[three_views[1]], three_views[2]]
    scores = score_instances(three_views, predicted, set())
    assert scores.miou_things < 0.95
    assert {r.id for r in scores.rows if r.iou < 1} == {1, 2}


def test_missing_view_counts_as_zeros(three_views):
    zeros = np.zeros_like(three_views[1])
    a = score_instances(three_views, [three_views[0], None, three_views[2]], set())
    b = score_instances(three_views, [three_views[0], zeros, three_views[2]], set())
    assert (a.rows, a.pq, a.missing_views, b.missing_views) == (b.rows, b.pq, 1, 0)
    nothing = score_instances(three_views, [None, None, None], set())
    assert (nothing.miou_things, nothing.pq, nothing.boundary_iou, nothing.false_positives) == (0, 0, 0, 0)


def test_noise_is_unassigned(three_views):
    noisy = [np.where(m == 3, -1, m) for m in three_views]
    empty = [np.where(m == 3, 0, m) for m in three_views]
    assert score_instances(three_views, noisy, set()) == score_instances(three_views, empty, set())


def test_ignored_pixels_count_nowhere(three_views):
    hidden = [m.copy() for m in three_views]
    for m in hidden:
        m[5:25, 5:30] = 255
    rng = np.random.default_rng(3)
    scribbled = [np.where(m == 255, rng.integers(0, 9, m.shape), m) for m in hidden]
    scores = score_instances(hidden, scribbled, set(), ignore_id=255)
    assert (scores.miou_things, scores.boundary_iou, scores.pq) == (1.0, 1.0, 1.0)


def test_small_things_are_left_out_and_listed():
    truth = np.zeros((20, 20), int)
    truth[:10] = 1
    truth[15, :5] = 2
    scores = score_instances([truth], [truth], set())
    assert [r.id for r in scores.rows] == [1]
    assert scores.skipped == (2,)


def test_truth_that_cannot_be_scored():
    empty = np.zeros((20, 20), int)
    for truth, stuff in (([empty], set()), ([empty + 3], {3}), ([], set())):
        with pytest.raises(InputError, match="no thing of at least 60 pixels"):
            score_instances(truth, truth, stuff)
    with pytest.raises(InputError, match=r"\(20, 21\) where the true one is \(20, 20\)"):
        score_instances([empty], [np.zeros((20, 21), int)], set())
    with pytest.raises(InputError, match="1 true and 2 predicted"):
        score_instances([empty], [empty, empty], set())


@pytest.mark.parametrize("ignore_id", [None, 4])
def test_views_add_up_to_the_scores(ignore_id):
    rng = np.random.default_rng(4)
    truth = [blocks(rng, (40, 50), 5, 10) for _ in range(3)]
    predicted = [np.where(rng.random(m.shape) < 0.2, 0, np.roll(m, 3)) for m in truth]
    scores = score_instances(truth, [*predicted[:2], None], {5}, ignore_id)
    traced = trace_instances(truth, [*predicted[:2], None], scores, ignore_id)
    assert {t.view for t in traced} == {0, 1, 2} and all(t.true_pixels or t.predicted_pixels for t in traced)
    for r in scores.rows:
        own = [t for t in traced if t.id == r.id]
        true, guess, both = (sum(getattr(t, f"{k}_pixels") for t in own) for k in ("true", "predicted", "shared"))
        assert true == r.pixels and both / (true + guess - both) == pytest.approx(r.iou)
        true, guess, both = (sum(getattr(t, f"{k}_band") for t in own) for k in ("true", "predicted", "shared"))
        assert both / (true + guess - both) == pytest.approx(r.boundary_iou)


# --- truth ------------------------------------------------------------------------------------------------


def write_truth(root, maps: dict[str, np.ndarray], instances: list[dict]) -> None:
    for stem, ids in maps.items():
        path = root / "instance" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(path)
    (root / "instances.json").write_text(json.dumps({"instances": instances}))


TABLE = [
    {"id": 1, "name": "floor", "stuff": True, "parent": None},
    {"id": 2, "name": "cup", "stuff": False, "parent": None},
    {"id": 300, "name": "cup.handle", "stuff": False, "parent": 2},
]


def test_truth_is_read_at_both_levels(tmp_path):
    deep = np.array([[0, 1, 2], [300, 300, 2]], np.uint16)
    write_truth(tmp_path, {"000": deep, "left/001": np.array([[1, 2]], np.uint8)}, TABLE)
    whole = read_truth(tmp_path, ["000", "left/001"])
    np.testing.assert_array_equal(whole.maps[0], [[0, 1, 2], [2, 2, 2]])
    np.testing.assert_array_equal(whole.maps[1], [[1, 2]])
    assert (whole.names, whole.stuff_ids) == ({1: "floor", 2: "cup"}, {1})
    parts = read_truth(tmp_path, ["000"], level="part")
    np.testing.assert_array_equal(parts.maps[0], deep)
    assert parts.names == {1: "floor", 2: "cup", 300: "cup.handle"}


def test_truth_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_truth(tmp_path, ["000"])
    write_truth(tmp_path, {"000": np.array([[7, 1]], np.uint8)}, TABLE)
    with pytest.raises(InputError, match=r"ids \[7\]"):
        read_truth(tmp_path, ["000"])
    with pytest.raises(InputError, match="1 of 2 true id maps"):
        read_truth(tmp_path, ["000", "001"])
    (tmp_path / "instance" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputError, match="not a readable image"):
        read_truth(tmp_path, ["001"])
    size = b"IHDR" + struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0)  # 10 GB of pixels
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    (tmp_path / "instance" / "001.png").write_bytes(header + struct.pack(">I", 0) + b"IDAT")
    with pytest.raises(InputError, match="not a readable image"):
        read_truth(tmp_path, ["001"])
    Image.new("RGB", (3, 2)).save(tmp_path / "instance" / "002.png")
    with pytest.raises(InputError, match="3 channels"):
        read_truth(tmp_path, ["002"])
    endless = {"id": float("inf"), "name": "cup", "stuff": False}
    lists = ([{"id": 1}], [endless], [TABLE[0]] * 2, [TABLE[0] | {"stuff": 1}], 3)
    for broken in (*({"instances": some} for some in lists), [], {}):
        (tmp_path / "instances.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="id, name, stuff and parent"):
            read_truth(tmp_path, ["000"])
    for parent in (2, 99):
        write_truth(tmp_path, {}, [{"id": 2, "name": "cup", "stuff": False, "parent": parent}])
        with pytest.raises(InputError, match="leads nowhere"):
            read_truth(tmp_path, ["000"])


def test_parts_are_merged_and_ids_checked(tmp_path):
    write_truth(tmp_path, {}, TABLE)
    assert merge_parts(tmp_path, np.array([300, 0, 1, 2])).tolist() == [2, 0, 1, 2]
    with pytest.raises(InputError, match=r"the surface samples hold ids \[9\]"):
        merge_parts(tmp_path, np.array([1, 9]))
    write_truth(tmp_path, {}, [*TABLE, {"id": 65_536, "name": "far", "stuff": False, "parent": None}])
    with pytest.raises(InputError, match=r"names the ids \[65536\], but an id map holds 1 to 65535"):
        read_truth(tmp_path, [])


@given(value=st.recursive(st.none() | st.integers(), lambda x: st.dictionaries(st.text(max_size=3), x, max_size=3)))
def test_any_json_names_ids_or_is_an_input_error(value, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "named"
    if not folder.exists():
        write_id_map(folder / "a.png", np.array([[1, 2]]))
    (folder / "names.json").write_text(json.dumps(value))
    try:
        assert {1, 2} <= set(read_drawn(folder).names)
    except InputError as error:
        assert "names.json" in str(error)


def test_maps_drawn_by_hand(tmp_path):
    write_id_map(tmp_path / "a.png", np.array([[0, 1, 255, 2]]))
    write_id_map(tmp_path / "sub/b.png", np.array([[1, 1, 1, 300]]))
    drawn = read_drawn(tmp_path)
    assert {k: v.tolist() for k, v in drawn.maps.items()} == {
        "a": [[IGNORE, 1, IGNORE, 2]],
        "sub/b": [[1, 1, 1, 300]],
    }
    assert drawn.names == {1: "object 1", 2: "object 2", 300: "object 300"}
    assert read_drawn(tmp_path, "background").maps["a"].tolist() == [[0, 1, IGNORE, 2]]
    assert read_drawn(tmp_path, "background", 2).maps["a"].tolist() == [[0, 1, 255, IGNORE]]
    (tmp_path / "names.json").write_text('{"255": "an object after all", "7": "not drawn"}')
    drawn = read_drawn(tmp_path)
    assert drawn.maps["a"].tolist() == [[IGNORE, 1, 255, 2]]
    assert drawn.names == {1: "object 1", 2: "object 2", 7: "not drawn", 255: "an object after all", 300: "object 300"}
