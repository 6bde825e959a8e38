"""The folder a run leaves: its settings, what it came from, and which steps are done with which settings.

    config.json    every setting, enough to repeat the run
    scene.json     the scene, masks and splats it came from, with a fingerprint
    stats.json     times, memory, quality; and per step the key it was done with and the files that it left

A step's key hashes its settings, its inputs and the key of the step before: a step whose key is unchanged and whose
files are there, as long as it left them, is done and need not run again; any other is stale.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_type_hints

from cgc import parallel
from cgc.errors import InputError, some
from cgc.files import fits, read_json, sha256, write_json
from cgc.settings import RunSettings, check, from_json, to_json
from cgc.system import hold, let_go, peak_rss_bytes

if TYPE_CHECKING:
    from cgc.scene.corrections import Correction
    from cgc.scene.types import Scene

FORMAT = 1
"""Version of the folder's layout; a folder of another version is refused, not misread."""

STEPS = ("train", "lift", "cluster", "sharpen", "render", "export", "report")
_QUALITY = ("quality", "psnr_train", "psnr_test", "ssim_train", "ssim_test", "uneven")
_SCORES = ("miou_things", "boundary_iou", "pq", "instances")
STEP_FACTS = {
    "lift": ("blocks",),
    "cluster": ("segments", "noise", "level"),
    "sharpen": ("sharpened", "sharpened_sha256"),
    "render": (*_QUALITY, *_SCORES, "truth"),
}
"""What a step adds to stats.json beside its time."""
_OUTPUTS = {
    "train": "splats.ply",
    "lift": "features.safetensors",
    "cluster": "segments.npz",
    "sharpen": "sharpened.npz",
    "render": "segments.json",
    "export": "segments",
    "report": "report/index.html",
}
_READ = {"lift": ("features.safetensors",)}
"""What other steps need of a step, where that is not all: masks of its own are looked at by who reads them."""
_HASHES = {"splats.ply": ("train", "splats_sha256"), "sharpened.ply": ("sharpen", "sharpened_sha256")}
"""Which step leaves the splats that labels are of, and what stats.json calls their hash."""
TRAINED_FEATURES = "trained_features.safetensors"
"""What training leaves beside the splats where it learns features too."""
CAMERAS = "cameras.json"
"""What rendering leaves beside the table: the views' cameras, for when the scene is gone."""
OWN_MASKS = "regions"
"""What a run's source has for masks that it makes itself, of its splats' depth: their folder in the run's."""
CORRECTIONS = "corrections.json"
"""What training leaves beside the splats where it learns exposures or poses."""
EXTRAS = "extras.npz"
"""What a run keeps of given splats beside them: attributes that are not a splat's."""
_BESIDE = {
    "train": (EXTRAS,),
    "sharpen": ("sharpened.ply",),
    "render": (CAMERAS, "masks/**/*.png"),
    "export": ("segments/*.ply",),
}
"""Where the files lie that a step leaves for others to read beside its main ones: nothing else writes there."""
YOUNGER = {
    "features": "none", "views_per_step": 1, "strategy": "default", "mcmc_growth": 0.05, "mcmc_noise": 5e5,
    "mcmc_opacity": 0.01, "mcmc_scale": 0.01, "max_length": 0.0, "exposure": False, "exposure_lr": 2e-3,
    "poses": False, "poses_lr": 3e-5, "capture_lr_final": 0.05, "backdrop": 0,
}  # fmt: skip
"""Settings of training that runs of the same format may lack, and what they were made with."""
_BEFORE = {
    "lift": "train",
    "cluster": "lift",
    "sharpen": "cluster",
    "render": "sharpen",
    "export": "sharpen",
    "report": "render",
}


class ViewFacts(TypedDict):
    """What stats.json has of a view: its split, train or test, and how near its picture comes to the photo."""

    split: str
    psnr: float
    ssim: float


class ThingFacts(TypedDict):
    """What stats.json has of a true thing."""

    name: str
    predicted: int
    pixels: int
    iou: float
    boundary_iou: float


class SharpenFacts(TypedDict):
    """What is read again of sharpening; stats.json has more, which older runs may lack."""

    used: bool
    split: int
    psnr_before: float
    psnr_after: float


