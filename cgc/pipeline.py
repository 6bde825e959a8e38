"""The steps of a run in order, each on a run folder and each rerunnable alone.

A `Workspace` is an opened run with what steps share (photos, splats, sampled weights), loaded when first needed and
kept while the steps of one command run. Test views' photos and masks are read for measuring only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.sparse import csr_matrix

from cgc import kernels, parallel
from cgc.appearance.trainer import train as train_splats
from cgc.blocks.cut import check_size
from cgc.blocks.steps import Blocks, cluster_blocks, lift_blocks
from cgc.clustering.cluster import Clustering, Space, cluster, cluster_ids, cluster_masks
from cgc.clustering.columns import Columns, mask_columns, side_by_side, with_wholes
from cgc.clustering.settle import Look, look_at
from cgc.clustering.vote import NOISE
from cgc.device import Lever, choose, out_of_memory, rasterizer_for
from cgc.errors import InputError
from cgc.evaluation.instances import InstanceScores, score_instances
from cgc.evaluation.pictures import psnr, ssim
from cgc.evaluation.truth import Truth, read_truth
from cgc.features.files import read_tensors
from cgc.features.frozen import learn_features, nearest_neighbours, smooth_features
from cgc.features.joint import JointFeatures, learn_rasterised
from cgc.features.lifting import vote_ids
from cgc.features.samples import Batch, Elsewhere, held, sample_batches, visible_mass
from cgc.files import sha256, write_beside
from cgc.masks.id_maps import MaskSet, disagree, read_id_map, read_mask_folder, resize_nearest, write_id_map
from cgc.neighbours import nearest_in
from cgc.progress import console, progress_bar, short_time
from cgc.rasterize.base import NEAR_OF_EXTENT, Rasterizer, device_of
from cgc.run_folder import CAMERAS, STEPS, TRAINED_FEATURES, RunFolder, Source, create_run, open_run
from cgc.scene.cameras import write_cameras
from cgc.scene.images import check_images, load_image
from cgc.scene.read import fingerprint, read_scene
from cgc.scene.types import Camera, Scene
from cgc.segmentation.labels import LabelPicture, render_blended, render_levels, render_rgb
from cgc.segmentation.segments import (
    Node,
    Segment,
    Segmentation,
    SharpenedSplats,
    describe,
    describe_nodes,
    export_segments,
    load_hierarchy,
    load_labels,
    load_nodes,
    load_sharpened,
    load_table,
    save_labels,
    save_sharpened,
    save_table,
)
from cgc.segmentation.sharpen import sharpen
from cgc.settings import RunSettings, check, to_json
from cgc.splats.mapped import MappedSplats
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.types import Splats
from cgc.view.pictures import mark, overlay
from cgc.view.report import (
    ReportData,
    ReportDispute,
    ReportLevel,
    ReportObject,
    ReportView,
    SegmentRow,
    Table,
    ViewScore,
    write_report,
)


class Workspace:
    """An opened run and what its steps share."""

    def __init__(
        self, run: RunFolder, *, quiet: bool = False, scene: Scene | None = None, device: str = "auto"
    ) -> None:
        self.run = run
        self.quiet = quiet
        self.asked_device = device
        if scene is not None:
            self.scene = scene

    @cached_property
    def device(self) -> torch.device:
        """Where to compute, chosen when it is first needed; says which and why."""
        found, why = choose(self.asked_device, self.say)
        self.say(why)
        return found

    @cached_property
    def scene(self) -> Scene:
        """The scene, checked to be the one the run was made from."""
        return self.run.read_scene(quiet=self.quiet)

    @cached_property
    def rasterizer(self) -> Rasterizer:
        """What makes the pictures, with a near plane that suits the scene's unit of length."""
        return rasterizer_for(self.device, near=NEAR_OF_EXTENT * self.scene.extent)

    @property
    def train_views(self) -> list[int]:
        """Indices of the views that are learned from."""
        return self.scene.split(self.run.settings.scene.test_every)[0]

    @property
    def test_views(self) -> list[int]:
        """Indices of the views held back."""
        return self.scene.split(self.run.settings.scene.test_every)[1]

    @cached_property
    def masks(self) -> MaskSet:
        """The id maps of the views."""
        if not self.run.source.masks:
            raise InputError(
                f"{self.run.root} has no masks: features are learned from id maps, one PNG a view; "
                "give their folder with --masks DIR"
            )
        return read_mask_folder(Path(self.run.source.masks), self.scene.views)

    def train_id_maps(self) -> dict[int, np.ndarray]:
        """The id maps [H, W] of the training views that have one."""
        return {i: self.masks.load(i) for i in self.train_views if self.masks.paths[i]}

    @property
    def method(self) -> str:
        """How features or labels come about: what the settings say, or for `auto` what the masks allow."""
        method = self.run.settings.lift.method
        if method != "auto":
            return method
        return "vote" if self.masks.tracked else "contrast"

    @cached_property
    def truth(self) -> Truth | None:
        """The true id maps of the test views, where the scene has them (instance/ and instances.json)."""
        root, names = Path(self.run.source.scene), self.picture_names
        if not self.test_views or not (root / "instances.json").exists() or not (root / "instance").is_dir():
            return None
        return read_truth(root, [names[i] for i in self.test_views])

    @cached_property
    def picture_names(self) -> list[str]:
        """What each view's pictures are called: its stem, or its whole name where two views share a stem."""
        stems = [view.stem for view in self.scene.views]
        return stems if len(set(stems)) == len(stems) else [view.name for view in self.scene.views]

    @cached_property
    def splats(self) -> Splats:
        """The run's splats."""
        self.run.require("train")
        return read_ply(self.run.root / "splats.ply")

    @cached_property
    def batches(self) -> list[Batch | Elsewhere]:
        """Sampled pixels of the training views and the weights behind them; the same for the same settings."""
        views = self.scene.views
        held_back = set(self.test_views)
        id_maps = [None if i in held_back else self.masks.load(i) for i in range(len(views))]
        return sample_batches(
            self.splats,
            [v.camera for v in views],
            id_maps,
            self.rasterizer,
            self.run.settings.lift,
            quiet=self.quiet,
        )

    @property
    def blocks(self) -> Blocks | None:
        """The blocks in which this run is lifted and clustered; None where it is not cut."""
        run = self.run
        if not run.is_cut:
            return None
        if self.method in ("joint", "vote"):
            raise InputError(
                f"lift.method is {self.method}, which does not go block by block; choose contrast or graph, or "
                "--blocks.gaussians 0"
            )
        return Blocks(run.root / "blocks", run.root / "splats.ply", run.settings.blocks, run.key("train"))

    def looks(self) -> Iterator[Look]:
        """Evenly spread pixels of each training view that has masks, and the weights behind them."""
        cameras, least = [v.camera for v in self.scene.views], self.run.settings.lift.min_weight
        return look_at(self.splats, cameras, self.train_id_maps(), self.rasterizer, least)

    @cached_property
    def neighbours(self) -> torch.Tensor:
        """The true nearest neighbours of each Gaussian, where the rasteriser works."""
        means = self.splats.means.to(device_of(self.rasterizer))
        return nearest_neighbours(means, self.run.settings.lift.neighbours)

    @property
    def background(self) -> torch.Tensor | None:
        """What shows where nothing is, as in training; None is black."""
        return torch.ones(3) if self.run.settings.train.background == "white" else None

    @cached_property
    def sharpened(self) -> SharpenedSplats | None:
        """The splats, labels and confidences that sharpening left, and their origins; None: it changed nothing."""
        self.run.require("sharpen")
        return load_sharpened(self.run.root)

    @property
    def shown_splats(self) -> Splats:
        """The splats that pictures are made of: sharpened where the run has come that far."""
        sharpened = self.sharpened if self.run.is_done("sharpen") else None
        return sharpened.splats if sharpened else self.splats

    def segmentation(self) -> Segmentation:
        """The run's splats with their labels and hierarchy, sharpened where that was of use."""
        self.run.require("sharpen")
        tree = load_hierarchy(self.run.root)
        if self.sharpened is None:
            return Segmentation(self.splats, *load_labels(self.run.root), tree)
        splats, labels, confidences, origin = self.sharpened
        return Segmentation(splats, labels, confidences, tree.follow(origin, labels))

    @property
    def has_levels(self) -> bool:
        """Say whether id maps can be made at any level of the hierarchy; blended features show the objects only."""
        return self.run.settings.cluster.masks == "labels"

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            console.print(text)

    def meet(self) -> None:
        """Make sure that all processes are about to do the same; what the scene needs is made once."""
        if parallel.here()[1] > 1:
            with parallel.first_before_others():
                scene = self.scene
                _ = self.device  # what has to be built for it is built once
            identity = replace(self.run.source, fingerprint=fingerprint(scene)).scene_identity()
            parallel.check_same(settings=_short_hash(to_json(self.run.settings)), scene=_short_hash(identity))

    def do(self, step: str) -> str:
        """Do a step and return what is to be said of it: in all processes, or in the first while the others wait."""
        with out_of_memory(step, lambda: self._levers(step)):
            return self._do(step)

    def _levers(self, step: str) -> list[Lever]:
        """What a step's memory grows with, on a GPU."""
        own = {
            "train": Lever("--train.max-gaussians", self.run.settings.train.max_gaussians),
            "lift": Lever("--lift.pixels-per-view", self.run.settings.lift.pixels_per_view),
        }
        side = max(max(view.camera.width, view.camera.height) for view in self.scene.views)
        return [*(own[name] for name in own if name == step), Lever("--max-side", side, 2)]

    def _do(self, step: str) -> str:
        said = ""
        if self.shares(step):
            said = FUNCTIONS[step](self)
        elif parallel.is_first():
            if parallel.count() > 1 and step in ("train", "sharpen"):
                self.say(f"{step}: in one process, the others wait{self._how_to_share(step)}")
            threads = kernels.thread_count()  # and those of the processes that wait on this machine
            threads = max(threads, min(threads * parallel.count_here(), os.cpu_count() or 1))
            with parallel.alone(), kernels.threads(threads):
                said = FUNCTIONS[step](self)
        self._follow(step)
        return said

    def shares(self, step: str) -> bool:
        """Say whether processes share a step: training does where a step has a photo for more than one of them."""
        run, train = self.run, self.run.settings.train
        alone = run.trains_features or run.source.splats is not None or train.views_per_step == 1
        return step in SHARED or (step == "train" and not alone)

    def _how_to_share(self, step: str) -> str:
        """Return what to add, where a setting would share a step."""
        if step != "train" or self.run.trains_features or self.run.source.splats is not None:
            return ""
        return f"; with --train.views-per-step {parallel.count()} each has a photo of every step"

    def _follow(self, step: str) -> None:
        """Take over what the first process has found and written."""
        source, stats = parallel.agree([asdict(self.run.source), self.run.stats])
        if not parallel.is_first():
            self.run.source, self.run.stats = Source(**source), stats
            self.__dict__.pop({"train": "splats", "sharpen": "sharpened"}.get(step, ""), None)


