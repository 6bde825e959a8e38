"""Whole runs on a device that is not there (pretended_device.py): nothing lies on the host that a GPU would miss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended_device import DEVICE, Mixed, There, pretended
from test_appearance import TINY, make_scene
from tiny import SETTINGS

import cgc
from cgc.appearance.trainer import train
from cgc.features.joint import JointFeatures
from cgc.masks.id_maps import read_id_map
from cgc.pipeline import commands
from cgc.rasterize.cuda import CudaRasterizer
from cgc.scene.types import Camera
from cgc.segmentation.segments import load_labels
from cgc.settings import JointSettings
from cgc.splats.types import Splats

FEW = replace(
    SETTINGS,
    lift=replace(SETTINGS.lift, steps=10, pixels_per_view=600, pixels_per_step=600),
    sharpen=replace(SETTINGS.sharpen, steps=1),
)


def test_what_a_gpu_would_refuse_is_refused() -> None:
    with pretended():
        there, host = torch.arange(6.0).reshape(2, 3).to(DEVICE), torch.ones(2, 3)
        assert (
            isinstance(there, There)
            and there.device == DEVICE
            and (there * 2.0).cpu().tolist() == [[0, 2, 4], [6, 8, 10]]
        )
        there[1] += 10  # by way of a view
        assert there.tolist() == [[0, 1, 2], [13, 14, 15]] and there[:, host[0] > 0].shape == (2, 3)
        for mixed in (
            lambda: there + host,
            lambda: torch.cat([there, host]),
            lambda: host[there[:, 0].long() * 0],
            lambda: there.index_put_((there[:, 0].long() * 0,), host),
            lambda: there.numpy(),
            lambda: np.asarray(there),
            lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
            lambda: CudaRasterizer("cpu").contributions(*one_gaussian()),
        ):
            with pytest.raises(Mixed):
                mixed()
        if torch.version.cuda:
            with pytest.raises(Mixed, match="no code for aten::histogram"):
                torch.histogram(there, 2)
        x = torch.nn.Parameter(there.clone())
        (x * x).sum().backward()
        assert x.grad is not None and torch.equal(x.grad.cpu(), 2 * there.cpu())


def one_gaussian() -> tuple[Splats, Camera]:
    splats = Splats(
        torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1, 3), torch.zeros(1), torch.zeros(1, 1, 3)
    )
    return splats, Camera.look_at((3, 0, 0), (0, 0, 0), width=8, height=6)


@pytest.mark.parametrize("kind", ["split", "default", "mcmc", "joint", "host"])
def test_training_mixes_nothing(kind: str) -> None:
    """Growing and pruning among it; photos on the device, or on their way to it."""
    settings = replace(
        TINY, steps=5, refine_every=2, refine_start=0.1, refine_stop=1.0, grow_grad2d=1e-6, reset_every=3
    )
    if kind in ("default", "mcmc"):
        settings = replace(settings, strategy=kind, mcmc_growth=0.2)
    if kind == "host":
        settings = replace(settings, photos="host", views_per_step=2, background="random", max_length=0.5)
    with pretended() as device:
        rasterizer, companion = CudaRasterizer(device), None
        if kind == "joint":
            ids = np.arange(32 * 24).reshape(24, 32) // 200
            companion = JointFeatures(dict.fromkeys(range(9), ids), JointSettings(dim=3, ignore_pixels=9), 5)
        splats, stats = train(
            *make_scene(), rasterizer, settings, device=device, test_every=3, quiet=True, companion=companion
        )
        assert isinstance(splats.means, There) and stats.gaussians == len(splats) != 60
        assert bool(splats.means.isfinite().all())


@pytest.mark.parametrize("method", ["contrast", "joint", "vote"])
def test_a_run_mixes_nothing(tiny_scene, tiny_run, tmp_path, method: str) -> None:
    """From given splats to id maps, and what is asked of it: objects by clicks, pictures, one removed."""
    settings = replace(FEW, lift=replace(FEW.lift, method=method, cache_gb=0.0 if method == "contrast" else 1.0))
    settings = replace(settings, joint=replace(settings.joint, steps=3))
    with pretended():
        run = commands.run_all(
            tiny_scene,
            tmp_path / "run",
            settings,
            masks=tiny_scene / "masks",
            splats=tiny_run / "splats.ply",
            quiet=True,
        )
        labels, _ = load_labels(run.root)
        maps = [read_id_map(path) for path in sorted((run.root / "masks").rglob("*.png"))]
        assert labels.max() > 1 and len(maps) == 10 and all(m.max() > 0 for m in maps)
        if method != "contrast":
            return
        seg = cgc.load(run.root)
        view = seg.views[0]
        found = seg.at_pixel(view, 24, 18)
        assert found is not None and len(seg.from_mask(view, seg.masks([view])[0] == found.id)) > 0
        for what in ("rgb", "segments", "features", "depth", "confidence"):
            assert seg.render(view, what).any()
        assert found.id not in seg.remove(found).ids
