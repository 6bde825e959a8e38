"""Turntables: an object on its own, seen from all around, as a GIF or an MP4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc.errors import InputError
from cgc.files import write_beside
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Camera
from cgc.segmentation.orbit import circle
from cgc.splats.types import Splats

FIELD = 1.1
"""How many times its own size the picture shows of an object, so that it never leaves it."""
FOCAL = 2.2
"""Focal length in picture sides: a long lens, as of product photos."""


def turntable_cameras(
    splats: Splats, frames: int, size: int, *, up: Sequence[float] | np.ndarray = (0, 0, 1), elevation: float = 20.0
) -> list[Camera]:
    """Return cameras on a circle around an object, `elevation` degrees above its middle, a frame each."""
    if frames < 1 or size < 8:
        raise InputError(f"a turntable has frames of 8 pixels and more, got {frames} frames of {size}")
    if not -89 <= elevation <= 89:
        raise InputError(f"an elevation from -89 to 89 degrees was expected, got {elevation}")
    means = splats.means.detach().cpu().numpy().astype(float)
    if not len(means):
        raise InputError("there are no Gaussians to show; choose a segment that has some")
    low, high = np.percentile(means, [1, 99], axis=0)
    centre = (low + high) / 2
    reach = float(np.percentile(splats.scales.detach().cpu().numpy().max(1), 90))
    radius = max(float(np.percentile(np.linalg.norm(means - centre, axis=1), 99)) + 3 * reach, 1e-6)
    distance = FIELD * radius * math.hypot(2 * FOCAL, 1)  # so that a ball of this radius fits
    return circle(centre, up, distance, frames, elevation=elevation, width=size, height=size, focal=FOCAL * size)


def turntable(
    splats: Splats,
    rasterizer: Rasterizer,
    *,
    frames: int = 36,
    size: int = 256,
    up: Sequence[float] | np.ndarray = (0, 0, 1),
) -> np.ndarray:
    """Render Gaussians from all around on white, uint8 [frames, size, size, 3]."""
    made = np.empty((frames, size, size, 3), np.uint8)
    for frame, camera in enumerate(turntable_cameras(splats, frames, size, up=up)):
        with torch.no_grad():
            colors = splats.colors(camera.position)
            shown = rasterizer.render(splats, colors, [camera], backgrounds=torch.ones(3)).values[0]
        made[frame] = (255 * shown.clamp(0, 1)).round().byte().cpu().numpy()
    return made


def write_animation(path: Path | str, frames: np.ndarray, *, fps: float = 12.0) -> None:
    """Write frames uint8 [F, H, W, 3] as a GIF that goes on for ever, or as an MP4, by the file's suffix."""
    path = Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or frames.dtype != np.uint8:
        raise InputError(f"frames [F, H, W, 3] of bytes were expected, got {list(frames.shape)} of {frames.dtype}")
    if not 0.1 <= fps <= 100:
        raise InputError(f"0.1 to 100 frames a second were expected, got {fps}")
    if path.suffix.lower() == ".gif":
        _write_gif(path, frames, fps)
    elif path.suffix.lower() == ".mp4":
        _write_mp4(path, frames, fps)
    else:
        raise InputError(f"{path.name} is neither a .gif nor a .mp4; choose one of them")


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    from PIL import Image

    few = frames[:: max(1, len(frames) // 6)]
    palette = Image.fromarray(few.reshape(-1, few.shape[2], 3)).quantize(255)  # one for all, so that nothing flickers
    colors, back = (palette.getpalette() or [])[: 3 * 255], frames[0, 0, 0]
    pictures = []
    for frame in frames:
        mixed = np.asarray(Image.fromarray(frame).quantize(palette=palette))
        # what is behind gets a colour of its own: white, mixed with what is nearly white, is a grey square on a page
        picture = Image.fromarray(np.where((frame == back).all(-1), len(colors) // 3, mixed).astype(np.uint8))
        picture.putpalette([*colors, *back.tolist()])
        pictures.append(picture)
    with write_beside(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], loop=0,
            duration=max(20, round(1000 / fps)),
        )  # fmt: skip


def check_mp4() -> None:
    """Raise InputError where no MP4 can be written."""
    if not find_spec("imageio_ffmpeg"):
        raise InputError("an MP4 takes imageio-ffmpeg, which is not installed: `pip install imageio-ffmpeg`")


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    check_mp4()
    import imageio_ffmpeg

    rate: Any = fps  # fractions are fine
    height, width = (n - n % 2 for n in frames.shape[1:3])  # the codec takes even sizes only
    with write_beside(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary), (width, height), fps=rate, quality=8, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        try:
            for frame in frames:
                writer.send(np.ascontiguousarray(frame[:height, :width]))
        finally:
            writer.close()
