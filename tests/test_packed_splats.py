"""Packed splat files: each format written by hand from its specification, whole and hostile.

The writers here go one Gaussian at a time through `struct`, so that the readers are held against the formats and not
against their own arithmetic. Tolerances are the steps of each quantisation.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import recfunctions as rfn
from PIL import Image

from cgc.errors import InputError
from cgc.files import sha256
from cgc.geometry import SH_C0, quat_to_rotation, rotate_sh, rotation_to_quat, sh_basis
from cgc.splats.formats.vertices import check_count
from cgc.splats.packed import read_packed
from cgc.splats.ply import to_vertices, write_ply
from cgc.splats.read import hash_splats, read_splats
from cgc.splats.types import Splats

TERMS = (0, 3, 8, 15)


@dataclass(frozen=True)
class Scene:
    """Known Gaussians: colours and opacities as they are seen, SH above degree 0 as [N, K, 3]."""

    means: np.ndarray
    quats: np.ndarray  # [N, 4] wxyz, unit
    log_scales: np.ndarray
    rgb: np.ndarray
    alphas: np.ndarray
    rest: np.ndarray

    def __len__(self) -> int:
        return len(self.means)


def scene(n: int = 9, degree: int = 3, seed: int = 0) -> Scene:
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(n, 4))
    k = TERMS[degree]
    signs = np.array([1, -1, 0.5])[None, None] * np.linspace(0.1, 0.9, k)[None, :, None]  # no two columns alike
    return Scene(
        means=rng.normal(size=(n, 3)) * 4,
        quats=quats / np.linalg.norm(quats, axis=1, keepdims=True),
        log_scales=rng.uniform(-6, 0, (n, 3)),
        rgb=rng.uniform(0.02, 0.98, (n, 3)),
        alphas=rng.uniform(0.05, 0.95, n),
        rest=np.broadcast_to(signs, (n, k, 3)) * rng.uniform(0.8, 1, (n, 1, 1)),
    )


def columns(vertices: np.ndarray, *names: str) -> np.ndarray:
    return np.stack([vertices[name] for name in names], axis=-1).astype(np.float64)


def sh_rest(vertices: np.ndarray) -> np.ndarray:
    """SH above degree 0, [N, K, 3], read channel by channel as a 3DGS PLY has it."""
    k = sum(name.startswith("f_rest_") for name in vertices.dtype.names or ()) // 3
    made = np.zeros((len(vertices), k, 3))
    for channel in range(3):
        for term in range(k):
            made[:, term, channel] = vertices[f"f_rest_{channel * k + term}"]
    return made


def rotations(quats: np.ndarray) -> np.ndarray:
    return quat_to_rotation(torch.from_numpy(np.asarray(quats, np.float64))).numpy()


def decoded(path: Path) -> np.ndarray:
    vertices = read_packed(path)
    assert vertices is not None
    return vertices


def assert_near(
    vertices: np.ndarray, known: Scene, *, means: float, scales: float, turn: float, rgb: float, alpha: float, sh: float
) -> None:
    """Hold decoded Gaussians against the known ones, each within its step."""
    plain = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(3 * known.rest.shape[1])))
    plain += ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
    assert vertices.dtype == np.dtype([(name, "f4") for name in plain])
    assert len(vertices) == len(known)
    np.testing.assert_allclose(columns(vertices, "x", "y", "z"), known.means, atol=means, rtol=0)
    np.testing.assert_allclose(columns(vertices, *(f"scale_{i}" for i in range(3))), known.log_scales, atol=scales)
    quats = columns(vertices, *(f"rot_{i}" for i in range(4)))
    np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rotations(quats), rotations(known.quats), atol=turn)
    seen = columns(vertices, "f_dc_0", "f_dc_1", "f_dc_2") * SH_C0 + 0.5
    np.testing.assert_allclose(seen, known.rgb, atol=rgb, rtol=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-vertices["opacity"])), known.alphas, atol=alpha, rtol=0)
    np.testing.assert_allclose(sh_rest(vertices), known.rest, atol=sh, rtol=0)


def refused(path: Path, content: bytes | None = None) -> str:
    """What is said of a file: one sentence that names it."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_packed(path)
    assert "\n" not in str(error.value) and str(path.parent) in str(error.value)
    return str(error.value)


def whole(value: float, most: int) -> int:
    """The nearest step, within 0 and `most`."""
    return min(max(math.floor(value + 0.5), 0), most)


def largest_first(quat: np.ndarray) -> tuple[int, list[float]]:
    """Which component is the largest, and the three others, in order, with its sign made positive."""
    largest = max(range(4), key=lambda i: abs(quat[i]))
    sign = 1 if quat[largest] > 0 else -1
    return largest, [sign * float(quat[i]) for i in range(4) if i != largest]


def only_arrays_or_sentences(path: Path, content: bytes) -> None:
    """Any bytes give finite Gaussians, nothing, or a sentence."""
    path.write_bytes(content)
    try:
        vertices = read_packed(path)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return
    if vertices is not None:
        assert 0 < len(vertices) < 1_000_000
        assert all(np.isfinite(vertices[name]).all() for name in vertices.dtype.names or ())
        quats = columns(vertices, "rot_0", "rot_1", "rot_2", "rot_3")
        np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1, atol=1e-5)


damage = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3)
cut = st.floats(0, 1) | st.none()


def damaged(content: bytes, changes: list[tuple[float, int]], end: float | None, early: int) -> bytes:
    """Change bytes, the first `early` of which are hit half of the time, and cut the end off."""
    made = bytearray(content)
    for where, value in changes:
        within = early if value % 2 else len(made)
        made[min(int(where * within), len(made) - 1)] = value
    return bytes(made if end is None else made[: int(end * len(made))])


