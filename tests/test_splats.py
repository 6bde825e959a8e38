"""Splats room: 3DGS PLY files, whole and hostile; the first Gaussians of a training."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgc.cli import main
from cgc.errors import InputError
from cgc.geometry import sh_dc_to_rgb, sh_to_rgb
from cgc.ply import read_header, read_vertices
from cgc.splats.clean import clean
from cgc.splats.init import CUBE, MAX_SCALE, MIN_SCALE, random_splats, splats_from_points
from cgc.splats.mapped import MappedSplats
from cgc.splats.ply import read_ply, write_ply
from cgc.splats.read import read_splats
from cgc.splats.types import Splats

KINDS = {"<": "binary_little_endian", ">": "binary_big_endian", "a": "ascii"}
TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}


def make_splats(n: int, degree: int, seed: int = 0) -> Splats:
    g = torch.Generator().manual_seed(seed)
    quats = torch.randn(n, 4, generator=g)
    quats[:, 0] += quats[:, 0].sign() + (quats[:, 0] == 0)  # away from zero, any norm
    return Splats(
        means=torch.randn(n, 3, generator=g) * 10,
        quats=quats * 3,
        log_scales=torch.randn(n, 3, generator=g) - 4,
        logit_opacities=torch.randn(n, generator=g) * 3,
        sh=torch.randn(n, (degree + 1) ** 2, 3, generator=g),
    )


def columns_of(splats: Splats) -> dict[str, np.ndarray]:
    """The file's columns, spelled out one by one: the slow, obvious reference of the layout."""
    columns = {}
    for axis, name in enumerate("xyz"):
        columns[name] = splats.means[:, axis].numpy()
        columns["n" + name] = np.zeros(len(splats), np.float32)
        columns[f"scale_{axis}"] = splats.log_scales[:, axis].numpy()
    for channel in range(3):
        columns[f"f_dc_{channel}"] = splats.sh[:, 0, channel].numpy()
        terms = splats.sh.shape[1] - 1
        for term in range(terms):
            columns[f"f_rest_{channel * terms + term}"] = splats.sh[:, 1 + term, channel].numpy()
    columns["opacity"] = splats.logit_opacities.numpy()
    for i in range(4):
        columns[f"rot_{i}"] = splats.quats[:, i].numpy()
    return columns


def ply_bytes(columns: dict[str, np.ndarray], kind: str = "<", count: int | None = None, before: str = "") -> bytes:
    """Write a PLY by hand, so that the reader is held against the format and not against its own library."""
    names = list(columns)
    rows = len(columns[names[0]]) if names else 0
    lines = ["ply", f"format {KINDS[kind]} 1.0", "comment by hand"]
    lines += [before] if before else []
    lines += [f"element vertex {rows if count is None else count}"]
    lines += [f"property {TYPES[columns[n].dtype.str[1:]]} {n}" for n in names]
    head = "\n".join([*lines, "end_header", ""]).encode()
    if kind == "a":
        text = [" ".join(repr(columns[n][i].item()) for n in names) for i in range(rows)]
        return head + "\n".join([*text, ""]).encode()
    table = np.empty(rows, [(n, columns[n].dtype.newbyteorder(kind)) for n in names])
    for n in names:
        table[n] = columns[n]
    return head + table.tobytes()


def assert_same(a: Splats, b: Splats) -> None:
    for field in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        x, y = getattr(a, field), getattr(b, field)
        assert x.dtype == y.dtype == torch.float32
        assert torch.equal(x, y), field


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 9), degree=st.integers(0, 3), seed=st.integers(0, 99), kind=st.sampled_from("<>a"),
    wide=st.booleans(), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_reads_any_order_endian_and_width(tmp_path_factory, n, degree, seed, kind, wide, order):
    splats = make_splats(n, degree, seed)
    columns = columns_of(splats)
    names = list(columns)
    order.shuffle(names)
    shuffled = {name: columns[name].astype("f8" if wide else "f4") for name in names}
    path = tmp_path_factory.mktemp("ply") / "any.ply"
    path.write_bytes(ply_bytes(shuffled, kind))
    assert_same(read_ply(path), splats)
    assert read_ply(path).extras == {}


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 40), degree=st.integers(0, 3), seed=st.integers(0, 99))
def test_round_trip_keeps_the_bits(tmp_path_factory, n, degree, seed):
    splats = make_splats(n, degree, seed)
    path = tmp_path_factory.mktemp("ply") / "round.ply"
    write_ply(path, dataclasses.replace(splats, features=torch.zeros(n, 4)))
    back = read_ply(path)
    assert_same(back, splats)
    assert back.sh_degree == degree
    assert back.features is None


