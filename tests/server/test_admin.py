# ruff: noqa: E501 - names of metrics are read best one beside the other
"""Metrics and health over HTTP, and the names that the catalogue promises."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from server.admin import application
from server.execution.executor import Health
from server.metrics import ERROR_KINDS, Metrics, pipeline_label

PATHS = ["/metrics", "/livez", "/readyz", "/startupz", "/sessions"]


def http(server: Any, *allowed: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application(server, allowed or ("localhost", "::1")))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:9090")


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_answers_reading_and_nothing_else(serving: Any, path: str) -> None:
    async with http(await serving()) as client:
        assert (await client.get(path)).status_code == 200
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await client.request(method, path)).status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.2:9090", "[::2]:9090"])
async def test_other_host_names_are_refused(serving: Any, host: str) -> None:
    async with http(await serving()) as client:
        assert (await client.get("/sessions", headers={"Host": host})).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:9090"])
async def test_our_host_names_are_answered_with_any_port(serving: Any, host: str) -> None:
    async with http(await serving()) as client:
        assert (await client.get("/livez", headers={"Host": host})).status_code == 200


async def test_readiness_says_why_not(serving: Any, executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await serving()
    broken = Health({"starting": 1}, 0, problems=("pipeline 'sense' does not run",))
    monkeypatch.setattr(type(executor), "health", lambda _: broken)
    async with http(server) as client:
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["reasons"] == ["no worker is warm", "pipeline 'sense' does not run"]
        assert (await client.get("/startupz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200


async def test_the_catalogue_is_served_from_the_first_scrape(serving: Any) -> None:
    server = await serving()
    await asyncio.sleep(0.6)
    async with http(server) as client:
        text = (await client.get("/metrics")).text
    for name in (
        "echotrain_build_info{", "echotrain_sessions_active 0", "echotrain_received_bytes_total 0", "echotrain_sent_bytes_total 0",
        'echotrain_workers{state="idle"} 1', 'echotrain_worker_restarts_total{reason="crash"} 0', "echotrain_queue_depth 0",
        'echotrain_sessions_total{outcome="rejected_busy",pipeline="other"} 0', "echotrain_ready 1", "echotrain_draining 0",
        'echotrain_outside_domain_total{pipeline="other",reason="energy_per_pixel"} 0',
        'echotrain_buffered_bytes{area="waiting"} 0', 'echotrain_backpressure_seconds_total{side="read_paused"} 0',
        "echotrain_event_loop_lag_seconds_count", "process_resident_memory_bytes",
        *(f'echotrain_protocol_errors_total{{kind="{kind}"}} 0' for kind in ERROR_KINDS),
    ):  # fmt: skip
        assert name in text, name
    assert "_created" not in text


def test_metrics_follow_the_naming_rules() -> None:
    for family in Metrics().registry.collect():
        assert family.name.startswith(("echotrain_", "process_"))
        assert family.documentation
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total")
    assert pipeline_label("sense") == "sense"
    assert pipeline_label("../../etc") == "other"
    assert pipeline_label(None) == "other"


async def test_live_sessions_are_listed_without_data(serving: Any) -> None:
    async with http(await serving()) as client:
        assert json.loads((await client.get("/sessions")).text) == {"sessions": []}
