"""The geometry of a cut scene on disk, cell after cell: what a block has, or what a view may see, is read alone.

Notation: a cell is a few thousand Gaussians that lie together (cut.py), with the box of their centres and `reach`, how
far past it any of them can be seen. Kept are positions, rotations, scales and opacities, 44 B a Gaussian.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from scipy.spatial import KDTree

from cgc.blocks.cut import Cut, cut, is_near, sides
from cgc.errors import InputError
from cgc.files import read_arrays, reserve, write_beside
from cgc.scene.types import Camera
from cgc.splats.mapped import MappedSplats
from cgc.splats.types import Splats

VALUES = 11  # numbers of a Gaussian: 3 mean, 4 quaternion, 3 log scales, 1 logit opacity
REACH = 3.33  # standard deviations that the rasteriser looks at, at most
CLOSE = 1e-3  # of its reach: what is so near to the camera's plane may show anywhere
MARGIN_MOST = 2  # times a core's Gaussians: so many more are in its margin at most
SLACK = 4.0  # pixels: what the rasteriser adds to a Gaussian's reach (dilation, rounding), and some


class Members(NamedTuple):
    """The Gaussians of a block: rows [n] int64, rising; which are of the core, [n] bool; the cells they are in."""

    rows: np.ndarray
    core: np.ndarray
    cells: np.ndarray


class Geometry:
    """Cut splats on disk, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Open what `write_geometry` has left in a folder; InputError where it is broken."""
        self._folder = folder
        try:
            self._values = open_memmap(folder / "geometry.npy", mode="r")
            self._order = open_memmap(folder / "order.npy", mode="r")
            data = read_arrays(folder / "cells.npz")
            self.cut = Cut(self._order, data["cells"], data["blocks"])
            self._low, self._high, self._reach = data["low"], data["high"], data["reach"]
            if not self._is_whole():
                raise ValueError("its files do not fit together")
        except (OSError, ValueError, KeyError, EOFError, IndexError) as error:
            raise broken(folder, error) from error

    def _is_whole(self) -> bool:
        """Say whether the files are of each other, and hold what can be read by them."""
        order, cells, boxes = self._order, self.cut.cells, (self._low, self._high, self._reach[:, None])
        return (
            self._values.dtype == np.float32
            and self._values.shape == (*order.shape, VALUES)
            and _divide(cells, len(order))
            and _divide(self.cut.blocks, len(cells) - 1)
            and np.issubdtype(order.dtype, np.integer)
            and bool(0 <= order.min() <= order.max() < len(order))
            and [box.shape for box in boxes] == [(len(cells) - 1, n) for n in (3, 3, 1)]
            and not any(np.isnan(box).any() for box in boxes)  # a reach may be past float32
        )

    def __len__(self) -> int:
        return len(self._order)

    def read(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows [n] and values [n, VALUES] of some cells, by rising row; InputError for what is no number."""
        places = [slice(self.cut.cells[c], self.cut.cells[c + 1]) for c in cells]
        rows = np.concatenate([np.empty(0, np.int64), *(self._order[place] for place in places)])
        values = np.concatenate([np.empty((0, VALUES), np.float32), *(self._values[place] for place in places)])
        if not np.isfinite(values).all():
            raise broken(self._folder, "it holds what is no number")
        by_row = np.argsort(rows, kind="stable")
        return rows[by_row], values[by_row]

    def members(self, block: int, margin: float) -> Members:
        """Return a block's Gaussians: the core, and what is within the margin, a share of its longest side, of its box.

        If that is too much, what is nearest to the core: far Gaussians make boxes that hold everything, those of a sky,
        say. Memory: 24 B a Gaussian of the core, 12 B for each other.
        """
        place, first, last = self.cut.core(block), self.cut.blocks[block], self.cut.blocks[block + 1]
        own, core = self._values[place, :3], self._order[place]
        low, high = self._low[first:last].min(0), self._high[first:last].max(0)
        width = margin * float(sides(own).max())
        apart = np.maximum(np.maximum(self._low - high, low - self._high), 0)
        cells = np.flatnonzero((apart <= width).all(1))
        cells = cells[(cells < first) | (cells >= last)]
        inside = [np.flatnonzero(is_near(self._of_cell(c), low, high, width)) for c in cells]
        most = MARGIN_MOST * len(own)
        if sum(map(len, inside)) > most:
            tree = KDTree(own)
            far = [tree.query(self._of_cell(c)[i])[0].astype(np.float32) for c, i in zip(cells, inside)]
            limit = np.partition(np.concatenate(far), most)[most]
            inside = [i[d < limit] for i, d in zip(inside, far)]
        others = [self._order[self.cut.cells[c] + i] for c, i in zip(cells, inside)]
        rows = np.sort(np.concatenate([core, *others]))
        kept = [c for c, i in zip(cells, inside) if len(i)]
        return Members(rows, np.isin(rows, core, assume_unique=True), np.sort([*range(first, last), *kept]))

    def _of_cell(self, cell: int) -> np.ndarray:
        """Return the positions of a cell, [n, 3]."""
        return self._values[self.cut.cells[cell] : self.cut.cells[cell + 1], :3]

    def splats(self, members: Members) -> Splats:
        """Return a block's Gaussians, without colours."""
        rows, values = self.read(members.cells)
        return as_splats(values[np.searchsorted(rows, members.rows)])

    def in_view(self, camera: Camera, pixels: np.ndarray | None = None) -> np.ndarray:
        """Return the cells of which anything may show at some pixels [P] (flat indices; None: all).

        Never leaves out what the rasteriser would show: a cell is out where its box, grown by the reach, lies wholly
        on the far side of one of the planes through the camera and an edge of the rectangle around the pixels.
        """
        left, top, right, bottom = _rectangle(camera, pixels)
        view = camera.viewmat.double().numpy()
        fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        steep_x, steep_y = _steepest(camera)
        planes = np.array([
            [fx, 0, -(right - cx + SLACK), fx * steep_x], [-fx, 0, -(cx - left + SLACK), fx * steep_x],
            [0, fy, -(bottom - cy + SLACK), fy * steep_y], [0, -fy, -(cy - top + SLACK), fy * steep_y],
        ])  # fmt: skip
        normals = planes[:, :3] @ view[:3, :3]
        centres, halves = (self._low + self._high) / 2, (self._high - self._low) / 2
        nearest = centres @ normals.T + planes[:, :3] @ view[:3, 3] - halves @ np.abs(normals).T  # [cells, 4]
        out = (nearest >= self._reach[:, None] * planes[:, 3]).any(1)
        farthest = centres @ view[2, :3] + view[2, 3] + halves @ np.abs(view[2, :3])
        return np.flatnonzero(~out & (farthest >= 0))

    def shown_in(self, camera: Camera, cells: np.ndarray) -> np.ndarray:
        """Say at which pixels anything of some cells may show, [H * W] bool; true where nothing rules it out."""
        shown = np.zeros((camera.height, camera.width), bool)
        view = camera.viewmat.double().numpy()
        fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        steep_x, steep_y = _steepest(camera)
        for cell in np.intersect1d(cells, self.in_view(camera), assume_unique=True):
            ends = np.stack([self._low[cell], self._high[cell]])
            corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(8, 3) @ view[:3, :3].T + view[:3, 3]
            nearest = corners[:, 2].min()
            if nearest <= CLOSE * self._reach[cell]:
                shown[:] = True
                break
            more = self._reach[cell] / nearest
            x, y = fx * corners[:, 0] / corners[:, 2] + cx, fy * corners[:, 1] / corners[:, 2] + cy
            more_x, more_y = fx * steep_x * more + SLACK, fy * steep_y * more + SLACK
            rows = slice(max(int(y.min() - more_y), 0), max(int(y.max() + more_y) + 1, 0))
            shown[rows, max(int(x.min() - more_x), 0) : max(int(x.max() + more_x) + 1, 0)] = True
        return shown.reshape(-1)


