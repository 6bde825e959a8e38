"""Segment Anything: its own generator with a small model of random weights, against the package's plain one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cgc.errors import InputError
from cgc.masks import sam_generator
from cgc.masks.image_masks import ImageMasks, decode, encode
from cgc.masks.sam import PRESETS, SegmentAnything
from cgc.masks.tidy import remove_small_regions, resize_counts

SIDE = 64
LOOSE = SegmentAnything(
    points_per_side=6, points_per_batch=10, pred_iou_thresh=0.0, stability_score_thresh=0.0,
    stability_score_offset=0.01, box_nms_thresh=0.9, crop_nms_thresh=0.9, min_mask_region_area=0.0, max_side=0,
    device="cpu",
)  # fmt: skip
"""Settings that let masks of a model that knows nothing through."""


def make_model(seed=4):
    """Segment Anything with 64-pixel input, two blocks and random weights, turned up so that points make a difference.

    Its masks cover about a tenth of the photo, and it rates them from 0 to 1.
    """
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(seed)
    model = Sam(
        ImageEncoderViT(
            depth=2, embed_dim=32, img_size=SIDE, mlp_ratio=2, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2, patch_size=8, qkv_bias=True, use_rel_pos=True, global_attn_indexes=[1], window_size=4,
            out_chans=32,
        ),
        PromptEncoder(
            embed_dim=32, image_embedding_size=(SIDE // 8, SIDE // 8), input_image_size=(SIDE, SIDE), mask_in_chans=4
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2),
            transformer_dim=32, iou_head_depth=2, iou_head_hidden_dim=32,
        ),
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.mask_decoder.named_parameters():
            if "norm" not in name:
                weight.mul_(2)
        for point in model.prompt_encoder.point_embeddings:
            point.weight.mul_(0.3)
        rating = model.mask_decoder.iou_prediction_head.layers[-1]
        rating.weight.mul_(0.25)
        rating.bias.mul_(0.25).add_(0.5)
    model.mask_threshold = 0.78
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The model is so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:60, :80]
    picture = np.stack([rows * 3, columns * 2, (rows - 30) ** 2 + (columns - 40) ** 2 < 300], -1) * [1, 1, 200]
    return (picture + rng.integers(0, 30, picture.shape)).clip(0, 255).astype(np.uint8)


def plain_masks(model, photo, settings_, **changes):
    """What the package's generator finds, as masks [H, W] bool, ratings and boxes."""
    from segment_anything import SamAutomaticMaskGenerator

    names = (
        "points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset",
        "box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor",
    )  # fmt: skip
    chosen = {name: getattr(settings_, name) for name in names} | changes
    return SamAutomaticMaskGenerator(model, **chosen).generate(photo)


def replaced(settings_, **changes):
    from dataclasses import replace

    return replace(settings_, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"points_per_batch": 1000},
        {"pred_iou_thresh": 0.5},
        {"stability_score_thresh": 0.9, "stability_score_offset": 0.02},
        {"box_nms_thresh": 0.5},
        {"crop_n_layers": 1},
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.5, "crop_nms_thresh": 0.4},
    ],
)
def test_masks_are_those_of_the_package(model, photo, changes, monkeypatch):
    monkeypatch.setattr(sam_generator, "UPSAMPLING", 400_000)  # so that masks come in several rounds
    wanted = plain_masks(model, photo, LOOSE, **changes)
    assert len(wanted) > 3
    generator = replaced(LOOSE, **changes).load(model)
    for ours, theirs in zip(generator._grid.generate(photo), wanted, strict=True):
        assert ours["segmentation"]["counts"].tolist() == encode(theirs["segmentation"]).tolist()
        for name in ("area", "bbox", "crop_box", "point_coords"):
            assert ours[name] == theirs[name], name
        for name in ("predicted_iou", "stability_score"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5, nan_ok=True)
    found = generator(photo)
    assert (found.height, found.width) == photo.shape[:2]
    expected = sorted((encode(m["segmentation"]).tolist(), m["predicted_iou"]) for m in wanted if m["area"])
    assert sorted(c.tolist() for c in found.counts) == [c for c, _ in expected]
    rated = [s for _, s in sorted((c.tolist(), s) for c, s in zip(found.counts, found.scores))]
    np.testing.assert_allclose(rated, [s for _, s in expected], atol=1e-5)


