"""Several processes do what one does, bit for bit; and when one ends, the others say so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import COMMAND, environment, free_port, launch
from tiny import NAMES, SETTINGS, cameras, clumps, make_scene, snapshot
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from cgc import parallel
from cgc.arguments import Masks
from cgc.clustering.columns import mask_columns, side_by_side
from cgc.errors import InputError
from cgc.features.frozen import Learner, learn_features, nearest_neighbours
from cgc.features.samples import held, sample_batches, visible_mass
from cgc.masks.regions import PRESETS as REGIONS
from cgc.masks.sam import PRESETS as SAMS
from cgc.neighbours import build_tree, nearest_in, nearest_points
from cgc.parallel import group as group_module
from cgc.parallel.group import _come as come
from cgc.pipeline import commands
from cgc.prepare import draw_preview, masks_command
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import open_run
from cgc.segmentation.labels import render_labels
from cgc.settings import BlockSettings, MaskSettings

TIMES = ("stats.json", "report/index.html")
"""Files of a run that have times in them."""


# ---- one process


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", None)  # importing it would raise
    parallel.join(cgc="1")
    parallel.barrier()
    parallel.check_same(a="b")
    assert parallel.here() == (0, 1) and parallel.is_first() and parallel.count() == 1 and parallel.speaks()
    assert parallel.agree([1]) == [1] and parallel.collect([1]) == [[1]] and parallel.by_first(lambda: 3) == 3
    assert parallel.add_in_turn(torch.zeros(100), _adder(2)).tolist() == _values(2).sum(0).tolist()
    assert torch.equal(parallel.add_up(torch.ones(2)), torch.ones(2))
    assert [x.tolist() for (x,) in parallel.shared([3, 1, 2], lambda i: [np.array(i)])] == [3, 1, 2]
    parallel.release()
    parallel.leave()


def test_the_environment_of_others_changes_nothing_before_joining(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parallel.world() == (1, 4) and parallel.here() == (0, 1) and parallel.is_first()


@given(rank=st.text(max_size=4), size=st.text(max_size=4))
def test_what_the_environment_says_is_read_or_refused(rank, size):
    good = all(re.fullmatch("[0-9]+", x) for x in (rank, size)) and int(rank) < int(size)
    if "\0" in rank + size or any(x != x.encode("utf-8", "ignore").decode() for x in (rank, size)):
        return  # no environment can hold it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", rank)
        patch.setenv("WORLD_SIZE", size)
        if good:
            assert parallel.world() == (int(rank), int(size))
        else:
            with pytest.raises(InputError, match="torchrun"):
                parallel.world()


# ---- what they tell each other


def tell() -> dict[str, Any]:
    rank, size = parallel.here()
    arrays = [
        np.arange(5, dtype=np.int32),
        np.zeros((0, 3)),
        np.array(2.5),
        np.array([True, False]),
        np.array([rank], np.float32),
    ]
    arrays[0].setflags(write=False)
    gathered = parallel.gather(arrays)
    if rank:
        assert gathered == []
    for other, got in enumerate(gathered):
        assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(arrays, got))
        assert all(np.array_equal(a, b) for a, b in zip(arrays[:4], got)) and got[4] == other
    values = torch.tensor([float(rank)])
    parallel.broadcast((values, size - 1))
    with parallel.alone():
        inside = [parallel.here(), parallel.agree(rank), parallel.count()]
    return {
        "agree": parallel.agree({"rank": rank}),
        "collect": parallel.collect("é" * rank),
        "broadcast": values.tolist(),
        "sum": parallel.add_up(torch.tensor([rank, 1])).tolist(),
        "shared": [int(x) for (x,) in parallel.shared(list("abcdefg"), lambda s: [np.array(ord(s))])],
        "few": [int(x) for (x,) in parallel.shared([7], lambda n: [np.array(n)])],
        "first": parallel.by_first(lambda: [parallel.here(), rank]),
        "inside": inside,
    }


def test_they_tell_each_other(group):
    answers = group.call(tell)
    size = len(answers)
    for rank, said in enumerate(answers):
        assert said["agree"] == {"rank": 0} and said["collect"] == ["é" * r for r in range(size)]
        assert said["broadcast"] == [size - 1] and said["sum"] == [size * (size - 1) // 2, size]
        assert said["shared"] == ([ord(s) for s in "abcdefg"] if rank == 0 else [])
        assert said["few"] == ([7] if rank == 0 else []) and said["first"] == [[0, 1], 0]
        assert said["inside"] == [(0, 1), rank, size]


def _values(n: int) -> torch.Tensor:
    return torch.rand(n, 100, generator=torch.Generator().manual_seed(3))


def _adder(n: int, begin: int = 0, end: int | None = None) -> Callable[[torch.Tensor], None]:
    def add(total: torch.Tensor) -> None:
        for values in _values(n)[begin:end]:
            total += values

    return add


def add_floats(n: int) -> torch.Tensor:
    rank, size = parallel.here()
    return parallel.add_in_turn(torch.zeros(100), _adder(n, n * rank // size, n * (rank + 1) // size))


def test_a_sum_has_the_bits_of_one_process(group):
    one = add_floats(50)
    assert not torch.equal(one, _values(50)[:25].sum(0) + _values(50)[25:].sum(0))  # the order matters
    for total in group.call(add_floats, 50):
        assert torch.equal(total, one)


def look_up(points, queries, within):
    if not parallel.is_first():
        return parallel.serve(nearest_in)
    answers = [parallel.over_rows(nearest_in, [points], [queries[:n], within[:n]]) for n in (len(queries), 1, 0)]
    parallel.release()
    return answers


def test_rows_are_shared(group):
    generator = np.random.default_rng(0)
    points, queries = generator.random((50, 5), np.float32), generator.random((301, 5), np.float32)
    within = np.full(301, 0.3, np.float32)
    first, *others = group.call(look_up, points, queries, within)
    for n, answer in zip((301, 1, 0), first):
        for a, b in zip(answer, nearest_points(build_tree(points), queries[:n], within[:n])):
            assert np.array_equal(a, b) and a.dtype == b.dtype
    assert others == [None] * len(others)


def write_in_order(folder: Path) -> str:
    with parallel.first_before_others():
        path = folder / "first"
        if parallel.is_first():
            time.sleep(0.2)
            path.write_text("made by the first")
        return path.read_text()


def test_the_first_is_before_the_others(group, tmp_path):
    assert set(group.call(write_in_order, tmp_path)) == {"made by the first"}


def compare(values: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        parallel.check_same(scene="one", settings=values[parallel.here()[0]])
    return str(caught.value)


def come_in(folder: Path, hosts: list[str]) -> None:
    own = group_module._group
    assert own is not None
    group_module._group = replace(own, who=tuple({"host": host} for host in hosts))
    try:
        with parallel.first_before_others():
            (folder / str(own.rank)).write_text(" ".join(sorted(path.name for path in folder.iterdir())))
    finally:
        group_module._group = own


@pytest.mark.parametrize(("hosts", "found"), [("aab", ["", "0 2", "0"]), ("aaa", ["", None, None])])
def test_the_first_of_each_machine_goes_before_its_others(three, tmp_path, hosts, found):
    """A process finds what those before it have written; those of one turn may find one another's."""
    three.call(come_in, tmp_path, list(hosts))
    for rank, wanted in enumerate(found):
        seen = (tmp_path / str(rank)).read_text()
        assert seen.startswith("0") if wanted is None else seen == wanted


