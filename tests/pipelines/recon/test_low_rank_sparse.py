"""L+S: the convex optimum, what each part holds, and that it beats frames on their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.operators.fourier import to_kspace
from pipelines.phantom import beating_heart, birdcage_coils
from pipelines.recon.frame_system import FrameSystem, cartesian_system
from pipelines.recon.low_rank_sparse import low_rank_sparse
from pipelines.recon.reconstruction import Prepared
from pipelines.solvers.low_rank import nuclear_norm, temporal_l1

FRAMES, ROWS, COLUMNS, COILS = 12, 48, 40, 4


def complex_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def scan(noise_std: float = 0.01, lines: int = 10, averages: float = 1.0) -> tuple[Prepared, Tensor, Tensor]:
    """A beating heart with other random lines in each frame; maps and truth `(frames, 1, y, x)`."""
    truth = torch.from_numpy(beating_heart(FRAMES, ROWS, COLUMNS)).to(torch.complex64)[:, None]
    maps = torch.from_numpy(birdcage_coils(COILS, (ROWS, COLUMNS)))[:, None]
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(FRAMES, 1, ROWS)
    counts[:, :, ROWS // 2 - 2 : ROWS // 2 + 2] = averages
    for frame in range(FRAMES):
        counts[frame, 0, torch.randperm(ROWS, generator=generator)[:lines]] = averages
    kspace = to_kspace(truth[:, None] * maps, (-3, -2, -1))
    kspace = kspace + noise_std / averages**0.5 * complex_noise(*kspace.shape)
    kspace = kspace * (counts > 0)[:, None, ..., None]
    prepared = Prepared(kspace, counts, None, noise_std, True, torch.ones(COLUMNS, dtype=torch.bool))
    return prepared, maps, truth


def weights_of(system: FrameSystem) -> tuple[float, float]:
    frames, pixels = system.right_side.shape
    return system.noise_std * (frames**0.5 + pixels**0.5), 2 * system.noise_std


def error(frames: Tensor, truth: Tensor) -> float:
    return float(torch.linalg.vector_norm(frames - truth) / torch.linalg.vector_norm(truth))


def test_the_system_is_the_normal_equation_of_the_scan():
    prepared, maps, truth = scan(noise_std=0.0)
    system = cartesian_system(prepared, maps, 1.0)
    rows = system.to_rows(truth)
    assert rows.shape == (FRAMES, ROWS * COLUMNS)
    torch.testing.assert_close(system.to_images(rows), truth)
    torch.testing.assert_close(system.normal(rows), system.right_side, rtol=0, atol=1e-5)
    a, b = complex_noise(*rows.shape, seed=2), complex_noise(*rows.shape, seed=3)
    left, right = (
        torch.vdot(b.flatten(), system.normal(a).flatten()),
        torch.vdot(system.normal(b).flatten(), a.flatten()),
    )
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)
    assert float(torch.linalg.vector_norm(system.normal(a))) <= system.curvature * float(torch.linalg.vector_norm(a))


@pytest.mark.parametrize("averages", [1.0, 4.0])
def test_the_noise_of_the_right_side_is_the_one_stated(averages: float):
    prepared, maps, _ = scan(noise_std=0.3, averages=averages)
    silent, _, _ = scan(noise_std=0.0, averages=averages)
    system = cartesian_system(prepared, maps, 2.0)
    noise = system.right_side - cartesian_system(silent, maps, 2.0).right_side
    assert float(noise.abs().square().mean()) ** 0.5 == pytest.approx(system.noise_std, rel=0.05)


def test_the_result_is_the_optimum_of_the_objective():
    prepared, maps, _ = scan()
    system = cartesian_system(prepared, maps, 1.0)
    of_rank, of_sparsity = weights_of(system)

    def objective(low_rank: Tensor, sparse: Tensor) -> float:
        x = low_rank + sparse
        data = torch.vdot(x.flatten(), (system.normal(x) / 2 - system.right_side).flatten()).real
        return float(data + of_rank * nuclear_norm(low_rank[None]) + of_sparsity * temporal_l1(sparse[None]))

    found = low_rank_sparse(system, of_rank, of_sparsity, iterations=3000, tolerance=1e-5)
    assert found.has_converged
    least = objective(found.low_rank, found.sparse)
    for seed in range(6):
        change = 0.03 * complex_noise(2, *system.right_side.shape, seed=seed)
        moving = change[1] - change[1].mean(0)
        assert objective(found.low_rank + change[0], found.sparse + moving) > least
        # Along the way to other answers, too.
        assert objective(1.01 * found.low_rank, found.sparse) > least
        assert objective(found.low_rank, 0.97 * found.sparse) > least


def test_the_background_is_low_rank_and_what_moves_has_no_mean():
    prepared, maps, truth = scan()
    system = cartesian_system(prepared, maps, 1.0)
    found = low_rank_sparse(system, *weights_of(system), iterations=300, tolerance=1e-4)
    values = torch.linalg.svdvals(found.low_rank)
    assert int((values > 1e-3 * values[0]).sum()) < FRAMES // 2
    assert float(found.sparse.mean(0).abs().max()) < 1e-5
    moving = system.to_images(found.sparse)[:, 0].abs().square().sum(0).sqrt()
    # Nothing moves at the left edge of the chest, the wall of the heart does.
    true_motion = truth[:, 0].abs().std(0)
    assert float(moving[true_motion > 0.1].mean()) > 5 * float(moving[true_motion == 0].mean())


def test_frames_together_are_better_than_each_alone():
    prepared, maps, truth = scan()
    system = cartesian_system(prepared, maps, 1.0)
    found = low_rank_sparse(system, *weights_of(system), iterations=300, tolerance=1e-4)
    together = error(system.to_images(found.frames), truth)
    alone = system.right_side
    for _ in range(100):
        alone = alone - (system.normal(alone) + 0.01 * alone - system.right_side) / system.curvature
    assert together < 0.5 * error(system.to_images(alone), truth)


def test_the_scale_of_the_data_does_not_matter():
    prepared, maps, _ = scan()
    one, other = (cartesian_system(prepared, maps, scale) for scale in (1.0, 64.0))
    results = [low_rank_sparse(each, *weights_of(each), iterations=50, tolerance=1e-4).frames for each in (one, other)]
    torch.testing.assert_close(results[0], 64 * results[1], rtol=0, atol=1e-4)
