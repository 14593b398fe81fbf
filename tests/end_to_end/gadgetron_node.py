"""What tests of the external node share: messages as a parent sends them, images to compare with, a child process."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.mrd import Image
from pipelines.scan_header import parse_scan_header
from pipelines.simulate import SimulatedScan
from server.wire.connection import Connection, Role
from tests import gadgetron_chain as chain
from tests.end_to_end import gadgetron_parent as gadgetron
from tests.end_to_end.gadgetron_parent import Parent, Reply

ZERO_FILLED = "<configuration><pipeline>zero_filled</pipeline></configuration>"
SENSE = '<configuration><pipeline>sense</pipeline><property name="iterations" value="5"/></configuration>'


@dataclass
class Child:
    """A node in a process of its own, and the parent that it connects to."""

    process: subprocess.Popen[bytes]
    parent: Parent
    records: Path

    def status(self, timeout_s: float = 40) -> int:
        return self.process.wait(timeout_s)


def plain_images(server: Any, scan: SimulatedScan, says: Any, config: str = "zero_filled") -> list[np.ndarray]:
    """The images of an ordinary scan."""
    client = Connection(Role.CLIENT)
    parts = [*client.config_text(config), *client.header(scan.header)]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"".join(parts) + says.readouts(scan) + says.CLOSE)
        hearing, found = Connection(Role.CLIENT), []
        while n := sock.recv_into(hearing.writable()):
            hearing.received(n)
            while (event := hearing.next_event()) is not None:
                if isinstance(event, Image):
                    found.append(event.pixels[:, 0])
    return found


def of_repetition(scan: SimulatedScan, repetition: int) -> Any:
    batch = chain.joined(scan.batches)
    return chain.taken(batch, batch.headers["idx"]["repetition"] == repetition)


def send_as(parent: Parent, kind: str, batch: Any, scan: SimulatedScan) -> None:
    if kind == "acquisitions":
        for item in gadgetron.acquisitions(batch):
            parent.send(item)
    elif kind == "bucket":
        parent.raw(
            gadgetron.bucket(chain.taken(batch, chain.is_data(batch)), chain.taken(batch, chain.is_reference(batch)))
        )
    else:
        parent.send(gadgetron.recon(chain.recon_data_of(batch, parse_scan_header(scan.header))))


def agree(reply: Reply, wanted: list[np.ndarray], tolerance: float = 0.0) -> None:
    assert reply.error == ""
    assert reply.unknown == 0
    assert reply.broken == ""
    assert reply.closed
    found = reply.pixels
    assert len(found) == len(wanted)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - plain).max() <= tolerance * np.abs(plain).max()
