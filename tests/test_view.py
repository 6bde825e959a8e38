"""The viewers: pictures, cameras, the state and its edits, the probe's sentences, a real window and a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import CLUMPS, HEIGHT, NAMES, WIDTH, clumps

import cgc.view.web as web
from cgc.api import load
from cgc.errors import InputError
from cgc.geometry import quat_to_rotation
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.segmentation.export import export, job_of
from cgc.segmentation.segmentation import Segmentation
from cgc.splats.ply import read_ply
from cgc.view import probe
from cgc.view.actions import ACTIONS, BY_KEY, BY_NAME, Desk
from cgc.view.frames import (
    ACCENT,
    BACKGROUND,
    MODES,
    Extras,
    colors_of,
    frame,
    outline,
    part_of,
    screenshot,
    thumbnail,
)  # fmt: skip
from cgc.view.pictures import number
from cgc.view.ramps import NEAR_TO_FAR, ramp
from cgc.view.shots import (
    around,
    camera_named,
    clip_segment,
    fit,
    focus,
    from_gl,
    from_pose,
    parse_size,
    project,
    ray,
    vertical_fov,
)  # fmt: skip
from cgc.view.state import State

FIRST = NAMES[0]
ROOT = Path(__file__).parent


def family(**context) -> Segmentation:
    """The scene of the query API's tests: 1 and 2 are the whole 8, 3 has the parts 9 and 10, 10 the parts 11 and 12."""
    import test_api

    return test_api.family(**context)


@pytest.fixture(scope="module")
def seg() -> Segmentation:
    return family()


@pytest.fixture
def state(seg) -> State:
    return State(seg, seg.camera(FIRST))


