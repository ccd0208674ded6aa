"""Each attack on the rings a few times, against a daemon of each idle strategy; and that a stall would be
noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.fuzz import fuzz_rings
from tests.fuzz.attacking import LIVED_ON, Attacks
from tests.fuzz.fuzz_rings import REPEATS_MAX, Found, run
from tests.fuzz.neighbour import Asked, Neighbour
from tests.fuzz.ring_attacks import ATTACKS

from sigd.wire.ring import why_not_here

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import ModelMaker

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())


@pytest.mark.parametrize("idle", ["spin", "backoff", "block"])
def test_a_hostile_client_harms_no_other(models: ModelMaker, idle: str) -> None:
    rounds = 3
    found = run(rounds * len(ATTACKS), idle, seed=7, model=models.mlp(features=8, outputs=3))
    assert_harmless(found)
    assert all(len(asked) >= rounds for asked in found.beside.values())
    assert {code for _, code in found.codes} == {LIVED_ON, 2, 3, 9}


@pytest.mark.slow
def test_clients_built_with_sanitizers_notice_nothing(
    models: ModelMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soak = fuzz_rings.sanitized_soak(tmp_path)
    if soak is None:
        pytest.skip(capsys.readouterr().out.strip())
    model = models.mlp(features=8, outputs=3)
    found = run(4 * len(ATTACKS), "backoff", seed=8, model=model, witness=soak)
    assert_harmless(found)


def assert_harmless(found: Found) -> None:
    """Nothing leaked and the daemon ended in order. Whether a client stalled can be told on a quiet machine
    only: `make fuzz` and `make test-live` judge it."""
    assert (found.leaked_descriptors, found.leaked_mappings, found.exit_code) == (0, 0, 0)
    if "SIGD_LIVE" in os.environ:
        assert found.harmless, found.stalls


def test_a_stopped_daemon_is_seen_by_its_neighbour(models: ModelMaker) -> None:
    with (
        fuzz_rings.own_daemon("backoff", models.mlp(features=8, outputs=3)) as (process, path),
        Neighbour.open(path, process.pid, spin=False) as neighbour,
    ):
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(0.02, process.send_signal, [signal.SIGCONT])
        timer.start()
        stalled = neighbour.ask()
        timer.join()
    assert stalled.own_us > 5_000


def test_waiting_for_a_processor_is_no_stall(models: ModelMaker) -> None:
    only = {min(os.sched_getaffinity(0))}
    with fuzz_rings.own_daemon("block", models.mlp(features=8, outputs=3)) as (process, path):
        for task in os.listdir(f"/proc/{process.pid}/task"):
            os.sched_setaffinity(int(task), only)
        hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        os.sched_setaffinity(hog.pid, only)
        try:
            with Neighbour.open(path, process.pid, spin=False) as neighbour:
                end_s = time.monotonic() + 20
                asked = neighbour.ask()
                while asked.whole_us < 1_000 and time.monotonic() < end_s:
                    asked = neighbour.ask()
        finally:
            hog.kill()
            hog.wait()
    assert asked.whole_us >= 1_000
    assert asked.own_us < asked.whole_us / 2


class Scripted:
    """Attacks that last no time, and a neighbour whose answers take what is written."""

    def __init__(self, *times_us: float) -> None:
        self._times_us = list(times_us)
        self.started: list[str] = []
        self.alone = True

    def start(self, name: str, seed: str) -> None:
        self.started.append(seed)
        self.alone = False

    def over(self) -> bool:
        return True

    def code(self) -> int:
        return LIVED_ON

    def ask(self) -> Asked:
        if self.alone:
            return Asked(1.0, 1.0)
        self.alone = True
        time_us = self._times_us.pop(0)
        return Asked(time_us, time_us + 1)


@pytest.mark.parametrize(
    ("times_us", "played", "stalls"),
    [
        ([999.0], 1, []),
        ([1000.0, 1000.0, 10.0], 3, []),
        ([5000.0] * (1 + REPEATS_MAX), 1 + REPEATS_MAX, ["bell storm, seed 7/3"]),
    ],
)
def test_what_every_repeat_shows_is_a_stall(times_us: list[float], played: int, stalls: list[str]) -> None:
    script, found = Scripted(*times_us), Found(exit_code=0)
    both: Any = script
    fuzz_rings.play("bell storm", "7/3", cast(Attacks, both), cast(Neighbour, both), found)
    assert script.started == ["7/3"] * played
    assert found.stalls == stalls
    assert found.repeated == (played > 1)
    assert found.harmless == (not stalls)
