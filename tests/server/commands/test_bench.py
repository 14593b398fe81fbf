"""`echotrain bench cine`: every ablation is run and told."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import server.commands.bench as bench
from server.errors import SettingsError


@pytest.fixture(autouse=True)
def few_and_small(monkeypatch):
    monkeypatch.setattr(bench, "STEPS", (10, 12))
    monkeypatch.setattr(bench, "SIZES", ("small",))
    monkeypatch.setattr(bench, "SEEDS", range(2))
    monkeypatch.setattr(bench, "PHANTOM_SIDE", 32)


def test_quality_against_steps_sizes_and_seeds(tmp_path, capsys):
    output = tmp_path / "ablations.json"
    bench.main("cine", None, 4.0, "variable_density", 0.02, 6, 4, output, "cpu", 1)
    runs = json.loads(output.read_text())["runs"]
    assert [(each["what"], each["value"]) for each in runs] == [
        ("baseline", "low rank plus sparse"), ("steps", "10"), ("steps", "12"), ("networks", "small"), ("seed", "0"),
        ("seed", "1"),
    ]  # fmt: skip
    baseline, *others = runs
    assert all(each["psnr_db"] > baseline["psnr_db"] for each in others)
    assert all(0 < each["covered"] <= 1 for each in runs)
    # a size and a seed that are the defaults are the same run
    assert runs[3]["psnr_db"] == runs[4]["psnr_db"] != runs[5]["psnr_db"]
    printed = capsys.readouterr().out
    assert "low rank" in printed
    assert str(output) in printed


def test_only_what_there_is(tmp_path):
    with pytest.raises(SettingsError, match="there is no bench 'brain'; there is: cine"):
        bench.main("brain", output=tmp_path / "x.json")


def test_it_has_a_help_page():
    import typer

    app = typer.Typer()
    app.command()(bench.main)
    found = CliRunner().invoke(app, ["--help"])
    assert found.exit_code == 0
    assert "five seeds" in found.output
