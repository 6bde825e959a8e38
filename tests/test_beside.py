"""What lies beside what: contacts and colours of groups against slow counts, and the wholes that they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cgc.clustering.beside import ALIKE, BINS, LEAST_LINKS, Beside
from cgc.clustering.cluster import Space, cut_into_pieces
from cgc.clustering.graph import Counts, join
from cgc.clustering.tree import APART, add_wholes
from cgc.settings import ClusterSettings
from cgc.splats.types import Splats

ALL = np.ones(5)  # masks say nothing of any group


def random_scene(seed: int, n: int = 60, count: int = 5):
    """Groups (-1: none), neighbours, colours and mass of n Gaussians."""
    g = np.random.default_rng(seed)
    groups = g.integers(-1, count, n)
    groups[:count] = np.arange(count)
    return groups, g.integers(0, n, (n, 4)), g.random((n, 3)), g.random(n)


@pytest.mark.parametrize("seed", range(4))
def test_contacts_and_colours_are_the_slow_ones(seed):
    groups, neighbours, colors, mass = random_scene(seed)
    found = Beside.of(groups, neighbours, colors, mass)
    links = np.zeros((5, 5))
    for a, row in zip(groups, neighbours):
        for b in groups[row]:
            if a >= 0 and b >= 0 and a != b:
                links[a, b] += 1
                links[b, a] += 1
    np.testing.assert_array_equal(found.links, links)
    total = [mass[groups == k].sum() for k in range(5)]
    np.testing.assert_allclose(found.colors.sum(axis=1), total)
    low = (np.arange(BINS) + 0.5) / BINS  # a colour is where its shares balance, inside of the outermost centres
    share = found.colors.reshape(5, BINS, BINS, BINS)
    for k in range(5):
        seen = np.clip(colors[groups == k], low[0], low[-1] - 1e-7)
        expected = (seen * mass[groups == k, None]).sum(axis=0) / total[k]
        means = [(share[k].sum(axis=tuple({0, 1, 2} - {c})) * low).sum() / total[k] for c in range(3)]
        np.testing.assert_allclose(means, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_what_was_pooled_is_what_one_group_would_have(seed):
    groups, neighbours, colors, mass = random_scene(seed)
    pooled = Beside.of(groups, neighbours, colors, mass)
    pooled.pool(1, 3)
    expected = Beside.of(np.where(groups == 3, 1, groups), neighbours, colors, mass)
    np.testing.assert_array_equal(
        np.delete(np.delete(pooled.links, 3, 0), 3, 1), expected.links[np.ix_([0, 1, 2, 4], [0, 1, 2, 4])]
    )
    np.testing.assert_allclose(pooled.says(1, ALL)[[0, 2, 4]], expected.says(1, ALL)[[0, 2, 4]])
    assert (pooled.says(3, ALL) == -np.inf).all()  # it is gone


def test_the_bonus_by_hand():
    links = np.array([[0, 3, 3, 2], [3, 0, 0, 0], [3, 0, 0, 0], [2, 0, 0, 0]], float) * LEAST_LINKS / 3
    colors = np.array([[2.0, 2, 0], [1, 1, 0], [0, 3, 3], [1, 1, 0]])
    np.testing.assert_allclose(Beside(links, colors).says(0, np.ones(4)), [-np.inf, ALIKE, ALIKE / 2, -np.inf])


def test_of_one_thing_it_says_the_more_the_fewer_views_do():
    links = np.array([[0, 3, 3, 2], [3, 0, 0, 0], [3, 0, 0, 0], [2, 0, 0, 0]], float) * LEAST_LINKS / 3
    colors = np.array([[2.0, 2, 0], [1, 1, 0], [0, 3, 3], [1, 1, 0]])
    unknown = np.array([1.0, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(Beside(links, colors, unseen=0.6).says(0, unknown), [0, 0.3, 0.3, 0])


@pytest.mark.parametrize(("views", "same", "joined"), [(0, True, True), (0, False, False), (20, True, False)])
def test_what_no_view_shows_with_what_it_touches_is_one_with_it_if_it_looks_alike(views, same, joined):
    """Two groups that touch; `views` show both and tell them apart, none holds them together."""
    counts = Counts(np.diag([9.0, 9]), np.array([[9.0, views], [views, 9]]))
    links = np.array([[0.0, LEAST_LINKS], [LEAST_LINKS, 0]])
    colors = np.array([[1.0, 0], [1, 0] if same else [0, 1]])
    found = join(counts, 0.3, Beside(links, colors, unseen=0.9))
    assert len(found.rates) == joined
    assert not len(join(counts, 0.3).rates)


def test_only_what_touches_is_joined_and_what_is_alike_first():
    rates = np.full((4, 4), 0.2)
    counts = Counts(rates * 10, np.full((4, 4), 10 - 1.5))  # every rate is 0.2
    links = np.zeros((4, 4))
    for a, b in ((0, 1), (1, 2)):  # 3 touches nothing
        links[a, b] = links[b, a] = LEAST_LINKS
    beside = Beside(links, np.array([[1.0, 0], [0, 1], [0, 1], [0, 1]]))
    joins = join(counts, 0.0, beside)
    assert [{int(a), int(b)} for a, b in zip(joins.first, joins.second)] == [{1, 2}, {0, 4}]
    np.testing.assert_allclose(joins.rates[0], 0.2 + ALIKE)
    assert beside.links[0, 1] == LEAST_LINKS and beside.colors[1, 1] == 1  # what was given stays
    assert len(join(counts, 0.0).rates) == 3


def test_any_number_of_wholes_has_levels_that_fall_to_the_root():
    n = 500
    links = np.full((n, n), float(LEAST_LINKS))
    never = Counts(np.zeros((n, n)), np.zeros((n, n)))
    joins = join(never, 0.0, Beside(links, np.eye(n)))
    parents, levels = [0] * (n + 1), [-1.0] + [1.0] * n
    add_wholes(parents, levels, joins, 0.35)
    at, above = np.array(levels, np.float32), np.array(parents)
    assert len(joins.rates) == n - 1 and (np.array(parents[1:]) == 0).sum() == 1
    assert (at[1:] > at[above[1:]]).all() and at[1:].min() > 0 and at[n + 1 :].max() <= 0.35 and 0.35 / n < APART


def test_pieces_are_of_one_colour():
    g = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.ones(600, 4) + 0.01 * torch.randn(600, 4, generator=g), dim=-1)
    red = torch.arange(600) < 300
    colors = torch.where(red[:, None], torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1]))
    places, none = torch.rand(600, 3, generator=g) * 0.01, torch.zeros(600, 0, dtype=torch.long)
    settings, labels = ClusterSettings(pieces=2), np.zeros(600, np.int32)
    plain, colored = (
        cut_into_pieces(labels, features, torch.ones(600), Space(places, none, c), settings) for c in (None, colors)
    )
    assert len({*zip(colored.tolist(), red.tolist())}) == 2 < len({*zip(plain.tolist(), red.tolist())})


def test_a_space_knows_colours_as_they_are_seen_from_all_sides():
    g = torch.Generator().manual_seed(1)
    sh = 0.5 * torch.randn(7, 4, 3, generator=g)
    splats = Splats(torch.rand(7, 3, generator=g), torch.rand(7, 4), torch.zeros(7, 3), torch.zeros(7), sh)
    space = Space.of(splats, 2.0, torch.zeros(7, 0, dtype=torch.long))
    directions = torch.nn.functional.normalize(torch.randn(4, 3, generator=g), dim=-1)
    assert space.colors is not None and torch.equal(space.places, splats.means / 2)
    sides = [splats.means - d for d in directions] + [splats.means + d for d in directions]  # degree 1 cancels out
    seen = torch.stack([torch.stack([splats.colors(p[i])[i] for i in range(7)]) for p in sides])
    middle = (seen > 0).all(dim=0)  # clamped at 0 from below
    assert middle.any()
    np.testing.assert_allclose(space.colors[middle], seen.mean(dim=0)[middle].clamp(0, 1), atol=1e-6)
