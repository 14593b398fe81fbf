"""Files for TLS, good and bad, before any connection."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from server.endpoints import Listen
from server.errors import SettingsError
from server.tls import TlsClientError, about_end, certificate_end, client_context, server_context
from tests.certificates import Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


def listening(**files: Path | str) -> Listen:
    return Listen(**{f"tls_{name}": str(file) for name, file in files.items()})  # type: ignore[arg-type]


def test_no_certificate_means_no_tls() -> None:
    assert server_context(Listen()) is None


def test_certificate_and_key_may_be_one_file(pair: Pair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(pair.key.read_text() + pair.certificate.read_text())
    assert server_context(listening(certificate=pair.certificate, key=pair.key)) is not None
    assert server_context(listening(certificate=both)) is not None
    assert certificate_end(str(both)) == certificate_end(str(pair.certificate)) > 4e9


def wrong(case: str, pair: Pair, authority: Authority, folder: Path) -> tuple[dict[str, Path], str]:
    other, empty, locked = (
        authority.issue(f"other-{case.replace(' ', '-')}"),
        folder / "empty.pem",
        folder / "locked.key",
    )
    empty.write_text("no PEM")
    subprocess.run(
        ["openssl", "pkey", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", locked], check=True
    )
    good = {"certificate": pair.certificate, "key": pair.key}
    return {
        "missing": (good | {"certificate": folder / "none.pem"}, "listen.tls_certificate: .*none.pem cannot be read"),
        "missing key": (good | {"key": folder / "none.key"}, "listen.tls_key: .*none.key cannot be read"),
        "folder": (good | {"key": folder}, "listen.tls_key: .*directory"),
        "other key": (good | {"key": other.key}, "listen.tls_key: .* is not the key of the certificate"),
        "no PEM": (good | {"certificate": empty}, "cannot be used: a certificate and its key in PEM"),
        "no key": ({"certificate": pair.certificate}, "cannot be used: a certificate and its key in PEM"),
        "pass phrase": (good | {"key": locked}, "has a pass phrase"),
        "missing authority": (good | {"client_ca": folder / "none.pem"}, "listen.tls_client_ca: .* cannot be read"),
        "empty authority": (good | {"client_ca": empty}, "listen.tls_client_ca: .* holds no certificates"),
    }[case]


@pytest.mark.parametrize(
    "case",
    ["missing", "missing key", "folder", "other key", "no PEM", "no key", "pass phrase", "missing authority",
     "empty authority"],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_setting(case: str, pair: Pair, authority: Authority, tmp_path: Path) -> None:
    files, message = wrong(case, pair, authority, tmp_path)
    with pytest.raises(SettingsError, match=message):
        server_context(listening(**files))


def test_the_client_names_its_options(pair: Pair, authority: Authority, tmp_path: Path) -> None:
    other = authority.issue("client-other")
    assert client_context(authority.file, pair.certificate, pair.key)
    for arguments, message in (
        ((tmp_path / "none.pem", None, None), "--ca: .* cannot be read"),
        ((pair.key, None, None), "--ca: .* holds no certificates"),
        ((None, pair.certificate, other.key), "--key: .* is not the key"),
    ):
        with pytest.raises(TlsClientError, match=message):
            client_context(*arguments)


def test_the_end_of_a_certificate_is_told_in_time(authority: Authority) -> None:
    ended = authority.issue("ended", ended=True)
    assert "ended on 2021-01-01" in about_end(certificate_end(str(ended.certificate)))
    assert "ends on" in about_end(time.time() + 86400)
    assert about_end(time.time() + 90 * 86400) == ""


def test_only_tls_1_2_and_later_is_spoken(pair: Pair) -> None:
    import ssl

    context: Any = server_context(listening(certificate=pair.certificate, key=pair.key))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_context(None, None, None).minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_context(None, None, None).check_hostname
