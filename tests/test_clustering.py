"""Clustering: known answers, brute force, laws."""

import itertools
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import KDTree
from sklearn.metrics import adjusted_rand_score
from torch.nn.functional import normalize

from cgc.clustering import cluster as cluster_module
from cgc.clustering import density, graph
from cgc.clustering.cluster import Space, cluster, cluster_ids, cluster_masks, cut_into_pieces
from cgc.clustering.columns import Columns, group_matrix, mask_columns, with_left_out, with_wholes
from cgc.clustering.density import draw_sample, run_hdbscan
from cgc.clustering.graph import DOUBT, ENOUGH, SPILL, Counts, Views, core, count_views, join, join_groups
from cgc.clustering.level import (
    HIGHEST,
    LEAST,
    OF_GROUND,
    REACHED,
    TWICE,
    USUAL,
    beyond_chance,
    rate_of_one,
    suitable_level,
    touching,
)
from cgc.clustering.linkage import spanning_tree
from cgc.clustering.rows import ERROR, HostRows
from cgc.clustering.settle import Look
from cgc.clustering.tree import grow
from cgc.clustering.vote import NOISE, by_size, compact, cut, revote
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


def a_batch(pixels, masks, n, n_masks, view=0):
    """Weights given as a dense [P, N] array, masks [P]: what `mask_columns` reads of a batch."""
    dense = np.asarray(pixels, np.float32)
    rows, ids = np.nonzero(dense)
    weights = SimpleNamespace(
        rows=torch.from_numpy(rows),
        ids=torch.from_numpy(ids.astype(np.int32)),
        weights=torch.from_numpy(dense[rows, ids]),
    )
    assert dense.shape[1] == n
    ids = torch.arange(n_masks) + 1
    masks = torch.tensor(masks)
    return SimpleNamespace(view=view, gaussians=torch.arange(n), weights=weights, masks=masks, mask_ids=ids)


NO_MASKS = mask_columns([], 0)


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
    found = cluster(features, mass, NO_MASKS, SETTINGS)
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
    first = cluster(features, mass, NO_MASKS, SETTINGS)
    assert np.array_equal(first.labels, cluster(features, mass, NO_MASKS, SETTINGS).labels)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3))).Q
    assert same_partition(first.labels, cluster(features @ turn, mass, NO_MASKS, SETTINGS).labels)


def test_noise_can_be_kept():
    features, truth = blobs(n=400, dim=16, spread=0.03)
    means = torch.stack([features[truth == k].mean(0) for k in range(4)])
    axes = torch.linalg.qr(means.T, mode="complete").Q.T[4:14]  # at right angles to all blobs and to each other
    features[:20] = torch.cat([axes, -axes])
    mass = torch.ones(400)
    settings = ClusterSettings(samples=400, min_cluster_size=10, revote=0, noise="keep")
    kept = cluster(features, mass, NO_MASKS, settings)
    assert (kept.labels[:20] == NOISE).all() and (kept.labels[20:] != NOISE).mean() > 0.95
    nearest = cluster(features, mass, NO_MASKS, replace(settings, noise="nearest"))
    assert (nearest.labels != NOISE).all()


def test_unsure_gaussians_can_be_noise():
    features, _ = blobs()
    settings = ClusterSettings(samples=300, min_cluster_size=10, revote=0, min_confidence=2.0)
    assert (cluster(features, torch.ones(len(features)), NO_MASKS, settings).labels == NOISE).all()


def test_all_noise_and_nothing_visible_are_said():
    g = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(40, 16, generator=g), dim=1)
    with pytest.raises(InputError, match=r"everything is noise.*min-cluster-size"):
        cluster(features, torch.ones(40), NO_MASKS, ClusterSettings(min_cluster_size=30))
    with pytest.raises(InputError, match="no Gaussian is visible"):
        cluster(features, torch.zeros(40), NO_MASKS, ClusterSettings())
    with pytest.raises(InputError, match="everything is noise"):
        cluster(features[:1], torch.ones(1), NO_MASKS, ClusterSettings())


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


def nearest_labels(features, samples, labels):
    """The label of each row's nearest sample, and how sure that is."""
    rows = HostRows(features)
    nearest, distances = rows.nearest(samples)
    return labels[nearest], rows.confidences(samples, labels, nearest, distances)


@pytest.mark.parametrize("spread", [0.05, 0.4])
def test_labels_of_the_nearest_equal_brute_force(spread):
    features, truth = blobs(n=5000, k=7, spread=spread)
    samples, sample_labels = features[:200].numpy(), (truth[:200] + np.arange(200) % 2) % 7
    labels, confidences = nearest_labels(features.numpy(), samples, sample_labels)
    distance = np.linalg.norm(features.numpy()[:, None].astype(float) - samples[None], axis=2)
    nearest = np.stack([distance[:, sample_labels == k].min(1) for k in range(7)], 1)
    assert np.array_equal(labels, nearest.argmin(1))
    two = np.sort(nearest, 1)[:, :2]
    true = 1 - two[:, 0] / two[:, 1]
    assert np.abs(confidences - true).max() < ERROR + 1e-4
    assert np.abs(confidences - true).mean() < ERROR / 5
    alone, sure = nearest_labels(features.numpy(), samples, np.zeros(200, int))
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
    near = np.arange(100) % 2 > 0
    factors = np.where(near, 1.02, 0.99).astype(np.float32)
    numbers_within, distances_within = nearest_points(tree, queries, distances * factors)
    assert ((numbers_within >= 0) == near).all()
    np.testing.assert_array_equal(distances_within, distances * np.where(near, np.float32(1), factors))
    own = labels[numbers]
    foreign, distances = nearest_of_another_label(tree, labels, queries, own)
    exact = np.where(labels[None] == own[:, None], np.inf, exact)
    np.testing.assert_allclose(distances, exact.min(1), rtol=1e-5)
    assert ((foreign < 0) == np.isinf(exact.min(1))).all()
    foreign_within, distances_within = nearest_of_another_label(tree, labels, queries, own, distances * factors)
    assert ((foreign_within >= 0) == near & (foreign >= 0)).all()
    np.testing.assert_array_equal(distances_within, distances * np.where(near, np.float32(1), factors))