Quality = dict[str, dict[str, float | str]]
"""Of each view, by its name: its split, psnr and ssim."""


# --- the steps --------------------------------------------------------------------------------------------


def train(work: Workspace) -> str:
    """Train the splats, or take those that were given; writes splats.ply, and in the joint mode features beside it."""
    start = time.perf_counter()
    run, target = work.run, work.run.root / "splats.ply"
    companion = None
    if run.trains_features:
        run.source = replace(run.source, masks_hash=hash_masks(work.masks, work.train_views))
        companion = JointFeatures(work.train_id_maps(), run.settings.joint, run.settings.train.steps)
    if run.source.splats and run.settings.blocks.gaussians:
        return _take_mapped(work, Path(run.source.splats), target)
    if run.source.splats:
        splats, cap = read_ply(run.source.splats), None
        splats = replace(splats, means=(splats.means.double() - torch.tensor(work.scene.origin)).float())
        said = f"{len(splats):,} Gaussians taken from {run.source.splats}"
    else:
        splats, trained = train_splats(
            work.scene, load_image, work.rasterizer, run.settings.train, device=work.device,
            test_every=run.settings.scene.test_every, companion=companion, checkpoint_dir=run.root / "checkpoints",
            quiet=work.quiet,
        )  # fmt: skip
        splats = splats.to("cpu")
        if not parallel.is_first():
            return ""
        if companion:
            with write_beside(run.root / TRAINED_FEATURES) as path:
                save_file({name: value.cpu() for name, value in trained.carried.items()}, path)
        start = time.perf_counter() - trained.seconds  # some of them in processes that were stopped
        cap, budget = trained.max_gaussians, run.settings.train.budget
        said = f"{len(splats):,} Gaussians trained"
        if budget:
            said += f" in {short_time(trained.seconds)} of {short_time(budget)}"
    write_ply(target, splats)
    _save_extras(run, splats.extras)
    work.splats = splats
    run.finish("train", time.perf_counter() - start, gaussians=len(splats), max_gaussians=cap, extent=work.scene.extent)
    shutil.rmtree(run.root / "checkpoints", ignore_errors=True)  # what they would resume is done
    return f"{said}: {target}"


