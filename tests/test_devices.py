"""Training on any device: tensor code against the CPU's kernels, photos on their way, and steps that wait for nothing.

The meta device stands for a GPU: nothing on it can be read, so that what passes neither waits for a number nor mixes
devices.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_appearance import TINY, Places, assert_same, make_scene, make_splats
from torch import Tensor

from cgc.appearance import losses
from cgc.appearance import photos as photos_module
from cgc.appearance.companion import NoCompanion
from cgc.appearance.losses import photometric_arrays, photometric_loss, photometric_tensors
from cgc.appearance.photo_capture import PhotoCapture
from cgc.appearance.photos import Photo, Photos, read_photo
from cgc.appearance.plan import Plan
from cgc.appearance.trainer import first_splats, train
from cgc.appearance.training import First, Training
from cgc.appearance.watch import Watch
from cgc.errors import InputError
from cgc.features.contrast import contrast
from cgc.features.extremes import nearest_and_farthest, of_tensors
from cgc.features.joint import _contrast
from cgc.rasterize.base import Render
from cgc.rasterize.cpu import CpuRasterizer
from cgc.rasterize.sh import colors_of_tensors, sh_colors
from cgc.scene.types import Camera

META = torch.device("meta")


@pytest.fixture(scope="module")
def tiny():
    return make_scene()


# --- tensor code against kernels ---


@pytest.mark.parametrize("height, width", [(30, 37), (3, 50), (1, 1)])
@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_the_loss_of_tensors_is_that_of_the_kernels(height: int, width: int, weight: float) -> None:
    g = torch.Generator().manual_seed(width)
    y = torch.rand(height, width, 3, generator=g)
    x = y + 0.2 * torch.randn(height, width, 3, generator=g)
    loss, gradient = photometric_tensors(x, y, weight)
    l1, ssim, expected = photometric_arrays(x.view(height, -1).numpy(), y.view(height, -1).numpy(), weight)
    assert float(loss) == pytest.approx((1 - weight) * l1 + weight * (1 - ssim), rel=1e-5, abs=1e-7)
    expected = torch.from_numpy(expected).view_as(x)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_the_loss_of_tensors_keeps_off_cudnn_and_touches_no_other_setting(monkeypatch) -> None:
    """Setting whether TF32 is allowed by its old name warns in torch 2.9, and by both names is an error."""

    def touched(*_: object) -> None:
        raise AssertionError("a setting that is nobody's business")

    for name in ("_set_cudnn_allow_tf32", "_set_fp32_precision_setter", "_set_cudnn_benchmark"):
        monkeypatch.setattr(torch._C, name, touched, raising=False)
    enabled, conv2d = [], losses.conv2d
    monkeypatch.setattr(
        losses, "conv2d", lambda *a, **k: (enabled.append(torch.backends.cudnn.enabled), conv2d(*a, **k))[1]
    )
    before = torch.backends.cudnn.enabled
    photometric_tensors(torch.rand(12, 13, 3), torch.rand(12, 13, 3), 0.2)
    assert enabled == 4 * [False] and torch.backends.cudnn.enabled == before


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours_of_tensors_are_those_of_the_kernels(degree: int) -> None:
    splats, v = make_splats(200, 3, seed=degree), torch.randn(200, 3, generator=torch.Generator().manual_seed(9))
    found = []
    for function in (sh_colors, colors_of_tensors):
        means, sh = (t.clone().requires_grad_() for t in (splats.means, 3 * splats.sh))
        colors = function(means, sh[:, 0], sh[:, 1:], torch.tensor([0.5, -2.0, 1.0]), degree)
        (colors * v).sum().backward()
        found.append([colors.detach(), sh.grad, means.grad])
    assert (found[0][0] == 0).any()
    assert (found[0][2] is None) == (found[1][2] is None) == (degree == 0)  # Adam skips what has no gradient
    for a, b in zip(*found):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_extremes_of_tensors_are_those_of_the_kernel(monkeypatch) -> None:
    g = torch.Generator().manual_seed(1)
    points, anchors = torch.randn(300, 3, generator=g), torch.randperm(300, generator=g)[:50]
    monkeypatch.setattr("cgc.features.extremes.PAIRS", 300 * 7)  # several blocks
    for mine, kernels in zip(of_tensors(points, anchors, 2, 5), nearest_and_farthest(points, anchors, 2, 5)):
        assert torch.equal(mine, kernels)
    near, far = of_tensors(points[:1], torch.tensor([0]), 2, 5)
    assert near.tolist() == far.tolist() == [[0]]


def test_the_contrastive_loss_of_tensors_is_that_of_the_kernel() -> None:
    g = torch.Generator().manual_seed(2)
    features = torch.randn(400, 8, generator=g).requires_grad_()
    masks = torch.arange(400) % 5
    loss = _contrast(features, masks, 5)
    loss.backward()
    expected, gradient = contrast(features.detach().numpy(), masks.numpy(), 5, "sum")
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(features.grad, torch.from_numpy(gradient), rtol=1e-3, atol=1e-4)


# --- photos ---


def pyramids(n: int = 3) -> dict[int, list[Photo]]:
    scene, load = make_scene(n, 256)
    return {i: read_photo(view, load).pyramid(1) for i, view in enumerate(scene.views)}


def test_photos_are_the_same_however_they_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(photos_module, "SHORTEST", 64)
    some = pyramids()
    near, far = (Photos(some, torch.device("cpu"), keep) for keep in ("device", "host"))
    assert near.on_device and not far.on_device and near.views == far.views == [0, 1, 2]
    assert near.bytes == 3 * 3 * (256 * 192 + 128 * 96)
    assert near.mean_pixels(2) == far.mean_pixels(2) == [256 * 192, 128 * 96, 128 * 96]
    for view in (0, 2):
        for level, width in ((0, 256), (1, 128), (5, 128)):
            a, b = near.take(view, level), far.take(view, level)
            assert torch.equal(a.pixels, b.pixels) and a.pixels.shape[1] == a.camera.width == width
            assert a.pixels.data_ptr() != b.pixels.data_ptr()
    assert near.copied == 0 and far.copied == 6
    torch.testing.assert_close(near.take(0, 0).float(), some[0][0].pixels.float() / 255)


def test_the_next_photo_is_on_its_way_before_it_is_asked_for() -> None:
    far = Photos(pyramids(), torch.device("cpu"), "host")
    order = [(0, 0), (2, 0), (1, 0), (2, 0)]
    for i, (view, level) in enumerate(order):
        far.take(view, level, order[i + 1] if i + 1 < len(order) else None)
        assert far.copied == min(i + 2, len(order))  # one ahead, none twice
    far.take(1, 0, (0, 0))
    far.take(2, 0)  # not the one that was announced
    assert far.copied == 7


def test_photos_lie_on_the_device_while_they_take_a_quarter_of_it(monkeypatch) -> None:
    some = pyramids()
    needed = sum(photo.pixels.numel() for sizes in some.values() for photo in sizes)
    for free, expected in ((4 * needed, True), (4 * needed - 1, False)):
        monkeypatch.setattr(photos_module, "free_memory", lambda _, free=free: free)
        assert Photos(some, torch.device("cpu")).on_device is expected
    assert photos_module.SHARE == 0.25


def test_where_photos_are_kept_does_not_matter_to_a_training(tiny) -> None:
    made = []
    for keep in ("device", "host"):
        settings = replace(TINY, steps=20, photos=keep)
        made.append(train(*tiny, CpuRasterizer(), settings, test_every=3, quiet=True)[0])
    assert_same(*made)


# --- notes of what goes wrong ---


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named_however_late_one_looks(bad: float) -> None:
    watch, seen = Watch(4, 100, torch.device("cpu")), torch.ones(1, 3, 2, dtype=torch.int32)
    for step in range(20):
        watch.note(step, torch.tensor(bad if step == 7 or step > 12 else 0.5), seen)
    with pytest.raises(InputError, match=f"the loss became {bad} at step 7; lower"):
        watch.look(20)


def test_an_empty_picture_is_said_after_an_epoch_only() -> None:
    watch, none = Watch(4, 100, torch.device("cpu")), torch.zeros(1, 3, 2, dtype=torch.int32)
    for step in range(4):
        watch.look(step)
        watch.note(step, torch.tensor(0.5), none)
    with pytest.raises(InputError, match="no Gaussian is visible from any of the 4 training views"):
        watch.look(4)
    watch.note(4, torch.tensor(0.5), none + 1)
    watch.look(5)
    assert watch.anything_seen


# --- steps that wait for nothing ---


class Blobs:
    """A rasteriser of three lines: every pixel is the mean of all values. It asks for nothing."""

    def render(
        self, splats, values: Tensor, cameras, *, backgrounds=None, depth: bool = False, absgrad: bool = False
    ) -> Render:
        camera, n = cameras[0], len(splats)
        means2d = (splats.means @ camera.viewmat[:3, :3].T)[None, :, :2] * camera.K[0, 0]
        weight = splats.opacities * splats.scales.mean(1) * splats.quats.norm(dim=-1) * means2d[0].sum(1)
        mean = (weight[:, None] * values).mean(0)
        if absgrad:
            means2d.absgrad = torch.zeros_like(means2d)
        if backgrounds is not None:
            mean = mean + backgrounds
        picture = mean.expand(1, camera.height, camera.width, -1)
        return Render(picture, picture[..., 0], None, means2d, means2d.new_zeros(1, n, 2, dtype=torch.int32))

    def contributions(self, *arguments, **options):
        raise NotImplementedError


def on_meta(tiny, settings, companion) -> Training:
    scene, load = tiny
    capture = PhotoCapture({i: scene.views[i].camera for i in scene.split(3)[0]}, scene.extent, settings)
    capture.colors, capture.twists = (v.detach().to(META).requires_grad_() for v in (capture.colors, capture.twists))
    capture._motions = capture._motions.to(META)
    views = {i: read_photo(scene.views[i], load).pyramid(0) for i in scene.split(3)[0]}
    splats = first_splats(scene, settings).to(META)
    first = First(splats, {k: v.to(META) for k, v in companion.start(splats).items()}, scene.extent)
    photos = Photos(views, META, settings.photos)
    plan = Plan(settings, photos.mean_pixels(0), len(splats), quiet=True)
    return Training(first, photos, Blobs(), settings, capture, companion, plan)


class Carries(Places):
    """Places, whose first values are drawn where the splats are."""

    def image_loss(self, view: int, camera: Camera, values: Tensor, step: int) -> Tensor:
        return (values - 1).square().mean()


@pytest.mark.parametrize("kind", ["nothing", "carries"])
@pytest.mark.parametrize("keep", ["device", "host"])
@pytest.mark.parametrize("n_views", [1, 2])
@pytest.mark.parametrize("learns", [False, True])
def test_a_step_waits_for_nothing_between_updates_of_the_bar(tiny, kind, keep, n_views, learns) -> None:
    companion = {"nothing": NoCompanion, "carries": Carries}[kind]()
    settings = replace(TINY, sh_degree=3, sh_ramp=0.01, background="white", photos=keep, views_per_step=n_views)
    settings = replace(settings, exposure=learns, poses=learns)
    run = on_meta(tiny, settings, companion)
    for step in range(1, 9):
        run.learn(step)
    assert all(p.device.type == "meta" for p in run.params.values())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # it would be noticed
        run.learn(9)


# --- memory ---


class Full(CpuRasterizer):
    """Finds no memory for a render after so many, or with more Gaussians than `most`."""

    def __init__(self, renders: int, most: int = 10**9, kind: type[RuntimeError] = torch.cuda.OutOfMemoryError) -> None:
        super().__init__()
        self.left, self.most, self.kind = renders, most, kind

    def render(self, splats, values, cameras, **options) -> Render:
        self.left -= 1
        if self.left < 0 or len(splats) > self.most:
            raise self.kind("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().render(splats, values, cameras, **options)


@pytest.mark.parametrize("kind", [torch.cuda.OutOfMemoryError, RuntimeError])
def test_a_training_without_memory_says_what_to_lower_and_loses_nothing(tiny, tmp_path, kind) -> None:
    settings = replace(TINY, views_per_step=2, grow_grad2d=1e-6)
    whole, _ = train(*tiny, CpuRasterizer(), settings, test_every=3, quiet=True)
    with pytest.raises(InputError) as caught:  # at the second photo of the step
        train(*tiny, Full(2 * 23 + 1, kind=kind), settings, test_every=3, quiet=True, checkpoint_dir=tmp_path)
    said = str(caught.value)
    assert "did not suffice for step 23 of 60 with" in said and "photos of 32x24; add --train.photos host" in said
    assert "goes on at step 23; or train anew" in said and "with --max-side 22" in said
    there = replace(settings, photos="host")
    rest, stats = train(*tiny, CpuRasterizer(), there, test_every=3, quiet=True, checkpoint_dir=tmp_path)
    assert stats.resumed_from == 23
    assert_same(whole, rest)


def test_fewer_gaussians_are_enough_to_go_on(tiny, tmp_path) -> None:
    settings = replace(TINY, grow_grad2d=1e-6, photos="host")
    with pytest.raises(InputError, match=r"did not suffice for step \d+ of 60.*; lower --train.max-gaussians to") as e:
        train(*tiny, Full(1000, most=100), settings, test_every=3, quiet=True, checkpoint_dir=tmp_path)
    fewer = int(str(e.value).split("max-gaussians to ")[1].split()[0])
    assert 60 <= fewer <= 100
    less = replace(settings, max_gaussians=fewer)
    splats, stats = train(*tiny, Full(1000, most=100), less, test_every=3, quiet=True, checkpoint_dir=tmp_path)
    assert stats.resumed_from > 0 and 60 <= len(splats) <= fewer


def test_what_memory_lacks_in_a_rehearsal_is_no_error(tiny, monkeypatch) -> None:
    from cgc.appearance import trainer

    monkeypatch.setattr(trainer, "REHEARSED", 1)
    settings = replace(TINY, steps=10, refine_start=1.0)
    _, stats = train(*tiny, Full(1000, most=100), settings, test_every=3)  # the bar wants to know 300 Gaussians
    assert stats.gaussians == 60

    def repeated(*_) -> First:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(First, "repeated", repeated)  # nor where so many cannot even be made
    _, stats = train(*tiny, Full(1000, most=100), settings, test_every=3)
    assert stats.gaussians == 60


# --- time ---


def test_steps_of_a_device_that_runs_ahead_are_timed_together(tiny) -> None:
    now = [0.0]
    settings = replace(TINY, steps=100)
    plan = Plan(settings, [768.0], 60, clock=lambda: now[0], quiet=True, ahead=10)
    for step in range(50):
        now[0] += 1.0 if (step + 1) % 10 == 0 else 0.001  # each tenth waits for the others
        plan.tick(step)
    assert [plan.effort(step) for step in (15, 29, 42)] == pytest.approx([0.1009] * 3)
    assert plan.effort(90) == pytest.approx(0.1, rel=0.1)


# --- on every device there is ---


def test_training_learns_as_much_on_every_device(tiny, device, rasterizer) -> None:
    settings = replace(TINY, steps=60, sh_degree=2, background="white", grow_grad2d=1e-6, max_gaussians=90)
    for changed in (settings, replace(settings, photos="host"), replace(settings, strategy="mcmc", mcmc_growth=0.2)):
        _, expected = train(*tiny, CpuRasterizer(), changed, test_every=3, quiet=True)
        splats, stats = train(*tiny, rasterizer, changed, device=device, test_every=3, quiet=True)
        assert splats.means.device.type == device.type and stats.gaussians == len(splats)
        assert stats.psnr_train > expected.psnr_train - 0.5


def test_checkpoints_go_from_device_to_device(tiny, device, rasterizer, tmp_path) -> None:
    settings = replace(TINY, checkpoint_every=30, background="random", grow_grad2d=1e-6)
    with pytest.raises(InputError):
        train(*tiny, Full(45), settings, test_every=3, quiet=True, checkpoint_dir=tmp_path)
    splats, stats = train(
        *tiny, rasterizer, settings, device=device, test_every=3, quiet=True, checkpoint_dir=tmp_path
    )  # fmt: skip
    assert stats.resumed_from == 45 and splats.means.isfinite().all()
    _, straight = train(*tiny, CpuRasterizer(), settings, test_every=3, quiet=True)
    assert stats.psnr_train == pytest.approx(straight.psnr_train, abs=0.5)


def test_losses_and_colours_are_the_same_on_every_device(device) -> None:
    g = torch.Generator().manual_seed(3)
    y, splats = torch.rand(40, 50, 3, generator=g), make_splats(100, 3)
    found = []
    for place in ("cpu", device):
        x = (y + 0.1).to(place).requires_grad_()
        loss = photometric_loss(x, y.to(place), 0.4)
        loss.backward()
        means, sh, eye = (t.to(place) for t in (splats.means, splats.sh, torch.ones(3)))
        found.append([loss.detach(), x.grad, sh_colors(means, sh[:, 0], sh[:, 1:], eye, 3)])
    for a, b in zip(*found):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-4, atol=1e-6)
