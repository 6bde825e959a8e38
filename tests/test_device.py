"""Choosing where to compute: what is found, what is refused and in which words, and memory that runs out."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cgc.device import Lever, PageLocked, card_of, choose, is_full, out_of_memory, rasterizer_for, see
from cgc.errors import InputError
from cgc.rasterize import gsplat_code
from cgc.rasterize.base import GroupRasterizer, VoteRasterizer
from cgc.rasterize.cpu import CpuRasterizer


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were two cards that work, and gsplat's code."""
    facts = SimpleNamespace(name="NVIDIA H100", total_memory=79 * 2**30 + 5)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "is_available": True, "device_count": 2, "current_device": 0, "get_device_properties": facts,
        "get_device_name": "NVIDIA H100",
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr("cgc.device._no_answer", lambda device: "")
    monkeypatch.setattr(gsplat_code, "why_not", lambda: "")
    monkeypatch.setattr(gsplat_code, "is_built", lambda: True)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this torch had CUDA but saw no card."""

    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)


def test_the_cpu_can_always_be_had(no_card: None) -> None:
    """As asked, or as all there is; its rasteriser needs no gsplat."""
    assert choose("cpu") == (torch.device("cpu"), "device: cpu (as asked)")
    assert choose() == (torch.device("cpu"), "device: cpu (torch sees no CUDA device)")
    assert isinstance(rasterizer_for("cpu"), CpuRasterizer)


def test_products_on_a_card_are_whole(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a container allows TF32."""
    monkeypatch.setattr("cgc.rasterize.cuda.CudaRasterizer", lambda *_, **options: options)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert rasterizer_for("cuda:0", near=0.5)["near"] == 0.5  # pyright: ignore[reportIndexIssue]
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_cards_are_taken_by_number(cards: None) -> None:
    """auto and cuda are the current one; a line names it."""
    line = "device: cuda:0 (NVIDIA H100, 79 GB)"
    assert choose() == choose("cuda") == choose("cuda:0") == (torch.device("cuda", 0), line)
    assert choose("cuda:1") == (torch.device("cuda", 1), line.replace(":0", ":1"))
    with pytest.raises(InputError, match=r"cuda:2 was asked for, but there are 2, cuda:0 to cuda:1; name one"):
        choose("cuda:2")


def test_one_card_alone(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="there is 1 CUDA device, cuda:0; name"):
        see("cuda:1")


@pytest.mark.parametrize("text", ["tpu", "cuda:", "cuda:x", "cuda:-1", "", "CPU", "cuda:1234"])
def test_other_words_are_refused(text: str) -> None:
    """With what was expected."""
    with pytest.raises(InputError, match="where auto, cpu, cuda or cuda:1 was expected"):
        choose(text)


def test_no_card_is_said(no_card: None) -> None:
    """With where to look, and the way out."""
    with pytest.raises(InputError, match=r"cuda was asked for, but torch sees no CUDA device; check.*nvidia-smi.*cpu"):
        choose("cuda")


