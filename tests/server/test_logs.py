"""Records: one line of JSON each, known fields only, nothing of a patient, nothing that a terminal obeys."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipelines.errors import PipelineError
from pipelines.simulate import SimulatedScan
from server import logs
from server.client import Client
from server.config import Pipelines
from server.outcome import log_message
from server.selection import select

CANARY = "ZZ^CANARY"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    logs.configure("debug", stream)
    yield stream
    structlog.reset_defaults()
    logging.getLogger().handlers, logging.getLogger().level = handlers, level


def test_a_record_is_one_line_of_json_with_its_session(written: io.StringIO) -> None:
    logs.logger().bind(session="abc").info("session_end", images=3, outcome="ok")
    (line,) = written.getvalue().splitlines()
    record = json.loads(line)
    assert record["session"] == "abc"
    assert record["images"] == 3
    assert record["timestamp"].endswith("Z")


def test_fields_that_are_not_known_are_dropped_and_counted(written: io.StringIO) -> None:
    logs.logger().info("x", patient_name=CANARY, header=CANARY, images=1)
    record = json.loads(written.getvalue())
    assert record["dropped_fields"] == 2
    assert CANARY not in written.getvalue()


def test_what_the_server_itself_records_is_known(written: io.StringIO) -> None:
    calls = [
        node
        for path in Path(logs.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _writes_record(node.func)
    ]
    names = {keyword.arg for call in calls for keyword in call.keywords} - {"exc_info"}
    assert {"fallbacks", "made_by", "outcome"} <= names
    assert names <= logs.FIELDS


def _writes_record(method: ast.Attribute) -> bool:
    writer = ast.unparse(method.value).rpartition(".")[2]
    return method.attr in {"debug", "info", "warning", "error"} and writer in {"log", "_log", "logger()"}


def test_control_characters_and_long_texts_are_tamed(written: io.StringIO) -> None:
    logs.logger().error("x", message="a\r\n\x1b[31mb" + "c" * 10_000)
    assert len(written.getvalue().splitlines()) == 1
    message = json.loads(written.getvalue())["message"]
    assert message.isprintable()
    assert len(message) <= logs.MAX_TEXT


def test_exceptions_of_libraries_are_logged_by_place_and_not_by_message(written: io.StringIO) -> None:
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("some.library").exception("it failed")
    record = json.loads(written.getvalue())
    assert record["logger"] == "some.library"
    assert "test_logs.py" in record["trace"]
    assert CANARY not in written.getvalue()


async def test_nothing_of_the_header_reaches_logs_metrics_or_texts(
    written: io.StringIO, serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    subject = f"<subjectInformation><patientName>{CANARY}</patientName></subjectInformation>".encode()
    header = small_scan.header.replace(b"<experimentalConditions>", subject + b"<experimentalConditions>", 1)
    header = header.replace(b"simulated_t1", CANARY.encode())
    assert header.count(CANARY.encode()) == 2
    server = await serving()
    replies = []
    for bad in (header, header.replace(b"<trajectory>cartesian", b"<trajectory>helix"), header[:-40]):
        async with Client("127.0.0.1", server.port) as client:
            replies.append(await client.send_scan("zero_filled", bad, small_scan.batches))
    while server.sessions:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert len(replies[0].images) == 24
    assert replies[1].errors
    assert replies[2].errors
    assert CANARY not in written.getvalue()
    assert CANARY not in server.metrics.text().decode()
    assert not any(CANARY in text for reply in replies for text in reply.texts)
    assert written.getvalue().count("session_end") == 3
    assert written.getvalue().count("session_error") == 2


async def test_results_outside_their_models_domain_are_counted_and_stand_in_the_record_of_the_session(
    written: io.StringIO, serving: Any, executor: Any, small_scan: SimulatedScan
) -> None:
    executor.outside_domain = {0: ("data_residual", "energy_per_pixel"), 5: ("data_residual",), 7: (CANARY, "\n")}
    server = await serving()
    async with Client("127.0.0.1", server.port) as client:
        reply = await client.send_scan("zero_filled", small_scan.header, small_scan.batches)
    while server.sessions:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert len(reply.images) == 24
    counted = {"data_residual": 2, "energy_per_pixel": 1, "other": 1}
    for reason, number in counted.items():
        labels = {"pipeline": "zero_filled", "reason": reason}
        assert server.metrics.registry.get_sample_value("echotrain_outside_domain_total", labels) == number
    (record,) = [json.loads(line) for line in written.getvalue().splitlines() if "session_end" in line]
    assert record["outside_domain"] == counted
    assert CANARY not in written.getvalue() + server.metrics.text().decode()


@pytest.mark.parametrize(
    "configuration",
    [
        CANARY,
        f"a' {CANARY} '",
        f'a" {CANARY}',
        f'{{"pipeline": "sense", "parameters": {{"{CANARY}": "1"}}}}',
        f'{{"pipeline": "sense", "parameters": {{"{CANARY}": [1]}}}}',
        f'{{"pipeline": "sense", "parameters": {{"iterations": "{CANARY}"}}}}',
        f'{{"pipeline": "sense", "parameters": {{"iterations": "a\'{CANARY}\'b"}}}}',
        f"sense': parameter 'iterations': {CANARY} '",
        f"<a><classname>{CANARY}</classname></a>",
    ],
)
def test_words_of_a_configuration_are_told_to_the_peer_and_never_logged(configuration: str) -> None:
    with pytest.raises(PipelineError) as caught:
        select(configuration, Pipelines())
    assert CANARY not in log_message(caught.value)
    assert len(log_message(caught.value).split()) > 5


def test_known_names_are_logged() -> None:
    with pytest.raises(PipelineError) as caught:
        select('{"pipeline": "sense", "parameters": {"iterations": "0"}}', Pipelines())
    message = log_message(caught.value)
    assert message.startswith("pipeline 'sense': parameter 'iterations': expected a whole number")
