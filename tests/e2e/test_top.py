"""`sigd top` at a terminal, and where there is none."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

PATIENCE_S = 60.0
ROW = [1.0, 2.0, 3.0, 4.0]
SIGD = [sys.executable, "-P", "-m", "sigd.daemon"]


def top(socket: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SIGD, "top", "--socket", str(socket), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class Terminal:
    """A `sigd top` at a terminal of 80 columns and 24 lines."""

    def __init__(self, socket: Path) -> None:
        self.master, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        self.before = termios.tcgetattr(self.master)
        self.said = ""
        self.process = subprocess.Popen(
            [*SIGD, "top", "--socket", str(socket), "--interval", "0.1"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            # Its own controlling terminal, or Ctrl-C would signal no process.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  there are no threads
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(terminal)

    def until(self, words: str) -> None:
        """Read until it has said them."""
        deadline_s = time.monotonic() + PATIENCE_S
        while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.said):
            assert time.monotonic() < deadline_s, self.said
            self.read()

    def read(self) -> bool:
        """Once; False where nothing more can come."""
        if not select.select([self.master], [], [], 0.1)[0]:
            return True
        try:
            part = os.read(self.master, 1 << 16)
        except OSError:
            return False
        self.said += part.decode(errors="replace")
        return bool(part)

    def end(self) -> int:
        """Wait for its end, reading what it says; the exit code."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.read():
            assert time.monotonic() < deadline_s, self.said
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Whatever is put here is closed at the end."""
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.master)


def test_lines_for_a_log(start_daemon: StartDaemon, models: ModelMaker) -> None:
    path = models.copied(4)
    daemon = start_daemon("--model", str(path))
    with daemon.connect(client_name="engine") as client:
        client.request(ROW)
        done = top(daemon.socket, "--count", "2", "--interval", "0.1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"model={path.stem} requests/s=0 ") for line in lines), "none in this interval"
    assert all(" clients=1 " in line for line in lines)


def test_objects_for_programs(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    watching = subprocess.Popen(
        [*SIGD, "top", "--socket", str(daemon.socket), "--json", "--count", "2", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with daemon.connect(client_name="engine") as client, watching:
        assert watching.stdout is not None
        answered = 0
        while watching.poll() is None:
            client.request(ROW)
            answered += 1
        intervals = [json.loads(line) for line in watching.stdout]
    assert watching.returncode == 0
    assert len(intervals) == 2
    for interval in intervals:
        (model,) = interval["models"]
        assert 0 < model["answers"]["OK"] <= answered
        assert 0 < model["total"]["p50_us"] <= model["total"]["max_us"]
        assert interval["clients"] == {"engine": 1}


def test_where_no_daemon_is(tmp_path: Path) -> None:
    done = top(tmp_path / "s")
    assert done.returncode == 3
    assert "start one with: sigd serve" in done.stderr


def test_a_daemon_that_ends_meanwhile(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    watching = subprocess.Popen(
        [*SIGD, "top", "--socket", str(daemon.socket), "--plain", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert watching.stdout.readline().startswith("model=")
        daemon.stop()
        for _ in range(2):
            assert "no daemon answers there" in watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
    assert watching.returncode == 0


@pytest.mark.parametrize("how", ["q", "Ctrl-C", "Ctrl-D", "SIGINT", "SIGTERM"])
def test_leaving_gives_the_terminal_back(
    start_daemon: StartDaemon, models: ModelMaker, terminals: list[Terminal], how: str
) -> None:
    keys = {"q": b"xq", "Ctrl-C": b"\x03", "Ctrl-D": b"\x04"}
    daemon = start_daemon("--model", str(models.copied(4)))
    terminal = Terminal(daemon.socket)
    terminals.append(terminal)
    terminal.until("q leaves")
    if how in keys:
        os.write(terminal.master, keys[how])
    else:
        terminal.process.send_signal(signal.Signals[how])
    assert terminal.end() == 0
    assert termios.tcgetattr(terminal.master) == terminal.before
    assert "\x1b[?1049h" in terminal.said
    assert terminal.said.rindex("\x1b[?1049l") > terminal.said.rindex("\x1b[?1049h"), (
        "the screen of before is back"
    )
    assert "\x1b[?25h" in terminal.said[terminal.said.rindex("\x1b[?25l") :], "and the cursor"
    assert "Traceback" not in terminal.said


def test_a_daemon_that_is_started_anew_is_followed(
    start_daemon: StartDaemon, models: ModelMaker, terminals: list[Terminal]
) -> None:
    model = str(models.copied(4))
    daemon = start_daemon("--model", model)
    terminal = Terminal(daemon.socket)
    terminals.append(terminal)
    terminal.until(f"pid {daemon.process.pid}")
    assert daemon.stop() == 0
    terminal.until("no answer, these are the last figures")
    other = start_daemon("--model", model, folder=daemon.folder)
    terminal.until("another daemon than before")
    terminal.until(f"pid {other.process.pid}")
    os.write(terminal.master, b"q")
    assert terminal.end() == 0
