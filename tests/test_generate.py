"""Making the masks of a scene: what is kept, resumed, refused and reported, whatever the generator."""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix

from cgc.clustering.columns import Columns, with_wholes
from cgc.errors import InputError
from cgc.masks.generate import is_finished, keep_masks, make_masks
from cgc.masks.id_maps import disagree, fitting, read_id_map, read_mask_folder
from cgc.masks.image_masks import ImageMasks
from cgc.masks.record import read_record, set_path
from cgc.scene.types import Camera, Lens, View

HEIGHT, WIDTH = 30, 40


@dataclass(frozen=True)
class Quarters:
    """Masks: the left and the right half, and the brighter quarter of the left; fails on photos with a black corner."""

    log: str
    strength: float = 1.0
    pause: float = 0.0
    turned: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        return {"generator": "quarters", "strength": self.strength}

    @property
    def name(self) -> str:
        return "quarters"

    def load(self, *, quiet=False):
        return self

    def __call__(self, image):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {image[0, 1, 0]}\n")
        if image[0, 0].max() < 5:
            raise ValueError("a black\n corner" + "!" * 1000)
        time.sleep(self.pause)
        half = np.zeros(image.shape[:2], bool)
        half[:, : image.shape[1] // 2] = True
        quarter = half.copy()
        quarter[: image.shape[0] // 2] = False
        if self.turned:
            half, quarter = half[::-1, ::-1], quarter[::-1, ::-1]
        return ImageMasks.from_masks([half, ~half, quarter], *image.shape[:2], [0.5, 0.7, 0.9])


@pytest.fixture
def views(tmp_path):
    made = []
    for i in range(5):
        picture = np.full((HEIGHT, WIDTH, 3), 40 * i + 20, np.uint8)
        path = tmp_path / "images" / f"v{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        K = torch.tensor([[50.0, 0, WIDTH / 2], [0, 50.0, HEIGHT / 2], [0, 0, 1]])
        made.append(View(f"v{i}.png", Camera(torch.eye(4), K, WIDTH, HEIGHT), path, (WIDTH, HEIGHT)))
    return made


def calls(log):
    return Path(log).read_text().split("\n")[:-1] if Path(log).exists() else []


def test_what_is_made(views, tmp_path):
    recipe, folder = Quarters(str(tmp_path / "log")), tmp_path / "masks"
    made = make_masks(views, recipe, folder, quiet=True)
    assert made.masks == {v.name: 3 for v in views} and not made.failed and not made.kept
    masks = read_mask_folder(folder, views)
    ids = masks.load(2)
    assert len(np.unique(ids)) == 3 and ids.min() == 1
    full = ImageMasks.load(set_path(folder, "v2"))
    assert full.levels.max() == 1 and full.scores.max() == np.float32(0.9)
    assert read_record(folder)["by"] == {"generator": "quarters", "strength": 1.0}
    assert not masks.tracked


def test_a_stopped_run_goes_on_and_a_changed_photo_is_done_again(views, tmp_path):
    recipe, folder = Quarters(str(tmp_path / "log")), tmp_path / "masks"
    make_masks(views[:2], recipe, folder, quiet=True)
    (folder / "sets" / ".v2.77.partial.npz").write_bytes(b"x")  # what a kill leaves
    set_path(folder, "v0").write_bytes(set_path(folder, "v0").read_bytes()[:50])
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8)).save(views[1].image_path)
    made = make_masks(views, recipe, folder, quiet=True)
    assert made.kept == () and len(calls(tmp_path / "log")) == 2 + 5
    (folder / "v3.png").unlink()
    made = make_masks(views, recipe, folder, quiet=True)
    assert set(made.kept) == {"v0.png", "v1.png", "v2.png", "v4.png"} and len(calls(tmp_path / "log")) == 8
    assert set(made.masks) == {v.name for v in views}


