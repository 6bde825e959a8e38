"""The contrastive loss and its gradient by hand, as a fixed list of tensor operations: nothing waits for the device.

Notation and equations are those of contrast.py; `losses.contrastive_loss` defines what this gives. Sums over the pixels
of a mask are products with onehot(masks) [P, M]: they cost 2 P M D operations (26 million for 8,192 pixels, 100 masks
and 16 channels), are summed in one order, and no mask that holds most pixels makes the others wait.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgc.features.contrast import EPSILON


def contrast_on_device(
    features: Tensor, masks: Tensor, sizes: Tensor, weight: float, summed: bool
) -> tuple[Tensor, Tensor]:
    """Return weight times the loss, a tensor of no dimension, and weight times its gradient [P, D].

    features [P, D] float32, masks [P] int64 in [0, M), sizes [M] the pixels of each mask; `summed` over a mask's pixels
    rather than their mean. Memory: 20 B for each of P x M.
    """
    own = torch.arange(len(sizes), device=masks.device) == masks[:, None]
    member = own.to(features.dtype)  # [P, M]
    lengths = features.norm(dim=1, keepdim=True).clamp_min(EPSILON)
    unit = features / lengths
    centroids = member.T @ unit / sizes[:, None]  # [M, D]
    distances = (unit - centroids[masks]).norm(dim=1, keepdim=True)
    spread = (member.T @ distances)[:, 0]
    temperatures = (10 * spread / (sizes * (sizes + 100).log())).clamp(0.1, 1.0)
    keys = centroids / temperatures[:, None]
    shares = torch.full_like(sizes, weight / len(sizes)) if summed else weight / len(sizes) / sizes
    each = shares[masks]
    logs = torch.log_softmax(unit @ keys.T, dim=1)  # [P, M]
    loss = -(each * logs.gather(1, masks[:, None])[:, 0]).sum()
    slopes = (logs.exp() - member) * each[:, None]
    pulls = slopes.T @ unit / (temperatures * sizes)[:, None]
    along = slopes @ keys + pulls[masks]  # [P, D], of the unit features
    radial = (along * unit).sum(1, keepdim=True) * (lengths > EPSILON)
    return loss, (along - radial * unit) / lengths
