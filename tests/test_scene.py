"""The scene room: models made here by pycolmap and by hand, read back and held against known values."""

import json
import math
import os
import random
import shutil
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from cgc.errors import InputError
from cgc.scene import images, read
from cgc.scene import lens as lenses
from cgc.scene.binary import _PARAMETERS
from cgc.scene.cameras import up_of
from cgc.scene.images import Header, check_images, load_colors, load_image, load_photo, load_view, read_header
from cgc.scene.names import settle
from cgc.scene.read import fingerprint, read_cameras, read_scene
from cgc.scene.types import Camera, Lens, extent_of
from cgc.settings import SceneSettings

MODELS = [name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"]
WIDTH, HEIGHT = 40, 30
POINTS = "\n".join(
    ["ply", "format ascii 1.0", "element vertex 1", *(f"property float {a}" for a in "xyz"),
     *(f"property uchar {c}" for c in ("red", "green", "blue")), "end_header", ""]
)  # fmt: skip


def make_camera(model="PINHOLE", focal=30.0, width=WIDTH, height=HEIGHT, camera_id=1, params=None):
    camera = pycolmap.Camera.create_from_model_id(
        camera_id, pycolmap.CameraModelId.__members__[model], focal, width, height
    )
    if params is not None:
        camera.params = np.array(params, float)
    return camera


def make_model(names=("a.png", "b.png", "c.png"), cameras=None):
    """A row of cameras one unit apart that look along +z at three points 5 away."""
    model = pycolmap.Reconstruction()
    cameras = cameras or [make_camera()]
    for camera in cameras:
        model.add_camera_with_trivial_rig(camera)
    for i, name in enumerate(names):
        points = pycolmap.Point2DList([pycolmap.Point2D(np.array([i, j], float)) for j in range(4)])
        camera_id = cameras[i % len(cameras)].camera_id
        image = pycolmap.Image(name=name, camera_id=camera_id, image_id=i + 1, points2D=points)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0, 0, 1.0])), np.array([-i, 0, 0.0]))
        model.add_image_with_trivial_frame(image, pose)
    for j in range(4):
        track = pycolmap.Track()
        for i in range(1 if j == 3 else len(names)):  # the fourth point is seen once
            track.add_element(i + 1, j)
        model.add_point3D(np.array([j, 0.5, 5.0]), track, np.array([10 * j, 1, 2], np.uint8))
    return model


def write_image(path, size=(WIDTH, HEIGHT), color=(200, 100, 50), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, color)
    image.putpixel((0, 0), (0, 0, 0))
    options = {}
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)


def make_scene(root, names=("a.png", "b.png", "c.png"), cameras=None, text=False, size=(WIDTH, HEIGHT)):
    folder = root / "sparse/0"
    folder.mkdir(parents=True)
    model = make_model(names, cameras)
    (model.write_text if text else model.write_binary)(str(folder))
    for name in names:
        write_image(root / "images" / name, size)
    return root


def transforms_scene(root, content, size=(WIDTH, HEIGHT), names=("images/a.png", "images/b.png")):
    pose = np.eye(4)
    frames = [{"file_path": name, "transform_matrix": pose.tolist()} for name in names]
    (root / "transforms.json").write_text(json.dumps({"frames": frames, **content}))
    for name in names:
        write_image(root / (name if Path(name).suffix else f"{name}.png"), size)
    return root


# ---- COLMAP models


def test_points_that_do_not_say_which_images_see_them_are_kept(tmp_path):
    root = make_scene(tmp_path)
    model = pycolmap.Reconstruction(str(root / "sparse/0"))
    places = [point.xyz.copy() for point in model.points3D.values()]
    for number in list(model.points3D):
        model.delete_point3D(number)
    for place in places:
        model.add_point3D(place, pycolmap.Track(), np.array([7, 8, 9], np.uint8))
    model.write_binary(str(root / "sparse/0"))
    scene = read_scene(root)
    assert sorted(scene.points[:, 0].tolist()) == [0, 1, 2, 3] and scene.point_colors[0].tolist() == [7, 8, 9]


@pytest.mark.parametrize("text", [False, True])
def test_reads_poses_intrinsics_and_points(tmp_path, text):
    root = make_scene(tmp_path, ("b.png", "a.png", "sub/c.png"), text=text)
    scene = read_scene(root)
    assert [view.name for view in scene.views] == ["a.png", "b.png", "sub/c.png"]
    assert [view.camera.position.tolist() for view in scene.views] == [[1, 0, 0], [0, 0, 0], [2, 0, 0]]
    K = torch.tensor([[30.0, 0, 20], [0, 30, 15], [0, 0, 1]])
    assert all(torch.equal(view.camera.K, K) and view.full_size == (40, 30) for view in scene.views)
    assert scene.points.dtype == np.float32 and scene.point_colors.dtype == np.uint8
    assert scene.points[:, 0].tolist() == [0, 1, 2] and scene.point_colors[:, 0].tolist() == [0, 10, 20]
    assert scene.notes == () and scene.model_path == root / "sparse/0"


@pytest.mark.parametrize("names", [("cameras", "images", "points3D", "rigs", "frames"), ("images",), ("frames",)])
@pytest.mark.parametrize(("mark", "end"), [(b"\xef\xbb\xbf", b"\n"), (b"\xef\xbb\xbf", b"\r\n"), (b"", b"\r\n")])
def test_text_models_as_editors_on_windows_save_them(tmp_path, names, mark, end):
    plain, saved = (make_scene(tmp_path / name, text=True) for name in ("plain", "saved"))
    for path in (saved / f"sparse/0/{name}.txt" for name in names):
        lines = [line for line in path.read_bytes().split(b"\n") if not line.startswith(b"#")]
        path.write_bytes(mark + end.join(lines))
    expected, scene = read_scene(plain), read_scene(saved)
    assert [(v.name, v.camera.position.tolist()) for v in scene.views] == [
        (v.name, v.camera.position.tolist()) for v in expected.views
    ]
    assert np.array_equal(scene.points, expected.points) and len(scene.points) == 3 and scene.notes == ()
    shutil.copytree(saved / "sparse/0", saved / "sparse/1")
    assert read_scene(saved).notes == ()


def test_names_with_spaces_are_whole_in_text_too(tmp_path):
    names = ("my photo 2.png", "my photo 1.png", "sub dir/c.png")
    root = make_scene(tmp_path, names, text=True)
    scene = read_scene(root)
    assert [view.name for view in scene.views] == sorted(names)
    assert [view.camera.position[0].item() for view in scene.views] == [1, 0, 2]


@pytest.mark.parametrize("text", [False, True])
def test_a_larger_model_beside_the_one_in_use_is_said(tmp_path, text):
    root = make_scene(tmp_path, ("a.png", "b.png", "c.png"))
    for number, names in ((1, [f"{c}.png" for c in "abcd"]), (2, ["a.png", "b.png"])):
        folder = root / f"sparse/{number}"
        folder.mkdir()
        model = make_model(names)
        (model.write_text if text else model.write_binary)(str(folder))
    (note,) = read_scene(root).notes
    assert note == f"{root}/sparse/1 has 4 images where {root}/sparse/0, which is used, has 3: give it as the scene"
    write_image(root / "images/d.png")
    larger = read_scene(root / "sparse/1")
    assert len(larger.views) == 4
    assert larger.notes == (f"the photos are those in {root}/images: {root}/sparse/1 has a model and no photos",)


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_accents_are_found_in_either_code(tmp_path, stored):
    root = make_scene(tmp_path, ("caf\u00e9.png", "b.png"))
    given = root / "images/caf\u00e9.png"
    given.rename(given.with_name(unicodedata.normalize(stored, given.name)))
    assert read_scene(root).views[1].image_path.is_file()


