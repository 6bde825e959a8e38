"""The last vote: brute force, laws, and what it is for."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from tiny import cameras, clumps

from cgc.clustering.settle import OWN, PIXELS, ROUNDS, RUNNER_UP, Look, hear, look_at, settle
from cgc.clustering.vote import NOISE
from cgc.features.lifting import vote_ids
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels


def a_look(weights, ids, gaussians=None, view=0):
    """A look given as a dense [U, M] array."""
    weights = np.asarray(weights, np.float32)
    gaussians = np.arange(len(weights)) if gaussians is None else gaussians
    return Look(view, np.asarray(gaussians), csr_matrix(weights), np.asarray(ids))


def slow(labels, looks, own_share=OWN):
    """Do as `settle`, one mask and Gaussian at a time."""
    n, k = len(labels), labels.max() + 2
    now, contenders, shares = labels + 1, [{c} for c in labels + 1], np.zeros(n)
    for _ in range(ROUNDS):
        votes = np.zeros((n, k))
        for look in looks:
            weights = look.weights.toarray()
            shown = np.zeros((k, len(look.ids)))
            for g, row in zip(look.gaussians, weights):
                shown[now[g]] += row
            known, said = np.zeros(k), {}
            for m, i in enumerate(look.ids):
                if i and shown[1:, m].max() > 0:
                    best = 1 + int(shown[1:, m].argmax())
                    said[m] = best, shown[best, m] / shown[:, m].sum()
                    known[best] += shown[best, m]
            known /= np.maximum(shown.sum(1), 1e-9)
            known[0] = 1
            for g, row in zip(look.gaussians, weights):
                heard = np.prod([known[c] for c in contenders[g]])
                for m, (label, purity) in said.items():
                    votes[g, label] += row[m] * purity * heard
                votes[g, now[g]] += own_share * row.sum()
        for g, own in enumerate(votes):
            if own.sum() > 0:
                now[g] = own.argmax()
                shares[g] = own.max() / own.sum()
                rest = np.where(np.arange(k) == now[g], 0, own)
                contenders[g] = {now[g], rest.argmax()} if rest.max() > RUNNER_UP * own.sum() else {now[g]}
    return now - 1, shares


@pytest.mark.parametrize("own", [OWN, 3 * OWN])
def test_settling_equals_brute_force(own):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 4, 60)
    looks = []
    for _ in range(6):
        seen = np.flatnonzero(rng.random(60) < 0.6)
        seen = seen[seen > 1]  # the first two never
        weights = rng.random((len(seen), 5)) * (rng.random((len(seen), 5)) < 0.4)
        looks.append(a_look(weights + 1e-3, rng.choice(9, 5, replace=False), seen))
    found, shares = settle(labels, iter(looks), own)
    expected, expected_shares = slow(labels, looks, own)
    assert (found != labels).sum() > 5
    assert np.array_equal(found, expected) and found.dtype == np.int32
    assert np.allclose(shares, expected_shares, atol=1e-5)
    assert np.array_equal(found[:2], labels[:2]) and (shares[:2] == 0).all()


def test_a_border_goes_to_whom_most_of_it_shows_in():
    weights = [[10, 0], [0, 10], [1, 2]]  # the last one shows in the other label's mask, mostly
    found, shares = settle(np.array([0, 1, 0]), [a_look(weights, [7, 3])])
    assert found.tolist() == [0, 1, 1] and (shares > 0.5).all()


def test_what_masks_have_missed_is_not_given_to_what_it_lies_on():
    """A pen on a table: one view has a mask of it, three have left it to the table's."""
    missed = a_look([[100, 0], [4, 0]], [1, 5])
    found = a_look([[100, 0], [0, 4]], [1, 5])
    settled, _ = settle(np.array([0, 1]), [missed, missed, missed, found])
    assert settled.tolist() == [0, 1]
    winner, purity, known = hear(missed, np.array([1, 2]), 3)
    assert winner[0] == 1 and purity[0] > 0.9 and known.tolist() == [1, 1, 0]


def test_views_that_know_one_contender_alone_do_not_decide():
    """A Gaussian on the pen's border, taken for the table's: the views that have missed the pen would keep it there."""
    missed = a_look([[100, 0], [8, 0], [1, 0]], [1, 5])
    found = a_look([[100, 0], [0, 8], [0.3, 0.7]], [1, 5])
    settled, shares = settle(np.array([0, 1, 0]), [missed] * 2 + [found] * 4)
    assert settled.tolist() == [0, 1, 1] and 0.6 < shares[2] < 0.75


def test_nothing_is_said_outside_of_masks_nor_for_noise():
    labels = np.array([0, NOISE, NOISE])
    settled, _ = settle(labels, [a_look([[1, 0], [1, 0], [0, 1]], [0, 4])])
    assert np.array_equal(settled, labels)
    assert settle(np.array([0, NOISE]), [a_look([[1.6], [0.4]], [4])])[0].tolist() == [0, 0]


def test_without_looks_labels_stay():
    labels = np.array([2, NOISE, 0])
    settled, shares = settle(labels, [])
    assert np.array_equal(settled, labels) and not shares.any()


def test_looks_hold_the_weights_of_evenly_spread_pixels():
    splats, labels = clumps()
    rasterizer, camera = CpuRasterizer(), cameras()[0]
    ids = render_labels(splats, labels, camera, rasterizer).ids
    (look,) = look_at(splats, [camera], {0: ids}, rasterizer)
    votes, kinds = vote_ids(splats, [camera], {0: ids}, rasterizer, quiet=True)
    assert np.array_equal(look.ids, kinds) and 0 in look.ids
    dense = np.zeros((len(splats), len(kinds)))
    dense[look.gaussians] = look.weights.toarray()
    assert np.allclose(dense, votes.toarray(), atol=1e-4)
    (heavy,) = look_at(splats, [camera], {0: ids}, rasterizer, min_weight=0.1)
    assert heavy.weights.data.min() >= 0.1 and heavy.weights.nnz < (look.weights.data >= 0.1).sum()


def test_large_views_and_many_are_thinned(monkeypatch):
    splats, _ = clumps()
    camera = Camera.look_at([0, 0, 4], [0, 0, 0], width=500, height=400, focal=300.0)
    ids = np.ones((400, 500), int)
    (look,) = look_at(splats, [camera] * 2, {1: ids}, CpuRasterizer())
    step = 200_000 // PIXELS
    pixels = torch.arange(1, 200_000, step)
    whole = CpuRasterizer().contributions(splats, camera, pixels)
    assert len(pixels) == PIXELS and np.isclose(look.weights.sum(), float(whole.weights.sum()), rtol=1e-5)
    monkeypatch.setattr("cgc.clustering.settle.IN_ALL", 20_000)
    for thin in look_at(splats, [camera] * 2, {0: ids, 1: ids}, CpuRasterizer()):
        assert np.isclose(4 * thin.weights.sum(), look.weights.sum(), rtol=0.02)


def test_settled_labels_of_a_blurred_border_come_back():
    splats, labels = clumps()
    rasterizer, views = CpuRasterizer(), cameras()
    maps = {i: render_labels(splats, labels, camera, rasterizer).ids for i, camera in enumerate(views)}
    rng = np.random.default_rng(0)
    wrong = np.where(rng.random(len(labels)) < 0.25, rng.integers(1, 8, len(labels)), labels)
    settled, _ = settle(wrong, look_at(splats, views, maps, rasterizer))
    assert (wrong != labels).mean() > 0.15 and (settled != labels).mean() < 0.03
