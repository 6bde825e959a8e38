"""Segment Anything at work: its automatic mask generator, in bounded memory and without OpenCV.

Memory, beside the model's weights: 2.6 GB for the image encoder of vit_b, whose attention is among 4096 patches, and a
third more for vit_h; then, in its place, up to 40 MB a point of a batch (`points_per_batch`) for decoding, whatever the
photo's size. Masks are brought to the photo's size a few at a time, in UPSAMPLING bytes; what is found is kept as run
lengths. Half precision takes about half of it, but for the weights. Time without a GPU (two cores, vit_b): 14 s to look
at a photo, and 30 s for 256 points, four times that for 1024.

P points, M masks, H W image size.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import (
    MaskData,
    batched_mask_to_box,
    calculate_stability_score,
    is_box_near_crop_edge,
    uncrop_masks,
)
from torchvision.ops import nms

from cgc.device import Lever, out_of_memory, see
from cgc.errors import InputError
from cgc.masks import checkpoints
from cgc.masks.image_masks import ImageMasks, decode, encode
from cgc.masks.tidy import remove_small_regions, resize_counts
from cgc.progress import console

if TYPE_CHECKING:
    from cgc.masks.sam import SegmentAnything

UPSAMPLING = 256 << 20
"""Bytes that masks may take while they are brought to the photo's size."""
_NEEDED = ("image_encoder", "prompt_encoder", "mask_decoder", "preprocess", "postprocess_masks", "mask_threshold",
           "image_format", "device")  # fmt: skip


