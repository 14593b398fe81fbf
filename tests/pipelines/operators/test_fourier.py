"""The centred transform against its definition as a sum."""

import numpy as np
import pytest
import torch

from pipelines.operators.fourier import Fourier, to_image, to_kspace, uncentred


def dense_transform(n: int) -> torch.Tensor:
    """`exp(-2 pi i k x / n) / sqrt(n)` with both indices counted from n//2."""
    index = np.arange(n) - n // 2
    return torch.from_numpy(np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n))


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 12, 15])
def test_transform_is_the_centred_orthonormal_sum(n: int):
    image = torch.randn(3, n, dtype=torch.complex128, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(to_kspace(image, (-1,)), image @ dense_transform(n).mT)
    torch.testing.assert_close(to_image(image, (-1,)), image @ dense_transform(n).conj())


@pytest.mark.parametrize("n", [7, 8])
def test_a_constant_image_lies_in_the_centre_of_kspace(n: int):
    kspace = to_kspace(torch.ones(n, n, dtype=torch.complex64))
    assert kspace[n // 2, n // 2].real == pytest.approx(n, rel=1e-6)
    kspace[n // 2, n // 2] = 0
    assert float(kspace.abs().max()) < 1e-5


@pytest.mark.parametrize("shape", [(6, 8), (5, 9), (5, 8)])
def test_weights_in_fft_order_need_no_shift_of_the_image(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(shape, dtype=torch.complex128, generator=generator)
    weights = torch.rand(shape, dtype=torch.float64, generator=generator)
    centred = to_image(weights * to_kspace(image))
    plain = torch.fft.ifftn(uncentred(weights, (-2, -1)) * torch.fft.fftn(image))
    torch.testing.assert_close(plain, centred)


def test_transform_is_unitary():
    fourier = Fourier((-3, -1))
    image = torch.randn(4, 5, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fourier.adjoint(fourier(image)), image)
    torch.testing.assert_close(fourier.normal(image), image)
