"""What peers do in a soak, and their history: what each has sent, heard, and when. Judges nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import struct
import time
from dataclasses import dataclass, field

from pipelines.mrd import Image
from server.errors import ProtocolError
from server.wire.connection import Connection, Role
from server.wire.messages import Close, Text
from tests.end_to_end.conftest import Says
from tests.end_to_end.test_hostile import CASES
from tests.soak.plans import WHOLE, Kind, Plan, Scans

SILENCE_S = 40.0
"""Without a byte for so long a session counts as silent; every timeout of the server's is far below."""
CROWD = 40
BUSY_TRIES = 200


@dataclass(frozen=True)
class Heard:
    """One image as heard.

    Attributes:
        whole: digest of header, pixels and attributes, but for what names the session.
        pixels: digest of the pixels.
        kind: `image`, `preview` or `degraded`.
    """

    whole: str
    pixels: str
    kind: str


@dataclass
class History:
    """What one client saw.

    Attributes:
        ports: of its sockets; that of the session that was served last.
        sent: bytes handed to the kernel of the scan's own.
        images: heard, in order.
        texts: heard, in order.
        closes: how often CLOSE was heard.
        behind_close: what came after CLOSE.
        end: how it ended: `closed` by the server, `reset` by the server, `left` by the client, `silent`.
        busy: how often it was told that the server is busy.
        refused: connections of a crowd that were told so.
        events: all of it, with seconds since the start.
    """

    plan: Plan
    ports: list[int] = field(default_factory=list)
    sent: int = 0
    images: list[Heard] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    closes: int = 0
    behind_close: list[str] = field(default_factory=list)
    end: str = ""
    busy: int = 0
    refused: int = 0
    began: float = 0.0
    seconds: float = 0.0
    events: list[tuple[float, str]] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """Texts that are errors."""
        return [text for text in self.texts if text.startswith("ERROR")]

    def note(self, what: str) -> None:
        """Keep an event."""
        self.events.append((round(time.monotonic() - self.began, 4), what))


def perform(plan: Plan, port: int, scans: Scans) -> History:
    """Play one session; whatever happens, its history comes back."""
    for busy in range(BUSY_TRIES):
        history = History(plan, busy=busy, began=time.monotonic())
        try:
            if plan.kind is Kind.CROWD:
                _crowd(history, port)
            else:
                _session(history, port, scans)
        except OSError as error:
            history.note(f"{type(error).__name__}: {error}")
            history.end = history.end or "reset"
        history.seconds = time.monotonic() - history.began
        if plan.kind is Kind.CROWD or not any(text.startswith("ERROR busy") for text in history.texts):
            break
        time.sleep(0.1)
    return history


def _session(history: History, port: int, scans: Scans) -> None:
    plan = history.plan
    with socket.socket() as sock:
        if plan.kind is Kind.DEAF:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(SILENCE_S)
        sock.connect(("127.0.0.1", port))
        history.ports.append(sock.getsockname()[1])
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            _speak(history, sock, scans)
        except ConnectionError as error:
            history.note(f"while sending: {type(error).__name__}")
        if history.end != "left":
            hear(history, sock)


def _speak(history: History, sock: socket.socket, scans: Scans) -> None:
    plan, rng = history.plan, random.Random(history.plan.seed)
    data = scans.stream(plan.kind, plan.pipeline).data[: plan.cut]
    match plan.kind:
        case Kind.MUTE:
            return
        case Kind.HOSTILE:
            sock.sendall(CASES[plan.case][0](Says, scans.small))
            return
        case Kind.DRIP:
            _drip(history, sock, data)
            return
        case Kind.FLIPPED:
            data = flipped(data, rng)
        case _:
            pass
    if plan.kind is Kind.CHUNKED:
        _send_in_pieces(history, sock, data, rng)
    else:
        sock.sendall(data)
        history.sent = len(data)
    history.note(f"sent {history.sent} bytes")
    if plan.kind in WHOLE - {Kind.NO_CLOSE, Kind.SILENT}:
        sock.sendall(Says.CLOSE + (rng.randbytes(50_000) if plan.kind is Kind.GARBAGE else b""))
    elif plan.kind in {Kind.NO_CLOSE, Kind.CUT, Kind.FLIPPED}:
        sock.shutdown(socket.SHUT_WR)
    elif plan.kind is Kind.RESET:
        time.sleep(plan.pause_s)
        _leave(history, sock)
    elif plan.kind is Kind.DEAF:
        sock.sendall(Says.CLOSE)
        time.sleep(4.0)
        _leave(history, sock)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The bytes with up to eight bits flipped, half of them near the start."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(8 * min(len(data), 8000 if rng.random() < 0.5 else len(data)))
        changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def _send_in_pieces(history: History, sock: socket.socket, data: bytes, rng: random.Random) -> None:
    cuts = sorted(rng.sample(range(1, len(data)), 40))
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        sock.sendall(data[start:stop])
        history.sent = stop
        time.sleep(rng.uniform(0.0, 0.02))


