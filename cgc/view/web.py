"""The browser: a segmented scene served by viser. Only this file knows viser, which is the optional extra "web".

All browsers that look share one state. Clicks come as rays and are picked by the project's own rasteriser. A browser
holds 32 B a Gaussian; of more than MOST_SPLATS those are sent that look largest and most opaque. Viser draws colours as
they are in the mean over directions, without their sheen.
"""

from __future__ import annotations

import math
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc.errors import InputError
from cgc.geometry import covariances
from cgc.segmentation.segmentation import Segmentation
from cgc.view.actions import ACTIONS, BY_NAME, Action, Desk, keys
from cgc.view.frames import ACCENT, EDGES, MODES, thumbnail
from cgc.view.shots import DEFAULT_SIZE, camera_named, focus, from_pose, vertical_fov
from cgc.view.state import State

HOST = "127.0.0.1"
MOST_SPLATS = 600_000
"""Gaussians that a browser is sent at most; clicks, pictures and exports are of all of them."""
GROUPS = (
    ("isolate", "hide", "show all"), ("delete", "undo", "redo"), ("coarser", "finer", "objects"),
    ("boxes", "axes", "deselect"), ("picture", "export", "save"),
)  # fmt: skip
HOTKEYS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
NOTHING = "—"
SIDE = 160


