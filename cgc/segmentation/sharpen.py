"""Sharper borders: Gaussians that show in two objects are split, and all are moved until each shows in its own.

    labels, masks --> targets: what each pixel should show, where the masks can be believed
    targets, W    --> votes W^T onehot(targets), [N, K]; a Gaussian with a large second vote straddles a border
    straddlers    --> two halves each (splats/split.py)
    all           --> a short training on the photos and on pictures of the labels (appearance/codes.py)
    a last vote   --> labels and confidences of what came out (clustering/settle.py)

The picture must not pay for it: `Sharpened.loses` says by how much PSNR over the training views fell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from scipy.sparse import coo_matrix

from cgc.appearance.codes import LabelCodes
from cgc.appearance.losses import psnr
from cgc.appearance.photo_capture import KnownExposure
from cgc.appearance.trainer import train
from cgc.clustering.hierarchy import Hierarchy
from cgc.clustering.settle import look_at, settle
from cgc.clustering.vote import row_winners, without
from cgc.features.lifting import vote_ids
from cgc.progress import progress_bar
from cgc.rasterize.base import Rasterizer, device_of
from cgc.scene.corrections import Correction
from cgc.scene.types import Camera, Scene, View
from cgc.segmentation.labels import picture_and_photo, render_ids
from cgc.settings import SharpenSettings, TrainSettings
from cgc.splats.split import split
from cgc.splats.types import Splats

MIN_PURITY = 0.8
"""A mask tells something where this share of its pixels shows one label."""
MIN_RECALL = 0.5
"""A label of which the masks of a view give less than this share to itself was missed by them: unknown there."""
AROUND = 2
"""So is what lies this many pixels around it: whose border that is, nobody says."""
WANDER = 3
"""Masks are not believed where they differ from the labels over more than this many pixels to every side."""
MIN_WEIGHT = 5e-3
"""Blending weights under this do not vote."""
USUAL_PSNR = 28.7
"""Of training views, dB. Where the photos are fitted better, labels weigh less beside them, as their error is less; and
what sharpening costs there is counted as if they were not: a third of a dB in 37 is nothing to see."""
TRAINED = 0.3
"""Of its mass: what a Gaussian's vote for its label weighs in the last vote. It was trained to show that one; masks
whose borders are off by a pixel or two take thin things' Gaussians from them."""
MIN_MASS = 1.0
"""Pixels that a Gaussian must weigh to be split, in all views."""


@dataclass(frozen=True)
class Sharpened:
    """Splats, N' of them, with labels and confidences [N'], and which of the old Gaussians each was, `origin` [N'].

    `before` and `after` are mean PSNR over the training views.
    """

    splats: Splats
    labels: np.ndarray
    confidences: np.ndarray
    origin: np.ndarray
    before: float
    after: float

    @property
    def loses(self) -> float:
        """By how many dB pictures of training views are worse: what is added to their squared error, to the usual one.

        Where they are worse than usual before, to their own: before - after.
        """
        before, after, usual = (10 ** (-psnr / 10) for psnr in (self.before, self.after, USUAL_PSNR))
        return 10 * math.log10(1 + (after - before) / max(before, usual))


def sharpen(
    splats: Splats,
    labels: np.ndarray,
    scene: Scene,
    id_maps: Mapping[int, np.ndarray],
    load_image: Callable[[View], np.ndarray],
    rasterizer: Rasterizer,
    settings: SharpenSettings,
    training: TrainSettings,
    *,
    test_every: int = 8,
    exposures: Mapping[int, Correction] | None = None,
    quiet: bool = False,
) -> Sharpened:
    """Split and move Gaussians with labels [N] (-1 noise, 1..K) so that objects end where the masks say.

    `id_maps` [H, W] by view, 0 = unassigned, are of training views; of `training` what makes a picture counts;
    `exposures` say how photos were exposed, by view. All is done where the splats are.
    """
    device, views = splats.means.device, scene.split(test_every)[0]
    cameras = [view.camera.to(device) for view in scene.views]
    background = torch.ones(3, device=device) if training.background == "white" else None
    exposures = {i: replace(c, color=c.color.to(device)) for i, c in (exposures or {}).items()}
    before = mean_psnr(splats, scene, views, load_image, rasterizer, background, exposures)
    targets = label_targets(splats, labels, cameras, id_maps, rasterizer, quiet=quiet)
    stride = settings.vote_stride
    votes = label_votes(splats, labels, cameras, targets, rasterizer, stride=stride)
    halves, origin = split(splats, torch.from_numpy(straddles(votes, settings.min_second)).to(device))
    origin = origin.cpu().numpy()
    own = labels[origin]
    now, _ = winners(label_votes(halves, own, cameras, targets, rasterizer, stride=stride), own)
    companion = LabelCodes(now, targets, dim=settings.dim, weight=label_weight(settings, before), seed=settings.seed)
    moved, _ = train(
        scene, load_image, rasterizer, refining(settings, training, splats),
        device=device, test_every=test_every, capture=KnownExposure(exposures), companion=companion, start=halves,
        quiet=quiet, title="sharpen",
    )  # fmt: skip
    moved = replace(moved, extras=halves.extras, features=halves.features)
    found, sure = settle(now, look_at(moved, cameras, id_maps, rasterizer, MIN_WEIGHT), TRAINED)
    after = mean_psnr(moved, scene, views, load_image, rasterizer, background, exposures)
    return Sharpened(moved, found, sure, origin, before, after)


