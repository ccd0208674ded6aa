"""What is told of a shadow on the admin socket."""

from __future__ import annotations

import msgspec

from sigd.daemon.shadow.statistics import Statistics


class ShadowStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a model compares with its shadow.

    Attributes:
        sha256, backend: of the shadow, as it was opened last.
        running: False while its process is being started again.
        restarts: how often that was.
        skipped: rows that were not compared: the ring was full, the process was not there, or the shape was
            another.
        statistics: all else; its own `skipped` is among that.
    """

    path: str
    sha256: str
    backend: str
    running: bool
    restarts: int
    skipped: int
    statistics: Statistics
