"""Reload and drain as an operator of the units asks for them, inside the sandbox that the units make."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.systemd.engine import Engine
from tests.systemd.machine import COMMAND, PATIENCE_S, Machine
from tests.systemd.test_operating import messages

from sigd.wire.client import Client
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

pytestmark = pytest.mark.systemd

ROW = np.array([1, 2, 3, 5], np.float32)
SERVED = "/etc/sigd/model.onnx"
EXAMINER = "sigd-validator"


def put(machine: Machine, path: str, file: Path) -> str:
    """A model file there, as root leaves it."""
    place = machine.here / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    # Not over the one that is there: who reads it shall not see half of both.
    shutil.copy(file, place.with_name("new"))
    place.with_name("new").chmod(0o644)
    place.with_name("new").rename(place)
    return path


def serve(machine: Machine, file: Path, *options: str, configuration: str = "") -> None:
    put(machine, SERVED, file)
    machine.start_sigd(*options, configuration=f'model = "{SERVED}"\n{configuration}')


def factor_of(client: Client) -> tuple[float, int]:
    """What the model that answers now multiplies with, and its generation."""
    answer = client.request(ROW)
    assert answer.status == Status.OK
    return float(answer.outputs[0]), answer.model_generation


def validator_of(machine: Machine) -> int:
    """The process that validates model files, as it is numbered outside."""
    processes = machine.here / "sys/fs/cgroup/system.slice/sigd.service/cgroup.procs"
    named = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes.read_text().split()}
    (pid,) = (int(pid) for pid, name in named.items() if name == EXAMINER)
    return pid


def test_reloaded_under_load_no_client_notices(machine: Machine, engines: list[Engine]) -> None:
    pid = machine.daemon_pid()
    for _ in range(3):
        machine.run("systemctl", "reload", "sigd.service")
        reloaded_ns = time.monotonic_ns()
        for engine in engines:
            engine.wait_for_answers_after(reloaded_ns)
    for engine in engines:
        assert engine.generations == [1, 2, 3, 4], "what `systemctl reload` returned after is what answers"
        assert engine.statuses == {Status.OK}
        assert (engine.lost, engine.refused) == (0, [])
    assert machine.daemon_pid() == pid
    assert not [message for priority, message in messages(machine) if priority <= 4]


def test_a_broken_file_fails_the_reload_and_the_old_model_answers_on(
    machine: Machine, models: ModelMaker, tmp_path: Path
) -> None:
    serve(machine, models.scaled(2.0))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(models.scaled(3.0).read_bytes()[:-9])
    with machine.connect() as client:
        put(machine, SERVED, broken)
        assert machine.run("systemctl", "reload", "sigd.service", check=False).returncode == 1
        assert machine.show("sigd.service", "ActiveState") == "active"
        errors = [message for priority, message in messages(machine) if priority <= 3]
        assert any(f"generation 1 serves on: {SERVED}" in message for message in errors), errors
        assert factor_of(client) == (2.0, 1)
        put(machine, SERVED, models.scaled(3.0))
        machine.run("systemctl", "reload", "sigd.service")
        assert factor_of(client) == (3.0, 2)


def test_another_file_is_validated_with_the_units_own_sandbox(machine: Machine, models: ModelMaker) -> None:
    serve(machine, models.scaled(2.0))
    with machine.connect() as client:
        done = machine.run(
            COMMAND, "reload", "--model", put(machine, "/srv/models/3.onnx", models.scaled(3.0))
        )
        assert "generation 2 is served" in done.stdout
        assert factor_of(client) == (3.0, 2)
    status = Path(f"/proc/{validator_of(machine)}/status").read_text()
    assert "Seccomp:\t2\n" in status
    assert "CapBnd:\t0000000000000000\n" in status
    assert os.sched_getscheduler(validator_of(machine)) == os.SCHED_IDLE, "it takes no time that others want"
    assert not [message for priority, message in messages(machine) if priority <= 4]


def test_a_file_that_the_unit_hides_is_refused(machine: Machine, models: ModelMaker) -> None:
    serve(machine, models.scaled(2.0))
    done = machine.run(
        COMMAND, "reload", "--model", put(machine, "/root/3.onnx", models.scaled(3.0)), check=False
    )
    assert done.returncode == 1
    assert "/root/3.onnx" in done.stderr


def test_what_validates_a_file_goes_first_where_memory_runs_out(machine: Machine, models: ModelMaker) -> None:
    serve(machine, models.scaled(2.0))
    validator = validator_of(machine)
    children = Path(f"/proc/{validator}/task/{validator}/children")
    large = put(machine, "/srv/models/large.onnx", models.slow(4, 4, layers=300))
    with ThreadPoolExecutor() as operator:
        done = operator.submit(machine.run, COMMAND, "reload", "--model", large)
        scores = {adjustment_of(child) for child in until_there(children)}
        while 500 not in scores and not done.done():
            scores |= {adjustment_of(child) for child in children.read_text().split()}
        done.result()
    assert 500 in scores
    # -900 where the machine lets its systemd say so; here it has fewer rights.
    assert adjustment_of(str(machine.daemon_pid())) in (-900, 0)


def until_there(file: Path) -> list[str]:
    """Its words, once there are some."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (words := file.read_text().split()):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    return words


