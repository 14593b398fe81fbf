"""Answers to QUERY messages: the keys that Gadgetron knows, and our own. Facts about the server, never about a scan."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipelines.registry import pipelines
from server.execution.executor import Health
from server.metrics import product_version

UNKNOWN = "Unknown query"
"""What Gadgetron answers, and so do we."""

NOT_KNOWN: Final = "N/A"
_DRIVER: Final = Path("/proc/driver/nvidia")


def answer(question: str, health: Health, *, is_ready: bool) -> str:
    """The answer to one question; `UNKNOWN` for anything that is not in the list."""
    answers: dict[str, Callable[[], str]] = {
        "ismrmrd::version": lambda: "1.14.0",
        "gadgetron::version": lambda: f"echotrain {product_version()}",
        "gadgetron::build": product_version,
        "gadgetron::info": lambda: _info(health, is_ready=is_ready),
        "gadgetron::info::memory": lambda: str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        # No scripts of a peer are ever run here, whatever this machine has installed.
        "gadgetron::info::python": lambda: "0",
        "gadgetron::info::matlab": lambda: "0",
        "gadgetron::info::cuda": lambda: str(int(bool(_gpus()))),
        "gadgetron::cuda::devices": lambda: str(len(_gpus())),
        "gadgetron::cuda::driver": _driver,
        # CUDA itself is loaded in workers only; Gadgetron says the same where it was built without.
        "gadgetron::cuda::runtime": lambda: NOT_KNOWN,
        "gadgetron::cuda::memory": lambda: ";".join(NOT_KNOWN for _ in _gpus()),
        "gadgetron::cuda::capabilities": lambda: ";".join(NOT_KNOWN for _ in _gpus()),
        "recon::ready": lambda: "1" if is_ready else "0",
        "recon::version": product_version,
        "recon::pipelines": lambda: ";".join(sorted(pipelines())),
    }
    return answers.get(question.strip("\0 \n"), lambda: UNKNOWN)()


def _gpus() -> list[str]:
    """GPUs that NVIDIA's driver knows of, each by its place on the bus."""
    place = _DRIVER / "gpus"
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def _driver() -> str:
    """Version of NVIDIA's driver."""
    file = _DRIVER / "version"
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text()) if file.is_file() else None
    return found[0] if found else NOT_KNOWN


def _info(health: Health, *, is_ready: bool) -> str:
    workers = ", ".join(f"{count} {state}" for state, count in sorted(health.workers.items()))
    return (
        f"Echotrain {product_version()}\n"
        f"  -- Ready           : {'yes' if is_ready else 'no'}\n"
        f"  -- Workers         : {workers or 'none'}\n"
        f"  -- Pipelines       : {', '.join(sorted(pipelines()))}\n"
    )
