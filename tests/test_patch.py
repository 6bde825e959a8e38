"""What an object stood on goes on under it: a ball over a striped table, whose every colour is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cgc.geometry import SH_C0
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.cameras import project
from cgc.scene.types import Camera
from cgc.segmentation.edit import remove, track, transform
from cgc.segmentation.labels import render_rgb
from cgc.segmentation.patch import _bounded, _widened
from cgc.segmentation.plane import Plane, camera_along, fit_plane, points_of
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.shade import light_on, lit, occlusion
from cgc.splats.types import Splats

RASTERIZER = CpuRasterizer()
FLOOR = Plane(np.zeros(3), np.eye(3), 0.0)


def gaussians(means: torch.Tensor, rgb: torch.Tensor, size: float) -> Splats:
    n = len(means)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    return Splats(
        means, quats, torch.full((n, 3), math.log(size)), torch.full((n,), 4.0), ((rgb - 0.5) / SH_C0)[:, None]
    )


def ball_at(centre: list[float], radius: float, n: int = 700, size: float = 0.05) -> torch.Tensor:
    g = torch.Generator().manual_seed(4)
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1) * radius + torch.tensor(centre)


def table() -> Splats:
    """A table of 4 x 4 with stripes of two colours along y."""
    grid = torch.arange(-2, 2.001, 0.08)
    x, y = (a.ravel() for a in torch.meshgrid(grid, grid, indexing="ij"))
    on = ((x + 2) / 0.4).floor().remainder(2)[:, None]
    rgb = on * torch.tensor([0.7, 0.5, 0.3]) + (1 - on) * torch.tensor([0.5, 0.6, 0.4])
    return gaussians(torch.stack([x, y, torch.zeros_like(x)], 1), rgb, 0.045)


def ball_on_a_table(centre: tuple[float, float] = (0.1, -0.1), bare: bool = True) -> tuple[Segmentation, list[Camera]]:
    """The table 1 and on it a white ball 2, which casts no shade; under it is no table (`bare`), or a black one."""
    board, x = table(), [*centre, 0.42]
    ball = gaussians(ball_at(x, 0.4), torch.ones(700, 3), 0.05)
    under = (board.means[:, :2] - torch.tensor(centre)).norm(dim=1) < 0.22
    sh = torch.where(under[:, None, None], torch.full_like(board.sh, -0.5 / SH_C0), board.sh)
    board = board.select(~under) if bare else replace(board, sh=sh)
    means, quats, log_scales, sh = (
        torch.cat([getattr(s, n) for s in (board, ball)]) for n in ("means", "quats", "log_scales", "sh")
    )
    both = Splats(means, quats, log_scales, torch.full((len(means),), 4.0), sh)
    labels = np.repeat([1, 2], [len(board), len(ball)]).astype(np.int32)
    around = zip(np.arange(8) * math.pi / 4, (1.2, 2.2) * 4)
    eyes = [(centre[0] + 3 * math.cos(t), centre[1] + 3 * math.sin(t), z) for t, z in around]
    shots = [Camera.look_at(eye, (*centre, 0.1), width=72, height=54, focal=72) for eye in eyes]
    return track(Segmentation(both, labels, np.full(len(labels), 0.9, np.float32))), shots


@pytest.mark.parametrize("bare", [True, False])
def test_the_table_goes_on_where_the_ball_stood(bare):
    scene, shots = ball_on_a_table(bare=bare)
    made = remove(scene, 2, rasterizer=RASTERIZER, cameras=shots)
    plain = remove(scene, 2, fill=False, rasterizer=RASTERIZER, cameras=shots)
    assert made.edits[-1]["filled"] > 20 and plain.edits[-1]["filled"] == 0
    for eye in ((2.5, 0.4, 1.7), (0.2, -0.3, 3.0)):  # from where nothing was looked at
        camera = Camera.look_at(eye, (0.1, -0.1, 0), width=64, height=48, focal=100)
        truth, now, before = (render_rgb(s, camera, RASTERIZER) for s in (table(), made.splats, plain.splats))
        wrong = np.abs(before - truth).max(2) > 0.15
        assert wrong.sum() > 20 or not bare
        assert np.abs(now - truth).mean() < 0.02
        assert np.abs(now - truth)[wrong].mean() < 0.08


def test_what_continues_a_surface_shines_as_that_does():
    """A table that is darker for who stands farther along x: so is what goes on under the ball."""
    scene, shots = ball_on_a_table()
    glossy = torch.zeros(len(scene.splats), 3, 3)
    glossy[scene.labels == 1, 2] = 0.35
    scene = replace(scene, splats=replace(scene.splats, sh=torch.cat([scene.splats.sh, glossy], 1)))
    made = remove(scene, 2, rasterizer=RASTERIZER, cameras=shots)
    whole = table()
    whole = replace(whole, sh=torch.cat([whole.sh, glossy[:1].expand(len(whole), -1, -1)], 1))
    pictures = []
    for eye in ((2.5, 0.1, 1.7), (-2.5, -0.1, 1.7)):
        camera = Camera.look_at(eye, (0.1, -0.1, 0), width=64, height=48, focal=140)
        pictures.append([render_rgb(s, camera, RASTERIZER)[18:30, 26:38].mean() for s in (whole, made.splats)])
    (truth, now), (other_truth, other) = pictures
    assert truth - other_truth > 0.2 and now - other > 0.7 * (truth - other_truth)


def test_a_hole_takes_in_small_gaps_and_islands_but_not_what_is_open_or_large():
    y, x = np.mgrid[:40, :60]
    hole = (x > 10) & (x < 30) & (y > 10) & (y < 30)
    island, gap = (x > 15) & (x < 19) & (y > 15) & (y < 19), (x > 22) & (x < 26) & (y > 22) & (y < 26)
    window, outside = (x >= 30) & (x < 44) & (y > 8) & (y < 32), y == 39
    hole &= ~island & ~gap
    known = ~hole & ~gap & ~window & ~outside
    made = _widened(hole, known)
    ring = (x > 8) & (x < 32) & (y > 8) & (y < 32)
    assert made[hole | island | gap].all() and not made[window | outside].any()
    assert made[ring & known].mean() > 0.9 and not made[~ring].any()


def test_a_surface_ends_where_nothing_of_it_is_beyond():
    y, x = np.mgrid[:40, :60]
    known = (x < 30) & (y > 5) & (y < 35)
    hole = (np.abs(y - 20) < 8) & (x > 15) & (x < 36)
    known &= ~hole
    made = _bounded(hole, known)
    assert np.array_equal(made, hole & (x < 30))
    mostly_out = (np.abs(y - 20) < 8) & (x > 26) & (x < 50)
    assert np.array_equal(_bounded(mostly_out, known & ~mostly_out), mostly_out)


def test_what_is_far_away_or_of_another_segment_stays_to_the_bit_and_everything_goes_together():
    scene, shots = ball_on_a_table()
    made = remove(scene, 2, rasterizer=RASTERIZER, cameras=shots)
    n, fresh = len(made.splats), made.edits[-1]["filled"]
    assert len(made.labels) == len(made.confidences) == len(made.hierarchy.leaves) == n and (made.labels == 1).all()
    old = {tuple(m): i for i, m in enumerate(scene.splats.means.tolist())}
    rows = torch.tensor([old[tuple(m)] for m in made.splats.means[: n - fresh].tolist()])
    assert torch.equal(made.splats.quats[: n - fresh], scene.splats.quats[rows])
    assert torch.equal(made.splats.log_scales[: n - fresh], scene.splats.log_scales[rows])
    far = scene.splats.means[rows].norm(dim=1) > 2.3
    assert far.sum() > 100 and torch.equal(made.splats.sh[: n - fresh][far], scene.splats.sh[rows][far])
    assert made.splats.means[n - fresh :, 2].abs().max() < 0.02  # on the table
    assert (made.splats.means[n - fresh :, :2] - torch.tensor([0.1, -0.1])).norm(dim=1).max() < 0.7


def test_a_table_does_not_go_on_into_the_air():
    scene, shots = ball_on_a_table((1.95, 0.0))  # half of the ball is over the edge
    made = remove(scene, 2, rasterizer=RASTERIZER, cameras=shots)
    fresh = made.splats.means[len(made.splats) - made.edits[-1]["filled"] :]
    assert len(fresh) and (fresh[:, 0] > 2.15).float().mean() < 0.2  # nearly half would be, if nobody looked through


def test_nothing_is_made_where_no_camera_looked():
    scene, _ = ball_on_a_table()
    assert remove(scene, 2).edits[-1]["filled"] == 0
    moved = transform(scene, 2, translation=(0, 0, 1), rasterizer=RASTERIZER, cameras=ball_on_a_table()[1])
    assert len(moved.splats) == len(scene.splats)


# ---- planes and shade


def test_a_plane_is_found_among_what_is_off_it():
    g = np.random.default_rng(5)
    off = g.normal(size=(60, 3)) + np.array([0, 0, 2.0])
    points = np.concatenate([g.normal(size=(300, 3)) * [2, 1, 0.01], off])
    turn = np.linalg.qr(g.normal(size=(3, 3)))[0]
    plane = fit_plane(points @ turn.T + 3, turn @ [0, 0, -5] + 3)
    np.testing.assert_allclose(plane.axes[2], turn @ [0, 0, -1], atol=0.01)  # towards the point that was given
    np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(plane.axes) == pytest.approx(1) and 0.005 < plane.spread < 0.02


def test_pixels_of_a_camera_above_come_back_to_where_they_are():
    camera = camera_along(np.array([1.0, 2, 0]), FLOOR.axes[2], FLOOR.axes[0], 0.7, 16)
    points = points_of(camera, FLOOR, np.ones((16, 16), bool))
    x, y, _ = project(camera, points)
    np.testing.assert_allclose(np.stack([x, y], 1), np.indices((16, 16))[::-1].reshape(2, -1).T + 0.5, atol=1e-3)
    assert np.abs(points[:, 2]).max() < 1e-4 and np.ptp(points[:, 0]) == pytest.approx(1.4 * 15 / 16, rel=0.02)


@pytest.mark.parametrize("height", [0.7, 1.0, 1.6])
def test_a_ball_takes_the_light_that_its_solid_angle_says(height):
    ball = gaussians(ball_at([0, 0, height], 0.5, 900), torch.ones(900, 3), 0.02)
    shade = occlusion(ball, FLOOR, np.array([[0.0, 0, 0], [40, 0, 0]]), RASTERIZER)
    assert shade[0] == pytest.approx((0.53 / height) ** 2, abs=0.06)  # the form factor of a sphere overhead
    assert shade[1] == 0


def test_what_is_lit_again_shows_the_same_in_the_shade():
    g = torch.Generator().manual_seed(6)
    sh, shade = torch.randn(5, 4, 3, generator=g).double().numpy() * 0.2, np.linspace(0, 1, 5)
    light = light_on(shade, np.array([0.1, 0.5, 1.0]))
    assert (light[0] == 1).all() and (light[:, 2] == 1).all() and (np.diff(light[:, 0]) < 0).all()
    basis = torch.randn(4, generator=g).numpy()
    basis[0] = SH_C0
    shown = np.einsum("k,nkc->nc", basis, sh) + 0.5
    np.testing.assert_allclose((np.einsum("k,nkc->nc", basis, lit(sh, light)) + 0.5) * light, shown, atol=1e-6)
