"""Whose masks are whose: entries to views, by name where any name fits, else by order where the numbers are equal.

Numbers in names that start elsewhere than the images' are counted from there: trackers count frames from 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cgc.errors import InputError, some
from cgc.masks.id_maps import match_names, number_shift, numbers_of
from cgc.masks.importers.base import Entry, Source
from cgc.scene.types import View

_BEFORE = {"mask_": "'mask_'", "masks_": "'masks_'", "[0-9a-f]{8}-": "Label Studio's eight digits and '-'"}
_AFTER = ("_mask", "_masks", "_instance", "_instances", "_seg", "_id", "_ids", "_labels")


def match_views(source: Source, views: Sequence[View], where: Path) -> tuple[list[Entry | None], list[str]]:
    """Return every view's entry (None: it has none) and the sentences that say how they were found."""
    if source.frames:
        return _by_number(source, views, where)
    keys, read, how = _by_name(source, views)
    if not any(key is not None for key in keys):
        return _by_order(source, views, where)
    twice = [key for key, number in Counter(key for key in keys if key is not None).items() if number > 1]
    if twice:
        raise InputError(
            f"the masks {some(sorted(twice))} in {where} fit several images of the scene; name masks like their "
            "images, with sub-folders"
        )
    told = f"Masks were matched to images by name{how}:"
    if shift := number_shift(list(read), [view.stem for view in views]):
        keys, told = _by_shift(read, views, shift)
    used = {key for key in keys if key is not None}
    sentences = [f"{told} {len(used)} of {len(views)} images have masks."]
    bare = [view.name for view, key in zip(views, keys) if key is None]
    if bare:
        sentences.append(f"{len(bare)} images have no masks: {some(bare)}.")
    rest = sorted(set(source.entries) - used, key=natural)
    if rest:
        sentences.append(f"Masks of {len(rest)} images that the scene does not have were skipped: {some(rest)}.")
    return [source.entries[key] if key is not None else None for key in keys], sentences


def _by_name(source: Source, views: Sequence[View]) -> tuple[list[str | None], dict[str, str], str]:
    """Return every view's entry as most names fit, the names as they were read for that, and the words that say how."""
    best: tuple[list[str | None], dict[str, str], str] = [], {}, ""
    most = 0
    inside = [(names, f" (as the files say){how}") for names, how in _spellings(source.photos)]
    for names, how in [*_spellings({name: name for name in source.entries}), *inside]:
        found = match_names({f"{name}.m": Path(name) for name in names}, views)
        keys = [names[path.as_posix()] if path else None for path in found]
        number = sum(key is not None for key in keys)
        if number > most:
            best, most = (keys, names, how), number
    return best


def _spellings(names: dict[str, str]) -> list[tuple[dict[str, str], str]]:
    """Return ways to read names, {name: entry}, each as {name as read: entry}, and the words that say which."""
    tidy = {Path(name).as_posix(): entry for name, entry in names.items()}
    ways = [(tidy, "")]
    for affix, words in _BEFORE.items():
        if all(re.match(affix, Path(name).name) for name in tidy):
            bare = {n: re.sub(f"^{affix}", "", Path(n).name) or "_" for n in tidy}
            cut = {Path(n).with_name(bare[n]).as_posix(): e for n, e in tidy.items()}
            if len(cut) == len(tidy):
                ways.append((cut, f" (without {words} in front)"))
    for affix in _AFTER:
        if all(name.endswith(affix) for name in tidy):
            ways.append(({n.removesuffix(affix): e for n, e in tidy.items()}, f" (without {affix!r} at the end)"))
    for way, text in list(ways):
        flat = {Path(name).name: entry for name, entry in way.items()}
        if len(flat) == len(way) and flat != way:
            ways.append((flat, f"{text} (without their folders)"))
    return ways


def _by_shift(read: dict[str, str], views: Sequence[View], shift: int) -> tuple[list[str | None], str]:
    """Return every view's entry, of the number that is less by `shift`; `read`: {a name as it is read: entry}."""
    keys = dict(zip(numbers_of(list(read)), read.values()))
    numbers = numbers_of([view.stem for view in views])
    first, last = min(keys), max(keys)
    lowest, highest = first + shift, last + shift
    return [keys[number - shift] for number in numbers], (
        f"WARNING: the masks are numbered {first} to {last} and the images {lowest} to {highest}, so numbers that "
        f"differ by {abs(shift)} were matched ({keys[first]} to image {lowest}, {keys[last]} to image {highest}). Look "
        "at the masks before you trust them; where equal numbers belong together, remove the masks "
        f"{keys[first if shift > 0 else last]!r}."
    )


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
    _check_order(names, [views[index] for index in order], where)
    entries: list[Entry | None] = [None] * len(views)
    for index, name in zip(order, names):
        entries[index] = source.entries[name]
    first = f"{names[0]} to {views[order[0]].name}, {names[-1]} to {views[order[-1]].name}"
    return entries, [
        f"WARNING: no mask is named like an image; all {len(views)} were matched by their order ({first}). "
        "Look at the masks before you trust them."
    ]


def _check_order(names: Sequence[str], views: Sequence[View], where: Path) -> None:
    """Refuse names that have another image's name within them than the one that their order gives them."""
    if number_shift(names, [view.stem for view in views]) is not None:
        return
    stems = {view.stem.rsplit("/", 1)[-1] for view in views}
    within = [stems & _pieces(name) for name in names]
    always = set.intersection(*within)
    for name, found, view in zip(names, within, views):
        if found - always and view.stem.rsplit("/", 1)[-1] not in found:
            raise InputError(
                f"no name of the {len(names)} masks in {where} fits an image, and by their order {name} would be "
                f"matched to {view.name}, although it has {min(found - always)} in its name; name masks like their "
                "images"
            )


def _pieces(name: str) -> set[str]:
    """Return all words, numbers and what they make together within a name: a-01 gives a, 01, -01, a-, a-01 and -."""
    parts = re.findall(r"[0-9]+|[^\W\d_]+|.", name[-100:])
    return {"".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}


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
