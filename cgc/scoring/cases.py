"""True id maps beside predicted ones: the truth of the scene, or drawn by hand; of a run, or of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cgc.errors import InputError, some
from cgc.evaluation.prompts import Level, Parts
from cgc.evaluation.sizes import hide_unseen
from cgc.evaluation.truth import IGNORE, Truth, has_truth, read_drawn, read_truth
from cgc.masks.id_maps import read_id_map, resize_nearest
from cgc.scoring.report import check_shape, size_text
from cgc.scoring.runs import ScoredRun, learned_from
from cgc.settings import EvalSettings


@dataclass
class Case:
    """True id maps of some views beside the predicted ones of every level, at the truth's size, and what these hold."""

    root: Path
    stems: list[str]
    truth: Truth
    predicted: dict[Level, list[np.ndarray | None]]
    ignore_id: int | None
    level: str
    notes: list[str]
    parts: Parts | None = None


def find_case(run: ScoredRun | None, settings: EvalSettings) -> Case | None:
    """Pair the truth with the predictions; None where the run's own scene has no truth."""
    root = settings.truth or (run.scene if run else None)
    if root is None:
        raise InputError("masks from a folder are scored against a truth; give it with --truth DIR")
    exact = has_truth(root)
    if not exact and settings.truth is None:
        return None
    notes: list[str] = []
    if exact:
        if run is None:
            folder = root / "instance"
            stems = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.png"))
            notes.append(
                f"all {len(stems)} views of the truth are scored; `cgc eval RUN --predictions DIR` scores those that "
                "RUN has held back"
            )
        else:
            held_back = run.test_views if settings.views == "test" else []
            stems = [run.stems[i] for i in held_back or range(len(run.stems))]
        truth, ignore_id = read_truth(root, stems, settings.truth_level), None
    else:
        drawn = read_drawn(root, settings.unlabelled, settings.ignore_id)
        stems, ignore_id = list(drawn.maps), IGNORE
        truth = Truth(tuple(drawn.maps.values()), drawn.names, frozenset())
        notes.append(
            "pixels without a label are ignored, so what a prediction covers there is not held against it"
            if settings.unlabelled == "ignore"
            else "pixels without a label count as background"
        )
    predicted: dict[Level, list[np.ndarray | None]]
    parts = None
    if settings.predictions is not None or run is None:
        assert settings.predictions is not None  # else there was nothing to score
        predicted = {None: _stored_maps(settings.predictions, stems, truth, notes)}
    else:
        indices = _indices(run, stems, root)
        notes += learned_from(run, dict(zip(stems, indices)))
        run.prepare(indices, [*run.levels, 1.0] if run.has_levels else run.levels)
        shown = {level: [run.at_size(i, m.shape, level) for i, m in zip(indices, truth.maps)] for level in run.levels}
        predicted = {level: list(maps) for level, maps in shown.items()}
        if hidden := hide_unseen(truth.maps, shown[None]):
            predicted = {level: [np.maximum(m, 0) for m in maps] for level, maps in shown.items()}
            truth, ignore_id = replace(truth, maps=hidden), IGNORE
        if run.has_levels:
            finest = [np.maximum(run.at_size(i, m.shape, 1.0), 0) for i, m in zip(indices, truth.maps)]
            parts = Parts(run.tree, finest)
        notes += run.notes
    return Case(root, stems, truth, predicted, ignore_id, settings.truth_level, notes, parts)


def _indices(run: ScoredRun, stems: Sequence[str], root: Path) -> list[int]:
    """The view of each true map; InputError that names those that have none."""
    last = [s.rsplit("/", 1)[-1] for s in run.stems]
    found, strange = [], []
    for stem in stems:
        names = run.stems if stem in run.stems else last
        (found if names.count(stem) == 1 else strange).append(stem)
    if strange:
        raise InputError(
            f"{len(strange)} true id maps in {root} are named like no view of {run.root}: {some(strange)}, where the "
            f"views are {some(run.stems)}; name them like their views, or remove them"
        )
    return [(run.stems if s in run.stems else last).index(s) for s in stems]


def _stored_maps(folder: Path, stems: Sequence[str], truth: Truth, notes: list[str]) -> list[np.ndarray | None]:
    """Read predicted id maps, STEM.png, at the truth's size; None for those that are missing."""
    maps: list[np.ndarray | None] = []
    for stem, true in zip(stems, truth.maps):
        path = next((p for s in (".png", ".PNG") if (p := folder / f"{stem}{s}").is_file()), None)
        ids = read_id_map(path) if path else None
        if path and ids is not None and ids.shape != true.shape:
            check_shape(path, ids, true)
            note = f"{size_text(ids)} predictions were resized to the truth's {size_text(true)} (nearest id)"
            notes += [] if note in notes else [note]
            ids = resize_nearest(ids, true.shape[1], true.shape[0])
        maps.append(ids)
    if all(m is None for m in maps):
        raise InputError(f"{folder} has no prediction of any view; expected id maps {some(f'{s}.png' for s in stems)}")
    if missing := [s for s, m in zip(stems, maps) if m is None]:
        notes.append(f"{len(missing)} predictions are missing and count as empty: {some(missing)}")
    return maps
