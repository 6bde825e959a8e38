"""The step `export`: one PLY a segment."""

from __future__ import annotations

import time

from cgc.pipeline.workspace import Workspace
from cgc.segmentation.segments import export_segments


def export(work: Workspace) -> str:
    """Write every segment as a plain 3DGS PLY; writes segments/."""
    start = time.perf_counter()
    segmentation = work.segmentation()
    with work.run.changing("export"):
        paths = export_segments(work.run.root, segmentation, origin=work.run.stats.get("origin"))
        (work.run.root / "segments").mkdir(exist_ok=True)
    work.run.finish("export", time.perf_counter() - start)
    return f"{len(paths)} objects: {work.run.root / 'segments'}"


def export_at(work: Workspace, level: float) -> str:
    """Write every segment of a level as a plain 3DGS PLY; writes segments_at_LEVEL/, which no step needs."""
    name = f"segments_at_{level:g}"
    shown, origin = work.segmentation().at_level(level), work.run.stats.get("origin")
    paths = export_segments(work.run.root, shown, name, origin)
    return f"{len(paths)} segments: {work.run.root / name}"
