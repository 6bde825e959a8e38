"""Appearance room: the loss and fused colours against slow references, densification, and the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cgc.appearance import schedule
from cgc.appearance.capture import Densification, IdentityCapture
from cgc.appearance.checkpoint import KEEP
from cgc.appearance.densify import Densifier
from cgc.appearance.losses import photometric_loss, psnr
from cgc.appearance.trainer import TrainStats, first_splats, train
from cgc.errors import InputError
from cgc.geometry import rgb_to_sh_dc, sh_to_rgb
from cgc.rasterize.base import Render
from cgc.rasterize.cpu import CpuRasterizer
from cgc.rasterize.sh import sh_colors, view_colors
from cgc.scene.types import Camera, Scene, View
from cgc.settings import TRAIN_PRESETS, TrainSettings
from cgc.splats.types import Splats

TINY = TrainSettings(steps=60, max_gaussians=300, refine_start=0.1, refine_every=10, checkpoint_every=0, coarse=0)


# --- a tiny scene: 24 x 32 pictures of 60 coloured Gaussians -------------------------------------------


def make_splats(n: int, degree: int = 0, seed: int = 0) -> Splats:
    g = torch.Generator().manual_seed(seed)
    sh = torch.zeros(n, (degree + 1) ** 2, 3)
    sh[:, 0] = rgb_to_sh_dc(torch.rand(n, 3, generator=g))
    sh[:, 1:] = 0.2 * torch.randn(n, (degree + 1) ** 2 - 1, 3, generator=g)
    quats = functional.normalize(torch.randn(n, 4, generator=g), dim=-1)
    log_scales = math.log(0.15) + 0.3 * torch.randn(n, 3, generator=g)
    return Splats(2 * torch.rand(n, 3, generator=g) - 1, quats, log_scales, torch.full((n,), 2.0), sh)


def make_scene(n_views: int = 9) -> tuple[Scene, Callable[[View], np.ndarray]]:
    truth = make_splats(60)
    views, photos = [], {}
    for i in range(n_views):
        angle = 2 * math.pi * i / n_views
        eye = (4 * math.cos(angle), 4 * math.sin(angle), 1.5)
        camera = Camera.look_at(eye, (0, 0, 0), width=32, height=24, focal=40)
        image = CpuRasterizer().render(truth, truth.colors(camera.position), [camera]).values[0]
        views.append(View(f"{i}.png", camera, Path(f"{i}.png")))
        photos[f"{i}.png"] = (image.clamp(0, 1) * 255).byte().numpy()
    points = truth.means.numpy() + np.random.default_rng(0).normal(0, 0.03, (60, 3)).astype(np.float32)
    colors = np.full((60, 3), 128, np.uint8)
    return Scene(Path("tiny"), tuple(views), points, colors), lambda view: photos[view.name]


@pytest.fixture(scope="module")
def tiny() -> tuple[Scene, Callable[[View], np.ndarray]]:
    return make_scene()


def run(tiny, settings: TrainSettings = TINY, **options) -> tuple[Splats, TrainStats]:
    return train(*tiny, CpuRasterizer(), settings, test_every=3, quiet=True, **options)


def assert_same(a: Splats, b: Splats) -> None:
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


# --- loss ----------------------------------------------------------------------------------------------


def slow_loss(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """L1 and SSIM as Wang et al. write them, with a whole 11 x 11 window."""
    taps = torch.exp(-0.5 * ((torch.arange(11, dtype=x.dtype) - 5) / 1.5) ** 2)
    window = torch.outer(taps, taps)
    window = (window / window.sum()).expand(3, 1, 11, 11)
    a, b = x.permute(2, 0, 1)[None], y.permute(2, 0, 1)[None]

    def mean(t: Tensor) -> Tensor:
        return functional.conv2d(t, window, padding=5, groups=3)

    m, n = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - m * m, mean(b * b) - n * n, mean(a * b) - m * n
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * m * n + c1) * (2 * cov + c2) / ((m * m + n * n + c1) * (var_a + var_b + c2))
    return (1 - weight) * (x - y).abs().mean() + weight * (1 - ssim.mean())


@pytest.mark.parametrize("height, width", [(30, 37), (24, 32), (3, 50), (1, 1)])
@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_loss_and_its_gradient_match_the_slow_reference(height: int, width: int, weight: float) -> None:
    g = torch.Generator().manual_seed(height)
    photo = torch.rand(height, width, 3, generator=g)
    x = (photo + 0.2 * torch.randn(height, width, 3, generator=g)).requires_grad_()
    loss = photometric_loss(x, photo, weight)
    (3.0 * loss).backward()
    slow_x = x.detach().double().requires_grad_()
    slow = slow_loss(slow_x, photo.double(), weight)
    (3.0 * slow).backward()
    torch.testing.assert_close(loss.double(), slow, rtol=1e-5, atol=1e-7)
    scale = float(slow_x.grad.abs().max())
    torch.testing.assert_close(x.grad.double(), slow_x.grad, rtol=1e-3, atol=1e-4 * scale)


def test_slow_reference_has_the_gradient_it_claims() -> None:
    g = torch.Generator().manual_seed(0)
    photo = torch.rand(5, 6, 3, generator=g, dtype=torch.float64)
    x = (photo + 0.1 * torch.randn(5, 6, 3, generator=g, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: slow_loss(t, photo, 0.3), (x,))


def test_loss_of_equal_images_is_zero() -> None:
    photo = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0))
    assert abs(float(photometric_loss(photo, photo, 0.5))) < 1e-6


def test_loss_lets_nan_through_and_refuses_other_shapes() -> None:
    photo = torch.zeros(12, 12, 3)
    broken = photo.clone()
    broken[5, 5, 1] = math.nan
    assert math.isnan(float(photometric_loss(broken, photo)))
    with pytest.raises(ValueError, match="one shape"):
        photometric_loss(photo, photo[:-1])


def test_psnr() -> None:
    assert psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)) == pytest.approx(20.0, abs=1e-4)


# --- colours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_fused_colours_match_geometry(degree: int) -> None:
    splats = make_splats(300, 3, seed=degree)
    sh = (splats.sh * 3).requires_grad_()  # some colours are clamped
    means = splats.means.clone().requires_grad_()
    position = torch.tensor([0.5, -2.0, 1.0])
    v = torch.randn(300, 3, generator=torch.Generator().manual_seed(9))
    colors = sh_colors(means, sh[:, 0], sh[:, 1:], position, degree)
    (colors * v).sum().backward()
    slow_means, slow_sh = means.detach().double().requires_grad_(), sh.detach().double().requires_grad_()
    slow = sh_to_rgb(slow_sh, slow_means - position.double(), degree)
    (slow * v).sum().backward()
    assert (slow == 0).any()
    torch.testing.assert_close(colors.double(), slow, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sh.grad.double(), slow_sh.grad, rtol=1e-4, atol=1e-5)
    if degree > 0:
        torch.testing.assert_close(means.grad.double(), slow_means.grad, rtol=1e-4, atol=1e-4)


def test_view_colors_are_those_of_splats() -> None:
    splats = make_splats(50, 2)
    for degree in (None, 1):
        colors = view_colors(splats, torch.ones(3), degree)
        torch.testing.assert_close(colors, splats.colors(torch.ones(3), degree), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="degree 3"):
        view_colors(splats, torch.ones(3), 3)


def test_a_gaussian_at_the_camera_has_finite_colour_and_gradient() -> None:
    means = torch.zeros(1, 3, requires_grad=True)
    sh = torch.ones(1, 4, 3)
    sh_colors(means, sh[:, 0], sh[:, 1:], torch.zeros(3), 1).sum().backward()
    assert torch.isfinite(means.grad).all()


# --- schedule ------------------------------------------------------------------------------------------


def test_schedules_stretch_with_steps() -> None:
    for steps in (30, 3000):
        s = TrainSettings(steps=steps, sh_degree=3, sh_ramp=0.5, refine_start=0.1, refine_stop=0.5)
        s = replace(s, coarse=0.2)
        at = [int(f * steps) for f in (0.0, 0.15, 0.3, 0.4, 0.9)]
        assert [schedule.sh_degree(s, step) for step in at] == [0, 1, 2, 3, 3]
        assert [schedule.is_coarse(s, step) for step in at] == [True, True, False, False, False]
        assert schedule.decayed(1.0, 0.01, s, steps - 1) == pytest.approx(0.01)
        refined = [step for step in range(steps) if schedule.refines(replace(s, refine_every=5), step)]
        assert refined[0] >= 0.1 * steps and refined[-1] < 0.5 * steps


def test_an_epoch_shows_every_training_view_once_in_another_order() -> None:
    views = list(range(1, 9))
    epochs = [[schedule.view_at(views, 3, 8 * e + i) for i in range(8)] for e in range(3)]
    assert all(sorted(epoch) == views for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_background_follows_from_seed_and_step() -> None:
    s = TrainSettings(background="random")
    assert torch.equal(schedule.background_at(s, 5), schedule.background_at(s, 5))
    assert not torch.equal(schedule.background_at(s, 5), schedule.background_at(s, 6))
    assert schedule.background_at(replace(s, background="white"), 0).tolist() == [1, 1, 1]
    assert schedule.background_at(replace(s, background="black"), 0).tolist() == [0, 0, 0]


# --- densification -------------------------------------------------------------------------------------


def densifying(n: int = 20, cap: int = 25, **options):
    """A densifier of n Gaussians whose gradients are 1, 2, .. n, with parameters and optimisers."""
    splats = make_splats(n)
    tensors = {
        "means": splats.means, "quats": splats.quats, "scales": splats.log_scales,
        "opacities": splats.logit_opacities, "sh_dc": splats.sh[:, 0],
    }  # fmt: skip
    params = {k: torch.nn.Parameter(v.clone()) for k, v in tensors.items()}
    optimizers = {k: torch.optim.Adam([p], fused=True) for k, p in params.items()}
    densifier = Densifier(extent=1.0, max_gaussians=cap, prune_scale=0.0, seed=0, **options)
    means2d = torch.zeros(1, n, 2, requires_grad=True)
    means2d.grad = torch.zeros(1, n, 2)
    means2d.grad[0, :, 0] = torch.arange(1.0, n + 1) / 16  # times half of the width 32
    radii = torch.ones(1, n, 2, dtype=torch.int32)
    empty = torch.empty(0)
    render = Render(values=empty, alphas=empty, depths=None, means2d=means2d, radii=radii)
    for p, o in zip(params.values(), optimizers.values()):
        p.grad = torch.ones_like(p)
        o.step()
    densifier.count(params, render, 32, 24)
    return densifier, params, optimizers


def test_only_the_largest_gradients_grow_up_to_the_cap() -> None:
    densifier, params, optimizers = densifying(20, 25)
    kept = params["means"][:15].detach().clone()
    densifier.refine(params, optimizers, 10, Densification(grow_grad2d=0.5, prune_opacity=0.001))
    assert len(params["means"]) == 25
    assert torch.equal(params["means"][:15], kept)
    for name, p in params.items():
        assert optimizers[name].state[p]["exp_avg"].shape == p.shape
    assert densifier.statistics["grad2d"].shape == (25,) and not densifier.statistics["grad2d"].any()


def test_nothing_grows_at_the_cap_nor_under_the_threshold() -> None:
    for cap, threshold in ((20, 0.5), (100, 50.0)):
        densifier, params, optimizers = densifying(20, cap)
        densifier.refine(params, optimizers, 10, Densification(threshold, 0.001))
        assert len(params["means"]) == 20


def test_splits_follow_from_seed_and_step_and_leave_torch_alone() -> None:
    made = []
    for step in (10, 10, 20):
        densifier, params, optimizers = densifying()
        torch.manual_seed(len(made))
        before = torch.get_rng_state()
        densifier.refine(params, optimizers, step, Densification(0.5, 0.001))
        assert torch.equal(torch.get_rng_state(), before)
        made.append(params["means"].detach())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_faint_and_long_gaussians_are_pruned() -> None:
    densifier, params, optimizers = densifying()
    with torch.no_grad():
        params["opacities"][3] = -9.0
        params["scales"][5, 1] = 2.0
    densifier._strategy.too_big = 5.0
    densifier.refine(params, optimizers, 10, Densification(0.5, 0.005, grow=False))
    assert len(params["means"]) == 18


def test_opacity_reset() -> None:
    densifier, params, optimizers = densifying()
    densifier.reset_opacities(params, optimizers, 0.005)
    torch.testing.assert_close(params["opacities"].sigmoid(), torch.full((20,), 0.01))
    assert not optimizers["opacities"].state[params["opacities"]]["exp_avg"].any()


def test_the_trainer_resets_opacities_where_asked(tiny) -> None:
    settings = replace(TINY, steps=22, reset_every=20, refine_stop=1.0, refine_start=1.0)
    reset, _ = run(tiny, settings)
    plain, _ = run(tiny, replace(settings, reset_every=0))
    assert float(reset.opacities.max()) < 0.05 < float(plain.opacities.max())


# --- trainer -------------------------------------------------------------------------------------------


def test_loss_falls_and_gaussians_grow_within_the_cap(tiny) -> None:
    _, early = run(tiny, replace(TINY, steps=10))
    splats, late = run(tiny, replace(TINY, steps=300, max_gaussians=90, grow_grad2d=1e-6))
    assert late.loss < 0.6 * early.loss and late.psnr_train > early.psnr_train + 3
    assert 60 < len(splats) == late.gaussians <= 90
    torch.testing.assert_close(splats.quats.norm(dim=-1), torch.ones(len(splats)))


def test_a_seed_gives_the_same_splats_and_another_others(tiny) -> None:
    first, _ = run(tiny)
    assert_same(first, run(tiny)[0])
    other, _ = run(tiny, replace(TINY, seed=1))
    assert len(other) != len(first) or not torch.equal(other.means, first.means)


class Killed(Exception):
    pass


class KillAt(IdentityCapture):
    """A capture model that learns a gain, and dies when `step` photos were predicted."""

    def __init__(self, step: int | None) -> None:
        self.gain = torch.ones(3, requires_grad=True)
        self._left = step

    def parameter_groups(self):
        return [{"params": [self.gain], "lr": 1e-2}]

    def predict(self, view: int, renders: Tensor) -> Tensor:
        if self._left is not None:
            if self._left == 0:
                raise Killed
            self._left -= 1
        return renders[0] * self.gain


def test_a_killed_training_resumes_to_the_same_bits(tiny, tmp_path: Path) -> None:
    settings = replace(TINY, checkpoint_every=15, background="random", coarse=0.4, grow_grad2d=1e-6)
    straight = KillAt(None)
    whole, stats = run(tiny, settings, capture=straight)
    with pytest.raises(Killed):
        run(tiny, settings, capture=KillAt(40), checkpoint_dir=tmp_path)
    resumed = KillAt(None)
    rest, resumed_stats = run(tiny, settings, capture=resumed, checkpoint_dir=tmp_path)
    assert resumed_stats.resumed_from == 30
    assert_same(whole, rest)
    assert torch.equal(straight.gain, resumed.gain)
    assert (stats.loss, stats.psnr_train) == (resumed_stats.loss, resumed_stats.psnr_train)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["train_0000030.safetensors", "train_0000045.safetensors"] and len(left) == KEEP


def test_checkpoints_of_something_else_are_refused(tiny, tmp_path: Path) -> None:
    settings = replace(TINY, steps=4, checkpoint_every=2)
    run(tiny, settings, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="another settings"):
        run(tiny, replace(settings, seed=5), checkpoint_dir=tmp_path)
    scene, load = tiny
    with pytest.raises(InputError, match="another scene"):
        run((replace(scene, points=scene.points + 1), load), settings, checkpoint_dir=tmp_path)
    run(tiny, replace(settings, checkpoint_every=3), checkpoint_dir=tmp_path)  # how often does not matter
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(InputError, match="not a checkpoint"):
        run(tiny, settings, checkpoint_dir=tmp_path)


def test_test_views_are_never_read(tiny) -> None:
    scene, load = tiny
    read: list[str] = []

    def noting(view: View) -> np.ndarray:
        read.append(view.name)
        return load(view)

    run((scene, noting), replace(TINY, steps=2))
    assert sorted(read) == [f"{i}.png" for i in range(9) if i % 3]


def test_masked_pixels_do_not_matter(tiny) -> None:
    scene, load = tiny

    class RightHalf(IdentityCapture):
        def valid_pixels(self, view: int, height: int, width: int) -> Tensor:
            valid = torch.ones(height, width, dtype=torch.bool)
            valid[:, : width // 2] = False
            return valid

    def rubbish(view: View) -> np.ndarray:
        image = load(view).copy()
        image[:, : image.shape[1] // 2] = 255
        return image

    splats, _ = run((scene, rubbish), replace(TINY, steps=80), capture=RightHalf())
    camera = scene.views[1].camera
    picture = CpuRasterizer().render(splats, view_colors(splats, camera.position), [camera]).values[0]
    truth = torch.from_numpy(load(scene.views[1])) / 255.0
    assert psnr(picture[:, 16:], truth[:, 16:]) > 16 and float(picture[:, :16].mean()) < 0.6


def test_capture_models_can_stop_densification(tiny) -> None:
    class Frozen(IdentityCapture):
        def densification(self, step: int, planned: Densification) -> Densification:
            return replace(planned, grow=False, prune=False)

    splats, _ = run(tiny, replace(TINY, grow_grad2d=1e-9), capture=Frozen())
    assert len(splats) == 60


def test_several_cameras_make_one_photo(tiny) -> None:
    class Twice(IdentityCapture):
        def cameras(self, view: int, camera: Camera) -> list[Camera]:
            return [camera, camera]

        def predict(self, view: int, renders: Tensor) -> Tensor:
            return renders.mean(0)

    settings = replace(TINY, steps=8)
    torch.testing.assert_close(run(tiny, settings, capture=Twice())[0].means, run(tiny, settings)[0].means)


@pytest.mark.parametrize("degree", [0, 3])
def test_scenes_without_points_start_at_random(tiny, degree: int) -> None:
    scene, load = tiny
    bare = replace(scene, points=np.zeros((0, 3), np.float32), point_colors=np.zeros((0, 3), np.uint8))
    settings = replace(TINY, steps=12, init_random=250, sh_degree=degree, background="white")
    assert len(first_splats(bare, settings)) == 250
    splats, _ = run((bare, load), settings)
    assert splats.sh.shape[1] == (degree + 1) ** 2


def test_bad_scenes_are_refused_in_a_sentence(tiny) -> None:
    scene, load = tiny
    with pytest.raises(InputError, match="no Gaussian is visible"):
        run((replace(scene, points=scene.points + 1000), load))
    with pytest.raises(InputError, match="uint8 24x32x3"):
        run((scene, lambda view: load(view)[:-1]))
    with pytest.raises(InputError, match="left to train on"):
        run((replace(scene, views=scene.views[:1]), load))
    with pytest.raises(InputError, match="had faded"):
        run(tiny, replace(TINY, prune_opacity=0.9999))

    class Broken(IdentityCapture):
        def predict(self, view: int, renders: Tensor) -> Tensor:
            return renders[0] * math.nan

    with pytest.raises(InputError, match="became nan at step 0"):
        run(tiny, capture=Broken())


def test_presets_are_settings_by_budget() -> None:
    steps = [TRAIN_PRESETS[name].steps for name in ("quick", "default", "full")]
    assert steps == sorted(steps) and TRAIN_PRESETS["default"] == TrainSettings()
