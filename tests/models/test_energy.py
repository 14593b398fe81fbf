"""The energy: derivatives, sizes, independence of items, normalisation, and what learning to denoise makes of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.energy import (
    LARGE,
    LARGEST_DEVIATION,
    MOST_VALUES,
    SMALL,
    SMALLEST_DEVIATION,
    EnergyConfiguration,
    EnergyModel,
    deepened,
    make_energy,
    reference_magnitude,
)

TINY = EnergyConfiguration(stages=2, features=8, growth=1.5)


def tiny(seed: int = 0) -> EnergyModel:
    torch.manual_seed(seed)
    return EnergyModel(TINY)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_deepened_network_has_the_same_energy_and_learns_with_all_of_its_weights() -> None:
    model, image = tiny(), images(2, 12, 8)
    deeper = deepened(model, 3)
    assert deeper.configuration == EnergyConfiguration(stages=2, features=8, growth=1.5, blocks=3)
    for found, expected in zip(
        deeper.value_and_gradient(image, 0.05), model.value_and_gradient(image, 0.05), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    deeper(image, torch.full((2,), 0.05)).sum().backward()
    assert all(bool(weights.grad is not None and weights.grad.any()) for weights in deeper.parameters())
    with pytest.raises(ValueError, match="3 blocks a stage already, more than 2"):
        deepened(deeper, 2)


@pytest.mark.parametrize("deviation", [SMALLEST_DEVIATION, 0.05, LARGEST_DEVIATION])
def test_gradient_is_that_of_finite_differences(deviation: float) -> None:
    model = tiny().double()
    image = images(2, 9, 7).double()
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient = model.value_and_gradient(image, deviation)[1]
    h = 1e-6
    ahead, behind = model.value(image + h * direction, deviation), model.value(image - h * direction, deviation)
    torch.testing.assert_close((gradient * direction).sum((1, 2)), (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-6)


def test_gradient_is_that_of_autograd() -> None:
    model, image = tiny(), images(2, 12, 8).requires_grad_(True)
    value = model(image, torch.full((2,), 0.05))
    value.sum().backward()
    found = model.value_and_gradient(image.detach(), 0.05)
    assert torch.equal(found[0], value.detach())
    assert torch.equal(found[1], image.grad)


@given(st.integers(1, 3), st.integers(1, 21), st.integers(1, 21))
@settings(max_examples=25, deadline=None)
def test_images_of_any_size_pass(items: int, y: int, x: int) -> None:
    image = images(items, y, x)
    value, gradient = tiny().value_and_gradient(image, 0.03)
    assert (value.dtype, value.shape) == (torch.float64, (items,))
    assert (gradient.dtype, gradient.shape) == (torch.float32, image.shape)
    assert torch.isfinite(gradient).all()
    assert (value >= 0).all()


def test_zeros_around_an_image_up_to_whole_cells_change_nothing() -> None:
    model, image = tiny(), images(1, 10, 9)
    framed = torch.nn.functional.pad(image, (0, 3, 0, 2))
    torch.testing.assert_close(model.value(framed, 0.03), model.value(image, 0.03), rtol=1e-6, atol=0)


def test_items_know_nothing_of_each_other() -> None:
    model = tiny().double()
    batch = images(3, 12, 10).double()
    value, gradient = model.value_and_gradient(batch, 0.05)
    other = batch.clone()
    other[1] = 7 * other[1]
    changed, changed_gradient = model.value_and_gradient(other, 0.05)
    for item in (0, 2):
        torch.testing.assert_close(changed[item], value[item], rtol=1e-12, atol=0)
        torch.testing.assert_close(changed_gradient[item], gradient[item], rtol=1e-10, atol=1e-12)
    assert not torch.isclose(changed[1], value[1])


def test_levels_of_items_are_their_own() -> None:
    model = tiny().double()
    batch = images(2, 8, 8).double()
    both = model(batch, torch.tensor([0.02, 0.2], dtype=torch.float64))
    torch.testing.assert_close(both[0], model.value(batch[:1], 0.02)[0])
    torch.testing.assert_close(both[1], model.value(batch[1:], 0.2)[0])


def test_value_alone_is_the_value_with_gradient() -> None:
    model, image = tiny(), images(2, 11, 13)
    torch.testing.assert_close(model.value(image, 0.05), model.value_and_gradient(image, 0.05)[0], rtol=1e-6, atol=0)


def test_gradient_comes_inside_inference_mode_too() -> None:
    model, image = tiny(), images(2, 9, 9)
    outside = model.value_and_gradient(image, 0.05)
    with torch.inference_mode():
        inside = model.value_and_gradient(image * 1, 0.05)
        value = model.value(image * 1, 0.05)
    assert torch.equal(inside[1], outside[1])
    torch.testing.assert_close(value, outside[0], rtol=1e-6, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def smooth_images(n: int, generator: torch.Generator) -> Tensor:
    """A Gaussian toy: smooth fields about one half."""
    coarse = 0.5 + 0.2 * torch.randn((n, 1, 4, 4), generator=generator)
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")[:, 0]


def test_score_matching_teaches_the_gradient_to_be_the_noise_over_the_level() -> None:
    model, generator = tiny(), torch.Generator().manual_seed(2)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        clean = smooth_images(16, generator)
        levels = 0.03 * 10 ** torch.rand(16, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = (clean + levels[:, None, None] * noise).requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(noisy, levels).sum(), noisy, create_graph=True)
        loss = (levels[:, None, None] * gradient - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    clean = smooth_images(64, generator)
    for level in (0.05, 0.2):
        noisy = clean + level * torch.randn(clean.shape, generator=generator)
        energy, gradient = model.value_and_gradient(noisy, level)
        cleaned = noisy - level**2 * gradient
        # 16 numbers of 256 are free, so a sixteenth of the noise is the best that can be; nothing done leaves all.
        assert float((cleaned - clean).square().mean()) < 0.35 * level**2
        assert float((energy < model.value(clean + 2 * (noisy - clean), level)).float().mean()) > 0.95


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": 0},
        {"stages": 9},
        {"features": 7},
        {"features": 513},
        {"growth": 0.9},
        {"growth": 4.1},
        {"growth": float("nan")},
        {"blocks": 0},
        {"blocks": 9},
    ],
)
def test_sizes_that_make_no_network_are_refused(wrong: dict[str, int | float]) -> None:
    with pytest.raises(ValueError, match="a network has stages 1 to 8"):
        make_energy(**wrong)


def test_an_argument_that_is_unknown_is_refused() -> None:
    with pytest.raises(TypeError, match="depth"):
        make_energy(depth=3)


def test_a_configuration_survives_its_card() -> None:
    model = make_energy(**LARGE.as_dict() | {"stages": 3, "features": 16, "growth": 2.0})
    assert model.configuration == EnergyConfiguration(3, 16, 2.0, 2)
    assert model.configuration.widths == (16, 32, 64)


def test_networks_have_the_size_they_are_described_with() -> None:
    with torch.device("meta"):
        weights = {size: sum(p.numel() for p in EnergyModel(size).parameters()) for size in (SMALL, LARGE)}
    assert weights[SMALL] == pytest.approx(0.6e6, rel=0.05)
    assert weights[LARGE] == pytest.approx(26e6, rel=0.05)


def test_the_large_network_takes_images_of_any_size() -> None:
    with torch.device("meta"):
        found = EnergyModel(LARGE).residual(torch.empty(2, 100, 130), torch.empty(2))
    assert found.shape == (2, 128, 192)


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_reference_follows_the_scale_of_the_image(scale: float, seed: int) -> None:
    image = images(2, 20, 30, seed=seed)
    torch.testing.assert_close(reference_magnitude(scale * image), scale * reference_magnitude(image))


def test_reference_of_zeros_is_one_and_of_a_single_bright_pixel_that_pixel() -> None:
    image = torch.zeros(2, 40, 40)
    image[1, 3, 4] = 5
    assert reference_magnitude(image).tolist() == [1, 5]


def test_reference_is_nearly_the_brightest_pixel_but_not_a_single_one() -> None:
    image = images(1, 100, 100)
    image[0, 0, 0] = 50
    assert 0.99 < float(reference_magnitude(image)) < 1


def test_reference_of_an_image_with_many_values_is_that_of_every_nth() -> None:
    volume = images(1, 3 * MOST_VALUES + 1)
    torch.testing.assert_close(reference_magnitude(volume), torch.tensor([0.998]), rtol=1e-3, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_energies_of_the_cpu() -> None:
    model, image = tiny(), images(2, 33, 47)
    value, gradient = model.value_and_gradient(image, 0.05)
    on_gpu = model.to("cuda", memory_format=torch.channels_last).value_and_gradient(image.cuda(), 0.05)
    torch.testing.assert_close(on_gpu[0].cpu(), value, rtol=1e-3, atol=0)
    # TF32 convolutions, torch's default, keep ten bits.
    assert float((on_gpu[1].cpu() - gradient).norm() / gradient.norm()) < 1e-2
