"""Streams of readouts for the tests of assembly, and a plain placement of the same readouts to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import ismrmrd
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlot
from pipelines.assembly.frame import Group, Grouping
from pipelines.assembly.limits import AssemblyLimits
from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.scan_header import CalibrationMode, Encoding, Limit, ScanHeader, Space, TrajectoryType

Key = tuple[int, ...]


@dataclass
class TrackedSlots:
    """Heap slots that remember which of them were released."""

    taken: list[TrackedSlot] = field(default_factory=list)

    def take(self, n_bytes: int) -> TrackedSlot:
        self.taken.append(TrackedSlot(n_bytes))
        return self.taken[-1]

    @property
    def n_out(self) -> int:
        return sum(not slot.is_released for slot in self.taken)


class TrackedSlot(HeapSlot):
    is_released = False

    def release(self) -> None:
        assert not self.is_released, "released twice"
        self.is_released = True


def _shape(readout: Acquisitions) -> tuple[tuple[int, ...], int]:
    return readout.samples.shape, 0 if readout.trajectory is None else readout.trajectory.shape[1]


class Streams:
    """What the tests build with; one object, since test modules cannot import each other."""

    Slots = TrackedSlots

    @staticmethod
    def scan(
        y: int = 8,
        x: int = 6,
        z: int = 1,
        *,
        limits: dict[str, tuple[int, int, int]] | None = None,
        acceleration: tuple[int, int] = (1, 1),
        mode: CalibrationMode = CalibrationMode.OTHER,
        trajectory: TrajectoryType = TrajectoryType.CARTESIAN,
        n_encodings: int = 1,
        coils: int | None = None,
    ) -> ScanHeader:
        space = Space((x, y, z), (300.0, 300.0, 5.0))
        ranges = {name: Limit(*limit) for name, limit in (limits or {}).items()}
        encoding = Encoding(space, space, trajectory, ranges, acceleration, mode)
        return ScanHeader((encoding,) * n_encodings, receiver_channels=coils)

    @staticmethod
    def readout(
        line: int,
        *flags: AcquisitionFlag,
        samples: int = 6,
        coils: int = 2,
        center: int | None = None,
        discard: tuple[int, int] = (0, 0),
        encoding: int = 0,
        partition: int = 0,
        dwell: float = 5.0,
        value: complex | None = None,
        seed: int = 0,
        dimensions: int = 0,
        position: tuple[float, float, float] | None = None,
        normal: tuple[float, float, float] = (0.0, 0.0, 1.0),
        **counters: int,
    ) -> Acquisitions:
        """One readout; small whole numbers, so that sums do not depend on their order."""
        header = np.zeros(1, ACQUISITION_HEADER)
        header["version"], header["number_of_samples"], header["active_channels"] = 1, samples, coils
        header["flags"] = sum(flag.mask for flag in flags)
        header["center_sample"] = samples // 2 if center is None else center
        header["discard_pre"], header["discard_post"] = discard
        header["encoding_space_ref"], header["sample_time_us"] = encoding, dwell
        for name, number in {"kspace_encode_step_1": line, "kspace_encode_step_2": partition, **counters}.items():
            header["idx"][name] = number
        header["scan_counter"] = seed
        rng = np.random.default_rng([line, partition, seed, *counters.values()])
        data = rng.integers(-99, 99, (1, coils, samples)) + 1j * rng.integers(-99, 99, (1, coils, samples))
        if value is not None:
            data[:] = value
        if position is not None:
            header["position"], header["slice_dir"] = position, normal
        trajectory = None
        if dimensions:
            header["trajectory_dimensions"] = dimensions
            trajectory = rng.integers(-99, 99, (1, samples, dimensions)).astype(np.float32) / 200
        return Acquisitions.from_arrays(header, data.astype(np.complex64), trajectory)

    @staticmethod
    def batches(readouts: Sequence[Acquisitions], cuts: Sequence[int] = ()) -> list[Acquisitions]:
        """The same readouts in batches of one shape, cut at the places given too; their bytes are not aligned."""
        out: list[Acquisitions] = []
        start = 0
        for stop in range(1, len(readouts) + 1):
            is_cut = stop == len(readouts) or stop in cuts
            if is_cut or _shape(readouts[stop]) != _shape(readouts[start]):
                part = readouts[start:stop]
                shape = part[0].samples.shape[1:]
                n_trajectory = _shape(part[0])[1]
                row = int(np.prod(shape)) + n_trajectory
                wire = np.zeros(len(part) * (342 + row), np.uint8)
                rows = wire.reshape(len(part), -1)
                for at, readout in enumerate(part):
                    rows[at, 2:342] = readout.headers.view(np.uint8)
                    rows[at, 342 + n_trajectory :] = readout.samples.reshape(-1)
                    if readout.trajectory is not None:
                        rows[at, 342 : 342 + n_trajectory] = readout.trajectory.reshape(-1)
                headers = np.ndarray((len(part),), ACQUISITION_HEADER, wire.data, 2, (342 + row,))
                strides = (342 + row, shape[1], 1)
                samples = np.ndarray((len(part), *shape), np.uint8, wire.data, 342 + n_trajectory, strides)
                positions = np.ndarray((len(part), n_trajectory), np.uint8, wire.data, 342, (342 + row, 1))
                out.append(Acquisitions(headers, samples, positions if n_trajectory else None))
                start = stop
        return out

    @classmethod
    def assemble(
        cls,
        scan: ScanHeader,
        readouts: Sequence[Acquisitions],
        *,
        cuts: Sequence[int] = (),
        limits: AssemblyLimits | None = None,
        finish: bool = True,
        grouping: Grouping = Grouping.SLICE,
        slots: TrackedSlots | None = None,
    ) -> tuple[list[Group], Assembler]:
        assembler = Assembler(scan, grouping, slots or TrackedSlots(), limits or AssemblyLimits())
        groups = [group for batch in cls.batches(readouts, cuts) for group in assembler.add(batch)]
        return groups + (assembler.finish() if finish else []), assembler

    @staticmethod
    def as_ismrmrd(readout: Acquisitions) -> ismrmrd.Acquisition:
        """The same readout as an object of ismrmrd-python."""
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(readout.headers.tobytes())
        acquisition = ismrmrd.Acquisition(head)
        acquisition.data[:] = readout.complex_samples()[0]
        if readout.trajectory is not None:
            acquisition.traj[:] = readout.trajectory.view(np.float32).reshape(acquisition.traj.shape)
        return acquisition

    @staticmethod
    def place_plainly(
        acquisitions: Sequence[ismrmrd.Acquisition], scan: ScanHeader
    ) -> dict[Key, tuple[NDArray[np.complex64], NDArray[np.float32]]]:
        """K-space `(coils, z, y, x)` and counts `(z, y)` by group, one readout and one sample at a time."""
        out: dict[Key, tuple[NDArray[np.complex64], NDArray[np.float32]]] = {}
        for acquisition in acquisitions:
            flags = {flag for flag in range(1, 32) if acquisition.isFlagSet(flag)}
            encoding = scan.encodings[acquisition.encoding_space_ref]
            if flags & {19, 23, 24, 26, 27, 28, 29, 30, 31} or not np.isfinite(acquisition.data).all():
                continue
            if 20 in flags and 21 not in flags and encoding.calibration_mode is not CalibrationMode.EMBEDDED:
                continue
            idx = acquisition.idx
            x, y, z = encoding.encoded.matrix
            place = []
            for name, length in (("kspace_encode_step_1", y), ("kspace_encode_step_2", z)):
                limit = encoding.limits.get(name, Limit(0, length - 1, length // 2))
                at = getattr(idx, name) + length // 2 - limit.center
                is_inside = limit.minimum <= getattr(idx, name) <= limit.maximum and 0 <= at < length
                place.append(at if is_inside else None)
            if None in place:
                continue
            key = (acquisition.encoding_space_ref, idx.slice, idx.contrast, idx.phase, idx.repetition, idx.set)
            coils, n_samples = acquisition.data.shape
            empty = (np.zeros((coils, z, y, x), np.complex64), np.zeros((z, y), np.float32))
            kspace, counts = out.setdefault(key, empty)
            data, center = acquisition.data, acquisition.center_sample
            pre, post = acquisition.discard_pre, acquisition.discard_post
            if 22 in flags:
                data, center, pre, post = data[:, ::-1], n_samples - 1 - center, post, pre
            for sample in range(pre, n_samples - post):
                kspace[:, place[1], place[0], x // 2 + sample - center] += data[:, sample]
            counts[place[1], place[0]] += 1
        return out


@pytest.fixture(scope="session")
def streams() -> type[Streams]:
    return Streams
