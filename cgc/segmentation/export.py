"""What other tools read of a segmented scene: splats, labels, points, tables, COCO files, id maps and cut-outs.

`FORMATS` maps a name to a function that writes it into a folder and returns the files: `FORMATS[name](job, folder)`.
What there is to export says export_job.py; formats that are pictures are in export_pictures.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc.errors import InputError, some
from cgc.files import fits, folder_at, write_beside, write_csv, write_json
from cgc.geometry import sh_dc_to_rgb
from cgc.ply import write_vertices
from cgc.scene import images
from cgc.scene.types import View
from cgc.segmentation.edges import check_edges
from cgc.segmentation.edit import MOVED, ORIGIN, remove
from cgc.segmentation.export_job import RECORD, Export, exported, is_sound, rows_of
from cgc.segmentation.export_pictures import (
    check_cutouts,
    export_coco,
    export_cutouts,
    export_masks,
    export_turntables,
    export_videos,
)
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.turntable import check_mp4
from cgc.settings import Edges
from cgc.splats.ply import write_ply

Exporter = Callable[[Export, Path], list[Path]]


# --- splats -----------------------------------------------------------------------------------------------


def export_ply(job: Export, folder: Path) -> list[Path]:
    """Write each object as a plain 3DGS PLY: objects/0007.ply, or 0007_red-cup.ply where it has a name."""
    paths = []
    for segment in job.chosen:
        paths.append(folder / "objects" / f"{job.stem(segment)}.ply")
        write_ply(paths[-1], rows_of(job, job.body(segment)), origin=job.world)
    return paths


def export_selection(job: Export, folder: Path) -> list[Path]:
    """Write all chosen objects as one plain 3DGS PLY: selection.ply."""
    rows = np.unique(np.concatenate([job.body(segment) for segment in job.chosen]))
    write_ply(folder / "selection.ply", rows_of(job, rows), origin=job.world)
    return [folder / "selection.ply"]


def export_rest(job: Export, folder: Path) -> list[Path]:
    """Write the scene without the chosen objects, and without what they leave behind, as a plain 3DGS PLY: rest.ply."""
    cameras = [view.camera for view in job.views]
    left = remove(job.segmentation, job.chosen, rasterizer=job.rasterizer, cameras=cameras).splats
    sound = is_sound(left)
    if not sound.any():
        raise InputError("nothing that is drawn is left without the chosen segments; choose fewer")
    write_ply(folder / "rest.ply", left.select(torch.from_numpy(np.flatnonzero(sound))), origin=job.world)
    return [folder / "rest.ply"]


def export_labelled(job: Export, folder: Path) -> list[Path]:
    """Write the whole scene, every Gaussian, with the attribute `label` (see `Export.labels`): labelled.ply.

    Attributes of the file that was segmented are there too, but for those whose names a PLY cannot be sure to hold.
    """
    splats = job.segmentation.splats
    theirs = {k: v for k, v in splats.extras.items() if k not in (ORIGIN, MOVED) and re.fullmatch("[!-~]+", k)}
    write_ply(folder / "labelled.ply", splats, theirs | {"label": job.labels}, origin=job.world)
    return [folder / "labelled.ply"]


def export_labels(job: Export, folder: Path) -> list[Path]:
    """Write a label for each Gaussian of the file that was segmented, in its order, -1 for none: labels.npy, int32.

    Those are of `Export.labels`. Of the halves of one that was split, the surest counts; what was removed has none.
    """
    labels, n = job.segmentation.labels, len(job.segmentation.splats)
    origin = job.segmentation.splats.extras.get(ORIGIN, np.arange(n)) if job.origin is None else job.origin
    size = int(origin.max(initial=-1)) + 1 if job.n_original is None else job.n_original
    if origin.shape != (n,) or origin.min(initial=0) < 0 or origin.max(initial=-1) >= size:
        raise InputError(f"origins of {n} Gaussians, from 0 to {size - 1}, were expected; they are of another file")
    given = np.full(size, -1, np.int32)
    order = np.lexsort((-labels, job.segmentation.confidences))  # the last one that is written counts
    given[origin[order]] = job.labels[order]
    with write_beside(folder / "labels.npy") as path:
        np.save(path, given)
    return [folder / "labels.npy"]


def export_points(job: Export, folder: Path) -> list[Path]:
    """Write the centres of the chosen objects' Gaussians as a coloured point cloud: points.ply."""
    rows = np.unique(np.concatenate([job.body(segment) for segment in job.chosen]))
    splats = rows_of(job, rows)
    means = splats.means.detach().cpu().numpy()
    rgb = sh_dc_to_rgb(splats.sh[:, 0].detach()).cpu().numpy()
    columns = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    table = np.empty(len(rows), columns)
    for i, axis in enumerate("xyz"):
        table[axis] = means[:, i]
    for i, color in enumerate(("red", "green", "blue")):
        table[color] = (255 * rgb[:, i]).round()
    write_vertices(folder / "points.ply", table)
    return [folder / "points.ply"]


