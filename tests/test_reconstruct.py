"""Structure from motion on small rendered photos of a corner, whose cameras are known; videos; what users do wrong."""

import ctypes
import importlib.util
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import snapshot

from cgc.errors import InputError
from cgc.scene import reconstruct as module
from cgc.scene import sfm, video
from cgc.scene.images import load_photo, read_header
from cgc.scene.read import read_scene
from cgc.scene.reconstruct import Reconstructed, default_scene, group_photos, list_photos, reconstruct
from cgc.settings import ReconstructSettings, check_part

WIDTH, HEIGHT, FOCAL = 256, 192, 264.0
QUICK = ReconstructSettings(camera="single", max_features=800)
NAMES = ["a 1.jpg", "b ü.jpg", "left/x.jpg", "right/x.jpg", "z.webp", "turned.jpg", "y.png"]


def make_texture(seed, size=256):
    """Noise at several scales [size, size, 3] in 0..1."""
    generator = np.random.default_rng(seed)
    total = np.zeros((size, size, 3))
    for cells in (8, 24, 64, 128):
        small = Image.fromarray(generator.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        total += np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), float)
    return total / total.max()


def look_at(eye, target):
    """Return cam_from_world [3, 4], OpenCV axes, z up in the world."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return np.concatenate([R, -(R @ eye)[:, None]], 1)


def render(viewmat, textures):
    """Cast a ray a pixel against the planes x = 0, y = 0 and z = 0, where the nearest one in front shows."""
    R, t = viewmat[:, :3], viewmat[:, 3]
    eye = -R.T @ t
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)], -1) @ R  # world
    depth = -eye / np.where(np.abs(rays) < 1e-9, 1e-9, rays)  # [H, W, 3]
    depth = np.where(depth > 0, depth, np.inf)
    wall = depth.argmin(-1)
    points = eye + rays * depth.min(-1)[..., None]
    image = np.zeros((HEIGHT, WIDTH, 3))
    for axis, texture in enumerate(textures):
        u, v = np.delete(points, axis, -1)[wall == axis].T
        grid = [np.clip(c / 4 * 255, 0, 254.999) for c in (u, v)]
        i, j = (c.astype(int) for c in grid)
        a, b = ((c - np.floor(c))[:, None] for c in grid)
        image[wall == axis] = (
            texture[i, j] * (1 - a) * (1 - b) + texture[i + 1, j] * a * (1 - b)
            + texture[i, j + 1] * (1 - a) * b + texture[i + 1, j + 1] * a * b
        )  # fmt: skip
    return (255 * image).astype(np.uint8)


def make_views(count):
    """Photos [H, W, 3] of the corner from an arc around it, and their cam_from_world."""
    textures = [make_texture(seed) for seed in range(3)]
    angles = np.linspace(0.45, 1.1, count)
    eyes = [np.array([3.4 * np.cos(a), 3.4 * np.sin(a), 1.6 + 0.25 * (i % 3)]) for i, a in enumerate(angles)]
    viewmats = [look_at(eye, np.array([0.6, 0.6, 0.6])) for eye in eyes]
    return [render(v, textures) for v in viewmats], viewmats


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(image)
    image.save(path, **options, **({"lossless": True} if path.suffix == ".webp" else {"quality": 95}))


@pytest.fixture(scope="module")
def corner(tmp_path_factory):
    """A folder of seven photos with awkward names, a broken one among them, and its scene."""
    folder = tmp_path_factory.mktemp("corner") / "my photos"
    images, viewmats = make_views(len(NAMES))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image in zip(NAMES, images):
        save(image, folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
    (folder / "broken.jpg").write_bytes((folder / "a 1.jpg").read_bytes()[:3000])
    before = {name: path.read_bytes() for name, path in list_photos(folder)}
    made = reconstruct(folder, None, QUICK, quiet=True)
    return folder, made, before, dict(zip(NAMES, viewmats))


def test_every_photo_is_placed_whatever_its_name_and_format(corner):
    folder, made, _, _ = corner
    assert made.scene == folder.with_name("my photos_scene")
    assert (made.photos, made.registered, made.missing) == (7, 7, ())
    assert made.points > 100 and 0 < made.error < 1 and not made.kept
    assert [view.name for view in read_scene(made.scene, quiet=True).views] == sorted(NAMES)


def test_cameras_agree_with_the_truth_up_to_a_similarity(corner):
    _, made, _, truth = corner
    scene = read_scene(made.scene, quiet=True)
    found = np.stack([view.camera.viewmat.numpy().astype(float) for view in scene.views])
    known = np.stack([truth[view.name] for view in scene.views])
    ours = -np.einsum("nji,nj->ni", found[:, :3, :3], found[:, :3, 3])
    theirs = -np.einsum("nji,nj->ni", known[:, :3, :3], known[:, :3, 3])
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    U, _, Vt = np.linalg.svd(a.T @ b)
    R = (U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt).T
    moved = a @ R.T
    moved *= (moved * b).sum() / (moved**2).sum()
    assert np.abs(moved - b).max() < 0.05 * np.abs(b).max()
    turns = np.einsum("nij,njk->nik", found[:, :3, :3] @ R.T, known[:, :3, :3].transpose(0, 2, 1))
    angles = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert angles.max() < 2
    focals = [float(view.camera.K[0, 0]) for view in scene.views]
    assert np.allclose(focals, FOCAL, rtol=0.05)


def test_a_photo_with_an_exif_turn_is_used_as_stored(corner):
    _, made, _, _ = corner
    views = {view.name: view for view in read_scene(made.scene, quiet=True).views}
    view = views["turned.jpg"]
    assert (view.full_size, view.exif_rotated) == ((WIDTH, HEIGHT), False)


def test_photos_stay_as_they_were_and_nothing_is_left_behind(corner):
    folder, made, before, _ = corner
    assert {name: path.read_bytes() for name, path in list_photos(folder)} == before
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    assert {p.name for p in made.scene.iterdir()} - {".cgc_cache"} == {"images", "sparse"}
    assert [name for name, _ in list_photos(made.scene / "images")] == sorted(NAMES)


def test_a_broken_photo_is_left_out_with_a_note(corner):
    _, made, _, _ = corner
    assert len(made.notes) == 1
    assert "broken.jpg" in made.notes[0] and made.lines()[0].startswith("LEFT OUT")


def test_a_scene_that_has_a_model_is_kept(corner, monkeypatch):
    folder, made, _, _ = corner
    model = {p: p.read_bytes() for p in (made.scene / "sparse/0").iterdir()}
    monkeypatch.setattr(module, "_solve", lambda *a: pytest.fail("it was made again"))
    for photos, out in ((folder, None), (made.scene, None), (made.scene / "images", None), (folder, made.scene)):
        again = reconstruct(photos, out, quiet=True)
        assert again.kept and again.registered == 7 and again.photos == 7
        assert again.points == made.points and again.error == pytest.approx(made.error)
    assert model == {p: p.read_bytes() for p in (made.scene / "sparse/0").iterdir()}
    assert any("kept" in line for line in again.lines())


def test_a_scene_of_photos_that_have_changed_is_not_passed_off(corner, tmp_path):
    folder, made, _, _ = corner
    photos = Path(shutil.copytree(folder, tmp_path / "my photos"))
    shutil.copytree(made.scene, tmp_path / "my photos_scene")
    (photos / "broken.jpg").rename(photos / "new.jpg")
    for name, path in list_photos(photos):  # copies, of other contents and the same size
        if name == NAMES[2]:
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(InputError, match=f"any more: {NAMES[2]}; remove it"):
                reconstruct(photos, None, quiet=True)
            path.write_bytes(data)
    assert "not made of: new.jpg; to use them, remove" in reconstruct(photos, None, quiet=True).notes[0]
    name = NAMES[0]
    data = (photos / name).read_bytes()
    (photos / name).write_bytes(data + b"more")
    with pytest.raises(InputError, match=rf"_scene has a model already, of photos .* any more: {name}; remove it"):
        reconstruct(photos, None, quiet=True)
    (photos / name).write_bytes(data)
    (photos / NAMES[1]).unlink()
    with pytest.raises(InputError, match=f"any more: {NAMES[1]}; remove it"):
        reconstruct(photos, None, quiet=True)


def test_what_was_made_here_is_no_photo(tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.png", "sub/b.png", "runs/x/masks/a.png", "runs/x/weights/a.png", "masks/a.png"):
        save(np.zeros((4, 4, 3), np.uint8), photos / name)
    for name in ("runs/x/config.json", "runs/x/scene.json", "masks/masks.json"):
        (photos / name).write_text("{}")
    assert [name for name, _ in list_photos(photos)] == ["a.png", "sub/b.png"]


def test_pictures_of_kinds_that_are_not_read_are_counted(tmp_path):
    save(np.zeros((4, 4, 3), np.uint8), tmp_path / "a.png")
    for name in ("b.HEIC", "sub/c.heic", "d.mov", "._e.heic", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found, notes = module.read_photos(tmp_path, quiet=True)
    assert [p.name for p in found] == ["a.png"]
    assert notes == ["LEFT OUT: 2 .heic and 1 .mov files, which are not read; convert them to JPEG to use them"]


def test_a_folder_of_a_model_that_holds_none_is_said_at_once(corner, tmp_path, monkeypatch):
    folder, _, _, _ = corner
    monkeypatch.setattr(module, "_solve", lambda *a: pytest.fail("it was started"))
    (tmp_path / "scene/sparse/0").mkdir(parents=True)
    (tmp_path / "scene/sparse/0/project.ini").write_text("x")
    with pytest.raises(InputError, match=r"0 holds project.ini, which is no model .*; move it away"):
        reconstruct(folder, tmp_path / "scene", QUICK, quiet=True)


@pytest.mark.parametrize("place", ["colmap", "dense/0/sparse", "sparse/1", "sparse/0", "nerfstudio"])
def test_a_model_in_another_place_is_not_shadowed(corner, tmp_path, monkeypatch, place):
    _, made, _, _ = corner
    monkeypatch.setattr(module, "_solve", lambda *a: pytest.fail("it was started"))
    shutil.copytree(made.scene / "images", tmp_path / "images")
    if place == "nerfstudio":
        (tmp_path / place).mkdir()
        (tmp_path / place / "transforms.json").write_text("{}")
    else:
        shutil.copytree(made.scene / "sparse/0", tmp_path / place)
    if place == "sparse/0":  # usual, but with the points of another tool
        (tmp_path / place / "points3D.bin").unlink()
        axes = "".join(f"property float {axis}\n" for axis in "xyz")
        (tmp_path / place / "points3D.ply").write_text(
            f"ply\nformat ascii 1.0\nelement vertex 1\n{axes}end_header\n1 2 3\n"
        )
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=rf"has the cameras of {tmp_path}/{place}.*, so it is a scene already"):
        reconstruct(tmp_path / "images", None, QUICK, quiet=True)
    assert snapshot(tmp_path) == before


def test_a_disk_that_is_nearly_full_is_said_before_colmap_starts(corner, tmp_path, monkeypatch):
    """It aborts the process where its database cannot grow."""
    folder, _, _, _ = corner
    monkeypatch.setattr(sfm.Session, "find_features", lambda *_: pytest.fail("it was started"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 1_000_000))
    with pytest.raises(InputError, match=r"placing 7 photos takes up to \d+ MB .*, where 1 MB are free; make room, or"):
        reconstruct(folder, tmp_path / "scene", QUICK, quiet=True)
    assert not list(tmp_path.iterdir())


def test_the_same_photos_give_the_same_model_and_images_in_place_are_used(corner, tmp_path):
    _, made, _, _ = corner
    scene = tmp_path / "scene"
    shutil.copytree(made.scene / "images", scene / "images")
    again = reconstruct(scene / "images", None, QUICK, quiet=True)
    assert again.scene == scene and again.registered == 7
    assert sorted(p.name for p in scene.iterdir()) == ["images", "sparse"]
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (scene / "sparse/0" / name).read_bytes() == (made.scene / "sparse/0" / name).read_bytes()


def test_threads_that_match_do_not_share_blas(tmp_path, monkeypatch):
    """pycolmap's OpenBLAS is built for one thread: with several a product is wrong now and then, and so are matches."""
    library = ctypes.CDLL(sfm.pycolmap._core.__file__)
    try:
        blas_from = ctypes.c_int.in_dll(library, sfm._BLAS_FROM)
    except ValueError:
        pytest.skip("this build of pycolmap does not show from where on FAISS calls BLAS")
    blas_from.value = 20  # as it comes
    seen = []

    def match_image_pairs(database, options, *rest):
        seen.append((options.num_threads, blas_from.value))

    monkeypatch.setattr(sfm.pycolmap, "match_image_pairs", match_image_pairs)
    session = sfm.Session(tmp_path, tmp_path, ["a.jpg", "b.jpg"], QUICK, True)
    session.match([(0, 1)], sfm.Attempt())
    monkeypatch.setattr(sfm, "_BLAS_FROM", "missing")
    session.match([(0, 1)], sfm.Attempt())
    assert seen == [(-1, 2**31 - 1), (1, 2**31 - 1)]


