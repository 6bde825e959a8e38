"""Pictures of labels on a device: the ids and weights of the CPU's kernels, to the pixel, and no wait on the way."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from device_guard import HostWait, moved, no_waits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hierarchy import camera, cloud, family, random_tree
from test_segmentation import Rows

from cgc import kernels
from cgc.clustering.hierarchy import Hierarchy
from cgc.features.lifting import vote_ids
from cgc.rasterize.base import Contributions, device_of, group_contributions
from cgc.rasterize.cpu import CpuRasterizer
from cgc.segmentation import device_labels
from cgc.segmentation.device_labels import LabelDrawer, ShownThere, read_rows_there
from cgc.segmentation.labels import ShownNodes, leaf_groups, read_rows, render_ids, render_labels, render_levels
from cgc.segmentation.segmentation import Segmentation

LEVELS = [None, 0.0, 0.2, 0.5, 0.7, 0.9, 1.0]
CPU = torch.device("cpu")


def rows_of(splats, tree, shot=None):
    return group_contributions(CpuRasterizer(), splats, shot or camera(), leaf_groups(tree))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("table", [1 << 26, 500])
def test_rows_are_read_as_the_kernels_read_them(seed, table, tensors_on, monkeypatch):
    """Ids and weights at all levels; with a table of 500 weights in pieces."""
    monkeypatch.setattr(device_labels, "TABLE", table)
    tree, splats = random_tree(seed, 60), cloud(60, seed)
    rows = rows_of(splats, tree)
    expected = read_rows(rows, ShownNodes.of(tree, LEVELS))
    found = read_rows_there(moved(rows, tensors_on), ShownThere.of(tree, LEVELS, tensors_on))
    for picture, (ids, weight) in zip(expected, found, strict=True):
        assert ids.dtype == torch.int32 and weight.dtype == torch.float32
        np.testing.assert_array_equal(ids.cpu().numpy(), picture.ids)
        np.testing.assert_allclose(weight.cpu().numpy(), picture.weight, rtol=1e-6, atol=1e-7)


def test_a_part_wins_inside_its_object_only_and_ties_go_to_the_lower_id():
    """The rows of test_hierarchy, the tree too: its answers are known by hand."""
    rows = [[(4, 0.4), (0, 0.1), (1, 0.2), (2, 0.2)], [(0, 0.375), (1, 0.1875), (2, 0.1875)], [(1, 0.5), (2, 0.5)], []]
    rows.append([(0, 0.75)])
    tree = family()
    made = group_contributions(Rows(*rows, n=7), cloud(7), camera(5, 1), leaf_groups(tree), torch.arange(5))  # pyright: ignore
    found = read_rows_there(made, ShownThere.of(tree, [0.1, None, 0.7, 1.0], CPU))
    assert [ids.tolist() for ids, _ in found] == [[4, 4, 4, 0, 4], [1, 1, 1, 0, 1], [6, 5, 6, 0, 5], [7, 5, 7, 0, 5]]
    np.testing.assert_allclose(found[2][1], [0.4, 0.375, 1, 1, 0.75], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 2, 32]))
def test_drawn_ids_are_those_of_all_rows(seed, one_hot):
    """With 0 and 2 channels the labels are written in binary; all levels are drawn, or one."""
    tree, splats = random_tree(seed, 80), cloud(80, seed)
    chosen = LEVELS if seed % 2 else [LEVELS[seed % 7]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_labels, "ONE_HOT", one_hot)
        found = LabelDrawer(splats, tree, chosen, CpuRasterizer()).ids(camera(12, 9))
    for ids, picture in zip(found, render_levels(splats, tree, chosen, camera(12, 9), CpuRasterizer()), strict=True):
        np.testing.assert_array_equal(ids.numpy().reshape(9, 12), picture.ids)


@pytest.mark.parametrize("table", [1 << 26, 500])
def test_channels_give_the_weights_of_rows(table, tensors_on, monkeypatch):
    monkeypatch.setattr(device_labels, "TABLE", table)
    del tensors_on  # the CPU's rasteriser draws; the reading is what test_rows_... tries on a device
    tree, splats = random_tree(3, 60), cloud(60, 3)
    found = LabelDrawer(splats, tree, LEVELS, CpuRasterizer()).read_one_hot(camera())
    for (ids, weight), picture in zip(found, render_levels(splats, tree, LEVELS, camera(), CpuRasterizer())):
        np.testing.assert_array_equal(ids.numpy().reshape(12, 16), picture.ids)
        np.testing.assert_allclose(weight.numpy().reshape(12, 16), picture.weight, atol=1e-5)


class Shares:
    """A rasteriser whose pixels show Gaussians by given weights [P, N]."""

    def __init__(self, weights):
        self.weights = torch.tensor(weights)
        self.asked = 0

    def render(self, splats, values, cameras, **_):
        return SimpleNamespace(values=(self.weights @ values)[None, None])

    def contributions(self, splats, camera, pixels=None, **_):
        rows, ids = self.weights[pixels].nonzero(as_tuple=True)
        self.asked = len(pixels)
        counts = torch.bincount(rows, minlength=len(pixels))
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        weights = self.weights[pixels][rows, ids]
        return Contributions(indptr, ids.int(), weights, pixels, camera.width, camera.height, len(splats))


def test_what_is_called_sure_has_more_than_half_of_its_pixel():
    """Random shares of seven labels, noise and background; label 0 may be sure too, and rows are asked for no other."""
    g = np.random.default_rng(0)
    weights = g.dirichlet(np.full(10, 0.05), 3000)[:, :9].astype(np.float32)  # the tenth is the background
    tree = Hierarchy.flat(np.array([-1, 1, 2, 3, 4, 5, 6, 7, 7]))
    rasterizer, splats = Shares(weights), cloud(9)
    drawer = LabelDrawer(splats, tree, [None], rasterizer)  # pyright: ignore[reportArgumentType]
    shot = camera(3000, 1)
    label, sure = drawer.find_sure(shot)
    by_label = np.zeros((3000, 8))
    np.add.at(by_label.T, np.maximum(tree.leaves, 0), weights.T)
    by_label[:, 0] += 1 - weights.sum(1)
    share = by_label[np.arange(3000), label.numpy()]
    assert (share[sure.numpy()] > 0.5).all() and sure[label == 0].any() and 0.5 < sure.float().mean() < 0.95
    assert (
        by_label.max(1)[~sure.numpy()] < 1 - (0.5 - device_labels.SURE) / 3 + 1e-5
    ).all()  # three bits: clear is sure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_labels, "ONE_HOT", 0)
        ids = drawer.ids(shot)[0]
    np.testing.assert_array_equal(ids.numpy(), by_label.argmax(1))
    assert rasterizer.asked == int((~sure).sum())


def test_no_label_at_all_is_a_picture_of_nothing():
    tree, splats = Hierarchy.flat(np.full(60, -1)), cloud(60)
    for channels in (0, 32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device_labels, "ONE_HOT", channels)
            assert not LabelDrawer(splats, tree, [None, 1.0], CpuRasterizer()).ids(camera())[1].any()


def test_pictures_do_not_wait_for_the_device():
    """What is made of a picture of channels, and of rows; the rasteriser itself is another's."""
    tree = random_tree(3, 60)
    shares = Shares(np.random.default_rng(0).dirichlet(np.ones(61), 20)[:, :60].astype(np.float32))
    drawer = LabelDrawer(cloud(60), tree, LEVELS, shares)  # pyright: ignore[reportArgumentType]
    rows, shown = rows_of(cloud(60), tree), ShownThere.of(tree, LEVELS, CPU)
    shot = camera(20, 1)
    with no_waits():
        drawer.read_one_hot(shot)
        drawer.find_sure(shot)
        read_rows_there(rows, shown)
    with pytest.raises(HostWait), no_waits(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_labels, "ONE_HOT", 0)
        drawer.ids(shot)  # asks which pixels are not sure: the one wait there is


