"""How near the pictures come to the photos, and the id maps to the truth, as stats.json has it."""

from __future__ import annotations

from typing import Any

import numpy as np

from cgc.evaluation.instances import InstanceScores
from cgc.evaluation.pictures import psnr, ssim
from cgc.evaluation.truth import Truth
from cgc.pipeline.workspace import Workspace
from cgc.scene.images import load_image
from cgc.segmentation.labels import render_rgb
from cgc.splats.types import Splats

Quality = dict[str, dict[str, float | str]]
"""Of each view, by its name: its split, psnr and ssim."""


def view_quality(work: Workspace, index: int, splats: Splats) -> dict[str, float | str]:
    """Render a view's photo and measure it against the photo."""
    return quality_of(work, index, *measure_view(work, index, splats))


def quality_of(work: Workspace, index: int, psnr_of: float, ssim_of: float) -> dict[str, float | str]:
    """What is kept of a view's measures."""
    split = "test" if index in set(work.test_views) else "train"
    return {"split": split, "psnr": psnr_of, "ssim": ssim_of}


def measure_view(work: Workspace, index: int, splats: Splats) -> tuple[float, float]:
    """Return PSNR and SSIM of a view's picture against its photo, exposed alike where that was learned."""
    view = work.scene.views[index]
    photo = load_image(view).astype(np.float32) / 255
    shown = render_rgb(splats, view.camera, work.rasterizer, work.background, work.exposures.get(index))
    return psnr(shown, photo), ssim(shown, photo)


def quality_facts(quality: Quality) -> dict[str, Any]:
    """The views' measures and their means over each split as stats.json has them; None where a split has no view."""
    facts: dict[str, Any] = {"quality": quality}
    for split in ("train", "test"):
        for measure in ("psnr", "ssim"):
            values = [float(q[measure]) for q in quality.values() if q["split"] == split]
            facts[f"{measure}_{split}"] = round(float(np.mean(values)), 4) if values else None
    return facts


def score_facts(scores: InstanceScores, truth: Truth) -> dict[str, object]:
    """The scores as stats.json has them, a row per true thing among them."""
    rows = [{"name": truth.names[r.id], **vars(r)} for r in scores.rows]
    return {
        "miou_things": round(scores.miou_things, 4),
        "boundary_iou": round(scores.boundary_iou, 4),
        "pq": round(scores.pq, 4),
        "instances": rows,
    }
