"""The commands that ask a segmented scene, show it, change it and take things out: they print, and call the API."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cgc.api import load
from cgc.arguments import Edit, Export, Query, View
from cgc.device import choose
from cgc.errors import InputError, some
from cgc.masks.id_maps import read_id_map
from cgc.progress import console, counted, short_lengths
from cgc.segmentation.clip import OpenClip
from cgc.segmentation.export import check_formats, job_of
from cgc.segmentation.export import export as write_formats
from cgc.segmentation.objects import Object
from cgc.segmentation.query import Match
from cgc.segmentation.segmentation import Segmentation
from cgc.view.frames import Extras, screenshot
from cgc.view.shots import parse_size


def _open(folder: Path, device: str, *, quiet: bool = False) -> Segmentation:
    """Open a run, or what was saved of one, on a device; say on which."""
    found, why = choose(device, None if quiet else console.print)
    if not quiet:
        console.print(why)
    return load(folder, device=str(found))


# --- ask --------------------------------------------------------------------------------------------------


def query(options: Query) -> None:
    """Print the objects that one question finds; without a question, all of them."""
    places = options.click or None, options.point, options.ray, options.box, options.rect, options.mask
    if sum(question is not None for question in (*places, options.similar, options.text)) > 1:
        raise InputError("one question at a time: give one of --click, --point, --ray, --box, --rect, --mask, "
                         "--similar and --text")  # fmt: skip
    if options.not_click and not options.click:
        raise InputError("--not-click says where the object is not; say where it is with --click")
    quiet = options.json or options.device == "auto"  # a table that others may read
    seg = _open(options.run, options.device, quiet=quiet)
    seg = seg.at_level(options.level) if options.level is not None else seg
    _print(_answer(seg, options), options.json)


def _answer(seg: Segmentation, options: Query) -> _Answer:
    if options.click:
        return _at_clicks(seg, options.click, options.not_click)
    if options.point:
        found = seg.at_point(options.point)
        return _Answer([] if found is None else [found])
    if options.ray:
        return _along(seg, options.ray)
    if options.box:
        return _Answer(seg.in_box(options.box[:3], options.box[3:]))
    if options.rect is not None:
        view, numbers = _view_and_numbers(options.rect, 4, "--rect")
        return _Answer(seg.in_rect(view, *numbers))
    if options.mask is not None:
        return _Answer(_in_mask(seg, options.mask))
    if options.similar is not None:
        return _matched(seg.similar(_object(seg, options.similar), options.most))
    if options.text is not None:
        return _matched(seg.find(options.text, options.most, OpenClip(options.text_model, options.text_weights)))
    return _Answer(seg.objects)


class _Answer(NamedTuple):
    """Objects, what else there is to say to people, and facts beside each object's own (none, or of each)."""

    objects: Sequence[Object]
    notes: Sequence[str] = ()
    facts: Sequence[dict[str, Any]] = ()


def _at_clicks(seg: Segmentation, clicks: Sequence[str], not_clicks: Sequence[str]) -> _Answer:
    found = list(seg.at_clicks(_clicks(clicks), _clicks(not_clicks)))
    return _Answer(found, () if found else ["nothing is there: the pixels show noise or the background"])


def _along(seg: Segmentation, ray: Sequence[float]) -> _Answer:
    hits = seg.along_ray(ray[:3], ray[3:])
    return _Answer(
        [hit.object for hit in hits],
        [f"{hit.object.id}: {hit.weight:.0%} of what is seen, {hit.distance:.4g} away" for hit in hits],
        [{"weight": hit.weight, "distance": hit.distance} for hit in hits],
    )


def _in_mask(seg: Segmentation, word: str) -> list[Object]:
    view, _, file = word.partition(",")
    if not file:
        raise InputError(f"--mask is {word!r} where VIEW,FILE.png was expected")
    if not Path(file).is_file():
        raise InputError(f"--mask names {file}, where there is no file; give VIEW,FILE.png")
    return list(seg.from_mask(view, read_id_map(Path(file)) > 0))


def _matched(matches: Sequence[Match]) -> _Answer:
    return _Answer(
        [match.object for match in matches],
        [f"{match.object.id}: {match.score:.3f} by {match.by}" for match in matches],
        [{"score": match.score, "by": match.by} for match in matches],
    )


def _clicks(words: Sequence[str]) -> list[tuple[str, float, float]]:
    """Read clicks like 0007.jpg,310,220."""
    return [(view, x, y) for view, (x, y) in (_view_and_numbers(word, 2, "--click") for word in words)]


