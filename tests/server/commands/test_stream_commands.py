"""`recon` and `convert` as a user runs them: through pipes, beside the server, and with ismrmrd's own tools."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import ismrmrd.serialization
import numpy as np
import pytest

from pipelines.mrd import Image
from pipelines.phantom import head_phantom
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.image_file import read_images
from server.local_server import local_server
from server.scan_file import write_scan
from server.streams import read_events
from server.wire.connection import Connection, Role
from server.wire.messages import Close, ConfigFile, Event, Header, Text
from tests.server.mrd2.test_stream import Pieces
from tests.server.wire import examples

TOOLS = ("ismrmrd_generate_cartesian_shepp_logan", "ismrmrd_recon_cartesian_2d", "ismrmrd_info")
SEVERAL_SECONDS = 60


@pytest.fixture(scope="module")
def scan() -> SimulatedScan:
    """Two slices, three coils, every second line."""
    return simulate(head_phantom(2, 32, 32), Protocol(n_coils=3, acceleration=2, calibration_lines=8))


@pytest.fixture(scope="module")
def stream(scan: SimulatedScan) -> bytes:
    return examples.encode(Role.STREAM, [Header(scan.header), *scan.batches, Close()])


def echotrain(*arguments: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command as a process, without settings of the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHOTRAIN_")}
    command = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=SEVERAL_SECONDS * 2)


def recon(*arguments: object, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return echotrain("recon", "--device", "cpu", "--threads", 1, *arguments, data=data)


def events_of(data: bytes) -> list[Event]:
    return list(read_events(Pieces(data), Connection(Role.STREAM)))


def images_of(data: bytes) -> list[Image]:
    return [event for event in events_of(data) if isinstance(event, Image)]


def essence(images: list[Image]) -> list[Any]:
    """All of the images but the session's number, which is random."""
    return [
        (image.header.tobytes(), image.pixels.tobytes(), {**image.meta, "ReconSession": []})
        for image in images
    ]  # fmt: skip


@pytest.mark.timeout(180)
def test_images_are_those_of_the_server_bit_for_bit(
    scan: SimulatedScan, stream: bytes, run: Callable[..., Any], tmp_path: Path
) -> None:
    write_scan(tmp_path / "scan.h5", scan.header, scan.batches)
    with local_server(tmp_path / "log", ["--device", "cpu", "--set", "workers.threads=1"]) as server:
        sent = run("send", tmp_path / "scan.h5", "--port", server.port, "--pipeline", "sense", "--parameter",
                   "iterations=9", "--output", tmp_path / "images.h5")  # fmt: skip
    assert sent.status == 0, sent.errors
    done = recon("--pipeline", "sense", "--parameter", "iterations=9", data=stream)
    assert done.returncode == 0, done.stderr

    theirs = [image for series in read_images(tmp_path / "images.h5").values() for image in series]
    ours = sorted(images_of(done.stdout), key=lambda image: int(image.header["image_series_index"]))
    assert len(ours) == 4
    for image in (*ours, *theirs):
        image.header["attribute_string_len"] = 0
    assert essence(ours) == essence(theirs)


@pytest.mark.timeout(120)
def test_the_output_is_a_stream_that_ismrmrd_python_reads(scan: SimulatedScan, stream: bytes) -> None:
    done = recon("--pipeline", "zero_filled", data=stream)

    assert done.returncode == 0, done.stderr
    header, *images = ismrmrd.serialization.ProtocolDeserializer(io.BytesIO(done.stdout)).deserialize()
    assert header == ismrmrd.xsd.CreateFromDocument(scan.header)
    assert [image.image_series_index for image in images] == [1, 2, 1, 2]
    assert images[1].meta["ReconUncertaintyKind"] == "noise"
    assert events_of(done.stdout)[-1] == Close()
    assert b"4 images out" in done.stderr


