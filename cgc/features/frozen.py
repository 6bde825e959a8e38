"""Learn a feature on every Gaussian with the geometry frozen: W F is linear in F, so a step is a sparse product.

The joint mode (joint.py: features rasterised beside colour while appearance trains) is a sibling of this file; both
end in features [N, D].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numba import float32 as f
from torch import Tensor

from cgc import kernels, parallel
from cgc.device_neighbours import nearest_others_on_device
from cgc.errors import InputError
from cgc.features.batches import Batch, Elsewhere
from cgc.features.device_batches import DeviceBatch
from cgc.features.device_learner import DeviceLearner
from cgc.features.rows import LearnedRows
from cgc.features.views import Views
from cgc.kernels import kernel, spread
from cgc.neighbours import build_tree, nearest_others
from cgc.progress import progress_bar
from cgc.rasterize.checks import check_finite
from cgc.settings import LiftSettings

LOOK = 50
"""Steps on a device after which the bar's loss is fetched, for which the host waits."""


def nearest_neighbours(points: Tensor, k: int) -> Tensor:
    """Return the k true nearest neighbours of each point, itself excluded, [N, min(k, N-1)] int64, nearest first.

    They are found where the points are.
    """
    if not kernels.serve(points.device):
        check_finite("positions", points)
        return nearest_others_on_device(points.detach(), k)[0]
    array = points.detach().numpy()
    if not np.isfinite(array).all():
        raise InputError("positions hold NaN or infinity where finite numbers were expected; export the splats again")
    return torch.from_numpy(nearest_others(build_tree(array), k)[0])


def learn_features(
    batches: Sequence[Batch | Elsewhere], neighbours: Tensor, settings: LiftSettings, *, quiet: bool = False
) -> Tensor:
    """Return features [N, D] that minimise the contrastive loss over `batches` and vary smoothly in space.

    neighbours [N, k] as `nearest_neighbours` gives them. Deterministic for a seed; a Gaussian in no batch keeps the
    small random feature it starts with. A step costs by the pixels and Gaussians of its batches only. Several processes
    each hold all features and learn alike, and find the gradients of the batches that they hold. From `DeviceBatch`es
    features are learned where these are (`DeviceLearner`), from the same start and draws.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    start = torch.randn(len(neighbours), settings.dim, generator=generator).mul_(0.1)
    plan = _draw_steps(len(batches), settings, generator)
    if any(isinstance(batch, DeviceBatch) or (isinstance(batch, Elsewhere) and batch.on_device) for batch in batches):
        return _learn_on_device(batches, neighbours, start, list(plan), settings, quiet)
    learner = Learner(batches, neighbours, start, settings)
    with progress_bar("features", settings.steps, quiet=quiet) as bar:
        for step, (views, draws) in enumerate(plan):
            loss = learner.step([batches[k] for k in views], draws.numpy(), _rate(step, settings))
            if step % 10 == 9 or step + 1 == settings.steps:
                bar.advance(step % 10 + 1, loss=loss)
    return learner.features


def _draw_steps(count: int, settings: LiftSettings, generator: torch.Generator) -> Iterator[tuple[list[int], Tensor]]:
    """Yield which of `count` batches each step learns from, each as often as the others, and the anchors' draws [A]."""
    order: list[int] = []
    for _ in range(settings.steps):
        views = []
        for _ in range(settings.views_per_step):
            order = order or torch.randperm(count, generator=generator).tolist()
            views.append(order.pop())
        yield views, torch.rand(settings.anchors, generator=generator)


def _rate(step: int, settings: LiftSettings) -> float:
    return settings.lr * 0.1 ** (step / settings.steps)


def _learn_on_device(
    batches: Sequence[Batch | Elsewhere],
    neighbours: Tensor,
    start: Tensor,
    plan: list[tuple[list[int], Tensor]],
    settings: LiftSettings,
    quiet: bool,
) -> Tensor:
    """Learn where the batches are; what is drawn goes there in one piece, and only the bar's loss comes back."""
    device = next((batch.home for batch in batches if isinstance(batch, DeviceBatch)), neighbours.device)
    learner = DeviceLearner(neighbours.to(device), start.to(device), settings)
    draws = torch.stack([some for _, some in plan]).to(device) if plan else start
    rates = torch.tensor([_rate(step, settings) for step in range(settings.steps)]).to(device)
    with progress_bar("features", settings.steps, quiet=quiet) as bar:
        for step, (views, _) in enumerate(plan):
            loss = learner.step([batches[k] for k in views], draws[step], rates[step])
            if not quiet and (step % LOOK == LOOK - 1 or step + 1 == settings.steps):
                bar.advance(step % LOOK + 1, loss=float(loss))
    return learner.features


