"""Features as a run keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cgc.errors import InputError


def read_tensors(path: Path, advice: str, *names: str) -> dict[str, Tensor]:
    """Read tensors; InputError with the advice where the file is broken or lacks one of `names`."""
    try:
        data = load_file(path)
        return {name: data[name] for name in names}
    except (SafetensorError, KeyError, OSError) as error:
        raise InputError(f"{path} is broken ({error}); {advice}") from error


def map_tensors(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Make a file of float32 tensors of some shapes, all 0, and map them into memory, to be filled part by part."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    begins = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
    return {
        name: np.memmap(path, np.float32, "r+", begins[name], tuple(shape)) if np.prod(shape) else np.empty(shape)
        for name, shape in shapes.items()
    }
