"""Streams in files and on pipes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import FileError, LimitError, OutputClosedError, ProtocolError
from server.streams import STANDARD, Rewound, open_input, open_output, read_events
from server.wire.connection import Connection, Role
from server.wire.messages import Close, ConfigFile, Header, Text, WireLimits
from tests.server.mrd2.test_stream import Pieces
from tests.server.wire import examples

SCAN = [Header(b"<a/>"), examples.readouts(5), Text("hello"), examples.image(), examples.waveform()]


@given(st.integers(1, 60), st.sampled_from([[], [ConfigFile("sense")]]))
def test_events_of_a_stream_do_not_depend_on_its_pieces(most: int, before: list[ConfigFile]) -> None:
    data = examples.encode(Role.STREAM, [*before, *SCAN, Close()])
    seen: list[object] = []
    for event in read_events(Pieces(data, most), Connection(Role.STREAM)):
        seen += examples.plain(event)

    assert seen == examples.plain_all([*before, *SCAN, Close()])


def test_the_end_without_close_is_told_and_bytes_behind_close_are_left() -> None:
    data = examples.encode(Role.STREAM, SCAN)

    assert list(read_events(Pieces(data), Connection(Role.STREAM)))[-1] == Close(announced=False)
    assert list(read_events(Pieces(data + b"\x04\x00\xff\xff"), Connection(Role.STREAM)))[-1] == Close()


def test_a_stream_cut_inside_a_message_is_an_error() -> None:
    data = examples.encode(Role.STREAM, SCAN)
    with pytest.raises(ProtocolError) as caught:
        list(read_events(Pieces(data[:-1]), Connection(Role.STREAM)))
    assert caught.value.kind == "truncated"


def test_a_huge_announced_size_is_refused_before_memory_is_taken() -> None:
    connection = Connection(Role.STREAM, WireLimits())
    before = connection.capacity
    with pytest.raises(LimitError):
        list(read_events(Pieces(b"\x03\x00\xff\xff\xff\xff" + b"x" * 100), connection))
    assert connection.capacity == before


@given(st.binary(max_size=40), st.integers(1, 9), st.integers(1, 12))
def test_looking_at_the_first_bytes_takes_none_away(data: bytes, most: int, n: int) -> None:
    begun = Rewound(Pieces(data, most), n)
    assert begun.head == data[:n]
    room, read = memoryview(bytearray(5)), b""
    while n_read := begun.readinto(room):
        read += bytes(room[:n_read])
    assert read == data


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere"), open_input(tmp_path / "nowhere"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written"), open_output(tmp_path / "file" / "below"):
        pass


def test_a_file_that_has_to_be_whole_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mrd"
    with open_output(path, whole_or_not=True) as output:
        output.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"

    with pytest.raises(TypeError), open_output(path, whole_or_not=True) as output:
        output.write_all([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"abc"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.mrd"]


def test_a_named_pipe_is_written_directly(tmp_path: Path) -> None:
    path, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    with open_output(path, whole_or_not=True) as output:
        output.write(b"through the pipe")
    reader.join(10)
    assert read == [b"through the pipe"]


def test_a_reader_that_has_gone_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open_output(path) as output:
        os.close(reader)
        with pytest.raises(OutputClosedError):
            output.write(b"nobody reads this")


def test_what_is_printed_does_not_get_between_messages() -> None:
    script = (
        "from server.streams import STANDARD, open_output\n"
        "with open_output(STANDARD) as output:\n"
        "    output.write(b'one')\n"
        "    print('a remark of some library')\n"
        "    output.write(b'two')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"onetwoafter\n"
    assert done.stderr == b"a remark of some library\n"


def test_standard_input_is_called_by_a_dash() -> None:
    assert Path("-") == STANDARD
