"""Priors of background and motion: the convex optimum, gradients against differences, and networks in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from models.deep_prior import DeepPriorConfiguration
from pipelines.recon.deep_low_rank_sparse import (
    FreePriors,
    NetworkPriors,
    penalties_of,
    smooth_nuclear_norm,
    smooth_temporal_l1,
)
from pipelines.solvers.admm import Decomposition, admm
from pipelines.solvers.fista import fista
from pipelines.solvers.low_rank import nuclear_norm, shrink_singular_values, shrink_temporal_spectrum, temporal_l1

FRAMES, ROWS, COLUMNS, COILS = 8, 16, 16, 3
LOW_RANK, SPARSE = 0.3, 0.02
TINY = DeepPriorConfiguration((8, 12), skip=4, inputs=4)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Scan:
    """A disc that beats on a square, every fourth line measured, other lines in each frame, with three coils."""

    def __init__(self, dtype: torch.dtype = torch.complex128) -> None:
        y, x = torch.meshgrid(torch.linspace(-1, 1, ROWS), torch.linspace(-1, 1, COLUMNS), indexing="ij")
        radii = 0.4 + 0.2 * torch.sin(torch.arange(FRAMES) * 2 * torch.pi / FRAMES)
        beating = (x**2 + y**2 < radii[:, None, None] ** 2).to(dtype)
        truth = 0.5 * ((x.abs() < 0.8) & (y.abs() < 0.8)) + beating
        phases = torch.stack([torch.exp(1j * n * (x + y)) * (1.2 + torch.cos(2 * x + n)) for n in range(COILS)])
        self.maps = (phases / phases.abs().square().sum(0).sqrt()).to(dtype)
        generator = torch.Generator().manual_seed(1)
        self.mask = torch.zeros(FRAMES, 1, ROWS, 1)
        for frame in range(FRAMES):
            self.mask[frame, 0, torch.randperm(ROWS, generator=generator)[: ROWS // 4]] = 1
        noisy = self._fourier(truth) + 0.02 * noise(FRAMES, COILS, ROWS, COLUMNS, dtype=dtype)
        self.right_side = self._adjoint(self.mask * noisy)
        self.energy = float((self.mask * noisy).abs().square().sum())
        mean = self.right_side.mean(0, keepdim=True).expand_as(self.right_side)
        self.start = torch.stack([mean, self.right_side - mean])

    def normal(self, rows: Tensor) -> Tensor:
        return self._adjoint(self.mask * self._fourier(rows.view(FRAMES, ROWS, COLUMNS)))

    def _fourier(self, images: Tensor) -> Tensor:
        kspace: Tensor = torch.fft.fft2(images[:, None] * self.maps, norm="ortho")
        return kspace

    def _adjoint(self, kspace: Tensor) -> Tensor:
        images: Tensor = torch.fft.ifft2(self.mask * kspace, norm="ortho")
        return (self.maps.conj() * images).sum(1).flatten(1)

    def solve(
        self,
        priors: FreePriors | NetworkPriors,
        mode: Literal["theory", "fast"],
        iterations: int,
        inner_tolerance: float = 1e-4,
    ) -> Decomposition:
        return admm(
            self.normal, self.right_side, priors, self.start, curvature=1.0, mode=mode, iterations=iterations,
            inner_iterations=30, inner_tolerance=inner_tolerance,
        )  # fmt: skip

    def objective(self, parts: Tensor) -> float:
        """Of the convex problem."""
        x = parts.sum(0)
        data = torch.vdot(x.flatten(), (self.normal(x) / 2 - self.right_side).flatten()).real
        return float(self.energy / 2 + data + LOW_RANK * nuclear_norm(parts[:1]) + SPARSE * temporal_l1(parts[1:]))


@pytest.fixture(scope="module")
def scan() -> Scan:
    return Scan()


@pytest.fixture(scope="module")
def single() -> Scan:
    return Scan(torch.complex64)


@pytest.fixture(scope="module")
def optimum(scan: Scan) -> Tensor:
    """Of the convex problem, by an accelerated proximal gradient."""

    def gradient(parts: Tensor) -> Tensor:
        slope = scan.normal(parts[0].sum(0)) - scan.right_side
        return slope.expand(1, 2, *slope.shape)

    def proximal(parts: Tensor, step: Tensor) -> Tensor:
        low_rank = shrink_singular_values(parts[:, 0], step * LOW_RANK)
        return torch.stack([low_rank, shrink_temporal_spectrum(parts[:, 1], step * SPARSE, without_mean=True)], 1)

    two = torch.full((1,), 2.0, dtype=torch.float64)
    return fista(gradient, proximal, scan.start[None], curvature=two, iterations=2000, tolerance=1e-10).x[0]


def networks(scan: Scan, seeds: tuple[int, int] = (0, 1), order: Tensor | None = None) -> NetworkPriors:
    """Tiny ones, with the pixels in any order."""
    order = torch.arange(ROWS * COLUMNS) if order is None else order
    back = order.argsort()
    return NetworkPriors(
        TINY, FRAMES, (ROWS, COLUMNS), seeds, penalties=penalties_of(scan.right_side, LOW_RANK, SPARSE),
        to_rows=lambda images: images.flatten(1)[:, order],
        to_images=lambda rows: rows[:, back].view(-1, 1, ROWS, COLUMNS), adam_steps=5, rate=1e-2,
    )  # fmt: skip


def merit(priors: NetworkPriors, targets: Tensor, rho: float) -> float:
    return priors.value() + rho / 2 * float((priors.parts() - targets).abs().square().sum())


@pytest.mark.parametrize(("mode", "iterations"), [("theory", 700), ("fast", 80)])
def test_free_parts_reach_the_convex_optimum(
    scan: Scan, optimum: Tensor, mode: Literal["theory", "fast"], iterations: int
):
    least = scan.objective(optimum)
    found = scan.solve(FreePriors(scan.start, low_rank=LOW_RANK, sparse=SPARSE), mode, iterations)
    reached = scan.objective(found.parts)
    assert abs(reached - least) < 1e-4 * abs(least)
    assert scan.objective(scan.start) > 1.1 * least
    if mode == "theory":
        assert float(found.values.diff().max()) < 1e-12 * scan.energy
    # Neither part is empty, so both proximal maps had a say.
    ranks = int((torch.linalg.svdvals(optimum[0]) > 1e-6).sum())
    assert 0 < ranks < FRAMES
    assert float(optimum[1].abs().max()) > 0.1
    torch.testing.assert_close(found.parts, torch.stack([found.low_rank, found.sparse]), rtol=0, atol=1e-2)


def test_the_dual_is_the_slope_of_the_data(scan: Scan):
    found = scan.solve(FreePriors(scan.start, low_rank=LOW_RANK, sparse=SPARSE), "theory", 20, 1e-13)
    slope = scan.normal(found.solution) - scan.right_side
    torch.testing.assert_close(3 * found.dual, slope, rtol=0, atol=1e-12)
    loose = scan.solve(FreePriors(scan.start, low_rank=LOW_RANK, sparse=SPARSE), "theory", 20)
    slope = scan.normal(loose.solution) - scan.right_side
    assert 1e-10 < float((3 * loose.dual - slope).abs().max()) < 1e-4


def test_the_lyapunov_function_never_rises_with_networks(single: Scan):
    priors = networks(single)
    found = single.solve(priors, "theory", 14)
    largest = float(found.values.abs().max())
    assert float(found.values.diff().max()) < 1e-6 * largest
    assert float(found.values[0] - found.values[-1]) > 0.1 * largest
    assert found.kept > 10
    assert torch.equal(found.parts, priors.parts())


def test_networks_and_data_come_together(single: Scan):
    start = single.solve(networks(single), "fast", 1)
    found = single.solve(networks(single), "fast", 30)

    def apart(each: Decomposition) -> float:
        return float(torch.linalg.vector_norm(each.parts.sum(0) - each.solution))

    assert apart(found) < 0.4 * apart(start)


@pytest.mark.parametrize("rank", [8, 3, 1, 0])
def test_the_gradient_of_the_smooth_nuclear_norm_is_that_of_differences(rank: int):
    matrix = noise(8, rank) @ noise(rank, 40, seed=1)
    rounding, size = 1e-2, 1e-5
    value, gradient = smooth_nuclear_norm(matrix, rounding)
    expected = (torch.linalg.svdvals(matrix).square() + rounding**2).sqrt().sum()
    assert value == pytest.approx(float(expected), rel=1e-9)
    assert bool(gradient.isfinite().all())
    for seed in range(4):
        change = noise(8, 40, seed=seed + 2)
        change = change / torch.linalg.vector_norm(change)
        plus, minus = (smooth_nuclear_norm(matrix + sign * size * change, rounding)[0] for sign in (1, -1))
        slope = float((gradient.conj() * change).sum().real)
        assert (plus - minus) / (2 * size) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_gradient_at_equal_singular_values_is_that_of_differences():
    matrix = torch.eye(5, 12, dtype=torch.complex128)
    change = noise(5, 12)
    plus, minus = (smooth_nuclear_norm(matrix + sign * 1e-5 * change, 1e-2)[0] for sign in (1, -1))
    slope = float((smooth_nuclear_norm(matrix, 1e-2)[1].conj() * change).sum().real)
    assert (plus - minus) / 2e-5 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("matrix", [noise(6, 20), torch.zeros(6, 20, dtype=torch.complex128)])
def test_the_gradient_of_temporal_sparsity_is_that_of_differences(matrix: Tensor):
    value, gradient = smooth_temporal_l1(matrix, 1e-2)
    assert value == pytest.approx(float(temporal_l1(matrix[None])), abs=0.0101 * matrix.numel())
    for seed in range(4):
        change = noise(6, 20, seed=seed + 2)
        plus, minus = (smooth_temporal_l1(matrix + sign * 1e-5 * change, 1e-2)[0] for sign in (1, -1))
        slope = float((gradient.conj() * change).sum().real)
        assert (plus - minus) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_roundings_are_those_of_the_data(scan: Scan):
    found = penalties_of(scan.right_side, 2.0, 3.0)
    assert found.low_rank_rounding == pytest.approx(1e-3 * float(torch.linalg.matrix_norm(scan.right_side, 2)))
    spectrum = torch.fft.fft(scan.right_side, dim=0) / FRAMES**0.5
    assert found.sparse_rounding == pytest.approx(1e-3 * float(spectrum.abs().max()))
    assert (found.low_rank, found.sparse) == (2.0, 3.0)
    with pytest.raises(ValueError, match="no signal"):
        penalties_of(0 * scan.right_side, 2.0, 3.0)


def test_a_step_lowers_what_it_is_asked_to(single: Scan):
    # Of the two terms either may be what counts.
    for rho in (1e-3, 10.0):
        priors = networks(single)
        targets = single.start
        before = merit(priors, targets, rho)
        priors.step(targets, rho, 1.0)
        first = merit(priors, targets, rho)
        for _ in range(10):
            priors.step(targets, rho, 1.0)
        assert merit(priors, targets, rho) < first < before


def test_a_step_scaled_to_nothing_moves_nothing(single: Scan):
    priors = networks(single)
    before = priors.parts()
    priors.step(single.start, 3.0, 0.0)
    assert torch.equal(priors.parts(), before)
    priors.step(single.start, 3.0, 1e-3)
    little = float((priors.parts() - before).abs().max())
    other = networks(single)
    other.step(single.start, 3.0, 1.0)
    assert 0 < 10 * little < float((other.parts() - before).abs().max())


def test_the_dynamic_part_has_no_mean_over_time(single: Scan):
    priors = networks(single)
    for _ in range(2):
        assert float(priors.parts()[1].mean(0).abs().max()) < 1e-7
        assert float(priors.parts()[0].mean(0).abs().max()) > 1e-3
        priors.step(single.start + 1, 3.0, 1.0)
    free = FreePriors(single.start, low_rank=LOW_RANK, sparse=SPARSE)
    free.step(single.start + 1, 3.0, 1.0)
    assert float(free.parts()[1].mean(0).abs().max()) < 1e-7


def test_a_mean_that_the_dynamic_part_cannot_have_does_not_pull(single: Scan):
    plain, shifted = networks(single), networks(single)
    plain.step(single.start, 3.0, 1.0)
    shifted.step(torch.stack([single.start[0], single.start[1] + 5]), 3.0, 1.0)
    torch.testing.assert_close(shifted.parts(), plain.parts(), rtol=1e-3, atol=1e-4)


def test_the_order_of_pixels_does_not_matter(single: Scan):
    order = torch.randperm(ROWS * COLUMNS, generator=torch.Generator().manual_seed(0))
    one, other = networks(single), networks(single, order=order)
    one.step(single.start, 3.0, 1.0)
    other.step(single.start[..., order], 3.0, 1.0)
    torch.testing.assert_close(other.parts(), one.parts()[..., order], rtol=1e-3, atol=1e-5)
    assert other.value() == pytest.approx(one.value(), rel=1e-4)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_after_a_return_the_same_step_leads_to_the_same_place(single: Scan, steps_before: int):
    priors = networks(single)
    for _ in range(steps_before):
        priors.step(single.start, 3.0, 1.0)
    before = priors.parts()
    priors.save()
    found: list[Tensor] = []
    for _ in range(2):
        priors.step(single.start, 3.0, 1.0)
        found.append(priors.parts())
        priors.step(2 * single.start, 0.5, 0.5)
        priors.restore()
        assert torch.equal(priors.parts(), before)
    assert torch.equal(*found)
    assert not torch.equal(found[0], before)


def test_there_is_no_return_to_what_was_not_saved(single: Scan):
    with pytest.raises(RuntimeError, match="nothing was saved"):
        networks(single).restore()


@pytest.mark.parametrize("mode", ["theory", "fast"])
def test_the_same_seeds_give_the_same_bytes(single: Scan, mode: Literal["theory", "fast"]):
    one, again, other = (single.solve(networks(single, seeds), mode, 3) for seeds in ((4, 5), (4, 5), (4, 6)))
    for part in ("low_rank", "sparse", "parts", "dual", "values"):
        assert torch.equal(getattr(one, part), getattr(again, part))
    assert not torch.equal(one.sparse, other.sparse)


def test_networks_learn_inside_inference_mode_too(single: Scan):
    expected = single.solve(networks(single), "theory", 3)

    def run(make: Callable[[], Scan]) -> Decomposition:
        inner = make()  # of tensors that never take part in a gradient
        return inner.solve(networks(inner), "theory", 3)

    with torch.inference_mode():
        found = run(lambda: Scan(torch.complex64))
    assert torch.equal(found.parts, expected.parts)
    assert torch.equal(found.values, expected.values)
