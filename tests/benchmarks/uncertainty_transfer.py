"""Does the calibration in a model's card hold on scans that had no part in it? Coverage and sparsification.

`echotrain calibrate --held-out --write-card` fitted the factor on heads (or hearts) of one source; here `joint_ipalm`
runs with the card as it is shipped, over other scans and patterns, and what its intervals cover is counted.

Run: `python tests/benchmarks/uncertainty_transfer.py [--model energy-brain] [--data file.h5] [--every 5] [--cases 8]
[--masks cartesian4_acl8 gaussian8] [--noise 0.01] [--uncertainty quick]`; one line a pattern.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch

from models.training.calibration import LEVELS, assess
from models.training.compared import by_scan
from pipelines.evaluation.cases import load_cases
from pipelines.evaluation.comparison import Condition, judge_cases
from pipelines.registry import find

DATA = Path("/work/shared/data")
FILES = (DATA / "validation/brain_complex_40_localonly.h5", DATA / "kspace/brain_8ch_full_localonly.h5")
MASKS = ("cartesian4_acl8", "cartesian4_acl8_swapped", "cartesian4_acl4", "radial11", "gaussian8")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="energy-brain")
    parser.add_argument("--data", type=Path, nargs="+", default=list(FILES))
    parser.add_argument("--cases", type=int, default=8, help="of each file")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--masks", nargs="+", default=list(MASKS))
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01])
    parser.add_argument("--uncertainty", choices=("quick", "langevin"), default="quick")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    entry = find("joint_ipalm")
    reconstruction = entry.load(entry.parse({"model": arguments.model, "uncertainty": arguments.uncertainty}), "cpu")
    print(f"{arguments.model}, {arguments.uncertainty}: coverage at {LEVELS}; AUSE of the deviation and of other maps")
    for path in arguments.data:
        cases = list(islice(load_cases(path), 0, arguments.cases * arguments.every, arguments.every))
        for mask in arguments.masks:
            for noise in arguments.noise:
                judged = list(judge_cases(reconstruction, cases, [Condition(mask, noise)], 0, "cpu"))  # type: ignore[arg-type]
                report = assess(by_scan((each.scan, each.compared) for each in judged))
                coverage = " ".join(f"{share:.3f}" for share in report.coverage)
                others = " ".join(f"{each.name} {each.ause:.3f}" for each in report.baselines)
                outside = sum(each.details.get("ReconDomain") == "outside" for each in judged)
                print(
                    f"{path.stem[:18]} {mask:24} noise {noise:g}, {len(judged)} images: {coverage};"
                    f" {report.deviation.ause:.3f} {others}; mean width {report.sharpness:.4f}; {outside} outside",
                    flush=True,
                )


if __name__ == "__main__":
    main()
