"""What the two non-Cartesian benchmarks share: groups from arrays, BART on non-Cartesian data, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from bart_command import Bart
from numpy.typing import NDArray
from torch import Tensor

from pipelines.assembly.frame import Completion, Group, GroupKey
from pipelines.mrd import ACQUISITION_HEADER
from pipelines.scan_header import Encoding, ScanHeader, Space, TrajectoryType

DATA = Path("/work/shared/data/kspace")
Complex = NDArray[np.complex64]
Real = NDArray[np.float32]


def make_group(samples: Complex, trajectory: Real, n: int, kind: TrajectoryType) -> Group:
    """Samples `(coils, readouts, samples)` at `(readouts, samples, 2)` as assembly hands them on; n x n images."""
    space = Space((n, n, 1), (float(n), float(n), 5.0))
    readouts, length = samples.shape[1:]
    headers = np.zeros(1, ACQUISITION_HEADER)
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    return Group(
        key=GroupKey(0, 0, 0, 0, 0, 0),
        kspace=samples[None, :, None],
        counts=np.ones((1, 1, readouts), np.float32),
        calibration_lines=np.zeros((1, readouts), np.bool_),
        readout_extent=(0, length),
        headers=headers,
        scan=ScanHeader((Encoding(space, space, kind),)),
        completion=Completion.FLAG,
        trajectory=trajectory[None],
    )


def write_for_bart(bart: Bart, samples: Complex, trajectory: Real, n: int) -> None:
    """K-space as `ksp`, the trajectory in BART's cycles over the field of view as `traj`."""
    bart.write("ksp", samples[..., None])
    three = np.concatenate([trajectory * n, np.zeros_like(trajectory[..., :1])], -1)
    bart.write("traj", three.astype(np.complex64))


def bart_maps(bart: Bart, n: int, crop: str = "0.8") -> float:
    """ESPIRiT maps from the same samples: inverse NUFFT of the centre, padded, calibrated; seconds."""
    return sum(
        (
            bart.run("nufft", "-i", "-d36:36:1", "-t", "traj", "ksp", "low"),
            bart.run("fft", "-u", "7", "low", "low_ksp"),
            bart.run("resize", "-c", "0", str(n), "1", str(n), "low_ksp", "padded"),
            bart.run("ecalib", "-m1", "-r24", f"-c{crop}", "padded", "maps"),
        )
    )


def bart_pics(bart: Bart, regularisation: float, iterations: int = 30) -> float:
    """CG-SENSE of `ksp` with `maps` into `image`; seconds."""
    return bart.run(
        "pics", "-S", "-l2", f"-r{regularisation:g}", f"-i{iterations}", "-t", "traj", "ksp", "maps", "image"
    )


def nrmse(image: Real, reference: Real) -> float:
    """Of magnitudes inside a mask (reference above 10 % of its maximum), after the factor that fits best."""
    mask = reference > 0.1 * reference.max()
    inside, target = image[mask].astype(np.float64), reference[mask].astype(np.float64)
    factor = float(inside @ target / (inside @ inside))
    return float(np.linalg.norm(factor * inside - target) / np.linalg.norm(target))


def magnitude(image: Complex | Tensor) -> Real:
    """Magnitude `(y, x)` of an image with axes of length 1 before."""
    values = image.numpy() if isinstance(image, torch.Tensor) else image
    return np.asarray(np.abs(values).reshape(values.shape[-2:]), np.float32)
