"""What assembly keeps beside the images and hands on with them: noise, calibration, phase correction, waveforms."""

from __future__ import annotations

from pipelines.assembly.calibration import CalibrationStore
from pipelines.assembly.frame import NoiseCovariance
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.navigators import NavigatorStore
from pipelines.assembly.noise import NoiseCollector
from pipelines.assembly.waveforms import WaveformStore


class Companions:
    """The stores of one scan.

    Attributes:
        noise: noise readouts, or what is known of the noise from elsewhere.
        calibration: separate calibration lines.
        navigators: phase-correction readouts.
        waveforms: physiology.
    """

    def __init__(
        self, limits: AssemblyLimits, ledger: Ledger, noise: NoiseCovariance | None, waveforms: WaveformStore | None
    ) -> None:
        self._limits = limits
        self._ledger = ledger
        self.noise = NoiseCollector(limits.max_noise_bytes, ledger, noise)
        self.waveforms = waveforms or WaveformStore(limits.max_waveform_bytes, ledger)
        self.forget_lines()

    @property
    def n_bytes(self) -> int:
        """Memory held."""
        return self.noise.n_bytes + self.calibration.n_bytes + self.navigators.n_bytes + self.waveforms.n_bytes

    def forget_lines(self) -> None:
        """Forget calibration and phase correction: no more groups come."""
        self.calibration = CalibrationStore(self._limits, self._ledger)
        self.navigators = NavigatorStore(self._limits.max_navigator_bytes, self._ledger)

    def forget(self) -> None:
        """Forget everything."""
        self.forget_lines()
        self.noise = NoiseCollector(self._limits.max_noise_bytes, self._ledger)
        self.waveforms.clear()
