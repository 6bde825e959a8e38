"""Which segments a prompt means: stored in a file, so that a run repeats without a text model; or the best there are.

{"green apple": [12], "old camera": [3, 17]}          one scene
{"figurines": {"green apple": [12]}, "ramen": {...}}   several
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgc.errors import InputError, some
from cgc.files import read_json, write_json

Selection = dict[str, list[int]]
"""The ids of each prompt."""


def read_selection(path: Path, scene: str, prompts: Sequence[str], ids: Sequence[int]) -> Selection:
    """Read the part of a selection file for `scene`; InputError where it names a prompt or a segment there is not."""
    value = read_json(path, "the selection file")
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        if scene not in value:
            raise InputError(f"{path} selects for {some(value)}, not for the scene {scene}; add it")
        value = value[scene]
    if not isinstance(value, dict) or not all(_is_ids(v) for v in value.values()):
        raise InputError(f'{path} was expected to hold {{"prompt": [segment ids], ...}}; correct it')
    if strange := [p for p in value if p not in prompts]:
        raise InputError(f"{path} names {some(strange)}, but the truth of {scene} asks for {some(prompts)}; correct it")
    known = set(ids)
    for prompt, chosen in value.items():
        if strange := [i for i in chosen if i not in known]:
            raise InputError(
                f"{path}: {prompt!r} selects {some(strange)}, but the segments are {some(sorted(known))}; the file "
                "is of another run, or of before it was clustered again"
            )
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)


def write_selection(path: Path, selections: Mapping[str, Selection]) -> None:
    """Write the selections of scenes as `read_selection` reads them; one scene goes without its name."""
    write_json(path, next(iter(selections.values())) if len(selections) == 1 else dict(selections))


def best_ids(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> list[int]:
    """The ids whose union has the best IoU with true masks [H, W] bool, pooled over views: an upper bound.

    IoU of a union grows with every id whose pixels inside over those outside pass the IoU itself; so the best set is a
    prefix of the ids in the order of that ratio.
    """
    n = 1 + max((int(p.max(initial=0)) for p in predicted), default=0)
    area, inside = np.zeros(n), np.zeros(n)
    for true, ids in zip(truth, predicted):
        ids = np.maximum(ids, 0)
        area += np.bincount(ids.ravel(), minlength=n)
        inside += np.bincount(ids[true], minlength=n)
    ids = np.flatnonzero(inside[1:] > 0) + 1
    if not len(ids):
        return []
    outside = area[ids] - inside[ids]
    order = np.argsort(-inside[ids] / np.maximum(outside, 1e-9), kind="stable")
    size = sum(int(t.sum()) for t in truth)
    iou = np.cumsum(inside[ids][order]) / (size + np.cumsum(outside[order]))
    return sorted(ids[order][: 1 + int(iou.argmax())].tolist())
