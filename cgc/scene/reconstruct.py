"""From bare photos, or a video, to a scene: cameras and points by structure from motion, in a folder to read.

The result is written beside and renamed, so a scene is there whole or not at all; photos are never changed.
"""

from __future__ import annotations

import contextlib
import filecmp
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from cgc.errors import InputError, some
from cgc.files import files_below, read_json, sha256, write_json
from cgc.leftovers import clear_folders
from cgc.progress import console, progress_bar
from cgc.scene.images import SUFFIXES, load_photo, read_header
from cgc.scene.video import VIDEO_SUFFIXES, extract_frames
from cgc.settings import ReconstructSettings, check_part

if TYPE_CHECKING:
    import pycolmap

ENOUGH = 0.9
"""With a smaller share of the photos placed, mapping is tried again in other ways."""

VIDEO_RECORD = "video.json"
"""Which video a scene was made of, and with how many frames."""

FEATURE_BYTES, PAIR_BYTES = 160, 16_000
"""What a feature takes in COLMAP's database, with its journal, and a pair of photos with some hundred matches."""
PIXELS_OF_FEATURE = 40
"""A photo has a feature in so many pixels at most."""

_COLMAP_READS = {"JPEG", "PNG", "BMP", "TIFF", "MPO"}  # the rest is handed over as PNG
_OTHERS = (".heic", ".heif", ".avif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2")
_ADVICE = (
    "take more photos with more overlap (each point in three or more, 5 to 10 degrees apart), walk around the things "
    "in place of turning on the spot, keep one zoom and focus, avoid blur, and leave textured surroundings in the "
    "picture (a newspaper under the things helps)"
)


@dataclass(frozen=True)
class Reconstructed:
    """A scene's folder and what became of its photos; `error` is the mean reprojection error in pixels.

    `apart`: groups of the photos that are missing, each of which fits together but not with those that were placed.
    """

    scene: Path
    photos: int
    registered: int
    missing: tuple[str, ...]
    points: int
    error: float
    kept: bool = False
    notes: tuple[str, ...] = ()
    apart: tuple[tuple[str, ...], ...] = ()

    def lines(self) -> list[str]:
        """Return what a user should know, a sentence a line."""
        lines = list(self.notes)
        if self.kept:
            lines.append(f"{self.scene} has a model already, which is kept; move its sparse/ away to make another")
        lines.append(
            f"{self.registered} of {self.photos} photos placed, {self.points:,} points, "
            f"mean reprojection error {self.error:.2f} px: {self.scene}"
        )
        if self.missing:
            lines.append(f"not placed: {some(self.missing)}")
        for group in self.apart:
            lines.append(
                f"{len(group)} photos ({some(group)}) fit together but not with the others: they may be of another "
                "place; reconstruct them in a folder of their own"
            )
        if self.registered < ENOUGH * self.photos:
            lines.append(
                "few photos were placed, so parts of the scene will be missing; if all are of one place, and not of "
                f"several, {_ADVICE}"
            )
        return lines


@dataclass(frozen=True)
class _Photo:
    """A photo: its name in the scene, its file, its stored size, whether COLMAP can read its format."""

    name: str
    path: Path
    size: tuple[int, int]
    plain: bool


def default_scene(photos: Path) -> Path:
    """Return where the scene of `photos` goes: X for X/images or for X with images/, else PHOTOS_scene beside."""
    photos = Path(os.path.realpath(photos))
    if photos.is_dir() and (photos / "images").is_dir():
        return photos
    if photos.is_dir() and photos.name == "images":
        return photos.parent
    return photos.parent / f"{photos.name if photos.is_dir() else photos.stem}_scene"


def reconstruct(
    photos: Path, out: Path | None, settings: ReconstructSettings | None = None, *, quiet: bool = False
) -> Reconstructed:
    """Make the scene `out` (None: `default_scene`) from a folder of photos, a folder with images/, or a video.

    A scene that has a model already is kept. Photos outside out/images are hard-linked there, or copied where that
    cannot be; broken ones are left out with a note. Raises InputError where nothing can be made of them.
    """
    photos, settings = Path(photos), settings or ReconstructSettings()
    check_part("reconstruct", settings)
    if not photos.exists():
        raise InputError(f"{photos} was expected to be a folder of photos or a video, but does not exist; check it")
    out = default_scene(photos) if out is None else Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} was expected to be the folder of the new scene, but is a file; choose another")
    if kept := _kept(out):
        return _tell(replace(kept, notes=_unlike(photos, out, settings.frames)), quiet)
    if (model := out / "sparse" / "0").is_dir() and any(model.iterdir()):
        raise InputError(
            f"{model} holds {some(p.name for p in model.iterdir())}, which is no model (cameras, images and points3D); "
            "move it away or give the new scene another name with --out, and run the same command again"
        )
    with _stage(out) as stage:
        made = _make(photos, out, stage, settings, quiet)
    return _tell(made, quiet)


