"""A scene small enough to run the whole main job in seconds: six clumps on a floor, ten views of 48x36."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pycolmap
import torch
from PIL import Image

from cgc.masks.id_maps import write_id_map
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels, render_rgb
from cgc.settings import ClusterSettings, LiftSettings, RunSettings, SharpenSettings, TrainSettings
from cgc.splats.types import Splats

WIDTH, HEIGHT, VIEWS, CLUMPS = 48, 36, 10, 6
FLOOR = CLUMPS + 1
NAMES = tuple(f"sub/view_{i:02d}.png" if i % 5 == 4 else f"a_view_{i:02d}.png" for i in range(VIEWS))
COLORS = np.array(
    [[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.9], [0.9, 0.8, 0.1], [0.8, 0.1, 0.8], [0.1, 0.8, 0.8]]
)

SETTINGS = RunSettings(
    train=TrainSettings(steps=60, max_gaussians=700, refine_every=20, checkpoint_every=0),
    lift=LiftSettings(steps=60, dim=8, border=0, min_mask_pixels=4, pixels_per_view=1500, pixels_per_step=1500),
    cluster=ClusterSettings(samples=500, min_cluster_size=10),
    sharpen=SharpenSettings(steps=0),
)


def clumps() -> tuple[Splats, np.ndarray]:
    """Six round clumps on a ring (labels 1 to 6) over a grey floor (7)."""
    g = torch.Generator().manual_seed(7)
    angles = torch.arange(CLUMPS) * (2 * math.pi / CLUMPS)
    centres = torch.stack([angles.cos(), angles.sin(), torch.full((CLUMPS,), 0.25)], 1)
    offsets = torch.randn(CLUMPS, 60, 3, generator=g)
    offsets *= 0.25 * torch.rand(CLUMPS, 60, 1, generator=g) ** (1 / 3) / offsets.norm(dim=-1, keepdim=True)
    xy = torch.stack(torch.meshgrid(torch.linspace(-1.8, 1.8, 16), torch.linspace(-1.8, 1.8, 16), indexing="ij"), -1)
    floor = torch.cat([xy.reshape(-1, 2), torch.full((256, 1), -0.1)], 1)
    means = torch.cat([(centres[:, None] + offsets).reshape(-1, 3), floor])
    labels = np.concatenate([np.repeat(np.arange(1, CLUMPS + 1), 60), np.full(256, FLOOR)]).astype(np.int32)
    rgb = torch.tensor(np.concatenate([COLORS, [[0.45, 0.45, 0.4]]])[labels - 1]).float()
    sizes = torch.where(torch.tensor(labels)[:, None] == FLOOR, 0.13, 0.07).log().expand(-1, 3)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means), 1)
    sh = ((rgb - 0.5) / 0.28209479177387814)[:, None]
    return Splats(means, quats, sizes.contiguous(), torch.full((len(means),), 3.0), sh), labels


def cameras() -> list[Camera]:
    """A ring of cameras that look down at the clumps."""
    angles = [2 * math.pi * i / VIEWS for i in range(VIEWS)]
    eyes = [(3.2 * math.cos(a), 3.2 * math.sin(a), 2.0) for a in angles]
    return [Camera.look_at(eye, (0, 0, 0), width=WIDTH, height=HEIGHT) for eye in eyes]


def make_scene(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Write images/, sparse/0, masks/ (ids permuted in every view) and the truth (instance/, instances.json)."""
    splats, labels = clumps()
    shots = dict(zip(names, cameras()))
    generator = np.random.default_rng(8)
    for name, camera in shots.items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rgb = render_rgb(splats, camera, CpuRasterizer())
        Image.fromarray((255 * rgb).round().astype(np.uint8)).save(path)
        ids = render_labels(splats, labels, camera, CpuRasterizer()).ids
        stem = name.rsplit(".", 1)[0]
        write_id_map(root / "instance" / f"{stem}.png", ids)
        write_id_map(root / "masks" / f"{stem}.png", np.append(0, generator.permutation(FLOOR) + 1)[ids])
    things = [{"id": i, "name": f"clump {i}", "stuff": i == FLOOR, "parent": 0} for i in range(1, FLOOR + 1)]
    (root / "instances.json").write_text(json.dumps({"instances": things}))
    write_model(root / "sparse/0", shots, splats)
    return root


def write_model(folder: Path, shots: dict[str, Camera], splats: Splats) -> None:
    """Write a COLMAP model of the cameras, with every second Gaussian's mean as a point."""
    model = pycolmap.Reconstruction()
    first = next(iter(shots.values()))
    kind = pycolmap.CameraModelId.__members__["PINHOLE"]
    lens = pycolmap.Camera.create_from_model_id(1, kind, float(first.K[0, 0]), first.width, first.height)
    model.add_camera_with_trivial_rig(lens)
    means = splats.means[::2].numpy().astype(float)
    colors = (255 * (splats.sh[::2, 0] * 0.28209479177387814 + 0.5)).round().clamp(0, 255).to(torch.uint8).numpy()
    for i, (name, camera) in enumerate(shots.items()):
        points = pycolmap.Point2DList([pycolmap.Point2D(np.zeros(2)) for _ in means])
        image = pycolmap.Image(name=name, camera_id=1, image_id=i + 1, points2D=points)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(camera.viewmat[:3].numpy().astype(float)))
    for j, (mean, color) in enumerate(zip(means, colors)):
        track = pycolmap.Track()
        track.add_element(1, j)
        track.add_element(2, j)
        model.add_point3D(mean, track, color)
    folder.mkdir(parents=True)
    model.write_text(str(folder))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_sizes(run: Path) -> None:
    """Make a run one of before the sizes of its files were kept: what lies in it may be changed."""
    facts = json.loads((run / "stats.json").read_text())
    del facts["files"]
    (run / "stats.json").write_text(json.dumps(facts))
