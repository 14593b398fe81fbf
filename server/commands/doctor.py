"""`echotrain doctor`: checks this machine, and says what to do about whatever is wrong.

The checks run in the order in which a scan would meet them; the last one reconstructs a small phantom in a real worker.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.errors import ModelError
from server import config
from server.commands.serve import parse_values
from server.config import Settings
from server.endpoints import Listen
from server.errors import ServerError, SettingsError
from server.execution.executor import Job
from server.execution.from_settings import make_executor
from server.exposure import check_exposure
from server.listener import listen
from server.networks import is_loopback
from server.tls import about_end, certificate_end, server_context

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of one check.

    Attributes:
        level: ok, warning or failure.
        fix: what to do; empty when all is well.
    """

    name: str
    level: str
    text: str
    fix: str = ""


def main(
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as `serve` would get it.", metavar="NAME=VALUE")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the reconstruction in a worker.")] = False,
) -> None:
    r"""Check ports, libraries, memory, disk, clock, models and workers, and print a fix for each thing that is wrong.

    \b
    Example:
        echotrain doctor --set listen.port=9002

    \b
    Exit statuses: 0 nothing is wrong (warnings allowed), 1 a scan would fail here, 2 a setting is wrong.
    """
    settings = config.load(file, parse_values(values or [])).settings
    console = Console()
    checks: list[Callable[[Settings], Iterator[Finding]]] = [check_ports, check_access, check_libraries, check_device]
    checks += [check_memory, check_disk, check_clock, check_models]
    if not quick:
        checks.append(check_worker)
    failed = 0
    for check in checks:
        for finding in check(settings):
            mark = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "failure": "[red]failure[/]"}[
                finding.level
            ]
            console.print(f"{mark} {finding.name}: {finding.text}", highlight=False, soft_wrap=True)
            if finding.fix:
                console.print(f"        -> {finding.fix}", highlight=False, soft_wrap=True)
            failed += finding.level == "failure"
    if failed:
        raise typer.Exit(1)


def check_ports(settings: Settings) -> Iterator[Finding]:
    """Whether the ports can be listened on, and who could reach them."""
    admin = settings.admin
    for name, where in (("scans", settings.listen), ("admin", Listen(host=admin.host, port=admin.port))):
        shown = f"{where.host or '*'}:{where.port}"
        try:
            for sock in listen(where):
                sock.close()
        except ServerError as error:
            fix = f"Stop what uses it (`ss -ltnp 'sport = :{where.port}'`), or choose another port."
            yield Finding(f"port for {name}", "failure", str(error), fix)
            continue
        if name == "scans" and is_loopback(where.host):
            fix = "For a scanner on another machine serve with --host :: and --allow with its network, or with TLS."
            yield Finding(f"port for {name}", "ok", f"{shown} is free; only this machine can reach it", fix)
        else:
            yield Finding(f"port for {name}", "ok", f"{shown} is free")


def check_access(settings: Settings) -> Iterator[Finding]:
    """Whether strangers are kept out, and whether TLS can be spoken."""
    try:
        for section in check_exposure(settings):
            text = f"{section}.host lets every machine in that reaches it, as listen.insecure_lan says"
            yield Finding("access", "warning", text, f"Keep it behind a firewall, or set {section}.allow.")
    except SettingsError as error:
        yield Finding("access", "failure", str(error), error.advice)
    try:
        if server_context(settings.listen) is not None:
            warning = about_end(certificate_end(settings.listen.tls_certificate))
            text = warning or "certificate and key belong together"
            yield Finding("TLS", "warning" if warning else "ok", text, "Renew it, then restart." if warning else "")
    except SettingsError as error:
        yield Finding("TLS", "failure", str(error), "Correct the file, or leave listen.tls_certificate empty.")


def check_libraries(_: Settings) -> Iterator[Finding]:
    """Whether what we need is installed."""
    names = ("torch", "numpy", "ismrmrd", "uvloop", "pydantic", "prometheus-client")
    for name in names:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "failure", "not installed", "Run `make setup`, or install torch first, then echotrain.")


def check_device(settings: Settings) -> Iterator[Finding]:
    """Whether the device that the settings name exists."""
    import torch

    wanted = settings.workers.device
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("device", "ok", f"CUDA {torch.version.cuda}: {names}")
    elif wanted.startswith("cuda"):
        fix = "Check `nvidia-smi`, install a CUDA build of torch, or set workers.device to cpu."
        yield Finding("device", "failure", f"workers.device is {wanted}, but torch finds no GPU", fix)
    else:
        yield Finding("device", "ok", f"CPU, {os.cpu_count()} cores (torch finds no GPU)")


