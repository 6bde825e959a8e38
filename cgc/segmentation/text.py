"""Objects by words: each object's pictures, cut from its best views, are compared with the text by a model of both.

The model is whatever encodes texts and images into one space; open_clip is one, which the extra "text" installs.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cgc.errors import InputError
from cgc.files import read_arrays, write_beside
from cgc.segmentation.pictures import id_map, render
from cgc.segmentation.query import Match, check_count

if TYPE_CHECKING:
    from cgc.segmentation.segmentation import Segmentation

CROPS = 3
"""Views that an object's embedding is the mean of: those that show most of it."""
MARGIN = 0.1
"""What a crop adds around the object, as a share of its longer side."""
OUTSIDE = 127
"""The grey that hides what is not the object."""


class TextImageModel(Protocol):
    """Encodes texts and images into one space, in which a cosine says how well they fit. `name` says which model."""

    name: str

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Return an embedding of each text, [n, d]."""
        ...

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return an embedding of each image, uint8 [h, w, 3] of any size, [n, d]."""
        ...


def find(segmentation: Segmentation, words: str, k: int = 5, model: TextImageModel | None = None) -> list[Match]:
    """The k objects that fit a text best: the cosine of its embedding and the mean one of their pictures.

    Pictures are cut from the photos of the three views that show most of an object, or from renders where there are no
    photos, with all else greyed out. Their embeddings are kept in the run's folder, text/MODEL.npz. Scores compare the
    objects of one question, not questions. model: None is open_clip's, which the extra "text" installs.
    """
    if not isinstance(words, str) or not words.strip():
        raise InputError(f"expected words to find, got {words!r}")
    check_count(k)
    if model is None:
        from cgc.segmentation.clip import OpenClip

        model = OpenClip()
    ids, embeddings = object_embeddings(segmentation, model)
    query = _encoded(model.encode_text([words]), 1, model)
    if len(ids) and query.shape != (1, embeddings.shape[1]):
        raise InputError(
            f"the model {model.name} gave a text embedding of shape {query.shape} where (1, {embeddings.shape[1]}) was "
            "expected, as its images have; both must be in one space"
        )
    scores = embeddings @ query[0] if len(ids) else np.zeros(0)
    order = np.argsort(-scores, kind="stable")[:k]
    return [Match(segmentation[int(ids[i])], float(scores[i]), model.name) for i in order]


def object_embeddings(segmentation: Segmentation, model: TextImageModel) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the objects that some view shows [K], and their embeddings [K, d] of norm 1; kept beside the run."""
    path, objects = _cache(segmentation, model), _key(segmentation, model)
    if path is not None and (kept := _read(path, f"{objects} in photos")):
        return kept
    key = f"{objects} in {'photos' if _has_photos(segmentation) else 'renders'}"
    if path is not None and (kept := _read(path, key)):
        return kept
    wanted: dict[str, list[int]] = {}  # of each view, so that its id map is made once
    counts, names = segmentation.pixels_of_views, segmentation.views
    for i in segmentation.ids.tolist():
        for v in np.argsort(-counts[:, i], kind="stable")[:CROPS].tolist():
            if counts[v, i]:
                wanted.setdefault(names[v], []).append(i)
    sums: dict[int, np.ndarray] = {}
    for view, ids in wanted.items():
        shown = [(i, image) for i, image in crops(segmentation, view, ids).items() if image is not None]
        if shown:
            found = _encoded(model.encode_images([image for _, image in shown]), len(shown), model)
            for (i, _), embedding in zip(shown, found):
                sums[i] = sums.get(i, 0) + embedding
    ids = sorted(sums)
    kept = np.array(ids, np.int64), _unit(np.stack([sums[i] for i in ids])) if ids else np.zeros((0, 0), np.float32)
    if path is not None:
        _write(path, key, *kept)
    return kept


def crops(segmentation: Segmentation, view: str, ids: list[int]) -> dict[int, np.ndarray | None]:
    """Cut objects out of a view's photo, uint8 [h, w, 3]; None: not seen there.

    Of its render, where the photo is gone or no longer shows the scene, which was edited.
    """
    shown = id_map(segmentation, view)
    read = segmentation.context.read_photo if segmentation.photos_hold else None
    photo = read(view) if read else None
    if photo is None or photo.shape[:2] != shown.shape:
        photo = render(segmentation, view)
    return {i: _crop(photo, shown == i) for i in ids}


def _crop(photo: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    more = round(MARGIN * max(np.ptp(rows), np.ptp(columns)))
    part = tuple(slice(max(int(v[0]) - more, 0), int(v[-1]) + more + 1) for v in (rows, columns))
    return np.where(mask[part][..., None], photo[part], OUTSIDE).astype(np.uint8)


def _encoded(rows: np.ndarray, n: int, model: TextImageModel) -> np.ndarray:
    """Check n embeddings of a model, and scale them to norm 1."""
    rows = np.asarray(rows, np.float32)
    if rows.ndim != 2 or len(rows) != n or not np.isfinite(rows).all():
        raise InputError(
            f"the model {model.name} gave embeddings of shape {rows.shape} where finite ones of shape ({n}, d) were "
            "expected; use another model"
        )
    return _unit(rows)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


# --- kept beside the run ----------------------------------------------------------------------------------


def _cache(segmentation: Segmentation, model: TextImageModel) -> Path | None:
    folder = segmentation.context.folder
    return folder / "text" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', model.name)}.npz" if folder else None


def _has_photos(segmentation: Segmentation) -> bool:
    """Say whether crops are of photos, by the first view's."""
    read = segmentation.context.read_photo if segmentation.photos_hold and segmentation.context.known_cameras else None
    return read is not None and any(read(view) is not None for view in segmentation.views[:1])


def _key(segmentation: Segmentation, model: TextImageModel) -> str:
    """Hash what embeddings are made by and of: the model and the objects."""
    digest = hashlib.sha256(model.name.encode())
    digest.update(segmentation.labels.tobytes())
    splats = segmentation.splats
    looks = [] if segmentation.photos_hold else [splats.sh, splats.log_scales, splats.quats, splats.logit_opacities]
    for tensor in (splats.means, *looks):
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Read embeddings that were made of the same objects; None where there are none, or they cannot be read."""
    try:
        data = read_arrays(path)
        ids, embeddings, made_of = data["ids"], data["embeddings"], str(data["key"])
    except (ValueError, KeyError):
        return None
    fits = made_of == key and ids.ndim == 1 and embeddings.ndim == 2 and len(ids) == len(embeddings)
    return (ids, embeddings) if fits else None


def _write(path: Path, key: str, ids: np.ndarray, embeddings: np.ndarray) -> None:
    """Keep embeddings; where the folder cannot be written to they are made again next time."""
    try:
        with write_beside(path) as temporary:
            np.savez_compressed(temporary, key=np.array(key), ids=ids, embeddings=embeddings)
    except InputError:
        return
