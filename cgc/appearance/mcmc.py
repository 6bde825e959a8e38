"""Gaussians as samples of a Markov chain: dead ones move to where light is, the number grows evenly, places are shaken.

When n Gaussians are to stand where one of opacity o and standard deviation s stood, each gets

    o' = 1 - (1 - o)^(1/n)        s' = s o / sum_{k=1..n} (n choose k) (-1)^(k-1) o'^k / sqrt(k)

so that together they let as much light through at their centre, and take as much along any axis (the sum is the
integral of 1 - (1 - o' exp(-x^2 / 2))^n over that of exp(-x^2 / 2)). It is the paper's equation 9, whose double sum
over i and k is this one, as sum_{i=k+1..n} (i-1 choose k) = (n choose k+1).
Source: Kheradmand et al. 2024 (arXiv 2404.09591); gsplat 1.5 (MCMCStrategy), whose relocation is CUDA only. In contrast
to it, what is relocated takes no momentum along, and lengths are relative to the scene's extent.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from cgc.appearance.arrange import Optimizers, Params, arrange
from cgc.appearance.capture import Densification
from cgc.appearance.densify import Densifier, mix, seeded
from cgc.appearance.shards import Shards
from cgc.geometry import quat_to_rotation
from cgc.rasterize.base import Render
from cgc.settings import TrainSettings

MOST_COPIES = 51
STEEP, FAINT = 100.0, 0.005  # noise is for Gaussians fainter than this, and falls as steeply above
MOST_WEIGHTS = 1 << 24  # that torch.multinomial draws from


def relocated(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return opacities [M] and scales [M, 3] for each of `copies` [M] >= 1 Gaussians in place of one."""
    copies = copies.clamp(1, MOST_COPIES)
    o = opacities.double()
    new = -torch.expm1(torch.log1p(-o) / copies)
    k = torch.arange(1, MOST_COPIES + 1, device=o.device)
    ways = _binomials().to(o.device)[copies]  # [M, MOST_COPIES]
    total = (ways * new[:, None] ** k).sum(1)
    return new.to(opacities.dtype), (scales * (o / total)[:, None]).to(scales.dtype)


@cache
def _binomials() -> Tensor:
    """Return (n choose k) (-1)^(k-1) / sqrt(k) for n from 0 and k from 1, [MOST_COPIES + 1, MOST_COPIES]."""
    rows = [[math.comb(n, k) * (-1) ** (k - 1) / math.sqrt(k) for k in range(1, MOST_COPIES + 1)]
            for n in range(MOST_COPIES + 1)]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


class MarkovChain(Densifier):
    """Relocates, adds and shakes; it needs no gradients of the image plane."""

    def __init__(self, shards: Shards, settings: TrainSettings, *, extent: float) -> None:
        super().__init__(shards, extent=extent, prune_scale=0.0, seed=settings.seed)
        self._settings = settings

    def count(self, render: Render, width: int, height: int, photos: int = 1) -> None:
        """Count nothing."""

    def regularise(self, params: Params) -> None:
        """Add the gradients of the mean opacity, and of the mean length in extents, times their weights."""
        s, n = self._settings, max(self._shards.total, 1)
        lengths = params["scales"].exp().sum() / (3 * n * self._extent)
        (s.mcmc_opacity * params["opacities"].sigmoid().sum() / n + s.mcmc_scale * lengths).backward()

    @torch.no_grad()
    def after_step(self, params: Params, step: int, rate: float) -> None:
        """Shake the faint: means += rate * noise * Sigma N(0, 1), rate being that of the means in this step."""
        generator = torch.Generator(params["means"].device).manual_seed(mix(self._seed + 2, step))
        drawn = torch.randn(self._shards.total, 3, device=params["means"].device, generator=generator)
        faint = torch.sigmoid(-STEEP * (params["opacities"].sigmoid() - FAINT))
        noise = self._shards.own(drawn) * (self._settings.mcmc_noise * rate * faint)[:, None]
        turns, variances = quat_to_rotation(params["quats"]), (2 * params["scales"]).exp()
        local = torch.einsum("nij,ni->nj", turns, noise) * variances
        params["means"].add_(torch.einsum("nij,nj->ni", turns, local))

    def refine(self, params: Params, optimizers: Optimizers, step: int, plan: Densification, limit: int) -> None:
        """Move the dead to the living, then add a share of all, to at most `limit`; (seed, step) decides where."""
        with seeded(mix(self._seed, step), params["means"].device):
            if plan.prune:
                opacities = self._opacities(params)
                self._copy(params, optimizers, opacities, opacities <= plan.prune_opacity, 0)
            if plan.grow:
                total = self._shards.total
                wanted = min(limit, math.ceil((1 + self._settings.mcmc_growth) * total)) - total
                opacities = self._opacities(params)
                self._copy(params, optimizers, opacities, torch.zeros_like(opacities, dtype=torch.bool), wanted)

    def _opacities(self, params: Params) -> Tensor:
        return self._shards.whole(params["opacities"].detach().sigmoid())  # [N]

    def _copy(self, params: Params, optimizers: Optimizers, opacities: Tensor, dead: Tensor, more: int) -> None:
        """Put copies in the place of the `dead` [N], and `more` at the end; what is copied shares with its copies."""
        places = dead.nonzero()[:, 0]
        count = len(places) + max(more, 0)
        if not count or bool(dead.all()):
            return
        drawn = self._shards.agreed(_draw(torch.where(dead, 0.0, opacities), count))  # [M] numbers
        source = torch.arange(len(dead), device=dead.device)
        source[places] = drawn[: len(places)]
        source = torch.cat([source, drawn[len(places) :]])
        copies = 1 + torch.bincount(drawn, minlength=len(dead))  # [N]
        fresh = torch.cat([dead, dead.new_ones(max(more, 0))])
        if len(places):
            fresh |= copies[source] > 1
        numbers, rows = self._shards.follow(source)
        shared = copies[source[numbers]]  # [n]
        arrange(params, optimizers, rows, fresh[numbers], _sharing(params, rows, shared))


def _draw(weights: Tensor, count: int) -> Tensor:
    """Draw `count` rows by their weights [N], with replacement."""
    if len(weights) <= MOST_WEIGHTS:
        return torch.multinomial(weights, count, replacement=True)
    sums = weights.double().cumsum(0)
    return torch.searchsorted(sums, sums[-1] * torch.rand(count, dtype=torch.float64, device=weights.device))


def _sharing(params: Params, rows: Tensor, copies: Tensor) -> dict[str, Tensor]:
    """Return logit opacities and log scales of `rows` [n], each to be one of copies[i]."""
    logits, scales = params["opacities"].detach()[rows], params["scales"].detach()[rows]
    which = (copies > 1).nonzero()[:, 0]
    eps = torch.finfo(logits.dtype).eps
    opacities, lengths = relocated(logits[which].sigmoid().clamp_max(1 - eps), scales[which].exp(), copies[which])
    logits[which], scales[which] = opacities.clamp(FAINT, 1 - eps).logit(), lengths.log()
    return {"opacities": logits, "scales": scales}
