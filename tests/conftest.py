"""Fixtures every room may use: a seeded generator, and the rasteriser of every backend that can run here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from cgc.rasterize.base import Rasterizer


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator, seeded."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: Any) -> torch.device:
    """Where a backend works; skips, with the reason, what this machine or this installation does not have."""
    if request.param == "cuda":
        if importlib.util.find_spec("cgc.rasterize.cuda") is None:
            pytest.skip("no CUDA backend: cgc.rasterize.cuda does not exist")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device: torch.cuda.is_available() is False")
    return torch.device(request.param)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def tensors_on(request: Any) -> torch.device:
    """Where tensors lie, whatever made them; skips, with the reason, where there is no such device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is False")
    return torch.device(request.param)


@pytest.fixture
def rasterizer(device: torch.device) -> Rasterizer:
    """The backend of `device`."""
    if device.type == "cuda":
        from cgc.rasterize.cuda import CudaRasterizer  # pyright: ignore[reportMissingImports]

        return CudaRasterizer()
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

    from cgc.pipeline import run_all

    out = tmp_path_factory.mktemp("tiny") / "run"
    run_all(tiny_scene, out, SETTINGS, masks=tiny_scene / "masks", splats=None, quiet=True)
    return out