def test_written_layout_is_inrias(tmp_path):
    splats = make_splats(3, 1)
    write_ply(tmp_path / "a.ply", splats)
    rest = [f"f_rest_{i}" for i in range(9)]
    names = [*"xyz", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    columns = columns_of(splats)
    expected = ply_bytes({name: columns[name] for name in names}).replace(b"comment by hand\n", b"")
    assert (tmp_path / "a.ply").read_bytes() == expected
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_extras_survive_when_asked(tmp_path):
    splats = make_splats(4, 0)
    label = np.array([3, -1, 2, 2**31 - 1])
    extra = {"label": label, "sure": np.array([0.5, 1, 0, 0.25]), "seen": np.array([True, False, True, True])}
    write_ply(tmp_path / "a.ply", splats, extra)
    back = read_ply(tmp_path / "a.ply")
    assert_same(back, splats)
    assert list(back.extras) == ["label", "sure", "seen"]
    for name, values in extra.items():
        np.testing.assert_array_equal(back.extras[name], values)
        assert back.extras[name].dtype.isnative
    write_ply(tmp_path / "b.ply", back)
    assert read_ply(tmp_path / "b.ply").extras == {}
    write_ply(tmp_path / "c.ply", back, back.extras)
    assert (tmp_path / "c.ply").read_bytes() == (tmp_path / "a.ply").read_bytes()


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("x", np.zeros(2), "rename"),
        ("my label", np.zeros(2), "rename"),
        ("label\nelement", np.zeros(2), "rename"),
        ("label", np.zeros(3), "shape"),
        ("label", np.array([0, 2**31]), "32 bits"),
        ("label", np.array(["a", "b"]), "type"),
    ],
)
def test_extras_that_cannot_be_written(tmp_path, name, values, says):
    with pytest.raises(InputError, match=says):
        write_ply(tmp_path / "a.ply", make_splats(2, 0), {name: values})
    assert not list(tmp_path.iterdir())


def test_nothing_to_write(tmp_path):
    with pytest.raises(InputError, match="no Gaussians"):
        write_ply(tmp_path / "a.ply", make_splats(0, 1))