def _tell(made: Reconstructed, quiet: bool) -> Reconstructed:
    if not quiet:
        for line in made.lines():
            console.print(line)
    return made


def _kept(out: Path) -> Reconstructed | None:
    """Return the facts of the model that `out` has already."""
    from cgc.scene.colmap import read_colmap
    from cgc.scene.find import find_model

    if not out.is_dir() or not (place := find_model(out)):
        return None
    model = read_colmap(out, place.colmap) if place.colmap else None  # raises where it is broken
    if not model or not place.colmap or place.note or model.notes:  # none that is made here
        raise InputError(
            f"{out} has the cameras of {place.colmap or place.transforms[0]}, so it is a scene already; use it as it "
            "is, or choose another"
        )
    images = model.images
    import pycolmap

    names = [n for n, _ in list_photos(images)] if images.is_dir() else []
    return replace(_facts(out, pycolmap.Reconstruction(str(place.colmap)), names, ()), kept=True)


def _unlike(photos: Path, out: Path, frames: int) -> tuple[str, ...]:
    """Say which photos a scene that is kept was not made of; InputError where it has some that are gone, or others."""
    if photos.is_file():
        return _unlike_video(photos, out, frames)
    source = _images_of(photos)
    if not source.is_dir() or not (out / "images").is_dir() or _same_folder(source, out / "images"):
        return ()
    now, then = (dict(list_photos(folder)) for folder in (source, out / "images"))
    other = [name for name, path in then.items() if name not in now or not _same_file(now[name], path)]
    if other:
        raise InputError(
            f"{out} has a model already, of photos that are not those in {source} any more: {some(other)}; remove it, "
            "or give the new scene another name with --out"
        )
    new = [name for name in now if name not in then]
    advice = f"to use them, remove {out}, or give the new scene another name with --out"
    return (f"photos that the scene there was not made of: {some(new)}; {advice}",) if new else ()


def _unlike_video(video: Path, out: Path, frames: int) -> tuple[str, ...]:
    """Say that a scene that is kept has another number of frames; InputError where it is of another video."""
    if not (out / VIDEO_RECORD).is_file():
        return ()
    made, now = read_json(out / VIDEO_RECORD, "the record of the video"), _video_record(video, frames)
    advice = f"remove {out}, or give the new scene another name with --out"
    if not isinstance(made, dict) or made.get("sha256") != now["sha256"]:
        raise InputError(f"{out} has a model already, of another video than {video} is now; {advice}")
    if made.get("frames") != frames:
        return (f"the scene there was made with --frames {made.get('frames')}; for {frames}, {advice}",)
    return ()


def _video_record(video: Path, frames: int) -> dict[str, Any]:
    """Return what a scene says of the video it was made of."""
    return {"video": video.name, "sha256": sha256(video), "frames": frames}


def _images_of(photos: Path) -> Path:
    """Return the folder that holds the photos: the one given, or images/ in it."""
    return photos / "images" if (photos / "images").is_dir() else photos


def _facts(out: Path, model: pycolmap.Reconstruction, names: Sequence[str], notes: Sequence[str]) -> Reconstructed:
    """Return what a model says of the photos of these names."""
    placed = {image.name for image in model.images.values() if image.has_pose}
    missing = tuple(sorted(set(names) - placed))
    error = float(model.compute_mean_reprojection_error()) if model.num_points3D() else 0.0
    total = len(placed) + len(missing)
    return Reconstructed(out, total, len(placed), missing, model.num_points3D(), error, False, tuple(notes))


# ---- one scene


def _make(photos: Path, out: Path, stage: Path, settings: ReconstructSettings, quiet: bool) -> Reconstructed:
    """Do the work in the folder `stage`, then rename what is whole into `out`."""
    from cgc.scene.sfm import told

    if photos.is_file():
        if photos.suffix.lower() in SUFFIXES:
            raise InputError(f"{photos} is one photo; give the folder of photos, or a video")
        source = stage / "images"
        extract_frames(photos, source, settings.frames, quiet=quiet)
        write_json(stage / VIDEO_RECORD, _video_record(photos, settings.frames))
    else:
        source = _images_of(photos)
    found, notes = read_photos(source, quiet)
    if len(found) < 3:
        raise InputError(_too_few(source, len(found), notes))
    if not _same_folder(source, out / "images"):
        _check_images(found, out / "images")
    work = stage / "work"
    model, apart = _solve(found, work, settings, quiet)
    if model is None:
        raise InputError(
            f"none of the {len(found)} photos in {photos} could be placed: too few points are found again from photo "
            f"to photo; {_ADVICE}"
        )
    made = replace(_facts(out, model, [p.name for p in found], notes), apart=apart)
    folder = stage / "sparse" / "0"
    folder.mkdir(parents=True)
    with told("writing the model"):
        model.write_binary(str(folder))
    if not _same_folder(source, out / "images"):
        _bring_images(found, stage / "images", out / "images")
    shutil.rmtree(work)
    _publish(stage, out)
    return made


