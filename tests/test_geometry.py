"""Quaternions and spherical harmonics: laws, and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cgc.errors import InputError
from cgc.geometry import (
    SH_C0,
    covariances,
    quat_multiply,
    quat_to_rotation,
    rgb_to_sh_dc,
    rotate_sh,
    rotation_to_quat,
    sh_basis,
    sh_rotation,
    sh_to_rgb,
    vector,
)


def sphere_points() -> tuple[Tensor, Tensor]:
    """Directions [Q, 3] and weights [Q]: exact integrals over the sphere of polynomials up to degree 15."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angles = (np.arange(16) + 0.5) * 2 * math.pi / 16
    z, a = (g.ravel() for g in np.meshgrid(nodes, angles, indexing="ij"))
    r = np.sqrt(1 - z * z)
    directions = np.stack([r * np.cos(a), r * np.sin(a), z], 1)
    return torch.from_numpy(directions), torch.from_numpy(np.repeat(weights, 16) * 2 * math.pi / 16)


@pytest.mark.parametrize("given", [(1, 2.5, -3), [1, 2.5, -3], np.array([1, 2.5, -3], np.float32)])
def test_a_vector_may_be_any_numbers(given) -> None:
    made = vector(given, 3, "a point")
    assert made.dtype == np.float64 and made.tolist() == [1, 2.5, -3]


@pytest.mark.parametrize(
    "given", ["z", None, 1.0, (1, 2, 10**400), (1, 2), [[1, 2, 3]], (1, 2, "z"), (1, math.nan, 3), (1, math.inf, 3)]
)
def test_what_is_no_vector_is_said(given) -> None:
    with pytest.raises(InputError) as error:
        vector(given, 3, "a point")
    assert str(error.value) == f"a point of 3 finite numbers was expected, got {given!r:.200}"


def test_a_vector_may_be_infinite_where_that_means_something_and_what_is_long_is_cut_short() -> None:
    assert vector((1, -math.inf), 2, "a corner", finite=False).tolist() == [1, -math.inf]
    with pytest.raises(InputError, match=r"a corner of 2 numbers was expected, got \(1, nan\)"):
        vector((1, math.nan), 2, "a corner", finite=False)
    with pytest.raises(InputError) as error:
        vector([0.5] * 10_000, 3, "a point")
    assert len(str(error.value)) < 300


def test_quat_to_rotation_is_that_of_scipy(generator: torch.Generator) -> None:
    """wxyz of any norm; scipy's are xyzw."""
    quats = torch.randn(200, 4, generator=generator, dtype=torch.float64) * 3
    expected = Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy()).as_matrix()
    np.testing.assert_allclose(quat_to_rotation(quats).numpy(), expected, atol=1e-14)


def test_quaternions_cover_rotations_twice(generator: torch.Generator) -> None:
    """q, -q and q times any positive number are one rotation: orthonormal, with determinant one."""
    quats = torch.randn(4, 50, 4, generator=generator, dtype=torch.float64)
    R = quat_to_rotation(quats)
    assert R.shape == (4, 50, 3, 3)
    torch.testing.assert_close(quat_to_rotation(-quats), R)
    torch.testing.assert_close(quat_to_rotation(7.5 * quats), R)
    torch.testing.assert_close(R @ R.transpose(-1, -2), torch.eye(3, dtype=R.dtype).expand_as(R))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(4, 50, dtype=R.dtype))


def test_product_of_quaternions_is_product_of_rotations(generator: torch.Generator) -> None:
    """R(p q) = R(p) R(q)."""
    p, q = torch.randn(2, 40, 4, generator=generator, dtype=torch.float64)
    real = p[:, :1] * q[:, :1] - (p[:, 1:] * q[:, 1:]).sum(1, keepdim=True)
    imaginary = p[:, :1] * q[:, 1:] + q[:, :1] * p[:, 1:] + torch.linalg.cross(p[:, 1:], q[:, 1:])
    product = quat_to_rotation(torch.cat([real, imaginary], 1))
    torch.testing.assert_close(product, quat_to_rotation(p) @ quat_to_rotation(q))


def test_gradients(generator: torch.Generator) -> None:
    """gradcheck in float64."""
    quats = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    scales = torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.1
    directions = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    sh = torch.randn(3, 16, 3, generator=generator, dtype=torch.float64) * 0.1
    assert torch.autograd.gradcheck(quat_to_rotation, quats)
    assert torch.autograd.gradcheck(covariances, (quats, scales.requires_grad_()))
    assert torch.autograd.gradcheck(lambda s, d: sh_to_rgb(s, d, 3), (sh.requires_grad_(), directions))


def test_covariance_has_the_scales_as_axes(generator: torch.Generator) -> None:
    """Sigma R e_i = s_i^2 R e_i."""
    quats = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    scales = torch.rand(20, 3, generator=generator, dtype=torch.float64) + 0.01
    R = quat_to_rotation(quats)
    torch.testing.assert_close(covariances(quats, scales) @ R, R * scales[:, None, :] ** 2)


