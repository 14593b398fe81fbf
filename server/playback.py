"""Captures of sessions (`server.capture`): checked, and sent to a server again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pipelines.mrd import Image
from server.capture import FIRST, chained, pixels_digest
from server.client import DEFAULT_PORT
from server.errors import ClientError, FileError
from server.wire.connection import Connection, Role
from server.wire.messages import Close, Text, WireLimits

Number = tuple[int, int]
"""Series and number of an image."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of the stream.

    Attributes:
        at: its first byte.
        n_bytes: how many.
        t_s: seconds from the beginning of the session until it came.
        sha256: of its bytes.
    """

    at: int
    n_bytes: int
    t_s: float
    sha256: str


@dataclass(frozen=True, slots=True)
class Captured:
    """A capture whose index was found unchanged.

    Attributes:
        stream: file with the bytes.
        begin: what its first record tells.
        stretches: of the stream, in order.
        images: digests of the pixels of images that were sent, in order.
        end: how the session ended; empty where the capture does not tell.
        lost: why it is not complete; empty where it is.
    """

    stream: Path
    begin: dict[str, Any]
    stretches: tuple[Stretch, ...]
    images: tuple[tuple[Number, str], ...]
    end: str
    lost: str

    def read(self) -> Iterator[tuple[Stretch, bytes]]:
        """Stretches with their bytes.

        Raises:
            FileError: the stream is another one than its index tells.
        """
        try:
            with self.stream.open("rb") as file:
                for stretch in self.stretches:
                    data = file.read(stretch.n_bytes)
                    if hashlib.sha256(data).hexdigest() != stretch.sha256:
                        raise FileError(f"{self.stream.name}: bytes {stretch.at} and on were changed or are missing")
                    yield stretch, data
        except OSError as error:
            raise FileError(f"{self.stream.name} cannot be read ({error.strerror})") from error


@dataclass(slots=True)
class Played:
    """What came back of a capture.

    Attributes:
        same: images whose pixels are the same to the bit as when it was captured.
        different: those whose pixels are not.
        missing: those that did not come.
        new: those that had not been sent then.
        texts: what the server said.
        closed: whether it ended in good order.
    """

    same: list[Number] = field(default_factory=list[Number])
    different: list[Number] = field(default_factory=list[Number])
    missing: list[Number] = field(default_factory=list[Number])
    new: list[Number] = field(default_factory=list[Number])
    texts: list[str] = field(default_factory=list[str])
    closed: bool = False

    @property
    def is_same(self) -> bool:
        """Whether exactly the same images came."""
        return not (self.different or self.missing or self.new)


def open_capture(path: Path) -> Captured:
    """A capture by the name of either of its files.

    Raises:
        FileError: there is no such capture, or its index was changed, cut or put into another order.
    """
    index = path.with_suffix(".jsonl")
    stretches, images = list[Stretch](), list[tuple[Number, str]]()
    begin: dict[str, Any] = {}
    end = lost = ""
    chain = FIRST
    try:
        for line, text in enumerate(index.read_text().splitlines(), 1):
            record = cast("dict[str, Any]", json.loads(text))
            said = record.pop("chain")
            chain = chained(chain, record)
            if said != chain or end or lost:
                raise FileError(f"{index.name}: line {line} is not the one that was written there")
            if "begin" in record:
                begin = dict(record["begin"])
            elif "at" in record:
                stretches.append(Stretch(record["at"], record["bytes"], record["t_s"], record["sha256"]))
            elif "image" in record:
                series, number = record["image"]
                images.append(((series, number), record["sha256"]))
            else:
                end, lost = str(record.get("end", "")), str(record.get("lost", ""))
    except OSError as error:
        raise FileError(f"{index.name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{index.name} is no index of a capture") from error
    return Captured(index.with_suffix(".mrd"), begin, tuple(stretches), tuple(images), end, lost)


async def play(
    captured: Captured,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    speed: float = 0.0,
    silence_s: float = 600.0,
) -> Played:
    """Send a capture to a server, and compare what comes back with what came then.

    Args:
        captured: what to send.
        host: of the server.
        port: of the server.
        speed: 1 as it came, 2 twice as fast; 0 without a pause.
        silence_s: how long the server may say nothing after the last byte.

    Raises:
        FileError: the stream was changed.
        ClientError: nobody answers there, or the server falls silent.
    """
    stretches = list(captured.read())  # all is checked before anything is sent
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise ClientError(f"no server answers at {host} port {port}", code="no_server") from error
    played, found = Played(), list[tuple[Number, str]]()
    hearing = asyncio.create_task(_hear(reader, played, found))
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        for stretch, data in stretches:
            if speed:
                await asyncio.sleep(max(0.0, began + stretch.t_s / speed - loop.time()))
            writer.write(data)
            await writer.drain()
        async with asyncio.timeout(silence_s):
            await hearing
    except ConnectionError:
        await hearing  # the server has ended the session; what it said says why
    except TimeoutError as error:
        raise ClientError(f"the server said nothing for {silence_s:g} s") from error
    finally:
        hearing.cancel()
        writer.close()
    _compare(captured.images, found, played)
    return played


def _compare(before: tuple[tuple[Number, str], ...], after: list[tuple[Number, str]], played: Played) -> None:
    """Sort images into same, different, missing and new; several may have one number."""
    left: dict[Number, list[str]] = {}
    for number, digest in before:
        left.setdefault(number, []).append(digest)
    for number, digest in after:
        expected = left.get(number, [])
        if digest in expected:
            expected.remove(digest)
            played.same.append(number)
        elif expected:
            expected.pop(0)
            played.different.append(number)
        else:
            played.new.append(number)
    played.missing.extend(number for number, digests in left.items() for _ in digests)


async def _hear(reader: asyncio.StreamReader, played: Played, found: list[tuple[Number, str]]) -> None:
    connection = Connection(Role.CLIENT, WireLimits())
    while data := await reader.read(1 << 20):
        rest = memoryview(data)
        while rest:
            room = connection.writable()
            n = min(len(room), len(rest))
            room[:n] = rest[:n]
            connection.received(n)
            rest = rest[n:]
            while (event := connection.next_event()) is not None:
                if isinstance(event, Image):
                    number = int(event.header["image_series_index"]), int(event.header["image_index"])
                    found.append((number, pixels_digest(event.pixels)))
                elif isinstance(event, Text):
                    played.texts.append(event.text)
                elif isinstance(event, Close):
                    played.closed = True
