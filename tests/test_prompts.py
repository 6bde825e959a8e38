"""Prompts, selections and clusters of Gaussians: against slow references, known values and laws."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.evaluation.binary import Counts, boundary, count
from cgc.evaluation.gaussians import SurfaceSamples, adjusted_rand, read_samples, true_labels
from cgc.evaluation.prompts import Parts, click_ids, click_nodes, innermost, mask_ids, score_prompts, scribble_ids
from cgc.evaluation.selection import best_ids, read_selection, write_selection
from cgc.segmentation.prompts import clicked_nodes


def blocks(rng: np.random.Generator, shape: tuple[int, int], ids: int, cell: int) -> np.ndarray:
    """A random id map of square cells."""
    coarse = rng.integers(0, ids + 1, (shape[0] // cell + 1, shape[1] // cell + 1))
    return np.repeat(np.repeat(coarse, cell, 0), cell, 1)[: shape[0], : shape[1]]


# --- binary masks -----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), cell=st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_binary_scores_are_the_slow_ones(seed, cell):
    rng = np.random.default_rng(seed)
    true, guess = (blocks(rng, (60, 90), 1, cell) > 0 for _ in range(2))  # diagonal 108: a band of 2 pixels
    both, either = int((true & guess).sum()), int((true | guess).sum())
    assert count(true, guess).iou == pytest.approx(both / max(either, 1))
    padded = np.pad(true, 2)
    near = [padded[2 + dy : 62 + dy, 2 + dx : 92 + dx] for dy in range(-2, 3) for dx in range(-2, 3)]
    np.testing.assert_array_equal(boundary(true), true & ~np.all(near, axis=0))


def test_counts_of_masks_of_two_sizes():
    with pytest.raises(InputError, match="resize it first"):
        count(np.ones((2, 3), bool), np.ones((3, 2), bool))
    assert (Counts(1, 2, 1) + Counts(3, 0, 0)).iou == pytest.approx(1 / 5)


# --- what a prompt picks ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), cell=st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_the_innermost_pixel_is_farthest_from_the_outside(seed, cell):
    mask = blocks(np.random.default_rng(seed), (9, 12), 1, cell) > 0
    mask[4, 5] = True
    outside = [(y, x) for y in range(-1, 10) for x in range(-1, 13) if not (0 <= y < 9 and 0 <= x < 12 and mask[y, x])]
    depth = {(y, x): min((y - v) ** 2 + (x - u) ** 2 for v, u in outside) for y, x in np.argwhere(mask)}
    x, y = innermost(mask)
    assert depth[y, x] == max(depth.values())


def test_clicks_by_hand():
    target = np.zeros((20, 40), bool)
    target[5:15, 5:35] = True
    ids = np.full((20, 40), 9)
    ids[5:15, 5:25] = 1  # two thirds of the object
    ids[5:15, 25:35] = 2  # the rest
    ids[0:4, :] = 1  # and 1 is elsewhere too
    picked, made = click_ids(target, ids, 1)
    assert picked == [1] and [c.positive for c in made] == [True] and 5 <= made[0].y < 15
    picked, made = click_ids(target, ids, 2)  # wrong: 160 pixels of 1, missed: 100 of 2; to lose 1 would be worse
    assert picked == [1] and len(made) == 1
    ids[0:2, :] = 9  # wrong: 80 now
    picked, made = click_ids(target, ids, 2)
    assert picked == [1, 2] and [c.positive for c in made] == [True, True] and made[1].x >= 25
    assert click_ids(target, ids, 5)[0] == [1, 2]
    ids[5:15, 25:35] = 9  # what is missed belongs to the background: its click is taken back
    assert click_ids(target, ids, 2)[0] == [1]
    assert click_ids(target, np.zeros_like(ids), 2)[0] == []


def test_a_negative_click_takes_an_id_away():
    target = np.zeros((30, 30), bool)
    target[0:10, 0:28] = True
    ids = np.zeros((30, 30), int)
    ids[0:10, 0:12], ids[0:10, 12:28], ids[10:20, 0:15] = 1, 2, 1
    assert click_ids(target, ids, 1)[0] in ([1], [2])
    both = click_ids(target, ids, 2)[0]
    assert both in ([2], [1, 2])
    wide = np.zeros((30, 30), bool)
    wide[0:10, 0:30] = True
    unknown = np.ones((30, 30), bool)
    unknown[10:20] = False  # nobody knows whether 1 is wrong there
    ids[0:10, 28:] = 2
    assert click_ids(wide, ids, 3, unknown)[0] == [1, 2]


@given(seed=st.integers(0, 10**6), cell=st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_more_clicks_fit_no_worse_and_masks_pick_the_slow_ids(seed, cell):
    rng = np.random.default_rng(seed)
    target, ids = blocks(rng, (12, 14), 1, 3) > 0, blocks(rng, (12, 14), 5, cell)
    target[3:5, 3:5] = True
    errors = [(np.isin(ids, click_ids(target, ids, n)[0]) != target).sum() for n in (1, 2, 3, 6)]
    assert errors == sorted(errors, reverse=True)
    inside = {i: (target & (ids == i)).sum() / (ids == i).sum() for i in np.unique(ids) if i}
    iou = {i: (target & (ids == i)).sum() / (target | (ids == i)).sum() for i in inside}
    wanted = [i for i, share in inside.items() if share > 0.5 and share * (ids == i).sum() > 0.005 * target.sum()]
    best = max(iou, key=lambda i: iou[i], default=0)
    assert mask_ids(target, ids) == (wanted or ([best] if iou and iou[best] > 0 else []))


def test_a_mask_does_not_pick_the_rim_of_what_is_hidden():
    target, ids = np.zeros((60, 60), bool), np.zeros((60, 60), int)
    target[:40] = True
    ids[:40], ids[20, 3:12], ids[50:] = 1, 2, 3
    assert mask_ids(target, ids) == [1]  # 9 of 2,400 pixels show 2
    ids[20:22, 3:12] = 2
    assert mask_ids(target, ids) == [1, 2]
    assert mask_ids(ids == 2, ids) == [2]


def a_tree() -> Hierarchy:
    """Objects 1 and 2 in whole 3; object 1 is made of parts 4 and 5."""
    parents, levels = np.array([0, 3, 3, 0, 1, 1]), np.array([-1, 0.6, 1, 0.2, 1, 1], np.float32)
    return Hierarchy(np.array([4, 5, 2]), parents, levels, 0.5)


@pytest.mark.parametrize("level", [None, 0.1, 0.5, 1.0])
def test_one_click_on_nodes_is_one_on_the_level_s_id_map(level):
    rng, tree = np.random.default_rng(3), a_tree()
    finest = np.array([0, 2, 4, 5])[blocks(rng, (12, 14), 3, 3)]
    ids = tree.shown_for(tree.base if level is None else level)[finest]
    for _ in range(10):
        target = blocks(rng, (12, 14), 1, 3) > 0
        expected = click_ids(target, ids, 1)
        parts = Parts(tree, [finest])
        found = click_nodes(target, parts, 0, level, 1)
        assert found == expected and np.array_equal(parts.mask(0, found[0]), np.isin(ids, [*expected[0]]))


def test_clicks_on_nodes_by_hand():
    finest = np.zeros((6, 30), int)
    finest[:, :10], finest[:, 10:15], finest[:, 15:30] = 4, 5, 2
    parts = Parts(a_tree(), [finest])
    part, whole = np.isin(finest, [4]), finest > 0
    more = np.isin(finest, [2]) | (np.arange(30) == 14)
    picked, made = click_nodes(part, parts, 0, None, 2)  # the object, and not its other part
    assert picked == [4] and [c.positive for c in made] == [True, False]
    assert click_nodes(whole, parts, 0, None, 2)[0] == [3]  # two objects: what holds both
    picked, made = click_nodes(more, parts, 0, 1.0, 2)
    assert picked == [2] and len(made) == 1  # what holds both parts has too much: taken back
    small = np.zeros_like(part)
    small[1:5, :4] = True
    picked, made = click_nodes(small, parts, 0, None, 3)  # the second is in the part of the first: nothing parts them
    assert picked == [1] and len(made) == 1
    assert click_nodes(np.zeros_like(part), parts, 0, None, 2) == ([], ())


def test_clicks_that_are_little_of_a_whole_do_not_swallow_it():
    parents, levels = np.array([0, 5, 5, 5, 5, 0]), np.array([-1, 1, 1, 1, 1, 0.1], np.float32)
    tree = Hierarchy(np.repeat([1, 2, 3, 4], [40, 30, 20, 10]).astype(np.int32), parents, levels, 0.5)
    assert tree.sizes.tolist() == [0, 40, 30, 20, 10, 100]
    shown = tree.shown_for(0.5)
    assert clicked_nodes(tree, shown, [1, 2], []) == [1, 2]  # seven tenths
    assert clicked_nodes(tree, shown, [1, 2, 3], []) == [5] == clicked_nodes(tree, shown, [3, 2, 1, 1], [])
    assert clicked_nodes(tree, shown, [1, 2, 3], [4]) == [1, 2, 3]
    assert clicked_nodes(tree, tree.shown_for(0.1), [1], []) == [5]  # the level says so


def test_scribbles_by_hand():
    ids = np.repeat([[1, 2, 3, 0]], 10, 0).repeat(10, 1)  # columns of ten
    positive, negative = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    positive[5, 2:21] = True  # 8 of 1, 10 of 2, 1 of 3
    negative[7, 15:40] = True  # 5 of 2, 10 of 3, 10 of nothing
    assert scribble_ids(positive, negative, ids) == [1, 2]
    negative[7:9, 10:20] = True  # 2 is denied with 20 of 40 and asked for with 10 of 19
    assert scribble_ids(positive, negative, ids) == [1, 2]
    negative[6, 10:20] = True
    assert scribble_ids(positive, negative, ids) == [1]
    assert scribble_ids(np.zeros_like(positive), negative, ids) == []
    assert scribble_ids(negative, negative, ids) == [2]  # all denied: the most covered one


# --- prompts in one view, scores in the others ------------------------------------------------------------


def scene() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two objects in three views, a third in one; 1 is found but for its right tenth, 2 is split after view 0."""
    truth = [np.zeros((40, 60), int) for _ in range(3)]
    for v, t in enumerate(truth):
        t[5:25, 5 : 35 - v] = 1
        t[28:38, 10:30] = 2
    truth[2][0:4, 40:60] = 3
    guess = [np.where(t == 1, 11, np.where(t == 2, 12, 0)) for t in truth]
    for g in guess:
        g[5:25, 30:35] = 0
    for g in guess[1:]:
        g[28:38, 20:30] = 13
    return truth, guess


