"""From bare photos to masks: the commands a user types, on a small scene."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import snapshot

from cgc import prepare
from cgc.cli import main
from cgc.masks.generators import Sam
from cgc.masks.id_maps import read_id_map, read_mask_folder, write_id_map
from cgc.masks.regions import RegionMerging
from cgc.masks.sam import SegmentAnything
from cgc.run_folder import open_run
from cgc.scene.read import read_scene
from cgc.settings import MaskSettings

ONE = ["--workers", "1"]
TINY = [
    "--train.steps", "60", "--train.max-gaussians", "700", "--train.checkpoint-every", "0", "--lift.steps", "40",
    "--lift.dim", "8", "--lift.pixels-per-view", "1500", "--cluster.samples", "500", "--cluster.min-cluster-size", "10",
    "--sharpen.steps", "0",
]  # fmt: skip


@pytest.fixture
def scene(tiny_scene, tmp_path):
    """The tiny scene without any masks."""
    root = tmp_path / "scene"
    shutil.copytree(tiny_scene, root)
    shutil.rmtree(root / "masks")
    return root


def test_masks_of_a_scene(scene, capsys):
    assert main(["masks", str(scene), "--generator", "regions", "--preview", *ONE]) == 0
    said = capsys.readouterr().out
    assert "10 views" in said and str(scene / "masks") in said
    masks = read_mask_folder(scene / "masks", read_scene(scene).views)
    assert all(masks.load(i).max() >= 4 for i in range(10))
    assert not masks.tracked
    with Image.open(scene / "masks" / "preview.jpg") as sheet:
        assert sheet.width > 3 * 48
    before = snapshot(scene / "masks")
    assert main(["masks", str(scene), "--generator", "regions", *ONE]) == 0
    assert "10 of them kept" in capsys.readouterr().out
    assert snapshot(scene / "masks") == before


def test_weights_are_told_apart_by_what_they_hold(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"one")
    first = Sam(SegmentAnything(checkpoint=path)).facts
    path.write_bytes(b"two!")
    other = Sam(SegmentAnything(checkpoint=path, model="vit_b")).facts
    assert first["checkpoint"]["sha256"] != other["checkpoint"]["sha256"] and first["model"] is other["model"] is None
    (tmp_path / "b").mkdir()
    path.rename(tmp_path / "b/weights.pth")
    assert Sam(SegmentAnything(checkpoint=tmp_path / "b/weights.pth")).facts == other
    assert Sam(SegmentAnything(checkpoint=path)).facts["checkpoint"] is None  # loading it says that it is not there


def test_auto_says_what_it_takes_and_what_would_be_better(scene, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CGC_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, said = prepare.choose_recipe(MaskSettings(), SegmentAnything(), RegionMerging())
    assert "needs no weights" in said and "--generator sam" in said
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "sam_vit_h_4b8939.pth").write_bytes(b"")
    recipe, said = prepare.choose_recipe(MaskSettings(), SegmentAnything(), RegionMerging())
    assert recipe.facts["generator"] == "sam" and "weights are here" in said
    monkeypatch.setattr("cgc.device.see", lambda text: (torch.device("cuda:0" if text == "auto" else "cpu"), ""))
    _, said = prepare.choose_recipe(MaskSettings(), SegmentAnything(model="vit_b"), RegionMerging())
    assert "there is a GPU" in said
    _, said = prepare.choose_recipe(MaskSettings(), SegmentAnything(model="vit_b", device="cpu"), RegionMerging())
    assert "needs no weights" in said


def test_presets_and_settings_reach_the_record(scene):
    words = ["masks", str(scene), "--generator", "regions", "--preset", "fine", "--regions.texture", "2.5", *ONE]
    assert main([*words, "--min-area", "0.001"]) == 0
    record = json.loads((scene / "masks" / "masks.json").read_text())
    assert record["by"]["texture"] == 2.5 and record["min_area"] == 0.001
    assert record["by"]["max_side"] == 1000


def test_a_generator_of_ones_own(scene, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def halves(image):\n"
        "    ids = np.ones(image.shape[:2], np.int32)\n"
        "    ids[:, image.shape[1] // 2:] = 2\n"
        "    return ids\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["masks", str(scene), "--generator", "mine:halves"]) == 0
    assert np.unique(read_id_map(scene / "masks" / "a_view_00.png")).tolist() == [1, 2]
    assert main(["masks", str(scene), "--generator", "mine:nothing", "--overwrite"]) == 2
    assert "mine" in capsys.readouterr().err


def test_masks_of_another_tool(scene, tiny_scene, capsys):
    source = tiny_scene / "instance"  # ids that mean the same in every view
    assert main(["masks", str(scene), "--from", str(source), "--tracked"]) == 0
    said = capsys.readouterr().out
    assert "note:" in said
    ids = read_id_map(scene / "masks" / "sub" / "view_04.png")
    assert np.array_equal(ids, read_id_map(source / "sub" / "view_04.png"))
    assert json.loads((scene / "masks" / "masks.json").read_text())["tracked"] is True


def test_what_was_left_out_on_import_is_said(scene, tmp_path, capsys):
    views = {"a_view_00": [3, 3, 30, 3, 30, 30], "sub/view_04": [3, 3, 30, 3]}
    images = [{"id": i, "width": 64, "height": 48, "file_name": f"{name}.jpg"} for i, name in enumerate(views)]
    with Image.open(next((scene / "images").rglob("*.*g"))) as photo:
        images = [image | {"width": photo.width, "height": photo.height} for image in images]
    rows = [{"id": i, "image_id": i, "segmentation": [xy]} for i, xy in enumerate(views.values())]
    for used in (rows, rows[1:]):
        value = {"images": images, "annotations": used, "categories": []}
        (tmp_path / "coco.json").write_text(json.dumps(value))
        code = main(["masks", str(scene), "--from", str(tmp_path / "coco.json"), "--overwrite"])
        said = capsys.readouterr()
        assert "1 annotations without an outline" in " ".join((said.out + said.err).split())
        assert code == (0 if used is rows else 2)
    assert "has no mask that can be used for any of" in " ".join(said.err.split())


def test_tracked_masks_are_voted_for(scene, tiny_scene, tmp_path, capsys):
    assert main(["masks", str(scene), "--from", str(tiny_scene / "instance"), "--tracked", "--quiet"]) == 0
    assert main(["run", str(scene), "--out", str(tmp_path / "run"), *TINY]) == 0
    assert "nothing to learn" in capsys.readouterr().out
    labels = np.load(tmp_path / "run" / "segments.npz")["labels"]
    assert set(np.unique(labels[labels > 0])) <= set(range(1, 8))


def test_one_command_from_a_scene_without_masks(scene, tmp_path, capsys):
    before, run = snapshot(scene), tmp_path / "run"
    assert main(["run", str(scene), "--out", str(run), *TINY]) == 0
    assert "once there are splats" in capsys.readouterr().out
    assert snapshot(scene) == before  # the masks are of these splats, so they are the run's
    record = json.loads((run / "regions" / "masks.json").read_text())["by"]
    assert record["splats"] == open_run(run).stats["splats_sha256"][:16] and record["relief"]["bend"] > 0
    page = (run / "report" / "index.html").read_text()
    assert "Masks of" in page and "Where masks and result disagree" in page
    kept = snapshot(run)
    assert main(["run", str(scene), "--out", str(run), *TINY]) == 0
    assert snapshot(run) == kept and "lift: done before, kept" in capsys.readouterr().out


def test_a_runs_own_masks_move_with_it_and_follow_its_splats(scene, tmp_path, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert main(["run", str(scene), "--out", str(run), *TINY]) == 0
    kept = snapshot(run)
    run.rename(moved)
    assert main(["run", str(scene), "--out", str(moved), *TINY]) == 0
    assert snapshot(moved) == kept
    assert main(["lift", str(moved)]) == 0
    assert snapshot(moved / "regions") == {k[8:]: v for k, v in kept.items() if k.startswith("regions/")}
    shutil.rmtree(moved / "regions")
    capsys.readouterr()
    assert main(["cluster", str(moved)]) == 2
    assert f"cgc lift {moved}" in " ".join(capsys.readouterr().err.split())
    assert main(["lift", str(moved)]) == 0 and main(["cluster", str(moved)]) == 0
    assert main(["train", str(moved), "--steps", "70"]) == 0
    assert main(["lift", str(moved)]) == 0
    assert main(["info", str(moved)]) == 0
    assert str(moved / "regions") in capsys.readouterr().out.replace("\n", "")
    now = json.loads((moved / "regions" / "masks.json").read_text())["by"]["splats"]
    assert now == open_run(moved).stats["splats_sha256"][:16]
    assert main(["run", str(scene), "--out", str(moved), "--masks", str(scene / "instance"), *TINY]) == 0
    assert open_run(moved).source.masks == str(scene / "instance")


@pytest.mark.parametrize("words", [["--train.features", "joint"], ["--blocks.gaussians", "100"]])
def test_masks_that_cannot_wait_for_splats_are_the_scenes(scene, tmp_path, words, capsys):
    run = tmp_path / "run"
    assert main(["run", str(scene), "--out", str(run), *TINY]) == 0
    assert main(["run", str(scene), "--out", str(run), *TINY, *words, "--quiet"]) == 0
    assert (scene / "masks" / "preview.jpg").exists() and open_run(run).source.masks == str(scene / "masks")
    capsys.readouterr()
    assert main(["run", str(scene), "--out", str(tmp_path / "two"), *TINY]) == 0
    assert "masks: those in" in capsys.readouterr().out and not (tmp_path / "two" / "regions").exists()


def test_without_masks_when_asked(scene, tmp_path, capsys):
    assert main(["run", str(scene), "--masks", "none", "--out", str(tmp_path / "run"), *TINY]) == 0
    assert "no masks were given" in capsys.readouterr().out and not (scene / "masks").exists()


def test_a_folder_called_masks_that_is_something_else(scene, tmp_path, capsys):
    write_id_map(scene / "masks" / "a_view_00.png", np.ones((36, 48), np.int32))
    before = snapshot(scene)
    assert main(["run", str(scene), "--out", str(tmp_path / "run"), *TINY]) == 2
    said = capsys.readouterr().err
    assert "--masks" in said and "--masks none" in said
    assert main(["masks", str(scene), "--generator", "regions", "--overwrite"]) == 2
    assert snapshot(scene) == before
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {"config.json", "scene.json"}


def test_a_photo_that_fails_is_named_at_the_end(scene, capsys, tmp_path, monkeypatch):
    (tmp_path / "picky.py").write_text(
        "import numpy as np\n"
        "count = 0\n"
        "def some(image):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 3: raise RuntimeError('too dark')\n"
        "    return np.ones(image.shape[:2], np.int32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["masks", str(scene), "--generator", "picky:some"]) == 2
    told = capsys.readouterr()
    assert "1 of 10 views have no masks" in told.err and "too dark" in told.err
    assert len(list((scene / "masks").rglob("*view*.png"))) == 9
    assert main(["masks", str(scene), "--generator", "picky:some"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--generator", "regions", "--min-area", "-1"], "min_area"),
        (["--generator", "regions", "--workers", "-2"], "workers"),
        (["--from", "nowhere"], "nowhere"),
        (["--tracked"], "--from"),
        (["--generator", "no.such.module:f"], "no.such"),
        (["--generator", "sam", "--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (
            ["--generator", "regions", "--checkpoint", "x.pth"],
            "--checkpoint x.pth is for Segment Anything, but the masks",
        ),
        (["--generator", "no.such.module:f", "--checkpoint", "x.pth"], "made by no.such.module:f; use --generator sam"),
        (["--from", "nowhere", "--checkpoint", "x.pth"], "leave out --from"),
        (["--generator", "regions", "--sam.points-per-side", "64"], "settings of Segment Anything"),
        (["--generator", "regions", "--preset", "fast", "--model", "vit_l"], "settings of Segment Anything"),
    ],
)
def test_bad_words(scene, words, says, capsys):
    assert main(["masks", str(scene), *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not list(scene.rglob("masks/*.png"))


def test_a_run_with_masks_cannot_be_told_to_have_none(scene, tmp_path, capsys):
    words = ["run", str(scene), "--out", str(tmp_path / "run"), *TINY]
    assert main(words) == 0
    assert main([*words, "--masks", "none"]) == 2
    assert "a run with masks" in capsys.readouterr().err


def test_unfinished_masks_of_other_settings_are_not_taken_for_whole(scene, tmp_path, capsys):
    assert main(["masks", str(scene), "--generator", "regions", "--preset", "fast", "--quiet", *ONE]) == 0
    (scene / "masks" / "a_view_00.png").unlink()
    assert main(["run", str(scene), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "are not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--masks", "typo"], "typo"), (["--lift.dim", "0"], "lift.dim"), (["--splats", "a.ply"], "trained with")],
)
def test_bad_words_are_said_before_photos_are_placed(tmp_path, words, says, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "scene_of", lambda *_, **__: pytest.fail("photos were looked at"))
    (tmp_path / "photos").mkdir()
    assert main(["run", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_model_in_another_place_is_used_and_said(scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "reconstruct_command", lambda *_, **__: pytest.fail("photos were placed anew"))
    (scene / "sparse/0").rename(scene / "colmap")
    (scene / "sparse").rmdir()
    before = snapshot(scene)
    assert main(["run", str(scene), "--out", str(tmp_path / "run"), "--masks", "none", *TINY]) == 0
    assert f"the COLMAP model below it is used, {scene}/colmap" in " ".join(capsys.readouterr().out.split())
    assert snapshot(scene) == before
    assert main(["masks", str(scene), "--generator", "regions", "--preset", "fast", *ONE]) == 0
    assert f"note: {scene} has neither sparse/0 nor" in " ".join(capsys.readouterr().out.split())
    shutil.copytree(scene / "colmap", scene / "other")
    assert main(["run", str(scene), "--out", str(tmp_path / "other"), *TINY]) == 2
    assert f"({scene}/colmap, {scene}/other)" in " ".join(capsys.readouterr().err.split())


def test_splats_in_place_of_a_scene(tmp_path, capsys):
    (tmp_path / "a.ply").touch()
    assert main(["run", str(tmp_path / "a.ply"), "--out", str(tmp_path / "run")]) == 2
    assert "the splats by --splats" in " ".join(capsys.readouterr().err.split())
