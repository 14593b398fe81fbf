"""What a session does with the data of its peer: readouts become groups, or are taken and left.

One object from the header to the end. The session hands it every event with data and submits what it returns; it knows
no socket, no jobs and no clock. `intake_for` chooses by what the configuration selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.frame import Group
from pipelines.assembly.limits import AssemblyLimits
from pipelines.image_group import ImageGroup
from pipelines.mrd import Acquisitions, Image, Waveform
from pipelines.scan_header import ScanHeader
from server.errors import ProtocolError
from server.jobs import Returned
from server.selection import Selection

Work = Group | ImageGroup | Returned


class Intake(Protocol):
    """Where the data of a session go.

    Every method that takes data may raise ServerError or PipelineError: the data cannot be used, the session ends with
    this error; `take_ready` then gives what was complete before, and `abandon` gives back the rest.
    """

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        ...

    def acquisitions(self, batch: Acquisitions) -> Sequence[Work]:
        """Take readouts; nothing of the batch is kept. Returns work that is complete now."""
        ...

    def waveform(self, waveform: Waveform) -> None:
        """Take a waveform."""
        ...

    def image(self, image: Image) -> Sequence[Work]:
        """Take an image. Returns work that is complete now."""
        ...

    def finish(self) -> Sequence[Work]:
        """Take note that the data have ended. Returns what is left to do."""
        ...

    def take_ready(self) -> Sequence[Work]:
        """Work that was complete before a method raised."""
        ...

    def take_warnings(self) -> Sequence[str]:
        """Sentences for the peer since the last call."""
        ...

    def abandon(self) -> None:
        """Give back all memory."""
        ...


def intake_for(selection: Selection, scan: ScanHeader | None, slots: SlotSource, limits: AssemblyLimits) -> Intake:
    """The intake for a configuration and a scan header.

    Raises:
        PipelineError: the header asks for what this pipeline or these limits do not allow.
    """
    if selection.entry is not None and selection.entry.takes_images:
        return ImageIntake(scan)
    if selection.entry is None or scan is None:
        return NothingIntake()
    return ReadoutIntake(Assembler(scan, selection.entry.grouping, slots, limits))


class NothingIntake:
    """Takes everything and keeps nothing: liveness checks and the configuration `null`."""

    counts: Mapping[str, int] = {}

    def acquisitions(self, batch: Acquisitions) -> list[Group]:
        """Leave them."""
        del batch
        return []

    def waveform(self, waveform: Waveform) -> None:
        """Leave it."""

    def image(self, image: Image) -> list[Group]:
        """Leave it."""
        del image
        return []

    def finish(self) -> list[Group]:
        """Nothing is left."""
        return []

    def take_ready(self) -> list[Group]:
        """Nothing is ready."""
        return []

    def take_warnings(self) -> list[str]:
        """Nothing to say."""
        return []

    def abandon(self) -> None:
        """Nothing is held."""


class ImageIntake:
    """Images that the peer has reconstructed itself, each a job of its own."""

    counts: Mapping[str, int] = {}

    def __init__(self, scan: ScanHeader | None) -> None:
        self._scan = scan

    def acquisitions(self, batch: Acquisitions) -> list[ImageGroup]:
        """Refuse them.

        Raises:
            ProtocolError: always.
        """
        del batch
        raise ProtocolError(
            "raw readouts were sent; the chosen pipeline takes images",
            kind="bad_order",
            advice="Choose images as what the scanner emits, or a pipeline for raw data.",
        )

    def waveform(self, waveform: Waveform) -> None:
        """Leave it: images have no use for it."""

    def image(self, image: Image) -> list[ImageGroup]:
        """Hand it on at once."""
        return [ImageGroup((image,), self._scan)]

    def finish(self) -> list[ImageGroup]:
        """Nothing is left."""
        return []

    def take_ready(self) -> list[ImageGroup]:
        """Nothing is kept back."""
        return []

    def take_warnings(self) -> list[str]:
        """Nothing to say."""
        return []

    def abandon(self) -> None:
        """Nothing is held."""


class ReadoutIntake:
    """Raw readouts for the assembly."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        return self._assembler.counts

    def acquisitions(self, batch: Acquisitions) -> list[Group]:
        """Place readouts."""
        return self._assembler.add(batch)

    def waveform(self, waveform: Waveform) -> None:
        """Keep a waveform as far as the assembly does."""
        self._assembler.add_waveform(waveform)

    def image(self, image: Image) -> list[Group]:
        """Refuse it.

        Raises:
            ProtocolError: always.
        """
        del image
        raise ProtocolError(
            "images were sent; the chosen pipeline takes raw readouts",
            kind="bad_order",
            advice="Choose raw data as what the scanner emits.",
        )

    def finish(self) -> list[Group]:
        """Hand on what is left."""
        return self._assembler.finish()

    def take_ready(self) -> list[Group]:
        """Groups that were complete before an error."""
        return self._assembler.take_ready()

    def take_warnings(self) -> list[str]:
        """What the assembly has to say."""
        return self._assembler.take_warnings()

    def abandon(self) -> None:
        """Give back the memory of open groups."""
        self._assembler.abandon()
