"""What there is to export: which objects, of which Gaussians each is, and their id maps beside the photos.

What is exported is clean: no NaN, nothing that is never drawn, and of an object its body alone (see `is_clean`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cgc.errors import InputError, some
from cgc.files import fits, read_json
from cgc.masks.id_maps import as_photo, resize_nearest
from cgc.progress import progress_bar
from cgc.rasterize.base import Rasterizer
from cgc.scene import images
from cgc.scene.types import View, picture_names
from cgc.segmentation.edges import follow_edges
from cgc.segmentation.edit import whole_ids
from cgc.segmentation.halo import seen_shares
from cgc.segmentation.objects import is_clean
from cgc.segmentation.pictures import id_map
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import Segment, describe
from cgc.settings import Edges
from cgc.splats.types import Splats

RECORD = ".exported.json"
"""Where a folder says which files exports have left in it; the rest is somebody's own."""

BEST_VIEWS = 3
"""Cut-outs of each object, from the views that show most of it."""
MIN_OPACITY = 1 / 255
"""What is less opaque is never drawn."""
MIN_SEEN = 0.2
"""What is hidden but for less than this share is of no known colour: dark blots under an object or where one hid it."""


def _itself(view: View) -> View:
    return view


@dataclass(frozen=True)
class Export:
    """What to export: the segmentation, the ids (None: all that are shown), and what some formats need besides.

    `views` and the rasteriser make id maps; `load_image` gives a view's photo [h, w, 3] uint8, undistorted, as large as
    it is, and `edges` says whether borders follow it; `as_taken` adds to a view what is known of its photo as the user
    has it: size and lens. `origin` [N] says which of the `n_original` Gaussians of the file that was segmented each was
    (None: those of `track`, or the same order); `world` is what to add to positions to be in the model's world again
    (None: nothing), which tables say. Unless `quiet`, what takes long shows how far it is.
    """

    segmentation: Segmentation
    ids: Sequence[int] | None = None
    views: Sequence[View] = ()
    rasterizer: Rasterizer | None = None
    load_image: Callable[[View], np.ndarray] = images.load_image
    as_taken: Callable[[View], View] = _itself
    edges: Edges = "splats"
    origin: np.ndarray | None = None
    n_original: int | None = None
    world: Sequence[float] | None = None
    clean: bool = True
    quiet: bool = True

    @cached_property
    def chosen(self) -> list[int]:
        """The ids to export, each once; InputError for one that owns no Gaussian."""
        shown = self.segmentation.ids.tolist()
        wanted = shown if self.ids is None else whole_ids(self.ids)
        if not wanted:
            raise InputError(
                "there is nothing to export: the scene has no segment; cluster it first, or choose some ids"
            )
        tree = self.segmentation.hierarchy
        for segment in wanted:
            if not 1 <= segment <= tree.n_nodes or not self.segmentation.owns(segment):
                raise InputError(
                    f"segment {segment} has no Gaussian; choose of those that are shown: {some(shown, most=12)}"
                )
        return wanted

    @cached_property
    def labels(self) -> np.ndarray:
        """The chosen id of each Gaussian, [N] int32, -1: none. Of a part and a whole that are both chosen, the part."""
        tree, labels = self.segmentation.hierarchy, np.full(len(self.segmentation.splats), -1, np.int32)
        for segment in sorted(self.chosen, key=lambda node: len(tree.ancestors(node))):  # parts after what holds them
            labels[self.segmentation.members(segment)] = segment
        return labels

    def _chosen_of(self, ids: np.ndarray) -> np.ndarray:
        return np.where(np.isin(ids, self.chosen), ids, 0).astype(np.int32)

    @cached_property
    def shown_maps(self) -> list[np.ndarray]:
        """The id map [H, W] of each view at its camera's size, of all that is shown."""
        if not self.views or self.rasterizer is None:
            why = self.segmentation.context.lost or "export from a run whose scene is there"
            raise InputError(f"this format is made of pictures: it needs the scene's cameras; {why}")
        if hidden := [i for i in self.chosen if i not in self.segmentation.ids]:
            raise InputError(f"segment {hidden[0]} is not shown at this level, so no picture has it; choose a level")
        maps = []
        with progress_bar("id maps", len(self.views), quiet=self.quiet) as bar:
            for view in self.views:
                maps.append(id_map(self.segmentation, view.camera))
                bar.advance()
        return maps

    @cached_property
    def best_views(self) -> dict[int, list[int]]:
        """Which views show most of each chosen segment, the best first; none where none shows it."""
        most = max(int(ids.max(initial=0)) for ids in self.shown_maps)
        counts = np.stack([_shown_whole(ids, max(most, *self.chosen) + 1) for ids in self.shown_maps])  # [V, ids]
        best = {segment: np.argsort(-counts[:, segment], kind="stable")[:BEST_VIEWS] for segment in self.chosen}
        return {segment: views[counts[views, segment] > 0].tolist() for segment, views in best.items()}

    def beside_photo(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a view's id map [h, w], the chosen ids only, and its photo [h, w, 3], undistorted, in its own size."""
        ids, photo = self.shown_maps[index], self.load_image(self.views[index])
        height, width = photo.shape[:2]
        ids = follow_edges(ids, photo) if self.edges == "photos" else resize_nearest(ids, width, height)
        return self._chosen_of(ids), photo

    def id_maps_of_photos(self) -> Iterator[np.ndarray]:
        """Yield the id map of each view [H, W] as its photo is, whose size and lens may be others than its camera's."""
        with progress_bar("masks of photos", len(self.views), quiet=self.quiet) as bar:
            for index, view in enumerate(self.views):
                if self.edges == "photos":
                    ids, _ = self.beside_photo(index)
                    view = replace(view, camera=view.camera.resized(ids.shape[1], ids.shape[0]))
                else:
                    ids = self._chosen_of(self.shown_maps[index])
                yield as_photo(ids, self.as_taken(view))
                bar.advance()

    @cached_property
    def stems(self) -> list[str]:
        """What each view's files are called; never a path that leaves the folder."""
        stems: dict[str, None] = {}
        for name in map(safe_path, picture_names([view.name for view in self.views])):
            number, stem = 2, name
            while stem in stems:  # names that differ in what files may not be called
                stem, number = f"{name}_{number}", number + 1
            stems[stem] = None
        return list(stems)

    @cached_property
    def table(self) -> list[Segment]:
        """The table of the chosen segments that are shown; views and pixels where there are cameras."""
        pixels = {}
        if self.views and self.rasterizer is not None:
            last = int(self.segmentation.labels.max(initial=0)) + 1
            pixels = {v.name: np.bincount(m.ravel(), minlength=last) for v, m in zip(self.views, self.shown_maps)}
        return [s for s in describe(self.segmentation, pixels) if s.id in self.chosen]

    @cached_property
    def seen(self) -> dict[int, np.ndarray]:
        """Of each chosen segment how much of its Gaussians the cameras see, [n] in 0..1; nothing without cameras."""
        if not self.views or self.rasterizer is None:
            return {}
        members = [self.segmentation.members(segment) for segment in self.chosen]
        cameras = [view.camera for view in self.views]
        return dict(zip(self.chosen, seen_shares(self.segmentation.splats, members, self.rasterizer, cameras)))

    def name(self, segment: int) -> str:
        """What a segment is called: its name, or "segment 7"."""
        return self.segmentation.names.get(segment, f"segment {segment}")

    def stem(self, segment: int) -> str:
        """What a segment's files are called: 0007, or 0007_red-cup where it has a name."""
        name = safe_name(self.segmentation.names.get(segment, ""))
        return f"{segment:04d}" + (f"_{name}" if name else "")

    def body(self, segment: int) -> np.ndarray:
        """Which Gaussians are exported of a segment, ascending."""
        own = self.segmentation.members(segment)
        picked = self.segmentation.splats.select(torch.from_numpy(own))
        good = is_sound(picked)
        if self.clean and segment in self.seen:
            seen = self.seen[segment] >= MIN_SEEN
            good &= seen if (good & seen).any() else True
        if self.clean and good.any():
            body = np.flatnonzero(good)
            kept = is_clean(picked.select(torch.from_numpy(body)), self.segmentation.confidences[own[body]])
            good[body[~kept]] = False
        if not good.any():
            raise InputError(f"segment {segment} has no Gaussian that is drawn; remove it")
        return own[good]


def _shown_whole(ids: np.ndarray, n: int) -> np.ndarray:
    """Return the pixels of each id in an id map, [n]; a quarter of them where the picture's edge cuts it."""
    counts = np.bincount(ids.ravel(), minlength=n).astype(float)
    edge = np.unique(np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]]))
    counts[edge] /= 4
    return counts