class SamGenerator:
    """What makes the masks of photos; `SegmentAnything.load` gives one. `name` says what it is."""

    def __init__(self, settings: SegmentAnything, model: Any, name: str) -> None:
        self.settings, self.name = settings, name
        self._half = settings.half and model.device.type == "cuda"
        self._grid = _PointGrid(
            model,
            points_per_side=settings.points_per_side,
            points_per_batch=settings.points_per_batch,
            pred_iou_thresh=settings.pred_iou_thresh,
            stability_score_thresh=settings.stability_score_thresh,
            stability_score_offset=settings.stability_score_offset,
            box_nms_thresh=settings.box_nms_thresh,
            crop_n_layers=settings.crop_n_layers,
            crop_nms_thresh=settings.crop_nms_thresh,
            crop_overlap_ratio=settings.crop_overlap_ratio,
            crop_n_points_downscale_factor=settings.crop_n_points_downscale_factor,
            output_mode="uncompressed_rle",
        )

    @classmethod
    def load(cls, settings: SegmentAnything, model: Any = None, *, quiet: bool = False) -> SamGenerator:
        """Build the model with its weights, or take `model`, and bring it to the settings' device."""
        device, why = see(settings.device)
        if not quiet:
            console.print(why)
        if model is None:
            path = settings.checkpoint or checkpoints.fetch(checkpoints.OFFICIAL[settings.model], quiet=quiet)
            kind, model = checkpoints.build(path)
            name = f"segment-anything {kind} {version('segment-anything')}"
            if settings.checkpoint and path.name != checkpoints.OFFICIAL[kind].name:
                name += f", {path.name}"
        else:
            missing = [part for part in _NEEDED if getattr(model, part, None) is None]
            if missing:
                raise InputError(
                    f"a model like Segment Anything's was expected, but {type(model).__name__} has no "
                    f"{', '.join(missing)}; give one that segment_anything.SamPredictor can use"
                )
            name = f"{type(model).__module__.partition('.')[0]} {type(model).__name__}"
        with out_of_memory("loading Segment Anything"):
            return cls(settings, model.to(device).eval(), name)

    def __call__(self, image: np.ndarray) -> ImageMasks:
        """Find the masks of an image [H, W, 3] uint8, of its size, rated by the IoU that the model predicts."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError("an image [H, W, 3] of bytes was expected; convert it to RGB first")
        height, width = image.shape[:2]
        small = _shrink(image, self.settings.max_side)
        high, wide = small.shape[:2]
        if min(high, wide) * self._grid.predictor.transform.target_length < max(high, wide):
            return ImageMasks.from_counts([], height, width)  # a line, in which the model would see no pixel
        if min(high, wide) < 4**self.settings.crop_n_layers:
            raise InputError(
                f"an image of {wide}x{high} is too small for {self.settings.crop_n_layers} layers of crops; "
                "lower crop_n_layers"
            )
        half = torch.autocast("cuda", torch.float16) if self._half else contextlib.nullcontext()
        with torch.inference_mode(), half, out_of_memory("Segment Anything", self._levers):
            found = self._grid.generate(small)
        counts = [np.asarray(mask["segmentation"]["counts"]) for mask in found]
        scores = np.array([mask["predicted_iou"] for mask in found], np.float32)
        least = self.settings.min_mask_region_area * high * wide
        counts, scores = _tidy(counts, scores, high, wide, least, self._grid.largest_overlap)
        if (high, wide) != (height, width):
            counts = [resize_counts(c, high, wide, height, width) for c in counts]
        return ImageMasks.from_counts(counts, height, width, scores)

    def _levers(self) -> list[Lever]:
        """What its memory grows with, on a GPU."""
        return [Lever("--sam.points-per-batch", self.settings.points_per_batch)]


class _PointGrid(SamAutomaticMaskGenerator):
    """Segment Anything's generator: the same masks, sooner and in less memory.

    Masks that are rated too low go before they are brought to the photo's size, a few of the others come at a time,
    and run lengths are found in one go over all of those.
    """

    @property
    def largest_overlap(self) -> float:
        """The IoU of boxes from which masks count as one, wherever they were found."""
        return max(self.box_nms_thresh, self.crop_nms_thresh)

    def _process_crop(self, *where: Any) -> MaskData:
        data = super()._process_crop(*where)
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)  # where nothing is found, it has lost its columns
        return data

    def _process_batch(
        self, points: np.ndarray, im_size: tuple[int, ...], crop_box: list[int], orig_size: tuple[int, ...]
    ) -> MaskData:
        """Return the masks of a batch of points [P, 2] in a crop."""
        logits, ratings = self._decode(points, im_size)  # [3 P, h, w], [3 P]
        good = torch.nonzero(ratings > self.pred_iou_thresh if self.pred_iou_thresh > 0 else ratings.isfinite())[:, 0]
        side, (height, width) = self.predictor.model.image_encoder.img_size, orig_size
        at_once = max(1, UPSAMPLING // (4 * side * side + 12 * height * width))
        data = MaskData()
        for some in good.split(at_once):  # one round, of no masks, where none is good
            data.cat(self._enlarge(logits[some], ratings[some], points[some.cpu().numpy() // 3], crop_box, orig_size))
        return data

    def _decode(self, points: np.ndarray, im_size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return three masks a point as the model makes them, small logits [3 P, h, w], and its ratings [3 P]."""
        predictor, model = self.predictor, self.predictor.model
        with torch.autocast(predictor.device.type, enabled=False):  # half precision would blur positions
            at = torch.as_tensor(predictor.transform.apply_coords(points, im_size), device=predictor.device)
            labels = torch.ones(len(at), 1, dtype=torch.int, device=predictor.device)
            sparse, dense = model.prompt_encoder(points=(at[:, None], labels), boxes=None, masks=None)
            positions = model.prompt_encoder.get_dense_pe()
        logits, ratings = model.mask_decoder(
            image_embeddings=predictor.get_image_embedding(),
            image_pe=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        if not ratings.isfinite().all():
            raise InputError("the model's numbers are not finite; switch half precision off, or use other weights")
        return logits.flatten(0, 1), ratings.flatten(0, 1).float()

    def _enlarge(
        self,
        logits: torch.Tensor,
        ratings: torch.Tensor,
        points: np.ndarray,
        crop_box: list[int],
        orig_size: tuple[int, ...],
    ) -> MaskData:
        """Bring small logits [M, h, w] to the crop's size; keep steady masks that the crop does not cut."""
        predictor, model = self.predictor, self.predictor.model
        large = model.postprocess_masks(logits[:, None].float(), predictor.input_size, predictor.original_size)[:, 0]
        stability = calculate_stability_score(large, model.mask_threshold, self.stability_score_offset)
        masks = large > model.mask_threshold
        boxes = batched_mask_to_box(masks)
        height, width = orig_size
        keep = ~is_box_near_crop_edge(boxes, crop_box, [0, 0, width, height])
        if self.stability_score_thresh > 0:
            keep &= stability >= self.stability_score_thresh
        data = MaskData(
            iou_preds=ratings, points=torch.as_tensor(points), stability_score=stability, boxes=boxes, masks=masks
        )
        data.filter(keep)
        data["rles"] = [
            {"size": [height, width], "counts": counts}
            for counts in run_lengths(uncrop_masks(data["masks"], crop_box, height, width))
        ]
        del data["masks"]
        return data


def run_lengths(masks: torch.Tensor) -> list[np.ndarray]:
    """Return the run lengths of masks [M, H, W] bool (see `image_masks`)."""
    n, height, width = masks.shape
    flat = masks.transpose(1, 2).reshape(n, height * width)
    owner, at = torch.nonzero(flat[:, 1:] != flat[:, :-1]).cpu().numpy().T
    inside = flat[:, 0].cpu().numpy()
    ends = np.searchsorted(owner, np.arange(n + 1))
    found = []
    for i in range(n):
        edges = at[ends[i] : ends[i + 1]] + 1
        found.append(np.diff(np.concatenate([[0] * (1 + inside[i]), edges, [height * width]]).astype(np.int64)))
    return found


def _tidy(
    counts: list[np.ndarray], scores: np.ndarray, height: int, width: int, least: float, overlap: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Remove islands and holes of fewer than `least` pixels, then masks that have become copies of others.

    Of two copies that stays which was tidy before, or else which is rated higher.
    """
    if least <= 1 or not counts:
        return counts, scores
    tidied, boxes, changed = [], np.zeros((len(counts), 4)), np.zeros(len(counts), bool)
    for i, c in enumerate(counts):
        before = decode(c, height, width)
        after = remove_small_regions(before, least)
        changed[i] = after is not before
        tidied.append(encode(after) if changed[i] else c)
        rows, columns = np.flatnonzero(after.any(1)), np.flatnonzero(after.any(0))
        if len(rows):
            boxes[i] = columns[0], rows[0], columns[-1], rows[-1]
    rank = np.empty(len(counts))
    rank[np.lexsort((scores, ~changed))] = np.arange(len(counts))
    kept = np.sort(nms(torch.from_numpy(boxes), torch.from_numpy(rank), overlap).numpy())
    return [tidied[i] for i in kept], scores[kept]


def _shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Return the image so that neither side is longer than `max_side` (0: as it is)."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width, 1)
    if not max_side or scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
