"""`cgc eval`: get the id maps of runs (or masks from a folder), score them against truth, print and write the numbers.

Every number of a summary.json can be made again from the views.csv beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cgc.errors import InputError
from cgc.evaluation.benchmarks import BenchmarkScores, means, score_masks
from cgc.evaluation.gaussians import adjusted_rand, read_samples, true_labels
from cgc.evaluation.instances import InstanceScores, score_instances, trace_instances
from cgc.evaluation.pictures import load_lpips, lpips, psnr, ssim
from cgc.evaluation.prompts import Level, PromptRow, PromptScores, mask_ids, score_prompts, scribble_ids
from cgc.evaluation.protocols import lerf_mask, nvos, ovs3d, spin_nerf
from cgc.evaluation.protocols.base import Benchmark, Reference, TrueMask, find_view, read_mask, scenes_of, some
from cgc.evaluation.selection import Selection, best_ids, read_selection, write_selection
from cgc.evaluation.truth import IGNORE, Truth, merge_parts, read_drawn, read_truth
from cgc.files import write_csv, write_json
from cgc.masks.id_maps import read_id_map, resize_nearest
from cgc.pipeline import Workspace
from cgc.progress import console, progress_bar
from cgc.run_folder import open_run
from cgc.scene.images import load_image
from cgc.scene.types import View
from cgc.segmentation.labels import render_labels, render_rgb
from cgc.segmentation.segments import load_labels
from cgc.settings import EvalSettings

READERS: dict[str, Callable[[Path], Benchmark]] = {
    "lerf-mask": lerf_mask.read,
    "3d-ovs": ovs3d.read,
    "nvos": nvos.read,
    "spin-nerf": spin_nerf.read,
}
PROMPTS: dict[str, dict[str, Any]] = {
    "1 click": {"prompt": "click", "clicks": 1},
    "2 clicks": {"prompt": "click", "clicks": 2},
    "mask": {"prompt": "mask"},
}
UPPER_BOUND = "UPPER BOUND (the truth chose the segments)"


def predicted_maps(work: Workspace, views: Sequence[int], level: Level = None) -> list[np.ndarray]:
    """The run's id maps of some views, int32 [H, W] each, ids the same in all of them."""
    if level is not None:
        raise InputError(f"{work.run.root} has no level {level}: it has its own segments only")
    labels = work.segmentation().labels
    with progress_bar("id maps", len(views), quiet=work.quiet) as bar:
        maps = []
        for index in views:
            maps.append(render_labels(work.splats, labels, work.scene.views[index].camera, work.rasterizer).ids)
            bar.advance()
    return maps


