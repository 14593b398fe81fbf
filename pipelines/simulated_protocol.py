"""What a simulated scan measures, and in which order; knows nothing of objects, coils or noise samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag
from pipelines.scan_header import DEFAULT_NOISE_BANDWIDTH, CalibrationMode

Vector = tuple[float, float, float]

PLAN: Final = np.dtype(
    [("frame", "<u2"), ("slice", "<u2"), ("average", "<u2"), ("line", "<u2"), ("flags", "<u8"), ("is_separate", "?")]
)
"""One readout of the plan; `line` is the row of the encoded grid, whose k-space centre is row n//2."""


class Pattern(StrEnum):
    """Which lines are measured."""

    FULL = "full"
    REGULAR = "regular"
    """Every R-th line, the centre among them, with a fully sampled calibration region."""
    RANDOM = "random"
    """A fully sampled centre and random lines, denser near the centre, as many as R allows; drawn anew for every
    frame."""


class SliceOrder(StrEnum):
    """How several slices share the time of a frame."""

    SEQUENTIAL = "sequential"
    """One slice after the other."""
    INTERLEAVED = "interleaved"
    """Each line of all slices, even slices before odd ones, before the next line."""


class FrameCounter(StrEnum):
    """What the frames of an object are, and so which counter tells them apart."""

    REPETITION = "repetition"
    PHASE = "phase"
    CONTRAST = "contrast"
    SET = "set"

    @property
    def flags(self) -> tuple[AcquisitionFlag, AcquisitionFlag]:
        """First and last readout of a frame."""
        return AcquisitionFlag[f"FIRST_IN_{self.name}"], AcquisitionFlag[f"LAST_IN_{self.name}"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the stack of slices lies: centre in mm and unit vectors, in patient coordinates (LPS) as MRD has them."""

    position_mm: Vector = (0.0, 0.0, 0.0)
    read_dir: Vector = (1.0, 0.0, 0.0)
    phase_dir: Vector = (0.0, 1.0, 0.0)
    slice_dir: Vector = (0.0, 0.0, 1.0)

    @classmethod
    def oblique(cls, position_mm: Vector, tilt_deg: float, rotation_deg: float) -> Geometry:
        """An axial stack tilted about the left-right axis, its read direction then rotated in the plane."""
        tilt, turn = np.deg2rad(tilt_deg), np.deg2rad(rotation_deg)
        right, back = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(tilt), np.sin(tilt)])
        read, phase = right * np.cos(turn) + back * np.sin(turn), back * np.cos(turn) - right * np.sin(turn)
        return cls(position_mm, _vector(read), _vector(phase), _vector(np.cross(read, phase)))


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is measured and how; the matrix comes from the object.

    Attributes:
        n_coils: receive channels on a ring around the object.
        pattern: lines measured.
        acceleration: R along y.
        calibration_lines: lines of the fully sampled region; 0 for none.
        calibration_mode: `embedded` (flags 20 and 21 among the image lines) or `separate` (flag 20 before them).
        slice_order: order of the slices of a frame.
        repetitions: how often the object is measured; only for an object of one frame.
        frame_counter: what the frames are.
        averages: how often each line is measured, with new noise.
        oversampling: of the readout; 2 on most scanners, 1 for none.
        phase_oversampling: lines added along y for a larger field of view, relative; 0 for none.
        partial_fourier: part of the lines along y that is measured; the earliest are left out.
        partial_echo: part of the readout that is measured; the earliest samples are left out (asymmetric echo).
        field_of_view_mm: along x and y of the image.
        slice_thickness_mm: of each slice.
        slice_gap_mm: between neighbouring slices.
        geometry: of the stack.
        noise_std: root mean square over coils of the complex noise of a raw readout sample, in the object's units; 0
            for none.
        noise_correlation: magnitude of the correlation between neighbouring coils.
        noise_readouts: readouts of the noise scan before the images; 0 for none.
        noise_samples: samples of each noise readout.
        dwell_us: time of one raw readout sample, oversampling included.
        noise_dwell_us: time of one sample of the noise scan.
        noise_bandwidth: relativeReceiverNoiseBandwidth, see `pipelines.simulate`.
        phase_std_rad: spread of the image's smooth phase.
        order_flags: whether FIRST and LAST flags are set; some vendors leave them out.
        seed: of everything random.
    """

    n_coils: int = 8
    pattern: Pattern = Pattern.REGULAR
    acceleration: int = 1
    calibration_lines: int = 24
    calibration_mode: CalibrationMode = CalibrationMode.EMBEDDED
    slice_order: SliceOrder = SliceOrder.SEQUENTIAL
    repetitions: int = 1
    frame_counter: FrameCounter = FrameCounter.REPETITION
    averages: int = 1
    oversampling: int = 2
    phase_oversampling: float = 0.0
    partial_fourier: float = 1.0
    partial_echo: float = 1.0
    field_of_view_mm: tuple[float, float] = (220.0, 220.0)
    slice_thickness_mm: float = 5.0
    slice_gap_mm: float = 1.0
    geometry: Geometry = field(default_factory=Geometry)
    noise_std: float = 0.02
    noise_correlation: float = 0.25
    noise_readouts: int = 32
    noise_samples: int = 256
    dwell_us: float = 5.0
    noise_dwell_us: float = 7.5
    noise_bandwidth: float = DEFAULT_NOISE_BANDWIDTH
    repetition_time_ms: float = 10.0
    echo_time_ms: float = 4.0
    flip_angle_deg: float = 12.0
    phase_std_rad: float = 1.0
    order_flags: bool = True
    protocol_name: str = "simulated_t1"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ValueError: a value is out of range; the message names it.
        """
        for name in ("n_coils", "acceleration", "averages", "repetitions", "oversampling", "noise_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("partial_fourier", "partial_echo"):
            if not 0.5 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be more than 0.5 and at most 1, not {getattr(self, name)}")
        for name in ("calibration_lines", "noise_readouts", "noise_std", "phase_oversampling", "slice_gap_mm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("dwell_us", "noise_dwell_us", "noise_bandwidth", "slice_thickness_mm", "repetition_time_ms"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.calibration_mode not in (CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE):
            raise ValueError(f"calibration_mode must be embedded or separate, not {self.calibration_mode.value}")

    @property
    def is_accelerated(self) -> bool:
        """Whether lines are left out to save time."""
        return self.acceleration > 1 and self.pattern is not Pattern.FULL

    def encoded_lines(self, n_y: int) -> int:
        """Rows of the encoded grid for an image of `n_y` rows, phase oversampling included; of the same parity."""
        return n_y + 2 * round(n_y * self.phase_oversampling / 2)

    def skipped_lines(self, n_y: int) -> int:
        """Rows at the start of the encoded grid that partial Fourier leaves out."""
        lines = self.encoded_lines(n_y)
        return lines - round(lines * self.partial_fourier)

    def skipped_samples(self, n_x: int) -> int:
        """Samples at the start of each readout that an asymmetric echo leaves out."""
        samples = n_x * self.oversampling
        return samples - round(samples * self.partial_echo)


def plan_frame(protocol: Protocol, frame: int, n_slices: int, n_y: int) -> NDArray[np.void]:
    """The readouts of one frame in the order of measurement, `(n,)` of `PLAN`, with their flags.

    Separate calibration lines come before the image lines of the first frame and carry no FIRST or LAST flag.
    """
    image_lines, calibration = _choose_lines(protocol, frame, n_y)
    embedded = protocol.calibration_mode is CalibrationMode.EMBEDDED
    lines = np.union1d(image_lines, calibration) if embedded else image_lines
    if protocol.slice_order is SliceOrder.SEQUENTIAL:
        slices, averages, rows = np.meshgrid(np.arange(n_slices), np.arange(protocol.averages), lines, indexing="ij")
    else:
        order = np.concatenate([np.arange(0, n_slices, 2), np.arange(1, n_slices, 2)])
        averages, rows, slices = np.meshgrid(np.arange(protocol.averages), lines, order, indexing="ij")
    plan = np.zeros(rows.size, PLAN)
    plan["frame"], plan["slice"], plan["average"], plan["line"] = frame, slices.ravel(), averages.ravel(), rows.ravel()
    if embedded and protocol.is_accelerated:
        in_region, in_image = np.isin(plan["line"], calibration), np.isin(plan["line"], image_lines)
        plan["flags"][in_region & in_image] |= AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING.mask
        plan["flags"][in_region & ~in_image] |= AcquisitionFlag.IS_PARALLEL_CALIBRATION.mask
    if protocol.order_flags:
        _flag_order(plan, protocol.frame_counter)
    if not embedded and frame == 0:
        plan = np.concatenate([_separate_calibration(calibration, n_slices), plan])
    return plan


def _choose_lines(protocol: Protocol, frame: int, n_y: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows measured for the image, and rows of the calibration region."""
    n_lines, skipped = protocol.encoded_lines(n_y), protocol.skipped_lines(n_y)
    rows = np.arange(skipped, n_lines)
    calibration = _region(rows, n_lines, protocol.calibration_lines)
    if not protocol.is_accelerated:
        return rows, calibration
    if protocol.pattern is Pattern.REGULAR:
        return rows[(rows - n_lines // 2) % protocol.acceleration == 0], calibration
    rng = np.random.default_rng([protocol.seed, 1, frame])
    others = np.setdiff1d(rows, calibration)
    wanted = min(max(round(len(rows) / protocol.acceleration) - len(calibration), 0), len(others))
    density = (1 - np.abs(others - n_lines // 2) / (n_lines // 2 + 1)) ** 2
    drawn = rng.choice(others, wanted, replace=False, p=density / density.sum()) if wanted else others[:0]
    return np.union1d(calibration, drawn), calibration


def _region(rows: NDArray[np.intp], n_lines: int, n_calibration: int) -> NDArray[np.intp]:
    first = n_lines // 2 - n_calibration // 2
    return rows[(rows >= first) & (rows < first + n_calibration)]


def _flag_order(plan: NDArray[np.void], counter: FrameCounter) -> None:
    flag = AcquisitionFlag
    passes = plan["slice"].astype(np.int64) << 16 | plan["average"]
    _flag_ends(plan, passes, flag.FIRST_IN_ENCODE_STEP1, flag.LAST_IN_ENCODE_STEP1)
    _flag_ends(plan, passes, flag.FIRST_IN_AVERAGE, flag.LAST_IN_AVERAGE)
    _flag_ends(plan, plan["slice"].astype(np.int64), flag.FIRST_IN_SLICE, flag.LAST_IN_SLICE)
    _flag_ends(plan, np.zeros(len(plan), np.int64), *counter.flags)


def _flag_ends(plan: NDArray[np.void], keys: NDArray[np.int64], first: AcquisitionFlag, last: AcquisitionFlag) -> None:
    plan["flags"][np.unique(keys, return_index=True)[1]] |= first.mask
    plan["flags"][len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]] |= last.mask


def _separate_calibration(calibration: NDArray[np.intp], n_slices: int) -> NDArray[np.void]:
    slices, rows = np.meshgrid(np.arange(n_slices), calibration, indexing="ij")
    plan = np.zeros(rows.size, PLAN)
    plan["slice"], plan["line"], plan["is_separate"] = slices.ravel(), rows.ravel(), True
    plan["flags"] = AcquisitionFlag.IS_PARALLEL_CALIBRATION.mask
    return plan


def _vector(direction: NDArray[np.float64]) -> Vector:
    return float(direction[0]), float(direction[1]), float(direction[2])
