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
        self.forget()

    def count(self, render: Render, width: int, height: int, photos: int = 1) -> None:
        """Note the image-plane gradients of one of a step's `photos`; `render.means2d` has kept its gradient."""
        cameras = len(render.means2d)
        gradient = render.means2d.grad.clone()  # [C, N, 2] # pyright: ignore[reportOptionalMemberAccess]
        gradient[..., 0] *= width / 2.0 * cameras * photos
        gradient[..., 1] *= height / 2.0 * cameras * photos
        seen = (render.radii > 0).all(dim=-1)  # [C, N]
        self._noted += list(zip(torch.where(seen, gradient.norm(dim=-1), 0.0), seen))

    def add_up(self) -> None:
        """Add to the statistics what a step has noted."""
        for norms, seen in self._noted:
            for name, added in (("grad2d", norms), ("count", seen.to(norms.dtype))):
                before = self.statistics[name]
                self.statistics[name] = added if before is None else before + added
        self.forget()

    def forget(self) -> None:
        """Drop what a step has noted."""
        self._noted: list[tuple[Tensor, Tensor]] = []

    def refine(self, params: Params, optimizers: Optimizers, step: int, plan: Densification, limit: int) -> None:
        """Grow to at most `limit`, prune and forget the gradients so far, in place.

        (seed, step) decides the splits' noise.
        """
        strategy, state = self._strategy, self.statistics
        strategy.grow_grad2d, strategy.prune_opa = plan.grow_grad2d, plan.prune_opacity
        strategy.room = limit - len(params["means"])
        device = params["means"].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(mix(self._seed, step))
            if plan.grow:
                strategy._grow_gs(params, optimizers, state, step)
            if plan.prune:
                strategy._prune_gs(params, optimizers, state, step)
        for name in ("grad2d", "count"):
            state[name] = torch.zeros_like(state[name])

    def keep_brightest(self, params: Params, optimizers: Optimizers, limit: int) -> None:
        """Remove the faintest Gaussians past `limit`, in place."""
        from gsplat.strategy.ops import remove

        if len(params["means"]) > limit:
            gone = torch.ones_like(params["opacities"], dtype=torch.bool)
            gone[params["opacities"].topk(limit).indices] = False
            remove(params, optimizers, self.statistics, gone)

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
