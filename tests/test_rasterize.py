"""Rasterize room: the contract every backend passes, against tests/reference.py, and the sparse products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import reference
import torch
from gsplat_stand_in import KERNELS
from reference import double, double_camera
from torch import Tensor

from cgc.errors import InputError
from cgc.geometry import covariances
from cgc.kernels import threads
from cgc.rasterize.base import NEAR, Contributions, Rasterizer, group_contributions, transpose_product
from cgc.rasterize.bins import bands
from cgc.rasterize.cpu import PAIR_BYTES, CpuRasterizer
from cgc.rasterize.cuda import CudaRasterizer
from cgc.scene.types import Camera
from cgc.splats.types import Splats

VALUE_TOLERANCE = 1e-5  # of values of about 1
GRADIENT_TOLERANCE = 1e-5  # of the largest entry
SLACK = {"cpu": (1, 1), "stand-in": (5, 50), "cuda": (15, 150)}
"""What the tolerances are multiplied by: of laws, where both sides are rounded alike, and against float64.

gsplat works in float32: it recovers the transmittance by division in gradients, and inverts the covariances of needles
and of what is cut by the near plane with what cancellation leaves. The stand-in shows that much; the kernels, on a card
or built for the CPU, are allowed three times as much for their fast approximations.
"""
RAW = ("means", "quats", "log_scales", "logit_opacities")


# ----------------------------------------------------------------------------------------------- small scenes


def make_camera(width: int = 37, height: int = 29, *, fx: float = 40.0, fy: float = 34.0, turn: float = 0.1) -> Camera:
    """A camera near the origin that looks along +z, turned a little; principal point off the centre."""
    c, s = math.cos(turn), math.sin(turn)
    viewmat = torch.tensor([[c, 0, s, 0.1], [0, 1, 0, -0.2], [-s, 0, c, 0.3], [0, 0, 0, 1]])
    K = torch.tensor([[fx, 0, 0.55 * width], [0, fy, 0.4 * height], [0, 0, 1]])
    return Camera(viewmat, K, width, height)


def make_splats(n: int, generator: torch.Generator, *, size: float = 0.15, opacity: float = 0.0) -> Splats:
    """Gaussians in front of `make_camera`, z from 1.5 to 5; logit opacities about `opacity`."""
    z = 1.5 + 3.5 * torch.rand(n, generator=generator)
    xy = (torch.rand(n, 2, generator=generator) - 0.5) * 1.3 * z[:, None]
    return Splats(
        means=torch.cat([xy, z[:, None]], 1),
        quats=torch.randn(n, 4, generator=generator) * 2,
        log_scales=math.log(size) + 0.6 * torch.randn(n, 3, generator=generator),
        logit_opacities=opacity + 1.5 * torch.randn(n, generator=generator),
        sh=torch.zeros(n, 1, 3),
    )


def one(
    mean: tuple[float, float, float] = (0.0, 0.0, 2.0),
    *,
    scales: tuple[float, float, float] = (0.1, 0.1, 0.1),
    quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0),
    opacity: float = 0.8,
) -> Splats:
    """A single Gaussian."""
    return Splats(
        means=torch.tensor([mean]),
        quats=torch.tensor([quat]),
        log_scales=torch.tensor([scales]).log(),
        logit_opacities=torch.tensor([opacity]).logit(),
        sh=torch.zeros(1, 1, 3),
    )


def join(*parts: Splats) -> Splats:
    """All the Gaussians of `parts`, in this order."""
    return Splats(*(torch.cat([getattr(p, k) for p in parts]) for k in (*RAW, "sh")))


def leaves(splats: Splats, device: torch.device) -> Splats:
    """Move to `device` and ask for gradients of the geometry."""
    return replace(splats, **{k: getattr(splats, k).to(device).requires_grad_() for k in (*RAW, "sh")})


def leaf_camera(camera: Camera, device: torch.device) -> Camera:
    """Move to `device` and ask for the gradient of the pose."""
    return Camera(camera.viewmat.to(device).requires_grad_(), camera.K.to(device), camera.width, camera.height)


def slack(rasterizer: Rasterizer) -> tuple[int, int]:
    """The entry of SLACK of a backend."""
    if isinstance(rasterizer, CpuRasterizer):
        return SLACK["cpu"]
    on_card = getattr(rasterizer, "device", torch.device("cpu")).type == "cuda"
    return SLACK["cuda" if on_card or KERNELS else "stand-in"]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest entry of the reference."""
    error = (ours.detach().cpu().double() - theirs.detach()).abs()
    return float(error.max() / theirs.detach().abs().max().clamp_min(1e-12)) if error.numel() else 0.0


def dense(W: Contributions) -> Tensor:
    """W as a dense float64 tensor [P, N]."""
    out = torch.zeros(len(W), W.n_gaussians, dtype=torch.float64)
    return out.index_put((W.rows.cpu(), W.ids.cpu().long()), W.weights.cpu().double(), accumulate=True)


def compare(
    rasterizer: Rasterizer,
    device: torch.device,
    splats: Splats,
    cameras: list[Camera],
    *,
    channels: int = 3,
    margin: float = 1e-4,
    seed: int = 1,
    gradients: tuple[str, ...] = (*RAW, "values", "backgrounds", "viewmat", "means2d"),
    tolerance: float = GRADIENT_TOLERANCE,
) -> None:
    """Hold values, alphas, depths, and the gradient of a random sum of them, against the reference."""
    g, loose = torch.Generator().manual_seed(seed), slack(rasterizer)[1]
    n, camera_count, size = len(splats), len(cameras), (cameras[0].height, cameras[0].width)
    values, backgrounds = torch.randn(n, channels, generator=g), torch.randn(channels, generator=g)
    on_values, on_alphas = (
        torch.randn(camera_count, *size, channels, generator=g),
        torch.randn(camera_count, *size, generator=g),
    )
    on_depths = torch.randn(camera_count, *size, generator=g)

    theirs, their_cameras = double(splats), [double_camera(c) for c in cameras]
    their_values, their_backgrounds = values.double().requires_grad_(), backgrounds.double().requires_grad_()
    expected, clear = reference.render(
        theirs, their_values, their_cameras, backgrounds=their_backgrounds, depth=True, margin=margin
    )
    assert clear.float().mean() > 0.8, "the scene is all close calls"
    assert expected.depths is not None
    solid = clear & (expected.alphas > 0.02)  # depths of fainter pixels are quotients of small numbers
    expected.means2d.retain_grad()
    loss = ((expected.values * on_values)[clear].sum() + (expected.alphas * on_alphas)[clear].sum()) / clear.sum()
    (loss + (expected.depths * on_depths)[solid].sum() / clear.sum()).backward()

    ours, our_cameras = leaves(splats, device), [leaf_camera(c, device) for c in cameras]
    our_values = values.to(device).requires_grad_()
    our_backgrounds = backgrounds.to(device).requires_grad_()
    got = rasterizer.render(ours, our_values, our_cameras, backgrounds=our_backgrounds, depth=True)
    assert got.depths is not None
    for name in ("values", "alphas"):
        torch.testing.assert_close(
            getattr(got, name).cpu().double()[clear],
            getattr(expected, name)[clear],
            rtol=0,
            atol=loose * VALUE_TOLERANCE,
        )
    near = loose * 1e-5
    torch.testing.assert_close(got.depths.cpu().double()[solid], expected.depths[solid], rtol=near, atol=near)
    if got.means2d.requires_grad:
        got.means2d.retain_grad()
    clear_, solid_ = clear.to(device), solid.to(device)
    loss = (got.values * on_values.to(device))[clear_].sum() + (got.alphas * on_alphas.to(device))[clear_].sum()
    (loss / clear_.sum() + (got.depths * on_depths.to(device))[solid_].sum() / clear_.sum()).backward()

    pairs = {k: (getattr(ours, k).grad, getattr(theirs, k).grad) for k in RAW}
    pairs["values"], pairs["backgrounds"] = (
        (our_values.grad, their_values.grad),
        (our_backgrounds.grad, their_backgrounds.grad),
    )
    pairs["viewmat"] = (
        torch.stack([c.viewmat.grad for c in our_cameras]),
        torch.stack([c.viewmat.grad for c in their_cameras]),
    )
    pairs["means2d"] = (got.means2d.grad, expected.means2d.grad)
    errors = {k: relative(*pairs[k]) for k in gradients}
    assert max(errors.values()) < loose * tolerance, errors


