"""The query API: laws of masks, clicks, boxes and rays, slow references, runs that come back, bad input said."""

from __future__ import annotations

import doctest
import itertools
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import CLUMPS, COLORS, FLOOR, HEIGHT, NAMES, WIDTH, cameras, clumps, snapshot, without_sizes

import cgc
from cgc import kernels
from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.files import sha256, write_json
from cgc.geometry import quat_to_rotation, rgb_to_sh_dc
from cgc.pipeline.commands import run_step
from cgc.pipeline.workspace import Workspace
from cgc.rasterize.base import group_contributions
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import open_run
from cgc.scene.cameras import read_camera_file, write_cameras
from cgc.scene.read import read_cameras, read_scene
from cgc.scene.types import Camera
from cgc.segmentation.colors import segment_colors
from cgc.segmentation.context import Context
from cgc.segmentation.edit import select_rows
from cgc.segmentation.export import job_of
from cgc.segmentation.labels import render_blended, render_levels, render_rgb
from cgc.segmentation.objects import oriented_box
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import SharpenedSplats, describe, save_sharpened
from cgc.settings import SharpenSettings
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.types import Splats

WHOLE, PARTS, PARTS_OF_PART = 8, (9, 10), (11, 12)
"""Of `family`: the whole of clumps 1 and 2, the parts of clump 3, and those of the second of these."""


def family(**context) -> Segmentation:
    """Six clumps on a floor, some noise among them: 1 and 2 are one whole, 3 has two parts, one of them two more."""
    splats, labels = clumps()
    leaves = labels.copy()
    third, x, y = labels == 3, splats.means[:, 0].numpy(), splats.means[:, 1].numpy()
    leaves[third] = np.where(x[third] < np.median(x[third]), 9, np.where(y[third] < np.median(y[third]), 11, 12))
    leaves[::40] = -1
    parents = np.array([0, 8, 8, 0, 0, 0, 0, 0, 0, 3, 3, 10, 10], np.int32)
    levels = np.array([-1, 1, 1, 0.6, 1, 1, 1, 1, 0.2, 1, 0.8, 1, 1], np.float32)
    tree = Hierarchy(leaves.astype(np.int32), parents, levels, 0.5)
    confidences = np.linspace(0.5, 1, len(splats)).astype(np.float32)
    features = torch.eye(16)[np.maximum(tree.at(), 0)] + 0.01 * torch.randn(
        len(splats), 16, generator=torch.Generator().manual_seed(1)
    )
    views = dict(zip(NAMES, cameras()))
    made = Context(read_cameras=lambda: views, **context)
    return Segmentation(replace(splats, features=features), tree.at(), confidences, tree, context=made)


@pytest.fixture(scope="module")
def seg() -> Segmentation:
    return family()


def centre_of(seg: Segmentation, view: str, node: int) -> tuple[int, int]:
    """A pixel of a node that is farthest from its border."""
    from cgc.evaluation.prompts import innermost

    return innermost(seg[node].mask(view))


# ---- what is there


def test_what_is_there(seg):
    assert len(seg) == FLOOR == len(seg.objects) == len(list(seg)) and seg.ids.tolist() == list(range(1, FLOOR + 1))
    assert seg[3] == seg.objects[2] and seg[3] in seg and 3 in seg and WHOLE not in seg and seg[WHOLE] not in seg
    assert seg[3] != seg[4] and seg[3] != 3 and seg[3] == seg.at_level(1.0)[3] and seg[3] != family()[3]
    assert len({seg[3], seg.at_level(0)[3], seg[4]}) == 2
    assert seg[3].children == PARTS and seg[9].parent == 3 and seg[1].parent == WHOLE and seg[3].parent == 0
    assert seg[3].level == pytest.approx(0.6) and seg[WHOLE].children == (1, 2)
    for node in range(1, seg.hierarchy.n_nodes + 1):
        members = np.flatnonzero(seg.hierarchy.holds(node))
        np.testing.assert_array_equal(seg[node].indices, members)
        assert seg[node].gaussians == len(members) == len(seg[node].splats())
        assert seg[node].confidence == pytest.approx(seg.confidences[members].mean())
        np.testing.assert_allclose(seg[node].centre, np.median(seg.splats.means[members].numpy(), 0), rtol=1e-6)
    for i, color in enumerate(COLORS, 1):
        np.testing.assert_allclose(seg[i].color, 255 * color, atol=1)
    wholes = seg.at_level(0.0)
    assert wholes.ids.tolist() == [3, 4, 5, 6, 7, 8] and wholes.level == 0 and wholes[WHOLE] in wholes
    assert wholes.at_level(None).ids.tolist() == seg.ids.tolist()
    named = replace(seg, names={3: "left lump"})
    assert named[3].name == "left lump" and "'left lump'" in repr(named[3])
    assert named.table()["name"][1:3] == ["", "left lump"]
    assert "7 objects" in repr(seg) and "level=0" in repr(wholes) and "id=3" in repr(seg[3])