def label_weight(settings: SharpenSettings, psnr_before: float) -> float:
    """Return the weight of the labels' pictures: as the photos' squared error, where that is less than usual.

    Otherwise photos that are fitted well would lose, to labels, what no step of so short a training gives back.
    """
    return settings.weight * min(1.0, 10 ** ((USUAL_PSNR - psnr_before) / 10))


def refining(settings: SharpenSettings, training: TrainSettings, splats: Splats) -> TrainSettings:
    """Return the settings of a training that only moves what is there, at full size, all rates decaying alike."""
    usual = TrainSettings()
    rates = {
        name: settings.rate * getattr(usual, name)
        for name in ("means_lr", "log_scales_lr", "quats_lr", "logit_opacities_lr", "sh_dc_lr", "sh_rest_lr")
    }
    return replace(
        usual, **rates, steps=settings.steps, means_lr_final=settings.rate_final, lr_final=settings.rate_final,
        sh_degree=splats.sh_degree, sh_ramp=0.0, coarse=0.0, refine_stop=0.0, max_gaussians=len(splats),
        checkpoint_every=0, ssim_weight=training.ssim_weight, background=training.background, seed=settings.seed,
    )  # fmt: skip


# --- targets ----------------------------------------------------------------------------------------------


def label_targets(
    splats: Splats,
    labels: np.ndarray,
    cameras: Sequence[Camera],
    id_maps: Mapping[int, np.ndarray],
    rasterizer: Rasterizer,
    *,
    quiet: bool = False,
) -> dict[int, np.ndarray]:
    """Return the label each pixel of the masked views should show, int32 [H, W], 0 where nobody knows."""
    targets, tree = {}, Hierarchy.flat(labels)
    there = splats.detach().to(device_of(rasterizer))
    with progress_bar("targets", len(id_maps), quiet=quiet) as bar:
        for view, ids in sorted(id_maps.items()):
            targets[view] = believed(ids, render_ids(there, tree, None, cameras[view], rasterizer))
            bar.advance(1)
    return targets


def believed(ids: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return the label of each pixel by the masks `ids` [H, W] and the labels `shown` [H, W]; 0 where nobody knows.

    A mask gives its pixels the label that most of them show. Nobody knows: outside masks; in masks of several labels;
    at labels that the view's masks have missed, and around them; where masks and labels differ by more than a border.
    """
    n_labels = int(shown.max()) + 1
    counts = np.bincount(ids.ravel().astype(np.int64) * n_labels + shown.ravel(), minlength=(ids.max() + 1) * n_labels)
    counts = counts.reshape(-1, n_labels)  # [M + 1, K + 1]
    best = counts[:, 1:].argmax(1) + 1 if n_labels > 1 else np.zeros(len(counts), np.int64)
    pure = counts[np.arange(len(counts)), best] >= MIN_PURITY * np.maximum(counts.sum(1), 1)
    named = np.where(pure, best, 0)
    named[0] = 0
    target = named[ids]
    kept = np.bincount(shown.ravel(), (target == shown).ravel(), n_labels)
    missed = (kept < MIN_RECALL * np.bincount(shown.ravel(), minlength=n_labels))[shown]
    target = np.where(ndimage.binary_dilation(missed, iterations=AROUND), 0, target)
    differs = target != shown
    wide = ndimage.binary_erosion(differs, iterations=WANDER)
    wide = ndimage.binary_dilation(wide, iterations=WANDER + 1)
    return np.where(differs & wide, 0, target).astype(np.int32)


# --- votes ------------------------------------------------------------------------------------------------


def label_votes(
    splats: Splats,
    labels: np.ndarray,
    cameras: Sequence[Camera],
    targets: Mapping[int, np.ndarray],
    rasterizer: Rasterizer,
    *,
    stride: int = 1,
) -> Any:
    """Return W^T onehot(targets), [N, K + 1] in CSR form, over every `stride`-th pixel, times `stride`.

    Where nobody knows, a Gaussian votes for the label that it has (noise: column 0).
    """
    votes, kinds = vote_ids(splats, cameras, targets, rasterizer, MIN_WEIGHT, stride=stride, quiet=True)
    votes, shape = votes.tocoo(), (len(splats), 1 + max(int(labels.max(initial=0)), int(kinds[-1])))
    wanted = kinds[votes.col]
    label = np.where(wanted > 0, wanted, np.maximum(labels, 0)[votes.row])
    return coo_matrix((votes.data, (votes.row, label)), shape=shape).tocsr()


def straddles(votes: Any, min_second: float) -> np.ndarray:
    """Say whose second label has more than `min_second` of its votes, [N] bool, among what weighs MIN_MASS pixels."""
    total = np.asarray(votes.sum(axis=1)).ravel()
    best, _ = row_winners(votes)
    second = without(votes, best).max(axis=1).toarray().ravel()
    return (second > min_second * total) & (total > MIN_MASS) & (best >= 0)


def winners(votes: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels [N] by most votes (noise -1) and the winner's share as confidences; without votes: `labels`, 0."""
    best, shares = row_winners(votes)
    return np.where(best < 0, labels, np.where(best > 0, best, -1)).astype(np.int32), shares


def mean_psnr(
    splats: Splats,
    scene: Scene,
    views: Sequence[int],
    load_image: Callable[[View], np.ndarray],
    rasterizer: Rasterizer,
    background: torch.Tensor | None,
    exposures: Mapping[int, Correction] | None = None,
) -> float:
    """Return the mean PSNR of the pictures of some views, dB, exposed as their photos where that is known."""
    values = []
    for i in views:
        exposure = exposures.get(i) if exposures else None
        pair = picture_and_photo(splats, scene.views[i], load_image, rasterizer, background, exposure)
        values.append(psnr(*map(torch.from_numpy, pair)))
    return float(np.mean(values))
