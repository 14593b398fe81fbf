"""Whole scans through a real server process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.mrd import Image
from pipelines.phantom import head_phantom
from pipelines.pipeline import Pipeline
from pipelines.registry import find
from pipelines.scan_header import parse_scan_header
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.client import Client
from server.config import Settings, load
from server.execution.process_pool import ProcessExecutor
from server.listener import Server
from server.metrics import Metrics
from tests.end_to_end.conftest import Peer


def reconstruct_directly(scan: SimulatedScan, name: str) -> list[Image]:
    """The same scan without server, socket or worker."""
    assembler = Assembler(parse_scan_header(scan.header), find(name).grouping, HeapSlots())
    pipeline = Pipeline(name, {}, "cpu")
    groups = [group for batch in scan.batches for group in assembler.add(batch)] + assembler.finish()
    return [image for group in groups for image in pipeline(group, {}).images]


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
async def test_images_equal_those_of_the_pipeline_to_the_last_bit(running: Any, scan: SimulatedScan, name: str):
    async with Client("127.0.0.1", running.port) as client:
        reply = await client.send_scan(name, scan.header, scan.batches)
    expected = reconstruct_directly(scan, name)
    assert reply.closed
    assert not reply.texts
    assert len(reply.images) == len(expected) == 2 * 2 * 2
    for got, wanted in zip(reply.images, expected, strict=True):
        np.testing.assert_array_equal(got.pixels, wanted.pixels)
        for field in wanted.header.dtype.names:
            if field != "attribute_string_len":
                np.testing.assert_array_equal(got.header[field], wanted.header[field], err_msg=field)
        only_here = set(got.meta) - set(wanted.meta)
        assert "ReconSession" in only_here
        assert only_here <= {"ReconSession", "ReconSoftwareVersion"}
        assert {key: got.meta[key] for key in wanted.meta} == wanted.meta


async def test_magnitude_comes_before_its_uncertainty_in_the_order_of_the_scan(running: Any, scan: SimulatedScan):
    async with Client("127.0.0.1", running.port) as client:
        reply = await client.send_scan("zero_filled", scan.header, scan.batches)
    order = [
        (int(i.header["repetition"]), int(i.header["slice"]), int(i.header["image_series_index"])) for i in reply.images
    ]
    assert order == [(r, s, series) for r in range(2) for s in range(2) for series in (1, 2)]


def test_a_client_made_of_ismrmrd_python_gets_its_images(running: Any, scan: SimulatedScan):
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock:
        sock.sendall(struct.pack("<H1024s", 1, b"default.xml"))
        sock.sendall(struct.pack("<HI", 3, len(scan.header) + 1) + scan.header + b"\0")
        for batch in scan.batches:
            for header, samples in zip(batch.headers, batch.complex_samples(), strict=True):
                readout = ismrmrd.Acquisition.from_array(samples)
                readout.setHead(ismrmrd.AcquisitionHeader.from_buffer_copy(header.tobytes()))
                sock.sendall(struct.pack("<H", 1008))
                readout.serialize_into(sock.sendall)
        sock.sendall(struct.pack("<H", 4))
        stream = sock.makefile("rb")
        images = []
        while (message_id := struct.unpack("<H", stream.read(2))[0]) == 1022:
            images.append(ismrmrd.Image.deserialize_from(stream.read))
        assert message_id == 4
    assert [image.image_series_index for image in images] == [1, 2] * 4
    wanted = reconstruct_directly(scan, "zero_filled")
    np.testing.assert_array_equal(images[0].data, wanted[0].pixels)
    assert ismrmrd.Meta.deserialize(images[1].attribute_string)["ReconUncertaintyKind"] == "noise"


async def test_scans_at_the_same_time_each_get_their_own_images(running: Any, scan: SimulatedScan):
    async def one(name: str) -> list[Image]:
        async with Client("127.0.0.1", running.port) as client:
            return (await client.send_scan(name, scan.header, scan.batches)).images

    names = ["zero_filled", "sense"] * 3
    for name, images in zip(names, await asyncio.gather(*map(one, names)), strict=True):
        assert len(images) == 8
        assert {image.meta["ReconPipeline"][0] for image in images} == {name}
        assert len({image.meta["ReconSession"][0] for image in images}) == 1


async def test_parameters_reach_the_pipeline_from_both_kinds_of_json(
    running: Any, scan: SimulatedScan, connect: Any, says: Any
):
    async with Client("127.0.0.1", running.port) as client:
        ours = await client.send_scan("sense", scan.header, scan.batches, {"iterations": 1})
    assert {image.meta["ReconIterations"][0] for image in ours.images} == {"1"}

    fire = '{"version": "1.1.0", "parameters": {"config": "sense", "customconfig": "", "iterations": "1"}}'
    peer = connect()
    peer.say(says.config("openrecon"), says.text(3, scan.header), says.text(5, fire), says.readouts(scan), says.CLOSE)
    heard = peer.hear()
    assert {image.meta["ReconIterations"][0] for image in heard.images} == {"1"}
    assert len(heard.images) == 8


def test_error_text_arrives_although_the_client_is_still_sending(connect: Any, says: Any, scan: SimulatedScan):
    peer = connect()
    failed: list[OSError] = []

    def flood() -> None:
        try:
            peer.say(
                says.config("zero_filled"), says.text(3, scan.header), says.readouts(scan), struct.pack("<H", 4242)
            )
            for _ in range(32):
                peer.say(bytes(1 << 20))
        except OSError as error:
            failed.append(error)

    sender = threading.Thread(target=flood)
    sender.start()
    heard = peer.hear()
    sender.join()
    assert not failed
    assert "4242" in heard.error
    assert heard.closed
    assert len(heard.images) == 8


async def test_all_images_come_although_the_worker_is_killed():
    scan_settings = {"limits.sessions": 1, "listen.port": 0, "admin.enabled": False}
    settings: Settings = load(flags=scan_settings, environment={}).settings
    scan = simulate(head_phantom(6, 96, 96), Protocol(n_coils=4, acceleration=2, seed=3))
    executor = ProcessExecutor(1, "cpu", 1, 1 << 28)
    server = Server(settings, executor, Metrics())
    await server.start()
    try:
        async with Client("127.0.0.1", server.port) as client:
            session = asyncio.create_task(client.send_scan("sense", scan.header, scan.batches))
            due = time.monotonic() + 30
            while not executor.health().workers.get("busy"):
                assert time.monotonic() < due
                await asyncio.sleep(0.002)
            os.kill(executor.worker_pids[0], signal.SIGKILL)
            reply = await session
        assert executor.health().restarts == {"crash": 1}
        assert 'echotrain_jobs_retried_total{pipeline="sense",result="ok"} 1.0' in server.metrics.text().decode()
    finally:
        await server.stop(0)
    assert reply.closed
    assert not reply.texts
    expected = reconstruct_directly(scan, "sense")
    assert len(reply.images) == len(expected)
    for got, wanted in zip(reply.images, expected, strict=True):
        np.testing.assert_array_equal(got.pixels, wanted.pixels)


def test_a_cold_server_answers_before_its_workers_are_warm(start_server: Any, says: Any):
    server = start_server("limits.sessions=1")
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
            sock.sendall(says.config("isalive.xml") + says.CLOSE)
            assert sock.recv(100) == says.CLOSE
    finally:
        assert server.stop() == 0


def test_the_front_process_never_loads_torch(running: Any):
    libraries = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "uvloop" in libraries
    assert "torch" not in libraries
    script = "import server.commands.serve, server.admin, server.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("hurry", [False, True])
def test_a_lame_duck_says_that_it_is_not_ready_and_still_takes_scans(
    start_server: Any, says: Any, scan: SimulatedScan, hurry: bool
):
    server = start_server("timeouts.lame_duck_s=60" if hurry else "timeouts.lame_duck_s=3", "timeouts.linger_s=0.2")
    server.wait_until_ready()
    server.process.send_signal(signal.SIGTERM)
    due = time.monotonic() + 30
    while server.is_ready():
        assert time.monotonic() < due
        time.sleep(0.05)
    peer = Peer(socket.create_connection(("127.0.0.1", server.port), timeout=20))
    peer.say(says.config("zero_filled") + says.text(3, scan.header), says.readouts(scan), says.CLOSE)
    heard = peer.hear()
    assert len(heard.images) == 8
    assert not heard.error
    peer.sock.close()
    if hurry:
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_a_server_that_is_told_to_stop_finishes_the_running_scan(start_server: Any, says: Any, scan: SimulatedScan):
    server = start_server("pipelines.default=zero_filled", "timeouts.linger_s=0.2")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(says.config("default") + says.text(3, scan.header))
        sock.sendall(says.readouts(scan, 2))
        due = time.monotonic() + 30
        while not any(session["acquisitions"] for session in json.loads(server.get("/sessions"))["sessions"]):
            assert time.monotonic() < due
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        sock.sendall(says.readouts(scan)[len(says.readouts(scan, 2)) :] + says.CLOSE)
        stream = sock.makefile("rb")
        n_images = 0
        while (message_id := struct.unpack("<H", stream.read(2))[0]) == 1022:
            ismrmrd.Image.deserialize_from(stream.read)
            n_images += 1
        assert message_id == 4
    assert n_images == 8
    assert server.process.wait(30) == 0
