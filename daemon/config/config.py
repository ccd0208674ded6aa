"""Configuration: a TOML file, every value of which a flag can overrule. Unknown names are errors, not
comments."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from sigd.daemon.config.access import AccessConfig
from sigd.daemon.config.address import parse_loopback
from sigd.daemon.config.choices import IdleStrategy, LogFormat
from sigd.daemon.config.explain import explain
from sigd.daemon.config.limits import DEFAULTS, Limits
from sigd.daemon.config.models import (
    BatchRows,
    Dims,
    GpuNumber,
    HistoryTable,
    InFlight,
    LingerUs,
    ModelConfig,
    ModelTable,
    RowsPending,
    ShadowTable,
    Threads,
    check_tables,
)
from sigd.daemon.config.recorder import RecorderConfig
from sigd.daemon.errors import UsageError
from sigd.models.errors import ModelRefused
from sigd.models.gpu.options import DEFAULT_GPU_OPTIONS, GpuOptions
from sigd.models.reading import Missing, ReadOptions
from sigd.models.trusted_file import read_file

_SOCKET_PATH_BYTES_MAX = 107
"""What fits sockaddr_un.sun_path with its closing zero."""

_SOCKET_NAME = "sigd.sock"

_PATHS = ("model", "socket", "admin_socket")
_OF_EACH_MODEL = (
    "backend",
    "batch_rows_max",
    "intra_op_threads",
    "linger_us",
    "in_flight_max",
    "rows_pending_max",
)
"""What a `[[model]]` table may say, or leave to the top of the file."""

Seconds = Annotated[float, Meta(gt=0, le=3600)]
SocketMode = Annotated[str, Meta(pattern="^0?[0-7]{3}$")]


class LaneRealtime(NamedTuple):
    """SCHED_FIFO for lanes.

    Attributes:
        priority: below 50, which the kernel's interrupt threads have.
        busy_ns_max: a lane that is busy for longer goes on at ordinary priority for as long.
    """

    priority: int
    busy_ns_max: int


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set. Paths are taken as they stand; those of a file, relative to that file.

    Attributes:
        socket: where clients connect.
        admin_socket: where `sigd status` asks; "" is the socket's path with ".admin" at its end.
        socket_mode: permissions of `socket`, octal; its group is the process's.
        admin_socket_mode: the same of `admin_socket`.
        access: which of their users may be clients; see `sigd.daemon.transport.access_control`.
        model: the model file, "" being the one that ships with sigd; or several models, see `ModelTable`.
        name: what clients call the model; "" is its file's name without its ending. Of several, each table
            has its own.
        shadow: what the model is compared with, see `ShadowTable`; of several, each table names its own.
        history: what is kept of the instruments of clients, see `HistoryTable`; of several, each table names
            its own.
        backend: "auto" goes by the file.
        dims: sizes of the axes that the model file leaves free, see `sigd.models.spec.ReadOptions`.
        missing: what NaN in a request is: auto, nan or refuse.
        batch_rows_max: the largest batch.
        intra_op_threads: CPU threads that share one batch; more than one pays for large models only.
        idle: spin, backoff or block.
        backoff_spin_us: how long "backoff" spins after the last batch before it sleeps.
        linger_us: how long a batch that is not full waits for more rows; 0 never waits.
        cpu: the core to run on; None leaves it to the kernel.
        lane_cpu: cores on which a thread of its own answers clients of shared memory, see
            `sigd.daemon.transport.lanes`.
        lane_idle: what those threads do with nothing to do; None is as `idle`.
        lane_priority: of those threads, SCHED_FIFO, for lanes that sleep; 0 leaves them ordinary.
        lane_busy_ms_max: how long a lane may keep that priority without sleep.
        lock_memory: keep all memory resident where the limits allow it.
        shared_memory: offer it to clients that ask for it.
        log_format: auto, text, json or journal, see `sigd.daemon.runtime.logs`.
        recorder: what is recorded, and where; see `sigd.daemon.config.recorder`.
        metrics_listen: where metrics are served besides the admin socket: a loopback address such as
            127.0.0.1:9464.
        gpu: for an engine, the number of its GPU; this and the next three are
            `sigd.models.gpu.options.GpuOptions`.
    """

    socket: str = ""
    admin_socket: str = ""
    socket_mode: SocketMode = "0660"
    admin_socket_mode: SocketMode = "0600"
    access: AccessConfig = AccessConfig()
    model: str | list[ModelTable] = ""
    name: str = ""
    shadow: ShadowTable | None = None
    history: HistoryTable | None = None
    backend: str = "auto"
    batch_rows_max: BatchRows = 64
    intra_op_threads: Threads = 1
    idle: IdleStrategy = IdleStrategy.BACKOFF
    backoff_spin_us: Annotated[int, Meta(ge=0, le=10_000_000)] = 200
    linger_us: LingerUs = 0
    cpu: Annotated[int, Meta(ge=0, le=65_535)] | None = None
    lane_cpu: tuple[Annotated[int, Meta(ge=0, le=65_535)], ...] = ()
    lane_idle: IdleStrategy | None = None
    lane_priority: Annotated[int, Meta(ge=0, le=49)] = 0
    lane_busy_ms_max: Annotated[int, Meta(ge=1, le=500)] = 10
    lock_memory: bool = True
    log_format: LogFormat = LogFormat.AUTO
    metrics_listen: str = ""
    recorder: RecorderConfig = RecorderConfig()
    shared_memory: bool = True
    gpu: GpuNumber = DEFAULT_GPU_OPTIONS.gpu
    mapped_io: bool = DEFAULT_GPU_OPTIONS.mapped_io
    device_timeout_ms: Annotated[int, Meta(ge=1, le=600_000)] = DEFAULT_GPU_OPTIONS.device_timeout_ms
    keep_warm_us: Annotated[int, Meta(ge=0, le=60_000_000)] = DEFAULT_GPU_OPTIONS.keep_warm_us
    in_flight_max: InFlight = DEFAULTS.in_flight_max
    rows_pending_max: RowsPending = DEFAULTS.rows_pending_max
    dims: Dims = {}
    missing: Missing = Missing.AUTO
    unsent_bytes_max: Annotated[int, Meta(ge=4096, le=1 << 30)] = DEFAULTS.unsent_bytes_max
    connections_max: Annotated[int, Meta(ge=1, le=65_536)] = DEFAULTS.connections_max
    connections_per_user_max: Annotated[int, Meta(ge=1, le=65_536)] = DEFAULTS.connections_per_user_max
    hello_timeout_s: Seconds = DEFAULTS.hello_timeout_s
    drain_timeout_s: Seconds = DEFAULTS.drain_timeout_s

    @property
    def socket_path(self) -> Path:
        """Where clients connect, the default worked out."""
        return Path(self.socket) if self.socket else default_socket_path()

    @property
    def admin_socket_path(self) -> Path:
        """Where `sigd status` asks."""
        return Path(self.admin_socket) if self.admin_socket else admin_path_of(self.socket_path)

    def lane_spin_ns(self) -> int | None:
        """How long a lane spins after its last answer before it sleeps; None never sleeps."""
        idle = self.lane_idle or self.idle
        if idle is IdleStrategy.SPIN:
            return None
        return self.backoff_spin_us * 1000 if idle is IdleStrategy.BACKOFF else 0

    def lane_realtime(self) -> LaneRealtime | None:
        """The real-time priority of lanes, if they have one."""
        if not self.lane_priority:
            return None
        return LaneRealtime(self.lane_priority, self.lane_busy_ms_max * 1_000_000)

    def models(self) -> tuple[ModelConfig, ...]:
        """What is served, the default model first."""
        tables = (
            [ModelTable(name=self.name, path=self.model, shadow=self.shadow, history=self.history)]
            if isinstance(self.model, str)
            else self.model
        )
        return tuple(map(self._resolved, tables))

    def _resolved(self, table: ModelTable) -> ModelConfig:
        def value(name: str) -> Any:
            own = getattr(table, name)
            return getattr(self, name) if own is None else own

        return ModelConfig(
            name=table.name or None,
            path=Path(table.path) if table.path else None,
            shadow=table.shadow,
            history=table.history,
            reading=ReadOptions(
                value("dims"),
                value("missing"),
                history=None if table.history is None else table.history.options(),
            ),
            gpu=GpuOptions(value("gpu"), self.mapped_io, self.device_timeout_ms, self.keep_warm_us),
            **{name: value(name) for name in _OF_EACH_MODEL},
        )

    def limits(self) -> Limits:
        """The bounds of admission."""
        return Limits(
            in_flight_max=self.in_flight_max,
            rows_pending_max=self.rows_pending_max,
            unsent_bytes_max=self.unsent_bytes_max,
            connections_max=self.connections_max,
            connections_per_user_max=self.connections_per_user_max,
            hello_timeout_s=self.hello_timeout_s,
            drain_timeout_s=self.drain_timeout_s,
            daemon_pid=os.getpid(),
        )


