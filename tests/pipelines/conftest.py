"""Groups as assembly hands them on, made from arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.assembly.frame import Completion, Group, GroupKey, NoiseCovariance
from pipelines.mrd import ACQUISITION_HEADER
from pipelines.scan_header import Encoding, Limit, ScanHeader, Space

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
        noise: NoiseCovariance | None = None,
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
