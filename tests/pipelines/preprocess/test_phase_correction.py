"""The phase between forward and reversed navigators, against the one that was put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import Navigators
from pipelines.preprocess.phase_correction import estimate_phase


def navigators(n, signs, constant, slope, *, drift=0.0, noise=0.0, seed=0, is_calibration=None):
    """Readouts of a profile with its own phase; `drift` is added to the phase from each readout to the next."""
    rng = np.random.default_rng(seed)
    position = (np.arange(n) - n // 2) / n
    profile = np.exp(-((position / 0.25) ** 4)) * np.exp(1j * np.stack([5 * position, 1 - 3 * position]))
    rows = []
    for number, sign in enumerate(signs):
        row = profile * np.exp(1j * drift * number)
        if sign == "-":
            row = row * np.exp(1j * (constant + slope * position))
        row = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(row, axes=-1), norm="ortho"), axes=-1)
        rows.append(row + noise * (rng.normal(size=row.shape) + 1j * rng.normal(size=row.shape)))
    is_reversed = np.array([sign == "-" for sign in signs])
    flags = np.zeros(len(signs), bool) if is_calibration is None else np.array(is_calibration)
    return Navigators(np.array(rows, np.complex64), is_reversed, flags)


def angle_between(a, b):
    return abs(np.angle(np.exp(1j * (a - b))))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(24, 97),
    signs=st.sampled_from(["+-", "-+", "+-+", "-+-", "+-+-+", "++-+"]),
    constant=st.floats(-3.1, 3.1),
    slope=st.floats(-30, 30),
    seed=st.integers(0, 99),
)
def test_any_phase_is_found(n, signs, constant, slope, seed):
    phase = estimate_phase(navigators(n, signs, constant, slope, noise=0.002, seed=seed))

    assert phase is not None
    assert angle_between(phase.constant_rad, constant) < 0.01
    assert phase.slope_rad == pytest.approx(slope, abs=0.05)
    assert phase.coherence > 0.95


@pytest.mark.parametrize("signs", ["+-+", "-+-", "+-+-+"])
@pytest.mark.parametrize("drift", [-1.2, 0.5, 1.2])
def test_what_off_resonance_adds_cancels_out(signs, drift):
    phase = estimate_phase(navigators(64, signs, 0.8, 4.0, drift=drift))

    assert phase is not None
    assert angle_between(phase.constant_rad, 0.8) < 1e-3
    assert phase.slope_rad == pytest.approx(4.0, abs=1e-2)


def test_calibration_and_image_have_their_own():
    image, own = navigators(64, "+-+", 0.5, 0.0), navigators(64, "+-+", -1.0, 0.0, is_calibration=[True] * 3)
    both = Navigators(
        np.concatenate([own.samples, image.samples]),
        np.concatenate([own.is_reversed, image.is_reversed]),
        np.concatenate([own.is_calibration, image.is_calibration]),
    )

    found = [estimate_phase(both, for_calibration=choice) for choice in (False, True)]

    assert [phase.constant_rad for phase in found if phase] == pytest.approx([0.5, -1.0], abs=1e-3)
    alone = estimate_phase(own)
    assert alone is not None
    assert alone.constant_rad == pytest.approx(-1.0, abs=1e-3)


@pytest.mark.parametrize("signs", ["+", "---", "++"])
def test_one_direction_alone_tells_nothing(signs):
    assert estimate_phase(navigators(32, signs, 1.0, 1.0)) is None


def test_zeros_tell_nothing():
    found = navigators(32, "+-+", 1.0, 1.0)
    assert estimate_phase(Navigators(found.samples * 0, found.is_reversed, found.is_calibration)) is None


def test_noise_alone_is_not_coherent():
    rng = np.random.default_rng(6)
    for _ in range(50):
        noise = (rng.normal(size=(3, 8, 64)) + 1j * rng.normal(size=(3, 8, 64))).astype(np.complex64)
        phase = estimate_phase(Navigators(noise, np.array([False, True, False]), np.zeros(3, bool)))
        assert phase is not None
        assert phase.coherence < 0.5