def pixels(path: Path) -> np.ndarray:
    """A picture of a file, [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def spot(state: State, node: int) -> tuple[int, int]:
    """A pixel that shows a node."""
    y, x = np.argwhere(state.shown[node].mask(state.camera)).mean(axis=0).astype(int)
    if state.shown.at_pixel(state.camera, x, y) != state.shown[node]:
        y, x = np.argwhere(state.shown.masks([state.camera])[0] == node)[0]
    return int(x), int(y)


# ---- pictures


def press(desk: Desk, key: str) -> str:
    """Do what a key stands for; return the line that is shown."""
    return desk.run(BY_KEY[key])


def test_a_picture_in_colour_is_what_the_segmentation_renders_and_every_mode_shows_something_else(seg):
    camera = seg.camera(FIRST)
    made = {mode: frame(seg, camera, mode) for mode in MODES}
    np.testing.assert_array_equal(made["color"], seg.render(camera, "rgb"))
    assert all(p.shape == (HEIGHT, WIDTH, 3) and p.dtype == np.uint8 and p.std() > 5 for p in made.values())
    assert len({p.tobytes() for p in made.values()}) == len(MODES)


def test_what_is_near_is_brighter_in_depth_and_what_is_not_there_is_the_background(seg):
    camera = seg.camera(FIRST)
    depths, picture = seg.render(camera, "depth"), frame(seg, camera, "depth").astype(float).sum(axis=2)
    hit = depths > 0
    near, far = np.percentile(depths[hit], [10, 90])
    assert picture[hit & (depths < near)].mean() > 200 + picture[hit & (depths > far)].mean()
    assert (frame(seg, camera, "depth")[~hit] == BACKGROUND).all() and (~hit).any()


def test_a_ramp_meets_its_stops_is_straight_between_them_and_ends_at_them():
    n = len(NEAR_TO_FAR)
    np.testing.assert_allclose(ramp(NEAR_TO_FAR, np.linspace(0, 1, n)), NEAR_TO_FAR, atol=1e-3)
    half = ramp(NEAR_TO_FAR, np.array(0.5 / (n - 1)))
    np.testing.assert_allclose(half, (NEAR_TO_FAR[0] + NEAR_TO_FAR[1]) / 2, atol=1e-3)
    np.testing.assert_array_equal(ramp(NEAR_TO_FAR, np.array([-3, 7.0])), NEAR_TO_FAR[[0, -1]])


def test_colours_of_gaussians_are_those_of_their_segments(seg):
    from cgc.segmentation.colors import segment_colors

    made = colors_of(seg, "segments").numpy()
    np.testing.assert_allclose(made * 255, segment_colors(np.maximum(seg.labels, 0)), atol=1e-3)
    sure = colors_of(seg, "confidence").numpy()
    assert np.ptp(sure[seg.labels > 0], axis=0).max() > 0.3 and np.ptp(sure[seg.labels <= 0], axis=0).max() < 1e-6
    with pytest.raises(InputError, match="give a camera"):
        colors_of(seg, "depth")


def test_an_outline_leaves_what_is_inside_and_dims_what_is_outside():
    picture = np.full((40, 60, 3), 200, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:40] = True
    made = outline(picture, mask)
    assert (made[15:25, 25:35] == 200).all() and (made[:5] == 110).all()
    assert (made[9, 20:40] == ACCENT).all() and (made[10, 20:40] == ACCENT).all()
    np.testing.assert_array_equal(outline(picture, np.zeros_like(mask)), picture)


def test_boxes_and_axes_are_drawn_where_they_are(seg):
    camera = fit(seg.camera(FIRST), (240, 180))
    plain = frame(seg, camera)
    boxed = frame(seg, camera, extras=Extras(boxes=[4]))
    changed = np.argwhere((plain != boxed).any(axis=2))[:, ::-1]
    corners = project(camera, seg[4].box.corners)[0]
    assert len(changed) and (changed >= corners.min(axis=0) - 3).all() and (changed <= corners.max(axis=0) + 3).all()
    axes = np.argwhere((plain != frame(seg, camera, extras=Extras(axes=True))).any(axis=2))
    assert len(axes) and (axes[:, 0] > 90).all() and (axes[:, 1] < 90).all()


def test_lines_are_cut_off_in_front_of_the_camera():
    camera = Camera.look_at((0, 0, 0), (1, 0, 0), width=100, height=100)
    ahead, behind = np.array([2, 1, 0.5]), np.array([-2, 1, 0.5])
    whole = clip_segment(camera, ahead, ahead + 1, 0.1)
    np.testing.assert_allclose(whole, project(camera, np.stack([ahead, ahead + 1]))[0])
    cut = clip_segment(camera, ahead, behind, 0.1)
    np.testing.assert_allclose(cut[1], project(camera, np.array([[0.1, 1, 0.5]]))[0][0])
    np.testing.assert_allclose(clip_segment(camera, behind, ahead, 0.1)[::-1], cut)
    assert clip_segment(camera, behind, behind / 2, 0.1) is None


def test_part_of_a_scene_keeps_ids_levels_and_colours(seg):
    kept = np.flatnonzero(seg.labels != 4)
    part = part_of(seg, kept, 1.0)
    np.testing.assert_array_equal(part.labels, seg.at_level(1.0).labels[kept])
    torch.testing.assert_close(part.feature_colors, seg.feature_colors[torch.from_numpy(kept)])
    assert 4 not in part and part.level == 1.0


def test_a_thumbnail_shows_the_object_alone_in_its_colour(seg):
    picture = thumbnail(seg, 3, 48)
    middle = picture[20:28, 20:28].reshape(-1, 3).mean(axis=0)
    assert np.abs(middle - np.array(seg[3].color)).max() < 40 and (picture[0, 0] == BACKGROUND).all()


# ---- cameras


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10**6))
def test_a_fitted_camera_sees_all_that_it_saw_undistorted(width, height, seed):
    g = np.random.default_rng(seed)
    camera = Camera.look_at(g.normal(size=3).tolist(), g.normal(size=3).tolist(), width=48, height=36)
    fitted = fit(camera, (width, height))
    points = g.normal(size=(20, 3)) * 3
    before, after = project(camera, points)[0], project(fitted, points)[0]
    scale = min(width / 48, height / 36)
    np.testing.assert_allclose(
        after, (before - [24, 18]) * scale + [width / 2, height / 2], rtol=1e-3, atol=1e-3 * (1 + np.abs(after).max())
    )
    assert (fitted.width, fitted.height) == (width, height)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_cameras_come_back_from_opengls_matrices_and_from_poses(seed):
    g = np.random.default_rng(seed)
    camera = Camera.look_at(g.normal(size=3).tolist(), g.normal(size=3).tolist(), width=64, height=40, focal=55.0)
    near, far = 0.1, 50.0
    points = g.normal(size=(30, 3)) * 2
    view = np.diag([1, -1, -1, 1.0]) @ camera.viewmat.double().numpy()
    projection = np.zeros((4, 4))  # the textbook's, for a frustum that is symmetric
    projection[0, 0], projection[1, 1] = 2 * 55 / 64, 2 * 55 / 40
    projection[2, 2:] = -(far + near) / (far - near), -2 * far * near / (far - near)
    projection[3, 2] = -1
    back = from_gl(view, projection, (64, 40))
    clip = np.c_[points, np.ones(30)] @ (projection @ view).T
    ndc = clip[:, :2] / clip[:, 3:]
    pixels = (ndc * [1, -1] + 1) / 2 * [64, 40]
    found, z = project(back, points)
    np.testing.assert_allclose(found[z > 0], pixels[z > 0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(back.K, camera.K, rtol=1e-4, atol=1e-3)
    projection[:2, 2] = g.uniform(-0.3, 0.3, 2)  # one that is not
    clip = np.c_[points, np.ones(30)] @ (projection @ view).T
    pixels = (clip[:, :2] / clip[:, 3:] * [1, -1] + 1) / 2 * [64, 40]
    found, z = project(from_gl(view, projection, (64, 40)), points)
    np.testing.assert_allclose(found[z > 0], pixels[z > 0], rtol=1e-3, atol=1e-2)
    quats = torch.from_numpy(g.normal(size=4))
    posed = from_pose(quats.numpy(), np.array([1.0, 2, 3]), math.radians(vertical_fov(camera)), (64, 40))
    torch.testing.assert_close(posed.K, camera.K, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(posed.viewmat[:3, :3].double(), quat_to_rotation(quats).T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(posed.position, torch.tensor([1.0, 2, 3]), rtol=1e-4, atol=1e-4)


def test_a_ray_goes_through_its_pixel():
    camera = Camera.look_at((1, 2, 3), (0, 0, 0), width=48, height=36)
    origin, direction = ray(camera, 10.3, 20.9)
    np.testing.assert_allclose(project(camera, (origin + 2 * direction)[None])[0], [[10.5, 20.5]], atol=1e-4)
    np.testing.assert_allclose(origin, [1, 2, 3], atol=1e-5)


def test_the_circle_goes_through_the_views_and_turns(seg):
    first, half = camera_named(seg, "orbit"), camera_named(seg, "orbit:180")
    assert (first.width, first.height) == (1280, 720) and abs(focus(seg)).max() < 0.01
    np.testing.assert_allclose(first.position, seg.camera(FIRST).position, atol=1e-3)
    np.testing.assert_allclose(half.position[:2], -first.position[:2], atol=1e-3)
    assert seg.masks([fit(first, (64, 48))])[0].any()
    np.testing.assert_allclose(seg.context.up, [0, 0, 1], atol=1e-5)
    near = around(seg[3], 0, (64, 48))
    assert set(np.unique(part_of(seg, seg[3].indices, None).masks([near])[0])) == {0, 3}


def test_a_scene_without_views_is_seen_from_a_circle_around_it():
    splats, labels = clumps()
    bare = Segmentation(splats, labels, np.ones(len(labels), np.float32))
    assert len(np.unique(bare.masks([camera_named(bare, "orbit", (64, 48))])[0])) > CLUMPS
    np.testing.assert_allclose(focus(bare)[:2], 0, atol=0.2)
    state = State(bare, camera_named(bare, "orbit", (32, 24)))
    assert state.view_names == []
    with pytest.raises(InputError, match="no views"):
        state.step_camera(1)


@pytest.mark.parametrize("text", ["", "12", "0x5", "5x0", "axb", "9000x10", "-3x4", "1e3x5", "1280x720x3", "1280 720"])
def test_bad_sizes_are_refused(text):
    with pytest.raises(InputError, match=r"size|side"):
        parse_size(text)


def test_sizes_are_read():
    assert parse_size("1280x720") == parse_size(" 1280 X 720 ") == (1280, 720)


# ---- files


def test_a_screenshot_is_written_and_is_the_frame(seg, tmp_path):
    path = screenshot(seg, tmp_path / "new" / "shot.png", "color", FIRST)
    np.testing.assert_array_equal(pixels(path), frame(seg, seg.camera(FIRST)))
    mine = Camera.look_at((3, 0, 2), (0, 0, 0), width=24, height=18)
    path = screenshot(seg, tmp_path / "mine.png", "color", mine)
    np.testing.assert_array_equal(pixels(path), frame(seg, mine))
    path = screenshot(seg, tmp_path / "b.jpg", "segments", "orbit:30", (64, 36), 1.0, Extras((3,), (3,), True))
    assert pixels(path).shape == (36, 64, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.jpg", "mine.png", "new"]
    plain, camera = frame(seg, seg.camera(FIRST), "segments"), seg.camera(FIRST)
    numbered = frame(seg, camera, "segments", Extras(ids=True))
    np.testing.assert_array_equal(numbered, number(plain, seg.masks([camera])[0]))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"path": "a.gif"}, "end it in .png or .jpg"),
        ({"path": "file/a.png"}, "could not be written"),
        ({"mode": "colour"}, "the modes are color, segments"),
        ({"camera": "a_view_0"}, "did you mean .* or take orbit"),
        ({"camera": "orbit:up"}, "orbit:90"),
        ({"camera": "orbit:nan"}, "orbit:90"),
        ({"size": (0, 5)}, "each side must be from 1"),
        ({"size": (10**6, 5)}, "each side must be from 1"),
        ({"size": "16x12"}, "the size '16x12' is none"),
        ({"size": (1.5, 2)}, r"the size \(1.5, 2\) is none"),
        ({"camera": 7}, "expected a Camera or the name of a view, got int"),
        ({"level": 1.5}, "expected 0"),
        ({"level": math.nan}, "expected 0"),
        ({"extras": Extras(selected=(99,))}, "there is no segment 99"),
    ],
)
def test_bad_screenshots_are_one_sentence(seg, tmp_path, change, says):
    (tmp_path / "file").write_text("")
    given = {"path": "a.png", "camera": FIRST, "size": (16, 12)} | change
    with pytest.raises(InputError, match=says):
        screenshot(seg, tmp_path / given.pop("path"), **given)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_features_that_were_never_learned_are_not_shown(seg):
    bare = replace(seg, splats=replace(seg.splats, features=None))
    with pytest.raises(InputError, match="no features"):
        State(bare, seg.camera(FIRST)).set_mode("features")
    assert {frame(bare, seg.camera(FIRST), m).shape for m in MODES if m != "features"} == {(HEIGHT, WIDTH, 3)}


# ---- the state


def test_a_click_selects_what_the_api_says_and_never_what_is_hidden_or_deleted(state, seg):
    for node, gone in ((1, "hide"), (2, "delete")):
        x, y = spot(state, node)
        assert state.click(x, y) == seg.at_pixel(FIRST, x, y) == seg[node] and state.selected == (node,)
        getattr(state, gone)()
        assert state.selected == () and not state.is_shown(node)
    found = {thing.id for y in range(0, HEIGHT, 3) for x in range(0, WIDTH, 3) if (thing := state.click(x, y))}
    assert found and not found & {1, 2}
    assert state.click(0, 0) is None and state.selected == ()


def test_clicks_add_take_away_and_a_click_on_nothing_lets_go(state):
    state.click(*spot(state, 3))
    state.click(*spot(state, 4), add=True)
    assert state.selected == (3, 4)
    state.click(0, 0, add=True)
    assert state.selected == (3, 4)
    state.click(*spot(state, 3), add=True)
    assert state.selected == (4,)
    state.click(0, 0)
    assert state.selected == ()


def test_a_ray_selects_as_its_pixel_does(state):
    same = 0
    for y in range(1, HEIGHT, 5):
        for x in range(1, WIDTH, 5):
            a = state.click(x, y)
            a = a and a.id
            b = state.click_ray(*ray(state.camera, x, y))
            same += a == (b and b.id)
    assert same >= 0.9 * len(range(1, HEIGHT, 5)) * len(range(1, WIDTH, 5))  # a ray is narrower than a pixel
    with pytest.raises(InputError, match="leads nowhere"):
        state.click_ray((0, 0, 0), (0, 0, 0))


def test_a_part_of_what_is_hidden_can_be_shown_alone_and_a_whole_of_it_too():
    seg = family()
    tree = seg.hierarchy
    whole = next(n for n in range(1, tree.n_nodes + 1) if tree.children(n) and not tree.parent(n))
    part = tree.children(whole)[0]
    state = State(seg, seg.camera(FIRST))
    state.set_level(0.0)
    state.select([whole])
    state.hide()
    state.set_level(1.0)
    state.set_shown(part, True)
    np.testing.assert_array_equal(state.visible, ~tree.holds(whole) | tree.holds(part))
    state.undo()
    state.select([part])
    state.isolate()
    np.testing.assert_array_equal(state.visible, tree.holds(part))
    state.set_shown(whole, True)
    np.testing.assert_array_equal(state.visible, tree.holds(whole))
    state.show_all()
    state.set_shown(part, False)
    state.select([whole])
    state.isolate()
    np.testing.assert_array_equal(state.visible, tree.holds(whole))


def test_what_is_deleted_is_neither_counted_nor_named():
    seg = family()
    tree = seg.hierarchy
    whole = next(n for n in range(1, tree.n_nodes + 1) if tree.children(n) and not tree.parent(n))
    part = tree.children(whole)[0]
    desk = Desk(State(seg, seg.camera(FIRST)), Path("."))
    desk.state.select([part])
    desk.state.delete()
    desk.state.select([whole])
    assert desk.summary.endswith(f": {seg[whole].gaussians - seg[part].gaussians:,} Gaussians")
    with pytest.raises(InputError, match=f"segment {part} is deleted; undo first"):
        desk.state.rename(part, "x")


def test_isolate_shows_the_selection_alone_and_again_the_others(state, seg):
    state.select([3, 5])
    state.isolate()
    np.testing.assert_array_equal(np.flatnonzero(state.visible), seg.select(3, 5).indices)
    assert set(np.unique(state.shown.masks([state.camera])[0])) <= {0, 3, 5}
    state.isolate()
    assert state.visible.all()
    state.set_shown(5, False)
    state.select([5])
    state.isolate()
    assert state.is_shown(5) and not state.is_shown(3)


def test_what_is_done_to_a_whole_is_done_to_its_parts_at_every_level(state, seg):
    state.set_level(0.0)
    assert [o.id for o in state.listed] == [3, 4, 5, 6, 7, 8]
    state.select([8])
    state.hide()
    for level in (None, 0.6, 1.0):
        state.set_level(level)
        shown = set(np.unique(state.shown.labels).tolist())
        assert not shown & {1, 2, 8} and [o.id for o in state.listed][:2] == ([1, 2])
    assert {9, 11, 12} <= shown and 3 not in shown
    np.testing.assert_array_equal(
        state.shown.masks([state.camera])[0],
        part_of(seg.at_level(1.0), np.flatnonzero(state.visible), 1.0).masks([state.camera])[0],
    )
    with pytest.raises(InputError, match="expected 0"):
        state.set_level(2.0)


def test_levels_are_stepped_through_from_end_to_end(state, seg):
    seen = [state.level_shown]
    for _ in range(6):
        state.step_level(1)
        seen.append(state.level_shown)
    assert seen == sorted(seen) and seen[-1] == 1 and len(set(np.round(seen, 3))) == len(seg.hierarchy.stops) - 1
    for _ in range(6):
        state.step_level(-1)
    assert state.level_shown == pytest.approx(float(seg.hierarchy.stops[0]))


def test_a_scene_of_blended_features_has_one_level():
    state = State(family(blended=True), family().camera(FIRST))
    with pytest.raises(InputError, match="no levels"):
        state.set_level(1.0)
    state.set_level(None)
    state.select([4])
    state.delete()
    assert 4 not in np.unique(state.shown.masks([state.camera])[0])


def test_what_is_hidden_of_blended_features_is_not_clicked():
    """Some of what is left has features like those of what is hidden."""
    seg = family(blended=True)
    features = seg.features.clone()
    features[torch.from_numpy(seg.labels == 4)] = torch.eye(16)[5]
    seg = replace(seg, splats=replace(seg.splats, features=features))
    state = State(seg, seg.camera(FIRST))
    state.select([5])
    state.hide()
    shown = state.shown.masks([state.camera])[0]
    assert 5 not in shown and (shown == 4).any()
    for y, x in np.argwhere(shown == 4)[::5].tolist():
        state.shown.kept_maps.clear()
        assert (picked := state.click(x, y)) and picked.id == 4


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["hide", "isolate", "delete", "show_all", "undo", "redo", "rename", "toggle"]),
        st.sets(st.sampled_from(range(1, 13)), max_size=3),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(OPERATIONS)
def test_any_edits_agree_with_a_slow_reference_and_can_be_undone(operations):
    seg = SHARED
    state = State(seg, seg.camera(FIRST))
    history = [state.edits]
    for name, ids in operations:
        alive = [i for i in ids if state.alive[seg.members(i)].any()]
        state.select(alive)
        if name == "rename":
            if 3 in alive:
                state.rename(3, f"name {len(history)}")
        elif name == "toggle":
            state.set_shown(4, not state.is_shown(4))
        else:
            getattr(state, name)()
        edits = state.edits
        for g in range(0, len(seg.splats), 7):  # slow reference: one Gaussian at a time
            of = {i for i in range(1, 13) if seg.hierarchy.holds(i)[g]}
            assert state.alive[g] == (not of & edits.deleted)
            shown = state.alive[g] and not of & edits.hidden and (not edits.isolated or bool(of & edits.isolated))
            assert state.visible[g] == shown
        assert all(state.alive[seg.members(i)].any() for i in state.selected)
        history.append(edits)
    while state.redo():
        pass
    last, undone = state.edits, 0
    while state.undo():
        undone += 1
    assert state.edits == history[0] and state.visible.all()
    for _ in range(undone):
        assert state.redo()
    assert state.edits == last and not state.redo()


SHARED = family()


def test_an_edit_after_an_undo_forgets_what_was_undone(state):
    state.select([3])
    state.delete()
    assert state.undo() and state.is_shown(3)
    state.select([4])
    state.hide()
    assert not state.redo() and state.is_shown(3) and not state.is_shown(4)
    state.show_all()
    assert state.is_shown(4) and state.undo() and not state.is_shown(4)


def test_what_is_isolated_and_then_deleted_gives_way_to_the_others(state):
    state.select([3])
    state.isolate()
    state.delete()
    assert not state.is_shown(3) and state.is_shown(4)


def test_hiding_what_is_hidden_is_no_edit(seg, tmp_path):
    state = State(seg, seg.camera(FIRST))
    desk = Desk(state, tmp_path)
    state.select([8])  # 1 and 2
    state.hide()
    state.rename(3, "three")
    state.undo()
    for hidden in ([1], [8], [1, 2]):
        state.select(hidden)
        assert desk.run(BY_NAME["hide"]) == "nothing is left to hide" and not state.selected
    assert state.redo() and state.undo() and state.undo() and state.is_shown(1)  # what can be done again is kept
    state.select([1])
    state.hide()
    state.select([8])
    assert desk.run(BY_NAME["hide"]) == "hid 1 object" and not state.is_shown(2)


def test_what_is_hidden_again_is_not_selected_any_more(state):
    state.select([3])
    state.hide()
    state.undo()
    state.select([3, 4])
    state.redo()
    assert state.selected == (4,)


def test_levels_of_one_camera_cost_one_id_map():
    class Counting(CpuRasterizer):
        made = 0

        def group_contributions(self, *given, **named):
            Counting.made += 1
            return super().group_contributions(*given, **named)

    state = State(family(rasterizer=Counting()), family().camera(FIRST))
    state.shown.masks([state.camera])
    for level in (0.0, 0.5, 1.0, None):
        state.set_level(level)
        state.shown.masks([state.camera])
        state.click(24, 18)
    assert Counting.made == 1
    state.select([3])
    state.hide()
    state.shown.masks([state.camera])
    assert Counting.made == 2


def test_what_is_deleted_cannot_be_selected(state):
    state.select([3])
    state.delete()
    with pytest.raises(InputError, match="segment 3 is deleted; undo first"):
        state.select([3])
    with pytest.raises(InputError, match="there is no segment 44"):
        state.select([44])
    assert 3 not in [o.id for o in state.listed]


def test_nothing_left_is_a_picture_of_nothing(state):
    state.set_level(0.0)
    state.select([o.id for o in state.listed])
    state.isolate()
    state.select([o.id for o in state.listed])
    state.hide()
    assert not state.visible.any()
    for mode in MODES:
        state.set_mode(mode)
        assert np.ptp(state.picture().reshape(-1, 3), axis=0).max() == 0
        assert state.colors().shape == (0, 3)
    assert state.click(24, 18) is None


def test_names_are_kept_undone_and_checked(state):
    state.rename(3, "  the   red mug ")
    assert state.name(3) == "the red mug" and state.name(4) == "object 4"
    state.rename(3, "")
    assert state.name(3) == "object 3" and state.undo() and state.name(3) == "the red mug"
    for bad in ("x" * 61, "a\x00b", "\x1b[31m"):
        with pytest.raises(InputError, match="at most 60 printable"):
            state.rename(3, bad)


def test_views_are_jumped_to_at_the_size_of_the_window(state):
    state.camera = fit(state.camera, (80, 50))
    assert state.step_camera(1) == NAMES[0] and state.step_camera(1) == sorted(NAMES)[1]
    assert state.step_camera(-1) == NAMES[0] and state.step_camera(-1) == sorted(NAMES)[-1]
    assert (state.camera.width, state.camera.height) == (80, 50)
    with pytest.raises(InputError, match="or take orbit"):
        state.look("nowhere")


def test_the_selection_is_bright_among_dim_ones(state):
    plain = state.colors()
    state.select([5])
    marked = state.colors()
    own = state.base.hierarchy.holds(5)
    np.testing.assert_allclose(marked[~own], 0.6 * plain[~own], atol=1e-6)
    np.testing.assert_allclose(marked[own], 0.6 * np.array(ACCENT) / 255 + 0.4 * plain[own], atol=1e-6)
    state.isolate()
    np.testing.assert_array_equal(state.colors(), plain[own])  # there is nothing to tell it from


def test_an_export_is_the_selection_less_what_is_deleted(state, seg, tmp_path):
    with pytest.raises(InputError, match="nothing is selected"):
        state.export_selection(tmp_path / "none")
    state.select([9])
    state.delete()
    state.select([3, 4])
    state.rename(4, "../../Red Mug!")
    made = state.export_selection(tmp_path / "out")
    names = ["out/objects/0003.ply", "out/objects/0004_red-mug.ply"]
    assert [p.relative_to(tmp_path).as_posix() for p in made] == names
    theirs = export(job_of(state.edited(), [3, 4]), tmp_path / "by_command", ["ply"])
    assert [p.read_bytes() for p in made] == [p.read_bytes() for p in theirs]
    assert 0 < len(read_ply(made[0])) <= seg[10].gaussians < seg[3].gaussians
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/x' cannot be a folder \(Not a directory\)"):
        state.export_selection(tmp_path / "file" / "x")


# ---- actions


def test_what_is_saved_is_opened_with_its_names_and_without_what_was_deleted(seg, tmp_path):
    named = seg.rename(3, "pot")
    state = State(named, named.camera(FIRST))
    assert state.name(3) == "pot"
    state.rename(3, "")
    state.rename(2, "blue mug")
    state.select([1])
    state.delete()
    state.select([3])
    state.hide()
    desk = Desk(state, tmp_path / "view")
    said = press(desk, "w")
    assert said == f"saved {tmp_path / 'view' / 'edited_001'}"
    again = load(tmp_path / "view" / "edited_001")
    assert dict(again.names) == {2: "blue mug"} and len(again.splats) == len(seg.splats) - len(seg[1].indices)
    assert sorted(o.id for o in again.objects) == [o.id for o in seg.objects if o.id != 1]
    assert press(desk, "w") == f"saved {tmp_path / 'view' / 'edited_002'}"
    nothing_done = State(seg, seg.camera(FIRST))
    assert nothing_done.edited() is seg


def test_every_key_does_something_and_says_so(seg, tmp_path):
    def facts(s: State) -> tuple:
        return s.edits, s.selected, s.mode, s.level, id(s.camera), s.boxes, s.axes

    assert len(BY_KEY) == len(BY_NAME) == len(ACTIONS)
    for action in ACTIONS:
        desk = Desk(State(seg, seg.camera(FIRST)), tmp_path / "a")
        said = desk.run(action)
        assert isinstance(said, str) and said
        desk.state.select([3, 4])
        desk.state.set_mode("color" if action.name == "depth" else "depth")
        desk.state.set_level(0.8)
        before = facts(desk.state)
        files = list((tmp_path / "a").glob("**/*"))
        said = desk.run(action)
        changed = before != facts(desk.state)
        wrote = len(list((tmp_path / "a").glob("**/*"))) > len(files)
        idle = {"undo", "redo", "show all"}  # there is nothing to do for these yet
        assert changed or wrote or action.name in idle, action.name


def test_what_goes_wrong_is_a_line_not_an_end(seg, tmp_path):
    desk = Desk(State(seg, seg.camera(FIRST)), tmp_path / "file")
    assert press(desk, "i") == "nothing is selected to isolate; click an object first"
    assert press(desk, "e") == "nothing is selected to export; click an object first"
    (tmp_path / "file").write_text("")
    assert "could not be written" in press(desk, "s")
    desk.state.select([3])
    assert "cannot be a folder" in press(desk, "e")
    assert press(desk, "x") == "deleted 1 object" and press(desk, "z") == "undone" and press(desk, "y") == "done again"


def test_pictures_and_exports_never_take_a_name_that_is_taken(seg, tmp_path):
    desk = Desk(State(seg, seg.camera(FIRST)), tmp_path)
    desk.state.select([3])
    for _ in range(2):
        press(desk, "s")
        press(desk, "e")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "export_001",
        "export_002",
        "picture_001.png",
        "picture_002.png",
    ]
    np.testing.assert_array_equal(pixels(tmp_path / "picture_001.png"), desk.state.picture())


# ---- the probe


VULKAN = """FEngine resolved backend: Vulkan
terminate called after throwing an instance of 'utils::PostconditionPanic'
reason: Unable to create Vulkan instance. error=-9"""


@pytest.mark.parametrize(
    "code, output, says",
    [
        (-6, VULKAN, "no working Vulkan or OpenGL driver.*mesa-vulkan-drivers.*--screenshot"),
        (1, "OSError: libGL.so.1: cannot open shared object file: No such file", "needs libGL.so.1, which.*libgl1"),
        (1, "ModuleNotFoundError: No module named 'open3d'", "pip install open3d"),
        (0, f"[error] GLFW error: X11: Failed to open display :99\n{probe.READY}", "does not answer"),
        (0, f"Falling back to headless mode.\n{probe.READY}", "does not answer"),
        (-11, "", "could not open a window .nothing was said; exit code -11"),
        (3, "Traceback\nValueError: odd", "ValueError: odd; exit code 3"),
        (0, "no word of being ready", "could not open a window"),
    ],
)
def test_the_probe_says_what_is_missing_in_one_sentence(code, output, says):
    with pytest.raises(InputError, match=says) as raised:
        probe.understand(code, output)
    assert "--web" in str(raised.value) and "\n" not in str(raised.value)


def test_the_probe_knows_the_processor_from_a_card():
    assert probe.understand(0, f"Vulkan software device detected\n{probe.READY}").software
    assert not probe.understand(0, f"Selected physical device 'NVIDIA'\n{probe.READY}").software


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says by a variable where the display is")
def test_without_a_display_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(probe, "OPEN_A_WINDOW", "raise SystemExit('tried')")
    with pytest.raises(InputError, match="no display"):
        probe.probe({"PATH": os.environ["PATH"]})


def test_a_process_that_dies_or_hangs_is_a_sentence(monkeypatch):
    env = dict(os.environ) | {"DISPLAY": ":7"}
    monkeypatch.setattr(probe, "OPEN_A_WINDOW", "import os, sys; print('boom', flush=True); os.abort()")
    with pytest.raises(InputError, match="boom; exit code -6"):
        probe.probe(env)
    monkeypatch.setattr(probe, "OPEN_A_WINDOW", "import time; time.sleep(60)")
    with pytest.raises(InputError, match=r"within 0\.5 seconds"):
        probe.probe(env, seconds=0.5)


def test_the_window_is_not_opened_before_what_was_asked_is_known_to_be_right(seg, monkeypatch):
    from cgc.view.window import open_window

    def never(*_: object) -> None:
        raise AssertionError("tried")

    monkeypatch.setattr("cgc.view.window.probe", never)
    for bad, says in (
        ({"mode": "x"}, "no mode"), ({"camera": "x"}, "no view"), ({"level": 3.0}, "level"), ({"size": (0, 1)}, "side")
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            open_window(seg, **bad)


# ---- the browser


@pytest.fixture
def page(seg, tmp_path):
    """A page that is served, without a browser; events are made by hand."""
    pytest.importorskip("viser", reason="viser, the extra 'web', is not installed")
    made = web.open_page(seg, free_port(), camera=FIRST, out=tmp_path)
    yield made
    made.stop()


def free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return probing.getsockname()[1]


def click(page: Any, node: int, modifier: str | None = None) -> None:
    """Click a node as a browser does: with a ray, and its camera."""
    camera = page.desk.state.base.camera(FIRST)
    y, x = np.argwhere(page.desk.state.base[node].mask(camera)).mean(axis=0).astype(int)
    origin, direction = ray(camera, x, y)
    page.on_click(SimpleNamespace(ray_origin=origin, ray_direction=direction, modifier=modifier, client=None))


def test_a_page_follows_clicks_edits_levels_and_names(page, seg, tmp_path):
    state = page.desk.state
    click(page, 3)
    assert state.selected == (3,) and page.object.value == "3 · object 3" and page.picture.visible
    click(page, 4, "shift")
    assert state.selected == (3, 4) and page.object.value == web.NOTHING and not page.picture.visible
    page.run(BY_NAME["isolate"])
    assert state.visible.sum() == seg[3].gaussians + seg[4].gaussians
    page.run(BY_NAME["undo"])
    page.run(BY_NAME["delete"])
    assert "3 · object 3" not in page.object.options and "deleted 2 objects" in page.line.content
    page.run(BY_NAME["undo"])
    page.pick("5 · object 5")
    page.rename("the mug")
    assert page.object.value == "5 · the mug"
    page.show()
    assert page.name.value == "the mug"
    page.run(BY_NAME["export"])
    assert [p.name for p in tmp_path.glob("export_001/objects/*")] == ["0005_the-mug.ply"]
    page.set_level(1.0)
    assert state.level == 1.0 and "9 · object 9" in page.object.options
    page.set_level(1.0004)
    assert state.level == 1.0  # the slider rounds
    page.run(BY_NAME["boxes"])
    assert len(page.boxes) == 1
    page.look(NAMES[1])
    assert page.view.value == NAMES[1]
    page.run(BY_NAME["depth"])
    assert page.mode.value == "depth"
    page.look("nowhere")
    assert "there is no view" in page.line.content
    page.pick(web.NOTHING)
    page.rename("x")
    assert "select one object" in page.line.content


def ask(page: Any, control: Any, value: Any) -> None:
    """Set a control as a browser does."""
    with page.server.atomic():
        control.value = value
    for told in control._impl.update_cb:
        told(SimpleNamespace(client=object(), target=control))


def test_of_what_is_asked_while_a_page_is_busy_the_last_counts(page):
    shown: list[float] = []
    was, page.set_level = page.set_level, lambda level: (shown.append(level), was(level))
    with page.lock:  # it is drawing
        threads = []
        for level in (0.2, 0.4, 0.9):
            threads.append(threading.Thread(target=ask, args=(page, page.level, level)))
            threads[-1].start()
            until(lambda: sum(page.asked.values()) == len(threads))
        page.show()
    for thread in threads:
        thread.join(10)
    assert shown == [0.9] and page.desk.state.level == 0.9 == page.level.value


def test_what_is_typed_stays_in_its_field_and_is_one_edit(page):
    click(page, 3)
    for end in range(1, len("big red mug") + 1):
        ask(page, page.name, "big red mug"[:end])
        assert page.name.value == "big red mug"[:end]  # spaces at the end too
    assert page.desk.state.name(3) == "big red mug" and "3 · big red mug" in page.object.options
    assert page.desk.state.undo() and page.desk.state.name(3) == "object 3"
    assert not page.desk.state.undo() and page.desk.state.redo() and page.desk.state.name(3) == "big red mug"


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_page_sends_what_is_shown(page, seg):
    handle = next(h for n, h in page.server.scene._handle_from_node_name.items() if n == "/splats")
    sent = handle.buffer
    np.testing.assert_allclose(sent[:, :3].view(np.float32), seg.splats.means.numpy(), rtol=1e-6)
    rgba = sent[:, 7:].copy().view(np.uint8)
    np.testing.assert_allclose(rgba[:, :3] / 255, colors_of(seg, "color"), atol=1 / 255)
    np.testing.assert_allclose(rgba[:, 3] / 255, seg.splats.opacities, atol=1 / 255)
    click(page, 3)
    page.run(BY_NAME["isolate"])
    handle = next(h for n, h in page.server.scene._handle_from_node_name.items() if n == "/splats")
    np.testing.assert_allclose(handle.buffer[:, :3].view(np.float32), seg[3].splats().means.numpy(), rtol=1e-6)
    page.run(BY_NAME["hide"])
    assert "/splats" not in page.server.scene._handle_from_node_name


def test_a_page_of_many_gaussians_sends_the_largest(page, seg, monkeypatch):
    monkeypatch.setattr(web, "MOST_SPLATS", 50)
    floor = seg.splats.means[:, 2] == seg.splats.means[:, 2].min()  # its Gaussians are twice as large, and less opaque
    logits = torch.where(floor, 2.0, seg.splats.logit_opacities)
    means = seg.splats.means.clone()
    means[floor.nonzero()[0, 0]] *= 1000  # so far that it looks small
    splats = replace(seg.splats, logit_opacities=logits, means=means)
    page.desk.state = State(replace(seg, splats=splats), page.desk.state.camera)
    page.show()
    handle = next(h for n, h in page.server.scene._handle_from_node_name.items() if n == "/splats")
    assert len(handle.buffer) == 50
    sent = handle.buffer[:, :3].view(np.float32)
    assert np.isin(sent[:, 0], seg.splats.means[floor][:, 0].numpy()).all()


def test_the_camera_of_a_browser_is_that_of_pictures(page, seg):
    camera = fit(seg.camera(FIRST), (60, 50))
    turn = torch.linalg.inv(camera.viewmat[:3, :3].double()).numpy()
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(turn).as_quat()
    seen = SimpleNamespace(
        wxyz=np.array([w, x, y, z]), position=camera.position.numpy(), fov=math.radians(vertical_fov(camera)),
        image_width=60, image_height=50,
    )  # fmt: skip
    page._see(SimpleNamespace(camera=seen))
    torch.testing.assert_close(page.desk.state.camera.viewmat, camera.viewmat, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(page.desk.state.camera.K, camera.K, rtol=1e-4, atol=1e-3)


def test_ports_that_cannot_be_had_are_a_sentence(seg, page):
    with pytest.raises(InputError, match=r"cannot be used .*; end what uses it, or choose another with --port"):
        web.serve(seg, page.server.get_port(), camera=FIRST)
    for port in (0, 70000, -1, "80"):
        with pytest.raises(InputError, match="1 to 65535"):
            web.serve(seg, port, camera=FIRST)
    with pytest.raises(InputError, match="no mode 'x'"):
        web.serve(seg, free_port(), mode="x")


def test_without_viser_there_is_the_command_that_installs_it(seg, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match=r"pip install 'contrastive-gaussian-clustering\[web\]'"):
        web.serve(seg, free_port())


@pytest.mark.parametrize("host", ["", "\udcff", "ü"])
def test_hosts_that_are_none(host):
    with pytest.raises(InputError, match=r"where an address was expected: 127\.0\.0\.1, or 0\.0\.0\.0 for everybody"):
        web.check_port(host, free_port())


def test_serving_ends_when_it_is_interrupted(seg, monkeypatch):
    pytest.importorskip("viser", reason="viser, the extra 'web', is not installed")
    said, port = [], free_port()

    def interrupt() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as answer:
            said.append(answer.status)
        raise KeyboardInterrupt

    monkeypatch.setattr(web, "wait", interrupt)
    web.serve(seg, port, camera=FIRST, say=said.append)
    assert said == [f"open http://localhost:{port} in a browser; Ctrl-C ends it", 200]
    web.check_port("127.0.0.1", port)


def test_the_page_starts_at_the_view_that_was_asked_for(page, seg):
    assert page.view.value == page.desk.state.view in seg.views
    page.desk.state.step_camera(1)
    assert page.desk.state.view == seg.views[seg.views.index(page.view.value) + 1]


class Browser:
    """Chromium without a display, driven over its own protocol: enough to look at a page and click in it."""

    def __init__(self, program: str, folder: Path) -> None:
        from websockets.sync.client import connect

        flags = "--headless=new --no-sandbox --disable-gpu-sandbox --use-gl=angle --use-angle=swiftshader "
        flags += "--enable-unsafe-swiftshader --remote-debugging-port=0 --window-size=800,500 --no-first-run"
        self.process = subprocess.Popen(
            [program, *flags.split(), f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = wait_for(lambda: (folder / "DevToolsActivePort").read_text().split()[0], 20)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            target = next(t for t in json.load(answer) if t["type"] == "page")
        self.socket = connect(target["webSocketDebuggerUrl"], max_size=None, open_timeout=20)
        self.asked = 0

    def ask(self, method: str, **parameters: Any) -> dict:
        self.asked += 1
        self.socket.send(json.dumps({"id": self.asked, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=30))
            if answer.get("id") == self.asked:
                return answer["result"]

    def picture(self) -> np.ndarray:
        data = base64.b64decode(self.ask("Page.captureScreenshot")["data"])
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        code = key if len(key) > 1 else f"Key{key.upper()}"
        number = {"ArrowRight": 39}.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number)

    def run(self, script: str) -> Any:
        return self.ask("Runtime.evaluate", expression=script)["result"].get("value")

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait(20)


def wait_for(what: Any, seconds: float) -> Any:
    """Wait until something is true, or fail with what it last said."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = what()
        except OSError as error:
            found, last = None, error
        else:
            last = found
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {last!r}"
        time.sleep(0.1)


