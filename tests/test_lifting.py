"""Closed-form lifting: against dense weights, and the law that exact maps give back exact labels."""

import numpy as np
import pytest
import torch
from tiny import cameras, clumps

from cgc.clustering.cluster import cluster_ids
from cgc.errors import InputError
from cgc.features.lifting import vote_ids
from cgc.rasterize.cpu import CpuRasterizer
from cgc.segmentation.labels import render_labels


def test_votes_are_sums_of_rendered_weights():
    splats, _ = clumps()
    shots, rasterizer = cameras()[:2], CpuRasterizer()
    g = np.random.default_rng(0)
    maps = {i: g.choice([0, 5, 70_000], (c.height, c.width)) for i, c in enumerate(shots)}
    votes, kinds = vote_ids(splats, shots, maps, rasterizer, quiet=True)
    assert kinds.tolist() == [0, 5, 70_000]
    expected = np.zeros((len(splats), 3))
    for i, camera in enumerate(shots):
        w = rasterizer.contributions(splats, camera)
        one_hot = torch.from_numpy((maps[i].ravel()[:, None] == kinds).astype(np.float32))
        expected += w.transpose_matmul(one_hot).numpy()
    np.testing.assert_allclose(votes.toarray(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 3])
def test_votes_of_large_views_are_made_in_parts(stride, monkeypatch):
    splats, _ = clumps()
    shots, g = cameras()[:2], np.random.default_rng(0)
    maps = {i: g.integers(0, 3, (c.height, c.width)) for i, c in enumerate(shots)}
    whole, kinds = vote_ids(splats, shots, maps, CpuRasterizer(), 0.01, stride=stride, quiet=True)
    monkeypatch.setattr("cgc.rasterize.base.PART", 100)
    asked, contributions = [], CpuRasterizer.contributions
    monkeypatch.setattr(
        CpuRasterizer, "contributions", lambda self, *a, **k: asked.append(len(a[2])) or contributions(self, *a, **k)
    )
    for serve in (True, False):
        monkeypatch.setattr("cgc.kernels.serve", lambda device, serve=serve: serve)
        votes, names = vote_ids(splats, shots, maps, CpuRasterizer(), 0.01, stride=stride, quiet=True)
        assert np.array_equal(names, kinds) and votes.nnz == whole.nnz
        np.testing.assert_allclose(votes.toarray(), whole.toarray(), rtol=1e-5, atol=1e-6)
    assert max(asked) == 100 and sum(asked) == 2 * sum(-(-m.size // stride) for m in maps.values())


def test_exact_maps_give_back_the_labels_under_their_own_ids():
    splats, labels = clumps()
    shots, rasterizer = cameras(), CpuRasterizer()
    own_ids = np.array([0, 11, 12, 300, 14, 15, 16, 40_000], np.int32)
    maps = {i: own_ids[render_labels(splats, labels, c, rasterizer).ids] for i, c in enumerate(shots)}
    found = cluster_ids(*vote_ids(splats, shots, maps, rasterizer, quiet=True))
    voted, shares = found.labels, found.confidences
    seen = voted > 0
    assert seen.mean() > 0.8 and (voted[seen] == own_ids[labels[seen]]).mean() > 0.97
    assert shares[~seen].max(initial=0) == 0 and shares.min() >= 0 and shares.max() <= 1 + 1e-6


def test_maps_without_an_id_are_refused():
    splats, _ = clumps()
    empty = {0: np.zeros((36, 48), np.int32)}
    with pytest.raises(InputError, match="no id"):
        cluster_ids(*vote_ids(splats, cameras(), empty, CpuRasterizer(), quiet=True))
