"""`zero_filled` and `sense` of non-Cartesian readouts: phantoms, dense least squares, calibrated deviations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.assembly.frame import Group, NoiseCovariance
from pipelines.errors import ReconstructionError
from pipelines.operators.nonuniform import NonUniform
from pipelines.operators.sensitivity import Sensitivity
from pipelines.parameters import Parameters, SenseParameters, ZeroFilledParameters
from pipelines.phantom import head_phantom
from pipelines.pipeline import Pipeline
from pipelines.preprocess.density import density_weights
from pipelines.preprocess.nonuniform import prepare_nonuniform
from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.recon.nonuniform_sense import System
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import Sense
from pipelines.recon.zero_filled import ZeroFilled
from pipelines.scan_header import Encoding, Space


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return ((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)).astype(np.complex64)


def radial(spokes: int, samples: int, *, golden: bool = False, first: int = 0) -> np.ndarray[Any, Any]:
    step = np.pi * (np.sqrt(5) - 1) / 2 if golden else np.pi / spokes
    angle = (first + np.arange(spokes)) * step
    radius = (np.arange(samples) - samples // 2) / samples
    return np.stack([np.outer(np.cos(angle), radius), np.outer(np.sin(angle), radius)], -1).astype(np.float32)[None]


def spiral(interleaves: int, n: int, pitch: int) -> np.ndarray[Any, Any]:
    """Archimedean spirals whose arms would be one cell apart with `pitch` interleaves."""
    turns = n / 2 / pitch
    angle = np.linspace(0, 1, int(40 * turns) * 4) ** 0.7 * turns
    arm = angle / turns / 2 * np.exp(2j * np.pi * angle)
    arms = arm * np.exp(2j * np.pi * np.arange(interleaves) / interleaves)[:, None]
    return np.stack([arms.real, arms.imag], -1).astype(np.float32)[None]


TRAJECTORIES = {
    "radial": radial(64, 96),
    "golden angle": radial(40, 96, golden=True),
    "spiral": spiral(12, 48, 12),
    "spiral, half": spiral(8, 48, 16),
}


def prepared_of(group: Group) -> Prepared:
    return prepare_nonuniform(group, Parameters.model_validate({}), "cpu").prepared


def nrmse(image: Tensor, truth: np.ndarray[Any, Any]) -> float:
    """Without any factor: brightness counts."""
    inside = truth > 0.1 * truth.max()
    gap = image.abs().numpy().reshape(truth.shape)[inside] - truth[inside]
    return float(np.linalg.norm(gap) / np.linalg.norm(truth[inside]))


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("shape", [(48, 48), (47, 48), (40, 48)])
def test_sense_shows_the_object(make_nonuniform_group, name: str, shape: tuple[int, int]):
    group = make_nonuniform_group(trajectory=TRAJECTORIES[name], shape=shape)
    result = Sense(SenseParameters(), "cpu")(prepared_of(group))
    # The corners of k-space are never reached, and the edges of the phantom are sharp.
    assert result.image.shape == (1, 1, *shape)
    assert nrmse(result.image, head_phantom(1, *shape)[0]) < 0.13


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("combine", ["rss", "sensitivity"])
def test_zero_filled_shows_the_object_at_its_brightness(make_nonuniform_group, name: str, combine: str):
    group = make_nonuniform_group(trajectory=TRAJECTORIES[name])
    parameters = ZeroFilledParameters.model_validate({"combine": combine})
    result = ZeroFilled(parameters, "cpu")(prepared_of(group))
    truth = head_phantom(1, 48, 48)[0]
    inside = truth > 0.1
    found = result.image.abs().numpy()[0, 0]
    # Aliases add to the root of the sum of squares.
    assert abs(float(found[inside].sum() / truth[inside].sum()) - 1) < 0.15
    assert nrmse(result.image, truth) < 0.3


@pytest.mark.parametrize("name", ["golden angle", "spiral, half"])
def test_sense_is_better_than_zero_filled_when_undersampled(make_nonuniform_group, name: str):
    prepared, truth = prepared_of(make_nonuniform_group(trajectory=TRAJECTORIES[name])), head_phantom(1, 48, 48)[0]
    sense = nrmse(Sense(SenseParameters(), "cpu")(prepared).image, truth)
    plain = nrmse(ZeroFilled(ZeroFilledParameters(), "cpu")(prepared).image, truth)
    assert sense < 0.8 * plain


@pytest.mark.parametrize("regularisation", [0.003, 0.1])
def test_sense_solves_the_dense_least_squares_problem(make_nonuniform_group, regularisation: float):
    n = 16
    prepared = prepared_of(
        make_nonuniform_group(n=n, n_coils=3, trajectory=radial(9, 2 * n), noise_std=0.05, noise_scan=True)
    )
    assert prepared.trajectory is not None
    assert prepared.calibration is not None
    positions, measured = prepared.trajectory.positions, prepared.trajectory.measured
    maps = estimate_maps(prepared.calibration, (1, n, n))
    chain = NonUniform(positions, (n, n)) @ Sensitivity(maps)
    unit = torch.eye(n * n, dtype=torch.complex64).view(-1, 1, 1, n, n)
    matrix = torch.stack([chain(column).flatten() for column in unit], 1).to(torch.complex128)
    density = density_weights(positions[0], measured[0], (n, n)).flatten().repeat(3).double()
    support = (maps != 0).any(0).flatten()
    # The penalty, from its definition: the discrete Fourier matrix of a grid of 16 x 16 (a length the FFT likes).
    frequency = torch.fft.fftfreq(n, dtype=torch.float64)
    penalty = 16 * (frequency[:, None].square() + frequency.square()).flatten()
    fourier = torch.fft.fft2(unit[:, 0, 0].to(torch.complex128), norm="ortho").flatten(1).T
    system = matrix.mH @ (density[:, None] * matrix) + regularisation * (
        support[:, None] * (fourier.mH @ (penalty[:, None] * fourier)) * support
    )
    right_side = matrix.mH @ (density * prepared.kspace.flatten().to(torch.complex128))
    expected = torch.zeros(n * n, dtype=torch.complex128)
    expected[support] = torch.linalg.solve(system[support][:, support], right_side[support])
    parameters = SenseParameters.model_validate(
        {"regularisation": regularisation, "iterations": 300, "tolerance": 1e-6}
    )

    image = Sense(parameters, "cpu")(prepared).image.flatten()

    assert float((image - expected).abs().max() / expected.abs().max()) < 2e-3


@pytest.mark.parametrize(
    ("pipeline", "parameters"),
    [("zero_filled", {}), ("zero_filled", {"combine": "sensitivity"}), ("sense", {})],
)
@pytest.mark.parametrize("trajectory", [radial(26, 64, golden=True), spiral(6, 32, 10)], ids=["golden angle", "spiral"])
def test_deviation_is_that_of_repeated_scans(
    make_nonuniform_group, rng, pipeline: str, parameters: Any, trajectory: Any
):
    """Monte Carlo through the whole pipeline, maps of each scan included; images of one scan share its noise scan."""
    n, scans, noise_std = 32, 40, 0.05
    clean = make_nonuniform_group(n=n, trajectory=trajectory)
    runner = Pipeline(pipeline, parameters, "cpu")
    # Both dwell times and the bandwidth of the fixture: 5 us, 20 us, 0.8.
    samples = complex_normal(rng, 256, clean.kspace.shape[1], 64) * np.float32(noise_std * np.sqrt(0.8 * 5 / 20))
    magnitudes, deviations = [], []
    for _ in range(scans):
        kspace = clean.kspace + np.float32(noise_std) * complex_normal(rng, *clean.kspace.shape)
        output = runner(replace(clean, kspace=kspace, noise=NoiseCovariance.of(samples, 20.0)), {})
        magnitudes.append(output.images[0].pixels[0, 0])
        deviations.append(output.images[1].pixels[0, 0])
    inside = head_phantom(1, n, n)[0] > 0.1
    empirical, claimed = np.std(magnitudes, 0, ddof=1)[inside], np.mean(deviations, 0)[inside]
    # 40 scans know a deviation to 11 %, its median over several hundred pixels to 1 %.
    assert 0.95 < np.median(empirical / claimed) < 1.05


def test_frames_have_trajectories_of_their_own(make_nonuniform_group):
    both = np.concatenate([radial(40, 96, golden=True), radial(40, 96, golden=True, first=40)])
    prepared = prepared_of(make_nonuniform_group(trajectory=both, noise_std=0.01))
    together = Sense(SenseParameters(), "cpu")(prepared)
    assert together.image.shape == together.deviation.shape == (2, 1, 48, 48)
    for frame in range(2):
        assert nrmse(together.image[frame], head_phantom(1, 48, 48)[0]) < 0.13
    gap = torch.linalg.vector_norm(together.image[0] - together.image[1]) / torch.linalg.vector_norm(together.image[0])
    assert 1e-3 < float(gap) < 0.1


def test_the_same_group_gives_the_same_bytes(make_nonuniform_group):
    group = make_nonuniform_group(noise_std=0.05, noise_scan=True)
    pipeline = Pipeline("sense", {}, "cpu")
    first = pipeline(group, {})
    torch.manual_seed(3)
    second = pipeline(group, {})
    for one, other in zip(first.images, second.images, strict=True):
        assert one.pixels.tobytes() == other.pixels.tobytes()


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_one_coil_needs_no_calibration(make_nonuniform_group, name: str):
    group = make_nonuniform_group(n_coils=1, noise_std=0.01)
    images = Pipeline(name, {}, "cpu")(group, {}).images
    found = torch.from_numpy(np.asarray(images[0].pixels[0, 0]))
    assert nrmse(found, head_phantom(1, 48, 48)[0]) < 0.15


@pytest.mark.parametrize("units", [1.0, 2 * np.pi, 48.0])
def test_units_of_the_trajectory_do_not_change_the_image(make_nonuniform_group, units: float):
    group = make_nonuniform_group()
    expected = Pipeline("zero_filled", {}, "cpu")(group, {}).images[0].pixels
    scaled = replace(group, trajectory=group.trajectory * np.float32(units))
    found = Pipeline("zero_filled", {}, "cpu")(scaled, {}).images[0].pixels
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(expected.max()))


def test_images_come_on_the_recon_grid_with_the_field_of_view_cut_once(make_nonuniform_group):
    """The encoded field of view is twice the one of the images along both axes; the images must not be cut again."""
    group = make_nonuniform_group()
    header = group.scan.encodings[0]
    assert header.encoded.field_of_view_mm[1] == 2 * header.recon.field_of_view_mm[1]
    interpolated = Encoding(header.encoded, Space((96, 96, 1), header.recon.field_of_view_mm), header.trajectory)
    larger = replace(group, scan=replace(group.scan, encodings=(interpolated,)))
    small, large = (Pipeline("sense", {}, "cpu")(each, {}).images[0].pixels[0, 0] for each in (group, larger))
    assert small.shape == (48, 48)
    assert large.shape == (96, 96)
    assert nrmse(torch.from_numpy(np.asarray(small)), head_phantom(1, 48, 48)[0]) < 0.13
    # Both grids have their centre at n//2: every second pixel of the larger one is a pixel of the smaller one.
    assert float(np.abs(large[::2, ::2] - small).max()) < 0.02 * float(small.max())


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_a_black_scan_gives_black_images(make_nonuniform_group, name: str):
    group = make_nonuniform_group()
    group.kspace[:] = 0
    for image in Pipeline(name, {}, "cpu")(group, {}).images:
        assert not image.pixels.any()


def test_several_coils_without_a_centre_are_refused_by_sense_only(make_nonuniform_group):
    trajectory = radial(64, 96)
    outer = trajectory[:, :, np.abs(np.arange(96) - 48) > 12]
    group = make_nonuniform_group(trajectory=outer)
    with pytest.raises(ReconstructionError, match="their maps are estimated"):
        Pipeline("sense", {}, "cpu")(group, {})
    assert len(Pipeline("zero_filled", {"combine": "sensitivity"}, "cpu")(group, {}).images) == 2


def test_the_system_is_hermitian(make_nonuniform_group, monkeypatch: pytest.MonkeyPatch):
    systems: list[System] = []
    prepared = prepared_of(make_nonuniform_group(n=24))

    from pipelines.recon import nonuniform_sense

    def remember(system: System, *_: Any) -> Tensor:
        systems.append(system)
        return torch.ones(24, 24)

    monkeypatch.setattr(nonuniform_sense, "replica_variance", remember)
    Sense(SenseParameters(), "cpu")(prepared)
    support = (systems[0].maps != 0).any(0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 24, 24, dtype=torch.complex64, generator=generator) * support
    left = torch.sum(y.conj() * systems[0](x))
    right = torch.sum(systems[0](y).conj() * x)
    assert float((left - right).abs() / left.abs().clamp(min=1)) < 1e-3
