"""CG-SENSE against dense least squares, and the properties a reconstruction must have."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.errors import ReconstructionError
from pipelines.operators.encoding import encoding
from pipelines.operators.fourier import to_kspace
from pipelines.operators.sampling import sampling_weights, unreached
from pipelines.parameters import SenseParameters
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.recon.reconstruction import Prepared, UncertaintyKind
from pipelines.recon.sense import UNREACHED_WEIGHT, Sense, central_density, wiener_weight

ACCURATE = SenseParameters.model_validate({"iterations": 300, "tolerance": 1e-7})


def prepare(
    n_coils: int = 4, n_y: int = 40, n_x: int = 36, *, acceleration: int = 1, frames: int = 1, noise_std: float = 0.0
) -> tuple[Prepared, Tensor]:
    """A phantom with birdcage coils; the last frame is half as bright as the first. Returns the object too."""
    rng = np.random.default_rng(5)
    still = head_phantom(1, n_y, n_x) * smooth_phase((n_y, n_x), rng)
    brightness = torch.linspace(1, 0.5, frames)[:, None, None, None]
    image = torch.from_numpy(still) * brightness
    maps = torch.from_numpy(birdcage_coils(n_coils, (n_y, n_x)))[:, None]
    full = to_kspace(image[:, None] * maps)
    noise = rng.standard_normal((*full.shape, 2), np.float32) * np.float32(noise_std / 2**0.5)
    full = full + torch.view_as_complex(torch.from_numpy(noise))
    counts = torch.zeros(frames, 1, n_y)
    counts[..., n_y // 2 % acceleration :: acceleration] = 1
    start = n_y // 2 - 10
    counts[..., start : start + 20] = 1
    calibration = full[0, :, :, start : start + 20].contiguous()
    columns = torch.ones(n_x, dtype=torch.bool)
    return Prepared(full * counts[:, None, ..., None], counts, calibration, noise_std or 1.0, True, columns), image


def nrmse(image: Tensor, reference: Tensor) -> float:
    inside = reference.abs() > 0.1 * reference.abs().max()
    gap = torch.linalg.vector_norm((image.abs() - reference.abs())[inside])
    return float(gap / torch.linalg.vector_norm(reference[inside]))


def dense_solution(prepared: Prepared, maps: Tensor, regularisation: float, density: float = 1.0) -> Tensor:
    """`(1 + r) argmin` of the docstring of `pipelines.recon.sense`, by the normal equations in double precision."""
    weights = sampling_weights(prepared.counts, prepared.readout_sampled)
    operator = encoding(maps, weights)
    frames, _, z, y, x = prepared.kspace.shape
    assert frames == 1
    size = z * y * x
    unit = torch.eye(size, dtype=torch.complex64)
    matrix = torch.stack([operator(row.view(1, z, y, x)).flatten() for row in unit], 1).to(torch.complex128)
    data = (prepared.kspace * weights.sqrt()[:, None]).flatten().to(torch.complex128)
    weight = regularisation * density * float(prepared.counts[prepared.counts > 0].mean())
    normal = matrix.mH @ matrix + weight * torch.eye(size)
    # The penalty is one more coil, as sensitive everywhere in the object, that saw nothing.
    beyond = unreached(prepared.counts, prepared.readout_sampled) * (UNREACHED_WEIGHT * density)
    operator = encoding((maps != 0).any(0, keepdim=True).to(torch.complex64), beyond)
    rows = torch.stack([operator(row.view(1, z, y, x)).flatten() for row in unit], 1).to(torch.complex128)
    inverse = torch.linalg.pinv(normal + rows.mH @ rows, hermitian=True, rtol=1e-9)
    return ((1 + regularisation) * inverse @ matrix.mH @ data).view(1, z, y, x)


@pytest.mark.parametrize(("n_y", "n_x"), [(40, 36), (41, 35), (33, 48)])
@pytest.mark.parametrize("acceleration", [2, 3])
def test_image_is_the_object_without_noise(n_y: int, n_x: int, acceleration: int):
    prepared, truth = prepare(8, n_y, n_x, acceleration=acceleration)
    # Limits: Tikhonov's shrinking (3 %) and maps known to 1 to 2 %.
    assert nrmse(Sense(SenseParameters(), "cpu")(prepared).image, truth) < 0.06


@pytest.mark.parametrize(("n_y", "n_x"), [(40, 36), (41, 35)])
def test_fully_sampled_round_trip_does_not_depend_on_the_regularisation(n_y: int, n_x: int):
    prepared, truth = prepare(4, n_y, n_x)
    for regularisation in (0.0, 0.03, 1.0):
        parameters = SenseParameters.model_validate({"regularisation": regularisation})
        # Only the direction error of the maps is left: its square is 1e-3.
        assert nrmse(Sense(parameters, "cpu")(prepared).image, truth) < 5e-3


@pytest.mark.parametrize("regularisation", [1e-3, 0.03])
def test_solution_is_the_dense_one_with_repeated_lines_weighted(regularisation: float):
    prepared, _ = prepare(3, 24, 12, acceleration=3, noise_std=0.1)
    counts = prepared.counts.clone()
    counts[0, 0, 8:12] *= 4
    counts[0, 0, 14] = 0
    prepared = dataclasses.replace(prepared, kspace=prepared.kspace * (counts > 0)[:, None, ..., None], counts=counts)
    maps = estimate_maps(prepared.calibration, (1, 24, 12)) if prepared.calibration is not None else None
    assert maps is not None
    parameters = ACCURATE.model_copy(update={"regularisation": regularisation})
    image = Sense(parameters, "cpu")(prepared).image
    expected = dense_solution(prepared, maps, regularisation)
    scale = float(expected.abs().max())
    # Condition number up to 1e3 in single precision.
    assert float((image - expected).abs().max()) / scale < 1e-3
    unweighted = dataclasses.replace(prepared, counts=(counts > 0).float())
    assert float((dense_solution(unweighted, maps, regularisation) - expected).abs().max()) / scale > 1e-2


def undersample(prepared: Prepared, acceleration: int) -> Prepared:
    """Every n-th line only; the calibration region stays, as if it had been measured apart."""
    lattice = torch.zeros_like(prepared.counts)
    lattice[..., ::acceleration] = 1
    return dataclasses.replace(
        prepared, kspace=prepared.kspace * lattice[:, None, ..., None], counts=prepared.counts * lattice
    )


@pytest.mark.parametrize("acceleration", [2, 3])
def test_separate_calibration_lowers_the_weight_to_the_density_of_the_centre(acceleration: int):
    prepared = undersample(prepare(4, 24, 12)[0], acceleration)
    assert prepared.calibration is not None
    maps = estimate_maps(prepared.calibration, (1, 24, 12))
    noisy = dataclasses.replace(prepared, noise_std=100 * float(prepared.kspace.abs().max()))
    image = Sense(ACCURATE.model_copy(update={"regularisation": 0.03}), "cpu")(noisy).image
    expected = dense_solution(prepared, maps, 0.03, density=1 / acceleration)
    assert float((image - expected).abs().max() / expected.abs().max()) < 1e-3


@pytest.mark.parametrize("acceleration", [2, 3])
def test_separate_calibration_above_the_noise_is_not_shaded_by_the_weight(acceleration: int):
    full, truth = prepare(4, 24, 12, noise_std=0.01)
    prepared = dataclasses.replace(undersample(full, acceleration), noise_std=0.01)
    assert prepared.calibration is not None
    maps = estimate_maps(prepared.calibration, (1, 24, 12))
    image = Sense(ACCURATE.model_copy(update={"regularisation": 0.03}), "cpu")(prepared).image
    shaded = dense_solution(prepared, maps, 0.03, density=1 / acceleration)
    assert nrmse(image, truth) < 0.8 * nrmse(shaded, truth)


def test_wiener_weight_is_noise_variance_over_signal_power():
    generator = torch.Generator().manual_seed(3)
    coils, n_y, n_x = 4, 32, 24
    maps = torch.full((coils, 1, n_y, n_x), 0.5, dtype=torch.complex64)
    counts = torch.full((1, 1, n_y), 2.0)
    signal = 3.0 * torch.randn((1, 1, 1, n_y, n_x), generator=generator, dtype=torch.complex64) * maps[None]
    noise = torch.randn((1, coils, 1, n_y, n_x), generator=generator, dtype=torch.complex64)
    # A white image is white in k-space, so nothing has to be transformed; two readouts were averaged.
    kspace = signal + 0.2 / 2**0.5 * noise
    assert wiener_weight(kspace, counts, maps, 0.2) == pytest.approx(0.2**2 / 9.0, rel=0.15)
    assert wiener_weight(1e-3 * noise, counts, maps, 0.2) == float("inf")


def regularisation_taken(prepared: Prepared, noise_std: float, *, is_measured: bool = True) -> float:
    prepared = dataclasses.replace(prepared, noise_std=noise_std, noise_is_measured=is_measured)
    return float(Sense(SenseParameters(), "cpu")(prepared).details["ReconRegularisation"])


def test_regularisation_follows_the_measured_noise_within_bounds():
    prepared, _ = prepare(8, acceleration=3)
    taken = [regularisation_taken(prepared, noise_std) for noise_std in (1e-5, 0.005, 0.01, 0.5)]
    assert taken[0] == 0.001
    # Four times the variance; the power of the signal hardly changes when less noise is taken off.
    assert taken[2] / taken[1] == pytest.approx(4, rel=0.02)
    assert 0.001 < taken[1] < taken[2] < 0.03
    assert taken[3] == 0.03
    assert regularisation_taken(prepared, 1e-5, is_measured=False) == 0.03


@pytest.mark.parametrize(("noise_std", "factor"), [(0.002, 0.5), (0.01, 0.95), (0.05, 1.001)])
def test_regularisation_from_the_noise_lowers_the_error(noise_std: float, factor: float):
    prepared, truth = prepare(8, 64, 64, acceleration=3, noise_std=noise_std)
    by_noise, fixed = (
        nrmse(Sense(SenseParameters(regularisation=value), "cpu")(prepared).image, truth) for value in (None, 0.03)
    )
    assert by_noise <= factor * fixed


@pytest.mark.parametrize(("lines", "density"), [("111111111111", 1.0), ("010101010101", 0.5), ("001001001001", 1 / 3)])
def test_density_at_the_centre_is_one_over_the_distance_of_lines(lines: str, density: float):
    along_y = torch.tensor([float(line) for line in lines * 3])
    assert central_density(along_y.expand(2, 4, -1)) == pytest.approx(density)
    assert central_density(along_y[None, :, None].expand(1, -1, 4)) == pytest.approx(density)


def test_solution_is_the_dense_one_with_an_asymmetric_echo():
    prepared, _ = prepare(3, 24, 16, acceleration=2, noise_std=0.05)
    columns = torch.arange(16) >= 3
    assert prepared.calibration is not None
    prepared = dataclasses.replace(
        prepared,
        kspace=prepared.kspace * columns,
        calibration=prepared.calibration * columns,
        readout_sampled=columns,
    )
    # Columns 0 to 2 hold nothing; of the 16, the 10 around the centre are measured on both sides.
    maps = estimate_maps(prepared.calibration[..., 3:13], (1, 24, 16)) if prepared.calibration is not None else None
    assert maps is not None
    expected = dense_solution(prepared, maps, 0.03)
    image = Sense(ACCURATE.model_copy(update={"regularisation": 0.03}), "cpu")(prepared).image
    assert float((image - expected).abs().max() / expected.abs().max()) < 1e-3


@pytest.mark.parametrize("factor", [1e-20, 1e-3, -1.0, 1e15, 2j])
def test_image_and_deviation_scale_with_the_data(factor: complex):
    prepared, _ = prepare(acceleration=2, noise_std=0.02)
    assert prepared.calibration is not None
    sense = Sense(SenseParameters(), "cpu")
    expected = sense(prepared)
    scaled = sense(
        dataclasses.replace(
            prepared,
            kspace=prepared.kspace * factor,
            calibration=prepared.calibration * factor,
            noise_std=prepared.noise_std * abs(factor),
        )
    )
    largest = float(expected.image.abs().max())
    assert float((scaled.image / factor - expected.image).abs().max()) / largest < 1e-3
    assert float((scaled.deviation / abs(factor) - expected.deviation).abs().max() / expected.deviation.max()) < 1e-2


def test_global_phase_leaves_the_magnitude():
    prepared, _ = prepare(acceleration=3, noise_std=0.02)
    assert prepared.calibration is not None
    turn = complex(np.exp(0.7j))
    turned = dataclasses.replace(prepared, kspace=prepared.kspace * turn, calibration=prepared.calibration * turn)
    sense = Sense(SenseParameters(), "cpu")
    expected, image = sense(prepared).image, sense(turned).image
    assert float((image.abs() - expected.abs()).abs().max() / expected.abs().max()) < 1e-3


def test_frames_together_give_what_each_gives_alone():
    prepared, _ = prepare(acceleration=2, frames=3, noise_std=0.02)
    counts = prepared.counts.clone()
    counts[1, 0, ::5] = 0
    prepared = dataclasses.replace(prepared, kspace=prepared.kspace * (counts > 0)[:, None, ..., None], counts=counts)
    # Given, because by default it follows from the noise in all the frames of a job.
    sense = Sense(ACCURATE.model_copy(update={"regularisation": 0.03}), "cpu")
    together = sense(prepared)
    for frame in range(3):
        alone = sense(
            dataclasses.replace(prepared, kspace=prepared.kspace[frame : frame + 1], counts=counts[frame : frame + 1])
        )
        torch.testing.assert_close(together.image[frame], alone.image[0], rtol=1e-3, atol=1e-4)


def test_a_volume_undersampled_along_y_and_z_is_reconstructed():
    prepared, _ = prepare(8, 40, 36)
    slab = torch.hann_window(14)[1:-1, None, None]
    coils = torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(prepared.kspace[0], dim=(-2, -1)), norm="ortho"), dim=(-2, -1)
    )
    tilt = torch.exp(1j * torch.outer(torch.arange(8.0), torch.linspace(-0.5, 0.5, 12)))[:, :, None, None]
    volume = coils * slab * tilt
    kspace = to_kspace(volume, (-3, -2, -1))[None]
    counts = torch.zeros(1, 12, 40)
    counts[:, ::2, ::2] = 1
    counts[:, 2:10, 10:30] = 1
    calibration = kspace[0, :, 2:10, 10:30].contiguous()
    undersampled = kspace * counts[:, None, ..., None]
    result = Sense(SenseParameters(), "cpu")(
        Prepared(undersampled, counts, calibration, 1.0, True, prepared.readout_sampled)
    )
    reference = torch.linalg.vector_norm(volume, dim=0)[None]
    zero_filled = encoding_free_image(undersampled)
    # Eight lines along z leave a kernel of 4 points there, whose maps are known to some per cent.
    assert nrmse(result.image, reference) < 0.07
    assert nrmse(result.image, reference) < 0.7 * nrmse(zero_filled, reference)


def encoding_free_image(kspace: Tensor) -> Tensor:
    """Root sum of squares of the zero-filled images."""
    axes = (-3, -2, -1)
    coils = torch.fft.ifftn(torch.fft.ifftshift(kspace, dim=axes), dim=axes, norm="ortho")
    return torch.linalg.vector_norm(torch.fft.fftshift(coils, dim=axes), dim=1)


def test_zero_data_give_zeros():
    prepared, _ = prepare(acceleration=2)
    assert prepared.calibration is not None
    empty = dataclasses.replace(
        prepared, kspace=torch.zeros_like(prepared.kspace), calibration=torch.zeros_like(prepared.calibration)
    )
    result = Sense(SenseParameters(), "cpu")(empty)
    assert not bool(result.image.any())
    assert bool(torch.isfinite(result.deviation).all())


def test_one_coil_needs_no_calibration_and_gives_the_inverse_transform():
    prepared, truth = prepare(1)
    result = Sense(SenseParameters(), "cpu")(dataclasses.replace(prepared, calibration=None))
    torch.testing.assert_close(result.image, truth.to(torch.complex64), rtol=1e-4, atol=1e-4)


def test_result_says_how_it_was_made():
    result = Sense(SenseParameters(), "cpu")(prepare(acceleration=2)[0])
    assert result.kind is UncertaintyKind.NOISE
    assert set(result.stages_s) == {"csm", "recon", "uncertainty"}
    assert 1 <= int(result.details["ReconIterations"]) <= 30
    assert float(result.details["ReconResidual"]) <= 1e-4


def test_bad_input_is_refused_with_a_reason():
    prepared, _ = prepare(acceleration=2)
    sense = Sense(SenseParameters(), "cpu")
    with pytest.raises(ReconstructionError, match="no 8 adjacent lines around the centre"):
        sense(dataclasses.replace(prepared, calibration=None))
    with pytest.raises(ReconstructionError, match="no line"):
        sense(dataclasses.replace(prepared, counts=torch.zeros_like(prepared.counts)))
    for value in (float("nan"), float("inf")):
        kspace = prepared.kspace.clone()
        kspace[0, 1, 0, 3, 4] = value
        with pytest.raises(ReconstructionError, match="not finite"):
            sense(dataclasses.replace(prepared, kspace=kspace))


@pytest.mark.parametrize(("n_coils", "acceleration", "is_warned"), [(1, 1, False), (1, 3, True), (4, 3, False)])
def test_aliases_that_one_coil_cannot_tell_apart_are_reported(n_coils: int, acceleration: int, is_warned: bool):
    prepared, _ = prepare(n_coils, 64, 36, acceleration=acceleration)
    warnings = Sense(SenseParameters(), "cpu")(prepared).warnings
    assert bool(warnings) == is_warned
    assert all("aliases" in warning for warning in warnings)
