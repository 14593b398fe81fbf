"""The client against a scripted peer: a `Connection` in the server's role behind a real socket, no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from pipelines.mrd import IMAGE_HEADER, WAVEFORM_HEADER, Acquisitions, Image, ImageDataType, Waveform
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.client import Client, Progress, ScanFailedError
from server.errors import ClientError, FileError
from server.wire.connection import Connection, Role
from server.wire.messages import Buffers, Close, ConfigFile, ConfigText, Event, Header, Query


class Peer:
    """One accepted connection, driven by a script."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection = Connection(Role.SERVER)
        self.reader, self.writer = reader, writer
        self.n_readouts = 0
        self.kinds: list[type] = []

    async def event(self) -> Event:
        while (event := self.connection.next_event()) is None:
            target = self.connection.writable()
            data = await self.reader.read(len(target))
            if not data:
                self.connection.end_of_input()
            target[: len(data)] = data
            self.connection.received(len(data))
        self.n_readouts += len(event) if isinstance(event, Acquisitions) else 0
        self.kinds.append(type(event))
        return event

    async def until_close(self) -> list[Event]:
        events: list[Event] = []
        while not isinstance(event := await self.event(), Close):
            if not isinstance(event, Acquisitions):
                events.append(event)
        return events

    async def say(self, buffers: Buffers) -> None:
        self.writer.write(b"".join(buffers))
        await self.writer.drain()


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[int]:
    failures: list[BaseException] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        except (AssertionError, TypeError) as error:
            failures.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
    if failures:
        raise failures[0]


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    return simulate(np.ones((2, 32, 32), np.float32), Protocol(n_coils=4))


def an_image(value: float = 1.0) -> Image:
    header = np.zeros((), IMAGE_HEADER)
    header["version"], header["data_type"], header["channels"] = 1, ImageDataType.FLOAT, 1
    header["matrix_size"], header["image_type"], header["image_series_index"] = (4, 3, 1), 1, 1
    return Image(header, np.full((1, 1, 3, 4), value, np.float32), {"DataRole": ["Image"]})


async def send(port: int, scan: SimulatedScan, **options: object) -> object:
    async with Client("127.0.0.1", port) as client:
        return await client.send_scan("sense", scan.header, scan.batches, **options)


async def test_images_texts_and_close_come_back_with_their_times(scan: SimulatedScan) -> None:
    async def script(peer: Peer) -> None:
        assert await peer.event() == ConfigFile("sense")
        assert await peer.event() == Header(scan.header)
        await peer.until_close()
        assert peer.n_readouts == scan.n_readouts
        await peer.say(peer.connection.text("one coil is noisy"))
        for value in (1.0, 2.0):
            await peer.say(peer.connection.image(an_image(value)))
        await peer.say(peer.connection.close())

    async with serving(script) as port:
        reply = await send(port, scan)
    assert [float(image.pixels[0, 0, 0, 0]) for image in reply.images] == [1.0, 2.0]
    assert reply.images[0].meta == {"DataRole": ["Image"]}
    assert (reply.texts, reply.closed, reply.acquisitions_sent) == (["one coil is noisy"], True, scan.n_readouts)
    assert 0 <= reply.sent_s <= reply.first_image_s <= reply.last_image_s <= reply.closed_s
    assert reply.check() is reply


async def test_parameters_travel_as_json_with_the_name(scan: SimulatedScan) -> None:
    async def script(peer: Peer) -> None:
        config = await peer.event()
        assert isinstance(config, ConfigText)
        assert '"pipeline": "sense"' in config.text
        assert '"parameters": {"iterations": 5}' in config.text
        await peer.until_close()
        await peer.say(peer.connection.close())

    async with serving(script) as port:
        reply = await send(port, scan, parameters={"iterations": 5})
    assert reply.closed


async def test_images_arrive_while_the_scan_is_still_being_sent() -> None:
    scan = simulate(np.ones((1, 64, 256), np.float32), Protocol(n_coils=32, repetitions=4))

    async def script(peer: Peer) -> None:
        await peer.event()
        await peer.event()
        await peer.event()
        await peer.say(peer.connection.image(an_image()))
        await peer.until_close()
        await peer.say(peer.connection.close())

    async with serving(script) as port:
        reply = await send(port, scan)
    assert reply.first_image_s < reply.sent_s


async def test_images_are_taken_though_the_server_does_not_read_meanwhile() -> None:
    """Both sides write more than the sockets hold, 30 MB each way, and the server reads only afterwards."""
    scan = simulate(np.ones((1, 64, 256), np.float32), Protocol(n_coils=32, repetitions=4))
    header = an_image().header.copy()
    header["matrix_size"] = 1024, 1024, 1
    large = Image(header, np.ones((1, 1, 1024, 1024), np.float32))

    async def script(peer: Peer) -> None:
        await peer.event()
        for _ in range(8):
            await peer.say(peer.connection.image(large))
        await peer.until_close()
        await peer.say(peer.connection.close())

    async with serving(script) as port:
        reply = await send(port, scan)
    assert len(reply.images) == 8
    assert reply.acquisitions_sent == scan.n_readouts


async def test_progress_counts_up_to_everything(scan: SimulatedScan) -> None:
    async def script(peer: Peer) -> None:
        await peer.until_close()
        await peer.say(peer.connection.image(an_image()))
        await peer.say(peer.connection.close())

    seen: list[Progress] = []
    async with serving(script) as port:
        reply = await send(port, scan, progress=seen.append)
    assert seen == sorted(seen, key=lambda step: (step.acquisitions, step.images))
    assert seen[-1].acquisitions == scan.n_readouts
    assert seen[-1].images == 1
    assert reply.bytes_sent >= seen[-1].bytes_sent > scan.n_readouts * 342