def default_socket_path() -> Path:
    """/run/sigd/sigd.sock where that directory may be written to, else one in the user's own runtime
    directory."""
    *directories, last = socket_directories()
    for directory in directories:
        if os.access(directory, os.W_OK | os.X_OK):
            return directory / _SOCKET_NAME
    return last / _SOCKET_NAME


def running_socket_path() -> Path:
    """Where a daemon listens that was started without saying where, for commands that ask: the first of those
    places where there is a socket, which may be one that only the service manager could make. Where one may
    not look, there is one: the command is told what right is missing."""
    for directory in socket_directories():
        path = directory / _SOCKET_NAME
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                return path
        except PermissionError:
            return path
        except OSError:
            continue
    return default_socket_path()


def socket_directories() -> tuple[Path, ...]:
    """Where a daemon without a configured socket may listen, the preferred one first."""
    return (
        Path("/run/sigd"),
        Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")),
        Path(f"/tmp/sigd-{os.getuid()}"),
    )


def admin_path_of(socket_path: Path) -> Path:
    """The admin socket that belongs to a socket, unless the configuration says otherwise."""
    return socket_path.with_name(socket_path.name + ".admin")


def load_config(file: Path | None, overrides: dict[str, Any]) -> Config:
    """Read `file`, if any, and lay `overrides` (names to values; None is no override) over it, of a table
    name by name.

    Raises:
        UsageError: the file cannot be read, is no TOML, has an unknown name or a value out of its range.
    """
    values: dict[str, Any] = {}
    text = ""
    if file is not None:
        text = _read_text(file)
        values = _read_toml(file, text)
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] = values[name] | value
        elif value is not None:
            values[name] = value
    source = f"{file}: " if file is not None else ""
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        hint = explain(str(error), _struct_of(str(error)), text)
        if isinstance(values.get("model"), dict):
            hint = "; a table of a model begins with [[model]]"
        raise UsageError(f"{source}{error}{hint}") from None
    try:
        config.access.numbers()
        if not isinstance(config.model, str):
            check_tables(config.model)
            if config.name:
                raise UsageError(
                    "name stands beside several models: put it into the [[model]] table that it is for"
                )
            for name in ("shadow", "history"):
                if getattr(config, name) is not None:
                    raise UsageError(
                        f"{name} stands beside several models: put the table [model.{name}] below the"
                        " [[model]] that it is for"
                    )
        if wrong := config.recorder.wrong() or _wrong_lanes(config):
            raise UsageError(wrong)
        if config.metrics_listen:
            parse_loopback(config.metrics_listen)
    except UsageError as error:
        raise UsageError(f"{source}{error}") from None
    for name, path in (
        ("socket", config.socket),
        ("admin_socket", config.admin_socket),
        ("recorder.directory", config.recorder.directory),
        *(("model", model.path) for model in config.models()),
        *(("shadow.path", model.shadow.path) for model in config.models() if model.shadow is not None),
    ):
        if "\0" in str(path):
            raise UsageError(f"{source}{name} holds a zero byte, which no path can")
    if config.admin_socket_path == config.socket_path:
        raise UsageError(f"{source}socket and admin_socket are both {config.socket_path}, expected two paths")
    for path in (config.socket_path, config.admin_socket_path):
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
            raise UsageError(
                f"{source}the socket path {path} is longer than the {_SOCKET_PATH_BYTES_MAX} bytes"
                " that a Unix socket's address holds: choose a shorter one"
            )
    return config


