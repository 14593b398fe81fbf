"""How a session speaks to its peer: to a scanner or client of MRD, or to Gadgetron as one of its external nodes.

The two exclude each other: scanners want texts and do not know ERROR (8); Gadgetron wants ERROR and takes a text for an
illegal message that fails the reconstruction. Values and choices only; no sockets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import SlotSource
from pipelines.errors import ParameterError
from pipelines.gadgetron import ImageArray
from pipelines.mrd import Acquisitions, Image, Waveform
from pipelines.scan_header import ScanHeader
from server.config import Settings
from server.image_arrays import array_of
from server.intake import intake_for
from server.jobs import Returned
from server.logs import logger, printable
from server.node_intake import AnyIntake, NodeImageIntake, NodeReadoutIntake
from server.noise_desk import NoiseDesk
from server.outcome import TEXT_LENGTH, error_text
from server.selection import Selection, select, select_for_node
from server.wire.connection import Connection, Role
from server.wire.messages import Buffers, DependencyAnswer, Text

MOST_WARNINGS = 20
"""Warnings that are written into the attributes of images for Gadgetron."""


class Dialect(Protocol):
    """How to speak to a peer.

    Attributes:
        role: which end of a connection we are.
        announces_close: whether the peer always says CLOSE, so that its end without CLOSE means that it is gone.
        may_scale: whether images may be sent as integers.
    """

    role: Role
    announces_close: bool
    may_scale: bool

    def connect(self) -> Connection:
        """A connection in our role, with the limits of the settings."""
        ...

    def select(self, text: str) -> Selection:
        """What a configuration asks for; errors as in `server.selection.select`."""
        ...

    def intake(self, selection: Selection, scan: ScanHeader | None, slots: SlotSource, noise: NoiseDesk) -> AnyIntake:
        """Where data go; errors as in `server.intake.intake_for`."""
        ...

    def warning(self, connection: Connection, session: str, text: str) -> Buffers:
        """A warning, as far as the peer can be told."""
        ...

    def progress(self, connection: Connection, text: str) -> Buffers:
        """How far a reconstruction is, as far as the peer can be told."""
        ...

    def failure(self, connection: Connection, error: Exception) -> Buffers:
        """An error that ends the session; CLOSE follows."""
        ...

    def answer(self, connection: Connection, answer: Text | DependencyAnswer) -> Buffers:
        """What a session for noise measurements says."""
        ...

    def image(self, connection: Connection, image: Image, selection: Selection | None) -> Buffers:
        """An image."""
        ...

    def returned(self, connection: Connection, returned: Returned) -> Buffers:
        """A message of the peer's that goes back."""
        ...


class ScannerDialect:
    """To scanners and MRD clients: warnings, errors and progress are texts."""

    role = Role.SERVER
    announces_close = False
    may_scale = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def connect(self) -> Connection:
        """A server's end."""
        return Connection(self.role, self._settings.limits.for_wire())

    def select(self, text: str) -> Selection:
        """A name, JSON or Gadgetron XML."""
        return select(text, self._settings.pipelines)

    def intake(self, selection: Selection, scan: ScanHeader | None, slots: SlotSource, noise: NoiseDesk) -> AnyIntake:
        """As the selection says."""
        return intake_for(selection, scan, slots, self._settings.limits.for_assembly(), noise)

    def warning(self, connection: Connection, session: str, text: str) -> Buffers:
        """TEXT, with the first letters that FIRE colours."""
        del session
        return connection.text(f"WRN {printable(text, TEXT_LENGTH)}")

    def progress(self, connection: Connection, text: str) -> Buffers:
        """TEXT, without letters that FIRE colours."""
        return connection.text(f"INFO {printable(text, TEXT_LENGTH)}")

    def failure(self, connection: Connection, error: Exception) -> Buffers:
        """TEXT."""
        return connection.text(error_text(error))

    def answer(self, connection: Connection, answer: Text | DependencyAnswer) -> Buffers:
        """TEXT or DEPENDENCY_QUERY."""
        return connection.text(answer.text) if isinstance(answer, Text) else connection.dependency(answer.meta)

    def image(self, connection: Connection, image: Image, selection: Selection | None) -> Buffers:
        """IMAGE."""
        del selection
        return connection.image(image)

    def returned(self, connection: Connection, returned: Returned) -> Buffers:
        """The same again."""
        return _again(connection, returned)


