"""The step `train`: splats, trained or taken as they were given."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from cgc import parallel
from cgc.appearance.photo_capture import PhotoCapture, place
from cgc.appearance.trainer import train as train_splats
from cgc.errors import InputError
from cgc.features.joint import JointFeatures
from cgc.files import sha256, write_arrays, write_beside
from cgc.pipeline.facts import say_corrections
from cgc.pipeline.workspace import Workspace
from cgc.progress import progress_bar, short_time
from cgc.run_folder import CORRECTIONS, EXTRAS, TRAINED_FEATURES, RunFolder
from cgc.scene.cameras import project
from cgc.scene.corrections import Correction, Corrections, write_corrections
from cgc.scene.images import load_view
from cgc.scene.types import Camera, Scene
from cgc.splats.mapped import MappedSplats
from cgc.splats.ply import write_ply
from cgc.splats.read import read_splats
from cgc.splats.types import Splats

OF_TRAINING = ("splats", "scene", "exposures")
"""What a workspace has loaded that training makes anew."""
NO_CORRECTIONS = {"exposures": None, "moved": None}
"""What stats.json has of photos that are taken as they are."""
MEASURED = 2000  # Gaussians by which it is measured how far a camera has moved
GREY = 0.5  # by which it is measured how much brighter a photo is


def train(work: Workspace) -> str:
    """Train the splats, or take those that were given.

    Writes splats.ply, in the joint mode features beside it, and what was found of the photos where that was asked for.
    """
    start = time.perf_counter()
    run, target, scene = work.run, work.run.root / "splats.ply", work.scene_as_read
    companion = capture = carried = None
    if run.source.splats and (run.settings.train.exposure or run.settings.train.poses):
        work.say("note: exposures and poses are learned while splats are trained; given ones take photos as they are")
    if run.trains_features:
        run.source = replace(run.source, masks_hash=work.hash_masks())
        companion = JointFeatures(work.train_id_maps(), run.settings.joint, run.settings.train.steps)
    if run.source.splats and run.settings.blocks.gaussians:
        return take_mapped(work, Path(run.source.splats), target)
    if run.source.splats:
        (splats, notes), cap = read_splats(run.source.splats, scene.origin, scene.points, scene.extent), None
        for note in notes:
            work.say(f"note: {note}")
        said = f"{len(splats):,} Gaussians taken from {run.source.splats}"
    else:
        if not len(scene.points):
            count = min(run.settings.train.init_random, run.settings.train.max_gaussians)
            work.say(
                f"note: the model has no 3D points, so training starts from {count:,} random Gaussians, which makes "
                "worse pictures and labels; a model with points (cgc reconstruct makes one) is better"
            )
        if run.corrects_photos:
            cameras = {i: scene.views[i].camera.to(work.device) for i in work.train_views}
            capture = PhotoCapture(cameras, scene.extent, run.settings.train)
        splats, trained = train_splats(
            scene, load_view, work.rasterizer, run.settings.train, device=work.device,
            test_every=run.settings.scene.test_every, capture=capture, companion=companion,
            checkpoint_dir=run.root / "checkpoints", quiet=work.quiet,
        )  # fmt: skip
        splats = splats.to("cpu")
        if not parallel.is_first():
            return ""
        carried = {name: value.cpu() for name, value in trained.carried.items()} if companion else None
        start = time.perf_counter() - trained.seconds  # some of them in processes that were stopped
        cap, budget = trained.max_gaussians, run.settings.train.budget
        said = f"{len(splats):,} Gaussians trained"
        if budget:
            said += f" in {short_time(trained.seconds)} of {short_time(budget)}"
    facts = {"gaussians": len(splats), "max_gaussians": cap, "extent": scene.extent, **NO_CORRECTIONS}
    facts |= {"given": bool(run.source.splats), "origin": list(scene.origin) if any(scene.origin) else None}
    with run.changing("train"):
        if carried is not None:
            with write_beside(run.root / TRAINED_FEATURES) as path:
                save_file(carried, path)
        write_ply(target, splats)
        _save_extras(run, splats.extras)
        (run.root / CORRECTIONS).unlink(missing_ok=True)  # of other splats
        if capture:
            found = capture.found() | _place(work, splats)
            corrections = {scene.views[i].name: found[i] for i in sorted(found)}
            write_corrections(run.root / CORRECTIONS, corrections)
            facts |= _correction_facts(run, scene, corrections, splats.means)
            said += "".join(f"; {text}" for text in say_corrections(facts))
    facts["splats_sha256"] = sha256(target)
    work.forget(*OF_TRAINING)
    work.splats = splats
    run.finish("train", time.perf_counter() - start, **facts)
    shutil.rmtree(run.root / "checkpoints", ignore_errors=True)  # what they would resume is done
    return f"{said}: {target}"


def _place(work: Workspace, splats: Splats) -> dict[int, Correction]:
    """Find how photos were exposed that training has not seen, and where their cameras were, to measure by them."""
    scene, settings, found = work.scene_as_read, work.run.settings.train, {}
    splats = splats.to(work.device)
    with progress_bar("held back", len(work.test_views), quiet=work.quiet) as bar:
        for i in work.test_views:
            photo = torch.tensor(load_view(scene.views[i]), device=work.device) / 255.0
            camera = scene.views[i].camera.to(work.device)
            found[i] = place(splats, camera, photo, work.rasterizer, scene.extent, settings, work.background)
            bar.advance(1)
    return found


def _correction_facts(run: RunFolder, scene: Scene, corrections: Corrections, means: Tensor) -> dict[str, Any]:
    """What stats.json has of corrections: the least and the largest brightness, the mean and the largest motion, px."""
    settings, cameras = run.settings.train, {view.name: view.camera for view in scene.views}
    grey = torch.full((3,), GREY)
    bright = [float(c.photographed(grey).mean()) / GREY for c in corrections.values()]
    seen = means[:: max(1, len(means) // MEASURED)]
    moved = [shift(seen, cameras[name], replace(cameras[name], viewmat=c.viewmat)) for name, c in corrections.items()]
    return {
        "exposures": [round(min(bright), 4), round(max(bright), 4)] if settings.exposure else None,
        "moved": [round(float(np.mean(moved)), 4), round(max(moved), 4)] if settings.poses else None,
    }


def shift(points: Tensor, before: Camera, after: Camera) -> float:
    """Return by how many pixels points [P, 3] have moved in the picture of a camera, the median; 0 if it sees none."""
    pixels, inside = [], np.ones(len(points), bool)
    for camera in (before, after):
        x, y, z = project(camera, points.cpu().numpy())
        inside &= (z > 0) & (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)
        pixels.append((x, y))
    (x, y), (to_x, to_y) = pixels
    return float(np.median(np.hypot(to_x - x, to_y - y)[inside])) if inside.any() else 0.0


def take_mapped(work: Workspace, given: Path, target: Path) -> str:
    """Take splats that were given without holding them; InputError where they would have to be moved."""
    if any(work.scene_as_read.origin):
        raise InputError(
            f"{given} cannot be taken block by block: its scene lies so far from the origin that it is moved there, "
            "which blocks do not do; centre the splats and the model, or give --blocks.gaussians 0"
        )
    start, splats = time.perf_counter(), MappedSplats(given)
    with work.run.changing("train"):
        _save_extras(work.run, splats.copy(target))
        (work.run.root / CORRECTIONS).unlink(missing_ok=True)
    work.forget(*OF_TRAINING)
    facts = {"gaussians": len(splats), "max_gaussians": None, "extent": work.scene_as_read.extent, **NO_CORRECTIONS}
    facts |= {"given": True, "origin": None, "splats_sha256": sha256(target)}
    work.run.finish("train", time.perf_counter() - start, **facts)
    return f"{len(splats):,} Gaussians taken from {given}: {target}"


def _save_extras(run: RunFolder, extras: dict[str, np.ndarray]) -> None:
    if not extras:
        (run.root / EXTRAS).unlink(missing_ok=True)
    else:
        with write_beside(run.root / EXTRAS) as path:
            write_arrays(path, extras)
