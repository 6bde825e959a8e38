"""Features: losses against loops, sampling against its promises, learning on a scene whose answer is known."""

import math

import numpy as np
import pytest
import torch

from cgc.errors import InputError
from cgc.features.frozen import learn_features, nearest_neighbours, smooth_features
from cgc.features.losses import contrastive_loss, smoothness_loss
from cgc.features.samples import sample_batches, visible_mass
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.settings import LiftSettings
from cgc.splats.types import Splats


def slow_contrastive(features, masks, n_masks, reduction):
    """The equations of arXiv 2404.12784, a pixel and a mask at a time."""
    unit = [f / f.norm() for f in features]
    members = [[x for x, m in enumerate(masks.tolist()) if m == p] for p in range(n_masks)]
    centroids = [sum(unit[x] for x in own) / len(own) for own in members]
    phi = []
    for p, own in enumerate(members):
        spread = sum((unit[x] - centroids[p]).norm().item() for x in own)
        phi.append(min(max(10 * spread / (len(own) * math.log(len(own) + 100)), 0.1), 1.0))
    total = 0
    for p, own in enumerate(members):
        terms = []
        for x in own:
            logits = torch.stack([unit[x] @ centroids[q] / phi[q] for q in range(n_masks)])
            terms.append(torch.logsumexp(logits, 0) - logits[p])
        total = total + (sum(terms) if reduction == "sum" else sum(terms) / len(own))
    return total / n_masks


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_contrastive_loss_equals_the_loops(reduction):
    g = torch.Generator().manual_seed(1)
    features = torch.randn(40, 5, generator=g, dtype=torch.float64)
    masks = torch.cat([torch.arange(6), torch.randint(6, (34,), generator=g)])
    fast = features.clone().requires_grad_()
    slow = features.clone().requires_grad_()
    a, b = contrastive_loss(fast, masks, 6, reduction), slow_contrastive(slow, masks, 6, reduction)
    torch.testing.assert_close(a, b)
    a.backward()
    b.backward()
    torch.testing.assert_close(fast.grad, slow.grad)


def test_contrastive_loss_laws():
    g = torch.Generator().manual_seed(2)
    features = torch.randn(60, 4, generator=g)
    masks = torch.arange(60) % 5
    loss = contrastive_loss(features, masks, 5)
    order = torch.randperm(60, generator=g)
    torch.testing.assert_close(loss, contrastive_loss(features[order], masks[order], 5))  # pixels have no order
    scale = torch.rand(60, 1, generator=g) + 0.1
    torch.testing.assert_close(loss, contrastive_loss(features * scale, masks, 5))  # nor features a length
    torch.testing.assert_close(loss, contrastive_loss(features, (masks + 2) % 5, 5))  # nor ids a meaning
    separated = torch.eye(5)[masks]
    assert contrastive_loss(separated, masks, 5) < 0.01 * loss


def test_mean_reduction_does_not_depend_on_the_resolution():
    g = torch.Generator().manual_seed(3)
    separated = torch.eye(4)[torch.arange(40) % 4] + 0.01 * torch.randn(40, 4, generator=g)
    masks = torch.arange(40) % 4
    twice = contrastive_loss(separated.repeat(2, 1), masks.repeat(2), 4)
    assert abs(float(twice) - float(contrastive_loss(separated, masks, 4))) < 1e-3


def test_smoothness_loss_known_values():
    features = torch.tensor([[1.0, 0], [2, 0], [0, 3], [-1, 0]])
    neighbours = torch.tensor([[1, 2], [0, 3]])
    loss = smoothness_loss(features, torch.tensor([0, 1]), neighbours)
    torch.testing.assert_close(loss, torch.tensor(1 - (1 + 0 + 1 - 1) / 4))


def test_neighbours_are_true_and_never_oneself():
    g = torch.Generator().manual_seed(4)
    points = torch.rand(50, 3, generator=g)
    points[10:20] = points[10]  # ten coincident points
    found = nearest_neighbours(points, 4)
    assert found.shape == (50, 4)
    assert not (found == torch.arange(50)[:, None]).any()
    distance = torch.cdist(points, points).fill_diagonal_(math.inf)
    torch.testing.assert_close(
        torch.gather(distance, 1, found).sort(1).values,
        distance.topk(4, largest=False).values,
        atol=1e-4,
        rtol=0,
    )
    assert nearest_neighbours(points[:3], 8).shape == (3, 2)
    assert nearest_neighbours(points[:1], 8).shape == (1, 0)


