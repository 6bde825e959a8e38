"""What each command takes: a frozen dataclass a command; a field's docstring is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from cgc.masks.regions import RegionMerging
from cgc.masks.sam import SegmentAnything
from cgc.settings import (
    BlockSettings,
    ClusterSettings,
    Edges,
    EvalSettings,
    JointSettings,
    LiftSettings,
    MaskSettings,
    ReconstructSettings,
    SceneSettings,
    SharpenSettings,
    TrainSettings,
)

Preset = Literal["quick", "short", "default", "full", "fast", "standard", "paper"]
Device = Annotated[
    str,
    arg(
        metavar="auto|cpu|cuda|cuda:N",
        help="Where to compute: auto (CUDA where there is any that can be used), cpu, cuda, cuda:1, ...",
    ),
]
Quiet = Annotated[bool, arg(help="Show no progress.")]
RunArgument = Annotated[Path, arg(metavar="RUN", help="The run folder; the name alone, without --out, will do.")]


@dataclass(frozen=True)
class Demo:
    """Do the main job on the bundled scene: photos and masks in, labelled 3D objects and a report out."""

    out: Path = Path("runs/demo")
    """The run folder. A run that was stopped goes on where it was."""
    preset: Preset = "short"
    """How much time to spend training: quick, short, default or full; on a GPU fast (7,000 steps) or standard (30,000);
    or paper, the published method to compare."""
    train: TrainSettings = field(default_factory=TrainSettings)
    lift: LiftSettings = field(default_factory=LiftSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    joint: JointSettings = field(default_factory=JointSettings)
    sharpen: SharpenSettings = field(default_factory=SharpenSettings)
    blocks: BlockSettings = field(default_factory=BlockSettings)
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Run:
    """Go from photos to labelled 3D objects; cameras and masks are made where there are none."""

    scene_folder: Annotated[
        Positional[Path],
        arg(
            metavar="SCENE",
            help="Folder with images/ and sparse/0 or transforms.json; or bare photos or a video, whose cameras "
            "are found as `cgc reconstruct` does.",
        ),
    ]
    masks: Annotated[str, arg(metavar="DIR|auto|none")] = "auto"
    """Folder with one id map a view (PNG, 8 or 16 bit, 0 = unassigned); views without one are fine. auto: those of the
    run; else those that `cgc masks` has made of the scene; else they are made: at once by Segment Anything where its
    weights or a GPU are, or by merging regions once there are splats. none: the run ends with the splats."""
    out: Path | None = None
    """The run folder (default: runs/NAME, after the scene). A run that was stopped goes on where it was."""
    splats: Path | None = None
    """Existing splats of this scene (.ply, .splat, .spz, .sog, .ksplat), in place of training."""
    preset: Preset = "default"
    """How much time to spend training: quick, short, default or full; on a GPU fast (7,000 steps) or standard (30,000),
    which is what default means there; or paper, the published method to compare."""
    scene: OmitArgPrefixes[SceneSettings] = field(default_factory=SceneSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    lift: LiftSettings = field(default_factory=LiftSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    joint: JointSettings = field(default_factory=JointSettings)
    sharpen: SharpenSettings = field(default_factory=SharpenSettings)
    blocks: BlockSettings = field(default_factory=BlockSettings)
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Reconstruct:
    """Find the cameras of bare photos (or of a video) by structure-from-motion: makes a scene."""

    photos: Annotated[Positional[Path], arg(metavar="PHOTOS", help="Folder of photos, or a video file.")]
    out: Path | None = None
    """The scene's folder (default: PHOTOS itself where it has images/, else PHOTOS_scene beside it)."""
    settings: OmitArgPrefixes[ReconstructSettings] = field(default_factory=ReconstructSettings)
    quiet: Quiet = False


@dataclass(frozen=True)
class Masks:
    """Make the masks of a scene with Segment Anything or without any weights, or take those of another tool."""

    scene_folder: Annotated[Positional[Path], arg(metavar="SCENE", help="Folder of a scene.")]
    out: Path | None = None
    """Where the masks go (default: masks/ in the scene)."""
    source: Annotated[Path | None, arg(name="from", metavar="PATH")] = None
    """Take the masks that another tool has left in this folder or file."""
    format: str = "auto"
    """The format of --from; auto finds it out."""
    tracked: bool = False
    """The ids of --from mean the same thing in every view: then each Gaussian takes the id that covers most of it."""
    resize: Literal["error", "nearest"] = "error"
    """What to do with masks of --from of another size than their photo."""
    preset: Literal["fast", "default", "fine"] = "default"
    """How much care to take: fast, default or fine (small things and parts)."""
    masks: OmitArgPrefixes[MaskSettings] = field(default_factory=MaskSettings)
    sam: SegmentAnything = field(default_factory=SegmentAnything)
    regions: RegionMerging = field(default_factory=RegionMerging)
    downscale: int = 1
    """Use images this many times smaller."""
    max_side: int = 0
    """Shrink images so that neither side is longer than this, in pixels; 0 keeps their size."""
    preview: bool = False
    """Draw a contact sheet of the masks, preview.jpg beside them."""
    overwrite: bool = False
    """Replace masks in the folder that were made otherwise."""
    quiet: Quiet = False


