"""Pictures of what an unrolled network makes of validation scans."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float32
from torch import Tensor

from models.unrolled import UnrolledResult

mpl.use("Agg")
from matplotlib import image as pictures

ERROR_GAIN = 5


def draw_results(result: UnrolledResult, truth: Float32[Tensor, "items p q"], path: Path) -> None:
    """A row an image: x_0, image, truth, five times the error, five times the deviation."""
    peak = truth.amax((1, 2), keepdim=True).clamp(min=1e-12)
    rows = [
        result.start.abs() / peak,
        result.image.abs() / peak,
        truth / peak,
        ERROR_GAIN * (result.image.abs() - truth).abs() / peak,
        ERROR_GAIN * result.deviation / peak,
    ]
    panels = np.stack([row.float().cpu().numpy() for row in rows], 1)
    tiled = np.concatenate([np.concatenate(list(row), 1) for row in panels], 0)
    pictures.imsave(path, np.clip(tiled, 0, 1), cmap="gray", vmin=0, vmax=1)
