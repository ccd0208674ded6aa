"""`sigd drain`."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Final

import click
import msgspec

from sigd.daemon.admin.client import ask_at_length, tell
from sigd.daemon.admin.messages import END_GRACE_S, AdminRequest, DrainAnswer, Status
from sigd.daemon.config.config import admin_path_of, running_socket_path
from sigd.daemon.errors import MissingDependency

END_S: Final = 2 * END_GRACE_S
"""How long the process may take to end after its last answer."""


@click.command(
    epilog="""\b
Examples:
  sigd drain
  sigd drain --socket /run/sigd/sigd.sock && echo nothing was lost"""
)
@click.option("--socket", type=click.Path(path_type=Path), help="The daemon's socket.")
@click.option(
    "--admin-socket", type=click.Path(path_type=Path), help="Its admin socket, where it is elsewhere."
)
@click.option("--json", "as_json", is_flag=True, help="The exit code as JSON.")
def drain(socket: Path | None, admin_socket: Path | None, as_json: bool) -> None:
    """Stop a running daemon as SIGTERM does, and wait until it has ended.

    Clients are told Goodbye, everything accepted is answered. The exit code is the daemon's: 0 where nothing
    was lost. The wait has a bound, the daemon's drain_timeout_s and 20 s; a daemon that is stopped or hangs
    is told after 5 s, with exit code 3.
    """
    path = admin_socket or admin_path_of(socket or running_socket_path())
    pid, answer = ask_at_length(path, AdminRequest("drain"), DrainAnswer, _bound_s, tell)
    _wait_for_end(pid)
    if as_json:
        click.echo(msgspec.json.encode(answer).decode())
    elif answer.exit_code:
        click.echo(f"sigd: the daemon ended with {answer.exit_code}: its log says why", err=True)
    else:
        click.echo("drained: everything accepted was answered, and the daemon has ended")
    sys.exit(answer.exit_code)


def _bound_s(status: Status) -> float:
    return status.drain_timeout_s + 2 * END_GRACE_S


def _wait_for_end(pid: int) -> None:
    """Wait until the process has ended, where it can be seen from here.

    Raises:
        MissingDependency: it has answered everything, and does not end.
    """
    try:
        process = os.pidfd_open(pid) if pid else -1
    except OSError:
        return
    if process < 0:
        return
    try:
        poller = select.poll()
        poller.register(process, select.POLLIN)
        if not poller.poll(END_S * 1000):
            raise MissingDependency(
                f"the daemon has answered everything, and its process {pid} has not ended within {END_S:.0f}"
                " s: see its"
                f" log; kill -ABRT {pid} ends it with the stack of where it hangs in the log"
            )
    finally:
        os.close(process)
