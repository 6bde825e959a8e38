"""Exposures and poses of photos, learned with the splats: the algebra, a training that finds them, runs with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_appearance import TINY, Killed, assert_same, make_scene
from tiny import FLOOR, SETTINGS, cameras, clumps, snapshot
from torch import Tensor

import cgc
from cgc.appearance.photo_capture import KnownExposure, PhotoCapture, exposure_of, moved, place, world_motions
from cgc.appearance.trainer import train
from cgc.errors import InputError
from cgc.pipeline.commands import run_all, run_step
from cgc.pipeline.facts import UNEVEN, find_warnings
from cgc.pipeline.quality import Measures, brightness, measure_view, quality_facts
from cgc.pipeline.workspace import Workspace
from cgc.presets import PAPER
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import open_run
from cgc.scene.corrections import Correction, corrected, read_corrections, write_corrections
from cgc.scene.images import load_image, load_view
from cgc.scene.types import Camera, Scene, View
from cgc.segmentation.segments import load_sharpened
from cgc.segmentation.sharpen import mean_psnr
from cgc.settings import BlockSettings, SharpenSettings
from cgc.splats.types import Splats

BOTH = replace(TINY, exposure=True, poses=True)
EXTENT = 3.0


def make_cameras(n: int = 5) -> dict[int, Camera]:
    """Cameras here and there, by the numbers of their views."""
    eyes = np.random.default_rng(3).normal(0, 2, (n, 3))
    return {2 * i + 1: Camera.look_at(eye, (0, 0, 0.5), width=32, height=24) for i, eye in enumerate(eyes)}


def hat(w: Tensor) -> Tensor:
    """The matrix of the cross product with w."""
    return torch.stack([torch.linalg.cross(w, e) for e in torch.eye(3, dtype=w.dtype)], 1)


# --- the algebra ---


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.7, 3.0])
def test_a_camera_turns_by_the_exponential_of_its_twist(size: float) -> None:
    camera, g = make_cameras()[1], torch.Generator().manual_seed(0)
    w, t = size * torch.randn(3, generator=g), torch.randn(3, generator=g)
    found = moved(camera.viewmat, torch.cat([w, t]), 2.0)
    expected = torch.eye(4)
    expected[:3, :3], expected[:3, 3] = torch.linalg.matrix_exp(hat(w)), 2.0 * t
    torch.testing.assert_close(found, expected @ camera.viewmat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 0.4])
def test_gradients_of_a_twist_match_finite_differences(size: float) -> None:
    camera = make_cameras()[3].viewmat.double()
    twist = (size * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moved(camera, x, 1.5), (twist,), atol=1e-6)


def test_motions_of_the_world_are_what_they_do_to_cameras() -> None:
    cameras, small = make_cameras(), 1e-5
    viewmats = torch.stack([c.viewmat for c in cameras.values()]).double()
    J = world_motions(viewmats, EXTENT)
    for column in range(7):
        motion, grown = torch.eye(4, dtype=torch.float64), viewmats.clone()
        if column < 3:
            motion[:3, :3] = torch.linalg.matrix_exp(small * hat(torch.eye(3, dtype=torch.float64)[column]))
        elif column < 6:
            motion[column - 3, 3] = small * EXTENT
        else:
            grown[:, :3, 3] *= 1 + small
        twists = (small * J[:, column]).reshape(-1, 6)
        found = torch.stack([moved(v, x, EXTENT) for v, x in zip(viewmats, twists)])
        assert float((found - grown @ motion).abs().max()) < 1e-8  # of second order


def test_what_all_photos_have_in_common_is_nobodys() -> None:
    cameras = make_cameras()
    capture = PhotoCapture(cameras, EXTENT, BOTH)
    J = world_motions(torch.stack([c.viewmat for c in cameras.values()]), EXTENT).float()
    render = 0.3 * torch.rand(1, 4, 4, 3)
    with torch.no_grad():
        capture.twists += (J @ (0.01 * torch.randn(7))).reshape(-1, 6)
        capture.colors += 0.1 * torch.randn(3, 4)
    for view, camera in cameras.items():
        torch.testing.assert_close(capture.cameras(view, camera)[0].viewmat, camera.viewmat, rtol=0, atol=2e-6)
        torch.testing.assert_close(capture.predict(view, render), render[0], rtol=0, atol=1e-6)
    with torch.no_grad():  # what is one photo's is kept, but for its share in what is common
        capture.colors[2, :, 3] += 0.5
    torch.testing.assert_close(capture.predict(5, render), render[0] + 0.4, rtol=0, atol=1e-6)
    torch.testing.assert_close(capture.predict(1, render), render[0] - 0.1, rtol=0, atol=1e-6)


def test_a_photo_has_gradients_of_its_own_alone() -> None:
    capture, cameras = PhotoCapture(make_cameras(), EXTENT, BOTH), make_cameras()
    capture.cameras(5, cameras[5])[0].viewmat.square().sum().backward()
    capture.predict(5, torch.rand(1, 4, 4, 3)).sum().backward()
    for value in (capture.twists, capture.colors):
        assert value.grad is not None and value.grad[2].any() and not value.grad[[0, 1, 3, 4]].any()


@pytest.mark.parametrize("exposure, poses", [(False, False), (True, False), (False, True)])
def test_what_is_not_asked_for_is_not_learned(exposure: bool, poses: bool) -> None:
    capture = PhotoCapture(make_cameras(), EXTENT, replace(TINY, exposure=exposure, poses=poses))
    learned = [group["params"][0] for group in capture.parameter_groups()]
    assert [value is capture.colors for value in learned] == [True] * exposure + [False] * poses
    render, camera = torch.rand(1, 4, 4, 3), make_cameras()[1]
    assert capture.predict(1, render).requires_grad == exposure
    assert capture.cameras(1, camera)[0].viewmat.requires_grad == poses


# --- a training ---


def misled(n_views: int = 12) -> tuple[Scene, Scene, Callable[[View], np.ndarray], Tensor]:
    """The tiny scene, the same with cameras that are off, its photos as a phone takes them, and their gains."""
    true, load = make_scene(n_views, 48)
    g = torch.Generator().manual_seed(4)
    views = []
    for view in true.views:
        twist = torch.cat([0.01 * torch.randn(3, generator=g), 0.01 * torch.randn(3, generator=g)])
        viewmat = moved(view.camera.viewmat, twist, true.extent)
        views.append(replace(view, camera=replace(view.camera, viewmat=viewmat)))
    gains = torch.exp(0.2 * torch.randn(n_views, 1, generator=g) + 0.05 * torch.randn(n_views, 3, generator=g))
    gains = 0.7 * gains / gains.mean(0)  # nothing is clipped
    by_name = dict(zip((v.name for v in true.views), gains.numpy()))

    def exposed(view: View) -> np.ndarray:
        return (load(view) * by_name[view.name]).clip(0, 255).astype(np.uint8)

    return true, replace(true, views=tuple(views)), exposed, gains


def shifts(a: Scene, b: Scene) -> list[float]:
    """By how many pixels the points of two scenes differ in their views, the median of each."""
    points, found = torch.from_numpy(a.points), []
    for pair in zip(a.views, b.views):
        x = [(v.camera.K @ (v.camera.viewmat[:3, :3] @ points.T + v.camera.viewmat[:3, 3:])) for v in pair]
        first, second = (p[:2] / p[2] for p in x)
        found.append(float((first - second).norm(dim=0).median()))
    return found


def test_a_training_finds_exposures_and_poses() -> None:
    true, off, load, gains = misled()
    settings = replace(BOTH, steps=600, exposure_lr=0.02, poses_lr=2e-4)
    capture = PhotoCapture({i: v.camera for i, v in enumerate(off.views)}, off.extent, settings)
    plain, _ = train(off, load, CpuRasterizer(), replace(TINY, steps=600), test_every=0, quiet=True)
    splats, _ = train(off, load, CpuRasterizer(), settings, test_every=0, quiet=True, capture=capture)
    found = capture.found()
    names = {v.name: found[i] for i, v in enumerate(off.views)}
    before, after = shifts(true, off), shifts(true, corrected(off, names))
    assert np.mean(after) < 0.6 * np.mean(before) > 0.5
    bright = torch.stack([c.photographed(torch.full((3,), 0.4)) for c in found.values()]) / 0.4
    error = (bright / (gains / gains.mean(0)) - 1).abs().mean()
    assert float(error) < 0.6 * float((gains / gains.mean(0) - 1).abs().mean())
    raster, views = CpuRasterizer(), range(len(off.views))
    as_taken = mean_psnr(splats, corrected(off, names), views, load, raster, None, found)
    assert as_taken > mean_psnr(plain, off, views, load, raster, None) + 0.7
    assert as_taken > mean_psnr(splats, corrected(off, names), views, load, raster, None) + 1


def test_exposures_of_photos_that_are_cut_out_are_found() -> None:
    """What is behind what is see-through is as bright as the photo: else it says that all are exposed alike."""
    _, scene, load, gains = misled()

    def cut_out(view: View) -> np.ndarray:
        rgb = load(view)
        y, x = np.indices(rgb.shape[:2])
        alpha = 255 * (np.hypot(y / len(rgb) - 0.5, x / rgb.shape[1] - 0.5) < 0.3)
        return np.dstack([rgb * (alpha[..., None] > 0), alpha]).astype(np.uint8)

    settings = replace(TINY, exposure=True, exposure_lr=0.02, steps=600, background="random")
    capture = PhotoCapture({i: v.camera for i, v in enumerate(scene.views)}, scene.extent, settings)
    train(scene, cut_out, CpuRasterizer(), settings, test_every=0, quiet=True, capture=capture)
    found = torch.stack([c.photographed(torch.full((3,), 0.4)).mean() / 0.4 for c in capture.found().values()])
    true = (gains / gains.mean(0)).mean(1)
    apart, truly = found.log() - found.log().mean(), true.log() - true.log().mean()
    assert 0.5 < float((apart * truly).sum() / (truly * truly).sum()) < 1.3


def test_a_photo_that_was_held_back_is_placed_by_finished_splats() -> None:
    true, off, load, gains = misled()
    splats, _ = train(true, make_scene(12, 48)[1], CpuRasterizer(), replace(TINY, steps=600), test_every=0, quiet=True)
    before, after = [], []
    for i, (view, wrong) in enumerate(zip(true.views, off.views)):
        photo = torch.from_numpy(load(view)) / 255.0
        found = place(splats, wrong.camera, photo, CpuRasterizer(), off.extent, BOTH)
        moved_back = replace(off, views=(replace(wrong, camera=replace(wrong.camera, viewmat=found.viewmat)),))
        before += shifts(replace(true, views=(view,)), replace(off, views=(wrong,)))
        after += shifts(replace(true, views=(view,)), moved_back)
        torch.testing.assert_close(found.photographed(torch.full((3,), 0.4)), 0.4 * gains[i], rtol=0, atol=0.05)
        same = place(splats, wrong.camera, photo, CpuRasterizer(), off.extent, TINY)
        assert torch.equal(same.viewmat, wrong.camera.viewmat) and torch.equal(same.color, torch.eye(3, 4))
    assert np.mean(after) < 0.3 * np.mean(before)


def test_the_exposure_of_a_picture_is_that_of_least_squares() -> None:
    g = torch.Generator().manual_seed(6)
    picture, color = torch.rand(30, 40, 3, generator=g), torch.eye(3, 4) + 0.2 * torch.randn(3, 4, generator=g)
    photo = Correction(color, torch.eye(4)).photographed(picture)
    dim = photo.amax(-1) < 0.98
    assert 0.2 < float(dim.float().mean()) < 0.98
    torch.testing.assert_close(exposure_of(picture, photo.clamp(max=1)), color, rtol=0, atol=5e-3)
    for plain in (torch.full((5, 5, 3), 0.5), torch.zeros(5, 5, 3)):  # which tells one colour, or nothing
        found = Correction(exposure_of(plain, plain), torch.eye(4))
        torch.testing.assert_close(found.photographed(plain), plain, rtol=0, atol=1e-3)
    assert torch.equal(exposure_of(picture, torch.ones(30, 40, 3)), torch.eye(3, 4))  # all of it is white


EXPOSED = Correction(
    torch.tensor([[0.7, 0.05, 0.0, 0.06], [0.0, 0.65, 0.05, 0.04], [0.05, 0.0, 0.6, 0.08]]), torch.eye(4)
)
"""A photo darker than its picture, where black is not black and white is not white."""


def cut_out(splats: Splats, camera: Camera, color: Correction) -> Tensor:
    """A photo of splats alone, taken with some exposure: colours times alpha, and alpha, [H, W, 4]."""
    with torch.no_grad():
        seen = CpuRasterizer().render(splats, splats.colors(camera.position), [camera])
    colors, alpha = seen.values[0], seen.alphas[0][..., None]
    return torch.cat([color.photographed(colors) - (1 - alpha) * color.color[:, 3], alpha], 2)


@pytest.mark.parametrize("background", [None, torch.ones(3)])
def test_the_exposure_of_a_photo_that_is_cut_out_is_that_of_what_it_shows(background: Tensor | None) -> None:
    splats, camera = clumps()[0], cameras()[0]
    splats = splats.select(torch.arange(len(splats))[torch.from_numpy(clumps()[1]) != FLOOR])
    photo = cut_out(splats, camera, EXPOSED)
    assert 0.1 < float((photo[..., 3] > 0.5).float().mean()) < 0.6
    with torch.no_grad():
        colors = splats.colors(camera.position)
        picture = CpuRasterizer().render(splats, colors, [camera], backgrounds=background).values[0]
    torch.testing.assert_close(exposure_of(picture, photo, background), EXPOSED.color, rtol=0, atol=0.02)
    found = place(splats, camera, photo, CpuRasterizer(), EXTENT, BOTH, background)
    torch.testing.assert_close(found.color, EXPOSED.color, rtol=0, atol=0.03)
    torch.testing.assert_close(found.viewmat, camera.viewmat, rtol=0, atol=0.01)


@pytest.mark.parametrize("background", ["black", "white", "random"])
def test_pictures_are_measured_before_what_the_photo_would_show_there(
    learned: Path, tmp_path: Path, background: str
) -> None:
    work = Workspace(open_run(learned), quiet=True)
    splats, view = work.splats.select(work.splats.means[:, 2] > 0.1), work.scene.views[3]
    work.run.settings = replace(work.run.settings, train=replace(work.run.settings.train, background=background))
    photo = cut_out(splats, view.camera, EXPOSED)
    straight = torch.cat([photo[..., :3] / photo[..., 3:].clamp(min=1e-6), photo[..., 3:]], 2).clamp(0, 1)
    Image.fromarray((255 * straight).round().byte().numpy()).save(tmp_path / "a.png")
    for name in ("scene_as_read", "scene"):
        taken = [replace(v, image_path=tmp_path / "a.png") for v in getattr(work, name).views]
        setattr(work, name, replace(getattr(work, name), views=tuple(taken)))
    work.exposures = {3: EXPOSED}
    assert measure_view(work, 3, splats).psnr > 40
    shown = mean_psnr(splats, work.scene, [3], load_view, work.rasterizer, work.background, work.exposures)
    assert shown == pytest.approx(measure_view(work, 3, splats).psnr, abs=0.01)


class Dies(PhotoCapture):
    """Dies when `left` photos were predicted."""

    left = 40

    def predict(self, view: int, renders: Tensor) -> Tensor:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return super().predict(view, renders)


def test_a_killed_training_finds_the_same(tmp_path: Path) -> None:
    scene, load = make_scene()
    settings = replace(BOTH, checkpoint_every=15, background="random", coarse=0.4, grow_grad2d=1e-6)
    cameras = {i: scene.views[i].camera for i in scene.split(3)[0]}

    def go(kind: type[PhotoCapture], folder: Path | None):
        capture = kind(cameras, scene.extent, settings)
        splats, _ = train(
            scene, load, CpuRasterizer(), settings, test_every=3, quiet=True, capture=capture, checkpoint_dir=folder
        )
        return splats, capture

    whole, straight = go(PhotoCapture, None)
    with pytest.raises(Killed):
        go(Dies, tmp_path)
    rest, resumed = go(PhotoCapture, tmp_path)
    assert_same(whole, rest)
    assert straight.twists.any() and torch.equal(straight.twists, resumed.twists)
    assert straight.colors.any() and torch.equal(straight.colors, resumed.colors)


def test_rates_fall_to_their_last() -> None:
    scene, load = make_scene()
    rates = []

    class Noting(PhotoCapture):
        def parameter_groups(self):
            self.groups = super().parameter_groups()
            return self.groups

    settings = replace(BOTH, steps=20, capture_lr_final=0.1)
    capture = Noting({i: scene.views[i].camera for i in scene.split(3)[0]}, scene.extent, settings)
    before = torch.optim.Adam.step

    def step(self, *arguments):
        group = self.param_groups[0]
        if group["params"][0] is capture.colors:
            rates.append([g["lr"] for g in self.param_groups])
        return before(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        train(scene, load, CpuRasterizer(), settings, test_every=3, quiet=True, capture=capture)
    assert rates[0] == pytest.approx([settings.exposure_lr, settings.poses_lr])
    assert rates[-1] == pytest.approx([0.1 * settings.exposure_lr, 0.1 * settings.poses_lr]) and len(rates) == 20


def test_what_a_camera_clips_hardly_counts() -> None:
    """A photo of twice the brightness is white where the splats have 0.8, and says no more of it."""
    capture = PhotoCapture(make_cameras(2), EXTENT, BOTH)
    with torch.no_grad():
        capture.colors[0, :, :3] += 2 * torch.eye(3)  # and the mean of the two is taken off: gains of 2 and 0
    render = torch.tensor([0.2, 0.5, 0.8]).expand(1, 2, 2, 3).clone().requires_grad_()
    picture = capture.predict(1, render)
    torch.testing.assert_close(picture[0, 0], torch.tensor([0.4, 1.0, 1.06]))
    picture.sum().backward()
    assert render.grad is not None
    torch.testing.assert_close(render.grad[0, 0, 0], torch.tensor([2.0, 2.0, 0.2]))
    known = KnownExposure({1: capture.found()[1]})
    torch.testing.assert_close(known.predict(1, render), picture)


def test_known_exposures_are_those_of_their_photos() -> None:
    render = 0.5 * torch.rand(1, 3, 3, 3)
    color = torch.tensor([[1.2, 0, 0, 0.1], [0, 0.9, 0.1, 0], [0, 0, 1, -0.05]])
    known = KnownExposure({4: Correction(color, torch.eye(4))})
    expected = torch.stack(
        [1.2 * render[0, ..., 0] + 0.1, 0.9 * render[0, ..., 1] + 0.1 * render[0, ..., 2], render[0, ..., 2] - 0.05], -1
    )
    torch.testing.assert_close(known.predict(4, render), expected)
    assert torch.equal(known.predict(3, render), render[0]) and known.parameter_groups() == []


# --- a run ---

LEARNS = replace(SETTINGS, train=replace(SETTINGS.train, exposure=True, poses=True, poses_lr=1e-3, exposure_lr=0.01))


@pytest.fixture(scope="module")
def learned(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned exposures and poses of photos that differ in brightness, sharpened."""
    folder = tmp_path_factory.mktemp("learned")
    scene, gains = Path(copytree(tiny_scene, folder / "scene")), np.random.default_rng(5).uniform(0.5, 1, 20)
    for path, gain in zip(sorted((scene / "images").rglob("*.png")), gains):
        Image.fromarray((np.array(Image.open(path)) * gain).astype(np.uint8)).save(path)
    settings = replace(LEARNS, sharpen=SharpenSettings(steps=20, max_loss=9.0))
    run_all(scene, folder / "run", settings, masks=scene / "masks", splats=None, quiet=True)
    return folder / "run"


