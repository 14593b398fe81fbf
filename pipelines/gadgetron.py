"""What Gadgetron hands to an external node besides readouts and images: buckets, buffered k-space, arrays of images.

Pure data on numpy, as `pipelines.mrd`; no parsing, no I/O, no torch. Gadgetron's arrays are column-major; read
row-major their axes are reversed and so in our order: Gadgetron's [E0, E1, E2, CHA, N, S, LOC] is
`(loc, s, n, coils, z, y, x)`. N and S are whatever counters the chain was told to put there; LOC are slices. Source:
Gadgetron `toolboxes/mri_core/mri_core_data.h`, `mri_core_acquisition_bucket.h`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import Acquisitions, Waveform

STATISTICS: Final = (
    "kspace_encode_step_1", "kspace_encode_step_2", "slice", "phase", "contrast", "repetition", "set", "segment",
    "average",
)  # fmt: skip
"""Counters of a bucket's statistics in the order of the wire, which is not that of the acquisition header."""

SAMPLING_LIMITS: Final = np.dtype([("minimum", "<u2"), ("center", "<u2"), ("maximum", "<u2")])

SAMPLING_DESCRIPTION: Final = np.dtype(
    {
        "names": ["encoded_fov_mm", "recon_fov_mm", "encoded_matrix", "recon_matrix", "limits"],
        "formats": [("<f4", (3,)), ("<f4", (3,)), ("<u2", (3,)), ("<u2", (3,)), (SAMPLING_LIMITS, (3,))],
        "offsets": [0, 12, 24, 30, 36],
        "itemsize": 56,
    }
)
"""56 bytes, two of them padding; everything in the order x, y, z. `center` is where k-space centre lies."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Readouts that a trigger closed (id 1050); views of where they were read: whoever keeps them copies.

    A readout that is image and calibration at once is in `data` and in `reference`.

    Attributes:
        data: readouts of the image, in runs of one shape.
        reference: readouts for calibration, likewise.
        data_statistics: for each encoding space the values of each counter (`STATISTICS`) that occur in `data`.
        reference_statistics: the same of `reference`.
        waveforms: physiology of the time.

    The trajectory of a run may have more samples than its readouts: Gadgetron's RemoveROOversampling crops samples and
    leaves trajectories alone.
    """

    data: tuple[Acquisitions, ...] = ()
    reference: tuple[Acquisitions, ...] = ()
    data_statistics: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    reference_statistics: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    waveforms: tuple[Waveform, ...] = ()

    def __len__(self) -> int:
        return sum(len(run) for run in (*self.data, *self.reference))


@dataclass(frozen=True, slots=True)
class ReconBuffer:
    """K-space of one encoding space, placed; views of where it was read: whoever keeps it copies.

    Attributes:
        data: `(loc, s, n, coils, z, y, x)` complex64.
        headers: `(loc, s, n, z, y)` of `ACQUISITION_HEADER`; all zero where no readout was placed.
        sampling: scalar of `SAMPLING_DESCRIPTION`.
        trajectory: `(loc, s, n, z, y, x, dimensions)` float32, or None.
        density: `(loc, s, n, z, y, x)` float32, or None.
    """

    data: NDArray[np.complex64]
    headers: NDArray[np.void]
    sampling: NDArray[np.void]
    trajectory: NDArray[np.float32] | None = None
    density: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class ReconBit:
    """One encoding space of `ReconData`: image k-space and, where there is any, calibration k-space."""

    data: ReconBuffer
    reference: ReconBuffer | None = None


@dataclass(frozen=True, slots=True)
class ReconData:
    """Buffered k-space (id 1023), one entry for each encoding space; entries may be empty."""

    bits: tuple[ReconBit, ...]

    def __len__(self) -> int:
        return len(self.bits)


@dataclass(frozen=True, slots=True)
class ImageArray:
    """Reconstructed images (id 1024).

    Attributes:
        data: `(loc, s, n, channels, z, y, x)` complex64.
        headers: `(loc, s, n)` of `IMAGE_HEADER`.
        meta: attributes of each image as XML, in the order of `headers` flattened; may be empty.
        waveforms: physiology, or None.
        acquisition_headers: `(loc, s, n, z, y)` of `ACQUISITION_HEADER`, or None.
    """

    data: NDArray[np.complex64]
    headers: NDArray[np.void]
    meta: tuple[bytes, ...] = field(default=())
    waveforms: tuple[Waveform, ...] | None = None
    acquisition_headers: NDArray[np.void] | None = None
