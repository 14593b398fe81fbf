"""Which ports other machines can reach without anything that keeps strangers out. Decides; opens nothing.

MRD and Gadgetron know no passwords: whoever reaches a port may send scans. So a port that is not on loopback needs a
list of who may connect, or TLS, or a word that the network itself keeps strangers out.
"""

from __future__ import annotations

from server.config import Settings
from server.errors import SettingsError
from server.networks import is_loopback


def open_ports(settings: Settings) -> list[str]:
    """Sections of the settings whose port is open to every machine that reaches it."""
    listen, admin, gadgetron = settings.listen, settings.admin, settings.gadgetron
    found: list[str] = []
    if not (is_loopback(listen.host) or listen.allow or listen.tls_certificate):
        found.append("listen")
    if admin.enabled and not (is_loopback(admin.host) or admin.allow):
        found.append("admin")
    if gadgetron.enabled and not (is_loopback(gadgetron.host) or gadgetron.allow):
        found.append("gadgetron")
    return found


def check_exposure(settings: Settings) -> list[str]:
    """The same, where the settings say that this is meant.

    Raises:
        SettingsError: a port is open to all and the settings do not say that it should be.
    """
    found = open_ports(settings)
    if found and not settings.listen.insecure_lan:
        section = found[0]
        host = getattr(settings, section).host or "every address"
        tls = ", or TLS (listen.tls_certificate and listen.tls_key)" if section == "listen" else ""
        raise ExposureError(
            f"{section}.host is {host}: other machines could reach this port, and nothing keeps strangers out",
            f"Give the networks that may connect ({section}.allow, for scans --allow 10.1.2.0/24){tls}, or a loopback "
            "address; or say --insecure-lan (listen.insecure_lan) where the network itself keeps strangers out.",
        )
    return found


class ExposureError(SettingsError):
    """A port would be open to strangers."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice
