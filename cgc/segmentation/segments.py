"""What a run keeps of a segmentation: labels, hierarchy, sharpened splats, the table of segments, a PLY an object."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np

from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.files import fits, read_arrays, read_json, write_beside, write_json
from cgc.geometry import sh_dc_to_rgb
from cgc.segmentation.objects import BOX_PERCENTILES, body_of
from cgc.segmentation.segmentation import Segmentation
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.types import Splats

Row = TypeVar("Row")


@dataclass(frozen=True)
class Segment:
    """One object: what the table says of it. Lengths in world units; the box spans its 1st to 99th percentile.

    parent is the whole that holds it (0: none), children are its parts; level is the finest at which it is shown.
    """

    id: int
    gaussians: int
    centre: tuple[float, float, float]
    box_min: tuple[float, float, float]
    box_max: tuple[float, float, float]
    color: tuple[int, int, int]
    confidence: float
    views: int
    pixels: int
    best_view: str
    parent: int = 0
    children: tuple[int, ...] = ()
    level: float = 1.0

    @property
    def size(self) -> tuple[float, float, float]:
        """Side lengths of the box."""
        return tuple(b - a for a, b in zip(self.box_min, self.box_max))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Node:
    """A part of an object, or a whole that holds several: what the table says of it, as of a `Segment`."""

    id: int
    parent: int
    children: tuple[int, ...]
    level: float
    gaussians: int
    centre: tuple[float, float, float]
    box_min: tuple[float, float, float]
    box_max: tuple[float, float, float]
    confidence: float


def describe(segmentation: Segmentation, pixels: Mapping[str, np.ndarray]) -> list[Segment]:
    """Make the table of segments; `pixels` maps a view to the pixel count of each id, [K + 1]."""
    splats, labels = segmentation.splats, segmentation.labels
    means = splats.means.detach().cpu().numpy().astype(float)
    rgb = sh_dc_to_rgb(splats.sh[:, 0].detach()).cpu().numpy()
    opacities = splats.opacities.detach().cpu().numpy()
    names, tree = list(pixels), segmentation.hierarchy
    table = []
    for segment in segmentation.ids.tolist():
        own = labels == segment
        counts = np.array([pixels[n][segment] if segment < len(pixels[n]) else 0 for n in names], np.int64)
        low, high = np.percentile(means[own][body_of(segmentation.bodies, own)], BOX_PERCENTILES, axis=0)
        table.append(
            Segment(
                id=segment,
                gaussians=int(own.sum()),
                centre=_floats(np.median(means[own], axis=0)),
                box_min=_floats(low),
                box_max=_floats(high),
                color=_bytes(np.average(rgb[own], axis=0, weights=opacities[own] + 1e-6)),
                confidence=float(segmentation.confidences[own].mean()),
                views=int((counts > 0).sum()),
                pixels=int(counts.sum()),
                best_view=names[int(counts.argmax())] if len(names) and counts.any() else "",
                parent=tree.parent(segment),
                children=tuple(tree.children(segment)),
                level=float(tree.levels[segment]),
            )
        )
    return table


def describe_nodes(segmentation: Segmentation) -> list[Node]:
    """Make the table of what is not an object: the parts and the wholes that own a Gaussian."""
    tree, means = segmentation.hierarchy, segmentation.splats.means.detach().cpu().numpy().astype(float)
    table = []
    for node in sorted(set(range(1, tree.n_nodes + 1)) - set(tree.objects.tolist())):
        own = tree.holds(node)
        if own.any():
            low, high = np.percentile(means[own][body_of(segmentation.bodies, own)], BOX_PERCENTILES, axis=0)
            table.append(
                Node(
                    id=node,
                    parent=tree.parent(node),
                    children=tuple(tree.children(node)),
                    level=float(tree.levels[node]),
                    gaussians=int(own.sum()),
                    centre=_floats(np.median(means[own], axis=0)),
                    box_min=_floats(low),
                    box_max=_floats(high),
                    confidence=float(segmentation.confidences[own].mean()),
                )
            )
    return table


def _floats(v: np.ndarray) -> tuple[float, float, float]:
    return float(v[0]), float(v[1]), float(v[2])


def _bytes(v: np.ndarray) -> tuple[int, int, int]:
    r, g, b = (255 * v).round().astype(int).tolist()
    return r, g, b


def save_labels(
    folder: Path,
    labels: np.ndarray,
    confidences: np.ndarray,
    tree: Mapping[str, np.ndarray],
    hierarchy: Hierarchy | None = None,
) -> None:
    """Write segments.npz: labels, confidences [N], the condensed tree's columns (tree_*) and the hierarchy, if any."""
    columns: dict[str, Any] = {f"tree_{k}": v for k, v in tree.items()}
    if hierarchy is not None:
        columns |= {
            "leaves": hierarchy.leaves, "node_parents": hierarchy.parents, "node_levels": hierarchy.levels,
            "base_level": np.array(hierarchy.base),
        }  # fmt: skip
    with write_beside(folder / "segments.npz") as path:
        np.savez_compressed(path, labels=labels, confidences=confidences, **columns)


