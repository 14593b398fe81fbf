"""What a learned energy takes for an image, with no data at all: samples drawn from noise, beside training images.

Annealed Langevin sampling (Song and Ermon 2019, arXiv 1907.05600): chains begin as white noise of the largest level
that the energy knows and go down through its levels, a number of steps at each, `x - d grad R(x; s) + sqrt(2 d) n` with
d = s^2 / 4; the last step takes the noise out (`x - s^2 grad R`). The picture has the samples on the left and patches
as training draws them on the right.

Run: `python tests/benchmarks/energy_samples.py energy-brain brain_t1_ixi_2mm.h5 [more.h5] [--side 80] [--steps 60]`;
files are found in the data folder. The picture is written to `bench-output/samples-<model>.png`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.energy import LARGEST_DEVIATION, SMALLEST_DEVIATION, EnergyModel
from models.store import open_model
from models.training.energy_pictures import draw_samples
from models.training.images import Patches, read_sources

DATA = Path("/work/shared/data/train")
LEVELS = 12
SAMPLES = 16


@torch.no_grad()
def draw(model: EnergyModel, side: int, steps: int, seed: int) -> Tensor:
    """Samples `(n, side, side)`."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn((SAMPLES, side, side), generator=generator)

    x = LARGEST_DEVIATION * normal()
    level = LARGEST_DEVIATION
    for level in np.geomspace(LARGEST_DEVIATION, SMALLEST_DEVIATION, LEVELS).tolist():
        step = level**2 / 4
        for _ in range(steps):
            x = x - step * model.value_and_gradient(x, level)[1] + math.sqrt(2 * step) * normal()
    return x - level**2 * model.value_and_gradient(x, level)[1]


def main() -> None:
    """Draw the picture, and print how bright and how varied samples and patches are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--side", type=int, default=80)
    parser.add_argument("--steps", type=int, default=60, help="at each level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    model = open_model(arguments.model).build()
    if not isinstance(model, EnergyModel):
        raise SystemExit(f"{arguments.model} is no energy of images")
    sources = read_sources([DATA / name for name in arguments.data], validation=False)
    patches = Patches(sources, arguments.side).draw(SAMPLES, np.random.default_rng(arguments.seed))
    samples = draw(model, arguments.side, arguments.steps, arguments.seed)
    arguments.output.mkdir(exist_ok=True)
    path = arguments.output / f"samples-{arguments.model.split('@')[0]}.png"
    draw_samples(samples, patches, path)
    for name, images in (("samples", samples), ("patches", patches)):
        energy = model.value(images, SMALLEST_DEVIATION).mean() / images[0].numel()
        print(f"{name:8} mean {images.mean():.3f}, deviation {images.std():.3f}, {energy:.3f} nats a pixel")
    print(path)


if __name__ == "__main__":
    main()
