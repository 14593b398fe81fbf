"""Received bytes of sessions, kept for a while to play a scan back: off unless a directory is set.

Two files a session, in a directory that only this user may read:

    SESSION.mrd     what came, byte for byte: a stream that any client can send again. Only the scan header is another
                    one, without patient (`server.deidentify`), unless the setting `identified` keeps the original
    SESSION.jsonl   one record a line, append-only, each with the digest of all before it (`chain`):
                    {"begin": ...} the session and this product's version,
                    {"at", "bytes", "t_s", "sha256"} a stretch of the stream and when it came,
                    {"image": [series, index], "sha256"} an image that was sent: digest of its pixels,
                    {"end": outcome} or {"lost": reason}, with the number of bytes

Writing happens in a thread of its own. A disk that is full or slow never stops a scan: the capture ends with `lost`,
the scanner is told, `echotrain_capture_failures_total` counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import HeaderError
from pipelines.mrd import Image
from server.deidentify import without_patient
from server.errors import SettingsError
from server.logs import logger
from server.metrics import product_version
from server.section import Capture

STRETCH_BYTES: Final = 1 << 20
STRETCH_S: Final = 0.25
"""How much, or how long, one record of the index stands for."""
MOST_HEAD_BYTES: Final = 16 << 20
"""Before the scan header; more is not captured."""
_HEADER_ID: Final = 3
FIRST: Final = "0" * 64
"""Chain before the first record."""


class Recording(Protocol):
    """What a session tells of itself."""

    @property
    def tap(self) -> Callable[[memoryview], None] | None:
        """Takes bytes as they come, and copies them; None where nothing is kept."""
        ...

    def header(self, xml: bytes) -> None:
        """They held the scan header."""
        ...

    def holds_images(self) -> None:
        """They hold images, whose attributes may tell whose they are."""
        ...

    def image(self, image: Image) -> None:
        """An image was sent."""
        ...

    def end(self, outcome: str) -> None:
        """The session is over."""
        ...


class NoRecording:
    """Keeps nothing."""

    @property
    def tap(self) -> None:
        """Nothing."""
        return

    def header(self, xml: bytes) -> None:
        """Nothing."""

    def holds_images(self) -> None:
        """Nothing."""

    def image(self, image: Image) -> None:
        """Nothing."""

    def end(self, outcome: str) -> None:
        """Nothing."""


NO_RECORDING: Final = NoRecording()


class CaptureStore:
    """The directory of captures.

    Args:
        settings: where, for how long, how much.
        failed: hears why a capture was lost.

    Raises:
        SettingsError: the directory cannot be made or written to, or others may read it.
    """

    def __init__(self, settings: Capture, failed: Callable[[str], None]) -> None:
        self._settings = settings
        self._failed = failed
        self._directory = Path(settings.directory)
        self._threads: ThreadPoolExecutor | None = None
        if not settings.directory:
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = self._directory.stat().st_mode & 0o077
            is_writable = os.access(self._directory, os.W_OK | os.X_OK)
        except OSError as error:
            raise SettingsError(f"capture.directory cannot be made: {error.strerror}") from error
        if mode or not is_writable:
            problem = "may be read by others; it needs mode 0700" if mode else "cannot be written to"
            raise SettingsError(f"capture.directory {problem}")
        self._threads = ThreadPoolExecutor(1, "capture")

    def begin(self, session: str, tell: Callable[[str], None]) -> Recording:
        """Record a session; `tell` hears a sentence for the scanner if that fails."""
        if self._threads is None:
            return NO_RECORDING
        self._threads.submit(self._prune)
        return _Recording(session, self._directory, self._settings, self._threads, self._failed, tell)

    def close(self) -> None:
        """Write what is left to write."""
        if self._threads is not None:
            self._threads.shutdown()

    def _prune(self) -> None:
        """Remove captures that are too old, and the oldest ones where there are too many."""
        try:
            found = sorted(self._directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
            held, oldest = 0, time.time() - self._settings.keep_s
            for index in found:
                stream = index.with_suffix(".mrd")
                size = stream.stat().st_size if stream.exists() else 0
                held += size
                if index.stat().st_mtime < oldest or held > self._settings.most_bytes:
                    stream.unlink(missing_ok=True)
                    index.unlink()
                    held -= size
        except OSError as error:
            logger().warning("capture_prune_failed", reason=error.strerror)


class _Recording:
    """One session; all methods are called in the event loop, files are touched in the thread."""

    def __init__(
        self,
        session: str,
        directory: Path,
        settings: Capture,
        threads: ThreadPoolExecutor,
        failed: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self._settings, self._threads, self._failed, self._tell = settings, threads, failed, tell
        self._loop = asyncio.get_running_loop()
        self._files = _Files(directory, session, settings.keep_free_bytes)
        self._began = time.monotonic()
        self._head: bytearray | None = None if settings.identified else bytearray()
        self._stretch = bytearray()
        self._stretch_at = 0.0
        self._queued = 0
        self._is_over = False
        self._is_lost = False
        begin = {"session": session, "version": product_version(), "identified": settings.identified}
        self._submit(0, self._files.open, {"begin": begin})

    @property
    def tap(self) -> Callable[[memoryview], None] | None:
        return self._received

    def _received(self, data: memoryview) -> None:
        if self._is_over:
            return
        if self._head is not None:
            self._head += data
            if len(self._head) > MOST_HEAD_BYTES:
                self._lose("header", "no scan header came")
            return
        if not self._stretch:
            self._stretch_at = time.monotonic()
        self._stretch += data
        if len(self._stretch) >= STRETCH_BYTES or time.monotonic() - self._stretch_at > STRETCH_S:
            self._flush()

    def header(self, xml: bytes) -> None:
        if self._is_over or self._head is None:
            return
        original = struct.pack("<HI", _HEADER_ID, len(xml)) + xml
        at = self._head.find(original)
        try:
            clean = without_patient(xml) if at >= 0 else b""
        except HeaderError:
            clean = b""
        if not clean:
            self._lose("header", "its scan header could not be read")
            return
        replaced = struct.pack("<HI", _HEADER_ID, len(clean)) + clean
        self._stretch += self._head[:at] + replaced + self._head[at + len(original) :]
        self._stretch_at, self._head = time.monotonic(), None

    def holds_images(self) -> None:
        if not self._is_over and not self._settings.identified:
            self._lose("images", "it holds images, whose attributes may tell whose they are")

    def image(self, image: Image) -> None:
        if self._is_over:
            return
        self._flush()
        number = [int(image.header["image_series_index"]), int(image.header["image_index"])]
        pixels = image.pixels
        self._submit(pixels.nbytes, lambda: self._files.note_image(number, pixels))

    def end(self, outcome: str) -> None:
        if self._is_over:
            return
        if self._head:  # no header came, and what came instead may hold anything
            self._lose("header", "no scan header came")
            return
        self._flush()
        self._is_over = True
        self._submit(0, lambda: self._files.close({"end": outcome}))

    def _flush(self) -> None:
        if self._stretch:
            stretch, self._stretch = bytes(self._stretch), bytearray()
            at_s = round(self._stretch_at - self._began, 4)
            self._submit(len(stretch), lambda: self._files.append(stretch, at_s))
            if self._queued > self._settings.queue_bytes:
                self._lose("too_slow", "the disk is too slow")

    def _submit(self, n_bytes: int, work: Callable[..., None], *arguments: Any) -> None:
        self._queued += n_bytes

        def run() -> None:
            try:
                work(*arguments)
            except OSError as error:
                self._files.abandon("disk")  # here, before what waits behind it is written
                self._call(self._lose, "disk", f"the disk failed ({error.strerror or type(error).__name__})")
            finally:
                self._call(self._written, n_bytes)

        self._threads.submit(run)

    def _call(self, what: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *arguments)

    def _written(self, n_bytes: int) -> None:
        self._queued -= n_bytes

    def _lose(self, reason: str, why: str) -> None:
        """Give this capture up, once; the session may be over by then."""
        if self._is_lost:
            return
        self._is_lost = self._is_over = True
        self._head, self._stretch = None, bytearray()
        self._failed(reason)
        self._tell(f"the raw data of this scan are not kept: {why}")
        self._threads.submit(self._files.abandon, reason)


class _Files:
    """Stream and index of one session, in the thread."""

    def __init__(self, directory: Path, session: str, keep_free_bytes: int) -> None:
        self._directory, self._session, self._keep_free = directory, session, keep_free_bytes
        self._stream: IO[bytes] | None = None
        self._index: IO[bytes] | None = None
        self._at = 0
        self._chain = FIRST

    def open(self, begin: dict[str, Any]) -> None:
        self._index = self._create(".jsonl")
        self._stream = self._create(".mrd")
        self._note(begin)

    def append(self, data: bytes, at_s: float) -> None:
        if self._stream is None:
            return
        room = os.statvfs(self._directory)
        if room.f_bavail * room.f_frsize < self._keep_free + len(data):
            raise OSError(28, "less is free than must stay free")
        self._stream.write(data)
        self._stream.flush()
        self._note({"at": self._at, "bytes": len(data), "t_s": at_s, "sha256": hashlib.sha256(data).hexdigest()})
        self._at += len(data)

    def note_image(self, number: list[int], pixels: NDArray[np.generic]) -> None:
        self._note({"image": number, "sha256": pixels_digest(pixels)})

    def close(self, last: dict[str, Any]) -> None:
        self._note({**last, "bytes": self._at})
        for file in (self._stream, self._index):
            if file is not None:
                file.close()
        self._stream = self._index = None

    def abandon(self, reason: str) -> None:
        try:
            self.close({"lost": reason})
        except OSError as error:
            logger().warning("capture_not_closed", reason=error.strerror)

    def _create(self, suffix: str) -> IO[bytes]:
        path = self._directory / f"{self._session}{suffix}"
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600), "wb")

    def _note(self, record: dict[str, Any]) -> None:
        if self._index is None:
            return
        self._chain = chained(self._chain, record)
        self._index.write(json.dumps({**record, "chain": self._chain}).encode() + b"\n")
        self._index.flush()


def pixels_digest(pixels: NDArray[np.generic]) -> str:
    """What two images share when their pixels are the same to the bit."""
    return hashlib.sha256(np.ascontiguousarray(pixels).view(np.uint8).data).hexdigest()


def chained(before: str, record: dict[str, Any]) -> str:
    """Digest of a record and all before it."""
    return hashlib.sha256(f"{before}{json.dumps(record, sort_keys=True)}".encode()).hexdigest()