class Stats(TypedDict, total=False):
    """What is read again of stats.json, as far as the steps have come."""

    steps: dict[str, str]
    files: dict[str, dict[str, int]]
    seconds: dict[str, float]
    gaussians: int
    given: bool
    splats_sha256: str
    origin: list[float] | None
    extent: float
    exposures: list[float] | None
    moved: list[float] | None
    peak_rss_bytes: int
    segments: int
    noise: int
    level: float
    sharpened: SharpenFacts | None
    sharpened_sha256: str | None
    quality: dict[str, ViewFacts]
    psnr_train: float | None
    psnr_test: float | None
    ssim_train: float | None
    ssim_test: float | None
    uneven: float | None
    truth: str | None
    miou_things: float
    boundary_iou: float
    pq: float
    instances: list[ThingFacts]


@dataclass(frozen=True)
class Source:
    """What a run is made from; paths are absolute, but for masks that it makes itself (OWN_MASKS).

    `fingerprint` identifies the scene's model and images. `masks_hash` and `splats_hash` are of the files' contents, of
    the training views' masks only.
    """

    scene: str
    masks: str | None
    splats: str | None
    fingerprint: dict[str, Any]
    masks_hash: str | None = None
    splats_hash: str | None = None

    def scene_identity(self) -> dict[str, Any]:
        """The fingerprint without where the scene lies: a scene that was moved is the same scene."""
        return {k: v for k, v in self.fingerprint.items() if k != "root"}


