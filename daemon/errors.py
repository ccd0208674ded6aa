"""What can go wrong with the daemon itself; the message says what was wrong, what was expected and what to
do.

DaemonError               exit code of the command
├── UsageError            2: the configuration or a flag is wrong
├── MissingDependency      3: this machine lacks something (a right, a directory, a package)
└── AlreadyServed         3: another daemon listens there
"""

from __future__ import annotations

from typing import Final

EXIT_CHECK_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_ENVIRONMENT: Final = 3
EXIT_BUG: Final = 70
"""An error that sigd should not have made: EX_SOFTWARE of sysexits.h."""


class CommandError(Exception):
    """Ends a command with its message; `exit_code` is what the command ends with."""

    exit_code = EXIT_CHECK_FAILED


class DaemonError(CommandError):
    """Base of the daemon's own."""


class UsageError(DaemonError):
    """The configuration or a flag is wrong."""

    exit_code = EXIT_USAGE


class MissingDependency(DaemonError):
    """The machine lacks something."""

    exit_code = EXIT_ENVIRONMENT


class AlreadyServed(DaemonError):
    """Another daemon listens on the socket."""

    exit_code = EXIT_ENVIRONMENT
