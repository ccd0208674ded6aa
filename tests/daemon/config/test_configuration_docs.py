"""docs/configuration.md: every key with its type, default and bounds, and no other."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from sigd.daemon.config.access import AccessConfig
from sigd.daemon.config.config import Config, load_config
from sigd.daemon.config.models import HistoryTable, ModelTable, ShadowTable
from sigd.daemon.config.recorder import RecorderConfig

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEXT = (DOCS / "configuration.md").read_text("utf-8")
TABLES = {
    "The file": Config,
    "[[model]]": ModelTable,
    "[shadow]": ShadowTable,
    "[history]": HistoryTable,
    "[access]": AccessConfig,
    "[recorder]": RecorderConfig,
}
SPREAD = ("The sockets", "The model", "The loop", "Bounds", "A GPU", "What is told")
"""Sections over which the keys of the file itself are spread."""
_WORDS: dict[type, str] = {
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "boolean",
    inspect.StrType: "string",
    inspect.EnumType: "string",
    inspect.StructType: "table",
    inspect.DictType: "table of integers",
    inspect.VarTupleType: "list",
    inspect.UnionType: "string or tables",
}
_UNITS = ("us", "ms", "s", "mib", "bytes")
_ROW = re.compile(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \| [^|]+ \|$", re.MULTILINE)


def rows(section: str) -> dict[str, tuple[str, str, str]]:
    """Type, default and bounds by key."""
    found = _ROW.findall(TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0])
    assert found, section
    return {name: (kind, default, bounds) for name, kind, default, bounds in found}


def expected(field: inspect.Field) -> tuple[str, str, str]:
    """The same from the code."""
    kind: Any = field.type
    if isinstance(kind, inspect.UnionType) and any(isinstance(one, inspect.NoneType) for one in kind.types):
        (kind,) = (one for one in kind.types if not isinstance(one, inspect.NoneType))
    words = _WORDS[type(kind)]
    if isinstance(kind, inspect.DictType) and isinstance(kind.value_type, inspect.StrType):
        words = "table of strings"
    unit = field.name.rpartition("_")[2]
    if words in ("integer", "number") and unit in _UNITS:
        words += f", {'MiB' if unit == 'mib' else unit}"
    return words, _default(field), _bounds(kind)


def _default(field: inspect.Field) -> str:
    if field.required:
        return "needed"
    value: Any = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None or value in ("", ()) or isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, Enum):
        value = value.value
    return f"`{msgspec.json.encode(value).decode()}`"


def _bounds(kind: Any) -> str:
    if isinstance(kind, inspect.EnumType):
        return ", ".join(f"`{one.value}`" for one in kind.cls)
    if isinstance(kind, inspect.IntType):
        return f"{kind.ge:,} to {kind.le:,}"
    if isinstance(kind, inspect.FloatType):
        return f"above {kind.gt:,} to {kind.le:,}"
    return "three octal digits" if isinstance(kind, inspect.StrType) and kind.pattern else ""


@pytest.mark.parametrize("section", [section for section in TABLES if section != "The file"])
def test_a_table_has_all_its_keys_as_they_are(section: str) -> None:
    fields = inspect.type_info(TABLES[section]).fields  # type: ignore[attr-defined]
    assert rows(section) == {field.name: expected(field) for field in fields}


def test_the_file_has_all_its_keys_as_they_are() -> None:
    shown = [item for section in SPREAD for item in rows(section).items()]
    assert len(shown) == len(dict(shown)), "one key stands in one place"
    fields = inspect.type_info(Config).fields  # type: ignore[attr-defined]
    assert dict(shown) == {field.name: expected(field) for field in fields}


def test_its_examples_are_good(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) > 2
    for block in blocks:
        file = tmp_path / "sigd.toml"
        file.write_text(block)
        load_config(file, {})


def test_the_files_that_it_points_to_are_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (DOCS / link).exists(), link
