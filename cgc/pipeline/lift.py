"""The step `lift`: features of Gaussians, learned from the masks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from safetensors.torch import save_file

from cgc import parallel
from cgc.blocks.steps import NOTHING_SEEN, Blocks, lift_blocks
from cgc.errors import InputError
from cgc.features.files import read_tensors
from cgc.features.frozen import learn_features
from cgc.features.joint import learn_rasterised
from cgc.features.samples import visible_mass
from cgc.files import write_beside
from cgc.pipeline.regions import make_regions
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import TRAINED_FEATURES, RunFolder


def lift(work: Workspace) -> str:
    """Learn a feature on every Gaussian from the masks; writes features.safetensors."""
    if work.run.makes_masks:
        make_regions(work)
    start = time.perf_counter()
    work.run.source = replace(work.run.source, masks_hash=work.hash_masks())
    run, target = work.run, work.run.root / "features.safetensors"
    if blocks := work.blocks:
        return _lift_blocks(work, blocks)
    if parallel.is_first():
        shutil.rmtree(run.root / "blocks", ignore_errors=True)  # of other settings
    batches = work.batches
    mass = visible_mass(batches, len(work.splats))
    if not mass.any():
        raise InputError(NOTHING_SEEN)
    features = LIFTS[work.method](work)
    if not parallel.is_first():
        return ""
    with run.changing("lift"), write_beside(target) as path:
        save_file({"features": features.cpu(), "mass": mass.cpu()}, path)
    run.finish("lift", time.perf_counter() - start, blocks=None)
    if not features.shape[1]:
        return f"nothing to learn, the masks say it all: {target}"
    return f"{features.shape[1]} features on each of {len(features):,} Gaussians: {target}"


def _lift_blocks(work: Workspace, blocks: Blocks) -> str:
    """Learn features block by block."""
    start, run, views = time.perf_counter(), work.run, work.scene.views
    target, held_back = run.root / "features.safetensors", set(work.test_views)
    id_maps = ((i, work.masks.load(i)) for i in range(len(views)) if i not in held_back)
    with run.changing("lift"):
        facts = lift_blocks(
            blocks, [view.camera for view in views], id_maps, work.rasterizer, run.settings.lift, target,
            run.key("lift"), learns=work.method == "contrast", say=work.say, quiet=work.quiet,
        )  # fmt: skip
    if not parallel.is_first():
        return ""
    run.finish("lift", time.perf_counter() - start, blocks=facts)
    return f"features of {facts['count']} blocks: {target}"


def _contrast(work: Workspace) -> torch.Tensor:
    """Learn features from sampled blending weights."""
    return learn_features(work.batches, work.neighbours, work.run.settings.lift, quiet=work.quiet)


def _joint(work: Workspace) -> torch.Tensor:
    """Take the features that were learned beside colour, or learn them by rasterising where there are none."""
    run = work.run
    if not parallel.is_first():  # rasterising is not shared
        return _nothing(work)
    if run.trains_features:
        path = run.root / TRAINED_FEATURES
        features = read_tensors(path, f"run `cgc train {run.root}` again", "features")["features"]
        if len(features) == len(work.splats):
            return features
        raise InputError(
            f"{run.root / TRAINED_FEATURES} has {len(features):,} features for {len(work.splats):,} Gaussians; "
            f"run `cgc train {run.root}` again"
        )
    cameras = [view.camera for view in work.scene.views]
    return learn_rasterised(
        work.splats.to(work.device), cameras, work.train_id_maps(), work.rasterizer, run.settings.joint,
        quiet=work.quiet,
    )  # fmt: skip


def _nothing(work: Workspace) -> torch.Tensor:
    """Learn nothing: [N, 0]."""
    return torch.zeros(len(work.splats), 0)


LIFTS: dict[str, Callable[[Workspace], torch.Tensor]] = {
    "contrast": _contrast, "joint": _joint, "graph": _nothing, "vote": _nothing,
}  # fmt: skip
"""How features [N, D] come about, by the method."""


def load_features(run: RunFolder) -> tuple[torch.Tensor, torch.Tensor]:
    """Read features [N, D] and visible mass [N]; InputError where they are missing or broken."""
    run.require("lift")
    data = read_tensors(run.root / "features.safetensors", f"run `cgc lift {run.root}` again", "features", "mass")
    return data["features"], data["mass"]
