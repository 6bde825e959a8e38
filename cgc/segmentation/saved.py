"""A segmentation in a folder of its own, to go on with later: nothing that was edited is lost, nothing else is touched.

    splats.ply           plain 3DGS PLY: opens in any viewer
    extras.npz           attributes and features of the Gaussians that are not in it, where there are some
    segments.npz         labels [N], confidences [N] and the hierarchy
    segments.json        the table of segments
    segmentation.json    format, level, names, colours, edits, where it came from, and what the other files hash to

A folder is written beside its place and renamed onto it; one that holds no saved segmentation is never touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc import parallel
from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.files import folder_at, no_room, read_arrays, read_json, sha256, write_beside, write_json
from cgc.leftovers import clear_folders
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import describe, describe_nodes, save_labels, save_table
from cgc.splats.ply import read_ply, write_ply

FORMAT = 1
"""Version of the folder's layout; a folder of another version is refused, not misread."""
FACTS_FILE = "segmentation.json"
_OWN = ("splats.ply", "extras.npz", "segments.npz", "segments.json", FACTS_FILE)
_TREE = ("labels", "confidences", "leaves", "node_parents", "node_levels", "base_level")
_FEATURES = "features"
_EXTRA = "extra_"


@dataclass(frozen=True)
class SavedSegmentation:
    """What a folder held: the segmentation, the source it was saved with, and each segment's mean colour."""

    segmentation: Segmentation
    source: Mapping[str, Any]
    colors: Mapping[int, tuple[int, int, int]]


def save(
    segmentation: Segmentation,
    folder: Path | str,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Save a segmentation; `source` says where it came from.

    A saved segmentation in `folder` is replaced; other files beside it stay. InputError where something else lies
    there, and for a full disk.
    """
    folder = folder_at(folder).absolute()
    mend(folder)
    clear_folders(folder.parent, folder.name)
    if _is_taken(folder):
        raise InputError(f"{folder} holds something else than a saved segmentation; choose another folder")
    if folder.exists() and Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} is where you are, and saving puts a new folder in its place; go elsewhere first")
    level = shown_level(segmentation)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        _write(segmentation, beside, level, _placed(source or {}, folder))
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(beside, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
        if old.exists():
            _keep_others(old, folder)
    except OSError as error:
        why = "the disk is full" if no_room(error) else error.strerror
        raise InputError(f"{folder} could not be saved ({why}) and is left as it was; choose another") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _placed(source: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Add to a source whose run can be told from others where it lies seen from a folder: both may move together."""
    placed = {name: value for name, value in source.items() if name != "beside"}
    with contextlib.suppress(ValueError):  # on another drive
        placed |= {"beside": os.path.relpath(source["run"], folder.resolve())} if "fingerprint" in source else {}
    return placed


def mend(folder: Path) -> None:
    """Bring back what a save that was killed has moved aside, and what others had put in there."""
    folder = folder.absolute()
    with contextlib.suppress(OSError):
        for old in folder.parent.iterdir():
            saving = re.fullmatch(rf"\.{re.escape(folder.name)}\.(\d+)\.old", old.name)
            if not saving or (int(saving[1]) != os.getpid() and parallel.is_alive(int(saving[1]))):
                continue
            if not folder.exists():
                os.replace(old, folder)
            elif (folder / FACTS_FILE).is_file():
                _keep_others(old, folder)


def _keep_others(old: Path, folder: Path) -> None:
    """Move what others have put beside a saved segmentation to the new one: exports, pictures, notes.

    Where there are files of their names by now, which are newer, they go to older/ in it.
    """
    _move_into(old, folder)
    with contextlib.suppress(OSError):
        for name in _OWN:
            (old / name).unlink(missing_ok=True)
        old.rmdir()
    if old.exists():
        places = (folder / (f"older_{i}" if i > 1 else "older") for i in itertools.count(1))
        os.replace(old, next(place for place in places if not os.path.lexists(place)))


def _move_into(old: Path, folder: Path) -> None:
    """Move what is in one folder to another, file by file, but what is there already."""
    for path in list(old.iterdir()):
        there = folder / path.name
        if not os.path.lexists(there):
            os.replace(path, there)
        elif path.is_dir() and there.is_dir() and not path.is_symlink():
            _move_into(path, there)
            with contextlib.suppress(OSError):
                path.rmdir()  # not where something is left in it


def load_saved(folder: Path | str) -> SavedSegmentation:
    """Read what `save` wrote, bit for bit; InputError where a file is missing, broken or not of the same save."""
    folder = Path(folder)
    if not (folder / FACTS_FILE).is_file():
        raise InputError(f"{folder} is no saved segmentation: it has no {FACTS_FILE}; give a folder that was saved to")
    facts = read_json(folder / FACTS_FILE, "the facts of a saved segmentation")
    broken = InputError(f"{folder / FACTS_FILE} is broken: it does not say what a saved segmentation holds; save again")
    if not isinstance(facts, dict):
        raise broken
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{folder} is of format {facts.get('format')!r} where {FORMAT} was expected: another version of cgc wrote "
            "it; read it with that one"
        )
    try:
        hashes = {str(k): str(v) for k, v in facts["sha256"].items()}
        names = {int(k): _typed(v, str) for k, v in facts["names"].items()}
        colors = {int(k): (int(v[0]), int(v[1]), int(v[2])) for k, v in facts["colors"].items()}
        edits = tuple(dict(_typed(e, dict)) for e in _typed(facts["edits"], list))
        source, level = _typed(facts["source"], dict), facts["level"]
        level = None if level is None else float(level)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise broken from error
    for name in {"splats.ply", "segments.npz", *hashes}:
        path = folder / name
        if Path(name).name != name or name not in hashes:
            raise broken
        if not path.is_file():
            raise InputError(f"{path} is missing; restore the folder or save the segmentation again")
        if sha256(path) != hashes[name]:
            raise InputError(f"{path} is not the file that was saved (it is truncated or was changed); save again")
    segmentation = _read(folder, "extras.npz" in hashes)
    if level is not None:
        segmentation = segmentation.at_level(level)
    return SavedSegmentation(replace(segmentation, names=names, edits=edits), source, colors)


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected")
    return value


