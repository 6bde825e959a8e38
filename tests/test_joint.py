"""The paper's joint mode: its losses against loops, which steps have them, the trainer with it, the whole preset."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_features import slow_contrastive
from tiny import CLUMPS, FLOOR, NAMES, VIEWS, cameras, clumps
from tiny import SETTINGS as TINY
from torch.nn.functional import cosine_similarity

from cgc.appearance import schedule, trainer
from cgc.appearance.companion import Companion, NoCompanion
from cgc.errors import InputError
from cgc.features.extremes import BLOCK, nearest_and_farthest
from cgc.features.joint import JointFeatures, is_due, learn_rasterised, pixels_of_masks, spatial_loss
from cgc.kernels import threads
from cgc.masks.id_maps import read_id_map, resize_nearest, write_id_map
from cgc.pipeline.commands import run_all, run_step
from cgc.pipeline.lift import load_features
from cgc.pipeline.workspace import Workspace
from cgc.presets import PAPER, PRESETS
from cgc.rasterize.cpu import CpuRasterizer
from cgc.run_folder import STEPS, TRAINED_FEATURES, open_run
from cgc.scene.types import Camera
from cgc.scoring.runs import predicted_maps
from cgc.segmentation.labels import render_labels
from cgc.settings import JointSettings, LiftSettings, TrainSettings
from cgc.splats.ply import read_ply, write_ply

SETTINGS = replace(
    PAPER,
    train=replace(TINY.train, features="joint"),
    joint=JointSettings(dim=8, ignore_pixels=4, contrastive_weight=1e-3, steps=60),
    cluster=replace(PAPER.cluster, samples=500, min_cluster_size=10),
)
CAMERA = Camera.look_at((0, -4, 0), (0, 0, 0), width=12, height=8)


def id_maps():
    """True id maps of the tiny scene's views, with ids permuted in every view."""
    splats, labels = clumps()
    generator = np.random.default_rng(0)
    maps = [render_labels(splats, labels, camera, CpuRasterizer()).ids for camera in cameras()]
    return {i: np.append(0, generator.permutation(FLOOR) + 1)[ids] for i, ids in enumerate(maps)}


# ---- the schedule


def test_shorter_trainings_go_through_the_same_schedule_faster():
    def steps(every, steps):
        return [step + 1 for step in range(steps) if is_due(step, every, steps)]

    assert steps(50, 30_000) == list(range(50, 30_001, 50))
    assert steps(50, 1500)[:6] == [3, 5, 8, 10, 13, 15] and steps(100, 1500)[:4] == [5, 10, 15, 20]
    for n in (1500, 1800, 777, 15_000):
        assert len(steps(50, n)) == 600 and len(steps(100, n)) == 300
        assert np.diff(steps(50, n)).max() <= math.ceil(50 * n / 30_000)
    assert len(steps(50, 100)) == 100  # not twice a step


def test_rates_and_memory_of_adam_follow_the_schedule():
    long, short = (JointFeatures({}, JointSettings(), steps) for steps in (30_000, 1500))
    assert long.rates(7) == {"features": 0.0025} and long.betas() == (0.9, 0.999)
    assert short.rates(0)["features"] == pytest.approx(0.0025 * math.sqrt(20))
    assert short.betas() == (pytest.approx(0.9**20), pytest.approx(0.999**20))


def test_features_are_rendered_at_contrastive_steps_only():
    companion = JointFeatures({}, JointSettings(), 1500)
    carried = {"features": torch.rand(4, 16)}
    wanted = [companion.values(carried, step) is not None for step in range(10)]
    assert wanted == [False, False, True, False, True, False, False, True, False, True]


def test_it_is_a_companion_of_the_trainer():
    _: Companion = JointFeatures({}, JointSettings(), 10)
    offered = {name for name in vars(NoCompanion) if not name.startswith("_")}
    assert offered <= set(dir(JointFeatures))


# ---- the losses


