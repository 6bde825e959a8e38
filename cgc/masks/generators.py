"""Which generator makes the masks, and with which settings: recipes, light enough to be sent to other processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cgc.files import sha256
from cgc.masks.custom import CustomGenerator, load_entry_point
from cgc.masks.image_masks import ImageMasks, MaskGenerator
from cgc.masks.regions import RegionMerging
from cgc.masks.sam import SegmentAnything


@dataclass(frozen=True)
class Regions:
    """The weight-free generator."""

    settings: RegionMerging

    @property
    def facts(self) -> dict[str, Any]:
        return {"generator": "regions", **_plain(asdict(self.settings))}

    def load(self, *, quiet: bool = False) -> MaskGenerator:
        return CustomGenerator(lambda image: ImageMasks.from_id_maps(self.settings(image)), "regions")


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


@dataclass(frozen=True)
class Custom:
    """Anybody's generator, by its entry point (package.module:function, or a name that a package has registered)."""

    entry: str

    @property
    def facts(self) -> dict[str, Any]:
        return {"generator": self.entry}

    def load(self, *, quiet: bool = False) -> MaskGenerator:
        return load_entry_point(self.entry)


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
