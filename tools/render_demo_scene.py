#!/usr/bin/env python3
"""Make the bundled demo scene: photos, exact instance truth, a COLMAP model and flawed masks.

Steps, in this order (each can be run again on its own):

  render   path-trace the photos with Cycles (needs bpy; finished photos are kept)
  truth    cast rays for instance/, instances.json, points.npz, sparse_true/ (needs bpy and the photos)
  sfm      COLMAP model from the photos, aligned to the true frame (needs pycolmap)
  masks    masks/ from instance/ (needs scipy)

Setting up:

  pip install bpy numpy pillow scipy pycolmap     # bpy wants one Python version, see its page
  apt-get install sweethome3d-furniture           # or unpack the package and give --furniture

Run:

  python tools/render_demo_scene.py --out data/demo --seed 0 [--steps render truth sfm masks]

Other scenes to measure by, a garden under an open sky, a shelf seen from the front, a room seen from inside, a street:

  python tools/render_demo_scene.py --scene garden --out garden --work garden_work

The same photos without some things, to check what a segmentation leaves of them (see check_removal.py):

  python tools/render_demo_scene.py --out demo_without --steps render --views 0 20 36 --without 34
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
from demo_scene.cameras import Pinhole, View, garden, lounge, orbit, shelf, street, write_text_model
from PIL import Image

STEPS = ("render", "truth", "sfm", "masks")
NEEDS = {"truth": [("images", "render")], "sfm": [("images", "render")],
         "masks": [("instances.json", "truth"), ("instance", "truth")]}  # fmt: skip
"""What a step reads of --out, and the step that makes it."""
TABLE_HEIGHT = 0.74
SCENES = {
    "demo": (Pinhole(400, 300, 380.0), lambda seed: orbit(seed, TABLE_HEIGHT)),
    "garden": (Pinhole(400, 300, 340.0), garden),
    "shelf": (Pinhole(400, 300, 330.0), shelf),
    "lounge": (Pinhole(400, 300, 270.0), lounge),
    "street": (Pinhole(400, 300, 330.0), street),
}
"""Each scene's camera, and where it is placed."""
SUFFIX = ".jpg"
FURNITURE = Path("/usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f")


def _build(args: argparse.Namespace) -> list:
    """Build the scene in Blender and give its instances."""
    from demo_scene.others import build_garden, build_lounge, build_shelf, build_street
    from demo_scene.scene import build_demo, build_scene

    fill = {"demo": build_demo, "garden": build_garden, "shelf": build_shelf, "lounge": build_lounge,
            "street": build_street}[args.scene]  # fmt: skip
    return build_scene(args.seed, args.furniture, fill)


def render(args: argparse.Namespace, views: list[View]) -> None:
    """Render the photos into the work folder and publish them as JPEGs."""
    from demo_scene import render as cycles

    folder = args.work / ("photos" + "".join(f"_without_{ident}" for ident in sorted(args.without)))
    folder.mkdir(parents=True, exist_ok=True)
    missing = [view for view in views if not (folder / f"{view.stem}.png").exists()]
    if missing:
        _build(args)
        cycles.hide(args.without)
        eye = cycles.prepare_cycles(SCENES[args.scene][0], args.samples, args.threads)
    for view in missing:
        start = time.perf_counter()
        cycles.render_view(eye, view, folder / f"{view.stem}.png")
        print(f"photo {view.stem}: {time.perf_counter() - start:.1f} s", flush=True)
    images = args.out / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    for view in views:
        photo = Image.open(folder / f"{view.stem}.png").convert("RGB")
        photo.save(images / f"{view.stem}{SUFFIX}", quality=95, subsampling=0, optimize=True)


def truth(args: argparse.Namespace, views: list[View]) -> None:
    """Cast rays for the instance maps, then write them with the table, the points and the true cameras."""
    from demo_scene import render as cycles
    from demo_scene import truth as writer

    items, camera = _build(args), SCENES[args.scene][0]
    soup = cycles.triangles()
    tree = cycles.ray_tree(soup)
    casts = [cycles.cast_view(tree, soup, view, camera) for view in views]
    maps, depths = (np.stack(part) for part in zip(*casts, strict=True))
    shutil.rmtree(args.out / "instance", ignore_errors=True)
    for view, ids in zip(views, maps, strict=True):
        writer.write_ids(args.out / "instance" / f"{view.stem}.png", ids)
    writer.write_table(args.out / "instances.json", writer.instances_table(args.scene, items, maps))
    photos = [np.asarray(Image.open(args.out / "images" / f"{v.stem}{SUFFIX}")) for v in views]
    xyz, ids = cycles.sample_surface(soup, args.points, args.points // 120, args.seed)
    rgb, seen = writer.colour_points(xyz, views, camera, photos, depths)
    np.savez_compressed(args.out / "points.npz", xyz=xyz, rgb=rgb, instance=ids, n_views=seen)
    pick = np.random.default_rng([args.seed, 4]).permutation(np.flatnonzero(seen))[:2000]
    write_text_model(args.out / "sparse_true" / "0", camera, views, SUFFIX, xyz[pick], rgb[pick])


def sfm(args: argparse.Namespace, views: list[View]) -> None:
    """Compute the COLMAP model from the published photos and print how far its cameras are from the truth."""
    from demo_scene.sfm import solve

    camera = SCENES[args.scene][0]
    figures = solve(args.out / "images", camera, views, args.work / "sfm", args.out / "sparse" / "0", args.seed)
    print(json.dumps(figures, indent=1))


def masks(args: argparse.Namespace, views: list[View]) -> None:
    """Write the flawed masks of every view."""
    from demo_scene.noisy import noisy_masks
    from demo_scene.truth import write_ids

    table = json.loads((args.out / "instances.json").read_text())
    parents = {row["id"]: row["parent"] for row in table["instances"] if row["parent"] is not None}
    shutil.rmtree(args.out / "masks", ignore_errors=True)
    for k, view in enumerate(views):
        ids = np.asarray(Image.open(args.out / "instance" / f"{view.stem}.png"))
        flawed = noisy_masks(ids, parents, set(table["stuff_ids"]), args.seed * 1000 + k)
        write_ids(args.out / "masks" / f"{view.stem}.png", flawed)


def main() -> None:
    """Read the command line and run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=list(SCENES), default="demo")
    parser.add_argument("--out", type=Path, default=Path("data/demo"))
    parser.add_argument("--work", type=Path, default=Path("demo_work"), help="rendered PNGs, COLMAP database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--samples", type=int, default=8, help="paths per pixel, before denoising")
    parser.add_argument("--threads", type=int, default=0, help="render threads, 0 = all")
    parser.add_argument("--points", type=int, default=90000, help="surface samples in points.npz")
    parser.add_argument("--furniture", type=Path, default=FURNITURE, help="BlendSwap-CC-0.sh3f")
    parser.add_argument("--views", type=int, nargs="+", help="indices of the photos to make, by default all")
    parser.add_argument("--without", type=int, nargs="+", default=[], help="instance ids to leave out of the photos")
    args = parser.parse_args()
    if args.without and args.steps != ["render"]:
        parser.error("photos without some things have no truth: add --steps render")
    views = SCENES[args.scene][1](args.seed)
    views = views if args.views is None else [views[k] for k in args.views]
    args.out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if step in args.steps:
            for name, maker in NEEDS.get(step, []):
                if not (args.out / name).exists():
                    parser.error(f"step {step} reads {args.out / name}, which is missing; make it with --steps {maker}")
            {"render": render, "truth": truth, "sfm": sfm, "masks": masks}[step](args, views)


if __name__ == "__main__":
    main()
