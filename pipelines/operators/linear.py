"""What a linear operator offers: call, `adjoint`, `normal` and `@`.

Knows nothing of MRI. Solvers take an operator's methods as plain callables and never see this class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class LinearOperator(ABC):
    """A linear map A from one tensor to one tensor.

    The inner product is `<u, v> = sum conj(u) v` on both sides; `adjoint` is exact for it (tested to 1e-5 in
    complex64).
    """

    @abstractmethod
    def __call__(self, tensor: Tensor, /) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, tensor: Tensor, /) -> Tensor:
        """A^H y."""

    def normal(self, tensor: Tensor, /) -> Tensor:
        """A^H A x; operators with a faster form replace this."""
        return self.adjoint(self(tensor))

    def __matmul__(self, first: LinearOperator) -> LinearOperator:
        """The operator that applies `first`, then this one."""
        return Composition(self, first)


class Composition(LinearOperator):
    """Two operators in a row: `second(first(x))`."""

    def __init__(self, second: LinearOperator, first: LinearOperator) -> None:
        self._second = second
        self._first = first

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """A B x."""
        return self._second(self._first(tensor))

    def adjoint(self, tensor: Tensor, /) -> Tensor:
        """B^H A^H y."""
        return self._first.adjoint(self._second.adjoint(tensor))

    def normal(self, tensor: Tensor, /) -> Tensor:
        """B^H (A^H A) B x, so that a fast normal operator inside a chain is used."""
        return self._first.adjoint(self._second.normal(self._first(tensor)))
