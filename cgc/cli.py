"""The command line: a config and a call per command, no logic.

Settings of a command default to those of its preset, or to those the run folder was made with; what is given on the
command line replaces them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from cgc import __version__, parallel
from cgc.errors import InputError
from cgc.masks.regions import PRESETS as REGION_PRESETS
from cgc.masks.regions import RegionMerging
from cgc.masks.sam import PRESETS as SAM_PRESETS
from cgc.masks.sam import SegmentAnything
from cgc.settings import (
    BlockSettings,
    ClusterSettings,
    EvalSettings,
    JointSettings,
    LiftSettings,
    MaskSettings,
    ReconstructSettings,
    RunSettings,
    SceneSettings,
    SharpenSettings,
    TrainSettings,
    preset_of,
    seconds_of,
)

Preset = Literal["quick", "short", "default", "full", "fast", "standard", "paper"]
Device = Annotated[
    str,
    arg(
        metavar="auto|cpu|cuda|cuda:N",
        help="Where to compute: auto (CUDA where there is any that can be used), cpu, cuda, cuda:1, ...",
    ),
]
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
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Run:
    """Go from photos with a COLMAP model (or transforms.json) and masks to labelled 3D objects."""

    scene_folder: Annotated[
        Positional[Path], arg(metavar="SCENE", help="Folder with images/ and sparse/0, or transforms.json.")
    ]
    masks: Annotated[str, arg(metavar="DIR|auto|none")] = "auto"
    """Folder with one id map a view (PNG, 8 or 16 bit, 0 = unassigned); views without one are fine. auto: those of the
    run; else those that `cgc masks` has made of the scene; else they are made now. none: the run ends with the
    splats."""
    out: Path | None = None
    """The run folder (default: runs/NAME, after the scene). A run that was stopped goes on where it was."""
    splats: Path | None = None
    """An existing 3DGS .ply of this scene, in place of training."""
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
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Reconstruct:
    """Find the cameras of bare photos (or of a video) by structure-from-motion: makes a scene."""

    photos: Annotated[Positional[Path], arg(metavar="PHOTOS", help="Folder of photos, or a video file.")]
    out: Path | None = None
    """The scene's folder (default: PHOTOS itself where it has images/, else PHOTOS_scene beside it)."""
    settings: OmitArgPrefixes[ReconstructSettings] = field(default_factory=ReconstructSettings)
    quiet: bool = False
    """Show no progress."""


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
    quiet: bool = False
    """Show no progress."""


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
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Lift:
    """Learn a feature on every Gaussian of a run from its masks."""

    out: RunArgument
    masks: Path | None = None
    """Take the id maps from this folder (default: the run's)."""
    lift: OmitArgPrefixes[LiftSettings] = field(default_factory=LiftSettings)
    blocks: BlockSettings = field(default_factory=BlockSettings)
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Cluster:
    """Cluster the features of a run into segments."""

    out: RunArgument
    cluster: OmitArgPrefixes[ClusterSettings] = field(default_factory=ClusterSettings)
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Sharpen:
    """Split and move the Gaussians of a run that show in two objects, so that objects end where the masks say."""

    out: RunArgument
    sharpen: OmitArgPrefixes[SharpenSettings] = field(default_factory=SharpenSettings)
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Render:
    """Render the id map of every view of a run, and measure them."""

    out: RunArgument
    level: float | None = None
    """Only write id maps of this level of the hierarchy, 0 (wholes) to 1 (smallest parts), into masks_at_LEVEL/."""
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Export:
    """Write every segment of a run as a plain 3DGS PLY; or some objects of it, in some formats."""

    out: RunArgument
    objects: tuple[int, ...] = ()
    """The ids to export (default: all that are shown)."""
    format: tuple[str, ...] = ()
    """What to write, some of: ply, selection (one PLY of all), rest (what is left without them), labelled (a PLY with
    labels), labels (.npy), points, boxes (JSON and CSV), masks, coco, cutouts, turntable."""
    to: Path | None = None
    """The folder for it (default: export/ in the run)."""
    level: float | None = None
    """Write the segments of this level of the hierarchy, 0 (wholes) to 1 (smallest parts); without --objects and
    --format into segments_at_LEVEL/."""
    quiet: bool = False
    """Show no progress."""
    device: Device = "auto"


