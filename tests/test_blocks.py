"""Blocks: laws of the cut, exact culling, one block against a run without, joining, resuming, bad input."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_rand_score
from tiny import SETTINGS, cameras, clumps, snapshot

from cgc.blocks import cut as cutting
from cgc.blocks import steps
from cgc.blocks.align import align
from cgc.blocks.cut import cut, is_near, sides
from cgc.blocks.geometry import MARGIN_MOST, Geometry, as_splats, write_geometry
from cgc.blocks.join import Meetings, Piece, join_blocks
from cgc.blocks.steps import Blocks, cluster_blocks, lift_blocks
from cgc.blocks.trees import Joint, grow_parts
from cgc.blocks.weigh import Block, draw_views, restrict, weigh_block
from cgc.blocks.work import LIFTED, load_arrays, save_arrays
from cgc.clustering.columns import mask_columns
from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.features.files import map_tensors, read_tensors
from cgc.features.samples import sample_batches, visible_mass
from cgc.masks.generate import is_finished
from cgc.masks.id_maps import read_id_map, write_id_map
from cgc.pipeline import regions
from cgc.pipeline.commands import run_all, run_step
from cgc.pipeline.regions import make_regions
from cgc.pipeline.train import take_mapped
from cgc.pipeline.workspace import Workspace
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import OWN_MASKS, open_run
from cgc.scene.types import Camera
from cgc.segmentation.segments import load_hierarchy, load_labels
from cgc.settings import BlockSettings
from cgc.splats import mapped
from cgc.splats.mapped import MappedSplats
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.types import Splats

CUT = replace(SETTINGS, blocks=BlockSettings(gaussians=250, margin=0.3))


def a_geometry(folder: Path, splats: Splats, most: int) -> Geometry:
    write_ply(folder / "given.ply", splats)
    write_geometry(MappedSplats(folder / "given.ply"), most, folder / "blocks")
    return Geometry(folder / "blocks")


def some_splats(n: int, seed: int = 0) -> Splats:
    """Gaussians of all sizes and shapes in a box 4 wide."""
    g = torch.Generator().manual_seed(seed)
    means = 4 * torch.rand(n, 3, generator=g) - 2
    log_scales = torch.rand(n, 3, generator=g) * 3 - 5
    quats, logits = torch.randn(n, 4, generator=g), 4 * torch.rand(n, generator=g) - 2
    return Splats(means, quats, log_scales, logits, torch.zeros(n, 1, 3))


@pytest.fixture
def small_cells(monkeypatch):
    monkeypatch.setattr(cutting, "CELL", 16)


# ---- cutting


@pytest.mark.parametrize(("n", "most"), [(1000, 130), (777, 100), (500, 500), (500, 0), (101, 100)])
def test_every_gaussian_is_in_one_core_and_cores_are_as_large(n, most, small_cells):
    means = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32) * (5, 2, 1)
    found = cut(means, most)
    sizes = [len(found.order[found.core(b)]) for b in range(found.n_blocks)]
    assert found.n_blocks == (-(-n // most) if most else 1)
    assert sorted(found.order) == list(range(n)) and sum(sizes) == n
    assert max(sizes) <= (most or n) and max(sizes) - min(sizes) <= 1
    assert np.diff(found.cells).max() <= 16 and (np.diff(found.cells) > 0).all()
    assert (cut(means, most).order == found.order).all()


def test_what_is_wide_is_cut_across_and_floaters_do_not_count():
    means = np.random.default_rng(0).uniform(size=(4000, 3)) * (10, 3, 1)
    means[:20, 2] = 1000
    found = cut(means.astype(np.float32), 1000)
    sizes = [sides(means[found.order[found.core(b)]]) for b in range(4)]
    assert all(2 < x < 3 and 2.8 < y < 3 and 0.9 < z < 1 for x, y, z in sizes)


def test_gaussians_nearer_than_the_margin_share_a_block(tmp_path, small_cells):
    splats = some_splats(600)
    geometry = a_geometry(tmp_path, splats, 150)
    means = splats.means.numpy()
    apart = np.linalg.norm(means[:, None] - means[None], axis=2)
    together, cores = np.zeros((600, 600), bool), np.zeros(600, int)
    for block in range(geometry.cut.n_blocks):
        rows, core, _ = geometry.members(block, 0.2)
        assert (np.diff(rows) > 0).all() and (rows[core] == np.sort(geometry.cut.order[geometry.cut.core(block)])).all()
        cores[rows[core]] += 1
        inside, own = np.zeros(600, bool), np.zeros(600, bool)
        inside[rows], own[rows[core]] = True, True
        width = 0.2 * sides(means[rows[core]]).max()
        assert inside[(apart[own] < width).any(0)].all()
        low, high = means[own].min(0), means[own].max(0)
        assert not (inside & (np.maximum(low - means, means - high).max(1) > width)).any()
        together |= inside[:, None] & inside[None]
    assert (cores == 1).all() and together[apart < 0.2].all() and not together.all()


@pytest.mark.parametrize("share", [0.03, 0.5])
def test_far_gaussians_do_not_make_a_block_the_whole_scene(tmp_path, small_cells, share):
    """A sky's: boxes around cores that have some of it hold all there is."""
    splats, far = some_splats(1200), some_splats(1200).means[:, 0].abs().argsort()[: int(1200 * share)]
    splats.means[far] = 100 * torch.nn.functional.normalize(splats.means[far], dim=1)
    geometry = a_geometry(tmp_path, splats, 150)
    means = splats.means.numpy()
    for block in range(geometry.cut.n_blocks):
        members = geometry.members(block, 0.1)
        rows, core, _ = members
        assert core.sum() == 150 and (np.diff(rows) > 0).all() and len(rows) <= (1 + MARGIN_MOST) * 150
        assert torch.equal(geometry.splats(members).means, splats.means[rows])
        apart = np.linalg.norm(means[:, None] - means[rows[core]][None], axis=2).min(1)
        left = np.setdiff1d(np.arange(1200), rows)
        low, high = means[rows[core]].min(0), means[rows[core]].max(0)
        width = 0.1 * sides(means[rows[core]]).max()
        left = left[is_near(means[left], low, high, width)]
        assert not len(left) or apart[left].min() >= apart[rows].max() * (1 - 1e-6)


