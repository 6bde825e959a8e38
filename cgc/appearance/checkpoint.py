"""Checkpoints of a training: safetensors of all that does not follow from settings, scene and step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cgc.errors import InputError
from cgc.files import check_readable, fits, write_beside
from cgc.scene.types import Scene
from cgc.settings import TrainSettings, to_json
from cgc.splats.types import Splats

KEEP = 2
VERSION = 2
NAMES = {"version": "version", "scene": "scene", "companion": "kind of features, or other masks"}


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and numbers as they were before step `step`."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float]


class _Facts(TypedDict):
    """What is read again of a checkpoint, beside what it belongs to."""

    step: int
    numbers: dict[str, float]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: hashes of the settings, of the scene with its photos, and of the companion."""

    settings: str
    scene: str
    companion: str = ""


def identify(
    settings: TrainSettings,
    scene: Scene,
    train_views: Sequence[int],
    photos: Sequence[np.ndarray],
    *,
    companion: str = "",
    start: Splats | None = None,
) -> Identity:
    """Hash what a training depends on: settings, cameras, points or splats, and the training photos [H, W, 3].

    `companion` is its identity. How often checkpoints are written and where photos are kept does not change the result,
    so they are left out; so is the cap on Gaussians, which may be lowered where a GPU's memory does not suffice
    (raised it is not: `Training.resume`).
    """
    kept = {k: v for k, v in to_json(settings).items() if k not in ("checkpoint_every", "photos", "max_gaussians")}
    digest = hashlib.blake2b(digest_size=16)
    for index, photo in zip(train_views, photos):
        view = scene.views[index]
        digest.update(f"{view.name} {view.camera.width}x{view.camera.height}".encode())
        digest.update(view.camera.viewmat.cpu().numpy().tobytes() + view.camera.K.cpu().numpy().tobytes())
        digest.update(np.ascontiguousarray(photo).tobytes())
    digest.update(np.ascontiguousarray(scene.points).tobytes())
    digest.update(np.ascontiguousarray(scene.point_colors).tobytes())
    if start is not None:
        for tensor in (start.means, start.quats, start.log_scales, start.logit_opacities, start.sh):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    settings_digest = hashlib.blake2b(json.dumps(kept).encode(), digest_size=16)
    return Identity(settings_digest.hexdigest(), digest.hexdigest(), companion)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, identity: Identity) -> Path:
    """Write a checkpoint, whole or not at all, and remove all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train_{checkpoint.step:07d}.safetensors"
    facts = {
        "version": VERSION, "step": checkpoint.step, "numbers": checkpoint.numbers,
        **vars(identity),
    }  # fmt: skip
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    with write_beside(path) as temporary:
        save_file(tensors, temporary, metadata={"cgc": json.dumps(facts)})
    for old in _checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path, identity: Identity) -> Checkpoint | None:
    """Read the newest checkpoint of `folder`, None where there is none.

    Raise InputError where it is broken, of another version, or belongs to other settings or another scene.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    path = found[-1]
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["cgc"])
            if not fits(facts, _Facts):
                raise ValueError("it does not say of which step it is")
            tensors: Mapping[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a checkpoint of cgc ({error}); delete it to train without it") from error
    for what, mine in {"version": VERSION, **vars(identity)}.items():
        if facts.get(what, "") != mine:
            other = f"another {NAMES[what]}" if what in NAMES else f"other {what}"
            raise InputError(
                f"{path} was written by a training with {other}; repeat the command it was made with, "
                f"choose another --out, or delete {folder} to train from the start"
            )
    return Checkpoint(facts["step"], dict(tensors), facts["numbers"])


def _checkpoints(folder: Path) -> list[Path]:
    """List checkpoints, oldest first (their names sort by step; partial files are hidden ones)."""
    return sorted(folder.glob("train_*.safetensors"))
