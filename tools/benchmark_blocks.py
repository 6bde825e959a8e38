"""Measure what lifting and clustering in blocks take, against all at once: `python tools/benchmark_blocks.py`.

The scene is generated: Gaussians with spherical harmonics of degree 3 on a wavy sheet, seen from above by cameras that
each see about a ninth of it; the masks are the cells of a grid on the sheet, rendered. Each block size is done by a
process of its own: from the splat file to features and labels, as a run does it. Printed are its CPU seconds, its peak
memory (with the pages of mapped files, which the system may take back; on Linux only), and how far its labels agree
with the grid.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from sklearn.metrics import adjusted_rand_score

from cgc.blocks.steps import Blocks, cluster_blocks, lift_blocks
from cgc.clustering.cluster import Space, cluster
from cgc.clustering.columns import mask_columns
from cgc.features.frozen import learn_features, nearest_neighbours, smooth_features
from cgc.features.samples import held, sample_batches, visible_mass
from cgc.progress import console
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels
from cgc.settings import BlockSettings, ClusterSettings, LiftSettings
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.types import Splats

HEIGHT = 0.8  # of the cameras, where the sheet is 6 wide


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    gaussians: int = 1_000_000
    """Gaussians of the scene."""
    blocks: tuple[int, ...] = (0, 500_000, 250_000, 125_000)
    """Gaussians of a block, a row each; 0: all at once."""
    margin: float = 0.1
    """Width of the margin, in lengths of a block's longest side."""
    side: int = 7
    """Cameras along a side of the sheet."""
    width: int = 400
    """Width of the pictures in pixels; the height is three quarters of it."""
    cells: int = 15
    """Cells of the grid along a side."""
    folder: Path | None = None
    """Where the scene lies: what measures one block size in a process of its own."""


def make_scene(benchmark: Benchmark) -> tuple[Splats, list[Camera], np.ndarray]:
    """Return the splats, the cameras and the cell of each Gaussian, [N] from 1."""
    g, n = torch.Generator().manual_seed(0), benchmark.gaussians
    xy = 6 * torch.rand(n, 2, generator=g) - 3
    z = 0.1 * torch.sin(5 * xy[:, 0]) * torch.cos(4 * xy[:, 1])
    log_scales = torch.log(3.6 / n**0.5 * torch.tensor([1.0, 1.0, 0.2]) * (0.5 + torch.rand(n, 3, generator=g)))
    quats = torch.cat([torch.ones(n, 1), 0.2 * torch.randn(n, 3, generator=g)], 1)
    opacities = torch.logit(0.3 + 0.65 * torch.rand(n, generator=g))
    splats = Splats(torch.cat([xy, z[:, None]], 1), quats, log_scales, opacities, torch.zeros(n, 16, 3))
    cell = ((xy + 3) / 6 * benchmark.cells).long().clamp(0, benchmark.cells - 1)
    places = np.linspace(-2.6, 2.6, benchmark.side)
    size = {"width": benchmark.width, "height": benchmark.width * 3 // 4, "focal": 0.5 * benchmark.width}
    shots = [Camera.look_at((x, y - 0.4, HEIGHT), (x, y, 0), **size) for x in places for y in places]
    return splats, shots, (1 + cell[:, 0] * benchmark.cells + cell[:, 1]).int().numpy()


def lift_all(path: Path, cameras: list[Camera], id_maps: list[np.ndarray]) -> np.ndarray:
    """Return the labels [N] that come without blocks."""
    splats, lift, rasterizer = read_ply(path), LiftSettings(), CpuRasterizer()
    batches = sample_batches(splats, cameras, id_maps, rasterizer, lift, quiet=True)
    mass, neighbours = visible_mass(batches, len(splats)), nearest_neighbours(splats.means, lift.neighbours)
    features = smooth_features(learn_features(batches, neighbours, lift, quiet=True), neighbours, mass)
    columns = mask_columns(held(batches), len(splats))
    return cluster(features, mass, columns, ClusterSettings(), space=Space(splats.means / 3, neighbours)).labels


def peak_bytes() -> int:
    """Return the largest resident memory since this program was started; getrusage counts what started it as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(benchmark: Benchmark, folder: Path) -> dict[str, float]:
    """Measure one block size on the scene in a folder."""
    shots = make_scene(Benchmark(**{**asdict(benchmark), "gaussians": 1}))[1]
    id_maps = [np.load(folder / f"{i}.npy", mmap_mode="r") for i in range(len(shots))]
    lift, most, path = LiftSettings(), benchmark.blocks[0], folder / "splats.ply"
    before, start = peak_bytes(), time.process_time()
    facts = {"count": 1, "with_margin": benchmark.gaussians}
    if most:
        blocks = Blocks(folder / f"blocks_{most}", path, BlockSettings(most, benchmark.margin), "")
        target, numbered = folder / "features.safetensors", list(enumerate(id_maps))
        facts = lift_blocks(
            blocks, shots, numbered, CpuRasterizer(), lift, target, "", learns=True, say=lambda _: None, quiet=True
        )
        joined = cluster_blocks(blocks, 3.0, {}, lift, ClusterSettings(), ("", ""), say=lambda _: None)
        assert joined is not None
        labels = joined.labels
    else:
        labels = lift_all(path, shots, [np.asarray(id_map) for id_map in id_maps])
    truth = np.load(folder / "truth.npy")
    seen = labels > 0
    return {
        "blocks": facts["count"], "with margin": facts["with_margin"], "seconds": time.process_time() - start,
        "peak": peak_bytes(), "before": before, "segments": int(labels.max()),
        "ari": float(adjusted_rand_score(truth[seen], labels[seen])),
    }  # fmt: skip


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table, or measure for it."""
    if benchmark.folder:
        print(json.dumps(measure(benchmark, benchmark.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splats, shots, labels = make_scene(benchmark)
        write_ply(folder / "splats.ply", splats)
        np.save(folder / "truth.npy", labels)
        for i, camera in enumerate(shots):
            np.save(folder / f"{i}.npy", render_labels(splats, labels, camera, CpuRasterizer()).ids)
        del splats
        console.print(f"{benchmark.gaussians:,} Gaussians, {len(shots)} views {benchmark.width} wide\n")
        console.print("| block | blocks | with margin | CPU s | peak, MB | above its start, MB | segments | ARI |")
        console.print("|---" * 8 + "|")
        for most in benchmark.blocks:
            given = {"gaussians": benchmark.gaussians, "blocks": most, "margin": benchmark.margin, "folder": folder,
                     "side": benchmark.side, "width": benchmark.width, "cells": benchmark.cells}  # fmt: skip
            words = [word for k, v in given.items() for word in (f"--{k}", str(v))]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            f = json.loads(done.stdout.splitlines()[-1])
            console.print(
                f"| {most:,} | {f['blocks']} | {f['with margin']:,} | {f['seconds']:.0f} | {f['peak'] / 1e6:.0f} | "
                f"{(f['peak'] - f['before']) / 1e6:.0f} | {f['segments']} | {f['ari']:.3f} |"
            )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
