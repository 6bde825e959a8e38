"""Measure the tensor operations that stand in for the kernels on a GPU: `python tools/benchmark_torch.py`.

Each stage is done by the CPU's kernels and by tensor operations on `--device`, from the same inputs. On the CPU both
are given in CPU seconds, so that the ratio can be read on a busy machine; on a card the second is the time by the
clock, once the device has done its work. The scene is that of benchmark_features.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import benchmark_features
import numpy as np
import torch
import tyro
from benchmark_features import make_scene

from cgc.clustering.columns import mask_columns
from cgc.clustering.rows import DeviceRows, HostRows
from cgc.clustering.vote import revote
from cgc.device_neighbours import nearest_others_on_device
from cgc.features.device_batches import DeviceBatch
from cgc.features.device_learner import DeviceLearner
from cgc.features.frozen import Learner, nearest_neighbours, smooth_features, smooth_on_device
from cgc.features.samples import held, sample_batches, visible_mass
from cgc.rasterize.base import group_contributions
from cgc.rasterize.cpu import CpuRasterizer
from cgc.segmentation.device_labels import ShownThere, read_rows_there
from cgc.segmentation.labels import Hierarchy, ShownNodes, leaf_groups, read_rows, render_labels
from cgc.settings import LiftSettings


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    gaussians: int = 100_000
    """Gaussians of the scene."""
    width: int = 400
    """Width of the pictures in pixels; the height is three quarters of it."""
    views: int = 8
    """Views, all with masks."""
    steps: int = 20
    """Feature steps, two views each."""
    device: str = "cpu"
    """Where tensor operations work: cpu, cuda, cuda:1."""


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return what some work takes the second time, and what it gave: CPU seconds, or seconds of a card's."""
    work()
    if device.type == "cpu":
        start = time.process_time()
        result = work()
        return time.process_time() - start, result
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def on(batches: list[Any], device: torch.device) -> list[DeviceBatch]:
    """Return batches that a device is the home of, there."""
    return [replace(batch, home=device).at_home() for batch in batches if isinstance(batch, DeviceBatch)]


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    device, cpu = torch.device(benchmark.device), torch.device("cpu")
    scene = benchmark_features.Benchmark(views=benchmark.views)
    splats, cameras = make_scene(benchmark.gaussians, benchmark.width, scene)
    n, rasterizer, settings = len(splats), CpuRasterizer(), LiftSettings(steps=10_000)
    cell = ((splats.means[:, :2] + 1) / 2 * scene.cells).long().clamp(0, scene.cells - 1)
    labels = (1 + cell[:, 0] * scene.cells + cell[:, 1]).int().numpy()
    id_maps = [render_labels(splats, labels, camera, rasterizer).ids for camera in cameras]

    def compare(name: str, kernels: Callable[[], Any], tensors: Callable[[], Any], count: int = 1) -> tuple[Any, Any]:
        (one, a), (other, b) = seconds(kernels, cpu), seconds(tensors, device)
        print(f"| {name} | {1e3 * one / count:.3g} | {1e3 * other / count:.3g} | {other / one:.3g} |", flush=True)
        return a, b

    def sample(layout: Any) -> list[Any]:
        return held(sample_batches(splats, cameras, id_maps, rasterizer, settings, layout=layout, quiet=True))

    print("| stage | kernels, ms | tensors, ms | ratio |\n|---|---|---|---|")
    host, placed = compare("weights of sampled pixels (CPU's), a view", lambda: sample("host"),
                           lambda: sample("device"), benchmark.views)  # fmt: skip
    placed = on(placed, device)
    means = splats.means.to(device)
    neighbours, _ = compare("neighbours", lambda: nearest_neighbours(splats.means, 8),
                            lambda: nearest_others_on_device(means, 8))  # fmt: skip
    start = 0.1 * torch.randn(n, settings.dim, generator=torch.Generator().manual_seed(0))
    draws, order = torch.rand(settings.anchors), np.random.default_rng(0).integers(len(host), size=(benchmark.steps, 2))
    learner, near = Learner(host, neighbours, start, settings), neighbours.to(device)
    other = DeviceLearner(near, start.to(device), settings)
    given = draws.to(device), torch.tensor(settings.lr, device=device)
    compare(
        "feature step, 2 views",
        lambda: [learner.step([host[k] for k in some], draws.numpy(), settings.lr) for some in order],
        lambda: [other.step([placed[k] for k in some], *given) for some in order],
        benchmark.steps,
    )
    mass, _ = compare("visible mass", lambda: visible_mass(host, n), lambda: visible_mass(placed, n))
    features, weight = learner.features.to(device), mass.to(device)
    smooth, _ = compare("smoothing", lambda: smooth_features(learner.features, neighbours, mass),
                        lambda: smooth_on_device(features, near, weight))  # fmt: skip
    unit, there = smooth.numpy(), smooth.to(device)
    samples = unit[np.random.default_rng(0).choice(n, min(12_000, n), replace=False)]
    compare("nearest of 12,000", lambda: HostRows(unit).nearest(samples), lambda: DeviceRows(there).nearest(samples))
    columns, columns_there = compare("masks' columns", lambda: mask_columns(host, n), lambda: mask_columns(placed, n))
    compare("a vote", lambda: revote(labels, columns, mass), lambda: revote(labels, columns_there, mass))
    tree = Hierarchy.flat(labels)
    picture = group_contributions(rasterizer, splats, cameras[0], leaf_groups(tree))
    shown, shown_there = ShownNodes.of(tree, [None]), ShownThere.of(tree, [None], device)
    parts = {name: getattr(picture, name).to(device) for name in ("indptr", "ids", "weights", "pixels")}
    moved = type(picture)(**parts, width=picture.width, height=picture.height, n_gaussians=picture.n_gaussians)
    compare(
        "labels of a picture's rows", lambda: read_rows(picture, shown), lambda: read_rows_there(moved, shown_there)
    )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
