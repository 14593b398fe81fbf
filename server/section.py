"""What sections of the settings are made of: frozen, no unknown keys, every field with unit and description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def setting(default: Any, description: str, *, unit: str = "", **constraints: Any) -> Any:
    """A field with its description and unit."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **constraints)


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Models(Section):
    """Weights of learned reconstructions, each with its card."""

    directory: str = setting(
        "",
        "A directory of models of your own (cards/ and weights/, see `echotrain models`) beside those installed; empty "
        "for none.",
    )


class Noise(Section):
    """Noise measurements, kept for later scans that name them as their dependency."""

    directory: str = setting(
        "",
        "Where noise covariances are kept beyond a restart, best one that does not exist yet; empty keeps them in "
        "memory only.",
    )
    expiry_s: float = setting(48 * 3600.0, "How long a noise measurement is used.", unit="s", gt=0)
    entries: int = setting(64, "Noise measurements kept; the oldest make room.", ge=1, le=10_000)


class Capture(Section):
    """Received bytes, kept to play scans back (`echotrain replay`)."""

    directory: str = setting("", "Where they are kept, best one that does not exist yet; empty keeps nothing.")
    identified: bool = setting(
        default=False,
        description="Keep the scan header as it came, with what tells whose scan it is, and images; otherwise neither.",
    )
    keep_s: float = setting(7 * 24 * 3600.0, "How long a capture is kept.", unit="s", gt=0)
    most_bytes: int = setting(100 << 30, "Most that is kept; the oldest make room.", unit="bytes", ge=1 << 20)
    keep_free_bytes: int = setting(1 << 30, "What stays free on the disk.", unit="bytes", ge=0)
    queue_bytes: int = setting(
        256 << 20, "What may wait to be written; a capture that is slower is given up.", unit="bytes", ge=1 << 20
    )
