"""Features as a run keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cgc.errors import InputError
from cgc.files import check_readable, reserve

_AXES = {"features": 2, "mass": 1}
"""How many axes the tensors of a run have; the first are the Gaussians."""


def read_tensors(path: Path, advice: str, *names: str) -> dict[str, Tensor]:
    """Read float32 tensors, `features` [N, D] and `mass` [N] among them, or one of these.

    InputError with the advice where the file is broken, lacks one of `names`, or has something else in it.
    """
    check_readable(path)
    try:
        data = load_file(path)
        if absent := [name for name in names if name not in data]:
            raise ValueError(f"it has no {', '.join(absent)}")
        found = {name: data[name] for name in names}
        for name, values in found.items():
            shape = list(values.shape)
            if values.dtype != torch.float32 or len(shape) != _AXES.get(name, len(shape)):
                raise ValueError(f"its {name} are {shape} of {values.dtype}")
            if not values.isfinite().all():
                raise ValueError(f"its {name} are not finite")
        if len({len(found[name]) for name in _AXES if name in found}) > 1:
            raise ValueError("its features and its mass are of different numbers of Gaussians")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is broken ({error}); {advice}") from error
    return found


def map_tensors(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Make a file of float32 tensors of some shapes, all 0, and map them into memory, to be filled part by part."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "w+b") as file:  # where a disk cannot reserve room the system reads and writes
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        reserve(file.fileno(), 8 + len(text) + end)
    begins = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
    return {
        name: np.memmap(path, np.float32, "r+", begins[name], tuple(shape)) if np.prod(shape) else np.empty(shape)
        for name, shape in shapes.items()
    }
