"""What a folder of masks says of itself: masks.json, which is there where we have made or imported them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgc.errors import InputError
from cgc.files import read_json
from cgc.scene.types import View, picture_names

FORMAT = 1
RECORD = "masks.json"


def is_made(folder: Path) -> bool:
    """Say whether a folder holds masks that were made or imported by us."""
    return (folder / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """Read how the masks of a folder were made; {} where that is not known."""
    if not is_made(folder):
        return {}
    record = read_json(folder / RECORD, "the record of the masks")
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("by"), dict):
        raise InputError(
            f"{folder / RECORD} is not what this version writes (expected format {FORMAT}); move that folder away and "
            "make the masks again"
        )
    return record


def mask_names(views: Sequence[View]) -> dict[str, str]:
    """What each view's masks are called (see `picture_names`), by its name."""
    names = [view.name for view in views]
    return dict(zip(names, picture_names(names)))


def set_path(folder: Path, name: str) -> Path:
    """Where the full set of masks of a view lies; `name` as in `mask_names`."""
    return folder / "sets" / f"{name}.npz"
