"""What `cgc run`, the commands of single steps, and `cgc info` do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cgc import parallel
from cgc.blocks.cut import check_size
from cgc.errors import InputError, some
from cgc.pipeline.export import export_at
from cgc.pipeline.facts import find_warnings, headline
from cgc.pipeline.render import render_at
from cgc.pipeline.steps import do, meet
from cgc.pipeline.workspace import Workspace
from cgc.progress import console
from cgc.run_folder import OWN_MASKS, STEPS, RunFolder, Source, at_work, create_run, moved_masks, open_run
from cgc.scene.images import check_images
from cgc.scene.read import fingerprint, read_scene
from cgc.scene.types import Scene
from cgc.segmentation.segments import Node, Segment, load_nodes, load_table
from cgc.settings import RunSettings, check
from cgc.splats.mapped import MappedSplats
from cgc.splats.read import hash_splats, read_splats

MakeMasks = Callable[[Scene, bool], "Path | None"]
"""Give the folder of a scene's masks, made where need be; None where the run's splats help to make them, unless True:
they are needed at once."""
LEVELS: dict[str, Callable[[Workspace, float], str]] = {"render": render_at, "export": export_at}
"""The steps that can be done at one level of the hierarchy."""


def run_all(
    scene_path: Path,
    out: Path,
    settings: RunSettings,
    *,
    masks: Path | MakeMasks | None,
    splats: Path | None,
    quiet: bool = False,
    device: str = "auto",
) -> RunFolder:
    """Do every step that is not done yet, and say where the result lies; without masks the run ends with the splats.

    masks: their folder, or what finds or makes one where the run has none yet. device: see `cgc.device.choose`.
    Everything that is given is checked before anything is written.
    """
    check(settings)
    check_size(settings.blocks.gaussians)
    with parallel.first_before_others():
        scene = read_scene(scene_path, settings.scene, quiet=quiet)
    source = Source(
        scene=os.path.realpath(scene_path),
        masks=os.path.realpath(masks) if isinstance(masks, Path) else None,
        splats=os.path.realpath(splats) if splats else None,
        fingerprint=fingerprint(scene),
    )
    with contextlib.ExitStack() as held:
        held.enter_context(at_work(out))
        work = Workspace(create_run(out, settings, source), quiet=quiet, scene=scene, device=device)
        meet(work)
        notes = _take_given(work, masks, splats, held)
        _hold(held, out)
        if not (out / "config.json").exists() or not (out / "scene.json").exists():
            work.run.save_settings()  # a stopped training needs them; later ones are kept once their step has succeeded
        for note in notes:
            work.say(f"note: {note}")
        for step in STEPS if work.run.source.masks else ("train", "report"):
            if parallel.agree(work.run.is_done(step)):
                work.say(f"{step}: done before, kept")
            else:
                if work.run.is_current(step):
                    work.say(f"note: {work.run.undone(step)}; it is done again")
                work.say(f"{step}: {do(work, step)}")
        work.run.save_settings()
    if not work.run.source.masks:
        work.say("no masks were given, so there are no segments; add them with --masks DIR")
    _say_result(work)
    return work.run


def _hold(held: contextlib.ExitStack, out: Path) -> None:
    """Have the folder of a run for this command alone, made where there is none."""
    if parallel.is_first():
        with contextlib.suppress(OSError):  # writing into it says why it cannot be
            out.mkdir(parents=True, exist_ok=True)
        held.enter_context(at_work(out))


def _take_given(
    work: Workspace, masks: Path | MakeMasks | None, splats: Path | None, held: contextlib.ExitStack
) -> list[str]:
    """Check masks, splats and photos, make masks where they are to be made; returns what is to be said of them."""
    run, scene = work.run, work.scene_as_read
    notes, mapped = list(scene.notes), run.settings.blocks.gaussians > 0
    if splats is None and (splats := _changed_splats(run)):
        notes.append(f"{splats} has changed since the run took its splats from it; they are taken again")
    if splats:
        _check_splats(splats, mapped=mapped)
    check_photos = cache(lambda: check_images(scene.views))  # once: it reads them all
    at_once = run.trains_features or mapped
    if callable(masks) and (not run.source.masks or (run.makes_masks and at_once)):
        if not run.is_done("train"):
            check_photos()
        _hold(held, run.root)
        run.save_settings()  # where that fails, nothing is made in vain
        found = masks(scene, at_once)
        run.source = replace(run.source, masks=os.path.realpath(found) if found else OWN_MASKS)
    if run.makes_masks:
        _ = work.truth
    elif run.source.masks:
        run.source = replace(run.source, masks_hash=work.hash_masks())
        notes += work.masks.notes
        _ = work.truth
        most = run.settings.train.max_gaussians
        if mapped and not splats and not run.is_done("train") and most > run.settings.blocks.gaussians:
            work.check_blocks()  # and not only when training has ended
    if splats:
        run.source = replace(run.source, splats_hash=hash_splats(splats))
    if run.is_current("train"):
        run.unchanged("splats.ply")
    if not run.is_done("train"):
        check_photos()
        return notes
    if not run.source.splats and (newer := _newer(run, scene)):
        notes.append(
            f"photos are newer than the splats that were trained on them: {some(newer)}; if they show something else "
            f"now, remove {run.root / 'splats.ply'} and run this again"
        )
    return notes


def _changed_splats(run: RunFolder) -> Path | None:
    """Return the file that the run took its splats from, where it has changed; where it is gone they are kept."""
    path = Path(run.source.splats) if run.source.splats else None
    return path if path and path.is_file() and hash_splats(path) != run.source.splats_hash else None


def run_step(
    out: Path,
    step: str,
    *,
    quiet: bool = False,
    scene: Path | None = None,
    masks: Path | None = None,
    device: str = "auto",
    **changed: Any,
) -> RunFolder:
    """Do one step of an existing run again, with settings `changed` (train=, lift=, blocks=, cluster=, ...).

    `scene` and `masks` say where these lie now. The run keeps the settings once the step has succeeded.
    """
    with at_work(out):
        run = open_run(out)
        run.settings = replace(run.settings, **changed)
        check(run.settings)
        check_size(run.settings.blocks.gaussians)
        if masks is not None:
            run.source = replace(run.source, masks=os.path.realpath(masks))
        work = Workspace(run, quiet=quiet, device=device)
        if scene is not None:
            place = os.path.realpath(scene)
            kept = moved_masks(run.source.masks, run.source.scene, place)
            run.source = replace(run.source, scene=place, masks=kept)
            with parallel.first_before_others():
                _ = work.scene_as_read
        meet(work)
        if step == "train" and run.source.splats:
            run.source = replace(run.source, splats_hash=hash_splats(Path(run.source.splats)))  # it may have changed
        said = do(work, step)
        stale = [s for s in STEPS if run.has_done(s) and not run.is_done(s)]
        if stale:
            work.say(f"now out of date: {', '.join(stale)} (run `cgc {stale[0]} {out}`, or `cgc run` for all of them)")
        work.say(f"{step}: {said}")
        return run


def _newer(run: RunFolder, scene: Scene) -> list[str]:
    """Return the photos that were written after the run's splats."""
    made = (run.root / "splats.ply").stat().st_mtime
    return [view.name for view in scene.views if view.image_path.stat().st_mtime > made]


