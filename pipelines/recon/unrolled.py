"""A network that unrolls gradient descent, with a deviation that it predicts itself and that noise adds to.

    x = network(A^H y, A^H A, noise),        s^2 = head^2 + smooth mean over replicas of (|x(y + n)| - |x(y)|)^2

The network (`models.unrolled`) was trained on scans of the kind that its card tells of, with coil maps estimated by the
code used here. The head tells how wrong such images are on average where they look like this one; the replicas (Robson
2008, doi 10.1002/mrm.21728) tell what the noise of this very measurement does to it, whatever the head believes. Both
together are scaled by the factor of the card.

Planes are worked on in batches that fit into memory. Where the image does not explain the data as those did that the
network was calibrated with (data residual), it lies outside of the model's domain and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Complex64, Float32, Float64
from torch import Tensor

from models.store import open_model
from models.unrolled import UnrolledModel
from pipelines.domain import domain_details
from pipelines.errors import ParameterError, ReconstructionError
from pipelines.parameters import SenseParameters, UnrolledParameters
from pipelines.recon.card_calibration import CardCalibration
from pipelines.recon.initial_maps import unit_phase
from pipelines.recon.plane_scans import PlaneScan, make_scans
from pipelines.recon.posterior import smooth
from pipelines.recon.reconstruction import ExtraSeries, Prepared, Reconstructed, UncertaintyKind
from pipelines.recon.sense import Sense, checked_scale

MOST_BYTES_CPU = 1 << 30
MOST_BYTES_GPU = 16 << 30
"""Of the planes that are worked on side by side."""

MOST_PLANE_BYTES = 16 << 30
"""A plane that needs more is refused before anything is computed."""

COIL_ARRAYS, FEATURE_ARRAYS = 5, 6
"""Arrays of coil images, and of the features of the first stage, that exist at a time at most."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was found for some planes.

    Attributes:
        image: complex.
        deviation: of its magnitude, not calibrated.
        residual: mean square of what is left of the data, over the noise variance.
        maps: coil sensitivities.
    """

    image: Complex64[Tensor, "items p q"]
    deviation: Float32[Tensor, "items p q"]
    residual: Float64[Tensor, "items"]
    maps: Complex64[Tensor, "items coils p q"]


class UnrolledNetwork:
    """An unrolled network from the store."""

    def __init__(self, parameters: UnrolledParameters, device: str) -> None:
        """Open the model.

        Raises:
            ModelError: the model asked for cannot be used.
            ParameterError: it is no unrolled network.
        """
        stored = open_model(parameters.model)
        network = stored.build()
        if not isinstance(network, UnrolledModel):
            raise ParameterError(
                f"the model {stored.card.title} is no unrolled network but a {stored.card.architecture}"
            )
        self._parameters = parameters
        self._device = torch.device(device)
        self._card = stored.card
        self._model_details = stored.details()
        self._network = cast("UnrolledModel", network.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]

    def __call__(self, prepared: Prepared) -> Reconstructed:
        """Reconstruct frames.

        Raises:
            ReconstructionError: nothing was measured, values are not finite, or a plane needs too much memory.
        """
        result = self._reconstruct(prepared)
        if result.details["ReconDomain"] == "inside" or self._parameters.outside_domain == "mark":
            return result
        marks = {name: value for name, value in result.details.items() if name.startswith("ReconDomain")}
        try:
            other = Sense(SenseParameters.model_validate({}), str(self._device))(prepared)
        except ReconstructionError as error:
            warning = f"The image lies outside the domain of the model, and sense cannot replace it: {error}."
            return replace(result, warnings=(*result.warnings, warning))
        stages = {name: other.stages_s.get(name, 0.0) + seconds for name, seconds in result.stages_s.items()}
        return replace(
            other,
            details={**other.details, **marks, "ReconInstead": "sense", "ReconInsteadOf": self._card.title},
            stages_s={**other.stages_s, **stages},
        )

    def _reconstruct(self, prepared: Prepared) -> Reconstructed:
        started = before = self._clock()
        scale = checked_scale(prepared)
        normalised = replace(
            prepared,
            kspace=prepared.kspace / scale,
            calibration=None if prepared.calibration is None else prepared.calibration / scale,
            neighbours=tuple(each / scale for each in prepared.neighbours),
            noise_std=prepared.noise_std / scale,
        )
        scans = make_scans(normalised, self._most_values(prepared))
        seconds = {"csm": 0.0, "recon": 0.0, "uncertainty": 0.0}
        estimates: list[Estimate] = []
        for number, scan in enumerate(scans.parts):
            seconds["csm"] += self._clock() - before
            estimates.append(self._estimate(scan, number, seconds))
            before = self._clock()
        raw = torch.cat([each.image for each in estimates])
        calibration = CardCalibration()
        if self._parameters.calibrate and self._parameters.replicas:
            calibration = CardCalibration.of_card(self._card, "unrolled", UncertaintyKind.PREDICTED.value)
        magnitude, deviation = calibration(raw.abs(), torch.cat([each.deviation for each in estimates]))
        residual = torch.cat([each.residual for each in estimates])
        outside = sorted(
            {name for value in residual.tolist() for name in self._card.domain.outside(data_residual=value)}
        )
        seconds["recon"] += self._clock() - started - sum(seconds.values())
        return Reconstructed(
            image=scans.to_volumes(magnitude * unit_phase(raw)) * scale,
            deviation=scans.to_volumes(deviation) * scale,
            kind=UncertaintyKind.PREDICTED,
            calibration=calibration.text,
            details={
                **self._model_details,
                **domain_details(outside),
                **calibration.details,
                "ReconResidual": f"{float(residual.max()):.3f}",
                "ReconReplicas": str(self._parameters.replicas),
                "ReconNeighbours": str(len(prepared.neighbours)),
            },
            stages_s=seconds,
            warnings=self._warnings(prepared, is_calibrated=calibration.record is not None),
            extras=self._extras(estimates, scans.to_volumes),
        )

    def _estimate(self, scan: PlaneScan, number: int, seconds: dict[str, float]) -> Estimate:
        """Image and deviation of some planes; the replicas depend on the number of the part alone."""
        begun = self._clock()
        result = self._network(scan.adjoint, scan.encoding, scan.noise)
        image, magnitude = result.image, result.image.abs()
        solved = self._clock()
        variance = result.deviation.square()
        generator = torch.Generator("cpu").manual_seed(number)
        replicas = self._parameters.replicas
        for _ in range(replicas):
            replica = self._network(scan.adjoint + scan.draw_noise(generator), scan.encoding, scan.noise).image
            variance = variance + smooth((replica.abs() - magnitude).square()) / replicas
        deviation = variance.sqrt() * scan.encoding.support
        seconds["recon"] += solved - begun
        seconds["uncertainty"] += self._clock() - solved
        residual = scan.data.value(scan.maps * image[:, None]) / scan.data.n_samples.clamp(min=1)
        return Estimate(image, deviation, residual, scan.maps)

    def _most_values(self, prepared: Prepared) -> int:
        """Complex values of coil images in a batch of planes.

        Raises:
            ReconstructionError: one plane alone needs too much memory.
        """
        coils = prepared.kspace.shape[1]
        z, y, x = prepared.kspace.shape[2:]
        plane = y * x if z == 1 else max(z * y, y * x)
        if prepared.trajectory is not None:
            plane = prepared.trajectory.shape[0] * prepared.trajectory.shape[1]
        a_pixel = bytes_a_pixel(self._network, coils)
        if plane * a_pixel > MOST_PLANE_BYTES:
            raise ReconstructionError(
                f"a plane of {plane} pixels with {coils} coils needs {plane * a_pixel >> 20} MiB, more than "
                f"{MOST_PLANE_BYTES >> 20}"
            )
        most = MOST_BYTES_CPU if self._device.type == "cpu" else MOST_BYTES_GPU
        return max(1, most // a_pixel) * coils

    def _warnings(self, prepared: Prepared, *, is_calibrated: bool) -> tuple[str, ...]:
        said: list[str] = []
        if prepared.calibration is None and prepared.kspace.shape[1] > 1:
            said.append("No calibration lines: coil maps come from what lies near the centre, with its aliases.")
        if not is_calibrated:
            said.append("The uncertainty is not calibrated: errors may be several times as large as it says.")
        if self._parameters.partial_fourier != "zero_fill":
            said.append("The parameter partial_fourier does nothing for unrolled: its network fills what is missing.")
        return tuple(said)

    def _extras(self, estimates: list[Estimate], to_volumes: Callable[[Tensor], Tensor]) -> tuple[ExtraSeries, ...]:
        if "coil_maps" not in self._parameters.extra_series:
            return ()
        maps = torch.cat([each.maps for each in estimates])
        volumes = torch.stack([to_volumes(maps[:, coil]) for coil in range(maps.shape[1])], 1)
        return (ExtraSeries("coil_maps", volumes, "Sensitivity of a (virtual) coil, of root sum of squares 1"),)

    def _clock(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def bytes_a_pixel(network: UnrolledModel, coils: int) -> int:
    """Memory that a pixel of a plane needs at most while the network works on it, in bytes."""
    configuration = network.configuration
    features = (configuration.widths[0] + configuration.memory) // 4  # at half resolution along both axes
    return 8 * COIL_ARRAYS * coils + 4 * FEATURE_ARRAYS * (features + 24)
