"""One progress bar for every long step: what matters now, time left, and a last line that stays."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(highlight=False, soft_wrap=True)

SECONDS_BETWEEN_LINES = 1.0
"""In a log, lines of one step come no faster than this; its last line always comes."""


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


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, start: int = 0, quiet: bool = False) -> Iterator[Bar]:
    """Show a bar of `total` units titled `title`, from `start`; silent with `quiet`.

    Where the output is no terminal (a log), a plain line is printed at every tenth of the way instead.
    """
    if quiet:
        yield Bar(lambda n, facts: None)
        return
    if not console.is_terminal:
        yield Bar(_lines(title, total, start))
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(title, total=total, completed=start, facts="")

        def move(n: int, facts: str) -> None:
            progress.update(task, advance=n, **({"facts": facts} if facts else {}))  # pyright: ignore

        yield Bar(move)


def _lines(title: str, total: int, start: int) -> Callable[[int, str], None]:
    """Return what prints `title 10 % step 180/1800 FACTS, 0:01:10 left` when another tenth is done."""
    begun = printed = time.perf_counter()
    done, tenths, last = start, 10 * start // max(total, 1), ""

    def move(n: int, facts: str) -> None:
        nonlocal done, tenths, last, printed
        done, last, now = done + n, facts or last, time.perf_counter()
        due = 10 * done // max(total, 1) > tenths and now - printed >= SECONDS_BETWEEN_LINES
        if due or done - n < total <= done:
            tenths, printed = 10 * done // max(total, 1), now
            left = (now - begun) / (done - start) * (total - done)
            words = [title, f"{100 * done // max(total, 1)} %", f"step {done}/{total}", *([last] if last else [])]
            console.print(f"{' '.join(words)}, {timedelta(seconds=round(left))} left")

    return move
