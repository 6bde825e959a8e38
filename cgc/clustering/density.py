"""Clusters of features: HDBSCAN on a subsample drawn by visible mass, labels for everyone.

Small things keep their share of the subsample, floaters get none; every Gaussian takes the label of its nearest
clustered sample in feature space. What lies far from all of them is sampled and clustered again by itself, so that
things too small for the first subsample are found too, at a cost that grows with N and not with N^2. Where a sample is
so thin that it must miss things, all that lies far is looked at again, and the few samples of one that hang on another
thing's cluster are let go first.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cgc.clustering.linkage import spanning_tree
from cgc.clustering.rows import HostRows, Rows
from cgc.errors import InputError
from cgc.neighbours import build_tree, nearest_others
from cgc.settings import ClusterSettings

MANY = 20_000  # samples past which all pairs (hdbscan's Prim) take longer than the links of near ones
GROWTH = 1, 4, 16  # of a sample that is too thin, in turn
THIN = 4  # times min_cluster_size: it is, where half of its clusters are smaller
SPARSE = 8  # Gaussians for each sample: with more, it is too thin for things that are worth a look
LEFT = 0.05  # share of the visible Gaussians that may lie far from every cluster, unless the sample was too thin


@dataclass(frozen=True)
class Found:
    """Labels [N] from 0, confidences [N], who is noise [N] bool, and the first sample's condensed tree."""

    labels: np.ndarray
    confidences: np.ndarray
    noise: np.ndarray
    tree: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Drawn:
    """Samples' numbers [S] and labels [S] (-1: noise), how far each label reaches [K], and the condensed tree.

    growth is what the sample took; thin says that it may miss things all the same.
    """

    numbers: np.ndarray
    labels: np.ndarray
    reach: np.ndarray
    tree: dict[str, np.ndarray]
    growth: int
    thin: bool


def find_clusters(unit: np.ndarray, mass: Tensor, settings: ClusterSettings, rows: Rows | None = None) -> Found | None:
    """Find clusters of unit features [N, D] and label every Gaussian; None if all samples are noise.

    Noise are the samples that are in no cluster: they have the label of the nearest one all the same. `rows` are the
    same features where they are looked up; None: on the CPU.
    """
    rows = rows or HostRows(unit)
    visible = (mass > 0).numpy()
    noise, far, tree = np.full(len(unit), False), visible, {}
    samples, kinds = np.empty((0, unit.shape[1]), np.float32), np.empty(0, np.int64)
    nearest, distances = np.full(len(unit), -1), np.full(len(unit), np.inf, np.float32)
    reach, growth = np.empty(0, np.float32), GROWTH[0]  # reach: of each kind
    for turn in range(settings.rounds + 1):
        drawn = _cluster_sample(unit, mass * torch.from_numpy(far), settings, growth)
        growth = drawn.growth  # what is left is no larger
        tree = tree if turn else drawn.tree
        noise[drawn.numbers] = drawn.labels < 0
        sample, labels = drawn.numbers[drawn.labels >= 0], drawn.labels[drawn.labels >= 0]
        if not len(sample):
            break
        found, distances = rows.nearest(unit[sample], distances)
        nearest = np.where(found < 0, nearest, found + len(samples))
        samples = np.concatenate([samples, unit[sample]])
        kinds = np.concatenate([kinds, labels + len(reach)])
        reach = np.concatenate([reach, drawn.reach])
        far = visible & (distances > reach[kinds[nearest]])
        if far.sum() < _worth(drawn.thin, int(visible.sum()), settings):
            break
    if not len(samples):
        return None
    return Found(kinds[nearest], rows.confidences(samples, kinds, nearest, distances), noise, tree)


def _worth(thin: bool, visible: int, settings: ClusterSettings) -> float:
    """How many Gaussians far from every cluster are worth another round: as many as may be a thing that was missed."""
    return settings.min_cluster_size * SPARSE if thin else max(settings.min_cluster_size, LEFT * visible)


def _cluster_sample(unit: np.ndarray, mass: Tensor, settings: ClusterSettings, least: int) -> _Drawn:
    """Cluster a sample, from the `least` growth on, and larger ones while it is too thin.

    Of a thing with fewer than min_cluster_size samples HDBSCAN makes noise, or a loose part of a cluster. There are
    such things where these are most of the samples, or half of the clusters are hardly larger. Where a sample had to
    grow, or each one stands for many Gaussians, some may be left: loose samples are noise then, and what lies far is
    looked at again by itself, which costs less.
    """
    visible = int((mass > 0).sum())
    for growth in GROWTH[GROWTH.index(least) :]:
        sample = draw_sample(mass, replace(settings, samples=growth * settings.samples))
        labels, tree = run_hdbscan(unit[sample], settings)
        reach, loose = _extents(unit[sample], labels, settings.min_cluster_size)
        sizes = np.bincount(labels[labels >= 0], minlength=1)
        noisy = sizes.sum() - loose.sum() < len(sample) / 2
        small = np.median(sizes) < THIN * settings.min_cluster_size
        if len(sample) == visible or not (noisy or small):
            break
    thin = len(sample) < visible and (growth > GROWTH[0] or len(sample) * SPARSE < visible)
    if thin and loose.sum() < sizes.sum():
        labels = np.where(loose, -1, labels)
    return _Drawn(sample, labels, reach, tree, growth, thin)


