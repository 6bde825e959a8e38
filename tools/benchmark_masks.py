"""Measure masks of single photos against a scene's truth: `python tools/benchmark_masks.py SCENE`.

Masks are made by `RegionMerging`, with `--run RUN` of the depth of its splats too, or read with `--masks FOLDER`. Each
row is a level, coarse to fine, and the last one is the best of all levels. Truth is SCENE/instance with instances.json,
or drawn maps in SCENE/truth. Nothing is random.

`--timed` measures how long `cgc masks --generator regions` takes for all photos of a scene, which needs no truth.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from time_command import time_python

import cgc
from cgc.errors import InputError
from cgc.evaluation.truth import IGNORE, read_drawn, read_truth
from cgc.masks.id_maps import read_id_map
from cgc.masks.regions import PRESETS


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    scene: Annotated[Path, tyro.conf.Positional]
    """Folder with images/ and either instance/ and instances.json, or truth/."""
    preset: Literal["fast", "default", "fine"] = "default"
    """Settings of the segmenter."""
    masks: Path | None = None
    """Measure the id maps in this folder instead, named like photos."""
    run: Path | None = None
    """A run of the scene, trained at the photos' size, whose splats say how far everything is."""
    every: int = 4
    """Use every n-th photo that has a truth."""
    timed: bool = False
    """Only say how long the masks of all photos take, by `cgc masks`, and how much memory a process of it."""


@dataclass(frozen=True)
class Scores:
    """What one id map, or several nested ones together, are worth; the last three are means over true things.

    `crossing`: regions with under 90 % of their known pixels on one object; `pure`: share of pixels whose object is
    the one that their region has most of; `best`: IoU of the one region that fits best; `joined`: IoU of all
    regions that have most of their pixels on the thing; `together`: chance that two of its pixels share a region.
    """

    regions: float
    crossing: float
    pure: float
    best: float
    joined: float
    together: float


def score(regions: np.ndarray, truth: np.ndarray, things: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score an id map [H, W]: regions, crossing, pure [3]; and for each true thing [T, 3]: best, joined, together."""
    known = truth != IGNORE
    true_ids, t = np.unique(truth[known], return_inverse=True)
    _, r = np.unique(regions[known], return_inverse=True)
    n_true, n_regions = len(true_ids), int(r.max()) + 1
    overlap = np.bincount(t * n_regions + r, minlength=n_true * n_regions).reshape(n_true, n_regions).astype(float)
    if 0 in regions[known]:  # unassigned pixels are no region
        overlap[:, 0], n_regions = 0, n_regions - 1
    area, size = overlap.sum(0), np.bincount(t, minlength=n_true)
    major = overlap.max(0, initial=0)
    crossing = (major < 0.9 * area).sum() / max(n_regions, 1)
    iou = overlap / (size[:, None] + area - overlap)
    mine = (overlap == major) & (area > 0)
    mine &= np.cumsum(mine, 0) == 1  # the first of equals
    joined = (overlap * mine).sum(1) / (size + (area * mine).sum(1) - (overlap * mine).sum(1))
    together = ((overlap / size[:, None]) ** 2).sum(1)
    rows = np.isin(true_ids, things)
    each = np.stack([iou.max(1), joined, together], 1)[rows]
    return np.array([n_regions, crossing, major.sum() / len(t)]), each


def read_scene(benchmark: Benchmark) -> list[tuple[Path, np.ndarray, np.ndarray]]:
    """Return photos with true maps [H, W] and the ids of things among them."""
    scene = benchmark.scene
    photos = {p.stem: p for p in sorted((scene / "images").glob("*")) if p.suffix.lower() in (".png", ".jpg", ".jpeg")}
    if (scene / "instances.json").is_file():
        stems = sorted(p.stem for p in (scene / "instance").glob("*.png") if p.stem in photos)[:: benchmark.every]
        truth = read_truth(scene, stems)
        maps = dict(zip(stems, truth.maps))
        things = np.array(sorted(set(truth.names) - truth.stuff_ids))
    else:
        maps = dict(read_drawn(scene / "truth").maps)
        things = np.unique(np.concatenate([m[m > 0] for m in maps.values()]))
    if not maps:
        raise InputError(f"no photo in {scene / 'images'} has a true map; expected instance/STEM.png or truth/STEM.png")
    return [(photos[stem], ids, things) for stem, ids in sorted(maps.items())]


def main(benchmark: Benchmark) -> None:
    """Print a Markdown table, or how long it takes."""
    if benchmark.timed:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--generator", "regions", "--preset", benchmark.preset, "--out", f"{folder}/masks", "--quiet"]
            print(f"masks of {benchmark.scene}: {time_python('-m', 'cgc', 'masks', str(benchmark.scene), *words)}")
        return
    whole, things, seconds = [], [], []
    seen = cgc.load(benchmark.run) if benchmark.run else None
    name_of = {Path(name).stem: name for name in seen.views} if seen else {}
    for photo, truth, wanted in read_scene(benchmark):
        image = np.asarray(Image.open(photo).convert("RGB"))
        depth = seen.render(name_of[photo.stem], what="depth") if seen else None
        start = time.process_time()
        if benchmark.masks:
            levels = [read_id_map(benchmark.masks / f"{photo.stem}.png")]
        else:
            levels = PRESETS[benchmark.preset](image, depth)
        seconds.append(time.process_time() - start)
        least = 30 / (400 * 300) * truth.size  # things of fewer pixels are not seen
        ids, counts = np.unique(truth, return_counts=True)
        scores = [score(ids_, truth, np.intersect1d(wanted, ids[counts >= least])) for ids_ in levels]
        whole.append([s[0] for s in scores])
        things.append(np.stack([s[1] for s in scores], 1))  # [T, levels, 3]
    general, each = np.mean(whole, 0), np.concatenate(things)  # [levels, 3], [T, levels, 3]
    print("| level | regions | crossing | pure | best | joined | together |")
    print("|---|---|---|---|---|---|---|")
    for level, (row, three) in enumerate(zip(general, each.mean(0))):
        print(f"| {level} | {row[0]:.0f} | " + " | ".join(f"{x:.3f}" for x in (*row[1:], *three)) + " |")
    print("| all | | | | " + " | ".join(f"{x:.3f}" for x in each.max(1).mean(0)) + " |")
    print(f"\n{len(seconds)} photos, {len(each)} true things in them; {np.median(seconds):.2f} CPU s a photo.")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
