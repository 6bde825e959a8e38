"""The time that is left, by the effort of the units, on a clock that the tests hold."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cgc import progress
from cgc.progress import SAMPLES, Effort, TimeLeft, progress_bar, short_lengths, short_time


class FakeClock:
    """A clock that stands still but for what is added to `now`."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def ratios(costs: list[float], effort: Effort | None, start: int = 0, compiling: float = 0.0) -> list[float]:
    """Play units that take `costs` seconds; return the time left over the true one after each, but the last."""
    clock = FakeClock()
    left, found = TimeLeft(len(costs), start, effort, clock), []
    for unit in range(start, len(costs) - 1):
        clock.now += costs[unit] + (compiling if unit == start else 0.0)
        left.move(1)
        seconds = left.seconds()
        found.append(float("nan") if seconds is None else seconds / sum(costs[unit + 1 :]))
    return found


def growing(unit: int) -> float:
    return 1.0 if unit < 300 else 4.0 + unit / 250


def test_efforts_that_are_right_but_for_a_factor_tell_the_time_exactly() -> None:
    costs = [0.01 * growing(unit) for unit in range(1000)]
    said = ratios(costs, growing, compiling=60.0)
    assert all(ratio == pytest.approx(1.0, rel=0.02) for ratio in said[1:])
    assert min(ratios(costs, None)[100:200]) < 0.5  # what their number alone says


def test_the_first_unit_of_a_process_tells_nothing_and_neither_do_those_before_it() -> None:
    costs = [0.01 * growing(unit) for unit in range(1000)]
    said = ratios(costs, growing, start=700, compiling=60.0)
    assert said[0] != said[0]  # nothing is known yet
    assert all(ratio == pytest.approx(1.0, rel=0.02) for ratio in said[1:])


def test_units_without_efforts_count_alike_from_the_first() -> None:
    clock = FakeClock()
    left = TimeLeft(10, 0, None, clock)
    assert left.seconds() is None
    clock.now += 6.0
    left.move(3)
    assert left.seconds() == pytest.approx(14.0)
    left.move(7)
    assert left.seconds() == 0.0


def test_efforts_may_change_as_more_is_known() -> None:
    scale, clock = {"later": 1.0}, FakeClock()
    left = TimeLeft(100, 0, lambda unit: 1.0 if unit < 50 else scale["later"], clock)
    for _ in range(50):
        clock.now += 1.0
        left.move(1)
    assert left.seconds() == pytest.approx(50.0)
    scale["later"] = 3.0
    assert left.seconds() == pytest.approx(150.0)


def test_many_units_are_sampled() -> None:
    asked: list[int] = []

    def effort(unit: int) -> float:
        asked.append(unit)
        return growing(unit % 1000)

    left = TimeLeft(1_000_000, 0, effort, FakeClock())
    left.move(1)
    left.move(499_999)
    left.seconds()
    assert len(asked) <= 2 * SAMPLES and min(asked) < 5000 and max(asked) > 995_000


@pytest.mark.parametrize("total, start", [(1, 0), (0, 0), (5, 5), (2, 1)])
def test_short_ways_end_with_nothing_left(total: int, start: int) -> None:
    left = TimeLeft(total, start, growing, FakeClock())
    for _ in range(max(total - start, 1)):
        left.move(1)
    assert left.seconds() == 0.0


@given(st.integers(0, 10**6))
def test_short_times_read_back(seconds: int) -> None:
    parts = [int(part) for part in short_time(seconds).split(":")]
    assert sum(part * 60**i for i, part in enumerate(reversed(parts))) == seconds
    assert re.fullmatch(r"([1-9]\d*:[0-5]\d|[1-5]?\d):[0-5]\d", short_time(seconds))


@given(st.floats(1e-6, 1e7), st.floats(-1e7, 1e7))
def test_lengths_are_written_to_a_hundredth_of_a_size_without_exponents(size: float, length: float) -> None:
    (text,) = short_lengths([length], size)
    assert "e" not in text
    assert abs(float(text.replace(",", "")) - length) <= 0.005 * max(size, 100)


def test_lengths_of_any_size_are_written() -> None:
    assert short_lengths([1552.4, 0.0374], 1552.4) == ["1,552", "0"]
    assert short_lengths([500123.456], 0.253) == ["500,123.456"]
    assert short_lengths([1.0], 0.0) == ["1.00"] == short_lengths([1.0], float("nan"))


# --- bars ----------------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], io.StringIO]:
    """Make what the console writes to: a log, or a terminal."""

    def make(terminal: bool) -> io.StringIO:
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, soft_wrap=True, highlight=False, width=150)
        monkeypatch.setattr(progress, "console", console)
        return text

    return make


def test_a_log_says_the_time_left_by_effort(shown) -> None:
    text, clock = shown(False), FakeClock()
    with progress_bar("train", 100, effort=growing, clock=clock) as bar:
        for unit in range(100):
            clock.now += 60 * growing(3 * unit) + (500 if unit == 0 else 0)
            bar.advance(1, loss=0.5)
    lines = text.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "train 10 % step 10/100 loss 0.5, 1:30:00 left"
    assert lines[-1] == "train 100 % step 100/100 loss 0.5, 0:00:00 left"


def test_a_log_says_no_time_where_nothing_tells(shown) -> None:
    text, clock = shown(False), FakeClock()
    with progress_bar("train", 4, effort=growing, clock=clock) as bar:
        for _ in range(4):
            clock.now += 30.0
            bar.advance(1)
    lines = text.getvalue().splitlines()
    assert lines == [
        "train 25 % step 1/4",
        "train 50 % step 2/4, 0:01:00 left",
        "train 75 % step 3/4, 0:00:30 left",
        "train 100 % step 4/4, 0:00:00 left",
    ]


def test_a_terminal_shows_the_time_left_by_effort(shown) -> None:
    text, clock = shown(True), FakeClock()
    with progress_bar("train", 100, effort=growing, clock=clock) as bar:
        for _ in range(50):
            clock.now += 60.0
            bar.advance(1)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "50/100" in plain and "left 0:50:00" in plain
