"""A forwarder is known by the name of its process, and shared memory is refused to it before anything is
made."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sigd.daemon.transport import ssh_forwarding as forwarded
from sigd.daemon.transport.ssh_forwarding import why_not_shared_memory
from sigd.wire.messages import Hello, Reject
from sigd.wire.status import RejectCode, Transport

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig

    from sigd.daemon.serving.ports import Rings
    from sigd.daemon.serving.session import Session

_PR_SET_NAME = 15
_CALLED = f"""
import ctypes, sys
ctypes.CDLL(None).prctl({_PR_SET_NAME}, sys.argv[1].encode("utf-8", "surrogateescape"))
print("called", flush=True)
sys.stdin.read()
"""


def asked_of(name: str) -> str:
    """What is said of a process that calls itself so."""
    command = [sys.executable, "-I", "-S", "-c", _CALLED, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"called\n"
        return why_not_shared_memory(process.pid)


@pytest.mark.parametrize(
    ("name", "forwarder"),
    [
        ("sshd", "SSH"),
        ("sshd-session", "SSH"),
        ("ssh", "SSH"),
        ("dropbear", "SSH"),
        ("dbclient", "SSH"),
        ("socat", "socat"),
        ("systemd-socket-proxyd", "a proxy"),
    ],
)
def test_a_forwarder_is_told_why_not(name: str, forwarder: str) -> None:
    said = asked_of(name)
    assert said == f"shared memory cannot cross {forwarder}: ask for transport 0 (stream)"
    assert Reject.decode(Reject(6, said).encode()[8:]).reason == said, "it fits, whole"


@pytest.mark.parametrize("name", ["engine", "sshd2", "SSHD", "ssh-agent", "", "\udcff\udcfe", "sshd "])
def test_every_other_name_is_not(name: str) -> None:
    assert asked_of(name) == ""


def test_this_process_is_none() -> None:
    assert why_not_shared_memory(os.getpid()) == ""


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1])
def test_a_process_that_cannot_be_seen_may_be_anybody(pid: int) -> None:
    """0 is what the kernel says of a peer in another PID namespace."""
    assert why_not_shared_memory(pid) == ""


def test_every_name_is_one_that_a_process_can_have() -> None:
    libc = ctypes.CDLL(None)
    own = ctypes.create_string_buffer(16)
    libc.prctl(16, own)
    try:
        for name in forwarded._FORWARDERS:
            libc.prctl(_PR_SET_NAME, name.encode())
            with open("/proc/thread-self/comm") as file:
                assert file.read() == f"{name}\n"
    finally:
        libc.prctl(_PR_SET_NAME, own)


def _no_rings(_session: Session, _ring_slots: int, _features: int) -> Rings:
    raise AssertionError("rings are made")


def test_a_session_asks_its_peer_before_it_makes_rings(rig: Rig) -> None:
    client = rig.client(_no_rings)
    client.no_descriptors = "shared memory cannot cross SSH: ask for transport 0 (stream)"
    client.write(Hello(transport=Transport.SHARED_MEMORY).encode())
    client.deliver()
    assert client.raw == Reject(RejectCode.TRANSPORT_UNAVAILABLE, client.no_descriptors).encode()
    assert client.finished


def test_a_stream_needs_no_descriptors(rig: Rig) -> None:
    client = rig.client(_no_rings)
    client.no_descriptors = "shared memory cannot cross SSH: ask for transport 0 (stream)"
    client.write(Hello().encode())
    client.deliver()
    assert client.session.serving
