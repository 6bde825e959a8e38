"""Measure every stage on a graphics card: `python tools/benchmark_gpu.py --write docs/benchmarks.md`.

1. Rasterising, forwards and backwards, by this project's adapter and by gsplat called directly, in turn.
2. Features of a generated scene from masks whose ids differ from view to view: weights, learning, clustering,
   propagation and id maps, each with its seconds and peak memory; and the same features learned by rasterising them in
   every step. Both are scored on views held back.
3. The same for the splats of finished runs (`--runs`).
4. A trace of learning, for chrome://tracing, and the share of its time in which the device works.

The scene is that of benchmark_features.py. `--device cpu` with small numbers tries the script where there is no card:

    python tools/benchmark_gpu.py --device cpu --gaussians 3000 --features 3000 --views 6 --width 160 --steps 20
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import benchmark_features
import numpy as np
import torch
import tyro
from benchmark_features import make_scene
from learn_rasterised import learn_by_rasterising
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cgc.clustering.cluster import Space, cluster
from cgc.clustering.columns import mask_columns
from cgc.device import choose, rasterizer_for
from cgc.evaluation.instances import score_instances
from cgc.features.frozen import learn_features, nearest_neighbours, smooth_features
from cgc.features.samples import held, sample_batches, visible_mass
from cgc.files import write_text
from cgc.masks.id_maps import MaskSet
from cgc.pipeline.workspace import Workspace
from cgc.rasterize.base import Rasterizer
from cgc.run_folder import open_run
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels
from cgc.settings import ClusterSettings, LiftSettings
from cgc.splats.types import Splats
from cgc.system import peak_rss_bytes

BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
TEST_EVERY = 8  # views held back of a generated scene
PICTURE = (800, 600)
WARM = 2  # runs before the first that counts


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    gaussians: tuple[int, ...] = (100_000, 1_000_000, 5_000_000)
    """Numbers of Gaussians that are rasterised."""
    channels: tuple[int, ...] = (3, 16, 19)
    """Numbers of channels that are rasterised."""
    features: int = 1_000_000
    """Gaussians that features are learned on; 0: none."""
    views: int = 200
    """Views of the generated scene."""
    width: int = 1000
    """Width of its pictures in pixels; the height is three quarters of it."""
    steps: int = LiftSettings.steps
    """Steps of learning."""
    repeats: int = 20
    """Passes of rasterising, by the adapter and directly in turn; the median counts."""
    runs: tuple[Path, ...] = ()
    """Finished runs whose features are learned once more."""
    device: str = "cuda"
    """cuda, cuda:1 or cpu."""
    trace: Path | None = None
    """Where the trace of learning goes."""
    write: Path | None = None
    """Write the tables into this document, between its marks, in place of printing them."""
    seed: int = 0
    """Seed of scene, learning and clustering."""


@dataclass
class Stages:
    """Seconds and peak bytes of named stages on a device."""

    device: torch.device
    rows: dict[str, tuple[float, int]] = field(default_factory=dict)

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do some work, and note what it took."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = now(self.device)
        result = work()
        self.rows[name] = now(self.device) - start, peak_bytes(self.device)
        print(f"  {name}: {self.rows[name][0]:.3g} s, {self.rows[name][1] / 1e9:.2f} GB", flush=True)
        return result

    def table(self) -> list[str]:
        """The rows as Markdown."""
        lines = ["| stage | seconds | peak, GB |", "|---|---|---|"]
        return lines + [f"| {name} | {s:.3g} | {b / 1e9:.2f} |" for name, (s, b) in self.rows.items()]


def now(device: torch.device) -> float:
    """Return the time once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a card since the last reset, or this process so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()


def median_seconds(device: torch.device, repeats: int, *works: Callable[[], Any]) -> list[float]:
    """Return the median seconds of each of some works, done in turn."""
    taken: list[list[float]] = [[] for _ in works]
    for k in range(WARM + repeats):
        for work, seconds in zip(works, taken):
            start = now(device)
            work()
            if k >= WARM:
                seconds.append(now(device) - start)
    return [float(np.median(seconds)) for seconds in taken]


# --- rasterising ----------------------------------------------------------------------------------------------


def rasterise_directly(splats: Splats, values: Tensor, camera: Camera) -> Tensor:
    """Render values [N, D] by gsplat alone, [H, W, D], as a user of it would."""
    from gsplat import rasterization

    picture, _, _ = rasterization(
        splats.means, splats.quats, splats.scales, splats.opacities, values, camera.viewmat[None], camera.K[None],
        camera.width, camera.height, packed=False,
    )  # fmt: skip
    return picture[0]