def _wrong_lanes(config: Config) -> str:
    """What is wrong with the cores of lanes; "" where nothing is."""
    cores = config.lane_cpu
    if len(set(cores)) < len(cores):
        return f"lane_cpu names a core twice ({', '.join(map(str, cores))}): each lane needs one of its own"
    if cores and not config.shared_memory:
        return "lane_cpu is for clients of shared memory, which shared_memory = false does not offer"
    if config.cpu in cores and config.lane_spin_ns() is None:
        return (
            f"lane_cpu {config.cpu} is cpu too, and a lane that spins leaves the loop no time: give it"
            ' another core, or lane_idle = "backoff"'
        )
    return _wrong_lane_priority(config)


def _wrong_lane_priority(config: Config) -> str:
    if not config.lane_priority:
        return ""
    if not config.lane_cpu:
        return "lane_priority is for lanes, and lane_cpu names none"
    spin_ns = config.lane_spin_ns()
    if spin_ns is None:
        return (
            "lane_priority is for lanes that sleep: one that spins at real-time priority keeps the kernel's"
            ' own work off its core. Take lane_idle = "backoff", or isolate the core and leave lane_priority'
            " out"
        )
    if spin_ns >= config.lane_busy_ms_max * 1_000_000:
        return (
            f"backoff_spin_us = {config.backoff_spin_us} is no less than lane_busy_ms_max ="
            f" {config.lane_busy_ms_max} ms: a lane would lose its priority before it sleeps. Take less, such"
            " as backoff_spin_us = 20"
        )
    return ""