def load_labels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read labels [N] int32 and confidences [N] float32 from segments.npz; InputError where it is missing or broken."""
    data = _read_labels(folder, "labels", "confidences")
    return data["labels"], data["confidences"]


def load_hierarchy(folder: Path) -> Hierarchy:
    """Read the hierarchy from segments.npz, flat where it has none; InputError where it is missing or broken."""
    names = ("leaves", "node_parents", "node_levels", "base_level")
    path, again = folder / "segments.npz", f"run `cgc cluster {folder}` again"
    data = _read_labels(folder, "labels", optional=names)
    if not any(name in data for name in names):
        return Hierarchy.flat(data["labels"])
    if absent := [name for name in names if name not in data]:
        raise InputError(f"{path} is broken (it has no {', '.join(absent)}); {again}")
    leaves, parents, levels, base = (data[name] for name in names)
    try:
        hierarchy = Hierarchy(leaves, parents, levels, float(base))
    except InputError as error:
        raise InputError(f"{path}: {error} (`cgc cluster {folder}`)") from error
    if not np.array_equal(hierarchy.at(), np.where(data["labels"] > 0, data["labels"], -1)):
        raise InputError(f"{path} is broken (labels and hierarchy do not agree); {again}")
    return hierarchy


def _read_labels(folder: Path, *names: str, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    path = folder / "segments.npz"
    if not path.exists():
        raise InputError(f"{path} is missing: the run is not clustered yet; run `cgc cluster {folder}` first")
    try:
        return _read_columns(path, *names, optional=optional)
    except ValueError as error:
        raise InputError(f"{path} is broken ({error}); run `cgc cluster {folder}` again") from error


_ALONE = {"base_level": np.float64, "used": np.bool_}
_COLUMNS = {
    "labels": np.int32, "confidences": np.float32, "origin": np.int64, "leaves": np.int32, "node_parents": np.int32,
    "node_levels": np.float32,
}  # fmt: skip
"""What the columns of segments.npz and sharpened.npz hold; `_ALONE` are single values."""


def _read_columns(path: Path, *names: str, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read columns, each in its type; ValueError where one is missing, or is not what its name says."""
    data = read_arrays(path, *names, *optional)
    if absent := [name for name in names if name not in data]:
        raise ValueError(f"it has no {', '.join(absent)}")
    for name, values in data.items():
        kind = np.dtype(_ALONE.get(name) or _COLUMNS[name])
        if values.ndim != (name not in _ALONE) or not np.can_cast(values.dtype, kind, "same_kind"):
            raise ValueError(f"its {name} are {list(values.shape)} of {values.dtype} where {kind} was expected")
        if not np.isfinite(values).all():
            raise ValueError(f"its {name} are not finite")
    return {name: values.astype(_ALONE.get(name) or _COLUMNS[name]) for name, values in data.items()}


class SharpenedSplats(NamedTuple):
    """What sharpening left: splats, labels and confidences [N'], and which Gaussian of splats.ply each was, [N']."""

    splats: Splats
    labels: np.ndarray
    confidences: np.ndarray
    origin: np.ndarray


