"""Which generator makes the masks, and with which settings: recipes, light enough to be sent to other processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
        checkpoint = self.settings.checkpoint
        return {"generator": "sam", **_plain(kept), "checkpoint": Path(checkpoint).name if checkpoint else None}

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


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
