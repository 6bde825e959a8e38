"""open_clip as a model of texts and images; the only place that imports it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from cgc.errors import InputError

MODEL, WEIGHTS = "ViT-B-32", "laion2b_s34b_b79k"
BATCH = 32


class OpenClip:
    """A CLIP model by open_clip; its weights are fetched once, by open_clip, into the user's cache."""

    def __init__(self, model: str = MODEL, weights: str = WEIGHTS, device: str = "cpu") -> None:
        try:
            import open_clip  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                "finding objects by words needs open_clip, which is not installed; "
                "pip install 'contrastive-gaussian-clustering[text]', or give a model of your own"
            ) from error
        self.name, self.device = f"{model}-{weights}", device
        try:
            made: Any = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"open_clip could not load {model} with the weights {weights} ({' '.join(str(error).split())}); "
                "check the names and the connection, or give a model of your own"
            ) from error
        self._model, _, self._transform = made
        self._model.eval()
        self._tokenize: Any = open_clip.get_tokenizer(model)

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
