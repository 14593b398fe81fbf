"""Many coils made into few virtual ones that keep nearly all of the signal.

The rows of the compression are orthonormal, so whitened noise stays white and the noise level does not change.

Reference: Buehrer 2007, doi 10.1002/mrm.21237; Huang 2008, doi 10.1016/j.mri.2007.04.010.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex64
from torch import Tensor


def compression_matrix(
    signal: Complex64[Tensor, "coils samples"], n_virtual: int
) -> Complex64[Tensor, "virtual coils"]:
    """The `n_virtual` directions in coil space that hold most energy, as rows to multiply whitened samples with.

    Args:
        signal: whitened samples with signal in them, best the calibration region.
        n_virtual: virtual coils wanted; more than there are coils means all.

    The vectors come from the covariance in double precision on the CPU (it is coils by coils) and have a fixed phase
    (largest entry real and positive), so that the same data always give the same matrix.
    """
    covariance = (signal @ signal.mH).to("cpu", torch.complex128)
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : min(n_virtual, signal.shape[0])].mH
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    matrix: Tensor = vectors * (largest.conj() / largest.abs())
    return matrix.to(signal.device, torch.complex64)


def compress(
    kspace: Complex64[Tensor, "... coils z y x"], matrix: Complex64[Tensor, "virtual coils"]
) -> Complex64[Tensor, "... virtual z y x"]:
    """Virtual coils of whitened k-space."""
    *outer, coils, z, y, x = kspace.shape
    return (matrix @ kspace.reshape(*outer, coils, -1)).reshape(*outer, matrix.shape[0], z, y, x)
