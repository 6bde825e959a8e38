"""The command line: help, options, defaults, and one sentence for everything that is wrong with the input."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import NAMES, SETTINGS, clumps, snapshot, without_sizes

from cgc import __version__, cli
from cgc.cli import COMMANDS, main
from cgc.errors import InputError
from cgc.masks.id_maps import read_id_map, write_id_map
from cgc.pipeline import commands
from cgc.presets import PRESETS
from cgc.run_folder import open_run
from cgc.segmentation.segmentation import Segmentation
from cgc.settings import RunSettings, SceneSettings, check, seconds_of
from cgc.splats.ply import write_ply
from cgc.splats.types import Splats

TRAIN = ["--train.steps", "20", "--train.max-gaussians", "700", "--train.coarse", "1"]
TINY = [*TRAIN, *["--lift.steps", "10", "--lift.border", "0", "--cluster.samples", "500", "--quiet"]]
TINY += ["--sharpen.steps", "0"]


@pytest.fixture
def scene(tiny_scene, tmp_path):
    return Path(shutil.copytree(tiny_scene, tmp_path / "scene"))


@pytest.fixture
def refused(tmp_path, capsys):
    """Run a command that must be refused with one sentence, and change nothing below tmp_path; return the sentence."""

    def call(*words, may_leave=()):
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert main([str(w) for w in words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("cgc: ") and said.count("\n") == 1 and said.endswith("\n"), said
        assert "Traceback" not in said and len(said) > 40
        after = snapshot(tmp_path)
        assert {name: after.get(name) for name in before} == before
        assert {Path(name).name for name in set(after) - set(before)} <= set(may_leave)
        return said

    return call


@pytest.fixture
def called(monkeypatch):
    """What the command line asks of the pipeline, instead of doing it."""
    asked = []
    for name in ("run_all", "run_step", "info"):
        monkeypatch.setattr(commands, name, lambda *a, _name=name, **k: asked.append((_name, a, k)))
    return asked


# ---- help and options


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys, cgc.cli\n"
        "try: cgc.cli.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numba', 'scipy', 'pycolmap', 'PIL', 'hdbscan', 'gsplat'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for name, config in COMMANDS.items():
        assert name in result.stdout and (config.__doc__ or "").split()[0] in result.stdout
    assert "cgc demo" in result.stdout and "cgc run PHOTOS" in " ".join(result.stdout.split())


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        code = "from cgc.cli import main; raise SystemExit(main(['info', '--help']))"
        result = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert not end.value.code and f"usage: cgc {name}" in said
    assert "--out" in said or name == "query"
    if name == "run":
        assert "bare photos" in " ".join(said.replace("│", "").split())
        assert "--downscale" in said and "--train.steps" in said and "HDBSCAN" in said
    if name == "lift":
        assert "--steps" in said and "--lift.steps" not in said


def test_the_first_process_looks_for_a_card_before_the_others(monkeypatch, called):
    """Looking may build gsplat's code, which only one of several processes may do."""
    seen = []

    @contextmanager
    def in_turn():
        seen.append("in")
        yield
        seen.append("out")

    monkeypatch.setattr("cgc.parallel.first_before_others", in_turn)
    monkeypatch.setattr("cgc.device.choose", lambda *_: (seen.append("look"), (torch.device("cpu"), ""))[1])
    assert main(["run", "s", "--device", "auto"]) == 0 and len(called) == 1
    assert seen == ["in", "look", "out"]
    assert main(["run", "s", "--device", "cpu"]) == 0 and seen == ["in", "look", "out"]  # without torch


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_version(words, capsys):
    assert main(words) == 0 and capsys.readouterr().out == f"cgc {__version__}\n"


@pytest.mark.parametrize("words", [["fly"], ["train", "run", "--speed", "9"], ["run"], ["lift", "run", "--steps", "x"]])
def test_unknown_words_exit_with_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_change_defaults_and_options_change_presets(preset, called):
    assert main(["run", "s", "--preset", preset, "--train.sh-degree", "1", "--lift.dim", "5"]) == 0
    assert main(["demo", f"--preset={preset}", "--out", "there"]) == 0
    (_, (folder, out, settings), given), (_, (_, demo_out, demo), demo_given) = called
    assert (folder, out, given["splats"]) == (Path("s"), Path("runs/s"), None) and callable(given["masks"])
    assert settings.train == replace(PRESETS[preset].train, sh_degree=1) and settings.lift.dim == 5
    assert demo == PRESETS[preset] and demo_out == Path("there")
    assert demo_given["masks"] == commands.demo_scene() / "masks"


