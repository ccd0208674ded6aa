"""What to say about a configuration that is refused: the line, the nearest name, the values there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

_UNKNOWN: Final = re.compile(r"unknown field `(?P<name>[^`]*)`")
_PLACE: Final = re.compile(r"`\$(?P<place>[^`]*)`$")


def explain(error: str, table: type[msgspec.Struct], text: str) -> str:
    """What msgspec's error leaves out.

    Args:
        error: its message.
        table: the struct of the table that it speaks of.
        text: the configuration; "" where there is no file.

    Returns:
        Words to put behind the message; "" where there is nothing to add.
    """
    known = table.__struct_fields__
    unknown = _UNKNOWN.search(error)
    if unknown is not None:
        name = unknown["name"]
        return f"{_line_of(name, text)}{_nearest(name, known)}; known names are: {', '.join(known)}"
    place = _PLACE.search(error)
    if place is None:
        return ""
    name = place["place"].rpartition(".")[2].partition("[")[0]
    values = _values(get_type_hints(table).get(name))
    allowed = f", expected one of {', '.join(map(repr, values))}" if values else ""
    return f"{_line_of(name, text)}{allowed}"


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f": did you mean {near[0]!r}?" if near else ""


def _line_of(name: str, text: str) -> str:
    """Where a key or a table of that name stands; the first of several."""
    begins = re.compile(rf"""\s*(\[+\s*)?(['"]?[\w-]+['"]?\s*\.\s*)*['"]?{re.escape(name)}['"]?\s*[=.\]]""")
    numbers = [number for number, line in enumerate(text.splitlines(), 1) if begins.match(line)]
    return f" (line {numbers[0]})" if numbers else ""


def _values(annotation: Any) -> list[Any]:
    """The values that a type lists, also where it is one of several."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [member.value for member in annotation]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _values(part)]
