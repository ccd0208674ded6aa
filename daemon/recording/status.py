"""What a recorder tells of itself."""

from __future__ import annotations

import msgspec


class RecorderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How recording goes.

    Attributes:
        recording: the directory and the name of its files.
        requests: recorded since the start.
        dropped: answered, but not recorded: the ring was full.
        stored_bytes: of the recording; the rest of `written_bytes` is in the ring.
        paused_because: why nothing is being stored; empty where all is well.
    """

    recording: str
    requests: int
    dropped: int
    written_bytes: int
    stored_bytes: int
    paused_because: str