@dataclass
class RunFolder:
    """An opened run folder; `stats` is written back by `finish`."""

    root: Path
    settings: RunSettings
    source: Source
    stats: dict[str, Any]

    @property
    def trains_features(self) -> bool:
        """Say whether features are learned beside colour in training."""
        return self.settings.train.features == "joint" and not self.source.splats

    @property
    def masks_folder(self) -> Path | None:
        """Where the masks lie, if there are any."""
        return self.root / self.source.masks if self.source.masks else None

    @property
    def makes_masks(self) -> bool:
        """Say whether the masks are the run's own, made once there are splats."""
        return self.source.masks == OWN_MASKS

    @property
    def corrects_photos(self) -> bool:
        """Say whether training finds out how photos were exposed, or where their cameras were."""
        return (self.settings.train.exposure or self.settings.train.poses) and not self.source.splats

    @property
    def is_cut(self) -> bool:
        """Say whether the splats are more than one block may have, so that they are lifted and clustered in several."""
        return 0 < self.settings.blocks.gaussians < self.stats.get("gaussians", 0)

    def read_scene(self, *, quiet: bool = False) -> Scene:
        """Read the scene; InputError where it is not the one that the run was made from."""
        from cgc.scene.read import fingerprint, read_scene  # pycolmap takes half a second to import

        if not Path(self.source.scene).exists():
            raise InputError(
                f"{self.root} is a run of the scene {self.source.scene}, which is not there; put it back, or say where "
                f"it lies now: cgc run SCENE --out {self.root}"
            )
        scene = read_scene(Path(self.source.scene), self.settings.scene, quiet=quiet)
        now = replace(self.source, fingerprint=fingerprint(scene))
        if now.scene_identity() != self.source.scene_identity():
            raise InputError(
                f"{self.source.scene} is not the scene that {self.root} was made from (other images or another model); "
                "restore it, or start a new run with another --out"
            )
        return scene

    def corrections(self) -> dict[str, Correction]:
        """Return what training has found out about photos, by their names; nothing where it was not asked to."""
        if not (self.corrects_photos and self.is_done("train")):
            return {}
        from cgc.scene.corrections import read_corrections

        return read_corrections(self.root / CORRECTIONS)

    def key(self, step: str) -> str:
        """Hash everything the outcome of `step` depends on."""
        settings = self.settings
        own: dict[str, Any] = {
            "train": {
                "scene": self.source.scene_identity(),
                "splats": self.source.splats_hash,
                "read": to_json(settings.scene),
            },
            "lift": {"masks": self.source.masks_hash, "lift": self._lifts_by()},
            "cluster": to_json(settings.cluster),
            "sharpen": self._sharpens_by() if settings.sharpen.steps else {},
            "report": {"truth": truth} if (truth := self.stats.get("truth")) else {},
        }.get(step, {})
        if step == "train" and not self.source.splats:
            own["train"] = _changed(settings.train, YOUNGER)
            del own["train"]["checkpoint_every"], own["train"]["photos"]
        if step == "train" and self.trains_features:
            own |= {"joint": to_json(settings.joint), "masks": self.source.masks_hash}
        if step == "lift" and settings.lift.method == "joint" and not self.trains_features:
            own["joint"] = to_json(settings.joint)
        if step == "lift" and "splats_sha256" in self.stats:  # the same settings may have made others: of other photos
            own["splats"] = self.stats["splats_sha256"]
        if step == "lift" and self.is_cut:
            own["blocks"] = to_json(settings.blocks)
        before = _BEFORE.get(step)
        text = json.dumps([FORMAT, step, own, self.key(before) if before else None], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def key_of_splats(self) -> str:
        """What the splats that are there were made of, and themselves."""
        return self.key("train") + self.stats.get("splats_sha256", "")[:16]

    def _lifts_by(self) -> dict[str, Any]:
        """Its settings, without a method that is the usual one of such masks."""
        lift, tracked = self.settings.lift, (self.source.masks_hash or "").startswith("tracked")
        usual = lift.method == ("vote" if tracked else "contrast")
        return _changed(replace(lift, method="auto") if usual else lift, {"method": "auto"})

    def _sharpens_by(self) -> dict[str, Any]:
        """Its settings, and those of training that say what a picture is: with given splats no other step has them."""
        train = self.settings.train
        pictures = {"ssim_weight": train.ssim_weight, "background": train.background}
        return to_json(self.settings.sharpen) | (pictures if self.source.splats else {})

    def is_done(self, step: str) -> bool:
        """Say whether the step's files are as it left them, made with today's settings and inputs."""
        return self.is_current(step) and not self.undone(step)

    def is_current(self, step: str) -> bool:
        """Say whether the step was last done with today's settings and inputs, whatever has become of its files."""
        return self.stats["steps"].get(step) == self.key(step)

    def undone(self, step: str, *names: str) -> str:
        """Say what has become of a step's files, or of those of `names`, or of what it scored; "" where nothing has.

        Of steps that were done before sizes were kept, only the main files are asked for, and only to be there.
        """
        left = dict.fromkeys(self._main_files(step)) | self.stats.get("files", {}).get(step, {})
        lost = [n for n in left if (not names or n in names) and not _is_whole(self.root / n, left[n])]
        if lost:
            return f"{some(lost)} in {self.root}: gone, or not as long as the step {step} left it"
        if step == "render" and not names and "truth" in self.stats and Path(self.source.scene).is_dir():
            from cgc.evaluation.truth import mark_of_truth

            if self.stats["truth"] != mark_of_truth(Path(self.source.scene)):
                return f"the truth in {self.source.scene} is not what the step {step} scored"
        return ""

    def _main_files(self, step: str) -> list[str]:
        """Return the files without which a step was never done."""
        beside = [TRAINED_FEATURES] * self.trains_features + [CORRECTIONS] * self.corrects_photos
        return [_OUTPUTS[step], *(beside if step == "train" else [])]

    def _left_by(self, step: str) -> dict[str, int]:
        """Return the files that a step has just left, by their names in the folder, with their sizes."""
        own_masks = [f"{OWN_MASKS}/**/*"] * (step == "lift" and self.makes_masks)
        patterns = {*self._main_files(step), *_BESIDE.get(step, ()), *own_masks}
        paths = sorted(p for pattern in patterns for p in self.root.glob(pattern) if p.is_file())
        shown = [p for p in paths if not p.name.startswith(".")]
        return {p.relative_to(self.root).as_posix(): p.stat().st_size for p in shown}

    def has_done(self, step: str) -> bool:
        """Say whether the step was done before, if with other settings or inputs."""
        return step in self.stats["steps"] or (self.root / _OUTPUTS[step]).exists()

    def require(self, step: str) -> None:
        """Raise InputError unless `step` and those before it are done, with today's settings and inputs."""
        if step in _BEFORE:
            self.require(_BEFORE[step])
        path = self.root / _OUTPUTS[step]
        if not path.exists():
            state = f"{self.root} has no {_OUTPUTS[step]} yet"
        elif not self.is_current(step):
            state = f"{path} is out of date"
        else:
            state = self.undone(step, *_READ.get(step, ()))
        if state:
            raise InputError(f"{state}: run `cgc {step} {self.root}` first (or `cgc run`, which does every step)")

    def unchanged(self, name: str) -> Path:
        """Return the path of the run's splats; InputError where the file is not the one that its labels are of.

        Runs made before hashes were kept have none to compare; that a file is missing is for its reader to say.
        """
        path, (step, hashed) = self.root / name, _HASHES[name]
        wanted = self.stats.get(hashed)
        if wanted and path.is_file() and sha256(path) != wanted:
            raise InputError(
                f"{path} is not the file that the run's labels are of: it was changed, cut off or replaced; put the "
                f"original back, make it again (`cgc {step} {self.root}`, then `cgc run`), or give the changed file "
                "to a new run with --splats"
            )
        return path

    @contextlib.contextmanager
    def changing(self, step: str) -> Iterator[None]:
        """Let a step change its files: it is not done meanwhile, since it may be killed when some have changed.

        Where it fails before one has, it is what it was.
        """
        if not parallel.is_first() or step not in self.stats["steps"]:
            yield
            return
        path, before = self.root / "stats.json", copy.deepcopy(self.stats)
        self._forget(step)
        write_json(path, self.stats)
        begun = path.stat().st_mtime_ns
        try:
            yield
        except BaseException:
            if not any(p.stat().st_mtime_ns >= begun for p in self.root.rglob("*") if p.is_file() and p != path):
                self.stats.clear()
                self.stats.update(before)
                write_json(path, self.stats)
            raise

    def _forget(self, step: str) -> None:
        """Drop what is known of a step; what it has found goes with it, so it has to be done again."""
        self.stats["steps"].pop(step, None)
        self.stats["seconds"].pop(step, None)
        self.stats.get("files", {}).pop(step, None)
        for name in STEP_FACTS.get(step, ()):
            self.stats.pop(name, None)

    def finish(self, step: str, seconds: float, **facts: Any) -> None:
        """Record that a step is done, with which settings, how long it took and what it found."""
        self.save_settings()
        for later in STEPS[STEPS.index(step) + 1 :]:
            if later in STEP_FACTS and not self.is_current(later):  # what it found is of something that is gone
                self._forget(later)
        self.stats["steps"][step] = self.key(step)
        self.stats["seconds"][step] = round(seconds, 3)
        self.stats.setdefault("files", {})[step] = self._left_by(step)
        self.stats.update(facts)
        self.stats["peak_rss_bytes"] = max(peak_rss_bytes(), self.stats.get("peak_rss_bytes", 0))
        write_json(self.root / "stats.json", self.stats)

    def save_settings(self) -> None:
        """Write config.json and scene.json where they are not as they should be; for the first process."""
        if not parallel.is_first():
            return
        for name, values in (("config.json", to_json(self.settings)), ("scene.json", asdict(self.source))):
            path, wanted = self.root / name, {"format": FORMAT, **values}
            if not path.exists() or read_json(path, f"the run's {name}") != wanted:
                write_json(path, wanted)


def _is_whole(path: Path, size: int | None) -> bool:
    """Say whether there is a file of a size, None: anything."""
    try:
        about = path.stat()
    except OSError:
        return False
    return size is None or (about.st_size == size and path.is_file())


def _changed(settings: Any, younger: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON without those `younger` than the format that are as they always were: runs stay done."""
    return {k: v for k, v in to_json(settings).items() if k not in younger or v != younger[k]}


_held: set[str] = set()  # the folders that this process holds


@contextlib.contextmanager
def at_work(root: Path) -> Iterator[None]:
    """Hold a run's folder, where there is one, for the first process; InputError where another command has it.

    The system lets go of it when a process ends, however that happens. Nothing is held where there are no such locks.
    """
    place = os.path.realpath(root)
    if not parallel.is_first() or not root.is_dir() or place in _held:
        yield
        return
    try:
        held = hold(root)
    except BlockingIOError as error:
        raise InputError(
            f"another command is at work in {root}; wait until it has ended, or choose another --out"
        ) from error
    _held.add(place)
    try:
        yield
    finally:
        _held.discard(place)
        let_go(held)


def create_run(root: Path, settings: RunSettings, source: Source) -> RunFolder:
    """Open `root` as the run of `source` with `settings`; done steps are kept, and masks or splats that `source` lacks.

    Nothing is written yet. InputError if it is a run of another scene, or a folder with other things in it.
    """
    stats: dict[str, Any] = {"steps": {}, "seconds": {}}
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file where a run folder was expected; choose another --out")
    if (root / "scene.json").exists() and (root / "config.json").exists():
        old = open_run(root)
        if old.source.scene_identity() != source.scene_identity():
            raise InputError(
                f"{root} is a run of another scene ({old.source.scene}, or its images or model have changed since), "
                f"not of {source.scene}; choose another --out, or remove that folder"
            )
        stats = old.stats
        if source.masks is None:
            masks = moved_masks(old.source.masks, old.source.scene, source.scene)
            source = replace(source, masks=masks, masks_hash=old.source.masks_hash)
        if source.splats is None:
            source = replace(source, splats=old.source.splats, splats_hash=old.source.splats_hash)
    elif root.exists() and not all(is_unfinished(path) for path in root.iterdir()):
        raise InputError(f"{root} is not empty and not a run folder; choose another --out, so that nothing is lost")
    return RunFolder(root, settings, source, stats)


def moved_masks(masks: str | None, old: str, new: str) -> str | None:
    """Return the folder of masks, which has moved with the scene from `old` to `new` if it lay in there."""
    if masks and masks != OWN_MASKS and not Path(masks).exists() and Path(masks).is_relative_to(old):
        there = new / Path(masks).relative_to(old)
        return str(there) if there.is_dir() else masks
    return masks


def is_unfinished(path: Path) -> bool:
    """Say whether a file is what a command leaves that was stopped while it wrote the first two files of a run."""
    return path.name in ("config.json", "scene.json") or ".partial" in path.name


def open_run(root: Path) -> RunFolder:
    """Open an existing run folder; InputError if it is none, broken, or of another version."""
    if not root.is_dir():
        what = "it is a file; give the folder" if root.exists() else "there is no such folder"
        raise InputError(f"{root} is no run folder: {what}; `cgc run SCENE --out DIR` makes one")
    if not (root / "config.json").exists() and not (root / "scene.json").exists():
        if (root / "segmentation.json").exists():
            raise InputError(
                f"{root} is a saved segmentation, which `cgc query`, `edit`, `export` and `view` take; give the run "
                "that it was made of"
            )
        raise InputError(
            f"{root} is no run folder (config.json is missing); make one with `cgc run SCENE --out {root}`"
        )
    for name in ("config.json", "scene.json"):
        if not (root / name).exists():
            begun = all(is_unfinished(path) for path in root.iterdir())
            where = f"again (`cgc run SCENE --out {root}`)" if begun else "anew in another folder (`cgc run`)"
            raise InputError(
                f"{root / name} is missing, without which a run cannot be opened; put it back, or make the run {where}"
            )
    config = _versioned(root / "config.json", "the run's config.json")
    scene = _versioned(root / "scene.json", "the run's scene.json")
    known = {field.name: field.default is MISSING for field in fields(Source)}
    odd = [f"it has no {name}" for name, needed in known.items() if needed and name not in scene]
    if odd := odd + [f"{name!r:.40} is unknown" for name in scene if name not in known]:
        raise InputError(f"{root / 'scene.json'} is not what this version writes ({some(odd)}); make the run again")
    source = Source(**scene)
    _check_kinds(root / "scene.json", vars(source), get_type_hints(Source))
    stats: dict[str, Any] = {"steps": {}, "seconds": {}}
    if (root / "stats.json").exists():
        found = read_json(root / "stats.json", "the run's stats.json")
        if not isinstance(found, dict) or not all(isinstance(found.get(k), dict) for k in stats):
            raise InputError(f"{root / 'stats.json'} is not what this version writes; make the run again")
        _check_kinds(root / "stats.json", found, get_type_hints(Stats))
        stats = found
    if isinstance(config.get("train"), dict):
        config["train"] = YOUNGER | config["train"]
    settings = from_json(RunSettings, config, root / "config.json")
    check(settings)
    return RunFolder(root, settings, source, stats)


def _check_kinds(path: Path, values: dict[str, Any], hints: dict[str, Any]) -> None:
    """Raise InputError for the first value of a JSON that is of another kind than it should be."""
    for name, value in values.items():
        if not fits(value, hints.get(name, Any)):
            raise InputError(
                f"{path} is not what this version writes ({name} is {str(value)[:40]!r}); make the run again"
            )


def _versioned(path: Path, what: str) -> dict[str, Any]:
    value = read_json(path, what)
    found = value.pop("format", None) if isinstance(value, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path} has format {found!r} where this version of cgc reads format {FORMAT}; "
            "use the version that made it, or make the run again"
        )
    return value
