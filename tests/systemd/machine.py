"""A machine that is booted for one test: systemd as PID 1 in a container, on a root that forgets all when it
ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.systemd.prepare import keep_unit

from sigd.wire.client import Client, connect

PATIENCE_S = 60.0
"""How long anything may take before the test gives up; no test waits for it."""
COMMAND = "/opt/sigd/bin/sigd"
PYTHON = "/opt/sigd/bin/python"
SOCKET = "/run/sigd/sigd.sock"


class Machine:
    """For use in a `with` block, which boots it and switches it off.

    Attributes:
        here: the machine's files as they are seen from outside, its sockets among them.
        leader: its first process, as it is numbered outside; 0 before it is booted.
    """

    here: Path
    leader: int

    def __init__(self, root: Path, folder: Path, *options: str) -> None:
        """
        Args:
            root: what it boots; nothing is written there.
            folder: for what it says on its console.
            options: more for systemd-nspawn.
        """
        self._root = root
        self._folder = folder
        self._options = options
        self.leader = 0

    def __enter__(self) -> Self:
        told = self._folder / "notify"
        console = self._folder / "console"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, console.open("wb") as output:
            notified.bind(str(told))
            notified.settimeout(PATIENCE_S)
            self._nspawn = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--register=no", *keep_unit(), "--private-network"),
                    # mlockall() is what the daemon wants of a machine that has more rights than a container.
                    *("--volatile=overlay", "--capability=CAP_IPC_LOCK", "--notify-ready=yes"),
                    *self._options,
                    *(f"--directory={self._root}", "--boot", "--console=pipe"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": str(told),
                    # Not the host's way of cgroups, but the one that systemd wants.
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                },
            )
            said = ""
            while "READY=1" not in said:
                try:
                    said += notified.recv(4096).decode() + "\n"
                except TimeoutError:
                    self._nspawn.kill()
                    raise AssertionError(f"it did not boot: {console.read_text()}") from None
        (self.leader,) = {
            int(line.partition("=")[2])
            for line in said.splitlines()
            if line.startswith("X_NSPAWN_LEADER_PID=")
        }
        self.here = Path(f"/proc/{self.leader}/root")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # SIGRTMIN+4: power off.
        with suppress(ProcessLookupError):
            os.kill(self.leader, signal.SIGRTMIN + 4)
        try:
            self._nspawn.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()

    def vanish(self) -> None:
        """As when the power fails: nothing is said, nothing is kept."""
        self._nspawn.kill()
        os.kill(self.leader, signal.SIGKILL)
        self._nspawn.wait()

    # -- as its operator ---------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it as root."""
        done = subprocess.run(
            ["nsenter", f"--target={self.leader}", "--all", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "COLUMNS": "160", "LANG": "C.UTF-8"},
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.journal()}"
        return done

    def said(self, *command: str) -> str:
        """What a command says that ends well."""
        return self.run(*command).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.said("systemctl", "show", "--value", f"--property={name}", unit)

    def journal(self, *options: str) -> str:
        """What the journal says of sigd's units."""
        return self.run("journalctl", "--no-pager", "--output=cat", *options, check=False).stdout

    def write(self, path: str, text: str) -> None:
        """Put a file there."""
        place = self.here / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def start_sigd(self, *options: str, configuration: str = "") -> None:
        """Install and start it."""
        if configuration:
            self.write("/etc/sigd/sigd.toml", configuration)
        self.run(COMMAND, "install-service", "--enable", *options)

    def daemon_pid(self) -> int:
        """The daemon's main process, as it is numbered outside."""
        inside = self.show("sigd.service", "MainPID")
        processes = self.here / "sys/fs/cgroup/system.slice/sigd.service/cgroup.procs"
        (pid,) = (int(pid) for pid in processes.read_text().split() if _number_inside(pid) == inside)
        return pid

    def until(self, unit: str, name: str, wanted: Sequence[str]) -> str:
        """Wait until a unit's property is as wanted."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (value := self.show(unit, name)) not in wanted:
            assert time.monotonic() < deadline_s, f"{unit} {name}={value}: {self.journal()}"
            time.sleep(0.05)
        return value

    def kill_daemon(self) -> None:
        """SIGKILL; back when it is gone, and with it its connections."""
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.001)

    # -- as an engine ------------------------------------------------------------------------------------

    def connect(self, path: str = SOCKET, **asked: Any) -> Client:
        """A client on this side of the socket."""
        return connect(self.here / path.lstrip("/"), **{"timeout_s": PATIENCE_S, **asked})


def _number_inside(pid: str) -> str:
    """How a process of this side is numbered where it lives."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (numbers,) = (line for line in status if line.startswith("NSpid:"))
    return numbers.split()[-1]
