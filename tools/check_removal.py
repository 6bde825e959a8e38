#!/usr/bin/env python3
"""Check what removing an object leaves of it, against photos of the same scene without it.

  python tools/check_removal.py runs/demo 15 --without demo_without/images

For each photo it prints root mean square errors, 0 to 255, over the pixels that the object filled ("inside") and over
those up to ten pixels around it ("ring"): of the render before, against the photo with the object; of the render
without it, its halo left and removed, against the photo without it; and how much the object's shadow changes the ring,
which no removal undoes. "Step" is how much the mean colour inside differs from that of the ring otherwise than in the
photo without it: by that a filled place stands out. --pictures DIR writes the four pictures side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from cgc.pipeline.workspace import Workspace
from cgc.run_folder import open_run
from cgc.scene.images import load_image
from cgc.segmentation.edit import remove
from cgc.segmentation.labels import render_rgb


def error(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Root mean square difference of two pictures over some pixels."""
    return float(np.sqrt(((a.astype(float) - b)[where] ** 2).mean()))


def step(a: np.ndarray, b: np.ndarray, inside: np.ndarray, ring: np.ndarray) -> float:
    """How differently the mean colours of two places differ in two pictures, root mean square."""
    off = a.astype(float) - b
    return float(np.sqrt(((off[inside].mean(0) - off[ring].mean(0)) ** 2).mean()))


def main() -> None:
    """Read the command line, remove the object and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("segment", type=int, help="id of the object to remove")
    parser.add_argument("--without", type=Path, required=True, help="photos without the object, named like the views")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    work = Workspace(open_run(args.run))
    scene, rasterizer = work.segmentation(), work.rasterizer
    cameras = [view.camera for view in work.scene.views]
    plain = remove(scene, args.segment, halo=False)
    clean = remove(scene, args.segment, rasterizer=rasterizer, cameras=cameras)
    own = torch.from_numpy(scene.hierarchy.holds(args.segment)[:, None].astype(np.float32))
    print("view       pixels |  inside: before  plain  clean |  ring: before  shadow  plain  clean | step: clean")
    for view in work.scene.views:
        found = sorted(args.without.glob(f"{view.stem}.*"))
        if not found:
            continue
        without = np.asarray(Image.open(found[0]).convert("RGB"))
        share = rasterizer.render(scene.splats, own, [view.camera]).values[0, ..., 0].numpy()
        inside = np.asarray(ndimage.binary_dilation(share > 0.5, iterations=2), bool)
        ring = ndimage.binary_dilation(inside, iterations=8) & ~inside
        if not inside.any():
            continue
        photo = load_image(view)
        before, left, made = (
            (255 * render_rgb(s.splats, view.camera, rasterizer, work.background)).round().astype(np.uint8)
            for s in (scene, plain, clean)
        )
        print(
            f"{view.stem:<10} {inside.sum():>6} | {error(before, photo, inside):>15.1f} "
            f"{error(left, without, inside):>6.1f} {error(made, without, inside):>6.1f} | "
            f"{error(before, photo, ring):>13.1f} {error(photo, without, ring):>7.1f} "
            f"{error(left, without, ring):>6.1f} {error(made, without, ring):>6.1f} | "
            f"{step(made, without, inside, ring):>11.1f}"
        )
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.hstack([photo, without, left, made])).save(args.pictures / f"{view.stem}.png")


if __name__ == "__main__":
    main()
