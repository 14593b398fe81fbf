"""What a stranger's first bytes look like, so that the error can say what to do. Knows only the first two bytes."""

from __future__ import annotations

from typing import Final

from server.wire.messages import UNSUPPORTED_NAMES, MessageId

_HTTP: Final = (
    "this looks like HTTP",
    "This port speaks MRD version 1 over TCP; health, metrics and the status page are on the server's admin port.",
)

_FIRST_BYTES: Final = {
    **dict.fromkeys(
        (b"GE", b"PO", b"HE", b"PU", b"OP", b"DE", b"PA", b"TR", b"PR"), _HTTP
    ),  # PR: the preface of HTTP/2
    b"\x16\x03": (
        "this looks like the ClientHello of TLS",
        "This port speaks MRD version 1 without encryption; switch TLS off in the client, or set a certificate "
        "for this port in the server's settings.",
    ),
    b"ya": (
        "this looks like an MRD version 2 stream (yardl)",
        "Here MRD version 1 is expected; convert with `echotrain convert scan.mrd2 scan.h5` and send that, or "
        "reconstruct without a server: `echotrain recon --v2`.",
    ),
    b"SS": ("this looks like SSH", "This port speaks MRD version 1; check the client's host and port."),
}


def describe_unknown(message_id: int, *, is_first: bool) -> tuple[str, str | None]:
    """Say what an id may be that this connection cannot read.

    Args:
        message_id: the id as read, little-endian.
        is_first: whether these are the first two bytes of the connection.

    Returns:
        What is wrong, and what to do about it where that can be told.
    """
    if message_id in UNSUPPORTED_NAMES:
        name = UNSUPPORTED_NAMES[message_id]
        return (
            f"message id {message_id} ({name}) is not supported",
            "Set the client to send MRD acquisitions (1008), waveforms (1026) or images (1022).",
        )
    text = f"message id {message_id} is unknown"
    if not is_first:
        return f"{text}; nothing after it can be read", None
    first = message_id.to_bytes(2, "little")
    if first in _FIRST_BYTES:
        what, advice = _FIRST_BYTES[first]
        return f"{text}; {what}", advice
    if int.from_bytes(first, "big") in set(MessageId):
        return f"{text}; this looks like big-endian numbers", "MRD version 1 is little-endian; correct the client."
    return text, None
