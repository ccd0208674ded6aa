"""Reloads under load: which requests met one, what makes a run fail, and the whole of it on a small scale."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from sigd.bench import reload
from sigd.bench.commands.reload import asked_of, document, main
from sigd.bench.errors import BadRequest
from sigd.bench.load.contract import SAMPLE
from sigd.bench.load.native import NativeLoad
from sigd.bench.native.build import NativePrograms
from sigd.bench.processor_time import used_ns
from sigd.bench.reload import Asked, Found, measure
from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.manifest import manifest_path
from sigd.models.native.backend import kernels_are_built
from sigd.wire.ring import why_not_here

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "TURN_S", 0.2)
    monkeypatch.setattr(reload, "COST_RELOADS", 2)
    monkeypatch.setattr(reload, "_COST_IDLE_S", 0.05)


def asked(model: Path, other: Path | None = None, transport: str = "stream") -> Asked:
    return asked_of(
        reloads=2, rate=500.0, transport=transport, model=model, other=other, idle="block", pin=False
    )


def found(model: Path = Path("m.onnx")) -> Found:
    """A run in which all went well."""
    return Found(
        asked=asked(model),
        measurements=[],
        resting=[10_000, 100_000, 200_000, 300_000],
        beside=[10_000, 110_000, 200_000, 300_000],
        during=[10_000, 119_000, 200_000, 300_000],
        requests=(1000, 1000, 1000),
        reloads=2,
        reload_ms=(500.0, 600.0),
        reload_cpu_ms=18.0,
        generations=(1, 3),
        in_order=True,
        failures=[],
        moments=[(0.0, 10.0, 90.0), (0.1, 11.0, 119.0)],
        windows_s=[(0.05, 0.07)],
        gaps_s=[(0.08, 0.0801)],
        by_generation=[(1, 10.0, 90.0), (2, 10.0, 119.0), (3, 11.0, 95.0)],
    )


def test_the_report_shows_latency_in_time_and_by_generation() -> None:
    pytest.importorskip("matplotlib", reason="the extra report draws")
    from sigd.bench.page.other_pages import reload_page

    text = reload_page(found(), msgspec.to_builtins(document(found()))).text()
    assert text.count("<svg") == 2
    assert "a reload" in text
    assert "the machine stopped the client" in text
    assert "PASS" in text


def test_a_request_meets_a_reload_with_any_part_of_its_life() -> None:
    samples = np.zeros(7, SAMPLE)
    samples["intended_ns"] = (5, 5, 15, 19, 25, 5, 45)
    samples["received_ns"] = (9, 10, 16, 31, 29, 99, 50)
    met = reload.overlapping(samples, [(10, 20), (30, 40)])
    assert met.tolist() == [False, True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"during": [0, 121_000, 0, 0]}, "p99 is 1.21 times as long during reloads, more than 1.2"),
        ({"in_order": False}, "an answer named a lower generation than the one before it"),
        ({"generations": (1, 4)}, "generation 1 became 4 after 2 reloads"),
        ({"failures": ["no such file"]}, "no such file"),
        ({"reloads": 1, "generations": (1, 2)}, "1 reloads in 100 turns, expected 2"),
    ],
)
def test_what_makes_a_run_fail(change: dict[str, object], reason: str) -> None:
    assert found().reasons() == []
    assert replace(found(), **change).reasons() == [reason]  # type: ignore[arg-type]


@pytest.mark.parametrize("transport", ["stream", "shm"])
def test_the_whole_of_it_on_a_small_scale(
    programs: NativePrograms, models: ModelMaker, transport: str
) -> None:
    if transport == "shm" and why_not_here():
        pytest.skip(why_not_here())
    said: list[str] = []
    run = measure(asked(models.copied(4), transport=transport), NativeLoad(programs), said.append)
    # Not what the machine has a say in: its p99, and whether a busy one kept the rate.
    assert (run.reloads, run.generations, run.lost, run.failures, run.in_order) == (2, (4, 6), 0, [], True)
    assert run.reload_cpu_ms is None or run.reload_cpu_ms > 0
    assert min(run.requests) > 0
    assert run.received == sum(measurement.sent for measurement in run.measurements)
    assert said[0].startswith("starting a daemon: sigd serve ")
    assert said[1] == "2 reloads without load, for their processor time"
    assert said[2].startswith("0 of 2 reloads")


def test_a_file_that_is_refused_fails_the_run(programs: NativePrograms, models: ModelMaker) -> None:
    run = measure(asked(models.copied(4), models.copied(5)), NativeLoad(programs), lambda line: None)
    assert (run.lost, run.reload_cpu_ms) == (0, None)
    assert any("5 features -> 5 outputs, and clients" in reason for reason in run.reasons())
    assert any(reason.startswith("generation 2 became 3 after 2 reloads") for reason in run.reasons())


@pytest.mark.skipif(not kernels_are_built(), reason="the native kernels are not built: python hatch_build.py")
def test_engines_are_reloaded_with_their_manifests(
    programs: NativePrograms, models: ModelMaker, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.engine", tmp_path / "second.engine"
    for seed, engine in enumerate((first, second)):
        build_engine(BuildRequest(model=models.mlp(8, (16,), 3, seed=seed), engine=engine, runtime="native"))
    run = measure(asked(first, second), NativeLoad(programs), lambda line: None)
    assert (run.reloads, run.failures, run.lost, run.in_order) == (2, [], 0, True)
    manifest_path(second).unlink()
    with pytest.raises(BadRequest, match=r"second\.engine\.json: no such file"):
        measure(asked(first, second), NativeLoad(programs), lambda line: None)


def test_processor_time_is_that_of_all_threads_and_children(tmp_path: Path) -> None:
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    for pid, thread, ran_ns, children, ended in ((1, 1, 5, "2", 3), (1, 4, 7, "", 3), (2, 2, 11, "", 0)):
        task = tmp_path / str(pid) / "task" / str(thread)
        task.mkdir(parents=True)
        (task / "schedstat").write_text(f"{ran_ns} 99 1\n")
        (task / "children").write_text(children)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) S " + "0 " * 12 + f"{ended} {ended} 0\n")
    assert used_ns(1, tmp_path) == 5 + 7 + 11 + 6 * tick_ns
    (tmp_path / "1" / "task" / "4" / "schedstat").unlink()
    assert used_ns(1, tmp_path) is None


@pytest.mark.parametrize(("during_us", "exit_code"), [(119, 0), (130, 1)])
def test_the_command_shows_the_bar_beside_the_floor_and_ends_by_it(
    programs: NativePrograms, monkeypatch: pytest.MonkeyPatch, during_us: int, exit_code: int
) -> None:
    run = replace(found(), during=[10_000, during_us * 1000, 200_000, 300_000])
    monkeypatch.setattr(reload, "measure", lambda asked, generator, say: run)
    shown = CliRunner().invoke(main, [])
    assert shown.exit_code == exit_code, shown.output
    assert f"p99 {during_us / 100:.2f} times as long during reloads (bar 1.2), 1.10 beside" in shown.output
    assert ("passed" if exit_code == 0 else "FAILED") in shown.output
    as_json = json.loads(CliRunner().invoke(main, ["--json"]).stdout)
    assert as_json["passed"] is (exit_code == 0)
    assert (as_json["p99_ratio"], as_json["p99_floor_ratio"]) == (during_us / 100, 1.1)
    assert as_json["generations"] == [1, 3]
    assert (as_json["reload_cpu_ms"], as_json["at_rest"]["p99.9_us"]) == (18, 200)
    assert "a reload takes 18.0 ms of processor time" in shown.output
