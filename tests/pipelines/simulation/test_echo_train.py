"""Simulated echo trains: reversed readouts, echo times, navigators, ghosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ismrmrd
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag, flagged
from pipelines.phantom import head_phantom
from pipelines.scan_header import TrajectoryType
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.echo_train import EchoPlanar, EchoTrain, simulate_epi, simulate_multi_echo
from pipelines.simulation.scan import SimulatedScan

F = AcquisitionFlag
Place = Callable[..., Any]


def headers_of(scan: SimulatedScan) -> NDArray[np.void]:
    return np.concatenate([batch.headers for batch in scan.batches])


@pytest.mark.parametrize("n_x", [24, 25])
def test_every_echo_turned_round_is_its_own_image(place: Place, coil_images: Place, n_x: int) -> None:
    train = EchoTrain(n_echoes=4)
    scan = simulate_multi_echo(head_phantom(2, 20, n_x), Protocol(n_coils=2, noise_std=0), train)
    placed = place(scan)
    assert len(placed) == 2 * 4
    for (_, number, echo, *_rest), one in placed.items():
        image = scan.truth.image[echo, number] * scan.truth.maps[number]
        if one.sampled.all():
            np.testing.assert_allclose(coil_images(one.kspace, (1, 20, n_x))[:, 0], image, atol=3e-6)
        # One sample of a reversed row of even length lies beyond the edge of k-space.
        assert one.sampled.sum() == len(one.sampled) - (echo % 2 if len(one.sampled) % 2 == 0 else 0)


def test_echoes_decay_and_come_one_after_the_other(schema_errors: Callable[[bytes], int]) -> None:
    protocol = Protocol(n_coils=2, echo_time_ms=5, noise_readouts=0)
    scan = simulate_multi_echo(head_phantom(1, 20, 24), protocol, EchoTrain(3, t2_star_ms=20))
    headers = headers_of(scan)
    assert schema_errors(scan.header) == 0
    assert headers["idx"]["contrast"][:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert flagged(headers, F.IS_REVERSE).tolist() == [echo == 1 for echo in headers["idx"]["contrast"]]
    levels = np.abs(scan.truth.image).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(levels[1:] / levels[:-1], np.exp(-5 / 20), rtol=1e-5)
    assert ismrmrd.xsd.CreateFromDocument(scan.header).sequenceParameters.TE == [5, 10, 15]


def test_asymmetric_echoes_of_the_two_directions_lack_opposite_ends(place: Place) -> None:
    scan = simulate_multi_echo(head_phantom(1, 20, 24), Protocol(n_coils=1, partial_echo=0.75), EchoTrain(2))
    forward, backward = (one.sampled for _, one in sorted(place(scan).items()))
    assert np.flatnonzero(forward).tolist() == list(range(12, 48))
    assert np.flatnonzero(backward).tolist() == list(range(1, 37))
    assert len(set(headers_of(scan)["center_sample"][scan.protocol.noise_readouts :].tolist())) == 1


def test_shift_between_directions_is_that_of_kspace(place: Place) -> None:
    anatomy = head_phantom(1, 20, 24)
    plain, shifted = (
        simulate_multi_echo(anatomy, Protocol(n_coils=1, noise_std=0), EchoTrain(2, shift_samples=shift))
        for shift in (0.0, 2.0)
    )
    for key, one in place(plain).items():
        own = place(shifted)[key].kspace
        step = -1 if key[2] == 0 else 1
        keep = slice(3, -3)
        np.testing.assert_allclose(own[..., keep], np.roll(one.kspace, step, axis=-1)[..., keep], atol=1e-5)


def test_epi_without_errors_is_the_object(place: Place, coil_images: Place) -> None:
    planar = EchoPlanar(phase_rad=0, shift_samples=0, trajectory=TrajectoryType.CARTESIAN)
    scan = simulate_epi(head_phantom(1, 24, 25), Protocol(n_coils=2, noise_std=0, oversampling=1), planar)
    ((_, one),) = place(scan).items()
    expected = scan.truth.image[0, 0] * scan.truth.maps[0]
    np.testing.assert_allclose(coil_images(one.kspace, (1, 24, 25))[:, 0], expected, atol=3e-6)


def test_phase_between_directions_makes_a_ghost_half_the_field_of_view_away(place: Place, coil_images: Place) -> None:
    anatomy = np.zeros((1, 48, 25), np.float32)
    anatomy[0, 20:28, 8:17] = 1
    scan = simulate_epi(
        anatomy, Protocol(n_coils=1, noise_std=0, oversampling=1), EchoPlanar(phase_rad=0.8, shift_samples=0)
    )
    ((_, one),) = place(scan).items()
    image = np.abs(coil_images(one.kspace, (1, 48, 25))[0, 0])
    ghost = np.roll(image, 24, axis=0)[20:28, 8:17]
    np.testing.assert_allclose(ghost, np.sin(0.4), atol=1e-3)  # exp(+-i 0.4) alternating: cos stays, i sin folds over
    np.testing.assert_allclose(image[20:28, 8:17], np.cos(0.4), atol=1e-3)


def test_navigators_come_before_the_lines_and_show_the_error(schema_errors: Callable[[bytes], int]) -> None:
    protocol = Protocol(n_coils=1, noise_std=0, noise_readouts=0, oversampling=1)
    scan = simulate_epi(head_phantom(2, 24, 25), protocol, EchoPlanar(phase_rad=0.7, shift_samples=0))
    headers, samples = headers_of(scan), np.concatenate([b.complex_samples() for b in scan.batches])
    assert schema_errors(scan.header) == 0
    navigators = flagged(headers, F.IS_PHASECORR_DATA)
    assert np.flatnonzero(navigators).tolist() == [0, 1, 2, 27, 28, 29]
    assert flagged(headers, F.IS_REVERSE).tolist() == ([True, False, True] + [False, True] * 12) * 2
    assert headers["idx"]["segment"].tolist() == flagged(headers, F.IS_REVERSE).astype(int).tolist()
    backward, forward = samples[0, 0, ::-1], samples[1, 0]
    assert np.angle(np.vdot(forward, backward)) == pytest.approx(0.7, abs=1e-4)
    encoding = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0]
    assert encoding.trajectory.value == "epi"
    longs = {entry.name: entry.value for entry in encoding.trajectoryDescription.userParameterLong}
    assert (longs["etl"], longs["numberOfNavigators"], longs["numSamples"]) == (24, 3, 25)
