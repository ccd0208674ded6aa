"""Settings that are one of a few words."""

from __future__ import annotations

from enum import Enum


class IdleStrategy(Enum):
    """What the loop does when there is nothing to do, named as Aeron names it; see
    `sigd.daemon.runtime.ticker`."""

    SPIN = "spin"
    BACKOFF = "backoff"
    BLOCK = "block"


class LogFormat(Enum):
    """How log lines look, see `sigd.daemon.runtime.logs`; `auto` looks at SIGD_LOG, then at what standard
    error is connected to."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
    JOURNAL = "journal"
