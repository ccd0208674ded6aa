"""Installed where there is no C compiler sigd is pure Python, and serves through ONNX Runtime."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sigd.wire.client import connect
from sigd.wire.status import Status

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def environment(**changes: str) -> dict[str, str]:
    """This one, without a word of compilers."""
    return {name: value for name, value in os.environ.items() if name not in ("CC", "SIGD_NATIVE")} | changes


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel holds that was built where no program can be found."""
    folder = tmp_path_factory.mktemp("no-compiler")
    words = [
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--verbose",
    ]
    done = subprocess.run(
        [sys.executable, *words, "--wheel-dir", str(folder), str(ROOT)],
        env=environment(PATH=str(folder)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "the C extensions were not built, sigd will run without them: there is no C compiler" in said
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as content:
        assert [name for name in content.namelist() if name.endswith(".so")] == []
        content.extractall(folder / "site")
    return folder / "site"


def test_daemon_without_kernels_serves_and_says_how_to_get_them(installed: Path, tmp_path: Path) -> None:
    socket = tmp_path / "s"
    words = ["-P", "-m", "sigd.daemon", "serve", "--socket", str(socket)]
    with subprocess.Popen(
        [sys.executable, *words],
        env=environment(PYTHONPATH=str(installed)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stderr is not None
            assert daemon.stdout.readline().startswith("sigd ready: ")
            with connect(socket, client_name="bare") as client:
                response = client.request(np.zeros(client.welcome.features, np.float32))
            assert response.status == Status.OK
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(30) == 0
            said = daemon.stderr.read()
        finally:
            daemon.kill()  # or leaving the block would wait for it for ever
    assert "the native kernels are not built" in said
    assert "apt-get install gcc" in said


def test_doctor_without_kernels_names_the_cure(installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sigd.daemon", "doctor", "--json"],
        env=environment(PYTHONPATH=str(installed)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (finding,) = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "native kernels"]
    assert finding["level"] == "warn"
    assert "apt install gcc" in finding["fix"][0]