def _take_mapped(work: Workspace, given: Path, target: Path) -> str:
    """Take splats that were given without holding them; InputError where they would have to be moved."""
    if any(work.scene.origin):
        raise InputError(
            f"{given} cannot be taken block by block: its scene lies so far from the origin that it is moved there, "
            "which blocks do not do; centre the splats and the model, or give --blocks.gaussians 0"
        )
    start, splats = time.perf_counter(), MappedSplats(given)
    _save_extras(work.run, splats.copy(target))
    work.__dict__.pop("splats", None)
    facts = {"gaussians": len(splats), "max_gaussians": None, "extent": work.scene.extent}
    work.run.finish("train", time.perf_counter() - start, **facts)
    return f"{len(splats):,} Gaussians taken from {given}: {target}"


def _save_extras(run: RunFolder, extras: dict[str, np.ndarray]) -> None:
    if extras:
        with write_beside(run.root / "extras.npz") as path:
            np.savez_compressed(path, **extras)  # pyright: ignore[reportArgumentType]


def lift(work: Workspace) -> str:
    """Learn a feature on every Gaussian from the masks; writes features.safetensors."""
    start = time.perf_counter()
    work.run.source = replace(work.run.source, masks_hash=hash_masks(work.masks, work.train_views))
    run, target = work.run, work.run.root / "features.safetensors"
    if work.blocks:
        return _lift_blocks(work, work.blocks)
    if parallel.is_first():
        shutil.rmtree(run.root / "blocks", ignore_errors=True)  # of other settings
    batches = work.batches
    mass = visible_mass(batches, len(work.splats))
    if not mass.any():
        raise InputError(
            "no Gaussian is visible in any masked view: the cameras look past the splats; "
            "check that the splats and the masks are of this scene"
        )
    features = LIFTS[work.method](work)
    if not parallel.is_first():
        return ""
    with write_beside(target) as path:
        save_file({"features": features.cpu(), "mass": mass.cpu()}, path)
    run.finish("lift", time.perf_counter() - start, blocks=None)
    if not features.shape[1]:
        return f"nothing to learn, the masks say it all: {target}"
    return f"{features.shape[1]} features on each of {len(features):,} Gaussians: {target}"


def _lift_blocks(work: Workspace, blocks: Blocks) -> str:
    """Learn features block by block."""
    start, run, views = time.perf_counter(), work.run, work.scene.views
    target, held_back = run.root / "features.safetensors", set(work.test_views)
    id_maps = ((i, work.masks.load(i)) for i in range(len(views)) if i not in held_back)
    facts = lift_blocks(
        blocks, [view.camera for view in views], id_maps, work.rasterizer, run.settings.lift, target, run.key("lift"),
        learns=work.method == "contrast", say=work.say, quiet=work.quiet,
    )  # fmt: skip
    if not parallel.is_first():
        return ""
    run.finish("lift", time.perf_counter() - start, blocks=facts)
    return f"features of {facts['count']} blocks: {target}"


def _contrast(work: Workspace) -> torch.Tensor:
    """Learn features from sampled blending weights."""
    return learn_features(work.batches, work.neighbours, work.run.settings.lift, quiet=work.quiet)


def _joint(work: Workspace) -> torch.Tensor:
    """Take the features that were learned beside colour, or learn them by rasterising where there are none."""
    run = work.run
    if not parallel.is_first():  # rasterising is not shared
        return _nothing(work)
    if run.trains_features:
        path = run.root / TRAINED_FEATURES
        features = read_tensors(path, f"run `cgc train {run.root}` again", "features")["features"]
        if len(features) == len(work.splats):
            return features
        raise InputError(
            f"{run.root / TRAINED_FEATURES} has {len(features):,} features for {len(work.splats):,} Gaussians; "
            f"run `cgc train {run.root}` again"
        )
    cameras = [view.camera for view in work.scene.views]
    return learn_rasterised(
        work.splats.to(work.device), cameras, work.train_id_maps(), work.rasterizer, run.settings.joint,
        quiet=work.quiet,
    )  # fmt: skip


def _nothing(work: Workspace) -> torch.Tensor:
    """Learn nothing: [N, 0]."""
    return torch.zeros(len(work.splats), 0)


LIFTS: dict[str, Callable[[Workspace], torch.Tensor]] = {
    "contrast": _contrast, "joint": _joint, "graph": _nothing, "vote": _nothing,
}  # fmt: skip
"""How features [N, D] come about, by the method."""