def test_a_run_goes_on_with_what_training_found_of_photos(learned: Path) -> None:
    run = open_run(learned)
    work, found = Workspace(run, quiet=True), read_corrections(learned / "corrections.json")
    as_read, scene = work.scene_as_read, work.scene
    assert set(found) == {view.name for view in scene.views} and len(work.test_views) == 2
    for i, (before, after) in enumerate(zip(as_read.views, scene.views)):
        assert torch.equal(after.camera.viewmat, found[after.name].viewmat)
        assert not torch.equal(before.camera.viewmat, after.camera.viewmat)
        assert torch.equal(work.exposures[i].color, found[after.name].color)
    for name, camera in cgc.cameras(learned / "cameras.json").items():
        assert torch.equal(camera.viewmat, next(v for v in scene.views if v.name == name).camera.viewmat)
    facts = run.stats
    low, high = facts["exposures"]
    assert 0.5 < low < 1 < high < 2 and 0 < facts["moved"][0] <= facts["moved"][1] < 5
    for split, views in (("train", work.train_views), ("test", work.test_views)):
        photographed = [q["psnr"] for q in facts["quality"].values() if q["split"] == split]
        clean = mean_psnr(work.shown_splats, scene, views, load_image, work.rasterizer, work.background)
        assert np.mean(photographed) > clean + 0.3
    assert load_sharpened(learned) is not None and facts["sharpened"]["psnr_before"] == pytest.approx(
        mean_psnr(work.splats, scene, work.train_views, load_image, work.rasterizer, None, work.exposures), abs=1e-3
    )


