"""A fleet to try the Ansible role on: booted machines, reached by OpenSSH, with engines that ask them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.systemd.machine import PATIENCE_S, Machine
from tests.systemd.prepare import LOCK, ROOT

from sigd.wire.errors import ConnectFailed, SessionClosed
from sigd.wire.status import GoodbyeCode, Status

ANSIBLE = ROOT / "systemd/ansible"
INSTANCE = "lob"
SOCKET = f"/run/sigd/{INSTANCE}.sock"
UNIT = f"sigd@{INSTANCE}.service"
COMMAND = "/usr/local/bin/sigd"
WHEELS = "/srv/wheels"
RELEASES = "opt/sigd/releases"
ROWS = 8
PLAYBOOK_S = 900.0
"""How long a playbook may take before the test gives up."""


class Account(threading.Thread):
    """An engine of one host: it asks without end, connects again when told to, and keeps the account.

    A row is lost if its session ends without an answer to it, and without a Goodbye that tells to ask again.

    Attributes:
        answered: rows that were answered OK.
        lost: rows that were lost.
        refused: why a connection could not be had.
        statuses: of all answers.
        factors: what the model multiplied with, in the order in which it changed.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.answered = 0
        self.lost = 0
        self.refused: list[str] = []
        self.statuses: set[int] = set()
        self.factors: list[float] = []
        self._done = threading.Event()

    def run(self) -> None:
        row = np.array([1, 2, 3, 5], np.float32)
        while not self._done.is_set():
            try:
                client = self.machine.connect(SOCKET)
            except (ConnectFailed, OSError) as error:
                self.refused.append(str(error))
                time.sleep(0.01)
                continue
            with client:
                try:
                    while not self._done.is_set():
                        client.send_many([row] * ROWS)
                        while client.unanswered:
                            self._note(client.receive_many())
                        # 2 cores serve three hosts, their engines and Ansible.
                        time.sleep(0.01)
                except SessionClosed:
                    if client.goodbye_code != GoodbyeCode.DRAINING:
                        self.lost += client.unanswered

    def _note(self, answers: np.ndarray) -> None:
        self.statuses.update(answers["status"].tolist())
        good = answers[answers["status"] == Status.OK]
        self.answered += len(good)
        for factor in good["outputs"][:, 0].tolist():
            if self.factors[-1:] != [factor]:
                self.factors.append(factor)

    def stop(self) -> None:
        self._done.set()
        self.join(PATIENCE_S)
        assert not self.is_alive()

    def demand_nothing_lost(self) -> None:
        """Every row was answered, or its engine was told to ask again and was answered then."""
        assert self.answered
        assert self.statuses <= {Status.OK, Status.DRAINING}
        assert (self.lost, self.refused) == (0, [])