# --- tables -----------------------------------------------------------------------------------------------


def export_boxes(job: Export, folder: Path) -> list[Path]:
    """Write what is known of each object, its boxes among it, as boxes.json and boxes.csv.

    `origin` in boxes.json is to be added to positions to be in the model's world. box_min, box_max and size are of the
    box along the world's axes; oriented_* are of `Object.box`, its axes as rows.
    """
    rows, flat = [], []
    for s in job.table:
        box = job.segmentation[s.id].box
        oriented = {f"oriented_{key}": value.tolist() for key, value in vars(box).items()}
        row = {"name": job.name(s.id), **vars(s), "size": s.size, **oriented}
        rows.append(row)
        line: dict[str, Any] = {}
        for key, value in row.items():
            if key == "children":
                line[key] = " ".join(map(str, value))
            elif key == "oriented_axes":
                line |= {f"{key}_{i}_{axis}": v for i, along in enumerate(value) for axis, v in zip("xyz", along)}
            elif isinstance(value, (tuple, list)):
                line |= {f"{key}_{axis}": v for axis, v in zip("rgb" if key == "color" else "xyz", value)}
            else:
                line[key] = _cell(value)
        flat.append(line)
    if not rows:
        raise InputError("none of the chosen segments is shown at this level; choose others, or another level")
    write_json(folder / "boxes.json", {"segments": rows, "origin": list(job.world or (0.0, 0.0, 0.0))})
    write_csv(folder / "boxes.csv", list(flat[0]), flat)
    return [folder / "boxes.json", folder / "boxes.csv"]


def _cell(value: Any) -> Any:
    """Return a value as a spreadsheet takes it: text that would be read as a formula is marked as text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


FORMATS: dict[str, Exporter] = {
    "ply": export_ply,
    "selection": export_selection,
    "rest": export_rest,
    "labelled": export_labelled,
    "labels": export_labels,
    "points": export_points,
    "boxes": export_boxes,
    "masks": export_masks,
    "coco": export_coco,
    "cutouts": export_cutouts,
    "turntable": export_turntables,
    "video": export_videos,
}
"""What can be exported, by name."""


_NOT_INTO = ("sparse", "images", "transforms.json", "config.json", "segmentation.json", "masks.json")
"""What says that a folder is something else than a place for exports."""
_LEFT = {
    "ply": ["objects"], "boxes": ["boxes.json", "boxes.csv"], "labels": ["labels.npy"], "turntable": ["turntables"],
    "video": ["turntables"], **{name: [name] for name in ("masks", "coco", "cutouts")},
    **{name: [f"{name}.ply"] for name in ("selection", "rest", "labelled", "points")},
}  # fmt: skip
"""What each format leaves in its folder."""


def job_of(
    segmentation: Segmentation, ids: Sequence[int] | None = None, edges: Edges = "photos", *, quiet: bool = True
) -> Export:
    """Return what is needed to export some ids (None: all that are shown), with the views it knows of.

    Cut-outs are of the photos; of pictures of the splats where an edit has changed what is seen, and borders are theirs
    then. So they are where the scene is gone.
    """
    check_edges(edges)
    context = segmentation.context
    cameras = context.cameras if context.known_cameras else {}
    views = [View(name, camera, Path(name)) for name, camera in cameras.items()]

    def photo(view: View) -> np.ndarray:
        if not segmentation.photos_hold:
            return segmentation.render(view.camera, "rgb")
        if view.name not in context.views:
            why = context.lost_photos or f"{view.name} is gone; restore the scene"
            raise InputError(f"cut-outs are made of photos, which cannot be read: {why}")
        return images.load_whole(context.views[view.name])

    def as_taken(view: View) -> View:
        return replace(context.views.get(view.name, view), camera=view.camera)

    world: Any = context.source.get("origin")
    followed = segmentation.photos_hold and context.views
    return Export(
        segmentation, ids, views, context.rasterizer, photo, as_taken, edges if followed else "splats",
        n_original=context.n_original, world=world if fits(world, list[float]) and len(world) == 3 else None,
        quiet=quiet,
    )  # fmt: skip


def check_formats(formats: Sequence[str]) -> None:
    """Raise InputError where there is no format, or one that cannot be written."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"there is no format {unknown[0]!r} to export; choose from {', '.join(FORMATS)}")
    if not formats:
        raise InputError(f"no format was given; choose from {', '.join(FORMATS)}")
    if "video" in formats:
        check_mp4()


