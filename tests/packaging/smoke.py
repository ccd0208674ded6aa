"""What a user gets: run against the installed wheel, in an environment that holds nothing else.

SIGD=/path/to/venv/bin/sigd /path/to/venv/bin/python -P tests/packaging/smoke.py
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import sigd
from sigd.bench.errors import MissingDependency
from sigd.bench.native import build as native
from sigd.wire.client import connect
from sigd.wire.status import Status

SIGD = os.environ["SIGD"]
COMMANDS = (
    "serve",
    "bench",
    "demo",
    "replay",
    "reload",
    "drain",
    "status",
    "top",
    "schema",
    "build-engine",
    "inspect",
    "compare",
    "doctor",
    "plan",
    "install-service",
)


def run(*arguments: str) -> str:
    """The output of a `sigd` command that must end with 0."""
    done = subprocess.run([SIGD, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"sigd {' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def check_installation() -> None:
    """The wheel brings one package, and it is the installed one that is tested."""
    assert Path(sigd.__file__).is_relative_to(sys.prefix), f"{sigd.__file__} is not in {sys.prefix}"
    files = importlib.metadata.files("sigd") or []
    top_level = {file.parts[0] for file in files if ".." not in file.parts}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"sigd"}, top_level
    assert "ExecStart=" in run("install-service", "--dry-run"), "the units are part of it"
    for name in ("torch", "tensorrt", "pycuda", "pyarrow", "pytest"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed: this environment proves nothing"


def check_commands() -> None:
    """Every command explains itself without any of the extras."""
    assert sigd.__version__ in run("--version")
    for command in COMMANDS:
        help_text = run(command, "--help")
        assert "Example" in help_text, f"sigd {command} --help shows no example"
    assert 'id="91"' in run("schema", "--features", "64", "--outputs", "3")


def check_native_programs(directory: Path) -> None:
    """The wheel has all that the bench's native programs are made of; without a compiler there is nothing to
    check."""
    os.environ["SIGD_CACHE"] = str(directory / "cache")
    try:
        programs = native.build()
    except MissingDependency as error:
        if "no C++ compiler" in str(error):
            return
        raise
    assert all(os.access(programs.path(name), os.X_OK) for name in native.PROGRAMS)


def check_serving(directory: Path) -> None:
    """The shipped model answers over a socket; the daemon tells its counters and drains on SIGTERM."""
    socket = directory / "sigd.sock"
    with subprocess.Popen(
        [SIGD, "serve", "--socket", str(socket)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stderr is not None
            ready = daemon.stdout.readline()
            assert ready.startswith("sigd ready: "), ready or daemon.stderr.read()
            with connect(socket, client_name="smoke") as client:
                features = np.zeros(client.welcome.features, np.float32)
                response = client.request(features)
                assert response.status == Status.OK, response
                assert np.isfinite(response.outputs).all()
            counted = json.loads(run("status", "--socket", str(socket), "--json"))
            assert counted["models"][0]["answers"]["OK"] == 1, counted
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(30) == 0
            said = daemon.stderr.read().splitlines()  # which backend serves, and why
            assert all(" sigd INFO " in line for line in said), said
        finally:
            daemon.kill()  # or leaving the block would wait for it for ever
    assert not socket.exists()


def main() -> None:
    """All of it."""
    check_installation()
    check_commands()
    with tempfile.TemporaryDirectory() as directory:
        check_native_programs(Path(directory))
        check_serving(Path(directory))
    print("smoke: 4 passed, 0 failed")


if __name__ == "__main__":
    main()
