"""An opened run and what its steps share: photos, splats, masks, sampled weights, each loaded when first needed.

They are kept while the steps of one command run. Test views' photos and masks are read for measuring only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cgc.blocks.steps import Blocks
from cgc.clustering.settle import Look, look_at
from cgc.device import choose, rasterizer_for
from cgc.errors import InputError
from cgc.evaluation.truth import Truth, mark_of_truth, read_truth
from cgc.features.frozen import nearest_neighbours
from cgc.features.samples import Batch, Elsewhere, sample_batches
from cgc.files import sha256
from cgc.masks.id_maps import MaskSet, read_mask_folder
from cgc.progress import console
from cgc.rasterize.base import NEAR_OF_EXTENT, Rasterizer, device_of
from cgc.run_folder import RunFolder
from cgc.scene.corrections import Correction, corrected
from cgc.scene.images import load_image, load_view
from cgc.scene.types import Scene, picture_names
from cgc.segmentation.labels import picture_and_photo
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import SharpenedSplats, follow, load_hierarchy, load_labels, load_sharpened
from cgc.splats.ply import read_ply
from cgc.splats.types import Splats


class Workspace:
    """An opened run and what its steps share."""

    def __init__(
        self, run: RunFolder, *, quiet: bool = False, scene: Scene | None = None, device: str = "auto"
    ) -> None:
        self.run = run
        self.quiet = quiet
        self.asked_device = device
        if scene is not None:
            self.scene_as_read = scene

    @cached_property
    def choice(self) -> tuple[torch.device, str]:
        """Where to compute, and a line that says why, chosen and said when it is first needed."""
        found, why = choose(self.asked_device, self.say)
        self.say(why)
        return found, why

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.choice[0]

    @cached_property
    def scene_as_read(self) -> Scene:
        """The scene, checked to be the one the run was made from."""
        return self.run.read_scene(quiet=self.quiet)

    @cached_property
    def scene(self) -> Scene:
        """The scene with its cameras where training has found them; ask for it once training is done."""
        return corrected(self.scene_as_read, self.run.corrections())

    @cached_property
    def exposures(self) -> dict[int, Correction]:
        """How photos were exposed, by the number of their view, where training has found that out."""
        found = self.run.corrections() if self.run.settings.train.exposure else {}
        return {i: found[view.name] for i, view in enumerate(self.scene_as_read.views) if view.name in found}

    @cached_property
    def rasterizer(self) -> Rasterizer:
        """What makes the pictures, with a near plane that suits the scene's unit of length."""
        return rasterizer_for(self.device, near=NEAR_OF_EXTENT * self.scene_as_read.extent)

    @property
    def train_views(self) -> list[int]:
        """Indices of the views that are learned from."""
        return self.scene_as_read.split(self.run.settings.scene.test_every)[0]

    @property
    def test_views(self) -> list[int]:
        """Indices of the views held back."""
        return self.scene_as_read.split(self.run.settings.scene.test_every)[1]

    @cached_property
    def masks(self) -> MaskSet:
        """The id maps of the views."""
        folder = self.run.masks_folder
        if folder is None:
            raise InputError(
                f"{self.run.root} has no masks: features are learned from id maps, one PNG a view; "
                "give their folder with --masks DIR"
            )
        if self.run.makes_masks and not folder.is_dir():
            raise InputError(f"the masks that {self.run.root} made are gone; run `cgc lift {self.run.root}` again")
        return read_mask_folder(folder, self.scene_as_read.views)

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
        if not self.mark_of_truth or not self.test_views:
            return None
        return read_truth(root, [names[i] for i in self.test_views])

    @cached_property
    def mark_of_truth(self) -> str | None:
        """What tells the truth that is scored from another; taken before it is read."""
        return mark_of_truth(Path(self.run.source.scene))

    @cached_property
    def picture_names(self) -> list[str]:
        """What each view's pictures are called: its stem, or its whole name where two views share a stem."""
        return picture_names([view.name for view in self.scene_as_read.views])

    def photo(self, index: int) -> np.ndarray:
        """A view's photo, [H, W, 3] uint8, on the background of pictures where some of it is see-through."""
        return load_image(self.scene_as_read.views[index], white=self.background is not None)

    def picture_and_photo(self, index: int, splats: Splats) -> tuple[np.ndarray, np.ndarray]:
        """A view's picture and what it is measured against, [H, W, 3] float32 in 0..1 each."""
        view, exposure = self.scene.views[index], self.exposures.get(index)
        return picture_and_photo(splats, view, load_view, self.rasterizer, self.background, exposure)

    @cached_property
    def splats(self) -> Splats:
        """The run's splats."""
        self.run.require("train")
        return read_ply(self.run.unchanged("splats.ply"))

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
        self.check_blocks()
        return Blocks(run.root / "blocks", run.unchanged("splats.ply"), run.settings.blocks, run.key_of_splats)

    def check_blocks(self) -> None:
        """Raise InputError where labels or features come about by what does not go block by block."""
        if self.method in ("joint", "vote"):
            why = f"lift.method is {self.method}"
            if self.run.settings.lift.method == "auto":
                why = "the ids of these masks are tracked, so they are voted for (lift.method vote)"
            raise InputError(
                f"{why}, which does not go block by block; choose contrast or graph, or --blocks.gaussians 0"
            )

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
        self.run.unchanged("sharpened.ply")
        return load_sharpened(self.run.root)

    @property
    def shown_splats(self) -> Splats:
        """The splats that pictures are made of: sharpened where the run has come that far."""
        sharpened = self.sharpened if self.run.is_current("sharpen") else None
        return sharpened.splats if sharpened else self.splats

    def segmentation(self) -> Segmentation:
        """The run's splats with their labels and hierarchy, sharpened where that was of use."""
        self.run.require("sharpen")
        tree = load_hierarchy(self.run.root)
        if self.sharpened is None:
            return Segmentation(self.splats, *load_labels(self.run.root), tree)
        splats, labels, confidences, _ = self.sharpened
        return Segmentation(splats, labels, confidences, follow(self.run.root, tree, self.sharpened))

    @property
    def has_levels(self) -> bool:
        """Say whether id maps can be made at any level of the hierarchy; blended features show the objects only."""
        return self.run.settings.cluster.masks == "labels"

    def say(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            console.print(text)

    def forget(self, *names: str) -> None:
        """Forget what was loaded under some names: a step has written another."""
        for name in names:
            self.__dict__.pop(name, None)

    def hash_masks(self) -> str:
        """Hash the mask files of the training views."""
        masks, views = self.masks, self.train_views
        lines = [f"{masks.views[i].name} {sha256(path)}" for i in views if (path := masks.paths[i])]
        lines += [f"{masks.views[i].name} nested {sha256(path)}" for i in views if (path := masks.set_of(i))]
        return ("tracked " if masks.tracked else "") + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def check_masks(self) -> None:
        """Raise InputError unless the masks are those that the features were learned from."""
        if self.hash_masks() != self.run.source.masks_hash:
            raise InputError(
                f"the masks have changed since the features were learned; run `cgc lift {self.run.root}` again"
            )
