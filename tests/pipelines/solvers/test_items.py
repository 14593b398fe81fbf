"""Sums of each item against exact ones."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.solvers.items import ROW, inner, squared_norm, total


@pytest.mark.parametrize("n", [1, ROW - 1, ROW, 3 * ROW + 17])
def test_total_of_single_precision_is_exact_to_a_few_units_in_the_last_place(n: int):
    generator = torch.Generator().manual_seed(n)
    values = torch.rand((2, n), generator=generator) * torch.tensor([[1.0], [1e6]])
    exact = [math.fsum(row) for row in values.tolist()]
    assert total(values).dtype == torch.float64
    torch.testing.assert_close(total(values), torch.tensor(exact, dtype=torch.float64), rtol=4e-7, atol=0)


def test_total_of_double_precision_keeps_it():
    values = torch.rand((1, 3 * ROW + 5), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(total(values)) == pytest.approx(math.fsum(values[0].tolist()), rel=1e-14)


def test_inner_product_of_complex_items_is_the_real_part():
    a = torch.tensor([[1 + 2j, 3 - 1j]], dtype=torch.complex64)
    b = torch.tensor([[2 - 1j, 1 + 1j]], dtype=torch.complex64)
    assert inner(a, b).tolist() == [2.0]
    assert inner(a.conj(), b).tolist() == [8.0]
    assert squared_norm(a).tolist() == [15.0]
