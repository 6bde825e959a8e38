"""Training in several processes: what a camera may see, what they lend each other, and the result of one process."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import COMMAND, launch
from test_appearance import TINY, make_scene, make_splats
from tiny import SETTINGS, cameras, snapshot

from cgc import cli, parallel
from cgc.appearance import mcmc
from cgc.appearance.capture import Densification, IdentityCapture
from cgc.appearance.exchange import pack, unpack
from cgc.appearance.photo_capture import PhotoCapture
from cgc.appearance.shards import Shards
from cgc.appearance.trainer import TrainStats, train
from cgc.appearance.training import Training
from cgc.errors import InputError
from cgc.pipeline import commands
from cgc.rasterize.cpu import CpuRasterizer
from cgc.rasterize.sight import may_see
from cgc.run_folder import open_run
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_rgb
from cgc.settings import TrainSettings
from cgc.splats.ply import read_ply
from cgc.splats.types import Splats

CPU = torch.device("cpu")
NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh")


# --- what a camera may see ---


@pytest.mark.parametrize("seed", range(4))
def test_no_gaussian_is_missed_that_a_render_shows(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    n = 20_000
    splats = make_splats(n, seed=seed)
    splats = replace(
        splats,
        means=6 * torch.randn(n, 3, generator=g),
        log_scales=2 * torch.randn(n, 3, generator=g) - 3,
        logit_opacities=4 * torch.randn(n, generator=g),
    )
    camera = Camera.look_at((1.0, -2.0, 0.5), (0, 0, 0), width=64, height=40, focal=[30, 60, 200, 60][seed])
    camera = replace(camera, K=camera.K + torch.tensor([[0, 0, [0, 20, -9, 300][seed]], [5, 0, 0], [0, 0, 0]]) * 1.0)
    shown = (CpuRasterizer().render(splats, splats.colors(camera.position), [camera]).radii > 0).all(-1)[0]
    found = may_see(splats, camera)
    assert shown.sum() > 20 and not (shown & ~found).any()
    assert found.sum() < 0.5 * n  # most of what lies elsewhere is left out


def test_what_is_not_finite_may_be_seen() -> None:
    splats = make_splats(5)
    splats.means[1, 0], splats.log_scales[2, 1], splats.logit_opacities[3] = torch.nan, torch.nan, torch.nan
    far = replace(splats, means=splats.means + 1000)
    assert may_see(far, cameras()[0]).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("n_cameras", [1, 3])
def test_rows_hold_geometry_and_values(n_cameras: int) -> None:
    splats, values = make_splats(7), torch.rand(n_cameras, 7, 3)
    given = values[0] if n_cameras == 1 else values
    back, shown = unpack(pack(splats, given), n_cameras)
    assert torch.equal(shown, given)
    for name in NAMES[:4]:
        assert torch.equal(getattr(back, name), getattr(splats, name))


# --- what processes hand each other ---


def hand_out() -> dict[str, Any]:
    rank, size = parallel.here()
    rows = torch.arange(10.0 * rank, 10 * rank + 2 * (size - 1)).reshape(-1, 1).repeat(1, 3)
    counts = [r if r < size - 1 else 0 for r in range(size)]  # none to the first and to the last
    counts[size - 2] += len(rows) - sum(counts)
    came, many = parallel.swap(rows, counts)
    shards = Shards(11, CPU)
    own = torch.arange(11)[shards.numbers] * 10
    before = shards.whole(own).tolist(), shards.whole(own > 40).tolist(), shards.gather(own)
    source = torch.tensor([0, 3, 3, 10, 4, 4, 4, 9])
    numbers, places = shards.follow(source)
    after = shards.whole(own[places]).tolist()
    return {
        "rows": rows,
        "counts": counts,
        "came": came,
        "many": many,
        "before": before,
        "after": after,
        "n": len(numbers),
    }


def test_rows_go_where_they_should(group) -> None:
    answers = group.call(hand_out)
    for rank, got in enumerate(answers):
        parts = [of["rows"].split(of["counts"])[rank] for of in answers]
        assert torch.equal(got["came"], torch.cat(parts)) and got["many"] == [len(p) for p in parts]
        assert got["before"][0] == list(range(0, 110, 10)) and got["before"][1] == [False] * 5 + [True] * 6
        assert (got["before"][2] is None) == (rank > 0)
        assert got["after"] == [0, 30, 30, 100, 40, 40, 40, 90]
    assert answers[0]["before"][2].tolist() == list(range(0, 110, 10))
    assert sum(of["n"] for of in answers) == 8


def draw_apart() -> list[int]:
    """What the processes agree on where each has drawn something else."""
    rank, _ = parallel.here()
    return Shards(4, CPU).agreed(torch.arange(3) + 10 * rank).tolist()


def test_what_is_drawn_is_the_same_in_all(group) -> None:
    assert all(drawn == [0, 1, 2] for drawn in group.call(draw_apart))
    assert Shards(4, CPU).agreed(torch.tensor([7])).tolist() == [7]


def draw_by_rank(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Draw as a GPU might that has added up in another order."""
    numbers = torch.arange(len(weights))[weights > 0]
    return numbers[(torch.arange(count) + parallel.here()[0]) % len(numbers)]