def to_plain(splats: Splats, origin: Sequence[float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """The vertices of splats, their origin given back."""
    vertices = to_vertices(replace(splats, means=splats.means + torch.tensor(origin)))
    return rfn.drop_fields(vertices, ("nx", "ny", "nz"))


def test_the_pictures_of_a_meta_json_are_part_of_it(tmp_path):
    (tmp_path / "meta.json").write_text('{"means": {"files": ["means_l.webp"]}}')
    (tmp_path / "means_l.webp").write_text("some")
    before = hash_splats(tmp_path / "meta.json")
    assert hash_splats(tmp_path / "means_l.webp") == sha256(tmp_path / "means_l.webp")
    (tmp_path / "screenshot.png").write_text("no part of it")
    assert hash_splats(tmp_path / "meta.json") == before
    (tmp_path / "means_l.webp").write_text("other")
    assert hash_splats(tmp_path / "meta.json") != before
    with pytest.raises(InputError, match="there is no splat file"):
        hash_splats(tmp_path / "gone.json")


def test_files_that_are_packed_or_not_are_read_alike(tmp_path):
    known = scene(5, 2)
    (tmp_path / "a.splat").write_bytes(splat_bytes(known))
    splats, notes = read_splats(tmp_path / "a.splat")
    assert len(splats) == 5 and not notes and splats.sh.shape == (5, 1, 3)
    write_ply(tmp_path / "a.ply", splats)
    again, notes = read_splats(tmp_path / "a.ply")
    assert torch.equal(again.means, splats.means) and torch.equal(again.sh, splats.sh) and not notes
    far = (4_649_776.0, 0.0, 0.0)
    write_ply(tmp_path / "a.ply", replace(splats, means=splats.means + torch.tensor(far)))
    _, [note] = read_splats(tmp_path / "a.ply", far)
    assert "rounded to 0.5" in note and "double precision" in note
    (tmp_path / "a.txt").write_text("no splats")
    with pytest.raises(InputError, match="not a splat file of a kind"):
        read_splats(tmp_path / "a.txt")


def test_large_files_may_announce_more_than_small_ones():
    check_count(Path("a"), 70_000, stored=70_000)
    with pytest.raises(InputError, match=r"announces 1,000,000 Gaussians"):
        check_count(Path("a"), 10**6, stored=100)


def test_what_is_no_packed_file_is_left_to_others(tmp_path):
    assert read_packed(tmp_path / "missing.ply") is None
    assert read_packed(tmp_path) is None
    path = tmp_path / "a.ply"
    for content in (b"", b"p", b"\x89PNG\r\n\x1a\n" * 9, b"{}", b'{"frames": []}', b"\x1f\x8b", b"PK\x03\x04"):
        path.write_bytes(content)
        assert read_packed(path) is None
    known = scene(2)
    plain = Splats(
        means=torch.from_numpy(known.means),
        quats=torch.from_numpy(known.quats),
        log_scales=torch.from_numpy(known.log_scales),
        logit_opacities=torch.from_numpy(known.alphas),
        sh=torch.from_numpy(np.concatenate([known.rgb[:, None], known.rest], axis=1)),
    )
    write_ply(path, plain)
    assert read_packed(path) is None


# --- compressed PLY -----------------------------------------------------------------------------------------


def compressed_ply(known: Scene, chunk_colors: bool = True, order: str = "<") -> bytes:
    """Write a compressed PLY by its specification: 256 vertices a chunk, fractions of the chunk's ranges."""
    n, k = known.rest.shape[:2]
    head = ["ply", "format binary_little_endian 1.0" if order == "<" else "format binary_big_endian 1.0"]
    head += [f"element chunk {math.ceil(n / 256)}"]
    head += [f"property float {end}_{what}{a}" for what in ("", "scale_") for end in ("min", "max") for a in "xyz"]
    head += [f"property float {end}_{a}" for end in ("min", "max") for a in "rgb"] if chunk_colors else []
    head += [f"element vertex {n}", *(f"property uint packed_{w}" for w in ("position", "rotation", "scale", "color"))]
    head += [f"element sh {n}", *(f"property uchar f_rest_{i}" for i in range(3 * k))] if k else []
    chunks, words, sh = b"", b"", b""
    for begin in range(0, n, 256):
        rows = slice(begin, begin + 256)
        ranges = [(x[rows].min(0), x[rows].max(0)) for x in (known.means, known.log_scales)]
        ranges += [(known.rgb[rows].min(0), known.rgb[rows].max(0))] if chunk_colors else [(np.zeros(3), np.ones(3))]
        for low, high in ranges if chunk_colors else ranges[:2]:
            chunks += struct.pack(f"{order}6f", *low, *high)
        for i in range(begin, min(n, begin + 256)):
            parts = []
            for values, (low, high) in zip((known.means, known.log_scales, known.rgb), ranges):
                parts.append((values[i] - low) / np.where(high > low, high - low, 1))
            position, scale = (
                whole(x * 2047, 2047) << 21 | whole(y * 1023, 1023) << 11 | whole(z * 2047, 2047)
                for x, y, z in parts[:2]
            )
            rotation, three = largest_first(known.quats[i])
            for value in three:
                rotation = rotation << 10 | whole((value / math.sqrt(2) + 0.5) * 1023, 1023)
            color = 0
            for value in (*parts[2], known.alphas[i]):
                color = color << 8 | whole(value * 255, 255)
            words += struct.pack(f"{order}4I", position, rotation, scale, color)
            for channel in range(3):
                for term in range(k):
                    sh += bytes([min(max(int((known.rest[i, term, channel] / 8 + 0.5) * 256), 0), 255)])
    return "\n".join([*head, "end_header\n"]).encode() + chunks + words + sh


PLY_STEPS = {"means": 0.02, "scales": 6 / 1023, "turn": 3e-3, "rgb": 2.1e-3, "alpha": 2.1e-3, "sh": 4 / 256 + 1e-6}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("chunk_colors", [True, False])
def test_compressed_ply(tmp_path, degree, chunk_colors):
    known = scene(300, degree)
    (tmp_path / "a.ply").write_bytes(compressed_ply(known, chunk_colors))
    assert_near(decoded(tmp_path / "a.ply"), known, **PLY_STEPS)


def test_compressed_ply_under_another_name_and_in_another_order(tmp_path):
    known = scene(5, 1)
    (tmp_path / "a.splat").write_bytes(compressed_ply(known, order=">"))
    assert_near(decoded(tmp_path / "a.splat"), known, **PLY_STEPS)


def test_one_gaussian_spans_no_range(tmp_path):
    known = scene(1, 0)
    (tmp_path / "a.ply").write_bytes(compressed_ply(known))
    assert_near(decoded(tmp_path / "a.ply"), known, **PLY_STEPS)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_ends_of_opacity_are_half_a_step_away(tmp_path, alpha):
    known = replace(scene(3, 0), alphas=np.full(3, alpha))
    (tmp_path / "a.ply").write_bytes(compressed_ply(known))
    logits = decoded(tmp_path / "a.ply")["opacity"]
    np.testing.assert_allclose(logits, math.log(509) * (1 if alpha else -1), rtol=1e-5)


def test_ends_of_sh_are_whole(tmp_path):
    known = scene(2, 1)
    ends = 4 * np.sign(known.rest)
    (tmp_path / "a.ply").write_bytes(compressed_ply(replace(known, rest=2 * ends)))
    np.testing.assert_array_equal(sh_rest(decoded(tmp_path / "a.ply")), ends)


def test_compressed_plys_that_are_broken(tmp_path):
    path, known = tmp_path / "a.ply", scene(300, 1)
    good = compressed_ply(known)
    assert "truncated" in refused(path, good[:-1])
    assert "truncated" in refused(path, good[:2000])
    assert "no Gaussians" in refused(path, compressed_ply(scene(0, 0)))
    assert "1 chunks where 2 were expected" in refused(path, good.replace(b"chunk 2", b"chunk 1"))
    assert "lacks packed_scale" in refused(path, good.replace(b"uint packed_scale", b"uint packed_scabe"))
    assert "lacks min_x" in refused(path, good.replace(b"element chunk", b"element lumps"))
    assert "lacks packed_color of uints" in refused(path, good.replace(b"uint packed_color", b"float packed_color"))
    assert "8 terms" in refused(path, good.replace(b"property uchar f_rest_8\n", b""))
    assert "299 rows of SH for 300" in refused(path, good.replace(b"element sh 300", b"element sh 299"))
    assert "lacks f_rest_8" in refused(path, good.replace(b"f_rest_8", b"f_rest_9"))
    assert "a name twice" in refused(path, good.replace(b"property float max_b\n", b"property float max_b\n" * 2))
    assert "more than its" in refused(path, good.replace(b"vertex 300", b"vertex 99999999999"))
    start = good.index(b"end_header\n") + 11
    hostile = good[:start] + struct.pack("<f", np.nan) + good[start + 4 :]
    assert "256 of 300 Gaussians with NaN" in refused(path, hostile)


@settings(deadline=None, max_examples=60)
@given(changes=damage, end=cut)
def test_damaged_compressed_plys(tmp_path_factory, changes, end):
    good = compressed_ply(scene(4, 1))
    path = tmp_path_factory.getbasetemp() / "damaged.ply"
    only_arrays_or_sentences(path, damaged(good, changes, end, early=good.index(b"end_header")))


# --- .splat -------------------------------------------------------------------------------------------------


def splat_bytes(known: Scene) -> bytes:
    made = b""
    for i in range(len(known)):
        made += struct.pack("<6f", *known.means[i], *np.exp(known.log_scales[i]))
        made += bytes(whole(value * 255, 255) for value in (*known.rgb[i], known.alphas[i]))
        made += bytes(whole(value * 128 + 128, 255) for value in known.quats[i])
    return made


SPLAT_STEPS = {"means": 1e-5, "scales": 1e-5, "turn": 0.03, "rgb": 2e-3, "alpha": 2e-3, "sh": 0}


@pytest.mark.parametrize("name", ["a.splat", "A.SPLAT"])
def test_splat(tmp_path, name):
    known = scene(50, 0)
    (tmp_path / name).write_bytes(splat_bytes(known))
    assert_near(decoded(tmp_path / name), known, **SPLAT_STEPS)


def test_splat_of_no_size_and_no_rotation(tmp_path):
    good = splat_bytes(scene(2, 0))
    (tmp_path / "a.splat").write_bytes(good[:12] + bytes(12) + good[24:28] + bytes([128] * 4) + good[32:])
    vertices = decoded(tmp_path / "a.splat")
    np.testing.assert_allclose(columns(vertices, "scale_0", "scale_1", "scale_2")[0], -87.3365, atol=1e-3)
    np.testing.assert_array_equal(columns(vertices, "rot_0", "rot_1", "rot_2", "rot_3")[0], (1, 0, 0, 0))


def test_splats_that_are_broken(tmp_path):
    path, good = tmp_path / "a.splat", splat_bytes(scene(4, 0))
    assert "127 bytes where a multiple of 32" in refused(path, good[:-1])
    assert "1 of 4 Gaussians with a negative" in refused(path, good[:12] + struct.pack("<f", -1) + good[16:])
    assert "1 of 4 Gaussians with a negative or NaN" in refused(path, good[:12] + struct.pack("<f", np.nan) + good[16:])
    assert "1 of 4 Gaussians with NaN or infinite" in refused(path, struct.pack("<f", np.inf) + good[4:])
    assert "no Gaussians" in refused(path, b"")


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=99) | st.binary(min_size=32, max_size=32))
def test_any_bytes_as_splat(tmp_path_factory, content):
    only_arrays_or_sentences(tmp_path_factory.getbasetemp() / "any.splat", content)


