"""The weights of Segment Anything: where they are, fetching them once, and reading them safely.

They are kept in $CGC_CACHE, or else $TORCH_HOME/hub/checkpoints (where torch.hub keeps files, so that other tools share
them), or else $XDG_CACHE_HOME/cgc, or else ~/.cache/cgc. Without a network, put the file there, or name it.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgc.errors import InputError, reason, some
from cgc.files import no_room, sha256
from cgc.progress import Bar, progress_bar

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20
ATTEMPTS = 5
"""A download is given up after so many failures on end that brought nothing new."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
_DEPTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


@dataclass(frozen=True)
class Weights:
    """One published file: its address, its size in bytes, and what its bytes hash to."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


_FROM = "https://dl.fbaipublicfiles.com/segment_anything/"

OFFICIAL: dict[str, Weights] = {
    "vit_b": Weights(
        url=_FROM + "sam_vit_b_01ec64.pth",
        size=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": Weights(
        url=_FROM + "sam_vit_l_0b3195.pth",
        size=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": Weights(
        url=_FROM + "sam_vit_h_4b8939.pth",
        size=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
"""Segment Anything's weights (Apache 2.0). The hashes are those that micro-sam's and SlicerSegmentWithSAM's registries
hold, among others; the six digits in the names are of the files' MD5, not of these."""