def test_prompts_by_hand():
    truth, guess = scene()
    scores = score_prompts(truth, {None: guess})
    assert scores.one_view == (3,) and scores.skipped == ()
    first, second = scores.rows
    assert (first.id, first.prompt_view, first.predicted) == (1, 0, (11,))
    assert first.pooled == Counts(29 * 20 + 28 * 20, 2 * 25 * 20, 2 * 25 * 20)
    assert first.iou == pytest.approx(50 / 57) and first.iou_of_views == pytest.approx((25 / 29 + 25 / 28) / 2)
    assert second.iou == second.iou_of_views == 0.5
    assert scores.miou(None) == pytest.approx((50 / 57 + 0.5) / 2) and scores.common_level is None
    again = score_prompts(truth, {None: guess}, prompt_views={2: 1}, clicks=2).rows[1]
    assert (again.prompt_view, again.predicted) == (1, (12, 13)) and again.iou == 1
    mask = score_prompts(truth, {None: guess}, prompt="mask", prompt_views={2: 1}).rows[1]
    assert mask.predicted == (12, 13) and mask.clicks == () and sorted(mask.views) == [0, 2]


def test_levels_are_compared_and_the_best_ones_said():
    truth, guess = scene()
    coarse = [np.where(g == 13, 12, g) for g in guess]
    lost = [np.where(g == 11, 0, g) for g in coarse]
    scores = score_prompts(truth, {0.2: guess, 0.5: coarse, 0.9: lost})
    assert scores.levels == (0.2, 0.5, 0.9) and scores.common_level == 0.5
    assert [r.level for r in scores.at(0.9)] == [0.9, 0.9] and scores.miou(0.9) == 0.5
    assert {r.id: r.level for r in scores.best} == {1: 0.2, 2: 0.5}


