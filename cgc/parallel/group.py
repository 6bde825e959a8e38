"""The group of processes: who they are, how they come together and part, and which of them has died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from cgc.errors import InputError

T = TypeVar("T")

COME = 300.0
"""Seconds in which all processes must have come together."""
WAIT = 7 * 24 * 3600.0
"""Seconds one waits for what another does: training may take days. One that has died is noticed at once."""
SEARCH = 5.0
"""Seconds to find out which process has died."""
PATIENCE = 0.5
"""Seconds that the others give the first process to say what is wrong."""
AGAIN = "run the same command again: it goes on from what is done, also with another number of processes"


class Ended(InputError):
    """Another process has ended."""


class Stopped(KeyboardInterrupt):
    """The launcher has told this process to stop, most likely because another one has ended."""


@dataclass(frozen=True)
class _Group:
    rank: int
    size: int
    store: Any  # where processes leave notes; it outlives them, torchrun has it
    who: tuple[dict[str, Any], ...]


_group: _Group | None = None  # of this process, as torch.distributed's own
_alone = False


def world() -> tuple[int, int]:
    """Return this process's number, from 0, and how many there are, as torchrun's RANK and WORLD_SIZE say."""
    found = [os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")]
    if not all(text.isdecimal() for text in found) or not int(found[0]) < int(found[1]):
        raise InputError(
            f"RANK is {found[0]!r} and WORLD_SIZE {found[1]!r} where a number and a larger one were expected; "
            "start several processes with torchrun, or unset both"
        )
    return int(found[0]), int(found[1])


def here() -> tuple[int, int]:
    """Return this process's number in the group that it works in now, and the group's size: (0, 1) outside of one."""
    return (0, 1) if _group is None or _alone else (_group.rank, _group.size)


def is_first() -> bool:
    """Say whether this process prints and writes."""
    return here()[0] == 0


def is_first_here() -> bool:
    """Say whether no process with a lower number is on this machine."""
    rank = here()[0]
    return rank == 0 or _group is None or all(_group.who[i]["host"] != _group.who[rank]["host"] for i in range(rank))


def count() -> int:
    """Return how many processes have joined, also while the first one works alone."""
    return _group.size if _group else 1


def count_here() -> int:
    """Return how many of them are on this machine: the first one can use their threads while they wait."""
    return sum(each["host"] == _group.who[_group.rank]["host"] for each in _group.who) if _group else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Work as if there were no group: for the first process, while the others wait."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


# --- coming together and parting -----------------------------------------------------------------------------


def join(device: str = "cpu", **facts: str) -> None:
    """Make the processes that torchrun has started a group; does nothing where there is one only.

    `facts` (versions, say) must be the same in all. device: what `--device` asks for; where it is not cpu, all must
    have a GPU or none. InputError where it is otherwise, or where one does not come.
    """
    global _group
    rank, size = world()
    if size == 1 or _group:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from cgc.progress import console

    facts |= {"torch": torch.__version__}
    try:
        store = next(iter(rendezvous("env://", timeout=timedelta(seconds=COME))))[0]
        store = dist.PrefixStore("cgc", store)  # pyright: ignore[reportPrivateImportUsage]
        has_gpu = torch.cuda.is_available()
        own = {"facts": facts, "host": machine(), "pid": os.getpid(), "gpu": has_gpu, "device": device}
        store.set(f"who/{rank}", json.dumps(own))
        for other in range(size):
            _come(store, other, size)
        who = tuple(json.loads(store.get(f"who/{other}")) for other in range(size))
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"process {rank + 1} of {size} found no others ({_line(error)}); start all of them with torchrun, and give "
            "machines one --rdzv-endpoint that each can reach"
        ) from error
    _group = _Group(rank, size, store, who)
    compare([each["facts"] for each in who])
    if any(each["device"] != "cpu" for each in who):
        compare_devices(["cuda" if each["gpu"] and each["device"] != "cpu" else "cpu" for each in who])
    backend = "cpu:gloo,cuda:nccl" if all(each["gpu"] for each in who) else "gloo"  # must be one in all
    wait = timedelta(seconds=WAIT)
    attempt(lambda: dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait))
    console.quiet = rank > 0
    if has_gpu:  # one each
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    signal.signal(signal.SIGTERM, _stop)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Hold the launcher's request to stop back inside the block, where pycolmap's import would take it for its own.

    A process by itself ends at once when it is told to, as before that import, and not with a trace of its stack.
    """
    if _group is None:
        yield
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, _stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Let only the first process print inside the block."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def leave() -> None:
    """End the group once all have come this far."""
    global _group
    if _group is None:
        return
    import torch.distributed as dist

    barrier()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dist.destroy_process_group()
    _group = None