def refused(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_ply(path)
    assert "\n" not in str(error.value).strip()
    assert str(path) in str(error.value)
    return str(error.value)


def test_discs_and_colours_of_other_trainers_are_gaussians(tmp_path):
    known = make_splats(6, 0)
    columns = columns_of(known)
    discs = {name: values for name, values in columns.items() if name != "scale_2"}
    (tmp_path / "discs.ply").write_bytes(ply_bytes(discs))
    got, notes = read_splats(tmp_path / "discs.ply")
    thin = np.minimum(columns["scale_0"], columns["scale_1"]) - np.log(1000)
    np.testing.assert_allclose(got.log_scales.numpy()[:, 2], thin, rtol=1e-5)
    assert torch.equal(got.log_scales[:, :2], known.log_scales[:, :2]) and not got.extras
    assert len(notes) == 1 and "discs" in notes[0]
    rgb = np.random.default_rng(0).integers(0, 256, (6, 3)).astype(np.uint8)
    painted = {name: values for name, values in columns.items() if not name.startswith("f_dc")}
    painted |= dict(zip(("red", "green", "blue"), rgb.T))
    (tmp_path / "rgb.ply").write_bytes(ply_bytes(painted))
    got, notes = read_splats(tmp_path / "rgb.ply")
    np.testing.assert_allclose(sh_dc_to_rgb(got.sh[:, 0]).numpy(), rgb / 255, atol=1e-6)
    assert len(notes) == 1 and "colours of 8 bits" in notes[0] and not got.extras
    mapped = MappedSplats(tmp_path / "rgb.ply")
    assert torch.equal(mapped.sh_dc(np.array([4, 1])), got.sh[[4, 1], :1])
    both = columns | dict(zip(("red", "green", "blue"), rgb.T))
    (tmp_path / "both.ply").write_bytes(ply_bytes(both))
    got, notes = read_splats(tmp_path / "both.ply")
    assert torch.equal(got.sh, known.sh) and set(got.extras) == {"red", "green", "blue"} and not notes
    assert read_splats(clean(tmp_path / "discs.ply")[0])[0].log_scales.isfinite().all()


def test_files_of_other_kinds_are_told_from_splats(tmp_path):
    columns = columns_of(make_splats(3, 0))
    anchors = {name: columns[name] for name in ("x", "y", "z", "opacity")} | {"f_anchor_feat_0": columns["x"]}
    assert "holds anchors" in refused(tmp_path / "a.ply", ply_bytes(anchors))
    (tmp_path / "a.ckpt").write_bytes(b"PK\3\4 a checkpoint")
    with pytest.raises(InputError, match=r"a.ckpt is not a splat file .*\.ply, \.spz, .*; export it as a 3DGS"):
        read_splats(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="there is no"):
        read_splats(tmp_path / "none.ckpt")


def test_files_that_are_not_splats(tmp_path):
    path = tmp_path / "bad.ply"
    columns = columns_of(make_splats(5, 1))
    whole = ply_bytes(columns)
    assert "no PLY file" in refused(path)
    assert "is a folder" in refused(tmp_path)
    assert "not a PLY" in refused(path, b"")
    assert "not a PLY" in refused(path, b"\x89PNG\r\n\x1a\n" * 9)
    assert "header does not end" in refused(path, whole[:200])
    assert "truncated" in refused(path, whole[:-1])
    assert "truncated" in refused(path, ply_bytes(columns, "a")[:-300])
    assert "no vertices" in refused(path, b"ply\nformat ascii 1.0\nend_header\n")
    assert "no Gaussians" in refused(path, ply_bytes({n: c[:0] for n, c in columns.items()}))
    points = {n: columns[n] for n in "xyz"}
    message = refused(path, ply_bytes(points))
    assert "opacity, scale_0, scale_1, scale_2, rot_0, rot_1, rot_2, rot_3" in message
    assert "a point cloud or a mesh is not a splat" in message
    packed = {"packed_position": np.zeros(5, "i4"), "packed_rotation": np.zeros(5, "i4")}
    assert "decompress" in refused(path, ply_bytes(packed))
    a_list = b"property list uchar int vertex_indices\n"
    listed = whole.replace(b"property float x\n", b"property float x\n" + a_list)
    assert "vertex_indices" in refused(path, listed)
    assert "header says 'property float'" in refused(path, whole.replace(b"float nx\n", b"float\n"))
    twice = whole.replace(b"property float nx\n", b"property float x\n")
    assert "broken" in refused(path, twice)


@pytest.mark.parametrize("count", [7, 10**9, 10**15, 10**18, 10**30, -1])
@pytest.mark.parametrize("kind", ["<", "a"])
def test_more_vertices_announced_than_held(tmp_path, kind, count):
    refused(tmp_path / "bad.ply", ply_bytes(columns_of(make_splats(5, 1)), kind, count))


def test_huge_element_before_the_vertices(tmp_path):
    before = "element face 99999999999\nproperty list uchar int vertex_indices"
    content = ply_bytes(columns_of(make_splats(5, 1)), before=before)
    assert "more than its" in refused(tmp_path / "a.ply", content)


def test_an_element_before_the_vertices_may_name_a_property_twice(tmp_path):
    before = "element face 2\nproperty float a\nproperty uchar a"
    whole = ply_bytes(columns_of(make_splats(5, 1)), before=before)
    start = whole.index(b"end_header\n") + len(b"end_header\n")
    (tmp_path / "a.ply").write_bytes(whole[:start] + bytes(10) + whole[start:])
    assert torch.equal(read_ply(tmp_path / "a.ply").means, make_splats(5, 1).means)


@pytest.mark.parametrize("n_rest", [1, 8, 10, 48])
def test_odd_number_of_sh_terms(tmp_path, n_rest):
    columns = columns_of(make_splats(2, 0)) | {f"f_rest_{i}": np.zeros(2, "f4") for i in range(n_rest)}
    assert f"{n_rest} f_rest" in refused(tmp_path / "a.ply", ply_bytes(columns))


def test_gap_in_the_sh_terms(tmp_path):
    columns = columns_of(make_splats(2, 1))
    columns["f_rest_9"] = columns.pop("f_rest_4")
    assert "f_rest_4" in refused(tmp_path / "a.ply", ply_bytes(columns))


@pytest.mark.parametrize("kind", ["<", ">", "a"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_counted(tmp_path, bad, kind):
    columns = {n: c.astype("f8") for n, c in columns_of(make_splats(6, 1)).items()}
    columns["f_rest_3"][[1, 4]] = bad
    columns["y"][4] = bad
    message = refused(tmp_path / "a.ply", ply_bytes(columns, kind))
    assert "2 of 6 Gaussians" in message
    assert "f_rest_3" in message and "y" in message


def test_opacities_of_one_and_sizes_of_nothing_become_finite(tmp_path):
    """What converters of 8-bit opacities write: the logit of 255 / 255, the logarithm of 0."""
    columns = {name: values.copy() for name, values in columns_of(make_splats(6, 0)).items()}
    columns["opacity"][[1, 2]], columns["scale_1"][3] = (np.inf, -np.inf), -np.inf
    (tmp_path / "a.ply").write_bytes(ply_bytes(columns))
    got = read_ply(tmp_path / "a.ply")
    assert got.opacities[1] > 1 - 1e-6 and got.opacities[2] < 1e-6 and got.scales[3, 1] < 1e-12
    assert torch.equal(got.logit_opacities[[0, 3, 4, 5]], torch.from_numpy(columns["opacity"][[0, 3, 4, 5]]))
    columns["opacity"][1] = np.nan
    assert "1 of 6 Gaussians (opacity)" in refused(tmp_path / "a.ply", ply_bytes(columns))


@pytest.mark.parametrize("kind", ["<", "a"])
def test_an_origin_is_taken_from_double_precision(tmp_path, kind):
    splats, origin = make_splats(6, 0), (447_000.25, 4_649_776.5, 0.0)
    columns = {n: c.astype("f8") for n, c in columns_of(splats).items()}
    for name, start in zip("xyz", origin):
        columns[name] = columns[name] + start
    (tmp_path / "a.ply").write_bytes(ply_bytes(columns, kind))
    assert (read_ply(tmp_path / "a.ply", origin).means - splats.means).abs().max() < 1e-6
    assert (read_splats(tmp_path / "a.ply", origin)[0].means - splats.means).abs().max() < 1e-6
    late = read_ply(tmp_path / "a.ply").means.double() - torch.tensor(origin).double()
    assert (late - splats.means).abs().max() > 1e-2  # what taking it away afterwards would leave


def test_an_origin_is_not_taken_twice(tmp_path):
    splats, origin, path = make_splats(6, 0), (447_000.25, 4_649_776.5, -120.0), tmp_path / "a.ply"
    points = splats.means.numpy() + 0.1
    write_ply(path, splats, origin=origin)
    assert f"comment cgc origin {origin[0]} {origin[1]} {origin[2]}" in path.read_bytes().decode("latin-1")
    got, notes = read_splats(path, origin, points)
    assert torch.equal(got.means, splats.means) and not notes
    other = (447_001.25, 4_649_776.5, -120.0)  # of a model with other cameras
    got, notes = read_splats(path, other, points)
    assert torch.equal(got.means, splats.means - torch.tensor([1.0, 0, 0])) and not notes
    assert torch.equal(read_splats(path)[0].means, splats.means)  # a scene that is near its origin has none to take
    for text in (b"comment cgc origin of it all", b"comment of another tool"):
        path.write_bytes(path.read_bytes().replace(path.read_bytes().splitlines()[2], text))
        for known in (points, points[:0], None):
            got, [note] = read_splats(path, origin, known)
            assert torch.equal(got.means, splats.means) and f"{path} lie where a run of this scene has them" in note


def test_the_filter_of_mip_splatting_is_fused(tmp_path):
    splats, widths = make_splats(6, 0), np.array([0, 1e-3, 0.01, 0.02, 0.3, 2], np.float32)
    (tmp_path / "a.ply").write_bytes(ply_bytes(columns_of(splats) | {"filter_3D": widths}))
    got = read_ply(tmp_path / "a.ply")
    assert not got.extras
    for i, width in enumerate(widths.tolist()):
        variances = splats.scales[i].double() ** 2
        wide = variances + width**2
        thin = (variances.prod() / wide.prod()) ** 0.5 * splats.opacities[i].double()
        assert torch.allclose(got.scales[i].double() ** 2, wide, rtol=1e-5)
        assert torch.allclose(got.opacities[i].double(), thin, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("norm", [0.0, 1e-30, 1e30])
def test_quaternions_without_direction_are_counted(tmp_path, norm):
    columns = columns_of(make_splats(6, 0))
    for i in range(4):
        columns[f"rot_{i}"] = columns[f"rot_{i}"].copy()
        columns[f"rot_{i}"][2] = norm
    assert "1 of 6 Gaussians" in refused(tmp_path / "a.ply", ply_bytes(columns))


@pytest.mark.parametrize("kind", ["<", "a"])
def test_scales_beyond_float32_are_counted(tmp_path, kind):
    columns = {name: values.copy() for name, values in columns_of(make_splats(6, 0)).items()}
    columns["scale_1"][[1, 4]], columns["scale_2"][1] = 88.8, 1e20
    said = refused(tmp_path / "a.ply", ply_bytes(columns, kind))
    assert "2 of 6 Gaussians with a scale" in said and "over 88" in said
    columns["scale_1"][[1, 4]], columns["scale_2"][1] = 88.7, -1e20
    (tmp_path / "b.ply").write_bytes(ply_bytes(columns, kind))
    assert read_ply(tmp_path / "b.ply").scales.isfinite().all()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.ply")
    with pytest.raises(InputError, match=r"pipe\.ply is a pipe or a device"):
        read_ply(tmp_path / "pipe.ply")
    with pytest.raises(
        InputError, match=r"is a folder where a PLY file was expected; give the file in it, such as .*pipe\.ply"
    ):
        read_ply(tmp_path)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), kind=st.sampled_from("<>a"), degree=st.sampled_from([0, 1]))
def test_mutated_files_are_refused_or_valid(tmp_path_factory, data, kind, degree):
    content = bytearray(ply_bytes(columns_of(make_splats(3, degree)), kind))
    header = content.index(b"end_header")
    for _ in range(data.draw(st.integers(0, 4))):
        where = data.draw(st.one_of(st.integers(0, header), st.integers(0, len(content) - 1)))
        byte = st.one_of(st.integers(0, 255), st.sampled_from(list(b"0123456789 \n\r-.e")))
        content[where] = data.draw(byte)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path_factory.mktemp("ply") / "mutated.ply"
    path.write_bytes(bytes(content))
    try:
        splats = read_ply(path)
    except InputError:
        return
    n = len(splats)
    assert n > 0
    assert splats.means.shape == (n, 3) and splats.quats.shape == (n, 4) and splats.log_scales.shape == (n, 3)
    assert splats.logit_opacities.shape == (n,) and splats.sh.shape == (n, (splats.sh_degree + 1) ** 2, 3)
    for tensor in (splats.means, splats.quats, splats.log_scales, splats.logit_opacities, splats.sh):
        assert tensor.dtype == torch.float32 and bool(tensor.isfinite().all())
    assert all(values.shape == (n,) for values in splats.extras.values())


# --- initialisation ---------------------------------------------------------------------------------------


def cloud(m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, 3)), rng.integers(0, 256, (m, 3), dtype=np.uint8)


def test_points_become_round_gaussians_of_their_colour():
    points, colors = cloud(30)
    splats = splats_from_points(points, colors, sh_degree=2, opacity=0.1, extent=5.0)
    assert splats.sh.shape == (30, 9, 3)
    torch.testing.assert_close(splats.means, torch.tensor(points, dtype=torch.float32))
    torch.testing.assert_close(splats.opacities, torch.full((30,), 0.1))
    assert torch.equal(splats.quats, torch.tensor([1.0, 0, 0, 0]).repeat(30, 1))
    shown = sh_to_rgb(splats.sh, torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), 2)
    torch.testing.assert_close(shown, torch.tensor(colors / 255.0, dtype=torch.float32), atol=1e-6, rtol=0)
    for i in range(30):  # the obvious reference: sort all distances
        distances = sorted(np.linalg.norm(points - points[i], axis=1))[1:4]
        expected = np.clip(np.mean(distances), MIN_SCALE * 5, MAX_SCALE * 5)
        np.testing.assert_allclose(splats.scales[i].numpy(), expected, rtol=1e-5)


