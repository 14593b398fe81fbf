"""TLS of the port for scanners and of our own client: contexts out of PEM files, version 1.2 and later.

Every error here is found before a port is opened, or before a scan is sent, and names the file or option to correct.
Knows no sockets and no event loop.
"""

from __future__ import annotations

import re
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from server.endpoints import Listen
from server.errors import ClientError, ServerError, SettingsError

SOON_S: Final = 30 * 86400.0
"""How long before its end a certificate is worth a warning."""

_CERTIFICATE: Final = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17


class HandshakeError(ssl.SSLError):
    """A handshake that we ended.

    Attributes:
        alert: what TLS wants the peer to be told; asyncio closes the socket without sending it.
    """

    alert: bytes = b""


class TlsClientError(ClientError):
    """No TLS with that server."""

    code = "tls"


class _Wrapped(ssl.SSLObject):
    """A connection's TLS whose last words are not lost."""

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            ended = HandshakeError(*error.args)
            ended.reason = getattr(error, "reason", "")
            if isinstance(error, ssl.SSLCertVerificationError):
                ended.reason = f"CERTIFICATE_VERIFY_FAILED: {error.verify_message}"
            ended.alert = self.outgoing.read()
            raise ended from error


class _ServerContext(ssl.SSLContext):
    sslobject_class = _Wrapped

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **named: Any) -> ssl.SSLObject:
        wrapped = super().wrap_bio(incoming, outgoing, *args, **named)
        cast("_Wrapped", wrapped).outgoing = outgoing
        return wrapped


def server_context(listen: Listen) -> ssl.SSLContext | None:
    """What the port for scanners speaks; None where the settings name no certificate.

    Raises:
        SettingsError: a file is missing, cannot be read, is no PEM, has a pass phrase, or key and certificate differ.
    """
    if not listen.tls_certificate:
        return None
    context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_pair(
        context, listen.tls_certificate, listen.tls_key, ("listen.tls_certificate", "listen.tls_key"), SettingsError
    )
    if listen.tls_client_ca:
        _load_authorities(context, listen.tls_client_ca, "listen.tls_client_ca", SettingsError)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """What our own client speaks.

    Args:
        ca: authorities to trust, or the server's certificate itself; those of this machine unless given.
        certificate: ours, for servers that ask for one.
        key: its key; in the certificate's file unless given.

    Raises:
        TlsClientError: a file is missing, cannot be read, is no PEM, has a pass phrase, or key and certificate differ.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, str(ca), "--ca", TlsClientError)
    if certificate is not None:
        names = ("--certificate", "--key")
        _load_pair(context, str(certificate), str(key) if key is not None else "", names, TlsClientError)
    return context


def certificate_end(file: str) -> float:
    """When the first certificate of a PEM file ends, in seconds of the epoch.

    Raises:
        SettingsError: the file holds no certificate.
    """
    text = Path(file).read_text(errors="replace")
    found = _CERTIFICATE.search(text)
    if found is None:
        raise SettingsError(f"listen.tls_certificate: {file} holds no certificate in PEM")
    return _not_after(ssl.PEM_cert_to_DER_cert(found[0]))


def _not_after(certificate: bytes) -> float:
    """The end of validity in a certificate that OpenSSL has read (RFC 5280, 4.1); ssl shows it of peers only."""
    _, outer, _ = _element(certificate, 0)
    _, fields, _ = _element(outer, 0)
    tag, _, at = _element(fields, 0)
    if tag == _VERSION:
        _, _, at = _element(fields, at)
    # The serial number lies behind; then the signature's algorithm, the issuer, the validity.
    for _ in range(2):
        _, _, at = _element(fields, at)
    _, validity, _ = _element(fields, at)
    _, _, at = _element(validity, 0)
    tag, when, _ = _element(validity, at)
    moment = datetime.strptime(when.decode("ascii"), "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ")
    return moment.replace(tzinfo=UTC).timestamp()


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag and content of the DER element that begins here, and where the next one does."""
    tag, length, at = data[at], data[at + 1], at + 2
    if length & 0x80:
        n = length & 0x7F
        length, at = int.from_bytes(data[at : at + n], "big"), at + n
    return tag, data[at : at + length], at + length


def about_end(ends: float) -> str:
    """A warning about a certificate that has ended or soon will; empty where neither is so."""
    left = ends - time.time()
    day = time.strftime("%Y-%m-%d", time.gmtime(ends))
    if left <= 0:
        return f"the certificate of this server ended on {day}; clients that check it will refuse it"
    return f"the certificate of this server ends on {day}" if left < SOON_S else ""


def _load_pair(
    context: ssl.SSLContext, certificate: str, key: str, names: tuple[str, str], kind: type[ServerError]
) -> None:
    _check_readable(certificate, names[0], kind)
    if key:
        _check_readable(key, names[1], kind)

    def ask() -> str:
        raise kind(f"{names[1]}: {key or certificate} has a pass phrase, and nobody is here to type it")

    try:
        context.load_cert_chain(certificate, key or None, password=ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise kind(f"{names[1]}: {key or certificate} is not the key of the certificate {certificate}") from error
        what = f"{names[0]} and {names[1]}: {certificate} and {key}" if key else f"{names[0]}: {certificate}"
        raise kind(f"{what} cannot be used: a certificate and its key in PEM are expected ({_short(error)})") from error


def _load_authorities(context: ssl.SSLContext, file: str, name: str, kind: type[ServerError]) -> None:
    _check_readable(file, name, kind)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise kind(f"{name}: {file} holds no certificates in PEM ({_short(error)})") from error


def _check_readable(file: str, name: str, kind: type[ServerError]) -> None:
    try:
        with Path(file).open("rb"):
            pass
    except OSError as error:
        raise kind(f"{name}: {file} cannot be read ({error.strerror or error})") from error


def _short(error: ssl.SSLError) -> str:
    return error.reason.lower().replace("_", " ") if error.reason else "not PEM"