def test_the_image_loss_is_the_equation_on_all_pixels_of_masks_that_are_large_enough():
    ids = np.zeros((16, 24), np.int32)
    ids[:6, :12], ids[8:, 3:20], ids[7, :4] = 7, 300, 9  # the last one has 4 pixels
    values = torch.randn(8, 12, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()  # of half the size
    settings = JointSettings(dim=5, ignore_pixels=4, contrastive_weight=0.25)
    loss = JointFeatures({3: ids}, settings, 100).image_loss(3, CAMERA, values, 0)
    small = resize_nearest(ids, 12, 8)
    inside = np.isin(small, (7, 300))
    slow_values = values.detach().double().requires_grad_()
    masks = torch.from_numpy((small[inside] == 300).astype(np.int64))
    slow = 0.25 * slow_contrastive(slow_values[torch.from_numpy(inside)], masks, 2, "sum")
    torch.testing.assert_close(loss.double(), slow, rtol=1e-5, atol=1e-6)
    loss.backward()
    slow.backward()
    torch.testing.assert_close(values.grad.double(), slow_values.grad, rtol=1e-4, atol=1e-6)


def test_the_identity_tells_what_would_differ():
    ids, settings = np.arange(96).reshape(8, 12), JointSettings()
    other = ids.copy()
    other[3, 4] = 1
    same = [JointFeatures({0: of_view.copy()}, settings, 60).identity() for of_view in (ids, ids)]
    changed = [
        JointFeatures({0: other}, settings, 60), JointFeatures({1: ids}, settings, 60),
        JointFeatures({0: ids.reshape(12, 8)}, settings, 60), JointFeatures({0: ids}, settings, 61),
        JointFeatures({0: ids}, replace(settings, dim=5), 60),
    ]  # fmt: skip
    assert same[0] == same[1] and len({same[0], *(c.identity() for c in changed)}) == 6


def test_views_without_masks_add_nothing():
    companion = JointFeatures({0: np.zeros((8, 12), np.int32)}, JointSettings(), 100)
    for view in (0, 1):
        assert companion.image_loss(view, CAMERA, torch.rand(8, 12, 16), 0) is None


def test_masks_too_thin_for_a_small_photo_are_left_out_there():
    ids = np.zeros((16, 24), np.int32)
    ids[0], ids[5:9] = 1, 2
    pixels, masks, n_masks = pixels_of_masks(ids, CAMERA, 20)
    assert n_masks == 1 and masks.unique().tolist() == [0]
    assert (resize_nearest(ids, 12, 8).ravel()[pixels] == 2).all()
    pixels, masks, n_masks = pixels_of_masks(ids, replace(CAMERA, width=24, height=16), 20)
    assert n_masks == 2 and (ids.ravel()[pixels] == masks.numpy() + 1).all()


def test_nearest_and_farthest_equal_sorting():
    for n in (3, 7, BLOCK, 2 * BLOCK + 5):
        points = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
        anchors = torch.arange(0, n, max(n // 5, 1))
        distances = torch.cdist(points.double(), points.double())[anchors]
        found = []
        for count in (1, 3):
            with threads(count):
                found.append(nearest_and_farthest(points, anchors, 2, 5))
        near, far = found[0]
        assert torch.equal(near, found[1][0]) and torch.equal(far, found[1][1])
        order = distances.argsort(1)
        assert torch.equal(near, order[:, :2]) and torch.equal(near[:, 0], anchors)
        assert torch.equal(far, order.flip(1)[:, : min(5, n)])


def test_the_spatial_loss_is_the_equation(monkeypatch):
    monkeypatch.setattr("cgc.features.joint.MOST", 40)
    g = torch.Generator().manual_seed(4)
    means = torch.randn(40, 3, generator=g).requires_grad_()
    features = torch.randn(40, 6, generator=g).requires_grad_()
    loss = spatial_loss(means, features, 40, torch.Generator().manual_seed(1))  # all are anchors
    order = torch.cdist(means, means).argsort(1)
    slow_features = features.detach().clone().requires_grad_()

    def mean_cosine(columns):
        pairs = [cosine_similarity(slow_features[i], slow_features[j], 0) for i in range(40) for j in columns[i]]
        return torch.stack(pairs).mean()

    near, far = mean_cosine(order[:, :2]), mean_cosine(order[:, -5:])
    slow = 0.05 * torch.sigmoid(1 - near) + 0.15 * torch.sigmoid(far)
    torch.testing.assert_close(loss, slow)
    loss.backward()
    slow.backward()
    torch.testing.assert_close(features.grad, slow_features.grad, rtol=1e-4, atol=1e-7)
    assert means.grad is None
    few = spatial_loss(means, features, 4, torch.Generator().manual_seed(1))
    assert not torch.equal(few, loss) and torch.equal(few, spatial_loss(means, features, 4, g.manual_seed(1)))
    monkeypatch.setattr("cgc.features.joint.MOST", 80)  # half as many Gaussians: half the anchors, half the weight
    torch.testing.assert_close(spatial_loss(means, features, 8, g.manual_seed(1)), few / 2)
    monkeypatch.setattr("cgc.features.joint.MOST", 10)
    features.grad = None
    spatial_loss(means, features, 40, g).backward()
    assert 1 < int(features.grad.any(1).sum()) <= 10


# ---- learning


def test_every_spatial_step_has_anchors_of_its_own():
    companion, splats = JointFeatures({}, JointSettings(), 30_000), clumps()[0]
    carried = companion.start(splats)
    one, again, other = (float(companion.splat_loss(splats, carried, step)) for step in (99, 99, 199))
    assert one == again != other


def test_without_a_loss_adam_goes_on():
    """The only gradient, of step 40, meets a memory of steps without one: Adam moves by more than its rate."""
    settings = JointSettings(dim=3, contrastive_every=10**6, spatial_every=20_000, steps=60)
    companion, splats = JointFeatures({}, settings, 60), clumps()[0]
    found = learn_rasterised(splats, cameras(), id_maps(), CpuRasterizer(), settings, quiet=True)
    moved = (found - companion.start(splats)["features"]).abs()
    expected = companion.rates(0)["features"] / math.sqrt(1 - companion.betas()[1])
    assert 0 < (moved > 0).float().mean() < 0.5
    np.testing.assert_allclose(moved[moved > 0], expected, rtol=1e-4)


def test_rasterised_features_tell_the_clumps_apart_and_repeat_to_the_bit():
    splats, labels = clumps()
    settings = replace(SETTINGS.joint, steps=90)
    features = learn_rasterised(splats, cameras(), id_maps(), CpuRasterizer(), settings, quiet=True)
    unit = torch.nn.functional.normalize(features, dim=-1)
    means = torch.stack([unit[torch.from_numpy(labels == i)].mean(0) for i in range(1, CLUMPS + 1)])
    within = means.norm(dim=1).mean()
    means = torch.nn.functional.normalize(means, dim=-1)
    between = (means @ means.T)[~torch.eye(CLUMPS, dtype=torch.bool)].mean()
    assert within > 0.85 and between < 0.6
    few = replace(settings, steps=8)
    once, again = (learn_rasterised(splats, cameras(), id_maps(), CpuRasterizer(), few, quiet=True) for _ in range(2))
    assert torch.equal(once, again)


def test_rasterising_alone_is_the_joint_mode_with_everything_else_held_still(tiny_scene, monkeypatch):
    from cgc.scene.images import load_image
    from cgc.scene.read import read_scene
    from cgc.settings import SceneSettings

    scene, maps = read_scene(tiny_scene, SceneSettings(), quiet=True), id_maps()
    splats, _ = clumps()
    settings = replace(SETTINGS.joint, steps=20)
    still = {f.name: 0.0 for f in fields(TrainSettings) if f.name.endswith("_lr")}
    held = TrainSettings(steps=20, refine_stop=0.0, coarse=0.0, checkpoint_every=0, **still)
    joint = JointFeatures(maps, settings, 20)
    _, stats = trainer.train(
        scene, load_image, CpuRasterizer(), held, test_every=0, companion=joint, start=splats, quiet=True
    )
    shown = [schedule.view_at(list(range(VIEWS)), 0, step) for step in range(20)]
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None, real=torch.randperm: (
        torch.tensor([shown.pop(0) for _ in range(n)]).flip(0) if n == VIEWS else real(n, generator=generator)
    ))  # fmt: skip
    alone = learn_rasterised(splats, [v.camera for v in scene.views], maps, CpuRasterizer(), settings, quiet=True)
    torch.testing.assert_close(alone, stats.carried["features"], rtol=1e-3, atol=1e-4)


# ---- the preset


def run(scene, out, settings=SETTINGS, splats=None):
    return run_all(scene, out, settings, masks=scene / "masks", splats=splats, quiet=True)


@pytest.fixture(scope="module")
def paper_run(tiny_scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("paper") / "run"
    run(tiny_scene, out)
    return out


@pytest.fixture
def own_run(paper_run, tmp_path):
    return shutil.copytree(paper_run, tmp_path / "run")


def stats(out):
    return json.loads((out / "stats.json").read_text())


def test_the_preset_is_the_papers():
    paper = PRESETS["paper"]
    released = replace(
        PRESETS["default"].train, features="joint", background="black", max_length=0.0, strategy="default", backdrop=0
    )
    assert paper.train == released and paper.joint == JointSettings()
    assert (paper.joint.lr, paper.joint.contrastive_weight, paper.joint.anchors) == (0.0025, 1e-6, 1000)
    assert (paper.cluster.revote, paper.cluster.smoothing, paper.cluster.masks) == (0, "none", "blended")


def test_the_main_job_with_the_preset(paper_run):
    facts = stats(paper_run)
    splats = read_ply(paper_run / "splats.ply")
    features, mass = load_features(open_run(paper_run))
    assert features.shape == (len(splats), 8) and mass.shape == (len(splats),) and len(splats) > 300
    assert facts["psnr_test"] > 20 and facts["miou_things"] > 0.4 and facts["segments"] >= 4
    ids = read_id_map(paper_run / "masks" / f"{NAMES[1].rsplit('.', 1)[0]}.png")
    assert len(np.unique(ids)) >= 4
    assert (paper_run / TRAINED_FEATURES).exists() and (paper_run / "report/index.html").exists()


def test_what_is_scored_are_the_pictures_of_blended_features(paper_run):
    work = Workspace(open_run(paper_run), quiet=True)
    maps = predicted_maps(work, [1, 3])[None]
    for index, ids in zip((1, 3), maps):
        assert np.array_equal(ids, read_id_map(paper_run / "masks" / f"{work.picture_names[index]}.png"))
    found = work.segmentation()
    one_hot = render_labels(found.splats, found.labels, work.scene.views[1].camera, work.rasterizer).ids
    assert (maps[0] != one_hot).any()
    with pytest.raises(InputError, match="no levels"):
        predicted_maps(work, [1], [0.5])


def test_steps_of_a_joint_run_can_be_done_again_alone(own_run, tiny_scene):
    before = (own_run / "features.safetensors").read_bytes()
    run_step(own_run, "lift", quiet=True)
    assert (own_run / "features.safetensors").read_bytes() == before
    run_step(own_run, "lift", quiet=True, lift=replace(TINY.lift, steps=5))  # other features on the same splats
    assert (own_run / "features.safetensors").read_bytes() != before
    made = open_run(own_run)
    assert made.is_done("train") and made.is_done("lift") and not made.is_done("cluster")
    run_step(own_run, "lift", quiet=True, lift=SETTINGS.lift)
    assert (own_run / "features.safetensors").read_bytes() == before
    (own_run / TRAINED_FEATURES).unlink()
    assert not open_run(own_run).is_done("train")
    with pytest.raises(InputError, match="run `cgc train"):
        run_step(own_run, "lift", quiet=True)


def test_what_a_joint_training_depends_on(own_run):
    made = open_run(own_run)
    keys = {step: made.key(step) for step in STEPS}

    def stale(**changes):
        other = open_run(own_run)
        other.settings = replace(other.settings, **changes)
        return [step for step in STEPS if other.key(step) != keys[step]]

    assert stale(joint=replace(SETTINGS.joint, dim=5)) == list(STEPS)
    assert stale(lift=replace(SETTINGS.lift, method="contrast")) == list(STEPS[1:])
    assert stale(cluster=replace(SETTINGS.cluster, masks="labels")) == list(STEPS[2:])
    made.source = replace(made.source, masks_hash="other")
    assert made.key("train") != keys["train"]
    made.settings = replace(made.settings, train=replace(SETTINGS.train, features="none"))
    plain = made.key("train")
    made.source = replace(made.source, masks_hash="another")
    assert made.key("train") == plain


def test_settings_that_are_new_and_usual_leave_old_runs_done(tiny_run):
    made = open_run(tiny_run)
    for step in STEPS:
        assert made.is_done(step)
    young = {"train": ["features"], "lift": ["method"], "cluster": ["smoothing", "draw", "masks"]}
    config = json.loads((tiny_run / "config.json").read_text())
    for part, names in young.items():
        for name in names:
            del config[part][name]
    del config["joint"]
    original = (tiny_run / "config.json").read_text()
    try:
        (tiny_run / "config.json").write_text(json.dumps(config))
        old = open_run(tiny_run)
        assert old.settings == made.settings and all(old.is_done(step) for step in STEPS)
    finally:
        (tiny_run / "config.json").write_text(original)


def test_changed_masks_make_a_joint_training_stale(own_run, tiny_scene, tmp_path):
    masks = shutil.copytree(tiny_scene / "masks", tmp_path / "masks")
    path = masks / f"{NAMES[1].rsplit('.', 1)[0]}.png"
    write_id_map(path, 0 * read_id_map(path))
    with pytest.raises(InputError, match=r"splats.ply is out of date: run `cgc train"):
        run_step(own_run, "lift", quiet=True, masks=masks)


def test_a_killed_joint_training_goes_on_to_the_same_features(tiny_scene, paper_run, tmp_path, monkeypatch):
    saved = []

    def save_and_die(folder, checkpoint, identity, save=trainer.save_checkpoint):
        saved.append(save(folder, checkpoint, identity))
        raise KeyboardInterrupt

    settings = replace(SETTINGS, train=replace(SETTINGS.train, checkpoint_every=33))
    with monkeypatch.context() as dying:
        dying.setattr(trainer, "save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_scene, tmp_path / "run", settings)
    assert not (tmp_path / "run" / TRAINED_FEATURES).exists()
    run_step(tmp_path / "run", "train", quiet=True)
    for name in ("splats.ply", TRAINED_FEATURES):
        assert (tmp_path / "run" / name).read_bytes() == (paper_run / name).read_bytes()


def test_given_splats_get_the_papers_features_by_rasterising(tiny_scene, tmp_path):
    splats, _ = clumps()
    write_ply(tmp_path / "given.ply", splats)
    out = tmp_path / "run"
    run(tiny_scene, out, replace(SETTINGS, joint=replace(SETTINGS.joint, steps=50)), splats=tmp_path / "given.ply")
    assert torch.equal(read_ply(out / "splats.ply").means, splats.means) and not (out / TRAINED_FEATURES).exists()
    assert stats(out)["miou_things"] > 0.6
    before = (out / "features.safetensors").read_bytes()
    run_step(out, "lift", quiet=True)
    assert (out / "features.safetensors").read_bytes() == before


def test_a_plain_training_can_be_lifted_by_rasterising_too(tiny_run, tmp_path):
    out = shutil.copytree(tiny_run, tmp_path / "run")
    run_step(out, "lift", quiet=True, lift=LiftSettings(method="joint"), joint=JointSettings(steps=5))
    features, _ = load_features(open_run(out))
    assert features.shape == (len(read_ply(out / "splats.ply")), 16)


def test_a_joint_training_wants_masks(tiny_scene, tmp_path):
    with pytest.raises(InputError, match=r"has no masks: .* --masks DIR"):
        run_all(tiny_scene, tmp_path / "run", SETTINGS, masks=None, splats=None, quiet=True)
