"""Features: losses against loops, kernels against torch, sampling against its promises, learning of a known answer."""

import math
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from cgc.errors import InputError
from cgc.features.cache import Cache
from cgc.features.contrast import contrast, contrast_gradient
from cgc.features.frozen import Learner, _rate, learn_features, nearest_neighbours, smooth_features
from cgc.features.losses import contrastive_loss, smoothness_loss
from cgc.features.rows import LearnedRows
from cgc.features.samples import off_border, part_pixels, sample_batches, visible_mass
from cgc.kernels import threads
from cgc.masks.id_maps import border_mask
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


def some_features(pixels, n_masks, channels, seed=0):
    """Features around a direction a mask, and the masks, every one of them present."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.cat([torch.arange(n_masks), torch.randint(n_masks, (pixels - n_masks,), generator=g)])
    centres = torch.randn(n_masks, channels, generator=g)
    return 0.3 * centres[masks] + 0.2 * torch.randn(pixels, channels, generator=g), masks


def by_autograd(features, masks, n_masks, reduction):
    """The loss that defines it, and its gradient, in float64."""
    leaf = features.double().requires_grad_()
    loss = contrastive_loss(leaf, masks, n_masks, reduction)
    loss.backward()
    return float(loss.detach()), leaf.grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("pixels", "n_masks", "channels"),
    [(1, 1, 1), (9, 9, 3), (40, 1, 16), (257, 6, 5), (600, 23, 16), (1000, 300, 8), (523, 4, 33)],
)
def test_the_kernels_of_the_contrastive_loss_equal_autograd(pixels, n_masks, channels, reduction):
    """One pixel a mask, one mask, any number of each."""
    features, masks = some_features(pixels, n_masks, channels)
    expected, expected_gradient = by_autograd(features, masks, n_masks, reduction)
    loss, gradient = contrast(features.numpy(), masks.numpy(), n_masks, reduction)
    slope = 1 / n_masks if reduction == "sum" else 1 / pixels  # about that of one pixel's logits
    assert abs(loss - expected) < 1e-6 * slope * pixels
    atol = 1e-5 * max(slope, float(expected_gradient.abs().max()))  # what float32 leaves of the definition, too
    torch.testing.assert_close(torch.from_numpy(gradient).double(), expected_gradient, rtol=0, atol=atol)


def test_contrast_of_features_near_and_at_zero():
    """Pixels that no Gaussian reaches have the feature 0: nothing to divide by."""
    features, masks = some_features(50, 3, 8)
    features[10:20] = 0
    features[20] *= 1e-9
    _, expected = by_autograd(features, masks, 3, "mean")
    loss, gradient = contrast(features.numpy(), masks.numpy(), 3)
    used = np.r_[0:10, 20:50]
    assert math.isfinite(loss) and np.isfinite(gradient).all()
    torch.testing.assert_close(torch.from_numpy(gradient[used]).double(), expected[used], rtol=1e-4, atol=1e-7)


def test_contrast_of_a_view_in_the_buffers_of_a_larger_one():
    """Rows past the pixels hold what a view before left there."""
    features, masks = some_features(261, 7, 8)
    left, units = np.full((2, 300, 8), 7.0, np.float32)
    left[:261] = features
    loss = contrast_gradient(left.reshape(-1), masks.numpy(), np.bincount(masks), 0.5, False, 8, units.reshape(-1))
    expected, gradient = contrast(features.numpy(), masks.numpy(), 7)
    assert loss == pytest.approx(0.5 * expected)
    np.testing.assert_allclose(left[:261], 0.5 * gradient, rtol=1e-5, atol=1e-9)


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


def rows_of(n, channels, most, views=1):
    """Rows of N random Gaussians, and what they start from."""
    start = torch.randn(n, channels, generator=torch.Generator().manual_seed(0))
    return LearnedRows(start.numpy(), most, views, 50), start


def see(rows, *gaussians, gradient=0.0):
    """Begin a step that sees some Gaussians in each view, all with one gradient."""
    rows.gradients[:] = gradient
    rows.begin([np.array(some, np.int32) for some in gaussians])


def test_rows_take_the_steps_of_adam_each_by_its_own_count():
    """A Gaussian moves as if the steps that see it were all there are; the others stay as they are."""
    rows, start = rows_of(30, 5, 20)
    g = torch.Generator().manual_seed(1)
    leaves = [f.clone().requires_grad_() for f in start]
    optimizers = [torch.optim.Adam([leaf], lr=0.1, betas=(0.9, 0.99), eps=1e-15) for leaf in leaves]
    for _ in range(12):
        seen = torch.randperm(29, generator=g)[:11].sort().values
        gradient = torch.randn(11, 5, generator=g)
        see(rows, seen.tolist())
        rows.gradients[0, :11, :5] = gradient
        rows.update(0.1)
        for i, of in zip(seen.tolist(), gradient):
            leaves[i].grad = of
            optimizers[i].step()
    expected = torch.stack([leaf.detach() for leaf in leaves])
    torch.testing.assert_close(torch.from_numpy(rows.features[:, :5].copy()), expected, rtol=1e-5, atol=1e-5)
    assert not rows.features[:, 5:].any() and np.array_equal(rows.features[29, :5], start[29].numpy())


@pytest.mark.parametrize(
    "views", [[[0, 2, 5], [2, 3, 5, 7]], [[1], [], [0, 1, 9]], [[4, 5], [4, 5], [4, 5]], [[3], [0, 1, 2]], [[], []]]
)
def test_the_gradients_of_several_views_add_up(views):
    """Gaussians of one view, of another, of several, of none: as if one view had them all, twice."""
    rows, _ = rows_of(10, 8, 4, len(views))
    whole, _ = rows_of(10, 8, 10)
    g = np.random.default_rng(0)
    for _ in range(2):
        see(rows, *views)
        rows.gradients[:] = g.normal(size=rows.gradients.shape)
        sums = np.zeros((10, 8), np.float32)
        for some, gradient in zip(views, rows.gradients):
            sums[some] += gradient[: len(some)]
        seen = sorted(set().union(*views))
        see(whole, seen)
        whole.gradients[0, : len(seen)] = sums[seen]
        rows.update(0.1)
        whole.update(0.1)
        np.testing.assert_allclose(rows.features, whole.features, rtol=1e-5, atol=1e-5)


def test_the_spatial_kernel_equals_autograd_with_the_neighbours_held():
    rows, start = rows_of(40, 6, 40, 2)
    neighbours = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))[:4] for i in range(40)])
    see(rows, range(40))
    rows.update(0.0)  # every one was seen once
    even, later = list(range(0, 40, 2)), list(range(20, 40, 2))
    see(rows, even[:12], later, gradient=3.0)
    loss = rows.smooth(np.full(7, 0.5, np.float32), neighbours.numpy(), 0.3)
    anchors = torch.tensor(even)[[1, 3, 6, 9, 12, 15, 18]]  # the middle of each seventh
    leaf = start.double().requires_grad_()
    held = torch.cat([leaf, leaf.detach()])
    expected = 0.3 * smoothness_loss(held, anchors, neighbours[anchors] + 40)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    added = torch.zeros(40, 8)
    for some, gradient in zip((even[:12], later), rows.gradients):
        added[some] += torch.from_numpy(gradient[: len(some)] - 3.0)
    torch.testing.assert_close(added[:, :6].double(), leaf.grad, rtol=1e-4, atol=1e-6)
    assert (added[:, 0] != 0).sum() == 7 and not added[:, 6:].any()


def test_rows_have_the_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr("cgc.features.rows.LONG", 0)  # threads are not worth it for so few
    neighbours = np.random.default_rng(0).integers(0, 40, (40, 4))
    made = []
    for count in (1, 2, 5):
        rows, _ = rows_of(40, 6, 40)
        with threads(count):
            losses = []
            for step in range(3):
                see(rows, range(step, 40), gradient=1.0)
                losses.append(rows.smooth(np.full(11, 0.5, np.float32), neighbours, 0.3))
                rows.update(0.1)
        made.append((losses, rows.features.tobytes(), rows.gradients.tobytes()))
    assert made[0][0][1] > 0 and made[0] == made[1] == made[2]


def test_neighbours_that_no_step_has_seen_say_nothing():
    rows, _ = rows_of(6, 8, 6)
    neighbours = np.array([[i for i in range(6) if i != j] for j in range(6)])
    see(rows, [0, 1])
    assert rows.smooth(np.zeros(2, np.float32), neighbours, 1.0) == 0 and not rows.gradients.any()
    rows.update(0.0)
    see(rows, [0, 1, 2])
    assert rows.smooth(np.zeros(3, np.float32), neighbours, 1.0) > 0
    unit = torch.nn.functional.normalize(torch.from_numpy(rows.features), dim=1)
    across = unit[:2].sum(0) - unit[2] * (unit[2] @ unit[:2].sum(0))
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(rows.gradients[0, 2]), -across, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-5)


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


def test_the_rate_falls_to_a_tenth():
    assert _rate(0, SETTINGS) == SETTINGS.lr and _rate(SETTINGS.steps, SETTINGS) == pytest.approx(0.1 * SETTINGS.lr)


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


def test_a_batch_has_its_own_gaussians_and_their_columns_of_w():
    splats, cameras, maps = two_walls()
    settings = replace(SETTINGS, heaviest=0, min_weight=0.0, pixels_per_view=100, pixels_per_step=50)
    for batch in sample_batches(splats, cameras, maps, CpuRasterizer(), settings, quiet=True):
        whole = CpuRasterizer().contributions(splats, cameras[batch.view], batch.weights.pixels)
        u = len(batch.gaussians)
        assert batch.gaussians.dtype == torch.int32 and (batch.gaussians.diff() > 0).all() and u < len(splats)
        assert torch.equal(batch.gaussians[batch.weights.ids.long()], whole.ids)
        assert torch.equal(batch.weights.weights, whole.weights) and torch.equal(batch.weights.indptr, whole.indptr)
        assert len(batch.weights.by_gaussian.indptr) == u + 1 == batch.weights.n_gaussians + 1
        values = torch.randn(len(splats), 3, generator=torch.Generator().manual_seed(1))
        assert torch.equal(batch.weights.matmul(values[batch.gaussians]), whole.matmul(values))
        pixels = torch.ones(len(whole), 2)
        assert torch.equal(batch.weights.transpose_matmul(pixels), whole.transpose_matmul(pixels)[batch.gaussians])
        assert (batch.masks.diff() >= 0).all() and np.array_equal(batch.counts, np.bincount(batch.masks))


def test_the_heaviest_weights_are_kept():
    splats, cameras, maps = two_walls()
    every, few = (
        sample_batches(splats, cameras, maps, CpuRasterizer(), replace(SETTINGS, heaviest=k), quiet=True)
        for k in (0, 3)
    )
    for a, b in zip(every, few):
        assert torch.equal(a.weights.pixels, b.weights.pixels)
        assert b.weights.indptr.diff().max() == 3 < a.weights.indptr.diff().max()


def test_parts_of_contributions_keep_what_they_know():
    """Rows with their remainder and kind of number; columns without the empty ones."""
    splats, cameras, _ = two_walls()
    weights = CpuRasterizer().contributions(splats, cameras[0], heaviest=2, dtype=torch.float16)
    some = weights.select(torch.tensor([900, 7, 900]))
    assert some.weights.dtype == torch.float16 and torch.equal(some.remainder, weights.remainder[[900, 7, 900]])
    small, kept = some.compact()
    assert small.n_gaussians == len(kept) == len(some.ids.unique()) and torch.equal(kept[small.ids.long()], some.ids)
    values = torch.randn(len(splats), 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(small.matmul(values[kept]), weights.matmul(values)[[900, 7, 900]])


def patches():
    """An id map with a large, a middle and a small mask on unassigned ground."""
    ids = np.zeros((120, 160), np.int32)
    ids[10:110, 10:110], ids[20:60, 115:150], ids[80:90, 120:130] = 4, 9, 2
    return ids


def drawn(sampling, **more):
    """The ids of the pixels drawn of `patches`, the pixels, and how many of each id could be."""
    from cgc.features.samples import draw_pixels

    settings = LiftSettings(sampling=sampling, pixels_per_view=1000, border=1, **more)
    pixels = draw_pixels(patches(), settings, np.random.default_rng(0))
    inside = patches()[(patches() > 0) & ~border_mask(patches(), 1)]
    assert len(np.unique(pixels)) == 1000 and not border_mask(patches(), 1).ravel()[pixels].any()
    return patches().ravel()[pixels], pixels, {i: int((inside == i).sum()) for i in (4, 9, 2)}


def test_uniform_sampling_draws_masks_by_their_area():
    ids, _, areas = drawn("uniform")
    for i, area in areas.items():
        assert abs((ids == i).mean() - area / sum(areas.values())) < 0.03


def test_mask_sampling_draws_small_masks_more_densely():
    ids, _, areas = drawn("mask")
    density = {i: (ids == i).sum() / area for i, area in areas.items()}
    assert density[2] > 2 * density[9] > 3 * density[4]
    assert (ids == 4).sum() > (ids == 9).sum() > (ids == 2).sum()


def test_border_sampling_takes_half_beside_borders():
    _, pixels, _ = drawn("border")
    assigned = ndimage.distance_transform_cdt(np.pad(patches() > 0, 1), "chessboard")[1:-1, 1:-1]  # 1: on the border
    distance = assigned.ravel()[pixels]
    assert distance.min() == 2 and (distance <= 5).sum() == 500 and distance.max() > 30
    assert 0.4 < (distance[:300] <= 5).mean() < 0.6  # in random order: the batches of a view are alike
    assert np.array_equal(drawn("border")[1], pixels)
    plain = assigned.ravel()[drawn("mask")[1]]
    assert (plain <= 5).sum() < 450


@pytest.mark.parametrize("sampling", ["mask", "uniform", "border"])
def test_all_pixels_are_drawn_where_few_can_be(sampling):
    from cgc.features.samples import draw_pixels

    ids = patches()
    pixels = draw_pixels(ids, LiftSettings(sampling=sampling, border=5), np.random.default_rng(0))
    inside = (ids > 0) & ~border_mask(ids, 5)
    thin = ids == 2  # 10 x 10 pixels, all of them that near to its border
    assert not inside[thin].any() and np.array_equal(np.sort(pixels), np.flatnonzero(inside | thin))


@pytest.mark.parametrize("width", [0, 1, 2, 3])
def test_thin_masks_are_drawn_from_as_a_whole(width):
    """A pole two pixels wide is all border: without that nothing would be learned of it."""
    ids = np.zeros((60, 80), np.int32)
    ids[5:55, 5:60], ids[5:55, 40:42], ids[5:55, 65:72], ids[56:59, 10:13] = 7, 500, 3, 9
    inside, plain = off_border(ids, width, 8), (ids > 0) & ~border_mask(ids, width)
    left = {i: int(plain[ids == i].sum()) for i in (7, 500, 3, 9)}
    assert left[500] == (100 if width == 0 else 0) and left[7] > 1000
    for i, count in left.items():
        assert np.array_equal(inside & (ids == i), ids == i if count < 8 else plain & (ids == i))
    assert not inside[ids == 0].any() and not off_border(np.zeros((4, 5), np.int32), width, 8).any()


def test_masks_with_as_few_pixels_as_count_are_kept():
    ids = np.array([[5, 5, 5, 5, 6, 6, 6]])
    (part,) = part_pixels(ids, np.arange(7), SETTINGS)
    assert SETTINGS.min_mask_pixels == 4 and part.mask_ids.tolist() == [5] and part.pixels.tolist() == [0, 1, 2, 3]


def test_the_memory_that_weights_may_take_changes_no_bit():
    """Nothing on the disk, all of it, some of it: the same batches, the same features."""
    splats, cameras, maps = two_walls()
    neighbours, made = nearest_neighbours(splats.means, 8), []
    for cache_gb in (2.0, 0.0, 6e-5):
        settings = replace(SETTINGS, cache_gb=cache_gb, steps=20)
        batches = sample_batches(splats, cameras, maps, CpuRasterizer(), settings, quiet=True)
        features = learn_features(batches, neighbours, settings, quiet=True)
        made.append((features, visible_mass(batches, len(splats)), *(b.weights.weights for b in batches)))
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other))


def test_a_cache_keeps_all_kinds_of_arrays_in_order(tmp_path):
    groups = [
        [np.arange(k, dtype=np.int32), np.random.default_rng(k).random((k, 3)), np.empty((0, 2), np.float32)]
        for k in (100, 400, 5, 100)  # the last would fit if the first were not there
    ]
    with Cache(5e-6, tmp_path) as cache:
        for group in groups:
            cache.keep(group)
        back = cache.groups()
    assert not list(tmp_path.iterdir())  # the file has no name that could be left behind
    assert [kept[0] is group[0] for group, kept in zip(groups, back)] == [True, False, True, False]
    for group, kept in zip(groups, back):
        assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(group, kept))
    assert type(back[3][0]) is np.ndarray and back[3][0].flags.writeable


def test_a_full_disk_and_a_missing_folder_end_in_a_sentence(tmp_path):
    with (
        Cache(0, tmp_path / "nowhere") as cache,
        pytest.raises(InputError, match=r"more than the 0 GB .*nowhere \(No such file.*\); .* --lift.cache-gb"),
    ):
        cache.keep([np.zeros(5)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with Cache(0, tmp_path) as cache, pytest.raises(InputError, match=r"temporary file in .* \(File too large\)"):
            cache.keep([np.zeros(2000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_step_equals_autograd_and_adam(reduction):
    """Two views in a step, the second Gaussians of both; those of neither keep what they start with."""
    splats, cameras, maps = two_walls()
    settings = replace(SETTINGS, spatial_weight=0.0, reduction=reduction, pixels_per_view=60, pixels_per_step=60)
    batches = sample_batches(splats, cameras, maps, CpuRasterizer(), settings, quiet=True)
    start = 0.1 * torch.randn(len(splats), 4, generator=torch.Generator().manual_seed(1))
    learner = Learner(batches, nearest_neighbours(splats.means, 3), start, settings)
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.05, betas=(0.9, 0.99), eps=1e-15)
    for _ in range(3):
        loss = learner.step(batches, np.zeros(5, np.float32), 0.05)
        optimizer.zero_grad()
        losses = [
            contrastive_loss(b.weights.matmul(leaf[b.gaussians]), b.masks, len(b.mask_ids), reduction) for b in batches
        ]
        expected = torch.stack(losses).mean()
        expected.backward()
        optimizer.step()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    seen = torch.zeros(len(splats), dtype=torch.bool)
    for batch in batches:
        seen[batch.gaussians] = True
    assert 50 < seen.sum() < len(splats) and torch.equal(learner.features[~seen], start[~seen])
    apart = (learner.features - leaf.detach())[seen].abs()
    assert apart.median() < 1e-5 and (apart > 1e-3).float().mean() < 0.02  # Adam's first steps turn on signs alone


def test_draws_are_those_of_sorting_all_keys_whatever_the_ids_are():
    """As `numpy.random` draws them: the first n of all pixels in the order of their Gumbel keys; ids may be huge."""
    from cgc.features.samples import draw_pixels

    ids = np.random.default_rng(0).integers(0, 5, (20, 30)).astype(np.int32)
    settings, inside = LiftSettings(border=0, pixels_per_view=70), np.flatnonzero(ids)
    _, index, counts = np.unique(ids.ravel()[inside], return_inverse=True, return_counts=True)
    keys = -0.5 * np.log(counts)[index] + np.random.default_rng(1).gumbel(size=len(inside))
    expected = inside[np.argsort(-keys)[:70]]
    for factor in (1, 10**8):
        assert np.array_equal(draw_pixels(ids * factor, settings, np.random.default_rng(1)), expected)


def test_learning_has_the_same_bits_for_any_number_of_threads():
    splats, cameras, maps = two_walls()
    batches = sample_batches(splats, cameras, maps, CpuRasterizer(), SETTINGS, quiet=True)
    neighbours, made = nearest_neighbours(splats.means, 8), []
    for count in (1, 2, 3):
        with threads(count):
            made.append(learn_features(batches, neighbours, replace(SETTINGS, steps=10), quiet=True))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@pytest.mark.parametrize("change", [{"spatial_weight": 0.0}, {"views_per_step": 1}, {"views_per_step": 3, "dim": 19}])
def test_features_have_their_length_and_fall_in_loss(change):
    splats, cameras, maps = two_walls()
    settings = replace(SETTINGS, **change)
    batches = sample_batches(splats, cameras, maps, CpuRasterizer(), settings, quiet=True)
    for neighbours in (nearest_neighbours(splats.means, 8), torch.empty(len(splats), 0, dtype=torch.int64)):
        features = learn_features(batches, neighbours, settings, quiet=True)
        assert features.shape == (len(splats), settings.dim) and features.isfinite().all()
        for batch in batches:
            seen = batch.weights.matmul(features[batch.gaussians])
            assert contrastive_loss(seen, batch.masks, len(batch.mask_ids)) < 0.1


def test_smoothing_keeps_equal_features_and_unit_length():
    g = torch.Generator().manual_seed(6)
    points = torch.rand(30, 3, generator=g)
    neighbours = nearest_neighbours(points, 5)
    constant = torch.tensor([[3.0, 4.0]]).repeat(30, 1)
    smooth = smooth_features(constant, neighbours, torch.rand(30, generator=g))
    torch.testing.assert_close(smooth, torch.tensor([[0.6, 0.8]]).repeat(30, 1))


def test_smoothing_weighs_each_by_its_mass_with_any_number_of_threads():
    g = torch.Generator().manual_seed(7)
    features, mass = torch.randn(23, 3, generator=g), torch.rand(23, generator=g)
    neighbours = nearest_neighbours(torch.rand(23, 3, generator=g), 4)
    unit = torch.nn.functional.normalize(features, dim=1) * mass[:, None]
    slow = torch.stack([unit[i] + sum(unit[j] for j in neighbours[i]) for i in range(23)])
    for count in (1, 3):
        with threads(count):
            smooth = smooth_features(features, neighbours, mass)
        torch.testing.assert_close(smooth, torch.nn.functional.normalize(slow, dim=1), rtol=1e-4, atol=1e-4)


def test_features_that_cancel_are_smoothed_to_zero():
    smooth = smooth_features(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1], [0]]), torch.ones(2))
    assert torch.equal(smooth, torch.zeros(2, 2))