def _struct_of(error: str) -> type[msgspec.Struct]:
    """Which table msgspec speaks of."""
    if "`$.recorder`" in error:
        return RecorderConfig
    if "`$.shadow" in error or ".shadow`" in error:
        return ShadowTable
    if "`$.history" in error or ".history`" in error:
        return HistoryTable
    if "`$.model[" in error:
        return ModelTable
    return AccessConfig if "`$.access`" in error else Config


def _read_text(file: Path) -> str:
    """The file's text, without the byte order mark that some editors begin it with."""
    try:
        return read_file(file).decode("utf-8-sig")
    except ModelRefused as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{file}: the configuration cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: no TOML: {error}; expected UTF-8") from None


def _read_toml(file: Path, text: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: no TOML: {error}") from None
    _make_relative(values, _PATHS, file.parent)
    for name, path in (("recorder", "directory"), ("shadow", "path")):
        if isinstance(values.get(name), dict):
            _make_relative(values[name], (path,), file.parent)
    tables = values.get("model")
    for table in tables if isinstance(tables, list) else ():
        if isinstance(table, dict):
            _make_relative(table, ("path",), file.parent)
            if isinstance(table.get("shadow"), dict):
                _make_relative(table["shadow"], ("path",), file.parent)
    return values


def _make_relative(values: dict[str, Any], names: tuple[str, ...], folder: Path) -> None:
    for name in names:
        if isinstance(values.get(name), str) and values[name]:
            values[name] = str(folder / values[name])
