"""How like two pictures are: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from cgc.errors import InputError

_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_SSIM_WINDOW = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
_SSIM_WINDOW /= _SSIM_WINDOW.sum()
_MIN_MSE = 1e-10  # identical pictures: 100 dB, so that a mean over views and JSON stay finite


def psnr(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures [H, W, 3] in 0..1, in dB; at most 100.

    In float64 on the host, for what is said of a run; training measures itself by `appearance.losses.psnr`.
    """
    x, y = _pictures(a, b)
    return float(-10.0 * np.log10(max(float(((x - y) ** 2).mean()), _MIN_MSE)))


def ssim(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Structural similarity of two pictures [H, W, 3] in 0..1, mean over pixels and channels, at most 1.

    Window and borders as 3D Gaussian Splatting has them: an 11x11 Gaussian of sigma 1.5, zeros outside.
    """
    x, y = _pictures(a, b)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    return float((likeness / ((mean_x**2 + mean_y**2 + _SSIM_C1) * (var_x + var_y + _SSIM_C2))).mean())


Network = Callable[[Tensor, Tensor], Tensor]
"""A distance of two pictures [1, 3, H, W] in -1..1."""


def lpips(a: Tensor | np.ndarray, b: Tensor | np.ndarray, network: Network) -> float:
    """Learned perceptual distance (arXiv 1801.03924) of two pictures [H, W, 3] in 0..1; less is better."""
    pair = (torch.from_numpy(2 * p.transpose(2, 0, 1)[None] - 1).float() for p in _pictures(a, b))
    with torch.no_grad():
        return float(network(*pair))


def load_lpips() -> Network:
    """Load LPIPS with the VGG backbone; InputError, in one sentence, where the package or its weights are not there."""
    try:
        package = importlib.import_module("lpips")
    except ImportError as error:
        raise InputError(
            "LPIPS is not given: the lpips package is not installed; "
            "pip install 'contrastive-gaussian-clustering[lpips]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it still calls torchvision the old way
            return package.LPIPS(net="vgg", verbose=False).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"LPIPS is not given: the weights of its VGG backbone could not be loaded ({error}); they are downloaded "
            "once, on a machine with a network, into torch's cache"
        ) from error


def _pictures(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (p.detach().cpu().numpy() if isinstance(p, Tensor) else np.asarray(p) for p in (a, b))
    if x.shape != y.shape or x.ndim != 3:
        raise InputError(f"pictures of one size [H, W, 3] were expected, got {x.shape} and {y.shape}")
    if x.dtype.kind != "f" or y.dtype.kind != "f":
        raise InputError(f"pictures as floats in 0..1 were expected, got {x.dtype} and {y.dtype}")
    return x.astype(np.float64), y.astype(np.float64)


def _blur(image: np.ndarray) -> np.ndarray:
    rows = correlate1d(image, _SSIM_WINDOW, axis=0, mode="constant")
    return correlate1d(rows, _SSIM_WINDOW, axis=1, mode="constant")
