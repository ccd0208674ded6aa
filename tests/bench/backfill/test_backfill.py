"""`sigd backfill` end to end: parity, resume, failed pieces, stamps."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.bench.backfill.captures import START_NS, synthetic_events, write_capture, write_plan

from sigd.bench.commands.backfill import backfill
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.market.replay import Replayer
from sigd.models.features import FeatureStream
from sigd.models.market.capture import read_capture
from sigd.models.market.events import DepthDiff
from sigd.models.training.outcome import outcome_of_model
from sigd.models.zoo import default_model_path
from sigd.wire.client import connect

parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'sigd[backfill]'")

SECOND_DAY_NS = START_NS + 86_400 * 10**9


@dataclass
class Result:
    exit_code: int
    stderr: str
    summary: dict[str, Any]


def run(plan: Path, out: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(
        backfill, [str(plan), "--out", str(out), "--workers", "2", "--json", *arguments]
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(
        result.exit_code, result.stderr, json.loads(result.stdout) if result.stdout.startswith("{") else {}
    )


def piece(out: Path, symbol: str, date: str) -> Path:
    return out / f"symbol={symbol}" / f"date={date}" / f"{symbol}-{date}.parquet"


def column(path: Path, name: str) -> np.ndarray[Any, Any]:
    """Nulls as NaN."""
    values: np.ndarray[Any, Any] = parquet.read_table(path, columns=[name], partitioning=None)[
        name
    ].to_numpy()
    return values


def outputs_of(path: Path) -> np.ndarray[Any, Any]:
    return np.stack([column(path, f"output_{number}") for number in range(3)], axis=1)


def files_left(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*") if path.is_file())


def test_each_row_equals_the_answer_of_a_real_daemon(plan: Path, tmp_path: Path) -> None:
    assert run(plan, tmp_path / "out").exit_code == 0
    outcome = outcome_of_model(default_model_path())
    assert outcome is not None
    with OwnDaemon(ServeOptions()) as daemon, connect(daemon.socket_path) as client:
        signals = Replayer(client, None).run(read_capture(tmp_path / "aaa_day1.gz"), lambda *_: None)
    scored = piece(tmp_path / "out", "aaa", "day1")
    assert len(signals.receive_ns) > 1_000
    assert column(scored, "receive_ns").tolist() == signals.receive_ns.tolist()
    assert outputs_of(scored).tobytes() == signals.answers["outputs"].tobytes()
    assert column(scored, "mid").tobytes() == signals.mid.tobytes()
    np.testing.assert_array_equal(column(scored, "move_bps"), signals.moves_bps(outcome.horizon_ns))
    assert column(scored, "signal").tolist() == signals.classes.tolist()
    assert set(column(scored, "status")) == {0}
    assert set(parquet.read_table(scored, partitioning=None)["instrument"].to_pylist()) == {"aaa"}


def test_rows_after_the_first_date_are_those_of_one_unbroken_stream(plan: Path, tmp_path: Path) -> None:
    """A quiet market: without a trade for long after the cut the 10 s of warm-up are not enough."""
    second = [
        event
        for event in synthetic_events(1, 8_000, SECOND_DAY_NS)
        if type(event).__name__ != "Trade" or event.receive_ns > SECOND_DAY_NS + 15 * 10**9
    ]
    capture = write_capture(tmp_path / "aaa_day2.gz", second)
    assert run(plan, tmp_path / "out").exit_code == 0
    fresh = FeatureStream(tick_size_e8=10_000_000)
    warm = [event.receive_ns for event in read_capture(capture) if fresh.on_event(event)]
    scored = column(piece(tmp_path / "out", "aaa", "day2"), "receive_ns").tolist()
    assert scored == warm[-len(scored) :]
    trade = next(event.receive_ns for event in second if type(event).__name__ == "Trade")
    assert warm[0] < trade < scored[0]


def test_second_run_finds_every_piece_and_changes_nothing(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(plan, out).summary
    assert (first["done"], first["found"]) == (4, 0)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    second = run(plan, out).summary
    assert (second["done"], second["found"]) == (0, 4)
    assert second["sha256"] == first["sha256"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert files_left(out) == [
        "_manifest.json",
        "_pieces.jsonl",
        *("aaa-day1.parquet", "aaa-day2.parquet", "bbb-day1.parquet", "bbb-day2.parquet"),
    ]


def test_lost_index_is_made_anew_from_the_files(plan: Path, tmp_path: Path) -> None:
    first = run(plan, tmp_path / "out").summary
    index = tmp_path / "out" / "_pieces.jsonl"
    index.write_bytes(index.read_bytes()[:-30])  # as a run leaves it that is killed in the middle of a line
    second = run(plan, tmp_path / "out").summary
    assert (second["found"], second["done"], second["sha256"]) == (3, 1, first["sha256"])


def test_files_are_the_same_bytes_when_made_again(plan: Path, tmp_path: Path) -> None:
    one, other = run(plan, tmp_path / "one").summary, run(plan, tmp_path / "other").summary
    assert one["sha256"] == other["sha256"]
    assert (
        piece(tmp_path / "one", "bbb", "day2").read_bytes()
        == piece(tmp_path / "other", "bbb", "day2").read_bytes()
    )


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1_000])


def out_of_order(path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([*lines[:100], lines[200], *lines[100:]])))


def one_diff_missing(path: Path) -> None:
    events = list(synthetic_events(0, 5_000))
    gap = next(n for n, event in enumerate(events) if isinstance(event, DepthDiff) and n > 3_500)
    write_capture(path, events[:gap] + events[gap + 1 :])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "aaa_day1.gz: No such file"),
        (cut_short, "ends too soon"),
        (out_of_order, "is before the line above's"),
        (one_diff_missing, "the book broke 1 times"),
    ],
)
def test_failed_piece_is_named_and_the_others_finish(
    plan: Path, tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    harm(tmp_path / "aaa_day1.gz")
    result = run(plan, tmp_path / "out")
    assert result.exit_code == 1
    assert list(result.summary["failed"]) == ["aaa-day1"]
    assert reason in result.summary["failed"]["aaa-day1"]
    assert result.summary["done"] == 3
    assert not piece(tmp_path / "out", "aaa", "day1").exists()
    assert not list((tmp_path / "out").rglob(".tmp"))


def test_rows_around_a_gap_are_kept_where_the_plan_allows_it(plan: Path, tmp_path: Path) -> None:
    one_diff_missing(tmp_path / "aaa_day1.gz")
    write_plan(plan, ("aaa",), ("day1",), 'gaps = "allow"')
    result = run(plan, tmp_path / "out")
    assert result.exit_code == 0
    assert 0 < result.summary["rows"] < 3_000


def test_another_stamp_is_refused_with_what_differs(plan: Path, tmp_path: Path) -> None:
    run(plan, tmp_path / "out")
    write_plan(plan, ("aaa",), ("day1",), "horizon_ms = 7", "flat_bps = 0.5")
    result = run(plan, tmp_path / "out")
    assert result.exit_code == 2
    assert "horizon_ns:" in result.stderr
    assert ", 7000000" in result.stderr
    assert "model_sha256" not in result.stderr


def test_handed_over_state_continues_the_stream_over_the_dates(tmp_path: Path) -> None:
    """Three files cut out of one market without a snapshot at the cuts."""
    events = list(synthetic_events(3, 6_000))
    for number, (first, end) in enumerate(((0, 3_100), (3_100, 4_000), (4_000, 6_000))):
        write_capture(tmp_path / f"aaa_part{number}.gz", events[first:end])
    plan = write_plan(tmp_path / "plan.toml", ("aaa",), ("part0", "part1", "part2"), 'state = "handover"')
    assert run(plan, tmp_path / "out").exit_code == 0
    write_capture(tmp_path / "aaa_whole.gz", events)
    whole = write_plan(tmp_path / "whole.toml", ("aaa",), ("whole",))
    assert run(whole, tmp_path / "uncut").exit_code == 0
    parts = [piece(tmp_path / "out", "aaa", f"part{number}") for number in range(3)]
    uncut = piece(tmp_path / "uncut", "aaa", "whole")
    assert np.concatenate([outputs_of(part) for part in parts]).tobytes() == outputs_of(uncut).tobytes()
    # Its state is what a later run begins with.
    parts[2].unlink()
    assert run(plan, tmp_path / "out").summary["done"] == 1
    assert np.concatenate([outputs_of(part) for part in parts]).tobytes() == outputs_of(uncut).tobytes()


def test_failed_piece_holds_back_those_that_begin_with_its_state(tmp_path: Path) -> None:
    events = list(synthetic_events(3, 4_000))
    for number in range(3):
        write_capture(tmp_path / f"aaa_part{number}.gz", events[number * 1_000 : number * 1_000 + 1_000])
    plan = write_plan(tmp_path / "plan.toml", ("aaa",), ("part0", "part1", "part2"), 'state = "handover"')
    cut_short(tmp_path / "aaa_part1.gz")
    failed = run(plan, tmp_path / "out").summary["failed"]
    assert "ends too soon" in failed["aaa-part1"]
    assert failed["aaa-part2"] == "it begins with the state after aaa-part1, which failed"


# Ctrl-C comes as soon as the first piece is committed, however fast the others are.
INTERRUPT_AFTER_THE_FIRST_PIECE = """
import signal

