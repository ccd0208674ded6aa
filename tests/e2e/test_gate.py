"""`sigd gate` against a real daemon: what a script that calls it goes by."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

PATIENCE_S = 60.0
ROW = np.array([1, 2, 3, 5], np.float32)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def gate(daemon: Daemon, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return finish(start(daemon, *options))


def start(daemon: Daemon, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sigd.daemon", "gate", "--socket", str(daemon.socket), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    said, complained = process.communicate(timeout=PATIENCE_S)
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


def test_gate_is_green_for_the_file_that_is_served(start_daemon: StartDaemon, models: ModelMaker) -> None:
    file = models.scaled(2.0)
    daemon = start_daemon("--model", str(file))
    done = gate(daemon, "--for", "0", "--serves", sha256(file), "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert (verdict["green"], verdict["red"], verdict["sha256"]) == (True, [], sha256(file))


def test_gate_is_red_at_once_for_another_file(daemon: Daemon) -> None:
    begun_s = time.monotonic()
    done = gate(daemon, "--for", "3600", "--serves", "0" * 64)
    assert time.monotonic() - begun_s < PATIENCE_S
    assert done.returncode == 1
    assert done.stdout.startswith("RED: ")
    assert f"expected {'0' * 64}" in done.stderr


def test_gate_counts_only_what_happens_while_it_watches(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.request(ROW)
        assert gate(daemon, "--for", "0.1", "--answers-min", "1").returncode == 1
        watching = start(daemon, "--for", "20", "--answers-min", "1", "--p99-us", "0.001")
        while watching.poll() is None:
            client.request(ROW)
            time.sleep(0.001)
        done = finish(watching)
    assert done.returncode == 1
    assert "expected at most 0.0 us" in done.stderr
    assert "expected at least" not in done.stderr


def test_gate_judges_the_shadow(start_daemon: StartDaemon, models: ModelMaker) -> None:
    served, alike, unlike = models.scaled(2.0), models.scaled(3.0), models.scaled(-2.0)
    for file, green in ((alike, True), (unlike, False)):
        daemon = start_daemon("--model", str(served), "--shadow", str(file))
        options = ("--shadow", sha256(file), "--rows-min", "20", "--drift-max", "100")
        watching = start(daemon, "--for", "4", *options)
        with daemon.connect() as client:
            while watching.poll() is None:
                client.request(ROW)
                time.sleep(0.005)
        done = finish(watching)
        assert (done.returncode == 0) == green, done
        assert ("agrees on 0.000%" in done.stderr) != green


def test_gate_without_a_daemon_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sigd.daemon", "gate", "--socket", str(tmp_path / "none.sock")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "no daemon answers there" in done.stderr


def test_gate_refuses_what_is_no_digest(daemon: Daemon) -> None:
    done = gate(daemon, "--serves", "lob-mlp-7.onnx")
    assert done.returncode == 2
    assert "64 hexadecimal digits" in done.stderr