def check_memory(settings: Settings) -> Iterator[Finding]:
    """Whether k-space fits, and whether anonymous shared memory works."""
    free = _available_memory()
    wanted = settings.limits.memory_bytes
    if free is None:
        yield Finding("memory", "warning", "this system does not say how much is free", "")
    elif free < wanted:
        fix = f"Set limits.memory_bytes to at most {free // 2}, or free memory."
        yield Finding("memory", "failure", f"{free / GIB:.1f} GiB free, {wanted / GIB:.1f} GiB wanted for k-space", fix)
    else:
        yield Finding("memory", "ok", f"{free / GIB:.1f} GiB free, {wanted / GIB:.1f} GiB wanted for k-space")
    try:
        fd = os.memfd_create("echotrain-doctor")
        os.ftruncate(fd, 1 << 20)
        os.close(fd)
        yield Finding("shared memory", "ok", "memfd works")
    except OSError as error:
        fix = "Allow memfd_create in the container's seccomp profile."
        yield Finding("shared memory", "failure", f"memfd does not work: {error.strerror}", fix)


def _available_memory() -> int | None:
    """Free bytes, as far as this container may use them."""
    known: list[int] = []
    info = Path("/proc/meminfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            known.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            known.append(int(text))
    return min(known) if known else None


def check_disk(_: Settings) -> Iterator[Finding]:
    """Whether there is room for temporary files; scans themselves are not saved."""
    where = tempfile.gettempdir()
    free = shutil.disk_usage(where).free
    if free < GIB // 10:
        fix = "Free space, or point TMPDIR elsewhere."
        yield Finding("disk", "warning", f"{free / (1 << 20):.0f} MiB free in {where}", fix)
    else:
        yield Finding("disk", "ok", f"{free / GIB:.1f} GiB free in {where}")


def check_clock(_: Settings) -> Iterator[Finding]:
    """Whether the clock is plausible: image times and certificates depend on it, timeouts do not."""
    year = time.gmtime().tm_year
    if year < 2025:
        yield Finding("clock", "warning", f"it is the year {year} here", "Set the time, or switch NTP on.")
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def check_models(settings: Settings) -> Iterator[Finding]:
    """Whether the models that pipelines may ask for match their cards."""
    from models.catalogue import entries, use_directory
    from models.store import verify

    use_directory(Path(settings.models.directory) if settings.models.directory else None)
    try:
        problems, n_models = verify(), len(entries())
    except ModelError as error:
        yield Finding("models", "failure", str(error), "Correct models.directory, or leave it empty.")
        return
    fix = "Install it again or take it away; `echotrain models verify` says more."
    for problem in problems.values():
        yield Finding("models", "failure", problem, fix)
    if not problems:
        yield Finding("models", "ok", f"{n_models} with card and digest" if n_models else "none installed")


def check_worker(settings: Settings) -> Iterator[Finding]:
    """Whether a worker starts and reconstructs."""
    try:
        ready_s, job_s, n_images, problems = asyncio.run(_reconstruct(settings))
    except (ServerError, TimeoutError) as error:
        fix = "Run `python -c 'import torch'`; look for a memory limit that is too low."
        yield Finding("worker", "failure", f"no reconstruction: {error or 'no worker came up'}", fix)
        return
    for problem in problems:
        yield Finding("worker", "failure", problem, "Choose another default pipeline, or reinstall.")
    pipeline = settings.pipelines.default
    text = f"ready after {ready_s:.1f} s; {pipeline} gave {n_images} images of a small phantom in {job_s * 1e3:.0f} ms"
    yield Finding("worker", "ok" if n_images else "failure", text)


async def _reconstruct(settings: Settings) -> tuple[float, float, int, tuple[str, ...]]:
    # The phantom is the one that workers warm up with; nothing here imports torch.
    from server.execution.warm_up import tiny_group

    executor = make_executor(settings)
    started = time.monotonic()
    await executor.start()
    try:
        async with asyncio.timeout(120):
            while not executor.health().is_usable:  # noqa: ASYNC110 - the executor has no event for this
                await asyncio.sleep(0.05)
            ready_at = time.monotonic()
            group = tiny_group()
            default = settings.pipelines.default
            parameters = settings.pipelines.parameters.get(default, {})
            result = await executor.run(Job("doctor", default, parameters, group))
        return ready_at - started, time.monotonic() - ready_at, len(result.images), executor.health().problems
    finally:
        await executor.stop()
