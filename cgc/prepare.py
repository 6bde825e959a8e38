"""What comes before a run: a scene from bare photos, masks of its views, and splats without broken ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cgc import parallel
from cgc.arguments import Masks
from cgc.errors import InputError
from cgc.files import write_beside
from cgc.masks.checkpoints import OFFICIAL, cache_folder
from cgc.masks.generate import Made, Recipe, is_finished, keep_masks, make_together
from cgc.masks.generators import Custom, Regions, Sam
from cgc.masks.id_maps import read_id_map
from cgc.masks.image_masks import ImageMasks
from cgc.masks.importers import read_foreign
from cgc.masks.record import is_made, mask_names, read_record, set_path
from cgc.masks.regions import PRESETS as REGION_PRESETS
from cgc.masks.regions import RegionMerging
from cgc.masks.sam import PRESETS as SAM_PRESETS
from cgc.masks.sam import SegmentAnything
from cgc.progress import console, short_time
from cgc.run_folder import open_run
from cgc.scene.find import find_model
from cgc.scene.images import load_image
from cgc.scene.read import read_scene
from cgc.scene.reconstruct import reconstruct
from cgc.scene.types import Scene, View
from cgc.settings import MaskSettings, ReconstructSettings, RunSettings, SceneSettings, check, check_part
from cgc.splats.clean import ROW, clean
from cgc.splats.packed import SUFFIXES
from cgc.view.pictures import contact_sheet, overlay

PREVIEW = "preview.jpg"
PREVIEW_VIEWS = 12
PREVIEW_SIDE = 480
"""Pictures of the contact sheet are shrunk so that neither side is longer, in pixels."""


def choose_recipe(settings: MaskSettings, sam: SegmentAnything, regions: RegionMerging) -> tuple[Recipe, str]:
    """Return the recipe that the settings name, and a sentence on what it is and why it was chosen."""
    name = settings.generator
    if name == "auto":
        reason = _why_sam(sam)
        name = "sam" if reason else "regions"
        if not reason:
            return Regions(regions), (
                "masks by region merging, which needs no weights: it finds regions that differ in colour and texture, "
                "not things it has learned to know. Segment Anything finds things, and parts of them: "
                "--generator sam (it downloads its weights once; minutes a photo without a GPU)"
            )
        return Sam(sam), f"masks by Segment Anything ({reason})"
    if name == "regions":
        return Regions(regions), "masks by region merging: regions that differ in colour and texture"
    if name == "sam":
        return Sam(sam), "masks by Segment Anything"
    return Custom(name), f"masks by {name}"


def _why_sam(sam: SegmentAnything) -> str:
    """Say why Segment Anything can be used at once; "" where it cannot."""
    from cgc.device import see

    if sam.checkpoint is not None or (cache_folder() / OFFICIAL[sam.model].name).is_file():
        return "its weights are here"
    return "there is a GPU" if see(sam.device)[0].type == "cuda" else ""


def make(
    scene: Scene,
    folder: Path,
    settings: MaskSettings,
    sam: SegmentAnything,
    regions: RegionMerging,
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> Made:
    """Make the masks of a scene's views. Photos are shared among processes that torchrun has started."""
    recipe, said = choose_recipe(settings, sam, regions)
    if not quiet:
        size = parallel.count()
        console.print(said if size == 1 else f"{said}; {size} processes share the photos")
    return make_together(
        scene.views, recipe, folder, min_area=settings.min_area, workers=settings.workers, overwrite=overwrite,
        quiet=quiet,
    )  # fmt: skip


def say_made(made: Made, folder: Path, quiet: bool) -> None:
    """Say what was made; InputError that names what failed, after all else is done. For the first process."""
    if not parallel.is_first():
        return
    counts = list(made.masks.values())
    if not quiet:
        kept = f", {len(made.kept)} of them kept from before" if made.kept else ""
        middle = f"{int(np.median(counts))} masks each in the middle" if counts else "no masks"
        console.print(f"{len(counts)} views in {short_time(made.seconds)}, {middle}{kept}: {folder}")
    made.check()