def speaks() -> bool:
    """Say whether this process is the one to say what went wrong: the first that asks. Then it is to `abandon` them.

    What all find wrong the first process is to say, so the others give it time.
    """
    if _group is None:
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank, store, end = _group.rank, _group.store, time.monotonic() + PATIENCE
    try:
        while rank and not store.check(["said"]) and time.monotonic() < end:
            time.sleep(PATIENCE / 20)
        first = store.compare_set("said", "", str(rank)) == str(rank).encode()
        store.set(f"left/{rank}", "failed")
        time.sleep(0 if rank else PATIENCE)  # the store may be of this process: let them see
    except RuntimeError:  # the store has gone with the process that had it
        first = True
    return first


def abandon(code: int) -> None:
    """Leave the group, whatever the others do; where GPUs have worked this ends the process, with this exit code.

    NCCL parts only when all others part too, and these may wait for this one, or be dead.
    """
    if _group is None:
        return
    import torch

    if torch.cuda.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    with contextlib.suppress(RuntimeError, AssertionError):  # with its threads running Python would end in an abort
        torch.distributed.destroy_process_group()


def signed(error: Exception) -> str:
    """Return what an error says, and which process says it where it is not the first one."""
    rank, size = here()
    return str(error) if rank == 0 or isinstance(error, Ended) else f"{error} (process {rank + 1} of {size})"


def _come(store: Any, other: int, size: int) -> None:
    try:
        store.wait([f"who/{other}"], timedelta(seconds=COME))
    except RuntimeError as error:
        raise InputError(
            f"process {other + 1} of {size} has not come within {COME:g} s; see what it says, and start all again"
        ) from error


def machine() -> str:
    """What tells processes whose numbers (pid) are of one kind."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def compare(facts: Sequence[dict[str, str]]) -> None:
    """Raise InputError where the facts of the processes differ."""
    for name in facts[0]:
        values = [each.get(name, "none") for each in facts]
        if len(set(values)) > 1:
            other = next(i for i, value in enumerate(values) if value != values[0])
            raise InputError(
                f"{name} is {values[0]} in process 1 of {len(values)} and {values[other]} in process {other + 1}; all "
                "must be the same: install the same versions on each machine, and give each the same command and files"
            )


def compare_devices(kinds: Sequence[str], reasons: Sequence[str] = ()) -> None:
    """Raise InputError where some processes are to compute on a GPU and some on the CPU: they would wait for ever.

    kinds: cpu or cuda for each process of the group; reasons: why, in a few words, where it is the CPU.
    """
    assert _group is not None
    without = [rank for rank, kind in enumerate(kinds) if kind == "cpu"]
    if not without or len(without) == len(kinds):
        return
    names = " and ".join(str(rank + 1) for rank in without)
    hosts = " and ".join(dict.fromkeys(_group.who[rank]["host"].split()[0] for rank in without))
    one = len(without) == 1
    reason = reasons[without[0]] if reasons else "torch sees no CUDA device, or --device is cpu"
    raise InputError(
        f"process{'' if one else 'es'} {names} of {len(kinds)}, on {hosts}, would compute on the CPU ({reason}) and "
        f"the others on a GPU, where all must do alike; give {'it' if one else 'them'} a GPU, start fewer processes "
        "there, or compute on the CPU in all, with --device cpu"
    )


def barrier() -> None:
    """Wait for all; InputError where one has died."""
    if here()[1] > 1:
        import torch
        import torch.distributed as dist

        attempt(partial(dist.all_reduce, torch.zeros(1)))


# --- who has died --------------------------------------------------------------------------------------------


def _stop(_signal: int, _frame: Any) -> None:
    """Turn the launcher's request to stop into an exception that no handler of bad photos takes for its own."""
    raise Stopped(str(_ended()))


def attempt(work: Callable[[], T]) -> T:
    """Do what needs the others; InputError where one of them has died."""
    try:
        return work()
    except RuntimeError as error:
        raise _ended() from error


def _ended() -> Ended:
    """Find which process has ended; what is to be said of it."""
    assert _group is not None
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gone = _find_gone(_group)
    if not gone:
        return Ended(f"the processes were stopped; {AGAIN}")
    names = " and ".join(str(rank + 1) for rank in gone)
    verb = "processes {} of {} have ended" if len(gone) > 1 else "process {} of {} has ended"
    return Ended(f"{verb.format(names, _group.size)}, killed or for want of memory; {AGAIN}")


def _find_gone(group: _Group) -> list[int]:
    """Return the processes that have ended without a note that they leave; those of other machines after SEARCH s."""
    others, end = [r for r in range(group.size) if r != group.rank], time.monotonic() + SEARCH
    try:
        group.store.set(f"left/{group.rank}", "failed")
        while True:
            silent = [r for r in others if not group.store.check([f"left/{r}"])]
            dead = [r for r in silent if group.who[r]["host"] == machine() and not is_alive(group.who[r]["pid"])]
            if dead or not silent or time.monotonic() > end:
                return dead or silent
            time.sleep(0.1)
    except RuntimeError:  # the store itself is gone: the first process had it, or its machine
        return [0] if group.rank else []


def is_alive(pid: int) -> bool:
    """Say whether a process of this machine is at work; one that its parent has not buried yet is not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
