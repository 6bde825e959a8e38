"""Read masks of other tools: one entry, the masks of one view in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.masks.id_maps import MAX_ID
from cgc.masks.image_masks import ImageMasks, decode
from cgc.masks.importers.base import Entry, Found, Frame, Resize
from cgc.masks.importers.formats import FORMATS, list_files, recognise
from cgc.masks.importers.names import match_views
from cgc.scene.types import View

MOST_MASKS = 4096
"""Masks of one view; the smallest beyond are left out, since nesting compares every two."""


@dataclass(frozen=True)
class Imported:
    """The masks of a scene's views as another tool made them; files are read when a view is asked for.

    format: the name found or given. tracked: an id means the same object in every view.
    """

    views: tuple[View, ...]
    format: str
    tracked: bool
    resize: Resize
    entries: tuple[Entry | None, ...]
    opening: tuple[str, ...]
    notes: dict[int, Counter[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.views)

    @property
    def decisions(self) -> list[str]:
        """Every decision made, in sentences: on opening, and on loading the views that were loaded so far."""
        total: Counter[str] = Counter()
        for counted in self.notes.values():
            total.update(counted)
        return [*self.opening, *(f"{number:,} {note}." for note, number in total.items())]

    def load(self, view_index: int) -> ImageMasks | None:
        """Return the masks of a view at its camera's size; None for a view that has no file.

        Raises InputError where the file is broken, of another size, or not of the format.
        """
        found = self._read(view_index)
        if found is None:
            return None
        frame = self._frame(view_index)
        fit, resized = frame.fitting((found.width, found.height))
        camera, notes = frame.view.camera, Counter(found.skipped)
        if resized:
            notes[f"views' masks {resized}"] += 1
        if found.ids is not None:
            levels = [fit(ids) for ids in found.ids]
            made = ImageMasks.from_id_maps([_largest(ids, notes) for ids in levels])
        else:
            counts, scores = _largest_runs(found, notes)
            if resized:
                masks = (fit(decode(c, found.height, found.width)) for c in counts)
                made = ImageMasks.from_masks(masks, camera.height, camera.width, scores)
            else:
                made = ImageMasks.from_counts(counts, camera.height, camera.width, scores)
            if len(made) < len(counts):
                notes["masks that have no pixel of their image were left out"] += len(counts) - len(made)
        self._note_ids(found, notes)
        nested = int((made.levels > 0).sum())
        if nested:
            notes["masks lie within others: they are parts, of one level or more"] += nested
        notes["masks were read"] += len(made)
        self.notes[view_index] = notes
        return made

    def id_map(self, view_index: int) -> np.ndarray | None:
        """Return a view's original ids [H, W] int32, 0 = unassigned; None for a view that has no file.

        Where objects overlap, the lowest id is on top, as SAM 2 paints them. Raises InputError where ids are not
        tracked, or over 65535.
        """
        if not self.tracked:
            raise InputError(
                f"the ids of {self.format} masks differ from view to view; where the tool kept them the same, say so "
                "with --tracked"
            )
        found = self._read(view_index)
        if found is None:
            return None
        frame = self._frame(view_index)
        if found.ids is not None:
            if len(found.ids) != 1:
                raise InputError(
                    f"{frame.path} holds {len(found.ids)} levels of ids; tracked ids need one id map a view"
                )
            ids = found.ids[0]
        elif found.object_ids is not None:
            ids = np.zeros((found.height, found.width), np.int64)
            for number, counts in sorted(zip(found.object_ids, found.counts), key=lambda pair: -pair[0]):
                ids[decode(counts, found.height, found.width)] = number
        else:
            raise InputError(f"{frame.path} holds masks without ids; leave out --tracked, or save id maps")
        _check_tracked(ids, frame)
        return frame.fitting((found.width, found.height))[0](ids).astype(np.int32)

    def _frame(self, view_index: int) -> Frame:
        entry = self.entries[view_index]
        assert entry is not None
        return Frame(self.views[view_index], entry.path, self.resize)

    def _read(self, view_index: int) -> Found | None:
        entry = self.entries[view_index]
        if entry is None:
            return None
        found = entry.read(self._frame(view_index))
        if self.tracked and found.ids is not None:
            _check_tracked(found.ids, self._frame(view_index))
        return found

    def _note_ids(self, found: Found, notes: Counter[str]) -> None:
        if self.tracked:
            return
        if found.object_ids is not None:
            notes["views say which object a mask is of, which was not used; if a tracker made them, add --tracked"] += 1
        if found.ids is None:
            return
        largest = int(found.ids.max(initial=0))
        for limit in (MAX_ID, 255):
            if largest > limit:
                notes[f"views have ids over {limit:,}: ids are numbered anew in every view"] += 1
                return


def read_foreign(
    folder_or_file: Path | str,
    views: Sequence[View],
    *,
    format: str = "auto",
    resize: Resize = "error",
    tracked: bool = False,
) -> Imported:
    """Find the masks of `views` in a folder or a file of another tool, and match them by name.

    format: one of FORMATS, or "auto" to recognise it by its files. resize: "nearest" takes masks of any size (those of
    the photo's own size always fit). tracked: the tool gave an object the same id in every view. Raises InputError
    where the format is none or several, or where nothing fits the views.
    """
    path = Path(folder_or_file)
    if format != "auto" and format not in FORMATS:
        raise InputError(f"there is no mask format {format!r}; expected auto or one of {', '.join(FORMATS)}")
    listing, opening = list_files(path, format)
    name = recognise(listing, views) if format == "auto" else format
    if tracked and FORMATS[name].tracked == "no":
        raise InputError(f"{name} masks have no ids that could be the same in every view; leave out --tracked")
    how = "were recognised as" if format == "auto" else "are read as"
    opening.append(f"The masks in {path} {how} {name}: {FORMATS[name].looks_for}.")
    source = FORMATS[name].open(listing, tracked)
    if not source.entries:
        raise InputError(f"{path} holds no {name} masks; expected {FORMATS[name].looks_for}")
    entries, sentences = match_views(source, views, path)
    opening += [*source.decisions, *sentences]
    if source.tracked:
        opening.append("Ids are tracked: an id is the same object in every view.")
    elif FORMATS[name].tracked == "with --tracked":
        opening.append("Ids are taken to differ from view to view; if a tracker made them, add --tracked.")
    return Imported(tuple(views), name, source.tracked, resize, tuple(entries), tuple(opening))


def _check_tracked(ids: np.ndarray, frame: Frame) -> None:
    largest = int(ids.max(initial=0))
    if largest > MAX_ID:
        raise InputError(
            f"{frame.path} holds the id {largest:,}, and ids that are the same in every view go to {MAX_ID:,}; leave "
            "out --tracked, or number the objects anew"
        )


def _largest(ids: np.ndarray, notes: Counter[str]) -> np.ndarray:
    """Return an id map with ids from 1 on, of the largest MOST_MASKS ids."""
    values, flat, pixels = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.flatnonzero(values > 0)
    over = len(order) - MOST_MASKS
    if over > 0:
        order = np.sort(order[np.argsort(-pixels[order], kind="stable")[:MOST_MASKS]])
        notes[f"masks were left out, the smallest of views with more than {MOST_MASKS:,}"] += over
    number = np.zeros(len(values), np.int32)
    number[order] = np.arange(1, len(order) + 1)
    return number[flat.reshape(ids.shape)]


def _largest_runs(found: Found, notes: Counter[str]) -> tuple[list[np.ndarray], list[float] | None]:
    over = len(found.counts) - MOST_MASKS
    if over <= 0:
        return found.counts, found.scores
    areas = np.array([c[1::2].sum(dtype=np.int64) for c in found.counts])
    kept = np.sort(np.argsort(-areas, kind="stable")[:MOST_MASKS])
    notes[f"masks were left out, the smallest of views with more than {MOST_MASKS:,}"] += over
    scores = None if found.scores is None else [found.scores[i] for i in kept]
    return [found.counts[i] for i in kept], scores