def test_uneven_are_training_photos_only() -> None:
    views = [SimpleNamespace(name=f"{i}.png") for i in range(6)]
    work: Any = SimpleNamespace(test_views=[0, 3], scene=SimpleNamespace(views=views))

    def uneven(*factors: float) -> float:
        return quality_facts(work, {i: Measures(20.0, 0.8, b) for i, b in enumerate(factors)})["uneven"]

    assert uneven(2, 1, 1, 2, 1, 1) == 0
    assert uneven(1, 2, 3, 1, 4, 5) == pytest.approx(np.log([2, 3, 4, 5]).std(), abs=1e-4)


def test_photos_that_were_exposed_differently_are_said(learned: Path, tmp_path: Path) -> None:
    scene = Path(open_run(learned).source.scene)
    settings = replace(LEARNS, train=replace(LEARNS.train, exposure=False, poses=False))
    run = run_all(scene, tmp_path / "run", settings, masks=None, splats=None, quiet=True)
    assert run.stats["uneven"] > 0.05 > UNEVEN
    said = [w for w in find_warnings(run.stats) if "--train.exposure" in w]
    assert len(said) == 1 and "Photos differ in brightness from their pictures, by" in said[0]
    assert open_run(learned).stats["uneven"] < run.stats["uneven"]
    assert not any("--train.exposure" in w for w in find_warnings(open_run(learned).stats))
    assert find_warnings({"uneven": 0.9 * UNEVEN}) == find_warnings({"uneven": None}) == []
    far = {"psnr_train": 29.0, "psnr_test": 20.0}
    assert "--train.poses" in find_warnings(far)[0] and "--train.exposure" in find_warnings(far)[0]
    knows = find_warnings(far | {"exposures": [0.5, 2.0], "moved": [1.0, 2.0]})[0]
    fitted = find_warnings(far | {"psnr_train": 31.0})[0]
    for said in (knows, fitted):
        assert "--train" not in said and "than those learned from: there are too few photos of what they show." in said


