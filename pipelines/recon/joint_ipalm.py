"""Image and coil maps estimated together, with a learned energy of images as prior and samples of the posterior.

    (u, S) = argmin  sum over samples |F (S_c u / n) - k|^2 / noise_std^2  +  w R(u; s)  +  mu / 2 |grad (S - S_0)|^2
             with u >= 0

The data term is the likelihood in nats and R the negative logarithm of a density in nats, so no weight has to be found
between them but for how far a learned density may be believed (`pipelines.recon.priors`). (The published regression of
lambda on a residual sees nothing but rounding: that residual is zero for any Cartesian pattern.)

The first image is one of total variation, and S_0 is estimated with what it fills in (`pipelines.recon.joint_warm_up`).
R is known at several noise levels s (`pipelines.recon.priors.LEVELS`), which are gone through from the coarsest to the
finest, each by inertial proximal alternating minimisation (`pipelines.solvers.ipalm`) from where the one before ended.
At each the data count as at least as noisy as a share of s says: the image cannot be surer than its prior, and the
curvatures of both terms stay within a factor that a few dozen iterations overcome.

The image is complex: its smooth phase lives in the maps, its real part is what the prior judges, and an imaginary part
takes what phase is left, at a price (`pipelines.recon.joint_problem`). Where much of the phase is not smooth (bSSFP
bands) that price is paid everywhere, and the data residual in the meta and the domain check tell.

Reference: Zach, Knoll, Pock 2023, doi 10.1109/TMI.2023.3288631. Continuation over noise levels: Kobler and Pock 2023,
doi 10.1007/978-3-031-31975-4_1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex64, Float32, Float64
from torch import Tensor

from pipelines.domain import domain_details
from pipelines.errors import ReconstructionError
from pipelines.operators.plane_data import DataTerm
from pipelines.parameters import JointIpalmParameters, SenseParameters
from pipelines.recon.card_calibration import CardCalibration
from pipelines.recon.initial_maps import unit_phase
from pipelines.recon.joint_problem import JointProblem, unit_maps
from pipelines.recon.joint_start import Start, make_starts
from pipelines.recon.joint_warm_up import warm_up
from pipelines.recon.posterior import LANGEVIN, QUICK, Posterior, sample_posterior, smooth
from pipelines.recon.priors import LearnedPrior, Level, Prior, TotalVariationPrior
from pipelines.recon.reconstruction import ExtraSeries, Prepared, Reconstructed, UncertaintyKind
from pipelines.recon.sense import Sense, checked_scale
from pipelines.solvers.ipalm import Minimum, StoppedBy, ipalm
from pipelines.solvers.items import spread

MOST_VALUES_CPU = 1 << 24
"""Complex values of the coil images of planes that are estimated side by side; about a dozen such arrays exist."""
MOST_VALUES_GPU = 1 << 27

MAPS_EVERY = 5
"""Iterations from one step of the maps to the next. A measured brain, a T2-weighted head with measured phase and an IXI
head, 8 and 4 % calibration lines: within 0.02 dB of a step in each iteration, in three quarters of the time."""

ROUNDING = 1e-6
"""Noise of the normalised image that single precision has anyway, for data that claim none."""


PRIOR_CURVATURE = 1.5
"""Largest curvature of a learned energy times its s^2. Of exact ones 1; the small configuration on an image with noise
of s: 1.4 at 0.05, 1.4 at 0.03, 1.4 at 0.02, 1.3 at 0.015."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was found for some planes.

    Attributes:
        image: normalised, the most probable one.
        maps: of length 1, with the phase of the image.
        unit: what the image was divided by.
        phase: of the image.
        posterior: samples.
        energy: R a pixel at the finest level.
        residual: D over what it is of noise alone.
        minima: of each level.
    """

    image: Float32[Tensor, "items p q"]
    maps: Complex64[Tensor, "items coils p q"]
    unit: Float32[Tensor, "items"]
    phase: Complex64[Tensor, "items p q"]
    posterior: Posterior
    energy: Float64[Tensor, "items"]
    residual: Float64[Tensor, "items"]
    minima: tuple[Minimum, ...]


class JointIpalm:
    """Joint estimation of image and maps; planes of a job are worked on side by side."""

    def __init__(self, parameters: JointIpalmParameters, device: str) -> None:
        """Load the prior.

        Raises:
            ModelError: the model asked for cannot be used.
            ParameterError: it is no energy of images.
        """
        self._parameters = parameters
        self._device = torch.device(device)
        self._learned = LearnedPrior(parameters.model, device) if parameters.prior == "energy" else None
        self._title = self._learned.card.title if self._learned is not None else ""
        is_quick = parameters.uncertainty == "quick" or (
            parameters.uncertainty == "auto" and self._device.type == "cpu"
        )
        self._lengths = QUICK if is_quick else LANGEVIN

    def __call__(self, prepared: Prepared) -> Reconstructed:
        """Reconstruct frames.

        Raises:
            ReconstructionError: nothing was measured, or values are not finite.
        """
        result = self._reconstruct(prepared, self._learned or TotalVariationPrior())
        is_outside = result.details.get("ReconDomain") == "outside"
        instead = self._parameters.outside_domain
        if not is_outside or instead == "mark":
            return result
        marks = {name: value for name, value in result.details.items() if name.startswith("ReconDomain")}
        if instead == "total_variation":
            other = self._reconstruct(prepared, TotalVariationPrior())
        else:
            try:
                other = Sense(SenseParameters.model_validate({}), str(self._device))(prepared)
            except ReconstructionError as error:
                warning = f"The image lies outside the domain of the model, and sense cannot replace it: {error}."
                return replace(result, warnings=(*result.warnings, warning))
        stages = {name: other.stages_s.get(name, 0.0) + seconds for name, seconds in result.stages_s.items()}
        return replace(
            other,
            details={**other.details, **marks, "ReconInstead": instead, "ReconInsteadOf": self._title},
            stages_s={**other.stages_s, **stages},
        )

    def _reconstruct(self, prepared: Prepared, prior: Prior) -> Reconstructed:
        started = self._clock()
        scale = checked_scale(prepared)
        limit = self._parameters.time_limit_s
        normalised = replace(
            prepared,
            kspace=prepared.kspace / scale,
            calibration=None if prepared.calibration is None else prepared.calibration / scale,
            noise_std=prepared.noise_std / scale,
        )
        most = MOST_VALUES_CPU if self._device.type == "cpu" else MOST_VALUES_GPU
        starts = make_starts(normalised, most)
        seconds = {"csm": 0.0, "recon": 0.0, "uncertainty": 0.0}
        estimates: list[Estimate] = []
        before = started
        for number, start in enumerate(starts.parts):

            def until(share: float, number: int = number) -> Callable[[], bool] | None:
                if limit is None:
                    return None
                end = limit * (number + share) / starts.n_parts
                return lambda: time.perf_counter() - started > end

            begun = self._clock()
            seconds["csm"] += begun - before
            estimates.append(self._estimate(start, prior, seconds, until))
            before = self._clock()
        result = self._join(estimates, starts.to_volumes, prior, scale, seconds)
        if prepared.calibration is not None:
            return result
        warning = "No calibration lines: coil maps and phase come from what lies near the centre, with its aliases."
        return replace(result, warnings=(*result.warnings, warning))

    def _estimate(
        self,
        start: Start,
        prior: Prior,
        seconds: dict[str, float],
        until: Callable[[float], Callable[[], bool] | None],
    ) -> Estimate:
        """Image and maps of some planes, then samples.

        `until` tells when a share of the time limit of these planes is over: each level and the samples have one, and
        what a level leaves is for those after it.
        """
        begun = self._clock()
        parameters = self._parameters
        shares = len(prior.levels) + 2
        first = warm_up(
            start,
            start.noise_std / parameters.data_weight**0.5,
            is_complex=parameters.phase == "any",
            new_maps=parameters.maps == "joint",
            should_stop=until(1 / shares),
        )
        image, unit, maps = first.image, first.unit, unit_maps(first.maps)
        minima: list[Minimum] = []
        left = parameters.iterations
        level = prior.levels[-1]
        problem = self._problem(start, first.maps, prior, unit, level)
        for number, level in enumerate(prior.levels):
            is_last = number + 1 == len(prior.levels)
            iterations = left if is_last else min(left, max(1, round(level.share * parameters.iterations)))
            left -= iterations
            problem = self._problem(start, first.maps, prior, unit, level)
            minimum = ipalm(
                problem,
                image,
                maps,
                iterations=iterations,
                tolerance=parameters.tolerance,
                fix_v=parameters.maps == "fixed",
                v_every=MAPS_EVERY,
                start_constants=self._first_constants(start, unit, level),
                should_stop=until((number + 2) / shares),
            )
            image, maps = minimum.u, unit_maps(minimum.v)
            minima.append(minimum)
        solved = self._clock()
        curvature = self._data(start, unit, level.least_noise).curvature
        if prior.is_noisy:
            # Not what the last steps met: that depends on rounding, and is of the directions they took.
            curvature = curvature + PRIOR_CURVATURE * parameters.prior_weight * prior.weight / level.deviation**2
        else:
            curvature = torch.maximum(minima[-1].next_constants[0], curvature)
        posterior = sample_posterior(
            problem,
            image,
            maps,
            curvature,
            self._lengths,
            start.numbers,
            spread_by=torch.full_like(unit, level.deviation) if prior.is_noisy else self._width(start, unit, level),
            prior_noise=level.deviation if prior.is_noisy else 0.0,
            should_stop=until(1.0),
        )
        if prior.is_noisy:
            posterior = replace(posterior, deviation=_with_disagreement(posterior.deviation, image, first.image))
        seconds["recon"] += solved - begun
        seconds["uncertainty"] += self._clock() - solved
        data = start.data.of_unit(unit, self._at_least(start.noise_std / unit, 0.0))
        magnitude = image.abs()
        return Estimate(
            magnitude,
            maps,
            unit,
            start.phase * unit_phase((start.maps.conj() * maps).sum(1) * image),
            posterior,
            prior.at(level.deviation)[1](image.real.contiguous()) / image[0].numel(),
            data.value(maps * image[:, None]) / data.n_samples.clamp(min=1),
            tuple(minima),
        )

    def _problem(self, start: Start, maps: Tensor, prior: Prior, unit: Tensor, level: Level) -> JointProblem:
        smoothness = (
            self._parameters.smoothness / self._noise(start, unit, level.least_noise).to(torch.float64).square()
        )
        gradient, value = prior.at(level.deviation)
        weight = self._parameters.prior_weight * prior.weight
        return JointProblem(self._data(start, unit, level.least_noise), gradient, value, weight, smoothness, maps)

    def _data(self, start: Start, unit: Tensor, least: float) -> DataTerm:
        return start.data.of_unit(unit, self._noise(start, unit, least))

    def _noise(self, start: Start, unit: Tensor, least: float) -> Float32[Tensor, "items"]:
        """Noise of the data in units of the normalised image, or the least that they count with."""
        return self._at_least(start.noise_std / self._parameters.data_weight**0.5 / unit, least)

    def _width(self, start: Start, unit: Tensor, level: Level) -> Float32[Tensor, "items"]:
        """Standard deviation of what the data leave open where they tell all: of the real part of their noise."""
        return self._noise(start, unit, level.least_noise) / 2**0.5

    @staticmethod
    def _at_least(noise: Float32[Tensor, "items"], least: float) -> Float32[Tensor, "items"]:
        """Noise, but no less than what rounding makes of an image of 1."""
        return noise.clamp(min=max(least, ROUNDING))

    def _first_constants(self, start: Start, unit: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Curvatures of both blocks, roughly: backtracking finds them."""
        data = self._data(start, unit, level.least_noise).curvature
        return data + 1 / level.deviation**2, data

    def _join(
        self,
        estimates: list[Estimate],
        to_volumes: Callable[[Tensor], Tensor],
        prior: Prior,
        scale: float,
        seconds: dict[str, float],
    ) -> Reconstructed:
        """One result of all planes."""
        parameters, card = self._parameters, prior.card if isinstance(prior, LearnedPrior) else None
        lengths = min((each.posterior.lengths for each in estimates), key=lambda each: each.samples)
        calibration = CardCalibration()
        if card is not None and parameters.calibrate:
            calibration = CardCalibration.of_card(card, "joint_ipalm", lengths.name)

        def chosen(each: Estimate) -> Tensor:
            return each.image if parameters.estimate == "map" else each.posterior.mean

        raw = torch.cat([chosen(each) * spread(each.unit, each.image) for each in estimates])
        spreads = torch.cat([each.posterior.deviation * spread(each.unit, each.image) for each in estimates])
        magnitudes, deviations = calibration(raw, spreads)
        images = magnitudes * torch.cat([each.phase for each in estimates])
        energy = torch.cat([each.energy for each in estimates])
        residual = torch.cat([each.residual for each in estimates])
        outside = sorted(
            {
                name
                for one, other in zip(energy.tolist(), residual.tolist(), strict=True)
                for name in (card.domain.outside(energy_per_pixel=one, data_residual=other) if card is not None else ())
            }
        )
        reduction = torch.cat([each.posterior.scale_reduction for each in estimates])
        size = torch.cat([each.posterior.effective_size for each in estimates])
        last = [minimum for each in estimates for minimum in each.minima]
        is_short = any(StoppedBy.BUDGET in minimum.stopped_by for minimum in last)
        return Reconstructed(
            image=to_volumes(images) * scale,
            deviation=to_volumes(deviations) * scale,
            kind=UncertaintyKind.POSTERIOR,
            calibration=calibration.text,
            details={
                **(prior.details if isinstance(prior, LearnedPrior) else {"ReconPrior": "total_variation"}),
                **(domain_details(outside) if card is not None else {}),
                **calibration.details,
                "ReconEstimate": parameters.estimate,
                "ReconIterations": str(max(sum(int(m.iterations.max()) for m in each.minima) for each in estimates)),
                "ReconResidual": f"{float(residual.max()):.3f}",
                "ReconEnergyPerPixel": f"{float(energy.max()):.3f}",
                "ReconPosterior": str(lengths),
                "ReconScaleReduction": f"{float(reduction.max()):.2f}",
                "ReconEffectiveSamples": f"{float(size.min()):.0f}",
            },
            stages_s=seconds,
            warnings=self._warnings(is_short, lengths is not self._lengths, calibration.record is not None),
            extras=self._extras(estimates, to_volumes, scale, lambda samples: calibration.like(samples, raw)),
        )

    def _warnings(self, is_short: bool, is_unsure: bool, is_calibrated: bool) -> tuple[str, ...]:
        said: list[str] = []
        if not is_calibrated:
            said.append("The uncertainty is not calibrated: errors may be several times as large as it says.")
        if is_short:
            said.append("The time limit ended the iterations early: the image is less sharp than it could be.")
        if is_unsure:
            said.append("The time limit ended the sampling early: the uncertainty is less sure than it could be.")
        if self._parameters.partial_fourier != "zero_fill":
            said.append("The parameter partial_fourier does nothing for joint_ipalm: its prior fills what is missing.")
        return tuple(said)

    def _extras(
        self,
        estimates: list[Estimate],
        to_volumes: Callable[[Tensor], Tensor],
        scale: float,
        corrected: Callable[[Tensor], Tensor],
    ) -> tuple[ExtraSeries, ...]:
        found: list[ExtraSeries] = []
        if "coil_maps" in self._parameters.extra_series:
            maps = torch.cat([each.maps * each.phase.conj()[:, None] for each in estimates])
            volumes = torch.stack([to_volumes(maps[:, coil]) for coil in range(maps.shape[1])], 1)
            comment = "Sensitivity of a (virtual) coil, of root sum of squares 1"
            found.append(ExtraSeries("coil_maps", volumes, comment))
        if "posterior_samples" in self._parameters.extra_series:
            samples = torch.cat(
                [each.posterior.samples * spread(each.unit, each.posterior.samples[0]) for each in estimates], 1
            )
            volumes = torch.stack([to_volumes(sample) for sample in corrected(samples)], 1) * scale
            comment = "Sample of the posterior: an image as likely as any other, given data and prior"
            found.append(ExtraSeries("posterior_samples", volumes, comment, role="Image", in_image_units=True))
        return tuple(found)

    def _clock(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _with_disagreement(
    deviation: Float32[Tensor, "items p q"], image: Tensor, other: Tensor
) -> Float32[Tensor, "items p q"]:
    """Deviation of the samples, and how far two priors disagree: this image and that of total variation.

    Samples tell how sure the energy is, not whether it is right, and short chains do not leave the valley of the most
    probable image: over three heads and three patterns (8 and 4 % calibration lines, Gaussian points) the deviation of
    the samples had to be multiplied by 1.2 to 3.1 to cover 90 % of the errors. What the data leave open, total
    variation fills in otherwise. With it the factors are 0.96 to 1.5, and the area between sparsification curve and
    oracle, patterns of a head together, falls from 0.44, 0.54, 0.48 to 0.43, 0.40, 0.39.
    """
    return (deviation.square() + smooth((image.abs() - other.abs()).square())).sqrt()
