"""Measure what the first points of a training are worth: `python tools/benchmark_points.py runs/demo`.

Trains a preset from the model's points, and from points of the true surfaces (the scene's points.npz) in their place or
beside them. Prints the ceiling (things mIoU and boundary IoU over the test views of labels voted from the true maps of
the training views), PSNR over test and training views, and CPU seconds. `--kinds` says which first points:

    model          the model's own
    true           --count of all surfaces, in their place
    noise:0.03     the same, off by so much in every direction (standard deviation, world units)
    things, stuff  the model's, and 10,000 of things, or 20,000 of walls, floor and table
    backdrop:0     the model's, and no Gaussians far away (or in so many directions)

Kinds but the first and the last need points.npz; scenes without truth have no ceiling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from benchmark_sharpen import scored, true_maps, voted
from tyro.conf import Positional

from cgc.appearance.trainer import train
from cgc.errors import InputError
from cgc.pipeline.workspace import Workspace
from cgc.presets import TRAIN_PRESETS
from cgc.run_folder import open_run
from cgc.scene.images import load_image
from cgc.scene.types import Scene
from cgc.segmentation.sharpen import mean_psnr

BESIDE = {"things": 10_000, "stuff": 20_000}
"""Points that are added to the model's."""


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run; only its scene counts."""
    kinds: tuple[str, ...] = ("model", "true", "noise:0.01", "noise:0.03", "things", "stuff")
    """Which first points."""
    preset: str = "short"
    """The training's."""
    count: int = 25_000
    """True points in place of the model's."""
    seed: int = 0
    """The training's."""


def with_points(scene: Scene, kind: str, count: int, stuff_ids: set[int] | frozenset[int]) -> Scene:
    """Return the scene with other first points."""
    name, _, size = kind.partition(":")
    if name in ("model", "backdrop"):
        return scene
    if name not in ("true", "noise", *BESIDE):
        raise InputError(
            f"there are no first points {kind!r}; choose model, true, noise:SIZE, things, stuff or backdrop:COUNT"
        )
    with np.load(scene.root / "points.npz") as held:
        xyz, rgb, instance = held["xyz"], held["rgb"], held["instance"]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(xyz))
    if name in BESIDE:
        wanted = np.isin(instance, list(stuff_ids)) == (name == "stuff")
        order = order[wanted[order]][: BESIDE[name]]
        points = np.concatenate([xyz[order], scene.points])
        return replace(scene, points=points, point_colors=np.concatenate([rgb[order], scene.point_colors]))
    order = order[:count]
    off = rng.normal(size=(len(order), 3)) * float(size) if name == "noise" else 0.0
    return replace(scene, points=xyz[order] + off, point_colors=rgb[order])


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    work = Workspace(open_run(benchmark.run), quiet=True)
    preset = replace(TRAIN_PRESETS[benchmark.preset], seed=benchmark.seed)
    maps = true_maps(work) if work.truth else {}
    print("| first points | they are | ceiling mIoU | bIoU | test PSNR | train PSNR | CPU s |")
    print("|" + "---|" * 7)
    for kind in benchmark.kinds:
        scene = with_points(work.scene, kind, benchmark.count, work.truth.stuff_ids if work.truth else frozenset())
        far = kind.partition(":")[2] if kind.startswith("backdrop:") else preset.backdrop
        settings = replace(preset, backdrop=int(far))
        start, every = time.process_time(), work.run.settings.scene.test_every
        splats, _ = train(scene, load_image, work.rasterizer, settings, test_every=every, quiet=True)
        spent = time.process_time() - start
        ceiling = scored(work, splats, voted(work, splats, maps)) if work.truth else ["-", "-"]
        cells = [kind, f"{len(scene.points):,}", *ceiling]
        for views in (work.test_views, work.train_views):
            cells.append(f"{mean_psnr(splats, scene, views, load_image, work.rasterizer, work.background):.2f}")
        print("| " + " | ".join([*cells, f"{spent:.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
