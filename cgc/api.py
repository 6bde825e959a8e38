"""What `import cgc` offers: open a run, read cameras, go around an object."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from cgc.clustering.hierarchy import Hierarchy
from cgc.device import choose, rasterizer_for
from cgc.errors import InputError
from cgc.features.files import read_tensors
from cgc.files import read_arrays
from cgc.rasterize.base import NEAR, NEAR_OF_EXTENT, Rasterizer
from cgc.run_folder import CAMERAS, RunFolder, open_run
from cgc.scene.cameras import read_camera_file
from cgc.scene.types import Camera, Scene, View
from cgc.segmentation.context import Context
from cgc.segmentation.edit import MOVED, ORIGIN, track
from cgc.segmentation.saved import FACTS_FILE, load_saved, mend
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import follow, load_hierarchy, load_labels, load_sharpened, load_table
from cgc.splats.ply import read_ply


def load(path: Path | str, *, device: str = "auto", rasterizer: Rasterizer | None = None) -> Segmentation:
    """Open a run folder that is clustered, with the splats that it shows: sharpened where it has come that far.

    Or what `Segmentation.save` has left, which has the views of the run that it is from, while that is where it was, or
    lies as it did beside what was saved.
    The scene is not looked at until a view is asked for by name; where it is gone by then, the cameras that the run has
    kept serve. device: where pictures are made: auto, cpu, cuda or cuda:1; `rasterizer` is taken in its place.
    InputError where the folder is no run, is not clustered yet, or is broken, where its splats are not those that the
    labels are of, and where the device cannot be had.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"the folder of a run was expected, got {path!r}")
    if Path(path).is_file():
        raise InputError(f"{path} is a file where the folder of a run was expected; splats are loaded by `cgc run`")
    mend(Path(path))
    if (Path(path) / FACTS_FILE).is_file():
        return _load_saved(Path(path), device, rasterizer)
    run = open_run(Path(path))
    run.require("cluster")
    tree, features = load_hierarchy(run.root), _features(run)
    if features is not None:
        _check(run, "features", len(features), len(tree.leaves))
    sharpened = None
    if run.is_current("sharpen"):
        run.require("sharpen")
        for name in ("splats.ply", "sharpened.ply"):  # labels that are exported are of the first
            run.unchanged(name)
        sharpened = load_sharpened(run.root)
    n_original = len(tree.leaves)
    if sharpened is None:
        splats, (labels, confidences) = read_ply(run.unchanged("splats.ply")), load_labels(run.root)
        _check(run, "labels", len(labels), len(splats))
    else:
        splats, labels, confidences, origin = sharpened
        tree = follow(run.root, tree, sharpened)
        features = None if features is None else features[torch.from_numpy(origin)]
    splats = replace(splats, extras=_extras(run, n_original, None if sharpened is None else sharpened.origin))
    context = _context(run, rasterizer or _rasterizer(device, run.stats), tree, n_original)
    made = Segmentation(replace(splats, features=features), labels, confidences, tree, context=context)
    return track(made, None if sharpened is None else sharpened.origin)


def _rasterizer(device: str, facts: Mapping[str, Any]) -> Rasterizer:
    """The rasteriser of a device, with a near plane that suits the extent among what is known of a scene."""
    extent = facts.get("extent")
    near = NEAR_OF_EXTENT * extent if isinstance(extent, float) and extent > 0 else NEAR
    return rasterizer_for(choose(device)[0], near=near)


def _context(run: RunFolder, rasterizer: Rasterizer, tree: Hierarchy | None, n_original: int) -> Context:
    """What a run knows beside the Gaussians; its best views are those of the hierarchy `tree`."""
    beside = _Beside(run)
    return Context(
        rasterizer=rasterizer,
        folder=run.root,
        read_cameras=beside.cameras,
        read_photo=beside.photo,
        read_views=beside.views,
        read_best_views=beside.best_views,
        hierarchy=tree,
        background=torch.ones(3) if run.settings.train.background == "white" else None,
        blended=run.settings.cluster.masks != "labels",
        source={
            "run": str(run.root.resolve()),
            "fingerprint": _fingerprint(run),
            "n_original": n_original,
            "extent": run.stats.get("extent"),
            "origin": run.stats.get("origin"),
        },
        n_original=n_original,
    )


def _fingerprint(run: RunFolder) -> str:
    """Hash what a run's cameras are: the scene's, at which size, and where training has found that they were."""
    scene, poses = run.settings.scene, {}
    if run.settings.train.poses:
        poses = {name: found.viewmat.tolist() for name, found in run.corrections().items()}
    values = [run.source.scene_identity(), scene.downscale, scene.max_side, poses]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _load_saved(folder: Path, device: str, rasterizer: Rasterizer | None) -> Segmentation:
    """Open what was saved, with the views of its run where that is found; it is whole without them."""
    saved = load_saved(folder)
    rasterizer = rasterizer or _rasterizer(device, saved.source)
    source, n = dict(saved.source), saved.source.get("n_original")
    n_original = n if isinstance(n, int) and n > 0 else len(saved.segmentation.splats)
    context = Context(rasterizer=rasterizer, source=source, n_original=n_original)
    if isinstance(source.get("run"), str):
        try:
            run = _run_of(folder, source)
            here = source | {"run": str(run.root.resolve())}
            context = replace(_context(run, rasterizer, None, n_original), source=here)
        except InputError as lost:
            context = replace(context, read_cameras=partial(_refuse, str(lost)))
    return replace(saved.segmentation, context=replace(context, folder=folder, blended=source.get("blended") is True))


