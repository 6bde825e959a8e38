"""The formats: what each is, what opens it, and how a folder is recognised as one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgc.errors import InputError, some
from cgc.files import files_below
from cgc.masks.importers import coco, exports, garfield, labelme, sam, stacks, video
from cgc.masks.importers.arrays import read_arrays
from cgc.masks.importers.base import Listing, Source, image_header, read_json, read_pixels
from cgc.masks.importers.pngs import open_colours, open_ids
from cgc.scene.types import View


@dataclass(frozen=True)
class Format:
    """A format: what is looked for, whether ids are the same in every view, what opens it."""

    looks_for: str
    tracked: str
    open: Callable[[Listing, bool], Source]


def _tracked_pngs(listing: Listing, _: bool) -> Source:
    """Open DEVA's PNGs, which are RGB where it had more than 255 ids."""
    source = open_colours if _coloured(listing.named(".png")) else open_ids
    return source(listing, True)


FORMATS: dict[str, Format] = {
    "sam-png": Format(
        "Segment Anything's amg.py: a folder an image with 0.png, 1.png, ... and metadata.csv (without it: no scores)",
        "no",
        lambda files, _: sam.open_folders(files),
    ),
    "sam-json": Format(
        "amg.py --convert-to-rle: IMAGE.json, a list of masks with run lengths (plain or compressed)", "no",
        lambda files, _: sam.open_jsons(files, photos=False),
    ),
    "sa-1b": Format(
        "SA-1B: IMAGE.json with 'image' and 'annotations'; or Grounded SAM 2's, with 'image_path' instead", "no",
        lambda files, _: sam.open_jsons(files, photos=True),
    ),
    "gaussian-grouping": Format(
        "Gaussian Grouping's object_mask/ or DEVA's Annotations/: PNGs with ids, grey, palette or RGB", "yes",
        _tracked_pngs,
    ),
    "gaga": Format(
        "Gaga's sam_mask/ or entityseg_mask/: PNGs and info.json (raw_*_mask/ is id-png)", "yes", _tracked_pngs
    ),
    "sam2-png": Format(
        "SAM 2's vos_inference.py: a palette PNG a frame (named only by --format: palette-png looks the same)", "yes",
        _tracked_pngs,
    ),
    "sam2-objects": Format(
        "SAM 2's vos_inference.py --per_obj_png_file: 001/FRAME.png, a folder an object", "yes",
        lambda files, _: video.open_objects(files),
    ),
    "sam2-npz": Format(
        "SAM 2's video_segments in one .npz: an array FRAME/OBJECT each, or FRAME with ids, or ids [F, H, W]", "yes",
        lambda files, _: video.open_npz(files),
    ),
    "grounded-sam2": Format(
        "Grounded SAM 2's mask_data/: mask_NAME.npy, ids [H, W]", "yes",
        lambda files, _: stacks.open_arrays(files, (".npy",), True),
    ),
    "id-png": Format("PNGs of one channel, 8 or 16 bits, whose values are ids", "with --tracked", open_ids),
    "palette-png": Format("palette PNGs, whose indices are ids", "with --tracked", open_ids),
    "rgb-png": Format(
        "RGB PNGs, a colour an object (id = R + 256 G + 65536 B), black = unassigned", "with --tracked",
        open_colours,
    ),
    "coco": Format(
        "a COCO JSON for all images, or one a split: polygons, run lengths", "no",
        lambda files, _: coco.open_instances(files),
    ),
    "coco-panoptic": Format(
        "one panoptic COCO JSON and its RGB PNGs", "no", lambda files, _: coco.open_panoptic(files)
    ),
    "labelme": Format(
        "LabelMe: IMAGE.json with 'shapes' (polygon, rectangle, circle, mask)", "no",
        lambda files, _: labelme.open_labelme(files),
    ),
    "id-arrays": Format(
        ".npy or .npz an image: ids [H, W], or levels of them [L, H, W]", "with --tracked",
        lambda files, tracked: stacks.open_arrays(files, (".npy", ".npz"), tracked),
    ),
    "mask-arrays": Format(
        ".npy or .npz an image (Mask R-CNN, SAM 3): masks [M, H, W], [M, 1, H, W] or [H, W, M], scores if there",
        "with --tracked, where out_obj_ids are there",
        lambda files, tracked: video.open_stacks(files, (".npy", ".npz"), tracked),
    ),
    "langsplat": Format(
        "LangSplat: NAME_s.npy, four levels [4, H, W], -1 = unassigned", "no",
        lambda files, _: stacks.open_arrays(files, (".npy",), False, ending="_s", minus=True),
    ),
    "saga": Format(
        "SAGA's sam_masks/: IMAGE.pt, masks [M, H, W]", "with --tracked, where out_obj_ids are there",
        lambda files, tracked: video.open_stacks(files, (".pt", ".pth"), tracked),
    ),
    "garfield": Format(
        "GARField's sam_data.hdf5 (needs h5py)", "no", lambda files, _: garfield.open_garfield(files)
    ),
}  # fmt: skip


