"""Products of coil images, summed over coils; in the order that memory likes.

A sum over the coils first reads whole planes; one over the two parts of each complex number first takes ten times as
long (8 coils, 270 x 256, one thread: 2.6 ms against 0.25 ms).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def power_of_coils(coils: Complex[Tensor, "items coils y x"]) -> Float[Tensor, "items y x"]:
    """`sum_c |coils_c|^2`."""
    parts = torch.view_as_real(coils.resolve_conj()).square().sum(1)
    return parts[..., 0] + parts[..., 1]


def along_coils(
    a: Complex[Tensor, "items coils y x"], b: Complex[Tensor, "items coils y x"]
) -> Float[Tensor, "items y x"]:
    """`sum_c Re(conj(a_c) b_c)`."""
    parts = (torch.view_as_real(a.resolve_conj()) * torch.view_as_real(b.resolve_conj())).sum(1)
    return parts[..., 0] + parts[..., 1]
