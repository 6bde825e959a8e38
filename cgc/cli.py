"""The command line: a config and a call per command, no logic.

Settings of a command default to those of its preset, or to those the run folder was made with; what is given on the
command line replaces them.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import tyro

from cgc import __version__, parallel
from cgc.arguments import (
    COMMANDS,
    Clean,
    Cluster,
    Demo,
    Edit,
    Eval,
    Export,
    Info,
    Lift,
    Masks,
    Query,
    Reconstruct,
    Render,
    Report,
    Run,
    Sharpen,
    Train,
    View,
)
from cgc.errors import InputError, interrupt_in, reason
from cgc.masks.regions import PRESETS as REGION_PRESETS
from cgc.masks.sam import PRESETS as SAM_PRESETS
from cgc.presets import preset_of
from cgc.run_folder import STEPS
from cgc.settings import SUITED, RunSettings, SceneSettings, seconds_of, suited

TOGETHER = ("demo", "run", "masks", *STEPS)
"""Commands that several processes do together; of the others the first process does all."""

TRAINING = ("demo", "run", "train")
"""Commands of which the preset `default` is another one on a GPU."""

OF_A_RUN = (*STEPS, "info")
"""Commands that take the run folder as `--out` or as their first word."""

PARTS = {f.name for f in fields(RunSettings)}
"""Settings of a run; a command's settings of the same name are as the run has them, or the preset."""


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
        shares = arguments[:1] and arguments[0] in TOGETHER and arguments[0] != "masks"  # whose views go one by one
        parallel.join(device=(_value(arguments, "--device") or "auto") if shares else "cpu", cgc=__version__)
        if not arguments or arguments[0] not in COMMANDS:
            with parallel.hushed():
                tyro.extras.subcommand_cli_from_dict(
                    COMMANDS, prog="cgc", description=__doc_main__, args=arguments or ["--help"]
                )
            return 2  # tyro has exited with help or an error before
        name, rest = arguments[0], arguments[1:]
        _check_repeats(rest)
        if name in OF_A_RUN and rest and not rest[0].startswith("-"):
            if _value(rest, "--out") is not None:
                if name == "train" and not (Path(rest[0]) / "config.json").exists():
                    raise InputError(f"{rest[0]} is no run; a new run of a scene takes --scene {rest[0]}")
                to = "; what is written goes to --to DIR" if name == "export" else ""
                raise InputError(f"the run is given twice, as {rest[0]} and by --out{to}; leave --out away")
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
        return _fail(parallel.signed(error))
    except BrokenPipeError:  # `cgc --help | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own flush at exit is quiet
        return 0
    except (MemoryError, RuntimeError) as error:
        want = _want_of_memory(" ".join(["cgc", *arguments[:1]]), error)
        if want is None:
            raise
        return _fail(parallel.signed(want))
    except OSError as error:  # the system's refusals that nothing closer to them has explained
        name = f"{error.filename} " if error.filename else "a file "
        why = error.strerror or error
        return _fail(f"{name}could not be read or written ({why}); check it and its permissions")
    except (KeyboardInterrupt, SystemError) as error:
        stop = interrupt_in(error)
        if stop is None:
            raise
        return _fail(str(stop) or "stopped; run the same command again to go on where it was", 130)


