"""A reconstruction run over undersampled cases, each result beside its truth: what calibration is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from models.training.compared import ComparedImage, compare
from models.training.held_out import held_out
from pipelines.errors import EvaluationError, ReconstructionError
from pipelines.evaluation.cases import Case, load_cases, plane_of, stored_slices, truth_of, undersample
from pipelines.recon.reconstruction import Prepared, Reconstruction


@dataclass(frozen=True, slots=True)
class Condition:
    """How a case is measured.

    Attributes:
        sampling: name of the pattern (`pipelines.evaluation.samplings`).
        noise: root of `E|n|^2` of a sample of k-space over the maximum of the truth.
    """

    sampling: str
    noise: float

    @property
    def title(self) -> str:
        """Pattern and noise in a few characters, for tables."""
        return f"{self.sampling} @ {self.noise:g}"


@dataclass(frozen=True, slots=True)
class JudgedCase:
    """A result beside its truth.

    Attributes:
        case: name of the slice.
        scan: the exchangeable unit.
        condition: how it was measured.
        compared: image, deviation and truth.
        kind: of the deviation.
        calibration: what the reconstruction says of the calibration of its deviation.
        details: what else it says of itself (`Reconstructed.details`).
    """

    case: str
    scan: str
    condition: Condition
    compared: ComparedImage
    kind: str
    calibration: str
    details: Mapping[str, str]


def choose_cases(
    path: Path, scans: int, slices: int, coils: int, seed: int, *, only_held_out: bool = False
) -> Iterator[Case]:
    """The middle slices of the first scans of a file or folder.

    Args:
        path: see `load_cases`.
        scans: how many; fewer come if there are no more.
        slices: most of each.
        coils: of simulated arrays.
        seed: of simulated phases and arrays.
        only_held_out: whether scans that training uses are left out (`models.training.held_out`).

    Raises:
        EvaluationError: the data are not understood.
    """
    taken: dict[str, int] = {}
    wanted = held_out(stored.scan for stored in stored_slices(path)) if only_held_out else None
    for case in load_cases(path, coils, seed):
        if wanted is not None and case.scan not in wanted:
            continue
        if case.scan not in taken and len(taken) == scans:
            continue
        if taken.get(case.scan, 0) == slices:
            continue
        taken[case.scan] = taken.get(case.scan, 0) + 1
        yield case
        if len(taken) == scans and min(taken.values()) == slices:
            return


def judge_cases(
    reconstruction: Reconstruction, cases: Iterable[Case], conditions: Iterable[Condition], seed: int, device: str
) -> Iterator[JudgedCase]:
    """Measure every case under every condition and reconstruct it.

    Args:
        reconstruction: with its parameters, on the device.
        cases: slices with a truth.
        conditions: of which each case sees all.
        seed: of noise and patterns.
        device: where to reconstruct.

    Raises:
        EvaluationError: a case cannot be reconstructed, or its result cannot be laid beside its truth.
    """
    wanted = tuple(conditions)
    for case in cases:
        for condition in wanted:
            prepared = on_device(undersample(case, condition.sampling, condition.noise, seed), device)
            try:
                with torch.inference_mode():
                    result = reconstruction(prepared)
            except ReconstructionError as error:
                raise EvaluationError(f"{case.name}, {condition.title}: {error}") from error
            image, deviation = (
                np.asarray(plane_of(each)[0].abs().cpu().numpy(), np.float32)
                for each in (result.image, result.deviation)
            )
            truth = truth_of(case, condition.sampling).numpy()
            try:
                compared = compare(truth, image, deviation)
            except ValueError as error:
                raise EvaluationError(f"{case.name}, {condition.title}: {error}") from error
            yield JudgedCase(
                case.name, case.scan, condition, compared, result.kind.value, result.calibration, dict(result.details)
            )


def on_device(prepared: Prepared, device: str) -> Prepared:
    """The same data on another device."""
    trajectory = prepared.trajectory
    return replace(
        prepared,
        kspace=prepared.kspace.to(device),
        counts=prepared.counts.to(device),
        calibration=None if prepared.calibration is None else prepared.calibration.to(device),
        readout_sampled=prepared.readout_sampled.to(device),
        trajectory=None
        if trajectory is None
        else replace(trajectory, positions=trajectory.positions.to(device), measured=trajectory.measured.to(device)),
    )
