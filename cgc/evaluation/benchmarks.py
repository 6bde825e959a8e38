"""Score predicted masks by a benchmark's protocol: a row for each true mask, and the means its authors report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from cgc.errors import InputError, some
from cgc.evaluation.binary import Counts, boundary, count
from cgc.evaluation.protocols.base import Benchmark, TrueMask

Predict = Callable[[TrueMask, np.ndarray], np.ndarray | None]
"""The predicted mask [H, W] bool of a true one (given, with its pixels), at its size; None where there is none."""


@dataclass(frozen=True)
class MaskRow:
    """The score of one true mask. `missing`: there was no prediction, which counts as an empty one."""

    scene: str
    view: str
    prompt: str
    pixels: Counts
    band: Counts
    accuracy: float
    missing: bool
    reference: bool

    @property
    def iou(self) -> float:
        """Intersection over union."""
        return self.pixels.iou

    @property
    def boundary_iou(self) -> float:
        """Intersection over union of the inner borders."""
        return self.band.iou


@dataclass(frozen=True)
class BenchmarkScores:
    """`rows` of every true mask that shows something; `empty` ones are left out: their IoU would be 0/0."""

    rows: tuple[MaskRow, ...]
    empty: tuple[TrueMask, ...]


def score_masks(benchmark: Benchmark, masks: Iterable[TrueMask], predict: Predict) -> BenchmarkScores:
    """Score the prediction of each true mask; InputError where all of them are empty."""
    pointed = {(r.scene, r.view, r.prompt) for r in benchmark.references}
    rows, empty = [], []
    for mask in masks:
        true = mask.load()
        if not true.any():
            empty.append(mask)
            continue
        found = predict(mask, true)
        guess = np.zeros_like(true) if found is None else found
        rows.append(
            MaskRow(
                mask.scene, mask.view, mask.prompt, count(true, guess), count(boundary(true), boundary(guess)),
                float((true == guess).mean()), found is None, (mask.scene, mask.view, mask.prompt) in pointed,
            )
        )  # fmt: skip
    if not rows:
        raise InputError(
            f"all true masks are empty ({some(m.path for m in empty)}), so there is nothing to score; restore them"
        )
    return BenchmarkScores(tuple(rows), tuple(empty))


def means(benchmark: Benchmark, rows: Iterable[MaskRow]) -> dict[str, float]:
    """The means of one scene's rows as the protocol defines them: miou, boundary_iou; accuracy; and the pooled IoU.

    `miou_others` leaves out the view that was pointed at, where the protocol counts it.
    """
    rows = list(rows)
    groups = [[r for r in rows if r.prompt == p] for p in dict.fromkeys(r.prompt for r in rows)]
    groups = groups if benchmark.mean == "prompts" else [rows]

    def mean(value: Callable[[MaskRow], float]) -> float:
        return float(np.mean([np.mean([value(r) for r in group]) for group in groups]))

    found = {
        "miou": mean(lambda r: r.iou),
        "boundary_iou": mean(lambda r: r.boundary_iou),
        "iou_pooled": sum((r.pixels for r in rows), Counts(0, 0, 0)).iou,
    }
    if benchmark.references:  # a scene has one object: the share of pixels that are right
        found["accuracy"] = mean(lambda r: r.accuracy)
    others = [r.iou for r in rows if not r.reference]
    if others and len(others) < len(rows):
        found["miou_others"] = float(np.mean(others))
    return found
