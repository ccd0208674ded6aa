"""`sigd reload`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from sigd.daemon.admin.client import ask_at_length, tell
from sigd.daemon.admin.messages import RELOAD_S, AdminRequest, ModelReload, ReloadAnswer, Status
from sigd.daemon.config.config import admin_path_of, running_socket_path
from sigd.daemon.errors import EXIT_CHECK_FAILED, UsageError


@click.command(
    epilog="""\b
Examples:
  sigd reload                                            every model's file as it is now, as on SIGHUP
  sigd reload --model /models/lob-mlp-7.onnx             another file for the default model
  sigd reload --name next --model /models/lob-mlp-8.onnx
  sigd reload --model wide.onnx --allow-new-shape        its clients are told to go and come back"""
)
@click.option(
    "--model", type=click.Path(path_type=Path), help="Model file.  [default: the one that is served]"
)
@click.option("--name", default="", help="Which model.  [default: with --model the first one, else all]")
@click.option(
    "--allow-new-shape",
    is_flag=True,
    help="Serve a model of other features or outputs; clients of the old one get what they asked for, and"
    " Goodbye.",
)
@click.option("--socket", type=click.Path(path_type=Path), help="The daemon's socket.")
@click.option(
    "--admin-socket", type=click.Path(path_type=Path), help="Its admin socket, where it is elsewhere."
)
@click.option("--json", "as_json", is_flag=True, help="How it went, as JSON.")
def reload(
    model: Path | None,
    name: str,
    allow_new_shape: bool,
    socket: Path | None,
    admin_socket: Path | None,
    as_json: bool,
) -> None:
    """Have a running daemon serve another model file, or the same file as it is now.

    The file is validated, loaded and warmed up beside the model that is served, and takes its place between
    two batches: no request is lost, and answers name a generation that is one higher. Whatever is wrong with
    it, the old model serves on, and the command ends with 1 and the reason.
    """
    request = AdminRequest("reload", name, _absolute(model), allow_new_shape)
    path = admin_socket or admin_path_of(socket or running_socket_path())
    _, answer = ask_at_length(path, request, ReloadAnswer, lambda status: _bound_s(request, status), tell)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
    else:
        for went in answer.models:
            _show(went)
    if any(went.error for went in answer.models):
        sys.exit(EXIT_CHECK_FAILED)


def _bound_s(request: AdminRequest, status: Status) -> float:
    models = 1 if request.name or request.model else len(status.models)
    return RELOAD_S * models + status.drain_timeout_s


def _absolute(model: Path | None) -> str:
    """The daemon has a working directory of its own."""
    if model is None:
        return ""
    path = str(model.absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{path!r} is no UTF-8, in which the daemon is asked: rename the file") from None
    return path


def _show(went: ModelReload) -> None:
    if went.error:
        click.echo(
            f"sigd: {went.name} is not reloaded, generation {went.generation} serves on: {went.error}",
            err=True,
        )
        return
    gone = f"; {went.withdrawn} clients were told to go" if went.withdrawn else ""
    click.echo(
        f"{went.name}: generation {went.generation} is served: {went.path} ({went.features} ->"
        f" {went.outputs}) on"
        f" {went.backend}, sha256 {went.sha256[:16]}, after {went.seconds:.2f} s{gone}"
    )
    if went.note:
        click.echo(f"  {went.note}")
