"""LERF-Mask (Gaussian Grouping, arXiv 2312.00732): SCENE/test_mask/VIEW/PROMPT.png."""

from __future__ import annotations

from pathlib import Path

from cgc.errors import InputError, some
from cgc.evaluation.protocols.base import Benchmark, TrueMask, find_scenes, folders, pictures

LAYOUT = "SCENE/test_mask/VIEW/PROMPT.png"
DEFINITION = "IoU and boundary IoU (2 % of the diagonal), mean over the views of a prompt, then prompts, then scenes"


def read(root: Path) -> Benchmark:
    """Read the truth of one scene or of several. VIEW is a view's name, or its number among the held-back images.

    These are the images that are in images/ and not in images_train/, by name; without images_train/ a number says
    nothing.
    """
    masks, orders, notes = [], {}, []
    for scene, folder in find_scenes(root, "test_mask", LAYOUT).items():
        views = folders(folder / "test_mask")
        truth = folder / "test_mask"
        empty = [v.name for v in views if not pictures(v, (".png",))]
        if empty or not views:
            what = f"the views {some(empty)} of {truth} hold no mask" if views else f"{truth} holds no view"
            raise InputError(f"{what}; expected {LAYOUT}: download that part again")
        own = [TrueMask(scene, v.name, p.stem, p) for v in views for p in pictures(v, (".png",))]
        prompts = sorted({m.prompt for m in own})
        for view in views:
            if lacking := [p for p in prompts if not any(m.view == view.name and m.prompt == p for m in own)]:
                notes.append(f"{scene}: the view {view.name} has no truth of {some(lacking)}")
        masks += own
        held_in = {p.stem for p in pictures(folder / "images_train")}
        held_back = (p.stem for p in pictures(folder / "images") if p.stem not in held_in)
        orders[scene] = tuple(held_back) if held_in else ()
    return Benchmark("lerf-mask", DEFINITION, tuple(masks), orders=orders, mean="prompts", notes=tuple(notes))
