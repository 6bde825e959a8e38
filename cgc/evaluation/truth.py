"""Read truth: a scene's exact instance maps, or id maps drawn by hand for some views."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgc.errors import InputError, reason
from cgc.evaluation.instances import position_in
from cgc.files import files_below, read_json, sha256
from cgc.masks.id_maps import MAX_ID, read_id_map
from cgc.scene.images import UNREADABLE


@dataclass(frozen=True)
class Truth:
    """True id maps, int32 [H, W] a view, with what their ids are called and which of them are stuff."""

    maps: tuple[NDArray[np.int32], ...]
    names: dict[int, str]
    stuff_ids: frozenset[int]


def has_truth(scene_dir: Path) -> bool:
    """Say whether a scene has true id maps of its own: instance/ and instances.json."""
    return (scene_dir / "instances.json").is_file() and (scene_dir / "instance").is_dir()


def mark_of_truth(scene_dir: Path) -> str | None:
    """Hash the table of true instances and the true id maps of a scene, byte by byte; None where it has none."""
    if not has_truth(scene_dir):
        return None
    maps = sorted(p for p in files_below(scene_dir / "instance") if p.suffix == ".png")
    marks = [(p.relative_to(scene_dir).as_posix(), sha256(p)) for p in (scene_dir / "instances.json", *maps)]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]


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


def merge_parts(scene_dir: Path, ids: np.ndarray) -> NDArray[np.int64]:
    """Replace ids of parts, in any shape, by those of what they are part of; InputError for ids that are not listed."""
    path = scene_dir / "instances.json"
    instances = _read_instances(path)
    found = np.unique(ids)
    if strange := [i for i in found.tolist() if i and i not in instances]:
        raise InputError(f"the surface samples hold ids {strange[:9]} that {path} does not list; correct either")
    whole = np.array([_root(i, instances, path) if i else 0 for i in found.tolist()], np.int64)
    return whole[position_in(ids, found)]


def _read_instances(path: Path) -> dict[int, dict[str, Any]]:
    value = read_json(path, "the table of true instances")
    try:
        instances: dict[int, dict[str, Any]] = {}
        for x in value["instances"]:
            ids = [x["id"], x.get("parent") or 0]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise ValueError(f"id {x['id']!r} or its parent {x.get('parent')!r} is no whole number")
            if not isinstance(x["stuff"], bool) or x["id"] in instances:
                fault = "stuff is not true or false" if x["id"] not in instances else "it is there twice"
                raise ValueError(f"id {x['id']}: {fault}")
            instances[x["id"]] = x
            _ = x["name"]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f'{path} needs "instances", a list with id, name, stuff and parent each ({error!r}); correct it'
        ) from error
    check_ids(instances, path)
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
    except UNREADABLE as error:
        raise InputError(f"{path} is not a readable image ({reason(error)}); restore it") from error
    if ids.ndim != 2:
        raise InputError(f"{path} has {ids.shape[-1]} channels where one of ids was expected; restore it")
    return ids.astype(np.int64)


IGNORE = -1
"""What drawn maps hold where nobody knows: scored nowhere."""


@dataclass(frozen=True)
class DrawnTruth:
    """Id maps drawn by hand, int32 [H, W] by the stem of their view; IGNORE where a pixel is not to be scored."""

    maps: dict[str, NDArray[np.int32]]
    names: dict[int, str]


def read_drawn(folder: Path, unlabelled: Literal["ignore", "background"] = "ignore", ignored: int = 255) -> DrawnTruth:
    """Read a folder of id maps, STEM.png, with what ids are called in names.json ({"1": "cup"}), where that is there.

    Id 0 is unlabelled: nothing is known there ("ignore"), or nothing that is scored is there ("background"). Id
    `ignored` is ignored unless names.json names it. InputError where there is no map, or one is broken.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file where a folder of id maps was expected, named like views; give that")
    if not folder.is_dir():
        raise InputError(f"the truth folder {folder} does not exist; expected id maps (PNG) named like views")
    names = _read_names(folder / "names.json") if (folder / "names.json").exists() else {}
    paths = [p for p in sorted(files_below(folder)) if p.suffix.lower() == ".png" and not p.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder} holds no PNG; expected id maps named like views, or instances.json and instance/")
    maps = {}
    for path in paths:
        ids = read_id_map(path)
        hidden = (ids == ignored) & (ignored not in names)
        if unlabelled == "ignore":
            hidden |= ids == 0
        maps[path.relative_to(folder).with_suffix("").as_posix()] = np.where(hidden, IGNORE, ids).astype(np.int32)
    seen = {int(i) for m in maps.values() for i in np.unique(m) if i > 0}
    if not seen:
        raise InputError(f"the id maps in {folder} hold no id above 0 that is not ignored; draw an object")
    return DrawnTruth(maps, {i: names.get(i, f"object {i}") for i in sorted(seen | set(names))})


def _read_names(path: Path) -> dict[int, str]:
    value = read_json(path, "the names of the true ids")
    try:
        names = {int(i): str(name) for i, name in value.items()}
    except (AttributeError, ValueError, TypeError) as error:
        raise InputError(f'{path} was expected to hold {{"1": "name", ...}} ({error}); correct it') from error
    check_ids(names, path)
    return names


def check_ids(ids: Iterable[int], path: Path) -> None:
    """Raise InputError for ids that no id map can hold."""
    if strange := [i for i in ids if not 0 < i <= MAX_ID]:
        raise InputError(f"{path} names the ids {strange[:5]}, but an id map holds 1 to {MAX_ID}; number them anew")
