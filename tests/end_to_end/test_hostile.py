# ruff: noqa: ARG005, E501 - every case takes the same two arguments, and a table reads better in long lines
"""What must not hurt a server: the hostile list of the protocol page, each beside a scan that has to succeed.

Numbers are those of the list. All of it runs against one server process; its fixture checks at the end that it is well.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.mrd import WAVEFORM_HEADER, AcquisitionFlag, Acquisitions
from pipelines.simulate import SimulatedScan

ANY = ""
SOON_S = 15
"""The limits here are 2 s; by default they are 20 s or more, and the drip of bytes would last 200 s."""


def _readout(scan: SimulatedScan, **changes: int) -> bytes:
    """One readout of the scan with header fields replaced, and without its samples."""
    header = scan.batches[-1].headers[:1].copy()
    for name, value in changes.items():
        header[name] = value
    return struct.pack("<H", 1008) + header.tobytes()


def _good(says: Any, scan: SimulatedScan) -> bytes:
    return says.config("zero_filled") + says.text(3, scan.header)


def _waveform(channels: int, samples: int) -> bytes:
    header = np.zeros((), WAVEFORM_HEADER)
    header["channels"], header["number_of_samples"] = channels, samples
    return struct.pack("<H", 1026) + header.tobytes()


# name of the case -> what is sent, what the error must say
CASES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "5 unknown id first": (lambda says, scan: struct.pack("<H", 4242), ("protocol", "4242")),
    "6 HTTP": (lambda says, scan: b"GET / HTTP/1.1\r\n\r\n", ("HTTP",)),
    "6 TLS": (lambda says, scan: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ("TLS",)),
    "6 MRD v2": (lambda says, scan: b"yardl\x01\x00\x00\x00", ("version 2",)),
    "7 header before config": (lambda says, scan: says.text(3, scan.header), ("header before the configuration",)),
    "8 two configs": (lambda says, scan: says.config("sense") * 2, ("second configuration",)),
    "8 two headers": (lambda says, scan: _good(says, scan) + says.text(3, scan.header), ("second header",)),
    "9 readout before header": (lambda says, scan: says.config("sense") + _readout(scan), ("before the header",)),
    "11 name without NUL": (lambda says, scan: says.config(b"a" * 1024), ("without a NUL",)),
    "11 name not UTF-8": (lambda says, scan: says.config(b"\xff\xfe"), ("UTF-8",)),
    "11 name with controls": (lambda says, scan: says.config(b"a\x1b[31m\n"), ("control",)),
    "12 path": (lambda says, scan: says.config("../../etc/passwd"), ("unknown_pipeline", "sense, unrolled, zero_filled")),
    "12 module": (lambda says, scan: says.config("os"), ("unknown_pipeline",)),
    "12 environment": (lambda says, scan: says.config("PATH"), ("unknown_pipeline",)),
    "12 JSON": (lambda says, scan: says.text(2, '{"pipeline": "os.path"}'), ("unknown_pipeline",)),
    "13 unknown": (lambda says, scan: says.config("no_such"), ("no_such", "sense, unrolled, zero_filled")),
    "14 empty text": (lambda says, scan: says.text(2, b""), ("unknown_pipeline",)),
    "14 4 GiB text": (lambda says, scan: says.text(2, b"", 2**32 - 1), ("over_limit",)),
    "15 XML bomb": (
        lambda says, scan: says.text(2, '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
        ("document type",),
    ),
    "15 XML nested": (lambda says, scan: says.text(2, "<a>" * 100_000 + "</a>" * 100_000), ("Gadgetron XML",)),
    "15 XML of others": (
        lambda says, scan: says.text(2, "<configuration><gadget><classname>GrappaGadget</classname></gadget></configuration>"),
        ("unknown_pipeline", "GrappaGadget"),
    ),
    "16 JSON cut": (lambda says, scan: says.text(2, '{"pipeline": '), ("bad_parameter", "malformed")),
    "16 JSON NaN": (lambda says, scan: _good(says, scan) + says.text(5, '{"parameters": {"x": NaN}}'), ("malformed",)),
    "16 JSON deep": (lambda says, scan: says.text(2, '{"a":' * 100_000), ("malformed",)),
    "16 JSON list": (lambda says, scan: _good(says, scan) + says.text(5, '{"parameters": [1]}'), ("not an object",)),
    "16 JSON value": (
        lambda says, scan: says.config("sense") + says.text(3, scan.header)
        + says.text(5, json.dumps({"parameters": {"iterations": "1e9"}})),
        ("bad_parameter", "iterations"),
    ),
    "16 JSON unknown": (
        lambda says, scan: says.config("sense") + says.text(3, scan.header) + says.text(5, '{"parameters": {"exec": "1"}}'),
        ("bad_parameter", "exec"),
    ),
    "18 header not XML": (lambda says, scan: says.config("sense") + says.text(3, "<html/>"), ("bad_header",)),
    "18 no XML at all": (
        lambda says, scan: says.config("sense") + says.text(3, "Dummy XML header") + says.readouts(scan, 1),
        ("bad_header",),
    ),
    "18 header bomb": (
        lambda says, scan: says.config("sense") + says.text(3, b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + scan.header[40:]),
        ("bad_header",),
    ),
    "18 header too long": (lambda says, scan: says.config("sense") + says.text(3, b"", 2**31), ("over_limit",)),
    "19 giant matrix": (
        lambda says, scan: says.config("sense") + says.text(3, scan.header.replace(b"<x>128</x>", b"<x>65535</x>", 1)
            .replace(b"<y>64</y>", b"<y>65535</y>").replace(b"<z>1</z>", b"<z>65535</z>", 1)),
        ANY,
    ),
    "22 giant readout": (
        lambda says, scan: _good(says, scan) + _readout(scan, number_of_samples=65535, active_channels=65535),
        ("over_limit",),
    ),
    "26 encoding space": (
        lambda says, scan: _good(says, scan) + _readout(scan, encoding_space_ref=9) + bytes(scan.batches[-1].samples[:1].nbytes),
        ("bad_acquisition",),
    ),
    "28 trajectory": (lambda says, scan: _good(says, scan) + _readout(scan, trajectory_dimensions=65535), ("over_limit",)),
    "30 compressed": (
        lambda says, scan: _good(says, scan) + _readout(scan, flags=AcquisitionFlag.COMPRESSION2.mask),
        ("ompress",),
    ),
    "35 giant waveform": (lambda says, scan: _good(says, scan) + _waveform(65535, 65535), ("over_limit",)),
    "37 image": (lambda says, scan: _good(says, scan) + struct.pack("<H", 1022) + bytes(198 + 8), ANY),
    "39 giant query": (lambda says, scan: struct.pack("<HQQQ", 6, 0, 1, 2**63), ("over_limit",)),
    "40 error of the client": (lambda says, scan: struct.pack("<HQ", 8, 3) + b"bad", ("reported an error",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_coded_error_and_close(case: str, connect: Any, says: Any, scan: SimulatedScan):
    make, expected = CASES[case]
    beside = connect()
    beside.say(_good(says, scan), says.readouts(scan, 2))
    peer = connect()
    peer.say(make(says, scan))
    heard = peer.hear()
    assert heard.closed
    assert len(heard.texts) == 1
    assert heard.error.startswith("ERROR ")
    assert heard.error.isprintable()
    for words in expected:
        assert words in heard.error
    beside.say(says.readouts(scan)[len(says.readouts(scan, 2)) :], says.CLOSE)
    assert len(beside.hear().images) == 8


def test_whoever_says_nothing_is_closed_in_time(connect: Any):  # 1
    heard = connect().hear()
    assert "timeout" in heard.error
    assert heard.closed
    assert 1 < heard.ended_s < SOON_S


def test_a_port_scan_leaves_no_error(connect: Any, running: Any):  # 2
    before = running.log().count("session_error")
    for _ in range(5):
        connect().sock.close()
    time.sleep(0.3)
    assert running.log().count("session_error") == before


@pytest.mark.parametrize("first", [b"\x01", struct.pack("<H", 1) + b"abc"])
def test_an_unfinished_message_is_given_up(connect: Any, first: bytes):  # 3
    peer = connect()
    peer.say(first)
    heard = peer.hear()
    assert "timeout" in heard.error


def test_a_drip_of_bytes_is_given_up(connect: Any, says: Any):  # 4
    peer = connect()
    peer.say(says.config("sense"))
    stop = threading.Event()

    def drip() -> None:
        message = says.text(3, b"x" * 1000)
        for i in range(len(message)):
            if stop.wait(0.2):
                return
            try:
                peer.say(message[i : i + 1])
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    heard = peer.hear()
    stop.set()
    thread.join()
    assert "not finished" in heard.error
    assert heard.ended_s < SOON_S


def test_a_scan_that_stops_in_the_middle_is_given_up_with_what_was_complete(
    connect: Any, says: Any, scan: SimulatedScan
):  # 1
    peer = connect()
    peer.say(_good(says, scan), says.readouts(scan))
    heard = peer.hear()
    assert len(heard.images) == 8
    assert "nothing came" in heard.error


def test_frames_before_an_unknown_id_are_delivered_before_the_error(connect: Any, says: Any, scan: SimulatedScan):  # 5
    peer = connect()
    peer.say(_good(says, scan), says.readouts(scan), struct.pack("<H", 4242))
    heard = peer.hear()
    assert len(heard.images) == 8
    assert "4242" in heard.error


def test_text_before_the_configuration_is_never_taken_for_one(connect: Any, says: Any, scan: SimulatedScan):  # 10
    peer = connect()
    peer.say(says.text(5, "sense"), says.text(5, '{"pipeline": "no_such"}'))
    peer.say(_good(says, scan), says.readouts(scan), says.CLOSE)
    heard = peer.hear()
    assert not heard.texts
    assert len(heard.images) == 8


def test_more_texts_than_allowed_are_an_error(connect: Any, says: Any):  # 39
    peer = connect()
    peer.say(struct.pack("<HQQQ", 6, 0, 1, 1) + b"x", *[says.text(5, "hello")] * 1000)
    assert "over_limit" in peer.hear().error


def test_an_unfinished_frame_is_reported(connect: Any, says: Any, scan: SimulatedScan):  # 33
    peer = connect()
    few = Acquisitions(scan.batches[1].headers[:3], scan.batches[1].samples[:3])
    from_few = says.readouts(type(scan)(scan.header, [scan.batches[0], few], scan.truth, scan.protocol))
    peer.say(_good(says, scan), from_few, says.CLOSE)
    heard = peer.hear()
    assert heard.closed
    assert not heard.images
    assert any(text.startswith("WRN") for text in heard.texts)


def test_a_scan_of_noise_only_ends_well_without_images(connect: Any, says: Any, scan: SimulatedScan):  # 34
    for config, n_texts in (("zero_filled", 0), ("default_measurement_dependencies", 1)):
        peer = connect()
        peer.say(says.config(config), says.text(3, scan.header), says.readouts(scan, 1), says.CLOSE)
        heard = peer.hear()
        assert heard.closed
        assert not heard.images
        assert [text.split(":")[0] for text in heard.texts] == ["noise measurement kept"] * n_texts


def test_a_scan_of_waveforms_only_ends_well_without_images(connect: Any, says: Any, scan: SimulatedScan):  # 35
    peer = connect()
    peer.say(_good(says, scan), (_waveform(2, 5) + bytes(40)) * 3, says.CLOSE)
    heard = peer.hear()
    assert heard.closed
    assert not heard.images
    assert not heard.texts


@pytest.mark.parametrize("config", ["isalive.xml", "null", "sense"])
def test_a_configuration_and_close_are_answered_with_close(connect: Any, says: Any, config: str):
    peer = connect()
    peer.say(says.config(config), says.CLOSE)
    heard = peer.hear()
    assert heard.closed
    assert not heard.texts


def test_gadgetrons_check_for_noise_is_answered_with_close(connect: Any, says: Any):
    xml = (
        '<gadgetronStreamConfiguration xmlns="http://gadgetron.sf.net/gadgetron"><gadget><name>N</name><dll>d</dll>'
        "<classname>NoiseSummaryGadget</classname></gadget></gadgetronStreamConfiguration>"
    )
    peer = connect()
    peer.say(says.text(2, xml), says.CLOSE)
    heard = peer.hear()
    assert heard.closed
    assert not heard.texts


def test_a_query_is_answered_before_and_amid_a_scan(connect: Any, says: Any, scan: SimulatedScan):
    peer = connect()
    ask = struct.pack("<HQQQ", 6, 0, 77, 12) + b"recon::ready"
    peer.say(ask)
    head = peer.sock.recv(1 << 16)
    assert struct.unpack("<HQQ", head[:18]) == (7, 77, 1)
    assert head[18:] == b"1"
    peer.say(_good(says, scan), ask, says.readouts(scan), says.CLOSE)
    assert len(peer.hear().images) == 8


def test_a_reset_in_the_middle_gives_everything_back(connect: Any, says: Any, scan: SimulatedScan, running: Any):  # 43
    for _ in range(3):
        peer = connect()
        peer.say(_good(says, scan), says.readouts(scan)[:-100])
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sock.close()
    _wait_until_quiet(running)
    assert 'outcome="client_abort"' in running.get("/metrics")


def test_the_end_of_the_stream_counts_as_close_with_a_warning(connect: Any, says: Any, scan: SimulatedScan):  # 45
    peer = connect()
    peer.say(_good(says, scan), says.readouts(scan))
    peer.sock.shutdown(socket.SHUT_WR)
    heard = peer.hear()
    assert len(heard.images) == 8
    assert heard.closed
    assert [text[:3] for text in heard.texts] == ["WRN"]


def test_the_end_of_the_stream_inside_a_readout_gives_what_was_complete_and_an_error(
    connect: Any, says: Any, scan: SimulatedScan
):  # 43
    peer = connect()
    peer.say(_good(says, scan), says.readouts(scan)[:-100])
    peer.sock.shutdown(socket.SHUT_WR)
    heard = peer.hear()
    assert len(heard.images) == 6
    assert "ended its stream inside" in heard.error
    assert heard.closed


def test_what_comes_after_close_is_not_read(connect: Any, says: Any, scan: SimulatedScan):  # 46
    peer = connect()
    peer.say(_good(says, scan), says.readouts(scan), says.CLOSE, b"\xff" * 100_000)
    heard = peer.hear()
    assert len(heard.images) == 8
    assert not heard.texts


def test_more_sessions_than_allowed_are_told_so_and_the_others_go_on(
    connect: Any, says: Any, scan: SimulatedScan, running: Any
):  # 48
    _wait_until_quiet(running)
    held = [connect() for _ in range(8)]
    for peer in held:
        peer.say(_good(says, scan))
    heard = [connect().hear() for _ in range(20)]
    assert all("ERROR busy" in each.error and each.closed for each in heard)
    assert "sessions are taken" in _ready_reasons(running)
    for peer in held:
        peer.say(says.readouts(scan), says.CLOSE)
    assert [len(peer.hear().images) for peer in held] == [8] * 8


def _ready_reasons(running: Any) -> str:
    with socket.create_connection(("127.0.0.1", running.admin_port), timeout=10) as sock:
        sock.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return sock.makefile().read()


def _wait_until_quiet(running: Any) -> None:
    due = time.monotonic() + 10
    while json.loads(running.get("/sessions"))["sessions"]:
        assert time.monotonic() < due
        time.sleep(0.05)
    assert 'echotrain_buffered_bytes{area="waiting"} 0.0' in running.get("/metrics")
