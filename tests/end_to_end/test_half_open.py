"""A peer whose machine or network is gone is found in seconds, and one that only reads slowly is left alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("half_open.py")
TRY = "ip link set lo up && iptables -A INPUT -p tcp --dport 1 -j DROP"


def in_namespace(*command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--net", *command], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def _namespace() -> None:
    for program in ("unshare", "ip", "iptables"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    tried = in_namespace("sh", "-c", TRY)
    if tried.returncode != 0:
        pytest.skip(f"no network namespace with a drop rule here (root is needed): {tried.stderr.strip()[:200]}")


@pytest.mark.usefixtures("_namespace")
@pytest.mark.parametrize(("case", "most_s"), [("idle", 12), ("sending", 10)])
def test_a_half_open_peer_is_found(case: str, most_s: float) -> None:
    done = in_namespace(sys.executable, str(SCRIPT), case)
    assert done.returncode == 0, done.stderr
    assert 2 < float(done.stdout) < most_s


@pytest.mark.usefixtures("_namespace")
def test_a_client_that_sends_all_before_it_reads_is_left_alone() -> None:
    done = in_namespace(sys.executable, str(SCRIPT), "slow")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "alive"
