"""How much one scan may ask of assembly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AssemblyLimits:
    """Limits of one scan; whatever is over one is refused before memory is taken.

    Attributes:
        max_group_bytes: k-space of one group, and calibration lines of one slice.
        max_open_bytes: everything assembly holds at a time: open groups, calibration lines, noise.
        max_open_groups: groups that may be open at a time (an interleaved scan has one for each slice and contrast).
        max_channels: coils of one readout.
        max_samples: samples of one readout.
        max_noise_bytes: noise readouts summed into the covariance; more are counted and left out, since these give it
            well enough. Bounds the work: each byte costs one multiplication a coil.
        max_waveform_bytes: physiology waveforms kept; beyond it the oldest are dropped.
        max_navigator_bytes: phase-correction readouts of groups still to come; more are counted and left out.
        min_complete_fraction: part of the promised lines that makes an unfinished group worth reconstructing.
        max_out_of_range_fraction: part of the imaging readouts whose counters may lie outside the header's ranges.
    """

    max_group_bytes: int = 1 << 30
    max_open_bytes: int = 2 << 30
    max_open_groups: int = 4096
    max_channels: int = 256
    max_samples: int = 16_384
    max_noise_bytes: int = 16 << 20
    max_waveform_bytes: int = 64 << 20
    max_navigator_bytes: int = 64 << 20
    min_complete_fraction: float = 0.5
    max_out_of_range_fraction: float = 0.25
