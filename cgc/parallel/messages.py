"""What processes tell each other, and how they share work.

Numbers and JSON, never pickles. Sums are made in one order, so that a result has the same bits for any number of
processes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cgc.errors import InputError
from cgc.parallel.group import alone, attempt, barrier, compare, compare_devices, here, is_first, is_first_here, machine

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Arrays = list[np.ndarray]

T = TypeVar("T")
Item = TypeVar("Item")


# --- the first process and the others ------------------------------------------------------------------------


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Let the others into the block when the first process has come out: what it writes there, they find.

    Then comes the first one of each further machine, which may have a disk of its own, and the rest at last.
    """
    turn = 0 if is_first() else 1 if is_first_here() else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
        barrier()


def by_first(work: Callable[[], T]) -> T:
    """Return what the first process finds, a JSON value, in all; the others wait."""
    if here()[1] == 1:
        return work()
    value = None
    if is_first():
        with alone():
            value = work()
    return agree(value)


def check_same(**facts: str) -> None:
    """Raise InputError in every process where these facts are not the same in all of them."""
    if here()[1] > 1:
        compare(collect(facts))


def check_alike(kind: str, reason: str) -> None:
    """Raise InputError in every process where some of them compute on the CPU and others on a GPU.

    kind: cpu or cuda; reason: why this process has it.
    """
    if here()[1] > 1:
        kinds, reasons = zip(*collect([kind, reason]))
        compare_devices(kinds, reasons)


def check_apart(card: str) -> None:
    """Raise InputError in every process where two of them work on one graphics card; "" for none.

    card tells it from the others of its machine. NCCL, which carries what is in a card's memory, wants one a process.
    """
    size = here()[1]
    if size == 1:
        return
    first: dict[tuple[str, str], int] = {}
    for rank, (host, own) in enumerate(collect([machine(), card])):
        other = first.setdefault((host, own), rank)
        if own and other != rank:
            raise InputError(
                f"processes {other + 1} and {rank + 1} of {size} are on one graphics card where one each was expected; "
                "start as many as there are cards, name none of them (--device cuda), or compute on the CPU, with "
                "--device cpu"
            )


# --- what they tell each other -------------------------------------------------------------------------------


def agree(value: Any) -> Any:
    """Return the first process's JSON value in all."""
    return value if here()[1] == 1 else _told(value, 0)


def collect(value: Any) -> list[Any]:
    """Return the JSON values of all processes, in their order."""
    size = here()[1]
    return [value] if size == 1 else [_told(value, source) for source in range(size)]


def _told(value: Any, source: int) -> Any:
    """Return the JSON value of process `source` in all."""
    import torch

    data = bytearray(json.dumps(value if source == here()[0] else None).encode())
    length = torch.tensor([len(data)])
    broadcast((length, source))
    if source != here()[0]:
        data = bytearray(int(length))
    broadcast((torch.frombuffer(data, dtype=torch.uint8), source))
    return json.loads(data)


def broadcast(*sent: tuple[Tensor, int]) -> None:
    """Overwrite tensors, each of one size in all processes, with those of the process beside them; all at once."""
    if here()[1] > 1:
        import torch.distributed as dist

        def start_and_wait() -> None:
            for work in [dist.broadcast(tensor, source, async_op=True) for tensor, source in sent]:
                assert work is not None
                work.wait()

        attempt(start_and_wait)


