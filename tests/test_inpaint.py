"""Completing pictures: patterns and shade go on, what is known stays."""

from __future__ import annotations

import numpy as np
import pytest

from cgc.segmentation.inpaint import complete, smooth_fill

Y, X = np.mgrid[:48, :60]
HOLE = (X - 31) ** 2 + (Y - 22) ** 2 < 9**2


def stripes(slope: float = 0.0) -> np.ndarray:
    """Stripes aslant of two colours, darker towards the right by `slope` a pixel."""
    on = ((X + Y) // 5 % 2).astype(float)[..., None]
    return on * [0.9, 0.4, 0.2] + (1 - on) * [0.5, 0.6, 0.6] - slope * X[..., None]


def test_what_is_known_stays_and_so_does_what_is_neither():
    image = np.random.default_rng(0).random((48, 60, 3))
    other = (X > 50) & (Y > 40)
    made = complete(image, ~HOLE & ~other, HOLE)
    assert np.array_equal(made[~HOLE], image[~HOLE]) and not np.array_equal(made[HOLE], image[HOLE])
    changed = image.copy()
    changed[HOLE | other] = 7.0  # what is not known has no say
    assert np.array_equal(complete(changed, ~HOLE & ~other, HOLE)[HOLE], made[HOLE])


def test_a_pattern_goes_on_through_the_hole():
    image = stripes()
    made = complete(np.where(HOLE[..., None], 0, image), ~HOLE, HOLE)
    smooth = smooth_fill(image, ~HOLE)
    assert np.abs(made - image)[HOLE].mean() < 0.02 < 0.1 < np.abs(smooth - image)[HOLE].mean()


def test_light_and_shade_go_on_too():
    image = stripes(0.006)
    made = complete(np.where(HOLE[..., None], 0, image), ~HOLE, HOLE)
    assert np.abs(made - image)[HOLE].mean() < 0.03  # the shade differs by 0.1 within the hole


@pytest.mark.parametrize("color", [0.0, 0.3, 1.0])
def test_one_colour_stays_one(color):
    image = np.full((20, 30, 3), color)
    hole = np.zeros((20, 30), bool)
    hole[5:12, 8:15] = True
    np.testing.assert_allclose(complete(np.where(hole[..., None], 0.5, image), ~hole, hole), image, atol=1e-9)


def test_pictures_too_small_for_a_patch_are_filled_smoothly_and_nothing_known_changes_nothing():
    image = np.linspace(0, 1, 5 * 6 * 3).reshape(5, 6, 3)
    hole = np.zeros((5, 6), bool)
    hole[2, 3] = True
    made = complete(np.where(hole[..., None], 9.0, image), ~hole, hole)
    np.testing.assert_allclose(made[hole], image[hole], atol=0.1)
    assert np.array_equal(complete(image, np.zeros_like(hole), hole), image)
    assert np.array_equal(complete(image, ~hole, np.zeros_like(hole)), image)


def test_where_hardly_anything_is_known_its_colour_goes_on():
    known = (X < 8) & (Y < 8)
    made = complete(np.where(known[..., None], [0.2, 0.7, 0.5], 0.0), known, ~known)
    np.testing.assert_allclose(made, np.broadcast_to([0.2, 0.7, 0.5], made.shape), atol=1e-6)


def test_nothing_is_made_that_is_brighter_or_darker_than_all_that_is_known():
    """A pattern that gets brighter towards a hole that is open on the other side: its tone would go on rising."""
    image = (0.3 + 0.005 * X + 0.05 * ((X + 2 * Y) % 7 < 3))[..., None] * [1.0, 0.8, 0.6]
    known = X < 22
    made = complete(np.where(known[..., None], image, 0.0), known, ~known)
    assert (made >= image[known].min(0) - 1e-9).all() and (made <= image[known].max(0) + 1e-9).all()


def test_the_tone_does_not_drift_where_a_hole_is_open_on_one_side():
    """A wall with dark figures, darker towards the hole: what is made stays near the wall's own brightness."""
    image = (0.8 - 0.012 * X - 0.3 * ((X % 9 < 3) & (Y % 8 < 3)))[..., None] * np.ones(3)
    known = X < 24
    made = complete(np.where(known[..., None], image, 0.0), known, ~known)
    smooth = smooth_fill(np.where(known[..., None], image, 0.0), known)
    assert abs(made[:, 40:] - smooth[:, 40:]).mean() < 1.5 * image[known].std()
