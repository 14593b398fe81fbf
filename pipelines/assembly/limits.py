"""How much one scan may ask of assembly, and what became of its readouts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class AssemblyLimits:
    """Limits of one scan; whatever is over one is refused before memory is taken.

    Attributes:
        max_group_bytes: k-space of one group, and calibration lines of one slice.
        max_open_bytes: everything assembly holds at a time: open groups, calibration lines, noise.
        max_open_groups: groups that may be open at a time (an interleaved scan has one for each slice and contrast).
        max_channels: coils of one readout.
        max_samples: samples of one readout.
        max_noise_bytes: noise readouts kept; more are counted and left out, since these give the covariance well
            enough.
        min_complete_fraction: part of the promised lines that makes an unfinished group worth reconstructing.
        max_out_of_range_fraction: part of the imaging readouts whose counters may lie outside the header's ranges.
    """

    max_group_bytes: int = 1 << 30
    max_open_bytes: int = 2 << 30
    max_open_groups: int = 4096
    max_channels: int = 256
    max_samples: int = 16_384
    max_noise_bytes: int = 16 << 20
    min_complete_fraction: float = 0.5
    max_out_of_range_fraction: float = 0.25


class Fate(StrEnum):
    """What became of a readout; every readout has exactly one."""

    IMAGING = "imaging"
    """Placed on the image grid, embedded calibration lines included."""
    CALIBRATION = "calibration"
    """Placed among the separate calibration lines of its slice."""
    NOISE = "noise"
    NOISE_UNUSED = "noise_unused"
    """Noise over the limit, or unlike the noise readouts before it."""
    KEPT_OUT = "kept_out"
    """Not meant for the image: navigators, phase correction, feedback, dummies."""
    EMPTY = "empty"
    """Without samples or channels."""
    OUT_OF_RANGE = "out_of_range"
    """A counter lies outside the header's limits or matrix."""
    NOT_FINITE = "not_finite"
    """NaN or infinite samples; the line counts as not measured."""
    LATE = "late"
    """For a group that was already handed on."""


class Notices:
    """Sentences for the scanner: each kind once, so that a bad scan cannot flood its own log."""

    MAX_KINDS = 64

    def __init__(self) -> None:
        self._kinds: set[str] = set()
        self._pending: list[str] = []

    def add(self, kind: str, text: str) -> None:
        """Keep `text` unless its kind was seen before."""
        if kind not in self._kinds and len(self._kinds) < self.MAX_KINDS:
            self._kinds.add(kind)
            self._pending.append(text)

    def take(self) -> list[str]:
        """What was added since the last call."""
        taken, self._pending = self._pending, []
        return taken