def hash_masks(masks: MaskSet, views: list[int]) -> str:
    """Hash the mask files of some views."""
    lines = [f"{masks.views[i].name} {sha256(path)}" for i in views if (path := masks.paths[i])]
    lines += [f"{masks.views[i].name} nested {sha256(path)}" for i in views if (path := masks.set_of(i))]
    return ("tracked " if masks.tracked else "") + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def load_features(run: RunFolder) -> tuple[torch.Tensor, torch.Tensor]:
    """Read features [N, D] and visible mass [N]; InputError where they are missing or broken."""
    run.require("lift")
    data = read_tensors(run.root / "features.safetensors", f"run `cgc lift {run.root}` again", "features", "mass")
    return data["features"], data["mass"]


def cluster_features(work: Workspace) -> str:
    """Cluster the features into segments; writes segments.npz."""
    start = time.perf_counter()
    run = work.run
    if work.blocks:
        return _cluster_blocks(work, work.blocks)
    features, mass = load_features(run)
    if len(features) != len(work.splats):
        raise InputError(
            f"{run.root} has {len(features):,} features for {len(work.splats):,} Gaussians: they are of different "
            f"trainings; run `cgc lift {run.root}` again"
        )
    _check_masks(work)
    with progress_bar("cluster", 3, quiet=work.quiet) as bar:
        clusterer = CLUSTERERS.get(work.method, _by_features)
        bar.advance(1, samples=min(run.settings.cluster.samples, len(features)))
        found = clusterer(work, features, mass)
        if found is None:
            return ""
        bar.advance(1, segments=found.n_segments)
        save_labels(run.root, found.labels, found.confidences, found.tree, found.hierarchy)
        bar.advance(1)
    return _finish_cluster(run, found.labels, found.hierarchy.base, start)


def _finish_cluster(run: RunFolder, labels: np.ndarray, level: float, start: float) -> str:
    segments, noise = int(labels.max(initial=0)), int((labels == NOISE).sum())
    run.finish("cluster", time.perf_counter() - start, segments=segments, noise=noise, level=round(level, 3))
    return f"{segments} segments, {noise:,} Gaussians in none: {run.root / 'segments.npz'}"


def _cluster_blocks(work: Workspace, blocks: Blocks) -> str:
    """Cluster block by block, and join the blocks' segments."""
    start, run = time.perf_counter(), work.run
    run.require("lift")
    _check_masks(work)
    keys, settings = (run.key("lift"), run.key("cluster")), run.settings
    found = cluster_blocks(
        blocks, work.scene.extent, _wholes(work), settings.lift, settings.cluster, keys, say=work.say
    )
    if found is None:
        return ""
    save_labels(run.root, found.labels, found.confidences, {}, found.hierarchy)
    return _finish_cluster(run, found.labels, found.hierarchy.base, start)


def _by_features(work: Workspace, features: torch.Tensor, mass: torch.Tensor) -> Clustering | None:
    """Cluster the features, and join what masks have in one."""
    settings, columns = work.run.settings.cluster, _columns(work)
    if columns is None:
        return parallel.serve(nearest_in)
    if settings.smoothing == "neighbours":
        there = work.neighbours.device
        features = smooth_features(features.to(there), work.neighbours, mass.to(there))
    found = cluster(features, mass, columns, settings, space=_space(work), looks=work.looks)
    parallel.release()
    return found


def _columns(work: Workspace) -> Columns | None:
    """What the masks say of the Gaussians, and which masks hold others; in the first process only."""
    n, columns = len(work.splats), mask_columns(held(work.batches), len(work.splats))
    if parallel.here()[1] > 1:
        columns = columns.on_host()
        matrix = columns.matrix
        parts = parallel.gather([matrix.data, matrix.indices, matrix.indptr, columns.views, columns.ids])
        if not parts:
            return None
        columns = side_by_side([Columns(csr_matrix((*w,), (n, len(views))), views, ids) for *w, views, ids in parts])
    return with_wholes(columns, _wholes(work))


def _wholes(work: Workspace) -> dict[int, np.ndarray]:
    """Of each training view whose masks nest, which of them holds each id, [ids + 1]."""
    wholes = {i: work.masks.wholes(i) for i in work.train_views}
    return {i: of_view for i, of_view in wholes.items() if of_view is not None}


def _space(work: Workspace) -> Space:
    return Space(work.splats.means / work.scene.extent, work.neighbours)


def _by_masks(work: Workspace, features: torch.Tensor, mass: torch.Tensor) -> Clustering | None:
    """Join masks of different views."""
    columns = _columns(work)
    settings = work.run.settings.cluster
    return columns and cluster_masks(mass, columns, settings, space=_space(work), looks=work.looks)


def _by_ids(work: Workspace, features: torch.Tensor, mass: torch.Tensor) -> Clustering | None:
    """Take the ids of the masks as they are."""
    cameras = [view.camera for view in work.scene.views]
    min_weight = work.run.settings.lift.min_weight
    votes = vote_ids(work.splats, cameras, work.train_id_maps(), work.rasterizer, min_weight, quiet=work.quiet)
    return cluster_ids(*votes) if parallel.is_first() else None


CLUSTERERS: dict[str, Callable[[Workspace, torch.Tensor, torch.Tensor], Clustering | None]] = {
    "graph": _by_masks, "vote": _by_ids,
}  # fmt: skip
"""What makes labels where no features were learned, by the method. Of several processes the first one has them."""


def _check_masks(work: Workspace) -> None:
    if hash_masks(work.masks, work.train_views) != work.run.source.masks_hash:
        raise InputError(
            f"the masks have changed since the features were learned; run `cgc lift {work.run.root}` again"
        )


