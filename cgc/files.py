"""Write beside and rename: nothing half-written is ever read back as whole."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import lzma
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TextIO, Union, get_args, get_origin, get_type_hints, is_typeddict
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

from safetensors import SafetensorError

from cgc.errors import InputError, reason

if TYPE_CHECKING:
    import numpy as np

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: BaseException) -> bool:
    """Say whether the system had no room on a disk."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def write_beside(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it onto `path` on success, remove it on failure.

    The temporary name keeps the suffix, so that writers that look at it (PIL, numpy) choose the right format. The file
    may be read by whom the system lets read new files (umask), whatever its writer did: safetensors locks others out.
    InputError where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        usual = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        if temporary.stat().st_mode != usual:
            temporary.chmod(usual)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: Exception) -> InputError:
    """Say why `path` was not written.

    safetensors has the number of the system's error in its text only; numpy has none where a write fell short.
    """
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if number in _FULL or re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return InputError(
            f"the disk is full: {path} could not be written and is left as it was; "
            "free some space (or choose another --out) and run the same command again"
        )
    return InputError(
        f"{path} could not be written ({os.strerror(number) if number else error}) and is left as it was; "
        "make its folder writable, or choose another --out"
    )


def write_text(path: Path | str, text: str) -> None:
    """Write text as UTF-8, whole or not at all; what of a file's name is no UTF-8 is written as a number."""
    with write_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def reserve(file: int, size: int) -> None:
    """Make an open file that long, its room on the disk taken: writing to it mapped into memory cannot fail then."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a compressed .npz; numpy's own writer takes some names for its arguments."""
    import numpy as np

    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(values), allow_pickle=False)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path | str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def open_text(path: Path | str, errors: str = "strict") -> TextIO:
    """Open a text file of others: UTF-8, any line ends; the mark that editors on Windows begin it with is left out."""
    return open(path, encoding="utf-8-sig", errors=errors)


def read_text(path: Path | str) -> str:
    """Read a text file of somebody else as `open_text` opens it."""
    with open_text(path) as file:
        return file.read()


def read_json(path: Path | str, what: str) -> Any:
    """Read a JSON file; `what` names it in the error of a missing or broken one."""
    path = Path(path)
    try:
        return json.loads(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"{what} is missing: expected {path}") from error
    except OSError as error:  # a folder, or one that may not be read
        raise InputError(f"{what} cannot be read: {path} ({error.strerror}); check it and its permissions") from error
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, a list in a list in ...
        raise InputError(f"{what} is not valid JSON: {path} ({error}); restore it or make it again") from error


def fits(value: Any, hint: Any) -> bool:
    """Say whether a value of a JSON is what a type hint says; numbers are finite, of a TypedDict what there is counts.

    Hints are Any, None, bool, int, float, str, lists, tuples, dicts, TypedDicts and unions of these.
    """
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, other) for other in inner)
    if kind in (int, float):
        allowed = int if kind is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool) and abs(value) < math.inf
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        return (
            isinstance(value, dict)
            and kind.__required_keys__ <= value.keys()
            and all(fits(v, hints.get(k, Any)) for k, v in value.items())
        )
    if kind is dict:
        return isinstance(value, dict) and (not inner or all(fits(v, inner[1]) for v in value.values()))
    if kind is tuple and inner[-1] is not ...:
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    if kind in (list, tuple):
        return isinstance(value, list) and all(fits(v, inner[0]) for v in value)
    return kind is Any or (value is None if kind in (None, NoneType) else isinstance(value, kind))


_NO_ARRAYS = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, RuntimeError, MemoryError, BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What numpy and zipfile raise for files of other kinds and for damaged ones: a header may ask for all memory."""


def read_arrays(path: Path | str, *names: str) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz, or those of some names that it has; ValueError says what is wrong with the file."""
    import numpy as np

    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:
            return {name: data[name] for name in data.files if not names or name in names}
    except _NO_ARRAYS as error:
        pickled = "pickle" in str(error)  # what numpy says then is how to open it all the same
        raise ValueError("it holds something else than plain arrays" if pickled else reason(error)) from error


def check_readable(path: Path) -> None:
    """Raise InputError for a file that may not be read: of such a one safetensors says that it is not there."""
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError:  # which its reader says
        pass
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check it and its permissions") from error


def folder_at(folder: Path | str) -> Path:
    """Return the path of a folder that may be there or not; InputError where there can be none of that name."""
    try:
        os.stat(Path(folder))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{str(folder)[:80]!r} cannot be a folder ({why}); choose another") from error
    return Path(folder)


def files_below(folder: Path, but: Callable[[set[str]], bool] | None = None) -> Iterator[Path]:
    """Find every file below a folder as `folders_below` does."""
    return (Path(parent, file) for parent, files in folders_below(folder, but) for file in files)


def folders_below(folder: Path, but: Callable[[set[str]], bool] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder and each below it with its files' names, but hidden ones.

    Links are followed, into each folder once: they may circle. Folders in it of whose files' names `but` holds are left
    out.
    """
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (here.st_dev, here.st_ino) in seen or (but and Path(parent) != folder and but(set(files))):
            folders.clear()
        else:
            yield parent, files
        seen.add((here.st_dev, here.st_ino))


def sha256(path: Path | str) -> str:
    """Hash a file's bytes, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
