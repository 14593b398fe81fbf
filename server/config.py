"""Every setting of the server, in one frozen tree: file < environment < flags. Unknown keys are errors.

A setting `limits.sessions` is `sessions` under `[limits]` in the TOML file, `ECHOTRAIN_LIMITS__SESSIONS` in the
environment and `--set limits.sessions=4` as a flag. `load` also says where each value came from. Knows no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, TomlConfigSettingsSource

from pipelines import registry
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import PipelineError
from server.endpoints import GIB, MIB, Admin, Gadgetron, Listen
from server.errors import SettingsError
from server.section import Capture, Models, Noise
from server.section import Section as _Section
from server.section import setting as _setting
from server.wire.messages import WireLimits

PREFIX = "ECHOTRAIN_"
FILE_VARIABLE = "ECHOTRAIN_CONFIG"
"""Names the TOML file in the environment, where no flag does."""

# Kubernetes puts these into every pod beside a service called `echotrain`; they are not ours (no nesting in them).
_SERVICE_LINK = re.compile(
    r"ECHOTRAIN_((SERVICE_(HOST|PORT(_[A-Z0-9_]+)?))|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)


class Limits(_Section):
    """How much a peer may ask for. Every size is checked before memory is taken."""

    sessions: int = _setting(16, "Sessions at once; more are told that the server is busy.", ge=1, le=10_000)
    memory_bytes: int = _setting(4 * GIB, "Memory for k-space of all sessions together.", unit="bytes", ge=16 * MIB)
    waiting_bytes: int = _setting(
        2 * GIB,
        "Data of all sessions that wait for reconstruction or for being sent; above it, or above half of memory_bytes, "
        "the server stops reading.",
        unit="bytes",
        ge=MIB,
    )
    session_waiting_bytes: int = _setting(512 * MIB, "The same for one session.", unit="bytes", ge=MIB)
    session_waiting_jobs: int = _setting(64, "Jobs of one session that may wait before the server stops reading.", ge=1)
    receive_buffer_bytes: int = _setting(
        2 * MIB, "Bytes that one reading from a socket may return.", unit="bytes", ge=4096, le=64 * MIB
    )
    message_bytes: int = _setting(
        64 * MIB, "Largest message; a receive buffer never grows beyond it.", unit="bytes", ge=4096, le=2 * GIB
    )
    xml_bytes: int = _setting(MIB, "Length of a scan header or configuration.", unit="bytes", ge=1024, le=64 * MIB)
    text_bytes: int = _setting(MIB, "Length of a text.", unit="bytes", ge=1024, le=64 * MIB)
    texts: int = _setting(1000, "Texts and queries of one session.", ge=1)
    channels: int = _setting(256, "Coils of one readout.", ge=1, le=65535)
    samples: int = _setting(16384, "Samples of one readout and coil.", ge=1, le=65535)
    group_bytes: int = _setting(
        GIB, "K-space of one group, as its header announces it.", unit="bytes", ge=1024, le=64 * GIB
    )
    session_open_bytes: int = _setting(
        2 * GIB, "Unfinished groups, calibration lines and noise of one session.", unit="bytes", ge=1024
    )

    @property
    def most_waiting_bytes(self) -> int:
        """What may wait before the server stops reading; with more, memory for k-space would run out before it does."""
        return min(self.waiting_bytes, self.memory_bytes // 2)

    def for_wire(self) -> WireLimits:
        """What the wire checks."""
        return WireLimits(
            buffer_bytes=self.receive_buffer_bytes,
            message_bytes=self.message_bytes,
            config_bytes=self.xml_bytes,
            header_bytes=self.xml_bytes,
            text_bytes=self.text_bytes,
            samples=self.samples,
            channels=self.channels,
        )

    def for_assembly(self) -> AssemblyLimits:
        """What assembly checks."""
        return AssemblyLimits(
            max_group_bytes=self.group_bytes,
            max_open_bytes=self.session_open_bytes,
            max_channels=self.channels,
            max_samples=self.samples,
        )


class Timeouts(_Section):
    """How long the server waits for a peer."""

    first_message_s: float = _setting(30.0, "From the connection to the first whole message.", unit="s", gt=0)
    message_s: float = _setting(20.0, "From the first byte of a message to its last.", unit="s", gt=0)
    idle_s: float = _setting(600.0, "Between messages; a scan may pause for breath-holds.", unit="s", gt=0)
    send_s: float = _setting(30.0, "For the peer to take one image.", unit="s", gt=0)
    reconstruction_s: float = _setting(600.0, "For one job, its wait for a worker included.", unit="s", gt=0)
    linger_s: float = _setting(
        5.0, "After the last answer, for the peer to close; what it still sends is thrown away.", unit="s", gt=0
    )
    lame_duck_s: float = _setting(
        0.0,
        "How long scans are still accepted when the server is told to stop and says that it is not ready: as long as a "
        "load balancer takes to notice.",
        unit="s",
        ge=0,
    )
    grace_s: float = _setting(60.0, "For running sessions to finish when the server is told to stop.", unit="s", ge=0)
    keepalive_s: float = _setting(
        5.0, "Silence after which the kernel asks whether the peer still lives.", unit="s", ge=1
    )
    unacknowledged_s: float = _setting(
        8.0,
        "For the peer's machine to acknowledge what was sent, or a question of keepalive; one that is slow to read is "
        "not meant (send_s).",
        unit="s",
        ge=1,
    )


class Workers(_Section):
    """The processes that reconstruct."""

    count: int = _setting(1, "Worker processes.", ge=1, le=256)
    device: str = _setting(
        "auto",
        "Where workers compute: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    threads: int = _setting(
        0, "CPU threads of each worker; 0 shares all cores but one among the workers.", ge=0, le=1024
    )


_ALIASES = {
    "default": "default",
    "default.xml": "default",
    "openrecon": "default",
    "default_measurement_dependencies": "noise",
    "default_measurement_dependencies.xml": "noise",
    "isalive.xml": "none",
    "gtquery.xml": "none",
    "null": "none",
    "NoiseSummaryGadget": "noise_query",
}


class Pipelines(_Section):
    """What scanners may ask for."""

    default: str = _setting("sense", "Pipeline behind the aliases that say `default`.")
    aliases: dict[str, str] = _setting(
        _ALIASES,
        "Further names and what they mean: a pipeline, `default`, `none` (take the data, answer CLOSE without images), "
        "`noise` (keep the noise measurement) or `noise_query` (say whether one is kept). For a Gadgetron XML "
        "configuration the names of its gadgets are looked up, then `<xml>`. Yours are added to these.",
    )
    parameters: dict[str, dict[str, Any]] = _setting(
        {}, "Parameters by pipeline, used where the scanner sends none; see the README for each pipeline's own."
    )
    fallbacks: tuple[str, ...] = _setting(
        ("sense", "zero_filled"),
        "Pipelines to try in turn when one fails or takes too long; their images are marked as degraded. Empty: the "
        "scan then ends with an error.",
    )
    budgets_s: dict[str, Annotated[float, Field(gt=0)]] = _setting(
        {}, "Seconds that a worker may take for one group, by pipeline; then a fallback makes the image.", unit="s"
    )

    @field_validator("aliases", mode="before")
    @classmethod
    def _add_to_defaults(cls, value: object) -> object:
        return _ALIASES | cast("dict[str, str]", value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _names_are_known(self) -> Pipelines:
        try:
            registry.find(self.default)
            for target in self.aliases.values():
                if target not in {"default", "none", "noise", "noise_query"}:
                    registry.find(target)
            for name in (*self.fallbacks, *self.budgets_s):
                if registry.find(name).takes_images:
                    raise ValueError(f"{name} takes images and cannot stand in for a reconstruction")
            for name, values in self.parameters.items():
                registry.find(name).parse(values)
        except PipelineError as error:
            raise ValueError(str(error)) from error
        return self


class Emission(_Section):
    """How images leave. The uncertainty map is always sent, as float32."""

    pixels: Literal["float32", "uint16"] = _setting(
        "float32", "Pixels of magnitude images; uint16 is scaled once a series and records the scale."
    )


class Logs(_Section):
    """Records on standard error: one JSON object a line, never with patient data."""

    level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least level that is written.")


class Settings(BaseSettings):
    """All settings."""

    model_config = cast("Any", {"extra": "forbid", "frozen": True, "validate_default": True})

    listen: Listen = Listen()
    admin: Admin = Admin()
    gadgetron: Gadgetron = Gadgetron()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    workers: Workers = Workers()
    pipelines: Pipelines = Pipelines()
    models: Models = Models()
    emission: Emission = Emission()
    noise: Noise = Noise()
    capture: Capture = Capture()
    logs: Logs = Logs()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: `load` reads file and environment itself, to know where each value came from."""
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting as it is in force.

    Attributes:
        path: dotted name.
        origin: `default`, `file NAME`, `environment VARIABLE` or `flag`.
    """

    path: str
    value: object
    default: object
    unit: str
    description: str
    origin: str

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return variable(self.path)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with the origin of each."""

    settings: Settings
    leaves: tuple[Leaf, ...]


