"""What assembly hands on: a group of frames with everything a pipeline needs to reconstruct them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.buffer import Slot
from pipelines.mrd import Waveform
from pipelines.scan_header import ScanHeader


class Grouping(StrEnum):
    """What a pipeline asks for at a time."""

    SLICE = "slice"
    """One slice of one frame."""
    CINE = "cine"
    """All cardiac phases of a slice on the axis `frames`; all repetitions where the header's limits tell of one phase
    and several repetitions (real-time cine). Phases may start anywhere; those without any line are left out."""
    STACK = "stack"
    """One slice of one frame with its neighbours in space (`Group.neighbours`, `stacks.py`)."""
    VOLUME = "volume"
    """All partitions of a three-dimensional slab, on the axis `z`, which is what `slice` gives on a three-dimensional
    encoding, too; of a two-dimensional scan, one slice."""
    IMAGE = "image"
    """One image that the peer has reconstructed itself: no readouts, no assembly."""


class Completion(StrEnum):
    """Why a group was handed on."""

    FLAG = "flag"
    COUNTER = "counter"
    FULL = "full"
    CLOSE = "close"
    TRIGGER = "trigger"


@dataclass(frozen=True, slots=True, order=True)
class GroupKey:
    """The counters that tell one group from another (the average is not among them: averages are summed)."""

    encoding: int
    slice: int
    contrast: int
    phase: int
    repetition: int
    set: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Separate calibration lines of a slice on their own grid, k-space centre at index n//2 of every axis.

    Attributes:
        kspace: `(coils, z, y, x)` complex64, lines summed over repeats.
        counts: `(z, y)` float32, how often each line was measured; 0 where it was not.
        reversed_counts: `(z, y)` float32, how many of them were reversed readouts; None when none was.
        encoding: encoding space of the lines, whose field of view may be another; None for that of the group.
    """

    kspace: NDArray[np.complex64]
    counts: NDArray[np.float32]
    reversed_counts: NDArray[np.float32] | None = None
    encoding: int | None = None


@dataclass(frozen=True, slots=True)
class Navigators:
    """Phase-correction readouts (flag 24) in the order of their arrival, reversed ones turned round.

    Attributes:
        samples: `(readouts, coils, x)` complex64 on the columns of the encoded grid.
        is_reversed: `(readouts,)` bool.
        is_calibration: `(readouts,)` bool: flagged 20 or 21 as well, so meant for calibration lines.
    """

    samples: NDArray[np.complex64]
    is_reversed: NDArray[np.bool_]
    is_calibration: NDArray[np.bool_]


class NoiseSource(StrEnum):
    """Where the noise level of images comes from."""

    MEASURED = "measured"
    """Noise readouts of the scan itself."""
    DEPENDENCY = "dependency"
    """Noise readouts of an earlier scan, which the scan header names."""
    GIVEN = "given"
    """A parameter, for data that were whitened elsewhere."""
    ESTIMATED = "estimated"
    """The image readouts."""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseCovariance:
    """What noise readouts say about the noise of the coils; the readouts themselves are not kept.

    Attributes:
        sums: `(coils, coils)` complex128, sum of `n n^H` over all samples; in the order of the channels.
        n_samples: samples of each coil in the sums.
        sample_time_us: dwell time of the noise readouts.
        bandwidth: relative receiver noise bandwidth they were measured with; None for that of the scan's own header.
        source: which scan measured it.
    """

    sums: NDArray[np.complex128]
    n_samples: int
    sample_time_us: float
    bandwidth: float | None = None
    source: NoiseSource = NoiseSource.MEASURED

    @property
    def n_coils(self) -> int:
        """Coils that it was measured with."""
        return len(self.sums)

    @classmethod
    def of(cls, samples: NDArray[np.complexfloating], sample_time_us: float) -> NoiseCovariance:
        """Of noise readouts `(readouts, coils, samples)`."""
        n_readouts, n_coils, n_samples = samples.shape
        sums = np.zeros((n_coils, n_coils), np.complex128)
        for readout in samples:
            add_products(sums, readout)
        return cls(sums, n_readouts * n_samples, sample_time_us)


