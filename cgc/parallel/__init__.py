"""Several processes, on one machine or more, that do one command together; torchrun starts them.

    torchrun --nproc-per-node=2 -m cgc lift RUN

Every process runs the same code. `join` makes them a group on torch.distributed; until then, and in an ordinary run,
each helper below is what it is for a group of one, and nothing of torch.distributed is imported. Tensors in memory go
by gloo, those of a GPU by NCCL. The first process alone prints, and writes what all have found.

What they send each other is numbers and JSON, never pickles. Sums are made in one order, so that a result has the same
bits for any number of processes.
"""

from cgc.parallel.group import (
    Ended,
    Stopped,
    abandon,
    alone,
    barrier,
    count,
    count_here,
    here,
    hushed,
    importing,
    is_alive,
    is_first,
    join,
    leave,
    signed,
    speaks,
    world,
)
from cgc.parallel.messages import (
    add_in_turn,
    add_up,
    agree,
    broadcast,
    by_first,
    check_alike,
    check_apart,
    check_same,
    collect,
    first_before_others,
    gather,
    over_rows,
    receive,
    release,
    send,
    serve,
    shared,
    swap,
)

__all__ = [
    "Ended", "Stopped", "abandon", "add_in_turn", "add_up", "agree", "alone", "barrier", "broadcast", "by_first",
    "check_alike", "check_apart", "check_same", "collect", "count", "count_here", "first_before_others", "gather",
    "here", "hushed", "importing", "is_alive", "is_first", "join", "leave", "over_rows", "receive", "release", "send",
    "serve", "shared", "signed", "speaks", "swap", "world",
]  # fmt: skip