def _run_of(folder: Path, source: Mapping[str, Any]) -> RunFolder:
    """Find the run that something was saved from: where it lay, or where it lies as it did beside what was saved.

    It has the fingerprint that was kept; what older versions saved has none, and takes what is where its run lay.
    """
    known, wanted, beside = Path(source["run"]), source.get("fingerprint"), source.get("beside")
    places = [known, (folder.resolve() / beside).resolve()] if wanted and isinstance(beside, str) else [known]
    for place in places:
        with suppress(InputError):  # a run that is gone, or broken by now
            run = open_run(place)
            if not wanted or _fingerprint(run) == wanted:
                return run
    others = [place for place in places if (place / "config.json").is_file()]
    state = f"; {others[0]} has other cameras, or is broken" if others else ", which is not there"
    raise InputError(
        f"the views of {folder} are those of the run {known}{state}; put it back as it was, or save again from a run "
        "that is there"
    )


def _refuse(why: str) -> NoReturn:
    raise InputError(why)


def _extras(run: RunFolder, n: int, origin: np.ndarray | None) -> dict[str, np.ndarray]:
    """The attributes of a file that was given which are not a splat's, by what row of it each Gaussian is of."""
    if not (run.root / "extras.npz").exists():
        return {}
    try:
        extras = read_arrays(run.root / "extras.npz")
    except ValueError as error:
        raise InputError(f"{run.root / 'extras.npz'} is broken ({error}); run `cgc train {run.root}` again") from error
    for name, values in extras.items():
        _check(run, f"values of {name!r}", len(np.atleast_1d(values)), n)
    rows = slice(None) if origin is None else origin
    return {name: values[rows] for name, values in extras.items() if name not in (ORIGIN, MOVED)}


def _features(run: RunFolder) -> torch.Tensor | None:
    """The features of the Gaussians as trained, [N, D]; None where none were learned."""
    path = run.root / "features.safetensors"
    features = read_tensors(path, f"run `cgc lift {run.root}` again", "features")["features"]
    return features if features.ndim == 2 and features.shape[1] else None


def _check(run: RunFolder, what: str, n: int, gaussians: int) -> None:
    if n != gaussians:
        raise InputError(
            f"{run.root} has {what} of {n:,} Gaussians for {gaussians:,}: they are of different trainings; "
            "do its steps again with `cgc run`"
        )


class _Beside:
    """What a run knows of its views; the scene is read once, when it is first needed."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    @cached_property
    def scene(self) -> Scene:
        """The scene, checked to be the one the run was made from, its cameras where training has found them."""
        from cgc.scene.corrections import corrected

        return corrected(self.run.read_scene(quiet=True), self.run.corrections())

    def cameras(self) -> dict[str, Camera]:
        """The views' cameras: those the run has kept; else the scene's; else its model's, where the photos are gone."""
        kept = self.run.root / CAMERAS
        if self.run.is_current("render") and kept.exists():
            return read_camera_file(kept)
        try:
            return {view.name: view.camera for view in self.scene.views}
        except InputError as gone:
            if self.run.is_done("train") and not self.run.corrects_photos and kept.exists():
                return read_camera_file(kept)  # labels have changed since, cameras have not
            return self._cameras_of_model(gone)

    def _cameras_of_model(self, gone: InputError) -> dict[str, Camera]:
        from cgc.scene.corrections import corrected_cameras
        from cgc.scene.read import model_hashes, read_cameras

        run, facts = self.run, self.run.source.fingerprint
        try:
            if model_hashes(run.source.scene) == facts.get("model"):
                sizes = {str(name): (int(w), int(h)) for name, w, h in facts["images"]}
                return corrected_cameras(read_cameras(run.source.scene, run.settings.scene, sizes), run.corrections())
        except (InputError, KeyError, TypeError, ValueError):
            pass  # what is wrong with the scene says more
        raise InputError(
            f"the views of {run.root} have no cameras any more ({gone}); restore the scene, or give a Camera in place "
            "of a view's name (Camera.look_at, cgc.orbit, or cgc.cameras of a COLMAP model)"
        ) from gone

    def photo(self, name: str) -> np.ndarray | None:
        """A view's photo at its camera's size; None where it is gone."""
        from cgc.scene.images import load_image

        try:
            return next((load_image(view) for view in self.scene.views if view.name == name), None)
        except InputError:
            return None

    def views(self) -> dict[str, View]:
        """The views by name; InputError where the scene is gone."""
        return {view.name: view for view in self.scene.views}

    def best_views(self) -> dict[int, str]:
        """The view that shows most of each object, where the run has rendered them."""
        if not (self.run.is_current("render") and (self.run.root / "segments.json").exists()):
            return {}
        return {s.id: s.best_view for s in load_table(self.run.root)}


def cameras(path: Path | str) -> dict[str, Camera]:
    """Read the cameras of a COLMAP model (its folder, "sparse/0"), of a scene, or of a file that a run has kept.

    They are called as their photos are, which need not be there; distorted lenses give their undistorted twins.
    """
    from cgc.scene.read import read_cameras

    return read_camera_file(Path(path)) if Path(path).is_file() else read_cameras(path)