# --- what is scored ---------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run as something that has id maps of views; `stems` are what its views are called, `notes` what was done."""

    work: Workspace
    notes: list[str] = field(default_factory=list)
    _maps: dict[tuple[int, Level], np.ndarray] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.work.run.root

    @property
    def scene(self) -> Path:
        """Where the run's scene lies."""
        return Path(self.work.run.source.scene)

    @cached_property
    def stored(self) -> bool:
        """Whether the photos are gone, so that the id maps of `cgc render` are scored in place of new ones."""
        gone = not (self.scene / "images").is_dir() and not any(self.scene.glob("transforms*.json"))
        if gone and self.work.run.is_done("render"):
            self.notes.append(f"{self.scene} has no photos: the id maps in {self.root / 'masks'} are scored")
            return True
        return False

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The scene's views; none where the photos are gone."""
        return () if self.stored else self.work.scene.views

    @cached_property
    def stems(self) -> list[str]:
        """What the views are called."""
        if not self.stored:
            return self.work.picture_names
        names = list(self.work.run.stats.get("quality", {}))
        stems = [name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name for name in names]
        return stems if len(set(stems)) == len(stems) else names

    @property
    def test_views(self) -> list[int]:
        """The views that nothing was learned from."""
        if not self.stored:
            return self.work.test_views
        quality = self.work.run.stats["quality"].values()
        return [i for i, view in enumerate(quality) if view["split"] == "test"]

    @cached_property
    def ids(self) -> list[int]:
        """The ids of the run's segments."""
        self.work.run.require("cluster")
        labels = load_labels(self.root)[0]
        return np.unique(labels[labels > 0]).tolist()

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the hierarchy that are scored."""
        return (None,)

    def maps(self, views: Sequence[int], level: Level = None) -> list[np.ndarray]:
        """The id maps of some views at the views' sizes; made once."""
        missing = [i for i in dict.fromkeys(views) if (i, level) not in self._maps]
        if missing and self.stored:
            made = [read_id_map(self.root / "masks" / f"{self.stems[i]}.png") for i in missing]
        else:
            made = predicted_maps(self.work, missing, level) if missing else []
        self._maps.update({(i, level): m for i, m in zip(missing, made)})
        return [self._maps[i, level] for i in views]

    def at_size(self, index: int, shape: tuple[int, ...], level: Level = None) -> np.ndarray:
        """The id map of one view at the size [H, W] of its truth, nearest id; as its photo has it where that bends."""
        ids, (height, width) = self.maps([index], level)[0], shape
        view = self.views[index] if self.views else None
        lens = view.distortion if view else None
        full = (lens.width, lens.height) if lens else (ids.shape[1], ids.shape[0])
        if (height, width) == ids.shape and (lens is None or full != (width, height)):
            return ids
        if abs(height - width * full[1] / full[0]) > max(2.0, 0.01 * height):
            raise InputError(
                f"the truth of {self.stems[index]} is {width}x{height} but the view is {full[0]}x{full[1]}, which has "
                "another shape: it is the truth of another picture; give the truth of this one"
            )
        if view is not None and lens is not None:
            from cgc.scene.lens import sample_undistorted  # pycolmap takes half a second to import

            self._note("id maps were bent back to the photos' lens, as the truth is (nearest id)")
            return sample_undistorted(ids, view.camera, lens, width, height)
        self._note(
            f"id maps of {ids.shape[1]}x{ids.shape[0]} were resized to the truth's {width}x{height} (nearest id)"
        )
        return resize_nearest(ids, width, height)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass
class Report:
    """What one protocol found: a table of means to print, rows for the two files, and what to say beside them."""

    protocol: str
    definition: str
    summary: dict[str, Any]
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[Any]]]]
    views: tuple[Sequence[str], list[dict[str, Any]]]
    instances: tuple[Sequence[str], list[dict[str, Any]]] | None
    notes: list[str]


def evaluate(runs: Sequence[Path], settings: EvalSettings, *, quiet: bool = False) -> list[Path]:
    """Score runs, or the masks of `settings.predictions`; print the numbers, return the summaries that were written.

    Everything is scored before anything is written.
    """
    if not runs and settings.predictions is None:
        raise InputError("there is nothing to score: name a run folder, or a folder of masks with --predictions DIR")
    if settings.predictions is not None and not settings.predictions.is_dir():
        raise InputError(
            f"the predictions {settings.predictions} do not exist; expected a folder of masks or id maps (PNG)"
        )
    opened = [Run(Workspace(open_run(root), quiet=quiet)) for root in runs]
    if settings.protocol in READERS:
        reports = [_benchmark(opened, settings)]
    else:
        if len(opened) > 1:
            raise InputError(f"{settings.protocol} scores one run at a time, got {len(opened)}; name one")
        reports = _own(opened[0] if opened and settings.predictions is None else None, settings)
    out = settings.out or (opened[0].root / "eval" if len(opened) == 1 else None)
    if out is None:
        raise InputError("there is no one run to write the results into; say where with --out DIR")
    return [_write(report, out / report.protocol, quiet) for report in reports]


