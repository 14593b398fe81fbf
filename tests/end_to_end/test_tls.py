"""TLS on the port for scans: who gets in, what the others hear, and that a server process stays well."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.simulate import SimulatedScan
from server.client import Client
from server.connecting import Tls
from server.errors import ClientError
from server.scan_file import write_scan
from server.tls import TlsClientError
from tests.certificates import Authority, Pair


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("theirs"), "theirs")


@pytest.fixture(scope="module")
def clients(ours: Authority, theirs: Authority) -> dict[str, Pair]:
    return {"good": ours.issue("good"), "wrong": theirs.issue("wrong"), "ended": ours.issue("ended", ended=True)}


def start(start_server: Callable[..., Any], pair: Pair, *settings: str) -> Any:
    server = start_server(
        f"listen.tls_certificate={pair.certificate}", f"listen.tls_key={pair.key}", "pipelines.default=zero_filled",
        "timeouts.first_message_s=2", "timeouts.linger_s=1", *settings,
    )  # fmt: skip
    server.wait_until_ready()
    return server


@pytest.fixture(scope="module")
def plain_tls(start_server: Callable[..., Any], ours: Authority) -> Iterator[Any]:
    """TLS, and any client."""
    server = start(start_server, ours.issue("server"))
    yield server
    assert server.stop() == 0
    assert "unhandled" not in server.log()


@pytest.fixture(scope="module")
def mutual(start_server: Callable[..., Any], ours: Authority) -> Iterator[Any]:
    """TLS, and only clients with a certificate of ours."""
    server = start(start_server, ours.issue("mutual"), f"listen.tls_client_ca={ours.file}")
    yield server
    assert server.stop() == 0
    assert "unhandled" not in server.log()


async def images(port: int, scan: SimulatedScan, tls: Tls | None, host: str = "127.0.0.1") -> list[np.ndarray]:
    async with Client(host, port, tls=tls, silence_s=30) as client:
        reply = await client.send_scan("zero_filled", scan.header, scan.batches)
    return [image.pixels for image in reply.check().images]


def expect(server: Any, reason: str, wanted: float) -> None:
    """Peers are counted once they have heard why, which may take a moment."""
    due = time.monotonic() + 5
    while turned_away(server, reason) != wanted:
        assert time.monotonic() < due, (turned_away(server, reason), wanted)
        time.sleep(0.02)


def turned_away(server: Any, reason: str) -> float:
    name = f'echotrain_turned_away_total{{reason="{reason}"}} '
    return next(float(line[len(name) :]) for line in server.get("/metrics").splitlines() if line.startswith(name))


async def test_a_scan_through_tls_gives_the_images_of_one_without(
    plain_tls: Any, running: Any, ours: Authority, scan: SimulatedScan
) -> None:
    through, without = await images(plain_tls.port, scan, Tls(ours.file)), await images(running.port, scan, None)
    assert len(through) == len(without) == 8
    assert all(np.array_equal(a, b) for a, b in zip(through, without, strict=True))


async def test_a_client_with_our_certificate_gets_in(
    mutual: Any, ours: Authority, clients: dict[str, Pair], scan: SimulatedScan
) -> None:
    good = clients["good"]
    assert len(await images(mutual.port, scan, Tls(ours.file, good.certificate, good.key))) == 8


@pytest.mark.parametrize(
    ("case", "message", "reason"),
    [("none", "certificate", "no_certificate"), ("wrong", "refused our certificate", "bad_certificate"),
     ("ended", "refused our certificate", "bad_certificate")],
)  # fmt: skip
async def test_a_client_without_a_good_certificate_is_told_so(
    mutual: Any, ours: Authority, clients: dict[str, Pair], scan: SimulatedScan, case: str, message: str, reason: str
) -> None:
    before = turned_away(mutual, reason)
    pair = clients.get(case)
    with pytest.raises(TlsClientError, match=message) as raised:
        await images(mutual.port, scan, Tls(ours.file, pair and pair.certificate, pair and pair.key))
    assert "--certificate" in raised.value.advice
    expect(mutual, reason, before + 1)
    assert mutual.get("/sessions") == '{"sessions":[]}'


async def test_a_client_that_does_not_trust_the_server_says_so(plain_tls: Any, theirs: Authority, scan: Any) -> None:
    for tls in (Tls(theirs.file), Tls()):
        with pytest.raises(TlsClientError, match="is not trusted") as raised:
            await images(plain_tls.port, scan, tls)
        assert "--ca" in raised.value.advice


async def test_a_certificate_for_another_name_is_refused_by_the_client(
    start_server: Callable[..., Any], ours: Authority, scan: SimulatedScan
) -> None:
    server = start(start_server, ours.issue("elsewhere", alternative="DNS:elsewhere.example"))
    for host in ("localhost", "127.0.0.1"):
        with pytest.raises(TlsClientError, match="is for another name"):
            await images(server.port, scan, Tls(ours.file), host)
    assert server.stop() == 0


async def test_a_server_whose_certificate_has_ended_warns_and_is_refused(
    start_server: Callable[..., Any], ours: Authority, scan: SimulatedScan
) -> None:
    server = start(start_server, ours.issue("server-ended", ended=True))
    assert "ended on 2021-01-01" in server.log()
    assert "echotrain_tls_certificate_end_timestamp_seconds 1.6094592e+09" in server.get("/metrics")
    with pytest.raises(TlsClientError, match="expired"):
        await images(server.port, scan, Tls(ours.file))
    assert server.stop() == 0


@pytest.mark.parametrize(
    "begins", [b"\x01\x00sense" + bytes(1019), b"GET / HTTP/1.1\r\n\r\n", b"\x04\x00"], ids=["MRD", "HTTP", "CLOSE"]
)
def test_a_peer_without_tls_is_told_in_mrd(plain_tls: Any, begins: bytes) -> None:
    from tests.end_to_end.conftest import Peer

    before = turned_away(plain_tls, "plain")
    with socket.create_connection(("127.0.0.1", plain_tls.port), timeout=10) as sock:
        peer = Peer(sock)
        peer.say(begins)
        heard = peer.hear()
    assert heard.error.startswith("ERROR tls_needed: this port speaks TLS")
    assert heard.closed
    expect(plain_tls, "plain", before + 1)


async def test_our_client_says_when_there_is_no_tls(running: Any, plain_tls: Any, scan: SimulatedScan) -> None:
    with pytest.raises(TlsClientError, match="does not speak TLS"):
        await images(running.port, scan, Tls())
    with pytest.raises(ClientError, match="tls_needed"):
        await images(plain_tls.port, scan, None)


def s_client(port: int, *arguments: str) -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-cipher", "ALL:@SECLEVEL=0", *arguments],
        input="", capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_tls_1_1_is_answered_with_its_alert(plain_tls: Any) -> None:
    before = turned_away(plain_tls, "tls_version")
    assert "alert protocol version" in s_client(plain_tls.port, "-tls1_1")
    expect(plain_tls, "tls_version", before + 1)
    for version in ("2", "3"):
        assert f"New, TLSv1.{version}" in s_client(plain_tls.port, f"-tls1_{version}")


def test_an_idle_peer_and_a_slow_one_leave_in_time_and_hold_no_session(plain_tls: Any) -> None:
    before = turned_away(plain_tls, "tls_timeout")
    idle, slow = (socket.create_connection(("127.0.0.1", plain_tls.port), timeout=10) for _ in range(2))
    with idle, slow:
        slow.sendall(b"\x16\x03\x01")
        time.sleep(0.3)
        assert plain_tls.get("/sessions") == '{"sessions":[]}'
        for sock in (idle, slow):
            with contextlib.suppress(ConnectionError):
                assert sock.recv(100) == b""
    expect(plain_tls, "tls_timeout", before + 2)


def test_a_peer_that_closes_its_side_of_tls_ends_its_session(plain_tls: Any, ours: Authority, says: Any) -> None:
    context = ssl.create_default_context(cafile=str(ours.file))
    with (
        socket.create_connection(("127.0.0.1", plain_tls.port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as wrapped,
    ):
        wrapped.sendall(says.config("zero_filled"))
        wrapped.unwrap()
    due = time.monotonic() + 10
    while plain_tls.get("/sessions") != '{"sessions":[]}':
        assert time.monotonic() < due
        time.sleep(0.05)


def test_send_speaks_tls(plain_tls: Any, ours: Authority, scan: SimulatedScan, tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.h5", scan.header, scan.batches, ())
    arguments = [
        "send",
        tmp_path / "scan.h5",
        "--port",
        plain_tls.port,
        "--ca",
        ours.file,
        "--output",
        tmp_path / "i.h5",
    ]
    done = subprocess.run([sys.executable, "-m", "server.cli", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *map(str, [*arguments[:4], "--tls"])], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "echotrain: tls: the certificate of the server" in done.stderr
    assert "Traceback" not in done.stderr
