"""Machines to boot, from the root that prepare.py makes, with sigd as `pip install` of its wheel leaves
it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.systemd.engine import Engine, started_engines, stop_engines
from tests.systemd.machine import Machine
from tests.systemd.prepare import Missing, build_wheel, install_sigd


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of these sources."""
    try:
        return build_wheel(tmp_path_factory.mktemp("wheel"))
    except Missing as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def root(request: pytest.FixtureRequest) -> Path:
    """What is booted, with the wheel of these sources installed."""
    prepared = os.environ.get("SIGD_SYSTEMD_ROOT")
    if prepared is None:
        pytest.skip(
            "needs a machine to boot: `sudo make test-systemd` prepares it (debootstrap, systemd-container)"
        )
    try:
        install_sigd(Path(prepared), request.getfixturevalue("wheel"))
    except Missing as error:
        pytest.fail(str(error))
    return Path(prepared)


@pytest.fixture
def machine(root: Path, tmp_path: Path) -> Iterator[Machine]:
    """Booted, with sigd's files there and nothing installed as a service."""
    with Machine(root, tmp_path) as booted:
        yield booted


@pytest.fixture
def engines(machine: Machine) -> Iterator[list[Engine]]:
    """Some that ask a daemon which is started for them."""
    machine.start_sigd()
    started = started_engines(machine)
    yield started
    stop_engines(started)