def _own(run: Run | None, settings: EvalSettings) -> list[Report]:
    """Score instances, prompts and pictures, as asked and as far as there is truth."""
    auto = settings.protocol == "auto"
    for name in ("selection", "select", "write_selection"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for the benchmarks that have prompts ({', '.join(READERS)}); "
                "name one with --protocol"
            )
    pictures = [_pictures(run)] if auto and run is not None else []
    case = _case(run, settings)
    if case is None:
        if auto and pictures:
            pictures[0].notes.append("the scene has no instance truth, so pictures alone are scored; give --truth DIR")
            return pictures
        raise InputError(
            "there is no instance truth: the scene has no instances.json with instance/; give a folder with --truth DIR"
        )
    reports = []
    if settings.protocol in ("auto", "instances"):
        reports.append(_instances(run, case))
    if settings.protocol == "prompts":
        reports.append(_prompts(case))
    elif auto:
        try:
            reports.append(_prompts(case))
        except InputError as error:
            case.notes.append(f"no prompts are scored: {error}")
    return reports + pictures


# --- instance maps ----------------------------------------------------------------------------------------


@dataclass
class Case:
    """True id maps of some views beside the predicted ones of every level, at the truth's size."""

    root: Path
    stems: list[str]
    truth: Truth
    predicted: dict[Level, list[np.ndarray | None]]
    ignore_id: int | None
    level: str
    notes: list[str]


def _case(run: Run | None, settings: EvalSettings) -> Case | None:
    """Pair the truth with the predictions; None where the run's own scene has no truth."""
    root = settings.truth or (run.scene if run else None)
    if root is None:
        raise InputError("masks from a folder are scored against a truth; give it with --truth DIR")
    exact = (root / "instances.json").exists() and (root / "instance").is_dir()
    if not exact and settings.truth is None:
        return None
    notes: list[str] = []
    if exact:
        if run is None:
            folder = root / "instance"
            stems = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.png"))
        else:
            held_back = run.test_views if settings.views == "test" else []
            stems = [run.stems[i] for i in held_back or range(len(run.stems))]
            if not held_back and run.test_views != list(range(len(run.stems))):
                notes.append("the views that were learned from are scored too")
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
    if run is None:
        assert settings.predictions is not None
        predicted = {None: _stored_maps(settings.predictions, stems, truth, notes)}
    else:
        indices = _indices(run, stems, root)
        if learned := [s for s, i in zip(stems, indices) if i not in run.test_views]:
            notes.append(f"{len(learned)} of the {len(stems)} true views were learned from ({some(learned)})")
        _ = run.maps(indices)
        predicted = {
            level: [run.at_size(i, m.shape, level) for i, m in zip(indices, truth.maps)] for level in run.levels
        }
        notes += run.notes
    return Case(root, stems, truth, predicted, ignore_id, settings.truth_level, notes)


def _indices(run: Run, stems: Sequence[str], root: Path) -> list[int]:
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
        path = folder / f"{stem}.png"
        ids = read_id_map(path) if path.is_file() else None
        if ids is not None and ids.shape != true.shape:
            note = f"{_size(ids)} predictions were resized to the truth's {_size(true)} (nearest id)"
            notes += [] if note in notes else [note]
            ids = resize_nearest(ids, true.shape[1], true.shape[0])
        maps.append(ids)
    if all(m is None for m in maps):
        raise InputError(f"{folder} has no prediction of any view; expected id maps {some(f'{s}.png' for s in stems)}")
    if missing := [s for s, m in zip(stems, maps) if m is None]:
        notes.append(f"{len(missing)} predictions are missing and count as empty: {some(missing)}")
    return maps


def _size(ids: np.ndarray) -> str:
    return f"{ids.shape[1]}x{ids.shape[0]}"


INSTANCE_DEFINITION = (
    "true things matched one-to-one to predicted ids by IoU over all views at once; unmatched things count 0"
)


def _instances(run: Run | None, case: Case) -> Report:
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
    summary = {"truth": str(case.root), "truth_level": case.level, "views": case.stems, **_rounded(found), **counts}
    means_table = [(label, found[name]) for name, label in labels.items() if found.get(name) is not None]
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


def _left_out(scores: InstanceScores, truth: Truth) -> list[str]:
    """Say which true ids were not scored."""
    shown = {r.id for r in scores.rows} | set(scores.skipped) | truth.stuff_ids
    said = []
    if scores.skipped:
        said.append(f"left out, under 60 pixels in these views: {some(truth.names[i] for i in scores.skipped)}")
    if absent := [name for i, name in truth.names.items() if i not in shown]:
        said.append(f"left out, not seen in these views: {some(absent)}")
    return said


