"""The masks room: id maps on disk and in memory, matching by name, sizes, borders."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cgc.errors import InputError
from cgc.masks.id_maps import border_mask, read_id_map, read_mask_folder, resize_nearest, write_id_map
from cgc.scene import lens as lenses
from cgc.scene.types import Camera, Lens, View


def make_view(name, width=8, height=6, full_size=None, distortion=None):
    K = torch.tensor([[8.0, 0, width / 2], [0, 8, height / 2], [0, 0, 1]])
    camera = Camera(torch.eye(4), K, width, height)
    return View(name, camera, Path(name), full_size or (width, height), distortion)


IDS = np.arange(48, dtype=np.int32).reshape(6, 8)


# ---- one file


@settings(max_examples=30, deadline=None)
@given(ids=arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 65535)))
def test_what_is_written_is_read(tmp_path_factory, ids):
    path = tmp_path_factory.getbasetemp() / "ids.png"
    write_id_map(path, ids)
    back = read_id_map(path)
    assert back.dtype == np.int32 and np.array_equal(back, ids)
    with Image.open(path) as image:
        assert image.mode == "I;16"


@pytest.mark.parametrize("low_high", [(0, 65536), (-1, 5)])
def test_ids_that_do_not_fit(tmp_path, low_high):
    with pytest.raises(InputError, match="but a 16-bit PNG holds 0 to 65535"):
        write_id_map(tmp_path / "ids.png", np.array([low_high]))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="id map"):
        write_id_map(tmp_path / "ids.png", np.zeros((2, 2, 3), int))


def test_kinds_of_png_that_hold_ids(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(IDS.astype(np.uint8)).save(path)
    assert np.array_equal(read_id_map(path), IDS)
    palette = Image.fromarray(IDS.astype(np.uint8), mode="L")
    indexed = Image.new("P", (8, 6))
    indexed.putpalette([v for i in range(256) for v in (255 - i, i, 7)])
    indexed.putdata(list(palette.tobytes()))
    indexed.save(path)
    assert np.array_equal(read_id_map(path), IDS)
    Image.fromarray(IDS % 2 == 1).save(path)
    assert np.array_equal(read_id_map(path), IDS % 2)
    Image.fromarray(np.repeat(IDS[..., None], 3, 2).astype(np.uint8)).save(path)
    assert np.array_equal(read_id_map(path), IDS)
    opaque = np.concatenate([np.repeat(IDS[..., None], 3, 2), np.full((6, 8, 1), 255)], 2)
    Image.fromarray(opaque.astype(np.uint8)).save(path)
    assert np.array_equal(read_id_map(path), IDS)


def test_colours_and_broken_files_are_no_id_maps(tmp_path):
    path = tmp_path / "a.png"
    colours = np.random.default_rng(0).integers(0, 255, (6, 8, 4), np.uint8)
    for channels in (3, 4):
        Image.fromarray(colours[..., :channels]).save(path)
        with pytest.raises(InputError, match=rf"a\.png has {channels} channels .* that differ; expected"):
            read_id_map(path)
    write_id_map(path, np.random.default_rng(0).integers(0, 65535, (60, 80)))
    whole = path.read_bytes()
    for data in (whole[:2000], whole[:20], b"", b"no png"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.png cannot be read .* truncated or no PNG"):
            read_id_map(path)


@pytest.mark.parametrize("strange", [-1, 65536, 10**9])
def test_ids_that_no_png_of_16_bits_holds(tmp_path, strange):
    """A TIFF that is called .png may hold any: what counts ids would take memory by the largest."""
    Image.fromarray(np.array([[0, strange]], np.int32)).save(tmp_path / "a.png", format="TIFF")
    with pytest.raises(InputError, match=rf"a\.png holds the ids .*{strange}.*; expected 0 to 65535"):
        read_id_map(tmp_path / "a.png")


# ---- a folder


def test_matches_by_stem_by_whole_name_and_by_unique_bare_name(tmp_path):
    photos = ("sub/0001.jpg", "sub/0002.jpg", "left/0003.jpg", "right/0003.jpg", "0004.png")
    views = [make_view(name) for name in photos]
    for name in ("sub/0001.png", "0002.jpg.png", "0003.png", "left/0003.jpg.png", "other.png", "0004.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_id_map(tmp_path / name, IDS)
    masks = read_mask_folder(tmp_path, views)
    names = [path and path.relative_to(tmp_path).as_posix() for path in masks.paths]
    assert names == ["sub/0001.png", "0002.jpg.png", "left/0003.jpg.png", None, None]
    assert masks.folder == tmp_path and masks.notes == ()
    assert np.array_equal(masks.load(0), IDS) and masks.load(0).dtype == np.int32
    empty = masks.load(3)  # a view without a mask
    assert empty.shape == (6, 8) and not empty.any() and empty.dtype == np.int32


def test_masks_that_count_from_elsewhere_than_the_images_are_refused(tmp_path):
    """Trackers count frames from 0, ffmpeg photos from 1: all names but one fit, each to the next photo."""
    views = [make_view(f"{i:04d}.jpg") for i in range(1, 6)]
    for number in range(5):
        write_id_map(tmp_path / f"{number:04d}.png", IDS)
    with pytest.raises(InputError, match=r"numbered 0 to 4 and the images 1 to 5, .* --from .*, or, .* remove mask 0"):
        read_mask_folder(tmp_path, views)
    (tmp_path / "0000.png").unlink()
    assert read_mask_folder(tmp_path, views).paths[:2] == (tmp_path / "0001.png", tmp_path / "0002.png")


def test_masks_in_linked_folders_are_found(tmp_path):
    write_id_map(tmp_path / "elsewhere/a.png", np.ones((6, 8), np.int32))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    found = read_mask_folder(tmp_path / "masks", [make_view("more/a.jpg")])
    assert found.paths == (tmp_path / "masks/more/a.png",)


def test_no_folder_and_no_name(tmp_path):
    views = [make_view(f"{i}.jpg") for i in range(5)]
    with pytest.raises(InputError, match=r"mask folder .* does not exist"):
        read_mask_folder(tmp_path / "gone", views)
    with pytest.raises(InputError, match=r"found no PNG at all, expected 0\.png, 1\.png, 2\.png;"):
        read_mask_folder(tmp_path, views)
    for name in "abcd":
        write_id_map(tmp_path / f"{name}.png", IDS)
    with pytest.raises(InputError, match=r"matches an image: found a\.png, b\.png, c\.png, expected 0\.png"):
        read_mask_folder(tmp_path, views)


def test_no_id_at_all_and_one_broken_file(tmp_path):
    views = [make_view("a.jpg"), make_view("b.jpg")]
    for name in "ab":
        write_id_map(tmp_path / f"{name}.png", 0 * IDS)
    with pytest.raises(InputError, match="hold no id at all"):
        read_mask_folder(tmp_path, views)
    write_id_map(tmp_path / "b.png", IDS)
    assert read_mask_folder(tmp_path, views).load(1).any()
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.png cannot be read"):
        read_mask_folder(tmp_path, views)


# ---- sizes


def test_another_size_is_an_error_that_names_both(tmp_path):
    write_id_map(tmp_path / "a.png", IDS[:5])
    with pytest.raises(InputError, match=r"a\.jpg is 8x6 but its mask .*a\.png is 8x5; make the mask again"):
        read_mask_folder(tmp_path, [make_view("a.jpg")])
    masks = read_mask_folder(tmp_path, [make_view("a.jpg")], resize="nearest")
    assert masks.load(0).shape == (6, 8)
    assert masks.notes == ("1 masks were resized from 8x5 to the 8x6 of their images (nearest id)",)


def test_masks_of_the_full_photos_of_a_downscaled_scene_are_resized_with_a_note(tmp_path):
    write_id_map(tmp_path / "a.png", IDS)
    masks = read_mask_folder(tmp_path, [make_view("a.jpg", 4, 3, full_size=(8, 6))])
    assert np.array_equal(masks.load(0), IDS[1::2, 1::2])
    assert "resized from 8x6 to the 4x3" in masks.notes[0]
    with pytest.raises(InputError, match="is 9x6 but its mask"):
        read_mask_folder(tmp_path, [make_view("a.jpg", 4, 3, full_size=(9, 6))])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_nearest_takes_the_id_under_the_centre(h, w, height, width):
    ids = np.arange(h * w).reshape(h, w)
    small = resize_nearest(ids, width, height)
    rows = np.floor((np.arange(height) + 0.5) * h / height + 1e-9).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * w / width + 1e-9).astype(int)
    assert np.array_equal(small, ids[np.ix_(rows, columns)])
    assert np.array_equal(resize_nearest(ids, w, h), ids)


def test_masks_of_distorted_photos_are_undistorted_with_them(tmp_path):
    lens = Lens("SIMPLE_RADIAL", (300.0, 200.0, 150.0, -0.15), 400, 300)
    flat = lenses.undistorted(lens)
    camera = Camera(torch.eye(4), torch.tensor(lenses.intrinsics(flat)).float(), flat.width, flat.height)
    view = View("a.jpg", camera, Path("a.jpg"), (400, 300), lens)
    # a disc in space, drawn in the distorted photo
    y, x = np.mgrid[:300, :400] + 0.5
    rays = lenses.to_colmap(lens).cam_from_img(np.stack([x.ravel(), y.ravel()], 1)).reshape(300, 400, 2)
    write_id_map(tmp_path / "a.png", 7 * (np.hypot(rays[..., 0] - 0.3, rays[..., 1]) < 0.2).astype(int))
    masks = read_mask_folder(tmp_path, [view])
    seen = masks.load(0)
    v, u = np.mgrid[: flat.height, : flat.width] + 0.5
    K = camera.K.numpy()
    expected = np.hypot((u - K[0, 2]) / K[0, 0] - 0.3, (v - K[1, 2]) / K[1, 1]) < 0.2
    assert seen.shape == (flat.height, flat.width) and set(np.unique(seen)) == {0, 7}
    assert ((seen == 7) ^ expected).mean() < 0.002 and "before undistortion" in masks.notes[0]
    write_id_map(tmp_path / "a.png", np.ones((flat.height, flat.width), int))  # of the undistorted copy
    assert read_mask_folder(tmp_path, [view]).notes == ()
    half = Camera(torch.eye(4), K_half(lenses.intrinsics(flat)), flat.width // 2, flat.height // 2)
    small = View("a.jpg", half, Path("a.jpg"), (400, 300), lens)
    assert "were resized from" in read_mask_folder(tmp_path, [small]).notes[0]  # of the undistorted copy still
    pixels = np.stack([2 * x[:150, :200].ravel(), 2 * y[:150, :200].ravel()], 1)
    rays = lenses.to_colmap(lens).cam_from_img(pixels).reshape(150, 200, 2)
    write_id_map(tmp_path / "a.png", 7 * (np.hypot(rays[..., 0] - 0.3, rays[..., 1]) < 0.2).astype(int))
    with pytest.raises(InputError, match="--resize nearest"):
        read_mask_folder(tmp_path, [view])
    masks = read_mask_folder(tmp_path, [view], "nearest")  # half as large, and of the photo before undistortion
    assert ((masks.load(0) == 7) ^ expected).mean() < 0.005 and "before undistortion" in masks.notes[0]


def K_half(K: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.diag([0.5, 0.5, 1.0]) @ K).float()


# ---- borders


@settings(max_examples=60, deadline=None)
@given(
    ids=arrays(np.int32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 3)),
    width=st.integers(0, 3),
)
def test_border_is_what_the_slow_loop_says(ids, width):
    expected = np.zeros(ids.shape, bool)
    for y, x in np.ndindex(*ids.shape):
        near = ids[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        expected[y, x] = (near != ids[y, x]).any()
    assert np.array_equal(border_mask(ids, width), expected)


def test_a_half_written_mask_is_never_seen(tmp_path, monkeypatch):
    write_id_map(tmp_path / "a.png", IDS)

    def fail(*_):
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="killed"):
        write_id_map(tmp_path / "a.png", IDS + 1)
    assert np.array_equal(read_id_map(tmp_path / "a.png"), IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
