"""The window: a segmented scene in Open3D, as Gaussians or as points. Only this file and `probe.py` know Open3D.

Picking and saved pictures are by the project's own rasteriser from the window's camera, so that a click means what
`Segmentation.at_pixel` says. Beside the state, a window holds on the card some 60 B a Gaussian (colour with its sheen:
160 B), or 24 B a point; points are thinned to MOST_POINTS, so that large scenes stay quick to turn.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc.geometry import rgb_to_sh_dc
from cgc.segmentation.segmentation import Segmentation
from cgc.view.actions import ACTIONS, BY_NAME, Action, Desk
from cgc.view.frames import BACKGROUND, MODES, thumbnail
from cgc.view.probe import probe
from cgc.view.shots import DEFAULT_SIZE, Size, camera_named, check_size, fit, focus, from_gl, vertical_fov
from cgc.view.state import State

MOST_POINTS = 400_000
"""Points that are drawn at most, evenly chosen; Gaussians and clicks are never thinned."""
MOST_SLOWLY = 200_000
"""Gaussians that are drawn as such where there is no graphics card; of more there are points, until asked for."""
LEAST_OPACITY = 0.15
"""Gaussians that are thinner are no points."""
MOST_ROWS = 200
"""Objects that the list shows at most."""
SIDE = 44
"""Thumbnails are this large, in pixels."""
FRAMES_BEHIND = 3
"""Frames that are drawn after a change, so that none is missed."""
STILL = 4
"""A press that moves farther than this many pixels turns the scene; any other is a click."""
LEAST_TURN = 2e-3
"""The slider of levels is moved by at least this."""
SMALLEST = 1e-4
"""No axis of a Gaussian is drawn thinner than this share of its longest: the card's float16 cannot hold it."""
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
        self.gui, self.rendering = gui, rendering
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
        self.thumbnails: dict[int, Any] = {}
        self.rows: dict[int, tuple[Any, Any]] = {}
        self.pictures: dict[int, Any] = {}
        self._build_panel()
        state = self.desk.state
        state.camera = fit(state.camera, (max(size[0] - self._panel_width(size[0]), 1), size[1]))
        self._draw()
        self._aim()
        self._list()
        self.artist = threading.Thread(target=self._make_thumbnails)

    def run(self) -> None:
        """Show the window until it is closed or interrupted."""
        self.artist.start()
        try:
            while self._turn():
                pass
        finally:
            self.closed = True
            self.artist.join()

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
        self.slider.enabled = len(state.base.hierarchy.stops) > 1 and not state.base.context.blended
        self.slider.set_on_value_changed(self._set_level)
        self._row("level", self.slider)
        grid = gui.VGrid(4, gap)
        for name in BUTTONS:
            self._button(grid, name, lambda action=BY_NAME[name]: self._run(action), BY_NAME[name].words)
        self._button(grid, "rename", self._rename, "r: give what is selected a name")
        self._button(grid, "help", self._help, "h: the keys")
        self.panel.add_child(grid)
        self.line = gui.Label("drag to turn, wheel to come closer, click an object; h: all keys")
        self.panel.add_child(self.line)
        self.listing = gui.ScrollableVert(gap)
        self.proxy = gui.WidgetProxy()
        self.listing.add_child(self.proxy)
        self.panel.add_child(self.listing)
        self.window.add_child(self.panel)

    def _row(self, title: str, *widgets: Any) -> None:
        row = self.gui.Horiz(round(0.3 * self.window.theme.font_size))
        row.add_child(self.gui.Label(title))
        for widget in widgets:
            row.add_child(widget)
        self.panel.add_child(row)

    def _button(self, parent: Any, name: str, do: Any, words: str = "") -> Any:
        button = self.gui.Button(name)
        button.horizontal_padding_em, button.vertical_padding_em = 0.3, 0
        button.tooltip = words
        button.set_on_clicked(do)
        parent.add_child(button)
        return button

    def _layout(self, _: Any) -> None:
        rect = self.window.content_rect
        wide = self._panel_width(rect.width)
        self.widget.frame = self.gui.Rect(rect.x, rect.y, rect.width - wide, rect.height)
        self.panel.frame = self.gui.Rect(rect.get_right() - wide, rect.y, wide, rect.height)

    def _panel_width(self, width: int) -> int:
        return min(round(19 * self.window.theme.font_size), width // 2)

    def _list(self) -> None:
        """Make the list of objects: its thumbnail, its name (click: select), and whether it is shown."""
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
            check.set_on_checked(lambda on, node=thing.id: self._set_shown(node, on))
            row.add_child(picture)
            row.add_child(check)
            button = self._button(row, state.name(thing.id), lambda node=thing.id: self._pick(node))
            button.toggleable = True
            button.is_on = thing.id in state.selected
            column.add_child(row)
            self.rows[thing.id], self.pictures[thing.id] = (check, button), picture
        if len(listed) > MOST_ROWS:
            column.add_child(gui.Label(f"and {len(listed) - MOST_ROWS} more"))
        self.window.set_focus_widget(self.widget)  # or keys would go to a row that is gone
        self.proxy.set_widget(column)
        self.window.set_needs_layout()

    def _update_list(self) -> None:
        """Bring the list to the state; it is made anew where other objects are in it."""
        state = self.desk.state
        listed = [thing.id for thing in state.listed[:MOST_ROWS]]
        if listed != list(self.rows):
            self.later.append(self._list)
            return
        for node in listed:
            check, button = self.rows[node]
            check.checked, button.is_on = state.is_shown(node), node in state.selected
            if button.text != state.name(node):
                button.text = state.name(node)
                self.window.set_needs_layout()

    def _image(self, picture: np.ndarray | None) -> Any:
        blank = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
        return self.o3d.geometry.Image(np.ascontiguousarray(blank if picture is None else picture))

    def _make_thumbnails(self) -> None:
        """Draw the objects' pictures one after the other, beside the window's work."""
        for thing in self.desk.state.listed[:MOST_ROWS]:
            if self.closed:
                return
            picture = thumbnail(self.desk.state.base, thing.id, SIDE)
            if self.closed:
                return
            self.app.post_to_main_thread(self.window, lambda i=thing.id, p=picture: self._show_thumbnail(i, p))

    def _show_thumbnail(self, node: int, picture: np.ndarray) -> None:
        self.thumbnails[node] = picture
        if node in self.pictures:
            self.pictures[node].ui_image = self.gui.UIImage(self._image(picture))
            self.window.post_redraw()

    # --- drawing --------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Put what is shown into the scene: Gaussians or points in the colours of the mode, boxes and axes."""
        scene, state = self.widget.scene, self.desk.state
        for name in ("splats", *(f"box {i}" for i in range(self.boxes))):
            scene.remove_geometry(name)
        self.boxes = 0
        if len(state.shown.splats):
            geometry, material = self._points() if self.points else self._gaussians()
            if geometry is not None:
                scene.add_geometry("splats", geometry, material)
        for node in state.selected if state.boxes else ():
            scene.add_geometry(f"box {self.boxes}", *self._box(node))
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

    def _gaussians(self) -> tuple[Any, Any]:
        tensor: Any = self.o3d.core.Tensor
        state, splats = self.desk.state, self.desk.state.shown.splats
        scales = splats.scales.detach()
        rgb = torch.from_numpy(state.colors())
        sheen = state.mode == "color" and not state.selected
        columns = {
            "rot": torch.nn.functional.normalize(splats.quats.detach(), dim=1),
            "scale": torch.maximum(scales, SMALLEST * scales.amax(dim=1, keepdim=True)),
            "opacity": splats.logit_opacities.detach()[:, None],
            "f_dc": splats.sh.detach()[:, 0] if sheen else rgb_to_sh_dc(rgb),
        }
        degree = min(2, splats.sh_degree) if sheen else 0  # Open3D draws no third degree
        if degree:
            columns["f_rest"] = splats.sh.detach()[:, 1 : (degree + 1) ** 2]
        cloud = self.o3d.t.geometry.PointCloud(tensor(splats.means.detach().numpy().copy()))
        for name, values in columns.items():
            cloud.point[name] = tensor(np.ascontiguousarray(values.numpy()))
        material = self.rendering.MaterialRecord()
        material.shader = "gaussianSplat"
        material.gaussian_splat_sh_degree = degree
        material.gaussian_splat_max_tiles_per_splat = 1 << 20  # near Gaussians of a wall cover the window
        return cloud, material

    def _points(self) -> tuple[Any, Any]:
        vectors: Any = self.o3d.utility.Vector3dVector
        splats = self.desk.state.shown.splats
        solid = np.flatnonzero(splats.opacities.detach().numpy() >= LEAST_OPACITY)
        if len(solid) > MOST_POINTS:
            solid = solid[np.linspace(0, len(solid) - 1, MOST_POINTS).astype(np.int64)]
        if not len(solid):
            return None, None
        cloud = self.o3d.geometry.PointCloud(vectors(splats.means.detach().numpy()[solid].astype(float)))
        cloud.colors = vectors(self.desk.state.colors()[solid].astype(float))
        material = self.rendering.MaterialRecord()
        material.shader = "defaultUnlit"
        material.sRGB_color = True
        material.point_size = 4 * self.window.scaling
        return cloud, material

    def _box(self, node: int) -> tuple[Any, Any]:
        edges = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]
        utility, corners = self.o3d.utility, self.desk.state.base[node].box.corners
        lines = self.o3d.geometry.LineSet(utility.Vector3dVector(corners), utility.Vector2iVector(np.array(edges)))
        lines.paint_uniform_color([1.0, 0.62, 0.106])
        material = self.rendering.MaterialRecord()
        material.shader = "unlitLine"
        material.line_width = 2 * self.window.scaling
        return lines, material

    # --- the camera -----------------------------------------------------------------------------------------

    def _aim(self) -> None:
        """Bring the window's camera to the state's."""
        state, camera = self.desk.state, self.desk.state.camera
        means = state.base.splats.means.detach().numpy().astype(float)
        low, high = np.percentile(means, [0.5, 99.5], axis=0)
        eye = camera.position.double().numpy()
        ahead, down = (camera.viewmat[i, :3].double().numpy() for i in (2, 1))
        away = max(float((focus(state.base) - eye) @ ahead), 0.05 * float(np.linalg.norm(high - low)))
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
            action = next((a for a in ACTIONS if a.key == known.get(key, chr(key) if 32 < key < 127 else "")), None)
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
        self._update_list()

    def _say(self, line: str) -> None:
        self.line.text = line
        self.window.set_needs_layout()

    # --- dialogs --------------------------------------------------------------------------------------------

    def _help(self) -> None:
        rows = [("click", "select; with shift or ctrl: in or out of the selection")]
        rows += [(a.key, a.words) for a in ACTIONS] + [
            ("r", "rename what is selected"),
            ("h", "this help"),
            ("q", "close"),
        ]
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
            self._button(row, name, do)
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
        return True
