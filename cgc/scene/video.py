"""Take the sharpest frames of a video, evenly over its length; reads by OpenCV, or by imageio where that is absent."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cgc.errors import InputError
from cgc.files import write_beside
from cgc.progress import progress_bar

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp", ".gif")
_SIDE = 640  # sharpness is measured on a copy that is no longer than this


def extract_frames(video: Path, out: Path, count: int, *, quiet: bool = False) -> list[Path]:
    """Write the sharpest frame of each of `count` equal parts of `video` as out/frame_00001.jpg and so on.

    The video is read twice, once to count its frames; one frame is held at a time. A video of fewer frames gives all
    of them. Raises InputError where it cannot be read, or nothing that reads videos is installed.
    """
    if count < 1:
        raise InputError(f"frames is {count} where at least 1 was expected; correct that setting")
    if not video.is_file():
        raise InputError(f"{video} was expected to be a video, but there is no such file; check the path")
    total = _count(video)
    if total == 0:
        raise _broken(video, "it has no frames")
    count = min(count, total)
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    best, sharpest, window = None, -1.0, 0
    with progress_bar("frames", count, quiet=quiet) as bar:
        for i, frame in enumerate(_frames(video)):
            now = window_of(i, total, count)
            if now != window and best is not None:
                paths.append(_write(best, out, len(paths) + 1))
                bar.advance()
                best, sharpest, window = None, -1.0, now
            sharp = sharpness(frame)
            if sharp > sharpest:
                best, sharpest = frame.copy(), sharp
        if best is not None:
            paths.append(_write(best, out, len(paths) + 1))
            bar.advance()
    if not paths:
        raise _broken(video, "no frame of it can be decoded")
    return paths


def window_of(frame: int, total: int, count: int) -> int:
    """Return which of `count` equal parts of `total` frames a frame is in; frames past the end are in the last."""
    return min(frame * count // total, count - 1)


def sharpness(frame: np.ndarray) -> float:
    """Return the variance of the Laplacian of a frame [H, W, 3] uint8, on a small grey copy; 0 where it is tiny."""
    image = Image.fromarray(frame).convert("L")
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(image, np.float32)
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).var())


def _write(frame: np.ndarray, out: Path, number: int) -> Path:
    path = out / f"frame_{number:05}.jpg"
    with write_beside(path) as temporary:
        Image.fromarray(frame).save(temporary, quality=95)
    return path


def _reader() -> str:
    """Return which installed library reads videos; InputError with the install command where there is none."""
    if importlib.util.find_spec("cv2"):
        return "cv2"
    if importlib.util.find_spec("imageio") and importlib.util.find_spec("imageio_ffmpeg"):
        return "imageio"
    raise InputError(
        "reading a video needs OpenCV or imageio, and neither is installed; "
        "run `pip install imageio imageio-ffmpeg` (or `pip install opencv-python-headless`), or give a folder of photos"
    )


def _broken(video: Path, why: object) -> InputError:
    reason = (" ".join(str(why).split()) or "for an unknown reason")[:200]
    return InputError(
        f"{video} cannot be read as a video ({reason}); check that it plays, copy it again or convert it to .mp4, "
        "or give a folder of photos"
    )


def _count(video: Path) -> int:
    """Count the frames by going through them: headers are often wrong."""
    if _reader() == "cv2":
        import cv2  # pyright: ignore[reportMissingImports]

        capture = cv2.VideoCapture(str(video))
        try:
            total = 0
            while capture.grab():
                total += 1
            return total
        finally:
            capture.release()
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.count_frames_and_secs(str(video))[0] or 0
    except (OSError, RuntimeError, ValueError) as error:
        raise _broken(video, "its frames cannot be counted") from error


def _frames(video: Path) -> Iterator[np.ndarray]:
    """Yield every frame as [H, W, 3] uint8 RGB, turned as the video says."""
    if _reader() == "cv2":
        import cv2  # pyright: ignore[reportMissingImports]

        capture = cv2.VideoCapture(str(video))
        try:
            while True:
                good, frame = capture.read()
                if not good:
                    return
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            capture.release()
    yield from _ffmpeg_frames(video)


def _ffmpeg_frames(video: Path) -> Iterator[np.ndarray]:
    """Yield frames that the ffmpeg of imageio decodes: a stream of PPM, which says each frame's size."""
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(video.resolve()), "-map", "0:v:0",
        "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-",
    ]  # fmt: skip
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told) as process,
    ):
        assert process.stdout is not None
        try:
            none = True
            while header := process.stdout.readline():
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()  # the largest value, 255
                data = process.stdout.read(3 * width * height)
                if header != b"P6\n" or len(data) < 3 * width * height:
                    break  # cut off: what came before is used
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
                none = False
            if none:
                told.seek(0)
                raise _broken(video, told.read(2000).decode(errors="replace"))
        finally:
            process.kill()