class Fleet:
    """Booted machines and the inventory that names them.

    Args:
        folder: for the inventory and the keys.
        wheel: what is installed.
    """

    def __init__(self, machines: dict[str, Machine], folder: Path, wheel: Path) -> None:
        self.machines = machines
        self.folder = folder
        self._wheel = wheel
        self._lock = folder / "base.lock"
        shutil.copy(LOCK, self._lock)
        self._models: dict[str, Path] = {}
        self._key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        public = self._key.with_suffix(".pub").read_text()
        for machine in machines.values():
            machine.write("/root/.ssh/authorized_keys", public)

    def inventory(self, name: str, model: Path, /, config: str = 'idle = "block"\n', **changes: Any) -> Path:
        """Write an inventory whose hosts serve `model`, with changes of its variables."""
        sha256 = sha256_of(model)
        self._models[name] = model
        instance = {
            "name": INSTANCE,
            "config": config,
            "models": [{"name": "lob", "file": str(model), "sha256": sha256}],
        }
        hosts = {
            name: {"ansible_ssh_common_args": _through(machine)} for name, machine in self.machines.items()
        }
        variables = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self._key),
            "sigd_wheel": str(self._wheel),
            "sigd_lock": "base.lock",
            "sigd_pip_arguments": ["--no-index", "--find-links", WHEELS],
            "sigd_clients": ["engine"],
            "sigd_instances": [instance],
            "sigd_gate_s": 1,
            "sigd_canary_s": 3,
            "sigd_canary_rows_min": 100,
            **changes,
        }
        place = self.path(name)
        place.write_text(json.dumps({"sigd": {"hosts": hosts, "vars": variables}}, indent=1))
        return place

    def start(self, playbook: str, inventory: Path, *options: str) -> subprocess.Popen[str]:
        """Begin to run a playbook."""
        return subprocess.Popen(
            [
                *(
                    str(Path(sys.executable).with_name("ansible-playbook")),
                    "--inventory",
                    str(inventory),
                    *options,
                ),
                str(ANSIBLE / f"{playbook}.yml"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
                "ANSIBLE_HOME": str(self.folder / "ansible"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_FORKS": "3",
                # The path of a socket has at most 107 bytes, and pytest's folders are deep.
                "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/tmp/sigd-fleet-{os.getpid()}",
            },
        )

    def play(self, playbook: str, inventory: Path, *options: str) -> tuple[int, str]:
        """Run a playbook; its exit code and what it said."""
        return finish(self.start(playbook, inventory, *options))

    def path(self, name: str) -> Path:
        """Of the inventory of that name."""
        return self.folder / f"{name}.json"

    def copy_release(self, machine: Machine, lock: str) -> None:
        """Have the release of the wheel and another lock there, by a copy of the one that is.

        pip would take half a minute for the same; where the role names it otherwise, pip does.
        """
        digests = sha256_of(self._wheel) + sha256_of(self.folder / lock)
        (old,) = (machine.here / RELEASES).iterdir()
        name = f"{self._wheel.name.split('-')[1]}-{hashlib.sha256(digests.encode()).hexdigest()[:12]}"
        new = shutil.copytree(old, old.with_name(name), symlinks=True)
        for script in (new / "bin").iterdir():
            if not script.is_symlink():
                script.write_bytes(script.read_bytes().replace(old.name.encode(), name.encode()))

    def sha256(self, name: str) -> str:
        """Of the model that an inventory names."""
        return sha256_of(self._models[name])

    def served(self) -> dict[str, str]:
        """The SHA-256 of what each host serves."""
        return {name: served_by(machine) for name, machine in self.machines.items()}


def sha256_of(file: Path) -> str:
    """As the inventory and the daemon tell it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def finish(playing: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a playbook; its exit code and what it said."""
    said, _ = playing.communicate(timeout=PLAYBOOK_S)
    return playing.returncode, said


def served_by(machine: Machine) -> str:
    """The SHA-256 of what a host serves."""
    status = json.loads(machine.said(COMMAND, "status", "--json", "--socket", SOCKET))
    return str(status["models"][0]["sha256"])


def changes_of(said: str) -> dict[str, int]:
    """How much a playbook changed on each host, by its recap."""
    recap = said.partition("PLAY RECAP")[2].splitlines()[1:]
    found = {}
    for line in recap:
        host, _, counts = line.partition(":")
        if counts:
            found[host.strip()] = int(dict(pair.split("=") for pair in counts.split())["changed"])
    return found


def started_accounts(machines: Sequence[Machine]) -> list[Account]:
    """One for each machine, under way."""
    accounts = [Account(machine) for machine in machines]
    for account in accounts:
        account.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while not all(account.answered for account in accounts):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return accounts


def _through(machine: Machine) -> str:
    """The server of OpenSSH in the machine, which has no network, by its standard input."""
    enter = f"nsenter --target {machine.leader} --all -- /usr/sbin/sshd -i"
    unknown = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    return f"{unknown} -o 'ProxyCommand={enter}'"
