"""A daemon through a real sshd on loopback: what works, what is refused, and what docs/tunnel.md says of
both."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.bench.errors import MissingDependency
from sigd.bench.loopback_ssh import SERVER, OwnSshd, OwnTunnel, find_programs
from sigd.wire.client import Client, connect
from sigd.wire.errors import ConnectFailed, NoSharedMemory, Rejected, SessionClosed, SessionError
from sigd.wire.messages import Hello
from sigd.wire.schema.cpp_header import include_dir
from sigd.wire.status import RejectCode, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tunnel.md").read_text()
UNIT = ROOT / "systemd/sigd-tunnel@.service"
PATIENCE_S = 60.0
ROUNDING = 2e-6
"""A row alone and in a batch are added up in another order; outputs are near 1."""

StartSshd = Callable[..., OwnSshd]


@pytest.fixture
def start_sshd() -> Iterator[StartSshd]:
    """Starts sshds: see OwnSshd."""
    try:
        find_programs()
    except MissingDependency as error:
        pytest.skip(str(error))
    started: list[OwnSshd] = []

    def start(lines: Sequence[str] = SERVER, key_options: str = "restrict,port-forwarding") -> OwnSshd:
        started.append(OwnSshd(lines, key_options))
        return started[-1]

    yield start
    for sshd in started:
        sshd.close()


@pytest.fixture
def daemon(start_daemon: StartDaemon, models: ModelMaker) -> Daemon:
    return start_daemon("--model", str(models.copied(4)))


def through(path: str, **asked: object) -> Client:
    return connect(path, **{"timeout_s": PATIENCE_S, **asked})  # type: ignore[arg-type]


def options_of(direction: str) -> list[str]:
    """The sshd_config that the page gives, for the user who runs this."""
    (block,) = re.findall(rf"<!-- sshd_config: {direction} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    match, *lines = block.strip().splitlines()
    assert match.split() == ["Match", "User", "sigd-tunnel"]
    return ["Match all", *(line.strip() for line in lines)]


# What works


def in_flight(
    client: Client, rows: np.ndarray[Any, np.dtype[np.float32]]
) -> np.ndarray[Any, np.dtype[np.void]]:
    """The answers to all rows, as many of them unanswered at a time as may be."""
    most = client.welcome.in_flight_max
    parts = []
    for first in range(0, len(rows), most):
        sequences = client.send_many(rows[first : first + most])
        parts.append(client.receive_many(len(sequences)))
        assert parts[-1]["sequence"].tolist() == sequences.tolist()
    return np.concatenate(parts)


def test_answers_come_in_order_with_the_shipped_model(
    start_sshd: StartSshd, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    rows = np.random.default_rng(1).standard_normal((2000, 64)).astype(np.float32)
    with daemon.connect() as client:
        expected = in_flight(client, rows)["outputs"]
    with OwnTunnel(start_sshd(), str(daemon.socket)) as tunnel, through(tunnel.socket_path) as client:
        assert client.welcome.daemon_pid == daemon.process.pid
        lone = [client.request(row).outputs for row in rows[:20]]
        answers = in_flight(client, rows)
        assert client.heartbeat() > 0
        assert len(client.goodbye()) == 0
    assert (answers["status"] == Status.OK).all()
    assert np.abs(answers["outputs"] - expected).max() < ROUNDING
    assert np.abs(np.array(lone) - expected[:20]).max() < ROUNDING


def test_many_clients_share_a_tunnel(start_sshd: StartSshd, daemon: Daemon) -> None:
    with OwnTunnel(start_sshd(), str(daemon.socket)) as tunnel:
        clients = [through(tunnel.socket_path) for _ in range(8)]
        for turn in range(50):
            for number, client in enumerate(clients):
                client.send([number, turn, 0, 0])
            for number, client in enumerate(clients):
                assert client.receive().outputs[:2].tolist() == [number, turn]
        for client in clients:
            client.close()


# What ends


def test_the_end_of_the_tunnel_is_the_sessions(start_sshd: StartSshd, daemon: Daemon) -> None:
    sshd = start_sshd()
    with OwnTunnel(sshd, str(daemon.socket)) as tunnel:
        client = through(tunnel.socket_path)
        assert client.request([1, 2, 3, 4]).status == Status.OK
        daemon.process.send_signal(signal.SIGSTOP)
        client.send([1, 2, 3, 4])
        tunnel.close()
        with pytest.raises(SessionClosed, match="1 requests are unanswered"):
            client.receive()
        client.close()
        daemon.process.send_signal(signal.SIGCONT)
        with pytest.raises(ConnectFailed):
            through(tunnel.socket_path)
    daemon.until(lambda status: status.connections_open == 0)
    with OwnTunnel(sshd, str(daemon.socket)) as again, through(again.socket_path) as client:
        assert client.request([1, 2, 3, 4]).status == Status.OK


def test_a_daemon_that_comes_back_is_reached_through_the_same_tunnel(
    start_sshd: StartSshd, start_daemon: StartDaemon, models: ModelMaker
) -> None:
    model = str(models.copied(4))
    old = start_daemon("--model", model)
    with OwnTunnel(start_sshd(), str(old.socket)) as tunnel:
        with through(tunnel.socket_path) as client:
            assert old.stop() == 0
            with pytest.raises(SessionClosed):
                client.receive()
        with pytest.raises(SessionError, match="before"):
            through(tunnel.socket_path)
        start_daemon("--model", model, folder=old.folder)
        with through(tunnel.socket_path) as client:
            assert client.request([1, 2, 3, 4]).status == Status.OK


# Shared memory


def test_shared_memory_is_refused_by_a_daemon_that_sees_sshd(start_sshd: StartSshd, daemon: Daemon) -> None:
    with OwnTunnel(start_sshd(), str(daemon.socket)) as tunnel:
        with pytest.raises(Rejected, match="cannot cross SSH: ask for transport 0") as caught:
            through(tunnel.socket_path, shared_memory=True)
        assert caught.value.code == RejectCode.TRANSPORT_UNAVAILABLE
        with through(tunnel.socket_path) as client:
            assert client.request([1, 2, 3, 4]).status == Status.OK


class Blind:
    """A relay of another name before the daemon, as a forwarder looks that the daemon does not know: what it
    passes on is bytes, and the descriptors that came with them are closed by the kernel."""

    def __init__(self, path: Path, target: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._target = target

    def relay_a_handshake(self) -> None:
        """Of the one client that comes, and see it leave."""
        with self._listener, socket.socket(socket.AF_UNIX) as daemon:
            connection, _ = self._listener.accept()
            with connection:
                daemon.connect(str(self._target))
                daemon.sendall(connection.recv(80, socket.MSG_WAITALL))
                connection.sendall(daemon.recv(128, socket.MSG_WAITALL))
                connection.recv(1)


def test_where_the_daemon_cannot_tell_the_client_does(
    start_sshd: StartSshd, daemon: Daemon, tmp_path: Path
) -> None:
    blind = Blind(tmp_path / "blind.sock", daemon.socket)
    relaying = Thread(target=blind.relay_a_handshake)
    relaying.start()
    with OwnTunnel(start_sshd(), str(tmp_path / "blind.sock")) as tunnel:
        with pytest.raises(NoSharedMemory, match=r"forwarded \(SSH\?\).*connect with the stream transport"):
            through(tunnel.socket_path, shared_memory=True)
        relaying.join()
    daemon.until(lambda status: status.connections_open == 0)


def test_the_cpp_client_is_told_too(start_sshd: StartSshd, daemon: Daemon, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ (Debian: apt install g++)")
    source = tmp_path / "ask.cpp"
    source.write_text(
        """
        #include <cstdio>
        #include <sigd/sigd.hpp>
        int main(int, char** argv) {
            sigd::Client client;
            sigd::Spec spec;
            spec.path = argv[1];
            spec.transport = sigd::wire::Transport::shared_memory;
            (void)client.connect(spec);
            std::puts(client.error().text);
        }
        """
    )
    program = str(tmp_path / "ask")
    subprocess.run([compiler, "-std=c++20", "-I", include_dir(), "-o", program, str(source)], check=True)
    with OwnTunnel(start_sshd(), str(daemon.socket)) as tunnel:
        done = subprocess.run([program, tunnel.socket_path], capture_output=True, text=True, check=True)
    assert "shared memory cannot cross SSH: ask for transport 0 (stream) (code 6" in done.stdout


# What the page says


def may(sshd: OwnSshd, *options: str, listens_at: str) -> bool:
    """Whether a forward works: options of ssh that make one to a server which says SSH-, and where it
    listens."""
    process = subprocess.Popen(
        [*sshd.login, "-T", "-o", "ExitOnForwardFailure=yes", *options, "loopback"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline_s:
            reached = _reach(listens_at)
            if reached is not None:
                return reached
            time.sleep(0.02)
        return False
    finally:
        # Told to end, it may miss that and wait for its peer to say something.
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _reach(listens_at: str) -> bool | None:
    """None where no process listens yet."""
    is_path = listens_at.startswith("/")
    with socket.socket(socket.AF_UNIX if is_path else socket.AF_INET) as probe:
        probe.settimeout(PATIENCE_S)
        try:
            probe.connect(listens_at if is_path else ("127.0.0.1", int(listens_at)))
        except OSError:
            return None
        try:
            if is_path:
                probe.sendall(Hello().encode())
            return len(probe.recv(4)) == 4
        except OSError:
            return False


@pytest.fixture
def forwards(daemon: Daemon, tmp_path: Path) -> Callable[[OwnSshd], dict[str, bool]]:
    """forwards(sshd): which kinds it lets through."""

    def find(sshd: OwnSshd) -> dict[str, bool]:
        near, far = str(tmp_path / "near"), str(tmp_path / "far")
        ports = [_free_port(), _free_port()]
        target = f"127.0.0.1:{sshd.port}"
        return {
            "-L unix": may(sshd, "-L", f"{near}:{daemon.socket}", listens_at=near),
            "-R unix": may(sshd, "-R", f"{far}:{daemon.socket}", listens_at=far),
            "-L tcp": may(sshd, "-L", f"127.0.0.1:{ports[0]}:{target}", listens_at=str(ports[0])),
            "-R tcp": may(sshd, "-R", f"127.0.0.1:{ports[1]}:{target}", listens_at=str(ports[1])),
        }

    return find


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_what_the_daemons_host_allows(
    start_sshd: StartSshd, forwards: Callable[[OwnSshd], dict[str, bool]]
) -> None:
    found = forwards(start_sshd(options_of("local")))
    assert found == {"-L unix": True, "-R unix": False, "-L tcp": True, "-R tcp": False}


def test_what_the_engines_host_allows_the_other_way_round(
    start_sshd: StartSshd, forwards: Callable[[OwnSshd], dict[str, bool]]
) -> None:
    found = forwards(start_sshd(options_of("remote")))
    assert found == {"-L unix": False, "-R unix": True, "-L tcp": False, "-R tcp": False}


@pytest.mark.parametrize(
    ("lines", "key_options"),
    [
        (["AllowTcpForwarding no"], "restrict,port-forwarding"),
        (["AllowTcpForwarding remote"], "restrict,port-forwarding"),
        (["PermitOpen none"], "restrict,port-forwarding"),
        (["PermitOpen 127.0.0.1:1"], "restrict,port-forwarding"),
        ([], 'restrict,port-forwarding,permitopen="127.0.0.1:1"'),
        ([], "restrict"),
    ],
)
def test_what_takes_tcp_away_takes_unix_sockets_away(
    start_sshd: StartSshd, daemon: Daemon, tmp_path: Path, lines: list[str], key_options: str
) -> None:
    sshd = start_sshd([*SERVER, *lines], key_options)
    near = str(tmp_path / "near")
    assert not may(sshd, "-L", f"{near}:{daemon.socket}", listens_at=near)


@pytest.mark.parametrize("direction", ["local", "remote"])
def test_no_client_gets_a_shell(start_sshd: StartSshd, direction: str) -> None:
    sshd = start_sshd(options_of(direction))
    done = subprocess.run(
        [*sshd.login, "loopback", "echo in"], input="echoed", capture_output=True, text=True, check=True
    )
    assert done.stdout == "echoed", "it is cat, whatever was asked for"


def test_the_socket_of_the_other_way_round_is_replaced_and_for_user_and_group(
    start_sshd: StartSshd, daemon: Daemon, tmp_path: Path
) -> None:
    sshd = start_sshd(options_of("remote"))
    far = tmp_path / "far"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(far))
    assert may(sshd, "-R", f"{far}:{daemon.socket}", listens_at=str(far))
    assert stat.S_IMODE(far.stat().st_mode) == 0o660


# The unit


def unit_lines(name: str) -> list[str]:
    """What a setting of the unit says, its continued lines joined."""
    text = UNIT.read_text().replace("\\\n", "")
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def unit_command(name: str, instance: str, configuration: Path) -> list[str]:
    """A command of the unit as systemd would run it, but with another ssh_config."""
    (line,) = unit_lines(name)
    words = shlex.split(line.replace("%i", instance))
    return [
        word.replace("$$", "$").replace("/etc/sigd/tunnel/ssh_config", str(configuration)) for word in words
    ]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze (Debian: apt install systemd)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    (tmp_path / UNIT.name).write_text(UNIT.read_text())
    instance = tmp_path / UNIT.name.replace("@", "@inference-1")
    instance.symlink_to(UNIT.name)
    done = analyze("verify", str(instance))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_units_exposure_is_low(tmp_path: Path) -> None:
    instance = tmp_path / UNIT.name.replace("@", "@inference-1")
    instance.write_text(UNIT.read_text())
    done = analyze("security", "--offline=true", "--threshold=15", "--no-pager", str(instance))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


def test_the_units_command_makes_a_tunnel(start_sshd: StartSshd, daemon: Daemon, tmp_path: Path) -> None:
    sshd = start_sshd(options_of("local"))
    configuration = sshd.folder / "ssh_config"
    environment = {
        **os.environ,
        "RUNTIME_DIRECTORY": str(tmp_path),
        "SIGD_REMOTE_SOCKET": str(daemon.socket),
    }
    start = unit_command("ExecStart", "loopback", configuration)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(start, stdin=subprocess.DEVNULL, stderr=log, env=environment)
    try:
        ready = unit_command("ExecStartPost", "loopback", configuration)
        subprocess.run(ready, env=environment, check=True, timeout=PATIENCE_S)
        near = tmp_path / "sigd.sock"
        assert stat.S_IMODE(near.stat().st_mode) == 0o660
        with through(str(near)) as client:
            assert client.request([1, 2, 3, 4]).status == Status.OK
            assert process.poll() is None, "its input does not end"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    assert (tmp_path / "log").read_text() == ""


def test_a_host_that_is_another_ends_the_units_command(
    start_sshd: StartSshd, daemon: Daemon, tmp_path: Path
) -> None:
    sshd = start_sshd(options_of("local"))
    known_hosts = sshd.folder / "known_hosts"
    _, key_type, _ = known_hosts.read_text().split(maxsplit=2)
    other = (sshd.folder / "key.pub").read_text().split()[1]
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {key_type} {other}\n")
    done = subprocess.run(
        unit_command("ExecStart", "loopback", sshd.folder / "ssh_config"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path), "SIGD_REMOTE_SOCKET": str(daemon.socket)},
        check=False,
    )
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr
    assert not (tmp_path / "sigd.sock").exists()


def test_the_pages_options_are_the_units() -> None:
    """What the table explains is what is given, and what is given about a tunnel is explained."""
    (command,) = unit_lines("ExecStart")
    (table,) = re.findall(r"\| option \| \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    explained = set(re.findall(r"`(\w+)(?:=[^`]*)?`", table)) - {"Restart", "RestartSec"}
    given = set(re.findall(r"-o (\w+)=", command))
    assert explained <= given
    assert given - explained == {
        *("ControlMaster", "ControlPath", "ForwardAgent", "PermitLocalCommand"),
        "ConnectTimeout",
    }
    assert unit_lines("Restart") == ["always"]
    assert unit_lines("RestartSec") == ["2"]
    assert "-N" not in command.split()


# The session

_PIDFD_GETFD = 438


def nodelay_of(sshd: OwnSshd) -> set[bool]:
    """Whether Nagle's algorithm is off, of sshd's connections with ssh: asked of copies of its own
    descriptors."""
    found = set()
    for pid in descendants_of(sshd.pid):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it was one that came and went
            found |= {
                bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                for connection in sockets_of(pid)
                if connection.family == socket.AF_INET and connection.getsockname()[1] == sshd.port
            }
    return found


def sockets_of(pid: int) -> Iterator[socket.socket]:
    """Copies of a process's sockets, each closed when the next is asked for."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            copy = libc.syscall(_PIDFD_GETFD, process, int(name), 0)
            if copy < 0 and ctypes.get_errno() == errno.EBADF:
                continue  # it was closed meanwhile
            if copy < 0:
                pytest.skip(f"may not look into sshd here: {os.strerror(ctypes.get_errno())}")
            if stat.S_ISSOCK(os.fstat(copy).st_mode):
                with socket.socket(fileno=copy) as connection:
                    yield connection
            else:
                os.close(copy)
    finally:
        os.close(process)


def descendants_of(pid: int) -> set[int]:
    """The processes that it started, and those that they did."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_the_session_keeps_answers_from_waiting_for_acknowledgements(
    start_sshd: StartSshd, daemon: Daemon
) -> None:
    sshd = start_sshd()
    with OwnTunnel(sshd, str(daemon.socket)) as tunnel, through(tunnel.socket_path):
        assert nodelay_of(sshd) == {True}


def test_the_session_leaves_no_process_behind(start_sshd: StartSshd, daemon: Daemon) -> None:
    sshd = start_sshd()
    with OwnTunnel(sshd, str(daemon.socket)) as tunnel, through(tunnel.socket_path):
        assert descendants_of(sshd.pid)
    deadline_s = time.monotonic() + PATIENCE_S
    while descendants_of(sshd.pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
