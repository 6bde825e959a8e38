"""Every setting of the pipeline, one frozen dataclass a step; a field's docstring is its help on the command line.

Light on purpose: it imports nothing heavy, so that `cgc --help` answers at once. Lengths are relative to the
scene (see `Scene.extent`), image sizes are in pixels, learning rates are Adam's.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from tyro.conf import arg

from cgc.errors import InputError

SUITED = -1
"""A max_side that means what suits the device; runs keep what that was."""
SIDES = {"cpu": 800, "cuda": 1600}
"""What suits it, in pixels. 3DGS as published has 1600; a CPU has no time for more Gaussians than 800 show."""


@dataclass(frozen=True)
class SceneSettings:
    """How the photos are read."""

    downscale: int = 1
    """Use images this many times smaller (images_2, images_4, images_8 are used where they exist)."""
    max_side: int = 0
    """Shrink images so that neither side is longer than this, in pixels; 0 keeps their size; -1, where a run is begun:
    1600 on a GPU, 800 on a CPU, or their size with --downscale."""
    test_every: int = 8
    """Hold back every n-th view, from the first, for measuring: nothing is learned from its photo or mask. 0: none."""


@dataclass(frozen=True)
class MaskSettings:
    """How the masks of the photos are made."""

    generator: str = "auto"
    """What makes them: sam (Segment Anything), regions (needs no weights), package.module:function or the name of an
    installed generator; auto: sam where its weights are here or a GPU is, else regions."""
    min_area: float = 1e-4
    """Masks of a smaller share of the image are left out of the id map."""
    workers: int = 0
    """Processes that make masks at once; 0: one a core for regions, one for the others."""


@dataclass(frozen=True)
class ReconstructSettings:
    """How cameras and points are found from bare photos or a video (structure from motion, by pycolmap)."""

    matching: Literal["auto", "exhaustive", "sequential"] = "auto"
    """Which photos are compared: every pair, or neighbours in name order plus a spread of far ones; auto: every pair of
    up to 150 photos."""
    max_side: int = 1600
    """Features are looked for in photos shrunk so that neither side is longer than this, in pixels."""
    max_features: int = 8192
    """Features a photo at most."""
    camera: Literal["auto", "single", "per-photo"] = "auto"
    """Which photos share a lens: all (single), none (per-photo), or those of one size, camera and zoom (auto)."""
    camera_model: Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"] = (
        "SIMPLE_RADIAL"
    )
    """The lens model, as COLMAP calls it."""
    frames: int = 150
    """Frames taken from a video: the sharpest of so many equal parts."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class TrainSettings:
    """How the splats are trained (3D Gaussian Splatting, arXiv 2308.04079).

    Fractions are of the whole run, so that changing `steps` alone stretches everything that is planned. The
    learning rates are up to six times the paper's: they suit a few thousand steps; `full` starts at the paper's.
    With a `budget` the result depends on how fast the machine is, so it does not repeat to the bit.
    """

    steps: int = 3000
    """Optimiser steps."""
    views_per_step: int = 1
    """Photos a step; several processes share them. Learning rates are multiplied by its square root. To see as many
    photos in all, divide `steps` by it."""
    max_gaussians: int = 80_000
    """Most Gaussians. With --budget time decides: at most eight times this, and no more than a million unless
    this is more."""
    budget: Annotated[float, arg(prefix_name=False, metavar="TIME")] = 0.0
    """Time to train in: 90, 90s, 5m, 1.5h, 1h30m; 0: as long as it takes. It caps the Gaussians, not the steps."""
    sh_degree: int = 2
    """Highest degree of the spherical harmonics, 0 to 3."""
    sh_ramp: float = 0.5
    """Fraction of the run over which the degree is raised from 0 to its highest, in equal parts."""
    coarse: float = 0.3
    """Fraction of the run, from its start, over which the photos grow to their full size, in equal parts."""
    coarse_levels: int = 2
    """How many times the photos are halved at the start, while they stay 160 pixels long at least; 0: not at all."""
    ssim_weight: float = 0.2
    """Weight of D-SSIM in the loss; L1 has the rest."""
    background: Literal["black", "white", "random"] = "random"
    """What shows behind the Gaussians. `random` draws a colour a step, so that what is solid becomes solid: nothing
    dark is left to a black background, and no floaters hide on it. Pictures are then shown on black."""
    means_lr: float = 1e-3
    """Learning rate of positions, times the scene's extent, at the first step."""
    means_lr_final: float = 0.01
    """Its factor at the last step; it decays exponentially in between."""
    log_scales_lr: float = 2e-2
    """Learning rate of the log scales."""
    quats_lr: float = 4e-3
    """Learning rate of the quaternions."""
    logit_opacities_lr: float = 5e-2
    """Learning rate of the logit opacities."""
    sh_dc_lr: float = 1e-2
    """Learning rate of the constant colour term."""
    sh_rest_lr: float = 5e-4
    """Learning rate of the view-dependent colour terms."""
    lr_final: float = 0.2
    """Factor of the learning rates other than the positions' at the last step; they decay exponentially."""
    init_opacity: float = 0.5
    """Opacity of the first Gaussians."""
    init_random: int = 20_000
    """Random Gaussians to start from where the model has no points."""
    backdrop: int = 4000
    """Directions, evenly spread, in which a Gaussian is put far away at first, where photos show what no point of the
    model is near: sky, and what is too far off; 0: none."""
    strategy: Literal["split", "default", "mcmc"] = "split"
    """How Gaussians are added. split: cut in two along their longest axis where image-plane gradients are large by
    magnitude, the faint pruned (arXiv 2404.10484 and 2508.12313). default, 3DGS as published: cloned, or split at
    random, where gradients are large, the faint pruned. mcmc: the dead relocated to where light is and a share added
    each time, all a little shaken (arXiv 2404.09591)."""
    refine_start: float = 0.1
    """Fraction of the run from which Gaussians are grown and pruned."""
    refine_stop: float = 0.7
    """Fraction of the run at which that ends."""
    refine_every: int = 100
    """Grow and prune every so many steps."""
    grow_grad2d: float = 1e-4
    """Image-plane gradient (in half images) over which a Gaussian is cloned or split."""
    prune_opacity: float = 5e-3
    """Gaussians fainter than this are removed."""
    prune_scale: float = 0.0
    """Gaussians longer than this, times the scene's extent, are removed while refining; 0: none."""
    max_length: float = 0.5
    """Longest standard deviation of a Gaussian, times its distance to the nearest training camera; 0: any. A longer one
    reaches around cameras, and may hide from those of training while it fogs the view between them."""
    reset_every: int = 0
    """Reset opacities every so many steps while refining; 0: never (short runs do not recover)."""
    mcmc_growth: float = 0.05
    """mcmc: share of Gaussians added each time."""
    mcmc_noise: float = 5e5
    """mcmc: noise on positions, times their learning rate."""
    mcmc_opacity: float = 0.01
    """mcmc: weight of the mean opacity in the loss."""
    mcmc_scale: float = 0.01
    """mcmc: weight of the mean length, in extents of the scene, in the loss."""
    exposure: bool = False
    """Learn how each photo was exposed, an affine map of its colours, for photos that a phone took by itself: the
    splats then have the mean of all."""
    exposure_lr: float = 2e-3
    """Learning rate of exposures at the first step."""
    poses: bool = False
    """Learn where the cameras of the photos really were, for models whose cameras are off by more than half a pixel or
    so. Those of views that are held back are found by the finished splats."""
    poses_lr: float = 3e-5
    """Learning rate of poses at the first step, in radians and extents of the scene."""
    capture_lr_final: float = 0.05
    """Factor of these two at the last step; they decay exponentially."""
    checkpoint_every: int = 500
    """Write a checkpoint every so many steps, to resume after a kill; 0: never."""
    photos: Literal["auto", "device", "host"] = "auto"
    """Where photos are kept: in the memory of the GPU, or of the host, from where the next one is fetched while a step
    runs; auto: on the GPU while they take a quarter of what is free there."""
    features: Literal["none", "joint"] = "none"
    """Learn nothing else, or features beside colour from the first step, as the paper's release does (see `joint`)."""
    seed: int = 0
    """Seed of everything random in training."""


