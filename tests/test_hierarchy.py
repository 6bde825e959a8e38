"""The hierarchy: its laws on random trees, nested pictures against a slow reference, and all that shows levels."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import NAMES, without_sizes

from cgc.cli import main
from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.kernels import threads
from cgc.masks.id_maps import read_id_map
from cgc.pipeline.workspace import Workspace
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import open_run
from cgc.scene.types import Camera
from cgc.scoring.runs import LEVELS, ScoredRun
from cgc.segmentation import labels as label_room
from cgc.segmentation.labels import render_labels, render_levels
from cgc.segmentation.segments import (
    Segmentation,
    describe,
    describe_nodes,
    load_hierarchy,
    load_labels,
    load_nodes,
    load_table,
    save_labels,
    save_table,
)
from cgc.splats.ply import read_ply
from cgc.splats.types import Splats

STEMS = [name.rsplit(".", 1)[0] for name in NAMES]


def family() -> Hierarchy:
    """Objects 1 and 2 of the whole 4, and 3 alone; 1 has the parts 5 and 6, and 6 the parts 7 and 8."""
    parents = np.array([0, 4, 4, 0, 0, 1, 1, 6, 6], np.int32)
    levels = np.array([-1, 0.6, 1, 1, 0.2, 1, 0.8, 1, 1], np.float32)
    return Hierarchy(np.array([5, 7, 8, 2, 3, -1, 5], np.int32), parents, levels, 0.5)


def random_tree(seed: int, n: int) -> Hierarchy:
    """Grow a tree from its roots down to a base of 0.5 and on; nodes below the base may be split, or not."""
    g = np.random.default_rng(seed)
    parents, levels, wholes = [0], [-1.0], []

    def add(parent: int) -> int:
        parents.append(parent)
        levels.append(1.0)
        return len(parents) - 1

    objects = [add(0) for _ in range(g.integers(1, 7))]
    for i in range(0, len(objects) - 1, 2):
        if g.random() < 0.6:
            wholes.append(add(0))
            levels[-1] = g.choice([0.1, 0.3, 0.4])
            parents[objects[i]] = parents[objects[i + 1]] = wholes[-1]
    nodes = [(o, 0.5) for o in objects]
    while nodes:
        node, low = nodes.pop()
        if g.random() < 0.6 and low < 0.95:
            levels[node] = g.uniform(low, 0.97)
            nodes += [(add(node), levels[node] + 0.01) for _ in range(g.integers(1, 4))]
    childless = np.setdiff1d(np.arange(1, len(parents)), parents)
    leaves = g.choice([-1, *childless], n).astype(np.int32)
    return Hierarchy(leaves, np.array(parents, np.int32), np.array(levels, np.float32), 0.5)


def cloud(n: int, seed: int = 1) -> Splats:
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(n, 3, generator=g) * 2 - 1
    log_scales = torch.rand(n, 3, generator=g) * 2 - 2.6
    opacities = torch.randn(n, generator=g) + 1
    return Splats(means, torch.randn(n, 4, generator=g), log_scales, opacities, torch.zeros(n, 1, 3))


def camera(width: int = 16, height: int = 12) -> Camera:
    return Camera.look_at((0, -4, 0.5), (0, 0, 0), width=width, height=height)


# ---- the tree


def test_a_family_by_hand():
    tree = family()
    assert (tree.n_nodes, len(tree.objects)) == (8, 3)
    np.testing.assert_allclose(tree.stops, [0.2, 0.6, 0.8, 1])
    shown = {0: [3, 4], 0.2: [3, 4], 0.21: [1, 2, 3], 0.6: [1, 2, 3], 0.7: [2, 3, 5, 6], 0.8: [2, 3, 5, 6],
             0.9: [2, 3, 5, 7, 8], 1: [2, 3, 5, 7, 8]}  # fmt: skip
    assert {x: tree.shown(x).tolist() for x in shown} == shown
    assert tree.at().tolist() == [1, 1, 1, 2, 3, -1, 1] == tree.at(0.3).tolist()
    assert tree.at(0).tolist() == [4, 4, 4, 4, 3, -1, 4] and tree.at(0.7).tolist() == [5, 6, 6, 2, 3, -1, 5]
    assert tree.at(1).tolist() == tree.leaves.tolist() and tree.at().dtype == np.int32
    assert (tree.children(4), tree.children(1), tree.children(7)) == ([1, 2], [5, 6], [])
    assert (tree.ancestors(8), tree.ancestors(3), tree.parent(2)) == ([6, 1, 4], [], 4)
    assert tree.holds(6).tolist() == [False, True, True, False, False, False, False]
    assert tree.holds(4).tolist() == [True, True, True, True, False, False, True]
    assert tree.shown_for(0.7).tolist() == [0, 0, 2, 3, 0, 5, 6, 6, 6]


def test_flat_is_the_objects_at_every_level():
    labels = np.array([2, -1, 1, 4, 0], np.int32)  # nobody has 3
    tree = Hierarchy.flat(labels)
    for level in (None, 0, 0.3, 1):
        assert tree.at(level).tolist() == [2, -1, 1, 4, -1]
    assert (tree.n_nodes, len(tree.objects), tree.stops.tolist()) == (4, 4, [1])
    nothing = Hierarchy.flat(np.full(3, -1, np.int32))
    assert nothing.at().tolist() == [-1] * 3 and not len(nothing.shown(0.5)) and len(nothing.objects) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_laws_of_levels(seed, x, y):
    tree, (coarse, fine) = random_tree(seed, 50), sorted((x, y))
    for level in (coarse, fine):
        labels, shown = tree.at(level), tree.shown(level)
        assert np.isin(labels[labels > 0], shown).all()
        assert ((labels > 0) == (tree.leaves > 0)).all()
        assert (labels == tree.at(float(tree.stops[tree.stop(level)]))).all()
        owned = sum(tree.holds(n).astype(int) for n in shown.tolist())
        assert (owned == (tree.leaves > 0)).all()  # what is shown shares out the Gaussians
        for n in shown.tolist():
            assert (tree.holds(n) == (labels == n)).all()
            low = tree.levels[tree.parents[n]]
            assert low < np.float32(level) <= tree.levels[n]
    mapped = np.append(tree.shown_for(coarse)[1:], -1)  # -1 stays
    assert (mapped[np.where(tree.at(fine) > 0, tree.at(fine) - 1, -1)] == tree.at(coarse)).all()
    assert tree.sizes[0] == 0
    for n in range(1, tree.n_nodes + 1):
        assert tree.sizes[n] == tree.holds(n).sum()
        assert all(tree.parent(c) == n for c in tree.children(n))
        if tree.children(n):
            assert (sum(tree.holds(c).astype(int) for c in tree.children(n)) == tree.holds(n)).all()


def ints(*values):
    return np.array(values, np.int32)


def floats(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parents": ints(0, 4, 4, 0, 6, 1, 1, 6, 6)}, "node 4 has level 0.2, which is not above its parent's, 0.8"),
        ({"parents": ints(0, 4, 4, 3, 0, 1, 1, 6, 6)}, "node 3 has level 1, which is not above"),
        ({"parents": ints(0, 4, 4, 0, 0, 1, 1, 6, 9)}, "a parent is 9 where 0 to 8 was expected"),
        ({"parents": ints(0, 4, 4, 0, 0, 1, 1, 6, -2)}, "a parent is -2 where 0 to 8 was expected"),
        ({"parents": ints(3, 4, 4, 0, 0, 1, 1, 6, 6)}, "node 0, which is none, has parent 3"),
        ({"parents": ints(0, 4, 4)}, "parents of shape"),
        ({"parents": floats(0, 4, 4, 0, 0, 1, 1, 6, 6)}, "integers were expected"),
        ({"levels": floats(0, 0.6, 1, 1, 0.2, 1, 0.8, 1, 1)}, "node 0, which is none, has parent 0 and level 0"),
        ({"levels": floats(-1, 0.6, 1, 1, 0.2, 1, 0.8, 1, 1.5)}, "a level is outside of 0 to 1"),
        ({"levels": floats(-1, 0.6, 1, np.nan, 0.2, 1, 0.8, 1, 1)}, "a level is outside of 0 to 1"),
        ({"levels": floats(-1, 0.6, 1, 0.9, 0.2, 1, 0.8, 1, 1)}, "node 3 has no children but level 0.9"),
        ({"levels": floats(-1, 0.6, 1, 1, 0.6, 1, 0.8, 1, 1)}, "node 1 has level 0.6, which is not above"),
        ({"leaves": ints(5, 9)}, "leaves go from 5 to 9 where -1 or 1 to 8"),
        ({"leaves": ints(5, 0)}, "leaves go from 0 to 5"),
        ({"leaves": ints(5, 6)}, "finest node is 6, which has children"),
        ({"base": 1.5}, "its base level is 1.5"),
    ],
)
def test_broken_trees_are_said(change, said):
    with pytest.raises(InputError, match="the hierarchy is broken") as error:
        replace(family(), **change)
    assert said in str(error.value) and str(error.value).endswith("; cluster again")


def test_levels_and_nodes_that_do_not_exist_are_said():
    for level in (-0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"expected 0 .wholes. to 1"):
            family().at(level)
    for node in (0, 9, -1):
        with pytest.raises(InputError, match=f"there is no segment {node}: ids go from 1 to 8"):
            family().holds(node)


# ---- nested pictures


def slow_levels(dense, tree, levels):
    """Per pixel and level: the object with the most weight, then up, or down to the heaviest child. Also: is it clear?

    dense [P, N] are the weights.
    """
    mass = np.zeros((len(dense), tree.n_nodes + 1))
    for node in range(1, tree.n_nodes + 1):
        mass[:, node] = dense[:, tree.holds(node)].sum(1)
    objects = np.arange(1, len(tree.objects) + 1)
    nothing = 1 - mass[:, objects].sum(1)
    ids, weights, clear = (np.zeros((len(levels), len(dense)), t) for t in (int, float, bool))
    for p in range(len(dense)):
        ranked = sorted([(nothing[p], 0), *((mass[p, o], int(o)) for o in objects)], reverse=True)
        winner, sure = ranked[0][1], len(ranked) == 1 or ranked[0][0] - ranked[1][0] > 1e-4
        for i, level in enumerate(levels):
            node, sure_here = winner, sure
            while node and tree.parent(node) and tree.levels[tree.parent(node)] >= np.float32(level):
                node = tree.parent(node)
            while node and tree.levels[node] < np.float32(level):
                best = sorted(((mass[p, c], c) for c in tree.children(node)), reverse=True)
                sure_here &= len(best) == 1 or best[0][0] - best[1][0] > 1e-4
                node = best[0][1]
            ids[i, p], clear[i, p] = node, sure_here
            weights[i, p] = mass[p, node] if node else nothing[p]
    return ids, weights, clear


@pytest.mark.parametrize(("at_once", "count"), [(1 << 18, 1), (1 << 18, 3), (37, 2)])
@pytest.mark.parametrize("seed", [3, 4, 11])
def test_pictures_of_levels_equal_the_slow_ones(rasterizer, monkeypatch, seed, at_once, count):
    monkeypatch.setattr(label_room, "MAX_PIXELS_AT_ONCE", at_once)  # pieces make no difference
    tree, splats = random_tree(seed, 60), cloud(60, seed)
    levels = [0.0, 0.2, 0.5, 0.7, 0.9, 1.0]
    with threads(count):
        pictures = render_levels(splats, tree, levels, camera(), rasterizer)
    W = reference.contributions(reference.double(splats), reference.double_camera(camera()))
    ids, weights, clear = slow_levels(W.dense.detach().numpy(), tree, levels)
    clear &= W.clear.numpy()
    assert clear.mean() > 0.85
    for i, picture in enumerate(pictures):
        assert picture.ids.dtype == np.int32 and picture.weight.dtype == np.float32
        np.testing.assert_array_equal(picture.ids.ravel()[clear[i]], ids[i][clear[i]])
        np.testing.assert_allclose(picture.weight.ravel()[clear[i]], weights[i][clear[i]], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_masks_contain_those_of_their_parts_exactly(seed):
    tree, splats = random_tree(seed, 80), cloud(80, seed)
    levels = [0.0, 0.15, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    pictures = render_levels(splats, tree, [None, *levels], camera(12, 9), CpuRasterizer())
    own = render_labels(splats, tree.at(), camera(12, 9), CpuRasterizer())
    for picture in (pictures[0], pictures[1 + levels.index(0.5)]):  # at its base it is a picture of the objects
        np.testing.assert_array_equal(picture.ids, own.ids)
        np.testing.assert_allclose(picture.weight, own.weight, rtol=1e-6)  # summed in other pieces
    for i, coarse in enumerate(levels):
        assert np.isin(pictures[1 + i].ids, [0, *tree.shown(coarse)]).all()
        for fine in range(i, len(levels)):
            np.testing.assert_array_equal(tree.shown_for(coarse)[pictures[1 + fine].ids], pictures[1 + i].ids)


def test_a_part_wins_inside_its_object_only():
    """The heaviest leaf is 3's, but object 1 has more: its parts share it out. Ties go to the lower id."""
    from test_segmentation import Rows

    tree = family()
    rows = [[(4, 0.4), (0, 0.1), (1, 0.2), (2, 0.2)], [(0, 0.375), (1, 0.1875), (2, 0.1875)], [(1, 0.5), (2, 0.5)], []]
    rows.append([(0, 0.75)])  # what a pixel leaves behind does not reach the next
    levels = [0.1, None, 0.7, 1.0]
    found = render_levels(cloud(7), tree, levels, camera(5, 1), Rows(*rows, n=7))  # pyright: ignore[reportArgumentType]
    assert [p.ids.ravel().tolist() for p in found] == [[4, 4, 4, 0, 4], [1, 1, 1, 0, 1], [6, 5, 6, 0, 5],
                                                       [7, 5, 7, 0, 5]]  # fmt: skip
    np.testing.assert_allclose(found[2].weight.ravel(), [0.4, 0.375, 1, 1, 0.75], atol=1e-6)
    np.testing.assert_allclose(found[0].weight.ravel()[:1], [0.5], atol=1e-6)


