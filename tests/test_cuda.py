"""The CUDA backend beyond the contract: rows in bands, what is called how often, and the torch paths, on the stand-in.

What every backend must do is in tests/test_rasterize.py, which runs on the stand-in and on a GPU as well.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import gsplat_stand_in
import numpy as np
import pytest
import torch
from gsplat_stand_in import KERNELS, Refused, standing_in
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rasterize import RAW, leaves, make_camera, make_splats, one, rows_of
from torch import Tensor

from cgc.appearance.densify import gradients_seen
from cgc.errors import InputError
from cgc.geometry import covariances
from cgc.rasterize import entries, sparse, sparse_torch
from cgc.rasterize.cpu import CpuRasterizer
from cgc.rasterize.cuda import CudaRasterizer, _chunks
from cgc.rasterize.rows import cut
from cgc.rasterize.sparse_types import Csr
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels
from cgc.splats.types import Splats

CPU = torch.device("cpu")


@pytest.fixture
def compiled() -> Iterator[ModuleType]:
    """The stand-in of gsplat's compiled code, at work."""
    from importlib import import_module

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its tensors are small
    with standing_in():
        yield import_module("gsplat.cuda._backend")._C
    torch.set_num_threads(threads)


@pytest.fixture
def scene(generator: torch.Generator) -> tuple[Splats, Camera]:
    """200 Gaussians in 12 tiles."""
    return make_splats(200, generator, opacity=1.0), make_camera(60, 45)


# ----------------------------------------------------------------------------------------------------- nothing


@pytest.mark.parametrize("absgrad", [False, True])
def test_a_picture_of_no_gaussians_has_no_gradients_to_count(
    compiled: ModuleType, scene: tuple[Splats, Camera], absgrad: bool
) -> None:
    """A process whose photo sees none of the Gaussians still takes its step."""
    splats, camera = scene
    none = leaves(splats.select(torch.zeros(0, dtype=torch.long)), CPU)
    render = CudaRasterizer(CPU).render(none, torch.zeros(0, 3, requires_grad=True), [camera], absgrad=absgrad)
    render.means2d.retain_grad()
    render.values.sum().backward()
    norms, seen = gradients_seen(render, camera.width, camera.height, photos=1)
    assert norms.shape == seen.shape == (1, 0)


# ------------------------------------------------------------------------------------------------------- bands


