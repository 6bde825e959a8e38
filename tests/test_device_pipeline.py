"""The steps of a run on a device's way: what they leave is what the kernels leave."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import adjusted_rand_score

from cgc import kernels
from cgc.masks.id_maps import read_id_map
from cgc.pipeline.cluster import cluster_features
from cgc.pipeline.lift import lift
from cgc.pipeline.render import render
from cgc.pipeline.sharpen import sharpen_borders
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import open_run
from cgc.segmentation.segments import load_labels


@pytest.mark.parametrize("method", ["contrast", "vote"])
def test_a_run_by_torch_alone_leaves_what_the_kernels_leave(tiny_run, tmp_path, monkeypatch, method):
    """All kernels but the rasteriser's out of service: features, labels and id maps come of tensor operations."""
    made = []
    for name, serve in (("kernels", kernels.serve), ("torch", lambda device: False)):
        monkeypatch.setattr(kernels, "serve", serve)
        root = Path(shutil.copytree(tiny_run, tmp_path / name))
        work = Workspace(open_run(root), quiet=True)
        lifting = replace(work.run.settings.lift, method=method)
        work.run.settings = replace(work.run.settings, lift=lifting)
        for step in (lift, cluster_features, sharpen_borders, render):
            step(work)
        features = load_file(root / "features.safetensors")
        maps = [read_id_map(path) for path in sorted((root / "masks").glob("*.png"))]
        made.append((features, *load_labels(root), maps))
    (host, labels, confidences, maps), (device, found, sure, drawn) = made
    np.testing.assert_allclose(
        device["features"], host["features"], atol=1e-3 * np.abs(host["features"]).max(initial=1)
    )
    np.testing.assert_allclose(device["mass"], host["mass"], rtol=1e-5, atol=1e-5)
    assert adjusted_rand_score(labels, found) > 0.99 and np.abs(sure - confidences).mean() < 1e-2
    assert labels.max() > 1 and np.mean([(a == b).mean() for a, b in zip(maps, drawn, strict=True)]) > 0.99