def chain_that_draws_apart() -> list[list[int]]:
    """Who holds which Gaussian once a chain has relocated and added some."""
    settings = replace(KINDS["mcmc"], max_gaussians=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mcmc, "_draw", draw_by_rank)
        shards = Shards(11, CPU)
        params = {k: torch.nn.Parameter(v[shards.numbers]) for k, v in raw_of(make_splats(11, 0)).items()}
        params["opacities"].data = torch.linspace(-9, 2, 11)[shards.numbers]
        chain = mcmc.MarkovChain(shards, settings, extent=1.0)
        chain.refine(params, {}, 3, Densification(1.0, 0.005), 20)
    return [shards._owners.tolist(), [shards.total]]


def raw_of(splats: Splats) -> dict[str, torch.Tensor]:
    return {
        "means": splats.means, "quats": splats.quats, "scales": splats.log_scales, "opacities": splats.logit_opacities,
    }  # fmt: skip


def test_a_chain_whose_draws_differ_keeps_the_processes_together(three) -> None:
    first, *others = three.call(chain_that_draws_apart)
    assert first[1][0] > 11 and all(other == first for other in others)


def check_cards(cards: list[str]) -> str:
    try:
        parallel.check_apart(cards[parallel.here()[0]])
    except InputError as error:
        return str(error)
    return ""


def test_two_processes_on_one_card_are_refused(three) -> None:
    assert three.call(check_cards, ["GPU-a", "GPU-b", "GPU-c"]) == three.call(check_cards, ["", "", ""]) == ["", "", ""]
    said = three.call(check_cards, ["GPU-a", "GPU-b", "GPU-a"])
    assert len(set(said)) == 1 and "processes 1 and 3 of 3 are on one graphics card" in said[0]
    assert "start as many as there are cards" in said[0] and check_cards(["GPU-a"]) == ""


# --- a training ---


class Gain(IdentityCapture):
    """Learns a gain a photo and a common one, and fails at step `end`."""

    def __init__(self, end: int | None) -> None:
        self.gain, self._end = torch.ones(9, 3, requires_grad=True), end

    def parameter_groups(self):
        return [{"params": [self.gain], "lr": 1e-2}]

    def cameras(self, view: int, camera: Camera) -> list[Camera]:
        return [camera, camera]

    def predict(self, view: int, renders):
        return renders.mean(0) * self.gain[view]


class Ended(Exception):
    pass


def go_with_corrections(settings: TrainSettings) -> Any:
    scene, load = make_scene()
    capture = PhotoCapture({i: scene.views[i].camera for i in scene.split(3)[0]}, scene.extent, settings)
    splats, stats = train(scene, load, CpuRasterizer(), settings, test_every=3, quiet=True, capture=capture)
    return splats, stats, torch.cat([capture.colors.detach().reshape(-1), capture.twists.detach().reshape(-1)])


