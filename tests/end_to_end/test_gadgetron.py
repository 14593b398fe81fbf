"""External node of Gadgetron, all ways of attaching; the parent is made of the package's own readers and writers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.mrd import Image
from pipelines.phantom import head_phantom
from pipelines.scan_header import parse_scan_header
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.wire.connection import Connection, Role
from tests import gadgetron_chain as chain
from tests.end_to_end import gadgetron_parent as gadgetron
from tests.end_to_end.gadgetron_parent import Parent, Reply
from tests.server.wire import examples

# numpy on arrays of ctypes structures, inside the package
pytestmark = pytest.mark.filterwarnings("ignore:A builtin ctypes object:RuntimeWarning")

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


@pytest.fixture(scope="module")
def node_scan() -> SimulatedScan:
    """One slice, three repetitions, two coils, no noise readouts: what a node sees behind NoiseAdjust."""
    protocol = Protocol(n_coils=2, calibration_lines=0, repetitions=3, noise_readouts=0, seed=3)
    return simulate(head_phantom(1, 48, 48), protocol)


@pytest.fixture(scope="module")
def serving(start_server: Callable[..., Any]) -> Iterator[Any]:
    """A server with a port for Gadgetron as well."""
    server = start_server(
        "gadgetron.enabled=true", "gadgetron.port=0", "pipelines.default=zero_filled", "timeouts.linger_s=1"
    )
    server.wait_until_ready()
    yield server
    assert server.stop() == 0
    assert "unhandled" not in server.log()
    assert "an internal error" not in server.log()


@pytest.fixture
def attach(serving: Any) -> Callable[[], Parent]:
    """Gadgetron connects to us."""
    return lambda: Parent(socket.create_connection(("127.0.0.1", serving.gadgetron_port), timeout=20))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """We connect to Gadgetron: started by hand, or by Gadgetron through the package."""
    children: list[Child] = []

    def start(way: str, target: str = "zero_filled", **environment: str) -> Child:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.settimeout(60)
        port = str(listening.getsockname()[1])
        arguments = {
            "connect": ["-m", "server.cli", "serve", "--connect-to", port, "--pipeline", target, "--device", "cpu"],
            "execute": ["-m", "gadgetron", port, "server.gadgetron_node", target],
        }[way]
        ours = {
            "ECHOTRAIN_WORKERS__DEVICE": "cpu",
            "ECHOTRAIN_WORKERS__THREADS": "1",
            "ECHOTRAIN_TIMEOUTS__LINGER_S": "1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ECHOTRAIN_")}
        records = tmp_path / f"records{len(children)}.txt"
        with records.open("w") as stream:
            process = subprocess.Popen([sys.executable, *arguments], stderr=stream, env=kept | ours | environment)
        sock, _ = listening.accept()
        listening.close()
        children.append(Child(process, Parent(sock), records))
        return children[-1]

    yield start
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait()


def _plain_images(server: Any, scan: SimulatedScan, says: Any, config: str = "zero_filled") -> list[np.ndarray]:
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


@pytest.fixture(scope="module")
def wanted(serving: Any, node_scan: SimulatedScan, says: Any) -> list[np.ndarray]:
    images = _plain_images(serving, node_scan, says)
    assert len(images) == 6
    return images


def _of_repetition(scan: SimulatedScan, repetition: int) -> Any:
    batch = chain.joined(scan.batches)
    return chain.taken(batch, batch.headers["idx"]["repetition"] == repetition)


def _send_as(parent: Parent, kind: str, batch: Any, scan: SimulatedScan) -> None:
    if kind == "acquisitions":
        for item in gadgetron.acquisitions(batch):
            parent.send(item)
    elif kind == "bucket":
        parent.raw(
            gadgetron.bucket(chain.taken(batch, chain.is_data(batch)), chain.taken(batch, chain.is_reference(batch)))
        )
    else:
        parent.send(gadgetron.recon(chain.recon_data_of(batch, parse_scan_header(scan.header))))


def _agree(reply: Reply, wanted: list[np.ndarray], tolerance: float = 0.0) -> None:
    assert reply.error == ""
    assert reply.unknown == 0
    assert reply.broken == ""
    assert reply.closed
    found = reply.pixels
    assert len(found) == len(wanted)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - plain).max() <= tolerance * np.abs(plain).max()


# ---- Gadgetron connects to us


@pytest.mark.parametrize("kind", ["acquisitions", "bucket", "recon_data"])
def test_every_kind_of_raw_data_gives_the_images_of_a_plain_scan(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray], kind: str
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    for repetition in range(3):
        _send_as(parent, kind, _of_repetition(node_scan, repetition), node_scan)

    _agree(parent.close(), wanted)


@pytest.mark.parametrize("kind", ["acquisitions", "bucket", "recon_data"])
def test_data_whose_oversampling_gadgetron_removed_give_the_same_images(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray], kind: str
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    for repetition in range(3):
        batch = chain.without_oversampling(_of_repetition(node_scan, repetition))
        _send_as(parent, kind, batch, node_scan)

    reply = parent.close()

    assert {image.data.shape for image in reply.of(1022)} == {(1, 1, 48, 48)}
    assert reply.error == ""
    for ours, plain in zip(reply.pixels[::2], wanted[::2], strict=True):  # the noise level is estimated another way
        assert np.abs(ours - plain).max() < 1e-4 * plain.max()
    fields = [tuple(image.field_of_view) for image in reply.of(1022)]
    assert fields == [fields[0]] * 6


def test_a_bucket_is_answered_before_the_next_one_comes(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray]
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    _send_as(parent, "bucket", _of_repetition(node_scan, 0), node_scan)
    due = time.monotonic() + 30
    while len(parent.reply.items) < 2 and time.monotonic() < due:
        time.sleep(0.01)

    assert len(parent.reply.items) == 2
    _agree(parent.close(), wanted[:2])


def test_calibration_in_buckets_and_recon_data_is_that_of_the_scan(
    serving: Any, attach: Callable[[], Parent], scan: SimulatedScan, says: Any
) -> None:
    """Acceleration 2 with embedded calibration, 2 slices, 2 repetitions; with its noise scan, which has to whiten."""
    replies = []
    for kind in ("acquisitions", "bucket", "recon_data"):
        parent = attach()
        parent.begin(SENSE, scan.header)
        for item in gadgetron.acquisitions(chain.joined(scan.batches, noise=True)):
            parent.send(item)
        for repetition in range(2):
            for number in range(2):
                batch = _of_repetition(scan, repetition)
                _send_as(parent, kind, chain.taken(batch, batch.headers["idx"]["slice"] == number), scan)
        replies.append(parent.close())

    _agree(replies[1], replies[0].pixels)
    _agree(replies[2], replies[0].pixels)
    assert len(replies[0].pixels) == 8
    assert {str(image.meta["ReconNoise"]) for image in replies[0].of(1022)} == {"measured"}
    config = '{"pipeline": "sense", "parameters": {"iterations": 5}}'
    _agree(replies[0], _plain_images(serving, scan, says, config))


def test_images_image_arrays_and_waveforms_come_back_unchanged_from_a_pipeline_for_raw_data(
    attach: Callable[[], Parent], node_scan: SimulatedScan
) -> None:
    picture, array, wave = (
        examples.image((1, 1, 4, 6)),
        examples.image_array((2, 1, 3, 1, 1, 4, 6)),
        examples.waveform(2, 9),
    )
    wave.header["version"] = 1
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    parent.send(gadgetron.waveform(wave))
    parent.send(gadgetron.image(picture))
    parent.send(gadgetron.images(array))

    reply = parent.close()

    assert reply.error == ""
    assert [message_id for message_id, _ in reply.items] == [1026, 1022, 1024]
    (heard_wave,), (heard_picture,), (heard_array,) = reply.of(1026), reply.of(1022), reply.of(1024)
    assert np.array_equal(heard_wave.data, wave.samples)
    assert np.array_equal(heard_picture.data, picture.pixels)
    assert np.array_equal(heard_array.data.T, array.data)
    assert tuple(xml.encode() for xml in heard_array.meta) == array.meta


def test_images_and_image_arrays_go_to_pipelines_for_images(
    attach: Callable[[], Parent], node_scan: SimulatedScan
) -> None:
    picture, array = examples.image((1, 1, 4, 6)), examples.image_array((1, 1, 2, 1, 1, 4, 6))
    parent = attach()
    parent.begin('<configuration pipeline="pass_through" output="image_array"/>', node_scan.header)
    parent.send(gadgetron.image(picture))
    parent.send(gadgetron.images(array))

    reply = parent.close()

    assert reply.error == ""
    assert [message_id for message_id, _ in reply.items] == [1024] * 3
    heard = [item.data.T for item in reply.of(1024)]
    assert np.array_equal(heard[0][0, 0, 0], picture.pixels)
    assert np.array_equal(np.concatenate(heard[1:], axis=2), array.data)


def test_images_go_out_as_complex_image_arrays_where_the_configuration_asks(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray]
) -> None:
    parent = attach()
    configuration = (
        '<configuration pipeline="zero_filled"><property><name>output</name><value>image_array</value></property>'
        '<property name="parts" value="magnitude,complex"/><property name="combine" value="sensitivity"/>'
        "</configuration>"
    )
    parent.begin(configuration, node_scan.header)
    _send_as(parent, "acquisitions", _of_repetition(node_scan, 0), node_scan)

    reply = parent.close()

    arrays = reply.of(1024)
    assert reply.error == ""
    assert [int(array.headers[0, 0, 0].image_type) for array in arrays] == [1, 5, 1]
    magnitude, whole, _ = (array.data[:, :, 0, 0, 0, 0, 0] for array in arrays)
    assert np.array_equal(magnitude.imag, np.zeros_like(magnitude.imag))
    assert np.abs(np.abs(whole) - magnitude.real).max() < 1e-5 * magnitude.real.max()
    assert np.abs(whole.imag).max() > 0.01 * magnitude.real.max()
    assert "DataRole" in arrays[0].meta[0]


@pytest.mark.parametrize(
    ("configuration", "code", "words"),
    [
        ("<configuration><pipeline>no_such</pipeline></configuration>", "unknown_pipeline", "no_such"),
        ('<configuration><property name="iterationz" value="3"/></configuration>', "bad_parameter", "iterationz"),
        ('<configuration pipeline="sense" iterations="-1"/>', "bad_parameter", "iterations"),
        ('<configuration output="dicom"/>', "bad_parameter", "dicom"),
        ("<configuration><pipeline>", "protocol", "malformed"),
        ("<configuration><version>2</version><stream/></configuration>", "protocol", "external node was expected"),
    ],
)
def test_a_wrong_configuration_is_one_coded_error_and_close(
    attach: Callable[[], Parent], node_scan: SimulatedScan, configuration: str, code: str, words: str
) -> None:
    parent = attach()
    parent.begin(configuration, node_scan.header)

    reply = parent.wait()

    assert reply.error.startswith(f"ERROR {code}: ")
    assert words in reply.error
    assert (reply.closed, reply.unknown, reply.items) == (True, 0, [])


@pytest.mark.parametrize("configuration", ["", "<configuration/>", "<configuration></configuration>"])
def test_an_empty_configuration_means_the_default(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray], configuration: str
) -> None:
    parent = attach()
    parent.begin(configuration, node_scan.header)
    _send_as(parent, "acquisitions", _of_repetition(node_scan, 0), node_scan)

    _agree(parent.close(), wanted[:2])


def test_what_was_complete_before_broken_data_is_delivered_and_the_error_is_never_a_text(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray]
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    _send_as(parent, "bucket", _of_repetition(node_scan, 0), node_scan)
    parent.raw(b"\xff\x03" + b"\xff" * 80)  # recon data with 2^64 - 1 encoding spaces

    reply = parent.wait()

    assert reply.error.startswith("ERROR over_limit: ")
    assert (reply.closed, reply.unknown) == (True, 0)
    assert [image.tobytes() for image in reply.pixels] == [image.tobytes() for image in wanted[:2]]


def test_warnings_go_into_the_images_and_the_log_and_not_to_the_parent(
    serving: Any, attach: Callable[[], Parent], node_scan: SimulatedScan
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    batch = _of_repetition(node_scan, 0)
    batch.headers["idx"]["kspace_encode_step_1"][5] = 4000
    _send_as(parent, "acquisitions", batch, node_scan)

    reply = parent.close()

    assert (reply.error, reply.unknown, reply.closed) == ("", 0, True)
    warnings = reply.of(1022)[0].meta["ReconWarnings"]
    assert any("left out" in text for text in ([warnings] if isinstance(warnings, str) else warnings))
    assert "node_warning" in serving.log()


def test_queries_are_answered_on_the_port_for_gadgetron_too(serving: Any) -> None:
    from server.wire.messages import Close, Response

    parent = Connection(Role.PARENT)
    with socket.create_connection(("127.0.0.1", serving.gadgetron_port), timeout=20) as sock:
        sock.sendall(b"".join([*parent.query(7, "recon::ready"), *parent.query(8, "what?"), *parent.close()]))
        heard = []
        while n := sock.recv_into(parent.writable()):
            parent.received(n)
            while (event := parent.next_event()) is not None:
                heard.append(event)

    assert heard[:2] == [Response(7, "1"), Response(8, "Unknown query")]
    assert heard[2] == Close()


def test_a_scanner_at_the_port_for_gadgetron_is_told_which_port_to_take(serving: Any, says: Any) -> None:
    parent = Parent(socket.create_connection(("127.0.0.1", serving.gadgetron_port), timeout=20))
    parent.raw(says.config("sense"))

    reply = parent.wait()

    assert "CONFIG_FILE" in reply.error
    assert "listen.port" in reply.error


def test_a_parent_that_is_killed_frees_the_session_at_once(
    serving: Any, attach: Callable[[], Parent], node_scan: SimulatedScan
) -> None:
    for half in (False, True):
        parent = attach()
        parent.begin(ZERO_FILLED, node_scan.header)
        items = gadgetron.acquisitions(_of_repetition(node_scan, 0))
        for item in items[:20] if half else items:
            parent.send(item)
        parent.vanish()
        due = time.monotonic() + 10
        while "echotrain_sessions_active 0" not in serving.get("/metrics") and time.monotonic() < due:
            time.sleep(0.05)

        assert "echotrain_sessions_active 0.0" in serving.get("/metrics")
    assert 'outcome="client_abort"' in serving.get("/metrics")


# ---- we connect to Gadgetron


@pytest.mark.parametrize("way", ["connect", "execute"])
def test_a_node_that_connects_back_takes_every_kind_of_message_and_exits_with_0(
    launch: Callable[..., Child], node_scan: SimulatedScan, wanted: list[np.ndarray], way: str
) -> None:
    child = launch(way, "zero_filled")
    parent = child.parent
    parent.begin("<configuration/>", node_scan.header)  # the pipeline is the target, or the flag
    for repetition, kind in enumerate(("acquisitions", "bucket", "recon_data")):
        _send_as(parent, kind, _of_repetition(node_scan, repetition), node_scan)
    parent.send(gadgetron.images(examples.image_array()))
    parent.send(gadgetron.waveform(examples.waveform()))

    reply = parent.close()

    _agree(reply, wanted)
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
    for item in gadgetron.acquisitions(_of_repetition(node_scan, 0))[:20]:
        child.parent.send(item)
    child.parent.vanish()

    assert child.status() == 1


def test_the_parent_of_a_killed_node_sees_the_end_and_no_worker_is_left(
    launch: Callable[..., Child], node_scan: SimulatedScan
) -> None:
    import psutil

    child = launch("execute", "zero_filled")
    child.parent.begin("<configuration/>", node_scan.header)
    _send_as(child.parent, "acquisitions", _of_repetition(node_scan, 0), node_scan)
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
    _send_as(child.parent, "acquisitions", _of_repetition(node_scan, 0), node_scan)
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
