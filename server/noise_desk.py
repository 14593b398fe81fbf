"""What one session has to do with noise measurements: keep its own, take that of an earlier scan, say what is there.

Every decision becomes a record in the log, with numbers and never with the id of a measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pipelines.assembly.frame import NoiseCovariance
from pipelines.mrd import Meta
from pipelines.scan_header import ScanHeader
from pipelines.scan_relations import opaque_id
from server.logs import logger
from server.noise_file import StoredNoise
from server.noise_store import NoiseStore
from server.wire.messages import DependencyAnswer, Text

NOISE: Final = "noise"
"""dependencyType of noise measurements, in any case of letters (Siemens writes `Noise`)."""

FILE_PREFIX: Final = "GadgetronNoiseCovarianceMatrix_"
"""Before the measurement id in what Gadgetron's client asks for, which was the name of a file once."""


class NoiseDesk:
    """The noise measurements as one session sees them."""

    def __init__(self, store: NoiseStore, session: str, tell: Callable[[Text | DependencyAnswer], None]) -> None:
        """A desk.

        Args:
            store: of the whole server.
            session: its id, for the log.
            tell: sends something to the peer.
        """
        self._store = store
        self._log = logger().bind(session=session)
        self._tell = tell

    def keep(self, scan: ScanHeader, covariance: NoiseCovariance) -> list[str]:
        """Keep what was measured in a scan, for those that depend on it.

        Returns:
            Warnings; the scan has to have a measurement id.
        """
        noise = StoredNoise(replace(covariance, bandwidth=scan.noise_bandwidth), scan.coil_labels, 0.0)
        warnings = self._store.keep(scan.measurement_id, noise)
        self._record("noise_kept", covariance)
        return warnings

    def confirm(self, covariance: NoiseCovariance) -> None:
        """Tell the peer what was kept."""
        dwell_us = covariance.sample_time_us
        dwell = f"dwell time {dwell_us:g} us" if dwell_us > 0 else "dwell time unknown"
        self._tell(
            Text(f"noise measurement kept: {covariance.n_coils} channels, {covariance.n_samples} samples, {dwell}")
        )

    def noise_for(self, scan: ScanHeader) -> tuple[NoiseCovariance | None, list[str]]:
        """The noise that a scan depends on, its channels in the order of the scan, and warnings."""
        wanted = [each.measurement_id for each in scan.dependencies if each.kind == NOISE]
        for measurement_id in wanted:
            found = self._store.find(measurement_id)
            if found is not None:
                return found.for_scan(scan)
        if wanted:
            return None, [
                "the noise measurement that this scan depends on is not here; noise is estimated from the data"
            ]
        return None, []

    def note_use(self, covariance: NoiseCovariance | None) -> None:
        """Record which noise of an earlier scan is used, or that the one asked for is missing."""
        if covariance is None:
            self._log.info("noise_missing")
        else:
            self._record("noise_taken", covariance)

    def answer(self, noise_file: str) -> None:
        """Tell a client of Gadgetron whether a noise measurement is here, and how much noise it found."""
        found = self._store.find(opaque_id(noise_file.strip().removeprefix(FILE_PREFIX)))
        self._tell(DependencyAnswer({"status": ["failed"]} if found is None else _summary(found)))

    def _record(self, event: str, covariance: NoiseCovariance) -> None:
        self._log.info(
            event,
            channels=covariance.n_coils,
            samples=covariance.n_samples,
            dwell_us=round(covariance.sample_time_us, 3),
        )


def _summary(noise: StoredNoise) -> Meta:
    """What Gadgetron's NoiseSummaryGadget says; standard deviations are roots of E|n|^2 there, too."""
    sigmas = noise.sigmas()
    numbers = {
        "noise_dwell_time_us": noise.covariance.sample_time_us,
        "min_sigma": sigmas.min(),
        "max_sigma": sigmas.max(),
        "mean_sigma": sigmas.mean(),
    }
    shown = {name: [f"{float(number):.9g}"] for name, number in numbers.items()}
    return {"status": ["success"], "channels": [str(noise.covariance.n_coils)], **shown}
