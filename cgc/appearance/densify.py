"""Adding and removing Gaussians by gradients, with a hard limit and in any number of processes.

The parameters carry gsplat's names (raw values: `scales` are logs, `opacities` logits):

    means [N, 3], quats [N, 4], scales [N, 3], opacities [N], sh_dc [N, 3], sh_rest [N, K - 1, 3]

`Densifier` is gsplat's DefaultStrategy; tests hold it to that, bit for bit. Written anew because gsplat's has no limit,
draws its noise from the global generator, gives each process results of its own, and never resets opacities (1.5.3).
`Halver` chooses by magnitudes, and cuts what it has chosen in two.
Source: Kerbl et al. 2023 (arXiv 2308.04079), section 5.2; gsplat 1.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cgc.appearance.arrange import Optimizers, Params, arrange
from cgc.appearance.capture import Densification
from cgc.appearance.shards import Shards
from cgc.geometry import quat_to_rotation
from cgc.rasterize.base import Render
from cgc.splats.split import halves

RESET_OPACITY = 2.0  # times prune_opacity: what a reset leaves, as in 3DGS
SMALL = 0.01  # of the extent: shorter Gaussians are cloned, longer ones split
SHRINK = 1.6  # how much smaller halves are


class Densifier:
    """Counts gradients every step, and grows, prunes and resets on the steps the trainer names.

    `statistics` holds what must survive a restart: grad2d and count [n] of the own Gaussians, from the first step on.
    `absgrad` says whether renders shall give gradients by magnitude to count.
    """

    absgrad = False

    def __init__(self, shards: Shards, *, extent: float, prune_scale: float, seed: int) -> None:
        self.statistics: dict[str, Tensor] = {}
        self._shards, self._extent, self._too_big, self._seed = shards, extent, prune_scale, seed
        self.forget()

    # --- every step ---

    def count(self, render: Render, width: int, height: int, photos: int = 1) -> None:
        """Note the image-plane gradients of one of a step's `photos`, whose render has what `gradients_seen` takes."""
        for norms, seen in zip(*gradients_seen(render, width, height, photos)):
            self._noted.append((norms, seen))

    def note(self, rows: Tensor, norms: Tensor, seen: Tensor) -> None:
        """Note the same of some own rows [R] alone: lengths and 0 or 1, [R]."""
        n = len(self._shards.numbers)
        self._noted.append(tuple(norms.new_zeros(n).index_copy(0, rows, value) for value in (norms, seen)))

    def add_up(self) -> None:
        """Add to the statistics what a step has noted."""
        for norms, seen in self._noted:
            for name, added in (("grad2d", norms), ("count", seen.to(norms.dtype))):
                before = self.statistics.get(name)
                self.statistics[name] = added if before is None else before + added
        self.forget()

    def forget(self) -> None:
        """Drop what a step has noted."""
        self._noted: list[tuple[Tensor, ...]] = []

    def after_step(self, params: Params, step: int, rate: float) -> None:
        """Do nothing more."""

    def regularise(self, params: Params) -> None:
        """Add no gradients."""

    # --- now and then ---

    def refine(self, params: Params, optimizers: Optimizers, step: int, plan: Densification, limit: int) -> None:
        """Grow to at most `limit` in all processes, prune, and forget the gradients so far, in place.

        (seed, step) decides the splits' noise.
        """
        if plan.grow:
            with seeded(mix(self._seed, step), params["means"].device):
                self._grow(params, optimizers, plan.grow_grad2d, limit - self._shards.total)
        n = len(params["means"])
        self.statistics = {name: params["means"].new_zeros(n) for name in ("grad2d", "count")}
        if plan.prune:
            self._prune(params, optimizers, plan.prune_opacity)

    def _grow(self, params: Params, optimizers: Optimizers, threshold: float, room: int) -> None:
        """Make two of each Gaussian whose mean gradient is over the threshold, of at most `room`."""
        if room <= 0:
            return
        statistics = self.statistics
        gradients = self._shards.whole(statistics["grad2d"] / statistics["count"].clamp_min(1))  # [N]
        if int((gradients > threshold).sum()) > room:
            threshold = float(gradients.topk(room + 1).values[-1])  # ties stay out
        grown = gradients > threshold
        if grown.any():
            self._double(params, optimizers, grown)

    def _double(self, params: Params, optimizers: Optimizers, grown: Tensor) -> None:
        """Clone those of `grown` [N] that are small, and split those that are long."""
        shards = self._shards
        small = shards.whole(params["scales"].detach().exp().amax(1) <= SMALL * self._extent)
        cloned = (grown & small).nonzero()[:, 0]
        split = grown & ~small
        rest, twice = (~split).nonzero()[:, 0], split.nonzero()[:, 0].repeat(2)
        source = torch.cat([rest, cloned, twice])
        noise = torch.randn(2, len(twice) // 2, 3, device=source.device).reshape(-1, 3)
        numbers, rows = shards.follow(source)
        half = numbers - (len(source) - len(twice))  # which of the halves, below 0: none
        arrange(params, optimizers, rows, numbers >= len(rest), _halved(params, rows, half, noise))

    def _prune(self, params: Params, optimizers: Optimizers, prune_opacity: float) -> None:
        gone = params["opacities"].detach().sigmoid() < prune_opacity
        if self._too_big > 0:
            gone |= params["scales"].detach().amax(1).exp() > self._too_big * self._extent
        self._drop(params, optimizers, self._shards.whole(gone))

    def _drop(self, params: Params, optimizers: Optimizers, gone: Tensor) -> None:
        """Remove Gaussians `gone` [N]."""
        if gone.any():
            _, rows = self._shards.follow((~gone).nonzero()[:, 0])
            arrange(params, optimizers, rows, torch.zeros_like(rows, dtype=torch.bool), {})
            self.statistics = {name: value[rows] for name, value in self.statistics.items()}

    def keep_brightest(self, params: Params, optimizers: Optimizers, limit: int) -> None:
        """Remove the faintest Gaussians past `limit`, in place."""
        if self._shards.total > limit:
            opacities = self._shards.whole(params["opacities"].detach())
            gone = torch.ones_like(opacities, dtype=torch.bool)
            gone[opacities.topk(limit).indices] = False
            self._drop(params, optimizers, gone)

    def reset_opacities(self, params: Params, optimizers: Optimizers, prune_opacity: float) -> None:
        """Lower every opacity to just above the pruning threshold, in place; Adam forgets them."""
        lowered = params["opacities"].detach().clamp_max(_logit(RESET_OPACITY * prune_opacity))
        rows = torch.arange(len(lowered), device=lowered.device)
        only = {"opacities": params["opacities"]}
        arrange(only, optimizers, rows, torch.ones_like(lowered, dtype=torch.bool), {"opacities": lowered})
        params |= only

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics that a checkpoint must hold."""
        return dict(self.statistics)


class Halver(Densifier):
    """Cuts in two, along its longest axis, whatever has a large gradient by magnitudes: nothing is cloned.

    Sources: Ye et al. 2024 (AbsGS, arXiv 2404.10484) for what is chosen; Deng et al. 2025 (arXiv 2508.12313, long-axis
    split) for how it is cut, though where halves lie, how long and how opaque they are is `splats/split.py`'s.
    """

    absgrad = True

    def _double(self, params: Params, optimizers: Optimizers, grown: Tensor) -> None:
        """Put two halves in the place of each of `grown` [N]."""
        whole, cut = (~grown).nonzero()[:, 0], grown.nonzero()[:, 0]
        numbers, rows = self._shards.follow(torch.cat([whole, cut, cut]))
        fresh = numbers >= len(whole)
        first = (numbers < len(whole) + len(cut))[fresh]
        made = {name: params[name].detach()[rows] for name in ("means", "scales", "opacities")}
        parts = {name: value[fresh] for name, value in made.items()}
        reach, shorter, fainter = halves(parts["scales"], params["quats"].detach()[rows[fresh]], parts["opacities"])
        made["means"][fresh] = parts["means"] + torch.where(first[:, None], -reach, reach)
        made["scales"][fresh], made["opacities"][fresh] = shorter, fainter
        arrange(params, optimizers, rows, fresh, made)


def gradients_seen(render: Render, width: int, height: int, photos: int) -> tuple[Tensor, Tensor]:
    """Return how long image-plane gradients are, in half images, and which Gaussians are in the pictures, [C, N] each.

    Those by magnitudes where the render has them, else those that `render.means2d` has kept. A step's loss is the mean
    over its photos, and a photo's over its cameras: both are made up for.
    """
    kept = render.means2d.grad if render.absgrad is None else render.absgrad
    if kept is None and not render.means2d.shape[1]:  # gsplat makes no graph of a picture of no Gaussians
        kept = torch.zeros_like(render.means2d)
    assert kept is not None
    gradient = kept.clone()  # [C, N, 2]
    cameras = len(gradient)
    gradient[..., 0] *= width / 2.0 * cameras * photos
    gradient[..., 1] *= height / 2.0 * cameras * photos
    seen = (render.radii > 0).all(dim=-1)
    return torch.where(seen, gradient.norm(dim=-1), 0.0), seen


def _halved(params: Params, rows: Tensor, half: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Return means and log scales of copies of `rows` [n], of which half[i] >= 0 are halves with that row of noise."""
    means, scales = params["means"].detach()[rows], params["scales"].detach()[rows]
    which = (half >= 0).nonzero()[:, 0]
    lengths, turns = scales[which].exp(), quat_to_rotation(params["quats"].detach()[rows[which]])
    means[which] += torch.einsum("nij,nj,nj->ni", turns, lengths, noise[half[which]])
    scales[which] = (lengths / SHRINK).log()
    return {"means": means, "scales": scales}


def _logit(value: float) -> float:
    return float(torch.logit(torch.tensor(value)))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch's generators start from a seed inside the block, and leave them as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def mix(seed: int, number: int) -> int:
    """Derive a seed from a seed and a step (or epoch), so that restarts need no generator state."""
    return (seed * 1_000_003 + number * 7919 + 12345) % (1 << 62)
