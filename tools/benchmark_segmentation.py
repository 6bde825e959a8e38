"""Measure lifting and clustering on a finished run with truth: `python tools/benchmark_segmentation.py runs/demo`.

Prints things mIoU, boundary IoU and panoptic quality over the test views for several seeds, the same splats for all,
and the ceiling: labels voted through W^T from the true maps of the training views.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from scipy.sparse import coo_matrix
from tyro.conf import Positional

from cgc.clustering.cluster import cluster
from cgc.clustering.vote import NOISE
from cgc.evaluation.instances import score_instances
from cgc.evaluation.truth import read_truth
from cgc.features.frozen import learn_features, smooth_features
from cgc.features.samples import visible_mass
from cgc.pipeline import Workspace
from cgc.run_folder import open_run
from cgc.segmentation.labels import render_labels


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A finished run of a scene with truth."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of lifting and clustering."""


def ceiling(work: Workspace) -> np.ndarray:
    """Labels [N] voted by the true maps of the training views."""
    views = [work.scene.views[i] for i in work.train_views]
    truth = read_truth(Path(work.run.source.scene), [v.stem for v in views])
    shape = (len(work.splats), 1 + max(int(m.max()) for m in truth.maps))
    votes = np.zeros(shape, np.float32)
    for view, ids in zip(views, truth.maps):
        w = work.rasterizer.contributions(work.splats, view.camera, min_weight=0.005)
        entries = (w.weights.numpy(), (w.ids.numpy(), ids.ravel()[w.rows.numpy()]))
        votes += coo_matrix(entries, shape=shape).toarray()
    labels = votes.argmax(1).astype(np.int32)
    labels[labels == 0] = NOISE
    return labels


def show(name: str, work: Workspace, labels: np.ndarray) -> None:
    """Print the scores of labels [N] as a row."""
    assert work.truth is not None
    cameras = [work.scene.views[i].camera for i in work.test_views]
    maps = [render_labels(work.splats, labels, camera, work.rasterizer).ids for camera in cameras]
    s = score_instances(work.truth.maps, maps, work.truth.stuff_ids)
    row = (name, f"{s.miou_things:.3f}", f"{s.boundary_iou:.3f}", f"{s.pq:.3f}", int(labels.max()))
    print("| " + " | ".join(str(c) for c in row) + " |", flush=True)


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table."""
    work = Workspace(open_run(benchmark.run), quiet=True)
    settings = work.run.settings
    print("| labels | things mIoU | boundary IoU | PQ | segments |")
    print("|---|---|---|---|---|")
    show("ceiling: true maps", work, ceiling(work))
    mass = visible_mass(work.batches, len(work.splats))
    for seed in benchmark.seeds:
        features = learn_features(work.batches, work.neighbours, replace(settings.lift, seed=seed), quiet=True)
        smooth = smooth_features(features, work.neighbours, mass)
        show(f"seed {seed}", work, cluster(smooth, mass, work.batches, replace(settings.cluster, seed=seed)).labels)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
