"""`sigd drain`."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from pathlib import Path

import click
import msgspec

from sigd.daemon.admin.client import AdminClient
from sigd.daemon.admin.messages import AdminRequest, DrainAnswer
from sigd.daemon.config.config import admin_path_of, running_socket_path


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
    was lost.
    """
    with AdminClient(admin_socket or admin_path_of(socket or running_socket_path())) as asker:
        process = _descriptor_of(asker.daemon_pid)
        answer = asker.ask(AdminRequest("drain"), DrainAnswer, patiently=True)
    if process is not None:
        # It has answered its clients and us, and has yet to leave.
        select.select([process], [], [])
        os.close(process)
    if as_json:
        click.echo(msgspec.json.encode(answer).decode())
    elif answer.exit_code:
        click.echo(f"sigd: the daemon ended with {answer.exit_code}: its log says why", err=True)
    else:
        click.echo("drained: everything accepted was answered, and the daemon has ended")
    sys.exit(answer.exit_code)


def _descriptor_of(pid: int) -> int | None:
    """A descriptor that can be read once the process has ended; None where it cannot be seen from here."""
    if pid:
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None
