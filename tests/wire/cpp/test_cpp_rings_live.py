"""The C++ client and the rings of the Python side as two processes that sleep and wake each other."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.wire.conftest import CppBuilder
    from tests.wire.cpp.conftest import DaemonProcess

BACKOFF, BLOCK = "1", "2"


def _stress(
    cpp: CppBuilder, request: pytest.FixtureRequest, path: str, idle: str, requests: int, in_flight: int
) -> None:
    program = cpp.build(request.path.with_name("stress.cpp"), "-O2")
    command = [str(program), path, "1", idle, str(requests), str(in_flight)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert (done.returncode, done.stdout) == (0, f"{requests} answers\n")


@pytest.mark.parametrize("in_flight", [1, 2, 64])
@pytest.mark.parametrize("idle", [BACKOFF, BLOCK])
def test_every_frame_arrives_whole_once_and_in_order(
    cpp: CppBuilder, request: pytest.FixtureRequest, ring_peer: DaemonProcess, idle: str, in_flight: int
) -> None:
    _stress(cpp, request, ring_peer.path, idle, 5_000, in_flight)


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [1, 7, 64])
def test_no_wake_up_is_lost_in_a_long_run(
    cpp: CppBuilder, request: pytest.FixtureRequest, ring_peer: DaemonProcess, in_flight: int
) -> None:
    _stress(cpp, request, ring_peer.path, BLOCK, 300_000, in_flight)


@pytest.mark.parametrize("transport", ["stream", "shared memory"])
def test_nothing_is_allocated_after_connect(
    cpp: CppBuilder, request: pytest.FixtureRequest, live_daemon: DaemonProcess, transport: str
) -> None:
    program = cpp.build(request.path.with_name("no_alloc.cpp"), "-O2", "-fno-exceptions")
    number = "0" if transport == "stream" else "1"
    done = subprocess.run([program, live_daemon.path, number], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"the session has ended, and every request was answered\n")
