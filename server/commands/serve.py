"""`echotrain serve`: the server as a process. The port is open before workers, metrics and HTTP are loaded."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from server import config, logs
from server.config import Admin, Listen, Settings
from server.errors import SettingsError
from server.execution.process_pool import ProcessExecutor
from server.listener import Server, listen
from server.metrics import Metrics, product_version

MOST_FILES = 65536


def main(
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
    host: Annotated[str | None, typer.Option(help="Address for scanners; :: for all, IPv4 and IPv6.")] = None,
    port: Annotated[int | None, typer.Option(help="Port for scanners.", min=0, max=65535)] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port for metrics and health.", min=0, max=65535)] = None,
    pipeline: Annotated[str | None, typer.Option(help="Default pipeline.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.", min=1)] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting.", metavar="NAME=VALUE", show_default=False)
    ] = None,
) -> None:
    r"""Run the server until it gets SIGTERM or SIGINT; then it finishes the running scans and stops.

    \b
    Example:
        echotrain serve --host :: --port 9002 --pipeline sense --set limits.sessions=4

    \b
    Exit statuses: 0 stopped as asked, 1 failed, 2 wrong settings or a port that is taken.
    """
    flags: dict[str, object] = {
        "listen.host": host,
        "listen.port": port,
        "admin.port": admin_port,
        "pipelines.default": pipeline,
        "workers.device": device,
        "workers.count": workers,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    settings = config.load(file, given | parse_values(values or [])).settings
    logs.configure(settings.logs.level)
    # A flood of connections that are refused must not use up the files that sessions and workers need.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MOST_FILES) if most > 0 else MOST_FILES, most))
    uvloop.run(serve(settings))


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


async def serve(settings: Settings) -> None:
    """Run the server until a signal asks it to stop."""
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
    server = Server(settings, make_executor(settings), Metrics())
    await server.start(sockets)
    admin = _start_admin(server, settings.admin, admin_sockets) if admin_sockets else None
    where = f"{settings.listen.host or '*'}:{server.port}"
    typer.echo(
        f"Echotrain {product_version()} listens on {where} for scans"
        + (f" and on {settings.admin.host or '*'}:{admin.port} for health and metrics" if admin else ""),
    )
    sys.stdout.flush()
    logs.logger().info(
        "listening",
        host=settings.listen.host,
        port=server.port,
        admin_port=admin.port if admin else None,
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


def make_executor(settings: Settings) -> ProcessExecutor:
    """The worker processes that the settings ask for."""
    workers = settings.workers
    # One core is left to the front. Threads that wait for a core cost far more than they bring: with both cores of a
    # machine busy, `sense` on 256 x 256 x 8 took 1.2 s with two threads and 0.26 s with one (medians).
    threads = workers.threads or max(1, ((os.cpu_count() or 1) - 1) // workers.count)
    default = settings.pipelines.default
    return ProcessExecutor(
        workers.count,
        workers.device,
        threads,
        settings.limits.memory_bytes,
        warm=[(default, settings.pipelines.parameters.get(default, {}))],
        job_timeout_s=settings.timeouts.reconstruction_s,
    )


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
