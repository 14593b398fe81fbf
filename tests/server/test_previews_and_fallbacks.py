# ruff: noqa: ASYNC110 - tests watch from outside what has no event
"""Sessions whose images come twice, quickly first, or from another pipeline than the one that was asked for."""

from __future__ import annotations

import asyncio
from typing import Any

from pipelines.errors import ReconstructionError
from pipelines.simulate import SimulatedScan
from server.client import Client
from server.errors import ExecutionError
from tests.server.test_session import jobs, quiet, send, value

PREVIEWED = '{"pipeline": "joint_ipalm", "parameters": {"preview": "true", "noise_level": 2}}'


async def test_previews_go_out_while_the_images_are_made(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    server = await serving()
    executor.held = "joint_ipalm"
    executor.gate.clear()
    async with Client("127.0.0.1", server.port) as client:
        sending = asyncio.create_task(client.send_scan(PREVIEWED, small_scan.header, small_scan.batches))
        await jobs(executor, 24)
        sent = server.metrics.sent_images
        async with asyncio.timeout(10):
            while sent.labels("joint_ipalm", "preview")._value.get() < 24:
                await asyncio.sleep(0.01)
        assert value(server.metrics, "echotrain_sent_images_total", pipeline="joint_ipalm", kind="magnitude") == 0
        executor.gate.set()
        reply = await sending
    reply.check()
    series = [int(image.header["image_series_index"]) for image in reply.images]
    assert series == [30001, 30002] * 12 + [1, 2] * 12
    assert all("ReconPreview" in image.meta for image in reply.images[:24])
    assert not any("ReconPreview" in image.meta for image in reply.images[24:])
    quick = [job for job in executor.jobs if job.is_urgent]
    assert {(job.pipeline, job.parameters["noise_level"]) for job in quick} == {("sense", 2.0)}
    assert (
        value(server.metrics, "echotrain_stage_duration_seconds_count", pipeline="joint_ipalm", stage="preview") == 12
    )
    assert value(server.metrics, "echotrain_stage_duration_seconds_count", pipeline="joint_ipalm", stage="recon") == 12


async def test_images_come_though_no_preview_does(serving: Any, executor: Any, small_scan: SimulatedScan) -> None:
    executor.failing = {"sense": ReconstructionError("no calibration lines")}
    reply = await send(await serving(), small_scan, PREVIEWED)
    reply.check()
    assert [int(image.header["image_series_index"]) for image in reply.images] == [1, 2] * 12
    assert [text.split(" ", 1)[1] for text in reply.texts if "preview" in text] == [
        "no preview of an image: no calibration lines"
    ]


async def test_a_pipeline_that_fails_costs_no_image_and_everybody_hears_of_it(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.failing = {"joint_ipalm": ExecutionError("it failed inside")}
    server = await serving()
    reply = await send(server, small_scan, "joint_ipalm")
    reply.check()
    assert [int(image.header["image_series_index"]) for image in reply.images] == [40001, 40002] * 12
    assert {image.meta["ReconInsteadOf"][0] for image in reply.images} == {"joint_ipalm"}
    (text,) = reply.texts
    assert "joint_ipalm failed (execution: it failed inside); sense made the image instead" in text
    assert value(server.metrics, "echotrain_fallback_total", pipeline="joint_ipalm", reason="execution") == 12
    assert value(server.metrics, "echotrain_sent_images_total", pipeline="joint_ipalm", kind="fallback") == 24
    await quiet(server)
    assert value(server.metrics, "echotrain_sessions_total", pipeline="joint_ipalm", outcome="degraded") == 1


async def test_without_fallbacks_a_pipeline_that_fails_ends_the_scan(
    serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.failing = {"joint_ipalm": ExecutionError("it failed inside")}
    reply = await send(await serving(pipelines__fallbacks=[]), small_scan, "joint_ipalm")
    assert reply.errors[0].startswith("ERROR execution: it failed inside.")
