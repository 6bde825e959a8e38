"""What the numbers of a run say, for the report and the terminal: key numbers, warnings, tables."""

from __future__ import annotations

from typing import Any

from cgc.view.report import Table

UNEVEN = 0.015
"""Photos that differ in brightness by more are said to; where all are exposed alike it is a tenth of it."""

ALIEN = 15.0
"""dB under which splats that were given are of another scene or frame."""

FITTED = 30.0
"""dB from which training views are fitted so well that neither their cameras nor their exposures can be far off."""


def headline(stats: dict[str, Any]) -> dict[str, str]:
    """The key numbers of a run, the most telling first."""
    facts = {}
    for name, label in (
        ("miou_things", "Things mIoU"),
        ("boundary_iou", "Boundary IoU"),
        ("pq", "Panoptic quality"),
    ):
        if stats.get(name) is not None:
            facts[label] = f"{stats[name]:.3f}"
    if stats.get("psnr_test") is not None:
        facts["Test PSNR"] = f"{stats['psnr_test']:.2f} dB"
        facts["Test SSIM"] = f"{stats['ssim_test']:.3f}"
    elif stats.get("psnr_train") is not None:
        facts["Train PSNR"] = f"{stats['psnr_train']:.2f} dB"
    if stats.get("exposures"):
        facts["Exposures"] = "{:.2f} to {:.2f}".format(*stats["exposures"])
    if stats.get("moved"):
        facts["Cameras moved"] = "{:.2f} px".format(stats["moved"][0])
    sharpened = stats.get("sharpened") or {}
    gaussians = sharpened.get("gaussians") if sharpened.get("used") else stats.get("gaussians")
    for label, count in (("Segments", stats.get("segments")), ("Gaussians", gaussians)):
        if count is not None:
            facts[label] = f"{count:,}"
    if stats.get("seconds"):
        facts["Time"] = f"{sum(stats['seconds'].values()):.0f} s"
    if stats.get("peak_rss_bytes"):
        facts["Peak memory"] = f"{stats['peak_rss_bytes'] / 1e9:.1f} GB"
    return facts


def find_warnings(stats: dict[str, Any]) -> list[str]:
    """What the numbers say went wrong, in sentences."""
    said = []
    train_psnr, test_psnr = stats.get("psnr_train"), stats.get("psnr_test")
    if stats.get("given") and train_psnr and train_psnr < ALIEN:
        said.append(
            f"The splats that were given do not show what the photos show ({train_psnr:.1f} dB): they may be of "
            "another scene, or moved, turned or scaled against its cameras. Give the cameras that they were trained "
            "with (some trainers export splats in a frame of their own, nerfstudio with a dataparser_transforms.json "
            "beside them)."
        )
        return said
    if train_psnr and test_psnr and test_psnr < train_psnr - 5:
        causes, ill_fitted = [], train_psnr < FITTED
        if ill_fitted and not stats.get("moved"):
            learn = "run structure-from-motion again with more features, or learn where they were: --train.poses"
            causes.append(f"the cameras may be off ({learn}), ")
        if ill_fitted and not stats.get("exposures"):
            causes.append("photos may be exposed differently (--train.exposure), ")
        said.append(
            f"Views that were held back are rendered {train_psnr - test_psnr:.1f} dB worse than those learned from: "
            f"{''.join(causes)}{'or ' if causes else ''}there are too few photos of what they show."
        )
    uneven = stats.get("uneven")
    if uneven and uneven > UNEVEN and not stats.get("exposures"):
        said.append(
            f"Photos differ in brightness from their pictures, by {uneven:.1%} in the mean: they were exposed "
            "differently. Splats that are trained with --train.exposure know how each was."
        )
    sharpened = stats.get("sharpened")
    if sharpened and not sharpened["used"]:
        said.append(f"Borders were not sharpened: {say_sharpened(sharpened)} (see max_loss).")
    noise, gaussians = stats.get("noise"), stats.get("gaussians")
    if noise and gaussians and noise > 0.5 * gaussians:
        said.append(
            f"{noise / gaussians:.0%} of the Gaussians belong to no segment: no mask sees them. "
            "More views with masks would."
        )
    return said


def say_corrections(facts: dict[str, Any]) -> list[str]:
    """What training found of the photos, from what stats.json has of it."""
    said = []
    if facts.get("exposures"):
        said.append("photos are {:.2f} to {:.2f} times as bright as the splats".format(*facts["exposures"]))
    if facts.get("moved"):
        said.append("cameras were moved by {:.2f} pixels, {:.2f} at most".format(*facts["moved"]))
    return said


def say_sharpened(facts: dict[str, Any]) -> str:
    """What sharpening did, from what stats.json has of it."""
    before, after = facts["psnr_before"], facts["psnr_after"]
    change = f"training views {before:.2f} -> {after:.2f} dB"
    if not facts["used"]:
        return f"sharpening would cost too much of the pictures ({change}): the splats stay as they are"
    return f"{facts['split']:,} Gaussians split, all moved ({change})"


def truth_table(stats: dict[str, Any]) -> list[Table]:
    """A row a true thing, the best found first; no table where there is no truth."""
    rows = stats.get("instances")
    if not rows:
        return []
    body = tuple(
        (r["name"], r["predicted"] or None, round(r["iou"], 3), round(r["boundary_iou"], 3), r["pixels"])
        for r in sorted(rows, key=lambda r: -r["iou"])
    )
    return [Table("Scored against truth", ("Thing", "Segment", "IoU", "Boundary IoU", "True pixels"), body)]
