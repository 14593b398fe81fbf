"""The joint objective against its definition in double precision, and its descent by the real solver."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.energy import EnergyConfiguration, EnergyModel
from pipelines.operators import sine
from pipelines.operators.fourier import to_kspace
from pipelines.operators.plane_data import CartesianData
from pipelines.recon.joint_problem import SMALLEST_LENGTH, JointProblem, lengths, unit_maps
from pipelines.recon.total_variation import TotalVariation
from pipelines.solvers.ipalm import TwoBlockProblem, ipalm

ITEMS, COILS, ROWS, COLUMNS = 2, 3, 12, 10
SHAPE = (ITEMS, COILS, ROWS, COLUMNS)
NOISE = 0.1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def complex_noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=generator(seed))


def smooth(seed: int) -> Tensor:
    """Maps of about length 1."""
    return unit_maps(sine.proximal(complex_noise(*SHAPE, seed=seed), torch.full((ITEMS,), 5.0)))


def small_energy() -> EnergyModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return EnergyModel(EnergyConfiguration(stages=2, features=8, growth=1.0, blocks=1))


def make_prior(kind: str) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
    if kind == "total_variation":
        prior = TotalVariation(40.0, 0.01)
        return prior, prior.value
    energy = small_energy()
    return (lambda u: energy.value_and_gradient(u, 0.05)), (lambda u: energy.value(u, 0.05))


def make_problem(
    kind: str = "total_variation", weight: float = 1.0, mu: float = 50.0
) -> tuple[JointProblem, Callable[[Tensor, Tensor], Tensor]]:
    """The problem, and D by its definition in double precision."""
    counts = (torch.rand((ITEMS, ROWS, 1), generator=generator(3)) > 0.4).float().expand(ITEMS, ROWS, COLUMNS)
    image = torch.rand((ITEMS, 1, ROWS, COLUMNS), generator=generator(4))
    kspace = (to_kspace(image * smooth(5)) + NOISE * complex_noise(*SHAPE, seed=6)) * counts[:, None]

    def definition(u: Tensor, v: Tensor) -> Tensor:
        n = torch.sqrt(v.real.square().sum(1) + v.imag.square().sum(1)).clamp(min=SMALLEST_LENGTH)
        apart = (to_kspace(v * (u / n)[:, None]) - kspace) * counts[:, None]
        return apart.abs().square().sum((1, 2, 3)) / NOISE**2

    data = CartesianData.of_kspace(kspace, counts.contiguous(), NOISE)
    smoothness = torch.full((ITEMS,), mu, dtype=torch.float64)
    return JointProblem(data, *make_prior(kind), weight, smoothness, smooth(8)), definition


def image(seed: int = 9) -> Tensor:
    return torch.rand((ITEMS, ROWS, COLUMNS), generator=generator(seed))


def test_it_is_a_problem_of_two_blocks():
    assert isinstance(make_problem()[0], TwoBlockProblem)


def test_values_and_gradients_are_those_of_the_definition():
    problem, definition = make_problem()
    u, v = image(), 3 * smooth(10)
    wide_u, wide_v = u.double().requires_grad_(True), v.to(torch.complex128).requires_grad_(True)
    expected = definition(wide_u, wide_v)
    slope_u, slope_v = torch.autograd.grad(expected.sum(), (wide_u, wide_v))

    (value_u, gradient_u), (value_v, gradient_v) = problem.gradient_u(u, v), problem.gradient_v(u, v)

    for value in (problem.value(u, v), value_u, value_v):
        torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient_u.double(), slope_u, rtol=1e-4, atol=1e-5 * float(slope_u.abs().max()))
    torch.testing.assert_close(
        gradient_v.to(torch.complex128), slope_v, rtol=1e-4, atol=1e-5 * float(slope_v.abs().max())
    )


@pytest.mark.parametrize("part", [1, 1j])
def test_gradients_are_those_of_finite_differences(part: complex):
    problem, _ = make_problem()
    u, v = image(), 3 * smooth(10)
    step = 1e-2
    along_u = torch.randn(u.shape, generator=generator(11))
    along_v = (part * torch.randn(v.shape, generator=generator(12))).to(torch.complex64)
    slope_u = (problem.value(u + step * along_u, v) - problem.value(u - step * along_u, v)) / (2 * step)
    slope_v = (problem.value(u, v + step * along_v) - problem.value(u, v - step * along_v)) / (2 * step)

    predicted_u = (problem.gradient_u(u, v)[1] * along_u).sum((1, 2)).double()
    gradient = problem.gradient_v(u, v)[1]
    predicted_v = (torch.view_as_real(gradient) * torch.view_as_real(along_v)).sum((1, 2, 3, 4)).double()

    size = float(torch.view_as_real(gradient).square().sum().sqrt())
    torch.testing.assert_close(predicted_u, slope_u, rtol=1e-3, atol=1e-1)
    torch.testing.assert_close(predicted_v, slope_v, rtol=1e-2, atol=1e-3 * size)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_length_of_the_maps_at_a_pixel_does_not_count(seed: int, size: float):
    problem, _ = make_problem()
    u, v = image(seed), size * complex_noise(*SHAPE, seed=seed)
    factor = torch.rand((ITEMS, 1, ROWS, COLUMNS), generator=generator(seed)) * 10 + 0.1
    torch.testing.assert_close(problem.value(u, factor * v), problem.value(u, v), rtol=1e-5, atol=0)
    # Hence no slope along the maps themselves.
    gradient = problem.gradient_v(u, v)[1]
    radial = (gradient * v.conj()).real.sum(1)
    within = lengths(v) * torch.view_as_real(gradient).square().sum((1, -1)).sqrt()
    assert float((radial.abs() / within.clamp(min=1e-3)).max()) < 1e-4


def test_gradient_holds_where_maps_are_too_short_to_have_a_direction():
    problem, definition = make_problem()
    u, v = image(), smooth(10)
    v[:, :, 3:5] *= 0.5 * SMALLEST_LENGTH
    wide = v.to(torch.complex128).requires_grad_(True)
    (slope,) = torch.autograd.grad(definition(u.double(), wide).sum(), wide)
    gradient = problem.gradient_v(u, v)[1]
    torch.testing.assert_close(gradient.to(torch.complex128), slope, rtol=1e-3, atol=1e-5 * float(slope.abs().max()))


def test_zero_maps_stay_zero():
    maps = smooth(10)
    maps[:, :, 2:4, 5] = 0
    unit = unit_maps(maps)
    assert not bool(unit[:, :, 2:4, 5].abs().any())
    assert bool(torch.isfinite(torch.view_as_real(unit)).all())
    known = lengths(maps) > SMALLEST_LENGTH
    torch.testing.assert_close(lengths(unit)[known], torch.ones(int(known.sum())))


@pytest.mark.parametrize("step", [1e-6, 1e-3, 1.0])
def test_proximal_map_of_the_maps_meets_its_optimality_condition(step: float):
    problem, _ = make_problem(mu=40.0)
    point, first = 2 * complex_noise(*SHAPE, seed=13), smooth(8)
    found = problem.prox_v(point, torch.full((ITEMS,), step))
    residual = found - point + step * 40.0 * sine.laplacian(found - first)
    # The gradient of mu F is multiplied by at most 8 mu step, and so is rounding.
    assert float(residual.abs().max()) < 1e-5 * max(1.0, 8 * 40 * step)
    before, after = problem.penalty_v(point), problem.penalty_v(found)
    assert bool((after < before).all())


def test_penalty_of_the_first_maps_is_zero_and_the_nearest_image_is_not_negative():
    problem, _ = make_problem()
    assert problem.penalty_v(smooth(8)).tolist() == [0.0, 0.0]
    point = image() - 0.5
    assert torch.equal(problem.prox_u(point, torch.ones(ITEMS)), point.clamp(min=0))
    assert problem.penalty_u(point).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["total_variation", "energy"])
def test_regulariser_is_the_weighted_prior_with_its_slope(kind: str):
    one, three = make_problem(kind)[0], make_problem(kind, 3.0)[0]
    u = image()
    value, gradient = three.regulariser_gradient(u)
    torch.testing.assert_close(value, 3 * one.regulariser(u), rtol=1e-6, atol=1e-6)
    direction = torch.randn(u.shape, generator=generator(14))
    slope = (three.regulariser(u + 2e-3 * direction) - three.regulariser(u - 2e-3 * direction)) / 4e-3
    scale = float(torch.linalg.vector_norm(gradient))
    torch.testing.assert_close((gradient * direction).sum((1, 2)).double(), slope, rtol=2e-2, atol=1e-2 * scale)


@pytest.mark.parametrize("kind", ["total_variation", "energy"])
@pytest.mark.parametrize("mu", [0.5, 500.0])
def test_objective_never_rises_from_block_to_block(kind: str, mu: float):
    problem, _ = make_problem(kind, mu=mu)
    found = ipalm(problem, image(), smooth(8), iterations=40, tolerance=1e-7)
    steps = torch.stack([found.objective[:-1], found.objective_between, found.objective[1:]])
    rounding = 1e-6 * found.objective[0]
    assert bool((steps.diff(dim=0) <= rounding).all())
    assert bool((found.objective[-1] < 0.7 * found.objective[0]).all())
    torch.testing.assert_close(
        problem.value(found.u, found.v) + problem.regulariser(found.u) + problem.penalty_v(found.v),
        found.objective[-1],
        rtol=1e-5,
        atol=1e-3,
    )
    assert bool((found.u >= 0).all())


def complex_image(seed: int = 9) -> Tensor:
    return torch.complex(image(seed), 0.05 * torch.randn((ITEMS, ROWS, COLUMNS), generator=generator(seed + 1)))


@pytest.mark.parametrize("part", [1, 1j])
@pytest.mark.parametrize("block", ["image", "maps"])
def test_gradients_of_a_complex_image_are_those_of_finite_differences(part: complex, block: str):
    problem, definition = make_problem()
    u, v = complex_image(), 1.1 * smooth(11)
    value, gradient = (problem.gradient_u if block == "image" else problem.gradient_v)(u, v)
    torch.testing.assert_close(value, definition(u, v).double(), rtol=1e-5, atol=0)
    wide_u, wide_v = u.to(torch.complex128), v.to(torch.complex128)
    towards = part * torch.randn(gradient.shape, dtype=torch.float64, generator=generator(12))
    step = 1e-6
    ends = [
        definition(wide_u + sign * step * towards, wide_v)
        if block == "image"
        else definition(wide_u, wide_v + sign * step * towards)
        for sign in (1, -1)
    ]
    slope = (gradient.conj() * towards).real.sum(tuple(range(1, gradient.ndim)))
    torch.testing.assert_close(slope.double(), (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=1e-2)


def test_the_regulariser_of_a_complex_image_has_the_slope_of_its_value():
    problem, _ = make_problem()
    u = complex_image()
    towards = complex_image(20) - u
    step = 1e-3
    ends = [problem.regulariser(u + sign * step * towards) for sign in (1, -1)]
    value, gradient = problem.regulariser_gradient(u)
    torch.testing.assert_close(value, problem.regulariser(u))
    slope = (gradient.conj() * towards).real.sum((1, 2)).double()
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=5e-3, atol=1e-2)


def test_a_real_image_costs_as_much_as_a_complex_one_without_imaginary_part():
    problem, _ = make_problem()
    real, v = image(), smooth(11)
    as_complex = real.to(torch.complex64)
    torch.testing.assert_close(problem.regulariser(as_complex), problem.regulariser(real))
    torch.testing.assert_close(problem.gradient_u(as_complex, v)[1].real, problem.gradient_u(real, v)[1])
    torch.testing.assert_close(problem.gradient_v(as_complex, v)[1], problem.gradient_v(real, v)[1])


def test_only_the_real_part_of_a_complex_image_is_held_above_zero():
    problem, _ = make_problem()
    found = problem.prox_u(torch.tensor([[[-1 - 2j, 3 - 4j]]]), torch.ones(1))
    assert found.flatten().tolist() == [-2j, 3 - 4j]


@pytest.mark.parametrize("kind", ["total_variation", "energy"])
def test_objective_of_a_complex_image_never_rises(kind: str):
    problem, _ = make_problem(kind)
    found = ipalm(problem, complex_image(), smooth(8), iterations=15, tolerance=1e-7)
    path = torch.stack([found.objective[:-1], found.objective_between, found.objective[1:]], 1).flatten(0, 1)
    assert bool((path.diff(dim=0) <= 1e-5 * path[1:].abs()).all())
    assert bool((found.objective[-1] < found.objective[0]).all())
