"""What travels on the wire: message ids, the limits on sizes, and the events that a peer's bytes become.

Values only: how they look as bytes is in `codec.py`, `readouts.py` and `images.py`; when they may come is in
`connection.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

from pipelines.mrd import Acquisitions, Image, Meta, Waveform

Buffers = list[bytes | memoryview]
"""The parts of one gathered write, in order. They may be views of what the caller passed in: leave that until
written."""


class MessageId(IntEnum):
    """Ids that this server reads and writes (MRD streaming protocol; Gadgetron `core/MessageID.h`)."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    DEPENDENCY_QUERY = 1019
    IMAGE = 1022
    WAVEFORM = 1026


UNSUPPORTED_NAMES: Final = {
    1001: "old acquisition",
    1002: "new measurement",
    1003: "end of scan",
    1004: "old complex image",
    1005: "old float image",
    1006: "old ushort image",
    1007: "empty",
    1009: "complex image without attributes",
    1010: "float image without attributes",
    1011: "ushort image without attributes",
    1012: "DICOM",
    1013: "cloud job",
    1014: "cloud job",
    1015: "old complex image",
    1016: "old float image",
    1017: "old ushort image",
    1018: "DICOM with name",
    1020: "old short image",
    1021: "old short image",
    1023: "ReconData",
    1024: "image array",
    1030: "NDArray",
    1050: "acquisition bucket",
    1051: "bundle",
}
"""Ids that peers know and this connection does not read; so that an error can name them."""


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Largest sizes that a peer may announce; all are checked before memory is taken.

    Attributes:
        buffer_bytes: receive buffer of a connection at rest.
        message_bytes: one message with its id; also the most that the receive buffer grows to.
        config_bytes: text of CONFIG_TEXT.
        header_bytes: XML of HEADER.
        text_bytes: TEXT and ERROR, each.
        query_bytes: QUERY and RESPONSE, each.
        samples: complex samples of a readout, and samples of a waveform.
        channels: active channels of a readout, and channels of a waveform.
        trajectory_dimensions: dimensions of a readout's trajectory.
        acquisition_bytes: samples and trajectory of a readout.
        image_pixels: pixels of an image, all channels together.
        attribute_bytes: attribute XML of an image or a dependency.
        run_readouts: readouts delivered in one event, so that one event never takes long to handle.
    """

    buffer_bytes: int = 1 << 20
    message_bytes: int = 256 << 20
    config_bytes: int = 1 << 20
    header_bytes: int = 8 << 20
    text_bytes: int = 1 << 20
    query_bytes: int = 64 << 10
    samples: int = 65535
    channels: int = 512
    trajectory_dimensions: int = 8
    acquisition_bytes: int = 64 << 20
    image_pixels: int = 1 << 26
    attribute_bytes: int = 4 << 20
    run_readouts: int = 4096

    def __post_init__(self) -> None:
        """Refuse limits with which not even the fixed parts of messages could be read.

        Raises:
            ValueError: a limit is not positive, or `message_bytes` is below 4096.
        """
        for entry in fields(self):
            if getattr(self, entry.name) < 1:
                raise ValueError(f"wire limit {entry.name} must be positive, not {getattr(self, entry.name)}")
        if self.message_bytes < 4096:
            raise ValueError(f"wire limit message_bytes must be at least 4096, not {self.message_bytes}")

    @property
    def ceiling(self) -> int:
        """The most bytes that the receive buffer of a connection ever holds."""
        return max(self.buffer_bytes, self.message_bytes)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Id 1: the name of a configuration; may be empty, holds no control characters."""

    name: str


@dataclass(frozen=True, slots=True)
class ConfigText:
    """Id 2: a configuration as text: XML, JSON, or only a name."""

    text: str


@dataclass(frozen=True, slots=True)
class Header:
    """Id 3: the scan header as it came, less trailing NULs; not yet parsed, for its XML declares its own encoding."""

    xml: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Id 4: the peer has nothing more to say; `announced` is False when it only ended its stream, behind a message."""

    announced: bool = True


@dataclass(frozen=True, slots=True)
class Text:
    """Id 5: a line for the log of the other side, or JSON with additional configuration."""

    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """Id 6: a question outside the scan; the answer carries the same correlation number."""

    correlation: int
    text: str


@dataclass(frozen=True, slots=True)
class Response:
    """Id 7: the answer to a query."""

    correlation: int
    text: str


@dataclass(frozen=True, slots=True)
class DependencyAnswer:
    """Id 1019: whether the data that a scan depends on are there, as attributes; Gadgetron answers noise queries so."""

    meta: Meta


@dataclass(frozen=True, slots=True)
class PeerError:
    """Id 8: the peer failed; it says CLOSE next."""

    text: str


Event = (
    ConfigFile | ConfigText | Header | Close | Text | Query | Response | DependencyAnswer | PeerError | Acquisitions
    | Waveform | Image
)  # fmt: skip
"""What the bytes of a peer become."""