@dataclass(frozen=True)
class LiftSettings:
    """How a feature is learned on every Gaussian from the masks (arXiv 2404.12784, geometry frozen)."""

    method: Literal["auto", "contrast", "joint", "graph", "vote"] = "auto"
    """`auto` is `vote` where the masks are known to be tracked, else `contrast`. `contrast` learns from sampled
    blending weights; `joint` takes the features that were learned beside colour, or learns them likewise by rasterising
    where there are none (see `joint`; of what follows only the sampling counts); `graph` learns nothing: masks of
    different views are joined by the Gaussians they share; `vote` is for ids that mean the same in every view
    (trackers, hand labels): each Gaussian takes the id that covers most of its weight."""
    dim: int = 16
    """Length of a feature."""
    steps: int = 250
    """Optimiser steps."""
    pixels_per_view: int = 16_384
    """Pixels sampled a view, once, whose blending weights are kept."""
    pixels_per_step: int = 8192
    """Pixels of one view that a step learns from; a view has several such batches."""
    views_per_step: int = 2
    """Views a step."""
    sampling: Literal["mask", "uniform", "border"] = "mask"
    """Which pixels inside masks: `mask` draws with chance area^-1/2, so that small masks keep their share, `uniform`
    draws all alike, `border` is `mask` with half of the pixels within 5 pixels of a mask's border."""
    cache_gb: float = 2.0
    """What the sampled weights may take in memory, in GB; the rest lies in a temporary file mapped into memory."""
    min_weight: float = 5e-3
    """Blending weights under this are left out."""
    heaviest: int = 24
    """Weights kept a pixel, its so many heaviest; 0: all. They bound what a step costs, whatever the scene; with few,
    Gaussians that are faint everywhere belong to no object."""
    border: int = 1
    """Pixels within this distance of a mask's border are not learned from: masks are least sure there. A mask that
    would keep fewer than `min_mask_pixels` is used whole."""
    min_mask_pixels: int = 8
    """Masks with fewer sampled pixels in a step are ignored in that step."""
    lr: float = 0.05
    """Adam's learning rate at the first step; it decays tenfold."""
    neighbours: int = 8
    """True nearest neighbours of the spatial regularisation."""
    spatial_weight: float = 0.05
    """Weight of the spatial regularisation."""
    anchors: int = 1024
    """Gaussians drawn a step, among those it sees, for the spatial regularisation."""
    reduction: Literal["mean", "sum"] = "mean"
    """Mean over a mask's pixels (independent of the resolution), or their sum as the paper's release has it."""
    seed: int = 0
    """Seed of everything random in lifting."""


