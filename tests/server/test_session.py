# ruff: noqa: ASYNC110 - tests watch from outside what has no event
"""Sessions over a real socket with an executor that does what the test says."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ReconstructionError
from pipelines.mrd import Acquisitions
from pipelines.simulate import SimulatedScan
from server.client import Client
from server.errors import WorkerLostError
from server.metrics import Metrics
from server.wire.connection import Connection, Role


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def quiet(server: Any) -> None:
    """Wait until no session is left."""
    async with asyncio.timeout(60):
        while server.sessions:
            await asyncio.sleep(0.01)


async def jobs(executor: Any, n: int) -> None:
    """Wait until so many jobs have come."""
    async with asyncio.timeout(60):
        while len(executor.jobs) < n:
            await asyncio.sleep(0.01)


async def send(server: Any, scan: SimulatedScan, config: str = "zero_filled") -> Any:
    async with Client("127.0.0.1", server.port) as client:
        return await client.send_scan(config, scan.header, scan.batches)


def stream(scan: SimulatedScan, config: str = "zero_filled") -> bytes:
    connection = Connection(Role.CLIENT)
    parts = [*connection.config_file(config), *connection.header(scan.header)]
    return b"".join(parts + [part for batch in scan.batches for part in connection.acquisitions(batch)])


async def test_images_keep_the_order_of_the_groups_whatever_ends_first(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.delays_s = {0: 0.2, 1: 0.1, 4: 0.05}
    server = await serving()
    reply = await send(server, small_scan)
    assert [int(image.header["image_index"]) for image in reply.images] == [i for i in range(12) for _ in range(2)]
    assert [int(image.header["image_series_index"]) for image in reply.images] == [1, 2] * 12


async def test_provenance_names_the_session(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    server = await serving()
    await send(server, small_scan)
    sessions = {job.provenance["ReconSession"] for job in executor.jobs}
    assert len(sessions) == 1
    assert sessions == {job.session for job in executor.jobs}


@pytest.mark.parametrize(
    ("failure", "code", "outcome"),
    [
        (ReconstructionError("the data are zero"), "reconstruction_failed", "pipeline_error"),
        (WorkerLostError("two workers died"), "worker_lost", "worker_lost"),
        (RuntimeError("secret: ZZ^CANARY"), "server", "server_error"),
    ],
)
async def test_what_was_complete_before_a_failed_job_is_delivered_and_the_error_is_told_once(
    serving: Any,
    executor: Any,
    small_scan: SimulatedScan,
    failure: Exception,
    code: str,
    outcome: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    executor.failures = {3: failure}
    server = await serving()
    reply = await send(server, small_scan)
    assert len(reply.images) == 6
    assert len(reply.texts) == 1
    assert reply.texts[0].startswith(f"ERROR {code}: ")
    assert reply.closed
    assert value(server.metrics, "echotrain_sessions_total", pipeline="zero_filled", outcome=outcome) == 1
    written = capsys.readouterr()
    assert "CANARY" not in reply.texts[0] + written.out + written.err


async def test_too_much_waiting_stops_the_reading_and_loses_nothing(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    server = await serving(limits__session_waiting_jobs=2, limits__receive_buffer_bytes=4096)
    session = asyncio.create_task(send(server, small_scan))
    await jobs(executor, 3)
    await asyncio.sleep(0.3)  # in which no more may come
    assert 3 <= len(executor.jobs) <= 5
    assert len(executor.slots.taken) <= 6
    executor.gate.set()
    reply = await session
    assert len(reply.images) == 24
    await quiet(server)
    assert value(server.metrics, "echotrain_backpressure_seconds_total", side="read_paused") > 0.2


async def test_a_full_server_pauses_only_sessions_that_have_jobs(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    server = await serving(limits__waiting_bytes=1 << 20, limits__receive_buffer_bytes=4096)
    server._waiting.change(2 << 20)
    sessions = [asyncio.create_task(send(server, small_scan)) for _ in range(3)]
    await jobs(executor, 3)
    await asyncio.sleep(0.3)  # in which no more may come
    assert 3 <= len(executor.jobs) <= 9
    server._waiting.change(-2 << 20)
    executor.gate.set()
    assert [len((await session).images) for session in sessions] == [24] * 3
    assert server._waiting.total_bytes == 0


async def test_a_session_without_jobs_goes_on_whatever_others_hold(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving(limits__waiting_bytes=1 << 20, limits__receive_buffer_bytes=4096)
    server._waiting.change(2 << 20)
    async with asyncio.timeout(10):
        reply = await send(server, small_scan)
    assert len(reply.images) == 24
    server._waiting.change(-2 << 20)


async def test_reading_stops_before_the_memory_for_raw_data_runs_out(serving: Any, executor: Any) -> None:
    server = await serving(limits__memory_bytes=16 << 20)
    assert server._waiting.limit_bytes == 8 << 20


async def test_groups_completed_by_the_batch_of_a_bad_readout_are_delivered_before_the_error(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    noise, *imaging = small_scan.batches
    headers = np.concatenate([batch.headers for batch in imaging])
    samples = np.concatenate([batch.samples for batch in imaging])
    headers["encoding_space_ref"][-1] = 9
    bad = replace(small_scan, batches=[noise, Acquisitions(headers, samples)])
    server = await serving()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    # In one piece, so that good and bad readouts come as one batch.
    writer.write(stream(bad) + struct.pack("<H", 4))
    data = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert len(executor.jobs) == 11
    assert b"ERROR bad_acquisition: encoding_space_ref 9" in data
    assert data.rindex(b"ERROR") > data.rindex(b"ReconUncertaintyKind")
    assert data.endswith(struct.pack("<H", 4))


@pytest.mark.parametrize("place", ["before the header", "after data"])
async def test_a_json_configuration_in_the_wrong_place_is_said_to_be_ignored(
    serving: Any, executor: Any, small_scan: SimulatedScan, place: str
) -> None:
    configuration = b'{"parameters": {"combine": "sensitivity"}}'
    text = struct.pack("<HI", 5, len(configuration)) + configuration
    data = stream(small_scan)
    at = 1026 if place == "before the header" else len(data)
    server = await serving()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data[:at] + text * 3 + data[at:] + struct.pack("<H", 4))
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert len(executor.jobs) == 12
    assert executor.jobs[0].parameters["combine"] == "rss"
    assert answer.count(b"WRN a JSON configuration is read only right behind the header") == 1


async def test_progress_is_told_while_jobs_run_and_images_follow(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    executor.progress = {0: ("learns: 40 %",), 1: ("learns:\n10 %",)}
    server = await serving()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(stream(small_scan) + struct.pack("<H", 4))
    async with asyncio.timeout(10):
        told = await reader.readuntil(b"\\n10 %")
        (session,) = server.sessions.values()
        assert session.report.warnings == 0
        executor.gate.set()
        rest = await reader.read()
    writer.close()
    texts = [b"INFO learns: 40 %", b"INFO learns:\\n10 %"]
    assert told == b"".join(struct.pack("<HI", 5, len(text)) + text for text in texts)
    assert rest.startswith(struct.pack("<H", 1022))
    assert b"INFO" not in rest
    assert rest.endswith(struct.pack("<H", 4))


async def test_progress_changes_no_images_and_is_no_error(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.progress = dict.fromkeys(range(12), ("learns: 40 %",))
    reply = await send(await serving(), small_scan)
    assert len(reply.images) == 24
    assert reply.texts == ["INFO learns: 40 %"] * 12
    reply.check()


async def test_a_client_that_takes_nothing_hears_no_progress(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    server = await serving()
    sending = asyncio.create_task(send(server, small_scan))
    await jobs(executor, 1)
    (session,) = server.sessions.values()
    session.socket.pause_writing()
    session._tell_progress("learns: 40 %")
    session.socket.resume_writing()
    executor.gate.set()
    assert (await sending).texts == []


async def test_a_client_that_does_not_read_is_given_up(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    executor.columns, executor.rows = 65_535, 16
    server = await serving(timeouts__send_s=0.3, timeouts__linger_s=0.2)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.transport.pause_reading()
    writer.write(stream(small_scan) + struct.pack("<H", 4))
    await jobs(executor, 1)
    await quiet(server)
    assert value(server.metrics, "echotrain_sessions_total", pipeline="zero_filled", outcome="timeout") == 1
    assert value(server.metrics, "echotrain_backpressure_seconds_total", side="write_blocked") > 0.2
    writer.transport.abort()


async def test_a_session_that_is_over_holds_no_buffer_and_no_frames(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving(timeouts__linger_s=0.1)
    executor.gate.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(stream(small_scan)[:-100])
    while not server.sessions:
        await asyncio.sleep(0.01)
    (session,) = server.sessions.values()
    writer.write_eof()
    assert b"ended its stream inside" in await reader.read()
    writer.close()
    await quiet(server)
    assert session._connection.capacity == 0
    assert session.error.__traceback__ is None


async def test_a_client_that_vanishes_has_its_jobs_cancelled(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    server = await serving()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(stream(small_scan))
    await writer.drain()
    await jobs(executor, 12)
    reset = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    writer.transport.abort()
    await quiet(server)
    assert not executor.slots.taken
    assert value(server.metrics, "echotrain_sessions_total", pipeline="zero_filled", outcome="client_abort") == 1


async def test_a_job_that_takes_too_long_is_an_error(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    executor.gate.clear()
    server = await serving(timeouts__reconstruction_s=0.2)
    reply = await send(server, small_scan)
    assert "did not end within 0.2 s" in reply.texts[0]
    assert reply.closed


async def test_a_stopping_server_refuses_new_scans_and_ends_old_ones_after_the_grace_period(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    server = await serving(timeouts__linger_s=0.2)
    port = server.port
    session = asyncio.create_task(send(server, small_scan))
    await jobs(executor, 12)
    stopping = asyncio.create_task(server.stop(0.3))
    await asyncio.sleep(0.05)
    assert "shutting down" in server.why_not_ready()
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", port)
    reply = await session
    await stopping
    assert reply.closed
    assert reply.texts[0].startswith("ERROR shutting_down: ")
    assert executor.stopped


async def test_a_session_is_counted_and_listed_while_it_lives(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.gate.clear()
    server = await serving()
    session = asyncio.create_task(send(server, small_scan))
    await jobs(executor, 12)
    (live,) = [each.describe() for each in server.sessions.values()]
    assert live["pipeline"] == "zero_filled"
    assert live["waiting_jobs"] == 12
    assert live["groups"] == 12
    assert value(server.metrics, "echotrain_sessions_active") == 1
    executor.gate.set()
    await session
    await quiet(server)
    text = server.metrics.text().decode()
    assert 'echotrain_sessions_total{outcome="ok",pipeline="zero_filled"} 1.0' in text
    assert 'echotrain_sent_images_total{kind="uncertainty",pipeline="zero_filled"} 12.0' in text
    assert 'echotrain_stage_duration_seconds_sum{pipeline="zero_filled",stage="recon"} 3.0' in text
    assert 'echotrain_queue_wait_seconds_sum{pipeline="zero_filled"} 6.0' in text
    assert 'echotrain_received_messages_total{type="acquisition"} 388.0' in text
    assert "echotrain_ready 1.0" in text


async def test_names_of_peers_never_become_labels(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    server = await serving()
    await send(server, small_scan, "ZZ^CANARY")
    assert b"CANARY" not in server.metrics.text()


async def test_one_listener_serves_both_address_families(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving(listen__host="")
    for host in ("127.0.0.1", "::1"):
        async with Client(host, server.port) as client:
            reply = await client.send_scan("zero_filled", small_scan.header, small_scan.batches)
        assert len(reply.images) == 24
        assert reply.closed


async def test_integer_pixels_have_one_scale_a_series_and_leave_the_deviation_float(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving(emission__pixels="uint16")
    reply = await send(server, small_scan)
    magnitudes, deviations = reply.images[::2], reply.images[1::2]
    assert {image.pixels.dtype.name for image in magnitudes} == {"uint16"}
    assert {image.pixels.dtype.name for image in deviations} == {"float32"}
    assert len({image.meta["RescaleSlope"][0] for image in reply.images[2:]}) == 1
    slope = float(magnitudes[-1].meta["RescaleSlope"][0])
    # The executor's images hold their own number; the first that is not zero sets the scale, with room for four times.
    assert [round(float(image.pixels.max()) * slope) for image in magnitudes[:5]] == [0, 1, 2, 3, 4]
    assert sum("clipped" in text for text in reply.texts) == 1
