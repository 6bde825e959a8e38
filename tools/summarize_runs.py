"""Print what finished runs measured as a Markdown table: `python tools/summarize_runs.py runs/demo runs/bonsai`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

STAGES = ("train", "lift", "cluster", "sharpen", "render", "export", "report")


def row(run: Path) -> list[str]:
    """One run as the cells of a row."""
    stats = json.loads((run / "stats.json").read_text())
    seconds = stats["seconds"]
    test = stats.get("psnr_test")
    scores = [stats.get(name) for name in ("miou_things", "boundary_iou", "pq")]
    return [
        run.name,
        f"{stats['gaussians']:,}",
        *[f"{seconds.get(stage, 0):.0f}" for stage in STAGES],
        f"{sum(seconds.values()):.0f}",
        f"{stats['peak_rss_bytes'] / 1e9:.1f}",
        f"{stats['psnr_train']:.2f}",
        f"{test:.2f}" if test is not None else "-",
        str(stats.get("segments", "-")),
        " / ".join(f"{s:.3f}" for s in scores if s is not None) or "-",
    ]


def main(runs: list[str]) -> None:
    """Print the table of the runs."""
    names = ["run", "Gaussians", *[f"{stage}, s" for stage in STAGES], "all, s", "peak, GB"]
    names += ["train PSNR", "test PSNR", "segments", "mIoU / bIoU / PQ"]
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for run in runs:
        print("| " + " | ".join(row(Path(run))) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
