"""What systemd does when the daemon is killed, hangs, or has no disk left: engines are refused at no time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.systemd.machine import PATIENCE_S, Machine
from tests.systemd.test_operating import ask, messages

from sigd.wire.errors import ConnectFailed, Rejected, SessionClosed
from sigd.wire.status import Status

pytestmark = pytest.mark.systemd


class Engine(threading.Thread):
    """Asks without end; connects again at once where its daemon goes away, and keeps the account.

    Attributes:
        answered_ns: when each answer came.
        refused: why a connection could not be had.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.answered_ns: list[int] = []
        self.refused: list[str] = []
        self.lost = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            try:
                with self.machine.connect() as client:
                    row = np.zeros(client.welcome.features, np.float32)
                    while not self.done.is_set():
                        client.send_many([row] * 8)
                        while client.unanswered:
                            self.answered_ns += [time.monotonic_ns() for _ in client.receive_many()]
            except SessionClosed:
                self.lost += 1
            except (ConnectFailed, Rejected) as error:
                self.refused.append(str(error))

    def wait_for_answers_after(self, moment_ns: int) -> int:
        """How long it took from then to the first answer, in ns."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not self.answered_ns or self.answered_ns[-1] < moment_ns:
            assert time.monotonic() < deadline_s, self.machine.journal()
            assert self.is_alive()
            time.sleep(0.001)
        return next(answered for answered in self.answered_ns if answered >= moment_ns) - moment_ns


@pytest.fixture
def engines(machine: Machine) -> Iterator[list[Engine]]:
    """Three, under way."""
    machine.start_sigd()
    started = [Engine(machine) for _ in range(3)]
    begun_ns = time.monotonic_ns()
    for engine in started:
        engine.start()
    for engine in started:
        engine.wait_for_answers_after(begun_ns)
    yield started
    for engine in started:
        engine.done.set()
        engine.join(PATIENCE_S)
        assert not engine.is_alive()


def test_killed_under_load_no_engine_is_refused(
    machine: Machine, engines: list[Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    took_ms = []
    for _ in range(3):
        # Answers that are under way may still arrive after the kill; those of the next daemon take far longer.
        killed_ns = time.monotonic_ns()
        machine.kill_daemon()
        gone_ns = time.monotonic_ns()
        waited_ns = max(engine.wait_for_answers_after(gone_ns + 20_000_000) for engine in engines)
        took_ms.append((gone_ns + 20_000_000 + waited_ns - killed_ns) / 1e6)
    assert machine.show("sigd.service", "NRestarts") == "3"
    for engine in engines:
        assert engine.refused == []
        assert engine.lost >= 3
    with capsys.disabled():
        print(
            f"\nfrom the kill to the last engine's first new answer: {', '.join(f'{ms:.0f} ms' for ms in took_ms)}"
        )


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
