"""Render the demo scene's photos with Cycles and cast rays for its exact truth; needs `bpy`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import bpy  # pyright: ignore[reportMissingImports]
import numpy as np
from mathutils import Matrix, Vector  # pyright: ignore[reportMissingImports]
from mathutils.bvhtree import BVHTree  # pyright: ignore[reportMissingImports]

from .cameras import Pinhole, View


@dataclass(frozen=True)
class Soup:
    """All triangles of the scene: corners (T, 3, 3) metres and instance ids (T,)."""

    corners: np.ndarray
    ids: np.ndarray


def triangles() -> Soup:
    """Collect the scene's triangles as they are rendered, modifiers applied."""
    graph = bpy.context.evaluated_depsgraph_get()
    corners, ids = [], []
    for thing in bpy.context.scene.objects:
        if thing.type != "MESH":
            continue
        mesh = thing.evaluated_get(graph).to_mesh()
        mesh.calc_loop_triangles()
        verts = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", verts)
        index = np.empty(len(mesh.loop_triangles) * 3, np.int32)
        mesh.loop_triangles.foreach_get("vertices", index)
        matrix = np.array(thing.matrix_world)
        world = verts.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
        corners.append(world[index.reshape(-1, 3)])
        ids.append(np.full(len(index) // 3, thing["instance"], np.uint16))
        thing.evaluated_get(graph).to_mesh_clear()
    return Soup(np.concatenate(corners), np.concatenate(ids))


def ray_tree(soup: Soup) -> BVHTree:
    """Build the tree that rays are cast into."""
    faces = np.arange(len(soup.ids) * 3).reshape(-1, 3)
    return BVHTree.FromPolygons(soup.corners.reshape(-1, 3).tolist(), faces.tolist(), all_triangles=True)


def cast_view(tree: BVHTree, soup: Soup, view: View, camera: Pinhole) -> tuple[np.ndarray, np.ndarray]:
    """Cast a ray through every pixel's middle: ids (H, W) uint16 and depth along z (H, W), 0 = nothing."""
    y, x = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
    rays = np.stack([x - camera.width / 2, y - camera.height / 2, np.full_like(x, camera.focal)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    cosine = rays[..., 2].ravel()
    eye = Vector(view.centre)
    ids, depth = np.zeros(cosine.size, np.uint16), np.zeros(cosine.size, np.float32)
    for k, ray in enumerate((rays @ view.rotation).reshape(-1, 3).tolist()):
        _, _, face, distance = tree.ray_cast(eye, ray)
        if face is not None:
            ids[k], depth[k] = soup.ids[face], distance * cosine[k]
    return ids.reshape(x.shape), depth.reshape(x.shape)


def sample_surface(soup: Soup, count: int, least: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw points by area, at least `least` on each instance: xyz (N, 3) float32 and ids (N,) uint16."""
    rng = np.random.default_rng([seed, 3])
    a, b, c = np.moveaxis(soup.corners.astype(float), 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    known = np.unique(soup.ids)
    spare = max(0, count - least * len(known))
    picks = [rng.choice(len(area), spare, p=area / area.sum())]
    for ident in known:
        own = np.flatnonzero(soup.ids == ident)
        picks.append(rng.choice(own, least, p=area[own] / area[own].sum()))
    pick = np.concatenate(picks)
    u, v = rng.random((2, len(pick), 1))
    fold = u + v > 1
    u, v = np.where(fold, 1 - u, u), np.where(fold, 1 - v, v)
    xyz = a[pick] + u * (b - a)[pick] + v * (c - a)[pick]
    return xyz.astype(np.float32), soup.ids[pick]


def prepare_cycles(camera: Pinhole, samples: int, threads: int) -> bpy.types.Object:
    """Set path tracing with denoising, plain sRGB and constant exposure; give the camera."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.device, cycles.samples, cycles.seed = "CPU", samples, 0
    cycles.use_adaptive_sampling = False
    cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
    cycles.denoising_prefilter = "FAST"
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 3, 2, 1
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.sample_clamp_indirect = 4.0
    render = scene.render
    render.resolution_x, render.resolution_y, render.resolution_percentage = camera.width, camera.height, 100
    render.image_settings.file_format, render.image_settings.color_mode = "PNG", "RGB"
    render.dither_intensity = 0.0
    render.use_persistent_data = True
    if threads:
        render.threads_mode, render.threads = "FIXED", threads
    scene.view_settings.view_transform, scene.view_settings.look = "Standard", "None"
    lens = bpy.data.cameras.new("camera")
    lens.sensor_fit, lens.sensor_width = "HORIZONTAL", 36.0
    lens.lens = camera.focal * 36.0 / camera.width
    lens.clip_start, lens.clip_end = 0.01, 50.0
    eye = bpy.data.objects.new("camera", lens)
    scene.collection.objects.link(eye)
    scene.camera = eye
    return eye


def hide(instances: list[int]) -> None:
    """Leave instances out of the photos, their shadows too."""
    for thing in bpy.context.scene.objects:
        if thing.type == "MESH":
            thing.hide_render = thing["instance"] in instances


def render_view(eye: bpy.types.Object, view: View, path: Path) -> None:
    """Render one view to a PNG."""
    matrix = np.eye(4)
    matrix[:3, :3] = view.rotation.T @ np.diag([1.0, -1.0, -1.0])  # Blender looks along -z with y up
    matrix[:3, 3] = view.centre
    eye.matrix_world = Matrix(matrix.tolist())
    bpy.context.scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
