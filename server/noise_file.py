"""A noise covariance as a file that numpy alone can read: an uncompressed `.npz`, without pickle.

    version           int, 1
    sums              complex128 (coils, coils): sum of n n^H over all samples, channels in order;
                      the covariance is sums / (n_samples - 1)
    n_samples         int: samples of each coil in the sums
    sample_time_us    float: dwell time of the noise readouts; 0 where the scan did not say
    bandwidth         float: relative receiver noise bandwidth they were measured with
    measured_at       float: seconds since 1970 UTC
    coil_numbers      int (labels,): coilNumber of the scan header, -1 where it has none
    coil_names        text (labels,): coilName

    import numpy as np
    with np.load("noise.npz") as noise:
        sigma = np.sqrt(noise["sums"].diagonal().real / (noise["n_samples"] - 1))

It holds nothing about a patient, nor which measurement it is: that is in the name of the file, as a salted digest
(`noise_store.py`). What is read is checked before memory is taken for it, for a file may be anybody's.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipelines.assembly.frame import NoiseCovariance, NoiseSource
from pipelines.scan_header import ScanHeader
from pipelines.scan_relations import CoilLabel, coil_order
from server.errors import FileError

VERSION: Final = 1
MAX_BYTES: Final = 32 << 20
"""Of a file: 1024 coils and their labels take 17 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredNoise:
    """Noise of one measurement, kept for scans that come later.

    Attributes:
        covariance: what its noise readouts say; `source` is DEPENDENCY for whoever takes it from a store.
        coil_labels: of its scan header.
        measured_at: seconds since 1970 UTC.
    """

    covariance: NoiseCovariance
    coil_labels: tuple[CoilLabel, ...]
    measured_at: float

    def sigmas(self) -> NDArray[np.float64]:
        """Standard deviation of each coil, root of E|n|^2."""
        n = max(self.covariance.n_samples - 1, 1)
        return np.asarray(np.sqrt(np.maximum(self.covariance.sums.diagonal().real, 0) / n), np.float64)

    def for_scan(self, scan: ScanHeader) -> tuple[NoiseCovariance, list[str]]:
        """The covariance with its channels in the order of another scan's, and warnings.

        Labels that do not say which channel is which leave the order as it is; whether at least their number agrees
        is found with the first readout.
        """
        order = coil_order(self.coil_labels, scan.coil_labels)
        if order is None:
            return self.covariance, [
                "the coil labels of the noise measurement and of this scan do not match; channels are taken in order"
            ]
        if order == list(range(len(order))):
            return self.covariance, []
        if len(order) != self.covariance.n_coils:
            return self.covariance, [
                f"the coil labels of the noise measurement are in another order, but they are {len(order)} for "
                f"{self.covariance.n_coils} channels; channels are taken in order"
            ]
        given = self.covariance
        sums = np.ascontiguousarray(given.sums[np.ix_(order, order)])
        sums.setflags(write=False)
        return NoiseCovariance(sums, given.n_samples, given.sample_time_us, given.bandwidth, given.source), []


def write_noise(noise: StoredNoise) -> bytes:
    """The file's bytes."""
    covariance = noise.covariance
    file = io.BytesIO()
    np.savez(
        file,
        version=np.int64(VERSION),
        sums=covariance.sums,
        n_samples=np.int64(covariance.n_samples),
        sample_time_us=np.float64(covariance.sample_time_us),
        bandwidth=np.float64(math.nan if covariance.bandwidth is None else covariance.bandwidth),
        measured_at=np.float64(noise.measured_at),
        coil_numbers=np.array([label.number for label in noise.coil_labels], np.int64),
        coil_names=np.array([label.name for label in noise.coil_labels], "<U64"),
    )
    return file.getvalue()


def read_noise(data: bytes) -> StoredNoise:
    """What `write_noise` wrote.

    Raises:
        FileError: anything else.
    """
    try:
        arrays = _arrays(data)
        if int(arrays["version"]) != VERSION:
            raise FileError(f"a noise file of version {int(arrays['version'])}; this server reads version {VERSION}")
        bandwidth = float(arrays["bandwidth"])
        numbers, names = arrays["coil_numbers"].tolist(), arrays["coil_names"].tolist()
        sums = _checked_sums(arrays["sums"])
        covariance = NoiseCovariance(
            sums,
            int(arrays["n_samples"]),
            float(arrays["sample_time_us"]),
            None if math.isnan(bandwidth) else bandwidth,
            NoiseSource.DEPENDENCY,
        )
        labels = tuple(CoilLabel(int(number), str(name)) for number, name in zip(numbers, names, strict=True))
        noise = StoredNoise(covariance, labels, float(arrays["measured_at"]))
    except FileError:
        raise
    except Exception as error:  # what a broken archive raises is not documented: a dozen types were seen
        raise FileError("not a noise file, or a damaged one") from error
    if covariance.n_samples < 1 or not math.isfinite(noise.measured_at):
        raise FileError("a noise file with an impossible number of samples or time")
    return noise


def _arrays(data: bytes) -> dict[str, NDArray[np.generic]]:
    if len(data) > MAX_BYTES:
        raise FileError(f"a noise file of {len(data)} bytes; at most {MAX_BYTES} are read")
    arrays: dict[str, NDArray[np.generic]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise FileError("a noise file that is compressed")
            content = archive.read(entry)  # no more than the file itself has; checks the sum
            stream = io.BytesIO(content)
            version = npy.read_magic(stream)
            if version != (1, 0):
                raise FileError("a noise file with arrays of another format")
            shape, _, dtype = npy.read_array_header_1_0(stream)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
                raise FileError("a noise file whose arrays are not as long as they say")
            arrays[entry.filename.removesuffix(".npy")] = np.load(io.BytesIO(content), allow_pickle=False)
    return arrays


def _checked_sums(sums: NDArray[np.generic]) -> NDArray[np.complex128]:
    if sums.dtype != np.complex128 or sums.ndim != 2 or sums.shape[0] != sums.shape[1] or not len(sums):
        raise FileError(f"a noise file whose covariance is {sums.dtype} {sums.shape}")
    exact: NDArray[np.complex128] = np.ascontiguousarray(sums, np.complex128)
    diagonal = exact.diagonal().real
    if not np.isfinite(exact).all() or (diagonal < 0).any():
        raise FileError("a noise file whose covariance is not finite, or has negative variances")
    if float(np.abs(exact - exact.conj().T).max()) > 1e-6 * float(diagonal.max()):
        raise FileError("a noise file whose covariance is not Hermitian")
    exact.setflags(write=False)
    return exact