def test_a_run_takes_its_folders_and_scene_settings(called):
    assert (
        main(
            [
                "run",
                "s",
                "--masks",
                "m",
                "--splats",
                "p.ply",
                "--out",
                "o",
                "--downscale",
                "4",
                "--max-side",
                "300",
                "--test-every",
                "5",
                "--quiet",
            ]
        )
        == 0
    )
    ((_, (_, out, settings), given),) = called
    usual = {"quiet": True, "device": "auto"}
    assert out == Path("o") and given == {"masks": Path("m"), "splats": Path("p.ply"), **usual}
    assert (settings.scene.downscale, settings.scene.max_side, settings.scene.test_every) == (4, 300, 5)


@pytest.mark.parametrize("place", [["RUN"], ["--out", "RUN"], ["--out=RUN"]])
def test_steps_take_the_run_alone_or_as_out_and_start_from_its_settings(place, own_run, called):
    place = [word.replace("RUN", str(own_run)) for word in place]
    assert main(["train", *place, "--sh-degree", "1"]) == 0
    assert main(["lift", *place, "--dim", "5", "--masks", "m", "--blocks.gaussians", "2000000"]) == 0
    assert main(["cluster", *place, "--revote", "0"]) == 0
    assert main(["sharpen", *place, "--weight", "2"]) == 0
    assert main(["render", *place]) == main(["export", *place]) == main(["report", *place, "--quiet"]) == 0
    assert main(["info", *place]) == 0
    steps = [(a[1], k) for name, a, k in called if name == "run_step"]
    assert {a[0] for _, a, _ in called} == {own_run}
    usual = {"quiet": False, "device": "auto"}
    lift = {"lift": replace(SETTINGS.lift, dim=5), "blocks": replace(SETTINGS.blocks, gaussians=2_000_000)}
    assert steps[0] == ("train", {"scene": None, "train": replace(SETTINGS.train, sh_degree=1), **usual})
    assert steps[1] == ("lift", {**lift, "masks": Path("m"), **usual})
    assert steps[2] == ("cluster", {"cluster": replace(SETTINGS.cluster, revote=0), **usual})
    assert steps[3] == ("sharpen", {"sharpen": replace(SETTINGS.sharpen, weight=2.0), **usual})
    assert [s for s, _ in steps[4:]] == ["render", "export", "report"] and called[-1][0] == "info"


@pytest.mark.parametrize("step", ["train", "lift", "cluster", "sharpen", "render", "export", "report", "run", "demo"])
def test_the_device_reaches_the_pipeline(step, own_run, tiny_scene, called, monkeypatch):
    where = {"run": [str(tiny_scene), "--out", str(own_run)], "demo": ["--out", str(own_run)]}.get(step, [str(own_run)])
    for name in ("see", "choose"):
        monkeypatch.setattr(f"cgc.device.{name}", lambda text, say=None: (torch.device("cuda", 1), "device: cuda:1"))
    assert main([step, *where, "--device", "cuda:1"]) == 0
    assert called[0][2]["device"] == "cuda:1"


