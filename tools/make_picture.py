"""Make the README's picture from a finished run: `python tools/make_picture.py runs/demo docs/demo.jpg`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cgc.masks.id_maps import read_id_map
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import open_run
from cgc.scene.images import load_image
from cgc.segmentation.labels import render_rgb
from cgc.view.pictures import contact_sheet, overlay


def main(run: Path, out: Path) -> None:
    """Show three test views: the photo, the render, the segments."""
    work = Workspace(open_run(run), quiet=True)
    test = work.test_views
    rows = []
    for index in (test[1], test[len(test) // 2], test[-1]):
        view = work.scene.views[index]
        photo = load_image(view)
        shown = (255 * render_rgb(work.shown_splats, view.camera, work.rasterizer)).round().astype(np.uint8)
        rows += [photo, shown, overlay(photo, read_id_map(run / "masks" / f"{view.stem}.png"))]
    Image.fromarray(contact_sheet(rows, 3)).save(out, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