def test_differences_are_named(three):
    for said in three.call(compare, ["a", "a", "b"]):
        assert "settings is a in process 1 of 3 and b in process 3" in said and "scene" not in said


# ---- features


LIFT = replace(SETTINGS.lift, pixels_per_step=500, views_per_step=3, min_mask_pixels=2)


def learn(settings, n_views: int) -> dict[str, Any]:
    splats, labels = clumps()
    shots = cameras()[:n_views]
    maps = [None if i == 1 else render_labels(splats, labels, c, CpuRasterizer()).ids for i, c in enumerate(shots)]
    batches = sample_batches(splats, shots, maps, CpuRasterizer(), settings, quiet=True)
    mass = visible_mass(batches, len(splats))
    learner = Learner(batches, nearest_neighbours(splats.means, 8), torch.ones(len(splats), settings.dim), settings)
    loss = learner.step(batches[: settings.views_per_step], np.linspace(0, 0.9, 20), 0.1)
    columns = mask_columns(held(batches), len(splats))
    return {
        "features": learn_features(batches, nearest_neighbours(splats.means, 8), settings, quiet=True),
        "mass": mass, "loss": loss, "columns": columns, "batches": len(batches), "held": len(held(batches)),
        "entries": sum(len(b.weights.weights) for b in held(batches)),
    }  # fmt: skip


