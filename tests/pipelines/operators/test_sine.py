"""The smoothness with zeros around the image, against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dstn
from torch import Tensor

from pipelines.operators.checks import operator_norm
from pipelines.operators.sine import energy, laplacian, proximal


def dense_laplacian(rows: int, columns: int) -> Tensor:
    """Lap as a matrix over the pixels, row by row."""

    def along(n: int) -> Tensor:
        beside = torch.ones(n - 1, dtype=torch.float64)
        return 2 * torch.eye(n, dtype=torch.float64) - torch.diag(beside, 1) - torch.diag(beside, -1)

    return torch.kron(along(rows), torch.eye(columns, dtype=torch.float64)) + torch.kron(
        torch.eye(rows, dtype=torch.float64), along(columns)
    )


def noise(*shape: int, dtype: torch.dtype, seed: int = 4) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 2e-6), (torch.complex128, 1e-14)])
def test_prox_equals_the_dense_solve_in_both_parts(dtype: torch.dtype, tolerance: float):
    images = noise(3, 2, 8, 9, dtype=dtype)
    step = torch.tensor([0.0, 0.7, 40.0], dtype=torch.float64)
    smooth = proximal(images, step)
    assert smooth.dtype == dtype
    for item in range(3):
        system = torch.eye(72, dtype=torch.float64) + step[item] * dense_laplacian(8, 9)
        for part in ("real", "imag"):
            right_side = getattr(images[item], part).to(torch.float64).reshape(2, 72)
            expected = torch.linalg.solve(system, right_side.mT).mT.reshape(2, 8, 9)
            got = getattr(smooth[item], part).to(torch.float64)
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(right_side.abs().max()))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.floats(1e-4, 2),
    st.sampled_from([torch.float32, torch.complex64]),
    st.integers(0, 2**31),
)
def test_prox_fulfils_its_optimality_condition(rows: int, columns: int, step: float, dtype: torch.dtype, seed: int):
    images = noise(2, 3, rows, columns, dtype=dtype, seed=seed)
    steps = torch.tensor([step, step / 2])
    smooth = proximal(images, steps)
    residual = smooth + steps.view(2, 1, 1, 1) * laplacian(smooth) - images
    assert float(torch.linalg.vector_norm(residual)) < 1e-5 * float(torch.linalg.vector_norm(images))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e-3, 1e6))
def test_optimality_holds_for_any_step_in_double_precision(rows: int, columns: int, step: float):
    # In single precision (I + t Lap) alone would magnify the rounding of the prox by up to 1 + 8 t.
    images = noise(1, rows, columns, dtype=torch.complex128)
    smooth = proximal(images, torch.tensor([step], dtype=torch.float64))
    residual = smooth + step * laplacian(smooth) - images
    assert float(torch.linalg.vector_norm(residual)) < 1e-13 * (1 + 8 * step) * float(torch.linalg.vector_norm(images))


def test_prox_in_single_precision_is_that_in_double_at_full_size():
    images = noise(1, 2, 320, 320, dtype=torch.complex128)
    for step in (0.1, 10.0, 1000.0):
        wide = proximal(images, torch.tensor([step], dtype=torch.float64))
        narrow = proximal(images.to(torch.complex64), torch.tensor([step]))
        gap = torch.linalg.vector_norm(narrow.to(torch.complex128) - wide)
        assert float(gap) < 1e-5 * float(torch.linalg.vector_norm(wide))


def test_spectrum_is_that_of_scipys_first_sine_transform():
    images = noise(1, 6, 11, dtype=torch.float64)
    smooth = proximal(images, torch.tensor([0.4], dtype=torch.float64))
    before, after = (torch.from_numpy(dstn(each[0].numpy(), type=1, norm="ortho")) for each in (images, smooth))
    y, x = (2 - 2 * torch.cos(torch.pi * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)) for n in (6, 11))
    torch.testing.assert_close(after * (1 + 0.4 * (y[:, None] + x)), before)


def test_laplacian_is_the_dense_matrix():
    images = noise(2, 5, 4, dtype=torch.complex128)
    expected = images.reshape(2, 20) @ dense_laplacian(5, 4).to(torch.complex128)
    torch.testing.assert_close(laplacian(images).reshape(2, 20), expected)


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (4, 1, 6), (1, 6, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_energy_is_half_the_inner_product_with_the_laplacian(shape: tuple[int, ...], dtype: torch.dtype):
    images = noise(*shape, dtype=dtype)
    expected = (images.conj() * laplacian(images)).real.flatten(1).sum(1, dtype=torch.float64) / 2
    torch.testing.assert_close(energy(images), expected, rtol=1e-5, atol=0)


def test_laplacian_is_the_gradient_of_the_energy():
    images, direction = noise(1, 6, 7, dtype=torch.complex128), noise(1, 6, 7, dtype=torch.complex128, seed=5)
    slope = (energy(images + 1e-3 * direction) - energy(images - 1e-3 * direction)) / 2e-3
    expected = (laplacian(images).conj() * direction).real.sum((1, 2))
    # A quadratic has no error of its own in central differences.
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=0)


def test_constant_image_pays_at_its_edges():
    assert energy(torch.ones(1, 3, 5)).tolist() == [(2 * 3 + 2 * 5) / 2]


def test_largest_eigenvalue_stays_below_eight():
    norm = operator_norm(lambda image: laplacian(laplacian(image)), noise(20, 20, dtype=torch.float64), 400)
    assert 7.9 < norm < 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_prox_on_the_gpu_keeps_its_digits_where_networks_are_allowed_fewer():
    """CPU twin: `test_prox_in_single_precision_is_that_in_double_at_full_size`."""
    images, step = noise(1, 2, 320, 320, dtype=torch.complex64), torch.tensor([10.0])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        there = proximal(images.cuda(), step.cuda()).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    here = proximal(images, step)
    assert float(torch.linalg.vector_norm(there - here)) < 1e-5 * float(torch.linalg.vector_norm(here))
