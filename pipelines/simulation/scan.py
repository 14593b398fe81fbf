"""A simulated scan: what would be sent, and the truth behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import Acquisitions, Waveform
from pipelines.simulated_header import HeaderContent, write_scan_header
from pipelines.simulated_protocol import Protocol


@dataclass(frozen=True, slots=True)
class Truth:
    """What was simulated. The axis `slices` holds the partitions of a volume.

    Attributes:
        image: `(frames, slices, y, x)` complex64: the object with its phase.
        maps: `(slices, coils, y, x)` complex64: sensitivities, root sum of squares 1.
        covariance: `(coils, coils)` complex128: C of `pipelines.simulate`.
        counts: `(frames, slices, lines)` float32: how often each row of the encoded grid was measured for the image,
            embedded calibration included; `(frames, partitions, lines)` of the encoded grid of a volume; readouts
            instead of lines for other trajectories.
    """

    image: NDArray[np.complex64]
    maps: NDArray[np.complex64]
    covariance: NDArray[np.complex128]
    counts: NDArray[np.float32]

    def whitened_magnitude(self) -> NDArray[np.float32]:
        """What an ideal reconstruction of whitened data shows, `(frames, slices, y, x)`.

        Root sum of squares over coils of the whitened, noise-free, fully sampled coil images, in units of the noise of
        one coil: with W of `pipelines.simulate`, `|x| sqrt(sum_k |(W c)_k|^2)`. Without noise W is the identity.
        """
        if not np.any(self.covariance):
            return np.abs(self.image)
        whitening = np.linalg.inv(np.linalg.cholesky(self.covariance))
        whitened = np.einsum("dc,sc...->sd...", whitening, self.maps)
        return np.asarray(np.abs(self.image) * np.sqrt((np.abs(whitened) ** 2).sum(axis=1)), np.float32)


@dataclass(frozen=True, slots=True)
class SimulatedScan:
    """A scan as it would be sent: HEADER, then the batches, then CLOSE; and what is behind it.

    Attributes:
        waveforms: physiology, in the order of time; peers send it before, among or after the readouts.
        content: what the header was written from; None where the header comes from elsewhere.
    """

    header: bytes
    batches: list[Acquisitions]
    truth: Truth
    protocol: Protocol
    waveforms: list[Waveform] = field(default_factory=list[Waveform])
    content: HeaderContent | None = None

    @property
    def n_readouts(self) -> int:
        """Readouts of all batches, noise readouts included."""
        return sum(len(batch) for batch in self.batches)

    def with_content(self, content: HeaderContent) -> SimulatedScan:
        """The same scan under another header."""
        return replace(self, header=write_scan_header(content), content=content)
