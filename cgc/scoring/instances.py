"""Score id maps: true things, prompts, and the Gaussians themselves where surfaces are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cgc.errors import some
from cgc.evaluation.gaussians import adjusted_rand, read_samples, true_labels
from cgc.evaluation.instances import MIN_PIXELS, InstanceScores, score_instances, trace_instances
from cgc.evaluation.prompts import Level, PromptRow, PromptScores, score_prompts
from cgc.evaluation.truth import Truth, merge_parts
from cgc.scoring.cases import Case
from cgc.scoring.report import Report, rounded
from cgc.scoring.runs import ScoredRun

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Titles and rows."""

PROMPTS: dict[str, dict[str, Any]] = {
    "1 click": {"prompt": "click", "clicks": 1},
    "2 clicks": {"prompt": "click", "clicks": 2},
    "mask": {"prompt": "mask"},
}


INSTANCE_DEFINITION = (
    "true things matched one-to-one to predicted ids by IoU over all views at once; unmatched things count 0"
)


def report_instances(run: ScoredRun | None, case: Case) -> Report:
    """Score id maps against the true things, and the Gaussians of a run where there is one; a row a thing and view."""
    truth, guess = case.truth, case.predicted[None]
    scores = score_instances(truth.maps, guess, truth.stuff_ids, case.ignore_id)
    notes = [*case.notes, *_left_out(scores, truth)]
    found = {
        "miou_things": scores.miou_things, "miou_all": scores.miou_all, "boundary_iou": scores.boundary_iou,
        "pq": scores.pq, "sq": scores.sq, "rq": scores.rq, "recall_iou50": scores.recall_iou50,
    }  # fmt: skip
    counts = {
        "things": len(scores.rows), "true_positives": scores.true_positives,
        "false_positives": scores.false_positives, "false_negatives": scores.false_negatives,
        "missing_views": scores.missing_views,
    }  # fmt: skip
    found |= _ari(run, case, notes)
    labels = {
        "miou_things": "Things mIoU", "boundary_iou": "Boundary IoU", "pq": "Panoptic quality",
        "recall_iou50": "Things above IoU 0.5", "miou_all": "mIoU with stuff", "ari": "ARI of Gaussians",
        "ari_things": "ARI of things' Gaussians",
    }  # fmt: skip
    rows = [
        {"id": r.id, "name": truth.names[r.id], **{k: v for k, v in vars(r).items() if k != "id"}} for r in scores.rows
    ]
    views = [
        {"view": case.stems[v.view], "id": v.id, "name": truth.names[v.id], **_rest(v, "view", "id")}
        for v in trace_instances(truth.maps, guess, scores, case.ignore_id)
    ]
    summary = {"truth": str(case.root), "truth_level": case.level, "views": case.stems, **rounded(found), **counts}
    hidden = () if truth.stuff_ids else ("miou_all",)
    means_table = [(label, found[k]) for k, label in labels.items() if k in found and k not in hidden]
    things = [
        (r["name"], r["predicted"] or "none", r["iou"], r["boundary_iou"], r["pixels"])
        for r in sorted(rows, key=lambda r: -r["iou"])
    ]
    columns = ("view", "id", "name", "predicted", "true_pixels", "predicted_pixels", "shared_pixels")
    return Report(
        "instances",
        INSTANCE_DEFINITION,
        summary,
        [
            (("", f"{len(scores.rows)} things"), means_table),
            (("thing", "segment", "IoU", "boundary", "pixels"), things),
        ],
        ((*columns, "true_band", "predicted_band", "shared_band"), views),
        (("id", "name", "pixels", "predicted", "iou", "boundary_iou"), rows),
        notes,
    )


def _too_small(truth: Truth, skipped: Sequence[int]) -> str:
    return f"left out, under {MIN_PIXELS} pixels in these views: {some(truth.names[i] for i in skipped)}"


def _left_out(scores: InstanceScores, truth: Truth) -> list[str]:
    """Say which true ids were not scored."""
    shown = {r.id for r in scores.rows} | set(scores.skipped) | truth.stuff_ids
    said = []
    if scores.skipped:
        said.append(_too_small(truth, scores.skipped))
    if absent := [name for i, name in truth.names.items() if i not in shown]:
        said.append(f"left out, not seen in these views: {some(absent)}")
    return said


