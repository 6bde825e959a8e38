"""Score runs, or masks from a folder, by the protocol of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgc.errors import InputError, some
from cgc.evaluation.benchmarks import BenchmarkScores, means, score_masks
from cgc.evaluation.binary import Counts, count
from cgc.evaluation.prompts import Level, mask_ids, scribble_ids
from cgc.evaluation.protocols import lerf_mask, nvos, ovs3d, spin_nerf
from cgc.evaluation.protocols.base import (
    Benchmark,
    Reference,
    TrueMask,
    find_view,
    find_views,
    read_mask,
    scenes_of,
)
from cgc.evaluation.selection import Selection, best_ids, read_selection, write_selection
from cgc.masks.id_maps import resize_nearest
from cgc.scoring.report import Report, check_shape, rounded, size_text
from cgc.scoring.runs import ScoredRun, learned_from
from cgc.settings import EvalSettings

READERS: dict[str, Callable[[Path], Benchmark]] = {
    "lerf-mask": lerf_mask.read,
    "3d-ovs": ovs3d.read,
    "nvos": nvos.read,
    "spin-nerf": spin_nerf.read,
}


Pick = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[int]]
"""What picks ids by masks [H, W] bool and id maps [H, W] of their views."""

MEASURES = {
    "miou": "mIoU",
    "miou_others": "others' mIoU",
    "boundary_iou": "boundary",
    "accuracy": "accuracy",
    "iou_pooled": "pooled IoU",
}
UPPER_BOUND = "UPPER BOUND (the truth chose the level and the segments, by their IoU over all views)"


def report_benchmark(runs: list[ScoredRun], settings: EvalSettings) -> Report:
    """Score runs, or the masks of a folder, by a benchmark's protocol."""
    if settings.truth is None:
        raise InputError(f"{settings.protocol} needs the benchmark's folder; give it with --truth DIR")
    if settings.select and settings.selection:
        raise InputError("--select oracle and --selection FILE both choose the segments; give one of them")
    benchmark = READERS[settings.protocol](settings.truth)
    notes = list(benchmark.notes)
    selections: dict[str, Selection] = {}
    if settings.predictions is not None:
        if settings.select or settings.selection or settings.write_selection:
            raise InputError("masks from a folder have no segments to select; leave out the selection options")
        scenes = [s for r in runs for s in _scenes(r, benchmark)] or list(benchmark.scenes)
        results = [(s, None, _score_folder(benchmark, s, settings.predictions, notes)) for s in scenes]
    else:
        owners = [(s, r) for r in runs for s in _scenes(r, benchmark)]
        if len({s for s, _ in owners}) < len(owners):
            raise InputError(
                f"the runs {some(r.root for r in runs)} are of one scene of the benchmark; score them one by one"
            )
        results = [(s, r, _score_run(benchmark, s, r, settings, selections, notes)) for s, r in owners]
    by_scene = {scene: means(benchmark, scores.rows) for scene, _, scores in results}
    every = [k for k in MEASURES if all(k in m for m in by_scene.values())]
    overall = {k: float(np.mean([m[k] for m in by_scene.values()])) for k in every}
    rows = [
        {
            "scene": r.scene, "view": r.view, "prompt": r.prompt, "true_pixels": r.pixels.true,
            "predicted_pixels": r.pixels.predicted, "shared_pixels": r.pixels.shared, "iou": r.iou,
            "boundary_iou": r.boundary_iou, "accuracy": r.accuracy, "missing": r.missing, "reference": r.reference,
        }
        for _, _, scores in results for r in scores.rows
    ]  # fmt: skip
    notes += [n for r in runs for n in r.notes]
    for scene, _, scores in results:
        if scores.empty:
            notes.append(f"{scene}: left out, empty truth: {some(f'{m.view}/{m.prompt}' for m in scores.empty)}")
        if missing := [f"{r.view}/{r.prompt}" for r in scores.rows if r.missing]:
            notes.append(f"{scene}: {len(missing)} predictions are missing and count as 0: {some(missing)}")
        if nothing := [f"{r.view}/{r.prompt}" for r in scores.rows if not r.missing and not r.pixels.predicted]:
            notes.append(f"{scene}: {len(nothing)} predictions are empty and count as 0: {some(nothing)}")
        if absent := [p for p in benchmark.prompts(scene) if p not in {r.prompt for r in scores.rows}]:
            notes.append(f"{scene}: left out, no view shows it: {some(absent)}")
    if settings.write_selection is not None:
        write_selection(settings.write_selection, selections)
    bound = settings.select == "oracle"
    counts = {scene: len(scores.rows) for scene, _, scores in results}
    table = [(s, counts[s], *(m[k] for k in every)) for s, m in by_scene.items()]
    if len(by_scene) > 1:
        table.append(("mean", sum(counts.values()), *overall.values()))
    instances = [
        _prompt_means(benchmark, scene, p, scores, selections)
        for scene, _, scores in results
        for p in benchmark.prompts(scene)
    ]
    return Report(
        benchmark.protocol,
        f"{UPPER_BOUND}: {benchmark.definition}" if bound else benchmark.definition,
        {
            "upper_bound": bound, "truth": str(settings.truth),
            "predictions": str(settings.predictions) if settings.predictions else None,
            "selection": str(settings.selection) if settings.selection else settings.select,
            "runs": {s: str(r.root) for s, r, _ in results if r}, "selected": selections,
            **rounded(overall), "scenes": {s: rounded(m) for s, m in by_scene.items()},
        },
        [(("scene", "masks", *(MEASURES[k] for k in every)), table)],
        (tuple(rows[0]), rows),
        (("scene", "prompt", "segments", "views", "iou", "boundary_iou"), [i for i in instances if i]),
        notes,
    )  # fmt: skip


