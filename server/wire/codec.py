"""Messages as bytes and bytes as messages: for each id how long it is, what it becomes, how it is written.

All numbers are little-endian. A message is `u16 id` and a body whose length follows from the body alone, so a message
of an unknown id cannot be skipped. Nothing here depends on what was sent before; that is `connection.py`.

Text: peers end it with a NUL (python-ismrmrd-server, FIRE) or do not (Gadgetron, the specification). We read both,
dropping NULs at the end only, and send none. Configurations are strict UTF-8; TEXT, ERROR, QUERY and RESPONSE are
shown to people, so bytes that are not UTF-8 become U+FFFD there. Headers stay bytes. Source: MRD streaming protocol;
Gadgetron `core/io`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from pipelines.mrd import WAVEFORM_HEADER, Meta, Waveform
from server.errors import LimitError, ProtocolError
from server.wire import images, readouts
from server.wire.attributes import read_attributes, write_attributes
from server.wire.messages import (
    Buffers,
    Close,
    ConfigFile,
    ConfigText,
    DependencyAnswer,
    Event,
    Header,
    MessageId,
    PeerError,
    Query,
    Response,
    Text,
    WireLimits,
)

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_QUERY: Final = struct.Struct("<HQQQ")  # id, reserved, correlation, length
_RESPONSE: Final = struct.Struct("<HQQ")  # id, correlation, length
_WAVEFORM: Final = struct.Struct("<H28xHH8x")  # id, ..., samples, channels, ...

CONFIG_NAME_BYTES: Final = 1024
"""Body of CONFIG_FILE: the name, filled up with NULs."""

ID_BYTES: Final = 2


class Layout(NamedTuple):
    """How to read the messages of one id.

    Attributes:
        fixed: bytes, with the id, after which the size is known.
        size: size of the message at an offset, once `fixed` bytes are there; checks the limits.
        decode: the event, once all bytes are there: from the data, the offset and the size.
    """

    fixed: int
    size: Callable[[memoryview, int, WireLimits], int]
    decode: Callable[[memoryview, int, int], Event]


def read_id(data: memoryview, start: int) -> int:
    """The id of the message at an offset."""
    value: int = _U16.unpack_from(data, start)[0]
    return value


def shown(text: str, most: int = 60) -> str:
    """Text of a peer for an error: escaped, on one line, bounded."""
    return ascii(text if len(text) <= most else text[:most] + "...")


def _constant(size: int) -> Callable[[memoryview, int, WireLimits], int]:
    return lambda _data, _start, _limits: size


def _counted(
    field: str, offset: int, number: struct.Struct, limit: str
) -> Callable[[memoryview, int, WireLimits], int]:
    """Size of a message that ends with a length and that many bytes; `limit` is the attribute of `WireLimits`."""
    fixed = offset + number.size

    def size(data: memoryview, start: int, limits: WireLimits) -> int:
        length: int = number.unpack_from(data, start + offset)[0]
        most = min(getattr(limits, limit), limits.message_bytes - fixed)
        if length > most:
            raise LimitError(f"the peer announced {field} of {length} bytes; the limit is {most}")
        return fixed + length

    return size


_query_length: Final = _counted("a QUERY", 18, _U64, "query_bytes")


def _query_size(data: memoryview, start: int, limits: WireLimits) -> int:
    reserved = _QUERY.unpack_from(data, start)[1]
    if reserved:
        raise ProtocolError(f"the peer sent a QUERY whose reserved field is {reserved}, not 0", kind="bad_header")
    return _query_length(data, start, limits)


def _waveform_size(data: memoryview, start: int, limits: WireLimits) -> int:
    _, samples, channels = _WAVEFORM.unpack_from(data, start)
    size: int = ID_BYTES + WAVEFORM_HEADER.itemsize + 4 * samples * channels
    if samples > limits.samples or channels > limits.channels or size > limits.message_bytes:
        raise LimitError(
            f"the peer announced a waveform of {samples} samples and {channels} channels ({size} bytes); "
            f"the limits are {limits.samples}, {limits.channels} and {limits.message_bytes}"
        )
    return size


def _strict(data: memoryview, what: str) -> str:
    try:
        return bytes(data).rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the peer sent {what} that is not UTF-8 (byte {error.start})", kind="bad_utf8") from error


def _lenient(data: memoryview) -> str:
    return bytes(data).rstrip(b"\0").decode(errors="replace")


def _decode_config_file(data: memoryview, start: int, size: int) -> ConfigFile:
    body = bytes(data[start + ID_BYTES : start + size])
    end = body.find(0)
    if end < 0:
        raise ProtocolError(
            f"the peer sent a CONFIG_FILE without a NUL in its {CONFIG_NAME_BYTES} bytes: "
            f"{shown(body[:80].decode(errors='replace'))}",
            kind="bad_length",
        )
    name = _strict(memoryview(body)[:end], "a configuration name")
    if not name.isprintable():
        raise ProtocolError(
            f"the peer sent a configuration name with control characters: {shown(name)}", kind="bad_utf8"
        )
    return ConfigFile(name)


def _decode_query(data: memoryview, start: int, size: int) -> Query:
    return Query(_QUERY.unpack_from(data, start)[2], _lenient(data[start + _QUERY.size : start + size]))


def _decode_response(data: memoryview, start: int, size: int) -> Response:
    return Response(_RESPONSE.unpack_from(data, start)[1], _lenient(data[start + _RESPONSE.size : start + size]))


def _decode_waveform(data: memoryview, start: int, size: int) -> Waveform:
    _, samples, channels = _WAVEFORM.unpack_from(data, start)
    header = np.frombuffer(data, WAVEFORM_HEADER, 1, start + ID_BYTES).reshape(()).copy()
    body = data[start + ID_BYTES + WAVEFORM_HEADER.itemsize : start + size]
    return Waveform(header, np.frombuffer(bytes(body), "<u4").reshape(channels, samples))


LAYOUTS: Final[dict[int, Layout]] = {
    MessageId.CONFIG_FILE: Layout(ID_BYTES, _constant(ID_BYTES + CONFIG_NAME_BYTES), _decode_config_file),
    MessageId.CONFIG_TEXT: Layout(
        6, _counted("a CONFIG_TEXT", 2, _U32, "config_bytes"),
        lambda data, start, size: ConfigText(_strict(data[start + 6 : start + size], "a configuration")),
    ),
    MessageId.HEADER: Layout(
        6, _counted("a HEADER", 2, _U32, "header_bytes"),
        lambda data, start, size: Header(bytes(data[start + 6 : start + size]).rstrip(b"\0")),
    ),
    MessageId.CLOSE: Layout(ID_BYTES, _constant(ID_BYTES), lambda _data, _start, _size: Close()),
    MessageId.TEXT: Layout(
        6, _counted("a TEXT", 2, _U32, "text_bytes"),
        lambda data, start, size: Text(_lenient(data[start + 6 : start + size])),
    ),
    MessageId.QUERY: Layout(_QUERY.size, _query_size, _decode_query),
    MessageId.RESPONSE: Layout(_RESPONSE.size, _counted("a RESPONSE", 10, _U64, "query_bytes"), _decode_response),
    MessageId.ERROR: Layout(
        10, _counted("an ERROR", 2, _U64, "text_bytes"),
        lambda data, start, size: PeerError(_lenient(data[start + 10 : start + size])),
    ),
    MessageId.DEPENDENCY_QUERY: Layout(
        10, _counted("a DEPENDENCY_QUERY", 2, _U64, "attribute_bytes"),
        lambda data, start, size: DependencyAnswer(read_attributes(bytes(data[start + 10 : start + size]))),
    ),
    MessageId.ACQUISITION: Layout(
        readouts.FIXED_BYTES, readouts.readout_size,
        lambda data, start, size: readouts.decode_run(data, start, start + size, size, WireLimits()),
    ),
    MessageId.IMAGE: Layout(images.FIXED_BYTES, images.image_size, images.decode_image),
    MessageId.WAVEFORM: Layout(ID_BYTES + WAVEFORM_HEADER.itemsize, _waveform_size, _decode_waveform),
}  # fmt: skip
"""Every message that can be read. Acquisitions are here one at a time; `connection.py` takes whole runs of them."""


def encode_config_file(name: str) -> Buffers:
    """Id 1.

    Raises:
        ProtocolError: the name is longer than 1023 bytes, not valid Unicode, or has control characters.
    """
    body = _encoded(name, "a configuration name")
    if len(body) >= CONFIG_NAME_BYTES:
        raise ProtocolError(f"we may not send a configuration name of {len(body)} bytes; 1023 fit", kind="bad_length")
    if not name.isprintable():
        raise ProtocolError(
            f"we may not send a configuration name with control characters: {shown(name)}", kind="bad_utf8"
        )
    return [_U16.pack(MessageId.CONFIG_FILE) + body.ljust(CONFIG_NAME_BYTES, b"\0")]


def encode_text(message_id: MessageId, text: str) -> Buffers:
    """Id 2 or 5: u32 length and text."""
    return encode_bytes(message_id, _encoded(text, message_id.name))


def encode_bytes(message_id: MessageId, body: bytes) -> Buffers:
    """Ids 2, 3 and 5: u32 length and bytes.

    Raises:
        ProtocolError: the length does not fit.
    """
    if len(body) > 0xFFFFFFFF:
        raise ProtocolError(f"we may not send a {message_id.name} of {len(body)} bytes", kind="bad_length")
    return [_U16.pack(message_id) + _U32.pack(len(body)) + body]


def encode_query(correlation: int, text: str) -> Buffers:
    """Id 6."""
    body = _encoded(text, "a QUERY")
    return [_QUERY.pack(MessageId.QUERY, 0, correlation, len(body)) + body]


def encode_response(correlation: int, text: str) -> Buffers:
    """Id 7."""
    body = _encoded(text, "a RESPONSE")
    return [_RESPONSE.pack(MessageId.RESPONSE, correlation, len(body)) + body]


def encode_error(text: str) -> Buffers:
    """Id 8: its length is a u64, unlike that of TEXT."""
    body = _encoded(text, "an ERROR")
    return [_U16.pack(MessageId.ERROR) + _U64.pack(len(body)) + body]


def encode_dependency(meta: Meta) -> Buffers:
    """Id 1019. With a NUL at the end, which Gadgetron counts: its client takes the body for a C string."""
    body = write_attributes(meta) + b"\0"
    return [_U16.pack(MessageId.DEPENDENCY_QUERY) + _U64.pack(len(body)) + body]


def encode_close() -> Buffers:
    """Id 4."""
    return [_U16.pack(MessageId.CLOSE)]


def encode_waveform(waveform: Waveform) -> Buffers:
    """Id 1026.

    Raises:
        ProtocolError: the header does not agree with the samples.
    """
    header = np.zeros((), WAVEFORM_HEADER)  # filled by name, so that the padding does not carry old memory to the peer
    for name in WAVEFORM_HEADER.names or ():
        header[name] = waveform.header[name]
    announced = (int(header["channels"]), int(header["number_of_samples"]))
    if waveform.samples.shape != announced:
        raise ProtocolError(
            f"we may not send waveform samples of shape {waveform.samples.shape} as channels, samples = {announced}",
            kind="bad_length",
        )
    samples = np.ascontiguousarray(waveform.samples, "<u4")
    return [_U16.pack(MessageId.WAVEFORM) + header.tobytes() + samples.tobytes()]


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(f"we may not send {what} that is not valid Unicode", kind="bad_utf8") from error
