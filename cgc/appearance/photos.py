"""Training photos, halved for the first steps, where a step finds them: on its device, or on the way there.

Photos stay bytes until a step wants them. On a GPU they lie in its memory while all of them, with their halves, take
at most SHARE of what is free; otherwise in pinned memory of the host, from where the next step's photo is copied while
this step computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cgc.device import PageLocked
from cgc.errors import InputError
from cgc.scene.corrections import Correction
from cgc.scene.types import Camera, View

SHORTEST = 160  # pixels on the longer side: no photo is halved below it (a level at 100 pixels cost segments a point)
SHARE = 0.25  # of the device's free memory

Which = tuple[int, int]
"""A view, and how many times its photo is halved."""


@dataclass(frozen=True)
class Photo:
    """A training photo at one size: `pixels` [H, W, 3] uint8 and the camera of that size.

    Where some of it is see-through, `pixels` are [H, W, 4]: colours times alpha, and alpha.
    """

    pixels: Tensor
    camera: Camera

    @property
    def is_see_through(self) -> bool:
        """Whether some of the photo is."""
        return self.pixels.shape[2] == 4

    def halved(self) -> Photo:
        """Return the photo at half the size, pixels averaged by area."""
        width, height = max(self.camera.width // 2, 1), max(self.camera.height // 2, 1)
        return Photo(torch.from_numpy(self.shrunk(width, height)), self.camera.resized(width, height))

    def shrunk(self, width: int, height: int) -> np.ndarray:
        """Return the pixels of a smaller picture, averaged by area, [height, width, 3 or 4] uint8."""
        pixels = self.pixels.numpy()
        if pixels.shape[2] == 3:
            return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        bands = [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(4)]  # else multiplied once more
        return np.stack([np.array(band.resize((width, height), Image.Resampling.BOX)) for band in bands], axis=2)

    def pyramid(self, levels: int) -> list[Photo]:
        """Return the photo, halved 0, 1, .. `levels` times, as far as its longer side stays long enough."""
        sizes: list[Photo] = [self]
        while len(sizes) <= levels and max(sizes[-1].camera.width, sizes[-1].camera.height) >= 2 * SHORTEST:
            sizes.append(sizes[-1].halved())
        return sizes

    def float(self, background: Tensor | None = None) -> Tensor:
        """Return the pixels as [H, W, 3] float32 in 0..1, on a background [3] (None: black)."""
        return over(self.pixels.to(torch.float32).mul_(1.0 / 255.0), background)


def over(colors: Tensor, background: Tensor | None) -> Tensor:
    """Put colours [H, W, 3], or these times alpha and alpha [H, W, 4], on a background [3] (None: black)."""
    if colors.shape[2] == 3:
        return colors
    behind = 0.0 if background is None else (1 - colors[..., 3:]) * background
    return colors[..., :3] + behind


def on_exposed(colors: Tensor, background: Tensor | None, exposure: Correction | None = None) -> Tensor:
    """Put a photo [H, W, 3 or 4] on a background [3] (None: black) that its camera exposed as all else, in 0..1."""
    if exposure is None:
        return over(colors, background)
    behind = colors.new_zeros(3) if background is None else background.to(colors.device)
    return over(colors, exposure.photographed(behind).clamp(0, 1))


def read_photo(view: View, load_image: Callable[[View], np.ndarray]) -> Photo:
    """Read the photo of a view; InputError where it is not of its camera's size."""
    pixels, camera = load_image(view), view.camera
    if pixels.shape not in [(camera.height, camera.width, c) for c in (3, 4)] or pixels.dtype != np.uint8:
        raise InputError(
            f"{view.image_path} was read as {pixels.dtype} {'x'.join(map(str, pixels.shape))} where its "
            f"camera has uint8 {camera.height}x{camera.width}x3; make the model again from these images"
        )
    return Photo(torch.from_numpy(np.require(pixels, requirements=["C", "W"])), camera)


def free_memory(device: torch.device) -> float:
    """Return how many bytes are free on a device; the host's memory has no end here."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


class Photos:
    """The photos of some views at all their sizes, on a device; `copied` counts those sent there since."""

    def __init__(
        self,
        pyramids: Mapping[int, Sequence[Photo]],
        device: torch.device,
        keep: Literal["auto", "device", "host"] = "auto",
    ) -> None:
        """Keep `pyramids` by view: on the device, on the host, or as SHARE of the free memory allows."""
        self.device, self.copied = device, 0
        self.bytes = sum(photo.pixels.numel() for sizes in pyramids.values() for photo in sizes)
        self.on_device = keep == "device" or (keep == "auto" and self.bytes <= SHARE * free_memory(device))
        self._locked = PageLocked()
        self._pyramids = {view: [self._place(photo) for photo in sizes] for view, sizes in pyramids.items()}
        self._coming: dict[Which, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and not self.on_device else None

    @property
    def views(self) -> list[int]:
        """The views that have a photo, in order."""
        return sorted(self._pyramids)

    @property
    def largest(self) -> tuple[int, int]:
        """Width and height of the largest photo."""
        cameras = [sizes[0].camera for sizes in self._pyramids.values()]
        return max(((c.width, c.height) for c in cameras), key=lambda size: size[0] * size[1])

    def mean_pixels(self, levels: int) -> list[float]:
        """Return the mean number of pixels of a photo halved 0, 1, .. `levels` times."""
        sizes = [
            [math.prod(self._at(view, level)[1].pixels.shape[:2]) for view in self.views] for level in range(levels + 1)
        ]
        return [float(np.mean(s)) for s in sizes]

    def take(self, view: int, level: int, then: Which | None = None) -> Photo:
        """Return a view's photo, halved `level` times as far as it goes, on the device; `then` is asked for next."""
        key, photo = self._at(view, level)
        if self.on_device:
            return photo
        pixels = self._coming.pop(key, None)
        if pixels is None:
            pixels = self._send(photo.pixels)
        if self._stream:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self._stream)
            pixels.record_stream(now)
        self._coming = {}
        if then is not None:
            following, coming = self._at(*then)
            self._coming[following] = self._send(coming.pixels)
        return Photo(pixels, photo.camera)

    def camera(self, view: int, level: int) -> Camera:
        """Return the camera of a view's photo, halved `level` times."""
        return self._at(view, level)[1].camera

    def _at(self, view: int, level: int) -> tuple[Which, Photo]:
        sizes = self._pyramids[view]
        level = min(level, len(sizes) - 1)
        return (view, level), sizes[level]

    def _place(self, photo: Photo) -> Photo:
        camera = photo.camera.to(self.device)
        if self.on_device:
            return Photo(photo.pixels.to(self.device), camera)
        return Photo(self._locked.copy(photo.pixels) if self.device.type == "cuda" else photo.pixels, camera)

    def _send(self, pixels: Tensor) -> Tensor:
        """Begin to copy pixels to the device."""
        self.copied += 1
        if self._stream is None:
            return pixels.to(self.device, copy=True)
        with torch.cuda.stream(self._stream):
            return pixels.to(self.device, non_blocking=True)
