"""Measure clustering at scale: `python tools/benchmark_clustering.py`.

Features with known truth: unit vectors around random directions, cluster sizes that differ up to a hundredfold, 2 % of
them noise; every cluster is a ball in space. Timed as in a run: neighbours, smoothing, HDBSCAN on the subsample,
propagation to all (not the revote, which costs by sampled pixels, not by Gaussians). Each row is a process of its own,
whose kernels are compiled before: prints its seconds, CPU seconds and peak memory, and the adjusted Rand index over
what is no noise; then the slope of log seconds by log Gaussians.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
import tyro
from sklearn.metrics import adjusted_rand_score

from cgc.clustering.cluster import Clustering, cluster
from cgc.clustering.columns import mask_columns
from cgc.features.frozen import nearest_neighbours, smooth_features
from cgc.kernels import be_quiet
from cgc.settings import ClusterSettings
from cgc.system import peak_rss_bytes


@dataclass(frozen=True)
class Benchmark:
    """What is clustered."""

    gaussians: int = 1_000_000
    """How many Gaussians."""
    clusters: tuple[int, ...] = (5, 50, 500, 10_000)
    """Numbers of true clusters, one measurement each."""
    growing: tuple[int, ...] = (250_000, 500_000, 1_000_000, 2_000_000)
    """Numbers of Gaussians whose times must grow linearly, one measurement each."""
    growing_clusters: int = 100
    """True clusters in these."""
    dim: int = 16
    """Length of a feature."""
    spread: float = 0.05
    """Standard deviation of a feature about its direction, per channel."""
    seed: int = 0
    """Seed of everything."""


def make(benchmark: Benchmark, clusters: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return features [N, D], positions [N, 3] and true clusters [N], -1 = noise."""
    generator = np.random.default_rng(benchmark.seed)
    share = np.exp(generator.uniform(0, np.log(100), clusters))
    truth = generator.choice(clusters, benchmark.gaussians, p=share / share.sum())
    centres = generator.standard_normal((clusters, benchmark.dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    features = centres[truth] + benchmark.spread * generator.standard_normal((benchmark.gaussians, benchmark.dim))
    noise = generator.random(benchmark.gaussians) < 0.02
    features[noise] = generator.standard_normal((int(noise.sum()), benchmark.dim))
    places = generator.uniform(0, 30 * clusters ** (1 / 3), (clusters, 3))
    points = places[truth] + generator.standard_normal((benchmark.gaussians, 3))
    truth[noise] = -1
    unit = torch.nn.functional.normalize(torch.from_numpy(features.astype(np.float32)), dim=1)
    return unit, torch.from_numpy(points.astype(np.float32)), truth


@dataclass(frozen=True)
class Row:
    """What one measurement gives."""

    found: int
    seconds: float
    cpu: float
    peak: float
    ari: float


def measure(benchmark: Benchmark, clusters: int) -> Row:
    """Cluster once, after a small one that compiles the kernels."""
    be_quiet(True)
    cluster_all(*make(replace(benchmark, gaussians=30_000), 5)[:2], ClusterSettings(samples=25_000))
    features, points, truth = make(benchmark, clusters)
    start, cpu = time.perf_counter(), time.process_time()
    found = cluster_all(features, points, ClusterSettings(seed=benchmark.seed))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    ari = adjusted_rand_score(truth[truth >= 0], found.labels[truth >= 0])
    return Row(found.n_segments, seconds, cpu, peak_rss_bytes() / 1e9, float(ari))


def cluster_all(features: torch.Tensor, points: torch.Tensor, settings: ClusterSettings) -> Clustering:
    """Do what a run does from learned features to labels, but the revote."""
    mass = torch.ones(len(features))
    smooth = smooth_features(features, nearest_neighbours(points, 8), mass)
    return cluster(smooth, mass, mask_columns([], len(smooth)), settings)


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table, a row per number of clusters and of Gaussians."""
    print("| Gaussians | true clusters | found | s | CPU s | peak, GB | ARI |")
    print("|---|---|---|---|---|---|---|")
    rows = [(benchmark.gaussians, clusters) for clusters in benchmark.clusters]
    rows += [(n, benchmark.growing_clusters) for n in benchmark.growing]
    grown: dict[int, Row] = {}
    for n, clusters in rows:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            row = fresh.submit(measure, replace(benchmark, gaussians=n), clusters).result()
        if clusters == benchmark.growing_clusters:
            grown[n] = row
        cells = (f"{n:,}", f"{clusters:,}", f"{row.found:,}", f"{row.seconds:.1f}", f"{row.cpu:.1f}", f"{row.peak:.1f}")
        print("| " + " | ".join(cells) + f" | {row.ari:.4f} |", flush=True)
    if len(grown) > 1:
        logs = np.log([(n, row.seconds, row.cpu) for n, row in sorted(grown.items())])
        slopes = [np.polyfit(logs[:, 0], logs[:, k], 1)[0] for k in (1, 2)]
        print(f"\nSlope of log seconds by log Gaussians: {slopes[0]:.2f}; of CPU seconds: {slopes[1]:.2f}.")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
