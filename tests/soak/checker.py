"""Reads the history of every client beside the server's records and says what was promised and not kept.

Promises: every session ends, with all its images or exactly one coded error; each readout is accounted once; images
come in order, none behind CLOSE; what a good session gets is bit-identical to an undisturbed run, whatever happened to
workers or beside it, unless it is marked as degraded.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.soak.peers import Heard, History
from tests.soak.plans import SLOW, WHOLE, Kind, Scans

OF_WORKERS: Final = frozenset({"worker_lost", "overdue", "execution"})
"""Codes that a session may end with because of what was done to workers."""
PER_GROUP: Final = 2
"""Images of a group: magnitude and deviation."""

Record = dict[str, Any]


@dataclass
class Reference:
    """What undisturbed sessions gave, by what was asked for.

    Attributes:
        images: by kind of peer for slow pipelines, by pipeline otherwise.
    """

    images: dict[str, list[Heard]] = field(default_factory=dict[str, list[Heard]])

    def of(self, history: History) -> list[Heard]:
        """What this session should have got."""
        plan = history.plan
        if plan.kind is Kind.DEAF:
            return self.images["many"]
        if plan.kind is Kind.OVERDUE:
            return self.images["sense"]
        return self.images[plan.pipeline]


@dataclass(frozen=True)
class Verdict:
    """What became of one session.

    Attributes:
        outcome: a word for the table.
        broken: promises that were not kept, each a sentence.
        record: the server's, if there was one.
    """

    history: History
    outcome: str
    broken: tuple[str, ...]
    record: Record | None

    def describe(self) -> str:
        """All that is needed to look into it, as one line of JSON."""
        history = self.history
        return json.dumps(
            {
                "broken": self.broken,
                "plan": history.plan.describe(),
                "ports": history.ports,
                "sent": history.sent,
                "end": history.end,
                "seconds": history.seconds,
                "events": history.events,
                "record": self.record,
            }
        )


def records_of(log: Path) -> list[Record]:
    """What the server wrote."""
    found: list[Record] = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = {"event": "unreadable", "message": line}
        found.append(record if isinstance(record, dict) else {"event": "unreadable", "message": line})
    return found


def judge(
    histories: Sequence[History], records: Iterable[Record], reference: Reference, scans: Scans
) -> tuple[list[Verdict], list[str]]:
    """Verdicts on all sessions, and what is wrong with the records themselves."""
    by_port: dict[int, list[Record]] = defaultdict(list)
    wrong: list[str] = []
    n_refused = 0
    for record in records:
        n_refused += record["event"] == "refused"
        if record["event"] == "session_end":
            by_port[record["peer_port"]].append(record)
        elif record["event"] in {"unhandled", "unreadable"} or "an internal error" in str(record.get("message")):
            wrong.append(f"the server's log: {json.dumps(record)}")
        elif record.get("code") == "server":
            wrong.append(f"an error of the server's own: {json.dumps(record)}")
    # Peers that left without a look at the answer may have been refused.
    n_unheard = n_refused - sum(history.busy + history.refused for history in histories)
    verdicts: list[Verdict] = []
    for history in sorted(histories, key=lambda one: one.began):
        found = [by_port[port].pop(0) for port in history.ports if by_port[port]]
        if not found and by_port[0] and history.end == "left":
            found = [by_port[0].pop(0)]  # it was gone before the server could ask for its port
        is_unseen = not found and history.end == "left" and history.plan.kind is not Kind.CROWD
        n_unheard -= is_unseen
        verdicts.append(_verdict(history, found, reference, scans, may_be_unseen=is_unseen and n_unheard >= 0))
    left = [record for rest in by_port.values() for record in rest]
    if left:
        wrong.append(f"{len(left)} sessions in the server's log that nobody had: {json.dumps(left[:3])}")
    return verdicts, wrong


def _verdict(
    history: History, records: list[Record], reference: Reference, scans: Scans, *, may_be_unseen: bool
) -> Verdict:
    kind, record = history.plan.kind, records[-1] if records else None
    if kind is Kind.CROWD:
        broken = _crowd(history, records)
        return Verdict(history, "refused in words", tuple(broken), record)
    broken = []
    if history.end == "silent":
        broken.append("silent: nothing came, and the connection stayed open")
    if record is None:
        if not may_be_unseen:
            broken.append("no record of this session in the server's log")
    else:
        broken += _accounted(history, record, scans)
    if history.end != "left":
        broken += _conversation(history)
    if kind is not Kind.FLIPPED:
        broken += _images(history, reference)
    return Verdict(history, _outcome(history, record), tuple(broken), record)


def _conversation(history: History) -> list[str]:
    """One CLOSE, at the end; at most one error, and one where nothing else could be."""
    broken: list[str] = []
    if history.closes != 1:
        broken.append(f"heard {history.closes} CLOSE, and the connection was {history.end}")
    if history.behind_close:
        broken.append(f"behind CLOSE came {history.behind_close}")
    if len(history.errors) > 1:
        broken.append(f"{len(history.errors)} errors")
    must_fail = {Kind.HOSTILE, Kind.MUTE, Kind.DRIP, Kind.SILENT}
    if history.plan.kind in must_fail and not history.errors:
        broken.append("ended without an error")
    if any(not text.isprintable() for text in history.errors):
        broken.append("an error that is not printable")
    return broken


def _images(history: History, reference: Reference) -> list[str]:
    """All images or an error; in order, and the same bits as ever."""
    plan, expected = history.plan, reference.of(history)
    heard = [image for image in history.images if image.kind != "preview"]
    broken: list[str] = []
    is_whole = plan.kind in WHOLE and history.sent == plan.cut and history.end != "left"
    if is_whole and not history.errors and len(heard) != len(expected) and plan.kind is not Kind.SILENT:
        broken.append(f"{len(heard)} of {len(expected)} images and no error")
    code = _code(history)
    if is_whole and plan.kind is not Kind.SILENT and history.errors and code not in OF_WORKERS:
        broken.append(f"a good session was refused: {history.errors[0]}")
    if len(heard) > len(expected):
        broken.append(f"{len(heard)} images where {len(expected)} were expected")
    # The group that a cut leaves unfinished is its own; all before it are like those of the whole scan.
    n_comparable = len(heard) if is_whole and plan.kind is not Kind.SILENT else max(0, len(heard) - PER_GROUP)
    stand_ins = reference.images["sense" if plan.pipeline == SLOW else "zero_filled"]
    for number, (image, want) in enumerate(zip(heard[:n_comparable], expected, strict=False)):
        if image.kind == "degraded":
            others = [images[number].pixels for images in (stand_ins, reference.images["zero_filled"])]
            if image.pixels not in others:
                broken.append(f"image {number} is degraded and not what a fallback makes")
        elif image.whole != want.whole and plan.kind is not Kind.OVERDUE:
            broken.append(f"image {number} is {image.whole}, undisturbed it is {want.whole}")
    return broken


def _accounted(history: History, record: Record, scans: Scans) -> list[str]:
    """Each readout once: what was sent, what was received, what became of it, what went out."""
    plan, broken = history.plan, []
    n, fates = record["acquisitions"], sum(record["counts"].values())
    if plan.kind not in {Kind.FLIPPED, Kind.HOSTILE, Kind.MUTE}:
        sent = scans.stream(plan.kind, plan.pipeline).readouts_in(history.sent)
        if n != sent and (history.end != "left" or n > sent) and _code(history) not in OF_WORKERS:
            broken.append(f"{sent} readouts sent, {n} received")
        if fates != n and not history.errors and history.end != "left":
            broken.append(f"{n} readouts received, {fates} accounted for: {record['counts']}")
    if history.end != "left":
        if record["images"] != len(history.images):
            broken.append(f"the server sent {record['images']} images, {len(history.images)} were heard")
        is_good = record["outcome"] in {"ok", "degraded"}
        if is_good == bool(history.errors):
            broken.append(f"the server says {record['outcome']}, the client heard {history.errors}")
        if ("degraded" in {image.kind for image in history.images}) != bool(record["fallbacks"]):
            broken.append(f"fallbacks {record['fallbacks']}, images {[image.kind for image in history.images]}")
    return broken


def _crowd(history: History, records: list[Record]) -> list[str]:
    broken = [f"a connection of a crowd heard {text}" for text in history.texts]
    if history.refused == 0:
        broken.append("nobody was refused")
    if history.end != "left":
        broken.append(f"a crowd ended with {history.end}")
    if len(records) > len(history.ports):
        broken.append("more sessions than connections that were admitted")
    if any(record["acquisitions"] or record["images"] for record in records):
        broken.append("a session that said nothing has data")
    return broken


def _code(history: History) -> str:
    return history.errors[0].removeprefix("ERROR ").partition(":")[0] if history.errors else ""


def _outcome(history: History, record: Record | None) -> str:
    if history.end == "silent":
        return "silent"
    if history.end == "left":
        return f"left ({record['outcome']})" if record else "left, unseen"
    if history.errors:
        n = " after images" if history.images else ""
        return f"error {_code(history)}{n}"
    if any(image.kind == "degraded" for image in history.images):
        return "degraded images"
    if record is not None and record["retried"]:
        return "all images, after a retry"
    return "images" if history.images else "no images, CLOSE"