def test_tries_harder_while_few_are_placed_and_keeps_the_best(corner, tmp_path, monkeypatch):
    folder, _, _, _ = corner
    photos, _ = module.read_photos(folder, True)
    tried = []

    class Fake:
        def __init__(self, *args):
            pass

        def find_features(self, groups, attempt):
            tried.append(("features", attempt.rich))

        def match(self, pairs, attempt):
            tried.append(("pairs", len(pairs)))

        def map(self, attempt):
            tried.append(("map", attempt.loose))
            return [Model(*range(counts.pop(0))), *others]

    class Shot:
        has_pose = True

        def __init__(self, i):
            self.image_id, self.name = i, f"{i + 1:06}{'.png' if photos[i].name == 'z.webp' else photos[i].path.suffix}"

    class Model:
        def __init__(self, *numbers):
            self.images = {i: Shot(i) for i in numbers}

    monkeypatch.setattr(sfm, "Session", Fake)
    counts, others = [3, 5, 4], []
    best, apart = module._solve(photos, tmp_path / "a", ReconstructSettings(), True)
    assert len(best.images) == 5 and apart == ()
    assert [shot.name for shot in best.images.values()] == [p.name for p in photos[:5]]
    assert tried == [
        ("features", False), ("pairs", 21), ("map", False), ("map", True),
        ("features", True), ("pairs", 21), ("map", True),
    ]  # fmt: skip
    counts, tried = [7], tried.clear() or tried
    module._solve(photos, tmp_path / "b", ReconstructSettings(), True)
    assert [step for step, _ in tried] == ["features", "pairs", "map"]
    counts, others = [3, 4, 0], [Model(3, 4, 5, 6)]
    best, apart = module._solve(photos, tmp_path / "c", ReconstructSettings(), True)
    assert len(best.images) == 4 and apart == (tuple(p.name for p in photos[4:]),)


