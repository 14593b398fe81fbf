"""HTTP for metrics, health and the list of live sessions, on a port of its own in the same event loop. Read-only.

It has no passwords, so it listens on loopback unless the settings say otherwise; from outside it answers only the
networks of its allow-list, and everybody only under the host names that the settings list: a web page in an operator's
browser must not read it through a name of its own (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server.endpoints import Admin
from server.listener import Server
from server.metrics import product_version
from server.networks import Networks, is_loopback


def application(server: Server, allowed_hosts: tuple[str, ...], networks: tuple[str, ...] = ()) -> ASGIApp:
    """The routes, behind the checks of the peer's address and of the Host header."""

    async def metrics(_: Request) -> Response:
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def alive(_: Request) -> Response:
        # That this is answered at all says that the event loop runs.
        return JSONResponse({"alive": True})

    async def ready(_: Request) -> Response:
        reasons = server.why_not_ready()
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def started(_: Request) -> Response:
        health = server.executor.health()
        body = {"started": health.is_usable, "workers": dict(health.workers), "version": product_version()}
        return JSONResponse(body, 200 if health.is_usable else 503)

    async def sessions(_: Request) -> Response:
        return JSONResponse({"sessions": [session.describe() for session in server.sessions.values()]})

    paths = {"/metrics": metrics, "/livez": alive, "/readyz": ready, "/startupz": started, "/sessions": sessions}
    routes = Starlette(routes=[Route(path, answer) for path, answer in paths.items()])
    return _KnownPeers(_KnownHosts(routes, allowed_hosts), networks)


class _KnownPeers:
    """Refuses peers outside the allow-list; this machine itself is always answered (health checks)."""

    def __init__(self, inner: ASGIApp, networks: tuple[str, ...]) -> None:
        self._inner = inner
        self._networks = Networks(networks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        address = str((scope.get("client") or ("",))[0])
        if is_loopback(address) or address in self._networks:
            await self._inner(scope, receive, send)
        else:
            await PlainTextResponse("your address is not in admin.allow\n", 403)(scope, receive, send)


class _KnownHosts:
    """Refuses requests whose Host header is none of ours."""

    def __init__(self, inner: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._inner = inner
        self._allowed = {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421."""
        values = [value for name, value in scope.get("headers", []) if name == b"host"]
        host = _without_port(values[0].decode("latin-1").lower()) if len(values) == 1 else ""
        if "*" in self._allowed or host in self._allowed:
            await self._inner(scope, receive, send)
        else:
            await PlainTextResponse("unknown host\n", 421)(scope, receive, send)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class AdminServer:
    """The HTTP server.

    Attributes:
        port: where it listens.
    """

    def __init__(self, server: Server, settings: Admin, sockets: list[socket.socket]) -> None:
        self.port = int(sockets[0].getsockname()[1])
        self._sockets = sockets
        config = uvicorn.Config(
            application(server, settings.allowed_hosts, settings.allow),
            log_config=None,
            access_log=False,
            lifespan="off",
            http="h11",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = _WithoutSignals(config)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.get_running_loop().create_task(self._uvicorn.serve(self._sockets), name="admin")

    async def stop(self) -> None:
        """Finish the requests under way and close the port."""
        self._uvicorn.should_exit = True
        if self._task is not None:
            await self._task


class _WithoutSignals(uvicorn.Server):
    """uvicorn that leaves SIGTERM to us: its own handlers would end the process before sessions are drained."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture none."""
        yield
