"""Sessions with random faults from a seeded schedule against a real server, every client's history checked.

    python -m tests.soak [--sessions N] [--seed S] [--output FOLDER]

Workers are killed and stopped at random moments; peers reset, stop, half-close, drip, do not read, flip bits, say what
is hostile, come in crowds; good sessions go on beside them. Prints a table of outcomes and what the front process
held; status 1 when a promise was not kept, with the seed and the histories that show it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server.local_server import local_server
from tests.soak.checker import Reference, Verdict, judge, records_of
from tests.soak.peers import History, perform
from tests.soak.plans import PIPELINES, Kind, Plan, Scans, schedule
from tests.soak.watch import Sample, Watch, slope

AT_ONCE = 10
ROOM = 16
SETTINGS = (
    "workers.threads=1", "workers.device=cpu", "workers.count=2", "pipelines.default=zero_filled",
    f"limits.sessions={ROOM}", 'pipelines.budgets_s={"joint_ipalm": 4}', "timeouts.first_message_s=1.5",
    "timeouts.message_s=1.5", "timeouts.idle_s=3", "timeouts.send_s=2", "timeouts.linger_s=0.5",
    "timeouts.reconstruction_s=8",
)  # fmt: skip
MOST_SLOPE = 1024.0
"""Bytes a session that resident memory may grow by, where enough sessions show it."""
ENOUGH_FOR_SLOPE = 1000
MOST_GROWTH = 128 << 20
"""Bytes that it may grow by in a shorter run: buffers of all sessions there is room for, and what malloc keeps."""


def main() -> int:
    """Play, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("soak-output"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "server.jsonl"
    scans, samples, wrong = Scans(), list[Sample](), list[str]()
    histories: list[History] = []
    arguments = [part for setting in SETTINGS for part in ("--set", setting)]
    with local_server(log, arguments) as server:
        watch = Watch(server)
        reference, undisturbed = _reference(server.port, scans)
        histories += undisturbed
        wrong += watch.settle()
        samples.append(watch.sample(0))
        open_before = watch.describe_descriptors()
        began = time.monotonic()
        plans = list(schedule(options.seed, options.sessions, scans))
        size = max(20, options.sessions // 40)
        for first in range(0, len(plans), size):
            histories += _play(plans[first : first + size], server.port, scans, watch)
            wrong += watch.settle()
            if not watch.is_alive():
                wrong.append("the front process died")
                break
            samples.append(watch.sample(min(first + size, len(plans))))
            _say(f"{samples[-1].sessions} sessions, {time.monotonic() - began:.0f} s")
        elapsed = time.monotonic() - began
        open_after = watch.describe_descriptors() if watch.is_alive() else ""
    wrong += watch.left_behind()
    verdicts, of_log = judge(histories, records_of(log), reference, scans)
    wrong += of_log + samples[-1].differs(samples[0])
    if samples[-1].descriptors > samples[0].descriptors:
        wrong.append(f"open before: {open_before}; after: {open_after}")
    played = [verdict for verdict in verdicts if verdict.history.plan.number >= 0]
    _print_outcomes(played)
    _print_times(played, elapsed, watch)
    wrong += _print_resources(samples, options.sessions)
    broken = [verdict for verdict in verdicts if verdict.broken]
    violations = options.output / "violations.jsonl"
    violations.write_text("".join(verdict.describe() + "\n" for verdict in broken))
    for sentence in wrong + [f"session {v.history.plan.number}: {text}" for v in broken for text in v.broken][:40]:
        print(f"BROKEN {sentence}")
    n = len(wrong) + len(broken)
    print(f"seed {options.seed}: {n} promises broken" + (f"; histories in {violations}, log in {log}" if n else ""))
    return 1 if n else 0


def _reference(port: int, scans: Scans) -> tuple[Reference, list[History]]:
    """What each kind of session gives when nothing disturbs it."""
    reference, histories = Reference(), list[History]()
    kinds = [(name, Kind.GOOD, name) for name in PIPELINES]
    kinds += [("joint_ipalm", Kind.PREVIEW, "joint_ipalm")]
    for name, kind, pipeline in kinds:
        stream = scans.stream(kind, pipeline)
        history = perform(Plan(-1, kind, pipeline, len(stream.data), 0.0, 0), port, scans)
        histories.append(history)
        reference.images[name] = [image for image in history.images if image.kind == "image"]
    reference.images["many"] = []
    return reference, histories


def _play(plans: list[Plan], port: int, scans: Scans, watch: Watch) -> list[History]:
    def one(plan: Plan) -> History:
        if plan.fault:
            watch.hurt_later(plan.fault, plan.seed, plan.fault_after_s)
        return perform(plan, port, scans)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, plans))


def _print_outcomes(verdicts: list[Verdict]) -> None:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        table[str(verdict.history.plan.kind)][verdict.outcome] += 1
    print(f"\n{'what the peer did':24} {'n':>5}  outcomes")
    for kind in Kind:
        outcomes = table[str(kind)]
        shown = ", ".join(f"{outcome} {n}" for outcome, n in outcomes.most_common())
        print(f"{kind:24} {outcomes.total():5}  {shown}")
    whole = [v for v in verdicts if v.history.plan.kind in {Kind.GOOD, Kind.CHUNKED, Kind.NO_CLOSE, Kind.GARBAGE}]
    with_images = sum(not v.history.errors and len(v.history.images) > 0 for v in whole)
    print(f"\ngood sessions of quick pipelines: {len(whole)}, with all their images {with_images}")
    degraded = sum(v.outcome == "degraded images" for v in whole)
    print(f"of these with images of a fallback, marked as degraded: {degraded}")
    print(f"silent: {sum(v.outcome == 'silent' for v in verdicts)}")
    print(f"busy answers heard: {sum(v.history.busy + v.history.refused for v in verdicts)}")


def _print_times(verdicts: list[Verdict], elapsed: float, watch: Watch) -> None:
    faults = ", ".join(f"{name} {n}" for name, n in sorted(watch.done.items())) or "none"
    retried = sum(int(v.record["retried"]) for v in verdicts if v.record is not None)
    print(f"signals to workers: {faults}; groups that were run again: {retried}")
    good = sorted(v.history.seconds for v in verdicts if v.history.plan.kind is Kind.GOOD)
    if good:
        p99 = good[int(0.99 * (len(good) - 1))]
        print(f"time: {elapsed:.0f} s, {elapsed / max(1, len(verdicts)):.3f} s a session; good ones", end="")
        print(
            f" from connection to CLOSE: median {statistics.median(good):.2f} s, p99 {p99:.2f} s, most {good[-1]:.2f} s"
        )


def _print_resources(samples: list[Sample], n_sessions: int) -> list[str]:
    first, last = samples[0], samples[-1]
    warm = samples[len(samples) // 4 :]
    growth = slope(warm)
    print(f"\n{'front process at rest':24} {'start':>10} {'end':>10}")
    print(f"{'resident MiB':24} {first.resident / 2**20:10.1f} {last.resident / 2**20:10.1f}")
    for name in ("descriptors", "threads", "shared", "children", "held_bytes"):
        print(f"{name:24} {getattr(first, name):10} {getattr(last, name):10}")
    n = warm[-1].sessions - warm[0].sessions
    print(f"resident memory after warm-up: {growth:+.0f} bytes a session over the last {n} sessions")
    if n_sessions >= ENOUGH_FOR_SLOPE:
        return [f"resident memory grows by {growth:.0f} bytes a session"] if growth > MOST_SLOPE else []
    grown = last.resident - first.resident
    return [f"resident memory grew by {grown >> 20} MiB"] if grown > MOST_GROWTH else []


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
