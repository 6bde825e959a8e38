"""Measure what the query API costs: a click, an id map, opening a run, a first picture, and the memory they take.

    python tools/benchmark_api.py                      # a synthetic scene of 200,000 Gaussians, a run of a million
    python tools/benchmark_api.py --splats scene.ply   # clicks and id maps on splats of yours, in 60 pieces
    python tools/benchmark_api.py --run runs/demo      # and the first picture of a run

The scene is balls on a floor, their Gaussians as small as 3DGS makes them; clicks are on pixels at random, each with no
picture of its camera made before.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.spatial import KDTree
from time_command import time_python

from cgc.api import load
from cgc.clustering.hierarchy import Hierarchy
from cgc.run_folder import Source, create_run
from cgc.scene.types import Camera
from cgc.segmentation.orbit import orbit
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import save_labels
from cgc.settings import RunSettings
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.types import Splats
from cgc.system import peak_rss_bytes

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


class Cost(NamedTuple):
    """Median seconds by the clock, the least of them, and median seconds of all processors."""

    median: float
    least: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.median:8.4f} s, at least {self.least:.4f}, {self.cpu:.4f} CPU s"


def cost(work: Callable[[], object], times: int) -> Cost:
    """Measure some calls; the one before, which may compile, does not count."""
    work()
    seconds, cpu = [], []
    for _ in range(times):
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return Cost(float(np.median(seconds)), min(seconds), float(np.median(cpu)))


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
    print(f"  a click                     {cost(click, 2 * times)}")
    ids = picture()
    print(f"  an id map                   {cost(picture, times)}  ({len(np.unique(ids))} ids in it)")
    print(f"  a mask, the map being made  {cost(lambda: seg[1].mask(camera), times)}")
    print(f"  a point                     {cost(lambda: seg.at_point(seg[1].centre), times)}")
    print(f"  a ray                       {cost(lambda: seg.along_ray((9, 9, 9), (-1, -1, -1)), times)}")
    print(f"  a box                       {cost(lambda: seg.in_box([0] * 3, [1] * 3), times)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=200_000, help="of the scene that is clicked on")
    parser.add_argument("--loaded", type=int, default=1_000_000, help="of the run that is opened; 0: none")
    parser.add_argument("--splats", type=Path, help="a 3DGS .ply to click on")
    parser.add_argument("--run", type=Path, help="a run of which `cgc view --screenshot` makes a picture")
    parser.add_argument("--times", type=int, default=9)
    args = parser.parse_args()
    splats, labels = balls(args.gaussians)
    if args.splats:
        splats = read_ply(args.splats)
        seeds = splats.means[torch.randperm(len(splats), generator=torch.Generator().manual_seed(0))[:BALLS]]
        labels = KDTree(seeds.numpy()).query(splats.means.numpy())[1].astype(np.int32) + 1
    seg = Segmentation(splats, labels, np.ones(len(labels), np.float32), with_parts(labels))
    measure(seg, orbit(seg, 5, width=WIDTH, height=HEIGHT, elevation=30)[0], args.times)
    print(f"  peak memory                 {peak_rss_bytes() / 1e9:8.2f} GB")
    if args.loaded:
        with tempfile.TemporaryDirectory() as folder:
            run = write_run(Path(folder) / "run", args.loaded)
            print(f"opening a run of {args.loaded:,}: {cost(lambda: load(run, device='cpu'), 3)}")
            opening = f"import cgc; cgc.load({str(run)!r}, device='cpu')"
            print(f"  in a process of its own, imports and all: {time_python('-c', opening)}")
    if args.run:
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "picture.png")
            taken = time_python("-m", "cgc", "view", str(args.run), "--screenshot", out)
            print(f"the first picture of {args.run}, from the command to the file: {taken}")


if __name__ == "__main__":
    main()