def _prompt_means(
    benchmark: Benchmark, scene: str, prompt: str, scores: BenchmarkScores, selections: Mapping[str, Selection]
) -> dict[str, Any] | None:
    own = [r for r in scores.rows if r.prompt == prompt]
    if not own:
        return None
    found = means(benchmark, own)
    chosen = selections.get(scene, {}).get(prompt)
    segments = " ".join(map(str, chosen)) if chosen is not None else ""
    return {
        "scene": scene, "prompt": prompt, "segments": segments, "views": len(own), "iou": found["miou"],
        "boundary_iou": found["boundary_iou"],
    }  # fmt: skip


def _scenes(run: ScoredRun, benchmark: Benchmark) -> list[str]:
    found = scenes_of((run.scene.name, run.root.resolve().name), benchmark.scenes)
    if not found:
        raise InputError(
            f"the benchmark has the scenes {some(benchmark.scenes)}, none of which is called like {run.root} or its "
            f"scene {run.scene.name}; give --truth DIR of the one scene"
        )
    return found


def _score_run(
    benchmark: Benchmark,
    scene: str,
    run: ScoredRun,
    settings: EvalSettings,
    selections: dict[str, Selection],
    notes: list[str],
) -> BenchmarkScores:
    """Choose the segments of each prompt, and score their union in every view; adds what was chosen to `selections`."""
    masks = [m for m in benchmark.masks if m.scene == scene]
    order = benchmark.orders.get(scene, ())
    if not order and benchmark.protocol == "3d-ovs":  # the truth came without its images: they are the run's
        order = sorted(run.stems)
    index = find_views(_names(masks), run.stems, order, contained=benchmark.protocol == "spin-nerf")
    notes += [f"{scene}: {note}" for note in learned_from(run, index)]
    levels: dict[str, Level] = {}
    why = "whose segments fit it best"

    def shown(mask: TrueMask, true: np.ndarray) -> np.ndarray:
        return run.at_size(index[mask.view], true.shape, levels.get(mask.prompt))

    prompts, chosen = benchmark.prompts(scene), {}
    if settings.selection is not None:
        chosen, why = read_selection(settings.selection, scene, prompts, run.ids), "which shows all that is selected"
        levels = {prompt: run.level_of(ids) for prompt, ids in chosen.items()}
    elif settings.select == "oracle":
        run.prepare(list(index.values()), run.levels)
        for prompt in prompts:
            own = [(index[m.view], m.load()) for m in masks if m.prompt == prompt]
            levels[prompt], chosen[prompt] = _best(run, own, best_ids)
    elif benchmark.references:
        for r in (r for r in benchmark.references if r.scene == scene):
            view = find_view(r.view, run.stems, order, contained=True)
            levels[r.prompt], chosen[r.prompt] = _pointed(r, run, view)
    else:
        raise InputError(
            f"the prompts of {benchmark.protocol} are texts ({some(prompts)}): say which segments they mean with "
            "--selection FILE, or take the best with --select oracle, which is an upper bound"
        )
    run.prepare(list(index.values()), list(dict.fromkeys([None, *levels.values()])))
    selections[scene] = chosen
    notes += [f"{scene}: {p} is at level {x:g}, {why}" for p, x in levels.items() if x is not None]
    if lacking := [p for p in prompts if p not in chosen]:
        notes.append(f"{scene}: nothing is selected for {some(lacking)}")
    return score_masks(
        benchmark, masks, lambda m, true: np.isin(shown(m, true), chosen[m.prompt]) if m.prompt in chosen else None
    )