def two_walls():
    """Two opaque patches of Gaussians side by side, two cameras, ids swapped between their id maps."""
    g = torch.Generator().manual_seed(5)
    xy = torch.rand(400, 2, generator=g) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.5])
    means = torch.cat([xy, torch.zeros(400, 1)], 1)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(400, 1)
    splats = Splats(means, quats, torch.full((400, 3), math.log(0.05)), torch.full((400,), 3.0), torch.zeros(400, 1, 3))
    cameras = [Camera.look_at((dx, 0, 2.0), (0, 0, 0), width=64, height=40, up=(0, 1, 0)) for dx in (-0.2, 0.2)]
    maps = []
    for view, camera in enumerate(cameras):
        xs = torch.arange(64) + 0.5
        at_zero = camera.K @ (camera.viewmat[:3, 3])
        border = float(at_zero[0] / at_zero[2])
        row = np.where(xs.numpy() < border, 1, 2) if view == 0 else np.where(xs.numpy() < border, 7, 3)
        maps.append(np.repeat(row[None], 40, 0).astype(np.int32))
    return splats, cameras, maps


SETTINGS = LiftSettings(steps=60, dim=4, pixels_per_view=1500, pixels_per_step=800, min_mask_pixels=4)


def test_samples_are_inside_masks_off_borders_and_repeatable():
    splats, cameras, maps = two_walls()
    batches = sample_batches(splats, cameras, [maps[0], None], CpuRasterizer(), SETTINGS, quiet=True)
    assert {b.view for b in batches} == {0}
    for batch in batches:
        ids = maps[0].ravel()[batch.weights.pixels.numpy()]
        assert (ids == batch.mask_ids[batch.masks].numpy()).all()
        columns = batch.weights.pixels.numpy() % 64
        edge = np.flatnonzero(np.diff(maps[0][0]))[0]
        assert not np.isin(columns, [edge, edge + 1]).any()
    again = sample_batches(splats, cameras, [maps[0], None], CpuRasterizer(), SETTINGS, quiet=True)
    assert all(torch.equal(a.weights.pixels, b.weights.pixels) for a, b in zip(batches, again))
    mass = visible_mass(batches, len(splats))
    torch.testing.assert_close(mass.sum(), torch.stack([b.weights.weights.sum() for b in batches]).sum())


def test_small_masks_are_drawn_more_densely():
    splats, cameras, maps = two_walls()
    maps[0][:4, :8] = 9
    settings = LiftSettings(pixels_per_view=400, pixels_per_step=400, border=0, min_mask_pixels=1)
    (batch,) = sample_batches(splats, cameras[:1], maps[:1], CpuRasterizer(), settings, quiet=True)
    share = (batch.mask_ids[batch.masks] == 9).float().mean()
    assert share > 1.5 * 32 / (64 * 40)


def test_no_usable_mask_is_said():
    splats, cameras, maps = two_walls()
    with pytest.raises(InputError, match="no training view has a mask"):
        sample_batches(splats, cameras, [0 * maps[0], None], CpuRasterizer(), SETTINGS, quiet=True)


def test_features_separate_the_walls_although_ids_disagree():
    splats, cameras, maps = two_walls()
    batches = sample_batches(splats, cameras, maps, CpuRasterizer(), SETTINGS, quiet=True)
    neighbours = nearest_neighbours(splats.means, 8)
    features = learn_features(batches, neighbours, SETTINGS, quiet=True)
    assert torch.equal(features, learn_features(batches, neighbours, SETTINGS, quiet=True))
    smooth = smooth_features(features, neighbours, visible_mass(batches, len(splats)))
    left = splats.means[:, 0] < -0.1
    right = splats.means[:, 0] > 0.1
    same = (smooth[left] @ smooth[left].T).mean()
    other = (smooth[left] @ smooth[right].T).mean()
    assert same > 0.9 and other < 0.3


def test_smoothing_keeps_equal_features_and_unit_length():
    g = torch.Generator().manual_seed(6)
    points = torch.rand(30, 3, generator=g)
    neighbours = nearest_neighbours(points, 5)
    constant = torch.tensor([[3.0, 4.0]]).repeat(30, 1)
    smooth = smooth_features(constant, neighbours, torch.rand(30, generator=g))
    torch.testing.assert_close(smooth, torch.tensor([[0.6, 0.8]]).repeat(30, 1))
