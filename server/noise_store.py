"""Noise covariances of earlier measurements, for scans that name one of them as their dependency.

In memory always; in a directory as well where the settings name one, so that they outlive a restart and can be looked
at (`noise_file.py` is the format, `echotrain noise` the command). An entry expires, and the oldest make room for new
ones. Files are `<digest>.npz`: an HMAC-SHA256 of the measurement's id with a salt that stays in the directory, so
that no id is ever a path, and none can be read off a name. The directory is for its owner only (0700, files 0600).

A file that cannot be read is left out with a line in the log; a directory that cannot be written to gives the caller
one sentence for the scanner, and memory goes on. Knows no sessions and no sockets. Reads and writes are small (16
bytes for each pair of coils) and not synchronised to the disk, so that they do not hold up the event loop: what a power
cut spoils is found to be damaged and left out.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from pipelines.assembly.frame import NoiseSource
from server.errors import FileError
from server.logs import logger
from server.noise_file import MAX_BYTES, StoredNoise, read_noise, write_noise

SALT_NAME: Final = "salt"
SALT_BYTES: Final = 32
_OURS: Final = re.compile(r"[0-9a-f]{64}\.npz")
_UNFINISHED: Final = re.compile(r"\.[0-9a-f]{64}\.npz\.[0-9a-f]{16}")
_UNFINISHED_S: Final = 3600.0


class NoiseStore:
    """Noise by measurement id."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        expiry_s: float = 48 * 3600.0,
        most_entries: int = 64,
        clock: Callable[[], float] = time.time,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open a store.

        Args:
            directory: where to keep entries beyond this process; made if it is not there. None for memory only.
            expiry_s: how long an entry is used.
            most_entries: in memory, and in the directory.
            clock: seconds since 1970 UTC.
            failed: told `read` or `write` whenever the directory fails.
        """
        self._expiry_s = expiry_s
        self._most_entries = most_entries
        self._clock = clock
        self._failed = failed
        self._entries: dict[str, StoredNoise] = {}
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._directory = directory
        if directory is not None:
            try:
                self._salt = _open_directory(directory)
            except OSError as error:
                self._directory = None
                self._complain("write", error)
        self._is_broken = directory is not None and self._directory is None
        self.sweep()

    def __len__(self) -> int:
        """Entries in memory."""
        return len(self._entries)

    def keep(self, measurement_id: str, noise: StoredNoise) -> list[str]:
        """Keep the noise of a measurement, in place of what was kept for it before.

        Returns:
            Sentences for the scanner: the directory failed, and the entry is lost when this process ends.
        """
        name = self._name(measurement_id)
        covariance = replace(noise.covariance, source=NoiseSource.DEPENDENCY)
        noise = replace(noise, covariance=covariance, measured_at=self._clock())
        self._entries.pop(name, None)
        self._entries[name] = noise
        self.sweep()
        if self._directory is not None:
            try:
                _write(self._directory / name, write_noise(noise), noise.measured_at)
            except OSError as error:
                self._complain("write", error)
                self._remove(self._directory / name)  # an older one must not come back after a restart
            else:
                return []
        elif not self._is_broken:
            return []
        return ["the noise measurement could not be saved; later scans can use it only until the server restarts"]

    def find(self, measurement_id: str) -> StoredNoise | None:
        """The noise of a measurement, if it is here and has not expired."""
        self.sweep()
        name = self._name(measurement_id)
        noise = self._entries.get(name)
        if noise is None and self._directory is not None:
            noise = self._read(self._directory / name)
            if noise is not None:
                self._entries[name] = noise
                self._sweep_memory()
        return noise

    def sweep(self) -> None:
        """Forget what has expired, and the oldest of too many."""
        self._sweep_memory()
        if self._directory is not None:
            try:
                self._sweep_directory(self._directory)
            except OSError as error:
                self._complain("read", error)

    def _name(self, measurement_id: str) -> str:
        digest = hmac.new(self._salt, measurement_id.encode(errors="surrogatepass"), hashlib.sha256)
        return f"{digest.hexdigest()}.npz"

    def _is_fresh(self, measured_at: float) -> bool:
        return abs(self._clock() - measured_at) < self._expiry_s  # a clock that was set back must not keep it for ever

    def _sweep_memory(self) -> None:
        for name in [name for name, noise in self._entries.items() if not self._is_fresh(noise.measured_at)]:
            del self._entries[name]
        while len(self._entries) > self._most_entries:
            del self._entries[next(iter(self._entries))]

    def _sweep_directory(self, directory: Path) -> None:
        found: list[tuple[float, Path]] = []
        for path in directory.iterdir():
            is_ours = _OURS.fullmatch(path.name) is not None
            if is_ours or _UNFINISHED.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another server that shares the directory
                    written_at = path.stat(follow_symlinks=False).st_mtime
                    if is_ours and self._is_fresh(written_at):
                        found.append((written_at, path))
                    elif is_ours or abs(self._clock() - written_at) > _UNFINISHED_S:
                        self._remove(path)
        for _, path in sorted(found)[: max(0, len(found) - self._most_entries)]:
            self._remove(path)

    def _read(self, path: Path) -> StoredNoise | None:
        try:
            noise = read_noise(_read(path))
        except FileNotFoundError:
            return None
        except (OSError, FileError) as error:
            self._complain("read", error)
            return None
        return noise if self._is_fresh(noise.measured_at) else None

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain("write", error)

    def _complain(self, operation: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, FileError) else getattr(error, "strerror", "")
        logger().warning("noise_store_failed", kind=operation, reason=reason or type(error).__name__)
        self._failed(operation)


def stored_noise(directory: Path) -> Iterator[tuple[Path, StoredNoise | FileError]]:
    """Every entry of a directory, the newest first, or why it cannot be read; changes nothing.

    Raises:
        FileError: the directory cannot be read.
    """
    try:
        paths = [path for path in directory.iterdir() if _OURS.fullmatch(path.name)]
        ordered = sorted(paths, key=lambda path: -path.stat(follow_symlinks=False).st_mtime)
    except OSError as error:
        raise FileError(f"the directory {directory} cannot be read: {error.strerror}") from error
    for path in ordered:
        try:
            yield path, read_noise(_read(path))
        except FileError as error:
            yield path, error
        except OSError as error:
            yield path, FileError(f"cannot be read: {error.strerror}")


def _open_directory(directory: Path) -> bytes:
    """Make the directory and its salt if they are not there, close it to others, and return the salt.

    A directory that others may enter is closed only if nothing else lies in it: it might be /tmp.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_mode & 0o077:
        if not all(path.name == SALT_NAME or _OURS.fullmatch(path.name) for path in directory.iterdir()):
            raise OSError(errno.EPERM, "open to other users, and holds other files")
        directory.chmod(0o700)
    path = directory / SALT_NAME
    for _ in range(2):
        with suppress(FileExistsError):
            _create(path, secrets.token_bytes(SALT_BYTES))
        salt = _read(path)
        if len(salt) == SALT_BYTES:
            return salt
        path.unlink()  # what was named with it cannot be found any more, and expires
    raise OSError(errno.EIO, "its salt cannot be written")


def _create(path: Path, data: bytes) -> None:
    """A new file, whole or not there at all as far as others see."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(unfinished, data)
        os.link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(path: Path, data: bytes, at: float) -> None:
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(unfinished, data)
        os.utime(unfinished, (at, at))
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _write_new(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(data)


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read(MAX_BYTES + 1)
