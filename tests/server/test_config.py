"""Settings: precedence, unknown keys, and the file that `echotrain config --toml` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.commands.config import as_toml_file
from server.commands.serve import parse_values
from server.config import Settings, load, variable
from server.errors import SettingsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "echotrain.toml"
    path.write_text(
        '[limits]\nsessions = 3\n[listen]\nport = 1\nhost = "10.0.0.1"\n[pipelines.aliases]\nours = "sense"\n'
    )
    return path


def test_flags_win_over_the_environment_and_that_over_the_file(file: Path) -> None:
    environment = {"ECHOTRAIN_LISTEN__PORT": "2", "ECHOTRAIN_LIMITS__SESSIONS": "4"}
    loaded = load(file, {"limits.sessions": 5}, environment)
    assert loaded.settings.listen.host == "10.0.0.1"
    assert loaded.settings.listen.port == 2
    assert loaded.settings.limits.sessions == 5
    origins = {leaf.path: leaf.origin for leaf in loaded.leaves}
    assert origins["listen.host"] == "file echotrain.toml"
    assert origins["listen.port"] == "environment ECHOTRAIN_LISTEN__PORT"
    assert origins["limits.sessions"] == "flag"
    assert origins["admin.port"] == "default"


def test_the_file_may_be_named_in_the_environment(file: Path) -> None:
    assert load(environment={"ECHOTRAIN_CONFIG": str(file)}).settings.limits.sessions == 3


def test_own_aliases_are_added_to_the_built_in_ones(file: Path) -> None:
    aliases = load(file, environment={}).settings.pipelines.aliases
    assert aliases["ours"] == "sense"
    assert aliases["openrecon"] == "default"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ECHOTRAIN_LIMITS__SESIONS": "1"}, "limits.sesions"),
        ({"ECHOTRAIN_SESSIONS": "1"}, "ECHOTRAIN_SESSIONS"),
        ({"ECHOTRAIN_LIMITS__SESSIONS": "many"}, "limits.sessions (environment ECHOTRAIN_LIMITS__SESSIONS)"),
        ({"ECHOTRAIN_TIMEOUTS__IDLE_S": "-1"}, "timeouts.idle_s"),
        ({"ECHOTRAIN_PIPELINES__DEFAULT": "no_such"}, "unknown pipeline 'no_such'"),
        ({"ECHOTRAIN_PIPELINES__ALIASES": '{"a": "os"}'}, "unknown pipeline 'os'"),
        ({"ECHOTRAIN_PIPELINES__PARAMETERS": '{"sense": {"iterations": 0}}'}, "iterations"),
        ({"ECHOTRAIN_WORKERS__DEVICE": "tpu"}, "workers.device"),
        ({"ECHOTRAIN_CONFIG": "/no/such/file.toml"}, "does not exist"),
    ],
)
def test_what_is_wrong_is_named_with_where_it_came_from(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environment=environment)
    assert words in str(caught.value)


def test_a_file_with_an_unknown_key_or_broken_toml_is_refused(tmp_path: Path) -> None:
    for text, words in (("[limits]\nfoo = 1\n", "limits.foo (file a.toml)"), ("[limits\n", "cannot be read")):
        path = tmp_path / "a.toml"
        path.write_text(text)
        with pytest.raises(SettingsError) as caught:
            load(path, environment={})
        assert words in str(caught.value)


def test_variables_that_kubernetes_adds_for_a_service_of_our_name_are_no_settings() -> None:
    environment = {
        "ECHOTRAIN_PORT": "tcp://10.0.0.7:9002",
        "ECHOTRAIN_PORT_9002_TCP_ADDR": "10.0.0.7",
        "ECHOTRAIN_SERVICE_HOST": "10.0.0.7",
        "ECHOTRAIN_SERVICE_PORT_MRD": "9002",
    }
    assert load(environment=environment).settings == Settings()


def test_every_setting_is_described_and_has_its_unit_in_its_name_or_beside_it() -> None:
    for leaf in load(environment={}).leaves:
        assert leaf.description, leaf.path
        assert leaf.variable == variable(leaf.path)
        if leaf.path.endswith("_s"):
            assert leaf.unit == "s"
        if leaf.path.endswith("_bytes"):
            assert leaf.unit == "bytes"


def test_the_printed_file_reads_back_to_the_same_settings(tmp_path: Path) -> None:
    loaded = load(flags={"pipelines.parameters": {"sense": {"iterations": 7}}, "listen.host": ""}, environment={})
    path = tmp_path / "printed.toml"
    path.write_text(as_toml_file(loaded.leaves))
    assert load(path, environment={}).settings == loaded.settings


def test_flags_take_numbers_lists_and_tables() -> None:
    values = parse_values(["limits.sessions=2", 'admin.allowed_hosts=["a", "b"]', "listen.host="])
    settings = load(flags=values, environment={}).settings
    assert settings.limits.sessions == 2
    assert settings.admin.allowed_hosts == ("a", "b")
    assert settings.listen.host == ""
    with pytest.raises(SettingsError, match="NAME=VALUE"):
        parse_values(["limits.sessions"])


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.limits.sessions = 2  # type: ignore[misc]
