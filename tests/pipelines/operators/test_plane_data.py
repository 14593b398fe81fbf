"""Data terms against their definition in double precision, finite differences, the NUFFT itself, and noise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.operators.fourier import to_image, to_kspace, uncentred
from pipelines.operators.nonuniform import NonUniform
from pipelines.operators.plane_data import CartesianData, DataTerm, NonUniformData
from pipelines.operators.toeplitz import Toeplitz

NOISE = 0.3
COILS = 3


def complex_noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def pattern(kind: str, p: int, q: int) -> Tensor:
    """How often points of two planes were measured; the planes differ."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(0, 3, (2, p, q), generator=generator).float()
    return {
        "points": drawn,
        "lines": drawn[:, :, :1].expand(2, p, q).clone(),
        "columns": drawn[:, :1].expand(2, p, q).clone(),
        "everything": torch.full((2, p, q), 2.0),
    }[kind]


KINDS = ["points", "lines", "columns", "everything"]


def cartesian(kind: str, p: int, q: int, noise_std: float = NOISE) -> tuple[CartesianData, Tensor, Tensor]:
    weights = pattern(kind, p, q)
    kspace = complex_noise(2, COILS, p, q, seed=3) * (weights > 0)[:, None]
    return CartesianData.of_kspace(kspace, weights, noise_std), kspace, weights


def by_definition(coils: Tensor, kspace: Tensor, weights: Tensor, noise_std: float) -> Tensor:
    apart = to_kspace(coils.to(torch.complex128)) - kspace
    return (weights[:, None] * apart.abs().square()).sum((1, 2, 3)) / noise_std**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "q"), [(8, 6), (7, 9), (1, 5)])