def test_sh_basis_is_orthonormal() -> None:
    """The integral over the sphere of Y_i Y_j is one if i = j, else zero: by exact quadrature."""
    directions, weights = sphere_points()
    assert float(weights.sum()) == pytest.approx(4 * math.pi)
    Y = sh_basis(directions, 3)  # [Q, 16]
    torch.testing.assert_close((Y * weights[:, None]).T @ Y, torch.eye(16, dtype=Y.dtype), rtol=0, atol=1e-12)


def test_sh_signs_are_those_of_3dgs() -> None:
    """Signs that orthonormality cannot see, at directions where one term of a kind stands out."""
    d = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float64)
    Y = sh_basis(torch.nn.functional.normalize(d, dim=1), 3)
    x, y, z, diagonal = Y
    assert (Y[:, 0] == SH_C0).all()
    assert y[1] < 0 and z[2] > 0 and x[3] < 0  # degree 1: -y, z, -x
    assert diagonal[4] > 0 and diagonal[5] < 0 and z[6] > 0 and diagonal[7] < 0 and x[8] > 0
    assert y[9] > 0 and diagonal[10] > 0 and y[11] > 0 and z[12] > 0 and x[13] > 0 and x[15] < 0
    tilted = sh_basis(torch.nn.functional.normalize(torch.tensor([[2.0, 1.0, 1.0]]), dim=1), 3)[0]
    assert tilted[14] > 0


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_sh_degrees_nest(degree: int, generator: torch.Generator) -> None:
    """A lower degree is the first terms of a higher one; terms above the degree do not count."""
    directions = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    unit = torch.nn.functional.normalize(directions, dim=1)
    terms = (degree + 1) ** 2
    torch.testing.assert_close(sh_basis(unit, degree), sh_basis(unit, 3)[:, :terms])
    sh = torch.randn(30, 16, 3, generator=generator, dtype=torch.float64) * 0.05
    cut = sh.clone()
    cut[:, terms:] = 0
    torch.testing.assert_close(sh_to_rgb(sh, directions, degree), sh_to_rgb(cut, 5 * directions, 3))


def test_sh_to_rgb_of_degree_0(generator: torch.Generator) -> None:
    """The DC term is the colour from everywhere, and is cut at zero only."""
    rgb = torch.rand(20, 3, generator=generator)
    sh = rgb_to_sh_dc(rgb)[:, None]
    directions = torch.randn(20, 3, generator=generator)
    torch.testing.assert_close(sh_to_rgb(sh, directions, 0), rgb)
    assert (sh_to_rgb(-10 * torch.ones(2, 1, 3), directions[:2], 0) == 0).all()
    assert (sh_to_rgb(10 * torch.ones(2, 1, 3), directions[:2], 0) > 3).all()
    zero = torch.zeros(20, 16, 3)
    zero[:, 0] = sh[:, 0]
    torch.testing.assert_close(sh_to_rgb(zero, directions, 3), rgb)


def rotations(generator: torch.Generator, n: int = 12) -> Tensor:
    """Random rotations, with those of half a turn, at which w is 0, and none at all."""
    some = quat_to_rotation(torch.randn(n, 4, generator=generator, dtype=torch.float64))
    return torch.cat([some, quat_to_rotation(torch.eye(4, dtype=torch.float64))])


def test_rotations_and_quaternions_are_there_and_back(generator: torch.Generator) -> None:
    """The quaternion is of norm one, its w not negative, half turns included."""
    for R in rotations(generator):
        quat = rotation_to_quat(R)
        torch.testing.assert_close(quat_to_rotation(quat), R, atol=1e-12, rtol=0)
        assert abs(quat.norm() - 1) < 1e-12 and quat[0] >= 0
    a, b = torch.randn(2, 20, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(quat_to_rotation(quat_multiply(a, b)), quat_to_rotation(a) @ quat_to_rotation(b))
    torch.testing.assert_close(quat_multiply(a, b).norm(dim=-1), a.norm(dim=-1) * b.norm(dim=-1))


@pytest.mark.parametrize("degree", range(4))
def test_turned_harmonics_show_along_turned_directions(degree: int, generator: torch.Generator) -> None:
    """The colour along R d is what it was along d; turns compose, and change nothing of degree 0 to the bit."""
    sh = torch.randn(30, (degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
    directions = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    for R in rotations(generator):
        turned = rotate_sh(sh, R)
        assert torch.equal(turned[:, 0], sh[:, 0])
        torch.testing.assert_close(sh_to_rgb(turned, directions @ R.T, degree), sh_to_rgb(sh, directions, degree))
        M = sh_rotation(R, degree)
        torch.testing.assert_close(M @ M.T, torch.eye(len(M), dtype=M.dtype), atol=1e-12, rtol=0)
    a, b = rotations(generator)[:2]
    torch.testing.assert_close(rotate_sh(rotate_sh(sh, b), a), rotate_sh(sh, a @ b))
