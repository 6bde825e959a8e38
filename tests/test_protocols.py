"""Benchmarks: readers of their folder layouts, on tiny folders as their authors publish them, and their means."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cgc.errors import InputError
from cgc.evaluation.benchmarks import means, score_masks
from cgc.evaluation.protocols import lerf_mask, nvos, ovs3d, spin_nerf
from cgc.evaluation.protocols.base import find_view, find_views, read_mask, scenes_of

READERS = (lerf_mask.read, ovs3d.read, nvos.read, spin_nerf.read)


def save(path: Path, mask: np.ndarray, scale: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((mask * scale).astype(np.uint8)).save(path)
    return path


def disc(x: float, y: float, radius: float, shape: tuple[int, int] = (30, 40)) -> np.ndarray:
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius**2


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


@pytest.fixture
def lerf(tmp_path) -> Path:
    """Two scenes; figurines' views are numbers, as its authors' renderer has them."""
    root = tmp_path / "lerf_mask"
    for name in ("frame_1", "frame_2", "frame_3", "frame_4"):
        photo(root / f"figurines/images/{name}.jpg")
        if name in ("frame_1", "frame_3"):
            photo(root / f"figurines/images_train/{name}.jpg")
    for view in ("0", "1"):
        save(root / f"figurines/test_mask/{view}/green apple.png", disc(10, 10, 6))
        save(root / f"figurines/test_mask/{view}/old camera.png", disc(28, 15, 8))
    save(root / "figurines/test_mask/1/pen.png", disc(20, 25, 3))
    save(root / "ramen/test_mask/frame_9/egg.png", disc(20, 15, 9))
    return root


@pytest.fixture
def ovs(tmp_path) -> Path:
    scene = tmp_path / "3d-ovs/sofa"
    for i in range(4):
        photo(scene / f"images/{i:02}.jpg")
    (scene / "segmentations").mkdir()
    (scene / "segmentations/classes.txt").write_text("Pikachu\na gray sofa\n\n")
    for view in ("00", "03"):
        save(scene / f"segmentations/{view}/Pikachu.png", disc(10, 10, 5))
        save(scene / f"segmentations/{view}/a gray sofa.png", ~disc(10, 10, 5))
    return tmp_path / "3d-ovs"


@pytest.fixture
def nvos_labels(tmp_path) -> Path:
    root = tmp_path / "nvos"
    for target in ("fern", "horns_center"):
        photo(root / f"labels/llff/masks/{target}/IMG_2.JPG")
        save(root / f"labels/llff/masks/{target}/IMG_2_mask.png", disc(20, 15, 9))
        photo(root / f"labels/llff/reference_image/{target}/IMG_1.JPG")
        save(root / f"labels/llff/scribbles/{target}/pos_0_{target}.png", disc(20, 15, 3))
        save(root / f"labels/llff/scribbles/{target}/neg_0_{target}.png", disc(2, 2, 2))
    return root


@pytest.fixture
def spin(tmp_path) -> Path:
    root = tmp_path / "MVSeg_data"
    for view in ("image003", "image000", "image001"):
        save(root / f"room/{view}.png", disc(20, 15, 9), scale=1)  # its masks hold 0 and 1
        save(root / f"room/{view}_cutout.png", disc(20, 15, 9))
        save(root / f"room/{view}_pseudo.png", disc(20, 15, 9))
    save(root / "fork/a.png", disc(20, 15, 9))
    save(root / "fork/b.png", disc(20, 15, 9))
    return root


# --- readers ----------------------------------------------------------------------------------------------


def test_lerf_mask_is_read(lerf):
    found = lerf_mask.read(lerf)
    assert found.scenes == ("figurines", "ramen") and found.prompts("figurines") == ("green apple", "old camera", "pen")
    assert len(found.masks) == 6 and found.masks[0].load().sum() == disc(10, 10, 6).sum()
    assert found.orders["figurines"] == ("frame_2", "frame_4")
    assert found.notes == ("figurines: the view 0 has no truth of pen",)
    assert found.orders["ramen"] == ()
    alone = lerf_mask.read(lerf / "ramen")
    assert alone.scenes == ("ramen",) and [m.view for m in alone.masks] == ["frame_9"]


def test_3d_ovs_is_read(ovs):
    for found in (ovs3d.read(ovs), ovs3d.read(ovs / "sofa")):
        assert found.scenes == ("sofa",) and found.prompts("sofa") == ("Pikachu", "a gray sofa")
        assert [m.view for m in found.masks] == ["00", "00", "03", "03"]
        assert found.orders["sofa"] == ("00", "01", "02", "03")


def test_nvos_is_read(nvos_labels):
    for place in (nvos_labels, nvos_labels / "labels", nvos_labels / "labels/llff"):
        found = nvos.read(place)
        assert found.scenes == ("fern", "horns_center")
        assert [(m.view, m.prompt) for m in found.masks] == [("IMG_2", "fern"), ("IMG_2", "horns_center")]
        reference = found.references[1]
        assert (reference.view, [p.name for p in reference.positive]) == ("IMG_1", ["pos_0_horns_center.png"])
        assert len(reference.negative) == 1 and read_mask(reference.negative[0]).any()
    folder = nvos_labels / "labels/llff"
    save(folder / "scribbles/fern/pos_1_fern.png", disc(5, 5, 2))
    assert len(nvos.read(folder).references[0].positive) == 2
    photo(folder / "reference_image/fern/IMG_7.JPG")
    with pytest.raises(InputError, match=r"holds IMG_1.JPG, IMG_7.JPG, but scribbles are of one picture"):
        nvos.read(folder)


def test_spin_nerf_is_read(spin):
    found = spin_nerf.read(spin)
    assert found.scenes == ("fork", "room")
    assert [m.view for m in found.masks if m.scene == "room"] == ["image000", "image001", "image003"]
    assert found.references[1].view == "image000" and found.masks[-1].load().sum() == disc(20, 15, 9).sum()
    assert spin_nerf.read(spin / "room").scenes == ("room",)


@pytest.mark.parametrize("read", READERS)
def test_folders_that_are_not_the_benchmark(read, tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist; expected .*"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is a file where the benchmark's folder was expected, .*"):
        read(tmp_path / "file")
    (tmp_path / "empty/sub").mkdir(parents=True)
    with pytest.raises(InputError, match="expected"):
        read(tmp_path / "empty")


def test_parts_that_are_missing_are_named(lerf, ovs, nvos_labels, spin):
    for path in (lerf / "figurines/test_mask/0").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"the views 0 of .*test_mask hold no mask; .* download that part again"):
        lerf_mask.read(lerf)
    (lerf / "waldo/test_mask").mkdir(parents=True)
    with pytest.raises(InputError, match="test_mask holds no view"):
        lerf_mask.read(lerf / "waldo")
    (ovs / "sofa/segmentations/03/Pikachu.png").unlink()
    with pytest.raises(InputError, match=r"1 of the 4 masks that .*classes.txt asks for are missing: .*03.Pikachu.png"):
        ovs3d.read(ovs)
    (ovs / "sofa/segmentations/classes.txt").write_text("\n")
    with pytest.raises(InputError, match="has 0 classes and 2 views"):
        ovs3d.read(ovs)
    (ovs / "sofa/segmentations/classes.txt").unlink()
    with pytest.raises(InputError, match=r"classes\.txt cannot be read"):
        ovs3d.read(ovs)
    (nvos_labels / "labels/llff/scribbles/fern/neg_0_fern.png").unlink()
    (nvos_labels / "labels/llff/reference_image/fern/IMG_1.JPG").unlink()
    with pytest.raises(InputError, match=r"lacks reference_image/fern/VIEW.JPG, scribbles/fern/neg_\*.png"):
        nvos.read(nvos_labels)
    (spin / "fork/b.png").unlink()
    with pytest.raises(InputError, match=r"two masks or more of every scene, but these have fewer: fork \(1\)"):
        spin_nerf.read(spin)


def test_masks_of_every_kind_are_read(tmp_path):
    mask = disc(20, 15, 9)
    save(tmp_path / "a.png", mask)
    save(tmp_path / "b.png", mask, scale=1)
    Image.fromarray(np.stack([mask * np.uint8(255)] * 3, 2)).save(tmp_path / "c.png")
    Image.fromarray((mask * 65535).astype(np.uint16)).save(tmp_path / "d.png")
    Image.fromarray(mask).save(tmp_path / "e.png")
    for name in "abcde":
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), mask)
    colours = Image.fromarray(mask.astype(np.uint8), "P")
    colours.putpalette([0, 0, 0, 128, 0, 0])
    colours.save(tmp_path / "palette.png")
    Image.fromarray(mask[..., None] * np.array([255, 0, 0], np.uint8)).save(tmp_path / "red.png")
    save(tmp_path / "half.png", mask, scale=128)
    Image.fromarray((mask * 1000).astype(np.uint16)).save(tmp_path / "sixteen.png")
    white = np.full((*mask.shape, 3), 255, np.uint8)
    Image.fromarray(np.dstack([white, mask * np.uint8(255)])).save(tmp_path / "cut.png")
    for name in ("palette", "red", "half", "sixteen", "cut"):
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), mask, name)
    save(tmp_path / "none.png", np.zeros((3, 4)))
    assert not read_mask(tmp_path / "none.png").any()
    save(tmp_path / "grey.png", np.array([[0, 128, 129, 255]]), scale=1)
    assert read_mask(tmp_path / "grey.png").tolist() == [[False, False, True, True]]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"broken.png cannot be read .* restore it"):
        read_mask(tmp_path / "broken.png")


# --- views and scenes -------------------------------------------------------------------------------------


def test_views_are_found_by_name_number_or_part():
    stems = ["frame_1", "sub/frame_2", "03", "IMG_4026"]
    assert find_view("frame_1", stems, ()) == 0 and find_view("frame_2", stems, ()) == 1
    assert find_view("1", stems, ["frame_1", "frame_2"]) == 1
    assert find_view("03", stems, ["a", "b", "c", "frame_1"]) == 2  # a name goes before a number
    assert find_view("llff_IMG_4026", stems, (), contained=True) == 3
    assert find_view("view_03_mask", stems, (), contained=True) == 2
    for token in ("20220035", "img_1037", "IMG_40267", "03_or_frame_1_IMG_4026_frame_7x"):
        if token.endswith("x"):
            assert find_view(token, stems, (), contained=True) == 3  # the longest
            continue
        with pytest.raises(InputError, match=f"the truth has a view '{token}'"):
            find_view(token, stems, (), contained=True)
    with pytest.raises(InputError, match=r"a view '1_and_2', but"):
        find_view("1_and_2", ["1", "2"], (), contained=True)
    with pytest.raises(InputError, match=r"the truth's views 03, img_03 would all be the run's view '03'"):
        find_views(["03", "frame_1", "img_03"], stems, (), contained=True)
    for token, order in (("frame_9", ()), ("7", ["frame_1"]), ("0", ["frame_7"]), ("0", ["0"])):
        with pytest.raises(InputError, match="but the views of the run are frame_1, sub/frame_2, 03, IMG_4026"):
            find_view(token, stems, order)
    with pytest.raises(InputError):
        find_view("frame_2", ["a/frame_2", "b/frame_2"], ())


@given(st.text(max_size=6), st.lists(st.text(max_size=6), max_size=4), st.lists(st.text(max_size=6), max_size=4))
def test_any_name_is_a_view_or_an_input_error(token, stems, order):
    try:
        assert 0 <= find_view(token, stems, order, contained=True) < len(stems)
    except InputError as error:
        assert repr(token) in str(error) or any(repr(o) in str(error) for o in order)


def test_scenes_of_a_run():
    scenes = ["fern", "horns_center", "horns_left", "llff_room"]
    assert scenes_of(["Fern", "x"], scenes) == ["fern"]
    assert scenes_of(["x", "horns"], scenes) == ["horns_center", "horns_left"]
    assert scenes_of(["room"], scenes) == ["llff_room"]
    assert scenes_of(["my_room"], ["my_room big", "x"]) == ["my_room big"]
    assert scenes_of(["my room"], ["my_room", "x"]) == ["my_room"]
    assert scenes_of(["orn"], scenes) == [] and scenes_of(["x"], ["only"]) == ["only"]


# --- means ------------------------------------------------------------------------------------------------


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def slow_band(mask: np.ndarray) -> np.ndarray:
    """Erode once for every pixel of the band, with zeros outside of the image, as the authors' script does."""
    inside = np.pad(mask, 1)
    for _ in range(max(1, round(0.02 * math.hypot(*mask.shape)))):
        padded = np.pad(inside, 1, constant_values=True)
        shifted = [padded[1 + y : y + 1 + inside.shape[0], 1 + x : x + 1 + inside.shape[1]]
                   for y in (-1, 0, 1) for x in (-1, 0, 1)]  # fmt: skip
        inside = np.all(shifted, axis=0)
    return mask & ~inside[1:-1, 1:-1]