def adjustment_of(pid: str) -> int | None:
    """How gladly the kernel ends a process for its memory; None once it has ended."""
    try:
        score = Path(f"/proc/{pid}/oom_score_adj").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Of one that has just ended it may read as nothing.
    return int(score) if score else None


def test_sighup_through_systemd_reads_the_file_again(machine: Machine, models: ModelMaker) -> None:
    """systemd sends it to every process of the unit."""
    serve(machine, models.scaled(2.0))
    validator = validator_of(machine)
    with machine.connect() as client:
        for number, factor in ((2, 3.0), (3, 4.0)):
            put(machine, SERVED, models.scaled(factor))
            machine.run("systemctl", "kill", "--signal=HUP", "sigd.service")
            wanted = f"1 clients; model (4 -> 4) on native, generation {number}"
            machine.until("sigd.service", "StatusText", [wanted])
            assert factor_of(client) == (factor, number)
    assert validator_of(machine) == validator


def test_a_killed_daemons_validator_is_gone_and_the_next_daemon_reloads(
    machine: Machine, models: ModelMaker
) -> None:
    serve(machine, models.scaled(2.0))
    validator = validator_of(machine)
    machine.kill_daemon()
    with machine.connect() as client:
        assert factor_of(client) == (2.0, 1)
        assert not Path(f"/proc/{validator}").exists()
        machine.run("systemctl", "reload", "sigd.service")
        assert factor_of(client) == (2.0, 2)


def test_drained_under_load_it_ends_well_and_the_next_engine_starts_it(
    machine: Machine, engines: list[Engine]
) -> None:
    first = machine.daemon_pid()
    done = machine.run(COMMAND, "drain")
    drained_ns = time.monotonic_ns()
    assert "everything accepted was answered" in done.stdout
    for engine in engines:
        engine.wait_for_answers_after(drained_ns)
        assert engine.refused == []
        assert engine.statuses <= {Status.OK, Status.DRAINING}
    assert not Path(f"/proc/{first}").exists()
    assert machine.show("sigd.service", "NRestarts") == "0", "it has ended well, and a socket started it"
    assert not [message for priority, message in messages(machine) if priority <= 4]


def test_drained_without_clients_it_stays_away(machine: Machine) -> None:
    machine.start_sigd()
    machine.run(COMMAND, "drain")
    machine.until("sigd.service", "ActiveState", ["inactive"])
    assert machine.show("sigd.service", "Result") == "success"
    assert machine.show("sigd.socket", "ActiveState") == "active"


def test_child_process_of_a_loop_at_real_time_priority_has_neither_its_priority_nor_its_core(
    machine: Machine, models: ModelMaker
) -> None:
    core = max(os.sched_getaffinity(0))
    serve(machine, models.scaled(2.0), "--realtime", str(core), configuration='idle = "block"\n')
    validator = validator_of(machine)
    assert os.sched_getscheduler(validator) == os.SCHED_IDLE
    assert os.sched_getaffinity(validator) == (os.sched_getaffinity(0) - {core} or {core})
    machine.run(COMMAND, "reload", "--model", put(machine, "/srv/models/3.onnx", models.scaled(3.0)))
    with machine.connect() as client:
        assert factor_of(client) == (3.0, 2)
    assert os.sched_getscheduler(machine.daemon_pid()) == os.SCHED_FIFO
