"""What is wrong with a capture is counted, with line and time, and does not cost what is whole."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from tests.models.market.captures import BEGIN_NS, Line, is_depth, market, packed, text

from sigd.models.features import FeatureStream
from sigd.models.market.capture import CaptureReader, read_capture
from sigd.models.market.errors import CaptureError
from sigd.models.market.faults import FIRST_KEPT


def read(path: Path, content: bytes, *, salvage: bool = True) -> tuple[CaptureReader, FeatureStream, int]:
    """The reader, the stream that has seen every event, and how many there were."""
    path.write_bytes(content)
    reader, stream = CaptureReader(path, salvage=salvage), FeatureStream()
    reader.watch(stream)
    events = 0
    for event in reader:
        stream.on_event(event)
        events += 1
    return reader, stream, events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capture.gz"


@pytest.fixture
def lines() -> list[Line]:
    return market()


def test_a_whole_capture_has_no_fault(path: Path, lines: list[Line]) -> None:
    reader, stream, events = read(path, packed(lines), salvage=False)
    assert not reader.faults
    assert (events, reader.stamp_unit) == (len(lines), "ns")
    assert stream.samples > 200


def test_a_missing_depth_message_is_a_gap_with_its_line(path: Path, lines: list[Line]) -> None:
    at = [number for number, line in enumerate(lines) if is_depth(line)][300]
    whole = read(path, packed(lines))[1].samples
    del lines[at]
    reader, stream, _ = read(path, packed(lines), salvage=False)
    assert reader.faults.counts == {"gap": 1}
    (fault,) = reader.faults.first
    next_depth = next(number for number in range(at, len(lines)) if is_depth(lines[number]))
    assert (fault.line, fault.time_ns) == (next_depth + 1, lines[next_depth][0])
    assert "messages between them are missing" in fault.problem
    assert stream.samples < whole


def test_a_crossed_book_is_told(path: Path, lines: list[Line]) -> None:
    at = [number for number, line in enumerate(lines) if is_depth(line)][300]
    lines[at][1]["data"]["b"] = [["20000.00", "1.0"]]
    reader, _, _ = read(path, packed(lines), salvage=False)
    assert reader.faults.counts == {"crossed book": 1}
    assert reader.faults.first[0].line == at + 1


@pytest.mark.parametrize("change", [{"b": "10001.00"}, {"b": "0", "B": "0"}, {"A": "0"}])
def test_a_quote_that_cannot_be_meant_is_told(path: Path, lines: list[Line], change: dict[str, Any]) -> None:
    at = next(n for n in range(500, len(lines)) if "bookTicker" in lines[n][1]["stream"])
    lines[at][1]["data"].update(change)
    reader, _, _ = read(path, packed(lines), salvage=False)
    assert reader.faults.counts == {"impossible event": 1}
    assert reader.faults.first[0].line == at + 1


@pytest.mark.parametrize(
    ("field", "kind", "by"), [("t", "out of order", -6), ("t", "repeated", -3), ("u", "out of order", -5)]
)
def test_events_that_changed_places_are_told(
    path: Path, lines: list[Line], field: str, kind: str, by: int
) -> None:
    stream = "trade" if field == "t" else "bookTicker"
    at = [n for n, (_, message) in enumerate(lines) if message.get("stream", "").endswith(stream)][90]
    lines[at][1]["data"][field] += by
    reader, _, _ = read(path, packed(lines), salvage=False)
    assert reader.faults.counts == {kind: 1}
    assert reader.faults.first[0].line == at + 1


def test_blank_lines_are_nothing(path: Path, lines: list[Line]) -> None:
    content = text(lines)
    for blank in (content + b"\n", b"\n" + content, content.replace(b"\n", b"\r\n") + b"\r\n"):
        reader, _, events = read(path, gzip.compress(blank), salvage=False)
        assert (events, bool(reader.faults)) == (len(lines), False)


@pytest.mark.parametrize(("unit", "unit_ns"), [("us", 10**3), ("ms", 10**6), ("s", 10**9)])
def test_times_of_another_unit_are_recognised(path: Path, lines: list[Line], unit: str, unit_ns: int) -> None:
    path.write_bytes(packed(lines, unit_ns))
    reader = CaptureReader(path)
    times = [event.receive_ns for event in reader]
    assert reader.stamp_unit == unit
    assert times == [time_ns // unit_ns * unit_ns for time_ns, _ in lines]


def test_small_numbers_are_nanoseconds(path: Path) -> None:
    path.write_bytes(packed([(time_ns - BEGIN_NS, message) for time_ns, message in market(3)]))
    assert next(iter(CaptureReader(path))).receive_ns == 0


def test_a_clock_that_steps_back_stands_still(path: Path, lines: list[Line]) -> None:
    lines = [(time_ns - (3_000_000 if n > 400 else 0), message) for n, (time_ns, message) in enumerate(lines)]
    lines[401] = (lines[400][0] - 3_000_000, lines[401][1])
    reader, stream, events = read(path, packed(lines))
    assert events == len(lines)
    assert reader.faults.counts == {"clock back": 2}
    assert reader.faults.first[0].line == 402
    assert stream.samples > 200
    with pytest.raises(CaptureError, match="is before the line above's") as caught:
        list(read_capture(path))
    assert caught.value.salvageable


def test_a_torn_line_costs_itself(path: Path, lines: list[Line]) -> None:
    content = text(lines).splitlines(keepends=True)
    # A quote, so that the book does not miss it.
    at = next(n for n in range(600, len(lines)) if "bookTicker" in lines[n][1]["stream"])
    content[at] = content[at][:40] + b"\n"
    reader, _, events = read(path, gzip.compress(b"".join(content)))
    assert events == len(lines) - 1
    assert reader.faults.counts == {"torn line": 1}
    assert reader.faults.first[0].line == at + 1


def test_a_file_that_ends_too_soon_gives_what_is_in_it(path: Path, lines: list[Line]) -> None:
    content = packed(lines)
    with pytest.raises(CaptureError, match="ends too soon"):
        read(path, content[: len(content) * 3 // 4], salvage=False)
    reader, _, events = read(path, content[: len(content) * 3 // 4])
    assert events > len(lines) // 2
    assert reader.faults.counts["damaged file"] == 1


def test_what_a_collector_wrote_after_its_crash_is_found(path: Path, lines: list[Line]) -> None:
    before, after = packed(lines[:600]), packed(lines[600:])
    reader, _, events = read(path, before[:-200] + after)
    assert len(lines) - 60 < events < len(lines)
    assert reader.faults.counts["damaged file"] == 1
    # Two members that are whole are one file.
    reader, _, events = read(path, before + after + b"\0" * 512, salvage=False)
    assert (events, bool(reader.faults)) == (len(lines), False)


def test_no_gzip_file_has_nothing_to_salvage(path: Path, lines: list[Line]) -> None:
    with pytest.raises(CaptureError, match="not a gzip file") as caught:
        read(path, text(lines))
    assert not caught.value.salvageable


def test_all_are_counted_and_the_first_are_kept(path: Path, lines: list[Line]) -> None:
    for number in range(100, 120):
        lines[number] = (lines[number][0], {"stream": "btcusdt@kline", "data": {}})
    reader, _, _ = read(path, packed(lines))
    assert reader.faults.counts["torn line"] == 20
    assert [fault.line for fault in reader.faults.first[:FIRST_KEPT]] == [101, 102, 103, 104, 105]
    assert "20 torn line" in str(reader.faults)