@pytest.mark.parametrize("read", [read_scene, read_cameras])
def test_a_model_far_from_its_origin_is_brought_there(tmp_path, read):
    """Georeferenced models have coordinates of millions; float32 would round their places to half a unit."""
    far = np.array([512_345.123, -4_812_345.877, 250.25])
    roots = [make_scene(tmp_path / name) for name in ("near", "far")]
    model = make_model()
    turn = pycolmap.Rotation3d(np.array([0.1, 0.2, 0.3, 0.9]) / np.linalg.norm([0.1, 0.2, 0.3, 0.9]))
    model.transform(pycolmap.Sim3d(1.0, turn, np.zeros(3)))
    model.write_binary(str(roots[0] / "sparse/0"))
    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), far))
    model.write_binary(str(roots[1] / "sparse/0"))
    if read is read_cameras:
        near, shown = ({n: c.position for n, c in read(root).items()} for root in roots)
        apart = torch.stack([shown[n] - near[n] for n in near])
        assert float(apart.std(0).max()) < 1e-5 and float(apart.abs().max()) < 3
        return
    near, shown = (read(root) for root in roots)
    origin = np.array(shown.origin)
    assert near.origin == (0, 0, 0) and near.notes == () and "far from its origin" in shown.notes[0]
    assert np.abs(far - origin).max() < 3 and shown.extent == pytest.approx(near.extent, rel=1e-5)
    np.testing.assert_allclose(shown.points + origin - far, near.points, atol=1e-5)
    for a, b in zip(near.views, shown.views):
        np.testing.assert_allclose(b.camera.position.numpy() + origin - far, a.camera.position, atol=1e-5)
        np.testing.assert_array_equal(b.camera.viewmat[:3, :3], a.camera.viewmat[:3, :3])


def test_the_extent_is_a_tenth_more_than_the_radius_of_the_cameras():
    assert extent_of(np.array([[3.0, 0, 0], [1, 0, 0]])) == pytest.approx(1.1)


def test_projects_as_pycolmap_does(tmp_path):
    root = make_scene(tmp_path, cameras=[make_camera(params=[31, 29, 17.5, 14])])
    model = pycolmap.Reconstruction(str(root / "sparse/0"))
    images = {image.name: image for image in model.images.values()}
    for view in read_scene(root).views:
        x = np.array([0.3, -0.2, 4.0])
        seen = view.camera.K.double() @ (view.camera.viewmat.double() @ torch.tensor([*x, 1.0]).double())[:3]
        np.testing.assert_allclose((seen[:2] / seen[2]).numpy(), images[view.name].project_point(x), atol=1e-4)


def test_model_without_rigs_and_frames(tmp_path):
    root = make_scene(tmp_path)
    for name in ("rigs.bin", "frames.bin"):
        (root / "sparse/0" / name).unlink()
    assert len(read_scene(root).views) == 3


@pytest.mark.parametrize("place", ["sparse", "colmap/sparse/0", "."])
def test_finds_the_model_in_other_places(tmp_path, place):
    root = make_scene(tmp_path / "made")
    moved = tmp_path / "scene"
    shutil.copytree(root / "sparse/0", moved / place)
    shutil.copytree(root / "images", moved / "images")
    assert len(read_scene(moved).views) == 3


@pytest.mark.parametrize(
    ("place", "photos"),
    [
        ("colmap", "images"),
        ("sparse_12/0", "images"),
        ("sparse/1", "images"),
        ("dense/sparse", "dense/images"),
        ("dense/0/sparse", "dense/0/images"),
        ("distorted/sparse/0", "input"),
        ("dslr/colmap", "dslr/resized_images"),
        ("dslr_calibration_undistorted", "images/dslr_images_undistorted"),
    ],
)
def test_the_only_model_below_is_used_with_a_note(tmp_path, place, photos):
    made, root = make_scene(tmp_path / "made"), tmp_path / "scene"
    shutil.copytree(made / "sparse/0", root / place)
    shutil.copytree(made / "images", root / photos)
    if "undistorted" in photos:  # names there begin with the folder
        make_model([f"dslr_images_undistorted/{n}.png" for n in "abc"]).write_binary(str(root / place))
    shutil.copytree(made / "images", root / "masks")
    transforms_scene(root / "masks", {})  # COLMAP's goes first
    scene = read_scene(root)
    assert scene.model_path == root / place and {v.image_path.parent for v in scene.views} == {root / photos}
    assert scene.notes[0].endswith(f"the COLMAP model below it is used, {root / place}")
    assert list(read_cameras(root)) == [view.name for view in scene.views]
    alone = read_scene(root / place)  # the model's folder will do, with photos beside it or above
    assert {view.image_path.parent for view in alone.views} == {root / photos}
    folder = root / photos.removesuffix("/dslr_images_undistorted")
    assert alone.notes[-1].startswith(f"the photos are those in {folder}:")
    assert list(read_cameras(root / place)) == [view.name for view in alone.views]


def test_transforms_below_are_used_with_a_note(tmp_path):
    (tmp_path / "dslr/nerfstudio").mkdir(parents=True)
    transforms_scene(tmp_path / "dslr/nerfstudio", {"fl_x": 50, "w": 40, "h": 30}, names=("a.png", "b.png"))
    for name in "ab":
        (tmp_path / f"dslr/nerfstudio/{name}.png").unlink()
        write_image(tmp_path / f"dslr/resized_images/{name}.png")
    first, second = read_scene(tmp_path / "dslr").notes
    assert first.endswith("that below it is used, " + str(tmp_path / "dslr/nerfstudio/transforms.json"))
    assert second.startswith(f"the photos are those in {tmp_path}/dslr/resized_images: none that ")


def test_a_model_below_of_other_photos_is_not_taken_for_the_scenes(tmp_path):
    scene = make_scene(tmp_path / "old")
    for name in "ab":  # two pictures are no photos to make a scene of
        write_image(tmp_path / f"{name}.png")
    assert len(read_scene(tmp_path).views) == 3
    write_image(tmp_path / "c.png")
    refused = rf"^{tmp_path} has photos of its own.* in {scene}/images: give {scene} as the scene, or move"
    with pytest.raises(InputError, match=refused):
        read_scene(tmp_path)
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / f"{name}.png").rename(tmp_path / f"images/{name}.png")
    with pytest.raises(InputError, match=refused):
        read_scene(tmp_path)


def test_several_models_below_are_named(tmp_path):
    for name in ("a", "b"):
        make_scene(tmp_path / name)
    with pytest.raises(InputError, match=rf"several camera .* \({tmp_path}/a, {tmp_path}/b\), or move the others"):
        read_scene(tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/one").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "linked/again").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "linked/round").symlink_to(tmp_path / "linked", target_is_directory=True)
    assert len(read_scene(tmp_path / "linked").views) == 3
    shutil.rmtree(tmp_path / "linked")
    (tmp_path / "a/sparse/0").rename(tmp_path / "a/sparse/1")
    shutil.copytree(tmp_path / "a/sparse/1", tmp_path / "a/sparse_3/0")
    with pytest.raises(InputError, match=rf"\({tmp_path}/a/sparse/1, {tmp_path}/a/sparse_3/0\)"):
        read_scene(tmp_path / "a")
    assert len(read_scene(tmp_path / "a/sparse_3/0").views) == 3


def test_points_of_a_ply_file(tmp_path):
    for text in (False, True):
        root = make_scene(tmp_path / str(text), text=text)
        folder, end = root / "sparse/0", "txt" if text else "bin"
        (folder / f"points3D.{end}").unlink()
        (folder / "points3D.ply").write_text(POINTS + "1 2 3 4 5 6\n")
        (folder / f"more.{end}").mkdir()
        scene = read_scene(root)
        assert scene.points.tolist() == [[1, 2, 3]] and scene.point_colors.tolist() == [[4, 5, 6]]
        assert scene.notes == (f"the model has no points3D.{end}: its points are those of {folder}/points3D.ply",)
        assert "points3D.ply" in fingerprint(scene)["model"] and len(scene.views) == 3
    (folder / "points3D.ply").write_text(POINTS)
    with pytest.raises(InputError, match=r"points3D\.ply, the point cloud .* write an empty points3D\.txt to start"):
        read_scene(root)
    (folder / "images.txt").write_text("nonsense")
    (folder / "points3D.ply").write_text(POINTS + "1 2 3 4 5 6\n")
    with pytest.raises(InputError, match=f"^{folder} is broken"):
        read_scene(root)


def test_an_image_of_a_text_model_without_its_second_line(tmp_path):
    root = make_scene(tmp_path, text=True)
    path = root / "sparse/0/images.txt"
    lines = [line for line in path.read_text().splitlines() if line.endswith(".png")]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"line of \w\.png is followed by one that ends in \w\.png where that of its"):
        read_scene(root)


