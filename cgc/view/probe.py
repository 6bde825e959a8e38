"""Find out whether a window can be opened, in a process of its own: Open3D ends the process where it cannot draw."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from cgc.errors import InputError

SECONDS = 90
"""How long a window may take to come up; a first start on a busy machine takes some ten."""

INSTEAD = "or use --screenshot PICTURE.png or --web, which need none of it"

READY = "cgc: a window is up"

OPEN_A_WINDOW = f"""
import os
from open3d.visualization import gui, rendering
app = gui.Application.instance
app.initialize()
window = app.create_window("cgc", 64, 48)
widget = gui.SceneWidget()
widget.scene = rendering.Open3DScene(window.renderer)
window.add_child(widget)
for _ in range(3):
    app.run_one_tick()
print({READY!r}, flush=True)
os._exit(0)  # the driver is still at work: an orderly end may hang
"""


class Display(NamedTuple):
    """What a window would be drawn by: `software` where that is the processor, so that Gaussians are slow."""

    software: bool


def probe(environment: Mapping[str, str] | None = None, seconds: float = SECONDS) -> Display:
    """Try to open a window; InputError says what is missing where there can be none."""
    env = dict(os.environ if environment is None else environment)
    if sys.platform.startswith("linux") and not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY")):
        raise InputError(
            "this machine has no display (DISPLAY and WAYLAND_DISPLAY are not set), so no window can be opened; "
            f"log in with one, {INSTEAD}"
        )
    try:
        made = subprocess.run(
            [sys.executable, "-c", OPEN_A_WINDOW], env=env, timeout=seconds, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"no window came up within {seconds:g} seconds: the display or its driver hangs; restart it, {INSTEAD}"
        ) from error
    return understand(made.returncode, made.stdout)


def understand(code: int, output: str) -> Display:
    """Read what the try has written: what draws, or InputError with what is missing."""
    if "No module named 'open3d'" in output:
        raise InputError(f"a window needs Open3D, which is not installed; pip install open3d, {INSTEAD}")
    if "cannot open shared object file" in output:
        library = next((w.rstrip(":") for w in output.split() if ".so" in w), "a library")
        raise InputError(
            f"Open3D needs {library}, which this machine lacks; install it (on Debian and Ubuntu: apt-get install "
            f"libgl1 libegl1 libgomp1 mesa-vulkan-drivers), {INSTEAD}"
        )
    if "GLFW error" in output or "headless mode" in output:
        raise InputError(
            "the display that DISPLAY or WAYLAND_DISPLAY names does not answer; start it or name another "
            f"(ssh -X, xvfb-run), {INSTEAD}"
        )
    if code == 0 and READY in output:
        return Display(software="software device" in output or "llvmpipe" in output)
    if any(word in output for word in ("Vulkan", "OpenGL", "EGL", "GLX")):
        raise InputError(
            "this machine has no working Vulkan or OpenGL driver, so no window can be drawn; install one (Debian and "
            f"Ubuntu: apt-get install mesa-vulkan-drivers libgl1-mesa-dri, which need no graphics card), {INSTEAD}"
        )
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "nothing was said")
    raise InputError(f"Open3D could not open a window ({last[:200]}; exit code {code}); mend that, {INSTEAD}")
