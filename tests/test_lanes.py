"""The 8-lane values that the CPU kernels are written in, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numba import float32 as f
from numba import njit

from cgc.rasterize import lanes
from cgc.rasterize.lanes import (
    bits,
    both,
    divide,
    exp2,
    fma,
    greater,
    greater_equal,
    iota,
    less_equal,
    load,
    lowest_bit,
    maximum,
    minimum,
    prefetch,
    select,
    splat,
    sqrt,
    store,
    store_half,
    total,
    totals,
    transpose_block,
)

OPERATIONS = {
    "add": (njit(lambda a, b: a + b), lambda a, b: a + b),
    "subtract": (njit(lambda a, b: a - b), lambda a, b: a - b),
    "multiply": (njit(lambda a, b: a * b), lambda a, b: a * b),
    "divide": (njit(lambda a, b: divide(a, b)), lambda a, b: a / b),
    "minimum": (njit(lambda a, b: minimum(a, b)), np.minimum),
    "maximum": (njit(lambda a, b: maximum(a, b)), np.maximum),
    "square root": (njit(lambda a, b: sqrt(b * b)), lambda a, b: np.sqrt(b * b)),
    "greater": (njit(lambda a, b: select(greater(a, b), a, b)), np.maximum),
    "less": (njit(lambda a, b: select(less_equal(a, b), a, b)), np.minimum),
}


@njit
def _compare(a, b, out):
    x, y = load(a, 0), load(b, 0)
    out[0], out[1], out[2] = bits(greater(x, y)), bits(greater_equal(x, y)), bits(less_equal(x, y))
    out[3] = bits(both(greater_equal(x, y), less_equal(x, y)))


@njit
def _exp2(x, out):
    for i in range(0, len(x), 8):
        store(out, i, exp2(load(x, i)))


@njit
def _exp2_from(x, least, out):
    a = load(x, 0)
    store(out, 0, select(greater_equal(a, splat(least)), exp2(a), splat(f(0.0))))


@njit
def _totals(x, out):
    parts = (load(x, 0), load(x, 8), load(x, 16), load(x, 24), load(x, 32), load(x, 40), load(x, 48), load(x, 56))
    a, b, c, d, e, g, h, i = parts
    prefetch(x, 1 << 40)
    store(out, 0, totals(a, b, c, d, e, g, h, i))
    store_half(out, 8, load(x, 8))


@njit
def _transpose(x, at, step, out, to, pace):
    transpose_block(x, at, step, out, to, pace)


@njit
def _total(x):
    return total(load(x, 0))


@njit
def _lowest_bit(x):
    return lowest_bit(np.uint64(x))


@njit
def _fma(x, out):
    store(out, 0, fma(load(x, 0), load(x, 8), load(x, 16)))


@njit
def _constants(out):
    store(out, 0, iota())
    store(out, 8, splat(f(2.5)))


@njit
def _move(x, out, start, to):
    store(out, to, load(x, start))


def _integers(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(-4, 5, n).astype(np.float32)  # with ties and zeros


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_are_those_of_numpy(name: str) -> None:
    """Lane by lane, to the bit."""
    ours, theirs = OPERATIONS[name]

    @njit
    def run(a, b, out):
        store(out, 0, ours(load(a, 0), load(b, 0)))

    rng, out = np.random.default_rng(0), np.empty(8, np.float32)
    for _ in range(20):
        a, b = (rng.standard_normal(8).astype(np.float32) for _ in range(2))
        a[:3] = b[:3]
        run(a, b, out)
        np.testing.assert_array_equal(out, theirs(a, b))


def test_comparisons_are_bits_lane_0_lowest() -> None:
    """Equal lanes are neither greater nor less; NaN compares false."""
    rng, out = np.random.default_rng(0), np.empty(4, np.uint32)
    for _ in range(50):
        a, b = _integers(rng, 8), _integers(rng, 8)
        a[rng.integers(8)] = np.nan
        _compare(a, b, out)
        expected = (a > b, a >= b, a <= b, a == b)
        assert out.tolist() == [int(np.packbits(e, bitorder="little")[0]) for e in expected]


def test_exp2_is_accurate() -> None:
    """3e-7 relative on [-126, 0] and a little above; exact enough at whole numbers."""
    x = np.concatenate([np.linspace(-126, 2, 400_000), -np.arange(124.0), -np.arange(124.0) - 0.5])
    x = x[: len(x) // 8 * 8].astype(np.float32)
    out = np.empty_like(x)
    _exp2(x, out)
    assert np.abs(out / np.exp2(x.astype(float)) - 1).max() <= 3e-7


def test_exp2_of_very_small_exponents_can_be_selected_away() -> None:
    """Whatever comes out under -126, -inf and NaN, a select leaves no trace of it."""
    x = np.array([-126.01, -127.0, -1e4, -1e30, -3e38, -np.inf, np.nan, -1.0], np.float32)
    out = np.empty_like(x)
    _exp2_from(x, np.float32(-8.0), out)
    assert out[:7].tolist() == [0.0] * 7 and out[7] == pytest.approx(0.5, rel=3e-7)


def test_exp2_never_grows_towards_smaller_exponents() -> None:
    """A change of the whole part leaves no step: it is monotone to 3e-7."""
    x = np.linspace(-20, 0, 80_000, dtype=np.float32)
    out = np.empty_like(x)
    _exp2(x, out)
    assert (np.diff(out) >= -3e-7 * out[1:]).all()


def test_total_is_a_fixed_tree() -> None:
    """Pairs four apart, then two, then one: float32 addition in this order, to the bit."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = (rng.standard_normal(8) * 10.0 ** rng.integers(-6, 7, 8)).astype(np.float32)
        four = x[:4] + x[4:]
        two = four[:2] + four[2:]
        assert _total(x) == two[0] + two[1]


