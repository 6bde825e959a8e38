"""3D-OVS (arXiv 2305.14093): SCENE/segmentations/VIEW/CLASS.png and segmentations/classes.txt."""

from __future__ import annotations

from pathlib import Path

from cgc.errors import InputError, some
from cgc.evaluation.protocols.base import Benchmark, TrueMask, find_scenes, folders, pictures
from cgc.files import read_text

LAYOUT = "SCENE/segmentations/VIEW/CLASS.png and SCENE/segmentations/classes.txt"
DEFINITION = "IoU, mean over all classes and views of a scene, then scenes"


def read(root: Path) -> Benchmark:
    """Read the truth of one scene or of several. VIEW is a view's name, or its number among the images by name."""
    masks, orders = [], {}
    for scene, folder in find_scenes(root, "segmentations", LAYOUT).items():
        truth = folder / "segmentations"
        try:
            lines = read_text(truth / "classes.txt").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{truth / 'classes.txt'} cannot be read ({error}); expected {LAYOUT}") from error
        classes, views = list(dict.fromkeys(line.strip() for line in lines if line.strip())), folders(truth)
        if not classes or not views:
            raise InputError(f"{truth} has {len(classes)} classes and {len(views)} views; expected {LAYOUT}")
        own = [TrueMask(scene, v.name, c, v / f"{c}.png") for v in views for c in classes]
        if missing := [m.path for m in own if not m.path.is_file()]:
            raise InputError(
                f"{len(missing)} of the {len(own)} masks that {truth / 'classes.txt'} asks for are missing: "
                f"{some(missing)}; download that part again"
            )
        masks += own
        orders[scene] = tuple(p.stem for p in pictures(folder / "images"))
    return Benchmark("3d-ovs", DEFINITION, tuple(masks), orders=orders)