def test_brightness_is_that_of_most_pixels() -> None:
    shown = np.random.default_rng(0).uniform(0.1, 0.4, (20, 20, 3)).astype(np.float32)
    photo = 1.7 * shown
    photo[:6], shown[15:] = 0.9, 0.01  # something that walked by, and what is too dark to tell
    assert brightness(shown, photo) == pytest.approx(1.7, rel=1e-5)
    assert brightness(0 * shown, photo) == 1.0


def test_the_api_has_the_cameras_that_training_found(learned: Path, tmp_path: Path) -> None:
    own = copytree(learned, tmp_path / "own")
    (own / "cameras.json").unlink()
    found = read_corrections(own / "corrections.json")
    seg = cgc.load(own)
    name = next(iter(found))
    assert torch.equal(seg.camera(name).viewmat, found[name].viewmat)


def test_corrections_belong_to_their_training(learned: Path, tmp_path: Path, capsys) -> None:
    own = copytree(learned, tmp_path / "own")
    before = snapshot(own)
    (own / "corrections.json").unlink()
    assert not open_run(own).is_done("train")
    run_step(own, "train")
    said = " ".join(capsys.readouterr().out.split())
    assert "times as bright as the splats; cameras were moved by" in said and "now out of date" not in said
    for name in ("corrections.json", "splats.ply"):  # it starts from the cameras of the model again
        assert (own / name).read_bytes() == before[name]
    run_step(own, "train", quiet=True, train=replace(LEARNS.train, exposure=False, poses=False))
    run = open_run(own)
    assert not (own / "corrections.json").exists() and run.stats["exposures"] is run.stats["moved"] is None
    assert run.is_done("train") and not run.is_done("lift") and run.corrections() == {}
    work = Workspace(run, quiet=True)
    assert all(
        torch.equal(a.camera.viewmat, b.camera.viewmat) for a, b in zip(work.scene.views, work.scene_as_read.views)
    )