@dataclass(frozen=True)
class Query:
    """Ask which objects a run has: all of them, or those at a pixel, a point, in a box, like another, or by words."""

    run: Annotated[Positional[Path], arg(metavar="RUN", help="A run folder, or one that `cgc edit` has saved.")]
    click: tuple[str, ...] = ()
    """VIEW,X,Y: what is at this pixel (several: what all of them are on)."""
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
    similar: int | None = None
    """The objects most like this one."""
    text: str | None = None
    """The objects that fit these words best (needs the extra cgc[text])."""
    most: int = 5
    """How many --similar and --text find."""
    level: float | None = None
    """Ask at this level of the hierarchy, 0 (wholes) to 1 (smallest parts)."""
    json: bool = False
    """Print JSON."""
    device: Device = "auto"


@dataclass(frozen=True)
class Edit:
    """Change the objects of a run, in the order of these options, and save the result elsewhere; the run stays."""

    run: Annotated[Positional[Path], arg(metavar="RUN", help="A run folder, or one that `cgc edit` has saved.")]
    out: Path
    """The folder to save in; `cgc query`, `edit`, `export` and `view` take it like a run."""
    rename: tuple[str, ...] = ()
    """ID=NAME"""
    recolor: tuple[str, ...] = ()
    """ID=#RRGGBB: give an object this mean colour; its shading stays."""
    merge: tuple[int, ...] = ()
    """Join these into the first of them."""
    split: tuple[int, ...] = ()
    """Split these into their parts."""
    scale: tuple[str, ...] = ()
    """ID=FACTOR"""
    rotate: tuple[str, ...] = ()
    """ID=X,Y,Z: turn about this axis, by as many degrees as it is long."""
    move: tuple[str, ...] = ()
    """ID=X,Y,Z, in world units."""
    keep: tuple[int, ...] = ()
    """Keep these alone."""
    remove: tuple[int, ...] = ()
    """Remove these."""
    halo: bool = True
    """Remove what else shows that they were there, and colour what they hid like what is beside it."""
    fill: bool = True
    """Continue flat surfaces under them with new Gaussians, and take their shade away; needs --halo."""
    device: Device = "auto"


@dataclass(frozen=True)
class Report:
    """Write the report of a run, report/index.html."""

    out: RunArgument
    quiet: bool = False
    """Show no progress."""
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

TOGETHER = ("demo", "run", "masks", "train", "lift", "cluster", "sharpen", "render", "export", "report")
"""Commands that several processes do together; of the others the first process does all."""

