"""Proof without a GPU that code does not wait for one: what would make the host wait raises an error.

Two guards that see different things. `no_waits` runs on CPU tensors and refuses every operation whose result's size or
value the host needs. `on_meta` puts tensors on PyTorch's device without memory, where nothing can be read at all, and
where a tensor that was forgotten on the host is an error too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::equal", "aten::bincount", "aten::is_nonzero", "aten::histc",
}  # fmt: skip
"""Operations that read a device's memory, most of them to know how large their result is."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
"""Operations that count a mask they are given."""
READING = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
"""What a tensor is read by on the host, where that is no operation of its own on CPU tensors."""


class HostWait(AssertionError):
    """Something would have waited for the device."""


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in WAITING:
            raise HostWait(f"{name} waits for the device")
        if name in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise HostWait(f"{name} with a mask waits for the device: its size is counted")
        if name.startswith("aten::repeat_interleave") and (kwargs or {}).get("output_size") is None:
            raise HostWait("repeat_interleave without output_size waits for the device")
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READING:
            raise HostWait(f"Tensor.{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise `HostWait` for whatever would make the host wait, inside the block."""
    with _Reads(), _Operations():
        yield


def moved(value: Any, device: str | torch.device) -> Any:
    """Return tensors, or what is made of some, on a device, which devices in it become too."""
    device = torch.device(device)
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, torch.device):
        return device
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value


def on_meta(value: Any) -> Any:
    """Return tensors, or what is made of some, on the device without memory."""
    return moved(value, "meta")
