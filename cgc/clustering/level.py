"""The level that suits a scene's masks: two parts are one thing where masks hold them together in that share of views.

Masks that split things hold the halves of one together in few views, masks that fuse neighbours hold two together in
many. How often either happens is counted in the scene itself. The rate of one thing p is that of two pieces that the
level makes one, pooled; the rate of two things m is that of two groups that touch, pooled over those whose rate is
under the level. The level is sqrt(p * 2 m): as many times over 2 m as under p, and twice m because it is a mean: some
pairs are fused more often. Where masks show every part of a thing by itself in half of the views, p is what says so:
it falls with the level, once parts are joined.

Where few views see two things, chance alone holds some of them together in many of these: of six views, two are a
third. So the level is at least such that of all pairs which touch, fused at random in a share m of the views that see
them, no more than ONE_PASSES would reach it. That does not go over REACHED of p, for one thing must reach it.

Of a thing in many parts most pairs that touch are its own, which masks fuse often, and their rate is not that of two
things. But what most others touch is what they stand on or hang at, and hardly ever one thing with them: m is at most
OF_GROUND times the rate of the pairs that it is in.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betainc

from cgc.clustering.beside import links_across
from cgc.clustering.graph import DOUBT, Counts, join

USUAL = 0.35  # where nothing can be counted
TOUCH = 10  # neighbours across: two groups with fewer hardly touch
VIEWS = 3.0  # that see both groups: with fewer they say little of the masks
LEAST = 0.005  # of the views fuse two things that touch, even where none was seen to
TWICE = 2.0
OF_GROUND = 2.0  # times the rate of what most others touch: two things' is no higher ...
LEAST_BESIDE = 5  # ... where it is told from so many
ONE_PASSES = 1.0  # pairs of two things that may reach the level by chance, of all that touch
REACHED = 0.35  # of p: what chance may raise the level to
HALVINGS = 10  # of the range in which the level that chance asks for is looked for
LOWEST, HIGHEST = 0.05, 0.6  # the level is kept between these
START, TURNS = 0.3, 50  # the first level, and how often it is found anew, until it stays ...
REJOINED = 10  # ... and how often, at most, pieces are joined anew for that


def rate_of_one(counts: Counts, joined: np.ndarray) -> float:
    """Return the share of the views in which two pieces of one group are together; joined [A] has each one's group."""
    one = joined[:, None] == joined[None, :]
    np.fill_diagonal(one, False)
    seen = counts.seen[one].sum()
    return float(counts.together[one].sum() / seen) if seen > 0 else 1.0


def touching(groups: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Say which groups touch, [A, A] bool: enough Gaussians have one of the other among their neighbours [N, k].

    groups [N]: -1 is none.
    """
    return links_across(groups, neighbours) >= TOUCH


def suitable_level(pieces: Counts, groups: Counts, touch: np.ndarray) -> float:
    """Return the level for masks that have pieces, and groups that `touch` [A, A], together as counted.

    Both rates are those at the level, which in turn follows from them: found by turns, first with the pieces that
    surely are one.
    """
    known = touch & (groups.seen > VIEWS)
    if not known.any():
        return USUAL
    pairs = np.nonzero(np.triu(known, 1))
    together, seen = groups.together[pairs], groups.seen[pairs]
    of_ground = (np.stack(pairs) == known.sum(axis=1).argmax()).any(axis=0)  # [P]
    level, joined = START, HIGHEST
    for _ in range(REJOINED):
        one = rate_of_one(pieces, join(pieces, joined).things())
        level = _level_for(one, together, seen, of_ground, level)
        if level == joined:
            break
        joined = level
    return level


def rate_of_two(together: np.ndarray, seen: np.ndarray, of_ground: np.ndarray) -> float:
    """Return the share of the views in which two things are together, from counts of pairs [P], and LEAST.

    of_ground [P] bool: the pairs of what most others touch.
    """
    rate = _pooled(together, seen)
    if of_ground.sum() >= LEAST_BESIDE:
        rate = min(rate, OF_GROUND * _pooled(together[of_ground], seen[of_ground]))
    return rate


def _pooled(together: np.ndarray, seen: np.ndarray) -> float:
    return float(together.sum() / max(float(seen.sum()), 1e-9)) + LEAST


def _level_for(one: float, together: np.ndarray, seen: np.ndarray, of_ground: np.ndarray, level: float) -> float:
    """Return the level for one thing's rate, and counts of pairs that are two things if under it; from a first one."""
    for _ in range(TURNS):
        two = together <= level * seen
        rate = rate_of_two(together[two], seen[two], of_ground[two])
        before, level = level, float(np.clip(np.sqrt(one * TWICE * rate), LOWEST, HIGHEST))
        if level == before:
            break
    return max(level, min(beyond_chance(rate, seen[two]), REACHED * one))


def beyond_chance(rate: float, seen: np.ndarray) -> float:
    """Return the level that ONE_PASSES of pairs reach, if each of the `seen` [P] views of a pair fuses it at a rate.

    A pair's rate is pulled to 0 by DOUBT views, as in joining. Views are whole numbers in the mean only, so the
    binomial's tail is taken as the incomplete beta function, which knows those in between.
    """
    low, high = 0.0, HIGHEST
    for _ in range(HALVINGS):
        level = (low + high) / 2
        fused = level * (seen + DOUBT)  # views that must fuse a pair
        passes = np.where(fused < seen, betainc(fused, np.maximum(seen - fused, 0) + 1, min(rate, 1.0)), 0.0)
        low, high = (level, high) if passes.sum() > ONE_PASSES else (low, level)
    return high