def test_a_block_reads_back_its_own_gaussians(tmp_path, small_cells):
    splats = some_splats(400)
    geometry = a_geometry(tmp_path, splats, 100)
    members = geometry.members(2, 0.1)
    own = geometry.splats(members)
    expected = splats.select(torch.from_numpy(members.rows))
    for name in ("means", "quats", "log_scales", "logit_opacities"):
        assert torch.equal(getattr(own, name), getattr(expected, name)), name


def test_splats_are_cut_anew_where_the_plan_is_another(tmp_path):
    write_ply(tmp_path / "given.ply", some_splats(600))
    left = tmp_path / "blocks/left"  # goes with what was cut
    for most, key, count, anew in ((300, "a", 2, True), (300, "a", 2, False), (150, "a", 4, True), (150, "b", 4, True)):
        blocks = Blocks(left.parent, tmp_path / "given.ply", BlockSettings(gaussians=most), key)
        assert blocks.geometry().cut.n_blocks == count and left.exists() != anew
        left.touch()


# ---- what a view may see


@pytest.mark.parametrize("seed", range(6))
def test_culling_changes_no_weight_of_any_view(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(cutting, "CELL", 1)  # nothing is seen because of what is beside it
    splats = some_splats(500, seed)
    splats = replace(splats, log_scales=splats.log_scales + 1)
    geometry = a_geometry(tmp_path, splats, 0)
    g = np.random.default_rng(seed)
    eye, target = g.uniform(-2.5, 2.5, 3), g.uniform(-1, 1, 3)  # inside of the splats too
    camera = Camera.look_at(eye, target, width=60, height=40, focal=float(g.uniform(20, 300)))
    pixels = np.unique(g.integers(0, 2400, 50 if seed % 2 else 2400))
    whole = CpuRasterizer().contributions(splats, camera, torch.from_numpy(pixels))
    cells = geometry.in_view(camera, pixels)
    rows, values = geometry.read(cells)
    weights = CpuRasterizer().contributions(as_splats(values), camera, torch.from_numpy(pixels))
    assert torch.equal(weights.indptr, whole.indptr) and (rows[weights.ids] == whole.ids.numpy()).all()
    torch.testing.assert_close(weights.weights, whole.weights, rtol=0, atol=1e-6)  # exp and sigmoid round by place
    assert len(cells) < len(geometry.cut.cells) - 1  # and it leaves out something


@pytest.mark.parametrize("seed", range(4))
def test_a_block_shows_only_where_it_may_show(tmp_path, small_cells, seed):
    splats = some_splats(500, seed)
    geometry = a_geometry(tmp_path, splats, 125)
    camera = Camera.look_at((12, 6 - 3 * seed, 3), (0, 0, 0), width=80, height=60)
    whole = CpuRasterizer().contributions(splats, camera)
    for index in range(4):
        block = Block(geometry, geometry.members(index, 0.05), CpuRasterizer())
        weights, _ = restrict(whole, np.arange(500), block.members.rows)
        shows = np.diff(weights.indptr.numpy()) > 0
        assert block.may_show(camera)[shows].all() and not block.may_show(camera).all() and shows.any()


def test_a_block_keeps_its_entries_and_the_rest_in_the_remainder():
    splats, members = some_splats(200), np.array([3, 50, 51, 199])
    camera = Camera.look_at((0, -5, 2), (0, 0, 0), width=40, height=30)
    whole = CpuRasterizer().contributions(splats, camera, min_weight=0.01)
    own, others = restrict(whole, np.arange(200), members)
    dense = csr_matrix((whole.weights, whole.ids, whole.indptr), shape=(1200, 200)).toarray()
    left = csr_matrix((own.weights, own.ids, own.indptr), shape=(1200, 4)).toarray()
    assert (left == dense[:, members]).all() and own.n_gaussians == 4
    np.testing.assert_allclose(others, np.delete(dense, members, 1).sum(1), atol=1e-6)
    np.testing.assert_allclose(own.remainder, whole.remainder + torch.from_numpy(others))


# ---- evidence: what masks say is what they say without blocks


def evidence(tmp_path, most):
    splats, labels = clumps()
    from cgc.segmentation.labels import render_labels

    shots, settings = cameras(), SETTINGS.lift
    id_maps = [render_labels(splats, labels, camera, CpuRasterizer()).ids for camera in shots]
    plain = sample_batches(splats, shots, id_maps, CpuRasterizer(), settings, quiet=True)
    drawn = draw_views(enumerate(id_maps), settings)
    geometry = a_geometry(tmp_path, splats, most)
    blocks = [Block(geometry, geometry.members(b, 0.2), CpuRasterizer()) for b in range(geometry.cut.n_blocks)]
    return splats, plain, [(b.members, weigh_block(b, shots, drawn, settings, quiet=True)) for b in blocks]


def test_one_block_has_the_batches_of_a_run_without(tmp_path, small_cells):
    _, plain, [(_, found)] = evidence(tmp_path, 0)
    assert len(found.batches) == len(plain)
    for one, other in zip(found.batches, plain):
        for name in ("gaussians", "masks", "mask_ids"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(one.weights.weights, other.weights.weights)
        assert torch.equal(one.weights.ids, other.weights.ids)


def test_masks_say_of_a_gaussian_what_they_say_without_blocks(tmp_path, small_cells):
    splats, plain, blocks = evidence(tmp_path, 160)
    columns, mass = mask_columns(plain, len(splats)), visible_mass(plain, len(splats))
    total = {}  # of a view's pixel, what all Gaussians weigh there
    for batch in plain:
        sums = np.bincount(batch.weights.rows, batch.weights.weights, minlength=len(batch.masks))
        total |= zip([(batch.view, pixel) for pixel in batch.weights.pixels.tolist()], sums)
    assert len(blocks) == 4
    for members, found in blocks:
        torch.testing.assert_close(found.mass, mass[members.rows], rtol=1e-4, atol=1e-5)
        place = {pair: k for k, pair in enumerate(zip(columns.views.tolist(), columns.ids.tolist()))}
        index = [place[pair] for pair in zip(found.columns.views.tolist(), found.columns.ids.tolist())]
        expected = columns.matrix[members.rows].toarray()
        np.testing.assert_allclose(found.columns.matrix.toarray(), expected[:, index], rtol=1e-4, atol=1e-5)
        assert not np.delete(expected, index, 1).any()  # what is left out says nothing
        for batch in found.batches:  # learned from are pixels that are mostly the block's
            own = np.bincount(batch.weights.rows, batch.weights.weights, minlength=len(batch.masks))
            of_all = np.array([total[batch.view, pixel] for pixel in batch.weights.pixels.tolist()])
            assert (own > 0.499 * of_all).all() and (own[of_all > 0] > 0).all()
            assert (np.bincount(batch.masks) >= SETTINGS.lift.min_mask_pixels).all()


# ---- joining


def pieces_of(objects, parts, spans, seed=0, levels=None):
    """Blocks that know parts [N] (from 0) of objects [N] (from 0) exactly, under numbers of their own.

    spans: of each block the first and end of its core, and how far its margin goes on either side. Each knows the masks
    of four views, which show the objects.
    """
    g, n, made = np.random.default_rng(seed), len(objects), []
    for begin, end, margin in spans:
        rows = np.arange(max(begin - margin, 0), min(end + margin, n))
        core = (rows >= begin) & (rows < end)
        kinds, own = np.unique(objects[rows], return_inverse=True)
        number = g.permutation(len(kinds)) + 1
        labels = number[own].astype(np.int32)
        parents, at = [0] * (len(kinds) + 1), [-1.0] + [1.0] * len(kinds)
        leaves = labels.copy()
        for k in range(1, len(kinds) + 1):
            names = np.unique(parts[rows[labels == k]])
            if len(names) > 1:
                at[k] = 0.5 if levels is None else levels
                for name in g.permutation(names):
                    parents.append(k)
                    at.append(1.0)
                    leaves[(labels == k) & (parts[rows] == name)] = len(parents) - 1
        inside = (own[:, None] == np.arange(len(kinds))) & core[:, None]  # [n, objects]
        shown = np.array([np.tile(4.0 * (inside[leaves == node]).sum(0), 4) for node in range(1, len(at))])
        views, ids = np.repeat(np.arange(4), len(kinds)), np.tile(kinds, 4)
        tree = leaves, np.array(parents, np.int32), np.array(at, np.float32)
        mass, sure = np.ones(len(rows), np.float32), g.random(len(rows)).astype(np.float32)
        made.append(Piece(rows, core, mass, labels, sure, *tree, csr_matrix(shown), views, ids))
    return made


def same_partition(a, b):
    pairs = set(zip(a.tolist(), b.tolist()))
    return len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs})


