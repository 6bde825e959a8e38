"""Exports read back by other code: pycocotools, PIL, our own readers, and a converter where one is named."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tiny import FLOOR, HEIGHT, NAMES, WIDTH, cameras, clumps

import cgc
from cgc.cli import main
from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.masks.id_maps import read_id_map
from cgc.masks.image_masks import decode, encode
from cgc.ply import read_header, read_vertices
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import RunFolder
from cgc.scene.lens import intrinsics, to_colmap, undistorted
from cgc.scene.read import read_scene
from cgc.scene.types import Camera, Lens, View
from cgc.segmentation.edges import follow_edges
from cgc.segmentation.edit import keep, relabel, remove, track
from cgc.segmentation.export import FORMATS, export, job_of
from cgc.segmentation.export_job import MIN_SEEN, Export, is_sound, safe_name, safe_path
from cgc.segmentation.export_pictures import export_turntables
from cgc.segmentation.labels import render_labels, render_rgb
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.turntable import turntable, turntable_cameras, write_animation
from cgc.splats.ply import read_ply
from cgc.splats.split import split
from cgc.splats.types import Splats

RASTERIZER = CpuRasterizer()
OLD_ARRAYS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools was written before numpy 2."""


def tiny() -> Segmentation:
    splats, labels = clumps()
    g = torch.Generator().manual_seed(4)
    splats = replace(splats, sh=torch.cat([splats.sh, 0.05 * torch.randn(len(labels), 8, 3, generator=g)], 1))
    labels[-3:] = -1
    made = Segmentation(splats, labels, np.linspace(0.6, 1, len(labels)).astype(np.float32))
    return relabel(track(made), 2, "Green / Größe")


@pytest.fixture(scope="module")
def job() -> Export:
    """The tiny scene from four views, one of them in a folder; photos are its renders."""
    scene = tiny()
    views = tuple(View(name, camera, Path("/nowhere") / name) for name, camera in zip(NAMES[1:5], cameras()[1:5]))
    return Export(scene, views=views, rasterizer=RASTERIZER, load_image=lambda v: shot(scene, v))


def shot(scene: Segmentation, view: View) -> np.ndarray:
    return (255 * render_rgb(scene.splats, view.camera, RASTERIZER)).round().astype(np.uint8)


def camera_of(lens: Lens, like: Camera) -> Camera:
    return replace(like, K=torch.from_numpy(intrinsics(lens)).float(), width=lens.width, height=lens.height)


def same(a: Splats, b: Splats) -> bool:
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_every_format_writes_what_it_says_it_did(job, tmp_path):
    paths = export(replace(job, ids=[1, 2]), tmp_path, list(FORMATS))
    there = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert set(paths) == there - {tmp_path / ".exported.json"} and len(paths) == len(set(paths))


# ---- splats


def test_exported_splats_reload_bit_for_bit(job, tmp_path):
    paths = FORMATS["ply"](job, tmp_path)
    assert [p.name for p in paths][:2] == ["0001.ply", "0002_green-groe.ply"]
    for segment, path in zip(job.chosen, paths):
        got = read_ply(path)
        assert same(got, job.segmentation.splats.select(torch.from_numpy(job.body(segment)))) and not got.extras
        assert (job.segmentation.labels[job.body(segment)] == segment).all() and is_sound(got).all()
    [path] = FORMATS["selection"](replace(job, ids=[5, 2], clean=False), tmp_path)
    assert same(read_ply(path), keep(job.segmentation, [2, 5]).splats)
    [path] = FORMATS["labelled"](job, tmp_path)
    got = read_ply(path)
    np.testing.assert_array_equal(got.extras["label"], job.segmentation.labels)
    assert same(got, job.segmentation.splats) and set(got.extras) == {"label"}
    theirs = {
        "größe": np.ones(len(got), np.uint8),
        "age": np.arange(len(got), dtype=np.float32),
        "label": np.zeros(len(got), np.uint8),
    }
    scene = replace(job.segmentation, splats=replace(got, extras=job.segmentation.splats.extras | theirs))
    got = read_ply(FORMATS["labelled"](replace(job, segmentation=scene), tmp_path)[0])
    assert set(got.extras) == {"age", "label"} and (got.extras["age"] == theirs["age"]).all()
    np.testing.assert_array_equal(got.extras["label"], job.segmentation.labels)
    cams = [v.camera for v in job.views]
    [path] = FORMATS["rest"](replace(job, ids=[2]), tmp_path)
    assert same(read_ply(path), remove(job.segmentation, 2, rasterizer=RASTERIZER, cameras=cams).splats)


def family(scene: Segmentation) -> Segmentation:
    """A tiny scene whose segment 2 has the parts 9 and 10, and is in 8 with 1."""
    leaves = scene.labels.copy()
    leaves[(leaves == 2) & (np.arange(len(leaves)) % 2 == 0)] = 9
    leaves[leaves == 2] = 10
    parents = np.array([0, 8, 8, 0, 0, 0, 0, 0, 0, 2, 2], np.int32)
    levels = np.array([-1, 1, 0.6, 1, 1, 1, 1, 1, 0.2, 1, 1], np.float32)
    made = replace(scene, hierarchy=Hierarchy(leaves, parents, levels, 0.5))
    assert np.array_equal(made.hierarchy.at(), scene.labels)
    return made


