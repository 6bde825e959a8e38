"""What other tools read of a segmented scene: splats, labels, points, tables, COCO files, id maps and cut-outs.

`FORMATS` maps a name to a function that writes it into a folder and returns the files: `FORMATS[name](job, folder)`.
What is exported is clean: no NaN, nothing that is never drawn, and of an object its body alone (see `is_clean`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc.errors import InputError, some
from cgc.files import fits, folder_at, write_beside, write_csv, write_json
from cgc.geometry import sh_dc_to_rgb
from cgc.masks.id_maps import as_photo, write_id_map
from cgc.masks.image_masks import bounding_box, encode
from cgc.ply import write_vertices
from cgc.rasterize.base import Rasterizer
from cgc.scene import images
from cgc.scene.cameras import Z, up_of
from cgc.scene.types import Camera, View, picture_names
from cgc.segmentation.edit import MOVED, ORIGIN, whole_ids
from cgc.segmentation.halo import seen_shares
from cgc.segmentation.labels import render_ids
from cgc.segmentation.objects import is_clean
from cgc.segmentation.saved import shown_level
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import Segment, describe
from cgc.segmentation.turntable import check_mp4, turntable, write_animation
from cgc.splats.ply import write_ply
from cgc.splats.types import Splats

MIN_OPACITY = 1 / 255
"""What is less opaque is never drawn."""
MIN_SEEN = 0.2
"""What is hidden but for less than this share is of no known colour: dark blots under an object or where one hid it."""
BEST_VIEWS = 3
"""Cut-outs of each object, from the views that show most of it."""
MARGIN = 6
"""Pixels around an object in its cut-out."""


def _itself(view: View) -> View:
    return view


@dataclass(frozen=True)
class Export:
    """What to export: the segmentation, the ids (None: all that are shown), and what some formats need besides.

    `views` and the rasteriser make id maps; `load_image` gives a view's photo [H, W, 3] uint8, at its camera's size and
    undistorted; `as_taken` adds to a view what is known of its photo as the user has it: size and lens. `origin` [N]
    says which of the `n_original` Gaussians of the file that was segmented each was (None: those of `track`, or the
    same order); `world` is what to add to positions to be in the model's world again (None: nothing), which tables say.
    """

    segmentation: Segmentation
    ids: Sequence[int] | None = None
    views: Sequence[View] = ()
    rasterizer: Rasterizer | None = None
    load_image: Callable[[View], np.ndarray] = images.load_image
    as_taken: Callable[[View], View] = _itself
    origin: np.ndarray | None = None
    n_original: int | None = None
    world: Sequence[float] | None = None
    clean: bool = True

    @cached_property
    def chosen(self) -> list[int]:
        """The ids to export, each once; InputError for one that owns no Gaussian."""
        shown = self.segmentation.ids.tolist()
        wanted = shown if self.ids is None else whole_ids(self.ids)
        if not wanted:
            raise InputError(
                "there is nothing to export: the scene has no segment; cluster it first, or choose some ids"
            )
        tree = self.segmentation.hierarchy
        for segment in wanted:
            if not 1 <= segment <= tree.n_nodes or not self.segmentation.owns(segment):
                raise InputError(
                    f"segment {segment} has no Gaussian; choose of those that are shown: {some(shown, most=12)}"
                )
        return wanted

    @cached_property
    def labels(self) -> np.ndarray:
        """The chosen id of each Gaussian, [N] int32, -1: none. Of a part and a whole that are both chosen, the part."""
        tree, labels = self.segmentation.hierarchy, np.full(len(self.segmentation.splats), -1, np.int32)
        for segment in sorted(self.chosen, key=lambda node: len(tree.ancestors(node))):  # parts after what holds them
            labels[self.segmentation.members(segment)] = segment
        return labels

    @cached_property
    def id_maps(self) -> list[np.ndarray]:
        """The id map [H, W] of each view, the chosen ids only."""
        if not self.views or self.rasterizer is None:
            raise InputError(
                "this format is made of pictures: it needs the scene's cameras; export from a run whose scene is there"
            )
        if hidden := [i for i in self.chosen if i not in self.segmentation.ids]:
            raise InputError(f"segment {hidden[0]} is not shown at this level, so no picture has it; choose a level")
        splats, tree = self.segmentation.splats, self.segmentation.hierarchy
        level = shown_level(self.segmentation)
        maps = []
        for view in self.views:
            ids = render_ids(splats, tree, level, view.camera, self.rasterizer)
            maps.append(np.where(np.isin(ids, self.chosen), ids, 0).astype(np.int32))
        return maps

    def id_maps_of_photos(self) -> Iterator[np.ndarray]:
        """Yield the id map of each view [H, W] as its photo is, whose size and lens may be others than its camera's."""
        for view, ids in zip(self.views, self.id_maps):
            yield as_photo(ids, self.as_taken(view))

    @cached_property
    def stems(self) -> list[str]:
        """What each view's files are called; never a path that leaves the folder."""
        stems: dict[str, None] = {}
        for name in map(safe_path, picture_names([view.name for view in self.views])):
            number, stem = 2, name
            while stem in stems:  # names that differ in what files may not be called
                stem, number = f"{name}_{number}", number + 1
            stems[stem] = None
        return list(stems)

    @cached_property
    def table(self) -> list[Segment]:
        """The table of the chosen segments that are shown; views and pixels where there are cameras."""
        pixels = {}
        if self.views and self.rasterizer is not None:
            last = int(self.segmentation.labels.max(initial=0)) + 1
            pixels = {v.name: np.bincount(m.ravel(), minlength=last) for v, m in zip(self.views, self.id_maps)}
        return [s for s in describe(self.segmentation, pixels) if s.id in self.chosen]

    @cached_property
    def seen(self) -> dict[int, np.ndarray]:
        """Of each chosen segment how much of its Gaussians the cameras see, [n] in 0..1; nothing without cameras."""
        if not self.views or self.rasterizer is None:
            return {}
        members = [self.segmentation.members(segment) for segment in self.chosen]
        cameras = [view.camera for view in self.views]
        return dict(zip(self.chosen, seen_shares(self.segmentation.splats, members, self.rasterizer, cameras)))

    def name(self, segment: int) -> str:
        """What a segment is called: its name, or "segment 7"."""
        return self.segmentation.names.get(segment, f"segment {segment}")

    def stem(self, segment: int) -> str:
        """What a segment's files are called: 0007, or 0007_red-cup where it has a name."""
        name = safe_name(self.segmentation.names.get(segment, ""))
        return f"{segment:04d}" + (f"_{name}" if name else "")

    def body(self, segment: int) -> np.ndarray:
        """Which Gaussians are exported of a segment, ascending."""
        own = self.segmentation.members(segment)
        picked = self.segmentation.splats.select(torch.from_numpy(own))
        good = is_sound(picked)
        if self.clean and segment in self.seen:
            seen = self.seen[segment] >= MIN_SEEN
            good &= seen if (good & seen).any() else True
        if self.clean and good.any():
            body = np.flatnonzero(good)
            kept = is_clean(picked.select(torch.from_numpy(body)), self.segmentation.confidences[own[body]])
            good[body[~kept]] = False
        if not good.any():
            raise InputError(f"segment {segment} has no Gaussian that is drawn; remove it")
        return own[good]


