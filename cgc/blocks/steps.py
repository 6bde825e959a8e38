"""The steps of a run that go block by block: cut, lift, cluster, join. Blocks are shared among processes.

blocks/order.npy, geometry.npy, cells.npz    the cut splats (geometry.py), and plan.json: of what
blocks/0001/lifted.safetensors               a block's Gaussians, features, and what masks say of them
blocks/0001/clustered.safetensors            its labels and tree
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cgc import parallel
from cgc.blocks.align import align
from cgc.blocks.geometry import Geometry, write_geometry
from cgc.blocks.join import Joined, Piece, join_blocks
from cgc.blocks.weigh import Block, draw_views
from cgc.blocks.work import (
    CLUSTERED,
    LIFTED,
    cluster_block,
    has_key,
    lift_block,
    load_arrays,
    load_evidence,
    load_members,
    load_piece,
    save_arrays,
)
from cgc.clustering.level import USUAL
from cgc.errors import InputError
from cgc.features.files import map_tensors
from cgc.files import read_json, write_beside, write_json
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Camera
from cgc.settings import BlockSettings, ClusterSettings, LiftSettings
from cgc.splats.mapped import MappedSplats

Say = Callable[[str], None]
NOTHING_SEEN = (
    "no Gaussian is visible in any masked view: the cameras look past the splats; "
    "check that the splats and the masks are of this scene"
)
"""What is wrong where the masks say nothing of any Gaussian."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a run: where they lie, how they are cut, and the key of what they are cut from."""

    folder: Path
    splats: Path
    settings: BlockSettings
    key: str

    def geometry(self) -> Geometry:
        """Cut the splats, or open what an earlier command has cut."""
        plan = {"key": self.key, "gaussians": self.settings.gaussians}
        path = self.folder / "plan.json"
        with parallel.first_before_others():
            if parallel.is_first() and not (path.exists() and read_json(path, "the plan of the blocks") == plan):
                shutil.rmtree(self.folder, ignore_errors=True)
                write_geometry(MappedSplats(self.splats), self.settings.gaussians, self.folder)
                write_json(path, plan)
        return Geometry(self.folder)

    def folder_of(self, block: int) -> Path:
        """Return where a block's files lie; they count from 1."""
        return self.folder / f"{block + 1:04d}"


def lift_blocks(
    blocks: Blocks,
    cameras: Sequence[Camera],
    id_maps: Iterable[tuple[int, np.ndarray]],
    rasterizer: Rasterizer,
    settings: LiftSettings,
    target: Path,
    key: str,
    *,
    learns: bool,
    say: Say,
    quiet: bool,
) -> dict[str, int]:
    """Lift every block that is not lifted with this key; write all features and visible mass to `target`.

    id_maps: those of the views that are learned from, one at a time. Returns what there is to say of the blocks.
    InputError where no block shows in any mask.
    """
    geometry = blocks.geometry()
    n = geometry.cut.n_blocks
    members = (geometry.members(b, blocks.settings.margin) for b in range(n))  # one in memory at a time
    largest, with_margin = map(max, zip(*((int(m.core.sum()), len(m.rows)) for m in members)))
    facts = {"count": n, "gaussians": largest, "with_margin": with_margin}
    say(f"{n} blocks of up to {largest:,} Gaussians, {with_margin:,} with their margins")
    todo = parallel.agree([b for b in range(n) if not has_key(blocks.folder_of(b) / LIFTED, key)])
    if len(todo) < n:
        say(f"{n - len(todo)} of {n} blocks done before, kept")
    drawn = draw_views(id_maps, settings) if todo else []
    for block in _own(todo):
        with parallel.alone():
            own = Block(geometry, geometry.members(block, blocks.settings.margin), rasterizer)
            say(f"block {block + 1} of {n}: {len(own.members.rows):,} Gaussians")
            arrays = lift_block(own, cameras, drawn, settings, learns, quiet)
            save_arrays(blocks.folder_of(block) / LIFTED, arrays, key)
    parallel.barrier()
    if parallel.is_first():
        _gather_features([blocks.folder_of(b) / LIFTED for b in range(n)], target, len(geometry))
    return facts


def _own(blocks: Sequence[int]) -> Iterator[int]:
    """Yield the blocks that this process does."""
    rank, size = parallel.here()
    yield from blocks[rank::size]


def _gather_features(paths: Sequence[Path], target: Path, n: int) -> None:
    """Write the features and the mass of each Gaussian as its owner has them, turned into one space."""
    turns, dim = align(paths), load_arrays(paths[0], "features")["features"].shape[1]
    with write_beside(target) as temporary:
        tensors = map_tensors(temporary, {"features": (n, dim), "mass": (n,)})
        for path, turn in zip(paths, turns):
            data = load_arrays(path, "rows", "core", "features", "mass")
            rows, core = data["rows"][data["core"]], data["core"]
            tensors["features"][rows] = data["features"][core] @ turn
            tensors["mass"][rows] = data["mass"][core]
        seen = bool(tensors["mass"].any())
        for tensor in tensors.values():
            if isinstance(tensor, np.memmap):
                tensor.flush()
    if not seen:
        target.unlink()
        raise InputError(NOTHING_SEEN)


def cluster_blocks(
    blocks: Blocks,
    extent: float,
    wholes: Mapping[int, np.ndarray],
    lift: LiftSettings,
    settings: ClusterSettings,
    keys: tuple[str, str],
    *,
    say: Say,
) -> Joined | None:
    """Cluster every block that is not clustered with its key, and join them; in the first process only.

    keys: of lifting and of clustering. InputError where a block is not lifted with its key, or nothing clusters.
    """
    geometry = blocks.geometry()
    n = geometry.cut.n_blocks
    for block in range(n):
        if not has_key(blocks.folder_of(block) / LIFTED, keys[0]):
            raise InputError(
                f"{blocks.folder_of(block) / LIFTED} is missing or of other settings; run `cgc lift` again"
            )
    todo = parallel.agree([b for b in range(n) if not has_key(blocks.folder_of(b) / CLUSTERED, keys[1])])
    if len(todo) < n:
        say(f"{n - len(todo)} of {n} blocks done before, kept")
    for block in _own(todo):
        with parallel.alone():
            members = load_members(blocks.folder_of(block) / LIFTED)
            features, evidence = load_evidence(blocks.folder_of(block) / LIFTED)
            splats = replace(geometry.splats(members), sh=MappedSplats(blocks.splats).sh_dc(members.rows))
            arrays = cluster_block(features, evidence, splats, members.core, extent, wholes, lift, settings)
            say(f"block {block + 1} of {n}: {int(arrays['labels'].max(initial=0))} segments")
            save_arrays(blocks.folder_of(block) / CLUSTERED, arrays, keys[1])
    parallel.barrier()
    if not parallel.is_first():
        return None
    level = settings.level or USUAL  # no block shows what masks leave out, so each was clustered at the usual level
    joined = join_blocks(_Pieces(blocks, n), len(geometry), level if settings.join else 1.0)
    if not (joined.labels > 0).any():
        raise InputError("everything is noise in every block; train the features longer, or give better masks")
    return joined


class _Pieces(Sequence[Piece]):
    """The blocks' results, each read when it is looked at."""

    def __init__(self, blocks: Blocks, n: int) -> None:
        self._blocks, self._n = blocks, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, block: int) -> Piece:  # pyright: ignore[reportIncompatibleMethodOverride]
        if block >= self._n:
            raise IndexError(block)
        return load_piece(self._blocks.folder_of(block))
