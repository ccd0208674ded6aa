"""Processor time of a daemon and of the processes that it started, as the kernel counts it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_CHILDREN_USER: Final = 13
"""Where, behind a process's name in its `stat`, two fields hold the ticks of its ended children."""


def used_ns(pid: int, proc: Path = _PROC) -> int | None:
    """Of the threads of a process and of its children, and theirs; of ended children in ticks of the kernel,
    usually 10 ms. None where the kernel does not count."""
    total_ns = _ended_children_ns(proc / str(pid))
    for task in (proc / str(pid) / "task").iterdir():
        # A thread may end meanwhile.
        with suppress(ProcessLookupError):
            try:
                total_ns += int((task / "schedstat").read_text().split()[0])
                children = (task / "children").read_text().split()
            except FileNotFoundError:
                if task.exists():
                    return None
                continue
            for child in children:
                with suppress(FileNotFoundError, ProcessLookupError):
                    total_ns += used_ns(int(child), proc) or 0
    return total_ns


def _ended_children_ns(folder: Path) -> int:
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, fields[_CHILDREN_USER : _CHILDREN_USER + 2]))
    return ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