def add_up(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over the processes, and return it. The order of the sum is gloo's."""
    if here()[1] > 1:
        import torch.distributed as dist

        attempt(partial(dist.all_reduce, tensor))
    return tensor


def add_in_turn(tensor: Tensor, add: Callable[[Tensor], None]) -> Tensor:
    """Let one process after the other `add` to a tensor, and give the sum to all: its order is that of one process."""
    rank, size = here()
    if size == 1:
        add(tensor)
        return tensor
    import torch.distributed as dist

    if rank:
        attempt(partial(dist.recv, tensor, rank - 1))
    add(tensor)
    if rank + 1 < size:
        attempt(partial(dist.send, tensor, rank + 1))
    broadcast((tensor, size - 1))
    return tensor


def swap(rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Give rows [n, ...] away, counts[r] of them to process r in their order; return those that came, by their process.

    With them, how many came from each. All give rows of one shape and kind. How many is told by gloo, which notices at
    once where a process has died; NCCL may wait for it.
    """
    if here()[1] == 1:
        return rows, list(counts)
    import torch
    import torch.distributed as dist

    given = torch.tensor(counts)
    came = torch.empty_like(given)
    attempt(partial(dist.all_to_all_single, came, given))
    many = came.tolist()
    made = rows.new_empty(sum(many), *rows.shape[1:])
    attempt(partial(dist.all_to_all_single, made, rows.contiguous(), many, list(counts)))
    return made, many


def send(arrays: Sequence[np.ndarray], target: int) -> None:
    """Send arrays to one process, which must `receive` them."""
    import numpy as np
    import torch
    import torch.distributed as dist

    head = json.dumps([[a.dtype.str, list(a.shape)] for a in arrays]).encode()
    parts = [np.array([len(head)]), np.frombuffer(head, np.uint8).copy(), *arrays]
    for part in parts:
        flat = np.ascontiguousarray(part).reshape(-1)
        flat = flat if flat.flags.writeable else flat.copy()
        attempt(partial(dist.send, torch.from_numpy(flat.view(np.uint8)), target))


def receive(source: int) -> Arrays:
    """Return the arrays that a process has sent here."""
    length = int(_receive(source, "<i8", (1,))[0])
    head = json.loads(_receive(source, "|u1", (length,)).tobytes())
    return [_receive(source, kind, shape) for kind, shape in head]


def _receive(source: int, kind: str, shape: Sequence[int]) -> np.ndarray:
    import numpy as np
    import torch
    import torch.distributed as dist

    array = np.empty(shape, kind)
    attempt(partial(dist.recv, torch.from_numpy(array.reshape(-1).view(np.uint8)), source))
    return array


def gather(arrays: Sequence[np.ndarray]) -> list[Arrays]:
    """Return the arrays of all processes, in their order, in the first one; in the others nothing."""
    rank, size = here()
    if rank:
        send(arrays, 0)
        return []
    return [list(arrays), *(receive(other) for other in range(1, size))]


# --- sharing work --------------------------------------------------------------------------------------------


def shared(items: Sequence[Item], work: Callable[[Item], Arrays]) -> Iterator[Arrays]:
    """Yield work(item) for every item in order, each done by one process in turn: all in the first one, else nothing.

    So what the loop's body does with them (writing, say) is done by the first process only.
    """
    rank, size = here()
    for begin in range(0, len(items), size):
        if begin + rank >= len(items):
            return
        own = work(items[begin + rank])
        if rank:
            send(own, 0)
            continue
        yield own
        for other in range(1, min(size, len(items) - begin)):
            yield receive(other)


def over_rows(work: Callable[..., Sequence[np.ndarray]], known: Arrays, rows: Arrays) -> Arrays:
    """Return work(*known, *rows), arrays by row, where each process does a share of the rows.

    The first process calls this any number of times while the others `serve` the same work; then it `release`s them.
    """
    size, n = here()[1], len(rows[0])
    if size == 1:
        return list(work(*known, *rows))
    import numpy as np

    ends = [n * k // size for k in range(size + 1)]
    for other in range(1, size):
        send([*known, *(array[ends[other] : ends[other + 1]] for array in rows)], other)
    parts = [list(work(*known, *(array[: ends[1]] for array in rows)))]
    parts += [receive(other) for other in range(1, size)]
    return [np.concatenate(some) for some in zip(*parts)]


def serve(work: Callable[..., Sequence[np.ndarray]]) -> None:
    """Do a share of the rows for the first process, until it needs no more."""
    while arrays := receive(0):
        send(work(*arrays), 0)


def release() -> None:
    """Let the processes go on that `serve`."""
    rank, size = here()
    for other in range(1, size if rank == 0 else 1):
        send([], other)