def test_nothing_but_the_device_is_needed():
    tree = random_tree(5, 60)
    rows = moved(rows_of(cloud(60), tree), "meta")
    for ids, weight in read_rows_there(rows, ShownThere.of(tree, LEVELS, torch.device("meta"))):
        assert ids.is_meta and weight.is_meta and ids.shape == (192,)
    with pytest.raises(Exception, match=r"device|meta"):
        read_rows_there(rows, ShownThere.of(tree, LEVELS, CPU))


class Elsewhere(CpuRasterizer):
    """The CPU's rasteriser that says where it works."""

    device = CPU


def test_a_rasteriser_says_where_it_works():
    assert device_of(Elsewhere()) == CPU == device_of(CpuRasterizer())
    moved_to = Elsewhere()
    moved_to.device = torch.device("meta")
    assert device_of(moved_to).type == "meta"


@pytest.mark.parametrize("weighed", [0, 96])
def test_pictures_and_clicks_take_the_devices_way(monkeypatch, weighed):
    """With the kernels out of service everything is drawn by torch, on the CPU's tensors: the same pictures.

    Weights come of channels where there may be 96 labels, of rows where there may be none.
    """
    monkeypatch.setattr("cgc.segmentation.labels.WEIGHED", weighed)
    tree, splats = random_tree(4, 60), cloud(60, 4)
    labels = np.where(tree.at() > 0, tree.at(), -1)
    drawn = [render_levels(splats, tree, LEVELS, camera(), CpuRasterizer())]
    drawn.append([render_labels(splats, labels, camera(), CpuRasterizer())])
    seg = Segmentation(splats, labels, np.ones(60, np.float32), tree)
    masks, clicks = seg.masks([camera()]), [seg.at_pixel(camera(), x, y) for x, y in ((3, 4), (8, 6), (9, 9))]
    monkeypatch.setattr(kernels, "serve", lambda device: False)
    again = [render_levels(splats, tree, LEVELS, camera(), CpuRasterizer())]
    again.append([render_labels(splats, labels, camera(), CpuRasterizer())])
    for one, other in zip([p for some in drawn for p in some], [p for some in again for p in some], strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_allclose(one.weight, other.weight, atol=1e-5)
        assert other.ids.dtype == np.int32 and other.weight.dtype == np.float32
    np.testing.assert_array_equal(render_ids(splats, tree, 0.7, camera(), CpuRasterizer()), drawn[0][4].ids)
    other = Segmentation(splats, labels, np.ones(60, np.float32), tree)
    assert other.drawer is not None
    np.testing.assert_array_equal(other.masks([camera()])[0], masks[0])
    np.testing.assert_array_equal(other.at_level(1.0).masks([camera()])[0], seg.at_level(1.0).masks([camera()])[0])
    found = [Segmentation(splats, labels, np.ones(60, np.float32), tree).at_pixel(camera(), x, y)
             for x, y in ((3, 4), (8, 6), (9, 9))]  # fmt: skip
    assert [c and c.id for c in found] == [c and c.id for c in clicks] and any(clicks)


@pytest.mark.parametrize(("stride", "merge"), [(1, 1 << 25), (3, 50)])
def test_votes_of_ids_are_those_of_the_host(stride, merge, monkeypatch):
    splats, shots = cloud(60), [camera(), camera(12, 9)]
    g = np.random.default_rng(0)
    maps = {i: g.integers(0, 4, (shot.height, shot.width)) * 100 for i, shot in enumerate(shots)}
    expected, kinds = vote_ids(splats, shots, maps, CpuRasterizer(), 0.01, stride=stride, quiet=True)
    monkeypatch.setattr(kernels, "serve", lambda device: False)
    monkeypatch.setattr("cgc.features.lifting.MERGE", merge)
    votes, names = vote_ids(splats, shots, maps, CpuRasterizer(), 0.01, stride=stride, quiet=True)
    assert np.array_equal(names, kinds) and votes.shape == expected.shape
    np.testing.assert_allclose(votes.toarray(), expected.toarray(), rtol=1e-5, atol=1e-6)
    assert votes.has_sorted_indices and votes.nnz == expected.nnz
