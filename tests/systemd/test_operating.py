"""What an operator does with the units, on a machine with systemd: install, start, look, reload, stop, take
away."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.systemd.machine import COMMAND, PYTHON, SOCKET, Machine

from sigd.wire.client import Client
from sigd.wire.status import GoodbyeCode, Status

pytestmark = pytest.mark.systemd

ENGINE = f"""
import numpy as np
from sigd.wire.client import connect
with connect("{SOCKET}") as client:
    print(client.request(np.zeros(client.welcome.features, np.float32)).status)
"""


def ask(client: Client) -> int:
    """The status of one answer."""
    return int(client.request(np.zeros(client.welcome.features, np.float32)).status)


def messages(machine: Machine, *options: str) -> list[tuple[int, str]]:
    """What the journal has of sigd.service, as (priority, message)."""
    lines = machine.said("journalctl", "--output=json", "--unit=sigd.service", "--no-pager", *options)
    entries = [json.loads(line) for line in lines.splitlines()]
    return [(int(entry["PRIORITY"]), entry["MESSAGE"]) for entry in entries]


def test_from_nothing_to_the_first_answer_with_one_command(machine: Machine) -> None:
    machine.start_sigd()
    with machine.connect() as client:
        assert ask(client) == Status.OK
    assert machine.said("systemctl", "is-enabled", "sigd.service", "sigd.socket", "sigd-admin.socket") == (
        "enabled\nenabled\nenabled"
    )
    assert "pid" in machine.said(COMMAND, "status"), "found without saying where"
    said = [message for _, message in messages(machine)]
    ready, started = (
        next(index for index, message in enumerate(said) if message.startswith(words))
        for words in ("sigd ready: ", "Started ")
    )
    assert ready < started, "systemd waits until it listens, after the warm-up"


def test_its_state_is_told_and_kept_up(machine: Machine) -> None:
    machine.start_sigd()
    assert machine.show("sigd.service", "StatusText").startswith("0 clients; ")
    with machine.connect() as client:
        assert ask(client) == Status.OK
        wanted = "1 clients; lob-mlp (64 -> 3) on native, generation 1"
        assert machine.until("sigd.service", "StatusText", [wanted])
    assert machine.show("sigd.service", "NRestarts") == "0"


def test_who_may_connect(machine: Machine) -> None:
    machine.start_sigd()
    machine.run("useradd", "--groups=sigd", "engine")
    machine.run("useradd", "outsider")
    python = (PYTHON, "-")
    assert machine.run("runuser", "-u", "engine", "--", *python, stdin=ENGINE).stdout == "0\n"
    done = machine.run("runuser", "-u", "outsider", "--", *python, check=False, stdin=ENGINE)
    assert "Permission denied" in done.stderr
    done = machine.run("runuser", "-u", "engine", "--", COMMAND, "status", check=False)
    assert (done.returncode, "may not be asked by user" in done.stderr) == (3, True), (
        "the admin socket is not for engines"
    )


def test_a_stop_answers_what_was_accepted(machine: Machine) -> None:
    machine.start_sigd()
    with machine.connect() as client:
        sent = client.send_many([np.zeros(client.welcome.features, np.float32)] * 100)
        machine.run("systemctl", "stop", "sigd.service")
        statuses = [int(answer["status"]) for _ in sent for answer in client.receive_many(1)]
        assert len(statuses) == 100
        assert set(statuses) <= {Status.OK, Status.DRAINING}
        assert client.goodbye_code == GoodbyeCode.DRAINING
    assert machine.show("sigd.service", "Result") == "success"
    assert machine.show("sigd.service", "ExecMainStatus") == "0"


def test_a_drain_may_take_longer_than_the_unit_foresees(machine: Machine) -> None:
    """A client that does not read has more answers coming than its socket holds: it is waited for."""
    machine.write("/etc/systemd/system/sigd.service.d/short.conf", "[Service]\nTimeoutStopSec=1\n")
    machine.start_sigd(configuration="drain_timeout_s = 3.0\nin_flight_max = 16384\n")
    with machine.connect() as client:
        client.send_many([np.zeros(client.welcome.features, np.float32)] * 8000)
        begun_s = time.monotonic()
        machine.run("systemctl", "stop", "--no-block", "sigd.service")
        machine.until("sigd.service", "StatusText", ["draining"])
        machine.until("sigd.service", "ActiveState", ["inactive", "failed"])
    assert time.monotonic() - begun_s > 2.5, "no client was waited for: this shows nothing"
    assert machine.show("sigd.service", "Result") == "success"


def test_stopping_the_socket_stops_all(machine: Machine) -> None:
    machine.start_sigd()
    machine.run("systemctl", "stop", "sigd.service")
    assert (machine.here / SOCKET.lstrip("/")).is_socket(), "who connects now is served by the next start"
    machine.run("systemctl", "start", "sigd.service")
    machine.run("systemctl", "stop", "sigd.socket")
    for unit in ("sigd.service", "sigd.socket", "sigd-admin.socket"):
        assert machine.show(unit, "ActiveState") == "inactive", unit
    assert list((machine.here / "run/sigd").iterdir()) == []


def test_asking_a_stopped_daemon_starts_it_unless_its_socket_is_stopped(machine: Machine) -> None:
    machine.start_sigd()
    machine.run("systemctl", "stop", "sigd.service")
    assert machine.show("sigd.service", "ActiveState") == "inactive"
    machine.run(COMMAND, "status")
    assert machine.show("sigd.service", "ActiveState") == "active"
    machine.run("systemctl", "stop", "sigd.socket")
    assert machine.run(COMMAND, "status", check=False).returncode == 3
    assert machine.show("sigd.service", "ActiveState") == "inactive"


def test_several_daemons_on_one_machine(machine: Machine) -> None:
    machine.start_sigd()
    machine.start_sigd("--instance", "lob")
    for path in (SOCKET, "/run/sigd/lob.sock"):
        with machine.connect(path) as client:
            assert ask(client) == Status.OK
    assert machine.run(COMMAND, "status", "--socket", "/run/sigd/lob.sock", "--json").stdout
    machine.run(COMMAND, "install-service", "--uninstall", "--instance", "lob")
    assert machine.show("sigd@lob.service", "ActiveState") == "inactive"
    with machine.connect() as client:
        assert ask(client) == Status.OK, "the other one is not touched"


def test_nothing_is_left_but_what_is_the_operators_own(machine: Machine) -> None:
    before = _configured(machine)
    machine.start_sigd("--realtime", "0", "--gpu", "--metrics", configuration="# mine\n")
    machine.run("systemctl", "stop", "sigd.socket")
    done = machine.run(COMMAND, "install-service", "--uninstall")
    assert "kept       /etc/sigd/sigd.toml (yours)" in done.stdout
    assert _configured(machine) - before == {"etc/sigd/sigd.toml"}
    assert machine.show("sigd.service", "LoadState") == "not-found"


def test_a_wrong_configuration_is_told_and_not_tried_again_before_a_client_comes(machine: Machine) -> None:
    machine.write("/etc/sigd/sigd.toml", 'idle = "doze"\n')
    done = machine.run(COMMAND, "install-service", "--enable", check=False)
    assert done.returncode == 3, done
    errors = [message for priority, message in messages(machine) if priority <= 3]
    assert any("Invalid enum value 'doze'" in message for message in errors), errors
    assert machine.show("sigd.service", "ActiveState") == "failed"
    assert machine.show("sigd.service", "NRestarts") == "0"
    with ThreadPoolExecutor() as engine:
        answer = engine.submit(connect_and_ask, machine)
        machine.until("sigd.service", "ActiveState", ["activating", "deactivating"])
        machine.write("/etc/sigd/sigd.toml", 'idle = "block"\n')
        assert answer.result() == Status.OK, "who came early is served without anybody's help"


def test_what_is_lacking_is_tried_again_with_pauses_until_it_is_there(machine: Machine) -> None:
    serve = f"exec {COMMAND} serve --config /etc/sigd/sigd.toml"
    lacking = f"[Service]\nExecStart=\nExecStart=/bin/sh -c 'test -e /etc/sigd/card || exit 3; {serve}'\n"
    machine.write("/etc/systemd/system/sigd.service.d/lacking.conf", lacking)
    assert machine.run(COMMAND, "install-service", "--enable", check=False).returncode == 3
    machine.until("sigd.service", "NRestarts", ["2"])
    times_s = [time_s for time_s, message in started(machine) if message.startswith("Starting sigd.service")]
    assert all(later - earlier > 2 for earlier, later in pairwise(times_s)), times_s
    machine.write("/etc/sigd/card", "")
    machine.until("sigd.service", "ActiveState", ["active"])
    assert connect_and_ask(machine) == Status.OK


def connect_and_ask(machine: Machine) -> int:
    with machine.connect() as client:
        return ask(client)


def started(machine: Machine) -> list[tuple[float, str]]:
    """What the journal has of sigd.service, with its times."""
    lines = machine.said("journalctl", "--output=json", "--unit=sigd.service", "--no-pager")
    entries = [json.loads(line) for line in lines.splitlines()]
    return [(int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6, entry["MESSAGE"]) for entry in entries]


def _configured(machine: Machine) -> set[str]:
    etc = machine.here / "etc"
    return {str(path.relative_to(machine.here)) for path in etc.rglob("*") if _is_of_sigd(path)}


def _is_of_sigd(path: Path) -> bool:
    return "sigd" in str(path.name) and not path.is_dir()