# --- .spz ---------------------------------------------------------------------------------------------------

RUB = np.diag([1.0, -1.0, -1.0])  # from right, down, front: half a turn about x


def turned(known: Scene, turn: np.ndarray) -> Scene:
    """The same Gaussians in other axes, by matrices; SH by fitting the functions themselves."""
    matrices = torch.from_numpy(turn @ rotations(known.quats) @ turn)
    quats = np.stack([rotation_to_quat(matrix).numpy() for matrix in matrices])
    sh = torch.from_numpy(np.concatenate([np.zeros((len(known), 1, 3)), known.rest], axis=1))
    rest = rotate_sh(sh, torch.from_numpy(turn))[:, 1:].numpy()
    return replace(known, means=known.means @ turn.T, quats=quats, rest=rest)


def spz_content(known: Scene, version: int = 3, fraction: int = 12, flags: int = 0, after: bytes = b"") -> bytes:
    """Write an .spz, not yet compressed, of Gaussians in its own axes."""
    n, k = known.rest.shape[:2]
    parts = [struct.pack("<4s2I4B", b"NGSP", version, n, TERMS.index(k), fraction, flags, 0)]
    for mean in known.means:
        if version == 1:
            parts.append(struct.pack("<3e", *mean))
        else:
            parts += [round(float(x) * 2**fraction).to_bytes(3, "little", signed=True) for x in mean]
    parts += [bytes([whole(alpha * 255, 255)]) for alpha in known.alphas]
    parts += [bytes(whole((c - 0.5) / SH_C0 * 0.15 * 255 + 127.5, 255) for c in rgb) for rgb in known.rgb]
    parts += [bytes(whole((s + 10) * 16, 255) for s in scales) for scales in known.log_scales]
    for quat in known.quats:
        if version < 3:
            sign = 1 if quat[0] > 0 else -1
            parts.append(bytes(whole(sign * x * 127.5 + 127.5, 255) for x in quat[1:]))
            continue
        word, three = largest_first(np.roll(quat, -1))
        for value in three:
            word = word << 10 | (512 if value < 0 else 0) | whole(abs(value) / math.sqrt(0.5) * 511, 511)
        parts.append(struct.pack("<I", word))
    parts += [bytes(whole(x * 128 + 128, 255) for x in terms.reshape(-1)) for terms in known.rest]
    return b"".join([*parts, after])


