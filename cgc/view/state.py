"""What a viewer knows: what is shown, selected, hidden, deleted and renamed. No window, no browser: tested by itself.

Every way to look at a scene holds one `State`, tells it what was clicked and pressed, and draws what it then says.
Memory: the scene's Gaussians once, and once more those that are left while something is hidden, isolated or deleted
(some 70 B each, with spherical harmonics of degree 3 some 250 B, and 4 B a feature); an edit itself is a few ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cgc.errors import InputError
from cgc.scene.types import Camera
from cgc.segmentation.export import export, job_of
from cgc.segmentation.objects import Object
from cgc.segmentation.pictures import NO_LEVELS
from cgc.segmentation.query import RAY_FOCAL
from cgc.segmentation.segmentation import Segmentation
from cgc.view.frames import ACCENT, Extras, Mode, Picture, check_mode, colors_of, frame, part_of
from cgc.view.shots import camera_named

LONGEST_NAME = 60
KEPT_EDITS = 1000


@dataclass(frozen=True)
class Edits:
    """What can be undone: ids that are hidden, isolated (none: all are shown) and deleted, and names by id."""

    hidden: frozenset[int] = frozenset()
    isolated: frozenset[int] = frozenset()
    deleted: frozenset[int] = frozenset()
    names: Mapping[int, str] = field(default_factory=dict)


class State:
    """The state of a viewer over a segmentation.

    Ids are nodes of the hierarchy, the same at every level; what is done to a node is done to its Gaussians, so that a
    hidden whole hides its parts, at any level. What is hidden or deleted is neither drawn nor clicked.
    """

    def __init__(self, segmentation: Segmentation, camera: Camera) -> None:
        self.base = segmentation
        self.camera = camera
        self.mode: Mode = "segments"
        self.view = ""
        self.boxes = False
        self.axes = False
        self._level = segmentation.level
        self._selected: frozenset[int] = frozenset()
        self._done: list[Edits] = []
        self._edits = Edits(names=dict(segmentation.names))
        self._undone: list[Edits] = []
        self._named: tuple[int, Edits] | None = None

    # --- what is shown --------------------------------------------------------------------------------------

    @property
    def level(self) -> float | None:
        """The level of the hierarchy that is shown; None: the objects."""
        return self._level

    @property
    def edits(self) -> Edits:
        """What is hidden, isolated, deleted and renamed now."""
        return self._edits

    @property
    def selected(self) -> tuple[int, ...]:
        """The ids that are selected, ascending."""
        return tuple(sorted(self._selected))

    @cached_property
    def alive(self) -> np.ndarray:
        """Which Gaussians are not deleted, [N] bool."""
        return ~self._covered(self._edits.deleted)

    @cached_property
    def visible(self) -> np.ndarray:
        """Which Gaussians are shown, [N] bool."""
        kept = self.alive & ~self._covered(self._edits.hidden)
        return kept & self._covered(self._edits.isolated) if self._edits.isolated else kept

    @cached_property
    def _left(self) -> Segmentation:
        """What is shown, at no level in particular: its id maps serve all of them."""
        return part_of(self.base, None if self.visible.all() else np.flatnonzero(self.visible), None)

    @cached_property
    def shown(self) -> Segmentation:
        """What is shown, at the level that is shown: what clicks and pictures are of."""
        made = part_of(self._left, None, self._level)
        made.__dict__["kept_maps"] = self._left.kept_maps
        return made

    @property
    def listed(self) -> list[Object]:
        """The objects of the level that are not deleted, hidden ones too, by rising id."""
        labels = self.base.hierarchy.at(self._level)
        return [Object(i, self.base) for i in np.unique(labels[(labels > 0) & self.alive]).tolist()]

    def is_shown(self, node: int) -> bool:
        """Say whether any Gaussian of a node is shown."""
        return bool(self.visible[self.base[node].indices].any())

    def name(self, node: int) -> str:
        """What a node is called."""
        return self._edits.names.get(node, f"object {node}")

    def _covered(self, nodes: Iterable[int]) -> np.ndarray:
        covered = np.zeros(len(self.base.splats), bool)
        for node in nodes:
            covered[self.base.members(node)] = True
        return covered

    def picture(self) -> Picture:
        """Draw what is shown, uint8 [H, W, 3]: the selection outlined, boxed where boxes are on."""
        seen = tuple(i for i in self.selected if self.is_shown(i))
        return frame(self.shown, self.camera, self.mode, Extras(seen, seen if self.boxes else (), self.axes))

    def colors(self, *, sheen: bool = True) -> np.ndarray:
        """The colours of the Gaussians that are shown, [N, 3] float32 in 0..1: the selection bright, the rest dim.

        sheen: colours as the camera sees them; without, as they are in the mean.
        """
        made = colors_of(self.shown, self.mode, self.camera if sheen or self.mode == "depth" else None).numpy()
        marked = self._covered(self._selected)[self.visible]
        if marked.any() and not marked.all():  # what is alone need not be told from others
            made = np.where(marked[:, None], MARKED * ACCENT_COLOR + (1 - MARKED) * made, made * UNMARKED)
        return made.astype(np.float32)

    # --- what is selected -----------------------------------------------------------------------------------

    def click(self, x: float, y: float, *, add: bool = False) -> Object | None:
        """Select what a pixel of the camera shows, nothing where that is nothing; `add`: in or out of the selection."""
        return self.pick(self.shown.at_pixel(self.camera, x, y), add=add)

    def click_ray(self, origin: ArrayLike, direction: ArrayLike, *, add: bool = False) -> Object | None:
        """Select what a ray shows, as a click on a pixel of its own does."""
        start, way = np.asarray(origin, float), np.asarray(direction, float)
        if not (np.isfinite([*start, *way]).all() and np.linalg.norm(way) > 0):
            raise InputError(f"a ray from {start.tolist()} along {way.tolist()} leads nowhere; click in the scene")
        eye = Camera.look_at(start.tolist(), (start + way).tolist(), width=1, height=1, focal=RAY_FOCAL)
        return self.pick(self.shown.at_pixel(eye, 0, 0), add=add)

    def pick(self, what: Object | None, *, add: bool = False) -> Object | None:
        """Select an object, or nothing; `add`: put it into the selection, or take it out."""
        if what is None:
            self._selected = self._selected if add else frozenset()
            return None
        self._selected = self._selected ^ {what.id} if add else frozenset({what.id})
        return Object(what.id, self.base)

    def select(self, ids: Iterable[int]) -> None:
        """Select some ids; InputError where there is none such, or it is deleted."""
        wanted = frozenset(int(i) for i in ids)
        for node in sorted(wanted):
            if not self.alive[self.base[node].indices].any():
                raise InputError(f"segment {node} is deleted; undo first")
        self._selected = wanted

    # --- what is done ---------------------------------------------------------------------------------------

    def hide(self) -> None:
        """Hide what is selected and is not hidden yet; nothing is selected then."""
        gone = self._covered(self._edits.hidden) | ~self.alive
        if more := {node for node in self._selected if not gone[self.base.members(node)].all()}:
            self._do(replace(self._edits, hidden=self._edits.hidden | more))
        self._selected = frozenset()

    def isolate(self) -> None:
        """Show what is selected alone, even what was hidden of it; with nothing selected, or again, show the others."""
        if not self._selected or self._selected == self._edits.isolated:
            if self._edits.isolated:
                self._do(replace(self._edits, isolated=frozenset()))
        else:
            self._do(replace(self._edits, isolated=self._selected, hidden=self._hidden_but(self._selected)))

    def delete(self) -> None:
        """Delete what is selected from the viewer; files stay as they are, and `undo` brings it back."""
        if self._selected:
            kept = self._edits.isolated - self._selected
            self._do(replace(self._edits, deleted=self._edits.deleted | self._selected, isolated=kept))
            self._selected = frozenset()

    def show_all(self) -> None:
        """Show all that is not deleted."""
        if self._edits.hidden or self._edits.isolated:
            self._do(replace(self._edits, hidden=frozenset(), isolated=frozenset()))

    def set_shown(self, node: int, shown: bool) -> None:
        """Show or hide one id, whatever else it was hidden with."""
        known, isolated = self.base[node].id, self._edits.isolated
        hidden = self._hidden_but([known]) if shown else self._edits.hidden | {known}
        if shown and isolated and not self._covered(isolated)[self.base.members(known)].all():
            isolated = isolated | {known}
        if (hidden, isolated) != (self._edits.hidden, self._edits.isolated):
            self._do(replace(self._edits, hidden=hidden, isolated=isolated))
            self._selected = self._selected if shown else self._selected - {known}

    def _hidden_but(self, nodes: Iterable[int]) -> frozenset[int]:
        """Return what is hidden without any of some nodes: parts of them go, of wholes of them the other parts stay."""
        tree, hidden = self.base.hierarchy, set(self._edits.hidden)
        for node in nodes:
            above = tree.ancestors(node)
            hidden = {h for h in hidden if h != node and node not in tree.ancestors(h)}
            for height, whole in enumerate(above):
                if whole in hidden:
                    path = [node, *above[: height + 1]]
                    hidden |= {c for parent in path[1:] for c in tree.children(parent)}
                    hidden -= set(path)
        return frozenset(hidden)

    def rename(self, node: int, name: str, *, typing: bool = False) -> None:
        """Call a node by a name; an empty one gives it its number back.

        While somebody is `typing` it, all that comes of it is one edit.
        """
        text = " ".join(name.split())
        if len(text) > LONGEST_NAME or not text.isprintable():
            raise InputError(f"a name has at most {LONGEST_NAME} printable characters; got {name[:LONGEST_NAME]!r}")
        if not self.alive[self.base[node].indices].any():
            raise InputError(f"segment {node} is deleted; undo first")
        names = {k: v for k, v in self._edits.names.items() if k != node} | ({self.base[node].id: text} if text else {})
        if names == self._edits.names:
            return
        made = replace(self._edits, names=names)
        if typing and self._named == (node, self._edits):
            self._undone.clear()
            self._set(made)
        else:
            self._do(made)
        self._named = node, made

    def undo(self) -> bool:
        """Take the last edit back; say whether there was one."""
        return self._step(self._done, self._undone)

    def redo(self) -> bool:
        """Do again what was undone last; say whether there was anything."""
        return self._step(self._undone, self._done)

    def _do(self, edits: Edits) -> None:
        self._done = [*self._done[1 - KEPT_EDITS :], self._edits]
        self._undone.clear()
        self._set(edits)

    def _step(self, source: list[Edits], target: list[Edits]) -> bool:
        if not source:
            return False
        target.append(self._edits)
        self._set(source.pop())
        self._selected = frozenset(i for i in self._selected if self.is_shown(i))
        return True

    def _set(self, edits: Edits) -> None:
        old, self._edits = self._edits, edits
        if replace(old, names={}) != replace(edits, names={}):
            for name in ("alive", "visible", "_left", "shown"):
                self.__dict__.pop(name, None)

    def set_level(self, level: float | None) -> None:
        """Show another level of the hierarchy; InputError where it is outside of 0 to 1, or there are no levels."""
        tree = self.base.hierarchy
        if level is not None and self.base.blended and tree.stop(level) != tree.base_stop:
            raise InputError(NO_LEVELS)
        tree.at(level)
        self._level = level
        self.__dict__.pop("shown", None)

    @property
    def level_shown(self) -> float:
        """The level that is shown, as a number: that of the run's own objects where none is set."""
        return self.base.hierarchy.base if self._level is None else self._level

    def step_level(self, way: int) -> None:
        """Go to the next finer (1) or coarser (-1) level that is shown differently; stay where there is none."""
        tree = self.base.hierarchy
        at = int(np.clip(tree.stop(self.level_shown) + way, 0, max(len(tree.stops) - 1, 0)))
        if len(tree.stops):
            self.set_level(float(tree.stops[at]))

    @cached_property
    def view_names(self) -> list[str]:
        """The names of the views; none where there are none, or they are gone with the scene."""
        return self.base.views if self.base.context.known_cameras else []

    def look(self, name: str) -> None:
        """Take the camera of a view, or one on a circle, at the size of today's camera."""
        self.camera = camera_named(self.base, name, (self.camera.width, self.camera.height))
        self.view = name

    def step_camera(self, way: int) -> str:
        """Go to the next (1) or previous (-1) view and return its name; InputError where there are none."""
        names = self.view_names
        if not names:
            raise InputError(self.base.context.lost or "this run has no views to jump to; restore its scene")
        at = names.index(self.view) + way if self.view in names else 0
        self.look(names[at % len(names)])
        return names[at % len(names)]

    def set_mode(self, mode: str) -> None:
        """Show another mode; InputError where there is none such, or no features to show."""
        if check_mode(mode) == "features":
            _ = self.base.features
        self.mode = check_mode(mode)

    # --- what is written ------------------------------------------------------------------------------------

    def edited(self) -> Segmentation:
        """Return the segmentation with today's names, without what is deleted; what is only hidden stays."""
        made = self.base
        for node in sorted(made.names.keys() | self._edits.names.keys()):
            if made.names.get(node, "") != self._edits.names.get(node, ""):
                made = made.rename(node, self._edits.names.get(node))
        return made.remove(*sorted(self._edits.deleted), halo=False) if self._edits.deleted else made

    def export_selection(self, folder: Path | str) -> list[Path]:
        """Write what is selected, less what is deleted of it, as `cgc export --format ply` does: clean, a file each."""
        if not self._selected:
            raise InputError("nothing is selected to export; click an object first")
        return export(job_of(self.edited(), self.selected), folder, ["ply"])


MARKED = 0.6
"""The share of the accent in the colours of selected Gaussians."""
UNMARKED = 0.6
"""What is left of the light of the others."""
ACCENT_COLOR = np.array(ACCENT, np.float32) / 255
