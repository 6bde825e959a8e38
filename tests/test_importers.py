"""Masks of other tools, written the way those tools write them, and files that are broken on purpose."""

import base64
import io
import json
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_masks

from cgc.errors import InputError
from cgc.masks.image_masks import encode
from cgc.masks.importers import FORMATS, read_foreign
from cgc.masks.importers.polygons import disc, fill
from cgc.masks.importers.rle import from_text
from cgc.scene.types import Camera, Lens, View

W, H = 12, 9
STEMS = ("a1", "a2", "a10")


def make_view(name, width=W, height=H, full_size=None, distortion=None):
    K = torch.tensor([[8.0, 0, width / 2], [0, 8, height / 2], [0, 0, 1]])
    from pathlib import Path

    return View(name, Camera(torch.eye(4), K, width, height), Path(name), full_size or (width, height), distortion)


VIEWS = [make_view(f"{stem}.jpg") for stem in STEMS]


def ids_of(seed, number=3, width=W, height=H):
    """Columns of ids, 0 among them, shifted by the seed."""
    columns = (np.arange(width) + seed) * (number + 1) // width % (number + 1)
    return np.broadcast_to(columns, (height, width)).astype(np.int32).copy()


def stack_of(seed):
    """Three overlapping boxes [3, H, W] bool."""
    masks = np.zeros((3, H, W), bool)
    masks[0, 1:8, 1:10] = masks[1, 2:5, 2 + seed : 6 + seed] = masks[2, 6:9, 7:] = True
    return masks


def pictures(made):
    """The masks as a set of pictures."""
    return {made.mask(i).tobytes() for i in range(len(made))}


def wanted(masks):
    return {np.asarray(mask, bool).tobytes() for mask in masks if np.any(mask)}


def of_ids(ids):
    return wanted(ids == i for i in np.unique(ids[ids > 0]))


def check_stacks(found, name):
    assert found.format == name and not found.tracked
    for index in range(3):
        made = found.load(index)
        assert pictures(made) == wanted(stack_of(index))
    assert any("3 of 3 images have masks" in sentence for sentence in found.decisions)
    assert any(sentence == "9 masks were read." for sentence in found.decisions)


def rows_of(masks, compressed, float_scores=(0.5, 0.75, 0.875)):
    """Masks as SamAutomaticMaskGenerator gives them, by its own functions."""
    from segment_anything.utils.amg import coco_encode_rle, mask_to_rle_pytorch

    rles = mask_to_rle_pytorch(torch.from_numpy(masks))
    return [
        {
            "segmentation": coco_encode_rle(rle) if compressed else rle,
            "area": int(mask.sum()),
            "bbox": [0, 0, 1, 1],
            "predicted_iou": score,
            "point_coords": [[1.0, 2.0]],
            "stability_score": 0.9,
            "crop_box": [0, 0, W, H],
        }
        for mask, rle, score in zip(masks, rles, float_scores)
    ]


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        json.dump(value, file)


# ---- run lengths and polygons


@settings(max_examples=150, deadline=None)
@given(mask=arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans()))
def test_compressed_run_lengths_are_those_of_pycocotools(mask):
    text = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    numbers = from_text(text)
    assert numbers.tolist() == encode(mask).tolist()


@pytest.mark.parametrize(
    "text, sentence", [("1p", "characters"), ("1é", "characters"), ("1/", "characters"), ("P", "end within"),
                       ("PPPPPPP1", "more than 35 bits")]
)  # fmt: skip
def test_text_that_is_no_run_lengths(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_text(text)


def test_long_runs(tmp_path):
    rle = coco_masks.frPyObjects({"size": [5000, 4000], "counts": [3, 19_999_000, 990, 7]}, 5000, 4000)
    assert from_text(rle["counts"].decode()).tolist() == [3, 19_999_000, 990, 7]


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(st.binary(max_size=30).map(lambda b: b.decode("latin1")), st.text("0123PQRST`abcno", max_size=25))
)
def test_fuzzed_run_lengths_end_in_a_sentence(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    dump(folder / "a1.json", [{"segmentation": {"size": [H, W], "counts": text}}])
    found = read_foreign(folder, VIEWS, format="sam-json")
    try:
        made = found.load(0)
    except InputError as error:
        assert "a1.json" in str(error)
    else:
        assert len(made) == 0 or 0 < made.areas.sum() <= W * H


points = st.lists(st.tuples(st.floats(-6, 20, width=32), st.floats(-6, 16, width=32)), min_size=3, max_size=9).map(
    np.array
)


@settings(max_examples=150, deadline=None)
@given(outline=points)
def test_polygons_against_a_slow_reference(outline):
    mask = fill(outline, W, H)
    for row in range(H):
        for column in range(W):
            y, inside = row + 0.5, False
            for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0)):
                if min(y0, y1) <= y < max(y0, y1):
                    inside ^= x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= column + 0.5
            assert mask[row, column] == inside


def test_polygons_are_those_of_pycocotools_but_for_borders():
    angles = np.linspace(0, 2 * np.pi, 23, endpoint=False)
    outline = np.stack([200 + 150 * np.cos(angles), 150 + 100 * np.sin(2 * angles + 1)], 1)
    mask = fill(outline, 400, 300)
    rle = coco_masks.merge(coco_masks.frPyObjects([outline.ravel().tolist()], 300, 400))
    theirs = coco_masks.decode(rle).astype(bool)
    assert (mask & theirs).sum() / (mask | theirs).sum() > 0.97
    square = np.array([[2, 1], [6, 1], [6, 4], [2, 4]])
    assert fill(square, W, H)[1:4, 2:6].all() and fill(square, W, H).sum() == 12
    assert disc(1.5, 1.5, 1, W, H).sum() == 5
    assert disc(6, 4, 3, W, H).sum() == sum(
        (c + 0.5 - 6) ** 2 + (r + 0.5 - 4) ** 2 <= 9 for r in range(H) for c in range(W)
    )


def test_a_polygon_of_a_million_far_edges_is_refused_at_once():
    zigzag = np.stack([np.arange(200_000) % 7, np.where(np.arange(200_000) % 2, -1e30, 1e30)], 1)
    began = time.monotonic()
    with pytest.raises(InputError, match="simplify it"):
        fill(zigzag, 4000, 3000)
    assert time.monotonic() - began < 2


# ---- Segment Anything


def write_amg_folder(folder, masks):
    folder.mkdir(parents=True)
    header = (
        "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,"
        "crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
    )
    table = [header]
    for i, row in enumerate(rows_of(masks, False)):
        Image.fromarray(masks[i].astype(np.uint8) * 255).save(folder / f"{i}.png")
        values = [i, row["area"], *row["bbox"], *row["point_coords"][0], row["predicted_iou"], 0.9, *row["crop_box"]]
        table.append(",".join(map(str, values)))
    (folder / "metadata.csv").write_text("\n".join(table))