@pytest.mark.parametrize("limit", [1, 4_000_000, 40_000_000])
def test_bands_give_the_same_rows(
    compiled: ModuleType, scene: tuple[Splats, Camera], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A tile at a time, or a few: bit for bit the rows that one call gives, of all pixels and of some."""
    splats, camera = scene
    some = torch.tensor([5, 2699, 7, 7, 1311, 0])
    monkeypatch.setattr("cgc.rasterize.rows.KEPT_BYTES", 0)
    whole = CudaRasterizer(CPU).contributions(splats, camera, min_weight=0.01)
    calls = count_calls(compiled)
    made = CudaRasterizer(CPU, memory_limit=limit).contributions(splats, camera, min_weight=0.01)
    assert calls["rasterize_to_indices_3dgs"] == {1: 12, 4_000_000: 5, 40_000_000: 1}[limit]
    assert rows_of(made) == rows_of(whole)
    assert made.remainder is not None and whole.remainder is not None and torch.equal(made.remainder, whole.remainder)
    few = CudaRasterizer(CPU, memory_limit=limit).contributions(splats, camera, some, min_weight=0.01)
    assert rows_of(few) == [rows_of(whole)[p] for p in some.tolist()]


def count_calls(compiled: ModuleType) -> Counter[str]:
    """Count the calls of each compiled function from now on."""
    calls: Counter[str] = Counter()

    def counted(name: str, function: object) -> object:
        def call(*args: object) -> object:
            calls[name] += 1
            return function(*args)  # pyright: ignore[reportCallIssue]

        return call

    for name, function in list(vars(compiled).items()):
        if callable(function) and name in vars(gsplat_stand_in):
            setattr(compiled, name, counted(name, function))
    return calls


def test_tiles_without_wanted_pixels_are_not_looked_at(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """One pixel is one band, whatever the picture has."""
    calls = count_calls(compiled)
    CudaRasterizer(CPU, memory_limit=40_000).contributions(*scene, torch.tensor([0]), heaviest=3)
    assert calls["rasterize_to_indices_3dgs"] == 1


def test_going_on_from_a_transmittance_would_not_be_exact(compiled: ModuleType) -> None:
    """Why bands are of tiles and not of depth: a pixel that has stopped would go on in the next call."""
    front = [one((0.0, 0.0, 2.0 + i), scales=(30.0, 30.0, 0.01), opacity=o) for i, o in enumerate((0.998, 0.96))]
    behind = one((0.0, 0.0, 5.0), scales=(30.0, 30.0, 0.01), opacity=0.1)
    splats = Splats(*(torch.cat([getattr(s, k) for s in (*front, behind)]) for k in (*RAW, "sh")))
    W = CudaRasterizer(CPU).contributions(splats, make_camera(turn=0.0), torch.tensor([14 * 37 + 18]))
    assert W.ids.tolist() == [0]  # the second would leave less than 1e-4; the third would not, but is behind it
    assert CpuRasterizer().contributions(splats, make_camera(turn=0.0), W.pixels).ids.tolist() == [0]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_cut(cost: list[int], most: int) -> None:
    """Runs lie in order, hold all that costs anything, and pass the bound only one long."""
    runs = cut(np.array(cost, np.int64), most)
    assert all(a < b for a, b in runs) and all(b <= c for (_, b), (c, _) in pairwise(runs))
    held = {t for a, b in runs for t in range(a, b)}
    assert all(t in held for t, c in enumerate(cost) if c)
    assert all(b - a == 1 or sum(cost[a:b]) <= most for a, b in runs)
    assert all(sum(cost[a:b]) for a, b in runs)


def test_more_weights_than_memory_are_refused(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """As on the CPU; fewer entries still fit."""
    rasterizer = CudaRasterizer(CPU, memory_limit=100_000)
    with pytest.raises(InputError, match=r"2,700 pixels need more than 0.0001 GB; ask for fewer pixels"):
        rasterizer.contributions(*scene)
    assert len(rasterizer.contributions(*scene, heaviest=1)) == 2700


# ---------------------------------------------------------------------------------------------- groups and votes


def test_groups_are_sums_of_entries(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """Once a pixel and group, by rising number; the CPU backend's sums."""
    splats, camera = scene
    groups = torch.arange(200) % 7
    pixels = torch.tensor([1311, 4, 1311, 2000])
    made = CudaRasterizer(CPU).group_contributions(splats, camera, groups, pixels)
    theirs = CpuRasterizer().group_contributions(splats, camera, groups, pixels)
    assert made.n_gaussians == 7 and made.remainder is None
    for ids, _ in rows_of(made):
        assert ids == sorted(set(ids))
    torch.testing.assert_close(made.matmul(torch.eye(7)), theirs.matmul(torch.eye(7)), rtol=0, atol=1e-5)
    nothing = CudaRasterizer(CPU).group_contributions(one((0.0, 0.0, -2.0)), camera, torch.zeros(1).long())
    assert len(nothing) == 2700 and not len(nothing.ids) and nothing.n_gaussians == 1
    with pytest.raises(ValueError, match="groups must be a whole number for each of 200"):
        CudaRasterizer(CPU).group_contributions(splats, camera, groups[1:])


def test_votes_are_the_gradient_of_pictures(
    compiled: ModuleType, scene: tuple[Splats, Camera], generator: torch.Generator
) -> None:
    """W^T x of a whole picture in calls of 32 columns, one projection and one listing for all."""
    splats, camera = scene
    x = torch.randn(2700, 40, generator=generator)
    calls = count_calls(compiled)
    made = CudaRasterizer(CPU).transpose_product(leaves(splats, CPU), camera, x)
    assert not made.requires_grad
    assert {k: n for k, n in calls.items() if n} == {
        "projection_ewa_3dgs_fused_fwd": 1, "intersect_tile": 1, "intersect_offset": 1,
        "rasterize_to_pixels_3dgs_fwd": 2, "rasterize_to_pixels_3dgs_bwd": 2,
    }  # fmt: skip
    expected = CudaRasterizer(CPU).contributions(splats, camera).transpose_matmul(x)
    assert (made - expected).abs().max() < 1e-4 * expected.abs().max()  # T is recovered by division in gradients
    assert CudaRasterizer(CPU).transpose_product(splats, camera, x[:, :0]).shape == (200, 0)
    with pytest.raises(ValueError, match=r"x must be \[2700, M\], a row for each pixel, got \[2699, 40\]"):
        CudaRasterizer(CPU).transpose_product(splats, camera, x[1:])


# ------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize(("channels", "calls"), [(0, 1), (1, 1), (32, 1), (33, 1), (34, 2), (40, 2), (70, 3)])
def test_nothing_is_made_twice(
    compiled: ModuleType, scene: tuple[Splats, Camera], generator: torch.Generator, channels: int, calls: int
) -> None:
    """One projection and one listing for several cameras and any number of channels; equal to the CPU's picture."""
    splats, camera = scene
    values, cameras = torch.randn(200, channels, generator=generator), [camera, replace(camera, K=camera.K * 1.1)]
    cameras[1].K[2, 2] = 1.0
    counted = count_calls(compiled)
    made = CudaRasterizer(CPU).render(splats, values, cameras)
    assert dict(counted) == {
        "projection_ewa_3dgs_fused_fwd": 1, "intersect_tile": 1, "intersect_offset": 1,
        "rasterize_to_pixels_3dgs_fwd": calls,
    }  # fmt: skip
    expected = CpuRasterizer().render(splats, values, cameras)
    assert made.values.shape == (2, 45, 60, channels)
    for name in ("values", "alphas"):
        torch.testing.assert_close(getattr(made, name), getattr(expected, name), rtol=0, atol=1e-4)


def test_absolute_gradients_are_of_one_call(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """Magnitudes of two calls do not add up to those of one."""
    splats, camera = scene
    CudaRasterizer(CPU).render(splats, torch.ones(200, 32), [camera], depth=True, absgrad=True)
    with pytest.raises(InputError, match="at most 33 channels, and 34 were asked for"):
        CudaRasterizer(CPU).render(splats, torch.ones(200, 33), [camera], depth=True, absgrad=True)


def test_chunks_hold_all_channels() -> None:
    """In order, 32 at a time, or 33 where that is all."""
    assert _chunks(0) == [] and _chunks(33) == [(0, 33)] and _chunks(66) == [(0, 32), (32, 64), (64, 66)]


def test_what_is_hidden_is_zero(compiled: ModuleType, generator: torch.Generator) -> None:
    """gsplat leaves its memory as it was; NaN must reach neither the picture nor a gradient."""
    hidden = one((0.0, 0.0, -5.0))
    some = make_splats(30, generator)
    splats = leaves(Splats(*(torch.cat([getattr(s, k) for s in (hidden, some)]) for k in (*RAW, "sh"))), CPU)
    render = CudaRasterizer(CPU).render(splats, splats.means, [make_camera()], depth=True)
    assert render.depths is not None and not render.means2d[0, 0].any()
    (render.values.sum() + render.depths.sum() + render.means2d.square().sum()).backward()
    for name in RAW:
        gradient = getattr(splats, name).grad
        assert gradient.isfinite().all() and (name == "means" or not gradient[0].any()), name


def test_checks_can_be_left_out(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """Then NaN comes through; shapes are still looked at."""
    splats, camera = scene
    values = torch.ones(200, 2)
    values[:, 1] = torch.nan
    quick = CudaRasterizer(CPU, check=False)
    assert quick.render(splats, values, [camera]).values.isnan().any()
    with pytest.raises(InputError, match="values must be finite, but of its 400 entries 200 are NaN"):
        CudaRasterizer(CPU).render(splats, values, [camera])
    with pytest.raises(ValueError, match="values must be"):
        quick.render(splats, values[1:], [camera])


def test_more_than_gsplat_counts_is_refused(compiled: ModuleType) -> None:
    """Before 32 bits overflow."""
    camera = make_camera(8000, 6000)
    with pytest.raises(InputError, match="3 cameras of 8000 x 6000 pixels and 1 Gaussians are more than gsplat counts"):
        CudaRasterizer(CPU).render(one(), torch.ones(1, 1), [camera] * 3)


# ------------------------------------------------------------------------------------------------- the stand-in


@pytest.mark.skipif(bool(KERNELS), reason="the kernels' own words")
def test_the_stand_in_refuses_what_cuda_would(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """Layouts, dtypes, devices, channels, and dividing by no Gaussians."""
    splats, camera = scene
    views, Ks = camera.viewmat[None], camera.K[None]
    rest = (60, 45, 0.3, 0.01, 1e10, 0.0, False, compiled.PINHOLE)
    project = compiled.projection_ewa_3dgs_fused_fwd
    good = (splats.means, None, splats.quats, splats.scales, splats.opacities, views, Ks)
    radii, means2d, depths, conics, _ = project(*good, *rest)
    for place, bad, why in (
        (0, splats.means.double(), "means: expected scalar type"),
        (2, splats.quats.T.contiguous().T, "quats must be contiguous"),
        (3, splats.scales.to("meta"), "several devices"),
    ):
        with pytest.raises(Refused, match=why):
            project(*good[:place], bad, *good[place + 1 :], *rest)
    with pytest.raises(Refused, match="division by zero"):
        project(*(t if t is None or len(t) == 1 else t[:0] for t in good), *rest)
    _, keys, ids = compiled.intersect_tile(means2d.nan_to_num(), radii, depths, None, None, 1, 16, 4, 3, True, False)
    offsets = compiled.intersect_offset(keys, 1, 4, 3)
    blend = compiled.rasterize_to_pixels_3dgs_fwd
    for channels, flat, why in ((6, ids, "Unsupported number of channels: 6"), (8, ids.long(), "flatten_ids")):
        with pytest.raises(Refused, match=why):
            blend(means2d, conics, torch.ones(1, 200, channels), splats.opacities[None], None, None, 60, 45, 16,
                  offsets, flat)  # fmt: skip
    with pytest.raises(Refused, match="shared memory"):
        gsplat_stand_in.check_blending(64, backward=True)


def test_the_stand_in_is_gsplats_reference(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """Projection and lists against gsplat's own torch code, whose radii do not know of opacities."""
    reference = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat's torch reference has moved")
    splats, camera = replace(scene[0], means=scene[0].means * torch.tensor([3.0, 3.0, 1.0])), scene[1]
    views, Ks, size = camera.viewmat[None], camera.K[None], (60, 45)
    theirs = reference._fully_fused_projection(splats.means, covariances(splats.quats, splats.scales), views, Ks, *size)
    ours = compiled.projection_ewa_3dgs_fused_fwd(
        splats.means, None, splats.quats, splats.scales, None, views, Ks, *size, 0.3, 0.01, 1e10, 0.0, False,
        compiled.PINHOLE,
    )  # fmt: skip
    seen = (ours[0] > 0).all(2)
    assert torch.equal(seen, (theirs[0] > 0).all(2)) and 20 < seen.sum() < 200
    for name, a, b in zip(("radii", "means2d", "depths", "conics"), ours, theirs):
        torch.testing.assert_close(a[seen].float(), b[seen].float(), rtol=1e-4, atol=1e-5, msg=name)
    means2d, depths = (torch.where(seen.reshape(*seen.shape, *[1] * (t.ndim - 2)), t, 0.0) for t in ours[1:3])
    counts, keys, ids = compiled.intersect_tile(means2d, ours[0], depths, None, None, 1, 16, 4, 3, True, False)
    their_counts, their_keys, their_ids = reference._isect_tiles(means2d, ours[0], depths, 16, 4, 3)
    assert torch.equal(counts, their_counts) and torch.equal(keys, their_keys) and torch.equal(ids, their_ids)
    offsets = compiled.intersect_offset(keys, 1, 4, 3)
    assert torch.equal(offsets, reference._isect_offset_encode(keys, 1, 4, 3))


def test_label_pictures_are_those_of_the_cpu(compiled: ModuleType, scene: tuple[Splats, Camera]) -> None:
    """What everything after lifting is made of."""
    splats, camera = scene
    labels = np.arange(200) % 5
    ours, theirs = (render_labels(splats, labels, camera, r) for r in (CudaRasterizer(CPU), CpuRasterizer()))
    assert (ours.ids == theirs.ids).mean() > 0.995
    np.testing.assert_allclose(ours.weight, theirs.weight, atol=2e-3)


# --------------------------------------------------------------------------------------- torch paths of matrices


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Csr, int]:
    """A CSR matrix of numpy arrays, and its number of columns."""
    columns = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(st.integers(0, columns - 1), max_size=5), max_size=7))
    ids = np.array([i for row in rows for i in row], np.int32)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    weights = np.random.default_rng(draw(st.integers(0, 99))).random(len(ids), np.float32)
    return Csr(indptr, ids, weights), columns


def tensors(matrix: Csr) -> Csr:
    """The matrix as tensors."""
    return Csr(*(torch.from_numpy(a) for a in matrix))


def equal(ours: Csr, theirs: Csr) -> bool:
    """Say whether a matrix of tensors is a matrix of arrays."""
    return all(np.array_equal(a.numpy(), b) and a.numpy().dtype == b.dtype for a, b in zip(ours, theirs))


@given(matrices(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_torch_does_what_the_kernels_do(given_matrix: tuple[Csr, int], channels: int) -> None:
    """Products, transposes, rows and columns, of empty matrices too."""
    matrix, columns = given_matrix
    ours, rows = tensors(matrix), len(matrix.indptr) - 1
    x = np.random.default_rng(0).random((columns, channels), np.float32)
    np.testing.assert_allclose(sparse_torch.multiply(ours, torch.from_numpy(x)), sparse.product(matrix, x), rtol=1e-6)
    assert equal(sparse_torch.transpose(ours, columns), sparse.transpose(matrix, columns))
    some = np.array([r for r in (rows - 1, 0, rows - 1) if 0 <= r < rows], np.int64)
    assert equal(sparse_torch.take_rows(ours, torch.from_numpy(some)), sparse.take_rows(matrix, some))
    (made, kept), (theirs, their_kept) = (
        sparse_torch.drop_empty_columns(ours, columns), sparse.drop_empty_columns(matrix, columns),
    )  # fmt: skip
    assert equal(made, theirs) and np.array_equal(kept.numpy(), their_kept)


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_sums_and_weights_along_pixels(counts: list[int], seed: int) -> None:
    """Against a loop over the entries of each pixel."""
    pixels = torch.tensor([p for p, n in enumerate(counts) for _ in range(n)], dtype=torch.int64)
    x = torch.rand(len(pixels), generator=torch.Generator().manual_seed(seed))
    runs = entries.find_runs(pixels, len(counts))
    sums, weights, left = torch.zeros_like(x), torch.zeros_like(x), dict.fromkeys(range(len(counts)), (0.0, 1.0))
    for e, pixel in enumerate(pixels.tolist()):
        total, T = left[pixel]
        sums[e], weights[e] = total + x[e], x[e] * T
        left[pixel] = float(sums[e]), T * (1 - float(x[e]))
    torch.testing.assert_close(entries.along(x, runs), sums)
    torch.testing.assert_close(entries.blending_weights(x, runs), weights)
    torch.testing.assert_close(entries.totals(x, runs), torch.tensor([t for t, _ in left.values()]))


def test_products_of_the_torch_path_have_gradients(
    compiled: ModuleType, scene: tuple[Splats, Camera], monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Both products, and their gradients, equal the kernels' on the same matrix; compact and select alike."""
    W = CpuRasterizer().contributions(*scene, torch.arange(0, 2700, 3), heaviest=4)
    x = torch.randn(200, 5, generator=generator)

    def everything() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        some = replace(W).select(torch.arange(0, 900, 2))
        small, kept = some.compact()
        out = small.matmul(leaf[kept.long()])
        back = small.transpose_matmul(out)
        back.square().sum().backward()
        assert leaf.grad is not None
        return [out.detach(), back.detach(), leaf.grad, kept, small.ids, some.weights, some.indptr, some.remainder]  # pyright: ignore[reportReturnType]

    kernels = everything()
    monkeypatch.setattr("cgc.kernels.serve", lambda device: False)
    for ours, theirs in zip(everything(), kernels):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert isinstance(W.select(torch.arange(3)).by_gaussian.ids, Tensor)


# ----------------------------------------------------------------------------------------------------- the tool


def test_the_check_compares_and_times(capsys: pytest.CaptureFixture[str]) -> None:
    """tools/check_cuda.py on the CPU: the backend does not differ from itself, and every line says so."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[1] / "tools" / "check_cuda.py"
    spec = importlib.util.spec_from_file_location("check_cuda", path)
    assert spec and spec.loader
    tool = sys.modules["check_cuda"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(tool.Check(device="cpu", gaussians=300, width=64, channels=(3,), repeats=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device: cpu (as asked); torch") and lines[1] == "300 Gaussians, 64 x 48 pixels"
    compared = [line for line in lines if "off by" in line]
    assert len(compared) == 11 and all("off by  0.0e+00 at most" in line for line in compared)