def sharpen_borders(work: Workspace) -> str:
    """Split and move Gaussians that show in two objects; writes sharpened.ply and sharpened.npz."""
    start = time.perf_counter()
    run, settings = work.run, work.run.settings.sharpen
    run.require("cluster")
    found, said, facts = None, "off: the splats stay as they are", None
    if settings.steps:
        _check_masks(work)
        labels, _ = load_labels(run.root)
        found = sharpen(
            work.splats.to(work.device), labels, work.scene, work.train_id_maps(), load_image, work.rasterizer,
            settings, run.settings.train, test_every=run.settings.scene.test_every, quiet=work.quiet,
        )  # fmt: skip
        kept = found.loses <= settings.max_loss
        facts = {
            "used": kept, "split": len(found.splats) - len(work.splats), "gaussians": len(found.splats),
            "psnr_before": round(found.before, 4), "psnr_after": round(found.after, 4),
        }  # fmt: skip
        said = _say_sharpened(facts) + (f": {run.root / 'sharpened.ply'}" if kept else "")
        found = found if kept else None
    made = found and SharpenedSplats(found.splats.to("cpu"), found.labels, found.confidences, found.origin)
    save_sharpened(run.root, made)
    work.sharpened = made
    run.finish("sharpen", time.perf_counter() - start, sharpened=facts)
    return said


def _say_sharpened(facts: dict[str, Any]) -> str:
    before, after = facts["psnr_before"], facts["psnr_after"]
    change = f"training views {before:.2f} -> {after:.2f} dB"
    if not facts["used"]:
        return f"sharpening would cost too much of the pictures ({change}): the splats stay as they are"
    return f"{facts['split']:,} Gaussians split, all moved ({change})"


def render(work: Workspace) -> str:
    """Render and measure every view; writes its id map and weights, the cameras, and the table of segments."""
    start = time.perf_counter()
    run, target = work.run, work.run.root / "masks"
    segmentation = work.segmentation()
    draw, there = label_renderer(work, segmentation), segmentation.splats.to(device_of(work.rasterizer))
    n_ids = int(segmentation.labels.max(initial=0)) + 1
    pixels: dict[str, np.ndarray] = {}
    quality: Quality = {}
    predicted: dict[int, np.ndarray] = {}
    tests, names = work.test_views, work.picture_names

    def look(index: int) -> list[np.ndarray]:
        picture = draw(work.scene.views[index].camera, [None])[0]
        return [picture.ids, picture.weight, np.array(_measure_view(work, index, there))]

    with progress_bar("render", len(names), quiet=work.quiet) as bar:
        for index, (ids, weight, measured) in enumerate(parallel.shared(range(len(names)), look)):
            view, name = work.scene.views[index], names[index]
            write_id_map(target / f"{name}.png", ids)
            _write_weight(run.root / "weights" / f"{name}.png", weight)
            pixels[view.name] = np.bincount(ids.ravel(), minlength=n_ids)
            quality[view.name] = _quality(work, index, *measured.tolist())
            if index in tests and work.truth is not None:
                predicted[index] = ids
            bar.advance(1, psnr=quality[view.name]["psnr"])
    if not parallel.is_first():
        return ""
    facts = quality_facts(quality)
    if work.truth is not None:
        pairs = zip([predicted[i] for i in tests], work.truth.maps)
        same_size = [resize_nearest(p, t.shape[1], t.shape[0]) for p, t in pairs]
        facts |= score_facts(score_instances(work.truth.maps, same_size, work.truth.stuff_ids), work.truth)
    write_cameras(run.root / CAMERAS, {view.name: view.camera for view in work.scene.views})
    save_table(run.root, describe(segmentation, pixels), {"views": len(pixels)}, describe_nodes(segmentation))
    run.finish("render", time.perf_counter() - start, **facts)
    return f"{len(pixels)} id maps: {target}"


Drawer = Callable[[Camera, Sequence[float | None]], list[LabelPicture]]
"""Makes a camera's id maps at some levels of the hierarchy; None: the objects."""


def label_renderer(work: Workspace, segmentation: Segmentation) -> Drawer:
    """Return what makes id maps of a segmentation, as the settings say."""
    tree, rasterizer = segmentation.hierarchy, work.rasterizer
    splats = segmentation.splats.to(device_of(rasterizer))
    if work.has_levels:
        return lambda camera, levels: render_levels(splats, tree, levels, camera, rasterizer)
    features, _ = load_features(work.run)
    if work.sharpened is not None:
        features = features[torch.from_numpy(work.sharpened.origin)]

    def draw(camera: Camera, levels: Sequence[float | None]) -> list[LabelPicture]:
        if any(level is not None for level in levels):
            raise InputError(
                "pictures of blended features have no levels, only the objects; cluster with --cluster.masks labels"
            )
        return [render_blended(splats, features, segmentation.labels, camera, rasterizer) for _ in levels]

    return draw


def _write_weight(path: Path, weight: np.ndarray) -> None:
    from PIL import Image

    with write_beside(path) as temporary:
        Image.fromarray((255 * weight.clip(0, 1)).round().astype(np.uint8)).save(temporary)


def _view_quality(work: Workspace, index: int, splats: Splats) -> dict[str, float | str]:
    """Render a view's photo and measure it against the photo."""
    return _quality(work, index, *_measure_view(work, index, splats))


def _quality(work: Workspace, index: int, psnr_of: float, ssim_of: float) -> dict[str, float | str]:
    split = "test" if index in set(work.test_views) else "train"
    return {"split": split, "psnr": psnr_of, "ssim": ssim_of}


def _measure_view(work: Workspace, index: int, splats: Splats) -> tuple[float, float]:
    """Return PSNR and SSIM of a view's picture against its photo."""
    view = work.scene.views[index]
    photo = load_image(view).astype(np.float32) / 255
    shown = render_rgb(splats, view.camera, work.rasterizer, work.background)
    return psnr(shown, photo), ssim(shown, photo)


