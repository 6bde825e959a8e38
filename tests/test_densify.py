"""Adding and removing Gaussians: against gsplat's own code, and the relocation of 3DGS-MCMC against its integral."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gsplat.strategy import DefaultStrategy, MCMCStrategy, ops
from test_appearance import TINY, KillAt, Killed, assert_same, make_scene, make_splats, run
from torch import Tensor

from cgc.appearance.arrange import arrange
from cgc.appearance.capture import Densification
from cgc.appearance.densify import Densifier, Halver, gradients_seen, mix
from cgc.appearance.mcmc import MOST_COPIES, MarkovChain, _draw, relocated
from cgc.appearance.shards import Shards
from cgc.geometry import covariances
from cgc.rasterize.cpu import CpuRasterizer
from cgc.scene.types import Camera
from cgc.settings import TrainSettings
from cgc.splats.split import OFFSET, SHRINK
from cgc.splats.types import Splats

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    return make_scene()


def trained(n: int = 40):
    """Parameters that Adam has moved once, long ones and short ones, with what it remembers."""
    splats, g = make_splats(n, 1), torch.Generator().manual_seed(5)
    tensors = {
        "means": splats.means, "quats": 3 * splats.quats,
        "scales": splats.log_scales - 4 * torch.rand(n, 1, generator=g),
        "opacities": torch.randn(n, generator=g) - 3, "sh_dc": splats.sh[:, 0], "sh_rest": splats.sh[:, 1:],
    }  # fmt: skip
    params = {k: torch.nn.Parameter(v.clone()) for k, v in tensors.items()}
    optimizers = {k: torch.optim.Adam([p], fused=True) for k, p in params.items()}
    for p, o in zip(params.values(), optimizers.values()):
        p.grad = torch.randn(p.shape, generator=g)
        o.step()
    return params, optimizers


def everything(params, optimizers) -> dict[str, Tensor]:
    """Every number of parameters and optimisers."""
    state = {f"{k} {n}": v for k, o in optimizers.items() for n, v in o.state[params[k]].items()}
    return {k: p.detach().clone() for k, p in params.items()} | {k: v.clone() for k, v in state.items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- the default strategy ---


def test_gradients_are_in_half_images_of_one_photo_and_camera() -> None:
    along = torch.tensor([[1.0, 0], [0, 1], [0, 1]]).expand(2, 3, 2)  # of two cameras
    render = SimpleNamespace(absgrad=along, means2d=torch.zeros(2, 3, 2), radii=torch.ones(2, 3, 2))
    render.radii[:, 2, 0] = 0
    norms, seen = gradients_seen(render, 8, 6, photos=3)
    assert norms.tolist() == [[4 * 2 * 3, 3 * 2 * 3, 0]] * 2 and seen.tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("seed", [0, 1])
def test_refining_is_gsplats_bit_for_bit(seed: int) -> None:
    mine, theirs = trained(), trained()
    densifier = Densifier(Shards(40, CPU), extent=2.0, prune_scale=0.0, seed=seed)
    gradients = torch.rand(40, generator=torch.Generator().manual_seed(seed))
    densifier.statistics = {"grad2d": 3 * gradients, "count": torch.full((40,), 3.0)}
    densifier.refine(*mine, 10, Densification(grow_grad2d=0.6, prune_opacity=0.02), 1000)
    strategy = DefaultStrategy(grow_grad2d=0.6, prune_opa=0.02, refine_stop_iter=1 << 60, reset_every=1 << 60)
    state = {"grad2d": 3 * gradients, "count": torch.full((40,), 3.0), "scene_scale": 2.0}
    with torch.random.fork_rng([]):
        torch.manual_seed(mix(seed, 10))
        cloned, split = strategy._grow_gs(*theirs, state, 10)
    pruned = strategy._prune_gs(*theirs, state, 10)
    assert cloned > 3 and split > 3 and pruned > 3
    assert_equal(everything(*mine), everything(*theirs))
    assert len(densifier.statistics["count"]) == len(mine[0]["means"]) and not densifier.statistics["count"].any()
    densifier.reset_opacities(*mine, 0.02)
    ops.reset_opa(*theirs, state, 0.04)
    assert_equal(everything(*mine), everything(*theirs))


# --- halves ---


def test_halves_stand_for_what_was_cut_and_the_rest_stays() -> None:
    params, optimizers = trained()
    before = everything(params, optimizers)
    densifier = Halver(Shards(40, CPU), extent=2.0, prune_scale=0.0, seed=0)
    gradients = torch.rand(40, generator=torch.Generator().manual_seed(0))
    densifier.statistics = {"grad2d": 3 * gradients, "count": torch.full((40,), 3.0)}
    densifier.refine(params, optimizers, 10, Densification(grow_grad2d=0.6, prune_opacity=0.0), 50)
    largest = gradients.topk(10).indices.sort().values
    assert len(params["means"]) == 50 and float(gradients[largest].min()) > 0.6
    rest = torch.ones(40, dtype=torch.bool)
    rest[largest] = False
    source = torch.cat([rest.nonzero()[:, 0], largest, largest])
    for name, value in everything(params, optimizers).items():
        old = before[name] if before[name].ndim == 0 else before[name][source]
        if name in ("means", "scales", "opacities"):
            assert torch.equal(value[:30], old[:30]), name
        elif "exp_avg" in name:
            assert torch.equal(value[:30], old[:30]) and not value[30:].any(), name
        else:
            assert torch.equal(value, old), name
    one, other = params["means"].detach()[30:40], params["means"].detach()[40:]
    torch.testing.assert_close((one + other) / 2, before["means"][largest])
    longest = before["scales"][largest].exp().amax(1)
    torch.testing.assert_close((one - other).norm(dim=1), 2 * OFFSET * longest)
    volumes = params["scales"].detach()[30:].sum(1).exp().reshape(2, -1)
    torch.testing.assert_close(volumes, SHRINK * before["scales"][largest].sum(1).exp().expand(2, -1))


def test_cutting_changes_pictures_less_than_cloning_and_splitting() -> None:
    def picture(params) -> Tensor:
        geometry = (params[k].detach() for k in ("means", "quats", "scales", "opacities"))
        splats = Splats(*geometry, params["sh_dc"].detach()[:, None])
        camera = Camera.look_at((0, 0, -6), (0, 0, 0), width=64, height=48)
        return CpuRasterizer().render(splats, splats.sh[:, 0], [camera]).values

    changes = {}
    for kind in (Densifier, Halver):
        params, optimizers = trained()
        before = picture(params)
        densifier = kind(Shards(40, CPU), extent=2.0, prune_scale=0.0, seed=0)
        densifier.statistics = {"grad2d": torch.ones(40), "count": torch.ones(40)}
        densifier.refine(params, optimizers, 10, Densification(grow_grad2d=0.5, prune_opacity=0.0), 1000)
        assert len(params["means"]) == 80
        changes[kind] = float((picture(params) - before).square().mean())
    assert changes[Halver] < 0.1 * changes[Densifier]


def test_nothing_is_cut_past_the_limit_or_under_the_threshold() -> None:
    for limit, threshold in ((40, 0.5), (1000, 2.0)):
        params, optimizers = trained()
        before = everything(params, optimizers)
        densifier = Halver(Shards(40, CPU), extent=2.0, prune_scale=0.0, seed=0)
        densifier.statistics = {"grad2d": torch.ones(40), "count": torch.ones(40)}
        densifier.refine(params, optimizers, 10, Densification(grow_grad2d=threshold, prune_opacity=0.0), limit)
        assert_equal(everything(params, optimizers), before)


def test_a_killed_training_with_halves_resumes_to_the_same_bits(tiny, tmp_path) -> None:
    settings = replace(TINY, grow_grad2d=1e-6, checkpoint_every=15)
    assert settings.strategy == "split"
    whole, _ = run(tiny, settings, capture=KillAt(None))
    with pytest.raises(Killed):
        run(tiny, settings, capture=KillAt(40), checkpoint_dir=tmp_path)
    rest, stats = run(tiny, settings, capture=KillAt(None), checkpoint_dir=tmp_path)
    assert stats.resumed_from == 30 and len(whole) > 100
    assert_same(whole, rest)


def test_what_fails_for_want_of_memory_leaves_all_as_it_was(monkeypatch) -> None:
    params, optimizers = trained()
    before, made, new = everything(params, optimizers), [], torch.nn.Parameter

    def full(*arguments, **options):
        made.append(1)
        if len(made) == 4:
            raise torch.cuda.OutOfMemoryError
        return new(*arguments, **options)

    monkeypatch.setattr(torch.nn, "Parameter", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        arrange(params, optimizers, torch.arange(30), torch.zeros(30, dtype=torch.bool), {})
    monkeypatch.undo()
    assert_equal(everything(params, optimizers), before)


def test_the_brightest_are_kept() -> None:
    params, optimizers = trained()
    before = params["opacities"].detach().clone()
    densifier = Densifier(Shards(40, CPU), extent=2.0, prune_scale=0.0, seed=0)
    densifier.statistics = {"grad2d": torch.arange(40.0), "count": torch.ones(40)}
    densifier.keep_brightest(params, optimizers, 12)
    kept = densifier.statistics["grad2d"].long()
    assert kept.tolist() == sorted(before.topk(12).indices.tolist())
    assert torch.equal(params["opacities"], before[kept])
    densifier.keep_brightest(params, optimizers, 12)
    assert len(params["means"]) == 12


# --- relocation ---


@pytest.mark.parametrize("copies", [1, 2, 3, 10, MOST_COPIES])
@pytest.mark.parametrize("opacity", [0.006, 0.3, 0.9, 0.9999])
def test_copies_together_take_as_much_light_as_what_they_were(copies: int, opacity: float) -> None:
    o, s = (
        v.double() for v in relocated(torch.tensor([opacity]), torch.tensor([[0.7, 2.0, 0.01]]), torch.tensor([copies]))
    )
    assert 1 - (1 - float(o)) ** copies == pytest.approx(opacity, rel=1e-4)
    x = np.linspace(-60, 60, 400_001)
    together = 1 - (1 - float(o) * np.exp(-0.5 * (x / float(s[0, 1])) ** 2)) ** copies
    assert np.trapezoid(together, x) == pytest.approx(opacity * 2.0 * math.sqrt(2 * math.pi), rel=1e-4)
    torch.testing.assert_close(s[0] / s[0, 1], torch.tensor([0.35, 1.0, 0.005]).double(), rtol=1e-5, atol=0)


def test_relocation_is_the_papers_equation() -> None:
    for o in (0.02, 0.5, 0.97):
        for n in (1, 2, 7, 20):
            new = 1 - (1 - o) ** (1 / n)
            total = sum(
                math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new ** (k + 1)
                for i in range(1, n + 1)
                for k in range(i)
            )
            mine = relocated(torch.tensor([o], dtype=torch.float64), torch.ones(1, 3).double(), torch.tensor([n]))
            assert float(mine[0]) == pytest.approx(new, rel=1e-9)
            assert mine[1].tolist() == [pytest.approx([o / total] * 3, rel=1e-9)]


def chain(n: int = 40, **settings) -> MarkovChain:
    return MarkovChain(Shards(n, CPU), TrainSettings(strategy="mcmc", **settings), extent=2.0)


def test_the_dead_move_to_the_living_and_all_share() -> None:
    params, optimizers = trained()
    with torch.no_grad():
        params["opacities"][::4] = -9.0
    before, dead = everything(params, optimizers), torch.arange(40) % 4 == 0
    chain().refine(params, optimizers, 10, Densification(0.0, 0.005, grow=False), 1000)
    assert len(params["means"]) == 40 and float(params["opacities"].detach().min()) > -6
    source = torch.cdist(params["means"].detach(), before["means"]).argmin(1)
    alive = (~dead).nonzero()[:, 0]
    assert torch.equal(source[alive], alive) and not dead[source].any()
    copies = torch.bincount(source, minlength=40)[source]
    assert (copies > 1).sum() >= 11
    o, s = relocated(before["opacities"].sigmoid()[source], before["scales"].exp()[source], copies)
    torch.testing.assert_close(params["opacities"].detach(), o.logit())
    torch.testing.assert_close(params["scales"].detach(), s.log())
    for name, optimizer in optimizers.items():
        state = optimizer.state[params[name]]
        assert not state["exp_avg"][copies > 1].any()
        assert torch.equal(state["exp_avg"][copies == 1], before[f"{name} exp_avg"][copies == 1])
    assert torch.equal(params["sh_rest"].detach(), before["sh_rest"][source])


def test_a_share_is_added_up_to_the_limit_where_light_is() -> None:
    params, optimizers = trained()
    with torch.no_grad():
        params["opacities"][:] = -4.0
        params["opacities"][7] = 6.0
    before = everything(params, optimizers)
    for limit, expected in ((1000, 44), (42, 42), (30, 40)):
        p, o = trained()
        p["opacities"].data = before["opacities"].clone()
        chain(mcmc_growth=0.1).refine(p, o, 10, Densification(0.0, 0.005), limit)
        assert len(p["means"]) == expected
        assert all(len(o[k].state[p[k]]["exp_avg"]) == expected for k in p)
        assert not any(o[k].state[p[k]]["exp_avg"][40:].any() for k in p)
    again = trained()
    again[0]["opacities"].data = before["opacities"].clone()
    chain(mcmc_growth=0.1).refine(*again, 10, Densification(0.0, 0.005), 30)
    assert_equal(everything(*again), everything(p, o))
    drawn = _draw(before["opacities"].sigmoid(), 2000)
    share = float(before["opacities"].sigmoid()[7] / before["opacities"].sigmoid().sum())
    assert abs(float((drawn == 7).float().mean()) - share) < 5 * math.sqrt(share * (1 - share) / 2000)


def test_more_weights_than_torch_draws_from(monkeypatch) -> None:
    monkeypatch.setattr("cgc.appearance.mcmc.MOST_WEIGHTS", 2)
    torch.manual_seed(0)
    drawn = torch.bincount(_draw(torch.tensor([0.0, 1.0, 0.0, 3.0]), 4000), minlength=4)
    assert drawn[0] == drawn[2] == 0 and abs(int(drawn[3]) - 3000) < 150


def test_noise_has_the_covariance_of_gsplats_and_leaves_the_opaque_alone() -> None:
    params, _ = trained(20_000)
    with torch.no_grad():
        for name in ("quats", "scales"):
            params[name][:] = params[name][0].clone()
        params["scales"][:, 0] += 1.0
        params["opacities"][:10_000], params["opacities"][10_000:] = -9.0, 0.0
    before = params["means"].detach().clone()
    chain(20_000, mcmc_noise=1e3).after_step(params, 3, rate=1e-2)
    moved = (params["means"].detach() - before)[:10_000]
    covariance = covariances(params["quats"][0].detach(), params["scales"][0].detach().exp())
    faint = 1 / (1 + math.exp(-100 * ((1 - torch.tensor(-9.0).sigmoid()) - 0.995)))  # as gsplat writes it
    expected = (10 * faint) ** 2 * covariance @ covariance
    torch.testing.assert_close(moved.T.cov(), expected, rtol=0.06, atol=0.03 * float(expected.max()))
    assert torch.equal(params["means"][10_000:], before[10_000:])


def test_weights_of_opacities_and_lengths_have_the_gradients_of_their_means() -> None:
    params, _ = trained()
    for p in params.values():
        p.grad = None
    chain(mcmc_opacity=0.3, mcmc_scale=0.7).regularise(params)
    o, s = (params[k].detach().clone().requires_grad_() for k in ("opacities", "scales"))
    (0.3 * o.sigmoid().mean() + 0.7 * s.exp().mean() / 2.0).backward()
    torch.testing.assert_close(params["opacities"].grad, o.grad)
    torch.testing.assert_close(params["scales"].grad, s.grad)
    assert params["means"].grad is None


def test_defaults_are_gsplats() -> None:
    theirs, mine = MCMCStrategy(), TrainSettings()
    assert (theirs.noise_lr, theirs.min_opacity) == (mine.mcmc_noise, mine.prune_opacity)


MCMC = replace(TINY, strategy="mcmc", max_gaussians=90, mcmc_growth=0.2, reset_every=7)


def test_a_chain_trains_within_the_cap(tiny) -> None:
    _, early = run(tiny, replace(MCMC, steps=10))
    splats, late = run(tiny, replace(MCMC, steps=300))
    assert late.loss < 0.6 * early.loss and late.psnr_train > early.psnr_train + 3
    assert 85 < len(splats) == late.gaussians <= 90


def test_a_killed_chain_resumes_to_the_same_bits(tiny, tmp_path) -> None:
    settings = replace(MCMC, checkpoint_every=15)
    whole, _ = run(tiny, settings, capture=KillAt(None))
    with pytest.raises(Killed):
        run(tiny, settings, capture=KillAt(40), checkpoint_dir=tmp_path)
    rest, stats = run(tiny, settings, capture=KillAt(None), checkpoint_dir=tmp_path)
    assert stats.resumed_from == 30
    assert_same(whole, rest)
