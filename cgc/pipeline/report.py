"""The step `report`: the page a person looks at first."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from cgc.errors import InputError
from cgc.masks.id_maps import disagree, read_id_map
from cgc.pipeline.facts import find_warnings, headline, truth_table
from cgc.pipeline.quality import measure_view, quality_facts
from cgc.pipeline.render import label_renderer
from cgc.pipeline.workspace import Workspace
from cgc.progress import progress_bar
from cgc.rasterize.base import Rasterizer
from cgc.run_folder import ViewFacts
from cgc.scene.types import Camera
from cgc.segmentation.colors import segment_colors
from cgc.segmentation.labels import render_rgb
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import Segment, load_table
from cgc.settings import to_json
from cgc.splats.types import Splats
from cgc.view.pictures import mark, number, overlay
from cgc.view.report import (
    ReportData,
    ReportDispute,
    ReportLevel,
    ReportObject,
    ReportView,
    SegmentRow,
    ViewScore,
    write_report,
)

REPORT_VIEWS = 8
"""Views shown in the report, test views first."""
REPORT_DISPUTES = 3
"""Views shown in which masks and result disagree most."""
BEYOND = 0.3
"""How far beyond its best view an object is rendered, times the view's sides."""
REPORT_OBJECTS = 80
"""Objects rendered alone in the report, largest first."""


def report(work: Workspace) -> str:
    """Write the page a person looks at first; writes report/index.html."""
    start = time.perf_counter()
    run, target = work.run, work.run.root / "report" / "index.html"
    labelled = (run.root / "segments.json").exists()
    run.require("render" if labelled else "train")
    if labelled:
        work.check_masks()
    segmentation = work.segmentation() if labelled else None
    table = load_table(run.root) if labelled else []
    if not labelled:  # nothing was rendered yet
        views = range(len(work.scene.views))
        run.stats.update(quality_facts(work, {i: measure_view(work, i, work.splats) for i in views}))
    quality, names = run.stats["quality"], [view.name for view in work.scene.views]
    views = [_report_view(work, i, segmentation, quality.get(names[i])) for i in _report_views(work)]
    data = ReportData(
        title=run.root.name,
        subtitle=f"{len(work.scene.views)} views, {len(work.train_views)} learned from",
        facts=headline(run.stats),
        warnings=find_warnings(run.stats),
        notes=work.scene.notes,
        views=views,
        objects=_report_objects(work, segmentation, table) if segmentation is not None else [],
        segments=[_segment_row(s) for s in table],
        levels=_report_levels(work, segmentation, table) if segmentation is not None else [],
        disputes=_report_disputes(work) if segmentation is not None else [],
        scores=[ViewScore(name, q["split"], q["psnr"], q["ssim"]) for name, q in quality.items()],
        tables=truth_table(run.stats),
        seconds=run.stats["seconds"],
        peak_rss_bytes=run.stats.get("peak_rss_bytes"),
        settings=to_json(run.settings),
    )
    with run.changing("report"):
        write_report(target, data)
    run.finish("report", time.perf_counter() - start)
    return f"report: {target}"


def _report_objects(work: Workspace, segmentation: Segmentation, table: list[Segment]) -> list[ReportObject]:
    """The largest objects, each alone and as the view sees it that shows most of it."""
    by_name = {v.name: v for v in work.scene.views}
    objects = []
    with progress_bar("objects", min(len(table), REPORT_OBJECTS), quiet=work.quiet) as bar:
        for segment in table[:REPORT_OBJECTS]:
            if segment.best_view in by_name:
                camera = by_name[segment.best_view].camera
                image = _render_object(segmentation[segment.id].splats(clean=True), camera, work.rasterizer)
                objects.append(ReportObject(segment.id, image))
            bar.advance()
    return objects


def _segment_row(s: Segment) -> SegmentRow:
    red, green, blue = segment_colors(np.array([s.id]))[0].tolist()
    return SegmentRow(s.id, s.gaussians, s.size, s.centre, s.views, s.confidence, (red, green, blue), s.children)


