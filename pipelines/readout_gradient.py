"""The readout gradient of EPI as headers describe it; numbers and names only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GRADIENT_TIMES: Final = {
    "rampUpTime": "ramp_up",
    "flatTopTime": "flat_top",
    "rampDownTime": "ramp_down",
    "acqDelayTime": "delay",
    "dwellTime": "dwell",
}
"""Parameter of trajectoryDescription, as the converters for Siemens write it -> field of `Trapezoid`."""


@dataclass(frozen=True, slots=True)
class Trapezoid:
    """Readout gradient and the sampling under it; times in microseconds, 0 if not given.

    Attributes:
        ramp_up: rising edge.
        flat_top: plateau; 0 means that nothing is sampled on the ramps (as Gadgetron's EPIReconX takes it).
        ramp_down: falling edge.
        delay: start of the gradient to start of the first sample.
        dwell: time of one sample.
    """

    ramp_up: float = 0.0
    flat_top: float = 0.0
    ramp_down: float = 0.0
    delay: float = 0.0
    dwell: float = 0.0