def _view_and_numbers(word: str, count: int, option: str) -> tuple[str, list[float]]:
    """Read VIEW,NUMBER,...; the name may hold commas."""
    parts = word.rsplit(",", count)
    try:
        numbers = [float(x) for x in parts[1:]]
    except ValueError:
        numbers = []
    if len(numbers) != count or not parts[0]:
        places = {2: "X,Y", 4: "X0,Y0,X1,Y1"}[count]
        raise InputError(f"{option} is {word!r} where VIEW,{places} was expected, in pixels from the top left")
    return parts[0], numbers


def _print(answer: _Answer, as_json: bool) -> None:
    """Print a row an object, with the facts of each, and notes for people."""
    rows = [_row(obj) | more for obj, more in zip(answer.objects, answer.facts or [{}] * len(answer.objects))]
    if as_json:
        console.print(json.dumps(rows, indent=1))
        return
    if rows:
        console.print(_line("id", "Gaussians", "size", "centre", "best view", "in", "parts", "name"))
    for r in rows:
        size, centre = (short_lengths(r[what], max(r["size"])) for what in ("size", "centre"))
        parts, within = " ".join(map(str, r["children"])) or "-", str(r["parent"] or "-")
        words = f"{r['id']}", f"{r['gaussians']:,}", " x ".join(size), ", ".join(centre), r["best_view"]
        console.print(_line(*words, within, parts, r["name"]))
    for note in answer.notes:
        console.print(note)
    if not rows and not answer.notes:
        console.print("nothing is there")


def _line(*words: str) -> str:
    widths = (">5", ">9", "<24", "<25", "<16", "<4", "<7", "<0")
    return "  ".join(f"{word:{width}}" for word, width in zip(words, widths)).rstrip()


def _row(obj: Object) -> dict[str, Any]:
    box = obj.box
    return {
        "id": obj.id,
        "name": obj.name,
        "gaussians": obj.gaussians,
        "centre": obj.centre.tolist(),
        "size": box.size.tolist(),
        "axes": box.axes.tolist(),
        "volume": obj.volume,
        "color": list(obj.color),
        "confidence": obj.confidence,
        "best_view": obj.best_view,
        "parent": obj.parent,
        "children": list(obj.children),
        "level": obj.level,
    }


def view(options: View) -> None:
    """Show a segmentation in a window, in a browser, or in one picture."""
    picture, camera, level = options.screenshot, options.camera, options.level
    if picture and options.web:
        raise InputError("--screenshot writes one picture and --web serves pages; give one of them")
    if options.ids and not picture:
        raise InputError("--ids is for the picture of --screenshot; in a window and a browser the list names objects")
    size = None if options.size is None else parse_size(options.size)
    seg = _open(options.run, options.device)
    if picture:
        extras = Extras(ids=options.ids)
        console.print(f"{screenshot(seg, picture, options.mode or 'segments', camera, size, level, extras)}")
        return
    mode, out = options.mode or "color", options.out
    if options.web:
        from cgc.view.web import serve

        serve(seg, options.port, host=options.host, mode=mode, camera=camera, level=level, out=out, say=console.print)
    else:
        from cgc.view.window import open_window

        open_window(seg, mode=mode, camera=camera, size=size, level=level, out=out, leave=True)


# --- change -----------------------------------------------------------------------------------------------


def edit(options: Edit) -> None:
    """Change a segmentation in the order of the options, save it in `out`, and say what was done."""
    out = options.out
    seg = start = _open(options.run, options.device)
    if out.exists() and out.samefile(options.run):
        raise InputError(f"{out} is what is edited; give another folder with --out, so that nothing of it is lost")
    for word in options.rename:
        which, name = _assignment(seg, word, "--rename", "ID=NAME")
        seg = seg.rename(which, name)
    for word in options.recolor:
        which, color = _assignment(seg, word, "--recolor", "ID=#RRGGBB")
        seg = seg.recolor(which, _rgb(color))
    if options.merge:
        seg = seg.merge(*_objects(seg, options.merge))
    for word in options.split:
        seg = seg.split(_object(seg, word))
    motions = _motions(seg, options.scale, options.rotate, options.move)
    for which, how in motions.items():
        seg = seg.transform(which, **how, halo=options.halo)
    if options.keep:
        seg = seg.keep(*_objects(seg, options.keep))
    if options.remove:
        seg = seg.remove(*_objects(seg, options.remove), halo=options.halo, fill=options.fill)
    if seg is start:
        raise InputError(
            "nothing to do: give one of --remove, --keep, --merge, --split, --rename, --recolor, --move, --rotate and "
            "--scale"
        )
    before = out.exists()
    saved = seg.save(out)
    if before:
        console.print(f"what was saved there before is replaced: {saved}")
    for record in seg.edits[len(start.edits) :]:
        facts = ", ".join(f"{k} {_brief(v)}" for k, v in record.items() if k != "edit" and v not in ([], ""))
        console.print(f"{record['edit']}: {facts}")
    if options.halo and (options.remove or motions) and not seg.context.known_cameras:
        why = seg.context.lost or "there are no views"
        console.print(f"note: the halo was not healed, which takes the cameras of the views: {why}")
    console.print(f"{len(seg)} objects, {len(seg.splats):,} Gaussians: {saved}")