@pytest.mark.parametrize("n_views", [10, 3])
def test_features_are_those_of_one_process(group, n_views):
    one, several = learn(LIFT, n_views), group.call(learn, LIFT, n_views)  # 3 views: a process has no share of two
    assert one["features"].std() > 0.1 and one["batches"] == one["held"]
    for of in several:
        assert torch.equal(of["features"], one["features"]) and torch.equal(of["mass"], one["mass"])
        assert of["loss"] == pytest.approx(one["loss"], rel=1e-12) and of["batches"] == one["batches"]
    assert sum(of["held"] for of in several) == one["held"] and sum(of["entries"] for of in several) == one["entries"]
    if n_views == 10:  # nine of them with masks: the weights are divided
        assert max(of["entries"] for of in several) < 1.5 * one["entries"] / len(several)
    joined, whole = side_by_side([of["columns"] for of in several]), one["columns"]
    assert np.array_equal(joined.matrix.indices, whole.matrix.indices) and np.array_equal(joined.ids, whole.ids)
    assert np.array_equal(joined.matrix.indptr, whole.matrix.indptr) and np.array_equal(joined.views, whole.views)
    assert np.allclose(joined.matrix.data, whole.matrix.data, rtol=1e-6, atol=0)  # scipy's order of adding up


def learn_on_device(settings, n_views: int) -> dict[str, Any]:
    """What `DeviceLearner` learns of batches in its layout, on one thread: torch adds up by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    splats, labels = clumps()
    shots = cameras()[:n_views]
    maps = [render_labels(splats, labels, camera, CpuRasterizer()).ids for camera in shots]
    batches = sample_batches(splats, shots, maps, CpuRasterizer(), settings, layout="device", quiet=True)
    features = learn_features(batches, nearest_neighbours(splats.means, 8), settings, quiet=True)
    torch.set_num_threads(threads)
    return {"features": features, "mass": visible_mass(batches, len(splats)), "held": len(held(batches))}


def test_features_learned_on_devices_are_those_of_one_process(group):
    one, several = learn_on_device(LIFT, 9), group.call(learn_on_device, LIFT, 9)
    assert sum(of["held"] for of in several) == one["held"] and one["features"].std() > 0.1
    for of in several:
        assert torch.equal(of["features"], one["features"]) and torch.equal(of["mass"], one["mass"])


# ---- masks


def make(scene: Path, out: Path, overwrite: bool = False) -> str:
    settings = MaskSettings(generator="regions", workers=1)
    try:
        masks_command(Masks(scene, out, masks=settings, preview=True, overwrite=overwrite, quiet=True))
    except InputError as error:
        return str(error)
    parallel.barrier()
    return ""


def test_masks_are_shared(two, tiny_scene, tmp_path):
    make(tiny_scene, tmp_path / "one")
    assert two.call(make, tiny_scene, tmp_path / "two") == ["", ""]
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
    (tmp_path / "two" / f"{NAMES[0][:-4]}.png").unlink()
    (tmp_path / "two/sets" / f"{NAMES[3][:-4]}.npz").write_bytes(b"half of it")
    make(tiny_scene, tmp_path / "two")  # one process goes on
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")


def make_and_count(scene: Path, out: Path) -> Any:
    from cgc.prepare import make as make_masks_of
    from cgc.scene.read import read_scene

    made = make_masks_of(
        read_scene(scene), out, MaskSettings(generator="regions"), SAMS["default"], REGIONS["default"], quiet=True
    )
    return made.masks, made.kept, made.failed


def test_masks_are_counted_over_all_and_failures_named(three, tmp_path):
    scene = make_scene(tmp_path / "scene")
    broken = sorted(NAMES)[4]
    (scene / "images" / broken).write_bytes((scene / "images" / broken).read_bytes()[:200])
    answers = three.call(make_and_count, scene, tmp_path / "m")
    masks, kept, failed = answers[0]
    assert answers == [answers[0]] * 3 and list(failed) == [broken] and not kept
    assert list(masks) == [name for name in sorted(NAMES) if name != broken] and min(masks.values()) > 0
    masks, kept, failed = three.call(make_and_count, scene, tmp_path / "m")[0]
    assert kept == tuple(masks) and list(failed) == [broken]
    assert draw_preview_of(scene, tmp_path / "m").is_file()


def draw_preview_of(scene: Path, folder: Path) -> Path:
    from cgc.scene.read import read_scene

    views = [v for v in read_scene(scene).views if (folder / f"{v.stem}.png").is_file()]
    return draw_preview(views, folder)


# ---- whole runs


def run(scene: Path, out: Path, settings=SETTINGS, steps: tuple[str, ...] = ()) -> None:
    """Do a whole run, or some steps of one."""
    if steps:
        for step in steps:
            commands.run_step(out, step, quiet=True)
    else:
        commands.run_all(scene, out, settings, masks=scene / "masks", splats=None, quiet=True)
    parallel.barrier()


def same_runs(one: Path, other: Path) -> bool:
    a, b = snapshot(one), snapshot(other)
    for name in TIMES:
        assert a.pop(name) and b.pop(name)
    assert a.keys() == b.keys()
    facts = [
        {k: v for k, v in open_run(r).stats.items() if k not in ("seconds", "peak_rss_bytes")} for r in (one, other)
    ]
    for of_run in facts:
        assert of_run["files"].pop("report")  # it tells the times
    assert facts[0] == facts[1]
    return all(a[name] == b[name] for name in a)


def test_a_run_of_three_is_that_of_one(three, tiny_run, tiny_scene, tmp_path):
    three.call(run, tiny_scene, tmp_path / "run")
    assert same_runs(tmp_path / "run", tiny_run)


def run_without_masks(splats: Path, scene: Path, out: Path) -> None:
    """Do a run of given splats that makes its own masks."""
    settings = replace(SETTINGS, sharpen=replace(SETTINGS.sharpen, steps=0))
    commands.run_all(scene, out, settings, masks=lambda *_: None, splats=splats, quiet=True)
    parallel.barrier()


def test_a_runs_own_masks_are_made_by_all(two, tiny_run, tiny_scene, tmp_path):
    splats = tiny_run / "splats.ply"
    two.call(run_without_masks, splats, tiny_scene, tmp_path / "two")
    run_without_masks(splats, tiny_scene, tmp_path / "one")
    assert same_runs(tmp_path / "two", tmp_path / "one")
    assert len(list((tmp_path / "two" / "regions").rglob("*.png"))) == 10


def test_one_goes_on_where_two_were(two, tiny_run, tiny_scene, tmp_path):
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for name in ("features.safetensors", "segments.npz"):
        (out / name).unlink()
    assert not open_run(out).is_done("lift")
    two.call(run, tiny_scene, out, SETTINGS, ("lift",))
    assert open_run(out).is_done("lift") and not open_run(out).is_done("cluster")
    run(tiny_scene, out)
    assert same_runs(out, tiny_run)


@pytest.mark.parametrize("method", ["vote", "graph"])
def test_other_methods_and_sharpening(two, tiny_run, tiny_scene, tmp_path, method):
    settings = replace(
        SETTINGS, lift=replace(SETTINGS.lift, method=method), sharpen=replace(SETTINGS.sharpen, steps=3, max_loss=99)
    )
    for name in ("one", "two"):
        shutil.copytree(tiny_run, tmp_path / name)
    run(tiny_scene, tmp_path / "one", settings)
    two.call(run, tiny_scene, tmp_path / "two", settings)
    assert (tmp_path / "one/sharpened.ply").exists()
    assert same_runs(tmp_path / "one", tmp_path / "two")


def test_blocks_are_shared(two, tiny_run, tiny_scene, tmp_path):
    settings = replace(SETTINGS, blocks=BlockSettings(gaussians=250))
    for name in ("one", "two"):
        shutil.copytree(tiny_run, tmp_path / name)
    run(tiny_scene, tmp_path / "one", settings)
    two.call(run, tiny_scene, tmp_path / "two", settings)
    assert len(list((tmp_path / "two/blocks").glob("*/clustered.safetensors"))) == 3
    assert same_runs(tmp_path / "one", tmp_path / "two")


def render_level(out: Path) -> None:
    commands.run_at(out, "render", 0.5, quiet=True)
    commands.run_at(out, "export", 0.5, quiet=True)
    parallel.barrier()


def test_levels_are_rendered_by_all(two, tiny_run, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(tiny_run, tmp_path / name)
    render_level(tmp_path / "one")
    two.call(render_level, tmp_path / "two")
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("masks_at_0.5/**/*.png"))) == len(NAMES)


# ---- what goes wrong


DYING = """
    import os, signal, sys
    from cgc import cli, parallel
    from cgc.features.frozen import Learner

    step, steps = Learner.step, 0

    def die(*arguments):
        global steps
        steps += 1
        if parallel.here()[0] == 1 and steps == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)

    Learner.step = die
    sys.exit(cli.main(["lift", sys.argv[2], "--steps", "20"]))
