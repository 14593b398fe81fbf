"""Ctrl-C at moments when a KeyboardInterrupt would do no good: the process ends at once, silently, with status 130.

While modules are imported nothing has been begun that would need an end, and an exception raised there is mangled or
lost: C extensions turn it into ImportError or SystemError, callbacks of weak references print and forget it. And who
interrupts a second time does not want to wait for what the first time has begun to end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

STATUS: Final = 130
"""What shells report for a process that SIGINT ended: 128 + 2."""


@contextmanager
def interrupts_end_at_once() -> Generator[None]:
    """Within, SIGINT ends the process; afterwards it raises KeyboardInterrupt again."""
    is_ours = end_at_once_from_now_on()
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once_from_now_on() -> bool:
    """Let SIGINT end the process.

    Returns:
        Whether it does. A handler that somebody else has set stays, and so does a SIGINT that is ignored, as it is in
        what a shell script runs in the background.
    """
    is_free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_free or threading.current_thread() is not threading.main_thread():
        return False
    signal.signal(signal.SIGINT, lambda *_: os._exit(STATUS))
    return True