def measure_rasterising(n: int, channels: int, benchmark: Benchmark, device: torch.device, by: Rasterizer) -> list[str]:
    """Return a row: milliseconds forwards, and forwards with backwards, by the adapter and directly."""
    scene = benchmark_features.Benchmark(views=1, seed=benchmark.seed)
    splats, cameras = make_scene(n, benchmark.width, scene)
    splats, camera = splats.to(device), cameras[0].to(device)
    generator = torch.Generator().manual_seed(benchmark.seed)
    values = torch.rand(n, channels, generator=generator).to(device)
    slope = torch.randn(camera.height, camera.width, channels, generator=generator).to(device)
    learned = [t.requires_grad_() for t in (splats.means, splats.quats, splats.log_scales, splats.logit_opacities)]
    learned.append(values.requires_grad_())

    def adapted() -> Tensor:
        return by.render(splats, values, [camera]).values[0]

    def directly() -> Tensor:
        return rasterise_directly(splats, values, camera)

    def backwards(render: Callable[[], Tensor]) -> None:
        torch.autograd.grad((render() * slope).sum(), learned)

    works: list[Callable[[], Any]] = [adapted, lambda: backwards(adapted)]
    if device.type == "cuda":
        works += [directly, lambda: backwards(directly)]
        same = float((adapted() - directly()).detach().abs().max())
    else:
        same = math.nan
    taken = [1e3 * s for s in median_seconds(device, benchmark.repeats, *works)]
    taken += [math.nan] * (4 - len(taken))
    forward, both, forward_directly, both_directly = taken
    cells = [
        f"{n:,}",
        str(channels),
        f"{forward:.2f}",
        f"{forward_directly:.2f}",
        f"{both:.2f}",
        f"{both_directly:.2f}",
    ]
    cells += [f"{100 * (both / both_directly - 1):+.1f} %", f"{same:.1e}"]
    print("  " + ", ".join(cells), flush=True)
    return cells


# --- features, clusters, pictures -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Splats with cameras and the id maps to learn from; and the truth of the views held back, where it is known."""

    splats: Splats
    cameras: list[Camera]
    id_maps: list[np.ndarray | None]
    extent: float
    truth: dict[int, np.ndarray] = field(default_factory=dict)
    stuff: frozenset[int] = frozenset()


def generated_case(benchmark: Benchmark, device: torch.device, rasterizer: Rasterizer) -> Case:
    """The generated scene, its masks the cells of a grid, whose ids are others in every view."""
    scene = benchmark_features.Benchmark(views=benchmark.views, seed=benchmark.seed)
    splats, cameras = make_scene(benchmark.features, benchmark.width, scene)
    cell = ((splats.means[:, :2] + 1) / 2 * scene.cells).long().clamp(0, scene.cells - 1)
    labels = (1 + cell[:, 0] * scene.cells + cell[:, 1]).int().numpy()
    splats, cameras = splats.to(device), [camera.to(device) for camera in cameras]
    generator = np.random.default_rng(benchmark.seed)
    id_maps: list[np.ndarray | None] = []
    truth: dict[int, np.ndarray] = {}
    for view, camera in enumerate(cameras):
        ids = render_labels(splats, labels, camera, rasterizer).ids
        others = np.append(0, 1 + generator.permutation(scene.cells**2)).astype(np.int32)
        held_back = view % TEST_EVERY == 0
        id_maps.append(None if held_back else others[ids])
        if held_back:
            truth[view] = ids
    return Case(splats, cameras, id_maps, 2.0, truth)


def run_case(path: Path, device: torch.device) -> tuple[Case, LiftSettings, ClusterSettings]:
    """What a finished run was made from."""
    work = Workspace(open_run(path), quiet=True)
    masks: MaskSet = work.masks
    train = set(work.train_views)
    id_maps = [masks.load(i) if i in train else None for i in range(len(work.scene.views))]
    cameras = [view.camera.to(device) for view in work.scene.views]
    truth = dict(zip(work.test_views, work.truth.maps)) if work.truth else {}
    stuff = work.truth.stuff_ids if work.truth else frozenset()
    case = Case(work.splats.to(device), cameras, id_maps, work.scene.extent, truth, frozenset(stuff))
    return case, work.run.settings.lift, work.run.settings.cluster


def score(case: Case, labels: np.ndarray, rasterizer: Rasterizer) -> float:
    """Return the things mIoU of labels [N] in the views held back; NaN without truth."""
    if not case.truth:
        return math.nan
    maps = [render_labels(case.splats, labels, case.cameras[i], rasterizer).ids for i in case.truth]
    return score_instances(list(case.truth.values()), maps, case.stuff).miou_things