@dataclass(frozen=True)
class JointSettings:
    """How features are learned by rasterising them (arXiv 2404.12784 and its released trainer).

    Intervals are of the release's 30,000 steps: S steps divide them by f = 30,000 / S.
    """

    dim: int = 16
    """Length of a feature."""
    lr: float = 2.5e-3
    """Adam's learning rate in 30,000 steps; it is multiplied by the root of f."""
    contrastive_every: int = 50
    """Render features and add the contrastive loss every so many steps."""
    contrastive_weight: float = 1e-6
    """Weight of the contrastive loss, which is a sum over pixels."""
    ignore_pixels: int = 100
    """Masks of at most this many pixels are ignored."""
    spatial_every: int = 100
    """Add the spatial regularisation every so many steps."""
    anchors: int = 1000
    """Gaussians drawn each time for the spatial regularisation, among 300,000; fewer Gaussians, fewer anchors."""
    steps: int = 1500
    """Optimiser steps where the splats stay as they are; otherwise they are those of the training."""
    seed: int = 0
    """Seed of everything random about features."""


@dataclass(frozen=True)
class ClusterSettings:
    """How features become objects: HDBSCAN on a subsample, labels for everyone, joined where masks of views agree."""

    algorithm: Literal["hdbscan", "sklearn", "cuml"] = "hdbscan"
    """Whose HDBSCAN: the hdbscan package's, scikit-learn's, or cuML's, which needs CUDA."""
    samples: int = 12_000
    """Gaussians that HDBSCAN sees at once, drawn by visible mass; where clusters are small, up to 16 times as many."""
    rounds: int = 4
    """Further rounds of HDBSCAN, at most so many, on Gaussians that are far from every cluster found so far: where
    these are many, or the sample was too small to find small things; 0: none."""
    min_cluster_size: int = 12
    """Smallest cluster, in sampled Gaussians."""
    min_samples: int = 0
    """HDBSCAN's min_samples; 0: the same as min_cluster_size."""
    selection: Literal["eom", "leaf"] = "eom"
    """Which clusters of the tree are picked: excess of mass (whole things) or leaves (parts)."""
    noise: Literal["nearest", "keep"] = "nearest"
    """What becomes of Gaussians that HDBSCAN calls noise. nearest: they join the nearest cluster in feature space.
    keep: they stay noise (-1) until masks vote for them; with `join` off and `revote` 0 nothing votes."""
    min_confidence: float = 0.0
    """Gaussians less sure of their label than this become noise (-1)."""
    join: bool = True
    """Join parts of clusters that masks have in one in enough views; otherwise HDBSCAN's clusters are the objects."""
    level: float = 0.0
    """Two parts become one object if a single mask contains both in at least this share of the views that see both.
    Lower gives wholes, higher parts; 0: chosen from how often the masks split and fuse things."""
    pieces: int = 400
    """Cells that clusters are cut by before they are joined, at most; in the mean each has 30 of the samples or
    more."""
    revote: int = 1
    """Rounds in which the masks correct the labels through the blending weights, without joining; 0: none."""
    settle: bool = True
    """Let the masks vote a last time by pixels spread evenly over each view, borders among them."""
    smoothing: Literal["neighbours", "none"] = "neighbours"
    """Average features over true neighbours first, or take them as they are."""
    draw: Literal["mass", "uniform"] = "mass"
    """Draw the samples by visible mass, or every visible Gaussian alike."""
    masks: Literal["labels", "blended"] = "labels"
    """Render 2D masks from one label a Gaussian, or give each pixel the segment its blended feature is most like."""
    seed: int = 0
    """Seed of the subsample."""


