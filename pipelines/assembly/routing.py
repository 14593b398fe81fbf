"""Which way each readout goes: image, calibration, noise, or kept out; cut into runs that go the same way.

Flags: MRD specification, "Acquisition flags". A run never crosses a LAST flag, so that what a flag ends is known
exactly. Works on whole batches; knows nothing of grids and groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import AssemblyError
from pipelines.mrd import ACQUISITION_HEADER, NEVER_IMAGING, AcquisitionFlag, Acquisitions

_Flag = AcquisitionFlag


def _mask(*flags: AcquisitionFlag) -> int:
    return sum(flag.mask for flag in flags)


LAST: Final = _mask(_Flag.LAST_IN_SLICE, _Flag.LAST_IN_REPETITION, _Flag.LAST_IN_MEASUREMENT)
_NOISE: Final = _Flag.IS_NOISE_MEASUREMENT.mask
_KEPT_OUT: Final = _mask(*(flag for flag in NEVER_IMAGING if flag is not _Flag.IS_PHASECORR_DATA))
_COMPRESSED: Final = _mask(_Flag.COMPRESSION1, _Flag.COMPRESSION2, _Flag.COMPRESSION3, _Flag.COMPRESSION4)
_PHASE_CORRECTION: Final = _Flag.IS_PHASECORR_DATA.mask
_CALIBRATION: Final = _Flag.IS_PARALLEL_CALIBRATION.mask
_BOTH: Final = _Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING.mask
_REVERSE: Final = _Flag.IS_REVERSE.mask
_SPECIAL: Final = _NOISE | _KEPT_OUT | _PHASE_CORRECTION | _COMPRESSED | _CALIBRATION | _REVERSE

# Another way to look at the same 340 bytes: fields that are used together as one small array.
_offset: Final = {name: field[1] for name, field in (ACQUISITION_HEADER.fields or {}).items()}
_VIEW: Final = np.dtype(
    {
        "names": ["flags", "geometry", "lines", "average", "group"],
        "formats": ["<u8", ("<u2", 4), ("<u2", 2), "<u2", ("<u2", 5)],
        "offsets": [_offset["flags"], _offset["discard_pre"], _offset["idx"], _offset["idx"] + 4, _offset["idx"] + 6],
        "itemsize": ACQUISITION_HEADER.itemsize,
    }
)
"""geometry: discard_pre, discard_post, center_sample, encoding_space_ref; group: `layout.GROUP_COUNTERS`."""


class Route(IntEnum):
    """Where a readout goes by its flags; whether CALIBRATION joins the image depends on the encoding space."""

    IMAGING = 0
    CALIBRATION = 1
    NOISE = 2
    KEPT_OUT = 3
    NAVIGATOR = 4
    """Phase correction (24), whether flagged 20 or 21 as well or not."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive readouts of one route, geometry and group.

    Attributes:
        headers: `(n,)`.
        samples: `(n, coils, samples * 8)` bytes.
        lines: `(n, 2)` counters of the two phase encodings.
        averages: `(n,)`.
        is_calibration: `(n,)`: flagged 20 or 21; None when none is.
        key: encoding space and `layout.GROUP_COUNTERS`.
        first: samples before this one are to be discarded.
        stop: samples from this one on are to be discarded.
        center: sample at the k-space centre.
        flags: all flags of the last readout.
        trajectory: `(n, samples, dimensions * 4)` bytes of float32, or None.
        is_reversed: read from the far end; samples, discards and centre have been turned round already.
        noise: standard deviation of the noise of a sample over that of one as it was sent.
    """

    route: Route
    headers: NDArray[np.void]
    samples: NDArray[np.uint8]
    lines: NDArray[np.uint16]
    averages: NDArray[np.uint16]
    is_calibration: NDArray[np.bool_] | None
    key: tuple[int, ...]
    first: int
    stop: int
    center: int
    flags: int
    trajectory: NDArray[np.uint8] | None = None
    is_reversed: bool = False
    noise: float = 1.0

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def n_coils(self) -> int:
        """Channels of each readout."""
        return int(self.samples.shape[1])

    @property
    def n_samples(self) -> int:
        """Samples of each readout and coil, discarded ones included."""
        return int(self.samples.shape[2]) // 8

    @property
    def kept_samples(self) -> NDArray[np.uint8]:
        """The samples that are not to be discarded, `(n, coils, (stop - first) * 8)` bytes."""
        return self.samples[:, :, self.first * 8 : self.stop * 8]

    @property
    def kept_trajectory(self) -> NDArray[np.uint8] | None:
        """The trajectory of `kept_samples`, `(n, stop - first, dimensions * 4)` bytes."""
        return None if self.trajectory is None else self.trajectory[:, self.first : self.stop]

    @property
    def has_finite(self) -> bool:
        """Whether at least one readout is finite throughout; usually the first one tells."""
        first = np.ascontiguousarray(self.kept_samples[0]).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a sum keeps any NaN or infinity
            is_first_finite = np.isfinite(first.sum())
        return bool(is_first_finite) or bool(finite_readouts(self)[1].any())

    @property
    def where(self) -> str:
        """The group and the first line, for messages."""
        return f"{where(self.key)}, line {int(self.lines[0, 0])}"

    @property
    def is_last(self) -> bool:
        """Whether the last readout carries one of the LAST flags."""
        return bool(self.flags & LAST)


def finite_readouts(run: Run) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """An aligned copy of the kept samples `(n, coils, samples)`, and which readouts are finite throughout `(n,)`."""
    samples = np.ascontiguousarray(run.kept_samples).view(np.complex64)
    return samples, np.asarray(np.isfinite(samples.view(np.float32)).all(axis=(1, 2)))


def where(key: tuple[int, ...]) -> str:
    """Encoding space and counters that are not zero, in words."""
    names = ("encoding space", "slice", "contrast", "phase", "repetition", "set")
    return ", ".join(f"{name} {value}" for name, value in zip(names, key, strict=True) if value or name == "slice")


def runs(batch: Acquisitions) -> Iterator[Run]:
    """Cut a batch with at least one sample and coil into runs, in the order of the stream.

    Raises:
        AssemblyError: compressed samples.
    """
    n = len(batch)
    view = batch.headers.view(_VIEW)
    flags = np.ascontiguousarray(view["flags"])
    union = int(np.bitwise_or.reduce(flags))
    keys = np.empty((n, 10), np.uint16)
    keys[:, :4] = view["geometry"]
    keys[:, 4:9] = view["group"]
    keys[:, 9] = _routes(flags) if union & _SPECIAL else Route.IMAGING
    if union & _COMPRESSED:
        raise AssemblyError("compressed samples (flags 53 to 56) are not supported")
    lines, averages = np.ascontiguousarray(view["lines"]), np.ascontiguousarray(view["average"])
    is_calibration = (flags & np.uint64(_CALIBRATION | _BOTH)) != 0 if union & (_CALIBRATION | _BOTH) else None
    positions = None if batch.trajectory is None else batch.trajectory.reshape(n, batch.n_samples, -1)
    for start, stop in _bounds(keys, flags if union & LAST else None):
        pre, post, center, *key = keys[start, :9].tolist()
        samples, is_reverse = batch.samples[start:stop], bool(keys[start, 9] & 0x80)
        trajectory = None if positions is None else positions[start:stop]
        if is_reverse:
            # MRD: a reversed readout is sampled from the far end; its centre and discards count from there
            by_sample = samples.reshape(stop - start, batch.n_coils, batch.n_samples, 8)
            samples = np.ascontiguousarray(by_sample[:, :, ::-1]).reshape(samples.shape)
            trajectory = None if trajectory is None else trajectory[:, ::-1]
            pre, post, center = post, pre, batch.n_samples - 1 - center
        yield Run(
            route=Route(int(keys[start, 9]) & 0x7F),
            headers=batch.headers[start:stop],
            samples=samples,
            lines=lines[start:stop],
            averages=averages[start:stop],
            is_calibration=None if is_calibration is None else is_calibration[start:stop],
            key=tuple(key),
            first=pre,
            stop=batch.n_samples - post,
            center=center,
            flags=int(flags[stop - 1]),
            trajectory=trajectory,
            is_reversed=is_reverse,
        )


def _routes(flags: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Route of each readout, with bit 7 set where it is reversed."""
    is_noise = (flags & np.uint64(_NOISE)) != 0
    is_kept_out = (flags & np.uint64(_KEPT_OUT)) != 0
    is_phase_correction = (flags & np.uint64(_PHASE_CORRECTION)) != 0
    is_calibration_only = (flags & np.uint64(_CALIBRATION | _BOTH)) == _CALIBRATION
    route = np.select(
        [is_noise, is_kept_out, is_phase_correction, is_calibration_only],
        [Route.NOISE, Route.KEPT_OUT, Route.NAVIGATOR, Route.CALIBRATION],
        Route.IMAGING,
    )
    return (route | np.where((flags & np.uint64(_REVERSE)) != 0, 0x80, 0)).astype(np.uint16)


def joins_image(flags: NDArray[np.uint64], *, is_embedded: bool) -> NDArray[np.bool_]:
    """Which readouts belong to the image grid by their flags: calibration lines do in embedded mode."""
    routes = _routes(flags) & 0x7F
    return np.asarray((routes == Route.IMAGING) | (is_embedded & (routes == Route.CALIBRATION)))


def _bounds(keys: NDArray[np.uint16], flags: NDArray[np.uint64] | None) -> Iterator[tuple[int, int]]:
    """First and one-past-last readout of each run; with `flags`, runs also end at a LAST flag."""
    n = len(keys)
    differs = (keys[1:] != keys[:-1]).any(axis=1)
    if flags is not None:
        differs |= (flags[:-1] & np.uint64(LAST)) != 0
    start = 0
    if differs.any():
        for cut in (np.flatnonzero(differs) + 1).tolist():
            yield start, cut
            start = cut
    yield start, n
