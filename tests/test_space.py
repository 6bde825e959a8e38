"""Segments in space: specks, floaters, and parts far apart, against scenes whose answer is plain."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from cgc.clustering.columns import Columns
from cgc.clustering.space import _measure, take_in, tidy
from cgc.features.frozen import nearest_neighbours
from cgc.kernels import spread, threads


def ball(rng, centre, n, radius=0.1):
    points = rng.normal(size=(n, 3))
    return np.array(centre) + radius * points / np.linalg.norm(points, axis=1, keepdims=True) * rng.random((n, 1)) ** (
        1 / 3
    )


def columns_of(groups, views=5):
    """In every view each of the groups (lists of Gaussians' indices) is one mask."""
    n = 1 + max(max(g) for g in groups)
    matrix = np.zeros((n, len(groups) * views), np.float32)
    for v in range(views):
        for k, members in enumerate(groups):
            matrix[members, v * len(groups) + k] = 10.0
    where = np.repeat(np.arange(views), len(groups))
    return Columns(csr_matrix(matrix), where, np.tile(np.arange(1, len(groups) + 1), views))


def scene(*parts):
    """Balls (centre, count, label, confidence) -> places, labels, confidences, neighbours, index range of each."""
    rng = np.random.default_rng(0)
    places = np.concatenate([ball(rng, c, n) for c, n, _, _ in parts])
    labels = np.concatenate([np.full(n, label) for _, n, label, _ in parts])
    sure = np.concatenate([np.full(n, s) for _, n, _, s in parts])
    neighbours = nearest_neighbours(torch.from_numpy(places).float(), 8).numpy()
    ends = np.cumsum([n for _, n, _, _ in parts])
    ranges = [np.arange(end - n, end) for end, (_, n, _, _) in zip(ends, parts)]
    return SimpleNamespace(places=places, labels=labels, sure=sure, neighbours=neighbours, parts=ranges)


def tidied(s, columns, level=0.35):
    return tidy(s.labels, s.sure, s.places, s.neighbours, columns, level)


def test_parts_far_apart_become_segments_of_their_own():
    s = scene(((0, 0, 0), 300, 0, 1.0), ((1, 0, 0), 200, 0, 1.0))
    left, right = s.parts
    found = tidied(s, columns_of([left, right]))
    assert (found[left] == 0).all() and (found[right] == 1).all()
    together = columns_of([np.concatenate(s.parts)])  # but masks hold them together
    assert np.array_equal(tidied(s, together), s.labels)


def test_what_something_stands_between_stays_one():
    s = scene(((0, 0, 0), 300, 0, 1.0), ((1, 0, 0), 200, 0, 1.0), ((0.5, 0, 0), 300, 1, 1.0))
    assert np.array_equal(tidied(s, columns_of(s.parts)), s.labels)


def test_near_parts_stay_one():
    s = scene(((0, 0, 0), 300, 0, 1.0), ((0.23, 0, 0), 300, 0, 1.0))
    assert np.array_equal(tidied(s, columns_of(s.parts)), s.labels)


@pytest.mark.parametrize(("sure", "joins"), [(0.3, True), (0.9, False)])
def test_unsure_specks_join_what_surrounds_them(sure, joins):
    s = scene(((0, 0, 0), 600, 0, 1.0), ((2, 0, 0), 600, 1, 1.0))
    inside = np.argsort(np.linalg.norm(s.places, axis=1))[:8]
    s.labels[inside], s.sure[inside] = 1, sure
    found = tidied(s, columns_of(s.parts))
    assert (found[inside] == (0 if joins else 1)).all()
    rest = np.setdiff1d(np.arange(len(s.labels)), inside)
    assert np.array_equal(found[rest], s.labels[rest])


def test_floaters_are_noise():
    s = scene(((0, 0, 0), 600, 0, 1.0), ((30, 0, 0), 9, 0, 0.2))
    found = tidied(s, columns_of(s.parts))
    assert (found[s.parts[1]] == -1).all() and (found[s.parts[0]] == 0).all()


@pytest.mark.parametrize("sky", [-1, 5])
def test_what_floats_far_from_its_segment_is_no_part_of_it_however_sure_masks_are(sky):
    """Gaussians of the sky, far behind a thing, that lie in its masks."""
    s = scene(((0, 0, 0), 600, 0, 1.0), ((40, 0, 0), 500, sky, 1.0), ((0.16, 0, 0), 6, 0, 0.9))
    far = np.arange(600, 1100)
    s.places[far] = (400, 0, 0) + 1000 * (s.places[far] - (40, 0, 0))
    s.neighbours = nearest_neighbours(torch.from_numpy(s.places).float(), 8).numpy()
    lost = far[np.argsort(np.linalg.norm(s.places[far] - s.places[far].mean(0), axis=1))[:5]]
    s.labels[lost] = 0
    found = tidied(s, columns_of(s.parts))
    assert (found[lost] == -1).all()  # nothing is near
    rest = np.setdiff1d(np.arange(len(s.labels)), lost)
    assert np.array_equal(found[rest], s.labels[rest])  # what is near it stays


def test_a_small_segment_is_no_speck_of_itself():
    s = scene(((0, 0, 0), 600, 0, 1.0), ((0, 0, 0.05), 10, 3, 0.1))
    assert (tidied(s, columns_of(s.parts))[s.parts[1]] == 3).all()


@pytest.mark.parametrize(("views", "size", "taken"), [(0.9, 9, True), (1.5, 9, False), (0.9, 40, False)])
def test_what_hardly_a_view_shows_and_one_thing_surrounds_is_part_of_it(views, size, taken):
    s = scene(((0, 0, 0), 600, 0, 1.0), ((2, 0, 0), 600, 1, 1.0))
    inside = np.argsort(np.linalg.norm(s.places, axis=1))[:size]
    s.labels[inside] = 2
    found = take_in(s.labels, np.array([9.0, 0.5, views]), s.neighbours)
    assert (found[inside] == (0 if taken else 2)).all()
    rest = np.setdiff1d(np.arange(len(s.labels)), inside)
    assert np.array_equal(found[rest], s.labels[rest])


def test_what_lies_between_two_things_is_taken_in_by_neither():
    s = scene(((0, 0, 0), 600, 0, 1.0), ((0.2, 0, 0), 600, 1, 1.0))
    between = np.argsort(np.linalg.norm(s.places - [0.1, 0, 0], axis=1))[:10]
    s.labels[between] = 2
    assert np.array_equal(take_in(s.labels, np.array([9.0, 9.0, 0.5]), s.neighbours), s.labels)


def test_what_no_view_shows_is_part_of_most_of_what_is_around_however_mixed():
    s = scene(((0, 0, 0), 600, 0, 1.0), ((0.2, 0, 0), 600, 1, 1.0))
    between = np.argsort(np.linalg.norm(s.places - [0.1, 0, 0], axis=1))[:10]
    s.labels[between] = 2
    found = take_in(s.labels, np.array([9.0, 9.0, 0.1]), s.neighbours)
    assert found.max() == 1 and np.array_equal(np.delete(found, between), np.delete(s.labels, between))
    s.labels[between[0]] = 3  # a speck in the speck goes where that goes
    neighbours = s.neighbours.copy()
    neighbours[between[0]] = between[1]
    assert take_in(s.labels, np.array([9.0, 9.0, 0.1, 0.0]), neighbours).max() == 1


def test_nothing_takes_nothing_in():
    assert (take_in(np.full(5, -1), np.zeros(0), np.zeros((5, 2), int)) == -1).all()


def test_noise_and_nothing():
    s = scene(((0, 0, 0), 50, -1, 0.0))
    assert (tidied(s, columns_of(s.parts)) == -1).all()


def test_noise_beside_a_segment_stays_noise_and_connects_nothing():
    s = scene(((0.1, 0.1, 0), 400, -1, 0.0), ((0, 0, 0), 300, 0, 1.0), ((1, 0, 0), 200, 0, 1.0))
    noise, left, right = s.parts
    found = tidied(s, columns_of([left, right]))
    assert (found[left] == 0).all() and (found[right] == 1).all() and (found[noise] == -1).all()


@pytest.mark.parametrize("count", [1, 3])
def test_neighbours_are_as_far_as_they_are_and_noise_is_like_nothing(count):
    rng = np.random.default_rng(0)
    places, neighbours, labels = rng.normal(size=(40, 3)), rng.integers(0, 40, (40, 4)), rng.integers(-1, 2, 40)
    lengths, same = np.full((40, 4), -1.0), np.zeros((40, 4), bool)
    with threads(count):
        spread(_measure, places, neighbours, labels, lengths, same)
    np.testing.assert_allclose(lengths, np.linalg.norm(places[:, None] - places[neighbours], axis=2))
    np.testing.assert_array_equal(same, (labels[:, None] == labels[neighbours]) & (labels[:, None] >= 0))


def test_order_does_not_matter():
    s = scene(((0, 0, 0), 300, 0, 1.0), ((1, 0, 0), 200, 0, 1.0), ((30, 0, 0), 9, 0, 0.2))
    order = np.random.default_rng(1).permutation(len(s.labels))
    columns = columns_of(s.parts)
    turned = Columns(columns.matrix[order], columns.views, columns.ids)
    neighbours = nearest_neighbours(torch.from_numpy(s.places[order]).float(), 8).numpy()
    found = tidy(s.labels[order], s.sure[order], s.places[order], neighbours, turned, 0.35)
    assert np.array_equal(found, tidied(s, columns)[order])
