"""Show where a training step's time goes: `python tools/profile_training.py runs/demo`.

Takes the splats of a finished run and repeats training steps on its photos as they are at the end of a training (full
size, every Gaussian, every colour term), nothing grown. Prints a Markdown table of milliseconds a step by part.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import tyro

from cgc.appearance import trainer
from cgc.kernels import keep_memory, measured, thread_count
from cgc.pipeline.workspace import Workspace
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import open_run
from cgc.scene.images import load_image
from cgc.splats.ply import read_ply

PARTS = {
    "rasteriser: projection": ("project", "project_backward"),
    "rasteriser: tile lists": ("_make_records", "_find_spans", "_count_pairs", "_fill"),
    "rasteriser: blending": ("pack_values", "blend"),
    "rasteriser: gradient of blending": ("blend_backward", "gather_gradients"),
    "colours (spherical harmonics)": ("_colors", "_colors_backward"),
    "loss (L1, SSIM)": ("_window_rows", "_ssim_slopes", "_gradients"),
}


@dataclass(frozen=True)
class Profile:
    """What is measured."""

    run: tyro.conf.Positional[Path]
    """A finished run folder."""
    steps: int = 60
    """Steps that are measured."""


def main(profile: Profile) -> None:
    """Print the table."""
    keep_memory()
    work = Workspace(open_run(profile.run), quiet=True)
    settings = replace(
        work.run.settings.train, steps=profile.steps, coarse=0.0, refine_stop=0.0, sh_ramp=0.0, checkpoint_every=0
    )
    splats = read_ply(profile.run / "splats.ply")
    adam = torch.optim.Adam.step
    spent = {"Adam": 0.0}

    def step(self: torch.optim.Adam, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = adam(self, *arguments)
        spent["Adam"] += time.perf_counter() - start
        return result

    def train(steps: int) -> float:
        trainer.train(
            work.scene, load_image, CpuRasterizer(), replace(settings, steps=steps), quiet=True,
            test_every=work.run.settings.scene.test_every,
        )  # fmt: skip
        return time.perf_counter()

    with patch.object(trainer, "first_splats", lambda *_: splats), patch.object(torch.optim.Adam, "step", step):
        train(2)  # compiles, and reads the photos into the system's cache
        start = train(1)
        begun = train(1) - start  # reading photos, and one step
        spent["Adam"] = 0.0
        with measured() as seconds:
            start = time.perf_counter()
            total = train(profile.steps + 1) - start - begun
    rows = {part: sum(seconds.get(name, 0.0) for name in names) for part, names in PARTS.items()} | spent
    rows["the rest (small torch operations, sorting, statistics, drawing)"] = total - sum(rows.values())
    camera = work.scene.views[0].camera
    print(f"{len(splats):,} Gaussians, {camera.width} x {camera.height}, {thread_count()} threads\n")
    print("| part of a step | ms | share |\n|---|---|---|")
    for part, value in rows.items():
        print(f"| {part} | {1e3 * value / profile.steps:.1f} | {value / total:.0%} |")
    raster = sum(value for part, value in rows.items() if part.startswith("rasteriser"))
    print(f"| *the rasteriser together* | {1e3 * raster / profile.steps:.1f} | {raster / total:.0%} |")
    print(f"| **a step** | **{1e3 * total / profile.steps:.1f}** | |")


if __name__ == "__main__":
    main(tyro.cli(Profile))