def test_scales_follow_the_unit_of_length():
    points, colors = cloud(50)
    one = splats_from_points(points, colors, sh_degree=0, opacity=0.5, extent=3.0)
    ten = splats_from_points(points * 10, colors, sh_degree=0, opacity=0.5, extent=30.0)
    torch.testing.assert_close(ten.scales, one.scales * 10, rtol=1e-5, atol=0)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_few_points(m):
    points, colors = cloud(m)
    splats = splats_from_points(points, colors, sh_degree=0, opacity=0.1, extent=1.0)
    assert bool(splats.log_scales.isfinite().all())
    if m == 1:
        torch.testing.assert_close(splats.scales, torch.full((1, 3), MAX_SCALE))


def test_repeated_and_far_points_are_clamped():
    points = np.concatenate([np.zeros((9, 3)), [[1e6, 0, 0]]])
    splats = splats_from_points(points, np.zeros((10, 3), np.uint8), sh_degree=0, opacity=0.1, extent=2.0)
    torch.testing.assert_close(splats.scales[0], torch.full((3,), MIN_SCALE * 2), rtol=1e-4, atol=0)
    torch.testing.assert_close(splats.scales[9], torch.full((3,), MAX_SCALE * 2))


def test_subset_of_many_points_is_seeded():
    points, colors = cloud(100)

    def draw(seed: int) -> Splats:
        generator = torch.Generator().manual_seed(seed)
        return splats_from_points(
            points, colors, sh_degree=0, opacity=0.1, extent=1.0, generator=generator, max_points=20
        )

    assert len(draw(1)) == 20
    assert torch.equal(draw(1).means, draw(1).means)
    assert not torch.equal(draw(1).means, draw(2).means)


