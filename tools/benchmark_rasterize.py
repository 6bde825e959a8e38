"""Measure the CPU rasteriser: `python tools/benchmark_rasterize.py --write docs/benchmarks.md`.

Forward, gradient and blending weights for several numbers of Gaussians, picture sizes and channels, on one and on two
threads; beside two renderers in plain torch (rasterize_peers.py); against the bars that the project sets itself. The
scene is generated and seeded: surfaces one behind the other, covered by flat Gaussians as trained ones are. All that
is compared is measured in turn in one run, so ratios hold on a machine whose speed varies; a time is the median of the
rounds, the best in brackets. Neither loss nor optimiser is in it: the picture's gradient is given.

Notation: N Gaussians, D channels, P pixels, H W image; a pair is a Gaussian and a tile of 16 x 16 pixels that it meets.
"""

from __future__ import annotations

import gc
import importlib.metadata
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
import tyro
from rasterize_peers import GEOMETRY, GsplatReference, TorchTiles, clear_pixels, leaves, list_pairs, project
from torch import Tensor

from cgc.errors import InputError
from cgc.files import write_text
from cgc.kernels import threads
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.splats.types import Splats

BEGIN, END = "<!-- rasteriser: begin -->", "<!-- rasteriser: end -->"
HEADING = "## The rasteriser"
MOST_CHANNELS = 64
MEMORY = 12e9
"""Bytes: combinations that would need more are left out."""
SHARE = 0.04
"""Share of the pixels whose weights a step of learning asks for."""
LAYERS = 0.42
"""Size of the generated Gaussians relative to their distance: some 35 blended entries a pixel in the median."""


@dataclass(frozen=True)
class Benchmark:
    """What is measured, and where it is written."""

    write: Path | None = None
    """A Markdown file whose part on the rasteriser is replaced, the plot beside it; without it the part is printed."""
    scene: Path | None = None
    """An .npz with a fixed scene in place of the generated one: 100k_means [N, 3], 100k_quats [N, 4] wxyz, 100k_scales
    [N, 3], 100k_opac [N], 100k_rgb [N, 3], 100k_feat [N, 16], and so for other N; viewmats [V, 4, 4]; K_800x600."""
    view: int = 0
    """Which of the fixed scene's views."""
    quick: bool = False
    """A small subset, for trying the script: its figures are not those of the bars."""
    seed: int = 0
    """Seed of the scene, the pixels and the picture's gradient."""


class Plan(NamedTuple):
    """The sizes of a run; pictures are `widths` x 3/4 of it."""

    gaussians: tuple[int, ...]
    widths: tuple[int, ...]
    channels: tuple[int, ...]
    fixed: tuple[int, int]
    """Gaussians and width of most bars, at `bar_channels`."""
    small: tuple[int, int]
    """Of the bar on a small picture."""
    exact: tuple[int, int]
    """Of the bar on gradients."""
    seconds: float
    """Spent on a size at least, if that takes no more than MOST_ROUNDS rounds."""
    bar_channels: int = 19
    plotted: tuple[int, int] = (3, 19)


FULL = Plan(
    (20_000, 100_000, 500_000), (400, 800, 1600), (3, 16, 19, 64), (100_000, 800), (100_000, 400), (20_000, 400), 15.0
)
QUICK = Plan((2_000, 5_000), (80, 160), (3, 19), (5_000, 160), (5_000, 80), (2_000, 80), 0.5)
LEAST_ROUNDS, MOST_ROUNDS = 3, 15


# ------------------------------------------------------------------------------------------------------ the scene


class Stage(NamedTuple):
    """What is rendered: splats, values [N, MOST_CHANNELS], a camera of any size with the sides' ratio 4 : 3."""

    splats: Splats
    values: Tensor
    camera: Camera


