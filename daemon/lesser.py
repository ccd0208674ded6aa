"""What a process beside the loop does with itself before it begins: the daemon comes first, and goes last."""

from __future__ import annotations

import ctypes
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_OUT_OF_MEMORY_FIRST: Final = "500"


def ignore_signals_to_the_daemon() -> None:
    """A terminal and a service manager send them to all processes alike: this one ends with the daemon."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """However that ends: with the thread that started this process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def take_name(name: bytes) -> None:
    """What `ps` and `top` call it; at most 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name)


def go_first_without_memory() -> None:
    """Where memory runs out, it is what can be done without; as far as one may."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_FIRST)
