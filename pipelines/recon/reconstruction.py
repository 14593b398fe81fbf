"""What every reconstruction takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from jaxtyping import Bool, Complex64, Float32
from torch import Tensor


class UncertaintyKind(StrEnum):
    """What the deviation map holds."""

    NOISE = "noise"
    """Propagated measurement noise."""
    POSTERIOR = "posterior"
    ENSEMBLE = "ensemble"
    PREDICTED = "predicted"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Where the samples of non-Cartesian readouts lie.

    Attributes:
        positions: in cycles a pixel of the image grid, -0.5 to 0.5, x before y.
        shape: y and x of the image grid.
        measured: samples that exist and have a place; the others are zero in `Prepared.kspace` and carry no weight.
    """

    positions: Float32[Tensor, "frames readouts samples 2"]
    shape: tuple[int, int]
    measured: Bool[Tensor, "frames readouts samples"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Frames ready for reconstruction: whitened, averaged, readout oversampling removed.

    Attributes:
        kspace: whitened k-space with its centre at index n//2, zero where not sampled; repeated lines averaged. `x`
            is the reconstructed readout length, `y` and `z` the encoded ones.
        counts: readouts averaged into each line, 0 where nothing was measured; the noise variance of a line is
            `noise_std**2 / counts`. Of lines that dwelt longer than others in proportion more, so not always whole.
        calibration: fully sampled centre of k-space to estimate coil sensitivities from, whitened like `kspace`, on a
            grid of its own with its centre at n//2; None when the data have no calibration region.
        noise_std: standard deviation of the complex noise (root of E|n|^2) of one whitened readout sample in the
            units of `kspace`.
        noise_is_measured: False when it was estimated from the data.
        readout_sampled: which columns of x were measured (asymmetric echo leaves some out).
        trajectory: where the samples of non-Cartesian readouts lie; None for Cartesian ones. With it `kspace` has one
            readout a row: y counts readouts, x samples, and z is 1.
        neighbours: the same centre of k-space of the slices next to this one, where a reconstruction asks for them
            (grouping `stack`) and they have one; their coils are those of `calibration`.
    """

    kspace: Complex64[Tensor, "frames coils z y x"]
    counts: Float32[Tensor, "frames z y"]
    calibration: Complex64[Tensor, "coils cz cy cx"] | None
    noise_std: float
    noise_is_measured: bool
    readout_sampled: Bool[Tensor, "x"]
    trajectory: Trajectory | None = None
    neighbours: tuple[Complex64[Tensor, "coils cz cy cx"], ...] = ()


@dataclass(frozen=True, slots=True)
class ExtraSeries:
    """Further images for research: coil sensitivity maps, samples of the posterior. Sent after the uncertainty.

    Attributes:
        name: what they are, in lower-case letters, digits and underscores (`coil_maps`); `ReconExtra` in the meta and
            the end of series descriptions.
        images: `n` for each frame, on the grid of `Prepared`; the same `n` for every group of a scan.
        comment: what a pixel holds, for the meta.
        role: DataRole in the meta.
        in_image_units: whether pixels are in the units of `Reconstructed.image`: they are then scaled and interpolated
            like the image; others keep their values and are interpolated linearly.
    """

    name: str
    images: Complex64[Tensor, "frames n z y x"] | Float32[Tensor, "frames n z y x"]
    comment: str
    role: Literal["Image", "Quantitative"] = "Quantitative"
    in_image_units: bool = False


@dataclass(frozen=True, slots=True)
class Reconstructed:
    """Images with their uncertainty.

    Attributes:
        image: complex images on the grid of `Prepared`; real and non-negative for root-sum-of-squares.
        deviation: standard deviation of `|image|` per pixel, in the image's own units.
        kind: what the deviation holds.
        calibration: how the deviation was calibrated, for the meta; "analytic" for propagated noise.
        details: numbers worth recording in the meta (iterations, residual), already as text.
        stages_s: seconds by stage name (`csm`, `recon`, `uncertainty`).
        warnings: sentences for the scanner.
        extras: further series, when the parameters ask for them; at most `pipelines.extra_series.MOST_SERIES`.
    """

    image: Complex64[Tensor, "frames z y x"]
    deviation: Float32[Tensor, "frames z y x"]
    kind: UncertaintyKind
    calibration: str = "analytic"
    details: dict[str, str] = field(default_factory=dict[str, str])
    stages_s: dict[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[str, ...] = ()
    extras: tuple[ExtraSeries, ...] = ()


class Reconstruction(Protocol):
    """A reconstruction with its parameters and weights loaded, ready for any number of jobs."""

    def __call__(self, prepared: Prepared) -> Reconstructed:
        """Reconstruct frames.

        Raises:
            ReconstructionError: the data cannot be reconstructed.
        """
        ...
