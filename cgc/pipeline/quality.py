"""How near the pictures come to the photos, and the id maps to the truth, as stats.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cgc.evaluation.instances import InstanceScores
from cgc.evaluation.pictures import psnr, ssim
from cgc.evaluation.truth import Truth
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import ViewFacts
from cgc.splats.types import Splats

DARK = 0.05  # pixels whose picture is darker do not tell how much brighter a photo is


class Measures(NamedTuple):
    """PSNR and SSIM of a view's picture against its photo, and how many times as bright the photo is."""

    psnr: float
    ssim: float
    brightness: float


def measure_view(work: Workspace, index: int, splats: Splats) -> Measures:
    """Measure a view's picture against its photo, exposed alike where that was learned."""
    shown, photo = work.picture_and_photo(index, splats)
    return Measures(psnr(shown, photo), ssim(shown, photo), brightness(shown, photo))


def brightness(shown: np.ndarray, photo: np.ndarray) -> float:
    """Return how many times as bright as a picture a photo is, [H, W, 3] each: the median over pixels not too dark."""
    grey, taken = shown.mean(2), photo.mean(2)
    lit = grey > DARK
    return float(np.median(taken[lit] / grey[lit])) if lit.any() else 1.0


def quality_facts(work: Workspace, measured: Mapping[int, Measures]) -> dict[str, Any]:
    """The views' measures and their means over each split as stats.json has them; None where a split has no view.

    `uneven` is by what share the brightness of training photos differs from their pictures', the standard deviation.
    """
    tests, names = set(work.test_views), [view.name for view in work.scene.views]
    quality: dict[str, ViewFacts] = {
        names[i]: {"split": "test" if i in tests else "train", "psnr": m.psnr, "ssim": m.ssim}
        for i, m in measured.items()
    }
    facts: dict[str, Any] = {"quality": quality}
    for split in ("train", "test"):
        for measure in ("psnr", "ssim"):
            values = [q[measure] for q in quality.values() if q["split"] == split]
            facts[f"{measure}_{split}"] = round(float(np.mean(values)), 4) if values else None
    ratios = [max(m.brightness, DARK) for i, m in measured.items() if i not in tests]
    facts["uneven"] = round(float(np.log(ratios).std()), 4) if ratios else None
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
