"""What may go wrong in a step, noted on the device as it happens and looked at now and then.

A GPU works far ahead of the process that tells it what to do, until that wants to know a number. So steps leave notes:
the first loss that was not finite, and whether anything was ever in a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cgc import parallel
from cgc.errors import InputError

NEVER = 1 << 62


class Watch:
    """Notes of a training with so many training views and steps; `anything_seen` is what `look` last knew."""

    def __init__(self, n_views: int, steps: int, device: torch.device) -> None:
        self._first_epoch, self._n_views = min(n_views, steps), n_views
        self.anything_seen = False
        self._seen = torch.zeros((), dtype=torch.bool, device=device)
        self._bad_step = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._bad_loss = torch.zeros((), device=device)

    def note(self, step: int, loss: Tensor, radii: Tensor) -> None:
        """Note a step's loss, a scalar, and the radii [C, N, 2] of its render; nothing is waited for."""
        bad = ~loss.isfinite() & (self._bad_step == NEVER)
        self._bad_loss = torch.where(bad, loss, self._bad_loss)
        self._bad_step = torch.where(bad, step, self._bad_step)
        if not self.anything_seen:
            self._seen = self._seen | (radii > 0).any()

    def look(self, done: int) -> None:
        """Raise InputError for what went wrong in the first `done` steps, in any process: in all of them."""
        notes = parallel.collect([int(self._bad_step), float(self._bad_loss), bool(self._seen)])
        step, loss, _ = min(notes, key=lambda note: note[0])
        if step != NEVER:
            raise InputError(
                f"the loss became {loss} at step {step}; lower the learning rates, and check that the "
                "camera model and the points are finite"
            )
        self.anything_seen = self.anything_seen or any(seen for *_, seen in notes)
        if not self.anything_seen and done >= self._first_epoch:
            raise InputError(
                f"no Gaussian is visible from any of the {self._n_views} training views: the "
                "cameras look away from the points; make the model again, or check the poses"
            )