def test_sparse_0_itself_and_a_folder_of_images_that_is_gone(tmp_path, monkeypatch):
    root = make_scene(tmp_path)
    assert len(read_scene(root / "sparse/0").views) == 3
    (root / "images").rename(root / "input")
    for inner in ("sparse", "sparse/0"):
        scene = read_scene(root / inner)
        assert {view.image_path.parent for view in scene.views} == {root / "input"}
        assert scene.notes[-1].startswith(f"the photos are those in {root}/input: none that ")
    (root / "input").rename(root / "sparse/photos")  # the innermost
    write_image(root / "images/other.png")
    assert {view.image_path.parent for view in read_scene(root / "sparse/0").views} == {root / "sparse/photos"}
    shutil.rmtree(root / "images")
    for path in (root / "sparse/photos").iterdir():
        path.rename(root / path.name)
    (root / "sparse/photos").rmdir()
    monkeypatch.chdir(root / "sparse/0")
    assert {view.image_path.parent for view in read_scene(".").views} == {root}
    for path in root.glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"images folder .*images does not exist; put the 3 photos"):
        read_scene(root)


def test_binary_parameter_counts_are_pycolmaps():
    ids = pycolmap.CameraModelId.__members__
    counts = {int(ids[name].value): len(make_camera(name).params) for name in MODELS}
    assert dict(enumerate(_PARAMETERS)) == counts


def test_several_cameras_keep_their_sizes(tmp_path):
    cameras = [make_camera(), make_camera(width=20, height=24, camera_id=2)]
    root = make_scene(tmp_path, ("a.png", "b.jpg"), cameras)
    write_image(root / "images/b.jpg", (20, 24))
    assert [(v.camera.width, v.camera.height) for v in read_scene(root).views] == [(40, 30), (20, 24)]
    assert load_image(read_scene(root, SceneSettings(downscale=2)).views[1]).shape == (12, 10, 3)


# ---- photos in other places


@pytest.mark.parametrize(
    ("names", "lie"),
    [
        (("images/a.png", "images/b.png"), ("a.png", "b.png")),
        (("sub/a.png", "sub/b.png"), ("a.png", "b.png")),
        (("a.png", "sub/b.png"), ("a.png", "b.png")),
        (("../data/x/images/s/a.png", "../data/x/images/b.png"), ("s/a.png", "b.png")),
        (("C:\\x\\images\\a.png", "C:\\x\\images\\b.png"), ("a.png", "b.png")),
        (("ROOT/images/a.png", "ROOT/images/b.png"), ("a.png", "b.png")),
    ],
)
def test_names_that_count_from_another_folder(tmp_path, names, lie):
    root = make_scene(tmp_path, lie)
    names = [name.replace("ROOT", str(root)) for name in names]
    make_model(names).write_binary(str(root / "sparse/0"))
    (note,) = (scene := read_scene(root)).notes
    assert [view.image_path for view in scene.views] == sorted(root / "images" / name for name in lie)
    assert [view.name for view in scene.views] == sorted(lie) == list(read_cameras(root))
    assert "names its photos from elsewhere" in note and note.endswith("and the others likewise")


def test_what_is_where_the_model_says_is_not_taken_from_elsewhere(tmp_path):
    root = make_scene(tmp_path, ("cam0/a.png", "a.png", "b.png"))
    make_model(("cam0/a.png", "cam1/b.png")).write_binary(str(root / "sparse/0"))
    with pytest.raises(InputError, match=r"1 of the 2 images .* are missing in .*/images: cam1/b\.png"):
        read_scene(root)
    make_model((f"{'x' * 300}.png", "b.png")).write_binary(str(root / "sparse/0"))
    with pytest.raises(InputError, match=r"1 of the 2 images .* are missing"):
        read_scene(root)


@pytest.mark.parametrize(
    ("names", "lie"),
    [
        (("a.png", "b.png"), ("cam1/a.png", "cam2/b.png")),
        (("a.png", "b.png"), ("a.png", "more/b.png")),  # moved in part
        (("left/a.png", "right/a.png"), ("rig/left/a.png", "rig/right/a.png")),
        (("run/left/a.png", "run/right/a.png"), ("1/left/a.png", "2/right/a.png")),  # without their first folder
        (("x/cam/a.jpg", "x/cam/b.jpg"), ("y/z/a.png", "y/z/b.png")),
        (("../a.png", "../cam/b.png"), ("1/a.png", "2/b.png")),
    ],
)
def test_photos_in_deeper_folders_than_names_say(tmp_path, names, lie):
    root = make_scene(tmp_path, lie)
    make_model(names).write_binary(str(root / "sparse/0"))
    (note,) = (scene := read_scene(root)).notes
    assert [view.image_path for view in scene.views] == [root / "images" / name for name in lie]
    assert [os.path.splitext(view.name)[0] for view in scene.views] == [name.removesuffix(".png") for name in lie]
    assert [view.name for view in scene.views] == list(read_cameras(root))
    moved = next((name, there) for name, there in zip(names, lie) if name != there)
    assert f"names its photos from elsewhere: {moved[0]} is " in note


@pytest.mark.parametrize(
    "lie",
    [
        ("1/a.png", "1/b.png", "2/b.png"),  # which one?
        ("1/a.png", "1/b.png", "1/b.jpg"),
        ("1/a.png", "1/other_b.png"),
        ("masks/a.png", "masks/b.png"),
        ("a.png", "old/a.png", "old/b.png"),
    ],
)
def test_photos_in_deeper_folders_are_left_where_it_is_not_clear_which(tmp_path, lie):
    root = make_scene(tmp_path, lie)
    make_model(("a.png", "b.png")).write_binary(str(root / "sparse/0"))
    with pytest.raises(InputError, match=r"of the 2 images .* are missing in .*/images: .*b\.png"):
        read_scene(root)
    (root / "images").rename(root / "masks")  # what lies below no folder of photos is none
    with pytest.raises(InputError, match=r"images folder .* does not exist"):
        read_scene(root)


def test_a_folder_is_listed_once_however_many_folders_names_have(tmp_path, monkeypatch):
    root = make_scene(tmp_path, ("1/2/3/4/a.png", "1/2/3/4/b.png", "1/2/3/4/c.png"))
    (root / "images/1/2/3/4/b.png").unlink()
    listed, asked = [], []
    below, isfile = images.folders_below, os.path.isfile
    monkeypatch.setattr(images, "folders_below", lambda folder: listed.append(folder) or below(folder))
    monkeypatch.setattr(images.os.path, "isfile", lambda path: asked.append(path) or isfile(path))
    names = [f"1/2/3/4/{name}.png" for name in "abc"]
    settled = settle(names, root, [root / "images", root], root / "sparse/0")
    assert settled.found.count(None) == 1 and settled.names == names and settled.note == ""
    assert listed == [root / "images", root] and len(asked) == 3 + 4 + 5  # a name tells of the other ways


def test_the_images_of_the_scene_go_before_those_beside_its_model(tmp_path):
    root = make_scene(tmp_path / "scene")
    shutil.copytree(root / "images", root / "sparse/images")
    assert {view.image_path.parent for view in read_scene(root).views} == {root / "images"}
    shutil.rmtree(root / "sparse/images")
    for inner in ("sparse", "sparse/0"):
        assert {view.image_path.parent for view in read_scene(root / inner).views} == {root / "images"}


def test_photos_that_are_gone_are_not_said_to_lie_outside(tmp_path):
    root = make_scene(tmp_path)
    names = [str(root / f"images/{name}.png") for name in "xyz"]
    make_model(names).write_binary(str(root / "sparse/0"))
    with pytest.raises(InputError, match=rf"3 of the 3 images .* are missing in {root}/images: images/x\.png"):
        read_scene(root)


@pytest.mark.parametrize("names", [("x/a.png", "y/a.png"), ("../a.png", "../../elsewhere/a.png")])
def test_names_are_not_cut_until_they_are_one(tmp_path, names):
    root = make_scene(tmp_path, ("a.png",))
    make_model(names).write_binary(str(root / "sparse/0"))
    with pytest.raises(InputError, match=r"2 of the 2 images .* are missing|lies outside"):
        read_scene(root)


