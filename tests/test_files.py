"""Files: whole or not at all, and one sentence where the system refuses."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import zipfile
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cgc.blocks.work import load_arrays
from cgc.errors import InputError
from cgc.features.files import read_tensors
from cgc.files import (
    check_readable,
    files_below,
    fits,
    read_arrays,
    read_json,
    sha256,
    write_beside,
    write_json,
    write_text,
)


class Named(TypedDict):
    """What must be there."""

    name: str


class Facts(Named, total=False):
    """And what may."""

    level: float


NOISE = np.random.default_rng(0).integers(0, 60000, (99, 99)).astype(np.uint16)


def raw(path):
    with open(path, "wb") as file:
        file.write(NOISE.tobytes())


WRITERS = {
    "a.bin": raw,
    "a.txt": lambda path: path.write_text("x" * 5000),
    "a.npz": lambda path: np.savez_compressed(path, a=NOISE),
    "a.npy": lambda path: np.save(path, NOISE),
    "a.png": lambda path: Image.fromarray(NOISE).save(path),
    "a.safetensors": lambda path: save_file({"a": torch.zeros(5000)}, path),
}


def test_a_file_appears_whole_and_replaces_the_old(tmp_path):
    path = tmp_path / "deep/er/a.txt"
    write_text(path, "old")
    with write_beside(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt" and temporary.name.startswith(".")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_who_may_read_a_file_is_as_the_system_says_whoever_writes_it(tmp_path, name, umask):
    old = os.umask(umask)
    try:
        with write_beside(tmp_path / name) as temporary:
            WRITERS[name](temporary)
    finally:
        os.umask(old)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask and list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, InputError])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(error), write_beside(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_disk_that_is_really_full(tmp_path, name):
    """The system refuses to let the file grow, whoever writes it."""
    path, old = tmp_path / name, resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        said = rf"the disk is full: .*{name} could not be written and is left as it was"
        with pytest.raises(InputError, match=said), write_beside(path) as temporary:
            WRITERS[name](temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO])
def test_what_the_system_refuses_is_one_sentence(tmp_path, number):
    with pytest.raises(InputError) as caught, write_beside(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    said = str(caught.value)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    assert said.startswith("the disk is full: ") == full and str(tmp_path / "a.txt") in said and "\n" not in said
    assert full or f"({os.strerror(number)})" in said
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file/a.txt", tmp_path / "file/b/a.txt"):
        with pytest.raises(InputError, match="could not be written"):
            write_text(path, "y")
    (tmp_path / "folder/in").mkdir(parents=True)
    with pytest.raises(InputError, match="could not be written"):
        write_text(tmp_path / "folder", "y")
    with pytest.raises(InputError, match=r"could not be written \(File name too long\)"):
        write_text(tmp_path / ("a" * 300), "y")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "in"]


def test_what_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    def refused(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    check_readable(tmp_path / "a.safetensors")  # who reads it says best that it is not there
    monkeypatch.setattr("builtins.open", refused)
    said = r"a\.safetensors cannot be read \(Permission denied\); check it and its permissions"
    for read in (check_readable, lambda path: read_tensors(path, "again", "mass"), lambda path: load_arrays(path, "a")):
        with pytest.raises(InputError, match=said):
            read(tmp_path / "a.safetensors")


def test_names_that_are_no_utf8_are_written_as_numbers(tmp_path):
    write_text(tmp_path / "a.txt", os.fsdecode(b"caf\xe9") + "ü")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9ü"


def test_json_comes_back_and_holds_no_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None, "ü"]})
    assert read_json(path, "it") == {"a": [1, None, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path, "it") == {"a": [1, None, "ü"]}


def test_json_that_is_missing_or_broken_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"the table is missing: expected .*a\.json"):
        read_json(path, "the table")
    for data in (b"", b"{", b"\xff\xfe", b"9" * 5000, b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(InputError, match="the table is not valid JSON"):
            read_json(path, "the table")


@pytest.mark.parametrize("kind", ["another archive", "an array alone", "a pickle", "objects", "all memory", "lzma"])
def test_files_that_hold_no_arrays_end_in_a_value_error(tmp_path, kind):
    path = tmp_path / "a.npz"
    if kind == "an array alone":
        with open(path, "wb") as file:
            np.save(file, NOISE)
    elif kind == "a pickle":
        path.write_bytes(b"\x80\x04N.")
    elif kind == "objects":
        np.savez(path, a=np.array([{}]))
    else:
        header = io.BytesIO()
        shape = (10**17,) if kind == "all memory" else (3,)
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.npy", header.getvalue() + bytes(24))
        if kind == "another archive":
            path.write_bytes(path.read_bytes()[:-30])
        if kind == "lzma":
            data = path.read_bytes()
            path.write_bytes(data[:60] + b"\xff" * 20 + data[80:])
    with pytest.raises(ValueError, match=r"\w") as error:
        read_arrays(path)
    assert "pickle" not in str(error.value)


def test_bytes_of_an_archive_are_not_quoted_without_end(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(999))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[26:28] = (8000).to_bytes(2, "little")  # the length of the name that stands before the array
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"\.\.\.$") as error:
        read_arrays(tmp_path / "a.npz")
    assert len(str(error.value)) < 400


def test_json_of_an_editor_on_windows_and_what_is_no_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(path, "the table") == {"a": 1}
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"the table cannot be read: .*a\.json \(Is a directory\); check it"):
        read_json(path, "the table")


def test_arrays_come_back_and_none_that_was_not_asked_for(tmp_path):
    np.savez(tmp_path / "a.npz", a=NOISE, b=np.zeros(3))
    assert list(read_arrays(tmp_path / "a.npz", "b", "c")) == ["b"]
    assert np.array_equal(read_arrays(tmp_path / "a.npz")["a"], NOISE)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [0, 1.5], [True, float("nan"), float("inf"), "1", None]),
        (bool, [True], [1, None]),
        (str | None, ["", None], [1, []]),
        (list[int], [[], [1, 2]], [[1, "2"], {}, None]),
        (tuple[float, float], [[1, 2.5]], [[1], [1, 2, 3], ["a", "b"], 3]),
        (tuple[int, ...], [[], [1, 2, 3]], [[1.5], None]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, [], None]),
        (Facts, [{"name": "a"}, {"name": "a", "level": 1, "b": []}], [{}, {"name": 1}, {"name": "a", "level": ""}, []]),
        (Any, [None, 1, []], []),
    ],
)
def test_values_fit_their_hints(hint, good, bad):
    assert all(fits(value, hint) for value in good) and not any(fits(value, hint) for value in bad)


def test_links_that_circle_are_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a/1.png", "2.png", ".hidden/3.png"):
        (tmp_path / name).touch()
    for name, to in (("a/up", ".."), ("again", "."), ("b", "a"), ("gone", "nothing")):
        (tmp_path / name).symlink_to(to)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path))
    assert found == ["2.png", "a/1.png", "gone"]


def test_sha256(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
