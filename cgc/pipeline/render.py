"""The step `render`: id maps of every view, and how good its pictures are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cgc import parallel
from cgc.errors import InputError
from cgc.evaluation.instances import score_instances
from cgc.evaluation.sizes import at_truth_size, hide_unseen
from cgc.evaluation.truth import IGNORE, Truth
from cgc.files import write_beside
from cgc.masks.id_maps import write_id_map
from cgc.pipeline.lift import load_features
from cgc.pipeline.quality import Measures, measure_view, quality_facts, score_facts
from cgc.pipeline.workspace import Workspace
from cgc.progress import progress_bar
from cgc.rasterize.base import device_of
from cgc.run_folder import CAMERAS
from cgc.scene.cameras import write_cameras
from cgc.scene.types import Camera
from cgc.segmentation.labels import LabelPicture, render_blended, render_levels
from cgc.segmentation.pictures import NO_LEVELS
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import describe, describe_nodes, save_table


def render(work: Workspace) -> str:
    """Render and measure every view; writes its id map and weights, the cameras, and the table of segments."""
    start = time.perf_counter()
    run, target = work.run, work.run.root / "masks"
    segmentation = work.segmentation()
    draw, there = label_renderer(work, segmentation), segmentation.splats.to(device_of(work.rasterizer))
    n_ids = int(segmentation.labels.max(initial=0)) + 1
    pixels: dict[str, np.ndarray] = {}
    qualities: dict[int, Measures] = {}
    predicted: dict[int, np.ndarray] = {}
    tests, names = work.test_views, work.picture_names

    def look(index: int) -> list[np.ndarray]:
        picture = draw(work.scene.views[index].camera, [None])[0]
        return [picture.ids, picture.weight, np.array(measure_view(work, index, there))]

    with run.changing("render"):
        with progress_bar("render", len(names), quiet=work.quiet) as bar:
            for index, (ids, weight, measured) in enumerate(parallel.shared(range(len(names)), look)):
                view, name = work.scene.views[index], names[index]
                write_id_map(target / f"{name}.png", ids)
                _write_weight(run.root / "weights" / f"{name}.png", weight)
                pixels[view.name] = np.bincount(ids.ravel(), minlength=n_ids)
                qualities[index] = Measures(*measured.tolist())
                if index in tests and work.truth is not None:
                    predicted[index] = ids
                bar.advance(1, psnr=qualities[index].psnr)
        if not parallel.is_first():
            return ""
        facts = {**quality_facts(work, qualities), "truth": work.mark_of_truth}
        if work.truth is not None:
            facts |= score_truth(work, work.truth, [predicted[i] for i in tests])
        write_cameras(run.root / CAMERAS, {view.name: view.camera for view in work.scene.views})
        save_table(run.root, describe(segmentation, pixels), {"views": len(pixels)}, describe_nodes(segmentation))
    run.finish("render", time.perf_counter() - start, **facts)
    return f"{len(pixels)} id maps: {target}"


def score_truth(work: Workspace, truth: Truth, predicted: Sequence[np.ndarray]) -> dict[str, Any]:
    """Score the id maps of the test views as `cgc eval` does; nothing, and a note, where they are of other pictures."""
    try:
        made = [
            at_truth_size(ids, work.scene.views[i], true.shape, work.picture_names[i])[0]
            for i, ids, true in zip(work.test_views, predicted, truth.maps)
        ]
    except InputError as error:
        work.say(f"note: nothing was scored: {error}")
        return {}
    if hidden := hide_unseen(truth.maps, made):  # what is unseen counts for no id
        return score_facts(score_instances(hidden, made, truth.stuff_ids, IGNORE), truth)
    return score_facts(score_instances(truth.maps, made, truth.stuff_ids), truth)


def render_at(work: Workspace, level: float) -> str:
    """Render the id maps of every view at a level of the hierarchy; writes masks_at_LEVEL/, which no step needs."""
    segmentation = work.segmentation()
    draw, shown = label_renderer(work, segmentation), segmentation.hierarchy.shown(level)
    target = work.run.root / f"masks_at_{level:g}"
    with progress_bar(f"id maps at {level:g}", len(work.scene.views), quiet=work.quiet) as bar:
        cameras = [view.camera for view in work.scene.views]
        pictures = parallel.shared(cameras, lambda camera: [draw(camera, [level])[0].ids])
        for (ids,), name in zip(pictures, work.picture_names):
            write_id_map(target / f"{name}.png", ids)
            bar.advance(1)
    return f"{len(work.scene.views)} id maps of {len(shown)} segments: {target}"


Drawer = Callable[[Camera, Sequence[float | None]], list[LabelPicture]]
"""Makes a camera's id maps at some levels of the hierarchy; None: the objects."""


def label_renderer(work: Workspace, segmentation: Segmentation) -> Drawer:
    """Return what makes id maps of a segmentation, as the settings say."""
    tree, rasterizer = segmentation.hierarchy, work.rasterizer
    splats = segmentation.splats.to(device_of(rasterizer))
    if work.has_levels:
        return lambda camera, levels: render_levels(splats, tree, levels, camera, rasterizer)
    features, _ = load_features(work.run)
    if work.sharpened is not None:
        features = features[torch.from_numpy(work.sharpened.origin)]

    def draw(camera: Camera, levels: Sequence[float | None]) -> list[LabelPicture]:
        if any(level is not None for level in levels):
            raise InputError(NO_LEVELS)
        return [render_blended(splats, features, segmentation.labels, camera, rasterizer) for _ in levels]

    return draw


def _write_weight(path: Path, weight: np.ndarray) -> None:
    from PIL import Image

    with write_beside(path) as temporary:
        Image.fromarray((255 * weight.clip(0, 1)).round().astype(np.uint8)).save(temporary)
