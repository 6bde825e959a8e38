"""cgc: segment any Gaussian-splat scene into objects.

    seg = cgc.load("runs/demo")
    seg.at_pixel("0007.jpg", 310, 220)

The names below are imported when they are first used, so that `import cgc` is instant; docs/api.md shows them at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgc.api import cameras, load
    from cgc.errors import InputError
    from cgc.scene.types import Camera
    from cgc.segmentation.clip import OpenClip
    from cgc.segmentation.objects import Box, Object, Selection
    from cgc.segmentation.orbit import orbit
    from cgc.segmentation.query import Hit, Match
    from cgc.segmentation.segmentation import Segmentation
    from cgc.segmentation.text import TextImageModel

__version__ = "0.1.0"

_HOME = {
    "load": "cgc.api",
    "cameras": "cgc.api",
    "InputError": "cgc.errors",
    "Camera": "cgc.scene.types",
    "OpenClip": "cgc.segmentation.clip",
    "Box": "cgc.segmentation.objects",
    "Object": "cgc.segmentation.objects",
    "Selection": "cgc.segmentation.objects",
    "orbit": "cgc.segmentation.orbit",
    "Hit": "cgc.segmentation.query",
    "Match": "cgc.segmentation.query",
    "Segmentation": "cgc.segmentation.segmentation",
    "TextImageModel": "cgc.segmentation.text",
}

__all__ = [
    "Box", "Camera", "Hit", "InputError", "Match", "Object", "OpenClip", "Segmentation", "Selection", "TextImageModel",
    "cameras", "load", "orbit",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cgc' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
