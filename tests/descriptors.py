"""The descriptors of the process that runs the tests."""

from __future__ import annotations

import os


def open_descriptors() -> set[int]:
    """Those that are open, without the one that lists them."""
    numbers = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in numbers if os.path.exists(f"/proc/self/fd/{number}")}
