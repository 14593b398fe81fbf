"""The kinds of scans that `echotrain simulate` offers, from its options; knows the simulation, nothing of terminals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.scan_header import TrajectoryType
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.echo_train import EchoTrain, simulate_epi, simulate_multi_echo
from pipelines.simulation.free_running import Heart, simulate_free_running
from pipelines.simulation.noncartesian import Shots, simulate_noncartesian
from pipelines.simulation.scan import SimulatedScan
from pipelines.simulation.volume import VolumeSampling, simulate_volume


@dataclass(frozen=True, slots=True)
class ScanKind:
    """What is measured besides `Protocol`.

    Attributes:
        volume: second phase encoding; None for slices.
        trajectory: of k-space.
        shots: spokes or interleaves of each frame.
        sends_trajectory: whether spokes carry their coordinates.
        echoes: contrasts of a bipolar echo train; 1 for none.
        beats: heartbeats of a free-running cine; 0 for none.
    """

    volume: VolumeSampling | None = None
    trajectory: TrajectoryType = TrajectoryType.CARTESIAN
    shots: int = 64
    sends_trajectory: bool = True
    echoes: int = 1
    beats: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be combined.

        Raises:
            ValueError: more than one of volume, trajectory, echoes and beats is asked for.
        """
        asked = {
            "a volume": self.volume is not None,
            f"the trajectory {self.trajectory.value}": self.trajectory is not TrajectoryType.CARTESIAN,
            "echoes": self.echoes > 1,
            "beats": self.beats > 0,
        }
        names = [name for name, is_asked in asked.items() if is_asked]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} cannot be simulated together")

    def simulate(self, magnitude: NDArray[np.float32], protocol: Protocol) -> SimulatedScan:
        """Simulate a scan of an object `(slices, y, x)` or `(frames, slices, y, x)`.

        Raises:
            ValueError: the object or the protocol does not fit this kind.
        """
        if self.volume is not None:
            if magnitude.ndim < 3 or magnitude.shape[-3] < 2:
                raise ValueError("a volume needs an object with several slices (--slices)")
            return simulate_volume(magnitude, protocol, self.volume)
        if self.trajectory is TrajectoryType.EPI:
            return simulate_epi(magnitude, protocol)
        if self.trajectory is not TrajectoryType.CARTESIAN:
            square = _square(magnitude)
            side = max(protocol.field_of_view_mm)
            shots = Shots(self.trajectory, self.shots, sends_trajectory=self.sends_trajectory)
            return simulate_noncartesian(square, replace(protocol, field_of_view_mm=(side, side)), shots)
        if self.echoes > 1:
            return simulate_multi_echo(magnitude, protocol, EchoTrain(self.echoes))
        if self.beats > 0:
            if magnitude.ndim != 4 or len(magnitude) < 2:
                raise ValueError("beats need an object with the frames of a heart cycle, such as the anatomy heart")
            heart = Heart(n_phases=len(magnitude), n_beats=self.beats)
            return simulate_free_running(protocol, heart, anatomy=magnitude).scan
        return simulate(magnitude, protocol)


def _square(magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """The object with empty pixels around it, as many rows as columns; pixel n//2 stays where it was."""
    n_y, n_x = magnitude.shape[-2:]
    side = max(n_y, n_x)
    before = [side // 2 - n // 2 for n in (n_y, n_x)]
    around = [(at, side - n - at) for at, n in zip(before, (n_y, n_x), strict=True)]
    return np.pad(magnitude, [(0, 0)] * (magnitude.ndim - 2) + around)
