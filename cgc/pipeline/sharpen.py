"""The step `sharpen`: borders of objects where the masks have them."""

from __future__ import annotations

import time
from dataclasses import replace

from cgc.pipeline.facts import say_sharpened
from cgc.pipeline.workspace import Workspace
from cgc.scene.images import load_image
from cgc.segmentation.segments import SharpenedSplats, load_labels, save_sharpened
from cgc.segmentation.sharpen import sharpen


def sharpen_borders(work: Workspace) -> str:
    """Split and move Gaussians that show in two objects; writes sharpened.ply and sharpened.npz."""
    start = time.perf_counter()
    run, settings = work.run, work.run.settings.sharpen
    run.require("cluster")
    found, said, facts = None, "off: the splats stay as they are", None
    if settings.steps:
        work.check_masks()
        labels, _ = load_labels(run.root)
        training = run.settings.train
        if run.source.splats and training.background == "random":  # trained elsewhere, on black as a rule
            training = replace(training, background="black")
        found = sharpen(
            work.splats.to(work.device), labels, work.scene, work.train_id_maps(), load_image, work.rasterizer,
            settings, training, test_every=run.settings.scene.test_every, quiet=work.quiet,
        )  # fmt: skip
        kept = found.loses <= settings.max_loss
        facts = {
            "used": kept, "split": len(found.splats) - len(work.splats), "gaussians": len(found.splats),
            "psnr_before": round(found.before, 4), "psnr_after": round(found.after, 4),
        }  # fmt: skip
        said = say_sharpened(facts) + (f": {run.root / 'sharpened.ply'}" if kept else "")
        found = found if kept else None
    made = found and SharpenedSplats(found.splats.to("cpu"), found.labels, found.confidences, found.origin)
    save_sharpened(run.root, made)
    work.sharpened = made
    run.finish("sharpen", time.perf_counter() - start, sharpened=facts)
    return said
