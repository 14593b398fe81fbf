"""Settings of where the server is reached: by scanners, by HTTP, by Gadgetron; `config.py` has the rest."""

from __future__ import annotations

from typing import Final, Literal

from server.section import Section, setting

MIB: Final = 1 << 20
GIB: Final = 1 << 30


class Listen(Section):
    """Where scanners connect."""

    host: str = setting("127.0.0.1", "Address to listen on; empty or '::' means every address, IPv4 and IPv6.")
    port: int = setting(9002, "TCP port for MRD; 0 lets the system choose.", ge=0, le=65535)
    backlog: int = setting(1024, "Connections that may wait to be accepted.", ge=1, le=65535)


class Admin(Section):
    """HTTP for metrics and health; read-only, without passwords, so it belongs on loopback or an inner network."""

    enabled: bool = setting(True, "Whether to serve metrics and health.")
    host: str = setting("127.0.0.1", "Address to listen on; empty or '::' means every address, IPv4 and IPv6.")
    port: int = setting(9090, "TCP port for HTTP; 0 lets the system choose.", ge=0, le=65535)
    allowed_hosts: tuple[str, ...] = setting(
        ("localhost", "127.0.0.1", "::1"),
        "Values of the HTTP Host header that are answered (a guard against DNS rebinding); '*' allows all.",
    )


class Gadgetron(Section):
    """Being an external node of Gadgetron."""

    enabled: bool = setting(False, "Whether Gadgetron may connect (`<external><connect port=...>`).")
    host: str = setting("127.0.0.1", "Address to listen on; empty or '::' means every address, IPv4 and IPv6.")
    port: int = setting(18000, "TCP port for Gadgetron; 0 lets the system choose.", ge=0, le=65535)
    output: Literal["images", "image_array"] = setting(
        "images", "What images go out as where the node's configuration does not say."
    )
    message_bytes: int = setting(
        GIB,
        "Largest message; buckets and recon data hold many readouts at once.",
        unit="bytes",
        ge=4096,
        le=64 * GIB,
    )
