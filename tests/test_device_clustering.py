"""Clustering with what a device holds: the host's tables, votes, searches and labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from test_clustering import SETTINGS, a_batch, blobs, same_partition, views_of

from cgc.clustering.cluster import Space, cluster, cluster_masks
from cgc.clustering.columns import Columns, group_matrix, mask_columns, mask_columns_on_device, with_wholes
from cgc.clustering.density import find_clusters
from cgc.clustering.device_columns import DeviceMatrix
from cgc.clustering.graph import count_views
from cgc.clustering.rows import ERROR, DeviceRows, HostRows
from cgc.clustering.vote import NOISE, revote
from cgc.settings import ClusterSettings


def on(batch, device):
    """A batch of `a_batch` with its tensors on a device."""
    weights = {name: x.to(device) for name, x in vars(batch.weights).items()}
    batch.weights.__dict__.update(weights)
    batch.gaussians, batch.masks = batch.gaussians.to(device), batch.masks.to(device)
    return batch


def random_batches(seed=0, n=30, views=5):
    """Two batches a view with masks that both have and masks that one has; Gaussians that nothing shows."""
    g = np.random.default_rng(seed)
    made = []
    for view in range(views):
        for _ in range(2):
            weights = g.random((40, n)) * (g.random((40, n)) < 0.2)
            weights[:, n - 3 :] = 0
            masks = g.integers(0, 4, 40).tolist()
            batch = a_batch(weights, masks, n, 4, view)
            batch.mask_ids = torch.from_numpy(g.permutation(9)[:4] + 1)
            made.append(batch)
    return made


def to_device(columns: Columns, device="cpu") -> Columns:
    """The same columns on a device; nested ones too."""
    matrix = columns.matrix.tocoo()
    parts = (matrix.row.astype(np.int32), matrix.col.astype(np.int32), matrix.data, columns.matrix.indptr)
    gaussians, masks, weights, indptr = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in parts)
    own = DeviceMatrix(gaussians, masks, weights, indptr.long(), matrix.shape[1])
    return Columns(own, columns.views, columns.ids)


@pytest.mark.parametrize("seed", range(3))
def test_columns_are_those_of_the_host(seed, tensors_on):
    expected = mask_columns(random_batches(seed), 30)
    batches = (on(batch, tensors_on) for batch in random_batches(seed))  # looked at once
    found = mask_columns_on_device(batches, 30, tensors_on)
    order = [found.ids[found.views == v].tolist() for v in range(5)]
    assert order == [expected.ids[expected.views == v].tolist() for v in range(5)]
    host = found.on_host()
    np.testing.assert_allclose(host.matrix.toarray(), expected.matrix.toarray(), rtol=1e-6)
    assert found.matrix.nnz == expected.matrix.nnz and host.on_host() is host
    assert (found.matrix.gaussians.diff() >= 0).all()


def test_no_batches_are_no_columns():
    found = mask_columns_on_device([], 7, torch.device("cpu"))
    assert found.matrix.nnz == 0 and found.on_host().matrix.shape == (7, 0) and len(found.views) == 0


def test_what_groups_weigh_in_masks_and_in_those_that_hold_them(tensors_on):
    g = np.random.default_rng(0)
    host = mask_columns(random_batches(), 30)
    device = to_device(host, tensors_on)
    groups = g.integers(-1, 4, 30)
    wholes = {v: np.array([0, *g.integers(1, 4, 9)]) for v in range(4)}
    for kept in (None, g.random(30) < 0.5):
        some = group_matrix(groups, kept)
        np.testing.assert_allclose(device.under(some).toarray(), host.under(some).toarray(), rtol=1e-6)
        nested = [with_wholes(columns, wholes).together for columns in (host, device)]
        np.testing.assert_allclose(nested[1].under(some).toarray(), nested[0].under(some).toarray(), rtol=1e-6)
        counts = [count_views(columns, some) for columns in nested]
        np.testing.assert_allclose(counts[1].together, counts[0].together, rtol=1e-5)
    np.testing.assert_allclose(nested[1].on_host().matrix.toarray(), nested[0].matrix.toarray(), rtol=1e-6)
    several = csr_matrix(g.random((3, 30)))  # every Gaussian in three groups
    np.testing.assert_allclose(device.under(several).toarray(), host.under(several).toarray(), rtol=1e-5)


@pytest.mark.parametrize("table", [1 << 25, 50])
def test_votes_are_those_of_the_host(table, tensors_on, monkeypatch):
    """With a table of 50 numbers the Gaussians come a few at a time."""
    monkeypatch.setattr("cgc.clustering.device_columns.TABLE", table)
    host, g = mask_columns(random_batches(), 30), np.random.default_rng(1)
    mass = torch.from_numpy(np.asarray(host.matrix.sum(1)).ravel())
    for lowest in (NOISE, 0, 1):
        labels = g.integers(lowest, 6, 30).astype(np.int32)
        expected = revote(labels, host, mass)
        found = revote(labels, to_device(host, tensors_on), mass)
        assert np.array_equal(found[0], expected[0]) and found[0].dtype == expected[0].dtype
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_ties_go_to_the_lower_label(tensors_on):
    batch = a_batch(np.eye(4), [0, 0, 1, 1], 4, 2)
    columns = to_device(mask_columns([batch, replace_masks(batch, [1, 1, 0, 0])], 4), tensors_on)
    labels = np.array([5, 5, 2, 2], np.int32)
    voted, share = columns.matrix.elect(np.array([5, 2]), np.ones(2), labels, np.zeros(4))
    assert voted.tolist() == [2, 2, 2, 2] and np.allclose(share, 0.5)


def replace_masks(batch, masks):
    other = a_batch(np.eye(4), masks, 4, 2)
    other.view = batch.view
    return other


@pytest.mark.parametrize("spread", [0.05, 0.4])
def test_searches_are_those_of_the_host(spread, tensors_on):
    features, truth = blobs(n=2000, k=7, spread=spread)
    samples, kinds = features[:200].numpy(), (truth[:200] + np.arange(200) % 2) % 7
    host, device = HostRows(features.numpy()), DeviceRows(features.to(tensors_on))
    expected, found = host.nearest(samples), device.nearest(samples)
    assert (found[0] == expected[0]).mean() > 0.999
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-7)
    within = np.full(2000, 0.1, np.float32)
    assert ((device.nearest(samples, within)[0] < 0) == (host.nearest(samples, within)[0] < 0)).all()
    sure = [rows.confidences(samples, kinds, *expected) for rows in (host, device)]
    assert np.abs(sure[1] - sure[0]).max() < ERROR + 1e-4 and np.median(np.abs(sure[1] - sure[0])) < 1e-6
    assert (device.confidences(samples, np.zeros(200, int), *expected) == 1).all()


def test_clusters_are_those_of_the_host(tensors_on):
    features, truth = blobs(n=1500)
    mass = torch.ones(1500)
    expected = find_clusters(features.numpy(), mass, SETTINGS)
    found = find_clusters(features.numpy(), mass, SETTINGS, DeviceRows(features.to(tensors_on)))
    assert found and expected and np.array_equal(found.labels, expected.labels) and same_partition(found.labels, truth)


def test_a_whole_clustering_is_that_of_the_host(tensors_on):
    """Features, masks, places and neighbours: labels, hierarchy and confidences."""
    features, truth = blobs(n=800, k=6)
    object_of = np.array([0, 0, 1, 2, 3, 4])[truth]
    columns = views_of(object_of, [[0, 1, 2, 3, 4]] * 8)
    places = torch.from_numpy(np.eye(6, 3)[truth].astype(np.float32)) + 0.01 * features[:, :3]
    neighbours = (torch.arange(800)[:, None] + torch.arange(1, 4)) % 800
    settings, mass = replace(SETTINGS, pieces=24), torch.ones(800)
    expected = cluster(features, mass, columns, settings, space=Space(places, neighbours))
    moved = [x.to(tensors_on) for x in (features, mass, places, neighbours)]
    found = cluster(moved[0], moved[1], to_device(columns, tensors_on), settings, space=Space(moved[2], moved[3]))
    assert np.array_equal(found.labels, expected.labels) and found.n_segments == 5
    assert np.array_equal(found.hierarchy.parents, expected.hierarchy.parents)
    np.testing.assert_allclose(found.confidences, expected.confidences, rtol=1e-5)


def test_a_graph_of_masks_is_that_of_the_host():
    groups = np.repeat(np.arange(4), 30)
    columns = views_of(groups, [[0, 1, 2, 3]] * 8 + [[0, 0, 1, 2], [0, 1, 1, 2]])
    expected = cluster_masks(torch.ones(120), columns, ClusterSettings())
    found = cluster_masks(torch.ones(120), to_device(columns), ClusterSettings())
    assert np.array_equal(found.labels, expected.labels) and same_partition(found.labels, groups)
