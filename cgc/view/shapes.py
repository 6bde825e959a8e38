"""What the window draws of a state, as Open3D has it: Gaussians or points in the colours of the mode, and boxes.

Each function takes the module `open3d` and returns a geometry and its material.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cgc.geometry import rgb_to_sh_dc
from cgc.segmentation.objects import Box
from cgc.view.frames import ACCENT, EDGES
from cgc.view.state import State

MOST_POINTS = 400_000
"""Points that are drawn at most, evenly chosen; Gaussians and clicks are never thinned."""
LEAST_OPACITY = 0.15
"""Gaussians that are thinner are no points."""
SMALLEST = 1e-4
"""No axis of a Gaussian is drawn thinner than this share of its longest: the card's float16 cannot hold it."""


def gaussians(open3d: Any, state: State) -> tuple[Any, Any]:
    """The Gaussians that are shown; their colours change with the direction only where nothing else is marked."""
    tensor, splats = open3d.core.Tensor, state.shown.splats
    scales = splats.scales.detach()
    rgb = torch.from_numpy(state.colors())
    sheen = state.mode == "color" and not state.selected
    columns = {
        "rot": torch.nn.functional.normalize(splats.quats.detach(), dim=1),
        "scale": torch.maximum(scales, SMALLEST * scales.amax(dim=1, keepdim=True)),
        "opacity": splats.logit_opacities.detach()[:, None],
        "f_dc": splats.sh.detach()[:, 0] if sheen else rgb_to_sh_dc(rgb),
    }
    degree = min(2, splats.sh_degree) if sheen else 0  # Open3D draws no third degree
    if degree:
        columns["f_rest"] = splats.sh.detach()[:, 1 : (degree + 1) ** 2]
    cloud = open3d.t.geometry.PointCloud(tensor(splats.means.detach().numpy().copy()))
    for name, values in columns.items():
        cloud.point[name] = tensor(np.ascontiguousarray(values.numpy()))
    material = open3d.visualization.rendering.MaterialRecord()
    material.shader = "gaussianSplat"
    material.gaussian_splat_sh_degree = degree
    material.gaussian_splat_max_tiles_per_splat = 1 << 20  # near Gaussians of a wall cover the window
    return cloud, material


def points(open3d: Any, state: State, scaling: float) -> tuple[Any, Any]:
    """The centres of what is shown and solid, larger by `scaling`; (None, None) where there are none."""
    vectors, splats = open3d.utility.Vector3dVector, state.shown.splats
    solid = np.flatnonzero(splats.opacities.detach().numpy() >= LEAST_OPACITY)
    if len(solid) > MOST_POINTS:
        solid = solid[np.linspace(0, len(solid) - 1, MOST_POINTS).astype(np.int64)]
    if not len(solid):
        return None, None
    cloud = open3d.geometry.PointCloud(vectors(splats.means.detach().numpy()[solid].astype(float)))
    cloud.colors = vectors(state.colors()[solid].astype(float))
    material = open3d.visualization.rendering.MaterialRecord()
    material.shader = "defaultUnlit"
    material.sRGB_color = True
    material.point_size = 4 * scaling
    return cloud, material


def edges(open3d: Any, box: Box, scaling: float) -> tuple[Any, Any]:
    """The edges of a box, wider by `scaling`."""
    utility = open3d.utility
    lines = open3d.geometry.LineSet(utility.Vector3dVector(box.corners), utility.Vector2iVector(EDGES))
    lines.paint_uniform_color([c / 255 for c in ACCENT])
    material = open3d.visualization.rendering.MaterialRecord()
    material.shader = "unlitLine"
    material.line_width = 2 * scaling
    return lines, material