class ParentDialect:
    """To Gadgetron: errors are ERROR (8), warnings go into the log and into the attributes of the images after them."""

    role = Role.NODE
    announces_close = True
    may_scale = False

    def __init__(self, settings: Settings, preferred: str = "") -> None:
        """A dialect for one session.

        Args:
            settings: of the server.
            preferred: pipeline where the configuration names none; that of the settings when empty.
        """
        self._settings = settings
        self._preferred = preferred
        self._warnings: list[str] = []

    def connect(self) -> Connection:
        """A node's end; messages may be as large as the settings for Gadgetron say."""
        limits = replace(self._settings.limits.for_wire(), message_bytes=self._settings.gadgetron.message_bytes)
        return Connection(self.role, limits)

    def select(self, text: str) -> Selection:
        """The part of Gadgetron's configuration that is meant for the node."""
        return select_for_node(
            text, self._settings.pipelines, self._preferred, as_arrays=self._settings.gadgetron.output == "image_array"
        )

    def intake(self, selection: Selection, scan: ScanHeader | None, slots: SlotSource, noise: NoiseDesk) -> AnyIntake:
        """One that takes buckets, recon data and image arrays as well; noise of earlier scans is NoiseAdjust's."""
        limits, entry = self._settings.limits.for_assembly(), selection.entry
        if entry is not None and entry.takes_images:
            return NodeImageIntake(scan)
        if entry is None or scan is None:
            return intake_for(selection, scan, slots, limits, noise)
        if selection.parameters.get("cardiac_phases"):
            raise ParameterError(
                "the parameter 'cardiac_phases' needs the readouts of a whole scan with their waveforms, which "
                "Gadgetron does not hand on in that order; gate the scan in a session of its own"
            )
        return NodeReadoutIntake(
            scan, lambda header: Assembler(header, entry.grouping, slots, limits), limits.max_open_bytes
        )

    def warning(self, connection: Connection, session: str, text: str) -> Buffers:
        """Nothing: there is no message for it."""
        del connection
        said = printable(text, TEXT_LENGTH)
        logger().warning("node_warning", session=session, message=said)
        if said not in self._warnings and len(self._warnings) < MOST_WARNINGS:
            self._warnings.append(said)
        return []

    def progress(self, connection: Connection, text: str) -> Buffers:
        """Nothing: there is no message for it, and a text would end the reconstruction."""
        del connection, text
        return []

    def failure(self, connection: Connection, error: Exception) -> Buffers:
        """ERROR."""
        return connection.error(error_text(error))

    def answer(self, connection: Connection, answer: Text | DependencyAnswer) -> Buffers:
        """Nothing: nodes are not chosen for noise measurements."""
        del connection, answer
        return []

    def image(self, connection: Connection, image: Image, selection: Selection | None) -> Buffers:
        """IMAGE, or IMAGE_ARRAY where the selection asks for arrays."""
        if self._warnings:
            image = replace(image, meta={**image.meta, "ReconWarnings": list(self._warnings)})
        if selection is not None and selection.as_arrays:
            return connection.image_array(array_of(image))
        return connection.image(image)

    def returned(self, connection: Connection, returned: Returned) -> Buffers:
        """The same again."""
        return _again(connection, returned)


def _again(connection: Connection, returned: Returned) -> Buffers:
    match returned.message:
        case Acquisitions() as batch:
            return connection.acquisitions(batch)
        case Waveform() as waveform:
            return connection.waveform(waveform)
        case Image() as image:
            return connection.image(image)
        case ImageArray() as images:
            return connection.image_array(images)
