"""Sessions with Gadgetron over a real socket, with an executor that does what the test says."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ReconstructionError
from pipelines.gadgetron import ImageArray
from pipelines.mrd import Image
from pipelines.phantom import head_phantom
from pipelines.scan_header import CalibrationMode, parse_scan_header
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.wire.connection import Connection, Role
from server.wire.messages import Buffers, Close, Event, PeerError
from tests import gadgetron_chain as chain
from tests.server.wire import examples

ZERO_FILLED = "<configuration><pipeline>zero_filled</pipeline></configuration>"


@dataclass
class Parent:
    """Gadgetron's side with our own wire."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: Connection = field(default_factory=lambda: Connection(Role.PARENT))

    def begin(self, scan: SimulatedScan, configuration: str = ZERO_FILLED) -> None:
        self.say(self.connection.config_text(configuration))
        self.say(self.connection.header(scan.header))

    def say(self, buffers: Buffers) -> None:
        self.writer.write(b"".join(buffers))

    async def hear(self) -> list[Event]:
        """All that the node says until it closes."""
        heard: list[Event] = []
        async with asyncio.timeout(20):
            while data := await self.reader.read(1 << 16):
                rest = memoryview(data)
                while rest:
                    room = self.connection.writable()
                    n = min(len(room), len(rest))
                    room[:n] = rest[:n]
                    rest = rest[n:]
                    self.connection.received(n)
                    while (event := self.connection.next_event()) is not None:
                        heard.append(copy.deepcopy(event))  # readouts lie in the receive buffer
        self.writer.close()
        await self.writer.wait_closed()
        return heard

    async def close(self) -> list[Event]:
        self.say(self.connection.close())
        return await self.hear()


async def attach(serving: Any, **settings: object) -> tuple[Any, Parent]:
    server = await serving(gadgetron__enabled=True, gadgetron__port=0, **settings)
    return server, Parent(*await asyncio.open_connection("127.0.0.1", server.gadgetron_port))


def kinds(heard: list[Event]) -> list[str]:
    return [type(event).__name__ for event in heard]