def masks_command(options: Masks) -> None:
    """Make the masks of a scene, or take those that another tool has made (`--from`), and draw them."""
    settings, source, quiet, overwrite = options.masks, options.source, options.quiet, options.overwrite
    check_part("masks", settings)
    _check_meant_for_sam(settings, options.sam, source)
    if source is None and (options.tracked or options.format != "auto" or options.resize != "error"):
        raise InputError("--tracked, --format and --resize say how masks are read: give their folder with --from")
    photos = SceneSettings(downscale=options.downscale, max_side=options.max_side)
    with parallel.first_before_others():  # it may undistort photos, which the others find
        scene = read_scene(options.scene_folder, photos, quiet=quiet)
    _say_decisions(scene.notes, quiet or not parallel.is_first())
    folder = options.out or options.scene_folder / "masks"
    if source is not None:
        if not parallel.is_first():
            return
        foreign = read_foreign(
            source, scene.views, format=options.format, resize=options.resize, tracked=options.tracked
        )
        _say_decisions(foreign.opening, quiet)
        made = keep_masks(scene.views, foreign, folder, min_area=settings.min_area, overwrite=overwrite, quiet=quiet)
        loading = foreign.decisions[len(foreign.opening) :]
        if made.masks and not any(made.masks.values()):
            raise InputError(
                f"{source} has no mask that can be used for any of {len(made.masks)} views; masks of objects were "
                f"expected, so look at how they were exported{''.join(f' ({text})' for text in loading)}"
            )
        _say_decisions(loading, quiet)
    else:
        made = make(scene, folder, settings, options.sam, options.regions, overwrite=overwrite, quiet=quiet)
    if options.preview and made.masks and parallel.is_first():
        path = draw_preview(scene.views, folder)
        if not quiet:
            console.print(f"a look at them: {path}")
    say_made(made, folder, quiet)


def _check_meant_for_sam(settings: MaskSettings, sam: SegmentAnything, source: Path | None) -> None:
    """Raise InputError where settings of Segment Anything are given that no mask would be made with."""
    if source is None and settings.generator in ("auto", "sam"):
        return
    if source is None:
        why = f"the masks are to be made by {settings.generator}; use --generator sam, or leave it out"
    else:
        why = f"the masks are to be read from {source}; leave out --from, or this"
    if sam.checkpoint is not None:
        raise InputError(f"--checkpoint {sam.checkpoint} is for Segment Anything, but {why}")
    if replace(sam, device="auto") not in SAM_PRESETS.values():
        raise InputError(f"--model and --sam.* are settings of Segment Anything, but {why}")


def _say_decisions(decisions: Sequence[str], quiet: bool) -> None:
    for decision in decisions if not quiet else ():
        console.print(f"note: {decision}")


def draw_preview(views: Sequence[View], folder: Path) -> Path:
    """Write a contact sheet: of some views the photo, the id map over it and, where masks nest, the largest masks."""
    names = mask_names(views)
    there = [view for view in views if (folder / f"{names[view.name]}.png").is_file()]
    if not there:
        raise InputError(f"{folder} has no masks of these views yet; make them with `cgc masks`")
    most = min(PREVIEW_VIEWS, len(there))
    chosen = [there[int((k + 0.5) * len(there) / most)] for k in range(most)]
    pictures, wide = [], 2
    for view in chosen:
        photo = load_image(view)
        rows = [photo, overlay(photo, read_id_map(folder / f"{names[view.name]}.png"))]
        path = set_path(folder, names[view.name])
        if path.is_file():
            rows.append(overlay(photo, ImageMasks.load(path).flat(level=0)))
        wide = max(wide, len(rows))
        pictures.append([_shrunk(p) for p in rows])
    blank = np.full_like(pictures[0][0], 255)
    sheet = contact_sheet([p for row in pictures for p in [*row, *[blank] * (wide - len(row))]], columns=wide)
    target = folder / PREVIEW
    with write_beside(target) as temporary:
        from PIL import Image

        Image.fromarray(sheet).save(temporary, quality=88)
    return target


