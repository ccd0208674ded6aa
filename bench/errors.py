"""What can keep a measurement from being made. A measurement that was made and is bad is no error: it has a
verdict.

BenchError                 anything below; the message says what was wrong and what to do
├── BadRequest             the options contradict each other or the input file; exit code 2
├── MissingDependency       this machine lacks something, for example a compiler; exit code 3
└── PeerFailed             the daemon, or a program of ours, did not start or did not finish; exit code 1
"""

from __future__ import annotations

from sigd.daemon.errors import CommandError


class BenchError(CommandError):
    """Base of all errors of `sigd.bench`."""


class BadRequest(BenchError):
    """What was asked for cannot be measured."""

    exit_code = 2


class MissingDependency(BenchError):
    """The machine lacks something; the message says how to get it."""

    exit_code = 3


class PeerFailed(BenchError):
    """A process that the measurement needs did not start, or ended before its time."""
