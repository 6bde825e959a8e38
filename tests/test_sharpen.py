"""Sharpening: splitting keeps the picture, codes pull the geometry, targets, votes, and the step in a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from tiny import SETTINGS, cameras, clumps, snapshot

from cgc.appearance.codes import TOLERATED, LabelCodes
from cgc.clustering.settle import OWN, settle
from cgc.errors import InputError
from cgc.pipeline.commands import run_all, run_step
from cgc.pipeline.facts import find_warnings
from cgc.pipeline.workspace import Workspace
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import STEPS, open_run
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels, render_rgb
from cgc.segmentation.segments import SharpenedSplats, load_labels, load_sharpened, save_sharpened
from cgc.segmentation.sharpen import (
    TRAINED,
    USUAL_PSNR,
    Sharpened,
    believed,
    label_votes,
    label_weight,
    refining,
    sharpen,
    straddles,
    winners,
)
from cgc.settings import LIMITS, SharpenSettings, TrainSettings
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.split import OFFSET, SHRINK, half_opacity, split
from cgc.splats.types import Splats

SHARPEN = SharpenSettings(steps=12, vote_stride=2, max_loss=100.0)


def one(opacity: float, long: float = 0.3, wide: float = 0.1, angle: float = 0.4) -> Splats:
    quat = torch.tensor([[np.cos(angle / 2), 0, 0, np.sin(angle / 2)]], dtype=torch.float32)
    scales = torch.tensor([[wide, long, wide]])
    sh = torch.full((1, 1, 3), 0.5 / 0.28209479177387814)
    return Splats(torch.zeros(1, 3), quat, scales.log(), torch.tensor([opacity]).logit(), sh)


FRONT = Camera.look_at((0, 0, 4), (0, 0, 0), width=96, height=96, focal=200.0, up=(0, 1, 0))


def alpha(splats: Splats) -> torch.Tensor:
    return CpuRasterizer().render(splats, torch.ones(len(splats), 1), [FRONT]).alphas[0]


# ---- splitting


@pytest.mark.parametrize("opacity", [0.15, 0.3, 0.7, 0.95])
def test_a_split_keeps_mass_mean_and_most_of_the_picture(opacity):
    whole = one(opacity)
    halves, origin = split(whole, torch.tensor([True]))
    assert len(halves) == 2 and origin.tolist() == [0, 0]
    a, b = alpha(whole).double(), alpha(halves).double()
    assert float(b.sum() / a.sum()) == pytest.approx(1, abs=0.03)
    place = torch.arange(96).double()
    for axis in (0, 1):
        centre = [(x.sum(axis) @ place) / x.sum() for x in (a, b)]
        assert float(centre[0] - centre[1]) == pytest.approx(0, abs=0.05)  # pixels
    assert float((a - b).norm() / a.norm()) < 0.13
    assert torch.allclose(halves.means.mean(0), whole.means[0], atol=1e-7)


def test_halves_lie_along_the_longest_axis_and_are_shorter_there_only():
    whole = one(0.5)
    halves, _ = split(whole, torch.tensor([True]))
    direction = torch.tensor([-np.sin(0.4), np.cos(0.4), 0], dtype=torch.float32)
    assert torch.allclose(halves.means[1], OFFSET * 0.3 * direction, atol=1e-6)
    assert torch.allclose(halves.means[0], -halves.means[1])
    assert torch.equal(halves.log_scales[:, [0, 2]], whole.log_scales[:, [0, 2]].expand(2, 2))
    assert bool((halves.log_scales[:, 1] < whole.log_scales[0, 1]).all())


def test_what_is_not_split_is_as_it_was_and_origins_say_what_came_of_what():
    splats, _ = clumps()
    splats = replace(splats, extras={"number": np.arange(len(splats))})
    which = torch.arange(len(splats)) % 5 == 0
    made, origin = split(splats, which)
    assert len(made) == len(splats) + int(which.sum()) and np.array_equal(made.extras["number"], origin.numpy())
    n = int((~which).sum())
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        assert torch.equal(getattr(made, name)[:n], getattr(splats, name)[~which])
        assert torch.isfinite(getattr(made, name)).all()
    camera = cameras()[0]
    before, after = (render_rgb(s, camera, CpuRasterizer()) for s in (splats, made))
    assert np.abs(before - after).mean() < 0.01
    none, same = split(splats, torch.zeros(len(splats), dtype=torch.bool))
    assert torch.equal(none.means, splats.means) and same.tolist() == list(range(len(splats)))


def test_half_opacities_solve_their_equation_and_stay_opacities():
    o = torch.linspace(1e-4, 1 - 1e-6, 200, dtype=torch.float64)
    p = half_opacity(o)
    overlap = SHRINK * np.exp(-((OFFSET / SHRINK) ** 2))
    assert torch.allclose(4 * SHRINK * p - overlap * p * p, 2 * o)
    assert bool((p > 0).all()) and bool((p < 1).all()) and bool((p.diff() > 0).all())


# ---- codes


def code_loss(labels, target, **options):
    return LabelCodes(np.array(labels), {0: np.array(target)}, **{"dim": 3, "weight": 2.0} | options)


def test_the_right_codes_cost_nothing_and_wrong_ones_their_distance():
    target = np.array([[1, 2], [0, 3]])
    codes = code_loss([1, 2, 3, -1], target)
    right = codes.codes[torch.from_numpy(target)]
    assert codes.image_loss(0, FRONT, right, 0) == 0
    wrong = right.clone()
    wrong[1, 0] = 100.0  # nobody knows
    wrong[0, 0] = codes.codes[2]
    distance = float((codes.codes[1] - codes.codes[2]).norm())
    assert float(codes.image_loss(0, FRONT, wrong, 0)) == pytest.approx(2 * (distance - TOLERATED) / 4, rel=1e-5)
    assert codes.image_loss(7, FRONT, right, 0) is None


def test_gaussians_carry_their_label_and_noise_nothing():
    codes = code_loss([3, -1, 1, 0], [[1, 2]])
    carried = codes.start(one(0.5))["codes"]
    assert torch.equal(carried, codes.codes[[3, 0, 1, 0]]) and not carried[1].any()
    assert torch.allclose(codes.codes[1:].norm(dim=1), torch.ones(3))
    assert codes.rates(0) == {} and codes.values({"codes": carried}, 5) is carried


def test_the_gradient_is_that_of_finite_differences():
    target = np.array([[1, 2, 0], [2, 2, 1]])
    codes = code_loss([1, 2], target)
    codes.codes = codes.codes.double()
    values = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: codes.image_loss(0, FRONT, x, 0), values)


def test_a_gaussian_that_reaches_over_the_border_draws_back():
    splats = one(0.9, long=0.3, wide=0.1, angle=0.0)  # upright; its upper half should show another label
    target = np.zeros((96, 96), np.int32)
    rows = alpha(splats).numpy() > 0.2
    upper = rows & (np.arange(96)[:, None] < 48)
    target[upper], target[rows & ~upper] = 2, 1
    codes = LabelCodes(np.array([1]), {0: target}, dim=5, weight=1.0)
    raw = replace(splats, means=splats.means.clone().requires_grad_(), log_scales=splats.log_scales.requires_grad_())
    picture = CpuRasterizer().render(raw, codes.start(raw)["codes"], [FRONT]).values[0]
    codes.image_loss(0, FRONT, picture, 0).backward()
    assert raw.means.grad is not None and raw.log_scales.grad is not None
    down = float(FRONT.viewmat[1, :3] @ -raw.means.grad[0])
    assert down > 0 and abs(float(raw.means.grad[0, 0])) < 0.1 * down


def test_the_identity_tells_what_would_differ():
    same = [code_loss([1, 2], [[1, 2]]).identity() for _ in range(2)]
    other = [code_loss([1, 1], [[1, 2]]), code_loss([1, 2], [[1, 1]]), code_loss([1, 2], [[1, 2]], weight=1.0),
             code_loss([1, 2], [[1, 2]], seed=1), code_loss([1, 2], [[1, 2]], dim=4)]  # fmt: skip
    assert same[0] == same[1] and len({same[0], *(c.identity() for c in other)}) == 6


# ---- targets


def test_masks_name_what_most_of_their_pixels_show():
    shown = np.repeat([[1, 2]], 20, 0).repeat(10, 1)  # label 1 left of column 10
    ids = np.full((20, 20), 7)
    ids[:, 9:] = 3  # the masks' border is a pixel further left
    assert np.array_equal(believed(ids, shown), np.where(ids == 7, 1, 2))
    ids[:4] = 0
    assert not believed(ids, shown)[:4].any()


def test_a_mask_of_two_labels_says_nothing():
    shown = np.repeat([[1, 2]], 20, 0).repeat(10, 1)
    assert not believed(np.full((20, 20), 5), shown).any()


def test_a_label_that_the_masks_missed_is_unknown_and_so_is_what_lies_around_it():
    shown = np.ones((30, 30), np.int64)
    shown[12:17, 12:17] = 2
    target = believed(np.full((30, 30), 4), shown)  # one mask over both
    assert not target[12:17, 12:17].any() and not target[11, 12] and not target[14, 10]
    assert target[14, 8] == 1 and target[0, 0] == 1


def test_masks_that_wander_far_from_the_labels_are_not_believed():
    shown = np.repeat([[1, 2]], 40, 0).repeat(20, 1)
    ids = np.where(np.arange(40)[None] < 20, 1, 2).repeat(40, 0)
    ids[10:24, 20:32] = 1  # a bite of 14 x 12 pixels
    target = believed(ids, shown)
    assert not target[11:23, 21:31].any() and target[0, 19] == 1 and target[0, 20] == 2


@pytest.mark.parametrize("shown", [np.zeros((5, 6), np.int64), np.ones((5, 6), np.int64)])
def test_targets_where_there_is_nothing(shown):
    assert not believed(np.zeros((5, 6), np.int64), shown).any()
    assert np.array_equal(believed(np.ones((5, 6), np.int64), shown), shown)


# ---- votes


def test_votes_are_the_columns_of_the_weights_summed_by_target(generator):
    splats, labels = clumps()
    camera = cameras()[2]
    target = render_labels(splats, labels, camera, CpuRasterizer()).ids
    target[:12] = 0
    votes = label_votes(splats, labels, [camera], {0: target}, CpuRasterizer()).toarray()
    rows = CpuRasterizer().contributions(splats, camera, min_weight=5e-3)
    slow = np.zeros_like(votes, dtype=float)
    wanted = target.ravel()[rows.rows.numpy()]
    ids = rows.ids.numpy()
    np.add.at(slow, (ids, np.where(wanted > 0, wanted, labels[ids])), rows.weights.numpy())
    assert np.allclose(votes, slow, rtol=1e-4, atol=1e-4)
    every = label_votes(splats, labels, [camera], {0: target}, CpuRasterizer(), stride=3).toarray()
    assert every.sum() == pytest.approx(votes.sum(), rel=0.05)


def test_winners_and_straddlers_by_hand():
    votes = csr_matrix(np.array([[0, 6, 2.0], [0, 0, 0], [3, 0, 1], [0, 2, 2], [0, 0, 9], [0, 0.3, 0.3]]))
    labels, sure = winners(votes, np.array([2, 5, 1, 2, 1, 1], np.int32))
    assert labels.tolist() == [1, 5, -1, 1, 2, 1]
    assert sure.tolist() == pytest.approx([0.75, 0, 0.75, 0.5, 1, 0.5])
    assert straddles(votes, 0.1).tolist() == [True, False, True, True, False, False]
    assert straddles(votes, 0.25).tolist() == [False, False, False, True, False, False]
    assert not straddles(csr_matrix((3, 2)), 0.1).any()


def test_the_short_training_grows_nothing_and_keeps_the_degree():
    s = refining(SharpenSettings(), TrainSettings(background="white", reset_every=5, budget=3.0), one(0.5))
    assert (s.sh_degree, s.refine_stop, s.reset_every, s.budget, s.coarse) == (0, 0, 0, 0, 0)
    assert s.background == "white" and s.steps == SharpenSettings().steps
    assert s.means_lr == SharpenSettings().rate * TrainSettings.means_lr


def test_what_is_lost_is_counted_against_pictures_of_usual_quality():
    def loses(before: float, after: float) -> float:
        nothing = np.zeros(0)
        return Sharpened(one(0.5), nothing, nothing, nothing, before, after).loses

    assert loses(25.0, 24.7) == pytest.approx(0.3) and loses(25.0, 25.4) == pytest.approx(-0.4)
    assert loses(USUAL_PSNR, USUAL_PSNR - 0.2) == pytest.approx(0.2)
    added = 10**-3.65 - 10**-3.7
    assert loses(37.0, 36.5) == pytest.approx(
        10 * np.log10((10 ** (-USUAL_PSNR / 10) + added) / 10 ** (-USUAL_PSNR / 10))
    )
    assert 0 < loses(37.0, 36.5) < 0.1 and loses(37.0, 37.5) < 0


def test_labels_weigh_as_the_squared_error_of_photos_that_are_fitted_well():
    settings = SharpenSettings(weight=0.8)
    assert label_weight(settings, 20.0) == label_weight(settings, USUAL_PSNR) == 0.8
    assert label_weight(settings, USUAL_PSNR + 10) == pytest.approx(0.08)  # a tenth of the squared error


# ---- the step


def test_the_step_changes_pictures_not_the_files_before_it(own_run, tiny_scene):
    before = snapshot(own_run)
    run_step(own_run, "sharpen", quiet=True, sharpen=SHARPEN)
    for name in ("splats.ply", "segments.npz", "features.safetensors"):
        assert (own_run / name).read_bytes() == before[name]
    work = Workspace(open_run(own_run), quiet=True)
    found = load_sharpened(own_run)
    assert found is not None
    old, labels = read_ply(own_run / "splats.ply"), load_labels(own_run)[0]
    assert len(found.splats) > len(old) and found.splats.sh_degree == old.sh_degree
    assert set(found.origin.tolist()) == set(range(len(old))) and (labels[found.origin] == found.labels).mean() > 0.8
    assert set(found.labels.tolist()) <= {-1, *labels.tolist()} and found.confidences.min() >= 0
    shown = work.segmentation()
    assert torch.equal(shown.splats.means, found.splats.means) and np.array_equal(shown.labels, found.labels)
    facts = open_run(own_run).stats["sharpened"]
    assert facts["used"] and facts["gaussians"] == len(found.splats) == len(old) + facts["split"]
    for step in ("render", "export", "report"):
        assert not open_run(own_run).is_done(step)
        run_step(own_run, step, quiet=True)
    sizes = [len(read_ply(p)) for p in (own_run / "segments").glob("*.ply")]
    assert sum(sizes) <= len(found.splats) and (own_run / "masks").exists()
    again = snapshot(own_run)
    run_step(own_run, "sharpen", quiet=True)  # the same to the bit
    for name in ("sharpened.ply", "sharpened.npz"):
        assert (own_run / name).read_bytes() == again[name]


def test_what_was_trained_counts_more_in_the_last_vote(own_run, monkeypatch):
    owns = []

    def spied(labels, looks, own):
        owns.append(own)
        return settle(labels, looks, own)

    monkeypatch.setattr("cgc.segmentation.sharpen.settle", spied)
    run_step(own_run, "sharpen", quiet=True, sharpen=replace(SHARPEN, steps=2))
    assert owns == [TRAINED] and TRAINED > 5 * OWN


def test_runs_that_know_less_of_sharpening_open(own_run):
    run_step(own_run, "sharpen", quiet=True, sharpen=replace(SHARPEN, steps=2, max_loss=9.0))
    stats = json.loads((own_run / "stats.json").read_text())
    del stats["sharpened"]["rate"], stats["sharpened"]["gaussians"]  # as older versions wrote it
    (own_run / "stats.json").write_text(json.dumps(stats))
    assert open_run(own_run).is_done("sharpen")


def test_pictures_that_would_get_worse_are_refused_and_that_is_said(own_run, capsys):
    worse = replace(SHARPEN, rate=80.0, max_loss=0.1)
    run_step(own_run, "sharpen", sharpen=worse)
    said = " ".join(capsys.readouterr().out.split())
    assert "sharpening would cost too much of the pictures (training views" in said
    assert not (own_run / "sharpened.ply").exists() and load_sharpened(own_run) is None
    run = open_run(own_run)
    assert not run.stats["sharpened"]["used"]
    assert any("Borders were not sharpened" in w for w in find_warnings(run.stats))
    assert np.array_equal(Workspace(run, quiet=True).segmentation().labels, load_labels(own_run)[0])


def test_where_pictures_lose_too_much_it_is_tried_once_more_gently(own_run, monkeypatch):
    rates = []

    def bad_at_usual_rates(*arguments, **options):
        rates.append(arguments[6].rate)
        found = sharpen(*arguments, **options)
        return replace(found, after=found.before - 9) if len(rates) == 1 else replace(found, after=found.before)

    monkeypatch.setattr("cgc.pipeline.sharpen.sharpen", bad_at_usual_rates)
    run_step(own_run, "sharpen", quiet=True, sharpen=replace(SHARPEN, max_loss=0.1))
    assert rates == [SHARPEN.rate, SHARPEN.rate / 4]
    facts = open_run(own_run).stats["sharpened"]
    assert facts["used"] and facts["rate"] == SHARPEN.rate / 4 and load_sharpened(own_run) is not None


@pytest.mark.parametrize("step", ["cluster", "sharpen"])
def test_other_masks_than_those_that_were_learned_from_are_refused(own_run, tmp_path, step):
    masks = shutil.copytree(str(open_run(own_run).source.masks), tmp_path / "changed")
    for path in masks.rglob("*.png"):
        Image.fromarray(np.flipud(np.array(Image.open(path)))).save(path)
    with pytest.raises(InputError, match="the masks have changed since the features were learned; run `cgc lift"):
        run_step(own_run, step, quiet=True, masks=masks, sharpen=SHARPEN)


def test_what_sharpening_depends_on(own_run):
    def stale(settings):
        other = open_run(own_run)
        other.settings = settings
        return [step for step in STEPS if not other.is_done(step)]

    assert stale(SETTINGS) == [] and SETTINGS.sharpen.steps == 0
    assert stale(replace(SETTINGS, sharpen=replace(SETTINGS.sharpen, weight=9.0))) == []  # it is off
    assert stale(replace(SETTINGS, sharpen=SHARPEN)) == ["sharpen", "render", "export", "report"]
    assert stale(replace(SETTINGS, cluster=replace(SETTINGS.cluster, seed=4)))[:2] == ["cluster", "sharpen"]


def test_given_splats_are_sharpened_at_their_own_degree_on_black(tiny_scene, tiny_run, tmp_path, monkeypatch):
    behind = []

    def noted(splats, *arguments, **options):
        behind.append(arguments[6].background)
        found = sharpen(replace(splats, extras={"number": np.arange(len(splats))}), *arguments, **options)
        assert np.array_equal(found.splats.extras["number"], found.origin)
        return replace(found, splats=replace(found.splats, extras={}))

    monkeypatch.setattr("cgc.pipeline.sharpen.sharpen", noted)
    settings = replace(SETTINGS, sharpen=SHARPEN, train=replace(SETTINGS.train, sh_degree=3))
    assert settings.train.background == "random"
    plain = read_ply(tiny_run / "splats.ply")
    write_ply(tmp_path / "given.ply", replace(plain, sh=plain.sh[:, :1]))
    run_all(tiny_scene, tmp_path / "run", settings, masks=tiny_scene / "masks", splats=tmp_path / "given.ply",
            quiet=True)  # fmt: skip
    found = load_sharpened(tmp_path / "run")
    assert found is not None and found.splats.sh_degree == 0 and behind == ["black"]
    run = open_run(tmp_path / "run")
    run.settings = replace(settings, train=replace(settings.train, background="white"))  # what pictures are made on
    assert run.is_done("cluster") and not run.is_done("sharpen")


def test_broken_files_are_said(tmp_path):
    splats, labels = clumps()
    made = SharpenedSplats(splats, labels, np.ones(len(labels), np.float32), np.arange(len(labels)))
    save_sharpened(tmp_path, made)
    found = load_sharpened(tmp_path)
    assert found is not None and torch.equal(found.splats.means, splats.means)
    save_sharpened(tmp_path, made._replace(labels=labels[1:]))
    with pytest.raises(InputError, match=r"of different runs; run `cgc sharpen"):
        load_sharpened(tmp_path)
    save_sharpened(tmp_path, None)
    assert load_sharpened(tmp_path) is None and not (tmp_path / "sharpened.ply").exists()
    for column in ({"labels": labels[:, None]}, {"labels": np.array(1)}, {"confidences": labels.astype(str)}):
        save_sharpened(tmp_path, made._replace(**column))
        with pytest.raises(InputError, match=r"npz is broken \(its (labels|confidences) are \[.* was expected"):
            load_sharpened(tmp_path)
    (tmp_path / "sharpened.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"sharpened.npz is broken .* run `cgc sharpen"):
        load_sharpened(tmp_path)


def test_every_setting_has_a_limit():
    assert set(LIMITS["sharpen"]) == set(vars(SharpenSettings()))
