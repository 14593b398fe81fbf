"""Listens, admits sessions up to a limit, refuses the rest with a sentence, and stops in good order.

The port is open before anything slow is loaded: a scanner that starts its server with the scan waits a second or two.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Final, cast

from server.backpressure import Waiting
from server.config import Settings, Timeouts
from server.dialect import Dialect, ParentDialect, ScannerDialect
from server.endpoints import Gadgetron, Listen
from server.errors import BusyError, DrainingError, ServerError, SettingsError
from server.execution.executor import Executor
from server.logs import logger
from server.metrics import Metrics
from server.noise_store import NoiseStore
from server.session import Session
from server.socket_options import set_options
from server.wire.connection import Connection
from server.wire.messages import WireLimits

MAX_REFUSALS: Final = 1024
"""Refused connections that are being told so at a time; more than that are closed without a word."""

REFUSAL_LINGER_S: Final = 1.0

_SMALL: Final = WireLimits(buffer_bytes=4096, message_bytes=4096)
"""For connections that only say no."""

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
        self._waiting = Waiting(settings.limits.most_waiting_bytes)
        self._noise = NoiseStore(
            Path(settings.noise.directory) if settings.noise.directory else None,
            expiry_s=settings.noise.expiry_s,
            most_entries=settings.noise.entries,
            failed=lambda operation: metrics.noise_store_failures.labels(operation).inc(),
        )
        self._listeners: list[asyncio.Server] = []
        self._for_gadgetron: list[asyncio.Server] = []
        self._refusals: set[_Refusal] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lag: asyncio.TimerHandle | None = None
        self._log = logger()

    @property
    def port(self) -> int:
        """The port that scanners connect to."""
        return int(self._listeners[0].sockets[0].getsockname()[1])

    @property
    def gadgetron_port(self) -> int | None:
        """The port that Gadgetron connects to; None when it may not."""
        return int(self._for_gadgetron[0].sockets[0].getsockname()[1]) if self._for_gadgetron else None

    async def start(
        self, sockets: list[socket.socket] | None = None, for_gadgetron: list[socket.socket] | None = None
    ) -> None:
        """Listen, then let the executor begin to start workers; connections are answered from here on.

        Args:
            sockets: listening ones for scanners; those of the settings unless given.
            for_gadgetron: listening ones for Gadgetron; those of the settings unless given.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        for sock in sockets if sockets is not None else listen(self.settings.listen):
            # The loop listens once more, and would do so with a backlog of its own.
            backlog = self.settings.listen.backlog
            self._listeners.append(await loop.create_server(self._accept, sock=sock, backlog=backlog))
        if for_gadgetron is None and self.settings.gadgetron.enabled:
            for_gadgetron = listen(self.settings.gadgetron)
        for sock in for_gadgetron or []:
            self._for_gadgetron.append(await loop.create_server(self._accept_gadgetron, sock=sock))
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
        """Accept nothing more, let sessions finish within the grace period, end the rest with an error."""
        self.is_draining = True
        for listener in (*self._listeners, *self._for_gadgetron):
            listener.close()
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

    def end_sessions(self, reason: str) -> None:
        """End all sessions now, each with an error."""
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
        if self.is_draining:
            return self._refuse(DrainingError("the server is shutting down"), dialect)
        session = Session(self.settings, self.executor, self.metrics, self._waiting, self._noise, dialect)
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
        return _Refusal(error, dialect, self._refusals, self.settings.timeouts)

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


class _Refusal(asyncio.Protocol):
    """A connection that is told why it is refused, and read until it closes so that it hears it."""

    def __init__(self, error: ServerError, dialect: Dialect, others: set[_Refusal], timeouts: Timeouts) -> None:
        self._error = error
        self._dialect = dialect
        self._others = others
        self._timeouts = timeouts
        self._transport: asyncio.Transport | None = None
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say it, close our side, and give the peer a moment."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._others) >= MAX_REFUSALS:
            self._transport.abort()
            return
        self._others.add(self)
        set_options(self._transport.get_extra_info("socket"), self._timeouts)
        connection = Connection(self._dialect.role, _SMALL)
        self._transport.writelines([*self._dialect.failure(connection, self._error), *connection.close()])
        self._transport.write_eof()
        self._due = asyncio.get_running_loop().call_later(REFUSAL_LINGER_S, self.close)

    def data_received(self, data: bytes) -> None:
        """Whatever it is, it is not read."""

    def eof_received(self) -> bool:
        """The peer has closed its side, so it has our answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget it."""
        self._others.discard(self)
        if self._due is not None:
            self._due.cancel()

    def close(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()


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
