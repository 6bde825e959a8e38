"""Measure clustering at scale: `python tools/benchmark_clustering.py --gaussians 1000000`.

Features with known truth: unit vectors around random directions, cluster sizes that differ up to a hundredfold, 2 % of
them noise. Prints seconds, peak memory of the process and the adjusted Rand index over what is no noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from sklearn.metrics import adjusted_rand_score

from cgc.clustering import cluster
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


def make(benchmark: Benchmark, clusters: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return features [N, D] and true clusters [N], -1 = noise."""
    generator = np.random.default_rng(benchmark.seed)
    share = np.exp(generator.uniform(0, np.log(100), clusters))
    truth = generator.choice(clusters, benchmark.gaussians, p=share / share.sum())
    centres = generator.standard_normal((clusters, benchmark.dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    features = centres[truth] + benchmark.spread * generator.standard_normal((benchmark.gaussians, benchmark.dim))
    noise = generator.random(benchmark.gaussians) < 0.02
    features[noise] = generator.standard_normal((int(noise.sum()), benchmark.dim))
    truth[noise] = -1
    return torch.nn.functional.normalize(torch.from_numpy(features.astype(np.float32)), dim=1), truth


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table, a row per number of clusters."""
    print("| Gaussians | true clusters | found | seconds | peak, GB | ARI |")
    print("|---|---|---|---|---|---|")
    for clusters in benchmark.clusters:
        features, truth = make(benchmark, clusters)
        start = time.perf_counter()
        found = cluster(features, torch.ones(len(features)), [], ClusterSettings(seed=benchmark.seed))
        seconds = time.perf_counter() - start
        ari = adjusted_rand_score(truth[truth >= 0], found.labels[truth >= 0])
        cells = (f"{len(features):,}", clusters, found.n_segments, f"{seconds:.1f}", f"{peak_rss_bytes() / 1e9:.1f}")
        print("| " + " | ".join(str(c) for c in cells) + f" | {ari:.4f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
