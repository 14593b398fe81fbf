"""A small scan to warm pipelines up with: a disc seen by four coils, every second line, calibration in the middle."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipelines.assembly.frame import Completion, Group, Grouping, GroupKey
from pipelines.image_group import ImageGroup
from pipelines.mrd import ACQUISITION_HEADER, IMAGE_HEADER, Image, ImageDataType, ImageType
from pipelines.registry import pipelines
from pipelines.scan_header import CalibrationMode, Encoding, Limit, ScanHeader, Space

_N: Final = 64
_COILS: Final = 4
_CALIBRATION_LINES: Final = 24
_NOISE: Final = 0.01
_FRAMES: Final = 4


def tiny_work(pipeline: str) -> Group | ImageGroup:
    """Something small that a pipeline takes: readouts, or an image."""
    entry = pipelines().get(pipeline)
    if entry is not None and entry.takes_images:
        return tiny_image_group()
    return tiny_group(_FRAMES if entry is not None and entry.grouping is Grouping.CINE else 1)


def tiny_image_group() -> ImageGroup:
    """A magnitude image of 64 x 64."""
    header = np.zeros((), IMAGE_HEADER)
    header["version"], header["data_type"], header["image_type"] = 1, ImageDataType.FLOAT, ImageType.MAGNITUDE
    header["matrix_size"], header["channels"], header["field_of_view"] = (_N, _N, 1), 1, (256.0, 256.0, 5.0)
    pixels = np.random.default_rng(0).normal(100, 5, (1, 1, _N, _N)).astype(np.float32)
    return ImageGroup((Image(header, pixels),))


def tiny_group(frames: int = 1) -> Group:
    """One slice of 64 x 64 with readout oversampling 2, acceleration 2 and 24 embedded calibration lines.

    Of several frames every second one measures the other lines.
    """
    rng = np.random.default_rng(0)
    n_x = 2 * _N
    y, x = np.meshgrid(np.linspace(-1, 1, _N), np.linspace(-2, 2, n_x), indexing="ij")
    disc = ((x**2 + y**2) < 0.6).astype(np.float32)
    angles = 2 * np.pi * np.arange(_COILS) / _COILS
    coils = np.stack(
        [np.exp(-((x - np.cos(a)) ** 2 + (y - np.sin(a)) ** 2) / 2) * np.exp(1j * (a + 0.5 * x)) for a in angles]
    )
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(disc * coils, axes), norm="ortho"), axes)
    shape = (frames, *kspace.shape)
    kspace = kspace + _NOISE * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    calibration = np.abs(np.arange(_N) - _N // 2) < _CALIBRATION_LINES // 2
    sampled = calibration | (np.arange(_N) % 2 == np.arange(frames)[:, None] % 2)
    kspace = kspace * sampled[:, None, :, None]
    headers = np.zeros(frames, ACQUISITION_HEADER)
    headers["idx"]["phase"] = np.arange(frames)
    headers["version"] = 1
    headers["number_of_samples"] = n_x
    headers["center_sample"] = n_x // 2
    headers["active_channels"] = headers["available_channels"] = _COILS
    headers["sample_time_us"] = 5.0
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    headers["idx"]["kspace_encode_step_1"] = _N // 2
    encoding = Encoding(
        encoded=Space((n_x, _N, 1), (512.0, 256.0, 5.0)),
        recon=Space((_N, _N, 1), (256.0, 256.0, 5.0)),
        limits={"kspace_encode_step_1": Limit(0, _N - 1, _N // 2)},
        acceleration=(2, 1),
        calibration_mode=CalibrationMode.EMBEDDED,
    )
    return Group(
        key=GroupKey(0, 0, 0, 0, 0, 0),
        kspace=kspace.astype(np.complex64)[:, :, None],
        counts=sampled.astype(np.float32)[:, None],
        calibration_lines=calibration[None],
        readout_extent=(0, n_x),
        headers=headers,
        scan=ScanHeader((encoding,), receiver_channels=_COILS),
        completion=Completion.FULL,
    )
