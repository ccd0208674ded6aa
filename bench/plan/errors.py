"""What can be wrong with a machine's description.

PlanError            anything below; the message says what was found, expected, and to do; exit code 2
├── UnknownPart      a part, a model or a format of weights that the tables do not have
└── BadMachine       the file is not a machine's description
"""

from __future__ import annotations


class PlanError(ValueError):
    """Base of this room's errors. A ValueError, so that callers outside of this room can catch it."""

    exit_code = 2


class UnknownPart(PlanError):
    """The tables have no such part."""


class BadMachine(PlanError):
    """The file describes no machine."""
