"""Does the deviation of `joint_ipalm` grow as the data get fewer and noisier, and does the error grow with it?

Prints, for heads that were not trained on, the root mean square over the object of deviation and error, in percent of
the brightest, and the share of errors within the 90 % interval.

Run: `python tests/benchmarks/deviation_growth.py [--data file.h5 ...] [--cases 1] [--every 10]`.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from models.training.calibration import coverage
from models.training.compared import by_scan
from pipelines.evaluation.cases import load_cases
from pipelines.evaluation.comparison import Condition, JudgedCase, judge_cases
from pipelines.registry import find

DATA = Path("/work/shared/data")
FILES = (DATA / "kspace/brain_8ch_full_localonly.h5", DATA / "validation/brain_complex_40_localonly.h5")
ACCELERATIONS = ("cartesian2_acl8", "cartesian3_acl8", "cartesian4_acl8", "cartesian6_acl8", "cartesian8_acl8")
NOISES = (0.0, 0.01, 0.02, 0.04, 0.08)
CONDITIONS = (
    *(Condition(name, 0.01) for name in ACCELERATIONS),
    *(Condition("cartesian4_acl8", noise) for noise in NOISES),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=list(FILES))
    parser.add_argument("--cases", type=int, default=2, help="of each file")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    entry = find("joint_ipalm")
    reconstruction = entry.load(entry.parse({}), "cpu")
    print("head; pattern @ added noise: deviation, error (% of the brightest), share within the 90 % interval")
    for path in arguments.data:
        for case in islice(load_cases(path), 0, arguments.cases * arguments.every, arguments.every):
            for condition in CONDITIONS:
                (judged,) = judge_cases(reconstruction, [case], [condition], 0, "cpu")
                print(f"{case.name}; {condition.title}: {figures(judged)}", flush=True)


def figures(judged: JudgedCase) -> str:
    """Root mean squares and coverage of one image."""
    compared = judged.compared
    inside = compared.foreground
    deviation, error = (
        100 * float(np.square(values[inside]).mean()) ** 0.5 for values in (compared.relative_deviation, compared.error)
    )
    ((covered,),) = coverage(by_scan([(judged.scan, compared)]), [0.9])
    return f"{deviation:.2f}, {error:.2f}, {covered:.3f}"


if __name__ == "__main__":
    main()