def test_training_again_mends_broken_corrections(learned: Path, tmp_path: Path) -> None:
    own = copytree(learned, tmp_path / "own")
    whole = (own / "corrections.json").read_bytes()
    (own / "corrections.json").write_bytes(whole[:300])
    with pytest.raises(InputError, match=r"corrections.json"):
        run_step(own, "cluster", quiet=True)
    run_step(own, "train", quiet=True)
    assert (own / "corrections.json").read_bytes() == whole
    run_step(own, "cluster", quiet=True)


@pytest.mark.parametrize("at", ["write_ply", "write_corrections", "say_corrections"])
def test_a_training_that_is_killed_while_it_writes_leaves_no_mixture(learned: Path, tmp_path: Path, at: str) -> None:
    """Its splats with the cameras of another, or the reverse, would be taken for a whole."""
    own = copytree(learned, tmp_path / "own")
    other = replace(LEARNS.train, seed=3)

    def die(*arguments):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"cgc.pipeline.train.{at}", die)
        with pytest.raises(Killed):
            run_step(own, "train", quiet=True, train=other)
    run = open_run(own)
    assert run.settings.train != other
    assert run.is_done("train") == (at == "write_ply")  # then it is what it was
    run.settings = replace(run.settings, train=other)
    assert not run.is_done("train")


