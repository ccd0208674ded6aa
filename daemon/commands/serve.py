"""`sigd serve`."""

from __future__ import annotations

import faulthandler
import logging
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from sigd.daemon.config.choices import IdleStrategy, LogFormat
from sigd.daemon.config.config import Config, load_config
from sigd.daemon.config.flags import WholeRange, dim_option
from sigd.daemon.errors import UsageError
from sigd.daemon.runtime.logs import STANDARD_ERROR, start_logging
from sigd.models.reading import Missing
from sigd.models.trusted_file import demand_trust

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sigd.daemon.config.models import ModelConfig
    from sigd.daemon.install.service_view import ServiceView
    from sigd.daemon.reload.remembered import RememberedModels
    from sigd.daemon.reload.validator import Validator
    from sigd.daemon.runtime.child_process import Starter
    from sigd.daemon.shadow.supervisor import Shadows
    from sigd.models.backend import Backend
    from sigd.models.spec import ModelSpec

log = logging.getLogger(__name__)


@click.command(
    epilog="""\b
Examples:
  sigd serve                                        the model that ships with sigd
  sigd serve --model m.onnx --idle spin --cpu 3     on a core of its own
  sigd serve --idle spin --cpu 2 --lane-cpu 3       and shared memory on another one
  sigd serve --record /var/lib/sigd                 every request and its answer, for sigd replay
  sigd serve --model m.onnx --shadow new.onnx       how would another model have answered?
  sigd serve --config /etc/sigd/sigd.toml --check   is this configuration good?"""
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration, TOML.")
@click.option("--model", help="Model file.  [default: the one that ships with sigd]")
@click.option("--name", help="What clients call the model.  [default: its file's name without its ending]")
@click.option(
    "--backend",
    help="What runs the model: auto, or a backend's name; echo runs none, for measuring.  [default: auto]",
)
@click.option("--socket", help="Where clients connect.  [default: /run/sigd/sigd.sock, or the user's own]")
@click.option("--admin-socket", help="Where `sigd status` asks.  [default: the socket's path + .admin]")
@click.option(
    "--idle",
    type=click.Choice([strategy.value for strategy in IdleStrategy]),
    help="What the loop does with nothing to do.  [default: backoff]",
)
@click.option("--cpu", type=WholeRange(min=0), help="The core to run on.")
@click.option(
    "--lane-cpu",
    type=WholeRange(min=0),
    multiple=True,
    help="A core that answers shared-memory clients of native engines without Python.  Repeatable.",
)
@click.option(
    "--lane-idle",
    type=click.Choice([strategy.value for strategy in IdleStrategy]),
    help="What a lane does with nothing to do.  [default: as --idle]",
)
@click.option(
    "--lane-priority",
    type=WholeRange(0, 49),
    help="Real-time priority of lanes that sleep (backoff, block).  [default: 0, ordinary]",
)
@dim_option
@click.option(
    "--missing",
    type=click.Choice([missing.value for missing in Missing]),
    help="What NaN is: a missing value where the model reads it as one (auto), always, or refused.  [default:"
    " auto]",
)
@click.option("--batch-rows-max", type=WholeRange(1, 4096), help="The largest batch.  [default: 64]")
@click.option("--in-flight-max", type=WholeRange(min=1), help="Unanswered requests a client.  [default: 256]")
@click.option("--linger-us", type=WholeRange(min=0), help="Wait for a fuller batch.  [default: 0]")
@click.option(
    "--shared-memory/--no-shared-memory", default=None, help="Offer it to clients.  [default: offered]"
)
@click.option("--gpu", type=WholeRange(min=0), help="Which GPU runs an engine.  [default: 0]")
@click.option(
    "--mapped-io", is_flag=True, default=None, help="The engine reads and writes host memory itself."
)
@click.option(
    "--device-timeout-ms", type=WholeRange(min=1), help="When a GPU counts as hung.  [default: 1000]"
)
@click.option(
    "--keep-warm-us",
    type=WholeRange(min=0),
    help="Run an empty batch after so long.  [default: 0, never]",
)
@click.option(
    "--history-instruments",
    type=click.IntRange(1, 1_000_000),
    help="Keep the history of so many instruments for each client that asks: its requests carry one step.",
)
@click.option("--record", type=click.Path(file_okay=False), help="Record what is answered in this directory.")
@click.option("--shadow", help="Model file to compare with, off the hot path; its answers are never sent.")
@click.option("--metrics-listen", help="Serve metrics on loopback too, as in 127.0.0.1:9464.")
@click.option(
    "--log-format",
    type=click.Choice([log_format.value for log_format in LogFormat]),
    help="What the log looks like.  [default: auto, which knows the journal]",
)
@click.option(
    "--allow-insecure-files",
    is_flag=True,
    help="Serve what users other than root and this one could change, too.",
)
@click.option("--check", is_flag=True, help="Check configuration and model, run it once, and exit.")
@click.option("--verbose", is_flag=True, help="Log more.")
def serve(
    config_file: Path | None,
    allow_insecure_files: bool,
    check: bool,
    verbose: bool,
    record: str | None,
    shadow: str | None,
    history_instruments: int | None,
    dims: dict[str, int],
    lane_cpu: tuple[int, ...],
    **overrides: object,
) -> None:
    """Serve a model over a Unix socket until SIGTERM, which drains: everything accepted is answered."""
    if not check:
        # Who has it read its models again while it reads them means the files as they are now. Until it
        # serves, the
        # kernel keeps that in mind: the signal's default would end it, and the processes that it starts.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    if not allow_insecure_files:
        demand_trust()
    view = _become_service(config_file) if check else None
    recorder = None if record is None else {"directory": record}
    compared = None if shadow is None else {"path": shadow}
    history = None if history_instruments is None else {"instruments_max": history_instruments}
    tables = {"dims": dims or None, "recorder": recorder, "shadow": compared, "history": history}
    config = load_config(config_file, {**overrides, **tables, "lane_cpu": lane_cpu or None})
    start_logging(logging.DEBUG if verbose else logging.INFO, config.log_format, os.environ)
    sys.exit(run(config, check=check, view=view))


def _become_service(config_file: Path | None) -> ServiceView | None:
    """Check as the installed service that reads this configuration, if there is one: as its user, where it
    may.

    Raises:
        MissingDependency: its user is not there.
    """
    from sigd.daemon.install.service_view import view_of
    from sigd.daemon.install.units import hidden_part

    view = None if config_file is None else view_of(config_file)
    if view is None:
        return None
    me = pwd.getpwuid(os.geteuid()).pw_name if _is_known(os.geteuid()) else str(os.geteuid())
    if me == view.user:
        return view
    hidden = hidden_part([Path(sys.executable).resolve(), Path(__file__).resolve()])
    if os.geteuid() == 0 and hidden is None:
        view.become_user()
    else:
        why = f"{hidden} is hidden from it" if os.geteuid() == 0 else "only root can take its place"
        click.echo(
            f"sigd: checked as user {me}, and {view.unit} runs as {view.user} ({why}): whether {view.user}"
            " may read"
            " the files is not known from here",
            err=True,
        )
    return view


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def run(config: Config, *, check: bool, view: ServiceView | None = None) -> int:
    """Open the model and serve it; the exit code. `view`: of the service that a check stands for."""
    # Before NumPy loads it: its threads would share what is too small to share, and wake-ups cost more than
    # the sums.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import uvloop

    from sigd.daemon.reload.remembered import RememberedModels, place_of
    from sigd.daemon.runtime.child_process import Starter
    from sigd.daemon.runtime.cpu_affinity import cores_beside, leave_cores
    from sigd.daemon.runtime.process import (
        allow_descriptors,
        end_now,
        ignore_stray_signals,
        keep_standard_descriptors,
        pin_to_cpu,
        warn_of_realtime_spin,
    )
    from sigd.daemon.runtime.sd_notify import Notifier
    from sigd.daemon.service import Service
    from sigd.daemon.shadow.supervisor import OPEN_TIMEOUT_S, start_shadows
    from sigd.daemon.transport.socket_activation import place, take_sockets

    keep_standard_descriptors()
    ignore_stray_signals()
    # A watchdog that has waited too long aborts the process: the log must say where it hung.
    faulthandler.enable(STANDARD_ERROR)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    passed = take_sockets(os.environ, os.getpid())
    config = place(config, passed)
    if view is not None:
        config = _placed_by(config, view)
    _refuse_unknown_backends(config)
    starter = Starter(cores_beside(config.cpu, leave_cores(config.lane_cpu)))
    if config.cpu is not None:
        pin_to_cpu(config.cpu)
    if config.idle is IdleStrategy.SPIN:
        warn_of_realtime_spin(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
    notifier.starting("opening and warming up what it serves")
    validator = None if check else _start_validator(config, starter)
    remembered = RememberedModels(place_of(config.socket_path, os.environ))
    if not check:
        remembered.load()
    backends = [_open(model, remembered) for model in config.models()]
    # What opens the models has only the service manager's limit; each shadow has one of its own.
    if shadowed := sum(model.shadow is not None for model in config.models()):
        notifier.needs_time(OPEN_TIMEOUT_S * shadowed)
    shadows = start_shadows(config, backends, starter)
    if check:
        _say_good(config, backends, shadows, view)
        return 0
    for backend in backends:
        log_notes(backend.spec)
    config = msgspec.structs.replace(config, connections_max=allow_descriptors(config.connections_max))

    service = Service(config, backends, notifier, passed, starter, validator, shadows, remembered)
    exit_code = uvloop.run(service.run())
    notifier.close()
    if service.must_end_now:
        end_now(exit_code)
    return exit_code


def _refuse_unknown_backends(config: Config) -> None:
    from sigd.models.registry import backend_names

    for model in config.models():
        if model.backend not in backend_names():
            raise UsageError(
                f"no backend is called {model.backend!r}: choose from {', '.join(backend_names())}"
            )


def _placed_by(config: Config, view: ServiceView) -> Config:
    """`config` with the sockets where systemd listens for the service. Raises UsageError where the
    configuration says another place, or a file that the service does not see."""
    for name in ("socket", "admin_socket"):
        configured, listened = getattr(config, name), getattr(view, name)
        if configured and listened and os.path.abspath(configured) != listened:
            raise UsageError(
                f"{name} is {configured}, but systemd listens for {view.unit} on {listened}: leave {name}"
                " out, or write"
                " the same path into ListenStream= of the socket's unit"
            )
        if listened:
            config = msgspec.structs.replace(config, **{name: listened})
    for model in config.models():
        if model.path is not None:
            view.refuse_hidden("model", model.path)
        if model.shadow is not None:
            view.refuse_hidden("model", Path(model.shadow.path))
    view.refuse_priority(config.lane_priority)
    if config.recorder.directory:
        view.refuse_read_only(Path(config.recorder.directory))
    return config


def _say_good(
    config: Config, backends: Iterable[Backend], shadows: Shadows, view: ServiceView | None
) -> None:
    """All of it can be opened; it is closed again. Raises DaemonError where it could not record."""
    from sigd.daemon.recording.recorder import check_recorder, memory_in
    from sigd.daemon.serving.native_lane import why_not_run
    from sigd.daemon.serving.row_check import RowCheck
    from sigd.daemon.transport.lanes import TAPPED, lane_warnings, try_lanes
    from sigd.models.history_check import check_steps
    from sigd.models.notes import how_steps_run, notes

    if config.recorder.directory:
        memory = memory_in(os.environ) if view is None or view.memory is None else view.memory
        check_recorder(config.recorder, memory, () if view is None else view.writable or ())
    # What the service may do was read from its unit, and this process has other limits.
    try_lanes(config.lane_cpu, config.lane_spin_ns(), config.lane_realtime() if view is None else None)
    why_not = {}
    for model, backend in zip(config.models(), backends, strict=True):
        spec, shadow = backend.spec, shadows.status(backend.spec.name)
        tapped = TAPPED if config.recorder.directory or shadow is not None else ""
        why_not[spec.name] = why_not_run(backend, RowCheck(spec), lingers=bool(model.linger_us)) or tapped
        if spec.window is not None or spec.state is not None:
            check_steps(backend)
        steps = None
        if spec.window is not None and model.history is not None:
            steps = f"for {model.history.instruments_max} instruments of each client "
            steps += how_steps_run(backend, model.history.instruments_max)
        compared = "" if shadow is None else f", compared with {shadow.path} on {shadow.backend}"
        backend.close()
        click.echo(
            f"good: {spec.path} ({spec.request_values} -> {spec.answer_values}) runs on"
            f" {backend.name}{compared}; it would serve at"
            f" {config.socket_path}"
        )
        for text in (*(note.text for note in notes(spec)), *([steps] if steps else [])):
            click.echo(f"  {spec.name} {text}")
    for warning in lane_warnings(config.lane_cpu, why_not):
        click.echo(f"warning: {warning}")
    shadows.close()


def _start_validator(config: Config, starter: Starter) -> Validator | None:
    """Where there is a model for it. Its process must be there before a GPU or a thread is."""
    from sigd.daemon.reload.validator import Validator
    from sigd.models.errors import ModelRefused
    from sigd.models.registry import backend_for

    for model in config.models():
        try:
            if model.path is None or backend_for(model.path, model.backend) == "onnxruntime":
                return Validator(starter, config.log_format)
        except ModelRefused:
            # Opening it will say so.
            pass
    return None


def log_notes(spec: ModelSpec) -> None:
    """Tell what the user of a model should know."""
    from sigd.models.notes import notes

    for note in notes(spec):
        log.log(logging.WARNING if note.is_warning else logging.INFO, "model %s %s", spec.name, note.text)


def _open(model: ModelConfig, remembered: RememberedModels) -> Backend:
    """The model as the last reload left it, or as it is configured."""
    from sigd.models.errors import BackendFailed, ModelError
    from sigd.models.registry import open_backend
    from sigd.models.spec import model_name
    from sigd.models.zoo import default_model_path

    configured = default_model_path() if model.path is None else model.path
    name = model_name(configured, model.name)

    def opened(path: Path) -> Backend:
        return open_backend(
            path,
            model.backend,
            model.batch_rows_max,
            # The backend that runs no model must not be taken for the model.
            name=model.name if model.backend == "echo" else name,
            intra_op_threads=model.intra_op_threads,
            gpu=model.gpu,
            reading=model.reading,
        )

    path = remembered.choose(name, configured)
    if path != configured:
        try:
            return opened(path)
        except BackendFailed:
            raise
        except ModelError as error:
            remembered.revert(name, str(error))
    return opened(configured)
