"""How far a long reconstruction is: told by the reconstruction, heard by whoever runs it, as a sentence now and then.

A reconstruction reports as often as it likes; a listener hears the first sentence no earlier than `FIRST_S` after the
beginning, and then one in `INTERVAL_S` at most. Without a listener a report costs next to nothing. Sentences hold what
reconstructions call their stages, and numbers: no patient data. Knows no torch, no sockets and no threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

FIRST_S = 3.0
"""What takes no longer needs no words."""
INTERVAL_S = 5.0


def report(part: float, what: str) -> None:
    """Say how far the reconstruction is.

    Args:
        part: of the whole time that is over, 0 to 1, as far as it can be told; the time left follows from it.
        what: what is being done, a few words ("networks learn").
    """
    course = _course.get()
    if course is not None:
        course.report(part, what)


@contextmanager
def reporting(listener: Callable[[str], None] | None, clock: Callable[[], float] = time.monotonic) -> Generator[None]:
    """Let a listener hear what is reported inside; what it raises passes. None hears nothing."""
    token = _course.set(None if listener is None else _Course(listener, clock, clock()))
    try:
        yield
    finally:
        _course.reset(token)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a reconstruction.

    Attributes:
        what: a few words.
        begin: part of the whole time before it.
        end: part of the whole time until it is over.
    """

    what: str
    begin: float
    end: float

    def report(self, step: int, steps: int) -> None:
        """Say that so many steps are done."""
        report(self.begin + (self.end - self.begin) * step / steps, self.what)

    def step_of(self, number: int, count: int) -> Stage:
        """One of several equal stretches that it consists of; the first has number 0."""
        length = (self.end - self.begin) / count
        return Stage(self.what, self.begin + number * length, self.begin + (number + 1) * length)

    def split(self, part: float) -> tuple[Stage, Stage]:
        """Two stretches that it consists of, the first one that part of it."""
        middle = self.begin + part * (self.end - self.begin)
        return Stage(self.what, self.begin, middle), Stage(self.what, middle, self.end)

    def counting(self, steps: int, should_stop: Callable[[], bool] | None) -> Callable[[], bool]:
        """What an iterative solver asks before each step, which then is reported as well."""
        done = 0

        def ask() -> bool:
            nonlocal done
            self.report(min(done, steps), steps)
            done += 1
            return should_stop is not None and should_stop()

        return ask


def stages(costs: Mapping[str, float]) -> dict[str, Stage]:
    """Stages that follow one another, by what they are: each as long as its cost, in whatever unit."""
    whole = sum(costs.values())
    found: dict[str, Stage] = {}
    begin = 0.0
    for what, cost in costs.items():
        found[what] = Stage(what, begin, begin + cost / whole)
        begin = found[what].end
    return found


@dataclass(slots=True)
class _Course:
    """One run with its listener: when it began, and when it was last heard."""

    listener: Callable[[str], None]
    clock: Callable[[], float]
    began_at: float
    told_at: float | None = None

    def report(self, part: float, what: str) -> None:
        now = self.clock()
        due = self.began_at + FIRST_S if self.told_at is None else self.told_at + INTERVAL_S
        if now < due:
            return
        self.told_at = now
        part = min(max(part, 0.0), 1.0)
        left = f", about {_seconds((now - self.began_at) * (1 - part) / part)} left" if part > 0 else ""
        self.listener(f"{what}: {100 * part:.0f} %{left}")


def _seconds(seconds: float) -> str:
    """A time as precise as an estimate is."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


_course: ContextVar[_Course | None] = ContextVar("_course", default=None)
