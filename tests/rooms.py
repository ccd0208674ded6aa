"""Prints each room with the rooms it imports: `python -m tests.rooms`.

A room is a package, or a module that lies beside packages. The order of the daemon's rooms is that of the
import contract in pyproject.toml; an import that runs up it is marked, and the exit code is then 1.
"""

from __future__ import annotations

import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Final

import grimp

ROOT: Final = Path(__file__).resolve().parents[1]


def floors() -> list[dict[str, int]]:
    """For each contract of layers: room to floor, the highest floor 0."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [
        {
            room.strip(): floor
            for floor, layer in enumerate(contract["layers"])
            for room in layer.replace("|", ":").split(":")
        }
        for contract in contracts
        if contract["type"] == "layers"
    ]


def room_of(module: str, rooms: set[str]) -> str:
    """The longest room that holds the module; else its first three names."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in rooms:
            return ".".join(parts[:length])
    return ".".join(parts[:3])


def imports_between_rooms() -> dict[str, set[str]]:
    """Room to the other rooms that it imports, type checking left out."""
    graph = grimp.build_graph("sigd", exclude_type_checking_imports=True)
    rooms = {room for contract in floors() for room in contract if room.count(".") > 1}
    found: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        room = room_of(module, rooms)
        for imported in graph.find_modules_directly_imported_by(module):
            other = room_of(imported, rooms)
            if other != room:
                found[room].add(other)
    return dict(found)


def runs_up(importer: str, imported: str) -> bool:
    """Whether a contract has the imported room above the importer."""
    return any(
        importer in contract and imported in contract and contract[imported] < contract[importer]
        for contract in floors()
    )


def main() -> int:
    """Print the rooms; 1 where an import runs up."""
    up = 0
    for room, imported in sorted(imports_between_rooms().items()):
        print(room)
        for other in sorted(imported):
            wrong = runs_up(room, other)
            up += wrong
            print(f"    {other}{'   <- runs up' if wrong else ''}")
    return 1 if up else 0


if __name__ == "__main__":
    sys.exit(main())
