"""Measure what each stage after training costs by Gaussians: `python tools/benchmark_scaling.py`.

The scene is that of benchmark_features.py. Prints a row a number of Gaussians, in CPU seconds of the first process (the
feature step in milliseconds, by the clock too), and the slope of each column in microseconds a Gaussian. Under torchrun
the processes share the weights, the steps and the pictures; what a step brings to each is printed too:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 tools/benchmark_scaling.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import benchmark_features
import numpy as np
import torch
import tyro
from benchmark_features import make_scene

from cgc import parallel
from cgc.clustering.cluster import cluster
from cgc.clustering.columns import mask_columns
from cgc.features.frozen import Learner, nearest_neighbours, smooth_features
from cgc.features.samples import Batch, held, sample_batches, visible_mass
from cgc.kernels import thread_count
from cgc.neighbours import nearest_in
from cgc.progress import console
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import peak_rss_bytes
from cgc.segmentation.labels import render_labels
from cgc.settings import ClusterSettings, LiftSettings


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    gaussians: tuple[int, ...] = (25_000, 50_000, 100_000)
    """Numbers of Gaussians, one row each."""
    width: int = 400
    """Width of the pictures in pixels; the height is three quarters of it."""
    views: int = 8
    """Views, all with masks."""
    steps: int = 100
    """Feature steps, two views each."""


COLUMNS = (
    "neighbours", "weights, a view", "feature step, ms", "by the clock, ms", "mass", "columns", "smoothing",
    "nearest of 12,000", "clustering", "picture of labels",
)  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds that this process spends on some work, and what it gave."""
    parallel.barrier()
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure(n: int, benchmark: Benchmark) -> tuple[list[float], int]:
    """Return the seconds of each column and the bytes that a feature step brings to each process."""
    scene = benchmark_features.Benchmark(views=benchmark.views)
    splats, cameras = make_scene(n, benchmark.width, scene)
    cell = ((splats.means[:, :2] + 1) / 2 * scene.cells).long().clamp(0, scene.cells - 1)
    labels = (1 + cell[:, 0] * scene.cells + cell[:, 1]).int().numpy()
    settings, rasterizer, k = LiftSettings(steps=benchmark.steps), CpuRasterizer(), 2
    id_maps = [render_labels(splats, labels, camera, rasterizer).ids for camera in cameras]
    near, neighbours = timed(lambda: nearest_neighbours(splats.means, settings.neighbours))
    weights, batches = timed(lambda: sample_batches(splats, cameras, id_maps, rasterizer, settings, quiet=True))
    start = 0.1 * torch.randn(n, settings.dim, generator=torch.Generator().manual_seed(0))
    learner = Learner(batches, neighbours, start, settings)
    draws = np.linspace(0, 0.999, settings.anchors)
    order = np.random.default_rng(0).integers(len(batches), size=(benchmark.steps, k))

    def learn() -> None:
        for some in order:
            learner.step([batches[i] for i in some], draws, settings.lr)

    begun = time.perf_counter()
    learning, _ = timed(learn)
    passed = time.perf_counter() - begun
    massing, mass = timed(lambda: visible_mass(batches, n))
    counting, columns = timed(lambda: mask_columns(held(batches), n))
    smoothing, smooth = timed(lambda: smooth_features(learner.features, neighbours, mass))
    unit, known = smooth.numpy(), smooth.numpy()[:12_000]
    finding, _ = timed(lambda: nearest_in(known, unit))
    with parallel.alone():
        clustering = timed(lambda: cluster(smooth, mass, columns, ClusterSettings()))[0] if parallel.is_first() else 0.0
    drawing, _ = timed(
        lambda: list(parallel.shared(cameras, lambda c: [render_labels(splats, labels, c, rasterizer).ids]))
    )
    shown = [len(b.gaussians) if isinstance(b, Batch) else b.shown for b in batches]
    sent = k * (4 * settings.dim + 4) * sum(shown) // len(shown)
    views = benchmark.views
    steps = [1e3 * seconds / benchmark.steps for seconds in (learning, passed)]
    times = [near, weights / views, *steps, massing, counting, smoothing, finding, clustering, drawing / views]
    return times, sent


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    parallel.join()
    size = parallel.count()
    console.print(f"{size} processes of {thread_count()} threads, {benchmark.views} views {benchmark.width} wide\n")
    console.print("| Gaussians | " + " | ".join(COLUMNS) + " | sent a step, MB | peak, MB |")
    console.print("|---" * (len(COLUMNS) + 3) + "|")
    measure(min(benchmark.gaussians), benchmark)  # compiles
    rows = []
    for n in benchmark.gaussians:
        times, sent = measure(n, benchmark)
        rows.append(times)
        facts = [f"{n:,}", *(f"{t:.3g}" for t in times), f"{sent / 1e6:.2f}", f"{peak_rss_bytes() / 1e6:.0f}"]
        console.print("| " + " | ".join(facts) + " |")
    slopes = np.polyfit(np.array(benchmark.gaussians), np.array(rows), 1)[0] * 1e6
    slopes[2:4] /= 1e3  # the steps
    console.print("| slope, µs | " + " | ".join(f"{s:.3g}" for s in slopes) + " | | |")
    parallel.leave()


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
