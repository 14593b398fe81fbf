"""Partial Fourier in whole reconstructions: images against full sampling, and the deviation against Monte Carlo."""

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.operators.fourier import to_kspace
from pipelines.parameters import SenseParameters, ZeroFilledParameters
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.recon import sense
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import Sense
from pipelines.recon.zero_filled import ZeroFilled

N_Y, N_X, N_CALIBRATION = 64, 56, 16
METHODS = ["homodyne", "pocs"]
PIPELINES = ["rss", "sensitivity", "sense"]


def reconstruction(name, method):
    if name == "sense":
        return Sense(SenseParameters(partial_fourier=method), "cpu")
    return ZeroFilled(ZeroFilledParameters(partial_fourier=method, combine=name), "cpu")


def coil_kspace():
    image = head_phantom(1, N_Y, N_X)[0] * smooth_phase((N_Y, N_X), np.random.default_rng(3), strength=0.6)
    return to_kspace(torch.from_numpy((image * birdcage_coils(6, (N_Y, N_X))).astype(np.complex64)))[None, :, None]


def prepared(missing_y=0, missing_x=0, acceleration=1, noise_std=0.0, seed=0, frames=1, is_apart=False):
    """The first lines and columns missing; calibration lines in the middle stay, unless they were measured apart."""
    full = coil_kspace().repeat(frames, 1, 1, 1, 1)
    noise = torch.randn(full.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex64)
    centre = slice(N_Y // 2 - N_CALIBRATION // 2, N_Y // 2 + N_CALIBRATION // 2)
    counts = torch.zeros((frames, 1, N_Y))
    counts[..., N_Y // 2 % acceleration :: acceleration] = 1
    if not is_apart:
        counts[..., centre] = 1
    counts[..., :missing_y] = 0
    columns = torch.arange(N_X) >= missing_x
    calibration = full[0, :, :, centre]
    if missing_x:
        half = N_X // 2 - missing_x
        calibration = calibration[..., N_X // 2 - half : N_X // 2 + half]
    kspace = (full + noise_std * noise) * counts[:, None, ..., None] * columns
    return Prepared(kspace, counts, calibration.contiguous(), noise_std or 1e-3, True, columns)


def error(image, reference):
    return float(torch.linalg.vector_norm(image.abs() - reference.abs()) / torch.linalg.vector_norm(reference))


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("missing", [(22, 0), (0, 16), (16, 12)])
def test_image_is_nearer_to_that_of_full_sampling(name, method, missing):
    full = reconstruction(name, "zero_fill")(prepared()).image
    zero_filled = reconstruction(name, "zero_fill")(prepared(*missing)).image

    result = reconstruction(name, method)(prepared(*missing))

    assert error(result.image, full) < (0.5 if 0 in missing else 0.75) * error(zero_filled, full)
    axes = " and ".join(axis for axis, n in zip("yx", missing, strict=True) if n)
    assert result.details["ReconPartialFourier"] == f"{method} along {axes}"
    assert result.warnings == ()


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_missing_gives_the_same_image_and_deviation(name, method):
    data = prepared(noise_std=0.05)

    result = reconstruction(name, method)(data)

    plain = reconstruction(name, "zero_fill")(data)
    assert torch.equal(result.image, plain.image)
    assert torch.equal(result.deviation, plain.deviation)
    assert "ReconPartialFourier" not in result.details


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("acceleration", [2, 3])
def test_sense_restores_accelerated_partial_fourier(method, acceleration):
    full = reconstruction("sense", "zero_fill")(prepared()).image
    data = prepared(22, acceleration=acceleration)

    result = reconstruction("sense", method)(data)

    assert error(result.image, full) < 0.75 * error(reconstruction("sense", "zero_fill")(data).image, full)


@pytest.mark.parametrize("method", METHODS)
def test_zero_filled_leaves_undersampled_data_alone_and_says_so(method):
    data = prepared(22, acceleration=3)

    result = reconstruction("rss", method)(data)

    assert torch.equal(result.image, reconstruction("rss", "zero_fill")(data).image)
    assert "aliases" in result.warnings[0]
    assert result.details["ReconPartialFourier"] == "zero_fill along y"


def test_frames_are_restored_each_from_its_own_extents():
    data = prepared(22, frames=2)
    counts = torch.ones_like(data.counts)
    counts[0] = data.counts[0]
    both = dataclasses.replace(data, kspace=coil_kspace() * counts[:, None, ..., None], counts=counts)

    result = reconstruction("sense", "pocs")(both)

    full = reconstruction("sense", "zero_fill")(prepared()).image
    # The weight of the regularisation depends on all frames together.
    assert error(result.image[1:], full) < 1e-3
    assert 0 < error(result.image[:1], full) < 0.03


@pytest.mark.parametrize(
    ("name", "missing", "acceleration"),
    [
        ("rss", (22, 0), 1),
        ("rss", (16, 12), 1),
        ("sensitivity", (0, 16), 1),
        ("sense", (22, 0), 1),
        ("sense", (16, 0), 2),
        ("sense", (16, 12), 1),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_deviation_is_that_of_many_scans(monkeypatch, name, missing, acceleration, method):
    run = reconstruction(name, method)
    draws = [prepared(*missing, acceleration, 0.03, seed) for seed in range(60)]
    claimed = run(draws[0]).deviation
    monkeypatch.setattr(sense, "sense_deviation", lambda *given: torch.zeros(given[4].shape))

    empirical = torch.stack([run(draw).image.abs() for draw in draws]).std(0)

    ratio = claimed / empirical
    inside = torch.from_numpy(head_phantom(1, N_Y, N_X) > 0.2)[None]
    assert 0.95 < float(ratio[inside].median()) < 1.05


@pytest.mark.parametrize("iterations", [30, 100])
@pytest.mark.parametrize("missing", [(22, 0), (0, 16), (16, 12)])
@pytest.mark.parametrize(("acceleration", "is_apart"), [(1, False), (2, True), (3, True)])
def test_deviation_of_accurate_data_is_that_of_many_scans(monkeypatch, missing, acceleration, is_apart, iterations):
    """Far from measured lines nothing but the iterations' end used to hold the noise back."""
    run = Sense(SenseParameters(iterations=iterations), "cpu")
    draws = [prepared(*missing, acceleration, 0.003, seed, is_apart=is_apart) for seed in range(40)]
    claimed = run(draws[0]).deviation
    monkeypatch.setattr(sense, "sense_deviation", lambda *given: torch.zeros(given[4].shape))

    empirical = torch.stack([run(draw).image.abs() for draw in draws]).std(0)

    ratio = claimed / empirical
    inside = torch.from_numpy(head_phantom(1, N_Y, N_X) > 0.2)[None]
    assert 0.95 < float(ratio[inside].median()) < 1.05


@pytest.mark.parametrize("missing", [(22, 0), (16, 12)])
def test_missing_lines_do_not_make_an_accelerated_image_noisier(monkeypatch, missing):
    monkeypatch.setattr(sense, "sense_deviation", lambda *given: torch.zeros(given[4].shape))
    run = reconstruction("sense", "zero_fill")

    def noise(*missing):
        draws = [run(prepared(*missing, 2, 0.003, seed, is_apart=True)).image for seed in range(20)]
        return float(torch.stack(draws).abs().std(0)[0, head_phantom(1, N_Y, N_X) > 0.2].median())

    assert noise(*missing) < 1.1 * noise(0, 0)
