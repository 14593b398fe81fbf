"""The weight of total variation that brains ask for: PSNR over weights, patterns and noise levels.

`pipelines.recon.priors.TOTAL_VARIATION` is what this found. Total variation is what the learned prior has to beat, so
it gets the weight that suits it best on heads that models train on (one of 1 mm, one of 2 mm, one FLAIR with a lesion),
eight simulated coils, coil maps as the calibration tells them, 100 iterations: one weight for all patterns and noise
levels, as the learned prior has one. The likelihood is exact, so a weight in nats should not depend on the noise; the
rows tell whether it does.

PSNR (dB) of the magnitude inside the object, as in `mask_table.py`.

Run: `python tests/benchmarks/total_variation_weight.py [--weights 20 40] [--noise 0.01] [--cases 1] [--epsilon 0.01]`;
all of it takes six minutes of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from pipelines.evaluation.cases import Case, load_cases, plane_of, truth_of, undersample
from pipelines.parameters import JointIpalmParameters
from pipelines.quality import compare, foreground
from pipelines.recon import joint_ipalm, priors
from pipelines.recon.joint_ipalm import JointIpalm
from pipelines.recon.posterior import ChainLengths
from pipelines.recon.total_variation import TotalVariation

DATA = Path("/work/shared/data/train")
CASES = (
    ("brain_t1_ixi_2mm.h5", ""),
    ("brain_t1_1mm.h5", "colin27"),
    ("brain_3t_multicontrast.h5", "Figure 7A/3T_FLAIR"),
)
MASKS = ("cartesian4_acl8", "cartesian4_acl8_swapped", "cartesian4_acl4", "radial11", "gaussian8")
NOISE = (0.01, 0.02)
WEIGHTS = (5.0, 7.0, 10.0, 12.0, 14.0, 20.0, 40.0)


def cases(count: int) -> Iterator[Case]:
    """The middle slice of each head."""
    for file, name in CASES[:count]:
        yield next(case for case in load_cases(DATA / file) if name in case.name)


def psnr_db(case: Case, mask: str, noise: float, weight: float) -> float:
    """Of the image with a weight in nats."""
    parameters = JointIpalmParameters.model_validate(
        {
            "prior": "total_variation",
            "maps": "fixed",
            "phase": "smooth",
            "prior_weight": weight / priors.TOTAL_VARIATION.weight,
        }
    )
    with torch.inference_mode():
        image = JointIpalm(parameters, "cpu")(undersample(case, mask, noise, 0)).image
    truth = truth_of(case, mask).numpy()
    return compare(np.asarray(plane_of(image)[0].abs().numpy(), np.float32), truth, foreground(truth)).psnr_db


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS), help="nats per unit and pixel")
    parser.add_argument("--noise", type=float, nargs="+", default=list(NOISE))
    parser.add_argument("--masks", nargs="+", default=list(MASKS))
    parser.add_argument("--cases", type=int, default=len(CASES))
    parser.add_argument("--epsilon", type=float, help="another rounding of edges than the default")
    arguments = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"{DATA} is not here; nothing was compared")
    torch.set_num_threads(1)
    prior = priors.TOTAL_VARIATION
    rounded = TotalVariation(prior.weight, arguments.epsilon or prior.epsilon)
    # One step of one chain: the uncertainty, most of the work, is not looked at.
    shortest = ChainLengths("none", 1, 0, 1, 1)
    with patch.object(joint_ipalm, "QUICK", shortest), patch.object(priors, "TOTAL_VARIATION", rounded):
        compare_weights(arguments)


def compare_weights(arguments: argparse.Namespace) -> None:
    """Print a row for each image, then means."""
    started = time.process_time()
    print(f"{'noise':>6} {'mask':24} {'case':36}" + "".join(f"{weight:>8g}" for weight in arguments.weights))
    found: dict[float, list[list[float]]] = {}
    for case in cases(arguments.cases):
        for noise in arguments.noise:
            for mask in arguments.masks:
                row = [psnr_db(case, mask, noise, weight) for weight in arguments.weights]
                found.setdefault(noise, []).append(row)
                shown = "".join(f"{each:8.2f}" for each in row)
                print(f"{noise:6g} {mask:24} {case.name[-36:]:36}{shown}", flush=True)
    for noise, rows in found.items():
        print(f"{noise:6g} {'mean':61}" + "".join(f"{each:8.2f}" for each in np.mean(rows, 0)))
    rows = [row for each in found.values() for row in each]
    print(f"{'':6} {'mean of all':61}" + "".join(f"{each:8.2f}" for each in np.mean(rows, 0)))
    print(f"{time.process_time() - started:.0f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