def test_few_masks_are_large_at_once(photo, monkeypatch):
    model = make_model()
    sizes, enlarge = [], model.postprocess_masks

    def counted(masks, *sizes_):
        sizes.append(masks.shape[:2].numel() * 4 * (SIDE**2 + 60 * 80))
        return enlarge(masks, *sizes_)

    monkeypatch.setattr(model, "postprocess_masks", counted)
    monkeypatch.setattr(sam_generator, "UPSAMPLING", 1_000_000)
    LOOSE.load(model)(photo)
    assert 250_000 < max(sizes) < 1_000_000
    sizes.clear()
    replaced(LOOSE, pred_iou_thresh=0.99).load(model)(photo)
    assert max(sizes) == 0  # what is rated too low never becomes large


def test_a_gpu_that_is_full_says_what_to_lower(photo, monkeypatch):
    model = make_model()
    generator = LOOSE.load(model)

    def fill(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(model, "postprocess_masks", fill)
    batch = f"lower --sam.points-per-batch from {LOOSE.points_per_batch} to about {int(0.7 * LOOSE.points_per_batch)}"
    with pytest.raises(InputError, match=f"^Segment Anything ran out of the GPU's memory; {batch}, or "):
        generator(photo)
    monkeypatch.setattr(model, "to", fill)
    with pytest.raises(InputError, match=r"^loading Segment Anything ran out of the GPU's memory; end other programs"):
        LOOSE.load(model)


def test_thresholds_drop_masks(model, photo):
    all_of_them = LOOSE.load(model)(photo)
    ratings = np.sort(all_of_them.scores)
    middle = float(ratings[len(ratings) // 2])
    assert 0 < middle < 1, "choose another seed"
    better = replaced(LOOSE, pred_iou_thresh=middle).load(model)(photo)
    assert 0 < len(better) < len(all_of_them) and better.scores.min() > middle
    none = replaced(LOOSE, pred_iou_thresh=1.0).load(model)(photo)
    assert isinstance(none, ImageMasks) and len(none) == 0 and none.flat().shape == photo.shape[:2]
    assert len(replaced(LOOSE, pred_iou_thresh=1.0, crop_n_layers=1).load(model)(photo)) == 0


def test_it_repeats_and_nests(model, photo):
    generator = LOOSE.load(model)
    one, two = generator(photo), generator(photo)
    assert len(one) > 3 and all(np.array_equal(a, b) for a, b in zip(one.counts, two.counts, strict=True))
    assert np.array_equal(one.scores, two.scores)
    assert (np.diff(one.areas) <= 0).all()
    inner = np.flatnonzero(one.parents >= 0)
    assert len(inner) and one.levels.max() >= 1
    for i in inner:
        assert (one.mask(i) & one.mask(one.parents[i])).sum() >= 0.9 * one.areas[i]


def test_large_photos_are_shrunk_and_their_masks_brought_back(model, photo):
    large = np.repeat(np.repeat(photo, 3, 0), 3, 1)
    small = LOOSE.load(model)(np.asarray(Image.fromarray(large).resize((80, 60), Image.Resampling.BILINEAR)))
    found = replaced(LOOSE, max_side=80).load(model)(large)
    assert (found.height, found.width) == (180, 240) and len(found) == len(small)
    expected = {np.repeat(np.repeat(small.mask(i), 3, 0), 3, 1).tobytes() for i in range(len(small))}
    assert {found.mask(i).tobytes() for i in range(len(found))} == expected
    tidy = replaced(LOOSE, max_side=80, min_mask_region_area=5 / (60 * 80)).load(model)  # of the shrunk one
    as_small = tidy(np.asarray(Image.fromarray(large).resize((80, 60), Image.Resampling.BILINEAR)))
    expected = {np.repeat(np.repeat(as_small.mask(i), 3, 0), 3, 1).tobytes() for i in range(len(as_small))}
    enlarged = tidy(large)
    assert {enlarged.mask(i).tobytes() for i in range(len(enlarged))} == expected
    odd = replaced(LOOSE, max_side=50).load(model)(photo)
    assert (odd.height, odd.width) == (60, 80) and len(odd) > 3


def test_small_regions_go(model, photo):
    from scipy import ndimage

    before = LOOSE.load(model)(photo)
    after = replaced(LOOSE, min_mask_region_area=25 / (60 * 80)).load(model)(photo)

    def smallest(masks):
        regions = []
        for i in range(len(masks)):
            for mask in (masks.mask(i), ~masks.mask(i)):
                labels, n = ndimage.label(mask, np.ones((3, 3)))
                regions += list(np.bincount(labels.ravel())[1:]) if n > 1 else []
        return min(regions, default=10**6)

    assert 3 < len(after) <= len(before)
    assert smallest(before) < 25 <= smallest(after)


def test_copies_after_tidying_go_and_tidy_ones_stay():
    clean = np.zeros((20, 20), bool)
    clean[4:14, 4:14] = True
    crumbs, holey = clean.copy(), clean.copy()
    crumbs[18, 18] = True
    holey[8, 8] = False
    other = np.zeros((20, 20), bool)
    other[15:19, 2:12] = True
    counts, scores = [encode(m) for m in (crumbs, clean, holey, other)], np.array([0.9, 0.5, 0.95, 0.1], np.float32)
    kept, rated = sam_generator._tidy(counts, scores, 20, 20, 3, 0.7)
    assert [c.tolist() for c in kept] == [encode(clean).tolist(), encode(other).tolist()]
    assert rated.tolist() == [0.5, np.float32(0.1)]
    kept, rated = sam_generator._tidy(counts[::2], scores[::2], 20, 20, 3, 0.7)
    assert rated.tolist() == [np.float32(0.95)] and kept[0].tolist() == encode(clean).tolist()
    assert sam_generator._tidy(counts, scores, 20, 20, 0, 0.7)[0] == counts


@pytest.mark.parametrize(
    ("shape", "layers"), [((1, 1), 0), ((1, 200), 0), ((3, 5), 0), ((4, 4), 1), ((17, 16), 2), ((300, 2), 0)]
)
def test_photos_of_any_shape(model, shape, layers):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    found = replaced(LOOSE, crop_n_layers=layers, points_per_side=4, min_mask_region_area=0.01).load(model)(image)
    assert (found.height, found.width) == shape and found.flat().shape == shape


def test_what_is_no_photo_is_said(model):
    generator = replaced(LOOSE, crop_n_layers=2, points_per_side=2).load(model)
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), None):
        with pytest.raises(InputError, match="of bytes was expected"):
            generator(image)
    with pytest.raises(InputError, match="20x15 is too small for 2 layers"):
        generator(np.zeros((15, 20, 3), np.uint8))


def test_half_precision_is_for_cuda_only(model, photo):
    full, half = (replaced(LOOSE, half=h).load(model)(photo) for h in (False, True))
    assert all(np.array_equal(a, b) for a, b in zip(full.counts, half.counts, strict=True))
    assert np.array_equal(full.scores, half.scores)


@pytest.mark.gpu
def test_half_precision_finds_nearly_the_same(photo):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is False")
    full, half = (replaced(LOOSE, half=h, device="cuda").load(make_model())(photo) for h in (False, True))
    assert abs(len(full) - len(half)) <= 0.2 * len(full)
    assert np.abs(full.scores.max() - half.scores.max()) < 0.01


def test_numbers_that_are_not_finite_are_said(photo):
    broken = make_model()
    torch.nn.init.constant_(broken.mask_decoder.iou_prediction_head.layers[-1].bias, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        LOOSE.load(broken)(photo)


@pytest.mark.parametrize("masks", [np.zeros((0, 4, 5), bool), np.ones((1, 1, 1), bool), np.zeros((2, 3, 1), bool)])
def test_run_lengths_of_few_masks(masks):
    found = sam_generator.run_lengths(torch.from_numpy(masks))
    assert [f.tolist() for f in found] == [encode(m).tolist() for m in masks]


@settings(max_examples=60, deadline=None)
@given(masks=arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 7))))
def test_run_lengths_are_those_of_each_mask(masks):
    found = sam_generator.run_lengths(torch.from_numpy(masks))
    assert [f.tolist() for f in found] == [encode(m).tolist() for m in masks]


