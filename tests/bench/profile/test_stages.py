"""`python -m sigd.bench.profile`: every stage of every load is timed on requests that are really answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop
from click.testing import CliRunner

from sigd.bench.commands.profile import main
from sigd.bench.profile import recording
from sigd.bench.profile.client import ServedClient
from sigd.bench.profile.times import BATCHING, COLDER, WHOLE, Times
from sigd.daemon.serving.fast_path import FEATURES_MAX
from sigd.models.backend import Backend
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

WORDS = [
    "take from the ring",
    "admit",
    "admit_to_batch",
    "model",
    "encode",
    "count",
    BATCHING,
    "publish",
    COLDER,
    WHOLE,
]
REMAINDERS = {BATCHING, COLDER}


def run(*arguments: str | Path) -> Times:
    result = CliRunner().invoke(main, ["--seconds", "0", "--json", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout.encode(), type=Times)


def test_every_stage_of_every_load_is_timed(models: ModelMaker) -> None:
    times = run("--model", models.mlp(features=8, outputs=3), "--rows", "4")
    assert (times.features, times.outputs, times.backend) == (8, 3, "echo")
    assert [(column.title, column.rows) for column in times.columns] == [
        ("1, fast path", 1),
        ("1, batch path", 1),
        ("4 together", 4),
    ]
    assert list(times.columns[2].stages_ns) == list(times.columns[1].stages_ns) == WORDS
    assert list(times.columns[0].stages_ns) == ["model", BATCHING, WHOLE]
    assert times.round_ns > 0
    assert times.empty_tick_ns > 0
    for column in times.columns:
        for name, ns in column.stages_ns.items():
            assert ns > 0 or name in REMAINDERS, name
        *parts, whole = column.stages_ns.values()
        assert sum(parts) == pytest.approx(whole)


def test_a_request_that_cannot_take_the_fast_path_has_no_column_for_it(models: ModelMaker) -> None:
    times = run("--model", models.mlp(features=FEATURES_MAX + 1, outputs=1), "--rows", "2")
    assert [column.title for column in times.columns] == ["1, batch path", "2 together"]


def test_it_times_a_model_as_well_and_shows_a_table(models: ModelMaker) -> None:
    arguments = ["--seconds", "0", "--backend", "onnxruntime", "--model", str(models.mlp()), "--rows", "3"]
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "backend onnxruntime" in result.stdout
    for name in WORDS:
        assert name in result.stdout
    assert "a tick that finds nothing" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "tpu"], "no backend is called 'tpu'"),
        (["--model", "/nonexistent.onnx"], "nonexistent.onnx"),
        (["--rows", "0"], "--rows"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_a_backend_beside_the_daemon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    backend = SimpleNamespace(synchronous=False, close=lambda: closed.append(True))
    monkeypatch.setattr("sigd.bench.profile.run.open_backend", lambda *_, **__: backend)
    result = CliRunner().invoke(main, ["--backend", "tensorrt"])
    assert result.exit_code == 2
    assert "choose one that runs on the CPU" in result.stderr
    assert closed == [True]


def test_what_recording_costs(models: ModelMaker) -> None:
    arguments = ["--rounds", "1", "--model", str(models.mlp()), "--rows", "3", "--json"]
    result = CliRunner().invoke(recording.main, arguments)
    costs = msgspec.json.decode(result.stdout.encode(), type=list[recording.Cost])
    assert [(cost.load, cost.rows) for cost in costs] == [
        ("1, fast path", 1),
        ("1, batch path", 1),
        ("3 together", 3),
    ]
    assert all(cost.off.p99_ns >= cost.off.p50_ns > 0 for cost in costs)
    assert result.exit_code == (1 if costs[0].counting.p50_ns > recording.BUDGET_NS else 0)
    shown = CliRunner().invoke(recording.main, arguments[:-1])
    title, *lines = shown.stdout.splitlines()
    assert title.split() == ["ns", "a", "request", "p50", "times", "p99", "times"]
    assert [line[14:36].strip() for line in lines] == [
        "nothing counted",
        "metrics",
        "metrics and recorder",
    ] * 3
    assert CliRunner().invoke(recording.main, ["--backend", "tpu"]).exit_code == 2


def test_it_is_counting_and_recording_that_is_compared(backend: Backend) -> None:
    loop = uvloop.new_event_loop()
    off, counting, both = setups = recording.make_setups(loop, backend)
    recording.measure(*setups, 4, 1)
    ticks = 2 * recording.ROUND_CALLS
    alone, batch_path = 2 + ticks, ticks
    nothing = off.client.batcher.counters
    assert sum(nothing.by_status) == sum(nothing.batches_by_rows) == 0
    for setup in (counting, both):
        counted = setup.client.batcher.counters
        assert counted.by_status[0] == alone + batch_path + 4 * ticks
        assert counted.batches_by_rows[1] == alone + batch_path
        assert counted.batches_by_rows[4] == ticks
    assert (off.ring, counting.ring) == (None, None)
    assert both.ring is not None
    assert both.ring.requests == alone + batch_path + 4 * ticks
    assert both.ring.dropped == 0, "a request that finds no room costs less"
    for setup in setups:
        setup.client.close()
    loop.close()


@pytest.fixture
def backend(models: ModelMaker) -> Iterator[Backend]:
    opened = open_backend(models.mlp(), "echo", batch_rows_max=4)
    yield opened
    opened.close()


def test_answers_that_do_not_come_are_not_timed_as_if_they_had(backend: Backend) -> None:
    loop = uvloop.new_event_loop()
    client = ServedClient(loop, backend)
    client.publish(3)
    with pytest.raises(AssertionError, match="0 answers, expected 3"):
        client.take(3)
    client.poll()
    client.take(3)
    assert client.batcher.counters.by_status[0] == 3
    client.close()
    loop.close()
