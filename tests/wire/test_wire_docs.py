"""docs/wire.md: its tables are the code's, its numbers too, and the clients that it shows work."""

from __future__ import annotations

import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import pytest

from sigd.wire import fields
from sigd.wire.layout import request_frame_bytes, response_frame_bytes
from sigd.wire.messages import Goodbye, Hello, Reject, Welcome
from sigd.wire.schema.cpp_header import include_dir
from sigd.wire.schema.tables import tables, with_tables
from sigd.wire.status import GoodbyeCode, RejectCode, Status

PAGE = Path(__file__).resolve().parents[2] / "docs" / "wire.md"
TEXT = PAGE.read_text("utf-8")

StartDaemon = Callable[[Callable[[socket.socket], None]], Path]


def code_block(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return str(code)


def test_tables_are_current() -> None:
    assert with_tables(TEXT) == TEXT, "write them anew: python -m sigd.wire.schema.tables docs/wire.md"


def test_the_command_that_writes_them_anew(tmp_path: Path) -> None:
    page = tmp_path / "wire.md"
    page.write_text(TEXT.replace("| 8 | u32 | features |", "| 9 | u32 | features |"), "utf-8")
    done = run([sys.executable, "-P", "-m", "sigd.wire.schema.tables", str(page)])
    assert (done.returncode, done.stderr) == (0, "")
    assert page.read_text("utf-8") == TEXT


def test_every_field_of_every_message_has_a_row() -> None:
    for message in fields.MESSAGES:
        rows = tables()[message.name].splitlines()[2:]
        assert len(rows) == len(message.fields)
        for row, field in zip(rows, message.fields, strict=True):
            assert row.startswith(f"| {field.offset} | {field.kind}")
            assert f" | {field.name} | " in row


def test_a_page_that_lacks_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one for each"):
        with_tables(TEXT.replace("<!-- table: Hello -->", ""))
    with pytest.raises(ValueError, match="'Hallo'"):
        with_tables(TEXT.replace("<!-- table: Hello -->", "<!-- table: Hallo -->"))


@pytest.mark.parametrize(
    ("heading", "enumeration"), [("code | name | what", RejectCode), ("status | name", Status)]
)
def test_named_numbers(heading: str, enumeration: type[IntEnum]) -> None:
    (table,) = re.findall(rf"\| {re.escape(heading)}.*?\n\|---.*?\n(.*?)\n\n", TEXT, re.DOTALL)
    named = [
        (int(number), name) for number, name in re.findall(r"^\| (\d+) \| (\w+) \|", table, re.MULTILINE)
    ]
    assert named == [(member.value, member.name) for member in enumeration]


def test_goodbye_codes() -> None:
    for member in GoodbyeCode:
        assert f"| {member.value} | {member.name} |" in TEXT


def test_sizes_in_the_text() -> None:
    for message in fields.MESSAGES:
        heading = f"### {message.template_id} {message.name}\n\n"
        assert heading in TEXT
        if message.frame_bytes is not None:
            assert f"{heading}{message.frame_bytes} bytes" in TEXT
    assert f"{request_frame_bytes(64)} for n = 64" in TEXT
    assert (response_frame_bytes(1), response_frame_bytes(2), response_frame_bytes(3)) == (64, 64, 72)
    assert f"n is 1 to {fields.FEATURES_MAX:,}" in TEXT


def one_answer(connection: socket.socket) -> None:
    """A model of 4 features and 2 outputs, for one request."""
    hello = Hello.decode(connection.recv(80, socket.MSG_WAITALL)[8:])
    assert (hello.features, hello.outputs) in ((0, 0), (4, 2))
    connection.sendall(Welcome(4, 2, 256, 1, 1, 1, bytes(32), "model").encode())
    request = connection.recv(56, socket.MSG_WAITALL)
    assert struct.unpack_from("<HHHHQ", request) == (48, 10, 91, 1, 7)
    assert struct.unpack_from("<4f", request, 40) == (0.5, 0.5, 0.5, 0.5)
    block = struct.pack("<QQQQIIIHH2f", 7, 0, 1, 2, 0, 1, 3, 0, 1, 0.25, 0.75)
    connection.sendall(struct.pack("<HHHH", len(block), 11, 91, 1) + block)
    assert connection.recv(100) in (Goodbye().encode(), b"")


def refusal(connection: socket.socket) -> None:
    connection.recv(80, socket.MSG_WAITALL)
    connection.sendall(Reject(RejectCode.UNKNOWN_MODEL, "no such model").encode())


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_python_client(daemon: StartDaemon, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(code_block("python"))
    assert "sigd" not in code_block("python"), "it needs nothing but this page"
    done = run([sys.executable, str(script), str(daemon(one_answer))])
    assert (done.returncode, done.stdout) == (0, "7 0 0.25 0.75\n"), done.stderr
    done = run([sys.executable, str(script), str(daemon(refusal))])
    assert (done.returncode, done.stderr) == (1, "no such model\n")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ (Debian: apt install g++)")
def test_the_cpp_client(daemon: StartDaemon, tmp_path: Path) -> None:
    source, program = tmp_path / "example.cpp", str(tmp_path / "example")
    source.write_text(code_block("cpp"))
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-I", str(include_dir())]
    built = run(["g++", *flags, "-o", program, str(source)])
    assert (built.returncode, built.stderr) == (0, "")
    done = run([program, str(daemon(one_answer))])
    assert (done.returncode, done.stdout) == (0, "7 0 0.25 0.75\n"), done.stderr
    assert run([program, str(daemon(refusal))]).returncode == 1
    assert run([program, str(tmp_path / "none")]).returncode == 3