def test_amg_folders(tmp_path):
    for index, stem in enumerate(STEMS):
        write_amg_folder(tmp_path / "out" / stem, stack_of(index))
    found = read_foreign(tmp_path / "out", VIEWS)
    check_stacks(found, "sam-png")
    assert found.load(0).scores.tolist() == [0.5, 0.875, 0.75]  # largest first
    assert read_foreign(tmp_path / "out" / "a1", VIEWS).load(0) is not None  # one image's folder
    table = tmp_path / "out" / "a1" / "metadata.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))  # as editors on Windows save it
    assert read_foreign(tmp_path / "out" / "a1", VIEWS).load(0).scores.tolist() == [0.5, 0.875, 0.75]
    (tmp_path / "out" / "a2" / "1.png").unlink()
    with pytest.raises(InputError, match=r"row for 1\.png, which is missing"):
        found.load(1)
    table.write_text(table.read_text().replace("\n2,", "\n../2,"))
    with pytest.raises(InputError, match="expected the numbers 0, 1"):
        found.load(0)
    table.write_text(table.read_text().replace("\n../2,", "\n1,"))
    with pytest.raises(InputError, match="once each"):
        found.load(0)


def save_masks(folder, names, digits):
    """A folder an image of PNGs, as amg.py writes them, but without metadata.csv."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i, mask in enumerate(stack_of(index)):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name / f"{i:0{digits}d}.png")


@pytest.mark.parametrize("stems", [STEMS, ("cam/000", "cam/001", "rig/000"), ("000", "001", "002")])
def test_amg_folders_without_a_table(tmp_path, stems):
    save_masks(tmp_path / "out", stems, 1)
    found = read_foreign(tmp_path / "out", [make_view(f"{stem}.jpg") for stem in stems])
    check_stacks(found, "sam-png")
    assert any("No folder has metadata.csv" in sentence for sentence in found.decisions)
    Image.fromarray(ids_of(0).astype(np.uint8)).save(tmp_path / "out" / stems[0] / "1.png")
    with pytest.raises(InputError, match="expected black and white"):
        found.load(0)


def test_folders_and_files_that_are_both_named_like_images(tmp_path):
    """Masks 0 to 2 of the images 0 to 2 might be the objects 0 to 2 in the frames 0 to 2."""
    save_masks(tmp_path, ("000", "001", "002"), 3)
    views = [make_view(f"{i:03d}.jpg") for i in range(3)]
    with pytest.raises(InputError, match=r"several formats: sam-png .*sam2-objects .*--format NAME"):
        read_foreign(tmp_path, views)
    check_stacks(read_foreign(tmp_path, views, format="sam-png"), "sam-png")
    objects = read_foreign(tmp_path, views, format="sam2-objects")
    assert pictures(objects.load(1)) == wanted(stack_of(index)[1] for index in range(3))
    shutil.rmtree(tmp_path / "000")  # of two objects in all of the three frames
    clear = read_foreign(tmp_path, views)
    assert clear.format == "sam2-objects" and pictures(clear.load(1)) == wanted(stack_of(index)[1] for index in (1, 2))
    (tmp_path / "001/000.png").unlink()
    (tmp_path / "002/000.png").unlink()
    with pytest.raises(InputError, match="several formats"):
        read_foreign(tmp_path, views)


@pytest.mark.parametrize("compressed", [False, True])
def test_amg_json(tmp_path, compressed):
    for index, stem in enumerate(STEMS):
        dump(tmp_path / f"{stem}.json", rows_of(stack_of(index), compressed))
    found = read_foreign(tmp_path, VIEWS)
    check_stacks(found, "sam-json")
    assert found.load(0).scores.tolist() == [0.5, 0.875, 0.75]
    assert any("lie within others" in sentence for sentence in found.decisions)


def test_sa1b(tmp_path):
    for index, stem in enumerate(STEMS):
        image = {"image_id": index, "width": W, "height": H, "file_name": f"{stem}.jpg"}
        dump(tmp_path / f"{stem}.json", {"image": image, "annotations": rows_of(stack_of(index), True)})
        Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / f"{stem}.png")  # the photo lies beside
    check_stacks(read_foreign(tmp_path, VIEWS), "sa-1b")


@pytest.mark.parametrize("names", [STEMS, ("result_0", "result_1", "result_2")])
def test_grounded_sam2_images(tmp_path, names):
    """A JSON an image, named like it or naming it, with scores that are lists of one number."""
    for index, (name, stem) in enumerate(zip(names, STEMS)):
        rows = [
            {"class_name": "cup", "segmentation": row["segmentation"], "score": [row["predicted_iou"]]}
            for row in rows_of(stack_of(index), True)
        ]
        image = {"image_path": f"C:\\\\data\\{stem}.jpg" if index else f"in/{stem}.jpg"}
        dump(tmp_path / f"{name}.json", {**image, "annotations": rows, "img_width": W, "img_height": H})
    found = read_foreign(tmp_path, VIEWS)
    check_stacks(found, "sa-1b")
    assert found.load(0).scores.tolist() == [0.5, 0.875, 0.75]
    assert any("as the files say" in sentence for sentence in found.decisions) == (names != STEMS)
    for path in tmp_path.iterdir():  # one image for all says nothing
        dump(path, {**json.loads(path.read_text()), "image_path": f"in/{STEMS[0]}.jpg"})
    found = read_foreign(tmp_path, VIEWS)
    assert any("WARNING: no mask is named like" in said for said in found.decisions) == (names != STEMS)


# ---- id maps


def test_gaussian_grouping(tmp_path):
    folder = tmp_path / "scene" / "object_mask"
    folder.mkdir(parents=True)
    for index, stem in enumerate(STEMS):
        Image.fromarray((ids_of(index) * 60).astype(np.uint8)).save(folder / f"{stem}.png")
    for where in (folder, tmp_path / "scene", tmp_path):
        found = read_foreign(where, VIEWS)
        assert found.format == "gaussian-grouping" and found.tracked
        for index in range(3):
            assert found.id_map(index).dtype == np.int32
            assert np.array_equal(found.id_map(index), ids_of(index) * 60)
            assert pictures(found.load(index)) == of_ids(ids_of(index))


def test_deva_with_long_ids(tmp_path):
    """DEVA paints RGB where it may have more than 255 ids; the same colour is the same object in every frame."""
    folder = tmp_path / "Annotations"
    folder.mkdir()
    colours = np.array([[0, 0, 0], [200, 3, 3], [4, 90, 7], [9, 9, 250]], np.uint8)
    for index, stem in enumerate(STEMS):
        Image.fromarray(colours[ids_of(index)]).save(folder / f"{stem}.png")
    dump(tmp_path / "pred.json", {"annotations": [{"file_name": "a1.jpg", "segments_info": []}]})
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == "gaussian-grouping" and found.tracked
    order = np.argsort(np.argsort(colours.astype(int) @ [1, 256, 65536]))  # black is first
    for index in range(3):
        assert np.array_equal(found.id_map(index), order[ids_of(index)])


def test_gaga(tmp_path):
    for index, stem in enumerate(STEMS):
        Image.fromarray(ids_of(index).astype(np.uint8)).save(tmp_path / f"{stem}.png")
    assert read_foreign(tmp_path, VIEWS).format == "id-png"
    dump(tmp_path / "info.json", {"num_mask": 3, "raw_mask_folder": "x", "associated_mask_folder": "y"})
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == "gaga" and np.array_equal(found.id_map(2), ids_of(2))


def davis_png(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(bytes([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]) + bytes(range(252)) * 3)
    image.save(path)


FRAMES = [make_view(f"{i:05d}.jpg") for i in range(3)]


def test_palette_frames(tmp_path):
    for index in range(3):
        davis_png(tmp_path / "video" / f"{index:05d}.png", ids_of(index))
    found = read_foreign(tmp_path, FRAMES)
    assert found.format == "palette-png" and not found.tracked
    assert any("add --tracked" in sentence for sentence in found.decisions)
    with pytest.raises(InputError, match="--tracked"):
        found.id_map(0)
    for where in (dict(tracked=True), dict(format="sam2-png")):
        found = read_foreign(tmp_path, FRAMES, **where)
        assert found.tracked and np.array_equal(found.id_map(1), ids_of(1))
        assert pictures(found.load(1)) == of_ids(ids_of(1))


def test_a_folder_an_object(tmp_path):
    for index in range(3):
        for number, mask in zip((1, 2, 17), stack_of(index)):
            if (index, number) != (2, 17):  # an object need not be in every frame
                davis_png(tmp_path / "video" / f"{number:03d}" / f"{index:05d}.png", mask)
    found = read_foreign(tmp_path, FRAMES)
    assert found.format == "sam2-objects" and found.tracked
    assert pictures(found.load(0)) == wanted(stack_of(0)) and len(found.load(2)) == 2
    painted = np.zeros((H, W), int)
    for number, mask in list(zip((1, 2, 17), stack_of(0)))[::-1]:
        painted[mask] = number
    assert np.array_equal(found.id_map(0), painted)
    for index in range(3):
        davis_png(tmp_path / "video" / "000" / f"{index:05d}.png", stack_of(0)[1])
    found = read_foreign(tmp_path, FRAMES)
    assert any("1 was added" in sentence for sentence in found.decisions)
    assert set(np.unique(found.id_map(2))) == {0, 1, 2}  # object 0 is 1, above object 1 that is 2


def test_video_segments(tmp_path):
    segments = {f: {o: stack_of(f)[None, i] for i, o in enumerate((1, 2, 17))} for f in range(3)}
    flat = {f"{f}/{o}": mask for f, masks in segments.items() for o, mask in masks.items()}
    np.savez_compressed(tmp_path / "masks.npz", **flat)
    found = read_foreign(tmp_path / "masks.npz", FRAMES)
    assert found.format == "sam2-npz" and found.tracked
    assert pictures(found.load(1)) == wanted(stack_of(1))
    assert set(np.unique(found.id_map(0))) == {0, 1, 2, 17} - {2}  # object 2 lies below object 1
    assert not any("WARNING" in sentence for sentence in found.decisions)
    by_order = read_foreign(tmp_path / "masks.npz", VIEWS)
    assert any("WARNING: Frame numbers" in sentence for sentence in by_order.decisions)
    assert pictures(by_order.load(2)) == wanted(stack_of(2))  # a10 comes after a2
    with pytest.raises(InputError, match="frame 2, but the scene has 2 images"):
        read_foreign(tmp_path / "masks.npz", VIEWS[:2])
    np.savez_compressed(tmp_path / "ids.npz", masks=np.stack([ids_of(f).astype(np.uint16) for f in range(3)]))
    found = read_foreign(tmp_path / "ids.npz", FRAMES)
    assert found.format == "sam2-npz" and np.array_equal(found.id_map(2), ids_of(2))
    for frame in (2, 0, 1, 1):  # in any order
        assert np.array_equal(found.id_map(frame), ids_of(frame))
    for keys in (("0/1", "0_1"), ("0", "0/1"), ("0/1", "0")):
        np.savez(tmp_path / "twice.npz", **{key: stack_of(0)[0] for key in keys})
        with pytest.raises(InputError, match="beside another array of that frame"):
            read_foreign(tmp_path / "twice.npz", FRAMES)
    np.savez_compressed(tmp_path / "pickled.npz", data=np.array(segments, dtype=object))
    with pytest.raises(InputError, match=r"pickle.*never opened.*savez_compressed"):
        read_foreign(tmp_path / "pickled.npz", FRAMES)


def test_colours(tmp_path):
    colours = np.array([[0, 0, 0], [200, 3, 3], [4, 90, 7], [9, 9, 250]], np.uint8)
    for index, stem in enumerate(STEMS):
        Image.fromarray(colours[ids_of(index)]).save(tmp_path / f"{stem}.png")
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == "rgb-png" and not found.tracked
    for index in range(3):
        assert pictures(found.load(index)) == of_ids(ids_of(index))
    assert any("ids over 65,535: ids are numbered anew" in sentence for sentence in found.decisions)
    assert read_foreign(tmp_path, VIEWS, tracked=True).id_map(0).max() == 3


def test_pascal_voc(tmp_path):
    """CVAT's "Segmentation mask": colours of classes, and of objects."""
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]], np.uint8)
    for folder, number in (("SegmentationClass", 1), ("SegmentationObject", 3)):
        (tmp_path / folder).mkdir()
        for index, stem in enumerate(STEMS):
            pixels = colours[np.minimum(ids_of(index), number)]
            Image.fromarray(pixels).save(tmp_path / folder / f"{stem}.png")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\n")
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == "rgb-png" and pictures(found.load(1)) == of_ids(ids_of(1))
    assert any("taken from" in told and "SegmentationObject" in told for told in found.decisions)


