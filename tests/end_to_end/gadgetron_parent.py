"""Gadgetron's side of an external node, made of the readers and writers of the package `gadgetron`.

The package's own `Connection` only ever is the child, so this speaks first: configuration, header, messages, CLOSE.
"""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

import ismrmrd
import numpy as np
from gadgetron.external import constants, readers
from gadgetron.external.connection import Connection
from gadgetron.types import image_array, recon_data

from pipelines.gadgetron import ImageArray, ReconBuffer, ReconData
from pipelines.mrd import Acquisitions, Image, Waveform
from tests.server.wire import examples
from tests.server.wire.gadgetron_examples import bucket_bytes


@dataclass
class Reply:
    """What the node said until it closed."""

    items: list[tuple[int, Any]] = field(default_factory=list)
    error: str = ""
    closed: bool = False
    unknown: int = 0
    broken: str = ""

    def of(self, message_id: int) -> list[Any]:
        return [item for found, item in self.items if found == message_id]

    @property
    def pixels(self) -> list[np.ndarray]:
        return [image.data[:, 0] for image in self.of(1022)]


class Parent:
    """One connection to a node; reads in a thread of its own while it writes, as Gadgetron does."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._wire = Connection.SocketWrapper(sock)
        self._wire.read = self._read  # the package's spins for ever when the other end has died
        self._writers = Connection._default_writers()
        self.reply = Reply()
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def begin(self, configuration: str, header: bytes) -> None:
        text = f'<?xml version="1.0"?>\n{configuration}'.encode()
        self.raw(struct.pack("<HI", 2, len(text)) + text)
        self.raw(struct.pack("<HI", 3, len(header)) + header)

    def send(self, item: Any) -> None:
        """Anything that the package has a writer for."""
        writer = next(write for accepts, write in self._writers if accepts(item))
        writer(self._wire, item)

    def raw(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._sock.sendall(data)

    def close(self) -> Reply:
        """Say CLOSE, and hear the node out."""
        self.raw(struct.pack("<H", 4))
        return self.wait()

    def wait(self, timeout_s: float = 90) -> Reply:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the node never closed the connection"
        self._sock.close()
        return self.reply

    def vanish(self) -> None:
        """What the kernel does for a process that is killed."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read(self, n: int) -> bytes:
        data = bytearray()
        while len(data) < n:
            part = self._sock.recv(int(n) - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _hear(self) -> None:
        known = Connection._default_readers()
        try:
            while True:
                message_id = readers.read(self._wire, constants.GadgetMessageIdentifier)
                if message_id == 4:
                    self.reply.closed = True
                elif message_id == 8:
                    self.reply.error = readers.read_byte_string(self._wire, constants.uint64).decode()
                elif message_id in known:
                    self.reply.items.append((message_id, known[message_id](self._wire)))
                else:
                    self.reply.unknown = message_id
                    return
        except EOFError:
            pass
        except OSError as error:
            self.reply.broken = type(error).__name__


# ---- our values as those of the package


def acquisitions(batch: Acquisitions) -> list[ismrmrd.Acquisition]:
    return [
        ismrmrd.Acquisition(ismrmrd.AcquisitionHeader.from_buffer_copy(header.tobytes()), samples)
        for header, samples in zip(batch.headers, batch.complex_samples(), strict=True)
    ]


def waveform(wave: Waveform) -> ismrmrd.Waveform:
    return ismrmrd.Waveform(ismrmrd.WaveformHeader.from_buffer_copy(wave.header.tobytes()), wave.samples)


def image(picture: Image) -> ismrmrd.Image:
    return ismrmrd.Image.deserialize_from(io.BytesIO(examples.message_bytes(picture)[2:]).read)


def _headers(headers: np.ndarray, kind: type) -> np.ndarray:
    found = np.empty(headers.shape[::-1], dtype=object)
    for at in np.ndindex(headers.shape):
        found[at[::-1]] = kind.from_buffer_copy(headers[at].tobytes())
    return found


def _buffer(buffer: ReconBuffer) -> recon_data.ReconBuffer:
    return recon_data.ReconBuffer(
        np.asfortranarray(buffer.data.T),
        None if buffer.trajectory is None else np.asfortranarray(buffer.trajectory.T),
        None if buffer.density is None else np.asfortranarray(buffer.density.T),
        _headers(buffer.headers, ismrmrd.AcquisitionHeader),
        recon_data.SamplingDescription.from_buffer_copy(buffer.sampling.tobytes()),
    )


def recon(data: ReconData) -> recon_data.ReconData:
    return recon_data.ReconData(
        [
            recon_data.ReconBit(_buffer(bit.data), None if bit.reference is None else _buffer(bit.reference))
            for bit in data.bits
        ]
    )


def images(array: ImageArray) -> image_array.ImageArray:
    return image_array.ImageArray(
        np.asfortranarray(array.data.T),
        _headers(array.headers, ismrmrd.ImageHeader),
        [xml.decode() for xml in array.meta],
    )


def bucket(data: Acquisitions, reference: Acquisitions) -> bytes:
    """A bucket, which the package cannot write, by the description of Gadgetron's C++ structures."""
    halves = [
        [
            (header.tobytes(), b"" if batch.trajectory is None else batch.trajectory[i].tobytes(), samples.tobytes())
            for i, (header, samples) in enumerate(zip(batch.headers, batch.samples, strict=True))
        ]
        for batch in (data, reference)
    ]
    return bucket_bytes(*halves)
