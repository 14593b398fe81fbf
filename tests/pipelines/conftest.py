"""Groups made from arrays, the schema of scan headers, and streams placed by ismrmrd-python."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from pipelines.assembly.frame import Completion, Group, GroupKey, NoiseCovariance
from pipelines.mrd import ACQUISITION_HEADER
from pipelines.scan_header import Encoding, Limit, ScanHeader, Space
from pipelines.simulation.scan import SimulatedScan

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


@pytest.fixture(scope="session")
def schema_errors() -> Callable[[bytes], int]:
    """Validate a scan header with libxml2 itself; the number it returns is 0 for a valid document."""
    name = ctypes.util.find_library("xml2")
    if name is None:
        pytest.skip("libxml2 is not installed")
    libxml2 = ctypes.CDLL(name)
    for function in ("xmlSchemaNewParserCtxt", "xmlSchemaParse", "xmlSchemaNewValidCtxt", "xmlReadMemory"):
        getattr(libxml2, function).restype = ctypes.c_void_p
    schema = Path(__file__).parents[1] / "data" / "ismrmrd.xsd"
    parser = ctypes.c_void_p(libxml2.xmlSchemaNewParserCtxt(str(schema).encode()))
    validator = ctypes.c_void_p(libxml2.xmlSchemaNewValidCtxt(ctypes.c_void_p(libxml2.xmlSchemaParse(parser))))

    def validate(xml: bytes) -> int:
        document = libxml2.xmlReadMemory(xml, len(xml), None, None, 0)
        assert validator
        assert document
        return int(libxml2.xmlSchemaValidateDoc(validator, ctypes.c_void_p(document)))

    return validate


@dataclass
class Placed:
    """One image grid, filled readout by readout.

    `kspace` is `(coils, z, y, x)`, summed; `counts` `(z, y)`; `sampled` the columns that hold a sample; `calibration`
    `(z, y)`, lines with flag 20 or 21; `acquisitions` the readouts in their order.
    """

    kspace: np.ndarray[Any, np.dtype[np.complex128]]
    counts: np.ndarray[Any, np.dtype[np.float64]]
    sampled: np.ndarray[Any, np.dtype[np.bool_]]
    calibration: np.ndarray[Any, np.dtype[np.bool_]]
    acquisitions: list[ismrmrd.Acquisition] = field(default_factory=list)


NOT_FOR_IMAGES = (19, 23, 24, 26, 27, 28, 29, 30, 31)


def place_by_mrd(scan: SimulatedScan) -> dict[tuple[int, ...], Placed]:
    """K-space by encoding space, slice, contrast, phase, repetition and set, as the MRD specification places it.

    Header and readouts are read by ismrmrd-python. Line and partition: counter minus `center` of its encoding limit,
    from half the encoded matrix on. Samples: `center_sample` at half the matrix; discarded ones left out; IS_REVERSE
    turns all of it round. What falls outside limits or matrix is nowhere.
    """
    header = ismrmrd.xsd.CreateFromDocument(scan.header)
    placed: dict[tuple[int, ...], Placed] = {}
    for batch in scan.batches:
        for head, samples in zip(batch.headers, batch.complex_samples(), strict=True):
            acquisition = ismrmrd.Acquisition(ismrmrd.AcquisitionHeader.from_buffer_copy(head.tobytes()))
            acquisition.data[:] = samples
            if any(acquisition.isFlagSet(flag) for flag in NOT_FOR_IMAGES):
                continue
            encoding = header.encoding[acquisition.encoding_space_ref]
            mode = encoding.parallelImaging.calibrationMode.value if encoding.parallelImaging else "other"
            is_calibration = acquisition.isFlagSet(20) or acquisition.isFlagSet(21)
            if acquisition.isFlagSet(20) and not acquisition.isFlagSet(21) and mode != "embedded":
                continue
            limits, matrix, idx = encoding.encodingLimits, encoding.encodedSpace.matrixSize, acquisition.idx
            names = ("slice", "contrast", "phase", "repetition", "set")
            bounds = [(getattr(limits, name), getattr(idx, name)) for name in names]
            bounds += [(limits.kspace_encoding_step_1, idx.kspace_encode_step_1)]
            bounds += [(limits.kspace_encoding_step_2, idx.kspace_encode_step_2)]
            if any(limit is not None and not limit.minimum <= at <= limit.maximum for limit, at in bounds):
                continue
            y = idx.kspace_encode_step_1 - limits.kspace_encoding_step_1.center + matrix.y // 2
            z = idx.kspace_encode_step_2 - limits.kspace_encoding_step_2.center + matrix.z // 2
            if not (0 <= y < matrix.y and 0 <= z < matrix.z):
                continue
            key = (acquisition.encoding_space_ref, *(int(getattr(idx, name)) for name in names))
            if key not in placed:
                lines = (matrix.z, matrix.y)
                placed[key] = Placed(
                    np.zeros((acquisition.active_channels, *lines, matrix.x), np.complex128),
                    np.zeros(lines), np.zeros(matrix.x, bool), np.zeros(lines, bool),
                )  # fmt: skip
            one = placed[key]
            for sample in range(acquisition.discard_pre, acquisition.number_of_samples - acquisition.discard_post):
                steps = sample - acquisition.center_sample
                column = matrix.x // 2 + (-steps if acquisition.isFlagSet(22) else steps)
                if 0 <= column < matrix.x:
                    one.kspace[:, z, y, column] += acquisition.data[:, sample]
                    one.sampled[column] = True
            one.counts[z, y] += 1
            one.calibration[z, y] |= is_calibration
            one.acquisitions.append(acquisition)
    return placed


@pytest.fixture(scope="session")
def place() -> Callable[[SimulatedScan], dict[tuple[int, ...], Placed]]:
    return place_by_mrd


@pytest.fixture(scope="session")
def coil_images() -> Callable[..., np.ndarray[Any, np.dtype[np.complex128]]]:
    """Centred orthonormal inverse transform of `(coils, z, y, x)`, cut to a shape around the centre."""

    def transform(kspace: np.ndarray[Any, Any], shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
        axes = (-3, -2, -1)
        image = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace, axes=axes), axes=axes, norm="ortho"), axes=axes)
        first = [n // 2 - size // 2 for n, size in zip(image.shape[1:], shape, strict=True)]
        return image[:, *(slice(at, at + size) for at, size in zip(first, shape, strict=True))]

    return transform
