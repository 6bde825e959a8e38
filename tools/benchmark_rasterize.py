"""Measure the CPU rasteriser against a per-pixel torch renderer: `python tools/benchmark_rasterize.py`.

The scene is generated: Gaussians on a wavy surface, seeded. The peer is the obvious vectorised torch renderer (every
visible Gaussian at every pixel, in chunks of pixels, float32, autograd), which anyone would write first; both run in
this process, on the same threads, so the ratio is what to read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from cgc.geometry import covariances
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.splats.types import Splats


@dataclass(frozen=True)
class Benchmark:
    """What is rendered."""

    gaussians: tuple[int, ...] = (500, 20_000)
    """Numbers of Gaussians; the peer is measured on the first only."""
    width: int = 400
    """Image width in pixels; the height is three quarters of it."""
    channels: int = 3
    """Values a Gaussian."""
    repeats: int = 5
    """The best of so many."""
    seed: int = 0
    """Seed of the scene."""


def make_scene(n: int, benchmark: Benchmark) -> tuple[Splats, Tensor, Camera]:
    """Return N flat Gaussians on a wavy sheet, their values [N, D], and a camera that sees all of it."""
    g = torch.Generator().manual_seed(benchmark.seed)
    xy = torch.rand(n, 2, generator=g) * 2 - 1
    z = 0.2 * torch.sin(3 * xy[:, 0]) * torch.cos(2 * xy[:, 1])
    size = 1.2 / math.sqrt(n)
    log_scales = torch.log(size * torch.tensor([1.0, 1.0, 0.2]) * (0.5 + torch.rand(n, 3, generator=g)))
    quats = torch.cat([torch.ones(n, 1), 0.2 * torch.randn(n, 3, generator=g)], 1)
    opacities = torch.logit(0.3 + 0.65 * torch.rand(n, generator=g))
    splats = Splats(torch.cat([xy, z[:, None]], 1), quats, log_scales, opacities, torch.zeros(n, 1, 3))
    camera = Camera.look_at((0.3, -2.2, 1.6), (0, 0, 0), width=benchmark.width, height=benchmark.width * 3 // 4)
    return splats, torch.rand(n, benchmark.channels, generator=g), camera


def per_pixel_torch(splats: Splats, values: Tensor, camera: Camera) -> Tensor:
    """Blend every Gaussian at every pixel, [H * W, D]; no tiles and no culling."""
    R, t, K = camera.viewmat[:3, :3], camera.viewmat[:3, 3], camera.K
    p = splats.means @ R.T + t
    order = p[:, 2].argsort()
    p, cov, opacities = p[order], covariances(splats.quats, splats.scales)[order], splats.opacities[order]
    x, y, z = p.unbind(1)
    zero = torch.zeros_like(z)
    rows = [K[0, 0] / z, zero, -K[0, 0] * x / z**2, zero, K[1, 1] / z, -K[1, 1] * y / z**2]
    V = torch.stack(rows, 1).reshape(-1, 2, 3) @ R
    inverse = torch.linalg.inv(V @ cov @ V.transpose(1, 2) + 0.3 * torch.eye(2))
    centre = torch.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], 1)
    ys, xs = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(-1, 2)
    parts = []
    for chunk in pixels.split(2048):
        d = chunk[:, None] - centre  # [P, N, 2]
        sigma = 0.5 * (d[..., 0] ** 2 * inverse[:, 0, 0] + d[..., 1] ** 2 * inverse[:, 1, 1])
        sigma = sigma + d[..., 0] * d[..., 1] * inverse[:, 0, 1]
        alpha = (opacities * torch.exp(-sigma.clamp_max(50.0))).clamp_max(0.999)  # past 50: denormal numbers, slow
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
        before = torch.cumprod(torch.cat([torch.ones(len(chunk), 1), 1 - alpha[:, :-1]], 1), 1)
        parts.append((alpha * before) @ values[order])
    return torch.cat(parts)


def best(run: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Return the best seconds of forward, and of forward with backward."""
    forward, both = math.inf, math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        out = run()
        forward = min(forward, time.perf_counter() - start)
        out.square().sum().backward()
        both = min(both, time.perf_counter() - start)
    return forward, both


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    rasterizer = CpuRasterizer()
    size = f"{benchmark.width} x {benchmark.width * 3 // 4}"
    print(f"{torch.get_num_threads()} threads, {size}, {benchmark.channels} channels")
    print("| Gaussians | renderer | forward, s | forward + backward, s | ratio |")
    print("|---|---|---|---|---|")
    for index, n in enumerate(benchmark.gaussians):
        splats, values, camera = make_scene(n, benchmark)
        for tensor in (splats.means, splats.log_scales, values):
            tensor.requires_grad_()
        ours = best(lambda: rasterizer.render(splats, values, [camera]).values, benchmark.repeats)  # noqa: B023
        print(f"| {n:,} | cgc, CPU | {ours[0]:.4f} | {ours[1]:.4f} | 1 |", flush=True)
        if index == 0:
            peer = best(lambda: per_pixel_torch(splats, values, camera), 1)  # noqa: B023
            print(f"| {n:,} | per-pixel torch | {peer[0]:.2f} | {peer[1]:.2f} | {peer[1] / ours[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