def surfaces(n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return points [n, 3] on a hilly floor, on balls and on a round wall, their normals and mean distances [n]."""
    centres = torch.cat([3 * torch.rand(12, 2, generator=g) - 1.5, 0.2 + 0.3 * torch.rand(12, 1, generator=g)], 1)
    radii = 0.1 + 0.25 * torch.rand(12, generator=g)
    areas = torch.tensor([36.0, 4 * math.pi * float(radii.square().sum()), 15 * math.pi])
    share = torch.tensor([0.35, 0.35, 0.3])  # of the Gaussians: things are covered finer than what is around them
    kind = torch.multinomial(share, n, replacement=True, generator=g)
    x, y = (6 * torch.rand(2, n, generator=g) - 3).unbind(0)
    floor = torch.stack([x, y, 0.15 * torch.sin(3 * x) * torch.cos(2 * y)], 1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand(n, 3)
    out = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    ball = torch.multinomial(radii.square(), n, replacement=True, generator=g)
    angle = 2 * math.pi * torch.rand(n, generator=g)
    side = torch.stack([angle.cos(), angle.sin(), torch.zeros(n)], 1)
    wall = 3 * side + 2.5 * torch.rand(n, 1, generator=g) * up
    points = torch.stack([floor, centres[ball] + radii[ball, None] * out, wall])
    which = (kind, torch.arange(n))
    return points[which], torch.stack([up, out, side])[which], (areas / share / n).sqrt()[kind]


def standing_on(normals: Tensor, angles: Tensor) -> Tensor:
    """Return quaternions [N, 4] that turn by `angles` about z, and then z onto the normals [N, 3]."""
    x, y, z = normals.unbind(1)
    onto = torch.nn.functional.normalize(torch.stack([1 + z + 1e-6, -y, x, torch.zeros_like(z)], 1), dim=1)
    w, x, y, _ = onto.unbind(1)
    c, s = (angles / 2).cos(), (angles / 2).sin()
    return torch.stack([w * c, x * c + y * s, y * c - x * s, w * s], 1)


def make_scene(n: int, seed: int) -> Stage:
    """Return n Gaussians with the spread of sizes, shapes and opacities that trained scenes have."""
    g = torch.Generator().manual_seed(seed)
    points, normals, distance = surfaces(n, g)
    large, needle = torch.rand(2, n, generator=g).unbind(0)
    size = LAYERS * distance * torch.exp(0.8 * torch.randn(n, generator=g)) * torch.where(large < 0.02, 6.0, 1.0)
    size = size.clamp_max(0.5)
    stretch = torch.exp(0.4 * torch.randn(n, generator=g)) * torch.where(needle < 0.05, 6.0, 1.0)
    narrow = size / stretch.sqrt()
    scales = torch.stack([size * stretch.sqrt(), narrow, 0.15 * narrow], 1)
    means = points + 0.5 * size.clamp_max(0.1)[:, None] * torch.randn(n, 1, generator=g) * normals
    quats = standing_on(normals, 2 * math.pi * torch.rand(n, generator=g))
    logits = 0.3 + 2.1 * torch.randn(n, generator=g)
    splats = Splats(means, quats, scales.log(), logits, torch.zeros(n, 1, 3))
    camera = Camera.look_at((1.9, -2.2, 1.5), (0, 0, 0.2), width=800, height=600, focal=600)
    return Stage(splats, torch.rand(n, MOST_CHANNELS, generator=g), camera)


def read_scene(path: Path, view: int, seed: int) -> dict[int, Stage]:
    """Read a fixed scene (see `Benchmark.scene`), by number of Gaussians."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            arrays = {key: torch.from_numpy(file[key]).float() for key in file.files}
        sizes = [key.removesuffix("_means") for key in arrays if key.endswith("_means")]
        if not sizes:
            raise KeyError("100k_means")
        viewmat, (key, K) = arrays["viewmats"][view], max((k, v) for k, v in arrays.items() if k.startswith("K_"))
        camera = Camera(viewmat, K, *map(int, key[2:].split("x")))
        stages = [_stage(arrays, size, camera, seed) for size in sizes]
    except (OSError, BadZipFile, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no scene to measure ({error}): an .npz with the arrays that --help names was expected; "
            "write them, or leave out --scene for the generated scene"
        ) from error
    return {len(stage.splats): stage for stage in stages}


def _stage(arrays: Mapping[str, Tensor], size: str, camera: Camera, seed: int) -> Stage:
    """Return the Gaussians whose keys begin with `size`."""
    means, quats, scales, opacities, rgb, feat = (
        arrays[f"{size}_{name}"] for name in ("means", "quats", "scales", "opac", "rgb", "feat")
    )
    n, given = len(means), torch.cat([rgb, feat], 1)
    more = torch.rand(n, MOST_CHANNELS - given.shape[1], generator=torch.Generator().manual_seed(seed))
    splats = Splats(means, quats, scales.log(), opacities.clamp(1e-6, 1 - 1e-6).logit(), torch.zeros(n, 1, 3))
    return Stage(splats, torch.cat([given, more], 1), camera)


def plan_for(benchmark: Benchmark, stages: Mapping[int, Stage]) -> Plan:
    """Return the sizes to measure; of a fixed scene, those numbers of Gaussians that it has."""
    plan = QUICK if benchmark.quick else FULL
    if not stages:
        return plan
    there = tuple(sorted(stages))[: 1 if benchmark.quick else None]

    def nearest(wanted: tuple[int, int]) -> tuple[int, int]:
        return min(there, key=lambda n: abs(n - wanted[0])), wanted[1]

    return plan._replace(
        gaussians=there, fixed=nearest(plan.fixed), small=nearest(plan.small), exact=nearest(plan.exact)
    )


class Stages:
    """The scene with N Gaussians, for every N; the generated one is made when it is asked for."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.fixed = read_scene(benchmark.scene, benchmark.view, benchmark.seed) if benchmark.scene else {}
        self.plan = plan_for(benchmark, self.fixed)

    def get(self, n: int, width: int) -> Stage:
        """Return n Gaussians with a camera of this width."""
        stage = self.fixed.get(n) or make_scene(n, self.benchmark.seed)
        return stage._replace(camera=stage.camera.resized(width, width * 3 // 4))


# -------------------------------------------------------------------------------------------------------- measuring


class Sample(NamedTuple):
    """Seconds of one run: wall clock forward, wall clock of all, CPU of all."""

    forward: float
    wall: float
    cpu: float


class Samples(tuple[Sample, ...]):
    """What the rounds of one run gave."""

    def median(self, name: str) -> float:
        return float(np.median([getattr(s, name) for s in self]))

    def best(self, name: str) -> float:
        return min(getattr(s, name) for s in self)

    def shown(self, name: str) -> str:
        """Median and best in milliseconds."""
        return f"{1e3 * self.median(name):.3g} ({1e3 * self.best(name):.3g})"


def ratio(above: Samples, below: Samples, under: str = "wall") -> float:
    """Return the median over the rounds of the seconds of one run over those of another, measured in turn."""
    return float(np.median([a.wall / getattr(b, under) for a, b in zip(above, below)]))


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Use `count` threads in the kernels and in torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threads(count):
            yield
    finally:
        torch.set_num_threads(before)


Run = Callable[[], Sample]


def in_turn(runs: Mapping[str, Run], seconds: float) -> dict[str, Samples]:
    """Warm each run once, then run them in turn, for so many seconds and LEAST_ROUNDS to MOST_ROUNDS rounds."""
    for run in runs.values():
        run()
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for name, run in runs.items():
            samples[name].append(run())
    return {name: Samples(found) for name, found in samples.items()}


class Renderer(Protocol):
    """A peer: blends values [N, D] to a picture [H, W, D] and adds the gradients of sum(picture * v_image)."""

    def forward_backward(self, splats: Splats, values: Tensor, camera: Camera, v_image: Tensor) -> Tensor: ...


def render_run(stage: Stage, channels: int, workers: int, seed: int) -> Run:
    """Return a run of our renderer, forward and gradient."""
    values, v_image = stage.values[:, :channels].contiguous(), picture_gradient(stage.camera, channels, seed)

    def run() -> Sample:
        splats, shown = leaves(stage.splats), values.clone().requires_grad_()
        with on_threads(workers):
            begun, cpu = time.perf_counter(), time.process_time()
            image = CpuRasterizer().render(splats, shown, [stage.camera]).values[0]
            middle = time.perf_counter()
            image.backward(v_image)
            return Sample(middle - begun, time.perf_counter() - begun, time.process_time() - cpu)

    return run


def weights_run(stage: Stage, share: float, workers: int, seed: int) -> Run:
    """Return a run of `contributions` for a share of the pixels, drawn at random (1: all of them)."""
    count = stage.camera.width * stage.camera.height
    pixels = None if share == 1 else some_pixels(stage.camera, round(share * count), seed)
    rasterizer = CpuRasterizer(memory_limit=int(MEMORY))

    def run() -> Sample:
        with on_threads(workers):
            begun, cpu = time.perf_counter(), time.process_time()
            rasterizer.contributions(stage.splats, stage.camera, pixels)
            wall = time.perf_counter() - begun
            return Sample(wall, wall, time.process_time() - cpu)

    return run


def picture_gradient(camera: Camera, channels: int, seed: int) -> Tensor:
    """Return a random gradient of a picture, [H, W, D]."""
    return torch.randn(camera.height, camera.width, channels, generator=torch.Generator().manual_seed(seed))


def some_pixels(camera: Camera, count: int, seed: int) -> Tensor:
    """Return flat indices of `count` different pixels."""
    return torch.randperm(camera.width * camera.height, generator=torch.Generator().manual_seed(seed))[:count]


def count_pairs(stage: Stage) -> int:
    """Return how many (Gaussian, tile) meet."""
    with torch.no_grad():
        projected = project(stage.splats, stage.camera)
        return len(list_pairs(projected, stage.splats.opacities, stage.camera.width, stage.camera.height).ids)


def count_entries(stage: Stage, seed: int) -> Tensor:
    """Return how many Gaussians are blended into each of 4,000 pixels."""
    pixels = some_pixels(stage.camera, 4000, seed)
    return CpuRasterizer().contributions(stage.splats, stage.camera, pixels).indptr.diff().double()


class Row(NamedTuple):
    """What was measured with N Gaussians at one size and number of channels; `runs` lacks what needs too much."""

    n: int
    camera: Camera
    channels: int
    pairs: int
    entries: float
    """Median number of Gaussians blended into a pixel."""
    needs: float
    """Bytes of memory that rendering it needs, roughly."""
    runs: dict[str, Samples]


ONE, TWO, SOME, ALL = "one thread", "two threads", "some weights", "all weights"


def measure_size(stage: Stage, plan: Plan, seed: int) -> list[Row]:
    """Measure one number of Gaussians at one size for every number of channels, in turn."""
    entries, pairs = count_entries(stage, seed), count_pairs(stage)
    pixels = stage.camera.width * stage.camera.height
    runs: dict[str, Run] = {SOME: weights_run(stage, SHARE, 2, seed)}
    if 16 * float(entries.mean()) * pixels < MEMORY:
        runs[ALL] = weights_run(stage, 1, 2, seed)
    needs = {d: 16 * pixels * (d + 1) + pairs * (44 + 4 * d) for d in plan.channels}
    for d in plan.channels:
        if needs[d] < MEMORY:
            runs |= {f"{ONE} {d}": render_run(stage, d, 1, seed), f"{TWO} {d}": render_run(stage, d, 2, seed)}
    found = in_turn(runs, plan.seconds)
    rows = []
    for d in plan.channels:
        names = {ONE: f"{ONE} {d}", TWO: f"{TWO} {d}", SOME: SOME, ALL: ALL}
        own = {name: found[key] for name, key in names.items() if key in found}
        rows.append(Row(len(stage.splats), stage.camera, d, pairs, float(entries.median()), needs[d], own))
    return rows


class Peer(NamedTuple):
    """A peer's seconds with gradient, ours beside it, and the largest difference of its picture from ours."""

    name: str
    wall: float
    cpu: float
    ours: Samples
    off: float

    @property
    def over(self) -> float:
        """Its seconds over ours."""
        return self.wall / self.ours.median("wall")


def measure_peers(stage: Stage, channels: int, seed: int) -> list[Peer]:
    """Measure each peer once, on two threads, and ours before and after it; small things are loaded before."""
    reference = GsplatReference()
    first = measure_peer("gsplat's torch reference", reference, stage, channels, seed)
    loop, name = reference.seconds_of_lists, "the same without its loop over Gaussians"
    without = first._replace(name=name, wall=first.wall - loop, cpu=first.cpu - loop)
    return [first, without, measure_peer("tiles as torch tensors", TorchTiles(), stage, channels, seed)]


def measure_peer(name: str, peer: Renderer, stage: Stage, channels: int, seed: int) -> Peer:
    """Measure one peer."""
    ours, values = {TWO: render_run(stage, channels, 2, seed)}, stage.values[:, :channels].contiguous()
    camera, few = stage.camera.resized(32, 24), torch.arange(min(100, len(values)))
    with on_threads(2):
        small = leaves(stage.splats.select(few)), values[few].requires_grad_()
        peer.forward_backward(*small, camera, picture_gradient(camera, channels, seed))
        before = in_turn(ours, 1.0)[TWO]
        splats, shown = leaves(stage.splats), values.clone().requires_grad_()
        v_image = picture_gradient(stage.camera, channels, seed)
        begun, cpu = time.perf_counter(), time.process_time()
        image = peer.forward_backward(splats, shown, stage.camera, v_image)
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        after = in_turn(ours, 1.0)[TWO]
        off = image - CpuRasterizer().render(stage.splats, stage.values[:, :channels], [stage.camera]).values[0]
    return Peer(name, wall, cpu, Samples((*before, *after)), float(off.abs().max()))


def gradient_errors(stage: Stage, channels: int, seed: int) -> tuple[dict[str, float], float]:
    """Return the largest difference of each gradient from float64, over its largest entry; the share of pixels used.

    Not used are pixels where float32 may rightly decide otherwise (`clear_pixels`): their gradient is 0.
    """
    v_image, values = picture_gradient(stage.camera, channels, seed), stage.values[:, :channels]
    exact, exact_values = leaves(stage.splats, torch.float64), values.double().requires_grad_()
    clear = clear_pixels(exact, stage.camera)
    v_image *= clear[..., None]
    TorchTiles().forward_backward(exact, exact_values, stage.camera, v_image.double())
    ours, our_values = leaves(stage.splats), values.clone().requires_grad_()
    CpuRasterizer().render(ours, our_values, [stage.camera]).values[0].backward(v_image)
    pairs = {name: (getattr(ours, name).grad, getattr(exact, name).grad) for name in GEOMETRY}
    pairs["values"] = (our_values.grad, exact_values.grad)
    errors = {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}
    return errors, float(clear.double().mean())


def extra_memory(benchmark: Benchmark) -> int | None:
    """Return bytes that one forward and gradient on the fixed scene needs beyond its inputs; None where unknown.

    For a process of its own: the peak of resident memory afterwards less what was there before, once a small
    picture has loaded the kernels.
    """
    if not Path("/proc/self/status").exists():
        return None
    stages = Stages(benchmark)
    n, width = stages.plan.fixed
    stage, channels = stages.get(n, width), stages.plan.bar_channels
    small = Stage(stage.splats.select(torch.arange(100)), stage.values[:100], stage.camera.resized(32, 24))
    render_run(small, channels, 2, benchmark.seed)()
    splats, values = leaves(stage.splats), stage.values[:, :channels].contiguous().requires_grad_()
    v_image = picture_gradient(stage.camera, channels, benchmark.seed)
    gc.collect()
    before = _resident("VmRSS")
    with on_threads(2):
        render = CpuRasterizer().render(splats, values, [stage.camera])
        render.values[0].backward(v_image)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Return a size of this process in bytes, as the system names it."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def in_own_process(benchmark: Benchmark) -> int | None:
    """Return `extra_memory` of a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(extra_memory, benchmark).result()


# ------------------------------------------------------------------------------------------------------- the report


class Line(NamedTuple):
    """The fit log seconds = slope log pairs + offset, and its r^2."""

    slope: float
    offset: float
    r2: float


def fit(pairs: Iterable[float], seconds: Iterable[float]) -> Line:
    """Fit by least squares in the logarithms."""
    x, y = np.log(list(pairs)), np.log(list(seconds))
    slope, offset = np.polyfit(x, y, 1)
    rest, spread = ((y - slope * x - offset) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return Line(float(slope), float(offset), 1 - float(rest / spread))


def points_of(rows: list[Row], channels: int) -> list[tuple[float, float]]:
    """Return (pairs, seconds of forward and gradient on one thread) of the rows with so many channels."""
    return [(r.pairs, r.runs[ONE].median("wall")) for r in rows if r.channels == channels and ONE in r.runs]


@dataclass(frozen=True)
class Bar:
    """A figure and the limit that is asked of it; `detail` follows the figure."""

    what: str
    measured: float | None
    limit: float
    at_most: bool = True
    unit: str = ""
    detail: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the cells of its row."""
        asked = f"{'at most' if self.at_most else 'at least'} {self.limit:g}{self.unit}"
        if self.measured is None:
            return self.what, asked, "not measured on this system", "-"
        by = self.measured / self.limit - 1 if self.at_most else 1 - self.measured / self.limit
        verdict = "met" if by <= 0 else f"missed by {100 * by:.3g} %"
        detail = f" ({self.detail})" if self.detail else ""
        return self.what, asked, f"{self.measured:.3g}{self.unit}{detail}", verdict


@dataclass(frozen=True)
class Report:
    """All that was measured."""

    plan: Plan
    name: str
    rows: list[Row]
    fixed: dict[str, Samples]
    small: dict[str, Samples]
    peers: list[Peer]
    errors: dict[str, float]
    clear: float
    memory: int | None
    lines: dict[int, Line]

    def bars(self) -> list[Bar]:
        """Return the bars."""
        one, two, channels = self.fixed[ONE], self.fixed[TWO], self.plan.bar_channels
        fixed, small, exact = (
            f"{n:,} Gaussians, {width} x {width * 3 // 4}"
            for n, width in (self.plan.fixed, self.plan.small, self.plan.exact)
        )
        reference, without, tiles = (peer.over for peer in self.peers)
        cpu = f"two threads; best {two.best('cpu'):.3g}; one thread {one.median('cpu'):.3g}"
        wall, best = self.small[TWO].median("wall"), self.small[TWO].best("wall")
        memory = None if self.memory is None else self.memory / 1e6
        worst = max(self.errors, key=lambda name: self.errors[name])
        steepest = max(self.lines, key=lambda d: self.lines[d].slope)
        some = ratio(self.fixed[SOME], two, under="forward")
        return [
            Bar(
                f"{fixed}, {channels} channels: forward + gradient, CPU", two.median("cpu"), 0.35, unit=" s", detail=cpu
            ),
            Bar("- gsplat's torch reference over it", reference, 50, False, detail=f"{without:.3g} without its loop"),
            Bar("- tiles as torch tensors over it", tiles, 20, False),
            Bar("- two threads over one", ratio(one, two), 1.8, False),
            Bar("- memory beyond the inputs", memory, 250, unit=" MB"),
            Bar(f"- weights of {SHARE:.0%} of the pixels over its forward pass", some, 0.35),
            Bar(f"{small}: forward + gradient, wall clock", wall, 0.09, unit=" s", detail=f"best {best:.3g}"),
            Bar(f"{exact}: gradients from float64, of the largest entry", self.errors[worst], 1e-5, detail=worst),
            Bar("slope of log seconds by log pairs", self.lines[steepest].slope, 1.1, detail=f"{steepest} channels"),
        ]

    def markdown(self, plot: str) -> str:
        """Return the part of the file between the markers."""
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numba", "gsplat"))
        entries: dict[int, list[str]] = {}
        for row in self.rows:
            if row.channels == self.plan.channels[0]:
                entries.setdefault(row.n, []).append(f"{row.entries:.0f}")
        counts = "; ".join(f"{n:,}: {', '.join(found)}" for n, found in entries.items())
        slopes = "; ".join(f"{d} channels: {s.slope:.3f} (r² {s.r2:.3f})" for d, s in self.lines.items())
        parts = [
            f"{self.name}, rendered on one and on two threads of {_cores()} cores; {versions}. Times are the median of"
            " the rounds, the best in brackets; a gradient is given to the picture, and comes back to means,"
            " quaternions, scales, opacities and values.",
            *("", *table(("what", "asked", "measured", ""), [bar.cells() for bar in self.bars()]), ""),
            f"Gradients from float64: {', '.join(f'{name} {error:.1e}' for name, error in self.errors.items())}; of"
            f" the {self.clear:.1%} of the pixels where no decision (alpha at 1/255 or 0.999, transmittance at 1e-4) is"
            " within 1e-4 of going the other way.",
            *("", *table(MAIN, [main_cells(row) for row in self.rows]), ""),
            f"Gaussians blended into a pixel, median, a size each: {counts}. A pair is a Gaussian and a tile of 16 x 16"
            " pixels that it meets. Weights are those of random pixels, on two threads, over the row's forward pass.",
            *("", *table(PEERS, self.peer_cells()), ""),
            f"{self.plan.fixed[0]:,} Gaussians, {self.plan.fixed[1]} wide, {self.plan.bar_channels} channels, two"
            " threads, each peer measured once. Both blend with the same rules in float32 and leave gradients to"
            " autograd. gsplat's reference is `gsplat.cuda._torch_impl`, its two helpers that need CUDA replaced (equal"
            " depths come in any order); the other cuts the lists of its tiles as exactly as cgc does, and blends tiles"
            " of similar length together.",
            "",
            f"Slope of log seconds (forward + gradient, one thread) by log pairs: {slopes}.",
            "",
            f"![Seconds of forward and gradient against pairs]({plot})",
        ]
        return "\n".join(parts)

    def peer_cells(self) -> list[tuple[str, ...]]:
        """Return the rows of the peers' table."""
        rows = []
        for peer in self.peers:
            wall, cpu = peer.ours.median("wall"), peer.ours.median("cpu")
            seconds = f"{peer.wall:.2f}", f"{peer.cpu:.2f}", f"{wall:.3f}", f"{cpu:.3f}"
            rows.append((peer.name, *seconds, f"{peer.over:.0f}", f"{peer.cpu / cpu:.0f}", f"{peer.off:.0e}"))
        return rows


MAIN = (
    "Gaussians", "size", "channels", "pairs", "forward, ms, 2 threads", "forward + gradient, ms, 1 thread",
    "forward + gradient, ms, 2 threads", "1 over 2", f"weights of {SHARE:.0%}", "weights of all",
)  # fmt: skip
PEERS = ("renderer", "s", "CPU s", "cgc, s", "cgc, CPU s", "ratio", "ratio, CPU", "largest difference of the picture")


def main_cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row of the main table."""
    size = (f"{row.n:,}", f"{row.camera.width} x {row.camera.height}", f"{row.channels}", f"{row.pairs:,}")
    if TWO not in row.runs:
        return *size, f"left out: needs {row.needs / 1e9:.0f} GB", *[""] * 5
    one, two = row.runs[ONE], row.runs[TWO]
    weights = [f"{ratio(row.runs[k], two, under='forward'):.2f}" if k in row.runs else "left out" for k in (SOME, ALL)]
    return *size, two.shown("forward"), one.shown("wall"), two.shown("wall"), f"{ratio(one, two):.2f}", *weights


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plot_svg(series: Mapping[int, list[tuple[float, float]]], lines: Mapping[int, Line]) -> str:
    """Draw points (pairs, seconds) and the fitted lines, both axes logarithmic, a colour for every channel count."""
    width, height, left, top, right, bottom = 640, 400, 70, 20, 20, 50
    found = np.log10([point for points in series.values() for point in points])
    low, high = found.min(0) - 0.15, found.max(0) + 0.15

    def place(x: float, y: float) -> tuple[float, float]:
        u, v = (np.log10([x, y]) - low) / (high - low)
        return left + u * (width - left - right), height - bottom - v * (height - top - bottom)

    def path(x: float, y: float, to: str, color: str) -> str:
        return f'<path d="M{x:.1f} {y:.1f}{to}" stroke="{color}" fill="none"/>'

    def text(words: str, how: str) -> str:
        return f"<text {how}>{words}</text>"

    drawn = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for value in _ticks(low[0], high[0]):
        x, y = place(value, 10 ** low[1])
        drawn.append(path(x, y, f"V{top}", "#ddd"))
        drawn.append(text(f"{value:,.0f}", f'x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle"'))
    for value in _ticks(low[1], high[1]):
        x, y = place(10 ** low[0], value)
        drawn.append(path(x, y, f"H{width - right}", "#ddd"))
        drawn.append(text(f"{value:g}", f'x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end"'))
    for index, (channels, points) in enumerate(series.items()):
        color, line = ("#1f6fb4", "#d1600a")[index % 2], lines[channels]
        ends = (min(points)[0], max(points)[0])
        start, stop = (place(p, math.exp(line.offset + line.slope * math.log(p))) for p in ends)
        drawn.append(path(*start, f"L{stop[0]:.1f} {stop[1]:.1f}", color))
        spots = (place(*point) for point in points)
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in spots]
        words = f"{channels} channels: slope {line.slope:.2f}, r² {line.r2:.3f}"
        drawn.append(text(words, f'x="{left + 12}" y="{top + 18 * (index + 1)}" fill="{color}"'))
    drawn.append(text("pairs (Gaussian, tile)", f'x="{width / 2}" y="{height - 12}" text-anchor="middle"'))
    turned = f'transform="translate(18 {height / 2}) rotate(-90)" text-anchor="middle"'
    drawn.append(text("seconds, forward + gradient, one thread", turned))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'  # noqa: E501
    return "\n".join([head, *drawn, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times a power of ten between 10^low and 10^high."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= math.log10(m * 10.0**p) <= high]


def with_part(text: str, part: str) -> str:
    """Return `text` with the part between the markers replaced; without them they take the place of HEADING's text."""
    marked = f"{BEGIN}\n{part}\n{END}"
    if BEGIN in text and END in text:
        return text[: text.index(BEGIN)] + marked + text[text.index(END) + len(END) :]
    found = re.search(rf"^{HEADING}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise InputError(f"the file has neither {BEGIN} nor a section {HEADING!r}; add one of them where the part goes")
    before, after = text[: found.start()], text[found.end() :]
    return f"{before}{HEADING}\n\n    python tools/benchmark_rasterize.py --write docs/benchmarks.md\n\n{marked}\n" + (
        f"\n{after}" if after else ""
    )


def measure(benchmark: Benchmark) -> Report:
    """Measure everything."""
    stages, seed = Stages(benchmark), benchmark.seed
    plan = stages.plan
    rows = []
    for n in plan.gaussians:
        for width in plan.widths:
            say(f"{n:,} Gaussians, {width} x {width * 3 // 4}")
            rows += measure_size(stages.get(n, width), plan, seed)
    say("the bars")
    fixed, small = (measure_bars(stages.get(*size), plan, seed) for size in (plan.fixed, plan.small))
    errors, clear = gradient_errors(stages.get(*plan.exact), plan.bar_channels, seed)
    memory = in_own_process(benchmark)
    say("the peers")
    peers = measure_peers(stages.get(*plan.fixed), plan.bar_channels, seed)
    lines = {d: fit(*zip(*points_of(rows, d))) for d in plan.plotted}
    name = "A fixed scene" if benchmark.scene else f"A generated scene (seed {seed})"
    if benchmark.quick:
        name = f"A quick run, not at the bars' sizes: {name[0].lower()}{name[1:]}"
    return Report(plan, name, rows, fixed, small, peers, errors, clear, memory, lines)


def measure_bars(stage: Stage, plan: Plan, seed: int) -> dict[str, Samples]:
    """Measure forward and gradient on one and two threads, and the weights of some pixels, in turn."""
    runs = {workers: render_run(stage, plan.bar_channels, workers, seed) for workers in (1, 2)}
    return in_turn({ONE: runs[1], TWO: runs[2], SOME: weights_run(stage, SHARE, 2, seed)}, plan.seconds)


def say(words: str) -> None:
    """Tell what is being measured, apart from the tables."""
    print(words, file=sys.stderr, flush=True)


def main(benchmark: Benchmark) -> None:
    """Measure, and write or print the tables."""
    if benchmark.write is None:
        print(measure(benchmark).markdown("rasteriser.svg"))
        return
    if not benchmark.write.is_file():
        raise InputError(f"{benchmark.write} is missing: --write expects a Markdown file with a section {HEADING!r}")
    text = benchmark.write.read_text(encoding="utf-8")
    with_part(text, "")  # refuses a file before the measuring, not after
    report = measure(benchmark)
    series = {d: points_of(report.rows, d) for d in report.plan.plotted}
    write_text(benchmark.write.with_name("rasteriser.svg"), plot_svg(series, report.lines))
    write_text(benchmark.write, with_part(text, report.markdown("rasteriser.svg")))


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
