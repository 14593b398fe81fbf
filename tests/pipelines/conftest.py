"""Groups made from arrays, heartbeats, the schema of scan headers, and streams placed by ismrmrd-python."""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
import torch

from pipelines.assembly.frame import Completion, Group, GroupKey, NoiseCovariance
from pipelines.mrd import ACQUISITION_HEADER, WAVEFORM_HEADER, AcquisitionFlag, Acquisitions, Waveform
from pipelines.operators.nonuniform import NonUniform
from pipelines.phantom import birdcage_coils, head_phantom
from pipelines.scan_header import Encoding, Limit, ScanHeader, Space, TrajectoryType
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


START_TICK = 14_400_000
TICK_S = 0.0025


class Hearts:
    """Heartbeats, and what is measured while they go on; times in ticks of 2.5 ms from `START_TICK`."""

    @staticmethod
    def ecg(
        triggers_s: Sequence[float],
        sample_time_s: float,
        rng: np.random.Generator,
        *,
        noise: float = 0.05,
        drift: float = 0.5,
        hum: float = 0.05,
        t_wave: float = 0.4,
    ) -> np.ndarray[Any, Any]:
        """One lead until a second after the last trigger: P, QRS and T waves as Gaussians, the R wave 1 high.

        Wave shapes after McSharry 2003 (doi:10.1109/TBME.2003.808805); in a magnet the T wave is taller.
        """
        time_s = np.arange(round((triggers_s[-1] + 1) / sample_time_s)) * sample_time_s
        signal = drift * np.sin(2 * np.pi * 0.25 * time_s + 1) + hum * np.sin(2 * np.pi * 50 * time_s)
        signal += noise * rng.standard_normal(len(time_s))
        for at_s, interval_s in zip(triggers_s, np.diff(triggers_s, append=triggers_s[-1] + 0.8), strict=True):
            later = np.sqrt(interval_s)
            waves = [(-0.17 * later, 0.025, 0.12), (-0.025, 0.01, -0.15), (0, 0.011, 1.0), (0.028, 0.011, -0.25)]
            for offset_s, width_s, height in [*waves, (0.28 * later, 0.045, t_wave)]:
                signal += height * np.exp(-(((time_s - at_s - offset_s) / width_s) ** 2) / 2)
        return signal

    @staticmethod
    def waveforms(
        channels: np.ndarray[Any, Any],
        *,
        number: int = 0,
        sample_time_us: float = 2500.0,
        at: int = 0,
        packet: int = 80,
    ) -> list[Waveform]:
        """`(channels, samples)` cut into packets; the first sample is taken at tick `at`."""
        out = []
        for start in range(0, channels.shape[1], packet):
            part = np.ascontiguousarray(channels[:, start : start + packet]).astype(np.int64).astype(np.uint32)
            header = np.zeros((), WAVEFORM_HEADER)
            header["time_stamp"] = START_TICK + at + round(start * sample_time_us / 2500)
            header["channels"], header["number_of_samples"] = part.shape
            header["sample_time_us"], header["waveform_id"] = sample_time_us, number
            out.append(Waveform(header, part))
        return out

    @staticmethod
    def marks(triggers: Sequence[int], stop: int, *, leads: int = 4, length: int = 3) -> np.ndarray[Any, Any]:
        """Leads of nothing but a constant, and the scanner's trigger channel, one sample a tick from tick 0."""
        channels = np.full((leads + 1, stop), 2048)
        channels[-1] = 0
        for trigger in triggers:
            if 0 <= trigger < stop:
                channels[-1, trigger : trigger + length] = 1
        return channels

    @staticmethod
    def stamp(readout: Acquisitions, tick: int, triggers: Sequence[int] = ()) -> Acquisitions:
        """The readout with its time stamp and, where there was a trigger before, the ticks since then."""
        readout.headers["acquisition_time_stamp"] = START_TICK + tick
        before = [trigger for trigger in triggers if trigger <= tick]
        readout.headers["physiology_time_stamp"][:, 0] = tick - before[-1] if before else 0
        return readout

    @staticmethod
    def free_running(
        kspace: Callable[[float], np.ndarray[Any, Any]],
        n_lines: int,
        triggers: Sequence[int],
        *,
        segment: int = 8,
        ticks_a_readout: int = 2,
        slice_: int = 0,
        with_stamps: bool = True,
    ) -> list[Acquisitions]:
        """A segmented free-running cine: each beat measures one segment of lines over and over.

        Args:
            kspace: `(coils, lines, samples)` at a cardiac phase in [0, 1).
            n_lines: lines of k-space, a multiple of `segment`.
            triggers: ticks; readouts go from the first to the last.
            segment: lines of a segment.
            ticks_a_readout: between readouts.
            slice_: counter of all readouts.
            with_stamps: whether readouts have time stamps of the trigger.
        """
        out = []
        for beat, (start, stop) in enumerate(itertools.pairwise(triggers)):
            for number, tick in enumerate(range(start, stop, ticks_a_readout)):
                line = (beat * segment + number % segment) % n_lines
                samples = kspace((tick - start) / (stop - start))[None, :, line]
                header = np.zeros(1, ACQUISITION_HEADER)
                header["version"], header["sample_time_us"] = 1, DWELL_US
                header["number_of_samples"], header["center_sample"] = samples.shape[2], samples.shape[2] // 2
                header["active_channels"] = header["available_channels"] = samples.shape[1]
                header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
                header["idx"]["kspace_encode_step_1"], header["idx"]["slice"] = line, slice_
                if (
                    number % segment == segment - 1
                ):  # scanners end the segments, which are not the ends of anything here
                    header["flags"] = AcquisitionFlag.LAST_IN_SLICE.mask
                readout = Acquisitions.from_arrays(header, samples.astype(np.complex64))
                out.append(Hearts.stamp(readout, tick, triggers if with_stamps else ()))
        return out


@pytest.fixture(scope="session")
def hearts() -> type[Hearts]:
    return Hearts


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
            "noise": NoiseCovariance.of(scan, NOISE_DWELL_US) if noise_scan else None,
            "trajectory": np.array(positions, np.float32),
        }
        return Group(**(values | changes))

    return make
