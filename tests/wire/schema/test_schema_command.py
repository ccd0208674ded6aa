"""`sigd schema` on the command line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from sigd.daemon.cli import main
from sigd.daemon.commands.schema import schema
from sigd.wire.schema.cpp_header import cpp_header
from sigd.wire.schema.sbe import schema_xml


def test_prints_the_schema() -> None:
    result = CliRunner().invoke(schema, ["--features", "64", "--outputs", "3"])
    assert (result.exit_code, result.output) == (0, schema_xml(64, 3))


def test_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sigd.xml"
    result = CliRunner().invoke(schema, ["--features", "7", "--outputs", "1", "-o", str(path)])
    assert (result.exit_code, result.output) == (0, "")
    assert path.read_text("utf-8") == schema_xml(7, 1)


def test_prints_the_cpp_header() -> None:
    result = CliRunner().invoke(schema, ["--format", "cpp"])
    assert (result.exit_code, result.output) == (0, cpp_header())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "0", "--outputs", "3"], "0 is not in the range 1<=x<=16373"),
        (["--features", "16374", "--outputs", "3"], "16374 is not in the range 1<=x<=16373"),
        (["--features", "64", "--outputs", "16371"], "16371 is not in the range 1<=x<=16370"),
        (["--features", "many", "--outputs", "3"], "'many' is not a valid integer"),
        (["--features", "64"], "Missing option '--outputs'"),
        (["--outputs", "3"], "Missing option '--features'"),
        (["--format", "cpp", "--features", "64"], "leave --features and --outputs out"),
        (["--format", "c"], "'c' is not one of 'sbe', 'cpp'"),
    ],
)
def test_sizes_that_cannot_be(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(schema, arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_place_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / "sigd.xml"
    monkeypatch.setattr("sys.argv", ["sigd", "schema", "--features", "1", "--outputs", "1", "-o", str(path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    assert f"{path}: cannot be written (No such file or directory)" in capsys.readouterr().err


def test_a_full_disk_leaves_the_schema_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "sigd.xml"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("sys.argv", ["sigd", "schema", "--features", "1", "--outputs", "1", "-o", str(path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    assert "cannot be written (No space left on device): nothing was left behind" in capsys.readouterr().err
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    done = CliRunner().invoke(schema, ["--features", "1", "--outputs", "1", "-o", str(pipe)])
    assert (done.exit_code, pipe.is_fifo()) == (0, True)
    assert b"messageSchema" in os.read(reading, 1 << 16)
    os.close(reading)


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(schema, ["--help"])
    assert result.exit_code == 0
    assert "sigd schema --features 64 --outputs 3 -o sigd.xml" in result.output