def in_streams(content: bytes) -> bytes:
    """Pack what `spz_content` has made, without what comes after the Gaussians, as version 4 does."""
    _, _, n, degree, fraction, flags, _ = struct.unpack_from("<4s2I4B", content)
    ends = np.cumsum([n * width for width in (9, 1, 3, 3, 4, 3 * TERMS[degree]) if width]).tolist()
    body, after = content[16 : 16 + ends[-1]], content[16 + ends[-1] :]
    streams = [zstandard.compress(body[a:b]) for a, b in zip([0, *ends], ends)]
    sizes = [x for a, b, stream in zip([0, *ends], ends, streams) for x in (len(stream), b - a)]
    head = struct.pack("<4s2I4BI12x", b"NGSP", 4, n, degree, fraction, flags, len(streams), 32 + len(after))
    return b"".join([head, after, struct.pack(f"<{len(sizes)}Q", *sizes), *streams])


SPZ_STEPS = {"means": 2**-13, "scales": 1 / 32, "turn": 4e-3, "rgb": 3.8e-3, "alpha": 2e-3, "sh": 1 / 128}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spz(tmp_path, degree):
    known = scene(40, degree)
    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_content(turned(known, RUB))))
    assert_near(decoded(tmp_path / "a.spz"), known, **SPZ_STEPS)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spz_in_streams(tmp_path, degree):
    content = spz_content(turned(scene(40, degree), RUB))
    (tmp_path / "a.spz").write_bytes(gzip.compress(content))
    (tmp_path / "b.ply").write_bytes(in_streams(content))
    assert decoded(tmp_path / "a.spz").tobytes() == decoded(tmp_path / "b.ply").tobytes()


@pytest.mark.parametrize("version", [1, 2])
def test_older_spz(tmp_path, version):
    known = scene(40, 1)
    quats = known.quats + np.array([1.2, 0, 0, 0])  # w follows from the others, least surely where it is small
    known = replace(known, quats=quats / np.linalg.norm(quats, axis=1, keepdims=True))
    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_content(turned(known, RUB), version)))
    steps = SPZ_STEPS | {"turn": 0.03}
    assert_near(decoded(tmp_path / "a.spz"), known, **(steps | {"means": 8e-3} if version == 1 else steps))


def test_spz_under_another_name_and_with_other_bits(tmp_path):
    known = scene(5, 2)
    (tmp_path / "a.sog").write_bytes(gzip.compress(spz_content(turned(known, RUB), fraction=8)))
    assert_near(decoded(tmp_path / "a.sog"), known, **(SPZ_STEPS | {"means": 2**-9}))