class Learner:
    """Features that are being learned, and the buffers of a step."""

    def __init__(
        self, batches: Sequence[Batch | Elsewhere], neighbours: Tensor, start: Tensor, settings: LiftSettings
    ) -> None:
        """Start from features `start` [N, D], to learn from any of `batches`, `settings.views_per_step` at a time."""
        self._settings, self._neighbours = settings, neighbours.numpy()
        most = max(len(batch.gaussians) if isinstance(batch, Batch) else batch.shown for batch in batches)
        self._rows = LearnedRows(start.numpy(), most, settings.views_per_step, settings.steps)
        self._views = Views(batches, self._rows.gradients, settings.reduction == "sum")

    @property
    def features(self) -> Tensor:
        """What was learned so far, [N, D]."""
        return torch.from_numpy(self._rows.features[:, : self._settings.dim].copy())

    def step(self, batches: Sequence[Batch | Elsewhere], draws: np.ndarray, rate: float) -> float:
        """Learn from some batches, return the loss; draws in [0, 1) choose the spatial term's anchors."""
        loss = self._views.look(batches, self._rows.features)
        gaussians, loss = _exchange(batches, self._rows.gradients, loss)
        self._rows.begin(gaussians)
        if self._settings.spatial_weight > 0:
            loss += self._rows.smooth(draws, self._neighbours, self._settings.spatial_weight)
        self._rows.update(rate)
        return loss


def _exchange(
    batches: Sequence[Batch | Elsewhere], gradients: np.ndarray, loss: float
) -> tuple[list[np.ndarray], float]:
    """Give every process the gradient [U, S] of each batch from who holds it; return whose they are, and the loss.

    4 S + 4 bytes a Gaussian that a batch shows: fewer than all rows' where N is large, and summed in one order.
    """
    rank, size = parallel.here()
    if size == 1:
        return [batch.gaussians.numpy() for batch in batches if isinstance(batch, Batch)], loss
    ids = [b.gaussians if isinstance(b, Batch) else torch.empty(b.shown, dtype=torch.int32) for b in batches]
    holders = [rank if isinstance(b, Batch) else b.holder for b in batches]
    slopes = [torch.from_numpy(gradients[k, : len(some)]) for k, some in enumerate(ids)]
    parallel.broadcast(*zip(ids, holders), *zip(slopes, holders))
    total = parallel.add_up(torch.tensor(loss, dtype=torch.float64))
    return [some.numpy() for some in ids], float(total)


@kernel
def _average(worker, workers, features, neighbours, weights, averages):
    """Average unit features [N, D] of each Gaussian and its neighbours [N, k], with weights [N]; unit again."""
    n, dim = features.shape
    for row in range(worker * n // workers, (worker + 1) * n // workers):
        for c in range(dim):
            averages[row, c] = weights[row] * features[row, c]
        for neighbour in neighbours[row]:
            for c in range(dim):
                averages[row, c] += weights[neighbour] * features[neighbour, c]
        square = f(0.0)
        for c in range(dim):
            square += averages[row, c] * averages[row, c]
        scale = f(1.0) / max(np.sqrt(square), f(1e-12))
        for c in range(dim):
            averages[row, c] *= scale


def smooth_features(features: Tensor, neighbours: Tensor, mass: Tensor) -> Tensor:
    """Average unit features over each Gaussian and its neighbours, weighted by visible mass; unit again, [N, D]."""
    if not kernels.serve(features.device):
        return smooth_on_device(features, neighbours, mass)
    unit = torch.nn.functional.normalize(features, dim=-1).contiguous()
    averages = torch.empty_like(unit)
    weights = (mass + 1e-6).to(unit.dtype)
    spread(_average, *(t.numpy() for t in (unit, neighbours, weights, averages)))
    return averages


@torch.no_grad()
def smooth_on_device(features: Tensor, neighbours: Tensor, mass: Tensor) -> Tensor:
    """Do as `smooth_features` with tensor operations, a neighbour at a time: 4 D B a Gaussian besides the result."""
    weighted = torch.nn.functional.normalize(features, dim=-1) * (mass + 1e-6)[:, None]
    averages = weighted.clone()
    for k in range(neighbours.shape[1]):
        averages += weighted[neighbours[:, k]]
    return torch.nn.functional.normalize(averages, dim=-1)
