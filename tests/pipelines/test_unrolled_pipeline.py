"""`unrolled` from a group of readouts, with its neighbours, to MRD images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.catalogue import use_directory
from pipelines.assembly.frame import Grouping
from pipelines.operators.fourier import to_kspace
from pipelines.pipeline import Pipeline
from pipelines.registry import find
from tests import tiny_model
from tests.pipelines.recon import joint_scenes

N = 32
PARAMETERS: dict[str, object] = {"model": "tiny-unrolled"}


@pytest.fixture(autouse=True)
def _models(tmp_path: Path) -> Iterator[None]:
    tiny_model.save_tiny_unrolled(tmp_path)
    use_directory(tmp_path)
    yield
    use_directory(None)


def group_of(make_group, rng: np.random.Generator, coils: int = 4):
    """Every second line and a calibration block of a phantom, oversampled twice along the readout."""
    images, truth = joint_scenes.coil_images(coils, N, N, 1)
    wide = np.zeros((1, coils, 1, N, 2 * N), np.complex64)
    wide[..., N // 2 : N // 2 + N] = images.numpy()
    kspace = to_kspace(torch.from_numpy(wide)).numpy()
    noise = rng.standard_normal((*kspace.shape, 2), np.float32) * 0.01
    counts = np.zeros((1, 1, N), np.float32)
    counts[..., ::2] = 1
    counts[..., N // 2 - 8 : N // 2 + 8] = 1
    return make_group(kspace + noise[..., 0] + 1j * noise[..., 1], counts=counts), truth


@pytest.mark.parametrize("compression", ["0", "2"])
def test_a_slice_with_neighbours_gives_an_image_and_its_uncertainty(make_group, rng, compression: str) -> None:
    group, truth = group_of(make_group, rng)
    beside = tuple(group_of(make_group, rng)[0] for _ in range(2))
    pipeline = Pipeline("unrolled", {**PARAMETERS, "coil_compression": compression}, "cpu")
    magnitude, deviation = pipeline(replace(group, neighbours=beside), {}).images
    assert magnitude.meta["ReconNeighbours"] == ["2"]
    assert magnitude.meta["ReconModel"] == ["tiny-unrolled"]
    assert deviation.meta["ReconUncertaintyKind"] == ["predicted"]
    shown = magnitude.pixels[0, 0]
    assert np.corrcoef(shown.ravel(), truth[0, 0].abs().numpy().ravel())[0, 1] > 0.9


def test_a_slice_alone_and_neighbours_without_lines_are_served(make_group, rng) -> None:
    group, _ = group_of(make_group, rng)
    pipeline = Pipeline("unrolled", PARAMETERS, "cpu")
    (alone, _) = pipeline(group, {}).images
    assert alone.meta["ReconNeighbours"] == ["0"]
    empty = replace(group, counts=0 * group.counts)
    (beside, _) = pipeline(replace(group, neighbours=(empty,)), {}).images
    assert beside.meta["ReconNeighbours"] == ["0"]
    assert beside.pixels.tobytes() == alone.pixels.tobytes()


def test_it_asks_for_stacks() -> None:
    assert find("unrolled").grouping is Grouping.STACK
