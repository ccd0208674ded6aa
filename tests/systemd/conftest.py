"""Machines to boot, from the root that prepare.py makes, with sigd as `pip install` of its wheel leaves it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.systemd.machine import Machine
from tests.systemd.prepare import ROOT, Missing, pip


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is booted, with the wheel of these sources installed."""
    prepared = os.environ.get("SIGD_SYSTEMD_ROOT")
    if prepared is None:
        pytest.skip(
            "needs a machine to boot: `sudo make test-systemd` prepares it (debootstrap, systemd-container)"
        )
    wheels = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps")
    subprocess.run([*build, "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.iterdir()
    try:
        pip(
            Path(prepared),
            *("install", "--no-deps", "--force-reinstall", f"/mnt/{wheel.name}"),
            binds=[f"--bind-ro={wheel}:/mnt/{wheel.name}"],
        )
    except Missing as error:
        pytest.fail(str(error))
    return Path(prepared)


@pytest.fixture
def machine(root: Path, tmp_path: Path) -> Iterator[Machine]:
    """Booted, with sigd's files there and nothing installed as a service."""
    with Machine(root, tmp_path) as booted:
        yield booted
