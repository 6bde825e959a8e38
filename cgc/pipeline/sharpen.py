"""The step `sharpen`: borders of objects where the masks have them."""

from __future__ import annotations

import time
from dataclasses import replace

from cgc.files import sha256
from cgc.pipeline.facts import say_sharpened
from cgc.pipeline.workspace import Workspace
from cgc.scene.images import load_view
from cgc.segmentation.segments import SharpenedSplats, load_labels, save_sharpened
from cgc.segmentation.sharpen import Sharpened, sharpen
from cgc.settings import SharpenSettings

GENTLER = 0.25  # times the rates: once more, where pictures would lose too much


def sharpen_borders(work: Workspace) -> str:
    """Split and move Gaussians that show in two objects; writes sharpened.ply and sharpened.npz.

    Where pictures would lose too much, it is tried once more, gently.
    """
    start = time.perf_counter()
    run, settings = work.run, work.run.settings.sharpen
    run.require("cluster")
    found, said, facts = None, "off: the splats stay as they are", None
    if settings.steps:
        work.check_masks()
        rate, found = settings.rate, _sharpen(work, settings)
        if found.loses > settings.max_loss:
            rate *= GENTLER
            found = _sharpen(work, replace(settings, rate=rate))
        kept = found.loses <= settings.max_loss
        facts = {
            "used": kept, "rate": rate, "split": len(found.splats) - len(work.splats), "gaussians": len(found.splats),
            "psnr_before": round(found.before, 4), "psnr_after": round(found.after, 4),
        }  # fmt: skip
        said = say_sharpened(facts) + (f": {run.root / 'sharpened.ply'}" if kept else "")
        found = found if kept else None
    made = found and SharpenedSplats(found.splats.to("cpu"), found.labels, found.confidences, found.origin)
    with run.changing("sharpen"):
        save_sharpened(run.root, made)
    work.sharpened = made
    hashed = sha256(run.root / "sharpened.ply") if made else None
    run.finish("sharpen", time.perf_counter() - start, sharpened=facts, sharpened_sha256=hashed)
    return said


def _sharpen(work: Workspace, settings: SharpenSettings) -> Sharpened:
    """Sharpen the run's splats; the pictures may have lost more than is allowed."""
    run = work.run
    training = run.settings.train
    if run.source.splats and training.background == "random":  # trained elsewhere, on black as a rule
        training = replace(training, background="black")
    return sharpen(
        work.splats.to(work.device), load_labels(run.root)[0], work.scene, work.train_id_maps(), load_view,
        work.rasterizer, settings, training, test_every=run.settings.scene.test_every, exposures=work.exposures,
        quiet=work.quiet,
    )  # fmt: skip
