"""What runs beside the daemon as a service: it may end, or run out of memory, and the daemon serves; what was
recorded outlives both."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.systemd.machine import COMMAND, PATIENCE_S, Machine
from tests.systemd.test_operating import ask
from tests.systemd.test_reload import factor_of, put, serve, validator_of

from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

pytestmark = pytest.mark.systemd

UNIT = "sigd.service"
MODULES = ("sigd.daemon.recording.writer", "sigd.daemon.shadow.process")
RECORDINGS = "/var/lib/sigd/recordings"
BESIDE = f"""
shadow = {{path = "/etc/sigd/next.onnx"}}
[recorder]
directory = "{RECORDINGS}"
"""


def processes(machine: Machine) -> dict[int, str]:
    """Those of the unit, as they are numbered outside, with their command lines; those that are gone are left
    out."""
    group = machine.here / "sys/fs/cgroup/system.slice" / UNIT / "cgroup.procs"
    lines = {}
    for pid in map(int, group.read_text().split()):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except FileNotFoundError:
            continue
        lines[pid] = line.replace(b"\0", b" ").decode()
    return lines


def pids_of(machine: Machine, module: str) -> set[int]:
    """The processes that run that module."""
    return {pid for pid, line in processes(machine).items() if f"-m {module} " in line}


def until(machine: Machine, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, machine.journal("-n", "50")
        time.sleep(0.05)


def test_a_reload_may_take_longer_than_the_units_own_limit(machine: Machine, models: ModelMaker) -> None:
    """The daemon asks for the time."""
    serve(machine, models.scaled(2.0))
    assert machine.show(UNIT, "OOMPolicy") == "continue"
    machine.write("/etc/systemd/system/sigd.service.d/limit.conf", "[Service]\nTimeoutStartSec=1\n")
    machine.run("systemctl", "daemon-reload")
    validator = validator_of(machine)
    os.kill(validator, signal.SIGSTOP)
    machine.run("systemctl", "--no-block", "reload", UNIT)
    time.sleep(3)
    assert machine.show(UNIT, "ActiveState") == "reloading"
    os.kill(validator, signal.SIGCONT)
    machine.until(UNIT, "ActiveState", ["active"])
    with machine.connect() as client:
        assert factor_of(client) == (2.0, 2)
    assert "timed out" not in machine.journal()


def test_what_was_recorded_outlives_the_daemon_and_is_replayed(machine: Machine, models: ModelMaker) -> None:
    put(machine, "/etc/sigd/next.onnx", models.scaled(2.0, 4))
    serve(machine, models.scaled(2.0, 4), configuration=BESIDE)
    asked = 0
    # Killed alone: the writer stores what is in the ring. Killed with all beside it: the next daemon's writer
    # does.
    for kill_whom in ("main", "all"):
        with machine.connect() as client:
            for _ in range(100):
                factor_of(client)
        asked += 100
        before = machine.daemon_pid()
        machine.run("systemctl", "kill", "--signal=KILL", f"--kill-who={kill_whom}", UNIT)
        until(machine, lambda before=before: machine.show(UNIT, "MainPID") not in ("0", str(before)))  # type: ignore[misc]
        machine.until(UNIT, "ActiveState", ["active"])
    status = json.loads(machine.said(COMMAND, "status", "--json"))
    assert status["recorder"]["paused_because"] == ""
    assert status["models"][0]["shadow"]["running"] is True
    assert machine.run("ls", "/dev/shm").stdout == "", "systemd removes what a service's user leaves there"
    until(machine, lambda: len(list((machine.here / "run/sigd-memory").iterdir())) == 1)
    replayed = json.loads(machine.said(COMMAND, "replay", "--json", RECORDINGS))
    assert replayed["replayed"] == asked, replayed


def test_all_child_processes_are_started_again(machine: Machine, models: ModelMaker) -> None:
    """And has from the beginning neither the loop's core nor its priority."""
    core = max(os.sched_getaffinity(0))
    others = os.sched_getaffinity(0) - {core} or {core}
    put(machine, "/etc/sigd/next.onnx", models.scaled(3.0))
    serve(machine, models.scaled(2.0), "--realtime", str(core), configuration=f'idle = "block"{BESIDE}')
    daemon = machine.daemon_pid()
    first = {module: pid for module in MODULES for pid in pids_of(machine, module)}
    first["sigd.daemon.reload.validator"] = validator_of(machine)
    with machine.connect() as client:
        for module, killed in first.items():
            os.kill(killed, signal.SIGKILL)
            until(machine, lambda module=module, killed=killed: bool(pids_of(machine, module) - {killed}))  # type: ignore[misc]
            (pid,) = pids_of(machine, module) - {killed}
            assert os.sched_getaffinity(pid) <= others
            assert os.sched_getscheduler(pid) != os.SCHED_FIFO
            assert ask(client) == Status.OK
        machine.run("systemctl", "reload", UNIT)
        assert factor_of(client) == (2.0, 2)
    assert machine.daemon_pid() == daemon
    assert os.sched_getscheduler(daemon) == os.SCHED_FIFO
