"""Structured records on standard error, one JSON object a line, with the session id and never with patient data.

A record may hold only the fields named in `FIELDS`; anything else is dropped and its name counted, so that a careless
call cannot put a header, a name or a date into a log. Values are bounded and control characters escaped.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final, TextIO, cast

import structlog

FIELDS: Final = frozenset(
    {
        "event", "level", "timestamp", "logger", "message", "trace", "dropped_fields",
        "session", "peer_port", "pipeline", "outcome", "code", "kind",
        "duration_s", "first_image_s", "last_image_s", "acquisitions", "waveforms", "texts", "groups",
        "images", "received_images", "recon_data",
        "warnings", "retried", "channels", "samples", "dwell_us", "received_bytes", "sent_bytes", "counts",
        "outside_domain", "fallbacks", "asked", "made_by",
        "host", "port", "admin_port", "gadgetron_port", "sessions", "workers", "device", "version", "signal",
        "grace_s", "lame_duck_s", "reason",
    }
)  # fmt: skip
"""What a record may say. None of these may ever be given text from a scan header, a waveform or an image."""

MAX_TEXT: Final = 2000


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Write records of this level and above to a stream (standard error unless given), those of libraries included."""
    target = sys.stderr if stream is None else stream
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        keep_known_fields,
        bound_values,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    handler = _FromLibraries(logging.WARNING)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)


def keep_known_fields(_: object, __: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop every field that is not in `FIELDS` and say how many were dropped."""
    unknown = [name for name in record if name not in FIELDS]
    for name in unknown:
        del record[name]
    if unknown:
        record["dropped_fields"] = len(unknown)
    return record


def bound_values(_: object, __: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut long texts and escape control characters (a terminal must not obey what a peer sent)."""
    for name, value in record.items():
        if isinstance(value, str):
            record[name] = printable(value, MAX_TEXT)
    return record


def printable(text: str, length: int) -> str:
    """Text with control and non-printing characters escaped, at most `length` characters of it."""
    cut = text if len(text) <= length else text[: length - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)[:length]


def logger() -> structlog.typing.FilteringBoundLogger:
    """Where to write records; bind the session id to it."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())


def places(error: BaseException | None) -> str:
    """Where an exception was raised, without its message: messages of foreign exceptions may quote data."""
    found: list[str] = []
    frame = error.__traceback__ if error is not None else None
    while frame is not None:
        code = frame.tb_frame.f_code
        found.append(f"{Path(code.co_filename).name}:{frame.tb_lineno} {code.co_qualname}")
        frame = frame.tb_next
    return " > ".join(found)


class _FromLibraries(logging.Handler):
    """Hands records of the standard library's logging on, without their arguments' structure."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = ""
        if record.exc_info and record.exc_info[0] is not None:
            trace = f"{record.exc_info[0].__name__} at {places(record.exc_info[1])}"
        logger().log(record.levelno, "library", logger=record.name, message=record.getMessage(), trace=trace)