@pytest.mark.parametrize(
    "words",
    [["query", "--click", "a.jpg,1,2"], ["view", "--screenshot", "p.png"], ["edit", "--out", "new", "--remove", "1"],
     ["export", "--format", "ply"], ["eval"], ["render"], ["render", "--level", "0.5"]],
    ids=" ".join,
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(words, own_run, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    said = refused(words[0], own_run, *words[1:], "--device", "cuda", may_leave=["cameras.json"])
    assert "cuda was asked for, but torch sees no CUDA device; check that `nvidia-smi` lists one" in said
    assert "where auto, cpu, cuda or cuda:1 was expected" in refused(words[0], own_run, *words[1:], "--device", "gpu")


def test_a_run_looks_for_its_device_first(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "photos").mkdir()
    said = refused("run", tmp_path / "photos", "--out", tmp_path / "run", "--device", "cuda")
    assert "cuda was asked for, but" in said


def test_what_is_computed_on_is_said_once(own_run, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["render", str(own_run), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("device: cpu (as asked)") == 1
    assert main(["query", str(own_run), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("device: cpu (as asked)")
    assert main(["query", str(own_run), "--json", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("[")
    assert main(["render", str(own_run), "--quiet"]) == 0
    assert "device" not in capsys.readouterr().out


def test_run_again_keeps_the_runs_settings_unless_a_preset_is_asked_for(own_run, called):
    assert main(["run", "s", "--out", str(own_run), "--cluster.revote", "0"]) == 0
    assert main(["run", "s", "--out", str(own_run), "--preset", "quick"]) == 0
    (_, (_, _, first), _), (_, (_, _, second), _) = called
    assert first == replace(SETTINGS, cluster=replace(SETTINGS.cluster, revote=0))
    assert second == replace(SETTINGS, train=PRESETS["quick"].train, sharpen=PRESETS["quick"].sharpen)
    assert main(["run", "s", "--out", str(own_run), "--preset", "paper", "--joint.dim", "4"]) == 0
    third = called[2][1][2]
    assert third == replace(PRESETS["paper"], scene=SETTINGS.scene, joint=replace(PRESETS["paper"].joint, dim=4))


@pytest.mark.parametrize("words", [["--budget", "1h30m"], ["--budget=1.5h"], ["--budget", "5400"]])
def test_a_budget_is_read_by_the_commands_that_train(words, called, own_run):
    for command in (["demo"], ["run", "s"], ["train", str(own_run)]):
        assert main([*command, *words]) == 0
    budgets = [k["train"].budget if name == "run_step" else a[2].train.budget for name, a, k in called]
    assert budgets == [5400.0] * 3


@pytest.mark.parametrize("text", ["5x", "", "five minutes", "-90", "1h30", "30s5m", "5m5m", "1e3", "nan", "1:30"])
def test_a_budget_that_is_no_time(text, refused, tiny_scene, tmp_path):
    said = refused("run", tiny_scene, "--out", tmp_path / "run", "--budget", text)
    assert f"--budget is {text!r} where a time was expected; write it as 90, 90s, 5m, 1.5h or 1h30m" in said


def test_a_budget_without_end(refused, tiny_scene, tmp_path):
    said = refused("run", tiny_scene, "--out", tmp_path / "run", "--budget", "9" * 400)
    assert "train.budget is inf" in said


def times(least=0.0):
    return st.one_of(st.integers(int(least), 999), st.floats(least, 999).map(lambda x: round(x, 3)))


@given(hours=st.none() | times(), minutes=st.none() | times(), seconds=st.none() | times(), space=st.booleans())
def test_written_times_are_read_back(hours, minutes, seconds, space):
    parts = [f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if n is not None]
    text = (" " if space else "").join(parts)
    expected = 3600 * (hours or 0) + 60 * (minutes or 0) + (seconds or 0)
    if not parts:
        with pytest.raises(InputError):
            seconds_of(text)
        return
    assert seconds_of(text) == seconds_of(text.upper()) == pytest.approx(expected)
    if seconds is not None:
        assert seconds_of(str(seconds)) == pytest.approx(seconds)


@given(st.text(max_size=12))
def test_any_text_is_a_time_or_an_input_error(text):
    try:
        assert seconds_of(text) >= 0
    except InputError as error:
        assert repr(text) in str(error)


def test_a_training_says_what_it_took_of_its_budget(own_run, capsys):
    assert main(["train", str(own_run), "--steps", "5", "--budget", "5m"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"train: [\d,]+ Gaussians trained in 0:\d\d of 5:00: ", said)
    stats = json.loads((own_run / "stats.json").read_text())
    assert stats["max_gaussians"] == 700 and stats["gaussians"] <= 700
    assert main(["train", str(own_run), "--steps", "5", "--budget", "0", "--quiet"]) == 0
    assert json.loads((own_run / "config.json").read_text())["train"]["budget"] == 0


def test_training_with_a_preset_leaves_the_runs_settings(own_run, called):
    assert main(["train", str(own_run), "--preset", "full"]) == 0
    assert called[0][2]["train"] == PRESETS["full"].train


def test_train_makes_a_new_run_of_a_scene(called, tmp_path):
    assert main(["train", str(tmp_path / "new"), "--scene", "s", "--steps", "7"]) == 0
    name, (folder, out, settings), given = called[0]
    assert (name, folder, out, given["masks"]) == ("run_all", Path("s"), tmp_path / "new", None)
    used = SceneSettings(max_side=800)
    assert settings == replace(RunSettings(), scene=used, train=replace(RunSettings().train, steps=7))


def test_photos_are_used_at_a_size_that_suits_the_device(called, own_run, tmp_path, monkeypatch):
    def used(*words, out="new"):
        assert main(["run", str(tmp_path / "s"), "--out", str(tmp_path / out), *words]) == 0
        return called[-1][1][2].scene

    assert used() == SceneSettings(max_side=800)
    assert used("--max-side", "0") == SceneSettings()
    assert used("--max-side", "1200").max_side == 1200
    assert used("--downscale", "4") == SceneSettings(downscale=4)
    assert used("--preset", "full", "--test-every", "0") == SceneSettings(max_side=800, test_every=0)
    monkeypatch.setattr("cgc.device.see", lambda _: (torch.device("cuda:0"), ""))
    assert used("--preset", "fast").max_side == 1600
    assert used(out=own_run) == open_run(own_run).settings.scene  # a run keeps its size
    with pytest.raises(InputError, match="max_side"):
        check(RunSettings(scene=SceneSettings(max_side=-1)))


def test_info_says_what_a_run_holds(own_run, capsys):
    assert main(["info", str(own_run)]) == 0
    said = capsys.readouterr().out
    assert "a run of " in said and "Things mIoU" in said and "Test PSNR" in said
    assert said.count("done in") == 7 and said.count("  segment ") == 7
    (own_run / "segments.npz").unlink()
    assert main(["info", str(own_run)]) == 0
    assert "out of date" in capsys.readouterr().out


def test_the_main_job_and_its_steps_from_the_command_line(scene, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", str(scene), "--masks", str(scene / "masks"), "--out", str(out), *TINY]) == 0
    assert capsys.readouterr().out == f"result: {out / 'report' / 'index.html'}\n"
    assert main(["cluster", str(out), "--revote", "0", "--quiet"]) == 0
    for step in ("sharpen", "render", "export", "report"):
        assert main([step, str(out), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["train", str(out), "--scene", str(scene), "--quiet"]) == 0  # an existing run keeps its settings
    assert json.loads((out / "config.json").read_text())["train"]["steps"] == 20


def test_a_stop_by_the_user_says_how_to_go_on(monkeypatch, capsys):
    def ends_by(error: BaseException) -> int:
        def stop(*_, **__):
            raise error

        monkeypatch.setattr(commands, "run_all", stop)
        return main(["demo"])

    def in_a_kernel(cause: BaseException) -> SystemError:
        made = SystemError("CPUDispatcher(<function blend>) returned a result with an exception set")
        made.__cause__ = cause
        return made

    pressed = KeyboardInterrupt()
    for error in (pressed, in_a_kernel(pressed), in_a_kernel(in_a_kernel(pressed))):
        assert ends_by(error) == 130
        assert "cgc: stopped; run the same command again to go on" in capsys.readouterr().err
    with pytest.raises(SystemError):
        ends_by(in_a_kernel(ValueError("its own")))


@pytest.mark.parametrize("asks", [lambda: bytes(1 << 62), lambda: torch.empty(1 << 60)])
def test_memory_that_is_not_there_is_said(monkeypatch, capsys, asks):
    monkeypatch.setattr(commands, "run_all", lambda *_, **__: asks())
    assert main(["demo"]) == 2
    assert re.fullmatch(r"cgc: memory is not enough \(.*\); end other programs, .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("kind", [torch.cuda.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_gpu_that_is_full_is_said_by_every_command(monkeypatch, capsys, tiny_run, kind):
    def fill(*_, **__):
        raise kind("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Segmentation, "at_level", fill)
    assert main(["query", str(tiny_run), "--level", "0.5"]) == 2
    assert capsys.readouterr().err.startswith("cgc: cgc query ran out of the GPU's memory; end other programs")

    def break_off(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(Segmentation, "at_level", break_off)
    with pytest.raises(RuntimeError, match="something else"):
        main(["query", str(tiny_run), "--level", "0.5"])


# ---- bad input: scenes and photos


def test_no_such_scene(refused, tmp_path):
    said = refused("run", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert "nowhere was expected to be the folder of a scene, but there is no such folder; check the path" in said
    (tmp_path / "file").write_text("x")
    assert "cannot be read as a video" in refused("run", tmp_path / "file", "--out", tmp_path / "run")


def test_no_model_and_broken_model(refused, scene, tmp_path):
    words = ("run", scene, "--out", tmp_path / "run")
    text = (scene / "sparse/0/images.txt").read_text()
    (scene / "sparse/0/images.txt").write_text(text[: len(text) // 3].rsplit(" ", 1)[0] + " x")
    assert "sparse/0 is broken: expected a COLMAP model" in refused(*words)
    (scene / "sparse/0/images.txt").unlink()
    assert "not a whole COLMAP model" in refused(*words)
    shutil.rmtree(scene / "sparse")
    shutil.rmtree(scene / "images")
    assert "expected a COLMAP model in sparse/0 or a transforms.json, found neither" in refused("masks", scene)
    assert "none of the 20 photos in" in refused(*words)  # its id maps, which are pictures too


def test_missing_images(refused, scene, tmp_path):
    (scene / "images" / NAMES[1]).unlink()
    (scene / "images" / NAMES[4]).unlink()
    said = refused("run", scene, "--out", tmp_path / "run")
    assert f"2 of the 10 images that {scene / 'sparse/0'} names are missing" in said
    assert NAMES[1] in said and NAMES[4] in said and "restore them" in said
    shutil.rmtree(scene / "images")
    assert "images does not exist; put the 10 photos" in refused("run", scene, "--out", tmp_path / "run")


@pytest.mark.parametrize("name", [sorted(NAMES)[0], NAMES[1]])  # a test view and a training view
def test_truncated_image(refused, scene, tmp_path, name):
    path = scene / "images" / name
    path.write_bytes(path.read_bytes()[:-900])
    said = refused("run", scene, "--masks", scene / "masks", "--out", tmp_path / "run", *TINY)
    assert f"{path} cannot be read as an image" in said and "copy it again" in said


def test_fewer_than_two_views(refused, scene, tmp_path):
    file = scene / "sparse/0/images.txt"
    for rig in ("rigs.txt", "frames.txt"):
        (scene / "sparse/0" / rig).unlink(missing_ok=True)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    (scene / "sparse/0/points3D.txt").write_text("")
    file.write_text(f"{lines[0]}\n\n")
    assert "has 1 posed views, at least 2 are needed" in refused("run", scene, "--out", tmp_path / "run")


def test_no_view_left_to_train_on(refused, scene, tmp_path):
    said = refused("run", scene, "--masks", "none", "--out", tmp_path / "run", "--test-every", "1", *TINY,
                   may_leave=("config.json", "scene.json"))  # fmt: skip
    assert "no view of" in said and "is left to train on" in said


# ---- bad input: masks


def test_mask_of_another_size(refused, scene, tmp_path):
    path = scene / "masks" / NAMES[2]
    write_id_map(path, read_id_map(path)[1:])
    said = refused("run", scene, "--masks", scene / "masks", "--out", tmp_path / "run", *TINY)
    assert f"{NAMES[2]} is 48x36 but its mask {path} is 48x35; make the mask again" in said


def test_mask_folders_that_fit_nothing(refused, scene, tmp_path):
    words = ("run", scene, "--out", tmp_path / "run", *TINY, "--masks")
    assert "the mask folder" in (said := refused(*words, tmp_path / "nowhere")) and "does not exist" in said
    (tmp_path / "empty").mkdir()
    assert "found no PNG at all" in refused(*words, tmp_path / "empty")
    write_id_map(tmp_path / "other/nobody.png", np.ones((36, 48), np.int32))
    assert "matches an image: found nobody.png" in refused(*words, tmp_path / "other")
    shutil.copytree(scene / "masks", tmp_path / "zero")
    for path in (tmp_path / "zero").rglob("*.png"):
        write_id_map(path, np.zeros((36, 48), np.int32))
    assert "hold no id at all" in refused(*words, tmp_path / "zero")
    path = tmp_path / "zero" / NAMES[0]
    path.write_bytes(path.read_bytes()[:60])
    assert f"the mask {path} cannot be read" in refused(*words, tmp_path / "zero")


def test_masks_on_test_views_only(refused, scene, tmp_path):
    only = tmp_path / "only"
    only.mkdir()
    first = sorted(NAMES)[0]
    shutil.copy(scene / "masks" / first, only / first)
    files = ("config.json", "scene.json", "stats.json", "splats.ply")
    said = refused("run", scene, "--masks", only, "--out", tmp_path / "run", *TINY, may_leave=files)
    assert "no training view has a mask" in said


def test_a_run_is_given_once(refused, tiny_run):
    said = refused("export", tiny_run, "--out", "there", "--format", "labels")
    assert "the run is given twice" in said and "--to DIR" in said
    said = refused("train", "no_run", "--out", "there")
    assert "no_run is no run" in said and "--scene no_run" in said
    assert "--format is given 2 times" in refused("export", tiny_run, "--format", "ply", "--format", "labels")


# ---- bad input: splats


def test_splats_that_are_none(refused, scene, tmp_path):
    words = ("run", scene, "--masks", scene / "masks", "--out", tmp_path / "run", *TINY, "--splats")
    splats, _ = clumps()
    given = tmp_path / "given.ply"
    assert "there is no PLY file" in refused(*words, given)
    header = (
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    given.write_text(header + "0 0 0\n")
    assert "lacks the properties" in refused(*words, given)
    write_ply(given, replace(splats, means=splats.means.index_fill(0, torch.tensor([3, 4]), float("nan"))))
    said = refused(*words, given)
    assert "has NaN or infinite values in 2 of 616 Gaussians" in said and f"`cgc clean {given}` writes a copy" in said
    write_ply(given, splats)
    text = given.read_bytes().replace(b"vertex 616", b"vertex 0  ")
    given.write_bytes(text)
    assert "holds no Gaussians" in refused(*words, given)
    given.write_bytes(text.replace(b"vertex 0  ", b"vertex 999"))
    assert "is truncated" in refused(*words, given)


def test_no_gaussian_visible(refused, scene, tmp_path):
    splats, _ = clumps()
    behind = Splats(splats.means + 1000, splats.quats, splats.log_scales, splats.logit_opacities, splats.sh)
    write_ply(tmp_path / "far.ply", behind)
    files = ("config.json", "scene.json", "stats.json", "splats.ply")
    said = refused("run", scene, "--masks", scene / "masks", "--splats", tmp_path / "far.ply", "--out",
                   tmp_path / "run", *TINY, may_leave=files)  # fmt: skip
    assert "Gaussian" in said and ("visible" in said or "reaches" in said)
    points = scene / "sparse/0/points3D.txt"
    lines = [line.split(" ") for line in points.read_text().splitlines()]
    points.write_text(
        "\n".join(" ".join([w[0], "0", "0", "900", *w[4:]]) if w[0] != "#" else "#" for w in lines) + "\n"
    )
    said = refused("run", scene, "--masks", scene / "masks", "--out", tmp_path / "run2", *TINY,
                   may_leave=("config.json", "scene.json"))  # fmt: skip
    assert "no Gaussian is visible from any of the 8 training views" in said


# ---- bad input: run folders


def test_steps_on_what_is_no_run(refused, tmp_path, scene):
    assert "there is no such folder; `cgc run SCENE --out DIR` makes one" in refused("cluster", tmp_path / "nowhere")
    for command in ("train", "lift", "cluster", "render", "export", "report", "info"):
        assert "is no run folder (config.json is missing)" in refused(command, scene)
    (tmp_path / "segmentation.json").write_text("{}")
    for command in ("cluster", "render", "info"):
        assert "is a saved segmentation, which `cgc query`" in refused(command, tmp_path)


def test_a_run_of_another_scene(refused, own_run, scene, tmp_path):
    (scene / "sparse/0/points3D.txt").write_text("")
    said = refused("run", scene, "--masks", scene / "masks", "--out", own_run, *TINY)
    assert "is a run of another scene" in said and "choose another --out" in said
    said = refused("train", own_run, "--scene", scene, "--quiet")
    assert "is not the scene that" in said


def test_a_run_of_another_version(refused, own_run, scene):
    config = json.loads((own_run / "config.json").read_text())
    (own_run / "config.json").write_text(json.dumps({**config, "format": 99}))
    for words in (["cluster", own_run], ["info", own_run], ["run", scene, "--out", own_run, *TINY]):
        assert "has format 99 where this version of cgc reads format 1" in refused(*words)


def test_out_that_would_lose_something(refused, scene, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    assert "is not empty and not a run folder" in refused("run", scene, "--out", tmp_path / "mine", *TINY)
    file = tmp_path / "mine/thesis.txt"
    assert "is a file where a run folder was expected" in refused("run", scene, "--out", file, *TINY)
    assert "could not be written (Not a directory)" in refused("run", scene, "--out", file / "run", *TINY)


def test_links_that_lead_nowhere_but_to_themselves(refused, own_run, own_scene, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    new = [own_scene, "--out", tmp_path / "new", *TINY]
    for words in (["run", loop], ["run", *new, "--splats", loop], ["run", *new, "--masks", loop],
                  ["lift", own_run, "--masks", loop], ["train", own_run, "--scene", loop],
                  ["reconstruct", loop]):  # fmt: skip
        assert "loop" in refused(*words)


def test_broken_results_are_said(refused, own_run):
    without_sizes(own_run)
    for name, step in (("features.safetensors", "cluster"), ("segments.npz", "render"), ("segments.json", "report")):
        data = (own_run / name).read_bytes()
        (own_run / name).write_bytes(data[: len(data) // 2])
        said = refused(step, own_run, "--quiet")
        assert name in said and ("is broken" in said or "is not valid JSON" in said)
        (own_run / name).write_bytes(data)


def test_everything_noise(refused, own_run):
    said = refused("cluster", own_run, "--min-cluster-size", "450", "--quiet")
    assert "everything is noise" in said and "lower min-cluster-size" in said


def test_steps_refuse_values_outside_their_limits(refused, own_run):
    for step, name, value in (("train", "steps", "0"), ("lift", "min-weight", "-1"), ("cluster", "samples", "1")):
        assert f"{step}.{name.replace('-', '_')} is {value}" in refused(step, own_run, f"--{name}", value)


@pytest.mark.parametrize(
    "words",
    ["--train.steps -5", "--lift.dim 0", "--downscale 0", "--max-side -2", "--cluster.min-cluster-size 1",
     "--train.sh-degree 4", "--test-every -1", "--lift.lr nan", "--train.ssim-weight 1.5", "--train.coarse-levels 9"],
)  # fmt: skip
def test_option_values_outside_their_limits(words, refused, tiny_scene, tmp_path):
    option, value = words.split()
    said = refused("run", tiny_scene, "--out", tmp_path / "run", "--quiet", option, value)
    assert option.lstrip("-").replace("-", "_") in said and f"is {value}" in said and "correct that setting" in said


# ---- bad input: disks


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that nobody may write into, not even the superuser who runs these tests."""
    folder = tmp_path / "locked"
    folder.mkdir()

    def mkdir(self, *args, **kwargs):
        if folder in (self, *self.parents):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, *args, **kwargs)

    real = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", mkdir)
    return folder


def test_out_that_cannot_be_written(refused, tiny_scene, locked):
    said = refused("run", tiny_scene, "--out", locked / "run", *TINY)
    assert "config.json could not be written (Permission denied)" in said and "another --out" in said


def test_what_the_system_refuses_to_read(refused, tiny_scene, tmp_path, monkeypatch):
    def no(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "sparse/0")

    monkeypatch.setattr(commands, "read_scene", no)
    said = refused("run", tiny_scene, "--out", tmp_path / "run", *TINY)
    assert said.startswith("cgc: sparse/0 could not be read or written (Permission denied)")


@contextmanager
def small_disk(size):
    """No file may grow beyond `size` bytes: the system then fails as on a full disk, whoever writes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(
    ("step", "size", "file"),
    [
        ("train", 500, "splats.ply"),
        ("lift", 500, "features.safetensors"),
        ("cluster", 500, "segments.npz"),
        ("sharpen", 500, "sharpened.ply"),
        ("render", 100, "sub/view_04.png"),
        ("export", 500, "0001.ply"),
        ("report", 5000, "index.html"),
    ],
)
def test_a_full_disk_in_the_middle_of_a_step(step, size, file, refused, own_run):
    words = {
        "train": ["--steps", "12"],
        "lift": ["--steps", "9"],
        "cluster": ["--seed", "2"],
        "sharpen": ["--steps", "3", "--max-loss", "100"],
    }.get(step, [])
    with small_disk(size):
        said = refused(step, own_run, *words, "--quiet")
    assert "could not be written" in said and "left as it was" in said
    assert "the disk is full" in said
    assert not [p for p in own_run.rglob("*") if "partial" in p.name or p.name.startswith(".")]
    assert main([step, str(own_run), *words, "--quiet"]) == 0


@pytest.mark.parametrize("fails_at", range(3, 30, 4))
def test_a_full_disk_at_any_file(fails_at, scene, tmp_path, monkeypatch, capsys):
    """Whatever file it hits: one sentence, whole files only, and the same command then ends as if nothing had been."""
    out = tmp_path / "run"
    words = ["run", str(scene), "--masks", str(scene / "masks"), "--out", str(out), *TINY]
    replace_file, count = os.replace, []

    def full(source, target):
        if str(target).startswith(str(out)):
            count.append(target)
            if len(count) == fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cgc: the disk is full: {count[-1]} could not be written") and said.count("\n") == 1
    assert not [p for p in out.rglob("*") if "partial" in p.name]
    assert not Path(count[-1]).exists() or Path(count[-1]).name == "stats.json"
    assert main(words) == 0
    assert (out / "report/index.html").exists()


def test_a_bug_of_ours_is_not_hidden(monkeypatch):
    def bug(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "info", bug)
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


def test_input_errors_are_all_that_is_caught(monkeypatch, capsys):
    def no(*_, **__):
        raise InputError("expected this, got that; do so")

    monkeypatch.setattr(cli, "_call", no)
    assert main(["info", "x"]) == 2
    assert capsys.readouterr().err == "cgc: expected this, got that; do so\n"


def test_photos_of_another_shape(refused, scene, tmp_path):
    Image.new("RGB", (30, 36)).save(scene / "images" / NAMES[3])
    said = refused("run", scene, "--out", tmp_path / "run")
    assert "is 30x36 but its camera in the model is 48x36" in said


def test_default_means_the_standard_training_on_a_gpu(called, monkeypatch, scene, tmp_path):
    """On a CPU, or with --device cpu, it is the one for two cores; any other preset is what it says."""
    seen: list[str] = []

    def choose(text: str, say: object = None) -> tuple[torch.device, str]:
        seen.append(text)
        return torch.device("cuda"), "device: cuda:0"

    monkeypatch.setattr("cgc.device.choose", choose)
    for words, preset in (
        ([], "standard"), (["--preset", "default"], "standard"),
        (["--device", "cpu"], "default"), (["--preset=short"], "short"),
    ):  # fmt: skip
        called.clear()
        assert main(["run", str(scene), "--masks", "none", "--out", str(tmp_path / "run"), *words]) == 0
        [settings] = [a[2] for name, a, _ in called if name == "run_all"]
        assert settings.train == PRESETS[preset].train
    assert seen == ["auto", "auto"]


def test_a_runs_own_settings_need_no_device(called, monkeypatch, own_run, tiny_scene):
    """What `default` means is asked where it is taken: by a new run, and by an old one that is given the preset."""
    seen: list[str] = []
    device = torch.device("cuda")
    monkeypatch.setattr("cgc.device.choose", lambda text, say=None: (seen.append(text), (device, "device: cuda:0"))[1])
    for words in (["train", str(own_run)], ["run", str(tiny_scene), "--out", str(own_run)]):
        assert main(words) == 0 and seen == []
        assert main([*words, "--preset", "default"]) == 0 and seen == ["auto"]
        trained = [a[2].train if name == "run_all" else given["train"] for name, a, given in called]
        assert trained == [SETTINGS.train, PRESETS["standard"].train]
        called.clear(), seen.clear()
