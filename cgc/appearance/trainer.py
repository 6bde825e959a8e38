"""3D Gaussian Splatting training, photos in, splats out, on any device; schedule.py says what happens at which step.

Source: Kerbl et al. 2023 (arXiv 2308.04079), section 5, with schedules for the few steps a CPU affords.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgc import parallel
from cgc.appearance.backdrop import backdrop
from cgc.appearance.capture import CaptureModel, IdentityCapture
from cgc.appearance.checkpoint import Identity, identify, save_checkpoint
from cgc.appearance.companion import Companion, NoCompanion
from cgc.appearance.memory import want_of_memory
from cgc.appearance.photos import Photo, Photos, read_photo
from cgc.appearance.plan import Plan
from cgc.appearance.training import SHOWN_EVERY, First, Training
from cgc.device import card_of, is_full
from cgc.errors import InputError
from cgc.progress import Clock, progress_bar
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Scene, View
from cgc.settings import TrainSettings
from cgc.splats.init import random_splats, splats_from_points
from cgc.splats.types import Splats, joined

REHEARSALS, MANY = 5, 16  # steps, and times as many Gaussians
BACKDROP_SHARE = 8  # of the Gaussians at most: one in so many is far away at first
REHEARSED = 200  # steps: shorter trainings are over before it would pay


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


def train(
    scene: Scene,
    load_image: Callable[[View], np.ndarray],
    rasterizer: Rasterizer,
    settings: TrainSettings,
    *,
    device: torch.device | str = "cpu",
    test_every: int = 8,
    capture: CaptureModel | None = None,
    companion: Companion | None = None,
    start: Splats | None = None,
    checkpoint_dir: Path | None = None,
    quiet: bool = False,
    title: str = "train",
    clock: Clock = time.perf_counter,
) -> tuple[Splats, TrainStats]:
    """Train splats on every view of `scene` but each `test_every`-th (0: on all); return them on `device`.

    `load_image(view)` gives uint8 [H, W, 3] of the view's camera's size, or [H, W, 4] where some of it is see-through
    (colours times alpha, and alpha); it is asked for training views only.
    Training begins with `start`, or else with Gaussians on the points of the scene; `title` is what the bar says.
    With `checkpoint_dir` a killed training continues from its newest checkpoint, to the same result; not so with
    a budget, because the cap then follows from the seconds that steps take by `clock`.
    Several processes share it (see exchange.py): settings say how many photos a step has, so that the result is that
    of one process; all must call this, and the first one gets the splats, the others none.
    Raise InputError where nothing can be trained, for a checkpoint that belongs to something else, and where the
    device's memory does not suffice.
    """
    begun, device = clock(), torch.device(device)
    train_views, _ = scene.split(test_every)
    if not train_views:
        raise InputError(f"no view of {scene.root} is left to train on; give more photos, or a larger --test-every")
    levels = settings.coarse_levels if settings.coarse > 0 else 0
    pyramids = {i: read_photo(scene.views[i], load_image).pyramid(levels) for i in train_views}
    capture, companion, many = capture or IdentityCapture(), companion or NoCompanion(), parallel.here()[1] > 1
    if many and not isinstance(companion, NoCompanion):
        raise ValueError("what Gaussians carry beside colour is trained in one process; work in parallel.alone()")
    parallel.check_apart(card_of(device))
    pixels = [pyramids[i][0].pixels.numpy() for i in train_views]
    identity = identify(settings, scene, train_views, pixels, companion=companion.identity(), start=start)
    splats = (start or first_splats(scene, settings, {i: pyramids[i][-1] for i in train_views})).detach().to(device)
    photos = Photos(pyramids, device, settings.photos)
    del pyramids, pixels  # on a GPU, or page-locked for one, they would be there twice
    first = First(splats, companion.start(splats), scene.extent)
    plan = Plan(
        settings, photos.mean_pixels(levels), len(splats), begun=begun, clock=clock, quiet=quiet,
        ahead=1 if device.type == "cpu" else SHOWN_EVERY,
    )  # fmt: skip
    run = Training(first, photos, rasterizer, settings, capture, companion, plan)
    resumed_from = run.resume(checkpoint_dir, identity) if checkpoint_dir else 0
    rehearses = (settings.budget or not quiet) and not resumed_from and settings.steps >= REHEARSED
    if rehearses and not many:
        _rehearse(first, photos, rasterizer, settings, companion, plan, clock)
    plan.start(resumed_from)
    with progress_bar(title, settings.steps, start=resumed_from, quiet=quiet, effort=plan.effort, clock=clock) as bar:
        for step in range(resumed_from, settings.steps):
            try:
                run.step(step)
            except RuntimeError as error:
                if not is_full(error):
                    raise
                saved = checkpoint_dir is not None and not many and _rescue(checkpoint_dir, run, identity)
                raise want_of_memory(photos, run.gaussians, run.fitted, step, settings.steps, saved) from error
            done = step + 1
            if checkpoint_dir and _is_due(settings, done):
                _save(checkpoint_dir, run, done, identity)
            plan.tick(step)
            bar.advance(1, **(run.shown() if done % SHOWN_EVERY == 0 else {}))
    splats, carried = run.splats(), {k: v.detach() for k, v in run.carried().items()}
    numbers = (settings.steps, plan.seconds, run.gaussians, plan.cap, run.loss, run.psnr, resumed_from)
    return splats, TrainStats(*numbers, carried)


def _save(folder: Path, run: Training, step: int, identity: Identity) -> Path | None:
    """Write a checkpoint of what is to be step `step`; the first process has it, and all must come here."""
    checkpoint = run.checkpoint(step)
    return save_checkpoint(folder, checkpoint, identity) if checkpoint else None


def _rescue(folder: Path, run: Training, identity: Identity) -> bool:
    """Write a checkpoint of what a step that failed has left whole, if anything; say whether there is one."""
    if run.whole is None:
        return False
    run.forget()
    return _save(folder, run, run.whole, identity) is not None


def _is_due(settings: TrainSettings, done: int) -> bool:
    every = settings.checkpoint_every
    return every > 0 and done % every == 0 and done < settings.steps


def first_splats(scene: Scene, settings: TrainSettings, photos: Mapping[int, Photo] | None = None) -> Splats:
    """Make the Gaussians to start from: on the model's points, or at random where it has none.

    With photos of some views, by view, also far away where these show what has no points (see backdrop.py).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    degree, opacity = settings.sh_degree, settings.init_opacity
    if len(scene.points):
        directions = min(settings.backdrop, settings.max_gaussians // BACKDROP_SHARE) if photos else 0
        far = backdrop(scene, photos or {}, directions, sh_degree=degree, opacity=opacity) if directions else None
        near = splats_from_points(
            scene.points, scene.point_colors, sh_degree=degree, opacity=opacity, extent=scene.extent,
            generator=generator, max_points=settings.max_gaussians - (len(far) if far else 0),
        )  # fmt: skip
        return joined(near, far) if far else near
    centre = torch.stack([v.camera.position for v in scene.views]).mean(0)
    count = min(settings.init_random, settings.max_gaussians)
    return random_splats(count, centre, scene.extent, sh_degree=degree, opacity=opacity, generator=generator)


def _rehearse(
    first: First,
    photos: Photos,
    rasterizer: Rasterizer,
    settings: TrainSettings,
    companion: Companion,
    plan: Plan,
    clock: Clock,
) -> None:
    """Tell the plan what steps on whole photos take, with the first Gaussians and with many more; learn nothing.

    Training itself shows that too late: it starts with small photos and few Gaussians.
    """
    whole = replace(settings, coarse=0.0)
    for times in {1, max(1, min(settings.max_gaussians // len(first.splats), MANY))}:
        try:
            many = first.repeated(times)
            run = Training(many, photos, rasterizer, whole, IdentityCapture(), companion, plan)
            for step in range(REHEARSALS):
                before = clock()
                run.learn(step)
                if photos.device.type == "cuda":
                    torch.cuda.synchronize(photos.device)
                if step > 0:  # the first one compiles
                    plan.rehearsed(photos.mean_pixels(0)[0], len(many.splats), clock() - before)
        except RuntimeError as error:
            if is_full(error):  # training may never have so many
                return
            raise
