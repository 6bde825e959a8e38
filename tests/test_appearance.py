"""Appearance room: the loss and fused colours against slow references, densification, and the trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from cgc.appearance import photos, schedule, trainer
from cgc.appearance.backdrop import DISTANCE, backdrop, spread
from cgc.appearance.capture import Densification, IdentityCapture
from cgc.appearance.checkpoint import KEEP, identify, load_checkpoint
from cgc.appearance.companion import Carried, NoCompanion
from cgc.appearance.cost import PRIOR, Coefficients, StepCosts, prior
from cgc.appearance.densify import Densifier
from cgc.appearance.losses import photometric_loss, psnr
from cgc.appearance.plan import FEWEST, Plan
from cgc.appearance.shards import Shards
from cgc.appearance.trainer import TrainStats, first_splats, train
from cgc.appearance.training import shorten
from cgc.errors import InputError
from cgc.geometry import rgb_to_sh_dc, sh_to_rgb
from cgc.kernels import thread_count, threads
from cgc.presets import PAPER, TRAIN_PRESETS, preset_of
from cgc.progress import TimeLeft
from cgc.rasterize.base import Render
from cgc.rasterize.cpu import CpuRasterizer
from cgc.rasterize.sh import sh_colors
from cgc.scene.types import Camera, Scene, View
from cgc.settings import TrainSettings
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


def make_scene(n_views: int = 9, width: int = 32) -> tuple[Scene, Callable[[View], np.ndarray]]:
    truth = make_splats(60)
    views, photos = [], {}
    for i in range(n_views):
        angle = 2 * math.pi * i / n_views
        eye = (4 * math.cos(angle), 4 * math.sin(angle), 1.5)
        camera = Camera.look_at(eye, (0, 0, 0), width=width, height=3 * width // 4, focal=1.25 * width)
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


def test_loss_and_its_gradient_have_the_same_bits_for_any_number_of_threads() -> None:
    g, made = torch.Generator().manual_seed(0), []
    photo, predicted, other = torch.rand(3, 23, 19, 3, generator=g)
    for count in (1, 2, 5):
        x = predicted.clone().requires_grad_()
        with threads(1):
            photometric_loss(other, predicted)  # memory that is used again holds what another picture left there
        with threads(count):
            loss = photometric_loss(x, photo)
            loss.backward()
        made.append((loss.detach(), x.grad))
    assert all(torch.equal(a, b) for more in made[1:] for a, b in zip(made[0], more))


def test_psnr() -> None:
    assert psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)) == pytest.approx(20.0, abs=1e-4)
    assert psnr(torch.ones(4, 4, 3), torch.ones(4, 4, 3)) == pytest.approx(120.0)


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


def test_fused_colours_have_the_same_bits_for_any_number_of_threads() -> None:
    splats, made = make_splats(50, 3), []
    for count in (1, 2, 5):
        leaves = [t.clone().requires_grad_() for t in (splats.means, splats.sh[:, 0], splats.sh[:, 1:])]
        with threads(count):
            colors = sh_colors(*leaves, torch.ones(3), 3)
            colors.square().sum().backward()
        made.append((colors.detach(), *(leaf.grad for leaf in leaves)))
    assert all(torch.equal(a, b) for more in made[1:] for a, b in zip(made[0], more))


def test_sh_colors_are_those_of_splats() -> None:
    splats = make_splats(50, 2)
    parts = splats.means, splats.sh[:, 0], splats.sh[:, 1:], torch.ones(3)
    for degree in (2, 1):
        colors = sh_colors(*parts, degree)
        torch.testing.assert_close(colors, splats.colors(torch.ones(3), degree), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="degree 3"):
        sh_colors(*parts, 3)


def test_a_gaussian_at_the_camera_has_finite_colour_and_gradient() -> None:
    means = torch.zeros(1, 3, requires_grad=True)
    sh = torch.ones(1, 4, 3)
    sh_colors(means, sh[:, 0], sh[:, 1:], torch.zeros(3), 1).sum().backward()
    assert torch.isfinite(means.grad).all()


# --- schedule ------------------------------------------------------------------------------------------


def test_schedules_stretch_with_steps() -> None:
    for steps in (30, 3000):
        s = TrainSettings(steps=steps, sh_degree=3, sh_ramp=0.5, refine_start=0.1, refine_stop=0.5)
        s = replace(s, coarse=0.2, coarse_levels=2)
        at = [int(f * steps) for f in (0.0, 0.15, 0.3, 0.4, 0.9)]
        assert [schedule.sh_degree(s, step) for step in at] == [0, 1, 2, 3, 3]
        assert [schedule.level(s, step) for step in at] == [2, 1, 0, 0, 0]
        assert schedule.decayed(1.0, 0.01, s, steps - 1) == pytest.approx(0.01)
        refined = [step for step in range(steps) if schedule.refines(replace(s, refine_every=5), step)]
        assert refined[0] >= 0.1 * steps and refined[-1] < 0.5 * steps


def test_photos_grow_from_the_coarsest_in_equal_parts() -> None:
    for levels, fraction in ((0, 0.5), (1, 0.5), (3, 0.3), (2, 0.0), (2, 1.0)):
        s = TrainSettings(steps=600, coarse=fraction, coarse_levels=levels)
        seen = [schedule.level(s, step) for step in range(s.steps)]
        assert seen == sorted(seen, reverse=True)
        for level in range(1, levels + 1):
            assert seen.count(level) == round(fraction * s.steps / levels)


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


def densifying(n: int = 20):
    """A densifier of n Gaussians whose gradients are 1, 2, .. n, with parameters and optimisers."""
    splats = make_splats(n)
    tensors = {
        "means": splats.means, "quats": splats.quats, "scales": splats.log_scales,
        "opacities": splats.logit_opacities, "sh_dc": splats.sh[:, 0],
    }  # fmt: skip
    params = {k: torch.nn.Parameter(v.clone()) for k, v in tensors.items()}
    optimizers = {k: torch.optim.Adam([p], fused=True) for k, p in params.items()}
    densifier = Densifier(Shards(n, torch.device("cpu")), extent=1.0, prune_scale=0.0, seed=0)
    means2d = torch.zeros(1, n, 2, requires_grad=True)
    means2d.grad = torch.zeros(1, n, 2)
    means2d.grad[0, :, 0] = torch.arange(1.0, n + 1) / 16  # times half of the width 32
    radii = torch.ones(1, n, 2, dtype=torch.int32)
    empty = torch.empty(0)
    render = Render(values=empty, alphas=empty, depths=None, means2d=means2d, radii=radii)
    for p, o in zip(params.values(), optimizers.values()):
        p.grad = torch.ones_like(p)
        o.step()
    densifier.count(render, 32, 24)
    densifier.add_up()
    return densifier, params, optimizers


def test_only_the_largest_gradients_grow_up_to_the_limit() -> None:
    densifier, params, optimizers = densifying(20)
    kept = params["means"][:15].detach().clone()
    densifier.refine(params, optimizers, 10, Densification(grow_grad2d=0.5, prune_opacity=0.001), 25)
    assert len(params["means"]) == 25
    assert torch.equal(params["means"][:15], kept)
    for name, p in params.items():
        assert optimizers[name].state[p]["exp_avg"].shape == p.shape
    assert densifier.statistics["grad2d"].shape == (25,) and not densifier.statistics["grad2d"].any()


def test_nothing_grows_at_the_limit_nor_under_the_threshold() -> None:
    for cap, threshold in ((20, 0.5), (100, 50.0)):
        densifier, params, optimizers = densifying(20)
        densifier.refine(params, optimizers, 10, Densification(threshold, 0.001), cap)
        assert len(params["means"]) == 20


def test_splits_follow_from_seed_and_step_and_leave_torch_alone() -> None:
    made = []
    for step in (10, 10, 20):
        densifier, params, optimizers = densifying()
        torch.manual_seed(len(made))
        before = torch.get_rng_state()
        densifier.refine(params, optimizers, step, Densification(0.5, 0.001), 25)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(params["means"].detach())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_faint_and_long_gaussians_are_pruned() -> None:
    densifier, params, optimizers = densifying()
    with torch.no_grad():
        params["opacities"][3] = -9.0
        params["scales"][5, 1] = 2.0
    densifier._too_big = 5.0
    densifier.refine(params, optimizers, 10, Densification(0.5, 0.005, grow=False), 25)
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


# --- cost, plan and budget -----------------------------------------------------------------------------

SIZES = (120_000.0, 30_000.0, 7500.0)
"""Pixels of a photo halved 0, 1 and 2 times."""
MACHINES = {
    "as expected": PRIOR,
    "slow": Coefficients(5 * PRIOR.step, 3 * PRIOR.pixel, 3 * PRIOR.gaussian),
    "many cores": Coefficients(PRIOR.step, PRIOR.pixel / 4, PRIOR.gaussian / 4),
    "slow memory": Coefficients(PRIOR.step, PRIOR.pixel, 2.5 * PRIOR.gaussian),
}


class FakeClock:
    """A clock that stands still but for what is added to `now`, and for `by` a look."""

    def __init__(self, by: float = 0.0) -> None:
        self.now, self.by = 1000.0, by

    def __call__(self) -> float:
        self.now += self.by
        return self.now


def noisy(seconds: float, draw: np.random.Generator) -> float:
    """Return the seconds a step takes when it should take `seconds`: one in 300 hangs."""
    return seconds * draw.lognormal(0, 0.1) * (10 if draw.random() < 1 / 300 else 1)


def simulate(
    settings: TrainSettings, machine: Coefficients, gaussians: int = 5000
) -> tuple[Plan, float, dict[int, float]]:
    """Play a training on `machine`; return its plan, its seconds, and at each tenth the time left over the true one."""
    draw, clock = np.random.default_rng(0), FakeClock()
    plan = Plan(settings, SIZES, gaussians, begun=clock(), clock=clock, quiet=True)
    for count in (gaussians, 8 * gaussians):
        clock.now += (seconds := noisy(machine.seconds(SIZES[0], count), draw))
        plan.rehearsed(SIZES[0], count, seconds)
    plan.start(0)
    left, said = TimeLeft(settings.steps, 0, plan.effort, clock), {}
    for step in range(settings.steps):
        clock.now += noisy(machine.seconds(SIZES[schedule.level(settings, step)], plan.gaussians), draw)
        clock.now += 20 if step == 0 else 0  # compiling
        if schedule.refines(settings, step):
            limit = plan.limit(step)
            plan.refined(step, limit, max(plan.gaussians, min(limit, int(1.9 * plan.gaussians))))
        plan.tick(step)
        left.move(1)
        if 10 * (step + 1) % settings.steps == 0:
            said[10 * (step + 1) // settings.steps] = (clock.now, left.seconds())
    return plan, plan.seconds, {k: s / (clock.now - now) for k, (now, s) in said.items() if k < 10}


def test_costs_are_recovered_from_noisy_steps_some_of_which_hang() -> None:
    draw = np.random.default_rng(3)
    true = Coefficients(step=6e-3, pixel=1.5e-7, gaussian=1.4e-6)
    costs = StepCosts(Coefficients(2e-3, 4e-7, 5e-7))
    for step in range(2400):
        pixels, gaussians = SIZES[step // 100 % 3], 5000 + 5000 * (step // 100)
        seconds = true.seconds(pixels, gaussians) * draw.lognormal(0, 0.15) * (20 if draw.random() < 0.01 else 1)
        assert costs.add(pixels, gaussians, seconds) <= seconds
    costs.fit()
    for pixels, gaussians in ((SIZES[0], 10_000), (SIZES[0], 300_000), (SIZES[2], 100_000)):
        expected = true.seconds(pixels, gaussians)
        assert costs.coefficients.seconds(pixels, gaussians) == pytest.approx(expected, rel=0.1)
    assert costs.coefficients.pixel == pytest.approx(true.pixel, rel=0.15)
    assert costs.coefficients.gaussian == pytest.approx(true.gaussian, rel=0.15)


def test_costs_are_never_negative_and_survive_a_checkpoint() -> None:
    costs = StepCosts()
    costs.fit()
    assert costs.coefficients == prior(thread_count())
    for step in range(100):
        costs.add(SIZES[0], 10_000 * (1 + step // 20), 0.1 - 0.015 * (step // 20))
    costs.fit()
    assert costs.coefficients.gaussian >= 0 and costs.coefficients.step >= 0 and costs.coefficients.pixel >= 0
    again = StepCosts()
    again.restore(costs.rows())
    expected = costs.coefficients.seconds(SIZES[0], 20_000)
    assert again.coefficients.seconds(SIZES[0], 20_000) == pytest.approx(expected)
    np.testing.assert_allclose(again.rows(), costs.rows())


def test_one_pause_hardly_changes_what_steps_cost() -> None:
    costs = StepCosts()
    for step in range(200):
        costs.add(SIZES[0], 10_000, 600.0 if step == 50 else 0.05)
    costs.fit()
    assert costs.coefficients.seconds(SIZES[0], 10_000) == pytest.approx(0.05, rel=0.05)


def test_more_threads_make_all_but_the_fixed_part_quicker() -> None:
    one, eight = prior(1), prior(8)
    assert one.step == eight.step and one.pixel == pytest.approx(8 * eight.pixel)
    assert one.gaussian == pytest.approx(8 * eight.gaussian)


@pytest.mark.parametrize("machine", list(MACHINES))
@pytest.mark.parametrize("budgeted", [False, True])
def test_the_time_left_is_right_within_a_fifth_after_a_tenth(machine: str, budgeted: bool) -> None:
    budget = {"as expected": 200.0, "slow": 600.0, "many cores": 60.0, "slow memory": 300.0}[machine]
    settings = TrainSettings(steps=1800, max_gaussians=60_000, budget=budget if budgeted else 0.0, coarse=0.3)
    plan, _, ratios = simulate(settings, MACHINES[machine])
    assert 60_000 < plan.cap < 480_000 if budgeted else plan.cap == 60_000
    assert set(ratios) == set(range(1, 10))
    assert all(0.8 < ratio < 1.2 for ratio in ratios.values()), ratios


def test_a_slow_machine_gets_fewer_gaussians_within_the_same_budget() -> None:
    settings = TrainSettings(steps=1800, max_gaussians=60_000, budget=150.0)
    caps = {}
    for name, machine in MACHINES.items():
        plan, seconds, _ = simulate(settings, machine)
        caps[name] = plan.cap
        if FEWEST < plan.cap < 8 * 60_000:
            assert 0.9 * settings.budget < seconds < 1.03 * settings.budget, name
    assert caps["slow"] == FEWEST < caps["slow memory"] < caps["as expected"] < caps["many cores"]
    assert caps["as expected"] > 60_000  # more than without a budget


def test_a_budget_takes_nothing_away_and_has_a_ceiling() -> None:
    settings = TrainSettings(steps=600, max_gaussians=20_000, budget=1.0)
    plan, seconds, _ = simulate(settings, MACHINES["slow"], gaussians=12_000)
    assert seconds > settings.budget and plan.gaussians == plan.cap == 12_000
    assert {r.gaussians for r in plan.refinements} == {12_000}
    plan, seconds, _ = simulate(replace(settings, budget=1e6), MACHINES["slow"])
    assert plan.cap == 160_000 and max(r.limit for r in plan.refinements) > 20_000
    plan, _, _ = simulate(replace(settings, budget=1e6, max_gaussians=900_000), MACHINES["slow"])
    assert plan.cap == 1_000_000
    plan, _, _ = simulate(replace(settings, budget=0.0), MACHINES["slow"])
    assert plan.cap == 20_000 and [r.limit for r in plan.refinements] == [
        schedule.gaussian_limit(settings, r.step, 20_000) for r in plan.refinements
    ]


def test_the_limit_opens_evenly_and_a_refinement_ahead() -> None:
    settings = TrainSettings(steps=100, refine_every=10, refine_stop=0.5)
    assert [schedule.gaussian_limit(settings, step, 1000) for step in (10, 20, 45, 50)] == [300, 500, 1000, 1000]


def test_a_budget_that_is_too_short_is_said_once(capsys) -> None:
    clock = FakeClock()
    settings = TrainSettings(steps=600, budget=30.0)
    plan = Plan(settings, SIZES, 5000, clock=clock)
    for step in range(300):
        clock.now += 1.0
        if schedule.refines(settings, step):
            plan.refined(step, plan.limit(step), 5000)
        plan.tick(step)
    said = capsys.readouterr().out
    assert said.count("note:") == 1
    assert "the budget of 0:30 is too short for 600 steps with 5,000 Gaussians: training will take about" in said
    assert plan.cap == FEWEST


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


def test_what_is_see_through_stays_empty(tiny) -> None:
    """Photos of a thing that was cut out: what was around it is no wall of black Gaussians."""
    scene, load = tiny

    def cut_out(view: View) -> np.ndarray:
        rgb = load(view)
        y, x = np.indices(rgb.shape[:2])
        alpha = np.where(np.hypot(y - rgb.shape[0] / 2, x - rgb.shape[1] / 2) < rgb.shape[0] / 4, 255, 0)
        return np.dstack([rgb * (alpha[..., None] > 0), alpha]).astype(np.uint8)

    def covered(load: Callable[[View], np.ndarray]) -> float:
        settings = replace(TINY, steps=120, background="random", refine_stop=0)
        splats, _ = train(scene, load, CpuRasterizer(), settings, test_every=3, quiet=True)
        shares = []
        for i in scene.split(3)[0]:
            view, ones = scene.views[i], torch.ones(len(splats), 1)
            alphas = CpuRasterizer().render(splats, ones, [view.camera]).alphas[0]
            shares.append(float(alphas[torch.from_numpy(cut_out(view)[..., 3] == 0)].mean()))
        return float(np.mean(shares))

    assert covered(cut_out) < 0.5 * covered(lambda view: cut_out(view)[..., :3])
    photo = photos.read_photo(scene.views[0], cut_out)
    grey = torch.full((3,), 0.4)
    for one in photo.pyramid(1):
        pixels = one.pixels.float() / 255
        assert torch.allclose(one.float(grey), pixels[..., :3] + (1 - pixels[..., 3:]) * grey)
        assert torch.allclose(one.float(), pixels[..., :3])


def test_how_often_checkpoints_are_written_changes_no_bit(tiny, tmp_path: Path) -> None:
    settings = replace(TINY, max_length=0.02, log_scales_lr=0.1)
    found = [
        run(tiny, replace(settings, checkpoint_every=every), checkpoint_dir=tmp_path / str(every))[0]
        for every in (0, 7, 20)
    ]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_the_cap_of_a_training_that_goes_on_is_not_raised(tiny, tmp_path: Path) -> None:
    settings = replace(TINY, checkpoint_every=15, max_gaussians=150)
    with pytest.raises(Killed):
        run(tiny, settings, capture=KillAt(40), checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match=r"max-gaussians 150, .* but not raised; .* or delete"):
        run(tiny, replace(settings, max_gaussians=200), capture=KillAt(None), checkpoint_dir=tmp_path)
    splats, _ = run(tiny, replace(settings, max_gaussians=120), capture=KillAt(None), checkpoint_dir=tmp_path)
    assert len(splats) <= 120


def test_a_resumed_training_counts_all_seconds_and_keeps_what_was_decided(tiny, tmp_path: Path) -> None:
    settings = replace(TINY, steps=60, checkpoint_every=15, budget=40.0, grow_grad2d=1e-6)
    with pytest.raises(Killed):
        run(tiny, settings, capture=KillAt(40), checkpoint_dir=tmp_path, clock=FakeClock(by=0.1))
    (tmp_path / "train_0000015.safetensors").unlink()
    kept = read_checkpoint(tmp_path, tiny, settings)
    assert [row[0] for row in kept.tensors["plan.refinements"].tolist()] == [10, 20]
    clock = FakeClock(by=0.1)
    _, stats = run(tiny, settings, capture=KillAt(None), checkpoint_dir=tmp_path, clock=clock)
    assert stats.resumed_from == 30
    assert stats.seconds == pytest.approx(kept.numbers["seconds"] + clock.now - FakeClock().now, abs=0.25)
    last = read_checkpoint(tmp_path, tiny, settings)
    decided, before = last.tensors["plan.refinements"], kept.tensors["plan.refinements"]
    assert torch.equal(decided[: len(before)], before) and [row[0] for row in decided.tolist()] == [10, 20, 30, 40]
    assert last.step == 45 and last.numbers["seconds"] > kept.numbers["seconds"]


def read_checkpoint(folder: Path, tiny, settings: TrainSettings):
    scene, load = tiny
    views, _ = scene.split(3)
    found = load_checkpoint(folder, identify(settings, scene, views, [load(scene.views[i]) for i in views]))
    assert found is not None
    return found


def test_a_training_within_a_budget_has_as_many_gaussians_as_its_clock_allows(tiny) -> None:
    settings = replace(TINY, steps=30, refine_every=5, max_gaussians=200, budget=10.0, grow_grad2d=1e-9)
    counts = []
    for seconds in (0.5, 0.001):
        splats, stats = run(tiny, settings, clock=FakeClock(by=seconds))
        assert len(splats) == stats.gaussians <= stats.max_gaussians
        counts.append(len(splats))
    assert 60 < counts[0] <= 200 < counts[1] <= 1600
    free, stats = run(tiny, replace(settings, budget=0.0), clock=FakeClock(by=0.5))
    assert stats.max_gaussians == 200
    assert_same(free, run(tiny, replace(settings, budget=0.0))[0])  # without a budget no clock matters


def test_photos_are_halved_by_area_but_not_too_far(monkeypatch) -> None:
    assert photos.SHORTEST == 160
    monkeypatch.setattr(photos, "SHORTEST", 64)
    scene, load = make_scene(3, 256)
    sizes, seen = [], []

    class Noting(IdentityCapture):
        def cameras(self, view: int, camera: Camera) -> list[Camera]:
            sizes.append((camera.width, camera.height, round(float(camera.K[0, 0]), 3)))
            return [camera]

        def extra_loss(self, view: int, renders: Tensor, predicted: Tensor, photo: Tensor) -> None:
            seen.append((view, photo))

    settings = replace(TINY, steps=8, coarse=1.0, coarse_levels=4)
    train(scene, load, CpuRasterizer(), settings, test_every=0, quiet=True, capture=Noting())
    assert sizes == [(64, 48, 80.0)] * 6 + [(128, 96, 160.0)] * 2  # 4, 3 and 2 halvings, then 1
    view, small = seen[0]
    photo = torch.from_numpy(load(scene.views[view])) / 255.0
    blocks = photo.reshape(48, 4, 64, 4, 3).mean((1, 3))
    assert float((small - blocks).abs().max()) < 2 / 255


def test_rehearsals_leave_the_training_as_it_is(tiny, monkeypatch, capsys) -> None:
    settings = replace(TINY, steps=30)
    plain, _ = run(tiny, settings)
    monkeypatch.setattr(trainer, "REHEARSED", 1)
    shown, _ = train(*tiny, CpuRasterizer(), settings, test_every=3)
    assert_same(plain, shown)
    assert "train 100 % step 30/30" in capsys.readouterr().out


def test_checkpoints_of_something_else_are_refused(tiny, tmp_path: Path) -> None:
    settings = replace(TINY, steps=4, checkpoint_every=2)
    run(tiny, settings, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="other settings"):
        run(tiny, replace(settings, seed=5), checkpoint_dir=tmp_path)
    scene, load = tiny
    with pytest.raises(InputError, match="another scene"):
        run((replace(scene, points=scene.points + 1), load), settings, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="another scene"):
        run((scene, lambda view: 255 - load(view)), settings, checkpoint_dir=tmp_path)
    run(tiny, replace(settings, checkpoint_every=3), checkpoint_dir=tmp_path)  # how often does not matter
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(InputError, match="not a checkpoint"):
        run(tiny, settings, checkpoint_dir=tmp_path)


def resume_changed(tiny, folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Train, change the tensors and facts of the newest checkpoint, and train again."""
    settings = replace(TINY, steps=4, checkpoint_every=2)
    run(tiny, settings, checkpoint_dir=folder)
    newest = max(folder.iterdir())
    with safe_open(newest, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["cgc"])
    change(tensors, facts)
    save_file(tensors, newest, metadata={"cgc": json.dumps(facts)})
    run(tiny, settings, checkpoint_dir=folder)