def quality_facts(quality: Quality) -> dict[str, Any]:
    """The views' measures and their means over each split as stats.json has them; None where a split has no view."""
    facts: dict[str, Any] = {"quality": quality}
    for split in ("train", "test"):
        for measure in ("psnr", "ssim"):
            values = [float(q[measure]) for q in quality.values() if q["split"] == split]
            facts[f"{measure}_{split}"] = round(float(np.mean(values)), 4) if values else None
    return facts


def score_facts(scores: InstanceScores, truth: Truth) -> dict[str, object]:
    """The scores as stats.json has them, a row per true thing among them."""
    rows = [{"name": truth.names[r.id], **{k: v for k, v in vars(r).items()}} for r in scores.rows]
    return {
        "miou_things": round(scores.miou_things, 4),
        "boundary_iou": round(scores.boundary_iou, 4),
        "pq": round(scores.pq, 4),
        "instances": rows,
    }


def export(work: Workspace) -> str:
    """Write every segment as a plain 3DGS PLY; writes segments/."""
    start = time.perf_counter()
    segmentation = work.segmentation()
    paths = export_segments(work.run.root, segmentation)
    (work.run.root / "segments").mkdir(exist_ok=True)
    work.run.finish("export", time.perf_counter() - start)
    return f"{len(paths)} objects: {work.run.root / 'segments'}"


def render_at(work: Workspace, level: float) -> str:
    """Render the id maps of every view at a level of the hierarchy; writes masks_at_LEVEL/, which no step needs."""
    segmentation = work.segmentation()
    draw, shown = label_renderer(work, segmentation), segmentation.hierarchy.shown(level)
    target = work.run.root / f"masks_at_{level:g}"
    with progress_bar(f"id maps at {level:g}", len(work.scene.views), quiet=work.quiet) as bar:
        cameras = [view.camera for view in work.scene.views]
        pictures = parallel.shared(cameras, lambda camera: [draw(camera, [level])[0].ids])
        for (ids,), name in zip(pictures, work.picture_names):
            write_id_map(target / f"{name}.png", ids)
            bar.advance(1)
    return f"{len(work.scene.views)} id maps of {len(shown)} segments: {target}"


def export_at(work: Workspace, level: float) -> str:
    """Write every segment of a level as a plain 3DGS PLY; writes segments_at_LEVEL/, which no step needs."""
    name = f"segments_at_{level:g}"
    paths = export_segments(work.run.root, work.segmentation().at_level(level), name)
    return f"{len(paths)} segments: {work.run.root / name}"


REPORT_VIEWS = 8
"""Views shown in the report, test views first."""
REPORT_DISPUTES = 3
"""Views shown in which masks and result disagree most."""
REPORT_OBJECTS = 80
"""Objects rendered alone in the report, largest first."""


def report(work: Workspace) -> str:
    """Write the page a person looks at first; writes report/index.html."""
    start = time.perf_counter()
    run, target = work.run, work.run.root / "report" / "index.html"
    labelled = (run.root / "segments.json").exists()
    run.require("render" if labelled else "train")
    segmentation = work.segmentation() if labelled else None
    table = load_table(run.root) if labelled else []
    if not labelled:  # nothing was rendered yet
        names = [view.name for view in work.scene.views]
        run.stats.update(quality_facts({name: _view_quality(work, i, work.splats) for i, name in enumerate(names)}))
    quality = run.stats["quality"]
    views = [_report_view(work, i, segmentation, quality) for i in report_views(work)]
    objects = []
    if segmentation is not None:
        by_name = {v.name: v for v in work.scene.views}
        with progress_bar("objects", min(len(table), REPORT_OBJECTS), quiet=work.quiet) as bar:
            for segment in table[:REPORT_OBJECTS]:
                if segment.best_view in by_name:
                    camera = by_name[segment.best_view].camera
                    image = render_object(segmentation.object(segment.id, clean=True), camera, work.rasterizer)
                    objects.append(ReportObject(segment.id, image))
                bar.advance()
    data = ReportData(
        title=run.root.name,
        subtitle=f"{len(work.scene.views)} views, {len(work.train_views)} learned from",
        facts=headline(run.stats),
        warnings=find_warnings(run.stats),
        notes=work.scene.notes,
        views=views,
        objects=objects,
        segments=[_segment_row(s) for s in table],
        levels=_report_levels(work, segmentation, table) if segmentation is not None else [],
        disputes=_report_disputes(work) if segmentation is not None else [],
        scores=[ViewScore(name, str(q["split"]), float(q["psnr"]), float(q["ssim"])) for name, q in quality.items()],
        tables=_truth_table(run.stats),
        seconds=run.stats["seconds"],
        peak_rss_bytes=run.stats.get("peak_rss_bytes"),
        settings=to_json(run.settings),
    )
    write_report(target, data)
    run.finish("report", time.perf_counter() - start)
    return f"report: {target}"


def _segment_row(s: Segment) -> SegmentRow:
    return SegmentRow(s.id, s.gaussians, s.size, s.centre, s.views, s.confidence, s.color, s.children)