def _is_taken(folder: Path) -> bool:
    """Say whether there is something in the place that is neither an empty folder nor a saved segmentation."""
    if not folder.exists() and not folder.is_symlink():
        return False
    return not folder.is_dir() or folder.is_symlink() or (any(folder.iterdir()) and not (folder / FACTS_FILE).is_file())


def shown_level(segmentation: Segmentation) -> float | None:
    """Return the level of the hierarchy that the labels show, None for the objects; InputError where it is none."""
    tree, labels = segmentation.hierarchy, np.where(segmentation.labels > 0, segmentation.labels, -1)
    for level in [segmentation.level, None, *map(float, tree.stops)]:
        if np.array_equal(tree.at(level), labels):
            return level
    raise InputError("the labels are not what the hierarchy shows at any level; edit one level at a time, then save")


def _write(
    segmentation: Segmentation,
    folder: Path,
    level: float | None,
    source: Mapping[str, Any],
) -> None:
    tree, splats = segmentation.hierarchy, segmentation.splats
    write_ply(folder / "splats.ply", splats)
    save_labels(folder, tree.at(), segmentation.confidences, {}, tree)
    columns: dict[str, Any] = {_EXTRA + name: values for name, values in splats.extras.items()}
    if splats.features is not None:
        columns[_FEATURES] = splats.features.detach().cpu().numpy()
    files = ["splats.ply", "segments.npz"]
    if columns:
        files.append("extras.npz")
        with write_beside(folder / "extras.npz") as path:
            np.savez_compressed(path, **columns)
    table = describe(segmentation, {})
    save_table(folder, table, {"views": 0}, describe_nodes(segmentation))
    facts = {
        "format": FORMAT,
        "gaussians": len(splats),
        "level": level,
        "names": {str(k): v for k, v in sorted(segmentation.names.items())},
        "colors": {str(s.id): s.color for s in table},
        "edits": list(segmentation.edits),
        "source": dict(source),
        "sha256": {name: sha256(folder / name) for name in files},
    }
    try:
        write_json(folder / FACTS_FILE, facts)
    except (TypeError, ValueError) as error:
        raise InputError(f"the source or an edit cannot be written as JSON ({error}); give plain values") from error


def _read(folder: Path, extras: bool) -> Segmentation:
    splats = read_ply(folder / "splats.ply")
    columns = _columns(folder / "segments.npz")
    more = _columns(folder / "extras.npz") if extras else {}
    try:
        labels, confidences, leaves, parents, levels, base = (columns[name] for name in _TREE)
        tree = Hierarchy(
            leaves.astype(np.int32), parents.astype(np.int32), levels.astype(np.float32), float(base)
        )  # fmt: skip
        features = torch.from_numpy(more[_FEATURES]) if _FEATURES in more else None
        if any(len(v) != len(splats) for v in more.values()):
            raise ValueError(f"its columns are not of {len(splats)} Gaussians")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is broken ({error}); save the segmentation again") from error
    own = {name.removeprefix(_EXTRA): values for name, values in more.items() if name.startswith(_EXTRA)}
    splats = replace(splats, extras=splats.extras | own, features=features)
    return Segmentation(splats, labels.astype(np.int32), confidences, tree)


def _columns(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(path)
    except ValueError as error:
        raise InputError(f"{path} is broken ({error}); save the segmentation again") from error
