"""What became of the readouts of a scan, and what the scanner should be told about it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

MAX_KINDS: Final = 64
"""Kinds of warnings in one scan."""


class Fate(StrEnum):
    """What became of a readout; every readout has exactly one."""

    IMAGING = "imaging"
    """Placed on the image grid, embedded calibration lines included."""
    CALIBRATION = "calibration"
    """Placed among the separate calibration lines of its slice."""
    NOISE = "noise"
    NOISE_UNUSED = "noise_unused"
    """Noise over the limit, unlike the noise readouts before it, or after the first images."""
    NAVIGATOR = "navigator"
    """Phase correction, kept for the groups that it belongs to."""
    KEPT_OUT = "kept_out"
    """Not meant for the image: navigators, feedback, dummies; phase correction beyond the limit."""
    EMPTY = "empty"
    """Without samples or channels."""
    OUT_OF_RANGE = "out_of_range"
    """A counter lies outside the header's limits or matrix."""
    NOT_FINITE = "not_finite"
    """NaN or infinite samples; the line counts as not measured."""
    LATE = "late"
    """For a group that was already handed on."""
    ARRHYTHMIC = "arrhythmic"
    """Of a heartbeat whose length is unlike that of the others; retrospective gating only."""
    UNGATED = "ungated"
    """More than a heartbeat before the first or after the last trigger; retrospective gating only."""


class Ledger:
    """Counts readouts by fate and keeps warnings, each kind once, so that a bad scan cannot flood its own log.

    Attributes:
        counts: readouts by fate.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(Fate, 0)
        self._kinds: set[str] = set()
        self._pending: list[str] = []

    def count(self, fate: Fate, number: int, text: str | None = None) -> None:
        """Count readouts, and warn with `text` unless their fate was warned of before."""
        self.counts[fate] += number
        if text is not None:
            self.warn(fate.value, text)

    def warn(self, kind: str, text: str) -> None:
        """Keep `text` unless its kind was seen before."""
        if kind not in self._kinds and len(self._kinds) < MAX_KINDS:
            self._kinds.add(kind)
            self._pending.append(text)

    def take_warnings(self) -> list[str]:
        """What was added since the last call."""
        taken, self._pending = self._pending, []
        return taken
