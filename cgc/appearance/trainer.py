"""3D Gaussian Splatting training, photos in, splats out; schedule.py says what happens at which step.

Source: Kerbl et al. 2023 (arXiv 2308.04079), section 5, with schedules for the few steps a CPU affords.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cgc.appearance import schedule
from cgc.appearance.capture import CaptureModel, Densification, IdentityCapture
from cgc.appearance.checkpoint import Checkpoint, Identity, identify, load_checkpoint, save_checkpoint
from cgc.appearance.companion import Companion, NoCompanion
from cgc.appearance.densify import Densifier, Optimizers, Params
from cgc.appearance.losses import photometric_loss, psnr
from cgc.appearance.plan import Plan
from cgc.errors import InputError
from cgc.progress import Clock, progress_bar
from cgc.rasterize.base import Rasterizer, Render
from cgc.rasterize.sh import sh_colors
from cgc.scene.types import Camera, Scene, View
from cgc.settings import TrainSettings
from cgc.splats.init import random_splats, splats_from_points
from cgc.splats.types import Splats

ADAM_EPS = 1e-15
CARRIED = "carried."  # before the names of what Gaussians carry for the companion
REHEARSALS, MANY = 5, 16  # steps, and times as many Gaussians
REHEARSED = 200  # steps: shorter trainings are over before it would pay
SHORTEST = 160  # pixels on the longer side: no photo is halved below it (a level at 100 pixels cost segments a point)
SHOWN_EVERY = 10  # steps between updates of the bar
SMOOTHING = 0.1  # weight of the newest of the shown values


@dataclass(frozen=True)
class TrainStats:
    """How a training went: `seconds` of all processes that worked on it, `psnr_train` smoothed over views.

    `max_gaussians` is the cap in force at the end, `resumed_from` the first step of this process; `carried` is what
    the Gaussians carry for the companion, [N, ...] a name.
    """

    steps: int
    seconds: float
    gaussians: int
    max_gaussians: int
    loss: float
    psnr_train: float
    resumed_from: int
    carried: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Photo:
    """A training photo at one size: `pixels` [H, W, 3] uint8 and the camera of that size."""

    pixels: np.ndarray
    camera: Camera

    def halved(self) -> _Photo:
        """Return the photo at half the size, pixels averaged by area."""
        width, height = max(self.camera.width // 2, 1), max(self.camera.height // 2, 1)
        small = Image.fromarray(self.pixels).resize((width, height), Image.Resampling.BOX)
        return _Photo(np.asarray(small), self.camera.resized(width, height))

    def pyramid(self, levels: int) -> list[_Photo]:
        """Return the photo, halved 0, 1, .. `levels` times, as far as its longer side stays long enough."""
        sizes: list[_Photo] = [self]
        while len(sizes) <= levels and max(sizes[-1].camera.width, sizes[-1].camera.height) >= 2 * SHORTEST:
            sizes.append(sizes[-1].halved())
        return sizes

    def float(self) -> Tensor:
        """Return the pixels as [H, W, 3] float32 in 0..1."""
        return torch.tensor(self.pixels).to(torch.float32).mul_(1.0 / 255.0)


def train(
    scene: Scene,
    load_image: Callable[[View], np.ndarray],
    rasterizer: Rasterizer,
    settings: TrainSettings,
    *,
    test_every: int = 8,
    capture: CaptureModel | None = None,
    companion: Companion | None = None,
    start: Splats | None = None,
    checkpoint_dir: Path | None = None,
    quiet: bool = False,
    title: str = "train",
    clock: Clock = time.perf_counter,
) -> tuple[Splats, TrainStats]:
    """Train splats on every view of `scene` but each `test_every`-th (0: on all).

    `load_image(view)` gives uint8 [H, W, 3] of the view's camera's size; it is asked for training views only.
    Training begins with `start`, or else with Gaussians on the points of the scene; `title` is what the bar says.
    With `checkpoint_dir` a killed training continues from its newest checkpoint, to the same result; not so with
    a budget, because the cap then follows from the seconds that steps take by `clock`.
    Raise InputError where nothing can be trained, and for a checkpoint that belongs to something else.
    """
    begun = clock()
    train_views, _ = scene.split(test_every)
    if not train_views:
        raise InputError(f"no view of {scene.root} is left to train on; give more photos, or a larger --test-every")
    levels = settings.coarse_levels if settings.coarse > 0 else 0
    photos = {i: _read_photo(scene.views[i], load_image).pyramid(levels) for i in train_views}
    capture, companion = capture or IdentityCapture(), companion or NoCompanion()
    splats = (start or first_splats(scene, settings)).detach()
    first = _First(splats, companion.start(splats), scene.extent)
    plan = Plan(settings, _mean_pixels(photos, levels), len(first.splats), begun=begun, clock=clock, quiet=quiet)
    run = _Run(first, photos, rasterizer, settings, capture, companion, plan)
    pixels = [photos[i][0].pixels for i in train_views]
    identity = identify(settings, scene, train_views, pixels, companion=companion.identity(), start=start)
    resumed_from = run.resume(checkpoint_dir, identity) if checkpoint_dir else 0
    if (settings.budget or not quiet) and not resumed_from and settings.steps >= REHEARSED:
        _rehearse(first, photos, rasterizer, settings, companion, plan, clock)
    plan.start(resumed_from)
    with progress_bar(title, settings.steps, start=resumed_from, quiet=quiet, effort=plan.effort, clock=clock) as bar:
        for step in range(resumed_from, settings.steps):
            run.step(step)
            done = step + 1
            if checkpoint_dir and _is_due(settings, done):
                save_checkpoint(checkpoint_dir, run.checkpoint(done), identity)
            plan.tick(step)
            bar.advance(1, **(run.shown() if done % SHOWN_EVERY == 0 else {}))
    splats, carried = run.splats(), {k: v.detach() for k, v in run.carried().items()}
    numbers = (settings.steps, plan.seconds, len(splats), plan.cap, run.loss, run.psnr, resumed_from)
    return splats, TrainStats(*numbers, carried)


def _is_due(settings: TrainSettings, done: int) -> bool:
    every = settings.checkpoint_every
    return every > 0 and done % every == 0 and done < settings.steps


def _read_photo(view: View, load_image: Callable[[View], np.ndarray]) -> _Photo:
    pixels, camera = load_image(view), view.camera
    if pixels.shape != (camera.height, camera.width, 3) or pixels.dtype != np.uint8:
        raise InputError(
            f"{view.image_path} was read as {pixels.dtype} {'x'.join(map(str, pixels.shape))} where its "
            f"camera has uint8 {camera.height}x{camera.width}x3; make the model again from these images"
        )
    return _Photo(pixels, camera)


def _at_level(pyramid: list[_Photo], level: int) -> _Photo:
    return pyramid[min(level, len(pyramid) - 1)]


def _mean_pixels(photos: dict[int, list[_Photo]], levels: int) -> list[float]:
    """Return the mean number of pixels of a photo halved 0, 1, .. `levels` times."""
    sizes = [[_at_level(p, level).pixels.size / 3 for p in photos.values()] for level in range(levels + 1)]
    return [float(np.mean(s)) for s in sizes]


def first_splats(scene: Scene, settings: TrainSettings) -> Splats:
    """Make the Gaussians to start from: on the model's points, or at random where it has none."""
    generator = torch.Generator().manual_seed(settings.seed)
    degree, opacity = settings.sh_degree, settings.init_opacity
    if len(scene.points):
        return splats_from_points(
            scene.points, scene.point_colors, sh_degree=degree, opacity=opacity, extent=scene.extent,
            generator=generator, max_points=settings.max_gaussians,
        )  # fmt: skip
    centre = torch.stack([v.camera.position for v in scene.views]).mean(0)
    count = min(settings.init_random, settings.max_gaussians)
    return random_splats(count, centre, scene.extent, sh_degree=degree, opacity=opacity, generator=generator)


