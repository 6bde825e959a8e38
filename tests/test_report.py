"""View room: the report's HTML and the pictures in it."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cgc.errors import InputError
from cgc.masks.id_maps import write_id_map
from cgc.pipeline.facts import headline
from cgc.pipeline.report import _report_disputes
from cgc.view.pictures import NOISE_COLOR, contact_sheet, number, overlay, segment_colors
from cgc.view.report import (
    MAX_SIDE,
    ReportData,
    ReportObject,
    ReportView,
    SegmentRow,
    Table,
    ViewScore,
    write_report,
)

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "</style></title><script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """Collect tags, attributes and text, and check that tags are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def images(self) -> list[Image.Image]:
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                match = re.fullmatch(r"data:image/(jpeg|png);base64,([A-Za-z0-9+/=]+)", attributes["src"] or "")
                assert match
                image = Image.open(io.BytesIO(base64.b64decode(match[2], validate=True)))
                assert (image.format or "").lower() == match[1]
                image.load()
                found.append(image)
        return found


def picture(height: int = 30, width: int = 40, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def full_report(text: str = "a cup") -> ReportData:
    return ReportData(
        title=text,
        subtitle=text,
        facts={"Things mIoU": "0.81", text: text},
        warnings=[text],
        notes=[text],
        views=[
            ReportView(text, "test", picture(), picture(seed=1), picture(seed=2), psnr=28.125),
            ReportView("left/001.jpg", text, picture(), picture(), None),
        ],
        objects=[ReportObject(1, picture()), ReportObject(2, picture(50, 50, 4))],
        segments=[SegmentRow(1, 1234, (0.1, 0.2, 0.3), (1.0, -2.0, 3.0), 7, 0.8765, (255, 0, 16))],
        scores=[ViewScore(text, "test", 28.0, 0.9), ViewScore("b", "test", 30.0), ViewScore("c", text, 20.0)],
        tables=[Table(text, (text, "IoU"), ((text, 0.123456), (None, 12345)))],
        seconds={text: 75.2, "train": 3.04},
        peak_rss_bytes=2_500_000_000,
        settings={"train": {"steps": 3000, text: text}, text: None},
    )


def write(tmp_path, report: ReportData) -> str:
    path = tmp_path / "report" / "index.html"
    write_report(path, report)
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    return path.read_text(encoding="utf-8")


def test_report_shows_everything(tmp_path):
    page = Page(write(tmp_path, full_report()))
    assert len(page.images()) == 7
    for shown in (
        "28.12 dB", "1,234", "0.100 × 0.200 × 0.300", "1.000, -2.000, 3.000", "0.876", "left/001.jpg", "29.00",
        "Mean of 2", "1 min 15 s", "3.0 s", "1 min 18 s", "2.50 GB", "train.steps", "3000",
        "0.9000", "0.1235", "12,345",
    ):  # fmt: skip
        assert shown in page.text, shown
    headings = re.findall(r"<h2>([^<]*?) ?<", write(tmp_path, full_report()))
    wanted = ["Warnings", "Notes", "Views", "Objects", "Segments", "Picture quality", "a cup", "Time and memory"]
    assert headings == wanted
    assert ("span", {"class": "swatch", "style": "background:#ff0010"}) in page.tags


def test_objects_left_out_are_counted(tmp_path):
    report = full_report()
    assert "Every segment rendered alone" in Page(write(tmp_path, report)).text
    more = dataclasses.replace(report, segments=[*report.segments] * 3)
    assert "2 of 3 segments rendered alone" in Page(write(tmp_path, more)).text


def test_report_is_self_contained(tmp_path):
    source = write(tmp_path, full_report())
    assert not re.search(r"https?:|file:|//|@import|url\(|<script|<link|<iframe", re.sub(r"base64,[^\"]*", "", source))
    page = Page(source)
    addresses = [v or "" for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "action")]
    assert addresses and all(a.startswith("data:image/") for a in addresses)
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]


