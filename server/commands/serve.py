"""`echotrain serve`: the server as a process. The port is open before workers, metrics and HTTP are loaded."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from server import config, logs
from server.config import Settings
from server.endpoints import Admin, Listen
from server.errors import SettingsError
from server.execution.from_settings import make_executor
from server.exposure import check_exposure
from server.listener import Server, listen
from server.metrics import Metrics, product_version
from server.node import connect, parse_address, serve_parent

MOST_FILES = 65536


def main(
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
    host: Annotated[str | None, typer.Option(help="Address for scanners; :: for all, IPv4 and IPv6.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for scanners.", min=0, max=65535)] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port for metrics and health.", min=0, max=65535)] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Network whose scanners may connect; may be repeated.", metavar="CIDR", show_default=False),
    ] = None,
    insecure_lan: Annotated[
        bool, typer.Option("--insecure-lan", help="Let other machines in without an allow-list or TLS.")
    ] = False,
    pipeline: Annotated[str | None, typer.Option(help="Default pipeline.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.", min=1)] = None,
    connect_to: Annotated[
        str | None,
        typer.Option(
            help="Connect to a waiting Gadgetron as its external node, serve it, exit.", metavar="[HOST:]PORT"
        ),
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting.", metavar="NAME=VALUE", show_default=False)
    ] = None,
) -> None:
    r"""Run the server until it gets SIGTERM or SIGINT; then it finishes the running scans and stops.

    \b
    Example:
        echotrain serve --host :: --port 9002 --allow 10.1.2.0/24 --pipeline sense --set limits.sessions=4
        echotrain serve --host :: --set listen.tls_certificate=server.pem --set listen.tls_key=server.key

    \b
    Exit statuses: 0 stopped as asked, 1 failed, 2 wrong settings or a port that is taken.
    With --connect-to: 0 the session ended well, 1 it failed, the parent left or was not there, 2 wrong settings.
    """
    flags: dict[str, object] = {
        "listen.host": host,
        "listen.port": port,
        "listen.allow": tuple(allow) if allow else None,
        "listen.insecure_lan": insecure_lan or None,
        "admin.port": admin_port,
        "pipelines.default": pipeline,
        "workers.device": device,
        "workers.count": workers,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    settings = config.load(file, given | parse_values(values or [])).settings
    logs.configure(settings.logs.level)
    if connect_to is not None:
        host_to, port_to = parse_address(connect_to)
        raise typer.Exit(0 if uvloop.run(serve_once(settings, host_to, port_to)) else 1)
    is_open = check_exposure(settings)
    # A flood of connections that are refused must not use up the files that sessions and workers need.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MOST_FILES) if most > 0 else MOST_FILES, most))
    uvloop.run(serve(settings, is_open))


def parse_values(pairs: list[str]) -> dict[str, object]:
    """Settings by dotted name from `NAME=VALUE` texts; lists and tables are written as JSON.

    Raises:
        SettingsError: a text has no `=`, or its JSON is malformed.
    """
    found: dict[str, object] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise SettingsError(f"--set {pair!r} is not NAME=VALUE")
        try:
            found[name] = json.loads(text) if text[:1] in {"[", "{"} else text
        except ValueError as error:
            raise SettingsError(f"--set {name}: the value is not JSON") from error
    return found


async def serve_once(settings: Settings, host: str, port: int) -> bool:
    """Serve the Gadgetron that waits there; whether it ended well."""
    return await serve_parent(settings, await connect(host, port))


async def serve(settings: Settings, is_open: Sequence[str] = ()) -> None:
    """Run the server until a signal asks it to stop.

    Args:
        settings: of the server.
        is_open: sections of the settings whose port is open to every machine that reaches it.
    """
    stop_asked = asyncio.Event()
    signals: list[int] = []

    def ask(number: int) -> None:
        signals.append(number)
        stop_asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
    loop.set_exception_handler(_report)

    sockets = listen(settings.listen)
    admin_sockets = listen(Listen(host=settings.admin.host, port=settings.admin.port)) if settings.admin.enabled else []
    gadgetron_sockets = listen(settings.gadgetron) if settings.gadgetron.enabled else []
    server = Server(settings, make_executor(settings), Metrics())
    server.metrics.open_ports.set(len(is_open))
    for section in is_open:
        logs.logger().warning(
            "insecure_lan", kind=section, message=f"{section}.host lets every machine in that reaches it, without TLS"
        )
    await server.start(sockets, gadgetron_sockets)
    admin = _start_admin(server, settings.admin, admin_sockets) if admin_sockets else None
    where = f"{settings.listen.host or '*'}:{server.port}"
    typer.echo(
        f"Echotrain {product_version()} listens on {where} for scans"
        + (f" and on {settings.admin.host or '*'}:{admin.port} for health and metrics" if admin else "")
        + (
            f" and on {settings.gadgetron.host or '*'}:{server.gadgetron_port} for Gadgetron"
            if server.gadgetron_port is not None
            else ""
        ),
    )
    sys.stdout.flush()
    logs.logger().info(
        "listening",
        host=settings.listen.host,
        port=server.port,
        admin_port=admin.port if admin else None,
        gadgetron_port=server.gadgetron_port,
        version=product_version(),
        device=settings.workers.device,
        workers=settings.workers.count,
    )

    await stop_asked.wait()
    logs.logger().info("stopping", signal=signal.Signals(signals[0]).name)
    stopping = loop.create_task(server.stop())
    stop_asked.clear()
    second = loop.create_task(stop_asked.wait())
    await asyncio.wait((stopping, second), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        # Asked twice: whoever asks does not want to wait for the scans.
        server.end_sessions("the server was told to stop at once")
    second.cancel()
    await stopping
    if admin is not None:
        await admin.stop()
    logs.logger().info("stopped")


def _start_admin(server: Server, settings: Admin, sockets: list[Any]) -> Any:
    # Imported late: by now the port for scans is open, and a scanner that waits for it is being answered.
    from server.admin import AdminServer

    admin = AdminServer(server, settings, sockets)
    admin.start()
    return admin


def _report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no task handled, as one record without data."""
    error = context.get("exception")
    trace = f"{type(error).__name__} at {logs.places(error)}" if isinstance(error, BaseException) else ""
    logs.logger().error("unhandled", message=str(context.get("message", "")), trace=trace)
