"""Decisions of a worker that need no process."""

from __future__ import annotations

import pytest
import torch
from fake_pipeline import FakePipeline

from server.execution.failure import decode_failure
from server.execution.warm_up import tiny_group
from server.execution.worker import Runner, device_name, failure_of, is_device_lost, is_out_of_memory


@pytest.mark.parametrize(
    ("device", "index", "n_devices", "expected"),
    [
        ("auto", 0, 0, "cpu"),
        ("auto", 3, 2, "cuda:1"),
        ("cuda", 4, 4, "cuda:0"),
        ("cuda:1", 5, 2, "cuda:1"),
        ("cpu", 1, 0, "cpu"),
    ],
)
def test_workers_take_the_gpus_in_turn(device: str, index: int, n_devices: int, expected: str) -> None:
    assert device_name(device, index, n_devices) == expected


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_running_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_lost(error)
    assert "more memory than there is" in str(decode_failure(failure_of(error).fields))


def test_the_allocator_of_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_lost_gpu_is_recognised() -> None:
    assert is_device_lost(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    assert is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_device_lost(RuntimeError("shapes do not match"))


def test_only_the_pipelines_used_last_stay_loaded() -> None:
    runner = Runner("cpu", "fake_pipeline:FakePipeline")
    for i in range(10):
        runner.warm("fake", {"sleep_s": i / 1e6})
    assert len(runner._loaded) == 8
    kept = next(iter(runner._loaded.values()))
    assert isinstance(kept, FakePipeline)
    assert kept.parameters == {"sleep_s": 2 / 1e6}


def test_the_warm_up_scan_is_what_it_says() -> None:
    group = tiny_group()
    assert group.kspace.shape == (1, 4, 1, 64, 128)
    assert group.calibration_lines.sum() == 23
    assert not group.kspace[0, :, 0, group.counts[0, 0] == 0].any()
    assert abs(group.kspace[0, :, 0]).sum((0, 2)).argmax() == 32
