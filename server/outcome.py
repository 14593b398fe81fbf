"""How sessions end: what the peer is told, what is counted, what is logged. Words only; no sockets."""

from __future__ import annotations

import re
from typing import Final

from pipelines.errors import ModelUnavailableError, ParameterError, PipelineError, UnknownPipelineError
from pipelines.registry import pipelines
from server.errors import DrainingError, ProtocolError, ServerError, SessionTimeoutError, WorkerLostError
from server.execution.failure import WorkerTraceback
from server.logs import places, printable

TEXT_LENGTH: Final = 600
"""Characters of one sentence to the peer."""


class ClientLeftError(ServerError):
    """The peer closed the connection before the session was over; nobody is left to tell."""

    code = "client_left"
    advice = "Check the client and the network."


def error_text(error: Exception) -> str:
    """What the peer is told: `ERROR <code>: <plain sentence>. <advice>`, one line."""
    code, message = explain(error)
    advice = error.advice if isinstance(error, ServerError | PipelineError) else ServerError.advice
    return f"ERROR {code}: {printable(message, TEXT_LENGTH).rstrip('.')}. {printable(advice, TEXT_LENGTH)}"


def explain(error: Exception) -> tuple[str, str]:
    """Code and message of an error, as far as they may leave the server."""
    if isinstance(error, ServerError | PipelineError):
        return error.code, str(error)
    # A bug of ours: its message may quote data, so nobody outside sees it.
    return ServerError.code, "an internal error of the server"


def log_message(error: Exception) -> str:
    """What the log says: the same, without words of the peer's configuration, which may be anybody's name."""
    _, message = explain(error)
    if isinstance(error, UnknownPipelineError | ParameterError | ModelUnavailableError):
        ours = _OURS.match(message)
        start = ours.end() if ours and _is_known(*ours.groups()) else 0
        # From the first quotation mark to the last: what a peer quotes may hold such marks itself.
        return message[:start] + re.sub(r"['\"].*['\"]", "'...'", message[start:], flags=re.DOTALL)
    return message


_OURS = re.compile(r"pipeline '(\w+)': (?:parameter '(\w+)': )?")
"""How a message about a parameter begins (`PipelineEntry.parse`): our own names of both."""


def _is_known(pipeline: str, parameter: str | None) -> bool:
    entry = pipelines().get(pipeline)
    return entry is not None and (parameter is None or parameter in entry.parameters.model_fields)


def outcome_of(error: Exception | None) -> str:
    """The label of a session that ended with this error, or without one."""
    match error:
        case None:
            return "ok"
        case ClientLeftError():
            return "client_abort"
        case ProtocolError():
            return "protocol_error"
        case SessionTimeoutError():
            return "timeout"
        case DrainingError():
            return "drained"
        case WorkerLostError():
            return "worker_lost"
        case PipelineError():
            return "pipeline_error"
        case _:
            return "server_error"


def forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error came through, once they have been told of: they hold data and each other."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def trace_of(error: Exception) -> str:
    """Where an unexpected exception came from; for deliberate errors their cause, without any message of theirs."""
    unexpected = error if not isinstance(error, ServerError | PipelineError) else error.__cause__
    if isinstance(unexpected, WorkerTraceback):
        return str(unexpected)
    if unexpected is None or unexpected.__traceback__ is None:
        return ""
    return f"{type(unexpected).__name__} at {places(unexpected)}"
