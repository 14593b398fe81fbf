"""The commands as a user runs them, and a scripted server for those that need one."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipelines.mrd import IMAGE_HEADER, AcquisitionFlag, Acquisitions, Image, ImageDataType, flagged
from server import cli
from server.wire.connection import Connection, Role
from server.wire.messages import Close, ConfigFile, ConfigText, Header


@dataclass
class Outcome:
    status: int
    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        return self.output.strip().splitlines()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `echotrain ARGUMENTS...` in this process, with the exit status that the shell would see."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["echotrain", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@dataclass
class ScriptedServer:
    """Answers every scan with an image and an uncertainty map a slice, or with what `answer` says."""

    port: int = 0
    configs: list[str] = field(default_factory=list)
    readouts: int = 0
    headers: list[bytes] = field(default_factory=list)
    received_images: list[Image] = field(default_factory=list)
    error_text: str = ""
    says_close: bool = True

    def images(self, slices: set[int]) -> Iterator[Image]:
        for series, kind in ((1, {"ReconPipeline": ["sense"]}), (2, {"ReconUncertaintyKind": ["noise"]})):
            for number in sorted(slices):
                header = np.zeros((), IMAGE_HEADER)
                header["version"], header["data_type"], header["channels"] = 1, ImageDataType.FLOAT, 1
                header["matrix_size"], header["field_of_view"] = (32, 32, 1), (200, 200, 5)
                header["image_series_index"], header["slice"], header["image_type"] = series, number, 1
                header["position"][2] = 6.0 * number
                header["read_dir"], header["phase_dir"], header["slice_dir"] = np.eye(3)
                pixels = np.random.default_rng(number).random((1, 1, 32, 32), np.float32)
                yield Image(header, pixels, kind)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, slices = Connection(Role.SERVER), set()
        while not isinstance(event := connection.next_event(), Close):
            match event:
                case ConfigFile(name) | ConfigText(name):
                    self.configs.append(name)
                case Header(xml):
                    self.headers.append(xml)
                case Image():
                    self.received_images.append(event)
                    slices.add(int(event.header["slice"]))
                case Acquisitions():
                    self.readouts += len(event)
                    imaging = event.headers[~flagged(event.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT)]
                    slices.update(imaging["idx"]["slice"].tolist())
                case None:
                    target = connection.writable()
                    data = await reader.read(len(target))
                    target[: len(data)] = data
                    connection.received(len(data))
                    if not data:
                        connection.end_of_input()
        buffers = [part for image in self.images(slices) for part in connection.image(image)]
        if self.error_text:
            buffers += connection.text(self.error_text)
        if self.says_close:
            buffers += connection.close()
        writer.write(b"".join(buffers))
        await writer.drain()
        writer.close()


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """A `ScriptedServer` on a free port, in a thread with its own event loop."""
    script, ready, loop = ScriptedServer(), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(script.accept, "127.0.0.1", 0)
        script.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield script
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
