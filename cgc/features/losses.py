"""What pulls features of one mask together and pushes those of different masks apart.

Notation: P sampled pixels of one view, M of its masks, D channels; f^ a normalised feature.
Source: Contrastive Gaussian Clustering (arXiv 2404.12784), equations 3 to 5.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, normalize


def contrastive_loss(
    features: Tensor, masks: Tensor, n_masks: int, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Return the contrastive clustering loss of one view.

        fbar_p = mean of f^ over mask p,   phi_p = sum |f^ - fbar_p| / (n_p ln(n_p + 100)), detached,
        L = - mean_p  reduce_{x in p}  log softmax_p(f^_x . fbar_q / clip(10 phi_q, 0.1, 1))

    features [P, D], any norm; masks [P] int64 in [0, n_masks), every mask present. `reduction` over a mask's
    pixels: "mean" does not depend on the resolution, "sum" is the release's.
    """
    unit = normalize(features, dim=-1)
    counts = torch.bincount(masks, minlength=n_masks).to(unit.dtype)
    centroids = unit.new_zeros(n_masks, unit.shape[1]).index_add(0, masks, unit) / counts[:, None]  # [M, D]
    with torch.no_grad():
        spread = unit.new_zeros(n_masks).index_add(0, masks, (unit - centroids[masks]).norm(dim=-1))
        temperature = (10 * spread / (counts * (counts + 100).log())).clamp(0.1, 1.0)
    logits = unit @ (centroids / temperature[:, None]).T  # [P, M]
    pixel_loss = cross_entropy(logits, masks, reduction="none")
    if reduction == "mean":
        pixel_loss = pixel_loss / counts[masks]
    return pixel_loss.sum() / n_masks


def smoothness_loss(features: Tensor, anchors: Tensor, neighbours: Tensor) -> Tensor:
    """Return the mean of 1 - cos between the features of anchors [A] and their true neighbours [A, k]."""
    # embedding, not indexing: its gradient adds up in one order, so a run can be repeated bit for bit
    unit = normalize(embedding(anchors, features), dim=-1)
    around = normalize(embedding(neighbours, features), dim=-1)  # [A, k, D]
    return 1.0 - (around * unit[:, None]).sum(-1).mean()