@pytest.mark.timeout(120)
def test_version_2_gives_the_same_images_as_version_1(scan: SimulatedScan, stream: bytes, tmp_path: Path) -> None:
    (tmp_path / "scan.mrd").write_bytes(stream)
    assert echotrain("convert", tmp_path / "scan.mrd", tmp_path / "scan.mrd2").returncode == 0
    first = recon(data=stream)
    second = recon("--v2", "--input", tmp_path / "scan.mrd2", "--output", tmp_path / "out.mrd2", data=b"")
    assert (first.returncode, second.returncode) == (0, 0), second.stderr

    back = echotrain("convert", "-", "-", "--to", "v1", data=(tmp_path / "out.mrd2").read_bytes())

    assert back.returncode == 0
    assert essence(images_of(back.stdout)) == essence(images_of(first.stdout))
    header = next(event for event in events_of(back.stdout) if isinstance(event, Header))
    assert ismrmrd.xsd.CreateFromDocument(header.xml).encoding == ismrmrd.xsd.CreateFromDocument(scan.header).encoding


@pytest.mark.timeout(120)
def test_commands_are_joined_by_pipes(scan: SimulatedScan, tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.h5", scan.header, scan.batches)
    cli = f"{sys.executable} -m server.cli"
    line = f"{cli} convert scan.h5 - --to v1 | {cli} recon --threads 1 | {cli} convert - images.h5"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    with ismrmrd.Dataset(tmp_path / "images.h5", mode="r") as dataset:
        assert dataset.number_of_images("image_1") == dataset.number_of_images("image_2") == 2
        assert dataset.read_image("image_1", 0).data.max() > 0


@pytest.mark.timeout(120)
def test_a_scan_that_breaks_off_gives_what_was_complete_an_error_and_a_status(
    scan: SimulatedScan, stream: bytes
) -> None:
    whole = images_of(recon(data=stream).stdout)
    done = recon(data=stream[:-1000])

    assert done.returncode == 1
    assert b"echotrain: protocol: the peer ended its stream inside a message ACQUISITION" in done.stderr
    assert b"Traceback" not in done.stderr
    *_, last, end = events_of(done.stdout)
    assert isinstance(last, Text)
    assert last.text.startswith("ERROR protocol: ")
    assert end == Close(announced=False)
    assert essence(images_of(done.stdout)) == essence(whole[:2])


@pytest.mark.parametrize(
    ("arguments", "data", "status", "said"),
    [
        ((), b"", 1, b"protocol: the input ended before a scan header came"),
        ((), b"\x03\x00\xff\xff\xff\xff", 1, b"over_limit: the peer announced a HEADER of 4294967295 bytes"),
        ((), b"yardl\x01\x00\x00\x00", 1, b"echotrain recon --v2"),
        (("--v2",), b"\x03\x00\x00\x00\x00\x00", 1, b"does not begin with `yardl`"),
        (("--pipeline", "no_such"), b"", 1, b"unknown_pipeline: unknown pipeline 'no_such'"),
        (("--pipeline", "sense", "--parameter", "iterations=none"), b"", 1, b"bad_parameter"),
        (("--parameter", "iterations"), b"", 2, b"'iterations' is not of the form name=value"),
        (("--set", "limits.nonsense=1"), b"", 2, b"limits.nonsense (flag): unknown setting"),
        (("--device", "abacus"), b"", 2, b"workers.device"),
        (("--input", "/nowhere/scan.mrd"), b"", 1, b"bad_file: /nowhere/scan.mrd cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_coded_line_and_a_status(
    arguments: tuple[str, ...], data: bytes, status: int, said: bytes
) -> None:
    done = echotrain("recon", *arguments, data=data)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_stream_may_choose_the_pipeline(scan: SimulatedScan) -> None:
    data = examples.encode(Role.STREAM, [ConfigFile("no_such"), Header(scan.header), Close()])
    done = recon(data=data)
    assert done.returncode == 1
    assert b"unknown pipeline 'no_such'" in done.stderr


@pytest.mark.timeout(120)
def test_a_reader_that_goes_away_ends_the_command(stream: bytes) -> None:
    command = [sys.executable, "-m", "server.cli", "recon", "--threads", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(stream, timeout=SEVERAL_SECONDS)
    assert process.returncode == 1
    assert b"output_closed" in errors
    assert b"Traceback" not in errors


@pytest.mark.timeout(120)
def test_images_come_while_the_scan_goes_on(scan: SimulatedScan, stream: bytes) -> None:
    command = [sys.executable, "-m", "server.cli", "recon", "--threads", "1", "--pipeline", "zero_filled"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stream[:-1000])  # the first slice is whole, the second not, and nobody has closed anything
    process.stdin.flush()
    one_image = 32 * 32 * 4
    begun = process.stdout.read(len(scan.header) + one_image)
    assert len(begun) == len(scan.header) + one_image
    process.stdin.write(stream[-1000:])
    process.stdin.close()
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(SEVERAL_SECONDS) == 0
    assert len(images_of(begun + rest)) == 4


def test_an_interrupt_ends_the_command(stream: bytes) -> None:
    def heed_interrupts() -> None:
        # Tests that a shell script runs in the background ignore SIGINT, and so would what they start.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command, pipe = [sys.executable, "-m", "server.cli", "recon"], subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=heed_interrupts)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stream[:-1000])
    process.stdin.flush()
    process.stdout.read(100)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SEVERAL_SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.parametrize("command", ["recon", "convert"])
def test_help_shows_a_complete_example_and_the_exit_statuses(run: Callable[..., Any], command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.status == 0
    assert f"echotrain {command} " in outcome.output
    assert "Exit statuses: 0" in outcome.output


def test_convert_says_how_much_and_what_was_lost(run: Callable[..., Any], tmp_path: Path, stream: bytes) -> None:
    data = examples.encode(Role.STREAM, [ConfigFile("sense")]) + stream
    (tmp_path / "scan.mrd").write_bytes(data)
    outcome = run("convert", tmp_path / "scan.mrd", tmp_path / "scan.mrd2")
    assert outcome.status == 0
    assert outcome.output == ""
    assert "the configuration in the stream is left out" in outcome.errors
    assert "readouts, 0 waveforms, 0 images converted" in outcome.errors

    strict = run("convert", tmp_path / "scan.mrd", tmp_path / "scan.h5", "--strict")
    assert strict.status == 1
    assert "cannot_convert: not everything could be carried over" in strict.errors
    assert (tmp_path / "scan.h5").exists()


def test_convert_refuses_wrong_arguments(run: Callable[..., Any], tmp_path: Path, stream: bytes) -> None:
    (tmp_path / "scan.mrd").write_bytes(stream)
    assert run("convert", tmp_path / "scan.mrd", tmp_path / "scan.mrd").status == 2
    assert run("convert", tmp_path / "scan.mrd", tmp_path / "scan.txt").status == 2
    assert run("convert", tmp_path / "nowhere.mrd", tmp_path / "scan.h5").status == 1
    assert run("convert", tmp_path / "scan.mrd", tmp_path / "x.h5", "--to", "v3").status == 2


@pytest.mark.ismrmrd_tools
@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS),
    reason="Debian's ismrmrd-tools are not on the PATH (`make tools`)",
)
@pytest.mark.timeout(120)
def test_the_tools_of_ismrmrd_make_our_input_and_agree_with_our_output(tmp_path: Path) -> None:
    # Version 1.8 has no program for streams (those came with 1.9): files go in and out, `convert` makes the streams.
    scan, images = tmp_path / "scan.h5", tmp_path / "images.h5"
    subprocess.run([TOOLS[0], "-m", "64", "-c", "4", "-n", "0.01", "-o", scan], check=True, capture_output=True)
    made = echotrain("convert", scan, "-", "--to", "v1")
    assert made.returncode == 0, made.stderr
    done = recon("--pipeline", "zero_filled", data=made.stdout)
    assert done.returncode == 0, done.stderr
    assert echotrain("convert", "-", images, data=done.stdout).returncode == 0
    subprocess.run([TOOLS[1], scan], check=True, capture_output=True)
    subprocess.run([TOOLS[2], images], check=True, capture_output=True)

    with h5py.File(scan) as file:
        theirs = file["dataset/cpp/data"][0, 0, 0]
    ours = read_images(images)["image_1"][0].pixels[0, 0]
    # Theirs is not normalised; the shape of the image is what both have to agree on.
    scale = float((ours * theirs).sum() / (theirs * theirs).sum())
    np.testing.assert_allclose(ours, scale * theirs, atol=1e-5 * float(ours.max()))
