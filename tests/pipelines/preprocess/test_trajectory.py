import numpy as np
import pytest
import torch

from pipelines.errors import BudgetError, ReconstructionError
from pipelines.preprocess.trajectory import image_grid, place_samples
from pipelines.scan_header import Encoding, Space, TrajectoryType


def encoding(
    matrix: tuple[int, int, int] = (64, 64, 1),
    encoded_mm: tuple[float, float] = (128.0, 128.0),
    recon: tuple[int, int] = (64, 64),
    recon_mm: tuple[float, float] = (128.0, 128.0),
) -> Encoding:
    return Encoding(Space(matrix, (*encoded_mm, 5.0)), Space((*recon, 1), (*recon_mm, 5.0)), TrajectoryType.RADIAL)


def spokes(farthest_x: float, farthest_y: float, dimensions: int = 2) -> torch.Tensor:
    """Two readouts, one along each axis."""
    steps = torch.linspace(-1, 1, 9)
    trajectory = torch.zeros(1, 2, 9, dimensions)
    trajectory[0, 0, :, 0] = farthest_x * steps
    trajectory[0, 1, :, 1] = farthest_y * steps
    return trajectory


ROWS = torch.ones(1, 1, 2)


@pytest.mark.parametrize(
    ("matrix", "encoded_mm", "recon_mm", "expected"),
    [
        ((64, 64, 1), (128.0, 128.0), (128.0, 128.0), (64, 64)),
        ((128, 128, 1), (256.0, 256.0), (128.0, 128.0), (64, 64)),
        ((128, 1, 1), (256.0, 1.0), (128.0, 96.0), (48, 64)),
        ((64, 64, 1), (128.0, 128.0), (100.1, 100.1), (51, 51)),
        ((64, 64, 1), (0.0, 0.0), (128.0, 128.0), (40, 50)),
        ((64, 64, 1), (128.0, 128.0), (0.0, 0.0), (40, 50)),
    ],
)
def test_the_grid_spans_the_recon_field_of_view_with_the_encoded_pixel_of_x(matrix, encoded_mm, recon_mm, expected):
    assert image_grid(encoding(matrix, encoded_mm, (50, 40), recon_mm), 1) == expected


def test_a_grid_that_is_too_large_is_refused_before_memory_is_taken():
    with pytest.raises(BudgetError, match="above the limit"):
        image_grid(encoding((16384, 16384, 1), (1.0, 1.0), (64, 64), (90000.0, 90000.0)), 8)


@pytest.mark.parametrize(
    ("units", "farthest"),
    [("cycles_per_pixel", 0.5), ("radians_per_pixel", np.pi), ("cycles_per_fov", 32.0)],
)
def test_units_are_told_from_the_farthest_sample_or_from_the_parameter(units: str, farthest: float):
    trajectory = spokes(farthest, farthest)
    expected = spokes(0.5, 0.5)
    for asked in ("auto", units):
        positions, measured, warnings = place_samples(trajectory, ROWS, asked, encoding(), (64, 64))
        torch.testing.assert_close(positions, expected)
        assert bool(measured.all())
        assert warnings == []


def test_each_axis_has_cycles_over_its_own_field_of_view():
    its = encoding(recon_mm=(128.0, 96.0))
    positions, _, _ = place_samples(spokes(32.0, 24.0), ROWS, "auto", its, image_grid(its, 1))
    torch.testing.assert_close(positions, spokes(0.5, 0.5))


def test_positions_follow_pixels_that_were_made_smaller_to_fit():
    its = encoding(recon_mm=(100.1, 128.0))
    positions, _, _ = place_samples(spokes(0.5, 0.5), ROWS, "auto", its, image_grid(its, 1))
    # 100.1 mm are 50.05 pixels of 2 mm: 51 pixels of 1.963 mm.
    torch.testing.assert_close(positions, spokes(0.5 * 50.05 / 51, 0.5))


@pytest.mark.parametrize("farthest", [0.8, 1.5, 2.1])
def test_units_that_cannot_be_told_are_refused(farthest: float):
    with pytest.raises(ReconstructionError, match="trajectory_units"):
        place_samples(spokes(farthest, farthest), ROWS, "auto", encoding(), (64, 64))
    place_samples(spokes(farthest, farthest), ROWS, "radians_per_pixel", encoding(), (64, 64))


def test_a_trajectory_of_zeros_is_refused():
    with pytest.raises(ReconstructionError, match="zero everywhere"):
        place_samples(spokes(0.0, 0.0), ROWS, "auto", encoding(), (64, 64))


def test_positions_beyond_the_grid_are_left_out_and_counted():
    trajectory = spokes(0.5, 0.5)
    trajectory[0, 0, -1, 0] = 0.6
    positions, measured, warnings = place_samples(trajectory, ROWS, "cycles_per_pixel", encoding(), (64, 64))
    assert int((~measured).sum()) == 1
    assert not bool(measured[0, 0, -1])
    assert float(positions.abs().max()) <= 0.5
    assert warnings == ["1 of 18 samples lie beyond the k-space of the image grid and are left out."]


def test_hardly_a_sample_on_the_grid_is_refused():
    with pytest.raises(ReconstructionError, match="check the encoded"):
        place_samples(spokes(4.0, 4.0), ROWS, "cycles_per_pixel", encoding(), (64, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_positions_that_are_not_finite_are_left_out_and_counted(value: float):
    trajectory = spokes(0.5, 0.5)
    trajectory[0, 1, 2] = value
    positions, measured, warnings = place_samples(trajectory, ROWS, "auto", encoding(), (64, 64))
    assert bool(torch.isfinite(positions).all())
    assert int((~measured).sum()) == 1
    assert warnings == ["1 of 18 samples have a position that is not finite and are left out."]


def test_rows_without_a_readout_carry_nothing():
    trajectory = spokes(0.5, 0.5)
    trajectory[0, 1] = 77.0
    _, measured, warnings = place_samples(trajectory, torch.tensor([[[1.0, 0.0]]]), "auto", encoding(), (64, 64))
    assert bool(measured[0, 0].all())
    assert not bool(measured[0, 1].any())
    assert warnings == []


@pytest.mark.parametrize(("third", "n_warnings"), [(0.0, 0), (0.3, 1)])
def test_a_third_dimension_is_ignored_and_said_when_it_is_not_zero(third: float, n_warnings: int):
    trajectory = spokes(0.5, 0.5, dimensions=3)
    trajectory[..., 2] = third
    positions, _, warnings = place_samples(trajectory, ROWS, "auto", encoding(), (64, 64))
    torch.testing.assert_close(positions, spokes(0.5, 0.5))
    assert len(warnings) == n_warnings
    assert all("third dimension" in each for each in warnings)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_partitions_are_refused(dimensions: int):
    with pytest.raises(ReconstructionError, match="8 partitions"):
        place_samples(spokes(0.5, 0.5, dimensions), ROWS, "auto", encoding((64, 64, 8)), (64, 64))


def test_one_dimension_is_refused():
    with pytest.raises(ReconstructionError, match="needs 2 dimensions"):
        place_samples(spokes(0.5, 0.5)[..., :1], ROWS, "auto", encoding(), (64, 64))


def test_no_readout_is_refused():
    with pytest.raises(ReconstructionError, match="no readout was measured"):
        place_samples(spokes(0.5, 0.5), torch.zeros(1, 1, 2), "cycles_per_pixel", encoding(), (64, 64))