STEPS = ("train", "lift", "cluster", "sharpen", "render", "export", "report", "info")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 with one sentence where the input is bad."""
    # torch's OpenMP threads and those of the kernels share the cores: torch's may spin briefly when they wait (a step
    # has many short loops), but not for long, or they take the cores from the kernels
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["version"]):
        print(f"cgc {__version__}")
        return 0
    try:
        parallel.join(cgc=__version__)
        if not arguments or arguments[0] not in COMMANDS:
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="cgc", description=__doc_main__, args=arguments or ["--help"]
            )
            return 2  # tyro has exited with help or an error before
        name, rest = arguments[0], arguments[1:]
        if name in STEPS and rest and not rest[0].startswith("-"):
            rest = ["--out", *rest]
        with parallel.hushed():
            config = _parse(name, _in_seconds(rest))
        if name in TOGETHER:
            _call(config)
        elif parallel.is_first():
            with parallel.alone():
                _call(config)
        parallel.leave()
        return 0
    except InputError as error:
        _complain(parallel.signed(error))
        return 2
    except OSError as error:  # the system's refusals that nothing closer to them has explained
        name = f"{error.filename} " if error.filename else "a file "
        reason = error.strerror or error
        _complain(f"{name}could not be read or written ({reason}); check it and its permissions")
        return 2
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "stopped; run the same command again to go on where it was")
        return 130


def _complain(text: str) -> None:
    """Print what went wrong, once for all processes."""
    if parallel.speaks():
        print(f"cgc: {text}", file=sys.stderr)


def _call(config: object) -> None:
    with parallel.importing():
        from cgc import kernels, pipeline

    kernels.keep_memory()
    kernels.be_quiet(getattr(config, "quiet", False))
    match config:
        case Demo(out, _, train, lift, cluster, joint, sharpen, blocks, quiet, device):
            scene = pipeline.demo_scene()
            settings = RunSettings(SceneSettings(), train, lift, cluster, joint, sharpen, blocks)
            pipeline.run_all(scene, out, settings, masks=scene / "masks", splats=None, quiet=quiet, device=device)
        case Run(folder, masks, out, splats, _, scene, train, lift, cluster, joint, sharpen, blocks, quiet, device):
            from cgc import prepare

            settings = RunSettings(scene, train, lift, cluster, joint, sharpen, blocks)
            out = out or _default_out(folder)
            prepare.check_given(folder, settings, masks, splats, out, device)
            folder = prepare.scene_of(folder, quiet=quiet)
            given = {"none": None, "auto": partial(prepare.masks_of, quiet=quiet, device=device)}.get(
                masks, Path(masks)
            )
            pipeline.run_all(folder, out, settings, masks=given, splats=splats, quiet=quiet, device=device)
        case Reconstruct(photos, out, settings, quiet):
            from cgc import prepare

            prepare.reconstruct_command(photos, out, settings, quiet=quiet)
        case Masks():
            from cgc import prepare

            prepare.masks_command(
                config.scene_folder, config.out, config.masks, config.sam, config.regions,
                SceneSettings(downscale=config.downscale, max_side=config.max_side),
                source=config.source, form=config.format, resize=config.resize, tracked=config.tracked,
                preview=config.preview, overwrite=config.overwrite, quiet=config.quiet,
            )  # fmt: skip
        case Train(out, Path() as folder, _, train, quiet, device) if not (out / "scene.json").exists():
            settings = RunSettings(train=train)
            pipeline.run_all(folder, out, settings, masks=None, splats=None, quiet=quiet, device=device)
        case Train(out, folder, _, train, quiet, device):
            pipeline.run_step(out, "train", scene=folder, train=train, quiet=quiet, device=device)
        case Lift(out, masks, lift, blocks, quiet, device):
            pipeline.run_step(out, "lift", lift=lift, blocks=blocks, masks=masks, quiet=quiet, device=device)
        case Cluster(out, cluster, quiet, device):
            pipeline.run_step(out, "cluster", cluster=cluster, quiet=quiet, device=device)
        case Sharpen(out, sharpen, quiet, device):
            pipeline.run_step(out, "sharpen", sharpen=sharpen, quiet=quiet, device=device)
        case Export(out, objects, formats, to, level, quiet, device) if objects or formats or to or _is_saved(out):
            from cgc import asking

            asking.export(out, to, objects=objects, formats=formats, level=level, quiet=quiet, device=device)
        case Export(out, level=None, quiet=quiet, device=device):
            pipeline.run_step(out, "export", quiet=quiet, device=device)
        case Query():
            from cgc import asking

            asking.query(
                config.run, clicks=config.click, not_clicks=config.not_click, point=config.point or (),
                ray=config.ray or (), box=config.box or (), rect=config.rect, mask=config.mask, similar=config.similar,
                text=config.text, most=config.most, level=config.level, as_json=config.json,
                device=config.device,
            )  # fmt: skip
        case View():
            from cgc import asking

            asking.view(
                config.run, picture=config.screenshot, web=config.web, port=config.port, host=config.host,
                mode=config.mode, camera=config.camera, size=config.size, level=config.level, out=config.out,
                device=config.device,
            )  # fmt: skip
        case Edit():
            from cgc import asking

            asking.edit(
                config.run, config.out, rename=config.rename, recolor=config.recolor, merge=config.merge,
                split=config.split, scale=config.scale, rotate=config.rotate, move=config.move, keep=config.keep,
                remove=config.remove, halo=config.halo, fill=config.fill, device=config.device,
            )  # fmt: skip
        case Render(out, float() as level, quiet, device) | Export(
            out, level=float() as level, quiet=quiet, device=device
        ):
            pipeline.run_at(out, type(config).__name__.lower(), level, quiet=quiet, device=device)
        case Render(out, _, quiet, device) | Report(out, quiet, device):
            pipeline.run_step(out, type(config).__name__.lower(), quiet=quiet, device=device)
        case Eval(runs, settings, quiet, device):
            from cgc.scoring.evaluate import evaluate

            evaluate(runs, settings, quiet=quiet, device=device)
        case Info(out):
            pipeline.info(out)
        case _:
            raise AssertionError(config)


__doc_main__ = (
    "cgc: segment any Gaussian-splat scene into objects. Start with `cgc demo`; then `cgc run SCENE --masks DIR` does "
    "the same on your own photos with a COLMAP model. The other commands are its steps, each on a run folder and each "
    "rerunnable alone. `cgc COMMAND --help` explains one."
)


def _is_saved(folder: Path) -> bool:
    """Say whether a folder is what an edit has saved, and no run."""
    return (folder / "segmentation.json").is_file()


def _default_out(scene_folder: Path) -> Path:
    return Path("runs") / scene_folder.resolve().name


def _parse(name: str, arguments: list[str]) -> object:
    """Parse a command. What is not given is as in the run it is called on, or as in the preset where there is none."""

    def parse(settings: RunSettings) -> object:
        default = _with_defaults(name, settings)
        return tyro.cli(COMMANDS[name], prog=f"cgc {name}", args=arguments, default=default)

    if name in ("eval", "reconstruct", "query", "edit", "view"):
        return tyro.cli(COMMANDS[name], prog=f"cgc {name}", args=arguments)
    if name == "masks":
        return _parse_masks(arguments)
    preset = _value(arguments, "--preset")
    wanted = preset or ("short" if name == "demo" else "default")
    trains = name in ("demo", "run", "train") and wanted == "default"
    settings = preset_of(wanted, gpu=trains and _has_gpu(arguments))
    config = parse(settings)
    out = config.out or _default_out(config.scene_folder)  # pyright: ignore[reportAttributeAccessIssue]
    if not (out / "config.json").exists():
        return config
    from cgc.run_folder import open_run

    made_with = open_run(out).settings
    return parse(replace(made_with, **_set_by(settings)) if preset else made_with)


def _parse_masks(arguments: list[str]) -> object:
    """Parse `cgc masks`: what is not given is as in its preset."""
    preset = _value(arguments, "--preset") or "default"
    default = Masks(scene_folder=tyro.MISSING)
    if preset in SAM_PRESETS:
        default = replace(default, sam=SAM_PRESETS[preset], regions=REGION_PRESETS[preset])
    return tyro.cli(Masks, prog="cgc masks", args=arguments, default=default)


def _set_by(preset: RunSettings) -> dict[str, object]:
    """Return what a preset sets: the training, and each other step that it does not leave as usual."""
    usual, parts = RunSettings(), ("train", "lift", "cluster", "joint", "sharpen")
    return {p: getattr(preset, p) for p in parts if p == "train" or getattr(preset, p) != getattr(usual, p)}


def _value(arguments: list[str], option: str) -> str | None:
    """Return the value of an option without parsing the rest: the defaults of the parse depend on it."""
    for i, word in enumerate(arguments):
        if word == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _has_gpu(arguments: list[str]) -> bool:
    """Say whether a command computes on a GPU: where it trains, that decides what the preset `default` means."""
    device = _value(arguments, "--device") or "auto"
    if device == "cpu" or {"-h", "--help"} & set(arguments):
        return False  # without importing torch
    from cgc.device import choose
    from cgc.progress import console

    return choose(device, console.print)[0].type != "cpu"


def _in_seconds(arguments: list[str]) -> list[str]:
    """Return the arguments with the value of `--budget` in seconds; InputError where it is no time."""
    read = list(arguments)
    for i, word in enumerate(arguments):
        if word == "--budget" and i + 1 < len(arguments):
            read[i + 1] = str(seconds_of(arguments[i + 1]))
        if word.startswith("--budget="):
            read[i] = f"--budget={seconds_of(word.partition('=')[2])}"
    return read


def _with_defaults(name: str, settings: RunSettings) -> object:
    """Return the command with these settings, and all else as yet missing."""
    kind = COMMANDS[name]
    known = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "scene"}
    if kind is Demo:
        return Demo(**known)
    if kind is Run:
        return Run(scene_folder=tyro.MISSING, scene=settings.scene, **known)
    own = {name, "blocks"} if name == "lift" else {name}
    return kind(out=tyro.MISSING, **{k: v for k, v in known.items() if k in own})


if __name__ == "__main__":
    sys.exit(main())
