"""The command line: every command helps with an example, says how it ends, and is imported only when asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from server.cli import COMMANDS, say


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"echotrain {name}" in done.stdout
    assert "xit status" in done.stdout


def test_the_help_page_lists_all_commands_without_importing_them() -> None:
    script = (
        "import sys; from server.cli import program\n"
        "try: program()(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith('server.commands.') or m in ('torch', 'h5py', 'matplotlib')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.rstrip().endswith("[]")


def test_wrong_settings_end_with_status_2_and_one_line() -> None:
    done = run("config", "--set", "limits.sesions=3")
    assert done.returncode == 2
    assert done.stderr.startswith("echotrain: settings: limits.sesions (flag): unknown setting.")
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_ends_serve_with_status_2() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--port", str(taken.getsockname()[1]), "--admin-port", "0")
    assert done.returncode == 2
    assert "cannot listen on 127.0.0.1" in done.stderr


def test_doctor_fails_where_a_scan_would_fail_and_says_what_to_do() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("doctor", "--quick", "--set", f"listen.port={port}", "--set", "admin.port=0")
    assert done.returncode == 1
    assert "failure port for scans" in done.stdout
    assert "choose another port" in done.stdout


def test_doctor_reconstructs_a_phantom() -> None:
    done = run("doctor", "--set", "listen.port=0", "--set", "admin.port=0", "--set", "limits.memory_bytes=268435456")
    assert "gave 2 images" in done.stdout
    assert done.returncode == 0


def test_a_folder_that_cannot_be_made_ends_the_demo_with_one_line() -> None:
    done = run("demo", "--output", "/dev/null/demo")
    assert done.returncode == 1
    assert done.stderr.startswith("echotrain: bad_file: the folder /dev/null/demo cannot be made")
    assert "Traceback" not in done.stderr


def test_an_error_is_one_sentence_with_one_full_stop(capsys: pytest.CaptureFixture[str]) -> None:
    say("server_error", "the server reported: ERROR busy: try again.", "Nothing came.")
    assert (
        capsys.readouterr().err
        == "echotrain: server_error: the server reported: ERROR busy: try again. Nothing came.\n"
    )


def test_the_server_s_numpy_works_in_one_thread() -> None:
    script = (
        "import os, sys\nfrom server.cli import run_command\nassert 'numpy' not in sys.modules\n"
        "try: run_command('serve', ['--help'])\nexcept SystemExit: pass\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.rstrip().endswith("1")