def test_photos_and_jpegs_are_no_colours(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    views = [make_view("a.jpg", 80, 60)]
    Image.fromarray(noise).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="smoothed borders"):
        read_foreign(tmp_path, views).load(0)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="JPEG"):
        read_foreign(tmp_path, views)


def test_transparent_pixels(tmp_path):
    pixels = np.full((H, W, 4), (10, 20, 30, 255), np.uint8)
    pixels[:3, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a1.png")
    assert pictures(read_foreign(tmp_path, VIEWS).load(0)) == wanted([pixels[..., 3] > 0])
    pixels[4, 4, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "a1.png")
    with pytest.raises(InputError, match="half transparent"):
        read_foreign(tmp_path, VIEWS).load(0)


# ---- COCO


def coco(masks_of=stack_of):
    rows = []
    for index in range(3):
        a, b, c = masks_of(index)
        runs = coco_masks.encode(np.asfortranarray(a.astype(np.uint8)))
        rows.append({"id": len(rows), "image_id": 10 + index, "iscrowd": 0,
                     "segmentation": {"size": [H, W], "counts": runs["counts"].decode()}})  # fmt: skip
        y, x = np.argwhere(b).min(0)
        box = [x, y, x + 4, y, x + 4, y + 3, x, y + 3]
        rows.append({"id": len(rows), "image_id": 10 + index, "iscrowd": 0, "score": 0.25,
                     "segmentation": [[float(v) for v in box]]})  # fmt: skip
        counts = encode(c).tolist()
        rows.append({"id": len(rows), "image_id": 10 + index, "iscrowd": 0,
                     "segmentation": {"size": [H, W], "counts": counts}})  # fmt: skip
    images = [{"id": 10 + i, "width": W, "height": H, "file_name": f"{stem}.jpg"} for i, stem in enumerate(STEMS)]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}