@dataclass(frozen=True)
class SharpenSettings:
    """How Gaussians that show in two objects are split, and moved until objects end where the masks say."""

    steps: int = 800
    """Optimiser steps, one view each: about a quarter of a preset's training, less of long ones; 0: the splats stay as
    they are."""
    weight: float = 1.0
    """Weight of the label loss beside the photo loss. Where pictures are better than 28.7 dB it is lowered in
    proportion to their squared error."""
    min_second: float = 0.05
    """Gaussians are split whose second label has more than this share of their votes."""
    dim: int = 5
    """Length of the code that stands for a label in pictures; with colour's three, eight are rendered at once."""
    rate: float = 0.5
    """Learning rates, times those that training starts with as a rule; higher ones cost pictures."""
    rate_final: float = 0.03
    """Their factor at the last step; they decay exponentially."""
    vote_stride: int = 8
    """Every so many pixels vote for the labels of Gaussians."""
    max_loss: float = 0.2
    """Sharpened splats are kept if the training views lose at most this much PSNR, in dB. Of pictures over 28.7 dB the
    added squared error is compared with that of 28.7 dB, so that they may lose more dB."""
    seed: int = 0
    """Seed of the codes and of the order of views."""


@dataclass(frozen=True)
class BlockSettings:
    """How a scene that is too large for the memory is lifted and clustered: in blocks that overlap."""

    gaussians: int = 0
    """Most Gaussians of a block, without its margin: a scene of more is cut, so that memory goes by the block. 0: never
    cut."""
    margin: float = 0.1
    """Width of the margin that a block shares with those around it, in lengths of its longest side."""


