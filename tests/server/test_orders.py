"""What is done with a group: parameters of previews and fallbacks, budgets."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.registry import find
from server.config import load
from server.errors import SettingsError
from server.orders import SOFT, Order, order
from server.selection import select


def ordered(text: str, **settings: object) -> Order:
    flags = {f"pipelines.{name}": value for name, value in settings.items()}
    pipelines = load(flags=flags, environment={}).settings.pipelines
    selection = select(text, pipelines)
    group: Any = object()
    assert selection.entry is not None
    return order("session", selection.entry, selection, group, pipelines)


def test_sense_then_zero_filled_stand_in_with_what_the_scanner_said_of_its_scan():
    made = ordered('{"pipeline": "cine_ls_dip", "parameters": {"noise_level": 1.414, "cardiac_phases": 20}}')
    assert [job.pipeline for job in made.fallbacks] == ["sense", "zero_filled"]
    for job in made.fallbacks:
        assert (job.parameters["noise_level"], job.parameters["cardiac_phases"]) == (1.414, 20)
        assert job.is_urgent
    assert made.preview is None
    assert made.job.provenance["ReconSession"] == "session"


def test_nothing_stands_in_for_the_last_and_only_what_comes_behind_it_for_another():
    assert ordered("zero_filled").fallbacks == ()
    assert [job.pipeline for job in ordered("sense").fallbacks] == ["zero_filled"]
    assert ordered("joint_ipalm", fallbacks=[]).fallbacks == ()
    assert ordered("pass_through").fallbacks == ()


def test_a_fallback_has_the_parameters_of_the_settings():
    made = ordered("joint_ipalm", parameters={"sense": {"iterations": 7}})
    assert made.fallbacks[0].parameters["iterations"] == 7


def test_parts_that_a_fallback_cannot_give_are_left_out():
    made = ordered('{"pipeline": "joint_ipalm", "parameters": {"parts": "magnitude,phase"}}')
    assert made.fallbacks[0].parameters["parts"] == ("magnitude", "phase")
    assert made.fallbacks[1].parameters["parts"] == ("magnitude",)


def test_a_budget_holds_for_a_pipeline_and_lets_it_end_early():
    made = ordered("cine_ls_dip", budgets_s={"cine_ls_dip": 100, "sense": 20})
    assert (made.job.budget_s, made.job.parameters["time_limit_s"]) == (100, SOFT * 100)
    assert [job.budget_s for job in made.fallbacks] == [20, 0]
    asked = ordered('{"pipeline": "cine_ls_dip", "parameters": {"time_limit_s": 5}}', budgets_s={"cine_ls_dip": 100})
    assert asked.job.parameters["time_limit_s"] == 5
    plain = ordered("sense", budgets_s={"sense": 10})
    assert "time_limit_s" not in plain.job.parameters


def test_the_jobs_take_what_their_pipelines_take():
    made = ordered('{"pipeline": "cine_ls_dip", "parameters": {"preview": true}}', budgets_s={"cine_ls_dip": 100})
    for job in (made.job, made.preview, *made.fallbacks):
        assert job is not None
        find(job.pipeline).parse(job.parameters)


@pytest.mark.parametrize("settings", [{"fallbacks": ["no_such"]}, {"fallbacks": ["pass_through"]},
                                      {"budgets_s": {"no_such": 3}}, {"budgets_s": {"sense": 0}}])  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]):
    with pytest.raises(SettingsError):
        ordered("sense", **settings)
