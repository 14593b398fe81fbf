"""Does the uncertainty of `unrolled` rise where structure is missed or made up? Lesions painted in, wrong lines.

Heads that training leaves out get a small bright lesion in tissue, are undersampled and reconstructed, with and without
it. `contrast` is how much of the lesion's contrast comes back, `deviation` the deviation there over that without the
lesion, `covered` the part of its pixels whose error is within the 90 % interval (calibrated, if the card is).

Then the same scans with one in ten of the outer lines exchanged with another: what wrong counters do. `deviation` is
that of the foreground over that of the right scan, `error` the same of the errors, `residual` the data residual of
both.

Run: python tests/benchmarks/unrolled_lesions.py [--cases 6] [--masks cartesian4_acl8 gaussian8] [--model NAME]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.training.held_out import held_out
from pipelines.evaluation.case_files import find_slices
from pipelines.evaluation.cases import Case, load_cases, plane_of, truth_of, undersample
from pipelines.parameters import UnrolledParameters
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.unrolled import UnrolledNetwork

DATA = Path("/work/shared/data/train/brain_t1_ixi_2mm.h5")
RADIUS, BRIGHTER = 2.5, 0.35
"""Of a lesion: pixels (5 mm here), and what is added to the tissue, over the brightest pixel."""
NOISE = 0.01
LEVEL = 1.645


def cases() -> Iterator[Case]:
    """Middle slices of held-out heads."""
    kept = held_out(stored.scan for stored in find_slices(DATA))
    return (case for case in load_cases(DATA) if case.scan in kept)


def with_lesion(case: Case, seed: int) -> tuple[Case, Tensor]:
    """A lesion in tissue, and where it is."""
    rng = np.random.default_rng(seed)
    inside = torch.nonzero((case.truth > 0.25) & (case.truth < 0.6))
    y, x = inside[int(rng.integers(len(inside)))].tolist()
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in case.truth.shape), indexing="ij")
    where = (rows - y) ** 2 + (columns - x) ** 2 <= RADIUS**2
    gain = torch.where(where, 1 + BRIGHTER / case.truth.clamp(min=0.1), 1.0)
    return replace(case, coil_images=case.coil_images * gain, truth=case.truth * gain), where


def misfiled(prepared: Prepared, seed: int) -> Prepared:
    """One in ten of the outer lines, two at least, hold each other's samples."""
    kspace = prepared.kspace.clone()
    lines = torch.nonzero(prepared.counts[0].any(0))[:, 0]
    outer = lines[(lines - kspace.shape[3] // 2).abs() > kspace.shape[3] // 16]
    rng = np.random.default_rng(seed)
    moved = outer[torch.from_numpy(rng.permutation(len(outer))[: max(2, len(outer) // 10)])]
    kspace[:, :, :, moved] = prepared.kspace[:, :, :, moved.flip(0)]
    return replace(prepared, kspace=kspace)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--masks", nargs="+", default=["cartesian4_acl8", "gaussian8"])
    parser.add_argument("--model", default="unrolled-small")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = UnrolledNetwork(UnrolledParameters.model_validate({"model": arguments.model}), "cpu")

    @torch.inference_mode()
    def reconstruct(prepared: Prepared) -> tuple[Tensor, Tensor, float]:
        result = network(prepared)
        image, deviation = (plane_of(each)[0] for each in (result.image, result.deviation))
        return image.abs(), deviation, float(result.details["ReconResidual"])

    print("| mask | contrast | deviation | covered | wrong lines: deviation | error | residual right, wrong |")
    print("| --- " * 7 + "|")
    for mask in arguments.masks:
        rows: list[list[float]] = []
        for number, case in enumerate(islice(cases(), arguments.cases)):
            ill, where = with_lesion(case, number)
            # Case names decide the noise and the pattern: both scans have the same.
            prepared = undersample(case, mask, NOISE, 0)
            image, deviation, residual = reconstruct(prepared)
            seen, seen_deviation, _ = reconstruct(undersample(ill, mask, NOISE, 0))
            contrast = (seen - image)[where].mean() / (ill.truth - case.truth)[where].mean()
            error = (seen - ill.truth).abs()
            covered = (error <= LEVEL * seen_deviation)[where].float().mean()
            wrong, wrong_deviation, wrong_residual = reconstruct(misfiled(prepared, number))
            truth = truth_of(case, mask)
            tissue = truth > 0.08
            rows.append(
                [
                    float(contrast),
                    float(seen_deviation[where].mean() / deviation[where].mean()),
                    float(covered),
                    float(wrong_deviation[tissue].mean() / deviation[tissue].mean()),
                    float((wrong - truth).abs()[tissue].mean() / (image - truth).abs()[tissue].mean()),
                    residual,
                    wrong_residual,
                ]
            )
        mean = np.mean(rows, 0)
        figures = [f"{value:.2f}" for value in mean[:5]]
        print(f"| {mask} | " + " | ".join(figures) + f" | {mean[5]:.2f}, {mean[6]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
