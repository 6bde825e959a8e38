"""The SOG of PlayCanvas: meta.json and lossless pictures, in a folder or in a ZIP archive that ends in .sog.

A pixel is a Gaussian, in rows. means_l and means_u are the low and high bytes of 16-bit fractions of a range, of
sign(x) ln(1 + |x|); quats has the three smaller components from -sqrt(1/2) to sqrt(1/2) and 252 plus which of wxyz is
the largest; scales (logarithms) and sh0 (f_dc, opacity) are indices into 256 numbers, in version 1 fractions of a
range, and there the opacity is a logit. shN_labels (low byte, high byte) says which of up to 65536 lists of SH terms
in shN_centroids is the Gaussian's, 64 lists a row, a pixel a term, its RGB the channels. The numbers are those of the
PLY that it was made from, so that nothing is turned.

Source: developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog and github.com/playcanvas/splat-transform,
src/lib/readers/{read-sog,read-sog-v1}.ts; a codebook that begins with null, as an early tool wrote it, is mended as in
github.com/playcanvas/engine.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from cgc.errors import InputError, reason
from cgc.files import fits
from cgc.splats.formats.vertices import TERMS, check_count, new_vertices, put, put_alphas, put_quats, smallest_three
from cgc.splats.ply import DC, MEANS, OPACITY, SCALES

_META = "meta.json"
_MAX_META = 1 << 22  # bytes; a real one has 20 thousand
_ROW = 64  # centroids
_MAX_CENTROID_PIXELS = 65536 * TERMS[-1]
_SPARE_PIXELS = 1 << 16  # a picture may have, besides twice the Gaussians

_UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, EOFError, SyntaxError, RuntimeError, MemoryError,
    OverflowError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What zipfile and Pillow raise for damaged files."""


class _Files(TypedDict):
    files: list[str]


class _Means(_Files):
    mins: list[float]
    maxs: list[float]


class _ShapedMeans(_Means):
    shape: list[int]


class _Coded(_Files):
    codebook: list[float | None]


class _RangedSh(_Files):
    mins: float
    maxs: float


class _Meta1(TypedDict):
    means: _ShapedMeans
    scales: _Means
    quats: _Files
    sh0: _Means


class _Meta2(TypedDict):
    count: int
    means: _Means
    scales: _Coded
    quats: _Files
    sh0: _Coded


_PICTURES = {"means": 2, "scales": 1, "quats": 1, "sh0": 1, "shN": 2}


