"""Priors of a low-rank background and a sparse dynamic part of frames: untrained networks, or the parts themselves.

    r(f, g) = lambda_L |f|_* + lambda_S |F_t g|_1    with sum_t g_t = 0

|f|_* is the nuclear norm of the matrix of frames by pixels, F_t the unitary Fourier transform over the frames. What
does not move is of rank one and sparse in F_t alike; so that it belongs to f, g has no mean.

`FreePriors` lets f and g be anything, and with them `pipelines.solvers.admm` finds the convex L+S optimum.
`NetworkPriors` lets them be what two U-Nets bring forth (`models.deep_prior`), both norms rounded off at zero:

    |f|_* ~ sum_i sqrt(s_i^2 + eps_L^2),    |F_t g|_1 ~ sum sqrt(|F_t g|^2 + eps_S^2),    s_i the singular values of f.

Gradients by f and g are written out; autograd sees the networks alone. With the eigenvectors V and eigenvalues s_i^2 of
the small matrix `f f^H` of frames by frames that of the nuclear norm is `V diag((s_i^2 + eps_L^2)^(-1/2)) V^H f`, also
where singular values are zero or equal, at which a derivative of the eigenvectors would not be a number.

References: Ulyanov, Vedaldi, Lempitsky 2018, arXiv 1711.10925; Otazo, Candès, Sodickson 2015, doi 10.1002/mrm.25240;
Kingma and Ba 2015, arXiv 1412.6980 (Adam).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Complex64
from torch import Tensor

from models.deep_prior import DeepPriorConfiguration, DeepPriors
from pipelines.solvers.low_rank import nuclear_norm, shrink_singular_values, shrink_temporal_spectrum, temporal_l1

ROUNDING = 1e-3
"""eps_L and eps_S in units of the largest singular value and temporal frequency of A^H y."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """What the networks pay.

    Attributes:
        low_rank: lambda_L, in the units of singular values of A^H y.
        sparse: lambda_S, in the units of a pixel of A^H y.
        low_rank_rounding: eps_L.
        sparse_rounding: eps_S.
    """

    low_rank: float
    sparse: float
    low_rank_rounding: float
    sparse_rounding: float


def penalties_of(right_side: Complex[Tensor, "frames pixels"], low_rank: float, sparse: float) -> Penalties:
    """Penalties rounded off for frames of the size of A^H y.

    Raises:
        ValueError: A^H y is zero.
    """
    frequencies: Tensor = torch.fft.fft(right_side, dim=0, norm="ortho").abs()
    largest = float(torch.linalg.eigvalsh(right_side @ right_side.mH)[-1].clamp(min=0).sqrt())
    if largest == 0:
        raise ValueError("there is no signal in the frames")
    return Penalties(low_rank, sparse, ROUNDING * largest, ROUNDING * float(frequencies.max()))


class FreePriors:
    """Parts that may be anything; a step is exact.

    Args:
        start: f and g.
        low_rank: lambda_L.
        sparse: lambda_S.
    """

    def __init__(self, start: Complex[Tensor, "2 frames pixels"], *, low_rank: float, sparse: float) -> None:
        self._parts = self._saved = start
        self._low_rank, self._sparse = low_rank, sparse

    def parts(self) -> Complex[Tensor, "2 frames pixels"]:
        """Background f and dynamic part g."""
        return self._parts

    def value(self) -> float:
        """r(f, g)."""
        low_rank, sparse = self._parts[:, None]
        return float(self._low_rank * nuclear_norm(low_rank) + self._sparse * temporal_l1(sparse))

    def step(self, targets: Complex[Tensor, "2 frames pixels"], rho: float, _rate_scale: float) -> None:
        """The minimiser of `r(f, g) + rho/2 |(f, g) - targets|^2`, at any rate."""
        low_rank, sparse = targets[:, None]
        limits = torch.tensor([[self._low_rank], [self._sparse]], dtype=torch.float64, device=targets.device) / rho
        self._parts = torch.cat(
            [
                shrink_singular_values(low_rank, limits[0]),
                shrink_temporal_spectrum(sparse, limits[1], without_mean=True),
            ]
        )

    def save(self) -> None:
        """Remember f and g."""
        self._saved = self._parts

    def restore(self) -> None:
        """Return to those saved."""
        self._parts = self._saved


class NetworkPriors:
    """Parts that two networks bring forth; a step is some of Adam's. Works inside `torch.inference_mode` too.

    The loss of a step is `(r(f, g) + rho/2 |(f, g) - targets|^2) / (frames rho)`. Adam's moments live on from one step
    to the next and are saved and restored together with the weights.

    Args:
        configuration: size of each network.
        frames: of a slice.
        shape: y and x of a frame.
        seeds: of the network of the background and of that of the dynamic part.
        penalties: lambda and eps of both.
        to_rows: images `(frames, 1, y, x)` in the solver's order of pixels `(frames, pixels)`.
        to_images: the other way.
        adam_steps: of one step.
        rate: of Adam.
        device: where the networks compute.
    """

    def __init__(
        self,
        configuration: DeepPriorConfiguration,
        frames: int,
        shape: tuple[int, int],
        seeds: tuple[int, int],
        *,
        penalties: Penalties,
        to_rows: Callable[[Tensor], Tensor],
        to_images: Callable[[Tensor], Tensor],
        adam_steps: int = 10,
        rate: float = 5e-3,
        device: torch.device | None = None,
    ) -> None:
        self._penalties, self._frames, self._adam_steps, self._rate = penalties, frames, adam_steps, rate
        self._to_rows, self._to_images = to_rows, to_images
        with torch.inference_mode(mode=False):  # weights made in it could never give a gradient
            self._networks = DeepPriors(configuration, frames, shape, seeds).to(device or torch.device("cpu"))
            self._optimiser = torch.optim.Adam(self._networks.parameters(), rate)
            with torch.no_grad():
                self._parts = self._parts_of(self._networks())
        self._saved: tuple[Any, Any, Tensor] | None = None

    def parts(self) -> Complex64[Tensor, "2 frames pixels"]:
        """Background f and dynamic part g."""
        return self._parts

    def value(self) -> float:
        """r(f, g), rounded off."""
        return self._penalty(self._parts)[0]

    def step(self, targets: Complex64[Tensor, "2 frames pixels"], rho: float, rate_scale: float) -> None:
        """Move the networks' weights."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            wanted = targets.clone()
            for group in self._optimiser.param_groups:
                group["lr"] = self._rate * rate_scale
            for _ in range(self._adam_steps):
                images = self._networks()
                with torch.no_grad():
                    parts = self._parts_of(images)
                    slope = self._penalty(parts)[1] + rho * (parts - wanted)
                    gradient = self._images_of(slope / (self._frames * rho))
                self._optimiser.zero_grad()
                torch.autograd.backward(images, gradient)
                self._optimiser.step()
            with torch.no_grad():
                self._parts = self._parts_of(self._networks())

    def save(self) -> None:
        """Remember weights, moments and parts."""
        with torch.inference_mode(mode=False):
            self._saved = *copy.deepcopy((self._networks.state_dict(), self._optimiser.state_dict())), self._parts

    def restore(self) -> None:
        """Return to those saved.

        Raises:
            RuntimeError: nothing was saved.
        """
        if self._saved is None:
            raise RuntimeError("nothing was saved")
        weights, moments, self._parts = self._saved
        with torch.inference_mode(mode=False):
            self._networks.load_state_dict(weights)
            self._optimiser.load_state_dict(copy.deepcopy(moments))  # it takes tensors as its own

    def _parts_of(self, images: Complex64[Tensor, "2 frames y x"]) -> Tensor:
        """The parts that the networks' images stand for."""
        background, dynamics = (self._to_rows(each[:, None]) for each in images)
        return torch.stack([background, dynamics - dynamics.mean(0)])

    def _images_of(self, parts: Tensor) -> Complex64[Tensor, "2 frames y x"]:
        """The adjoint of `_parts_of`."""
        background, dynamics = parts
        return torch.stack([self._to_images(each)[:, 0] for each in (background, dynamics - dynamics.mean(0))])

    def _penalty(self, parts: Tensor) -> tuple[float, Tensor]:
        """The penalty r and its gradient."""
        each = self._penalties
        low_rank, by_low_rank = smooth_nuclear_norm(parts[0], each.low_rank_rounding)
        sparse, by_sparse = smooth_temporal_l1(parts[1], each.sparse_rounding)
        gradient = torch.stack([each.low_rank * by_low_rank, each.sparse * by_sparse])
        return each.low_rank * low_rank + each.sparse * sparse, gradient