def _ari(run: Run | None, case: Case, notes: list[str]) -> dict[str, float]:
    """The adjusted Rand index of the run's labels, where the scene has surface samples."""
    path = case.root / "points.npz"
    if run is None or not path.exists() or not (case.root / "instances.json").exists():
        return {}
    samples = read_samples(path)
    truth = true_labels(run.work.splats.means.detach().cpu().numpy().astype(float), samples)
    truth = merge_parts(case.root, truth) if case.level == "object" else truth
    labels = load_labels(run.root)[0]
    known = int((truth > 0).sum())
    notes.append(f"ARI: {known:,} of {len(truth):,} Gaussians lie on a true surface; the others have no truth")
    every = adjusted_rand(truth, labels)
    things = adjusted_rand(np.where(np.isin(truth, list(case.truth.stuff_ids)), 0, truth), labels)
    return {k: v for k, v in (("ari", every), ("ari_things", things)) if v is not None}


# --- prompts ----------------------------------------------------------------------------------------------

PROMPT_DEFINITION = (
    "an object is prompted in the view where it is largest; IoU of what its prompt picks, pooled over all other views, "
    "mean over objects"
)


def _prompts(case: Case) -> Report:
    truth = case.truth
    predicted = {
        level: [np.zeros_like(t) if m is None else m for m, t in zip(maps, truth.maps)]
        for level, maps in case.predicted.items()
    }
    found = {
        name: score_prompts(truth.maps, predicted, left_out=truth.stuff_ids, ignore_id=case.ignore_id, **asked)
        for name, asked in PROMPTS.items()
    }
    summary: dict[str, Any] = {"truth": str(case.root), "truth_level": case.level, "views": case.stems}
    table, instances, views = [], [], []
    for name, scores in found.items():
        common, rows = scores.common_level, scores.at(scores.common_level)
        of_views = float(np.mean([r.iou_of_views for r in rows]))
        facts = {"miou": scores.miou(common), "miou_of_views": of_views, "objects": len(rows), "level": common}
        if len(scores.levels) > 1:
            facts["miou_best_levels_upper_bound"] = float(np.mean([r.iou for r in scores.best]))
        summary[name] = _rounded(facts)
        table.append((name, facts["miou"], of_views, len(rows), _level(common)))
        instances += [_prompt_row(name, r, case, scores) for r in scores.rows]
        views += [
            {
                "prompt": name, "level": _level(r.level), "id": r.id, "name": truth.names[r.id], "view": case.stems[v],
                "true_pixels": c.true, "predicted_pixels": c.predicted, "shared_pixels": c.shared, "iou": c.iou,
            }
            for r in scores.rows for v, c in r.views.items()
        ]  # fmt: skip
    first = next(iter(found.values()))
    notes = list(case.notes)
    if first.one_view:
        notes.append(f"left out, seen in one view only: {some(truth.names[i] for i in first.one_view)}")
    if first.skipped:
        notes.append(f"left out, under 60 pixels in these views: {some(truth.names[i] for i in first.skipped)}")
    if len(first.levels) > 1:
        notes.append("the level is the one that is best for all objects together")
    return Report(
        "prompts",
        PROMPT_DEFINITION,
        summary,
        [(("prompt", "mIoU", "mean of views", "objects", "level"), table)],
        (tuple(views[0]), views),
        (tuple(instances[0]), instances),
        notes,
    )


def _prompt_row(prompt: str, row: PromptRow, case: Case, scores: PromptScores) -> dict[str, Any]:
    clicks = "; ".join(f"{'+' if c.positive else '-'} {c.x} {c.y}" for c in row.clicks)
    return {
        "prompt": prompt, "level": _level(row.level), "id": row.id, "name": case.truth.names[row.id],
        "prompt_view": case.stems[row.prompt_view], "clicks": clicks, "predicted": " ".join(map(str, row.predicted)),
        "iou": row.iou, "iou_of_views": row.iou_of_views, "best_level": any(row is b for b in scores.best),
    }  # fmt: skip