def serve(
    segmentation: Segmentation,
    port: int = 8080,
    *,
    host: str = HOST,
    mode: str = "color",
    camera: str = "orbit",
    level: float | None = None,
    out: Path | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Show a segmentation in browsers until it is interrupted; InputError where viser is missing or the port is taken.

    host: who may look; "0.0.0.0" is everybody in the network. out: the folder of saved pictures and exports (None:
    view/ in the run's).
    """
    page = open_page(segmentation, port, host=host, mode=mode, camera=camera, level=level, out=out)
    say(f"open http://{'localhost' if host in (HOST, '0.0.0.0') else host}:{port} in a browser; Ctrl-C ends it")
    try:
        wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.stop()


def wait() -> None:
    """Wait until this process is interrupted."""
    threading.Event().wait()


def open_page(
    segmentation: Segmentation,
    port: int,
    *,
    host: str = HOST,
    mode: str = "color",
    camera: str = "orbit",
    level: float | None = None,
    out: Path | None = None,
) -> Page:
    """Start to serve a segmentation and return at once; `Page.stop` ends it."""
    viser = import_viser()
    state = State(segmentation, camera_named(segmentation, camera, DEFAULT_SIZE))
    state.set_mode(mode)
    state.set_level(level)
    state.view = next((name for name in state.view_names if camera in (name, Path(name).stem)), "")
    check_port(host, port)
    desk = Desk(state, out or (segmentation.context.folder or Path.cwd()) / "view")
    return Page(viser.ViserServer(host=host, port=port, label="cgc", verbose=False), desk)


def import_viser() -> Any:
    """Import viser; InputError with the command that installs it."""
    try:
        import viser
    except ImportError as error:
        raise InputError(
            "the viewer in a browser needs viser, which is not installed; "
            "pip install 'contrastive-gaussian-clustering[web]', or use --screenshot PICTURE.png"
        ) from error
    return viser


def check_port(host: str, port: int) -> None:
    """Raise InputError where a port cannot be listened at: viser would take another one and not say so."""
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise InputError(f"the port is {port!r} where 1 to 65535 was expected; 8080 is usual")
    if not host or not host.isascii():  # none would be the whole network
        raise InputError(f"the host is {host!r} where an address was expected: {HOST}, or 0.0.0.0 for everybody")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise InputError(
            f"port {port} of {host} cannot be used ({error.strerror or error}); end what uses it, or choose another "
            "with --port"
        ) from error


class Page:
    """What browsers show: viser's scene and controls, kept as the state is. Handlers come from several threads."""

    def __init__(self, server: Any, desk: Desk) -> None:
        self.server, self.desk = server, desk
        self.lock = threading.RLock()
        self.asked: Counter[int] = Counter()
        self.asking = threading.Lock()
        self.boxes: list[Any] = []
        self._build()
        self._aim_first()
        for modifier in (None, "shift", "cmd/ctrl"):
            server.scene.on_click(modifier=modifier)(self.on_click)
        self.show()

    def stop(self) -> None:
        """End serving."""
        self.server.stop()

    # --- controls -------------------------------------------------------------------------------------------

    def _build(self) -> None:
        gui, state = self.server.gui, self.desk.state
        gui.configure_theme(dark_mode=True, control_width="medium")
        self.mode = gui.add_dropdown("show", MODES, initial_value=state.mode)
        self._on(self.mode, lambda value, client: self.run(BY_NAME[value], client))
        tree = state.base.hierarchy
        self.level = gui.add_slider(
            "level", 0.0, 1.0, 0.001, round(state.level_shown, 3), disabled=len(tree.stops) < 2
            or state.base.blended, hint="0 shows wholes, 1 the smallest parts",
        )  # fmt: skip
        self._on(self.level, lambda value, _: self.set_level(value))
        self.view = gui.add_dropdown("view", ("orbit", *state.view_names), initial_value=state.view or "orbit")
        self._on(self.view, self.look)
        self.object = gui.add_dropdown("object", (NOTHING,), initial_value=NOTHING)
        self._on(self.object, lambda value, _: self.pick(value))
        self.picture = gui.add_image(np.zeros((SIDE, SIDE, 3), np.uint8), visible=False)
        self.name = gui.add_text("name", "", hint="of the one object that is selected")
        self._on(self.name, lambda value, _: self.rename(value))
        self.line = gui.add_markdown("")
        for names in GROUPS:
            hint = "; ".join(f"{name}: {BY_NAME[name].words}" for name in names)
            group = gui.add_button_group("", names, hint=hint)
            group.on_click(lambda event: self.run(BY_NAME[event.target.value], event.client))
        for action in ACTIONS:
            key = action.key.upper() if action.key in HOTKEYS else None
            command = gui.add_command(f"cgc: {action.name}", description=action.words, hotkey=key)
            command.on_trigger(lambda event, action=action: self.run(action, event.client))
        command = gui.add_command("cgc: help", description="what the keys do", hotkey="H")
        command.on_trigger(lambda event: self.help(event.client))

    def _on(self, control: Any, handler: Callable[[Any, Any], None]) -> None:
        """Let a handler have what a person sets a control to, and their browser, not what `show` sets.

        What is set while the page is busy waits; of several values that wait, the last one counts.
        """

        def handle(event: Any) -> None:
            if event.client is None:
                return
            value = event.target.value  # `show` may set another one by the time it is our turn
            with self.asking:
                self.asked[id(control)] += 1
                turn = self.asked[id(control)]
            with self.lock:
                if turn == self.asked[id(control)]:
                    handler(value, event.client)

        control.on_update(handle)

    # --- what a person does ---------------------------------------------------------------------------------

    def on_click(self, event: Any) -> None:
        """Select what is under the pointer."""

        def do() -> str:
            self.desk.state.click_ray(event.ray_origin, event.ray_direction, add=event.modifier is not None)
            return self.desk.summary

        self._do(do, event.client)

    def run(self, action: Action, client: Any = None) -> None:
        """Do an action as a browser's camera sees the scene."""

        def do() -> str:
            before = self.desk.state.camera
            line = action.do(self.desk)
            if self.desk.state.camera is not before:
                self._aim(client)
            return line

        self._do(do, client)

    def help(self, client: Any = None) -> None:
        """Show a browser (None: all) what the keys do."""
        gui = (client or self.server).gui
        rows = [row for row in (*keys(), ("h", "this help")) if row[0] == "click" or row[0] in HOTKEYS]
        with gui.add_modal("keys") as modal:
            gui.add_markdown(
                "| key | |\n|---|---|\n" + "\n".join(f"| {key} | {_plain(words)} |" for key, words in rows)
            )
            gui.add_button("close").on_click(lambda _: modal.close())

    def set_level(self, level: float) -> None:
        """Show another level."""

        def do() -> str:
            if abs(level - self.desk.state.level_shown) > 1e-3:
                self.desk.state.set_level(float(level))
            return self.desk.level_line

        self._do(do)

    def look(self, name: str, client: Any = None) -> None:
        """Bring a browser's camera to a view."""

        def do() -> str:
            self.desk.state.look(name)
            self._aim(client)
            return f"view {name}"

        self._do(do, client)

    def pick(self, row: str) -> None:
        """Select what a row of the list names."""

        def do() -> str:
            node = self.rows.get(row)
            self.desk.state.pick(None if node is None else self.desk.state.base[node])
            return self.desk.summary

        self._do(do)

    def rename(self, name: str) -> None:
        """Name the one object that is selected; the field stays as it is, somebody is typing in it."""

        def do() -> str:
            if len(self.desk.state.selected) != 1:
                raise InputError("select one object to rename")
            self.desk.state.rename(self.desk.state.selected[0], name, typing=True)
            return self.desk.summary

        with self.lock, self.server.atomic():
            line = self.desk.attempt(do)
            self._list()
            self.line.content = _plain(line)

    def _do(self, deed: Callable[[], str], client: Any = None) -> None:
        with self.lock:
            self._see(client)
            line = self.desk.attempt(deed)
            self.show(line)

    # --- the camera -----------------------------------------------------------------------------------------

    def _see(self, client: Any) -> None:
        """Bring the state's camera to a browser's."""
        if client is not None:
            camera = client.camera
            size = max(camera.image_width, 1), max(camera.image_height, 1)
            self.desk.state.camera = from_pose(camera.wxyz, camera.position, camera.fov, size)

    def _pose(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """The state's camera as eye, the point it turns around, up [3] and its angle in radians."""
        state = self.desk.state
        eye = state.camera.position.double().numpy()
        ahead, down = (state.camera.viewmat[i, :3].double().numpy() for i in (2, 1))
        away = float((focus(state.base) - eye) @ ahead)
        return eye, eye + (away if away > 1e-3 else 1.0) * ahead, -down, math.radians(vertical_fov(state.camera))

    def _aim_first(self) -> None:
        self.server.scene.set_up_direction(tuple(self.desk.state.base.context.up.tolist()))
        eye, centre, up, fov = self._pose()
        first = self.server.initial_camera
        first.position, first.look_at, first.up, first.fov = eye, centre, up, fov

    def _aim(self, client: Any) -> None:
        """Bring a browser's camera to the state's."""
        if client is None:
            return
        eye, centre, up, fov = self._pose()
        with client.atomic():
            client.camera.up_direction = up
            client.camera.position = eye
            client.camera.look_at = centre
            client.camera.fov = fov

    # --- drawing --------------------------------------------------------------------------------------------

    def show(self, line: str = "click an object; with shift or ctrl: several") -> None:
        """Bring the page to the state, and show a line."""
        state = self.desk.state
        with self.lock, self.server.atomic():
            self._splats()
            for box in self.boxes:
                box.remove()
            self.boxes = [self._box(node) for node in state.selected] if state.boxes else []
            self.server.scene.world_axes.visible = state.axes
            self.mode.value = state.mode
            self.level.value = round(state.level_shown, 3)
            if state.view in self.view.options:
                self.view.value = state.view
            one = self._list()
            self.name.value = state.edits.names.get(one, "") if one else ""
            self.picture.visible = one is not None
            if one is not None:
                self.picture.image = thumbnail(state.base, one, SIDE)
            self.line.content = _plain(line)

    def _list(self) -> int | None:
        """Bring the list of objects to the state; return the one that is selected."""
        state = self.desk.state
        self.rows = {f"{thing.id} · {state.name(thing.id)}": thing.id for thing in state.listed}
        self.object.options = (NOTHING, *self.rows)
        one = state.selected[0] if len(state.selected) == 1 else None
        self.object.value = next((row for row, node in self.rows.items() if node == one), NOTHING)
        return one

    def _splats(self) -> None:
        splats, rgb = self.desk.state.shown.splats, self.desk.state.colors(sheen=False)
        opacities, scales = splats.opacities.detach(), splats.scales.detach()
        if len(splats) > MOST_SPLATS:
            away = (splats.means.detach() - torch.from_numpy(focus(self.desk.state.base)).float()).norm(dim=1)
            near = away.median()  # what is farther, the sky above all, looks smaller than it is
            weight = opacities * scales.sort(dim=1).values[:, 1:].prod(dim=1) / (away / near).clamp_min(1) ** 2
            kept = weight.topk(MOST_SPLATS).indices.sort().values
        else:
            kept = torch.arange(len(splats))
        if not len(kept):
            self.server.scene.remove_by_name("/splats")
            return
        self.server.scene.add_gaussian_splats(
            "/splats",
            centers=splats.means.detach()[kept].numpy(),
            covariances=covariances(splats.quats.detach()[kept], scales[kept]).numpy(),
            rgbs=rgb[kept.numpy()],
            opacities=opacities[kept].numpy()[:, None],
        )

    def _box(self, node: int) -> Any:
        corners = self.desk.state.base[node].box.corners.astype(np.float32)
        return self.server.scene.add_line_segments(
            f"/boxes/{node}", corners[EDGES], colors=ACCENT, thickness=2.0, thickness_units="screen"
        )


def _plain(text: str) -> str:
    """A line without what Markdown reads as marks, so that names and paths show as they are."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-.!|~" else c for c in text)
