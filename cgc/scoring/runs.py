"""A run as something that has id maps of views: rendered, or as `cgc render` left them where the photos are gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError, some
from cgc.evaluation.prompts import Level
from cgc.evaluation.sizes import at_truth_size
from cgc.masks.id_maps import read_id_map
from cgc.pipeline.render import label_renderer
from cgc.pipeline.workspace import Workspace
from cgc.progress import progress_bar
from cgc.scene.types import View, picture_names
from cgc.segmentation.segments import load_hierarchy, load_labels

LEVELS = (
    0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.8, 1.0
)  # fmt: skip
"""Levels of the hierarchy that are scored, where they show other segments than those before and than the objects."""


def predicted_maps(
    work: Workspace, views: Sequence[int], levels: Sequence[Level] = (None,)
) -> dict[Level, list[np.ndarray]]:
    """The run's id maps of some views at some levels, int32 [H, W] each, ids the same in all of them."""
    draw = label_renderer(work, work.segmentation())
    made: dict[Level, list[np.ndarray]] = {level: [] for level in levels}
    with progress_bar("id maps", len(views), quiet=work.quiet) as bar:
        for index in views:
            for level, picture in zip(levels, draw(work.scene.views[index].camera, levels)):
                made[level].append(picture.ids)
            bar.advance()
    return made


@dataclass
class ScoredRun:
    """A run as something that has id maps of views; `stems` are what its views are called, `notes` what was done."""

    work: Workspace
    notes: list[str] = field(default_factory=list)
    _maps: dict[tuple[int, Level], np.ndarray] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The run folder."""
        return self.work.run.root

    @property
    def scene(self) -> Path:
        """Where the run's scene lies."""
        return Path(self.work.run.source.scene)

    @cached_property
    def stored(self) -> bool:
        """Whether the photos are gone, so that the id maps of `cgc render` are scored in place of new ones."""
        gone = not (self.scene / "images").is_dir() and not any(self.scene.glob("transforms*.json"))
        if gone and self.work.run.is_done("render"):
            self.notes.append(f"{self.scene} has no photos: the id maps in {self.root / 'masks'} are scored")
            return True
        return False

    @property
    def has_levels(self) -> bool:
        """Whether id maps can be made at any level of the hierarchy."""
        return not self.stored and self.work.has_levels

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The scene's views; none where the photos are gone."""
        return () if self.stored else self.work.scene.views

    @cached_property
    def stems(self) -> list[str]:
        """What the views are called."""
        if not self.stored:
            return self.work.picture_names
        return picture_names(list(self.work.run.stats.get("quality", {})))

    @property
    def test_views(self) -> list[int]:
        """The views that nothing was learned from."""
        if not self.stored:
            return self.work.test_views
        quality = self.work.run.stats["quality"].values()
        return [i for i, view in enumerate(quality) if view["split"] == "test"]

    @cached_property
    def ids(self) -> list[int]:
        """The ids of the run's segments, of all levels that it can show."""
        if not self.has_levels:
            self.work.run.require("cluster")
            labels = load_labels(self.root)[0]
            return np.unique(labels[labels > 0]).tolist()
        finest = np.unique(self.tree.leaves[self.tree.leaves > 0]).tolist()
        return sorted({node for leaf in finest for node in (leaf, *self.tree.ancestors(leaf))})

    @cached_property
    def tree(self) -> Hierarchy:
        """The hierarchy of the run's segments."""
        self.work.run.require("cluster")
        return load_hierarchy(self.root)

    def level_of(self, ids: Sequence[int]) -> Level:
        """A level that shows all of some segments, the objects' own where that does; InputError where none does."""
        if not len(ids) or set(ids) <= set(self.tree.objects.tolist()):
            return None
        level = float(self.tree.levels[list(ids)].min())
        if not set(ids) <= set(self.tree.shown(level).tolist()):
            raise InputError(
                f"no level of {self.root} shows all of the segments {some(ids)}: some are parts of others; "
                "select segments that lie beside each other"
            )
        return level

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the hierarchy that are scored: None, and those of LEVELS that show something else."""
        if not self.has_levels:
            return (None,)
        stops: dict[int, Level] = {self.tree.base_stop: None}
        for level in LEVELS:
            stops.setdefault(self.tree.stop(level), level)
        return tuple(stops.values())

    def prepare(self, views: Sequence[int], levels: Sequence[Level]) -> None:
        """Make the id maps of some views at several levels, which costs little more than at one."""
        levels = [level for level in dict.fromkeys(levels) if any((i, level) not in self._maps for i in views)]
        missing = [i for i in dict.fromkeys(views) if any((i, level) not in self._maps for level in levels)]
        if missing and self.stored:
            kept = [self.root / "masks" / f"{self.stems[i]}.png" for i in missing]
            if lost := [path.name for path in kept if not path.is_file()]:
                raise InputError(
                    f"{self.scene} has no photos, and {self.root / 'masks'} lacks {some(lost)}: nothing says what the "
                    "run has there; restore the photos, then run `cgc render`"
                )
            made = {None: [read_id_map(path) for path in kept]}
        else:
            made = predicted_maps(self.work, missing, levels) if missing else {}
        self._maps.update({(i, level): m for level, maps in made.items() for i, m in zip(missing, maps)})

    def maps(self, views: Sequence[int], level: Level = None) -> list[np.ndarray]:
        """The id maps of some views at the views' sizes; made once."""
        self.prepare(views, [level])
        return [self._maps[i, level] for i in views]

    def at_size(self, index: int, shape: tuple[int, ...], level: Level = None) -> np.ndarray:
        """The id map of one view at the size [H, W] of its truth, nearest id.

        Where the photo was undistorted it is bent back; what the undistorted picture does not show is UNSEEN.
        """
        ids = self.maps([index], level)[0]
        made, change = at_truth_size(ids, self.views[index] if self.views else None, shape, self.stems[index])
        if change == "bent":
            self._note("id maps were bent back to the photos' lens, as the truth is (nearest id)")
        if change == "resized":
            size = f"{shape[1]}x{shape[0]}"
            self._note(f"id maps of {ids.shape[1]}x{ids.shape[0]} were resized to the truth's {size} (nearest id)")
        return made

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def learned_from(run: ScoredRun, views: Mapping[str, int]) -> list[str]:
    """Say which of the true views, by what the truth calls them, the run has learned from."""
    learned = [name for name, index in views.items() if index not in run.test_views]
    if not learned:
        return []
    what = f"all {len(views)}" if len(learned) == len(views) else f"{len(learned)} of the {len(views)}"
    return [f"{what} true views were learned from ({some(learned)})"]
