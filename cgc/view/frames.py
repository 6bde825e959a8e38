"""Pictures of a viewer, made without a display: a mode and a camera in, uint8 [H, W, 3] out.

Every way to look at a segmented scene draws by these colours: `colors_of` are those of the Gaussians in a mode, `frame`
is the picture by the project's own rasteriser, with what is selected outlined, boxed, and the axes in a corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor

from cgc.errors import InputError
from cgc.files import write_beside
from cgc.geometry import sh_dc_to_rgb
from cgc.scene.types import Camera
from cgc.segmentation.colors import NOISE_COLOR, segment_colors
from cgc.segmentation.objects import Object, is_clean
from cgc.segmentation.pictures import ViewOrCamera
from cgc.segmentation.segmentation import Segmentation
from cgc.view.pictures import number, overlay
from cgc.view.ramps import NEAR_TO_FAR, UNSURE_TO_SURE, ramp
from cgc.view.shots import Size, around, camera_named, clip_segment, project

Mode = Literal["color", "segments", "features", "confidence", "depth"]
"""What a viewer shows."""
MODES: tuple[Mode, ...] = get_args(Mode)

Picture = NDArray[np.uint8]

BACKGROUND = (24, 25, 29)
"""What is behind everything in modes that are not colour."""
ACCENT = (255, 158, 27)
"""Outlines and boxes of what is selected."""
EDGES = np.array([(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit])
"""Which two of a box's eight corners each of its edges joins, [12, 2]."""
DIMMED = 0.55
"""What is left of the light of what is not selected, while something is."""
SHARE = 0.68
"""The share of the segments' colours over the grey picture."""
DEPTH_RANGE = (1, 99)
"""Percentiles of the depths that are the nearest and the farthest colour."""
AXIS_COLORS = ((226, 82, 76), (104, 178, 82), (78, 134, 232))


@dataclass(frozen=True)
class Extras:
    """What is drawn over a picture: ids that are outlined, ids that get a box, the world's axes, every object's id."""

    selected: Sequence[int] = ()
    boxes: Sequence[int] = ()
    axes: bool = False
    ids: bool = False


def check_mode(mode: str) -> Mode:
    """Return a mode; InputError where there is none such."""
    if mode not in MODES:
        raise InputError(f"there is no mode {mode!r}; the modes are {', '.join(MODES)}")
    return mode  # pyright: ignore[reportReturnType]


# --- Gaussians --------------------------------------------------------------------------------------------


def colors_of(segmentation: Segmentation, mode: Mode, camera: Camera | None = None) -> Tensor:
    """Colour the Gaussians of a mode, [N, 3] float32 in 0..1.

    camera: where depths and colours are seen from (None: colours without their sheen; depth needs one).
    """
    check_mode(mode)
    if mode == "color":
        if camera is None:
            return sh_dc_to_rgb(segmentation.splats.sh[:, 0].detach())
        with torch.no_grad():
            return segmentation.splats.colors(camera.position).clamp(0, 1)
    if mode == "features":
        return segmentation.feature_colors
    if mode == "segments":
        made = segment_colors(np.maximum(segmentation.labels, 0)).astype(np.float32)
    elif mode == "confidence":
        sure = ramp(UNSURE_TO_SURE, segmentation.confidences)
        made = np.where((segmentation.labels > 0)[:, None], sure, np.array(NOISE_COLOR, np.float32))
    else:
        if camera is None:
            raise InputError("depth is seen from somewhere; give a camera")
        depths = project(camera, segmentation.splats.means.detach().cpu().numpy())[1]
        made = ramp(NEAR_TO_FAR, _span(depths, depths > 0))
    return torch.from_numpy(made.astype(np.float32) / 255)