async def test_error_text_is_reported_with_the_words_of_the_server(scan: SimulatedScan) -> None:
    async def script(peer: Peer) -> None:
        await peer.event()
        await peer.say(peer.connection.text("ERROR unknown_pipeline: unknown pipeline 'sens'. Choose one."))
        await peer.say(peer.connection.close())
        await peer.until_close()

    async with serving(script) as port:
        reply = await send(port, scan)
    assert reply.closed
    with pytest.raises(ScanFailedError, match=r"unknown pipeline 'sens'") as caught:
        reply.check()
    assert caught.value.reply is reply


async def test_client_stops_sending_when_the_server_has_closed() -> None:
    scan = simulate(np.ones((1, 64, 256), np.float32), Protocol(n_coils=32))

    async def script(peer: Peer) -> None:
        await peer.event()
        await peer.say([*peer.connection.text("ERROR bad_header: no"), *peer.connection.close()])
        while await peer.reader.read(1 << 16):
            pass

    def endless():
        while True:
            yield from scan.batches

    async with serving(script) as port, asyncio.timeout(20), Client("127.0.0.1", port) as client:
        reply = await client.send_scan("sense", scan.header, endless())
    assert reply.errors == ["ERROR bad_header: no"]
    assert reply.sent_s is None


async def test_error_text_survives_a_connection_that_the_server_resets() -> None:
    scan = simulate(np.ones((1, 64, 256), np.float32), Protocol(n_coils=32))

    async def script(peer: Peer) -> None:
        await peer.event()
        await peer.say(peer.connection.text("ERROR busy: come back later"))
        await asyncio.sleep(0.1)
        peer.writer.transport.abort()

    async with serving(script) as port:
        reply = await send(port, scan)
    assert reply.closed is False
    assert reply.errors == ["ERROR busy: come back later"]


async def test_end_without_close_is_an_error_that_keeps_the_images(scan: SimulatedScan) -> None:
    async def script(peer: Peer) -> None:
        await peer.until_close()
        await peer.say(peer.connection.image(an_image()))

    async with serving(script) as port:
        reply = await send(port, scan)
    assert (len(reply.images), reply.closed) == (1, False)
    with pytest.raises(ScanFailedError, match="without CLOSE after 1 image; some may be missing"):
        reply.check()


async def test_close_without_images_is_an_error(scan: SimulatedScan) -> None:
    async def script(peer: Peer) -> None:
        await peer.until_close()
        await peer.say(peer.connection.close())

    async with serving(script) as port:
        reply = await send(port, scan)
    with pytest.raises(ScanFailedError, match="sent no images"):
        reply.check()


async def test_image_cut_short_is_an_error(scan: SimulatedScan) -> None:
    async def script(peer: Peer) -> None:
        await peer.until_close()
        await peer.say(peer.connection.image(an_image()))
        whole = b"".join(peer.connection.image(an_image()))
        await peer.say([whole[:-5]])

    async with serving(script) as port:
        with pytest.raises(ScanFailedError, match="broke the protocol") as caught:
            await send(port, scan)
    assert len(caught.value.reply.images) == 1


async def test_silence_ends_the_session(scan: SimulatedScan) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.until_close()
        await gone.wait()

    async with serving(script) as port:
        async with Client("127.0.0.1", port, silence_s=0.2) as client:
            with pytest.raises(ScanFailedError, match=r"nothing has moved for 0.2 s") as caught:
                await client.send_scan("sense", scan.header, scan.batches)
        gone.set()
    assert caught.value.code == "timeout"


async def test_no_server_is_said_plainly() -> None:
    async with serving(lambda peer: peer.until_close()) as port:
        pass
    with pytest.raises(ClientError, match=f"no server answers at 127.0.0.1 port {port}") as caught:
        async with Client("127.0.0.1", port):
            pass
    assert "echotrain serve" in caught.value.advice


async def test_failure_while_reading_the_scan_is_passed_on(scan: SimulatedScan) -> None:
    def broken():
        yield scan.batches[0]
        raise FileError("readout 9 is damaged")

    async with serving(lambda peer: peer.until_close()) as port, Client("127.0.0.1", port) as client:
        with pytest.raises(FileError, match="readout 9"):
            await client.send_scan("sense", scan.header, broken())


async def test_waveforms_travel_among_the_readouts(scan: SimulatedScan) -> None:
    first, last = (batch.headers["acquisition_time_stamp"] for batch in (scan.batches[1], scan.batches[-1]))
    waveforms = []
    for stamp in (int(first[0]) - 1, int(last[-1]) + 99):
        header = np.zeros((), WAVEFORM_HEADER)
        header["time_stamp"], header["channels"], header["number_of_samples"] = stamp, 1, 4
        waveforms.append(Waveform(header, np.arange(4, dtype=np.uint32).reshape(1, 4)))
    peers: list[Peer] = []

    async def script(peer: Peer) -> None:
        peers.append(peer)
        await peer.until_close()
        await peer.say(peer.connection.close())

    async with serving(script) as port:
        await send(port, scan, waveforms=waveforms)
    data = peers[0].kinds[2:]
    positions = [number for number, kind in enumerate(data) if kind is Waveform]
    assert len(positions) == 2
    assert 0 < positions[0] < positions[1]
    assert data[positions[1] + 1] is Close
    assert Acquisitions in data[positions[0] : positions[1]]


async def test_query_brings_the_answer() -> None:
    async def script(peer: Peer) -> None:
        question = await peer.event()
        assert isinstance(question, Query)
        await peer.say(peer.connection.response(question.correlation, "echotrain 0.1.0"))
        await peer.until_close()
        await peer.say(peer.connection.close())

    async with serving(script) as port, Client("127.0.0.1", port) as client:
        assert await client.query("gadgetron::info") == "echotrain 0.1.0"
