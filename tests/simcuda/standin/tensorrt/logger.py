"""Logging, as the bindings have it: a class to derive from."""

from __future__ import annotations

from enum import IntEnum


class _Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """Gets every message."""

    Severity = _Severity

    def __init__(self) -> None:
        self._constructed = True

    def log(self, severity: _Severity, msg: str) -> None:
        """To be overridden."""
        raise NotImplementedError
