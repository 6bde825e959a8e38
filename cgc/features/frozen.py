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

from cgc.features.losses import contrastive_loss, smoothness_loss
from cgc.features.samples import Batch
from cgc.progress import progress_bar
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

    neighbours [N, k] as `nearest_neighbours` gives them. Deterministic for a seed.
    """
    n = len(neighbours)
    generator = torch.Generator().manual_seed(settings.seed)
    features = torch.randn(n, settings.dim, generator=generator).mul_(0.1).requires_grad_()
    optimizer = torch.optim.Adam([features], lr=settings.lr, betas=(0.9, 0.99), eps=1e-15, fused=True)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / max(settings.steps, 1)))
    order: list[int] = []
    with progress_bar("features", settings.steps, quiet=quiet) as bar:
        for step in range(settings.steps):
            loss = features.new_zeros(())
            for _ in range(settings.views_per_step):
                if not order:
                    order = torch.randperm(len(batches), generator=generator).tolist()
                batch = batches[order.pop()]
                seen = batch.weights.matmul(features)  # [P, D]
                loss = loss + contrastive_loss(seen, batch.masks, len(batch.mask_ids), settings.reduction)
            loss = loss / settings.views_per_step
            if settings.spatial_weight > 0 and neighbours.shape[1] > 0:
                anchors = torch.randint(n, (min(settings.anchors, n),), generator=generator)
                loss = loss + settings.spatial_weight * smoothness_loss(features, anchors, neighbours[anchors])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            decay.step()
            if step % 10 == 9 or step + 1 == settings.steps:
                bar.advance(step % 10 + 1, loss=float(loss.detach()))
    return features.detach()


def smooth_features(features: Tensor, neighbours: Tensor, mass: Tensor) -> Tensor:
    """Average unit features over each Gaussian and its neighbours, weighted by visible mass; unit again, [N, D]."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    weight = mass + 1e-6
    averaged = unit * weight[:, None]
    for column in neighbours.T:  # k passes instead of one [N, k, D] block of memory
        averaged = averaged + unit[column] * weight[column, None]
    return torch.nn.functional.normalize(averaged, dim=-1)