def _object(seg: Segmentation, word: str) -> int:
    """Return the id of the object that a word means: its id, or its name."""
    return seg[int(word) if re.fullmatch(r"\d+", word) else word].id


def _objects(seg: Segmentation, words: Sequence[str]) -> list[int]:
    return [_object(seg, word) for word in words]


def _motions(
    seg: Segmentation, scale: Sequence[str], rotate: Sequence[str], move: Sequence[str]
) -> dict[int, dict[str, Any]]:
    """Return what `transform` takes, by id: all that is done to one is one motion, scaled, then turned, then moved."""
    found: dict[int, dict[str, Any]] = {}
    for word in scale:
        which, value = _assignment(seg, word, "--scale", "ID=FACTOR")
        how = found.setdefault(which, {})
        how["scale"] = how.get("scale", 1.0) * _numbers(value, 1, word)[0]
    for word in rotate:
        which, value = _assignment(seg, word, "--rotate", "ID=X,Y,Z")
        how = found.setdefault(which, {})
        how["rotation"] = _turn(_numbers(value, 3, word)) @ how.get("rotation", np.eye(3))
    for word in move:
        which, value = _assignment(seg, word, "--move", "ID=X,Y,Z")
        how = found.setdefault(which, {})
        how["translation"] = np.add(how.get("translation", np.zeros(3)), _numbers(value, 3, word))
    return found


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_brief(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _assignment(seg: Segmentation, word: str, option: str, form: str) -> tuple[int, str]:
    which, equals, value = word.partition("=") if option == "--rename" else word.rpartition("=")  # names may hold some
    if not equals or not which.strip():
        raise InputError(f"{option} is {word!r} where {form} was expected")
    return _object(seg, which.strip()), value


def _numbers(text: str, count: int, word: str) -> list[float]:
    try:
        numbers = [float(x) for x in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise InputError(f"{word!r} has {text!r} where {count} number{'s' * (count > 1)} with commas were expected")
    return numbers


def _rgb(text: str) -> list[float]:
    if not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise InputError(f"{text!r} is no colour; write it as #RRGGBB")
    return [int(text[-6:][i : i + 2], 16) / 255 for i in (0, 2, 4)]


def _turn(degrees: Sequence[float]) -> np.ndarray:
    """The rotation about an axis (x, y, z) by as many degrees as the vector is long, [3, 3]."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(np.asarray(degrees), degrees=True).as_matrix()


# --- take away --------------------------------------------------------------------------------------------


def export(options: Export) -> None:
    """Write some formats of some objects (none: all that are shown) into a folder, by default export/ beside them.

    With a level the default is export_at_LEVEL/, so that the objects of different levels do not mix.
    """
    level, quiet = options.level, options.quiet
    names = [name for word in options.format for name in word.split(",") if name] or ["ply"]
    check_formats(names)
    seg = _open(options.out, options.device, quiet=quiet)
    seg = seg.at_level(level) if level is not None else seg
    job = job_of(seg, _objects(seg, options.objects) or None, options.edges, quiet=quiet)
    target = options.to or options.out / ("export" if level is None else f"export_at_{level:g}")
    paths = write_formats(job, target, names)
    if not quiet:
        if job.world:
            place = ", ".join(f"{x:g}" for x in job.world)
            console.print(f"note: the scene is far from its origin: positions are the model's less ({place})")
        console.print(f"{counted(len(paths), 'file')} of {counted(len(job.chosen), 'object')}: {target}")
        if {"masks", "coco"} & set(names) and any(job.as_taken(view).full_size is None for view in job.views):
            console.print(
                "note: the scene is gone, so the size, the lens and the edges of its photos are not known: masks are "
                "of the run's own pictures, which may be smaller or undistorted"
            )
        others = sorted(p.name for p in (target / "objects").glob("*.ply") if p not in paths) if "ply" in names else []
        if others:
            console.print(f"note: {target / 'objects'} has other files, of before: {some(others)}")