def list_photos(folder: Path) -> list[tuple[str, Path]]:
    """Return (name, path) of every image below `folder`, sorted, without hidden folders and files, and what we made."""
    found = [
        path
        for path in files_below(folder, _is_ours)
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def _is_ours(names: set[str]) -> bool:
    """Whether a folder with files of these names is a run or holds masks: no photos lie there."""
    return {"scene.json", "config.json"} <= names or "masks.json" in names


def read_photos(folder: Path, quiet: bool) -> tuple[list[_Photo], list[str]]:
    """Decode every photo below `folder` once; return the good ones and a note for each that is not."""
    photos, notes = [], []
    listed = list_photos(folder)
    with progress_bar("photos", len(listed), quiet=quiet) as bar:
        for name, path in listed:
            bar.advance()
            try:
                name.encode("utf-8")
                load_photo(path, exif_rotated=False)
                with Image.open(path) as image:
                    plain = image.format in _COLMAP_READS and not getattr(image, "is_animated", False)
                photos.append(_Photo(name, path, read_header(path).size, plain))
            except InputError as error:
                notes.append(f"LEFT OUT: {error}")
            except UnicodeEncodeError:
                notes.append(f"LEFT OUT: {name!a}, whose name is not UTF-8; rename it")
    if photos and (others := _others(folder)):
        said = " and ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        notes.append(f"LEFT OUT: {said} files, which are not read; convert them to JPEG to use them")
    return photos, notes


def _others(folder: Path) -> Counter[str]:
    """Count the pictures and videos below a folder that are not read, by suffix."""
    found = Counter(p.suffix.lower() for p in files_below(folder, _is_ours) if not p.name.startswith("."))
    return Counter({s: n for s, n in found.items() if s in (*_OTHERS, *VIDEO_SUFFIXES) and s not in SUFFIXES})


def _too_few(folder: Path, count: int, notes: Sequence[str]) -> str:
    text = f"{folder} has {count} photos that can be read, and at least 3 are needed (20 and more are better)"
    if notes:
        return f"{text}; {len(notes)} more cannot be read, the first: {notes[0].removeprefix('LEFT OUT: ')}"
    others = _others(folder)
    if pictures := sorted(set(others) - set(VIDEO_SUFFIXES)):
        return f"{text}; convert the {' and '.join(pictures)} files to JPEG first"
    if others:
        return f"{text}; to use a video, give its file and not its folder"
    return f"{text}; give the folder that holds them ({', '.join(SUFFIXES)})"


def group_photos(photos: Sequence[_Photo], camera: str) -> list[list[int]]:
    """Return the numbers of the photos that share a lens, in groups; InputError where `single` cannot be."""
    from cgc.scene.sfm import lens_key

    if camera == "single":
        sizes = sorted({p.size for p in photos})
        if len(sizes) > 1:
            shown = some(f"{w}x{h}" for w, h in sizes)
            raise InputError(
                f"photos of one lens must have one size, but they are {shown}; use --camera auto, or photos of one size"
            )
        return [list(range(len(photos)))]
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, photo in enumerate(photos):
        key = (str(i),) if camera == "per-photo" else lens_key(photo.path, photo.size)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _solve(
    photos: Sequence[_Photo], work: Path, settings: ReconstructSettings, quiet: bool
) -> tuple[pycolmap.Reconstruction | None, tuple[tuple[str, ...], ...]]:
    """Place the photos, trying harder while fewer than `ENOUGH` are placed; keep what places most.

    With it come the names of photos that are not in it but fit together in another model, in groups.
    """
    from cgc.scene.sfm import ATTEMPTS, Session, choose_pairs, in_blocks, silenced

    names = _hand_over(photos, work / "photos")
    groups = [[names[i] for i in group] for group in group_photos(photos, settings.camera)]
    session = Session(work, work / "photos", names, settings, quiet)
    pairs = choose_pairs(len(names), settings.matching)
    _check_room(photos, len(pairs), work, settings)
    best, rich, groups_placed = None, None, []
    with silenced():
        for attempt in ATTEMPTS:
            if attempt.rich != rich:
                missing = set(range(len(names))) - _placed(best, names)
                far = {(min(i, j), max(i, j)) for i in missing for j in range(len(names)) if i != j}
                if rich is not None and settings.matching == "auto":
                    pairs = in_blocks(set(pairs) | far)
                session.find_features(groups, attempt)
                session.match(pairs, attempt)
                rich = attempt.rich
            models = session.map(attempt)
            groups_placed += [_placed(model, names) for model in models]
            if models and len(_placed(models[0], names)) > len(_placed(best, names)):
                best = models[0]
            if len(_placed(best, names)) >= ENOUGH * len(names):
                break
    apart = tuple(tuple(photos[i].name for i in group) for group in find_apart(_placed(best, names), groups_placed))
    if best is not None:
        for image in best.images.values():
            best.images[image.image_id].name = photos[names.index(image.name)].name
    return best, apart


def find_apart(placed: set[int], models: Sequence[set[int]]) -> list[list[int]]:
    """Return the photos that models hold together and that are not in `placed`, 3 or more a group, each in one."""
    from cgc.scene.sfm import LEAST

    groups, known = [], set(placed)
    for model in sorted(models, key=len, reverse=True):
        if len(model - known) >= LEAST:
            groups.append(sorted(model - known))
            known |= model
    return groups


def _check_room(photos: Sequence[_Photo], pairs: int, work: Path, settings: ReconstructSettings) -> None:
    """Raise InputError where COLMAP's database may not fit on the disk: it aborts the process then."""
    features = sum(min(settings.max_features, math.prod(p.size) // PIXELS_OF_FEATURE) for p in photos)
    wanted, free = features * FEATURE_BYTES + pairs * PAIR_BYTES, shutil.disk_usage(work).free
    if wanted > free:
        raise InputError(
            f"placing {len(photos)} photos takes up to {wanted / 1e6:,.0f} MB beside the new scene, where "
            f"{free / 1e6:,.0f} MB are free; make room, or choose a place on another disk with --out"
        )


def _placed(model: pycolmap.Reconstruction | None, names: Sequence[str]) -> set[int]:
    if model is None:
        return set()
    placed = {image.name for image in model.images.values() if image.has_pose}
    return {i for i, name in enumerate(names) if name in placed}


def _hand_over(photos: Sequence[_Photo], folder: Path) -> list[str]:
    """Put the photos under plain names into `folder`: links, or a PNG of what COLMAP cannot read."""
    folder.mkdir(parents=True)
    names = []
    for i, photo in enumerate(photos):
        target = folder / f"{i + 1:06}{photo.path.suffix.lower() if photo.plain else '.png'}"
        if photo.plain:
            _link(photo.path, target)
        else:
            Image.fromarray(load_photo(photo.path, exif_rotated=False)).save(target, compress_level=1)
        names.append(target.name)
    return names


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the disk cannot do that."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


# ---- folders


def _same_folder(a: Path, b: Path) -> bool:
    return b.is_dir() and os.path.samefile(a, b)


def _same_file(a: Path, b: Path) -> bool:
    """Whether two files hold the same."""
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)


def _check_images(photos: Sequence[_Photo], final: Path) -> None:
    """Raise InputError where there is a folder `final` that has other pictures than these."""
    if not final.exists():
        return
    there = dict(list_photos(final)) if final.is_dir() else {}
    same = all(p.name in there and _same_file(p.path, there[p.name]) for p in photos)
    if not same or len(there) != len(photos):
        raise InputError(
            f"{final} holds other pictures than those that are to be reconstructed; remove it or choose another --out"
        )


def _bring_images(photos: Sequence[_Photo], staged: Path, final: Path) -> None:
    """Link the photos into `staged`, unless `final` has these very photos."""
    if final.exists():
        shutil.rmtree(staged, ignore_errors=True)
        return
    for photo in photos:
        target = staged / photo.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(photo.path, target)


@contextlib.contextmanager
def _stage(out: Path) -> Iterator[Path]:
    """Yield a folder to work in on the disk of `out`: inside it, or beside it where it is new. Removed at the end."""
    new = not out.is_dir() or not any(out.iterdir())
    parent = out.parent if new else out
    clear_folders(parent, out.name)
    stage = parent / f".{out.name}.{os.getpid()}.partial"
    try:
        stage.mkdir(parents=True)
        yield stage
    except OSError as error:
        raise InputError(
            f"the scene {out} could not be written ({error.strerror or error}); free some space, make its folder "
            "writable or choose another --out, and run the same command again"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, out: Path) -> None:
    """Rename the finished scene into place: in one piece where `out` is new, else images before the model."""
    if not out.is_dir() or not any(out.iterdir()):
        if out.is_dir():
            out.rmdir()
        stage.rename(out)
        return
    if (stage / "images").is_dir():
        (stage / "images").rename(out / "images")
    if (stage / VIDEO_RECORD).is_file():
        (stage / VIDEO_RECORD).replace(out / VIDEO_RECORD)
    (out / "sparse").mkdir(exist_ok=True)
    (stage / "sparse" / "0").rename(out / "sparse" / "0")
