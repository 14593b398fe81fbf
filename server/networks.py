"""Networks that may connect, and whether an address lies in one; values only, no sockets.

An IPv4 address that comes in through an IPv6 socket (`::ffff:10.1.2.3`) is the IPv4 address that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Network = IPv4Network | IPv6Network

_MAPPED: Final = IPv6Network("::ffff:0:0/96")


class Networks:
    """An allow-list; an empty one lets everybody in."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks = tuple(parse_network(text) for text in texts)

    def __contains__(self, address: str) -> bool:
        """Whether a peer with this address may connect; what is no address may not, unless everybody may."""
        if not self._networks:
            return True
        found = parse_address(address)
        # The `in` of ipaddress is false, and raises nothing, where the versions differ.
        return found is not None and any(found in network for network in self._networks)


def parse_network(text: str) -> Network:
    """A network in CIDR notation; an address alone is a network of one.

    Raises:
        ValueError: it is none, has bits set behind its prefix, or is the whole internet.
    """
    try:
        network = ip_network(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network such as 10.1.2.0/24 or fd00:1::/64 ({error})") from error
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        network = IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    if network.prefixlen == 0:
        raise ValueError(f"{text!r} is every address there is; to let everybody in, leave the list empty")
    return network


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """The address that a socket names as its peer, without the name of an interface; None if it is none."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def is_loopback(host: str) -> bool:
    """Whether an address, of a peer or to listen on, is only of this machine."""
    if host == "localhost":
        return True
    found = parse_address(host)
    return found is not None and found.is_loopback
