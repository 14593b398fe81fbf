"""What stands before a node in Gadgetron's chain, done plainly in numpy: oversampling removal, buckets, buffers.

Written from `RemoveROOversamplingGadget.cpp`, `mri_core_acquisition_bucket.h` and `BucketToBufferGadget.cpp`, and kept
apart from the code that it tests.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipelines.gadgetron import SAMPLING_DESCRIPTION, Bucket, ReconBit, ReconBuffer, ReconData
from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.scan_header import ScanHeader

CALIBRATION = AcquisitionFlag.IS_PARALLEL_CALIBRATION.mask
BOTH = AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING.mask
NOISE = AcquisitionFlag.IS_NOISE_MEASUREMENT.mask


def joined(batches: Iterable[Acquisitions], *, noise: bool = False) -> Acquisitions:
    """All readouts of one shape as one batch, noise readouts only where asked for."""
    kept = [batch for batch in batches if bool((batch.headers["flags"][0] & NOISE) != 0) is noise]
    return Acquisitions(
        np.concatenate([batch.headers for batch in kept]),
        np.concatenate([batch.samples for batch in kept]),
        None if kept[0].trajectory is None else np.concatenate([batch.trajectory for batch in kept]),
    )


def without_oversampling(batch: Acquisitions, ratio: int = 2) -> Acquisitions:
    """Crop the image of each readout; the trajectory stays as it is, as in Gadgetron."""
    samples = batch.complex_samples()
    n, m = samples.shape[-1], samples.shape[-1] // ratio
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(samples, axes=-1), norm="ortho"), axes=-1)
    image = image[..., (n - m) // 2 : (n - m) // 2 + m]
    cropped = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=-1), norm="ortho"), axes=-1)
    headers = batch.headers.copy()
    headers["number_of_samples"] = m
    for name in ("center_sample", "discard_pre", "discard_post"):
        headers[name] = headers[name] // ratio
    plain = Acquisitions.from_arrays(headers, cropped.astype(np.complex64))
    return Acquisitions(plain.headers, plain.samples, batch.trajectory)


def taken(batch: Acquisitions, wanted: np.ndarray) -> Acquisitions:
    return Acquisitions(
        batch.headers[wanted], batch.samples[wanted], None if batch.trajectory is None else batch.trajectory[wanted]
    )


def is_reference(batch: Acquisitions) -> np.ndarray:
    return (batch.headers["flags"] & np.uint64(CALIBRATION | BOTH)) != 0


def is_data(batch: Acquisitions) -> np.ndarray:
    return (batch.headers["flags"] & np.uint64(CALIBRATION)) == 0


def bucket_of(batch: Acquisitions) -> Bucket:
    """Flag 20 goes to the calibration alone, 21 to both, everything else to the image."""
    halves = [taken(batch, wanted(batch)) for wanted in (is_data, is_reference)]
    data, reference = (((half,) if len(half) else ()) for half in halves)
    return Bucket(data, reference)


def recon_data_of(batch: Acquisitions, scan: ScanHeader, *, slices: int = 1) -> ReconData:
    """One buffer with N = repetition and LOC = slice; calibration on the grid (embedded) or on its own (separate)."""
    mode = scan.encodings[0].calibration_mode.value
    reference = taken(batch, is_reference(batch))
    data = _buffer(taken(batch, is_data(batch)), scan, slices, is_on_grid=True)
    if not len(reference):
        return ReconData((ReconBit(data),))
    return ReconData((ReconBit(data, _buffer(reference, scan, slices, is_on_grid=mode == "embedded")),))


def _buffer(batch: Acquisitions, scan: ScanHeader, slices: int, *, is_on_grid: bool) -> ReconBuffer:
    n_y, recon = scan.encodings[0].encoded.matrix[1], scan.encodings[0].recon
    steps = batch.headers["idx"]["kspace_encode_step_1"].astype(int)
    repetitions = batch.headers["idx"]["repetition"].astype(int)
    limit = scan.encodings[0].limits["kspace_encode_step_1"]
    offset = n_y // 2 - limit.center if is_on_grid else -int(steps.min())
    n_rows = n_y if is_on_grid else int(steps.max() - steps.min() + 1)
    n_n = int(repetitions.max() - repetitions.min() + 1)
    n_samples = batch.n_samples
    data = np.zeros((slices, 1, n_n, batch.n_coils, 1, n_rows, n_samples), np.complex64)
    headers = np.zeros((slices, 1, n_n, 1, n_rows), ACQUISITION_HEADER)
    headers["version"], headers["active_channels"], headers["available_channels"] = 1, 1, 1  # as C++ constructs them
    sampling = np.zeros((), SAMPLING_DESCRIPTION)
    sampling["encoded_matrix"], sampling["recon_matrix"] = (recon.matrix[0], n_y, 1), recon.matrix
    sampling["encoded_fov_mm"], sampling["recon_fov_mm"] = recon.field_of_view_mm, recon.field_of_view_mm
    first = batch.headers[0]
    sampling["limits"][0] = (first["discard_pre"], n_samples // 2, n_samples - first["discard_post"] - 1)
    rows = (limit.minimum + offset, n_y // 2, limit.maximum + offset) if is_on_grid else astuple_of(limit)
    sampling["limits"][1] = rows
    for header, values, step, repetition in zip(
        batch.headers, batch.complex_samples(), steps, repetitions, strict=True
    ):
        pre, post = int(header["discard_pre"]), int(header["discard_post"])
        n_kept = n_samples - pre - post
        center = int(header["center_sample"])
        at = pre if center == n_samples // 2 else n_samples // 2 - center
        place = (int(header["idx"]["slice"]) if slices > 1 else 0, 0, min(repetition, n_n - 1))
        data[(*place, slice(None), 0, step + offset, slice(at, at + n_kept))] = values[:, pre : pre + n_kept]
        headers[(*place, 0, step + offset)] = header
    return ReconBuffer(data, headers, sampling)


def astuple_of(limit: object) -> tuple[int, int, int]:
    return limit.minimum, limit.center, limit.maximum
