"""Fixed codes that Gaussians carry beside colour, whose pictures move the geometry: a `Companion` (companion.py).

Every label has a random unit vector, and every Gaussian carries its label's. Where a picture of the codes is further
from the code that its pixel should show than TOLERATED, the difference is a loss: Gaussians that reach over the border
of their object draw back, and pixels that already show their object well enough leave the photos alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize

from cgc.appearance.companion import Carried, NoCompanion
from cgc.device import PageLocked
from cgc.scene.types import Camera
from cgc.splats.types import Splats

TOLERATED = 0.35
"""Distance to the right code that is no loss; two labels' codes are some 1.4 apart."""
SMALLEST = 1e-8  # under the root, where its slope has no end


class LabelCodes(NoCompanion):
    """Codes [N, D] of labels [N], -1 or 0 for none, and what each pixel of some views should show."""

    def __init__(
        self, labels: np.ndarray, targets: Mapping[int, np.ndarray], *, dim: int, weight: float, seed: int = 0
    ) -> None:
        """Pull pictures towards the `targets` [H, W] of each view: a label from 1, or 0 where nobody knows."""
        self._labels, self._targets, self._weight = np.maximum(labels, 0), targets, weight
        self._locked, self._kept = PageLocked(), dict[int, Tensor]()
        self._there: dict[torch.device, Tensor] = {}
        most = max([int(a.max(initial=0)) for a in (labels, *targets.values())])
        codes = torch.randn(most + 1, dim, generator=torch.Generator().manual_seed(seed))
        self.codes = normalize(codes, dim=1)  # [K + 1, D]
        self.codes[0] = 0.0

    def identity(self) -> str:
        """Hash everything."""
        digest = hashlib.blake2b(f"{self._weight} {TOLERATED}".encode(), digest_size=16)
        for array in (self.codes.numpy(), self._labels, *(self._targets[i] for i in sorted(self._targets))):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def start(self, splats: Splats) -> dict[str, Tensor]:
        """Give each Gaussian the code of its label; no rate names it, so it stays."""
        return {"codes": self.codes[torch.from_numpy(self._labels).long()].to(splats.means.device)}

    def values(self, carried: Carried, step: int) -> Tensor | None:
        """Return the codes."""
        return carried["codes"]

    def image_loss(self, view: int, camera: Camera, values: Tensor, step: int) -> Tensor | None:
        """Return the weight times the mean over all pixels of max(|values - code| - TOLERATED, 0), 0 where unknown."""
        target = self._targets.get(view)
        if target is None:
            return None
        if values.device not in self._there:
            self._there[values.device] = self.codes.to(values.device)
        label = self._ready(view, target, values.device).to(values.device, non_blocking=True).long()  # [P]
        shown, wanted = values.reshape(target.size, -1), embedding(label, self._there[values.device])
        distance = ((shown - wanted).square().sum(-1) + SMALLEST).sqrt()
        return self._weight * ((distance - TOLERATED).relu() * (label > 0)).sum() / target.size

    def _ready(self, view: int, target: np.ndarray, device: torch.device) -> Tensor:
        """Return what the pixels of a view should show, [P], on the host, for a GPU in page-locked memory.

        From there it is copied without waiting. All views on a GPU would take as much as photos, which may not fit.
        """
        if device.type != "cuda":
            return torch.from_numpy(target.ravel())
        if view not in self._kept:
            label = torch.from_numpy(target.ravel())
            self._kept[view] = self._locked.copy(label.short() if len(self.codes) <= 1 << 15 else label)
        return self._kept[view]
