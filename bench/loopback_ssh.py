"""A tunnel within one machine: an sshd and an ssh of our own on loopback, which forward a Unix socket.

Nothing of the machine's own SSH is used or changed: keys, configuration and port are made for the occasion,
and the user is the one that runs this.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sigd.bench.errors import MissingDependency, PeerFailed
from sigd.daemon.runtime.process import die_with_parent

_HOST: Final = "127.0.0.1"
_PRIVILEGE_SEPARATION: Final = Path("/run/sshd")
_START_TIMEOUT_S: Final = 20.0
_PORT_TRIES: Final = 5
SBIN: Final = ("/usr/sbin", "/usr/local/sbin", "/sbin")

SERVER: Final = ("AllowStreamLocalForwarding local", "ForceCommand cat", "IPQoS af21")
"""What the daemon's end of a tunnel allows; docs/tunnel.md has the rest."""
CLIENT: Final = (
    "-T",
    *("-o", "ExitOnForwardFailure=yes"),
    *("-o", "IPQoS=af21"),
    *("-o", "Compression=no"),
    *("-o", "Ciphers=^aes128-gcm@openssh.com"),
)
"""As in systemd/sigd-tunnel@.service, as far as it has to do with time."""


def find_programs() -> dict[str, str]:
    """The paths of sshd, ssh and ssh-keygen. Raises MissingDependency where one is missing."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *SBIN))
    packages = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
    found = {}
    for program, package in packages.items():
        where = shutil.which(program, path=path)
        if where is None:
            raise MissingDependency(
                f"a tunnel needs {program}, and there is none (Debian: apt install {package})"
            )
        # sshd wants to be called by its whole path.
        found[program] = os.path.abspath(where)
    return found


class OwnSshd:
    """An sshd on loopback that lets its own key in, for use in a `with` block; leaving the block stops it.

    Attributes:
        folder: where its files are; gone with it.
        port: where it listens.
        user: whom to log in as.
    """

    def __init__(self, lines: Sequence[str] = SERVER, key_options: str = "restrict,port-forwarding") -> None:
        """
        Args:
            lines: of its configuration, besides what it cannot do without.
            key_options: before the key in authorized_keys.

        Raises:
            MissingDependency: there is no OpenSSH here.
            PeerFailed: it did not start; the message has its words.
        """
        self._programs = find_programs()
        self._directory = tempfile.TemporaryDirectory(prefix="sigd-ssh-")
        self.folder = Path(self._directory.name)
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        try:
            self._make_keys(key_options)
            self._start(lines)
        except BaseException:
            self._directory.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop it; the tunnels through it end."""
        _end(self._process)
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def login(self) -> list[str]:
        """The command that logs in, to be followed by options and a command; no other configuration
        counts."""
        return [
            self._programs["ssh"],
            *("-F", str(self.folder / "ssh_config")),
            *("-o", "BatchMode=yes"),
        ]

    def said(self) -> str:
        """Its log."""
        return (self.folder / "log").read_text(errors="replace")

    def _make_keys(self, key_options: str) -> None:
        for name in ("host", "key"):
            subprocess.run(
                [
                    self._programs["ssh-keygen"],
                    "-q",
                    "-t",
                    "ed25519",
                    "-N",
                    "",
                    "-f",
                    str(self.folder / name),
                ],
                check=True,
                stdin=subprocess.DEVNULL,
            )
        public = (self.folder / "key.pub").read_text()
        (self.folder / "authorized_keys").write_text(f"{key_options} {public}")

    def _start(self, lines: Sequence[str]) -> None:
        if os.geteuid() == 0:
            # Else it is made when the machine's own sshd is started.
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        for _ in range(_PORT_TRIES):
            self.port = _free_port()
            self._configure(lines)
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self._programs["sshd"], "-D", "-e", "-f", str(self.folder / "sshd_config")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  as for the daemon
                )
            if self._wait_until_it_listens():
                return
        raise PeerFailed(f"no sshd could be started:\n{self.said()[-2000:]}")

    def _configure(self, lines: Sequence[str]) -> None:
        folder = self.folder
        (folder / "sshd_config").write_text(
            "\n".join(
                [
                    f"Port {self.port}",
                    f"ListenAddress {_HOST}",
                    f"HostKey {folder}/host",
                    f"AuthorizedKeysFile {folder}/authorized_keys",
                    # The folder lies in a directory that every user may write to.
                    "StrictModes no",
                    "UsePAM no",
                    "PidFile none",
                    "AuthenticationMethods publickey",
                    "LogLevel VERBOSE",
                    *lines,
                    "",
                ]
            )
        )
        host_key = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text(f"[{_HOST}]:{self.port} {host_key}")
        (folder / "ssh_config").write_text(
            "\n".join(
                [
                    "Host loopback",
                    f"    HostName {_HOST}",
                    f"    Port {self.port}",
                    f"    User {self.user}",
                    f"    IdentityFile {folder}/key",
                    "    IdentitiesOnly yes",
                    f"    UserKnownHostsFile {folder}/known_hosts",
                    "    StrictHostKeyChecking yes",
                    "",
                ]
            )
        )

    def _wait_until_it_listens(self) -> bool:
        """False where it ended instead: another process may have been quicker at the port."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                return False
            try:
                with socket.create_connection((_HOST, self.port), timeout=1) as probe:
                    if probe.recv(4) == b"SSH-":
                        return True
            except OSError:
                time.sleep(0.02)
        _end(self._process)
        return False


class OwnTunnel:
    """An ssh that forwards a socket of its own to `target`, for use in a `with` block.

    Attributes:
        socket_path: where it listens.
    """

    def __init__(self, sshd: OwnSshd, target: str, *, session: bool = True) -> None:
        """
        Args:
            target: the socket at the server's end.
            session: open one, without which sshd leaves Nagle's algorithm on, see docs/tunnel.md; False is
                `ssh -N`.

        Raises:
            PeerFailed: it came to nothing; the message has its words.
        """
        self.socket_path = str(sshd.folder / f"tunnel-{len(list(sshd.folder.glob('tunnel-*')))}.sock")
        self._sshd = sshd
        self._said = Path(self.socket_path + ".log")
        forward = ["-L", f"{self.socket_path}:{target}", "loopback"]
        command = [*sshd.login, *CLIENT, *([] if session else ["-N"]), *forward]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # never written to: its end would be the session's
                stdout=said,
                stderr=said,
                preexec_fn=die_with_parent,  # noqa: PLW1509  as for the daemon
            )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; the connections through it end."""
        _end(self._process)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _wait_until_it_listens(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not Path(self.socket_path).is_socket():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                said = self._said.read_text(errors="replace")
                raise PeerFailed(f"no tunnel was made:\n{said}{self._sshd.said()[-2000:]}")
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
