"""Interpolation of directions against a field known everywhere."""

import math

import pytest
import torch
from torch import Tensor

from pipelines.preprocess.interpolation import interpolate, interpolate_directions


def vortex(shape: tuple[int, int, int], centre: tuple[float, float] = (0.1, -0.15)) -> Tensor:
    """Unit vectors `(z, y, x, 3)` on a periodic grid; the first component is zero at single points and winds there."""
    z, y, x = (torch.arange(n, dtype=torch.float64) / n - (n // 2) / n for n in shape)
    first = torch.complex(torch.sin(2 * math.pi * (x - centre[1])), torch.sin(2 * math.pi * (y[:, None] - centre[0])))
    second = torch.polar(torch.ones(shape[1]).double(), 0.3 * torch.cos(2 * math.pi * y))[:, None].expand(shape[1:])
    along_z = 1 + 0.2 * torch.cos(2 * math.pi * z)[:, None, None]
    field = torch.stack(
        [0.8 * first * along_z, second.expand(shape), (0.5 * along_z + 0 * first.real).to(first.dtype)], -1
    )
    return (field / torch.linalg.vector_norm(field, dim=-1, keepdim=True)).to(torch.complex64)


def with_random_phase(vectors: Tensor) -> Tensor:
    angles = 2 * math.pi * torch.rand(vectors.shape[:-1], generator=torch.Generator().manual_seed(4))
    return vectors * torch.polar(torch.ones_like(angles), angles)[..., None]


def direction_error(found: Tensor, truth: Tensor) -> Tensor:
    """Sine of the angle between `(components, z, y, x)` and `(z, y, x, components)`."""
    found = found / torch.linalg.vector_norm(found, dim=0)
    likeness = torch.linalg.vecdot(found.movedim(0, -1), truth).abs()
    return (1 - likeness.square()).clamp(min=0).sqrt()


@pytest.mark.parametrize(
    ("coarse", "fine"),
    [((1, 24, 30), (1, 96, 90)), ((1, 25, 24), (1, 61, 100)), ((12, 24, 24), (20, 40, 24)), ((1, 40, 24), (1, 40, 64))],
)
def test_directions_are_right_everywhere_whatever_the_phase_of_the_vectors(
    coarse: tuple[int, int, int], fine: tuple[int, int, int]
):
    found = interpolate_directions(with_random_phase(vortex(coarse)), torch.ones(fine, dtype=torch.bool))
    error = direction_error(found, vortex(fine))
    # Lanczos of reach 4 on 12 to 30 points a period.
    assert float(error.max()) < 0.03
    assert float(found[0].imag.abs().max()) < 1e-5
    assert float(found[0].real.min()) > -1e-5


def test_a_common_gauge_alone_would_be_wrong_at_the_vortex():
    coarse, fine = vortex((1, 24, 30)), (1, 96, 90)
    turned = coarse * torch.sgn(coarse[..., :1]).conj()
    error = direction_error(interpolate(turned.movedim(-1, 0), fine), vortex(fine))
    assert float(error.max()) > 0.2


def test_only_pixels_inside_are_interpolated_in_a_gauge_of_their_own():
    coarse, fine = with_random_phase(vortex((1, 24, 30))), (1, 96, 90)
    nowhere = interpolate_directions(coarse, torch.zeros(fine, dtype=torch.bool))
    everywhere = interpolate_directions(coarse, torch.ones(fine, dtype=torch.bool))
    inside = torch.zeros(fine, dtype=torch.bool)
    inside[:, :48] = True
    half = interpolate_directions(coarse, inside)
    torch.testing.assert_close(half[:, inside], everywhere[:, inside])
    torch.testing.assert_close(half[:, ~inside], nowhere[:, ~inside])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (3, 5, 2)])
def test_tiny_grids_are_interpolated(shape: tuple[int, int, int]):
    vectors = with_random_phase(vortex(shape))
    fine = (shape[0], 3 * shape[1], 2 * shape[2])
    found = interpolate_directions(vectors, torch.ones(fine, dtype=torch.bool))
    assert found.shape == (3, *fine)
    assert bool(torch.isfinite(torch.view_as_real(found)).all())


def test_a_first_component_of_zero_does_not_lose_the_vector():
    vectors = torch.zeros(1, 4, 4, 2, dtype=torch.complex64)
    vectors[..., 1] = 1j
    found = interpolate_directions(vectors, torch.ones((1, 8, 8), dtype=torch.bool))
    torch.testing.assert_close(found.abs()[1], torch.ones(1, 8, 8))
