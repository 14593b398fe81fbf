# ruff: noqa: ASYNC110, ASYNC240 - tests watch from outside what has no event; small files of theirs
"""Captures: what is kept, that it can be trusted, that nothing of it hurts a scan; and playing it back."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.simulate import SimulatedScan
from server import capture
from server.client import Client
from server.config import load
from server.errors import FileError, SettingsError
from server.playback import open_capture, play


async def send(server: Any, scan: SimulatedScan) -> Any:
    async with Client("127.0.0.1", server.port) as client:
        reply = await client.send_scan("zero_filled", scan.header, scan.batches)
    async with asyncio.timeout(10):
        while server.sessions:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(server._capture._threads.submit(lambda: None).result)
    return reply


def only(directory: Path) -> Path:
    (stream,) = directory.glob("*.mrd")
    return stream


async def test_a_session_is_kept_and_gives_the_same_images_again(
    serving: Any, executor: Any, small_scan: SimulatedScan, tmp_path: Path
) -> None:
    server = await serving(capture__directory=str(tmp_path / "kept"))
    reply = await send(server, small_scan)
    stream = only(tmp_path / "kept")
    captured = open_capture(stream)
    assert (captured.end, captured.lost, len(captured.images)) == ("ok", "", len(reply.images))
    assert stream.stat().st_size == sum(stretch.n_bytes for stretch in captured.stretches)
    assert {oct(path.stat().st_mode & 0o777) for path in (stream, stream.with_suffix(".jsonl"))} == {"0o600"}
    assert oct((tmp_path / "kept").stat().st_mode & 0o777) == "0o700"
    executor.jobs.clear()
    played = await play(captured, port=server.port)
    assert (len(played.same), played.is_same, played.closed) == (len(reply.images), True, True)
    executor.columns = 8
    executor.jobs.clear()
    other = await play(captured, port=server.port)
    assert (len(other.different), other.is_same) == (len(reply.images), False)


@pytest.mark.parametrize("identified", [False, True])
async def test_the_header_is_kept_without_patient_unless_asked_for(
    serving: Any, executor: Any, small_scan: SimulatedScan, tmp_path: Path, identified: bool
) -> None:
    secret = b"<subjectInformation><patientName>ZZ^CANARY</patientName></subjectInformation>"
    # The schema has the subject first of all.
    at = small_scan.header.index(b">", small_scan.header.index(b"<ismrmrdHeader")) + 1
    scan = replace(small_scan, header=small_scan.header[:at] + secret + small_scan.header[at:])
    server = await serving(capture__directory=str(tmp_path / "kept"), capture__identified=identified)
    await send(server, scan)
    assert (b"ZZ^CANARY" in only(tmp_path / "kept").read_bytes()) is identified
    executor.jobs.clear()
    assert (await play(open_capture(only(tmp_path / "kept")), port=server.port)).is_same


@pytest.mark.parametrize("change", ["edit", "cut", "order", "stream"])
async def test_what_was_changed_is_found(serving: Any, small_scan: SimulatedScan, tmp_path: Path, change: str) -> None:
    server = await serving(capture__directory=str(tmp_path / "kept"))
    await send(server, small_scan)
    stream = only(tmp_path / "kept")
    index = stream.with_suffix(".jsonl")
    lines = index.read_text().splitlines()
    if change == "edit":
        lines[-1] = lines[-1].replace('"ok"', '"degraded"')
    elif change == "cut":
        del lines[1]
    elif change == "order":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        stream.write_bytes(stream.read_bytes()[:-1] + b"x")
    index.write_text("\n".join(lines))
    with pytest.raises(FileError, match="not the one that was written" if change != "stream" else "were changed"):
        list(open_capture(stream).read())


async def test_a_full_disk_stops_no_scan_and_everybody_hears_of_it(
    serving: Any, small_scan: SimulatedScan, tmp_path: Path
) -> None:
    server = await serving(capture__directory=str(tmp_path / "kept"), capture__keep_free_bytes=1 << 60)
    reply = await send(server, small_scan)
    assert len(reply.images) == 24
    assert server.metrics.registry.get_sample_value("echotrain_capture_failures_total", {"reason": "disk"}) == 1
    assert open_capture(only(tmp_path / "kept")).lost == "disk"


async def test_a_slow_disk_stops_no_scan(
    serving: Any, small_scan: SimulatedScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "STRETCH_BYTES", 1 << 14)
    monkeypatch.setattr(capture._Files, "append", lambda *_: time.sleep(0.05))
    settings = {"capture__directory": str(tmp_path / "kept"), "capture__queue_bytes": 1 << 20}
    server = await serving(**settings)
    server._capture._settings = server.settings.capture.model_copy(update={"queue_bytes": 1 << 15})
    reply = await send(server, small_scan)
    assert len(reply.images) == 24
    assert server.metrics.registry.get_sample_value("echotrain_capture_failures_total", {"reason": "too_slow"}) == 1
    assert "the raw data of this scan are not kept: the disk is too slow" in reply.texts[0]


async def test_without_a_directory_nothing_is_kept_and_nothing_is_tapped(
    serving: Any, executor: Any, small_scan: SimulatedScan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = await serving()
    executor.gate.clear()
    async with Client("127.0.0.1", server.port) as client:
        sending = asyncio.create_task(client.send_scan("zero_filled", small_scan.header, small_scan.batches))
        while not server.sessions:
            await asyncio.sleep(0.01)
        (session,) = server.sessions.values()
        assert session.socket._tap is None
        executor.gate.set()
        await sending
    assert list(tmp_path.iterdir()) == []


async def test_old_captures_and_too_many_make_room(serving: Any, small_scan: SimulatedScan, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    server = await serving(capture__directory=str(kept), capture__most_bytes=1 << 20, capture__keep_s=1000)
    for age_s, name in ((2000, "old"), (20, "new"), (30, "third")):
        (kept / f"{name}.mrd").write_bytes(bytes(700 << 10))
        (kept / f"{name}.jsonl").write_bytes(b"")
        os.utime(kept / f"{name}.jsonl", (time.time() - age_s,) * 2)
    await send(server, small_scan)
    assert {path.name for path in kept.glob("*.mrd")} >= {"new.mrd"}
    assert not list(kept.glob("old.*"))
    assert not list(kept.glob("third.*"))


def test_a_directory_that_others_may_read_is_refused(tmp_path: Path) -> None:
    settings = load(flags={"capture.directory": str(tmp_path)}, environment={}).settings.capture
    tmp_path.chmod(0o755)
    with pytest.raises(SettingsError, match="0700"):
        capture.CaptureStore(settings, print)


def test_what_is_no_capture_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        open_capture(tmp_path / "none.mrd")
    (tmp_path / "bad.jsonl").write_text("not JSON")
    with pytest.raises(FileError, match="no index"):
        open_capture(tmp_path / "bad.mrd")
    record = {"begin": {}}
    line = {**record, "chain": capture.chained(capture.FIRST, record)}
    (tmp_path / "empty.jsonl").write_text(json.dumps(line))
    assert open_capture(tmp_path / "empty.mrd").stretches == ()
