"""The JSON Schema of what the measurements write: `python -m sigd.bench.result_schema` writes it beside this
file, for `sigd schema --bench` to print; a test compares both."""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path
from typing import Any, Final

import msgspec

from sigd.bench.alternatives.document import Comparison
from sigd.bench.document import Document
from sigd.bench.growth import Growth
from sigd.bench.reload import Document as Reload

FILE: Final = Path(__file__).with_suffix(".json")
_COMMANDS: Final = {
    "sigd bench": Document,
    "sigd bench compare": Comparison,
    "sigd bench growth": Growth,
    "sigd bench reload": Reload,
}


def text() -> str:
    """The schema, draft 2020-12: one of the results of the commands above."""
    roots, definitions = msgspec.json.schema_components(_COMMANDS.values())
    one_of: list[dict[str, Any]] = [
        {"title": command, **root} for command, root in zip(_COMMANDS, roots, strict=True)
    ]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of sigd bench",
        "description": "Names stay; ignore what is not known. Names that end in _us are microseconds.",
        "oneOf": one_of,
        "$defs": {name: _described(part) for name, part in definitions.items()},
    }
    return msgspec.json.format(msgspec.json.encode(schema), indent=1).decode() + "\n"


def _described(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"description": cleandoc(part["description"])} if "description" in part else part


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
