"""The neighbour's measurement: finds a planted slowdown, and none where there is none."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sigd.bench.commands.bench import bench
from sigd.bench.daemon_process import OwnDaemon, ServeOptions, ask_welcome
from sigd.bench.errors import BadRequest, PeerFailed
from sigd.bench.neighbour import blocks, hogs, judge, report
from sigd.bench.neighbour.blocks import Asked, measure
from sigd.bench.neighbour.judge import Block, Pair
from sigd.bench.neighbour.process import running, words_of
from sigd.bench.rig import Mode, Settings
from sigd.bench.verdict import named_by_verdict
from sigd.wire.messages import Hello

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sigd.bench.native.build import NativePrograms

PAUSING = """
import os, signal, sys, time
pid = int(sys.argv[1])
def end(*_):
    os.kill(pid, signal.SIGCONT)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.02)
"""


def noisy(chance: random.Random, scale: float = 1.0) -> Block:
    """A block of a shared machine: percentiles that vary by a third, and now and then a stall of
    milliseconds."""
    p50 = 20 * math.exp(chance.gauss(0, 0.1)) * scale
    p99 = 60 * math.exp(chance.gauss(0, 0.35)) * scale
    if chance.random() < 0.15:
        p99 *= chance.uniform(5, 100)
    return Block(p50, max(p50, p99), max(p50, p99) * 2)


def pairs(seed: int, scale: float = 1.0, rounds: int = 12) -> list[Pair]:
    chance = random.Random(seed)
    return [Pair(noisy(chance), noisy(chance, scale)) for _ in range(rounds)]


def test_a_slowdown_of_five_times_is_found_in_noise() -> None:
    missed = [seed for seed in range(300) if not judge.slower(judge.effects(pairs(seed, 5.0)))]
    assert missed == []
    for effect in judge.effects(pairs(1, 5.0))[:1]:
        assert 4 < effect.ratio < 6


def test_a_against_a_is_no_slowdown() -> None:
    found = [seed for seed in range(2000) if judge.slower(judge.effects(pairs(seed)))]
    # 20 runs: less than one in fifty of such series has one.
    assert len(found) <= 2


def test_less_than_a_quarter_is_no_slowdown() -> None:
    even = [Pair(Block(20, 60, 90), Block(22, 66, 99)) for _ in range(10)]
    assert not judge.slower(judge.effects(even))
    effect = judge.effects(even)[0]
    assert effect.ratio == pytest.approx(1.1)
    assert effect.chance == 1 / 1024


def test_a_faster_side_is_no_slowdown() -> None:
    assert not judge.slower(judge.effects(pairs(3, 0.2)))


@given(st.lists(st.floats(-10, 10).filter(bool), min_size=1, max_size=12))
def test_chance_is_a_share_and_falls_with_agreement(differences: list[float]) -> None:
    chance = judge.chance_of(differences)
    assert 0 < chance <= 1
    assert judge.chance_of([abs(one) for one in differences]) == 1 / 2 ** len(differences)
    assert judge.chance_of([abs(one) for one in differences]) <= chance


def test_chance_is_that_of_the_signed_ranks() -> None:
    assert judge.chance_of([1, 2, 3]) == 1 / 8
    assert judge.chance_of([-1, 2, 3]) == 2 / 8
    assert judge.chance_of([-1, -2, -3]) == 1
    # Nine of ten, the smallest turned round: still no chance.
    assert judge.chance_of([-1, *range(2, 11)]) == 2 / 1024


@pytest.fixture(scope="module")
def daemon(programs: NativePrograms) -> Iterator[str]:
    with OwnDaemon(ServeOptions(idle="block")) as own:
        yield own.socket_path


def settings(socket_path: str, duration_s: float) -> Settings:
    return Settings(Mode.CLOSED_LOOP, socket_path=socket_path, duration_s=duration_s)


live = pytest.mark.skipif(
    "SIGD_LIVE" not in os.environ, reason="measures this machine, which has to be quiet: make test-live"
)


@live
def test_the_whole_of_it_finds_a_neighbour_that_stops_the_daemon(daemon: str) -> None:
    pid = ask_welcome(daemon, Hello(client_name="test")).daemon_pid
    words = [sys.executable, "-c", PAUSING, str(pid)]
    said: list[str] = []
    # At a rate: a closed loop asks nothing while the daemon is stopped, so few of its requests would wait.
    asked = replace(settings(daemon, 0.2), mode=Mode.RATE, rate_hz=2_000.0)
    result = measure(Asked(asked, words, settle_s=0.2), said.append)
    assert result.slower, result
    assert len(result.pairs) == len(said) == 12
    p99 = next(effect for effect in result.effects if effect.percentile == "p99")
    assert p99.ratio > 2
    assert not result.passed
    assert "FAILED: the neighbour makes answers slower" in report.text(result, None)


@live
@pytest.mark.parametrize("run", range(20))
def test_a_run_of_a_against_a_finds_nothing(daemon: str, run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PAUSE_S", 0.0)
    short = replace(settings(daemon, 0.03), warmup_s=0.02, seed=run + 1)
    result = measure(Asked(short, ["sleep", "600"], settle_s=0.0), lambda _: None)
    assert not result.slower, result.effects
    assert result.valid, result.reasons


def test_the_command_writes_its_result_and_report(programs: NativePrograms, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra report draws")
    file, page = tmp_path / "beside.json", tmp_path / "page.html"
    words = f"{sys.executable} -c 'import time; time.sleep(600)'"
    options = ["--no-p99", "--closed-loop", "--idle", "block", "--duration", "0.05", "--neighbour", words]
    result = CliRunner().invoke(bench, [*options, "--json", str(file), "--html", str(page)])
    assert result.exit_code in (0, 1), result.output
    written = named_by_verdict(file, result.exit_code)
    document = json.loads(written.read_text())
    shown = named_by_verdict(page, result.exit_code)
    assert shown.read_text().count("<svg") == 3
    assert ("PASS" if result.exit_code == 0 else "FAIL") in shown.read_text()
    assert json.loads(shown.with_suffix(".json").read_text()) == document
    assert len(document["pairs"]) == 12
    assert {effect["percentile"] for effect in document["effects"]} == {"p50", "p99", "p99.9"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--neighbour", ""], "is empty"),
        (["--neighbour", "'"], "No closing quotation"),
        (["--neighbour", "/no/such/program"], "/no/such/program: No such file"),
        (["--neighbour", "sleep 9", "--floor"], "leave out --floor"),
        (["--neighbour", "sleep 9", "--hgrm", "/tmp/x.hgrm"], "leave out --hgrm"),
    ],
)
def test_what_cannot_be_measured_ends_with_2(options: list[str], said: str) -> None:
    result = CliRunner().invoke(bench, ["--closed-loop", "--idle", "block", *options])
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_a_neighbour_that_ends_before_its_block_is_told() -> None:
    with (
        pytest.raises(PeerFailed, match=r"ended with 3 .*no such model"),
        running(words_of("sh -c 'echo no such model; exit 3'"), 0.3),
    ):
        pass


def test_a_neighbour_ends_with_all_its_children(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    command = ["sh", "-c", f"(trap '' TERM; while :; do date +%N > {beat}; sleep 0.02; done) & wait"]
    with running(command, 0.3):
        assert beat.exists()
    before = beat.read_text()
    time.sleep(0.2)
    assert beat.read_text() == before


def test_a_missing_program_is_a_wrong_option() -> None:
    with pytest.raises(BadRequest, match="No such file"), running(["/no/such/program"], 0.0):
        pass


def test_hogs_do_their_work() -> None:
    hogs.repeat(hogs.core_work(), times=1)
    hogs.repeat(hogs.memory_work(1), times=2)
    result = CliRunner().invoke(hogs.main, ["core", "--cpu", "100000"])
    assert (result.exit_code, "expected one of" in result.output) == (2, True)


@pytest.mark.parametrize("what", ["core", "memory"])
def test_a_hog_works_until_it_is_ended(what: str) -> None:
    command = [sys.executable, "-P", "-m", "sigd.bench.neighbour.hogs", what]
    with running(command, 1.0) as process:
        seconds = Path(f"/proc/{process.pid}/stat").read_text().split()[13]
        assert int(seconds) >= 0
    assert process.poll() is not None
