"""Edits against laws and slow references: what is touched, what is not, and pictures before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CLUMPS, FLOOR, cameras, clumps

from cgc.api import load
from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.files import sha256
from cgc.geometry import SH_C0, quat_to_rotation
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.segmentation import halo
from cgc.segmentation.edit import (
    ORIGIN,
    keep,
    merge,
    paint,
    recolor,
    relabel,
    remove,
    split,
    track,
    transform,
)
from cgc.segmentation.labels import render_labels, render_rgb
from cgc.segmentation.patch import continue_surfaces
from cgc.segmentation.pieces import find_pieces
from cgc.segmentation.saved import load_saved, save
from cgc.segmentation.segmentation import Segmentation
from cgc.splats.types import Splats

RASTERIZER = CpuRasterizer()


def tiny(sh_terms: int = 4) -> Segmentation:
    """The clumps 1 to 6 and the floor 7: clump 1 has the parts 8 and 9, the whole 10 holds 2 and 3; seven of noise."""
    splats, labels = clumps()
    g = torch.Generator().manual_seed(3)
    rest = 0.1 * torch.randn(len(labels), sh_terms - 1, 3, generator=g)
    splats = replace(
        splats, sh=torch.cat([splats.sh, rest], 1), features=torch.randn(len(labels), 5, generator=g),
        quats=torch.randn(len(labels), 4, generator=g), extras={"mark": np.arange(len(labels)) * 3},
        log_scales=splats.log_scales + 0.5 * torch.randn(len(labels), 3, generator=g),
    )  # fmt: skip
    leaves = labels.copy()
    leaves[labels == 1] = np.where(np.arange(60) % 3, 8, 9)
    leaves[350:357] = -1
    parents = np.array([0, 0, 10, 10, 0, 0, 0, 0, 1, 1, 0], np.int32)
    levels = np.array([-1, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.2], np.float32)
    tree = Hierarchy(leaves, parents, levels, 0.5)
    confidences = np.linspace(0.7, 1, len(labels)).astype(np.float32)
    return track(Segmentation(splats, tree.at(), confidences, tree, {1: "red", 2: "green"}))


def with_wide(segmentation: Segmentation) -> Segmentation:
    splats = segmentation.splats
    return replace(segmentation, splats=replace(splats, log_scales=splats.log_scales + 86))


def copied(segmentation: Segmentation) -> dict[str, np.ndarray]:
    """Everything a segmentation holds, as arrays of its own."""
    splats = segmentation.splats
    columns = {f.name: getattr(splats, f.name) for f in fields(splats)}
    made = {k: v.numpy().copy() for k, v in columns.items() if isinstance(v, torch.Tensor)}
    made |= {f"extra {k}": v.copy() for k, v in splats.extras.items()}
    made |= {k: getattr(segmentation, k).copy() for k in ("labels", "confidences")}
    return made | {k: getattr(segmentation.hierarchy, k).copy() for k in ("leaves", "parents", "levels")}


def assert_rows(made: Segmentation, old: Segmentation, rows: np.ndarray) -> None:
    """Whatever belongs to a Gaussian is that of the old one at its row."""
    before, after = copied(old), copied(made)
    for name, values in before.items():
        expected = values if name in ("parents", "levels") else values[rows]
        np.testing.assert_array_equal(after[name], expected, err_msg=name)


EDITS = {
    "keep": lambda s: keep(s, [2, 8]),
    "remove": lambda s: remove(s, 3),
    "merge": lambda s: merge(s, [1, 4]),
    "split": lambda s: split(s, 1),
    "pieces": lambda s: split(s, FLOOR, 3),
    "paint": lambda s: paint(s, cameras()[0], left_half(cameras()[0]), None, RASTERIZER),
    "relabel": lambda s: relabel(s, 5, "a name"),
    "recolor": lambda s: recolor(s, [4], (0.2, 0.9, 0.1)),
    "transform": lambda s: transform(s, 1, translation=(1, 2, 3), rotation=(1, 2, 3, 4), scale=2),
}


def left_half(camera: Camera) -> np.ndarray:
    mask = np.zeros((camera.height, camera.width), bool)
    mask[:, : camera.width // 2] = True
    return mask


@pytest.mark.parametrize("name", EDITS)
def test_edits_change_nothing_of_what_they_are_given(name):
    old = tiny()
    before, names = copied(old), dict(old.names)
    made = EDITS[name](old)
    for key, values in copied(old).items():
        np.testing.assert_array_equal(values, before[key], err_msg=key)
    assert old.names == names and old.edits == () and len(made.edits) == 1
    assert made.edits[0]["edit"] == {"pieces": "split"}.get(name, name)
    assert json.loads(json.dumps(made.edits[0])) == made.edits[0]
    np.testing.assert_array_equal(made.hierarchy.at(), made.labels)  # labels and tree go together after each
    if name != "keep":  # which leaves nothing that "relabel" names
        assert len(EDITS["relabel"](made).edits) == 2


# ---- what is there


def test_keeping_and_removing_keep_rows_together_and_ids():
    old = tiny()
    inside = np.isin(old.labels, [2, FLOOR]) | (old.hierarchy.leaves == 8)
    kept = keep(old, [2, 8, FLOOR, 2])
    assert_rows(kept, old, np.flatnonzero(inside))
    assert kept.ids.tolist() == [1, 2, FLOOR] and kept.names == {1: "red", 2: "green"}
    left = remove(old, [2, 8, FLOOR], halo=False)
    assert_rows(left, old, np.flatnonzero(~inside))
    assert left.names == {1: "red"} and left.hierarchy.holds(9).any()
    assert remove(old, 10, halo=False).ids.tolist() == [1, 4, 5, 6, 7]  # a whole: both that it holds
    np.testing.assert_array_equal(left.splats.extras[ORIGIN], np.flatnonzero(~inside))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: keep(s, 99), "no segment 99: the ids that hold Gaussians are 1, 2, 3, 4"),
        (lambda s: keep(s, [1, 0, -1]), "no segments 0, -1"),
        (lambda s: keep(s, []), "name at least one id"),
        (lambda s: keep(s, ["1"]), "whole numbers"),
        (lambda s: keep(s, [True]), "whole numbers"),
        (lambda s: keep(remove(s, 3), 3), "no segment 3"),
        (lambda s: remove(remove(s, range(1, 7), halo=False), 7, halo=False), None),
        (lambda s: remove(keep(s, 2), 2), "leave no Gaussian"),
        (lambda s: merge(s, [1]), "two segments"),
        (lambda s: merge(s, [1, 8]), "segment 8 cannot be merged: it is not shown"),
        (lambda s: split(s, 2), "segment 2 has no parts"),
        (lambda s: split(s, 8), "segment 8 cannot be split"),
        (lambda s: split(s, 2, "halves"), "'children', a number"),
        (lambda s: split(s, 2, 1), "from 2 to the segment's 60"),
        (lambda s: split(s, 2, 61), "from 2 to the segment's 60"),
        (lambda s: split(s, 2, 2, features=np.zeros((3, 2))), "features"),
        (lambda s: split(s, 2, 2, features=np.full((len(s.labels), 2), np.nan)), "NaN"),
        (lambda s: split(s, 2, np.ones((36, 48), bool)), "camera and a rasteriser"),
        (lambda s: relabel(s, 1, "a\nb"), "printable"),
        (lambda s: relabel(s, 1, "a" * 201), "200"),
        (lambda s: recolor(s, 1, (0, 0, 256)), "from 0 to 1"),
        (lambda s: recolor(s, 1, (0, 0)), "a colour"),
        (lambda s: recolor(s, 1, (0, np.nan, 0)), "a colour"),
        (lambda s: recolor(s, 1, (0, 0, 0), how="paint"), "'shift' or 'tint'"),
        (lambda s: transform(s, 1, scale=0), "a scale over 0"),
        (lambda s: transform(s, 1, scale=float("nan")), "a scale over 0"),
        (lambda s: transform(s, 1, scale=1e300), "leave what numbers can hold"),
        (lambda s: transform(with_wide(s), 1, scale=1e4), "leave what numbers can hold"),
        (lambda s: transform(s, 1, translation=(0, np.inf, 0)), "a translation"),
        (lambda s: transform(s, 1, translation="far"), "a translation"),
        (lambda s: transform(s, 1, about=(0, 1)), "a point"),
        (lambda s: transform(s, 1, rotation=(0, 0, 0, 0)), "quaternion"),
        (lambda s: transform(s, 1, rotation=2 * np.eye(3)), "no rotation"),
        (lambda s: transform(s, 1, rotation=np.diag([1, 1, -1])), "no rotation"),
        (lambda s: transform(s, 1, rotation=(1, 0, 0)), "a rotation"),
        (lambda s: transform(s, 77), "no segment 77"),
        (lambda s: paint(s, cameras()[0], np.ones((4, 4)), 1, RASTERIZER), "the mask is"),
        (lambda s: paint(s, cameras()[0], np.zeros((36, 48)), 1, RASTERIZER), "empty"),
        (lambda s: paint(s, cameras()[0], np.ones((36, 48)), 8, RASTERIZER), "8 cannot be painted"),
        (lambda s: paint(s, cameras()[0], np.ones((36, 48)), 11, RASTERIZER), "no segment 11"),
        (lambda s: track(s, np.zeros(3, int)), "origins"),
    ],
)
def test_bad_input_is_said(edit, said):
    if said is None:  # noise alone may be left
        assert edit(tiny()).ids.size == 0
        return
    with pytest.raises(InputError, match=said):
        edit(tiny())


# ---- which is which


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=5, unique=True))
def test_merging_is_renaming_labels_and_no_more(ids):
    old = tiny()
    made = merge(old, ids)
    expected = np.where(np.isin(old.labels, ids), ids[0], old.labels)
    np.testing.assert_array_equal(made.labels, expected)
    np.testing.assert_array_equal(made.hierarchy.at(), expected)
    for node in set(range(1, 11)) - set(ids) - {10}:
        np.testing.assert_array_equal(made.hierarchy.holds(node), old.hierarchy.holds(node), err_msg=str(node))
    if 1 in ids:  # what was apart in it still is
        assert {8, 9} < set(made.hierarchy.children(ids[0]))
        assert len(made.hierarchy.children(ids[0])) == 2 + len(ids) - 1
    assert_rows(replace(made, labels=old.labels, hierarchy=old.hierarchy), old, np.arange(len(old.labels)))


def test_objects_that_both_have_parts_merge():
    old = tiny()
    leaves, parents = old.hierarchy.leaves.copy(), old.hierarchy.parents.copy()
    leaves[old.labels == 4] = 10
    parents[[2, 3, 10]] = 0, 0, 4
    levels = old.hierarchy.levels.copy()
    levels[4], levels[10] = 0.7, 1
    old = replace(old, hierarchy=Hierarchy(leaves, parents, levels, 0.5))
    made = merge(old, [4, 1])
    assert made.hierarchy.children(4) == [8, 9, 10] and not made.hierarchy.holds(1).any()
    np.testing.assert_array_equal(made.at_level(1.0).labels == 8, old.hierarchy.holds(8))


def test_splitting_into_children_shows_the_parts_and_merging_undoes_it():
    old = tiny()
    made = split(old, 1)
    assert made.ids.tolist() == [2, 3, 4, 5, 6, 7, 8, 9] and made.edits[-1]["pieces"] == [8, 9]
    np.testing.assert_array_equal(made.labels == 8, old.hierarchy.holds(8))
    assert 1 not in made.names and made.names[2] == "green"
    back = merge(made, [8, 9])
    np.testing.assert_array_equal(back.labels == 8, old.labels == 1)


def test_splitting_at_a_gap_finds_the_two_clumps_that_were_merged():
    old = tiny()
    lone = keep(old, range(1, 7))  # no floor between them
    made = split(merge(lone, [2, 5]), 2, 2)
    pieces = made.edits[-1]["pieces"]
    assert pieces == [2, 11] and made.hierarchy.parent(11) == made.hierarchy.parent(2) == 10
    one, other = (set(np.flatnonzero(made.labels == i).tolist()) for i in pieces)
    assert {frozenset(one), frozenset(other)} == {frozenset(np.flatnonzero(lone.labels == i).tolist()) for i in (2, 5)}
    img = render_labels(made.splats, made.labels, cameras()[0], RASTERIZER).ids
    assert {2, 11} <= set(np.unique(img).tolist())  # ids beyond those of clustering are drawn


def test_pieces_are_found_by_features_where_places_tell_nothing():
    g = np.random.default_rng(1)
    means, kind = g.normal(size=(300, 3)), g.permutation(np.arange(300) % 3 == 0)
    features = np.where(kind[:, None], 1.0, -1.0) + 0.05 * g.normal(size=(300, 4))
    found = find_pieces(means, 2, features)
    np.testing.assert_array_equal(found, kind)  # the larger piece is the first
    again = find_pieces(means * 100 + 7, 2, features)
    np.testing.assert_array_equal(found, again)
    with pytest.raises(InputError, match="lie in 1 places"):
        find_pieces(np.zeros((20, 3)), 3)


def test_painting_takes_what_shows_under_the_mask_as_dense_weights_say():
    old, camera = tiny(), cameras()[2]
    mask = left_half(camera)
    made = paint(old, camera, mask, 4, RASTERIZER)
    w = RASTERIZER.contributions(old.splats, camera)
    dense = np.zeros((camera.width * camera.height, len(old.splats)))
    dense[w.rows.numpy(), w.ids.numpy()] = w.weights.numpy()
    dense[dense < 0.05] = 0
    share = dense[mask.ravel()].sum(0) / np.maximum(dense.sum(0), 1e-12)
    clear = np.abs(share - 0.5) > 1e-3
    np.testing.assert_array_equal(made.labels[clear], np.where(share > 0.5, 4, old.labels)[clear])
    assert 50 < (share > 0.5).sum() < len(share) - 50
    fresh = paint(old, camera, mask, None, RASTERIZER)
    assert fresh.edits[-1]["ids"] == [11] and (fresh.labels == 11).sum() == fresh.edits[-1]["gaussians"]
    none = paint(old, camera, mask, 0, RASTERIZER)
    np.testing.assert_array_equal(none.labels == -1, (fresh.labels == 11) | (old.labels == -1))
    gone = remove(old, 3, halo=False)
    assert (paint(gone, camera, mask, 3, RASTERIZER).labels == 3).any()  # an id that was emptied can be filled again


def test_splitting_by_a_mask_divides_what_is_not_seen_by_what_is_near():
    old, camera = tiny(), cameras()[0]
    ids = render_labels(old.splats, old.labels, camera, RASTERIZER).ids
    target = int(np.bincount(ids[ids > 0]).argsort()[-2])  # the largest clump
    columns = np.flatnonzero((ids == target).any(0))
    mask = np.zeros(ids.shape, bool)
    mask[:, : (columns[0] + columns[-1]) // 2] = True
    made = split(old, target, mask, camera=camera, rasterizer=RASTERIZER)
    own = old.labels == target
    assert made.edits[-1]["pieces"] == [target, 11]
    assert 5 < (made.labels == 11).sum() < own.sum() - 5 and ((made.labels == 11) <= own).all()
    x = (old.splats.means @ camera.viewmat[0, :3]).numpy()  # to the right in the camera
    assert x[made.labels == 11].max() < x[made.labels == target].max()
    assert x[made.labels == 11].mean() < x[made.labels == target].mean() - 0.1
    with pytest.raises(InputError, match="covers all"):
        split(old, target, np.ones(ids.shape, bool), camera=camera, rasterizer=RASTERIZER)


def test_splitting_by_a_mask_takes_what_shows_under_it_whatever_is_around():
    means = torch.stack([torch.arange(7) - 3.0, torch.zeros(7), torch.zeros(7)], 1)
    splats = Splats(means, torch.eye(4)[:1].expand(7, 4), torch.full((7, 3), -2.5), torch.full((7,), 3.0),
                    torch.zeros(7, 1, 3))  # fmt: skip
    camera = Camera.look_at((0, -8, 0), (0, 0, 0), width=64, height=48)
    mask = np.zeros((48, 64), bool)
    mask[20:28, 29:35] = True  # over the fourth, in the middle
    made = split(Segmentation(splats, np.ones(7, np.int32), np.ones(7, np.float32)), 1, mask, camera=camera,
                 rasterizer=RASTERIZER)  # fmt: skip
    assert made.labels.tolist() == [1, 1, 1, 2, 1, 1, 1]


# ---- names and colours


def test_names_are_given_and_taken():
    old = tiny()
    made = relabel(old, 4, "  Größe=1, 日本  ")
    assert made.names == {1: "red", 2: "green", 4: "Größe=1, 日本"}
    assert relabel(made, 4, None).names == old.names
    assert relabel(made, 4, " ").names == old.names


@pytest.mark.parametrize("how", ["shift", "tint"])
@pytest.mark.parametrize("goal", [(0.2, 0.5, 0.7), (0.95, 0.02, 0.5)])
def test_recoloured_objects_have_the_colour_and_keep_their_shading(how, goal):
    old = tiny()
    g = torch.Generator().manual_seed(5)
    shade = torch.rand(len(old.splats), 1, generator=g) * 0.6 - 0.3
    sh = old.splats.sh.clone()
    sh[:, 0] += shade / SH_C0
    old = replace(old, splats=replace(old.splats, sh=sh))
    made = recolor(old, [2, 3], goal, how=how)
    own = np.isin(old.labels, [2, 3])
    rgb = (made.splats.sh[:, 0] * SH_C0 + 0.5).clamp(0, 1).numpy()
    mean = np.average(rgb[own], axis=0, weights=made.splats.opacities.numpy()[own])
    np.testing.assert_allclose(mean, goal, atol=2e-3)
    assert torch.equal(made.splats.sh[~own], old.splats.sh[~own])
    if how == "shift":
        change = (made.splats.sh - old.splats.sh)[own]
        torch.testing.assert_close(change, change[:1].expand_as(change), atol=1e-5, rtol=0)
        assert not change[:, 1:].any()
    else:
        brightness = (rgb[own] @ [0.299, 0.587, 0.114]).argsort()
        assert np.corrcoef(brightness.argsort(), shade[own, 0].numpy().argsort().argsort())[0, 1] > 0.5


# ---- where it is


def turned(camera: Camera, R: np.ndarray, scale: float, centre: np.ndarray, move: np.ndarray) -> Camera:
    """The camera that sees x -> scale R (x - centre) + centre + move as the given one sees x."""
    view = camera.viewmat.double().numpy()
    made = np.eye(4)
    made[:3, :3] = view[:3, :3] @ R.T
    made[:3, 3] = scale * (view[:3, :3] @ centre + view[:3, 3]) - made[:3, :3] @ (centre + move)
    return replace(camera, viewmat=torch.from_numpy(made).float())


@pytest.mark.parametrize("terms", [1, 4, 9, 16])
def test_a_scene_that_was_moved_looks_the_same_to_a_camera_that_was(terms):
    old, camera = tiny(terms), cameras()[3]
    quat, centre, move = np.array([0.3, -0.7, 0.2, 0.5]), np.array([0.1, 0.4, -0.2]), np.array([1.0, -2.0, 0.5])
    R = quat_to_rotation(torch.from_numpy(quat)).numpy()
    before = render_rgb(old.splats, camera, RASTERIZER)
    for rotation in (quat, R):
        made = transform(old, None, translation=move, rotation=rotation, scale=1.7, about=centre)
        after = render_rgb(made.splats, turned(camera, R, 1.7, centre, move), RASTERIZER)
        np.testing.assert_allclose(after, before, atol=2e-3)
    if terms > 1:  # and this is no coincidence: with SH that are not turned it looks different
        unturned = replace(made.splats, sh=old.splats.sh)
        wrong = render_rgb(unturned, turned(camera, R, 1.7, centre, move), RASTERIZER)
        assert np.abs(wrong - before).max() > 0.02


def test_an_object_that_is_moved_leaves_the_others_and_comes_back():
    old = tiny(16)
    own = old.labels == 2
    made = transform(old, 2, translation=(0, 0, 1), rotation=(0.5, 0.5, -0.5, 0.5), scale=0.5)
    before, after = copied(old), copied(made)
    for name in before:
        if name in ("parents", "levels"):
            np.testing.assert_array_equal(after[name], before[name])
        else:
            np.testing.assert_array_equal(after[name][~own], before[name][~own], err_msg=name)
    centre = made.edits[-1]["about"]
    np.testing.assert_allclose(centre, np.median(before["means"][own], axis=0), atol=0.02)
    back = transform(made, 2, rotation=(0.5, -0.5, 0.5, -0.5), scale=2, translation=(0, 0, -1),
                     about=np.add(centre, (0, 0, 1)))  # fmt: skip
    kept = copied(back)
    np.testing.assert_array_equal(kept.pop("extra moved"), own)
    for name, values in kept.items():
        np.testing.assert_allclose(values, before[name], atol=2e-5, err_msg=name)
    moved = transform(old, 2, translation=(0, 0, 1))
    for name in ("quats", "sh", "log_scales"):
        assert torch.equal(getattr(moved.splats, name), getattr(old.splats, name)), name


# ---- what an object leaves behind


def wall_and_ball(black: bool) -> tuple[Segmentation, np.ndarray, list[Camera]]:
    """A green wall 1 and a red ball 2 before it; spill on the ball's border has the wall's label, some of it none.

    What the ball hides from all cameras is black where `black`, else as green as the rest. The wall's rows come first.
    """
    g = torch.Generator().manual_seed(2)
    grid = torch.linspace(-2, 2, 33)
    y, z = (a.ravel() for a in torch.meshgrid(grid, grid, indexing="ij"))
    wall = torch.stack([torch.zeros_like(y), y, z], 1)
    direction = torch.nn.functional.normalize(torch.randn(500, 3, generator=g), dim=1)
    ball = direction * 0.5 + torch.tensor([0.55, 0, 0])
    rim = torch.nn.functional.normalize(torch.randn(40, 3, generator=g) * torch.tensor([0.1, 1, 1]), dim=1)
    spill = rim * 0.55 + torch.tensor([0.65, 0, 0])
    means = torch.cat([wall, ball, spill])
    rgb = torch.cat([torch.tensor([[0.1, 0.7, 0.2]]).repeat(len(wall), 1),
                     torch.tensor([[0.9, 0.1, 0.1]]).repeat(len(ball) + len(spill), 1)])  # fmt: skip
    hidden = (wall.norm(dim=1) < 0.3).nonzero()[:, 0]
    if black:
        rgb[hidden] = 0.0
    sizes = torch.cat([torch.full((len(wall),), 0.08), torch.full((len(ball),), 0.06), torch.full((40,), 0.05)])
    labels = np.repeat([1, 2, 1], [len(wall), len(ball), 40]).astype(np.int32)
    labels[-12:] = -1
    splats = Splats(means, torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means), 1), sizes.log()[:, None].repeat(1, 3),
                    torch.full((len(means),), 2.5), ((rgb - 0.5) / SH_C0)[:, None])  # fmt: skip
    eyes = [(4.0, y, z) for y in (-0.7, 0, 0.7) for z in (-0.6, 0.1, 0.7)]
    shots = [Camera.look_at(eye, (0, 0, 0), width=64, height=48, focal=55) for eye in eyes]
    return Segmentation(splats, labels, np.full(len(labels), 0.9, np.float32)), hidden.numpy(), shots


def test_a_removed_object_leaves_neither_a_halo_nor_the_dark_that_it_hid():
    scene, hidden, shots = wall_and_ball(black=True)
    clean = wall_and_ball(black=False)[0].splats.select(torch.arange(33 * 33))  # the scene without the ball
    made = remove(scene, 2, fill=False, rasterizer=RASTERIZER, cameras=shots)
    assert 38 <= made.edits[-1]["halo"] <= 40 and made.edits[-1]["healed"] >= len(hidden)
    assert made.edits[-1]["filled"] == 0
    np.testing.assert_array_equal(made.splats.means[: 33 * 33].numpy(), clean.means.numpy())  # all of the wall
    plain = remove(scene, 2, halo=False)
    for camera in [*shots, Camera.look_at((4, 0.3, -0.3), (0, 0, 0), width=64, height=48, focal=55)]:
        truth, now, before = (render_rgb(s, camera, RASTERIZER) for s in (clean, made.splats, plain.splats))
        assert np.abs(before - truth).max() > 0.3
        assert np.abs(now - truth).max() < 0.02


def test_noise_that_the_object_hid_goes_with_it():
    scene, hidden, shots = wall_and_ball(black=True)
    labels, gone, few = scene.labels.copy(), scene.labels == 2, hidden[:3]
    for label, goes in ((-1, True), (1, False)):
        labels[few] = label
        found = halo.find_halo(scene.splats, labels, scene.confidences, gone, RASTERIZER, shots, fill=False)
        assert (found.spill[few] == goes).all()


def test_what_was_plainly_seen_takes_no_colour_from_around(monkeypatch):
    scene, _, shots = wall_and_ball(black=True)
    colors = scene.splats.sh + 0.1 * torch.randn(scene.splats.sh.shape, generator=torch.Generator().manual_seed(1))
    gone, asked = scene.labels == 2, []

    def noted(splats, labels, gone, facts, rasterizer):
        asked.append((splats.sh, facts.known))
        return continue_surfaces(splats, labels, gone, facts, rasterizer)

    monkeypatch.setattr(halo, "continue_surfaces", noted)
    halo.find_halo(replace(scene.splats, sh=colors), scene.labels, scene.confidences, gone, RASTERIZER, shots)
    [(sh, known)] = asked
    sight = halo._weigh(scene.splats, gone, RASTERIZER, shots)[0]
    assert (known & (sight.before < halo.SEEN * sight.after)).any()  # a little of it was hidden
    assert torch.equal(sh[known], colors[known]) and not torch.equal(sh, colors)


def test_what_was_half_hidden_takes_half_of_its_colour_from_around():
    splats = tiny(1).splats.select(torch.arange(12))
    splats.sh[:] = torch.tensor([0.0, 1, 0])
    splats.sh[:2] = torch.tensor([1.0, 0, 0])
    after, before = np.full(12, 10.0), np.full(12, 10.0)
    before[:2] = 10 * (halo.HIDDEN + halo.SEEN) / 2, 0
    sh, healed = halo._heal(splats, np.ones(12, int), np.ones(12), before, after, after)
    np.testing.assert_allclose(sh[:2, 0].numpy(), [[0.5, 0.5, 0], [0, 1, 0]], atol=1e-6)
    assert torch.equal(sh[2:], splats.sh[2:]) and healed.tolist() == [True, True, *[False] * 10]


def test_near_ones_count_for_more_and_what_no_camera_could_see_is_not_hidden():
    share, index = halo._nearest(np.array([[1.0, 0, 0], [-3, 0, 0]]), np.ones(2), np.zeros((1, 3)))
    assert index.tolist() == [[0, 1]] and share[0] == pytest.approx([0.75, 0.25])
    scene, _, shots = wall_and_ball(black=False)
    scene.splats.means[0, 0] = 50.0  # behind all cameras
    assert halo.seen_shares(scene.splats, [np.array([0])], RASTERIZER, shots)[0].tolist() == [1]


def test_what_a_gaussian_weighs_on_its_own_is_what_it_does_in_pictures_of_it_alone():
    scene = tiny().splats
    eyes = [(8.0, 0, 3), (0, 9, 2), (-5, 5, 6)]  # from afar, so that no edge cuts any
    shots = [Camera.look_at(eye, (0, 0, 0), width=256, height=192) for eye in eyes]
    rows = torch.arange(0, len(scene), 41)
    expected = [
        sum(float(RASTERIZER.contributions(scene.select(row[None]), c).weights.sum()) for c in shots) for row in rows
    ]
    found = halo._alone(scene, shots).sum(0)[rows.numpy()]
    np.testing.assert_allclose(found, expected, rtol=0.015)


def test_a_moved_object_takes_its_halo_with_it_and_leaves_no_dark():
    scene, hidden, shots = wall_and_ball(black=True)
    made = transform(scene, 2, translation=(0, 5, 0), rasterizer=RASTERIZER, cameras=shots)
    moved = (made.splats.means != scene.splats.means).any(1).numpy()
    assert moved[33 * 33 : -40].all() and not moved[: 33 * 33].any() and moved[-40:].sum() >= 38
    wall = torch.tensor([0.1, 0.7, 0.2]).expand(len(hidden), 3)
    shown = made.splats.sh[torch.from_numpy(hidden), 0] * SH_C0 + 0.5
    torch.testing.assert_close(shown, wall, atol=0.02, rtol=0)
    assert made.edits[-1]["healed"] >= len(hidden) and torch.equal(made.splats.sh[moved], scene.splats.sh[moved])


def test_what_was_moved_once_hides_what_photos_have_seen():
    scene, _, shots = wall_and_ball(black=True)
    sight = {"rasterizer": RASTERIZER, "cameras": shots}
    away = transform(scene, 2, translation=(0, 1.2, 0), **sight)
    assert (away.labels == 2).sum() == 500 + away.edits[-1]["halo"] >= 538  # the halo is its own now
    assert (away.hierarchy.leaves == away.labels)[away.labels > 0].all()
    again = transform(away, 2, translation=(0, -2.4, 0), **sight)
    assert (again.edits[-1]["halo"], again.edits[-1]["healed"]) == (0, 0)
    assert torch.equal(again.splats.sh, away.splats.sh)  # what it covers there was plainly seen
    back = transform(again, 2, translation=(0, 1.2, 0), **sight)
    torch.testing.assert_close(back.splats.means, scene.splats.means, atol=1e-6, rtol=0)
    gone = remove(again, 2, **sight)
    assert (gone.edits[-1]["healed"], gone.edits[-1]["filled"]) == (0, 0)
    assert torch.equal(gone.splats.sh, again.splats.sh[torch.from_numpy(again.labels != 2)])


def test_what_was_moved_of_an_object_leaves_no_halo_of_its_own_when_the_object_goes(monkeypatch):
    old, asked = tiny(), []

    def noted(splats, labels, confidences, gone, *rest):
        asked.append(gone)
        return halo.find_halo(splats, labels, confidences, gone, *rest)

    monkeypatch.setattr("cgc.segmentation.edit.find_halo", noted)
    remove(transform(old, 8, translation=(0, 5, 0), halo=False), 1)
    np.testing.assert_array_equal(asked[-1], old.hierarchy.leaves == 9)


def test_a_motion_that_is_none_changes_nothing_and_a_bare_one_moves_its_own_alone():
    scene, _, shots = wall_and_ball(black=True)
    sight = {"rasterizer": RASTERIZER, "cameras": shots}
    still = transform(scene, 2, **sight)
    assert still.edits[-1]["edit"] == "transform" and still.edits[-1]["healed"] == 0
    for name, values in copied(scene).items():
        np.testing.assert_array_equal(copied(still)[name], values, err_msg=name)
    bare = transform(scene, 2, translation=(0, 5, 0), halo=False, **sight)
    moved = (bare.splats.means != scene.splats.means).any(1).numpy()
    np.testing.assert_array_equal(moved, scene.labels == 2)
    assert torch.equal(bare.splats.sh, scene.splats.sh)


def test_without_cameras_what_is_uncertain_or_has_the_objects_colour_among_its_gaussians_goes():
    scene, _, _ = wall_and_ball(black=True)
    made = remove(scene, 2)
    noise = np.flatnonzero(scene.labels == -1)
    assert 38 <= made.edits[-1]["halo"] <= 40 and made.edits[-1]["healed"] == 0
    green = scene.splats.sh.clone()
    green[33 * 33 + 500 :] = green[0]  # what has the colour of the wall is believed to be the wall's
    assert remove(replace(scene, splats=replace(scene.splats, sh=green)), 2).edits[-1]["halo"] == len(noise)
    far = replace(scene, splats=replace(scene.splats, means=scene.splats.means.clone()))
    far.splats.means[torch.from_numpy(noise)] += torch.tensor([3.0, 3, 0])
    assert remove(far, 2).edits[-1]["halo"] <= 40 - len(noise)


def test_what_stands_before_an_object_is_no_halo_of_it():
    scene, _, shots = wall_and_ball(black=False)
    post = torch.stack([torch.full((30,), 1.6), torch.zeros(30), torch.linspace(-1, 1, 30)], 1)
    s = scene.splats
    splats = Splats(torch.cat([s.means, post]), torch.cat([s.quats, s.quats[:30]]),
                    torch.cat([s.log_scales, torch.full((30, 3), -3.0)]), torch.cat([s.logit_opacities,
                    torch.full((30,), 3.0)]), torch.cat([s.sh, torch.zeros(30, 1, 3)]))  # fmt: skip
    labels = np.append(scene.labels, np.full(30, 3, np.int32))
    both = Segmentation(splats, labels, np.ones(len(labels), np.float32))
    made = remove(both, 2, rasterizer=RASTERIZER, cameras=shots)
    left = torch.from_numpy(made.labels == 3)
    assert left.sum() == 30 and torch.equal(made.splats.sh[left], splats.sh[-30:])


# ---- saved


def edited() -> Segmentation:
    made = split(merge(tiny(9), [4, 5]), FLOOR, 3)
    made = transform(relabel(made, 6, 'a "b" ../c'), 2, rotation=(1, 1, 0, 0))
    return recolor(remove(made, 3), 4, (0.5, 0.5, 0.5))


def test_a_saved_segmentation_comes_back_to_the_bit(tmp_path):
    made = edited()
    save(made, tmp_path / "a/out", {"run": "runs/demo", "views": 3})
    got = load_saved(tmp_path / "a/out")
    for name, values in copied(made).items():
        again = copied(got.segmentation)[name]
        assert again.dtype == values.dtype and np.array_equal(again, values), name
    assert got.segmentation.names == made.names and got.segmentation.edits == made.edits
    assert got.segmentation.hierarchy.base == made.hierarchy.base
    assert got.source == {"run": "runs/demo", "views": 3} and set(got.colors) == set(made.ids.tolist())
    assert got.colors[4] == pytest.approx((128, 128, 128), abs=1)
    save(got.segmentation, tmp_path / "a/out")  # again, in its place
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    finer = made.at_level(0.97)  # between two stops
    save(finer, tmp_path / "finer")
    got = load_saved(tmp_path / "finer").segmentation
    np.testing.assert_array_equal(got.labels, finer.labels)
    assert got.level == finer.level
    with pytest.raises(InputError, match="at any level"):
        save(replace(made, labels=np.roll(made.labels, 1)), tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").write_text("photo")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("mine", "file", "link"):
        with pytest.raises(InputError, match="something else"):
            save(tiny(), tmp_path / name)
    assert (tmp_path / "mine/photo.jpg").read_text() == "photo" and len(list(tmp_path.iterdir())) == 3
    (tmp_path / "empty").mkdir()
    save(tiny(), tmp_path / "empty")


def test_the_folder_one_is_in_is_not_pulled_away(tmp_path, monkeypatch):
    save(tiny(), tmp_path / "out")
    (tmp_path / "out/inside").mkdir()
    for place in ("out", "out/inside"):
        monkeypatch.chdir(tmp_path / place)
        with pytest.raises(InputError, match="out is where you are, and saving puts a new folder in its place"):
            save(tiny(), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    save(tiny(), "out")
    assert load_saved("out")


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    save(tiny(), tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="as JSON"):
        save(tiny(), tmp_path / "out", {"a": object()})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match="the disk is full"):
        save(tiny(), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_save_removes_what_one_that_was_killed_was_writing(tmp_path):
    names = [
        ".out.999999999.partial",
        ".out2.999999999.partial",
        ".out.999999998.partial",
    ]  # the last: now
    for name, age in zip(names, (9000, 9000, 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "splats.ply").write_bytes(b"half")
        for path in (tmp_path / name / "splats.ply", tmp_path / name):
            os.utime(path, (time.time() - age,) * 2)
    save(tiny(), tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"out", *names[1:]}


@pytest.mark.parametrize("moved", [1, 2, 3])
def test_a_save_that_was_killed_loses_nothing(tmp_path, monkeypatch, moved):
    """A kill leaves what `os.replace` has done so far; the next save brings back what is aside."""
    folder, replaced = save(tiny(), tmp_path / "out"), []
    for name in ("mine.txt", "yours.txt"):
        (folder / name).write_text(name)

    def killed(old, new):
        if "partial." not in str(old):  # not one of the files that are written beside
            replaced.append(old)
            if len(replaced) > moved:
                raise KeyboardInterrupt
        os.rename(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tiny(), tmp_path / "out")
    monkeypatch.undo()
    save(tiny(), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and len(load_saved(folder).segmentation.splats)
    assert all((folder / name).read_text() == name for name in ("mine.txt", "yours.txt"))


def test_what_others_had_put_there_comes_back_when_it_is_next_opened(tmp_path):
    """A kill after the two renames; then somebody goes on before it is opened."""
    folder, aside = save(tiny(), tmp_path / "out"), tmp_path / ".out.999999999.old"
    for name in ("export/a.ply", "export/b.ply", "notes", "sub/c"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("before")
    folder.rename(aside)
    save(tiny(), tmp_path / "new").rename(folder)
    (folder / "export").mkdir()
    (folder / "export/b.ply").write_text("since")
    assert len(load(folder).splats)
    for name, text in (
        ("export/a.ply", "before"), ("export/b.ply", "since"), ("older/export/b.ply", "before"), ("notes", "before"),
        ("sub/c", "before"),
    ):  # fmt: skip
        assert (folder / name).read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and len(list(folder.rglob("*.ply"))) == 4


def test_a_save_leaves_those_of_longer_names_alone(tmp_path):
    """What a killed save of `out.v2` has moved aside is the only copy of it."""
    kept = save(tiny(), tmp_path / "out.v2")
    (kept / "mine.txt").write_text("mine")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    aside = kept.rename(tmp_path / f".out.v2.{gone.pid}.old")
    save(tiny(), tmp_path / "out")
    assert (aside / "mine.txt").exists() and not (tmp_path / "out/mine.txt").exists()
    assert len(load(tmp_path / "out.v2").splats)  # it is put back where it is asked for
    assert (kept / "mine.txt").read_text() == "mine" and not aside.exists()
    busy = kept.rename(tmp_path / f".out.v2.{os.getppid()}.old")
    with pytest.raises(InputError, match="there is no such folder"):
        load(kept)  # a process that is alive is about to
    assert busy.exists()


def test_broken_saves_are_said(tmp_path):
    with pytest.raises(InputError, match=r"no segmentation\.json"):
        load_saved(tmp_path)
    good = save(tiny(), tmp_path / "out")
    whole = {p.name: p.read_bytes() for p in good.iterdir()}
    for name in ("splats.ply", "segments.npz", "extras.npz"):
        (good / name).write_bytes(whole[name][:-9])
        with pytest.raises(InputError, match="not the file that was saved"):
            load_saved(good)
        (good / name).unlink()
        with pytest.raises(InputError, match="is missing"):
            load_saved(good)
        (good / name).write_bytes(whole[name])
    facts = json.loads(whole["segmentation.json"])
    (good / "extras.npz").write_bytes(whole["extras.npz"][:-9])
    hashes = {**facts["sha256"], "extras.npz": sha256(good / "extras.npz")}
    (good / "segmentation.json").write_text(json.dumps({**facts, "sha256": hashes}))
    with pytest.raises(InputError, match=r"^[^(]*extras\.npz is broken \(.*\); save the segmentation again$"):
        load_saved(good)
    (good / "extras.npz").write_bytes(whole["extras.npz"])
    for change, said in (
        ({"format": 2}, "format 2"), ({"names": 3}, "broken"), ({"names": {"1": 5}}, "broken"),
        ({"edits": {}}, "broken"), ({"edits": ["x"]}, "broken"), ({"level": "high"}, "broken"),
        ({"level": 7}, "outside of the hierarchy"), ({"colors": {"1": [1]}}, "broken"), ({"source": []}, "broken"),
        ({"colors": {"1": [float("inf"), 0, 0]}}, "broken"),
        ({"sha256": {}}, "broken"), ({"sha256": {**facts["sha256"], "../x": "0"}}, "broken"),
    ):  # fmt: skip
        (good / "segmentation.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(InputError, match=said):
            load_saved(good)
    for text in ("[]", "{", "null", '{"format": 1}'):
        (good / "segmentation.json").write_text(text)
        with pytest.raises(InputError):
            load_saved(good)


def test_the_tiny_scene_is_what_these_tests_take_it_for():
    assert tiny().ids.tolist() == list(range(1, CLUMPS + 2)) and (tiny().labels == -1).sum() == 7
