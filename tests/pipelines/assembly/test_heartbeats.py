"""Where readouts lie in their heartbeats, and which heartbeats are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.assembly.heartbeats import Heartbeats, Verdict


class Known:
    """Triggers as a source tells them."""

    def __init__(self, times_s: Any, known_until_s: float) -> None:
        self.times_s = list(times_s)
        self.known_until_s = known_until_s


def place(times_s: Any, triggers_s: Any, known_until_s: float, *, window: float = 0.25, final: bool = False) -> Any:
    heartbeats = Heartbeats(window)
    heartbeats.update(Known(triggers_s, known_until_s), is_final=final)
    verdicts, phases, beats = heartbeats.place(np.array(times_s, float))
    return [Verdict(int(verdict)) for verdict in verdicts], phases, beats


REGULAR = np.arange(11.0)


@given(st.floats(0, 9.999))
def test_the_phase_is_the_part_of_the_interval_that_has_passed(time_s: float) -> None:
    triggers_s = np.cumsum([0, 1.0, 0.9, 1.1, 1.05, 0.95, 1, 1, 1, 1, 1.1])
    (verdict,), (phase,), (beat,) = place([time_s], triggers_s, 11)
    expected = max(index for index in range(11) if triggers_s[index] <= time_s)
    assert verdict is Verdict.KEPT
    assert beat == expected
    assert phase == pytest.approx((time_s - triggers_s[expected]) / (triggers_s[expected + 1] - triggers_s[expected]))


def test_nothing_is_decided_before_a_usual_interval_is_known() -> None:
    assert place([0.5], REGULAR[:5], 4.5)[0] == [Verdict.PENDING]
    assert place([0.5], REGULAR[:6], 5.5)[0] == [Verdict.KEPT]
    assert place([0.5], REGULAR[:2], 1.5, final=True)[0] == [Verdict.KEPT]
    assert place([0.5], REGULAR[:1], 1.5, final=True)[0] == [Verdict.PENDING]


def test_a_readout_waits_for_the_end_of_its_beat() -> None:
    assert place([9.5, 10.0, 10.1], REGULAR, 10.2)[0] == [Verdict.KEPT, Verdict.PENDING, Verdict.PENDING]


def test_an_early_beat_and_the_pause_behind_it_are_rejected() -> None:
    triggers_s = [0, 1, 2, 3, 4, 5, 6, 6.6, 8, 9, 10]
    verdicts, _, _ = place([5.5, 6.1, 7.0, 8.5], triggers_s, 10.5)
    assert verdicts == [Verdict.KEPT, Verdict.ARRHYTHMIC, Verdict.ARRHYTHMIC, Verdict.KEPT]


def test_the_window_decides_how_unlike_a_beat_may_be() -> None:
    triggers_s = [0, 1, 2, 3, 4, 5, 6.3, 7.3]
    assert place([5.5], triggers_s, 7.5, window=0.25)[0] == [Verdict.ARRHYTHMIC]
    assert place([5.5], triggers_s, 7.5, window=0.35)[0] == [Verdict.KEPT]


def test_a_changed_heart_rate_is_followed() -> None:
    triggers_s = np.cumsum([0] + [1.0] * 20 + [0.6] * 30)
    verdicts, _, _ = place(triggers_s[1:] - 0.1, triggers_s, triggers_s[-1])
    assert verdicts[:20] == [Verdict.KEPT] * 20
    assert verdicts[20] is Verdict.ARRHYTHMIC
    assert verdicts[-20:] == [Verdict.KEPT] * 20


def test_one_median_interval_is_assumed_before_the_first_trigger() -> None:
    verdicts, phases, _ = place([-1.2, -0.25], REGULAR, 10.5)
    assert verdicts == [Verdict.UNGATED, Verdict.KEPT]
    assert phases[1] == pytest.approx(0.75)


def test_one_median_interval_is_assumed_behind_the_last_trigger_of_the_scan() -> None:
    verdicts, phases, _ = place([10.25, 11.2], REGULAR, 10.5, final=True)
    assert verdicts == [Verdict.KEPT, Verdict.UNGATED]
    assert phases[0] == pytest.approx(0.25)


def test_an_overdue_trigger_gives_up_its_readouts_at_once_and_for_good() -> None:
    for final in (False, True):
        assert place([10.25, 11.2], REGULAR, 11.3, final=final)[0] == [Verdict.ARRHYTHMIC] * 2
    later = [*REGULAR, 14.0]
    assert place([10.25, 11.2], later, 14.1)[0] == [Verdict.ARRHYTHMIC] * 2


@given(data=st.data())
def test_a_decision_is_never_taken_back(data: st.DataObject) -> None:
    intervals_s = data.draw(st.lists(st.floats(0.3, 2.0), min_size=2, max_size=25))
    triggers_s = np.cumsum([0.0, *intervals_s])
    times_s = np.linspace(-2, triggers_s[-1] + 3, 97)
    end_s = float(triggers_s[-1]) + data.draw(st.floats(0, 3))
    whole = Heartbeats(0.25)
    whole.update(Known(triggers_s, end_s), is_final=True)
    expected, expected_phases, _ = whole.place(times_s)
    growing = Heartbeats(0.25)
    for known_s in sorted(data.draw(st.lists(st.floats(0, end_s), max_size=10))):
        growing.update(Known(triggers_s[triggers_s < known_s], known_s), is_final=False)
        verdicts, phases, _ = growing.place(times_s)
        decided = verdicts != Verdict.PENDING
        np.testing.assert_array_equal(verdicts[decided], expected[decided])
        np.testing.assert_array_equal(phases[verdicts == Verdict.KEPT], expected_phases[verdicts == Verdict.KEPT])
