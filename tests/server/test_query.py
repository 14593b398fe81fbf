"""Answers to queries: every key that Gadgetron has, ours, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import query
from server.execution.executor import Health

HEALTH = Health({"idle": 2}, 0)
KEYS_OF_GADGETRON = (
    "ismrmrd::version", "gadgetron::version", "gadgetron::build", "gadgetron::info", "gadgetron::info::memory",
    "gadgetron::info::python", "gadgetron::info::matlab", "gadgetron::info::cuda", "gadgetron::cuda::devices",
    "gadgetron::cuda::driver", "gadgetron::cuda::runtime", "gadgetron::cuda::memory", "gadgetron::cuda::capabilities",
)  # fmt: skip


def ask(question: str) -> str:
    return query.answer(question, HEALTH, is_ready=True)


@pytest.mark.parametrize("key", KEYS_OF_GADGETRON)
def test_every_key_of_gadgetron_is_answered(key: str):
    assert ask(key) != query.UNKNOWN
    assert ask(key + "\0") == ask(key)  # clients that count a NUL


@pytest.mark.parametrize("key", ["", "gadgetron", "gadgetron::info::gpu", "gadgetron::config", "../etc/passwd"])
def test_anything_else_is_unknown(key: str):
    assert ask(key) == "Unknown query"


def test_numbers_are_numbers():
    assert int(ask("gadgetron::info::memory")) > 1 << 28
    assert ask("gadgetron::info::cuda") in {"0", "1"}
    assert int(ask("gadgetron::cuda::devices")) >= 0


def test_a_machine_without_the_driver_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(query, "_DRIVER", tmp_path / "nothing")

    assert [ask(key) for key in KEYS_OF_GADGETRON[7:]] == ["0", "0", "N/A", "N/A", "", ""]


def test_gpus_are_counted_where_the_driver_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(query, "_DRIVER", tmp_path)
    for place in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / "gpus" / place).mkdir(parents=True)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 16\n")

    assert [ask(key) for key in KEYS_OF_GADGETRON[7:]] == ["1", "2", "570.86.15", "N/A", "N/A;N/A", "N/A;N/A"]
