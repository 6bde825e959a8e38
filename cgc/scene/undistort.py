"""Undistort photos once, into a folder that later runs find again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from cgc.errors import InputError
from cgc.files import no_room
from cgc.leftovers import clear_folders
from cgc.progress import progress_bar
from cgc.scene.images import load_colors
from cgc.scene.lens import undistort_photo
from cgc.scene.types import Lens

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Distorted:
    """A photo to undistort: the name of the view, its file, and its lens at the file's size."""

    name: str
    path: Path
    exif_rotated: bool
    lens: Lens

    @property
    def target(self) -> str:
        """Where the undistorted photo lies in the cache: as a JPEG where it was one, else as a PNG."""
        return self.name if self.name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{self.name}.png"


def undistort_photos(photos: Sequence[Distorted], root: Path, cache: Path | None, quiet: bool) -> list[Path]:
    """Return the undistorted file of every photo, made now or found in the cache.

    The cache is `cache`, or `root`/.cgc_cache, or the user's cache folder where `root` cannot be written to.
    """
    folders = [cache] if cache else [root / ".cgc_cache", _user_cache()]
    name = f"undistorted-{_key(photos)}"
    for folder in folders:
        if (folder / name).is_dir():
            return [folder / name / photo.target for photo in photos]
    for folder in folders:
        partial = folder / f".{name}.{os.getpid()}.partial"
        try:
            clear_folders(folder, name)
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in _DENIED:
                continue
            raise
        _fill(partial, photos, folder / name, quiet)
        return [folder / name / photo.target for photo in photos]
    raise InputError(
        f"the undistorted photos need a folder that can be written to, but {' and '.join(map(str, folders))} "
        "cannot; make one of them writable"
    )


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cgc"


def _key(photos: Sequence[Distorted]) -> str:
    """Hash all that the undistorted photos depend on; a photo's bytes stand in by their number and date."""
    facts: list[object] = [pycolmap.__version__]
    for photo in photos:
        stat = photo.path.stat()
        facts.append([photo.name, photo.exif_rotated, astuple(photo.lens), stat.st_size, stat.st_mtime_ns])
        if photo.path.suffix.lower() not in (".jpg", ".jpeg"):
            facts.append("alpha is kept")  # unlike in what earlier versions have left
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _flat(colors: np.ndarray, lens: Lens, suffix: str) -> np.ndarray:
    """Undistort colours [H, W, 3], or these times alpha and alpha [H, W, 4]: then they are divided by it again."""
    flat = undistort_photo(colors[..., :3], lens)
    if colors.shape[2] == 3 or suffix in (".jpg", ".jpeg"):
        return flat
    alpha = undistort_photo(np.repeat(colors[..., 3:], 3, axis=2), lens)[..., :1]
    straight = flat.astype(np.float32) * 255 / np.maximum(alpha, 1)
    return np.concatenate([straight.round().clip(0, 255).astype(np.uint8), alpha], axis=2)


def _fill(partial: Path, photos: Sequence[Distorted], final: Path, quiet: bool) -> None:
    """Write every photo below `partial` and rename it to `final`; leave nothing behind on failure."""
    try:
        with progress_bar("undistort", len(photos), quiet=quiet) as bar:
            for photo in photos:
                path = partial / photo.target
                flat = _flat(load_colors(photo.path, photo.exif_rotated), photo.lens, path.suffix.lower())
                path.parent.mkdir(parents=True, exist_ok=True)
                # a JPEG takes the first two settings, a PNG the third
                Image.fromarray(flat).save(path, quality=97, subsampling=0, compress_level=1)
                bar.advance()
        with contextlib.suppress(FileExistsError):  # another process was faster, with the same pictures
            if not final.is_dir():
                partial.rename(final)
    except OSError as error:
        if no_room(error):
            raise InputError(
                f"the disk is full: the undistorted photos could not be written to {final.parent}; "
                "free some space and run the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