SPANS = [(0, 60, 15), (60, 140, 15), (140, 200, 15)]
OBJECTS = np.repeat([0, 1, 2], [90, 60, 50])  # the first lies in two blocks, the second too
PARTS = np.repeat([0, 1, 2, 3, 4], [40, 50, 60, 25, 25])


def test_an_object_that_was_cut_comes_back_as_one():
    joined = join_blocks(pieces_of(OBJECTS, PARTS, SPANS), 200, 0.35)
    assert same_partition(joined.labels, OBJECTS) and joined.labels[0] == 1  # the largest is the first
    assert (joined.confidences > 0).all() and joined.hierarchy.base == 0.35
    assert (joined.hierarchy.at() == joined.labels).all()
    assert same_partition(joined.hierarchy.at(1.0), PARTS)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_blocks_does_not_matter(seed):
    g = np.random.default_rng(seed)
    objects = np.sort(g.integers(0, 6, 200))
    pieces = pieces_of(objects, np.arange(200) // 20 + 100 * objects, SPANS, seed)
    first = join_blocks(pieces, 200, 0.35)
    other = join_blocks([pieces[i] for i in g.permutation(3)], 200, 0.35)
    assert (first.labels == other.labels).all() and (first.confidences == other.confidences).all()
    for name in ("leaves", "parents", "levels"):
        np.testing.assert_array_equal(getattr(first.hierarchy, name), getattr(other.hierarchy, name))


def test_most_of_the_margin_must_agree():
    """Each block has three objects there, which share a third with each of the other's: nobody knows which are one."""
    pieces = []
    for begin, end, names in ((0, 120, np.arange(240) % 3), (120, 240, np.arange(240) // 3 % 3)):
        (piece,) = pieces_of(names, names, [(begin, end, 30)], seed=begin)
        pieces.append(piece._replace(mass=1 + 0.01 * np.arange(len(piece.rows), dtype=np.float32)))
    labels = join_blocks(pieces, 240, 0.35).labels
    assert len(set(labels[:120])) == len(set(labels[120:])) == 3 and len(set(labels)) == 6


def test_what_is_best_for_one_side_alone_is_not_one():
    """Nodes 1 and 2 of one block meet 3 and 4 of another: 2 and 3 have more in common with each other."""
    own, met, weights, counts = np.array([1, 2, 2]), np.array([3, 3, 4]), np.array([4.0, 6, 4]), np.full(3, 50)
    shared = np.array([[0, 0], [0, 4.0], [0, 10], [10, 0], [4, 0]])  # by node and block
    many, block_of = np.full(5, 1000), np.array([0, 0, 0, 1, 1])
    one = Meetings(own, met, weights, counts, shared, many, many, block_of).pairs()
    assert [x.tolist() for x in one] == [[2], [3]]


def test_things_that_only_touch_stay_apart():
    """Two walls meet at a corner: a few Gaussians of the one are called the other's by a block that sees no more."""
    pieces = pieces_of(np.repeat([0, 1], 500), np.repeat([0, 1], 500), [(0, 500, 5), (500, 1000, 5)])
    for piece in pieces:
        piece.labels[:] = piece.leaves[:] = 1
    tree = {"parents": np.zeros(2, int), "levels": np.array([-1.0, 1])}
    masks = {"shown": csr_matrix((1, 4)), "views": np.arange(4), "ids": np.ones(4, int)}
    pieces = [piece._replace(**tree, **masks) for piece in pieces]
    assert same_partition(join_blocks(pieces, 1000, 0.35).labels, np.repeat([0, 1], 500))
    heavy = pieces[0].mass.copy()
    heavy[-3:] = 1e6  # what shows in large pixels there is still a few Gaussians
    assert same_partition(join_blocks([pieces[0]._replace(mass=heavy), pieces[1]], 1000, 0.35).labels,
                          np.repeat([0, 1], 500))  # fmt: skip


def test_a_crumb_whose_bulk_lies_in_another_block_is_what_that_calls_it():
    objects = np.repeat([0, 1], [90, 110])
    pieces = pieces_of(objects, objects, [(0, 100, 40), (100, 200, 40)])
    first = pieces[0]
    labels = first.labels.copy()
    crumb = (first.rows >= 97) & (first.rows < 104)
    other = (first.rows >= 104) & (first.rows < 112)  # two of them: only one can be the other's best
    labels[crumb], labels[other] = 3, 4
    first = first._replace(labels=labels, leaves=labels, parents=np.zeros(5, int), shown=csr_matrix((4, 8)),
                           levels=np.array([-1, 1, 1, 1, 1], np.float32))  # fmt: skip
    assert same_partition(join_blocks([first, pieces[1]], 200, 0.35).labels, objects)


def test_noise_of_the_owner_is_noise():
    pieces = pieces_of(OBJECTS, PARTS, SPANS)
    labels = np.where(pieces[1].core, pieces[1].labels, -1)
    labels[20:30] = -1
    leaves = np.where(labels > 0, pieces[1].leaves, -1)
    joined = join_blocks([pieces[0], pieces[1]._replace(labels=labels, leaves=leaves), pieces[2]], 200, 0.35)
    assert set(np.flatnonzero(joined.labels < 0)) == set(pieces[1].rows[20:30])
    assert not joined.confidences[joined.labels < 0].any() and (joined.labels[:60] == joined.labels[0]).all()


def test_parts_join_by_falling_level_of_all_blocks():
    """Part 1 is between 0 and 2 in two trees; what no tree joins is one at the objects' level."""
    parts = np.repeat([0, 1, 2, 3, 4], 20)
    joints = [Joint(0.8, frozenset({0, 1})), Joint(0.6, frozenset({1, 2})), Joint(0.4, frozenset({0, 1, 2}))]
    tree = grow_parts(parts, np.array([1, 1, 1, 1, 2]), joints, 0.35)
    hierarchy = Hierarchy(tree.leaves, np.array(tree.parents, np.int32), np.array(tree.levels, np.float32), 0.35)
    expected = {1.0: [0, 1, 2, 3, 4], 0.7: [0, 0, 2, 3, 4], 0.5: [0, 0, 0, 3, 4], 0.35: [0, 0, 0, 0, 4]}
    for level, kinds in expected.items():
        assert same_partition(hierarchy.at(level), np.repeat(kinds, 20)), level
    assert set(hierarchy.at()) == {1, 2}


def test_wholes_are_what_masks_of_all_blocks_hold_together():
    objects = np.repeat([0, 1], 100)
    pieces = pieces_of(objects, objects, [(0, 100, 10), (100, 200, 10)])
    for piece in pieces:
        piece.ids[piece.views == 3] = 9  # one mask of one view in four has both
    tree = join_blocks(pieces, 200, 0.35).hierarchy
    assert same_partition(tree.at(), objects) and len(set(tree.at(0.0))) == 1 and tree.n_nodes == 3
    assert 0.1 < tree.levels[tree.at(0.0)[0]] < 0.25


def test_features_of_blocks_are_turned_into_one_space(tmp_path):
    g = np.random.default_rng(0)
    features = g.normal(size=(300, 6)).astype(np.float32)
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path, (begin, end) in zip(paths, [(0, 130), (200, 300), (100, 230)]):  # the first and the second do not meet
        turn = np.linalg.qr(g.normal(size=(6, 6)))[0].astype(np.float32)
        rows = np.arange(begin, end)
        arrays = {
            "rows": rows,
            "core": rows > 0,
            "cells": np.unique(rows // 10),
            "mass": np.ones(len(rows), np.float32),
        }
        save_arrays(path, arrays | {"features": features[rows] @ turn}, "key")
    turned = [load_arrays(path, "features")["features"] @ turn for path, turn in zip(paths, align(paths))]
    same = np.concatenate([turned[0][:130], turned[2][30:100], turned[1]])
    np.testing.assert_allclose(same @ same.T, features @ features.T, atol=1e-3)


def test_how_long_features_are_and_what_no_mask_shows_turn_nothing(tmp_path):
    g, rows, turns = np.random.default_rng(0), np.arange(100), []
    features = g.normal(size=(2, 100, 6)).astype(np.float32)
    hidden = 100 * g.normal(size=(2, 20, 6)).astype(np.float32)
    for lengths, unseen in ((1.0, features[:, :20]), (g.uniform(0.1, 9, (2, 100, 1)).astype(np.float32), hidden)):
        paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for path, of_block, first in zip(paths, features * lengths, unseen):
            of_block[:20] = first
            arrays = {"rows": rows, "core": rows > 0, "cells": rows // 10, "mass": (rows >= 20).astype(np.float32)}
            save_arrays(path, arrays | {"features": of_block}, "key")
        turns.append(align(paths)[1])
    np.testing.assert_allclose(*turns, atol=1e-5)


# ---- runs


def run(scene, out, settings, **given):
    return run_all(scene, out, settings, masks=scene / "masks", splats=None, quiet=True, **given)


def stats(out):
    return json.loads((out / "stats.json").read_text())


def test_one_block_gives_the_bits_of_a_run_without(own_run, tmp_path, small_cells, monkeypatch):
    """But for what is found by looking at whole views: the last vote, what masks leave out, and so the level."""
    monkeypatch.setattr(Workspace, "looks", None)
    cluster_settings = replace(open_run(own_run).settings.cluster, settle=False)
    run_step(own_run, "cluster", cluster=cluster_settings, quiet=True)
    work = Workspace(open_run(own_run), quiet=True)
    run = work.run
    blocks = Blocks(tmp_path / "blocks", own_run / "splats.ply", BlockSettings(gaussians=10**6), "key")
    views, held_back = work.scene.views, set(work.test_views)
    id_maps = ((i, work.masks.load(i)) for i in range(len(views)) if i not in held_back)
    target = tmp_path / "features.safetensors"
    facts = lift_blocks(
        blocks, [view.camera for view in views], id_maps, work.rasterizer, run.settings.lift, target, "lift",
        learns=True, say=lambda _: None, quiet=True,
    )  # fmt: skip
    assert facts == {"count": 1, "gaussians": len(work.splats), "with_margin": len(work.splats)}
    found = read_tensors(target, "", "features", "mass")
    for name, expected in read_tensors(own_run / "features.safetensors", "", "features", "mass").items():
        assert torch.equal(found[name], expected), name
    joined = cluster_blocks(
        blocks, work.scene.extent, {}, run.settings.lift, run.settings.cluster, ("lift", "c"), say=print
    )
    labels, confidences = load_labels(own_run)
    assert joined is not None and (joined.labels == labels).all() and (joined.confidences == confidences).all()
    tree = load_hierarchy(own_run)
    for level in np.linspace(tree.base, 1, 41):  # wholes are of what touches there, of what masks fuse here
        assert same_partition(tree.at(level), joined.hierarchy.at(level)), level


def test_a_run_in_blocks_ends_in_the_same_files(tiny_scene, tiny_run, tmp_path, capsys):
    out = tmp_path / "run"
    run_all(tiny_scene, out, CUT, masks=tiny_scene / "masks", splats=tiny_run / "splats.ply")
    said = capsys.readouterr().out
    facts, n = stats(out), len(read_ply(out / "splats.ply"))
    count = -(-n // 250)
    assert facts["blocks"]["count"] == count and facts["blocks"]["with_margin"] > facts["blocks"]["gaussians"]
    assert f"{count} blocks of up to {facts['blocks']['gaussians']:,} Gaussians, " in said
    assert (out / "splats.ply").read_bytes() == (tiny_run / "splats.ply").read_bytes()
    assert {p.name for p in out.iterdir()} == {p.name for p in tiny_run.iterdir()} | {"blocks"}
    labels, plain = load_labels(out)[0], load_labels(tiny_run)[0]
    both = (labels > 0) & (plain > 0)
    assert adjusted_rand_score(labels[both], plain[both]) > 0.9 and both.mean() > 0.95
    assert facts["miou_things"] > 0.65
    features = read_tensors(out / "features.safetensors", "", "features", "mass")
    assert features["features"].shape == (n, 8) and torch.isfinite(features["features"]).all()
    mass = read_tensors(tiny_run / "features.safetensors", "", "mass")["mass"]
    torch.testing.assert_close(features["mass"], mass, rtol=1e-4, atol=1e-5)
    before = snapshot(out)
    run_all(tiny_scene, out, CUT, masks=tiny_scene / "masks", splats=tiny_run / "splats.ply")
    assert snapshot(out) == before and "lift: done before, kept" in capsys.readouterr().out


def test_a_killed_run_goes_on_with_the_first_block_that_is_not_done(own_run, tmp_path, monkeypatch, capsys):
    other = Path(shutil.copytree(own_run, tmp_path / "other"))
    for step in ("lift", "cluster"):
        run_step(other, step, quiet=True, blocks=CUT.blocks)
    for step, name in (("lift", "lift_block"), ("cluster", "cluster_block")):
        work, done = getattr(steps, name), []

        def once(*arguments, work=work, done=done):
            if done:
                raise KeyboardInterrupt
            done.append(0)
            return work(*arguments)

        monkeypatch.setattr(steps, name, once)
        with pytest.raises(KeyboardInterrupt):
            run_step(own_run, step, quiet=True, blocks=CUT.blocks)
        monkeypatch.setattr(steps, name, work)
        capsys.readouterr()
        run_step(own_run, step, blocks=CUT.blocks)
        said = capsys.readouterr().out
        assert "1 of 3 blocks done before, kept" in said and "block 1 of 3" not in said and "block 3 of 3" in said
    for name, data in snapshot(other).items():
        if name != "stats.json":
            assert (own_run / name).read_bytes() == data, name


def test_clustering_again_learns_nothing_again(own_run, monkeypatch):
    run_step(own_run, "lift", quiet=True, blocks=CUT.blocks)
    run_step(own_run, "cluster", quiet=True)
    before = snapshot(own_run)
    monkeypatch.setattr(steps, "lift_block", None)
    run_step(own_run, "cluster", quiet=True, cluster=replace(SETTINGS.cluster, level=0.9))
    after = snapshot(own_run)
    changed = {name for name in after if after[name] != before[name]}
    assert "segments.npz" in changed and "features.safetensors" not in changed
    assert not any(LIFTED in name for name in changed)


def test_masks_that_changed_since_blocks_were_lifted_are_refused(own_run, own_scene):
    run_step(own_run, "lift", quiet=True, blocks=CUT.blocks)
    path = own_scene / "masks/a_view_01.png"
    write_id_map(path, read_id_map(path)[::-1])
    with pytest.raises(InputError, match="the masks have changed since the features were learned"):
        run_step(own_run, "cluster", quiet=True, masks=own_scene / "masks")


def test_masks_that_a_run_in_blocks_makes_are_made_once(own_run, monkeypatch):
    work = Workspace(open_run(own_run), quiet=True)
    work.run.settings = replace(work.run.settings, blocks=CUT.blocks)
    make_regions(work)
    assert is_finished(own_run / OWN_MASKS, work.scene.views)
    monkeypatch.setattr(regions, "make_together", None)
    make_regions(work)


def test_without_blocks_a_run_is_what_it_was(own_run):
    before = snapshot(own_run)
    run_step(own_run, "lift", quiet=True, blocks=CUT.blocks)
    run_step(own_run, "cluster", quiet=True)
    for step in ("lift", "cluster"):
        run_step(own_run, step, quiet=True, blocks=BlockSettings())
    after = snapshot(own_run)
    assert before.keys() == after.keys() and stats(own_run)["blocks"] is None
    assert all(after[name] == before[name] for name in after if name not in ("stats.json", "config.json"))
    run_step(own_run, "lift", quiet=True, blocks=BlockSettings(gaussians=10**6))  # all of it is one block
    assert open_run(own_run).is_done("cluster") and not (own_run / "blocks").exists()


def test_masks_alone_are_joined_block_by_block(own_run):
    run_step(own_run, "lift", quiet=True, blocks=CUT.blocks, lift=replace(SETTINGS.lift, method="graph"))
    run_step(own_run, "cluster", quiet=True)
    labels, plain = load_labels(own_run)[0], load_labels(own_run)[0]
    assert labels.max() > 3 and adjusted_rand_score(labels, plain) > 0.8
    assert read_tensors(own_run / "features.safetensors", "", "features")["features"].shape[1] == 0


def test_a_block_that_no_view_sees_is_noise(tiny_scene, tmp_path):
    splats, _ = clumps()
    far = replace(splats, means=splats.means * 0.1 + torch.tensor([300.0, 0, 0]))
    both = Splats(*(torch.cat([getattr(s, k) for s in (splats, far)]) for k in
                    ("means", "quats", "log_scales", "logit_opacities", "sh")))  # fmt: skip
    write_ply(tmp_path / "given.ply", both)
    out = tmp_path / "run"
    settings = replace(CUT, blocks=BlockSettings(gaussians=len(splats)))
    run_all(tiny_scene, out, settings, masks=tiny_scene / "masks", splats=tmp_path / "given.ply", quiet=True)
    labels = load_labels(out)[0]
    assert (labels[len(splats) :] == -1).all() and (labels[: len(splats)] > 0).mean() > 0.95
    assert stats(out)["blocks"]["count"] == 2 and stats(out)["miou_things"] > 0.8


# ---- bad input


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (BlockSettings(gaussians=3), r"blocks.gaussians is 3 where 0 \(never cut\) or a whole number of at least 100"),
        (BlockSettings(gaussians=-5), "blocks.gaussians is -5 where a whole number of at least 0"),
        (BlockSettings(gaussians=200, margin=1.5), "blocks.margin is 1.5 where a number of 0.02 to 0.5"),
        (BlockSettings(gaussians=200, margin=0.0), "blocks.margin is 0.0 where a number of 0.02 to 0.5"),
    ],
)
def test_blocks_that_cannot_be_are_refused_before_anything_is_written(tiny_scene, tmp_path, blocks, said):
    with pytest.raises(InputError, match=said):
        run(tiny_scene, tmp_path / "run", replace(SETTINGS, blocks=blocks))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["joint", "vote"])
def test_methods_that_need_all_gaussians_say_so(own_run, method):
    with pytest.raises(InputError, match=f"lift.method is {method}, which does not go block by block"):
        run_step(own_run, "lift", quiet=True, blocks=CUT.blocks, lift=replace(SETTINGS.lift, method=method))


@pytest.mark.parametrize("tracked", [False, True])
def test_methods_that_need_all_gaussians_say_so_before_training(tiny_scene, tmp_path, tracked):
    lift = replace(SETTINGS.lift, method="auto" if tracked else "joint")
    masks = tmp_path / "masks"
    shutil.copytree(tiny_scene / "masks", masks)
    if tracked:
        (masks / "masks.json").write_text(json.dumps({"format": 1, "by": {}, "tracked": True}))
    said = "the ids of these masks are tracked" if tracked else "lift.method is joint"
    with pytest.raises(InputError, match=f"{said}.* does not go block by block"):
        run_all(tiny_scene, tmp_path / "run", replace(CUT, lift=lift), masks=masks, splats=None, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_said_before_a_mapped_file_is_written(own_run):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, old[1]))  # fewer bytes than the geometry's 30,800
    try:
        with pytest.raises(InputError, match="the disk is full"):
            run_step(own_run, "lift", quiet=True, blocks=CUT.blocks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    run_step(own_run, "lift", quiet=True, blocks=CUT.blocks)


def test_a_broken_file_of_a_block_is_said_or_made_again(own_run):
    run_step(own_run, "lift", quiet=True, blocks=CUT.blocks)
    (own_run / "blocks/0002" / LIFTED).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"0002/lifted.safetensors is missing or of other settings; run `cgc lift`"):
        run_step(own_run, "cluster", quiet=True)
    run_step(own_run, "lift", quiet=True)
    run_step(own_run, "cluster", quiet=True)


def test_masks_that_show_nothing_of_any_block_are_refused(own_run, tiny_scene, tmp_path):
    masks = Path(shutil.copytree(tiny_scene / "masks", tmp_path / "masks"))
    splats = read_ply(own_run / "splats.ply")
    write_ply(tmp_path / "far.ply", replace(splats, means=splats.means + 1000))
    with pytest.raises(InputError, match="no Gaussian is visible in any masked view"):
        run_all(tiny_scene, tmp_path / "far", CUT, masks=masks, splats=tmp_path / "far.ply", quiet=True)


# ---- files


def test_mapped_splats_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "CHUNK", 90)
    splats = some_splats(300)
    write_ply(tmp_path / "a.ply", splats, {"age": np.arange(300, dtype=np.float32)})
    found = MappedSplats(tmp_path / "a.ply")
    whole, rows = read_ply(tmp_path / "a.ply"), np.array([5, 0, 299])
    assert len(found) == 300 and (found.means() == whole.means.numpy()).all()
    assert torch.equal(found.read(rows).quats, whole.quats[rows])
    assert torch.equal(found.sh_dc(rows), whole.sh[rows, :1])
    assert [(begin, len(some)) for begin, some in found.chunks()] == [(0, 90), (90, 90), (180, 90), (270, 30)]
    extras = found.copy(tmp_path / "b.ply")
    write_ply(tmp_path / "c.ply", whole)
    assert (tmp_path / "b.ply").read_bytes() == (tmp_path / "c.ply").read_bytes()
    assert (extras["age"] == np.arange(300)).all()


def test_splats_that_cannot_be_mapped_are_said(tmp_path):
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\n"
        + "".join(f"property float {n}\n" for n in (*"xyz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0",
                                                    "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"))
        + "end_header\n" + " ".join(["1"] * 14) + "\n"
    )  # fmt: skip
    with pytest.raises(InputError, match="is an ASCII file, of which no part can be read alone; export it as a binary"):
        MappedSplats(tmp_path / "a.ply")


