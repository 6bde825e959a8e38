"""`cgc eval` from the command line: what it writes, that its numbers can be traced, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLUMPS, FLOOR, HEIGHT, NAMES, WIDTH, clumps, snapshot

from cgc.cli import main
from cgc.errors import InputError
from cgc.evaluation.instances import score_instances
from cgc.evaluation.sizes import UNSEEN, alike
from cgc.evaluation.truth import Truth, read_truth
from cgc.files import write_csv
from cgc.masks.id_maps import read_id_map, resize_nearest, write_id_map
from cgc.pipeline.render import score_truth
from cgc.scene.lens import intrinsics, sample_distorted, undistorted
from cgc.scene.types import Camera, Lens, View
from cgc.scoring.cases import Case
from cgc.scoring.instances import report_instances, report_prompts
from cgc.scoring.runs import ScoredRun

STEMS = [name.rsplit(".", 1)[0] for name in sorted(NAMES)]
TEST = [STEMS[0], STEMS[8]]


@pytest.fixture
def evaluate(capsys):
    """Run `cgc eval`, which must work; return what it says."""

    def call(*words):
        capsys.readouterr()
        assert main(["eval", *map(str, words)]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(tmp_path, capsys):
    """Run `cgc eval`, which must end with 2, one sentence and nothing written; return the sentence."""

    def call(*words):
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert main(["eval", *map(str, words)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("cgc: ") and said.count("\n") == 1 and "Traceback" not in said
        assert snapshot(tmp_path) == before
        return said

    return call


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def rows(folder: Path, name: str = "views") -> list[dict[str, str]]:
    with open(folder / f"{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def iou(of: list[dict[str, str]], what: str = "pixels") -> float:
    true, guess, both = (sum(int(r[f"{k}_{what}"]) for r in of) for k in ("true", "predicted", "shared"))
    return both / (true + guess - both)


def true_map(scene: Path, stem: str) -> np.ndarray:
    return read_id_map(scene / f"instance/{stem}.png")


def mask(path: Path, shown: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((shown * 255).astype(np.uint8)).save(path)


# --- the scene's own truth --------------------------------------------------------------------------------


def test_a_run_is_scored_against_its_scenes_truth(own_run, tiny_scene, evaluate):
    said = evaluate(own_run)
    for words in ("Things mIoU", "ARI" if (tiny_scene / "points.npz").exists() else "clump", "1 click", "PSNR"):
        assert words in said
    assert said.count("result: ") == 3 and "LPIPS is not given: the lpips package is not installed" in said
    found = summary(own_run / "eval/instances")
    stats = json.loads((own_run / "stats.json").read_text())
    assert found["views"] == TEST and found["protocol"] == "instances"
    assert [found[k] for k in ("miou_things", "boundary_iou", "pq")] == pytest.approx(
        [stats[k] for k in ("miou_things", "boundary_iou", "pq")], abs=1e-4
    )
    traced, things = rows(own_run / "eval/instances"), rows(own_run / "eval/instances", "instances")
    assert {r["view"] for r in traced} == set(TEST)
    for thing in things:
        own = [r for r in traced if r["id"] == thing["id"]]
        assert iou(own) == pytest.approx(float(thing["iou"]))
        assert iou(own, "band") == pytest.approx(float(thing["boundary_iou"]))
    assert np.mean([float(t["iou"]) for t in things]) == pytest.approx(found["miou_things"], abs=1e-6)
    pictures = summary(own_run / "eval/pictures")
    assert pictures["psnr"] == pytest.approx(stats["psnr_test"], abs=1e-3) and "lpips" not in pictures
    assert [float(r["psnr"]) for r in rows(own_run / "eval/pictures")] == pytest.approx(
        [stats["quality"][f"{v}.png"]["psnr"] for v in TEST]
    )


def test_prompts_can_be_traced_to_their_views(own_run, evaluate):
    said = evaluate(own_run, "--protocol", "prompts", "--views", "all")
    assert said.count("result: ") == 1 and "8 of the 10 true views were learned from" in said
    found, folder = summary(own_run / "eval/prompts"), own_run / "eval/prompts"
    assert found["views"] == STEMS and {found[p]["objects"] for p in ("1 click", "2 clicks", "mask")} == {CLUMPS}
    for prompt in ("1 click", "2 clicks", "mask"):
        objects = [r for r in rows(folder, "instances") if r["prompt"] == prompt]
        for r in objects:
            same = ("prompt", "level", "id")
            own = [v for v in rows(folder) if all(v[name] == r[name] for name in same)]
            assert r["prompt_view"] not in {v["view"] for v in own}
            assert iou(own) == pytest.approx(float(r["iou"]))
        shown = [r for r in objects if r["level"] == f"{found[prompt]['level'] or 'own'}"]
        assert np.mean([float(r["iou"]) for r in shown]) == pytest.approx(found[prompt]["miou"], abs=1e-6)
        assert found[prompt]["miou"] > 0.5
    assert all(r["clicks"].startswith("+ ") == (r["prompt"] != "mask") for r in rows(folder, "instances"))


@pytest.mark.parametrize("origin", [None, [5e5, -4e6, 100.0]])
def test_gaussians_are_scored_where_surfaces_are_known(own_run, tiny_scene, tmp_path, evaluate, origin):
    splats, labels = clumps()
    truth = Path(shutil.copytree(tiny_scene, tmp_path / "truth"))
    places = splats.means.numpy().astype(float) + np.array(origin or 0.0)
    np.savez(truth / "points.npz", xyz=places, instance=labels.astype(np.uint16))
    stats = json.loads((own_run / "stats.json").read_text())
    (own_run / "stats.json").write_text(json.dumps({**stats, "origin": origin}))
    said = evaluate(own_run, "--truth", truth, "--protocol", "instances")
    found = summary(own_run / "eval/instances")
    assert 0.3 < found["ari_things"] <= 1 and "ARI: " in said and "Gaussians lie on a true surface" in said


def test_nothing_but_splats_labels_and_cameras_is_needed(own_run, tiny_scene, tmp_path, evaluate):
    scene = Path(shutil.copytree(tiny_scene, tmp_path / "scene"))
    source = json.loads((own_run / "scene.json").read_text())
    (own_run / "scene.json").write_text(json.dumps({**source, "scene": str(scene)}))
    evaluate(own_run, "--quiet")
    whole = summary(own_run / "eval/instances")
    shutil.rmtree(scene / "images")
    said = evaluate(own_run)
    assert f"{scene} has no photos: the id maps in {own_run / 'masks'} are scored" in said
    assert "so pictures are not scored" in said
    assert {**summary(own_run / "eval/instances"), "notes": 0} == {**whole, "notes": 0}


def test_a_scene_without_truth_has_its_pictures_scored(own_run, tiny_scene, tmp_path, evaluate, refused):
    scene = Path(shutil.copytree(tiny_scene, tmp_path / "scene"))
    (scene / "instances.json").unlink()
    source = json.loads((own_run / "scene.json").read_text())
    (own_run / "scene.json").write_text(json.dumps({**source, "scene": str(scene)}))
    said = evaluate(own_run)
    assert "pictures alone are scored" in said and not (own_run / "eval/instances").exists()
    assert "there is no instance truth" in refused(own_run, "--protocol", "instances")


def test_levels_are_all_reported(tiny_scene):
    truth = read_truth(tiny_scene, STEMS)
    fine = [t + 0 for t in truth.maps]
    coarse = [np.where(t == 2, 1, t) for t in truth.maps]  # two objects are one
    case = Case(tiny_scene, STEMS, truth, {None: coarse, 0.25: fine}, None, "object", [])
    found = report_prompts(case)
    one = found.summary["1 click"]
    assert (one["level"], one["miou"], one["miou_level_0.25"]) == (0.25, 1, 1) and one["miou_level_own"] < 1
    assert one["miou_best_levels_upper_bound"] == 1 and "the level is the one that is best" in found.notes[-1]
    assert found.instances is not None and {r["level"] for r in found.instances[1]} == {"own", "0.25"}
    assert report_instances(None, case).summary["miou_things"] < 1  # the run's own segments


# --- truth drawn by hand ----------------------------------------------------------------------------------


@pytest.fixture
def drawn(tiny_scene, tmp_path) -> Path:
    """Three views drawn at twice the size: objects 1 to 3, the rest unlabelled, a corner ignored."""
    folder = tmp_path / "drawn"
    for stem in STEMS[:3]:
        ids = true_map(tiny_scene, stem).repeat(2, 0).repeat(2, 1)
        ids = np.where(ids <= 3, ids, 0)
        ids[:10, :10] = 255
        write_id_map(folder / f"{stem}.png", ids)
    (folder / "names.json").write_text(json.dumps({"1": "frog", "2": "card", "9": "ghost"}))
    return folder


def test_drawn_maps_of_some_views(own_run, drawn, evaluate):
    said = evaluate(own_run, "--truth", drawn)
    found = summary(own_run / "eval/instances")
    assert found["things"] == 3 and found["views"] == STEMS[:3] and found["miou_things"] > 0.5
    assert {r["name"] for r in rows(own_run / "eval/instances", "instances")} == {"frog", "card", "object 3"}
    for words in (
        f"{WIDTH}x{HEIGHT} were resized to the truth's {2 * WIDTH}x{2 * HEIGHT}",
        "not seen in these views: ghost",
        f"2 of the 3 true views were learned from ({STEMS[1]}, {STEMS[2]})",
        "without a label are ignored",
    ):
        assert words in said and said.count(words) == 1
    assert "mIoU with stuff" not in said and "ARI" not in said
    evaluate(own_run, "--truth", drawn, "--unlabelled", "background", "--protocol", "instances", "--quiet")
    assert summary(own_run / "eval/instances")["miou_things"] < found["miou_things"]


def test_id_maps_of_another_system(own_run, drawn, tiny_scene, tmp_path, evaluate, refused):
    theirs = tmp_path / "theirs"
    for stem in STEMS[:2]:
        write_id_map(theirs / f"{stem}.png", true_map(tiny_scene, stem) + 60_000)
    said = evaluate("--predictions", theirs, "--truth", drawn, "--out", tmp_path / "out")
    found = summary(tmp_path / "out/instances")
    assert 0.5 < found["miou_things"] < 1 and found["missing_views"] == 1
    assert f"1 predictions are missing and count as empty: {STEMS[2]}" in said
    evaluate("--predictions", theirs, "--truth", tiny_scene, "--out", tmp_path / "out", "--quiet")
    maps = [true_map(tiny_scene, s) if s in STEMS[:2] else None for s in sorted(STEMS)]
    truth = read_truth(tiny_scene, sorted(STEMS))
    assert summary(tmp_path / "out/instances")["miou_things"] == pytest.approx(
        score_instances(truth.maps, maps, {FLOOR}).miou_things, abs=1e-6
    )
    evaluate(own_run, "--predictions", own_run / "masks", "--out", tmp_path / "out", "--quiet")
    assert summary(tmp_path / "out/instances")["views"] == TEST
    stats = json.loads((own_run / "stats.json").read_text())
    assert summary(tmp_path / "out/instances")["miou_things"] == pytest.approx(stats["miou_things"], abs=1e-4)
    assert not (tmp_path / "out/pictures").exists()
    assert f"all {len(STEMS)} views of the truth are scored" in evaluate(
        "--predictions", theirs, "--truth", tiny_scene, "--out", tmp_path / "out"
    )
    ids = true_map(tiny_scene, STEMS[0])
    write_id_map(theirs / f"{STEMS[0]}.png", ids.T)
    words = ("--predictions", theirs, "--truth", drawn, "--out", tmp_path / "out")
    assert f"is {ids.shape[0]}x{ids.shape[1]} where the truth is" in refused(*words)
    assert "is a file where a folder" in refused(*words[:1], theirs / f"{STEMS[0]}.png", *words[2:])
    assert "give it with --truth" in refused("--predictions", theirs, "--out", tmp_path / "out")
    assert "--out DIR" in refused("--predictions", theirs, "--truth", drawn)


def test_id_maps_are_bent_back_to_the_lens_of_their_photo():
    lens = Lens("SIMPLE_RADIAL", (90.0, 50.0, 40.0, -0.3), 100, 80)
    flat = undistorted(lens)
    camera = Camera(torch.eye(4), torch.tensor(intrinsics(flat), dtype=torch.float32), flat.width, flat.height)
    truth = np.arange(160 * 200).reshape(160, 200) // 3000 + 1
    ids = sample_distorted(truth, lens, camera)
    run = ScoredRun(None)  # pyright: ignore[reportArgumentType]
    vars(run).update(stored=False, stems=["a"], views=(View("a.png", camera, Path("a.png"), (100, 80), lens),))
    run._maps[0, None] = ids
    back = run.at_size(0, truth.shape)
    unbent = resize_nearest(ids, 200, 160)
    seen = back != UNSEEN
    assert 0.8 < seen.mean() < 0.99
    assert (back[seen] == truth[seen]).mean() > 0.95 > (unbent == truth)[seen].mean()
    assert run.notes == ["id maps were bent back to the photos' lens, as the truth is (nearest id)"]
    said: list[str] = []
    scene = SimpleNamespace(views=run.views)
    work: Any = SimpleNamespace(test_views=[0], scene=scene, picture_names=["a"], say=said.append)
    facts = score_truth(
        work, Truth((truth.astype(np.int32),), dict.fromkeys(range(20), ""), frozenset()), [ids]
    )  # as the main job does
    assert facts["miou_things"] > 0.9 and not said
    assert score_truth(work, Truth((np.ones((90, 90), np.int32),), {}, frozenset()), [ids]) == {}
    assert "nothing was scored: the truth of a is 90x90" in said[0]
    with pytest.raises(InputError, match="the truth of a is 100x100 but the view is 100x80, which has another shape"):
        run.at_size(0, (100, 100))


def test_pictures_have_one_shape_but_for_rounding():
    assert alike((1000, 1500), (1008, 1500)) and not alike((1000, 1500), (1020, 1500))
    assert alike((30, 40), (62, 80)) and not alike((30, 40), (66, 80))


# --- benchmarks -------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tiny_scene, tmp_path) -> Path:
    """LERF-Mask truth of the tiny scene: one view by name, one by its number among the held-back images."""
    root = tmp_path / "lerf_mask"
    for i, stem in enumerate(TEST):
        for name, ids in (("red clump", [1]), ("two clumps", [2, 3])):
            shown = np.isin(true_map(tiny_scene, stem), ids).repeat(2, 0).repeat(2, 1)
            mask(root / f"scene/test_mask/{i if i else stem}/{name}.png", shown)
    for name in NAMES:
        photo = root / "scene/images" / name.rsplit("/", 1)[-1]
        photo.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(photo)
        if name.rsplit(".", 1)[0] not in TEST:
            (root / "scene/images_train").mkdir(exist_ok=True)
            shutil.copy(photo, root / "scene/images_train")
    return root


def test_text_prompts_take_a_stored_selection(own_run, texts, tmp_path, evaluate, refused):
    words = (own_run, "--protocol", "lerf-mask", "--truth", texts)
    assert "the prompts of lerf-mask are texts (red clump, two clumps)" in refused(*words)
    chosen = tmp_path / "chosen.json"
    said = evaluate(*words, "--select", "oracle", "--write-selection", chosen)
    folder = own_run / "eval/lerf-mask"
    best = summary(folder)
    assert said.count("UPPER BOUND") == 1 and best["upper_bound"] and "UPPER BOUND" in best["definition"]
    assert best["miou"] > 0.5 and set(json.loads(chosen.read_text())) == {"red clump", "two clumps"}
    assert "were resized to the truth's 96x72 (nearest id)" in said
    for r in rows(folder):
        assert iou([r]) == pytest.approx(float(r["iou"]))
    by_prompt = [[float(r["iou"]) for r in rows(folder) if r["prompt"] == p] for p in ("red clump", "two clumps")]
    assert best["miou"] == pytest.approx(np.mean([np.mean(p) for p in by_prompt]), abs=1e-6)
    said = evaluate(*words, "--selection", chosen)
    stored = summary(folder)
    assert "UPPER BOUND" not in said and not stored["upper_bound"] and stored["miou"] == best["miou"]
    chosen.write_text(json.dumps({**best["selected"]["scene"], "two clumps": []}))
    assert "2 predictions are empty and count as 0" in evaluate(*words, "--selection", chosen)
    chosen.write_text(json.dumps({"red clump": best["selected"]["scene"]["red clump"]}))
    said = evaluate(*words, "--selection", chosen)
    assert "nothing is selected for two clumps" in said and "2 predictions are missing and count as 0" in said
    assert summary(folder)["miou"] == pytest.approx(np.mean(by_prompt[0]) / 2, abs=1e-6)


def test_selections_that_name_what_there_is_not(own_run, texts, tmp_path, refused):
    words = (own_run, "--protocol", "lerf-mask", "--truth", texts, "--selection", tmp_path / "s.json")
    assert "the selection file is missing" in refused(*words)
    for value, said in (
        ({"red clump": [70_000]}, "'red clump' selects 70000, but the segments are 1, 2, 3"),
        ({"blue clump": [1]}, "names blue clump, but the truth of scene asks for red clump, two clumps"),
        ({"red clump": "1"}, 'was expected to hold {"prompt": [segment ids], ...}'),
        ({"ramen": {"red clump": [1]}}, "selects for ramen, not for the scene scene"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(value))
        assert said in refused(*words)
    (tmp_path / "s.json").write_text("{")
    assert "the selection file is not valid JSON" in refused(*words)
    assert "give one of them" in refused(*words, "--select", "oracle")
    assert "is for the benchmarks that have prompts" in refused(own_run, "--selection", tmp_path / "s.json")


def test_masks_of_another_system(texts, tmp_path, evaluate, refused):
    theirs = tmp_path / "theirs"
    shutil.copytree(texts / "scene/test_mask", theirs)
    words = ("--predictions", theirs, "--protocol", "lerf-mask", "--truth", texts, "--out", tmp_path / "out")
    evaluate(*words, "--quiet")
    assert summary(tmp_path / "out/lerf-mask")["miou"] == 1
    (theirs / "1/red clump.png").unlink()
    small = np.asarray(Image.open(theirs / "1/two clumps.png"))[::2, ::2]
    Image.fromarray(small).save(theirs / "1/two clumps.png")
    said = evaluate(*words)
    assert summary(tmp_path / "out/lerf-mask")["miou"] == pytest.approx(0.75, abs=0.01)
    assert "scene: 1 predictions are missing and count as 0: 1/red clump" in said
    assert "predictions of 48x36 were resized to the truth's 96x72" in said
    assert "have no segments to select" in refused(*words, "--select", "oracle")
    shutil.rmtree(theirs)
    assert f"the predictions {theirs} do not exist" in refused(*words)
    theirs.mkdir()
    assert "has no prediction of scene; expected masks named" in refused(*words)


def test_3d_ovs_of_a_run(own_run, tiny_scene, tmp_path, evaluate):
    truth = tmp_path / "ovs/scene/segmentations"
    for stem in TEST:
        for i in (1, 2):
            mask(truth / f"{sorted(STEMS).index(stem):02}/clump {i}.png", true_map(tiny_scene, stem) == i)
    (truth / "classes.txt").write_text("clump 2\nclump 1\n")
    evaluate(own_run, "--protocol", "3d-ovs", "--truth", tmp_path / "ovs", "--select", "oracle", "--quiet")
    found = summary(own_run / "eval/3d-ovs")
    assert found["miou"] == pytest.approx(np.mean([float(r["iou"]) for r in rows(own_run / "eval/3d-ovs")]), abs=1e-6)
    assert found["miou"] > 0.5 and "accuracy" not in found


def test_nvos_and_spin_nerf_of_a_run(own_run, tiny_scene, tmp_path, evaluate):
    root, first, second = tmp_path / "nvos", *TEST
    for target, i in (("scene_left", 1), ("scene_right", 2)):
        Image.new("RGB", (4, 3)).save(_made(root / f"masks/{target}/{second.rsplit('/')[-1]}.JPG"))
        mask(root / f"masks/{target}/{second.rsplit('/')[-1]}_mask.png", true_map(tiny_scene, second) == i)
        Image.new("RGB", (4, 3)).save(_made(root / f"reference_image/{target}/{first}.JPG"))
        inside = true_map(tiny_scene, first)
        mask(root / f"scribbles/{target}/pos_0.png", inside == i)
        mask(root / f"scribbles/{target}/neg_0.png", (inside != i) & (np.arange(WIDTH) % 5 == 0))
    said = evaluate(own_run, "--protocol", "nvos", "--truth", root)
    found = summary(own_run / "eval/nvos")
    assert set(found["scenes"]) == {"scene_left", "scene_right"} and "mean" in said
    assert found["miou"] > 0.5 and found["accuracy"] > 0.9
    assert found["miou"] == pytest.approx(np.mean([s["miou"] for s in found["scenes"].values()]), abs=1e-6)

    root = tmp_path / "MVSeg/scene"
    for stem in STEMS:
        mask(root / f"scene_{stem.rsplit('/', 1)[-1]}.png", true_map(tiny_scene, stem) == 3)
    said = evaluate(own_run, "--protocol", "spin-nerf", "--truth", root)
    found = summary(own_run / "eval/spin-nerf")
    traced = rows(own_run / "eval/spin-nerf")
    assert [r["reference"] for r in traced].count("True") == 1 and "others' mIoU" in said
    others = [float(r["iou"]) for r in traced if r["reference"] == "False"]
    assert found["miou_others"] == pytest.approx(np.mean(others), abs=1e-6) and found["miou"] > 0.5
    assert len(rows(own_run / "eval/spin-nerf", "instances")[0]["segments"]) > 0


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# --- bad input --------------------------------------------------------------------------------------------


def test_nothing_to_score(refused, own_run, tmp_path):
    assert "name a run folder, or a folder of masks" in refused()
    assert "is no run folder" in refused(tmp_path / "nowhere")
    assert "lerf-mask needs the benchmark's folder" in refused(own_run, "--protocol", "lerf-mask")
    assert "the truth folder" in refused(own_run, "--truth", tmp_path / "nowhere")
    other = Path(shutil.copytree(own_run, tmp_path / "other"))
    assert "instances scores one run at a time" in refused(own_run, other, "--protocol", "instances", "--out", tmp_path)
    (own_run / "segments.npz").unlink()
    assert "run `cgc cluster" in refused(own_run)


def test_truth_of_another_size_or_with_other_names(own_run, drawn, tiny_scene, refused):
    write_id_map(drawn / f"{STEMS[0]}.png", np.ones((50, 50), np.int32))
    assert f"the truth of {STEMS[0]} is 50x50 but the view is 48x36" in refused(own_run, "--truth", drawn)
    (drawn / f"{STEMS[0]}.png").rename(drawn / "elsewhere.png")
    said = refused(own_run, "--truth", drawn)
    assert f"1 true id maps in {drawn} are named like no view of {own_run}: elsewhere" in said
    for path in drawn.rglob("*.png"):
        path.unlink()
    assert "holds no PNG" in refused(own_run, "--truth", drawn)
    write_id_map(drawn / f"{STEMS[0]}.png", np.zeros((36, 48), np.int32))
    assert "hold no id above 0" in refused(own_run, "--truth", drawn)
    (drawn / f"{STEMS[0]}.png").write_bytes(b"\x89PNG\r\n\x1a\nx")
    assert "cannot be read" in refused(own_run, "--truth", drawn)


def test_ids_that_no_id_map_holds(own_run, drawn, tiny_scene, tmp_path, refused):
    for names in ({"70000": "far"}, {"-1": "x"}):
        (drawn / "names.json").write_text(json.dumps(names))
        assert "but an id map holds 1 to 65535; number them anew" in refused(own_run, "--truth", drawn)
    for broken in ('{"one": "x"}', "[]"):
        (drawn / "names.json").write_text(broken)
        assert 'was expected to hold {"1": "name", ...}' in refused(own_run, "--truth", drawn)
    scene = Path(shutil.copytree(tiny_scene, tmp_path / "truth"))
    table = json.loads((scene / "instances.json").read_text())["instances"]
    far = {"id": 65536, "name": "far", "stuff": False, "parent": 0}
    (scene / "instances.json").write_text(json.dumps({"instances": [*table, far]}))
    assert "names the ids [65536]" in refused(own_run, "--truth", scene)


def test_benchmarks_with_parts_missing_or_of_other_scenes(own_run, texts, tmp_path, refused):
    words = (own_run, "--protocol", "lerf-mask", "--select", "oracle", "--truth")
    assert "has no test_mask folder" in refused(*words, own_run)
    (texts / "scene/test_mask/7").mkdir()
    assert "the views 7 of" in refused(*words, texts)
    mask(texts / "scene/test_mask/7/red clump.png", np.ones((72, 96), bool))
    assert "the truth has a view '7', but the views of the run are" in refused(*words, texts)
    shutil.rmtree(texts / "scene/test_mask/7")
    mask(texts / "scene/test_mask/1/red clump.png", np.ones((90, 90), bool))
    assert "90x90 but the view is 48x36, which has another shape" in refused(*words, texts)
    mask(texts / "scene/test_mask/1/red clump.png", np.ones((72, 96), bool))
    other = Path(shutil.copytree(own_run, tmp_path / "other"))
    said = refused(other, *words, texts, "--out", tmp_path / "out")
    assert "are of one scene of the benchmark; score them one by one" in said
    (texts / "scene").rename(texts / "ramen")
    shutil.copytree(texts / "ramen", texts / "teatime")
    assert "the benchmark has the scenes ramen, teatime, none of which is called like" in refused(*words, texts)


def test_results_that_cannot_be_written(own_run, drawn, tmp_path, refused):
    (tmp_path / "file").write_text("x")
    assert "could not be written" in refused(own_run, "--truth", drawn, "--out", tmp_path / "file/out")


def test_tables_are_written_whole(tmp_path):
    write_csv(tmp_path / "a.csv", ("x", "name"), [{"x": 1, "name": 'a, "b"'}])
    assert (tmp_path / "a.csv").read_text() == 'x,name\n1,"a, ""b"""\n'
    with pytest.raises(ValueError):
        write_csv(tmp_path / "a.csv", ("x",), [{"y": 1}])
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
