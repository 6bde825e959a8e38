"""Measure what sharpening does to a finished run with truth: `python tools/benchmark_sharpen.py runs/demo`.

Prints, before and after: the ceiling (things mIoU and boundary IoU over the test views of labels voted through W^T from
the true maps of the training views), the same scores of the labels as they are, PSNR and seconds. `--labels` says whose
labels the targets come from: the run's own with its masks; those voted by the truth with its masks (what clustering
without a mistake would give); or the true maps themselves in place of masks (an upper bound).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from cgc.clustering.cluster import cluster_ids
from cgc.evaluation.instances import score_instances
from cgc.evaluation.truth import read_truth
from cgc.features.lifting import vote_ids
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import open_run
from cgc.scene.images import load_image
from cgc.segmentation.labels import render_labels
from cgc.segmentation.segments import load_labels
from cgc.segmentation.sharpen import MIN_WEIGHT, mean_psnr, sharpen
from cgc.settings import SharpenSettings
from cgc.splats.types import Splats


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A clustered run of a scene with truth."""
    labels: tuple[Literal["own", "voted", "true"], ...] = ("own", "voted", "true")
    """Where the targets come from."""
    sharpen: SharpenSettings = field(default_factory=SharpenSettings)


def true_maps(work: Workspace) -> dict[int, np.ndarray]:
    """The true id maps of the training views."""
    views = work.train_views
    truth = read_truth(Path(work.run.source.scene), [work.picture_names[i] for i in views])
    return dict(zip(views, truth.maps))


def voted(work: Workspace, splats: Splats, maps: dict[int, np.ndarray]) -> np.ndarray:
    """Labels [N] voted by every pixel of the true maps."""
    cameras = [v.camera for v in work.scene.views]
    return cluster_ids(*vote_ids(splats, cameras, maps, work.rasterizer, MIN_WEIGHT, quiet=True)).labels


def scored(work: Workspace, splats: Splats, labels: np.ndarray) -> list[str]:
    """Things mIoU and boundary IoU of labels over the test views, as cells."""
    assert work.truth is not None
    cameras = [work.scene.views[i].camera for i in work.test_views]
    drawn = [render_labels(splats, labels, camera, work.rasterizer).ids for camera in cameras]
    scores = score_instances(work.truth.maps, drawn, work.truth.stuff_ids)
    return [f"{scores.miou_things:.4f}", f"{scores.boundary_iou:.4f}"]


def show(name: str, work: Workspace, splats: Splats, labels: np.ndarray, maps: dict[int, np.ndarray], s: float) -> None:
    """Print a row."""
    cells = [name, f"{len(splats):,}"]
    for of_splats in (voted(work, splats, maps), labels):
        cells += scored(work, splats, of_splats)
    for views in (work.test_views, work.train_views):
        cells.append(f"{mean_psnr(splats, work.scene, views, load_image, work.rasterizer, work.background):.3f}")
    print("| " + " | ".join([*cells, f"{s:.1f}"]) + " |", flush=True)


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    torch.manual_seed(0)
    work = Workspace(open_run(benchmark.run), quiet=True)
    maps, own = true_maps(work), load_labels(work.run.root)[0]
    print("| targets | Gaussians | ceiling mIoU | bIoU | labels mIoU | bIoU | test PSNR | train PSNR | seconds |")
    print("|" + "---|" * 9)
    show("before", work, work.splats, own, maps, 0.0)
    masks = work.train_id_maps()
    for kind in benchmark.labels:
        labels = own if kind == "own" else voted(work, work.splats, maps)
        start = time.perf_counter()
        found = sharpen(
            work.splats, labels, work.scene, maps if kind == "true" else masks, load_image, work.rasterizer,
            benchmark.sharpen, work.run.settings.train, test_every=work.run.settings.scene.test_every, quiet=True,
        )  # fmt: skip
        show(kind, work, found.splats, found.labels, maps, time.perf_counter() - start)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
