"""Masks of two phase encodings: lattices, ellipses, blocks, Poisson discs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.simulation import sampling

SHAPES = st.tuples(st.integers(4, 24), st.integers(4, 24))


@given(SHAPES, st.tuples(st.integers(1, 4), st.integers(1, 3)), st.integers(0, 3))
def test_lattice_holds_its_own_differences(shape: tuple[int, int], steps: tuple[int, int], shift: int) -> None:
    mask = sampling.lattice(shape, steps, shift)
    assert mask[shape[0] // 2, shape[1] // 2]
    assert mask.any(axis=1).sum() == len(range(-(shape[0] // 2) + (shape[0] // 2) % steps[1], shape[0] - shape[0] // 2,
                                               steps[1]))  # fmt: skip
    points = np.argwhere(mask) - np.array(shape) // 2
    for z, y in points:
        assert z % steps[1] == 0
        assert (y - shift * (z // steps[1])) % steps[0] == 0


def test_caipi_lattice_shifts_every_measured_partition() -> None:
    mask = sampling.lattice((8, 12), (3, 2), 1)
    lines = [np.flatnonzero(row).tolist() for row in mask if row.any()]
    assert lines == [[1, 4, 7, 10], [2, 5, 8, 11], [0, 3, 6, 9], [1, 4, 7, 10]]


@given(SHAPES)
def test_ellipse_leaves_out_a_fifth_and_keeps_both_axes(shape: tuple[int, int]) -> None:
    mask = sampling.ellipse(shape)
    assert mask[shape[0] // 2].all()
    assert mask[:, shape[1] // 2].all()
    assert mask.sum() <= (np.pi / 4) * mask.size + 2 * sum(shape)
    if min(shape) > 8:
        assert not mask[0, 0]


@given(SHAPES, st.integers(1, 8), st.integers(1, 8))
def test_centre_block_has_its_size_around_the_centre(shape: tuple[int, int], n_z: int, n_y: int) -> None:
    n_z, n_y = min(n_z, shape[0]), min(n_y, shape[1])
    z, y = np.nonzero(sampling.centre_block(shape, (n_z, n_y)))
    assert (z.max() - z.min() + 1, y.max() - y.min() + 1) == (n_z, n_y)
    assert len(z) == n_z * n_y
    assert z.min() + n_z // 2 == shape[0] // 2
    assert y.min() + n_y // 2 == shape[1] // 2


@pytest.mark.parametrize("acceleration", [3.0, 6.0, 10.0])
def test_poisson_disc_has_its_acceleration_and_thins_out(acceleration: float) -> None:
    shape = (64, 96)
    mask = sampling.poisson_disc(shape, acceleration, (8, 12), np.random.default_rng(3))
    inside, block = sampling.ellipse(shape), sampling.centre_block(shape, (8, 12))
    assert inside.sum() / mask.sum() == pytest.approx(acceleration, rel=0.1)
    assert mask[block].all()
    assert not mask[~inside].any()
    z, y = np.indices(shape)
    radius = np.hypot((z - 32) / 32, (y - 48) / 48)
    rings = [mask[(radius >= low) & (radius < low + 0.25) & inside & ~block].mean() for low in (0.25, 0.5, 0.75)]
    assert rings[0] > rings[1] > rings[2]


def test_poisson_disc_keeps_lines_apart() -> None:
    shape = (64, 64)
    mask = sampling.poisson_disc(shape, 8.0, (6, 6), np.random.default_rng(0))
    random = np.random.default_rng(0).permutation(64 * 64)[: mask.sum()]
    points, others = np.argwhere(mask), np.stack(np.divmod(random, 64), axis=1)

    def nearest(places: np.ndarray) -> float:
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(len(places))
        return float(np.median(apart.min(axis=1)[np.linalg.norm(places - 32, axis=1) > 16]))

    assert nearest(points) > 1.5 * nearest(others)


def test_impossible_poisson_discs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sampling.poisson_disc((8, 8), 0.5, (2, 2), np.random.default_rng(0))
    with pytest.raises(ValueError, match="more than acceleration 8"):
        sampling.poisson_disc((8, 8), 8.0, (6, 6), np.random.default_rng(0))
