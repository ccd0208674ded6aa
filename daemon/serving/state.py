"""Where a client's conversation stands.

HELLO ──Hello──> SERVING ──drain──> DRAINING
  └────────┬─────────┴────────────────┘
           └── Goodbye, end of stream, a wrong frame (Reject), the end of the drain ──> CLOSED
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a conversation stands."""

    HELLO = "hello"
    SERVING = "serving"
    DRAINING = "draining"
    CLOSED = "closed"
