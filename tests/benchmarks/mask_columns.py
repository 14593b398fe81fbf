"""The columns of the mask table: pipelines of the registry, and BART with its own coil maps.

A column takes `Prepared` and gives a magnitude image `(y, x)`. Some have one number to choose (a weight, a number of
iterations); it is chosen once for each pattern and never on the images of the table: `CHOSEN` holds what

    python tests/benchmarks/mask_table.py --choose --columns bart_l1_wavelet bart_nlinv --cases 1

found on a head that models train on (`colin27` of `brain_t1_1mm.h5`), with the noise of the table.

BART gets what suits it best: for `pics` the maps of its own `nlinv` (8 steps) instead of ESPIRiT's (`ecalib`), which
fail with few lines. The same head, other draws of the pattern, uncropped ESPIRiT maps / maps of nlinv: 28.9 / 29.0 dB
with 8 % autocalibration lines, 22.6 / 24.7 with 4 %; with the default crop of 0.8 most of a head was missing at 4 %
(9.4 dB). From spokes an inverse NUFFT leaves gaps even in the centre (one IXI head, 17 spokes: 24.0 with the best
ESPIRiT maps, 24.4). And for spokes our density weights, without which 40 iterations do not arrive (22.5 dB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bart_command import Bart
from numpy.typing import NDArray

from models.card import Card
from models.catalogue import SHIPPED, entries, read_card
from models.catalogue import find as find_model
from models.errors import ModelError
from pipelines.errors import ParameterError, ReconstructionError, UnknownPipelineError
from pipelines.evaluation.cases import plane_of
from pipelines.evaluation.comparison import on_device
from pipelines.parameters import JointIpalmParameters, Parameters, UnrolledParameters
from pipelines.recon import joint_ipalm, joint_warm_up
from pipelines.recon.joint_problem import IMAGINARY_PRICE
from pipelines.recon.nonuniform_zero_filled import frame_densities
from pipelines.recon.posterior import ChainLengths
from pipelines.recon.priors import TOTAL_VARIATION
from pipelines.recon.reconstruction import Prepared, Reconstruction
from pipelines.registry import find

Image = NDArray[np.float32]

WAVELET_ITERATIONS = 60
WAVELET_SETTINGS = f"{WAVELET_ITERATIONS} iterations, maps of nlinv"
NEWTON_STEPS_FOR_MAPS = 8
WAVELET_WEIGHTS = (0.001, 0.003, 0.01)
NEWTON_STEPS = (8.0, 9.0, 10.0, 11.0, 12.0, 13.0)
SHORTEST = ChainLengths("none", 1, 0, 1, 1)
WITHOUT_CHAINS = patch.multiple(joint_ipalm, QUICK=SHORTEST, LANGEVIN=SHORTEST)
WEIGHT = "weight"
"""Stands in the parameters of a pipeline for the number that is chosen."""

CHOSEN: dict[str, dict[str, float]] = {
    "bart_l1_wavelet": {
        "cartesian4_acl8": 0.001,
        "cartesian4_acl8_swapped": 0.003,
        "cartesian4_acl4": 0.003,
        "gaussian8": 0.003,
        "radial11": 0.003,
    },
    "bart_nlinv": {
        "cartesian4_acl8": 9.0,
        "cartesian4_acl8_swapped": 9.0,
        "cartesian4_acl4": 9.0,
        "gaussian8": 9.0,
        "radial11": 13.0,
    },
}
"""Found with 7, 8 and 9 Newton steps, and for wavelets with ESPIRiT's maps. Nine is the most that was tried on a grid:
on another head (`s1`) ten took twice as long and gave +0.3 dB and -0.04 SSIM on Cartesian lines, -0.04 dB on Gaussian
points. For spokes up to 13 were tried (8 to 13: 21.3, 23.9, 27.1, 28.5, 29.5, 29.8 dB)."""


@dataclass(frozen=True)
class Column:
    """One way to reconstruct.

    Attributes:
        name: on the command line and in the table.
        reconstruct: data, pattern and chosen number to image.
        candidates: numbers to choose from; none where nothing is chosen.
        why_not: why it cannot run here; empty when it can.
        settings: what else decides the image, for the record.
    """

    name: str
    reconstruct: Callable[[Prepared, float], Image]
    candidates: tuple[float, ...] = ()
    why_not: str = ""
    settings: str = ""

    def chosen(self, sampling: str) -> float:
        """The number for a pattern; the median of the candidates where none was chosen."""
        if not self.candidates:
            return 0.0
        return CHOSEN.get(self.name, {}).get(sampling, self.candidates[len(self.candidates) // 2])


class PipelineColumn:
    """A pipeline of the registry."""

    def __init__(self, pipeline: str, parameters: Mapping[str, Any], device: str, *, has_chains: bool) -> None:
        """`has_chains`: whether `joint_ipalm` samples; without, a single step, since only the image is looked at."""
        self._has_chains = has_chains
        self._pipeline = pipeline
        self._parameters = parameters
        self._device = device
        self._loaded: dict[float, Reconstruction] = {}

    def why_not(self) -> str:
        """Why the registry cannot give it, or the store its model."""
        try:
            find(self._pipeline).parse(self._with(1.0))
            self._card()
        except (UnknownPipelineError, ParameterError, ModelError) as error:
            return str(error)
        return ""

    def settings(self) -> str:
        """What decides the image: parameters, and what stands behind them in this version."""
        text = f"{self._pipeline} {dict(self._parameters)} {self._device}"
        if self._pipeline == "joint_ipalm":
            steps = joint_warm_up.FIRST_STEPS, joint_warm_up.STEPS, joint_warm_up.ROUNDS
            text = f"{text} {IMAGINARY_PRICE} {steps}"
        if self._parameters.get("prior") == "total_variation":
            return f"{text} {TOTAL_VARIATION}"
        card = None if self.why_not() else self._card()
        return text if card is None else f"{text} {card.title} {card.sha256[:12]}"

    def _card(self) -> Card | None:
        """Of the model it needs; None where it needs none."""
        parameters = find(self._pipeline).parse(self._with(1.0))
        is_joint = isinstance(parameters, JointIpalmParameters) and parameters.prior == "energy"
        if not (is_joint or isinstance(parameters, UnrolledParameters)):
            return None
        return read_card(find_model(parameters.model))

    @torch.inference_mode()
    def __call__(self, prepared: Prepared, number: float) -> Image:
        """Reconstruct."""
        if number not in self._loaded:
            entry = find(self._pipeline)
            parameters = entry.parse(self._with(number))
            if not isinstance(parameters, Parameters):
                raise TypeError(f"{self._pipeline} takes images, not readouts")
            with nullcontext() if self._has_chains else WITHOUT_CHAINS:
                self._loaded[number] = entry.load(parameters, self._device)  # type: ignore[assignment]
        image = self._loaded[number](on_device(prepared, self._device)).image
        return np.asarray(plane_of(image)[0].abs().cpu().numpy(), np.float32)

    def _with(self, number: float) -> dict[str, Any]:
        return {name: number if value == WEIGHT else value for name, value in self._parameters.items()}


@dataclass
class BartScan:
    """One scan in BART's folder, written once for all BART columns, with maps that BART made."""

    bart: Bart
    prepared: Prepared | None = None
    shape: tuple[int, int] = (0, 0)
    options: list[str] = field(default_factory=list[str])
    weights: list[str] = field(default_factory=list[str])
    has_maps: bool = False

    def run(self, *arguments: str) -> None:
        """Run a command.

        Raises:
            ReconstructionError: BART failed; with what it printed.
        """
        try:
            self.bart.run(*arguments)
        except RuntimeError as error:
            raise ReconstructionError(str(error)) from error

    def hold(self, prepared: Prepared) -> None:
        """Write it, unless it is there."""
        if self.prepared is prepared:
            return
        self.prepared, self.has_maps = prepared, False
        trajectory = prepared.trajectory
        self.options, self.weights = ([], []) if trajectory is None else (["-t", "traj"], ["-p", "weights"])
        if trajectory is None:
            kspace = prepared.kspace[0]
            kspace = kspace[..., 0] if kspace.shape[-1] == 1 else kspace[:, 0]
            self.shape = (int(kspace.shape[1]), int(kspace.shape[2]))
            self.bart.write("ksp", kspace[:, None].numpy())
            return
        self.shape = trajectory.shape
        positions = trajectory.positions[0].numpy() * np.array(self.shape[::-1])
        three = np.concatenate([positions, np.zeros_like(positions[..., :1])], -1)
        density = frame_densities(trajectory)[0].numpy()
        self.bart.write("ksp", prepared.kspace[0, :, 0].numpy()[..., None])
        self.bart.write("traj", three.astype(np.complex64)[None])
        self.bart.write("weights", np.sqrt(density / density.max()).astype(np.complex64)[None, ..., None])

    def make_maps(self) -> None:
        """Maps of `nlinv`, which for spokes returns a field of view twice as large."""
        if self.has_maps:
            return
        self.run("nlinv", f"-i{NEWTON_STEPS_FOR_MAPS}", "-S", *self.options, "ksp", "nlinv_image", "nlinv_maps")
        maps = self.bart.read("nlinv_maps")
        for axis, n in zip((2, 3), self.shape, strict=True):
            maps = np.take(maps, np.arange(n) + maps.shape[axis] // 2 - n // 2, axis)
        length = np.sqrt((np.abs(maps) ** 2).sum(0))
        self.bart.write("maps", maps / np.maximum(length, 1e-12))
        self.has_maps = True

    def image(self) -> Image:
        """The magnitude that a command left."""
        return np.asarray(np.abs(self.bart.read("image")).reshape(self.shape), np.float32)

    def l1_wavelet(self, prepared: Prepared, weight: float) -> Image:
        """`pics` with wavelets (FISTA, cycle spinning); the weight is relative to the brightness that BART finds."""
        self.hold(prepared)
        self.make_maps()
        settings = ("-S", "-e", f"-RW:3:0:{weight:g}", f"-i{WAVELET_ITERATIONS}")
        self.run("pics", *settings, *self.weights, *self.options, "ksp", "maps", "image")
        return self.image()

    def nlinv(self, prepared: Prepared, newton_steps: float) -> Image:
        """Regularised nonlinear inversion: image and maps together, like ours."""
        self.hold(prepared)
        self.run("nlinv", "-S", f"-i{newton_steps:g}", *self.options, "ksp", "image")
        return self.image()


def columns(bart: Bart | None, device: str) -> list[Column]:
    """All columns, in the order of the table.

    Args:
        bart: where BART runs; None where it is not installed.
        device: of pipelines.
    """

    def of_pipeline(
        name: str, pipeline: str, parameters: Mapping[str, Any] | None = None, candidates: tuple[float, ...] = ()
    ) -> Column:
        has_chains = (parameters or {}).get("estimate") == "mmse"
        column = PipelineColumn(pipeline, parameters or {}, device, has_chains=has_chains)
        return Column(name, column, candidates, column.why_not(), column.settings())

    scan = None if bart is None else BartScan(bart)
    missing = "bart is not installed"
    return [
        of_pipeline("zero_filled", "zero_filled"),
        of_pipeline("total_variation", "joint_ipalm", {"prior": "total_variation"}),
        of_pipeline("sense", "sense"),
        Column("bart_l1_wavelet", _none, WAVELET_WEIGHTS, missing)
        if scan is None
        else Column("bart_l1_wavelet", scan.l1_wavelet, WAVELET_WEIGHTS, "", WAVELET_SETTINGS),
        Column("bart_nlinv", _none, NEWTON_STEPS, missing)
        if scan is None
        else Column("bart_nlinv", scan.nlinv, NEWTON_STEPS),
        of_pipeline("joint_ipalm_map", "joint_ipalm", {"estimate": "map"}),
        of_pipeline("joint_ipalm_mmse", "joint_ipalm", {"estimate": "mmse"}),
        of_pipeline("unrolled", "unrolled", {"replicas": 0}),
        *(of_pipeline(name, "unrolled", {"replicas": 0, "model": name}) for name in _further_networks()),
    ]


def _further_networks() -> list[str]:
    """Unrolled networks of a directory of one's own, to compare with: baselines, ablations."""
    names = dict.fromkeys(entry.name for entry in entries() if entry.root != SHIPPED)
    return [name for name in names if read_card(find_model(name)).architecture == "unrolled"]


def _none(_prepared: Prepared, _number: float) -> Image:
    raise RuntimeError("this column cannot run here")
