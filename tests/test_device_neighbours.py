"""Nearest neighbours on a device: exact, for points of any distribution, against the tree of the CPU."""

import numpy as np
import pytest
import torch
from device_guard import no_waits, on_meta

from cgc.device_neighbours import nearest_others_on_device, nearest_points_on_device
from cgc.errors import InputError
from cgc.features.frozen import nearest_neighbours, smooth_features, smooth_on_device
from cgc.neighbours import build_tree, nearest_in, nearest_of_another_label, nearest_others

G = torch.Generator().manual_seed(0)


def line(n):
    return torch.rand(n, 1, generator=G) * torch.tensor([[1.0, -2.0, 3.0]])


def two_clusters_and_floaters():
    """A leaf of the tree holds points of both, or a floater: its points begin with a hopeless bound."""
    near = torch.randn(1000, 3, generator=G) * 1e-3
    return torch.cat([near, torch.randn(900, 3, generator=G) * 1e-3 + 100, 1e4 * torch.randn(5, 3, generator=G)])


POINTS = {
    "uniform": lambda: torch.rand(1200, 3, generator=G),
    "heavy tails": lambda: torch.randn(1200, 3, generator=G) ** 5,
    "two clusters": two_clusters_and_floaters,
    "collinear": lambda: line(1500),
    "all the same": lambda: torch.full((3000, 3), -0.5),
    "few places": lambda: torch.randint(-1, 2, (1500, 3), generator=G).float(),
    "lattice": lambda: torch.cartesian_prod(*[torch.arange(10.0)] * 3),
    "one leaf": lambda: torch.rand(32, 3, generator=G),
    "a leaf and a point": lambda: torch.rand(33, 3, generator=G),
    "fewer than k": lambda: torch.rand(5, 3, generator=G),
    "one": lambda: torch.rand(1, 3, generator=G),
    "features": lambda: torch.randn(150, 16, generator=G),
    "on an axis": lambda: torch.rand(700, 1, generator=G),
}


@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize("kind", POINTS)
def test_the_nearest_others_are_those_of_the_tree(kind, k, tensors_on):
    points = POINTS[kind]()
    numbers, distances = (x.cpu() for x in nearest_others_on_device(points.to(tensors_on), k))
    expected = nearest_others(build_tree(points.numpy()), k)[1]
    assert numbers.shape == distances.shape == expected.shape
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-6, atol=1e-30)
    apart = (points[numbers].double() - points[:, None].double()).norm(dim=2)
    np.testing.assert_allclose(apart.numpy(), expected, rtol=1e-6, atol=1e-30)  # the numbers belong to the distances
    rows = torch.cat([torch.arange(len(points))[:, None], numbers], 1).sort(1)[0]
    assert (rows.diff(dim=1) > 0).all()  # nobody twice, and not the point itself


def test_more_neighbours_than_a_leaf_holds():
    points = torch.rand(500, 3, generator=G)
    expected = nearest_others(build_tree(points.numpy()), 50)[1]
    np.testing.assert_allclose(nearest_others_on_device(points, 50)[1].numpy(), expected, rtol=1e-6)


def test_chunks_do_not_matter(monkeypatch):
    import cgc.device_neighbours as own

    points = torch.rand(700, 3, generator=G)
    expected = nearest_others_on_device(points, 4)
    monkeypatch.setattr(own, "AT_ONCE", 100)
    assert all(torch.equal(a, b) for a, b in zip(expected, nearest_others_on_device(points, 4)))


@pytest.mark.gpu
def test_neighbours_of_a_devices_points_are_found_there():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is False")
    points = torch.rand(3000, 3, generator=G)
    found = nearest_neighbours(points.cuda(), 8)
    assert found.is_cuda and torch.equal(found.cpu(), nearest_neighbours(points, 8))
    with pytest.raises(InputError, match="positions"):
        nearest_neighbours(torch.full((3, 3), torch.nan).cuda(), 2)


def some_features(kind):
    """Points and queries [., 16] whose nearest points are far apart, or so near that a product cannot tell them."""
    points, queries = torch.randn(300, 16, generator=G), torch.randn(700, 16, generator=G)
    if kind == "close":
        points = torch.nn.functional.normalize(points[torch.randint(10, (300,), generator=G)] + 1e-4 * points)
        queries = torch.nn.functional.normalize(points[torch.randint(300, (700,), generator=G)] + 1e-4 * queries)
    elif kind == "the same":
        points = points[torch.randint(9, (300,), generator=G)]
        queries[:350] = points[torch.randint(300, (350,), generator=G)]
    elif kind == "far away":
        points, queries = points * 1e-2 + 30, queries * 1e-2 + 30
    return points, queries


@pytest.mark.parametrize("kind", ["random", "close", "the same", "far away"])
def test_the_nearest_of_all_pairs_are_those_of_the_tree(kind, tensors_on, monkeypatch):
    monkeypatch.setattr("cgc.device_neighbours.PAIRS", 100 * 300)
    points, queries = some_features(kind)
    on = [x.to(tensors_on) for x in (points, queries)]
    within = (queries.norm(dim=1) * torch.rand(700, generator=G)).to(tensors_on)
    for bound in (None, within):
        numbers, distances = (x.cpu().numpy() for x in nearest_points_on_device(*on, bound))
        expected = nearest_in(points.numpy(), queries.numpy(), None if bound is None else bound.cpu().numpy())
        np.testing.assert_allclose(distances, expected[1], rtol=2e-6, atol=1e-12)
        assert ((numbers < 0) == (expected[0] < 0)).all()
        some = numbers >= 0
        apart = np.linalg.norm(points.double().numpy()[numbers[some]] - queries.double().numpy()[some], axis=1)
        np.testing.assert_allclose(apart, expected[1][some], rtol=2e-6, atol=1e-12)
    labels, others = torch.randint(3, (300,), generator=G), torch.randint(3, (700,), generator=G)
    numbers, distances = nearest_points_on_device(*on, labels=labels.to(tensors_on), others=others.to(tensors_on))
    tree = build_tree(points.numpy())
    expected = nearest_of_another_label(tree, labels.numpy(), queries.numpy(), others.numpy())[1]
    np.testing.assert_allclose(distances.cpu().numpy(), expected, rtol=2e-6, atol=1e-12)
    assert (labels[numbers.cpu()] != others).all()


def test_where_no_point_counts_there_is_none():
    points, queries = torch.rand(20, 4, generator=G), torch.rand(3, 4, generator=G)
    ones = torch.ones(20, dtype=torch.int64)
    numbers, distances = nearest_points_on_device(points, queries, labels=ones, others=ones[:3])
    assert (numbers == -1).all() and (distances == torch.inf).all()
    numbers, distances = nearest_points_on_device(points[:0], queries, torch.ones(3))
    assert (numbers == -1).all() and (distances == 1).all()


def test_smoothing_equals_the_kernel_and_does_not_wait(tensors_on):
    features, mass = torch.randn(400, 5, generator=G), torch.rand(400, generator=G)
    neighbours = nearest_neighbours(torch.rand(400, 3, generator=G), 6)
    expected = smooth_features(features, neighbours, mass)
    found = smooth_on_device(*(x.to(tensors_on) for x in (features, neighbours, mass)))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    with no_waits():
        smooth_on_device(features, neighbours, mass)
    assert smooth_features(*on_meta((features, neighbours, mass))).is_meta
