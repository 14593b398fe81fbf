"""A pipeline from the registry, ready for jobs: a group of readouts goes in, MRD images come out.

Joins preparation, reconstruction with its uncertainty, the grid of the recon space, and emission. The same group
gives the same bytes on the same machine: nothing here depends on earlier jobs, and what is random in a reconstruction
is seeded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import ModelError
from pipelines.assembly.frame import Group
from pipelines.domain import domain_comment, reasons_outside
from pipelines.emission import Emission, emit, parameters_digest
from pipelines.errors import ModelUnavailableError, ReconstructionError
from pipelines.extras import place_extras
from pipelines.mrd import Image
from pipelines.parameters import Parameters
from pipelines.preprocess.nonuniform import prepare_nonuniform
from pipelines.preprocess.preparation import prepare
from pipelines.recon.reconstruction import Reconstructed, Reconstruction
from pipelines.registry import find
from pipelines.regrid import to_recon_grid


@dataclass(frozen=True, slots=True)
class PipelineOutput:
    """What came of a group.

    Attributes:
        images: of each frame the parts asked for (magnitude), then the uncertainty, then extra series; float32 or
            complex64.
        stages_s: seconds by stage: `noise` (the whole preparation), `csm`, `recon`, `uncertainty`, `post`.
        warnings: sentences for the scanner, without patient data.
        outside_domain: why a result lies outside the domain of its model (`pipelines.domain`); empty where none does.
    """

    images: tuple[Image, ...]
    stages_s: dict[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[str, ...] = ()
    outside_domain: tuple[str, ...] = ()


class Pipeline:
    """One entry of the registry with its parameters, loaded on one device."""

    def __init__(self, name: str, parameters: Mapping[str, object], device: str) -> None:
        """Load a pipeline.

        Raises:
            UnknownPipelineError: the registry has no such name.
            ParameterError: a parameter is unknown or out of range.
            ModelUnavailableError: its model is missing, or does not match its card.
        """
        entry = find(name)
        self._name = name
        self._device = device
        self._parameters = cast("Parameters", entry.parse(parameters))
        self._digest = parameters_digest(name, self._parameters)
        self._reconstruction = cast("Reconstruction", entry.load(self._parameters, device))

    @torch.inference_mode()
    def __call__(self, group: Group, provenance: Mapping[str, str]) -> PipelineOutput:
        """Reconstruct a group.

        Args:
            group: frames as assembled; not changed, and no view of them is kept.
            provenance: attributes to put on every image.

        Raises:
            ReconstructionError: the data cannot be reconstructed, or the result is not finite.
            BudgetError: the header asks for too large an image.
            ModelUnavailableError: a model that only these data ask for cannot be used.
        """
        started = time.perf_counter()
        make_ready = prepare if group.trajectory is None else prepare_nonuniform
        preparation = make_ready(group, self._parameters, self._device)
        prepared_at = time.perf_counter()
        try:
            result = self._reconstruction(preparation.prepared)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, but not in its stubs
            message = (
                f"pipeline {self._name!r}: the data lead to equations that have no solution (values far too large?)"
            )
            raise ReconstructionError(message) from error
        except ModelError as error:
            raise ModelUnavailableError(f"pipeline {self._name!r}: {error}") from error
        reconstructed_at = time.perf_counter()
        encoding = group.scan.encodings[group.key.encoding]
        is_in_view = group.trajectory is not None
        image, deviation = to_recon_grid(result.image, result.deviation, encoding, is_in_view=is_in_view)
        placed = place_extras(result, encoding, preparation.signal_scale, is_in_view=is_in_view)
        scale = preparation.signal_scale[:, None, None, None]
        emission = Emission(
            kind=result.kind.value,
            calibration=result.calibration,
            noise=preparation.noise_source,
            pipeline=self._name,
            parameters_digest=self._digest,
            details={**result.details, **preparation.details},
            provenance=provenance,
            parts=self._parameters.parts,
        )
        images, warnings = emit(
            group,
            self._finite(image * scale, "image"),
            self._finite(deviation * scale, "uncertainty"),
            emission,
            placed.extras,
        )
        stages_s = {
            "noise": prepared_at - started,
            **_stages(result, reconstructed_at - prepared_at),
            "post": time.perf_counter() - reconstructed_at,
        }
        comment = domain_comment(result.details)
        said = [
            *preparation.warnings,
            *result.warnings,
            *placed.warnings,
            *([f"Images are {comment}."] if comment else []),
            *warnings,
        ]
        return PipelineOutput(images, stages_s, tuple(dict.fromkeys(said)), reasons_outside(result.details))

    def _finite(self, values: Tensor, what: str) -> NDArray[Any]:
        """Values on the CPU; a result that is not finite is never sent."""
        array = np.asarray(values.to("cpu").numpy())
        if not np.isfinite(array).all():
            raise ReconstructionError(f"pipeline {self._name!r}: the {what} holds values that are not finite")
        return array


def _stages(result: Reconstructed, seconds: float) -> dict[str, float]:
    """Stages that the reconstruction timed itself; all of it is `recon` where it did not."""
    return result.stages_s or {"recon": seconds}
