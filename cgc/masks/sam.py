"""Masks by Segment Anything (Kirillov et al., arXiv 2304.02643): the settings, and the generator they load.

Light on purpose: nothing heavy is imported until `load` is called. A photo is prompted with a grid of points; each
gives three masks (a whole, a part, a part of it); sure and steady ones are kept, and copies of one mask are dropped.

Which settings others lift with (their released code), M = a million pixels:

| | model | points | iou | stability | crops | smallest region |
|---|---|---|---|---|---|---|
| Segment Anything's own defaults | vit_h | 32 | 0.88 | 0.95 | 0 | none |
| SAGA (Jumpat/SegAnyGAussians) | vit_h | 32 | 0.88 | 0.95 | 0 | 100 pixels |
| OmniSeg3D-GS (OceanYing/OmniSeg3D-GS) | vit_h | 32 | 0.88 | 0.95, for LLFF 0.9 | 0, for LLFF 1 | 128 pixels |
| Gaussian Grouping (lkeab/gaussian-grouping, by DEVA) | vit_h | 64 | 0.88 | 0.95 | 0 | none |
| Gaga (weijielyu/Gaga) | vit_h | 64 | 0.7 | 0.95 | 0 | none |

The README of Contrastive Gaussian Clustering's release starts from finished id maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from cgc.errors import InputError

if TYPE_CHECKING:
    from cgc.masks.sam_generator import SamGenerator


@dataclass(frozen=True)
class SegmentAnything:
    """How Segment Anything finds the masks of a photo; it needs the model's weights (`checkpoint`)."""

    model: Annotated[Literal["vit_b", "vit_l", "vit_h"], arg(prefix_name=False)] = "vit_h"
    """The model: `vit_h` (2.6 GB of weights) finds the best masks, and the thresholds below were chosen for it; `vit_l`
    (1.2 GB) is nearly as good; `vit_b` (0.4 GB) is for machines without a GPU. Given weights decide it themselves."""
    checkpoint: Annotated[Path | None, arg(prefix_name=False)] = None
    """A file with the model's weights; without one, they are downloaded once and kept."""
    points_per_side: int = 32
    """Points a side of the grid that the photo is prompted with; the time grows with their square."""
    points_per_batch: int = 32
    """Points at once; more need more memory (up to 40 MB each), and only a GPU is faster for them."""
    pred_iou_thresh: float = 0.88
    """Masks that the model rates lower than this are dropped; 0: none."""
    stability_score_thresh: float = 0.95
    """Masks are dropped whose area changes by more than this allows if the cutoff of their logits moves; 0: none."""
    stability_score_offset: float = 1.0
    """How far the cutoff is moved for that, up and down."""
    box_nms_thresh: float = 0.7
    """Of two masks whose boxes have a larger IoU than this, the one that is rated lower is dropped."""
    crop_n_layers: int = 0
    """Look again at 4 crops of the photo (1), and at 16 smaller ones too (2): finds smaller things in that much more
    time."""
    crop_nms_thresh: float = 0.7
    """Like box_nms_thresh, between crops; masks of smaller crops are preferred."""
    crop_overlap_ratio: float = 512 / 1500
    """How far crops overlap, as a share of the photo's shorter side."""
    crop_n_points_downscale_factor: int = 1
    """Crops of layer n have this to the power of n times fewer points a side."""
    min_mask_region_area: float = 1e-4
    """Islands and holes of masks under this share of the photo's pixels are removed; 0: none. 1e-4 is a hundred pixels
    of a megapixel."""
    max_side: int = 1600
    """Photos are shrunk for this so that neither side is longer, and masks brought back to the full size (nearest
    pixel); 0: never. The model itself sees 1024 pixels of a photo, and of a crop."""
    half: bool = True
    """Half precision, on CUDA only: faster, and in less memory."""
    device: Annotated[str, arg(prefix_name=False, metavar="auto|cpu|cuda|cuda:N")] = "auto"
    """Where to compute: auto (CUDA where there is any that can be used), cpu, cuda, cuda:1, ..."""

    def load(self, model: Any = None, *, quiet: bool = False) -> SamGenerator:
        """Load the model once and return what makes masks: `generator(image [H, W, 3] uint8) -> ImageMasks`.

        `model` is one that is built already, Segment Anything's or one of the same interface (MobileSAM): what
        `segment_anything.SamPredictor` can use. InputError where a setting, the device or the weights are no good.
        """
        self.check()
        try:
            from cgc.masks.sam_generator import SamGenerator
        except ModuleNotFoundError as error:
            raise InputError(
                f"Segment Anything needs the package {error.name}, which is not installed; "
                "pip install segment-anything torchvision"
            ) from error
        return SamGenerator.load(self, model, quiet=quiet)

    def check(self) -> None:
        """Raise InputError for the first setting that is outside its limits."""
        for name, (least, most, whole) in _LIMITS.items():
            value = getattr(self, name)
            kind = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not kind or not least <= value <= most:  # NaN is not
                bounds = f"of {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
                raise InputError(
                    f"{name} is {value!r} where a {'whole ' if whole else ''}number {bounds} was expected; correct it"
                )
        smallest = self.points_per_side / self.crop_n_points_downscale_factor**self.crop_n_layers
        if smallest < 1:
            raise InputError(
                f"{self.crop_n_layers} layers of crops leave no point of {self.points_per_side} a side; "
                "lower crop_n_layers or crop_n_points_downscale_factor"
            )


_LIMITS: dict[str, tuple[float, float, bool]] = {
    "points_per_side": (1, 1000, True),
    "points_per_batch": (1, math.inf, True),
    "pred_iou_thresh": (0, 1, False),
    "stability_score_thresh": (0, 1, False),
    "stability_score_offset": (0, 1e6, False),
    "box_nms_thresh": (0, 1, False),
    "crop_n_layers": (0, 4, True),
    "crop_nms_thresh": (0, 1, False),
    "crop_overlap_ratio": (0, 0.9, False),
    "crop_n_points_downscale_factor": (1, math.inf, True),
    "min_mask_region_area": (0, 1, False),
    "max_side": (0, math.inf, True),
}
"""The least and the largest value of a setting, and whether it is a whole number."""


_DEFAULT = SegmentAnything()

PRESETS: dict[str, SegmentAnything] = {
    # Half the usual points a side take a quarter of the time, and find what is larger than a sixteenth of the photo.
    "fast": replace(_DEFAULT, model="vit_b", points_per_side=16, max_side=1024),
    # What SAGA and OmniSeg3D use: Segment Anything's own settings, and regions of a hundred pixels removed.
    "default": _DEFAULT,
    # OmniSeg3D's settings for scenes that face forward (crops, stability 0.9), with half the points in crops and 0.86
    # as in the example for more masks of Segment Anything's notebook.
    "fine": replace(
        _DEFAULT,
        pred_iou_thresh=0.86,
        stability_score_thresh=0.9,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        max_side=2048,
    ),
}
"""Settings by effort: under a minute a photo on two cores, what others lift with, and small things too."""
