"""What every worker of a pool has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PIPELINE: Final = "pipelines.loading:load"
"""What makes a pipeline: `module:attribute` of a callable `(name, parameters, device)`; imported only in workers."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of a pool has in common; travels to the fork server as JSON.

    Attributes:
        device: `cpu`, `cuda` (workers take the GPUs in turn), one GPU such as `cuda:1`, or `auto` (CUDA where there
            is a GPU).
        threads: intra-op threads of torch; 0 leaves torch's own choice.
        pipeline: see `PIPELINE`.
        preload: modules to import once, before workers are forked.
        warm: pipelines with parameters to load and run once before the first job.
        memory_bytes: most private memory of a worker, 0 for no limit.
        models_directory: directory of models of the user's own; empty for none.
    """

    device: str = "cpu"
    threads: int = 1
    pipeline: str = PIPELINE
    preload: tuple[str, ...] = ()
    warm: tuple[tuple[str, Mapping[str, object]], ...] = ()
    memory_bytes: int = 0
    models_directory: str = ""
