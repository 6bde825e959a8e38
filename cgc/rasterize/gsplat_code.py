"""Load gsplat's CUDA code: the only place that does, when first asked, quietly, and with a reason where it cannot.

gsplat comes as source. Where no built copy is found its import builds one, which takes minutes and is kept in torch's
extension folder (TORCH_EXTENSIONS_DIR, or ~/.cache/torch_extensions).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import sys
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from cgc.errors import InputError

BUILT_FOR = "1.5"
"""The gsplat whose functions are called."""
_HOME = "gsplat.cuda._backend"
"""The module that loads or builds them when it is imported."""


def load_gsplat() -> ModuleType:
    """Return gsplat's module of CUDA functions; InputError with the reason where they cannot be had.

    The reason is kept: a build that failed is not tried again by the same process.
    """
    found = _attempt()
    if isinstance(found, str):
        raise InputError(f"gsplat's CUDA code cannot be used: {found}; or work on the CPU")
    return found


def why_not() -> str:
    """Return why gsplat's CUDA code cannot be used, and what to do; "" where it can. Builds it where need be."""
    found = _attempt()
    return found if isinstance(found, str) else ""


def is_built() -> bool:
    """Say whether a built copy is there, so that loading takes seconds and not minutes."""
    if _HOME in sys.modules or _attempt.cache_info().currsize:
        return True
    with contextlib.suppress(Exception):  # no gsplat; a private function of torch: then it is as if nothing were built
        if find_spec("gsplat.csrc"):
            return True
        folder = _build_folder()
        return any((folder / f"gsplat_cuda.{suffix}").exists() for suffix in ("so", "lib", "pyd"))
    return False


@cache
def _attempt() -> ModuleType | str:
    """Return the module, or why there is none."""
    with contextlib.ExitStack() as quietly:
        quietly.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quietly.enter_context(contextlib.redirect_stderr(io.StringIO()))
        quietly.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        if _HOME not in sys.modules and (home := find_toolkit()):
            os.environ["CUDA_HOME"] = str(home)
            vars(import_module("torch.utils.cpp_extension"))["CUDA_HOME"] = str(home)
        try:
            code = import_module(_HOME)._C
            functions = import_module("gsplat.cuda._wrapper")
        except ModuleNotFoundError as error:
            return f"the package {error.name} is missing: pip install 'gsplat>={BUILT_FOR}'"
        except Exception as error:  # whatever a compiler, a loader or a changed torch may raise
            return explain(error)
    if code is None:
        return f"there is no CUDA compiler to build it with: {toolkit()}"
    return functions


def find_toolkit() -> Path | None:
    """Return the CUDA toolkit that torch would not find by itself; None where it would, or there is none.

    One whose nvcc on the PATH is a script or a link, or else one that pip has installed (the extra `nvcc`).
    """
    if os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return None
    nvcc = shutil.which("nvcc")
    guesses = [Path(nvcc).parents[1], Path(nvcc).resolve().parents[1]] if nvcc else []
    for folder in (*guesses, Path("/usr/local/cuda")):
        if (folder / "bin" / "nvcc").exists() and (folder / "include" / "cuda_runtime.h").exists():
            return None if folder == next(iter(guesses), None) else folder
    major = (torch.version.cuda or "").partition(".")[0]
    for packages in map(Path, sys.path):
        if (packages / "nvidia" / f"cu{major}" / "bin" / "nvcc").exists():
            return arrange(packages / "nvidia" / f"cu{major}", _build_folder().parent / f"cuda_{major}")
    return None


def arrange(packages: Path, home: Path) -> Path:
    """Make the folder that compilers expect a toolkit to be of the one in which pip puts it: links, nothing else.

    pip's libraries lie in lib and have their version in their name; linkers look in lib64, for names without one.
    """
    home.mkdir(parents=True, exist_ok=True)
    links = {home / name: packages / name for name in ("bin", "include", "nvvm")}
    (home / "lib64").mkdir(exist_ok=True)
    for library in sorted((packages / "lib").glob("lib*.so*")):
        links[home / "lib64" / library.name] = links[home / "lib64" / f"{library.name.partition('.so')[0]}.so"] = (
            library
        )
    for link, target in links.items():
        if not link.exists():
            link.unlink(missing_ok=True)  # it may lead to what is no longer there
            link.symlink_to(target)
    return home


def _build_folder() -> Path:
    """The folder in which torch keeps what it has built of gsplat."""
    return Path(import_module("torch.utils.cpp_extension")._get_build_directory("gsplat_cuda", False))


def toolkit() -> str:
    """Say what has to be installed to build extensions of this torch."""
    version = torch.version.cuda
    if version is None:
        return "install a torch with CUDA, the CUDA toolkit of its version and a C++ compiler"
    major = version.partition(".")[0]
    return (
        f"install the CUDA toolkit {major} (nvcc; torch {torch.__version__} has CUDA {version}), of the system or with "
        "pip install 'contrastive-gaussian-clustering[nvcc]', and a C++ compiler"
    )


def explain(error: Exception) -> str:
    """Say in a clause what an error of building or loading the code means, and what to do."""
    text = str(error)
    if "mismatches the version" in text:
        found = re.search(r"detected CUDA version \(([\d.]+)\)", text)
        has = f"nvcc is of CUDA {found[1]}" if found else "nvcc is of another CUDA than torch"
        return f"{has}: {toolkit()}"
    if "CUDA_HOME" in text or "cuda_runtime.h: No such file" in text:
        return f"the CUDA toolkit is not found: {toolkit()}, and set CUDA_HOME to its folder"
    if "inja is required" in text:
        return "ninja is missing: pip install ninja"
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return f"there is no C++ compiler to build it with: {toolkit()}"
    if isinstance(error, ImportError):
        return (
            f"its built copy does not load ({_line(text)}): delete the folder gsplat_cuda in torch's extension folder "
            "(~/.cache/torch_extensions) and try again"
        )
    return f"building it failed ({_line(text)}): {toolkit()}, and see it fail with VERBOSE=1 python -c 'import {_HOME}'"


def _line(text: str) -> str:
    """Return the line of a compiler's output that says most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\berror\b[:\s]", line, re.IGNORECASE)]
    return ([*wrong[1:2], *wrong, *lines] or ["no reason given"])[0][:200]
