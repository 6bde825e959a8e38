"""Compute the demo scene's COLMAP model from its photos and put it into the true frame; needs `pycolmap`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cameras import Pinhole, View

if TYPE_CHECKING:
    import pycolmap


@dataclass(frozen=True)
class Similarity:
    """The map x -> scale * rotation @ x + translation."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray


def fit_similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """Fit target ~ similarity(source) in the least-squares sense, both (N, 3)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, spread, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rot = u @ sign @ vt
    scale = float((spread * np.diag(sign)).sum() / (a**2).sum())
    return Similarity(scale, rot, target.mean(0) - scale * rot @ source.mean(0))


def reconstruct(photos: Path, camera: Pinhole, work: Path, seed: int) -> pycolmap.Reconstruction:
    """Run SIFT, exhaustive matching and incremental mapping with the known focal length kept."""
    import pycolmap

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pycolmap.set_random_seed(seed)
    database = work / "database.db"
    params = f"{camera.focal},{camera.focal},{camera.width / 2},{camera.height / 2}"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.use_gpu = False
    extraction.sift.peak_threshold = 0.003  # walls and table cloths have faint texture
    extraction.sift.max_num_features = 2000  # the coarsest, hence steadiest, are kept
    pycolmap.extract_features(
        database,
        photos,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=pycolmap.ImageReaderOptions(camera_model="PINHOLE", camera_params=params),
        extraction_options=extraction,
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.use_gpu = False
    pycolmap.match_exhaustive(database, matching_options=matching)
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.ba_refine_focal_length = False
    mapping.ba_global_frames_ratio = mapping.ba_global_points_ratio = 1.3
    mapping.mapper.filter_max_reproj_error = 2.0
    mapping.random_seed = seed
    models = pycolmap.incremental_mapping(database, photos, work / "models", mapping)
    return max(models.values(), key=lambda model: model.num_reg_images())


def refine(model: pycolmap.Reconstruction) -> None:
    """Adjust poses and points once more with a robust loss, tightly converged."""
    import pycolmap

    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_principal_point = options.refine_extra_params = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.loss_function_scale = 0.5
    options.ceres.solver_options.max_num_iterations = 100
    options.ceres.solver_options.function_tolerance = 1e-9
    pycolmap.bundle_adjustment(model, options)


def published(model: pycolmap.Reconstruction, similarity: Similarity) -> pycolmap.Reconstruction:
    """Rebuild the model in the true frame, images by name, without the 2D points that have no 3D point."""
    import pycolmap

    model = pycolmap.Reconstruction(model)
    rot = pycolmap.Rotation3d(similarity.rotation)
    model.transform(pycolmap.Sim3d(similarity.scale, rot, similarity.translation))
    out = pycolmap.Reconstruction()
    camera = next(iter(model.cameras.values()))
    camera.camera_id = 1
    out.add_camera_with_trivial_rig(camera)
    places: dict[tuple[int, int], tuple[int, int]] = {}
    images = sorted((i for i in model.images.values() if i.has_pose), key=lambda i: i.name)
    for ident, image in enumerate(images, 1):
        used = [k for k, p in enumerate(image.points2D) if p.has_point3D()]
        places |= {(image.image_id, k): (ident, at) for at, k in enumerate(used)}
        spots = [pycolmap.Point2D(image.points2D[k].xy) for k in used]
        copy = pycolmap.Image(name=image.name, points2D=spots, camera_id=1, image_id=ident)
        out.add_image_with_trivial_frame(copy, image.cam_from_world())
    for _, point in sorted(model.points3D.items()):
        track = pycolmap.Track()
        for element in point.track.elements:
            track.add_element(*places[element.image_id, element.point2D_idx])
        out.add_point3D(point.xyz, track, point.color)
    out.update_point_3d_errors()
    return out


def pose_errors(model: pycolmap.Reconstruction, views: list[View]) -> tuple[np.ndarray, np.ndarray]:
    """Give each registered view's centre error (metres) and rotation error (degrees)."""
    true = {view.stem: view for view in views}
    centre, turn = [], []
    for image in model.images.values():
        view = true[Path(image.name).stem]
        pose = image.cam_from_world()
        centre.append(np.linalg.norm(image.projection_center() - view.centre))
        apart = pose.rotation.matrix() - view.rotation
        turn.append(np.degrees(2 * np.arcsin(min(1.0, np.linalg.norm(apart) / np.sqrt(8)))))
    return np.array(centre), np.array(turn)


def solve(photos: Path, camera: Pinhole, views: list[View], work: Path, out: Path, seed: int) -> dict[str, float]:
    """Reconstruct the photos, write the aligned model and give the figures of the check against `views`."""
    model = reconstruct(photos, camera, work, seed)
    refine(model)
    images = [i for i in model.images.values() if i.has_pose]
    true = {view.stem: view.centre for view in views}
    similarity = fit_similarity(
        np.array([i.projection_center() for i in images]), np.array([true[Path(i.name).stem] for i in images])
    )
    final = published(model, similarity)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    final.write_binary(out)
    centre, turn = pose_errors(final, views)
    return {
        "views": len(centre),
        "points": final.num_points3D(),
        "observations": int(final.compute_num_observations()),
        "reprojection_px": float(final.compute_mean_reprojection_error()),
        "centre_rms_mm": float(np.sqrt((centre**2).mean()) * 1000),
        "centre_max_mm": float(centre.max() * 1000),
        "rotation_rms_deg": float(np.sqrt((turn**2).mean())),
        "rotation_max_deg": float(turn.max()),
    }
