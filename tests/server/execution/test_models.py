"""Models in workers: the directory of the settings reaches them, and a model that cannot be used is a coded error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_jobs import make_group, make_job
from model_pipeline import ENTRY  # noqa: F401 - makes the architecture known here too

from models.card import Card
from models.catalogue import use_directory, weights_path
from pipelines.errors import ModelUnavailableError
from server import config
from server.commands import recon
from server.execution.from_settings import make_executor
from server.execution.inline import InlineExecutor
from server.execution.process_pool import ProcessExecutor
from server.outcome import error_text, log_message, outcome_of
from tests.tiny_model import save_tiny

PIPELINE = "model_pipeline:load"
BOTH = pytest.mark.parametrize("kind", ["process", "inline"])


@pytest.fixture
def directory(tmp_path: Path):
    yield tmp_path / "models"
    use_directory(None)  # the inline executor sets it for this process


@pytest.fixture
def card(directory: Path) -> Card:
    return save_tiny(directory)


def executor_of(kind: str, directory: Path | str, warm: bool = False) -> ProcessExecutor | InlineExecutor:
    wanted = [("learned", {})] if warm else []
    if kind == "process":
        return ProcessExecutor(1, "cpu", 1, 16 << 20, wanted, pipeline=PIPELINE, models_directory=str(directory))
    return InlineExecutor("cpu", 16 << 20, wanted, pipeline=PIPELINE, models_directory=str(directory))


@BOTH
async def test_a_worker_finds_models_in_the_directory_of_the_settings(kind: str, directory: Path, card: Card) -> None:
    executor = executor_of(kind, directory)
    await executor.start()
    group = make_group(executor.slots)
    try:
        result = await executor.run(make_job(group))
    finally:
        group.release()
        await executor.stop()
    assert result.images[0].meta["ReconModelDigest"] == [card.sha256]
    assert result.images[0].meta["ReconModelVersion"] == ["1.0.0"]
    assert result.outside_domain == ("data_residual", "energy_per_pixel")


@BOTH
async def test_a_model_that_does_not_match_its_card_is_a_coded_error_and_no_worker_is_lost(
    kind: str, directory: Path, card: Card
) -> None:
    path = weights_path(directory, card.title)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    executor = executor_of(kind, directory)
    await executor.start()
    group = make_group(executor.slots)
    try:
        for _ in range(2):
            with pytest.raises(
                ModelUnavailableError, match=r"'learned': model tiny-line@1\.0\.0: .* SHA-256"
            ) as caught:
                await executor.run(make_job(group))
    finally:
        group.release()
        await executor.stop()
    assert not executor.health().restarts
    assert error_text(caught.value).startswith("ERROR model_unavailable: pipeline 'learned': model tiny-line@1.0.0")
    assert str(directory) not in error_text(caught.value)
    assert outcome_of(caught.value) == "pipeline_error"


@BOTH
async def test_a_model_that_is_missing_at_the_start_is_a_reason_not_to_be_ready(kind: str) -> None:
    executor = executor_of(kind, "", warm=True)
    await executor.start()
    try:
        async with asyncio.timeout(30):
            while not executor.health().is_usable:  # noqa: ASYNC110 - the executor has no event for this
                await asyncio.sleep(0.01)
        (problem,) = executor.health().problems
    finally:
        await executor.stop()
    assert problem.startswith("pipeline 'learned' does not run: ModelUnavailableError")
    assert "there is no model 'tiny-line'" in problem


def test_words_of_a_peer_about_a_model_are_told_to_it_and_never_logged() -> None:
    error = ModelUnavailableError("pipeline 'sense': there is no model 'ZZ^CANARY'; models here: a@1.0.0")
    assert "ZZ^CANARY" in error_text(error)
    assert log_message(error) == "pipeline 'sense': there is no model '...'; models here: a@1.0.0"


async def test_the_setting_reaches_the_executors_of_a_server_and_of_recon(tmp_path: Path) -> None:
    settings = config.load(environment={"ECHOTRAIN_MODELS__DIRECTORY": str(tmp_path)}).settings
    assert settings.models.directory == str(tmp_path)
    pool = make_executor(settings)
    assert pool._settings.models_directory == str(tmp_path)
    await pool.stop()


def test_recon_looks_for_models_where_the_settings_say(tmp_path: Path) -> None:
    settings = config.load(flags={"models.directory": str(tmp_path)}, environment={}).settings
    with asyncio.Runner() as loop, recon._executor(settings, loop) as executor:
        assert executor._models_directory == str(tmp_path)
    use_directory(None)