def test_axes_of_spz_are_turned(tmp_path):
    """What is at p in the file is at RUB p, its covariance and what is seen of it from anywhere turn with it."""
    raw = scene(20, 3)
    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_content(raw)))
    made = decoded(tmp_path / "a.spz")
    np.testing.assert_allclose(columns(made, "x", "y", "z"), raw.means @ RUB, atol=2**-13)

    def covariances(quats: np.ndarray, log_scales: np.ndarray) -> np.ndarray:
        axes = rotations(quats) * np.exp(log_scales)[:, None]
        return axes @ axes.transpose(0, 2, 1)

    after = covariances(columns(made, "rot_0", "rot_1", "rot_2", "rot_3"), raw.log_scales)
    np.testing.assert_allclose(after, RUB @ covariances(raw.quats, raw.log_scales) @ RUB, atol=8e-3)
    directions = np.random.default_rng(1).normal(size=(30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before_basis = sh_basis(torch.from_numpy(directions), 3)[:, 1:].numpy()
    after_basis = sh_basis(torch.from_numpy(directions @ RUB), 3)[:, 1:].numpy()
    seen_before = np.einsum("dk,nkc->ndc", before_basis, raw.rest)
    seen_after = np.einsum("dk,nkc->ndc", after_basis, sh_rest(made))
    np.testing.assert_allclose(seen_after, seen_before, atol=15 * 3 / 256)
    assert np.ptp(seen_before) > 1


def test_spz_files_that_were_left_unturned_are_told_by_the_points_of_the_model(tmp_path):
    """Some converters write the axes of a PLY, and nothing in the file says so."""
    known, origin = scene(40, 3), (10.0, -20.0, 30.0)
    points = known.means.astype(np.float32)[::2] - np.float32(origin)
    for name, raw, pack in (
        ("as_said", turned(known, RUB), gzip.compress), ("unturned", known, in_streams),
        ("as_said", turned(known, RUB), in_streams), ("unturned", known, gzip.compress),
    ):  # fmt: skip
        path = tmp_path / f"{name}.spz"
        path.write_bytes(pack(spz_content(raw)))
        splats, notes = read_splats(path, origin, points)
        assert len(notes) == (name == "unturned") and all("axes of a PLY" in note for note in notes)
        assert_near(to_plain(splats, origin), known, **SPZ_STEPS)
        assert read_splats(path)[1] == []
    far = read_splats(tmp_path / "unturned.spz")[0]
    assert_near(to_plain(far), turned(known, RUB), **SPZ_STEPS)  # without points as the format says


@pytest.mark.parametrize(
    ("axes", "turn"),
    [(0, RUB), (4, RUB), (5, np.diag([-1.0, 1.0, 1.0])), (6, np.eye(3)), (7, np.diag([-1.0, -1.0, 1.0])),
     (8, np.diag([1.0, -1.0, 1.0]))],
)  # fmt: skip
def test_axes_that_an_spz_names(tmp_path, axes, turn):
    after = struct.pack("<2I3f", 0xADBE0002, 12, 0, 0, 0) + struct.pack("<3I", 0xADBE0003, 4, axes)
    raw = scene(5, 3)
    for pack in gzip.compress, in_streams:
        (tmp_path / "a.spz").write_bytes(pack(spz_content(raw, flags=2, after=after)))
        assert_near(decoded(tmp_path / "a.spz"), turned(raw, turn), **SPZ_STEPS)


def test_spz_files_that_are_broken(tmp_path):
    path, good = tmp_path / "a.spz", spz_content(scene(40, 1))
    assert "goes on after the 40 Gaussians" in refused(path, gzip.compress(good + b"!"))
    assert "truncated" in refused(path, gzip.compress(good[:-1]))
    assert "truncated" in refused(path, gzip.compress(good[:10]))
    assert "truncated" in refused(path, gzip.compress(good)[:-9])
    assert "not an .spz" in refused(path, gzip.compress(b"something else"))
    assert "broken or truncated" in refused(path, b"something else")
    assert "no Gaussians" in refused(path, gzip.compress(spz_content(scene(0, 0))))
    assert "version 4 in gzip, where" in refused(path, gzip.compress(spz_content(scene(2, 0), version=4)))
    assert "version 3 not in gzip, where" in refused(path, spz_content(scene(2, 0)))
    assert "truncated: 16 bytes" in refused(path, b"NGSP\4\0\0\0")
    plain = in_streams(good)
    assert "truncated" in refused(path, plain[:-1]) and "truncated" in refused(path, plain[:50])
    assert "truncated: 32 bytes" in refused(path, plain[:30])
    assert "announces 5 attributes" in refused(path, plain[:15] + b"\5" + plain[16:])
    assert "from byte 31 on" in refused(path, plain[:16] + b"\x1f" + plain[17:])
    assert "361 bytes where 360" in refused(path, plain[:40] + struct.pack("<Q", 361) + plain[48:])
    longer = in_streams(spz_content(scene(41, 1)))  # its streams hold more than the header and the table say
    sizes = struct.unpack_from("<12Q", longer, 32)
    fewer = struct.pack("<12Q", *(x if i % 2 == 0 else x // 41 * 40 for i, x in enumerate(sizes)))
    assert "361 bytes where 360" in refused(path, longer[:8] + b"\x28" + longer[9:32] + fewer + longer[128:])
    assert "broken as an .spz" in refused(path, plain[:128] + bytes(4) + plain[132:])
    assert "degree 4" in refused(path, plain[:12] + b"\4" + plain[13:])
    assert "degree 4" in refused(path, gzip.compress(good[:12] + b"\4" + good[13:]))
    assert "99 bits" in refused(path, gzip.compress(good[:13] + b"c" + good[14:]))
    assert "levels of detail" in refused(path, gzip.compress(spz_content(scene(2, 0), flags=0x80)))
    assert "z up" in refused(
        path, gzip.compress(spz_content(scene(2, 0), flags=2, after=struct.pack("<3I", 0xADBE0003, 4, 16)))
    )
    assert "goes on" in refused(path, gzip.compress(spz_content(scene(2, 0), flags=2, after=bytes(1 << 17))))
    nowhere = replace(scene(2, 0), means=np.full((2, 3), np.nan))
    assert "2 of 2 Gaussians with NaN" in refused(path, gzip.compress(spz_content(nowhere, version=1)))


@pytest.mark.parametrize("count", [300_000, 10**8, 2**32 - 1])
def test_spz_of_little_that_announces_much(tmp_path, count):
    content = struct.pack("<4s2I4B", b"NGSP", 3, count, 3, 12, 0, 0) + bytes(1 << 24)
    bomb = gzip.compress(content)  # 16 kB
    assert f"announces {count:,} Gaussians where at most" in refused(tmp_path / "a.spz", bomb)


@settings(deadline=None, max_examples=100)
@given(changes=damage, end=cut, inside=st.booleans(), version=st.integers(1, 4))
def test_damaged_spz(tmp_path_factory, changes, end, inside, version):
    good = spz_content(scene(4, 1), min(version, 3))
    if version == 4:
        content = damaged(in_streams(good), changes, end, 128 if inside else 16)
    elif inside:
        content = gzip.compress(damaged(good, changes, end, 16))
    else:
        content = damaged(gzip.compress(good), changes, end, 10)
    only_arrays_or_sentences(tmp_path_factory.getbasetemp() / "damaged.spz", content)


# --- .sog ---------------------------------------------------------------------------------------------------


def webp(pixels: np.ndarray, format: str = "WEBP") -> bytes:
    made = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(
        made, format, **({"lossless": True, "exact": True} if format == "WEBP" else {})
    )
    return made.getvalue()


def sheet(rows: list[list[int]], width: int = 8) -> np.ndarray:
    """Lay pixels out in rows of a picture, with pixels to spare."""
    made = np.zeros((math.ceil(len(rows) / width) + 1, width, 4), np.uint8)
    for i, row in enumerate(rows):
        made[i // width, i % width] = row
    return made


def sog_files(known: Scene, version: int = 2, **changes: object) -> dict[str, bytes]:
    """Write a SOG as its files: codebooks of 256 evenly spaced numbers in version 2, ranges in version 1."""
    n, k = known.rest.shape[:2]
    squeezed = np.sign(known.means) * np.log1p(np.abs(known.means))
    low, high = squeezed.min(0), squeezed.max(0)
    wide = [[whole(v * 65535, 65535) for v in row] for row in (squeezed - low) / np.where(high > low, high - low, 1)]
    quats = []
    for quat in known.quats:
        largest, three = largest_first(quat)
        quats.append([*(whole((x / math.sqrt(2) + 0.5) * 255, 255) for x in three), 252 + largest])
    dc = (known.rgb - 0.5) / SH_C0
    logits = np.log(known.alphas / (1 - known.alphas))
    meta: dict[str, Any] = {
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "quats": {"files": ["quats.webp"]},
    }
    if version == 1:
        meta["means"]["shape"] = [n, 3]
        meta["scales"] = {"mins": [-6, -7, -8], "maxs": [0, 1, 2], "files": ["scales.webp"]}
        meta["sh0"] = {"mins": [-2, -3, -2, -4], "maxs": [2, 2, 3, 4], "files": ["sh0.webp"]}
        ranges = [meta[what][end] for what in ("scales", "sh0") for end in ("mins", "maxs")]
    else:
        meta |= {"version": 2, "count": n}
        meta["scales"] = {"codebook": np.linspace(-6, 0, 256).tolist(), "files": ["scales.webp"]}
        meta["sh0"] = {"codebook": np.linspace(-2, 2, 256).tolist(), "files": ["sh0.webp"]}
        ranges = [[-6] * 3, [0] * 3, [-2] * 3 + [0], [2] * 3 + [1]]

    def steps(values: np.ndarray, low: Sequence[float], high: Sequence[float]) -> list[int]:
        return [whole((v - a) / (b - a) * 255, 255) for v, a, b in zip(values, low, high)]

    last = logits if version == 1 else known.alphas
    pictures = {
        "means_l.webp": sheet([[v & 255 for v in row] + [255] for row in wide]),
        "means_u.webp": sheet([[v >> 8 for v in row] + [255] for row in wide]),
        "quats.webp": sheet(quats),
        "scales.webp": sheet([[*steps(s, *ranges[:2]), 255] for s in known.log_scales]),
        "sh0.webp": sheet([steps(np.append(c, a), *ranges[2:]) for c, a in zip(dc, last)]),
    }
    if k:  # every Gaussian has its own list, from the last list backwards
        lists = n + 70
        sh = (
            {"mins": -1, "maxs": 1.5}
            if version == 1
            else {"codebook": np.linspace(-1, 1.5, 256).tolist(), "bands": TERMS.index(k)}
        )
        meta["shN"] = {**sh, "count": lists, "files": ["centroids.webp", "labels.webp"]}
        centroids = np.zeros((math.ceil(lists / 64), 64 * k, 4), np.uint8)
        for i in range(n):
            label = lists - 1 - i
            for term in range(k):
                place = centroids[label // 64, label % 64 * k + term]
                place[:3] = steps(known.rest[i, term], [-1] * 3, [1.5] * 3)
        pictures["centroids.webp"] = centroids
        pictures["labels.webp"] = sheet([[(lists - 1 - i) & 255, (lists - 1 - i) >> 8, 0, 255] for i in range(n)])
    files = {name: webp(pixels) for name, pixels in pictures.items()}
    return {"meta.json": json.dumps(meta | changes).encode()} | files


def zipped(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def in_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / "meta.json"


SOG_STEPS = {"means": 2e-3, "scales": 10 / 510, "turn": 0.02, "rgb": 5 / 510 * SH_C0, "alpha": 4e-3, "sh": 2.5 / 510}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("version", [1, 2])
def test_sog(tmp_path, version, degree):
    known = scene(90, degree)
    files = sog_files(known, version)
    (tmp_path / "a.sog").write_bytes(zipped(files))
    assert_near(decoded(tmp_path / "a.sog"), known, **SOG_STEPS)
    assert_near(decoded(in_folder(tmp_path / "a", files)), known, **SOG_STEPS)


@pytest.mark.parametrize("name", ["a.ply", "a.spz", "a.splat", "a"])
def test_sog_under_another_name_deflated_with_png(tmp_path, name):
    known = scene(300, 1)  # of which the labels need their second byte
    files = sog_files(known)
    for name in files.keys() - {"meta.json"}:
        files[name] = webp(np.asarray(Image.open(io.BytesIO(files[name])).convert("RGBA")), "PNG")
    (tmp_path / name).write_bytes(zipped(files, zipfile.ZIP_DEFLATED))
    assert_near(decoded(tmp_path / name), known, **SOG_STEPS)
    (in_folder(tmp_path / "folder", files)).rename(tmp_path / "folder" / f"b{name}")
    assert_near(decoded(tmp_path / "folder" / f"b{name}"), known, **SOG_STEPS)


def test_codebook_that_begins_with_null(tmp_path):
    known = scene(5, 0)
    known.log_scales[0] = -6  # the first of the codebook
    files = sog_files(known)
    meta = json.loads(files["meta.json"])
    meta["scales"]["codebook"][0] = None
    files["meta.json"] = json.dumps(meta).encode()
    assert_near(decoded(in_folder(tmp_path / "a", files)), known, **SOG_STEPS)
    meta["scales"]["codebook"][1] = None  # only the first was ever written so
    files["meta.json"] = json.dumps(meta).encode()
    assert "256 numbers were expected (254 of them)" in refused(in_folder(tmp_path / "a", files))


def test_sogs_that_are_broken(tmp_path):
    path, files = tmp_path / "a.sog", sog_files(scene(90, 1))
    good, meta = zipped(files), json.loads(files["meta.json"])

    def says(**changes: object) -> str:
        return refused(path, zipped(files | {"meta.json": json.dumps(meta | changes).encode()}))

    assert "meta.json cannot be read" in refused(path, good[:-30])
    assert "meta.json cannot be read" in refused(path, b"")
    assert "meta.json cannot be read" in refused(path, zipped({"a/meta.json": b"{}"}))
    assert "no JSON" in refused(path, zipped(files | {"meta.json": b"{"}))
    assert "no JSON" in refused(path, zipped(files | {"meta.json": b"[" * 100_000}))
    assert "quats.webp cannot be read" in refused(path, zipped({n: c for n, c in files.items() if n != "quats.webp"}))
    assert "unknown way" in refused(path, zipped(files, zipfile.ZIP_LZMA))
    assert "unknown way" in refused(path, zipped(files | {"quats.webp": bytes(1 << 24)}, zipfile.ZIP_DEFLATED))
    assert "version 3" in says(version=3)
    assert "version None" in refused(path, zipped(files | {"meta.json": b"[]"}))
    assert "lacks what version 2" in says(quats={"files": []})
    assert "lacks what version 2" in says(count="90")
    assert "lacks what version 1" in says(version=1)
    assert "plain file name" in says(quats={"files": ["../quats.webp"]})
    assert "plain file name" in says(quats={"files": ["/etc/passwd"]})
    assert "256 numbers were expected (9 of them)" in says(scales=meta["scales"] | {"codebook": [0] * 9})
    assert "3 numbers" in says(means=meta["means"] | {"mins": [10**400, 0, 0]})
    assert "NaN or infinite" in says(means=meta["means"] | {"maxs": [1e300, 0, 0]})
    assert "no Gaussians" in says(count=0)
    assert "no Gaussians" in says(count=-5)
    assert "announces 1,000,000 Gaussians" in says(count=10**6)
    assert "8 x 13 pixels where 105" in says(count=105)
    assert "cannot be read" in refused(path, zipped(files | {"scales.webp": b"RIFF"}))
    narrow = webp(np.zeros((2, 64 * 4, 4), np.uint8))
    assert "256 pixels wide" in refused(path, zipped(files | {"centroids.webp": narrow}))
    few = webp(np.zeros((1, 64 * 3, 4), np.uint8))
    assert "points to list 159 of SH where it has 64" in refused(path, zipped(files | {"centroids.webp": few}))
    no_rotations = webp(sheet([[0] * 4] * 90))
    assert "90 of 90 rotations" in refused(path, zipped(files | {"quats.webp": no_rotations}))


def test_sog_folders_that_are_broken(tmp_path):
    files = sog_files(scene(9, 0))
    path = in_folder(tmp_path / "a", files)
    (tmp_path / "a" / "sh0.webp").unlink()
    assert "sh0.webp, which cannot be read beside it" in refused(path)
    (tmp_path / "a" / "sh0.webp").mkdir()
    assert "sh0.webp, which cannot be read beside it" in refused(path)
    assert "levels of detail" in refused(path, b'{"lodLevels": 3}')
    assert "no JSON" in refused(path, b'{"version"')
    assert "lacks what version 1" in refused(path, b'{"frames": []}')


def test_picture_of_one_colour_that_is_huge(tmp_path):
    """A few hundred bytes of WebP may hold 268 million pixels: more than its Gaussians need are refused."""
    files = sog_files(scene(9, 0))
    made = io.BytesIO()
    Image.new("RGBA", (2000, 2000)).save(made, "WEBP", lossless=True)
    content = zipped(files | {"quats.webp": made.getvalue()})
    assert "2000 x 2000 pixels are more than" in refused(tmp_path / "a.sog", content)


def test_pillow_without_webp(tmp_path, monkeypatch):
    (tmp_path / "a.sog").write_bytes(zipped(sog_files(scene(9, 0))))
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    assert "pip install --upgrade pillow" in refused(tmp_path / "a.sog")


@settings(deadline=None, max_examples=80)
@given(changes=damage, end=cut, which=st.integers(0, 8))
def test_damaged_sog(tmp_path_factory, changes, end, which):
    files = dict(SOGS[2])
    if which < len(files):
        name = list(files)[which]
        files[name] = damaged(files[name], changes, end, 40)
        content = zipped(files)
    else:
        content = damaged(zipped(files), changes, end, 40)
    only_arrays_or_sentences(tmp_path_factory.getbasetemp() / "damaged.sog", content)


SOGS = {version: sog_files(scene(4, 1), version) for version in (1, 2)}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), version=st.integers(1, 2), value=anything)
def test_damaged_meta(tmp_path_factory, data, version, value):
    meta = json.loads(SOGS[version]["meta.json"])
    section = data.draw(st.sampled_from(["", *meta]))
    place = meta[section] if section and isinstance(meta[section], dict) else meta
    key = data.draw(st.sampled_from([*place, "codebook", "version"]))
    if isinstance(place.get(key), list) and place[key] and data.draw(st.booleans()):
        place, key = place[key], data.draw(st.integers(0, len(place[key]) - 1))
    place[key] = value
    content = zipped(SOGS[version] | {"meta.json": json.dumps(meta).encode()})
    only_arrays_or_sentences(tmp_path_factory.getbasetemp() / "meta.sog", content)


# --- .ksplat ------------------------------------------------------------------------------------------------


def ksplat_bytes(
    parts: list[Scene], level: int, bucket: int = 4, sh_range: tuple[float, float] = (0, 0), scale_range: int = 32767
) -> bytes:
    """Write a .ksplat of one section for each scene; buckets are filled in order, the last two are not full."""
    steps = scale_range or 32767
    head = bytearray(4096)
    total = sum(map(len, parts))
    struct.pack_into("<2B2x4IH", head, 0, 0, 1, len(parts), len(parts), total, total, level)
    struct.pack_into("<2f", head, 36, *sh_range)
    low, high = sh_range[0] or -1.5, sh_range[1] or 1.5
    heads, sections = b"", b""
    for known in parts:
        n, k = known.rest.shape[:2]
        full = max(n // bucket - 1, 0)
        lengths = [part for part in ((n - full * bucket) // 2, n - full * bucket - (n - full * bucket) // 2) if part]
        if level == 0:
            full, lengths = 0, []
        groups = [bucket] * full + lengths
        owner = [i for i, length in enumerate(groups) for _ in range(length)]
        block = 40.0
        centers = [known.means[[i for i in range(n) if owner[i] == j]].mean(0).astype("f4") for j in range(len(groups))]
        data = b""
        for i in range(n):
            linear = np.exp(known.log_scales[i])
            if level == 0:
                data += struct.pack("<10f", *known.means[i], *linear, *known.quats[i])
            else:
                fixed = (known.means[i] - centers[owner[i]]) / (block / 2) * steps
                data += struct.pack("<3H7e", *(round(x) + steps for x in fixed), *linear, *known.quats[i])
            data += bytes(whole(v * 255, 255) for v in (*known.rgb[i], known.alphas[i]))
            for begin, end in ((0, 3), (3, 8)):
                for channel in range(3):
                    for term in range(begin, min(end, k)):
                        value = known.rest[i, term, channel]
                        if level == 2:
                            data += bytes([whole((value - low) / (high - low) * 255, 255)])
                        else:
                            data += struct.pack("<f" if level == 0 else "<e", value)
        about = bytearray(1024)
        some = bool(level)
        struct.pack_into(
            "<4IfH2xI", about, 0, n, n, bucket * some, len(groups), block * some, 12 * some, scale_range * some
        )
        struct.pack_into("<3IH", about, 28, len(data), full, len(lengths), TERMS.index(k))
        heads += bytes(about)
        sections += struct.pack(f"<{len(lengths)}I", *lengths) + b"".join(c.tobytes() for c in centers) + data
    return bytes(head) + heads + sections


KSPLAT_STEPS = {"means": 1e-3, "scales": 1e-3, "turn": 3e-3, "rgb": 2e-3, "alpha": 2e-3, "sh": 3 / 510 + 1e-6}


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_ksplat(tmp_path, level, degree):
    known = scene(30, degree)
    (tmp_path / "a.ksplat").write_bytes(ksplat_bytes([known], level))
    steps = KSPLAT_STEPS if level else dict.fromkeys(KSPLAT_STEPS, 1e-5) | {"rgb": 2e-3, "alpha": 2e-3}
    assert_near(decoded(tmp_path / "a.ksplat"), known, **steps)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_ksplat_of_several_sections_and_degrees(tmp_path, level):
    first, second = scene(13, 1), scene(6, 2, seed=1)
    (tmp_path / "a.ksplat").write_bytes(ksplat_bytes([first, scene(0, 0), second], level, sh_range=(-1, 1)))
    made = decoded(tmp_path / "a.ksplat")
    rest = np.concatenate([first.rest, np.zeros((13, 5, 3))], axis=1)
    assert_near(made[:13], replace(first, rest=rest), **KSPLAT_STEPS)
    assert_near(made[13:], second, **KSPLAT_STEPS)
    (tmp_path / "b.ksplat").write_bytes(ksplat_bytes([first, scene(0, 2)], level, sh_range=(-1, 1)))
    assert_near(decoded(tmp_path / "b.ksplat"), first, **KSPLAT_STEPS)  # what has no Gaussian has no degree


@pytest.mark.parametrize("scale_range", [0, 8191])
def test_positions_of_ksplats_are_in_the_steps_of_their_section(tmp_path, scale_range):
    known = scene(13, 0)
    (tmp_path / "a.ksplat").write_bytes(ksplat_bytes([known], 1, scale_range=scale_range))
    assert_near(decoded(tmp_path / "a.ksplat"), known, **(KSPLAT_STEPS | {"means": 2e-3}))


def test_scales_that_half_floats_lost(tmp_path):
    known = scene(4, 0)
    known.log_scales[2] = -30
    (tmp_path / "a.ksplat").write_bytes(ksplat_bytes([known], 1))
    np.testing.assert_allclose(decoded(tmp_path / "a.ksplat")["scale_1"][2], -25 * math.log(2), rtol=1e-6)


def test_ksplats_that_are_broken(tmp_path):
    path, good = tmp_path / "a.ksplat", ksplat_bytes([scene(9, 1)], 1)

    def says(at: int, format: str, value: float) -> str:
        made = bytearray(good)
        struct.pack_into(format, made, at, value)
        return refused(path, bytes(made))

    assert "truncated: 4,096 bytes" in refused(path, b"")
    assert "truncated" in refused(path, good[:-1])
    assert "version 1.1" in says(0, "B", 1)
    assert "version 0.0" in says(1, "B", 0)
    assert "level 3" in says(20, "<H", 3)
    assert "truncated" in says(4, "<I", 2**32 - 1)
    assert "no Gaussians" in says(4, "<I", 0)
    assert "10 Gaussians in a section that has room for 9" in says(4096, "<I", 10)
    assert "truncated" in says(4100, "<I", 2**32 - 1)
    assert "degree 3" in says(4096 + 40, "<H", 3)
    assert "truncated" in says(4096 + 12, "<I", 2**31)
    assert "centres of buckets of 11 bytes" in says(4096 + 20, "<H", 11)
    assert "outside of its 3 buckets" in says(4096 + 32, "<I", 0)
    assert "outside of its 3 buckets" in says(4096 + 1024, "<I", 0)
    assert "outside of its 3 buckets" in says(4096 + 8, "<I", 0)
    assert "NaN or infinite" in says(4096 + 16, "<f", np.inf)
    assert "NaN or infinite" in refused(
        path, ksplat_bytes([scene(9, 1)], 2)[:36] + struct.pack("<2f", np.nan, 0) + ksplat_bytes([scene(9, 1)], 2)[44:]
    )


@settings(deadline=None, max_examples=80)
@given(changes=damage, end=cut, where=st.integers(0, 47), value=st.integers(0, 255), level=st.integers(0, 2))
def test_damaged_ksplats(tmp_path_factory, changes, end, where, value, level):
    good = bytearray(ksplat_bytes([scene(9, 1)], level))
    good[4096 + where if value % 2 else where] = value
    content = damaged(bytes(good), changes, end, 48)
    only_arrays_or_sentences(tmp_path_factory.getbasetemp() / "damaged.ksplat", content)
