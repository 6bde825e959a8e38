"""Clustering: known answers, brute force, laws."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cgc.clustering.cluster import cluster
from cgc.clustering.density import draw_sample, propagate, run_hdbscan
from cgc.clustering.vote import NOISE, by_size, revote
from cgc.errors import InputError
from cgc.settings import ClusterSettings


def blobs(n=600, k=4, dim=8, spread=0.05, seed=0):
    """Unit features around k directions, and which one each belongs to."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(k, (n,), generator=g)
    centres = torch.linalg.qr(torch.randn(dim, dim, generator=g)).Q[:k]
    return normalize(centres[truth] + spread * torch.randn(n, dim, generator=g), dim=1), truth.numpy()


def same_partition(a, b):
    pairs = set(zip(a.tolist(), b.tolist()))
    return len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs})


def a_batch(pixels, masks, n, n_masks):
    """Weights given as a dense [P, N] array, masks [P]: what `revote` reads of a batch."""
    dense = np.asarray(pixels, np.float32)
    rows, ids = np.nonzero(dense)
    weights = SimpleNamespace(
        rows=torch.from_numpy(rows),
        ids=torch.from_numpy(ids.astype(np.int32)),
        weights=torch.from_numpy(dense[rows, ids]),
    )
    assert dense.shape[1] == n
    ids = torch.arange(n_masks) + 1
    return SimpleNamespace(gaussians=torch.arange(n), weights=weights, masks=torch.tensor(masks), mask_ids=ids)


SETTINGS = ClusterSettings(samples=300, min_cluster_size=10, revote=0)


def test_samples_are_drawn_by_mass_or_all_alike():
    mass = torch.cat([torch.zeros(100), torch.full((1000,), 0.01), torch.full((1000,), 1.0)])
    for draw, share in (("mass", 0.9), ("uniform", 0.5)):
        sample = draw_sample(mass, ClusterSettings(samples=200, draw=draw))
        assert len(np.unique(sample)) == 200 and (np.diff(sample) > 0).all() and sample.min() >= 100
        assert abs((sample >= 1100).mean() - share) < 0.1


def test_blobs_are_found_and_everyone_is_labelled():
    features, truth = blobs()
    mass = torch.ones(len(features))
    mass[:5] = 0  # never seen
    found = cluster(features, mass, [], SETTINGS)
    assert found.n_segments == 4
    assert (found.labels[:5] == NOISE).all() and (found.confidences[:5] == 0).all()
    assert same_partition(found.labels[5:], truth[5:])
    assert found.labels.dtype == np.int32 and found.confidences.min() >= 0 and found.confidences.max() <= 1
    sizes = np.bincount(found.labels[5:])[1:]
    assert (np.diff(sizes) <= 0).all()
    assert {"parent", "child", "lambda_val", "child_size"} <= set(found.tree)


def test_clustering_repeats_for_a_seed_and_ignores_rotations():
    features, _ = blobs()
    mass = torch.ones(len(features))
    first = cluster(features, mass, [], SETTINGS)
    assert np.array_equal(first.labels, cluster(features, mass, [], SETTINGS).labels)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3))).Q
    assert same_partition(first.labels, cluster(features @ turn, mass, [], SETTINGS).labels)


def test_noise_can_be_kept():
    features, _ = blobs(n=400, spread=0.03)
    g = torch.Generator().manual_seed(9)
    features[:20] = normalize(torch.randn(20, 8, generator=g), dim=1)
    mass = torch.ones(400)
    settings = ClusterSettings(samples=400, min_cluster_size=10, revote=0, noise="keep")
    kept = cluster(features, mass, [], settings)
    assert (kept.labels[:20] == NOISE).sum() > 10
    nearest = cluster(features, mass, [], ClusterSettings(samples=400, min_cluster_size=10, revote=0))
    assert (nearest.labels != NOISE).all()


def test_unsure_gaussians_can_be_noise():
    features, _ = blobs()
    settings = ClusterSettings(samples=300, min_cluster_size=10, revote=0, min_confidence=2.0)
    assert (cluster(features, torch.ones(len(features)), [], settings).labels == NOISE).all()


def test_all_noise_and_nothing_visible_are_said():
    g = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(40, 16, generator=g), dim=1)
    with pytest.raises(InputError, match=r"everything is noise.*min-cluster-size"):
        cluster(features, torch.ones(40), [], ClusterSettings(min_cluster_size=30))
    with pytest.raises(InputError, match="no Gaussian is visible"):
        cluster(features, torch.zeros(40), [], ClusterSettings())
    with pytest.raises(InputError, match="everything is noise"):
        cluster(features[:1], torch.ones(1), [], ClusterSettings())


def test_sample_is_seeded_sorted_unique_and_follows_mass():
    mass = torch.zeros(1000)
    mass[500:] = 1.0
    mass[900:] = 100.0
    settings = ClusterSettings(samples=200)
    sample = draw_sample(mass, settings)
    assert len(np.unique(sample)) == 200 and (np.diff(sample) > 0).all() and sample.min() >= 500
    assert np.array_equal(sample, draw_sample(mass, settings))
    assert (sample >= 900).mean() > 0.4  # a fifth of the visible, ten times the chance
    assert len(draw_sample(mass, ClusterSettings(samples=5000))) == 500


def test_identical_points_are_one_cluster():
    labels, _ = run_hdbscan(np.concatenate([np.zeros((30, 3)), np.ones((30, 3))]), ClusterSettings(min_cluster_size=5))
    assert same_partition(labels, np.repeat([0, 1], 30))


def test_propagate_equals_brute_force():
    features, _ = blobs(n=5000, spread=0.4)
    samples, sample_labels = features[:200], np.arange(200) % 7
    labels, confidences = propagate(features, samples, sample_labels)
    distance = torch.cdist(features.double(), samples.double()).numpy()
    nearest = np.stack([distance[:, sample_labels == k].min(1) for k in range(7)], 1)
    assert np.array_equal(labels, nearest.argmin(1))
    two = np.sort(nearest, 1)[:, :2]
    # cosines in float32 know a distance near zero to 1e-3 only
    np.testing.assert_allclose(confidences, 1 - two[:, 0] / two[:, 1], atol=2e-3)


def test_revote_by_hand():
    # Gaussians 0, 1, 2 are under one pure mask, but 2 has the wrong label; 3 and 4 under another
    labels = np.array([1, 1, 2, 2, 2], np.int32)
    batch = a_batch(np.eye(5), [0, 0, 0, 1, 1], 5, 2)
    voted, share = revote(labels, [batch], torch.ones(5))
    assert voted.tolist() == [1, 1, 1, 2, 2]
    purity = (2 / 3) ** 2  # of the first mask, squared
    np.testing.assert_allclose(share[2], purity / (purity + 0.1), rtol=1e-5)
    np.testing.assert_allclose(share[3], 1.0, rtol=1e-5)


def test_revote_never_votes_for_noise_and_can_rescue_it():
    labels = np.array([NOISE, NOISE, 3, NOISE], np.int32)
    batch = a_batch(np.eye(4), [0, 0, 0, 1], 4, 2)
    voted, _ = revote(labels, [batch], torch.ones(4) * 1e-3)
    assert voted.tolist()[:3] == [3, 3, 3]
    assert voted[3] == NOISE  # its mask shows nothing but noise


def test_by_size():
    assert by_size(np.array([5, 5, -1, 9, 9, 9, 2, 2])).tolist() == [3, 3, -1, 1, 1, 1, 2, 2]
    assert by_size(np.array([-1, -1])).tolist() == [-1, -1]