def is_sog(path: Path) -> bool:
    """Say whether a ZIP archive is a SOG."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _META in archive.namelist()
    except _UNREADABLE:
        return False


def read_sog(path: Path) -> np.ndarray:
    """Return the vertices [N] of a .sog; InputError where it is broken."""
    most = 8 * path.stat().st_size + (1 << 20)  # what is compressed already is hardly compressed again

    def load(name: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                about = archive.getinfo(name)
                if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or about.file_size > most:
                    raise ValueError(f"{name} has {about.file_size:,} bytes, or is compressed in an unknown way")
                return archive.read(about)
        except _UNREADABLE as error:
            raise InputError(
                f"{path} is broken as a .sog: {name} cannot be read from it ({reason(error)}); export it again"
            ) from error

    return _decode(path, _meta(path, load(_META)), load)


def read_sog_folder(path: Path) -> np.ndarray | None:
    """Return the vertices [N] of a folder whose meta.json is `path`, None if this is another JSON or none."""
    if path.stat().st_size > _MAX_META:
        return None
    try:
        meta = _meta(path, path.read_bytes())
    except InputError:
        if path.name == _META:
            raise
        return None
    if isinstance(meta, dict) and "lodLevels" in meta:
        raise InputError(f"{path} lists levels of detail where one splat was expected; give the {_META} of one of them")
    if path.name != _META and not (isinstance(meta, dict) and "means" in meta):
        return None

    def load(name: str) -> bytes:
        picture = path.parent / name
        try:
            if not picture.is_file():
                raise FileNotFoundError("there is no such file")
            return picture.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path} names the picture {name}, which cannot be read beside it ({reason(error)}); "
                "copy all files of its folder"
            ) from error

    return _decode(path, meta, load)


def _meta(path: Path, content: bytes) -> Any:
    try:
        if len(content) > _MAX_META:
            raise ValueError(f"{len(content):,} bytes")
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} has a {_META} that is no JSON ({reason(error)}); export it again") from error


def _decode(path: Path, meta: Any, load: Callable[[str], bytes]) -> np.ndarray:
    coded = _check_meta(path, meta)
    count = meta["count"] if coded else meta["means"]["shape"][0]
    content = {what: [load(name) for name in meta[what]["files"]] for what in _PICTURES if what in meta}
    check_count(path, count, sum(len(picture) for each in content.values() for picture in each))
    labels, lists = _sh_lists(path, content.pop("shN", None), count)
    pixels = {what: [_picture(path, what, picture, count) for picture in each] for what, each in content.items()}
    vertices = new_vertices(count, lists.shape[1])
    put(vertices, MEANS, _means(path, meta["means"], *pixels["means"]))
    put(vertices, SCALES, _looked_up(_table(path, meta["scales"], 3, coded), pixels["scales"][0][:, :3]))
    put_quats(vertices, _quats(path, pixels["quats"][0]))
    colors = _table(path, meta["sh0"], 4 - coded, coded)
    put(vertices, DC, _looked_up(colors, pixels["sh0"][0][:, :3]))
    alphas = pixels["sh0"][0][:, 3]
    if coded:
        put_alphas(vertices, alphas)
    else:
        put(vertices, (OPACITY,), colors[alphas, 3:])
    if lists.size:
        table = _table(path, meta["shN"], 1, coded)[:, 0]
        for i, (channel, term) in enumerate(np.ndindex(3, lists.shape[1])):
            put(vertices, (f"f_rest_{i}",), table[lists[:, term, channel]][labels, None])
    return vertices


def _check_meta(path: Path, meta: Any) -> bool:
    """Check what the JSON holds; return whether it is of version 2."""
    version = meta.get("version", 1) if isinstance(meta, dict) else None
    if version not in (1, 2):
        raise InputError(f"{path} is a SOG of version {version!r:.20} where 1 or 2 was expected; export it as .ply")
    right = fits(meta, _Meta2 if version == 2 else _Meta1) and (version == 2 or meta["means"]["shape"])
    if right and "shN" in meta:
        right = fits(meta["shN"], _Coded if version == 2 else _RangedSh)
    names = [meta[what]["files"] for what in _PICTURES if what in meta] if right else []
    if not right or any(len(files) != _PICTURES[what] for files, what in zip(names, _PICTURES)):
        raise InputError(f"{path} has a {_META} that lacks what version {version} of SOG holds; export it again")
    for name in (name for files in names for name in files):
        if not re.fullmatch(r"[\w -][\w .-]*", name):
            raise InputError(
                f"{path} names the picture {name!r:.80} where a plain file name was expected; export it again"
            )
    return version == 2


def _picture(path: Path, what: str, content: bytes, count: int) -> np.ndarray:
    """Return the pixels of Gaussians, [N, 4] uint8."""
    pixels = _pixels(path, what, content, 2 * count + _SPARE_PIXELS)
    if pixels.shape[0] * pixels.shape[1] < count:
        raise InputError(
            f"{path} has a picture of {what} of {pixels.shape[1]} x {pixels.shape[0]} pixels "
            f"where {count:,} Gaussians were expected in it; export it again"
        )
    return pixels.reshape(-1, 4)[:count]


def _pixels(path: Path, what: str, content: bytes, most: int) -> np.ndarray:
    """Decode a picture of `most` pixels at most, [H, W, 4] uint8."""
    from PIL import Image, features

    if content[8:12] == b"WEBP" and not features.check("webp"):
        raise InputError(f"{path} has WebP pictures, which this Pillow cannot read: pip install --upgrade pillow")
    try:
        with Image.open(io.BytesIO(content), formats=("WEBP", "PNG")) as image:
            if image.width * image.height > most:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {most:,}")
            return np.asarray(image.convert("RGBA"))
    except (*_UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path} has a picture of {what} that cannot be read ({reason(error)}); copy or export it again"
        ) from error


def _sh_lists(path: Path, pictures: list[bytes] | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which list of SH terms is each Gaussian's, [N] uint16, and the lists, [n, K, 4] uint8; K may be 0."""
    if pictures is None:
        return np.zeros(count, np.uint16), np.zeros((1, 0, 4), np.uint8)
    centroids = _pixels(path, "shN", pictures[0], _MAX_CENTROID_PIXELS)
    terms, over = divmod(centroids.shape[1], _ROW)
    if over or terms not in TERMS[1:]:
        raise InputError(
            f"{path} has SH lists {centroids.shape[1]} pixels wide where 192, 512 or 960 was expected; export it again"
        )
    lists = centroids.reshape(-1, terms, 4)
    pixels = _picture(path, "shN", pictures[1], count)
    labels = _wide(pixels[:, 0], pixels[:, 1])
    if labels.max() >= len(lists):
        raise InputError(f"{path} points to list {labels.max()} of SH where it has {len(lists)}; export it again")
    return labels, lists


