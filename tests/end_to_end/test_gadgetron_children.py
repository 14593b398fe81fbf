"""External node of Gadgetron that connects back, or that Gadgetron starts, in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from pipelines.simulate import SimulatedScan
from tests.end_to_end import gadgetron_parent as gadgetron
from tests.end_to_end.gadgetron_node import Child, agree, of_repetition, send_as
from tests.server.wire import examples

# numpy on arrays of ctypes structures, inside the package
pytestmark = pytest.mark.filterwarnings("ignore:A builtin ctypes object:RuntimeWarning")


# ---- we connect to Gadgetron


@pytest.mark.parametrize("way", ["connect", "execute"])
def test_a_node_that_connects_back_takes_every_kind_of_message_and_exits_with_0(
    launch: Callable[..., Child], node_scan: SimulatedScan, wanted: list[np.ndarray], way: str
) -> None:
    child = launch(way, "zero_filled")
    parent = child.parent
    parent.begin("<configuration/>", node_scan.header)  # the pipeline is the target, or the flag
    for repetition, kind in enumerate(("acquisitions", "bucket", "recon_data")):
        send_as(parent, kind, of_repetition(node_scan, repetition), node_scan)
    parent.send(gadgetron.images(examples.image_array()))
    parent.send(gadgetron.waveform(examples.waveform()))

    reply = parent.close()

    agree(reply, wanted)
    assert [message_id for message_id, _ in reply.items] == [1022] * 6 + [1024, 1026]
    assert child.status() == 0


def test_an_unknown_target_is_an_error_to_the_parent_and_status_1(
    launch: Callable[..., Child], node_scan: SimulatedScan
) -> None:
    child = launch("execute", "no_such_pipeline")
    child.parent.begin("<configuration/>", node_scan.header)

    reply = child.parent.wait()

    assert reply.error.startswith("ERROR unknown_pipeline: ")
    assert reply.closed
    assert child.status() == 1


def test_wrong_settings_are_an_error_to_the_parent_and_status_2(
    launch: Callable[..., Child], node_scan: SimulatedScan
) -> None:
    child = launch("execute", "sense", ECHOTRAIN_WORKERS__COUNT="none")
    child.parent.begin("<configuration/>", node_scan.header)

    reply = child.parent.wait()

    assert reply.error.startswith("ERROR settings: ")
    assert reply.closed
    assert child.status() == 2


@pytest.mark.parametrize("way", ["connect", "execute"])
def test_a_node_whose_parent_is_killed_ends_with_status_1_and_does_not_spin(
    launch: Callable[..., Child], node_scan: SimulatedScan, way: str
) -> None:
    child = launch(way, "zero_filled")
    child.parent.begin("<configuration/>", node_scan.header)
    for item in gadgetron.acquisitions(of_repetition(node_scan, 0))[:20]:
        child.parent.send(item)
    child.parent.vanish()

    assert child.status() == 1


def test_the_parent_of_a_killed_node_sees_the_end_and_no_worker_is_left(
    launch: Callable[..., Child], node_scan: SimulatedScan
) -> None:
    import psutil

    child = launch("execute", "zero_filled")
    child.parent.begin("<configuration/>", node_scan.header)
    send_as(child.parent, "acquisitions", of_repetition(node_scan, 0), node_scan)
    due = time.monotonic() + 60
    while len(child.parent.reply.items) < 2 and time.monotonic() < due:
        time.sleep(0.02)
    family = psutil.Process(child.process.pid).children(recursive=True)
    assert family

    child.process.send_signal(signal.SIGKILL)

    reply = child.parent.wait()
    assert not reply.closed
    assert psutil.wait_procs(family, 10)[1] == []
    assert child.status() == -signal.SIGKILL


def test_a_node_that_is_told_to_stop_says_so_to_its_parent(
    launch: Callable[..., Child], node_scan: SimulatedScan
) -> None:
    child = launch("connect", "zero_filled")
    child.parent.begin("<configuration/>", node_scan.header)
    send_as(child.parent, "acquisitions", of_repetition(node_scan, 0), node_scan)
    due = time.monotonic() + 60
    while len(child.parent.reply.items) < 2 and time.monotonic() < due:
        time.sleep(0.02)

    child.process.send_signal(signal.SIGTERM)

    reply = child.parent.wait()
    assert reply.error.startswith("ERROR shutting_down: ")
    assert reply.closed
    assert child.status() == 1


def test_nobody_to_connect_to_is_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    program = "import server.node, server.cli, sys; server.node.CONNECT_S = 0.5; server.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "--connect-to", f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "no_parent: no Gadgetron accepts connections" in done.stderr
    assert "Traceback" not in done.stderr
