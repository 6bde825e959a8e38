"""Where to compute: the device that is asked for or found, its rasteriser, and what to do when its memory is full.

`auto` takes CUDA where torch sees a device and gsplat's CUDA code loads or can be built, else the CPU; which of them,
and why, is one line to print.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.rasterize import gsplat_code
from cgc.rasterize.base import NEAR, Rasterizer
from cgc.rasterize.cpu import CpuRasterizer

CPU = torch.device("cpu")
FIRST_BLOCK, LARGEST_BLOCK, ALIGNED = 1 << 24, 1 << 28, 512
"""Bytes of blocks of page-locked memory, and what copies in them begin at multiples of."""
WEIGHTS_SHARE = 8
"""The weights of one view may take one part in so many of a device's memory."""


def choose(text: str = "auto", say: Callable[[str], None] | None = None) -> tuple[torch.device, str]:
    """Return the device to compute on that `text` names (auto, cpu, cuda, cuda:1, ...), and a line that says why.

    say: told once where gsplat's code has to be built first, which takes minutes. InputError where what was asked for
    cannot be had.
    """
    device, why = see(text)
    if device == CPU:
        return device, why
    if say and not gsplat_code.is_built():
        say("gsplat's CUDA code is built now, once for this torch; that takes some minutes")
    trouble = gsplat_code.why_not()
    if not trouble:
        return device, why
    if text == "auto":
        name = torch.cuda.get_device_name(device)
        return CPU, f"device: cpu ({name} is here, but gsplat's CUDA code cannot be used: {trouble})"
    raise InputError(
        f"{text} was asked for, but gsplat's CUDA code cannot be used: {trouble}; or compute on the CPU, with cpu"
    )


def see(text: str = "auto") -> tuple[torch.device, str]:
    """Do as `choose`, for what needs torch alone and not the rasteriser."""
    if text == "cpu":
        return CPU, "device: cpu (as asked)"
    if not re.fullmatch(r"auto|cuda(:\d{1,3})?", text):
        raise InputError(f"the device is {text!r} where auto, cpu, cuda or cuda:1 was expected; correct it")
    trouble = _no_cuda()
    if not trouble:
        device = _numbered(text)
        trouble = _no_answer(device)
        if not trouble:
            facts = torch.cuda.get_device_properties(device)
            return device, f"device: {device} ({facts.name}, {facts.total_memory / 2**30:.0f} GB)"
    if text == "auto":
        return CPU, f"device: cpu ({trouble.partition(';')[0]})"
    raise InputError(f"{text} was asked for, but {trouble}, or compute on the CPU, with cpu")


def _no_cuda() -> str:
    """Return why torch has no CUDA device, and what to do; "" where it has one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build with it (see pytorch.org)"
    said = ""
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        if torch.cuda.is_available() and torch.cuda.device_count():
            return ""
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            said = str(error)
    said += " ".join(str(w.message) for w in noticed)
    if "too old" in said:
        needs = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        return f"the NVIDIA driver is too old for {needs}; update the driver, or install a torch of an older CUDA"
    return "torch sees no CUDA device; check that `nvidia-smi` lists one and that CUDA_VISIBLE_DEVICES does not hide it"


def _numbered(text: str) -> torch.device:
    """Return the device with its number; InputError where there are fewer."""
    count = torch.cuda.device_count()
    index = int(text.partition(":")[2]) if ":" in text else torch.cuda.current_device()
    if index >= count:
        there = "there is 1 CUDA device, cuda:0" if count == 1 else f"there are {count}, cuda:0 to cuda:{count - 1}"
        raise InputError(f"{text} was asked for, but {there}; name one of them, or compute on the CPU, with cpu")
    return torch.device("cuda", index)


def _no_answer(device: torch.device) -> str:
    """Return why a device that is there cannot be used, and what to do; "" where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old device is warned of; whether it works is tried
            float(torch.ones(1, device=device) + 1)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
        return f"{device} cannot be used ({reason}); see with `nvidia-smi` what fills or holds it, take another"
    return ""


