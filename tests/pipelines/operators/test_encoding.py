"""Operators against their adjoints and dense matrices; the column-wise normal operator against the plain form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.operators import encoding as encoding_module
from pipelines.operators.checks import adjointness_error, operator_norm
from pipelines.operators.encoding import ColumnNormal, encoding
from pipelines.operators.fourier import Fourier
from pipelines.operators.linear import LinearOperator
from pipelines.operators.sampling import Sampling, sampling_weights
from pipelines.operators.sensitivity import Sensitivity

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 8))


def random_complex(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=generator)


def unit_maps(generator: torch.Generator, *shape: int) -> Tensor:
    maps = random_complex(generator, *shape)
    return maps / torch.linalg.vector_norm(maps, dim=0)


def random_weights(generator: torch.Generator, kind: str, *shape: int) -> Tensor:
    """Counts 0 to 3 that vary along all axes, along y, along z and y, or not at all."""
    frames, z, y, x = shape
    varying = {"all": (frames, z, y, x), "y": (frames, 1, y, 1), "zy": (frames, z, y, 1), "none": (frames, 1, 1, 1)}
    counts = torch.randint(0, 4, varying[kind], generator=generator).float()
    return counts.expand(shape).contiguous()


def dense(operator: LinearOperator, *shape: int) -> Tensor:
    """The matrix of an operator, column by column, in double precision."""
    size = int(torch.tensor(shape).prod())
    unit = torch.eye(size, dtype=torch.complex64)
    return torch.stack([operator(unit[i].view(shape)).flatten() for i in range(size)], 1).to(torch.complex128)


@settings(max_examples=25, deadline=None)
@given(SIZES, st.sampled_from(["all", "y", "zy", "none"]), st.integers(0, 2**31))
def test_adjoint_is_the_adjoint(sizes: tuple[int, ...], kind: str, seed: int):
    frames, coils, z, y, x = sizes
    generator = torch.Generator().manual_seed(seed)
    operator = encoding(
        random_complex(generator, coils, z, y, x), random_weights(generator, kind, frames, z, y, x) + 0.1
    )
    image = random_complex(generator, frames, z, y, x)
    kspace = random_complex(generator, frames, coils, z, y, x)
    assert adjointness_error(operator, image, kspace) < 1e-5


def test_a_wrong_adjoint_is_noticed():
    class Wrong(Sampling):
        def adjoint(self, tensor: Tensor, /) -> Tensor:
            return 1.01 * super().adjoint(tensor)

    generator = torch.Generator().manual_seed(0)
    tensor = random_complex(generator, 1, 1, 1, 8, 8)
    assert adjointness_error(Wrong(torch.ones(1, 1, 8, 8)), tensor, tensor) > 1e-3


@pytest.mark.parametrize("kind", ["y", "all"])
def test_norm_is_at_most_one_for_normalised_maps_and_single_counts(kind: str):
    generator = torch.Generator().manual_seed(4)
    maps = unit_maps(generator, 4, 1, 12, 11)
    operator = encoding(maps, random_weights(generator, kind, 1, 1, 12, 11).clamp(max=1))
    norm = operator_norm(operator.normal, random_complex(generator, 1, 1, 12, 11))
    assert 0.5 < norm <= 1 + 1e-4


def test_norm_of_known_operators():
    start = random_complex(torch.Generator().manual_seed(5), 1, 1, 4, 4)
    assert operator_norm(Sensitivity(torch.full((1, 1, 4, 4), 3j)).normal, start) == pytest.approx(3, rel=1e-6)
    assert operator_norm(lambda image: 0 * image, start) == 0


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from(["all", "y", "zy", "none"]), st.integers(0, 2**31))
def test_column_normal_equals_the_plain_normal_operator(sizes: tuple[int, ...], kind: str, seed: int):
    frames, coils, z, y, x = sizes
    generator = torch.Generator().manual_seed(seed)
    maps = random_complex(generator, coils, z, y, x)
    weights = random_weights(generator, kind, frames, z, y, x)
    image = random_complex(generator, frames, z, y, x)
    columns = ColumnNormal(maps, weights)
    result = columns.to_image(columns(columns.to_columns(image)))
    torch.testing.assert_close(result, encoding(maps, weights).normal(image), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from(["all", "y", "zy"]), st.integers(0, 2**31))
def test_column_normal_with_a_penalty_has_one_more_coil_that_saw_nothing(sizes: tuple[int, ...], kind: str, seed: int):
    frames, coils, z, y, x = sizes
    generator = torch.Generator().manual_seed(seed)
    maps = random_complex(generator, coils, z, y, x)
    seen = torch.rand((z, y, x), generator=generator) > 0.3
    maps = maps * seen
    weights = random_weights(generator, kind, frames, z, y, x)
    penalty = torch.where(weights > 0, 0.0, 0.3)
    image = random_complex(generator, frames, z, y, x)
    columns = ColumnNormal(maps, weights, penalty)
    result = columns.to_image(columns(columns.to_columns(image)))
    expected = encoding(maps, weights).normal(image)
    expected = expected + encoding(seen[None].to(torch.complex64), penalty).normal(image)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_small_blocks_give_the_same_result(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(6)
    maps = random_complex(generator, 3, 1, 8, 7)
    weights = random_weights(generator, "y", 4, 1, 8, 7)
    columns = ColumnNormal(maps, weights)
    image = columns.to_columns(random_complex(generator, 4, 1, 8, 7))
    whole = columns(image)
    n_blocks = []
    for limit in (1, 500, 3 * 7 * 8 * 8 * 2):
        monkeypatch.setattr(encoding_module, "BLOCK_BYTES_CPU", limit)
        n_blocks.append(len(list(columns.blocks())))
        torch.testing.assert_close(columns(image), whole)
    assert n_blocks == [28, 16, 2]


def test_columns_are_independent_along_a_complete_readout():
    generator = torch.Generator().manual_seed(7)
    weights = random_weights(generator, "y", 2, 1, 8, 5)
    columns = ColumnNormal(random_complex(generator, 3, 1, 8, 5), weights)
    vectors = columns.to_columns(random_complex(generator, 2, 1, 8, 5))
    assert vectors.shape == (10, 8)
    changed = vectors.clone()
    changed[3] += 1
    difference = columns(changed) - columns(vectors)
    assert float(difference[3].abs().max()) > 0.1
    difference[3] = 0
    assert float(difference.abs().max()) == 0


def test_normal_operator_is_the_dense_product():
    generator = torch.Generator().manual_seed(8)
    maps = random_complex(generator, 2, 1, 6, 5)
    counts = torch.tensor([[[0.0, 1, 0, 2, 3, 0]]])
    weights = sampling_weights(counts, torch.tensor([True, True, True, False, True]))
    operator = encoding(maps, weights)
    matrix = dense(operator, 1, 1, 6, 5)
    image = random_complex(generator, 1, 1, 6, 5)
    expected = (matrix.mH @ matrix @ image.flatten().to(torch.complex128)).to(torch.complex64)
    columns = ColumnNormal(maps, weights)
    torch.testing.assert_close(columns.to_image(columns(columns.to_columns(image))).flatten(), expected)


def test_composition_applies_right_to_left_and_uses_the_fast_normal():
    generator = torch.Generator().manual_seed(9)
    maps = random_complex(generator, 2, 1, 4, 4)
    operator = Fourier() @ Sensitivity(maps)
    image = random_complex(generator, 1, 1, 4, 4)
    torch.testing.assert_close(operator(image), Fourier()(Sensitivity(maps)(image)))
    torch.testing.assert_close(operator.normal(image), image * maps.abs().square().sum(0), rtol=1e-5, atol=1e-5)


def test_sampling_weighs_by_the_root_of_the_counts():
    weights = sampling_weights(torch.tensor([[[0.0, 1, 4]]]), torch.tensor([True, False]))
    kspace = torch.ones(1, 1, 1, 3, 2, dtype=torch.complex64)
    assert Sampling(weights)(kspace)[0, 0, 0].real.tolist() == [[0, 0], [1, 0], [2, 0]]
