"""What training has found out about the photos of a run: how each was exposed, and where its camera really was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.files import read_json, write_json
from cgc.scene.types import Camera, Scene

FORMAT = 1


@dataclass(frozen=True)
class Correction:
    """Of one photo: `color` [3, 4], the photo is color (render, 1) of the splats' clean render; `viewmat` [4, 4]."""

    color: Tensor
    viewmat: Tensor

    def photographed(self, render: Tensor) -> Tensor:
        """Return a render [..., 3] as the camera exposed it, with its white balance."""
        color = self.color.to(render.device)
        return render @ color[:, :3].T + color[:, 3]


Corrections = Mapping[str, Correction]
"""By the names of photos. One that is not in it is as its render, and its camera as the scene has it."""


def corrected(scene: Scene, corrections: Corrections) -> Scene:
    """Return the scene with its cameras where they really were."""
    cameras = corrected_cameras({view.name: view.camera for view in scene.views}, corrections)
    return replace(scene, views=tuple(replace(view, camera=cameras[view.name]) for view in scene.views))


def corrected_cameras(cameras: Mapping[str, Camera], corrections: Corrections) -> dict[str, Camera]:
    """Return cameras, by the names of their photos, where they really were; InputError for a photo that has none."""
    strange = sorted(set(corrections) - set(cameras))
    if strange:
        raise InputError(f"training has corrected {strange[0]}, which the scene has no more; train the run again")
    moved = {name: replace(cameras[name], viewmat=found.viewmat) for name, found in corrections.items()}
    return {**cameras, **moved}


def write_corrections(path: Path, corrections: Corrections) -> None:
    """Write corrections as JSON, to the bit."""
    photos = [
        {"name": name, "color": c.color.tolist(), "viewmat": c.viewmat.tolist()} for name, c in corrections.items()
    ]
    write_json(path, {"format": FORMAT, "photos": photos})


def read_corrections(path: Path) -> dict[str, Correction]:
    """Read what `write_corrections` wrote; InputError where it is missing or broken."""
    value = read_json(path, "what training found of the photos")
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']} where {FORMAT} was expected")
        return {str(row["name"]): _correction(row) for row in value["photos"]}
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path} is broken ({error}); train the run again") from error


def _correction(row: Mapping[str, Any]) -> Correction:
    color, viewmat = (torch.tensor(row[name], dtype=torch.float32) for name in ("color", "viewmat"))
    if color.shape != (3, 4) or viewmat.shape != (4, 4) or not (color.isfinite().all() and viewmat.isfinite().all()):
        raise ValueError(f"the matrices of {row['name']} are not finite ones of 3x4 and 4x4")
    return Correction(color, viewmat)
