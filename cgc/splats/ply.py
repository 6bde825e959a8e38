"""Read and write 3D Gaussian Splatting PLY files, in the layout of the INRIA release that every viewer opens.

A vertex is a Gaussian: x y z, (nx ny nz, unused), f_dc_0..2, f_rest_0..(3K-1), opacity (a logit), scale_0..2
(logs), rot_0..3 (wxyz, any norm). K is the number of SH terms above degree 0 (0, 3, 8 or 15), and f_rest is
channel-major: all K of red, then green, then blue.

Two things of it may be missing where others say them: scale_2, of the discs of 2D Gaussian Splatting (arXiv
2403.17888), which are read as Gaussians that thin; and f_dc, where red, green and blue are there as bytes.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.geometry import rgb_to_sh_dc
from cgc.ply import Header, read_header, read_vertices, write_vertices
from cgc.splats.types import Splats

MEANS = ("x", "y", "z")
_NORMALS = ("nx", "ny", "nz")
DC = ("f_dc_0", "f_dc_1", "f_dc_2")
OPACITY = "opacity"
SCALES = ("scale_0", "scale_1", "scale_2")
QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
_DEGREE_OF_REST = {0: 0, 9: 1, 24: 2, 45: 3}
_RGB = ("red", "green", "blue")
_FILTER = "filter_3D"
_ORIGIN = "cgc origin"
_DISC = -math.log(1000)  # how much thinner than wide a disc is taken to be
_MOST_OPAQUE = 16.0  # a logit: 1e-7 from opaque, about the last that float32 tells from it
_LEAST_SCALE = -30.0  # a logarithm: of no size

_QUAT_NORMS = (1e-12, 1e18)  # outside of these a float32 quaternion cannot be normalised


def read_ply(path: Path | str, origin: Sequence[float] = (0.0, 0.0, 0.0)) -> Splats:
    """Read a 3DGS PLY from any trainer: ASCII or binary, float or double, properties in any order.

    `origin` is taken from the positions, before they become single-precision. Scalar properties that are not part of
    a splat are kept in `Splats.extras`, [N] each; normals are not. The filter of Mip-Splatting becomes part of sizes
    and opacities, as where its own release fuses it. Raise InputError for what is not a whole, finite splat file.
    """
    path = Path(path)
    header = read_header(path)
    rest = check_header(path, header)
    return from_vertices(path, read_vertices(path, header), rest, origin)


def from_vertices(
    path: Path, vertices: np.ndarray, rest: tuple[str, ...], origin: Sequence[float] = (0.0, 0.0, 0.0)
) -> Splats:
    """Turn vertices [N] of a file, whose f_rest are called `rest`, into splats; InputError unless they are finite."""
    columns = _columns(vertices, rest, origin)
    _check_finite(path, columns)
    if _FILTER in columns:
        _fuse_filter(columns)
    quats = _tensor(columns, QUATS)
    _check_quats(path, quats)
    log_scales = _tensor(columns, SCALES)
    _check_scales(path, log_scales)
    dc = _tensor(columns, DC)[:, None, :]  # [N, 1, 3]
    higher = _tensor(columns, rest).reshape(len(dc), 3, -1).transpose(1, 2)  # [N, K, 3]
    stand_ins = () if DC[0] in (vertices.dtype.names or ()) else _RGB
    ours = (*columns, *_NORMALS, *stand_ins)
    return Splats(
        means=_tensor(columns, MEANS),
        quats=quats,
        log_scales=log_scales,
        logit_opacities=torch.from_numpy(columns[OPACITY]),
        sh=torch.cat([dc, higher], dim=1).contiguous(),
        extras={n: _native(vertices[n]) for n in vertices.dtype.names or () if n not in ours},
    )


def broken_rows(vertices: np.ndarray, rest: tuple[str, ...]) -> np.ndarray:
    """Say which vertices [N] `from_vertices` refuses, [N] bool."""
    columns = _columns(vertices, rest)
    bad = np.any([~np.isfinite(values) for values in columns.values()], axis=0)
    if _FILTER in columns:
        with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite
            _fuse_filter(columns)
    return bad | _bad_quats(_tensor(columns, QUATS)) | _bad_scales(_tensor(columns, SCALES))


def _columns(
    vertices: np.ndarray, rest: tuple[str, ...], origin: Sequence[float] = (0.0, 0.0, 0.0)
) -> dict[str, np.ndarray]:
    """Return what of vertices makes splats, [N] float32 a name, less the origin; opacities and sizes at their ends."""
    own = vertices.dtype.names or ()
    needed = (*MEANS, *DC, *rest, OPACITY, *SCALES, *QUATS)
    columns = {name: _float32(vertices[name]) for name in needed if name in own}
    if SCALES[2] not in columns:
        columns[SCALES[2]] = np.minimum(*(columns[name] for name in SCALES[:2])) + np.float32(_DISC)
    if DC[0] not in columns:
        columns |= dict(zip(DC, dc_of(vertices).T))
    for name, start in zip(MEANS, origin):
        if start:
            columns[name] = _float32(vertices[name].astype(np.float64) - start)
    _clamp(columns)
    if _FILTER in (vertices.dtype.names or ()):
        columns[_FILTER] = _float32(vertices[_FILTER])
    return columns


def dc_of(vertices: np.ndarray) -> np.ndarray:
    """Return the SH terms of degree 0 of vertices [N], [N, 3] float32."""
    if DC[0] in (vertices.dtype.names or ()):
        return np.stack([_float32(vertices[name]) for name in DC], -1)
    rgb = np.stack([np.asarray(vertices[name], np.float32) for name in _RGB], -1) / np.float32(255)
    return rgb_to_sh_dc(torch.from_numpy(rgb)).numpy()


def notes_of(path: Path, header: Header) -> list[str]:
    """Say what of the splats that a header announces is made up."""
    names = dict(header.elements[header.vertex].properties)
    made = []
    if SCALES[2] not in names:
        made.append(f"{path} holds discs (2D Gaussian Splatting); they are taken for Gaussians a thousandth as thick")
    if DC[0] not in names:
        made.append(f"{path} has colours of 8 bits in place of f_dc; what is segmented and exported has these")
    return made


def origin_of(header: Header) -> tuple[float, float, float] | None:
    """Return what a header says is to be added to positions to be in the model's world; None where it does not say."""
    for text in header.comments:
        if text.startswith(f"{_ORIGIN} "):
            with contextlib.suppress(ValueError):  # another's comment
                x, y, z = map(float, text.removeprefix(_ORIGIN).split())
                return x, y, z
    return None


