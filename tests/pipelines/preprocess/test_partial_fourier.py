"""Homodyne and POCS against full data, a dense least-squares solution, and BART."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.operators.fourier import to_image, to_kspace
from pipelines.phantom import head_phantom, smooth_phase
from pipelines.preprocess.partial_fourier import find_coverage, noise_response, restore, restore_frames

AXES = (-3, -2, -1)
METHODS = ["homodyne", "pocs"]


def coverage_of(shape, missing):
    """Coverage with some samples missing: negative at the start of the axis, positive at its end."""
    lines = []
    for n, m in zip(shape, missing, strict=True):
        line = torch.ones(n, dtype=torch.bool)
        line[slice(None, -m) if m < 0 else slice(n - m, None)] = False
        lines.append(line)
    counts = (lines[0][:, None] & lines[1]).float()
    measured = lines[0][:, None, None] & lines[1][:, None] & lines[2]
    return find_coverage(counts, lines[2]), measured


def head(n_y=96, n_x=80, strength=1.0):
    phase = smooth_phase((n_y, n_x), np.random.default_rng(3), strength=strength)
    return torch.from_numpy((head_phantom(1, n_y, n_x) * phase).astype(np.complex64))


def magnitude_error(image, reference):
    gap = torch.linalg.vector_norm(image.abs() - reference.abs())
    return float(gap / torch.linalg.vector_norm(reference))


sizes = st.tuples(st.sampled_from([1, 12, 13]), st.integers(16, 25), st.integers(16, 25))


@settings(max_examples=25, deadline=None)
@given(shape=sizes, method=st.sampled_from(METHODS), spare=st.integers(0, 3), seed=st.integers(0, 99))
def test_images_stay_as_they_are_when_nothing_is_missing_or_as_much_on_both_sides(shape, method, spare, seed):
    counts = torch.ones(shape[:2])
    if spare:  # a smaller matrix in the middle of a larger one
        counts[:, :spare] = counts[:, shape[1] - spare + (shape[1] + 1) % 2 :] = 0
    image = torch.randn((2, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.complex64)

    result = restore_frames(image, torch.stack([counts] * 2), torch.ones(shape[2]) > 0, method, is_unaliased=True)

    assert result.image is image
    assert (result.note, result.warnings) == ("", ())


@pytest.mark.parametrize("acceleration", [2, 3, 4, 6])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_where_counting_starts_on_a_regular_pattern_is_not_partial_fourier(acceleration, start):
    counts = torch.zeros((1, 97))
    counts[:, start % acceleration :: acceleration] = 1

    coverage, warnings = find_coverage(counts, torch.ones(64, dtype=torch.bool))

    assert coverage.partial == ()
    assert warnings == ()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.sampled_from([1, 16, 17]), st.integers(20, 27), st.integers(20, 27)),
    share=st.tuples(*[st.sampled_from([-0.3, -0.25, 0.0, 0.2, 0.3])] * 3),
    angle=st.floats(-3, 3),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 99),
)
def test_a_constant_phase_object_comes_back_to_float_precision(shape, share, angle, method, seed):
    missing = tuple(round(part * n) if n > 1 else 0 for part, n in zip(share, shape, strict=True))
    (coverage, warnings), measured = coverage_of(shape, missing)
    assert warnings == ()
    rng = np.random.default_rng(seed)
    rough = torch.from_numpy(rng.random(shape, np.float32)) + 4  # bright throughout, so that its phase is known
    kspace = to_kspace(rough.to(torch.complex64), AXES)
    # at neither k nor -k: several partial axes leave such corners, and even axes their first sample
    mirrored = measured
    for axis, n in enumerate(shape):
        mirrored = mirrored.flip(axis).roll(1 - n % 2, axis)
    expected = to_image(kspace * (measured | mirrored), AXES).real * np.exp(1j * angle)
    image = to_image(kspace * measured, AXES) * np.exp(1j * angle)

    found = restore(image, coverage, method, iterations=60, tolerance=0.0)

    torch.testing.assert_close(found, expected.to(torch.complex64), atol=3e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(24, 41),
    share=st.sampled_from([-0.375, -0.25, 0.25, 0.375]),
    iterations=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_pocs_keeps_measured_samples(n, share, iterations, seed):
    (coverage, _), measured = coverage_of((1, n, 8), (0, round(share * n), 0))
    generator = torch.Generator().manual_seed(seed)
    kspace = torch.randn((3, 1, n, 8), generator=generator, dtype=torch.complex64) * measured

    found = to_kspace(restore(to_image(kspace, AXES), coverage, "pocs", iterations=iterations), AXES)

    torch.testing.assert_close(found * measured, kspace, atol=3e-6, rtol=0)
    assert not torch.equal(found, kspace)


def test_pocs_converges_to_the_image_of_least_distance_to_the_phase():
    n, first = 21, 7
    (coverage, _), _ = coverage_of((1, n, 1), (0, -first, 0))
    rng = np.random.default_rng(8)
    truth = (1 + rng.random(n)) * np.exp(1j * np.cos(np.arange(n) / 4))
    position = np.arange(n) - n // 2
    transform = np.exp(-2j * np.pi * np.outer(position, position) / n) / np.sqrt(n)
    data = transform @ truth
    data[:first] = 0
    half = n // 2 - first
    taper = np.where(abs(position) <= half, np.cos(np.pi * position / (2 * half + 2)) ** 2, 0)
    phase = np.angle(transform.conj().T @ (taper * data))
    # image e^(-ip) of the unknown samples u (2 first real numbers): find u with the least imaginary part
    columns = np.exp(-1j * phase)[:, None] * transform.conj().T[:, :first]
    right = np.exp(-1j * phase) * (transform.conj().T @ data)
    matrix = np.concatenate([columns.imag, columns.real], axis=1)
    unknown = np.linalg.lstsq(matrix, -right.imag, rcond=None)[0]
    # samples whose mirror image is missing too do not exist here: n is odd and only one side is missing
    data[:first] = unknown[:first] + 1j * unknown[first:]
    expected = transform.conj().T @ data

    image = torch.from_numpy(transform.conj().T @ (data * (position >= -half))).to(torch.complex64)
    found = restore(image.reshape(1, n, 1), coverage, "pocs", iterations=20_000, tolerance=0.0)

    np.testing.assert_allclose(found.numpy().ravel(), expected, atol=2e-3)


@pytest.mark.parametrize("fraction", [5 / 8, 6 / 8, 7 / 8])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(("n_y", "n_x"), [(96, 80), (95, 81)])
def test_error_is_well_below_that_of_zero_filling(fraction, axis, side, n_y, n_x):
    truth = head(n_y, n_x)
    missing = [0, 0, 0]
    missing[axis] = side * round((1 - fraction) * truth.shape[axis])
    (coverage, _), measured = coverage_of(tuple(truth.shape), missing)
    zero_filled = to_image(to_kspace(truth, AXES) * measured, AXES)

    errors = {method: magnitude_error(restore(zero_filled, coverage, method), truth) for method in METHODS}

    # The rim of the phantom against black is where the phase is known worst; brains do better.
    assert errors["homodyne"] < 0.7 * magnitude_error(zero_filled, truth)
    assert errors["pocs"] < 0.55 * magnitude_error(zero_filled, truth)


@pytest.mark.parametrize("method", METHODS)
def test_two_partial_axes_are_restored_together(method):
    truth = head()
    (coverage, _), measured = coverage_of(tuple(truth.shape), (0, -24, 20))
    zero_filled = to_image(to_kspace(truth, AXES) * measured, AXES)

    assert coverage.names == "y and x"
    assert magnitude_error(restore(zero_filled, coverage, method), truth) < 0.75 * magnitude_error(zero_filled, truth)


@pytest.mark.parametrize("method", METHODS)
def test_the_phase_of_the_image_is_kept(method):
    truth = head()
    (coverage, _), measured = coverage_of(tuple(truth.shape), (0, -24, 0))

    found = restore(to_image(to_kspace(truth, AXES) * measured, AXES), coverage, method)

    bright = truth.abs() > 0.3
    assert float((found * truth.conj())[bright].angle().abs().median()) < 0.03


def test_too_small_a_symmetric_part_is_left_alone_with_a_warning():
    counts = torch.ones((1, 1, 128))
    counts[..., :62] = 0
    image = torch.randn((1, 1, 128, 4), generator=torch.Generator().manual_seed(0), dtype=torch.complex64)

    result = restore_frames(image, counts, torch.ones(4) > 0, "pocs", is_unaliased=True)

    assert result.image is image
    (warning,) = result.warnings
    assert "along y: 5 of 128" in warning


def test_aliased_frames_are_left_alone_with_a_warning_and_others_are_restored():
    counts = torch.ones((2, 1, 64))
    counts[..., :16] = 0
    counts[1, :, ::2] = 0
    image = torch.randn((2, 1, 64, 4), generator=torch.Generator().manual_seed(0), dtype=torch.complex64)

    result = restore_frames(image, counts, torch.ones(4) > 0, "homodyne", is_unaliased=False)

    assert torch.equal(result.image[1], image[1])
    assert not torch.equal(result.image[0], image[0])
    assert result.note == "homodyne along y, zero_fill along y"
    assert "aliases" in result.warnings[0]


@pytest.mark.parametrize("method", ["homodyne", "pocs"])
@pytest.mark.parametrize("missing", [(0, -20, 0), (0, 15, 0), (0, 0, -11), (0, -16, 12)])
def test_noise_in_phase_is_that_of_the_filtered_image(method, missing):
    shape = (1, 64, 48)
    (coverage, _), measured = coverage_of(shape, missing)
    noise = torch.randn((200, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.complex64)
    noisy = to_image((to_kspace(torch.full(shape, 100 + 0j), AXES) + noise) * measured, AXES)

    found = restore(noisy, coverage, method, tolerance=1e-6)

    weights = noise_response(coverage, method).weights
    expected = float((weights.square() * measured).mean() / 2) ** 0.5
    assert float(found.abs().std(0).median()) == pytest.approx(expected, rel=0.02)


@pytest.mark.bart
@pytest.mark.skipif(shutil.which("bart") is None, reason="Debian's bart is not on the PATH")
@pytest.mark.parametrize("fraction", [5 / 8, 6 / 8, 7 / 8])
def test_error_is_no_more_than_that_of_bart(fraction, tmp_path):
    truth = head(96, 80)
    missing = round((1 - fraction) * 96)
    (coverage, _), measured = coverage_of(tuple(truth.shape), (0, missing, 0))
    kspace = to_kspace(truth, AXES) * measured
    (tmp_path / "in.hdr").write_text("# Dimensions\n80 96\n")
    kspace.numpy().tofile(tmp_path / "in.cfl")
    errors = []
    for ramp in ("0", "0.25", "0.5", "0.75"):
        subprocess.run(
            ["bart", "homodyne", "-C", "-r", ramp, "1", str(fraction), "in", "out"], cwd=tmp_path, check=True
        )
        theirs = np.fromfile(tmp_path / "out.cfl", np.complex64).reshape(96, 80)
        errors.append(magnitude_error(torch.from_numpy(theirs)[None], truth))

    zero_filled = to_image(kspace, AXES)

    assert min(errors) < magnitude_error(zero_filled, truth)  # it does restore
    assert magnitude_error(restore(zero_filled, coverage, "homodyne"), truth) < 1.05 * min(errors)
    assert magnitude_error(restore(zero_filled, coverage, "pocs"), truth) < min(errors)