# ---- files and tables


def test_a_hierarchy_comes_back(tmp_path):
    tree, ones = family(), np.ones(7, np.float32)
    save_labels(tmp_path, tree.at(), ones, {"parent": np.zeros(2)}, tree)
    back = load_hierarchy(tmp_path)
    for name in ("leaves", "parents", "levels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(tree, name))
        assert getattr(back, name).dtype == getattr(tree, name).dtype
    assert back.base == tree.base and load_labels(tmp_path)[0].tolist() == tree.at().tolist()
    save_labels(tmp_path, tree.at(), ones, {})  # as files were before
    assert load_hierarchy(tmp_path).at(0).tolist() == tree.at().tolist()
    save_labels(tmp_path, tree.at(1), ones, {}, tree)
    with pytest.raises(InputError, match="labels and hierarchy do not agree"):
        load_hierarchy(tmp_path)
    np.savez(tmp_path / "segments.npz", labels=tree.at(), confidences=ones, leaves=tree.leaves)
    with pytest.raises(InputError, match="has no node_parents, node_levels, base_level"):
        load_hierarchy(tmp_path)


def test_an_id_is_the_same_segment_at_every_level():
    tree = family()
    whole = Segmentation(cloud(7), tree.at(), np.ones(7, np.float32), tree)
    assert whole.at_level(None).ids.tolist() == [1, 2, 3] and whole.at_level(0).ids.tolist() == [3, 4]
    assert whole.at_level(1).ids.tolist() == [2, 3, 5, 7, 8]
    for node in range(1, 9):
        for level in (0, 0.5, 1):
            assert torch.equal(whole.at_level(level)[node].splats().means,
                               whole.splats.means[torch.from_numpy(tree.holds(node))])  # fmt: skip
    with pytest.raises(InputError, match="a hierarchy of 7 Gaussians came for 6"):
        Segmentation(cloud(6), np.ones(6, np.int32), np.ones(6, np.float32), tree)


def test_tables_of_objects_and_of_parts(tmp_path):
    tree = family()
    whole = Segmentation(cloud(7), tree.at(), np.linspace(0, 1, 7, dtype=np.float32), tree)
    table, nodes = describe(whole, {}), describe_nodes(whole)
    assert [(s.id, s.parent, s.children) for s in table] == [(1, 4, (5, 6)), (2, 4, ()), (3, 0, ())]
    assert table[0].level == pytest.approx(0.6)
    assert [(n.id, n.parent, n.children, n.gaussians) for n in nodes] == [
        (4, 0, (1, 2), 5), (5, 1, (), 2), (6, 1, (7, 8), 2), (7, 6, (), 1), (8, 6, (), 1)]  # fmt: skip
    assert nodes[1].confidence == pytest.approx(0.5)
    np.testing.assert_allclose(nodes[1].centre, whole.splats.means[[0, 6]].mean(0), atol=1e-6)
    save_table(tmp_path, table, {}, nodes)
    assert load_table(tmp_path) == table and load_nodes(tmp_path) == nodes
    value = json.loads((tmp_path / "segments.json").read_text())
    del value["nodes"]
    for row in value["segments"]:
        del row["parent"], row["children"], row["level"]
    (tmp_path / "segments.json").write_text(json.dumps(value))  # as files were before
    assert load_nodes(tmp_path) == [] and [s.children for s in load_table(tmp_path)] == [()] * 3


# ---- a run


@pytest.fixture
def nested_run(tiny_run, tmp_path) -> Path:
    """The tiny run, its two largest objects in a whole, its first cut in two halves."""
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    labels, confidences = load_labels(out)
    k, x = int(labels.max()), read_ply(out / "splats.ply").means[:, 0].numpy()
    parents = np.zeros(k + 4, np.int32)
    parents[[1, 2]], parents[[k + 2, k + 3]] = k + 1, 1
    levels = np.append(-1, np.ones(k + 3)).astype(np.float32)
    levels[[1, k + 1]] = 0.6, 0.3
    leaves = np.where(labels == 1, np.where(x < np.median(x[labels == 1]), k + 2, k + 3), labels)
    tree = Hierarchy(leaves.astype(np.int32), parents, levels, 0.5)
    save_labels(out, labels, confidences, {}, tree)
    without_sizes(out)
    return out


def test_levels_on_the_command_line(nested_run, capsys):
    before = (nested_run / "stats.json").read_bytes()
    k = len(load_hierarchy(nested_run).objects)
    for level in ("0.2", "0.5", "1"):
        assert main(["render", str(nested_run), "--level", level]) == 0
        assert main(["export", str(nested_run), "--level", level, "--quiet"]) == 0
    assert f"10 id maps of {k - 1} segments" in capsys.readouterr().out
    assert (nested_run / "stats.json").read_bytes() == before  # no step was done
    tree = load_hierarchy(nested_run)
    for stem in STEMS:
        own, coarse, base, fine = (read_id_map(nested_run / f"masks{at}/{stem}.png")
                                   for at in ("", "_at_0.2", "_at_0.5", "_at_1"))  # fmt: skip
        np.testing.assert_array_equal(own, base)
        np.testing.assert_array_equal(tree.shown_for(0.5)[fine], base)
        np.testing.assert_array_equal(tree.shown_for(0.2)[fine], coarse)
    exported = {p.stem for p in (nested_run / "segments_at_1").iterdir()}
    assert exported == {f"{n:04d}" for n in tree.shown(1)}
    assert len(list((nested_run / "segments").iterdir())) == k
    assert main(["render", str(nested_run), "--level", "2"]) == 2
    assert "level 2.0 is outside of the hierarchy" in capsys.readouterr().err


def test_the_table_the_report_and_info_name_parts(nested_run, capsys):
    k = len(load_hierarchy(nested_run).objects)
    assert main(["render", str(nested_run), "--quiet"]) == 0 and main(["report", str(nested_run), "--quiet"]) == 0
    assert [s.children for s in load_table(nested_run)][:2] == [(k + 2, k + 3), ()]
    assert [n.id for n in load_nodes(nested_run)] == [k + 1, k + 2, k + 3]
    page = (nested_run / "report/index.html").read_text()
    assert "<th>Parts</th>" in page and f"<td>{k + 2} {k + 3}</td>" in page
    assert all(f"{name}: level {level}" in page for name, level in (("Coarser", 0.3), ("Objects", 0.5), ("Finer", 1)))
    capsys.readouterr()
    assert main(["info", str(nested_run)]) == 0
    said = capsys.readouterr().out
    assert f"parts {k + 2} {k + 3}  in {k + 1}" in said and f"node {k + 1} " in said


def test_prompts_are_scored_at_the_levels_that_differ(nested_run, tiny_run, capsys):
    run = ScoredRun(Workspace(open_run(nested_run), quiet=True))
    assert run.levels == (None, 0.01, 0.65)
    for folder in (nested_run, tiny_run):
        tree, found = load_hierarchy(folder), ScoredRun(Workspace(open_run(folder), quiet=True)).levels
        shown = [tuple(tree.shown(tree.base if level is None else level)) for level in found]
        assert len(set(shown)) == len(shown)  # each shows something else, and no other level does
        assert len(shown) > 1 or folder == tiny_run  # whose tree may have one level
        assert {tuple(tree.shown(level)) for level in LEVELS} <= set(shown)
    assert main(["eval", str(nested_run)]) == 0
    summary = json.loads((nested_run / "eval/prompts/summary.json").read_text())
    assert {"miou_level_own", "miou_level_0.01", "miou_level_0.65"} <= set(summary["1 click"])
    table = capsys.readouterr().out.split("at its best level")[1].splitlines()  # says which level, for each thing
    mean = next(line for line in table if "mean (upper bound)" in line)
    bounds = [summary[name]["miou_best_levels_upper_bound"] for name in ("1 click", "2 clicks", "mask")]
    assert mean.split()[-3:] == [f"{bound:.3f}" for bound in bounds]
    assert len(table[1 : table.index(mean)]) == summary["1 click"]["objects"]
    assert {line.split()[-5] for line in table[1 : table.index(mean)]} <= {"own", "0.01", "0.65"}
    with open(nested_run / "eval/prompts/instances.csv", encoding="utf-8") as file:
        assert {row["level"] for row in csv.DictReader(file)} == {"own", "0.01", "0.65"}
    work = Workspace(open_run(nested_run), quiet=True)
    work.run.settings = replace(work.run.settings, cluster=replace(work.run.settings.cluster, masks="blended"))
    assert ScoredRun(work).levels == (None,)
    assert all(0 <= level <= 1 for level in LEVELS)


def test_a_reference_mask_or_a_selection_points_at_parts(nested_run, tmp_path):
    tree, part = load_hierarchy(nested_run), load_hierarchy(nested_run).n_nodes
    assert main(["render", str(nested_run), "--level", "1", "--quiet"]) == 0
    root = tmp_path / "MVSeg/scene"
    root.mkdir(parents=True)
    for stem in STEMS:
        own = read_id_map(nested_run / f"masks_at_1/{stem}.png") == part
        Image.fromarray((255 * own).astype(np.uint8)).save(root / f"scene_{stem.rsplit('/', 1)[-1]}.png")
    kept = tmp_path / "selection.json"
    for words in (["--write-selection", kept], ["--selection", kept]):
        asked = ["eval", nested_run, "--protocol", "spin-nerf", "--truth", root, "--quiet", *words]
        assert main([str(w) for w in asked]) == 0
        found = json.loads((nested_run / "eval/spin-nerf/summary.json").read_text())
        assert found["miou"] == 1 and list(json.loads(kept.read_text()).values()) == [[part]]
    run = ScoredRun(Workspace(open_run(nested_run), quiet=True))
    assert run.ids == list(range(1, tree.n_nodes + 1))
    assert run.level_of([1, 3]) is None and run.level_of([part, 2]) == 1
    assert run.level_of([len(tree.objects) + 1, 3]) == pytest.approx(0.3)
    with pytest.raises(InputError, match=f"no level of .* shows all of the segments 1, {part}"):
        run.level_of([1, part])


def test_gaussians_that_come_of_others_keep_their_part_or_go_to_their_new_objects_largest():
    # objects 1 (parts 3, 4) and 2
    parents, levels = np.array([0, 0, 0, 1, 1], np.int32), np.array([-1, 0.5, 1, 1, 1], np.float32)
    tree = Hierarchy(np.array([3, 3, 4, 2, -1], np.int32), parents, levels, 0.4)
    origin = np.array([0, 2, 2, 3, 3, 4, 4, 0])
    labels = np.array([1, 1, 1, 2, 1, -1, 2, -1], np.int32)
    followed = tree.follow(origin, labels)
    assert followed.leaves.tolist() == [3, 4, 4, 2, 3, -1, 2, -1]
    assert np.array_equal(followed.at(), labels)
    assert np.array_equal(tree.follow(np.arange(5), tree.at()).leaves, tree.leaves)


def test_a_level_that_is_asked_for_twice_is_made_once(nested_run):
    """Else its pictures would be taken for those of other views."""
    run, views = ScoredRun(Workspace(open_run(nested_run), quiet=True)), [0, 1, 2]
    run.prepare(views, [None, 1.0, 1.0])
    alone = ScoredRun(Workspace(open_run(nested_run), quiet=True))
    for level in (None, 1.0):
        for twice, once in zip(run.maps(views, level), alone.maps(views, level)):
            np.testing.assert_array_equal(twice, once)
