"""Untrained networks: what they give, and that networks side by side know nothing of each other."""

from __future__ import annotations

import pytest
import torch

from models.deep_prior import LARGE, MEDIUM, SMALL, DeepPriorConfiguration, DeepPriors

TINY = DeepPriorConfiguration((8, 12), skip=4, inputs=4)


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (5, 4)])
@pytest.mark.parametrize("networks", [1, 3])
def test_images_of_any_size_come_out_small(shape: tuple[int, int], networks: int):
    found = DeepPriors(TINY, 5, shape, range(networks))()
    assert found.shape == (networks, 5, *shape)
    assert found.dtype == torch.complex64
    assert bool((found.abs().flatten(1).amax(1) > 0).all())
    assert float(found.detach().abs().max()) < 1


def test_a_network_gives_the_same_whatever_runs_beside_it():
    together = DeepPriors(TINY, 3, (12, 14), [7, 1, 4])
    found = together()
    for number, seed in enumerate((7, 1, 4)):
        alone = DeepPriors(TINY, 3, (12, 14), [seed])
        torch.testing.assert_close(found[number], alone()[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[0], found[1])


def test_what_is_asked_of_one_network_does_not_move_another():
    networks = DeepPriors(TINY, 3, (12, 14), [0, 1])
    networks()[0].abs().square().sum().backward()
    for weights in networks.parameters():
        assert weights.grad is not None
        own, other = weights.grad.chunk(2)
        assert bool(own.any())
        assert not bool(other.any())


def test_seeds_decide_everything():
    one, again = (DeepPriors(TINY, 2, (8, 8), [3]) for _ in range(2))
    torch.manual_seed(99)
    third = DeepPriors(TINY, 2, (8, 8), [3])
    assert torch.equal(one(), again())
    assert torch.equal(one(), third())


def test_a_network_fits_a_smooth_image_before_noise():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    disc = ((y**2 + x**2) < 0.4).float()
    noise = torch.randn((64, 64), generator=torch.Generator().manual_seed(5))  # not the input of the network
    losses: list[float] = []
    for target in (disc - disc.mean(), noise):
        network = DeepPriors(TINY, 1, (64, 64), [0])
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        loss = torch.zeros(())
        for _ in range(60):
            loss = (network()[0, 0].real - target).square().mean() / target.square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] < 0.1
    assert losses[1] > 4 * losses[0]


@pytest.mark.parametrize(("configuration", "millions"), [(SMALL, 0.1), (MEDIUM, 0.19), (LARGE, 1.04)])
def test_networks_have_the_size_they_are_described_with(configuration: DeepPriorConfiguration, millions: float):
    networks = DeepPriors(configuration, 12, (32, 32), [0, 1])
    weights = sum(each.numel() for each in networks.parameters()) / 2e6
    assert weights == pytest.approx(millions, rel=0.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeepPriorConfiguration((8, 10)), "multiples of 4"),
        (lambda: DeepPriorConfiguration(()), "1 to 6 widths"),
        (lambda: DeepPriorConfiguration((8,), skip=0), "at least one channel"),
        (lambda: DeepPriors(TINY, 0, (8, 8), [0]), "at least one frame"),
        (lambda: DeepPriors(TINY, 1, (8, 8), []), "one seed"),
        (lambda: DeepPriors(TINY, 1, (3, 8), [0]), "too small"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