@pytest.mark.parametrize("lost", ["means.0.value", "plan.costs", "loss", "step"])
def test_checkpoints_that_lack_something_are_said(tiny, tmp_path: Path, lost: str) -> None:
    def lose(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        for there in (tensors, facts, facts["numbers"]):
            there.pop(lost, None)

    with pytest.raises(InputError, match=r"is broken|does not say of which step"):
        resume_changed(tiny, tmp_path, lose)


@pytest.mark.parametrize("name", ["quats.0.value", "sh_rest.0.exp_avg", "means.0.step", "opacities.0.exp_avg_sq"])
def test_checkpoints_whose_tensors_do_not_fit_are_said(tiny, tmp_path: Path, name: str) -> None:
    def spoil(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        tensors[name] = torch.zeros(1, *tensors[name].shape[1:])

    with pytest.raises(InputError, match=rf"is broken \(.*its {name} is \[1.* was expected"):
        resume_changed(tiny, tmp_path, spoil)


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

    splats, _ = run((scene, rubbish), replace(TINY, steps=300), capture=RightHalf())
    camera = scene.views[1].camera
    picture = CpuRasterizer().render(splats, splats.colors(camera.position), [camera]).values[0]
    truth = torch.from_numpy(load(scene.views[1])) / 255.0
    assert psnr(picture[:, 16:], truth[:, 16:]) > 18 and float(picture[:, :16].mean()) < 0.6


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


def test_gaussians_are_cut_to_a_share_of_their_distance_to_the_nearest_camera() -> None:
    means, scales = torch.randn(50, 3), 3 * torch.randn(50, 3)
    eyes = torch.randn(7, 3)
    expected = scales.clone()
    for i, mean in enumerate(means):
        limit = math.log(0.4 * min(float((mean - eye).norm()) for eye in eyes))
        expected[i] = expected[i].clamp(max=limit)
    cut, part = scales.clone(), scales[10:20].clone()
    shorten(means, cut, eyes, 0.4)
    torch.testing.assert_close(cut, expected)
    assert 0 < int((cut < scales).sum()) < cut.numel()
    shorten(means[10:20], part, eyes, 0.4)
    assert torch.equal(part, cut[10:20])  # any share of the Gaussians gives the same bits
    shorten(eyes[:1].clone(), at_a_camera := torch.zeros(1, 3), eyes, 0.4)
    assert torch.isfinite(at_a_camera).all()


def test_no_gaussian_of_a_training_reaches_around_cameras(tiny) -> None:
    scene, _ = tiny
    eyes = torch.stack([scene.views[i].camera.position for i in scene.split(3)[0]])

    def longest(limit: float) -> float:
        splats, _ = run(tiny, replace(TINY, max_length=limit, log_scales_lr=0.3))
        return float((splats.scales.amax(1) / torch.cdist(splats.means, eyes).amin(1)).max())

    assert longest(0.0) > 0.06 and longest(0.05) <= 0.05 * (1 + 1e-5)


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


# --- companions: what Gaussians carry beside colour ----------------------------------------------------


class Places(NoCompanion):
    """Carries a learned feature, which is to show 1 everywhere, and a fixed number: where the Gaussian began."""

    def __init__(self, every: int = 1, weight: float = 1.0) -> None:
        self.every, self.weight = every, weight
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []

    def identity(self) -> str:
        return f"every {self.every}"

    def start(self, splats: Splats) -> dict[str, Tensor]:
        return {"feature": torch.zeros(len(splats), 2), "origin": torch.arange(len(splats))}

    def rates(self, step: int) -> dict[str, float]:
        return {"feature": 0.05 * 0.99**step}

    def values(self, carried: Carried, step: int) -> Tensor | None:
        return carried["feature"] if (step + 1) % self.every == 0 else None

    def image_loss(self, view: int, camera: Camera, values: Tensor, step: int) -> Tensor | None:
        self.seen.append((step, view, tuple(values.shape)))
        assert values.shape[:2] == (camera.height, camera.width)
        return self.weight * (values - 1).square().mean()


def test_a_companion_that_changes_nothing_leaves_the_splats_as_they_are(tiny) -> None:
    settings = replace(TINY, background="random", grow_grad2d=1e-6)
    plain, _ = run(tiny, settings)
    beside, stats = run(tiny, settings, companion=Places(weight=0.0))
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        torch.testing.assert_close(getattr(plain, name), getattr(beside, name), rtol=1e-4, atol=1e-4)
    assert stats.carried["feature"].shape == (len(beside), 2) and not stats.carried["feature"].any()


def test_what_gaussians_carry_is_copied_and_dropped_with_them(tiny) -> None:
    class Fixed(Places):
        def rates(self, step: int) -> dict[str, float]:
            return {}

    settings = replace(TINY, grow_grad2d=1e-6, prune_opacity=0.02)
    splats, stats = run(tiny, settings, companion=Fixed())
    origin = stats.carried["origin"]
    assert len(splats) > 60 and origin.shape == (len(splats),) and origin.dtype == torch.int64
    assert origin.min() >= 0 and origin.max() < 60 and len(origin.unique()) < len(origin)
    first = first_splats(tiny[0], settings).means
    moved = (splats.means - first[origin]).norm(dim=-1)
    strangers = (splats.means - first[origin.flip(0)]).norm(dim=-1)
    assert moved.median() < 0.5 * strangers.median()  # a copy lies near where its Gaussian began


def test_a_companion_learns_when_it_is_asked_and_its_channels_are_rendered_then_only(tiny) -> None:
    rendered = []

    class Noting(CpuRasterizer):
        def render(self, splats, values, cameras, **options) -> Render:
            rendered.append(values.shape[-1])
            return super().render(splats, values, cameras, **options)

    settings = replace(TINY, steps=40, background="white")
    companion = Places(every=4)
    _, stats = train(*tiny, Noting(), settings, test_every=3, quiet=True, companion=companion)
    assert rendered == [3, 3, 3, 5] * 10 and [s for s, _, _ in companion.seen] == list(range(3, 40, 4))
    assert {view for _, view, _ in companion.seen} <= {1, 2, 4, 5, 7, 8}
    assert float(stats.carried["feature"].mean()) > 0.3


def test_a_step_without_its_channels_is_one_with_the_gradient_zero(tiny) -> None:
    class Always(Places):
        def values(self, carried: Carried, step: int) -> Tensor:
            return carried["feature"]

        def image_loss(self, view: int, camera: Camera, values: Tensor, step: int) -> Tensor | None:
            return super().image_loss(view, camera, values, step) if (step + 1) % self.every == 0 else None

    settings = replace(TINY, steps=12, refine_stop=0.0)
    sparing, wasteful = (run(tiny, settings, companion=kind(every=4))[1].carried for kind in (Places, Always))
    torch.testing.assert_close(sparing["feature"], wasteful["feature"], rtol=1e-4, atol=1e-5)
    assert sparing["feature"].any()


def test_a_companions_losses_reach_the_geometry_and_the_densification(tiny) -> None:
    class Pull(NoCompanion):
        def splat_loss(self, splats: Splats, carried: Carried, step: int) -> Tensor:
            return 100 * splats.means.square().mean()

    settings = replace(TINY, steps=30, grow_grad2d=1.0)
    plain, pulled = run(tiny, settings)[0], run(tiny, settings, companion=Pull())[0]
    assert float(pulled.means.norm(dim=-1).mean()) < 0.99 * float(plain.means.norm(dim=-1).mean())
    grown = [len(run(tiny, replace(settings, grow_grad2d=3e-2), companion=Places(weight=w))[0]) for w in (0.0, 1e3)]
    assert grown[0] < grown[1]


class DyingPlaces(Places):
    """Dies at step 40."""

    def values(self, carried: Carried, step: int) -> Tensor | None:
        if step == 40:
            raise Killed
        return super().values(carried, step)


def test_a_training_with_a_companion_resumes_to_the_same_bits(tiny, tmp_path: Path) -> None:
    settings = replace(TINY, checkpoint_every=15, background="random", coarse=0.4, grow_grad2d=1e-6)
    start = first_splats(tiny[0], settings).select(torch.arange(5, 60))
    whole, stats = run(tiny, settings, companion=Places(every=4), start=start)
    with pytest.raises(Killed):
        run(tiny, settings, companion=DyingPlaces(every=4), start=start, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="another kind of features, or other masks"):
        run(tiny, settings, companion=Places(every=5), start=start, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match="another scene"):
        run(tiny, settings, companion=Places(every=4), checkpoint_dir=tmp_path)
    rest, resumed = run(tiny, settings, companion=Places(every=4), start=start, checkpoint_dir=tmp_path)
    assert resumed.resumed_from == 30
    assert_same(whole, rest)
    assert stats.carried.keys() == resumed.carried.keys() == {"feature", "origin"}
    for name, value in stats.carried.items():
        assert torch.equal(value, resumed.carried[name]), name


def test_rehearsals_leave_a_companion_as_it_is(tiny, monkeypatch) -> None:
    settings = replace(TINY, steps=30)
    plain = run(tiny, settings, companion=Places())[1].carried
    monkeypatch.setattr(trainer, "REHEARSED", 1)
    _, shown = train(*tiny, CpuRasterizer(), settings, test_every=3, companion=Places())
    assert torch.equal(plain["feature"], shown.carried["feature"])


def test_training_starts_from_given_splats(tiny) -> None:
    given = make_splats(60)
    given = replace(given, sh=torch.cat([given.sh, torch.zeros(60, 3, 3)], 1))  # degree 1
    still = replace(TINY, steps=3, means_lr=0, quats_lr=0, log_scales_lr=0, logit_opacities_lr=0, sh_dc_lr=0,
                    sh_rest_lr=0, sh_degree=3, sh_ramp=0, background="black")  # fmt: skip
    kept, stats = run(tiny, still, start=given)
    assert_same(kept, replace(given, quats=functional.normalize(given.quats, dim=-1)))
    assert stats.psnr_train > 20  # they are nearly what was photographed
    moved, _ = run(tiny, replace(TINY, steps=20), start=given)
    assert not torch.equal(moved.means, given.means) and moved.sh.shape[1] == 4


def test_on_a_gpu_the_default_has_the_schedules_of_3dgs_as_published() -> None:
    standard = preset_of("default", gpu=True).train
    assert standard == TRAIN_PRESETS["standard"] != preset_of("default").train == TrainSettings()
    assert preset_of("fast", gpu=True).train == preset_of("fast").train and preset_of("fast").train.steps == 7000
    degrees = [schedule.sh_degree(standard, step) for step in (999, 1000, 2000, 3000, 29_999)]
    assert degrees == [0, 1, 2, 3, 3] and schedule.level(standard, 0) == 0
    refined = [step for step in range(30_000) if schedule.refines(standard, step)]
    assert (refined[0], refined[-1], len(refined)) == (500, 14_900, 145)
    assert [s for s in range(30_000) if schedule.resets(standard, s)] == [3000, 6000, 9000, 12_000]
    names = ("means_lr", "log_scales_lr", "quats_lr", "logit_opacities_lr", "sh_dc_lr", "sh_rest_lr")
    assert [getattr(standard, name) for name in names] == [1.6e-4, 5e-3, 1e-3, 5e-2, 2.5e-3, 2.5e-3 / 20]
    assert (standard.means_lr_final, standard.lr_final, standard.grow_grad2d, standard.prune_opacity) == (
        0.01,
        1,
        4e-4,
        5e-3,
    )


def test_presets_are_settings_by_budget() -> None:
    steps = [TRAIN_PRESETS[name].steps for name in ("quick", "default", "full")]
    assert steps == sorted(steps) and TRAIN_PRESETS["default"] == TrainSettings()


# ---- what is far away


def under_the_sky(heights: float, at: tuple[float, ...] = (0, 0, 0)) -> tuple[Scene, dict[int, photos.Photo]]:
    """Twenty-four cameras that look level and outwards: blue over the horizon, and below it ground full of points.

    Points are so high at most, as a share of what the cameras see over the horizon; all of it is around `at`.
    """
    views, pictures = [], {}
    for i in range(24):
        way = np.array([math.cos(i * math.pi / 12), math.sin(i * math.pi / 12), 0])
        camera = Camera.look_at(at + 0.5 * way, at + 2 * way, width=80, height=60, focal=60)
        picture = np.zeros((60, 80, 3), np.uint8)
        picture[:30], picture[30:] = (90, 150, 240), (60, 120, 40)
        views.append(View(f"{i}.png", camera, Path(f"{i}.png")))
        pictures[i] = photos.Photo(torch.from_numpy(picture), camera)
    rng = np.random.default_rng(0)
    angle, z = rng.uniform(0, 2 * math.pi, 40_000), rng.uniform(-0.6, 0.5 * heights, 40_000)
    points = (at + np.stack([3 * np.cos(angle), 3 * np.sin(angle), 2.5 * z], 1)).astype(np.float32)
    return Scene(Path("."), tuple(views), points, np.full((len(points), 3), 99, np.uint8)), pictures


def test_a_backdrop_is_where_photos_show_what_has_no_points() -> None:
    scene, pictures = under_the_sky(0.0)
    made = backdrop(scene, pictures, 2000, sh_degree=1, opacity=0.5)
    reach = DISTANCE * scene.extent
    ways = made.means.double().numpy() / reach
    np.testing.assert_allclose(np.linalg.norm(ways, axis=1), 1, atol=1e-5)
    assert len(made) > 200 and ways[:, 2].min() > 0.02  # above the horizon and no lower
    assert ways[:, 2].max() < math.sin(math.atan2(30, 60)) + 1e-6  # and no higher than a photo shows
    color = made.sh[:, 0] * 0.28209479 + 0.5
    np.testing.assert_allclose(color.numpy(), np.tile([90 / 255, 150 / 255, 240 / 255], (len(made), 1)), atol=0.02)
    np.testing.assert_allclose(made.scales.numpy(), reach * math.sqrt(4 * math.pi / 2000), rtol=1e-5)
    for i, picture in pictures.items():  # near things without points: views see them in different colours
        pictures[i] = replace(picture, pixels=(picture.pixels.float() * (0.3 + i % 3 * 0.35)).to(torch.uint8))
    assert len(backdrop(scene, pictures, 2000, sh_degree=1, opacity=0.5)) < 0.1 * len(made)
    scene, pictures = under_the_sky(0.0)
    everywhere, _ = under_the_sky(1.0)
    assert len(backdrop(everywhere, pictures, 2000, sh_degree=1, opacity=0.5)) < 0.05 * len(made)
    elsewhere = replace(scene, points=scene.points * np.float32(1e-9) + np.float32([0, 0, 1e6]))
    assert len(backdrop(elsewhere, pictures, 2000, sh_degree=1, opacity=0.5)) == 0


def test_a_backdrop_is_around_the_cameras() -> None:
    at = (100.0, -50.0, 7.0)
    scene, pictures = under_the_sky(0.0, at)
    made = backdrop(scene, pictures, 2000, sh_degree=1, opacity=0.5)
    np.testing.assert_allclose(np.linalg.norm(made.means.numpy() - at, axis=1), DISTANCE * scene.extent, rtol=1e-4)


def test_what_views_see_in_different_colours_is_not_far_though_the_sky_beside_it_is() -> None:
    scene, pictures = under_the_sky(0.0)
    for i, picture in pictures.items():
        picture.pixels[15:30] = 80 * (i % 3)  # up to the sky over this, which is all blue
    made = backdrop(scene, pictures, 2000, sh_degree=1, opacity=0.5)
    heights = made.means[:, 2].numpy() / (DISTANCE * scene.extent)
    assert len(made) > 100 and heights.min() > 0.95 * math.sin(math.atan2(15, math.hypot(60, 40)))


def test_directions_are_spread_evenly() -> None:
    ways = spread(1500)
    np.testing.assert_allclose(np.linalg.norm(ways, axis=1), 1)
    nearest = np.sort(ways @ ways.T, axis=1)[:, -2]
    spacing = math.sqrt(4 * math.pi / 1500)
    assert 0.7 * spacing < np.arccos(nearest.max()) <= np.arccos(nearest.min()) < 1.3 * spacing


def test_trainings_begin_with_a_backdrop_within_their_limit() -> None:
    scene, pictures = under_the_sky(0.0)
    settings = replace(TINY, max_gaussians=4000, backdrop=400)
    near, both = (len(first_splats(scene, replace(settings, backdrop=k), pictures)) for k in (0, 400))
    assert near == both == 4000  # the far ones are among them
    few = replace(scene, points=scene.points[:100], point_colors=scene.point_colors[:100])
    assert len(first_splats(few, settings, pictures)) > 100 == len(first_splats(few, settings))
    assert PAPER.train.backdrop == 0 < TRAIN_PRESETS["fast"].backdrop == TRAIN_PRESETS["standard"].backdrop