def cache_folder() -> Path:
    """Return the folder that weights are kept in (see the module)."""
    where = os.environ
    if where.get("CGC_CACHE"):
        return Path(where["CGC_CACHE"]).expanduser()
    if where.get("TORCH_HOME"):
        return Path(where["TORCH_HOME"]).expanduser() / "hub" / "checkpoints"
    return Path(where.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cgc"


def fetch(weights: Weights, folder: Path | None = None, *, quiet: bool = False, patience: float = 1.0) -> Path:
    """Return the weights' file in `folder` (the cache), downloading it first where it is not there.

    What is half there is continued; a lost connection is tried again, after `patience` seconds, then twice that, ...
    The file gets its name once its hash is right. InputError where it cannot be had.
    """
    folder = cache_folder() if folder is None else folder
    path, partial = folder / weights.name, folder / f"{weights.name}.partial"
    if path.exists():
        if path.stat().st_size != weights.size:
            raise InputError(
                f"{path} has {path.stat().st_size:,} bytes where {weights.size:,} were expected, so it is broken or "
                "another file; remove it, and it will be downloaded anew"
            )
        return path
    with _disk(path):
        folder.mkdir(parents=True, exist_ok=True)
        _download(weights, partial, quiet, patience)
        if path.exists():  # another process was faster
            return path
        found = sha256(partial)
        if found != weights.sha256:
            partial.unlink()
            raise InputError(
                f"what came from {weights.url} is not what was published (SHA-256 {found[:12]}... where "
                f"{weights.sha256[:12]}... was expected) and is removed; run the same command again, and if that "
                "happens twice, download it elsewhere and give --checkpoint PATH"
            )
        os.replace(partial, path)
    return path


def _download(weights: Weights, partial: Path, quiet: bool, patience: float) -> None:
    """Bring `partial` to its full size."""
    start = _size(partial)
    if start > weights.size:
        partial.unlink()
        start = 0
    free = shutil.disk_usage(partial.parent).free
    if free < weights.size - start:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB are free where {weights.size / 1e9:.1f} GB are needed")
    failures, done, first = 0, start, start
    whole = -(-weights.size // 10**6)
    with progress_bar(f"{weights.name} (MB)", whole, start=start // 10**6, quiet=quiet) as bar:
        while done < weights.size:
            try:
                _continue(weights, partial, done, bar)
                error: Exception = ConnectionError("the connection broke off")
            except urllib.error.HTTPError as refusal:
                if refusal.code == 416:  # the server has no such rest: what is there is no part of its file
                    partial.unlink(missing_ok=True)
                elif refusal.code < 500 and refusal.code not in (408, 429):
                    raise _unreachable(weights, refusal) from refusal
                error = refusal
            except urllib.error.URLError as nowhere:
                if _size(partial) == first:  # no connection at all: waiting would not help
                    raise _unreachable(weights, nowhere) from nowhere
                error = nowhere
            except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as lost:
                error = lost
            now = _size(partial)
            failures = 0 if now > done else failures + 1
            done = now
            if done < weights.size:
                if failures >= ATTEMPTS:
                    raise _unreachable(weights, error) from error
                time.sleep(patience * 2**failures)


def _continue(weights: Weights, partial: Path, start: int, bar: Bar) -> None:
    """Ask for the bytes from `start` on and write what comes; less may come than was asked for."""
    request = urllib.request.Request(weights.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            fits = bool(found) and int(found[1]) == start and found[2] in ("*", str(weights.size))
        else:  # a server that knows no ranges sends all of it
            start = 0
            fits = answer.headers.get("Content-Length", str(weights.size)) == str(weights.size)
        if not fits:
            raise InputError(
                f"{weights.url} answered with another file than the {weights.size:,} bytes that were published (a "
                "login page of the network, perhaps); download it elsewhere and give --checkpoint PATH"
            )
        with open(partial, "r+b" if partial.exists() else "wb") as file:
            file.seek(start)
            if start == 0:
                file.truncate()
            while block := answer.read(BLOCK):
                if start + len(block) > weights.size:
                    raise InputError(f"{weights.url} sent more than the {weights.size:,} bytes that were published")
                file.write(block)
                bar.advance((start + len(block)) // 10**6 - start // 10**6)
                start += len(block)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(weights: Weights, error: Exception) -> InputError:
    why = error.reason if isinstance(error, urllib.error.URLError) and error.reason else error
    return InputError(
        f"{weights.url} could not be downloaded ({why}); try again later (it goes on where it stopped), or download "
        "it elsewhere and give --checkpoint PATH, or use the masks that need no weights: --generator regions"
    )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk into a sentence."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if no_room(error):
            raise InputError(
                f"the disk is full: {path} could not be written ({error.strerror}); free some space and run the same "
                "command again (it goes on where it stopped), or set CGC_CACHE to another folder"
            ) from error
        raise InputError(
            f"{path} could not be written ({error.strerror or error}); make its folder writable, "
            "or set CGC_CACHE to another one"
        ) from error


def read_weights(path: Path | str) -> tuple[str, dict[str, torch.Tensor]]:
    """Read a file of weights: which model they are of (vit_b, vit_l or vit_h), and its tensors.

    Nothing in the file is run. InputError where it is missing, broken, or of another model.
    """
    import pickle

    import torch

    path = Path(path)
    if not path.is_file():
        raise InputError(f"the weights {path} do not exist; give --checkpoint the path of a file like {_names()}")
    try:
        # the modern format can be mapped into memory, so that it is not held twice
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds no weights alone, or is broken; download {_names()} again") from error
    except Exception as error:  # broken bytes may break any step of reading
        raise InputError(f"the weights {path} cannot be read ({reason(error)}); download {_names()} again") from error
    if isinstance(state, dict):  # training scripts wrap it
        state = state.get("model", state.get("state_dict", state))
    if not isinstance(state, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
        raise InputError(f"{path} holds no weights of a model; expected a file like {_names()}")
    return _kind_of(state, path), state


def _kind_of(state: dict[str, Any], path: Path) -> str:
    """Tell the model by the tensors' names and shapes."""
    ours = "cgc masks --generator module:function takes a model of another package"
    if any(name.startswith("mask_decoder.hf_") for name in state):
        raise InputError(f"{path} holds weights of HQ-SAM, which Segment Anything cannot use; {ours}")
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        raise InputError(f"{path} holds weights of MobileSAM, which Segment Anything cannot use; {ours}")
    if any(name.startswith("image_encoder.trunk.") for name in state):
        raise InputError(f"{path} holds weights of SAM 2, which Segment Anything cannot use; {ours}")
    embedding = state.get("image_encoder.patch_embed.proj.weight")
    width = embedding.shape[0] if embedding is not None and embedding.ndim == 4 else 0
    if width not in _DEPTHS or not any(name.startswith("mask_decoder.") for name in state):
        raise InputError(f"{path} holds no weights of Segment Anything; expected a file like {_names()}")
    return _DEPTHS[width]


def _names() -> str:
    return " or ".join(w.name for w in OFFICIAL.values())


def build(path: Path | str) -> tuple[str, Any]:
    """Build Segment Anything with the weights in `path`: which model it is, and the model, on the CPU.

    The weights are not held twice, whatever their size. InputError where they do not fit.
    """
    import torch
    from segment_anything import sam_model_registry

    kind, state = read_weights(path)
    with torch.device("meta"):  # shapes without memory
        model = sam_model_registry[kind]()
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(state)) or sorted(k for k in expected if expected[k].shape != state[k].shape)
    if wrong:
        raise InputError(
            f"{path} does not fit Segment Anything's {kind}: {some(wrong)} missing, unknown or of another shape; "
            f"download {OFFICIAL[kind].name} again"
        )
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    if any(not v.sum().isfinite() for v in model.state_dict().values()):
        raise InputError(f"{path} holds numbers that are not finite; download {OFFICIAL[kind].name} again")
    return kind, model.eval().requires_grad_(False)
