"""The factor of the deviations of `cine_ls_dip`, and what intervals cover with it on scans that it was not fitted to.

Every patient of the Sunnybrook Cardiac Data is one scan: the cycle warped between its two pictures
(`pipelines.evaluation.cine_cases`), with a condition of its own, of four accelerations and noise levels and two
patterns in turn. The factor is that of conformal risk control (`models.training.conformal`): 90 % of the foreground of
a new scan on average, of a scan at most 30 % counted as missed. Tested on other patients and on the measured cine.
`pipelines.recon.cine_ls_dip` holds the result as `FACTOR`; deviations are divided by it here first.

Run: `python tests/benchmarks/cine_calibration.py [--scans 12] [--tests 5] [--frames 16] [--method networks]`. About a
minute a scan.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import h5py
import torch

from models.training.calibration import LEVELS, assess
from models.training.compared import ComparedImage, ComparedScan, compare
from models.training.conformal import Guarantee, fit_scaling
from pipelines.errors import EvaluationError
from pipelines.evaluation.cine_cases import CineCase, CineSampling, load_cine, load_cycle, undersample_cine
from pipelines.parameters import CineLsDipParameters
from pipelines.quality import least_squares_scale
from pipelines.recon.cine_ls_dip import FACTOR, CineLsDip

DATA = Path("/work/shared/data")
CONDITIONS: tuple[tuple[CineSampling, float, float], ...] = (
    ("variable_density", 8, 0.02),
    ("golden_step", 4, 0.01),
    ("variable_density", 12, 0.01),
    ("golden_step", 8, 0.005),
    ("variable_density", 4, 0.02),
    ("golden_step", 12, 0.02),
)
TEST_EVERY = 3
"""Patients that are tested on are every third one, all others calibrate."""


def main() -> None:
    """Print the factor and what it covers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--tests", type=int, default=5)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--method", default="networks")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file = DATA / "train/cardiac_sax_sunnybrook.h5"
    with h5py.File(file) as stored:
        patients = sorted(stored)
    tested = patients[::TEST_EVERY][: arguments.tests]
    fitted = [patient for number, patient in enumerate(patients) if number % TEST_EVERY][: arguments.scans]
    reconstruct = CineLsDip(CineLsDipParameters.model_validate({"method": arguments.method}), "cpu")

    def compared(case: CineCase, number: int) -> ComparedScan:
        sampling, acceleration, noise = CONDITIONS[number % len(CONDITIONS)]
        prepared, truth = undersample_cine(case, sampling, acceleration, noise, 0, frames=arguments.frames)
        with torch.inference_mode():
            found = reconstruct(prepared)
        image, reference = found.image[:, 0].abs().numpy(), truth.numpy()
        scale = least_squares_scale(image, reference)
        deviation = found.deviation[:, 0].numpy() / FACTOR
        frames: list[ComparedImage] = [
            compare(*each) for each in zip(reference, scale * image, scale * deviation, strict=True)
        ]
        scan = ComparedScan(f"{case.name}, {sampling} R = {acceleration:g}, noise {noise:g}", tuple(frames))
        covered = ", ".join(f"{100 * value:.1f}" for value in assess([scan]).coverage)
        print(f"{scan.name}: as it comes {covered} %", flush=True)
        return scan

    def cycles(names: list[str]) -> list[CineCase]:
        found: list[CineCase] = []
        for name in names:
            try:
                found.append(load_cycle(file, name, arguments.frames))
            except EvaluationError as error:
                print(error)
        return found

    scaling = fit_scaling(
        [compared(case, number) for number, case in enumerate(cycles(fitted))], Guarantee.EXPECTED, most_risk=0.3
    )
    print(f"factor {scaling.factor:.3f}: {scaling.statement}")
    measured = load_cine(DATA / "cine/cine_sax_30.h5")
    others = chain(enumerate(cycles(tested)), ((number, measured) for number in (0, 2, 3, 4)))
    report = assess([scan for number, case in others for scan in scaling.apply([compared(case, number)])])
    print("nominal", ", ".join(f"{100 * level:g}" for level in LEVELS))
    for name, coverage in zip(report.scans, report.coverage_of_scans, strict=True):
        print(f"{name}: {', '.join(f'{100 * value:.1f}' for value in coverage)} %")
    print("all:", ", ".join(f"{100 * value:.1f}" for value in report.coverage))
    for ranking in (report.deviation, *report.baselines):
        print(f"{ranking.name}: AUSE {ranking.ause:.3f}, correlation of blocks {ranking.spearman_blocks:.3f}")


if __name__ == "__main__":
    main()
