"""Learning on a device: what `frozen.Learner` does, as tensor operations that the host queues and never waits for.

Notation: N Gaussians, D channels, V views of a step, U Gaussians that a view shows. Every table has a row N besides:
what counts for no Gaussian is written there, so that no list has to be made shorter, which would need its length. The
sizes of a step's lists are those of its batches, which the host knows. Each table is written by lists without repeats,
one after the other, so the order of no sum is left to chance, and a run repeats bit for bit.

What a step costs: 2 views of 8,192 pixels with 20 weights each that show 100,000 Gaussians, D = 16, N = 1 million.
Bytes: W F reads 64 + 8 an entry (24 MB in all), W^T g the same, the Gaussians' features, gradients, moments and counts
are read and written once or twice (1 KB a Gaussian: 200 MB), which Gaussians a step has is looked up among all N (17 B
each: 17 MB). FLOPs: 4 E D for the two products, 10 P M D for the masks (100 of them): 0.3 billion. At 3.3 TB/s and 60
TFLOP/s of an H100 that is 80 µs. What counts are the 200 operations of a step, which the host queues in 1 to 2 ms: 250
steps in half a second. Estimated, not measured. Memory: 276 B a Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cgc import parallel
from cgc.features.batches import Batch, Elsewhere
from cgc.features.device_batches import DeviceBatch
from cgc.features.device_contrast import contrast_on_device
from cgc.features.rows import BETAS, EPSILON
from cgc.settings import LiftSettings

LENGTH = 1e-12  # a feature is divided by its length, or by this where it is shorter


class DeviceLearner:
    """Features that are being learned on a device."""

    def __init__(self, neighbours: Tensor, start: Tensor, settings: LiftSettings) -> None:
        """Start from features `start` [N, D] on their device, where neighbours [N, k] int64 are too."""
        n, channels = start.shape
        self._settings, self._neighbours = settings, neighbours
        self._features = torch.cat([start, start.new_zeros(1, channels)])
        self._gradients, self._moments = torch.zeros_like(self._features), start.new_zeros(n + 1, 2, channels)
        self._steps = torch.zeros(n + 1, dtype=torch.int64, device=start.device)
        self._first = torch.full((n + 1,), -1, dtype=torch.int32, device=start.device)  # view of the step that shows it
        powers = np.array(BETAS) ** np.arange(settings.steps + 1)[:, None]
        powers[0] = 0  # no Gaussian takes its step 0
        corrections = (1 / (1 - powers) ** (1, 0.5)).astype(np.float32)
        self._corrections = torch.from_numpy(corrections).to(start.device)

    @property
    def features(self) -> Tensor:
        """What was learned so far, [N, D]."""
        return self._features[:-1].clone()

    @torch.no_grad()
    def step(self, batches: Sequence[Batch | Elsewhere], draws: Tensor, rate: Tensor) -> Tensor:
        """Learn from some batches, return the loss, of no dimension; draws [A] in [0, 1) choose the anchors.

        `rate` has no dimension. Of one process, nothing waits for the device.
        """
        looked = [self._look(batch, 1 / len(batches)) for batch in batches if isinstance(batch, DeviceBatch)]
        loss = sum((loss for *_, loss in looked), start=self._features.new_zeros(()))
        slopes = [(gaussians, slope) for gaussians, slope, _ in looked]
        if parallel.here()[1] > 1:
            slopes, loss = self._exchange(batches, slopes, loss)
        rows = self._begin(slopes)
        if self._settings.spatial_weight > 0 and draws.numel() * self._neighbours.shape[1]:
            loss = loss + self._smooth(draws)
        self._update(rows, rate)
        return loss

    def _look(self, batch: DeviceBatch, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch's Gaussians [U], the gradient [U, D] of their features, and weight times its loss."""
        own = batch.at_home()
        gaussians = own.gaussians.long()
        seen = own.by_pixel.times(self._features[gaussians])
        loss, slopes = contrast_on_device(seen, own.masks, own.sizes, weight, self._settings.reduction == "sum")
        return gaussians, own.by_gaussian.times(slopes), loss

    def _exchange(
        self, batches: Sequence[Batch | Elsewhere], slopes: list[tuple[Tensor, Tensor]], loss: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Give every process the gradients of each batch from who holds it, by way of the hosts; see frozen.py."""
        rank, device, channels = parallel.here()[0], self._features.device, self._features.shape[1]
        own = iter(slopes)
        pairs = [
            tuple(x.cpu() for x in next(own))
            if isinstance(batch, Batch)
            else (torch.empty(batch.shown, dtype=torch.int64), torch.empty(batch.shown, channels))
            for batch in batches
        ]
        holders = [rank if isinstance(batch, Batch) else batch.holder for batch in batches]
        parallel.broadcast(*((x, holder) for pair, holder in zip(pairs, holders) for x in pair))
        total = parallel.add_up(loss.double().cpu())
        return [(ids.to(device), some.to(device)) for ids, some in pairs], total.to(device)

    def _begin(self, slopes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Add up gradients by Gaussian; return the step's Gaussians, each once, and N where one is there again."""
        nobody, self._first[:] = len(self._first) - 1, -1
        for view, (gaussians, _) in reversed(list(enumerate(slopes))):
            self._first.index_fill_(0, gaussians, view)
        for gaussians, slope in slopes:
            self._gradients.index_add_(0, gaussians, slope)
        own = [torch.where(self._first[ids] == view, ids, nobody) for view, (ids, _) in enumerate(slopes)]
        return torch.cat(own) if own else self._first.new_empty(0, dtype=torch.int64)

    def _smooth(self, draws: Tensor) -> Tensor:
        """Add the spatial term's gradient for one anchor a draw, as `LearnedRows.smooth` does; return its loss."""
        ranks = (self._first[:-1] >= 0).cumsum(0)  # the k-th of the step's Gaussians is the first with rank k
        count = ranks[-1]
        n = count.clamp(max=len(draws))  # fewer Gaussians than draws: the last draws say nothing
        bounds = torch.arange(len(draws) + 1, device=draws.device) * count // n.clamp_min(1)
        valid = torch.arange(len(draws), device=draws.device) < n
        chosen = bounds[:-1] + (draws.double() * bounds.diff()).long()
        anchors = torch.where(valid, torch.searchsorted(ranks, chosen + 1), len(ranks))
        near = self._neighbours[anchors.clamp(max=len(ranks) - 1)]  # [A, k]
        features, around = self._features[anchors], self._features[near]
        known = (self._steps[near] > 0) & valid[:, None]
        lengths = features.norm(dim=1, keepdim=True).clamp_min(LENGTH)
        scales = known / around.norm(dim=2).clamp_min(LENGTH)
        pull = (around * scales[..., None]).sum(1)  # [A, D]
        cosines = (pull * features).sum(1, keepdim=True) / lengths
        weight = self._settings.spatial_weight / (n * near.shape[1]).clamp_min(1)
        slope = (features * (cosines / lengths) - pull) / lengths * weight
        self._gradients.index_add_(0, anchors, slope * valid[:, None])
        return weight * (known.sum() - cosines[:, 0] @ valid.to(cosines.dtype))

    def _update(self, rows: Tensor, rate: Tensor) -> None:
        """Take a step of Adam on some features; row N has no gradient, and stays where it is."""
        slope, steps, moments = self._gradients[rows], self._steps[rows] + 1, self._moments[rows]
        self._gradients.index_fill_(0, rows, 0.0)
        first = torch.lerp(moments[:, 0], slope, 1 - BETAS[0])
        second = BETAS[1] * moments[:, 1] + (1 - BETAS[1]) * slope * slope
        factors = self._corrections[steps.clamp(max=len(self._corrections) - 1)]
        change = first / (second.sqrt() * factors[:, 1:] + EPSILON)
        self._steps.index_copy_(0, rows, steps)
        self._moments.index_copy_(0, rows, torch.stack([first, second], 1))
        self._features.index_copy_(0, rows, self._features[rows] - rate * factors[:, :1] * change)
