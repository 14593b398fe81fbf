"""What is fuzzed, and what must hold whatever the bytes are. Knows no engine.

Each target takes bytes and returns when they were accepted, or refused by an error of the tree that is meant for
peers; anything else leaves it as an exception, which is a crash. The same bytes in other pieces give the same events.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Final

from pipelines import registry
from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import HeaderError, ParameterError, PipelineError, UnknownPipelineError
from pipelines.mrd import Acquisitions, Image, Waveform
from pipelines.scan_header import parse_scan_header
from server.config import Pipelines
from server.errors import ProtocolError
from server.intake import intake_for
from server.noise_desk import NoiseDesk
from server.noise_store import NoiseStore
from server.outcome import error_text, log_message
from server.selection import Selection, refine, select, select_for_node
from server.wire.connection import State
from server.wire.messages import Close, ConfigText, WireLimits
from tests.fuzz.scans import samples
from tests.server.wire import examples

SMALL: Final = WireLimits(
    buffer_bytes=4096, message_bytes=32768, config_bytes=2000, header_bytes=2000, text_bytes=2000, query_bytes=2000,
    attribute_bytes=2000, image_pixels=4096, acquisition_bytes=16384, items=64, run_readouts=16,
)  # fmt: skip
STATES: Final = tuple(state for state in State if state is not State.BROKEN)
HEADER_BYTES: Final = 1 << 16
MEMORY_PER_BYTE: Final = 400
"""Bytes of Python's memory that one byte of input may cost at most: an element of XML that has four."""
MEMORY: Final = 2 << 20
"""The same without any input."""
ASKED: Final = (
    "zero_filled",
    "joint_ipalm",
    "cine_ls_dip",
    "null",
    "default_measurement_dependencies",
    "magnitude_filter",
)
_SETTINGS: Final = Pipelines()
_PLACES: Final = AssemblyLimits(max_group_bytes=1 << 24, max_open_bytes=1 << 25)


class BrokenError(AssertionError):
    """A promise that was not kept."""


def wire(data: bytes) -> None:
    """A connection in any state; the first bytes choose the state, the limits and where the stream is cut."""
    if len(data) < 4:
        return
    state, limits = STATES[data[0] % len(STATES)], WireLimits() if data[1] == 255 else SMALL
    rng, stream = random.Random(data[2]), data[3:]
    whole = _hear(state, limits, stream, ())
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.choice((1, 3, 20))))
    if data[2] == 0:
        cuts = list(range(1, min(len(stream), 600)))
    if _hear(state, limits, stream, cuts) != whole:
        raise BrokenError(f"other events when cut at {cuts}")


def _hear(state: State, limits: WireLimits, stream: bytes, cuts: Sequence[int]) -> list[object]:
    connection = examples.receiving_in(state, limits)
    heard = examples.feed(connection, stream, cuts)
    connection.end_of_input()
    heard += examples.take(connection)
    ends = [value for value in heard if isinstance(value, Close) or (isinstance(value, tuple) and value[0] == "error")]
    if state is not State.CLOSED and (len(ends) != 1 or heard[-1] is not ends[0]):
        raise BrokenError(f"{len(ends)} ends among {len(heard)} events")
    if state is State.CLOSED and heard:
        raise BrokenError("something was read behind the end")
    if connection.state not in {State.CLOSED, State.BROKEN}:
        raise BrokenError(f"the connection is still in {connection.state}")
    if connection.capacity > limits.ceiling:
        raise BrokenError(f"the buffer has {connection.capacity} bytes, the limit is {limits.ceiling}")
    return heard


def scan_header(data: bytes) -> None:
    """The scan header, and the place that is made for its scan."""
    try:
        header = parse_scan_header(data, max_bytes=HEADER_BYTES)
    except HeaderError as error:
        _said(error)
        return
    for name in ("zero_filled", "joint_ipalm", "cine_ls_dip"):
        try:
            Assembler(header, registry.find(name).grouping, HeapSlots(), _PLACES)
        except PipelineError as error:
            _said(error)


def selection(data: bytes) -> None:
    """The configuration of a client, its refinement behind the header, and that of a node; the first byte chooses."""
    if not data:
        return
    events = examples.feed(examples.receiving_in(State.CONFIG), _as_message(data[1:]))
    if not events or not isinstance(events[0], ConfigText):
        return
    text = events[0].text
    ways: tuple[Callable[[], Selection], ...] = (
        lambda: select(text, _SETTINGS),
        lambda: refine(text, select("joint_ipalm", _SETTINGS), _SETTINGS),
        lambda: select_for_node(text, _SETTINGS),
    )
    try:
        found = ways[data[0] % len(ways)]()
    except (UnknownPipelineError, ParameterError, ProtocolError) as error:
        _said(error)
        return
    if found.entry is not None:
        found.entry.parse(found.parameters)
    for warning in found.warnings:
        _sent(warning)


def _as_message(text: bytes) -> bytes:
    return (2).to_bytes(2, "little") + len(text).to_bytes(4, "little") + text


def intake(data: bytes) -> None:
    """Readouts, waveforms and images behind a good header, up to groups; the first bytes choose pipeline and header."""
    if len(data) < 3:
        return
    sample = samples()[data[1] % len(samples())]
    desk = NoiseDesk(NoiseStore(None), "0" * 16, lambda _: None)
    taker = intake_for(
        select(ASKED[data[0] % len(ASKED)], _SETTINGS), parse_scan_header(sample.header), HeapSlots(), _PLACES, desk
    )
    connection = examples.receiving_in(State.DATA, SMALL)
    n_readouts, rest = 0, memoryview(data)[2:]
    try:
        while rest:
            room = connection.writable()
            n = min(len(room), len(rest))
            room[:n] = rest[:n]
            connection.received(n)
            rest = rest[n:]
            while (event := connection.next_event()) is not None:
                if isinstance(event, Acquisitions):
                    n_readouts += len(event)
                    taker.acquisitions(event)
                elif isinstance(event, Waveform):
                    taker.waveform(event)
                elif isinstance(event, Image):
                    taker.image(event)
        taker.finish()
        if sum(taker.counts.values()) not in {0, n_readouts}:
            raise BrokenError(f"{n_readouts} readouts, {dict(taker.counts)} accounted for")
    except (ProtocolError, PipelineError) as error:
        _said(error)
    for warning in taker.take_warnings():
        _sent(warning)
    taker.abandon()


def _said(error: Exception) -> None:
    """What the peer and the log are told of an error can be sent, and obeys no one."""
    _sent(error_text(error))
    log_message(error).encode("utf-8", "surrogatepass")


def _sent(text: str) -> None:
    if not text.isprintable() or not text:
        raise BrokenError(f"a text for the peer that is not printable: {text!r}")
    text.encode()


def within_memory(target: Callable[[bytes], None], data: bytes) -> None:
    """Run a target and look at the memory that it took.

    Raises:
        BrokenError: more than its limits allow.
    """
    tracemalloc.start()
    try:
        target(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most = MEMORY + MEMORY_PER_BYTE * len(data)
    if target in {intake, scan_header}:
        most += _PLACES.max_open_bytes
    if target is wire:
        most += 4 * (WireLimits().ceiling if len(data) > 1 and data[1] == 255 else SMALL.ceiling)
    if peak > most:
        raise BrokenError(f"{peak} bytes of memory for {len(data)} of input; the limit is {most}")


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "wire": wire,
    "scan_header": scan_header,
    "selection": selection,
    "intake": intake,
}
