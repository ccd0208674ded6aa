"""The command line: a table of commands, each loaded only when it is called, and what errors end with."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from contextlib import suppress
from typing import Final

import click

from sigd.daemon.errors import EXIT_BUG, EXIT_CHECK_FAILED, EXIT_ENVIRONMENT, EXIT_USAGE
from sigd.daemon.lazy_group import LazyGroup

COMMANDS: Final = {
    "serve": ("sigd.daemon.commands.serve:serve", "Serve a model over a Unix socket."),
    "bench": ("sigd.bench.commands.bench:bench", "Measure latency and prove the budget."),
    "demo": ("sigd.bench.commands.demo:demo", "See it work: a daemon, a synthetic market, live signals."),
    "replay": (
        "sigd.bench.commands.replay:replay",
        "Run a market capture, or what a daemon recorded, once more.",
    ),
    "backfill": (
        "sigd.bench.commands.backfill:backfill",
        "Score captures of many instruments and days into Parquet.",
    ),
    "reload": ("sigd.daemon.commands.reload:reload", "Serve another model file; clients stay connected."),
    "drain": (
        "sigd.daemon.commands.drain:drain",
        "Stop a running daemon, with everything accepted answered.",
    ),
    "status": ("sigd.daemon.commands.status:status", "Counters and latencies of a running daemon."),
    "gate": ("sigd.daemon.commands.gate:gate", "Watch a running daemon for a while: is it healthy?"),
    "top": ("sigd.daemon.commands.top:top", "Watch a running daemon."),
    "schema": ("sigd.daemon.commands.schema:schema", "Print the SBE schema of the wire."),
    "build-engine": ("sigd.daemon.commands.build_engine:build_engine", "Build a model file into an engine."),
    "convert": (
        "sigd.daemon.commands.convert:convert",
        "Convert trees of LightGBM, XGBoost or CatBoost to ONNX.",
    ),
    "inspect": (
        "sigd.daemon.commands.inspect:inspect",
        "Show what a model file, an engine or a recording is.",
    ),
    "zoo": ("sigd.daemon.commands.zoo:zoo", "Write a model to measure with, in a public shape."),
    "compare": ("sigd.bench.commands.compare:compare", "Compare two models on the same rows."),
    "plan": ("sigd.bench.commands.plan:plan", "Compute what fits on a workstation."),
    "install-service": (
        "sigd.daemon.commands.install_service:install_service",
        "Let systemd run this installation.",
    ),
    "doctor": ("sigd.daemon.commands.doctor:doctor", "Check this machine and say how to fix it."),
}
"""Name to (module:attribute, one line for `sigd --help`). The table names the modules of sigd.bench as text;
no module of sigd.daemon imports them, so a serving process never loads them."""


_CURES: Final = {
    errno.ENOSPC: "the disk is full: make room, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: make room, or write elsewhere",
    errno.EROFS: "the file system is read-only: name a folder that can be written to",
    errno.EACCES: "the user who runs this may not: run it as another user, or change the mode",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "the machine has too many files open",
    errno.ENOMEM: "memory ran out: free some, or ask for less",
}
"""What to do about an error of the operating system that no command has words of its own for."""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Try `sigd demo` first. Exit codes: 0 done, 1 the check failed, 2 wrong usage or input, 3 the"
    " environment lacks something, 4 inconclusive, 70 a bug of sigd.",
)
@click.version_option(package_name="sigd", prog_name="sigd")
def cli() -> None:
    """sigd: trading signals from a model, within microseconds, over a Unix socket."""


def main() -> None:
    """The console script."""
    from sigd.daemon.errors import CommandError
    from sigd.models.errors import BackendFailed, BackendUnavailable, ModelError
    from sigd.wire.errors import ConnectFailed, WireError

    try:
        try:
            cli()
        finally:
            # What is still buffered is written here, where a full disk is an error with a name.
            if sys.stdout is not None:
                sys.stdout.flush()
    except CommandError as error:
        _end(error, error.exit_code)
    except (BackendUnavailable, ConnectFailed) as error:
        _end(error, EXIT_ENVIRONMENT)
    except BackendFailed as error:
        # Not the user's doing: a supervisor may well try again.
        if error.fatal:
            from sigd.daemon.runtime.process import end_now

            _complain(error)
            end_now(EXIT_CHECK_FAILED)
        _end(error, EXIT_CHECK_FAILED)
    except ModelError as error:
        _end(error, EXIT_USAGE)
    except WireError as error:
        _end(error, EXIT_CHECK_FAILED)
    except BrokenPipeError:
        # The reader of a pipe has seen enough, as `head` does.
        _discard_output()
        sys.exit(EXIT_CHECK_FAILED)
    except OSError as error:
        _discard_output()
        _end(_of_the_machine(error), EXIT_ENVIRONMENT)
    except MemoryError as error:
        _end(
            f"memory ran out{f': {error}' if str(error) else ''}; free some, or ask for less",
            EXIT_ENVIRONMENT,
        )
    except Exception as error:  # noqa: BLE001  whatever it is, the user is told whose fault it is
        _tell_bug(error)
        sys.exit(EXIT_BUG)


def _tell_bug(error: Exception) -> None:
    """The traceback, which a report needs, and whose fault it is."""
    from sigd import __version__

    words = (
        f"this is a bug of sigd {__version__}, not of your input: please report it with the command and these"
        " lines"
    )
    from sigd.daemon.runtime.logs import is_logging

    if is_logging():
        logging.getLogger(__name__).critical(words, exc_info=error)
        return
    with suppress(OSError):
        traceback.print_exception(error)
    _complain(words)


def _of_the_machine(error: OSError) -> str:
    """An error of the operating system in a sentence."""
    where = f"{error.filename}: " if error.filename is not None else ""
    cure = _CURES.get(error.errno or 0, "")
    return f"{where}{error.strerror or error}{f': {cure}' if cure else ''}"


def _discard_output() -> None:
    """Standard output cannot be written to; what is buffered would fail once more at the exit."""
    with suppress(OSError, ValueError, AttributeError):
        discarding = os.open(os.devnull, os.O_WRONLY)
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(discarding, sys.stdout.fileno())
        os.close(discarding)


def _end(error: Exception | str, exit_code: int) -> None:
    _complain(error)
    sys.exit(exit_code)


def _complain(error: Exception | str) -> None:
    """A daemon that logs says it in its log; a command says it in plain words."""
    from sigd.daemon.runtime.logs import STANDARD_ERROR, is_logging, journal_reads, priority

    if is_logging():
        logging.getLogger(__name__).error("%s", error)
        return
    # The journal is told that it is an error, in the form that it takes off again.
    mark = f"<{priority(logging.ERROR)}>" if journal_reads(STANDARD_ERROR, os.environ) else ""
    with suppress(OSError):
        click.echo(f"{mark}sigd: {error}", err=True)
