"""The pipeline: the main job on a tiny scene, what it leaves, what it keeps, what it does again."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny import NAMES, SETTINGS, cameras, clumps, make_scene, snapshot

from cgc import progress, run_folder
from cgc.api import load
from cgc.appearance import trainer
from cgc.errors import InputError
from cgc.masks.id_maps import read_id_map, write_id_map
from cgc.pipeline import cluster as cluster_step
from cgc.pipeline import steps
from cgc.pipeline.commands import info, run_all, run_at, run_step
from cgc.pipeline.lift import load_features
from cgc.pipeline.steps import meet
from cgc.pipeline.workspace import Workspace
from cgc.presets import PRESETS
from cgc.progress import progress_bar
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import STEPS, YOUNGER, RunFolder, Source, create_run, open_run
from cgc.scene.types import picture_names
from cgc.segmentation.labels import render_labels
from cgc.segmentation.pictures import id_map
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import load_labels, load_table
from cgc.settings import (
    LIMITS,
    BlockSettings,
    ClusterSettings,
    MaskSettings,
    ReconstructSettings,
    RunSettings,
    SceneSettings,
    SharpenSettings,
    check,
    from_json,
    to_json,
)
from cgc.splats.ply import read_ply, write_ply

STEMS = [name.rsplit(".", 1)[0] for name in NAMES]
TEST_STEMS = sorted(STEMS)[::8]  # every eighth view, from the first, is held back
FAST = replace(SETTINGS, train=replace(SETTINGS.train, steps=20, coarse=1.0), lift=replace(SETTINGS.lift, steps=10))


def run(scene, out, settings=SETTINGS, masks="masks", splats=None):
    return run_all(scene, out, settings, masks=scene / masks if masks else None, splats=splats, quiet=True)


@pytest.fixture
def calls(monkeypatch):
    """The names of the steps that are done, in order; they are really done."""
    done = []

    def counted(name, function):
        def step(work):
            done.append(name)
            return function(work)

        return step

    monkeypatch.setattr(steps, "FUNCTIONS", {k: counted(k, f) for k, f in steps.FUNCTIONS.items()})
    return done


def stats(out):
    return json.loads((out / "stats.json").read_text())


# ---- what a run leaves


def test_a_run_leaves_every_file_of_the_design(tiny_run, tiny_scene):
    assert from_json(RunSettings, {k: v for k, v in json.loads((tiny_run / "config.json").read_text()).items()
                                   if k != "format"}, "here") == SETTINGS  # fmt: skip
    scene = json.loads((tiny_run / "scene.json").read_text())
    assert scene["scene"] == str(tiny_scene) and scene["masks"] == str(tiny_scene / "masks")
    assert scene["fingerprint"]["views"] == len(NAMES) and scene["splats"] is None
    facts = stats(tiny_run)
    assert set(facts["seconds"]) == set(facts["steps"]) == set(STEPS)
    assert all(0 <= s < 60 for s in facts["seconds"].values()) and facts["peak_rss_bytes"] > 1e8
    splats = read_ply(tiny_run / "splats.ply")
    assert facts["gaussians"] == len(splats) > 300
    assert facts["segments"] == len(facts["instances"]) + 1 == 7  # six things and the floor
    assert facts["psnr_test"] > 22 and facts["psnr_train"] > 22 and 0.7 < facts["ssim_test"] <= 1
    assert facts["miou_things"] > 0.7 and facts["pq"] > 0.7 and facts["boundary_iou"] > 0.3
    assert (tiny_run / "report/index.html").read_text().count("<img") > 10
    features, mass = load_features(open_run(tiny_run))
    assert features.shape == (len(splats), 8) and mass.shape == (len(splats),)
    present = {p.name for p in tiny_run.iterdir()}
    assert present == {"cameras.json", "config.json", "scene.json", "stats.json", "splats.ply", "features.safetensors",
                       "segments.npz", "segments.json", "segments", "sharpened.npz", "masks", "weights",
                       "report"}  # fmt: skip


@pytest.mark.parametrize("unit", [2.0**-12, 2.0**12])
def test_labels_do_not_depend_on_the_unit_of_length(tiny_scene, tmp_path, unit):
    """Those of structure from motion are arbitrary; by a power of two, nothing is even rounded otherwise."""
    splats, _ = clumps()
    scene = Path(shutil.copytree(tiny_scene, tmp_path / "scene"))
    model = pycolmap.Reconstruction(str(scene / "sparse/0"))
    model.transform(pycolmap.Sim3d(unit, pycolmap.Rotation3d(), np.zeros(3)))
    model.write_text(str(scene / "sparse/0"))
    write_ply(tmp_path / "plain.ply", splats)
    scaled = replace(splats, means=splats.means * unit, log_scales=splats.log_scales + math.log(unit))
    write_ply(tmp_path / "scaled.ply", scaled)
    outs = [tmp_path / "plain", tmp_path / "scaled"]
    for place, out in zip((tiny_scene, scene), outs):
        run_all(place, out, SETTINGS, masks=place / "masks", splats=tmp_path / f"{out.name}.ply", quiet=True)
    plain, other = (load_labels(out)[0] for out in outs)
    assert plain.max() == 7 and (plain == other).mean() > 0.99
    assert stats(outs[1])["miou_things"] == pytest.approx(stats(outs[0])["miou_things"], abs=0.01)
    shown = load(outs[1])
    assert shown.context.rasterizer.near == pytest.approx(unit * load(outs[0]).context.rasterizer.near, rel=1e-4)
    assert (id_map(shown, shown.camera(NAMES[0])) == read_id_map(outs[1] / f"masks/{STEMS[0]}.png")).mean() > 0.99


def test_masks_cover_every_view_with_ids_that_are_labels(tiny_run):
    labels, _ = load_labels(tiny_run)
    splats = read_ply(tiny_run / "splats.ply")
    assert sorted(p.relative_to(tiny_run / "masks").as_posix() for p in (tiny_run / "masks").rglob("*.png")) == sorted(
        f"{stem}.png" for stem in STEMS
    )
    pixels = np.zeros(labels.max() + 1, int)
    for stem, camera in zip(STEMS, cameras()):
        with Image.open(tiny_run / f"masks/{stem}.png") as image:
            assert image.mode == "I;16"
        ids = read_id_map(tiny_run / f"masks/{stem}.png")
        assert np.isin(ids, [0, *labels]).all()
        picture = render_labels(splats, labels, camera, CpuRasterizer())
        assert (picture.ids == ids).mean() > 0.999  # the camera went through a text file
        with Image.open(tiny_run / f"weights/{stem}.png") as weight:
            assert weight.mode == "L" and weight.size == (48, 36)
            assert np.abs(np.asarray(weight) - 255 * picture.weight).max() <= 1
        pixels += np.bincount(ids.ravel(), minlength=len(pixels))
    table = load_table(tiny_run)
    assert [s.id for s in table] == list(range(1, len(pixels)))
    assert [s.pixels for s in table] == pixels[1:].tolist()
    assert [s.gaussians for s in table] == [int((labels == s.id).sum()) for s in table]
    assert [s.gaussians for s in table] == sorted((s.gaussians for s in table), reverse=True)
    assert all(s.views == 10 and s.best_view in NAMES and 0 < s.confidence <= 1 for s in table)


def test_segments_are_the_objects_bit_for_bit(tiny_run):
    labels, confidences = load_labels(tiny_run)
    segmentation = Segmentation(read_ply(tiny_run / "splats.ply"), labels, confidences)
    paths = sorted((tiny_run / "segments").iterdir())
    assert [p.name for p in paths] == [f"{i:04d}.ply" for i in range(1, labels.max() + 1)]
    for i, path in enumerate(paths, 1):
        part, own = read_ply(path), segmentation[i].splats(clean=True)
        assert torch.equal(part.means, own.means) and torch.equal(part.sh, own.sh)
        assert len(part) > 0.8 * (labels == i).sum()


# ---- what it keeps, and what it does again


def test_the_same_command_again_keeps_all_and_touches_nothing(tiny_scene, own_run, calls, capsys):
    times = {p: p.stat().st_mtime_ns for p in own_run.rglob("*")}
    run_all(tiny_scene, own_run, SETTINGS, masks=tiny_scene / "masks", splats=None)
    assert calls == [] and {p: p.stat().st_mtime_ns for p in own_run.rglob("*")} == times
    said = capsys.readouterr().out
    assert all(f"{step}: done before, kept" in said for step in STEPS)
    assert "Things mIoU" in said and "Test PSNR" in said and f"result: {own_run / 'report' / 'index.html'}" in said


def test_without_masks_given_a_run_keeps_those_it_has(tiny_scene, own_run, calls):
    before = snapshot(own_run)
    run(tiny_scene, own_run, masks=None)
    assert calls == [] and snapshot(own_run) == before


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        (replace(SETTINGS, cluster=replace(SETTINGS.cluster, revote=0)), STEPS[2:]),
        (replace(SETTINGS, lift=replace(SETTINGS.lift, dim=4)), STEPS[1:]),
        (replace(SETTINGS, train=replace(SETTINGS.train, steps=20)), STEPS),
        (replace(SETTINGS, train=replace(SETTINGS.train, checkpoint_every=7)), ()),
    ],
)
def test_changed_settings_redo_only_what_depends_on_them(tiny_scene, own_run, calls, changed, again):
    run(tiny_scene, own_run, changed)
    assert calls == list(again)
    assert open_run(own_run).settings == changed
    run(tiny_scene, own_run, changed)
    assert calls == list(again)


def test_changed_masks_are_noticed_although_their_folder_is_the_same(own_scene, own_run, calls):
    mask = own_scene / f"masks/{STEMS[1]}.png"
    write_id_map(mask, 0 * read_id_map(mask))
    run(own_scene, own_run)
    assert calls == list(STEPS[1:])


def test_a_report_is_not_of_other_masks_than_the_features(own_scene, own_run):
    run(own_scene, own_run)
    mask = own_scene / f"masks/{STEMS[1]}.png"
    write_id_map(mask, 0 * read_id_map(mask))
    for step in ("cluster", "report"):
        with pytest.raises(InputError, match=rf"masks have changed since .* run `cgc lift {own_run}` again"):
            run_step(own_run, step, quiet=True)


def test_a_moved_scene_is_the_same_scene(own_scene, own_run, calls):
    run(own_scene, own_run)
    assert calls == [] and open_run(own_run).source.scene == str(own_scene)
    moved = own_scene.rename(own_scene.with_name("moved"))
    with pytest.raises(InputError, match=rf"a run of the scene {own_scene}, which is not there; .*: cgc run SCENE"):
        run_step(own_run, "cluster", quiet=True)
    run(moved, own_run)
    assert calls == ["cluster"]


def test_masks_in_a_scene_move_with_it(own_scene, own_run, calls):
    run(own_scene, own_run)
    moved = own_scene.rename(own_scene.with_name("moved"))
    run_step(own_run, "lift", quiet=True, scene=moved)
    assert calls == ["lift"] and open_run(own_run).source.masks == str(moved / "masks")
    again = moved.rename(moved.with_name("again"))
    run_all(again, own_run, SETTINGS, masks=None, splats=None, quiet=True)
    assert calls == ["lift"] and open_run(own_run).source.masks == str(again / "masks")


def test_photos_that_are_newer_than_the_splats_are_said(own_scene, own_run, calls, capsys):
    run_all(own_scene, own_run, SETTINGS, masks=own_scene / "masks", splats=None)
    assert "newer than the splats" not in capsys.readouterr().out
    later = (own_run / "splats.ply").stat().st_mtime + 9
    photo = sorted((own_scene / "images").rglob("*.*g"))[0]
    os.utime(photo, (later, later))
    run_all(own_scene, own_run, SETTINGS, masks=own_scene / "masks", splats=None)
    said = " ".join(capsys.readouterr().out.split())
    assert f"trained on them: {photo.relative_to(own_scene / 'images')}; if they show" in said and calls == []


def test_a_deleted_result_is_made_again(tiny_scene, own_run, calls):
    before = snapshot(own_run)
    (own_run / "splats.ply").unlink()
    (own_run / "segments.npz").unlink()
    run(tiny_scene, own_run)
    assert calls == ["train", "cluster"]
    after = snapshot(own_run)
    del before["stats.json"], after["stats.json"]
    assert after == before


LOSSES = {
    "sharpened.ply": "sharpen", "masks/sub/view_04.png": "render",
    "cameras.json": "render", "segments/0002.ply": "export", "report/index.html": "report",
    "features.safetensors": "lift", "segments.npz": "cluster",
}  # fmt: skip


@pytest.fixture(scope="module")
def sharpened_run(tiny_scene, tmp_path_factory):
    return run(tiny_scene, tmp_path_factory.mktemp("sharpened") / "run",
               replace(FAST, sharpen=SharpenSettings(steps=4, max_loss=99.0))).root  # fmt: skip


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("cut", [False, True])
def test_a_step_whose_files_are_gone_or_cut_is_done_again(sharpened_run, tmp_path, calls, capsys, name, cut):
    own, step = shutil.copytree(sharpened_run, tmp_path / "run"), LOSSES[name]
    whole, before = (own / name).read_bytes(), snapshot(own)
    (own / name).unlink()
    if cut:
        (own / name).write_bytes(whole[: len(whole) // 2])
    made = open_run(own)
    assert [s for s in STEPS if not made.is_done(s)] == [step]
    run_all(Path(made.source.scene), own, made.settings, masks=None, splats=None)
    said, after = " ".join(capsys.readouterr().out.split()), snapshot(own)
    assert f"note: {name} in {own}: gone, or not as long as the step {step} left it; it is done again" in said
    assert calls == [step]
    assert {n for n in before if after[n] != before[n]} <= {"stats.json", "report/index.html"}


def test_commands_say_which_step_is_to_be_done_where_its_files_are_gone(sharpened_run, tmp_path):
    own = shutil.copytree(sharpened_run, tmp_path / "run")
    (own / "masks/a_view_01.png").unlink()
    said = rf"masks/a_view_01.png in {own}: gone, or not .*: run `cgc render {own}` first"
    with pytest.raises(InputError, match=said):
        run_step(own, "report", quiet=True)
    assert load(own)[1].best_view and len(load(own).context.cameras) == len(NAMES)  # who does not need it goes on
    (own / "sharpened.ply").unlink()
    for needs_it in (lambda: load(own), lambda: run_step(own, "export", quiet=True)):
        with pytest.raises(InputError, match=rf"sharpened.ply in {own}: gone, .*: run `cgc sharpen {own}` first"):
            needs_it()


def test_files_of_others_in_a_run_put_nothing_out_of_date(own_run, tiny_scene, calls):
    (own_run / "masks/mine.png").write_bytes(b"mine")
    (own_run / "segments/0099.ply").write_bytes(b"mine")
    run_at(own_run, "render", 0.5, quiet=True)
    run_at(own_run, "export", 0.5, quiet=True)
    shutil.rmtree(own_run / "masks_at_0.5")
    for name in ("masks/mine.png", "segments/0099.ply"):
        (own_run / name).unlink()
    run(tiny_scene, own_run)
    assert calls == []


def test_runs_that_do_not_know_their_files_stay_as_they_were(own_run, tiny_scene, calls):
    facts = stats(own_run)
    del facts["files"], facts["truth"]
    facts["steps"]["report"] = "of before"
    (own_run / "stats.json").write_text(json.dumps(facts))
    (own_run / "weights/a_view_01.png").unlink()
    (own_run / "cameras.json").unlink()
    run(tiny_scene, own_run)
    assert calls == ["report"]
    shutil.rmtree(own_run / "masks")
    facts = stats(own_run)
    del facts["files"]
    (own_run / "stats.json").write_text(json.dumps(facts))
    (own_run / "masks").mkdir()
    with pytest.raises(InputError, match=r"a_view_00\.png, which the run has rendered, is gone: run `cgc render"):
        run_step(own_run, "report", quiet=True)


def test_masks_of_its_own_that_are_gone_are_made_again(own_scene, tmp_path, calls):
    shutil.rmtree(own_scene / "masks")
    made = run_all(own_scene, tmp_path / "run", FAST, masks=lambda *_: None, splats=None, quiet=True).root
    before = snapshot(made)
    calls.clear()
    (made / "regions/a_view_01.png").unlink()
    assert load(made)  # without them
    run_all(own_scene, made, FAST, masks=None, splats=None, quiet=True)
    after = snapshot(made)
    assert calls == ["lift"] and {n for n in before if after[n] != before[n]} <= {"stats.json"}


def test_truth_that_is_added_changed_or_removed_is_scored(own_scene, tmp_path, calls, capsys):
    for name in ("instance", "instances.json"):
        (own_scene / name).rename(tmp_path / name)
    made = run(own_scene, tmp_path / "run", FAST).root
    assert "miou_things" not in stats(made)

    def scores():
        calls.clear()
        run_all(own_scene, made, FAST, masks=None, splats=None)
        assert "Things mIoU" in (made / "report/index.html").read_text() or "miou_things" not in stats(made)
        return list(calls), stats(made).get("miou_things")

    for name in ("instance", "instances.json"):
        (tmp_path / name).rename(own_scene / name)
    again, first = scores()
    assert again == ["render", "report"] and first > 0.3
    assert f"the truth in {own_scene} is not what the step render scored" in capsys.readouterr().out
    for path in (own_scene / "instance").rglob("*.png"):
        os.utime(path, (1, 1))  # as copies have other times
    (own_scene / "instance/Thumbs.db").write_bytes(b"of a file manager")
    assert scores() == ([], first)
    for stem in TEST_STEMS:
        ids = read_id_map(own_scene / f"instance/{stem}.png")
        write_id_map(own_scene / f"instance/{stem}.png", np.where(ids == 1, 2, ids))
    with pytest.raises(InputError, match=rf"the truth in {own_scene} is not what .*: run `cgc render {made}` first"):
        run_step(made, "report", quiet=True)
    again, second = scores()
    assert again == ["render", "report"] and second != first
    (own_scene / "instances.json").unlink()
    assert scores() == (["render", "report"], None)
    own_scene.rename(own_scene.with_name("gone"))
    assert all(open_run(made).is_done(step) for step in STEPS)


def test_splats_that_were_changed_are_not_taken_for_those_of_the_run(tiny_scene, own_run, calls):
    path = own_run / "splats.ply"
    whole, splats = path.read_bytes(), read_ply(path)
    write_ply(path, splats.select(torch.arange(len(splats)).flip(0)))
    for again in (lambda: run(tiny_scene, own_run), lambda: run_step(own_run, "lift", quiet=True),
                  lambda: run_step(own_run, "lift", quiet=True, blocks=BlockSettings(gaussians=400)),
                  lambda: run_step(own_run, "render", quiet=True)):  # fmt: skip
        with pytest.raises(InputError, match=r"splats\.ply is not the file .* \(`cgc train .*`, then `cgc run`\)"):
            again()
    path.write_bytes(whole)
    calls.clear()
    run(tiny_scene, own_run)
    assert calls == []


def test_labels_are_not_kept_for_other_splats_of_the_same_settings(own_scene, tmp_path, calls):
    """Photos that have changed put nothing out of date by themselves; who trains on them wants their labels."""
    run(own_scene, tmp_path / "run", FAST)
    for path in (own_scene / "images").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path).convert("RGB"))).save(path)
    (tmp_path / "run/splats.ply").unlink()
    calls.clear()
    run(own_scene, tmp_path / "run", FAST)
    assert calls == list(STEPS)


def test_each_step_can_be_done_again_alone_and_names_what_it_made_stale(own_run, capsys):
    def states():
        info(own_run)
        lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        return {words[0]: words[1] for words in lines if words[0] in STEPS}

    assert all(s.startswith("done in ") for s in states().values())
    for step in ("render", "export", "report"):
        run_step(own_run, step)
        assert "out of date" not in capsys.readouterr().out
    run_step(own_run, "cluster", cluster=replace(SETTINGS.cluster, seed=3))
    assert "now out of date: sharpen, render, export, report (run `cgc sharpen" in capsys.readouterr().out
    assert states()["render"] == "out of date" and states()["lift"].startswith("done")
    run_step(own_run, "lift", lift=replace(SETTINGS.lift, dim=5))
    assert "now out of date: cluster, sharpen, render, export, report" in capsys.readouterr().out
    run_step(own_run, "train", train=FAST.train)
    assert "now out of date: lift, cluster, sharpen, render, export, report" in capsys.readouterr().out
    kept = open_run(own_run).settings
    assert (kept.train, kept.lift.dim, kept.cluster.seed) == (FAST.train, 5, 3)
    for step in STEPS[1:]:
        run_step(own_run, step, quiet=True)
    assert all(s.startswith("done in ") for s in states().values())


def test_a_step_refuses_to_build_on_what_is_out_of_date(own_run):
    run_step(own_run, "train", quiet=True, train=FAST.train)
    before = snapshot(own_run)
    for step in ("cluster", "render", "export", "report"):
        with pytest.raises(InputError, match=r"features.safetensors is out of date: run `cgc lift .*` first"):
            run_step(own_run, step, quiet=True)
    assert snapshot(own_run) == before


def test_a_step_that_fails_leaves_the_settings_as_they_were(own_run):
    before = snapshot(own_run)
    with pytest.raises(InputError, match="everything is noise: HDBSCAN found no cluster of at least 400"):
        run_step(own_run, "cluster", quiet=True, cluster=replace(SETTINGS.cluster, min_cluster_size=400))
    assert snapshot(own_run) == before


# ---- repeatability


def test_two_runs_with_one_seed_are_the_same_byte_for_byte(tiny_scene, tiny_run, tmp_path):
    run(tiny_scene, tmp_path / "run")
    first, second = snapshot(tiny_run), snapshot(tmp_path / "run")
    for name in first:
        if name not in ("stats.json", "report/index.html"):  # which hold times
            assert first[name] == second[name], name


def test_what_killed_processes_left_half_written_is_removed(own_run):
    def leave(name: str, age: float) -> Path:
        path = own_run / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    dead, alive, whole = 999_999_999, os.getpid(), snapshot(own_run)
    gone = [leave(f".splats.{dead}.partial.ply", 9000), leave(f"masks/.a.b.{dead}.partial.png", 9000)]
    kept = [
        leave(f".stats.{alive}.partial.json", 9000),  # at work
        leave(f".features.{dead}.partial.safetensors", 60),  # another machine's, perhaps
        leave(f"notes.{dead}.partial.txt", 90), leave(".mine.partial.txt", 90),  # nobody's of cgc
    ]  # fmt: skip
    meet(Workspace(open_run(own_run), quiet=True))
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
    for path in kept:
        path.unlink()
    assert snapshot(own_run) == whole


def test_a_killed_training_goes_on_to_the_same_splats(tiny_scene, tiny_run, tmp_path, monkeypatch):
    saved = []

    def save_and_die(folder, checkpoint, identity):
        saved.append(trainer_save(folder, checkpoint, identity))
        if len(saved) == 2:
            raise KeyboardInterrupt

    trainer_save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", save_and_die)
    settings = replace(SETTINGS, train=replace(SETTINGS.train, checkpoint_every=13))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_scene, tmp_path / "run", settings)
    assert saved[-1].exists() and not (tmp_path / "run/splats.ply").exists()
    assert not [p for p in (tmp_path / "run").rglob("*") if "partial" in p.name]
    with pytest.raises(InputError, match="other settings"):
        run_step(tmp_path / "run", "train", quiet=True, train=FAST.train)
    monkeypatch.setattr(trainer, "save_checkpoint", trainer_save)
    stepped = []
    step = trainer.Training.step
    monkeypatch.setattr(trainer.Training, "step", lambda self, i: (stepped.append(i), step(self, i))[1])
    run_step(tmp_path / "run", "train", quiet=True)
    assert stepped == list(range(26, 60))
    assert (tmp_path / "run/splats.ply").read_bytes() == (tiny_run / "splats.ply").read_bytes()
    assert not (tmp_path / "run/checkpoints").exists()
    run_step(tmp_path / "run", "train", quiet=True, train=FAST.train)  # nothing is left to collide with


def test_test_views_influence_nothing_but_their_measures(own_scene, tiny_run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (36, 48, 3), np.uint8)
    for stem in TEST_STEMS:
        Image.fromarray(noise).save(own_scene / f"images/{stem}.png")
        write_id_map(own_scene / f"masks/{stem}.png", noise[..., 0] % 5 + 1)
    run(own_scene, tmp_path / "run")
    clean, corrupt = snapshot(tiny_run), snapshot(tmp_path / "run")
    for name in clean:
        if name not in ("scene.json", "stats.json", "report/index.html"):
            assert clean[name] == corrupt[name], name
    assert stats(tmp_path / "run")["psnr_test"] < 12 < stats(tmp_path / "run")["psnr_train"]
    assert stats(tmp_path / "run")["steps"] == stats(tiny_run)["steps"]


# ---- other ways in


def test_given_splats_replace_training_and_keep_their_extras(tiny_scene, tmp_path, calls):
    splats, labels = clumps()
    extras = {"age": np.arange(len(splats), dtype=np.float32), "kind": labels}
    write_ply(tmp_path / "given.ply", splats, extras)
    run(tiny_scene, tmp_path / "run", splats=tmp_path / "given.ply")
    made = read_ply(tmp_path / "run/splats.ply")
    assert torch.equal(made.means, splats.means)
    assert not made.extras  # plain, for every viewer; what was beside a splat's own attributes lies beside
    with np.load(tmp_path / "run/extras.npz") as kept:
        assert (kept["age"] == extras["age"]).all() and (kept["kind"] == labels).all()
    facts = stats(tmp_path / "run")
    assert facts["gaussians"] == len(splats) and facts["segments"] == 7 and facts["miou_things"] > 0.8
    assert facts["psnr_test"] > 40  # they are the truth
    write_ply(tmp_path / "given.ply", splats.select(torch.arange(1, len(splats))))
    calls.clear()
    run(tiny_scene, tmp_path / "run", splats=tmp_path / "given.ply")
    assert not (tmp_path / "run/extras.npz").exists()  # these splats have none
    assert calls == list(STEPS) and stats(tmp_path / "run")["gaussians"] == len(splats) - 1


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_step_that_was_stopped_when_files_had_changed_is_not_done(step, own_run, monkeypatch):
    """Stopped between its files and stats.json, which said that it was done with the settings of before."""
    before, settings = snapshot(own_run), open_run(own_run).settings

    def stopped(*_, **__):
        raise KeyboardInterrupt

    changed = {"train": replace(settings.train, seed=5), "lift": replace(settings.lift, seed=5),
               "cluster": replace(settings.cluster, level=0.9)}  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "finish", stopped)
        run_step(own_run, step, quiet=True, **({step: changed[step]} if step in changed else {}))
    assert open_run(own_run).settings == settings and not open_run(own_run).is_done(step)
    scene = Path(open_run(own_run).source.scene)
    run(scene, own_run, settings, masks=None)
    after = snapshot(own_run)
    assert all(after[name] == before[name] for name in before if name not in ("stats.json", "report/index.html"))


def test_a_step_that_fails_before_a_file_has_changed_is_what_it_was(own_run, monkeypatch):
    before = snapshot(own_run)

    def full(*_, **__):
        raise InputError("the disk is full")

    monkeypatch.setattr(cluster_step, "save_labels", full)
    time.sleep(0.02)  # so that no file has the time of the record that a step has begun
    with pytest.raises(InputError, match="full"):
        run_step(own_run, "cluster", quiet=True)
    assert snapshot(own_run) == before


def test_going_back_to_settings_of_before_finds_the_numbers_again(own_run, calls):
    settings, numbers = open_run(own_run).settings, stats(own_run)["psnr_test"]
    for level in (0.9, settings.cluster.level):
        run_step(own_run, "cluster", quiet=True, cluster=replace(settings.cluster, level=level))
    with pytest.raises(InputError, match=r"run `cgc sharpen"):
        run_step(own_run, "report", quiet=True)
    run(Path(open_run(own_run).source.scene), own_run, settings, masks=None)
    assert stats(own_run)["psnr_test"] == numbers and stats(own_run)["quality"]


def test_two_commands_do_not_work_in_one_folder(tiny_scene, tmp_path, own_run, monkeypatch):
    folder = os.open(own_run, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as another process does
    try:
        with pytest.raises(InputError, match=f"another command is at work in {own_run}; wait"):
            run_step(own_run, "cluster", quiet=True)
        with pytest.raises(InputError, match="another command is at work"):
            run(Path(open_run(own_run).source.scene), own_run, masks=None)
    finally:
        os.close(folder)
    run_step(own_run, "export", quiet=True)
    new, made = tmp_path / "new", []

    def meanwhile(work):
        with pytest.raises(InputError, match="another command is at work"), monkeypatch.context() as patch:
            patch.setattr(run_folder, "_held", set())
            run(tiny_scene, new, FAST, masks=None)
        made.append(work)
        raise KeyboardInterrupt

    monkeypatch.setitem(steps.FUNCTIONS, "train", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_scene, new, FAST, masks=None)
    assert made and not run_folder._held


def test_given_splats_that_have_changed_put_what_follows_out_of_date(tiny_scene, tmp_path, calls, capsys):
    splats, _ = clumps()
    given = tmp_path / "given.ply"
    write_ply(given, splats)
    run(tiny_scene, tmp_path / "run", FAST, splats=given)
    write_ply(given, splats.select(torch.arange(len(splats)).flip(0)))
    run_step(tmp_path / "run", "train", quiet=True)
    assert torch.equal(read_ply(tmp_path / "run/splats.ply").means, splats.means.flip(0))
    assert not open_run(tmp_path / "run").is_done("lift")
    calls.clear()
    run(tiny_scene, tmp_path / "run", FAST)
    assert calls == list(STEPS[1:])
    calls.clear()
    write_ply(given, splats)
    run_all(tiny_scene, tmp_path / "run", FAST, masks=None, splats=None)
    assert calls == list(STEPS) and torch.equal(read_ply(tmp_path / "run/splats.ply").means, splats.means)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{given} has changed since the run took its splats from it; they are taken again" in said
    calls.clear()
    for _ in range(2):
        run(tiny_scene, tmp_path / "run", FAST)
        given.unlink(missing_ok=True)  # the run has what it needs of it
    assert calls == []


def test_attributes_of_given_splats_are_the_run_s_whatever_they_are_called(tiny_scene, tmp_path):
    splats, labels = clumps()
    names = ("file", "allow_pickle", "moved", "origin_row", "label")
    write_ply(tmp_path / "given.ply", splats, {name: labels + i for i, name in enumerate(names)})
    settings = replace(FAST, sharpen=replace(FAST.sharpen, steps=10))
    run(tiny_scene, tmp_path / "run", settings, splats=tmp_path / "given.ply")
    with np.load(tmp_path / "run/extras.npz") as kept:
        assert all((kept[name] == labels + i).all() for i, name in enumerate(names))
    seg = load(tmp_path / "run")
    assert (seg.splats.extras["file"] == labels[seg.splats.extras["origin_row"]]).all()
    [path] = seg.export(tmp_path / "out", "labelled")
    assert set(read_ply(path).extras) == {"file", "allow_pickle", "label"}


def test_a_scene_far_from_its_origin_takes_back_what_was_exported(own_scene, tmp_path, capsys):
    model = pycolmap.Reconstruction(str(own_scene / "sparse/0"))
    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), np.array([5e5, 4e6, 120.0])))
    model.write_text(str(own_scene / "sparse/0"))
    made = run(own_scene, tmp_path / "run", FAST).root
    load(made).export(tmp_path / "out", "labelled")
    for given in (tmp_path / "out/labelled.ply", made / "splats.ply"):
        capsys.readouterr()
        again = run_all(own_scene, tmp_path / given.stem, FAST, masks=None, splats=given).root
        assert (again / "splats.ply").read_bytes() == (made / "splats.ply").read_bytes()
        assert stats(again)["psnr_train"] == pytest.approx(stats(made)["psnr_train"], abs=0.01)
        said = " ".join(capsys.readouterr().out.split())
        assert "rounded" not in said and ("lie where a run of this scene has them" in said) == (given.stem == "splats")


def test_splats_of_another_frame_are_said(tiny_scene, tmp_path, capsys):
    splats, _ = clumps()
    for name, moved in (("own", splats.means), ("turned", splats.means.roll(1, 1))):
        write_ply(tmp_path / f"{name}.ply", replace(splats, means=moved))
        run_all(tiny_scene, tmp_path / name, FAST, masks=None, splats=tmp_path / f"{name}.ply")
        said = " ".join(capsys.readouterr().out.split())
        assert ("do not show what the photos show" in said) == (name == "turned")
        assert "--train.exposure" not in said


def test_without_masks_the_run_ends_with_splats_and_a_report(tiny_scene, tmp_path, capsys, calls):
    out = tmp_path / "run"
    run_all(tiny_scene, out, FAST, masks=None, splats=None)
    said = capsys.readouterr().out
    assert "no masks were given" in said and "Test PSNR" in said
    assert calls == ["train", "report"]
    assert {p.name for p in out.iterdir()} == {"config.json", "scene.json", "stats.json", "splats.ply", "report"}
    assert stats(out)["psnr_test"] > 10 and len(stats(out)["quality"]) == len(NAMES)
    with pytest.raises(InputError, match=r"has no masks: .* --masks DIR"):
        run_step(out, "lift", quiet=True)
    run_step(out, "lift", quiet=True, masks=tiny_scene / "masks")
    run(tiny_scene, out, FAST, masks=None)  # it has masks now
    assert calls == ["train", "report", "lift", "lift", "cluster", "sharpen", "render", "export", "report"]


def test_training_says_that_it_starts_without_points(own_scene, tiny_scene, tmp_path, capsys):
    (own_scene / "sparse/0/points3D.txt").write_text("")
    for scene, out, expected in ((own_scene, "bare", True), (tiny_scene, "with", False)):
        run_all(scene, tmp_path / out, FAST, masks=None, splats=None)
        assert ("no 3D points, so training starts from" in capsys.readouterr().out) == expected


def test_truth_is_scored_at_its_own_size(tiny_scene, tmp_path):
    splats, _ = clumps()
    write_ply(tmp_path / "given.ply", splats)
    settings = replace(SETTINGS, scene=SceneSettings(max_side=32))
    run(tiny_scene, tmp_path / "run", settings, splats=tmp_path / "given.ply")
    facts = stats(tmp_path / "run")
    assert read_id_map(tmp_path / f"run/masks/{STEMS[0]}.png").shape == (24, 32)
    assert facts["miou_things"] > 0.6
    assert sum(row["pixels"] for row in facts["instances"]) > 2 * 6 * 40  # pixels of the truth, 48 wide


def test_broken_truth_is_said_before_the_long_steps(own_scene, tmp_path):
    (own_scene / f"instance/{TEST_STEMS[1]}.png").unlink()
    with pytest.raises(InputError, match="1 of 2 true id maps are missing"):
        run(own_scene, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_views_that_share_a_stem_do_not_share_a_mask(tmp_path):
    names = (*NAMES[:-2], "a_view_00.jpg", "z.png")
    assert names[0] == "a_view_00.png"
    scene = make_scene(tmp_path / "scene", names)
    splats, _ = clumps()
    write_ply(tmp_path / "given.ply", splats)
    for name in ("a_view_00.jpg", "a_view_00.png"):  # masks and truth by whole name, as the run writes them
        for folder in ("masks", "instance"):
            shutil.copy(scene / folder / "a_view_00.png", scene / folder / f"{name}.png")
    (scene / "masks/a_view_00.png").unlink()
    run(scene, tmp_path / "run", FAST, splats=tmp_path / "given.ply")
    for folder in ("masks", "weights"):
        found = {
            p.relative_to(tmp_path / "run" / folder).as_posix() for p in (tmp_path / "run" / folder).rglob("*.png")
        }
        assert found == {f"{called}.png" for called in picture_names(names)}
    assert "a_view_00.jpg" in picture_names(names) and "a_view_01" in picture_names(names)
    assert picture_names(["a.jpg", "a.png", "b/a.png", "b.c.png"]) == ["a.jpg", "a.png", "b/a", "b.c"]
    assert picture_names(["a.jpg", "a.png", "a.jpg.png"]) == ["a.jpg", "a.png", "a.jpg.png"]
    one, other = (read_id_map(tmp_path / f"run/masks/a_view_00.{end}.png") for end in ("png", "jpg"))
    assert (one != other).mean() > 0.05


# ---- the run folder


def test_keys_hash_what_a_step_depends_on_and_nothing_else(tmp_path):
    fingerprint = {"root": "/here", "views": 2}
    source = Source("/here", "/masks", None, fingerprint, masks_hash="m")
    made = create_run(tmp_path / "run", RunSettings(), source)
    keys = {step: made.key(step) for step in STEPS}
    assert len(set(keys.values())) == len(STEPS)

    def changed(**source_changes):
        other = create_run(tmp_path / "run", RunSettings(), replace(source, **source_changes))
        return [step for step in STEPS if other.key(step) != keys[step]]

    assert changed(scene="/there", masks="/others", fingerprint={"root": "/there", "views": 2}) == []
    assert changed(masks_hash="n") == list(STEPS[1:])
    assert changed(splats_hash="s") == changed(fingerprint={"views": 3}) == list(STEPS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", '{"format": 1, "colour": 3}', "settings this version does not know: colour"),
        ("config.json", '{"format": 1, "train": 3}', "holds int where TrainSettings was expected"),
        (
            "config.json",
            '{"format": 1, "train": {"steps": "many"}}',
            "train.steps is 'many' where a whole number of at least 1 was expected",
        ),
        ("config.json", '{"format": 2}', "has format 2 where this version of cgc reads format 1"),
        ("config.json", "[]", "has format None"),
        ("config.json", "{", "is not valid JSON"),
        ("config.json", None, r"run/config\.json is missing, .*; put it back, or make the run anew in another folder"),
        ("scene.json", None, r"run/scene\.json is missing, .*; put it back, or make the run anew in another folder"),
        ("scene.json", '{"format": 1, "scene": "x"}', r"this version writes \(it has no masks, it has no splats, "),
        (
            "scene.json",
            '{"format": 1, "scene": "x", "masks": null, "splats": null, "fingerprint": {}, "of": 3}',
            r"is not what this version writes \('of' is unknown\)",
        ),
        ("stats.json", "[]", "is not what this version writes"),
        ("stats.json", '{"steps": {}}', "is not what this version writes"),
    ],
)
def test_broken_run_folders_are_said(own_run, name, text, said):
    (own_run / name).unlink()
    if text is not None:
        (own_run / name).write_text(text)
    with pytest.raises(InputError, match=said):
        open_run(own_run)


def test_a_run_that_was_stopped_as_it_began_is_begun_again(tiny_scene, own_run):
    """Where nothing but one of its first two files is there, the folder serves the command that is advised."""
    for path in own_run.iterdir():
        if path.name != "config.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=rf"scene\.json is missing, .*\(`cgc run SCENE --out {own_run}`\)"):
        open_run(own_run)
    run(tiny_scene, own_run, FAST, masks=None)
    assert open_run(own_run).is_done("train")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("scene.json", "masks", 5), ("scene.json", "fingerprint", []), ("scene.json", "scene", None),
     ("stats.json", "seconds", {"train": "long"}), ("stats.json", "gaussians", "many"), ("stats.json", "level", []),
     ("stats.json", "quality", {"a": {"split": "test"}}), ("stats.json", "instances", [3]),
     ("stats.json", "sharpened", {"used": True}), ("stats.json", "psnr_test", "nan"),
     ("stats.json", "steps", {"lift": 3})],
)  # fmt: skip
def test_values_of_other_kinds_are_said(own_run, name, key, value):
    facts = json.loads((own_run / name).read_text())
    (own_run / name).write_text(json.dumps({**facts, key: value}))
    with pytest.raises(InputError, match=rf"{name} is not what this version writes \({key} is "):
        open_run(own_run)


# ---- settings


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        ("train", "steps", -5, "train.steps is -5 where a whole number of at least 1 was expected; correct that"),
        ("train", "sh_degree", 4, "train.sh_degree is 4 where a whole number of 0 to 3 was expected"),
        ("train", "means_lr", float("nan"), "train.means_lr is nan where a number of at least 0 was"),
        ("train", "background", "pink", "train.background is 'pink' where black or white or random was"),
        ("train", "steps", True, "train.steps is True where a whole number"),
        ("lift", "dim", 0, "lift.dim is 0 where"),
        ("lift", "lr", "fast", "lift.lr is 'fast' where a number of"),
        ("cluster", "min_cluster_size", 1, "cluster.min_cluster_size is 1 where a whole number of at least 2"),
        ("train", "seed", 10**400, "00 where a whole number of 0 to"),
        ("lift", "lr", 10**400, "00 where a number of at least 0 and at most 1.79769e+308 was expected"),
        ("lift", "steps", 10**12, "where a whole number of at least 1 and at most 2.14748e+09 was expected"),
        ("cluster", "samples", 1.5, "cluster.samples is 1.5 where a whole number"),
        ("scene", "downscale", 0, "scene.downscale is 0 where"),
        ("scene", "max_side", -1, "scene.max_side is -1"),
    ],
)
def test_settings_outside_their_limits_are_refused(kind, name, value, said):
    settings = replace(RunSettings(), **{kind: replace(getattr(RunSettings(), kind), **{name: value})})
    with pytest.raises(InputError) as error:
        check(settings)
    assert said in str(error.value)


def test_every_number_has_a_limit_and_every_preset_is_within():
    others = {"reconstruct": ReconstructSettings(), "masks": MaskSettings()}
    for step, limits in LIMITS.items():
        part = others.get(step) or getattr(RunSettings(), step)
        assert set(limits) == {f.name for f in fields(part) if not isinstance(getattr(part, f.name), (str, bool))}
    for settings in PRESETS.values():
        check(settings)


def test_settings_survive_json():
    settings = replace(SETTINGS, cluster=ClusterSettings(selection="leaf", min_confidence=0.25))
    assert from_json(RunSettings, json.loads(json.dumps(to_json(settings))), "here") == settings


# ---- progress


def logged(monkeypatch, between=0.0, terminal=False):
    text = io.StringIO()
    monkeypatch.setattr(
        progress, "console", Console(file=text, force_terminal=terminal, soft_wrap=True, highlight=False)
    )
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", between)
    return text


def test_a_log_gets_a_line_every_tenth(monkeypatch):
    text = logged(monkeypatch)
    with progress_bar("train", 1800) as bar:
        for step in range(1800):
            bar.advance(1, **({"loss": 0.05, "gaussians": 31022} if step % 10 == 9 else {}))
    lines = text.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "train 10 % step 180/1800 loss 0.05 gaussians 31,022, 0:00:00 left"
    assert lines[-1].startswith("train 100 % step 1800/1800 ")


def test_a_log_of_quick_steps_gets_their_last_line_only(monkeypatch):
    text = logged(monkeypatch, between=100.0)
    for total, start, by in ((50, 0, 1), (48, 40, 3), (1, 0, 1), (0, 0, 1)):
        with progress_bar("render", total, start=start) as bar:
            for _ in range(start, total, by):
                bar.advance(by)
    with progress_bar("silent", 5, quiet=True) as bar:
        bar.advance(5)
    ends = [line.split(",")[0] for line in text.getvalue().splitlines()]
    assert ends == ["render 100 % step 50/50", "render 102 % step 49/48", "render 100 % step 1/1"]


def test_a_terminal_gets_a_bar(monkeypatch):
    text = logged(monkeypatch, terminal=True)
    with progress_bar("train", 4) as bar:
        for _ in range(4):
            bar.advance(1, psnr=25.123)
    assert "4/4" in text.getvalue() and "psnr 25.12" in text.getvalue()


def test_settings_that_a_run_is_too_old_to_have_are_what_it_was_made_with(own_run):
    run = open_run(own_run)
    train = replace(run.settings.train, max_length=0.0, strategy="default", backdrop=0)
    run.settings = replace(run.settings, train=train)
    run.save_settings()
    config = json.loads((own_run / "config.json").read_text())
    for name in YOUNGER:
        del config["train"][name]
    (own_run / "config.json").write_text(json.dumps(config))
    old = open_run(own_run)
    assert old.settings == run.settings and old.key("train") == run.key("train")
    old.settings = replace(old.settings, train=replace(old.settings.train, max_length=0.5))
    assert old.key("train") != run.key("train")
