"""Valid inputs that fuzzing starts from, and words that mean something to the parsers."""

from __future__ import annotations

import json
import struct
from functools import cache
from typing import Final

from pipelines import registry
from server.wire.connection import Role, State
from server.wire.messages import MessageId
from tests.fuzz.scans import samples
from tests.fuzz.targets import ASKED, STATES
from tests.server.wire import examples
from tests.server.wire.examples import MINIMAL, message_bytes

NUMBERS: Final = tuple(
    struct.pack(form, value)
    for form, values in {
        "<H": (0, 1, 255, 256, 1024, 32767, 65535, *MessageId),
        "<I": (0, 1, 2000, 65535, 1 << 16, (1 << 31) - 1, (1 << 32) - 1),
        "<Q": (0, 1, 7, 1 << 16, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
    }.items()
    for value in values
)
WORDS: Final = tuple(
    word.encode()
    for word in (
        "<a>", "</a>", "<a/>", "<!DOCTYPE a>", "<!ENTITY b 'c'>", "&b;", "&#x0;", "&#1114111;", "<![CDATA[", "]]>",
        "<?xml", "encoding='utf-16'", "encoding='none'", "xmlns='x'", "xmlns:b='b' b:c='d'", "<property name='",
        "value='", "<configuration>", "-1", "0", "65535", "65536", "1e308", "1e999", "NaN", "Infinity", "-0.0",
        "99999999999999999999999999", "0x10", "\u0660", "true", "null", "{", "}", "[", "]", '"', "\\ud800",
        "\\u0000", '"parameters":', '"pipeline":', '"config":', "'", ",", ":", "\0", "\u202e", "\x1b[31m",
        "{" * 50, "[" * 200, "<a>" * 50,
    )
)  # fmt: skip


@cache
def messages() -> tuple[bytes, ...]:
    """One of each message, and a few of other shapes."""
    more = [
        examples.readouts(5, 2, 8, 0),
        examples.readouts(3, 2, 4, 3),
        examples.waveform(2, 5),
        examples.image((2, 1, 4, 3)),
        examples.image_array((1, 1, 2, 1, 1, 3, 2)),
    ]
    return tuple(message_bytes(event) for event in [*MINIMAL.values(), *more])


@cache
def seeds(target: str) -> tuple[bytes, ...]:
    """Valid inputs of a target."""
    return {"wire": _wire, "scan_header": _headers, "selection": _selections, "intake": _intakes}[target]()


def _wire() -> tuple[bytes, ...]:
    found: list[bytes] = []
    requests = [MINIMAL[i] for i in (5, 2, 3, 1008, 1026, 1022, 6, 4)]
    replies = [MINIMAL[i] for i in (5, 7, 1019, 1022, 1008, 8, 4)]
    of_nodes = [MINIMAL[i] for i in (2, 3, 1023, 1024, 1050, 1008, 4)]
    for state, role, events in (
        (State.CONFIG, Role.CLIENT, requests),
        (State.REPLY, Role.SERVER, replies),
        (State.NODE_CONFIG, Role.PARENT, of_nodes),
        (State.STREAM, Role.STREAM, requests[1:]),
        (State.NODE_REPLY, Role.NODE, [MINIMAL[i] for i in (1023, 1024, 1050, 1022, 8, 4)]),
    ):
        found.append(bytes([STATES.index(state), 0, 1]) + examples.encode(role, events))
    for state in (State.DATA, State.REPLY, State.NODE_DATA):
        found += [bytes([STATES.index(state), 0, 0]) + message for message in messages()]
    return tuple(found)


def _headers() -> tuple[bytes, ...]:
    return tuple(sample.header for sample in samples())


def _intakes() -> tuple[bytes, ...]:
    return tuple(
        bytes([pipeline, number]) + b"".join(sample.messages)
        for pipeline in range(len(ASKED))
        for number, sample in enumerate(samples())
    )


def _selections() -> tuple[bytes, ...]:
    found = ["sense", "default.xml", "isalive.xml"]
    for name, entry in registry.pipelines().items():
        defaults = entry.parse({}).model_dump(mode="json")
        given = {key: value for key, value in defaults.items() if isinstance(value, str | int | float | bool)}
        found.append(json.dumps({"pipeline": name, "parameters": given}))
        found.append(
            json.dumps({"version": "1.1.0", "parameters": {"config": name, "iterations": "20", "preview": "True"}})
        )
        properties = "".join(f"<property name='{key}' value='{value}'/>" for key, value in given.items())
        found.append(f"<configuration><pipeline>{name}</pipeline>{properties}</configuration>")
    found.append(
        '<gadgetronStreamConfiguration xmlns="http://gadgetron.sf.net/gadgetron"><gadget><name>N</name><dll>d</dll>'
        "<classname>NoiseSummaryGadget</classname><property><name>noise_file</name><value>f</value></property></gadget>"
        "</gadgetronStreamConfiguration>"
    )
    found.append(
        "<configuration><version>2</version><stream><gadget><class>sense</class></gadget></stream></configuration>"
    )
    return tuple(bytes([way]) + text.encode() for text in found for way in range(3))
