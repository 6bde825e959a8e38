"""Make the masks of a scene's views with a generator, one view at a time, and keep what is made.

    DIR/masks.json        what made them
        VIEW.png          the flat id map, 16 bit
        sets/VIEW.npz     every mask, overlapping and nested (`ImageMasks`)

A view is done if both files are there and were made of this photo in the same way, so a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cgc import parallel
from cgc.errors import InputError, interrupt_in
from cgc.files import sha256, write_json
from cgc.masks.id_maps import read_id_map, write_id_map
from cgc.masks.image_masks import ImageMasks, read_facts
from cgc.masks.record import FORMAT, RECORD, is_made, mask_names, read_record, set_path
from cgc.progress import progress_bar
from cgc.scene.images import load_image
from cgc.scene.types import View

WORTH_A_WORKER = 1_000_000
"""Pixels of photos for which another process is started: it takes seconds, in which regions of so many are merged."""
LONGEST = 300
"""Characters that are said of why a generator failed."""


class Recipe(Protocol):
    """Settings of a generator, light enough to be sent to another process; `load` makes it ready once.

    What is loaded takes an image [H, W, 3] uint8, and its depth [H, W] where `make_masks` is given depths.
    """

    @property
    def facts(self) -> dict[str, Any]:
        """What tells these masks from others, as JSON values."""
        ...

    def load(self, *, quiet: bool = False) -> Callable[..., ImageMasks]: ...

    def most_workers(self) -> int:
        """How many processes of this machine may make masks at once."""
        ...


@dataclass(frozen=True)
class Made:
    """What happened to the views: how many masks each has, which were kept from before, and which failed and why."""

    masks: dict[str, int]
    kept: tuple[str, ...]
    failed: dict[str, str]
    seconds: float

    def check(self) -> None:
        """Raise InputError that names the views that failed, in the first process."""
        if not self.failed or not parallel.is_first():
            return
        some = "; ".join(f"{name} ({why})" for name, why in list(self.failed.items())[:3])
        more = f" and {len(self.failed) - 3} more" if len(self.failed) > 3 else ""
        raise InputError(
            f"{len(self.failed)} of {len(self.failed) + len(self.masks)} views have no masks: {some}{more}; the others "
            "are kept, and the same command tries these again"
        )


def make_masks(
    views: Sequence[View],
    recipe: Recipe,
    folder: Path,
    *,
    min_area: float = 1e-4,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    depth_of: Callable[[View], np.ndarray] | None = None,
    quiet: bool = False,
) -> Made:
    """Make the masks of every `shard[1]`-th view from the `shard[0]`-th, several at a time in `workers` processes.

    `min_area` is the smallest mask's share of the image. A view that fails does not stop the others. InputError where
    the folder holds masks that were not made so, unless `overwrite`. With `depth_of`, which gives the depth [H, W] of a
    view's pixels and is asked here, a view at a time, the generator takes an image and its depth.
    """
    start = time.perf_counter()
    record = {"format": FORMAT, "by": recipe.facts, "min_area": min_area}
    with parallel.first_before_others():
        _claim(folder, record, overwrite)
    own = list(views[shard[0] :: shard[1]])
    names = mask_names(views)
    jobs = [_Job(view, names[view.name], folder, _key(record, view), _hash(record), min_area) for view in own]
    masks: dict[str, int] = {}
    failed: dict[str, str] = {}
    todo = []
    for job in jobs:
        if (count := _count_done(job)) is None:
            todo.append(job)
        else:
            masks[job.view.name] = count
    kept = tuple(masks)
    with progress_bar("masks", len(jobs), start=len(kept), quiet=quiet) as bar:
        for job, outcome in _work(todo, recipe, min(workers, len(todo)), depth_of, quiet):
            done = len(masks) - len(kept) + 1
            pace = f"{60 * done / (time.perf_counter() - start):.3g}/min"
            if isinstance(outcome, int):
                masks[job.view.name] = outcome
                bar.advance(1, masks=outcome, images=pace)
            else:
                failed[job.view.name] = outcome
                job.flat.unlink(missing_ok=True)  # what was made otherwise, if anything
                job.set.unlink(missing_ok=True)
                bar.advance(1, failed=len(failed), images=pace)
    return Made(masks, kept, failed, time.perf_counter() - start)


def make_together(
    views: Sequence[View],
    recipe: Recipe,
    folder: Path,
    *,
    min_area: float = 1e-4,
    workers: int = 0,
    overwrite: bool = False,
    depth_of: Callable[[View], np.ndarray] | None = None,
    quiet: bool = False,
) -> Made:
    """Make masks as `make_masks` does, shared among the processes that torchrun has started; all return all of them.

    `workers` 0: as many as suit the recipe, the photos, and the machine where there is one process.
    """
    shard = parallel.here()
    worth = sum(view.camera.width * view.camera.height for view in views) // WORTH_A_WORKER
    workers = workers or (max(1, min(recipe.most_workers(), worth)) if shard[1] == 1 else 1)
    parallel.check_same(masks=json.dumps([recipe.facts, min_area, len(views)], sort_keys=True))
    made = make_masks(
        views, recipe, folder, min_area=min_area, workers=workers, shard=shard, overwrite=overwrite, depth_of=depth_of,
        quiet=quiet,
    )  # fmt: skip
    shares = [Made(**share) for share in parallel.collect(asdict(made))]
    if len(shares) == 1:
        return made
    names = [view.name for view in views]
    masks = {name: share.masks[name] for name in names for share in shares if name in share.masks}
    kept = tuple(name for name in names if any(name in share.kept for share in shares))
    failed = {name: share.failed[name] for name in names for share in shares if name in share.failed}
    return Made(masks, kept, failed, max(share.seconds for share in shares))


def _claim(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Write the record of a folder that is empty or has the same; InputError where it holds other masks."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file where the folder of the masks was expected; choose another --out")
    there = folder.is_dir() and any(path for path in folder.iterdir() if ".partial" not in path.name)
    if there and not is_made(folder):
        raise InputError(
            f"{folder} has files that `cgc masks` has not made, and none of them is replaced; choose another --out "
            f"(or use these masks as they are: `cgc run SCENE --masks {folder}`)"
        )
    old = {k: v for k, v in read_record(folder).items() if k != "complete"} if there and not overwrite else record
    if old != record:
        raise InputError(
            f"{folder} has masks that were made otherwise ({_changes(old, record)}); add --overwrite to replace them, "
            "or choose another --out"
        )
    if parallel.is_first():
        write_json(folder / RECORD, record)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """List what differs between two records: `name old, now new`."""
    said = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            said += [text] if (text := _changes(a, b)) else []
        elif a != b:
            said.append(f"{name} {a}, now {b}")
    return "; ".join(said)


@dataclass(frozen=True)
class _Job:
    view: View
    name: str
    folder: Path
    key: str
    made: str
    min_area: float

    @property
    def flat(self) -> Path:
        return self.folder / f"{self.name}.png"

    @property
    def set(self) -> Path:
        return set_path(self.folder, self.name)


class Foreign(Protocol):
    """Masks that another tool has made, by view."""

    @property
    def format(self) -> str: ...

    @property
    def tracked(self) -> bool:
        """Say whether ids mean the same thing in every view."""
        ...

    def load(self, view_index: int) -> ImageMasks | None: ...

    def id_map(self, view_index: int) -> np.ndarray | None:
        """Return the ids as they are, [H, W] int32; for tracked masks."""
        ...


def keep_masks(
    views: Sequence[View],
    foreign: Foreign,
    folder: Path,
    *,
    min_area: float = 1e-4,
    overwrite: bool = False,
    quiet: bool = False,
) -> Made:
    """Write the masks of another tool as ours, views without any left out. Tracked ids stay as they are."""
    start = time.perf_counter()
    record = {"format": FORMAT, "by": {"imported": foreign.format}, "min_area": min_area, "tracked": foreign.tracked}
    _claim(folder, record, overwrite)
    masks: dict[str, int] = {}
    names = mask_names(views)
    with progress_bar("masks", len(views), quiet=quiet) as bar:
        for i, view in enumerate(views):
            path, set_of = folder / f"{names[view.name]}.png", set_path(folder, names[view.name])
            set_of.unlink(missing_ok=True)
            flat = foreign.id_map(i) if foreign.tracked else None
            found = None if foreign.tracked else foreign.load(i)
            if found is not None:
                flat, painted = found.paint(min_area=round(min_area * found.height * found.width))
                found.save(set_of, painted, masks=str(len(found)))
            if flat is None:
                path.unlink(missing_ok=True)
            else:
                write_id_map(path, flat)
                masks[view.name] = len(found) if found is not None else int((np.bincount(flat.ravel())[1:] > 0).sum())
            bar.advance(1, masks=masks.get(view.name, 0))
    write_json(folder / RECORD, record | {"complete": True})
    return Made(masks, (), {}, time.perf_counter() - start)


def is_finished(folder: Path, views: Sequence[View]) -> bool:
    """Say whether every view has masks as the folder's record says, of whatever size; or an import came to its end."""
    record = read_record(folder)
    if not record or "imported" in record["by"]:
        return bool(record.get("complete"))
    names, made = mask_names(views), _hash(record)
    return all(
        (folder / f"{names[view.name]}.png").is_file()
        and read_facts(set_path(folder, names[view.name])).get("made") == made
        for view in views
    )


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _key(record: dict[str, Any], view: View) -> str:
    """Hash what the masks of a view follow from: how they are made, the photo and the size it is used at."""
    size = [view.camera.width, view.camera.height]
    try:
        photo = sha256(view.image_path)
    except OSError:
        photo = "unreadable"  # making them says why
    return hashlib.sha256(json.dumps([record, photo, size], sort_keys=True).encode()).hexdigest()[:16]


