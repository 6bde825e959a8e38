"""The report of a run: one HTML file that holds everything, for a person to look at first.

It has no script and loads nothing; images are inside of it. Every text is escaped. The look is in style.py.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgc.errors import InputError
from cgc.files import write_text
from cgc.progress import short_lengths
from cgc.view.style import STYLE

Picture = NDArray[np.uint8]
"""An image, uint8 [H, W, 3], or [H, W, 4] where it is see-through."""

MAX_SIDE = 960
"""Pictures are shrunk so that neither side is longer, in pixels."""

NONE = "–"


@dataclass(frozen=True)
class ReportView:
    """One view: photo, render, its masks and the segmentation drawn over the photo; None leaves a place empty."""

    name: str
    split: str
    photo: Picture | None
    render: Picture | None
    segmentation: Picture | None
    psnr: float | None = None
    masks: Picture | None = None


@dataclass(frozen=True)
class ReportObject:
    """One segment, rendered alone."""

    id: int
    image: Picture


@dataclass(frozen=True)
class ReportLevel:
    """What one level of the hierarchy shows in a view, drawn over its photo."""

    name: str
    view: str
    image: Picture


@dataclass(frozen=True)
class ReportDispute:
    """A view whose masks are often cut by the segments: the pixels in question, and their share of all in masks."""

    view: str
    share: float
    masks: Picture
    segmentation: Picture
    pixels: Picture


@dataclass(frozen=True)
class SegmentRow:
    """What is known of a segment; lengths in world units, `color` its RGB 0..255 in pictures, `parts` their ids."""

    id: int
    gaussians: int
    size: tuple[float, float, float]
    centre: tuple[float, float, float]
    views: int
    confidence: float
    color: tuple[int, int, int]
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class ViewScore:
    """How well a view is rendered."""

    name: str
    split: str
    psnr: float
    ssim: float | None = None


@dataclass(frozen=True)
class Table:
    """Any further table; texts and numbers, one row each of the length of `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows; an empty part is left out.

    `facts` are the key numbers, label -> text, the most telling first; `seconds` are wall times a stage;
    `warnings` and `notes` (what was done to the photos, say) are whole sentences; `settings` may be nested.
    """

    title: str
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    views: Sequence[ReportView] = ()
    objects: Sequence[ReportObject] = ()
    levels: Sequence[ReportLevel] = ()
    disputes: Sequence[ReportDispute] = ()
    segments: Sequence[SegmentRow] = ()
    scores: Sequence[ViewScore] = ()
    tables: Sequence[Table] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss_bytes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_report(path: Path | str, report: ReportData) -> None:
    """Write the report as one self-contained HTML file, whole or not at all."""
    sections = [
        _views(report.views),
        _levels(report.levels),
        _objects(report.objects, report.segments),
        _segments(report.segments),
        _disputes(report.disputes),
        _scores(report.scores),
        *[_section(t.title, _table(t.columns, [[_cell(c) for c in r] for r in t.rows])) for t in report.tables],
        _cost(report.seconds, report.peak_rss_bytes),
        _settings(report.settings),
    ]
    asides = [_aside("Warnings", report.warnings), _aside("Notes", report.notes)]
    body = "\n".join([_header(report), *asides, *sections])
    write_text(path, _PAGE.format(title=escape(report.title), style=STYLE, body=body))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

# --- parts --------------------------------------------------------------------------------------------------


def _header(report: ReportData) -> str:
    subtitle = f"<p>{escape(report.subtitle)}</p>" if report.subtitle else ""
    tiles = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in report.facts.items()
    )
    facts = f'<dl class="facts" style="--columns:{_columns(len(report.facts))}">{tiles}</dl>' if tiles else ""
    return f"<header><h1>{escape(report.title)}</h1>{subtitle}{facts}</header>"


def _columns(tiles: int) -> int:
    """Choose 4 to 6 columns so that the last row of tiles is as full as can be."""
    return min((5, 6, 4), key=lambda columns: -tiles % columns)


def _aside(title: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(s)}</li>" for s in sentences)
    return f'<aside class="{title.lower()}"><h2>{title}</h2><ul>{items}</ul></aside>' if items else ""


def _views(views: Sequence[ReportView]) -> str:
    rows, masked = [], any(view.masks is not None for view in views)
    for view in views:
        psnr = f'<span class="number">{view.psnr:.2f} dB</span>' if view.psnr is not None else ""
        pictures = "".join(
            _figure(image, f"{kind} of {view.name}", escape(kind))
            for kind, image in (
                ("Photo", view.photo),
                ("Render", view.render),
                *([("Masks", view.masks)] if masked else []),
                ("Segmentation", view.segmentation),
            )
        )
        title = f'<span class="name">{escape(view.name)}</span>{_split(view.split)}{psnr}'
        rows.append(f'<article class="view"><h3>{title}</h3>{_row(pictures, masked)}</article>')
    return _section("Views", "\n".join(rows), len(rows))


def _row(pictures: str, four: bool = False) -> str:
    return f'<div class="triple{" four" if four else ""}">{pictures}</div>'


def _disputes(disputes: Sequence[ReportDispute]) -> str:
    rows = []
    for d in disputes:
        kinds = (("Masks", d.masks), ("Segmentation", d.segmentation), ("Disagreement", d.pixels))
        pictures = "".join(_figure(image, f"{kind} of {d.view}", escape(kind)) for kind, image in kinds)
        title = f'<span class="name">{escape(d.view)}</span><span class="number">{100 * d.share:.1f} %</span>'
        rows.append(f'<article class="view"><h3>{title}</h3>{_row(pictures)}</article>')
    note = (
        '<p class="note">Views whose masks are cut by the segments the most, and the share of the pixels in masks that '
        "are of another segment than most of their mask (red): the masks of these views fuse things, or the segments "
        "are wrong there.</p>"
    )
    return _section("Where masks and result disagree", note + "\n".join(rows) if rows else "")


def _levels(levels: Sequence[ReportLevel]) -> str:
    pictures = "".join(_figure(o.image, f"{o.name} of {o.view}", escape(o.name)) for o in levels)
    note = '<p class="note">Segments at levels of the hierarchy: 0 shows wholes, 1 the smallest parts.</p>'
    return _section("Levels", f'{note}<div class="triple">{pictures}</div>' if pictures else "")


def _objects(objects: Sequence[ReportObject], segments: Sequence[SegmentRow]) -> str:
    rows = {s.id: s for s in segments}
    cells = []
    for o in objects:
        row = rows.get(o.id)
        swatch = _swatch(row.color) if row else ""
        count = f'<span class="quiet">{row.gaussians:,}</span>' if row else ""
        cells.append(_figure(o.image, f"Segment {o.id} alone", f"{swatch}<span>{o.id}</span>{count}"))
    shown = "Every segment" if len(objects) >= len(segments) else f"{len(objects)} of {len(segments)} segments"
    unseen = [s.id for s in segments if not s.views]
    hidden = f" No view shows {', '.join(map(str, unseen))}." if unseen else ""
    note = f'<p class="note">{shown} rendered alone: colour in the pictures, id and number of Gaussians.{hidden}</p>'
    return _section("Objects", f'{note}<div class="sheet">{"".join(cells)}</div>' if cells else "", len(cells))


def _segments(segments: Sequence[SegmentRow]) -> str:
    parts = any(s.parts for s in segments)
    columns = ("Segment", "Gaussians", "Size x × y × z", "Centre x, y, z", "Views", "Mean confidence", "Parts")
    rows = [
        [
            f"{_swatch(s.color)}{s.id}",
            f"{s.gaussians:,}",
            " × ".join(short_lengths(s.size, max(s.size))),
            ", ".join(short_lengths(s.centre, max(s.size))),
            f"{s.views:,}",
            f"{s.confidence:.3f}",
            *([" ".join(map(str, s.parts)) or NONE] if parts else []),
        ]
        for s in segments
    ]
    return _section("Segments", _table(columns if parts else columns[:-1], rows), len(rows))


def _scores(scores: Sequence[ViewScore]) -> str:
    rows = []
    for split in dict.fromkeys(s.split for s in scores):
        chosen = [s for s in scores if s.split == split]
        ssims = [s.ssim for s in chosen if s.ssim is not None]
        mean = [f"{np.mean([s.psnr for s in chosen]):.2f}", f"{np.mean(ssims):.4f}" if ssims else NONE]
        rows.append([f"<b>Mean of {len(chosen)}</b>", _split(split), *(f"<b>{m}</b>" for m in mean)])
    for s in scores:
        ssim = NONE if s.ssim is None else f"{s.ssim:.4f}"
        rows.append([escape(s.name), _split(s.split), f"{s.psnr:.2f}", ssim])
    return _section("Picture quality", _table(("View", "Split", "PSNR [dB]", "SSIM"), rows))


def _cost(seconds: Mapping[str, float], peak_rss_bytes: int | None) -> str:
    total = sum(seconds.values())
    longest = max(seconds.values(), default=0.0) or 1.0
    rows = [
        [
            escape(stage),
            _duration(s),
            f'<span class="bar" style="width:{100 * s / longest:.1f}%"></span>',
        ]
        for stage, s in seconds.items()
    ]
    if rows:
        rows.append(["<b>Total</b>", f"<b>{_duration(total)}</b>", ""])
    if peak_rss_bytes:
        rows.append(["<b>Peak memory</b>", f"<b>{peak_rss_bytes / 1e9:.2f} GB</b>", ""])
    return _section("Time and memory", _table(("Stage", "Wall time", ""), rows, kind="cost"))


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [[f"<code>{escape(k)}</code>", f"<code>{escape(v)}</code>"] for k, v in _flat(settings)]
    if not rows:
        return ""
    table = _table(("Setting", "Value"), rows)
    return f"<section><details><summary>Settings</summary>{table}</details></section>"


# --- pieces -------------------------------------------------------------------------------------------------


def _section(title: str, content: str, count: int | None = None) -> str:
    """Write a section, nothing without content; `count` says how many things it shows."""
    shown = f' <span class="quiet">{count:,}</span>' if count is not None else ""
    return f"<section><h2>{escape(title)}{shown}</h2>\n{content}</section>" if content else ""


def _table(columns: Iterable[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Write a table of cells that are HTML already; nothing without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll {kind}">{table}</div>'


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def _split(split: str) -> str:
    return f'<span class="split {"test" if split == "test" else ""}">{escape(split)}</span>' if split else ""


def _swatch(color: tuple[int, int, int]) -> str:
    return '<span class="swatch" style="background:#{:02x}{:02x}{:02x}"></span>'.format(*(int(c) for c in color))


def _figure(image: Picture | None, alt: str, caption: str) -> str:
    """Write a figure; `caption` is HTML already."""
    inside = f'<img src="{data_uri(image)}" alt="{escape(alt)}">' if image is not None else f"<div>{NONE}</div>"
    return f"<figure>{inside}<figcaption>{caption}</figcaption></figure>"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to (dotted name, text)."""
    found = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", str(value)))
    return found


def data_uri(image: Picture) -> str:
    """Encode an image as a data URI: JPEG, or PNG where it is see-through; shrunk to MAX_SIDE."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
        raise InputError(f"pictures of a report are uint8 [H, W, 3] or [H, W, 4], got {image.dtype} {image.shape}")
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if picture.mode == "RGBA":
        kind = "png"
        picture.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
