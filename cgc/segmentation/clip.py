"""open_clip as a model of texts and images; the only place that imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cgc.errors import InputError
from cgc.files import sha256

MODEL, WEIGHTS = "ViT-B-32", "laion2b_s34b_b79k"
BATCH = 32
LONGEST = 200
"""Characters of open_clip's own complaints that are repeated: it lists all its models."""


class OpenClip:
    """A CLIP model by open_clip.

    weights: the name of published ones, which open_clip fetches once into the user's cache, or a file of them, for
    machines without a network. InputError where open_clip is missing or cannot load the two.
    """

    def __init__(self, model: str = MODEL, weights: str | Path = WEIGHTS, device: str = "cpu") -> None:
        try:
            import open_clip  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                "finding objects by words needs open_clip, which is not installed; "
                "pip install 'contrastive-gaussian-clustering[text]', or give a model of your own"
            ) from error
        file = Path(weights)
        if not str(weights) or file.is_dir() or (file.suffix and not file.is_file()):
            there = f"there is no file {file}" if str(weights) else "no weights were named"
            raise InputError(f"{there}; expected a file of weights for {model}, or the name of published ones")
        self.name, self.device = f"{model}-{_named(file) if file.is_file() else weights}", device
        try:
            made: Any = open_clip.create_model_and_transforms(model, pretrained=str(weights), device=device)
            self._tokenize: Any = open_clip.get_tokenizer(model)
        except Exception as error:  # of what reads weights, tokenizers and the network: open_clip lets all through
            why = " ".join(str(error).split())
            why = why if len(why) <= LONGEST else f"{why[:LONGEST]}..."
            raise InputError(
                f"open_clip could not load {model} with the weights {weights} ({why}); "
                "check the names and the connection, or give a file of the model's weights"
            ) from error
        self._model, _, self._transform = made
        self._model.eval()

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Return an embedding of each text, [n, d]."""
        with torch.no_grad():
            return self._model.encode_text(self._tokenize(texts).to(self.device)).float().cpu().numpy()

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return an embedding of each image, uint8 [h, w, 3], [n, d]."""
        made = []
        for i in range(0, len(images), BATCH):
            batch = torch.stack([self._transform(Image.fromarray(image)) for image in images[i : i + BATCH]])
            with torch.no_grad():
                made.append(self._model.encode_image(batch.to(self.device)).float().cpu().numpy())
        return np.concatenate(made)


def _named(file: Path) -> str:
    """Call weights by their file's name and the start of its hash, by which embeddings are kept."""
    return f"{file.stem}-{sha256(file)[:8]}"
