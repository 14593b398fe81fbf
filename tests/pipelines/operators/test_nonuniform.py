"""The non-uniform transform against a dense matrix, the Cartesian transform and itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.errors import ReconstructionError
from pipelines.operators import points as points_module
from pipelines.operators.checks import adjointness_error
from pipelines.operators.fourier import Fourier
from pipelines.operators.nonuniform import NonUniform, distinct_frames
from pipelines.operators.sensitivity import Sensitivity
from pipelines.operators.smoothness import Smoothness
from pipelines.operators.toeplitz import Toeplitz, fast_length

SHAPES = [(24, 24), (33, 24), (17, 31), (1, 12), (230, 180)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def anywhere(frames: int, readouts: int, samples: int, seed: int = 0) -> Tensor:
    return torch.rand(frames, readouts, samples, 2, generator=torch.Generator().manual_seed(seed)) - 0.5


def relative(value: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected))


def dense(positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix `(samples, pixels)` of the definition, in double precision."""
    y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    k = positions.reshape(-1, 2).double()
    angle = -2 * math.pi * (k[:, 1, None, None] * y[:, None] + k[:, 0, None, None] * x)
    return torch.exp(1j * angle).flatten(1) / math.sqrt(shape[0] * shape[1])


def cartesian(shape: tuple[int, int]) -> Tensor:
    """Every point of the Cartesian grid, a line a readout."""
    ky, kx = torch.meshgrid(*((torch.arange(n) - n // 2) / n for n in shape), indexing="ij")
    return torch.stack([kx, ky], -1)[None]


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_those_of_the_dense_matrix(shape: tuple[int, int]):
    positions, image = anywhere(1, 5, 40), normal(1, 1, *shape)
    expected = (dense(positions, shape) @ image.flatten().to(torch.complex128)).view(1, 1, 5, 40)
    # The accuracy asked of the transform is 1e-5; single precision adds to it.
    assert relative(NonUniform(positions, shape)(image), expected) < 5e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_cartesian_points_give_the_cartesian_transform(shape: tuple[int, int]):
    operator, image = NonUniform(cartesian(shape), shape), normal(1, 3, 1, *shape)
    kspace = Fourier()(image)
    assert relative(operator(image), kspace) < 5e-5
    assert relative(operator.adjoint(kspace), image) < 5e-5
    assert relative(operator.normal(image), image) < 5e-5


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    frames=st.integers(1, 3),
    coils=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_adjoint_is_the_adjoint_for_any_grid_and_sampling(rows: int, columns: int, frames: int, coils: int, seed: int):
    measured = torch.rand(frames, 4, 9, generator=torch.Generator().manual_seed(seed)) > 0.3
    operator = NonUniform(anywhere(frames, 4, 9, seed), (rows, columns), measured)
    image, samples = normal(frames, coils, 1, rows, columns, seed=seed), normal(frames, coils, 1, 4, 9, seed=seed + 1)
    assert adjointness_error(operator, image, samples) < 1e-5
    assert adjointness_error(operator, image[:, 0], samples[:, 0]) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_toeplitz_normal_is_adjoint_after_forward(shape: tuple[int, int]):
    measured = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(3)) > 0.2
    operator, image = NonUniform(anywhere(2, 20, 30), shape, measured), normal(2, 3, 1, *shape)
    assert relative(operator.normal(image), operator.adjoint(operator(image))) < 1e-4


@pytest.mark.parametrize("shape", [(24, 24), (17, 31)])
def test_weights_and_maps_enter_the_toeplitz_operator(shape: tuple[int, int]):
    positions, maps, image = anywhere(1, 6, 50), normal(3, *shape), normal(*shape, seed=4)
    weights = torch.rand(6, 50, generator=torch.Generator().manual_seed(5))
    chain = NonUniform(positions, shape) @ Sensitivity(maps[:, None])
    samples = chain(image[None, None]) * weights
    expected = chain.adjoint(samples)[0, 0]
    assert relative(Toeplitz(positions[0], weights, shape).between(maps, image), expected) < 1e-4


def test_normal_of_a_chain_with_coils_uses_the_toeplitz_operator(monkeypatch: pytest.MonkeyPatch):
    operator = NonUniform(anywhere(1, 6, 50), (16, 16))
    chain, image = operator @ Sensitivity(normal(3, 1, 16, 16)), normal(1, 1, 16, 16)
    expected = chain.adjoint(chain(image))
    monkeypatch.setattr(NonUniform, "__call__", lambda *_: pytest.fail("samples were computed"))
    assert relative(chain.normal(image), expected) < 1e-4


def test_frames_have_trajectories_of_their_own_and_share_equal_ones():
    positions = anywhere(2, 4, 10)[[0, 1, 0]]
    image = normal(3, 2, 1, 12, 14)
    together = NonUniform(positions, (12, 14))(image)
    for frame in range(3):
        alone = NonUniform(positions[frame : frame + 1], (12, 14))(image[frame : frame + 1])
        assert relative(together[frame], alone[0]) < 1e-6
    assert distinct_frames(positions) == ([0, 1, 0], [0, 1])


def test_samples_that_do_not_exist_are_zero_and_ignored():
    measured = torch.ones(1, 4, 10, dtype=torch.bool)
    measured[0, 1:3] = False
    operator = NonUniform(anywhere(1, 4, 10), (8, 9), measured)
    assert not operator(normal(1, 1, 8, 9))[:, :, 1:3].any()
    samples = normal(1, 1, 4, 10)
    garbage = torch.where(measured[:, None], samples, 1e20)
    torch.testing.assert_close(operator.adjoint(garbage), operator.adjoint(samples))


def test_nothing_measured_gives_zeros():
    operator = NonUniform(anywhere(1, 2, 3), (5, 6), torch.zeros(1, 2, 3, dtype=torch.bool))
    assert not operator(normal(1, 1, 5, 6)).any()
    assert not operator.adjoint(normal(1, 1, 2, 3)).any()
    assert not operator.normal(normal(1, 1, 5, 6)).any()


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (7, 8), (230, 240), (256, 256), (361, 375)])
def test_fast_lengths_have_small_factors(n: int, expected: int):
    assert fast_length(n) == expected


