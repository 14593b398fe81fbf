"""Fuzzes one target with one engine for so many seconds, in a process of its own; figures go to a file as JSON.

python -m tests.fuzz.one TARGET ENGINE SECONDS SEED FOLDER
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

HANG_S: Final = 1.0
"""Of processor time, so that a busy machine is not taken for a slow parser."""
MEMORY_EVERY: Final = 200
INSTRUMENTED: Final = [
    "server.wire",
    "server.selection",
    "server.intake",
    "pipelines.scan_header",
    "pipelines.assembly",
]
WARM: Final = 2000
"""Executions before resident memory is taken as the start."""


@dataclass
class Figures:
    """What one run did.

    Attributes:
        slowest_s: processor time of the slowest input.
        resident_start: bytes after the first `WARM` inputs.
    """

    target: str
    engine: str
    executions: int = 0
    crashes: int = 0
    hangs: int = 0
    slowest_s: float = 0.0
    resident_start: int = 0
    resident_end: int = 0
    seconds: float = 0.0


class Runner:
    """Runs inputs, counts, keeps those that break something."""

    def __init__(self, target: str, engine: str, folder: Path) -> None:
        from tests.fuzz import targets

        self.figures = Figures(target, engine)
        self._check, self._within_memory = targets.TARGETS[target], targets.within_memory
        self._folder = folder
        self._seen: set[str] = set()
        self._began = self._written = time.monotonic()

    def run(self, data: bytes) -> None:
        """One input."""
        figures = self.figures
        figures.executions += 1
        began = time.process_time()
        try:
            self._check(data)
            seconds = time.process_time() - began
            if figures.executions % MEMORY_EVERY == 0:
                self._within_memory(self._check, data)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
            figures.crashes += 1
            seconds = 0.0
            self._keep("crash", data, error)
        figures.slowest_s = max(figures.slowest_s, seconds)
        if seconds > HANG_S:
            figures.hangs += 1
            self._keep("hang", data, None)
        if figures.executions == WARM:
            figures.resident_start = resident()
        now = time.monotonic()
        if now - self._written > 0.5:
            self._written = now
            self.write()

    def write(self) -> None:
        """Leave the figures so far: engines end the process without a word."""
        self.figures.resident_end = resident()
        self.figures.seconds = time.monotonic() - self._began
        path = self._folder / f"{self.figures.target}-{self.figures.engine}.json"
        path.write_text(json.dumps(asdict(self.figures)))

    def _keep(self, kind: str, data: bytes, error: Exception | None) -> None:
        """Write an input down, once for each place that it breaks."""
        frames = traceback.extract_tb(error.__traceback__)[-2:] if error is not None else []
        place = f"{type(error).__name__} at " + ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
        if error is None or place not in self._seen:
            self._seen.add(place)
            name = f"{kind}-{self.figures.target}-{hashlib.sha256(data).hexdigest()[:12]}"
            (self._folder / name).write_bytes(data)
            print(f"{kind}: {place}: {str(error)[:300]} ({self._folder / name})", flush=True)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def mutation(runner: Runner, seconds: float, seed: int) -> None:
    """Our own engine."""
    from tests.fuzz.mutate import Mutator

    mutator = Mutator(runner.figures.target, random.Random(seed))
    due = time.monotonic() + seconds
    while time.monotonic() < due:
        runner.run(mutator.next())
    runner.write()


def guided(runner: Runner, seconds: float, seed: int, folder: Path, atheris: Any) -> None:
    """atheris: libFuzzer, guided by the branches of our parsers."""
    from tests.fuzz.corpus import NUMBERS, WORDS, messages, seeds

    corpus = folder / f"corpus-{runner.figures.target}"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds(runner.figures.target):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    words = (*NUMBERS, *messages()) if runner.figures.target in {"wire", "intake"} else WORDS
    dictionary = folder / f"words-{runner.figures.target}.txt"
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in words if len(word) <= 64]
    dictionary.write_text("\n".join(lines) + "\n")
    arguments = [
        sys.argv[0],
        f"-max_total_time={max(1, round(seconds))}",
        f"-seed={seed}",
        "-max_len=16384",
        "-timeout=30",
        "-rss_limit_mb=4096",
        "-verbosity=0",
        "-print_final_stats=0",
        f"-dict={dictionary}",
        f"-artifact_prefix={folder}/",
        str(corpus),
    ]
    atheris.Setup(arguments, runner.run)
    atheris.Fuzz()


def main() -> None:
    """Run."""
    target, engine, seconds, seed, folder = sys.argv[1:6]
    if engine == "mutation":
        mutation(Runner(target, engine, Path(folder)), float(seconds), int(seed))
        return
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        runner = Runner(target, engine, Path(folder))
    guided(runner, float(seconds), int(seed), Path(folder), atheris)


if __name__ == "__main__":
    main()
