"""The window's list of objects: a thumbnail each, its name (click: select), and whether it is shown."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from cgc.view.actions import Desk
from cgc.view.frames import BACKGROUND, thumbnail

MOST_ROWS = 200
"""Objects that the list shows at most."""
SIDE = 44
"""Thumbnails are this large, in pixels."""


class Listing:
    """The list as a `widget` of Open3D. Thumbnails are drawn beside the window's work, from `start` to `stop`.

    pick: what a click on an object's name does; show: what its box does.
    """

    def __init__(
        self,
        open3d: Any,
        window: Any,
        desk: Desk,
        pick: Callable[[int], None],
        show: Callable[[int, bool], None],
    ) -> None:
        self.o3d, self.gui = open3d, open3d.visualization.gui
        self.window, self.desk, self.pick, self.show = window, desk, pick, show
        self.widget = self.gui.ScrollableVert(round(0.3 * window.theme.font_size))
        self.proxy = self.gui.WidgetProxy()
        self.widget.add_child(self.proxy)
        self.thumbnails: dict[int, Any] = {}
        self.rows: dict[int, tuple[Any, Any]] = {}
        self.pictures: dict[int, Any] = {}
        self.stopped = False
        self.artist = threading.Thread(target=self._make_thumbnails)

    def start(self) -> None:
        """Start to draw thumbnails."""
        self.artist.start()

    def stop(self) -> None:
        """Begin no other."""
        self.stopped = True

    def wait(self) -> None:
        """Wait for the one at work."""
        self.artist.join()

    def fill(self) -> None:
        """Make the rows of what is listed. No row may have the focus: it would go with it."""
        gui, state = self.gui, self.desk.state
        em = self.window.theme.font_size
        column = gui.Vert(round(0.15 * em))
        listed = state.listed
        self.rows, self.pictures = {}, {}
        for thing in listed[:MOST_ROWS]:
            row = gui.Horiz(round(0.3 * em))
            picture = gui.ImageWidget(self._image(self.thumbnails.get(thing.id)))
            check = gui.Checkbox("")
            check.checked = state.is_shown(thing.id)
            check.set_on_checked(lambda on, node=thing.id: self.show(node, on))
            row.add_child(picture)
            row.add_child(check)
            button = add_button(gui, row, state.name(thing.id), lambda node=thing.id: self.pick(node))
            button.toggleable = True
            button.is_on = thing.id in state.selected
            column.add_child(row)
            self.rows[thing.id], self.pictures[thing.id] = (check, button), picture
        if len(listed) > MOST_ROWS:
            column.add_child(gui.Label(f"and {len(listed) - MOST_ROWS} more"))
        self.proxy.set_widget(column)
        self.window.set_needs_layout()

    def update(self) -> bool:
        """Bring the rows to the state; False where other objects are listed, so that it is to be filled anew."""
        state = self.desk.state
        listed = [thing.id for thing in state.listed[:MOST_ROWS]]
        if listed != list(self.rows):
            return False
        for node in listed:
            check, button = self.rows[node]
            check.checked, button.is_on = state.is_shown(node), node in state.selected
            if button.text != state.name(node):
                button.text = state.name(node)
                self.window.set_needs_layout()
        return True

    def _image(self, picture: np.ndarray | None) -> Any:
        blank = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
        return self.o3d.geometry.Image(np.ascontiguousarray(blank if picture is None else picture))

    def _make_thumbnails(self) -> None:
        """Draw the objects' pictures one after the other."""
        app = self.gui.Application.instance
        for thing in self.desk.state.listed[:MOST_ROWS]:
            if self.stopped:
                return
            picture = thumbnail(self.desk.state.base, thing.id, SIDE)
            if self.stopped:
                return
            app.post_to_main_thread(self.window, lambda i=thing.id, p=picture: self._show_thumbnail(i, p))

    def _show_thumbnail(self, node: int, picture: np.ndarray) -> None:
        self.thumbnails[node] = picture
        if node in self.pictures:
            self.pictures[node].ui_image = self.gui.UIImage(self._image(picture))
            self.window.post_redraw()


def add_button(gui: Any, parent: Any, name: str, do: Any, words: str = "") -> Any:
    """Add a flat button to a widget, with a tooltip of `words`."""
    button = gui.Button(name)
    button.horizontal_padding_em, button.vertical_padding_em = 0.3, 0
    button.tooltip = words
    button.set_on_clicked(do)
    parent.add_child(button)
    return button
