"""The encoding of planes against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.operators import plane_encoding
from pipelines.operators.fourier import to_kspace
from pipelines.operators.plane_encoding import CartesianPlanes, RadialPlanes
from pipelines.operators.toeplitz import Toeplitz


@pytest.fixture
def rng_torch() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def maps_of(items: int, coils: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    maps = torch.randn((items, coils, *shape), dtype=torch.complex64, generator=generator)
    return maps / maps.abs().square().sum(1, keepdim=True).sqrt()


def matrix_of(maps: Tensor, counts: Tensor) -> Tensor:
    """`A = sqrt(W) F S` of one item, from unit vectors."""
    p, q = counts.shape
    units = torch.eye(p * q, dtype=torch.complex64).reshape(-1, 1, p, q)
    return (to_kspace(units * maps) * counts.sqrt()).flatten(1).mT


@pytest.mark.parametrize("pattern", ["lines", "rows", "points", "full"])
@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("shape", [(4, 6), (5, 3)])
def test_planes_agree_with_a_dense_matrix(
    pattern: str, coils: int, shape: tuple[int, int], rng_torch: torch.Generator
) -> None:
    maps = maps_of(2, coils, shape, rng_torch)
    counts = torch.randint(0, 3, (2, *shape), generator=rng_torch).float()
    if pattern == "lines":
        counts = counts[:, :1].expand(-1, shape[0], -1).clone()
    if pattern == "rows":
        counts = counts[:, :, :1].expand(-1, -1, shape[1]).clone()
    if pattern == "full":
        counts = torch.ones_like(counts)
    counts[:, 0, 0] = 2
    if pattern == "full":
        counts[:] = 2
    encoding = CartesianPlanes(maps, counts)
    image = torch.randn((2, *shape), dtype=torch.complex64, generator=rng_torch)
    kspace = torch.randn((2, coils, *shape), dtype=torch.complex64, generator=rng_torch) * (counts > 0)[:, None]
    weight = torch.tensor([0.3, 1.2])
    for item in range(2):
        a = matrix_of(maps[item], counts[item] / counts[item].max())
        normal = a.mH @ a
        torch.testing.assert_close(
            encoding.normal(image)[item].flatten(), normal @ image[item].flatten(), atol=1e-5, rtol=1e-4
        )
        weighted = kspace[item] * (counts[item] / counts[item].max()).sqrt()
        torch.testing.assert_close(
            encoding.adjoint(kspace)[item].flatten(), a.mH @ weighted.flatten(), atol=1e-5, rtol=1e-4
        )
        solved = torch.linalg.solve(normal + weight[item] * torch.eye(len(normal)), image[item].flatten())
        found = encoding.solve(image, weight)[item].flatten()
        assert float((found - solved).norm() / solved.norm()) < 0.02


def test_runs_that_fit_into_cache_give_the_same(monkeypatch: pytest.MonkeyPatch, rng_torch: torch.Generator) -> None:
    maps = maps_of(3, 2, (6, 8), rng_torch)
    image = torch.randn((3, 6, 8), dtype=torch.complex64, generator=rng_torch)
    for counts in (torch.ones((3, 6, 8)) * (torch.arange(8) % 2), torch.rand((3, 6, 8), generator=rng_torch).round()):
        whole = CartesianPlanes(maps, counts).normal(image)
        with monkeypatch.context() as patch:
            patch.setattr(plane_encoding, "BLOCK_BYTES_CPU", 300)
            torch.testing.assert_close(CartesianPlanes(maps, counts).normal(image), whole)


def test_the_support_is_where_a_coil_sees_something(rng_torch: torch.Generator) -> None:
    maps = maps_of(1, 2, (4, 4), rng_torch)
    maps[:, :, 0] = 0
    support = CartesianPlanes(maps, torch.ones((1, 4, 4))).support
    assert not support[:, 0].any()
    assert support[:, 1:].all()


def test_radial_planes_are_hermitian_and_bounded(rng_torch: torch.Generator) -> None:
    positions = torch.rand((6, 16, 2), generator=rng_torch) - 0.5
    toeplitz = Toeplitz(positions, torch.ones((6, 16)), (8, 8))
    maps = maps_of(2, 3, (8, 8), rng_torch)
    encoding = RadialPlanes(maps, toeplitz, 4.0)
    a, b = (torch.randn((2, 8, 8), dtype=torch.complex64, generator=rng_torch) for _ in range(2))
    left, right = (a.conj() * encoding.normal(b)).sum((1, 2)), (encoding.normal(a).conj() * b).sum((1, 2))
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)
