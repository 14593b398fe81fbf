"""Answers to QUERY messages: the keys that Gadgetron knows, and our own. Facts about the server, never about a scan."""

from __future__ import annotations

import os
from collections.abc import Callable

from pipelines.registry import pipelines
from server.execution.executor import Health
from server.metrics import product_version

UNKNOWN = "Unknown query"
"""What Gadgetron answers, and so do we."""


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
        "recon::ready": lambda: "1" if is_ready else "0",
        "recon::version": product_version,
        "recon::pipelines": lambda: ";".join(sorted(pipelines())),
    }
    return answers.get(question.strip("\0 \n"), lambda: UNKNOWN)()


def _info(health: Health, *, is_ready: bool) -> str:
    workers = ", ".join(f"{count} {state}" for state, count in sorted(health.workers.items()))
    return (
        f"Echotrain {product_version()}\n"
        f"  -- Ready           : {'yes' if is_ready else 'no'}\n"
        f"  -- Workers         : {workers or 'none'}\n"
        f"  -- Pipelines       : {', '.join(sorted(pipelines()))}\n"
    )