def test_lerf_mask_means_are_those_of_its_authors(lerf):
    benchmark = lerf_mask.read(lerf / "figurines")
    moved = {m: np.roll(m.load(), (i, 2), (0, 1)) for i, m in enumerate(benchmark.masks)}
    scores = score_masks(benchmark, benchmark.masks, lambda m, _: moved[m])
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for m in benchmark.masks:
        true = m.load()
        values = slow_iou(true, moved[m]), slow_iou(slow_band(true), slow_band(moved[m]))
        by_prompt.setdefault(m.prompt, []).append(values)
    wanted = np.mean([np.mean(v, axis=0) for v in by_prompt.values()], axis=0)
    found = means(benchmark, scores.rows)
    assert [found["miou"], found["boundary_iou"]] == pytest.approx(wanted)
    assert found["miou"] != pytest.approx(np.mean([r.iou for r in scores.rows]))  # pen has one view, the others two
    assert "miou_others" not in found


def test_a_missing_prediction_is_a_zero_and_an_empty_truth_is_left_out(lerf):
    save(lerf / "figurines/test_mask/0/pen.png", np.zeros((30, 40)))
    benchmark = lerf_mask.read(lerf / "figurines")
    scores = score_masks(benchmark, benchmark.masks, lambda m, true: None if m.view == "0" else true)
    assert [(m.view, m.prompt) for m in scores.empty] == [("0", "pen")]
    assert [(r.view, r.iou, r.missing) for r in scores.rows] == [("0", 0, True)] * 2 + [("1", 1, False)] * 3
    assert means(benchmark, scores.rows)["miou"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    for path in (lerf / "figurines/test_mask").rglob("*.png"):
        save(path, np.zeros((30, 40)))
    with pytest.raises(InputError, match="all true masks are empty"):
        score_masks(benchmark, benchmark.masks, lambda *_: None)


def test_3d_ovs_means_over_classes_and_views(ovs):
    benchmark = ovs3d.read(ovs)
    scores = score_masks(benchmark, benchmark.masks, lambda m, true: np.roll(true, 3, 1) if m.view == "00" else true)
    wanted = np.mean([slow_iou(m.load(), np.roll(m.load(), 3, 1)) for m in benchmark.masks[:2]] + [1, 1])
    assert means(benchmark, scores.rows)["miou"] == pytest.approx(wanted)


def test_the_reference_view_is_told_from_the_others(spin):
    benchmark = spin_nerf.read(spin / "room")
    scores = score_masks(benchmark, benchmark.masks, lambda m, true: true if m.view == "image000" else None)
    found = means(benchmark, scores.rows)
    assert [r.reference for r in scores.rows] == [True, False, False]
    assert found["miou"] == pytest.approx(1 / 3) and found["miou_others"] == 0
    share = disc(20, 15, 9).mean()
    assert found["iou_pooled"] == pytest.approx(1 / 3) and found["accuracy"] == pytest.approx(1 - 2 / 3 * share)
