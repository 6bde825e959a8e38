"""Ask, change, take away: the commands, on a small run."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import snapshot

import cgc
from cgc.cli import main
from cgc.masks.id_maps import read_id_map
from cgc.splats.ply import read_ply


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run that nothing here may write to."""
    root = tmp_path_factory.mktemp("asking") / "run"
    shutil.copytree(tiny_run, root)
    return root


@pytest.fixture
def ask(capsys, run):
    def call(*words):
        assert main(["query", str(run), "--json", *map(str, words)]) == 0
        return [row["id"] for row in json.loads(capsys.readouterr().out)]

    return call


@pytest.fixture
def refused(capsys, run):
    def call(*words):
        assert main([str(w) for w in words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("cgc: ") and said.count("\n") == 1
        return said

    return call


VIEW = "a_view_00.png"


def test_questions_find_what_the_api_finds(ask, run):
    seg = cgc.load(run)
    ids = read_id_map(run / "masks" / "a_view_00.png")
    chosen = int(np.unique(ids[ids > 0])[1])
    y, x = (int(v[len(v) // 2]) for v in np.nonzero(ids == chosen))
    assert ask() == seg.ids.tolist()
    assert ask("--click", f"{VIEW},{x},{y}") == [chosen]
    other = int(next(i for i in np.unique(ids[ids > 0]) if i != chosen))
    oy, ox = (int(v[len(v) // 2]) for v in np.nonzero(ids == other))
    assert sorted(ask("--click", f"{VIEW},{x},{y}", f"{VIEW},{ox},{oy}")) == sorted(
        seg.at_pixels(VIEW, [(x, y), (ox, oy)]).ids
    )
    view = "a_view_03.png"
    vy, vx = (int(v[len(v) // 2]) for v in np.nonzero(seg.masks([view])[0] == other))
    assert set(ask("--click", f"{VIEW},{x},{y}", f"{view},{vx},{vy}")) == {chosen, other}
    assert set(ask("--click", f"{view},{vx},{vy}", "--not-click", f"{VIEW},{x},{y}")) == {other}
    centre = seg[chosen].centre
    assert ask("--point", *centre) == [seg.at_point(centre).id]
    low, high = seg.splats.means.min(0).values - 1, seg.splats.means.max(0).values + 1
    assert ask("--box", *low.tolist(), *high.tolist()) == seg.ids.tolist()
    assert set(ask("--rect", f"{VIEW},0,0,48,36")) == {o.id for o in seg.in_rect(VIEW, 0, 0, 48, 36)}
    eye = seg.camera(VIEW).position
    assert ask("--ray", *eye.tolist(), *(centre - eye.numpy()).tolist())[0] > 0
    assert ask("--similar", chosen, "--most", 3) == [m.object.id for m in seg.similar(chosen, 3)]


def test_a_mask_of_a_view(ask, run, tmp_path):
    ids = read_id_map(run / "masks" / "a_view_00.png")
    chosen = int(np.bincount(ids[ids > 0]).argmax())
    Image.fromarray((ids == chosen).astype(np.uint8)).save(tmp_path / "mask.png")
    assert ask("--mask", f"{VIEW},{tmp_path / 'mask.png'}") == [chosen]


def test_the_table_for_people(run, capsys):
    assert main(["query", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["id", "Gaussians", "size"] and len(lines) == 1 + len(cgc.load(run))
    assert main(["query", str(run), "--box", *["50", "50", "50", "51", "51", "51"]]) == 0
    assert "nothing is there" in capsys.readouterr().out


def test_edits_are_saved_elsewhere_and_chain(run, tmp_path, capsys):
    before, seg = snapshot(run), cgc.load(run)
    first, second, third = seg.ids.tolist()[:3]
    out = tmp_path / "edited"
    words = ["--rename", f"{first}=the floor", "--remove", str(second), "--move", f"{third}=0,0,0.5"]
    assert main(["edit", str(run), "--out", str(out), *words]) == 0
    said = capsys.readouterr().out
    assert "relabel" in said and "remove" in said and "transform" in said and str(out) in said
    assert snapshot(run) == before
    made = cgc.load(out)
    assert made[first].name == "the floor" and second not in made.ids and len(made) == len(seg) - 1
    assert np.allclose(made[third].centre, seg[third].centre + np.array([0, 0, 0.5]), atol=0.05)
    assert made.render(VIEW).shape == (36, 48, 3)  # the run's views
    again = tmp_path / "again"
    assert main(["edit", str(out), "--out", str(again), "--recolor", f"{first}=#00ff00", "--no-halo"]) == 0
    green = cgc.load(again)[first].color
    assert green[1] > 200 > max(green[0], green[2])
    assert [e["edit"] for e in cgc.load(again).edits][-1] == "recolor" and len(cgc.load(again).edits) == 4


def test_objects_are_edited_and_exported_by_name(run, tmp_path, capsys):
    first, second = cgc.load(run).ids[:2].tolist()
    made = tmp_path / "named"
    assert (
        main(["edit", str(run), "--out", str(made), "--rename", f"{first}=red mug", "--move", "red mug=0,0,0.1"]) == 0
    )
    assert [r["edit"] for r in cgc.load(made).edits] == ["relabel", "transform"]
    assert (
        main(
            ["export", str(made), "--objects", "red mug", str(second), "--format", "boxes", "--to", str(tmp_path / "x")]
        )
        == 0
    )
    assert f"2 files of 2 objects: {tmp_path / 'x'}" in " ".join(capsys.readouterr().out.split())
    assert main(["edit", str(made), "--out", str(tmp_path / "rest"), "--remove", "red mug", "--no-halo"]) == 0
    assert first not in cgc.load(tmp_path / "rest").ids.tolist()


def test_all_that_is_done_to_one_object_is_one_motion(run, tmp_path, capsys):
    seg, out = cgc.load(run), tmp_path / "moved"
    first = int(seg.ids[0])
    words = [
        "--scale",
        f"{first}=2",
        "--rotate",
        f"{first}=0,0,90",
        "--move",
        f"{first}=0,0,1",
        f"{first}=1,0,0",
    ]
    assert main(["edit", str(run), "--out", str(out), *words, "--no-halo"]) == 0
    assert capsys.readouterr().out.count("transform") == 1
    made = cgc.load(out)
    assert [e["edit"] for e in made.edits] == ["transform"] and made.edits[0]["halo"] == made.edits[0]["healed"] == 0
    assert made.edits[0]["scale"] == 2 and made.edits[0]["translation"] == [1, 0, 1]
    assert main(["edit", str(out), "--out", str(out), "--rename", f"{first}=it"]) == 2
    assert "is what is edited" in capsys.readouterr().err


def test_methods_are_the_edits(run, tmp_path):
    seg = cgc.load(run)
    a, b = seg.ids.tolist()[:2]
    assert len(seg.keep(a)) == 1 and len(seg.remove(seg[a], halo=False)) == len(seg) - 1
    assert len(seg.merge(a, b)) == len(seg) - 1 and seg.rename(a, "x")[a].name == "x"
    turned = seg.transform(a, rotation=[0, 0, 0, 1.0], scale=2.0)
    assert np.allclose(np.sort(turned[a].box.size), np.sort(2 * seg[a].box.size), rtol=0.2)
    painted = seg.paint(VIEW, seg[a].mask(VIEW))
    new = set(painted.ids.tolist()) - set(seg.ids.tolist())
    assert len(new) == 1 and painted[new.pop()].gaussians > 10 and len(seg.split(a, 2)) == len(seg) + 1
    saved = seg.remove(a, halo=False).save(tmp_path / "s")
    back = cgc.load(saved)
    assert a not in back.ids and back.save() == saved  # where it is from
    labels = np.load(back.export(tmp_path / "e", ["labels"])[0])
    assert len(labels) == len(read_ply(run / "splats.ply")) and a not in labels


def test_taking_out(run, tmp_path, capsys):
    seg = cgc.load(run)
    first, second = seg.ids.tolist()[:2]
    out = tmp_path / "out"
    words = [
        "export",
        str(run),
        "--objects",
        str(first),
        str(second),
        "--format",
        "ply,labels",
        "coco",
        "--to",
        str(out),
    ]
    assert main(words) == 0
    assert "2 objects" in capsys.readouterr().out
    assert len(list((out / "objects").glob("*.ply"))) == 2
    labels = np.load(out / "labels.npy")
    assert len(labels) == len(read_ply(run / "splats.ply"))
    assert main(["export", str(run), "--format", "turntable", "--objects", str(second), "--to", str(out)]) == 0
    with Image.open(next((out / "turntables").glob("*.gif"))) as gif:
        assert gif.n_frames == 36


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["query", "RUN", "--click", VIEW], "VIEW,X,Y was expected"),
        (["query", "RUN", "--click", f"{VIEW},1,x"], "VIEW,X,Y was expected"),
        (["query", "RUN", "--click", f"{VIEW},500,1"], "outside of the image"),
        (["query", "RUN", "--click", "a_view_0.png,1,1"], "did you mean"),
        (["query", "RUN", "--click", f"{VIEW},1,1", "a_view_01.png,500,2"], "outside of the image"),
        (["query", "RUN", "--similar", "mug"], "no object is called 'mug': none has a name yet; give an id"),
        (["edit", "RUN", "--out", "OUT", "--remove", "mug"], "no object is called 'mug'"),
        (["edit", "RUN", "--out", "OUT", "--scale", "=2"], "ID=FACTOR was expected"),
        (["query", "RUN", "--not-click", f"{VIEW},1,1"], "say where it is"),
        (["query", "RUN", "--click", f"{VIEW},1,1", "--similar", "1"], "one question at a time"),
        (["query", "RUN", "--click", f"{VIEW},1,1", "--click", f"{VIEW},2,2"], "--click is given 2 times"),
        (["query", "RUN", "--mask", VIEW], "VIEW,FILE.png was expected"),
        (["query", "RUN", "--mask", f"{VIEW},nowhere.png"], "nowhere.png, where there is no file; give VIEW,FILE.png"),
        (["query", "RUN", "--similar", "999"], "no segment 999"),
        (["query", "RUN", "--level", "2"], "level 2"),
        (["query", "NOWHERE"], "no run folder"),
        (["export", "RUN", "--format", "turntable", "--to", "RUN"], "holds config.json"),
        (["edit", "RUN", "--out", "OUT"], "nothing to do"),
        (["edit", "RUN", "--out", "OUT", "--remove", "999"], "no segment 999"),
        (["edit", "RUN", "--out", "OUT", "--recolor", "1=blue"], "no colour"),
        (["edit", "RUN", "--out", "OUT", "--move", "1=2,3"], "3 numbers"),
        (["edit", "RUN", "--out", "OUT", "--rename", "mug"], "ID=NAME was expected"),
        (["edit", "RUN", "--out", "OUT", "--scale", "1=0"], "over 0"),
        (["edit", "RUN", "--out", "RUN", "--keep", "1"], "is what is edited; give another folder"),
        (["export", "RUN", "--format", "nope"], "no format 'nope'"),
        (["export", "RUN", "--objects", "999"], "segment 999"),
    ],
)
def test_bad_words(words, says, refused, run, tmp_path):
    before = snapshot(run)
    places = {"RUN": run, "OUT": tmp_path / "out", "NOWHERE": tmp_path / "nowhere"}
    assert says in refused(*[places.get(w, w) for w in words])
    assert snapshot(run) == before and not (tmp_path / "out").exists()


def test_a_picture(run, tmp_path, capsys):
    assert (
        main(
            [
                "view",
                str(run),
                "--screenshot",
                str(tmp_path / "a.png"),
                "--size",
                "96x72",
                "--camera",
                "orbit:45",
                "--ids",
            ]
        )
        == 0
    )
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (96, 72) and len(picture.getcolors(9000) or []) > 20
    for words, says in (
        (["--screenshot", "a.gif"], "no name of a picture"),
        (["--screenshot", "a.png", "--web"], "give one of them"),
        (["--web", "--ids"], "--ids is for the picture of --screenshot"),
        (["--screenshot", "a.png", "--size", "big"], "size"),
        (["--screenshot", "a.png", "--camera", "nowhere.jpg"], "nowhere"),
    ):
        assert main(["view", str(run), *words]) == 2 and says in capsys.readouterr().err


def test_saving_again_leaves_what_others_have_put_there(run, tmp_path):
    seg, out = cgc.load(run), tmp_path / "e"
    first = int(seg.ids[0])
    seg.rename(first, "one").save(out)
    seg.rename(first, "one").export(out / "export", ["labels"])
    (out / "notes").write_text("mine")
    seg.rename(first, "two").save(out)
    assert cgc.load(out)[first].name == "two" and (out / "notes").read_text() == "mine"
    assert (out / "export" / "labels.npy").exists() and [p.name for p in tmp_path.iterdir()] == ["e"]


def test_exports_never_go_into_scenes_runs_or_saved_segmentations(run, tiny_scene, tmp_path, refused):
    scene = tmp_path / "scene"
    shutil.copytree(tiny_scene, scene)
    before = snapshot(scene), snapshot(run)
    for place in (scene, run):
        said = refused("export", run, "--format", "masks", "--to", place)
        assert "choose another folder" in said
    assert (snapshot(scene), snapshot(run)) == before


def test_a_saved_segmentation_is_exported_like_a_run(run, tmp_path, capsys):
    seg = cgc.load(run)
    out = seg.remove(int(seg.ids[0]), halo=False).save(tmp_path / "e")
    assert main(["export", str(out)]) == 0
    assert len(list((out / "export" / "objects").glob("*.ply"))) == len(seg) - 1
    assert main(["export", str(out), "--level", "0.5"]) == 0
    finer = cgc.load(out).at_level(0.5)
    made = {int(path.stem[:4]) for path in (out / "export_at_0.5" / "objects").glob("*.ply")}
    assert made == set(finer.ids.tolist()) and str(out / "export_at_0.5") in capsys.readouterr().out.replace("\n", "")


def test_a_moved_object_is_looked_for_again(run):
    seg = cgc.load(run)
    which = seg.objects[2]
    moved = seg.transform(which, translation=[0, 0, 50.0])
    assert seg.known_best_views() and not moved.known_best_views()


def test_scores_are_in_the_json(run, capsys):
    first = int(cgc.load(run).ids[0])
    assert main(["query", str(run), "--json", "--similar", str(first)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(-1 <= row["score"] <= 1 and row["by"] for row in rows)


def test_saved_edits_open_without_their_run(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    seg = cgc.load(copy)
    out = seg.remove(int(seg.ids[0]), halo=False).save(tmp_path / "e")
    (copy / "config.json").write_text("{")
    assert len(cgc.load(out)) == len(seg) - 1
    for more, noted in ([], True), (["--no-halo"], False):
        assert main(["edit", str(out), "--remove", str(seg.ids[1]), "--out", str(tmp_path / "less"), *more]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("note: the halo was not healed, which takes the cameras of the views: the views of" in said) == noted


def test_cut_outs_of_an_edited_scene_show_it_as_it_is_now(run, tmp_path):
    seg = cgc.load(run)
    which = int(seg.ids[2])
    green = seg.recolor(which, [0, 1, 0])
    for made, name in ((seg, "a"), (green, "b")):
        made.export(tmp_path / name, ["cutouts"], [which])
    with Image.open(sorted((tmp_path / "b").rglob("*.png"))[0]) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    inside = pixels[pixels[..., 3] > 200][:, :3].mean(0)
    assert inside[1] > 150 > max(inside[0], inside[2])