def test_tensors_that_were_mapped_are_read_as_any(tmp_path):
    made = map_tensors(tmp_path / "a.safetensors", {"features": (5, 3), "mass": (5,), "none": (5, 0)})
    made["features"][2], made["mass"][:] = 7, np.arange(5)
    made["features"].flush(), made["mass"].flush()
    found = read_tensors(tmp_path / "a.safetensors", "", "features", "mass", "none")
    assert found["features"].sum() == 21 and found["mass"].tolist() == [0, 1, 2, 3, 4]
    assert found["none"].shape == (5, 0)


@pytest.mark.parametrize("name", ["geometry.npy", "order.npy", "cells.npz"])
def test_cut_splats_that_are_broken_are_said(tmp_path, name):
    folder = tmp_path / "blocks"
    a_geometry(tmp_path, some_splats(300), 100)
    whole = (folder / name).read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"PK\3\4", b"\x80\4N."):
        (folder / name).write_bytes(data)
        with pytest.raises(InputError, match=r"blocks is broken .*; remove it and run the same command again"):
            Geometry(folder)


def test_cut_splats_whose_files_do_not_fit_are_said(tmp_path):
    folder = tmp_path / "blocks"
    a_geometry(tmp_path, some_splats(300), 100)
    columns = {k: v for k, v in np.load(folder / "cells.npz").items()}
    order, geometry = np.load(folder / "order.npy"), np.load(folder / "geometry.npy")
    broken = [("cells.npz", columns | {k: v}) for k, old in columns.items() for v in (old[1:], old[None], old * np.nan)]
    broken += [("order.npy", order[1:]), ("order.npy", order[None]), ("order.npy", order + 1), ("order.npy", order / 1)]
    broken += [("geometry.npy", geometry[1:]), ("geometry.npy", geometry.astype(np.float16))]
    for name, value in broken:
        whole = (folder / name).read_bytes()
        np.savez(folder / name, **value) if isinstance(value, dict) else np.save(folder / name, value)
        with pytest.raises(InputError, match=r"blocks is broken .*; remove it and run the same command again"):
            Geometry(folder)
        (folder / name).write_bytes(whole)
    assert len(Geometry(folder)) == 300
    geometry[7, 1] = np.nan
    np.save(folder / "geometry.npy", geometry)
    with pytest.raises(InputError, match=r"blocks is broken \(it holds what is no number\)"):
        Geometry(folder).read(np.array([0]))


