"""Features of the few Gaussians that a step sees: their gradient, their neighbours' pull, their Adam.

Notation: N Gaussians, S channels (a multiple of 8: a feature is filled up with zeros), R the Gaussians of one step, its
rows. A row is of one Gaussian: rows [R] says of which, and places [N] where a Gaussian's row is; an entry of places is
right only if the row there says so too, so neither is ever cleared, and nothing of a step costs by N. Adam counts the
steps of each Gaussian by itself, for a Gaussian that a step does not see stays as it is, its moments too. The two
moments of a Gaussian lie side by side, [N, 2, S]: a large N waits for memory.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import numpy as np
from numba import float32 as f

from cgc.features.contrast import spread_if_long
from cgc.kernels import kernel, spread
from cgc.rasterize.lanes import divide, fma, load, prefetch, splat, sqrt, store, total

BETAS = (0.9, 0.99)
EPSILON = 1e-15


@kernel
def _gather(worker, workers, features, gaussians, stride, out):
    """Copy the features of some Gaussians [U], one below the other."""
    for row in range(worker * gaussians.shape[0] // workers, (worker + 1) * gaussians.shape[0] // workers):
        of = gaussians[row] * stride
        for c in range(0, stride, 8):
            store(out, row * stride + c, load(features, of + c))


@kernel
def _find_rows(gaussians, rows, places, count, found):
    """Write the row of each Gaussian [U] to found, new ones from `count` on; return how many rows there are then."""
    for k in range(gaussians.shape[0]):
        gaussian = gaussians[k]
        place = places[gaussian]
        if place >= count or rows[place] != gaussian:
            place = places[gaussian] = count
            rows[count] = gaussian
            count += 1
        found[k] = place
    return count


@kernel
def _add_rows(worker, workers, found, stride, fresh, added, gradient):
    """Add the rows of `added` [U * S] to rows found [U] of the gradient; rows from `fresh` on hold nothing yet."""
    for k in range(worker * found.shape[0] // workers, (worker + 1) * found.shape[0] // workers):
        to = found[k] * stride
        for c in range(0, stride, 8):
            value = load(added, k * stride + c)
            if found[k] < fresh:
                value = value + load(gradient, to + c)
            store(gradient, to + c, value)


@kernel
def _length(features, at, stride):
    """The length of the feature at `at`; never 0."""
    square = splat(f(0.0))
    for c in range(at, at + stride, 8):
        square = fma(load(features, c), load(features, c), square)
    return max(np.sqrt(total(square)), f(1e-12))


@kernel
def _smooth(worker, workers, features, rows, anchors, neighbours, steps, stride, weight, gradient, losses):
    """Add weight times the gradient of sum_n 1 - cos(f, f_n) to the rows of the anchors [A]; losses [A] are the sums.

    The neighbours' features f_n are held, and those that no step has seen left out.
    """
    around, end = np.empty(stride, np.float32), (worker + 1) * anchors.shape[0] // workers
    for k in range(worker * anchors.shape[0] // workers, end):
        for neighbour in neighbours[rows[anchors[min(k + 1, end - 1)]]]:  # the next anchor's
            prefetch(steps, neighbour)
            for c in range(0, stride, 16):
                prefetch(features, neighbour * stride + c)
        gaussian, to = rows[anchors[k]], anchors[k] * stride
        around[:] = f(0.0)
        count = 0
        for neighbour in neighbours[gaussian]:
            if steps[neighbour] > 0:
                of = neighbour * stride
                scale = splat(f(1.0) / _length(features, of, stride))
                for c in range(0, stride, 8):
                    store(around, c, fma(load(features, of + c), scale, load(around, c)))
                count += 1
        at, along = gaussian * stride, splat(f(0.0))
        for c in range(0, stride, 8):
            along = fma(load(around, c), load(features, at + c), along)
        length = _length(features, at, stride)
        cosines = total(along) / length
        losses[k] = weight * (count - cosines)
        for c in range(0, stride, 8):
            across = load(around, c) - load(features, at + c) * splat(cosines / length)
            store(gradient, to + c, load(gradient, to + c) - across * splat(weight / length))


@kernel
def _adam(worker, workers, rows, gradient, stride, rate, corrections, features, moments, steps):
    """Take a step of Adam on the features of rows [R]; corrections [T + 1, 2] of the two moments for each step."""
    fade, keep = splat(f(1.0 - BETAS[0])), splat(f(BETAS[1]))
    gain, least = splat(f(1.0 - BETAS[1])), splat(f(EPSILON))
    for row in range(worker * rows.shape[0] // workers, (worker + 1) * rows.shape[0] // workers):
        gaussian = rows[row]
        steps[gaussian] += 1
        factor = splat(rate * corrections[steps[gaussian], 0])
        scale = splat(corrections[steps[gaussian], 1])
        for c in range(0, stride, 8):
            at, slope = 2 * gaussian * stride + c, load(gradient, row * stride + c)
            first, second = load(moments, at), load(moments, at + stride)
            first, second = fma(slope - first, fade, first), fma(slope * slope, gain, second * keep)
            store(moments, at, first)
            store(moments, at + stride, second)
            change, at = divide(first, fma(sqrt(second), scale, least)), gaussian * stride + c
            store(features, at, load(features, at) - factor * change)


class Rows:
    """Features [N, S] with their Adam, and the gradient of one step's rows. Memory: 12 S + 8 B a Gaussian."""

    def __init__(self, features: np.ndarray, most: int, steps: int) -> None:
        """Start from features [N, D]; a step has at most `most` rows, and there are at most `steps` steps."""
        n, channels = features.shape
        stride = -(-channels // 8) * 8
        self.features = np.zeros((n, stride), np.float32)
        """The features [N, S], the last S - D channels 0."""
        self.features[:, :channels] = features
        self._moments = np.zeros((n, 2, stride), np.float32)
        self._steps, self._places = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._rows, self._found = np.empty(most, np.int32), np.empty(most, np.int32)
        powers = np.array(BETAS) ** np.arange(steps + 1)[:, None]
        powers[0] = 0  # no Gaussian takes its step 0
        self._corrections = (1 / (1 - powers) ** (1, 0.5)).astype(np.float32)
        self.gradient = np.empty((most, stride), np.float32)
        """Gradient of the step's rows so far, the first `count` of them."""
        self.count = 0
        """How many rows the step has so far."""

    def gather(self, gaussians: np.ndarray, out: np.ndarray) -> None:
        """Copy the features of Gaussians [U] to the first U rows of out."""
        stride = out.shape[1]
        spread_if_long(len(gaussians) * stride, _gather, self.features.reshape(-1), gaussians, stride, out.reshape(-1))

    def add(self, gaussians: np.ndarray, gradient: np.ndarray) -> None:
        """Add the gradient [U, S] of some Gaussians [U], each named once, to that of the step."""
        before, n = self.count, len(gaussians)
        if before == 0:
            self._rows[:n] = gaussians
            self.count = n
            if gradient is not self.gradient:
                self.gradient[:n] = gradient[:n]
            return
        self._places[self._rows[:before]] = np.arange(before)
        found = self._found[:n]
        self.count = _find_rows(gaussians, self._rows, self._places, before, found)
        spread(_add_rows, found, gradient.shape[1], before, gradient.reshape(-1), self.gradient.reshape(-1))

    def smooth(self, draws: np.ndarray, neighbours: np.ndarray, weight: float) -> float:
        """Add the spatial term's gradient for one anchor a draw [A] in [0, 1); return weight times the loss.

        Each anchor is one of an equal share of the step's rows, so that none is drawn twice. neighbours [N, k]. See
        `losses.smoothness_loss`; here its gradient moves the anchors only, and unseen neighbours say nothing.
        """
        bounds = np.arange(len(draws) + 1) * self.count // len(draws)
        anchors = bounds[:-1] + (draws * np.diff(bounds)).astype(np.int64)
        losses, each = np.empty(len(anchors)), np.float32(weight / (len(anchors) * neighbours.shape[1]))
        arrays = (self.features.reshape(-1), self._rows, anchors, neighbours, self._steps)
        spread(_smooth, *arrays, self.gradient.shape[1], each, self.gradient.reshape(-1), losses)
        return float(losses.sum())

    def update(self, rate: float) -> None:
        """Move the features of the step's rows against their gradient, and begin the next step."""
        gradient, stride = self.gradient.reshape(-1), self.gradient.shape[1]
        state = (self.features.reshape(-1), self._moments.reshape(-1), self._steps)
        spread(_adam, self._rows[: self.count], gradient, stride, np.float32(rate), self._corrections, *state)
        self.count = 0