# --- islands and holes, other sizes ---


def regions_of(mask):
    """The pixels of each region of a mask, by flooding; corners touch."""
    left, found = {tuple(p) for p in np.argwhere(mask).tolist()}, []
    while left:
        todo = [min(left)]
        left.discard(todo[0])
        region = []
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.discard(near)
                    todo.append(near)
        found.append(region)
    return found


def tidy_slowly(mask, least):
    mask = mask.copy()
    if not mask.any():
        return mask
    for region in regions_of(~mask):
        if len(region) < least:
            mask[tuple(np.array(region).T)] = True
    islands = regions_of(mask)
    if all(len(region) < least for region in islands):
        islands.remove(max(islands, key=len))  # the first of the largest
    for region in islands:
        if len(region) < least:
            mask[tuple(np.array(region).T)] = False
    return mask


@settings(max_examples=300, deadline=None)
@given(data=st.data(), least=st.integers(0, 14))
def test_small_regions_are_removed_like_by_flooding(data, least):
    mask = data.draw(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
    if data.draw(st.booleans()):  # a mask far from some borders
        large = np.zeros((20, 16), bool)
        y, x = data.draw(st.integers(0, 20 - len(mask))), data.draw(st.integers(0, 16 - mask.shape[1]))
        large[y : y + len(mask), x : x + mask.shape[1]] = mask
        mask = large
    before = mask.copy()
    after = remove_small_regions(mask, least)
    assert np.array_equal(after, tidy_slowly(before, least))
    assert np.array_equal(mask, before) and (after is mask) == np.array_equal(after, before)


def test_what_lies_beyond_the_mask_counts_in_full():
    mask = np.zeros((10, 10), bool)
    mask[:, 2:] = True  # twenty pixels beside it, of which one column is near
    assert np.array_equal(remove_small_regions(mask, 20), mask)
    assert remove_small_regions(mask, 21).all()


@settings(max_examples=200, deadline=None)
@given(
    mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    size=st.tuples(st.integers(1, 25), st.integers(1, 25)),
)
def test_other_sizes_are_nearest_pixels(mask, size):
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    resized = resize_counts(encode(mask), *mask.shape, *size)
    assert np.array_equal(decode(resized, *size), mask[rows][:, columns])
    assert resized.tolist() == encode(mask[rows][:, columns]).tolist()


# --- settings ---


def test_every_setting_reaches_the_generator(model):
    numbers = dict(
        points_per_side=5, points_per_batch=7, pred_iou_thresh=0.11, stability_score_thresh=0.22,
        stability_score_offset=0.33, box_nms_thresh=0.44, crop_n_layers=1, crop_nms_thresh=0.55,
        crop_overlap_ratio=0.66, crop_n_points_downscale_factor=2,
    )  # fmt: skip
    grid = SegmentAnything(**numbers, device="cpu").load(model)._grid
    for name, value in numbers.items():
        if name != "points_per_side":
            assert getattr(grid, name) == value
    assert [len(points) for points in grid.point_grids] == [25, 4]
    assert grid.largest_overlap == 0.55


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points_per_side": 0}, "points_per_side is 0 where a whole number of 1 to 1000"),
        ({"points_per_side": 2.5}, "points_per_side is 2.5"),
        ({"points_per_batch": True}, "points_per_batch is True where a whole number of at least 1"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh is 1.5 where a number of 0 to 1"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan"),
        ({"min_mask_region_area": 100}, "min_mask_region_area is 100 where a number of 0 to 1"),
        ({"crop_n_layers": 9}, "crop_n_layers is 9"),
        ({"crop_n_layers": 2, "crop_n_points_downscale_factor": 8}, "leave no point of 6 a side"),
        ({"max_side": -1}, "max_side is -1"),
        ({"device": "tpu"}, "device is 'tpu' where auto, cpu, cuda"),
        ({"device": "cuda:x"}, "device is 'cuda:x'"),
    ],
)
def test_settings_out_of_bounds_are_said(model, changes, said):
    with pytest.raises(InputError, match=said):
        replaced(LOOSE, **changes).load(model)


