"""The benchmark tools: the peers blend as the slow reference does, and tables go where they belong."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference
import torch

from cgc.errors import InputError
from cgc.scene.types import Camera
from cgc.segmentation.labels import render_labels
from cgc.segmentation.segments import load_labels
from cgc.splats.types import Splats

TOOLS = Path(__file__).parents[1] / "tools"


def load(name: str) -> ModuleType:
    """Import a script of tools/, and keep it so that another finds it."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peers = load("rasterize_peers")
benchmark = load("benchmark_rasterize")
timing = load("time_command")
load("benchmark_features"), load("learn_rasterised")  # which the next one imports
gpu = load("benchmark_gpu")
on_cpu = load("build_gsplat_on_cpu")


def make_splats(n: int, generator: torch.Generator) -> Splats:
    """Gaussians of all shapes, some behind the camera."""
    xy, z = 0.8 * torch.randn(n, 2, generator=generator), 1.5 + 3.5 * torch.rand(n, 1, generator=generator)
    behind = torch.rand(n, 1, generator=generator) < 0.1
    return Splats(
        means=torch.cat([xy, torch.where(behind, -z, z)], 1),
        quats=2 * torch.randn(n, 4, generator=generator),
        log_scales=math.log(0.1) + 0.8 * torch.randn(n, 3, generator=generator),
        logit_opacities=1.0 + 2 * torch.randn(n, generator=generator),
        sh=torch.zeros(n, 1, 3),
    )


def make_camera(width: int, height: int) -> Camera:
    """A camera at the origin that looks along +z; what `make_splats` gives is in its upper left."""
    return Camera(torch.eye(4), torch.tensor([[30.0, 0, 20], [0, 28, 16], [0, 0, 1]]), width, height)


@pytest.mark.parametrize(
    "peer",
    [peers.TorchTiles(entries=2048), peers.TorchTiles(again=False), peers.GsplatReference(rows=2)],
    ids=["tiles", "tiles-whole-graph", "gsplat"],
)
def test_peers_match_the_reference(peer: Any, generator: torch.Generator) -> None:
    camera = reference.double_camera(make_camera(43, 101))  # the lowest rows of tiles are empty
    splats, values = make_splats(90, generator), torch.randn(90, 5, generator=generator).double()
    v_image = torch.randn(101, 43, 5, generator=generator).double()

    theirs, their_values = reference.double(splats), values.clone().requires_grad_()
    expected, _ = reference.render(theirs, their_values, [camera])
    assert expected.alphas[0, 64:].max() == 0 < expected.alphas[0, :16].max()
    expected.values[0].backward(v_image)

    ours, our_values = peers.leaves(splats, torch.float64), values.clone().requires_grad_()
    image = peer.forward_backward(ours, our_values, camera, v_image)
    torch.testing.assert_close(image, expected.values[0].detach(), atol=1e-10, rtol=0)
    for name in peers.GEOMETRY:
        want = getattr(theirs, name).grad
        torch.testing.assert_close(getattr(ours, name).grad, want, atol=1e-10 * float(want.abs().max()), rtol=0)
    torch.testing.assert_close(our_values.grad, their_values.grad, atol=1e-10, rtol=0)


def test_clear_pixels_are_those_of_the_reference(generator: torch.Generator) -> None:
    camera = make_camera(43, 37)
    splats = peers.leaves(make_splats(90, generator), torch.float64)
    *_, clear = reference.contributions(splats, reference.double_camera(camera), margin=1e-3)
    assert 3 < (~clear).sum() < 100
    assert torch.equal(peers.clear_pixels(splats, camera, margin=1e-3).flatten(), clear)


def test_part_replaces_what_is_between_the_markers() -> None:
    before = "# Title\n\n## The rasteriser\n\nold text\n\n## Next\n\nkept\n"
    first = benchmark.with_part(before, "new")
    assert "old text" not in first and first.startswith("# Title\n\n## The rasteriser\n")
    assert first.endswith(f"{benchmark.BEGIN}\nnew\n{benchmark.END}\n\n## Next\n\nkept\n")
    assert benchmark.with_part(first, "newer") == first.replace("\nnew\n", "\nnewer\n")
    assert benchmark.with_part("## The rasteriser\n\nlast", "new").endswith(f"new\n{benchmark.END}\n")
    with pytest.raises(InputError, match="neither"):
        benchmark.with_part("# Title\n", "new")


def test_fixed_scene_is_read_and_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = {"means": 3, "quats": 4, "scales": 3, "rgb": 3, "feat": 16}
    arrays: dict[str, Any] = {f"7_{name}": generator.random((7, d)).astype(np.float32) for name, d in sizes.items()}
    arrays |= {"7_opac": generator.random(7), "viewmats": np.eye(4)[None], "K_80x60": np.eye(3)}
    np.savez(tmp_path / "scene.npz", **arrays)
    stage = benchmark.read_scene(tmp_path / "scene.npz", 0, 0)[7]
    assert stage.camera.width == 80 and stage.values.shape == (7, benchmark.MOST_CHANNELS)
    np.testing.assert_allclose(stage.splats.scales.numpy(), arrays["7_scales"], rtol=1e-5)
    np.testing.assert_allclose(stage.splats.opacities.numpy(), arrays["7_opac"], rtol=1e-5)

    del arrays["7_quats"]
    np.savez(tmp_path / "broken.npz", **arrays)
    (tmp_path / "text.npz").write_text("no array")
    for name, view in (("broken.npz", 0), ("text.npz", 0), ("none.npz", 0), ("scene.npz", 1)):
        with pytest.raises(InputError, match="no scene to measure"):
            benchmark.read_scene(tmp_path / name, view, 0)


