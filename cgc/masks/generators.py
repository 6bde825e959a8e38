"""Which generator makes the masks, and with which settings: recipes, light enough to be sent to other processes."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgc.files import sha256
from cgc.masks.custom import load_entry_point
from cgc.masks.image_masks import ImageMasks, MaskGenerator
from cgc.masks.regions import RegionMerging
from cgc.masks.relief import Relief
from cgc.masks.sam import SegmentAnything

if TYPE_CHECKING:
    import numpy as np

MOST_WORKERS = 8


@dataclass(frozen=True)
class Regions:
    """The weight-free generator: of an image, and of its depth [H, W] where splats are known."""

    settings: RegionMerging
    splats: str | None = None
    """What tells the splats from others whose depths are given."""

    @property
    def facts(self) -> dict[str, Any]:
        made = {"generator": "regions", **_plain(asdict(self.settings))}
        return made if self.splats is None else {**made, "relief": _plain(asdict(Relief())), "splats": self.splats}

    def load(self, *, quiet: bool = False) -> Regions:
        return self

    def __call__(self, image: np.ndarray, depth: np.ndarray | None = None) -> ImageMasks:
        return ImageMasks.from_id_maps(self.settings(image, depth))

    def most_workers(self) -> int:
        """Return a core each, but not more than memory (1 GB each) is likely for."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MOST_WORKERS)


@dataclass(frozen=True)
class Sam:
    """Segment Anything."""

    settings: SegmentAnything

    @property
    def facts(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self.settings).items() if k not in ("device", "points_per_batch", "checkpoint")}
        path = Path(self.settings.checkpoint) if self.settings.checkpoint else None
        if path:
            kept["model"] = None  # the weights decide it
        checkpoint = {"name": path.name, "sha256": _hash(path)} if path and path.is_file() else None
        return {"generator": "sam", **_plain(kept), "checkpoint": checkpoint}

    def load(self, *, quiet: bool = False) -> MaskGenerator:
        return self.settings.load(quiet=quiet)

    def most_workers(self) -> int:
        return 1


@dataclass(frozen=True)
class Custom:
    """Anybody's generator, by its entry point (package.module:function, or a name that a package has registered)."""

    entry: str

    @property
    def facts(self) -> dict[str, Any]:
        return {"generator": self.entry}

    def load(self, *, quiet: bool = False) -> MaskGenerator:
        return load_entry_point(self.entry)

    def most_workers(self) -> int:
        return 1


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once as long as it stays as it is."""
    facts = path.stat()
    return _hash_of(path, facts.st_size, facts.st_mtime_ns)


@lru_cache
def _hash_of(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