def rasterizer_for(device: torch.device | str, *, near: float = NEAR) -> Rasterizer:
    """Return the rasteriser of a device; InputError where gsplat's CUDA code cannot be had.

    near: world units; Gaussians nearer to a camera's plane than this are not in its picture.
    On a GPU torch's products of float32 are whole from then on, not TF32's of 10 bits, which some containers allow:
    nearest neighbours, pictures of labels and what a camera may see come from such products.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return CpuRasterizer(near=near)
    from cgc.rasterize.cuda import CudaRasterizer

    torch.set_float32_matmul_precision("highest")

    limit = torch.cuda.get_device_properties(device).total_memory // WEIGHTS_SHARE
    return CudaRasterizer(device, memory_limit=limit, near=near)


def card_of(device: torch.device) -> str:
    """Return what tells the graphics card of a device from the others of its machine; "" where there is none."""
    if device.type != "cuda":
        return ""
    known = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # torch 2.4 does not say it everywhere
    return str(known or f"{device} of {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}")


# --- memory -----------------------------------------------------------------------------------------------


class PageLocked:
    """Copies of tensors in page-locked memory of the host, from where a GPU fetches them while it works.

    torch rounds every piece of such memory up to a power of two, so copies share blocks of FIRST_BLOCK bytes, then of
    twice as many each, up to LARGEST_BLOCK; what is larger than half of that has its own.
    """

    def __init__(self) -> None:
        self._next, self._left = FIRST_BLOCK, torch.empty(0, dtype=torch.uint8)

    def copy(self, x: Tensor) -> Tensor:
        """Return a copy of a tensor of any device; waits until it is there."""
        size = x.numel() * x.element_size()
        if size > LARGEST_BLOCK // 2:
            return _page_locked(size).view(x.dtype).view(x.shape).copy_(x)
        if size > len(self._left):
            while self._next < 2 * size:
                self._next *= 2
            self._left, self._next = _page_locked(self._next), min(2 * self._next, LARGEST_BLOCK)
        part, self._left = self._left[:size], self._left[-(-size // ALIGNED) * ALIGNED :]
        return part.view(x.dtype).view(x.shape).copy_(x)


def _page_locked(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


@dataclass(frozen=True)
class Lever:
    """A setting that memory grows with: what it is called, what it is, and with which power of it memory grows."""

    name: str
    value: float
    power: float = 1.0

    def lowered(self, factor: float) -> str:
        """Say what to lower it to so that memory shrinks by this factor, in two figures."""
        least = self.value * factor ** (1 / self.power)
        step = 10 ** (len(str(int(max(least, 1)))) - 2)
        return f"{self.name} from {self.value:,.0f} to about {max(int(least / step) * step, 1):,.0f}"


def is_full(error: BaseException) -> bool:
    """Say whether an error is a GPU's want of memory, whoever says so: torch, the CUDA runtime or a library of it."""
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(said in text for said in _FULL)


@contextmanager
def out_of_memory(doing: str, levers: Callable[[], Sequence[Lever]] = tuple) -> Iterator[None]:
    """Turn a GPU's running out of memory inside the block into an InputError that says what to lower, and to what.

    doing: what ran out ("training"); levers: asked for then what its memory grows with.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise ran_out(doing, error, levers()) from error


def ran_out(doing: str, error: BaseException, levers: Sequence[Lever] = ()) -> InputError:
    """Return what to say where an error `is_full`.

    How much is too much is estimated from what torch says: it held so much and asked for so much more than it could
    have.
    """
    wanted, there = _sizes(str(error))
    factor = 0.9 * there / wanted if 0 < there < wanted else 0.7
    sizes = f": it needs more than {_gb(wanted)} where {_gb(there)} are to be had" if 0 < there < wanted else ""
    advice = [f"lower {lever.lowered(factor)}" for lever in levers]
    advice += ["end other programs that use the GPU", "compute on the CPU, with --device cpu"]
    return InputError(
        f"{doing} ran out of the GPU's memory{sizes}; {', or '.join(advice)}; what was done before is kept"
    )


_FULL = ("out of memory", "out_of_memory", "cublas_status_alloc_failed", "cusolver_status_alloc_failed")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _sizes(text: str) -> tuple[float, float]:
    """Return the bytes that torch wanted to hold, and those it could have, from what it says; 0 where it does not."""

    def read(pattern: str) -> float:
        found = re.search(pattern.replace("SIZE", r"([\d.]+) (bytes|[KMGT]iB)"), text)
        return float(found[1]) * _UNITS[found[2]] if found else 0.0

    asked, held = read("Tried to allocate SIZE"), read("SIZE is allocated by PyTorch")
    free, reserved = read("of which SIZE is free"), read("SIZE is reserved by PyTorch but unallocated")
    return asked + held, free + held + reserved


def _gb(size: float) -> str:
    return f"{size / 2**30:.3g} GB"
