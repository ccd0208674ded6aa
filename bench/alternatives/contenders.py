"""What is measured: each contender's name, its configuration as shown, and how it is started."""

from __future__ import annotations

import enum
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NoReturn

from sigd.bench.alternatives.bare import bare_load
from sigd.bench.alternatives.environment import Environment, environment, run_or_fail
from sigd.bench.alternatives.process import ServerProcess, answers, free_port, listens
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.errors import MissingDependency
from sigd.bench.floor.floor import echo_server
from sigd.bench.load.contract import LoadGenerator, LoadPlan
from sigd.bench.load.native import NativeLoad
from sigd.bench.load.plan import plan_for
from sigd.bench.native.build import NativePrograms
from sigd.models.spec import ModelSpec
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

_SERVERS: Final = Path(__file__).parent / "servers"
_CLIENT_NAME: Final = "sigd bench"


class Kind(enum.Enum):
    """What a contender is."""

    SIGD = "sigd"
    FLOOR = "floor"
    IN_PROCESS = "in process"
    SERVER = "server"


@dataclass(frozen=True)
class Setting:
    """What all contenders of a model are given.

    Attributes:
        model: the file that sigd serves.
        graph: the served graph as a file of its own: one input, one output.
        spec: of the graph.
        trees: the same model in LightGBM's own format; None where there is none.
        cpu: of the daemon.
        client_cpu: of the load generator.
        server_cpus: what servers may use: all but the client's.
    """

    model: Path
    graph: Path
    spec: ModelSpec
    trees: Path | None
    programs: NativePrograms
    cpu: int | None
    client_cpu: int | None
    server_cpus: Sequence[int]

    @property
    def hello(self) -> Hello:
        """For what is no daemon: the sizes of the model."""
        return Hello(self.spec.features, self.spec.outputs, client_name=_CLIENT_NAME)


@dataclass(frozen=True)
class Running:
    """A contender that runs.

    Attributes:
        plan: where it is asked, and with what Hello; the rest is the load's.
        in_flight_max: most requests unanswered on one connection.
        connections_max: most connections; a burst beyond both waits.
        pid: of the daemon; None where it is not one process.
        compared: whether its answers are the model's.
    """

    generator: LoadGenerator
    socket_path: str
    hello: Hello
    in_flight_max: int = 1
    connections_max: int = 1
    pid: int | None = None
    compared: bool = True


@dataclass(frozen=True)
class Contender:
    """One of the alternatives.

    Attributes:
        name: stable: what results are found by.
        title: for tables.
        configuration: what it is set to, in words.
        environment: where its packages are, "" for sigd's own.
        packages: those whose versions are shown.
        closed_only: whether it is asked one row after the other only, for there is no queue in front of it.
    """

    name: str
    title: str
    kind: Kind
    configuration: str
    start: Callable[[Setting], AbstractContextManager[Running]]
    environment: str = ""
    packages: tuple[str, ...] = ()
    closed_only: bool = False


@contextmanager
def _sigd(setting: Setting, *, transport: Transport, backend: str) -> Iterator[Running]:
    options = ServeOptions(str(setting.model), backend, "spin", setting.cpu)
    slots = 128 if transport is Transport.SHARED_MEMORY else 0
    hello = Hello(transport=transport, ring_slots=slots, client_name=_CLIENT_NAME)
    with OwnDaemon(options) as daemon:
        plan, welcome = plan_for(daemon.socket_path, hello)
        yield Running(
            NativeLoad(setting.programs),
            daemon.socket_path,
            plan.hello,
            in_flight_max=welcome.in_flight_max,
            pid=daemon.pid,
        )


@contextmanager
def _echo(setting: Setting, *, transport: Transport) -> Iterator[Running]:
    slots = 128 if transport is Transport.SHARED_MEMORY else 0
    hello = replace(setting.hello, transport=transport, ring_slots=slots)
    with echo_server(setting.programs, transport, setting.spec.outputs, setting.cpu) as path:
        yield Running(NativeLoad(setting.programs), path, hello, in_flight_max=128, compared=False)


@contextmanager
def _bare(setting: Setting, *, backend: str) -> Iterator[Running]:
    with bare_load(str(setting.model), backend, setting.cpu) as generator:
        yield Running(generator, "/in-process", setting.hello, compared=False)