def _parameters(splats: Splats) -> Params:
    """Split splats into leaf tensors under gsplat's names; the DC term apart, because it learns faster."""
    tensors = {
        "means": splats.means, "quats": splats.quats, "scales": splats.log_scales,
        "opacities": splats.logit_opacities, "sh_dc": splats.sh[:, 0], "sh_rest": splats.sh[:, 1:],
    }  # fmt: skip
    return {k: torch.nn.Parameter(v.detach().clone().contiguous()) for k, v in tensors.items() if v.numel()}


@dataclass(frozen=True)
class _First:
    """The Gaussians that a training starts with, what they carry for the companion, and the scene's extent."""

    splats: Splats
    carried: dict[str, Tensor]
    extent: float

    def repeated(self, times: int) -> _First:
        """Return every Gaussian so many times, smaller, so that they cover about as much of a picture."""
        index = torch.arange(len(self.splats)).repeat(times)
        many = self.splats.select(index)
        many = replace(many, log_scales=many.log_scales - 0.5 * math.log(times))
        return replace(self, splats=many, carried={k: v[index] for k, v in self.carried.items()})


def _rehearse(
    first: _First,
    photos: dict[int, list[_Photo]],
    rasterizer: Rasterizer,
    settings: TrainSettings,
    companion: Companion,
    plan: Plan,
    clock: Clock,
) -> None:
    """Tell the plan what steps on whole photos take, with the first Gaussians and with many more; learn nothing.

    Training itself shows that too late: it starts with small photos and few Gaussians.
    """
    whole = {i: p[:1] for i, p in photos.items()}
    for times in {1, max(1, min(settings.max_gaussians // len(first.splats), MANY))}:
        many = first.repeated(times)
        run = _Run(many, whole, rasterizer, settings, IdentityCapture(), companion, plan)
        for step in range(REHEARSALS):
            before = clock()
            run.learn(step)
            if step > 0:  # the first one compiles
                plan.rehearsed(_mean_pixels(whole, 0)[0], len(many.splats), clock() - before)


class _Run:
    """A training under way: parameters, optimisers and statistics, and the step that moves them."""

    def __init__(
        self,
        first: _First,
        photos: dict[int, list[_Photo]],
        rasterizer: Rasterizer,
        settings: TrainSettings,
        capture: CaptureModel,
        companion: Companion,
        plan: Plan,
    ) -> None:
        self.settings, self.capture, self.companion, self.plan = settings, capture, companion, plan
        self.loss = self.psnr = 0.0
        self._rasterizer = rasterizer
        self._train_views = sorted(photos)
        self._photos = photos
        self._anything_seen = False
        self.params: Params = _parameters(first.splats)
        self._degree = first.splats.sh_degree
        self._rates = {
            "means": settings.means_lr * first.extent, "quats": settings.quats_lr,
            "scales": settings.log_scales_lr, "opacities": settings.logit_opacities_lr,
            "sh_dc": settings.sh_dc_lr, "sh_rest": settings.sh_rest_lr,
        }  # fmt: skip
        self._optimizers: Optimizers = {
            name: torch.optim.Adam([p], lr=self._rates[name], eps=ADAM_EPS, fused=True)
            for name, p in self.params.items()
        }
        self._carry(first.carried)
        groups = capture.parameter_groups()
        self._capture_optimizer = torch.optim.Adam(groups, eps=ADAM_EPS) if groups else None
        self._densifier = Densifier(extent=first.extent, prune_scale=settings.prune_scale, seed=settings.seed)

    def _carry(self, carried: dict[str, Tensor]) -> None:
        """Make parameters of what is carried: the densifier treats them like the others."""
        rates, betas = self.companion.rates(0), self.companion.betas()
        for name, value in carried.items():
            learned = name in rates
            own = torch.nn.Parameter(value.detach().clone().contiguous(), requires_grad=learned)
            self.params[CARRIED + name] = own
            if learned:
                adam = torch.optim.Adam([own], lr=rates[name], betas=betas, eps=ADAM_EPS, fused=True)
                self._optimizers[CARRIED + name] = adam

    def carried(self) -> dict[str, Tensor]:
        """Return what the present Gaussians carry for the companion, [N, ...] a name."""
        return _under(self.params, CARRIED)

    def step(self, step: int) -> None:
        """Learn from a photo; then grow, prune or reset where it is time."""
        self.learn(step)
        self._densify(step)

    def learn(self, step: int) -> None:
        """Draw a photo, render it, and move every parameter."""
        view = schedule.view_at(self._train_views, self.settings.seed, step)
        photo = _at_level(self._photos[view], schedule.level(self.settings, step))
        target = photo.float()
        render = self._render(view, photo, step)
        colors, beside = _apart(render.values)
        predicted = self.capture.predict(view, colors)
        loss = self._loss(view, colors, predicted, target)
        for term in self._companion_terms(view, photo.camera, beside, step):
            loss = loss + term
        counted = schedule.counts_gradients(self.settings, step)
        if counted:
            render.means2d.retain_grad()
        loss.backward()
        self._check(step, float(loss.detach()), render)
        self._show(step, float(loss.detach()), predicted, target)
        if counted:
            self._densifier.count(self.params, render, photo.camera.width, photo.camera.height)
        self._descend(step)

    def _render(self, view: int, photo: _Photo, step: int) -> Render:
        cameras = self.capture.cameras(view, photo.camera)
        degree = min(schedule.sh_degree(self.settings, step), self._degree)
        rest = self.params["sh_rest"] if "sh_rest" in self.params else self.params["sh_dc"].new_zeros(0, 0, 3)
        position = [c.position.detach() for c in cameras]
        colors = [sh_colors(self.params["means"], self.params["sh_dc"], rest, p, degree) for p in position]
        background = schedule.background_at(self.settings, step)
        beside = self.companion.values(self.carried(), step)
        if beside is not None:
            colors = [torch.cat([c, beside], 1) for c in colors]  # [N, 3 + D]
            background = torch.cat([background, background.new_zeros(beside.shape[1])])
        values = colors[0] if len(colors) == 1 else torch.stack(colors)
        shown = None if self.settings.background == "black" else background
        return self._rasterizer.render(self._raw_splats(), values, cameras, backgrounds=shown)

    def _companion_terms(self, view: int, camera: Camera, beside: Tensor | None, step: int) -> list[Tensor]:
        """Return what the companion adds to the loss; several cameras of a photo share its time evenly."""
        terms = [self.companion.splat_loss(self._raw_splats(), self.carried(), step)]
        if beside is not None:
            mean = beside[0] if len(beside) == 1 else beside.mean(0)  # [H, W, D]
            terms.append(self.companion.image_loss(view, camera, mean, step))
        return [term for term in terms if term is not None]

    def _loss(self, view: int, colors: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
        valid = self.capture.valid_pixels(view, *target.shape[:2])
        compared = predicted if valid is None else torch.where(valid[..., None], predicted, target)
        loss = photometric_loss(compared, target, self.settings.ssim_weight)
        extra = self.capture.extra_loss(view, colors, predicted, target)
        return loss if extra is None else loss + extra

    def _check(self, step: int, loss: float, render: Render) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the loss became {loss} at step {step}; lower the learning rates, and check that the camera "
                "model and the points are finite"
            )
        self._anything_seen = self._anything_seen or bool((render.radii > 0).any())
        if not self._anything_seen and step + 1 >= min(len(self._train_views), self.settings.steps):
            raise InputError(
                f"no Gaussian is visible from any of the {len(self._train_views)} training views: the "
                "cameras look away from the points; make the model again, or check the poses"
            )

    def _show(self, step: int, loss: float, predicted: Tensor, target: Tensor) -> None:
        """Keep smoothed values for the bar."""
        if (step + 1) % SHOWN_EVERY and step > 0:
            return
        weight = SMOOTHING if step > 0 else 1.0
        self.loss += weight * (loss - self.loss)
        self.psnr += weight * (psnr(predicted, target) - self.psnr)

    def shown(self) -> dict[str, float | int]:
        """Return what the bar shows."""
        return {"loss": self.loss, "psnr": self.psnr, "gaussians": len(self.params["means"])}

    def _descend(self, step: int) -> None:
        """Take one step of Adam with this step's learning rates."""
        rates = self._rates_at(step)
        for name, optimizer in self._optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name]
            if name not in self._rates and self.params[name].grad is None:
                self.params[name].grad = torch.zeros_like(self.params[name])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._capture_optimizer:
            self._capture_optimizer.step()
            self._capture_optimizer.zero_grad(set_to_none=True)

    def _rates_at(self, step: int) -> dict[str, float]:
        """Return every parameter's learning rate at this step."""
        s = self.settings
        final = {name: s.means_lr_final if name == "means" else s.lr_final for name in self._rates}
        own = {name: schedule.decayed(rate, final[name], s, step) for name, rate in self._rates.items()}
        return own | {CARRIED + name: rate for name, rate in self.companion.rates(step).items()}

    def _densify(self, step: int) -> None:
        s = self.settings
        if schedule.refines(s, step):
            wanted = self.capture.densification(step, Densification(s.grow_grad2d, s.prune_opacity))
            limit = self.plan.limit(step)
            self._densifier.refine(self.params, self._optimizers, step, wanted, limit)
            if not len(self.params["means"]):
                raise InputError(f"every Gaussian had faded by step {step}; lower the setting prune_opacity")
            self.plan.refined(step, limit, len(self.params["means"]))
        if schedule.resets(s, step):
            self._densifier.reset_opacities(self.params, self._optimizers, s.prune_opacity)

    def _raw_splats(self) -> Splats:
        """Return the splats without their higher SH terms: all that a render with given colours needs."""
        p = self.params
        return Splats(p["means"], p["quats"], p["scales"], p["opacities"], p["sh_dc"][:, None])

    def splats(self) -> Splats:
        """Return the splats as they are now, cut from any graph, quaternions of unit length."""
        p = {k: v.detach().clone() for k, v in self.params.items()}
        sh = torch.cat([p["sh_dc"][:, None], p["sh_rest"]], 1) if "sh_rest" in p else p["sh_dc"][:, None]
        raw = Splats(p["means"], p["quats"], p["scales"], p["opacities"], sh)
        return replace(raw, quats=torch.nn.functional.normalize(raw.quats, dim=-1))

    # --- checkpoints ---

    def _all_optimizers(self) -> Optimizers:
        extra = {"capture": self._capture_optimizer} if self._capture_optimizer else {}
        return {**self._optimizers, **extra}

    def checkpoint(self, step: int) -> Checkpoint:
        """Return everything that `resume` needs to go on at `step`."""
        tensors = {f"strategy.{k}": v for k, v in self._densifier.tensors().items()}
        tensors |= {f"plan.{k}": v for k, v in self.plan.tensors().items()}
        for name, optimizer in self._all_optimizers().items():
            for index, value in enumerate(_leaves(optimizer)):
                tensors[f"{name}.{index}.value"] = value.detach()
                tensors |= {f"{name}.{index}.{k}": v for k, v in optimizer.state[value].items()}
        tensors |= {k: v for k, v in self.params.items() if k not in self._optimizers}
        numbers = {
            "loss": self.loss, "psnr": self.psnr, "anything_seen": float(self._anything_seen),
            "seconds": self.plan.seconds,
        }  # fmt: skip
        return Checkpoint(step, tensors, numbers)

    def resume(self, folder: Path, identity: Identity) -> int:
        """Take over the newest checkpoint of `folder`; return the step to go on at (0: there was none)."""
        found = load_checkpoint(folder, identity)
        if found is None:
            return 0
        self.loss, self.psnr = found.numbers["loss"], found.numbers["psnr"]
        self._anything_seen = bool(found.numbers["anything_seen"])
        self._densifier.statistics |= _under(found.tensors, "strategy.")
        self.plan.restore(_under(found.tensors, "plan."), found.numbers["seconds"])
        for name in self.params.keys() - self._optimizers.keys():
            self.params[name].data = found.tensors[name]
        for name, optimizer in self._all_optimizers().items():
            for index, value in enumerate(_leaves(optimizer)):
                state = _under(found.tensors, f"{name}.{index}.")
                value.data = state.pop("value")
                optimizer.state[value] = state
        return found.step


def _apart(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return colours [C, H, W, 3] and what was rendered beside them [C, H, W, D], None where nothing was."""
    return (values, None) if values.shape[-1] == 3 else (values[..., :3], values[..., 3:])


def _leaves(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
