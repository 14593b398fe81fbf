"""Exceptions of a worker as text, and back.

Errors that a pipeline raises on purpose keep their type, message, code and advice. Anything else becomes an
`ExecutionError` whose text is ours; which kind of exception it was and where it was raised travel as its cause, for
the log. Its message does not travel, because it may quote data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pipelines.errors
from pipelines.errors import PipelineError
from server.errors import ExecutionError, OutOfMemoryError
from server.execution.encoding import Reply
from server.logs import places

_MOST_CHARACTERS = 2000
_MOST_CAUSES = 4
_KNOWN = {
    name: kind
    for name, kind in vars(pipelines.errors).items()
    if isinstance(kind, type) and issubclass(kind, PipelineError)
}


class WorkerTraceback(Exception):  # noqa: N818
    """Kind and places of an exception in a worker, without its message; cause of an `ExecutionError`, for logs."""


def encode_failure(error: BaseException, *, out_of_memory: bool = False) -> Reply:
    """What a worker says about an exception."""
    if isinstance(error, PipelineError):
        names = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, PipelineError)]
        return Reply(
            "refused", {"types": names, "message": str(error), "code": str(error.code), "advice": str(error.advice)}
        )
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None and len(chain) < _MOST_CAUSES:
        chain.append(f"{type(link).__name__} at {places(link)}")
        link = link.__cause__
    return Reply(
        "failed",
        {
            "type": type(error).__name__,
            "out_of_memory": out_of_memory or isinstance(error, MemoryError),
            "trace": ", caused by ".join(chain),
        },
    )


def decode_failure(fields: Mapping[str, Any]) -> PipelineError | ExecutionError:
    """The exception to raise in the front process."""
    if "types" in fields:
        kind = next((_KNOWN[name] for name in fields["types"] if name in _KNOWN), PipelineError)
        refusal = kind(str(fields["message"])[:_MOST_CHARACTERS])
        refusal.code, refusal.advice = str(fields["code"]), str(fields["advice"])
        return refusal
    if fields.get("out_of_memory"):
        failure: ExecutionError = OutOfMemoryError("the reconstruction needed more memory than there is")
    else:
        failure = ExecutionError(
            f"the reconstruction failed inside the server ({str(fields.get('type', 'unknown'))[:64]})"
        )
    failure.__cause__ = WorkerTraceback(str(fields.get("trace", "")))
    return failure
