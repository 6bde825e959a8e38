"""The window: a segmented scene in Open3D, as Gaussians or as points.

Only this file, what it is made of (`shapes.py`, `listing.py`) and `probe.py` know Open3D.

Picking and saved pictures are by the project's own rasteriser from the window's camera, so that a click means what
`Segmentation.at_pixel` says. Beside the state, a window holds on the card some 60 B a Gaussian (colour with its sheen:
160 B), or 24 B a point; points are thinned to `shapes.MOST_POINTS`, so that large scenes stay quick to turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cgc.segmentation.segmentation import Segmentation
from cgc.view.actions import BY_KEY, BY_NAME, Action, Desk, keys
from cgc.view.frames import BACKGROUND, MODES
from cgc.view.listing import Listing, add_button
from cgc.view.probe import probe
from cgc.view.shapes import edges, gaussians, points
from cgc.view.shots import DEFAULT_SIZE, Size, camera_named, check_size, fit, focus, from_gl, vertical_fov
from cgc.view.state import State

MOST_SLOWLY = 200_000
"""Gaussians that are drawn as such where there is no graphics card; of more there are points, until asked for."""
FRAMES_BEHIND = 3
"""Frames that are drawn after a change, so that none is missed."""
STILL = 4
"""A press that moves farther than this many pixels turns the scene; any other is a click."""
LEAST_TURN = 2e-3
"""The slider of levels is moved by at least this."""
BUTTONS = ("isolate", "hide", "show all", "delete", "undo", "redo", "boxes", "axes", "objects", "picture", "export")


def open_window(
    segmentation: Segmentation,
    *,
    mode: str = "color",
    camera: str = "orbit",
    size: Size | None = None,
    level: float | None = None,
    out: Path | None = None,
    points: bool | None = None,
    leave: bool = False,
) -> None:
    """Show a segmentation in a window until it is closed; InputError where this machine cannot open one.

    out: the folder of saved pictures and exports (None: view/ in the run's). points: in place of Gaussians (None: where
    the processor has to draw many). leave: end this process when the window is closed, as a command should: the end of
    Open3D's engine hangs at times.
    """
    size = check_size(size or DEFAULT_SIZE)
    state = State(segmentation, camera_named(segmentation, camera, size))
    state.set_mode(mode)
    state.set_level(level)
    slow = probe().software and len(segmentation.splats) > MOST_SLOWLY
    desk = Desk(state, out or (segmentation.context.folder or Path.cwd()) / "view")
    _Window(desk, size, slow if points is None else points).run()
    if leave:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Window:
    def __init__(self, desk: Desk, size: Size, points: bool) -> None:
        import open3d

        self.o3d: Any = open3d
        gui, rendering = self.o3d.visualization.gui, self.o3d.visualization.rendering
        self.has_gaussians = hasattr(rendering.MaterialRecord(), "gaussian_splat_sh_degree")  # since Open3D 0.20
        self.desk, self.points = desk, points or not self.has_gaussians
        self.gui = gui
        self.app = gui.Application.instance
        self.app.initialize()
        self.window = self.app.create_window("cgc", *size)
        self.window.set_on_layout(self._layout)
        self.window.set_on_key(self._on_key)
        self.window.set_on_tick_event(self._tick)
        self.window.set_on_close(self._on_close)
        self.widget = gui.SceneWidget()
        self.widget.scene = rendering.Open3DScene(self.window.renderer)
        self.widget.scene.set_background([*(c / 255 for c in BACKGROUND), 1])
        self.widget.scene.downsample_threshold = 1 << 30  # points are thinned here
        self.widget.set_on_mouse(self._on_mouse)
        self.window.add_child(self.widget)
        self.held: set[int] = set()
        self.pressed: tuple[int, int] | None = None
        self.boxes = self.behind = 0
        self.dialog = ""
        self.accept: Callable[[], None] | None = None
        self.later: list[Callable[[], None]] = []
        self.ending = self.closed = False
        self._build_panel()
        state = self.desk.state
        state.camera = fit(state.camera, (max(size[0] - self._panel_width(size[0]), 1), size[1]))
        self._draw()
        self._aim()
        self._list()

    def run(self) -> None:
        """Show the window until it is closed or interrupted."""
        self.listing.start()
        try:
            while self._turn():
                pass
        finally:
            self._on_close()
            self.listing.wait()

    def _turn(self) -> bool:
        """Let the window work once; say whether it is open still. It is closed here, where nothing of it is at work."""
        try:
            if self.ending and not self.closed:
                self.window.close()
            return self.app.run_one_tick()
        except KeyboardInterrupt:
            self.ending = True
            return True

    # --- widgets --------------------------------------------------------------------------------------------

    def _build_panel(self) -> None:
        gui, state = self.gui, self.desk.state
        em = self.window.theme.font_size
        gap = round(0.3 * em)
        self.panel = gui.Vert(gap, gui.Margins(gap, gap, gap, gap))
        self.modes = gui.Combobox()
        for mode in MODES:
            self.modes.add_item(mode)
        self.modes.selected_text = state.mode
        self.modes.set_on_selection_changed(lambda mode, _: self._run(BY_NAME[mode]))
        self.drawing = gui.Checkbox("points")
        self.drawing.checked = self.points
        self.drawing.enabled = self.has_gaussians
        self.drawing.set_on_checked(self._set_points)
        self._row("show", self.modes, self.drawing)
        self.views = gui.Combobox()
        for name in ("orbit", *state.view_names):
            self.views.add_item(name)
        self.views.set_on_selection_changed(lambda name, _: self._look(name))
        self._row("view", self.views)
        self.slider = gui.Slider(gui.Slider.DOUBLE)
        self.slider.set_limits(0, 1)
        self.slider.double_value = state.level_shown
        self.slider.enabled = len(state.base.hierarchy.stops) > 1 and not state.base.blended
        self.slider.set_on_value_changed(self._set_level)
        self._row("level", self.slider)
        grid = gui.VGrid(4, gap)
        for name in BUTTONS:
            add_button(gui, grid, name, lambda action=BY_NAME[name]: self._run(action), BY_NAME[name].words)
        add_button(gui, grid, "rename", self._rename, "r: give what is selected a name")
        add_button(gui, grid, "help", self._help, "h: the keys")
        self.panel.add_child(grid)
        self.line = gui.Label("drag to turn, wheel to come closer, click an object; h: all keys")
        self.panel.add_child(self.line)
        self.listing = Listing(self.o3d, self.window, self.desk, self._pick, self._set_shown)
        self.panel.add_child(self.listing.widget)
        self.window.add_child(self.panel)

    def _row(self, title: str, *widgets: Any) -> None:
        row = self.gui.Horiz(round(0.3 * self.window.theme.font_size))
        row.add_child(self.gui.Label(title))
        for widget in widgets:
            row.add_child(widget)
        self.panel.add_child(row)

    def _layout(self, _: Any) -> None:
        rect = self.window.content_rect
        wide = self._panel_width(rect.width)
        self.widget.frame = self.gui.Rect(rect.x, rect.y, rect.width - wide, rect.height)
        self.panel.frame = self.gui.Rect(rect.get_right() - wide, rect.y, wide, rect.height)

    def _panel_width(self, width: int) -> int:
        return min(round(19 * self.window.theme.font_size), width // 2)

    def _list(self) -> None:
        """Make the list of objects anew."""
        self.window.set_focus_widget(self.widget)  # or keys would go to a row that is gone
        self.listing.fill()

    # --- drawing --------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Put what is shown into the scene: Gaussians or points in the colours of the mode, boxes and axes."""
        scene, state, scaling = self.widget.scene, self.desk.state, self.window.scaling
        for name in ("splats", *(f"box {i}" for i in range(self.boxes))):
            scene.remove_geometry(name)
        self.boxes = 0
        if len(state.shown.splats):
            geometry, material = points(self.o3d, state, scaling) if self.points else gaussians(self.o3d, state)
            if geometry is not None:
                scene.add_geometry("splats", geometry, material)
        for node in state.selected if state.boxes else ():
            scene.add_geometry(f"box {self.boxes}", *edges(self.o3d, state.base[node].box, scaling))
            self.boxes += 1
        scene.show_axes(state.axes)
        self.behind = FRAMES_BEHIND
        self.window.post_redraw()

    def _tick(self) -> bool:
        """Do what must not be done while a widget is at work, for it goes; say whether to draw again.

        What is put into the scene shows up some frames later.
        """
        later, self.later = self.later, []
        for do in later:
            do()
        if not self.behind:
            return bool(later)
        self.behind -= 1
        self.widget.force_redraw()
        return True

    # --- the camera -----------------------------------------------------------------------------------------

    def _aim(self) -> None:
        """Bring the window's camera to the state's."""
        state, camera = self.desk.state, self.desk.state.camera
        means = state.base.splats.means.detach().numpy().astype(float)
        low, high = np.percentile(means, [0.5, 99.5], axis=0)
        eye = camera.position.double().numpy()
        ahead, down = (camera.viewmat[i, :3].double().numpy() for i in (2, 1))
        middle = focus(state.base)
        size = float(np.median(np.linalg.norm(means - middle, axis=1)))  # of what is near: the sky may be far away
        away = max(float((middle - eye) @ ahead), 0.1 * size)
        centre = eye + away * ahead
        bounds = self.o3d.geometry.AxisAlignedBoundingBox(low, high)
        self.widget.setup_camera(vertical_fov(camera), bounds, centre.astype(np.float32))
        self.widget.look_at(centre.astype(np.float32), eye.astype(np.float32), (-down).astype(np.float32))
        self.widget.center_of_rotation = centre.astype(np.float32)

    def _see(self) -> None:
        """Bring the state's camera to the window's."""
        camera, frame = self.widget.scene.camera, self.widget.frame
        if frame.width > 0 and frame.height > 0:
            self.desk.state.camera = from_gl(
                camera.get_view_matrix(), camera.get_projection_matrix(), (frame.width, frame.height)
            )

    def _look(self, name: str) -> None:
        self._see()

        def do() -> str:
            self.desk.state.look(name)
            self._aim()
            return f"view {name}"

        self._say(self.desk.attempt(do))
        self._after()

    # --- what a person does ---------------------------------------------------------------------------------

    def _on_mouse(self, event: Any) -> Any:
        gui = self.gui
        kinds = gui.MouseEvent.Type
        if event.type == kinds.BUTTON_DOWN:
            self.pressed = (event.x, event.y) if event.is_button_down(gui.MouseButton.LEFT) else None
        elif event.type == kinds.BUTTON_UP:
            pressed, self.pressed = self.pressed, None
            if pressed and max(abs(event.x - pressed[0]), abs(event.y - pressed[1])) <= STILL:
                more = gui.KeyModifier.SHIFT, gui.KeyModifier.CTRL
                self._click(event.x, event.y, any(event.is_modifier_down(m) for m in more))
            elif self.desk.state.mode == "depth":
                self._see()
                self._draw()
        return gui.Widget.EventCallbackResult.IGNORED

    def _click(self, x: int, y: int, add: bool) -> None:
        self._see()
        frame = self.widget.frame

        def do() -> str:
            self.desk.state.click(x - frame.x, y - frame.y, add=add)
            return self.desk.summary

        self._say(self.desk.attempt(do))
        self._after()

    def _pick(self, node: int) -> None:
        keys = self.gui.KeyName
        more = (keys.LEFT_SHIFT, keys.RIGHT_SHIFT, keys.LEFT_CONTROL, keys.RIGHT_CONTROL)
        self.desk.state.pick(self.desk.state.base[node], add=bool(self.held & {int(k) for k in more}))
        self._say(self.desk.summary)
        self._after()

    def _on_key(self, event: Any) -> bool:
        key = int(event.key)
        if event.type == self.gui.KeyEvent.Type.UP:
            self.held.discard(key)
            return False
        self.held.add(key)
        keys = self.gui.KeyName
        if self.dialog:
            if key == int(keys.ESCAPE) or (key == int(keys.H) and self.dialog == "help"):
                self.later.append(self._close_dialog)
                return True
            if key == int(keys.ENTER) and self.accept is not None:
                self.later.append(self.accept)
                return True
            return False  # what is typed goes into the dialog
        if key == int(keys.H):
            self._help()
        elif key == int(keys.R):
            self._rename()
        elif key == int(keys.Q):
            self.ending = True
        else:
            known = {int(keys.ESCAPE): "escape", int(keys.DELETE): "x", int(keys.BACKSPACE): "x"}
            action = BY_KEY.get(known.get(key, chr(key) if 32 < key < 127 else ""))
            if action is None:
                return False
            self._run(action)
        return True

    def _run(self, action: Action) -> None:
        self._see()
        before = self.desk.state.camera
        self._say(self.desk.run(action))
        if self.desk.state.camera is not before:
            self._aim()
        self._after()

    def _set_level(self, level: float) -> None:
        if abs(level - self.desk.state.level_shown) < LEAST_TURN:
            return  # the slider calls by itself when it is set, and rounds

        def do() -> str:
            self.desk.state.set_level(level)
            return self.desk.level_line

        self._say(self.desk.attempt(do))
        self._after(levels=False)

    def _set_shown(self, node: int, shown: bool) -> None:
        self.desk.state.set_shown(node, shown)
        self._after()

    def _set_points(self, points: bool) -> None:
        self.points = points
        self._draw()

    def _after(self, levels: bool = True) -> None:
        """Show what has come of an action."""
        state = self.desk.state
        self.modes.selected_text = state.mode
        if state.view:
            self.views.selected_text = state.view
        if levels:
            self.slider.double_value = state.level_shown
        self._draw()
        if not self.listing.update():
            self.later.append(self._list)

    def _say(self, line: str) -> None:
        self.line.text = line
        self.window.set_needs_layout()

    # --- dialogs --------------------------------------------------------------------------------------------

    def _help(self) -> None:
        rows = [*keys(), ("r", "rename what is selected"), ("h", "this help"), ("q", "close")]
        grid = self.gui.VGrid(2, round(0.2 * self.window.theme.font_size))
        for key, words in rows:
            grid.add_child(self.gui.Label(key))
            grid.add_child(self.gui.Label(words))
        self._show_dialog("help", grid, [("close", self._close_dialog)])

    def _rename(self) -> None:
        state = self.desk.state
        if len(state.selected) != 1:
            self._say("select one object to rename")
            return
        (node,) = state.selected
        field = self.gui.TextEdit()
        typed = [state.edits.names.get(node, "")]
        field.text_value = typed[0]
        field.placeholder_text = f"object {node}"
        field.set_on_text_changed(lambda text: typed.__setitem__(0, text))

        def rename() -> None:
            def do() -> str:
                state.rename(node, typed[0])
                return self.desk.summary

            if self.dialog:
                self._close_dialog()
                self._say(self.desk.attempt(do))
                self._after()

        field.set_on_value_changed(lambda _: self.later.append(rename))  # enter, or a click elsewhere
        self._show_dialog("rename", field, [("done", rename)])
        self.accept = rename

    def _show_dialog(self, kind: str, content: Any, buttons: list[tuple[str, Any]]) -> None:
        gui, em = self.gui, self.window.theme.font_size
        dialog = gui.Dialog(kind)
        column = gui.Vert(round(0.6 * em), gui.Margins(em, em, em, em))
        column.add_child(content)
        row = gui.Horiz(round(0.4 * em))
        for name, do in buttons:
            add_button(gui, row, name, do)
        column.add_child(row)
        dialog.add_child(column)
        self.dialog = kind
        self.window.show_dialog(dialog)

    def _close_dialog(self) -> None:
        self.dialog, self.accept = "", None
        self.window.set_focus_widget(self.widget)  # or keys would go to a field that is gone
        self.window.close_dialog()

    def _on_close(self) -> bool:
        self.closed = True
        self.listing.stop()
        return True