def _report_levels(work: Workspace, segmentation: Segmentation, table: list[Segment]) -> list[ReportLevel]:
    """A view at a coarser level, at the objects' and at a finer one, where there are parts or wholes.

    The view is the best one of the largest object that has parts.
    """
    tree = segmentation.hierarchy
    stops, base = tree.stops, tree.base_stop
    by_name = {v.name: i for i, v in enumerate(work.scene.views)}
    best = [s.best_view for s in sorted(table, key=lambda s: not s.children) if s.best_view in by_name]
    if len(stops) < 2 or not best or not work.has_levels:
        return []
    chosen = {"Objects": tree.base}
    if base > 0:
        chosen = {"Coarser": float(stops[base // 2]), **chosen}
    if base < len(stops) - 1:
        chosen["Finer"] = float(stops[(base + len(stops)) // 2])
    view = work.scene.views[by_name[best[0]]]
    pictures = label_renderer(work, segmentation)(view.camera, list(chosen.values()))
    photo = load_image(view)
    return [
        ReportLevel(f"{name}: level {level:.2g}", view.name, overlay(photo, picture.ids))
        for (name, level), picture in zip(chosen.items(), pictures)
    ]


def report_views(work: Workspace) -> list[int]:
    """The views the report shows: test views, evenly, then training views, evenly, in order of the capture."""
    test, train = work.test_views, work.train_views
    n_test = min(len(test), max(REPORT_VIEWS - len(train), REPORT_VIEWS * 3 // 4))
    return sorted(_evenly(test, n_test) + _evenly(train, REPORT_VIEWS - n_test))


def _evenly(items: list[int], n: int) -> list[int]:
    if n >= len(items):
        return list(items)
    return [items[int((k + 0.5) * len(items) / n)] for k in range(n)]


def _report_view(work: Workspace, index: int, segmentation: Segmentation | None, quality: Quality) -> ReportView:
    view = work.scene.views[index]
    photo = load_image(view)
    splats = work.splats if segmentation is None else segmentation.splats
    shown = (255 * render_rgb(splats, view.camera, work.rasterizer, work.background)).round().astype(np.uint8)
    colored = masks = None
    if segmentation is not None:
        colored = overlay(photo, _result(work, index))
        masks = overlay(photo, work.masks.load(index)) if work.masks.paths[index] else None
    split = "test" if index in set(work.test_views) else "train"
    score = quality.get(view.name, {}).get("psnr")
    return ReportView(view.name, split, photo, shown, colored, float(score) if score is not None else None, masks)


def _result(work: Workspace, index: int) -> np.ndarray:
    """The id map that was rendered of a view, [H, W]."""
    return read_id_map(work.run.root / "masks" / f"{work.picture_names[index]}.png")


def _report_disputes(work: Workspace) -> list[ReportDispute]:
    """The training views whose masks the segments cut the most, and where."""
    shares = {}
    for i in work.train_views:
        masks = work.masks.load(i)
        if masks.any():
            shares[i] = float(disagree(masks, _result(work, i)).sum() / (masks > 0).sum())
    shown = []
    for i in sorted(shares, key=lambda i: -shares[i])[:REPORT_DISPUTES]:
        view, masks, ids = work.scene.views[i], work.masks.load(i), _result(work, i)
        photo = load_image(view)
        marked = mark(photo, disagree(masks, ids))
        shown.append(ReportDispute(view.name, shares[i], overlay(photo, masks), overlay(photo, ids), marked))
    return [d for d in shown if d.share > 0]


def render_object(splats: Splats, camera: Camera, rasterizer: Rasterizer) -> np.ndarray:
    """Render Gaussians alone, cut to where they show, uint8 [h, w, 4], see-through elsewhere."""
    with torch.no_grad():
        picture = rasterizer.render(splats, splats.colors(camera.position), [camera])
    alpha = picture.alphas[0].cpu().numpy()
    color = picture.values[0].cpu().numpy() / np.maximum(alpha, 1e-6)[..., None]
    rgba = (255 * np.dstack([color, alpha]).clip(0, 1)).round().astype(np.uint8)
    shows = alpha > 0.3
    if not shows.any():
        return rgba
    margin = 6
    rows, columns = np.flatnonzero(shows.any(1)), np.flatnonzero(shows.any(0))
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    return rgba[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]


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
    for name, label in (("segments", "Segments"), ("gaussians", "Gaussians")):
        if stats.get(name) is not None:
            facts[label] = f"{stats[name]:,}"
    if stats.get("seconds"):
        facts["Time"] = f"{sum(stats['seconds'].values()):.0f} s"
    if stats.get("peak_rss_bytes"):
        facts["Peak memory"] = f"{stats['peak_rss_bytes'] / 1e9:.1f} GB"
    return facts


def find_warnings(stats: dict[str, Any]) -> list[str]:
    """What the numbers say went wrong, in sentences."""
    said = []
    train_psnr, test_psnr = stats.get("psnr_train"), stats.get("psnr_test")
    if train_psnr and test_psnr and test_psnr < train_psnr - 5:
        said.append(
            f"Views that were held back are rendered {train_psnr - test_psnr:.1f} dB worse than those learned from: "
            "the cameras may be off (run structure-from-motion again with more features), or there are too few photos."
        )
    sharpened = stats.get("sharpened")
    if sharpened and not sharpened["used"]:
        said.append(f"Borders were not sharpened: {_say_sharpened(sharpened)} (see max_loss).")
    noise, gaussians = stats.get("noise"), stats.get("gaussians")
    if noise and gaussians and noise > 0.5 * gaussians:
        said.append(
            f"{noise / gaussians:.0%} of the Gaussians belong to no segment: no mask sees them. "
            "More views with masks would."
        )
    return said


def _truth_table(stats: dict[str, Any]) -> list[Table]:
    rows = stats.get("instances")
    if not rows:
        return []
    body = tuple(
        (r["name"], r["predicted"] or None, round(r["iou"], 3), round(r["boundary_iou"], 3), r["pixels"])
        for r in sorted(rows, key=lambda r: -r["iou"])
    )
    return [Table("Scored against truth", ("Thing", "Segment", "IoU", "Boundary IoU", "True pixels"), body)]


# --- commands ---------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Workspace], str]] = {
    "train": train,
    "lift": lift,
    "cluster": cluster_features,
    "sharpen": sharpen_borders,
    "render": render,
    "export": export,
    "report": report,
}


SHARED = ("lift", "cluster", "render")
"""The steps that several processes do together."""


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def run_all(
    scene_path: Path,
    out: Path,
    settings: RunSettings,
    *,
    masks: Path | Callable[[Scene], Path] | None,
    splats: Path | None,
    quiet: bool = False,
    device: str = "auto",
) -> RunFolder:
    """Do every step that is not done yet, and say where the result lies; without masks the run ends with the splats.

    masks: their folder, or what makes one where the run has none yet. device: see `cgc.device.choose`.
    Everything that is given is checked before anything is written.
    """
    check(settings)
    check_size(settings.blocks.gaussians)
    with parallel.first_before_others():
        scene = read_scene(scene_path, settings.scene, quiet=quiet)
    source = Source(
        scene=str(scene_path.resolve()),
        masks=str(masks.resolve()) if isinstance(masks, Path) else None,
        splats=str(splats.resolve()) if splats else None,
        fingerprint=fingerprint(scene),
    )
    work = Workspace(create_run(out, settings, source), quiet=quiet, scene=scene, device=device)
    run = work.run
    work.meet()
    notes = list(scene.notes)
    if splats:
        _check_splats(splats, mapped=settings.blocks.gaussians > 0)
    if callable(masks) and not run.source.masks:
        if not run.is_done("train"):
            check_images(scene.views)
        run.save_settings()  # where that fails, nothing is made in vain
        run.source = replace(run.source, masks=str(masks(scene).resolve()))
    if run.source.masks:
        run.source = replace(run.source, masks_hash=hash_masks(work.masks, work.train_views))
        notes += work.masks.notes
        _ = work.truth
    if splats:
        run.source = replace(run.source, splats_hash=sha256(splats))
    if not run.is_done("train"):
        check_images(scene.views)
    if not (out / "config.json").exists() or not (out / "scene.json").exists():
        run.save_settings()  # a stopped training needs them; later ones are kept once their step has succeeded
    for note in notes:
        work.say(f"note: {note}")
    steps = STEPS if run.source.masks else ("train", "report")
    for step in steps:
        if parallel.agree(work.run.is_done(step)):
            work.say(f"{step}: done before, kept")
        else:
            work.say(f"{step}: {work.do(step)}")
    run.save_settings()
    if not run.source.masks:
        work.say("no masks were given, so there are no segments; add them with --masks DIR")
    _say_result(work)
    return work.run


def run_step(
    out: Path,
    step: str,
    *,
    quiet: bool = False,
    scene: Path | None = None,
    masks: Path | None = None,
    device: str = "auto",
    **changed: Any,
) -> RunFolder:
    """Do one step of an existing run again, with settings `changed` (train=, lift=, blocks=, cluster=, ...).

    `scene` and `masks` say where these lie now. The run keeps the settings once the step has succeeded.
    """
    run = open_run(out)
    run.settings = replace(run.settings, **changed)
    check(run.settings)
    check_size(run.settings.blocks.gaussians)
    if masks is not None:
        run.source = replace(run.source, masks=str(masks.resolve()))
    work = Workspace(run, quiet=quiet, device=device)
    if scene is not None:
        run.source = replace(run.source, scene=str(scene.resolve()))
        with parallel.first_before_others():
            _ = work.scene
    work.meet()
    said = work.do(step)
    stale = [s for s in STEPS if s in run.stats["steps"] and not run.is_done(s)]
    if stale:
        work.say(f"now out of date: {', '.join(stale)} (run `cgc {stale[0]} {out}`, or `cgc run` for all of them)")
    work.say(f"{step}: {said}")
    return run


def _check_splats(path: Path, *, mapped: bool) -> None:
    """Raise InputError unless a file holds whole, finite splats; `mapped`: without holding all of them."""
    if mapped:
        for _ in MappedSplats(path).chunks():
            pass
    else:
        _ = read_ply(path)


LEVELS: dict[str, Callable[[Workspace, float], str]] = {"render": render_at, "export": export_at}


def run_at(out: Path, step: str, level: float, *, quiet: bool = False, device: str = "auto") -> None:
    """Render or export what the hierarchy of a run shows at a level, beside what the steps have left."""
    work = Workspace(open_run(out), quiet=quiet, device=device)
    work.meet()
    if step == "render" or parallel.is_first():
        work.say(f"{step}: {LEVELS[step](work, level)}")


def demo_scene() -> Path:
    """The bundled scene: inside the installed package, or in data/ of a source tree."""
    here = Path(__file__).parent
    for place in (here / "demo_data", here.parent / "data" / "demo"):
        if (place / "instances.json").exists():
            return place
    raise InputError(f"the bundled scene is missing: expected {here / 'demo_data'}; install cgc again")


def _say_result(work: Workspace) -> None:
    for label, text in headline(work.run.stats).items():
        work.say(f"  {label:<17} {text}")
    for warning in find_warnings(work.run.stats):
        work.say(f"warning: {warning}")
    console.print(f"result: {work.run.root / 'report' / 'index.html'}")


def info(out: Path) -> None:
    """Print what a run folder holds."""
    run = open_run(out)
    console.print(f"{out}: a run of {run.source.scene}")
    console.print(f"  masks             {run.source.masks or 'none'}")
    if run.source.splats:
        console.print(f"  splats            {run.source.splats}")
    for step in STEPS:
        if step not in run.stats["steps"]:
            state = "not done"
        else:
            state = f"done in {run.stats['seconds'].get(step, 0):.1f} s" if run.is_done(step) else "out of date"
        console.print(f"  {step:<17} {state}")
    for label, text in headline(run.stats).items():
        console.print(f"  {label:<17} {text}")
    if run.stats.get("level", 1.0) < 1:  # 1: nothing was joined
        console.print(f"  level of objects  {run.stats['level']:.2f}")
    if (run.root / "segments.json").exists():
        for s in load_table(run.root):
            console.print(
                f"  segment {s.id:<5} {s.gaussians:>8,} Gaussians  {s.views:>3} views  confidence {s.confidence:.2f}"
                + _relatives(s)
            )
        for node in load_nodes(run.root):
            console.print(
                f"  node {node.id:<8} {node.gaussians:>8,} Gaussians  level {node.level:.2f}{_relatives(node)}"
            )


def _relatives(segment: Segment | Node) -> str:
    parts = "  parts " + " ".join(map(str, segment.children)) if segment.children else ""
    return parts + (f"  in {segment.parent}" if segment.parent else "")