async def test_what_comes_back_keeps_its_place_behind_the_jobs_before_it(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    _, parent = await attach(serving)
    parent.begin(small_scan)
    batch = chain.joined(small_scan.batches)
    for repetition in range(2):
        part = chain.taken(batch, batch.headers["idx"]["repetition"] == repetition)
        parent.say(parent.connection.bucket(chain.bucket_of(part)))
        parent.say(parent.connection.image_array(examples.image_array()))
    parent.say(parent.connection.waveform(examples.waveform()))
    asyncio.get_running_loop().call_later(0.3, executor.gate.set)

    heard = await parent.close()

    assert kinds(heard) == ["Image", "Image", "ImageArray"] * 2 + ["Waveform", "Close"]
    assert [int(event.header["image_index"]) for event in heard if isinstance(event, Image)] == [0, 0, 1, 1]


async def test_gadgetron_hears_no_progress(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    executor.progress = dict.fromkeys(range(12), ("learns: 40 %",))
    _, parent = await attach(serving)
    parent.begin(small_scan)
    parent.say(parent.connection.acquisitions(chain.joined(small_scan.batches)))

    heard = await parent.close()

    assert kinds(heard) == ["Image"] * 24 + ["Close"]


async def test_messages_that_only_come_back_are_not_read_without_end(
    serving: Any, executor: Any, small_scan: Any
) -> None:
    executor.gate.clear()
    server, parent = await attach(serving, limits__session_waiting_bytes=1 << 20, limits__receive_buffer_bytes=4096)
    parent.begin(small_scan)
    batch = chain.joined(small_scan.batches)
    parent.say(parent.connection.bucket(chain.bucket_of(chain.taken(batch, batch.headers["idx"]["repetition"] == 0))))
    array = examples.image_array((1, 1, 1, 1, 1, 64, 64))  # 32 kB
    for _ in range(200):
        parent.say(parent.connection.image_array(array))
    await asyncio.sleep(0.5)
    (session,) = server.sessions.values()
    assert session.describe()["waiting_bytes"] < 3 << 20
    executor.gate.set()

    heard = await parent.close()

    assert kinds(heard).count("ImageArray") == 200
    assert len({event.data.tobytes() for event in heard if isinstance(event, ImageArray)}) == 1


async def test_the_failure_of_a_job_is_one_error_after_what_was_complete(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.failures = {2: ReconstructionError("the data are zero")}
    _, parent = await attach(serving)
    parent.begin(small_scan)
    parent.say(parent.connection.acquisitions(chain.joined(small_scan.batches)))

    heard = await parent.close()

    assert kinds(heard) == ["Image"] * 4 + ["PeerError", "Close"]
    assert isinstance(heard[-2], PeerError)
    assert heard[-2].text.startswith("ERROR reconstruction_failed: the data are zero. ")


async def test_a_full_server_says_so_with_an_error_and_never_with_a_text(
    serving: Any, small_scan: SimulatedScan
) -> None:
    server, first = await attach(serving, limits__sessions=1)
    first.begin(small_scan)
    second = Parent(*await asyncio.open_connection("127.0.0.1", server.gadgetron_port))

    heard = await second.hear()

    assert kinds(heard) == ["PeerError", "Close"]
    assert heard[0].text.startswith("ERROR busy: ")
    assert heard[1] == Close()
    assert kinds(await first.close()) == ["Close"]


@pytest.mark.parametrize(("part", "words"), [(0.5, ["ERROR over_limit: "]), (2, [])])
async def test_messages_may_be_as_large_as_the_settings_for_gadgetron_say(
    serving: Any, small_scan: SimulatedScan, part: float, words: list[str]
) -> None:
    batch = chain.joined(small_scan.batches)
    most = int(part * batch.samples.nbytes)
    _, parent = await attach(serving, gadgetron__message_bytes=most, limits__message_bytes=8192)
    parent.begin(small_scan)
    parent.say(parent.connection.bucket(chain.bucket_of(batch)))

    heard = await parent.close()

    assert [event.text[: len("ERROR over_limit: ")] for event in heard if isinstance(event, PeerError)] == words


async def test_noise_and_separate_calibration_wait_for_the_readout_that_tells_the_oversampling(
    serving: Any, executor: Any
) -> None:
    protocol = Protocol(
        n_coils=2, acceleration=2, calibration_lines=12, calibration_mode=CalibrationMode.SEPARATE, noise_readouts=3
    )
    scan = simulate(head_phantom(1, 32, 32), protocol)
    noise, batch = chain.joined(scan.batches, noise=True), chain.without_oversampling(chain.joined(scan.batches))
    is_calibration = ~chain.is_data(batch)
    server, parent = await attach(serving)
    for kind in ("acquisitions", "bucket", "recon_data"):
        executor.jobs.clear()
        if kind != "acquisitions":
            parent = Parent(*await asyncio.open_connection("127.0.0.1", server.gadgetron_port))
        parent.begin(scan)
        parent.say(parent.connection.acquisitions(noise))
        if kind == "recon_data":
            recon = chain.recon_data_of(batch, parse_scan_header(scan.header))
            parent.say(parent.connection.recon_data(recon))
        elif kind == "bucket":
            parent.say(parent.connection.bucket(chain.bucket_of(batch)))
        else:
            parent.say(parent.connection.acquisitions(chain.taken(batch, is_calibration)))
            parent.say(parent.connection.acquisitions(chain.taken(batch, ~is_calibration)))

        heard = await parent.close()

        assert kinds(heard) == ["Image", "Image", "Close"]
        (job,) = executor.jobs
        assert job.group.noise.n_samples == noise.samples.shape[0] * noise.n_samples
        assert job.group.calibration.kspace.shape == (2, 1, 12, 32)
        assert job.group.scan.encodings[0].encoded.matrix[0] == 32


async def test_nothing_is_held_of_noise_without_end(serving: Any, small_scan: SimulatedScan) -> None:
    noise = chain.joined(small_scan.batches, noise=True)
    _, parent = await attach(serving, limits__session_open_bytes=2 * noise.samples.nbytes)
    parent.begin(small_scan)
    for _ in range(3):
        parent.say(parent.connection.acquisitions(noise))

    heard = await parent.close()

    assert heard[0].text.startswith("ERROR over_limit: ")


async def test_a_pipeline_for_images_sends_readouts_back_and_refuses_gathered_k_space(
    serving: Any, small_scan: SimulatedScan
) -> None:
    _, parent = await attach(serving)
    parent.begin(small_scan, '<configuration pipeline="pass_through"/>')
    batch = chain.joined(small_scan.batches)
    first = chain.taken(batch, np.arange(len(batch)) < 5)
    parent.say(parent.connection.acquisitions(first))
    parent.say(parent.connection.waveform(examples.waveform()))
    parent.say(parent.connection.bucket(chain.bucket_of(batch)))

    heard = await parent.hear()

    assert examples.plain_all(heard[:1]) == examples.plain(first)
    assert kinds(heard) == ["Acquisitions", "Waveform", "PeerError", "Close"]
    assert "k-space was sent" in heard[2].text


@pytest.mark.parametrize("text", ["", "null", "<configuration pipeline='null'/>"])
async def test_a_node_for_nothing_takes_everything_and_closes(
    serving: Any, small_scan: SimulatedScan, text: str
) -> None:
    _, parent = await attach(serving)
    parent.begin(small_scan, text)
    if text:
        parent.say(parent.connection.bucket(chain.bucket_of(chain.joined(small_scan.batches))))
        parent.say(parent.connection.recon_data(examples.MINIMAL[1023]))
        parent.say(parent.connection.image(examples.image()))

    assert kinds(await parent.close()) == ["Close"]
