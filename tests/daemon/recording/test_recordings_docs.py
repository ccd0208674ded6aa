"""docs/recordings.md: its settings are the defaults, its tables are the format."""

from __future__ import annotations

import re
import struct
import tomllib
from pathlib import Path

import msgspec
import pytest

from sigd.daemon.config.recorder import RecorderConfig
from sigd.wire.recording import format as recording

PAGE = Path(__file__).resolve().parents[3] / "docs" / "recordings.md"
TEXT = PAGE.read_text("utf-8")
_TYPES = {"u16": "H", "u32": "I", "u64": "Q", "4 bytes": "4s", "8 bytes": "8s", "16 bytes": "16s"}


def table(first_line: str) -> list[tuple[int, str]]:
    """Offset and type of each field of the table behind that line."""
    lines = TEXT.partition(first_line)[2].splitlines()
    rows = [re.fullmatch(r"\| (\d+) \| (.*?) ?\| .*", line) for line in lines[: lines.index("", 5)]]
    return [(int(row[1]), row[2]) for row in rows if row]


def test_the_settings_are_the_defaults() -> None:
    block = "\n".join(
        line.removeprefix("    ")
        for line in re.findall(r"^    (?:\[recorder\]|\w+ = .*)$", TEXT, re.MULTILINE)
    )
    shown = tomllib.loads(block)["recorder"]
    assert set(shown) == set(RecorderConfig.__struct_fields__)
    assert msgspec.convert(shown | {"directory": ""}, RecorderConfig) == RecorderConfig()


@pytest.mark.parametrize(
    ("first_line", "of_code"),
    [
        ("A segment begins", recording._SEGMENT),
        ("Blocks follow", recording._BLOCK),
        ("And records in them", recording.RECORD),
    ],
)
def test_the_tables_are_the_format(first_line: str, of_code: struct.Struct) -> None:
    *fields, (size, _) = table(first_line)
    codes = [_TYPES[kind] for _, kind in fields]
    offsets = [struct.calcsize("<" + "".join(codes[:number])) for number in range(len(codes))]
    assert [offset for offset, _ in fields] == offsets
    assert size == of_code.size
    unfolded = re.sub(r"(\d+)([HIQ])", lambda run: run[2] * int(run[1]), of_code.format)
    assert "<" + "".join(codes) == unfolded


def test_the_kinds_of_records_are_named() -> None:
    assert "kind: 0 filler, 1 requests with answers, 2 a client, 3 the end" in TEXT
    assert [kind.name for kind in recording.Kind] == ["FILLER", "EXCHANGES", "SESSION", "END"]


def test_the_files_that_it_points_to_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / link).exists(), link
