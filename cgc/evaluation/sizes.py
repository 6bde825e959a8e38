"""Id maps of a view brought to the size, and to the lens, of the picture that a truth is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cgc.errors import InputError
from cgc.evaluation.truth import IGNORE
from cgc.masks.id_maps import resize_nearest
from cgc.scene.types import View

UNSEEN = -1
"""What a photo shows and its undistorted picture does not."""

Change = Literal["", "bent", "resized"]


def alike(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether pictures of two sizes [H, W] have one shape, but for rounding."""
    return abs(other[0] - other[1] * shape[0] / shape[1]) <= max(2.0, 0.01 * other[0])


def hide_unseen(truth: Sequence[np.ndarray], shown: Sequence[np.ndarray]) -> tuple[np.ndarray, ...] | None:
    """Return true id maps with IGNORE where id maps of the same size are UNSEEN; None where none is anywhere."""
    unseen = [ids == UNSEEN for ids in shown]
    if not any(u.any() for u in unseen):
        return None
    return tuple(np.where(u, IGNORE, true) for true, u in zip(truth, unseen))


def at_truth_size(ids: np.ndarray, view: View | None, shape: Sequence[int], name: str) -> tuple[np.ndarray, Change]:
    """Bring an id map [H, W] of a view (None: of what a folder holds) to the size of its truth, nearest id; say how.

    Where the photo was undistorted it is bent back; what the undistorted picture does not show is UNSEEN. InputError
    where the truth, of the view called `name`, has another shape.
    """
    height, width = shape
    lens = view.distortion if view else None
    full = (lens.width, lens.height) if lens else (ids.shape[1], ids.shape[0])
    if (height, width) == ids.shape and (lens is None or full != (width, height)):
        return ids, ""
    if not alike((full[1], full[0]), shape):
        raise InputError(
            f"the truth of {name} is {width}x{height} but the view is {full[0]}x{full[1]}, which has "
            "another shape: it is the truth of another picture; give the truth of this one"
        )
    if view is not None and lens is not None:
        from cgc.scene.lens import sample_undistorted  # pycolmap takes half a second to import

        return sample_undistorted(ids, view.camera, lens, width, height, UNSEEN), "bent"
    return resize_nearest(ids, width, height), "resized"