def test_a_block_with_a_wrong_bit_is_said(tmp_path):
    path, arrays = tmp_path / "a.safetensors", {"rows": np.arange(300), "none": np.zeros((0, 3), np.float32)}
    save_arrays(path, arrays, "key")
    assert all(np.array_equal(v, arrays[k]) for k, v in load_arrays(path, "rows", "none").items())
    data = bytearray(path.read_bytes())
    data[-99] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.safetensors is broken \(its rows were changed or damaged\); remove it"):
        load_arrays(path, "rows")
    save_file({"rows": torch.arange(3)}, path)  # as versions before this one left them
    assert load_arrays(path, "rows")["rows"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["features", "mass"])
@pytest.mark.parametrize(
    "broken",
    [torch.zeros(5, 3, dtype=torch.int32), torch.zeros(5, 3).half(), torch.zeros(5, 3, 1), torch.tensor(1.0),
     torch.full((5, 3), torch.nan), torch.zeros(4)],
)  # fmt: skip
def test_tensors_of_other_kinds_are_said(tmp_path, name, broken):
    whole = {"features": torch.zeros(5, 3), "mass": torch.zeros(5)}
    save_file({**whole, name: broken}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors is broken \(its (features|mass) .*\); lift again"):
        read_tensors(tmp_path / "a.safetensors", "lift again", "features", "mass")
    save_file({name: torch.zeros(5)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors is broken \(it has no other\); lift again"):
        read_tensors(tmp_path / "a.safetensors", "lift again", "other")


def test_splats_that_would_have_to_be_moved_are_refused(own_run, tmp_path):
    work = Workspace(open_run(own_run), quiet=True)
    work.scene_as_read = replace(work.scene_as_read, origin=(1e6, 0.0, 0.0))
    with pytest.raises(InputError, match="far from the origin"):
        take_mapped(work, own_run / "splats.ply", tmp_path / "splats.ply")
    assert not (tmp_path / "splats.ply").exists()
