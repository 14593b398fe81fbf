"""Who may connect, and which ports may be open at all."""

from __future__ import annotations

from typing import Any

import pytest

from server.config import load
from server.errors import SettingsError
from server.exposure import check_exposure
from server.networks import Networks, is_loopback, parse_network


@pytest.mark.parametrize(
    ("networks", "address", "may"),
    [
        ((), "203.0.113.9", True),
        (("10.1.2.0/24",), "10.1.2.255", True),
        (("10.1.2.0/24",), "10.1.3.0", False),
        (("10.1.2.0/24",), "::ffff:10.1.2.3", True),
        (("10.1.2.0/24",), "::ffff:10.1.3.3", False),
        (("::ffff:10.1.2.0/120",), "10.1.2.3", True),
        (("::ffff:10.1.2.0/120",), "::ffff:10.1.2.3", True),
        (("10.1.2.3",), "10.1.2.3", True),
        (("10.1.2.3",), "10.1.2.4", False),
        (("fd00:1::/64",), "fd00:1::7", True),
        (("fd00:1::/64",), "fd00:2::7", False),
        (("fd00:1::/64",), "10.1.2.3", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("10.1.2.0/24", "fd00:1::/64"), "fd00:1::7", True),
        (("10.1.2.0/24",), "", False),
        (("10.1.2.0/24",), "not an address", False),
    ],
)
def test_a_peer_may_connect_from_a_named_network(networks: tuple[str, ...], address: str, may: bool) -> None:
    assert (address in Networks(networks)) is may


@pytest.mark.parametrize("text", ["10.1.2.3/24", "scanner", "10.1.2.0/33", "", "0.0.0.0/0", "::/0", "::ffff:0:0/96"])
def test_what_is_no_network_or_every_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a network|is every address"):
        parse_network(text)


def test_settings_take_networks_as_a_list_or_with_commas() -> None:
    for value in (["10.1.2.0/24", "fd00::/8"], "10.1.2.0/24, fd00::/8"):
        settings = load(flags={"listen.allow": value}, environment={}).settings
        assert settings.listen.allow == ("10.1.2.0/24", "fd00::/8")
    with pytest.raises(SettingsError, match=r"listen.allow .*10.1.2.3/24"):
        load(flags={"listen.allow": ["10.1.2.3/24"]}, environment={})
    found = load(environment={"ECHOTRAIN_LISTEN__ALLOW": '["10.1.2.0/24"]'}).settings.listen.allow
    assert found == ("10.1.2.0/24",)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "::ffff:127.0.0.1"])
def test_loopback_reaches_this_machine_only(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "::", "*", "0.0.0.0", "10.1.2.3", "scanner-host", "fe80::1"])  # noqa: S104
def test_any_other_address_is_refused_without_protection(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(SettingsError, match="other machines could reach this port") as raised:
        check({"listen.host": host})
    for way_out in ("listen.allow", "TLS (listen.tls_certificate", "--insecure-lan"):
        assert way_out in raised.value.advice


def check(flags: dict[str, Any]) -> list[str]:
    return check_exposure(load(flags=flags, environment={}).settings)


def test_the_defaults_open_nothing() -> None:
    assert check({}) == []


@pytest.mark.parametrize(
    "protection", [{"listen.allow": ["10.0.0.0/8"]}, {"listen.tls_certificate": "server.pem"}], ids=["list", "TLS"]
)
def test_an_allow_list_or_tls_is_protection(protection: dict[str, Any]) -> None:
    assert check({"listen.host": "::"} | protection) == []


@pytest.mark.parametrize("section", ["admin", "gadgetron"])
def test_the_other_ports_follow_the_same_rule(section: str) -> None:
    flags = {f"{section}.host": "::", f"{section}.enabled": True}
    with pytest.raises(SettingsError, match=rf"{section}.host is ::"):
        check(flags)
    assert check(flags | {f"{section}.allow": ["10.0.0.0/8"]}) == []
    assert check(flags | {f"{section}.enabled": False}) == []
    # A list for scans says nothing about who may see the metrics.
    with pytest.raises(SettingsError, match=rf"{section}.host"):
        check(flags | {"listen.host": "::", "listen.allow": ["10.0.0.0/8"]})


def test_what_is_said_to_be_meant_is_allowed_and_named() -> None:
    flags = {"listen.host": "::", "admin.host": "", "listen.insecure_lan": True}
    assert check(flags) == ["listen", "admin"]


def test_parts_of_tls_without_a_certificate_are_refused() -> None:
    for part in ("listen.tls_key", "listen.tls_client_ca"):
        with pytest.raises(SettingsError, match="need tls_certificate"):
            load(flags={part: "x.pem"}, environment={})
