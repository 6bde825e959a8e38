"""Arrays in files, without pickle and without trusting what they claim: .npy, .npz and .pt, a plane at a time."""

from __future__ import annotations

import pickle
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cgc.errors import InputError, reason

WHOLE = 2**31
"""The most bytes that are read at once."""
_BROKEN = (
    OSError, ValueError, EOFError, KeyError, TypeError, OverflowError, RuntimeError, NotImplementedError, SyntaxError,
    MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, IndexError,
    AttributeError, AssertionError,
)  # fmt: skip


@dataclass(frozen=True)
class Array:
    """An array in a file: its shape and type are known; `open` gives a stream of its values, or `values` are they.

    fortran: the values of the stream go down the first axis first.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool = False
    open: Callable[[], IO[bytes]] | None = None
    values: np.ndarray | None = None

    def planes(self) -> Iterator[np.ndarray]:
        """Give the [H, W] planes of an array [..., H, W] one by one; InputError where the file ends early."""
        height, width = self.shape[-2:]
        number = int(np.prod(self.shape[:-2], dtype=object))
        if self.values is not None or self.fortran:
            yield from self.whole().reshape(number, height, width)
            return
        assert self.open is not None
        self._check_size(height * width)
        try:
            with self.open() as stream:
                for _ in range(number):
                    yield self._read(stream, (height, width))
        except _BROKEN as error:
            raise unreadable(self.path, error) from error

    def whole(self) -> np.ndarray:
        """Return all values; InputError where there are too many."""
        if self.values is not None:
            return self.values
        assert self.open is not None
        self._check_size(int(np.prod(self.shape, dtype=object)))
        try:
            with self.open() as stream:
                return self._read(stream, self.shape[::-1]).T if self.fortran else self._read(stream, self.shape)
        except _BROKEN as error:
            raise unreadable(self.path, error) from error

    def _check_size(self, number: int) -> None:
        if number * self.dtype.itemsize > WHOLE:
            raise InputError(
                f"{self.path} holds {self.key or 'an array'} of {list(self.shape)} {self.dtype}, of which more than "
                "2 GiB must be read at once; save masks as [M, H, W] of type bool"
            )

    def _read(self, stream: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape, dtype=object)) * self.dtype.itemsize
        data = stream.read(size)
        if len(data) != size:
            raise EOFError("it ends early")
        return np.frombuffer(data, self.dtype).reshape(shape)


def unreadable(path: Path, error: BaseException) -> InputError:
    """Return the error of a broken file."""
    return InputError(f"{path} cannot be read ({reason(error)}); it is truncated or damaged, save it again")


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a .npy ("" is its name), .npz or .pt file; only their headers are read of the first two."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {i.filename[:-4]: _member(path, i) for i in archive.infolist() if i.filename.endswith(".npy")}
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as stream:
                return {"": _array(path, "", stream, lambda skip: _skip(open(path, "rb"), skip), path.stat().st_size)}
        return _torch(path)
    except InputError:
        raise
    except _BROKEN as error:
        raise unreadable(path, error) from error


def _member(path: Path, info: zipfile.ZipInfo) -> Array:
    def reopen(skip: int) -> IO[bytes]:
        return _skip(zipfile.ZipFile(path).open(info), skip)

    with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        return _array(path, info.filename[:-4], stream, reopen, info.file_size)


def _skip(stream: IO[bytes], number: int) -> IO[bytes]:
    stream.read(number)
    return stream


def _array(path: Path, key: str, stream: Any, reopen: Callable[[int], IO[bytes]], size: int) -> Array:
    """Read an array's header; `size`: how many bytes header and values should have."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files of Python 2 are read all the same
        shape, fortran, dtype = read(stream)
    start = stream.tell()
    if dtype.hasobject:
        raise InputError(
            f"{path} holds Python objects ({key or 'its array'} is a pickle), which can run any code and is never "
            "opened; save plain arrays: a dict video_segments as np.savez_compressed(path, "
            "**{f'{frame}/{object}': mask for frame, masks in video_segments.items() "
            "for object, mask in masks.items()})"
        )
    if any(n < 0 for n in shape) or size != start + int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError(f"its size does not fit an array of {list(shape)} of {dtype}")
    return Array(path, key, shape, dtype, fortran, lambda: reopen(start))


def _torch(path: Path) -> dict[str, Array]:
    """Read a tensor, or a dict or list of tensors, that torch.save wrote; nothing else is opened."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, which can run any code and is never opened (or it is damaged); save the "
            "masks alone: torch.save(masks, path) with a tensor [M, H, W] of type bool"
        ) from error
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    tensors = value if isinstance(value, dict) else {"": value}
    arrays = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_quantized:
            plain = tensor.detach()
            plain = plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain
            values = plain.numpy()
            arrays[str(key)] = Array(path, str(key), values.shape, values.dtype, values=values)
    if not arrays:
        raise InputError(f"{path} holds no tensor but {type(value).__name__}; save the masks alone, a tensor [M, H, W]")
    return arrays