def go(settings: TrainSettings, folder: Path | None = None, end: int | None = None, gain: bool = False) -> Any:
    scene, load = make_scene()

    def stop(self, step, before=Training.step):
        if step == end:
            raise Ended
        before(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", stop)
        capture = Gain(end) if gain else None
        try:
            splats, stats = train(
                scene, load, CpuRasterizer(), settings, test_every=3, quiet=True, checkpoint_dir=folder, capture=capture
            )
        except Ended:
            return None
    return splats, stats, capture.gain.detach() if capture else None


def assert_close(one: tuple[Splats, TrainStats, Any], several: list[Any], tolerance: float = 1e-3) -> None:
    first, *others = several
    assert all(len(splats) == 0 and stats.gaussians == len(first[0]) for splats, stats, _ in others)
    assert len(one[0]) == len(first[0])
    for name in NAMES:
        torch.testing.assert_close(getattr(first[0], name), getattr(one[0], name), rtol=tolerance, atol=tolerance)
    for _, stats, gain in several:
        assert stats.loss == pytest.approx(one[1].loss, rel=1e-4)
        assert stats.psnr_train == pytest.approx(one[1].psnr_train, rel=1e-4)
        if gain is not None:
            torch.testing.assert_close(gain, one[2], rtol=1e-4, atol=1e-4)


GROWING = replace(TINY, steps=40, grow_grad2d=1e-6, sh_degree=2, sh_ramp=0.3, background="random", max_gaussians=200)
KINDS = {
    "split": GROWING,
    "default": replace(GROWING, strategy="default"),
    "reset": replace(GROWING, strategy="default", reset_every=15, prune_scale=0.1),
    "mcmc": replace(GROWING, strategy="mcmc", mcmc_growth=0.2),
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("photos", [1, 2, 5])
def test_processes_train_what_one_trains(group, kind: str, photos: int) -> None:
    settings = replace(KINDS[kind], views_per_step=photos)
    one = go(settings)
    assert len(one[0]) > 80
    assert_close(one, group.call(go, settings))


def test_what_a_capture_model_learns_is_learned_by_all(three) -> None:
    settings = replace(GROWING, views_per_step=3)
    one = go(settings, gain=True)
    assert (one[2] - 1).abs().max() > 0.05
    assert_close(one, three.call(go, settings, None, None, True))


def test_exposures_and_poses_are_learned_by_all(three) -> None:
    settings = replace(GROWING, views_per_step=3, exposure=True, poses=True, poses_lr=1e-3)
    one = go_with_corrections(settings)
    assert one[2].abs().max() > 0.005
    assert_close(one, three.call(go_with_corrections, settings))


@pytest.mark.parametrize("kind", ["split", "default", "mcmc"])
def test_a_stopped_training_goes_on_in_another_number_of_processes(two, three, tmp_path, kind: str) -> None:
    settings = replace(KINDS[kind], views_per_step=2, checkpoint_every=12)
    whole = go(settings)
    assert two.call(go, settings, tmp_path, 30) == [None, None]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train_0000012.safetensors", "train_0000024.safetensors"]
    others = [shutil.copytree(tmp_path, tmp_path / name) for name in ("one", "three", "again")]
    assert go(settings, others[2], 37) is None  # one process leaves what two go on with
    resumed = [[go(settings, others[0])], three.call(go, settings, others[1]), two.call(go, settings, others[2])]
    for several, step in zip(resumed, (24, 24, 36)):
        assert_close(whole, several)
        assert several[0][1].resumed_from == step


class Bad(IdentityCapture):
    def predict(self, view: int, renders):
        return renders[0] * (float("nan") if view == 4 else 1.0)


def go_wrong() -> str:
    scene, load = make_scene()
    with pytest.raises(InputError) as caught:
        train(scene, load, CpuRasterizer(), replace(TINY, views_per_step=2), test_every=3, quiet=True, capture=Bad())
    return str(caught.value)


def test_all_know_what_goes_wrong_in_one(two) -> None:
    first, second = two.call(go_wrong)
    assert first == second and re.match(r"the loss became nan at step [0-2];", first)


# --- a run ---

SHARED = replace(SETTINGS, train=replace(SETTINGS.train, views_per_step=2, checkpoint_every=10))


def train_run(scene: Path, out: Path, settings=SHARED) -> None:
    commands.run_all(scene, out, settings, masks=None, splats=None, quiet=True)
    parallel.barrier()


def test_a_run_of_two_trains_what_one_trains(two, tiny_scene, tmp_path) -> None:
    train_run(tiny_scene, tmp_path / "one")
    two.call(train_run, tiny_scene, tmp_path / "two")
    one, other = (read_ply(tmp_path / name / "splats.ply") for name in ("one", "two"))
    assert len(one) == len(other)  # pictures agree; what hardly shows has no gradient but rounding, which Adam follows
    for camera in cameras()[::3]:
        a, b = (render_rgb(splats, camera, CpuRasterizer()) for splats in (one, other))
        assert abs(a - b).max() < 1 / 255
    assert snapshot(tmp_path / "one").keys() == snapshot(tmp_path / "two").keys()
    facts = [open_run(tmp_path / name).stats["gaussians"] for name in ("one", "two")]
    assert facts[0] == facts[1] == len(one) and not (tmp_path / "two/checkpoints").exists()


DYING = """
    import os, signal, sys
    from cgc import cli, parallel
    from cgc.appearance.training import Training

    step = Training.step

    def die(self, number):
        if parallel.here()[0] == 1 and number == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, number)

    Training.step = die
    sys.exit(cli.main(["train", sys.argv[2], "--scene", sys.argv[3], *sys.argv[4:]]))
"""


def test_a_process_that_dies_ends_the_training_and_one_goes_on(tiny_scene, tmp_path) -> None:
    out, own = tmp_path / "run", ["--views-per-step", "2", "--steps", "40", "--checkpoint-every", "10"]
    ((code, said),) = launch(DYING, 2, str(tmp_path), str(out), str(tiny_scene), *own, torchrun=True)
    assert code != 0 and "cgc: process 2 of 2 has ended" in said and "run the same command again" in said
    left = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert left == ["train_0000010.safetensors", "train_0000020.safetensors"]
    assert not (out / "splats.ply").exists()
    stepped, step = [], Training.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", lambda self, i: (stepped.append(i), step(self, i))[1])
        assert cli.main(["train", str(out), "--quiet"]) == 0
    assert stepped == list(range(20, 40)) and len(read_ply(out / "splats.ply"))


def test_who_does_not_share_is_told_how(tiny_scene, tmp_path) -> None:
    steps = ["--steps", "5", "--checkpoint-every", "0"]
    arguments = ["train", str(tmp_path / "run"), "--scene", str(tiny_scene), *steps]
    first, second = launch(COMMAND, 2, str(tmp_path), *arguments)
    said = " ".join(first[1].split())
    assert "train: in one process, the others wait; with --train.views-per-step 2 each has a photo of every" in said
    assert (first[0], second[0], second[1]) == (0, 0, "")