def _names(masks: Iterable[TrueMask]) -> list[str]:
    return list(dict.fromkeys(m.view for m in masks))


def _best(run: ScoredRun, masks: list[tuple[int, np.ndarray]], pick: Pick) -> tuple[Level, list[int]]:
    """The level whose segments, picked by masks (view, [H, W] bool), have the best IoU with these, pooled; and they."""
    found: dict[Level, tuple[float, list[int]]] = {}
    for level in run.levels:
        ids = [np.maximum(run.at_size(view, true.shape, level), 0) for view, true in masks]
        picked = pick([true for _, true in masks], ids)
        pooled = sum((count(true, np.isin(i, picked)) for (_, true), i in zip(masks, ids)), Counts(0, 0, 0))
        found[level] = pooled.iou, picked
    best = max(found, key=lambda level: found[level][0])  # ties: the objects, which come first
    return best, found[best][1]


def _pointed(reference: Reference, run: ScoredRun, view: int) -> tuple[Level, list[int]]:
    """The level and the segments that a benchmark's reference points at.

    Of a mask the level is that whose segments fit it best, in its own view alone. Scribbles do not say how far the
    object goes: they point at objects.
    """
    positive = _united(reference.positive)
    if not positive.any():
        raise InputError(f"{some(reference.positive)}: empty, so it points at nothing; restore it")
    if not reference.negative:
        run.prepare([view], run.levels)
        return _best(run, [(view, positive)], lambda masks, ids: mask_ids(masks[0], ids[0]))
    ids = np.maximum(run.at_size(view, positive.shape), 0)
    negative = _united([reference.positive[0], *reference.negative], of=reference.negative)
    return None, scribble_ids(positive, negative, ids)


def _united(paths: Sequence[Path], of: Sequence[Path] | None = None) -> np.ndarray:
    """The union of masks `of` some of the files, [H, W] bool; InputError where the files are not of one size."""
    masks = {path: read_mask(path) for path in paths}
    first = masks[paths[0]]
    for path, mask in masks.items():
        if mask.shape != first.shape:
            raise InputError(f"{path} is {size_text(mask)} where {paths[0].name} is {size_text(first)}; restore both")
    return np.any([masks[path] for path in of or paths], axis=0)


def _score_folder(benchmark: Benchmark, scene: str, folder: Path, notes: list[str]) -> BenchmarkScores:
    """Score masks from a folder, [SCENE/]VIEW/PROMPT.png, or [SCENE/]VIEW.png where a scene has one object."""
    masks = [m for m in benchmark.masks if m.scene == scene]
    home = folder / scene if (folder / scene).is_dir() or len(benchmark.scenes) > 1 else folder
    single = bool(benchmark.references)

    def path(mask: TrueMask) -> Path:
        return home / (f"{mask.view}.png" if single else f"{mask.view}/{mask.prompt}.png")

    if not any(path(m).is_file() for m in masks):
        raise InputError(
            f"{home} has no prediction of {scene}; expected masks named "
            f"{some(path(m).relative_to(folder) for m in masks)}"
        )

    def predict(mask: TrueMask, true: np.ndarray) -> np.ndarray | None:
        if not path(mask).is_file():
            return None
        found = read_mask(path(mask))
        if found.shape == true.shape:
            return found
        check_shape(path(mask), found, true)
        note = f"{scene}: predictions of {size_text(found)} were resized to the truth's {size_text(true)} (nearest)"
        notes.extend([] if note in notes else [note])
        return resize_nearest(found, true.shape[1], true.shape[0])

    return score_masks(benchmark, masks, predict)