def _check_splats(path: Path, *, mapped: bool) -> None:
    """Raise InputError unless a file holds whole, finite splats; `mapped`: without holding all of them."""
    if mapped:
        for _ in MappedSplats(path).chunks():
            pass
    else:
        _ = read_splats(path)


def run_at(out: Path, step: str, level: float, *, quiet: bool = False, device: str = "auto") -> None:
    """Render or export what the hierarchy of a run shows at a level, beside what the steps have left."""
    work = Workspace(open_run(out), quiet=quiet, device=device)
    meet(work)
    if step == "render" or parallel.is_first():
        work.say(f"{step}: {LEVELS[step](work, level)}")


def demo_scene() -> Path:
    """The bundled scene: inside the installed package, or in data/ of a source tree."""
    here = Path(__file__).parent.parent
    for place in (here / "demo_data", here.parent / "data" / "demo"):
        if (place / "instances.json").exists():
            return place
    raise InputError(f"the bundled scene is missing: expected {here / 'demo_data'}; install cgc again")


def _say_result(work: Workspace) -> None:
    for label, text in headline(work.run.stats).items():
        work.say(f"  {label:<17} {text}")
    for warning in find_warnings(work.run.stats):
        work.say(f"warning: {warning}")
    console.print(f"result: {work.run.root / 'report' / 'index.html'}")


def info(out: Path) -> None:
    """Print what a run folder holds."""
    run = open_run(out)
    console.print(f"{out}: a run of {run.source.scene}")
    console.print(f"  masks             {run.masks_folder or 'none'}")
    if run.source.splats:
        console.print(f"  splats            {run.source.splats}")
    for step in STEPS:
        if run.is_done(step):
            state = f"done in {run.stats['seconds'].get(step, 0):.1f} s"
        else:
            state = "out of date" if run.has_done(step) else "not done"
        console.print(f"  {step:<17} {state}")
    for label, text in headline(run.stats).items():
        console.print(f"  {label:<17} {text}")
    if run.stats.get("level", 1.0) < 1:  # 1: nothing was joined
        console.print(f"  level of objects  {run.stats['level']:.2f}")
    if (run.root / "segments.json").exists():
        for s in load_table(run.root):
            console.print(
                f"  segment {s.id:<5} {s.gaussians:>8,} Gaussians  {s.views:>3} views  confidence {s.confidence:.2f}"
                + _relatives(s)
            )
        for node in load_nodes(run.root):
            console.print(
                f"  node {node.id:<8} {node.gaussians:>8,} Gaussians  level {node.level:.2f}{_relatives(node)}"
            )


def _relatives(segment: Segment | Node) -> str:
    parts = "  parts " + " ".join(map(str, segment.children)) if segment.children else ""
    return parts + (f"  in {segment.parent}" if segment.parent else "")
