"""Features learned on a device: the CPU's numbers, from the same draws, without a wait."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from device_guard import HostWait, moved, no_waits, on_meta
from test_features import SETTINGS, by_autograd, some_features, two_walls

from cgc.features.device_batches import PART, DeviceBatch, DevicePool, cut_rows, size_of
from cgc.features.device_contrast import contrast_on_device
from cgc.features.device_learner import DeviceLearner
from cgc.features.frozen import Learner, learn_features, nearest_neighbours
from cgc.features.samples import sample_batches, visible_mass
from cgc.rasterize.cpu import CpuRasterizer


def both_layouts(settings, **options):
    """Splats and the same batches for the kernels and for a device, on the CPU."""
    splats, cameras, maps = two_walls()
    made = [
        sample_batches(splats, cameras, maps, CpuRasterizer(), settings, layout=layout, quiet=True, **options)
        for layout in ("host", "device")
    ]
    return splats, *made


@pytest.mark.parametrize("seed", range(3))
def test_sums_equal_the_matrix_whatever_the_rows_hold(seed, tensors_on):
    """Rows without entries, of one, of just a part, of many parts; several columns twice."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor([0, 1, PART, PART + 1, 0, 5 * PART + 3, 2, 0])
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    ids, weights = torch.randint(9, (int(counts.sum()),), generator=g), torch.rand(int(counts.sum()), generator=g)
    dense = torch.zeros(len(counts), 9, dtype=torch.float64)
    dense.index_put_((torch.repeat_interleave(counts), ids), weights.double(), accumulate=True)
    x = torch.randn(9, 5, generator=g)
    sums = cut_rows(*moved((indptr, ids, weights), tensors_on))
    torch.testing.assert_close(sums.times(x.to(tensors_on)).cpu().double(), dense @ x.double(), rtol=1e-5, atol=1e-5)
    assert (sums.starts.diff() <= PART).all() and len(sums.starts) - 1 == 1 + 1 + 2 + 6 + 1


def test_a_matrix_without_entries_gives_zeros(tensors_on):
    sums = cut_rows(
        *moved((torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0)), tensors_on)
    )
    assert torch.equal(sums.times(torch.ones(2, 5, device=tensors_on)).cpu(), torch.zeros(3, 5))


