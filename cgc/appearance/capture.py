"""The seam between render and photo: how a picture of the splats becomes what the camera recorded.

As a rule a photo is one sharp pinhole picture; photo_capture.py has photos that were exposed each by itself, by cameras
that are a little off. Motion blur (several sub-frame cameras a photo, averaged in linear light) or rain (an additive
layer a photo) plug in here with their own parameters and losses; the trainer stays as it is. Export goes round it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from cgc.scene.types import Camera


@dataclass(frozen=True)
class Densification:
    """What one densification step does; see `TrainSettings` for the fields."""

    grow_grad2d: float
    prune_opacity: float
    grow: bool = True
    prune: bool = True


class CaptureModel(Protocol):
    """How photo number `view` (its index in the scene) came to be; H W are the size this step trains at."""

    def cameras(self, view: int, camera: Camera) -> Sequence[Camera]:
        """Return the cameras to render for the photo, all of one size; the poses may need gradients."""
        ...

    def predict(self, view: int, renders: Tensor) -> Tensor:
        """Turn the cameras' renders [C, H, W, 3] into the predicted photo [H, W, 3]."""
        ...

    def valid_pixels(self, view: int, height: int, width: int) -> Tensor | None:
        """Return which pixels count, [H, W] bool, or None for all."""
        ...

    def extra_loss(self, view: int, renders: Tensor, predicted: Tensor, photo: Tensor) -> Tensor | None:
        """Return a scalar to add to the photometric loss, or None."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimiser groups; checkpoints keep their values.

        `params`: a list of leaf tensors; `lr`, at the first step; `final`: its factor at the last one (1 if left out).
        """
        ...

    def densification(self, step: int, planned: Densification) -> Densification:
        """Return what the densification of this step should be."""
        ...


class IdentityCapture:
    """The photo is the render."""

    def cameras(self, view: int, camera: Camera) -> Sequence[Camera]:
        """Return the photo's own camera."""
        return [camera]

    def predict(self, view: int, renders: Tensor) -> Tensor:
        """Return the one render."""
        return renders[0]

    def valid_pixels(self, view: int, height: int, width: int) -> Tensor | None:
        """Let every pixel count."""
        return None

    def extra_loss(self, view: int, renders: Tensor, predicted: Tensor, photo: Tensor) -> Tensor | None:
        """Add nothing."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Learn nothing."""
        return []

    def densification(self, step: int, planned: Densification) -> Densification:
        """Keep the plan."""
        return planned
