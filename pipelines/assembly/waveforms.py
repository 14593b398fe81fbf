"""Physiology waveforms of a scan: kept up to a limit, and handed on with the groups of the same time.

Waveforms come in time order but not in step with the readouts: Gadgetron's client sends them by time stamp, that of
python-ismrmrd-server all before the first readout. A group has those that came before it was complete.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Final

import numpy as np

from pipelines.assembly.ledger import Ledger
from pipelines.mrd import Waveform, seconds_of

_OBJECT_BYTES: Final = 512
"""What a waveform takes besides its samples; it bounds how many of a few samples each are kept."""

MAX_IDS: Final = 1024
"""Waveform ids whose format is remembered."""


class WaveformStore:
    """Copies of the waveforms, in the order of their time stamps.

    Attributes:
        n_bytes: memory held.
        n_dropped: waveforms dropped to make room, or larger than the limit.
    """

    def __init__(self, max_bytes: int, ledger: Ledger) -> None:
        self._max_bytes = max_bytes
        self._ledger = ledger
        self._kept: list[tuple[float, int, Waveform]] = []
        self._formats: dict[int, tuple[int, float]] = {}
        self._reference: int | None = None
        self._longest_s = 0.0
        self._n_added = 0
        self.n_bytes = 0
        self.n_dropped = 0

    def add(self, waveform: Waveform) -> None:
        """Keep a copy; when there is no room, the oldest make some."""
        header, n_bytes = waveform.header, waveform.samples.nbytes + _OBJECT_BYTES
        number = int(header["waveform_id"])
        channels = int(waveform.samples.shape[0])
        if len(self._formats) < MAX_IDS or number in self._formats:
            had = self._formats.setdefault(number, (channels, float(header["sample_time_us"])))
            if had[0] != channels:
                self._ledger.warn("channels", f"waveform {number}: {channels} channels after {had[0]}; kept as it came")
        if n_bytes > self._max_bytes:
            self._drop(1)
            return
        while self.n_bytes + n_bytes > self._max_bytes:
            self.n_bytes -= self._kept.pop(0)[2].samples.nbytes + _OBJECT_BYTES
            self._drop(1)
        if self._reference is None:
            self._reference = int(header["time_stamp"])
        start = float(seconds_of(np.asarray(header["time_stamp"]), self._reference))
        self._longest_s = max(self._longest_s, duration_s(waveform))
        self._n_added += 1  # tells waveforms of one time apart, so that no two of them are compared
        insort(self._kept, (start, self._n_added, Waveform(header.copy(), np.array(waveform.samples))))
        self.n_bytes += n_bytes

    def between(self, span: tuple[int, int]) -> tuple[Waveform, ...]:
        """Those that overlap with a span of time stamps, its ends included and, over midnight, in either order."""
        if self._reference is None:
            return ()
        first, last = np.sort(seconds_of(np.array(span, np.uint32), self._reference)).tolist()
        start = bisect_left(self._kept, first - self._longest_s, key=lambda kept: kept[0])
        stop = bisect_right(self._kept, last, key=lambda kept: kept[0])
        return tuple(
            waveform for at, _, waveform in self._kept[start:stop] if at >= first or at + duration_s(waveform) > first
        )

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self.n_bytes = 0

    def _drop(self, number: int) -> None:
        self.n_dropped += number
        self._ledger.warn("waveforms", f"more than {self._max_bytes} bytes of waveforms: the oldest are dropped")


def duration_s(waveform: Waveform) -> float:
    """How long a waveform is; 0 where its sample time makes no sense."""
    sample_time_us = float(waveform.header["sample_time_us"])
    return waveform.samples.shape[1] * sample_time_us * 1e-6 if 0 < sample_time_us < 1e9 else 0.0
