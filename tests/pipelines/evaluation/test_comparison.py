"""Reconstructions run over cases: which cases, under which conditions, beside which truth."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from models.training.calibration import assess
from models.training.compared import by_scan
from models.training.held_out import held_out
from pipelines.errors import EvaluationError
from pipelines.evaluation.cases import load_cases
from pipelines.evaluation.comparison import Condition, choose_cases, judge_cases, on_device
from pipelines.recon.reconstruction import Prepared, Reconstructed, UncertaintyKind
from pipelines.registry import find

SUBJECTS = 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three subjects with five slices of 48 x 40 pixels: ellipses, never the same."""
    path = tmp_path / "heads.h5"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:40j]
    with h5py.File(path, "w") as file:
        for subject in range(SUBJECTS):
            slices = []
            for _ in range(5):
                outer, inner = rng.uniform(0.7, 0.8, 2), rng.uniform(0.2, 0.4, 2)
                head = 150.0 * ((y / outer[0]) ** 2 + (x / outer[1]) ** 2 < 1)
                slices.append(head + 105 * (((y - 0.1) / inner[0]) ** 2 + (x / inner[1]) ** 2 < 1))
            file[f"subject{subject}"] = np.array(slices).astype(np.uint8)
    return path


def sense() -> object:
    entry = find("sense")
    return entry.load(entry.parse({}), "cpu")


def test_the_middle_slices_of_the_first_scans_are_chosen(data: Path) -> None:
    chosen = list(choose_cases(data, scans=2, slices=3, coils=4, seed=0))
    assert len(chosen) == 6
    assert len({case.scan for case in chosen}) == 2
    middle = {case.name for case in load_cases(data, 4, 0, limit=SUBJECTS)}
    assert len({case.name for case in chosen} & middle) == 2


def test_all_there_is_comes_when_more_is_asked_for(data: Path) -> None:
    assert len(list(choose_cases(data, scans=10, slices=9, coils=4, seed=0))) == SUBJECTS * 5


def test_scans_that_training_uses_can_be_left_out(data: Path) -> None:
    everything = {case.scan for case in choose_cases(data, scans=10, slices=1, coils=4, seed=0)}
    kept_apart = {case.scan for case in choose_cases(data, scans=10, slices=1, coils=4, seed=0, only_held_out=True)}

    assert kept_apart == held_out(everything)
    assert 0 < len(kept_apart) < len(everything)


def test_noise_of_a_fully_sampled_scan_is_covered_as_often_as_the_level_says(data: Path) -> None:
    cases = choose_cases(data, scans=3, slices=2, coils=4, seed=0)
    judged = list(judge_cases(sense(), cases, [Condition("full", 0.05)], seed=0, device="cpu"))
    report = assess(by_scan((each.scan, each.compared) for each in judged))
    # About 6 x 800 pixels of independent noise: standard errors below 0.01.
    assert report.n_pixels > 4000
    assert report.coverage == pytest.approx((0.5, 0.68, 0.9, 0.95), abs=0.03)
    assert {each.kind for each in judged} == {"noise"}
    assert {each.calibration for each in judged} == {"analytic"}


@pytest.mark.parametrize("sampling", ["cartesian4_acl8_swapped", "gaussian8", "radial11"])
def test_a_result_lies_beside_its_truth_however_it_was_measured(data: Path, sampling: str) -> None:
    entry = find("zero_filled")
    reconstruction = entry.load(entry.parse({}), "cpu")
    case = next(load_cases(data, 4, 0))
    (judged,) = judge_cases(reconstruction, [case], [Condition(sampling, 0.0)], seed=0, device="cpu")
    inside = judged.compared.foreground
    correlation = np.corrcoef(judged.compared.image.ravel(), judged.compared.reference.ravel())[0, 1]
    assert inside.shape == (case.truth.mT.shape if sampling.endswith("swapped") else case.truth.shape)
    assert correlation > 0.7


def test_every_case_sees_every_condition_and_the_same_seed_gives_the_same_bytes(data: Path) -> None:
    conditions = [Condition("full", 0.05), Condition("cartesian4_acl8", 0.05)]

    def run() -> list[tuple[str, str, bytes]]:
        entry = find("zero_filled")
        reconstruction = entry.load(entry.parse({}), "cpu")
        cases = choose_cases(data, 2, 1, 4, 0)
        return [
            (each.case, each.condition.title, each.compared.image.tobytes())
            for each in judge_cases(reconstruction, cases, conditions, 3, "cpu")
        ]

    first = run()
    assert [title for _, title, _ in first] == ["full @ 0.05", "cartesian4_acl8 @ 0.05"] * 2
    assert run() == first


def test_a_result_that_cannot_be_judged_names_the_case_and_how_it_was_measured(data: Path) -> None:
    def nothing(prepared: Prepared) -> Reconstructed:
        image = torch.zeros((1, *prepared.kspace.shape[2:]), dtype=torch.complex64)
        return Reconstructed(image, image.abs(), UncertaintyKind.NOISE)

    case = next(load_cases(data, 4, 0))
    with pytest.raises(EvaluationError, match=r"subject0.*full @ 0: the image is zero"):
        list(judge_cases(nothing, [case], [Condition("full", 0.0)], 0, "cpu"))
    with pytest.raises(EvaluationError, match=r"cartesian8_acl4 @ 0: 4 coils, but no"):
        list(judge_cases(sense(), [case], [Condition("cartesian8_acl4", 0.0)], 0, "cpu"))


def test_data_on_another_device_are_the_same_data(data: Path) -> None:
    from pipelines.evaluation.cases import undersample

    case = next(load_cases(data, 4, 0))
    for sampling in ("full", "radial11"):
        prepared = undersample(case, sampling, 0.01, 0)
        moved = on_device(prepared, "meta")
        assert moved.kspace.is_meta
        assert moved.counts.is_meta
        assert moved.kspace.shape == prepared.kspace.shape
        assert moved.noise_std == prepared.noise_std
        assert (moved.trajectory is None) == (prepared.trajectory is None)
        if moved.trajectory is not None:
            assert moved.trajectory.positions.is_meta