_OF_SHOWN = ("boxes", "masks", "coco", "cutouts")
"""Formats of what a level shows; the others take parts and wholes too."""
_OF_BODIES = ("ply", "selection", "points", "turntable", "video")
"""Formats of each object's own Gaussians."""


def check_chosen(job: Export, formats: Sequence[str]) -> None:
    """Raise InputError where a format cannot be made of the ids that are chosen."""
    scene, shown = job.segmentation, set(job.segmentation.ids.tolist())
    hidden, of_shown = [i for i in job.chosen if i not in shown], [name for name in formats if name in _OF_SHOWN]
    if hidden and of_shown:
        raise InputError(
            f"segment {hidden[0]} is not shown at this level, and {of_shown[0]} are of what is shown; "
            f"choose of {some(sorted(shown), most=12)}, "
            "another level, or other formats (ply, selection, labels, labelled, points)"
        )
    sound = is_sound(scene.splats)
    unseen = [i for i in job.chosen if not sound[scene.members(i)].any()]
    if unseen and any(name in _OF_BODIES for name in formats):
        raise InputError(f"segment {unseen[0]} has no Gaussian that is drawn; remove it")
    if "rest" in formats and not sound[job.labels < 0].any():
        raise InputError(
            "rest is what is left without the chosen segments, and that is nothing; choose fewer segments, or leave "
            "rest out"
        )
    if any(name in ("masks", "coco", "cutouts") for name in formats):
        _ = job.shown_maps
    if "boxes" in formats:
        _ = job.table
    if "cutouts" in formats:
        check_cutouts(job)


def export(job: Export, folder: Path | str, formats: Sequence[str]) -> list[Path]:
    """Write some formats into a folder.

    Unknown formats and ids, ids that one of the formats cannot be made of, and places that hold what no export has
    written are refused before anything is written.
    """
    check_formats(formats)
    folder = folder_at(folder)
    if taken := [name for name in _NOT_INTO if (folder / name).exists()]:
        raise InputError(
            f"{folder} holds {taken[0]}: it is a scene, a run or a saved segmentation, whose own files an export might "
            "replace; choose another folder"
        )
    before, left = set(exported(folder)), {name for chosen in formats for name in _LEFT[chosen]}
    ours = {name.split("/")[0] for name in before} | (left if _is_from_before_records(folder) else set())
    if theirs := [name for name in sorted(left - ours) if os.path.lexists(folder / name)]:
        raise InputError(
            f"{folder / theirs[0]} is where an export would write, and nothing says that one has written it; choose "
            "another folder, or move it away"
        )
    check_chosen(job, formats)
    paths: list[Path] = []
    write_json(folder / RECORD, sorted(before | left))  # if it is killed from now on
    try:
        for name in formats:
            paths += FORMATS[name](job, folder)
    finally:
        known = before | left | {path.relative_to(folder).as_posix() for path in paths}
        write_json(folder / RECORD, sorted(name for name in known if os.path.lexists(folder / name)))
    return paths


def _is_from_before_records(folder: Path) -> bool:
    """Say whether it is where a run or a saved segmentation is exported by default, by a version without records."""
    own = any((folder.parent / name).is_file() for name in ("config.json", "segmentation.json"))
    return own and re.fullmatch(r"export(_at_.*)?", folder.name) is not None and not (folder / RECORD).exists()
