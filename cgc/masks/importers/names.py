"""Whose masks are whose: entries to views, by name where any name fits, else by order where the numbers are equal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cgc.errors import InputError, some
from cgc.masks.id_maps import match_names
from cgc.masks.importers.base import Entry, Source
from cgc.scene.types import View

_BEFORE = ("mask_", "masks_")
_AFTER = ("_mask", "_masks", "_instance", "_instances", "_seg", "_id", "_ids", "_labels")


def match_views(source: Source, views: Sequence[View], where: Path) -> tuple[list[Entry | None], list[str]]:
    """Return every view's entry (None: it has none) and the sentences that say how they were found."""
    if source.frames:
        return _by_number(source, views, where)
    best: list[str | None] = []
    how = ""
    for names, text in _spellings(list(source.entries)):
        found = match_names({f"{name}.m": Path(name) for name in names}, views)
        keys = [names[path.as_posix()] if path else None for path in found]
        if sum(key is not None for key in keys) > sum(key is not None for key in best):
            best, how = keys, text
    if not any(key is not None for key in best):
        return _by_order(source, views, where)
    used = [key for key in best if key is not None]
    twice = {key for key in used if used.count(key) > 1}
    if twice:
        raise InputError(
            f"the masks {some(sorted(twice))} in {where} fit several images of the scene; name masks like their "
            "images, with sub-folders"
        )
    sentences = [f"Masks were matched to images by name{how}: {len(used)} of {len(views)} images have masks."]
    bare = [view.name for view, key in zip(views, best) if key is None]
    if bare:
        sentences.append(f"{len(bare)} images have no masks: {some(bare)}.")
    rest = sorted(set(source.entries) - set(used), key=natural)
    if rest:
        sentences.append(f"Masks of {len(rest)} images that the scene does not have were skipped: {some(rest)}.")
    return [source.entries[key] if key is not None else None for key in best], sentences


def _spellings(names: list[str]) -> list[tuple[dict[str, str], str]]:
    """Return ways to read the names, each as {name as read: entry}, and the words that say which."""
    tidy = {Path(name).as_posix(): name for name in names}
    ways = [(tidy, "")]
    for affix in _BEFORE:
        if all(Path(name).name.startswith(affix) for name in tidy):
            cut = {Path(n).with_name(Path(n).name[len(affix) :] or "_").as_posix(): e for n, e in tidy.items()}
            ways.append((cut, f" (without {affix!r} in front)"))
    for affix in _AFTER:
        if all(name.endswith(affix) for name in tidy):
            ways.append(({n.removesuffix(affix): e for n, e in tidy.items()}, f" (without {affix!r} at the end)"))
    for way, text in list(ways):
        flat = {Path(name).name: entry for name, entry in way.items()}
        if len(flat) == len(way) and flat != way:
            ways.append((flat, f"{text} (without their folders)"))
    return ways


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts the numbers in names as numbers: a2 before a10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part[0] in "0123456789" and len(part) < 4000 else (1, 0, part) for part in parts]


def _by_order(source: Source, views: Sequence[View], where: Path) -> tuple[list[Entry | None], list[str]]:
    names = sorted(source.entries, key=natural)
    if len(names) != len(views):
        raise InputError(
            f"no name of the {len(names)} masks in {where} fits an image: found {some(names[:3])}, expected "
            f"{some(view.stem for view in views[:3])}; name masks like their images (by order they cannot be matched: "
            f"the scene has {len(views)} images)"
        )
    order = sorted(range(len(views)), key=lambda i: natural(views[i].name))
    entries: list[Entry | None] = [None] * len(views)
    for index, name in zip(order, names):
        entries[index] = source.entries[name]
    first = f"{names[0]} to {views[order[0]].name}, {names[-1]} to {views[order[-1]].name}"
    return entries, [
        f"WARNING: no mask is named like an image; all {len(views)} were matched by their order ({first}). "
        "Look at the masks before you trust them."
    ]


def _by_number(source: Source, views: Sequence[View], where: Path) -> tuple[list[Entry | None], list[str]]:
    """Match entries that are numbers of frames: to images whose names are these numbers, else counted from 0."""
    stems = [view.stem.rsplit("/", 1)[-1] for view in views]
    numbers = [int(stem) if re.fullmatch(r"[0-9]{1,9}", stem) else None for stem in stems]
    given = {int(name) for name in source.entries}
    by_name = len(set(numbers)) == len(views) and None not in numbers and (0 in numbers or given >= set(numbers))
    if by_name:
        entries = [source.entries.get(str(number)) for number in numbers]
        how = "whose names are their numbers"
    else:
        if given and max(given) >= len(views):
            raise InputError(
                f"{where} has masks of frame {max(given)}, but the scene has {len(views)} images (numbers 0 to "
                f"{len(views) - 1}); name the images by their frame number, or save the masks under the images' names"
            )
        order = sorted(range(len(views)), key=lambda i: natural(views[i].name))
        entries: list[Entry | None] = [None] * len(views)
        for number, index in enumerate(order):
            entries[index] = source.entries.get(str(number))
        how = "counted from 0 in the order of their names"
    matched = sum(entry is not None for entry in entries)
    if not matched:
        raise InputError(f"no frame number in {where} is that of an image; expected numbers like {some(stems[:3])}")
    warn = "" if by_name else "WARNING: "
    sentences = [f"{warn}Frame numbers were matched to images {how}: {matched} of {len(views)} images have masks."]
    if len(given) > matched:
        sentences.append(f"Masks of {len(given) - matched} frames that the scene does not have were skipped.")
    return entries, sentences