def test_photos_outside_are_never_read(tmp_path):
    root = make_scene(tmp_path / "scene")
    for name in ("x.png", "y.png"):
        write_image(tmp_path / name)
    for names in (("../../x.png", "../../y.png"), (str(tmp_path / "x.png"), str(tmp_path / "y.png"))):
        make_model(names).write_binary(str(root / "sparse/0"))
        with pytest.raises(InputError, match="lies outside the scene's folder"):
            read_scene(root)


def test_names_of_transforms_that_count_from_another_folder(tmp_path):
    root = transforms_scene(tmp_path, {"fl_x": 50})
    text = (root / "transforms.json").read_text()
    for prefix in ("./data/scene/images/", "./..\\\\data\\\\images/", f"{root}/images/"):
        (root / "transforms.json").write_text(text.replace("images/", prefix))
        scene = read_scene(root)
        assert [view.image_path for view in scene.views] == [root / "images/a.png", root / "images/b.png"]
        assert [view.name for view in scene.views] == ["a.png", "b.png"]
    (root / "images/b.png").unlink()  # named from the root on, though by its absolute path
    with pytest.raises(InputError, match=rf"1 of the 2 images that .* are missing in {root}: images/b\.png; restore"):
        read_scene(root)


@pytest.mark.parametrize(
    ("place", "up", "photos"),
    [("nerf", "../images/", "images"), ("nerf", "../", "."), ("a/b", "../../in/x/", "in/x"), ("nerf", "", "nerf")],
)
def test_names_of_transforms_that_lead_up(tmp_path, monkeypatch, place, up, photos):
    root, folder = tmp_path / "scene", tmp_path / "scene" / place
    folder.mkdir(parents=True)
    names = (f"{up}a.png", f"{up}b.png", "../scene.png")[: 3 if photos == "nerf" else 2]  # a mix starts above all
    transforms_scene(folder, {"fl_x": 50, "ply_file_path": "../cloud.ply"}, names=names)
    (folder / "../cloud.ply").write_text(POINTS + "1 2 3 4 5 6\n")
    for name in ("a.png", "b.png"):
        write_image(folder / "images" / name, (20, 10))  # what is where the file says goes first
    files = sorted((folder / name).resolve() for name in names)
    scenes = [read_scene(root)]
    if place == "nerf":
        monkeypatch.chdir(folder)
        scenes += [read_scene(folder), read_scene(".")]
    for scene in scenes:
        assert sorted(view.image_path.resolve() for view in scene.views) == files and len(scene.points) == 1
        assert not any(".." in view.name or view.name.startswith("/") for view in scene.views)
    (root / "images_2").mkdir()
    if photos == "images":
        for name in ("a.png", "b.png"):
            write_image(root / "images_2" / name, (20, 15))
        assert {v.image_path.parent for v in read_scene(root, SceneSettings(downscale=2)).views} == {root / "images_2"}
        (root / "images/b.png").unlink()
        with pytest.raises(InputError, match=rf"1 of the 2 images .* are missing in {root}/images: b\.png"):
            read_scene(root)


@pytest.mark.parametrize("up", ["../../", "../x/../../"])
def test_names_of_transforms_lead_no_further_than_beside_their_folder(tmp_path, up):
    root = tmp_path / "scene/nerf"
    root.mkdir(parents=True)
    transforms_scene(root, {"fl_x": 50}, names=(f"{up}a.png", f"{up}b.png"))
    with pytest.raises(InputError, match="lies outside"):
        read_scene(root)
    assert len(read_scene(tmp_path).views) == 2  # inside what is given


def test_photos_of_another_folder_are_used_where_it_is_the_only_one(tmp_path):
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30})
    shutil.rmtree(root / "images")
    others = [f"{folder}/{name}.png" for folder in ("depths", "image_masks", "instance_colors") for name in "ab"]
    for name in ("images_2/a.png", "images_2/b.png", "input/a.png", *others):
        write_image(root / name, (20, 15))
    scene = read_scene(root)
    assert [view.image_path for view in scene.views] == [root / "images_2/a.png", root / "images_2/b.png"]
    assert scene.views[0].camera.K[0, 0] == 25 and scene.notes[0].startswith(f"the photos are those in {root}/images_2")
    small = read_scene(root, SceneSettings(downscale=2))
    assert small.views[0].full_size == (40, 30) and small.notes == () and small.views[0].camera.K[0, 0] == 25
    write_image(root / "input/b.png")
    with pytest.raises(InputError, match=rf"not in {root}/images but in {root}/images_2, {root}/input: .* --downscale"):
        read_scene(root)


# ---- lenses


@pytest.mark.parametrize("model", MODELS)
def test_every_camera_model(tmp_path, model):
    camera = make_camera(model)
    root = make_scene(tmp_path, cameras=[camera])
    if model == "EQUIRECTANGULAR":
        with pytest.raises(InputError, match="equirectangular"):
            read_scene(root, quiet=True)
        return
    scene = read_scene(root, quiet=True)
    view = scene.views[0]
    flat = model in ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
    assert (view.distortion is None) == flat and (root / ".cgc_cache").exists() == (not flat)
    assert load_image(view).shape == (view.camera.height, view.camera.width, 3)
    expected = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    if not flat:
        assert (view.camera.width, view.camera.height) == (expected.width, expected.height)
        np.testing.assert_allclose(view.camera.K.numpy(), expected.calibration_matrix(), rtol=1e-6)


OPENCV = [300, 310, 205, 148, -0.2, 0.05, 0.004, -0.003]


def distorted_scene(root, suffix=".png"):
    """Photos of a dot grid as an OPENCV lens sees it; returns the rays of the dots, [n, 2]."""
    camera = make_camera("OPENCV", width=400, height=300, params=OPENCV)
    make_scene(root, [f"sub/{n}{suffix}" for n in "ab"], [camera], size=(400, 300))
    x, y = np.meshgrid(np.linspace(-0.45, 0.45, 6), np.linspace(-0.35, 0.35, 5))
    rays = np.stack([x.ravel(), y.ravel()], 1)
    dots = camera.img_from_cam(np.column_stack([rays, np.ones(len(rays))]))
    py, px = np.mgrid[:300, :400] + 0.5
    shade = sum(np.exp(-((px - u) ** 2 + (py - v) ** 2) / 8) for u, v in dots)
    photo = np.repeat((255 * np.clip(shade, 0, 1)).astype(np.uint8)[..., None], 3, 2)
    for name in "ab":
        Image.fromarray(photo).save(root / f"images/sub/{name}{suffix}", lossless=True)
    return rays


@pytest.mark.parametrize(("suffix", "downscale"), [(".png", 1), (".webp", 1), (".png", 2)])
def test_undistortion_puts_a_grid_where_the_pinhole_sees_it(tmp_path, suffix, downscale):
    rays = distorted_scene(tmp_path, suffix)
    scene = read_scene(tmp_path, SceneSettings(downscale=downscale), quiet=True)
    view, image = scene.views[0], load_image(scene.views[0])[..., 0].astype(float)
    K = view.camera.K.numpy()
    expected = rays @ K[:2, :2].T + K[:2, 2]
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    for u, v in expected:
        near = image * (np.hypot(x - u, y - v) < 10 / downscale)
        seen = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
        np.testing.assert_allclose(seen, [u, v], atol=0.3)
    assert "undistorted" in scene.notes[0] and view.full_size == (400, 300)


def test_undistorted_photos_keep_their_folders(tmp_path):
    camera = make_camera("OPENCV", params=[30, 30, 20, 15, -0.2, 0.05, 0, 0])
    view = read_scene(make_scene(tmp_path, ["a/b/1.png", "a/b/2.png"], [camera]), quiet=True).views[0]
    assert view.image_path.parts[-3:] == ("a", "b", "1.png") and load_image(view).any()


def test_undistortion_keeps_what_is_see_through(tmp_path):
    distorted_scene(tmp_path)
    pixels = np.full((300, 400, 4), (200, 100, 50, 255), np.uint8)
    pixels[:, 200:, 3] = 102
    pixels[:100, 200:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "images/sub/a.png")
    flat = load_view(read_scene(tmp_path, quiet=True).views[0])
    assert flat.shape[2] == 4
    height, width = flat.shape[:2]
    for x, y, alpha in ((0.2, 0.5, 255), (0.8, 0.6, 102), (0.8, 0.1, 0)):
        seen = flat[int(y * height), int(x * width)].astype(int)
        assert np.abs(seen - [200 * alpha / 255, 100 * alpha / 255, 50 * alpha / 255, alpha]).max() <= 2