def test_hostile_text_stays_text(tmp_path):
    tame, hostile = (Page(write(tmp_path, full_report(text))) for text in ("a cup", HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags]
    assert [sorted(attrs) for _, attrs in hostile.tags] == [sorted(attrs) for _, attrs in tame.tags]
    assert hostile.text.count(HOSTILE) == tame.text.count("a cup") > 10


def test_views_whose_masks_the_segments_cut_are_shown(tmp_path):
    masks = np.repeat([[5, 9]], 20, 0).repeat(10, 1)
    swapped = np.where(np.arange(20)[:, None] < 5, masks[:, ::-1], masks)
    for name, ids in (("cut", swapped), ("agrees", masks)):
        write_id_map(tmp_path / "masks" / f"{name}.png", ids)
    work: Any = SimpleNamespace(
        train_views=[0, 1], masks=SimpleNamespace(load=lambda view: masks), run=SimpleNamespace(root=tmp_path),
        scene=SimpleNamespace(views=[SimpleNamespace(name="agrees.jpg"), SimpleNamespace(name="cut.jpg")]),
        picture_names=["agrees", "cut"], photo=lambda view: picture(20, 20),
    )  # fmt: skip
    [found] = _report_disputes(work)
    assert (found.view, found.share) == ("cut.jpg", 0.25)
    page = Page(write(tmp_path, ReportData(title="cut", disputes=[found])))
    assert "cut.jpg" in page.text and "25.0 %" in page.text and len(page.images()) == 3


def test_empty_parts_are_left_out(tmp_path):
    page = Page(write(tmp_path, ReportData(title="nothing yet")))
    assert not {tag for tag, _ in page.tags} & {"table", "img", "section", "aside", "dl", "details"}
    assert page.text.split() == ["nothing", "yet"] * 2


def test_large_pictures_are_shrunk(tmp_path):
    view = ReportView("a", "test", np.zeros((30, 2 * MAX_SIDE, 3), np.uint8), None, None)
    page = Page(write(tmp_path, ReportData(title="large", views=[view])))
    assert [image.size for image in page.images()] == [(MAX_SIDE, 15)]


@pytest.mark.parametrize("bad", [np.zeros((3, 4, 3), np.float32), np.zeros((3, 4), np.uint8)])
def test_pictures_of_another_kind(tmp_path, bad):
    report = dataclasses.replace(full_report(), objects=[ReportObject(1, bad)])
    with pytest.raises(InputError, match="uint8"):
        write_report(tmp_path / "index.html", report)
    assert not list(tmp_path.iterdir())


# --- pictures ---------------------------------------------------------------------------------------------


def test_colors_are_stable_and_distinct():
    colors = segment_colors(range(1, 201))
    assert colors.dtype == np.uint8 and colors.shape == (200, 3)
    np.testing.assert_array_equal(segment_colors([7, 3, 7]), colors[[6, 2, 6]])
    np.testing.assert_array_equal(segment_colors([0, -1]), [NOISE_COLOR] * 2)
    assert segment_colors([]).shape == (0, 3)
    everything = np.concatenate([colors, [NOISE_COLOR]]).astype(float)
    distance = np.linalg.norm(everything[:, None] - everything[None], axis=-1) + 1e9 * np.eye(201)
    assert distance.min() >= 6
    assert distance[:20, :20].min() >= 30


def test_overlay_colours_segments_and_draws_borders():
    photo = np.full((8, 10, 3), 100, np.uint8)
    ids = np.zeros((8, 10), np.int32)
    ids[:, 5:] = 3
    shown = overlay(photo, ids, alpha=0.5)
    assert shown.dtype == np.uint8 and shown.shape == photo.shape
    colour = segment_colors([3])[0].astype(float)
    np.testing.assert_allclose(shown[0, 9], 0.5 * 100 + 0.5 * colour, atol=1)
    np.testing.assert_allclose(shown[0, 0], 0.5 * 100 + 0.5 * np.array(NOISE_COLOR), atol=1)
    assert shown[4, 4].min() > 200  # light before the border,
    assert (shown[4, 5] < shown[4, 9]).all()  # dark behind it
    np.testing.assert_array_equal(shown[:, 6], shown[:, 9])  # and thin
    np.testing.assert_array_equal(overlay(photo, np.zeros_like(ids), alpha=0.0), photo)
    with pytest.raises(InputError, match=r"\(8, 10\)"):
        overlay(photo, ids[:4])


def test_contact_sheet_places_images():
    images = [np.full((4, 6, 3), 10 * i, np.uint8) for i in range(1, 4)] + [np.full((2, 2, 3), 99, np.uint8)]
    sheet = contact_sheet(images, 3, gap=1)
    assert sheet.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    np.testing.assert_array_equal(sheet[1:5, 1:7], images[0])
    np.testing.assert_array_equal(sheet[1:5, 15:21], images[2])
    np.testing.assert_array_equal(sheet[7:9, 3:5], images[3])
    assert (sheet == 255).all(axis=-1).sum() == sheet[..., 0].size - 3 * 24 - 4
    assert contact_sheet(images[:1], 5, gap=0).shape == (4, 6, 3)
    with pytest.raises(InputError, match="at least one image"):
        contact_sheet([], 3)


def test_ids_are_written_where_their_segments_have_room():
    ids = np.zeros((120, 160), np.int64)
    ids[10:60, 10:90], ids[80:83, :] = 7, 12
    picture = np.full((120, 160, 3), 100, np.uint8)
    drawn = number(picture, ids)
    changed = (drawn != picture).any(2)
    rows, columns = np.nonzero(changed)
    assert changed.any() and (ids[changed] == 7).all()  # neither the background nor what is too thin
    assert abs(rows.mean() - 34.5) < 3 and 30 < columns.mean() < 70  # amid it
    assert drawn[changed].max() > 200 and drawn[changed].min() == 0  # white in black
    assert np.array_equal(number(picture, np.where(ids == 7, -1, 0)), picture)


def test_numbers_of_gaussians_are_those_of_the_splats_that_are_shown():
    stats = {"gaussians": 1000, "segments": 3, "sharpened": {"used": True, "gaussians": 1200}}
    assert headline(stats)["Gaussians"] == "1,200"
    assert headline(stats | {"sharpened": {"used": False, "gaussians": 1200}})["Gaussians"] == "1,000"
    assert headline(stats | {"sharpened": None})["Gaussians"] == "1,000"
