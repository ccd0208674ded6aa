"""The C++ client under sanitizers: each program ends with an error at the first finding, and must not."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.wire.schema.cpp_header import package_dir

if TYPE_CHECKING:
    from tests.wire.conftest import CppBuilder
    from tests.wire.cpp.conftest import DaemonProcess

MEMORY, THREADS = "address,undefined", "thread"


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [MEMORY, THREADS])
@pytest.mark.parametrize("transport", ["stream", "shared_memory"])
def test_several_clients(cpp: CppBuilder, live_daemon: DaemonProcess, transport: str, kinds: str) -> None:
    program = cpp.build(package_dir() / "examples" / "soak.cpp", *cpp.sanitized(kinds))
    options = ["--clients", "3", "--requests", "10000", "--session", "3000", "--idle", "backoff"]
    done = _run(program, live_daemon.path, "--transport", transport, *options)
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout)
    assert (tally["ok"], tally["lost"], tally["sessions"]) == (30_000, 0, 12)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [MEMORY, THREADS])
def test_both_ends_of_the_rings(cpp: CppBuilder, request: pytest.FixtureRequest, kinds: str) -> None:
    program = cpp.build(request.path.with_name("ring_threads.cpp"), *cpp.sanitized(kinds))
    for slots in ("1", "4", "64"):
        done = _run(program, "50000", slots)
        assert (done.returncode, done.stdout, done.stderr) == (0, "50000 answers\n", "")


@pytest.mark.slow
def test_the_engine_on_io_uring(cpp: CppBuilder, live_daemon: DaemonProcess, tmp_path: Path) -> None:
    if not Path("/usr/include/liburing.h").exists():
        pytest.skip("needs liburing (Debian: apt install liburing-dev)")
    flags = cpp.sanitized(MEMORY)
    program = cpp.build(package_dir() / "examples" / "uring_engine.cpp", *flags, "-luring")
    arrivals = tmp_path / "arrivals.i64"
    arrivals.write_bytes(struct.pack("<4000q", *(index // 100 * 2_000_000 for index in range(4000))))
    done = _run(program, live_daemon.path, str(arrivals), "3")
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("4000 requests over 3 connections, 0 not OK")
