"""One progress bar for every long step: what matters now, time left, and a last line that stays."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(highlight=False, soft_wrap=True, markup=False)

SECONDS_BETWEEN_LINES = 1.0
"""In a log, lines of one step come no faster than this; its last line always comes."""


SAMPLES = 256
"""Units whose effort is asked for when efforts are summed; between them it changes little."""

Clock = Callable[[], float]
Effort = Callable[[int], float]
"""What a unit costs against the others, by its number: those done and those to come, as far as is known now."""


class Bar:
    """Progress of one step; `advance(n, loss=..., psnr=...)` moves it and shows the named values."""

    def __init__(self, move: Callable[[int, str], None]) -> None:
        self._move = move

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        """Move by `n` units and show `shown` beside the bar."""
        self._move(n, " ".join(f"{k} {_short(v)}" for k, v in shown.items()))


def _short(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def counted(n: int, thing: str) -> str:
    """Write how many there are, "1 object" or "2 objects"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def short_time(seconds: float) -> str:
    """Write seconds as 4:51 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_lengths(lengths: Iterable[float], size: float) -> list[str]:
    """Write lengths to three digits of a `size`, without exponents: places in a map may be large, sizes small."""
    digits = 2 - math.floor(math.log10(size)) if 0 < size < math.inf else 2
    return [f"{value:,.{min(max(digits, 0), 12)}f}" for value in lengths]


class TimeLeft:
    """The time that is left: elapsed / effort done * effort left.

    Where efforts are given, the first unit of this process is left out: it compiles.
    """

    def __init__(self, total: int, start: int, effort: Effort | None, clock: Clock) -> None:
        self._total, self._effort, self._clock = total, effort, clock
        self._from = self.done = start
        self._begun, self._first = clock(), True

    def move(self, n: int) -> None:
        """Note that `n` more units are done."""
        if self._first and self._effort and self.done + n < self._total:
            self._from, self._begun = self.done + n, self._clock()
        self._first = False
        self.done += n

    def seconds(self) -> float | None:
        """Return the seconds left; None where nothing tells yet."""
        left, done = self._sum(self.done, self._total), self._sum(self._from, self.done)
        if left <= 0:
            return 0.0
        return (self._clock() - self._begun) / done * left if done > 0 else None

    def _sum(self, first: int, last: int) -> float:
        """Add up the efforts of units `first` .. `last` - 1, from evenly drawn ones where they are many."""
        if self._effort is None or last <= first:
            return max(last - first, 0)
        count = min(last - first, SAMPLES)
        step = (last - first) / count
        return step * sum(self._effort(first + int((i + 0.5) * step)) for i in range(count))


class _TimeLeftColumn(ProgressColumn):
    """What TimeLeft says, as rich shows it."""

    def __init__(self, left: TimeLeft) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        seconds = self._left.seconds()
        text = "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))
        return Text(text, style="progress.remaining")


@contextlib.contextmanager
def progress_bar(
    title: str,
    total: int,
    *,
    start: int = 0,
    quiet: bool = False,
    effort: Effort | None = None,
    clock: Clock = time.perf_counter,
) -> Iterator[Bar]:
    """Show a bar of `total` units titled `title`, from `start`; silent with `quiet`.

    `effort` is for units of different cost: the time left then follows from it, and not from their number. Where the
    output is no terminal (a log), a plain line is printed at every tenth of the way instead.
    """
    if quiet:
        yield Bar(lambda n, facts: None)
        return
    left = TimeLeft(total, start, effort, clock)
    if not console.is_terminal:
        yield Bar(_lines(title, total, left, clock))
        return
    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn() if effort is None else _TimeLeftColumn(left),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(title, total=total, completed=start, facts="")

        def move(n: int, facts: str) -> None:
            left.move(n)
            progress.update(task, advance=n, **({"facts": facts} if facts else {}))  # pyright: ignore

        yield Bar(move)


def _lines(title: str, total: int, left: TimeLeft, clock: Clock) -> Callable[[int, str], None]:
    """Return what prints `title 10 % step 180/1800 FACTS, 0:01:10 left` when another tenth is done."""
    printed, tenths, last = clock(), 10 * left.done // max(total, 1), ""

    def move(n: int, facts: str) -> None:
        nonlocal tenths, last, printed
        left.move(n)
        done, last, now = left.done, facts or last, clock()
        due = 10 * done // max(total, 1) > tenths and now - printed >= SECONDS_BETWEEN_LINES
        if due or done - n < total <= done:
            tenths, printed = 10 * done // max(total, 1), now
            words = [title, f"{100 * done // max(total, 1)} %", f"step {done}/{total}", *([last] if last else [])]
            seconds = left.seconds()
            rest = "" if seconds is None else f", {timedelta(seconds=round(seconds))} left"
            console.print(f"{' '.join(words)}{rest}")

    return move
