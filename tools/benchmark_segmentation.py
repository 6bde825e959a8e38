"""Compare ways to segment the splats of finished runs with truth, all of them on the same splats.

    python tools/benchmark_segmentation.py runs/demo runs/tabletop --paper runs/demo_paper runs/tabletop_paper \\
        --write docs/benchmarks.md

Prints for each run, over its test views and several seeds: things mIoU, boundary IoU, panoptic quality and promptable
IoU (one click in one view, scored in the others), as mean and spread; and the seconds of learning and clustering. The
ceiling are labels voted through W^T from the true maps of the training views; `vote` takes the masks' ids for
consistent, which they are not. The paper's rows are finished runs of the preset `paper`, which trains splats of its own
(`cgc run SCENE --preset paper`) or takes the same ones (`--splats`). "The same features by rasterising them" are
learned in as many steps from the same pixels and losses, with the views rasterised in every step (one seed).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from learn_rasterised import learn_by_rasterising
from tyro.conf import Positional

from cgc.clustering.cluster import Clustering, Space, cluster, cluster_ids, cluster_masks
from cgc.clustering.columns import mask_columns
from cgc.evaluation.instances import score_instances
from cgc.evaluation.prompts import score_prompts
from cgc.evaluation.truth import read_truth
from cgc.features.frozen import learn_features, smooth_features
from cgc.features.lifting import vote_ids
from cgc.features.samples import held, visible_mass
from cgc.files import write_text
from cgc.masks.id_maps import read_id_map
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import open_run
from cgc.segmentation.labels import render_labels

PLOT = "segmentation.svg"
ALWAYS = ("without the last vote",)
MEASURES = ("things mIoU", "boundary IoU", "PQ", "one click")
BEGIN, END = "<!-- segmentation: begin -->", "<!-- segmentation: end -->"


@dataclass(frozen=True)
class Benchmark:
    """What is compared."""

    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Finished runs of scenes with truth."""
    paper: tuple[Path, ...] = ()
    """Finished runs of the preset `paper` on the same scenes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of learning and clustering."""
    ablations: bool = True
    """Measure what leaving each part out costs, and the same features by rasterising them; else the last vote alone."""
    write: Path | None = None
    """Write the tables into this document, between its marks, in place of printing them."""