@pytest.mark.parametrize("shape", [(16, 16), (14, 23)])
def test_the_penalty_is_hermitian_and_leaves_the_middle_of_constant_images_alone(shape: tuple[int, int]):
    smoothness = Smoothness(shape, torch.device("cpu"))
    assert adjointness_error(smoothness, normal(1, *shape), normal(1, *shape, seed=1)) < 1e-5
    grid = (fast_length(shape[0]), fast_length(shape[1]))
    constant = torch.ones((1, *grid), dtype=torch.complex64)
    assert float(Smoothness(grid, torch.device("cpu"))(constant).abs().max()) < 1e-5


@pytest.mark.parametrize("frequency", [(4, 0), (0, 4), (3, 5)])
def test_the_penalty_is_the_square_of_the_frequency(frequency: tuple[int, int]):
    n = 16
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    angle = 2 * math.pi * (frequency[0] * y + frequency[1] * x) / n
    wave = torch.polar(torch.ones(n, n), angle)
    expected = 16 * (frequency[0] ** 2 + frequency[1] ** 2) / n**2 * wave
    torch.testing.assert_close(Smoothness((n, n), torch.device("cpu"))(wave), expected, atol=1e-4, rtol=1e-4)


def test_a_gpu_without_cufinufft_is_a_coded_error(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(points_module, "import_module", missing)
    with pytest.raises(ReconstructionError, match="extra `gpu`"):
        points_module._GpuPlan(torch.zeros(1), torch.zeros(1), (4, 4), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gpu_gives_what_the_cpu_gives(shape: tuple[int, int]):
    """CPU twin: `test_samples_are_those_of_the_dense_matrix`."""
    pytest.importorskip("cufinufft")
    positions, image, samples = anywhere(2, 5, 40), normal(2, 3, 1, *shape), normal(2, 3, 1, 5, 40)
    here, there = NonUniform(positions, shape), NonUniform(positions.cuda(), shape)
    assert relative(there(image.cuda()).cpu(), here(image)) < 1e-4
    assert relative(there.adjoint(samples.cuda()).cpu(), here.adjoint(samples)) < 1e-4
    assert relative(there.normal(image.cuda()).cpu(), here.normal(image)) < 1e-4