def test_undistorts_once_and_again_when_a_photo_changes(tmp_path):
    distorted_scene(tmp_path)
    first = read_scene(tmp_path, quiet=True).views[0].image_path
    stamp = first.stat().st_mtime_ns
    assert first.parts[-2:] == ("sub", "a.png") and first.parent.parent.parent == tmp_path / ".cgc_cache"
    assert read_scene(tmp_path, quiet=True).views[0].image_path.stat().st_mtime_ns == stamp
    assert sorted(p.name for p in (tmp_path / ".cgc_cache").iterdir()) == [first.parent.parent.name]
    write_image(tmp_path / "images/sub/a.png", (400, 300))
    assert read_scene(tmp_path, quiet=True).views[0].image_path != first
    elsewhere = read_scene(tmp_path, cache=tmp_path / "kept", quiet=True)
    assert elsewhere.views[0].image_path.is_relative_to(tmp_path / "kept")


def test_cache_falls_back_to_the_users(tmp_path, monkeypatch):
    distorted_scene(tmp_path / "scene")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    mkdir = Path.mkdir

    def refuse(self, *args, **kwargs):
        if ".cgc_cache" in str(self):
            raise PermissionError(13, "read-only")
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    view = read_scene(tmp_path / "scene", quiet=True).views[0]
    assert view.image_path.is_relative_to(tmp_path / "xdg/cgc") and load_image(view).any()


def test_failed_undistortion_leaves_nothing(tmp_path):
    distorted_scene(tmp_path)
    photo = tmp_path / "images/sub/b.png"
    photo.write_bytes(photo.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"sub/b.png cannot be read"):
        read_scene(tmp_path, quiet=True)
    assert list((tmp_path / ".cgc_cache").iterdir()) == []


def test_distorted_map_lookup_inverts_the_lens():
    lens = Lens("OPENCV", tuple(OPENCV), 400, 300)
    flat = lenses.undistorted(lens)
    K = torch.tensor(lenses.intrinsics(flat), dtype=torch.float32)
    camera = Camera(torch.eye(4), K, flat.width, flat.height)
    y, x = np.mgrid[:300, :400]
    column, row = (lenses.sample_distorted(a.astype(np.int32), lens, camera) for a in (x + 1, y + 1))
    inside = column > 0
    assert inside.mean() > 0.95
    rays = lenses.to_colmap(lens).cam_from_img(np.stack([column[inside] - 0.5, row[inside] - 0.5], 1))
    v, u = np.nonzero(inside)
    back = rays @ K.numpy()[:2, :2].T + K.numpy()[:2, 2]
    assert np.abs(back - np.stack([u + 0.5, v + 0.5], 1)).max() < 1  # half a pixel of the photo


@pytest.mark.parametrize("shrink", [1, 2])
def test_undistorted_map_lookup_inverts_the_other(shrink):
    lens = Lens("OPENCV", tuple(OPENCV), 400, 300)
    flat = lenses.undistorted(lens)
    camera = Camera(torch.eye(4), torch.tensor(lenses.intrinsics(flat), dtype=torch.float32), flat.width, flat.height)
    height, width = 300 // shrink, 400 // shrink
    y, x = np.mgrid[:height, :width]
    for wanted in (x + 1, y + 1):
        there = lenses.sample_distorted(wanted.astype(np.int32), lens, camera)
        back = lenses.sample_undistorted(there, camera, lens, width, height)
        inside = back > 0
        assert inside.mean() > 0.9 and back.dtype == np.int32 and back.shape == (height, width)
        assert np.abs(back - wanted)[inside].max() <= 1


def test_lens_of_a_smaller_photo_is_the_same_lens():
    for model, params in (("OPENCV", OPENCV), ("PINHOLE", OPENCV[:4])):
        lens = Lens(model, tuple(params), 400, 300)
        ray = np.array([[0.2, -0.1, 1.0]])
        half = lenses.to_colmap(lenses.resized(lens, 200, 150)).img_from_cam(ray)
        np.testing.assert_allclose(half * 2, lenses.to_colmap(lens).img_from_cam(ray))


# ---- images


def test_downscale_resizes_and_scales_K_per_axis(tmp_path):
    root = make_scene(tmp_path, cameras=[make_camera(width=41)], size=(41, 30))
    view = read_scene(root, SceneSettings(downscale=2)).views[0]
    assert (view.camera.width, view.camera.height) == (20, 15) and view.full_size == (41, 30)
    assert view.camera.K[0, 0].item() == pytest.approx(30 * 20 / 41)
    assert view.camera.K[1, 1].item() == pytest.approx(15)
    assert load_image(view).shape == (15, 20, 3)


def test_area_filter_averages(tmp_path):
    root = make_scene(tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(photo).save(root / "images/a.png")
    small = load_image(read_scene(root, SceneSettings(downscale=2)).views[0])
    mean = photo.reshape(15, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(small - mean).max() <= 1


def test_uses_the_downscaled_folder_by_stem(tmp_path):
    root = make_scene(tmp_path, ("a.png", "sub/b.png"))
    for name in ("a", "sub/b"):
        write_image(root / f"images_2/{name}.jpg", (20, 15))
    scene = read_scene(root, SceneSettings(downscale=2))
    assert [v.image_path for v in scene.views] == [root / "images_2/a.jpg", root / "images_2/sub/b.jpg"]
    assert scene.views[0].full_size == (40, 30) and scene.views[0].camera.K[0, 0] == 15 and scene.notes == ()
    shutil.rmtree(root / "images")  # the small copies are enough
    assert read_scene(root, SceneSettings(downscale=2)).views[0].full_size == (40, 30)


def test_incomplete_downscaled_folder_is_left_aside_with_a_note(tmp_path):
    root = make_scene(tmp_path)
    write_image(root / "images_2/a.png", (20, 15))
    scene = read_scene(root, SceneSettings(downscale=2))
    assert scene.views[0].image_path == root / "images/a.png" and "lacks 2 of 3" in scene.notes[0]


def test_max_side(tmp_path):
    root = make_scene(tmp_path)
    scene = read_scene(root, SceneSettings(max_side=20))
    assert [note for note in scene.notes if "max-side" in note and "40x" in note and "20x" in note]
    camera = scene.views[0].camera
    assert (camera.width, camera.height, camera.K[0, 2].item()) == (20, 15, 10)
    scene = read_scene(root, SceneSettings(max_side=400))
    assert scene.views[0].camera.width == 40 and not [note for note in scene.notes if "max-side" in note]


def test_images_smaller_than_the_model_scale_K_with_a_note(tmp_path):
    root = make_scene(tmp_path, size=(20, 15))
    scene = read_scene(root)
    assert scene.views[0].camera.K[0, 0] == 15 and scene.views[0].camera.width == 20
    assert scene.notes == (
        "3 images are 20x15 where the model's camera is 40x30: its intrinsics were scaled to the images",
    )


def test_images_of_another_shape(tmp_path):
    root = make_scene(tmp_path)
    write_image(root / "images/b.png", (40, 20))
    with pytest.raises(InputError, match=r"b\.png is 40x20 but its camera in the model is 40x30"):
        read_scene(root)


@pytest.mark.parametrize(("stored", "turned"), [((40, 30), False), ((30, 40), True)])
def test_exif_orientation_is_obeyed_only_where_the_turned_size_fits(tmp_path, stored, turned):
    root = make_scene(tmp_path, ("a.jpg", "b.jpg"))
    for name in "ab":
        path = root / f"images/{name}.jpg"
        write_image(path, stored, orientation=6)  # shown turned by 90 degrees clockwise
        pixels = np.zeros((stored[1], stored[0], 3), np.uint8)
        pixels[:10, :10] = 255  # the stored top left corner
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(path, quality=95, exif=exif)
    view = read_scene(root).views[0]
    image = load_image(view)
    assert image.shape == (30, 40, 3) and view.exif_rotated == turned and view.full_size == (40, 30)
    assert image[5, 35 if turned else 5].min() > 200 and image[25, 20].max() < 50


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_stored_for_us_as_they_are_for_colmap(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:15, :20, 0], pixels[:15, 20:, 1], pixels[15:, :20, 2] = 255, 255, 255
    options = {"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}
    Image.fromarray(pixels).save(path, exif=exif, **options)
    stored = load_photo(path, exif_rotated=False)
    assert read_header(path) == Header((40, 30), orientation > 4)
    assert np.abs(stored.astype(int) - pixels).mean() < 3
    assert np.abs(stored.astype(int) - pycolmap.Bitmap.read(path, True).to_array()).mean() < 3
    turned = load_photo(path, exif_rotated=True)
    first = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)][orientation - 1]
    assert turned.shape[:2] == ((40, 30) if orientation > 4 else (30, 40)) and turned[first].argmax() == 0
    assert turned[first].max() > 200


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16", "1", "LA"])
def test_other_kinds_of_images_become_rgb(tmp_path, mode):
    root = make_scene(tmp_path)
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 200 * 257, np.uint16))
    else:
        image = Image.new("RGBA", (40, 30), (200, 200, 200, 255)).convert(mode)
    image.save(root / "images/a.png")
    pixels = load_image(read_scene(root).views[0])
    assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8
    assert mode == "1" or abs(int(pixels[5, 5, 0]) - 200) < 10


