"""Train a scene by several settings and compare pictures and time: `python tools/benchmark_training.py data/demo`.

    python tools/benchmark_training.py data/demo --ways split default mcmc:0.25 --max-side 200
    python tools/benchmark_training.py data/demo --device cuda --preset standard
    torchrun --nproc-per-node=2 tools/benchmark_training.py data/demo --views-per-step 2

A way is a densification strategy: `split`, `default`, or `mcmc`, with the share of Gaussians it adds after a colon and
how often after another. PSNR is that of the test views; seconds are by the clock and, on a CPU, of the processor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from cgc import parallel
from cgc.appearance.losses import psnr
from cgc.appearance.trainer import train
from cgc.device import rasterizer_for
from cgc.errors import InputError
from cgc.presets import preset_of
from cgc.rasterize.base import Rasterizer
from cgc.scene.images import load_image
from cgc.scene.read import read_scene
from cgc.scene.types import Scene
from cgc.segmentation.labels import render_rgb
from cgc.settings import SceneSettings, TrainSettings
from cgc.splats.types import Splats


@dataclass(frozen=True)
class Benchmark:
    """What is trained."""

    scene: tyro.conf.Positional[Path]
    """A scene's folder."""
    ways: tuple[str, ...] = ("split", "default", "mcmc")
    """Strategies, a row each: split, default, mcmc, mcmc:GROWTH or mcmc:GROWTH:EVERY."""
    preset: str = "short"
    """Everything else that says how to train."""
    steps: int = 0
    """Optimiser steps; 0: the preset's."""
    max_gaussians: int = 0
    """The limit; 0: the preset's."""
    views_per_step: int = 1
    """Photos a step."""
    max_side: int = 0
    """Shrink photos to this many pixels; 0: leave them."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""


def settings_of(way: str, benchmark: Benchmark) -> TrainSettings:
    """Return the settings of a row; InputError where the way has another form."""
    settings = preset_of(benchmark.preset).train
    given = {name: getattr(benchmark, name) for name in ("steps", "max_gaussians") if getattr(benchmark, name)}
    settings = replace(settings, **given, views_per_step=benchmark.views_per_step, checkpoint_every=0)
    name, *numbers = way.split(":")
    try:
        own: dict[str, Any] = dict(zip(("mcmc_growth", "refine_every"), (float(n) for n in numbers), strict=False))
    except ValueError:
        name = ""
        own = {}
    if name not in ("split", "default", "mcmc") or (name != "mcmc" and numbers) or len(numbers) > 2:
        raise InputError(f"a way is {way!r} where split, default, mcmc, mcmc:0.25 or mcmc:0.05:25 was expected")
    if "refine_every" in own:
        own["refine_every"] = int(own["refine_every"])
    return replace(settings, strategy=name, **own)


def mean_psnr(splats: Splats, scene: Scene, views: list[int], rasterizer: Rasterizer) -> float:
    """Return the mean PSNR of some views, dB."""
    values = []
    for i in views:
        camera = scene.views[i].camera.to(splats.means.device)
        shown = torch.from_numpy(render_rgb(splats, camera, rasterizer))
        values.append(psnr(shown, torch.tensor(load_image(scene.views[i])).float() / 255))
    return float(np.mean(values))


def main(benchmark: Benchmark) -> None:
    """Print the table."""
    parallel.join()
    rows = [settings_of(way, benchmark) for way in benchmark.ways]
    scene = read_scene(benchmark.scene, SceneSettings(max_side=benchmark.max_side))
    rasterizer = rasterizer_for(benchmark.device)
    if parallel.is_first():
        print(f"{benchmark.scene}, preset {benchmark.preset}, {parallel.count()} processes, {benchmark.device}\n")
        print("| way | Gaussians | test PSNR | train PSNR | s | CPU s |\n|---|---|---|---|---|---|")
    for way, settings in zip(benchmark.ways, rows):
        clock, cpu = time.perf_counter(), time.process_time()
        splats, stats = train(scene, load_image, rasterizer, settings, device=benchmark.device, quiet=True)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        if parallel.is_first():
            with parallel.alone():
                quality = mean_psnr(splats, scene, scene.split(8)[1], rasterizer)
            numbers = f"{len(splats):,} | {quality:.2f} | {stats.psnr_train:.2f} | {clock:.0f} | {cpu:.0f}"
            print(f"| {way} | {numbers} |", flush=True)
    parallel.leave()


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
