"""Encoded, recon and interpolated matrices: phase and slice oversampling, readout oversampling, other pixel sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.volume import VolumeSampling, simulate_volume

Fixture = Callable[..., Any]
CLEAN = Protocol(n_coils=2, noise_std=0, noise_readouts=0)


@given(
    st.tuples(st.integers(20, 29), st.integers(20, 29)),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.integers(1, 3),
)
@settings(max_examples=20, deadline=None)
def test_oversampling_is_cut_off_around_the_image(
    reconstruct: Fixture, sizes: tuple[int, int], phase_oversampling: float, oversampling: int
) -> None:
    """Pixel for pixel the object, for even and odd sizes: nothing is shifted, scaled or interpolated."""
    anatomy = head_phantom(1, *sizes)
    protocol = replace(CLEAN, phase_oversampling=phase_oversampling, oversampling=oversampling)
    scan = simulate(anatomy, protocol)
    (image,) = reconstruct(scan).values()
    np.testing.assert_allclose(image.pixels[0], anatomy, atol=2e-5)
    np.testing.assert_allclose(image.header["field_of_view"], (220, 220, 5))


@given(st.tuples(st.integers(4, 9), st.integers(12, 15), st.integers(12, 15)), st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=15, deadline=None)
def test_slice_oversampling_is_cut_off_around_the_slab(
    reconstruct: Fixture, sizes: tuple[int, int, int], slice_oversampling: float
) -> None:
    anatomy = np.random.default_rng(2).random(sizes).astype(np.float32)
    protocol = replace(CLEAN, phase_oversampling=0.2, slice_thickness_mm=3.0)
    scan = simulate_volume(anatomy, protocol, VolumeSampling(slice_oversampling=slice_oversampling))
    (image,) = reconstruct(scan).values()
    np.testing.assert_allclose(image.pixels[0], anatomy, atol=2e-5)
    np.testing.assert_allclose(image.header["field_of_view"], (220, 220, 3.0 * sizes[0]))


def blob(sizes: tuple[int, int]) -> np.ndarray:
    """A smooth object that is not symmetric, in the middle third of the field of view."""
    y, x = ((np.arange(n) - n // 2) / n for n in sizes)
    first = np.exp(-0.5 * (((y[:, None] + 0.1) / 0.08) ** 2 + ((x - 0.05) / 0.06) ** 2))
    return np.asarray(first + 0.5 * np.exp(-0.5 * (((y[:, None] - 0.12) / 0.06) ** 2 + ((x + 0.1) / 0.07) ** 2)))


@pytest.mark.parametrize("encoded", [(32, 32), (33, 31)])
@pytest.mark.parametrize("recon", [(64, 64), (48, 40), (47, 53), (24, 24), (25, 20)])
def test_interpolated_matrix_shows_the_same_object_in_the_same_place(
    reconstruct: Fixture, nrmse: Fixture, encoded: tuple[int, int], recon: tuple[int, int]
) -> None:
    """`recon` counts x, y. Pixel n//2 of both grids is the same place, and values stay what they were."""
    scan = simulate(blob(encoded).astype(np.float32), replace(CLEAN, recon_matrix=recon, phase_std_rad=0))
    (image,) = reconstruct(scan).values()
    assert image.header["matrix_size"].tolist() == [*recon, 1]
    assert nrmse(image.pixels, blob((recon[1], recon[0]))) < 0.01


def test_interpolation_in_both_directions_and_oversampling_go_together(reconstruct: Fixture, nrmse: Fixture) -> None:
    protocol = replace(CLEAN, recon_matrix=(48, 60), phase_oversampling=0.25, phase_std_rad=0)
    (image,) = reconstruct(simulate(blob((40, 32)).astype(np.float32), protocol)).values()
    assert nrmse(image.pixels, blob((60, 48))) < 0.01


def test_partitions_are_interpolated_along_the_slab(reconstruct: Fixture, nrmse: Fixture) -> None:
    z = np.exp(-0.5 * ((np.arange(12) - 6 + 1.5) / 1.5) ** 2)
    anatomy = (z[:, None, None] * blob((24, 24))).astype(np.float32)
    volume = VolumeSampling(recon_partitions=24, slice_oversampling=0.34)
    scan = simulate_volume(anatomy, replace(CLEAN, phase_std_rad=0), volume)
    (image,) = reconstruct(scan).values()
    finer = np.exp(-0.5 * (((np.arange(24) - 12) / 2 + 1.5) / 1.5) ** 2)
    assert nrmse(image.pixels, finer[:, None, None] * blob((24, 24))) < 0.02


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_deviation_of_the_interpolated_image_is_that_of_its_noise(assemble: Fixture, name: str) -> None:
    """Uncertainty on the recon grid, against the spread over repetitions of the same scan."""
    from pipelines.pipeline import Pipeline

    protocol = Protocol(n_coils=4, repetitions=40, recon_matrix=(48, 48), phase_oversampling=0.25, calibration_lines=16)
    scan = simulate(10 * blob((32, 32)).astype(np.float32) + 2, protocol)
    pipeline = Pipeline(name, {"regularisation": 0} if name == "sense" else {}, "cpu")
    outputs = [pipeline(group, {}).images for group in assemble(scan)[0].values()]
    spread = np.std([images[0].pixels[0, 0] for images in outputs], axis=0, ddof=1)
    promised = np.mean([images[1].pixels[0, 0] for images in outputs], axis=0)
    inside = ndimage.binary_erosion(np.ones_like(promised, bool), iterations=6)
    # 40 repetitions and some 400 independent pixels: about 1 % on the mean
    assert np.mean(promised[inside]) == pytest.approx(np.sqrt(np.mean(spread[inside] ** 2)), rel=0.06)
