"""Signs of life of a worker while it runs a job, from a thread of its own.

A process that is stopped, or whose interpreter hangs, sends none, and its job is run again long before the time for a
job is over. What hangs with the interpreter running (a kernel on a GPU) is found by that time only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

BEAT_S: Final = 2.0
SILENCE_S: Final = 20.0
"""After which a worker with a job counts as hung: ten beats, for machines that are busy with other things."""


class Heart:
    """Beats while a job runs.

    Args:
        beat: sends a sign of life; called from another thread, never at the same time as another `beat`.
        interval_s: between two of them.
    """

    def __init__(self, beat: Callable[[], None], interval_s: float = BEAT_S) -> None:
        self._beat, self._interval_s = beat, interval_s
        self._is_beating = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    @contextmanager
    def beating(self) -> Generator[None]:
        """Within, signs of life are sent; none is on its way when this is left."""
        self._is_beating = True
        try:
            yield
        finally:
            with self._lock:
                self._is_beating = False

    def end(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            with self._lock:
                if self._is_beating:
                    try:
                        self._beat()
                    except OSError:  # nobody listens any more; the worker ends when it sees the same
                        return
