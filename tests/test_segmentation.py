"""Segmentation: pictures of labels against a slow one-hot reference, the table by hand, files that come back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CLUMPS, FLOOR, cameras, clumps

from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.geometry import SH_C0
from cgc.kernels import threads
from cgc.ply import read_header
from cgc.rasterize.base import Contributions
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.segmentation import labels as label_room
from cgc.segmentation.labels import render_blended, render_labels, render_rgb
from cgc.segmentation.objects import is_clean
from cgc.segmentation.segmentation import Segmentation
from cgc.segmentation.segments import (
    describe,
    describe_nodes,
    export_segments,
    load_hierarchy,
    load_labels,
    load_table,
    save_labels,
    save_table,
)
from cgc.splats.ply import origin_of, read_ply
from cgc.splats.types import Splats


def cloud(n=60, seed=1):
    """Translucent Gaussians at random before a camera."""
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(n, 3, generator=g) * 2 - 1
    quats = torch.randn(n, 4, generator=g)
    log_scales = torch.rand(n, 3, generator=g) * 2 - 3
    return Splats(means, quats, log_scales, torch.randn(n, generator=g), torch.randn(n, 4, 3, generator=g))


def some_camera(width=20, height=14):
    return Camera.look_at((0, -4, 0.5), (0, 0, 0), width=width, height=height)


def slow_picture(dense, labels):
    """One-hot values through dense weights [P, N]; column 0 takes noise and what is left of the background."""
    one_hot = np.zeros((len(labels), labels.max(initial=0) + 1))
    one_hot[np.arange(len(labels)), np.maximum(labels, 0)] = 1
    sums = dense @ one_hot  # [P, K + 1]
    sums[:, 0] += 1 - dense.sum(1)
    return sums


# ---- pictures of labels


@pytest.mark.parametrize(("at_once", "count"), [(1 << 18, 1), (1 << 18, 3), (37, 2)])
def test_label_pictures_equal_the_slow_one_hot(rasterizer, monkeypatch, at_once, count):
    monkeypatch.setattr(label_room, "MAX_PIXELS_AT_ONCE", at_once)  # pieces make no difference
    splats, camera = cloud(), some_camera()
    labels = np.random.default_rng(2).integers(-1, 5, len(splats)).astype(np.int32)
    labels[labels == 0] = -1
    with threads(count):
        picture = render_labels(splats, labels, camera, rasterizer)
    W = reference.contributions(reference.double(splats), reference.double_camera(camera))
    sums = slow_picture(W.dense.detach().numpy(), labels)
    best = np.sort(sums, 1)
    sure = (best[:, -1] - best[:, -2] > 1e-4) & W.clear.numpy()
    assert sure.mean() > 0.9 and len(np.unique(picture.ids)) >= 5
    assert picture.ids.dtype == np.int32 and picture.ids.shape == picture.weight.shape == (14, 20)
    np.testing.assert_array_equal(picture.ids.ravel()[sure], sums.argmax(1)[sure])
    clear = W.clear.numpy()
    np.testing.assert_allclose(picture.weight.ravel()[clear], best[clear, -1], atol=1e-4)


class Rows:
    """A rasteriser that gives the rows it was made with, one a pixel: (Gaussian, weight) front to back."""

    def __init__(self, *rows, n):
        self.rows, self.n = rows, n

    def contributions(self, splats, camera, pixels, min_weight=0.0):
        rows = [self.rows[p] for p in pixels.tolist()]
        indptr = torch.tensor([0, *np.cumsum([len(r) for r in rows])])
        ids = torch.tensor([i for r in rows for i, _ in r], dtype=torch.int32)
        weights = torch.tensor([w for r in rows for _, w in r], dtype=torch.float32)
        return Contributions(indptr, ids, weights, pixels, camera.width, camera.height, self.n)


def pick(labels, *rows):
    picture = render_labels(cloud(len(labels)), np.array(labels, np.int32), some_camera(len(rows), 1),
                            Rows(*rows, n=len(labels)))  # fmt: skip
    return picture.ids.ravel().tolist(), [round(w, 6) for w in picture.weight.ravel().tolist()]


def test_what_shows_the_background_or_noise_most_has_id_0():
    nothing, faint = [], [(0, 0.25)]
    noise_most, split = [(2, 0.5), (0, 0.375)], [(0, 0.25), (1, 0.125), (0, 0.25), (2, 0.25)]
    ids, weights = pick([2, 5, -1], nothing, faint, noise_most, split)
    assert ids == [0, 0, 0, 2] and weights == [1.0, 0.75, 0.625, 0.5]  # noise and the rest are one


def test_ties_go_to_the_lower_id_whatever_the_order():
    assert pick([3, 1, -1], [(0, 0.5), (1, 0.5)], [(1, 0.5), (0, 0.5)]) == ([1, 1], [0.5, 0.5])
    assert pick([3, 1, -1], [(0, 0.5)], [(2, 0.5), (0, 0.5)]) == ([0, 0], [0.5, 0.5])


def test_sums_of_weights_are_exact_whatever_their_order():
    tiny = [(i, 2.0**-25) for i in range(2)]
    for row in ([(2, 0.5), *tiny], [*tiny, (2, 0.5)]):
        assert pick([2, 2, 2, 3], [*row, (3, 0.5 + 2.0**-24)])[0] == [2]  # a tie


def test_a_pixel_does_not_hear_of_the_one_before():
    ids, weights = pick([1, 2, -1], [(0, 0.875)], [(1, 0.75)], [(2, 0.75)], [(0, 0.75)])
    assert ids == [1, 2, 0, 1] and weights == [0.875, 0.75, 1.0, 0.75]


def test_label_pictures_of_nothing_and_of_noise_alone(rasterizer):
    splats, camera = cloud(), some_camera()
    for labels in (np.full(60, -1, np.int32), np.zeros(60, np.int32)):
        picture = render_labels(splats, labels, camera, rasterizer)
        assert not picture.ids.any()
        np.testing.assert_allclose(picture.weight, 1, atol=1e-5)
    behind = Camera.look_at((0, -4, 0), (0, -9, 0), width=8, height=6)
    picture = render_labels(splats, np.ones(60, np.int32), behind, rasterizer)
    assert not picture.ids.any() and (picture.weight == 1).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_names_of_labels_do_not_matter(seed):
    splats, camera, g = cloud(30, seed), some_camera(9, 7), np.random.default_rng(seed)
    labels = g.integers(1, 5, 30).astype(np.int32)
    new = np.append(0, g.permutation(4) + 1).astype(np.int32)
    one = render_labels(splats, labels, camera, CpuRasterizer())
    other = render_labels(splats, new[labels], camera, CpuRasterizer())
    np.testing.assert_array_equal(one.weight, other.weight)
    assert ((new[one.ids] == other.ids) | (one.weight <= 0.5)).all()


def test_blended_pictures_equal_the_slow_ones(rasterizer):
    splats, camera = cloud(), some_camera()
    splats = replace(splats, logit_opacities=splats.logit_opacities + 2, log_scales=splats.log_scales + 0.7)
    features = torch.randn(len(splats), 6, generator=torch.Generator().manual_seed(3))
    labels = np.random.default_rng(2).integers(-1, 5, len(splats)).astype(np.int32)
    labels[(labels == 0) | (labels == 3)] = -1  # no Gaussian has 3
    picture = render_blended(splats, features, labels, camera, rasterizer)
    W = reference.contributions(reference.double(splats), reference.double_camera(camera))
    dense, unit = W.dense.detach().numpy(), (features / features.norm(dim=1, keepdim=True)).double().numpy()
    sure, ids = W.clear.numpy(), picture.ids.ravel()
    assert sure.mean() > 0.9 and set(np.unique(ids)) == {0, 1, 2, 4}
    for pixel in np.flatnonzero(sure):
        alpha = dense[pixel].sum()
        if abs(alpha - 0.5) < 1e-3:
            continue
        blended = dense[pixel] @ features.double().numpy()
        likeness = {k: blended @ unit[labels == k].mean(0) for k in (1, 2, 4)}
        likeness = {k: v / np.linalg.norm(blended) / np.linalg.norm(unit[labels == k].mean(0))
                    for k, v in likeness.items()}  # fmt: skip
        best = sorted(likeness, key=lambda k: -likeness[k])
        if alpha < 0.5:
            assert ids[pixel] == 0 and picture.weight.ravel()[pixel] == 0
        elif likeness[best[0]] - likeness[best[1]] > 1e-4:
            assert ids[pixel] == best[0]
            assert picture.weight.ravel()[pixel] == pytest.approx(max(likeness[best[0]], 0), abs=1e-4)


def test_blended_pictures_of_noise_alone_are_empty(rasterizer):
    picture = render_blended(cloud(), torch.ones(60, 3), np.full(60, -1, np.int32), some_camera(), rasterizer)
    assert not picture.ids.any() and not picture.weight.any()


def test_rgb_pictures_are_clamped_and_lie_on_their_background(rasterizer):
    splats, camera = cloud(), some_camera()
    black = render_rgb(splats, camera, rasterizer)
    white = render_rgb(splats, camera, rasterizer, torch.ones(3))
    assert black.dtype == np.float32 and black.shape == (14, 20, 3) and black.min() >= 0 and white.max() <= 1
    left = 1 - rasterizer.render(splats, splats.colors(camera.position), [camera]).alphas[0].cpu().numpy()
    unclamped = (white < 1).all(-1)
    np.testing.assert_allclose((white - black)[unclamped], np.repeat(left[unclamped][:, None], 3, 1), atol=1e-5)


# ---- the table


def five():
    """Five Gaussians on a line, two segments and one noise."""
    means = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 2, 0], [10, 0, 0], [99, 99, 99]])
    rgb = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2], [0.5, 0.5, 0.5]])
    opacities = torch.tensor([0.5, 0.25, 0.25, 0.5, 0.9])
    splats = Splats(means, torch.tensor([[1.0, 0, 0, 0]]).repeat(5, 1), torch.zeros(5, 3), torch.logit(opacities),
                    ((rgb - 0.5) / SH_C0)[:, None])  # fmt: skip
    return Segmentation(splats, np.array([1, 1, 1, 3, -1], np.int32), np.array([1, 0.5, 0.5, 0.75, 0], np.float32))


def test_the_table_by_hand():
    pixels = {"a": np.array([5, 3, 0, 2]), "b": np.array([5, 4, 0, 0]), "c": np.array([10])}
    first, second = describe(five(), pixels)
    assert (first.id, first.gaussians, first.views, first.pixels, first.best_view) == (1, 3, 2, 7, "b")
    assert first.centre == (1, 0, 0)
    np.testing.assert_allclose(first.box_min, (0.02, 0, 0), atol=1e-9)
    np.testing.assert_allclose(first.box_max, (1.98, 1.96, 0), atol=1e-9)  # the 99th of 0, 0, 2 is 1.96
    np.testing.assert_allclose(first.size, (1.96, 1.96, 0), atol=1e-9)
    assert first.color == (191, 64, 0)  # weighted by opacity: 3/4 red, 1/4 green
    assert first.confidence == pytest.approx(2 / 3)
    assert (second.id, second.gaussians, second.views, second.pixels, second.best_view) == (3, 1, 1, 2, "a")
    assert second.centre == second.box_min == second.box_max == (10, 0, 0)
    assert second.color == (0, 0, 255) and second.confidence == 0.75


def test_a_segment_that_no_view_shows_has_no_best_view():
    for pixels in ({}, {"a": np.array([7, 0, 0, 0])}):
        assert [(s.views, s.pixels, s.best_view) for s in describe(five(), pixels)] == [(0, 0, "")] * 2


def test_the_table_comes_back_from_json(tmp_path):
    table = describe(five(), {"a": np.array([5, 3, 0, 2])})
    save_table(tmp_path, table, {"views": 1})
    assert load_table(tmp_path) == table
    value = json.loads((tmp_path / "segments.json").read_text())
    assert value["views"] == 1 and [s["id"] for s in value["segments"]] == [1, 3]
    assert value["segments"][0]["size"] == list(table[0].size)


@pytest.mark.parametrize("text", ["{}", "[]", '{"segments": [{"id": 1}]}', '{"segments": [3]}', '{"segments": 3}', "{"])
def test_a_broken_table_is_said(tmp_path, text):
    (tmp_path / "segments.json").write_text(text)
    with pytest.raises(InputError, match=r"segments\.json"):
        load_table(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gaussians", "7"), ("confidence", None), ("centre", [1, 2]), ("color", [1, 2, 3.5]), ("box_max", ["a", 1, 2]),
     ("best_view", 3), ("children", [None]), ("level", float("nan"))],
)  # fmt: skip
def test_a_table_with_values_of_other_kinds_is_said(tmp_path, name, value):
    save_table(tmp_path, describe(five(), {}), {})
    table = json.loads((tmp_path / "segments.json").read_text())
    table["segments"][1][name] = value
    (tmp_path / "segments.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"segments\.json is not a table of segments; run `cgc render"):
        load_table(tmp_path)


# ---- segmentations and their files


def test_segmentations_give_their_objects():
    segmentation = five()
    assert segmentation.ids.tolist() == [1, 3]
    assert segmentation[1].splats().means[:, 0].tolist() == [0, 1, 2] and len(segmentation[3].splats()) == 1
    for absent in (2, 4, 0):
        with pytest.raises(InputError, match=f"there is no segment {absent}: the ids that hold Gaussians are 1, 3$"):
            segmentation[absent].splats()
    with pytest.raises(InputError, match="4 labels and 5 confidences came for 5 Gaussians"):
        replace(segmentation, labels=segmentation.labels[:4])
    with pytest.raises(InputError, match="5 labels and 2 confidences"):
        replace(segmentation, confidences=segmentation.confidences[:2])


def test_labels_come_back(tmp_path):
    labels, confidences = np.array([2, -1, 1], np.int32), np.array([0.5, 0, 1], np.float32)
    save_labels(tmp_path, labels, confidences, {"parent": np.array([7, 8])})
    got = load_labels(tmp_path)
    assert got[0].dtype == np.int32 and got[1].dtype == np.float32
    np.testing.assert_array_equal(got[0], labels)
    np.testing.assert_array_equal(got[1], confidences)
    with np.load(tmp_path / "segments.npz") as data:
        assert data["tree_parent"].tolist() == [7, 8]


def test_broken_labels_are_said(tmp_path):
    with pytest.raises(InputError, match="is not clustered yet; run `cgc cluster"):
        load_labels(tmp_path)
    path = tmp_path / "segments.npz"
    save_labels(tmp_path, np.arange(500, dtype=np.int32), np.zeros(500, np.float32), {})
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[80:120] = bytes(40)
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    other = (tmp_path / "other.npz").read_bytes()
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    pickled = (tmp_path / "objects.npy").read_bytes()
    for data in (b"", b"text", whole[:100], whole[:-30], bytes(middle), other, pickled):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"segments\.npz is broken .*; run `cgc cluster"):
            load_labels(tmp_path)
    labels = np.arange(1, 4, dtype=np.int32)
    hierarchy = Hierarchy.flat(labels)
    object.__setattr__(hierarchy, "base", 2.0)
    save_labels(tmp_path, labels, np.zeros(3, np.float32), {}, hierarchy)
    with pytest.raises(InputError, match=r"segments\.npz: the hierarchy is broken: its base .* again \(`cgc cluster"):
        load_hierarchy(tmp_path)


def test_exported_segments_reload_bit_for_bit_and_objects_make_up_the_whole(tmp_path):
    splats, labels = clumps()
    labels = labels.copy()
    labels[::50] = -1
    segmentation = Segmentation(splats, labels, np.ones(len(splats), np.float32))
    paths = export_segments(tmp_path, segmentation, origin=(5e5, 4e6, 120.5))
    assert all(origin_of(read_header(path)) == (5e5, 4e6, 120.5) for path in paths)
    assert [p.name for p in paths] == [f"{i:04d}.ply" for i in range(1, FLOOR + 1)]
    found = np.full((len(splats), 3), np.nan, np.float32)
    for i, path in enumerate(paths, 1):
        part, body, own = read_ply(path), segmentation[i].splats(clean=True), labels == i
        for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
            assert torch.equal(getattr(part, name), getattr(body, name))
        assert not part.extras
        found[own] = segmentation[i].splats().means.numpy()
    assert (np.isnan(found).all(1) == (labels == -1)).all()  # segments and noise are all there is
    np.testing.assert_array_equal(found[labels > 0], splats.means.numpy()[labels > 0])


def test_a_clean_object_is_its_body_without_smears_floaters_and_what_is_others():
    g = torch.Generator().manual_seed(3)
    n = 60
    means = torch.rand(n, 3, generator=g)
    means[0] = 50.0
    log_scales = torch.full((n, 3), -3.0)
    log_scales[1, 2] = 1.0
    splats = Splats(
        means, torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1), log_scales, torch.zeros(n), torch.zeros(n, 1, 3)
    )
    confidences = np.full(n, 0.9, np.float32)
    confidences[2] = 0.3
    kept = is_clean(splats, confidences)
    assert kept[3:].all() and not kept[:3].any()
    segmentation = Segmentation(splats, np.ones(n, np.int32), confidences)
    assert len(segmentation[1].splats()) == n
    assert torch.equal(segmentation[1].splats(clean=True).means, means[3:])
    for few in (1, 3, 9):
        small = splats.select(torch.arange(1, 1 + few))
        assert is_clean(small, np.zeros(few)).all()  # rules that leave nothing are no rules
        assert is_clean(small, np.ones(few)).any()


def test_boxes_are_of_bodies_at_every_level_and_of_all_where_there_is_no_body():
    """Two objects of a whole, one of parts, a tenth of each far from it; of a third no Gaussian is sure."""
    g, n, sizes = torch.Generator().manual_seed(5), 100, (100, 100, 5)
    owner = np.repeat([1, 2, 3], sizes)
    means = torch.rand(len(owner), 3, generator=g) + torch.from_numpy(3.0 * owner[:, None])
    floaters = np.flatnonzero(np.arange(len(owner)) % 10 == 0)[:20]
    means[floaters] += 500 * torch.rand(20, 3, generator=g)
    rotations = torch.tensor([[1.0, 0, 0, 0]]).repeat(len(owner), 1)
    splats = Splats(means, rotations, torch.full((len(owner), 3), -3.0), torch.zeros(len(owner)),
                    torch.zeros(len(owner), 1, 3))  # fmt: skip
    leaves = np.where(owner == 1, np.where(np.arange(len(owner)) < n // 2, 5, 6), owner)
    leaves[0] = 7  # a part that only floats
    tree = Hierarchy(leaves.astype(np.int32), np.array([0, 4, 4, 0, 0, 1, 1, 1], np.int32),
                     np.array([-1, 0.6, 1, 1, 0.2, 1, 1, 1], np.float32), 0.5)  # fmt: skip
    segmentation = Segmentation(splats, tree.at(), np.where(owner == 3, 0.2, 0.9).astype(np.float32), tree)
    found = {s.id: s for s in [*describe(segmentation, {}), *describe_nodes(segmentation)]}
    assert sorted(found) == list(range(1, 8)) and found[1].gaussians == n
    for node, low, high in ((1, 3, 4), (2, 6, 7), (3, 9, 10), (4, 3, 7), (5, 3, 4), (6, 3, 4)):
        assert low <= min(found[node].box_min) < low + 0.5 and high - 0.5 < max(found[node].box_max) <= high
        for level in (None, 0, 1):
            box = segmentation.at_level(level)[node].box
            assert box.corners.min() > low - 1.5 and box.corners.max() < high + 1.5
    np.testing.assert_allclose(found[7].box_min, means[0])
    np.testing.assert_allclose(segmentation[7].box.centre, means[0])
    whole = next(s for s in describe(segmentation.at_level(0), {}) if s.id == 4)
    assert (whole.box_min, whole.box_max) == (found[4].box_min, found[4].box_max)


def test_exporting_again_removes_what_is_gone_and_nothing_else(tmp_path):
    splats, labels = clumps()
    ones = np.ones(len(splats), np.float32)
    export_segments(tmp_path, Segmentation(splats, labels, ones))
    for name in ("notes.txt", "mine.ply", "12345.ply", "0009_edited.ply"):
        (tmp_path / "segments" / name).write_text("x")
    fewer = np.where(labels > 2, -1, labels)
    export_segments(tmp_path, Segmentation(splats, fewer, ones))
    left = {p.name for p in (tmp_path / "segments").iterdir()}
    assert left == {"0001.ply", "0002.ply", "notes.txt", "mine.ply", "0009_edited.ply"}
    assert export_segments(tmp_path, Segmentation(splats, np.full(len(splats), -1, np.int32), ones)) == []
    assert {p.name for p in (tmp_path / "segments").iterdir()} == {"notes.txt", "mine.ply", "0009_edited.ply"}


def test_the_tiny_scene_shows_all_its_clumps():
    """What the other tests stand on: every clump is seen, and apart, in most views."""
    splats, labels = clumps()
    seen = [np.bincount(render_labels(splats, labels, c, CpuRasterizer()).ids.ravel(), minlength=8) for c in cameras()]
    assert (np.array(seen)[:, 1 : CLUMPS + 1] > 15).mean() > 0.9
