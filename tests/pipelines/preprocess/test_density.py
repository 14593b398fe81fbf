import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.operators.nonuniform import NonUniform
from pipelines.phantom import head_phantom
from pipelines.preprocess.density import density_weights


def radial(spokes: int, samples: int) -> Tensor:
    angle = np.arange(spokes) * np.pi / spokes
    radius = (np.arange(samples) - samples // 2) / samples
    both = np.stack([np.outer(np.cos(angle), radius), np.outer(np.sin(angle), radius)], -1)
    return torch.from_numpy(both.astype(np.float32))


def all_of(positions: Tensor) -> Tensor:
    return torch.ones(positions.shape[:2], dtype=torch.bool)


def cartesian(rows: int, columns: int) -> Tensor:
    ky, kx = torch.meshgrid(*((torch.arange(n) - n // 2) / n for n in (rows, columns)), indexing="ij")
    return torch.stack([kx, ky], -1)


@pytest.mark.parametrize("shape", [(32, 32), (33, 40)])
def test_a_point_of_the_cartesian_grid_stands_for_one_cell(shape: tuple[int, int]):
    weights = density_weights(cartesian(*shape), all_of(cartesian(*shape)), shape)
    inner = weights[3:-3, 3:-3]
    assert float((inner - 1).abs().max()) < 0.05


@pytest.mark.parametrize("repeats", [2, 5])
def test_repeated_samples_share_their_area(repeats: int):
    positions = cartesian(24, 24)
    once = density_weights(positions, all_of(positions), (24, 24))
    again = positions.repeat(repeats, 1, 1)
    shared = density_weights(again, all_of(again), (24, 24))
    torch.testing.assert_close(shared[:24] * repeats, once, rtol=1e-2, atol=1e-3)


def test_weights_of_radial_readouts_are_the_ramp():
    n, spokes = 48, 160
    positions = radial(spokes, 2 * n)
    weights = density_weights(positions, all_of(positions), (n, n))
    radius = torch.linalg.vector_norm(positions, dim=-1)
    # A ring of width 1/(2n) over the samples in it, in cells of 1/n by 1/n.
    ramp = np.pi * radius / spokes / (2 * n) * n**2
    middle = (radius > 0.08) & (radius < 0.42)
    assert float(((weights - ramp) / ramp)[middle].abs().max()) < 0.05


@pytest.mark.parametrize("spokes", [24, 48, 96, 160])
def test_weights_add_up_to_the_area_that_was_reached(spokes: int):
    n = 48
    positions = radial(spokes, 2 * n)
    weights = density_weights(positions, all_of(positions), (n, n))
    disc = np.pi / 4 * n**2
    reached = float(weights.sum()) / disc
    # Gaps of up to two cells are filled: with fewer spokes a part of the rim is counted as not reached.
    farthest_gap = np.pi / spokes * n / 2
    assert reached < 1.1
    if farthest_gap < 2:
        assert reached > 0.9


def test_weights_are_positive_where_measured_and_zero_elsewhere():
    positions = radial(13, 40)
    measured = torch.rand(13, 40, generator=torch.Generator().manual_seed(1)) > 0.4
    weights = density_weights(positions, measured, (20, 24))
    assert bool((weights[measured] > 0).all())
    assert not weights[~measured].any()


def test_samples_that_do_not_exist_change_nothing():
    positions = radial(20, 40)
    measured = all_of(positions)
    measured[10:] = False
    weights = density_weights(positions, measured, (20, 20))
    torch.testing.assert_close(weights[:10], density_weights(positions[:10], measured[:10], (20, 20)))


@pytest.mark.parametrize("spokes", [32, 64, 160])
def test_tissue_keeps_its_brightness(spokes: int):
    n = 48
    image = torch.from_numpy(head_phantom(1, n, n)).to(torch.complex64)[None]
    positions = radial(spokes, 2 * n)
    operator = NonUniform(positions[None], (n, n))
    compensated = operator(image) * density_weights(positions, all_of(positions), (n, n))
    found, truth = operator.adjoint(compensated).abs(), image.abs()
    inside = truth > 0.1
    assert abs(float((found * truth)[inside].sum() / truth[inside].square().sum()) - 1) < 0.05