@pytest.mark.parametrize("dim", [3, 8])
def test_neighbours_in_a_tree_of_many_levels_are_the_true_ones(dim):
    points = np.random.default_rng(0).standard_normal((4700, dim)).astype(np.float32)
    points[:, 0] *= 100
    tree, (exact, numbers) = build_tree(points), KDTree(points).query(points, 4)
    assert len(tree.starts) > 4
    others, distances = nearest_others(tree, 3)
    np.testing.assert_allclose(distances, exact[:, 1:], rtol=1e-5)
    assert (others == numbers[:, 1:]).mean() > 0.999
    numbers, distances = nearest_points(tree, points[::7])
    assert (numbers == np.arange(4700)[::7]).all() and not distances.any()


@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_the_nearest_of_another_label_where_labels_lie_in_pieces(pieces):
    """Whole branches of the tree have one label, and others hold such of several."""
    points = np.random.default_rng(0).random((1500, 3)).astype(np.float32)
    labels = (pieces * points[:, 0]).astype(int)
    foreign, distances = nearest_of_another_label(build_tree(points), labels, points, labels)
    exact = np.full(1500, np.inf)
    for label in range(pieces):
        if pieces > 1:
            exact[labels == label] = KDTree(points[labels != label]).query(points[labels == label])[0]
    np.testing.assert_allclose(distances, exact, rtol=1e-5)
    assert ((foreign < 0) == np.isinf(exact)).all() and (pieces == 1 or (labels[foreign] != labels).all())


@pytest.mark.parametrize("dim", [3, 8])
def test_nothing_past_the_last_leaf_is_read(dim):
    points = np.random.default_rng(0).standard_normal((70, dim)).astype(np.float32)  # the last of two nodes has a leaf
    tree, exact = build_tree(points), KDTree(points)
    memory = np.zeros(len(tree.leaves) + 64 * dim, np.float32)  # where points at 0 lie behind
    memory[: len(tree.leaves)] = tree.leaves
    tree = tree._replace(leaves=memory[: len(tree.leaves)])
    np.testing.assert_allclose(nearest_others(tree, 3)[1], exact.query(points, 4)[0][:, 1:], rtol=1e-5)
    np.testing.assert_allclose(nearest_points(tree, 0.3 * points)[1], exact.query(0.3 * points)[0], rtol=1e-5)


