"""Settings of where the server is reached: by scanners, by HTTP, by Gadgetron; `config.py` has the rest."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from server.networks import parse_network
from server.section import Section, setting

MIB: Final = 1 << 20
GIB: Final = 1 << 30


def _split(value: object) -> object:
    """A list may be written as one text with commas, where JSON is a nuisance."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _known(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        parse_network(text)
    return texts


Allowed = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_known)]
"""Networks in CIDR notation."""


class Listen(Section):
    """Where scanners connect, who may, and TLS."""

    host: str = setting("127.0.0.1", "Address to listen on; empty or '::' means every address, IPv4 and IPv6.")
    port: int = setting(9002, "TCP port for MRD; 0 lets the system choose.", ge=0, le=65535)
    backlog: int = setting(1024, "Connections that may wait to be accepted.", ge=1, le=65535)
    allow: Allowed = setting(
        (),
        "Networks that may connect, as 10.1.2.0/24 or fd00:1::/64; others are closed without a word. Empty: all may. "
        "This machine itself must be named too (127.0.0.0/8, ::1).",
    )
    insecure_lan: bool = setting(
        False, "Say that ports may be open to other machines without an allow-list or TLS: the network keeps them out."
    )
    tls_certificate: str = setting("", "PEM file of this server's certificate and those above it; empty: no TLS.")
    tls_key: str = setting("", "PEM file of its key, without a pass phrase; empty: the key is in the certificate's.")
    tls_client_ca: str = setting(
        "", "PEM file of authorities; only clients with a certificate of one of them may connect. Empty: any client."
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Listen:
        if (self.tls_key or self.tls_client_ca) and not self.tls_certificate:
            raise ValueError("tls_key and tls_client_ca need tls_certificate; without it there would be no TLS at all")
        return self


class Admin(Section):
    """HTTP for metrics and health; read-only, without passwords, so it belongs on loopback or an inner network."""

    enabled: bool = setting(True, "Whether to serve metrics and health.")
    host: str = setting("127.0.0.1", "Address to listen on; empty or '::' means every address, IPv4 and IPv6.")
    port: int = setting(9090, "TCP port for HTTP; 0 lets the system choose.", ge=0, le=65535)
    allowed_hosts: tuple[str, ...] = setting(
        ("localhost", "127.0.0.1", "::1"),
        "Values of the HTTP Host header that are answered (a guard against DNS rebinding); '*' allows all.",
    )
    allow: Allowed = setting(
        (), "Networks that are answered, beside this machine; others get 403. Empty: all, if the address is reached."
    )


class Gadgetron(Section):
    """Being an external node of Gadgetron."""

    enabled: bool = setting(False, "Whether Gadgetron may connect (`<external><connect port=...>`).")
    host: str = setting("127.0.0.1", "Address to listen on; empty or '::' means every address, IPv4 and IPv6.")
    port: int = setting(18000, "TCP port for Gadgetron; 0 lets the system choose.", ge=0, le=65535)
    allow: Allowed = setting((), "Networks that may connect; others are closed without a word. Empty: all may.")
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
