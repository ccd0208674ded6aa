"""Programs of the machine that some checks ask: each is run for a while at most, and read only."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

Run = Callable[[Sequence[str], float], str | None]
"""Runs a command for so many seconds at most: its output; None where it failed, hung or is not there."""


def run(command: Sequence[str], timeout_s: float) -> str | None:
    """Run a command; see Run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