@dataclass(frozen=True)
class Clean:
    """Copy a splat file without the Gaussians that are not finite, so that `cgc run SCENE --splats` takes it."""

    splats: Annotated[
        Positional[Path],
        arg(metavar="SPLATS", help="Splats of any kind that --splats takes (.ply, .splat, .spz, .sog, .ksplat)."),
    ]
    out: Path | None = None
    """The copy, a 3DGS .ply (default: NAME_clean.ply beside). Its attribute source_row says which Gaussian of the file
    each was."""
    quiet: Annotated[bool, arg(help="Say nothing.")] = False


@dataclass(frozen=True)
class Train:
    """Train the splats of a run again; --scene makes a new run that has splats only."""

    out: RunArgument
    scene_folder: Annotated[Path | None, arg(name="scene", metavar="SCENE")] = None
    """The scene of a run that does not exist yet, or where the scene of a run lies now."""
    preset: Preset | None = None
    """Take the training settings of a preset: quick, short, default (on a GPU: standard), full, fast, standard or
    paper."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=TrainSettings)
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Lift:
    """Learn a feature on every Gaussian of a run from its masks."""

    out: RunArgument
    masks: Path | None = None
    """Take the id maps from this folder (default: the run's)."""
    lift: OmitArgPrefixes[LiftSettings] = field(default_factory=LiftSettings)
    blocks: BlockSettings = field(default_factory=BlockSettings)
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Cluster:
    """Cluster the features of a run into segments."""

    out: RunArgument
    cluster: OmitArgPrefixes[ClusterSettings] = field(default_factory=ClusterSettings)
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Sharpen:
    """Split and move the Gaussians of a run that show in two objects, so that objects end where the masks say."""

    out: RunArgument
    sharpen: OmitArgPrefixes[SharpenSettings] = field(default_factory=SharpenSettings)
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Render:
    """Render the id map of every view of a run, and measure them."""

    out: RunArgument
    level: float | None = None
    """Only write id maps of this level of the hierarchy, 0 (wholes) to 1 (smallest parts), into masks_at_LEVEL/."""
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Export:
    """Write every segment of a run as a plain 3DGS PLY; or some objects of it, in some formats.

    A folder that `cgc edit` has saved will do too; of it, all goes into export/.
    """

    out: RunArgument
    objects: tuple[str, ...] = ()
    """The ids, or names, to export (default: all that are shown)."""
    format: tuple[str, ...] = ()
    """What to write, some of: ply, selection (one PLY of all), rest (what is left without them, healed as by `cgc edit
    --remove`), labelled (a PLY with labels), labels (.npy), points, boxes (JSON and CSV), masks, coco, cutouts,
    turntable (GIF), video (MP4)."""
    to: Path | None = None
    """The folder for it (default: export/ in the run, export_at_LEVEL/ with --level)."""
    level: float | None = None
    """Write the segments of this level of the hierarchy, 0 (wholes) to 1 (smallest parts); of a run, without
    --objects and --format, into segments_at_LEVEL/."""
    edges: Edges = "photos"
    """Where masks, coco and cutouts end: at the edges that the photos show, or where pictures of the splats have the
    borders, as in the run's own masks/."""
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Query:
    """Ask which objects a run has: all of them, or those at a pixel, a point, in a box, like another, or by words.

    Columns: "best view" shows most of it; "in" is the whole that holds it, "parts" those that it holds (ids all).
    """

    run: Annotated[Positional[Path], arg(metavar="RUN", help="A run folder, or one that `cgc edit` has saved.")]
    click: tuple[str, ...] = ()
    """VIEW,X,Y: what is at this pixel. Several, of any views, add up: all that they are on, or the whole that this
    nearly is."""
    not_click: tuple[str, ...] = ()
    """VIEW,X,Y: and is not at this one."""
    point: tuple[float, float, float] | None = None
    """X Y Z: what is at this point of the world."""
    ray: tuple[float, float, float, float, float, float] | None = None
    """Where from and which way: what a ray meets, from near to far."""
    box: tuple[float, float, float, float, float, float] | None = None
    """X0 Y0 Z0 X1 Y1 Z1: what is mostly in this box."""
    rect: str | None = None
    """VIEW,X0,Y0,X1,Y1: what is mostly in this rectangle of a view."""
    mask: str | None = None
    """VIEW,FILE.png: what fits this mask of a view best."""
    similar: str | None = None
    """The objects most like this one."""
    text: str | None = None
    """The objects that fit these words best (needs `pip install 'contrastive-gaussian-clustering[text]'`)."""
    text_model: str = "ViT-B-32"
    """The model of open_clip that reads them."""
    text_weights: str = "laion2b_s34b_b79k"
    """Its weights: a name that open_clip knows, fetched once, or a file, for machines without a network."""
    most: int = 5
    """How many --similar and --text find."""
    level: float | None = None
    """Ask at this level of the hierarchy, 0 (wholes) to 1 (smallest parts)."""
    json: bool = False
    """Print JSON."""
    device: Device = "auto"


@dataclass(frozen=True)
class Edit:
    """Change the objects of a run, in the order of these options, and save the result elsewhere; the run stays.

    An object is meant by its id, or by its name where it has one (one of digits alone is taken for an id).
    """

    run: Annotated[Positional[Path], arg(metavar="RUN", help="A run folder, or one that `cgc edit` has saved.")]
    out: Path
    """The folder to save in; `cgc query`, `edit`, `export` and `view` take it like a run."""
    rename: tuple[str, ...] = ()
    """ID=NAME"""
    recolor: tuple[str, ...] = ()
    """ID=#RRGGBB: give an object this mean colour; its shading stays where that leaves room: not in a pure #FF0000."""
    merge: tuple[str, ...] = ()
    """Join these into the first of them."""
    split: tuple[str, ...] = ()
    """Split these into their parts."""
    scale: tuple[str, ...] = ()
    """ID=FACTOR; what is scaled, turned and moved does so in this order, about its centre."""
    rotate: tuple[str, ...] = ()
    """ID=X,Y,Z: turn about this axis, by as many degrees as it is long."""
    move: tuple[str, ...] = ()
    """ID=X,Y,Z, in world units."""
    keep: tuple[str, ...] = ()
    """Keep these alone."""
    remove: tuple[str, ...] = ()
    """Remove these."""
    halo: bool = True
    """Remove (or move along) what else shows that they were there, and colour what they hid like what is beside it."""
    fill: bool = True
    """Continue flat surfaces under them with new Gaussians, and take their shade away; needs --halo."""
    device: Device = "auto"


@dataclass(frozen=True)
class Report:
    """Write the report of a run, report/index.html."""

    out: RunArgument
    quiet: Quiet = False
    device: Device = "auto"


@dataclass(frozen=True)
class Eval:
    """Score a run against truth: instances, prompts and pictures, or a benchmark as its authors define it."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUN ...]")] = ()
    """The run folder; several are one scene of a benchmark each; none with --predictions."""
    settings: OmitArgPrefixes[EvalSettings] = field(default_factory=EvalSettings)
    quiet: bool = False
    """Show no tables, only where the results lie."""
    device: Device = "auto"


@dataclass(frozen=True)
class Info:
    """Say what a run folder holds: its steps, times, quality and segments."""

    out: RunArgument


@dataclass(frozen=True)
class View:
    """Look at the objects of a run, click, isolate, delete: in a window, in a browser, or in one picture."""

    run: Annotated[Positional[Path], arg(metavar="RUN", help="A run folder, or one that `cgc edit` has saved.")]
    screenshot: Path | None = None
    """Write one picture here, .png or .jpg, in place of a window; it needs no display and no GPU."""
    web: bool = False
    """Show it in a browser: for machines without a display, or reached over SSH."""
    port: int = 8080
    """The port of --web."""
    host: str = "127.0.0.1"
    """Who may look at --web: this computer only, or with 0.0.0.0 everybody in the network."""
    mode: Literal["color", "segments", "features", "confidence", "depth"] | None = None
    """What is shown at first (default: color; in a picture: segments)."""
    camera: str = "orbit"
    """A photo's name; orbit; or orbit:90, a quarter further on."""
    size: str | None = None
    """WIDTHxHEIGHT, in pixels."""
    ids: bool = False
    """Write the objects' ids on the picture of --screenshot, as the report does."""
    level: float | None = None
    """The level of the hierarchy, 0 (wholes) to 1 (smallest parts)."""
    out: Path | None = None
    """Where pictures and exports are saved (default: view/ in the run)."""
    device: Device = "auto"


COMMANDS = {
    "demo": Demo,
    "run": Run,
    "reconstruct": Reconstruct,
    "masks": Masks,
    "clean": Clean,
    "train": Train,
    "lift": Lift,
    "cluster": Cluster,
    "sharpen": Sharpen,
    "render": Render,
    "export": Export,
    "report": Report,
    "eval": Eval,
    "info": Info,
    "query": Query,
    "edit": Edit,
    "view": View,
}