def list_files(path: Path, format: str) -> tuple[Listing, list[str]]:
    """List the files to read, hidden ones left out, and say which sub-folder was taken; InputError where it is none."""
    if path.is_file():
        return Listing(path.parent, (path,)), []
    if not path.is_dir():
        raise InputError(f"the masks {path} do not exist; expected a folder or a file")
    root = path
    pngs = format == "auto" or FORMATS[format].open in (_tracked_pngs, open_ids, open_colours)
    while (inner := _inner(root, pngs)) is not None:
        root = inner
    files = tuple(
        p for p in sorted(files_below(root))
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts)
    )  # fmt: skip
    return Listing(root, files), [] if root == path else [f"The masks were taken from {root}."]


def _inner(folder: Path, pngs: bool) -> Path | None:
    """Return the sub-folder with the masks: a tracker's PNGs, Pascal VOC's objects, or the only thing there is."""
    if pngs and (folder / "object_mask").is_dir():
        return folder / "object_mask"
    if pngs and (folder / "pred.json").is_file() and (folder / "Annotations").is_dir():
        return folder / "Annotations"
    if pngs and (folder / "SegmentationClass").is_dir() and (folder / "SegmentationObject").is_dir():
        return folder / "SegmentationObject"
    children = [p for p in folder.iterdir() if not p.name.startswith(".")]
    if len(children) == 1 and children[0].is_dir() and not children[0].name.isdecimal():
        return None if (children[0] / "metadata.csv").is_file() else children[0]
    return None


def recognise(listing: Listing, views: Sequence[View]) -> str:
    """Return the name of the format; InputError where none or several fit."""
    if not listing.files:
        raise InputError(f"{listing.root} holds no file; expected masks of one of the formats {', '.join(FORMATS)}")
    exports.check_names(listing)
    found = _candidates(listing, views)
    if len(found) == 1:
        return next(iter(found))
    if found:
        told = "; ".join(f"{name} ({why})" for name, why in found.items())
        raise InputError(
            f"the masks {listing.root} may be of several formats: {told}; say which with --format NAME, or move the "
            "other files away"
        )
    if listing.named(".jpg", ".jpeg") and not listing.named(".png"):
        raise InputError(
            f"{listing.root} holds JPEG pictures, whose compression changes colours at every border, so that ids "
            "are lost; export the masks as PNG"
        )
    exports.check_kinds(listing)
    raise InputError(
        f"{listing.root} holds no masks of a known format ({some(p.name for p in listing.files[:3])}); expected one of "
        f"{', '.join(FORMATS)}"
    )


def _candidates(listing: Listing, views: Sequence[View]) -> dict[str, str]:
    found = _json_candidates(listing)
    tables = [p for p in listing.files if p.name == "metadata.csv" and sam.is_folder(p)]
    if tables:
        found["sam-png"] = f"{len(tables)} folders with metadata.csv"
    owned = {table.parent for table in tables}
    images = [p for p in listing.named(".png") if p.parent not in owned]
    if "labelme" in found or "sa-1b" in found:  # photos lie beside them
        images = [p for p in images if not p.with_suffix(".json").is_file()]
    if images and "coco" in found:
        photos = coco.photos(listing)
        images = [p for p in images if p.name not in photos or image_header(p)[1] not in ("RGB", "RGBA")]
    if images and "coco-panoptic" not in found:
        found |= _png_formats(listing, images, views)
    arrays = listing.named(".npy", ".npz")
    if arrays:
        for path in _sample(arrays):
            found.setdefault(_array_format(listing, path, len(views)), path.name)
        if "langsplat" in found:  # its features lie beside its masks
            found = {k: v for k, v in found.items() if k not in ("mask-arrays", "id-arrays")}
    for name, suffixes in (("saga", (".pt", ".pth")), ("garfield", garfield.SUFFIXES)):
        if listing.named(*suffixes):
            found[name] = listing.named(*suffixes)[0].name
    return found


