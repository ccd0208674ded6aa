"""The examples, built as a user would and run against a daemon."""

from __future__ import annotations

import gzip
import json
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from tests.wire.cpp.conftest import DaemonProcess

from sigd.wire.schema.cpp_header import package_dir

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.wire.conftest import CppBuilder

EXAMPLES = package_dir() / "examples"


def run(program: Path, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """An example to its end."""
    command = [str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def soaked(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a soak run says, every number of it accounted for."""
    assert done.returncode == 0, done.stderr
    tally: dict[str, Any] = json.loads(done.stdout)
    assert tally["sent"] == tally["answered"] + tally["lost"]
    return tally


def test_the_minimal_client_is_minimal_and_works(cpp: CppBuilder, live_daemon: DaemonProcess) -> None:
    assert len((EXAMPLES / "minimal.cpp").read_text().splitlines()) < 60
    done = run(cpp.build(EXAMPLES / "minimal.cpp"), live_daemon.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith(": 8 features, 3 outputs")
    assert [line.split(":")[0] for line in lines[1:]] == [f"request {number}" for number in range(5)]
    assert all(": ok in " in line and len(line.split("outputs ")[1].split()) == 3 for line in lines[1:])


def test_the_minimal_client_says_what_is_wrong(cpp: CppBuilder) -> None:
    program = cpp.build(EXAMPLES / "minimal.cpp")
    done = run(program, "/no/such/socket")
    assert done.returncode == 1
    assert "there is no such socket; start the daemon (sigd serve)" in done.stderr
    assert run(program).returncode == 2


def test_a_soak_over_the_stream(cpp: CppBuilder, live_daemon: DaemonProcess) -> None:
    program = cpp.build(EXAMPLES / "soak.cpp", "-O2")
    options = ("--requests", "5000", "--clients", "2", "--session", "1500", "--idle", "backoff")
    tally = soaked(run(program, live_daemon.path, *options))
    assert (tally["sent"], tally["ok"], tally["lost"], tally["sessions"]) == (10_000, 10_000, 0, 8)


def test_a_soak_over_shared_memory(cpp: CppBuilder, live_daemon: DaemonProcess) -> None:
    program = cpp.build(EXAMPLES / "soak.cpp", "-O2")
    options = ("--requests", "5000", "--clients", "2", "--session", "1500", "--idle", "block")
    tally = soaked(run(program, live_daemon.path, "--transport", "shared_memory", *options))
    assert (tally["sent"], tally["ok"], tally["lost"], tally["sessions"]) == (10_000, 10_000, 0, 8)


def wait_for(said: IO[str], wanted: str) -> None:
    """Read until that line has come."""
    while (line := said.readline()) != wanted:
        assert line, f"it ended before it said {wanted!r}"


@pytest.mark.parametrize("transport", ["stream", "shared_memory"])
def test_a_soak_over_daemons_that_are_killed(
    cpp: CppBuilder, live_daemon: DaemonProcess, transport: str
) -> None:
    """Whatever was under way is counted as lost by its numbers, and nothing else is."""
    program = cpp.build(EXAMPLES / "soak.cpp", "-O2")
    daemon = live_daemon
    command = [str(program), daemon.path, "--transport", transport, "--requests", str(10**15)]
    command += ["--in-flight", "16", "--idle", "block", "--patience", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as soak:
        assert soak.stdout is not None
        assert soak.stderr is not None
        for session, how in enumerate((signal.SIGTERM, signal.SIGKILL), 1):  # a drain and a kill
            wait_for(soak.stderr, f"session {session}\n")
            time.sleep(0.1)
            daemon.end(how)
            daemon.start()
        wait_for(soak.stderr, "session 3\n")
        time.sleep(0.1)
        soak.send_signal(signal.SIGINT)
        out, err = soak.communicate(timeout=60)
    tally = soaked(subprocess.CompletedProcess(command, soak.returncode, out, err))
    assert tally["sessions"] == 3
    assert 0 <= tally["lost"] <= 2 * 16
    assert tally["ok"] > 100
    assert tally["ok"] + tally["draining"] == tally["answered"]


def test_a_soak_that_finds_no_daemon(cpp: CppBuilder) -> None:
    program = cpp.build(EXAMPLES / "soak.cpp", "-O2")
    done = run(program, "/no/such/socket", "--patience", "0")
    assert done.returncode == 1
    assert "no session: /no/such/socket: there is no such socket" in done.stderr
    assert run(program, "/no/such/socket", "--what", "3").returncode == 2


# The engine on io_uring


def test_arrivals_of_a_capture(tmp_path: Path) -> None:
    capture, arrivals = tmp_path / "capture.gz", tmp_path / "arrivals.i64"
    times = [1_000, 1_500, 1_400, 3_000, 2_000_000_000]
    capture.write_bytes(gzip.compress(b"".join(b"%d {}\n" % when for when in times)))
    command = [sys.executable, str(EXAMPLES / "arrivals.py"), str(capture), str(arrivals)]
    done = subprocess.run([*command, "1.5"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "4 arrivals\n"
    assert struct.unpack("<4q", arrivals.read_bytes()) == (0, 500, 500, 2_000), "time does not run backwards"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "5 arrivals\n"


def uring_engine(cpp: CppBuilder) -> Path:
    """The engine, where there is liburing to build it with."""
    if not any(Path(folder, "liburing.h").exists() for folder in ("/usr/include", "/usr/local/include")):
        pytest.skip("needs liburing (Debian: apt install liburing-dev)")
    return cpp.build(EXAMPLES / "uring_engine.cpp", "-O2", "-luring")


def test_the_engine_replays_arrivals(cpp: CppBuilder, live_daemon: DaemonProcess, tmp_path: Path) -> None:
    program = uring_engine(cpp)
    arrivals = tmp_path / "arrivals.i64"
    # bursts of many at one instant, more than one connection may have unanswered, and pauses in which it
    # sleeps
    times = [burst * 20_000_000 for burst in range(10) for _ in range(600)]
    arrivals.write_bytes(struct.pack(f"<{len(times)}q", *times))
    done = run(program, live_daemon.path, str(arrivals), "3", "2")
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6000 requests over 3 connections, 0 not OK")
    assert [line.split()[0] for line in lines[1:6]] == ["p50", "p90", "p99", "p99.9", "p100"]
    percentiles = [float(line.split()[1]) for line in lines[1:6]]
    assert percentiles == sorted(percentiles)
    assert sum(int(line.split()[4]) for line in lines[6:]) == 6000


def test_the_engine_comes_back(cpp: CppBuilder, live_daemon: DaemonProcess, tmp_path: Path) -> None:
    """The daemon is killed under it: the rest of its requests are sent to the next one, what was under way is
    lost."""
    program = uring_engine(cpp)
    arrivals = tmp_path / "arrivals.i64"
    arrivals.write_bytes(struct.pack("<4000q", *(index * 1_000_000 for index in range(4000))))
    command = [str(program), live_daemon.path, str(arrivals), "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as engine:
        time.sleep(0.5)
        if engine.poll() == 3:
            pytest.skip(engine.communicate()[1].strip())
        live_daemon.end(signal.SIGKILL)
        live_daemon.start()
        out, err = engine.communicate(timeout=60)
    assert engine.returncode == 0, err
    assert {line.split(";")[0] for line in err.splitlines()} <= {
        "the daemon closed the connection",
        "Connection reset by peer",
    }
    answered = sum(int(line.split()[4]) for line in out.splitlines()[6:])
    summary = re.search(r"0 not OK, (\d+) lost", out)
    assert summary, out
    lost = int(summary[1])
    assert answered + lost == 4000
    assert lost < 100


@pytest.mark.slow
def test_the_engine_replays_a_market(
    cpp: CppBuilder, live_daemon: DaemonProcess, capture_dir: Path, tmp_path: Path
) -> None:
    program = uring_engine(cpp)
    capture = min(capture_dir.glob("*.gz"))
    arrivals = str(tmp_path / "arrivals.i64")
    script = [sys.executable, str(EXAMPLES / "arrivals.py"), str(capture), arrivals, "60"]
    made = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True)
    done = run(program, live_daemon.path, arrivals, "4", "30")
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{made.stdout.split()[0]} requests over 4 connections, 0 not OK")


def test_the_engine_says_what_is_wrong(cpp: CppBuilder, tmp_path: Path) -> None:
    program = uring_engine(cpp)
    arrivals = tmp_path / "arrivals.i64"
    assert run(program, "/no/such/socket", str(arrivals)).returncode == 2
    arrivals.write_bytes(bytes(8))
    done = run(program, "/no/such/socket", str(arrivals))
    assert done.returncode == 3 or (done.returncode == 1 and "there is no such socket" in done.stderr)


def test_engine_fills_its_windows_again_after_kill_9(
    cpp: CppBuilder, models: ModelMaker, tmp_path: Path
) -> None:
    steps, ticks = 5, 2000
    model = models.lstm(steps, features=4)
    command = [
        sys.executable,
        "-P",
        "-m",
        "sigd.daemon",
        "serve",
        "--socket",
        "SOCKET",
        "--model",
        str(model),
    ]
    daemon = DaemonProcess(tmp_path, [*command, "--backend", "onnxruntime", "--history-instruments", "2"])
    program = cpp.build(EXAMPLES / "history_engine.cpp")
    daemon.start()
    engine = subprocess.Popen(
        [program, daemon.path, str(ticks)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert engine.stdout is not None
        lines = [engine.stdout.readline() for _ in range(2 * 20)]
        daemon.end(signal.SIGKILL)
        daemon.start()
        rest, said = engine.communicate(timeout=120)
    finally:
        engine.kill()
        daemon.end(signal.SIGKILL)
    assert (engine.returncode, said) == (0, "2 sessions\n")
    answered = [line.split() for line in (*lines, *rest.splitlines())]
    assert {(int(line[0]), int(line[1])) for line in answered} == {
        (i, tick) for i in (0, 1) for tick in range(ticks)
    }
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for instrument, tick, status, output in answered:
        newest = int(tick)
        assert status == ("warming_up" if newest < steps - 1 else "ok")
        if status == "ok":
            window = np.array([[row_of(int(instrument), at) for at in range(newest - steps + 1, newest + 1)]])
            (expected,) = session.run(None, {"features": window.astype(np.float32)})
            assert np.float32(output) == expected[0][0]


def row_of(instrument: int, tick: int) -> list[float]:
    """As the engine makes it."""
    return [(tick * 31 + instrument * 17 + column * 7) % 64 / 32 - 1 for column in range(4)]
