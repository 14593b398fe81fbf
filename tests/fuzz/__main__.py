"""Fuzzing of all that reads what a peer sends: wire, scan headers, configurations, readouts on their way to groups.

    python -m tests.fuzz [--seconds N] [--seed S] [--output FOLDER]
    python -m tests.fuzz --replay FILE

Two engines: atheris (extra `fuzz`; left out where it is not installed), which follows the branches, and seeded
mutations of valid inputs, which keep messages whole. Every input is accepted, or refused by an error that is meant for
peers; in other pieces the same bytes give the same events; memory stays within the limits; nothing takes a second.
Prints executions, crashes, hangs and how memory drifted; status 1 when something broke, with the inputs in the folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

SHARES: Final = {"wire": 0.4, "scan_header": 0.15, "selection": 0.15, "intake": 0.3}
"""Of the time."""
MOST_DRIFT: Final = 64 << 20
"""Bytes that resident memory may grow by after the start, the corpus of the engine included."""


def main() -> int:
    """Run every target with every engine, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("fuzz-output"))
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.replay)
    options.output.mkdir(parents=True, exist_ok=True)
    engines = ["mutation"]
    if importlib.util.find_spec("atheris") is not None:
        engines.append("atheris")
    else:
        print("atheris is not installed (extra `fuzz`): mutations only")
    print(f"{'target':12} {'engine':9} {'executions':>11} {'a second':>9} {'crashes':>8}", end="")
    print(f" {'hangs':>6} {'slowest':>9} {'drift':>10}")
    broken = 0
    for target, share in SHARES.items():
        for engine in engines:
            seconds = options.seconds * share / len(engines)
            broken += _run(target, engine, seconds, options.seed, options.output)
    print(f"seed {options.seed}: " + (f"{broken} broken; inputs in {options.output}" if broken else "nothing broke"))
    return 1 if broken else 0


def _run(target: str, engine: str, seconds: float, seed: int, folder: Path) -> int:
    path = folder / f"{target}-{engine}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.one", target, engine, str(seconds), str(seed), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * seconds + 120, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith(("crash:", "hang:"))]
    if not path.exists():
        print(f"{target:12} {engine:9} did not run: {done.stderr.strip()[-1500:]}")
        return 1
    figures: dict[str, Any] = json.loads(path.read_text())
    drift = figures["resident_end"] - figures["resident_start"] if figures["resident_start"] else 0
    n, ran = figures["executions"], max(figures["seconds"], 1e-3)
    print(
        f"{target:12} {engine:9} {n:11,} {n / ran:9,.0f} {figures['crashes']:8} {figures['hangs']:6} "
        f"{figures['slowest_s']:7.3f} s {drift / 2**20:+6.1f} MiB",
        flush=True,
    )
    if done.returncode:
        said.append(f"the engine ended with status {done.returncode}: {done.stderr.strip()[-1500:]}")
    if drift > MOST_DRIFT:
        said.append(f"resident memory grew by {drift} bytes")
    for line in said:
        print(f"  {line}")
    return len(said) or figures["crashes"] + figures["hangs"]


def _replay(path: Path) -> int:
    """One kept input again, with its traceback."""
    from tests.fuzz.targets import TARGETS, within_memory

    within_memory(TARGETS[path.name.split("-")[1]], path.read_bytes())
    print("accepted, or refused in order")
    return 0


if __name__ == "__main__":
    sys.exit(main())