def measure_features(
    case: Case, lift: LiftSettings, clusters: ClusterSettings, device: torch.device, rasterizer: Rasterizer
) -> list[str]:
    """Return a table of the stages from splats and masks to id maps, and what came out."""
    stages, n = Stages(device), len(case.splats)
    near = stages.run("neighbours", lambda: nearest_neighbours(case.splats.means, lift.neighbours))
    batches = stages.run(
        "weights of sampled pixels",
        lambda: sample_batches(case.splats, case.cameras, case.id_maps, rasterizer, lift, quiet=True),
    )
    learned = stages.run("learning", lambda: learn_features(batches, near, lift, quiet=True))
    mass = stages.run("visible mass", lambda: visible_mass(batches, n))
    smooth = stages.run("smoothing", lambda: smooth_features(learned, near, mass))
    columns = stages.run("masks' columns", lambda: mask_columns(held(batches), n))
    space = Space.of(case.splats, case.extent, near)
    found = stages.run("clustering and propagation", lambda: cluster(smooth, mass, columns, clusters, space=space))
    picture = case.cameras[0].resized(*PICTURE)
    render_labels(case.splats, found.labels, picture, rasterizer)
    stages.run(
        f"an id map of {PICTURE[0]} x {PICTURE[1]}",
        lambda: render_labels(case.splats, found.labels, picture, rasterizer),
    )
    slow = stages.run(
        "learning by rasterising in every step",
        lambda: learn_by_rasterising(case.splats, case.cameras, held(batches), near, rasterizer, lift),
    )
    again = cluster(smooth_features(slow, near, mass), mass, columns, clusters, space=space)
    seconds = {name: s for name, (s, _) in stages.rows.items()}
    ours = sum(seconds[k] for k in ("neighbours", "weights of sampled pixels", "learning", "smoothing"))
    rasterised = seconds["learning by rasterising in every step"]
    scores = [score(case, labels, rasterizer) for labels in (found.labels, again.labels)]
    text = (
        f"{n:,} Gaussians, {sum(m is not None for m in case.id_maps)} views with masks, {lift.steps} steps. Features "
        f"with everything they need: {ours:.2f} s; learning alone is {rasterised / seconds['learning']:.0f} times as "
        f"fast as by rasterising, with all that {rasterised / ours:.1f} times. Things mIoU {scores[0]:.3f}, and "
        f"{scores[1]:.3f} from the rasterised features."
    )
    return [*stages.table(), "", text]


def trace_learning(case: Case, lift: LiftSettings, path: Path, device: torch.device, rasterizer: Rasterizer) -> str:
    """Write a trace of learning; return the share of its time in which the device works."""
    near = nearest_neighbours(case.splats.means, lift.neighbours)
    batches = sample_batches(case.splats, case.cameras, case.id_maps, rasterizer, lift, quiet=True)
    learn_features(batches, near, replace(lift, steps=WARM), quiet=True)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as seen:
        start = now(device)
        learn_features(batches, near, lift, quiet=True)
        seconds = now(device) - start
    seen.export_chrome_trace(str(path))
    of_device = [e for e in seen.events() or () if e.device_type.name == device.type.upper()]
    spans = [(e.time_range.start, e.time_range.end) for e in of_device]
    return f"{lift.steps} steps in {seconds:.2f} s, the device busy for {busy_share(spans, seconds):.0%}: {path}"


def busy_share(spans: Sequence[tuple[float, float]], seconds: float) -> float:
    """Return the share of `seconds` in which one of the spans (microseconds) runs."""
    busy, end = 0.0, -math.inf
    for a, b in sorted(spans):
        busy += max(b - max(a, end), 0.0)
        end = max(end, b)
    return busy / 1e6 / seconds


def main(benchmark: Benchmark) -> None:
    """Print Markdown, or write it."""
    device, why = choose(benchmark.device)
    rasterizer = rasterizer_for(device)
    lines = [f"{why}; torch {torch.__version__}, CUDA {torch.version.cuda}. `python tools/benchmark_gpu.py`", ""]
    print(lines[0], flush=True)
    lines += [
        "| Gaussians | channels | forwards, ms | gsplat | and backwards, ms | gsplat | overhead | difference at most |",
        "|---" * 8 + "|",
    ]
    for n in benchmark.gaussians:
        for channels in benchmark.channels:
            cells = measure_rasterising(n, channels, benchmark, device, rasterizer)
            lines.append("| " + " | ".join(cells) + " |")
    lift = LiftSettings(steps=benchmark.steps, seed=benchmark.seed)
    cases: list[tuple[str, Callable[[], tuple[Case, LiftSettings, ClusterSettings]]]] = []
    if benchmark.features:
        clusters = ClusterSettings(seed=benchmark.seed)
        cases.append(("generated", lambda: (generated_case(benchmark, device, rasterizer), lift, clusters)))
    cases += [(run.name, lambda run=run: run_case(run, device)) for run in benchmark.runs]
    for name, make in cases:
        print(name, flush=True)
        case, of_lift, of_clusters = make()
        lines += ["", f"`{name}`", "", *measure_features(case, of_lift, of_clusters, device, rasterizer)]
        if benchmark.trace and name == cases[0][0]:
            lines += ["", trace_learning(case, of_lift, benchmark.trace, device, rasterizer)]
    if benchmark.write:
        before, rest = benchmark.write.read_text().split(BEGIN)
        write_text(benchmark.write, before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])
    else:
        print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