def exported(folder: Path) -> list[str]:
    """Return the files that exports have left in a folder, as far as it says, by their paths in it."""
    try:
        names = read_json(folder / RECORD, "what exports have left")
    except InputError:  # there is none, or it is broken
        return []
    return names if fits(names, list[str]) else []


def is_sound(splats: Splats) -> np.ndarray:
    """Say which Gaussians a viewer can draw, [N] bool: finite, their rotation and size too, and not see-through."""
    splats = splats.detach()
    finite = torch.ones(len(splats), dtype=torch.bool, device=splats.means.device)
    for values in (splats.means, splats.quats, splats.log_scales, splats.logit_opacities, splats.sh, splats.scales):
        finite &= torch.isfinite(values).reshape(len(splats), -1).all(1)
    norm = splats.quats.double().norm(dim=1)
    return (finite & (norm > 1e-12) & (splats.opacities >= MIN_OPACITY)).cpu().numpy()


def safe_name(text: str) -> str:
    """Return a name as part of a file's: lower-case letters, digits and dashes, at most 40; maybe nothing."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain)[:40].strip("-")


def safe_path(name: str) -> str:
    """Return a view's name as a relative path that stays below its folder, sub-folders kept."""
    parts = [re.sub(r"[\x00-\x1f\x7f<>:\"|?*\\]", "_", part) for part in name.split("/")]
    return "/".join("_" if part.strip(". ") == "" else part for part in parts if part)


def rows_of(job: Export, rows: np.ndarray) -> Splats:
    """Return some Gaussians of what is exported, by their rows."""
    return job.segmentation.splats.select(torch.from_numpy(rows))
