"""`sigd install-service`."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import msgspec

import sigd
from sigd.daemon.config.flags import WholeRange
from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.install.install import (
    install,
    of_others,
    place_of,
    plan,
    refuse_another_user,
    refuse_changed,
    start_commands,
    stop_commands,
    uninstall,
)
from sigd.daemon.install.units import Target, files, hidden_part

_ROOT = Path("/")
_USER = "sigd"
_PATIENCE_S = 300


@click.command(
    epilog="""\b
Examples:
  sigd install-service --dry-run                  see every file
  sudo /opt/sigd/bin/sigd install-service --enable
  sudo /opt/sigd/bin/sigd install-service --instance lob --gpu --realtime 6
  sudo /opt/sigd/bin/sigd install-service --uninstall"""
)
@click.option("--user", default=_USER, show_default=True, help="Who runs it; made if it is not there.")
@click.option(
    "--prefix",
    type=click.Path(path_type=Path, file_okay=False),
    default=_ROOT,
    help="Write below this directory, for an image or a package.  [default: /]",
)
@click.option("--instance", default="", metavar="NAME", help="One of several daemons: sigd@NAME.service.")
@click.option("--realtime", type=WholeRange(min=0), metavar="CPU", help="With realtime.conf for this core.")
@click.option("--gpu", is_flag=True, help="With gpu.conf, for an NVIDIA GPU.")
@click.option("--metrics", is_flag=True, help="With metrics.conf, for the loopback port of metrics_listen.")
@click.option("--enable", is_flag=True, help="Start it now and at every boot.")
@click.option("--uninstall", "removing", is_flag=True, help="Stop it and remove what was written.")
@click.option(
    "--force", is_flag=True, help="Also files that were changed by hand, but never the configuration."
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and do nothing.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="What was done with each file, or with --dry-run would be, as JSON.",
)
def install_service(
    user: str,
    prefix: Path,
    instance: str,
    realtime: int | None,
    gpu: bool,
    metrics: bool,
    enable: bool,
    removing: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the units that let systemd run this installation of sigd, with an example configuration.

    Files that were changed since are never overwritten, unless forced.
    """
    if prefix != _ROOT and enable:
        raise UsageError("--enable starts it on this machine: it goes without --prefix")
    if as_json and (enable or removing):
        raise UsageError("--json tells what is written: it goes without --enable and --uninstall")
    target = Target(own_command(), user, _group_of(user), instance, realtime, gpu, metrics)
    if removing:
        if enable:
            raise UsageError("--enable or --uninstall, not both")
        _uninstall(target, prefix, force=force, dry_run=dry_run)
        return
    refuse_another_user(target, files(target), prefix)
    check_reach(target, fatal=prefix == _ROOT and not dry_run)
    if as_json:
        planned = plan(files(target), prefix, force=force)
        done = [{"path": str(place_of(file, prefix)), "action": action.value} for file, action in planned]
        if not dry_run:
            install(files(target), prefix, force=force, say=lambda _: None)
        click.echo(msgspec.json.format(msgspec.json.encode({"files": done})).decode())
        return
    if dry_run:
        for file in files(target):
            click.echo(f"==> {prefix / file.path.lstrip('/')}\n{file.content}")
        _show("would run" if enable else "to be run then", start_commands(target))
        return
    install(files(target), prefix, force=force, say=click.echo)
    if enable:
        running = is_active(target.service)
        for command in start_commands(target):
            run_command(command)
        if running:
            click.echo(
                f"RUNNING    {target.service} was running already and goes on with the files and the sigd"
                " that it was"
                f" started with: systemctl restart {target.service} takes up the new ones (engines wait, and"
                " are not"
                f" refused); after a change of the sockets' units: systemctl restart {target.sockets[0]}"
            )
    elif prefix == _ROOT:
        _show("next", start_commands(target))
    click.echo(
        f"then       journalctl -u {target.service} -f; sigd status --socket {target.socket_path}\n"
        f"engines    connect to {target.socket_path} as members of the group {target.group}: usermod -aG"
        f" {target.group} ENGINE"
    )


def _uninstall(target: Target, prefix: Path, *, force: bool, dry_run: bool) -> None:
    """Everything that any option may have written, but what other daemons need."""
    everything = replace(target, realtime_cpu=0, gpu=True, metrics=True)
    others = of_others(target, prefix)
    going = [file for file in files(everything) if not (file.shared and others)]
    if dry_run:
        _show("would run", stop_commands(target) if prefix == _ROOT else [])
        for file in going:
            click.echo(f"would remove {prefix / file.path.lstrip('/')}")
        return
    if not force:
        refuse_changed(going, prefix)
    if prefix == _ROOT and _is_known(target.service):
        for command in stop_commands(target):
            run_command(command)
    uninstall(going, prefix, force=force, say=click.echo)
    if prefix == _ROOT:
        run_command(["systemctl", "daemon-reload"])
    click.echo("left       /var/lib/sigd: rm -r /var/lib/sigd")
    if target.user == _USER:
        click.echo(f"left       the user {target.user}: userdel {target.user}")


def own_command() -> str:
    """The console script of the installation that runs this."""
    script = Path(sysconfig.get_path("scripts")) / "sigd"
    found = str(script) if os.access(script, os.X_OK) else shutil.which("sigd")
    if found is None:
        raise MissingDependency(
            f"{script} is not there: install sigd with its command, pip install sigd-*.whl"
        )
    return os.path.abspath(found)


def _group_of(user: str) -> str:
    """The user's group, or the one that will be made with it."""
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        return user


def check_reach(target: Target, *, fatal: bool) -> None:
    """
    Raises:
        MissingDependency: `fatal`, and the service could not even be started.
    """
    package = Path(sigd.__file__).resolve().parent / "daemon"
    python = Path(sys.executable).resolve()
    hidden = hidden_part([Path(target.command), python, Path(sys.prefix), package.resolve()])
    if hidden is None:
        return
    message = (
        f"{hidden} lies where the service's user cannot reach it (a home, or a directory of its owner alone):"
        " install"
        " sigd for all, for example: python3 -m venv /opt/sigd && /opt/sigd/bin/pip install sigd-*.whl"
    )
    if fatal:
        raise MissingDependency(message)
    click.echo(f"sigd: {message}", err=True)


def _is_known(unit: str) -> bool:
    """Whether systemd runs here and knows the unit."""
    if not Path("/run/systemd/system").exists():
        return False
    return subprocess.run(["systemctl", "cat", unit], capture_output=True, check=False).returncode == 0


def is_active(unit: str) -> bool:
    """Whether systemd runs that unit; False where there is no systemd."""
    try:
        done = subprocess.run(["systemctl", "is-active", "--quiet", unit], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def run_command(command: Sequence[str]) -> None:
    """Show a command and run it. Raises MissingDependency where it fails."""
    click.echo(f"run        {shlex.join(command)}")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True, timeout=_PATIENCE_S, check=False)
    except OSError as error:
        raise MissingDependency(
            f"{command[0]} cannot be run: {error.strerror}; is this a systemd machine?"
        ) from None
    if done.returncode:
        raise MissingDependency(f"{shlex.join(command)} ended with {done.returncode}")


def _show(title: str, commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        click.echo(f"{title:10} {shlex.join(command)}")