Exporter = Callable[[Export, Path], list[Path]]


def is_sound(splats: Splats) -> np.ndarray:
    """Say which Gaussians a viewer can draw, [N] bool: finite, their rotation and size too, and not see-through."""
    splats = splats.detach()
    finite = torch.ones(len(splats), dtype=torch.bool, device=splats.means.device)
    for values in (splats.means, splats.quats, splats.log_scales, splats.logit_opacities, splats.sh, splats.scales):
        finite &= torch.isfinite(values).reshape(len(splats), -1).all(1)
    norm = splats.quats.double().norm(dim=1)
    return (finite & (norm > 1e-12) & (splats.opacities >= MIN_OPACITY)).cpu().numpy()


def safe_name(text: str) -> str:
    """Return a name as part of a file's: lower-case letters, digits and dashes, at most 40; maybe nothing."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain)[:40].strip("-")


def safe_path(name: str) -> str:
    """Return a view's name as a relative path that stays below its folder, sub-folders kept."""
    parts = [re.sub(r"[\x00-\x1f\x7f<>:\"|?*\\]", "_", part) for part in name.split("/")]
    return "/".join("_" if part.strip(". ") == "" else part for part in parts if part)


def _rows(job: Export, rows: np.ndarray) -> Splats:
    return job.segmentation.splats.select(torch.from_numpy(rows))


# --- splats -----------------------------------------------------------------------------------------------


def export_ply(job: Export, folder: Path) -> list[Path]:
    """Write each object as a plain 3DGS PLY: objects/0007.ply, or 0007_red-cup.ply where it has a name."""
    paths = []
    for segment in job.chosen:
        paths.append(folder / "objects" / f"{job.stem(segment)}.ply")
        write_ply(paths[-1], _rows(job, job.body(segment)))
    return paths


def export_selection(job: Export, folder: Path) -> list[Path]:
    """Write all chosen objects as one plain 3DGS PLY: selection.ply."""
    rows = np.unique(np.concatenate([job.body(segment) for segment in job.chosen]))
    write_ply(folder / "selection.ply", _rows(job, rows))
    return [folder / "selection.ply"]