def _span(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Bring values to 0..1 by their percentiles where `which`."""
    low, high = np.percentile(values[which], DEPTH_RANGE) if which.any() else (0.0, 1.0)
    return (values - low) / max(float(high - low), 1e-9)


# --- pictures ---------------------------------------------------------------------------------------------


def frame(segmentation: Segmentation, camera: Camera, mode: Mode = "color", extras: Extras = Extras()) -> Picture:
    """Draw a segmentation as a camera sees it.

    color is what `Segmentation.render` gives; segments are their colours over the grey picture, with thin borders;
    depth is bright where near, confidence red where a guess. Without features there is no picture of them: InputError.
    """
    picture = _DRAW[check_mode(mode)](segmentation, camera)
    if extras.selected:
        picture = outline(picture, segmentation.select(*extras.selected).mask(camera))
    if extras.boxes or extras.axes:
        lines = [line for i in extras.boxes for line in _box_lines(segmentation[i], camera)]
        picture = _ink(picture, lines, camera if extras.axes else None)
    return number(picture, segmentation.masks([camera])[0]) if extras.ids else picture


def _blend(segmentation: Segmentation, colors: Tensor, camera: Camera) -> Picture:
    background = torch.tensor(BACKGROUND, dtype=torch.float32) / 255
    with torch.no_grad():
        made = segmentation.context.rasterizer.render(
            segmentation.splats, colors, [camera], backgrounds=background
        ).values[0]
    return (255 * made.cpu().numpy().clip(0, 1)).round().astype(np.uint8)


def _color(segmentation: Segmentation, camera: Camera) -> Picture:
    return segmentation.render(camera, "rgb")


def _segments(segmentation: Segmentation, camera: Camera) -> Picture:
    return overlay(segmentation.render(camera, "rgb"), segmentation.masks([camera])[0], SHARE)


def _features(segmentation: Segmentation, camera: Camera) -> Picture:
    return _blend(segmentation, colors_of(segmentation, "features"), camera)


def _confidence(segmentation: Segmentation, camera: Camera) -> Picture:
    """Colours of confidence, shaded by the picture so that things can be made out."""
    sure = _blend(segmentation, colors_of(segmentation, "confidence"), camera)
    grey = segmentation.render(camera, "rgb").astype(np.float32).mean(axis=2, keepdims=True)
    return (SHARE * sure + (1 - SHARE) * grey).round().astype(np.uint8)


def _depth(segmentation: Segmentation, camera: Camera) -> Picture:
    depths = segmentation.render(camera, "depth")
    hit = depths > 0
    colors = ramp(NEAR_TO_FAR, _span(depths, hit))
    return np.where(hit[..., None], colors, np.array(BACKGROUND, np.float32)).round().astype(np.uint8)


_DRAW = {
    "color": _color, "segments": _segments, "features": _features, "confidence": _confidence, "depth": _depth,
}  # fmt: skip


def outline(picture: Picture, mask: np.ndarray) -> Picture:
    """Dim what is outside of a mask [H, W] and draw a line around it, bright with a dark rim; none without a pixel."""
    if not mask.any():
        return picture
    wide = max(1, round(min(mask.shape) / 450))
    cross = np.ones((3, 3), bool)
    grown = np.asarray(binary_dilation(mask, cross, iterations=wide), bool)
    shrunk = np.asarray(binary_erosion(mask, cross, iterations=wide, border_value=1), bool)
    line = grown & ~shrunk
    rim = np.asarray(binary_dilation(grown, cross, iterations=wide), bool) & ~grown
    made = np.where(mask[..., None], picture, DIMMED * picture.astype(np.float32))
    made[rim] *= 0.3
    made[line] = ACCENT
    return made.round().astype(np.uint8)


def _box_lines(thing: Object, camera: Camera) -> list[np.ndarray]:
    """The edges of an object's box in pixels, [2, 2] each; what is behind the camera is cut off."""
    corners = thing.box.corners
    near = 1e-3 * max(float(np.linalg.norm(thing.box.size)), 1e-6)
    found = [clip_segment(camera, corners[i], corners[j], near) for i, j in EDGES]
    return [line for line in found if line is not None]


def _ink(picture: Picture, lines: Sequence[np.ndarray], axes_of: Camera | None) -> Picture:
    """Draw lines, and the world's axes in the lower left corner, smoothed by drawing them twice as large."""
    height, width = picture.shape[:2]
    sheet = Image.new("RGBA", (2 * width, 2 * height))
    pen = ImageDraw.Draw(sheet)
    wide = max(2, round(min(width, height) / 180))
    for line in lines:
        ends = [tuple(p) for p in np.clip(2 * line, -4 * max(width, height), 6 * max(width, height)).tolist()]
        pen.line(ends, fill=(0, 0, 0, 130), width=wide + 3)
        pen.line(ends, fill=(*ACCENT, 255), width=wide)
    if axes_of is not None:
        _draw_axes(pen, axes_of, wide)
    made = Image.fromarray(picture).convert("RGBA")
    made.alpha_composite(sheet.resize((width, height), Image.Resampling.BOX))
    return np.asarray(made.convert("RGB"))


def _draw_axes(pen: ImageDraw.ImageDraw, camera: Camera, wide: int) -> None:
    """Draw x, y and z as they lie in the camera, the farthest first."""
    length = 0.22 * min(camera.width, camera.height)
    middle = np.array([1.5 * length, 2 * camera.height - 1.5 * length])
    turned = camera.viewmat[:3, :3].double().numpy()  # columns: the world's axes in the camera
    font = ImageFont.load_default(max(10.0, 0.4 * length))
    for i in np.argsort(-turned[2]).tolist():
        tip = middle + length * turned[:2, i]
        pen.line([tuple(middle), tuple(tip)], fill=(*AXIS_COLORS[i], 255), width=wide + 3)
        place = middle + 1.25 * length * turned[:2, i]
        pen.text(tuple(place), "xyz"[i], fill=(*AXIS_COLORS[i], 255), font=font, anchor="mm", stroke_width=wide // 2,
                 stroke_fill=(0, 0, 0, 160))  # fmt: skip


def thumbnail(segmentation: Segmentation, node: int, side: int = 96) -> Picture:
    """Draw an object alone, cleaned, from a side that a photo was taken from, [side, side, 3]."""
    own = segmentation.members(node)
    clean = own[is_clean(segmentation.splats.select(torch.from_numpy(own)), segmentation.confidences[own])]
    alone = part_of(segmentation, clean, segmentation.level)
    camera = around(alone[node], 0, (side, side))
    return _blend(alone, colors_of(alone, "color", camera), camera)


def part_of(segmentation: Segmentation, kept: np.ndarray | None, level: float | None) -> Segmentation:
    """Return some Gaussians of a segmentation, by their indices (None: all), at a level: same ids, same colours."""
    tree, splats, confidences = segmentation.hierarchy, segmentation.splats, segmentation.confidences
    if kept is not None:
        tree = replace(tree, leaves=tree.leaves[kept])
        splats, confidences = splats.select(torch.from_numpy(kept)), confidences[kept]
    made = replace(
        segmentation, splats=splats, labels=tree.at(level), confidences=confidences, hierarchy=tree, level=level
    )
    # what is worked out of features depends on all of them, so it is taken over rather than worked out again
    if segmentation.has_features:
        colors = segmentation.feature_colors
        made.__dict__["feature_colors"] = colors if kept is None else colors[torch.from_numpy(kept)]
        if segmentation.blended:
            made.__dict__["mean_features"] = segmentation.mean_features.those_of(tree.at())
    return made


# --- files ------------------------------------------------------------------------------------------------

SUFFIXES = (".png", ".jpg", ".jpeg")


def screenshot(
    segmentation: Segmentation,
    path: Path | str,
    mode: str = "segments",
    camera: ViewOrCamera = "orbit",
    size: Size | None = None,
    level: float | None = None,
    extras: Extras = Extras(),
) -> Path:
    """Write a picture of a segmentation, whole or not at all; no display, GPU or Open3D is needed.

    camera: a view's name, "orbit", "orbit:90" or any Camera; size: None is the view's own; level: of the hierarchy,
    0 to 1.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is no name of a picture; end it in .png or .jpg")
    checked = check_mode(mode)
    seen = segmentation if level is None else segmentation.at_level(level)
    picture = frame(seen, camera_named(seen, camera, size), checked, extras)
    with write_beside(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=92)
    return path
