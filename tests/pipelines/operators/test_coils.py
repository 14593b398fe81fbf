"""Sums over coils against numpy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.operators.coils import along_coils, power_of_coils


@pytest.mark.parametrize("is_conjugate", [False, True])
def test_sums_over_coils_equal_those_of_numpy(is_conjugate: bool):
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn((2, 2, 5, 7, 6), dtype=torch.complex64, generator=generator)
    if is_conjugate:
        a = a.conj()
    x, y = (each.numpy().astype(np.complex128) for each in (a.resolve_conj(), b))
    np.testing.assert_allclose(power_of_coils(a), (np.abs(x) ** 2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(along_coils(a, b), (x.conj() * y).real.sum(1), rtol=1e-4, atol=1e-5)


def test_order_of_the_values_in_memory_does_not_matter():
    generator = torch.Generator().manual_seed(4)
    a = torch.randn((1, 3, 8, 9), dtype=torch.complex64, generator=generator)
    turned = a.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(power_of_coils(turned), power_of_coils(a))