@dataclass(frozen=True)
class EvalSettings:
    """What is scored against what. No run keeps these: they are named in the summary that is written."""

    protocol: Literal["auto", "instances", "prompts", "lerf-mask", "3d-ovs", "nvos", "spin-nerf"] = "auto"
    """auto: instances, prompts and pictures, as far as there is truth. A benchmark: as its authors score it."""
    truth: Path | None = None
    """The truth: a benchmark's folder, a scene with instance/ and instances.json, or id maps named like views
    (default: the run's own scene)."""
    selection: Path | None = None
    """Which segments each prompt of a benchmark means: JSON, {"prompt": [ids]}."""
    select: Literal["oracle"] | None = None
    """oracle: the segments that fit the truth best. An upper bound, and called so."""
    write_selection: Path | None = None
    """Write the segments that were chosen, as a file for --selection."""
    predictions: Path | None = None
    """Score this folder's masks, [SCENE/]VIEW/PROMPT.png (or VIEW.png), in place of a run's."""
    unlabelled: Literal["ignore", "background"] = "ignore"
    """What id 0 of maps drawn by hand means: nobody knows, or there is no object."""
    ignore_id: int = 255
    """The id of maps drawn by hand that is scored nowhere."""
    truth_level: Literal["object", "part"] = "object"
    """Whether parts are merged into what they are a part of, where instances.json has parts."""
    views: Literal["test", "all"] = "test"
    """Which views of a scene's own truth are scored: those held back, or all."""
    out: Path | None = None
    """Where the results go (default: eval/ in the run)."""