def _left_out(_: Setting, *, because: str) -> NoReturn:
    """A server that was tried, and gave no or wrong answers."""
    raise MissingDependency(because)


@contextmanager
def _onnxruntime(setting: Setting) -> Iterator[Running]:
    spec = setting.spec
    dims = "x".join(map(str, (1, *(spec.input_dims or (spec.features,)))))
    peer = ["onnxruntime", onnxruntime_library(), str(setting.graph), spec.input_name, spec.output_name, dims]
    yield Running(NativeLoad(setting.programs, peer), "/in-process", setting.hello)


def onnxruntime_library() -> str:
    """The library of the installed package.

    Raises:
        MissingDependency: the package has none.
    """
    found = find_spec("onnxruntime")
    folder = Path(found.origin).parent / "capi" if found and found.origin else Path("capi")
    for library in sorted(folder.glob("libonnxruntime.so*")):
        return str(library)
    raise MissingDependency(f"{folder} holds no libonnxruntime.so: install onnxruntime 1.20 or later")


def _for_trees(setting: Setting, does: str) -> tuple[Environment, Path]:
    """The servers' environment, and the file of the trees. Raises MissingDependency without either."""
    if setting.trees is None:
        raise MissingDependency(f"not an ensemble of trees that {does}: give its file with --trees")
    where = environment("servers")
    where.require()
    return where, setting.trees


@contextmanager
def _lightgbm(setting: Setting) -> Iterator[Running]:
    where, trees = _for_trees(setting, "LightGBM runs")
    library = where.packages / "lightgbm" / "lib" / "lib_lightgbm.so"
    peer = ["lightgbm", str(library), str(trees)]
    yield Running(NativeLoad(setting.programs, peer), "/in-process", setting.hello)


@contextmanager
def _lleaves(setting: Setting) -> Iterator[Running]:
    where, trees = _for_trees(setting, "lleaves compiles")
    compiled, library = (setting.graph.with_name(f"lleaves.{kind}") for kind in ("o", "so"))
    if not library.is_file():
        run_or_fail([where.python, str(_SERVERS / "lleaves_compile.py"), str(trees), str(compiled)])
        run_or_fail([setting.programs.command, "-shared", "-o", str(library), str(compiled)])
    yield Running(NativeLoad(setting.programs, ["lleaves", str(library)]), "/in-process", setting.hello)


