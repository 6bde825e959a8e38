"""SPIn-NeRF's multi-view segmentation (arXiv 2211.12254): SCENE/VIEW.png, binary masks of one object a scene."""

from __future__ import annotations

from pathlib import Path

from cgc.errors import InputError, some
from cgc.evaluation.protocols.base import Benchmark, Reference, TrueMask, check_folder, folders, pictures

LAYOUT = "SCENE/VIEW.png, one mask for each annotated view (files with cutout or pseudo in their name are not read)"
DEFINITION = (
    "IoU and pixel accuracy of what the mask of the first annotated view picks, mean over all annotated views (that "
    "one among them, as published numbers have it), then scenes"
)


def read(root: Path) -> Benchmark:
    """Read the masks of one scene or of several; the first by name is the reference."""
    check_folder(root, LAYOUT)
    masks, references, empty = [], [], []
    scenes = [root] if _masks(root) else folders(root)
    for folder in scenes:
        scene, found = folder.resolve().name, _masks(folder)
        if len(found) < 2:
            empty.append(f"{scene} ({len(found)})")
            continue
        masks += [TrueMask(scene, p.stem, scene, p) for p in found]
        references.append(Reference(scene, found[0].stem, scene, (found[0],)))
    if empty or not masks:
        raise InputError(
            f"{root} was expected to hold two masks or more of every scene, but these have fewer: {some(empty)}; "
            f"expected {LAYOUT}"
        )
    return Benchmark("spin-nerf", DEFINITION, tuple(masks), tuple(references))


def _masks(folder: Path) -> list[Path]:
    return [p for p in pictures(folder, (".png",)) if "cutout" not in p.stem and "pseudo" not in p.stem]
