"""What a peer may set: the parameters of each pipeline, with what they may be and what they do.

Descriptions are read by people: in listings, in errors at the console, in the README.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipelines.parts import Part

PartialFourierMethod = Literal["zero_fill", "homodyne", "pocs"]


class AnyParameters(BaseModel):
    """What the parameters of all pipelines have in common: unknown ones are refused, and none changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageParameters(AnyParameters):
    """Parameters that every pipeline from images to images has."""

    send_original: bool = Field(True, description="Send each image back as it came before what is derived from it.")


class MagnitudeFilterParameters(ImageParameters):
    """Parameters of `magnitude_filter`."""

    fwhm_mm: float = Field(2.0, gt=0, le=50, description="Full width of the Gaussian at half its maximum, in mm.")


class Parameters(AnyParameters):
    """Parameters that every pipeline from readouts to images has."""

    whiten: bool = Field(
        True, description="Whiten coils with the noise scan; off for data that the scanner has already whitened."
    )
    noise_level: float | None = Field(
        None,
        gt=0,
        le=1e30,
        allow_inf_nan=False,
        description="Standard deviation of the complex noise (root of E|n|^2) of a readout sample, of data whitened "
        "elsewhere: 1.414 behind Gadgetron's NoiseAdjust. Noise scans are then not used.",
    )
    coil_compression: int = Field(0, ge=0, le=256, description="Virtual coils to compress to; 0 keeps all coils.")
    cardiac_phases: int = Field(
        0,
        ge=0,
        le=256,
        description="Cardiac phases to sort the readouts of a free-running cine into, at least 2; 0 keeps the phases "
        "that the scanner counted.",
    )
    gating: Literal["auto", "ecg", "pulse", "trigger"] = Field(
        "auto",
        description="Where heartbeats come from when cardiac_phases is set: the ECG or pulse waveform, the trigger time"
        " stamps of the readouts, or the first of trigger, ecg and pulse that has any.",
    )
    rr_window: float = Field(
        0.25, gt=0, le=1, description="Part of the median RR interval by which a heartbeat may differ from it."
    )
    view_sharing: int = Field(
        0,
        ge=0,
        le=8,
        description="Neighbouring cardiac phases on either side that may lend a phase the lines it lacks; 0 for none.",
    )

    @field_validator("cardiac_phases")
    @classmethod
    def _check_phases(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0 or at least 2")
        return value

    partial_fourier: PartialFourierMethod = Field(
        "zero_fill",
        description="What becomes of the side of k-space that was not measured (partial Fourier along y or z, "
        "asymmetric echo): left zero, but for what coils tell; or restored assuming a smooth phase of the image, by "
        "homodyne or by projections.",
    )
    phase_correction: Literal["none", "linear"] = Field(
        "linear",
        description="Phase of reversed readouts in images that mix both directions (EPI), from the phase-correction "
        "readouts of the scan: constant and linear along the readout.",
    )
    parts: tuple[Part, ...] = Field(
        (Part.MAGNITUDE,),
        min_length=1,
        description="Parts of the image to send, each as its own series, separated by commas: magnitude, phase, real, "
        "imaginary, complex. The uncertainty is always sent.",
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("parts")
    @classmethod
    def _each_once(cls, value: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(dict.fromkeys(value))

    trajectory_units: Literal["auto", "cycles_per_pixel", "radians_per_pixel", "cycles_per_fov"] = Field(
        "auto",
        description="Units of non-Cartesian trajectories: of the encoded pixel along x, or of the field of view of the "
        "images; by default told from the farthest sample.",
    )


class SlowParameters(Parameters):
    """Parameters that pipelines which take long have as well."""

    preview: bool = Field(
        False,
        description="Send a quick image of each group at once, as series of its own that say so; the image asked for "
        "follows. Only a server does.",
    )


class ZeroFilledParameters(Parameters):
    """Parameters of `zero_filled`."""

    combine: Literal["rss", "sensitivity"] = Field(
        "rss", description="Coil combination: root sum of squares, or weighted by estimated sensitivities."
    )

    @model_validator(mode="after")
    def _phase_needs_sensitivities(self) -> ZeroFilledParameters:
        if self.combine == "rss" and set(self.parts) != {Part.MAGNITUDE}:
            raise ValueError(
                "a root sum of squares has no phase; parts other than magnitude need combine 'sensitivity'"
            )
        return self


class SenseParameters(Parameters):
    """Parameters of `sense`."""

    iterations: int = Field(30, ge=1, le=500, description="Most conjugate-gradient iterations.")
    tolerance: float = Field(1e-4, gt=0, lt=1, description="Relative residual at which the solver stops.")
    regularisation: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Tikhonov weight relative to the largest eigenvalue of the normal operator; by default from the "
        "measured noise, 0.001 to 0.03. Lowered to the noise where calibration lines were measured apart. "
        "Non-Cartesian: weight of the image's slope, relative at half the largest spatial frequency.",
    )


class JointIpalmParameters(SlowParameters):
    """Parameters of `joint_ipalm`."""

    coil_compression: int = Field(
        12, ge=0, le=256, description="Virtual coils to compress to; 0 keeps all coils. Twelve keep nearly all signal."
    )
    model: str = Field(
        "energy-brain",
        pattern=r"^[a-z][a-z0-9_-]{0,63}(@[0-9.]{1,20})?$",
        description="Energy of images to compare with: energy-brain, energy-cardiac or one of your own, perhaps with @ "
        "and its version.",
    )
    prior: Literal["energy", "total_variation"] = Field(
        "energy", description="The learned energy, or total variation, which no model is needed for."
    )
    estimate: Literal["map", "mmse"] = Field(
        "map", description="Most probable image, or the mean of the samples that the uncertainty comes from."
    )
    maps: Literal["joint", "fixed"] = Field(
        "joint", description="Estimate coil maps together with the image, or leave them as the calibration tells."
    )
    phase: Literal["any", "smooth"] = Field(
        "any",
        description="Phase of the image: any, with a price on what is not smooth (fat beside water, flow), or smooth"
        " only, which is a little better where it holds.",
    )
    iterations: int = Field(100, ge=5, le=2000, description="Iterations of all noise levels of the prior together.")
    tolerance: float = Field(1e-4, gt=0, lt=1, description="Relative change at which a noise level is done.")
    prior_weight: float = Field(
        1.0, ge=0, le=100, description="Weight of the prior; 1 is as far as it may be believed."
    )
    data_weight: float = Field(
        1.0, gt=0, le=100, description="Weight of the data; 1 is the likelihood at the measured noise level."
    )
    smoothness: float = Field(
        20.0,
        gt=0,
        le=1e6,
        description="Weight of the smoothness of what coil maps change by, over the noise variance of the image.",
    )
    uncertainty: Literal["auto", "langevin", "quick"] = Field(
        "auto",
        description="Length of the chains that sample the posterior: langevin 8 x 500 steps, quick 4 x 40; auto is "
        "quick on a CPU and langevin on a GPU.",
    )
    time_limit_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Time after which iterations end early; images then depend on the speed of the machine.",
    )
    outside_domain: Literal["mark", "total_variation", "sense"] = Field(
        "mark", description="What becomes of an image that the model does not know: marked, or made without the model."
    )
    calibrate: bool = Field(
        True,
        description="Scale deviations and correct intensities as the model's card says; off: raw ones, to calibrate"
        " anew.",
    )
    extra_series: tuple[Literal["coil_maps", "posterior_samples"], ...] = Field(
        (), description="Further series for research, separated by commas: coil_maps, posterior_samples."
    )

    @field_validator("extra_series", mode="before")
    @classmethod
    def _split_extra(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class CineLsDipParameters(SlowParameters):
    """Parameters of `cine_ls_dip`."""

    coil_compression: int = Field(
        8, ge=0, le=256, description="Virtual coils to compress to; 0 keeps all coils. Time grows with them."
    )
    method: Literal["networks", "low_rank_sparse", "deep_priors"] = Field(
        "networks",
        description="Networks that learn from this scan alone to correct frames; classic low rank plus sparse, in "
        "seconds; or networks that bring forth frames from noise, for research.",
    )
    networks: Literal["small", "medium", "large"] = Field(
        "small", description="Size of the networks; small on a CPU, larger ones for a GPU."
    )
    steps: int = Field(90, ge=10, le=5000, description="Most steps of learning; it ends early when nothing is gained.")
    iterations: int = Field(60, ge=5, le=2000, description="Most iterations of classic low rank plus sparse.")
    solver: Literal["fast", "theory"] = Field(
        "fast", description="Of deep_priors: every step is taken, or only those that its proof of descent allows."
    )
    seed: int = Field(0, ge=0, le=1 << 30, description="Of weights and of the lines held out.")
    time_limit_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Time after which iterations end early; images then depend on the speed of the machine.",
    )
    extra_series: tuple[Literal["low_rank", "sparse"], ...] = Field(
        (), description="Further series for research, separated by commas: low_rank, sparse."
    )

    @field_validator("extra_series", mode="before")
    @classmethod
    def _split_extra(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class UnrolledParameters(Parameters):
    """Parameters of `unrolled`."""

    coil_compression: int = Field(
        8, ge=0, le=256, description="Virtual coils to compress to; 0 keeps all coils. Networks are trained with eight."
    )
    model: str = Field(
        "unrolled-small",
        pattern=r"^[a-z][a-z0-9_-]{0,63}(@[0-9.]{1,20})?$",
        description="Unrolled network: unrolled-small or one of your own, perhaps with @ and its version.",
    )
    replicas: int = Field(
        2,
        ge=0,
        le=32,
        description="Reconstructions with noise added, for the part of the uncertainty that this measurement's noise "
        "makes; each takes as long as the image. With 0 the uncertainty is not calibrated.",
    )
    outside_domain: Literal["mark", "sense"] = Field(
        "mark", description="What becomes of an image that the model does not know: marked, or made by sense instead."
    )
    calibrate: bool = Field(
        True, description="Scale deviations as the model's card says; off: raw ones, to calibrate anew."
    )
    extra_series: tuple[Literal["coil_maps"], ...] = Field(
        (), description="Further series for research, separated by commas: coil_maps."
    )

    @field_validator("extra_series", mode="before")
    @classmethod
    def _split_extra(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