def test_labels_of_parts_and_wholes_are_written_for_all_that_is_in_them(tmp_path):
    scene = family(tiny())
    leaves = scene.hierarchy.leaves
    origin = np.random.default_rng(0).permutation(len(leaves))
    for ids, wanted in [
        ([8], np.where(np.isin(scene.labels, [1, 2]), 8, -1)),
        ([9, 4], np.where(leaves == 9, 9, np.where(leaves == 4, 4, -1))),
        ([9, 8, 2], np.where(leaves == 9, 9, np.where(scene.labels == 2, 2, np.where(scene.labels == 1, 8, -1)))),
    ]:
        job = Export(scene, ids=ids, origin=origin)
        np.testing.assert_array_equal(np.load(FORMATS["labels"](job, tmp_path)[0])[origin], wanted)
        got = read_ply(FORMATS["labelled"](job, tmp_path)[0])
        assert got.extras["label"].tolist() == wanted.tolist()


def test_what_cannot_be_drawn_is_not_exported(tmp_path):
    scene = tiny()
    broken = {0: "means", 1: "quats", 2: "log_scales", 3: "logit_opacities", 4: "sh"}
    columns = {n: getattr(scene.splats, n).clone() for n in broken.values()}
    for row, name in broken.items():
        columns[name][row] = float("nan")
    columns["log_scales"][5, 1], columns["logit_opacities"][6], columns["quats"][7] = 200.0, -9.0, 0.0
    columns["means"][8, 2] = float("inf")
    job = Export(replace(scene, splats=replace(scene.splats, **columns)), ids=[1], clean=False)
    np.testing.assert_array_equal(is_sound(job.segmentation.splats), np.arange(len(scene.labels)) >= 9)
    assert job.body(1).tolist() == list(range(9, 60))
    [path] = FORMATS["ply"](job, tmp_path)
    assert len(read_ply(path)) == 51  # which refuses what is not finite
    assert len(Export(job.segmentation, ids=[1]).body(1)) > 40
    columns["logit_opacities"][:60] = -9
    with pytest.raises(InputError, match="no Gaussian that is drawn"):
        FORMATS["ply"](Export(replace(scene, splats=replace(scene.splats, **columns)), ids=[1]), tmp_path)


def test_what_no_camera_sees_of_an_object_is_not_exported_where_there_are_cameras(tmp_path):
    splats, labels = clumps()
    under = labels == 1
    below = replace(splats, means=splats.means.clone(), log_scales=splats.log_scales.clone())
    first = np.flatnonzero(under)[:5]
    below.means[torch.from_numpy(first), 2] = -0.35  # under the floor, which the cameras see from above
    below.log_scales[torch.from_numpy(first)] = -4.0
    below.log_scales[torch.from_numpy(labels == FLOOR)] += 0.3
    scene = Segmentation(below, labels, np.ones(len(labels), np.float32))
    views = tuple(View(name, camera, Path(name)) for name, camera in zip(NAMES, cameras()))
    job = Export(scene, ids=[1], views=views, rasterizer=RASTERIZER)
    body = job.body(1)
    assert not np.isin(first, body).any() and len(body) > 30
    dense = np.zeros((2, len(labels)))
    for camera in cameras():
        for row, rows in enumerate((np.arange(len(labels)), np.flatnonzero(under))):
            w = RASTERIZER.contributions(below.select(torch.from_numpy(rows)), camera)
            np.add.at(dense[row], rows[w.ids.numpy()], w.weights.numpy())
    known = dense[1, under] > 0.5
    np.testing.assert_allclose(job.seen[1][known], (dense[0, under] / dense[1, under])[known], rtol=1e-5)
    assert np.isin(first, replace(job, clean=False).body(1)).all()
    assert np.isin(first, Export(scene, ids=[1]).body(1)).any()  # without cameras nobody knows
    hidden = labels == 2  # the whole object now
    below.means[torch.from_numpy(hidden), 2] -= 0.6
    below.log_scales[torch.from_numpy(hidden)] = -4.0
    job = Export(scene, ids=[2], views=views, rasterizer=RASTERIZER)
    assert job.seen[2].max() < MIN_SEEN and np.array_equal(job.body(2), Export(scene, ids=[2]).body(2))


def test_labels_are_in_the_order_of_the_file_that_was_segmented(tmp_path):
    scene = tiny()
    assert np.array_equal(np.load(FORMATS["labels"](Export(scene), tmp_path)[0]), scene.labels)
    left = remove(scene, [3], halo=False)
    got = np.load(FORMATS["labels"](Export(left, n_original=len(scene.labels)), tmp_path)[0])
    np.testing.assert_array_equal(got, np.where(scene.labels == 3, -1, scene.labels))
    got = np.load(FORMATS["labels"](Export(scene, ids=[2, 5]), tmp_path)[0])
    np.testing.assert_array_equal(got, np.where(np.isin(scene.labels, [2, 5]), scene.labels, -1))

    halves, origin = split(replace(scene.splats, extras={}), torch.arange(len(scene.labels)) % 5 == 0)
    labels, sure = scene.labels[origin.numpy()], scene.confidences[origin.numpy()].copy()
    labels[-1], sure[-1] = 6, 0.1  # one half went elsewhere, but less surely
    cut = Segmentation(halves, labels, sure)
    job = Export(cut, origin=origin.numpy(), n_original=len(scene.labels))
    np.testing.assert_array_equal(np.load(FORMATS["labels"](job, tmp_path)[0]), scene.labels)
    got = np.load(FORMATS["labels"](replace(job, ids=[6]), tmp_path)[0])
    np.testing.assert_array_equal(got, np.where(scene.labels == 6, 6, -1))  # as where all are written
    with pytest.raises(InputError, match="another file"):
        FORMATS["labels"](replace(job, n_original=5), tmp_path)


