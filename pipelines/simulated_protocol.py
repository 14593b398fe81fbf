"""What a simulated scan measures; knows nothing of objects, coils or noise samples, nor of the order of readouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import COUNTERS, AcquisitionFlag
from pipelines.scan_header import DEFAULT_NOISE_BANDWIDTH, CalibrationMode

Vector = tuple[float, float, float]


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
        calibration_mode: `embedded` (flags 20 and 21 among the image lines), `separate` (flag 20 before them),
            `external` (the same, with counters that start at `calibration_start`), or `interleaved` (no calibration
            lines: each frame measures other lines, which together are all of them, as in TGRAPPA).
        calibration_start: counter of the first external calibration line.
        slice_order: order of the slices of a frame.
        repetitions: how often the object is measured; only for an object of one frame.
        frame_counter: what the frames are.
        frame_counters: instead, several counters with their sizes, the fastest first, of which the frames are all
            combinations: `((CONTRAST, 2), (PHASE, 5))` for an object of ten frames.
        first_counters: what counters (`phase`, `slice`, ...) start at, where that is not 0.
        averages: how often each line is measured, with new noise.
        oversampling: of the readout; 2 on most scanners, 1 for none.
        phase_oversampling: lines added along y for a larger field of view, relative; 0 for none.
        partial_fourier: part of the lines along y that is measured; the earliest are left out.
        partial_echo: part of the readout that is measured; the earliest samples are left out (asymmetric echo).
        recon_matrix: pixels along x and y that the header asks for, where they are to be interpolated; the object's
            otherwise.
        field_of_view_mm: along x and y of the image.
        slice_thickness_mm: of each slice.
        slice_gap_mm: between neighbouring slices.
        geometry: of the stack.
        table_position_mm: of the patient table.
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
    calibration_start: int = 0
    slice_order: SliceOrder = SliceOrder.SEQUENTIAL
    repetitions: int = 1
    frame_counter: FrameCounter = FrameCounter.REPETITION
    frame_counters: tuple[tuple[FrameCounter, int], ...] = ()
    first_counters: Mapping[str, int] = field(default_factory=dict[str, int])
    averages: int = 1
    oversampling: int = 2
    phase_oversampling: float = 0.0
    partial_fourier: float = 1.0
    partial_echo: float = 1.0
    recon_matrix: tuple[int, int] | None = None
    field_of_view_mm: tuple[float, float] = (220.0, 220.0)
    slice_thickness_mm: float = 5.0
    slice_gap_mm: float = 1.0
    geometry: Geometry = field(default_factory=Geometry)
    table_position_mm: Vector = (0.0, 0.0, 0.0)
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
        if self.calibration_mode is CalibrationMode.OTHER:
            raise ValueError("calibration_mode must say how calibration lines come, not other")
        unknown = set(self.first_counters) - set(COUNTERS[2:])
        if unknown:
            raise ValueError(f"first_counters knows {', '.join(COUNTERS[2:])}, not {', '.join(sorted(unknown))}")

    @property
    def is_accelerated(self) -> bool:
        """Whether lines are left out to save time."""
        return self.acceleration > 1 and self.pattern is not Pattern.FULL

    @property
    def is_calibrated_apart(self) -> bool:
        """Whether calibration lines come before the image lines, on a grid of their own."""
        return self.calibration_mode in (CalibrationMode.SEPARATE, CalibrationMode.EXTERNAL)

    def counters_of_frames(self, n_frames: int) -> dict[FrameCounter, NDArray[np.intp]]:
        """What each counter counts for the frames of an object, from 0, `(frames,)`; fastest first.

        Raises:
            ValueError: `frame_counters` has another number of combinations.
        """
        if not self.frame_counters:
            return {self.frame_counter: np.arange(n_frames)}
        names, sizes = zip(*self.frame_counters, strict=True)
        if prod(sizes) != n_frames:
            raise ValueError(f"frame_counters has {prod(sizes)} combinations, the object has {n_frames} frames")
        return dict(zip(names, np.unravel_index(np.arange(n_frames), sizes, order="F"), strict=True))

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


def _vector(direction: NDArray[np.float64]) -> Vector:
    return float(direction[0]), float(direction[1]), float(direction[2])