def test_a_browser_shows_the_scene_and_a_click_in_it_selects(page, seg, tmp_path):
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no browser: neither chromium nor google-chrome is installed")
    browser = Browser(program, tmp_path / "profile")
    try:
        browser.ask("Page.navigate", url=f"http://127.0.0.1:{page.server.get_port()}")
        client = wait_for(lambda: next(iter(page.server.get_clients().values()), None), 30)
        page.look(NAMES[3], client)

        def colors() -> int:
            return len(np.unique(browser.picture()[100:, :400].reshape(-1, 3) // 32, axis=0))

        wait_for(lambda: colors() > 20, 30)  # the splats are there
        page._see(client)
        camera = page.desk.state.camera
        np.testing.assert_allclose(camera.position, seg.camera(NAMES[3]).position, atol=1e-3)
        y, x = np.argwhere(seg[7].mask(camera))[len(np.argwhere(seg[7].mask(camera))) // 3]
        for _ in range(3):
            browser.click(float(x) + 0.5, float(y) + 0.5)
            try:
                wait_for(lambda: page.desk.state.selected, 5)
                break
            except AssertionError:
                continue
        assert page.desk.state.selected == (seg.at_pixel(camera, x, y).id,)
        before = browser.picture()
        browser.press("i")
        wait_for(lambda: (browser.picture() != before).mean() > 0.05, 20)
        browser.press("e")
        wait_for(lambda: [p.name for p in tmp_path.rglob("*.ply")], 20)
        level = page.desk.state.level_shown
        browser.run("document.querySelector('[role=slider]').focus()")
        for _ in range(20):
            browser.press("ArrowRight")
        wait_for(lambda: page.desk.state.level_shown > level, 20)
        browser.run("document.activeElement.blur()")
        browser.press("h")
        wait_for(lambda: "isolate what is selected" in browser.run("document.body.innerText"), 20)
        assert "select nothing" not in browser.run("document.body.innerText")  # escape does nothing in a browser
    finally:
        browser.close()


# ---- the window


IN_A_WINDOW = """
import json, os, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import numpy as np, test_api
from cgc.view.actions import Desk
from cgc.view.shots import fit
from cgc.view.state import State
from cgc.view.window import _Window
from pathlib import Path

seg = test_api.family()
state = State(seg, seg.camera(test_api.NAMES[0]), "color")
window = _Window(Desk(state, Path(sys.argv[2])), (360, 240), points=False)
wanted = state.camera
for _ in range(5):
    window.app.run_one_tick()
window._see()
told = {"camera": [wanted.viewmat.tolist(), wanted.K.tolist(), state.camera.viewmat.tolist(), state.camera.K.tolist()],
        "size": [state.camera.width, state.camera.height, wanted.width, wanted.height]}
seen = []
window.widget.scene.scene.render_to_image(seen.append)
window.window.post_redraw()
for _ in range(40):
    window.app.run_one_tick()
    if seen:
        break
told["colors"] = len(np.unique(np.asarray(seen[0]).reshape(-1, 3) // 32, axis=0)) if seen else 0
y, x = np.argwhere(seg[3].mask(state.camera)).mean(axis=0).astype(int).tolist()
frame, types = window.widget.frame, window.gui.MouseEvent.Type
def mouse(kind, dx=0, shift=False):
    window._on_mouse(SimpleNamespace(type=kind, x=frame.x + x + dx, y=frame.y + y, is_button_down=lambda b: True,
                                     is_modifier_down=lambda m: shift))
mouse(types.BUTTON_DOWN); mouse(types.BUTTON_UP, dx=40)
told["dragged"] = state.selected
mouse(types.BUTTON_DOWN); mouse(types.BUTTON_UP)
told["clicked"] = [state.selected, seg.at_pixel(state.camera, x, y).id]
def key(name):
    window._on_key(SimpleNamespace(key=getattr(window.gui.KeyName, name), type=window.gui.KeyEvent.Type.DOWN))
    window.app.run_one_tick()
key("I"); told["isolated"] = sorted(state.edits.isolated)
key("B"); told["boxes"] = [state.boxes, window.boxes]
key("Z"); told["undone"] = sorted(state.edits.isolated)
key("PERIOD"); told["view"] = state.view
key("FIVE"); told["mode"] = state.mode
key("H"); told["dialog"] = window.dialog
key("H"); told["closed"] = window.dialog
window._set_points(True)
window.app.run_one_tick()
print("TOLD", json.dumps(told), flush=True)
key("Q")
window.run()
print("CLOSED", flush=True)
os._exit(0)  # as `leave` does
"""


def test_a_window_shows_picks_and_obeys_keys(tmp_path):
    if shutil.which("Xvfb") is None:
        pytest.skip("no display to try: Xvfb is not installed")
    number, read = os.pipe()[::-1]
    display = subprocess.Popen(
        ["Xvfb", "-displayfd", str(number), "-screen", "0", "800x600x24"], pass_fds=[number], stderr=subprocess.DEVNULL
    )
    try:
        os.close(number)
        with os.fdopen(read) as file:
            name = file.readline().strip()
        environment = {k: v for k, v in os.environ.items() if k != "WAYLAND_DISPLAY"} | {"DISPLAY": f":{name}"}
        made = subprocess.run(
            [sys.executable, "-c", IN_A_WINDOW, str(ROOT), str(tmp_path)], env=environment, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT.parent,
        )  # fmt: skip
    finally:
        display.kill()
        display.wait()
    told = next((json.loads(line[5:]) for line in made.stdout.splitlines() if line.startswith("TOLD ")), None)
    if told is None:
        with pytest.raises(InputError) as raised:
            probe.understand(made.returncode, made.stdout)
        if "could not open a window" in str(raised.value):  # not for want of a driver
            pytest.fail(made.stdout[-3000:])
        pytest.skip(str(raised.value))
    assert made.returncode == 0 and "CLOSED" in made.stdout, made.stdout[-3000:]
    viewmat, K, seen_viewmat, seen_K = told["camera"]
    np.testing.assert_allclose(seen_viewmat, viewmat, atol=1e-4)
    assert told["size"][1] == told["size"][3] and abs(told["size"][0] - told["size"][2]) < 4
    np.testing.assert_allclose(seen_K, K, atol=2.5)
    assert told["colors"] > 10
    assert told["dragged"] == [] and told["clicked"][0] == [told["clicked"][1]]
    assert told["isolated"] == told["clicked"][0] and told["undone"] == [] and told["boxes"] == [True, 1]
    assert told["view"] == NAMES[0] and told["mode"] == "depth" and (told["dialog"], told["closed"]) == ("help", "")
