"""Place the demo scene's cameras and write them as a COLMAP text model (OpenCV axes, metres, world z up)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class View:
    """A camera: file stem, world-to-camera rotation (3, 3) and translation (3,)."""

    stem: str
    rotation: np.ndarray
    translation: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        """Give the camera's place in the world, (3,)."""
        return -self.rotation.T @ self.translation


@dataclass(frozen=True)
class Pinhole:
    """Intrinsics of one image size, pixels; the principal point is the middle."""

    width: int
    height: int
    focal: float


def look_at(stem: str, eye: np.ndarray, target: np.ndarray) -> View:
    """Aim a level camera from eye at target."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    rot = np.stack([right, np.cross(forward, right), forward])
    return View(stem, rot, -rot @ eye)


def orbit(seed: int, table_height: float) -> list[View]:
    """Place 44 views: a low ring of 18, a higher one of 14 and 12 closer looks, each a bit off its ring."""
    rng = np.random.default_rng([seed, 1])
    rings = [(18, 1.62, 25.0, 0.03, 4.0), (14, 1.55, 42.0, 0.05, 15.0), (12, 1.12, 36.0, 0.14, 0.0)]
    views: list[View] = []
    for ring, (count, radius, elevation, wander, start) in enumerate(rings):
        for k in range(count):
            azimuth = np.radians(start + 360 * k / count + rng.uniform(-3, 3))
            up = np.radians(elevation + rng.uniform(-4, 4) + (12 * (k % 2) if ring == 2 else 0))
            reach = radius * rng.uniform(0.96, 1.04)
            away = np.array([np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)])
            target = np.array([0, 0, table_height + 0.06]) + rng.uniform(-wander, wander, 3) * (1, 0.7, 0.3)
            views.append(look_at(f"{len(views):03d}", target + reach * away, target))
    return views


def garden(seed: int) -> list[View]:
    """Place 40 views around a garden: a low ring of 22 and a higher one of 18."""
    rng = np.random.default_rng([seed, 12])
    views: list[View] = []
    for count, radius, elevation, start in [(22, 4.6, 17, 0), (18, 3.7, 33, 9)]:
        for k in range(count):
            azimuth = np.radians(start + 360 * k / count + rng.uniform(-5, 5))
            up = np.radians(elevation + rng.uniform(-4, 4))
            reach = radius * rng.uniform(0.92, 1.08)
            target = np.array([0, 0, 0.45]) + rng.normal(0, 0.12, 3)
            away = np.array([np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)])
            views.append(look_at(f"{len(views):03d}", target + reach * away, target))
    return views


def shelf(seed: int) -> list[View]:
    """Place 24 views in front of a shelf, six by four, all looking at it."""
    rng = np.random.default_rng([seed, 11])
    views: list[View] = []
    for row in range(4):
        for column in range(6):
            eye = np.array([-0.55 + 1.1 * column / 5, 0.22, 0.9 + 0.5 * row / 3]) + rng.normal(0, 0.04, 3)
            target = np.array([0.25 * eye[0], 1.8, 1.15 + 0.15 * (eye[2] - 1.15)]) + rng.normal(0, 0.03, 3)
            views.append(look_at(f"{len(views):03d}", eye, target))
    return views


def lounge(seed: int) -> list[View]:
    """Place 60 views inside a room: a round across it, one towards the walls, one down at the table."""
    rng = np.random.default_rng([seed, 13])
    views: list[View] = []
    for count, reach, height, ahead, down, start in [
        (24, 1.45, 1.45, -1.6, 0.75, 0),
        (20, 0.55, 1.4, 1.9, 0.85, 7),
        (16, 1.3, 1.6, -1.2, 0.35, 12),
    ]:
        for k in range(count):
            azimuth = np.radians(start + 360 * k / count + rng.uniform(-5, 5))
            out = np.array([1.1 * np.cos(azimuth), np.sin(azimuth), 0])
            eye = reach * rng.uniform(0.9, 1.08) * out + [0, 0, height + rng.normal(0, 0.08)]
            turn = np.radians(rng.uniform(-12, 12))
            gaze = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) @ out
            views.append(look_at(f"{len(views):03d}", eye, ahead * gaze + [0, 0, down + rng.normal(0, 0.05)]))
    return views


def street(seed: int) -> list[View]:
    """Place 60 views along a street of 30 m: there looking ahead and across, and back on the other side of the road."""
    rng = np.random.default_rng([seed, 14])
    views: list[View] = []
    for count, y, height, turns in [(30, -4.2, 1.6, (28, -6)), (30, -5.6, 2.1, (-26, 4))]:
        for k in range(count):
            eye = np.array([-14 + 28 * k / (count - 1), y, height]) + rng.normal(0, 0.15, 3)
            turn = np.radians(turns[k % 2] + rng.uniform(-5, 5))
            target = eye + 8 * np.array([np.sin(turn), np.cos(turn), 0]) - [0, 0, 0.9]
            views.append(look_at(f"{len(views):03d}", eye, target))
    return views


def quaternion(rot: np.ndarray) -> np.ndarray:
    """Turn a rotation matrix into a unit quaternion (w, x, y, z) with w >= 0."""
    k = np.array(
        [
            [
                rot[0, 0] + rot[1, 1] + rot[2, 2],
                rot[2, 1] - rot[1, 2],
                rot[0, 2] - rot[2, 0],
                rot[1, 0] - rot[0, 1],
            ],
            [0, rot[0, 0] - rot[1, 1] - rot[2, 2], rot[1, 0] + rot[0, 1], rot[2, 0] + rot[0, 2]],
            [0, 0, rot[1, 1] - rot[0, 0] - rot[2, 2], rot[2, 1] + rot[1, 2]],
            [0, 0, 0, rot[2, 2] - rot[0, 0] - rot[1, 1]],
        ]
    )
    vector = np.linalg.eigh(np.triu(k).T)[1][:, -1]  # eigh reads the lower triangle
    return vector if vector[0] >= 0 else -vector


def write_text_model(
    folder: Path, camera: Pinhole, views: list[View], suffix: str, points: np.ndarray, colours: np.ndarray
) -> None:
    """Write cameras.txt, images.txt and points3D.txt (points (N, 3) metres, colours (N, 3) uint8)."""
    folder.mkdir(parents=True, exist_ok=True)
    params = f"{camera.focal:.12g} {camera.focal:.12g} {camera.width / 2:.12g} {camera.height / 2:.12g}"
    (folder / "cameras.txt").write_text(f"1 PINHOLE {camera.width} {camera.height} {params}\n")
    lines = []
    for k, view in enumerate(views, 1):
        numbers = " ".join(f"{x:.12g}" for x in (*quaternion(view.rotation), *view.translation))
        lines.append(f"{k} {numbers} 1 {view.stem}{suffix}\n\n")
    (folder / "images.txt").write_text("".join(lines))
    rows = (
        f"{k} {x:.5f} {y:.5f} {z:.5f} {r} {g} {b} 0\n"
        for k, ((x, y, z), (r, g, b)) in enumerate(zip(points.tolist(), colours.tolist(), strict=True), 1)
    )
    (folder / "points3D.txt").write_text("".join(rows))