def test_what_is_see_through_is_black_or_white(tmp_path):
    root = make_scene(tmp_path)
    pixels = np.full((30, 40, 4), (200, 100, 50, 255), np.uint8)
    pixels[:, 20:, 3], pixels[:10, 20:, 3] = 51, 0
    Image.fromarray(pixels).save(root / "images/a.png")
    view = read_scene(root).views[0]
    colors = load_view(view)
    assert colors.shape == (30, 40, 4) and (colors[..., 3] == pixels[..., 3]).all()
    black, white = load_image(view), load_image(view, white=True)
    for shown, behind in ((black, 0), (white, 255)):
        assert shown.dtype == np.uint8 and (shown[:, :20] == (200, 100, 50)).all()
        assert (shown[:10, 20:] == behind).all()
        assert np.abs(shown[10:, 20:] - (0.2 * np.array([200, 100, 50]) + 0.8 * behind)).max() <= 1
    small = load_colors(view.image_path, False, (4, 3))  # a colour under alpha 0 leaks into no other
    assert np.abs(small[0, 1].astype(int) - (200, 100, 50, 255)).max() <= 1 and (small[0, 2] == 0).all()
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(root / "images/a.png")  # there would be nothing: alpha means something else
    assert (load_view(view) == (200, 100, 50)).all()


@pytest.mark.parametrize(
    "grey",
    [
        np.float32([[0.0, 0.5, 1.0]]),
        np.int32([[0, 128, 255]]),
        np.int32([[0, 32896, 65535]]),
        np.float32([[0, 1e6, 2e6]]),
    ],
)
def test_grey_pictures_of_any_range_are_no_black_ones(tmp_path, grey):
    Image.fromarray(grey.repeat(2, 0)).save(tmp_path / "a.tif")
    shown = load_photo(tmp_path / "a.tif", exif_rotated=False)
    assert np.abs(shown[0, :, 0].astype(int) - [0, 128, 255]).max() <= 1 and shown.shape == (2, 3, 3)


# ---- transforms.json


def test_opengl_axes_become_opencv(tmp_path):
    angle = 0.3  # a camera at (1, 2, 3) turned about its y axis
    pose = np.eye(4)
    pose[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    pose[:3, 3] = 1, 2, 3
    content = {"fl_x": 50, "fl_y": 52, "cx": 21, "cy": 14, "w": 40, "h": 30}
    frames = [{"file_path": f"./images/{n}.png", "transform_matrix": pose.tolist()} for n in "ab"]
    for name in "ab":
        write_image(tmp_path / f"images/{name}.png")
    (tmp_path / "transforms.json").write_text(json.dumps({**content, "frames": frames}))
    scene = read_scene(tmp_path)
    view = scene.views[0]
    assert view.name == "a.png" and view.camera.K.tolist() == [[50, 0, 21], [0, 52, 14], [0, 0, 1]]
    viewmat = view.camera.viewmat.numpy()
    np.testing.assert_allclose(view.camera.position.numpy(), [1, 2, 3], atol=1e-6)
    ahead = pose @ [0, 0, -2, 1]  # OpenGL looks along -z, OpenCV along +z
    np.testing.assert_allclose(viewmat @ ahead, [0, 0, 2, 1], atol=1e-6)
    above = pose @ [0, 1, -2, 1]  # up is -y
    np.testing.assert_allclose(viewmat @ above, [0, -1, 2, 1], atol=1e-6)
    assert scene.points.shape == (0, 3) and scene.model_path == tmp_path / "transforms.json"


def test_field_of_view_and_missing_suffix_and_size(tmp_path):
    names = ("train/r_0", "train/r_1")
    root = transforms_scene(tmp_path, {"camera_angle_x": 0.4, "aabb_scale": 4}, names=names)
    os.rename(root / "transforms.json", root / "transforms_train.json")
    scene = read_scene(root)
    assert [v.name for v in scene.views] == ["train/r_0.png", "train/r_1.png"]
    K = scene.views[0].camera.K
    assert K[0, 0].item() == pytest.approx(20 / math.tan(0.2)) and K[0, 2] == 20 and K[1, 2] == 15
    assert list(fingerprint(scene)["model"]) == ["transforms_train.json"]


@pytest.mark.parametrize("stored", [(40, 30), (30, 40)])
@pytest.mark.parametrize(
    ("intrinsics", "lies"),
    [
        ({"fl_x": 50}, None),  # which says nothing: as it is stored
        ({"camera_angle_x": 0.8}, None),
        ({"fl_x": 50, "cx": 20.6, "cy": 14.5}, True),
        ({"fl_x": 50, "cx": 14.5, "cy": 20.6}, False),
        ({"fl_x": 50, "cx": 19.0}, True),
        ({"fl_x": 50, "cy": 19.0}, False),
        ({"camera_angle_x": 0.8, "camera_angle_y": 0.6}, True),
        ({"camera_angle_x": 0.6, "camera_angle_y": 0.8}, False),
        ({"camera_angle_x": 0.8, "camera_angle_y": 0.8}, None),
    ],
)
def test_photos_without_a_size_are_turned_only_where_that_alone_fits(tmp_path, stored, intrinsics, lies):
    root = transforms_scene(tmp_path, intrinsics, names=("images/a.jpg", "images/b.jpg"))
    for name in "ab":
        write_image(root / f"images/{name}.jpg", stored, orientation=6)
    size = stored if lies is None else (40, 30) if lies else (30, 40)
    view = read_scene(root).views[0]
    assert (view.camera.width, view.camera.height) == view.full_size == size and view.exif_rotated == (size != stored)
    assert load_image(view).shape == (*size[::-1], 3)
    for name in "ab":  # no tag, no turn
        write_image(root / f"images/{name}.jpg", stored)
    assert read_scene(root).views[0].full_size == stored


@pytest.mark.parametrize(
    ("extra", "model"),
    [
        ({"k1": 0.1}, "OPENCV"),
        ({"k3": 0.01}, "FULL_OPENCV"),
        ({"k4": 0.01, "camera_model": "FULL_OPENCV"}, "FULL_OPENCV"),
        ({"k4": 0.01, "k5": 0.01}, "FULL_OPENCV"),
        ({"k1": 0.1, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE"),
        ({"is_fisheye": True}, "OPENCV_FISHEYE"),
        ({"k1": 0.0, "camera_model": "OPENCV"}, None),
    ],
)
def test_transforms_lenses(tmp_path, extra, model):
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30, **extra})
    lens = read_scene(root, quiet=True).views[0].distortion
    assert (lens.model if lens else None) == model


@pytest.mark.parametrize(
    ("model", "terms"),
    [("OPENCV", "k1 k2 p1 p2"), ("OPENCV_FISHEYE", "k1 k2 k3 k4"), ("FULL_OPENCV", "k1 k2 p1 p2 k3 k4 k5 k6")],
)
def test_terms_of_a_lens_are_in_colmaps_order(tmp_path, model, terms):
    values = {term: 0.001 * (i + 1) for i, term in enumerate(sorted(terms.split()))}
    root = transforms_scene(tmp_path, {"fl_x": 50, "fl_y": 51, "w": 40, "h": 30, "camera_model": model, **values})
    lens = read_scene(root, quiet=True).views[0].distortion
    assert lens == Lens(model, (50, 51, 20, 15, *(values[term] for term in terms.split())), 40, 30)


def test_a_fourth_term_of_a_lens_is_refused(tmp_path):
    """nerfstudio's is of r^8, what COLMAP calls k4 is of r^2 below the fraction."""
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30, "k1": -0.1, "k4": 0.6, "camera_model": "OPENCV"})
    with pytest.raises(InputError, match=r"it has k4.* undistort the photos"):
        read_scene(root, quiet=True)