def _sample(paths: Sequence[Path]) -> list[Path]:
    """Return the first three files and the last."""
    return list(dict.fromkeys([*paths[:3], paths[-1]]))


def _json_candidates(listing: Listing) -> dict[str, str]:
    kinds: list[tuple[str, Callable[[Any], bool]]] = [
        ("coco-panoptic", coco.is_panoptic), ("sa-1b", sam.is_sa1b), ("coco", coco.is_coco),
        ("labelme", labelme.is_labelme), ("sam-json", sam.is_masks),
    ]  # fmt: skip
    found: dict[str, str] = {}
    for path in _sample(listing.named(".json")) if listing.named(".json") else []:
        value = read_json(path)
        if coco.is_results(value):
            raise InputError(
                f"{path} is a list of COCO detections, which does not name its images; put it as 'annotations' into a "
                "JSON with 'images', and give that"
            )
        for name, fits in kinds:
            if fits(value):
                found.setdefault(name, path.name)
                break
    return found


def _coloured(paths: Sequence[Path]) -> bool:
    """Tell whether PNGs hold colours: channels that differ."""
    for path in _sample(paths) if paths else []:
        if image_header(path)[1] in ("RGB", "RGBA"):
            pixels = read_pixels(path)[0]
            if (pixels[..., :3] != pixels[..., :1]).any():
                return True
    return False


def _png_formats(listing: Listing, images: Sequence[Path], views: Sequence[View]) -> dict[str, str]:
    """Return what PNGs may be, and why: several where folders and files are both named like images.

    Where files are named like all images and no others, but folders only like some, these are objects.
    """
    named = {name for view in views for name in (view.stem, view.name)}
    bare = named | {name.rsplit("/", 1)[-1] for name in named}
    folders = {p.parent.relative_to(listing.root).as_posix() for p in images}
    if not any(listing.name(p) in named for p in images) and all(_is_binary(p) for p in _sample(images)):
        found = {}
        stems = {view.stem.rsplit("/", 1)[-1] for view in views}
        frames = {p.stem for p in images} == stems and not folders >= stems
        objects = all(folder.split("/")[0].isdecimal() for folder in folders)
        if folders & bare and not (objects and frames):
            found["sam-png"] = f"{len(folders)} folders of masks, named like images"
        if objects and (not found or any(p.stem in bare for p in images)):
            found["sam2-objects"] = f"{len(images)} PNGs in folders that are numbers, as objects are"
        if found:
            return found
    return {_id_format(listing, images): f"{len(images)} PNGs, {images[0].name} among them"}


def _id_format(listing: Listing, images: Sequence[Path]) -> str:
    info = listing.root / "info.json"
    if listing.root.name == "object_mask" or (
        listing.root.name == "Annotations" and (listing.root.parent / "pred.json").is_file()
    ):
        return "gaussian-grouping"
    if (
        info.is_file()
        and isinstance(value := read_json(info), dict)
        and {"num_mask", "raw_mask_folder"} <= value.keys()
    ):
        return "gaga"
    if _coloured(images):
        return "rgb-png"
    return "palette-png" if image_header(images[0])[1] == "P" else "id-png"


def _is_binary(path: Path) -> bool:
    pixels = read_pixels(path)[0]
    return pixels.ndim == 2 and len(np.setdiff1d(pixels, [0])) <= 1


def _array_format(listing: Listing, path: Path, views: int) -> str:
    alone = len(listing.named(".npy", ".npz")) == 1
    if path.suffix.lower() == ".npy" and path.stem.endswith(("_s", "_f")) and not alone:
        return "langsplat" if path.stem.endswith("_s") else "mask-arrays"
    arrays = read_arrays(path)
    if alone and path.suffix.lower() == ".npz":
        shapes = [a.shape for a in arrays.values() if a.dtype.kind in "iu"]
        if video.is_video(arrays) or (
            len(arrays) == 1 and shapes and len(shapes[0]) == 3 and shapes[0][0] == views > 1
        ):
            return "sam2-npz"
    array = stacks.masks_of(arrays, path)
    if stacks.object_ids(arrays, path) is not None or not stacks.is_ids(array):
        return "mask-arrays"
    return "grounded-sam2" if path.name.startswith("mask_") and path.suffix.lower() == ".npy" else "id-arrays"
