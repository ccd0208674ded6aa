"""`sigd drain`: as SIGTERM, and the command knows how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

ROW = np.array([3, 0, 0, 0], np.float32)


def drain(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("drain", path, *arguments)


def run_command(name: str, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "sigd.daemon", name, "--socket", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_everything_accepted_is_answered_and_the_process_is_gone(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.slow(4, 2, layers=200)), "--batch-rows-max", "4")
    with daemon.connect() as client:
        client.send_many([ROW] * 100)
        client.receive()
        done = drain(daemon.socket)
        assert daemon.process.poll() == 0, "it has ended before the command did"
        answers = client.receive_many(99)
        assert set(answers["status"]) <= {Status.OK, Status.DRAINING}
        assert client.goodbye_code == GoodbyeCode.DRAINING
    assert done.returncode == 0
    assert "everything accepted was answered" in done.stdout
    assert not daemon.socket.exists()


def test_two_who_ask_get_the_same_answer(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    done: list[subprocess.CompletedProcess[str]] = []
    with daemon.connect():
        asking = [
            threading.Thread(target=lambda: done.append(drain(daemon.socket, "--json"))) for _ in range(2)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    # The second may come when no daemon listens there any more.
    assert sorted(each.returncode for each in done) in ([0, 0], [0, 3])
    assert json.loads(min(done, key=lambda each: each.returncode).stdout) == {"exit_code": 0}
    assert daemon.process.wait(60) == 0


def test_its_exit_code_is_the_daemons(start_daemon: StartDaemon, models: ModelMaker) -> None:
    """A client that does not read its answers still has some to come when the time is over."""
    daemon = start_daemon(
        "--model",
        str(models.slow(4, 2, layers=2000)),
        "--batch-rows-max",
        "1",
        config={"drain_timeout_s": 0.1},
    )
    with daemon.connect() as client:
        client.send_many([ROW] * 200)
        client.receive()
        done = drain(daemon.socket)
    assert done.returncode == daemon.process.wait(60) == 1
    assert "its log says why" in done.stderr
    assert "requests were not answered within 0.1 s" in daemon.said()


def test_no_daemon_to_drain(tmp_path: Path) -> None:
    done = drain(tmp_path / "s")
    assert done.returncode == 3
    assert "no daemon answers there" in done.stderr


@pytest.mark.parametrize("command", ["drain", "reload"])
def test_daemon_that_is_stopped_is_named_and_not_waited_for(
    start_daemon: StartDaemon, models: ModelMaker, command: str
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        done = run_command(command, daemon.socket)
        assert done.returncode == 3
        assert f"process {daemon.process.pid} " in done.stderr
        assert f"is stopped; let it go on with: kill -CONT {daemon.process.pid}" in done.stderr
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert daemon.status().pid == daemon.process.pid, "it serves on: nothing was left in its queue"
    assert drain(daemon.socket).returncode == 0
