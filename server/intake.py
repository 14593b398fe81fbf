"""What a session does with the data of its peer: readouts become groups, or are taken and left.

One object from the header to the end. The session hands it every event with data and submits what it returns; it knows
no socket, no jobs and no clock. `intake_for` chooses by what the configuration selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pipelines.assembly.assembly import Assembly, make_assembly
from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.frame import Group, NoiseCovariance
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.noise import NoiseMeasurement
from pipelines.image_group import ImageGroup
from pipelines.mrd import Acquisitions, Image, Waveform
from pipelines.scan_header import ScanHeader
from server.errors import ProtocolError
from server.noise_desk import NoiseDesk
from server.selection import Purpose, Selection


class Intake(Protocol):
    """Where the data of a session go.

    Every method that takes data may raise ServerError or PipelineError: the data cannot be used, the session ends with
    this error; `take_ready` then gives what was complete before, and `abandon` gives back the rest.
    """

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        ...

    def acquisitions(self, batch: Acquisitions) -> Sequence[Group | ImageGroup]:
        """Take readouts; nothing of the batch is kept. Returns work that is complete now."""
        ...

    def waveform(self, waveform: Waveform) -> None:
        """Take a waveform."""
        ...

    def image(self, image: Image) -> Sequence[Group | ImageGroup]:
        """Take an image. Returns work that is complete now."""
        ...

    def finish(self) -> Sequence[Group | ImageGroup]:
        """Take note that the data have ended. Returns what is left to do."""
        ...

    def take_ready(self) -> Sequence[Group | ImageGroup]:
        """Work that was complete before a method raised."""
        ...

    def take_warnings(self) -> Sequence[str]:
        """Sentences for the peer since the last call."""
        ...

    def abandon(self) -> None:
        """Give back all memory."""
        ...


def intake_for(
    selection: Selection, scan: ScanHeader | None, slots: SlotSource, limits: AssemblyLimits, noise: NoiseDesk
) -> Intake:
    """The intake for a configuration and a scan header; without a header for what needs none.

    Raises:
        PipelineError: the header asks for what this pipeline or these limits do not allow.
    """
    if selection.entry is not None and selection.entry.takes_images:
        return ImageIntake(scan)
    if selection.purpose is Purpose.NOISE_QUERY:
        return NoiseQueryIntake(str(selection.parameters.get("noise_file", "")), noise)
    if scan is None:
        return NothingIntake()
    if selection.purpose is Purpose.NOISE:
        return NoiseIntake(scan, limits, noise)
    if selection.entry is None:
        return NothingIntake()
    given, warnings = noise.noise_for(scan) if _wants_noise(selection) else (None, list[str]())
    entry = selection.entry
    assembler = make_assembly(
        scan, entry.grouping, slots, limits, selection.parameters, given, gated=entry.gated_grouping
    )
    return ReadoutIntake(assembler, scan, noise, given, warnings)


def _wants_noise(selection: Selection) -> bool:
    """Whether noise measured before would be used; not for data that are said to be white."""
    parameters = selection.parameters
    return bool(parameters.get("whiten", True)) and parameters.get("noise_level") is None


class NothingIntake:
    """Takes everything and keeps nothing: liveness checks and the configuration `null`."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Nothing became of anything."""
        return {}

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


class NoiseIntake(NothingIntake):
    """A noise measurement, kept for the scans that depend on it; gives no images."""

    def __init__(self, scan: ScanHeader, limits: AssemblyLimits, noise: NoiseDesk) -> None:
        self._scan = scan
        self._noise = noise
        self._measurement = NoiseMeasurement(limits)
        self._warnings: list[str] = []

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        return self._measurement.counts

    def acquisitions(self, batch: Acquisitions) -> list[Group]:
        """Sum the noise readouts among them."""
        self._measurement.add(batch)
        return []

    def finish(self) -> list[Group]:
        """Keep what was measured and say so."""
        covariance = self._measurement.covariance()
        if covariance is None:
            self._warnings.append("no usable noise readout came; nothing was kept")
        elif not self._scan.measurement_id:
            self._warnings.append("the header has no measurementID to find this noise measurement by; it was not kept")
        else:
            self._warnings += self._noise.keep(self._scan, covariance)
            self._noise.confirm(covariance)
        return []

    def take_warnings(self) -> list[str]:
        """What was wrong with the readouts, or with keeping them."""
        taken, self._warnings = [*self._measurement.take_warnings(), *self._warnings], []
        return taken


class NoiseQueryIntake(NothingIntake):
    """Whether a noise measurement is here; answered at CLOSE, as Gadgetron does."""

    def __init__(self, noise_file: str, noise: NoiseDesk) -> None:
        self._noise_file = noise_file
        self._noise = noise

    def finish(self) -> list[Group]:
        """Answer."""
        self._noise.answer(self._noise_file)
        return []


class ReadoutIntake:
    """Raw readouts for the assembly; what their noise readouts say is kept for later scans."""

    def __init__(
        self,
        assembler: Assembly,
        scan: ScanHeader,
        noise: NoiseDesk,
        given: NoiseCovariance | None,
        warnings: Sequence[str],
    ) -> None:
        """An intake without any readout.

        Args:
            assembler: where readouts go.
            scan: the header.
            noise: where noise measurements are kept.
            given: that of an earlier scan, which the assembler has for readouts without noise of their own.
            warnings: about `given`, told only if it would have been used.
        """
        self._assembler = assembler
        self._scan = scan
        self._noise = noise
        self._given = given
        self._about_given = warnings
        self._warnings: list[str] = []
        self._is_settled = False

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        return self._assembler.counts

    def acquisitions(self, batch: Acquisitions) -> list[Group]:
        """Place readouts."""
        return self._settled(self._assembler.add(batch))

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
        return self._settled(self._assembler.finish(), is_end=True)

    def take_ready(self) -> list[Group]:
        """Groups that were complete before an error."""
        return self._settled(self._assembler.take_ready())

    def take_warnings(self) -> list[str]:
        """What the assembly has to say, and what is to be said of noise measurements."""
        taken, self._warnings = [*self._assembler.take_warnings(), *self._warnings], []
        return taken

    def abandon(self) -> None:
        """Give back the memory of open groups."""
        self._assembler.abandon()

    def _settled(self, groups: list[Group], *, is_end: bool = False) -> list[Group]:
        """The same groups; at the first of them, or at the end, it is known which noise the scan has."""
        if (groups or is_end) and not self._is_settled:
            self._is_settled = True
            own = self._assembler.noise
            if own is not None and self._scan.measurement_id:
                self._warnings += self._noise.keep(self._scan, own)
            elif own is None and groups and (self._given is not None or self._about_given):
                self._warnings += self._about_given
                self._noise.note_use(self._given)
        return groups