def export_rest(job: Export, folder: Path) -> list[Path]:
    """Write the scene without the chosen objects, and without what they leave behind, as a plain 3DGS PLY: rest.ply."""
    from cgc.segmentation.edit import remove

    cameras = [view.camera for view in job.views]
    left = remove(job.segmentation, job.chosen, rasterizer=job.rasterizer, cameras=cameras).splats
    sound = is_sound(left)
    if not sound.any():
        raise InputError("nothing that is drawn is left without the chosen segments; choose fewer")
    write_ply(folder / "rest.ply", left.select(torch.from_numpy(np.flatnonzero(sound))))
    return [folder / "rest.ply"]


def export_labelled(job: Export, folder: Path) -> list[Path]:
    """Write the whole scene, every Gaussian, with the attribute `label` (see `Export.labels`): labelled.ply.

    Attributes of the file that was segmented are there too, but for those whose names a PLY cannot be sure to hold.
    """
    splats = job.segmentation.splats
    theirs = {k: v for k, v in splats.extras.items() if k not in (ORIGIN, MOVED) and re.fullmatch("[!-~]+", k)}
    write_ply(folder / "labelled.ply", splats, theirs | {"label": job.labels})
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
    splats = _rows(job, rows)
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


# --- pictures ---------------------------------------------------------------------------------------------


def export_masks(job: Export, folder: Path) -> list[Path]:
    """Write each view's id map, consistent across views, as a 16-bit PNG of its photo's size: masks/VIEW.png."""
    paths = [folder / "masks" / f"{stem}.png" for stem in job.stems]
    for path, ids in zip(paths, job.id_maps_of_photos()):
        write_id_map(path, ids)
    return paths


def export_coco(job: Export, folder: Path) -> list[Path]:
    """Write COCO annotations of all views: coco/instances.json, and coco/panoptic.json with coco/panoptic/VIEW.png.

    They fit the photos that `file_name` names, in size and lens. Categories are the segments' names ("object" for
    those without); an annotation's `object_id` is the same in all views. Masks of instances are uncompressed run
    lengths.
    """
    categories = {name: i for i, name in enumerate(["object", *sorted(set(job.segmentation.names.values()))], 1)}
    of = {i: categories[job.segmentation.names.get(i, "object")] for i in job.chosen}
    pictures, instances, panoptic, paths = [], [], [], []
    for index, (view, stem, ids) in enumerate(zip(job.views, job.stems, job.id_maps_of_photos()), 1):
        height, width = ids.shape
        pictures.append({"id": index, "file_name": view.name, "height": height, "width": width})
        segments = []
        for segment in np.flatnonzero(np.bincount(ids[ids > 0])).tolist():
            mask = ids == segment
            counts = encode(mask)
            box = list(bounding_box(counts, height))
            shared = {"category_id": of[segment], "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
            segments.append({"id": segment, **shared})
            run = {"size": [height, width], "counts": counts.tolist()}
            instances.append(
                {"id": len(instances) + 1, "image_id": index, "object_id": segment, "segmentation": run, **shared}
            )
        paths.append(folder / "coco" / "panoptic" / f"{stem}.png")
        _write_png(paths[-1], np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))
        panoptic.append({"image_id": index, "file_name": f"{stem}.png", "segments_info": segments})
    kinds = [{"id": i, "name": name, "supercategory": "object", "isthing": 1} for name, i in categories.items()]
    info = {"description": "segments of a Gaussian-splat scene", "version": "1"}
    common = {"info": info, "licenses": [], "images": pictures, "categories": kinds}
    write_json(folder / "coco" / "instances.json", {**common, "annotations": instances})
    write_json(folder / "coco" / "panoptic.json", {**common, "annotations": panoptic})
    return [folder / "coco" / "instances.json", folder / "coco" / "panoptic.json", *paths]


def export_cutouts(job: Export, folder: Path) -> list[Path]:
    """Write photos of each object cut out of the views that show most of it, see-through: cutouts/0007_1.png.

    They are cut out of the pictures that the run is made of: undistorted, and at the size it has used.
    """
    paths = []
    counts = np.stack([_shown_whole(ids, max(job.chosen) + 1) for ids in job.id_maps])  # [V, K + 1]
    for segment in job.chosen:
        best = np.argsort(-counts[:, segment], kind="stable")[:BEST_VIEWS]
        for place, index in enumerate(best[counts[best, segment] > 0].tolist(), 1):
            view = job.views[index]
            alpha = _alpha(job, segment, view.camera, job.id_maps[index] == segment)
            photo = job.load_image(view)
            if photo.shape[:2] != alpha.shape:
                raise InputError(f"the photo of {view.name} is {photo.shape[:2]} but its view {alpha.shape}")
            rgba = np.dstack([photo, (255 * alpha).round().astype(np.uint8)])
            left, top, width, height = bounding_box(encode(alpha > 0), alpha.shape[0])
            top, left, bottom, right = max(top - MARGIN, 0), max(left - MARGIN, 0), top + height, left + width
            paths.append(folder / "cutouts" / f"{job.stem(segment)}_{place}.png")
            _write_png(paths[-1], rgba[top : bottom + MARGIN, left : right + MARGIN])
    if not paths:
        raise InputError("no view shows any of the chosen segments; choose others")
    return paths


