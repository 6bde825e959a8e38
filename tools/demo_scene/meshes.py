"""Build the demo scene's simple meshes with numpy: vertices in metres, faces, texture places per corner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mesh:
    """Quads: verts (V, 3) metres, faces (F, 4) indices, uv (F, 4, 2) in 0..1 with v upwards."""

    verts: np.ndarray
    faces: np.ndarray
    uv: np.ndarray

    def moved(self, offset: tuple[float, float, float]) -> Mesh:
        """Shift the vertices."""
        return Mesh(self.verts + np.asarray(offset), self.faces, self.uv)

    def turned(self, matrix: np.ndarray) -> Mesh:
        """Multiply the vertices by a (3, 3) matrix."""
        return Mesh(self.verts @ np.asarray(matrix).T, self.faces, self.uv)


def merged(*meshes: Mesh) -> Mesh:
    """Put meshes into one."""
    starts = np.cumsum([0, *(len(m.verts) for m in meshes[:-1])])
    return Mesh(
        np.concatenate([m.verts for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]),
        np.concatenate([m.uv for m in meshes]),
    )


def rotation(axis: str, degrees: float) -> np.ndarray:
    """Make the (3, 3) rotation about a coordinate axis."""
    k = "xyz".index(axis)
    i, j = (k + 1) % 3, (k + 2) % 3
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def grid_surface(
    place: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rows: int,
    cols: int,
    wrap_u: bool,
    wrap_v: bool = False,
) -> Mesh:
    """Mesh place(u, v) -> (..., 3) over the unit square; wrapped sides share their vertices."""
    nu, nv = cols + (not wrap_u), rows + (not wrap_v)
    v, u = np.meshgrid(np.arange(nv) / rows, np.arange(nu) / cols, indexing="ij")
    verts = place(u, v).reshape(-1, 3)
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    corner_r = np.stack([row, row, row + 1, row + 1], -1).reshape(-1, 4)
    corner_c = np.stack([col, col + 1, col + 1, col], -1).reshape(-1, 4)
    faces = (corner_r % nv) * nu + corner_c % nu
    uv = np.stack([corner_c / cols, corner_r / rows], -1)
    return Mesh(verts, faces, uv)


def lathe(profile: list[tuple[float, float]], segments: int = 64) -> Mesh:
    """Turn a profile of (radius, height) points, outside going up, about z; v runs along its length."""
    points = np.maximum(np.asarray(profile, float), [1e-5, -np.inf])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    rows = len(points) - 1

    def place(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        radius, height = np.moveaxis(points[np.rint(v * rows).astype(int)], -1, 0)
        angle = 2 * np.pi * u
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], -1)

    mesh = grid_surface(place, rows, segments, wrap_u=True)
    uv = mesh.uv.copy()
    uv[..., 1] = length[np.rint(uv[..., 1] * rows).astype(int)] / length[-1]
    return Mesh(mesh.verts, mesh.faces, uv)


def smooth_profile(knots: list[tuple[float, float]], steps: int = 8) -> list[tuple[float, float]]:
    """Round a profile by a Catmull-Rom curve through its knots."""
    p = np.asarray([knots[0], *knots, knots[-1]], float)
    t = np.arange(steps)[:, None] / steps
    pieces = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return [tuple(q) for q in np.concatenate([*pieces, p[-1:]])]


def tube(path: np.ndarray, radius: np.ndarray | float, segments: int = 20) -> Mesh:
    """Sweep a circle (radius per path point, metres) along an (N, 3) path; ends are pinched shut."""
    path = np.asarray(path, float)
    radius = np.broadcast_to(np.asarray(radius, float), len(path))
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    path, along = (np.concatenate([a[:1], a, a[-1:]]) for a in (path, along))
    radius = np.concatenate([[1e-5], radius, [1e-5]])
    side = np.eye(3)[np.argmin(np.ptp(path, axis=0))]  # the axis the path moves least along cannot be its direction
    first = np.cross(along, side)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    rows = len(path) - 1

    def place(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        at = np.rint(v * rows).astype(int)
        angle = -2 * np.pi * u[..., None]
        ring = np.cos(angle) * first[at] + np.sin(angle) * second[at]
        return path[at] + radius[at][..., None] * ring

    return grid_surface(place, rows, segments, wrap_u=True)


def box(size: tuple[float, float, float], atlas: bool = True) -> Mesh:
    """Make a box standing on z = 0; with atlas each face has its own cell of a 3 x 2 picture, else all of it.

    Cells, left to right: top row front (-y), back, top; bottom row left (-x), right, bottom.
    """
    sx, sy, sz = size
    corner = np.array([[x, y, z] for z in (0, sz) for y in (-sy / 2, sy / 2) for x in (-sx / 2, sx / 2)])
    faces = np.array([[0, 1, 5, 4], [3, 2, 6, 7], [4, 5, 7, 6], [2, 0, 4, 6], [1, 3, 7, 5], [2, 3, 1, 0]])
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    if not atlas:
        return Mesh(corner, faces, np.broadcast_to(unit, (6, 4, 2)).copy())
    cells = np.array([[0, 1], [1, 1], [2, 1], [0, 0], [1, 0], [2, 0]], float)
    return Mesh(corner, faces, (cells[:, None] + unit[None]) / (3, 2))


def plane(width: float, depth: float) -> Mesh:
    """Make a rectangle in z = 0 that faces up."""
    verts = np.array([[-width, -depth, 0], [width, -depth, 0], [width, depth, 0], [-width, depth, 0]]) / 2
    return Mesh(verts, np.array([[0, 1, 2, 3]]), np.array([[[0, 0], [1, 0], [1, 1], [0, 1]]], float))


def ball(radius: float, dimple: float = 0.0) -> Mesh:
    """Make a sphere about the origin, drawn in at both poles by `dimple` of its radius."""

    def place(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        polar = np.pi * (1e-3 + (1 - 2e-3) * v)
        angle = 2 * np.pi * u
        pull = 1 - dimple * np.exp(-((np.sin(polar) / 0.35) ** 2))
        flat = radius * np.sin(polar)
        return np.stack([flat * np.cos(angle), flat * np.sin(angle), -radius * pull * np.cos(polar)], -1)

    return grid_surface(place, 32, 64, wrap_u=True)


def leaf(length: float, width: float, rise: float, droop: float, azimuth: float) -> Mesh:
    """Bend a pointed strip out of the origin: `rise` metres up, the tip falling by `droop`."""

    def place(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        half = width * np.sin(np.pi * np.clip(v, 0.03, 0.985)) ** 0.7 * (u - 0.5)
        out = length * v
        up = rise * np.sin(v * np.pi / 2) - droop * v**3 + np.abs(half) * 0.5  # a fold along the middle
        c, s = np.cos(azimuth), np.sin(azimuth)
        return np.stack([out * c - half * s, out * s + half * c, up], -1)

    return grid_surface(place, 12, 4, wrap_u=False)
