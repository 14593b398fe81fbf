"""Inner products and numbers of each item of a batch, whose leading axis counts the items."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

ROW = 1024


def inner(a: Tensor, b: Tensor) -> Float64[Tensor, "items"]:
    """Real part of `<a, b>` of each item, accumulated in double precision."""
    return total(_real(a) * _real(b))


def squared_norm(a: Tensor) -> Float64[Tensor, "items"]:
    """`<a, a>` of each item, accumulated in double precision."""
    return total(_real(a).square())


def total(values: Tensor) -> Float64[Tensor, "items"]:
    """Sum of all real values of each item, accumulated in double precision.

    Rows of `ROW` values are summed in the precision that they have, by halves, which costs a few units in the last
    place; double precision from the first value on would have to copy all of them.
    """
    flat = values.reshape(values.shape[0], -1)
    whole = flat.shape[1] // ROW * ROW
    rows = flat[:, :whole].reshape(flat.shape[0], whole // ROW, ROW).sum(2)
    return rows.sum(1, dtype=torch.float64) + flat[:, whole:].sum(1, dtype=torch.float64)


def spread(number: Tensor, like: Tensor) -> Tensor:
    """One number an item, in the shape (and for numbers the real precision) that goes with `like`."""
    typed = number if number.dtype == torch.bool else number.to(like.dtype.to_real())
    return typed.view(-1, *(1 for _ in like.shape[1:]))


def _real(a: Tensor) -> Tensor:
    """Each item as one row of real numbers."""
    return (torch.view_as_real(a.resolve_conj()) if a.is_complex() else a).reshape(a.shape[0], -1)
