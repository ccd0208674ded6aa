"""`sigd bench tunnel`, or `make bench-tunnel`."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from sigd.bench.commands.options import html_option, idle_option
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.document import document
from sigd.bench.errors import BenchError
from sigd.bench.loopback_ssh import OwnSshd, OwnTunnel
from sigd.bench.rig import run
from sigd.bench.tunnel import WAYS, Found, compare, table_of
from sigd.daemon.config.flags import FiniteRange


@click.command(
    "tunnel",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  sigd bench tunnel
  sigd bench tunnel --idle spin --duration 10 --rate 500
  sigd bench tunnel --html tunnel.html

\b
Exit codes: 0 done; 1 a run is not valid (replies lost, rate missed, contract broken); 2 wrong usage;
3 there is no OpenSSH here.""",
)
@click.option(
    "--duration",
    "duration_s",
    type=FiniteRange(0.1, 600),
    default=3.0,
    show_default=True,
    help="Seconds a run.",
)
@click.option(
    "--rate",
    "rate_hz",
    type=FiniteRange(1),
    default=1_000.0,
    show_default=True,
    help="Requests/s of the open loop.",
)
@idle_option(None, "backoff")
@click.option("--client", type=click.Choice(["auto", "cpp", "python"]), default="auto", show_default=True)
@html_option
def main(duration_s: float, rate_hz: float, idle: str, client: str, html_file: Path | None) -> None:
    """Measure what an SSH tunnel adds to the latency of a daemon, on this machine's loopback."""
    before = signal.signal(signal.SIGTERM, _terminated)
    console = Console(soft_wrap=True, highlight=False)
    try:
        with ExitStack() as stack:
            # First what may be missing.
            sshd = stack.enter_context(OwnSshd())
            daemon = stack.enter_context(OwnDaemon(ServeOptions(idle=idle)))
            target = daemon.socket_path
            tunnel = stack.enter_context(OwnTunnel(sshd, target))
            bare = stack.enter_context(OwnTunnel(sshd, target, session=False))
            sockets = dict(zip(WAYS, (target, tunnel.socket_path, bare.socket_path), strict=True))
            found = []
            for one in compare(
                sockets,
                duration_s,
                rate_hz,
                client,
                lambda settings: document(run(settings, lambda _line: None)),
            ):
                console.print(f"measured {one.load}, {one.way}", style="dim")
                found.append(one)
            daemon.stop()
        _show(found, console)
        if html_file is not None:
            _write_report(html_file, found, console)
    except BenchError as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(0 if all(one.document.valid for one in found) else 1)


def _show(found: list[Found], console: Console) -> None:
    first = found[0].document
    if first.load.client_note:
        console.print(f"the client is in Python: {first.load.client_note}")
    console.print(table_of(found))
    for one in found:
        for reason in one.document.reasons:
            console.print(f"* {one.load}, {one.way}: {reason}", style="red")


def _write_report(file: Path, found: list[Found], console: Console) -> None:
    import msgspec

    from sigd.bench import histogram
    from sigd.bench.page.latency_page import tunnel_page
    from sigd.bench.page.write import write_report

    documents = [{"load": one.load, "way": one.way, "result": one.document} for one in found]
    written = msgspec.json.format(msgspec.json.encode(documents), indent=1) + b"\n"
    hgrms = {
        f"{mode}-{one.way.replace(' ', '')}": histogram.hgrm_of(one.document.hdr)
        for one in found
        for mode in [one.document.load.mode.replace(" ", "-")]
    }
    for path in write_report(file, tunnel_page(found), written, hgrms):
        console.print(f"wrote    {path}")


def _terminated(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
