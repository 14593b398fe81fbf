"""Readouts onto the columns of the grid: reversed ones of any size, and sampling on gradient ramps."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly import ramps
from pipelines.assembly.ramps import RampSampling, ramp_sampling, sample_positions, solve_gridding
from pipelines.errors import AssemblyError
from pipelines.mrd import AcquisitionFlag as F
from pipelines.readout_gradient import Trapezoid
from pipelines.scan_header import Encoding, Space, TrajectoryType

Streams = Any
GRADIENT = Trapezoid(ramp_up=100, flat_top=300, ramp_down=100, delay=10, dwell=5)


@settings(max_examples=60, deadline=None)
@given(
    n_x=st.integers(4, 13),
    data=st.data(),
)
def test_reversed_readouts_lie_where_plain_code_puts_them(streams: Streams, n_x: int, data: st.DataObject):
    """Any length and echo position that fits, discards too (gadgetron#1199: asymmetric reversed echoes)."""
    before = data.draw(st.integers(0, n_x // 2))
    after = data.draw(st.integers(0, n_x - n_x // 2 - 1))
    n_samples = before + after + 1
    discard = data.draw(st.tuples(st.integers(0, before), st.integers(0, after)))
    scan = streams.scan(4, n_x)
    # read from the far end: what lies after the centre comes first
    shape = {"samples": n_samples, "center": after, "discard": discard[::-1]}
    readouts = [streams.readout(line, F.IS_REVERSE, **shape) for line in range(4)]

    (group,), assembler = streams.assemble(scan, readouts)

    ((kspace, counts),) = streams.place_plainly([streams.as_ismrmrd(each) for each in readouts], scan).values()
    np.testing.assert_array_equal(group.kspace[0], kspace)
    np.testing.assert_array_equal(group.reversed_counts[0], counts)
    assert assembler.take_warnings() == []


@pytest.mark.parametrize("n_x", [4, 6, 12])
def test_a_full_reversed_row_about_its_middle_leaves_out_its_first_sample(streams: Streams, n_x: int):
    readouts = [streams.readout(line, F.IS_REVERSE, samples=n_x, center=n_x // 2) for line in range(4)]

    (group,), assembler = streams.assemble(streams.scan(4, n_x), readouts)

    sent = readouts[1].complex_samples()[0]
    np.testing.assert_array_equal(group.kspace[0, :, 0, 1, n_x // 2], sent[:, n_x // 2])
    np.testing.assert_array_equal(group.kspace[0, :, 0, 1, 0], 0)  # +n/2, where it was taken, is not on the grid
    np.testing.assert_array_equal(group.kspace[0, :, 0, 1, 1:], sent[:, :0:-1])
    assert assembler.take_warnings() == []


def test_reversed_lines_are_told_apart_from_forward_ones(streams: Streams):
    readouts = [
        streams.readout(line, *([F.IS_REVERSE] if line % 2 else []), center=2 + (line + 1) % 2) for line in range(8)
    ]
    (group,), _ = streams.assemble(streams.scan(), readouts)
    assert group.reversed_counts[0, 0].tolist() == [0, 1] * 4

    forward, _ = streams.assemble(streams.scan(), [streams.readout(line) for line in range(8)])
    assert forward[0].reversed_counts is None


@settings(max_examples=30, deadline=None)
@given(
    n_columns=st.sampled_from([32, 33, 48]),
    up=st.integers(40, 150),
    down=st.integers(40, 150),
    seed=st.integers(0, 99),
)
def test_gridding_brings_back_kspace_that_decays(n_columns: int, up: int, down: int, seed: int):
    gradient = Trapezoid(ramp_up=up, flat_top=250, ramp_down=down, delay=15)
    n_samples = 2 * n_columns
    dwell_us = (up + 250 + down - 30) / n_samples
    positions = sample_positions(gradient, n_samples, dwell_us, n_columns)
    assert positions is not None
    # an object inside the field of view whose k-space is known in closed form: Gaussians
    rng = np.random.default_rng(seed)
    at, width = rng.uniform(-0.2, 0.2, 4), rng.uniform(0.03, 0.05, 4)

    def kspace(k: Any) -> Any:
        return (np.exp(-2 * (np.pi * width * k[:, None]) ** 2) * np.exp(-2j * np.pi * at * k[:, None])).sum(1)

    gridding = solve_gridding(positions, n_columns)

    stop = gridding.first + len(gridding.matrix)
    expected = kspace(np.arange(n_columns) - n_columns // 2)[gridding.first : stop]
    np.testing.assert_allclose(gridding.matrix @ kspace(positions), expected, atol=0.01)
    assert stop - gridding.first >= n_columns - 3
    noise = (np.abs(gridding.matrix) ** 2).sum(1)
    assert gridding.noise == pytest.approx(np.sqrt(noise.mean()), rel=1e-5)


def test_reversed_readouts_have_mirrored_positions():
    sampling = RampSampling(GRADIENT, 64)

    forward = sampling.gridding(92, 0, 92, 0.0, is_reversed=False)
    turned = sampling.gridding(92, 0, 92, 0.0, is_reversed=True)

    assert not isinstance(forward, str)
    assert not isinstance(turned, str)
    k = sample_positions(GRADIENT, 92, 5.0, 64)
    assert k is not None
    signal = np.exp(-0.01 * (k - 3) ** 2)  # not symmetric about the centre
    # the reversed readout passes the same places in the other order, with the gradient's own timing
    turned_signal = np.exp(-0.01 * (-k[::-1] - 3) ** 2)
    np.testing.assert_allclose((forward.matrix @ signal)[5:-5], (turned.matrix @ turned_signal)[5:-5], atol=2e-3)


def test_positions_are_a_step_of_the_grid_apart_on_average():
    positions = sample_positions(GRADIENT, 92, 5.0, 64)
    assert positions is not None
    assert (np.diff(positions) > 0).all()
    assert np.diff(positions)[0] < 0.5 * np.diff(positions)[46]
    assert positions[-1] - positions[0] == pytest.approx(64, abs=1)


@pytest.mark.parametrize(
    "gradient", [None, Trapezoid(), Trapezoid(ramp_up=100, ramp_down=100), Trapezoid(flat_top=300, dwell=5)]
)
def test_gradients_without_ramps_need_nothing(gradient: Trapezoid | None):
    space = Space((64, 64, 1), (200.0, 200.0, 5.0))
    assert ramp_sampling(Encoding(space, space, TrajectoryType.EPI, readout_gradient=gradient)) is None


def test_ramps_of_a_scan_that_is_no_epi_are_ignored():
    space = Space((64, 64, 1), (200.0, 200.0, 5.0))
    assert ramp_sampling(Encoding(space, space, readout_gradient=GRADIENT)) is None


def test_long_readouts_are_left_as_they_are():
    assert "limit" in str(RampSampling(GRADIENT, 64).gridding(ramps.MOST_SAMPLES + 1, 0, 9, 5.0, is_reversed=False))


def test_every_kind_of_readout_costs_a_matrix_so_that_only_few_are_taken():
    sampling = RampSampling(GRADIENT, 16)
    for first in range(ramps.MOST_KINDS):
        sampling.gridding(92, first, 92, 5.0, is_reversed=False)
    with pytest.raises(AssemblyError, match="kinds"):
        sampling.gridding(92, ramps.MOST_KINDS, 92, 5.0, is_reversed=False)
