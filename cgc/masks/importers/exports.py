"""Exports of annotation tools that are not read: what each is, and what to export instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cgc.errors import InputError
from cgc.masks.importers.base import Listing, read_json, start_of

_BRUSH = re.compile(r"task-[0-9]+-annotation-[0-9]+-by-.+")
_YOLO = re.compile(r"\s*[0-9]+(\s+[0-9.eE+-]+){6,}\s*")


def check_names(listing: Listing) -> None:
    """Refuse Label Studio's brush masks, whose names have numbers of tasks and no image."""
    for path in listing.named(".png", ".npy"):
        if _BRUSH.fullmatch(path.stem):
            raise InputError(
                f"{path} is a brush mask of Label Studio, whose name does not say its image; export as COCO (for "
                "brushes: BRUSH_TO_COCO)"
            )


def check_kinds(listing: Listing) -> None:
    """Refuse what is known by its first file, where nothing in a folder can be read."""
    kinds: list[tuple[str, Callable[[Path], bool], str]] = [
        (".xml", _is_cvat, "is CVAT's own XML; export the task as COCO 1.0"),
        (".txt", _is_yolo, "has YOLO's outlines, which do not say how large an image is; export as COCO"),
        (".json", _is_label_studio, "is Label Studio's own JSON; export as COCO (for brushes: BRUSH_TO_COCO)"),
    ]
    for suffix, fits, words in kinds:
        for path in listing.named(suffix)[:3]:
            if fits(path):
                raise InputError(f"{path} {words}")


def _is_cvat(path: Path) -> bool:
    return "<annotations>" in start_of(path)


def _is_yolo(path: Path) -> bool:
    return _YOLO.fullmatch(start_of(path).split("\n")[0]) is not None


def _is_label_studio(path: Path) -> bool:
    value: Any = read_json(path)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "annotations" in first and "data" in first