def _drip(history: History, sock: socket.socket, data: bytes) -> None:
    """A byte at a time until the server has had enough."""
    for i in range(len(data)):
        if select.select([sock], [], [], 0.1)[0]:
            return
        sock.sendall(data[i : i + 1])
        history.sent = i + 1


def _leave(history: History, sock: socket.socket) -> None:
    """Reset the connection, unless it was refused: that is heard first."""
    if history.plan.kind is Kind.RESET and select.select([sock], [], [], 0.02)[0]:
        with contextlib.suppress(OSError):
            if b"ERROR busy" in sock.recv(1 << 16, socket.MSG_PEEK):
                history.texts.append("ERROR busy")
    history.end = "left"
    history.note("resets")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hear(history: History, sock: socket.socket, silence_s: float = SILENCE_S) -> None:
    """Take all that comes until the server closes."""
    connection = Connection(Role.CLIENT)
    sock.settimeout(silence_s)
    data = bytearray(1 << 16)
    while True:
        try:
            n = sock.recv_into(data)
        except TimeoutError:
            history.end = "silent"
            return
        except ConnectionError:
            history.end = "reset"
            return
        if n == 0:
            history.end = "closed"
            connection.end_of_input()
        rest = memoryview(data)[:n]
        if history.closes and n:
            history.behind_close.append(f"{n} bytes")
        while rest:
            room = connection.writable()
            n_taken = min(len(room), len(rest))
            room[:n_taken] = rest[:n_taken]
            connection.received(n_taken)
            rest = rest[n_taken:]
            _take(history, connection)
        if n == 0:
            _take(history, connection)
            return


def _take(history: History, connection: Connection) -> None:
    try:
        while (event := connection.next_event()) is not None:
            match event:
                case Image():
                    history.images.append(digest(event))
                    history.note(f"image {history.images[-1].kind} {history.images[-1].whole}")
                case Text(text):
                    history.texts.append(text)
                    history.note(text)
                case Close(announced):
                    history.closes += announced
                    history.note("CLOSE" if announced else "end without CLOSE")
                    if announced and connection.pending:
                        history.behind_close.append(f"{connection.pending} bytes")
                case _:
                    history.note(type(event).__name__)
    except ProtocolError as error:
        history.note(f"the server broke the protocol: {error}")
        history.behind_close.append("a broken message")


def digest(image: Image) -> Heard:
    """An image as it is kept and compared."""
    meta = {name: values for name, values in image.meta.items() if name != "ReconSession"}
    header = image.header.copy()
    header["attribute_string_len"] = 0
    whole = hashlib.sha256(header.tobytes() + image.pixels.tobytes() + repr(sorted(meta.items())).encode())
    kind = "degraded" if image.meta.get("ReconDegraded") == ["true"] else "image"
    kind = "preview" if "ReconPreview" in image.meta else kind
    return Heard(whole.hexdigest()[:16], hashlib.sha256(image.pixels.tobytes()).hexdigest()[:16], kind)


def _crowd(history: History, port: int) -> None:
    """More connections at once than there is room for; those that are refused must be told so at once."""
    socks: list[socket.socket] = []
    try:
        for _ in range(CROWD):
            sock = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S)
            history.ports.append(sock.getsockname()[1])
            socks.append(sock)
        time.sleep(0.3)
        for sock in socks:
            if select.select([sock], [], [], 0.0)[0]:
                one = History(history.plan, began=history.began)
                hear(one, sock)
                if one.closes == 1 and len(one.errors) == 1 and one.errors[0].startswith("ERROR busy"):
                    history.refused += 1
                    history.ports.remove(sock.getsockname()[1])
                else:
                    history.texts += one.texts
                    history.note(f"connection {sock.getsockname()[1]}: {one.end}, {one.closes} CLOSE, {one.texts}")
        history.end = "left"
    finally:
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