def test_transforms_points_and_own_intrinsics_a_frame(tmp_path):
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30, "ply_file_path": "points.ply"})
    content = json.loads((root / "transforms.json").read_text())
    content["frames"][1]["fl_x"] = 60
    (root / "transforms.json").write_text(json.dumps(content))
    header = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(f"property float {a}\n" for a in "xyz")
    header += "".join(f"property uchar {c}\n" for c in ("red", "green", "blue")) + "end_header\n"
    (root / "points.ply").write_text(header + "1 2 3 4 5 6\nnan 2 3 4 5 6\n")
    scene = read_scene(root)
    assert scene.points.tolist() == [[1, 2, 3]] and scene.point_colors.tolist() == [[4, 5, 6]]
    assert any(note.startswith("1 of 2 points of") and "NaN" in note for note in scene.notes)
    assert [v.camera.K[0, 0].item() for v in scene.views] == [50, 60]
    (root / "transforms.json").write_text(json.dumps({**content, "ply_file_path": f"{root}/points.ply"}))
    assert read_scene(root).points.tolist() == [[1, 2, 3]]
    (root / "points.ply").write_text(header + "1 2 3 4 5 6\n")
    with pytest.raises(InputError, match=r"points.ply, the point cloud that .* cannot be read"):
        read_scene(root)


@pytest.mark.parametrize(("values", "color"), [("0.5 0.2 1", [128, 51, 255]), ("7 130.4 255", [7, 130, 255])])
def test_colours_of_points_may_be_of_floating_point(tmp_path, values, color):
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30, "ply_file_path": ".\\sub\\points.ply"})
    header = "ply\nformat ascii 1.0\nelement vertex 1\n" + "".join(f"property float {a}\n" for a in "xyz")
    header += "".join(f"property float {c}\n" for c in ("red", "green", "blue")) + "end_header\n"
    (root / "sub").mkdir()
    (root / "sub/points.ply").write_text(f"{header}1 2 3 {values}\n")
    assert read_scene(root).point_colors.tolist() == [color]


@pytest.mark.parametrize("size", [{}, {"w": 40, "h": 30}])
def test_cameras_to_test_by_that_were_never_rendered_are_left_out(tmp_path, size):
    for name in ("train", "val", "test"):
        transforms_scene(tmp_path, {"fl_x": 50, **size}, names=(f"{name}/r_0", f"{name}/r_1"))
        (tmp_path / "transforms.json").rename(tmp_path / f"transforms_{name}.json")
    (tmp_path / "test/r_1.png").unlink()
    with pytest.raises(InputError, match=r"1 of the 2 images that \S*transforms_test\.json names are missing .*r_1"):
        read_scene(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (note,) = (scene := read_scene(tmp_path)).notes
    assert [v.name for v in scene.views] == ["train/r_0.png", "train/r_1.png", "val/r_0.png", "val/r_1.png"]
    assert note.startswith("LEFT OUT: the 2 cameras of ") and "transforms_test.json" in note
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(InputError, match=r"2 of the 2 images that \S*transforms_train\.json names are missing"):
        read_scene(tmp_path)


def test_names_as_windows_writes_them(tmp_path):
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30})
    text = (root / "transforms.json").read_text()
    (root / "transforms.json").write_text(text.replace("images/", ".\\\\images\\\\"))
    assert [view.name for view in read_scene(root).views] == ["a.png", "b.png"]
    root = make_scene(tmp_path / "colmap", ("cam/a.png", "b.png"))
    make_model(("cam\\a.png", "b.png")).write_binary(str(root / "sparse/0"))
    assert read_scene(root).views[1].image_path == root / "images/cam/a.png"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"frames": None}, "has no list of frames"),
        ({"frames": [{"transform_matrix": []}]}, "no file_path"),
        ({"frames": [{"file_path": "../../x.png"}]}, "lies outside"),
        ({"frames": [{"file_path": "/etc/x.png"}]}, "lies outside"),
        ({"fl_x": "wide"}, "fl_x is 'wide', expected a number"),
        ({"fl_x": None}, "neither fl_x nor camera_angle_x"),
        ({"fl_x": float("nan")}, "must be finite"),
        ({"fl_x": -3}, "focal length over 0"),
        ({"camera_model": "ORTHO"}, "camera_model is ORTHO"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model is EQUIRECTANGULAR"),
        ({"w": -40}, "image of -40x30"),
        ({"w": 1e9}, "image of 1000000000x30"),
        ({"ply_file_path": "../secret.ply"}, "lies outside"),
        ({"ply_file_path": "gone.ply"}, "gone.ply, the point cloud"),
    ],
)
def test_bad_transforms(tmp_path, content, match):
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30, **content})
    with pytest.raises(InputError, match=match):
        read_scene(root)


@pytest.mark.parametrize(
    ("matrix", "match"),
    [
        (np.eye(3).tolist(), "has the shape"),
        (None, "has the shape"),
        ((2 * np.eye(4)).tolist(), "not a rotation"),
        ((0 * np.eye(4)).tolist(), "Singular|bad"),
        ([[float("nan")] * 4] * 4, "not finite"),
        ("no", "is bad"),
    ],
)
def test_bad_poses(tmp_path, matrix, match):
    root = transforms_scene(tmp_path, {"fl_x": 50, "w": 40, "h": 30})
    content = json.loads((root / "transforms.json").read_text())
    content["frames"][1]["transform_matrix"] = matrix
    (root / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=match):
        read_scene(root)


def test_a_broken_photo_is_not_said_to_be_a_bad_frame(tmp_path):
    root = transforms_scene(tmp_path, {"fl_x": 50})  # the sizes are those of the photos
    (root / "images/b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^\S*images/b\.png cannot be read as an image .* without it$"):
        read_scene(root)


# ---- bad input


