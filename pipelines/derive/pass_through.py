"""Nothing is derived: originals go back as they came. The shortest example, and a test of a scanner's image road."""

from __future__ import annotations

from pipelines.derive.derivation import Derived
from pipelines.mrd import Image
from pipelines.parameters import ImageParameters


class PassThrough:
    """Makes nothing of an image."""

    def __init__(self, parameters: ImageParameters, device: str) -> None:
        del parameters, device

    def __call__(self, image: Image, warnings: list[str]) -> Derived | None:
        """None, whatever came."""
        del image, warnings
        return None
