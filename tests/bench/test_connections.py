"""Many connections: the arithmetic of both bars, the whole of it on a small scale, and what the command ends
with."""

from __future__ import annotations

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tests.bench.measurements import measured

from sigd.bench import connections
from sigd.bench.commands.connections import main
from sigd.bench.connections import Asked, Found, Shares, Turns, measure, served_by_connection
from sigd.bench.daemon_process import ServeOptions
from sigd.bench.errors import MissingDependency
from sigd.bench.load.contract import SAMPLE
from sigd.bench.load.native import NativeLoad
from sigd.bench.native.build import NativePrograms
from sigd.wire.ring import why_not_here
from sigd.wire.status import Transport

ASKED = Asked(ServeOptions(), connections=4, talking=2)


def found(*among_us: float, served: tuple[int, ...] = (100, 100)) -> Found:
    """What a run finds where the few take 100 us alone, and that long among the silent in each round."""
    rounds = tuple(Turns(measured(100), measured(us)) for us in among_us)
    return Found(ASKED, rounds, Shares(measured(500), served))


def test_one_disturbed_round_does_not_decide() -> None:
    run = found(100, 110, 9000)
    assert run.p99_ratio == pytest.approx(1.1, rel=0.01)
    assert run.reasons() == []


def test_silent_connections_that_cost_too_much_are_told() -> None:
    (reason,) = found(100, 140, 140).reasons()
    assert reason == "p99 is 1.40 times as long among silent connections, more than 1.3"


def test_who_is_served_too_often_is_told() -> None:
    assert found(100, served=(100, 199, 150)).reasons() == []
    (reason,) = found(100, served=(100, 201, 150)).reasons()
    assert reason == "one connection was served 2.01 times as often as another, more than 2"
    (reason,) = found(100, served=(100, 0, 150)).reasons()
    assert "inf times as often" in reason


def test_a_run_that_lost_answers_does_not_pass_whatever_its_figures() -> None:
    run = found(100)
    lost = replace(measured(100), received=999)
    (reason,) = replace(run, rounds=(Turns(lost, measured(100)),)).reasons()
    assert reason == "alone: 1 of 1,000 requests were never answered"
    (reason,) = replace(run, shares=Shares(lost, (1, 1))).reasons()
    assert reason.startswith("all talking: 1 of 1,000")


def test_who_was_never_served_is_counted_too() -> None:
    samples = np.zeros(5, SAMPLE)
    samples["connection"] = [0, 2, 2, 0, 2]
    assert served_by_connection(replace(measured(1), samples=samples), 4) == (2, 0, 3, 0)


@pytest.mark.parametrize("transport", [Transport.STREAM, Transport.SHARED_MEMORY], ids=["stream", "rings"])
def test_the_whole_of_it_on_a_small_scale(programs: NativePrograms, transport: Transport) -> None:
    if transport is Transport.SHARED_MEMORY and why_not_here():
        pytest.skip(why_not_here())
    asked = Asked(
        ServeOptions(idle="block"),
        transport=transport,
        connections=12,
        talking=3,
        rounds=2,
        seconds=0.1,
        requests_each=20,
    )
    said: list[str] = []
    run = measure(asked, NativeLoad(programs), said.append)
    assert len(run.rounds) == 2
    for turns in run.rounds:
        assert turns.alone.received > 0
        assert turns.among.received > 0
    assert len(run.shares.served) == 12
    assert min(run.shares.served) > 0
    assert sum(run.shares.served) == run.shares.measurement.received >= 240
    assert not [reason for reason in run.reasons() if "times as" not in reason], "nothing was lost"
    assert said[1:] == [
        "round 1 of 2: 3 alone, then among silent ones",
        "round 2 of 2: 3 alone, then among silent ones",
        "12 talk",
    ]


def test_too_few_open_files_are_told_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 500))
    with pytest.raises(MissingDependency, match="1,064 open files are needed, the hard limit is 500"):
        measure(Asked(ServeOptions()), NativeLoad, print)  # type: ignore[arg-type]


@pytest.mark.parametrize(("among_us", "exit_code"), [(110, 0), (150, 1)])
def test_the_command_shows_both_bars_and_ends_by_them(
    programs: NativePrograms, monkeypatch: pytest.MonkeyPatch, among_us: float, exit_code: int
) -> None:
    monkeypatch.setattr(connections, "measure", lambda asked, generator, say: found(among_us))
    shown = CliRunner().invoke(main, [])
    assert shown.exit_code == exit_code, shown.output
    assert (
        f"{among_us / 100:.2f} times as long among 2 that do not, median of 1 rounds (bar 1.3)"
        in shown.output
    )
    assert "most 100, least 100, ratio 1.00 (bar 2)" in shown.output
    assert ("passed" if exit_code == 0 else "FAILED") in shown.output
    as_json = json.loads(CliRunner().invoke(main, ["--json"]).stdout)
    assert as_json["passed"] is (exit_code == 0)
    assert as_json["p99_ratio"] == pytest.approx(among_us / 100, rel=0.01)
    assert as_json["served"]["least"] == as_json["served"]["most"] == 100


def test_some_connection_must_be_silent() -> None:
    run = CliRunner().invoke(main, ["--connections", "10", "--talking", "10"])
    assert run.exit_code == 2
    assert "leaves none silent" in run.output