def test_coco(tmp_path):
    value = coco()
    dump(tmp_path / "instances.json", value)
    for where in (tmp_path, tmp_path / "instances.json"):
        found = read_foreign(where, VIEWS)
        check_stacks(found, "coco")
    assert found.load(0).scores.tolist() == [1, 1, 0.25]  # areas 63, 15, 12
    value["annotations"][0]["iscrowd"] = 1
    value["annotations"][1]["segmentation"] = [[1, 1, 4, 4]]
    value["annotations"].append({"id": 99, "image_id": 10, "segmentation": [[90, 90, 95, 90, 95, 95]]})
    dump(tmp_path / "instances.json", value)
    found = read_foreign(tmp_path, VIEWS)
    assert len(found.load(0)) == 1
    told = " ".join(found.decisions)
    assert (
        "1 crowd regions" in told
        and "1 annotations without an outline" in told
        and "1 masks that have no pixel" in told
    )


def save_splits(folder, hashed, extra):
    """COCO's images, one a split as Roboflow writes them."""
    value = coco()
    for number, (split, image) in enumerate(zip(("train", "valid", "test"), value["images"])):
        name = image["file_name"].replace(".jpg", f"_jpg.rf.{number}badc0ffee.jpg" if hashed else ".jpg")
        rows = [row for row in value["annotations"] if row["image_id"] == image["id"]]
        if extra:
            name, image = f"x{name}", {**image, "extra": {"name": image["file_name"]}}
        image, rows = {**image, "id": 0, "file_name": name}, [{**row, "image_id": 0} for row in rows]
        dump(folder / split / "_annotations.coco.json", {**value, "images": [image], "annotations": rows})


@pytest.mark.parametrize("hashed, extra", [(False, False), (True, False), (True, True)])
def test_coco_in_splits(tmp_path, hashed, extra):
    save_splits(tmp_path, hashed, extra)
    found = read_foreign(tmp_path, VIEWS)
    check_stacks(found, "coco")
    assert any("3 COCO JSONs were read as one" in sentence for sentence in found.decisions)
    train = tmp_path / "train" / "_annotations.coco.json"
    dump(tmp_path / "copy.json", json.loads(train.read_text()))
    with pytest.raises(InputError, match="both hold masks of a1; keep one of them"):
        read_foreign(tmp_path, VIEWS)


def test_run_lengths_that_are_all_marked_as_crowds_are_things(tmp_path):
    """As CVAT writes masks; in COCO's own files outlines are beside them."""
    value = coco()
    value["annotations"] = [
        row | {"iscrowd": 1} for row in value["annotations"] if isinstance(row["segmentation"], dict)
    ]
    dump(tmp_path / "instances.json", value)
    found = read_foreign(tmp_path, VIEWS)
    a, _, c = stack_of(0)
    assert pictures(found.load(0)) == wanted([a, c]) and any("marked as crowds" in text for text in found.decisions)


