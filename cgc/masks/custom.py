"""Masks by anything else: a function that the user names, `package.module:function`, or a plugin's name.

What is named takes an image and gives its masks, or takes nothing and gives such a function (so that a model is loaded
once). An image is [H, W, 3] uint8, RGB. Its masks are one of

- `ImageMasks`,
- an id map [H, W], 0 = unassigned,
- a list of masks [H, W], not 0 inside; or of dictionaries like those of Segment Anything's generators, whose
  "segmentation" is such a mask or COCO run lengths, and whose "predicted_iou" rates it.

Plugins are entry points of the group `cgc.mask_generators`, in the pyproject.toml of any installed package:

    [project.entry-points."cgc.mask_generators"]
    mobile = "my_package.masks:load_mobile_sam"
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from cgc.errors import InputError, some

if TYPE_CHECKING:
    import numpy as np

    from cgc.masks.image_masks import ImageMasks, MaskGenerator

GROUP = "cgc.mask_generators"


class CustomGenerator:
    """A user's function of an image; whatever it gives becomes ImageMasks."""

    def __init__(self, function: Callable[[np.ndarray], Any], name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, image: np.ndarray) -> ImageMasks:
        """Call the function; InputError where it gives no masks of this image."""
        return as_masks(self.function(image), image.shape[0], image.shape[1], self.name)


def load_entry_point(text: str) -> MaskGenerator:
    """Find what `package.module:function`, or the name of a plugin, means (see the module); InputError where nothing.

    Modules of the current folder are found too.
    """
    point = _point(text)
    if os.getcwd() not in sys.path:  # where the `cgc` command does not look by itself
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(point.module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the mask generator {text} needs the module {error.name}, which is not there; install it, or run this in "
            "the folder that holds it"
        ) from error
    except Exception as error:  # it is the user's code that runs
        raise _failed(text, error) from error
    try:
        function: Any = functools.reduce(getattr, point.attr.split("."), module)
    except AttributeError as error:
        raise InputError(
            f"the mask generator {text} is not there ({error}); correct the name after the colon"
        ) from error
    if not callable(function):
        raise InputError(f"the mask generator {text} is {type(function).__name__} where a function was expected")
    if _wants_nothing(function):
        try:
            function = function()
        except InputError:
            raise
        except Exception as error:
            raise _failed(text, error) from error
        if not callable(function):
            raise InputError(
                f"the mask generator {text} takes no image and gave {type(function).__name__} where a function of an "
                "image was expected; let it return one"
            )
    name = getattr(function, "name", None)
    return CustomGenerator(function, name if isinstance(name, str) else text)


def _point(text: str) -> EntryPoint:
    """Read `module:function`, or look a plugin up by name."""
    if ":" in text:
        module, _, attribute = text.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
            raise InputError(f"the mask generator is {text!r} where package.module:function was expected; correct it")
        return EntryPoint(text, text, GROUP)
    known = {point.name: point for point in entry_points(group=GROUP)}
    if text not in known:
        raise InputError(
            f"there is no mask generator called {text!r} (plugins that are installed: {some(sorted(known))}); "
            "give the name of one, or package.module:function"
        )
    return known[text]


def _wants_nothing(function: Callable[..., Any]) -> bool:
    """Tell what gives a generator from a generator: it needs no argument."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # built in, without a signature
        return False
    return True


def _failed(text: str, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return InputError(f"the mask generator {text} could not be loaded ({reason}); correct it")


def as_masks(found: Any, height: int, width: int, name: str = "the mask generator") -> ImageMasks:
    """Turn what a generator gives for an image (see the module) into ImageMasks; InputError where that cannot be."""
    import numpy as np

    from cgc.masks.image_masks import ImageMasks

    if isinstance(found, ImageMasks):
        if (found.height, found.width) != (height, width):
            raise InputError(
                f"{name} gave masks of {found.width}x{found.height} for an image of {width}x{height}; "
                "bring them to the image's size"
            )
        return found
    if isinstance(found, np.ndarray) and found.ndim == 2:
        if not np.issubdtype(found.dtype, np.integer):
            raise InputError(f"{name} gave an id map of {found.dtype} where whole numbers were expected")
        if found.shape != (height, width):
            raise InputError(f"{name} gave an id map of {found.shape[1]}x{found.shape[0]} for {width}x{height} pixels")
        return ImageMasks.from_id_maps([found])
    if not isinstance(found, Sequence) and not (isinstance(found, np.ndarray) and found.ndim == 3):
        raise InputError(
            f"{name} gave {type(found).__name__} where ImageMasks, an id map [H, W] or a list of masks was expected"
        )
    counts, scores = [], []
    for i, one in enumerate(found):
        rated = isinstance(one, dict)
        counts.append(_counts(one.get("segmentation") if rated else one, height, width, f"{name}, mask {i}"))
        score = one.get("predicted_iou", 1.0) if rated else 1.0
        if not isinstance(score, (int, float, np.number)) or not np.isfinite(score):
            raise InputError(f"{name}, mask {i}, has the predicted_iou {score!r} where a number was expected")
        scores.append(float(score))
    return ImageMasks.from_counts(counts, height, width, scores)


def _counts(mask: Any, height: int, width: int, what: str) -> np.ndarray:
    """Return the run lengths of a mask [H, W], or of COCO's run lengths, plain or packed."""
    import numpy as np

    from cgc.masks.image_masks import encode

    size = (height, width)
    if isinstance(mask, dict):
        if _size(mask) != size:
            raise InputError(f"{what}, is of the size {mask.get('size')} where its image is {list(size)}")
        counts = mask.get("counts", [])
        return np.asarray(unpack(counts) if isinstance(counts, (str, bytes)) else counts)
    if not isinstance(mask, np.ndarray) or mask.shape != size or mask.dtype.kind not in "biu":
        came = f"{list(mask.shape)} {mask.dtype}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"{what}, is {came} where a mask {list(size)} of bools or whole numbers was expected")
    return encode(mask)


def unpack(text: str | bytes) -> list[int]:
    """Read COCO's packed run lengths; InputError where they are broken."""
    from cgc.masks.image_masks import from_text

    try:
        return from_text(text.decode("latin-1") if isinstance(text, bytes) else text).tolist()
    except ValueError as error:
        raise InputError(f"packed run lengths of a mask {error}; export it again") from error


def _size(mask: dict[str, Any]) -> tuple[Any, ...]:
    size = mask.get("size")
    return tuple(size) if isinstance(size, (list, tuple)) else ()
