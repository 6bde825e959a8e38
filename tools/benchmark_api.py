"""Measure what the query API costs: a click, an id map, opening a run, and the memory it takes.

    python tools/benchmark_api.py                      # a synthetic scene of 200,000 Gaussians, a run of a million
    python tools/benchmark_api.py --splats scene.ply   # clicks and id maps on splats of yours, in 60 pieces

The scene is balls on a floor, their Gaussians as small as 3DGS makes them; clicks are on pixels at random, each with no
picture of its camera made before. Times are medians.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.spatial import KDTree

from cgc.api import load
from cgc.clustering.hierarchy import Hierarchy
from cgc.run_folder import Source, create_run, peak_rss_bytes
from cgc.scene.types import Camera
from cgc.segmentation.orbit import orbit
from cgc.segmentation.segments import Segmentation, save_labels
from cgc.settings import RunSettings
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.types import Splats

BALLS = 60
WIDTH, HEIGHT = 800, 600


def balls(n: int, degree: int = 0) -> tuple[Splats, np.ndarray]:
    """N Gaussians on the skins of 60 balls, one label each, which stand on a floor of label 61."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(1, BALLS + 2, (n,), generator=g)
    labels[torch.rand(n, generator=g) < 0.3] = BALLS + 1
    centres = torch.cat([torch.rand(BALLS + 1, 2, generator=g) * 8 - 4, torch.full((BALLS + 1, 1), 0.4)], 1)
    skin = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    means = centres[labels - 1] + 0.4 * skin
    floor = labels == BALLS + 1
    means[floor] = torch.rand(int(floor.sum()), 3, generator=g) * torch.tensor([10, 10, 0.02]) - torch.tensor([5, 5, 0])
    area = torch.where(floor, 100 / floor.sum(), 4 * math.pi * 0.16 * BALLS / (~floor).sum())
    log_scales = (1.2 * area.sqrt()).log()[:, None] + 0.5 * torch.randn(n, 3, generator=g)
    sh = torch.randn(n, (degree + 1) ** 2, 3, generator=g) * 0.2
    quats, logit_opacities = torch.randn(n, 4, generator=g), torch.randn(n, generator=g)
    return Splats(means, quats, log_scales, logit_opacities, sh), labels.numpy().astype(np.int32)


def with_parts(labels: np.ndarray) -> Hierarchy:
    """A hierarchy in which each object has two parts."""
    k = int(labels.max())
    parents = np.concatenate([np.zeros(k + 1), np.repeat(np.arange(1, k + 1), 2)]).astype(np.int32)
    levels = np.concatenate([[-1], np.full(k, 0.5), np.ones(2 * k)]).astype(np.float32)
    halves = np.random.default_rng(0).integers(0, 2, len(labels))
    return Hierarchy((k + 2 * labels - 1 + halves).astype(np.int32), parents, levels, 0.4)


def write_run(folder: Path, n: int) -> Path:
    """A clustered run of n Gaussians with spherical harmonics of degree 3 and 16 features each."""
    splats, labels = balls(n, degree=3)
    run = create_run(folder, RunSettings(), Source("/gone", "/gone", None, {"views": 0}))
    folder.mkdir(parents=True)
    write_ply(folder / "splats.ply", splats)
    run.finish("train", 0.0)
    save_file({"features": torch.randn(n, 16), "mass": torch.ones(n)}, folder / "features.safetensors")
    run.finish("lift", 0.0)
    save_labels(folder, labels, np.ones(n, np.float32), {}, with_parts(labels))
    run.finish("cluster", 0.0)
    return folder


def median(work: Callable[[], object], times: int) -> float:
    """Median seconds of some calls; the one before, which may compile, does not count."""
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def measure(seg: Segmentation, camera: Camera, times: int) -> None:
    """Print what clicks and pictures cost."""
    rng = np.random.default_rng(1)

    def click() -> None:
        seg.at_pixel(camera, int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))

    def picture() -> np.ndarray:
        seg.kept_maps.clear()
        return seg.masks([camera])[0]

    print(f"{len(seg.splats):,} Gaussians, {len(seg)} objects, {WIDTH}x{HEIGHT}")
    seg.kept_maps.clear()
    print(f"  a click                     {1000 * median(click, 2 * times):8.1f} ms")
    ids = picture()
    print(f"  an id map                   {median(picture, times):8.3f} s  ({len(np.unique(ids))} ids in it)")
    print(f"  a mask, the map being made  {1000 * median(lambda: seg[1].mask(camera), times):8.1f} ms")
    print(f"  a point                     {1000 * median(lambda: seg.at_point(seg[1].centre), times):8.1f} ms")
    print(
        f"  a ray                       {1000 * median(lambda: seg.along_ray((9, 9, 9), (-1, -1, -1)), times):8.1f} ms"
    )
    print(f"  a box                       {1000 * median(lambda: seg.in_box([0] * 3, [1] * 3), times):8.1f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=200_000, help="of the scene that is clicked on")
    parser.add_argument("--loaded", type=int, default=1_000_000, help="of the run that is opened; 0: none")
    parser.add_argument("--splats", type=Path, help="a 3DGS .ply to click on")
    parser.add_argument("--times", type=int, default=9)
    args = parser.parse_args()
    splats, labels = balls(args.gaussians)
    if args.splats:
        splats = read_ply(args.splats)
        seeds = splats.means[torch.randperm(len(splats), generator=torch.Generator().manual_seed(0))[:BALLS]]
        labels = KDTree(seeds.numpy()).query(splats.means.numpy())[1].astype(np.int32) + 1
    seg = Segmentation(splats, labels, np.ones(len(labels), np.float32), with_parts(labels))
    measure(seg, orbit(seg, 5, width=WIDTH, height=HEIGHT, elevation=30)[0], args.times)
    if args.loaded:
        with tempfile.TemporaryDirectory() as folder:
            run = write_run(Path(folder) / "run", args.loaded)
            print(f"opening a run of {args.loaded:,}: {median(lambda: load(run), 3):.2f} s")
    print(f"peak memory {peak_rss_bytes() / 1e9:.2f} GB, of all of this together")


if __name__ == "__main__":
    main()