def test_points_have_places_and_colours(job, tmp_path):
    [path] = FORMATS["points"](replace(job, ids=[1]), tmp_path)
    table = read_vertices(path, read_header(path))
    assert table.dtype.names == ("x", "y", "z", "red", "green", "blue")
    rows = torch.from_numpy(job.body(1))
    np.testing.assert_array_equal(np.stack([table[a] for a in "xyz"], 1), job.segmentation.splats.means[rows].numpy())
    assert set(table[["red", "green", "blue"]].tolist()) == {(230, 25, 25)}


def test_open3d_reads_points(job, tmp_path):
    reason = "Open3D is not installed, or what it needs of the system is not"
    open3d = pytest.importorskip("open3d", reason=reason, exc_type=ImportError)
    [path] = FORMATS["points"](replace(job, ids=[1]), tmp_path)
    rows = job.body(1)
    cloud = open3d.io.read_point_cloud(str(path))
    assert len(cloud.points) == len(rows) and np.allclose(np.asarray(cloud.colors) * 255, (230, 25, 25))


# ---- tables


def test_boxes_as_json_and_as_a_spreadsheet_say_the_same(job, tmp_path):
    named = replace(job, segmentation=relabel(job.segmentation, 3, '=cmd("x"), "y"'))
    as_json, as_csv = FORMATS["boxes"](replace(named, ids=[3, 1, 2]), tmp_path)
    rows = json.loads(as_json.read_text())["segments"]
    with open(as_csv, newline="") as file:
        flat = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == [1, 2, 3] and [r["name"] for r in rows][:2] == ["segment 1", "Green / Größe"]
    assert flat[2]["name"] == "'" + rows[2]["name"]  # no formula
    for row, line in zip(rows, flat):
        assert float(line["box_max_z"]) == row["box_max"][2] and int(line["color_g"]) == row["color"][1]
        assert int(line["pixels"]) == row["pixels"] > 0
        box = job.segmentation[row["id"]].box
        corners = np.array(row["oriented_centre"]) + np.array(row["oriented_size"]) / 2 @ row["oriented_axes"]
        np.testing.assert_allclose(corners, box.corners[-1])
        np.testing.assert_array_equal([float(line[f"oriented_axes_1_{axis}"]) for axis in "xyz"], box.axes[1])
        assert float(line["oriented_size_x"]) == box.size[0]
    no_views = Export(job.segmentation, ids=[1])
    assert json.loads(FORMATS["boxes"](no_views, tmp_path)[0].read_text())["segments"][0]["views"] == 0


# ---- pictures


def test_masks_are_those_of_the_labels(job, tmp_path):
    paths = FORMATS["masks"](replace(job, ids=[1, FLOOR]), tmp_path)
    assert [str(p.relative_to(tmp_path / "masks")) for p in paths] == [
        "a_view_01.png", "a_view_02.png", "a_view_03.png", "sub/view_04.png"]  # fmt: skip
    for path, view in zip(paths, job.views):
        ids = render_labels(job.segmentation.splats, job.segmentation.labels, view.camera, RASTERIZER).ids
        np.testing.assert_array_equal(read_id_map(path), np.where(np.isin(ids, [1, FLOOR]), ids, 0))


