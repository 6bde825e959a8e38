"""Learn a feature on every Gaussian with the geometry frozen: W F is linear in F, so a step is a sparse product.

The joint mode (features rasterised beside colour while appearance trains) will be a sibling of this file; both
end in features [N, D].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from cgc.features.contrast import Contrast
from cgc.features.rows import Rows
from cgc.features.samples import Batch
from cgc.progress import progress_bar
from cgc.rasterize.sparse import multiply
from cgc.settings import LiftSettings


def nearest_neighbours(points: Tensor, k: int) -> Tensor:
    """Return the k true nearest neighbours of each point, itself excluded, [N, min(k, N-1)] int64."""
    k = min(k, len(points) - 1)
    array = points.detach().cpu().numpy()
    _, found = KDTree(array).query(array, k + 1, workers=-1)
    found = np.asarray(found).reshape(len(array), k + 1)
    # among coincident points a point need not be its own first neighbour: move it there
    own = found == np.arange(len(array))[:, None]
    own[~own.any(1), -1] = True
    return torch.from_numpy(found[~own].reshape(len(array), k).astype(np.int64))


def learn_features(
    batches: Sequence[Batch], neighbours: Tensor, settings: LiftSettings, *, quiet: bool = False
) -> Tensor:
    """Return features [N, D] that minimise the contrastive loss over `batches` and vary smoothly in space.

    neighbours [N, k] as `nearest_neighbours` gives them. Deterministic for a seed; a Gaussian in no batch keeps the
    small random feature it starts with. A step costs by the pixels and Gaussians of its batches only.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    start = torch.randn(len(neighbours), settings.dim, generator=generator).mul_(0.1)
    learner = Learner(batches, neighbours, start, settings)
    order: list[int] = []
    with progress_bar("features", settings.steps, quiet=quiet) as bar:
        for step in range(settings.steps):
            views = []
            for _ in range(settings.views_per_step):
                order = order or torch.randperm(len(batches), generator=generator).tolist()
                views.append(batches[order.pop()])
            draws = torch.rand(settings.anchors, generator=generator).numpy()
            loss = learner.step(views, draws, settings.lr * 0.1 ** (step / settings.steps))
            if step % 10 == 9 or step + 1 == settings.steps:
                bar.advance(step % 10 + 1, loss=loss)
    return learner.features


class Learner:
    """Features that are being learned, and the buffers of a step."""

    def __init__(self, batches: Sequence[Batch], neighbours: Tensor, start: Tensor, settings: LiftSettings) -> None:
        """Start from features `start` [N, D], to learn from any of `batches`."""
        self._settings, self._neighbours = settings, neighbours.numpy()
        most = max(len(batch.gaussians) for batch in batches)
        self._rows = Rows(start.numpy(), min(len(start), most * settings.views_per_step), settings.steps)
        stride = self._rows.gradient.shape[1]
        pixels, masks = max(len(batch.masks) for batch in batches), max(len(batch.mask_ids) for batch in batches)
        self._contrast = Contrast(pixels, masks, stride)
        self._some = np.empty((most, stride), np.float32)

    @property
    def features(self) -> Tensor:
        """What was learned so far, [N, D]."""
        return torch.from_numpy(self._rows.features[:, : self._settings.dim].copy())

    def step(self, views: Sequence[Batch], draws: np.ndarray, rate: float) -> float:
        """Learn from some batches, return the loss; draws in [0, 1) choose the spatial term's anchors."""
        loss = sum(self._look(batch, 1 / len(views)) for batch in views)
        weight, (_, k) = self._settings.spatial_weight, self._neighbours.shape
        if weight > 0 and k > 0 and self._rows.count > 0:
            loss += self._rows.smooth(draws[: self._rows.count], self._neighbours, weight)
        self._rows.update(rate)
        return loss

    def _look(self, batch: Batch, weight: float) -> float:
        """Add the gradient of one view's contrastive loss to the step's; return weight times the loss."""
        rows, contrast, gaussians = self._rows, self._contrast, batch.gaussians.numpy()
        rows.gather(gaussians, self._some)
        multiply(batch.weights.by_pixel, self._some, contrast.features)
        loss = contrast.step(batch.masks.numpy(), batch.counts, self._settings.reduction, weight)
        gradient = rows.gradient if rows.count == 0 else self._some  # the first view's needs no adding up
        multiply(batch.weights.by_gaussian, contrast.gradient, gradient)
        rows.add(gaussians, gradient)
        return loss


def smooth_features(features: Tensor, neighbours: Tensor, mass: Tensor) -> Tensor:
    """Average unit features over each Gaussian and its neighbours, weighted by visible mass; unit again, [N, D]."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    weight = mass + 1e-6
    averaged = unit * weight[:, None]
    for column in neighbours.T:  # k passes instead of one [N, k, D] block of memory
        averaged = averaged + unit[column] * weight[column, None]
    return torch.nn.functional.normalize(averaged, dim=-1)
