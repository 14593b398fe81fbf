"""Errors of the server: one tree, drawn here. `code` and `advice` mean what they mean in `pipelines.errors`.

ServerError
├── ProtocolError        the peer broke a rule of the protocol
│   └── LimitError       a size that the peer announced is over a limit
├── SessionTimeoutError  the peer did not send, or did not read, in time
├── BusyError            no room for another session
├── TlsNeededError       the port speaks TLS and the peer does not
├── ExecutionError       the reconstruction could not be run
│   ├── WorkerLostError  the worker died, and so did the one that tried again
│   ├── OverdueError     it took longer than it may
│   └── OutOfMemoryError it needed more memory than there is
├── DrainingError        the server is shutting down
├── ConversionError      something that a format of MRD cannot hold, and that may not be left out
├── OutputClosedError    whoever read the output of a command has closed it
├── FileError            a file with a scan or with images cannot be read or written
├── ClientError          the server a client spoke to was not there, refused, fell silent or ended early
│   ├── ScanFailedError  the same with what had come until then (server/client.py)
│   └── TlsClientError   no TLS with that server (server/tls.py)
├── StartError           a server of one's own did not come up (server/local_server.py)
└── SettingsError        the settings are wrong; the server does not start
    └── ExposureError    a port would be open to strangers (server/exposure.py)
"""


class ServerError(Exception):
    """Base of everything that the server raises on purpose."""

    code = "server"
    advice = "Report the session id to whoever runs this server."


class ProtocolError(ServerError):
    """The peer broke a rule of the protocol.

    `kind` is the label of `echotrain_protocol_errors_total`: bad_id, bad_length, over_limit, truncated, bad_xml,
    bad_header, bad_order, bad_utf8 or nonfinite.
    """

    code = "protocol"
    advice = "Check that the client speaks MRD version 1 and sends configuration, header, data, CLOSE in that order."

    def __init__(self, message: str, *, kind: str = "bad_order", advice: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        if advice is not None:
            self.advice = advice


class LimitError(ProtocolError):
    """A size that the peer announced is over a limit; nothing was allocated."""

    code = "over_limit"
    advice = "Send less, or raise the limit in the server's settings."

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="over_limit")


class SessionTimeoutError(ServerError):
    """The peer did not send, or did not read, in time."""

    code = "timeout"
    advice = "Check the network and the client; timeouts are settings of the server."


class BusyError(ServerError):
    """No room for another session."""

    code = "busy"
    advice = "Try again in a minute."


class TlsNeededError(ServerError):
    """The port speaks TLS and the peer does not."""

    code = "tls_needed"
    advice = "Switch TLS on in the client (`echotrain send --tls`)."


class ExecutionError(ServerError):
    """The reconstruction could not be run."""

    code = "execution"


class WorkerLostError(ExecutionError):
    """The worker died, and so did the one that tried the job again."""

    code = "worker_lost"


class OverdueError(ExecutionError):
    """The reconstruction took longer than it may."""

    code = "overdue"
    advice = "Use a faster pipeline, or raise its budget in the server's settings."


class OutOfMemoryError(ExecutionError):
    """The reconstruction needed more memory than there is."""

    code = "out_of_memory"
    advice = "Use a smaller matrix, fewer channels or coil compression, or a machine with more memory."


class DrainingError(ServerError):
    """The server is shutting down."""

    code = "shutting_down"
    advice = "Send the scan again in a minute."


class ConversionError(ServerError):
    """Something that a format of MRD cannot hold, and that may not be left out: an image would come out wrong."""

    code = "cannot_convert"
    advice = "Keep the data in the format they are in."


class OutputClosedError(ServerError):
    """Whoever read the output of a command has closed it."""

    code = "output_closed"
    advice = "Check the program that reads the output; what it had not read is lost."


class FileError(ServerError):
    """A file with a scan or with images cannot be read or written."""

    code = "bad_file"
    advice = "Check the name of the file and that it holds what the command expects (`echotrain inspect`)."


class ClientError(ServerError):
    """The server that a client spoke to was not there, refused, fell silent or ended too early."""

    code = "no_images"
    advice = "Check that the server runs (`echotrain doctor`) and read its log for this session."

    def __init__(self, message: str, *, code: str | None = None, advice: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if advice is not None:
            self.advice = advice


class SettingsError(ServerError):
    """The settings are wrong."""

    code = "settings"
    advice = "See `echotrain config` for every setting with its default."