def test_photos_that_fit_together_apart_from_the_others_are_found():
    assert module.find_apart({0, 1, 2, 3}, [{0, 1, 2, 3}, {4, 5}, {3, 6, 7}]) == []
    assert module.find_apart({0, 1, 2, 3}, [{4, 5, 6}, {3, 7, 8, 9}, {4, 5, 6, 10}]) == [[7, 8, 9], [4, 5, 6, 10]]


def test_photos_without_features_end_in_advice(tmp_path):
    for i in range(3):
        save(np.full((60, 80, 3), 90 + i, np.uint8), tmp_path / f"p/{i}.png")
    with pytest.raises(InputError, match=r"none of the 3 photos .* could be placed.*overlap"):
        reconstruct(tmp_path / "p", None, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("names", [(), ("a.png",), ("a.png", "b.jpg")])
def test_fewer_than_three_photos_are_refused(tmp_path, names):
    (tmp_path / "p").mkdir()
    for name in names:
        save(np.zeros((8, 8, 3), np.uint8), tmp_path / "p" / name)
    with pytest.raises(InputError, match=f"has {len(names)} photos .*at least 3"):
        reconstruct(tmp_path / "p", tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_other_bad_input_ends_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        reconstruct(tmp_path / "none", None, quiet=True)
    save(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png")
    with pytest.raises(InputError, match="is one photo"):
        reconstruct(tmp_path / "a.png", None, quiet=True)
    with pytest.raises(InputError, match="is a file"):
        reconstruct(tmp_path, tmp_path / "a.png", quiet=True)
    (tmp_path / "h").mkdir()
    (tmp_path / "h/x.HEIC").write_bytes(b"")
    with pytest.raises(InputError, match=r"convert the \.heic files"):
        reconstruct(tmp_path / "h", None, quiet=True)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/transforms.json").write_text("{}")
    with pytest.raises(InputError, match=r"transforms\.json"):
        reconstruct(tmp_path / "h", tmp_path / "t", quiet=True)
    with pytest.raises(InputError, match=r"reconstruct\.max_side is 3"):
        reconstruct(tmp_path, None, ReconstructSettings(max_side=3), quiet=True)


def test_a_folder_with_other_pictures_is_not_touched(corner, tmp_path, monkeypatch):
    folder, made, _, _ = corner
    save(np.zeros((8, 8, 3), np.uint8), tmp_path / "out/images/other.png")
    import pycolmap

    model = pycolmap.Reconstruction(str(made.scene / "sparse/0"))
    monkeypatch.setattr(module, "_solve", lambda photos, work, *a: (work.mkdir(), (model, (("c.jpg",),)))[1])
    with pytest.raises(InputError, match="holds other pictures"):
        reconstruct(folder, tmp_path / "out", quiet=True)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*")) if p.is_file()] == [
        "out/images/other.png"
    ]
    shutil.rmtree(tmp_path / "out/images")
    (tmp_path / "out/notes.txt").write_text("mine")
    again = reconstruct(folder, tmp_path / "out", quiet=True)
    assert again.registered == 7 and again.apart == (("c.jpg",),)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["images", "notes.txt", "sparse"]


@pytest.mark.skipif(os.name != "posix", reason="asks for processes as POSIX does")
def test_working_folders_of_killed_runs_are_removed(tmp_path):
    dead = tmp_path / ".scene.999999999.partial"
    alive = tmp_path / f".scene.{os.getppid()}.partial"
    for folder in (dead, alive):
        folder.mkdir()
        os.utime(folder, (time.time() - 9000,) * 2)
    with module._stage(tmp_path / "scene") as stage:
        assert stage.is_dir() and not dead.exists()
    assert sorted(tmp_path.iterdir()) == [alive]


def test_where_the_scene_goes(tmp_path):
    for folder in ("a/images", "plain"):
        (tmp_path / folder).mkdir(parents=True)
    assert default_scene(tmp_path / "a") == default_scene(tmp_path / "a/images") == tmp_path / "a"
    assert default_scene(tmp_path / "plain") == tmp_path / "plain_scene"
    assert default_scene(tmp_path / "clip.v2.mp4") == tmp_path / "clip.v2_scene"
    assert default_scene(Path("/")) == Path("/_scene")


def test_trying_hardest_finds_more(corner, tmp_path, monkeypatch):
    folder, _, _, _ = corner
    hard = (sfm.Attempt(), sfm.Attempt(rich=True, loose=True))
    monkeypatch.setattr(sfm, "ATTEMPTS", hard)
    monkeypatch.setattr(module, "ENOUGH", 1.1)
    made = []
    place = sfm.Session.map
    monkeypatch.setattr(sfm.Session, "map", lambda *a: made.append(place(*a)) or made[-1])
    photos = module.read_photos(folder, True)[0][:3]
    module._solve(photos, tmp_path / "work", replace(QUICK, max_features=300), True)
    assert [[model.num_reg_images() for model in models] for models in made] == [[3], [3]]
    assert made[1][0].num_points3D() > 1.2 * made[0][0].num_points3D()


# ---- pairs, lenses, models


def test_small_sets_are_matched_exhaustively():
    n = sfm.EXHAUSTIVE_UP_TO
    assert len(set(sfm.choose_pairs(n, "auto"))) == n * (n - 1) // 2
    assert sfm.choose_pairs(n + 1, "auto") == sfm.choose_pairs(n + 1, "sequential")
    assert set(sfm.choose_pairs(200, "exhaustive")) == {(i, j) for i in range(200) for j in range(i + 1, 200)}


@pytest.mark.parametrize("count", [2, 3, 26, 151, 1000])
def test_sequential_pairs_reach_neighbours_and_far_ones_in_linear_number(count):
    pairs = sfm.choose_pairs(count, "sequential")
    assert len(set(pairs)) == len(pairs) <= 20 * count + 300
    assert all(0 <= i < j < count for i, j in pairs)
    assert {(i, j) for i in range(count) for j in range(i + 1, min(count, i + 11))} <= set(pairs)
    assert (0, count - 1) in pairs  # a walk around ends where it began
    assert max(j - i for i, j in pairs) == count - 1


def test_photos_of_one_size_camera_and_focal_length_share_a_lens(tmp_path):
    def photo(name, size, focal=None):
        exif = Image.Exif()
        if focal:
            exif.get_ifd(0x8769)[0x920A] = focal
        Image.new("RGB", size).save(tmp_path / name, exif=exif)
        return module._Photo(name, tmp_path / name, size, True)

    photos = [
        photo("a.jpg", (8, 6), 24),
        photo("b.jpg", (8, 6), 50),
        photo("c.jpg", (8, 6), 24),
        photo("d.jpg", (6, 8)),
    ]
    assert group_photos(photos, "auto") == [[0, 2], [1], [3]]
    assert group_photos(photos, "per-photo") == [[0], [1], [2], [3]]
    assert group_photos(photos[:3], "single") == [[0, 1, 2]]
    with pytest.raises(InputError, match="6x8, 8x6"):
        group_photos(photos, "single")


def test_the_largest_model_comes_first():
    class Model:
        def __init__(self, photos, points):
            self.num_reg_images, self.num_points3D = lambda: photos, lambda: points

    small, large, richer = Model(3, 900), Model(8, 100), Model(8, 200)
    assert sfm.by_size([small, large, richer]) == [richer, large, small]
    assert sfm.by_size([Model(2, 50), Model(5, 0)]) == []
    assert sfm.by_size([]) == []


def test_few_placed_photos_come_with_advice():
    good = Reconstructed(Path("s"), 20, 19, ("x.jpg",), 1000, 0.5)
    poor = Reconstructed(Path("s"), 20, 8, tuple(f"{i}.jpg" for i in range(12)), 1000, 0.5)
    assert not any("overlap" in line for line in good.lines())
    assert "not placed: x.jpg" in good.lines()
    assert any("overlap" in line for line in poor.lines())
    assert any(re.search("8 of 20 photos placed", line) for line in poor.lines())


def test_photos_of_another_place_are_named():
    two = Reconstructed(
        Path("s"), 15, 8, ("b.jpg", "c.jpg", "d.jpg", "e.jpg"), 1000, 0.5, apart=(("b.jpg", "c.jpg", "d.jpg"),)
    )
    assert any(
        line.startswith("3 photos (b.jpg, c.jpg, d.jpg) fit together but not with the others") for line in two.lines()
    )
    assert "fit together" not in " ".join(replace(two, apart=()).lines())
    assert "if all are of one place" in " ".join(replace(two, apart=()).lines())


@pytest.mark.parametrize(
    "bad", [{"matching": "all"}, {"max_features": 0}, {"frames": 2}, {"seed": -1}, {"camera_model": "BOX"}]
)
def test_settings_out_of_their_limits_are_named(bad):
    with pytest.raises(InputError, match=f"reconstruct.{next(iter(bad))}"):
        check_part("reconstruct", ReconstructSettings(**bad))


def test_the_log_level_comes_back():
    import pycolmap

    before = pycolmap.logging.minloglevel
    with sfm.silenced():
        assert pycolmap.logging.minloglevel == 3
    assert pycolmap.logging.minloglevel == before


# ---- videos


def write_clip(path, frames):
    """Write a clip by the ffmpeg that imageio brings; skips where there is none."""
    if not importlib.util.find_spec("imageio_ffmpeg"):
        pytest.skip("no writer of videos: imageio-ffmpeg is not installed")
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=10, quality=9, macro_block_size=1)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def test_the_sharpest_frame_of_each_part_is_taken(tmp_path):
    texture = (255 * make_texture(5, 128)).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(texture).resize((16, 16)).resize((128, 128)))
    frames, sharp = [], {2, 7, 8}
    for i in range(12):  # the mean tells frames apart
        frames.append(np.clip((texture if i in sharp else blurred) * 0.4 + 8.0 * i, 0, 255).astype(np.uint8))
    clip = write_clip(tmp_path / "clip.mp4", frames)
    paths = video.extract_frames(clip, tmp_path / "out", 3, quiet=True)
    assert [p.name for p in paths] == ["frame_00001.jpg", "frame_00002.jpg", "frame_00003.jpg"]
    means = [load_photo(p, exif_rotated=False).mean() for p in paths]
    assert [int(np.argmin([abs(m - f.mean()) for f in frames])) for m in means] == [2, 7, 8]
    assert read_header(paths[0]).size == (128, 128)
    assert len(video.extract_frames(clip, tmp_path / "all", 100, quiet=True)) == 12