def add_products(sums: NDArray[np.complex128], readout: NDArray[np.complexfloating]) -> None:
    """Add `n n^H` of a readout `(coils, samples)`, in double precision.

    One readout at a time, so that the sums do not depend on how readouts came in batches.
    """
    wide = readout.astype(np.complex128)
    sums += wide @ wide.conj().T


@dataclass(frozen=True, slots=True)
class Group:
    """One job for a pipeline: the k-space of one or more frames, placed, with what is known about it.

    K-space is on the encoded grid of the header with its centre at index n//2 of every axis, readout oversampling still
    in. Repeated lines and averages are summed; divide by `counts` for the mean.

    Non-Cartesian readouts (`trajectory` is not None) lie one to a row in the order of their arrival: y counts readouts,
    x samples (all that were not to be discarded), z is 1; nothing is summed. Only a frame with fewer readouts than
    others of its group ends with rows of zeros, whose `counts` are 0.

    Attributes:
        key: counters of the first frame.
        kspace: `(frames, coils, z, y, x)` complex64; a view whose memory order is chosen for ingest.
        counts: `(frames, z, y)` float32: readouts summed into each line; 0 where nothing was measured.
        calibration_lines: `(z, y)` bool: lines of the image grid that were flagged as calibration (20 or 21), embedded
            mode.
        readout_extent: first and one-past-last column of x that was measured (asymmetric echo makes it shorter than x).
        headers: `(frames,)` of `ACQUISITION_HEADER`: of each frame the readout nearest to the k-space centre.
        calibration: separate calibration lines on a grid of their own, or None.
        noise: what noise readouts say, or None.
        scan: the scan header.
        completion: why the group was handed on.
        is_complete: whether every line that the sampling pattern promises has been measured.
        expected_lines: lines that were promised in all frames (for the `Incomplete` note), 0 when unknown.
        dwell_us: `(frames, z, y)` float32: dwell time of each line, where the lines of a frame differ in it; of summed
            readouts the harmonic mean, 0 where nothing was measured or a dwell time is unknown. None where all are
            that of `headers`.
        trajectory: `(frames, y, x, dimensions)` float32 of each sample of non-Cartesian readouts, x before y, in the
            units that the stream has; where it has none and they are radial, in cycles a pixel of the encoded grid
            (`pipelines.trajectory`). None for Cartesian ones.
        neighbours: the groups of the slices next to this one, at most two, in the order of their slice counters;
            `stack` only. Which slices are next is decided by their positions where readouts have them
            (`slice_order.py`): slices may be numbered in the order of measurement. Their memory is among `slots`.
        waveforms: physiology waveforms of the time span of the readouts, as far as they came before the group was
            complete, in the order of their time stamps.
        reversed_counts: `(frames, z, y)` float32: how many of `counts` were reversed readouts (they are in k-space
            turned round); None when none was.
        navigators: phase-correction readouts of this slice, None without any.
        readout_noise: standard deviation of the noise of a sample of `kspace` over that of one as it was sent; not 1
            where samples on gradient ramps were made uniform.
        slots: memory behind the arrays, to be released once the job is done.
        notes: attributes for the images of this group.
    """

    key: GroupKey
    kspace: NDArray[np.complex64]
    counts: NDArray[np.float32]
    calibration_lines: NDArray[np.bool_]
    readout_extent: tuple[int, int]
    headers: NDArray[np.void]
    scan: ScanHeader
    completion: Completion
    is_complete: bool = True
    expected_lines: int = 0
    calibration: Calibration | None = None
    noise: NoiseCovariance | None = None
    dwell_us: NDArray[np.float32] | None = None
    trajectory: NDArray[np.float32] | None = None
    neighbours: tuple[Group, ...] = ()
    waveforms: tuple[Waveform, ...] = ()
    reversed_counts: NDArray[np.float32] | None = None
    navigators: Navigators | None = None
    readout_noise: float = 1.0
    slots: tuple[Slot, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def n_bytes(self) -> int:
        """Memory of the slots, or of the k-space where there are none."""
        return sum(slot.data.nbytes for slot in self.slots) or self.kspace.nbytes

    def release(self) -> None:
        """Give back the memory of this group; its arrays must not be used afterwards."""
        for slot in self.slots:
            slot.release()