def test_value_and_gradient_are_those_of_the_definition(kind: str, p: int, q: int):
    data, kspace, weights = cartesian(kind, p, q)
    coils = complex_noise(2, COILS, p, q)
    point = coils.to(torch.complex128).requires_grad_(True)
    expected = by_definition(point, kspace, weights, NOISE)
    # For a real function torch gives the derivative by the real part plus i times that by the imaginary part.
    (slope,) = torch.autograd.grad(expected.sum(), point)

    value, gradient = data.value_and_gradient(coils)

    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(data.value(coils), value, rtol=0, atol=0)
    torch.testing.assert_close(gradient.to(torch.complex128), slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()))


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), part=st.sampled_from([1, 1j]), seed=st.integers(0, 1000))
def test_gradient_is_that_of_finite_differences_in_both_parts(kind: str, part: complex, seed: int):
    data, _, _ = cartesian(kind, 6, 5)
    coils = complex_noise(2, COILS, 6, 5, seed=seed)
    direction = part * torch.randn(coils.shape, generator=torch.Generator().manual_seed(seed + 1))
    # D is quadratic: central differences are exact for any step.
    slope = (data.value(coils + direction) - data.value(coils - direction)) / 2
    along = torch.view_as_real(data.value_and_gradient(coils)[1]) * torch.view_as_real(direction.to(torch.complex64))
    torch.testing.assert_close(along.sum((1, 2, 3, 4)).double(), slope, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", ["lines", "columns", "everything"])
def test_leaving_a_transform_out_changes_nothing(kind: str):
    data, kspace, weights = cartesian(kind, 8, 7)
    assert len(data._axes) < 2
    counts = uncentred(weights, (-2, -1))[:, None]
    measured = torch.fft.fftn(to_image(kspace), dim=(-2, -1), norm="ortho") * (counts > 0)
    plain = CartesianData(measured, counts, (-2, -1), torch.full((2,), NOISE))
    coils = complex_noise(2, COILS, 8, 7)
    for one, other in zip(data.value_and_gradient(coils), plain.value_and_gradient(coils), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(data.n_samples, plain.n_samples, rtol=0, atol=0)
    torch.testing.assert_close(data.curvature, plain.curvature, rtol=0, atol=0)


def test_items_do_not_touch_each_other():
    data, kspace, weights = cartesian("points", 8, 6)
    coils = complex_noise(2, COILS, 8, 6)
    for item in range(2):
        alone = CartesianData.of_kspace(kspace[item : item + 1], weights[item : item + 1], NOISE)
        value, gradient = alone.value_and_gradient(coils[item : item + 1])
        torch.testing.assert_close(value[0], data.value(coils)[item], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient[0], data.value_and_gradient(coils)[1][item], rtol=1e-5, atol=1e-4)


def test_inputs_stay_as_they_are():
    for data in (cartesian("everything", 4, 5)[0], nonuniform()[0]):
        coils = complex_noise(2, COILS, 4, 5)
        before = coils.clone()
        data.value_and_gradient(coils)
        data.value(coils)
        assert torch.equal(coils, before)


@pytest.mark.parametrize("kind", KINDS)
def test_n_samples_is_what_noise_alone_gives(kind: str):
    weights = pattern(kind, 9, 8)
    truth = complex_noise(2, COILS, 9, 8)
    total, n_scans = torch.zeros(2, dtype=torch.float64), 60
    for scan in range(n_scans):
        noise = complex_noise(2, COILS, 9, 8, seed=100 + scan) * NOISE / weights.clamp(min=1).sqrt()[:, None]
        kspace = (to_kspace(truth) + noise) * (weights > 0)[:, None]
        data = CartesianData.of_kspace(kspace, weights, NOISE)
        total += data.value(truth)
    # D is a sum of n_samples exponential numbers of mean 1; four standard errors.
    error = 4 / float(data.n_samples.min() * n_scans) ** 0.5
    torch.testing.assert_close(total / n_scans, data.n_samples, rtol=error, atol=0)
    assert data.n_samples.tolist() == [COILS * float((each > 0).sum()) for each in weights]


def make(kind: str) -> DataTerm:
    return cartesian("points", 4, 5)[0] if kind == "cartesian" else nonuniform()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_measured_samples_are_put_in_and_others_left(kind: str):
    weights = pattern(kind, 9, 8)
    measured = complex_noise(2, COILS, 9, 8) * (weights > 0)[:, None]
    coils = complex_noise(2, COILS, 9, 8, seed=7)
    data = CartesianData.of_kspace(measured, weights, NOISE)
    expected = torch.where((weights > 0)[:, None], measured, to_kspace(coils))
    completed = data.completed(coils)
    torch.testing.assert_close(to_kspace(completed), expected, rtol=0, atol=1e-5)
    assert float(data.value(completed).max()) < 1e-6


def test_nothing_is_put_in_off_the_grid():
    assert nonuniform()[0].completed(complex_noise(2, COILS, 4, 5)) is None


@pytest.mark.parametrize("kind", ["cartesian", "nonuniform"])
def test_other_units_with_their_noise_mean_the_same(kind: str):
    data = make(kind)
    coils = complex_noise(2, COILS, 4, 5)
    unit = torch.tensor([2.0, 1e-3])
    changed = data.of_unit(unit, NOISE / unit)
    there = coils / unit[:, None, None, None]
    torch.testing.assert_close(changed.value(there), data.value(coils), rtol=1e-5, atol=0)
    gradient = changed.value_and_gradient(there)[1] / unit[:, None, None, None]
    torch.testing.assert_close(gradient, data.value_and_gradient(coils)[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(changed.curvature, data.curvature * unit.double().square(), rtol=1e-6, atol=0)
    assert torch.equal(changed.n_samples, data.n_samples)


@pytest.mark.parametrize("kind", ["cartesian", "nonuniform"])
def test_twice_the_noise_counts_a_quarter(kind: str):
    data = make(kind)
    coils = complex_noise(2, COILS, 4, 5)
    noisier = data.of_unit(torch.ones(2), torch.full((2,), 2 * NOISE))
    torch.testing.assert_close(4 * noisier.value(coils), data.value(coils), rtol=1e-5, atol=0)
    torch.testing.assert_close(4 * noisier.curvature, data.curvature, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["cartesian", "nonuniform"])
def test_curvature_bounds_every_direction_and_is_reached(kind: str):
    data = make(kind)
    zero = torch.zeros(2, COILS, 4, 5, dtype=torch.complex64)
    at_zero = data.value_and_gradient(zero)[1]
    vector = complex_noise(2, COILS, 4, 5)
    size = torch.ones(2)
    for _ in range(200):
        curved = data.value_and_gradient(vector)[1] - at_zero
        size = torch.linalg.vector_norm(curved, dim=(1, 2, 3))
        vector = curved / size[:, None, None, None]
    torch.testing.assert_close(size.double(), data.curvature, rtol=1e-3, atol=0)


def nonuniform(noise_std: float = NOISE) -> tuple[NonUniformData, NonUniform, Tensor, Tensor]:
    """Samples anywhere, with weights; and the largest eigenvalue by a dense matrix."""
    generator = torch.Generator().manual_seed(4)
    positions = torch.rand((6, 9, 2), generator=generator) - 0.5
    area = torch.rand((6, 9), generator=generator) + 0.1
    operator = NonUniform(positions[None], (4, 5))
    samples = complex_noise(2, COILS, 1, 6, 9, seed=5)
    toeplitz = Toeplitz(positions, area, (4, 5))
    adjoint = torch.stack([operator.adjoint((each * area)[None])[0, :, 0] for each in samples])
    energy = (samples.abs().square() * area).sum((1, 2, 3, 4), dtype=torch.float64)
    unit = torch.eye(20, dtype=torch.complex64).view(20, 4, 5)
    matrix = toeplitz(unit).reshape(20, 20)
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    count = torch.full((2,), 1.0, dtype=torch.float64)
    data = NonUniformData(toeplitz, adjoint, energy, torch.full((2,), noise_std), count, largest)
    return data, operator, samples, area


def test_nonuniform_value_and_gradient_are_those_of_the_samples_themselves():
    data, operator, samples, area = nonuniform()
    coils = complex_noise(2, COILS, 4, 5)
    value, gradient = data.value_and_gradient(coils)
    for item in range(2):
        apart = operator(coils[item][None, :, None])[0] - samples[item]
        expected = float((area * apart.abs().square()).sum()) / NOISE**2
        slope = 2 / NOISE**2 * operator.adjoint((area * apart)[None])[0, :, 0]
        assert float(value[item]) == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(gradient[item], slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))
    torch.testing.assert_close(data.value(coils), value, rtol=0, atol=0)


@pytest.mark.parametrize("part", [1, 1j])
def test_nonuniform_gradient_is_that_of_finite_differences(part: complex):
    data, *_ = nonuniform()
    coils = complex_noise(2, COILS, 4, 5)
    direction = part * torch.randn(coils.shape, generator=torch.Generator().manual_seed(9))
    slope = (data.value(coils + direction) - data.value(coils - direction)) / 2
    along = torch.view_as_real(data.value_and_gradient(coils)[1]) * torch.view_as_real(direction.to(torch.complex64))
    torch.testing.assert_close(along.sum((1, 2, 3, 4)).double(), slope, rtol=1e-3, atol=1e-1)
