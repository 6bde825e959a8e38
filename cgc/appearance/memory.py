"""What to say when a GPU's memory does not suffice, and what to lower by how much."""

from __future__ import annotations

import torch

from cgc.appearance.photos import Photos
from cgc.errors import InputError

FEWER, SMALLER = 0.75, 0.7  # times as many Gaussians, times as long a side, to try next


def want_of_memory(photos: Photos, gaussians: int, fitted: int, step: int, steps: int, saved: bool) -> InputError:
    """Return what is to be said where `step` of `steps` found no memory; `saved`: it can be taken up there.

    `gaussians` are those of the step, `fitted` those of the step before.
    """
    width, height = photos.largest
    fewer = fitted if fitted < gaussians else _rounded(FEWER * gaussians)
    advice = [f"lower --train.max-gaussians to {fewer} (the faintest go)"]
    if photos.on_device:
        advice.insert(0, f"add --train.photos host, which frees {photos.bytes / 1e9:.2g} GB")
    goes_on = f"at step {step:,}" if saved else "from the newest checkpoint, if there is one"
    return InputError(
        f"the GPU's memory did not suffice for step {step:,} of {steps:,} with {gaussians:,} Gaussians and photos of "
        f"{width}x{height}{_taken(photos.device)}; {', or '.join(advice)}: training then goes on {goes_on}; or train "
        f"anew on smaller photos with --max-side {round(SMALLER * max(width, height))}"
    )


def _rounded(number: float) -> int:
    """Round down to two digits."""
    digits = max(len(str(int(number))) - 2, 0)
    return int(number) // 10**digits * 10**digits


def _taken(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f" ({(total - free) / 1e9:.3g} of {total / 1e9:.3g} GB are taken)"
