"""What happens at which step: all that follows from settings and step, so that a restart needs no state."""

from __future__ import annotations

import torch
from torch import Tensor

from cgc.appearance.densify import mix
from cgc.settings import TrainSettings


def sh_degree(settings: TrainSettings, step: int) -> int:
    """Return the degree in use at `step`: 0 at first, the highest after `sh_ramp` of the run."""
    ramp = settings.sh_ramp * settings.steps
    if step >= ramp:
        return settings.sh_degree
    return min(int((settings.sh_degree + 1) * step / ramp), settings.sh_degree)


def level(settings: TrainSettings, step: int) -> int:
    """Return how many times the photos of `step` are halved: `coarse_levels` at first, 0 after `coarse` of the run."""
    ramp = settings.coarse * settings.steps
    if step >= ramp:
        return 0
    return max(settings.coarse_levels - int(settings.coarse_levels * step / ramp), 0)


def decayed(first: float, factor: float, settings: TrainSettings, step: int) -> float:
    """Return a learning rate that goes exponentially from `first` to `first * factor` over the run."""
    return first * factor ** (step / max(settings.steps - 1, 1))


def refines(settings: TrainSettings, step: int) -> bool:
    """Return whether Gaussians are grown and pruned after `step`."""
    inside = settings.refine_start * settings.steps <= step < settings.refine_stop * settings.steps
    return inside and step > 0 and step % settings.refine_every == 0


def gaussian_limit(settings: TrainSettings, step: int, cap: int) -> int:
    """Return how many Gaussians a refinement at `step` may leave: the cap is opened evenly up to `refine_stop`.

    Growing at once to the cap spends it on the first gradients and makes most steps cost what the last ones do.
    """
    opened = step / max(settings.refine_stop * settings.steps, 1)
    return round(cap * min(opened + settings.refine_every / settings.steps, 1.0))


def counts_gradients(settings: TrainSettings, step: int) -> bool:
    """Return whether a later refinement wants the image-plane gradients of `step`."""
    return settings.strategy != "mcmc" and step < settings.refine_stop * settings.steps


def resets(settings: TrainSettings, step: int) -> bool:
    """Return whether opacities are reset after `step`."""
    inside = 0 < step < settings.refine_stop * settings.steps and settings.strategy != "mcmc"
    return inside and settings.reset_every > 0 and step % settings.reset_every == 0


def view_at(train_views: list[int], seed: int, step: int) -> int:
    """Return the view of `step`: every epoch is a random order of all training views."""
    epoch, place = divmod(step, len(train_views))
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return train_views[int(torch.randperm(len(train_views), generator=generator)[place])]


def background_at(settings: TrainSettings, step: int) -> Tensor:
    """Return the background colour of `step`, [3]."""
    if settings.background == "random":
        return torch.rand(3, generator=torch.Generator().manual_seed(mix(settings.seed + 1, step)))
    return torch.full((3,), 1.0 if settings.background == "white" else 0.0)
