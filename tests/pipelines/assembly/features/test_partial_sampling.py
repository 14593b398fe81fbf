"""Partial Fourier along y, z and the readout, asymmetric echoes, discards, reversed readouts, bipolar echoes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.assembly.frame import Completion
from pipelines.mrd import AcquisitionFlag, flagged
from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.disturbances import with_discards
from pipelines.simulation.echo_train import EchoPlanar, EchoTrain, simulate_epi, simulate_multi_echo
from pipelines.simulation.volume import VolumeSampling, simulate_volume

Fixture = Callable[..., Any]
ANATOMY = head_phantom(1, 48, 40)
CLEAN = Protocol(n_coils=4, noise_std=0, noise_readouts=0)


@pytest.mark.parametrize("n_y", [48, 49])
@pytest.mark.parametrize("part", [0.625, 0.75, 0.875])
def test_partial_fourier_along_y_leaves_the_early_lines_empty(
    assemble_as_specified: Fixture, n_y: int, part: float
) -> None:
    """Counters begin at 0 on the first measured line; `center` of the limits says where k = 0 is (MRD, EncodingLimits).

    Gadgetron places the same way in BucketToBuffer; peers that take the counter as the row shift k-space (SIRF and
    converters: gadgetron#529, ismrmrd#131).
    """
    scan = simulate(head_phantom(1, n_y, 40), replace(CLEAN, partial_fourier=part))
    (group,) = assemble_as_specified(scan)[0].values()
    measured = np.flatnonzero(group.counts[0, 0])
    assert measured.tolist() == list(range(n_y - round(n_y * part), n_y))
    energy = np.abs(group.kspace[0]).sum(axis=(0, 1, 3))
    assert int(np.argmax(energy)) == n_y // 2
    assert (group.completion, group.is_complete) == (Completion.FLAG, True)


def test_partial_fourier_along_z_leaves_the_early_partitions_empty(assemble_as_specified: Fixture) -> None:
    scan = simulate_volume(head_phantom(12, 20, 20), CLEAN, VolumeSampling(partial_fourier_z=0.75))
    (group,) = assemble_as_specified(scan)[0].values()
    assert np.flatnonzero(group.counts[0].all(axis=1)).tolist() == list(range(3, 12))
    assert group.is_complete
    assert int(np.argmax(np.abs(group.kspace[0]).sum(axis=(0, 2, 3)))) == 6


@pytest.mark.parametrize("oversampling", [1, 2])
@pytest.mark.parametrize("part", [0.6, 0.75])
def test_asymmetric_echo_lies_at_the_late_end_of_the_row(
    assemble_as_specified: Fixture, oversampling: int, part: float
) -> None:
    scan = simulate(ANATOMY, replace(CLEAN, partial_echo=part, oversampling=oversampling))
    (group,) = assemble_as_specified(scan)[0].values()
    n_x = 40 * oversampling
    assert group.readout_extent == (n_x - round(n_x * part), n_x)
    assert not group.kspace[..., : group.readout_extent[0]].any()
    assert int(np.argmax(np.abs(group.kspace[0]).sum(axis=(0, 1, 2)))) == n_x // 2


@pytest.mark.parametrize(("change", "bound"), [({"partial_fourier": 0.75}, 0.2), ({"partial_echo": 0.75}, 0.2)])
def test_zero_filled_image_of_partial_data_is_blurred_but_not_displaced(
    reconstruct: Fixture, nrmse: Fixture, change: dict[str, float], bound: float
) -> None:
    scan = simulate(ANATOMY, replace(CLEAN, phase_std_rad=0.2, **change))
    (image,) = reconstruct(scan).values()
    truth = np.abs(scan.truth.image[0, 0])
    best = nrmse(image.pixels, truth)
    assert best < bound
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        assert nrmse(image.pixels, np.roll(truth, step, axis)) > best


@pytest.mark.parametrize(("before", "after"), [(3, 0), (0, 5), (4, 7)])
def test_discarded_samples_never_reach_kspace(
    assemble_as_specified: Fixture, reconstruct: Fixture, nrmse: Fixture, before: int, after: int
) -> None:
    """Garbage a million times the signal is in them."""
    plain = simulate(ANATOMY, replace(CLEAN, partial_echo=0.8))
    scan = with_discards(plain, before, after)
    (group,) = assemble_as_specified(scan)[0].values()
    assert group.kspace.shape[-1] == 80
    assert group.readout_extent == (16, 80)
    (image,), (expected,) = reconstruct(scan).values(), reconstruct(plain).values()
    np.testing.assert_array_equal(image.pixels, expected.pixels)


@pytest.mark.parametrize("n_x", [40, 41])
@pytest.mark.parametrize("oversampling", [1, 2])
@pytest.mark.parametrize("part", [1.0, 0.75])
def test_bipolar_echoes_have_no_step_of_phase_between_them(
    assemble_as_specified: Fixture, coil_images: Fixture, n_x: int, oversampling: int, part: float
) -> None:
    """A reversed row is turned round about its own centre sample, N - 1 - center_sample.

    Gadgetron's Cartesian chains do not turn reversed echoes at all (gadgetron#1199: echo 2 of a bipolar VIBE garbled).
    Turning a row of even length without regard to its centre shifts k-space by one sample: a phase of one turn across
    the field of view, in every second echo.
    """
    protocol = replace(CLEAN, oversampling=oversampling, partial_echo=part)
    train = EchoTrain(n_echoes=3, off_resonance_hz=0.0, t2_star_ms=1e6)
    scan = simulate_multi_echo(head_phantom(1, 48, n_x), protocol, train)
    groups, assembler = assemble_as_specified(scan)
    assert assembler.take_warnings() == []
    images = [coil_images(groups[0, 0, echo, 0, 0, 0].kspace[0], (1, 48, n_x))[:, 0] for echo in range(3)]
    truth = scan.truth.image[:, 0, None] * scan.truth.maps[0]
    solid = np.abs(truth[0]).sum(axis=0) > 0.5
    for echo in (1, 2):
        turn = np.angle((images[echo] * images[0].conj()).sum(axis=0))[solid]
        assert np.abs(turn).mean() < (0.02 if part == 1.0 else 0.2)
        assert abs(np.polyfit(np.nonzero(solid)[1], turn, 1)[0] * n_x) < 0.3  # one sample would be 2 pi


def test_reversed_lines_and_discards_go_together(assemble_as_specified: Fixture) -> None:
    scan = simulate_multi_echo(ANATOMY, replace(CLEAN, partial_echo=0.75), EchoTrain(2))
    plain, _ = assemble_as_specified(scan)
    groups, _ = assemble_as_specified(with_discards(scan, 2, 5))
    for key, group in groups.items():
        np.testing.assert_array_equal(group.kspace, plain[key].kspace)


def test_asymmetric_echoes_of_both_directions_know_which_end_is_missing(assemble_as_specified: Fixture) -> None:
    scan = simulate_multi_echo(ANATOMY, replace(CLEAN, partial_echo=0.75), EchoTrain(2))
    groups, _ = assemble_as_specified(scan)
    assert groups[0, 0, 0, 0, 0, 0].readout_extent == (20, 80)
    assert groups[0, 0, 1, 0, 0, 0].readout_extent == (1, 61)


def test_lines_of_both_directions_make_one_image(reconstruct: Fixture, nrmse: Fixture) -> None:
    """EPI-like data without timing errors: every second line reversed, navigators (flag 24) kept out."""
    planar = EchoPlanar(phase_rad=0, shift_samples=0)
    scan = simulate_epi(ANATOMY, CLEAN, planar)
    content = scan.content
    assert content is not None
    space = replace(content.encodings[0], trajectory=simulate(ANATOMY, CLEAN).content.encodings[0].trajectory)
    scan = scan.with_content(content.with_encoding(space, 0))
    assert flagged(np.concatenate([b.headers for b in scan.batches]), AcquisitionFlag.IS_REVERSE).any()
    (image,) = reconstruct(scan).values()
    assert nrmse(image.pixels, np.abs(scan.truth.image)) < 0.01