def test_a_batch_is_the_same_matrix_in_both_layouts():
    for host, device in zip(*both_layouts(replace(SETTINGS, heaviest=5))[1:]):
        assert isinstance(device, DeviceBatch) and device.view == host.view
        for name in ("gaussians", "masks", "mask_ids"):
            assert torch.equal(getattr(host, name).long(), getattr(device, name).long())
        assert torch.equal(host.weights.pixels, device.weights.pixels)
        assert (host.counts == device.counts).all() and len(device.weights) == len(host.weights)
        x = torch.randn(len(host.gaussians), 3, generator=torch.Generator().manual_seed(0))
        y = torch.randn(len(host.masks), 3, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(device.by_pixel.times(x), host.weights.matmul(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(device.by_gaussian.times(y), host.weights.transpose_matmul(y), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(device.weights.matmul(x), host.weights.matmul(x))


def test_visible_mass_is_the_same_in_both_layouts():
    splats, host, device = both_layouts(SETTINGS)
    torch.testing.assert_close(visible_mass(device, len(splats)), visible_mass(host, len(splats)), rtol=1e-6, atol=1e-6)


def test_a_pool_keeps_on_the_device_what_fits_and_the_rest_in_memory():
    _, _, batches = both_layouts(SETTINGS)
    sizes = [size_of(batch) for batch in batches]
    entries = [len(batch.weights.ids) for batch in batches]
    assert all(16 * e < size < 20 * e + 80 * 800 for e, size in zip(entries, sizes))
    pool = DevicePool((sizes[0] + sizes[1]) / 1e9)
    for batch in batches:
        pool.keep(batch)
    assert len(pool.batches) == len(batches) > 2
    assert [a is b for a, b in zip(pool.batches, batches)] == [True, True] + [False] * (len(batches) - 2)
    assert all(torch.equal(a.by_gaussian.weights, b.by_gaussian.weights) for a, b in zip(pool.batches, batches))
    copied = pool.batches[2]
    assert copied.by_pixel.ids is copied.weights.ids and size_of(copied) == sizes[2]  # what was one tensor is one


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("pixels", "n_masks", "channels"), [(1, 1, 1), (9, 9, 3), (40, 1, 16), (600, 23, 5)])
def test_the_loss_and_its_gradient_equal_autograd(pixels, n_masks, channels, reduction, tensors_on):
    features, masks = some_features(pixels, n_masks, channels)
    sizes = torch.bincount(masks, minlength=n_masks).float()
    own = moved((features, masks, sizes), tensors_on)
    loss, gradient = (x.cpu() for x in contrast_on_device(*own, 0.5, reduction == "sum"))
    expected, slopes = by_autograd(features, masks, n_masks, reduction)
    assert float(loss) == pytest.approx(0.5 * expected, rel=1e-5, abs=1e-6)
    scale = max(float(slopes.abs().max()), 1e-6)
    torch.testing.assert_close(gradient.double(), 0.5 * slopes, rtol=1e-4, atol=1e-5 * scale)


def test_features_of_length_zero_have_a_finite_gradient():
    features, masks = some_features(40, 3, 4)
    features[:5] = 0
    loss, gradient = contrast_on_device(features, masks, torch.bincount(masks).float(), 1.0, False)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "change",
    [{}, {"spatial_weight": 0.0}, {"views_per_step": 1}, {"views_per_step": 3, "dim": 19}, {"anchors": 5000},
     {"reduction": "sum"}, {"cache_gb": 0.0}],
)  # fmt: skip
def test_learning_gives_the_features_of_the_kernels(change, tensors_on):
    """Thirty steps from the same start and draws; 5,000 anchors are more than there are Gaussians."""
    settings = replace(SETTINGS, steps=30, **change)
    splats, host, device = both_layouts(settings)
    neighbours = nearest_neighbours(splats.means, 8)
    expected = learn_features(host, neighbours, settings, quiet=True)
    found = learn_features(moved(tuple(device), tensors_on), neighbours.to(tensors_on), settings, quiet=True)
    assert found.device == neighbours.to(tensors_on).device
    assert float((found.cpu() - expected).norm() / expected.norm()) < 1e-4


def test_learning_repeats_bit_for_bit(tensors_on):
    splats, _, device = both_layouts(SETTINGS)
    batches, neighbours = moved(tuple(device), tensors_on), nearest_neighbours(splats.means, 8).to(tensors_on)
    made = [learn_features(batches, neighbours, replace(SETTINGS, steps=20), quiet=True) for _ in range(2)]
    assert torch.equal(*made)


def test_losses_of_steps_equal_the_kernels_and_what_no_step_sees_stays():
    splats, host, device = both_layouts(replace(SETTINGS, pixels_per_view=60, pixels_per_step=60))
    neighbours = nearest_neighbours(splats.means, 3)
    start = 0.1 * torch.randn(len(splats), 4, generator=torch.Generator().manual_seed(1))
    kernels, learner = Learner(host, neighbours, start, SETTINGS), DeviceLearner(neighbours, start, SETTINGS)
    draws = np.linspace(0, 0.999, 40).astype(np.float32)
    for _ in range(5):
        expected = kernels.step(host, draws, 0.05)
        assert float(learner.step(device, torch.from_numpy(draws), torch.tensor(0.05))) == pytest.approx(expected, 1e-5)
    seen = torch.zeros(len(splats), dtype=torch.bool)
    for batch in device:
        seen[batch.gaussians.long()] = True
    assert 50 < seen.sum() < len(splats) and torch.equal(learner.features[~seen], start[~seen])


def some_learner():
    settings = replace(SETTINGS, anchors=50)
    splats, _, batches = both_layouts(settings)
    start = 0.1 * torch.randn(len(splats), 4, generator=torch.Generator().manual_seed(1))
    return DeviceLearner, (nearest_neighbours(splats.means, 8), start), batches, settings


def test_a_step_does_not_wait_for_the_device():
    made, given, batches, settings = some_learner()
    learner = made(*given, settings)
    draws, rate = torch.rand(50, generator=torch.Generator().manual_seed(0)), torch.tensor(0.05)
    for k in range(3):
        with no_waits():
            learner.step(batches[k : k + 2], draws, rate)
    assert not torch.equal(learner.features, given[1])


def test_a_step_needs_nothing_but_the_device():
    """On tensors without memory: no value can be read, and no tensor may have been left on the host."""
    made, given, batches, settings = some_learner()
    learner = made(*on_meta(given), settings)
    loss = learner.step(
        [on_meta(batch) for batch in batches[:2]], torch.empty(50, device="meta"), on_meta(torch.ones(()))
    )
    assert loss.is_meta and loss.shape == () and learner.features.is_meta
    with pytest.raises(Exception, match=r"device|meta"):  # what was left on the host is an error indeed
        learner.step(batches[:2], torch.empty(50, device="meta"), on_meta(torch.ones(())))


def test_the_guard_sees_what_waits():
    x = torch.arange(4.0)
    for wait in (
        lambda: x.sum().item(), lambda: float(x[0]), lambda: x[x > 1], lambda: x.nonzero(), lambda: x.cpu(),
        lambda: x.numpy(), lambda: x.unique(), lambda: x.tolist(), lambda: bool(x[0] > 0),
        lambda: torch.repeat_interleave(torch.tensor([1, 2])),
    ):  # fmt: skip
        with pytest.raises(HostWait), no_waits():
            wait()
    with no_waits():
        assert (x + 1).shape == (4,)