def test_linked_folders_are_looked_into(tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    dump(outside / "a1.json", labelme({"points": [[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]]}))
    (tmp_path / "masks").mkdir()
    dump(tmp_path / "masks/b.json", labelme({"points": [[1.0, 1.0], [4.0, 1.0], [4.0, 3.0]]}))
    (tmp_path / "masks/more").symlink_to(outside, target_is_directory=True)
    assert len(read_foreign(tmp_path / "masks", VIEWS).load(0)) == 1


def test_parts_of_an_object_may_overlap_and_its_runs_are_of_its_image(tmp_path):
    value = coco()
    value["annotations"][1]["segmentation"] = [[1, 1, 5, 1, 5, 4, 1, 4], [3, 2, 8, 2, 8, 6, 3, 6]]
    dump(tmp_path / "x.json", value)
    both = np.zeros((H, W), bool)
    both[1:4, 1:5] = both[2:6, 3:8] = True
    assert both.tobytes() in pictures(read_foreign(tmp_path, VIEWS).load(0))
    value["images"][0].update(width=2 * W, height=2 * H)  # the photo's size, but not that of the run lengths
    dump(tmp_path / "x.json", value)
    with pytest.raises(InputError, match="an image that it says is 24x18"):
        read_foreign(tmp_path, [make_view("a1.jpg", full_size=(2 * W, 2 * H))]).load(0)


def broken_coco(change):
    value = coco()
    change(value, value["images"][0], value["annotations"][0], value["annotations"][1])
    return value


BROKEN = {
    "NaN": (lambda v, i, r, p: p["segmentation"][0].__setitem__(2, float("nan")), "is no number"),
    "infinity": (lambda v, i, r, p: p["segmentation"][0].__setitem__(2, float("inf")), "is no number"),
    "odd": (lambda v, i, r, p: p["segmentation"][0].pop(), "no list of x and y"),
    "ragged": (lambda v, i, r, p: p.update(segmentation=[[[1, 2], [3]]]), "no list of x and y"),
    "text": (lambda v, i, r, p: p.update(segmentation=[["a", "b", "c", "d", "e", "f"]]), "no list of x and y"),
    "number": (lambda v, i, r, p: p.update(segmentation=7), "of the kind int"),
    "other size": (lambda v, i, r, p: r["segmentation"].update(size=[H, W + 1]), "is 12x9 but its mask"),
    "truncated": (lambda v, i, r, p: r["segmentation"].update(counts="1"), "truncated"),
    "too long": (lambda v, i, r, p: r["segmentation"].update(counts=[H * W, 1]), "109 pixels where its size"),
    "negative": (lambda v, i, r, p: r["segmentation"].update(counts=[-5, H * W + 5]), "run of -5 pixels"),
    "fraction": (lambda v, i, r, p: r["segmentation"].update(counts=[1.5, 3]), "no list of whole numbers"),
    "no counts": (lambda v, i, r, p: r["segmentation"].pop("counts"), "no list of whole numbers"),
    "huge number": (lambda v, i, r, p: r["segmentation"].update(counts=[10**30]), "no list of whole numbers"),
    "no size": (lambda v, i, r, p: r["segmentation"].pop("size"), r"\[height, width\]"),
    "gigantic": (lambda v, i, r, p: i.update(width=10**6, height=10**6), "1000000x1000000"),
    "beyond all numbers": (lambda v, i, r, p: i.update(width=10**400), "expected a size in pixels"),
    "negative size": (lambda v, i, r, p: i.update(width=-4), "expected a size in pixels"),
    "bool size": (lambda v, i, r, p: i.update(width=True), "expected a size in pixels"),
    "score": (lambda v, i, r, p: p.update(score=float("nan")), "rates a mask"),
    "twice": (lambda v, i, r, p: v["images"].append({**i, "id": 77}), "two entries for the image a1"),
    "same id": (lambda v, i, r, p: v["images"].append({**i, "file_name": "z.jpg"}), "id 10"),
    "unknown image": (lambda v, i, r, p: r.update(image_id=5), "not in its list"),
    "list as id": (lambda v, i, r, p: r.update(image_id=[5]), "not in its list"),
    "name": (lambda v, i, r, p: i.update(file_name=None), "file_name None"),
    "row": (lambda v, i, r, p: v["annotations"].append(3), "annotation of the image None"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_coco(tmp_path, case):
    change, sentence = BROKEN[case]
    dump(tmp_path / "x.json", broken_coco(change))
    with pytest.raises(InputError, match=sentence):
        read_foreign(tmp_path, VIEWS).load(0)


def test_names_in_a_json_are_never_opened(tmp_path):
    value = coco()
    value["images"][0]["file_name"] = "../../etc/a1.jpg"
    value["images"][1]["file_name"] = "C:\\photos\\a2.jpg"
    value["images"][2]["file_name"] = "/data/a10.jpg"
    dump(tmp_path / "x.json", value)
    check_stacks(read_foreign(tmp_path, VIEWS), "coco")
    panoptic, _ = write_panoptic(tmp_path / "p")
    panoptic["annotations"][0]["file_name"] = "../a1.png"
    dump(tmp_path / "p" / "panoptic_val.json", panoptic)
    with pytest.raises(InputError, match="expected the name of a file beside it"):
        read_foreign(tmp_path / "p", VIEWS)


def write_panoptic(folder):
    images = [{"id": i, "width": W, "height": H, "file_name": f"{stem}.jpg"} for i, stem in enumerate(STEMS)]
    rows = []
    for index, stem in enumerate(STEMS):
        numbers = np.array([0, 7, 300, 70000])[ids_of(index)]
        rgb = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
        (folder / "panoptic_val").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(folder / "panoptic_val" / f"{stem}.png")
        segments = [{"id": int(n), "category_id": 1, "iscrowd": int(n == 300)} for n in np.unique(numbers[numbers > 0])]
        rows.append({"image_id": index, "file_name": f"{stem}.png", "segments_info": segments})
    value = {"images": images, "annotations": rows}
    dump(folder / "panoptic_val.json", value)
    return value, rows


def test_panoptic(tmp_path):
    write_panoptic(tmp_path)
    for where in (tmp_path, tmp_path / "panoptic_val.json"):
        found = read_foreign(where, VIEWS)
        assert found.format == "coco-panoptic"
        for index in range(3):
            assert pictures(found.load(index)) == of_ids(np.where(ids_of(index) == 2, 0, ids_of(index)))
    assert any("3 crowd regions" in sentence for sentence in found.decisions)


def test_detections_do_not_name_images(tmp_path):
    dump(tmp_path / "r.json", coco()["annotations"])
    with pytest.raises(InputError, match="does not name its images"):
        read_foreign(tmp_path, VIEWS)


# ---- LabelMe


def labelme(*shapes, width=W, height=H):
    keys = dict(label="thing", group_id=None, shape_type="polygon", flags={})
    return {
        "version": "5.0.1", "flags": {}, "shapes": [{**keys, **shape} for shape in shapes],
        "imagePath": "../photos/a1.jpg", "imageData": None, "imageHeight": height, "imageWidth": width,
    }  # fmt: skip


def png_text(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme(tmp_path):
    small = np.zeros((3, 4), np.uint8)
    small[1, 1:] = 255
    value = labelme(
        {"points": [[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]]},
        {"points": [[8.0, 8.0], [5.0, 6.0]], "shape_type": "rectangle"},
        {"points": [[9.0, 3.0], [9.0, 5.0]], "shape_type": "circle"},
        {"points": [[6.0, 0.0], [9.0, 2.0]], "shape_type": "mask", "mask": png_text(small)},
        {"points": [[0.0, 5.0], [1.0, 5.0], [1.0, 8.0], [0.0, 8.0]], "group_id": 4},
        {"points": [[3.0, 5.0], [4.0, 5.0], [4.0, 8.0], [3.0, 8.0]], "group_id": 4},
        {"points": [[11.0, 0.0], [12.0, 0.0], [12.0, 2.0], [11.0, 2.0]], "shape_type": "rotation"},
        {"points": [[3.0, 5.0], [4.0, 5.0]], "shape_type": "line"},
        {"points": [[3.0, 5.0], [4.0, 5.0]]},
    )
    dump(tmp_path / "a1.json", value)
    Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / "a1.png")
    found = read_foreign(tmp_path, VIEWS)
    made = found.load(0)
    expected = np.zeros((6, H, W), bool)
    expected[5, :2, 11] = True
    expected[0, 1:3, 1:4] = expected[1, 6:8, 5:8] = expected[3, 1, 7:10] = True
    expected[2] = disc(9, 3, 2, W, H)
    expected[4, 5:8, 0] = expected[4, 5:8, 3] = True
    assert found.format == "labelme" and pictures(made) == wanted(expected) and found.load(1) is None
    told = " ".join(found.decisions)
    assert "2 images have no masks" in told and "'line'" in told and "too few points" in told


@pytest.mark.parametrize(
    "shape, sentence",
    [
        ({"points": [[0, float("nan")], [1, 1], [2, 2]]}, "is no number"),
        ({"points": "abc"}, "no list of x and y"),
        ({"points": [[1, 2], [5, 5]], "shape_type": "mask", "mask": "%%%"}, "cannot be read"),
        ({"points": [[1, 2], [5, 5]], "shape_type": "mask", "mask": png_text(np.ones((3, 40), np.uint8))}, "40x3"),
        ({"points": [[9, 2], [99, 5]], "shape_type": "mask", "mask": png_text(np.ones((3, 9), np.uint8))}, "outside"),
        ({"points": [[9, 2], [99, 5]], "shape_type": "mask"}, "no picture"),
    ],
)
def test_broken_labelme(tmp_path, shape, sentence):
    dump(tmp_path / "a1.json", labelme(shape))
    with pytest.raises(InputError, match=sentence):
        read_foreign(tmp_path, VIEWS).load(0)


def test_gigantic_labelme(tmp_path):
    dump(tmp_path / "a1.json", labelme(width=10**6, height=10**6))
    for resize in ("error", "nearest"):
        with pytest.raises(InputError, match="1000000x1000000"):
            read_foreign(tmp_path, VIEWS, resize=resize).load(0)


# ---- arrays


def test_id_arrays(tmp_path):
    for index, stem in enumerate(STEMS):
        np.save(tmp_path / f"{stem}.npy", ids_of(index).astype(np.int64) * 2**40)
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == "id-arrays" and not found.tracked
    assert pictures(found.load(1)) == of_ids(ids_of(1))
    with pytest.raises(InputError, match="go to 65,535"):
        read_foreign(tmp_path, VIEWS, tracked=True).load(1)


def test_grounded_sam2(tmp_path):
    for index, stem in enumerate(STEMS):
        np.save(tmp_path / f"mask_{stem}.npy", ids_of(index).astype(np.uint16))
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == "grounded-sam2" and found.tracked and np.array_equal(found.id_map(1), ids_of(1))
    assert any("without 'mask_' in front" in sentence for sentence in found.decisions)


def test_langsplat(tmp_path):
    for index, stem in enumerate(STEMS):
        levels = np.stack([ids_of(index + k) - 1 for k in range(4)]).astype(np.int32)
        np.save(tmp_path / f"{stem}_s.npy", levels)
        np.save(tmp_path / f"{stem}_f.npy", np.zeros((5, 512), np.float32))
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == "langsplat"
    expected = set().union(*(of_ids(ids_of(1 + k)) for k in range(4)))
    assert pictures(found.load(1)) == expected


@pytest.mark.parametrize("form", ["bool", "torchvision", "last", "fortran", "npy", "uint8"])
def test_mask_rcnn(tmp_path, form):
    for index, stem in enumerate(STEMS):
        masks = stack_of(index)
        scores, labels, boxes = np.array([0.9, 0.8, 0.7]), np.arange(3), np.zeros((3, 4), np.float32)
        if form == "torchvision":  # shares [N, 1, H, W]
            shares = np.where(masks, 0.75, 0.25).astype(np.float32)[:, None]
            np.savez(tmp_path / f"{stem}.npz", boxes=boxes, labels=labels, scores=scores, masks=shares)
        elif form == "npy":
            np.save(tmp_path / f"{stem}.npy", masks)
        else:
            made = {"bool": masks, "last": np.moveaxis(masks, 0, -1), "fortran": np.asfortranarray(masks),
                    "uint8": masks.astype(np.uint8) * 255}[form]  # fmt: skip
            np.savez_compressed(tmp_path / f"{stem}.npz", masks=made, scores=scores)
    found = read_foreign(tmp_path, VIEWS)
    check_stacks(found, "mask-arrays")
    if form != "npy":
        assert np.allclose(found.load(0).scores, [0.9, 0.7, 0.8])
    if form == "torchvision":
        assert any("boxes, labels were not used" in sentence for sentence in found.decisions)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(scores=np.ones(2)), "2 finite scores for 3 masks"),
        (dict(scores=np.array([1, 1, np.nan])), "3 finite scores for 3 masks"),
        (dict(masks=np.full((3, H, W), 1.5)), "outside 0 to 1"),
        (dict(masks=np.full((3, H, W), np.nan)), "outside 0 to 1"),
        (dict(masks=np.ones((3, H, W), "U1")), "expected masks of type bool"),
        (dict(masks=np.ones((2, 3, H, W), bool)), "expected \\[H, W\\]"),
        (dict(masks=-np.ones((3, H, W), int)), "the id -1"),
    ],
)
def test_broken_stacks(tmp_path, change, sentence):
    np.savez(tmp_path / "a1.npz", **{"masks": stack_of(0), "scores": np.ones(3), **change})
    with pytest.raises(InputError, match=sentence):
        read_foreign(tmp_path, VIEWS).load(0)


