"""Compile gsplat's own kernels for the CPU, so that the CUDA backend can be tested on them where there is no GPU.

    python tools/build_gsplat_on_cpu.py build/gsplat_on_cpu
    export CGC_GSPLAT_KERNELS=build/gsplat_on_cpu/gsplat_cuda.so
    pytest tests/test_rasterize.py tests/test_cuda.py tests/test_device*.py

It needs a C++ compiler, and takes a minute or two. The sources are those of the installed gsplat: each launch of a
kernel is rewritten as a call, and cuda_on_cpu/emulation.h stands for CUDA. Tests which otherwise run on a stand-in in
plain torch (tests/gsplat_stand_in.py) then run on the kernels, pixel by pixel as a card would, but for its fast
approximations.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import tyro
from torch.utils.cpp_extension import include_paths

FILES = (
    "ProjectionEWA3DGSFused.cu", "IntersectTile.cu", "RasterizeToPixels3DGSFwd.cu", "RasterizeToPixels3DGSBwd.cu",
    "RasterizeToIndices3DGS.cu", "Projection.cpp", "Intersect.cpp", "Rasterization.cpp",
)  # fmt: skip
FUNCTIONS = (
    "projection_ewa_3dgs_fused_fwd", "projection_ewa_3dgs_fused_bwd", "intersect_tile", "intersect_offset",
    "rasterize_to_pixels_3dgs_fwd", "rasterize_to_pixels_3dgs_bwd", "rasterize_to_indices_3dgs",
)  # fmt: skip
STANDS_FOR = (
    "cooperative_groups.h", "cooperative_groups/reduce.h", "cub/cub.cuh", "c10/cuda/CUDAStream.h",
    "c10/cuda/CUDAGuard.h", "c10/cuda/CUDACachingAllocator.h", "ATen/cuda/Atomic.cuh",
)  # fmt: skip
MODULE = """#include <torch/extension.h>
#include "Ops.h"
#include "Cameras.h"
PYBIND11_MODULE(gsplat_cuda, m) {
    py::enum_<gsplat::CameraModelType>(m, "CameraModelType")
        .value("PINHOLE", gsplat::CameraModelType::PINHOLE)
        .export_values();
%s}
"""
LAUNCH = re.compile(r"(\w+(?:\s*<[\w\s,]*>)?)\s*<<<(.*?)>>>\s*\(", re.DOTALL)
SHARED = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")


@dataclass
class Arguments:
    """What to build where."""

    folder: tyro.conf.Positional[Path]
    """Where sources, objects and gsplat_cuda.so are left."""
    jobs: int = 2
    """Files that are compiled at once."""


def rewrite(source: str) -> str:
    """Return a file with launches as calls, shared memory as a pointer, and conversions as a card makes them."""
    source = SHARED.sub(r"\1 *\2 = reinterpret_cast<\1 *>(emulation::shared);", source)
    source = source.replace("x.is_cuda()", "true")
    source = re.sub(r"\(uint32_t\)(floor|ceil)\(", r"unsigned_\1(", source)
    source = re.sub(r"\(int32_t\)(radius_[xy])", r"saturated<int32_t>(\1)", source)
    made, begin = [], 0
    for found in LAUNCH.finditer(source):
        grid, threads, shared = (part.strip() for part in found[2].split(",")[:3])
        call = f"emulation::launch({grid}, {threads}, {shared}, [](auto... given) {{ {found[1]}(given...); }}, "
        made += [source[begin : found.start()], call]
        begin = found.end()
    return "".join([*made, source[begin:]])


def main(arguments: Arguments) -> None:
    """Write the sources, compile them and link."""
    spec = find_spec("gsplat")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gsplat is not installed: pip install gsplat")
    missing = [program for program in ("g++", "objcopy") if not shutil.which(program)]
    if missing:
        raise SystemExit(f"a C++ compiler is needed: install {' and '.join(missing)}")
    gsplat, folder = Path(spec.submodule_search_locations[0]) / "cuda", arguments.folder.resolve()
    for name in STANDS_FOR:
        path = folder / "stands_for" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('#include "emulation.h"\n')
    sources = [*gsplat.glob("include/*"), *gsplat.glob("csrc/*.h"), *gsplat.glob("csrc/*.cuh")]
    for source in [*sources, *(gsplat / "csrc" / name for name in FILES)]:
        (folder / source.name).write_text(rewrite(source.read_text()))
    bound = "".join(f'    m.def("{name}", &gsplat::{name});\n' for name in FUNCTIONS)
    (folder / "module.cpp").write_text(MODULE % bound)
    here = Path(__file__).resolve().parent / "cuda_on_cpu"
    folders = [folder / "stands_for", folder, here, gsplat / "csrc" / "third_party" / "glm"]
    folders += [Path(path) for path in (*include_paths(), sysconfig.get_paths()["include"])]
    flags = ["-O2", "-std=c++20", "-fPIC", "-fpermissive", "-w", "-U_FORTIFY_SOURCE"]
    flags += ["-ffast-math", "-fno-finite-math-only", "-ffp-contract=fast"]  # as nvcc rounds with fast math
    flags += ["-mfma"] if platform.machine() == "x86_64" else []
    flags += ["-fvisibility=hidden", "-include", str(here / "emulation.h")]
    flags += [*(f"-I{path}" for path in folders), f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]

    def compile_one(name: str) -> str:
        subprocess.run(["g++", *flags, "-x", "c++", "-c", name, "-o", f"{name}.o"], cwd=folder, check=True)
        print(name, flush=True)
        return f"{name}.o"

    with ThreadPoolExecutor(arguments.jobs) as pool:
        objects = list(pool.map(compile_one, [*FILES, "module.cpp"]))
    libraries = Path(torch.__file__).parent / "lib"
    for name in objects:  # what launches kernels that are not built is never called
        subprocess.run(["objcopy", "--wildcard", "--weaken-symbol=*launch_*", name], cwd=folder, check=True)
    link = ["g++", "-shared", *objects, "-o", "gsplat_cuda.so", f"-L{libraries}"]
    link += [f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    subprocess.run(link, cwd=folder, check=True)
    print(folder / "gsplat_cuda.so")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