def test_the_table_has_a_row_an_object_and_agrees_with_the_one_that_runs_write(seg):
    columns = seg.table()
    assert {len(c) for c in columns.values()} == {len(seg)}
    rows = describe(seg, {})
    assert columns["id"] == [r.id for r in rows] and columns["gaussians"] == [r.gaussians for r in rows]
    np.testing.assert_allclose(np.stack([columns[c] for c in "xyz"], 1), [r.centre for r in rows])
    colors = np.stack([columns[c] for c in ("red", "green", "blue")], 1).tolist()
    assert colors == [list(r.color) for r in rows]
    assert columns["children"] == [r.children for r in rows] and columns["parent"] == [r.parent for r in rows]
    np.testing.assert_allclose(columns["volume"], np.prod([columns[c] for c in ("length", "width", "height")], 0))
    assert columns["best_view"] == [""] * len(seg)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_boxes_turn_and_move_with_what_is_in_them(seed):
    g = np.random.default_rng(seed)
    flat = g.uniform(-0.5, 0.5, (4000, 3)) * [4, 2, 0.5]
    turn = quat_to_rotation(torch.from_numpy(g.normal(size=4))).numpy()
    shift = g.normal(size=3) * 3
    points = flat @ turn.T + shift
    points[:3] += 1000 * g.normal(size=(3, 3))  # a floater does not stretch it
    box = oriented_box(points)
    np.testing.assert_allclose(box.size, [4 * 0.98, 2 * 0.98, 0.5 * 0.98], rtol=0.04)
    np.testing.assert_allclose(box.centre, shift, atol=0.1)
    np.testing.assert_allclose(box.axes @ box.axes.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(box.axes) == pytest.approx(1)
    assert (np.abs(np.diag(box.axes @ turn)) > 0.99).all()
    assert box.volume == pytest.approx(np.prod(box.size)) and 0.93 < box.contains(points).mean() < 1
    assert box.contains(box.centre + 0.999 * (box.corners - box.centre)).all()
    assert not box.contains(box.centre + 1.001 * (box.corners - box.centre)).any()


def test_boxes_of_few_points():
    one = oriented_box(np.array([[1.0, 2, 3]]))
    np.testing.assert_allclose(one.centre, [1, 2, 3])
    assert one.volume == 0 and np.linalg.det(one.axes) == pytest.approx(1)
    line = oriented_box(np.array([[0.0, 0, 0], [0, 2, 0], [0, 1, 0]]))
    assert np.abs(line.axes[0]).argmax() == 1 and line.size[1:].tolist() == pytest.approx([0, 0])


def test_selections_are_unions_and_hold_nothing_twice(seg):
    both = seg.select(1, seg[3], 9)
    assert both.ids == (1, 3) and len(both) == 2 and 1 in both and seg[3] in both and 9 not in both
    assert both.object is None and seg.select(9).object == seg[9] and not seg.select() and seg.select().object is None
    np.testing.assert_array_equal(both.indices, np.union1d(seg[1].indices, seg[3].indices))
    assert len(both.splats()) == len(both.indices) and len(seg.select().splats()) == 0
    clean = sorted(seg[1].splats(clean=True).means.tolist() + seg[3].splats(clean=True).means.tolist())
    assert sorted(both.splats(clean=True).means.tolist()) == clean
    view = NAMES[0]
    np.testing.assert_array_equal(both.mask(view), seg[1].mask(view) | seg[3].mask(view))
    assert [o.id for o in both] == [1, 3] and seg.select(1, 2, WHOLE).ids == (WHOLE,)


# ---- pictures


@pytest.mark.parametrize("level", [None, 0.0, 0.5, 0.7, 1.0])
def test_id_maps_are_those_of_their_level(seg, level):
    for view, ids in zip(NAMES, seg.at_level(level).masks(), strict=True):
        picture = render_levels(seg.splats, seg.hierarchy, [level], seg.camera(view), CpuRasterizer())[0]
        np.testing.assert_array_equal(ids, picture.ids)


def test_the_mask_of_a_whole_is_the_union_of_its_parts_masks(seg):
    for view in NAMES[:3]:
        for node in (3, WHOLE, 10):
            masks = [seg[part].mask(view) for part in seg[node].children]
            assert sum(m.astype(int) for m in masks).max() == 1  # a pixel has one part
            np.testing.assert_array_equal(seg[node].mask(view), np.any(masks, axis=0))


@pytest.mark.parametrize("level", [None, 0.0, 1.0])
@pytest.mark.parametrize("blended", [False, True])
def test_each_pixel_of_a_mask_answers_with_its_object(level, blended):
    if blended and level is not None:
        pytest.skip("pictures of blended features have no levels")
    seg = family(blended=blended).at_level(level)
    camera = seg.camera(NAMES[2]).resized(24, 18)
    found = np.zeros((18, 24), int)
    for y in range(18):
        for x in range(24):
            found[y, x] = getattr(seg.at_pixel(camera, x + 0.7, y), "id", 0)  # no map was made yet
    assert not seg.kept_maps and len(np.unique(found)) > 5
    for shown in seg:
        np.testing.assert_array_equal(shown.mask(camera), found == shown.id)
    x, y = np.argwhere(found.T > 0)[0]
    assert seg.at_pixel(camera, x, y).id == found[y, x]  # and with a map it is the same


def test_blended_id_maps_are_the_runs_and_have_no_levels(seg):
    blended = family(blended=True)
    camera = seg.camera(NAMES[1])
    wanted = render_blended(seg.splats, seg.features, seg.labels, camera, CpuRasterizer()).ids
    np.testing.assert_array_equal(blended.masks([camera])[0], wanted)
    np.testing.assert_array_equal(blended[WHOLE].mask(camera), np.isin(wanted, [1, 2]))
    assert blended.from_mask(camera, wanted == 3).ids == (3,)
    for call in (lambda: blended.at_level(0.9).masks([camera]), lambda: blended[9].mask(camera)):
        with pytest.raises(InputError, match=r"cluster with --cluster\.masks labels"):
            call()


def test_blended_id_maps_are_the_same_wherever_they_are_made(tmp_path):
    seg = family(blended=True)
    of_labels = family()
    maps, places = seg.masks(), list(seg.context.cameras.values())
    assert any((a != b).any() for a, b in zip(maps, of_labels.masks()))
    again = cgc.load(seg.remove(4, halo=False).save(tmp_path / "saved"), rasterizer=CpuRasterizer())
    for made in (again.masks(places), job_of(seg.remove(4, halo=False), edges="splats").shown_maps):
        np.testing.assert_array_equal(made, seg.remove(4, halo=False).masks())
    np.testing.assert_array_equal(job_of(seg, edges="splats").shown_maps, maps)
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[10:20, 10:20] = True
    for edit in (lambda s: s.paint(NAMES[0], square), lambda s: s.split(4, 2), lambda s: s.merge(1, 4)):
        wanted = edit(of_labels)  # whatever features say
        np.testing.assert_array_equal(edit(seg).masks(), wanted.masks())
        saved = edit(seg).rename(5, "five").save(tmp_path / "edited")
        np.testing.assert_array_equal(cgc.load(saved).masks(places), wanted.masks())


def test_the_order_of_gaussians_does_not_matter(seg):
    order = np.random.default_rng(4).permutation(len(seg.splats))
    tree = replace(seg.hierarchy, leaves=seg.hierarchy.leaves[order])
    other = replace(
        seg, splats=seg.splats.select(torch.from_numpy(order)), labels=seg.labels[order],
        confidences=seg.confidences[order], hierarchy=tree,
    )  # fmt: skip
    one, two = seg.masks(NAMES[:2]), other.masks(NAMES[:2])
    assert (np.array(one) != np.array(two)).mean() < 2e-3  # sums of floats in another order, where depths are equal
    for a, b in zip(seg, other):
        assert (a.id, a.gaussians) == (b.id, b.gaussians) and np.array_equal(np.sort(order[b.indices]), a.indices)
        np.testing.assert_allclose(a.box.size, b.box.size, rtol=1e-6)
        np.testing.assert_allclose(a.centre, b.centre)
    assert seg.at_point(seg[2].centre).id == other.at_point(seg[2].centre).id == 2
    low, high = [0, 0, 0], [2, 2, 1]
    assert [o.id for o in seg.in_box(low, high)] == [o.id for o in other.in_box(low, high)] != []


def test_renders_are_what_they_say(seg):
    camera = seg.camera(NAMES[3])
    rgb = render_rgb(seg.splats, camera, CpuRasterizer())
    np.testing.assert_array_equal(seg.render(NAMES[3]), (255 * rgb).round().astype(np.uint8))
    np.testing.assert_array_equal(seg.render(camera, "segments"), segment_colors(seg.masks([camera])[0]))
    W = CpuRasterizer().contributions(seg.splats, camera)
    sure = torch.from_numpy(np.where(seg.labels > 0, seg.confidences, 0).astype(np.float32))
    wanted = W.matmul(sure[:, None]).numpy().reshape(HEIGHT, WIDTH)
    np.testing.assert_allclose(seg.render(camera, "confidence"), wanted, atol=1e-5)
    z = seg.splats.means @ camera.viewmat[2, :3] + camera.viewmat[2, 3]
    alpha = W.matmul(torch.ones(len(z), 1))[:, 0].numpy().reshape(HEIGHT, WIDTH)
    far = W.matmul(z[:, None])[:, 0].numpy().reshape(HEIGHT, WIDTH) / np.maximum(alpha, 1e-9)
    shown = seg.render(camera, "depth")
    np.testing.assert_allclose(shown[alpha > 0.1], far[alpha > 0.1], rtol=1e-3)
    assert shown.dtype == np.float32 and (shown[alpha == 0] == 0).all()
    colors = seg.render(camera, "features").astype(int)
    inner = {i: colors[y, x] for i in (1, 2, 4) if seg[i].mask(camera).any() for x, y in [centre_of(seg, NAMES[3], i)]}
    assert len({tuple(c // 16) for c in inner.values()}) == len(inner) > 1  # unlike features look unlike
    white = family(background=torch.ones(3))
    assert (white.render(camera)[alpha < 1e-3] == 255).all() and (alpha < 1e-3).any()


@pytest.mark.parametrize("what", ["rgb", "segments", "features", "depth", "confidence"])
def test_a_batch_is_its_cameras_one_by_one(seg, monkeypatch, what):
    from cgc.segmentation import pictures

    monkeypatch.setattr(pictures, "BATCH", 2)
    batch = seg.render(NAMES[:3], what)
    assert batch.shape[:3] == (3, HEIGHT, WIDTH)
    for view, picture in zip(NAMES, batch):
        np.testing.assert_array_equal(picture, seg.render(view, what))


def test_a_camera_that_was_moved_is_another_one():
    """Its tensors are the user's: a loop may step them in place."""
    seg = family()
    camera = Camera.look_at((0, -4, 2), (0, 0, 0), width=40, height=30)
    before = seg.masks([camera])[0]
    camera.viewmat[0, 3] += 1.0
    after, pixel = seg.masks([camera])[0], seg.at_pixel(camera, 20, 15)
    anew = replace(camera, viewmat=camera.viewmat.clone())
    np.testing.assert_array_equal(after, family().masks([anew])[0])
    assert (after != before).any() and (pixel.id if pixel else 0) == after[15, 20]
    assert len(seg.kept_maps) == 2


def test_cameras_may_be_of_numpy(seg):
    camera = seg.camera(NAMES[0])
    given = Camera(camera.viewmat.numpy().astype(float), camera.K.numpy(), np.int64(48), 36)  # pyright: ignore
    np.testing.assert_array_equal(seg.masks([given])[0], seg.masks([camera])[0])


def test_only_the_last_id_maps_are_kept():
    seg = family()
    first = seg.masks([NAMES[0]])[0]
    first[:] = -5  # what is given is the user's own
    assert seg.masks([NAMES[0]])[0].min() >= 0
    for camera in cgc.orbit(seg, 20, width=8, height=6):
        seg.masks([camera])
    assert len(seg.kept_maps) <= 8
    assert seg.at_level(1.0).kept_maps is seg.kept_maps  # the level can move without a new picture
    assert replace(seg, labels=seg.labels).kept_maps is not seg.kept_maps


@pytest.mark.parametrize("pixels", [None, [0, 5, 700, 5], [3]])
def test_weights_of_groups_are_the_sums_of_their_gaussians(seg, pixels):
    camera, groups = seg.camera(NAMES[4]), torch.from_numpy(np.maximum(seg.hierarchy.leaves, 0))
    wanted = None if pixels is None else torch.tensor(pixels)
    one_hot = torch.nn.functional.one_hot(groups.long()).float()
    rows = CpuRasterizer().group_contributions(seg.splats, camera, groups, wanted)
    dense = rows.matmul(torch.eye(rows.n_gaussians))
    np.testing.assert_allclose(
        dense, CpuRasterizer().contributions(seg.splats, camera, wanted).matmul(one_hot), atol=1e-6
    )
    for row in range(len(rows)):  # a group stands once in a row
        own = rows.ids[rows.indptr[row] : rows.indptr[row + 1]].tolist()
        assert len(own) == len(set(own))

    class Plain:  # a rasteriser that knows of no groups
        contributions = CpuRasterizer().contributions

    by_hand = group_contributions(Plain(), seg.splats, camera, groups, wanted)
    np.testing.assert_allclose(by_hand.matmul(torch.eye(rows.n_gaussians)), dense, atol=1e-6)
    for wrong in (groups[:-1], groups - 1, groups.float()):
        with pytest.raises(ValueError, match="groups must be"):
            CpuRasterizer().group_contributions(seg.splats, camera, wrong, wanted)


def test_few_pixels_are_weighed_as_many_are(seg):
    """What is left out for a few pixels is what does not come near them: the same bits."""
    camera, g = seg.camera(NAMES[5]), torch.Generator().manual_seed(2)
    wide = replace(seg.splats, log_scales=seg.splats.log_scales + torch.randn(len(seg.splats), 3, generator=g))
    whole = CpuRasterizer().contributions(wide, camera)
    for pixel in torch.randint(WIDTH * HEIGHT, (60,), generator=g).tolist():
        row, own = (
            whole.select(torch.tensor([pixel])),
            CpuRasterizer().contributions(wide, camera, torch.tensor([pixel])),
        )
        assert torch.equal(row.ids, own.ids) and torch.equal(row.weights, own.weights)


# ---- which one


@pytest.mark.parametrize("clicks", [(NAMES[0], 10, 10), [()], None, [(NAMES[0], 1)]])
def test_clicks_that_are_none_are_said(seg, clicks):
    with pytest.raises(InputError, match=r"clicks are lists of views and pixels, \[\(view, x, y\), \.\.\.\]"):
        seg.at_clicks(clicks)


def test_clicks_by_hand(seg):
    view = NAMES[2]  # shows all
    at = {n: centre_of(seg, view, n) for n in (1, 2, 3, 4, 9, 11, 12) if seg[n].mask(view).any()}

    def pick(positive, negative=()):
        return seg.at_pixels(view, [at[n] for n in positive], [at[n] for n in negative]).ids

    assert seg.at_pixels(view, [at[1]]).object == seg.at_pixel(view, *at[1]) == seg[1]
    assert pick([1]) == (1,) and pick([9]) == (3,) and pick([9, 11]) == (3,)
    assert pick([1, 2]) == (WHOLE,)  # the smallest whole that holds both
    assert pick([1, 4]) == (1, 4)  # nothing holds both
    assert pick([1, 2, 4]) == (1, 2, 4)
    assert pick([1], [2]) == (1,) and pick([1, 4], [2]) == (1, 4)
    assert pick([9], [11]) == (9,) and pick([11], [9]) == (10,) and pick([11], [12]) == (11,)  # finer where need be
    assert pick([9, 11], [12]) == (9, 11) and pick([11, 12], [9]) == (10,)
    finest, wholes = seg.at_level(1.0), seg.at_level(0.0)
    assert finest.at_pixels(view, [at[11]]).ids == (11,) and finest.at_pixels(view, [at[11], at[12]]).ids == (10,)
    assert wholes.at_pixels(view, [at[1]]).ids == (WHOLE,) and wholes.at_pixels(view, [at[1]], [at[2]]).ids == (1,)
    sky = (0, 0)
    assert seg.at_pixel(view, *sky) is None and not seg.at_pixels(view, [sky])
    assert seg.at_pixels(view, [sky, at[1]], [sky]).ids == (1,)
    camera = seg.camera(view)
    assert seg.at_clicks([(camera, *at[1]), (view, *sky), (camera, *at[9])]).ids == (1, 3)
    assert seg.at_clicks([(view, *at[9])], [(camera, *at[11])]).ids == (9,)
    with pytest.raises(InputError, match=rf"click \(.*\) in {view} and a negative one are both in segment 9, "):
        seg.at_pixels(view, [at[9]], [at[9]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_what_is_clicked_is_in_and_what_is_refused_is_out(seed):
    seg, g = FAMILY, np.random.default_rng(seed)
    seg = seg.at_level(g.choice([0.0, 0.5, 0.7, 1.0]))
    view, n = NAMES[g.integers(len(NAMES))], g.integers(1, 5)
    places = [(int(x), int(y)) for x, y in zip(g.integers(0, WIDTH, n + 2), g.integers(0, HEIGHT, n + 2))]
    positive, negative = places[:n], places[n : n + g.integers(0, 3)]
    try:
        selection = seg.at_pixels(view, positive, negative)
    except InputError as error:
        assert "which has no parts" in str(error)
        finest = seg.at_level(1.0).masks([view])[0]
        both = {finest[y, x] for x, y in positive} & {finest[y, x] for x, y in negative} - {0}
        assert both
        return
    mask, shown = selection.mask(view), seg.masks([view])[0]
    assert all(mask[y, x] == (shown[y, x] > 0) for x, y in positive)
    assert not any(mask[y, x] for x, y in negative)
    assert seg.at_pixels(view, positive[::-1], negative[::-1]).ids == selection.ids


FAMILY = family()


def test_points(seg):
    g, turned = np.random.default_rng(5), torch.Generator().manual_seed(5)
    n = len(seg.splats)
    wide = seg.splats.log_scales + 0.8 * torch.randn(n, 3, generator=turned)  # long ones, that lie any way round
    splats = replace(seg.splats, log_scales=wide, quats=torch.randn(n, 4, generator=turned))
    seg = replace(seg, splats=splats)
    inverse = torch.linalg.inv(
        quat_to_rotation(splats.quats.double()) @ torch.diag_embed(splats.scales.double() ** 2)
        @ quat_to_rotation(splats.quats.double()).mT
    )  # fmt: skip
    points = np.concatenate([g.uniform(-1.5, 1.5, (60, 3)) * [1, 1, 0.3], splats.means[1::29].numpy()])
    found = []
    for point in points:
        away = splats.means.double() - torch.from_numpy(point)
        density = splats.opacities.double() * (-torch.einsum("ni,nij,nj->n", away, inverse, away) / 2).exp()
        sums = np.bincount(np.maximum(seg.labels, 0), density.numpy())
        best = np.sort(sums)[::-1]
        answer = seg.at_point(point)
        found.append(answer.id if answer else 0)
        if best[0] - best[1] > 0.01 and abs(sums.sum() - 1 / 255) > 0.01:
            assert found[-1] == (sums.argmax() if sums.sum() > 1 / 255 else 0)
    assert len(set(found)) > 6
    assert seg.at_point([9, 9, 9]) is None
    one = Segmentation(splats.select(torch.tensor([5])), np.ones(1, np.int32), np.ones(1, np.float32))
    for opacity, found in ((0.0035, False), (0.0045, True)):  # 1 / 255 is 0.0039
        thin = replace(one.splats, logit_opacities=torch.logit(torch.tensor([opacity])))
        assert (replace(one, splats=thin).at_point(thin.means[0].numpy()) is not None) == found
    assert seg.at_level(1.0).at_point(splats.means[seg[11].indices[7]].numpy()).id in seg[3].children + PARTS_OF_PART


def test_rays_meet_objects_from_near_to_far(seg):
    for i in range(1, CLUMPS + 1):
        above = np.add(seg[i].centre, (0, 0, 3))
        hits = seg.along_ray(above, [0, 0, -7])
        assert hits[0].object.id == i and hits[0].weight > 0.5 and hits[0].distance == pytest.approx(3, abs=0.35)
        assert sum(h.weight for h in hits) <= 1 + 1e-6
        assert seg.along_ray(above, [0, 0, 1]) == []
    a, b = (
        np.add(seg[1].centre, (0, 0, 0.12)),
        np.add(seg[4].centre, (0, 0, 0.12)),
    )  # opposite each other, over the floor
    hits = seg.along_ray(a + 2 * (a - b), b - a)
    assert hits[0].object.id == 1 and [h.distance for h in hits] == sorted(h.distance for h in hits)
    glass = replace(seg, splats=replace(seg.splats, logit_opacities=seg.splats.logit_opacities - 7))
    assert [h.object.id for h in glass.along_ray(a + 2 * (a - b), b - a)] == [1, 4]  # seen through
    assert [h.object.id for h in glass.along_ray(b + 2 * (b - a), a - b)] == [4, 1]


@pytest.mark.parametrize("length", [1e-300, 7.0, 1e300])
def test_directions_of_any_length_are_taken_and_left_as_they_are(seg, length):
    above, direction = np.add(seg[1].centre, (0, 0, 3)), np.array([0, 0, -length])
    assert seg.along_ray(above, direction)[0].object.id == 1
    assert direction.tolist() == [0, 0, -length]


def test_boxes_in_the_world(seg):
    everything = ([-np.inf] * 3, [np.inf] * 3)
    assert seg.in_box(*everything) == seg.objects == seg.in_box(*everything, partly=True)
    for i in range(1, CLUMPS + 1):
        low, high = seg[i].centre - 0.3, seg[i].centre + 0.3
        assert [o.id for o in seg.in_box(low, high)] == [i]
        assert {i} <= {o.id for o in seg.in_box(low, high, partly=True)} <= {i, FLOOR}
    means, g = seg.splats.means.numpy(), np.random.default_rng(6)
    for _ in range(10):
        low, high = np.sort(g.uniform(-1.5, 1.5, (2, 3)), axis=0)
        inside = ((means >= low) & (means <= high)).all(1)
        most = [o.id for o in seg if inside[o.indices].mean() > 0.5]
        assert [o.id for o in seg.in_box(low, high)] == most
        assert [o.id for o in seg.in_box(low, high, partly=True)] == [o.id for o in seg if inside[o.indices].any()]
    assert seg.in_box([50] * 3, [51] * 3) == []


def test_rectangles(seg):
    view, g = NAMES[1], np.random.default_rng(7)
    ids = seg.masks([view])[0]
    seen = [o for o in seg if (ids == o.id).any()]
    assert seg.in_rect(view, -5, -5, 500, 500) == seen == seg.in_rect(view, 0, 0, WIDTH, HEIGHT, partly=True)
    for _ in range(15):
        (x0, x1), (y0, y1) = np.sort(g.choice(WIDTH, 2, False)), np.sort(g.choice(HEIGHT, 2, False))
        inside = np.zeros(ids.shape, bool)
        inside[y0:y1, x0:x1] = True
        wanted = [o for o in seen if 2 * (inside & (ids == o.id)).sum() > (ids == o.id).sum()]
        assert seg.in_rect(view, x0, y0, x1, y1) == wanted
        for corners in ((x0, y0, x1, y1), (x0 - 0.4, y0 + 0.4, x1 + 0.3, y1 - 0.4)):  # centres count
            found = seg.in_rect(view, *corners, partly=True)
            assert found == [o for o in seen if (inside & (ids == o.id)).any()]


def test_masks_find_what_they_are_of(seg):
    view = NAMES[2]
    for node in range(1, seg.hierarchy.n_nodes + 1):
        mask = seg[node].mask(view)
        found = seg.from_mask(view, mask)
        assert found.mask(view).sum() == mask.sum() and (found.mask(view) == mask).all()
        assert len(found) == 1
    two = seg.select(1, 4).mask(view)
    assert seg.from_mask(view, two).ids == (1, 4)
    assert seg.from_mask(view, seg.select(1, 2).mask(view)).ids == (WHOLE,)
    sky = seg.masks([view])[0] == 0
    assert not seg.from_mask(view, sky) and seg.from_mask(view, sky).object is None
    shifted = np.roll(seg[5].mask(view), 1, axis=1)
    assert seg.from_mask(view, shifted.astype(np.uint8)).ids == (5,)  # what fits best, if not to the pixel


def test_objects_that_look_alike_are_found(seg):
    match = seg.similar(1, k=3)
    assert len(match) == 3 and {m.by for m in match} == {"looks"} and 1 not in [m.object.id for m in match]
    dyed = seg.splats.sh.clone()
    dyed[seg[5].indices] = dyed[seg[2].indices][:1]
    dyed = replace(seg, splats=replace(seg.splats, sh=dyed))
    best = dyed.similar(dyed[2])[0]
    assert best.object.id == 5 and 0.9 < best.score <= 1
    assert len(dyed.similar(2, k=99)) == len(seg) - 1


def test_likeness_by_hand():
    """White, black and half as large; and one that is half white and half black, as large and turned."""
    box = torch.tensor(list(itertools.product((0.0, 1), (0.0, 2), (0.0, 3))))
    means = torch.cat([box, box + 5, 0.5 * box - 5, box[:, [2, 0, 1]] - 9])
    color = torch.cat([torch.tensor([1.0, 0, 1]).repeat_interleave(8), torch.tensor([0.0, 1]).repeat(4)])
    splats = Splats(means, torch.eye(4)[:1].expand(32, 4), torch.full((32, 3), -3.0), torch.zeros(32),
                    rgb_to_sh_dc(color[:, None, None].expand(32, 1, 3)))  # fmt: skip
    made = Segmentation(splats, np.repeat([1, 2, 3, 4], 8).astype(np.int32), np.ones(32, np.float32))
    scores = {m.object.id: m.score for m in made.similar(1)}
    assert scores == pytest.approx({3: 0.75, 4: 1 - math.hypot(0.5, 0.5) / 2, 2: 0.5}, abs=1e-6)
    heavy = splats.logit_opacities.clone()
    heavy[24:][color[24:] == 0] = -30.0  # what is not seen has no say
    opaque = replace(made, splats=replace(splats, logit_opacities=heavy))
    assert {m.object.id: m.score for m in opaque.similar(1)}[4] == pytest.approx(1, abs=1e-6)


def test_objects_are_meant_by_name_too(seg):
    named = seg.rename(5, "red mug").rename(2, "book")
    assert named["red mug"] == named[5] and named.select("book", 5).ids == (2, 5)
    assert [m.object.id for m in named.similar("book")] == [m.object.id for m in named.similar(2)]
    assert 5 not in named.remove("red mug", halo=False).ids and named.keep("book").ids.tolist() == [2]
    assert "red mug" in named and "mug" not in named and "book" in named.select(2) and "book" not in named.select(5)
    cafe = named.rename(7, " cafe\u0301 ")
    assert cafe["caf\u00e9"] == cafe["cafe\u0301"] == cafe[7]
    with pytest.raises(InputError, match=r"no object is called 'mug': the names are book, red mug; give one of these"):
        _ = named["mug"]
    with pytest.raises(InputError, match=r"2 objects are called 'book', 2, 5; give an id"):
        _ = named.rename(5, "book")["book"]
    with pytest.raises(InputError, match=r"segments have whole numbers as ids, got 1\.5"):
        _ = named[1.5]


# ---- words


class Colors:
    """A model that knows colours: an image is its mean colour, a text one of the clumps' colours."""

    def __init__(self, name="colors"):
        self.name, self.images = name, 0

    def encode_text(self, texts):
        words = {"red": 0, "green": 1, "blue": 2, "yellow": 3, "magenta": 4, "cyan": 5}
        return np.array([COLORS[words[t]] - 0.5 for t in texts])

    def encode_images(self, images):
        self.images += len(images)
        assert all(i.dtype == np.uint8 and i.ndim == 3 and i.shape[2] == 3 for i in images)
        return np.array([np.mean(i.reshape(-1, 3)[(i.reshape(-1, 3) != 127).any(1)] / 255, 0) - 0.5 for i in images])


@pytest.mark.parametrize("photos", [False, True])
def test_words_find_what_they_mean(tmp_path, photos):
    grey = family()
    shown = {view: grey.render(view)[..., ::-1] for view in NAMES}  # photos whose red and blue are the other way round
    seg = family(folder=tmp_path, read_photo=shown.get if photos else None)
    model = Colors()
    for word, i in (("red", 3), ("blue", 1)) if photos else (("red", 1), ("blue", 3), ("yellow", 4), ("cyan", 6)):
        match = seg.find(word, k=2, model=model)
        assert match[0].object.id == i and match[0].score > match[1].score and match[0].by == "colors"
    assert 2 * len(seg) < model.images <= 3 * len(seg)


def test_words_look_at_what_an_edit_has_left(tmp_path):
    """Photos do not show it any more, and what was found out about them does not hold."""
    grey = family()
    photos = {view: grey.render(view) for view in NAMES}
    seg, model = family(folder=tmp_path, read_photo=photos.get), Colors()
    assert seg.find("red", k=1, model=model)[0].object.id == 1
    dyed = seg.recolor(1, (0.1, 0.1, 0.9)).recolor(4, (0.9, 0.1, 0.1))
    assert dyed.find("red", k=1, model=model)[0].object.id == 4
    again = dyed.recolor(4, (0.1, 0.9, 0.1)).recolor(5, (0.9, 0.1, 0.1))
    assert again.find("red", k=1, model=model)[0].object.id == 5


def test_embeddings_are_kept_until_the_objects_change(tmp_path):
    seg, model = family(folder=tmp_path), Colors("a/b c")
    first = seg.find("green", model=model)
    assert [p.name for p in (tmp_path / "text").iterdir()] == ["a_b_c.npz"]
    asked = model.images
    again = family(folder=tmp_path).find("green", model=model)
    assert [(m.object.id, m.score) for m in again] == [(m.object.id, m.score) for m in first]
    assert model.images == asked
    assert seg.at_level(0.0).find("green", model=model)[0].object.id in (2, WHOLE)
    assert model.images > asked
    asked = model.images
    for data in (b"", b"no zip", (tmp_path / "text/a_b_c.npz").read_bytes()[:-40]):  # what is broken is made again
        (tmp_path / "text/a_b_c.npz").write_bytes(data)
        assert seg.find("green", model=model)[0].object.id == 2
    assert model.images > asked


def test_embeddings_of_renders_give_way_to_those_of_photos(tmp_path):
    shown = {view: family().render(view)[..., ::-1] for view in NAMES}
    model = Colors()
    without, seg = family(folder=tmp_path), family(folder=tmp_path, read_photo=shown.get)
    assert without.find("red", k=1, model=model)[0].object.id == 1
    assert seg.find("red", k=1, model=model)[0].object.id == 3
    asked = model.images
    assert without.find("red", k=1, model=model)[0].object.id == 3  # photos that are gone say more than renders
    assert model.images == asked


def test_without_a_text_model_the_way_to_get_one_is_said(seg, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"pip install 'contrastive-gaussian-clustering\[text\]'"):
        seg.find("a red mug")
    for words in ("", "  ", None, 3):
        with pytest.raises(InputError, match="expected words"):
            seg.find(words, model=Colors())

    class Broken(Colors):
        def encode_images(self, images):
            return np.full((len(images), 3), np.nan)

    class Flat(Colors):
        def encode_text(self, texts):
            return np.ones((1, 5))

    for model in (Broken(), Flat()):
        with pytest.raises(InputError, match="the model colors gave"):
            seg.find("red", model=model)


def test_open_clip_is_called_as_it_wants_to_be(monkeypatch):
    """A stand-in with open_clip's interface: what is passed on, and in which shapes."""
    from types import SimpleNamespace

    from cgc.segmentation.clip import OpenClip

    network = SimpleNamespace(
        eval=lambda: None,
        encode_text=lambda tokens: tokens.float() + 1,
        encode_image=lambda batch: batch.mean(dim=(2, 3)),
    )

    def transform(image):
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()

    calls = []

    def create(name, pretrained, device):
        calls.append((name, pretrained, device))
        if name == "none":
            raise RuntimeError("Model config for none\nnot found")
        return network, None, transform

    fake = SimpleNamespace(
        create_model_and_transforms=create, get_tokenizer=lambda name: lambda texts: torch.zeros(len(texts), 3).long()
    )
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    model = OpenClip("small", "weights")
    assert calls == [("small", "weights", "cpu")] and model.name == "small-weights"
    assert model.encode_text(["a", "b"]).tolist() == [[1, 1, 1]] * 2
    images = [np.full((3 + i, 5, 3), i, np.uint8) for i in range(40)]
    np.testing.assert_allclose(model.encode_images(images), np.repeat(np.arange(40.0)[:, None], 3, 1))
    with pytest.raises(InputError, match=r"could not load none .*Model config for none not found"):
        OpenClip("none")
    for weights, said in (("lost.pt", r"there is no file lost\.pt"), ("", "no weights were named")):
        with pytest.raises(InputError, match=f"{said}; expected a file of weights for small, or the name"):
            OpenClip("small", weights)


@pytest.fixture
def tiny_clip(tmp_path):
    """A network of open_clip's own kind, with random weights in a file."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip, of the extra [text], is not installed")
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = tmp_path / "tiny-of-tests.json"
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(config)
    torch.save(open_clip.create_model(config.stem).state_dict(), tmp_path / "random.pt")
    return config.stem, tmp_path / "random.pt"


def test_open_clip_itself_finds_by_words(seg, tiny_clip):
    model = cgc.OpenClip(*tiny_clip)
    assert model.encode_text(["a red mug", "a book"]).shape == (2, 24)
    images = [np.full((9, 17, 3), 40, np.uint8), np.full((31, 8, 3), 200, np.uint8)]
    embedded = model.encode_images(images)
    assert embedded.shape == (2, 24) and not np.allclose(*embedded)
    found = seg.find("a red mug", k=2, model=model)
    assert len(found) == 2 and found[0].by == model.name == f"{tiny_clip[0]}-random-{sha256(tiny_clip[1])[:8]}"
    assert [m.score for m in found] == [m.score for m in seg.find("a red mug", k=2, model=cgc.OpenClip(*tiny_clip))]
    tiny_clip[1].write_bytes(tiny_clip[1].read_bytes()[:5000])
    for weights in (tiny_clip[1], "unheard-of"):
        with pytest.raises(InputError, match=r"open_clip could not load tiny-of-tests with .*; check the names"):
            cgc.OpenClip(tiny_clip[0], weights)


# ---- runs


def test_a_run_comes_back_as_the_pipeline_has_it(tiny_run):
    before = snapshot(tiny_run)
    seg, wanted = cgc.load(tiny_run), Workspace(open_run(tiny_run), quiet=True).segmentation()
    np.testing.assert_array_equal(seg.labels, wanted.labels)
    np.testing.assert_array_equal(seg.confidences, wanted.confidences)
    np.testing.assert_array_equal(seg.hierarchy.leaves, wanted.hierarchy.leaves)
    assert torch.equal(seg.splats.means, wanted.splats.means) and seg.features.shape == (len(seg.splats), 8)
    rows = json.loads((tiny_run / "segments.json").read_text())["segments"]
    assert seg.table()["best_view"] == [r["best_view"] for r in rows] == [o.best_view for o in seg]
    assert seg.views == sorted(NAMES)
    from cgc.masks.id_maps import read_id_map

    for view, ids in zip(seg.views, seg.masks()):
        stored = read_id_map(tiny_run / f"masks/{view.rsplit('.', 1)[0]}.png")
        np.testing.assert_array_equal(ids, stored)
    assert snapshot(tiny_run) == before  # looking changes nothing


def test_a_sharpened_run_is_shown_as_sharpened(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = cgc.load(run)
    n = len(before.splats)
    origin = np.concatenate([np.arange(n), [5, 6, 7]])
    labels = before.labels[origin]
    splats = before.splats.select(torch.from_numpy(origin))
    made = SharpenedSplats(splats, labels, before.confidences[origin], origin)
    save_sharpened(run, made)
    without_sizes(run)
    after = cgc.load(run)
    assert len(after.splats) == n + 3 and torch.equal(after.features, before.features[torch.from_numpy(origin)])
    np.testing.assert_array_equal(after.labels, labels)
    np.testing.assert_array_equal(after.hierarchy.leaves, before.hierarchy.leaves[origin])
    wrong = [made._replace(origin=origin + 1), made._replace(origin=origin.astype(float)),
             made._replace(labels=labels + 99), made._replace(origin=-origin)]  # fmt: skip
    for broken in wrong:
        save_sharpened(run, broken)
        for read in (cgc.load, lambda folder: Workspace(open_run(folder), quiet=True).segmentation()):
            with pytest.raises(InputError, match=r"sharpened\.npz is (of another clustering|broken).* again"):
                read(run)


def test_cameras_outlive_the_photos(tiny_run, tiny_scene, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    wanted = {v.name: v.camera for v in read_scene(tiny_scene).views}

    def same(found):
        assert list(found) == list(wanted)
        for name, camera in wanted.items():
            assert torch.equal(camera.K, found[name].K) and torch.equal(camera.viewmat, found[name].viewmat)
            assert (camera.width, camera.height) == (found[name].width, found[name].height)

    same(cgc.load(run).context.cameras)
    same(cgc.cameras(run / "cameras.json"))
    same(cgc.cameras(tiny_scene / "sparse/0"))
    (run / "cameras.json").unlink()
    same(cgc.load(run).context.cameras)  # of the scene, as in a run of before cameras were kept
    facts = json.loads((run / "scene.json").read_text())
    bare = tmp_path / "bare"
    shutil.copytree(tiny_scene / "sparse", bare / "sparse")
    (run / "scene.json").write_text(json.dumps({**facts, "scene": str(bare)}))
    same(cgc.load(run).context.cameras)  # of the model alone
    seg = cgc.load(run)
    assert seg.context.read_photo(NAMES[0]) is None and seg.find("red", model=Colors())
    shutil.rmtree(bare)
    gone = cgc.load(run)
    assert len(gone) == len(seg) and gone.at_point(gone[1].centre) is not None  # what needs no camera works
    assert gone.masks([wanted[NAMES[0]]])[0].any() and len(cgc.orbit(gone, 3)) == 3
    with pytest.raises(InputError, match=r"have no cameras any more .*restore the scene, or give a Camera"):
        gone.at_pixel(NAMES[0], 3, 3)
    assert gone[1].best_view in (*NAMES, "") and gone.transform(1, translation=(0, 0, 1))[1].best_view == ""
    assert gone.remove(2).export(tmp_path / "taken", "ply", 1)
    with pytest.raises(InputError, match=r"it needs the scene's cameras; the views of .* have no cameras any more"):
        gone.export(tmp_path / "taken", "masks")
    cameras_kept = Path(shutil.copytree(tiny_run, tmp_path / "other"))  # clustered since: rendering is out of date
    facts = json.loads((cameras_kept / "scene.json").read_text())
    (cameras_kept / "scene.json").write_text(json.dumps({**facts, "scene": str(bare)}))
    stats = json.loads((cameras_kept / "stats.json").read_text())
    del stats["steps"]["render"]
    (cameras_kept / "stats.json").write_text(json.dumps(stats))
    same(cgc.load(cameras_kept).context.cameras)


def test_what_was_saved_takes_the_views_of_its_own_run_alone(own_run, tmp_path):
    seg = cgc.load(own_run)
    (tmp_path / "all").mkdir()
    run = own_run.rename(tmp_path / "all/run")
    inside, beside = cgc.load(run).rename(2, "mug").save(), cgc.load(run).save(tmp_path / "all/beside")
    for folder in (inside, beside):
        assert cgc.load(folder).views == seg.views
    (tmp_path / "all").rename(tmp_path / "moved")
    run, beside = tmp_path / "moved/run", tmp_path / "moved/beside"
    assert cgc.load(run / "edited").views == cgc.load(beside).views == seg.views  # where it lies as it did
    again = cgc.load(beside).save(tmp_path / "again")  # it knows the new place
    assert cgc.load(again).views == seg.views
    run = run.rename(tmp_path / "other")
    for folder in (beside, again):
        gone = cgc.load(folder)
        assert len(gone) == len(seg) and not gone.context.known_cameras
        for ask in (Segmentation.masks, lambda s: s.at_pixel(NAMES[0], 3, 3), lambda s: s.export(tmp_path, "masks")):
            with pytest.raises(InputError, match=r"those of the run .*run, which is not there; put it back as it was"):
                ask(gone)
    assert cgc.load(run / "edited").views == seg.views
    smaller = Path(shutil.copytree(run, tmp_path / "moved/run"))
    config = json.loads((smaller / "config.json").read_text())
    for part, changed, fits in (
        ("scene", {"max_side": 24}, False),
        ("scene", {"test_every": 3}, True),
        ("train", {"background": "white"}, True),
    ):
        (smaller / "config.json").write_text(json.dumps(config | {part: config[part] | changed}))
        found = cgc.load(again)
        assert bool(found.context.known_cameras) is fits
        if not fits:
            with pytest.raises(InputError, match=rf"{smaller} has other cameras, or is broken; .*or save again from"):
                found.camera(NAMES[0])
    facts = json.loads((again / "segmentation.json").read_text())
    del facts["source"]["fingerprint"]
    (again / "segmentation.json").write_text(json.dumps(facts))
    assert cgc.load(again).views == seg.views  # saved before runs could be told apart


def test_views_that_no_run_has_rendered_are_counted(seg):
    for node in (1, 3, 9, WHOLE):
        areas = [int(seg[node].mask(view).sum()) for view in NAMES]
        assert seg[node].best_view == NAMES[int(np.argmax(areas))]  # these views are small enough to be counted as is
    assert Segmentation(seg.splats, seg.labels, seg.confidences)[1].best_view == ""
    told = family(read_best_views=lambda: {1: "told"}, hierarchy=seg.hierarchy)
    assert told[1].best_view != "told"  # of another hierarchy: the objects have changed since
    assert replace(told, hierarchy=seg.hierarchy)[1].best_view == "told"


@pytest.mark.parametrize("size", [(48, 36), (96, 72), (31, 23)])
def test_cameras_of_a_model_are_those_of_the_scene(tiny_scene, size):
    from cgc.settings import SceneSettings

    for settings_ in (SceneSettings(), SceneSettings(downscale=2), SceneSettings(max_side=20)):
        sizes = {name: (48, 36) for name in NAMES}
        found = read_cameras(tiny_scene, settings_, sizes)
        for view in read_scene(tiny_scene, settings_).views:
            assert torch.equal(view.camera.K, found[view.name].K) and view.camera.width == found[view.name].width
    larger = read_cameras(tiny_scene, None, {name: size for name in NAMES})[NAMES[0]]
    assert (larger.width, larger.height) == size
    with pytest.raises(InputError, match="had not before"):
        read_cameras(tiny_scene, None, {NAMES[0]: size})


def test_cameras_come_back_to_the_bit(tmp_path):
    before = dict(zip(NAMES, cameras()))
    write_cameras(tmp_path / "cameras.json", before)
    after = read_camera_file(tmp_path / "cameras.json")
    assert list(after) == list(before)
    assert all(torch.equal(before[n].viewmat, after[n].viewmat) and torch.equal(before[n].K, after[n].K) for n in after)


def test_an_attribute_that_is_one_number_is_said(own_run):
    np.savez(own_run / "extras.npz", age=np.array(3))
    with pytest.raises(InputError, match="has values of 'age' of 1 Gaussians for"):
        cgc.load(own_run)


@pytest.mark.parametrize("change", [
    lambda v: [], lambda v: {**v, "format": 2}, lambda v: {**v, "views": 3}, lambda v: {"views": []},
    lambda v: {**v, "views": [{**v["views"][0], "K": [[1, 2], [3, 4]]}]},
    lambda v: {**v, "views": [{**v["views"][0], "K": [[1, 2], [3]]}]},
    lambda v: {**v, "views": [{**v["views"][0], "K": None}]},
    lambda v: {**v, "views": [{**v["views"][0], "viewmat": [[1e999] * 4] * 4}]},
    lambda v: {**v, "views": [{**v["views"][0], "width": 0}]},
    lambda v: {**v, "views": [{**v["views"][0], "height": "7"}]},
    lambda v: {**v, "views": [{"name": "a"}]},
])  # fmt: skip
def test_broken_camera_files_are_said(tmp_path, change):
    path = tmp_path / "cameras.json"
    write_cameras(path, dict(zip(NAMES, cameras())))
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=r"cameras\.json is broken .*; remove it, or render again"):
        read_camera_file(path)


def test_runs_that_cannot_be_opened_are_said(tiny_run, tmp_path):
    with pytest.raises(
        InputError, match="is no run folder: there is no such folder; `cgc run SCENE --out DIR` makes one"
    ):
        cgc.load(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        cgc.load(tmp_path)
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / "segments.npz").rename(tmp_path / "labels")
    with pytest.raises(InputError, match=r"has no segments\.npz yet: run `cgc cluster"):
        cgc.load(run)
    (tmp_path / "labels").rename(run / "segments.npz")
    whole = (run / "features.safetensors").read_bytes()
    for data in (b"", whole[:50], whole[:-9]):
        (run / "features.safetensors").write_bytes(data)
        with pytest.raises(InputError, match="run `cgc lift"):
            cgc.load(run)
    (run / "features.safetensors").write_bytes(whole)
    few = cgc.load(run)
    without_sizes(run)
    save_file({"features": few.features[:9].clone(), "mass": torch.ones(9)}, run / "features.safetensors")
    with pytest.raises(InputError, match=r"has features of 9 Gaussians for \d+: they are of different trainings"):
        cgc.load(run)
    (run / "features.safetensors").write_bytes(whole)
    write_ply(run / "splats.ply", few.splats.select(torch.arange(9)))
    without_hashes(run)
    with pytest.raises(InputError, match="for 9: they are of different trainings"):
        cgc.load(run)


def without_hashes(run):
    """Make a run one of before hashes of splats were kept."""
    opened = open_run(run)
    for name in ("splats_sha256", "sharpened_sha256"):
        opened.stats.pop(name, None)
    opened.stats["steps"] = {step: opened.key(step) for step in opened.stats["steps"]}
    write_json(run / "stats.json", opened.stats)


@pytest.mark.parametrize(("name", "step"), [("splats.ply", "train"), ("sharpened.ply", "sharpen")])
def test_labels_are_not_shown_on_splats_that_have_changed(own_run, name, step):
    """As many of them in another order, say: every label would be another Gaussian's."""
    if name == "sharpened.ply":
        run_step(own_run, "sharpen", quiet=True, sharpen=SharpenSettings(steps=2, max_loss=99.0))
    wanted, path = cgc.load(own_run), own_run / name
    whole = path.read_bytes()
    write_ply(path, wanted.splats.select(torch.arange(len(wanted.splats)).flip(0)))
    said = rf"{name} is not the file that the run's labels are of: .* \(`cgc {step} .*--splats"
    for read in (cgc.load, lambda folder: Workspace(open_run(folder), quiet=True).segmentation()):
        with pytest.raises(InputError, match=said):
            read(own_run)
    changed = path.read_bytes()
    path.write_bytes(whole)
    first = own_run / "splats.ply"  # which a sharpened run's exported labels are of
    other = first.read_bytes()
    write_ply(first, (them := read_ply(first)).select(torch.arange(len(them)).flip(0)))
    with pytest.raises(InputError, match=r"splats\.ply is not the file that the run's labels are of"):
        cgc.load(own_run)
    first.write_bytes(other)
    assert torch.equal(cgc.load(own_run).splats.means, wanted.splats.means)  # put back, it opens again
    path.write_bytes(changed)
    without_hashes(own_run)
    assert torch.equal(cgc.load(own_run).splats.means, wanted.splats.means.flip(0))  # nobody knows of an older one


# ---- around


def test_orbits_go_around_and_see_all_of_it(seg):
    for around in (seg, seg[3], seg.select(1, 4)):
        circle = cgc.orbit(around, 7, width=90, height=60)
        eyes = np.stack([c.position.numpy() for c in circle])
        means = seg.splats.means[torch.from_numpy(np.flatnonzero(seg.labels > 0) if around is seg else around.indices)]
        box = oriented_box(means.numpy())
        radii = np.linalg.norm(eyes - box.centre, axis=1)
        np.testing.assert_allclose(radii, radii[0], rtol=1e-4)
        steps = np.linalg.norm(np.roll(eyes, 1, 0) - eyes, axis=1)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
        assert np.ptp(eyes[:, 2]) < 0.05 * radii[0] and (eyes[:, 2] > box.centre[2]).all()  # the views' up is z
        for camera in circle:
            p = torch.from_numpy(box.corners).float() @ camera.viewmat[:3, :3].T + camera.viewmat[:3, 3]
            xy = (p @ camera.K.T)[:, :2] / p[:, 2:]
            assert (p[:, 2] > 0).all() and (xy > 0).all() and (xy < torch.tensor([90, 60])).all()
    one = select_rows(seg.keep(1), np.array([0]))
    [camera] = cgc.orbit(one, 1, width=96, height=96)  # a Gaussian alone has no size of its own
    assert (one.render(camera, "rgb")[[0, -1]] == 0).all() and one.render(camera, "rgb").any()
    sideways = cgc.orbit(seg[1], 4, up=(1, 0, 0), distance=5, elevation=0)
    np.testing.assert_allclose([c.position[0] for c in sideways], seg[1].box.centre[0], atol=1e-5)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"width": 0}, {"distance": float("nan")}, {"up": (0, 0, 0)},
                                   {"up": (1, 2)}, {"elevation": float("inf")}, {"focal": -3.0}, {"distance": -1.0},
                                   {"n": 2.5}, {"height": 9.5}, {"up": "z"}, {"focal": 0}, {"distance": 0},
                                   ])  # fmt: skip
def test_orbits_that_cannot_be_made_are_said(seg, wrong):
    with pytest.raises(InputError):
        cgc.orbit(seg, **wrong)
    with pytest.raises(InputError, match="nothing to go around"):
        cgc.orbit(seg.select())


# ---- bad input


NAN = float("nan")


def look_from(eye, to=(0, 0, 0), width=8, **more):
    return cgc.Camera.look_at(eye, to, width=width, height=6, **more)


def view():
    return cameras()[0]


def other(**changed):
    """A view's camera with a matrix of another convention."""
    return replace(view(), **changed)


@pytest.mark.parametrize("call, said", [
    (lambda s: s[99], "there is no segment 99: the ids that hold Gaussians are 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12$"),
    (lambda s: s.remove(4, halo=False)[4], "there is no segment 4: the ids that hold Gaussians are 1, 2, 3, 5, 6"),
    (lambda s: s[0], "there is no segment 0"),
    (lambda s: s[-1], "there is no segment -1"),
    (lambda s: s["7"], "no object is called '7': none has a name yet; give an id"),
    (lambda s: s[1.5], "whole numbers as ids, got 1.5"),
    (lambda s: s.select(1, 40), "there is no segment 40"),
    (lambda s: s.similar(77), "there is no segment 77"),
    (lambda s: s.similar(1, k=0), "k is 0 where a whole number over 0 was expected"),
    (lambda s: s.camera("a_view_3"), "no view 'a_view_3' among the 10 of this run; did you mean a_view_.*"),
    (lambda s: s.at_pixel("zzz", 1, 1), "no view 'zzz' among the 10 of this run; the views are a_view_00.png"),
    (lambda s: s.at_pixel(3, 1, 1), "expected a Camera or the name of a view, got int"),
    (lambda s: s.at_pixel(NAMES[0], 48, 3), r"pixel \(48, 3\) is outside of the image; expected x in 0 to 47 and"),
    (lambda s: s.at_pixel(NAMES[0], 3, -1), r"pixel \(3, -1\) is outside of the image"),
    (lambda s: s.at_pixel(NAMES[0], NAN, 1), r"a pixel \(x, y\) of 2 finite numbers was expected, got \(nan, 1\)"),
    (lambda s: s.at_pixel(NAMES[0], "a", 1), r"a pixel \(x, y\) of 2 finite numbers was expected, got \('a', 1\)"),
    (lambda s: s.at_pixels(NAMES[0], []), "at least one positive click"),
    (lambda s: s.at_pixels(NAMES[0], [(1, 2, 3)]), r"of 2 finite numbers was expected, got \(1, 2, 3\)"),
    (lambda s: s.at_point([NAN, 0, 0]), r"a point \(x, y, z\) of 3 finite numbers was expected, got \[nan, 0, 0\]"),
    (lambda s: s.at_point([1, 2]), r"a point \(x, y, z\) of 3 finite numbers was expected, got \[1, 2\]"),
    (lambda s: s.along_ray([0, 0, 0], [0, 0, 0]), "direction of a ray has length 0"),
    (lambda s: s.along_ray([0, 0, NAN], [0, 0, 1]), r"the origin of a ray \(x, y, z\) of 3 finite numbers"),
    (lambda s: s.in_box([0, 0, 0], [1, -1, 1]), r"the box from .* is empty; give the lower corner first"),
    (lambda s: s.in_box([0, 0, NAN], [1, 1, 1]), "the low corner of a box"),
    (lambda s: s.in_rect(NAMES[0], 5, 5, 5, 9), "the rectangle .* is empty"),
    (lambda s: s.in_rect(NAMES[0], 50, 0, 60, 9), "is outside of the image, which is 48x36"),
    (lambda s: s.from_mask(NAMES[0], np.ones((48, 36))), "the mask is 36x48 but the view is 48x36"),
    (lambda s: s.from_mask(NAMES[0], np.zeros((36, 48))), "the mask is empty"),
    (lambda s: s.render(NAMES[0], "colour"), "what='colour' cannot be rendered; expected one of rgb, segments"),
    (lambda s: s.render([]), "got no camera at all"),
    (lambda s: s.render([s.camera(NAMES[0]), s.camera(NAMES[0]).resized(9, 9)]), "need one size, got 9x9 and 48x36"),
    (lambda s: s.at_level(2), "level 2 is outside of the hierarchy"),
    (lambda s: s.at_level("fine"), "level fine is outside of the hierarchy"),
    (lambda s: s.render(7), "expected a Camera or the name of a view, got int"),
    (lambda s: s.masks(NAMES[0]), "give a list, of one where it is one"),
    (lambda s: s.camera(7), "expected the name of a view, got 7"),
    (lambda s: s.keep("mug"), "no object is called 'mug'"),
    (lambda s: s.keep(1.5), "whole numbers as ids, got 1.5"),
    (lambda s: s.remove(True), "whole numbers as ids, got True"),
    (lambda s: s.remove(None), "whole numbers as ids, got None"),
    (lambda s: s.merge([1, 2]), r"got \[1, 2\]; give ids or objects one by one"),
    (lambda s: s.remove(s.select(1, 2)), r"got Selection\(ids=\(1, 2\)\); .* with a star"),
    (lambda s: s.split("mug", 2), "no object is called 'mug'"),
    (lambda s: s.rename("mug", "cup"), "no object is called 'mug'"),
    (lambda s: s.rename(1, 5), "a name of up to 200 printable characters was expected, got 5"),
    (lambda s: s.export("out", "turntable", ["mug"]), "no object is called 'mug'"),
    (lambda s: s.transform(1, scale="2"), "a scale over 0 was expected, got '2'"),
    (lambda s: s.transform(1, translation="up"), "a translation .* was expected, got 'up'"),
    (lambda s: s.transform(1, rotation="z"), "a rotation .* was expected, got 'z'"),
    (lambda s: replace(s, splats=replace(s.splats, features=None)).render(NAMES[0], "features"), "has no features"),
    (lambda s: Segmentation(s.splats, s.labels, s.confidences).views, "has no views of its own; give a Camera"),
    (lambda s: cgc.cameras("/nowhere/at/all"), "there is no such folder"),
    (lambda s: s.split([1, 2]), r"whole numbers as ids, got \[1, 2\]"),
    (lambda s: s.rename([1, 2], "x"), r"whole numbers as ids, got \[1, 2\]"),
    (lambda s: s.paint(NAMES[0], np.ones((36, 48)), [1, 2]), r"whole numbers as ids, got \[1, 2\]"),
    (lambda s: s.at_level(1.0).paint(NAMES[0], np.ones((36, 48)), 3), "3 cannot be painted: it is not shown at this"),
    (lambda s: s.export("out", "labels", 3.0), "whole numbers as ids, got 3.0"),
    (lambda s: s.export("x" * 300, "labels"), "cannot be a folder .*too long"),
    (lambda s: s.save("x" * 300), "cannot be a folder .*too long"),
    (lambda s: s.save("a\0b"), "cannot be a folder .*null"),
    (lambda s: s.masks(5), "a list of views or cameras was expected, got 5"),
    (lambda s: s.render(NAMES[0], ["rgb"]), r"what=\['rgb'\] cannot be rendered"),
    (lambda s: s.at_pixels(NAMES[0], None), "clicks are lists of pixels"),
    (lambda s: cgc.orbit(s[1], focal="wide"), "focal length are numbers, got 'wide'"),
    (lambda s: s.masks([Camera(torch.eye(4)[:3], torch.eye(3), 4, 3)]), r"a 3x3 matrix, got \[3, 4\] and \[3, 3\]"),
    (lambda s: s.masks([Camera("a", torch.eye(3), 4, 3)]), "a 4x4 and a 3x3 matrix of numbers"),  # pyright: ignore
    (lambda s: s.masks([Camera(torch.eye(4), torch.eye(3), 0, 3)]), "a picture of 0x3 cannot be made"),
    (lambda s: s.masks([Camera(torch.eye(4), torch.eye(3), 10**9, 3)]), "a picture of 1000000000x3 cannot be made"),
    (lambda s: s.masks([Camera(torch.eye(4), 0 * torch.eye(3), 4, 3)]), "focal lengths must be over 0, got 0 and 0"),
    (lambda s: s.masks([Camera(NAN * torch.eye(4), torch.eye(3), 4, 3)]), "must be finite"),
    (lambda s: s.render(other(viewmat=view().viewmat.T)), "row of a camera's viewmat is .* transposed or scaled; "),
    (lambda s: s.masks([other(viewmat=view().viewmat + 1)]), "last row of a camera's viewmat is 1 1 1 2: .* 0 0 0 1"),
    (lambda s: s.at_pixel(other(viewmat=view().viewmat * torch.tensor([[2.0]] * 3 + [[1]])), 1, 1), "R is 8; .*OpenCV"),
    (lambda s: s.render(other(viewmat=torch.diag(torch.tensor([-1.0, 1, 1, 1])) @ view().viewmat)), "det R is -1; .*"),
    (lambda s: s.render(other(viewmat=torch.eye(4) + torch.eye(4).roll(1) * 0.1)), "sheared"),
    (lambda s: s.render(other(K=view().K.T)), "the rows of a camera's K are .* 0 0, 0 .* 0, 24 18 1: it may be transp"),
    (lambda s: s.render(other(K=view().K + torch.tensor([[0, 5.0, 0], [0, 0, 0], [0, 0, 0]]))), "the rows of .*K are"),
    (lambda s: s.render(other(K=view().K / torch.tensor([[48.0], [36], [1]]))), "focal lengths 1.* for a picture of"),
    (lambda s: s.render(other(K=view().K * torch.tensor([[20.0], [20], [1]]))), "principal point 480, 360 came for"),
    (lambda s: cgc.orbit(7), "an orbit goes around an object, a selection or a segmentation, got 7"),
    (lambda _: look_from((1, 2, 3), to=(1, 2, 3)), "give two places"),
    (lambda _: look_from((1, 2, 3), up=(0, 0, 0)), "an up that is not 0"),
    (lambda _: look_from((1, NAN, 3)), r"eye \(x, y, z\) of 3 finite numbers was expected, got \(1, nan, 3\)"),
    (lambda _: look_from((1, 3)), r"eye .* was expected, got \(1, 3\)"),
    (lambda _: look_from("abc"), "eye .* was expected, got 'abc'"),
    (lambda s: cgc.orbit(s[1], up=(0, 0, 0)), r"the up direction \[0.0, 0.0, 0.0\] has length 0"),
    (lambda s: cgc.orbit(s[1], up="z"), "an up direction .* was expected, got 'z'"),
    (lambda _: look_from((1, 2, 3), width=0), "a picture of 0x6 cannot be made"),
    (lambda _: look_from((1, 2, 3), width=8.5), "a picture of 8.5x6 cannot be made"),
    (lambda _: look_from((1, 2, 3), focal=0), "a focal length over 0 was expected, in pixels, got 0"),
])  # fmt: skip
def test_bad_input_is_said_in_a_sentence(seg, call, said):
    with pytest.raises(InputError, match=said) as caught:
        call(seg)
    assert "\n" not in str(caught.value)


def test_cameras_that_may_be_meant_are_taken(seg):
    """Off-axis tiles of a picture, wide lenses, poses of few digits: what could be meant so is drawn."""
    camera = seg.camera(NAMES[0])
    wanted = seg.masks([camera])[0]
    shifted = camera.K - torch.tensor([[0, 0, 40.0], [0, 0, 30], [0, 0, 0]])
    np.testing.assert_array_equal(seg.masks([Camera(camera.viewmat, shifted, 8, 6)])[0], wanted[30:36, 40:48])
    few = camera.viewmat.double().numpy().round(3)
    assert (seg.masks([Camera(few, camera.K, 48, 36)])[0] == wanted).mean() > 0.95  # pyright: ignore
    wide = camera.K * torch.tensor([[0.1], [0.1], [1]]) + torch.tensor([[0, 0, 21.6], [0, 0, 16.2], [0, 0, 0]])
    assert seg.masks([Camera(camera.viewmat, wide, 48, 36)])[0].any()
    seg.masks([Camera(torch.eye(4), torch.eye(3), 8, 6)])


def test_one_format_of_one_object_needs_no_list(seg, tmp_path):
    assert [1, 2] not in seg
    for which in (2, seg[2], seg.ids[1]):
        assert seg.export(tmp_path, "labels", which) == [tmp_path / "labels.npy"]
        assert set(np.load(tmp_path / "labels.npy").tolist()) == {-1, 2}


def test_views_go_by_their_stems_where_that_is_clear(seg):
    assert seg.camera("a_view_03") is seg.camera("a_view_03.png") and seg.camera("sub/view_04") is not None
    twins = Context(read_cameras=lambda: {"a.jpg": cameras()[0], "a.png": cameras()[1]})
    with pytest.raises(InputError, match=r"did you mean a\.jpg or a\.png"):
        twins.camera("a")


# ---- the package


def test_importing_cgc_imports_nothing_heavy():
    code = (
        "import sys, cgc; assert cgc.InputError; heavy = {'torch', 'numba', 'numpy', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy; assert set(cgc.__all__) <= set(dir(cgc))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(cgc, name) for name in cgc.__all__) and cgc.Camera is Camera
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        getattr(cgc, "lode")  # noqa: B009


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools is of before numpy 2
@pytest.mark.parametrize(("page", "least"), [("api.md", 25), ("examples.md", 15)])
def test_the_examples_of_the_documentation_run(tiny_run, tiny_scene, tmp_path, monkeypatch, page, least):
    (tmp_path / "runs").mkdir()
    shutil.copytree(tiny_run, tmp_path / "runs/tiny")
    shutil.copytree(tiny_scene / "sparse", tmp_path / "sparse")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8").replace("```", "")
    test = doctest.DocTestParser().get_doctest(text, {"np": np}, page, f"docs/{page}", 0)
    assert len(test.examples) > least
    monkeypatch.setattr(kernels, "_quiet", True)  # who compiles them first is told so
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
        test, out=said.append
    )
    assert result.failed == 0, "".join(said)