def _report_levels(work: Workspace, segmentation: Segmentation, table: list[Segment]) -> list[ReportLevel]:
    """A view at a coarser level, at the objects' and at a finer one, where there are parts or wholes.

    The view is the best one of the largest object that has parts.
    """
    tree = segmentation.hierarchy
    stops, base = tree.stops, tree.base_stop
    by_name = {v.name: i for i, v in enumerate(work.scene.views)}
    best = [s.best_view for s in sorted(table, key=lambda s: not s.children) if s.best_view in by_name]
    if len(stops) < 2 or not best or not work.has_levels:
        return []
    chosen = {"Objects": tree.base}
    if base > 0:
        chosen = {"Coarser": float(stops[base // 2]), **chosen}
    if base < len(stops) - 1:
        chosen["Finer"] = float(stops[(base + len(stops)) // 2])
    index = by_name[best[0]]
    view = work.scene.views[index]
    pictures = label_renderer(work, segmentation)(view.camera, list(chosen.values()))
    photo = work.photo(index)
    return [
        ReportLevel(f"{name}: level {level:.2g}", view.name, number(overlay(photo, picture.ids), picture.ids))
        for (name, level), picture in zip(chosen.items(), pictures)
    ]


def _report_views(work: Workspace) -> list[int]:
    """The views the report shows: test views, evenly, then training views, evenly, in order of the capture."""
    test, train = work.test_views, work.train_views
    n_test = min(len(test), max(REPORT_VIEWS - len(train), REPORT_VIEWS * 3 // 4))
    return sorted(_evenly(test, n_test) + _evenly(train, REPORT_VIEWS - n_test))


def _evenly(items: list[int], n: int) -> list[int]:
    if n >= len(items):
        return list(items)
    return [items[int((k + 0.5) * len(items) / n)] for k in range(n)]


def _report_view(work: Workspace, index: int, segmentation: Segmentation | None, score: ViewFacts | None) -> ReportView:
    view = work.scene.views[index]
    photo = work.photo(index)
    splats = work.splats if segmentation is None else segmentation.splats
    shown = (255 * render_rgb(splats, view.camera, work.rasterizer, work.background)).round().astype(np.uint8)
    colored = masks = None
    if segmentation is not None:
        ids = _result(work, index)
        colored = number(overlay(photo, ids), ids)
        masks = overlay(photo, work.masks.load(index)) if work.masks.paths[index] else None
    split = "test" if index in set(work.test_views) else "train"
    return ReportView(view.name, split, photo, shown, colored, score["psnr"] if score else None, masks)


def _result(work: Workspace, index: int) -> np.ndarray:
    """The id map that was rendered of a view, [H, W]."""
    path = work.run.root / "masks" / f"{work.picture_names[index]}.png"
    if not path.is_file():  # which runs of older versions do not notice before
        raise InputError(f"{path}, which the run has rendered, is gone: run `cgc render {work.run.root}` first")
    return read_id_map(path)


def _report_disputes(work: Workspace) -> list[ReportDispute]:
    """The training views whose masks the segments cut the most, and where."""
    shares = {}
    for i in work.train_views:
        masks = work.masks.load(i)
        if masks.any():
            shares[i] = float(disagree(masks, _result(work, i)).sum() / (masks > 0).sum())
    shown = []
    for i in sorted(shares, key=lambda i: -shares[i])[:REPORT_DISPUTES]:
        view, masks, ids = work.scene.views[i], work.masks.load(i), _result(work, i)
        photo = work.photo(i)
        marked = mark(photo, disagree(masks, ids))
        result = number(overlay(photo, ids), ids)
        shown.append(ReportDispute(view.name, shares[i], overlay(photo, masks), result, marked))
    return [d for d in shown if d.share > 0]


def _render_object(splats: Splats, camera: Camera, rasterizer: Rasterizer) -> np.ndarray:
    """Render Gaussians alone, cut to where they show, uint8 [h, w, 4], see-through elsewhere.

    The picture is larger than the camera's, so that what its edge cuts is shown whole.
    """
    wide, high = (round(BEYOND * side) for side in (camera.width, camera.height))
    K = camera.K.clone()
    K[0, 2] += wide
    K[1, 2] += high
    camera = replace(camera, K=K, width=camera.width + 2 * wide, height=camera.height + 2 * high)
    with torch.no_grad():
        picture = rasterizer.render(splats, splats.colors(camera.position), [camera])
    alpha = picture.alphas[0].cpu().numpy()
    color = picture.values[0].cpu().numpy() / np.maximum(alpha, 1e-6)[..., None]
    rgba = (255 * np.dstack([color, alpha]).clip(0, 1)).round().astype(np.uint8)
    shows = alpha > 0.3
    if not shows.any():
        return rgba
    margin = 6
    rows, columns = np.flatnonzero(shows.any(1)), np.flatnonzero(shows.any(0))
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    return rgba[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]