def save_sharpened(folder: Path, sharpened: SharpenedSplats | None) -> None:
    """Write sharpened.ply and, last, sharpened.npz; None: the splats stay as they are, which the latter says."""
    table, splats = folder / "sharpened.npz", folder / "sharpened.ply"
    columns: dict[str, Any] = {"used": np.array(sharpened is not None)}
    if sharpened is not None:
        columns |= {k: getattr(sharpened, k) for k in ("labels", "confidences", "origin")}
    with write_beside(table) as path:  # both are whole before what is there goes; the table comes last
        np.savez_compressed(path, **columns)
        if sharpened is None:
            table.unlink(missing_ok=True)
            splats.unlink(missing_ok=True)
        else:
            with write_beside(splats) as made:
                write_ply(made, sharpened.splats)
                table.unlink(missing_ok=True)  # it never speaks of other splats than those beside it


def load_sharpened(folder: Path) -> SharpenedSplats | None:
    """Read what sharpening left, None where the splats stay as they are; InputError where it is broken."""
    path, again = folder / "sharpened.npz", f"run `cgc sharpen {folder}` again"
    try:
        if not _read_columns(path, "used")["used"]:
            return None
        columns = _read_columns(path, "labels", "confidences", "origin")
    except ValueError as error:
        raise InputError(f"{path} is broken ({error}); {again}") from error
    splats = read_ply(folder / "sharpened.ply")
    if any(len(c) != len(splats) for c in columns.values()):
        raise InputError(f"{path} and sharpened.ply beside it are of different runs; {again}")
    return SharpenedSplats(splats, **columns)


def follow(folder: Path, tree: Hierarchy, sharpened: SharpenedSplats) -> Hierarchy:
    """Return a run's tree for its sharpened splats; InputError where these are of another clustering."""
    labels, origin = sharpened.labels, sharpened.origin
    if not (_within(origin, 0, len(tree.leaves) - 1) and _within(labels, -1, tree.n_nodes)):
        raise InputError(f"{folder / 'sharpened.npz'} is of another clustering; run `cgc sharpen {folder}` again")
    return tree.follow(origin, labels)


def _within(numbers: np.ndarray, low: int, high: int) -> bool:
    return not len(numbers) or bool(low <= numbers.min() <= numbers.max() <= high)


def save_table(folder: Path, table: list[Segment], facts: Mapping[str, Any], nodes: Sequence[Node] = ()) -> None:
    """Write segments.json: `facts`, one row per segment, and one per part or whole."""
    rows = [{**vars(s), "size": s.size} for s in table]
    write_json(folder / "segments.json", {**facts, "segments": rows, "nodes": [vars(n) for n in nodes]})


def load_table(folder: Path) -> list[Segment]:
    """Read the table of segments.json."""
    return _load_rows(folder, "segments", Segment)


def load_nodes(folder: Path) -> list[Node]:
    """Read the parts and wholes of segments.json; none where it has no such table."""
    return _load_rows(folder, "nodes", Node)


def _load_rows(folder: Path, name: str, kind: type[Row]) -> list[Row]:
    path = folder / "segments.json"
    value = read_json(path, "the table of segments")
    found: Any = value.get(name, [] if name == "nodes" else None) if isinstance(value, dict) else None
    if not fits(found, list[dict]) or not all(_is_row(row, kind) for row in found):
        raise InputError(f"{path} is not a table of segments; run `cgc render {folder}` again")
    names = {f.name for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    return [kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in names}) for row in found]


def _is_row(row: dict[str, Any], kind: type) -> bool:
    """Say whether a row of a table has what it needs, and nothing of another kind than declared."""
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    return needed <= row.keys() and all(fits(row[k], h) for k, h in get_type_hints(kind).items() if k in row)


def export_segments(
    folder: Path, segmentation: Segmentation, name: str = "segments", origin: Sequence[float] | None = None
) -> list[Path]:
    """Write every segment, cleaned, as a plain 3DGS PLY, segments/0007.ply for id 7; remove files of gone ids.

    `origin` is what to add to positions to be in the model's world again.
    """
    target = folder / name
    paths = []
    for segment in segmentation.ids.tolist():
        path = target / f"{segment:04d}.ply"
        write_ply(path, segmentation[segment].splats(clean=True), origin=origin)
        paths.append(path)
    for old in target.glob("*.ply"):
        if re.fullmatch(r"\d{4,}", old.stem) and old not in paths:
            old.unlink()
    return paths
