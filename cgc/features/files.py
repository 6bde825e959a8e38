"""Features as a run keeps them."""

from __future__ import annotations

from pathlib import Path

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