def _level(level: Level) -> str:
    return "own" if level is None else f"{level:g}"


# --- pictures ---------------------------------------------------------------------------------------------


def _pictures(run: Run) -> Report:
    """Score the run's renders against photos: those held back, or all where none is."""
    columns = ["view", "split", "psnr", "ssim", "lpips"]
    report = Report("pictures", "renders against photos, mean over views", {}, [], (columns, []), None, [])
    if run.stored:
        report.notes.append(f"{run.scene} has no photos, so pictures are not scored")
        return report
    network = None
    try:
        network = load_lpips()
    except InputError as error:
        report.notes.append(str(error))
        columns.remove("lpips")
    work, rows = run.work, []
    indices = run.test_views or list(range(len(run.views)))
    with progress_bar("pictures", len(indices), quiet=work.quiet) as bar:
        for index in indices:
            photo = load_image(run.views[index]).astype(np.float32) / 255
            shown = render_rgb(work.splats, run.views[index].camera, work.rasterizer, work.background)
            split = "test" if index in run.test_views else "train"
            row = {"view": run.stems[index], "split": split, "psnr": psnr(shown, photo), "ssim": ssim(shown, photo)}
            rows.append(row if network is None else row | {"lpips": lpips(shown, photo, network)})
            bar.advance()
    found = {name: float(np.mean([r[name] for r in rows])) for name in columns[2:]}
    if not run.test_views:
        report.notes.append("no view was held back: the pictures are of views that were learned from")
    report.summary = {"views": [r["view"] for r in rows], **_rounded(found)}
    report.tables = [(("", f"{len(rows)} {rows[0]['split']} views"), [(k.upper(), v) for k, v in found.items()])]
    report.views = (columns, rows)
    return report


# --- benchmarks -------------------------------------------------------------------------------------------


def _benchmark(runs: list[Run], settings: EvalSettings) -> Report:
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
        results = [
            (s, r, _score_run(benchmark, s, r, settings, selections, notes))
            for r in runs
            for s in _scenes(r, benchmark)
        ]
    by_scene = {scene: means(benchmark, scores.rows) for scene, _, scores in results}
    overall = {k: float(np.mean([m[k] for m in by_scene.values()])) for k in next(iter(by_scene.values()))}
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
        if absent := [p for p in benchmark.prompts(scene) if p not in {r.prompt for r in scores.rows}]:
            notes.append(f"{scene}: left out, no view shows it: {some(absent)}")
    if settings.write_selection is not None:
        write_selection(settings.write_selection, selections)
    bound = settings.select == "oracle"
    names = [k for k in ("miou", "miou_others", "boundary_iou", "accuracy", "iou_pooled") if k in overall]
    counts = {scene: len(scores.rows) for scene, _, scores in results}
    table = [(s, counts[s], *(m.get(k, "") for k in names)) for s, m in by_scene.items()]
    if len(by_scene) > 1:
        table.append(("mean", sum(counts.values()), *(overall[k] for k in names)))
    titles = {"miou": "mIoU", "miou_others": "others' mIoU", "boundary_iou": "boundary", "iou_pooled": "pooled IoU"}
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
            **_rounded(overall), "scenes": {s: _rounded(m) for s, m in by_scene.items()},
        },
        [(("scene", "masks", *(titles.get(k, k) for k in names)), table)],
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