def _ari(run: ScoredRun | None, case: Case, notes: list[str]) -> dict[str, float]:
    """The adjusted Rand index of the run's labels, where the scene has surface samples."""
    path = case.root / "points.npz"
    if run is None or not path.exists() or not (case.root / "instances.json").exists():
        return {}
    samples = read_samples(path)
    found = run.work.segmentation()
    origin = np.array(run.work.run.stats.get("origin") or (0.0, 0.0, 0.0))  # samples are in the model's world
    truth = true_labels(found.splats.means.detach().cpu().numpy().astype(float) + origin, samples)
    truth = merge_parts(case.root, truth) if case.level == "object" else truth
    labels = found.labels
    known = int((truth > 0).sum())
    notes.append(f"ARI: {known:,} of {len(truth):,} Gaussians lie on a true surface; the others have no truth")
    every = adjusted_rand(truth, labels)
    things = adjusted_rand(np.where(np.isin(truth, list(case.truth.stuff_ids)), 0, truth), labels)
    return {k: v for k, v in (("ari", every), ("ari_things", things)) if v is not None}


PROMPT_DEFINITION = (
    "each object is prompted in the view where it is largest; mean IoU of what is picked, pooled over the other views"
)


def report_prompts(case: Case) -> Report:
    """Prompt each true thing in the view where it is largest, at every level; the best levels are upper bounds."""
    truth = case.truth
    predicted = {
        level: [np.zeros_like(t) if m is None else m for m, t in zip(maps, truth.maps)]
        for level, maps in case.predicted.items()
    }
    found = {
        name: score_prompts(
            truth.maps, predicted, left_out=truth.stuff_ids, ignore_id=case.ignore_id, parts=case.parts, **asked
        )
        for name, asked in PROMPTS.items()
    }
    summary: dict[str, Any] = {"truth": str(case.root), "truth_level": case.level, "views": case.stems}
    table, instances, views = [], [], []
    for name, scores in found.items():
        common, rows = scores.common_level, scores.at(scores.common_level)
        of_views = float(np.mean([r.iou_of_views for r in rows]))
        facts = {"miou": scores.miou(common), "miou_of_views": of_views, "objects": len(rows), "level": common}
        if len(scores.levels) > 1:
            facts |= {f"miou_level_{_level(level)}": scores.miou(level) for level in scores.levels}
            facts["miou_best_levels_upper_bound"] = float(np.mean([r.iou for r in scores.best]))
        summary[name] = rounded(facts)
        table.append((name, facts["miou"], of_views, len(rows), _level(common)))
        instances += [_prompt_row(name, r, case, scores) for r in scores.rows]
        views += [
            {
                "prompt": name, "level": _level(r.level), "id": r.id, "name": truth.names[r.id], "view": case.stems[v],
                "true_pixels": c.true, "predicted_pixels": c.predicted, "shared_pixels": c.shared, "iou": c.iou,
            }
            for r in scores.rows for v, c in r.views.items() if c.true or c.predicted
        ]  # fmt: skip
    first = next(iter(found.values()))
    notes = list(case.notes)
    tables: list[Table] = [(("prompt", "mIoU", "mean of views", "objects", "level"), table)]
    if len(first.levels) > 1:
        tables.append(_best_levels(found, truth))
    if first.one_view:
        notes.append(f"left out, seen in one view only: {some(truth.names[i] for i in first.one_view)}")
    if first.skipped:
        notes.append(_too_small(truth, first.skipped))
    if len(first.levels) > 1:
        notes.append(
            "the level is the one that is best for all objects together, which the truth says; see summary.json"
        )
    return Report(
        "prompts",
        PROMPT_DEFINITION,
        summary,
        tables,
        (tuple(views[0]), views),
        (tuple(instances[0]), instances),
        notes,
    )


def _best_levels(found: dict[str, PromptScores], truth: Truth) -> Table:
    """A table of each object at its own best level, an upper bound, with the level for each prompt."""
    titles = ("at its best level", *(title for name in found for title in (name, "level")))
    best = {name: {row.id: row for row in scores.best} for name, scores in found.items()}
    ids = list(next(iter(best.values())))
    rows = [
        (truth.names[i], *(cell for name in found for cell in (best[name][i].iou, _level(best[name][i].level))))
        for i in ids
    ]
    means = [cell for name in found for cell in (float(np.mean([r.iou for r in best[name].values()])), "")]
    return titles, [*rows, ("mean (upper bound)", *means)]


def _prompt_row(prompt: str, row: PromptRow, case: Case, scores: PromptScores) -> dict[str, Any]:
    clicks = "; ".join(f"{'+' if c.positive else '-'} {c.x} {c.y}" for c in row.clicks)
    return {
        "prompt": prompt, "level": _level(row.level), "id": row.id, "name": case.truth.names[row.id],
        "prompt_view": case.stems[row.prompt_view], "clicks": clicks, "predicted": " ".join(map(str, row.predicted)),
        "iou": row.iou, "iou_of_views": row.iou_of_views, "best_level": any(row is b for b in scores.best),
    }  # fmt: skip


def _level(level: Level) -> str:
    return "own" if level is None else f"{level:g}"


def _rest(row: Any, *without: str) -> dict[str, Any]:
    return {k: v for k, v in vars(row).items() if k not in without}