def test_results_do_not_depend_on_the_threads():
    features = blobs(n=3000)[0].numpy()
    found = []
    for count in (1, 3):
        with threads(count):
            found.append(
                (
                    *nearest_labels(features, features[:100], np.arange(100) % 4),
                    nearest_others(build_tree(features), 5)[0],
                )
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


def test_links_between_clusters_are_hardly_longer_than_the_shortest():
    """Balls in a row: the next one's is the nearest, and the link ends where the two come close."""
    points = np.random.default_rng(0).standard_normal((4, 150, 3))
    points *= np.random.default_rng(1).random((4, 150, 1)) ** (1 / 3) / np.linalg.norm(points, axis=2, keepdims=True)
    points = (points + np.array([[[0, 0, 0]], [[9, 0, 0]], [[3, 0, 0]], [[6, 0, 0]]])).reshape(-1, 3)
    links = spanning_tree(points, 5)[-3:]
    exact = np.sort(minimum_spanning_tree(np.linalg.norm(points[:, None] - points[None], axis=2)).data)[-3:]
    np.testing.assert_allclose(links[:, 2], exact, rtol=0.05)
    assert sorted(sorted(link) for link in (links[:, :2] // 150).tolist()) == [[0, 2], [1, 3], [2, 3]]


def test_many_small_clusters_are_found():
    g = np.random.default_rng(0)
    centres = g.standard_normal((200, 16))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = np.repeat(np.arange(200), 15)
    features = torch.from_numpy(centres[truth] + 0.01 * g.standard_normal((3000, 16))).float()
    settings = ClusterSettings(samples=300, min_cluster_size=10, revote=0)  # 1.5 samples a cluster
    found = cluster(features, torch.ones(3000), NO_MASKS, settings)
    assert found.n_segments == 200 and adjusted_rand_score(truth, found.labels) > 0.99
    assert np.array_equal(found.labels, cluster(features, torch.ones(3000), NO_MASKS, settings).labels)


def test_what_lies_far_from_all_clusters_is_clustered_by_itself():
    features, truth = blobs(n=12_000, k=6, spread=0.02)
    kept = np.flatnonzero((truth < 3) | (np.arange(12_000) % 10 == 0))  # three clusters of some 2000, three of some 200
    features, truth, mass = features[kept], truth[kept], torch.ones(len(kept))
    mass[torch.from_numpy(truth >= 3)] = 0.01  # which are hardly sampled
    settings = ClusterSettings(samples=400, min_cluster_size=15, revote=0)
    assert cluster(features, mass, NO_MASKS, replace(settings, rounds=0)).n_segments == 3
    assert same_partition(cluster(features, mass, NO_MASKS, settings).labels, truth)


def of_many_sizes(seed, n=8000, k=100, times=30):
    """Unit features around k random directions, clusters of sizes that differ `times`-fold; which one each is of."""
    g = np.random.default_rng(seed)
    shares, centres = np.exp(g.uniform(0, np.log(times), k)), g.standard_normal((k, 16))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = g.choice(k, n, p=shares / shares.sum())
    return normalize(torch.from_numpy(centres[truth] + 0.02 * g.standard_normal((n, 16))).float(), dim=1), truth


@pytest.mark.parametrize("samples", [100, 150, 200])  # one for 80, 53 or 40 Gaussians; with 200 most are loose at first
def test_clusters_with_too_few_samples_are_found_in_what_is_left(samples):
    features, truth = of_many_sizes(seed=0)
    mass, settings = torch.ones(len(truth)), ClusterSettings(samples=samples, revote=0)
    findable = (np.bincount(truth) >= settings.min_cluster_size).sum()
    at_once = cluster(features, mass, NO_MASKS, replace(settings, rounds=0))
    assert at_once.n_segments < 0.8 * findable and adjusted_rand_score(truth, at_once.labels) < 0.95
    found = cluster(features, mass, NO_MASKS, settings)
    assert 0.95 * findable <= found.n_segments <= findable + 2
    assert adjusted_rand_score(truth, found.labels) > 0.985


def test_a_sample_that_is_not_thin_is_the_only_one(monkeypatch):
    features, truth = of_many_sizes(0, n=3000, k=20)
    settings, drawn = ClusterSettings(samples=1000, revote=0), []
    monkeypatch.setattr(density, "draw_sample", lambda *given: drawn.append(draw_sample(*given)) or drawn[-1])
    found = cluster(features, torch.ones(3000), NO_MASKS, settings)
    assert [len(sample) for sample in drawn] == [1000] and adjusted_rand_score(truth, found.labels) > 0.98


def test_later_rounds_draw_as_many_as_the_earlier_ones_needed(monkeypatch):
    features, _ = of_many_sizes(0)
    drawn = []
    monkeypatch.setattr(density, "draw_sample", lambda *given: drawn.append(given[1].samples) or draw_sample(*given))
    cluster(features, torch.ones(8000), NO_MASKS, ClusterSettings(samples=100, revote=0))
    assert drawn[:2] == [100, 400] and len(drawn) > 2 and drawn == sorted(drawn) and drawn[-1] <= 1600


@pytest.mark.parametrize("reach", [0.1, 0.2, 0.3])
def test_loose_samples_are_those_of_small_heaps(reach):
    g = np.random.default_rng(0)
    heaps = np.repeat(np.arange(40), g.integers(1, 20, 40))
    points = (g.uniform(0, 8, (40, 2))[heaps] + 0.2 * g.standard_normal((len(heaps), 2))).astype(np.float32)
    others, gaps = nearest_others(build_tree(points), 8)
    loose = density._loose(others, gaps, np.full(len(points), reach, np.float32), 8)
    linked = np.linalg.norm(points[:, None].astype(float) - points[None], axis=2) <= reach
    for _ in range(10):
        linked = linked @ linked
    assert np.array_equal(loose, linked.sum(1) < 8) and 0 < loose.mean() < 1


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
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(InputError, match="pip install cuml-cu13"):
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
        cluster(same[:1], torch.ones(1), NO_MASKS, SETTINGS)
    try:  # one cluster of all is either found or said to be none
        assert cluster(same, torch.ones(40), NO_MASKS, SETTINGS).n_segments == 1
    except InputError as error:
        assert "everything is noise" in str(error)
    same[3, 2] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        cluster(same, torch.ones(40), NO_MASKS, SETTINGS)


def test_revote_by_hand():
    # Gaussians 0, 1, 2 are under one pure mask, but 2 has the wrong label; 3 and 4 under another
    labels = np.array([1, 1, 2, 2, 2], np.int32)
    batch = a_batch(np.eye(5), [0, 0, 0, 1, 1], 5, 2)
    voted, share = revote(labels, mask_columns([batch], len(labels)), torch.ones(5))
    assert voted.tolist() == [1, 1, 1, 2, 2]
    purity = (2 / 3) ** 2  # of the first mask, squared
    np.testing.assert_allclose(share[2], purity / (purity + 0.1), rtol=1e-5)
    np.testing.assert_allclose(share[3], 1.0, rtol=1e-5)


def test_revote_never_votes_for_noise_and_can_rescue_it():
    labels = np.array([NOISE, NOISE, 3, NOISE], np.int32)
    batch = a_batch(np.eye(4), [0, 0, 0, 1], 4, 2)
    voted, _ = revote(labels, mask_columns([batch], len(labels)), torch.ones(4) * 1e-3)
    assert voted.tolist()[:3] == [3, 3, 3]
    assert voted[3] == NOISE  # its mask shows nothing but noise


def test_by_size():
    assert by_size(np.array([5, 5, -1, 9, 9, 9, 2, 2])).tolist() == [3, 3, -1, 1, 1, 1, 2, 2]
    assert by_size(np.array([-1, -1])).tolist() == [-1, -1]


# --- joining by masks -------------------------------------------------------------------------------------


def views_of(groups, partitions):
    """One batch a view, a pixel a Gaussian (nothing behind it), whose masks are what the partition makes of groups."""
    n, weights = len(groups), np.eye(len(groups), dtype=np.float32)
    batches = []
    for view, mask_of_group in enumerate(partitions):
        masks = np.array([mask_of_group[g] for g in groups])
        shown = np.flatnonzero(masks >= 0)
        batches.append(a_batch(weights[shown], masks[shown].tolist(), n, max(mask_of_group) + 1, view))
    return mask_columns(batches, n)


def test_columns_are_sums_of_weights_by_mask():
    g = np.random.default_rng(0)
    weights = [g.random((6, 5)) * (g.random((6, 5)) < 0.6) for _ in range(3)]
    masks = [g.integers(0, 2, 6).tolist() for _ in range(3)]
    # two batches of view 0 share its masks, those of view 4 are others
    columns = mask_columns([a_batch(w, m, 5, 2, v) for w, m, v in zip(weights, masks, (0, 0, 4))], 5)
    assert columns.views.tolist() == [0, 0, 4, 4] and columns.ids.tolist() == [1, 2, 1, 2]
    expected = np.zeros((5, 4))
    for w, m, first in zip(weights, masks, (0, 0, 2)):
        for pixel, mask in enumerate(m):
            expected[:, first + mask] += w[pixel]
    np.testing.assert_allclose(columns.matrix.toarray(), expected, rtol=1e-5)
    assert columns.by_view.toarray().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_views_are_counted_by_hand():
    # groups 0 and 1 share a mask in one view of three, 2 shows in two views and shares a mask with 1 in none
    groups = np.repeat([0, 1, 2], 40)
    columns = views_of(groups, [[0, 0, 1], [0, 1, 2], [0, 1, -1]])
    counts = count_views(columns, group_matrix(groups))
    weight = (40 / 44 / (1 + SPILL**2)) ** 2  # of a pair of groups that show 40 pixels each
    np.testing.assert_allclose(counts.seen, weight * np.array([[3, 3, 2], [3, 3, 2], [2, 2, 2]]), rtol=1e-5)
    np.testing.assert_allclose(counts.together, weight * np.array([[3, 1, 0], [1, 3, 0], [0, 0, 2]]), atol=1e-5)


def slow_join(together, seen, least, views=None):
    """Join the pair of the highest rate again and again; the partition that is left, and the rates."""
    sets, rates = [[i] for i in range(len(together))], []
    pool = lambda t, a, b: sum(t[i, j] for i in a for j in b)  # noqa: E731

    def both(views, a, b):
        (known_a, out_a), (known_b, out_b) = ([t[s].max(0) for t in (views.known, views.left_out)] for s in (a, b))
        return (known_a * known_b + out_a * known_b + known_a * out_b).sum()

    def rate_of(a, b):
        pairs = pool(seen, a, b)
        distinct = pairs if views is None else min(both(views, a, b), pairs)
        return pool(together, a, b) / pairs * distinct / (distinct + DOUBT)

    while len(sets) > 1:
        pairs = [(a, b) for a in range(len(sets)) for b in range(a)]
        rate = {p: rate_of(*(sets[i] for i in p)) for p in pairs}
        best = max(pairs, key=lambda p: rate[p])
        if rate[best] < least:
            break
        rates.append(rate[best])
        sets = [s for i, s in enumerate(sets) if i not in best] + [sets[best[0]] + sets[best[1]]]
    return {frozenset(s) for s in sets}, rates


@pytest.mark.parametrize("seed", range(5))
def test_joins_are_those_of_the_slow_way(seed):
    g = np.random.default_rng(seed)
    views = Views(*(g.random((2, 9, 40)) / 2))
    one_only = views.left_out @ views.known.T
    seen = views.known @ views.known.T + one_only + one_only.T
    share = g.random((9, 9))
    together = seen * (share + share.T) / 2
    views = views if seed % 2 else None
    joins = join(Counts(together, seen, views), 0.4)
    sets, rates = slow_join(together, seen, 0.4, views)
    np.testing.assert_allclose(joins.rates, rates)
    labels = joins.things()
    assert {frozenset(np.flatnonzero(labels == k).tolist()) for k in np.unique(labels)} == sets
    assert len(np.unique(join(Counts(together, seen, views), 1.1).things())) == 9  # no join is that sure


def test_one_view_of_many_pieces_is_one_view():
    """Twenty pieces of a wall: all views tell a poster from none of them, but one of them is in its mask by a hair."""
    pieces = np.repeat(np.arange(21), 30)
    wall = views_of(pieces, [[0] * 20 + [-1]] * 6 + [[0] * 21])  # the last view shows the poster, piece 20, in one mask
    joins = join(count_views(wall, group_matrix(pieces)), 0.6)
    assert len(joins.rates) == 19 and not {20} & {*joins.first, *joins.second}
    poster = joins.things()
    assert (poster == poster[20]).sum() == 1


def test_parts_that_half_of_the_views_fuse_are_one_and_neighbours_that_few_fuse_are_not():
    groups = np.repeat([0, 1, 2], 30)
    fused, apart, touching = [0, 0, 1], [0, 1, 2], [0, 1, 1]
    columns = views_of(groups, [fused] * 6 + [apart] * 5 + [touching])
    found = join_groups(groups, columns, 0.35)
    assert same_partition(found, np.minimum(groups - 1, 1).clip(0))
    assert same_partition(join_groups(groups, columns, 0.7), groups)  # finer
    unseen = np.where(np.arange(90) % 10 == 0, NOISE, groups)
    assert (join_groups(unseen, columns, 0.35)[unseen == NOISE] == NOISE).all()


def test_counts_do_not_depend_on_how_many_views_are_looked_at_at_once(monkeypatch):
    g = np.random.default_rng(4)
    groups = np.repeat(np.arange(5), 12)
    columns = views_of(groups, g.integers(-1, 3, (7, 5)).tolist())
    columns = with_wholes(columns, {0: np.array([0, 1, 1, 1])})
    together = columns.together
    shuffled = g.permutation(len(together.views))
    mixed = Columns(together.matrix[:, shuffled], together.views[shuffled], together.ids[shuffled])
    whole = count_views(together, group_matrix(groups))
    for most in (1, 5 * 4, 5 * 9):
        monkeypatch.setattr(graph, "BLOCK", most)
        for other in (together, mixed):
            counts = count_views(other, group_matrix(groups))
            np.testing.assert_allclose(counts.together, whole.together, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(counts.seen, whole.seen, rtol=1e-6)


@pytest.mark.parametrize("missed", [0, 6, 9])
def test_a_thing_that_masks_often_miss_is_not_joined_to_what_it_spills_into(missed):
    """In views without a mask of the small thing, all that masks show of it is a rim: one part in twenty-five."""
    groups = np.repeat([0, 1], [400, 200])
    batches = []
    for view in range(15):
        without = view < missed
        weights, masks = np.eye(600), groups.copy()
        if without:
            shown = np.flatnonzero((groups == 0) | (np.arange(600) % 25 == 0))
            weights, masks = weights[shown], np.zeros(len(shown), int)
        batches.append(a_batch(weights, masks.tolist(), 600, 1 if without else 2, view))
    columns = mask_columns(batches, 600)
    assert same_partition(join_groups(groups, columns, 0.35), groups)
    rate = count_views(columns, group_matrix(groups)).rates()[0, 1]
    assert rate < 0.6 * missed / 15 + 1e-6


def left_out_slowly(columns, looks, groups, power=3):
    """What `count_views` should count, one view and pair at a time."""
    count = groups.max() + 1
    together, seen = np.zeros((2, count, count))
    most = np.zeros((2, count))  # of any view: in sampled pixels, in evenly spread ones
    sampled = {v: columns.matrix.toarray()[:, columns.views == v] for v in np.unique(columns.views)}
    shown = {v: np.array([w[groups == a].sum(0) for a in range(count)]) for v, w in sampled.items()}  # [A, masks]
    even = {}
    for look in looks:
        weights = np.zeros((len(groups), len(look.ids)))
        weights[look.gaussians] = look.weights.toarray()
        sums = np.array([weights[groups == a].sum(0) for a in range(count)])
        even[look.view] = sums[:, look.ids > 0].sum(1), sums[:, look.ids == 0].sum(1)
    for v in shown:
        most = np.maximum(most, [shown[v].sum(1), sum(even[v])])

    def weigh(amount, largest):
        share = (amount / largest) ** 2
        return amount / (amount + ENOUGH) * share / (share + SPILL**2)

    for v in shown:
        inside, outside = even[v]
        know, out = np.zeros((2, count))
        for a in range(count):
            share = outside[a] / max(inside[a] + outside[a], 1e-9)
            part = share**power / (share**power + (1 - share) ** power)
            know[a] = weigh(shown[v][a].sum(), most[0, a]) * (1 - part)
            out[a] = weigh(inside[a] + outside[a], most[1, a]) * part
        for a in range(count):
            for b in range(count):
                one, other = (shown[v][i] ** power / max((shown[v][i] ** power).sum(), 1e-9) for i in (a, b))
                together[a, b] += know[a] * know[b] * (one * other).sum()
                seen[a, b] += know[a] * know[b] + out[a] * know[b] + know[a] * out[b]
    return together, seen


def test_what_masks_leave_out_is_counted_as_the_slow_way_does():
    g = np.random.default_rng(5)
    groups = np.repeat(np.arange(4), 15)
    columns = views_of(groups, [[0, 0, 1, 1], [0, 1, 2, -1], [-1, 0, 0, 1], [0, 1, 1, 2], [0, -1, -1, 1]])
    looks = []
    for view in (0, 1, 2, 3, 4, 9):  # view 9 has no column
        shown = np.sort(g.choice(60, 50, replace=False))
        looks.append(Look(view, shown, csr_matrix(g.random((50, 3)) * (g.random((50, 3)) < 0.7)), np.array([0, 3, 4])))
    counts = count_views(with_left_out(columns, looks, 60), group_matrix(groups))
    together, seen = left_out_slowly(columns, looks, groups)
    np.testing.assert_allclose(counts.together, together, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(counts.seen, seen, rtol=1e-4, atol=1e-6)
    assert with_left_out(columns, looks[-1:], 60) is columns


def test_masks_that_hold_others_leave_out_what_those_do():
    groups = np.repeat([0, 1, 2], 20)
    nested = with_wholes(views_of(groups, [[0, 1, 2], [0, 1, -1]]), {1: np.array([0, 1, 1])})
    weights = csr_matrix(np.eye(3, dtype=np.float32)[groups])
    looks = [Look(0, np.arange(60), weights, np.array([1, 2, 3])), Look(1, np.arange(60), weights, np.array([1, 2, 0]))]
    together = with_left_out(nested, looks, 60).together
    assert together.left_out and np.unique(together.views).tolist() == [0, 1, 3]
    outside = (group_matrix(groups) @ together.left_out.outside).toarray()
    assert outside.tolist() == [[0, 0, 0], [0, 0, 0], [0, 20, 20]]
    inside = (group_matrix(groups) @ together.left_out.inside).toarray()
    assert inside.tolist() == [[20, 20, 20], [20, 20, 20], [20, 0, 0]]


def test_a_thing_that_half_of_the_views_leave_out_is_not_joined_to_what_two_fuse_it_with():
    groups = np.repeat([0, 1], 60)
    columns = views_of(groups, [[0, 0]] * 3 + [[0, 1]] * 2 + [[0, -1]] * 5)
    weights = csr_matrix(np.eye(2, dtype=np.float32)[groups])
    ids = [[1, 2]] * 5 + [[1, 0]] * 5
    looks = [Look(view, np.arange(120), weights, np.array(of_view)) for view, of_view in enumerate(ids)]
    assert len(np.unique(join_groups(groups, columns, 0.35))) == 1  # three of five fuse them
    assert same_partition(join_groups(groups, with_left_out(columns, looks, 120), 0.35), groups)  # three of ten
    both = [Look(view, np.arange(120), weights, np.array([0, 0] if view > 4 else [1, 2])) for view in range(10)]
    assert len(np.unique(join_groups(groups, with_left_out(columns, both, 120), 0.35))) == 1  # what nobody has


def test_views_are_counted_in_runs_of_so_many_masks():
    assert graph._blocks(np.array([3, 3, 3, 9]), 6) == [slice(0, 2), slice(2, 3), slice(3, 4)]


# --- the level that suits the masks -----------------------------------------------------------------------


def pieces_of_one(rate: float, seen: float = 30.0) -> Counts:
    """Three pieces that masks of so many views have together at a rate."""
    return Counts(np.full((3, 3), rate * seen), np.full((3, 3), seen))


def test_the_level_follows_how_often_masks_split_and_fuse():
    """Five things in a row: next ones are fused at the rate `two`, of parts of one thing masks have `one` together."""
    found = {}
    touch = np.abs(np.subtract.outer(np.arange(5), np.arange(5))) == 1
    for one, two in ((0.9, 0.02), (0.9, 0.1), (0.6, 0.02), (0.6, 0.0)):
        seen = np.full((5, 5), 30.0)
        found[one, two] = suitable_level(pieces_of_one(one), Counts(two * seen, seen), touch)
        assert found[one, two] == pytest.approx(np.sqrt(one * TWICE * (two + LEAST)), rel=1e-6)
        assert two < found[one, two] < one
    assert found[0.9, 0.1] > found[0.9, 0.02] > found[0.6, 0.02] > found[0.6, 0.0]


def test_the_level_is_that_of_two_things_however_many_pairs_are_parts_of_one():
    seen, touch = np.full((8, 8), 30.0), ~np.eye(8, dtype=bool)
    together = 0.05 * seen
    parts = together.copy()
    parts[:3, :3] = 0.5 * seen[:3, :3]  # three parts of one thing
    one = pieces_of_one(0.9)
    level = suitable_level(one, Counts(together, seen), touch)
    assert suitable_level(one, Counts(parts, seen), touch) == pytest.approx(level)
    assert suitable_level(one, Counts(together, seen / 100), touch) == USUAL  # nobody sees two
    assert suitable_level(one, Counts(together, seen), ~touch & touch) == USUAL  # nothing touches
    assert suitable_level(pieces_of_one(1.0), Counts(0.29 * seen, seen), touch) == HIGHEST
    assert suitable_level(pieces_of_one(0.31), Counts(0 * seen, seen), touch) == pytest.approx(0.0557, abs=1e-3)


def test_what_is_beyond_chance_is_reached_by_one_pair_of_all():
    """Held to the binomial's tail, written out, which is exact where whole views make the level."""
    for n, rate in itertools.product((4, 8, 30), (0.01, 0.03, 0.1)):
        at_least = [sum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(m, n + 1)) for m in range(n)]
        first = next(m for m in range(n) if 150 * at_least[m] <= 1)
        level = beyond_chance(rate, np.full(150, float(n)))
        assert (first - 1) / (n + DOUBT) < level <= first / (n + DOUBT) + 1e-3
        mixed = beyond_chance(rate, np.repeat([4.0, 8.0, 30.0], 50))
        assert mixed <= beyond_chance(rate, np.full(150, 4.0)) and mixed >= beyond_chance(rate, np.full(50, 4.0))
    assert beyond_chance(0.03, np.full(300, 6.0)) > 2 * beyond_chance(0.03, np.full(300, 60.0))
    assert beyond_chance(0.03, np.full(300, 6.0)) > beyond_chance(0.03, np.full(3, 6.0))


def test_the_level_is_over_what_chance_holds_together_where_few_views_see_two():
    """Three hundred pairs that touch, two things each, of which every view that sees both fuses 3 %."""
    g, n = np.random.default_rng(0), 301
    touch = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) == 1
    found, wrong, unsure = {}, {}, {}
    for views in (6, 60):
        fused = np.triu(g.binomial(views, 0.03, (n, n)), 1)
        counts = Counts((fused + fused.T).astype(float), np.full((n, n), float(views)))
        found[views] = suitable_level(pieces_of_one(0.8, views), counts, touch)
        wrong[views] = np.triu(touch & (counts.rates() >= found[views])).sum()
        unsure[views] = suitable_level(pieces_of_one(0.5, views), Counts(0 * counts.seen, counts.seen), touch)
    mean = np.sqrt(0.8 * TWICE * (0.03 + LEAST))
    assert found[60] == pytest.approx(mean, rel=0.05)  # as without chance
    assert mean + 0.03 < found[6] <= 0.4 and wrong[6] <= 3 and not wrong[60]
    assert unsure[60] == pytest.approx(np.sqrt(0.5 * TWICE * LEAST))
    assert unsure[6] == pytest.approx(REACHED * 0.5)  # what is one must still reach it


@pytest.mark.parametrize(("parts", "bounded"), [(9, True), (5, True), (4, False)])
def test_parts_of_one_thing_raise_the_level_no_higher_than_what_they_stand_on_allows(parts, bounded):
    """All touch all: a floor, and parts of one thing, which every fourth view fuses; with the floor 3 % do."""
    seen = np.full((parts + 1, parts + 1), 30.0)
    rates = np.full_like(seen, 0.25)
    rates[0] = rates[:, 0] = 0.03
    level = suitable_level(pieces_of_one(0.9), Counts(rates * seen, seen), ~np.eye(parts + 1, dtype=bool))
    mean = rates[np.triu_indices(parts + 1, 1)].mean()
    two = OF_GROUND * (0.03 + LEAST) if bounded else mean + LEAST
    assert level == pytest.approx(np.sqrt(0.9 * TWICE * two))


def test_the_level_falls_where_it_makes_one_what_masks_often_show_as_parts():
    """Two things of two halves each: once the level joins the halves, that masks split them lowers it."""
    seen = np.full((8, 8), 30.0)
    thing, half = (np.repeat(np.arange(n), 8 // n) for n in (2, 4))
    same_thing, same_half = (x[:, None] == x[None, :] for x in (thing, half))
    touch = ~np.eye(8, dtype=bool)
    found = {}
    for rate in (0.05, 0.25, 0.4, 0.9):  # at which masks have the halves of a thing together
        pieces = Counts(np.where(same_half, 0.9, np.where(same_thing, rate, 0.03)) * seen, seen)
        found[rate] = suitable_level(pieces, Counts(0.03 * seen, seen), touch)
    whole = (6 * 0.9 + 0.0) / 6
    assert found[0.9] == pytest.approx(np.sqrt(whole * TWICE * (0.03 + LEAST)))
    assert found[0.4] == pytest.approx(np.sqrt((0.9 + 2 * 0.4) / 3 * TWICE * (0.03 + LEAST)))
    assert found[0.4] < found[0.9]
    assert found[0.05] == pytest.approx(found[0.9])  # what hardly any view joins is two things


def test_rate_of_one_thing_is_that_of_pieces_in_one_group():
    together = np.array([[9, 6, 1, 0], [6, 9, 0, 1], [1, 0, 9, 2], [0, 1, 2, 9]], float)
    counts = Counts(together, np.full((4, 4), 10.0))
    assert rate_of_one(counts, np.array([0, 0, 1, 1])) == pytest.approx((6 + 2) / 20)
    assert rate_of_one(counts, np.arange(4)) == 1.0  # nothing was joined


def test_groups_touch_where_enough_neighbours_are_of_the_other():
    groups = np.repeat([0, 1, 2, -1], 20)
    neighbours = np.stack([(np.arange(80) + 1) % 80, np.arange(80)], 1)
    neighbours[10:20, 1] = 25  # ten of 0 see 1 beside the one that lies there
    found = touching(groups, neighbours)
    assert found.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


@pytest.mark.parametrize("kind", ["splitting", "fusing"])
def test_things_are_found_whatever_masks_do_to_them(kind):
    """Six things in a row, each of three pieces: masks that halve two in three of them, or fuse every third pair."""
    g = np.random.default_rng(0)
    owner = np.repeat(np.arange(6), 3)
    views = []
    for _ in range(40):
        masks = owner.copy()
        for thing in range(6):
            if kind == "splitting" and g.random() < 0.8:
                masks[3 * thing + g.integers(0, 3)] = 6 + thing
            if kind == "fusing" and thing % 2 and g.random() < 0.38:
                masks[masks == thing] = thing - 1
        views.append(np.unique(masks, return_inverse=True)[1].tolist())
    pieces = np.repeat(np.arange(18), 20)
    columns, n = views_of(pieces, views), 360
    neighbours = np.stack([np.abs(np.arange(n) - k) for k in range(1, 9)], 1)
    places = torch.from_numpy(np.stack([np.arange(n) / n, np.zeros(n), np.zeros(n)], 1)).float()
    looks = [Look(0, np.arange(n), csr_matrix(np.ones((n, 1), np.float32)), np.array([1]))]
    found = cluster_module._joined(
        pieces, columns, torch.ones(n), ClusterSettings(settle=False), {},
        Space(places, torch.from_numpy(neighbours)), lambda: looks,
    )  # fmt: skip
    assert same_partition(found.labels, owner[pieces])
    assert (found.hierarchy.base > USUAL) == (kind == "fusing")


def test_only_sure_gaussians_speak_where_there_are_enough():
    groups = np.array([0] * 10 + [1] * 10 + [-1])
    confidences = np.array([0.9] * 5 + [0.1] * 5 + [0.9] + [0.1] * 9 + [1.0])
    assert core(groups, confidences).tolist() == [True] * 5 + [False] * 5 + [True] * 10 + [False]


def test_what_the_last_vote_shows_to_be_one_is_joined_and_nothing_else(monkeypatch):
    groups = np.repeat(np.arange(3), 30)
    columns, mass = views_of(groups, [[0, 1, 2]] * 8), torch.ones(90)
    halves = np.where(np.arange(90) < 15, 3, groups)  # the first thing is in two by then
    monkeypatch.setattr(cluster_module, "settle", lambda labels, looks: (halves, np.ones(90, np.float32)))
    space = Space(torch.rand(90, 3), torch.zeros(90, 0, dtype=torch.long))
    found = cluster_masks(mass, columns, ClusterSettings(), space=space, looks=lambda: iter(()))
    assert same_partition(found.labels, groups)
    apart = views_of(halves, [[0, 1, 2, 3]] * 8)  # and stays so where masks have its halves apart
    found = cluster_masks(mass, apart, ClusterSettings(), space=space, looks=lambda: iter(()))
    assert same_partition(found.labels, halves)


def test_what_floats_far_from_its_thing_is_no_part_of_it():
    groups, g = np.repeat([0, 1], 80), np.random.default_rng(0)
    places = g.normal(size=(160, 3)) + 20 * groups[:, None]
    places[:9] -= 300
    neighbours = torch.from_numpy(nearest_others(build_tree(places.astype(np.float32)), 6)[0])
    columns, space = views_of(groups, [[0, 1]] * 8), Space(torch.from_numpy(places), neighbours)
    found = cluster_masks(torch.ones(160), columns, ClusterSettings(), space=space)
    assert (found.labels[:9] == -1).all() and same_partition(found.labels[9:], groups[9:])


def test_masks_that_hold_two_things_neither_join_them_nor_label():
    groups = np.repeat(np.arange(4), 30)
    one_wrong = [[0, 1, 2, 3]] * 8 + [[0, 0, 1, 2], [0, 1, 1, 2]]
    columns, mass = views_of(groups, one_wrong), torch.ones(120)
    found = cluster_masks(mass, columns, ClusterSettings())
    assert same_partition(found.labels, groups) and found.confidences.min() > 0.7
    # rows, columns and diagonals of a square of sixteen groups: no view confirms a mask of another
    row, column = np.divmod(np.arange(16), 4)
    crossing = [row.tolist(), column.tolist(), ((row + column) % 4).tolist()]
    with pytest.raises(InputError, match="no mask"):
        cluster_masks(torch.ones(320), views_of(np.repeat(np.arange(16), 20), crossing), ClusterSettings())


def test_features_and_masks_together_mend_what_features_tear_apart():
    features, truth = blobs(n=800, k=6)
    object_of = np.array([0, 0, 1, 2, 3, 4])[truth]  # two directions are one object
    columns = views_of(object_of, [[0, 1, 2, 3, 4]] * 8)
    settings = replace(SETTINGS, pieces=24)
    found = cluster(
        features,
        torch.ones(800),
        columns,
        settings,
        space=Space(torch.zeros(800, 3), torch.zeros(800, 0, dtype=torch.long)),
    )
    assert same_partition(found.labels, object_of)
    alone = cluster(features, torch.ones(800), columns, replace(settings, join=False))
    assert same_partition(alone.labels, truth)


def test_pieces_lie_within_clusters_and_are_never_crumbs_beside_a_larger_piece():
    features, truth = blobs(n=1000)
    labels = truth.astype(np.int32)
    labels[:3] = (labels[:3] + 1) % 4  # crumbs: three Gaussians in the cells of others
    labels[3:6] = NOISE
    settings = replace(SETTINGS, pieces=12)
    pieces = cut_into_pieces(labels, features, torch.ones(1000), None, settings)
    assert (pieces[3:6] == NOISE).all() and pieces.max() + 1 <= 12 + 4
    for k in range(pieces.max() + 1):
        assert len(np.unique(truth[pieces == k])) == 1
    again = cut_into_pieces(labels, features, torch.ones(1000), None, settings)
    assert np.array_equal(pieces, again)


def test_small_pieces_stay_with_the_largest_of_their_owner():
    owners = np.array([0] * 10 + [5] * 10 + [7])
    kinds = np.array([0] * 6 + [1] * 3 + [2] + [3] * 8 + [0] * 2 + [9])
    assert cut(owners, kinds, 3).tolist() == [0] * 6 + [1] * 3 + [0] + [2] * 10 + [3]  # the last has no larger one
    assert cut(owners, kinds, 1, 0.35).tolist() == [0] * 10 + [1] * 10 + [2]
    assert len(np.unique(cut(owners, kinds, 1))) == 6


def test_ids_keep_their_numbers():
    votes = csr_matrix(np.array([[0, 3.0, 1], [5, 1, 0], [0, 0, 0], [0, 0, 2]]))
    found = cluster_ids(votes, np.array([0, 7, 300]))
    assert found.labels.tolist() == [7, NOISE, NOISE, 300] and found.confidences.tolist() == [0.75, 0, 0, 1]


def test_compact():
    assert compact(np.array([7, -1, 3, 7])).tolist() == [1, -1, 0, 1]


# --- the hierarchy of what was joined ---------------------------------------------------------------------


def test_a_hierarchy_has_the_parts_below_and_the_wholes_above_the_objects():
    groups = np.repeat([0, 1, 2, 3], 30)  # 0 and 1 are parts of one object, 3 is fused with 2 in a few views
    labels = np.array([1, 1, 2, 3], np.int32)[groups]
    views = [[0, 0, 1, 2]] * 6 + [[0, 1, 2, 3]] * 6 + [[0, 0, 1, 1]] * 3
    tree = grow(labels, groups, views_of(groups, views), 0.35)
    assert np.array_equal(tree.at(0.35), labels)
    assert same_partition(tree.at(1.0), groups)
    assert same_partition(tree.at(0.15), np.array([1, 1, 2, 2])[groups])
    assert set(tree.children(1)) == set(np.unique(tree.at(1.0)[labels == 1]).tolist())
    for low, high in ((0.0, 0.35), (0.35, 0.7), (0.1, 1.0)):  # finer segments lie within coarser ones
        pairs = set(zip(tree.at(high).tolist(), tree.at(low).tolist()))
        assert len({p[0] for p in pairs}) == len(pairs)


@pytest.mark.parametrize("level", [0.05, 0.35, 0.99, 0.9985])
@pytest.mark.parametrize("seed", range(5))
def test_any_partition_grows_a_whole_tree(seed, level):
    g = np.random.default_rng(seed)
    groups = g.integers(0, 12, 600)
    labels = by_size(np.append(g.integers(1, 5, 12), NOISE)[np.where(g.random(600) < 0.1, 12, groups)].astype(np.int32))
    views = [g.integers(-1, 6, 12).tolist() for _ in range(6)]
    tree = grow(labels, groups, views_of(groups, views), level)  # the tree checks itself
    assert (
        np.array_equal(tree.at(level), labels)
        and np.array_equal(tree.at(), labels)
        and (tree.leaves == NOISE).sum() == (labels == NOISE).sum()
    )


def test_wholes_hold_together_what_no_id_map_has_in_one():
    groups = np.repeat(np.arange(4), 30)
    columns = views_of(groups, [[0, 1, 2, 3]] * 8)  # every map shows four parts
    assert columns.together is columns and with_wholes(columns, {}) is columns
    wholes = {v: np.array([0, 1, 1, 2, 3]) for v in range(8)}  # the first two are of one whole
    nested = with_wholes(columns, wholes)
    joined = join_groups(groups, nested.together, 0.35)
    assert same_partition(joined, np.array([0, 0, 1, 2])[groups])
    assert same_partition(join_groups(groups, columns.together, 0.35), groups)
    found = cluster_masks(torch.ones(120), nested, ClusterSettings())
    assert same_partition(found.labels, np.array([0, 0, 1, 2])[groups])
    assert same_partition(found.hierarchy.at(0.9), groups)
    weights = nested.together.matrix.toarray()
    slow = [weights[:, (columns.views == v).nonzero()[0][:2]].sum(1) for v in range(8)]
    for v in range(8):
        column = np.flatnonzero((nested.together.views == 8 + v) & (nested.together.ids == 1))
        assert len(column) == 1 and np.allclose(weights[:, column[0]], slow[v])


def test_what_no_view_shows_with_what_it_touches_is_held_to_more_than_the_level(monkeypatch):
    asked = []
    monkeypatch.setattr(cluster_module, "_beside", lambda labels, space, mass, *unseen: asked.extend(unseen))
    groups = np.repeat([0, 1], 20)
    columns, settings = views_of(groups, [[0, 1]] * 8), ClusterSettings(level=0.4)
    looks = [Look(0, np.arange(40), csr_matrix(np.ones((40, 1), np.float32)), np.array([1]))]
    cluster_module._joined(groups, columns, torch.ones(40), settings, {}, None, lambda: looks)
    assert asked == [pytest.approx(2 * 0.4)]


@pytest.mark.parametrize(
    ("by_masks", "joined", "level"), [(0.2, True, 1.4 * 0.2), (0.45, True, 0.5), (0.2, False, 0.5)]
)
def test_masks_joined_by_themselves_keep_the_level_from_being_too_high(monkeypatch, by_masks, joined, level):
    """Twelve pieces of six things, which masks know as six: the level by pieces is 0.5."""
    pieces, columns = np.repeat(np.arange(12), 20), views_of(np.repeat(np.arange(6), 40), [list(range(6))] * 8)
    monkeypatch.setattr(cluster_module, "suitable_level", lambda p, *_: 0.5 if len(p.seen) == 12 else by_masks)
    if not joined:
        monkeypatch.setattr(cluster_module, "PURE", 1.1)  # no mask is
    looks = [Look(0, np.arange(240), csr_matrix(np.ones((240, 1), np.float32)), np.array([1]))]
    neighbours = np.stack([np.abs(np.arange(240) - k) for k in range(1, 9)], 1)
    space = Space(torch.arange(240)[:, None].expand(-1, 3) / 240, torch.from_numpy(neighbours))
    for opinion in (True, False):
        found = cluster_module._joined(
            pieces, columns, torch.ones(240), ClusterSettings(settle=False), {}, space, lambda: looks,
            second_opinion=opinion,
        )  # fmt: skip
        assert found.hierarchy.base == pytest.approx(level if opinion else 0.5) and found.n_segments == 6