@OLD_ARRAYS
@settings(max_examples=80, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_run_lengths_are_those_of_pycocotools(mask):
    coco = pytest.importorskip("pycocotools.mask")

    runs = encode(mask).tolist()
    compressed = coco.frPyObjects({"size": list(mask.shape), "counts": runs}, *mask.shape)
    np.testing.assert_array_equal(coco.decode(compressed), mask)
    assert compressed["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert sum(runs) == mask.size and all(r > 0 for r in runs[1:])


@OLD_ARRAYS
def test_coco_files_load_in_pycocotools(job, tmp_path, capsys):
    COCO = pytest.importorskip("pycocotools.coco").COCO

    instances, panoptic, *pictures = FORMATS["coco"](job, tmp_path)
    api = COCO(str(instances))
    capsys.readouterr()  # it prints
    for index, (view, ids) in enumerate(zip(job.views, job.shown_maps), 1):
        assert api.loadImgs(index)[0]["file_name"] == view.name
        found = api.loadAnns(api.getAnnIds(imgIds=index))
        assert {a["object_id"] for a in found} == set(np.unique(ids[ids > 0]).tolist())
        for a in found:
            mask = ids == a["object_id"]
            np.testing.assert_array_equal(api.annToMask(a), mask)
            ys, xs = np.nonzero(mask)
            assert a["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] and a["area"] == mask.sum()
            name = "Green / Größe" if a["object_id"] == 2 else "object"
            assert api.loadCats(a["category_id"])[0]["name"] == name
    data = json.loads(panoptic.read_text())
    assert [c["name"] for c in data["categories"]] == ["object", "Green / Größe"]
    for note, path, ids in zip(data["annotations"], pictures, job.shown_maps):
        assert tmp_path / "coco/panoptic" / note["file_name"] == path
        rgb = np.asarray(Image.open(path)).astype(int)
        np.testing.assert_array_equal(rgb @ [1, 256, 65536], ids)
        assert {s["id"]: s["area"] for s in note["segments_info"]} == {
            i: int((ids == i).sum()) for i in np.unique(ids[ids > 0]).tolist()}  # fmt: skip


def through(lens: Lens, scale: float) -> Callable[[View], View]:
    """What is known of photos taken by a lens, of `scale` times its size."""
    size = round(scale * lens.width), round(scale * lens.height)
    return lambda view: replace(view, full_size=size, distortion=lens)


@pytest.mark.parametrize("scale", [1, 3])
def test_masks_and_annotations_fit_the_photos_that_they_name(job, tmp_path, scale):
    lens = Lens("SIMPLE_RADIAL", (40.0, 24.0, 18.0, -0.25), 48, 36)
    flat = undistorted(lens)
    small = Camera.resized(camera_of(flat, job.views[0].camera), flat.width // 2, flat.height // 2)
    views = tuple(replace(view, camera=replace(small, viewmat=view.camera.viewmat)) for view in job.views)
    bent = replace(job, views=views, as_taken=through(lens, scale))
    instances, _, *pictures = FORMATS["coco"](bent, tmp_path)
    data, masks = json.loads(instances.read_text()), FORMATS["masks"](bent, tmp_path)
    names = [view.name for view in views]
    assert [(i["file_name"], i["width"], i["height"]) for i in data["images"]] == [
        (name, 48 * scale, 36 * scale) for name in names
    ]
    corners = 0
    for index, (view, path, picture) in enumerate(zip(views, masks, pictures), 1):
        ids = read_id_map(path)
        assert ids.shape == (36 * scale, 48 * scale)
        np.testing.assert_array_equal(np.asarray(Image.open(picture)).astype(int) @ [1, 256, 65536], ids)
        found = np.zeros(ids.shape, int)
        for row in (row for row in data["annotations"] if row["image_id"] == index):
            assert row["segmentation"]["size"] == list(ids.shape)
            mask = decode(np.array(row["segmentation"]["counts"]), *ids.shape)
            assert row["area"] == mask.sum()
            found += row["object_id"] * mask
        np.testing.assert_array_equal(found, ids)
        shown = render_rgb(job.segmentation.splats, replace(view.camera, K=small.K), RASTERIZER)
        assert shown.shape[:2] == bent.shown_maps[index - 1].shape
        for y, x in np.argwhere(np.ones(ids.shape, bool))[:: 7 * scale]:  # where pycolmap says that a pixel's ray goes
            ray = to_colmap(lens).cam_from_img((np.array([x, y]) + 0.5) / scale)
            at = small.K.numpy() @ [*ray, 1]
            inside = 0 <= at[0] < small.width and 0 <= at[1] < small.height
            assert ids[y, x] == (bent.shown_maps[index - 1][int(at[1]), int(at[0])] if inside else 0)
            corners += not inside
    assert corners > 0
    larger = replace(job, as_taken=lambda view: replace(view, full_size=(2 * WIDTH, 2 * HEIGHT)))  # as with --max-side
    for path, ids in zip(FORMATS["masks"](larger, tmp_path), job.shown_maps):
        np.testing.assert_array_equal(read_id_map(path), ids.repeat(2, 0).repeat(2, 1))


def test_a_run_knows_how_its_photos_were_taken_while_its_scene_is_there(tiny_run, tiny_scene, tmp_path, monkeypatch):
    seg = cgc.load(tiny_run)
    scene = read_scene(tiny_scene)
    assert all(job_of(seg).as_taken(view).full_size == (WIDTH, HEIGHT) for view in job_of(seg).views)
    lens = Lens("SIMPLE_RADIAL", (40.0, 24.0, 18.0, -0.25), 2 * WIDTH, 2 * HEIGHT)
    taken = tuple(map(through(lens, 2), scene.views))
    monkeypatch.setattr(RunFolder, "read_scene", lambda self, quiet: replace(scene, views=taken))
    for made in (seg := cgc.load(tiny_run), seg.remove(2, halo=False)):
        for path in made.export(tmp_path, "masks"):
            assert read_id_map(path).shape == (4 * HEIGHT, 4 * WIDTH)

    def gone(self, quiet):
        raise InputError("gone")

    monkeypatch.setattr(RunFolder, "read_scene", gone)
    assert cgc.load(tiny_run).context.views == {}


def test_it_is_said_where_nobody_knows_how_photos_were_taken(own_run, tmp_path, capsys):
    words = ["export", str(own_run), "--format", "masks", "--objects", "2", "--edges", "splats", "--to"]
    assert main([*words, str(tmp_path / "a")]) == 0 and "note:" not in capsys.readouterr().out
    facts = json.loads((own_run / "scene.json").read_text())
    (own_run / "scene.json").write_text(json.dumps({**facts, "scene": str(tmp_path / "gone")}))
    assert main([*words, str(tmp_path / "b")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "note: the scene is gone, so the size, the lens and the edges of its photos are not known" in said
    for path in (tmp_path / "a").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def doubled(job: Export) -> Export:
    """The same of photos of twice the size, and all that the splats show of segment 2 is red in them."""
    taken = {v.name: (v, i) for i, v in enumerate(job.views)}

    def photo(view: View) -> np.ndarray:
        known, index = taken[view.name]
        large = np.array(Image.fromarray(shot(job.segmentation, known)).resize((2 * WIDTH, 2 * HEIGHT)))
        return np.where(
            (job.shown_maps[index] == 2).repeat(2, 0).repeat(2, 1)[..., None], [250, 0, 0], large // 2
        ).astype(np.uint8)

    size = 2 * WIDTH, 2 * HEIGHT
    return replace(job, load_image=photo, as_taken=lambda v: replace(v, full_size=size), edges="photos")


def test_masks_of_photos_end_where_the_photos_have_edges(job, tmp_path):
    large = doubled(job)
    for index, (path, ids) in enumerate(zip(FORMATS["masks"](replace(large, ids=[2]), tmp_path), job.shown_maps)):
        got, photo = read_id_map(path), large.load_image(job.views[index])
        np.testing.assert_array_equal(got == 2, (photo == [250, 0, 0]).all(2))
        whole, same_photo = large.beside_photo(index)
        assert np.array_equal(photo, same_photo) and np.array_equal(whole == 2, got == 2)  # whatever else is chosen
        assert (whole != ids.repeat(2, 0).repeat(2, 1)).any()
    plain = replace(large, edges="splats")
    for path, ids in zip(FORMATS["masks"](plain, tmp_path), job.shown_maps):
        np.testing.assert_array_equal(read_id_map(path), ids.repeat(2, 0).repeat(2, 1))
    [path, *_] = FORMATS["cutouts"](replace(large, ids=[2]), tmp_path)
    rgba = np.asarray(Image.open(path))
    red = (rgba[..., :3] == [250, 0, 0]).all(2)
    assert red.sum() == 4 * max((ids == 2).sum() for ids in job.shown_maps)
    assert (rgba[red][:, 3] >= 127).all() and (rgba[~red][:, 3] <= 128).all()


def test_a_lens_bends_masks_that_were_drawn_to_the_edges(job, tmp_path):
    lens = Lens("SIMPLE_RADIAL", (2 * 40.0, 2 * 24.0, 2 * 18.0, -0.25), 96, 72)
    flat = undistorted(lens)
    camera = Camera.resized(camera_of(flat, job.views[0].camera), flat.width // 2, flat.height // 2)
    bent = replace(
        job, views=tuple(replace(v, camera=replace(camera, viewmat=v.camera.viewmat)) for v in job.views),
        edges="photos", as_taken=through(lens, 1),
    )  # fmt: skip
    bent = replace(bent, load_image=lambda v: shot(job.segmentation, replace(v, camera=camera_of(flat, v.camera))))
    for path, index in zip(FORMATS["masks"](bent, tmp_path), range(len(bent.views))):
        got, (ids, photo) = read_id_map(path), bent.beside_photo(index)
        assert got.shape == (72, 96) and ids.shape == photo.shape[:2] == (flat.height, flat.width)
        y, x = np.mgrid[10:62, 10:86]
        rays = to_colmap(lens).cam_from_img(np.stack([x.ravel(), y.ravel()], 1) + 0.5)
        at = (np.c_[rays, np.ones(len(rays))] @ intrinsics(flat).T)[:, :2]
        column, row = np.floor(at).astype(int).T
        inside = (at.min(1) > 0) & (column < flat.width) & (row < flat.height)
        np.testing.assert_array_equal(got[y.ravel()[inside], x.ravel()[inside]], ids[row[inside], column[inside]])


def test_an_export_follows_the_photos_while_they_show_the_scene(tiny_run, tmp_path):
    seg = cgc.load(tiny_run)
    first = seg.ids.tolist()[0]
    moved = seg.transform(first, translation=(0, 0, 0.01), halo=False)
    for made, wanted, got in (
        (seg, "photos", "photos"), (seg, "splats", "splats"), (moved, "photos", "splats"),
        (replace(seg, context=replace(seg.context, read_views=None)), "photos", "splats"),
    ):  # fmt: skip
        job = job_of(made, None, wanted)
        assert job.edges == got
        paths = made.export(tmp_path / f"{len(list(tmp_path.iterdir()))}", "masks", edges=wanted)
        for index, path in enumerate(paths):
            ids = read_id_map(path)
            if got == "photos":
                view = seg.context.views[job.views[index].name]
                photo = np.asarray(Image.open(view.image_path).convert("RGB"))
                np.testing.assert_array_equal(ids, follow_edges(job.shown_maps[index], photo))
            else:
                np.testing.assert_array_equal(ids, job.shown_maps[index])
    with pytest.raises(InputError, match="no edges 'sharp'; choose from photos, splats"):
        seg.export(tmp_path / "no", "masks", edges="sharp")


def test_masks_that_are_asked_for_follow_the_photos_too(tiny_run):
    seg = cgc.load(tiny_run)
    for level in (None, 0.0, 1.0):
        made = seg.at_level(level)
        for name, ids in zip(seg.views[:2], made.masks(seg.views[:2], edges="photos")):
            photo = np.asarray(Image.open(seg.context.views[name].image_path).convert("RGB"))
            np.testing.assert_array_equal(ids, follow_edges(made.masks([name])[0], photo))
            assert (ids != made.masks([name])[0]).any()
            np.testing.assert_array_equal(made.masks([seg.camera(name)], edges="photos")[0], ids)
            for node in made.objects[:3]:
                np.testing.assert_array_equal(node.mask(name, edges="photos"), ids == node.id)
    two = seg.select(*seg.objects[:2])
    together = follow_edges(np.where(two.mask(name), 9_999, seg.masks([name])[0]), photo) == 9_999
    np.testing.assert_array_equal(two.mask(name, edges="photos"), together)
    moved = seg.transform(two.ids[0], translation=(0, 0, 0.01), halo=False)
    gone = replace(seg, context=replace(seg.context, read_photo=lambda _: None))
    for made, view, edges, why in (
        (seg, name, "sharp", "no edges 'sharp'; choose from photos, splats"),
        (seg, cgc.orbit(seg.objects[0], 3)[0], "photos", "only views have photos"),
        (moved, name, "photos", f"an edit has changed what the photo {name} shows"),
        (gone, name, "photos", f"the photo {name} is gone"),
        (replace(seg, context=replace(seg.context, read_cameras=None)), seg.camera(name), "photos", "only views have"),
    ):
        with pytest.raises(InputError, match=why):
            made.masks([view], edges=edges)
        with pytest.raises(InputError, match=why):
            made.objects[0].mask(view, edges=edges)


def test_cutouts_show_the_photo_of_the_object_and_nothing_else(job, tmp_path):
    paths = FORMATS["cutouts"](replace(job, ids=[2]), tmp_path)
    assert [p.name for p in paths] == [f"0002_green-groe_{i}.png" for i in range(1, len(paths) + 1)]
    best = int(np.argmax([(m == 2).sum() for m in job.shown_maps]))
    rgba, mask, photo = (
        np.asarray(Image.open(paths[0])),
        job.shown_maps[best] == 2,
        shot(job.segmentation, job.views[best]),
    )
    ys, xs = np.nonzero(mask)
    found = np.zeros((mask.shape[0] + 40, mask.shape[1] + 40), np.uint8)
    offsets = [(y, x) for y in range(ys.min() - 8, ys.min() + 1) for x in range(xs.min() - 8, xs.min() + 1)
               if y >= 0 and x >= 0 and np.array_equal(photo[y : y + rgba.shape[0], x : x + rgba.shape[1]],
                                                       rgba[..., :3])]  # fmt: skip
    [(y, x)] = offsets  # a piece of the photo, as it is
    found[y : y + rgba.shape[0], x : x + rgba.shape[1]] = rgba[..., 3]
    found = found[: mask.shape[0], : mask.shape[1]]
    assert (found[mask] >= 127).all() and (found[~mask] <= 128).all() and (found[mask] == 255).mean() > 0.4
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    assert not found[~grown].any()


def test_new_cutouts_of_an_object_take_the_place_of_its_own_alone(job, tmp_path):
    def there():
        return sorted(p.name for p in (tmp_path / "cutouts").iterdir())

    export(replace(job, ids=[1, 2]), tmp_path, ["cutouts"])
    both = there()
    mine = tmp_path / "cutouts/0002_mine_1.png"
    mine.write_bytes(b"mine")
    export(replace(job, ids=[2], views=job.views[:1]), tmp_path, ["cutouts"])
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    assert there() == [name for name in both if name.startswith("0001_")] + ["0002_green-groe_1.png"]
    export(replace(job, ids=[2], segmentation=relabel(job.segmentation, 2, "5")), tmp_path, ["cutouts"])
    assert len(there()) == len(both) and sum(name.startswith("0002_5_") for name in there()) == 3


# ---- what is refused


def test_exports_replace_what_exports_have_written_and_nothing_else(job, tmp_path):
    mine = tmp_path / "masks/a.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    (tmp_path / "points.ply").symlink_to(tmp_path / "nowhere")
    for formats, name in ((["ply", "masks"], "masks"), (["points"], r"points\.ply")):
        with pytest.raises(InputError, match=rf"{name} is where an export would write, and nothing says"):
            export(job, tmp_path, formats)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["masks", "points.ply"] and mine.read_bytes() == b"mine"
    for _ in range(2):
        export(job, tmp_path, ["boxes", "ply"])
        export(job, tmp_path, ["labels"])
    assert mine.read_bytes() == b"mine"
    (tmp_path / ".exported.json").write_text("{")
    with pytest.raises(InputError, match="nothing says that one has written it"):
        export(job, tmp_path, ["labels"])


@pytest.mark.parametrize("own", ["config.json", "segmentation.json"])
def test_folders_that_older_versions_exported_a_run_to_are_exported_to_again(job, tmp_path, own):
    (tmp_path / own).write_text("{}")
    for name in ("export", "export_at_0.5"):
        export(job, tmp_path / name, ["labels"])
        (tmp_path / name / ".exported.json").unlink()
        export(job, tmp_path / name, ["labels"])
    export(job, tmp_path / "exports", ["labels"])
    (tmp_path / "exports" / ".exported.json").unlink()
    with pytest.raises(InputError, match="nothing says that one has written it"):
        export(job, tmp_path / "exports", ["labels"])


def test_an_export_that_fails_claims_nothing_that_it_has_not_written(job, tmp_path, monkeypatch):
    def fail(job, folder):
        raise InputError("no")

    monkeypatch.setitem(FORMATS, "points", fail)
    with pytest.raises(InputError, match="no"):
        export(job, tmp_path, ["labels", "points"])
    assert json.loads((tmp_path / ".exported.json").read_text()) == ["labels.npy"]
    monkeypatch.undo()
    (tmp_path / "points.ply").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"points\.ply is where an export would write"):
        export(job, tmp_path, ["points"])


def test_cutouts_that_cannot_be_made_are_said_before_anything_is_written(job, own_run, tiny_scene, tmp_path):
    away = replace(
        job, ids=[1], views=[replace(job.views[0], camera=Camera.look_at((9, 9, 9), (99, 99, 99), width=9, height=9))]
    )
    with pytest.raises(InputError, match="no view shows any of the chosen segments; choose others"):
        export(away, tmp_path / "out", ["ply", "cutouts"])
    scene = Path(shutil.copytree(tiny_scene, tmp_path / "scene"))
    facts = json.loads((own_run / "scene.json").read_text())
    (own_run / "scene.json").write_text(json.dumps({**facts, "scene": str(scene)}))
    (scene / "images" / NAMES[3]).unlink()
    seg = cgc.load(own_run)
    with pytest.raises(InputError, match=rf"made of photos, which cannot be read: .*{NAMES[3]}"):
        seg.export(tmp_path / "out", ["ply", "cutouts"])
    with pytest.raises(InputError, match=rf"{NAMES[3]}.*, or use edges"):
        seg.masks([NAMES[0]], edges="photos")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "formats", "said"),
    [
        ({"ids": [99]}, ["ply"], "segment 99 has no Gaussian; choose of those that are shown: 1, 2"),
        ({"ids": []}, ["ply"], "nothing to export"),
        ({}, ["ply", "obj"], "no format 'obj' to export; choose from ply, selection"),
        ({}, [], "no format was given"),
        ({"views": ()}, ["ply", "coco"], "needs the scene's cameras"),
        ({"rasterizer": None}, ["masks"], "needs the scene's cameras"),
        ({"views": ()}, ["cutouts"], "needs the scene's cameras"),
        ({"ids": range(1, 8)}, ["selection", "rest"], "rest is what is left .* nothing; choose fewer"),
        ({"ids": [1, 2, 10, 3, 4, 5, 6, 7]}, ["labels", "rest"], "rest is what is left .* nothing; choose fewer"),
        ({"ids": [8]}, ["labelled", "ply", "boxes"], r"8 is not shown .*, and boxes are .*; choose of 1, 2, 3, .*ply"),
        ({"ids": [1, 9]}, ["points", "coco"], "9 is not shown at this level, and coco are of what is shown"),
        ({"ids": [1, 3]}, ["labels", "selection"], "segment 3 has no Gaussian that is drawn"),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_written(job, tmp_path, change, formats, said):
    scene = family(keep(job.segmentation, range(1, 8)) if "rest" in formats else job.segmentation)
    if "drawn" in said:
        seen = scene.splats.logit_opacities.clone()
        seen[torch.from_numpy(scene.labels == 3)] = -9.0
        scene = replace(scene, splats=replace(scene.splats, logit_opacities=seen))
    with pytest.raises(InputError, match=said):
        export(replace(job, segmentation=scene, **change), tmp_path, formats)
    assert not list(tmp_path.iterdir())


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_names_never_leave_the_folder(name):
    assert set(safe_name(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(safe_name(name)) <= 40
    root = Path("/a/b")
    path = Path(os.path.normpath(root / safe_path(name)))
    assert path == root or root in path.parents
    assert not set(safe_path(name)) & set('<>:"|?*\\\0\n')


def test_hostile_views_stay_inside(job, tmp_path):
    names = ("../../evil.png", "/etc/passwd", "a\nb/..\\c.jpg", "ok.png")
    views = tuple(replace(v, name=name) for v, name in zip(job.views, names))
    export(replace(job, views=views), tmp_path / "in", ["masks", "coco", "cutouts"])
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert len(list((tmp_path / "in/masks").rglob("*.png"))) == 4


def test_views_whose_names_no_file_may_have_get_files_of_their_own(job, tmp_path):
    names = ("a:b.png", "a_b.png", "q?.png", "a_b_2.png")
    views = tuple(replace(v, name=name) for v, name in zip(job.views, names))
    export(replace(job, views=views), tmp_path, ["masks", "coco"])
    stems = ["a_b", "a_b_2", "q_", "a_b_2_2"]
    for stem, ids in zip(stems, job.shown_maps):
        np.testing.assert_array_equal(read_id_map(tmp_path / f"masks/{stem}.png"), ids)
    panoptic = json.loads((tmp_path / "coco/panoptic.json").read_text())
    assert [row["file_name"] for row in panoptic["annotations"]] == [f"{stem}.png" for stem in stems]


# ---- turntables


def test_turntables_show_all_of_an_object_from_all_around(job):
    red = job.segmentation[1].splats()
    frames = turntable(red, RASTERIZER, frames=6, size=48)
    assert frames.shape == (6, 48, 48, 3) and frames.dtype == np.uint8
    edges = np.concatenate([frames[:, [0, -1]].reshape(-1, 3), frames[:, :, [0, -1]].reshape(-1, 3)])
    assert (edges > 250).all()  # nothing is cut off
    assert (frames[:, 20:28, 20:28, 1] < 150).any(axis=(1, 2)).all()  # and it is in the middle, large
    assert (frames.min(-1) < 200).mean() > 0.1
    assert all(np.abs(frames[0].astype(int) - f).max() > 20 for f in frames[1:])
    eyes = np.stack([c.position.numpy() for c in turntable_cameras(red, 8, 32, up=(0, 0, 2), elevation=30)])
    centre = eyes.mean(0)
    np.testing.assert_allclose(eyes[:, 2], centre[2], atol=1e-4)
    radii = np.linalg.norm(eyes - centre, axis=1)
    np.testing.assert_allclose(radii, radii[0], rtol=1e-4)
    np.testing.assert_allclose(eyes[0] + eyes[4], 2 * centre, atol=1e-4)


def test_turntables_are_a_format_too(job, tmp_path):
    [path] = export_turntables(replace(job, ids=[2]), tmp_path)
    assert path == tmp_path / "turntables/0002_green-groe.gif"
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (36, (256, 256))
    with pytest.raises(InputError, match="rasteriser"):
        export_turntables(replace(job, rasterizer=None), tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg leaves pipes open
def test_videos_are_a_format_where_they_can_be_written(job, tmp_path, monkeypatch):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    [path] = export(replace(job, ids=[2]), tmp_path, ["video"])
    assert path == tmp_path / "turntables/0002_green-groe.mp4"
    facts = next(imageio_ffmpeg.read_frames(str(path)))
    assert facts["size"] == (512, 512) and facts["fps"] == 24 and facts["duration"] == 4
    monkeypatch.setattr("cgc.segmentation.turntable.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install imageio-ffmpeg"):
        export(replace(job, ids=[2]), tmp_path / "other", ["labels", "video"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("up", [(1, 0, 0), (0, -1, 0), (0.3, 0.5, -0.8)])
def test_any_direction_may_be_up(job, up):
    for camera in turntable_cameras(job.segmentation[1].splats(), 5, 32, up=up, elevation=0):
        shown = camera.viewmat[1, :3].numpy()
        np.testing.assert_allclose(-shown, np.array(up) / np.linalg.norm(up), atol=1e-5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg leaves pipes open
def test_animations_come_back(job, tmp_path):
    frames = turntable(job.segmentation[3].splats(), RASTERIZER, frames=5, size=41)
    write_animation(tmp_path / "a/t.gif", frames, fps=10)
    with Image.open(tmp_path / "a/t.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"], gif.info["duration"]) == (5, (41, 41), 0, 100)
        for i in range(5):
            gif.seek(i)
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown - frames[i]).mean() < 6 and (shown[0, 0] == 255).all()
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    write_animation(tmp_path / "t.mp4", frames)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "t.mp4"))
    facts = next(reader)
    shown = [np.frombuffer(f, np.uint8).reshape(40, 40, 3).astype(int) for f in reader]
    assert facts["size"] == (40, 40) and len(shown) == 5
    assert np.abs(shown[2] - frames[2][:40, :40]).mean() < 12
    assert {p.name for p in tmp_path.iterdir()} == {"a", "t.mp4"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: turntable_cameras(s, 0, 32), "0 frames of 32"),
        (lambda s: turntable_cameras(s, 3, 32, up=(0, 0, 0)), "direction .* has length 0"),
        (lambda s: turntable_cameras(s, 3, 32, up="z"), "an up direction .* was expected, got 'z'"),
        (lambda s: turntable_cameras(s, 3, 32, elevation=90), "elevation"),
        (lambda s: turntable_cameras(s.select(torch.zeros(len(s), dtype=torch.bool)), 3, 32), "no Gaussians"),
        (lambda s: write_animation("a.webm", np.zeros((1, 8, 8, 3), np.uint8)), "neither a .gif nor a .mp4"),
        (lambda s: write_animation("a.gif", np.zeros((0, 8, 8, 3), np.uint8)), "frames"),
        (lambda s: write_animation("a.gif", np.zeros((1, 8, 8, 3), np.uint8), fps=0), "frames a second"),
    ],
)
def test_bad_turntables_are_said(job, call, said):
    with pytest.raises(InputError, match=said):
        call(job.segmentation[1].splats())


# ---- other people's tools


@pytest.mark.skipif(
    "CGC_SPLAT_TRANSFORM" not in os.environ,
    reason="CGC_SPLAT_TRANSFORM does not name the command of SuperSplat's converter (npm @playcanvas/splat-transform)",
)
def test_supersplats_converter_reads_what_we_write(job, tmp_path):
    paths = [*FORMATS["ply"](replace(job, ids=[1]), tmp_path), *FORMATS["labelled"](job, tmp_path)]
    for path in paths:
        ours, table, again = read_ply(path), tmp_path / f"{path.stem}.csv", tmp_path / f"again_{path.stem}.ply"
        convert(path, table)
        with open(table, newline="") as file:
            got = np.array([[float(row[c]) for c in "xyz"] for row in csv.DictReader(file)])
        np.testing.assert_array_equal(got.astype(np.float32), ours.means.numpy())
        convert(path, again)
        assert same(read_ply(again), ours)
    small = tmp_path / "small.sog"  # SuperSplat's own format, with fewer bits and in another order
    convert(paths[0], small)
    convert(small, tmp_path / "small.ply")
    got, ours = read_ply(tmp_path / "small.ply").means, read_ply(paths[0]).means
    assert got.shape == ours.shape and torch.cdist(ours, got).min(1).values.max() < 1e-3


def convert(source: Path, target: Path) -> None:
    """Run SuperSplat's converter."""
    command = [*shlex.split(os.environ["CGC_SPLAT_TRANSFORM"]), "-g", "cpu", str(source), str(target)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr


def test_the_floor_of_the_tiny_scene_is_seen(job):
    assert all((ids == FLOOR).any() and ids.shape[1] == WIDTH for ids in job.shown_maps)