def smooth_nuclear_norm(
    matrix: Complex[Tensor, "frames pixels"], rounding: float
) -> tuple[float, Complex[Tensor, "frames pixels"]]:
    """`sum_i sqrt(s_i^2 + eps^2)` of the singular values, and its gradient (by the real plus i by the imaginary part).

    Args:
        matrix: few frames by many pixels.
        rounding: eps, positive.
    """
    with torch.no_grad():
        squares, vectors = torch.linalg.eigh((matrix @ matrix.mH).to(torch.complex128))
        values = (squares.clamp(min=0) + rounding**2).sqrt()
        mixing = (vectors / values) @ vectors.mH
        return float(values.sum()), mixing.to(matrix.dtype) @ matrix


def smooth_temporal_l1(
    matrix: Complex[Tensor, "frames pixels"], rounding: float
) -> tuple[float, Complex[Tensor, "frames pixels"]]:
    """`sum sqrt(|F_t X|^2 + eps^2)`, and its gradient (by the real plus i by the imaginary part).

    Args:
        matrix: X.
        rounding: eps, positive.
    """
    with torch.no_grad():
        spectrum: Tensor = torch.fft.fft(matrix, dim=0, norm="ortho")
        sizes = (spectrum.abs().square() + rounding**2).sqrt()
        gradient: Tensor = torch.fft.ifft(spectrum / sizes, dim=0, norm="ortho")
        return float(sizes.sum(dtype=torch.float64)), gradient
