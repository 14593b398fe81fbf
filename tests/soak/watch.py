"""What a soak does to workers, and what it watches of the front process: memory, descriptors, threads, children."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from server.local_server import LocalServer

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class Sample:
    """The server with no session on it.

    Attributes:
        sessions: played so far.
        resident: bytes of the front process.
        descriptors: open files of it.
        threads: of it.
        shared: descriptors and mappings of shared memory, and named segments of this user on the machine.
        children: processes below it, dead ones that nobody has reaped included.
        held_bytes: k-space and images that still count as waiting.
    """

    sessions: int
    resident: int
    descriptors: int
    threads: int
    shared: int
    children: int
    held_bytes: int

    def differs(self, start: Sample) -> list[str]:
        """What is not back to where it was."""
        broken: list[str] = []
        for name in ("threads", "shared", "children", "held_bytes"):
            before, now = asdict(start)[name], asdict(self)[name]
            if now != before:
                broken.append(f"{name}: {before} at the start, {now} at the end")
        if self.descriptors > start.descriptors:
            broken.append(f"descriptors: {start.descriptors} at the start, {self.descriptors} at the end")
        return broken


class Watch:
    """One running server.

    Attributes:
        done: signals sent to workers, by name.
        pids: processes of the server that were ever seen.
    """

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._front = psutil.Process(server.process_id)
        self.done: Counter[str] = Counter()
        self.pids: set[int] = {server.process_id}

    def hurt(self, fault: str, choice: int) -> None:
        """Kill or stop one of the workers, if there is one.

        None is stopped while one starts: that takes models and a first run, and may take minutes before it counts as
        hung.
        """
        workers = [child for child in self._children() if re.match(r"echotrain-w\d", _name(child))]
        if fault == "stop" and self._is_any_starting():
            return
        if not workers:
            return
        with contextlib.suppress(psutil.Error):
            workers[choice % len(workers)].send_signal(SIGNALS[fault])
            self.done[fault] += 1

    def hurt_later(self, fault: str, choice: int, after_s: float) -> None:
        """The same from a thread of its own, after a while."""
        timer = threading.Timer(after_s, self.hurt, (fault, choice))
        timer.daemon = True
        timer.start()

    def is_alive(self) -> bool:
        """Whether the front process runs."""
        return self._front.is_running() and self._front.status() != psutil.STATUS_ZOMBIE

    def settle(self, timeout_s: float = 60.0) -> list[str]:
        """Wait until no session is left and all workers are there again; what is not so in time."""
        due = time.monotonic() + timeout_s
        while time.monotonic() < due:
            with contextlib.suppress(OSError):
                sessions = json.loads(self._get("/sessions"))["sessions"]
                workers = json.loads(self._get("/startupz"))["workers"]
                # A worker that was stopped while it had no work is not known to be hung before its next job.
                if not sessions and set(workers) == {"idle"}:
                    return []
            time.sleep(0.05)
        return [f"not at rest after {timeout_s:g} s"]

    def sample(self, sessions: int) -> Sample:
        """The server as it is now."""
        children = self._children()
        self.pids |= {child.pid for child in children}
        maps = Path(f"/proc/{self._server.process_id}/maps").read_text()
        named = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(("echotrain", "psm_"))]
        held = re.findall(r'echotrain_buffered_bytes\{area="\w+"\} (\S+)', self._get("/metrics"))
        return Sample(
            sessions,
            self._front.memory_info().rss,
            self._descriptors(),
            self._front.num_threads(),
            maps.count("memfd:") + len(named),
            len(children),
            int(sum(float(value) for value in held)),
        )

    def _descriptors(self) -> int:
        """The fewest of a few looks: our own requests to the admin port are closed a moment after they are answered."""
        found: list[int] = []
        for _ in range(10):
            found.append(self._front.num_fds())
            time.sleep(0.03)
        return min(found)

    def describe_descriptors(self) -> str:
        """What the front process has open, for whoever looks for one too many."""
        kinds = Counter[str]()
        for path in Path(f"/proc/{self._server.process_id}/fd").iterdir():
            with contextlib.suppress(OSError):
                kinds[re.sub(r"\d+", "N", str(path.readlink()))] += 1
        return ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))

    def left_behind(self) -> list[str]:
        """Processes of the server that still run after its end."""
        alive = [pid for pid in self.pids if psutil.pid_exists(pid) and "echotrain" in _name(psutil.Process(pid))]
        return [f"processes {alive} outlived the server"] if alive else []

    def _is_any_starting(self) -> bool:
        with contextlib.suppress(OSError):
            return "starting" in json.loads(self._get("/startupz"))["workers"]
        return True

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._server.admin_port}{path}", timeout=10) as reply:
            return str(reply.read().decode())

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return list(self._front.children(recursive=True))
        return []


def slope(samples: list[Sample]) -> float:
    """Bytes of resident memory a session, by least squares."""
    xs = [sample.sessions for sample in samples]
    ys = [sample.resident for sample in samples]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""
