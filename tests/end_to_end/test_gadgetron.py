"""External node that Gadgetron connects to; the parent is made of the package's own readers and writers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.simulate import SimulatedScan
from server.wire.connection import Connection, Role
from tests import gadgetron_chain as chain
from tests.end_to_end import gadgetron_parent as gadgetron
from tests.end_to_end.gadgetron_node import SENSE, ZERO_FILLED, agree, of_repetition, plain_images, send_as
from tests.end_to_end.gadgetron_parent import Parent
from tests.server.wire import examples

# numpy on arrays of ctypes structures, inside the package
pytestmark = pytest.mark.filterwarnings("ignore:A builtin ctypes object:RuntimeWarning")


# ---- Gadgetron connects to us


@pytest.mark.parametrize("kind", ["acquisitions", "bucket", "recon_data"])
def test_every_kind_of_raw_data_gives_the_images_of_a_plain_scan(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray], kind: str
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    for repetition in range(3):
        send_as(parent, kind, of_repetition(node_scan, repetition), node_scan)

    agree(parent.close(), wanted)


@pytest.mark.parametrize("kind", ["acquisitions", "bucket", "recon_data"])
def test_data_whose_oversampling_gadgetron_removed_give_the_same_images(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray], kind: str
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    for repetition in range(3):
        batch = chain.without_oversampling(of_repetition(node_scan, repetition))
        send_as(parent, kind, batch, node_scan)

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
    send_as(parent, "bucket", of_repetition(node_scan, 0), node_scan)
    due = time.monotonic() + 30
    while len(parent.reply.items) < 2 and time.monotonic() < due:
        time.sleep(0.01)

    assert len(parent.reply.items) == 2
    agree(parent.close(), wanted[:2])


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
                batch = of_repetition(scan, repetition)
                send_as(parent, kind, chain.taken(batch, batch.headers["idx"]["slice"] == number), scan)
        replies.append(parent.close())

    agree(replies[1], replies[0].pixels)
    agree(replies[2], replies[0].pixels)
    assert len(replies[0].pixels) == 8
    assert {str(image.meta["ReconNoise"]) for image in replies[0].of(1022)} == {"measured"}
    config = '{"pipeline": "sense", "parameters": {"iterations": 5}}'
    agree(replies[0], plain_images(serving, scan, says, config))


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
    send_as(parent, "acquisitions", of_repetition(node_scan, 0), node_scan)

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
        ('<configuration pipeline="sense" cardiac_phases="8"/>', "bad_parameter", "cardiac_phases"),
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
    send_as(parent, "acquisitions", of_repetition(node_scan, 0), node_scan)

    agree(parent.close(), wanted[:2])


def test_what_was_complete_before_broken_data_is_delivered_and_the_error_is_never_a_text(
    attach: Callable[[], Parent], node_scan: SimulatedScan, wanted: list[np.ndarray]
) -> None:
    parent = attach()
    parent.begin(ZERO_FILLED, node_scan.header)
    send_as(parent, "bucket", of_repetition(node_scan, 0), node_scan)
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
    batch = of_repetition(node_scan, 0)
    batch.headers["idx"]["kspace_encode_step_1"][5] = 4000
    send_as(parent, "acquisitions", batch, node_scan)

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
        items = gadgetron.acquisitions(of_repetition(node_scan, 0))
        for item in items[:20] if half else items:
            parent.send(item)
        parent.vanish()
        due = time.monotonic() + 10
        while "echotrain_sessions_active 0" not in serving.get("/metrics") and time.monotonic() < due:
            time.sleep(0.05)

        assert "echotrain_sessions_active 0.0" in serving.get("/metrics")
    assert 'outcome="client_abort"' in serving.get("/metrics")
