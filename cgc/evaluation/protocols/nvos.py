"""NVOS (arXiv 2204.01218, labels for LLFF scenes): scribbles in one view, the mask of one other.

masks/TARGET/VIEW_mask.png (beside VIEW.JPG)   reference_image/TARGET/VIEW.JPG   scribbles/TARGET/pos_*.png, neg_*.png
"""

from __future__ import annotations

from pathlib import Path

from cgc.errors import InputError, some
from cgc.evaluation.protocols.base import Benchmark, Reference, TrueMask, check_folder, folders, pictures

LAYOUT = "masks/TARGET/VIEW_mask.png, reference_image/TARGET/VIEW.JPG and scribbles/TARGET/pos_*.png, neg_*.png"
DEFINITION = "IoU and pixel accuracy in the target view of what scribbles in the reference view pick, mean over targets"


def read(root: Path) -> Benchmark:
    """Read the labels, in the folder itself or in labels/ or labels/llff/ of it. A target is a scene and its object."""
    check_folder(root, LAYOUT)
    places = [p for p in (root, root / "labels", root / "labels/llff", root / "llff") if (p / "masks").is_dir()]
    if not places or not folders(places[0] / "masks"):
        raise InputError(f"{root} has no masks/TARGET, nor has labels/ or labels/llff/ in it; expected {LAYOUT}")
    place = places[0]
    masks, references = [], []
    for folder in folders(place / "masks"):
        target = folder.name
        found = [p for p in pictures(folder) if p.stem.endswith("_mask")]
        shown = pictures(place / "reference_image" / target)
        scribbles = pictures(place / "scribbles" / target)
        positive = [p for p in scribbles if p.name.startswith("pos")]
        negative = [p for p in scribbles if p.name.startswith("neg")]
        parts = {
            f"masks/{target}/VIEW_mask.png": found,
            f"reference_image/{target}/VIEW.JPG": shown,
            f"scribbles/{target}/pos_*.png": positive,
            f"scribbles/{target}/neg_*.png": negative,
        }
        if lacking := [name for name, files in parts.items() if not files]:
            raise InputError(f"{place} lacks {some(lacking)}; expected {LAYOUT}: download that part again")
        if len(shown) > 1:
            raise InputError(
                f"{place / 'reference_image' / target} holds {some(p.name for p in shown)}, but scribbles are of one "
                "picture; leave that one there"
            )
        masks += [TrueMask(target, p.stem.removesuffix("_mask"), target, p) for p in found]
        references.append(Reference(target, shown[0].stem, target, tuple(positive), tuple(negative)))
    return Benchmark("nvos", DEFINITION, tuple(masks), tuple(references))
