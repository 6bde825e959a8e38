"""A device that is not there: tensors that say they lie on it, keep their numbers on the host, and do not mix with it.

It shows without a GPU what device_guard.py does not: whole runs, in which sizes depend on values and the host reads
many of them. A tensor of the host beside one of the device, `numpy()` of what lies on the device, a generator of the
host for numbers drawn there, and tensors of the host given to gsplat's compiled code are errors, as on a GPU, and so
are operations that torch has no CUDA code for, where it was built with CUDA; numbers of no dimension may come from the
host, and indices too. What it does not show: dtypes that a GPU's code does not take, streams, speed. gsplat's code is
the stand-in of gsplat_stand_in.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import gsplat_stand_in
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy", 0)
"""Of a kind that torch knows, has no code for, and whose gradients it finds in the calling thread."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
MOVING = {"aten::_to_copy", "aten::copy_"}
WITHOUT_TENSORS = {"aten::_local_scalar_dense", "aten::equal"}
FOR_CUDA = ("CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")
"""Where torch looks for the code of an operation on a GPU."""


SEEDS: set[int] = set()
"""Of the device's generators: torch hands operations a copy, which has nothing else in common with them."""


class Mixed(AssertionError):
    """What would be an error on a GPU."""


class There(Tensor):
    """A tensor of the device; `inner` has its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        facts = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **facts)
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        """See `__new__`."""

    def numpy(self, **_: Any) -> Any:
        """Refuse, as torch does."""
        raise Mixed("numpy() of a tensor of the device")

    __array__ = numpy

    def tolist(self) -> Any:
        """Read the numbers."""
        return self.inner.tolist()

    def data_ptr(self) -> int:
        """Say where they lie."""
        return self.inner.data_ptr()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Make a tensor beside this one."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE, **options})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def is_there(device: Any) -> bool:
    """Say whether a device, or None, is the one that is not there."""
    return device is not None and torch.device(device).type == DEVICE.type


def inside(value: Any) -> Any:
    """Return the numbers of tensors of the device, and the host in its place."""
    if isinstance(value, There):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and is_there(value) else value


def outside(value: Any) -> Any:
    """Put a tensor of the host on the device."""
    return There(value) if isinstance(value, Tensor) and not isinstance(value, There) else value


def refuse_mixtures(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Raise `Mixed` for what a GPU would not take; return whether anything given lies on the device."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = any(isinstance(t, There) for t in given)
    host = [t for t in given if not isinstance(t, There) and t.ndim]
    generator = kwargs.get("generator")
    drawn_there = there or is_there(kwargs.get("device"))
    if generator is not None and drawn_there and generator.initial_seed() not in SEEDS:
        raise Mixed(f"{name} was given a generator of the host")
    if not there or name in MOVING:
        return there
    if name in INDEXING:  # by indices of either, of numbers of one
        whose = [t for t in (args[0], *args[2:3]) if t.ndim]
        host = [t for t in whose if not isinstance(t, There)] if isinstance(args[0], There) else [args[0]]
    if host:
        raise Mixed(f"{name} was given tensors of the host, {[list(t.shape) for t in host]}, with the device's")
    return there


@cache
def runs_on_cuda(func: Any) -> bool:
    """Say whether torch has code for an operation on a GPU; it cannot be known of a torch without CUDA."""
    name = ".".join(filter(None, (func._schema.name, func._schema.overload_name)))
    return not torch.version.cuda or any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in FOR_CUDA)


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do an operation of torch on the numbers, and say where the result lies."""
    name, device = func._schema.name, kwargs.get("device")
    there = refuse_mixtures(name, args, kwargs)
    if (there or is_there(device)) and not runs_on_cuda(func):
        raise Mixed(f"torch has no code for {name} on a GPU")
    given, options = tree_map(inside, args), tree_map(inside, kwargs)
    if name == "aten::copy_":
        func(*given, **options)
        return args[0]
    if name == "aten::_to_copy":
        made = func(*given, **{k: v for k, v in options.items() if k not in ("non_blocking", "pin_memory")})
        return outside(made) if (is_there(device) if device is not None else there) else made
    made = func(*given, **options)
    if name in WITHOUT_TENSORS or not (there or is_there(device)):
        return made
    made = tree_map(outside, made)
    return return_and_correct_aliasing(func, args, kwargs, made) if there else made


class Generator(torch.Generator):
    """A generator of the host, or of the device."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        """Make one of a device."""
        made = super().__new__(cls, inside(torch.device(device)))
        made.there = is_there(device)
        return made

    def manual_seed(self, seed: int) -> torch.Generator:
        """Start anew."""
        if self.there:
            SEEDS.add(seed)
        return super().manual_seed(seed)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def guarded(name: str, function: Any) -> Any:
    """Return a function of gsplat's compiled code that takes tensors of the device alone."""

    def call(*args: Any) -> Any:
        if any(isinstance(t, Tensor) and not isinstance(t, There) for t in args):
            raise Mixed(f"{name} was given a tensor of the host where CUDA's are expected")
        return tree_map(outside, function(*map(inside, args)))

    return call


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Let commands and the API find the device and its rasteriser, and operations on its tensors work, in the block."""
    from cgc.rasterize.cuda import CudaRasterizer

    def compiled(make: Any = gsplat_stand_in.compiled) -> ModuleType:
        module = make()
        own = {name: f for name, f in vars(module).items() if callable(f) and name.islower() and name[0] != "_"}
        vars(module).update({name: guarded(name, f) for name, f in own.items()})
        return module

    def rasterizer_for(device: torch.device, **options: Any) -> CudaRasterizer:
        return CudaRasterizer(device, memory_limit=1 << 28, **options)

    def tensor(data: Any, *, device: Any = None, make: Any = torch.tensor, **options: Any) -> Tensor:
        return make(data, **options).to(DEVICE) if is_there(device) else make(data, device=device, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(gsplat_stand_in, "compiled", compiled)
        for module in ("cgc.api", "cgc.pipeline.workspace"):
            patch.setattr(f"{module}.choose", lambda *_: (DEVICE, "device: one that is not there"))
            patch.setattr(f"{module}.rasterizer_for", rasterizer_for)
        with gsplat_stand_in.standing_in(), _Operations():
            yield DEVICE
