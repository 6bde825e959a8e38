"""Masks of a run's own, where nobody gave any and no model makes them: regions by colours and by the splats' depth."""

from __future__ import annotations

import numpy as np

from cgc.masks.generate import is_finished, make_together
from cgc.masks.generators import Regions
from cgc.masks.regions import PRESETS
from cgc.pipeline.workspace import Workspace
from cgc.rasterize.base import device_of
from cgc.run_folder import OWN_MASKS
from cgc.scene.types import View
from cgc.segmentation.pictures import render_depths


def make_regions(work: Workspace) -> None:
    """Make the masks of a run that has none but its own; what was made of these splats is kept.

    In blocks, where not all Gaussians are held at once, masks stay as they are, or are of colours alone.
    """
    run, views, folder = work.run, work.scene.views, work.run.root / OWN_MASKS
    work.forget("masks")
    if run.is_cut:
        if not is_finished(folder, views):
            make_together(views, Regions(PRESETS["default"]), folder, overwrite=True, quiet=work.quiet).check()
        return
    splats = work.splats.to(device_of(work.rasterizer))

    def depth_of(view: View) -> np.ndarray:
        return render_depths(splats, [view.camera], work.rasterizer)[0]

    recipe = Regions(PRESETS["default"], splats=str(run.stats.get("splats_sha256", ""))[:16])
    make_together(views, recipe, folder, overwrite=True, depth_of=depth_of, quiet=work.quiet).check()
