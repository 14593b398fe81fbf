"""The process that workers are forked from: torch is imported here once, so a worker starts in 20 ms instead of 2 s.

Run as `python -m server.execution.fork_server CONTROL_FD MEMORY_FD` by `server.execution.launcher` and imported by
nobody. Why not multiprocessing's own: it imports the front's main module again in every worker, adds a tracker
process, is one per program, and its `start()` blocks the caller until torch is imported.

Rules:
1. One thread, and no call that initialises CUDA: a forked process could not use either.
2. The end of the control socket means that the front process is gone, however it died: then everything ends.
3. A worker gets SIGKILL from the kernel when this process ends, however it died.
4. Terminal and service-manager signals are ignored here and in workers; the front process decides who stops when.
5. Only this process kills workers: as their parent it knows that a pid it has not reaped is still theirs.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_SET_DEATH_SIGNAL: Final = 1
_SET_NAME: Final = 15
_MOST_BYTES: Final = 1 << 20
_OOM_SCORE: Final = "500"


def main() -> None:
    """Serve until the control socket ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    memory_fd = int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    settings = json.loads(control.recv(_MOST_BYTES))
    # Imported here, not above: importing torch takes seconds, and rules 2 and 4 hold from the first moment.
    worker = import_module("server.execution.worker")
    for name in settings["preload"]:
        import_module(name)
    n_devices = _in_a_child(lambda: worker.count_devices(settings["device"])) if settings["device"] != "cpu" else 0
    gc.collect()
    gc.freeze()  # so that a collection in a worker does not write to, and so copy, pages that all workers share
    control.send(json.dumps({"event": "ready", "n_devices": n_devices}).encode())
    _Nursery(control, memory_fd, worker, worker.WorkerSettings(**settings), n_devices).serve()


class _Nursery:
    """Forks workers, reports their ends, kills those it is told to kill."""

    def __init__(self, control: socket.socket, memory_fd: int, worker: Any, settings: Any, n_devices: int) -> None:
        self._control = control
        self._memory_fd = memory_fd
        self._worker = worker
        self._settings = settings
        self._n_devices = n_devices
        self._children: dict[int, int] = {}  # serial number by pid
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        with selectors.PollSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wakeup_read, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._wakeup_read in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup_read, 4096)
                    self._reap()
                if self._control.fileno() in ready and not self._obey():
                    break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _obey(self) -> bool:
        """Carry out one message; False at the end of the control socket."""
        try:
            message, fds, _, _ = socket.recv_fds(self._control, _MOST_BYTES, 1)
        except ConnectionResetError:
            return False
        if not message:
            return False
        order = json.loads(message)
        if order["order"] == "spawn":
            self._spawn(order["serial"], order["index"], socket.socket(fileno=fds[0]))
        else:
            for pid, serial in self._children.items():
                if serial == order["serial"]:
                    os.kill(pid, signal.SIGKILL)
        return True

    def _spawn(self, serial: int, index: int, connection: socket.socket) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            connection.close()  # which the front process sees as the worker's death
            self._tell({"event": "unforked", "why": error.strerror or "no reason given"})
            return
        if pid:
            connection.close()
            self._children[pid] = serial
            return
        status = 1
        try:
            self._become_worker(parent, index)
            self._worker.serve(connection, self._memory_fd, self._settings, index, self._n_devices)
            status = 0
        except (BrokenPipeError, ConnectionResetError):
            status = 0  # the front process has closed this worker's socket
        finally:
            if status:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)

    def _become_worker(self, parent: int, index: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        libc.prctl(_SET_NAME, f"echotrain-w{index}".encode())
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)
        self._control.close()
        # When the machine runs out of memory the kernel is to end a worker, which is replaced, and not the front
        # process.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._children[pid]
                self._tell({"event": "ended", "pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _tell(self, event: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then the next select ends this process
            self._control.send(json.dumps(event).encode())


def _in_a_child(count: Any) -> int:
    """The result of a call that must not be made in this process, from a child of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, array.array("q", [count()]).tobytes())
        except Exception:  # noqa: BLE001  a forked child must not return into its parent's frames
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    answer = os.read(read, 8)
    os.close(read)
    os.waitpid(pid, 0)
    return array.array("q", answer)[0] if len(answer) == 8 else 0


if __name__ == "__main__":
    main()
