"""Listens, admits sessions up to a limit, refuses the rest with a sentence, and stops in good order.

The port is open before anything slow is loaded: a scanner that starts its server with the scan waits a second or two.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path
from typing import Final

from server.backpressure import Waiting
from server.capture import CaptureStore
from server.config import Settings
from server.dialect import Dialect, ParentDialect, ScannerDialect
from server.door import Door
from server.endpoints import Gadgetron, Listen
from server.errors import BusyError, DrainingError, ServerError, SettingsError, TlsNeededError
from server.execution.executor import Executor
from server.logs import logger
from server.metrics import Metrics
from server.networks import Networks
from server.noise_store import NoiseStore
from server.refusal import MAX_REFUSALS, Refusal
from server.session import Session
from server.tls import about_end, certificate_end, server_context

_LAG_INTERVAL_S: Final = 0.25

_LAST_WAIT_S: Final = 5.0
"""Beyond the time to linger, for sessions that were told to end when the server stops."""


class Server:
    """The port and its sessions.

    Attributes:
        sessions: live ones by id.
        metrics: what they count.
        is_draining: whether the server has been told to stop.
    """

    def __init__(self, settings: Settings, executor: Executor, metrics: Metrics) -> None:
        self.sessions: dict[str, Session] = {}
        self.metrics = metrics
        self.executor = executor
        self.settings = settings
        self.is_draining = False
        self._accepts = True
        self._hurry = asyncio.Event()
        self._waiting = Waiting(settings.limits.most_waiting_bytes)
        self._noise = NoiseStore(
            Path(settings.noise.directory) if settings.noise.directory else None,
            expiry_s=settings.noise.expiry_s,
            most_entries=settings.noise.entries,
            failed=lambda operation: metrics.noise_store_failures.labels(operation).inc(),
        )
        self._capture = CaptureStore(settings.capture, lambda reason: metrics.capture_failures.labels(reason).inc())
        self._door: Door | None = None
        self._for_gadgetron: Door | None = None
        self._refusals: set[Refusal] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lag: asyncio.TimerHandle | None = None
        self._log = logger()

    @property
    def port(self) -> int:
        """The port that scanners connect to."""
        if self._door is None:
            raise RuntimeError("the server is not started")
        return self._door.port

    @property
    def gadgetron_port(self) -> int | None:
        """The port that Gadgetron connects to; None when it may not."""
        return self._for_gadgetron.port if self._for_gadgetron is not None else None

    async def start(
        self, sockets: list[socket.socket] | None = None, for_gadgetron: list[socket.socket] | None = None
    ) -> None:
        """Listen, then let the executor begin to start workers; connections are answered from here on.

        Args:
            sockets: listening ones for scanners; those of the settings unless given.
            for_gadgetron: listening ones for Gadgetron; those of the settings unless given.

        Raises:
            SettingsError: the address cannot be listened on, or TLS cannot be spoken with the files of the settings.
        """
        settings, metrics, timeouts = self.settings, self.metrics, self.settings.timeouts
        context = server_context(settings.listen)
        if context is not None:
            ends = certificate_end(settings.listen.tls_certificate)
            metrics.certificate_end.set(ends)
            if warning := about_end(ends):
                self._log.warning("certificate", message=warning)
        allowed = Networks(settings.listen.allow)
        sockets = sockets if sockets is not None else listen(settings.listen)
        self._door = Door(sockets, self._accept, allowed, metrics, timeouts, context, self._refuse_plain)
        if for_gadgetron is None and settings.gadgetron.enabled:
            for_gadgetron = listen(settings.gadgetron)
        if for_gadgetron:
            allowed = Networks(settings.gadgetron.allow)
            self._for_gadgetron = Door(for_gadgetron, self._accept_gadgetron, allowed, metrics, timeouts)
        self._measure_lag(time.monotonic())
        self.metrics.watch(self.executor.health)
        self.metrics.before_scrape(self._report)
        await self.executor.start()

    def why_not_ready(self) -> list[str]:
        """Reasons why a scan would not be served well now; empty when it would."""
        reasons: list[str] = []
        if self.is_draining:
            reasons.append("shutting down")
        health = self.executor.health()
        if not health.is_usable:
            reasons.append("no worker is warm")
        reasons.extend(health.problems)
        if len(self.sessions) >= self.settings.limits.sessions:
            reasons.append(f"all {self.settings.limits.sessions} sessions are taken")
        if self._waiting.total_bytes > 0.9 * self._waiting.limit_bytes:
            reasons.append("too many data wait for reconstruction")
        return reasons

    async def stop(self, grace_s: float | None = None) -> None:
        """Stop in an orderly way.

        Not ready from the start; new scans are accepted until the lame-duck time is over; sessions may finish within
        the grace period from then on; the rest ends with an error. `end_sessions` cuts both times short.
        """
        self.is_draining = True
        lame_duck_s = self.settings.timeouts.lame_duck_s
        if lame_duck_s:
            self._log.info("lame_duck", sessions=len(self.sessions), lame_duck_s=lame_duck_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), lame_duck_s)
        self._accepts = False
        for door in (self._door, self._for_gadgetron):
            if door is not None:
                door.close()
        grace_s = self.settings.timeouts.grace_s if grace_s is None else grace_s
        self._log.info("draining", sessions=len(self.sessions), grace_s=grace_s)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        self.end_sessions(f"the server is shutting down and waited {grace_s:g} s for this session")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.timeouts.linger_s + _LAST_WAIT_S)
        for refusal in list(self._refusals):
            refusal.close()
        if self._lag is not None:
            self._lag.cancel()
        await self.executor.stop()
        await asyncio.to_thread(self._capture.close)

    def end_sessions(self, reason: str) -> None:
        """End all sessions now, each with an error, and accept no more."""
        self._accepts = False
        self._hurry.set()
        for session in list(self.sessions.values()):
            session.stop(DrainingError(reason))

    def _accept(self) -> asyncio.BaseProtocol:
        return self._admit(ScannerDialect(self.settings))

    def _accept_gadgetron(self) -> asyncio.BaseProtocol:
        return self._admit(ParentDialect(self.settings))

    def _admit(self, dialect: Dialect) -> asyncio.BaseProtocol:
        if len(self.sessions) >= self.settings.limits.sessions:
            limit = self.settings.limits.sessions
            return self._refuse(BusyError(f"all {limit} sessions of this server are taken"), dialect)
        if not self._accepts:
            return self._refuse(DrainingError("the server is shutting down"), dialect)
        capture = self._capture if isinstance(dialect, ScannerDialect) else None
        session = Session(
            self.settings, self.executor, self.metrics, self._waiting, self._noise, dialect, capture=capture
        )
        self.sessions[session.id] = session
        task = asyncio.get_running_loop().create_task(self._keep(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return session.socket

    async def _keep(self, session: Session) -> None:
        try:
            await session.ended()
        finally:
            del self.sessions[session.id]

    def _refuse(self, error: ServerError, dialect: Dialect) -> asyncio.BaseProtocol:
        outcome = "rejected_busy" if isinstance(error, BusyError) else "drained"
        self.metrics.sessions.labels("other", outcome).inc()
        if len(self._refusals) < MAX_REFUSALS:
            self._log.warning("refused", code=error.code, sessions=len(self.sessions))
        return Refusal(error, dialect, self._refusals, self.settings.timeouts)

    def _refuse_plain(self) -> asyncio.BaseProtocol:
        error = TlsNeededError("this port speaks TLS, and the connection began without")
        return Refusal(error, ScannerDialect(self.settings), self._refusals, self.settings.timeouts)

    def _report(self) -> None:
        for session in self.sessions.values():
            session.report.account(session.socket)
        metrics, limits = self.metrics, self.settings.limits
        metrics.ready.set(not self.why_not_ready())
        self._noise.sweep()
        metrics.noise_measurements.set(len(self._noise))
        metrics.draining.set(self.is_draining)
        metrics.buffered_bytes.labels("waiting").set(self._waiting.total_bytes)
        metrics.buffer_limit_bytes.labels("waiting").set(limits.most_waiting_bytes)
        metrics.buffer_limit_bytes.labels("kspace").set(limits.memory_bytes)

    def _measure_lag(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        # Not the loop's own clock: uvloop's has milliseconds and stands still while a callback runs.
        self.metrics.loop_lag_seconds.observe(max(0.0, time.monotonic() - due))
        self._lag = loop.call_later(_LAG_INTERVAL_S, self._measure_lag, time.monotonic() + _LAG_INTERVAL_S)


def listen(where: Listen | Gadgetron) -> list[socket.socket]:
    """Listening sockets for an address: one for IPv4 and IPv6 together when the host is empty, `::` or `*`.

    Raises:
        SettingsError: the address does not exist on this machine, or the port is taken.
    """
    try:
        if where.host in {"", "::", "*"}:
            return [_listen_everywhere(where)]
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        port = where.port
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(socket.create_server((str(address[0]), port), family=family, backlog=_backlog(where)))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        shown = where.host or "every address"
        raise SettingsError(f"cannot listen on {shown}, port {where.port}: {error.strerror or error}") from error
    return sockets


def _listen_everywhere(where: Listen | Gadgetron) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", where.port), family=socket.AF_INET6, backlog=_backlog(where), dualstack_ipv6=True
            )
        except OSError as error:
            # A kernel that can do IPv6 may still have it switched off for its interfaces.
            logger().warning("no_ipv6", message=str(error.strerror))
    return socket.create_server(("0.0.0.0", where.port), backlog=_backlog(where))  # noqa: S104 - the operator asked for it


def _backlog(where: Listen | Gadgetron) -> int:
    """Connections that may wait; Gadgetron makes one for each scan."""
    return where.backlog if isinstance(where, Listen) else 128
