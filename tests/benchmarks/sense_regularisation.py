"""The weight that `sense` takes from the measured noise, beside the weight that is best when the truth is known.

Three anatomies (two brains, one heart) with eight simulated coils and smooth phase, 24 calibration lines. Errors are
NRMSE inside the object. A ratio of 1 means that no weight would have given less error.

Run: `python tests/benchmarks/sense_regularisation.py`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from sense_against_bart import Scan, errors, undersample

from pipelines.operators.fourier import to_kspace
from pipelines.parameters import SenseParameters
from pipelines.phantom import birdcage_coils, smooth_phase
from pipelines.recon.regularisation import MOST_REGULARISATION
from pipelines.recon.sense import Sense

DATA = Path("/work/shared/data/train")
N_COILS = 8
NOISE = (0.002, 0.005, 0.01, 0.02, 0.05)
WEIGHTS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2)


def anatomies() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Slices `(y, x)` between 0 and 1."""
    with h5py.File(DATA / "brain_t1_1mm.h5") as file:
        for name in ("colin27", "s1"):
            volume = file[name]
            yield name, np.asarray(volume[volume.shape[0] // 2], np.float32) / 255
    with h5py.File(DATA / "cardiac_sax_sunnybrook.h5") as file:
        frames = next(file[name] for name in file if file[name].ndim == 3)
        yield "heart", np.asarray(frames[10], np.float32) / 255


def simulated(name: str, anatomy: NDArray[np.float32], acceleration: int, noise_std: float) -> Scan:
    """The anatomy with phase, coils and noise of a known level."""
    rng = np.random.default_rng(3)
    image = torch.from_numpy((anatomy * smooth_phase(anatomy.shape, rng)).astype(np.complex64))[None]
    full = to_kspace(image[None] * torch.from_numpy(birdcage_coils(N_COILS, anatomy.shape))[:, None])
    noise = rng.standard_normal((*full.shape, 2)).astype(np.float32) * np.float32(noise_std / 2**0.5)
    full = full + torch.view_as_complex(torch.from_numpy(noise))
    return undersample(name, full, acceleration, {"object": image.abs()}, noise_std)


def error(scan: Scan, regularisation: float | None) -> tuple[float, str]:
    """NRMSE, and the weight taken."""
    result = Sense(SenseParameters(regularisation=regularisation), "cpu")(scan.prepared)
    return errors(result.image[0], scan.references["object"])[0], result.details["ReconRegularisation"]


def main() -> None:
    """Print the table."""
    if not DATA.exists():
        sys.exit(f"{DATA} is not here; nothing was compared")
    torch.set_num_threads(1)
    print(f"{'anatomy':14} {'noise':>6} {'best':>8} {'NRMSE':>7} {'taken':>8} {'ratio':>6} {'0.03':>6}")
    for name, anatomy in anatomies():
        for acceleration in (2, 3, 4):
            for noise_std in NOISE:
                scan = simulated(name, anatomy, acceleration, noise_std)
                best, weight = min((error(scan, weight)[0], weight) for weight in WEIGHTS)
                ours, taken = error(scan, None)
                fixed, _ = error(scan, MOST_REGULARISATION)
                print(
                    f"{scan.name:14} {noise_std:>6} {weight:>8g} {best:>7.4f} {taken:>8} {ours / best:>6.3f}"
                    f" {fixed / best:>6.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
