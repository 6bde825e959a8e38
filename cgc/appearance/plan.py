"""How long the rest of a training takes, and how many Gaussians a budget of seconds affords.

Only a training with a budget depends on measured time; without one, the plan is for the bar.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cgc.appearance import schedule
from cgc.appearance.cost import StepCosts
from cgc.progress import Clock, console, short_time
from cgc.settings import TrainSettings

FIT_EVERY = 10  # steps
RECENT, FEW = 100, 20  # steps whose pace is taken for that of the rest; so few of them count half
FASTEST = 2.0  # a refinement clones or splits each Gaussian once
USUAL = 1.9  # and at first hardly leaves any out
SPARED = 0.03  # of what is left of the budget
TOO_SHORT = 1.05  # of what is left of the budget: more than this is worth a word
FEWEST = 5000  # Gaussians that any budget affords
MOST, MOST_GROWN = 1_000_000, 8  # Gaussians that a budget affords: at most so many, and so many times max_gaussians


@dataclass(frozen=True)
class Refinement:
    """What was decided after `step`: the `cap` for the whole run, the `limit` for now; and the `gaussians` then."""

    step: int
    cap: int
    limit: int
    gaussians: int


class Plan:
    """The schedule of a training in seconds: `start`, then `tick` after every step; `limit`, `refined` in refining.

    `pixels` [levels]: mean size of a photo halved 0, 1, .. times. `clock` gives seconds since whenever, and `begun`
    is what it said when the training began.
    """

    def __init__(
        self,
        settings: TrainSettings,
        pixels: Sequence[float],
        gaussians: int,
        *,
        begun: float | None = None,
        clock: Clock = time.perf_counter,
        quiet: bool = False,
        ahead: int = 1,
    ) -> None:
        """Steps of a device that runs ahead of `clock` are timed `ahead` at a time."""
        steps = range(settings.steps)
        self._settings, self._clock, self._quiet, self._ahead_by = settings, clock, quiet, ahead
        self._begun = clock() if begun is None else begun
        self._before = 0.0  # seconds of the processes before this one
        self._pixels = np.array([pixels[schedule.level(settings, i)] for i in steps])  # [steps]
        self._refining = [i for i in steps if schedule.refines(settings, i)]
        self._costs = StepCosts()
        self._growth, self._pace = USUAL, 1.0
        self._warned = False
        self.refinements: list[Refinement] = []
        self.cap = settings.max_gaussians
        self.gaussians = gaussians
        self.start(0)

    def start(self, step: int) -> None:
        """Begin measuring; `step` is the first of this process, which also compiles, so that it tells nothing."""
        self._first, self._last = step, self._clock()
        self._waiting: list[int] = []  # steps that have ended since the clock was looked at
        self._drawn = np.full(len(self._pixels), float(self.gaussians))  # Gaussians of each step so far [steps]
        self._efforts = np.zeros(len(self._pixels))
        self._foresee(step)

    @property
    def seconds(self) -> float:
        """Seconds since the training began, those of stopped processes (up to their checkpoint) among them."""
        return self._before + self._clock() - self._begun

    def rehearsed(self, pixels: float, gaussians: int, seconds: float) -> None:
        """Note what a step took that was done to know it."""
        self._costs.add(pixels, gaussians, seconds)
        self._costs.fit()

    def tick(self, step: int) -> None:
        """Note that `step` has ended."""
        self._waiting.append(step)
        if (step + 1) % self._ahead_by == 0:
            now = self._clock()
            seconds, self._last = (now - self._last) / len(self._waiting), now
            for i in self._waiting:
                if i > self._first:
                    self._efforts[i] = self._costs.add(float(self._pixels[i]), int(self._drawn[i]), seconds)
            self._waiting = []
        self._drawn[step + 1 :] = self.gaussians
        if (step + 1) % FIT_EVERY == 0:
            self._fit(step + 1)
            self._foresee(step + 1)

    def effort(self, step: int) -> float:
        """Return the seconds of a step: as measured (but long pauses), or as foreseen."""
        return float(self._efforts[step])

    def limit(self, step: int) -> int:
        """Return how many Gaussians the refinement after `step` may leave; with a budget, decide anew on the cap."""
        if self._settings.budget:
            self._fit(step)
            self.cap = self._affordable(step)
            self._warn_if_short(step)
        return schedule.gaussian_limit(self._settings, step, self.cap)

    def refined(self, step: int, limit: int, gaussians: int) -> None:
        """Note that the refinement after `step`, allowed `limit`, left `gaussians`."""
        growth = max(gaussians / self.gaussians, 1.0)
        self._growth = growth if gaussians < 0.95 * limit else max(growth, self._growth)
        self.gaussians = gaussians
        self.refinements.append(Refinement(step, self.cap, limit, gaussians))
        self._foresee(step + 1)

    def _fit(self, done: int) -> None:
        """Fit the costs to the steps up to `done`, and the pace of the rest to the newest: machines do not keep it."""
        self._costs.fit()
        newest = slice(max(self._first + 1, done - RECENT), done)
        expected = self._costs.coefficients.seconds(self._pixels[newest], self._drawn[newest])
        if len(expected):
            trust = len(expected) / (len(expected) + FEW)
            self._pace = float(self._efforts[newest].sum() / expected.sum()) ** trust

    def _foresee(self, step: int) -> None:
        """Estimate the effort of every step from `step` on."""
        decides = self._settings.budget and self._refining and step <= self._refining[-1]
        cap = self._affordable(step) if decides else self.cap
        self._efforts[step:] = self._ahead(step, cap, self._growth)

    def _ahead(self, step: int, cap: int, growth: float) -> np.ndarray:
        """Return the seconds of each step from `step` on if Gaussians grow up to `cap`, `growth`-fold at a time."""
        counts, edges = [float(self.gaussians)], [step]
        for at in self._refining[bisect_right(self._refining, step - 1) :]:
            grown = min(growth * counts[-1], schedule.gaussian_limit(self._settings, at, cap))
            counts.append(max(counts[-1], grown))
            edges.append(at + 1)
        gaussians = np.repeat(counts, np.diff([*edges, self._settings.steps]))
        return self._pace * self._costs.coefficients.seconds(self._pixels[step:], gaussians)

    def _affordable(self, step: int) -> int:
        """Return the largest cap with which the steps from `step` on fit what is left of the budget, if any does."""
        most = max(self._settings.max_gaussians, min(MOST_GROWN * self._settings.max_gaussians, MOST))
        left = self._settings.budget - self.seconds
        caps = range(self._fewest, max(most, self._fewest) + 1)
        return caps[max(bisect_right(caps, (1 - SPARED) * left, key=lambda cap: self._rest(step, cap)) - 1, 0)]

    @property
    def _fewest(self) -> int:
        return max(self.gaussians, min(FEWEST, self._settings.max_gaussians))

    def _rest(self, step: int, cap: int) -> float:
        """Return the seconds of the steps from `step` on, if Gaussians grow up to `cap` as fast as they can."""
        return float(self._ahead(step, cap, FASTEST).sum())

    def _warn_if_short(self, step: int) -> None:
        """Say once that the budget is too short."""
        budget, rest, spent = self._settings.budget, self._rest(step, self._fewest), self.seconds
        if self._warned or rest <= TOO_SHORT * (budget - spent):
            return
        self._warned = True
        if not self._quiet:
            console.print(
                f"note: the budget of {short_time(budget)} is too short for {self._settings.steps:,} steps with "
                f"{self.gaussians:,} Gaussians: training will take about {short_time(spent + rest)}; fewer steps or "
                "smaller photos take less"
            )

    # --- checkpoints ---

    def tensors(self) -> dict[str, Tensor]:
        """Return the decisions [refinements, 4] and the measured phases [phases, 4] for a checkpoint."""
        decisions = [(r.step, r.cap, r.limit, r.gaussians) for r in self.refinements]
        return {
            "refinements": torch.tensor(decisions, dtype=torch.int64).reshape(-1, 4),
            "costs": torch.from_numpy(self._costs.rows()),
        }

    def restore(self, tensors: dict[str, Tensor], seconds: float) -> None:
        """Take over what a checkpoint holds: the decisions, the phases and the `seconds` spent until then."""
        self._before = seconds
        self._costs.restore(tensors["costs"].numpy())
        for step, cap, limit, gaussians in tensors["refinements"].tolist():
            self.cap = cap if self._settings.budget else self._settings.max_gaussians  # which may be lower now
            self.refined(step, limit, gaussians)