def test_points_that_cannot_be_used():
    points, colors = cloud(5)
    with pytest.raises(InputError, match="no 3D points"):
        splats_from_points(points[:0], colors[:0], sh_degree=0, opacity=0.1, extent=1.0)
    points[2, 1] = np.nan
    with pytest.raises(InputError, match="1 of 5 points"):
        splats_from_points(points, colors, sh_degree=0, opacity=0.1, extent=1.0)


def test_random_splats_fill_the_cube_and_are_seeded():
    def draw(seed: int) -> Splats:
        generator = torch.Generator().manual_seed(seed)
        return random_splats(4000, [10.0, 0.0, -5.0], 2.0, sh_degree=1, opacity=0.1, generator=generator)

    splats = draw(3)
    offset = (splats.means - torch.tensor([10.0, 0.0, -5.0])) / (CUBE * 2.0)
    assert splats.sh.shape == (4000, 4, 3)
    assert float(offset.abs().max()) <= 1.0
    assert float(offset.abs().max()) > 0.99
    assert float(offset.mean(0).abs().max()) < 0.05
    torch.testing.assert_close(offset.std(0), torch.full((3,), 3**-0.5), rtol=0.05, atol=0)
    assert torch.equal(splats.means, draw(3).means) and torch.equal(splats.sh, draw(3).sh)
    assert not torch.equal(splats.means, draw(4).means)
    colors = splats.colors(torch.zeros(3))
    assert float(colors.std()) > 0.2 and float(colors.min()) >= 0 and float(colors.max()) <= 1 + 1e-6


