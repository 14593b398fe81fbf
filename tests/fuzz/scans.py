"""Small simulated scans whose readouts, headers and waveforms fuzzing starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.noncartesian import simulate_noncartesian
from pipelines.simulation.scan import SimulatedScan
from tests.server.wire import examples


@dataclass(frozen=True)
class Sample:
    """A scan as bytes.

    Attributes:
        header: XML.
        messages: readouts, each by itself.
    """

    header: bytes
    messages: tuple[bytes, ...]


@cache
def samples() -> tuple[Sample, ...]:
    """A plain scan, an accelerated one with noise, averages and repetitions, and one that is not Cartesian."""
    anatomy = head_phantom(1, 16, 16)
    protocol = Protocol(
        n_coils=2, acceleration=2, calibration_lines=8, repetitions=2, averages=2, noise_readouts=2, noise_samples=32
    )
    return tuple(
        _sample(scan)
        for scan in (
            simulate(anatomy, Protocol(n_coils=1, noise_readouts=0)),
            simulate(anatomy, protocol),
            simulate_noncartesian(anatomy, Protocol(n_coils=1, noise_readouts=0)),
        )
    )


def _sample(scan: SimulatedScan) -> Sample:
    found: list[bytes] = []
    for batch in scan.batches:
        data = examples.message_bytes(batch)
        size = len(data) // len(batch)
        found += [data[i : i + size] for i in range(0, len(data), size)]
    return Sample(scan.header, tuple(found))