"""


def test_a_process_that_dies_ends_the_job_with_one_sentence(two, tiny_run, tiny_scene, tmp_path):
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = snapshot(out)
    ((code, said),) = launch(DYING, 2, str(tmp_path), str(out), torchrun=True)
    assert code != 0 and "cgc: process 2 of 2 has ended" in said and "run the same command again" in said
    assert len(re.findall("^cgc: ", said, re.MULTILINE)) == 1 and "Aborted" not in said
    assert snapshot(out) == before  # nothing half-written
    two.call(run, tiny_scene, out, SETTINGS, ("lift",))
    assert same_runs(out, tiny_run)


HEARD = """
    import os, signal
    from cgc import parallel
    from cgc.parallel import group
    group._group = object()
    group._ended = lambda: parallel.Ended("process 2 of 2 has ended")
    try:
        with parallel.importing():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as libraries do
            os.kill(os.getpid(), signal.SIGTERM)
            print("imported", flush=True)
    except parallel.Stopped as stop:
        print(stop)
"""


def test_a_request_to_stop_is_heard_after_imports():
    """In a process of its own: where there are other threads, one of them may get the signal."""
    root = Path(__file__).parents[1]
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HEARD)],
        env=alone,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[0] == "imported" and "process 2 of 2" in done.stdout, done.stderr


def test_commands_speak_once(tiny_run, tmp_path):
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    answers = launch(COMMAND, 2, str(tmp_path), "render", str(out))
    assert [code for code, _ in answers] == [0, 0] and same_runs(out, tiny_run)
    assert "10 id maps" in answers[0][1] and not answers[1][1]
    answers = launch(COMMAND, 2, str(tmp_path), "train", str(tmp_path), "--budget", "long")
    assert [code for code, _ in answers] == [2, 2]
    assert answers[0][1].startswith("cgc: ") and "--budget is 'long'" in answers[0][1] and not answers[1][1]


FAILING = """
    import os, sys, time
    import torch
    from cgc import cli, parallel
    from cgc.errors import InputError
    parallel.join()
    torch.cuda.is_initialized = lambda: True
    torch.distributed.destroy_process_group = lambda: time.sleep(600)  # as NCCL does until all others part too
    try:
        if os.environ["RANK"] == "1":
            raise InputError("bad")
        parallel.barrier()
    except InputError as error:
        sys.exit(cli._fail(parallel.signed(error)))
