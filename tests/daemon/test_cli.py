"""The command line: every command explains itself with nothing but the base installation, and errors end as
told."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sigd import __version__
from sigd.bench.errors import BadRequest, PeerFailed
from sigd.daemon.cli import COMMANDS, cli, main
from sigd.daemon.errors import AlreadyServed, DaemonError, MissingDependency, UsageError
from sigd.daemon.lazy_group import LazyGroup
from sigd.models.errors import BackendFailed, BackendUnavailable, ModelRefused
from sigd.wire.errors import ConnectFailed, HelloUnanswered, Rejected, SessionClosed

OPTIONAL = ("torch", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "pyarrow", "pynvml", "matplotlib")


def test_help_lists_every_command_and_loads_none_of_them() -> None:
    program = (
        "import sys\n"
        "from sigd.daemon.cli import main\n"
        "sys.argv = ['sigd', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'asyncio', 'uvloop', 'rich'} & set(sys.modules)\n"
        "print('loaded:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    for name, (_, summary) in COMMANDS.items():
        assert name in done.stdout
        assert summary in done.stdout
    assert "Exit codes: 0 done, 1 the check failed" in done.stdout
    assert done.stdout.endswith("loaded: []\n")


def command_of(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_shows_an_example_and_its_flags(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # click keeps a command's help option from its first use, which in another test was without the group's -h
    monkeypatch.setattr(command_of(name), "_help_option", None)
    done = CliRunner().invoke(cli, [name, "--help"], prog_name="sigd")
    assert done.exit_code == 0, done.output
    assert "Example" in done.output
    assert f"  sigd {name} " in done.output, "an example to copy"
    assert CliRunner().invoke(cli, [name, "-h"]).output.splitlines()[1:] == done.output.splitlines()[1:]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = command_of(name)
    assert command.name == name
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_every_commands_help_works_with_the_base_installation() -> None:
    """In one process in which none of the optional packages can be imported."""
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ImportError(f"{{name}} is not part of the base installation")
sys.meta_path.insert(0, Blocked())
from click.testing import CliRunner
from sigd.daemon.cli import COMMANDS, cli
for name in COMMANDS:
    done = CliRunner().invoke(cli, [name, "--help"])
    assert done.exit_code == 0, (name, done.output, done.exception)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"sigd, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["serv"], ["--nonsense"], ["serve", "surplus"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("why"), 2),
        (MissingDependency("why"), 3),
        (AlreadyServed("why"), 3),
        (DaemonError("why"), 1),
        (ModelRefused("why"), 2),
        (BackendUnavailable("why"), 3),
        (BackendFailed("why"), 1),
        (ConnectFailed("why"), 3),
        (HelloUnanswered("why"), 3),
        (SessionClosed("why"), 1),
        (BadRequest("why"), 2),
        (PeerFailed("why"), 1),
        (Rejected(5, "why"), 1),
        (OSError(errno.ENOSPC, "No space left on device: why", "/full/a.json"), 3),
        (OSError(errno.EROFS, "why"), 3),
        (MemoryError("why"), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_ends_with_its_reason_and_its_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(LazyGroup, "get_command", lambda *_: click.Command("x", callback=fail))
    monkeypatch.setattr(sys, "argv", ["sigd", "x"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    said = capsys.readouterr()
    assert said.err.startswith("sigd: ")
    assert "why" in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_bug_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**_: Any) -> None:
        raise LookupError("why")

    monkeypatch.setattr(LazyGroup, "get_command", lambda *_: click.Command("x", callback=fail))
    monkeypatch.setattr(sys, "argv", ["sigd", "x"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 70
    said = capsys.readouterr().err
    assert "LookupError: why" in said
    assert said.splitlines()[-1].startswith(f"sigd: this is a bug of sigd {__version__}, not of your input")


@pytest.mark.parametrize("arguments", [["--help"], ["schema", "--format", "cpp"], ["doctor", "--json"]])
def test_full_standard_output_ends_with_3_and_a_sentence(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sigd.daemon", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3, done.stderr
    assert done.stderr == "sigd: No space left on device: the disk is full: make room, or write elsewhere\n"


def test_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sigd.daemon", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


def numbers() -> list[click.Parameter]:
    """Every flag of every command that takes a number."""
    groups = [command_of(name) for name in COMMANDS]
    commands = [
        command
        for group in groups
        for command in (group, *(group.commands.values() if isinstance(group, click.Group) else ()))
    ]
    kinds = (click.types.FloatParamType, click.types.IntParamType)
    return [each for command in commands for each in command.params if isinstance(each.type, kinds)]


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e300", "-1e300", f"{10**30}", f"{-(10**30)}"])
def test_every_number_of_a_flag_has_bounds(value: str) -> None:
    """click's own ranges take inf, nan and 10**30, so no command may use them."""
    checked = numbers()
    assert len(checked) > 40
    for parameter in checked:
        with pytest.raises(click.BadParameter):
            click.ParamType.__call__(parameter.type, value, parameter)


def test_number_that_has_to_be_above_0_is_not_next_to_nothing() -> None:
    above_0 = [each for each in numbers() if getattr(each.type, "min_open", False)]
    assert len(above_0) > 5
    for parameter in above_0:
        with pytest.raises(click.BadParameter, match="too small"):
            click.ParamType.__call__(parameter.type, "1e-300", parameter)


def test_python_dash_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sigd.daemon", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in done.stdout


@pytest.mark.parametrize(
    ("typed", "meant"), [("staus", "status"), ("relaod", "reload"), ("bild-engine", "build-engine")]
)
def test_a_mistyped_command_is_told_the_nearest(typed: str, meant: str) -> None:
    ran = CliRunner().invoke(cli, [typed])
    assert ran.exit_code == 2
    assert f"Did you mean {meant!r}?" in ran.output
    assert "Did you mean" not in CliRunner().invoke(cli, ["xyzzy"]).output