from sigd.bench.backfill.store import Store
from sigd.daemon.cli import main

note = Store.note

def note_and_interrupt(self, outcome):
    note(self, outcome)
    signal.raise_signal(signal.SIGINT)

if __name__ == "__main__":
    # A shell's background jobs ignore Ctrl-C, and so does all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Store.note = note_and_interrupt
    main()
"""


def test_interrupted_run_says_so_and_goes_on_later(plan: Path, tmp_path: Path) -> None:
    undisturbed = run(plan, tmp_path / "undisturbed").summary
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-c", INTERRUPT_AFTER_THE_FIRST_PIECE, "backfill", str(plan)]
    process = subprocess.run(
        [*command, "--out", str(out), "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 130, process.stderr
    assert "the same command goes on" in process.stderr
    assert len(list(out.rglob("*.parquet"))) < 4
    assert not list(out.rglob(".tmp"))
    assert run(plan, out).summary["sha256"] == undisturbed["sha256"]


def test_directory_of_a_run_that_goes_on_is_refused(plan: Path, tmp_path: Path) -> None:
    from sigd.bench.backfill.store import Store

    with Store(tmp_path / "out"):
        result = run(plan, tmp_path / "out")
    assert result.exit_code == 2
    assert "another backfill writes there" in result.stderr