def test_parts_are_equal():
    parts = [video.window_of(i, 100, 7) for i in range(103)]
    assert parts == sorted(parts) and set(parts) == set(range(7))
    assert {parts[:100].count(k) for k in range(7)} <= {14, 15}


def test_sharpness_falls_with_blur_and_not_with_brightness():
    texture = (200 * make_texture(3, 96)).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(texture).resize((24, 24)).resize((96, 96)))
    assert video.sharpness(texture) > 3 * video.sharpness(blurred)
    assert video.sharpness(texture + np.uint8(40)) == pytest.approx(video.sharpness(texture), rel=0.05)
    assert video.sharpness(texture[:2]) == 0
    ramp = np.repeat(np.add.outer(np.arange(60), 2 * np.arange(80))[..., None], 3, 2).astype(np.uint8)
    assert video.sharpness(ramp) < 0.01 < video.sharpness(texture)


@pytest.mark.parametrize("data", [b"", b"hello", b"\0\0\0\x18ftypmp42" + bytes(200)])
def test_a_broken_video_is_refused(tmp_path, data):
    if not importlib.util.find_spec("imageio_ffmpeg") and not importlib.util.find_spec("cv2"):
        pytest.skip("nothing that reads videos is installed")
    (tmp_path / "v.mp4").write_bytes(data)
    with pytest.raises(InputError, match=r"v\.mp4 cannot be read as a video"):
        reconstruct(tmp_path / "v.mp4", None, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_without_a_reader_the_install_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "v.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match="pip install imageio imageio-ffmpeg"):
        video.extract_frames(tmp_path / "v.mp4", tmp_path / "out", 5, quiet=True)
    with pytest.raises(InputError, match="no such file"):
        video.extract_frames(tmp_path / "w.mp4", tmp_path / "out", 5, quiet=True)


def test_a_video_becomes_a_scene(tmp_path):
    images, _ = make_views(12)
    clip = write_clip(tmp_path / "clip.mp4", images)
    made = reconstruct(clip, None, replace(QUICK, frames=6), quiet=True)
    assert made.scene == tmp_path / "clip_scene"
    assert made.photos == 6 and made.registered >= 5
    assert len(read_scene(made.scene, quiet=True).views) == made.registered
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "clip_scene"]
    assert reconstruct(clip, None, replace(QUICK, frames=6), quiet=True).notes == ()
    (note,) = reconstruct(clip, None, replace(QUICK, frames=7), quiet=True).notes
    assert note.startswith("the scene there was made with --frames 6; for 7, remove")
    (made.scene / "sparse").rename(tmp_path / "away")
    with pytest.raises(InputError, match="holds other pictures than those that are to be reconstructed"):
        reconstruct(clip, None, replace(QUICK, frames=5), quiet=True)
    (tmp_path / "away").rename(made.scene / "sparse")
    with open(clip, "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="has a model already, of another video than"):
        reconstruct(clip, None, replace(QUICK, frames=6), quiet=True)
