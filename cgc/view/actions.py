"""What a person can do in a viewer: one table of keys, words and deeds, for the window, the browser and the help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cgc.errors import InputError
from cgc.files import write_beside
from cgc.progress import counted
from cgc.view.frames import MODES
from cgc.view.state import State


class Action(NamedTuple):
    """Something to do: its key, its name, what it does in words, and the deed, which gives a line to show."""

    key: str
    name: str
    words: str
    do: Callable[[Desk], str]


class Desk:
    """A viewer's state, and the folder its pictures and exports go to."""

    def __init__(self, state: State, out: Path) -> None:
        self.state = state
        self.out = out

    def run(self, action: Action) -> str:
        """Do an action and return a line to show, what went wrong included."""
        return self.attempt(lambda: action.do(self))

    def attempt(self, deed: Callable[[], str]) -> str:
        """Do something and return its line, or the sentence of what went wrong."""
        try:
            return deed()
        except InputError as error:
            return str(error)

    @property
    def level_line(self) -> str:
        """The level that is shown, in a line."""
        return f"level {self.state.level_shown:.2f}: {counted(len(self.state.listed), 'object')}"

    @property
    def summary(self) -> str:
        """What is selected, in a line."""
        state = self.state
        if not state.selected:
            return "nothing is selected; click an object"
        names = [state.name(i) for i in state.selected]
        count = sum(int(state.alive[state.base[i].indices].sum()) for i in state.selected)
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return f"{shown}: {count:,} Gaussians"

    def _free(self, stem: str, suffix: str) -> Path:
        """A path in the folder that is not taken."""
        return next(p for i in range(1, 1_000_000) if not (p := self.out / f"{stem}_{i:03d}{suffix}").exists())

    def save_picture(self) -> str:
        """Write the picture of the state's camera, drawn by the project's own rasteriser."""
        path = self._free("picture", ".png")
        picture = self.state.picture()
        with write_beside(path) as temporary:
            Image.fromarray(picture).save(temporary)
        return f"wrote {path}"

    def save(self) -> str:
        """Save the scene without what is deleted, and its names, in a new folder, which opens like a run."""
        return f"saved {self.state.edited().save(self._free('edited', ''))}"

    def export(self) -> str:
        """Write what is selected as PLYs into a new folder."""
        made = self.state.export_selection(self._free("export", ""))
        return f"wrote {counted(len(made), 'PLY')} into {made[0].parent}"


def keys() -> list[tuple[str, str]]:
    """What the keys do that every viewer has, key and words."""
    return [("click", "select; with shift or ctrl: in or out of the selection"), *((a.key, a.words) for a in ACTIONS)]


def _mode(mode: str) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        desk.state.set_mode(mode)
        return f"mode {mode}"

    return do


def _edit(name: str, done: str) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        if not desk.state.selected:
            raise InputError(f"nothing is selected to {name}; click an object first")
        count, before = len(desk.state.selected), desk.state.edits
        getattr(desk.state, name)()
        changed = desk.state.edits is not before
        return f"{done} {counted(count, 'object')}" if changed else f"nothing is left to {name}"

    return do


def _isolate(desk: Desk) -> str:
    if not desk.state.selected and not desk.state.edits.isolated:
        raise InputError("nothing is selected to isolate; click an object first")
    desk.state.isolate()
    return "isolated" if desk.state.edits.isolated else "showing the others again"


def _undo(desk: Desk) -> str:
    return "undone" if desk.state.undo() else "nothing to undo"


def _redo(desk: Desk) -> str:
    return "done again" if desk.state.redo() else "nothing to do again"


def _show_all(desk: Desk) -> str:
    desk.state.show_all()
    return "showing all that is not deleted"


def _deselect(desk: Desk) -> str:
    desk.state.pick(None)
    return desk.summary


def _toggle(name: str) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        setattr(desk.state, name, not getattr(desk.state, name))
        return f"{name} {'on' if getattr(desk.state, name) else 'off'}"

    return do


def _level(way: int) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        desk.state.step_level(way)
        return desk.level_line

    return do


def _objects(desk: Desk) -> str:
    desk.state.set_level(None)
    return f"the run's own level: {counted(len(desk.state.listed), 'object')}"


def _camera(way: int) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        return f"view {desk.state.step_camera(way)}"

    return do


ACTIONS = (
    *(Action(str(i), mode, f"show {mode}", _mode(mode)) for i, mode in enumerate(MODES, 1)),
    Action("[", "coarser", "coarser level", _level(-1)),
    Action("]", "finer", "finer level", _level(1)),
    Action("o", "objects", "back to the run's own objects", _objects),
    Action("i", "isolate", "isolate what is selected; again: show the others", _isolate),
    Action("v", "hide", "hide what is selected", _edit("hide", "hid")),
    Action("a", "show all", "show all that is hidden", _show_all),
    Action("x", "delete", "delete what is selected (files stay as they are)", _edit("delete", "deleted")),
    Action("z", "undo", "undo the last edit", _undo),
    Action("y", "redo", "do it again", _redo),
    Action("b", "boxes", "boxes around what is selected", _toggle("boxes")),
    Action("g", "axes", "the world's axes", _toggle("axes")),
    Action(",", "previous view", "jump to the previous photo's camera", _camera(-1)),
    Action(".", "next view", "jump to the next photo's camera", _camera(1)),
    Action("s", "picture", "save a picture", Desk.save_picture),
    Action("e", "export", "write what is selected as 3DGS PLYs", Desk.export),
    Action("w", "save", "save the scene without what is deleted, and its names, as a new one", Desk.save),
    Action("escape", "deselect", "select nothing", _deselect),
)
BY_KEY = {action.key: action for action in ACTIONS}
BY_NAME = {action.name: action for action in ACTIONS}
