"""Both ends of a tunnel on one machine, set up as docs/tunnel.md says: the daemon's service, sshd's, and the
tunnel's."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from tests.systemd.machine import COMMAND, PYTHON, Machine
from tests.systemd.prepare import ROOT

from sigd.wire.client import Client
from sigd.wire.errors import NoSharedMemory, Rejected, SessionClosed
from sigd.wire.status import RejectCode, Status

pytestmark = pytest.mark.systemd

PAGE = (ROOT / "docs/tunnel.md").read_text()
TUNNEL = "sigd-tunnel@inference-1.service"
SOCKET = "/run/sigd-tunnel/inference-1/sigd.sock"
SSH_CONFIG = """
Host inference-1
    HostName 127.0.0.1
    User sigd-tunnel
    IdentityFile /etc/sigd/tunnel/key
    UserKnownHostsFile /etc/sigd/tunnel/known_hosts
"""
ENGINE = f"""
import numpy as np
from sigd.wire.client import connect
with connect("{SOCKET}") as client:
    print(client.request(np.zeros(client.welcome.features, np.float32)).status)
"""


def ask(client: Client) -> int:
    """The status of one answer."""
    return int(client.request(np.zeros(client.welcome.features, np.float32)).status)


@pytest.fixture
def ends(machine: Machine) -> Machine:
    """The machine with a daemon, and both ends set up; the tunnel is not started."""
    machine.start_sigd()
    (sshd_config,) = re.findall(r"<!-- sshd_config: local -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    machine.write("/etc/ssh/sshd_config.d/sigd-tunnel.conf", sshd_config)
    (useradd,) = re.findall(r"^    (useradd .* --shell /bin/sh .*)$", PAGE, re.MULTILINE)
    machine.run(*useradd.split())
    machine.write("/etc/sigd/tunnel/ssh_config", SSH_CONFIG)
    machine.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/sigd/tunnel/key")
    machine.run("chown", "sigd-tunnel", "/etc/sigd/tunnel/key")
    public = machine.said("cat", "/etc/sigd/tunnel/key.pub")
    machine.write("/var/lib/sigd-tunnel/.ssh/authorized_keys", f"restrict,port-forwarding {public}\n")
    host_key = machine.said("cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    machine.write("/etc/sigd/tunnel/known_hosts", f"127.0.0.1 {host_key}\n")
    machine.run("systemctl", "restart", "ssh.service")
    unit = "systemd/sigd-tunnel@.service"
    machine.write(f"/etc/systemd/system/{unit.removeprefix('systemd/')}", (ROOT / unit).read_text())
    machine.run("systemctl", "daemon-reload")
    return machine


def test_it_is_started_when_the_socket_is_there(ends: Machine) -> None:
    ends.run("systemctl", "start", TUNNEL)
    with ends.connect(SOCKET) as client:
        assert ask(client) == Status.OK
    assert ends.show(TUNNEL, "NRestarts") == "0"


def test_its_group_may_connect(ends: Machine) -> None:
    ends.run("systemctl", "start", TUNNEL)
    ends.run("useradd", "--groups=sigd", "engine")
    ends.run("useradd", "outsider")
    python = (PYTHON, "-")
    assert ends.run("runuser", "-u", "engine", "--", *python, stdin=ENGINE).stdout == "0\n"
    done = ends.run("runuser", "-u", "outsider", "--", *python, check=False, stdin=ENGINE)
    assert "Permission denied" in done.stderr


def test_shared_memory_ends_with_a_reason(ends: Machine) -> None:
    """The service does not see other users' processes, so it is the client that finds out."""
    ends.run("systemctl", "start", TUNNEL)
    with pytest.raises(NoSharedMemory, match=r"forwarded \(SSH\?\)"):
        ends.connect(SOCKET, shared_memory=True)
    with ends.connect(SOCKET) as client:
        assert ask(client) == Status.OK


def test_it_comes_back(ends: Machine) -> None:
    ends.run("systemctl", "start", TUNNEL)
    with ends.connect(SOCKET) as client:
        assert ask(client) == Status.OK
        ends.run("systemctl", "kill", "--signal=SIGKILL", TUNNEL)
        with pytest.raises(SessionClosed):
            client.receive()
    ends.until(TUNNEL, "NRestarts", ["1"])
    ends.until(TUNNEL, "ActiveState", ["active"])
    with ends.connect(SOCKET) as client:
        assert ask(client) == Status.OK


def test_it_waits_for_a_server_that_is_not_there_yet(ends: Machine) -> None:
    ends.run("systemctl", "stop", "ssh.service", "ssh.socket", check=False)
    ends.run("systemctl", "start", "--no-block", TUNNEL)
    ends.until(TUNNEL, "NRestarts", ["1", "2"])
    assert "Connection refused" in ends.journal("--unit", TUNNEL)
    ends.run("systemctl", "start", "ssh.service")
    ends.until(TUNNEL, "ActiveState", ["active"])
    with ends.connect(SOCKET) as client:
        assert ask(client) == Status.OK


def test_a_stop_leaves_nothing(ends: Machine) -> None:
    ends.run("systemctl", "start", TUNNEL)
    ends.run("systemctl", "stop", TUNNEL)
    assert not (ends.here / SOCKET.lstrip("/")).parent.exists()
    deadline_s = time.monotonic() + 60
    while "sigd-tunnel" in ends.said("ps", "-eo", "user:20,args"):
        assert time.monotonic() < deadline_s, ends.said("ps", "-eo", "user:20,args")
        time.sleep(0.05)


def test_a_daemon_that_sees_sshd_refuses_shared_memory_itself(ends: Machine) -> None:
    ends.run(
        *("systemd-run", "--unit=plain", "--property=User=sigd", "--property=RuntimeDirectory=plain"),
        *(COMMAND, "serve", "--socket", "/run/plain/sigd.sock"),
    )
    dropin = "[Service]\nEnvironment=SIGD_REMOTE_SOCKET=/run/plain/sigd.sock\n"
    ends.write(f"/etc/systemd/system/{TUNNEL}.d/override.conf", dropin)
    ends.run("systemctl", "daemon-reload")
    deadline_s = time.monotonic() + 60
    while not (ends.here / "run/plain/sigd.sock").is_socket():
        assert time.monotonic() < deadline_s, ends.journal("--unit=plain")
        time.sleep(0.05)
    ends.run("systemctl", "start", TUNNEL)
    with pytest.raises(Rejected, match="cannot cross SSH: ask for transport 0") as caught:
        ends.connect(SOCKET, shared_memory=True)
    assert caught.value.code == RejectCode.TRANSPORT_UNAVAILABLE


def test_a_daemon_that_is_not_there_is_waited_for(ends: Machine) -> None:
    """The socket is systemd's, so a client that comes through the tunnel waits in it, and is what starts the
    daemon."""
    ends.run("systemctl", "start", TUNNEL)
    ends.run("systemctl", "stop", "sigd.service")
    with ends.connect(SOCKET) as client:
        assert ask(client) == Status.OK
    assert ends.show(TUNNEL, "NRestarts") == "0"
