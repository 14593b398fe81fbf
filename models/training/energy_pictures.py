"""What an energy has learnt, to look at: samples beside data, histograms of energies, the energy along lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from models.energy import SMALLEST_DEVIATION, EnergyModel

PROFILE_POINTS = 41
FLAT_BINS = 30


def draw_samples(samples: Float32[Tensor, "n y x"], data: Float32[Tensor, "m y2 x2"], path: Path) -> None:
    """Samples of the model on the left, data on the right; the same window for all."""
    n = min(len(samples), len(data), 16)
    figure = _figure(6.2)
    for number, (images, title) in enumerate(((samples, "samples of the energy"), (data, "data"))):
        axes = figure.add_subplot(1, 2, number + 1)
        axes.imshow(_mosaic(images[:n]), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=100)


def draw_energies(model: EnergyModel, data: Float32[Tensor, "n y x"], path: Path) -> dict[str, float]:
    """Energies a pixel of data and of what is no data, and profiles of the energy along lines through an image.

    Returns:
        Mean energy a pixel of noisy data, of the same blurred, permuted and twice as noisy.
    """
    generator = torch.Generator("cpu").manual_seed(1)

    def noise() -> Tensor:
        return SMALLEST_DEVIATION * torch.randn(data.shape, generator=generator).to(data.device)

    blurred = (data + data.roll(1, -1) + data.roll(1, -2) + data.roll((1, 1), (-2, -1))) / 4
    order = torch.randperm(data[0].numel(), generator=generator).to(data.device)
    kinds = {
        "data": data + noise(),
        "blurred": blurred + noise(),
        "twice as noisy": data + 2 * noise(),
        "permuted": data.flatten(1)[:, order].view_as(data) + noise(),
    }
    pixels = data[0].numel()

    def energy(images: Tensor) -> NDArray[np.float64]:
        return np.asarray((model.value(images, SMALLEST_DEVIATION) / pixels).cpu().numpy(), np.float64)

    energies = {name: energy(images) for name, images in kinds.items()}
    figure = _figure(4.2)
    histogram, profile = figure.subplots(1, 2)
    largest = float(np.quantile(energies["twice as noisy"], 0.95)) * 1.5
    bins = np.linspace(0, largest, FLAT_BINS).tolist()
    for name, values in energies.items():
        histogram.hist(np.clip(values, 0, largest), bins=bins, alpha=0.6, label=f"{name}: {values.mean():.3f}")
    histogram.set_xlabel("energy in nats a pixel (the last bin holds all beyond)")
    histogram.set_ylabel("images")
    histogram.legend()
    for name, direction in {
        "brightness": data[0],
        "blur": blurred[0] - data[0],
        "noise": noise()[0] / SMALLEST_DEVIATION * 0.1,
        "another image": data[-1] - data[0],
    }.items():
        at = torch.linspace(-0.5, 1.0, PROFILE_POINTS, device=data.device)
        images = data[0] + noise()[0] + at[:, None, None] * direction
        profile.plot(at.cpu().numpy(), energy(images), label=f"towards {name}")
    profile.set_xlabel("distance")
    profile.set_ylabel("energy in nats a pixel")
    profile.set_yscale("log")
    profile.legend()
    figure.savefig(path, dpi=100)
    return {f"energy_{name.replace(' ', '_')}": float(values.mean()) for name, values in energies.items()}


def _figure(height: float) -> Any:
    """12 inches wide; draws without a screen, whatever matplotlib is set to elsewhere."""
    figure = Figure((12, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _mosaic(images: Float32[Tensor, "n y x"]) -> NDArray[np.float32]:
    side = int(np.ceil(np.sqrt(len(images))))
    y, x = images.shape[1:]
    canvas = np.zeros((side * y, side * x), np.float32)
    for index, image in enumerate(images.cpu().numpy()):
        row, column = divmod(index, side)
        canvas[row * y : (row + 1) * y, column * x : (column + 1) * x] = image
    return canvas
