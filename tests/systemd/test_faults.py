"""What systemd does when the daemon is killed, hangs, or has no disk left: engines are refused at no time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.systemd.engine import Engine, kill_and_wait_for_all
from tests.systemd.machine import PATIENCE_S, Machine
from tests.systemd.test_operating import ask, messages

from sigd.wire.status import Status

pytestmark = pytest.mark.systemd


def test_killed_under_load_no_engine_is_refused(machine: Machine, engines: list[Engine]) -> None:
    for _ in range(3):
        kill_and_wait_for_all(machine, engines)
    assert machine.show("sigd.service", "NRestarts") == "3"
    for engine in engines:
        assert engine.refused == []
        assert engine.lost >= 3


def test_restarted_under_load_no_engine_is_refused(machine: Machine, engines: list[Engine]) -> None:
    socket = (machine.here / "run/sigd/sigd.sock").stat().st_ino
    for _ in range(2):
        machine.run("systemctl", "restart", "sigd.service")
        for engine in engines:
            engine.wait_for_answers_after(time.monotonic_ns())
    assert [engine.refused for engine in engines] == [[], [], []]
    assert (machine.here / "run/sigd/sigd.sock").stat().st_ino == socket, "it is systemd's, and stays"


def test_a_daemon_that_hangs_is_ended_and_says_where(machine: Machine, engines: list[Engine]) -> None:
    os.kill(machine.daemon_pid(), signal.SIGSTOP)
    hung_ns = time.monotonic_ns() + 20_000_000
    for engine in engines:
        engine.wait_for_answers_after(hung_ns)
    assert [engine.refused for engine in engines] == [[], [], []]
    assert machine.show("sigd.service", "NRestarts") == "1"
    said = "\n".join(message for _, message in messages(machine))
    assert "Watchdog timeout (limit 5s)!" in said
    assert "Fatal Python error: Aborted" in said, "the stack of where it hung"


def test_a_busy_daemon_and_an_idle_one_live_on(machine: Machine, engines: list[Engine]) -> None:
    """Longer than the watchdog's period with load, then without."""
    time.sleep(6)
    for engine in engines:
        engine.done.set()
        engine.join(PATIENCE_S)
    time.sleep(6)
    assert machine.show("sigd.service", "NRestarts") == "0"
    assert not [message for priority, message in messages(machine) if priority <= 4]


def test_without_disk_it_serves_and_comes_again(root: Path, tmp_path: Path) -> None:
    with Machine(root, tmp_path, "--tmpfs=/var/log:size=16M", "--tmpfs=/var/lib/sigd:size=64k") as machine:
        machine.start_sigd()
        for folder in ("/var/log", "/var/lib/sigd"):
            filled = machine.run("dd", "if=/dev/zero", f"of={folder}/full", "bs=4k", check=False)
            assert "No space left" in filled.stderr
        with machine.connect() as client:
            assert ask(client) == Status.OK
            # What it logs has nowhere to go, and does not hold it up.
            for _ in range(200):
                machine.here.joinpath("run/sigd/sigd.sock").stat()
                assert ask(client) == Status.OK
        machine.kill_daemon()
        with machine.connect() as client:
            assert ask(client) == Status.OK
        assert machine.until("sigd.service", "NRestarts", ["1"])


def test_however_often_it_dies_it_is_started_again(machine: Machine) -> None:
    machine.start_sigd()
    for _ in range(7):
        machine.kill_daemon()
        with machine.connect() as client:
            assert ask(client) == Status.OK
    assert machine.show("sigd.service", "ActiveState") == "active"
    assert machine.show("sigd.socket", "ActiveState") == "active"
