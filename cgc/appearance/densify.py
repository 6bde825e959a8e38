"""Adding and removing Gaussians: gsplat's DefaultStrategy with a hard limit, seeded splits and working resets.

The parameters carry gsplat's names (raw values: `scales` are logs, `opacities` logits):

    means [N, 3], quats [N, 4], scales [N, 3], opacities [N], sh_dc [N, 3], sh_rest [N, K - 1, 3]

Source: Kerbl et al. 2023 (arXiv 2308.04079), section 5.2; gsplat 1.5.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cgc.appearance.capture import Densification
from cgc.rasterize.base import Render

Params = dict[str, torch.nn.Parameter]
Optimizers = dict[str, torch.optim.Optimizer]

NEVER = 1 << 62
RESET_OPACITY = 2.0  # times prune_opacity: what a reset leaves, as in 3DGS


@cache
def _capped_strategy() -> type:
    """Make the strategy class; gsplat takes a second to import, so only a training does."""
    from gsplat.strategy import DefaultStrategy
    from gsplat.strategy.ops import remove

    class CappedStrategy(DefaultStrategy):
        """DefaultStrategy that grows at most `room` Gaussians, those with the largest gradient."""

        room: int = 0
        too_big: float = 0.0

        @torch.no_grad()
        def _grow_gs(self, params: Any, optimizers: Any, state: dict[str, Any], step: int) -> tuple[int, int]:
            threshold = self.grow_grad2d
            gradients = state["grad2d"] / state["count"].clamp_min(1)
            if self.room <= 0:
                return 0, 0
            if int((gradients > threshold).sum()) > self.room:
                self.grow_grad2d = float(gradients.topk(self.room + 1).values[-1])  # ties stay out
            grown = super()._grow_gs(params, optimizers, state, step)
            self.grow_grad2d = threshold
            return grown

        @torch.no_grad()
        def _prune_gs(self, params: Any, optimizers: Any, state: dict[str, Any], step: int) -> int:
            gone = params["opacities"].sigmoid() < self.prune_opa
            if self.too_big > 0:
                gone |= params["scales"].amax(1).exp() > self.too_big * state["scene_scale"]
            count = int(gone.sum())
            if count:
                remove(params=params, optimizers=optimizers, state=state, mask=gone)
            return count

    return CappedStrategy


class Densifier:
    """Counts gradients every step, and grows, prunes and resets on the steps the trainer names.

    `statistics` holds what must survive a restart: grad2d and count [N], None before the first step.
    """

    def __init__(self, *, extent: float, prune_scale: float, seed: int) -> None:
        self._strategy = _capped_strategy()(refine_start_iter=-1, refine_stop_iter=NEVER, reset_every=NEVER)
        self._strategy.too_big = prune_scale
        self._seed = seed
        self.statistics: dict[str, Any] = self._strategy.initialize_state(scene_scale=extent)

    def count(self, params: Params, render: Render, width: int, height: int) -> None:
        """Add the image-plane gradients of a step; `render.means2d` has kept its gradient."""
        info = {
            "means2d": render.means2d, "radii": render.radii, "gaussian_ids": None,
            "width": width, "height": height, "n_cameras": len(render.means2d),
        }  # fmt: skip
        self._strategy._update_state(params, self.statistics, info)

    def refine(self, params: Params, optimizers: Optimizers, step: int, plan: Densification, limit: int) -> None:
        """Grow to at most `limit`, prune and forget the gradients so far, in place.

        (seed, step) decides the splits' noise.
        """
        strategy, state = self._strategy, self.statistics
        strategy.grow_grad2d, strategy.prune_opa = plan.grow_grad2d, plan.prune_opacity
        strategy.room = limit - len(params["means"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self._seed, step))
            if plan.grow:
                strategy._grow_gs(params, optimizers, state, step)
            if plan.prune:
                strategy._prune_gs(params, optimizers, state, step)
        state["grad2d"].zero_()
        state["count"].zero_()

    def reset_opacities(self, params: Params, optimizers: Optimizers, prune_opacity: float) -> None:
        """Lower every opacity to just above the pruning threshold, in place (gsplat 1.5.3 never does)."""
        from gsplat.strategy.ops import reset_opa

        reset_opa(params, optimizers, self.statistics, value=RESET_OPACITY * prune_opacity)

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics that a checkpoint must hold."""
        return {k: v for k, v in self.statistics.items() if isinstance(v, Tensor)}


def mix(seed: int, number: int) -> int:
    """Derive a seed from a seed and a step (or epoch), so that restarts need no generator state."""
    return (seed * 1_000_003 + number * 7919 + 12345) % (1 << 62)