def test_ignored_pixels_and_left_out_ids_count_nowhere():
    truth, guess = scene()
    hidden = [np.where(np.arange(60) >= 30, -1, t) for t in truth]
    scribbled = [np.where(np.arange(60) >= 30, 11, g) for g in guess]
    scores = score_prompts(hidden, {None: scribbled}, ignore_id=-1, left_out={2})
    assert [(r.id, r.iou) for r in scores.rows] == [(1, 1.0)]


def test_nothing_under_the_click_is_a_score_of_zero():
    truth, guess = scene()
    scores = score_prompts(truth, {None: [np.where(g == 11, 0, g) for g in guess]})
    assert scores.rows[0].predicted == () and scores.rows[0].iou == 0


def test_prompts_that_cannot_be_scored():
    truth, guess = scene()
    with pytest.raises(InputError, match="no object of the truth is seen in two of its 1 views"):
        score_prompts(truth[:1], {None: guess[:1]})
    with pytest.raises(InputError, match="object 3 is not seen in view 1"):
        score_prompts(truth, {None: guess}, prompt_views={3: 1})
    with pytest.raises(InputError, match=r"level 0\.5 are not one of each true map's size"):
        score_prompts(truth, {0.5: guess[:2]})
    small = [t.copy() for t in truth]
    for t in small:
        t[t == 2] = 0
        t[30, 2:4] = 2
    assert score_prompts(small, {None: guess}).skipped == (2,)


# --- selections -------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), cell=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_no_set_of_ids_beats_the_best_ids(seed, cell):
    rng = np.random.default_rng(seed)
    truth = [blocks(rng, (8, 9), 1, 3) > 0 for _ in range(2)]
    guess = [blocks(rng, (8, 9), 5, cell) for _ in range(2)]

    def iou(ids) -> float:
        pairs = [count(t, np.isin(g, ids)) for t, g in zip(truth, guess)]
        return (pairs[0] + pairs[1]).iou

    sets = itertools.chain.from_iterable(itertools.combinations(range(1, 6), n) for n in range(6))
    assert iou(best_ids(truth, guess)) == pytest.approx(max(iou(s) for s in sets))


