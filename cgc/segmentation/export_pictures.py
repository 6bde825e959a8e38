"""Exports that are pictures: id maps, COCO files, cut-outs, and objects that turn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.files import write_beside, write_json
from cgc.masks.id_maps import resize_nearest, write_id_map
from cgc.masks.image_masks import bounding_box, encode
from cgc.progress import progress_bar
from cgc.scene.cameras import Z, up_of
from cgc.segmentation.edges import share_of
from cgc.segmentation.export_job import Export, exported, rows_of
from cgc.segmentation.turntable import turntable, write_animation

MARGIN = 6
"""Pixels around an object in its cut-out."""


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

    They are as large as the photos, and undistorted where the run has undistorted them. Those that were made of an
    object before are removed.
    """
    cuts: dict[int, list[tuple[int, Path]]] = {}  # of each view: so each photo is read once
    paths = []
    for segment, best in job.best_views.items():
        for place, index in enumerate(best, 1):
            paths.append(folder / "cutouts" / f"{job.stem(segment)}_{place}.png")
            cuts.setdefault(index, []).append((segment, paths[-1]))
    with progress_bar("cut-outs", len(paths), quiet=job.quiet) as bar:
        for index, of_view in cuts.items():
            ids, photo = job.beside_photo(index)
            for segment, path in of_view:
                mask = ids == segment
                if not mask.any():  # a few pixels that look like what is around them
                    mask = resize_nearest(job.shown_maps[index] == segment, photo.shape[1], photo.shape[0])
                _write_png(path, cut_out(photo, mask))
                bar.advance()
    chosen = set(job.chosen)
    for name in exported(folder):
        told = re.fullmatch(r"cutouts/(\d{4,})(_[^/]*)?_\d+\.png", name)
        if told and int(told[1]) in chosen and folder / name not in paths:  # of other views, or by another name
            (folder / name).unlink(missing_ok=True)
    return paths


def check_cutouts(job: Export) -> None:
    """Raise InputError where no view shows any of the chosen segments, or the photos are gone."""
    shown = [best[0] for best in job.best_views.values() if best]
    if not shown:
        raise InputError("no view shows any of the chosen segments; choose others")
    job.load_image(job.views[shown[0]])


def cut_out(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut a photo [H, W, 3] to what a mask [H, W] shows and a margin: RGBA, with a soft edge at the mask."""
    left, top, width, height = bounding_box(encode(mask), mask.shape[0])
    part = np.s_[max(top - MARGIN, 0) : top + height + MARGIN, max(left - MARGIN, 0) : left + width + MARGIN]
    return np.dstack([photo[part], (255 * _alpha(mask[part], photo[part])).round().astype(np.uint8)])


def _alpha(mask: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Return how much of each pixel is an object's, [H, W] in 0..1: a soft edge at its mask, nothing beyond it."""
    from scipy import ndimage

    soft = (2 * share_of(mask, photo) - 0.5).clip(0, 1)
    around = ndimage.binary_dilation(mask, iterations=1)
    inside = ndimage.binary_erosion(mask, iterations=1, border_value=1)
    return np.where(inside, 1.0, np.where(mask, np.maximum(soft, 0.5), np.where(around, np.minimum(soft, 0.5), 0.0)))


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
        shown = turntable(rows_of(job, job.body(segment)), job.rasterizer, frames=frames, size=size, up=up)
        write_animation(paths[-1], shown, fps=fps)
    return paths