def http_head(setting: Setting, path: str = "/infer") -> bytes:
    """What precedes the features of a request whose body they are."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {4 * setting.spec.features}\r\n\r\n"
    ).encode()


@contextmanager
def _http_server(setting: Setting, *, script: str, unix: bool) -> Iterator[Running]:
    where = environment("servers")
    where.require()
    head = http_head(setting)
    with tempfile.TemporaryDirectory(prefix="sigd-alternative-") as name:
        folder = Path(name)
        address = str(folder / "server.sock") if unix else f"127.0.0.1:{free_port()}"
        command = [where.python, str(_SERVERS / f"{script}.py"), str(setting.graph), address]
        with ServerProcess(command, folder, setting.server_cpus, {"HOME": name}) as server:
            server.wait_until(lambda: answers(address, head + bytes(4 * setting.spec.features)))
            generator = NativeLoad(setting.programs, ["http", head.hex()])
            yield Running(generator, address, setting.hello, connections_max=100)


@contextmanager
def _grpc(setting: Setting) -> Iterator[Running]:
    where = environment("servers")
    where.require()
    with tempfile.TemporaryDirectory(prefix="sigd-alternative-") as name:
        address = str(Path(name) / "server.sock")
        command = [where.python, str(_SERVERS / "grpc_unary.py"), str(setting.graph), address]
        with ServerProcess(command, Path(name), setting.server_cpus, {}) as server:
            server.wait_until(lambda: listens(address))
            generator = NativeLoad(setting.programs, ["grpc", "/bench.Model/Infer", ""])
            yield Running(generator, address, setting.hello, in_flight_max=100)


_BYTES = "float32 in and out as bytes; one ONNX Runtime session of one thread"

CONTENDERS: Final = (
    Contender(
        *("echo-shm", "floor: echo, shared memory", Kind.FLOOR),
        "a native program that answers at once and runs no model; spins on a core of its own",
        partial(_echo, transport=Transport.SHARED_MEMORY),
    ),
    Contender(
        *("echo-uds", "floor: echo, Unix socket", Kind.FLOOR),
        "the same over a Unix socket",
        partial(_echo, transport=Transport.STREAM),
    ),
    *(
        Contender(
            *(f"bare-{backend}", f"floor: the bare model call, {engine}", Kind.FLOOR),
            "the call that the daemon makes, another row each time, in a process of its own: no transport",
            partial(_bare, backend=backend),
            closed_only=True,
        )
        for backend, engine in (("native", "native engine"), ("onnxruntime", "ONNX Runtime"))
    ),
    *(
        Contender(
            f"sigd-{short}-{backend}",
            f"sigd, {medium}, {engine}",
            Kind.SIGD,
            f"sigd serve --idle spin --cpu CPU --backend {backend}; transport {short}",
            partial(_sigd, transport=transport, backend=backend),
        )
        for short, medium, transport in (
            ("shm", "shared memory", Transport.SHARED_MEMORY),
            ("uds", "Unix socket", Transport.STREAM),
        )
        for backend, engine in (("native", "native engine"), ("onnxruntime", "ONNX Runtime"))
    ),
    Contender(
        *("onnxruntime-in-process", "ONNX Runtime in the caller's process", Kind.IN_PROCESS),
        "C interface, one thread, all optimisations, input and output bound once (RunWithBinding)",
        _onnxruntime,
        packages=("onnxruntime",),
    ),
    Contender(
        *("lightgbm-in-process", "LightGBM in the caller's process", Kind.IN_PROCESS),
        "C interface, LGBM_BoosterPredictForMatSingleRowFast, num_threads=1",
        _lightgbm,
        *("servers", ("lightgbm",)),
    ),
    Contender(
        *("lleaves-in-process", "lleaves in the caller's process", Kind.IN_PROCESS),
        "trees compiled to machine code, called as a C function",
        _lleaves,
        *("servers", ("lleaves", "llvmlite")),
    ),
    Contender(
        *("grpc", "gRPC in Python, Unix socket", Kind.SERVER),
        f"grpcio, unary calls, a thread pool of one, bytes instead of protocol buffers; {_BYTES}",
        _grpc,
        *("servers", ("grpcio", "onnxruntime")),
    ),
    Contender(
        *("fastapi", "FastAPI on uvicorn, Unix socket", Kind.SERVER),
        f"one worker, uvloop, httptools, no access log; {_BYTES}",
        partial(_http_server, script="fastapi_uvicorn", unix=True),
        *("servers", ("fastapi", "uvicorn", "uvloop", "httptools", "onnxruntime")),
    ),
    Contender(
        *("ray-serve", "Ray Serve, loopback", Kind.SERVER),
        f"one replica, the HTTP proxy on the same node, no batching, no dashboard; {_BYTES}",
        partial(_http_server, script="ray_serve", unix=False),
        *("servers", ("ray", "uvicorn", "onnxruntime")),
    ),
    Contender(
        *("bentoml", "BentoML, loopback", Kind.SERVER),
        f"one worker, no batching, no access log; {_BYTES}",
        partial(_http_server, script="bento", unix=False),
        *("servers", ("bentoml", "uvicorn", "onnxruntime")),
    ),
    *(
        Contender(name, title, Kind.SERVER, f"not run: {because}", partial(_left_out, because=because))
        for name, title, because in (
            (
                "litserve",
                "LitServe, loopback",
                "its worker does not start with a model given as bytes in and out",
            ),
            (
                *("triton", "NVIDIA Triton, Python backend, loopback"),
                "the Python backend of nvidia-pytriton's wheel answers with empty tensors",
            ),
        )
    ),
)
"""In the order of the tables."""


def plan_of(running: Running, setting: Setting, together: int) -> LoadPlan:
    """A plan without a load, for up to `together` requests at once: on one connection as far as the protocol
    goes, else on as many as it takes."""
    import numpy as np

    in_flight = min(together, running.in_flight_max)
    return LoadPlan(
        socket_path=running.socket_path,
        hello=running.hello,
        frames=np.empty((0, 0), np.uint8),
        outputs=running.hello.outputs,
        connections=min(-(-together // in_flight), running.connections_max),
        in_flight=in_flight,
        cpu=setting.client_cpu,
    )