# --- leaving out what is broken ---


def broken_columns(n: int = 40) -> tuple[dict[str, np.ndarray], list[int]]:
    """Columns of Gaussians with attributes of their own, and which of them are broken, each otherwise."""
    columns = {name: values.copy() for name, values in columns_of(make_splats(n, 1)).items()}
    columns["x"] = columns["x"].astype(np.float64) + 1e-12
    columns |= {"filter_3D": np.full(n, 1e-3, np.float32), "größe": np.arange(n, dtype=np.uint8)}
    broken = {"x": {3: np.nan, 4: 1e300}, "f_rest_8": {0: np.inf}, "filter_3D": {7: np.nan}, "scale_1": {11: 99.0}}
    broken |= {"rot_2": {39: -np.inf}, "opacity": {20: np.nan}} | {f"rot_{i}": {12: 0.0} for i in (0, 1, 3)}
    broken["rot_2"][12] = 0.0
    read = {"opacity": {21: np.inf}, "scale_0": {22: -np.inf}, "nx": {23: np.nan}}  # for all that
    for changes in (broken, read):
        for name, values in changes.items():
            columns[name][list(values)] = list(values.values())
    return columns, [0, 3, 4, 7, 11, 12, 20, 39]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_copy_has_every_gaussian_that_can_be_read_and_no_other(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("cgc.splats.clean.CHUNK", 7)
    columns, bad = broken_columns()
    path = tmp_path / "a b.ply"
    path.write_bytes(ply_bytes(columns, kind))
    with pytest.raises(InputError, match=r"; `cgc clean '.*/a b\.ply'` writes a copy without these"):
        read_splats(path)
    before = path.read_bytes()
    out, left_out, total = clean(path)
    assert (out, left_out, total) == (tmp_path / "a b_clean.ply", len(bad), 40) and path.read_bytes() == before
    kept = np.setdiff1d(np.arange(40), bad)
    got = read_vertices(out, read_header(out))
    assert b"\nproperty uchar gr\xc3\xb6\xc3\x9fe\n" in out.read_bytes() and got.dtype.names[-1] == "source_row"
    for name, values in zip(got.dtype.names, [*(v[kept] for v in columns.values()), kept], strict=True):
        np.testing.assert_array_equal(got[name], values)
        assert name == "source_row" or got[name].dtype == values.dtype
    splats, _ = read_splats(out)
    assert len(splats) == len(kept) and (splats.extras["source_row"] == kept).all()
    again, left_out, _ = clean(out, tmp_path / "again.ply")  # rows are still those of the first file
    assert left_out == 0 and again.read_bytes() == out.read_bytes()
    for row in bad:  # each of them is refused
        path.write_bytes(ply_bytes({name: values[[row]] for name, values in columns.items()}, kind))
        with pytest.raises(InputError, match="cgc clean"):
            read_splats(path)


def test_packed_splats_are_cleaned_too(tmp_path):
    rows = np.zeros((5, 32), np.uint8)
    rows[:, :24] = np.full((5, 6), 0.5, "<f4").view(np.uint8).reshape(5, 24)
    rows[:, 24:] = 128
    rows[2, 4:8] = np.array([np.inf], "<f4").view(np.uint8)
    (tmp_path / "a.splat").write_bytes(rows.tobytes())
    with pytest.raises(InputError, match=r"1 of 5 Gaussians with NaN or infinite .*`cgc clean .*a\.splat`"):
        read_splats(tmp_path / "a.splat")
    out, left_out, total = clean(tmp_path / "a.splat")
    assert out == tmp_path / "a_clean.ply" and (left_out, total) == (1, 5)
    assert read_splats(out)[0].extras["source_row"].tolist() == [0, 1, 3, 4]


def test_what_cannot_be_cleaned_is_said(tmp_path, capsys):
    columns, bad = broken_columns()
    path = tmp_path / "a.ply"
    path.write_bytes(ply_bytes({name: values[bad] for name, values in columns.items()}))
    with pytest.raises(InputError, match="has no Gaussian that is whole, all 8 are broken"):
        clean(path)
    path.write_bytes(ply_bytes(columns))
    with pytest.raises(InputError, match="is what is cleaned; give the copy another name"):
        clean(path, path)
    with pytest.raises(InputError, match="there is no PLY file"):
        clean(tmp_path / "b.ply", path)
    for folder in (tmp_path, Path()):
        with pytest.raises(InputError, match="is a folder where a PLY file was expected"):
            clean(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    assert main(["clean", str(path), "--out", str(tmp_path / "c.ply")]) == 0
    assert "8 of 40 Gaussians left out" in " ".join(capsys.readouterr().out.split()) and (tmp_path / "c.ply").exists()
