"""The step `cluster`: features, or masks alone, to labels and a hierarchy."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_matrix

from cgc import parallel
from cgc.blocks.steps import Blocks, cluster_blocks
from cgc.clustering.cluster import Clustering, Space, cluster, cluster_ids, cluster_masks
from cgc.clustering.columns import Columns, mask_columns, side_by_side, with_wholes
from cgc.clustering.vote import NOISE
from cgc.errors import InputError
from cgc.features.frozen import smooth_features
from cgc.features.lifting import vote_ids
from cgc.features.samples import held
from cgc.neighbours import nearest_in
from cgc.pipeline.lift import load_features
from cgc.pipeline.workspace import Workspace
from cgc.progress import progress_bar
from cgc.run_folder import RunFolder
from cgc.segmentation.segments import save_labels


def cluster_features(work: Workspace) -> str:
    """Cluster the features into segments; writes segments.npz."""
    start = time.perf_counter()
    run = work.run
    if run.settings.cluster.algorithm == "cuml" and work.device.type == "cuda":
        torch.cuda.set_device(work.device)  # cuML works on the current one
    if blocks := work.blocks:
        return _cluster_blocks(work, blocks)
    features, mass = load_features(run)
    if len(features) != len(work.splats):
        raise InputError(
            f"{run.root} has {len(features):,} features for {len(work.splats):,} Gaussians: they are of different "
            f"trainings; run `cgc lift {run.root}` again"
        )
    work.check_masks()
    with progress_bar("cluster", 3, quiet=work.quiet) as bar:
        clusterer = CLUSTERERS.get(work.method, _by_features)
        bar.advance(1, samples=min(run.settings.cluster.samples, len(features)))
        found = clusterer(work, features, mass)
        if found is None:
            return ""
        bar.advance(1, segments=found.n_segments)
        with run.changing("cluster"):
            save_labels(run.root, found.labels, found.confidences, found.tree, found.hierarchy)
        bar.advance(1)
    return _finish_cluster(run, found.labels, found.hierarchy.base, start)


def _finish_cluster(run: RunFolder, labels: np.ndarray, level: float, start: float) -> str:
    segments, noise = int(labels.max(initial=0)), int((labels == NOISE).sum())
    run.finish("cluster", time.perf_counter() - start, segments=segments, noise=noise, level=round(level, 3))
    return f"{segments} segments, {noise:,} Gaussians in none: {run.root / 'segments.npz'}"


def _cluster_blocks(work: Workspace, blocks: Blocks) -> str:
    """Cluster block by block, and join the blocks' segments."""
    start, run = time.perf_counter(), work.run
    run.require("lift")
    work.check_masks()
    keys, settings = (run.key("lift"), run.key("cluster")), run.settings
    found = cluster_blocks(
        blocks, work.scene.extent, _wholes(work), settings.lift, settings.cluster, keys, say=work.say
    )
    if found is None:
        return ""
    with run.changing("cluster"):
        save_labels(run.root, found.labels, found.confidences, {}, found.hierarchy)
    return _finish_cluster(run, found.labels, found.hierarchy.base, start)


def _by_features(work: Workspace, features: torch.Tensor, mass: torch.Tensor) -> Clustering | None:
    """Cluster the features, and join what masks have in one."""
    settings, columns = work.run.settings.cluster, _columns(work)
    if columns is None:
        return parallel.serve(nearest_in)
    if settings.smoothing == "neighbours":
        there = work.neighbours.device
        features = smooth_features(features.to(there), work.neighbours, mass.to(there))
    found = cluster(features, mass, columns, settings, space=_space(work), looks=work.looks)
    parallel.release()
    return found


def _columns(work: Workspace) -> Columns | None:
    """What the masks say of the Gaussians, and which masks hold others; in the first process only."""
    n, columns = len(work.splats), mask_columns(held(work.batches), len(work.splats))
    if parallel.here()[1] > 1:
        columns = columns.on_host()
        matrix = columns.matrix
        parts = parallel.gather([matrix.data, matrix.indices, matrix.indptr, columns.views, columns.ids])
        if not parts:
            return None
        columns = side_by_side([Columns(csr_matrix((*w,), (n, len(views))), views, ids) for *w, views, ids in parts])
    return with_wholes(columns, _wholes(work))


def _wholes(work: Workspace) -> dict[int, np.ndarray]:
    """Of each training view whose masks nest, which of them holds each id, [ids + 1]."""
    wholes = {i: work.masks.wholes(i) for i in work.train_views}
    return {i: of_view for i, of_view in wholes.items() if of_view is not None}


def _space(work: Workspace) -> Space:
    return Space.of(work.splats, work.scene.extent, work.neighbours)


def _by_masks(work: Workspace, features: torch.Tensor, mass: torch.Tensor) -> Clustering | None:
    """Join masks of different views."""
    columns = _columns(work)
    settings = work.run.settings.cluster
    return columns and cluster_masks(mass, columns, settings, space=_space(work), looks=work.looks)


def _by_ids(work: Workspace, features: torch.Tensor, mass: torch.Tensor) -> Clustering | None:
    """Take the ids of the masks as they are."""
    cameras = [view.camera for view in work.scene.views]
    min_weight = work.run.settings.lift.min_weight
    votes = vote_ids(work.splats, cameras, work.train_id_maps(), work.rasterizer, min_weight, quiet=work.quiet)
    return cluster_ids(*votes) if parallel.is_first() else None


CLUSTERERS: dict[str, Callable[[Workspace, torch.Tensor, torch.Tensor], Clustering | None]] = {
    "graph": _by_masks, "vote": _by_ids,
}  # fmt: skip
"""What makes labels where no features were learned, by the method. Of several processes the first one has them."""
