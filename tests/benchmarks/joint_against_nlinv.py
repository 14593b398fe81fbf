"""`joint_ipalm` beside BART's `nlinv`: time and memory of one slice of 320 x 320 with 15 channels, R = 4.

Both estimate image and coil maps together, on the same k-space, each in a process of its own: wall-clock time of the
reconstruction (ours without loading torch and the model, BART's with reading and writing its files), and the largest
resident memory of the process. Rounds are interleaved; the table holds medians. Ours runs its 100 iterations with one
step of one chain (the image alone), and again with the `quick` chains that a CPU gets by default (image and
uncertainty).

Run: `python tests/benchmarks/joint_against_nlinv.py [--rounds 3] [--threads 2] [--side 320]`; needs `bart`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bart_command import Bart, is_installed

from pipelines.evaluation.cases import Case, undersample
from pipelines.parameters import JointIpalmParameters
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.recon import joint_ipalm
from pipelines.recon.joint_ipalm import JointIpalm
from pipelines.recon.posterior import ChainLengths
from pipelines.recon.reconstruction import Prepared

MASK, NOISE, NEWTON_STEPS = "cartesian4_acl8", 0.01, 9
WAYS = ("bart_nlinv", "total_variation", "image", "image_and_uncertainty")


def scan(side: int, coils: int) -> Prepared:
    """A simulated head."""
    random = np.random.default_rng(0)
    image = head_phantom(1, side, side)[0] * smooth_phase((side, side), random)
    coil_images = torch.from_numpy((image * birdcage_coils(coils, (side, side))).astype(np.complex64))
    truth = coil_images.abs().square().sum(0).sqrt()
    return undersample(Case("head", "head", coil_images / truth.max(), truth / truth.max()), MASK, NOISE, 0)


def once(way: str, side: int, coils: int, threads: int) -> dict[str, float]:
    """Time (s) and largest memory (MiB) of one reconstruction, in this process."""
    prepared = scan(side, coils)
    if way == "bart_nlinv":
        with tempfile.TemporaryDirectory() as folder:
            bart = Bart(Path(folder))
            bart.write("ksp", prepared.kspace[0, :, 0][:, None].numpy())
            started = time.perf_counter()
            bart.run("nlinv", "-S", f"-i{NEWTON_STEPS}", "ksp", "image")
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}
    torch.set_num_threads(threads)
    chosen = {"prior": "total_variation"} if way == "total_variation" else {}
    parameters = JointIpalmParameters.model_validate({"tolerance": 1e-9, **chosen})
    quick = joint_ipalm.QUICK if way == "image_and_uncertainty" else ChainLengths("none", 1, 0, 1, 1)
    with patch.object(joint_ipalm, "QUICK", quick), torch.inference_mode():
        reconstruction = JointIpalm(parameters, "cpu")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.perf_counter()
        reconstruction(prepared)
        seconds = time.perf_counter() - started
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "mib": largest, "above_idle_mib": largest - before}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--coils", type=int, default=15)
    parser.add_argument("--only", choices=WAYS, help="one way, once, as JSON; what the rounds call")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(once(arguments.only, arguments.side, arguments.coils, arguments.threads)))
        return
    if not is_installed():
        sys.exit("bart is not installed; nothing was compared")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            same = [sys.executable, __file__, "--side", str(arguments.side), "--coils", str(arguments.coils)]
            command = [*same, "--threads", str(arguments.threads), "--only", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout))
    print(f"{arguments.side} x {arguments.side}, {arguments.coils} channels, {arguments.threads} threads, {MASK}:")
    for way, rounds in found.items():
        median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        print(f"{way:24}" + "  ".join(f"{name} {value:9.1f}" for name, value in median.items()))


if __name__ == "__main__":
    main()
