import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.operators.sampling import unreached
from pipelines.recon import uncertainty
from pipelines.recon.uncertainty import sense_deviation


def random_maps(seed, coils, z, y, x, hole=False):
    """Smooth maps of no particular norm, optionally zero in a corner."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((2 * coils, 1, 3, 3), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (y, x), mode="bicubic", align_corners=True)[:, 0]
    maps = torch.complex(fine[:coils], fine[coils:])[:, None].repeat(1, z, 1, 1)
    if z > 1:
        maps = maps * torch.linspace(0.5, 1.5, z)[None, :, None, None]
    if hole:
        maps[..., : y // 4, : x // 3] = 0
    return maps.contiguous()


def dense_deviation(maps, counts, noise_std, weight, readout_sampled, penalty=None):
    """Root of half the diagonal of the covariance of one frame, from the dense encoding matrix in double precision."""
    _, z, y, x = maps.shape
    n = z * y * x
    basis = np.eye(n).reshape(n, z, y, x)
    images = basis[:, None] * maps.numpy().astype(np.complex128)
    axes = (-3, -2, -1)
    kspace = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(images, axes=axes), axes=axes, norm="ortho"), axes=axes)
    weights = counts.numpy()[:, :, None] * readout_sampled.numpy()
    matrix = (kspace * np.sqrt(weights)).reshape(n, -1).T
    normal = matrix.conj().T @ matrix
    system = normal + weight * np.eye(n)
    if penalty is not None:
        seen = basis * (np.abs(maps.numpy()).sum(0) > 0)
        rows = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(seen, axes=axes), axes=axes, norm="ortho"), axes=axes)
        rows = (rows * np.sqrt(penalty.numpy())).reshape(n, -1).T
        system += rows.conj().T @ rows
    inverse = np.linalg.inv(system)
    covariance = noise_std**2 * inverse @ normal @ inverse
    return np.sqrt(np.maximum(covariance.diagonal().real, 0) / 2).reshape(z, y, x)


def bright(z, y, x, frames=1):
    """An image so far above the noise that its magnitude varies like the noise in phase with it."""
    return torch.full((frames, z, y, x), 1e4 + 0j, dtype=torch.complex64)


def pattern(y, acceleration, dense=()):
    counts = torch.zeros(y)
    counts[y // 2 % acceleration :: acceleration] = 1
    counts[list(dense)] = 1
    return counts


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    coils=st.integers(2, 5),
    y=st.sampled_from([11, 12, 16]),
    acceleration=st.integers(1, 4),
    extra=st.booleans(),
    hole=st.booleans(),
)
def test_deviation_equals_that_of_the_dense_matrix(seed, coils, y, acceleration, extra, hole):
    maps = random_maps(seed, coils, 1, y, 6, hole)
    counts = pattern(y, acceleration, range(y // 2 - 2, y // 2 + 2) if extra else ())[None]
    everywhere = torch.ones(6, dtype=torch.bool)

    found = sense_deviation(maps, counts[None], 0.7, 0.02, bright(1, y, 6), everywhere)[0].numpy()

    expected = np.where((maps.abs().sum(0) > 0).numpy(), dense_deviation(maps, counts, 0.7, 0.02, everywhere), 0)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=1e-4)


def test_lines_measured_more_often_lower_the_deviation_as_the_dense_matrix_says():
    maps = random_maps(3, 4, 1, 12, 5)
    counts = pattern(12, 2)[None]
    counts[0, 4:9] += 2
    everywhere = torch.ones(5, dtype=torch.bool)

    found = sense_deviation(maps, counts[None], 1.0, 0.01, bright(1, 12, 5), everywhere)[0].numpy()

    np.testing.assert_allclose(found, dense_deviation(maps, counts, 1.0, 0.01, everywhere), rtol=5e-3)


def test_undersampling_along_z_is_treated_like_undersampling_along_y():
    maps = random_maps(5, 4, 6, 5, 4)
    counts = pattern(6, 2)[:, None].repeat(1, 5)
    everywhere = torch.ones(4, dtype=torch.bool)

    found = sense_deviation(maps, counts[None], 1.0, 0.05, bright(6, 5, 4), everywhere)[0].numpy()

    np.testing.assert_allclose(found, dense_deviation(maps, counts, 1.0, 0.05, everywhere), rtol=5e-3)


@pytest.mark.parametrize("case", ["two axes", "two axes, one column", "asymmetric echo"])
def test_replicas_agree_with_the_dense_matrix_where_nothing_is_separable(case):
    z, y, x = {"two axes": (6, 8, 6), "two axes, one column": (16, 18, 1), "asymmetric echo": (1, 16, 16)}[case]
    maps = random_maps(7, 4, z, y, x)
    counts = torch.ones((z, y))
    everywhere = torch.ones(x, dtype=torch.bool)
    if "two axes" in case:
        counts[(torch.arange(z)[:, None] + torch.arange(y)) % 2 == 0] = 0
    else:
        counts[:, ::2] = 0
        everywhere[:4] = False

    found = sense_deviation(maps, counts[None], 1.0, 0.05, bright(z, y, x), everywhere)[0].numpy()

    ratio = found / dense_deviation(maps, counts, 1.0, 0.05, everywhere)
    assert np.median(ratio) == pytest.approx(1, abs=0.08)
    assert 0.5 < ratio.min() <= ratio.max() < 2


@pytest.mark.parametrize("case", ["lines", "partitions", "both", "asymmetric echo"])
@pytest.mark.parametrize("hole", [False, True])
def test_penalty_on_what_was_not_reached_is_in_the_deviation(case, hole):
    z, y, x = {"lines": (1, 16, 5), "partitions": (16, 1, 5), "both": (8, 12, 5), "asymmetric echo": (1, 16, 16)}[case]
    maps = random_maps(13, 4, z, y, x, hole)
    counts, everywhere = torch.zeros((z, y)), torch.ones(x, dtype=torch.bool)
    counts[z // 3 if case in ("partitions", "both") else 0 :, y // 3 if case in ("lines", "both") else 0 :] = 1
    everywhere[: x // 4 if case == "asymmetric echo" else 0] = False
    penalty = unreached(counts[None], everywhere) * 0.2

    found = sense_deviation(maps, counts[None], 1.0, 1e-3, bright(z, y, x), everywhere, (), penalty)[0].numpy()

    seen = (maps.abs().sum(0) > 0).numpy()
    ratio = found[seen] / dense_deviation(maps, counts, 1.0, 1e-3, everywhere, penalty[0])[seen]
    if case in ("lines", "partitions"):
        np.testing.assert_allclose(ratio, 1, rtol=5e-3)
    assert np.median(ratio) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("y", [25, 24])
def test_columns_between_those_inverted_are_interpolated_closely(monkeypatch, y):
    maps = random_maps(11, 6, 1, y, 96)
    counts = pattern(y, 3, range(9, 15))[None, None]
    everywhere = torch.ones(96, dtype=torch.bool)
    exact = sense_deviation(maps, counts, 1.0, 0.01, bright(1, y, 96), everywhere)
    monkeypatch.setattr(uncertainty, "COLUMN_WORK", 0.0)
    monkeypatch.setattr(uncertainty, "FEWEST_COLUMNS", 24)

    interpolated = sense_deviation(maps, counts, 1.0, 0.01, bright(1, y, 96), everywhere)

    ratio = interpolated / exact
    assert not torch.equal(interpolated, exact)
    assert float(ratio.median()) == pytest.approx(1, abs=0.01)
    assert float(ratio.quantile(0.95)) < 1.1


def test_frames_have_the_deviation_of_their_own_pattern():
    maps = random_maps(2, 4, 1, 12, 4)
    everywhere = torch.ones(4, dtype=torch.bool)
    patterns = torch.stack([pattern(12, 2)[None], pattern(12, 1)[None], pattern(12, 2)[None]])

    together = sense_deviation(maps, patterns, 1.0, 0.01, bright(1, 12, 4, frames=3), everywhere)

    for frame, counts in enumerate(patterns):
        alone = sense_deviation(maps, counts[None], 1.0, 0.01, bright(1, 12, 4), everywhere)
        torch.testing.assert_close(together[frame : frame + 1], alone)
    assert float(together[0].mean()) > float(together[1].mean())


def test_deviation_is_zero_where_the_maps_are_and_finite_without_regularisation():
    maps = random_maps(4, 3, 1, 12, 6, hole=True)

    found = sense_deviation(
        maps, pattern(12, 3)[None, None], 1.0, 0.0, bright(1, 12, 6), torch.ones(6, dtype=torch.bool)
    )

    assert bool(torch.isfinite(found).all())
    assert not bool(found[..., :3, :2].any())
    assert bool((found[..., 3:, 2:] > 0).all())


def test_maps_without_any_signal_give_zero():
    maps = torch.zeros((3, 1, 12, 6), dtype=torch.complex64)

    found = sense_deviation(
        maps, pattern(12, 2, range(4, 8))[None, None], 1.0, 0.1, bright(1, 12, 6), torch.ones(6, dtype=torch.bool)
    )

    assert not bool(found.any())


def test_pixels_without_signal_vary_less_than_the_noise_in_one_direction():
    maps = random_maps(6, 3, 1, 16, 16)
    everywhere = torch.ones(16, dtype=torch.bool)
    counts = torch.ones((1, 1, 16))

    dark = sense_deviation(maps, counts, 1.0, 0.01, torch.zeros_like(bright(1, 16, 16)), everywhere)

    lit = sense_deviation(maps, counts, 1.0, 0.01, bright(1, 16, 16), everywhere)
    torch.testing.assert_close(dark / lit, torch.full_like(lit, 0.6551), atol=2e-3, rtol=0)


def test_the_same_input_gives_the_same_bytes():
    maps = random_maps(8, 3, 4, 8, 6)
    counts = torch.ones((1, 4, 8))
    counts[0, ::2, ::2] = 0
    arguments = (maps, counts, 1.0, 0.1, bright(4, 8, 6), torch.ones(6, dtype=torch.bool))

    first = sense_deviation(*arguments)
    torch.manual_seed(99)
    second = sense_deviation(*arguments)

    assert first.numpy().tobytes() == second.numpy().tobytes()