def test_given_splats_take_photos_as_they_are(learned: Path, tmp_path: Path, capsys) -> None:
    own, scene = Path(copytree(learned, tmp_path / "own")), Path(open_run(learned).source.scene)
    for settings in (LEARNS, replace(LEARNS, blocks=BlockSettings(gaussians=200))):
        write_corrections(own / "corrections.json", read_corrections(learned / "corrections.json"))
        (own / "splats.ply").unlink()
        run_all(scene, own, settings, masks=None, splats=learned / "splats.ply")
        assert "given ones take photos as they are" in " ".join(capsys.readouterr().out.split())
        run = open_run(own)
        assert run.corrections() == {} and not (own / "corrections.json").exists()
        assert run.stats["exposures"] is run.stats["moved"] is None


def test_a_second_command_has_the_cameras_of_the_first(tiny_scene: Path, tmp_path: Path) -> None:
    """Masks that are learned from while splats are trained are known late; so is, then, that training is done."""
    settings = replace(PAPER, train=replace(LEARNS.train, features="joint"), scene=SETTINGS.scene)
    settings = replace(settings, cluster=replace(settings.cluster, min_cluster_size=10, samples=500))
    for seed in (0, 1):
        changed = replace(settings, cluster=replace(settings.cluster, seed=seed))
        run_all(tiny_scene, tmp_path / "run", changed, masks=tiny_scene / "masks", splats=None, quiet=True)
        found, kept = read_corrections(tmp_path / "run/corrections.json"), cgc.cameras(tmp_path / "run/cameras.json")
        assert all(torch.equal(kept[name].viewmat, c.viewmat) for name, c in found.items())


