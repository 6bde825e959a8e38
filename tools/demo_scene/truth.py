"""Write the demo scene's ground truth from ray-cast maps: id images, instances.json, coloured points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from .cameras import Pinhole, View

NOTE = "instance/NNN.png hold the finest id (part id where a part exists); merge part->parent for whole objects"


class Described(Protocol):
    """What instances.json says of a thing."""

    id: int
    name: str
    kind: str
    stuff: bool
    parent: int | None


def write_ids(path: Path, ids: np.ndarray) -> None:
    """Write an (H, W) id map as a 16-bit grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(path, optimize=True)


def instances_table(scene: str, items: Sequence[Described], maps: np.ndarray) -> dict:
    """Describe the instances with their pixel and view counts over the (V, H, W) maps."""
    rows = []
    for item in items:
        per_view = (maps == item.id).sum((1, 2))
        rows.append(
            {
                "id": item.id,
                "name": item.name,
                "class": item.kind,
                "stuff": item.stuff,
                "parent": item.parent,
                "pixels": int(per_view.sum()),
                "views": int((per_view > 0).sum()),
            }
        )
    return {
        "scene": scene,
        "width": maps.shape[2],
        "height": maps.shape[1],
        "background_id": 0,
        "stuff_ids": [item.id for item in items if item.stuff],
        "part_ids": [item.id for item in items if item.parent is not None],
        "note": NOTE,
        "instances": rows,
    }


def write_table(path: Path, table: dict) -> None:
    """Write instances.json."""
    path.write_text(json.dumps(table, indent=1) + "\n")


def colour_points(
    xyz: np.ndarray, views: list[View], camera: Pinhole, photos: list[np.ndarray], depths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average the photos over the views that see a point: rgb (N, 3) uint8 (black if unseen), count (N,)."""
    total, count = np.zeros((len(xyz), 3)), np.zeros(len(xyz), np.uint8)
    for view, photo, depth in zip(views, photos, depths, strict=True):
        at = xyz @ view.rotation.T + view.translation
        z = np.maximum(at[:, 2], 1e-6)
        x = np.floor(camera.focal * at[:, 0] / z + camera.width / 2).astype(int)
        y = np.floor(camera.focal * at[:, 1] / z + camera.height / 2).astype(int)
        inside = (at[:, 2] > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        k = np.flatnonzero(inside)
        k = k[np.abs(depth[y[k], x[k]] - z[k]) < 0.01 * z[k]]
        total[k] += photo[y[k], x[k]]
        count[k] += 1
    return np.rint(total / np.maximum(count, 1)[:, None]).astype(np.uint8), count