"""


def test_a_process_that_fails_does_not_wait_for_those_that_wait_for_it(tmp_path):
    answers = launch(FAILING, 2, str(tmp_path))
    assert [code for code, _ in answers] == [2, 2]
    assert "cgc: bad (process 2 of 2)" in answers[1][1] and "cgc: " not in answers[0][1]


def test_who_speaks_is_named(three):
    first, *others = three.call(sign)
    assert first == "bad" and others == ["bad (process 2 of 3)", "bad (process 3 of 3)"]


def sign() -> str:
    assert parallel.signed(parallel.Ended("gone")) == "gone"
    return parallel.signed(InputError("bad"))


MIXED = """
    import os, sys
    from cgc import parallel
    from cgc.errors import InputError
    from cgc.parallel import group
    try:
        group.COME = 20
        parallel.join(cgc="0.2" if os.environ["RANK"] == "1" else "0.1")
    except InputError as error:
        if parallel.speaks():
            print("cgc:", error)
        sys.exit(2)
"""


def test_mixed_versions_are_refused(tmp_path):
    answers = launch(MIXED, 3, str(tmp_path))
    assert [code for code, _ in answers] == [2, 2, 2]
    said = "".join(text for _, text in answers)
    assert said.count("cgc: cgc is 0.1 in process 1 of 3 and 0.2 in process 2") == 1 and said.count("cgc: ") == 1


UNLIKE = """
    import os, sys
    import torch
    torch.cuda.is_available = lambda: os.environ["RANK"] != "1"
    torch.cuda.device_count, torch.cuda.set_device = lambda: 3, lambda number: None
    from cgc import parallel
    from cgc.errors import InputError
    from cgc.parallel import group
    group.COME = 20
    try:
        parallel.join(device=sys.argv[2], cgc="0.1")
        print("met", torch.distributed.get_backend(), parallel.collect(parallel.here()[0]))
    except InputError as error:
        if parallel.speaks():
            print("cgc:", error)
        sys.exit(2)
    parallel.leave()
