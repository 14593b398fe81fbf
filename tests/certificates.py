"""Authorities and certificates for tests of TLS, made by the `openssl` program."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_CONFIGURATION = """
[ca]
default_ca = tests
[tests]
new_certs_dir = {folder}
database = {folder}/index.txt
serial = {folder}/serial
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; `file` is its own."""

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("the openssl program is not installed")
        self._folder = folder / name
        self._folder.mkdir()
        self.file, self._key = self._folder / "ca.pem", self._folder / "ca.key"
        (self._folder / "index.txt").touch()
        (self._folder / "serial").write_text("01\n")
        (self._folder / "ca.cnf").write_text(_CONFIGURATION.format(folder=self._folder))
        _openssl("req", "-x509", *_new_key(self._key), "-out", self.file, "-days", "9", "-subj", f"/CN={name}",
                 "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip

    def issue(self, name: str, *, alternative: str = "DNS:localhost,IP:127.0.0.1", ended: bool = False) -> Pair:
        """A certificate with these names, which ended long ago or ends in 2099."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request = self._folder / f"{name}.csr"
        _openssl("req", "-new", *_new_key(pair.key), "-out", request, "-subj", f"/CN={name}",
                 "-addext", f"subjectAltName={alternative}")  # fmt: skip
        _openssl("ca", "-batch", "-notext", "-config", self._folder / "ca.cnf", "-cert", self.file,
                 "-keyfile", self._key, "-in", request, "-out", pair.certificate, "-startdate", "20200101000000Z",
                 "-enddate", "20210101000000Z" if ended else "20991231235959Z")  # fmt: skip
        return pair


def _new_key(file: Path) -> tuple[str | Path, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
