"""One progress bar for every long step: what matters now, time left, and a last line that stays."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

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


class Bar:
    """Progress of one step; `advance(n, loss=..., psnr=...)` moves it and shows the named values."""

    def __init__(self, progress: Progress | None, task: int) -> None:
        self._progress = progress
        self._task = task

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        """Move by `n` units and show `shown` beside the bar."""
        if self._progress is None:
            return
        facts = " ".join(f"{k} {_short(v)}" for k, v in shown.items())
        if facts:
            self._progress.update(self._task, advance=n, facts=facts)  # pyright: ignore[reportArgumentType]
        else:
            self._progress.update(self._task, advance=n)  # pyright: ignore[reportArgumentType]


def _short(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, start: int = 0, quiet: bool = False) -> Iterator[Bar]:
    """Show a bar of `total` units titled `title`, from `start`; silent with `quiet`."""
    if quiet:
        yield Bar(None, 0)
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
        yield Bar(progress, task)


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall time of the block to `seconds[stage]`."""
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
