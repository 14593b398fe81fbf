"""Signs of life: when they are sent, and that none comes behind the reply."""

from __future__ import annotations

import threading
import time

from server.execution.heart import Heart


def test_it_beats_while_a_job_runs_and_at_no_other_time():
    beats, first = list[float](), threading.Event()

    def beat() -> None:
        beats.append(time.monotonic())
        first.set()

    heart = Heart(beat, 0.01)
    time.sleep(0.05)
    assert not beats
    with heart.beating():
        assert first.wait(10)
    n = len(beats)
    time.sleep(0.05)
    assert len(beats) == n
    heart.end()


def test_whoever_stops_it_waits_for_the_beat_that_is_being_sent():
    begun, go, sent = threading.Event(), threading.Event(), list[str]()

    def beat() -> None:
        begun.set()
        assert go.wait(10)
        sent.append("beat")

    heart = Heart(beat, 0.01)
    threading.Timer(0.1, go.set).start()
    with heart.beating():
        assert begun.wait(10)
    assert sent == ["beat"]
    heart.end()


def test_a_front_that_is_gone_ends_it():
    def beat() -> None:
        raise BrokenPipeError

    heart = Heart(beat, 0.01)
    with heart.beating():
        heart._thread.join(10)
    assert not heart._thread.is_alive()