def test_totals_of_eight_at_once() -> None:
    """Lane k is the sum of the k-th; half a store leaves what lies behind it alone; a prefetch does nothing."""
    rng, out = np.random.default_rng(0), np.full(16, -1.0, np.float32)
    x = rng.standard_normal(64).astype(np.float32)
    _totals(x, out)
    pairs = x.reshape(8, 2, 2, 2)  # a half of the register, then pairs of pairs: one fixed tree
    expected = (pairs[..., 0] + pairs[..., 1])[..., 0] + (pairs[..., 0] + pairs[..., 1])[..., 1]
    np.testing.assert_array_equal(out[:8], expected[:, 0] + expected[:, 1])
    assert out[8:12].tolist() == x[8:12].tolist() and (out[12:] == -1).all()


@pytest.mark.parametrize(("step", "pace"), [(8, 8), (19, 8), (8, 11)])
def test_transpose_block(step: int, pace: int) -> None:
    """Rows become columns, and nothing else is touched."""
    x, out = np.arange(200, dtype=np.float32), np.full(120, -1.0, np.float32)
    _transpose(x, 3, step, out, 5, pace)
    expected = np.full(120, -1.0, np.float32)
    for i in range(8):
        for k in range(8):
            expected[5 + pace * k + i] = x[3 + step * i + k]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_load_and_store_at_any_offset(start: int) -> None:
    """Unaligned addresses are fine, and nothing beside the eight floats is touched."""
    x, out = np.arange(40, dtype=np.float32), np.full(40, -1.0, np.float32)
    _move(x, out, start, start + 3)
    expected = np.full(40, -1.0, np.float32)
    expected[start + 3 : start + 11] = x[start : start + 8]
    np.testing.assert_array_equal(out, expected)


def test_lowest_bit() -> None:
    """Of single bits, and with others above."""
    for i in range(32):
        assert _lowest_bit(1 << i) == i
        assert _lowest_bit((0xFFFFFFFF << i) & 0xFFFFFFFF) == i


def test_fma_rounds_once() -> None:
    """a * b + c without a rounding between: exact where float64 holds the product."""
    rng, out = np.random.default_rng(0), np.empty(8, np.float32)
    for _ in range(20):
        x = rng.standard_normal(24).astype(np.float32)
        x[16:] = -(x[:8] * x[8:16])  # all that is left is the product's own rounding
        _fma(x, out)
        wide = x.astype(float)
        np.testing.assert_array_equal(out, (wide[:8] * wide[8:16] + wide[16:]).astype(np.float32))


def test_constants() -> None:
    """iota counts the lanes, splat copies."""
    out = np.empty(16, np.float32)
    _constants(out)
    assert out.tolist() == [*range(lanes.WIDTH), *[2.5] * lanes.WIDTH]
