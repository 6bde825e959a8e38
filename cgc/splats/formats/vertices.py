"""What packed formats decode to, the vertices of a 3DGS PLY, and what several of them share.

Opacities are bytes in every format, and at 0 and 255 their logits are infinite. These two stand for half a step from
the end, 0.5/255 and 254.5/255, so that logits lie within +-6.24.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgc.errors import InputError
from cgc.geometry import SH_C0
from cgc.splats.ply import DC, MEANS, OPACITY, QUATS, SCALES, how_to_clean, rest_names

TERMS = (0, 3, 8, 15)
"""Terms of spherical harmonics above degree 0, by degree."""

MAX_GAUSSIANS = 1 << 26
_PER_BYTE = 4  # of a compressed file; real ones take 8 bytes and more for each
_ALWAYS = 1 << 16  # may be announced by a file of any size: 15 MB

_BYTES = np.arange(256)
_ALPHAS = np.clip(_BYTES / 255, 0.5 / 255, 254.5 / 255)
_LOGITS = np.log(_ALPHAS / (1 - _ALPHAS)).astype(np.float32)
_DC_OF_BYTE = ((_BYTES / 255 - 0.5) / SH_C0).astype(np.float32)
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def check_count(path: Path, count: int, stored: int | None = None) -> None:
    """Refuse no Gaussians, and more than `stored` bytes can hold, compressed, before anything is allocated by them."""
    if count <= 0:
        raise InputError(f"{path} holds no Gaussians; give a splat that has some")
    most = MAX_GAUSSIANS if stored is None else min(MAX_GAUSSIANS, _ALWAYS + _PER_BYTE * stored)
    if count > most:
        raise InputError(
            f"{path} announces {count:,} Gaussians where at most {most:,} were expected of its size; "
            "it is broken or not to be trusted: copy or export it again"
        )


def truncated(path: Path, expected: int, got: int) -> InputError:
    """Say that bytes are missing."""
    return InputError(
        f"{path} is truncated: {expected:,} bytes were expected by its header, got {got:,}; copy or export it again"
    )


def new_vertices(count: int, terms: int) -> np.ndarray:
    """Return vertices [N] to be filled, with `terms` (of TERMS) of SH above degree 0."""
    names = (*MEANS, *DC, *rest_names(3 * terms), OPACITY, *SCALES, *QUATS)
    return np.empty(count, [(name, np.float32) for name in names])


def put(vertices: np.ndarray, names: Sequence[str], values: np.ndarray) -> None:
    """Set columns to `values` [N, len(names)]; what float32 cannot hold becomes infinite, see `check_finite`."""
    for i, name in enumerate(names):
        vertices[name] = values[:, i]


def put_colors(vertices: np.ndarray, rgb: np.ndarray) -> None:
    """Set f_dc to colours [N, 3] uint8, which are what is seen where nothing changes with the direction."""
    put(vertices, DC, _DC_OF_BYTE[rgb])


def put_alphas(vertices: np.ndarray, alphas: np.ndarray) -> None:
    """Set logits of opacities [N] uint8."""
    vertices[OPACITY] = _LOGITS[alphas]


def put_linear_scales(vertices: np.ndarray, path: Path, scales: np.ndarray, least: float) -> None:
    """Set the logarithms of standard deviations [N, 3]; those under `least`, such as 0, count as `least`."""
    bad = int((~(scales >= 0)).any(1).sum())
    if bad:
        raise InputError(
            f"{path} has {bad:,} of {len(scales):,} Gaussians with a negative or NaN scale where sizes were expected; "
            "copy or export it again"
        )
    put(vertices, SCALES, np.log(np.maximum(scales.astype(np.float32), np.float32(least))))


def put_quats(vertices: np.ndarray, quats: np.ndarray) -> None:
    """Set rotations [N, 4] wxyz of any norm as unit quaternions; one of norm 0 turns nothing."""
    norms = np.sqrt((quats.astype(np.float64) ** 2).sum(1, keepdims=True))
    put(vertices, QUATS, np.where(norms == 0, (1, 0, 0, 0), quats / np.where(norms == 0, 1, norms)))


def smallest_three(three: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Complete unit quaternions [N, 4] of which all but the component `largest` [N] are known, in order, [N, 3].

    The missing one is positive, and 0 where the others leave nothing.
    """
    quats = np.empty((len(three), 4), np.float32)
    np.put_along_axis(quats, _OTHERS[largest], three, axis=1)
    missing = np.sqrt(np.maximum(0, 1 - (three**2).sum(1, keepdims=True)))
    np.put_along_axis(quats, largest[:, None].astype(np.intp), missing, axis=1)
    return quats


def check_finite(path: Path, vertices: np.ndarray) -> None:
    """Refuse NaN and infinite values."""
    broken = np.zeros(len(vertices), bool)
    for name in vertices.dtype.names or ():
        broken |= ~np.isfinite(vertices[name])
    if broken.any():
        raise InputError(
            f"{path} has {broken.sum():,} of {len(broken):,} Gaussians with NaN or infinite values where numbers were "
            f"expected; copy or export it again, or {how_to_clean(path)}"
        )
