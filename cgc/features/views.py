"""One view's part of a step: the gradient of its contrastive loss for the Gaussians that it shows, W^T dL/d(W F).

A view is the work of one thread, from end to end, and a step's views go to as many threads as there are: there is one
wait a step, and the bits do not depend on the number of threads.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgc.features.batches import Batch, Elsewhere, held
from cgc.features.contrast import contrast_gradient
from cgc.kernels import kernel, spread
from cgc.rasterize.lanes import load, store
from cgc.rasterize.sparse import multiply


@kernel
def _look(features, gaussians, by_pixel, by_gaussian, masks, counts, weight, summed, stride, rows, seen, units):
    """Write the gradient of features [N * S] for some Gaussians [U] to rows [U * S]; return weight times the loss."""
    for row in range(gaussians.shape[0]):
        of = gaussians[row] * stride
        for c in range(0, stride, 8):
            store(rows, row * stride + c, load(features, of + c))
    multiply(0, 1, by_pixel.indptr, by_pixel.ids, by_pixel.weights, rows, stride, seen)
    loss = contrast_gradient(seen, masks, counts, weight, summed, stride, units)
    multiply(0, 1, by_gaussian.indptr, by_gaussian.ids, by_gaussian.weights, seen, stride, rows)
    return loss


class Views:
    """The views of a step, with the buffers of each: 8 S B a pixel."""

    def __init__(self, batches: Sequence[Batch | Elsewhere], gradients: np.ndarray, summed: bool) -> None:
        """Make room for V of `batches` at a time, whose gradients go to [V, U, S]."""
        pixels = -(-max((len(batch.masks) for batch in held(batches)), default=0) // 8) * 8
        views, _, stride = gradients.shape
        self._gradients, self._summed = gradients, summed
        self._seen, self._units = np.zeros((2, views, pixels, stride), np.float32)

    def look(self, batches: Sequence[Batch | Elsewhere], features: np.ndarray) -> float:
        """Write each batch's gradient of features [N, S], for its Gaussians; return the mean of the losses.

        What is held elsewhere is left out: its gradient as it is, its loss 0.
        """
        losses = [0.0] * len(batches)

        def work(worker: int, workers: int) -> None:
            for k in range(worker, len(batches), workers):
                if isinstance(batch := batches[k], Batch):
                    losses[k] = self._look(k, batch, features, 1 / len(batches))

        if len(batches) == 1:
            work(0, 1)
        else:
            spread(work)
        return sum(losses)

    def _look(self, k: int, batch: Batch, features: np.ndarray, weight: float) -> float:
        matrices, masks = (batch.weights.by_pixel, batch.weights.by_gaussian), (batch.masks.numpy(), batch.counts)
        buffers = (array[k].reshape(-1) for array in (self._gradients, self._seen, self._units))
        facts = (weight, self._summed, features.shape[1])
        return _look(features.reshape(-1), batch.gaussians.numpy(), *matrices, *masks, *facts, *buffers)
