"""Measure masks whose borders follow the photos: `python tools/benchmark_edges.py data/demo runs/demo runs/demo_200`.

The first folder is a scene with truth, the others are runs of it, which may have seen smaller photos
(`cgc run data/demo --max-side 200`). Prints of each the scores of the masks that `cgc export --format masks` writes, of
all views, with `--edges splats` and `--edges photos`: things mIoU, boundary IoU, how many things have 0.9; and seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

import cgc
from cgc.evaluation.instances import score_instances
from cgc.evaluation.truth import read_truth
from cgc.scene.types import picture_names
from cgc.segmentation.export import job_of


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    scene: Annotated[Positional[Path], tyro.conf.arg(metavar="SCENE")]
    """A scene with instance/ and instances.json."""
    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Runs of it."""


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    print("| run | pictures | edges | mIoU | bIoU | things of 0.9 | s a view |")
    print("|" + "---|" * 7)
    for path in benchmark.runs:
        scene = cgc.load(path)
        plain, followed = job_of(scene, edges="splats"), job_of(scene, edges="photos")
        camera = plain.views[0].camera
        truth = read_truth(benchmark.scene, picture_names([view.name for view in plain.views]))
        _ = plain.shown_maps, followed.shown_maps, next(followed.id_maps_of_photos())  # drawn, and its kernel compiled
        for name, job in (("splats", plain), ("photos", followed)):
            start = time.perf_counter()
            maps = list(job.id_maps_of_photos())
            spent = (time.perf_counter() - start) / len(maps)
            scores = score_instances(truth.maps, maps, truth.stuff_ids)
            good = f"{sum(row.iou >= 0.9 for row in scores.rows)} of {len(scores.rows)}"
            cells = [path.name, f"{camera.width} x {camera.height}", name]
            cells += [f"{scores.miou_things:.4f}", f"{scores.boundary_iou:.4f}", good, f"{spent:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
