"""The seam for what Gaussians carry beside colour: values rendered in the same rasteriser call, and losses on them.

Features that are learned while appearance trains plug in here, as would fixed codes whose pictures move the geometry.
A companion keeps no state of its own that changes from step to step: what it does follows from the step, and what it
learns is carried by the Gaussians, so that checkpoints resume exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from cgc.scene.types import Camera
from cgc.splats.types import Splats

Carried = Mapping[str, Tensor]
"""What each of the present Gaussians carries, [N, ...] a name."""


class Companion(Protocol):
    """What is rendered beside colour, D channels, and what it adds to the loss; steps count from 0."""

    def identity(self) -> str:
        """Return a text that differs where the outcome would; a checkpoint of another one is refused."""
        ...

    def start(self, splats: Splats) -> dict[str, Tensor]:
        """Return what the first Gaussians carry, [N, ...] each. Clones and splits copy it, what is pruned drops it."""
        ...

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each thing carried; what is not named at step 0 never changes.

        What a step's loss does not depend on has the gradient 0 there: Adam goes on.
        """
        ...

    def betas(self) -> tuple[float, float]:
        """Return how much of its two moments Adam keeps from step to step."""
        ...

    def values(self, carried: Carried, step: int) -> Tensor | None:
        """Return what to render beside colour, [N, D], or None where this step's loss would not use it."""
        ...

    def image_loss(self, view: int, camera: Camera, values: Tensor, step: int) -> Tensor | None:
        """Return a scalar to add to the loss, or None; `values` [H, W, D] as rendered for photo `view` by `camera`.

        `camera` has the size that this step trains at; where nothing is, values are 0.
        """
        ...

    def splat_loss(self, splats: Splats, carried: Carried, step: int) -> Tensor | None:
        """Return a scalar of the Gaussians alone to add to the loss, or None; `splats` are raw, without higher SH."""
        ...


class NoCompanion:
    """Gaussians have nothing but their appearance."""

    def identity(self) -> str:
        """Return nothing."""
        return ""

    def start(self, splats: Splats) -> dict[str, Tensor]:
        """Carry nothing."""
        return {}

    def rates(self, step: int) -> dict[str, float]:
        """Learn nothing."""
        return {}

    def betas(self) -> tuple[float, float]:
        """Return Adam's usual ones."""
        return 0.9, 0.999

    def values(self, carried: Carried, step: int) -> Tensor | None:
        """Render colour alone."""
        return None

    def image_loss(self, view: int, camera: Camera, values: Tensor, step: int) -> Tensor | None:
        """Add nothing."""
        return None

    def splat_loss(self, splats: Splats, carried: Carried, step: int) -> Tensor | None:
        """Add nothing."""
        return None
