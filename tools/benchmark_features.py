"""Measure a step of feature learning against rasterising the features: `python tools/benchmark_features.py`.

The scene is generated: Gaussians on a wavy sheet, seeded, seen by a ring of cameras; the masks are the cells of a grid
on the sheet, rendered. A step learns from the sampled pixels of two views, everything included (products, both losses,
Adam); rasterising a step is a forward and a backward pass of as many channels for two views, without any loss or Adam.
Both run in turn in this process, on the same threads, so the ratio is what to read.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from cgc.features.frozen import Learner, nearest_neighbours
from cgc.features.samples import Batch, held, sample_batches
from cgc.kernels import thread_count
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels
from cgc.settings import LiftSettings
from cgc.splats.types import Splats


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    widths: tuple[int, ...] = (400, 800, 1600)
    """Image widths in pixels, with the first number of Gaussians; the height is three quarters of it."""
    gaussians: tuple[int, ...] = (100_000, 10_000, 1_000_000)
    """Numbers of Gaussians, with an image 800 pixels wide."""
    pixels: int = 8192
    """Pixels a step learns from, of each view."""
    views_per_step: int = 2
    """Views a step."""
    channels: int = 16
    """Length of a feature."""
    cells: int = 6
    """Cells of the grid along a side: their number is that of the masks."""
    views: int = 4
    """Cameras, learned from in turn."""
    repeats: int = 5
    """The best of so many, each a rasterising step and the mean of 20 feature steps."""
    seed: int = 0
    """Seed of the scene."""


STEPS = 20  # feature steps a repeat


def make_scene(n: int, width: int, benchmark: Benchmark) -> tuple[Splats, list[Camera]]:
    """Return N flat Gaussians on a wavy sheet, and cameras that see all of it."""
    g = torch.Generator().manual_seed(benchmark.seed)
    xy = torch.rand(n, 2, generator=g) * 2 - 1
    z = 0.2 * torch.sin(3 * xy[:, 0]) * torch.cos(2 * xy[:, 1])
    size = 1.2 / math.sqrt(n)
    log_scales = torch.log(size * torch.tensor([1.0, 1.0, 0.2]) * (0.5 + torch.rand(n, 3, generator=g)))
    quats = torch.cat([torch.ones(n, 1), 0.2 * torch.randn(n, 3, generator=g)], 1)
    opacities = torch.logit(0.3 + 0.65 * torch.rand(n, generator=g))
    splats = Splats(torch.cat([xy, z[:, None]], 1), quats, log_scales, opacities, torch.zeros(n, 1, 3))
    angles = [2 * math.pi * i / benchmark.views for i in range(benchmark.views)]
    eyes = [(2.2 * math.sin(a), -2.2 * math.cos(a), 1.6) for a in angles]
    return splats, [Camera.look_at(eye, (0, 0, 0), width=width, height=width * 3 // 4) for eye in eyes]


def sample(splats: Splats, cameras: list[Camera], settings: LiftSettings, benchmark: Benchmark) -> list[Batch]:
    """Return one batch a camera, its masks the cells of a grid on the sheet."""
    cell = ((splats.means[:, :2] + 1) / 2 * benchmark.cells).long().clamp(0, benchmark.cells - 1)
    labels = (1 + cell[:, 0] * benchmark.cells + cell[:, 1]).int().numpy()
    id_maps = [render_labels(splats, labels, camera, CpuRasterizer()).ids for camera in cameras]
    return held(sample_batches(splats, cameras, id_maps, CpuRasterizer(), settings, quiet=True))


def rasterise(splats: Splats, cameras: list[Camera], values: Tensor, gradient: Tensor) -> float:
    """Return the seconds of a forward and a backward pass for each camera."""
    start = time.perf_counter()
    for camera in cameras:
        CpuRasterizer().render(splats, values, [camera]).values.backward(gradient)
    return time.perf_counter() - start


def measure(n: int, width: int, benchmark: Benchmark) -> None:
    """Print a row."""
    v = benchmark.views_per_step
    settings = LiftSettings(
        dim=benchmark.channels, pixels_per_view=benchmark.pixels, pixels_per_step=benchmark.pixels, views_per_step=v,
        steps=10_000,
    )  # fmt: skip
    splats, cameras = make_scene(n, width, benchmark)
    batches = sample(splats, cameras, settings, benchmark)
    g = torch.Generator().manual_seed(benchmark.seed)
    values = torch.randn(n, benchmark.channels, generator=g)
    learner = Learner(batches, nearest_neighbours(splats.means, settings.neighbours), values, settings)
    values.requires_grad_()
    gradient = torch.randn(1, width * 3 // 4, width, benchmark.channels, generator=g)
    draws = torch.rand(settings.anchors, generator=g).numpy()
    rasterising, learning = math.inf, math.inf
    for _ in range(benchmark.repeats):
        rasterising = min(rasterising, rasterise(splats, cameras[:v], values, gradient))
        start = time.perf_counter()
        for step in range(STEPS):
            learner.step([batches[(step * v + k) % len(batches)] for k in range(v)], draws, settings.lr)
        learning = min(learning, (time.perf_counter() - start) / STEPS)
    seen = sum(len(b.gaussians) for b in batches) // len(batches)
    facts = (f"{width} x {width * 3 // 4}", f"{n:,}", f"{seen:,}", f"{rasterising:.3f}", f"{1e3 * learning:.2f}")
    print("| " + " | ".join(facts) + f" | {rasterising / learning:.0f} |", flush=True)


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    of_views = f"{benchmark.pixels} pixels of each of {benchmark.views_per_step} views a step"
    print(f"{thread_count()} threads, {of_views}, {benchmark.channels} channels\n")
    print("| image | Gaussians | of them in a view | rasterising a step, s | feature step, ms | ratio |")
    print("|---|---|---|---|---|---|")
    for width in benchmark.widths:
        measure(benchmark.gaussians[0], width, benchmark)
    for n in benchmark.gaussians[1:]:
        measure(n, 800, benchmark)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