@dataclass
class Rows:
    """The scores of each method, a list with one entry a seed, and its seconds."""

    scores: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, scores: tuple[float, ...], seconds: float) -> None:
        """Note what a method reached with one seed."""
        self.scores.setdefault(name, []).append(scores)
        self.seconds.setdefault(name, []).append(seconds)
        print(f"  {name}: " + ", ".join(f"{m} {s:.3f}" for m, s in zip(MEASURES, scores)), flush=True)

    def table(self) -> list[str]:
        """The rows as Markdown."""
        lines = ["| method | " + " | ".join(MEASURES) + " | s |", "|---|" + "---|" * (len(MEASURES) + 1)]
        for name, values in self.scores.items():
            mean, low, high = (f(np.array(values), axis=0) for f in (np.mean, np.min, np.max))
            cells = [
                f"{m:.3f}" + (f" ({a:.3f} to {b:.3f})" if len(values) > 1 else "") for m, a, b in zip(mean, low, high)
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {np.mean(self.seconds[name]):.1f} |")
        return lines


def score(work: Workspace, maps: Mapping[int, np.ndarray]) -> tuple[float, ...]:
    """Score id maps of the test views: MEASURES."""
    assert work.truth is not None
    predicted = [maps[i] for i in work.test_views]
    s = score_instances(work.truth.maps, predicted, work.truth.stuff_ids)
    clicks = score_prompts(work.truth.maps, {None: predicted}, left_out=work.truth.stuff_ids)
    return s.miou_things, s.boundary_iou, s.pq, clicks.miou(None)


def score_labels(work: Workspace, labels: np.ndarray) -> tuple[float, ...]:
    """Score labels [N] by the id maps they render to."""
    cameras = {i: work.scene.views[i].camera for i in work.test_views}
    return score(work, {i: render_labels(work.splats, labels, c, work.rasterizer).ids for i, c in cameras.items()})


def compare(run: Path, seeds: tuple[int, ...], with_ablations: bool = True) -> Rows:
    """Score every method on the splats of a run."""
    work, rows = Workspace(open_run(run), quiet=True), Rows()
    settings, cameras = work.run.settings, [view.camera for view in work.scene.views]

    def add(name: str, make: Callable[[], Clustering], before: float = 0.0) -> None:
        start = time.perf_counter()
        labels = make().labels
        rows.add(name, score_labels(work, labels), before + time.perf_counter() - start)

    def vote(maps: Mapping[int, np.ndarray]) -> Clustering:
        return cluster_ids(*vote_ids(work.splats, cameras, maps, work.rasterizer, 0.005, quiet=True))

    truth = read_truth(Path(work.run.source.scene), [work.scene.views[i].stem for i in work.train_views])
    exact = dict(zip(work.train_views, truth.maps))
    add("ceiling: true maps", lambda: vote(exact))
    add("vote: masks' own ids", lambda: vote(work.train_id_maps()))
    n, mass = len(work.splats), visible_mass(work.batches, len(work.splats))
    space = Space.of(work.splats, work.scene.extent, work.neighbours)
    for seed in seeds:
        work.__dict__.pop("batches", None)
        base, start = replace(settings.cluster, seed=seed), time.perf_counter()
        _ = work.batches
        sampling = time.perf_counter() - start
        features = learn_features(work.batches, work.neighbours, replace(settings.lift, seed=seed), quiet=True)
        smooth, columns = smooth_features(features, work.neighbours, mass), mask_columns(held(work.batches), n)
        learning = time.perf_counter() - start

        def ours(features=smooth, columns=columns, base=base, changed_space=space, **changed: Any) -> Clustering:
            return cluster(features, mass, columns, replace(base, **changed), space=changed_space, looks=work.looks)

        add("**ours**", ours, learning)
        add(
            "mask graph, no features",
            lambda c=columns, b=base: cluster_masks(mass, c, b, space=space, looks=work.looks),
        )
        ablations: dict[str, dict[str, Any]] = {
            "without joining (HDBSCAN and the vote)": {"join": False},
            "nor the vote": {"join": False, "revote": 0},
            "without the last vote": {"settle": False},
            "raw features": {"features": features},
            "pieces and segments anywhere in space": {"changed_space": None},
            "200 pieces": {"pieces": 200},
            "800 pieces": {"pieces": 800, "samples": 24_000},
            "level 0.3": {"level": 0.3},
            "level 0.4": {"level": 0.4},
        }
        for name, changed in ablations.items():
            if with_ablations or name in ALWAYS:
                add(f"- {name}", lambda o=ours, c=changed: o(**c), learning)
        if seed == seeds[0] and with_ablations:
            start = time.perf_counter()
            learned = learn_by_rasterising(
                work.splats, cameras, held(work.batches), work.neighbours, work.rasterizer,
                replace(settings.lift, seed=seed),
            )  # fmt: skip
            rasterised = smooth_features(learned, work.neighbours, mass)
            took = time.perf_counter() - start
            add("the same features by rasterising them", lambda o=ours, f=rasterised: o(features=f), took)
            rows.notes.append(
                f"Learning in as many steps, seed {seed}: {learning:.1f} s with the sampling of weights, "
                f"{learning - sampling:.1f} s without; {took:.1f} s by rasterising, {took / learning:.0f} times as "
                f"long ({took / max(learning - sampling, 1e-9):.0f} times)."
            )
    return rows


def plot(scenes: Mapping[str, Rows]) -> str:
    """Draw things mIoU of every method as SVG: a bar a scene, with a line from the lowest to the highest seed."""
    names = list(dict.fromkeys(name for rows in scenes.values() for name in rows.scores))
    colors, left, wide, high = ("#3b6fb6", "#d98b2b", "#4a9d5b", "#a64ca6"), 300, 460, 14
    step = high * len(scenes) + 10
    height = step * len(names) + 50
    drawn = []
    for k in range(0, 11, 2):
        x = left + wide * k / 10
        drawn.append(f'<line x1="{x}" y1="30" x2="{x}" y2="{height - 12}" stroke="#ddd"/>')
        drawn.append(f'<text x="{x}" y="{height}" text-anchor="middle">{k / 10:.1f}</text>')
    for j, scene in enumerate(scenes):
        x = left + 110 * j
        drawn.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colors[j % 4]}"/>')
        drawn.append(f'<text x="{x + 15}" y="17">{escape(scene)}</text>')
    for i, name in enumerate(names):
        top = 34 + i * step
        label = escape(name.replace("*", ""))
        drawn.append(f'<text x="{left - 8}" y="{top + high * len(scenes) / 2 + 4}" text-anchor="end">{label}</text>')
        for j, rows in enumerate(scenes.values()):
            if name not in rows.scores:
                continue
            values, y = np.array(rows.scores[name])[:, 0], top + j * high
            low, mean, most = (left + wide * v for v in (values.min(), values.mean(), values.max()))
            drawn.append(
                f'<rect x="{left}" y="{y}" width="{mean - left:.1f}" height="{high - 2}" fill="{colors[j % 4]}"/>'
            )
            drawn.append(f'<line x1="{low:.1f}" y1="{y + 6}" x2="{most:.1f}" y2="{y + 6}" stroke="#222"/>')
            drawn.append(f'<text x="{most + 5:.1f}" y="{y + 10}" font-size="10">{values.mean():.3f}</text>')
    size = f'viewBox="0 0 {left + wide + 50} {height + 8}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
                      '<rect width="100%" height="100%" fill="#fff"/>', *drawn, "</svg>", ""])  # fmt: skip


def score_run(run: Path) -> tuple[float, ...]:
    """Score the id maps that a finished run has rendered."""
    work = Workspace(open_run(run), quiet=True)
    return score(work, {i: read_id_map(run / "masks" / f"{work.picture_names[i]}.png") for i in work.test_views})


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table a scene, or write them."""
    drawn: dict[str, Rows] = {}
    lines = [
        f"Seeds {', '.join(map(str, benchmark.seeds))}: mean (lowest to highest). Seconds: learning and clustering."
    ]
    for run in benchmark.runs:
        print(run, flush=True)
        rows = compare(run, benchmark.seeds, benchmark.ablations)
        done = open_run(run).stats["seconds"]
        rows.add(
            "**ours, sharpened** (the run itself)", score_run(run), sum(done[k] for k in ("lift", "cluster", "sharpen"))
        )
        for other in benchmark.paper:
            same = open_run(other).source.scene_identity() == open_run(run).source.scene_identity()
            if same:
                stats = open_run(other).stats["seconds"]
                splats = "the same splats" if open_run(other).source.splats else "its own splats"
                rows.add(f"preset paper, {splats}", score_run(other), stats.get("lift", 0) + stats["cluster"])
        lines += [
            "",
            f"`{run.name}`, {len(Workspace(open_run(run), quiet=True).splats):,} Gaussians",
            "",
            *rows.table(),
            "",
            *rows.notes,
        ]
        drawn[run.name] = rows
    if benchmark.write:
        write_text(benchmark.write.with_name(PLOT), plot(drawn))
        lines += ["", f"![Things mIoU of every method]({PLOT})"]
        before, rest = benchmark.write.read_text().split(BEGIN)
        write_text(benchmark.write, before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
