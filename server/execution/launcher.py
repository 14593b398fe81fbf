"""The front's side of the fork server and of its workers, without ever blocking the loop.

Why sockets awaited by the loop and no thread per worker: a reply wakes the loop directly instead of through a thread
that must first get the interpreter lock; and the end of a worker's socket, which the kernel closes however the worker
dies, is seen by the same wait, so there is nothing to poll and no process to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from server.errors import ExecutionError
from server.execution.encoding import REPLY_HEAD, Buffers, Reply, check_reply_head, decode_reply
from server.execution.worker_settings import WorkerSettings

_log = logging.getLogger(__name__)
_BUFFER_BYTES = 1 << 20
_MOST_EVENT_BYTES = 1 << 16
_STOP_TIMEOUT_S = 5.0
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": 256 << 20, "MALLOC_TRIM_THRESHOLD_": 512 << 20}
"""glibc keeps freed blocks up to these sizes instead of returning them and faulting fresh pages in for the next job:
`zero_filled` of 320 x 320 x 8 took 23 ms with them and 43 ms without, `sense` 0.45 s and 0.65 s, for 80 MiB more in
each worker (November 2026, interleaved). Variables of the same name in the environment win."""


class WorkerDiedError(Exception):
    """A worker is gone; `reason` is a label of `echotrain_worker_restarts_total`."""

    def __init__(self, reason: str = "crash") -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerProcess:
    """One worker as the front process sees it: a socket with replies on it, and its end when the worker dies."""

    def __init__(self, connection: socket.socket, kill: Callable[[], None]) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.kill = kill
        self.pid: int | None = None

    async def send(self, buffers: Buffers) -> None:
        """Send a job.

        Raises:
            WorkerDiedError: the worker is gone.
        """
        try:
            for buffer in buffers:
                await self._loop.sock_sendall(self._connection, buffer)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDiedError from error

    async def receive(self) -> Reply:
        """The next reply.

        Raises:
            WorkerDiedError: the worker is gone, or says that it gives up.
            ExecutionError: the worker sent what no worker sends; it has to be killed.
        """
        n_text, n_payload = check_reply_head(bytes(await self._receive(REPLY_HEAD.size)))
        text = await self._receive(n_text)
        reply = decode_reply(bytes(text), await self._receive(n_payload))
        if reply.kind == "dying":
            raise WorkerDiedError(str(reply.fields.get("reason", "crash")))
        return reply

    def when_readable(self, call: Callable[[], None]) -> None:
        """Call when the socket has something to read: from an idle worker that is its end, or its last words."""
        self._loop.add_reader(self._connection.fileno(), call)

    def stop_watching(self) -> None:
        """Undo `when_readable`."""
        self._loop.remove_reader(self._connection.fileno())

    async def ended(self) -> None:
        """Wait until the worker is gone and reads no shared memory: the kernel unmaps before it closes."""
        scratch = bytearray(_BUFFER_BYTES)
        with contextlib.suppress(ConnectionResetError):
            while await self._loop.sock_recv_into(self._connection, scratch):
                pass

    def finish(self) -> None:
        """Ask the worker to end after its present job."""
        with contextlib.suppress(OSError):  # it may have gone already
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    async def _receive(self, n_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        data = np.empty(n_bytes, np.uint8)
        rest = data.data
        while rest:
            try:
                n = await self._loop.sock_recv_into(self._connection, rest)
            except ConnectionResetError as error:
                raise WorkerDiedError from error
            if n == 0:
                raise WorkerDiedError
            rest = rest[n:]
        return data


class ForkServer:
    """The process that forks workers. It ends when this process does, or on `stop`; its workers end with it.

    Args:
        settings: what its workers have in common.
        memory_fd: descriptor of the shared memory, inherited by workers.
    """

    def __init__(self, settings: WorkerSettings, memory_fd: int) -> None:
        self._settings = settings
        self._memory_fd = memory_fd
        self._serial = 0
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._is_ready = False
        self.n_devices = 0

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked for workers."""
        return self._control is not None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it, and return when it has imported torch.

        Raises:
            ExecutionError: it died first; what it said is on standard error.
        """
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            control.setblocking(False)
            # Started from the loop: vfork and exec take a few milliseconds.
            self._process = subprocess.Popen(  # noqa: ASYNC220
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "server.execution.fork_server",
                    str(theirs.fileno()),
                    str(self._memory_fd),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._memory_fd),
                env=self._environment(),
                start_new_session=True,  # a terminal's Ctrl-C is for the front process alone
            )
        self._control = control
        control.send(json.dumps(asdict(self._settings)).encode())
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._listener = asyncio.create_task(self._listen(control, self._process, ready))
        self.n_devices = await ready
        self._is_ready = True
        kind, _, number = self._settings.device.partition(":")
        if kind == "cuda" and self.n_devices <= int(number or 0):
            raise ExecutionError(f"the settings ask for {self._settings.device}, but torch finds {self.n_devices} GPUs")

    def spawn(self, index: int) -> WorkerProcess:
        """A new worker.

        Raises:
            WorkerDiedError: there is no fork server to fork it.
        """
        if self._control is None:
            raise WorkerDiedError
        self._serial += 1
        serial = self._serial
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        ours.setblocking(False)
        with theirs:
            try:
                order = json.dumps({"order": "spawn", "serial": serial, "index": index}).encode()
                socket.send_fds(self._control, [order], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise WorkerDiedError from error
        return WorkerProcess(ours, lambda: self._kill(serial))

    async def stop(self) -> None:
        """End it with all its workers, and return when they are gone."""
        if self._listener is None or self._process is None:
            return
        if self._control is not None and self._is_ready:
            # Not closed here: the listener still waits on it, and sees the other end close when everything has ended.
            self._control.shutdown(socket.SHUT_WR)
        else:
            self._process.kill()  # it imports modules, and has no workers yet
        await asyncio.wait([self._listener], timeout=_STOP_TIMEOUT_S)
        self._process.kill()  # does nothing after its end, which is the rule; workers get SIGKILL with it
        await self._listener

    def _kill(self, serial: int) -> None:
        if self._control is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then its workers are dead already
                self._control.send(json.dumps({"order": "kill", "serial": serial}).encode())

    async def _listen(
        self, control: socket.socket, process: subprocess.Popen[bytes], ready: asyncio.Future[int]
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while message := await loop.sock_recv(control, _MOST_EVENT_BYTES):
                event = json.loads(message)
                if event["event"] == "ready":
                    ready.set_result(int(event["n_devices"]))
                elif event["event"] == "unforked":
                    _log.error("a worker could not be forked: %s", event["why"])
                elif event["status"]:
                    _log.warning("worker %d ended with status %d", event["pid"], event["status"])
        except ConnectionResetError:
            pass  # it died with words of ours unread; the same as its end
        finally:
            self._control = None
            control.close()
            await asyncio.to_thread(process.wait)
            if not ready.done():
                ready.set_exception(ExecutionError("the process that starts workers ended before it was ready"))

    def _environment(self) -> dict[str, str]:
        found = dict(os.environ)
        found["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # modules are found as they are here
        found["OPENBLAS_NUM_THREADS"] = "1"  # numpy's; it makes its threads at import, and whoever forks must have one
        if self._settings.threads:
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                found[name] = str(self._settings.threads)
        for name, n_bytes in _MALLOC.items():
            found.setdefault(name, str(n_bytes))
        return found