def _extents(points: np.ndarray, labels: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each cluster's Gaussians may lie from its samples [K], and which of points [S, D] are loose, [S] bool.

    The reach is thrice what nine in ten samples lie from the next. Samples that hang together with fewer than `least`
    over gaps within it are loose.
    """
    loose = np.full(len(labels), False)
    own = np.flatnonzero(labels >= 0)
    if not len(own):
        return np.empty(0, np.float32), loose
    others, gaps = nearest_others(build_tree(points[own]), least)
    reach = _reach(gaps[:, 0], labels[own])
    loose[own] = _loose(others, gaps, reach[labels[own]], least)
    return reach, loose


def _reach(gaps: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return thrice what nine in ten of each cluster's gaps [S] to the next sample are within, [K]."""
    by_label = np.lexsort((gaps, labels))
    ends = np.searchsorted(labels[by_label], np.arange(labels.max() + 1), side="right")
    sizes = np.diff(ends, prepend=0)
    return 3 * gaps[by_label[ends - 1 - sizes // 10]]


def _loose(others: np.ndarray, gaps: np.ndarray, reach: np.ndarray, least: int) -> np.ndarray:
    """Say which samples hang together with fewer than `least` over gaps within reach [S], [S] bool.

    others [S, least] are each one's nearest, gaps [S, least] how far these are: enough to see all of so few.
    """
    row, column = np.nonzero(gaps <= reach[:, None])
    links = coo_matrix((np.ones(len(row), bool), (row, others[row, column])), shape=(len(gaps), len(gaps)))
    _, part = connected_components(links, directed=False)
    return np.bincount(part)[part] < least


def draw_sample(mass: Tensor, settings: ClusterSettings) -> np.ndarray:
    """Draw visible Gaussians without replacement with chance ~ mass [N]^1/2, or all alike; sorted indices [S]."""
    generator = np.random.default_rng(settings.seed)
    candidates = np.flatnonzero((mass > 0).numpy())
    if len(candidates) <= settings.samples:
        return candidates
    if settings.draw == "uniform":
        return np.sort(generator.choice(candidates, settings.samples, replace=False))
    keys = 0.5 * np.log(mass.numpy()[candidates]) + generator.gumbel(size=len(candidates))
    return np.sort(candidates[np.argpartition(-keys, settings.samples)[: settings.samples]])


def run_hdbscan(points: np.ndarray, settings: ClusterSettings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run HDBSCAN on points [S, D]; return labels [S] (-1 noise, from 0) and the condensed tree's columns.

    The tree is the hdbscan package's; with the others' algorithms it is empty.
    """
    if len(points) < max(settings.min_cluster_size, settings.min_samples + 1, 3):
        return np.full(len(points), -1), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imports and calls into scikit-learn warn of renamed arguments
        if settings.algorithm == "hdbscan":
            return _hdbscan(points.astype(np.float64), settings)
        others = min(settings.min_samples or settings.min_cluster_size, len(points) - 1)
        options: dict[str, Any] = dict(
            min_cluster_size=settings.min_cluster_size,
            min_samples=others + 1,  # scikit-learn and cuML count the point itself
            cluster_selection_method=settings.selection,
        )
        if settings.algorithm == "sklearn":
            from sklearn.cluster import HDBSCAN

            options["copy"] = True
            return HDBSCAN(**options).fit(points.astype(np.float64)).labels_, {}
        fitted = _import_cuml().HDBSCAN(**options, output_type="numpy").fit(points.astype(np.float32))
        return np.asarray(fitted.labels_), {}


def _hdbscan(points: np.ndarray, settings: ClusterSettings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run the hdbscan package on points [S, D] float64, past MANY on a spanning tree of ours."""
    import hdbscan
    from hdbscan._hdbscan_linkage import label
    from hdbscan.hdbscan_ import _tree_to_labels

    if len(points) <= MANY:
        clusterer = hdbscan.HDBSCAN(
            min_cluster_size=settings.min_cluster_size,
            min_samples=settings.min_samples or None,
            cluster_selection_method=settings.selection,
            algorithm="prims_kdtree",  # exact, and as fast for any data; boruvka takes four times as long for some
            core_dist_n_jobs=1,
        ).fit(points)
        labels, raw = clusterer.labels_, clusterer.condensed_tree_.to_numpy()
    else:
        linkage = label(spanning_tree(points, settings.min_samples or settings.min_cluster_size))
        labels, _, _, raw, _ = _tree_to_labels(points, linkage, settings.min_cluster_size, settings.selection)
    return labels, {name: np.ascontiguousarray(raw[name]) for name in raw.dtype.names}


def _import_cuml() -> Any:
    """Import cuML's clustering; InputError where it or CUDA is missing."""
    try:
        from cuml import cluster  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"cluster.algorithm is cuml, and cuML is not installed; `pip install cuml-cu{_cuda()}`, or choose hdbscan"
        ) from None
    if not torch.cuda.is_available():
        raise InputError("cluster.algorithm is cuml, which needs a CUDA device, and there is none; choose hdbscan")
    return cluster


def _cuda() -> str:
    """Return which CUDA torch was built for, by its first number; 12 where for none."""
    return (torch.version.cuda or "12").split(".")[0]