def test_no_such_folder_and_no_scene(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        read_scene(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is a file"):
        read_scene(tmp_path / "file")
    with pytest.raises(InputError, match=r"found neither; .*`cgc reconstruct .*`, or .*`cgc run .*`"):
        read_scene(tmp_path)
    (tmp_path / "sparse/0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"sparse holds no cameras and images of one \(files in it: none\); restore"):
        read_scene(tmp_path)
    (tmp_path / "sparse/notes.txt").touch()
    with pytest.raises(InputError, match=r"\(files in it: sparse/notes.txt\); restore them, or move sparse away"):
        read_scene(tmp_path)
    (tmp_path / "sparse/0/cameras.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"not a whole COLMAP model: .* found cameras.bin"):
        read_scene(tmp_path)
    with pytest.raises(InputError, match="downscale of at least 1"):
        read_scene(tmp_path, SceneSettings(downscale=0))


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "rigs", "frames"])
def test_truncated_binary_names_the_file(tmp_path, name):
    root = make_scene(tmp_path)
    path = root / f"sparse/0/{name}.bin"
    whole = path.read_bytes()
    for broken in (whole[:-1], whole + b"x", b"", struct.pack("<Q", 1 << 60) + whole[8:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=rf"sparse/0 is broken: .*{name}\.bin"):
            read_scene(root)


def test_missing_images_are_counted_and_named(tmp_path):
    root = make_scene(tmp_path, [f"{i}.png" for i in range(8)])
    for i in range(6):
        (root / f"images/{i}.png").unlink()
    found = r"6 of the 8 images that .* are missing in .*images: 0\.png, 1\.png, .*4\.png and 1 more;"
    with pytest.raises(InputError, match=found):
        read_scene(root)


def test_images_of_another_suffix_are_found(tmp_path):
    root = make_scene(tmp_path)
    (root / "images/a.png").unlink()
    write_image(root / "images/a.JPG")
    assert read_scene(root).views[0].image_path.name == "a.JPG"


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "sub/../../x.png", "C:/x.png"])
def test_names_that_lead_outside(tmp_path, name):
    root = make_scene(tmp_path)
    make_model(("a.png", name)).write_binary(str(root / "sparse/0"))
    with pytest.raises(InputError, match="lies outside the scene's folder"):
        read_scene(root)


def test_one_view_and_one_name_twice(tmp_path):
    with pytest.raises(InputError, match="has 1 posed views, at least 2 are needed"):
        read_scene(make_scene(tmp_path / "one", ("a.png",)))
    root = make_scene(tmp_path / "two")
    path = root / "sparse/0/images.bin"
    path.write_bytes(path.read_bytes().replace(b"b.png", b"a.png"))
    with pytest.raises(InputError, match=r"'a\.png' twice"):
        read_scene(root)


def test_nan_pose_and_bad_focal(tmp_path):
    root = make_scene(tmp_path / "pose", text=True)
    for name in ("rigs", "frames"):
        (root / f"sparse/0/{name}.txt").unlink()
    path = root / "sparse/0/images.txt"
    path.write_text(path.read_text().replace("1 0 0 0 -1 0 0", "nan 0 0 0 -1 0 0"))
    with pytest.raises(InputError, match=r"pose of b.png is not finite|sparse/0 is broken"):
        read_scene(root)
    root = make_scene(tmp_path / "focal", cameras=[make_camera(params=[30, -1, 20, 15])])
    with pytest.raises(InputError, match="focal length over 0"):
        read_scene(root)


@pytest.mark.parametrize("tried", [(2_000, 200_000), (1, 2)])  # of three points the first, then two
def test_cameras_that_look_away_from_everything_are_named(tmp_path, monkeypatch, tried):
    monkeypatch.setattr(read, "TRIED", tried)
    root = make_scene(tmp_path)
    assert read_scene(root).notes == ()
    model = pycolmap.Reconstruction(str(root / "sparse/0"))
    back = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 1.0, 0, 0])), np.zeros(3))
    model.image(2).frame.rig_from_world = back
    model.write_binary(str(root / "sparse/0"))
    (note,) = read_scene(root).notes
    assert note.startswith(
        f"1 of 3 cameras have none of {3 if tried[0] > 3 else 2} points of the model in view: b.png;"
    )
    for number in (1, 3):  # where all do, it is no matter of some poses
        model.image(number).frame.rig_from_world = back
    model.write_binary(str(root / "sparse/0"))
    assert read_scene(root).notes == ()


def test_truncated_image_and_no_image(tmp_path):
    root = make_scene(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    path = root / "images/b.png"
    Image.fromarray(pixels).save(path)
    check_images(read_scene(root).views)
    path.write_bytes(path.read_bytes()[:1000])
    views = read_scene(root).views
    for check in (lambda: check_images(views), lambda: load_image(views[1])):
        with pytest.raises(InputError, match=r"images/b.png cannot be read as an image"):
            check()
    for junk in (b"", b"no image"):
        path.write_bytes(junk)
        with pytest.raises(InputError, match=r"images/b.png cannot be read as an image"):
            read_scene(root)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_damaged_avif(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    path = tmp_path / "a.avif"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    refused = 0
    for at in range(80, len(whole) - 8, 8):  # Pillow raises RuntimeError for some of these
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        try:
            assert load_photo(path, exif_rotated=False).shape[2] == 3
        except InputError:
            refused += 1
    assert refused


def test_want_of_memory_is_not_taken_for_a_broken_photo(tmp_path, monkeypatch):
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: bytes(1 << 60))
    with pytest.raises(MemoryError):
        load_photo(tmp_path / "a.png", exif_rotated=False)


# ---- fingerprint


def test_fingerprint_follows_the_model_and_the_images(tmp_path):
    root = make_scene(tmp_path / "a")
    first = fingerprint(read_scene(root))
    assert json.loads(json.dumps(first)) == first and first["views"] == 3
    assert first["images"][0] == ["a.png", 40, 30] and set(first["model"]) >= {"cameras.bin", "images.bin"}
    shutil.copytree(root, tmp_path / "b")
    second = fingerprint(read_scene(tmp_path / "b", SceneSettings(downscale=2)))
    assert {**second, "root": ""} == {**first, "root": ""}
    make_scene(tmp_path / "c", cameras=[make_camera(focal=31)])
    assert fingerprint(read_scene(tmp_path / "c"))["model"] != first["model"]


# ---- any bytes


@pytest.fixture(scope="module")
def whole_models(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return [make_scene(root / kind, text=kind == "text") for kind in ("binary", "text")]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), how=st.sampled_from(["cut", "flip", "noise", "ones", "drop"]))
def test_any_damage_to_a_model_is_an_input_error_or_harmless(whole_models, seed, how):
    rng = random.Random(seed)
    root = rng.choice(whole_models)
    path = rng.choice(sorted((root / "sparse/0").iterdir()))
    whole = path.read_bytes()
    data = bytearray(whole)
    at = rng.randrange(len(data))
    if how == "cut":
        data = data[:at]
    elif how == "flip":
        data[at] = rng.randrange(256)
    elif how == "noise":
        data = bytearray(rng.randbytes(rng.randrange(300)))
    elif how == "ones":
        data[at : at + 8] = b"\xff" * 8
    try:
        path.write_bytes(data)
        if how == "drop":
            path.unlink()
        scene = read_scene(root, quiet=True)
        assert len(scene.views) >= 2 and all(v.camera.viewmat.isfinite().all() for v in scene.views)
    except InputError:
        pass
    finally:
        path.write_bytes(whole)
        shutil.rmtree(root / ".cgc_cache", ignore_errors=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
KEYS = [
    "fl_x",
    "fl_y",
    "cx",
    "w",
    "h",
    "k1",
    "k4",
    "camera_model",
    "camera_angle_x",
    "ply_file_path",
    "frames",
]
FRAME_KEYS = ["frame file_path", "frame transform_matrix", "frame w", "frame fl_x"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS + FRAME_KEYS), value=JSON)
def test_any_value_in_transforms_is_an_input_error_or_harmless(whole_models, key, value):
    root = whole_models[0].parent / "transforms"
    root.mkdir(exist_ok=True)
    transforms_scene(root, {"fl_x": 50, "w": 40, "h": 30})
    content = json.loads((root / "transforms.json").read_text())
    if key in FRAME_KEYS:
        content["frames"][1][key.removeprefix("frame ")] = value
    else:
        content[key] = value
    (root / "transforms.json").write_text(json.dumps(content))
    try:
        scene = read_scene(root, quiet=True)
        assert len(scene.views) >= 2
    except InputError:
        pass


@pytest.mark.parametrize("up", [(0, 0, 1), (1, 1, 1), (-2, -2, -2), (0, 1e-9, 0)])
def test_cameras_may_look_along_what_is_up(up):
    for eye in (np.array(up, float), -np.array(up, float), np.array([3.0, 1, 2])):
        camera = Camera.look_at(eye.tolist(), (0, 0, 0), width=8, height=6, up=up)
        turn = camera.viewmat[:3, :3].double()
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(turn[2], -eye / np.linalg.norm(eye), atol=1e-6)


def test_what_is_up_is_the_mean_of_what_is_up_in_the_pictures():
    up = np.array([0.2, -0.5, 0.8]) / np.linalg.norm([0.2, -0.5, 0.8])
    ring = [Camera.look_at((x, y, 1), (0, 0, 0), width=8, height=6, up=up.tolist()) for x, y in ((3, 0), (-3, 0.1))]
    found = up_of(ring)
    assert found is not None
    assert found @ up > 0.9 and np.isclose(np.linalg.norm(found), 1)
    turned = [Camera.look_at((0, -3, 0), (0, 0, 0), width=8, height=6, up=(0, 0, z)) for z in (1, -1)]
    assert up_of(turned) is None and up_of([]) is None
