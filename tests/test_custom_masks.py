"""Masks by a user's own function: finding it by name, and making ImageMasks of what it gives."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import cgc.masks.custom as custom
from cgc.errors import InputError
from cgc.masks.custom import as_masks, load_entry_point, unpack
from cgc.masks.image_masks import ImageMasks, encode

IMAGE = np.zeros((6, 8, 3), np.uint8)
LEFT = np.zeros((6, 8), bool)
LEFT[:, :4] = True
DOT = np.zeros((6, 8), bool)
DOT[2, 1] = True

MODULE = """
import numpy as np

def of_image(image):
    return (image[..., 0] > 9).astype(np.int32)

def make(level=9):
    def generate(image):
        return (image[..., 0] > level).astype(np.int32)
    generate.name = "bright things"
    return generate

class Model:
    name = "a model"
    def __call__(self, image):
        return [image[..., 0] > 9]

class Space:
    inner = of_image

number = 7

def fails():
    raise RuntimeError("no weights")

def gives_number():
    return 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the current folder, as a user has it."""
    (tmp_path / "own_masks.py").write_text(MODULE)
    (tmp_path / "broken_masks.py").write_text("1 / 0\n")
    (tmp_path / "lonely_masks.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_masks"
    for name in ("own_masks", "broken_masks", "lonely_masks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("attribute", "name"),
    [("of_image", "own_masks:of_image"), ("make", "bright things"), ("Model", "a model"), ("Space.inner", None)],
)
def test_functions_and_what_makes_them_are_found(module, attribute, name):
    generator = load_entry_point(f"{module}:{attribute}")
    assert generator.name == (name or f"{module}:{attribute}")
    image = IMAGE.copy()
    image[1:3, 2:5] = 200
    masks = generator(image)
    assert isinstance(masks, ImageMasks) and masks.areas.tolist() == [6]
    assert np.array_equal(masks.mask(0), image[..., 0] > 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("own_masks:absent", "is not there .*correct the name after the colon"),
        ("own_masks:number", "is int where a function was expected"),
        ("own_masks:gives_number", "gave int where a function of an image was expected"),
        ("own_masks:fails", "could not be loaded .RuntimeError: no weights."),
        ("broken_masks:make", "could not be loaded .ZeroDivisionError"),
        ("lonely_masks:make", "needs the module no_such_package_at_all, which is not there"),
        ("no_such_module_at_all:make", "needs the module no_such_module_at_all, which is not there"),
        ("own_masks:", "where package.module:function was expected"),
        (":make", "where package.module:function was expected"),
        ("own_masks:make()", "where package.module:function was expected"),
        ("__import__('os').system('x'):y", "where package.module:function was expected"),
        ("regionz", "no mask generator called 'regionz'"),
        ("", "no mask generator called ''"),
    ],
)
def test_what_cannot_be_found_is_said(module, text, said):
    with pytest.raises(InputError, match=said) as raised:
        load_entry_point(text)
    assert "\n" not in str(raised.value)


def test_plugins_are_found_by_name(module, monkeypatch):
    from importlib.metadata import EntryPoint

    asked = []

    def installed(group):
        asked.append(group)
        return [EntryPoint("mine", "own_masks:make", group)]

    monkeypatch.setattr(custom, "entry_points", installed)
    assert load_entry_point("mine").name == "bright things"
    assert asked == ["cgc.mask_generators"]
    with pytest.raises(InputError, match="plugins that are installed: mine"):
        load_entry_point("yours")


def test_all_forms_of_masks_are_one():
    from pycocotools import mask as coco

    packed = [coco.encode(np.asfortranarray(m.astype(np.uint8))) for m in (LEFT, DOT)]
    plain = [{"size": [6, 8], "counts": encode(m).tolist()} for m in (LEFT, DOT)]
    text = [{**p, "counts": p["counts"].decode()} for p in packed]
    rated = [{"segmentation": m, "predicted_iou": s} for m, s in zip((LEFT, DOT), (0.5, 0.75))]
    forms = [
        [LEFT, DOT],
        np.stack([LEFT, DOT]),
        (LEFT.astype(np.uint8), DOT.astype(np.int64)),
        rated,
        *([{"segmentation": s} for s in form] for form in (packed, plain, text)),
        ImageMasks.from_masks([LEFT, DOT], 6, 8),
    ]
    for form in forms:
        masks = as_masks(form, 6, 8)
        assert np.array_equal(masks.mask(0), LEFT) and np.array_equal(masks.mask(1), DOT)
        assert masks.levels.tolist() == [0, 1]
    assert as_masks(rated, 6, 8).scores.tolist() == [0.5, 0.75]
    assert len(as_masks([], 6, 8)) == 0
    assert len(as_masks(np.zeros((6, 8), np.int32), 6, 8)) == 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "gave NoneType where"),
        ("mask", "where a mask"),
        (np.zeros((6, 8)), "id map of float64 where whole numbers"),
        (np.zeros((8, 6), int), "id map of 6x8 for 8x6 pixels"),
        ([np.zeros((8, 6), bool)], r"mask 0, is \[8, 6\] bool where a mask \[6, 8\]"),
        ([np.full((6, 8), np.nan)], "float64 where a mask"),
        ([{"area": 3}], "is NoneType where a mask"),
        ([{"segmentation": {"size": [8, 6], "counts": [48]}}], r"size \[8, 6\] where its image is \[6, 8\]"),
        ([{"segmentation": {"counts": [48]}}], "size None where its image"),
        ([{"segmentation": {"size": [6, 8], "counts": [40]}}], "cover 40 pixels"),
        ([{"segmentation": {"size": [6, 8], "counts": [-1, 49]}}], "whole numbers of 0 or more"),
        ([{"segmentation": {"size": [6, 8], "counts": "!"}}], "what is no run length"),
        ([{"segmentation": {"size": [6, 8], "counts": b"o"}}], "middle of a number"),
        ([{"segmentation": LEFT, "predicted_iou": np.nan}], "predicted_iou nan where a number"),
        ([{"segmentation": LEFT, "predicted_iou": "good"}], "predicted_iou 'good' where a number"),
        (ImageMasks.from_masks([LEFT.T], 8, 6), "masks of 6x8 for an image of 8x6"),
    ],
)
def test_what_is_no_mask_is_said(found, said):
    with pytest.raises(InputError, match=said):
        as_masks(found, 6, 8, "mine")


@settings(max_examples=100, deadline=None)
@given(mask=arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 12))))
def test_packed_run_lengths_are_those_of_coco(mask):
    from pycocotools import mask as coco

    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert unpack(packed) == unpack(packed.decode()) == encode(mask).tolist()


def test_long_packed_run_lengths():
    from pycocotools import mask as coco

    counts = [0, 5, 1_000_000, 3, 70_000, 900_000, 0, 1]
    packed = coco.frPyObjects({"size": [1000, sum(counts) // 1000 + 1], "counts": counts}, 1000, 2000)["counts"]
    assert unpack(packed) == counts


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.binary(max_size=30), st.text(max_size=30)))
def test_broken_packed_run_lengths_end_in_a_sentence(text):
    try:
        masks = as_masks([{"segmentation": {"size": [4, 5], "counts": text}}], 4, 5)
    except InputError:
        return
    assert len(masks) <= 1 and masks.areas.sum() <= 20
