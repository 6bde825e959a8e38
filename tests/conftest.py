"""Fixtures every room may use: a generator, each backend's rasteriser, a tiny scene and run, several processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cgc.rasterize.base import Rasterizer

if TYPE_CHECKING:
    from processes import Group


@pytest.fixture(autouse=True)
def only_gpu_tests_see_a_card(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not marked gpu computes on the CPU, on a machine with a graphics card too."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator, seeded."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["cpu", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which backend a contract test is about; skips, with the reason, what this machine does not have.

    stand-in is `CudaRasterizer` over gsplat's own Python on CPU tensors, with gsplat's compiled code replaced by
    tests/gsplat_stand_in.py, and with the torch paths that serve tensors on a GPU.
    It proves: what cgc does around gsplat's functions (shapes, dtypes, layouts, order, chunks, bands, gradients, every
    error), that the formulas are those of the contract in float32, and that no input is passed that gsplat refuses.
    It does not prove: that the compiled kernels do what the stand-in does, fast approximations, atomics, streams and
    waiting, copies between devices, memory, speed. Those are what `cuda` is for. The first is shown where
    CGC_GSPLAT_KERNELS names what tools/build_gsplat_on_cpu.py made: then the kernels run in the stand-in's place.
    """
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device: torch.cuda.is_available() is False")
        yield "cuda"
    elif request.param == "stand-in":
        from gsplat_stand_in import standing_in

        monkeypatch.setattr("cgc.kernels.serve", lambda device: False)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # its tensors are small
        with standing_in():
            yield "stand-in"
        torch.set_num_threads(threads)
    else:
        yield "cpu"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def tensors_on(request: Any) -> torch.device:
    """Where tensors lie, whatever made them; skips, with the reason, where there is no such device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is False")
    return torch.device(request.param)


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where the backend's tensors are."""
    return torch.device("cuda" if backend == "cuda" else "cpu")


@pytest.fixture
def rasterizer(backend: str, device: torch.device) -> Rasterizer:
    """The backend."""
    if backend != "cpu":
        from cgc.rasterize.cuda import CudaRasterizer

        return CudaRasterizer(device)
    from cgc.rasterize.cpu import CpuRasterizer

    return CpuRasterizer()


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene of tests/tiny.py; copy it before changing it."""
    from tiny import make_scene

    return make_scene(tmp_path_factory.mktemp("tiny") / "scene")


@pytest.fixture(scope="session")
def tiny_run(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny scene; copy it before changing it."""
    from tiny import SETTINGS

    from cgc.pipeline.commands import run_all

    out = tmp_path_factory.mktemp("tiny") / "run"
    run_all(tiny_scene, out, SETTINGS, masks=tiny_scene / "masks", splats=None, quiet=True, device="cpu")
    return out


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny scene's run, to be changed."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def own_scene(tiny_scene: Path, tmp_path: Path) -> Path:
    """A copy of the tiny scene, to be changed."""
    return Path(shutil.copytree(tiny_scene, tmp_path / "scene"))


def _group(size: int, module: str) -> Iterator[Group]:
    from processes import Group

    group = Group(size, module)
    yield group
    group.end()


@pytest.fixture(scope="module")
def two(request: Any) -> Iterator[Group]:
    """Two processes that call functions of the test's module together."""
    yield from _group(2, request.module.__name__)


@pytest.fixture(scope="module")
def three(request: Any) -> Iterator[Group]:
    """Three of them."""
    yield from _group(3, request.module.__name__)


@pytest.fixture(params=["two", "three"])
def group(request: Any) -> Group:
    """Two of them, and three."""
    return request.getfixturevalue(request.param)