# --- the file ---


def test_corrections_come_back_to_the_bit(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(2)
    made = {f"photo {i}.jpg": Correction(torch.randn(3, 4, generator=g), torch.randn(4, 4, generator=g)) for i in "ab"}
    write_corrections(tmp_path / "c.json", made)
    found = read_corrections(tmp_path / "c.json")
    assert list(found) == list(made)
    for name, c in made.items():
        assert torch.equal(found[name].color, c.color) and torch.equal(found[name].viewmat, c.viewmat)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda v: v.pop("photos"), "is broken"),
        (lambda v: v.update(format=2), "its format is 2 where 1 was expected"),
        (lambda v: v["photos"][0].pop("name"), "is broken"),
        (lambda v: v["photos"][0].update(color=[[1, 0, 0]]), "not finite ones of 3x4"),
        (lambda v: v["photos"][0]["viewmat"][1].__setitem__(2, math.inf), "not finite ones"),
        (lambda v: v["photos"][0].update(viewmat="x"), "is broken"),
        (lambda v: v.update(photos=3), "is broken"),
    ],
)
def test_a_broken_file_is_said(tmp_path: Path, change, said: str) -> None:
    path = tmp_path / "c.json"
    write_corrections(path, {"a.jpg": Correction(torch.eye(3, 4), torch.eye(4))})
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"{said}.*train the run again"):
        read_corrections(path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError):
        read_corrections(path)


def test_corrections_of_other_photos_are_refused() -> None:
    scene, _ = make_scene(3)
    with pytest.raises(InputError, match=r"training has corrected b.jpg, which the scene has no more; train the run"):
        corrected(scene, {"b.jpg": Correction(torch.eye(3, 4), torch.eye(4))})
