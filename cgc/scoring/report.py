"""What a protocol found, printed and written: summary.json, and the rows it can be made again from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgc.errors import InputError
from cgc.evaluation.sizes import alike
from cgc.files import write_csv, write_json
from cgc.progress import console


@dataclass
class Report:
    """What one protocol found: a table of means to print, rows for the two files, and what to say beside them."""

    protocol: str
    definition: str
    summary: dict[str, Any]
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[Any]]]]
    views: tuple[Sequence[str], list[dict[str, Any]]]
    instances: tuple[Sequence[str], list[dict[str, Any]]] | None
    notes: list[str]


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Round what a summary says to six places; levels are names and stay."""
    return {k: round(v, 6) if isinstance(v, float) and k != "level" else v for k, v in values.items()}


def write(report: Report, folder: Path, said: set[str], *, quiet: bool) -> Path:
    """Write summary.json, views.csv and instances.csv, and print what they say; notes that were `said` once will do."""
    columns, rows = report.views
    write_csv(folder / "views.csv", columns, rows)
    if report.instances is not None:
        write_csv(folder / "instances.csv", *report.instances)
    path = folder / "summary.json"
    facts = {"protocol": report.protocol, "definition": report.definition, **report.summary, "notes": report.notes}
    write_json(path, facts)
    if not quiet:
        console.print(f"\n{report.protocol}: {report.definition}")
        for titles, table in report.tables:
            console.print("\n" + _lines(titles, table))
        console.print()
        for note in report.notes:
            if note not in said:
                console.print(f"note: {note}")
    said.update(report.notes)
    console.print(f"result: {path}")
    return path


def _lines(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay a table out in columns: the first to the left, numbers to the right."""
    cells = [[_cell(v) for v in row] for row in [titles, *rows]]
    widths = [max(len(row[c]) for row in cells) for c in range(len(titles))]
    return "\n".join(
        ("  " + "  ".join(v.rjust(w) if c else v.ljust(w) for c, (v, w) in enumerate(zip(row, widths)))).rstrip()
        for row in cells
    )


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def check_shape(path: Path, found: np.ndarray, true: np.ndarray) -> None:
    """Raise InputError for a prediction [H, W] of a file that is no larger or smaller picture of the true one."""
    if not alike(found.shape, true.shape):
        raise InputError(
            f"the prediction {path} is {size_text(found)} where the truth is {size_text(true)}, which has another "
            "shape: it is one of another picture, or turned; give that of this one"
        )


def size_text(picture: np.ndarray) -> str:
    """Write the size of a picture [H, W] as WxH."""
    return f"{picture.shape[1]}x{picture.shape[0]}"
