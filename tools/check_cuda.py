"""Compare the CUDA backend with the CPU backend on a larger scene, and time it: `python tools/check_cuda.py`.

The scene is a seeded heap of Gaussians before one camera. For each quantity a line says how far the backends are apart
(the largest difference and the share of numbers that differ by more than a thousandth of the largest) and what it
takes: the median of some repeats after a first, waited for. Run it once after gsplat's code is built; `--device cpu`
compares the CPU backend with itself, to try the script.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from cgc.device import choose, rasterizer_for
from cgc.rasterize.base import Contributions, Rasterizer, transpose_product
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.splats.types import GEOMETRY, Splats


@dataclass(frozen=True)
class Check:
    """What is compared."""

    device: str = "cuda"
    """The device to compare with the CPU."""
    gaussians: int = 200_000
    """Gaussians of the scene."""
    width: int = 800
    """Width of the picture in pixels; the height is three quarters of it."""
    channels: tuple[int, ...] = (3, 16, 40)
    """Numbers of channels to render."""
    repeats: int = 5
    """Repeats that are timed."""
    seed: int = 0
    """Seed of the scene."""


def make_scene(check: Check) -> tuple[Splats, Camera]:
    """Return Gaussians of all shapes before a camera, denser where more is asked for."""
    g, n = torch.Generator().manual_seed(check.seed), check.gaussians
    z = 1.5 + 3 * torch.rand(n, 1, generator=g)
    xy = (torch.rand(n, 2, generator=g) - 0.5) * 1.3 * z
    log_scales = math.log(1.2 / math.sqrt(n)) + 0.7 * torch.randn(n, 3, generator=g)
    quats, logits = torch.randn(n, 4, generator=g), 1.5 * torch.randn(n, generator=g)
    camera = Camera.look_at(
        (0, 0, 0), (0, 0, 1), width=check.width, height=check.width * 3 // 4, focal=0.8 * check.width, up=(0, -1, 0)
    )
    return Splats(torch.cat([xy, z], 1), quats, log_scales, logits, torch.zeros(n, 1, 3)), camera


def timed(work: Callable[..., object], *given: object, device: torch.device, repeats: int) -> float:
    """Return the median of the milliseconds that work(*given) takes, the device waited for."""
    taken = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work(*given)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1e3 * (time.perf_counter() - begun))
    return sorted(taken[1:])[repeats // 2]


def say(name: str, ours: Tensor, theirs: Tensor, milliseconds: str = "") -> None:
    """Print how far apart two tensors are."""
    error, largest = (ours.detach().cpu() - theirs.detach().cpu()).abs(), float(theirs.detach().abs().max())
    share = float((error > 1e-3 * largest).float().mean()) if error.numel() else 0.0
    print(f"{name:<28} off by {float(error.max()) / largest:8.1e} at most, {share:8.1e} of all > 1e-3  {milliseconds}")


class Side:
    """One backend, with the scene where it works."""

    def __init__(self, rasterizer: Rasterizer, device: torch.device, scene: tuple[Splats, Camera]) -> None:
        splats = scene[0].to(device)
        self.splats = replace(splats, **{k: getattr(splats, k).clone().requires_grad_() for k in GEOMETRY})
        self.rasterizer, self.device, self.camera = rasterizer, device, scene[1].to(device)

    def time(self, check: Check, work: Callable[..., object], *given: object) -> float:
        """Return the milliseconds of work(*given) here."""
        return timed(work, *given, device=self.device, repeats=check.repeats)

    def picture(self, values: Tensor) -> Tensor:
        """Blend values [N, D] to [H, W, D]."""
        return self.rasterizer.render(self.splats, values, [self.camera]).values[0]

    def gradients(self, values: Tensor, upstream: Tensor) -> list[Tensor]:
        """Return the gradients of sum(picture * upstream) by the geometry and the values."""
        leaf = values.detach().clone().requires_grad_()
        (self.picture(leaf) * upstream).sum().backward()
        found = [getattr(self.splats, name).grad for name in GEOMETRY]
        for name in GEOMETRY:
            getattr(self.splats, name).grad = None
        assert leaf.grad is not None
        return [*found, leaf.grad]

    def rows(self, pixels: Tensor | None = None, heaviest: int = 0) -> Contributions:
        """Return rows of W."""
        return self.rasterizer.contributions(self.splats, self.camera, pixels, heaviest=heaviest)

    def votes(self, x: Tensor) -> Tensor:
        """Return W^T x."""
        return transpose_product(self.rasterizer, self.splats, self.camera, x)


def check_pictures(check: Check, ours: Side, theirs: Side, channels: int) -> None:
    """Compare and time pictures of so many channels, and their gradients."""
    g = torch.Generator().manual_seed(check.seed + channels)
    values, size = torch.randn(check.gaussians, channels, generator=g), (ours.camera.height, ours.camera.width)
    upstream = torch.randn(*size, channels, generator=g)
    here, weights = values.to(ours.device), upstream.to(ours.device)
    with torch.no_grad():
        taken = [side.time(check, side.picture, v) for side, v in ((ours, here), (theirs, values))]
        said = f"{taken[0]:8.2f} ms (CPU {taken[1]:.0f})"
        say(f"picture, {channels} channels", ours.picture(here), theirs.picture(values), said)
    taken = [
        side.time(check, side.gradients, v, u) for side, v, u in ((ours, here, weights), (theirs, values, upstream))
    ]
    said = f"{taken[0]:8.2f} ms with the picture (CPU {taken[1]:.0f})"
    for name, a, b in zip((*GEOMETRY, "values"), ours.gradients(here, weights), theirs.gradients(values, upstream)):
        say(f"  gradient by {name}", a, b, said)
        said = ""


def check_rows(check: Check, ours: Side, theirs: Side) -> None:
    """Compare and time rows of W, products with them, and votes."""
    g = torch.Generator().manual_seed(check.seed)
    n_pixels = ours.camera.width * ours.camera.height
    pixels = torch.randperm(n_pixels, generator=g)[: min(16_384, n_pixels)]
    values, x = torch.randn(check.gaussians, 16, generator=g), torch.rand(n_pixels, 64, generator=g)
    for name, some, heaviest in (("all rows", None, 0), ("16,384 rows, 24 heaviest", pixels, 24)):
        taken = [s.time(check, s.rows, some, heaviest) for s in (ours, theirs)]
        made, expected = ours.rows(some, heaviest), theirs.rows(some, heaviest)
        counts = (made.indptr.diff().cpu() != expected.indptr.diff()).float().mean()
        print(f"{name}: {len(made.ids):,} entries, {float(counts):.1e} of the rows have another number of them")
        say("  times values", made.matmul(values), expected.matmul(values), f"{taken[0]:8.2f} ms (CPU {taken[1]:.0f})")
        here = values.to(ours.device)
        taken = [s.time(check, w.matmul, v) for s, w, v in ((ours, made, here), (theirs, expected, values))]
        back, their_back = made.matmul(here), expected.matmul(values)
        said = f"{taken[0]:8.2f} ms a product (CPU {taken[1]:.1f})"
        say("  transposed times those", made.transpose_matmul(back), expected.transpose_matmul(their_back), said)
    here = x.to(ours.device)
    taken = [s.time(check, s.votes, v) for s, v in ((ours, here), (theirs, x))]
    say("votes, 64 columns", ours.votes(here), theirs.votes(x), f"{taken[0]:8.2f} ms (CPU {taken[1]:.0f})")


def main(check: Check) -> None:
    """Compare all, and print the memory that it took."""
    begun = time.perf_counter()
    device, why = choose(check.device, print)
    print(f"{why}; torch {torch.__version__}, ready after {time.perf_counter() - begun:.1f} s")
    scene = make_scene(check)
    ours = Side(rasterizer_for(device), device, scene)
    theirs = Side(CpuRasterizer(), torch.device("cpu"), scene)
    print(f"{check.gaussians:,} Gaussians, {scene[1].width} x {scene[1].height} pixels")
    for channels in check.channels:
        check_pictures(check, ours, theirs, channels)
    check_rows(check, ours, theirs)
    if device.type == "cuda":
        print(f"at most {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB of the GPU's memory")


if __name__ == "__main__":
    main(tyro.cli(Check))
