"""EPI from its readouts to images: reversed lines, phase correction, sampling on gradient ramps."""

import dataclasses

import ismrmrd
import numpy as np
import pytest

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Grouping, NoiseCovariance
from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.pipeline import Pipeline
from pipelines.readout_gradient import Trapezoid
from pipelines.scan_header import CalibrationMode, Encoding, Limit, ScanHeader, Space, TrajectoryType

F = AcquisitionFlag
N_Y, N_X, N_COILS = 48, 64, 4
CONSTANT_RAD, SLOPE_RAD = 0.7, 2.5
GRADIENT = Trapezoid(ramp_up=120, flat_top=280, ramp_down=100, delay=20, dwell=5)
N_ON_RAMPS = 92


def centred(transform, values):
    return np.fft.fftshift(transform(np.fft.ifftshift(values, axes=-1), norm="ortho", axis=-1), axes=-1)


class Epi:
    """A small head in the middle half of the field of view along y, so that its ghost lies beside it.

    `rows` are lines transformed along y only; a readout is taken from its row at any positions by a plain sum.
    """

    def __init__(self, rng, *, noise=0.0, constant=CONSTANT_RAD, slope=SLOPE_RAD, offset_rad=0.3, center=None) -> None:
        image = np.zeros((N_Y, N_X), np.complex64)
        size = (N_Y // 2, N_X // 2)
        image[N_Y // 4 : 3 * N_Y // 4, N_X // 4 : 3 * N_X // 4] = head_phantom(1, *size)[0] * smooth_phase(size, rng)
        coils = image * birdcage_coils(N_COILS, (N_Y, N_X))
        self.object = np.abs(image)
        self.rows = np.swapaxes(centred(np.fft.fft, np.swapaxes(coils, -1, -2)), -1, -2)
        self.rng, self.noise, self.center = rng, noise, center
        self.phase = constant + slope * (np.arange(N_X) - N_X // 2) / N_X
        self.offset_rad = offset_rad  # what off-resonance adds from one readout to the next
        self.time = 0

    def readout(self, line, *flags, is_reversed=False, positions=None, **counters: int):
        row = self.rows[:, line]
        if is_reversed:
            row = row * np.exp(1j * self.phase)
        samples = centred(np.fft.fft, row)
        if positions is not None:
            pixels = np.arange(N_X) - N_X // 2
            samples = row @ np.exp(-2j * np.pi * np.outer(pixels, positions) / N_X) / np.sqrt(N_X)
        if F.IS_PHASECORR_DATA in flags:
            samples = samples * np.exp(1j * self.offset_rad * self.time)
            self.time += 1
        n = samples.shape[-1]
        samples = samples + self.noise * (
            self.rng.normal(size=samples.shape) + 1j * self.rng.normal(size=samples.shape)
        )
        header = np.zeros(1, ACQUISITION_HEADER)
        header["version"], header["number_of_samples"], header["active_channels"] = 1, n, N_COILS
        header["flags"] = sum(flag.mask for flag in flags) | (F.IS_REVERSE.mask if is_reversed else 0)
        header["center_sample"] = n - 1 - n // 2 if is_reversed and self.center is None else n // 2
        header["sample_time_us"] = 5.0
        header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        for name, value in {"kspace_encode_step_1": line, **counters}.items():
            header["idx"][name] = value
        if is_reversed and positions is None:
            samples = samples[:, ::-1]
        return Acquisitions.from_arrays(header, samples[None].astype(np.complex64))

    def scan(self, *, navigators="+-+", alternate=True, step=1, positions=None, **counters: int):
        """All lines, every second one reversed, after a few lines without phase encoding."""
        out = []
        for sign in navigators:
            is_reversed = sign == "-"
            where = None if positions is None else -positions if is_reversed else positions
            at = {"is_reversed": is_reversed, "positions": where, **counters}
            out.append(self.readout(N_Y // 2, F.IS_PHASECORR_DATA, **at))
        for number, line in enumerate(range(0, N_Y, step)):
            is_reversed = alternate and number % 2 == 1
            where = None if positions is None else -positions if is_reversed else positions
            out.append(self.readout(line, is_reversed=is_reversed, positions=where, **counters))
        return out


def header(gradient=None, **limits: int):
    space = Space((N_X, N_Y, 1), (256.0, 192.0, 3.0))
    ranges = {name: Limit(0, value, 0) for name, value in limits.items()}
    encoding = Encoding(space, space, TrajectoryType.EPI, ranges, readout_gradient=gradient)
    return ScanHeader((encoding,))


def assemble(readouts, scan=None):
    assembler = Assembler(scan or header(), Grouping.SLICE, HeapSlots())
    groups = [group for readout in readouts for group in assembler.add(readout)]
    return [*groups, *assembler.finish()], assembler


def reconstruct(readouts, scan=None, *, name="zero_filled", **parameters: str):
    (group,), assembler = assemble(readouts, scan)
    output = Pipeline(name, parameters, "cpu")(group, {})
    return output.images[0].pixels[0, 0], (*assembler.take_warnings(), *output.warnings), output.images[0].meta


def ghost(image):
    """Root mean square beside the object, over that within it."""
    beside = np.r_[0 : N_Y // 4 - 2, 3 * N_Y // 4 + 2 : N_Y]
    return float(np.sqrt((image[beside] ** 2).mean() / (image[N_Y // 4 : 3 * N_Y // 4] ** 2).mean()))


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("center", [None, "n//2"])
@pytest.mark.parametrize(("constant", "slope"), [(0.7, 2.5), (-2.9, -9.0), (0.0, 20.0)])
def test_ghosts_are_lowered_by_more_than_20_db(rng, center, constant, slope):
    readouts = Epi(rng, constant=constant, slope=slope, center=center).scan()

    corrected, warnings, meta = reconstruct(readouts)

    plain, _, _ = reconstruct(readouts, phase_correction="none")
    assert 20 * np.log10(ghost(plain) / ghost(corrected)) > 20
    assert warnings == ()
    assert meta["ReconPhaseCorrection"][0].startswith("linear, ")


def test_image_is_that_without_a_ghost_within_the_noise():
    noisy = Epi(np.random.default_rng(4), noise=0.01).scan()
    same_noise = Epi(np.random.default_rng(4), noise=0.01, constant=0, slope=0).scan()

    corrected, _, _ = reconstruct(noisy)

    expected, _, _ = reconstruct(same_noise, phase_correction="none")
    uncorrected, _, _ = reconstruct(noisy, phase_correction="none")
    deviation = 0.01  # of one part of the noise; fully sampled, orthonormal
    assert rms(corrected - expected) < deviation < 0.2 * rms(uncorrected - expected)


def test_estimated_phase_is_the_true_one(rng):
    _, _, meta = reconstruct(Epi(rng).scan())

    words = meta["ReconPhaseCorrection"][0].split()
    assert float(words[1]) == pytest.approx(CONSTANT_RAD, abs=1e-3)
    assert float(words[4]) == pytest.approx(SLOPE_RAD, abs=5e-3)


@pytest.mark.parametrize("navigators", ["", "+", "---"])
def test_without_navigators_of_both_directions_a_warning_and_no_correction(rng, navigators):
    readouts = Epi(rng).scan(navigators=navigators)

    image, warnings, meta = reconstruct(readouts)

    plain, quiet, _ = reconstruct(readouts, phase_correction="none")
    np.testing.assert_array_equal(image, plain)
    assert "no phase-correction readouts" in warnings[0]
    assert meta["ReconPhaseCorrection"] == ["none"]
    assert quiet == ()


def test_navigators_of_noise_are_not_believed(rng):
    epi = Epi(rng)
    readouts = epi.scan(navigators="")
    epi.rows, epi.noise = epi.rows * 0, 1.0
    noise = [epi.readout(N_Y // 2, F.IS_PHASECORR_DATA, is_reversed=sign) for sign in (False, True, False)]

    image, warnings, _ = reconstruct([*noise, *readouts])

    assert "coherence" in warnings[0]
    np.testing.assert_array_equal(image, reconstruct(readouts, phase_correction="none")[0])


@pytest.mark.parametrize("is_reversed", [False, True])
def test_images_of_one_direction_are_left_alone_without_a_warning(rng, is_reversed):
    """Bipolar multi-echo: every echo has a direction of its own."""
    epi = Epi(rng)
    readouts = [epi.readout(line, is_reversed=is_reversed) for line in range(N_Y)]

    image, warnings, meta = reconstruct(readouts)

    np.testing.assert_allclose(image, epi.object, atol=0.02)
    assert warnings == ()
    assert "ReconPhaseCorrection" not in meta


def test_lines_of_both_directions_summed_are_reported(rng):
    epi = Epi(rng)

    _, warnings, _ = reconstruct([epi.readout(3), *epi.scan()])

    assert any("sums of forward and reversed" in text for text in warnings)


def test_navigators_never_reach_the_image_and_stay_with_their_slice_and_repetition(rng):
    epi = Epi(rng)
    scan = header(slice=1, repetition=2)
    readouts = []
    for repetition in range(3):
        for slice_ in range(2):
            epi.phase = epi.phase * 0 + 0.1 * (1 + slice_ + 2 * repetition)
            # the last repetition has none of its own
            navigators = "+-+" if repetition < 2 else ""
            readouts += epi.scan(navigators=navigators, slice=slice_, repetition=repetition)

    groups, assembler = assemble(readouts, scan)

    assert assembler.counts["navigator"] == 12
    assert len(groups) == 6
    for group in groups:
        repetition = min(group.key.repetition, 1)
        assert (group.counts == 1).all()
        assert group.navigators.is_reversed.tolist() == [False, True, False]
        forward, turned = (np.fft.ifft(np.fft.ifftshift(group.navigators.samples[n], axes=-1)) for n in (0, 1))
        angle = np.angle((turned * forward.conj()).sum() * np.exp(-1j * epi.offset_rad))
        assert angle == pytest.approx(0.1 * (1 + group.key.slice + 2 * repetition), abs=1e-3)
    assert assembler.bytes_held == 0


def test_kspace_is_what_plain_code_places():
    """Independent placement with ismrmrd-python, one sample at a time; what lies beyond the grid is left out."""
    readouts = Epi(np.random.default_rng(1), noise=0.1, center="n//2").scan(step=2)
    (group,), _ = assemble(readouts)
    expected = np.zeros((N_COILS, N_Y, N_X), np.complex64)
    for readout in readouts:
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(readout.headers.tobytes())
        if head.flags & 1 << (ismrmrd.ACQ_IS_PHASECORR_DATA - 1):
            continue
        for sample in range(head.number_of_samples):
            away = sample - head.center_sample
            if head.flags & 1 << (ismrmrd.ACQ_IS_REVERSE - 1):
                away = -away
            column = N_X // 2 + away
            if column < N_X:
                expected[:, head.idx.kspace_encode_step_1, column] += readout.complex_samples()[0, :, sample]

    np.testing.assert_array_equal(group.kspace[0, :, 0], expected)
    assert group.readout_extent == (0, N_X)
    assert np.flatnonzero(group.reversed_counts[0, 0]).tolist() == list(range(2, N_Y, 4))


def ramp_positions(gradient, n):
    """Integral of the trapezoid by small steps, in steps of the grid; zero halfway."""
    fine = np.linspace(0, gradient.ramp_up + gradient.flat_top + gradient.ramp_down, 200_001)
    corners = np.cumsum([0, gradient.ramp_up, gradient.flat_top, gradient.ramp_down])
    strength = np.interp(fine, corners, [0, 1, 1, 0])
    area = np.concatenate([[0], np.cumsum((strength[1:] + strength[:-1]) / 2 * np.diff(fine))])
    start, stop = gradient.delay, gradient.delay + n * gradient.dwell
    middle = gradient.delay + (np.arange(n) + 0.5) * gradient.dwell
    read = np.interp(stop, fine, area) - np.interp(start, fine, area)
    return (np.interp(middle, fine, area) - area[-1] / 2) * N_X / read


@pytest.mark.parametrize("alternate", [False, True])
def test_samples_on_gradient_ramps_become_uniform(rng, alternate):
    """Each readout is a plain Fourier sum at the places where the trapezoid takes it."""
    epi = Epi(rng, constant=0.4, slope=1.0)
    positions = ramp_positions(GRADIENT, N_ON_RAMPS)
    readouts = epi.scan(alternate=alternate, positions=positions)

    image, warnings, _ = reconstruct(readouts, header(GRADIENT))

    assert rms(image - epi.object) < 0.03 * rms(epi.object)
    assert warnings == ()


def test_uncertainty_follows_the_noise_through_the_ramps(rng):
    scan = dataclasses.replace(header(GRADIENT), noise_bandwidth=1.0)
    noise = 0.02
    epi = Epi(rng, noise=noise, constant=0, slope=0)
    positions = ramp_positions(GRADIENT, N_ON_RAMPS)
    samples = noise * (rng.normal(size=(64, N_COILS, 128)) + 1j * rng.normal(size=(64, N_COILS, 128)))
    pipeline = Pipeline("zero_filled", {}, "cpu")
    outputs = []
    for _ in range(40):
        (group,), _ = assemble(epi.scan(positions=positions), scan)
        noise_scan = NoiseCovariance.of(samples.astype(np.complex64), 5.0)  # of the dwell time of the image
        outputs.append(pipeline(dataclasses.replace(group, noise=noise_scan), {}).images)

    empirical = np.std([magnitude.pixels[0, 0] for magnitude, _ in outputs], axis=0)
    ratio = outputs[0][1].pixels[0, 0] / empirical
    assert np.median(ratio[epi.object > 0.3]) == pytest.approx(1, abs=0.05)
    assert group.readout_noise != pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("gradient", "text"),
    [
        (dataclasses.replace(GRADIENT, flat_top=10.0), "do not fit under the gradient"),
        (dataclasses.replace(GRADIENT, dwell=50.0), "do not fit under the gradient"),
    ],
)
def test_gradients_that_cannot_be_are_reported_and_samples_placed_as_they_are(rng, gradient, text):
    readouts = Epi(rng, constant=0, slope=0).scan()

    image, warnings, _ = reconstruct(readouts, header(gradient))

    assert any(text in warning for warning in warnings)
    np.testing.assert_allclose(image, reconstruct(readouts)[0], atol=1e-5)


def test_samples_on_the_plateau_alone_are_placed_as_they_are(rng):
    readouts = Epi(rng).scan()
    flat = Trapezoid(ramp_up=100, flat_top=N_X * 5.0, ramp_down=100, delay=100, dwell=5)

    image, warnings, _ = reconstruct(readouts, header(flat))

    np.testing.assert_array_equal(image, reconstruct(readouts)[0])
    assert warnings == ()


def test_reversed_separate_calibration_lines_are_corrected_by_their_own_navigators(rng):
    epi = Epi(rng)
    scan = header()
    encoding = dataclasses.replace(scan.encodings[0], acceleration=(2, 1), calibration_mode=CalibrationMode.SEPARATE)
    scan = ScanHeader((encoding,))
    calibration = [
        epi.readout(N_Y // 2, F.IS_PHASECORR_DATA, F.IS_PARALLEL_CALIBRATION, is_reversed=sign)
        for sign in (False, True, False)
    ]
    lines = range(N_Y // 2 - 12, N_Y // 2 + 12)
    calibration += [epi.readout(line, F.IS_PARALLEL_CALIBRATION, is_reversed=line % 2 == 1) for line in lines]
    epi.phase = epi.phase - 1.1  # another one for the image

    image, warnings, _ = reconstruct([*calibration, *epi.scan(step=2)], scan, name="sense")

    assert warnings == ()
    assert rms(image - epi.object) < 0.1 * rms(epi.object)