def _quats(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return rotations [N, 4] wxyz."""
    bad = int((pixels[:, 3] < 252).sum())
    if bad:
        raise InputError(
            f"{path} has {bad:,} of {len(pixels):,} rotations that name no largest component "
            "where 252 to 255 was expected: its pictures were changed, so export it again"
        )
    three = (pixels[:, :3] / np.float32(255) - np.float32(0.5)) * np.float32(math.sqrt(2))
    return smallest_three(three, pixels[:, 3] - 252)


def _wide(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low | high.astype(np.uint16) << 8


def _means(path: Path, section: dict[str, Any], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return positions [N, 3] float64."""
    start, end = (_numbers(path, section[name], 3) for name in ("mins", "maxs"))
    made = np.empty((len(low), 3))
    for axis in range(3):
        fraction = _wide(low[:, axis], high[:, axis]) / 65535
        squeezed = start[axis] + (end[axis] - start[axis]) * fraction
        made[:, axis] = np.sign(squeezed) * np.expm1(np.abs(squeezed))
    return made


def _table(path: Path, section: dict[str, Any], channels: int, coded: bool) -> np.ndarray:
    """Return what each byte stands for in each channel, [256, channels] float64."""
    if coded:
        first, *others = section["codebook"] or [None]
        codes = _numbers(path, [*(others[:1] if first is None else [first]), *others], 256)
        if first is None:
            codes[0] = codes[1] + (codes[1] - codes[255]) / 255
        return np.repeat(codes[:, None], channels, axis=1)
    ends = [section[name] if isinstance(section[name], list) else [section[name]] for name in ("mins", "maxs")]
    start, end = (_numbers(path, values, channels) for values in ends)
    return start + (end - start) * (np.arange(256) / 255)[:, None]


def _numbers(path: Path, values: Sequence[Any], n: int) -> np.ndarray:
    try:
        if len(values) == n and None not in values:
            return np.array(values, np.float64)
        found = f"{sum(v is not None for v in values)} of them"
    except OverflowError as error:
        found = str(error)
    raise InputError(f"{path} has a {_META} with a list where {n} numbers were expected ({found}); export it again")


def _looked_up(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return what bytes [N, n] stand for, by their channels."""
    return np.stack([table[indices[:, i], i] for i in range(indices.shape[1])], axis=1)