@pytest.mark.parametrize("form", ["bool", "uint8", "pt"])
def test_sam3_frames(tmp_path, form):
    """Masks with the ids of their objects, some of which a frame may lack; the first object may be 0."""
    objects = ([0, 4, 9], [9], [])
    for index, (stem, numbers) in enumerate(zip(STEMS, objects)):
        masks = stack_of(index)[: len(numbers)]
        arrays = {
            "out_obj_ids": np.array(numbers, np.int64), "out_probs": np.full(len(numbers), 0.5, np.float32),
            "out_boxes_xywh": np.zeros((len(numbers), 4), np.float32),
            "out_binary_masks": masks.astype(np.uint8) if form == "uint8" else masks,
        }  # fmt: skip
        if form == "pt":
            torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, tmp_path / f"{stem}.pt")
        else:
            np.savez(tmp_path / f"{stem}.npz", **arrays)
    found = read_foreign(tmp_path, VIEWS)
    assert found.format == ("saga" if form == "pt" else "mask-arrays") and not found.tracked
    assert [pictures(found.load(index)) for index in range(3)] == [wanted(stack_of(0)), wanted(stack_of(1)[:1]), set()]
    assert found.load(0).scores.tolist() == [0.5] * 3
    assert any("which object a mask is of" in sentence for sentence in found.decisions)
    found = read_foreign(tmp_path, VIEWS, tracked=True)
    painted = np.zeros((H, W), int)
    for number, mask in list(zip((1, 5, 10), stack_of(0)))[::-1]:
        painted[mask] = number
    assert any("1 was added to all ids" in sentence for sentence in found.decisions)
    assert np.array_equal(found.id_map(0), painted)
    assert np.array_equal(found.id_map(1), np.where(stack_of(1)[0], 10, 0)) and not found.id_map(2).any()


def test_stacks_that_do_not_say_which_object(tmp_path):
    np.savez(tmp_path / "a1.npz", masks=stack_of(0), obj_ids=np.arange(1, 3))
    with pytest.raises(InputError, match="2 ids of objects for 3 masks"):
        read_foreign(tmp_path, VIEWS).load(0)
    np.savez(tmp_path / "a1.npz", masks=stack_of(0), obj_ids=np.ones(3))
    with pytest.raises(InputError, match=r"obj_ids \[3\] of float64; expected a whole number"):
        read_foreign(tmp_path, VIEWS)
    np.savez(tmp_path / "a1.npz", masks=stack_of(0), scores=np.ones(3))
    with pytest.raises(InputError, match=r"does not say which object .*leave out --tracked"):
        read_foreign(tmp_path, VIEWS, tracked=True)


@pytest.mark.parametrize("form", ["float", "bool", "dict"])
def test_saga(tmp_path, form):
    for index, stem in enumerate(STEMS):
        masks = torch.from_numpy(stack_of(index))
        value = {"float": masks.float(), "bool": masks, "dict": {"masks": masks[:, None].half()}}[form]
        torch.save(value, tmp_path / f"{stem}.pt")
    check_stacks(read_foreign(tmp_path, VIEWS), "saga")


def test_garfield(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "sam_data.hdf5", "w") as file:
        for index in range(3):
            keys = np.full((H, W, 3), -1, np.int64)
            for number, mask in enumerate(stack_of(index)):
                free = (keys == -1) & mask[..., None]
                first = np.cumsum(free, -1) == 1
                keys[free & first] = number
            file.create_dataset(f"sam_hf/pixel_level_keys/{index}", data=keys)
    found = read_foreign(tmp_path / "sam_data.hdf5", VIEWS)
    assert found.format == "garfield" and sum("WARNING" in sentence for sentence in found.decisions) == 2
    for index in range(3):
        assert pictures(found.load(index)) == wanted(stack_of(index))


def test_many_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("cgc.masks.importers.reading.MOST_MASKS", 200)
    ids = np.arange(1, 300 * 400 + 1).reshape(300, 400).astype(np.int32)
    ids[:100], ids[200, :6] = 1, 77_777
    np.save(tmp_path / "a.npy", ids)
    found = read_foreign(tmp_path, [make_view("a.jpg", 400, 300)])
    made = found.load(0)
    assert len(made) == 200 and made.areas[:3].tolist() == [40_000, 7, 1]
    told = " ".join(found.decisions)
    assert f"{80_001 - 6 - 200:,} masks were left out" in told and "ids over 65,535" in told
    np.savez(tmp_path / "a.npz", masks=ids == np.arange(39_990, 40_290)[:, None, None])
    (tmp_path / "a.npy").unlink()
    found = read_foreign(tmp_path, [make_view("a.jpg", 400, 300)])
    assert len(found.load(0)) == 200 and "100 masks were left out" in " ".join(found.decisions)
    np.save(tmp_path / "a.npy", ids)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(InputError, match="go to 65,535"):
        read_foreign(tmp_path, [make_view("a.jpg", 400, 300)], tracked=True).id_map(0)


# ---- sizes, names, formats