def _count_done(job: _Job) -> int | None:
    """Return how many masks a view that is done has; None where it is not done."""
    facts = read_facts(job.set)
    if facts.get("key") != job.key:
        return None
    try:
        read_id_map(job.flat)
    except InputError:
        return None
    return int(facts["masks"])


def _work(
    jobs: list[_Job], recipe: Recipe, workers: int, depth_of: Callable[[View], np.ndarray] | None, quiet: bool
) -> Iterator[tuple[_Job, int | str]]:
    """Do the jobs; gives each with its number of masks, or with why it failed."""
    if not jobs:
        return

    def guides(job: _Job) -> tuple[np.ndarray, ...]:
        return () if depth_of is None else (depth_of(job.view),)

    if workers <= 1:
        generator = recipe.load(quiet=quiet)
        for job in jobs:
            yield job, _attempt(job, generator, *guides(job))
        return
    context = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(recipe,)) as pool:
        futures: dict[Future[int | str], _Job] = {}
        waiting = iter(jobs)
        try:
            while True:
                for job in islice(waiting, 2 * workers - len(futures)):  # what waits has its depth in memory
                    futures[pool.submit(_attempt_here, job, *guides(job))] = job
                if not futures:
                    break
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process that made masks was ended from outside, most likely for want of memory; what is done is "
                "kept: run `cgc masks` with --workers 1, then the same command again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_generator: Callable[..., ImageMasks] | None = None  # of a worker process


def _prepare(recipe: Recipe) -> None:
    global _generator
    _generator = recipe.load(quiet=True)


def _attempt_here(job: _Job, *guides: np.ndarray) -> int | str:
    assert _generator is not None
    return _attempt(job, _generator, *guides)


def _attempt(job: _Job, generator: Callable[..., ImageMasks], *guides: np.ndarray) -> int | str:
    """Make and write the masks of a view; returns how many, or why it failed: one bad photo must not lose the rest."""
    try:
        made = generator(load_image(job.view), *guides)
        flat, painted = made.paint(min_area=round(job.min_area * made.height * made.width))
    except InputError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # a generator is anybody's code
        if stop := interrupt_in(error):
            raise stop from error
        return ": ".join([type(error).__name__, *[" ".join(str(error).split())[:LONGEST] or "it did not say why"]])
    write_id_map(job.flat, flat)  # the set has the key that says both are done
    made.save(job.set, painted, key=job.key, made=job.made, masks=str(len(made)))
    return len(made)