def _want_of_memory(command: str, error: Exception) -> InputError | None:
    """Return what to say where an error is that of a machine, or of a GPU, whose memory is full; else None."""
    from cgc.device import is_full, ran_out

    if is_full(error):
        return ran_out(command, error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # which torch has it from
        return InputError(
            f"memory is not enough ({reason(error)}); end other programs, make the run with smaller photos "
            "(`cgc run --max-side`), fewer Gaussians or smaller settings, or use a machine with more"
        )
    return None


def _check_repeats(words: list[str]) -> None:
    """Raise InputError for an option that is given twice: only the last one's values would count."""
    options = Counter(word.partition("=")[0].replace("_", "-") for word in words if re.match("--[a-z]", word))
    if twice := [option for option, times in options.items() if times > 1]:
        raise InputError(f"{twice[0]} is given {options[twice[0]]} times; give it once, with all its values after it")


def _fail(text: str, code: int = 2) -> int:
    """Print what went wrong, once for all processes, and leave them; returns the exit code."""
    if parallel.speaks():
        print(f"cgc: {text}", file=sys.stderr)
    parallel.abandon(code)
    return code


def _call(config: object) -> None:
    with parallel.importing():
        from cgc import kernels
        from cgc.pipeline import commands

    kernels.keep_memory()
    kernels.be_quiet(getattr(config, "quiet", False))
    match config:
        case Demo():
            scene = commands.demo_scene()
            settings = _settings(config, SceneSettings())
            commands.run_all(
                scene, config.out, settings, masks=scene / "masks", splats=None, quiet=config.quiet,
                device=config.device,
            )  # fmt: skip
        case Run(folder, masks, out, splats, quiet=quiet, device=device):
            from cgc import prepare

            settings = _settings(config, _suited(config.scene, device))
            out = out or _default_out(folder)
            prepare.check_given(folder, settings, masks, splats, out, device)
            folder = prepare.scene_of(folder, quiet=quiet)
            given = prepare.masks_meant(masks, quiet=quiet, device=device)
            commands.run_all(folder, out, settings, masks=given, splats=splats, quiet=quiet, device=device)
        case Reconstruct(photos, out, settings, quiet):
            from cgc import prepare

            prepare.reconstruct_command(photos, out, settings, quiet=quiet)
        case Masks():
            from cgc import prepare

            prepare.masks_command(config)
        case Clean(splats, out, quiet):
            from cgc import prepare

            prepare.clean_command(splats, out, quiet=quiet)
        case Train(out, Path() as folder, _, train, quiet, device) if not (out / "scene.json").exists():
            settings = RunSettings(_suited(SceneSettings(max_side=SUITED), device), train)
            commands.run_all(folder, out, settings, masks=None, splats=None, quiet=quiet, device=device)
        case Train(out, folder, _, train, quiet, device):
            commands.run_step(out, "train", scene=folder, train=train, quiet=quiet, device=device)
        case Lift(out, masks, lift, blocks, quiet, device):
            commands.run_step(out, "lift", lift=lift, blocks=blocks, masks=masks, quiet=quiet, device=device)
        case Cluster(out, cluster, quiet, device):
            commands.run_step(out, "cluster", cluster=cluster, quiet=quiet, device=device)
        case Sharpen(out, sharpen, quiet, device):
            commands.run_step(out, "sharpen", sharpen=sharpen, quiet=quiet, device=device)
        case Export() if config.objects or config.format or config.to or _is_saved(config.out):
            from cgc import asking

            asking.export(config)
        case Export(out, level=None, quiet=quiet, device=device):
            commands.run_step(out, "export", quiet=quiet, device=device)
        case Query():
            from cgc import asking

            asking.query(config)
        case View():
            from cgc import asking

            asking.view(config)
        case Edit():
            from cgc import asking

            asking.edit(config)
        case Render(out, float() as level, quiet, device) | Export(
            out, level=float() as level, quiet=quiet, device=device
        ):
            commands.run_at(out, type(config).__name__.lower(), level, quiet=quiet, device=device)
        case Render(out, _, quiet, device) | Report(out, quiet, device):
            commands.run_step(out, type(config).__name__.lower(), quiet=quiet, device=device)
        case Eval(runs, settings, quiet, device):
            from cgc.scoring.evaluate import evaluate

            evaluate(runs, settings, quiet=quiet, device=device)
        case Info(out):
            commands.info(out)
        case _:
            raise AssertionError(config)


__doc_main__ = (
    "cgc: segment any Gaussian-splat scene into objects. Start with `cgc demo`; then `cgc run PHOTOS` does the same on "
    "your own photos, and finds their cameras and makes masks where there are none. Each step of a run can be done "
    "again alone; what it finds can be asked for, changed and looked at. `cgc COMMAND --help` explains one."
)


def _suited(scene: SceneSettings, device: str) -> SceneSettings:
    from cgc.device import see

    return suited(scene, see(device)[0].type)


def _is_saved(folder: Path) -> bool:
    """Say whether a folder is what an edit has saved, and no run."""
    return (folder / "segmentation.json").is_file()


def _default_out(scene_folder: Path) -> Path:
    return Path("runs") / Path(os.path.realpath(scene_folder)).name


def _parse(name: str, arguments: list[str]) -> object:
    """Parse a command. What is not given is as in the run it is called on, or as in the preset where there is none."""

    def parse(settings: RunSettings) -> Any:
        default = _with_defaults(name, settings)
        return tyro.cli(COMMANDS[name], prog=f"cgc {name}", args=arguments, default=default)

    if name == "masks":
        return _parse_masks(arguments)
    if not any(f.name in PARTS for f in fields(COMMANDS[name])):
        return tyro.cli(COMMANDS[name], prog=f"cgc {name}", args=arguments)
    preset = _value(arguments, "--preset")
    wanted = preset or ("short" if name == "demo" else "default")
    settings = _begun(preset_of(wanted))
    config = parse(settings)
    made_with, out = None, config.out or _default_out(config.scene_folder)
    if (out / "config.json").exists():
        from cgc.run_folder import open_run

        made_with = open_run(out).settings
        if preset is None:
            return parse(made_with)
    if name in TRAINING and wanted == "default" and _is_gpu(config.device):
        settings = _begun(preset_of(wanted, gpu=True))
        config = parse(settings)
    return parse(replace(made_with, **_set_by(settings))) if made_with else config


def _begun(preset: RunSettings) -> RunSettings:
    """Return the settings with which a run is begun: photos are used at a size that suits the device."""
    return replace(preset, scene=replace(preset.scene, max_side=SUITED))


def _parse_masks(arguments: list[str]) -> object:
    """Parse `cgc masks`: what is not given is as in its preset."""
    preset = _value(arguments, "--preset") or "default"
    default = Masks(scene_folder=tyro.MISSING)
    if preset in SAM_PRESETS:
        default = replace(default, sam=SAM_PRESETS[preset], regions=REGION_PRESETS[preset])
    return tyro.cli(Masks, prog="cgc masks", args=arguments, default=default)


def _set_by(preset: RunSettings) -> dict[str, object]:
    """Return what a preset sets: training and sharpening, and each other step that it does not leave as usual."""
    usual, ours, parts = RunSettings(), ("train", "sharpen"), PARTS - {"scene"}
    return {p: getattr(preset, p) for p in parts if p in ours or getattr(preset, p) != getattr(usual, p)}


def _value(arguments: list[str], option: str) -> str | None:
    """Return the value of an option without parsing the rest: the defaults of the parse depend on it."""
    for i, word in enumerate(arguments):
        if word == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _is_gpu(device: str) -> bool:
    """Say whether a command computes on a GPU: where it trains, that decides what the preset `default` means.

    Of several processes the first one looks before the others: gsplat's code may have to be built, and two that build
    it at once remove what the other has begun.
    """
    if device == "cpu":
        return False  # without importing torch
    from cgc.device import choose
    from cgc.progress import console

    with parallel.first_before_others():
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
    """Return the command with these settings, as far as it takes them, and what it needs as yet missing."""
    taken = fields(COMMANDS[name])
    missing = {f.name: tyro.MISSING for f in taken if f.default is MISSING and f.default_factory is MISSING}
    return COMMANDS[name](**missing, **{f.name: getattr(settings, f.name) for f in taken if f.name in PARTS})


def _settings(command: Demo | Run, scene: SceneSettings) -> RunSettings:
    """Return the settings of a command that takes all parts, of a scene that is read so."""
    return RunSettings(**{name: getattr(command, name) for name in PARTS - {"scene"}}, scene=scene)


if __name__ == "__main__":
    sys.exit(main())