def broken(path: Path, why: object) -> InputError:
    """Return the error of a broken file, or a folder with one, that blocks have left for themselves."""
    return InputError(f"{path} is broken ({why}); remove it and run the same command again")


def _divide(ends: np.ndarray, n: int) -> bool:
    """Say whether numbers divide 0 to n into parts that are not empty."""
    integers = ends.ndim == 1 and np.issubdtype(ends.dtype, np.integer)
    return integers and len(ends) > 1 and ends[0] == 0 and ends[-1] == n and bool((np.diff(ends) > 0).all())


def _rectangle(camera: Camera, pixels: np.ndarray | None) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom of the rectangle around some pixels."""
    if pixels is None or not len(pixels):
        return 0.0, 0.0, camera.width, camera.height
    x, y = pixels % camera.width, pixels // camera.width
    return float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)


def _steepest(camera: Camera) -> tuple[float, float]:
    """Return how many times longer than f / z a unit length shows at most, across and down: see project.py."""
    found = []
    for size, f, c in ((camera.width, 0, 0), (camera.height, 1, 1)):
        focal, centre = float(camera.K[f, f]), float(camera.K[c, 2])
        slope = max(abs(centre), abs(size - centre)) / focal + 0.15 * size / focal
        found.append(float(np.hypot(1, slope)))
    return found[0], found[1]


def as_splats(values: np.ndarray) -> Splats:
    """Turn values [n, VALUES] into splats without colours."""
    means, quats, log_scales = (torch.from_numpy(values[:, a:b].copy()) for a, b in ((0, 3), (3, 7), (7, 10)))
    return Splats(means, quats, log_scales, torch.from_numpy(values[:, 10].copy()), torch.zeros(len(values), 0, 3))


def write_geometry(source: MappedSplats, most: int, folder: Path) -> None:
    """Cut splats into blocks of at most `most` and write their geometry into a folder; cells.npz is written last.

    Memory: 28 B a Gaussian, a cell, and what the system has room for of the mapped files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cells.npz").unlink(missing_ok=True)
    found = cut(source.means(), most)
    low, high, reach = (np.empty((len(found.cells) - 1, n), np.float32) for n in (3, 3, 1))
    with write_beside(folder / "geometry.npy") as path:
        values = np.lib.format.open_memmap(path, "w+", np.float32, (len(found.order), VALUES))
        with open(path, "r+b") as file:
            reserve(file.fileno(), path.stat().st_size)
        for cell, (begin, end) in enumerate(zip(found.cells, found.cells[1:])):
            rows = np.sort(found.order[begin:end])
            found.order[begin:end] = rows
            some = source.read(rows)
            values[begin:end] = torch.cat(
                [some.means, some.quats, some.log_scales, some.logit_opacities[:, None]], dim=1
            ).numpy()
            low[cell], high[cell] = some.means.numpy().min(0), some.means.numpy().max(0)
            reach[cell] = REACH * float(some.scales.max())
        values.flush()
        del values
    with write_beside(folder / "order.npy") as path:
        np.save(path, found.order)
    with write_beside(folder / "cells.npz") as path:
        np.savez(path, cells=found.cells, blocks=found.blocks, low=low, high=high, reach=reach[:, 0])