def test_busy_share_counts_what_overlaps_once() -> None:
    spans = [(0.0, 1e6), (0.5e6, 1.5e6), (3e6, 3.5e6), (3.1e6, 3.2e6)]
    assert gpu.busy_share(spans, 4.0) == pytest.approx(0.5)
    assert gpu.busy_share([], 4.0) == 0


def test_gpu_benchmark_measures_every_stage_on_the_cpu(tmp_path: Path) -> None:
    document = tmp_path / "numbers.md"
    document.write_text(f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n")
    gpu.main(
        gpu.Benchmark(
            gaussians=(300,), channels=(3,), features=2000, views=9, width=64, steps=30, repeats=1, device="cpu",
            trace=tmp_path / "trace.json", write=document,
        )
    )  # fmt: skip
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    for stage in ("neighbours", "learning", "clustering and propagation", "an id map of 800 x 600"):
        assert f"| {stage} |" in text
    assert float(text.split("Things mIoU ")[1].split(",")[0]) > 0.5  # the cells of the grid are found
    assert (tmp_path / "trace.json").stat().st_size > 1000


@pytest.mark.parametrize("method", ["features", "graph"])
def test_flawed_masks_are_made_of_training_views_and_segmented(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    flaws = load("benchmark_flaws")
    work = flaws.Workspace(flaws.open_run(tiny_run), quiet=True)
    exact = flaws.Flaws(missing=0, split=0, pair_merged=0, shake=0, grow=0, least=0)
    masks = flaws.flawed(work, flaws.Kind(exact), seed=0)
    fewer = flaws.flawed(work, flaws.Kind(exact, step=3), seed=0)
    assert sorted(masks) == work.train_views and sorted(fewer) == work.train_views[::3]
    spoilt = flaws.flawed(work, flaws.Kind(flaws.Flaws(missing=0.5, least=0)), seed=0)
    assert all((spoilt[i] > 0).sum() < (masks[i] > 0).sum() for i in masks)
    found = flaws.segment(work, masks, method)
    case = found, flaws.score(work, found.labels)
    cells = flaws.row("exact", [case, case]).split(" | ")
    things = float(cells[1].split()[0])
    assert found.n_segments == 7 and cells[0] == "| exact" and things > 0.7
    assert cells[1] == f"{things:.3f} ({things:.3f} to {things:.3f})" and cells[3] == "7"


def test_things_are_cut_into_the_same_parts_in_every_view(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    flaws = load("benchmark_flaws")
    work = flaws.Workspace(flaws.open_run(tiny_run), quiet=True)
    assert work.truth is not None
    means, labels = work.splats.means.numpy(), load_labels(tiny_run)[0]
    for view, ids in zip(work.test_views[:2], work.truth.maps):
        thing = int(np.bincount(ids[~np.isin(ids, [0, *work.truth.stuff_ids])]).argmax())
        camera = work.scene.views[view].camera
        shown = render_labels(work.splats, labels, camera, work.rasterizer).ids
        own = means[labels == np.bincount(shown[ids == thing]).argmax()]
        axis = camera.viewmat[0, :3].numpy()  # the picture's x
        halves = own[(own - own.mean(0)) @ axis < 0].mean(0), own[(own - own.mean(0)) @ axis > 0].mean(0)
        cut = flaws.in_parts(work, view, ids, {}, {thing: np.stack(halves)})
        parts = [thing, flaws.PART + flaws.PARTS * thing + 1]
        assert set(np.unique(cut[ids == thing])) == set(parts) and np.array_equal(cut[ids != thing], ids[ids != thing])
        left, right = (np.nonzero(cut == part)[1] for part in parts)
        assert left.max() < right.mean() and left.mean() < right.min()


def test_demo_scene_says_what_a_step_lacks(tmp_path: Path) -> None:
    words = [sys.executable, str(TOOLS / "render_demo_scene.py"), "--out", str(tmp_path), "--steps", "masks"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"reads {tmp_path / 'instances.json'}, which is missing; make it with --steps truth" in done.stderr


def test_a_command_is_timed_with_its_memory_and_its_failure_said():
    own = bytearray(400_000_000)  # is not counted
    taken = timing.time_python("-c", "x = bytearray(200_000_000); sum(range(1_000_000))")
    assert taken.cpu > 0 and taken.seconds > 0 and 2e8 < taken.peak < 3e8 < len(own)
    assert str(taken).endswith(" GB")
    with pytest.raises(InputError, match="-c raise SystemExit"):
        timing.time_python("-c", "raise SystemExit(3)")


def test_kernels_are_rewritten_for_the_cpu() -> None:
    """Launches become calls with the same arguments, shared memory a pointer, a card's conversions saturate."""
    source = """
    extern __shared__ int s[];
    x = (uint32_t)floor(a - b); r = (int32_t)radius_x;
    blend<CDIM, float>
        <<<grid, dim3(4), bytes, at::cuda::getCurrentCUDAStream()>>>(
            n, means.data_ptr<float>());
    """
    made = " ".join(on_cpu.rewrite(source).split())
    assert "int *s = reinterpret_cast<int *>(emulation::shared);" in made
    assert "x = unsigned_floor(a - b); r = saturated<int32_t>(radius_x);" in made
    assert "emulation::launch(grid, dim3(4), bytes, [](auto... given) { blend<CDIM, float>(given...); }, n, " in made
    assert made.endswith("means.data_ptr<float>());") and "<<<" not in made and "Stream" not in made
