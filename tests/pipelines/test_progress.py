"""Progress: how often it is heard, what it says, and that nobody has to listen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipelines.progress import FIRST_S, INTERVAL_S, Stage, report, reporting, stages


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_text_comes_after_a_while_and_the_next_ones_rarely() -> None:
    clock, heard_at = Clock(), list[float]()
    with reporting(lambda _: heard_at.append(clock.now - 100), clock):
        for step in range(80):
            clock.now = 100 + step / 4
            report(step / 80, "networks learn")
    assert heard_at == [FIRST_S, FIRST_S + INTERVAL_S, FIRST_S + 2 * INTERVAL_S, FIRST_S + 3 * INTERVAL_S]


@pytest.mark.parametrize(
    ("part", "passed_s", "expected"),
    [
        (0.4, 20.0, "networks learn: 40 %, about 30 s left"),
        (0.1, 60.0, "networks learn: 10 %, about 9 min left"),
        (1.0, 60.0, "networks learn: 100 %, about 1 s left"),
        (1.5, 60.0, "networks learn: 100 %, about 1 s left"),
        (0.0, 60.0, "networks learn: 0 %"),
        (-1.0, 60.0, "networks learn: 0 %"),
    ],
)
def test_the_time_left_follows_from_the_part_and_the_time_that_passed(
    part: float, passed_s: float, expected: str
) -> None:
    clock, heard = Clock(), list[str]()
    with reporting(heard.append, clock):
        clock.now += passed_s
        report(part, "networks learn")
    assert heard == [expected]


def test_nobody_has_to_listen_and_nobody_hears_what_comes_afterwards() -> None:
    heard: list[str] = []
    report(0.5, "before")
    with reporting(heard.append, Clock()), reporting(None):
        report(0.5, "unheard")
    report(0.5, "after")
    assert heard == []


def test_stages_follow_one_another_in_proportion_to_their_costs() -> None:
    found = stages({"first": 30, "second": 10})
    assert found == {"first": Stage("first", 0, 0.75), "second": Stage("second", 0.75, 1)}
    assert found["second"].step_of(1, 2) == Stage("second", 0.875, 1)


def test_a_solver_that_is_asked_before_each_step_reports_and_still_stops() -> None:
    clock, heard = Clock(), list[str]()
    answers = iter([False, False, True])
    with reporting(heard.append, clock):
        ask = Stage("solves", 0.2, 0.6).counting(2, lambda: next(answers))
        asked: list[bool] = []
        for _ in range(3):
            clock.now += 10
            asked.append(ask())
    assert asked == [False, False, True]
    assert [text.split(",")[0] for text in heard] == ["solves: 20 %", "solves: 40 %", "solves: 60 %"]
    assert not Stage("solves", 0, 1).counting(1, None)()
