"""The steps of a run in order, each on a run folder, done by one process or shared by several."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from cgc import kernels, parallel
from cgc.device import Lever, out_of_memory
from cgc.leftovers import clear_files
from cgc.pipeline.cluster import cluster_features
from cgc.pipeline.export import export
from cgc.pipeline.lift import lift
from cgc.pipeline.render import render
from cgc.pipeline.report import report
from cgc.pipeline.sharpen import sharpen_borders
from cgc.pipeline.train import OF_TRAINING, train
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import Source
from cgc.scene.read import fingerprint
from cgc.settings import to_json

FUNCTIONS: dict[str, Callable[[Workspace], str]] = {
    "train": train,
    "lift": lift,
    "cluster": cluster_features,
    "sharpen": sharpen_borders,
    "render": render,
    "export": export,
    "report": report,
}
ENDS = 1 << 20
"""Bytes at the end of a file by which runs of several machines are told apart."""
SHARED = ("lift", "cluster", "render")
"""The steps that several processes do together."""


def meet(work: Workspace) -> None:
    """Make sure that all processes are about to do the same; what the scene needs is made once.

    What processes that were killed have left half-written in the run is removed.
    """
    if parallel.is_first():
        clear_files(work.run.root)
    if parallel.here()[1] > 1:
        with parallel.first_before_others():
            scene = work.scene_as_read
            device, why = work.choice  # what has to be built for it is built once
        parallel.check_alike(device.type, why.partition("(")[2].removesuffix(")"))
        identity = replace(work.run.source, fingerprint=fingerprint(scene)).scene_identity()
        parallel.check_same(
            settings=_short_hash(to_json(work.run.settings)), scene=_short_hash(identity), run=_contents(work)
        )


def do(work: Workspace, step: str) -> str:
    """Do a step and return what is to be said of it: in all processes, or in the first while the others wait."""
    with out_of_memory(step, lambda: _levers(work, step)):
        return _do(work, step)


def _levers(work: Workspace, step: str) -> list[Lever]:
    """What a step's memory grows with, on a GPU."""
    own = {
        "train": Lever("--train.max-gaussians", work.run.settings.train.max_gaussians),
        "lift": Lever("--lift.pixels-per-view", work.run.settings.lift.pixels_per_view),
    }
    side = max(max(view.camera.width, view.camera.height) for view in work.scene_as_read.views)
    return [*(own[name] for name in own if name == step), Lever("--max-side", side, 2)]


def _do(work: Workspace, step: str) -> str:
    said = ""
    if _shares(work, step):
        said = FUNCTIONS[step](work)
    elif parallel.is_first():
        if parallel.count() > 1 and step in ("train", "sharpen"):
            work.say(f"{step}: in one process, the others wait{_how_to_share(work, step)}")
        threads = kernels.thread_count()  # and those of the processes that wait on this machine
        threads = max(threads, min(threads * parallel.count_here(), os.cpu_count() or 1))
        with parallel.alone(), kernels.threads(threads):
            said = FUNCTIONS[step](work)
    _follow(work, step)
    return said


def _shares(work: Workspace, step: str) -> bool:
    """Say whether processes share a step: training does where a step has a photo for more than one of them."""
    run, photos = work.run, work.run.settings.train.views_per_step
    alone = run.trains_features or run.source.splats is not None or photos == 1
    return step in SHARED or (step == "train" and not alone)


def _how_to_share(work: Workspace, step: str) -> str:
    """Return what to add, where a setting would share a step."""
    if step != "train" or work.run.trains_features or work.run.source.splats is not None:
        return ""
    return f"; with --train.views-per-step {parallel.count()} each has a photo of every step"


def _follow(work: Workspace, step: str) -> None:
    """Take over what the first process has found and written."""
    source, stats = parallel.agree([asdict(work.run.source), work.run.stats])
    if not parallel.is_first():
        work.run.source, work.run.stats = Source(**source), stats
        work.forget(*{"train": OF_TRAINING, "sharpen": ("sharpened",)}.get(step, ()))


def _contents(work: Workspace) -> str:
    """What a run's folder holds of its steps: which are done, and the sizes and ends of their files."""
    parts = [json.dumps(work.run.stats["steps"], sort_keys=True)]
    for name in ("splats.ply", "features.safetensors", "segments.npz", "sharpened.ply"):
        path = work.run.root / name
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - ENDS))
                parts.append(f"{name} {path.stat().st_size} {hashlib.sha256(file.read()).hexdigest()}")
    return _short_hash(parts)


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