# --------------------------------------------------------------------------------- values and gradients, held


@pytest.mark.parametrize("opacity", [-3.0, 0.0, 7.0], ids=["faint", "mixed", "solid"])
def test_matches_the_reference(rasterizer: Rasterizer, device: torch.device, opacity: float) -> None:
    """Values, alphas, depths and every gradient, at all opacities (in the solid scene pixels finish)."""
    g = torch.Generator().manual_seed(5)
    compare(rasterizer, device, make_splats(150, g, opacity=opacity), [make_camera()])


def test_pixels_may_finish_behind_a_hundred_gaussians(rasterizer: Rasterizer, device: torch.device) -> None:
    """A tile's list is longer than what is blended at one time, and its end counts for nobody."""
    splats = make_splats(200, torch.Generator().manual_seed(5), size=0.8)
    splats, camera = replace(splats, logit_opacities=torch.full((200,), -1.5)), make_camera(20, 19)
    W = reference.contributions(double(splats), double_camera(camera))
    assert (W.dense > 0).sum(1).min() > 64 and (W.left < 1.3e-4).float().mean() > 0.5
    compare(rasterizer, device, splats, [camera])


@pytest.mark.parametrize("channels", [1, 3, 4, 16, 19, 33])
def test_any_number_of_channels(
    rasterizer: Rasterizer, device: torch.device, generator: torch.Generator, channels: int
) -> None:
    """No channel count is special."""
    compare(rasterizer, device, make_splats(60, generator), [make_camera(20, 19)], channels=channels)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (16, 16), (17, 15), (33, 49), (100, 3)], ids=str)
def test_any_image_size(
    rasterizer: Rasterizer, device: torch.device, generator: torch.Generator, size: tuple[int, int]
) -> None:
    """Also images that are no multiple of a tile, and one pixel wide or high."""
    camera = make_camera(*size, fx=0.9 * max(size), fy=1.2 * max(size))
    compare(rasterizer, device, make_splats(80, generator), [camera])


@pytest.mark.parametrize("seed", range(4))
def test_several_cameras(rasterizer: Rasterizer, device: torch.device, seed: int) -> None:
    """Gradients of several cameras add up, poses apart."""
    g = torch.Generator().manual_seed(seed)
    cameras = [make_camera(24, 20, turn=t, fx=30 + 5 * t) for t in (0.1, -0.3)]
    compare(rasterizer, device, make_splats(60, g), cameras)


def test_finite_differences_of_the_reference(
    rasterizer: Rasterizer, device: torch.device, generator: torch.Generator
) -> None:
    """A few entries of every input, moved by hand in float64: no autograd on the other side."""
    splats, camera, background = (
        make_splats(12, generator, size=0.4),
        make_camera(18, 14),
        torch.randn(3, generator=generator),
    )
    values, weights = torch.randn(12, 3, generator=generator), torch.randn(14, 18, 3, generator=generator)
    _, clear = reference.render(double(splats), values.double(), [double_camera(camera)], margin=1e-3)
    weights[~clear[0]] = 0.0
    inputs = {**{k: getattr(splats, k).double() for k in RAW}, "values": values.double()}
    inputs |= {"viewmat": camera.viewmat.double(), "backgrounds": background.double()}

    def loss(of: dict[str, Tensor]) -> Tensor:
        moved = replace(splats, **{k: of[k] for k in RAW})
        at = replace(camera, viewmat=of["viewmat"], K=camera.K.double())
        return (reference.render(moved, of["values"], [at], backgrounds=of["backgrounds"])[0].values * weights).sum()

    ours, our_camera = leaves(splats, device), leaf_camera(camera, device)
    our_values, our_background = values.to(device).requires_grad_(), background.to(device).requires_grad_()
    got = rasterizer.render(ours, our_values, [our_camera], backgrounds=our_background).values[0]
    (got * weights.to(device)).sum().backward()
    grads = {k: getattr(ours, k).grad for k in RAW}
    grads |= {
        "values": our_values.grad,
        "viewmat": our_camera.viewmat.grad,
        "backgrounds": our_background.grad,
    }
    step, near = 1e-6, slack(rasterizer)[0]
    with torch.no_grad():
        for name, whole in inputs.items():
            entries = torch.randperm(whole.numel() if name != "viewmat" else 12, generator=generator)[:6]
            for entry in entries.tolist():
                ends = []
                for sign in (1, -1):
                    moved = whole.clone().reshape(-1)
                    moved[entry] += sign * step
                    ends.append(float(loss(inputs | {name: moved.reshape(whole.shape)})))
                slope, largest = (ends[0] - ends[1]) / (2 * step), float(grads[name].abs().max())
                assert abs(float(grads[name].reshape(-1)[entry]) - slope) < near * (2e-5 * largest + 1e-6), (
                    name,
                    entry,
                )


# ------------------------------------------------------------------------------------------------------- laws


@pytest.fixture
def scene(generator: torch.Generator, device: torch.device) -> tuple[Splats, Camera, Tensor]:
    """120 Gaussians, a camera, and values [120, 5]."""
    splats, camera = make_splats(120, generator, opacity=1.0), make_camera(45, 34)
    return splats.to(device), camera.to(device), torch.randn(120, 5, generator=generator).to(device)


def test_linear_in_values(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """render(2 a - 3 b) = 2 render(a) - 3 render(b)."""
    splats, camera, a = scene
    b = a.flip(0)
    made = [rasterizer.render(splats, v, [camera]).values for v in (a, b, 2 * a - 3 * b)]
    torch.testing.assert_close(made[2], 2 * made[0] - 3 * made[1], rtol=0, atol=2e-5)


def test_ones_render_to_alpha(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """What is blended and what is let through make one."""
    splats, camera, values = scene
    render = rasterizer.render(splats, torch.ones_like(values), [camera])
    alphas = render.alphas[..., None].expand(-1, -1, -1, 5)
    torch.testing.assert_close(render.values, alphas, rtol=0, atol=2e-6 * slack(rasterizer)[0])
    assert render.alphas.min() >= 0 and 0.9 < render.alphas.max() <= 1


def test_order_of_gaussians_does_not_matter(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor], generator: torch.Generator
) -> None:
    """A permutation of the Gaussians permutes their gradients and nothing else."""
    splats, camera, values = scene
    shuffle = torch.randperm(len(splats), generator=generator).to(values.device)
    made = []
    for which in (torch.arange(len(splats), device=values.device), shuffle):
        some = leaves(splats.select(which).detach(), values.device)
        render = rasterizer.render(some, values[which], [camera], depth=True)
        render.values.square().sum().backward()
        made.append((render, some))
    (a, a_splats), (b, b_splats) = made
    for name in ("values", "alphas", "depths"):  # torch's sigmoid rounds by an entry's place in memory
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=2e-6)
    assert torch.equal(a.radii[:, shuffle], b.radii) and torch.equal(a.means2d[:, shuffle], b.means2d)
    for name in RAW:
        error = relative(getattr(a_splats, name).grad[shuffle], getattr(b_splats, name).grad.cpu())
        assert error < 1e-5 * slack(rasterizer)[0], name


