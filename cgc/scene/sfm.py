"""Structure from motion by pycolmap, in steps that show progress: lenses, features, matches, models.

Photos come under plain names of their own (000001.jpg), so that no name of a user's file meets COLMAP's text files.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image  # before pycolmap, which exports a zlib of its own: loaded first it breaks writing PNG files

# isort: split
import pycolmap

from cgc.errors import InputError, reason
from cgc.progress import progress_bar
from cgc.settings import ReconstructSettings

EXHAUSTIVE_UP_TO = 150
"""With more photos `auto` matches sequentially: pairs grow with the square of their number."""

LEAST = 3
"""Photos of the smallest model."""

_OVERLAP = 10  # neighbours on either side that a photo is compared with
_ANCHORS = 25  # photos spread over the sequence that are all compared with each other, to close loops
_BLOCK = 10  # pairs are matched in blocks of so many photos by so many, whose features are loaded once
_BLAS_FROM = "_ZN5faiss31distance_compute_blas_thresholdE"  # FAISS calls BLAS for so many features and more
_EXIF = 0x8769
_MAKE, _MODEL, _FOCAL, _FOCAL_35 = 0x010F, 0x0110, 0x920A, 0xA405


@dataclass(frozen=True)
class Attempt:
    """How hard to try: `rich` features (affine shapes, pooled scales, twice as many), `loose` mapping."""

    rich: bool = False
    loose: bool = False


ATTEMPTS = (Attempt(), Attempt(loose=True), Attempt(rich=True, loose=True))


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep COLMAP's log to what ends the process."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = 3
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def lens_key(path: Path, size: tuple[int, int]) -> tuple[str, ...]:
    """Return what photos by one lens share: the stored size, camera and focal length that EXIF tells."""
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            more = exif.get_ifd(_EXIF)
            facts = [exif.get(_MAKE), exif.get(_MODEL), more.get(_FOCAL), more.get(_FOCAL_35)]
    except Exception:  # PIL raises anything for broken EXIF, which is no reason to lose a photo
        facts = []
    return (f"{size[0]}x{size[1]}", *map(str, facts))


def matching_threads() -> int:
    """Return how many threads COLMAP may match with, as it counts them (-1: every core), for the same matches always.

    Its FAISS multiplies by an OpenBLAS that is built for one thread: two that ask for a buffer at the same moment may
    get the same one, and wrong products. FAISS is told to do without BLAS from now on; where it cannot be, 1.
    """
    try:
        blas_from = ctypes.c_int.in_dll(ctypes.CDLL(pycolmap._core.__file__), _BLAS_FROM)
    except (OSError, ValueError):  # another build, which does not show it
        return 1
    blas_from.value = 2**31 - 1
    return -1


def choose_pairs(count: int, matching: str) -> list[tuple[int, int]]:
    """Return the pairs of photos to compare, i < j, ordered in blocks.

    Sequential: the next `_OVERLAP` photos, those 16, 32, 64... further on, and all pairs of some photos spread
    evenly, which find where the path comes back to a place.
    """
    if matching == "exhaustive" or (matching == "auto" and count <= EXHAUSTIVE_UP_TO):
        return in_blocks(set(itertools.combinations(range(count), 2)))
    powers = [2**k for k in range(4, 32) if 2**k < count]
    steps = [*range(1, _OVERLAP + 1), *powers]
    near = {(i, i + step) for i in range(count) for step in steps if i + step < count}
    anchors = sorted({round(k * (count - 1) / (_ANCHORS - 1)) for k in range(_ANCHORS)})
    return in_blocks(near | set(itertools.combinations(anchors, 2)))


def in_blocks(pairs: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Order pairs so that neighbours in the list share photos."""
    return sorted(pairs, key=lambda p: (p[0] // _BLOCK, p[1] // _BLOCK, p))


class Session:
    """A database of one set of photos, `folder`/NAME for all `names`, in the working folder `work`."""

    def __init__(self, work: Path, folder: Path, names: Sequence[str], settings: ReconstructSettings, quiet: bool):
        self._work, self._folder, self._names = work, folder, list(names)
        self._settings, self._quiet = settings, quiet
        self._database = work / "none.db"

    def find_features(self, groups: Sequence[Sequence[str]], attempt: Attempt) -> None:
        """Start a database whose `groups` of photos share a lens each, and find their features."""
        settings = self._settings
        self._database = self._work / ("rich.db" if attempt.rich else "plain.db")
        pycolmap.Database.open(self._database).close()
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = settings.camera_model
        options = pycolmap.FeatureExtractionOptions()
        options.max_image_size = settings.max_side
        options.use_gpu = False
        options.sift.max_num_features = settings.max_features * (2 if attempt.rich else 1)
        options.sift.estimate_affine_shape = options.sift.domain_size_pooling = attempt.rich
        title = "features, rich" if attempt.rich else "features"
        with told("finding features"), progress_bar(title, len(self._names), quiet=self._quiet) as bar:
            for group in groups:
                single = pycolmap.CameraMode.SINGLE
                pycolmap.import_images(self._database, self._folder, single, list(group), reader)
            for chunk in _chunks(self._names, 2 * (os.cpu_count() or 1)):
                pycolmap.extract_features(
                    self._database, self._folder, chunk, reader_options=reader, extraction_options=options,
                    device=pycolmap.Device.cpu,
                )  # fmt: skip
                bar.advance(len(chunk))

    def match(self, pairs: Sequence[tuple[int, int]], attempt: Attempt) -> None:
        """Compare the features of these pairs of photos and keep what fits one geometry; rich: search along it."""
        options = pycolmap.FeatureMatchingOptions()
        options.use_gpu = False
        options.num_threads = matching_threads()
        options.guided_matching = attempt.rich
        geometry = pycolmap.TwoViewGeometryOptions()
        if attempt.rich:
            geometry.min_num_inliers = 12
        geometry.ransac.random_seed = self._settings.seed
        listed = pycolmap.ImportedPairingOptions()
        path = self._work / "pairs.txt"
        listed.match_list_path = path
        with told("matching"), progress_bar("matching", len(pairs), quiet=self._quiet) as bar:
            for chunk in _chunks(pairs, _BLOCK * _BLOCK):
                path.write_text("".join(f"{self._names[i]} {self._names[j]}\n" for i, j in chunk))
                pycolmap.match_image_pairs(self._database, options, listed, geometry, pycolmap.Device.cpu)
                bar.advance(len(chunk))

    def map(self, attempt: Attempt) -> list[pycolmap.Reconstruction]:
        """Place the photos one after the other; return the models that grow, the largest first."""
        models = self._work / "models"
        models.mkdir(exist_ok=True)
        total = len(self._names)
        placed = 0
        with told("mapping"), progress_bar("mapping", total, quiet=self._quiet) as bar:

            def move(n: int) -> None:
                nonlocal placed
                n = min(n, total - placed)  # further models place photos again
                placed += n
                bar.advance(n)

            pycolmap.set_random_seed(self._settings.seed)
            found = pycolmap.incremental_mapping(
                self._database, self._folder, models, mapper_options(attempt, self._settings.seed),
                initial_image_pair_callback=lambda: move(2), next_image_callback=lambda: move(1),
            )  # fmt: skip
            bar.advance(total - placed)
        return by_size(list(found.values()))


def mapper_options(attempt: Attempt, seed: int) -> pycolmap.IncrementalPipelineOptions:
    """Return COLMAP's options, seeded and on one thread (its sums else depend on timing); loose: far lower bars."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = LEAST
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = seed
    options.num_threads = 1
    if attempt.loose:
        options.min_num_matches = 10
        mapper = options.mapper
        mapper.init_min_tri_angle, mapper.init_min_num_inliers = 6.0, 40
        mapper.init_max_reg_trials = mapper.max_reg_trials = 6
        mapper.abs_pose_min_num_inliers, mapper.abs_pose_min_inlier_ratio = 15, 0.15
    return options


def by_size(models: Sequence[pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    """Return the models of at least 3 photos, those with most photos first, of equals those with most points."""
    whole = [m for m in models if m.num_reg_images() >= LEAST and m.num_points3D() > 0]
    return sorted(whole, key=lambda m: (m.num_reg_images(), m.num_points3D()), reverse=True)


def _chunks(items: Sequence, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


@contextlib.contextmanager
def told(step: str) -> Iterator[None]:
    """Turn what pycolmap raises into one sentence."""
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{step} failed in pycolmap ({reason(error)}); see that the disk is not full and memory is enough "
            "(lower --max-side and --max-features), and run the same command again"
        ) from error
