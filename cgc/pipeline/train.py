"""The step `train`: splats, trained or taken as they were given."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from cgc import parallel
from cgc.appearance.trainer import train as train_splats
from cgc.errors import InputError
from cgc.features.joint import JointFeatures
from cgc.files import write_beside
from cgc.pipeline.workspace import Workspace
from cgc.progress import short_time
from cgc.run_folder import TRAINED_FEATURES, RunFolder
from cgc.scene.images import load_image
from cgc.splats.mapped import MappedSplats
from cgc.splats.ply import read_ply, write_ply


def train(work: Workspace) -> str:
    """Train the splats, or take those that were given; writes splats.ply, and in the joint mode features beside it."""
    start = time.perf_counter()
    run, target = work.run, work.run.root / "splats.ply"
    companion = None
    if run.trains_features:
        run.source = replace(run.source, masks_hash=work.hash_masks())
        companion = JointFeatures(work.train_id_maps(), run.settings.joint, run.settings.train.steps)
    if run.source.splats and run.settings.blocks.gaussians:
        return take_mapped(work, Path(run.source.splats), target)
    if run.source.splats:
        splats, cap = read_ply(run.source.splats), None
        splats = replace(splats, means=(splats.means.double() - torch.tensor(work.scene.origin)).float())
        said = f"{len(splats):,} Gaussians taken from {run.source.splats}"
    else:
        if not len(work.scene.points):
            count = min(run.settings.train.init_random, run.settings.train.max_gaussians)
            work.say(
                f"note: the model has no 3D points, so training starts from {count:,} random Gaussians, which makes "
                "worse pictures and labels; a model with points (cgc reconstruct makes one) is better"
            )
        splats, trained = train_splats(
            work.scene, load_image, work.rasterizer, run.settings.train, device=work.device,
            test_every=run.settings.scene.test_every, companion=companion, checkpoint_dir=run.root / "checkpoints",
            quiet=work.quiet,
        )  # fmt: skip
        splats = splats.to("cpu")
        if not parallel.is_first():
            return ""
        if companion:
            with write_beside(run.root / TRAINED_FEATURES) as path:
                save_file({name: value.cpu() for name, value in trained.carried.items()}, path)
        start = time.perf_counter() - trained.seconds  # some of them in processes that were stopped
        cap, budget = trained.max_gaussians, run.settings.train.budget
        said = f"{len(splats):,} Gaussians trained"
        if budget:
            said += f" in {short_time(trained.seconds)} of {short_time(budget)}"
    write_ply(target, splats)
    _save_extras(run, splats.extras)
    work.splats = splats
    run.finish("train", time.perf_counter() - start, gaussians=len(splats), max_gaussians=cap, extent=work.scene.extent)
    shutil.rmtree(run.root / "checkpoints", ignore_errors=True)  # what they would resume is done
    return f"{said}: {target}"


def take_mapped(work: Workspace, given: Path, target: Path) -> str:
    """Take splats that were given without holding them; InputError where they would have to be moved."""
    if any(work.scene.origin):
        raise InputError(
            f"{given} cannot be taken block by block: its scene lies so far from the origin that it is moved there, "
            "which blocks do not do; centre the splats and the model, or give --blocks.gaussians 0"
        )
    start, splats = time.perf_counter(), MappedSplats(given)
    _save_extras(work.run, splats.copy(target))
    work.forget("splats")
    facts = {"gaussians": len(splats), "max_gaussians": None, "extent": work.scene.extent}
    work.run.finish("train", time.perf_counter() - start, **facts)
    return f"{len(splats):,} Gaussians taken from {given}: {target}"


def _save_extras(run: RunFolder, extras: dict[str, np.ndarray]) -> None:
    if extras:
        with write_beside(run.root / "extras.npz") as path:
            np.savez_compressed(path, **extras)  # pyright: ignore[reportArgumentType]