def test_sizes(tmp_path):
    ids = ids_of(0, width=2 * W, height=2 * H)
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "a1.png")
    with pytest.raises(InputError, match="is 12x9 but its mask"):
        read_foreign(tmp_path, VIEWS).load(0)
    for views, resize in ((VIEWS, "nearest"), ([make_view("a1.jpg", full_size=(2 * W, 2 * H))], "error")):
        found = read_foreign(tmp_path, views, resize=resize, tracked=True)
        assert np.array_equal(found.id_map(0), ids[1::2, 1::2])
        assert pictures(found.load(0)) == of_ids(ids[1::2, 1::2])
        assert any("resized from 24x18 to the 12x9" in sentence for sentence in found.decisions)
    Image.fromarray(ids_of(0, width=2 * H, height=2 * W).astype(np.uint8)).save(tmp_path / "a1.png")
    for resize in ("error", "nearest"):  # of a photo that its EXIF tag turns
        with pytest.raises(InputError, match=r"is 12x9 but its mask .* is 18x24, on its side: .* EXIF"):
            read_foreign(tmp_path, VIEWS, resize=resize).load(0)
    torch.save(torch.from_numpy(np.stack([ids == 1, ids == 2])), tmp_path / "a1.pt")
    (tmp_path / "a1.png").unlink()
    found = read_foreign(tmp_path, VIEWS, resize="nearest")
    assert pictures(found.load(0)) == wanted([ids[1::2, 1::2] == 1, ids[1::2, 1::2] == 2])


def test_masks_of_distorted_photos_are_undistorted(tmp_path):
    from cgc.masks.id_maps import read_mask_folder

    lens = Lens("SIMPLE_RADIAL", (14.0, 10.0, 8.0, -0.2), 20, 16)
    Image.fromarray(ids_of(0, width=20, height=16).astype(np.uint8)).save(tmp_path / "a1.png")
    views = [make_view("a1.jpg", distortion=lens, full_size=(20, 16))]
    found = read_foreign(tmp_path, views, tracked=True)
    assert np.array_equal(found.id_map(0), read_mask_folder(tmp_path, views).load(0))
    assert pictures(found.load(0)) == of_ids(found.id_map(0))
    assert any("undistorted likewise" in sentence for sentence in found.decisions)


def save_ids(folder, names):
    for index, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids_of(index).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    "names, views, sentence",
    [
        (["a1", "a2", "a10"], ["a1.jpg", "a2.jpg", "a10.jpg"], "by name:"),
        (["a1.jpg", "a2.jpg", "a10.jpg"], ["a1.jpg", "a2.jpg", "a10.jpg"], "by name:"),
        (["s/a1", "s/a2", "t/a1"], ["s/a1.jpg", "s/a2.jpg", "t/a1.jpg"], "by name:"),
        (["a1", "a2", "a3"], ["s/a1.jpg", "s/a2.jpg", "t/a3.jpg"], "by name:"),
        (["x/a1", "x/a2", "y/a3"], ["a1.jpg", "a2.jpg", "a3.jpg"], "without their folders"),
        (["a1_mask", "a2_mask", "a3_mask"], ["a1.jpg", "a2.jpg", "a3.jpg"], "without '_mask' at the end"),
        (["s/0badcafe-a", "s/c0ffee00-b", "s/12345678-c"], ["a.jpg", "b.jpg", "c.jpg"], "without Label Studio's eight"),
        (["m1", "m2", "m10"], ["IMG_1.jpg", "IMG_9.jpg", "IMG_10.jpg"], "WARNING: no mask is named like an image"),
    ],
)
def test_names(tmp_path, names, views, sentence):
    save_ids(tmp_path, names)
    found = read_foreign(tmp_path, [make_view(name) for name in views], tracked=True)
    assert sentence in " ".join(found.decisions)
    for index in range(3):
        assert np.array_equal(found.id_map(index), ids_of(index))


@pytest.mark.parametrize(
    "names, views, counted",
    [
        (["mask_00", "mask_01", "mask_02"], ["01.jpg", "02.jpg", "03.jpg"], "0 to 2 and the images 1 to 3"),
        (["8", "9", "10"], ["9.jpg", "10.jpg", "11.jpg"], "8 to 10 and the images 9 to 11"),
        (["f1", "f2", "f3"], ["f0.jpg", "f1.jpg", "f2.jpg"], "1 to 3 and the images 0 to 2"),
        (["0", "1", "2", "3"], ["1.jpg", "2.jpg", "4.jpg"], "0 to 3 and the images 1 to 4"),
    ],
)  # fmt: skip
def test_trackers_count_from_another_number(tmp_path, names, views, counted):
    """A tracker's frames count from 0, and ffmpeg's photos from 1: names fit, but for one, and are one image off."""
    save_ids(tmp_path, names)
    found = read_foreign(tmp_path, [make_view(name) for name in views], tracked=True)
    told = " ".join(found.decisions)
    assert "WARNING: the masks are numbered" in told and counted in told and "3 of 3 images have masks" in told
    for index, mask in enumerate((0, 1, 3) if len(names) == 4 else range(3)):
        assert np.array_equal(found.id_map(index), ids_of(mask))
    end = names[-1 if "f0.jpg" in views else 0]
    assert f"remove the masks {end!r}." in told
    (tmp_path / f"{end}.png").unlink()
    assert "by name" in " ".join(read_foreign(tmp_path, [make_view(name) for name in views]).decisions)


def test_numbers_that_are_the_images_own(tmp_path):
    """The tracker did not make masks of all images, or the scene does not have all frames."""
    for number, (masks, images) in enumerate([((0, 1, 2), (1, 2, 4)), ((0, 1, 2, 3), (1, 2, 3)), ((1, 2), (0, 1, 2))]):
        save_ids(tmp_path / str(number), [str(mask) for mask in masks])
        found = read_foreign(tmp_path / str(number), [make_view(f"{image}.jpg") for image in images])
        assert any("matched to images by name" in sentence for sentence in found.decisions)


def test_an_order_that_names_contradict(tmp_path):
    views = [make_view(name) for name in ("a1.jpg", "a2.jpg", "a10.jpg")]
    save_ids(tmp_path, ["x3_a1_k", "x2_a2_k", "x1_a10_k"])
    with pytest.raises(InputError, match=r"x1_a10_k would be matched to a1\.jpg, although it has a10 in its name"):
        read_foreign(tmp_path, views)
    save_ids(tmp_path / "sorted", ["x1_a1_k", "x2_a2_k", "x3_a10_k"])
    assert any("WARNING: no mask" in sentence for sentence in read_foreign(tmp_path / "sorted", views).decisions)


def test_names_that_do_not_fit(tmp_path):
    save_ids(tmp_path, ["b1", "b2"])
    with pytest.raises(InputError, match="by order they cannot be matched: the scene has 3 images"):
        read_foreign(tmp_path, VIEWS)
    save_ids(tmp_path, ["a1"])
    found = read_foreign(tmp_path, VIEWS)
    assert found.load(1) is None
    told = " ".join(found.decisions)
    assert "1 of 3 images have masks" in told and "2 images that the scene does not have were skipped: b1, b2" in told


def test_folders_of_views_are_no_objects(tmp_path):
    """Photos of a rig lie in 001/, 002/ too, and masks of one object each look like an object's folder."""
    views = [make_view("001/a.jpg"), make_view("002/a.jpg")]
    for folder in ("001", "002"):
        davis_png(tmp_path / folder / "a.png", stack_of(0)[0])
    found = read_foreign(tmp_path, views)
    assert found.format == "palette-png" and pictures(found.load(1)) == wanted(stack_of(0)[:1])