def test_a_failure_loses_nothing_else(views, tmp_path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(views[1].image_path)
    views[3].image_path.write_bytes(b"no image")
    recipe, folder = Quarters(str(tmp_path / "log")), tmp_path / "masks"
    made = make_masks(views, recipe, folder, quiet=True)
    assert set(made.failed) == {"v1.png", "v3.png"} and "ValueError: a black corner!" in made.failed["v1.png"]
    assert len(made.failed["v1.png"]) < 400 and "\n" not in made.failed["v1.png"]
    assert "cannot be read as an image" in made.failed["v3.png"]
    assert set(made.masks) == {"v0.png", "v2.png", "v4.png"}
    assert not (folder / "v1.png").exists()


@pytest.mark.parametrize(
    ("error", "said"), [(MemoryError(), "MemoryError: it did not say why"), (SystemExit(3), "SystemExit: 3")]
)
def test_whatever_a_generator_throws_is_told(views, tmp_path, monkeypatch, error, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(Quarters, "__call__", fail)
    made = make_masks(views, Quarters(str(tmp_path / "log")), tmp_path / "masks", quiet=True)
    assert set(made.failed.values()) == {said}


def test_an_interrupt_within_a_compiled_kernel_is_no_failure_of_a_view(views, tmp_path, monkeypatch):
    def interrupted(*_):
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr(Quarters, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_masks(views, Quarters(str(tmp_path / "log")), tmp_path / "masks", quiet=True)


def test_processes_and_shards_make_the_same(views, tmp_path):
    recipe = Quarters(str(tmp_path / "log"))
    make_masks(views, recipe, tmp_path / "one", quiet=True)
    for rank in (0, 1):
        made = make_masks(views, recipe, tmp_path / "two", shard=(rank, 2), quiet=True)
        assert len(made.masks) == (3, 2)[rank]
    make_masks(views, recipe, tmp_path / "three", workers=2, quiet=True)
    for view in views:
        one = (tmp_path / "one" / f"{view.stem}.png").read_bytes()
        assert one == (tmp_path / "two" / f"{view.stem}.png").read_bytes()
        assert one == (tmp_path / "three" / f"{view.stem}.png").read_bytes()
    assert len({line.split()[0] for line in calls(tmp_path / "log")}) >= 2  # of processes


def test_other_peoples_masks_are_not_touched(views, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "v0.png").write_bytes(b"mine")
    recipe = Quarters(str(tmp_path / "log"))
    with pytest.raises(InputError, match="none of them is replaced"):
        make_masks(views, recipe, folder, overwrite=True, quiet=True)
    assert (folder / "v0.png").read_bytes() == b"mine" and [p.name for p in folder.iterdir()] == ["v0.png"]
    with pytest.raises(InputError, match="is a file"):
        make_masks(views, recipe, tmp_path / "masks" / "v0.png", quiet=True)


def test_other_settings_replace_masks_only_when_asked(views, tmp_path):
    folder, recipe = tmp_path / "masks", Quarters(str(tmp_path / "log"))
    make_masks(views, recipe, folder, quiet=True)
    other = replace(recipe, strength=2.0)
    with pytest.raises(InputError, match=r"strength 1\.0, now 2\.0"):
        make_masks(views, other, folder, quiet=True)
    assert read_record(folder)["by"]["strength"] == 1.0
    made = make_masks(views, other, folder, overwrite=True, quiet=True)
    assert len(made.masks) == 5 and not made.kept and read_record(folder)["by"]["strength"] == 2.0
    (folder / "masks.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="expected format 1"):
        make_masks(views, other, folder, quiet=True)


class Tracker:
    format, tracked = "tracker", True

    def load(self, view_index):
        raise AssertionError("not for tracked masks")

    def id_map(self, view_index):
        return None if view_index == 1 else np.full((HEIGHT, WIDTH), 7 * view_index, np.int32)


class Stacks(Tracker):
    format, tracked = "stacks", False

    def load(self, view_index):
        if view_index == 1:
            return None
        left = np.zeros((HEIGHT, WIDTH), bool)
        left[:, :20] = True
        return ImageMasks.from_masks([left, np.ones_like(left)], HEIGHT, WIDTH)

    def id_map(self, view_index):
        raise AssertionError("not for untracked masks")


def test_masks_of_other_tools(views, tmp_path):
    made = keep_masks(views, Tracker(), tmp_path / "a", quiet=True)
    assert set(made.masks) == {"v0.png", "v2.png", "v3.png", "v4.png"} and made.masks["v0.png"] == 0
    masks = read_mask_folder(tmp_path / "a", views)
    assert masks.tracked and (masks.load(3) == 21).all() and masks.paths[1] is None
    keep_masks(views, Stacks(), tmp_path / "b", quiet=True)
    masks = read_mask_folder(tmp_path / "b", views)
    assert not masks.tracked and np.unique(masks.load(0)).tolist() == [1, 2]
    assert ImageMasks.load(set_path(tmp_path / "b", "v0")).levels.tolist() == [0, 1]


def test_masks_of_views_fit_other_sizes_and_are_not_undistorted(views, tmp_path):
    folder = tmp_path / "masks"
    make_masks(views, Quarters(str(tmp_path / "log")), folder, quiet=True)
    half = [replace(v, camera=v.camera.resized(WIDTH // 2, HEIGHT // 2), full_size=None) for v in views]
    masks = read_mask_folder(folder, half)
    assert masks.load(0).shape == (HEIGHT // 2, WIDTH // 2) and "nearest" in masks.notes[0]
    (folder / "masks.json").unlink()
    with pytest.raises(InputError, match="but its mask"):
        read_mask_folder(folder, half)


def test_masks_of_what_a_camera_sees_are_not_undistorted_though_they_are_of_the_photos_size(tmp_path):
    lens = Lens("SIMPLE_RADIAL", (300.0, 200.0, 150.0, 0.1), 400, 300)
    camera = Camera.look_at((0, -4, 0), (0, 0, 0), width=200, height=150)
    view, size = View("a.png", camera, tmp_path / "a.png", distortion=lens), (400, 300)
    ids = np.arange(400 * 300).reshape(300, 400)
    fit, note = fitting(view, tmp_path / "a.png", size, "error", of_view=True)
    assert np.array_equal(fit(ids), ids[1::2, 1::2]) and "were resized" in note
    assert "before undistortion" in fitting(view, tmp_path / "a.png", size, "error")[1]
    fit, note = fitting(replace(view, camera=camera.resized(*size)), tmp_path / "a.png", size, "error", of_view=True)
    assert np.array_equal(fit(ids), ids) and note == ""


def test_disagreement():
    masks = np.array([[1, 1, 1, 2, 2, 0, 0]])
    ids = np.array([[5, 5, 6, 6, 6, 9, 0]])
    assert disagree(masks, ids).tolist() == [[False, False, True, False, False, False, False]]
    assert not disagree(masks, np.zeros_like(ids)).any()
    rng = np.random.default_rng(0)
    masks, ids = rng.integers(0, 4, (20, 30)), rng.integers(0, 5, (20, 30))
    wanted = np.zeros(masks.shape, bool)
    for m in (1, 2, 3):
        inside = masks == m
        wanted |= inside & (ids != np.bincount(ids[inside]).argmax())
    assert np.array_equal(disagree(masks, ids), wanted)


def test_ids_of_maps_are_16_bit(views, tmp_path):
    make_masks(views, Quarters(str(tmp_path / "log")), tmp_path / "m", quiet=True)
    assert read_id_map(tmp_path / "m" / "v0.png").max() == 3


def test_a_kill_between_the_two_files_of_a_view_is_made_good(views, tmp_path, monkeypatch):
    folder, recipe = tmp_path / "masks", Quarters(str(tmp_path / "log"))
    make_masks(views, recipe, folder, quiet=True)
    old = read_id_map(folder / "v0.png")
    other = replace(recipe, strength=2.0, turned=True)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(ImageMasks, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            make_masks(views, other, folder, overwrite=True, quiet=True)
    assert not is_finished(folder, views)
    made = make_masks(views, other, folder, quiet=True)
    assert not made.kept and is_finished(folder, views)
    assert not np.array_equal(read_id_map(folder / "v0.png"), old)


def test_what_fails_leaves_nothing_that_was_made_otherwise(views, tmp_path):
    folder, recipe = tmp_path / "masks", Quarters(str(tmp_path / "log"))
    make_masks(views, recipe, folder, quiet=True)
    views[1].image_path.write_bytes(b"no image")
    make_masks(views, replace(recipe, strength=2.0), folder, overwrite=True, quiet=True)
    assert not (folder / "v1.png").exists() and not set_path(folder, "v1").exists()
    assert not is_finished(folder, views) and is_finished(folder, [v for v in views if v.name != "v1.png"])
    keep_masks(views, Tracker(), folder, overwrite=True, quiet=True)
    assert not list((folder / "sets").glob("*.npz")) and not (folder / "v1.png").exists()
    assert is_finished(folder, views)


def test_photos_with_one_stem_have_masks_of_their_own(views, tmp_path):
    twin = tmp_path / "images" / "v0.bmp"
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 220, np.uint8)).save(twin)
    both = [*views, replace(views[0], name="v0.bmp", image_path=twin)]
    folder = tmp_path / "masks"
    assert len(make_masks(both, Quarters(str(tmp_path / "log")), folder, quiet=True).masks) == 6
    masks = read_mask_folder(folder, both)
    assert masks.paths[0] != masks.paths[5] and masks.set_of(0) != masks.set_of(5) and is_finished(folder, both)
    assert len(make_masks(both, Quarters(str(tmp_path / "log")), folder, quiet=True).kept) == 6


def test_maps_that_were_painted_on_still_serve(views, tmp_path):
    folder = tmp_path / "masks"
    make_masks(views, Quarters(str(tmp_path / "log")), folder, quiet=True)
    masks = read_mask_folder(folder, views)
    table = masks.wholes(0)
    assert table is not None and len(table) == 4
    columns = Columns(csr_matrix(np.ones((5, 2), np.float32)), np.array([0, 0]), np.array([1, 9]))
    assert with_wholes(columns, {0: table}).nested is None
    np.savez(set_path(folder, "v1"), wholes=np.arange(4))
    assert masks.wholes(1) is None  # no mask holds another
    np.save(tmp_path / "x.npy", np.zeros(3))
    set_path(folder, "v0").write_bytes((tmp_path / "x.npy").read_bytes())
    with pytest.raises(InputError, match="make them again"):
        masks.wholes(0)


def test_generators_are_given_depths_and_few_of_them_wait(views, tmp_path):
    asked = []

    def depth_of(view):
        asked.append(view.name)
        return np.full((view.camera.height, view.camera.width), 1.0 + len(asked), np.float32)

    for workers in (1, 2):
        asked.clear()
        folder = tmp_path / str(workers)
        made = make_masks(views, ByDepth(), folder, workers=workers, depth_of=depth_of, quiet=True)
        assert len(made.masks) == len(views) == len(asked)
        assert sorted(made.masks.values()) == list(range(2, 2 + len(views)))
        asked.clear()
        assert len(make_masks(views, ByDepth(), folder, depth_of=depth_of, quiet=True).kept) == len(views)
        assert not asked  # what is done needs none


@dataclass(frozen=True)
class ByDepth:
    """Makes as many masks as the depth says."""

    facts = {"generator": "by depth"}  # noqa: RUF012

    def load(self, *, quiet=False):
        return lambda image, depth: ImageMasks.from_id_maps(
            [np.arange(depth.size).reshape(depth.shape) % int(depth[0, 0]) + 1]
        )

    def most_workers(self):
        return 1
