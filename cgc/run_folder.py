"""The folder a run leaves: its settings, what it came from, and which steps are done with which settings.

    config.json    every setting, enough to repeat the run
    scene.json     the scene, masks and splats it came from, with a fingerprint
    stats.json     times, memory, quality; and per step the key it was done with

A step's key hashes its settings, its inputs and the key of the step before: a step whose key is unchanged and whose
files are there is done and need not run again; any other is stale.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgc.errors import InputError
from cgc.files import read_json, write_json
from cgc.settings import RunSettings, from_json, to_json

FORMAT = 1
"""Version of the folder's layout; a folder of another version is refused, not misread."""

STEPS = ("train", "lift", "cluster", "render", "export", "report")
_OUTPUTS = {
    "train": "splats.ply",
    "lift": "features.safetensors",
    "cluster": "segments.npz",
    "render": "segments.json",
    "export": "segments",
    "report": "report/index.html",
}


@dataclass(frozen=True)
class Source:
    """What a run is made from; paths are absolute. `fingerprint` identifies the scene's model and images."""

    scene: str
    masks: str | None
    splats: str | None
    fingerprint: dict[str, Any]


@dataclass
class RunFolder:
    """An opened run folder; `stats` is written back by `finish`."""

    root: Path
    settings: RunSettings
    source: Source
    stats: dict[str, Any]

    def key(self, step: str) -> str:
        """Hash everything the outcome of `step` depends on."""
        settings = self.settings
        own: dict[str, Any] = {
            "train": {
                "scene": self.source.fingerprint,
                "splats": self.source.splats,
                "read": to_json(settings.scene),
            },
            "lift": {"masks": self.source.masks, "lift": to_json(settings.lift)},
            "cluster": to_json(settings.cluster),
        }.get(step, {})
        if step == "train" and not self.source.splats:
            own["train"] = to_json(settings.train)
        before = {"train": None, "export": "cluster", "report": "render"}.get(step, STEPS[STEPS.index(step) - 1])
        text = json.dumps([FORMAT, step, own, self.key(before) if before else None], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_done(self, step: str) -> bool:
        """Say whether the step's files are there and were made with today's settings and inputs."""
        return self.stats["steps"].get(step) == self.key(step) and (self.root / _OUTPUTS[step]).exists()

    def require(self, step: str) -> None:
        """Raise InputError unless `step` has left its file."""
        if not (self.root / _OUTPUTS[step]).exists():
            raise InputError(
                f"{self.root} has no {_OUTPUTS[step]} yet: run `cgc {step} {self.root}` first "
                "(or `cgc run`, which does every step)"
            )

    def finish(self, step: str, seconds: float, **facts: Any) -> None:
        """Record that a step is done, how long it took and what it found; write stats.json."""
        self.stats["steps"][step] = self.key(step)
        self.stats["seconds"][step] = round(seconds, 3)
        self.stats.update(facts)
        self.stats["peak_rss_bytes"] = max(peak_rss_bytes(), self.stats.get("peak_rss_bytes", 0))
        write_json(self.root / "stats.json", self.stats)

    def save_settings(self) -> None:
        """Write config.json and scene.json."""
        write_json(self.root / "config.json", {"format": FORMAT, **to_json(self.settings)})
        write_json(self.root / "scene.json", {"format": FORMAT, **vars(self.source)})


def peak_rss_bytes() -> int:
    """The largest resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def create_run(root: Path, settings: RunSettings, source: Source) -> RunFolder:
    """Open `root` as the run of `source` with `settings`, making it if needed; done steps are kept.

    InputError if it is a run of another scene, or a folder with other things in it.
    """
    stats: dict[str, Any] = {"steps": {}, "seconds": {}}
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file where a run folder was expected; choose another --out")
    if (root / "scene.json").exists():
        old = open_run(root)
        if old.source.fingerprint != source.fingerprint:
            raise InputError(
                f"{root} is a run of another scene ({old.source.scene}, or its images or model have changed since), "
                f"not of {source.scene}; choose another --out, or remove that folder"
            )
        stats = old.stats
    elif root.exists() and any(root.iterdir()):
        raise InputError(f"{root} is not empty and not a run folder; choose another --out, so that nothing is lost")
    run = RunFolder(root, settings, source, stats)
    run.save_settings()
    return run


def open_run(root: Path) -> RunFolder:
    """Open an existing run folder; InputError if it is none, broken, or of another version."""
    if not root.is_dir():
        raise InputError(
            f"{root} is no run folder: there is no such folder; make one with `cgc run SCENE --out {root}`"
        )
    if not (root / "config.json").exists() and not (root / "scene.json").exists():
        raise InputError(
            f"{root} is no run folder (config.json is missing); make one with `cgc run SCENE --out {root}`"
        )
    config = _versioned(root / "config.json", "the run's config.json")
    scene = _versioned(root / "scene.json", "the run's scene.json")
    try:
        source = Source(**scene)
    except TypeError as error:
        raise InputError(
            f"{root / 'scene.json'} is not what this version writes ({error}); make the run again"
        ) from error
    stats: dict[str, Any] = {"steps": {}, "seconds": {}}
    if (root / "stats.json").exists():
        stats |= read_json(root / "stats.json", "the run's stats.json")
    return RunFolder(root, from_json(RunSettings, config, root / "config.json"), source, stats)


def _versioned(path: Path, what: str) -> dict[str, Any]:
    value = read_json(path, what)
    found = value.pop("format", None) if isinstance(value, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path} has format {found} where this version of cgc reads format {FORMAT}; "
            "use the version that made it, or make the run again"
        )
    return value
