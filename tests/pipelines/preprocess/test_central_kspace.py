import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.operators.fourier import to_kspace
from pipelines.operators.nonuniform import NonUniform
from pipelines.phantom import birdcage_coils, head_phantom
from pipelines.preprocess.central_kspace import Centre, central_kspace


def golden(spokes: int, samples: int) -> Tensor:
    angle = np.arange(spokes) * np.pi * (np.sqrt(5) - 1) / 2
    radius = (np.arange(samples) - samples // 2) / samples
    both = np.stack([np.outer(np.cos(angle), radius), np.outer(np.sin(angle), radius)], -1)
    return torch.from_numpy(both.astype(np.float32))[None]


def scan(shape: tuple[int, int], positions: Tensor, n_coils: int = 6) -> tuple[Centre | None, Tensor]:
    """The centre found, and the true one, 24 points along each axis."""
    coils = torch.from_numpy((head_phantom(1, *shape) * birdcage_coils(n_coils, shape)).astype(np.complex64))
    samples = NonUniform(positions, shape)(coils[None, :, None])
    measured = torch.ones(positions.shape[:3], dtype=torch.bool)
    truth = to_kspace(coils)
    for axis in (1, 2):
        n = truth.shape[axis]
        truth = truth.narrow(axis, n // 2 - min(24, n) // 2, min(24, n))
    return central_kspace(samples, positions, measured, shape, 0.0), truth[:, None]


def error(found: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth))


@pytest.mark.parametrize("shape", [(64, 64), (65, 64), (48, 72)])
def test_the_centre_is_that_of_cartesian_kspace(shape: tuple[int, int]):
    centre, truth = scan(shape, golden(80, 160))
    assert centre is not None
    # What lies between points of the cut-off grid is not known exactly.
    assert error(centre.kspace, truth) < 0.03
    assert centre.unexplained < 0.02


def test_gaps_are_filled_by_the_coils_together():
    positions = golden(14, 160)
    centre, truth = scan((64, 64), positions, 8)
    alone, _ = scan((64, 64), positions, 1)
    assert centre is not None
    assert alone is not None
    whole = to_kspace(torch.from_numpy(head_phantom(1, 64, 64)).to(torch.complex64))[:, None, 20:44, 20:44]
    assert error(centre.kspace, truth) < 0.5 * error(alone.kspace, whole)


def test_a_matrix_smaller_than_the_calibration_is_solved_whole():
    centre, truth = scan((16, 20), golden(40, 40))
    assert centre is not None
    assert centre.kspace.shape == truth.shape == (6, 1, 16, 20)


def test_a_trajectory_without_a_centre_gives_none():
    positions = golden(40, 160)
    outer = positions[:, :, torch.linalg.vector_norm(positions[0, 0], dim=-1) > 0.2]
    assert scan((64, 64), outer)[0] is None


def test_an_object_beyond_the_field_of_view_shows_in_what_is_unexplained():
    """The same samples, read as if the field of view were two thirds of what it is."""
    large = 72
    coils = torch.from_numpy((head_phantom(1, large, large) * birdcage_coils(6, (large, large))).astype(np.complex64))
    positions = golden(90, 150)
    measured = torch.ones(positions.shape[:3], dtype=torch.bool)
    samples = NonUniform(positions, (large, large))(coils[None, :, None])
    whole = central_kspace(samples, positions, measured, (large, large), 0.0)
    cut = central_kspace(samples, positions, measured, (48, 48), 0.0)
    assert whole is not None
    assert cut is not None
    assert whole.unexplained < 0.02
    assert cut.unexplained > 0.05
