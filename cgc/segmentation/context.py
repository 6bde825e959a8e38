"""What a segmentation knows beside its Gaussians: cameras, photos, best views, and how its pictures are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError, some
from cgc.rasterize.base import Rasterizer
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.cameras import Z, up_of
from cgc.scene.types import Camera, View


@dataclass(frozen=True, eq=False)
class Context:
    """Where a segmentation comes from. What takes time to read is read when it is first asked for.

    read_cameras gives the views' cameras by name, read_photo a view's photo [H, W, 3] uint8 (None where it is gone).
    read_views gives the views by name as the scene has them, which says of photos how large they are and by which lens.
    InputError from read_cameras or read_views is why there are none.
    read_best_views gives the view that shows most of an object, by id, of the objects of `hierarchy` alone.
    source says where it is from, as JSON values, and n_original how many Gaussians the file had that was segmented.
    background [3] is what pictures show behind the splats (None: black); blended: id maps are of blended features,
    but for those of what was merged, split or painted since.
    """

    rasterizer: Rasterizer = field(default_factory=CpuRasterizer)
    folder: Path | None = None
    read_cameras: Callable[[], Mapping[str, Camera]] | None = None
    read_photo: Callable[[str], np.ndarray | None] | None = None
    read_views: Callable[[], Mapping[str, View]] | None = None
    read_best_views: Callable[[], Mapping[int, str]] | None = None
    hierarchy: Hierarchy | None = None
    background: Tensor | None = None
    blended: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    n_original: int | None = None

    @cached_property
    def cameras(self) -> Mapping[str, Camera]:
        """The views' cameras by name; InputError where there are none."""
        if self.read_cameras is None:
            raise InputError(
                "this segmentation has no views of its own; give a Camera in place of a view's name (Camera.look_at, "
                "cgc.orbit, or cgc.cameras of a COLMAP model)"
            )
        return self.read_cameras()

    @property
    def views(self) -> Mapping[str, View]:
        """The views by name as the scene has them; none where it is gone (`lost_photos` says why)."""
        return self._views[0]

    @cached_property
    def best_views(self) -> Mapping[int, str]:
        """The view that shows most of an object, as the run has found."""
        return self.read_best_views() if self.read_best_views else {}

    @cached_property
    def known_cameras(self) -> list[Camera]:
        """The views' cameras; none where there are none, or they are gone (`lost` says why)."""
        return list(self.cameras.values()) if self.read_cameras and not self.lost else []

    @cached_property
    def lost(self) -> str:
        """Why the cameras of the views cannot be had, a sentence; empty where they can, or there are no views."""
        try:
            _ = self.cameras if self.read_cameras else None
        except InputError as error:
            return str(error)
        return ""

    @property
    def lost_photos(self) -> str:
        """Why the scene's photos cannot be had, a sentence; empty where they can, or there is no scene."""
        return self._views[1]

    @cached_property
    def _views(self) -> tuple[Mapping[str, View], str]:
        try:
            return (self.read_views() if self.read_views else {}), ""
        except InputError as error:
            return {}, str(error)

    @property
    def up(self) -> np.ndarray:
        """The direction that is up for the views, a unit vector [3]; z where they have none in common."""
        up = up_of(self.known_cameras)
        return Z if up is None else up

    def camera(self, name: str) -> Camera:
        """The camera of a view, by the name of its photo, with its suffix or without; InputError names close ones."""
        if not isinstance(name, str):
            raise InputError(f"expected the name of a view, got {name!r}")
        if name in self.cameras:
            return self.cameras[name]
        stems = [full for full in self.cameras if full.rpartition(".")[0] == name]
        if len(stems) == 1:
            return self.cameras[stems[0]]
        close = stems or get_close_matches(name, list(self.cameras), n=3, cutoff=0.5)
        like = f"did you mean {' or '.join(close)}?" if close else f"the views are {some(self.cameras)}"
        raise InputError(f"there is no view {name!r} among the {len(self.cameras)} of this run; {like}")