def variable(path: str) -> str:
    """Environment variable of a dotted setting."""
    return PREFIX + path.replace(".", "__").upper()


def load(
    file: Path | None = None, flags: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
) -> Loaded:
    """Settings from a TOML file, the environment (this process's unless given) and flags by dotted name.

    Raises:
        SettingsError: the file cannot be read, a key is unknown, or a value is wrong; the message names key and origin.
    """
    environment = os.environ if environment is None else environment
    if file is None and environment.get(FILE_VARIABLE):
        file = Path(environment[FILE_VARIABLE])
    sources: list[tuple[str, dict[str, Any]]] = []
    if file is not None:
        sources.append((f"file {file.name}", _read_file(file)))
    sources.append(("environment", _read_environment(environment)))
    sources.append(("flag", _nest(flags or {})))
    merged: dict[str, Any] = {}
    for _, values in sources:
        _merge(merged, values)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, sources)) from error
    return Loaded(settings, tuple(_leaves(settings, sources)))


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise SettingsError(f"the settings file {file} does not exist")
    try:
        return dict(TomlConfigSettingsSource(Settings, file)())
    except (OSError, ValueError) as error:
        raise SettingsError(f"the settings file {file} cannot be read: {error}") from error


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    ours = {name: value for name, value in environment.items() if name.upper().startswith(PREFIX)}
    for name in ours:
        section = name[len(PREFIX) :].lower().split("__")[0]
        if (
            name.upper() != FILE_VARIABLE
            and section not in Settings.model_fields
            and not _SERVICE_LINK.fullmatch(name.upper())
        ):
            raise SettingsError(f"environment variable {name} is not a setting")
    source = EnvSettingsSource(Settings, env_prefix=PREFIX, env_nested_delimiter="__", case_sensitive=False)
    source.env_vars = {name.lower(): value for name, value in ours.items()}
    try:
        return source()
    except ValueError as error:
        raise SettingsError(f"environment: {error}") from error


def _nest(flat: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = value
    return nested


def _merge(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], cast("dict[str, Any]", value))
        else:
            target[key] = dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else value


def _has(values: Mapping[str, Any], path: str) -> bool:
    level: Any = values
    for part in path.split("."):
        if not isinstance(level, Mapping) or part not in level:
            return False
        level = cast("Mapping[str, Any]", level)[part]
    return True


def _origin(path: str, sources: list[tuple[str, dict[str, Any]]]) -> str:
    for origin, values in reversed(sources):
        if _has(values, path):
            return f"environment {variable(path)}" if origin == "environment" else origin
    return "default"


def _explain(error: ValidationError, sources: list[tuple[str, dict[str, Any]]]) -> str:
    parts: list[str] = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        message = "unknown setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        parts.append(f"{path} ({_origin(path, sources)}): {message}")
    return "; ".join(parts)


def _leaves(settings: BaseModel, sources: list[tuple[str, dict[str, Any]]], prefix: str = "") -> Iterator[Leaf]:
    for name, field in type(settings).model_fields.items():
        path = f"{prefix}{name}"
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, sources, f"{path}.")
        else:
            yield Leaf(path, value, field.default, _unit(field), field.description or "", _origin(path, sources))


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""