def test_presets_are_valid_and_the_bare_settings_are_the_default():
    for preset in PRESETS.values():
        preset.check()
    assert set(PRESETS) == {"fast", "default", "fine"} and PRESETS["default"] == SegmentAnything()


def test_what_is_no_model_is_said():
    with pytest.raises(InputError, match=r"Linear has no image_encoder, prompt_encoder, .*SamPredictor can use"):
        LOOSE.load(torch.nn.Linear(2, 2))


def test_a_given_model_names_itself(model):
    assert LOOSE.load(model).name == "segment_anything Sam"


def test_settings_are_light():
    code = "import sys, cgc.masks.sam; print(sorted({'torch', 'numpy', 'segment_anything'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_real_weights_find_a_disc(tmp_path):
    """Runs Segment Anything itself where its weights are given."""
    given_path = os.environ.get("CGC_SAM_CHECKPOINT")
    if not given_path:
        pytest.skip("no weights: CGC_SAM_CHECKPOINT names no file of Segment Anything's")
    rows, columns = np.mgrid[:192, :256]
    disc = (rows - 100) ** 2 + (columns - 120) ** 2 < 50**2
    image = np.where(disc[..., None], np.uint8([220, 40, 30]), np.uint8([40, 90, 160]))
    generator = replaced(PRESETS["fast"], points_per_side=4, checkpoint=Path(given_path)).load(quiet=True)
    found = generator(image)
    overlaps = [(found.mask(i) & disc).sum() / (found.mask(i) | disc).sum() for i in range(len(found))]
    assert generator.name.startswith("segment-anything vit_")
    assert max(overlaps, default=0) > 0.9
