"""What is done with one block: lifted, then clustered; each leaves one file, so that a stopped run goes on after it.

A file says with which settings it was made (its key) and is taken only with these. Arrays in it are read one by one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix

from cgc.blocks.geometry import Members, broken
from cgc.blocks.join import Piece
from cgc.blocks.weigh import Block, Drawn, Evidence, weigh_block
from cgc.clustering.cluster import Clustering, NothingFound, Space, cluster, cluster_masks
from cgc.clustering.columns import Columns, group_matrix, with_wholes
from cgc.clustering.hierarchy import Hierarchy
from cgc.clustering.vote import NOISE
from cgc.features.frozen import learn_features, nearest_neighbours, smooth_features
from cgc.files import check_readable, write_beside
from cgc.scene.types import Camera
from cgc.settings import ClusterSettings, LiftSettings
from cgc.splats.types import Splats

Arrays = dict[str, np.ndarray]
_SUMS = "crc32"
LIFTED, CLUSTERED = "lifted.safetensors", "clustered.safetensors"


def save_arrays(path: Path, arrays: Arrays, key: str) -> None:
    """Write arrays, the key of what they were made with, and checksums: compiled code trusts what they hold."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    whole[_SUMS] = np.array([zlib.crc32(whole[name].data) for name in sorted(whole)], np.uint32)
    with write_beside(path) as temporary:
        save_file(whole, temporary, metadata={"key": key})


def has_key(path: Path, key: str) -> bool:
    """Say whether a file is whole and was made with a key."""
    try:
        with safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get("key") == key
    except (OSError, SafetensorError):
        return False


def load_arrays(path: Path, *names: str) -> Arrays:
    """Read some arrays; InputError where the file is broken."""
    check_readable(path)
    try:
        with safe_open(path, "numpy") as file:
            found, there = {name: file.get_tensor(name) for name in names}, sorted(file.keys())
            sums = file.get_tensor(_SUMS).tolist() if _SUMS in there else []  # older files have none
        wanted = dict(zip((name for name in there if name != _SUMS), sums))
        for name, array in found.items():
            if name in wanted and zlib.crc32(array.data) != wanted[name]:
                raise ValueError(f"its {name} were changed or damaged")
        return found
    except (OSError, ValueError, SafetensorError) as error:
        raise broken(path, error) from error


def lift_block(
    block: Block, cameras: Sequence[Camera], drawn: Sequence[Drawn], settings: LiftSettings, learns: bool, quiet: bool
) -> Arrays:
    """Weigh a block's pixels and learn its features [n, D] (D = 0 unless it `learns`); return what is kept of it."""
    members = block.members
    evidence = weigh_block(block, cameras, drawn, settings, quiet=quiet)
    features = np.zeros((len(members.rows), settings.dim if learns else 0), np.float32)
    if learns and evidence.batches:
        neighbours = nearest_neighbours(block.geometry.splats(members).means, settings.neighbours)
        features = learn_features(evidence.batches, neighbours, settings, quiet=quiet).numpy()
    matrix = evidence.columns.matrix
    return {
        **members._asdict(), "features": features, "mass": evidence.mass.numpy(), "weights": matrix.data,
        "indices": matrix.indices, "indptr": matrix.indptr, "views": evidence.columns.views,
        "ids": evidence.columns.ids,
    }  # fmt: skip


def load_members(path: Path) -> Members:
    """Read whose a lifted block is."""
    return Members(**load_arrays(path, *Members._fields))


def load_evidence(path: Path) -> tuple[torch.Tensor, Evidence]:
    """Read a lifted block's features [n, D], and what masks say of it; without batches."""
    data = load_arrays(path, "features", "mass", "weights", "indices", "indptr", "views", "ids")
    matrix = csr_matrix(
        (data["weights"], data["indices"], data["indptr"]), shape=(len(data["mass"]), len(data["views"]))
    )
    columns = Columns(matrix, data["views"], data["ids"])
    return torch.from_numpy(data["features"]), Evidence([], columns, torch.from_numpy(data["mass"]))


def cluster_block(
    features: torch.Tensor,
    evidence: Evidence,
    splats: Splats,
    core: np.ndarray,
    extent: float,
    wholes: Mapping[int, np.ndarray],
    lift: LiftSettings,
    settings: ClusterSettings,
) -> Arrays:
    """Cluster a block by its features, by its masks alone where these tell nothing; what neither does is noise.

    wholes: of a view, which mask holds each id. Returns what `load_piece` needs beside the block's members.
    """
    mass, columns = evidence.mass, with_wholes(evidence.columns, wholes)
    neighbours = nearest_neighbours(splats.means, lift.neighbours)
    space = Space.of(splats, extent, neighbours)
    found = None
    if features.shape[1] and mass.any():
        if settings.smoothing == "neighbours":
            features = smooth_features(features, neighbours, mass)
        found = _try(lambda: cluster(features, mass, columns, settings, space=space))
    if found is None and mass.any():
        found = _try(lambda: cluster_masks(mass, columns, settings, space=space))
    if found is None:
        labels = np.full(len(mass), NOISE, np.int32)
        found = Clustering(labels, np.zeros(len(mass), np.float32), {}, Hierarchy.flat(labels))
    together = columns.together
    tree = found.hierarchy
    of_leaf = np.append(np.maximum(tree.leaves - 1, NOISE), tree.n_nodes - 1)  # one more: all nodes have a row
    nodes = group_matrix(of_leaf, np.append(core, False))  # [T, n + 1]
    shown: Any = (nodes[:, :-1] @ together.matrix).tocsr()
    first, views = len(columns.views), together.views.copy()
    # with_wholes counts its views on from the block's last: here on from -1 down, the same for every block
    views[first:] = -1 - (views[first:] - int(columns.views.max(initial=-1)) - 1)
    return {
        "labels": found.labels, "confidences": found.confidences, "leaves": tree.leaves, "parents": tree.parents,
        "levels": tree.levels, "shown": shown.data, "shown_indices": shown.indices, "shown_indptr": shown.indptr,
        "shown_views": views, "shown_ids": together.ids,
    }  # fmt: skip


def _try(work: Callable[[], Clustering]) -> Clustering | None:
    """Return what some work finds, None where it finds nothing."""
    try:
        return work()
    except NothingFound:
        return None


def load_piece(folder: Path) -> Piece:
    """Read what a block was clustered to."""
    lifted = load_arrays(folder / LIFTED, "rows", "core", "mass")
    names = ("labels", "confidences", "leaves", "parents", "levels")
    own = load_arrays(folder / CLUSTERED, *names)
    data, indices, indptr, views, ids = load_arrays(
        folder / CLUSTERED, "shown", "shown_indices", "shown_indptr", "shown_views", "shown_ids"
    ).values()
    shown = csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, len(views)))
    return Piece(**lifted, **own, shown=shown, views=views, ids=ids)