def test_backgrounds_fill_what_is_left(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """One background for all cameras, or one a camera."""
    splats, camera, values = scene
    backgrounds = torch.stack([values[0], values[1]])
    plain = rasterizer.render(splats, values, [camera, camera])
    for given in (backgrounds[0], backgrounds):
        filled = rasterizer.render(splats, values, [camera, camera], backgrounds=given).values
        expected = plain.values + (1 - plain.alphas)[..., None] * given.reshape(-1, 1, 1, 5)
        torch.testing.assert_close(filled, expected, rtol=0, atol=1e-6 * slack(rasterizer)[0])


def test_batch_equals_single_calls(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """Cameras of one call do not see each other; values may be one set a camera."""
    splats, camera, values = scene
    cameras = [camera, replace(camera, viewmat=make_camera(turn=-0.4).viewmat.to(values.device))]
    each = torch.stack([values, values.flip(0)])
    together = rasterizer.render(splats, each, cameras, depth=True)
    shared = rasterizer.render(splats, values, cameras)
    for c, camera in enumerate(cameras):
        single = rasterizer.render(splats, each[c], [camera], depth=True)
        for name in ("values", "alphas", "depths", "means2d", "radii"):
            assert torch.equal(getattr(together, name)[c], getattr(single, name)[0]), name
        assert torch.equal(shared.alphas[c], single.alphas[0])
    assert torch.equal(shared.values[0], together.values[0])


def test_values_of_each_camera_have_their_own_gradient(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]
) -> None:
    """d(sum of camera 1)/d(values of camera 0) is zero."""
    splats, camera, values = scene
    each = torch.stack([values, values]).requires_grad_()
    rasterizer.render(splats, each, [camera, camera]).values[1].sum().backward()
    assert each.grad is not None and not each.grad[0].any() and each.grad[1].any()


def test_depth_of_a_flat_wall(rasterizer: Rasterizer, device: torch.device, generator: torch.Generator) -> None:
    """Gaussians at one camera z have that depth, whatever their weights; nothing hit is depth 0."""
    splats = make_splats(60, generator)
    splats = replace(splats, means=torch.cat([splats.means[:, :2], torch.full((60, 1), 2.5)], 1)).to(device)
    camera = replace(make_camera(turn=0.0), viewmat=torch.eye(4)).to(device)
    render = rasterizer.render(splats, splats.means, [camera], depth=True)
    assert render.depths is not None
    hit = render.alphas > 0
    flat, near = torch.full_like(render.depths[hit], 2.5), 2e-5 * slack(rasterizer)[0]
    torch.testing.assert_close(render.depths[hit], flat, rtol=near, atol=0)
    assert not render.depths[~hit].any() and hit.any()
    assert rasterizer.render(splats, splats.means, [camera]).depths is None


def test_gradient_of_means2d_can_be_kept(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """What densification steers by: retain_grad() works, for one camera and for several."""
    splats, camera, values = scene
    for cameras in ([camera], [camera, camera]):
        render = rasterizer.render(leaves(splats, values.device), values, cameras)
        render.means2d.retain_grad()
        render.values.square().sum().backward()
        assert render.means2d.grad is not None and render.means2d.grad.shape == (len(cameras), 120, 2)
        shown = (render.radii > 0).all(-1)
        assert render.means2d.grad[shown].any() and not render.means2d.grad[~shown].any() and not shown.all()


def test_absolute_gradients_are_the_pixels_gradients_by_magnitude(
    rasterizer: Rasterizer, device: torch.device, generator: torch.Generator
) -> None:
    """Against the gradient of each pixel by itself; in bands too, for several cameras, and nowhere unless asked for."""
    splats, loose = make_splats(40, generator), slack(rasterizer)[1]
    cameras, values = [make_camera(14, 11), make_camera(14, 11, turn=0.3)], torch.randn(40, 3, generator=generator)
    weights, on_alphas = torch.randn(2, 11, 14, 3, generator=generator), torch.randn(2, 11, 14, generator=generator)
    expected, clear = reference.render(double(splats), values.double(), [double_camera(c) for c in cameras])
    weights, on_alphas = weights * clear[..., None], on_alphas * clear  # close calls do not count
    pixels = ((expected.values * weights).sum(-1) + expected.alphas * on_alphas).flatten()
    parts = [torch.autograd.grad(pixel, expected.means2d, retain_graph=True)[0] for pixel in pixels]
    absolute, signed = torch.stack(parts).abs().sum(0), torch.stack(parts).sum(0)
    assert (absolute > 1.5 * signed.abs()).float().mean() > 0.2

    backends: list[Rasterizer] = [rasterizer]
    if isinstance(rasterizer, CpuRasterizer):
        backends.append(CpuRasterizer(memory_limit=4000))
    for backend in backends:
        given = leaves(splats, device)
        render = backend.render(given, values.to(device), [c.to(device) for c in cameras], absgrad=True)
        render.means2d.retain_grad()
        shown = (render.values * weights.to(device)).sum() + (render.alphas * on_alphas.to(device)).sum()
        shown.backward()
        assert render.absgrad is not None and render.means2d.grad is not None
        assert relative(render.absgrad, absolute) < loose * GRADIENT_TOLERANCE
        assert relative(render.means2d.grad, signed) < loose * GRADIENT_TOLERANCE
        plain = backend.render(given, values.to(device), [c.to(device) for c in cameras])
        plain.values.sum().backward()
        assert plain.absgrad is None


def test_pose_gradient_moves_the_picture_back(
    rasterizer: Rasterizer, device: torch.device, generator: torch.Generator
) -> None:
    """Descending the pose's gradient brings a displaced camera back to where the picture was taken."""
    splats, truth = make_splats(80, generator, size=0.3).to(device), make_camera().to(device)
    values = torch.rand(80, 3, generator=generator).to(device)
    target = rasterizer.render(splats, values, [truth]).values.detach()
    offset = torch.tensor([0.05, -0.04, 0.03], device=device).requires_grad_()
    optimizer = torch.optim.Adam([offset], lr=0.01)
    for _ in range(60):
        pad = torch.cat([offset, offset.new_zeros(1)])[:, None] * offset.new_tensor([0.0, 0.0, 0.0, 1.0])
        camera = replace(truth, viewmat=truth.viewmat + pad)
        loss = (rasterizer.render(splats, values, [camera]).values - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert offset.detach().norm() < 0.015


def test_layouts_and_dtypes_do_not_matter(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """Transposed or strided memory and float64 matrices give the same picture."""
    splats, camera, values = scene
    expected = rasterizer.render(splats, values, [camera])
    odd = replace(splats, means=splats.means.T.contiguous().T, quats=splats.quats.repeat(1, 2)[:, :4])
    turned = replace(camera, viewmat=camera.viewmat.T.contiguous().T, K=camera.K.double())
    got = rasterizer.render(odd, values.T.contiguous().T, [turned])
    assert torch.equal(expected.values, got.values)


# ---------------------------------------------------------------------------------------------- units of length


@pytest.mark.parametrize("unit", [2.0**-12, 2.0**12])
def test_a_scene_looks_alike_in_any_unit(rasterizer: Rasterizer, unit: float, generator: torch.Generator) -> None:
    """Scenes, cameras and the near plane scaled by one power of two: the same picture."""

    def with_near(near: float) -> Rasterizer:
        if isinstance(rasterizer, CpuRasterizer):
            return CpuRasterizer(near=near)
        return CudaRasterizer(rasterizer.device, near=near)  # pyright: ignore[reportAttributeAccessIssue]

    splats, camera = join(edge_cases()["across the near plane"](), make_splats(60, generator)), make_camera()
    values = torch.rand(len(splats), 3, generator=generator)
    viewmat = camera.viewmat.clone()
    viewmat[:3, 3] *= unit
    there = replace(camera, viewmat=viewmat)
    scaled = replace(splats, means=splats.means * unit, log_scales=(splats.scales * unit).log())
    plain, other = with_near(0.25), with_near(0.25 * unit)
    pictures = [plain.render(splats, values, [camera]), other.render(scaled, values, [there])]
    assert torch.equal(pictures[0].radii > 0, pictures[1].radii > 0)
    torch.testing.assert_close(pictures[0].values, pictures[1].values, atol=1e-5, rtol=0)
    weights = [plain.contributions(splats, camera), other.contributions(scaled, there)]
    torch.testing.assert_close(*(w.matmul(values) for w in weights), atol=1e-5, rtol=0)
    near, far = ((r.radii[0, :, 0] > 0).cpu() for r in (pictures[0], with_near(1.0).render(splats, values, [camera])))
    depths = splats.means @ camera.viewmat[2, :3] + camera.viewmat[2, 3]
    assert far.any() and bool((depths[far] >= 1.0).all()) and bool(near[depths < 1].any())


# ------------------------------------------------------------------------------------------- hostile geometry


def edge_cases() -> dict[str, Callable[[], Splats]]:
    """Scenes at the edges of the contract."""
    g = torch.Generator().manual_seed(7)
    some = make_splats(40, g)

    def across_the_near_plane() -> Splats:
        zs = [-0.29, -0.2895, -0.2885, -0.25, -0.1, 0.0, 0.2]  # camera z is about z + 0.3
        return join(*(one((0.02 * i, 0.19, z), scales=(0.2, 0.15, 0.3)) for i, z in enumerate(zs)), some)

    needles = [
        one(
            (-0.2 + 0.1 * i, 0.1 * i, 2.0 + 0.2 * i),
            scales=(1.0, 1e-3, 1e-3),
            quat=(1.0, 0.3 * i, -0.2 * i, 0.9 - 0.3 * i),
        )
        for i in range(6)
    ]
    plates = [
        one((0.1 * i, 0.0, 2.0 + 0.1 * i), scales=(0.5, 0.5, 5e-4), quat=(1.0, 0.3 * i, 0.7, 0.1)) for i in range(4)
    ]
    return {
        "behind": lambda: join(one((0.0, 0.0, -3.0), scales=(2.0, 2.0, 2.0)), one((0.5, 0.2, -0.31)), some),
        "across the near plane": across_the_near_plane,
        "off screen": lambda: join(
            one((9.0, 0.0, 2.0)), one((0.0, -9.0, 2.0)), one((-1.6, 0.0, 2.0), scales=(0.5, 0.5, 0.5)), some
        ),
        "far off the axis": lambda: join(
            one((6.0, 0.2, 1.0), scales=(2.0, 1.0, 2.5)), one((-5.0, 4.0, 1.0), scales=(2.0, 3.0, 2.0)), some
        ),
        "huge": lambda: join(
            one((0.0, 0.0, 3.0), scales=(50.0, 60.0, 70.0), opacity=0.3),
            one((1.0, 0.0, 9.0), scales=(900.0, 9.0, 5.0)),
            some,
        ),
        "needles": lambda: join(*needles, some),
        "plates": lambda: join(*plates, some),
        "tiny": lambda: join(*(one((0.05 * i, 0.03 * i, 1.5), scales=(1e-6, 1e-6, 1e-6)) for i in range(5)), some),
        "faint": lambda: join(
            *(one((0.1 * i, 0.0, 1.8), opacity=o) for i, o in enumerate((1e-6, 0.0035, 0.0039, 0.00395, 0.0045, 0.01))),
            some,
        ),
        "opaque": lambda: join(
            *(one((0.3 * i, 0.1, 2.0 + i), opacity=1 - 1e-7, scales=(2.0, 1.5, 0.3)) for i in range(5)), some
        ),
        "overlapping": lambda: join(*(one((0.1, 0.1, 2.0), opacity=0.5) for _ in range(6)), some),
        "zero quaternion": lambda: join(one(scales=(0.3, 0.1, 0.2), quat=(0.0, 0.0, 0.0, 0.0)), some),
        "one": lambda: one((0.05, 0.1, 2.0)),
    }


@pytest.mark.parametrize("name", list(edge_cases()))
def test_edges_of_the_contract(rasterizer: Rasterizer, device: torch.device, name: str) -> None:
    """Each against the reference, gradients too (those of one Gaussian are sums that nearly cancel)."""
    tolerance = 5e-5 if name == "one" else GRADIENT_TOLERANCE
    compare(rasterizer, device, edge_cases()[name](), [make_camera()], margin=1e-3, tolerance=tolerance)


@pytest.mark.parametrize(("constant", "without"), [("ALPHA_MAX", 1.0), ("T_MIN", 0.0), ("ALPHA_MIN", 0.0)])
def test_opaque_scene_meets_every_constant(monkeypatch: pytest.MonkeyPatch, constant: str, without: float) -> None:
    """The clamp, the stop and the skip each change pixels of it: without one, the test above would fail."""
    splats, camera = double(edge_cases()["opaque"]()), double_camera(make_camera())
    expected = reference.contributions(splats, camera).dense
    monkeypatch.setattr(reference, constant, without)
    changed = reference.contributions(splats, camera).dense
    assert ((changed - expected).abs() > 2e-5).any(1).sum() >= 5


@pytest.mark.parametrize("angle", [0.0, 0.01, 0.4, math.pi / 4, 1.2, math.pi / 2])
def test_needles_at_every_angle(rasterizer: Rasterizer, device: torch.device, angle: float) -> None:
    """A 1000:1 needle in the picture's plane, through a wide picture: no tile of it is missed.

    A card fuses products, which leaves less of the difference of two large ones that inverts a needle's covariance.
    """
    quat = (math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))
    splats = one((0.0, 0.0, 2.0), scales=(1.5, 1.5e-3, 1.5e-3), quat=quat, opacity=0.95)
    camera = replace(make_camera(150, 130, fx=90.0, fy=90.0), viewmat=torch.eye(4))
    shown = ("means", "log_scales", "values", "means2d")
    tolerance = 1e-3 if slack(rasterizer) == SLACK["cuda"] else 1e-4
    compare(rasterizer, device, splats, [camera], margin=1e-3, gradients=shown, tolerance=tolerance)


def test_a_clamped_alpha_has_no_gradient(rasterizer: Rasterizer, device: torch.device) -> None:
    """Where alpha is 0.999 everywhere, nothing but the values can change the picture."""
    splats = leaves(one((0.0, 0.0, 3.0), scales=(100.0, 100.0, 0.1), opacity=0.9999), device)
    values = torch.ones(1, 2, device=device).requires_grad_()
    render = rasterizer.render(splats, values, [make_camera(turn=0.0).to(device)])
    torch.testing.assert_close(render.alphas, torch.full_like(render.alphas, 0.999))
    render.values.sum().backward()
    assert values.grad is not None and values.grad.all()
    for name in RAW:
        assert not getattr(splats, name).grad.any(), name


def test_overlapping_gaussians_go_by_index(rasterizer: Rasterizer, device: torch.device) -> None:
    """At one depth the lower index is in front."""
    splats = join(*(one(opacity=0.5) for _ in range(3))).to(device)
    W = rasterizer.contributions(splats, make_camera().to(device))
    heavy = int((W.indptr[1:] - W.indptr[:-1]).argmax())
    row = slice(int(W.indptr[heavy]), int(W.indptr[heavy + 1]))
    assert W.ids[row].tolist() == [0, 1, 2]
    assert (W.weights[row].diff() < 0).all()


def test_the_nearer_is_in_front_by_the_last_bit_of_its_depth(rasterizer: Rasterizer, device: torch.device) -> None:
    """Depths that float32 can just tell apart; the indices say the opposite."""
    steps = torch.tensor([5, 3, 2, 1, 0, 4])
    splats = join(*(one((0.0, 0.0, 2.0 + 2.0**-22 * s), opacity=0.5) for s in steps.tolist())).to(device)
    W = rasterizer.contributions(splats, replace(make_camera(), viewmat=torch.eye(4)).to(device))
    heavy = int((W.indptr[1:] - W.indptr[:-1]).argmax())
    row = slice(int(W.indptr[heavy]), int(W.indptr[heavy + 1]))
    assert W.ids[row].tolist() == steps.argsort().tolist()


def test_what_lies_on_the_near_or_the_far_plane_is_in_the_picture() -> None:
    """And a hair before or behind is not."""
    wide = (1e9, 1e9, 1e9)
    depths = torch.tensor([2.0, 2.0 - 2.0**-22, 1e10, 1.001e10])
    splats = join(*(one((0.0, 0.0, z), scales=wide if z > 3 else (0.1, 0.1, 0.1)) for z in depths.tolist()))
    camera = replace(make_camera(), viewmat=torch.eye(4))
    render = CpuRasterizer(near=2.0).render(splats, torch.ones(4, 1), [camera])
    assert (render.radii[0] > 0).all(1).tolist() == [True, False, True, False]


def empty_scenes() -> dict[str, Splats]:
    """Scenes of which nothing is to be seen."""
    return {
        "no Gaussians": one().select(torch.zeros(1, dtype=torch.bool)),
        "behind": one((0.0, 0.0, -2.0)),
        "off screen": one((50.0, 0.0, 2.0)),
        "transparent": one(opacity=0.003),
        "beyond the far plane": one((0.0, 0.0, 2e10), scales=(1e10, 1e10, 1e10)),
    }


@pytest.mark.parametrize("name", list(empty_scenes()))
def test_nothing_visible(rasterizer: Rasterizer, device: torch.device, name: str) -> None:
    """Zeros, or the background; gradients are zeros, not NaN; W has no entries."""
    splats, camera = leaves(empty_scenes()[name], device), leaf_camera(make_camera(), device)
    n, background = len(splats), torch.tensor([1.0, 2.0], device=device)
    values = torch.ones(n, 2, device=device).requires_grad_()
    render = rasterizer.render(splats, values, [camera], backgrounds=background, depth=True)
    assert torch.equal(render.values, background.expand(1, 29, 37, 2))
    assert render.depths is not None and not render.alphas.any() and not render.depths.any()
    assert render.means2d.shape == render.radii.shape == (1, n, 2) and not render.radii.any()
    (render.values.sum() + render.depths.sum() + render.alphas.sum()).backward()
    for tensor in (*(getattr(splats, k) for k in RAW), values, camera.viewmat):
        assert tensor.grad is not None and not tensor.grad.any()
    W = rasterizer.contributions(splats, camera)
    assert len(W) == 29 * 37 and len(W.ids) == len(W.weights) == 0 and not W.indptr.any()
    assert not W.matmul(values.detach()).any() and W.transpose_matmul(torch.ones(len(W), 3)).shape == (n, 3)


# --------------------------------------------------------------------------------------- sizes on the picture


def test_radii_cover_what_is_drawn(rasterizer: Rasterizer, device: torch.device, generator: torch.Generator) -> None:
    """Outside mean +- radius a Gaussian has no weight; the radius is that of alpha = 1/255, rounded up."""
    hidden_ones = (one((9.0, 0.0, 2.0)), one((0.0, 0.0, -2.0)), one((0.0, -3.0, 2.0)))
    splats, camera = join(make_splats(60, generator, opacity=1.0), *hidden_ones), make_camera(60, 50)
    render = rasterizer.render(splats.to(device), splats.means.to(device), [camera.to(device)])
    means2d, radii = render.means2d[0].detach().cpu().double(), render.radii[0].cpu()
    p = reference.project(double(splats), double_camera(camera))
    pieces = [reference.Projected(*(t[i : i + 1] for t in p)) for i in range(63)]
    opacities = splats.opacities.double()[:, None]
    alone = [reference.weigh(piece, o, 60, 50).dense.reshape(50, 60).detach() for piece, o in zip(pieces, opacities)]
    hidden = (radii == 0).any(1)
    assert hidden.any() and not hidden.all()
    assert not any(alone[i].any() for i in hidden.nonzero()[:, 0].tolist())
    ys, xs = torch.meshgrid(torch.arange(50) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    for i in (~hidden).nonzero()[:, 0].tolist():
        outside = ((xs - means2d[i, 0]).abs() > radii[i, 0]) | ((ys - means2d[i, 1]).abs() > radii[i, 1])
        assert not alone[i][outside].any()
    deviations = p.cov2d.detach().diagonal(dim1=1, dim2=2).sqrt()
    reach = (2 * (splats.opacities.double() * 255).log()).clamp_min(0).sqrt().clamp_max(3.33)
    expected = (reach[:, None] * deviations).ceil().clamp_min(1)
    assert ((radii - expected).abs()[~hidden] <= 1).all() and (radii == expected)[~hidden].float().mean() > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_projection_is_that_of_gsplat(seed: int) -> None:
    """means2d, depths, conics and radii of the CPU backend against gsplat's torch reference."""
    implementation = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat's torch reference has moved")
    full = getattr(implementation, "_fully_fused_projection", None)
    if full is None:
        pytest.skip("gsplat's _fully_fused_projection has moved")
    import numpy as np

    from cgc.rasterize.project import project

    g = torch.Generator().manual_seed(seed)
    splats, camera = make_splats(500, g, opacity=9.0), make_camera(70, 50)
    far = torch.randn(500, 3, generator=g) * torch.tensor([3.0, 3.0, 4.0])
    splats = replace(splats, means=torch.where(torch.rand(500, 1, generator=g) < 0.5, splats.means, far))
    radii, means2d, depths, conics, _ = full(
        splats.means.double(), covariances(splats.quats.double(), splats.scales.double()),
        camera.viewmat.double()[None], camera.K.double()[None], camera.width, camera.height,
    )  # fmt: skip
    ours2d, ellipses = np.empty((500, 2), np.float32), np.empty((500, 3), np.float32)
    our_depths, our_radii = np.empty(500, np.float32), np.empty((500, 2), np.int32)
    arrays = [t.numpy() for t in (splats.means, splats.quats, splats.scales, splats.opacities)]
    project(
        0, 1,
        *arrays, camera.viewmat.double().numpy(), camera.K.double().numpy(), 70.0, 50.0,
        NEAR, ours2d, ellipses, our_depths, our_radii,
    )  # fmt: skip
    shown = torch.from_numpy(our_radii > 0).all(1)
    theirs_shown = (radii[0] > 0).all(1)
    # gsplat's reference always takes 3.33 deviations; ours takes a hair less where opacity allows
    assert (torch.from_numpy(our_radii) - radii[0]).abs()[shown & theirs_shown].max() <= 1
    assert not (shown & ~theirs_shown).any() and (shown != theirs_shown).sum() <= 5 and 50 < shown.sum() < 450
    torch.testing.assert_close(torch.from_numpy(our_depths).double(), depths[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(ours2d).double()[shown], means2d[0, shown], rtol=1e-6, atol=1e-5)
    a, k, c = torch.from_numpy(ellipses).double()[shown].unbind(1)
    ours = torch.stack([a, a * k, a * k * k + c], 1)  # the conic of (a (dx + k dy)^2 + g dy^2) / 2
    torch.testing.assert_close(ours, conics[0, shown], rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------- contributions


def test_contributions_match_the_reference(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """The same entries, the same weights, front to back in each row."""
    splats, camera, _ = scene
    W = rasterizer.contributions(splats, camera)
    theirs = reference.contributions(double(splats.to("cpu")), double_camera(camera.to("cpu")))
    expected = theirs.dense.detach()
    assert W.indptr.dtype == W.pixels.dtype == torch.int64 and W.ids.dtype == torch.int32
    assert W.weights.dtype == torch.float32 and (W.width, W.height, W.n_gaussians) == (45, 34, 120)
    got, clear = dense(W), theirs.clear
    assert clear.float().mean() > 0.95 and torch.equal((got > 0)[clear], (expected > 0)[clear])
    near = slack(rasterizer)[0]
    torch.testing.assert_close(got[clear], expected[clear], rtol=near * 1e-5, atol=near * 1e-7)
    depths = reference.project(double(splats.to("cpu")), double_camera(camera.to("cpu"))).depths.detach()
    same_row = W.rows.cpu().diff() == 0
    assert (depths[W.ids.cpu().long()].diff()[same_row] > 0).all()


def test_w_times_values_is_the_render(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """W @ values = render(values), and rows of W sum to alpha."""
    splats, camera, values = scene
    W, render = rasterizer.contributions(splats, camera), rasterizer.render(splats, values, [camera])
    near = slack(rasterizer)[0]
    torch.testing.assert_close(W.matmul(values).reshape(34, 45, 5), render.values[0], rtol=0, atol=near * 5e-6)
    alphas = W.matmul(torch.ones_like(values[:, :1]))
    torch.testing.assert_close(alphas.reshape(34, 45), render.alphas[0], rtol=0, atol=near * 2e-6)


def rows_of(W: Contributions) -> list[tuple[list[int], list[float]]]:
    """(ids, weights) of every row."""
    ends = W.indptr.tolist()
    return [(W.ids[a:b].tolist(), W.weights[a:b].tolist()) for a, b in pairwise(ends)]


def test_pixels_of_a_subset_are_rows_of_all(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor], generator: torch.Generator
) -> None:
    """Any order, repeats allowed, any number of them in a tile: bit for bit the rows of the whole picture."""
    splats, camera, _ = scene
    every = rows_of(rasterizer.contributions(splats, camera))
    pixels = torch.randint(45 * 34, (300,), generator=generator)
    pixels[7:20] = pixels[3]
    for dtype in (torch.int64, torch.int32):
        W = rasterizer.contributions(splats, camera, pixels.to(dtype))
        assert torch.equal(W.pixels.cpu(), pixels) and rows_of(W) == [every[p] for p in pixels.tolist()]


def test_no_pixels(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """An empty list gives an empty matrix that still multiplies."""
    splats, camera, values = scene
    W = rasterizer.contributions(splats, camera, torch.empty(0, dtype=torch.int64))
    assert len(W) == len(W.ids) == 0 and W.indptr.tolist() == [0]
    assert W.matmul(values).shape == (0, 5)
    assert not W.transpose_matmul(values[:0]).any() and W.transpose_matmul(values[:0]).shape == (120, 5)


def test_min_weight_leaves_out_the_lighter_entries(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]
) -> None:
    """Exactly the entries under it; the others keep their bits."""
    splats, camera, _ = scene
    every = rows_of(rasterizer.contributions(splats, camera))
    at = float(rasterizer.contributions(splats, camera).weights.sort().values[5000])  # a weight that occurs: it stays
    some = rows_of(rasterizer.contributions(splats, camera, min_weight=at))
    for (ids, weights), (kept_ids, kept) in zip(every, some):
        heavy = [(i, w) for i, w in zip(ids, weights) if w >= at]
        assert heavy == list(zip(kept_ids, kept))
    assert sum(len(r[0]) for r in some) == sum(len(r[0]) for r in every) - 5000


def test_remainder_is_what_is_left_out(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """Entries and remainder of a row add up to its alpha, however the entries were chosen."""
    splats, camera, _ = scene
    alphas = rasterizer.render(splats, splats.means, [camera]).alphas.reshape(-1)
    for options in ({}, {"min_weight": 0.02}, {"heaviest": 3}, {"min_weight": 0.01, "heaviest": 2}):
        W = rasterizer.contributions(splats, camera, **options)
        assert W.remainder is not None
        kept = torch.zeros(len(W)).index_add(0, W.rows.cpu(), W.weights.cpu())
        near = 2e-6 * slack(rasterizer)[0]
        torch.testing.assert_close(kept + W.remainder.cpu(), alphas.detach().cpu(), rtol=0, atol=near)
        assert bool((W.remainder > 0).any()) == bool(options)


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
def test_heaviest_entries(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor], most: int) -> None:
    """The K largest of each row, front to back; of equal ones the nearer."""
    splats, camera, _ = scene
    every = rows_of(rasterizer.contributions(splats, camera))
    some = rows_of(rasterizer.contributions(splats, camera, heaviest=most))
    for (ids, weights), kept in zip(every, some):
        order = sorted(sorted(range(len(ids)), key=lambda e: -weights[e])[:most])
        assert kept == ([ids[e] for e in order], [weights[e] for e in order])


def test_of_equally_heavy_entries_the_nearer_stay() -> None:
    """However many there are of them, and the heavier ones stay wherever they lie."""
    from cgc.rasterize.weights import _keep_heaviest

    weights = torch.tensor([9, 2, 1, 2, 2, 3]).float().numpy()
    ranks = torch.arange(6).int().numpy()
    assert _keep_heaviest(ranks, weights, 1, 5, 2, torch.empty(2).numpy()) == 2 + 1 + 2
    assert ranks[1:3].tolist() == [1, 5] and weights[1:3].tolist() == [2, 3] and ranks[0] == 0


def test_half_weights(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """Two bytes a weight: the same entries, rounded to half, and products that know it."""
    splats, camera, values = scene
    full, half = (rasterizer.contributions(splats, camera, dtype=d) for d in (torch.float32, torch.float16))
    assert half.weights.dtype == torch.float16 and torch.equal(half.ids, full.ids)
    assert torch.equal(half.weights, full.weights.half())
    torch.testing.assert_close(half.matmul(values), full.matmul(values), rtol=0, atol=5e-3)


@pytest.mark.parametrize("columns", [1, 3, 40])
def test_votes_are_w_transposed_times_pixels(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor], generator: torch.Generator, columns: int
) -> None:
    """W^T x, whether the backend stores W for it or not; no graph."""
    splats, camera, _ = scene
    x = torch.rand(45 * 34, columns, generator=generator).requires_grad_()
    made = transpose_product(rasterizer, splats, camera, x)
    expected = dense(rasterizer.contributions(splats, camera)).T @ x.detach().double()
    assert made.shape == (120, columns) and not made.requires_grad
    assert relative(made, expected) < 1e-5 * slack(rasterizer)[1]
    with pytest.raises(ValueError, match=r"x must be \[1530, M\], a row for each pixel, got \[1529, "):
        transpose_product(rasterizer, splats, camera, x[1:])


def test_groups_sum_their_gaussians(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor], generator: torch.Generator
) -> None:
    """W onehot(groups), of all pixels and of some; a group that nobody is in is an empty column."""
    splats, camera, _ = scene
    groups = torch.randint(6, (120,), generator=generator)
    groups[groups == 2] = 3
    expected = dense(rasterizer.contributions(splats, camera)) @ torch.nn.functional.one_hot(groups, 6).double()
    for pixels in (None, torch.tensor([1500, 3, 700, 3])):
        made = group_contributions(rasterizer, splats, camera, groups, pixels)
        assert made.n_gaussians == 6 and made.remainder is None
        rows = expected if pixels is None else expected[pixels]
        torch.testing.assert_close(dense(made), rows, rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False")
def test_inputs_may_lie_elsewhere(generator: torch.Generator) -> None:
    """Splats, cameras and values on the CPU: results on the GPU, gradients where the inputs are."""
    from cgc.rasterize.cuda import CudaRasterizer

    splats, camera = leaves(make_splats(120, generator), torch.device("cpu")), make_camera()
    values, rasterizer = torch.randn(120, 3, generator=generator), CudaRasterizer("cuda")
    render = rasterizer.render(splats, values, [camera])
    assert render.values.is_cuda and render.means2d.is_cuda
    render.values.sum().backward()
    assert splats.means.grad is not None and splats.means.grad.any() and not splats.means.grad.is_cuda
    W = rasterizer.contributions(splats, camera, torch.tensor([3, 500]))
    assert W.weights.is_cuda and not W.matmul(values).is_cuda and W.matmul(values.cuda()).is_cuda
    assert rasterizer.transpose_product(splats, camera, torch.ones(37 * 29, 2)).is_cuda


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False")
def test_a_picture_waits_for_the_device_once(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """To learn how many pairs there are; the check for NaN is read then, too. Gradients do not wait."""
    import warnings

    def debug(mode: str) -> None:
        with warnings.catch_warnings():  # torch warns that it does not detect everything
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(mode)

    from cgc.rasterize.cuda import CudaRasterizer

    splats, camera = leaves(make_splats(500, generator), torch.device("cuda")), make_camera().to("cuda")
    values, background = torch.randn(500, 7, device="cuda"), torch.ones(7, device="cuda")
    rasterizer = CudaRasterizer("cuda")
    rasterizer.render(splats, values, [camera, camera], backgrounds=background, depth=True)  # loads what is lazy
    gsplat, waited = rasterizer._gsplat, []
    list_pairs = gsplat.isect_tiles

    def may_wait(*given: object) -> object:
        waited.append("isect_tiles")
        debug("default")  # not "warn": a compiled extension's warnings do not come to Python
        try:
            return list_pairs(*given)
        finally:
            debug("error")

    monkeypatch.setattr(gsplat, "isect_tiles", may_wait)
    debug("error")
    try:
        render = rasterizer.render(splats, values, [camera, camera], backgrounds=background, depth=True)
        render.values.sum().backward()
        with pytest.raises(RuntimeError, match="synchronizing"):
            render.values.sum().item()
    finally:
        debug("default")
    assert waited == ["isect_tiles"]


# ----------------------------------------------------------------------------------------- bounds on memory


def test_bands_give_the_same_picture(generator: torch.Generator) -> None:
    """With too little memory for all pairs, tile rows are done in turn: same values, same gradients."""
    splats, camera = make_splats(400, generator, opacity=1.0), make_camera(90, 70)
    values = torch.randn(400, 7, generator=generator)
    whole = everything(CpuRasterizer(), splats, camera, values)
    for limit in (1, 30_000):  # a band a tile row; two or three bands
        rasterizer = CpuRasterizer()
        rasterizer.pair_limit = limit
        parts = everything(rasterizer, splats, camera, values)
        for a, b in zip(whole, parts):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bands_give_the_same_contributions(generator: torch.Generator) -> None:
    """With too little memory for all pairs, rows of W are collected band by band."""
    splats, camera = make_splats(2000, generator, opacity=1.0), make_camera(90, 70)
    pixels, limit = torch.arange(0, 90 * 70, 7), 50_000
    tight = CpuRasterizer(memory_limit=limit)
    assert len(bands(tight._spans_at(splats, camera, pixels)[1], limit // PAIR_BYTES)) == 3
    with threads(2):  # who share the limit
        whole, parts = (r.contributions(splats, camera, pixels, heaviest=2) for r in (CpuRasterizer(), tight))
    for name in ("indptr", "ids", "weights", "remainder"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_contributions_past_the_memory_limit_are_refused(scene: tuple[Splats, Camera, Tensor]) -> None:
    """One sentence that says what to do; fewer entries still fit."""
    splats, camera, _ = scene
    rasterizer = CpuRasterizer(memory_limit=60_000)
    with pytest.raises(InputError, match=r"1,530 pixels need more than .* ask for fewer pixels"):
        rasterizer.contributions(splats.to("cpu"), camera.to("cpu"))
    assert len(rasterizer.contributions(splats.to("cpu"), camera.to("cpu"), heaviest=1)) == 45 * 34


# -------------------------------------------------------------------------------------- the matrix's products


@pytest.mark.parametrize("channels", [0, 1, 3, 8, 16, 19, 43])
def test_products_match_dense_ones(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor], generator: torch.Generator, channels: int
) -> None:
    """W x and W^T x, values and gradients, any number of channels."""
    splats, camera, _ = scene
    W = rasterizer.contributions(splats, camera, torch.randint(45 * 34, (211,), generator=generator))
    for product, matrix in ((W.matmul, dense(W)), (W.transpose_matmul, dense(W).T)):
        x = torch.randn(matrix.shape[1], channels, generator=generator, requires_grad=True)
        v = torch.randn(matrix.shape[0], channels, generator=generator)
        out = product(x)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), matrix @ x.double(), rtol=0, atol=2e-5)
        (gradient,) = torch.autograd.grad((out * v).sum(), x)
        torch.testing.assert_close(gradient.double(), matrix.T @ v.double(), rtol=0, atol=2e-5)


def test_product_in_float64_and_of_strided_values(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """Computed in float32; the gradient comes back in the dtype of the values."""
    splats, camera, values = scene
    W = rasterizer.contributions(splats, camera)
    turned = values.T.contiguous().T
    assert torch.equal(W.matmul(turned), W.matmul(values))
    x = values.double().requires_grad_()
    W.matmul(x).sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float64


def test_select_takes_rows(
    rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor], generator: torch.Generator
) -> None:
    """By indices, in any order and repeated; by a mask; none at all."""
    splats, camera, values = scene
    W = rasterizer.contributions(splats, camera, torch.randperm(45 * 34, generator=generator))
    rows = torch.randint(len(W), (500,), generator=generator)
    some, every = W.select(rows), rows_of(W)
    assert rows_of(some) == [every[r] for r in rows.tolist()]
    assert torch.equal(some.pixels, W.pixels[rows]) and some.n_gaussians == 120
    assert torch.equal(some.matmul(values), W.matmul(values)[rows])
    x = torch.randn(500, 5, generator=generator)
    torch.testing.assert_close(some.transpose_matmul(x).double(), dense(some).T @ x.double(), rtol=0, atol=2e-5)
    mask = torch.rand(len(W), generator=generator) < 0.3
    assert torch.equal(W.select(mask).pixels, W.pixels[mask])
    assert len(W.select(torch.empty(0, dtype=torch.int64))) == 0


# ------------------------------------------------------------------------------------------------ determinism


def everything(rasterizer: Rasterizer, splats: Splats, camera: Camera, values: Tensor) -> list[Tensor]:
    """All outputs and gradients of a render, and the contributions and their products."""
    ours, at = leaves(splats.detach(), values.device), leaf_camera(camera, values.device)
    shown = values.detach().requires_grad_()
    render = rasterizer.render(ours, shown, [at], depth=True)
    assert render.depths is not None
    (render.values.square().sum() + render.depths.sum()).backward()
    W = rasterizer.contributions(splats, camera)
    made = [
        render.values,
        render.alphas,
        render.depths,
        render.means2d,
        render.radii,
        W.indptr,
        W.ids,
        W.weights,
    ]
    grads = [t.grad for t in (*(getattr(ours, k) for k in RAW), shown, at.viewmat)]
    products = [
        W.matmul(values),
        W.transpose_matmul(W.matmul(values)),
        W.select(torch.arange(0, len(W), 3)).weights,
    ]
    return [t.detach() for t in (*made, *grads, *products) if t is not None]


def test_same_bits_twice(rasterizer: Rasterizer, generator: torch.Generator, device: torch.device) -> None:
    """Nothing depends on the order in which threads finish."""
    splats, camera = make_splats(2000, generator, opacity=1.0).to(device), make_camera(90, 70).to(device)
    values = torch.randn(2000, 7, generator=generator).to(device)
    first, second = (everything(rasterizer, splats, camera, values) for _ in range(2))
    assert len(first) == len(second) == 17
    for number, (a, b) in enumerate(zip(first, second)):
        if device.type == "cuda" and 8 <= number < 14:  # gsplat sums gradients by atomics
            assert relative(a, b.cpu().double()) < 1e-4, number
        else:
            assert torch.equal(a, b), number


def test_same_bits_for_any_number_of_threads(generator: torch.Generator) -> None:
    """The work is cut into fixed pieces, not into as many as there are threads."""
    splats, camera = make_splats(2000, generator, opacity=-3.0), make_camera(90, 70)  # nobody is hidden
    values, made = torch.randn(2000, 7, generator=generator), []
    other = replace(splats, log_scales=splats.log_scales + 0.1)
    for count in (1, 2, 3):
        with threads(1):  # memory that is used again holds what another scene left there
            everything(CpuRasterizer(), other, camera, values.flip(0))
        with threads(count):
            made.append(everything(CpuRasterizer(), splats, camera, values))
    assert all(torch.equal(a, c) for b in made[1:] for a, c in zip(made[0], b))


# -------------------------------------------------------------------------------------------------- bad input


def broken(name: str) -> tuple[Splats, Tensor, list[Camera], dict[str, Tensor]]:
    """(splats, values, cameras, further arguments) with one thing wrong."""
    splats = join(*(one() for _ in range(5)))
    values, cameras, more = torch.ones(5, 3), [make_camera()], {}
    kind, _, field = name.partition(" ")
    if kind in ("nan", "inf"):
        target = {"values": values, "viewmat": cameras[0].viewmat, "K": cameras[0].K}.get(field)
        if field == "backgrounds":
            target = more["backgrounds"] = torch.ones(3)
        target = getattr(splats, field) if target is None else target
        target.view(-1)[-2:] = float(kind)
    elif kind == "shape":
        splats = replace(splats, **{field: getattr(splats, field)[..., None]})
    return {
        "values rows": (splats, values[:4], cameras, more),
        "values flat": (splats, values[:, 0], cameras, more),
        "values cameras": (splats, values.expand(2, 5, 3), cameras, more),
        "background": (splats, values, cameras, {"backgrounds": torch.ones(4)}),
        "no camera": (splats, values, [], more),
        "two sizes": (splats, values, [make_camera(8, 8), make_camera(9, 8)], more),
        "zero width": (splats, values, [replace(make_camera(), width=0)], more),
        "zero height": (splats, values, [replace(make_camera(), height=0)], more),
        "small viewmat": (splats, values, [replace(make_camera(), viewmat=torch.eye(3))], more),
    }.get(name, (splats, values, cameras, more))


NUMBERS = (*RAW, "values", "backgrounds", "viewmat", "K")
BROKEN = {
    "values rows": r"values must be \[5, D\] or \[1, 5, D\] for 5 Gaussians and 1 cameras, got \[4, 3\]",
    "values flat": r"values must be .* got \[5\]",
    "values cameras": r"values must be .* got \[2, 5, 3\]",
    "background": r"backgrounds must be \[3\] or \[1, 3\].*got \[4\]",
    "no camera": "at least one camera",
    "two sizes": r"one image size, got \[\(8, 8\), \(9, 8\)\]",
    "zero width": "at least 1 x 1 pixels, got 0 x 29",
    "zero height": "at least 1 x 1 pixels, got 37 x 0",
    "small viewmat": r"viewmat of a camera must be \[4, 4\], got \[3, 3\]",
    **{f"shape {k}": rf"{k} must be \[5.*\] for 5 Gaussians, got" for k in RAW},
    **{f"nan {k}": rf"{k} must be finite, but of its \d+ entries 2 are NaN and 0 infinite" for k in NUMBERS},
    **{f"inf {k}": rf"{k} must be finite, but of its \d+ entries 0 are NaN and 2 infinite" for k in NUMBERS},
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_bad_input_is_named(rasterizer: Rasterizer, device: torch.device, name: str) -> None:
    """One sentence: what was expected, and what came; contributions refuse the same geometry and camera."""
    splats, values, cameras, more = broken(name)
    splats, values, cameras = splats.to(device), values.to(device), [c.to(device) for c in cameras]
    with pytest.raises(ValueError, match=BROKEN[name]):
        rasterizer.render(splats, values, cameras, **{k: v.to(device) for k, v in more.items()})
    if not name.startswith(
        (
            "values",
            "background",
            "nan values",
            "nan background",
            "inf values",
            "inf background",
            "no camera",
            "two sizes",
        )
    ):
        with pytest.raises(ValueError, match=BROKEN[name]):
            rasterizer.contributions(splats, cameras[0])


def test_large_finite_numbers_pass(rasterizer: Rasterizer, device: torch.device) -> None:
    """A sum that overflows is not taken for an infinite entry."""
    splats = join(one(), one(), one()).to(device)
    values = torch.full((3, 1), 3e38, device=device)
    assert rasterizer.render(splats, values, [make_camera().to(device)]).values.max() > 2e38


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (torch.tensor([0, 37 * 29]), "pixels must lie in 0 to 1072, got 0 to 1073"),
        (torch.tensor([-1, 3]), "pixels must lie in 0 to 1072, got -1 to 3"),
        (torch.tensor([[1, 2]]), r"pixels must be a list of whole numbers, got \[1, 2\]"),
        (torch.tensor([1.0]), "pixels must be a list of whole numbers"),
        (torch.ones(37 * 29, dtype=torch.bool), "pixels must be a list of whole numbers"),
    ],
)
def test_bad_pixels_are_named(rasterizer: Rasterizer, device: torch.device, pixels: Tensor, sentence: str) -> None:
    """Pixels are flat indices into the image."""
    with pytest.raises(ValueError, match=sentence):
        rasterizer.contributions(one().to(device), make_camera().to(device), pixels)


def test_bad_products_are_named(rasterizer: Rasterizer, scene: tuple[Splats, Camera, Tensor]) -> None:
    """The matrix says what it can be multiplied with."""
    W = rasterizer.contributions(scene[0], scene[1])
    with pytest.raises(ValueError, match=r"values must be \[120, D\], a row for each of 120 Gaussians, got \[119, 2\]"):
        W.matmul(torch.ones(119, 2))
    with pytest.raises(ValueError, match=r"x must be \[1530, D\], a row for each of 1530 pixels, got \[120, 2\]"):
        W.transpose_matmul(torch.ones(120, 2))
    with pytest.raises(ValueError, match="rows must lie in 0 to 1529, got 0 to 1530"):
        W.select(torch.tensor([0, 1530]))
    with pytest.raises(ValueError, match="rows must be a list of whole numbers"):
        W.select(torch.ones(7, dtype=torch.bool))