@dataclass(frozen=True)
class RunSettings:
    """Every setting of a run."""

    scene: SceneSettings = field(default_factory=SceneSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    lift: LiftSettings = field(default_factory=LiftSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    joint: JointSettings = field(default_factory=JointSettings)
    sharpen: SharpenSettings = field(default_factory=SharpenSettings)
    blocks: BlockSettings = field(default_factory=BlockSettings)


Edges = Literal["photos", "splats"]
"""Where masks of photos end: at the photos' edges, or where pictures of the splats have the borders."""

Limit = float | tuple[float, float]
"""The least value of a setting, or its least and its largest."""
SEEDS = (0, 2**32 - 1)
"""What every generator of random numbers takes."""

LIMITS: dict[str, dict[str, Limit]] = {
    "scene": {"downscale": 1, "max_side": 0, "test_every": 0},
    "train": {
        "steps": 1, "views_per_step": 1, "max_gaussians": 1, "budget": 0, "sh_degree": (0, 3), "sh_ramp": (0, 1),
        "coarse": (0, 1), "coarse_levels": (0, 8), "ssim_weight": (0, 1), "means_lr": 0, "means_lr_final": 0,
        "log_scales_lr": 0, "quats_lr": 0, "logit_opacities_lr": 0, "sh_dc_lr": 0, "sh_rest_lr": 0, "lr_final": 0,
        "init_opacity": (0.001, 0.999), "init_random": 1, "backdrop": 0, "refine_start": (0, 1), "refine_stop": (0, 1),
        "refine_every": 1, "grow_grad2d": 0, "prune_opacity": (0, 1), "prune_scale": 0, "max_length": 0,
        "reset_every": 0, "mcmc_growth": 0, "mcmc_noise": 0, "mcmc_opacity": 0, "mcmc_scale": 0, "exposure_lr": 0,
        "poses_lr": 0, "capture_lr_final": (0, 1), "checkpoint_every": 0,
        "seed": SEEDS,
    },
    "lift": {
        "dim": 1, "steps": 1, "pixels_per_view": 1, "pixels_per_step": 1, "views_per_step": 1, "cache_gb": 0,
        "min_weight": (0, 1), "heaviest": 0, "border": 0, "min_mask_pixels": 1, "lr": 0, "neighbours": 0,
        "spatial_weight": 0, "anchors": 1, "seed": SEEDS,
    },
    "cluster": {
        "samples": 2, "rounds": 0, "min_cluster_size": 2, "min_samples": 0, "min_confidence": (0, 1), "level": (0, 1),
        "pieces": 1, "revote": 0, "seed": SEEDS,
    },
    "joint": {
        "dim": 1, "lr": 0, "contrastive_every": 1, "contrastive_weight": 0, "ignore_pixels": 0, "spatial_every": 1,
        "anchors": 1, "steps": 1, "seed": SEEDS,
    },
    "sharpen": {
        "steps": 0, "weight": 0, "min_second": (0, 1), "dim": 1, "rate": 0, "rate_final": (0, 1), "vote_stride": 1,
        "max_loss": 0, "seed": SEEDS,
    },
    "blocks": {"gaussians": 0, "margin": (0.02, 0.5)},
    "reconstruct": {"max_side": 64, "max_features": 100, "frames": 3, "seed": (0, 2**31 - 1)},
    "masks": {"min_area": (0, 1), "workers": 0},
}  # fmt: skip


def suited(scene: SceneSettings, device: str) -> SceneSettings:
    """Return settings with the size of images that suits a device of a kind (cpu, cuda), where that is asked for."""
    if scene.max_side != SUITED:
        return scene
    return replace(scene, max_side=0 if scene.downscale > 1 else SIDES[device])


def check(settings: RunSettings) -> None:
    """Do as `check_part` for all steps of a run."""
    for step in fields(settings):
        check_part(step.name, getattr(settings, step.name))


def check_part(step: str, part: Any) -> None:
    """Raise InputError for the first setting of a step that is of another kind than declared, or outside its limits."""
    for name, kind in get_type_hints(type(part)).items():
        _check_value(f"{step}.{name}", getattr(part, name), kind, LIMITS[step].get(name, -math.inf))


def _check_value(name: str, value: Any, kind: Any, limit: Limit) -> None:
    """Raise InputError unless `value` is of the kind (int, float or a Literal) and within its limits."""
    if kind is bool:
        right, expected = isinstance(value, bool), "true or false"
    elif choices := get_args(kind):
        right, expected = value in choices, " or ".join(map(str, choices))
    elif kind is str:
        right, expected = isinstance(value, str), "a text"
    else:
        low, high = limit if isinstance(limit, tuple) else (limit, math.inf)
        number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        most = 2**31 - 1 if kind is int else sys.float_info.max  # a whole number of a JSON has any size
        right = number and max(low, -most) <= value <= (high if math.isfinite(high) else most)
        bounds = f"of {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        bounds += f" and at most {most:g}" if number and most < value < high else ""
        expected = f"a {'whole ' if kind is int else ''}number {bounds}"
    if not right:
        raise InputError(f"{name} is {value!r:.60} where {expected} was expected; correct that setting")


_UNITS = (("h", 3600.0), ("m", 60.0), ("s", 1.0))
_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)"
_TIME = re.compile(r"\s*".join(f"(?:{_NUMBER}\\s*{unit})?" for unit, _ in _UNITS))


def seconds_of(text: str) -> float:
    """Read a time like 90, 90s, 5m, 1.5h or 1h30m; InputError where it is none."""
    plain = text.strip().lower()
    if re.fullmatch(_NUMBER, plain):
        return float(plain)
    found = _TIME.fullmatch(plain)
    if not plain or not found:
        raise InputError(f"--budget is {text!r} where a time was expected; write it as 90, 90s, 5m, 1.5h or 1h30m")
    return sum(float(n) * size for n, (_, size) in zip(found.groups(), _UNITS) if n)


T = TypeVar("T")


def to_json(settings: Any) -> dict[str, Any]:
    """Turn settings into plain JSON values."""
    return asdict(settings)


def from_json(kind: type[T], values: dict[str, Any], where: Path | str) -> T:
    """Rebuild settings of `kind` from JSON; unknown names are an error that names them and the file `where`."""
    if not isinstance(values, dict):
        raise InputError(
            f"{where} holds {type(values).__name__} where {kind.__name__} was expected; make the run again"
        )
    known = {f.name: f for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(
            f"{where} has settings this version does not know: {', '.join(unknown)}; "
            "it was written by another version of cgc, so make the run again with this one"
        )
    made = {}
    for name, value in values.items():
        factory = known[name].default_factory
        made[name] = from_json(factory, value, where) if is_dataclass(factory) else value  # pyright: ignore
    return kind(**made)
