"""The unrolled network: shapes, symmetries, gradients through the physics, and what its kinds reduce to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.architectures import make_network
from models.energy import reference_magnitude
from models.errors import CardError
from models.unrolled import LEAST_NOISE, LEAST_WEIGHT, MOST_WEIGHT, SMALL, UnrolledConfiguration, UnrolledModel
from models.unrolled_physics import apply_normal, apply_solve

TINY = UnrolledConfiguration(cascades=2, stages=2, features=8, memory=4, head=8)


@dataclass
class Dense:
    """`N` as a Hermitian matrix for each item, solved exactly."""

    matrix: Tensor
    shape: tuple[int, int]

    @property
    def support(self) -> Tensor:
        return torch.ones((len(self.matrix), *self.shape), dtype=self.matrix.real.dtype)

    def normal(self, image: Tensor, /) -> Tensor:
        return (self.matrix @ image.flatten(1)[..., None]).reshape(image.shape)

    def solve(self, right_side: Tensor, weight: Tensor, /) -> Tensor:
        eye = torch.eye(self.matrix.shape[-1], dtype=self.matrix.dtype)
        system = self.matrix + weight[:, None, None] * eye
        return torch.linalg.solve(system, right_side.flatten(1)[..., None]).reshape(right_side.shape)


def dense(items: int, shape: tuple[int, int], dtype: torch.dtype = torch.complex64) -> Dense:
    n = shape[0] * shape[1]
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn((items, n, n), dtype=dtype, generator=generator)
    matrix = factor @ factor.mH
    return Dense(matrix / torch.linalg.matrix_norm(matrix, 2)[:, None, None], shape)


def adjoint(items: int, shape: tuple[int, int], dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn((items, *shape), dtype=dtype, generator=torch.Generator().manual_seed(2))


def make(configuration: UnrolledConfiguration = TINY, *, is_trained: bool = True) -> UnrolledModel:
    """A network; one that is trained corrects something."""
    torch.manual_seed(0)
    model = UnrolledModel(configuration)
    if is_trained:
        with torch.no_grad():
            for network in (*model.corrections, model.head):
                network.last.weight.normal_(0, 0.05)  # type: ignore[union-attr]
    return model


KINDS: list[dict[str, Any]] = [
    {},
    {"consistency": "conjugate_gradient"},
    {"sees_data": False, "memory": 0},
    {"sees_data": False, "memory": 0, "consistency": "conjugate_gradient"},
    {"shared": True},
    {"start_weight": 0.0},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (5, 12), (3, 1)])
def test_images_of_any_size_come_back_in_their_size(kind: dict[str, Any], shape: tuple[int, int]) -> None:
    result = make(replace(TINY, **kind))(adjoint(2, shape), dense(2, shape), torch.full((2,), 0.02))
    assert result.image.shape == result.start.shape == result.deviation.shape == (2, *shape)
    assert (result.image.dtype, result.deviation.dtype) == (torch.complex64, torch.float32)
    assert torch.isfinite(torch.view_as_real(result.image)).all()
    assert (result.deviation > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_the_image_gets_a_gradient_from_the_image_and_the_head_none(kind: dict[str, Any]) -> None:
    shape = (8, 8)
    model = make(replace(TINY, **kind))
    result = model(adjoint(2, shape), dense(2, shape), torch.full((2,), 0.02))
    result.image.abs().sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("head"):
            assert parameter.grad is None
        elif name != "slopes":
            # What the last cascade writes into its memory is read by the head alone.
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


def test_the_head_is_taught_by_the_deviation_alone() -> None:
    model = make()
    result = model(adjoint(2, (8, 8)), dense(2, (8, 8)), torch.full((2,), 0.02))
    result.deviation.sum().backward()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if not name.startswith("head"))
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_gradients_through_the_physics_are_those_of_finite_differences() -> None:
    encoding = dense(2, (3, 2), torch.complex128)
    image = adjoint(2, (3, 2), torch.complex128).requires_grad_(True)
    weight = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_normal(encoding, x), (image,))
    assert torch.autograd.gradcheck(lambda x, w: apply_solve(encoding, x, w), (image, weight))


def test_recomputing_inside_of_cascades_gives_the_same_gradients() -> None:
    gradients: list[list[Tensor]] = []
    for save_memory in (False, True):
        model = make().train()
        result = model(adjoint(1, (8, 8)), dense(1, (8, 8)), torch.full((1,), 0.02), save_memory=save_memory)
        result.image.abs().sum().backward()
        gradients.append([each.grad for each in model.parameters() if each.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_data_in_other_units_give_the_image_in_these_units() -> None:
    model = make()
    y, encoding, noise = adjoint(2, (8, 8)), dense(2, (8, 8)), torch.full((2,), 0.02)
    one, other = model(y, encoding, noise), model(1e4 * y, encoding, 1e4 * noise)
    torch.testing.assert_close(other.image, 1e4 * one.image, rtol=1e-3, atol=1.0)
    torch.testing.assert_close(other.deviation, 1e4 * one.deviation, rtol=1e-3, atol=1.0)


def test_items_do_not_know_of_each_other() -> None:
    model = make()
    y, encoding, noise = adjoint(3, (8, 8)), dense(3, (8, 8)), torch.tensor([0.01, 0.05, 0.02])
    together = model(y, encoding, noise)
    order = torch.tensor([2, 0, 1])
    permuted = model(y[order], replace(encoding, matrix=encoding.matrix[order]), noise[order])
    torch.testing.assert_close(permuted.image, together.image[order], rtol=1e-4, atol=1e-5)
    alone = model(y[1:2], replace(encoding, matrix=encoding.matrix[1:2]), noise[1:2])
    torch.testing.assert_close(alone.image, together.image[1:2], rtol=1e-4, atol=1e-5)


def test_a_network_that_corrects_nothing_descends_by_gradients() -> None:
    model = make(is_trained=False)
    y, encoding, noise = adjoint(1, (4, 4)), dense(1, (4, 4)), torch.full((1,), 0.02)
    result = model(y, encoding, noise)
    x = result.start
    for _ in range(TINY.cascades):
        x = x - (encoding.normal(x) - y)
    torch.testing.assert_close(result.image, x, rtol=1e-4, atol=1e-5)


def test_a_network_that_corrects_nothing_solves_proximal_steps_with_conjugate_gradients() -> None:
    model = make(replace(TINY, consistency="conjugate_gradient"), is_trained=False)
    y, encoding, noise = adjoint(1, (4, 4)), dense(1, (4, 4)), torch.full((1,), 0.02)
    result = model(y, encoding, noise)
    x = result.start
    for _ in range(TINY.cascades):
        # Ten times the noise, in units of the image, which it is divided by.
        weight = 10 * (noise / reference_magnitude(result.start.abs())).clamp(min=LEAST_NOISE)
        x = encoding.solve(y + weight[:, None, None] * x, weight)
    torch.testing.assert_close(result.image, x, rtol=1e-4, atol=1e-5)


def test_the_start_is_least_squares_with_a_weight_that_grows_with_the_noise() -> None:
    model = make()
    y, encoding = adjoint(1, (4, 4)), dense(1, (4, 4))
    for noise, expected in ((1e-6, LEAST_WEIGHT), (1e3, MOST_WEIGHT)):
        start = model(y, encoding, torch.full((1,), noise)).start
        torch.testing.assert_close(start, encoding.solve(y, torch.full((1,), expected)), rtol=1e-3, atol=1e-3)


def test_a_card_makes_the_network_and_refuses_sizes_that_make_none() -> None:
    model = make_network("unrolled", TINY.as_dict())
    assert isinstance(model, UnrolledModel)
    assert model.configuration == TINY
    with pytest.raises(CardError, match="cascades 1 to 32"):
        make_network("unrolled", {"cascades": 0})
    with pytest.raises(CardError, match="consistency"):
        make_network("unrolled", {"consistency": "hope"})


def test_the_small_network_fits_its_budget() -> None:
    assert 4 * sum(each.numel() for each in UnrolledModel(SMALL).parameters()) < 10e6