def _scenes(run: Run, benchmark: Benchmark) -> list[str]:
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
    run: Run,
    settings: EvalSettings,
    selections: dict[str, Selection],
    notes: list[str],
) -> BenchmarkScores:
    """Choose the segments of each prompt, and score their union in every view; adds what was chosen to `selections`."""
    masks = [m for m in benchmark.masks if m.scene == scene]
    order = benchmark.orders.get(scene, ())
    index = {v: find_view(v, run.stems, order, contained=benchmark.protocol == "spin-nerf") for v in _names(masks)}
    if learned := [v for v, i in index.items() if i not in run.test_views]:
        notes.append(f"{scene}: {len(learned)} of the {len(index)} true views were learned from ({some(learned)})")
    _ = run.maps(list(index.values()))

    def shown(mask: TrueMask, true: np.ndarray) -> np.ndarray:
        return run.at_size(index[mask.view], true.shape)

    prompts = benchmark.prompts(scene)
    if settings.selection is not None:
        chosen = read_selection(settings.selection, scene, prompts, run.ids)
    elif settings.select == "oracle":
        chosen = {}
        for prompt in prompts:
            pairs = [(true, shown(m, true)) for m in masks if m.prompt == prompt for true in [m.load()]]
            chosen[prompt] = best_ids([t for t, _ in pairs], [g for _, g in pairs])
    elif benchmark.references:
        chosen = {
            r.prompt: _pointed(r, run, find_view(r.view, run.stems, order, contained=True))
            for r in benchmark.references
            if r.scene == scene
        }
    else:
        raise InputError(
            f"the prompts of {benchmark.protocol} are texts ({some(prompts)}): say which segments they mean with "
            "--selection FILE, or take the best with --select oracle, which is an upper bound"
        )
    selections[scene] = chosen
    if lacking := [p for p in prompts if p not in chosen]:
        notes.append(f"{scene}: nothing is selected for {some(lacking)}")
    return score_masks(
        benchmark, masks, lambda m, true: np.isin(shown(m, true), chosen[m.prompt]) if m.prompt in chosen else None
    )


def _names(masks: Iterable[TrueMask]) -> list[str]:
    return list(dict.fromkeys(m.view for m in masks))


def _pointed(reference: Reference, run: Run, view: int) -> list[int]:
    """The segments that a benchmark's reference points at."""
    positive = read_mask(reference.positive)
    ids = run.at_size(view, positive.shape)
    if not positive.any():
        raise InputError(f"{reference.positive} is empty, so it points at nothing; restore it")
    if reference.negative is None:
        return mask_ids(positive, ids)
    negative = read_mask(reference.negative)
    if negative.shape != positive.shape:
        raise InputError(
            f"{reference.negative} is {_size(negative)} where {reference.positive.name} is {_size(positive)}; "
            "restore both"
        )
    return scribble_ids(positive, negative, ids)


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
        note = f"{scene}: predictions of {_size(found)} were resized to the truth's {_size(true)} (nearest)"
        notes.extend([] if note in notes else [note])
        return resize_nearest(found, true.shape[1], true.shape[0])

    return score_masks(benchmark, masks, predict)


# --- results ----------------------------------------------------------------------------------------------


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) and k != "level" else v for k, v in values.items()}


def _rest(row: Any, *without: str) -> dict[str, Any]:
    return {k: v for k, v in vars(row).items() if k not in without}


def _write(report: Report, folder: Path, quiet: bool) -> Path:
    """Write summary.json, views.csv and instances.csv, and print what they say."""
    columns, rows = report.views
    write_csv(folder / "views.csv", columns, rows)
    if report.instances is not None:
        write_csv(folder / "instances.csv", *report.instances)
    path = folder / "summary.json"
    facts = {"protocol": report.protocol, "definition": report.definition, **report.summary, "notes": report.notes}
    write_json(path, facts)
    if not quiet:
        console.print(f"\n{report.protocol}: {report.definition}", markup=False)
        for titles, table in report.tables:
            console.print("\n" + _lines(titles, table), markup=False)
        console.print()
        for note in report.notes:
            console.print(f"note: {note}", markup=False)
    console.print(f"result: {path}", markup=False)
    return path


def _lines(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay a table out in columns: the first to the left, numbers to the right."""
    cells = [[_cell(v) for v in row] for row in [titles, *rows]]
    widths = [max(len(row[c]) for row in cells) for c in range(len(titles))]
    return "\n".join(
        ("  " + "  ".join(v.rjust(w) if c else v.ljust(w) for c, (v, w) in enumerate(zip(row, widths)))).rstrip()
        for row in cells
    )


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
