"""What a training step costs, fitted to the steps that were measured.

    seconds = a + b P + c N        P pixels of the photo, N Gaussians

A *phase* is all steps of one photo size and one N; it counts with the mean of its newest seconds, those over five
medians cut to that, so that a pause counts little and what recurs (refining, checkpoints) does. The fit is least
squares of relative errors over phases, a, b, c >= 0, with a weak pull to a prior of which only the ratios matter;
the pull is stronger where phases fit badly, because other work slowed some of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from scipy.optimize import nnls

from cgc.kernels import thread_count

Amount = TypeVar("Amount", float, np.ndarray)

NEWEST = 200  # steps of a phase that are kept
LONGEST = 5.0  # medians: a slower step counts as this slow
MISFIT = 0.04  # of a phase on a machine that does nothing else, relative
NOISE = 0.1  # of a step
TRUST = 0.75  # the prior is good to this, relative


@dataclass(frozen=True)
class Coefficients:
    """Seconds of a step, however small (a); of a pixel (b); of a Gaussian (c)."""

    step: float
    pixel: float
    gaussian: float

    def seconds(self, pixels: Amount, gaussians: Amount) -> Amount:
        """Return what a step on a photo of `pixels` with `gaussians` takes."""
        return self.step + self.pixel * pixels + self.gaussian * gaussians


PRIOR_THREADS = 2
PRIOR = Coefficients(step=11e-3, pixel=22e-3 / 120_000, gaussian=31e-3 / 50_000)
"""Measured with that many threads: rendering, the loss, going backward and Adam together."""


def prior(threads: int) -> Coefficients:
    """Return what is expected before anything is measured; all but the fixed part is spread over threads."""
    share = PRIOR_THREADS / threads
    return Coefficients(PRIOR.step, share * PRIOR.pixel, share * PRIOR.gaussian)


@dataclass
class _Phase:
    """Steps of one size: the newest `seconds` of them, and how many there were."""

    pixels: float
    gaussians: int
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=NEWEST))
    count: int = 0

    def longest(self) -> float:
        return LONGEST * float(np.median(self.seconds))

    def mean(self) -> float:
        return float(np.minimum(self.seconds, self.longest()).mean())


class StepCosts:
    """The seconds of the steps so far, and the `coefficients` that explain them."""

    def __init__(self, expected: Coefficients | None = None) -> None:
        self._expected = expected or prior(thread_count())
        self._phases: dict[tuple[float, int], _Phase] = {}
        self.coefficients = self._expected

    def add(self, pixels: float, gaussians: int, seconds: float) -> float:
        """Note that a step took `seconds`; return as many of them as count."""
        phase = self._phases.setdefault((pixels, gaussians), _Phase(pixels, gaussians))
        phase.seconds.append(seconds)
        phase.count += 1
        return min(seconds, phase.longest())

    def fit(self) -> None:
        """Fit the coefficients to all that was added."""
        rows = self.rows()
        if not len(rows):
            return
        pixels, gaussians, seconds, count = rows.T
        seconds = np.maximum(seconds, 1e-9)
        weight = count / (count + (NOISE / MISFIT) ** 2)
        expected = np.array([self._expected.step, self._expected.pixel, self._expected.gaussian])
        parts = np.stack([np.ones_like(pixels), pixels, gaussians], 1) * expected  # [phases, 3] seconds
        pace = (weight @ seconds) / (weight @ parts.sum(1))
        matrix, root, misfit = parts / seconds[:, None], np.sqrt(weight), MISFIT
        for _ in range(2):
            pull = misfit / TRUST
            system = np.concatenate([matrix * root[:, None], np.eye(3) * (pull / pace)])
            factors, _ = nnls(system, np.concatenate([root, np.full(3, pull)]))
            misfit = max(MISFIT, float(np.sqrt(weight @ (matrix @ factors - 1) ** 2 / weight.sum())))
        self.coefficients = Coefficients(*(float(v) for v in factors * expected))

    def rows(self) -> np.ndarray:
        """Return the phases for a checkpoint, [phases, 4]: pixels, Gaussians, mean seconds, steps."""
        rows = [(p.pixels, p.gaussians, p.mean(), p.count) for p in self._phases.values()]
        return np.array(rows, np.float64).reshape(-1, 4)

    def restore(self, rows: np.ndarray) -> None:
        """Take over the phases of a checkpoint, and fit."""
        for pixels, gaussians, seconds, count in rows.tolist():
            kept = deque([seconds] * min(int(count), NEWEST), maxlen=NEWEST)
            self._phases[pixels, int(gaussians)] = _Phase(pixels, int(gaussians), kept, int(count))
        self.fit()
