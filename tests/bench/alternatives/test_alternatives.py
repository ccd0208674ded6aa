"""The comparison: its loads, its bars, its command."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from sigd.bench.alternatives import environment
from sigd.bench.alternatives.contenders import CONTENDERS
from sigd.bench.alternatives.document import (
    BASE,
    Bar,
    Cell,
    Comparison,
    Entry,
    LoadFacts,
    ModelResult,
    judge,
    with_ratios,
)
from sigd.bench.alternatives.loads import loads
from sigd.bench.commands.alternatives import main
from sigd.bench.errors import MissingDependency
from sigd.bench.load import schedule

CLOSED = LoadFacts(name="closed", title="one after the other")


def cell(p50_us: float, p99_us: float, *, valid: bool = True, disturbed: bool = False) -> Cell:
    return Cell(
        load="closed",
        valid=valid,
        reasons=[] if valid else ["late"],
        disturbed=disturbed,
        taken_share=0.02 if disturbed else 0.0,
        requests=1000,
        p50_us=p50_us,
        p90_us=p50_us,
        p99_us=p99_us,
        p99_9_us=p99_us,
        max_us=p99_us,
        hdr="",
    )


def model(**cells: Cell) -> ModelResult:
    kinds = {BASE: "sigd", "onnxruntime-in-process": "in process"}
    entries = [
        Entry(
            name=name,
            title=name,
            kind=kinds.get(name, "server"),
            configuration="",
            versions={},
            why_not="",
            cells=[one],
        )
        for name, one in ((name.replace("_", "-"), one) for name, one in cells.items())
    ]
    return ModelResult(name="m", sha256="", features=1, outputs=1, rows=1, contenders=with_ratios(entries))


def bars_of(**cells: Cell) -> list[Bar]:
    return judge([model(**cells)], [CLOSED])


def test_bursts_are_as_many_at_once() -> None:
    assert schedule.bursts(3, 4, 0.5).tolist() == [0, 0, 0, 250_000_000, 250_000_000, 250_000_000]


def test_loads_have_stable_names() -> None:
    assert [load.name for load in loads((500.0,), (20, 100))] == [
        "closed",
        "rate-500",
        "burst-20",
        "burst-100",
    ]


def test_contenders_have_names_of_their_own() -> None:
    names = [contender.name for contender in CONTENDERS]
    assert len(set(names)) == len(names)
    assert BASE in names


def test_ratios_are_of_sigd() -> None:
    found = model(sigd_shm_native=cell(4, 6), grpc=cell(200, 300)).entry("grpc").cell("closed")
    assert found is not None
    assert (found.times_p50, found.times_p99) == (50, 50)


def test_both_bars_are_kept() -> None:
    bars = bars_of(sigd_shm_native=cell(4, 6), onnxruntime_in_process=cell(5, 7), grpc=cell(200, 300))
    assert [(bar.kept, bar.found) for bar in bars] == [(True, 1.25), (True, 50)]


def test_the_best_server_decides() -> None:
    bars = bars_of(sigd_shm_native=cell(4, 6), grpc=cell(200, 300), fastapi=cell(90, 120))
    assert [(bar.kept, bar.found) for bar in bars] == [(False, 20)]


def test_a_server_that_could_not_keep_up_decides_nothing() -> None:
    bars = bars_of(sigd_shm_native=cell(4, 6), grpc=cell(200, 300), fastapi=cell(1, 1, valid=False))
    assert [(bar.kept, bar.found) for bar in bars] == [(True, 50)]


@pytest.mark.parametrize("which", ["sigd_shm_native", "grpc"])
def test_a_disturbed_machine_is_inconclusive(which: str) -> None:
    cells = {"sigd_shm_native": cell(4, 6), "grpc": cell(200, 300)}
    cells[which] = msgspec.structs.replace(cells[which], disturbed=True)
    assert [bar.kept for bar in bars_of(**cells)] == [None]


def test_an_environment_that_is_not_there_names_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SIGD_CACHE", str(tmp_path))
    with pytest.raises(MissingDependency, match="--prepare"):
        environment.environment("servers").require()


def test_an_unknown_contender_is_refused() -> None:
    done = CliRunner().invoke(main, ["--only", "nginx"])
    assert done.exit_code == 2
    assert "expected one of echo-shm" in done.output


def test_the_contenders_are_listed_with_their_configuration() -> None:
    done = CliRunner().invoke(main, ["--list"])
    assert done.exit_code == 0
    assert "RunWithBinding" in done.output


@pytest.mark.slow
def test_a_run_has_figures_for_each_and_says_why_one_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "cache_folder", lambda: tmp_path / "empty")
    arguments = [
        "--only",
        "echo-shm",
        "--only",
        "onnxruntime-in-process",
        "--only",
        "grpc",
        "--rounds",
        "1",
        "--seconds",
        "0.1",
    ]
    done = CliRunner().invoke(main, [*arguments, "--rate", "500", "--burst", "20", "--json", "-"])
    found = msgspec.json.decode(done.stdout, type=Comparison)
    assert done.exit_code == found.exit_code
    (result,) = found.models
    assert "--prepare" in result.entry("grpc").why_not
    for name in ("echo-shm", BASE, "sigd-uds-onnxruntime", "onnxruntime-in-process"):
        cells = result.entry(name).cells
        assert [one.load for one in cells] == ["closed", "rate-500", "burst-20"]
        assert all(one.requests and one.p50_us <= one.p99_us <= one.max_us for one in cells)
        assert cells[0].valid, cells[0].reasons
