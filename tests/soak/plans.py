"""What happens in a soak: a schedule of sessions and of faults of workers, all of it out of one seed.

Knows no sockets and no clock. The same seed gives the same plans; only how they overlap is left to the machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from pipelines.phantom import head_phantom
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.wire.connection import Connection, Role
from tests.end_to_end.conftest import Says
from tests.end_to_end.test_hostile import CASES


class Kind(StrEnum):
    """What a peer does."""

    GOOD = "good"
    CHUNKED = "good, in pieces"
    PREVIEW = "good, with preview"
    OVERDUE = "good, over its budget"
    NO_CLOSE = "half-closes after all"
    GARBAGE = "sends behind CLOSE"
    CUT = "half-closes amid"
    SILENT = "stops amid"
    RESET = "resets amid"
    DEAF = "does not read"
    DRIP = "drips bytes"
    FLIPPED = "flips bits"
    HOSTILE = "hostile first bytes"
    MUTE = "says nothing"
    CROWD = "crowd of connections"


WEIGHTS: Final = {
    Kind.GOOD: 44, Kind.CHUNKED: 8, Kind.PREVIEW: 2, Kind.OVERDUE: 1, Kind.NO_CLOSE: 4, Kind.GARBAGE: 3, Kind.CUT: 8,
    Kind.SILENT: 3, Kind.RESET: 8, Kind.DEAF: 1.5, Kind.DRIP: 2, Kind.FLIPPED: 8, Kind.HOSTILE: 8, Kind.MUTE: 1.5,
    Kind.CROWD: 1,
}  # fmt: skip
WHOLE: Final = frozenset(
    {Kind.GOOD, Kind.CHUNKED, Kind.PREVIEW, Kind.OVERDUE, Kind.NO_CLOSE, Kind.GARBAGE, Kind.SILENT}
)
"""Kinds whose scan arrives whole and unchanged (of the silent ones those that stop behind the last readout)."""

PIPELINES: Final = ("zero_filled", "sense")
SLOW: Final = "joint_ipalm"
SLOW_PARAMETERS: Final = {"prior": "total_variation", "uncertainty": "quick", "iterations": 5}
PREVIEW_PARAMETERS: Final = {**SLOW_PARAMETERS, "preview": True, "time_limit_s": 600.0}
"""With a limit of its own that nothing reaches: what ends early depends on the time."""
OVERDUE_PARAMETERS: Final = {
    **PREVIEW_PARAMETERS,
    "preview": False,
    "iterations": 2000,
    "tolerance": 1e-9,
    "uncertainty": "langevin",
}


@dataclass(frozen=True)
class Stream:
    """A scan as bytes.

    Attributes:
        data: configuration, header, readouts; no CLOSE.
        ends: where each message ends.
        n_before_data: messages before the first readout.
    """

    data: bytes
    ends: tuple[int, ...]
    n_before_data: int = 2

    @property
    def n_readouts(self) -> int:
        """Readouts in all."""
        return len(self.ends) - self.n_before_data

    def readouts_in(self, n_bytes: int) -> int:
        """Whole readouts in the first bytes."""
        return max(0, sum(end <= n_bytes for end in self.ends) - self.n_before_data)


@dataclass(frozen=True)
class Plan:
    """One session, and what happens to a worker meanwhile.

    Attributes:
        number: place in the schedule.
        kind: what the peer does.
        pipeline: what it asks for.
        cut: bytes that it sends, of `Stream.data`.
        pause_s: how long it waits before it does its worst.
        seed: of whatever else is random: pieces, flipped bits.
        case: of the hostile list.
        fault: `kill`, `stop` or nothing: what happens to a worker.
        fault_after_s: when, from the start of the session.
    """

    number: int
    kind: Kind
    pipeline: str
    cut: int
    pause_s: float
    seed: int
    case: str = ""
    fault: str = ""
    fault_after_s: float = 0.0

    def describe(self) -> dict[str, object]:
        """For the record of a violation."""
        return asdict(self)


@dataclass
class Scans:
    """What is sent: a small scan, and one with images enough to fill the buffers of a peer that does not read."""

    small: SimulatedScan = field(default_factory=lambda: _simulate(2, 48, 1, 4))
    many: SimulatedScan = field(default_factory=lambda: _simulate(1, 160, 40, 1))

    @cached_property
    def streams(self) -> dict[tuple[str, str], Stream]:
        """By scan and pipeline."""
        found = {("small", name): encode(self.small, Says.config(name)) for name in PIPELINES}
        found["many", "zero_filled"] = encode(self.many, Says.config("zero_filled"))
        return found

    def stream(self, kind: Kind, pipeline: str) -> Stream:
        """What a kind of peer sends."""
        if kind in _ASKS:
            return self._slow[kind]
        return self.streams["many" if kind is Kind.DEAF else "small", "zero_filled" if kind is Kind.DEAF else pipeline]

    @cached_property
    def _slow(self) -> dict[Kind, Stream]:
        return {kind: encode(self.small, ask(parameters)) for kind, parameters in _ASKS.items()}


_ASKS: Final[dict[Kind, dict[str, Any]]] = {Kind.PREVIEW: PREVIEW_PARAMETERS, Kind.OVERDUE: OVERDUE_PARAMETERS}


def ask(parameters: dict[str, Any]) -> bytes:
    """The configuration of a slow pipeline with parameters."""
    connection = Connection(Role.CLIENT)
    return b"".join(connection.config_text(json.dumps({"pipeline": SLOW, "parameters": parameters})))


def encode(scan: SimulatedScan, config: bytes) -> Stream:
    """A scan as bytes behind a configuration."""
    parts = [config, Says.text(3, scan.header)]
    connection = Connection(Role.CLIENT)
    connection.config_file("x")
    connection.header(b"x")
    for batch in scan.batches:
        data = b"".join(connection.acquisitions(batch))
        size = len(data) // len(batch)
        parts += [data[i : i + size] for i in range(0, len(data), size)]
    ends: list[int] = []
    for part in parts:
        ends.append((ends[-1] if ends else 0) + len(part))
    return Stream(b"".join(parts), tuple(ends))


def schedule(seed: int, n_sessions: int, scans: Scans) -> Iterator[Plan]:
    """Plans of all sessions."""
    rng = random.Random(seed)
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    for number in range(n_sessions):
        # Each kind once at the start, so that a short run has them all.
        kind = kinds[number] if number < len(kinds) else rng.choices(kinds, weights)[0]
        pipeline = SLOW if kind in _ASKS else rng.choice(PIPELINES)
        stream = scans.stream(kind, pipeline)
        cut = len(stream.data)
        if kind in {Kind.CUT, Kind.RESET} or (kind is Kind.SILENT and rng.random() < 0.5):
            # Half of them between two messages, the others anywhere.
            cut = rng.choice(stream.ends) if rng.random() < 0.5 else rng.randrange(1, len(stream.data))
        yield Plan(
            number,
            kind,
            pipeline,
            cut,
            pause_s=rng.uniform(0.0, 0.3),
            seed=rng.randrange(1 << 32),
            case=rng.choice(list(CASES)) if kind is Kind.HOSTILE else "",
            fault=rng.choices(["", "kill", "stop"], [86, 12, 2])[0] if number >= len(kinds) else "",
            fault_after_s=rng.uniform(0.0, 0.2),
        )


def _simulate(n_slices: int, side: int, repetitions: int, n_coils: int) -> SimulatedScan:
    protocol = Protocol(
        n_coils=n_coils, acceleration=2, calibration_lines=16, noise_readouts=8, repetitions=repetitions, seed=7
    )
    return simulate(head_phantom(n_slices, side, side), protocol)
