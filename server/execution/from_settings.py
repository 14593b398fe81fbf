"""The executor that the settings ask for."""

from __future__ import annotations

import os

from server.config import Settings
from server.execution.process_pool import ProcessExecutor


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
        models_directory=settings.models.directory,
    )