def test_ambiguous_folders(tmp_path):
    save_ids(tmp_path, STEMS)
    dump(tmp_path / "instances.json", coco())
    with pytest.raises(InputError, match=r"several formats: coco .*id-png .*--format NAME"):
        read_foreign(tmp_path, VIEWS)
    check_stacks(read_foreign(tmp_path, VIEWS, format="coco"), "coco")
    assert read_foreign(tmp_path, VIEWS, format="id-png").load(0) is not None


def test_photos_beside_coco_are_no_masks(tmp_path):
    value = coco()
    for image, stem in zip(value["images"], STEMS):
        image["file_name"] = f"..\\up\\{stem}.png"
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / "images" / f"{stem}.png")
    dump(tmp_path / "result.json", value)
    check_stacks(read_foreign(tmp_path, VIEWS), "coco")
    save_ids(tmp_path / "ids", ["a1"])  # that is no photo
    with pytest.raises(InputError, match="several formats"):
        read_foreign(tmp_path, VIEWS)


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("annotations.xml", "<?xml version='1.0'?>\n<annotations>\n<version>1.1</version>", "CVAT.*COCO 1.0"),
        ("labels/a1.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n", "YOLO.*export as COCO"),
        ("project.json", '[{"id": 1, "annotations": [], "data": {"image": "a1.jpg"}}]', "Label Studio.*export as COCO"),
        ("task-1-annotation-1-by-1-tag-cup-0.png", "", "Label Studio.*export as COCO"),
        ("task-1-annotation-1-by-1-tag-cup-0.npy", "", "Label Studio.*export as COCO"),
        ("readme.txt", "0 images, 3 labels", "no masks of a known format"),
        ("a.xml", "<annotation><folder>x</folder></annotation>", "no masks of a known format"),
    ],
)
def test_exports_that_are_not_read_name_the_one_to_choose(tmp_path, name, text, sentence):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_foreign(tmp_path, VIEWS)


def test_wrong_calls(tmp_path):
    with pytest.raises(InputError, match="no mask format 'sam'"):
        read_foreign(tmp_path, VIEWS, format="sam")
    with pytest.raises(InputError, match="holds no file"):
        read_foreign(tmp_path, VIEWS)
    with pytest.raises(InputError, match="do not exist"):
        read_foreign(tmp_path / "nowhere", VIEWS)
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(InputError, match="no masks of a known format"):
        read_foreign(tmp_path, VIEWS)
    dump(tmp_path / "instances.json", coco())
    with pytest.raises(InputError, match="leave out --tracked"):
        read_foreign(tmp_path, VIEWS, tracked=True)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_refuses_a_folder_without_its_files(tmp_path, name):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(InputError):
        read_foreign(tmp_path, VIEWS, format=name)


# ---- files broken at any byte


def npz_claiming(path, shape):
    """An .npz whose member says that it has this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|b1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("masks.npy", file.getvalue() + bytes(64))


def test_arrays_that_claim_too_much(tmp_path):
    npz_claiming(tmp_path / "a1.npz", (10**6, 10**6))
    with pytest.raises(InputError, match="does not fit an array"):
        read_foreign(tmp_path, VIEWS).load(0)
    npz_claiming(tmp_path / "a1.npz", (-8, -8))
    with pytest.raises(InputError, match="cannot be read"):
        read_foreign(tmp_path, VIEWS).load(0)
    np.savez_compressed(tmp_path / "a1.npz", masks=np.zeros((3, 2000, 2000), bool))  # 12 MB in 12 kB
    with pytest.raises(InputError, match="is 12x9 but its mask"):
        read_foreign(tmp_path, VIEWS).load(0)
    with pytest.raises(InputError, match="over 64 times the pixels"):
        read_foreign(tmp_path, VIEWS, resize="nearest").load(0)


def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was opened')",))

    np.save(tmp_path / "a1.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="never opened"):
        read_foreign(tmp_path, VIEWS)
    (tmp_path / "a1.npy").unlink()
    torch.save({"masks": Bomb()}, tmp_path / "a1.pt")
    with pytest.raises(InputError, match="never opened"):
        read_foreign(tmp_path, VIEWS).load(0)


def write_one(folder, name):
    """Write a1's masks in a format; return its files."""
    if name == "sam-json":
        dump(folder / "a1.json", rows_of(stack_of(0), True))
    elif name == "coco":
        dump(folder / "all.json", coco())
    elif name == "labelme":
        dump(folder / "a1.json", labelme({"points": [[1, 1], [4, 1], [4, 3]]}))
    elif name == "id-png":
        save_ids(folder, ["a1"])
    elif name == "rgb-png":
        Image.fromarray(np.stack([ids_of(0) * 9, ids_of(0) * 5, ids_of(0)], -1).astype(np.uint8)).save(
            folder / "a1.png"
        )
    elif name == "sam-png":
        write_amg_folder(folder / "a1", stack_of(0))
    elif name == "id-arrays":
        np.save(folder / "a1.npy", ids_of(0))
    elif name == "mask-arrays":
        np.savez_compressed(folder / "a1.npz", masks=stack_of(0), scores=np.ones(3))
    elif name == "sam2-npz":
        np.savez_compressed(folder / "v.npz", **{f"0/{i}": m for i, m in enumerate(stack_of(0))})
    elif name == "saga":
        torch.save(torch.from_numpy(stack_of(0)), folder / "a1.pt")
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


FUZZED = ["sam-json", "coco", "labelme", "id-png", "rgb-png", "sam-png", "id-arrays", "mask-arrays", "sam2-npz", "saga"]


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files_end_in_a_sentence(tmp_path, name):
    files = write_one(tmp_path, name)
    assert len(read_foreign(tmp_path, VIEWS, format=name).load(0)) > 0
    rng = np.random.default_rng(0)
    whole = {path: path.read_bytes() for path in files}
    refused = 0
    for _ in range(40):
        path = files[rng.integers(len(files))]
        data = bytearray(whole[path])
        if rng.random() < 0.4:
            data = data[: rng.integers(len(data))]
        else:
            for place in rng.integers(0, len(data), rng.integers(1, 4)):
                data[place] = rng.integers(256)
        path.write_bytes(data)
        for where in ("auto", name):
            try:
                found = read_foreign(tmp_path, VIEWS, format=where)
                [found.load(i) for i in range(3)]
            except InputError as error:
                refused += 1
                assert len(str(error)) > 20
        path.write_bytes(whole[path])
    assert refused > 10


def test_only_one_view_is_in_memory(tmp_path):
    """Fifty masks of a photo are read one by one: beside their runs, little is held."""
    import tracemalloc

    height, width = 300, 400
    masks = np.zeros((50, height, width), bool)
    for i in range(50):
        masks[i, 5 * i : 5 * i + 40, 20 : 200 + i] = True
    np.savez_compressed(tmp_path / "a.npz", masks=masks)
    found = read_foreign(tmp_path, [make_view("a.jpg", width, height)], format="mask-arrays")
    tracemalloc.start()
    counts = found._read(0).counts
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(counts) == 50 and peak < masks.nbytes / 2