def write_ply(
    path: Path | str,
    splats: Splats,
    extra: Mapping[str, np.ndarray] | None = None,
    *,
    origin: Sequence[float] | None = None,
) -> None:
    """Write splats as a plain binary little-endian 3DGS PLY, whole or not at all.

    Features are not written, nor are `splats.extras`; `extra` names what to add, [N] each (pass
    `splats.extras` to keep them). Reading it back gives the same float32 bits. `origin`, which is to be added to
    positions to be in the model's world, becomes a comment of the header.
    Raise InputError for no Gaussians, and for an extra attribute that a PLY cannot hold.
    """
    if len(splats) == 0:
        raise InputError(f"there are no Gaussians to write into {path}; choose a segment that has some")
    comments = [" ".join([_ORIGIN, *(repr(float(x)) for x in origin)])] if origin is not None else []
    write_vertices(Path(path), to_vertices(splats, extra), comments)


def to_vertices(splats: Splats, extra: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Turn splats into the vertices [N] of a PLY; `extra` as in `write_ply`."""
    n, sh = len(splats), splats.sh
    columns: dict[str, np.ndarray] = {}
    _add_columns(columns, MEANS, splats.means)
    _add_columns(columns, _NORMALS, torch.zeros(n, 3))
    _add_columns(columns, DC, sh[:, 0])
    _add_columns(columns, rest_names(3 * (sh.shape[1] - 1)), sh[:, 1:].transpose(1, 2).reshape(n, -1))
    _add_columns(columns, (OPACITY,), splats.logit_opacities[:, None])
    _add_columns(columns, SCALES, splats.log_scales)
    _add_columns(columns, QUATS, splats.quats)
    for name, values in (extra or {}).items():
        columns[name] = _extra_column(name, values, n, taken=columns)
    table = np.empty(n, dtype=[(name, values.dtype.newbyteorder("<")) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    return table


# --- reading ----------------------------------------------------------------------------------------------


def check_header(path: Path, header: Header) -> tuple[str, ...]:
    """Check that the header announces splats; return the f_rest names."""
    if header.vertex < 0:
        raise InputError(f"{path} has no vertices, so it is not a splat; give a 3DGS .ply")
    _, count, properties = header.elements[header.vertex]
    if any(name.startswith("packed_") for name, _ in properties):
        raise InputError(
            f"{path} is a compressed SuperSplat file; decompress it first "
            "(open it in SuperSplat and export an uncompressed PLY)"
        )
    lists = [name for name, kind in properties if kind == "list"]
    if lists:
        raise InputError(f"{path} has list properties in its vertices ({', '.join(lists)}); a splat has none")
    names = [name for name, _ in properties]
    if len(set(names)) < len(names):
        raise InputError(f"{path} is broken: its header names a property twice; copy or export it again")
    rest = rest_of(names)
    said = {SCALES[2]} if set(SCALES[:2]) <= set(names) else set()
    if all(dict(properties).get(name) == "uchar" for name in _RGB) and not set(DC) & set(names):
        said |= set(DC)
    missing = [n for n in (*MEANS, *DC, *rest, OPACITY, *SCALES, *QUATS) if n not in names and n not in said]
    if missing and any(name.startswith("f_anchor_feat") for name in names):
        raise InputError(
            f"{path} holds anchors, from which a network of Scaffold-GS or its kin makes the Gaussians of each view; "
            "give plain Gaussians, of a training without anchors"
        )
    if missing:
        raise InputError(
            f"{path} lacks the properties {', '.join(missing)} of a 3DGS splat; "
            "a point cloud or a mesh is not a splat: give the .ply that a Gaussian-splatting trainer wrote"
        )
    if len(rest) not in _DEGREE_OF_REST:
        raise InputError(
            f"{path} has {len(rest)} f_rest properties where 0, 9, 24 or 45 were expected (SH degree 0 to 3); "
            "export it again with one of these degrees"
        )
    if count == 0:
        raise InputError(f"{path} holds no Gaussians; give a splat that has some")
    return rest


def _clamp(columns: dict[str, np.ndarray]) -> None:
    """Make opacities of 0 and 1, and sizes of 0, finite: converters write the logits and logarithms of these."""
    endless = np.isinf(columns[OPACITY])
    columns[OPACITY] = np.where(endless, np.copysign(_MOST_OPAQUE, columns[OPACITY]), columns[OPACITY])
    for name in SCALES:
        columns[name] = np.where(columns[name] == -np.inf, np.float32(_LEAST_SCALE), columns[name])


def _fuse_filter(columns: dict[str, np.ndarray]) -> None:
    """Widen Gaussians by the 3D filter [N] of Mip-Splatting (arXiv 2311.16493, eq. 9), and thin them as much."""
    width, scales = columns[_FILTER].astype(np.float64), [columns[name].astype(np.float64) for name in SCALES]
    thinner = np.zeros(len(width))
    for name, scale in zip(SCALES, scales):
        wide = 0.5 * np.logaddexp(2 * scale, 2 * np.log(np.maximum(width, 1e-30)))
        thinner += scale - wide  # the logarithm of sqrt(det / det')
        columns[name] = wide.astype(np.float32)
    opacity = np.exp(thinner) / (1 + np.exp(-columns[OPACITY].astype(np.float64)))
    columns[OPACITY] = np.log(opacity / (1 - opacity)).clip(-_MOST_OPAQUE, _MOST_OPAQUE).astype(np.float32)


def _float32(column: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # a double too large becomes infinite, reported later
        return column.astype(np.float32)


def _native(column: np.ndarray) -> np.ndarray:
    return column.astype(column.dtype.newbyteorder("="))


def _tensor(columns: Mapping[str, np.ndarray], names: tuple[str, ...]) -> Tensor:
    if not names:
        return torch.zeros(len(columns["x"]), 0)
    return torch.from_numpy(np.stack([columns[name] for name in names], axis=-1))


def _check_finite(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    broken = np.zeros(len(columns["x"]), bool)
    names = []
    for name, values in columns.items():
        bad = ~np.isfinite(values)
        if bad.any():
            broken |= bad
            names.append(name)
    if names:
        raise InputError(
            f"{path} has NaN or infinite values in {broken.sum():,} of {len(broken):,} Gaussians "
            f"({', '.join(names[:6])}{', ...' if len(names) > 6 else ''}); {how_to_clean(path)}"
        )


def _check_quats(path: Path, quats: Tensor) -> None:
    if bad := int(_bad_quats(quats).sum()):
        raise InputError(
            f"{path} has {bad:,} of {len(quats):,} Gaussians whose rotation (rot_0..3) has a norm of zero "
            f"or beyond float32; {how_to_clean(path)}"
        )


def _bad_quats(quats: Tensor) -> np.ndarray:
    norms = quats.double().norm(dim=-1)
    return ((norms < _QUAT_NORMS[0]) | (norms > _QUAT_NORMS[1])).numpy()


def _check_scales(path: Path, log_scales: Tensor) -> None:
    if bad := int(_bad_scales(log_scales).sum()):
        raise InputError(
            f"{path} has {bad:,} of {len(log_scales):,} Gaussians with a scale (scale_0..2, which are natural "
            f"logarithms) over 88: wider than float32 can hold; {how_to_clean(path)}"
        )


def _bad_scales(log_scales: Tensor) -> np.ndarray:
    return log_scales.exp().isinf().any(-1).numpy()


def how_to_clean(path: Path) -> str:
    """Say what leaves broken Gaussians out of a file."""
    return f"`cgc clean {shlex.quote(str(path))}` writes a copy without these"


# --- writing ----------------------------------------------------------------------------------------------


def rest_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns of SH above degree 0 among those of vertices, in their order."""
    return rest_names(sum(re.fullmatch(r"f_rest_\d+", name) is not None for name in names))


def rest_names(count: int) -> tuple[str, ...]:
    """Name the `count` columns of SH above degree 0: all terms of red, then green, then blue."""
    return tuple(f"f_rest_{i}" for i in range(count))


def _add_columns(columns: dict[str, np.ndarray], names: tuple[str, ...], values: Tensor) -> None:
    array = values.detach().cpu().to(torch.float32).numpy()
    columns.update({name: array[:, i] for i, name in enumerate(names)})


def _extra_column(name: str, values: np.ndarray, n: int, taken: Mapping[str, np.ndarray]) -> np.ndarray:
    """Check an extra attribute and bring it to a type that PLY has."""
    values = np.asarray(values)
    if values.shape != (n,):
        raise InputError(f"extra attribute {name!r} has shape {values.shape} where ({n},) was expected")
    if name in taken or not re.fullmatch(r"[!-~]+", name):
        raise InputError(
            f"extra attribute {name!r} cannot be written: rename it (plain ASCII, no space, not a splat's)"
        )
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        if len(values) and (int(values.min()) < -(2**31) or int(values.max()) >= 2**31):
            raise InputError(f"extra attribute {name!r} does not fit 32 bits, the largest integer of a PLY")
        return values.astype(np.int32)
    if values.dtype.kind == "f" and values.dtype.itemsize == 2:
        return values.astype(np.float32)
    if values.dtype.kind in "iuf" and values.dtype.itemsize <= 8:
        return values
    raise InputError(f"extra attribute {name!r} has type {values.dtype}, which a PLY cannot hold")
