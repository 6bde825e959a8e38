"""What learning exposures and poses gives: `python tools/benchmark_photos.py runs/demo` (a run of a scene with truth).

The run's training views are spoilt: photos are exposed each by itself (a gain of exp(e N), and exp(e N / 3) a channel,
clipped like a camera's), cameras turned by N(0, p) pixels about each axis and shifted by as much at the distance of an
extent. Splats are trained on them with and without learning that. Prints, a row each: the ceiling (things mIoU and
boundary IoU over the test views of labels voted through W^T from the true maps of the training views, by the cameras
that training has found), PSNR over the test views, whose photos and cameras are as they were, and over the training
views as they were photographed; by how many pixels the cameras are off, before and after, and by what factor the
brightness.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from benchmark_sharpen import scored, true_maps, voted
from tyro.conf import Positional

from cgc.appearance.photo_capture import PhotoCapture
from cgc.appearance.trainer import train
from cgc.pipeline.train import shift
from cgc.pipeline.workspace import Workspace
from cgc.presets import TRAIN_PRESETS
from cgc.run_folder import open_run
from cgc.scene.corrections import Correction, corrected
from cgc.scene.images import load_image
from cgc.scene.types import Scene, View
from cgc.segmentation.sharpen import mean_psnr
from cgc.settings import TrainSettings

GREY = 0.4  # at which brightness is compared: hardly any photo clips it


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run of a scene with truth."""
    exposure: float = 0.15
    """e: deviation of the logarithm of the gain."""
    pixels: float = 0.5
    """p: deviation of the cameras, in pixels."""
    rows: tuple[Literal["clean", "exposure", "poses"], ...] = ("clean", "exposure", "poses")
    """What is spoilt."""
    learned: tuple[bool, ...] = (False, True)
    """Whether that is learned."""
    preset: str = "short"
    """The preset of training."""
    exposure_lr: float = TrainSettings().exposure_lr
    """Learning rate of exposures."""
    poses_lr: float = TrainSettings().poses_lr
    """Learning rate of poses."""
    capture_lr_final: float = TrainSettings().capture_lr_final
    """Their factor at the last step."""
    seed: int = 0
    """Seed of what is spoilt, and of training."""


def spoilt(work: Workspace, e: float, p: float, seed: int) -> tuple[Scene, Callable[[View], np.ndarray], np.ndarray]:
    """Return the scene and photos with spoilt training views, and the gains of these, [V, 3]."""
    scene, g = work.scene_as_read, torch.Generator().manual_seed(seed + 5)
    views, n = list(scene.views), len(work.train_views)
    noise = PhotoCapture({i: views[i].camera for i in work.train_views}, scene.extent, TrainSettings(poses=True))
    gains = torch.exp(e * torch.randn(n, 1, generator=g) + e / 3 * torch.randn(n, 3, generator=g))
    gains = (gains / gains.mean(0)).numpy()
    with torch.no_grad():
        noise.twists += p / float(views[0].camera.K[0, 0]) * torch.randn(n, 6, generator=g)
    for i, found in noise.found().items():  # without what moves the world: that is no error
        views[i] = replace(views[i], camera=replace(views[i].camera, viewmat=found.viewmat))
    by_name = {views[i].name: gain for i, gain in zip(work.train_views, gains)}

    def load(view: View) -> np.ndarray:
        photo = load_image(view)
        return (photo * by_name[view.name] + 0.5).clip(0, 255).astype(np.uint8) if view.name in by_name and e else photo

    return replace(scene, views=tuple(views)), load, gains if e else np.ones((n, 3))


def row(name: str, work: Workspace, maps: dict[int, np.ndarray], benchmark: Benchmark, e: float, p: float) -> None:
    """Train without and with learning what is spoilt; print a row each."""
    scene, load, gains = spoilt(work, e, p, benchmark.seed)
    true, views = work.scene_as_read, work.train_views
    for learns in benchmark.learned:
        settings = replace(
            TRAIN_PRESETS[benchmark.preset], seed=benchmark.seed, exposure=learns and not p, poses=learns and not e,
            exposure_lr=benchmark.exposure_lr, poses_lr=benchmark.poses_lr, capture_lr_final=benchmark.capture_lr_final,
        )  # fmt: skip
        capture, begun = PhotoCapture({i: scene.views[i].camera for i in views}, scene.extent, settings), time.time()
        every = work.run.settings.scene.test_every
        splats, _ = train(scene, load, work.rasterizer, settings, test_every=every, quiet=True, capture=capture)
        seconds, found = time.time() - begun, capture.found()
        work.scene = corrected(scene, {scene.views[i].name: c for i, c in found.items()})
        cells = [name, "yes" if learns else "no", f"{len(splats):,}"]
        cells += scored(work, splats, voted(work, splats, maps))
        for some in (work.test_views, views):
            quality = mean_psnr(splats, work.scene, some, load, work.rasterizer, work.background, found)
            cells.append(f"{quality:.2f}")
        for of in (scene, work.scene):
            off = [shift(splats.means[::50], true.views[i].camera, of.views[i].camera) for i in views]
            cells.append(f"{np.mean(off):.2f}")
        cells += [f"{error(found, gains, known):.3f}" for known in (False, True)]
        print("| " + " | ".join([*cells, f"{seconds:.0f}"]) + " |", flush=True)


def error(found: dict[int, Correction], gains: np.ndarray, known: bool) -> float:
    """Return by what factor brightness is off, geometric mean, with what was found (`known`) or without."""
    grey = torch.full((3,), GREY)
    bright = np.stack([c.photographed(grey).numpy() if known else grey.numpy() for c in found.values()]) / GREY
    return math.exp(float(np.abs(np.log(bright / gains)).mean()))


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    work = Workspace(open_run(benchmark.run), quiet=True)
    maps = true_maps(work)
    print(
        "| spoilt | learned | Gaussians | ceiling mIoU | bIoU | test PSNR | train PSNR | cameras off, px | after "
        "| brightness off | after | s |"
    )
    print("|" + "---|" * 12)
    kinds = {"clean": (0.0, 0.0), "exposure": (benchmark.exposure, 0.0), "poses": (0.0, benchmark.pixels)}
    for name in benchmark.rows:
        row(name, work, maps, benchmark, *kinds[name])


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
