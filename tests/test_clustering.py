"""Clustering: known answers, brute force, laws."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.metrics import adjusted_rand_score
from torch.nn.functional import normalize

from cgc.clustering.cluster import cluster
from cgc.clustering.density import ERROR, draw_sample, propagate, run_hdbscan
from cgc.clustering.linkage import spanning_tree
from cgc.clustering.vote import NOISE, by_size, revote
from cgc.errors import InputError
from cgc.kernels import threads
from cgc.neighbours import build_tree, nearest_of_another_label, nearest_others, nearest_points
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
    features, truth = blobs(n=400, dim=16, spread=0.03)
    means = torch.stack([features[truth == k].mean(0) for k in range(4)])
    axes = torch.linalg.qr(means.T, mode="complete").Q.T[4:14]  # at right angles to all blobs and to each other
    features[:20] = torch.cat([axes, -axes])
    mass = torch.ones(400)
    settings = ClusterSettings(samples=400, min_cluster_size=10, revote=0, noise="keep")
    kept = cluster(features, mass, [], settings)
    assert (kept.labels[:20] == NOISE).all() and (kept.labels[20:] != NOISE).mean() > 0.95
    nearest = cluster(features, mass, [], replace(settings, noise="nearest"))
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


@pytest.mark.parametrize("spread", [0.05, 0.4])
def test_propagate_equals_brute_force(spread):
    features, truth = blobs(n=5000, k=7, spread=spread)
    samples, sample_labels = features[:200].numpy(), (truth[:200] + np.arange(200) % 2) % 7
    labels, confidences = propagate(features.numpy(), samples, sample_labels)
    distance = np.linalg.norm(features.numpy()[:, None].astype(float) - samples[None], axis=2)
    nearest = np.stack([distance[:, sample_labels == k].min(1) for k in range(7)], 1)
    assert np.array_equal(labels, nearest.argmin(1))
    two = np.sort(nearest, 1)[:, :2]
    true = 1 - two[:, 0] / two[:, 1]
    assert np.abs(confidences - true).max() < ERROR + 1e-4
    assert np.abs(confidences - true).mean() < ERROR / 5
    alone, sure = propagate(features.numpy(), samples, np.zeros(200, int))
    assert (alone == 0).all() and (sure == 1).all()


@pytest.mark.parametrize(("n", "dim"), [(1, 3), (2, 3), (9, 3), (700, 3), (700, 16), (512, 2)])
def test_the_tree_of_neighbours_equals_brute_force(n, dim):
    g = np.random.default_rng(n)
    points = g.standard_normal((n, dim)).astype(np.float32)
    points[: n // 5] = points[0]  # coincident ones
    labels, queries = g.integers(0, 5, n), g.standard_normal((100, dim)).astype(np.float32)
    tree = build_tree(points)
    others, distances = nearest_others(tree, 8)
    exact = np.linalg.norm(points[:, None].astype(float) - points[None], axis=2)
    exact[np.arange(n), np.arange(n)] = np.inf
    assert others.shape == (n, min(8, n - 1)) and not (others == np.arange(n)[:, None]).any()
    assert all(len(set(row)) == len(row) for row in others.tolist())
    np.testing.assert_allclose(distances, np.sort(exact, 1)[:, : min(8, n - 1)], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.take_along_axis(exact, others, 1), distances, rtol=1e-5, atol=1e-7)
    exact = np.linalg.norm(queries[:, None].astype(float) - points[None], axis=2)
    numbers, distances = nearest_points(tree, queries)
    np.testing.assert_allclose(distances, exact.min(1), rtol=1e-5)
    numbers_within, _ = nearest_points(tree, queries, distances * np.float32(0.99))
    assert (numbers_within == -1).all()
    own = labels[numbers]
    foreign, distances = nearest_of_another_label(tree, labels, queries, own)
    exact = np.where(labels[None] == own[:, None], np.inf, exact)
    np.testing.assert_allclose(distances, exact.min(1), rtol=1e-5)
    assert ((foreign < 0) == np.isinf(exact.min(1))).all()


def test_results_do_not_depend_on_the_threads():
    features = blobs(n=3000)[0].numpy()
    found = []
    for count in (1, 3):
        with threads(count):
            found.append(
                (*propagate(features, features[:100], np.arange(100) % 4), nearest_others(build_tree(features), 5)[0])
            )
    assert all(np.array_equal(a, b) for a, b in zip(*found))


def test_the_spanning_tree_is_nearly_minimal_and_finds_the_same_clusters(monkeypatch):
    features, _ = blobs(n=800, k=3, spread=0.2)
    points = features.numpy()
    links = spanning_tree(points, 10)
    exact = np.linalg.norm(points[:, None].astype(float) - points[None], axis=2)
    cores = np.sort(exact, 1)[:, 10]
    reach = np.maximum(exact, np.maximum(cores[:, None], cores[None]))
    least = minimum_spanning_tree(reach).data
    assert links.shape == (799, 3) and (np.diff(links[:, 2]) >= 0).all()
    np.testing.assert_allclose(links[:, 2], np.sort(least), rtol=0.02)
    assert links[:, 2].sum() == pytest.approx(least.sum(), rel=1e-3)
    settings = ClusterSettings(min_cluster_size=10)
    expected, _ = run_hdbscan(points, settings)
    monkeypatch.setattr("cgc.clustering.density.MANY", 100)
    labels, tree = run_hdbscan(points, settings)
    assert adjusted_rand_score(expected, labels) > 0.99 and "lambda_val" in tree
    same, _ = run_hdbscan(np.concatenate([np.zeros((60, 3)), np.ones((60, 3))]), ClusterSettings(min_cluster_size=5))
    assert same_partition(same, np.repeat([0, 1], 60))


def test_many_small_clusters_are_found():
    g = np.random.default_rng(0)
    centres = g.standard_normal((200, 16))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = np.repeat(np.arange(200), 15)
    features = torch.from_numpy(centres[truth] + 0.01 * g.standard_normal((3000, 16))).float()
    settings = ClusterSettings(samples=300, min_cluster_size=10, revote=0)  # 1.5 samples a cluster
    found = cluster(features, torch.ones(3000), [], settings)
    assert found.n_segments == 200 and adjusted_rand_score(truth, found.labels) > 0.99
    assert np.array_equal(found.labels, cluster(features, torch.ones(3000), [], settings).labels)


def test_what_lies_far_from_all_clusters_is_clustered_by_itself():
    features, truth = blobs(n=12_000, k=6, spread=0.02)
    kept = np.flatnonzero((truth < 3) | (np.arange(12_000) % 10 == 0))  # three clusters of some 2000, three of some 200
    features, truth, mass = features[kept], truth[kept], torch.ones(len(kept))
    mass[torch.from_numpy(truth >= 3)] = 0.01  # which are hardly sampled
    settings = ClusterSettings(samples=400, min_cluster_size=15, revote=0)
    assert cluster(features, mass, [], replace(settings, rounds=0)).n_segments == 3
    assert same_partition(cluster(features, mass, [], settings).labels, truth)


def test_scikit_learn_finds_the_same():
    points = blobs(n=500, spread=0.15)[0].numpy()
    for settings in (ClusterSettings(min_cluster_size=8), ClusterSettings(min_samples=4, selection="leaf")):
        expected, tree = run_hdbscan(points, settings)
        labels, none = run_hdbscan(points, replace(settings, algorithm="sklearn"))
        assert same_partition(labels, expected) and tree and not none


def test_cuml_is_called_where_it_can_be_and_asked_for_where_not(monkeypatch):
    settings = ClusterSettings(algorithm="cuml", min_cluster_size=5, min_samples=3)
    points = blobs(n=50)[0].numpy()
    monkeypatch.setitem(sys.modules, "cuml", None)
    with pytest.raises(InputError, match="pip install cuml"):
        run_hdbscan(points, settings)
    asked = {}

    class HDBSCAN:
        def __init__(self, **options):
            asked.update(options)

        def fit(self, points):
            self.labels_ = np.arange(len(points)) % 2
            return self

    monkeypatch.setitem(sys.modules, "cuml", SimpleNamespace(cluster=SimpleNamespace(HDBSCAN=HDBSCAN)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device"):
        run_hdbscan(points, settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    labels, tree = run_hdbscan(points, settings)
    assert labels.tolist() == [0, 1] * 25 and not tree
    options = {"min_cluster_size": 5, "min_samples": 4, "cluster_selection_method": "eom", "output_type": "numpy"}
    assert asked == options


def test_equal_points_and_what_is_no_number():
    same = torch.ones(40, 4)
    with pytest.raises(InputError, match="everything is noise"):
        cluster(same[:1], torch.ones(1), [], SETTINGS)
    try:  # one cluster of all is either found or said to be none
        assert cluster(same, torch.ones(40), [], SETTINGS).n_segments == 1
    except InputError as error:
        assert "everything is noise" in str(error)
    same[3, 2] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        cluster(same, torch.ones(40), [], SETTINGS)


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