def _shrunk(picture: np.ndarray) -> np.ndarray:
    step = -(-max(picture.shape[:2]) // PREVIEW_SIDE)
    if step == 1:
        return picture
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return np.array(image)


def masks_meant(
    word: str, *, quiet: bool = False, device: str = "auto"
) -> Path | Callable[[Scene, bool], Path | None] | None:
    """Return what `--masks` means: a folder, what makes one of a scene (auto), or None (none)."""
    if word == "none":
        return None
    return partial(masks_of, quiet=quiet, device=device) if word == "auto" else Path(word)


def masks_of(scene: Scene, at_once: bool = True, *, quiet: bool = False, device: str = "auto") -> Path | None:
    """Return the folder of a scene's own masks; they are made, or finished, in the usual way where need be.

    None, unless they are needed `at_once`, where there are none and that way is to merge regions: splats help with it.
    """
    folder = scene.root / "masks"
    usual = MaskSettings(), replace(SAM_PRESETS["default"], device=device), REGION_PRESETS["default"]
    if is_made(folder):
        if is_finished(folder, scene.views):
            if not quiet:
                console.print(f"masks: those in {folder}")
            return folder
        if read_record(folder)["by"] != choose_recipe(*usual)[0].facts:
            raise InputError(
                f"the masks in {folder} are not finished: run the same `cgc masks` command again, or use them as they "
                f"are with --masks {folder}"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} was not made by `cgc masks`, so it may be something else: use it with --masks {folder}, import "
            f"it with `cgc masks {scene.root} --from {folder} --out DIR`, or go without with --masks none"
        )
    elif not at_once and isinstance(choose_recipe(*usual)[0], Regions):
        if not quiet:
            console.print(
                "masks: no weights of Segment Anything are here, so regions are merged once there are splats, by their "
                "colours, texture and depth. Segment Anything finds things, and parts of them: "
                f"`cgc masks {scene.root} --generator sam` (it downloads its weights once; minutes a photo without a "
                "GPU), then this command"
            )
        return None
    made = make(scene, folder, *usual, quiet=quiet)
    if made.masks and parallel.is_first():
        draw_preview(scene.views, folder)
    say_made(made, folder, quiet)
    return folder


def check_given(
    folder: Path, settings: RunSettings, masks: str, splats: Path | None, out: Path, device: str = "auto"
) -> None:
    """Raise InputError for what is wrong in a command before anything is made that takes time."""
    from cgc.device import see

    check(settings)
    see(device)
    has_run = (out / "scene.json").exists()
    if masks == "none" and has_run and open_run(out).source.masks:
        raise InputError(f"{out} is a run with masks; to go without, start another one with --out")
    if folder.is_file() and folder.suffix.lower() in SUFFIXES:
        raise InputError(
            f"{folder} was expected to be a scene; give the folder of the scene that it was trained on, and the splats "
            f"by --splats {folder}"
        )
    if _is_scene(folder):
        return  # what is given is checked in its turn, at once
    if masks not in ("auto", "none") and not Path(masks).is_dir():
        raise InputError(
            f"the mask folder {masks} does not exist; expected a folder with one PNG id map per view, auto or none"
        )
    if splats:
        raise InputError(
            f"{splats} can only be shown by the cameras that it was trained with, and {folder} has none; give the "
            "scene that it was trained on, with its sparse/0 or transforms.json, in place of bare photos"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file where a run folder was expected; choose another --out")


def scene_of(folder: Path, *, quiet: bool = False) -> Path:
    """Return the scene of a folder: itself where it has a camera model, else one reconstructed from its photos."""
    if _is_scene(folder):
        return folder
    made = parallel.by_first(lambda: str(reconstruct_command(folder, None, ReconstructSettings(), quiet=quiet)))
    return Path(made)


def _is_scene(folder: Path) -> bool:
    """Say whether a folder has a camera model, or should have; or is none at all, which reading it says best."""
    if not folder.is_dir():
        return not folder.exists()
    return find_model(folder) is not None or (folder / "sparse").exists()


def reconstruct_command(photos: Path, out: Path | None, settings: ReconstructSettings, *, quiet: bool = False) -> Path:
    """Make a scene of bare photos, or of a video; returns its folder."""
    return reconstruct(photos, out, settings, quiet=quiet).scene


def clean_command(splats: Path, out: Path | None, *, quiet: bool = False) -> None:
    """Copy splats without broken Gaussians, and say how many these were."""
    copy, left_out, total = clean(splats, out)
    if not quiet:
        console.print(
            f"{left_out:,} of {total:,} Gaussians left out, because they are not finite or of no possible size or "
            f"rotation; {ROW} says which each of the others was: {copy}"
        )
