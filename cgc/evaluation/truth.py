"""Read truth: a scene's exact instance maps, or id maps drawn by hand for some views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgc.errors import InputError
from cgc.evaluation.instances import position_in
from cgc.files import read_json


@dataclass(frozen=True)
class Truth:
    """True id maps, int32 [H, W] a view, with what their ids are called and which of them are stuff."""

    maps: tuple[NDArray[np.int32], ...]
    names: dict[int, str]
    stuff_ids: frozenset[int]


def read_truth(scene_dir: Path | str, stems: Sequence[str], level: Literal["object", "part"] = "object") -> Truth:
    """Read `instance/STEM.png` (ids) of the views `stems` and `instances.json` (id, name, stuff, parent).

    At the level "object" parts are merged into what they are a part of; at "part" the finest ids are kept.
    Raise InputError for missing or broken files, and for ids that instances.json does not list.
    """
    scene_dir = Path(scene_dir)
    table_path = scene_dir / "instances.json"
    instances = _read_instances(table_path)
    paths = [scene_dir / "instance" / f"{stem}.png" for stem in stems]
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} true id maps are missing, the first of them {missing[0]}; "
            "restore them, or score other views"
        )
    whole = {i: _root(i, instances, table_path) if level == "object" else i for i in instances}
    known = np.array(sorted({0, *instances}))
    merged = np.array([whole.get(i, 0) for i in known.tolist()], np.int32)
    maps = []
    for path in paths:
        ids = _read_ids(path)
        position = position_in(ids, known)
        if (position == len(known)).any():
            strange = np.unique(ids[position == len(known)]).tolist()
            raise InputError(f"{path} holds ids {strange[:9]} that {table_path} does not list; correct either")
        maps.append(merged[position])
    ids = set(whole.values())
    return Truth(
        maps=tuple(maps),
        names={i: str(x["name"]) for i, x in instances.items() if i in ids},
        stuff_ids=frozenset(i for i, x in instances.items() if i in ids and x["stuff"]),
    )


def _read_instances(path: Path) -> dict[int, dict[str, Any]]:
    value = read_json(path, "the table of true instances")
    try:
        instances = {int(x["id"]): x for x in value["instances"]}
        for x in instances.values():
            _ = x["name"], x["stuff"], int(x.get("parent") or 0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'{path} needs "instances", a list with id, name, stuff and parent each ({error!r}); correct it'
        ) from error
    return instances


def _root(i: int, instances: dict[int, dict[str, Any]], path: Path) -> int:
    """Follow parents up to the whole object."""
    seen = {i}
    while parent := int(instances[i].get("parent") or 0):
        if parent in seen or parent not in instances:
            raise InputError(f"{path}: the parent {parent} of instance {i} leads nowhere; correct it")
        seen.add(parent)
        i = parent
    return i


def _read_ids(path: Path) -> NDArray[np.int64]:
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} is not a readable image ({error}); restore it") from error
    if ids.ndim != 2:
        raise InputError(f"{path} has {ids.shape[-1]} channels where one of ids was expected; restore it")
    return ids.astype(np.int64)