def test_an_old_driver_is_said(no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether torch raises or warns of it; the warning itself stays inside."""
    old = "The NVIDIA driver on your system is too old (found version 11040)."

    def init() -> None:
        raise RuntimeError(old)

    def warn() -> bool:
        warnings.warn(f"CUDA initialization: {old}", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "init", init)
    assert "driver is too old for torch" in choose()[1]
    with pytest.raises(InputError, match=r"driver is too old for torch .* \(CUDA 13.0\); update the driver"):
        choose("cuda")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", warn)
    assert "driver is too old for torch" in choose()[1]


def test_a_torch_without_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another build that is needed."""
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in choose()[1]
    with pytest.raises(InputError, match="is built without CUDA; install a build with it"):
        choose("cuda:1")


def test_a_card_that_does_not_answer_is_said(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or a foreign one: its own first line is quoted, and auto goes on without it."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def ones(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device.\nMore words")

    monkeypatch.setattr("cgc.device.torch.ones", ones)
    assert "cuda:0 cannot be used (CUDA error: no kernel image is available" in choose()[1]
    with pytest.raises(InputError, match=r"no kernel image is available for execution on the device\); see"):
        choose("cuda")


def test_gsplat_decides_over_a_card(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its code, auto takes the CPU and says so; cuda is refused with the reason. Building is announced."""
    monkeypatch.setattr(gsplat_code, "why_not", lambda: "there is no CUDA compiler to build it with: install it")
    monkeypatch.setattr(gsplat_code, "is_built", lambda: False)
    said: list[str] = []
    device, line = choose("auto", said.append)
    assert device.type == "cpu" and "NVIDIA H100 is here, but gsplat's CUDA code cannot be used: there is no" in line
    assert said == ["gsplat's CUDA code is built now, once for this torch; that takes some minutes"]
    with pytest.raises(InputError, match="cuda was asked for, but gsplat's CUDA code cannot be used: there is no CUDA"):
        choose("cuda")
    assert see("cuda")[0] == torch.device("cuda", 0)  # what needs torch alone


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("The detected CUDA version (12.4) mismatches the version that was used to compile"),
            "nvcc is of CUDA 12.4: install the CUDA toolkit 13",
        ),
        (OSError("CUDA_HOME environment variable is not set."), "and set CUDA_HOME to its folder"),
        (RuntimeError("x\nfatal error: cuda_runtime.h: No such file or directory"), "set CUDA_HOME"),
        (RuntimeError("Ninja is required to load C++ extensions"), "pip install ninja"),
        (ImportError("gsplat_cuda.so: undefined symbol: _ZN2at"), "its built copy does not load .*delete the folder"),
        (
            RuntimeError("Error building extension 'gsplat_cuda': [1/2] nvcc\nx.cu(3): error: expected a ';'\nninja"),
            r"building it failed \(x.cu\(3\): error: expected a ';'\)",
        ),
    ],
)
def test_errors_of_building_become_a_clause(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, and what to do."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gsplat_code.shutil, "which", lambda name: f"/usr/bin/{name}")
    clause = gsplat_code.explain(error)
    assert re.search(said, clause), clause
    assert "\n" not in clause


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ninja says of it."""
    monkeypatch.setattr(gsplat_code.shutil, "which", lambda name: None)
    assert "there is no C++ compiler" in gsplat_code.explain(RuntimeError("ninja: build stopped"))


def test_loading_is_tried_once_and_quiet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """gsplat prints, warns and gives None where there is no toolkit: one sentence is what is left of it."""
    tries: list[str] = []

    def imported(name: str) -> object:
        tries.append(name)
        print("[yellow]gsplat: No CUDA toolkit found. gsplat will be disabled.[/yellow]")
        warnings.warn("TORCH_CUDA_ARCH_LIST is not set", stacklevel=1)
        return SimpleNamespace(_C=None)

    monkeypatch.setattr(gsplat_code, "import_module", imported)
    monkeypatch.setattr(gsplat_code, "find_toolkit", lambda: None)
    gsplat_code._attempt.cache_clear()
    for _ in range(2):
        with pytest.raises(InputError, match="gsplat's CUDA code cannot be used: there is no CUDA compiler"):
            gsplat_code.load_gsplat()
    gsplat_code._attempt.cache_clear()
    assert tries.count("gsplat.cuda._backend") == 1 and capfd.readouterr() == ("", "")


def test_a_built_copy_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch's folder of extensions; without gsplat, nothing is built."""
    extension = SimpleNamespace(_get_build_directory=lambda name, verbose: str(tmp_path))
    monkeypatch.delitem(sys.modules, "gsplat.cuda._backend", raising=False)
    monkeypatch.setattr(gsplat_code, "import_module", lambda name: extension)
    gsplat_code._attempt.cache_clear()
    assert not gsplat_code.is_built()
    (tmp_path / "gsplat_cuda.so").touch()
    assert gsplat_code.is_built()

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'gsplat'")

    monkeypatch.setattr(gsplat_code, "find_spec", missing)
    assert not gsplat_code.is_built()


def test_a_missing_gsplat_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to get it."""

    def imported(name: str) -> object:
        raise ModuleNotFoundError("No module named 'gsplat'", name="gsplat")

    monkeypatch.setattr(gsplat_code, "find_toolkit", lambda: None)
    monkeypatch.setattr(gsplat_code, "import_module", imported)
    gsplat_code._attempt.cache_clear()
    assert gsplat_code.why_not() == "the package gsplat is missing: pip install 'gsplat>=1.5'"
    gsplat_code._attempt.cache_clear()


def test_an_nvcc_that_is_a_script_does_not_mislead(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes the folder above nvcc's for the toolkit; where a link leads elsewhere, CUDA_HOME is set."""
    toolkit, script = tmp_path / "cuda-13", tmp_path / "local" / "bin" / "nvcc"
    for path in (toolkit / "bin" / "nvcc", toolkit / "include" / "cuda_runtime.h"):
        path.parent.mkdir(parents=True)
        path.touch()
    script.parent.mkdir(parents=True)
    script.symlink_to(toolkit / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(gsplat_code.shutil, "which", lambda name: str(toolkit / "bin" / "nvcc"))
    assert gsplat_code.find_toolkit() is None  # torch finds it by itself
    monkeypatch.setattr(gsplat_code.shutil, "which", lambda name: str(script))
    assert gsplat_code.find_toolkit() == toolkit


def test_a_toolkit_of_pip_is_arranged_as_compilers_expect(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's lies in nvidia/cu13 of site-packages; its libraries have versions in their names, which linkers skip."""
    packages = tmp_path / "site" / "nvidia" / "cu13"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "nvvm/bin/cicc", "lib/libcudart.so.13", "lib/libnvrtc.so.13"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(name)
    home = tmp_path / "extensions" / "cuda_13"
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(gsplat_code, "Path", lambda *p: tmp_path / "none" if p == ("/usr/local/cuda",) else Path(*p))
    monkeypatch.setattr(gsplat_code.shutil, "which", lambda name: None)
    monkeypatch.setattr(gsplat_code.torch.version, "cuda", "13.0")
    monkeypatch.setattr(gsplat_code.sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(gsplat_code, "_build_folder", lambda: home.with_name("gsplat_cuda"))
    for _ in range(2):  # the second time it is there
        assert gsplat_code.find_toolkit() == home
    assert (home / "bin" / "nvcc").read_text() == "bin/nvcc" and (home / "nvvm" / "bin" / "cicc").exists()
    assert (home / "lib64" / "libcudart.so").read_text() == "lib/libcudart.so.13"
    (packages / "bin" / "nvcc").unlink()
    assert gsplat_code.find_toolkit() is None


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1.00 GiB is "
    "free. Including non-PyTorch memory, this process has 22.00 GiB memory in use. Of the allocated memory 21.00 GiB "
    "is allocated by PyTorch, and 512.00 MiB is reserved by PyTorch but unallocated."
)


def test_memory_that_runs_out_says_what_to_lower() -> None:
    """23 GB were wanted where 22.5 could be had; a tenth is left for what moves."""
    levers = [Lever("--train.max-gaussians", 2_000_000), Lever("--max-side", 1600, 2)]
    with pytest.raises(InputError) as caught, out_of_memory("training", lambda: levers):
        raise torch.cuda.OutOfMemoryError(FULL)
    said = str(caught.value)
    assert "training ran out of the GPU's memory: it needs more than 23 GB where 22.5 GB are to be had" in said
    assert "lower --train.max-gaussians from 2,000,000 to about 1,700,000" in said
    assert "lower --max-side from 1,600 to about 1,500" in said and "--device cpu; what was done before is kept" in said


def test_page_locked_copies_share_blocks_of_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def allocate(size: int) -> torch.Tensor:
        made.append(size)
        return torch.empty(size, dtype=torch.uint8)

    monkeypatch.setattr("cgc.device._page_locked", allocate)
    monkeypatch.setattr("cgc.device.FIRST_BLOCK", 1 << 12)
    monkeypatch.setattr("cgc.device.LARGEST_BLOCK", 1 << 14)
    given = [
        torch.randint(100, (n,)).to(kind) for n in (700, 1, 0, 3000, 20, 9000) for kind in (torch.uint8, torch.float32)
    ]
    given += [torch.tensor([[True, False]]), torch.tensor(7)]
    locked = PageLocked()
    copies = [locked.copy(x) for x in given]
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(given, copies))
    assert made == [1 << 12, 1 << 13, 12000, 9000, 36000]  # the last three are more than half of the largest block


def test_memory_of_another_wording(capsys: pytest.CaptureFixture[str]) -> None:
    """Without numbers a guess; other errors pass as they are."""
    said = "ran out of the GPU's memory; lower --x from 100 to about 70, or end"
    with pytest.raises(InputError, match=said), out_of_memory("it", lambda: [Lever("--x", 100)]):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(KeyError), out_of_memory("it"):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.cuda.OutOfMemoryError(FULL), True),
        (RuntimeError(FULL), True),  # what an extension throws comes as it pleases pybind
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), True),
        (RuntimeError("std::bad_alloc: out_of_memory: RMM failure"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("Expected all tensors to be on the same device"), False),
    ],
)
def test_want_of_memory_is_known_by_its_words(error: RuntimeError, full: bool) -> None:
    assert is_full(error) == full
    with pytest.raises(InputError if full else RuntimeError), out_of_memory("it"):
        raise error


def test_a_card_is_told_by_its_number_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """uuid where torch knows it; a device without a card has none."""
    facts = [SimpleNamespace(uuid="GPU-1"), SimpleNamespace()]
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: facts.pop(0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    card = torch.device("cuda", 0)
    assert [card_of(card), card_of(card), card_of(torch.device("cpu"))] == ["GPU-1", "cuda:0 of 3", ""]


def test_protocols_of_the_backends(backend: str, rasterizer: object) -> None:
    """Who sums groups and votes as it goes."""
    assert isinstance(rasterizer, GroupRasterizer)
    assert isinstance(rasterizer, VoteRasterizer) == (backend != "cpu")


def test_help_loads_no_torch() -> None:
    """`cgc --help` stays as light as it was: the device is a word to it."""
    code = "import sys; import cgc.cli; assert not {'torch', 'gsplat'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)
