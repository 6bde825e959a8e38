"""Score renders against photos."""

from __future__ import annotations

import numpy as np

from cgc.errors import InputError
from cgc.evaluation.pictures import load_lpips, lpips, psnr, ssim
from cgc.progress import progress_bar
from cgc.scoring.report import Report, rounded
from cgc.scoring.runs import ScoredRun


def report_pictures(run: ScoredRun) -> Report:
    """Score the run's renders against photos: those held back, or all where none is."""
    columns = ["view", "split", "psnr", "ssim", "lpips"]
    report = Report("pictures", "renders against photos, mean over views", {}, [], (columns, []), None, [])
    if run.stored:
        report.notes.append(f"{run.scene} has no photos, so pictures are not scored")
        return report
    network = None
    try:
        network = load_lpips()
    except InputError as error:
        report.notes.append(str(error))
        columns.remove("lpips")
    work, rows = run.work, []
    indices = run.test_views or list(range(len(run.views)))
    with progress_bar("pictures", len(indices), quiet=work.quiet) as bar:
        for index in indices:
            shown, photo = work.picture_and_photo(index, work.shown_splats)
            split = "test" if index in run.test_views else "train"
            row = {"view": run.stems[index], "split": split, "psnr": psnr(shown, photo), "ssim": ssim(shown, photo)}
            rows.append(row if network is None else row | {"lpips": lpips(shown, photo, network)})
            bar.advance()
    found = {name: float(np.mean([r[name] for r in rows])) for name in columns[2:]}
    if not run.test_views:
        report.notes.append("no view was held back: the pictures are of views that were learned from")
    report.summary = {"views": [r["view"] for r in rows], **rounded(found)}
    report.tables = [(("", f"{len(rows)} {rows[0]['split']} views"), [(k.upper(), v) for k, v in found.items()])]
    report.views = (columns, rows)
    return report
