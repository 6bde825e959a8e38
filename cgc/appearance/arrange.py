"""Making, moving and dropping Gaussians in place, with what Adam remembers of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Params = dict[str, torch.nn.Parameter]
Optimizers = dict[str, torch.optim.Optimizer]


def arrange(
    params: Params, optimizers: Optimizers, source: Tensor, fresh: Tensor, changed: Mapping[str, Tensor]
) -> None:
    """Make row i of every parameter what row source[i] was, in place; those of `fresh` [n'] begin without momentum.

    `changed` has new values of some parameters, [n', ...]. All is made before anything is replaced, so that where
    memory does not suffice everything stays as it was.
    """
    made = []
    for name, old in params.items():
        value = changed[name] if name in changed else old.detach()[source]
        new = torch.nn.Parameter(value, requires_grad=old.requires_grad)
        state = optimizers[name].state.get(old, {}) if name in optimizers else {}
        made.append((name, old, new, {k: _moved(v, source, fresh) for k, v in state.items()}))
    for name, old, new, state in made:
        params[name] = new
        if name in optimizers:
            optimizers[name].state.pop(old, None)
            optimizers[name].param_groups[0]["params"] = [new]
            optimizers[name].state[new] = state


def _moved(value: Tensor, source: Tensor, fresh: Tensor) -> Tensor:
    """Return what Adam remembers, row by row; the number of its steps is of no row."""
    if value.ndim == 0:
        return value
    moved = value[source]
    moved[fresh] = 0
    return moved
