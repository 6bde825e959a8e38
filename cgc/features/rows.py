"""Features of the few Gaussians that a step sees: their gradient, their neighbours' pull, their Adam.

Notation: N Gaussians, S channels (a multiple of 8: a feature is filled up with zeros), V views of a step, U Gaussians
that a view shows, R those that any of them shows: the step's rows, in rising order. sources [R, V] says which of a
view's U a row is, or -1. Nothing in a step costs by N. Adam counts the steps of each Gaussian by itself, for a Gaussian
that a step does not see stays as it is, its moments too. The two moments of a Gaussian lie side by side, [N, 2, S]: a
large N waits for memory.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import float32 as f

from cgc.kernels import kernel, spread
from cgc.rasterize.blend import clear
from cgc.rasterize.lanes import divide, fma, load, prefetch, splat, sqrt, store, total

BETAS = (0.9, 0.99)
EPSILON = 1e-15
END = 2**31 - 1
LONG = 500_000  # ns: waking threads and waiting for them takes about half as long


def _spread_if_long(nanoseconds: float, work: Callable[..., Any], *arguments: Any) -> None:
    """Spread a kernel over the cores if it takes one core about so long that this pays; the bits are the same."""
    if nanoseconds < LONG:
        work(0, 1, *arguments)
    else:
        spread(work, *arguments)


@kernel
def _merge(gaussians, rows, sources):
    """Merge the Gaussians of each view [V, U + 1], rising up to an END; return how many rows there are."""
    views, row = sources.shape[1], 0
    at = np.zeros(views, np.int32)
    while True:
        least = gaussians[0, at[0]]
        for view in range(1, views):
            least = min(least, gaussians[view, at[view]])
        if least == END:
            return row
        rows[row] = least
        for view in range(views):
            meant = gaussians[view, at[view]] == least  # half of these are: no branch would foresee which
            sources[row, view] = at[view] if meant else -1
            at[view] += meant
        row += 1


@kernel
def _length(features, at, stride):
    """The length of the feature at `at`; never 0."""
    square = splat(f(0.0))
    for c in range(at, at + stride, 8):
        square = fma(load(features, c), load(features, c), square)
    return max(np.sqrt(total(square)), f(1e-12))


@kernel
def _smooth(
    worker, workers, features, rows, sources, anchors, neighbours, steps, most, stride, weight, gradients, losses
):
    """Add weight times the gradient of sum_n 1 - cos(f, f_n) to that of the anchors [A]; losses [A] are the sums.

    The neighbours' features f_n are held, and those that no step has seen left out.
    """
    around = np.empty(stride, np.float32)
    end = (worker + 1) * anchors.shape[0] // workers
    for k in range(worker * anchors.shape[0] // workers, end):
        for neighbour in neighbours[rows[anchors[min(k + 1, end - 1)]]]:  # the next anchor's
            prefetch(steps, neighbour)
            for c in range(0, stride, 16):
                prefetch(features, neighbour * stride + c)
        clear(around, 0, stride)
        count = 0
        for neighbour in neighbours[rows[anchors[k]]]:
            if steps[neighbour] > 0:
                of = neighbour * stride
                scale = splat(f(1.0) / _length(features, of, stride))
                for c in range(0, stride, 8):
                    store(around, c, fma(load(features, of + c), scale, load(around, c)))
                count += 1
        at, along = rows[anchors[k]] * stride, splat(f(0.0))
        for c in range(0, stride, 8):
            along = fma(load(around, c), load(features, at + c), along)
        length = _length(features, at, stride)
        cosines = total(along) / length
        losses[k] = weight * (count - cosines)
        view = 0
        while sources[anchors[k], view] < 0:
            view += 1
        to = (view * most + sources[anchors[k], view]) * stride
        for c in range(0, stride, 8):
            across = load(around, c) - load(features, at + c) * splat(cosines / length)
            store(gradients, to + c, load(gradients, to + c) - across * splat(weight / length))


@kernel
def _adam(worker, workers, rows, sources, gradients, most, stride, rate, corrections, features, moments, steps):
    """Take a step of Adam on the features of rows [R]; corrections [T + 1, 2] of the two moments for each step."""
    fade = splat(f(1.0 - BETAS[0]))
    keep, gain = splat(f(BETAS[1])), splat(f(1.0 - BETAS[1]))
    for row in range(worker * rows.shape[0] // workers, (worker + 1) * rows.shape[0] // workers):
        gaussian = rows[row]
        steps[gaussian] += 1
        factor = splat(rate * corrections[steps[gaussian], 0])
        scale = splat(corrections[steps[gaussian], 1])
        for c in range(0, stride, 8):
            slope = splat(f(0.0))
            for view in range(sources.shape[1]):
                if sources[row, view] >= 0:
                    slope = slope + load(gradients, (view * most + sources[row, view]) * stride + c)
            at = 2 * gaussian * stride + c
            first = fma(slope - load(moments, at), fade, load(moments, at))
            second = fma(slope * slope, gain, load(moments, at + stride) * keep)
            store(moments, at, first)
            store(moments, at + stride, second)
            change = divide(first, fma(sqrt(second), scale, splat(f(EPSILON))))
            at = gaussian * stride + c
            store(features, at, load(features, at) - factor * change)


class LearnedRows:
    """Features with their Adam, and the rows of one step. Memory: 12 S + 4 B a Gaussian, 4 V (S + 2) B one of U."""

    def __init__(self, features: np.ndarray, most: int, views: int, steps: int) -> None:
        """Start from features [N, D]; a step has up to V views of up to `most` Gaussians, and there are `steps`."""
        n, channels = features.shape
        stride = -(-channels // 8) * 8
        self.features = np.zeros((n, stride), np.float32)
        """The features [N, S], the last S - D channels 0."""
        self.features[:, :channels] = features
        self.gradients = np.empty((views, most, stride), np.float32)
        """Where a step's gradients belong, one of each view for the Gaussians [U] that it shows."""
        self._moments, self._steps = np.zeros((n, 2, stride), np.float32), np.zeros(n, np.int32)
        powers = np.array(BETAS) ** np.arange(steps + 1)[:, None]
        powers[0] = 0  # no Gaussian takes its step 0
        self._corrections = (1 / (1 - powers) ** (1, 0.5)).astype(np.float32)
        self._gaussians = np.empty((views, most + 1), np.int32)
        self._found = np.empty(min(n, views * most), np.int32), np.empty((min(n, views * most), views), np.int32)
        self._rows, self._sources = (array[:0] for array in self._found)

    def begin(self, gaussians: Sequence[np.ndarray]) -> None:
        """Begin a step with the Gaussians [U] int32 of each of up to V views, in rising order."""
        for k, some in enumerate(gaussians):
            self._gaussians[k, : len(some)] = some
            self._gaussians[k, len(some)] = END
        rows, views = self._found[0], len(gaussians)
        sources = self._found[1].reshape(-1)[: len(rows) * views].reshape(-1, views)
        count = _merge(self._gaussians, rows, sources)
        self._rows, self._sources = rows[:count], sources[:count]

    def smooth(self, draws: np.ndarray, neighbours: np.ndarray, weight: float) -> float:
        """Add the spatial term's gradient for one anchor a draw [A] in [0, 1); return weight times the loss.

        Each anchor is one of an equal share of the step's rows, so that none is drawn twice. neighbours [N, k]. See
        `losses.smoothness_loss`; here its gradient moves the anchors only, and unseen neighbours say nothing.
        """
        draws = draws[: len(self._rows)]
        if draws.size * neighbours.shape[1] == 0:
            return 0.0
        bounds = np.arange(len(draws) + 1) * len(self._rows) // len(draws)
        anchors = bounds[:-1] + (draws * np.diff(bounds)).astype(np.int64)
        _, most, stride = self.gradients.shape
        losses, each = np.empty(len(anchors)), np.float32(weight / (len(anchors) * neighbours.shape[1]))
        arrays = (self.features.reshape(-1), self._rows, self._sources, anchors, neighbours, self._steps)
        nanoseconds = 2.0 * len(anchors) * neighbours.shape[1] * stride
        _spread_if_long(nanoseconds, _smooth, *arrays, most, stride, each, self.gradients.reshape(-1), losses)
        return float(losses.sum())

    def update(self, rate: float) -> None:
        """Move the features of the step's rows against the sum of its gradients."""
        _, most, stride = self.gradients.shape
        moved = (self._rows, self._sources, self.gradients.reshape(-1), most, stride)
        state = (self.features.reshape(-1), self._moments.reshape(-1), self._steps)
        nanoseconds = 1.5 * len(self._rows) * stride
        _spread_if_long(nanoseconds, _adam, *moved, np.float32(rate), self._corrections, *state)
