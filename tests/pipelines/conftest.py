"""Groups as assembly hands them on, made from arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.assembly.frame import Completion, Group, GroupKey, NoiseScan
from pipelines.mrd import ACQUISITION_HEADER
from pipelines.operators.nonuniform import NonUniform
from pipelines.phantom import birdcage_coils, head_phantom
from pipelines.scan_header import Encoding, Limit, ScanHeader, Space, TrajectoryType

DWELL_US = 5.0
NOISE_DWELL_US = 20.0
BANDWIDTH = 0.8

MakeGroup = Callable[..., Group]


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.complex64]]:
    """Circular complex noise with `E|n|^2 = 1`."""
    return ((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)).astype(np.complex64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def make_group(rng: np.random.Generator) -> MakeGroup:
    """A group of `(frames, coils, z, y, x)` k-space: oversampled twice along x, image grid of half that."""

    def make(
        kspace: np.ndarray[Any, Any] | None = None,
        *,
        counts: np.ndarray[Any, Any] | None = None,
        noise: NoiseScan | None = None,
        recon: Space | None = None,
        **changes: Any,
    ) -> Group:
        kspace = complex_normal(rng, 1, 4, 1, 16, 32) if kspace is None else kspace
        frames, _, z, y, x = kspace.shape
        counts = np.ones((frames, z, y), np.float32) if counts is None else counts
        headers = np.zeros(frames, ACQUISITION_HEADER)
        headers["sample_time_us"] = DWELL_US
        headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = (0, 1, 0), (1, 0, 0), (0, 0, -1)
        headers["position"] = (1.5, -2.5, 3.5)
        headers["idx"]["repetition"] = np.arange(frames)
        encoding = Encoding(
            Space((x, y, z), (2.0 * x, 2.0 * y, 4.0)),
            recon or Space((x // 2, y, z), (1.0 * x, 2.0 * y, 4.0)),
            limits={"repetition": Limit(0, max(0, frames - 1), 0), "slice": Limit(0, 2, 0)},
        )
        values: dict[str, Any] = {
            "key": GroupKey(0, 0, 0, 0, 0, 0),
            "kspace": np.where((counts > 0)[:, None, :, :, None], kspace, 0),
            "counts": counts,
            "calibration_lines": np.zeros((z, y), bool),
            "readout_extent": (0, x),
            "headers": headers,
            "scan": ScanHeader((encoding,), noise_bandwidth=BANDWIDTH),
            "completion": Completion.FLAG,
            "noise": noise,
        }
        return Group(**(values | changes))

    return make


def radial_positions(spokes: int, samples: int, *, golden: bool = False) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`(spokes, samples, 2)` in cycles a pixel, x before y: diameters through the centre of k-space."""
    angle = np.arange(spokes) * (np.pi * (np.sqrt(5) - 1) / 2 if golden else np.pi / spokes)
    radius = (np.arange(samples) - samples // 2) / samples
    return np.stack([np.outer(np.cos(angle), radius), np.outer(np.sin(angle), radius)], -1).astype(np.float32)


@pytest.fixture
def make_nonuniform_group(rng: np.random.Generator) -> MakeGroup:
    """A head seen by birdcage coils along a trajectory, with noise, as assembly hands it on; n x n images."""

    def make(
        n: int = 48,
        n_coils: int = 6,
        trajectory: np.ndarray[Any, Any] | None = None,
        *,
        shape: tuple[int, int] | None = None,
        noise_std: float = 0.0,
        noise_scan: bool = False,
        encoding: Encoding | None = None,
        **changes: Any,
    ) -> Group:
        rows, columns = shape or (n, n)
        positions = radial_positions(96, 2 * n)[None] if trajectory is None else trajectory
        coils = head_phantom(1, rows, columns)[0] * birdcage_coils(n_coils, (rows, columns))
        image = torch.from_numpy(coils.astype(np.complex64)).expand(len(positions), n_coils, rows, columns)
        forward = NonUniform(torch.from_numpy(np.array(positions[..., :2])), (rows, columns))
        kspace = forward(image[:, :, None]).numpy()
        kspace = kspace + np.float32(noise_std) * complex_normal(rng, *kspace.shape)
        frames, _, _, readouts, samples = kspace.shape
        headers = np.zeros(frames, ACQUISITION_HEADER)
        headers["sample_time_us"] = DWELL_US
        headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        # Readouts are oversampled: twice the matrix on twice the field of view, as scanners say it.
        encoding = encoding or Encoding(
            Space((2 * columns, 2 * rows, 1), (4.0 * columns, 4.0 * rows, 5.0)),
            Space((columns, rows, 1), (2.0 * columns, 2.0 * rows, 5.0)),
            TrajectoryType.RADIAL,
        )
        variance = BANDWIDTH * DWELL_US / NOISE_DWELL_US
        scan = complex_normal(rng, 64, n_coils, 64) * np.float32(noise_std * np.sqrt(variance))
        values: dict[str, Any] = {
            "key": GroupKey(0, 0, 0, 0, 0, 0),
            "kspace": kspace.astype(np.complex64),
            "counts": np.ones((frames, 1, readouts), np.float32),
            "calibration_lines": np.zeros((1, readouts), bool),
            "readout_extent": (0, samples),
            "headers": headers,
            "scan": ScanHeader((encoding,), noise_bandwidth=BANDWIDTH),
            "completion": Completion.FLAG,
            "noise": NoiseScan(scan, NOISE_DWELL_US) if noise_scan else None,
            "trajectory": np.array(positions, np.float32),
        }
        return Group(**(values | changes))

    return make
