"""The comparison as data: what `--json` writes, and what tables and report are drawn from. Times are
microseconds (`_us`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from sigd.bench.environment import Environment

NAME: Final = "sigd.bench.compare"
VERSION: Final = 1
BASE: Final = "sigd-shm-native"
"""The contender that ratios are of, and that the bars hold."""
IN_PROCESS: Final = "onnxruntime-in-process"
P99_TIMES_MIN: Final = 30.0
"""How many times as long the best server's p99 has to be."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One contender under one load, over all rounds.

    Attributes:
        load: its name.
        valid: every request was sent, answered and right, and the rate was met; `reasons` says why not.
        disturbed: the machine took more than a hundredth of the time away.
        taken_share: of the time, by the machine.
        p50_us to max_us: from when a request was due (closed loop: sent) to its answer; 0 without answers.
        times_p50, times_p99: how many times as long as with BASE; None where one of both is not there.
        hdr: the latencies as an HdrHistogram in ns, V2 compressed and base64.
    """

    load: str
    valid: bool
    reasons: list[str]
    disturbed: bool
    taken_share: float
    requests: int
    p50_us: float
    p90_us: float
    p99_us: float
    p99_9_us: float
    max_us: float
    times_p50: float | None = None
    times_p99: float | None = None
    hdr: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One contender. `why_not` says why it did not run; "" where it did."""

    name: str
    title: str
    kind: str
    configuration: str
    versions: dict[str, str]
    why_not: str
    cells: list[Cell]

    def cell(self, load: str) -> Cell | None:
        """Its figures under that load; None where it has none."""
        return next((cell for cell in self.cells if cell.load == load), None)


class ModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """All contenders on one model. `rows` is how many different rows were sent in turn, `capture_speed` how
    many times as fast as they were a capture's arrivals came in the load "capture-fast"; 0 without a
    capture."""

    name: str
    sha256: str
    features: int
    outputs: int
    rows: int
    contenders: list[Entry]
    capture_speed: float = 0.0

    def entry(self, name: str) -> Entry:
        """That contender."""
        return next(entry for entry in self.contenders if entry.name == name)


class LoadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One load: its stable name, and what it is in words."""

    name: str
    title: str


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar. `kept` is None where the machine was disturbed: then `found` says nothing."""

    model: str
    load: str
    what: str
    kept: bool | None
    found: float
    expected: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result.

    Attributes:
        document, version: of this form; a reader refuses what it does not know.
        passed: every bar was kept.
        inconclusive: none was missed, and some could not be judged, for the machine was disturbed.
    """

    document: str
    version: int
    passed: bool
    inconclusive: bool
    bars: list[Bar]
    loads: list[LoadFacts]
    models: list[ModelResult]
    rounds: int
    seconds: float
    seed: int
    environment: Environment

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        from sigd.bench.verdict import INCONCLUSIVE_EXIT_CODE

        if self.passed:
            return 0
        return INCONCLUSIVE_EXIT_CODE if self.inconclusive else 1


def with_ratios(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with how many times as long as BASE each of them takes."""
    base = next((entry for entry in entries if entry.name == BASE), None)

    def related(cell: Cell) -> Cell:
        other = None if base is None else base.cell(cell.load)
        if other is None or not (cell.p50_us and other.p50_us):
            return cell
        return msgspec.structs.replace(
            cell,
            times_p50=round(cell.p50_us / other.p50_us, 2),
            times_p99=round(cell.p99_us / other.p99_us, 2),
        )

    return [
        msgspec.structs.replace(entry, cells=[related(cell) for cell in entry.cells]) for entry in entries
    ]


def judge(models: Sequence[ModelResult], loads: Sequence[LoadFacts]) -> list[Bar]:
    """The bars that can be held to what was measured."""
    return [bar for model in models for bar in _bars_of(model, loads)]


def _bars_of(model: ModelResult, loads: Sequence[LoadFacts]) -> Iterator[Bar]:
    by_name = {entry.name: entry for entry in model.contenders}
    base = by_name.get(BASE)
    if base is None:
        return
    mine = base.cell("closed")
    other = by_name[IN_PROCESS].cell("closed") if IN_PROCESS in by_name else None
    if mine is not None and other is not None and other.valid:
        yield _bar(
            model,
            "closed",
            "ONNX Runtime in the caller's process takes longer at p50: times",
            (mine, other),
            other.p50_us / mine.p50_us if mine.p50_us else 0.0,
            1.0,
        )
    for load in loads:
        mine = base.cell(load.name)
        servers = [entry.cell(load.name) for entry in model.contenders if entry.kind == "server"]
        served = [cell for cell in servers if cell is not None and cell.valid]
        if mine is None or not served:
            continue
        best = min(served, key=lambda cell: cell.p99_us)
        times = best.p99_us / mine.p99_us if mine.p99_us else 0.0
        yield _bar(
            model, load.name, "the best server takes longer at p99: times", (mine, best), times, P99_TIMES_MIN
        )


def _bar(
    model: ModelResult, load: str, what: str, cells: tuple[Cell, Cell], found: float, expected: float
) -> Bar:
    disturbed = any(cell.disturbed for cell in cells)
    kept = None if disturbed else cells[0].valid and found >= expected
    return Bar(model=model.name, load=load, what=what, kept=kept, found=round(found, 2), expected=expected)
