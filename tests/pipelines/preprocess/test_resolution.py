"""Coarser recon matrices: image, geometry and noise without the k-space that they do not show."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Grouping
from pipelines.phantom import draw_noise, head_phantom
from pipelines.pipeline import Pipeline
from pipelines.preprocess.resolution import kept_points
from pipelines.recon import sense
from pipelines.scan_header import Encoding, Space, parse_scan_header
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol

SIZES = st.integers(1, 128)


@given(SIZES, SIZES, SIZES, SIZES, st.floats(0.5, 2))
def test_recon_matrix_is_never_short_of_k_space_and_its_field_of_view_stays_whole(n, m, other, partitions, part):
    encoding = Encoding(Space((64, n, partitions), (128.0, 100.0, 50.0)), Space((m, m, m), (128.0, 100.0 * part, 50.0)))
    z, y, x = kept_points((partitions, n, 64), encoding)
    assert (z, x) == (partitions if partitions == 1 else min(partitions, m), min(64, m))
    assert y == n or m <= y * part + 1e-3
    assert abs(y * part - round(y * part)) <= max(0.05, abs(n * part - round(n * part))) + 1e-9


def group_of(seed, noise_std, protocol):
    """One slice; the noise of the stream is the same for all seeds, more of the same strength is not."""
    protocol = Protocol(n_coils=6, noise_std=noise_std, noise_readouts=64, noise_samples=512, **protocol)
    scan = simulate(head_phantom(1, 64, 56), protocol)
    rng = np.random.default_rng(seed)
    assembler = Assembler(parse_scan_header(scan.header), Grouping.SLICE, HeapSlots())
    (group,) = [group for batch in scan.batches for group in assembler.add(batch)] + assembler.finish()
    frames, _, z, y, x = group.kspace.shape
    noise = draw_noise(scan.truth.covariance, (frames, z, y, x), rng).transpose(0, 3, 1, 2, 4)
    return dataclasses.replace(group, kspace=group.kspace + noise * (group.kspace != 0))


@pytest.mark.parametrize("protocol", [{}, {"partial_fourier": 0.7}, {"acceleration": 2, "phase_oversampling": 0.25}])
def test_image_is_that_of_k_space_cut_afterwards(monkeypatch, protocol):
    group = group_of(0, 0.002, {"recon_matrix": (40, 48), **protocol})
    pipeline = Pipeline("zero_filled", {"combine": "sensitivity"}, "cpu")
    image = pipeline(group, {}).images[0].pixels
    monkeypatch.setattr("pipelines.preprocess.resolution.kept_points", lambda shape, _: shape)
    afterwards = pipeline(group, {}).images[0].pixels
    assert image.shape == (1, 1, 48, 40)
    assert np.linalg.norm(image - afterwards) < 0.03 * np.linalg.norm(afterwards)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("zero_filled", {"partial_fourier": 0.7, "partial_echo": 0.7}),
        ("sense", {"partial_fourier": 0.7, "partial_echo": 0.7}),
        ("sense", {"acceleration": 3}),
    ],
)
def test_deviation_of_a_coarser_image_is_that_of_many_scans(monkeypatch, name, protocol):
    pipeline = Pipeline(name, {}, "cpu")
    groups = [group_of(seed, 0.01, {"recon_matrix": (30, 34), **protocol}) for seed in range(60)]
    claimed = pipeline(groups[0], {}).images[1].pixels
    monkeypatch.setattr(sense, "sense_deviation", lambda *given: torch.zeros(given[4].shape))

    images = np.stack([pipeline(group, {}).images[0].pixels for group in groups])

    inside = images.mean(0) > 0.3 * images.max()
    assert 0.95 < np.median(claimed[inside] / images.std(0, ddof=1)[inside]) < 1.05


def test_readouts_far_from_the_centre_alone_still_give_an_image(make_group, rng):
    counts = np.zeros((1, 1, 16), np.float32)
    counts[..., :3] = 1
    recon = Space((16, 4, 1), (32.0, 32.0, 4.0))
    (image, _) = Pipeline("zero_filled", {}, "cpu")(make_group(counts=counts, recon=recon), {}).images
    assert image.pixels.shape == (1, 1, 4, 16)
