"""Measure clustering at scale: `python tools/benchmark_clustering.py --gaussians 1000000`.

Features with known truth: unit vectors around random directions, cluster sizes that differ up to a hundredfold, 2 % of
them noise; every cluster is a ball in space. Timed as in a run: neighbours, smoothing, HDBSCAN on the subsample,
propagation to all (not the revote, which costs by sampled pixels, not by Gaussians). Prints seconds, peak memory of the
process and the adjusted Rand index over what is no noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from sklearn.metrics import adjusted_rand_score

from cgc.clustering.cluster import cluster
from cgc.features.frozen import nearest_neighbours, smooth_features
from cgc.run_folder import peak_rss_bytes
from cgc.settings import ClusterSettings


@dataclass(frozen=True)
class Benchmark:
    """What is clustered."""

    gaussians: int = 1_000_000
    """How many Gaussians."""
    clusters: tuple[int, ...] = (5, 50, 500)
    """Numbers of true clusters, one measurement each."""
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


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table, a row per number of clusters."""
    print("| Gaussians | true clusters | found | seconds | peak, GB | ARI |")
    print("|---|---|---|---|---|---|")
    for clusters in benchmark.clusters:
        features, points, truth = make(benchmark, clusters)
        mass = torch.ones(len(features))
        start = time.perf_counter()
        smooth = smooth_features(features, nearest_neighbours(points, 8), mass)
        found = cluster(smooth, mass, [], ClusterSettings(seed=benchmark.seed))
        seconds = time.perf_counter() - start
        ari = adjusted_rand_score(truth[truth >= 0], found.labels[truth >= 0])
        cells = (f"{len(features):,}", clusters, found.n_segments, f"{seconds:.1f}", f"{peak_rss_bytes() / 1e9:.1f}")
        print("| " + " | ".join(str(c) for c in cells) + f" | {ari:.4f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