def test_selections_are_written_and_read(tmp_path):
    one, two = {"red cup": [3, 1]}, {"pen": [], "red cup": [2]}
    write_selection(tmp_path / "one.json", {"a": one})
    assert json.loads((tmp_path / "one.json").read_text()) == one
    assert read_selection(tmp_path / "one.json", "any", ["red cup", "pen"], [1, 2, 3]) == one
    write_selection(tmp_path / "two.json", {"a": one, "b": two})
    assert read_selection(tmp_path / "two.json", "b", ["red cup", "pen"], [2]) == two
    with pytest.raises(InputError, match="selects for a, b, not for the scene c"):
        read_selection(tmp_path / "two.json", "c", ["pen"], [2])
    with pytest.raises(InputError, match="names red cup, but the truth of a asks for pen, mug"):
        read_selection(tmp_path / "one.json", "a", ["pen", "mug"], [1, 3])
    with pytest.raises(InputError, match="'red cup' selects 3, but the segments are 1, 2"):
        read_selection(tmp_path / "one.json", "a", ["red cup"], [1, 2])
    write_selection(tmp_path / "far.json", {"a": {"pen": [70_000]}})
    with pytest.raises(InputError, match="selects 70000"):
        read_selection(tmp_path / "far.json", "a", ["pen"], [1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "pen", ""]), inner, max_size=3),
    max_leaves=6,
)


@given(value=JSON)
def test_any_json_is_a_selection_or_an_input_error(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    try:
        found = read_selection(path, "a", ["pen"], [1, 2])
        assert set(found) <= {"pen"} and all(set(ids) <= {1, 2} for ids in found.values())
    except InputError as error:
        assert str(path) in str(error)


# --- Gaussians --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=3, max_size=14))
def test_adjusted_rand_counts_pairs(labels):
    truth, guess = np.array(labels).T
    own = [(t, g if g > 0 else -i) for i, (t, g) in enumerate(labels) if t > 0]  # noise: each its own cluster
    pairs = list(itertools.combinations(own, 2))
    same_true = sum(a[0] == b[0] for a, b in pairs)
    same_guess = sum(a[1] == b[1] for a, b in pairs)
    both = sum(a[0] == b[0] and a[1] == b[1] for a, b in pairs)
    found = adjusted_rand(truth, guess)
    if not own:
        assert found is None
    elif pairs:
        by_chance = same_true * same_guess / len(pairs)
        most = (same_true + same_guess) / 2
        wanted = 1.0 if most == by_chance else (both - by_chance) / (most - by_chance)
        assert found == pytest.approx(wanted)


def test_leaving_the_hard_ones_out_does_not_pay():
    truth = np.repeat([1, 2, 3], 20)
    assert adjusted_rand(truth, truth * 7) == 1
    assert adjusted_rand(truth, np.where(truth == 3, -1, truth)) < adjusted_rand(truth, np.where(truth == 3, 3, truth))


def test_gaussians_take_the_id_of_a_near_sample():
    rng = np.random.default_rng(0)
    samples = SurfaceSamples(rng.uniform(0, 1, (300, 3)), rng.integers(1, 9, 300))
    means = rng.uniform(-0.1, 1.1, (200, 3))
    means[:50] = samples.xyz[:50] + rng.normal(0, 0.003, (50, 3))
    distance = np.linalg.norm(means[:, None] - samples.xyz, axis=2)
    reach = 0.005 * np.linalg.norm(samples.xyz.max(0) - samples.xyz.min(0))
    wanted = np.where(distance.min(1) < reach, samples.ids[distance.argmin(1)], 0)
    found = true_labels(means, samples)
    np.testing.assert_array_equal(found, wanted)
    assert 20 < (found > 0).sum() < 80


def test_samples_that_cannot_be_read(tmp_path):
    path = tmp_path / "points.npz"
    np.savez(path, xyz=np.zeros((4, 3)), instance=np.ones(4, np.uint16))
    assert read_samples(path).ids.tolist() == [1, 1, 1, 1]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="no file of surface samples"):
        read_samples(path)
    for bad in ({"xyz": np.zeros((4, 3))}, {"xyz": np.zeros((4, 2)), "instance": np.ones(4, int)},
                {"xyz": np.full((4, 3), np.nan), "instance": np.ones(4, int)},
                {"xyz": np.zeros((0, 3)), "instance": np.ones(0, int)}):  # fmt: skip
        np.savez(path, **bad)
        with pytest.raises(InputError, match="restore it"):
            read_samples(path)