"""
"""Three processes of which the second sees no GPU."""


def test_a_process_without_a_gpu_is_refused_before_they_meet(tmp_path):
    answers = launch(UNLIKE, 3, str(tmp_path), "auto")
    assert [code for code, _ in answers] == [2, 2, 2]
    said = "".join(text for _, text in answers)
    assert said.count("cgc: process 2 of 3, on ") == 1 and said.count("cgc: ") == 1 and "met" not in said
    assert "(torch sees no CUDA device, or --device is cpu) and the others on a GPU" in said
    assert "give it a GPU, start fewer processes there, or compute on the CPU in all, with --device cpu" in said


def test_a_process_without_a_gpu_may_compute_on_the_cpu_with_the_others(tmp_path):
    answers = launch(UNLIKE, 3, str(tmp_path), "cpu")
    assert [code for code, _ in answers] == [0, 0, 0], answers
    assert all("met gloo [0, 1, 2]" in text for _, text in answers)


def lift_with(out: Path, kinds: list[str]) -> str:
    """Lift where the processes find devices of these kinds; nothing is computed where they differ."""
    here = torch.device(kinds[parallel.here()[0]]), "device: cpu (gsplat's code cannot be used: no nvcc (12))"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cgc.pipeline.workspace.choose", lambda *_: here)
        try:
            commands.run_step(out, "lift", quiet=True)
        except InputError as error:
            return str(error)
    return ""


def test_processes_that_chose_other_devices_are_refused_before_a_step(three, tiny_run, tmp_path):
    """Where all see a GPU but gsplat's code cannot be had in some."""
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = snapshot(out)
    (said,) = set(three.call(lift_with, out, ["cpu", "cuda", "cpu"]))
    assert said.startswith("processes 1 and 3 of 3, on ") and "give them a GPU" in said
    assert "would compute on the CPU (gsplat's code cannot be used: no nvcc (12)) and the others on a GPU" in said
    assert snapshot(out) == before


def test_one_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr("cgc.parallel.group.COME", 0.05)
    for name, value in environment(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    store = HashStore()
    store.set("who/0", "{}")
    come(store, 0, 2)
    with pytest.raises(InputError, match=r"process 2 of 2 has not come within 0.05 s"):
        come(store, 1, 2)
    with pytest.raises(InputError, match=r"process 2 of 2 found no others .*--rdzv-endpoint"):
        parallel.join(cgc="1")  # nobody listens there
    assert parallel.here() == (0, 1)
