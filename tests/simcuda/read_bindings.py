"""Print what a module of TensorRT's bindings offers, as JSON. Run in a process of its own, one for each
version:

    LD_LIBRARY_PATH=BINDINGS PYTHONPATH=BINDINGS python read_bindings.py tensorrt_bindings

Signatures are read from the docstrings that pybind11 writes: "name(self: Class, a: int, b: str = None) ->
bool".
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

_SIGNATURE = re.compile(
    r"^\s*(?:\d+\. )?(?P<name>\w+)\((?P<parameters>.*)\) -> (?P<returns>.+?)\s*$", re.MULTILINE
)


def read_module(module: Any) -> dict[str, Any]:
    """Every public class with its members, and every enumeration with the names in it; nested ones as
    "Outer.Inner"."""
    found: dict[str, Any] = {
        "version": module.__version__,
        "classes": {},
        "enumerations": {},
        "names": sorted(vars(module)),
    }
    _read_classes(found, "", module)
    return found


def _read_classes(found: dict[str, Any], prefix: str, owner: Any) -> None:
    for name, value in vars(owner).items():
        if not isinstance(value, type) or name.startswith("_"):
            continue
        if hasattr(value, "__members__"):
            found["enumerations"][prefix + name] = sorted(value.__members__)
        elif prefix + name not in found["classes"]:
            found["classes"][prefix + name] = {member: _member(value, member) for member in dir(value)}
            _read_classes(found, f"{prefix}{name}.", value)


def _member(owner: type, name: str) -> dict[str, Any]:
    member = next((vars(base)[name] for base in owner.__mro__ if name in vars(base)), None)
    if isinstance(member, property):
        return {"kind": "property", "writable": member.fset is not None}
    return {"kind": "method", "signatures": signatures(name, getattr(owner, name).__doc__ or "")}


def signatures(name: str, text: str) -> list[dict[str, Any]]:
    """The overloads of a function that its docstring names: parameters without self, whether each may be left
    out."""
    return [
        {"parameters": _parameters(match["parameters"]), "returns": match["returns"].rsplit(".", 1)[-1]}
        for match in _SIGNATURE.finditer(text)
        if match["name"] == name and "*args" not in match["parameters"]
    ]


def _parameters(text: str) -> list[tuple[str, bool]]:
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    parts.append(part)
    named = [(part.split(":")[0].strip(), "=" in part) for part in parts if part.strip()]
    return [(name, optional) for name, optional in named if name != "self"]


if __name__ == "__main__":
    json.dump(read_module(importlib.import_module(sys.argv[1])), sys.stdout)