def _shown_whole(ids: np.ndarray, n: int) -> np.ndarray:
    """Return the pixels of each id in an id map, [n]; a quarter of them where the picture's edge cuts it."""
    counts = np.bincount(ids.ravel(), minlength=n).astype(float)
    edge = np.unique(np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]]))
    counts[edge] /= 4
    return counts


def _alpha(job: Export, segment: int, camera: Camera, mask: np.ndarray) -> np.ndarray:
    """Return how much of each pixel is an object's, [H, W] in 0..1: a soft edge at its mask, nothing beyond it."""
    from scipy import ndimage

    own = torch.from_numpy(job.segmentation.hierarchy.members(segment)[:, None].astype(np.float32))
    assert job.rasterizer is not None
    with torch.no_grad():
        share = job.rasterizer.render(job.segmentation.splats, own, [camera]).values[0, ..., 0].cpu().numpy()
    around = ndimage.binary_dilation(mask, iterations=1)
    soft = np.where(around, (2 * share - 0.5).clip(0, 1), 0.0)
    inside = ndimage.binary_erosion(mask, iterations=1)
    return np.where(inside, 1.0, np.where(mask, np.maximum(soft, 0.5), np.minimum(soft, 0.5)))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with write_beside(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def export_turntables(job: Export, folder: Path) -> list[Path]:
    """Write each chosen object on its own, seen from all around: turntables/0007.gif."""
    return _turn(job, folder, ".gif", frames=36, size=256, fps=12)


def export_videos(job: Export, folder: Path) -> list[Path]:
    """Write each chosen object likewise, larger and in all colours: turntables/0007.mp4 (takes imageio-ffmpeg)."""
    return _turn(job, folder, ".mp4", frames=96, size=512, fps=24)


def _turn(job: Export, folder: Path, suffix: str, *, frames: int, size: int, fps: float) -> list[Path]:
    if job.rasterizer is None:
        raise InputError("turntables are pictures, which take a rasteriser; export from a run")
    shared = up_of(view.camera for view in job.views)
    up = Z if shared is None else shared
    paths = []
    for segment in job.chosen:
        paths.append(folder / "turntables" / f"{job.stem(segment)}{suffix}")
        shown = turntable(_rows(job, job.body(segment)), job.rasterizer, frames=frames, size=size, up=up)
        write_animation(paths[-1], shown, fps=fps)
    return paths


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


def job_of(segmentation: Segmentation, ids: Sequence[int] | None = None) -> Export:
    """Return what is needed to export some ids (None: all that are shown), with the views it knows of.

    Cut-outs are of the photos; of pictures of the splats where an edit has changed what is seen.
    """
    context = segmentation.context
    cameras = context.cameras if context.known_cameras else {}
    views = [View(name, camera, Path(name)) for name, camera in cameras.items()]

    def photo(view: View) -> np.ndarray:
        if not segmentation.photos_hold:
            return segmentation.render(view.camera, "rgb")
        found = context.read_photo(view.name) if context.read_photo else None
        if found is None:
            raise InputError(f"the photo {view.name} is gone, and cut-outs are made of photos; restore the scene")
        return found

    def as_taken(view: View) -> View:
        return replace(context.views.get(view.name, view), camera=view.camera)

    world: Any = context.source.get("origin")
    return Export(
        segmentation, ids, views, context.rasterizer, photo, as_taken, n_original=context.n_original,
        world=world if fits(world, list[float]) and len(world) == 3 else None,
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


def export(job: Export, folder: Path | str, formats: Sequence[str]) -> list[Path]:
    """Write some formats into a folder.

    Unknown formats and ids, and ids that one of the formats cannot be made of, are refused before anything is written.
    """
    check_formats(formats)
    folder = folder_at(folder)
    if taken := [name for name in _NOT_INTO if (folder / name).exists()]:
        raise InputError(
            f"{folder} holds {taken[0]}: it is a scene, a run or a saved segmentation, whose own files an export might "
            "replace; choose another folder"
        )
    check_chosen(job, formats)
    if any(name in ("masks", "coco", "cutouts") for name in formats):
        _ = job.id_maps
    return [path for name in formats for path in FORMATS[name](job, folder)]
