"""The run, from its options to its verdict: warm up, measure, drain, judge.

hiccups -> daemon -> requests and schedule -> load (with --floor: rounds of echo, backend, daemon) -> hiccups
-> verdict
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sigd.bench import environment, hiccup, verdict
from sigd.bench.daemon_process import OwnDaemon, ServeOptions, ask_welcome
from sigd.bench.errors import BadRequest, MissingDependency
from sigd.bench.floor.bare_backend import BareBackend
from sigd.bench.floor.floor import ROUNDS, FloorRound, pool, run_round
from sigd.bench.load import requests, schedule, steps
from sigd.bench.load.contract import LoadGenerator, LoadPlan, Measurement
from sigd.bench.load.native import NativeLoad
from sigd.bench.load.plan import random_frames
from sigd.bench.load.python import PythonLoad
from sigd.bench.load.schedule import NS_PER_S, Int64Array
from sigd.bench.native import build as native
from sigd.bench.native.build import NativePrograms
from sigd.bench.pinning import allowed_cpus, choose_cores
from sigd.bench.stolen import Stolen, StolenWatch
from sigd.daemon.admin.client import ask_status
from sigd.daemon.config.config import admin_path_of
from sigd.daemon.runtime.process import resident_bytes
from sigd.models.market.capture import CaptureReader
from sigd.wire.errors import ConnectFailed
from sigd.wire.messages import Hello, Welcome
from sigd.wire.region import RING_SLOTS_MAX
from sigd.wire.status import HelloFlag, Transport

SCHEDULED_MAX = 50_000_000
"""Requests in a schedule; each takes about 40 bytes of memory before the first is sent."""
HICCUP_SECONDS = 1.0
_BATCH_ROWS_MAX = 64
_BARE_SHARE = 0.15
_CLIENT_NAME = "sigd bench"

Say = Callable[[str], None]


class Mode(enum.Enum):
    """What decides when a request is sent."""

    CLOSED_LOOP = "closed loop"
    RATE = "rate"
    CAPTURE = "capture"


@dataclass(frozen=True)
class Settings:
    """What to measure, as the command line says it.

    Attributes:
        socket_path: of a daemon that runs; None starts one of our own with `serve`.
        requests: how many to measure; None = as many as `duration_s` gives.
        in_flight: most unanswered on a connection; None = 1 in a closed loop, else what the daemon grants.
        client: "auto", "cpp" or "python".
        budget_ns: for p99; None = only measure.
        arrivals: "poisson" or "constant", for Mode.RATE.
        salvage: take what is whole of a capture, and let the run be valid.
        history_instruments: of each connection, whose history the daemon keeps: a request carries one step.
            None sends whole rows.
    """

    mode: Mode
    socket_path: str | None = None
    serve: ServeOptions = field(default_factory=ServeOptions)
    transport: Transport = Transport.STREAM
    rate_hz: float = 10_000.0
    arrivals: str = "poisson"
    capture: Path | None = None
    speed: float = 1.0
    salvage: bool = False
    connections: int = 1
    in_flight: int | None = None
    duration_s: float | None = None
    requests: int | None = None
    warmup_s: float = 1.0
    floor: bool = False
    client: str = "auto"
    budget_ns: int | None = None
    seed: int = 1
    history_instruments: int | None = None

    @property
    def flags(self) -> HelloFlag:
        """What each connection asks for."""
        return HelloFlag.NONE if self.history_instruments is None else HelloFlag.HISTORY


@dataclass(frozen=True)
class Memory:
    """Resident memory of the daemon in bytes."""

    after_warmup: int
    at_end: int


@dataclass(frozen=True)
class Outcome:
    """Everything that was found out.

    Attributes:
        client_note: why the generator is not the native one; "" where it is.
        in_flight: most unanswered on a connection, as used.
        cpus: the cores of the daemon's loop and of the client; None = not pinned by us.
        memory: None where the daemon's memory cannot be read from here.
        rounds: of the floor; empty without it.
        stolen: what the machine took away while it was measured.
        answers_checked: whether every answer was compared with what the model says.
        capture: what has read the capture and knows what is wrong with it; None without one.
    """

    settings: Settings
    welcome: Welcome
    client_note: str
    in_flight: int
    cpus: tuple[int | None, int | None]
    environment: environment.Environment
    hiccups_before: list[hiccup.Hiccups]
    hiccups_after: list[hiccup.Hiccups]
    measurement: Measurement
    memory: Memory | None
    rounds: list[FloorRound]
    capture: CaptureReader | None
    stolen: Stolen
    verdict: verdict.Verdict
    answers_checked: bool


@dataclass(frozen=True)
class Target:
    """The daemon that is measured; `own` where we started it."""

    socket_path: str
    welcome: Welcome
    own: OwnDaemon | None


def run(settings: Settings, say: Say) -> Outcome:
    """Measure. `say` is told what is being done, a line at a time.

    Raises:
        BadRequest: the settings do not fit each other, the daemon or the capture.
        MissingDependency: a compiler or a backend is missing.
        PeerFailed: a process that the measurement needs failed.
    """
    generator, programs, note = choose_client(settings)
    daemon_cpu, client_cpu = cores_of(settings)
    answering = settings.serve.lane_cpus or (daemon_cpu,)
    watched = sorted({*answering, client_cpu} - {None}, key=lambda cpu: cpu or 0) or [None]
    say(f"watching the machine itself for {HICCUP_SECONDS:g} s")
    before = hiccup.measure(watched, HICCUP_SECONDS, programs)
    facts = environment.read(watched, before[0].clock_cost_ns, programs.compiler if programs else None)
    with target_of(settings, daemon_cpu, say) as target:
        plans, capture = plans_of(settings, target, client_cpu, say)
        memory = _MemoryWatch(target.welcome.daemon_pid)
        taken = StolenWatch(
            target.welcome.daemon_pid if _is_sigd(target.welcome.daemon_pid) else None,
            [cpu for cpu in watched if cpu is not None],
            lanes=bool(settings.serve.lane_cpus),
        )

        def warmed_up() -> None:
            memory.warmed_up()
            taken.warmed_up()

        rounds: list[FloorRound] = []
        if settings.floor:
            assert programs is not None
            rounds = _rounds(settings, target, plans, generator, programs, answering[0], warmed_up, say)
            measurement = pool(rounds).sigd
        else:
            say(_measuring_line(settings, plans[0]))
            measurement = generator.run(plans[0], warmed_up)
        found = memory.found()
        stolen = taken.found(measurement.elapsed_ns, measurement.hiccup_sum_ns)
        end(settings, target)
    return Outcome(
        settings=settings,
        welcome=target.welcome,
        client_note=note,
        in_flight=plans[0].in_flight,
        cpus=(daemon_cpu, client_cpu),
        environment=facts,
        hiccups_before=before,
        hiccups_after=hiccup.measure(watched, HICCUP_SECONDS, programs),
        measurement=measurement,
        memory=found,
        rounds=rounds,
        capture=capture,
        stolen=stolen,
        answers_checked=plans[0].expected is not None and generator.name == NativeLoad.name,
        verdict=verdict.judge(
            measurement,
            settings.budget_ns,
            # In a floor run the daemon is stopped between its turns, which the kernel does not count as
            # waiting for it.
            stolen_share=measurement.hiccup_sum_ns / max(measurement.elapsed_ns, 1)
            if rounds
            else stolen.largest,
            capture_faults="" if capture is None or settings.salvage else str(capture.faults),
        ),
    )


def cores_of(settings: Settings) -> tuple[int | None, int | None]:
    """The cores of the daemon's loop and of the client; None is not pinned by us.

    Raises:
        BadRequest: a lane cannot have the core that was asked for.
    """
    lanes, allowed = settings.serve.lane_cpus, allowed_cpus()
    for cpu in set(lanes) - set(allowed):
        raise BadRequest(
            f"--lane-cpu {cpu} is not one that this process may run on; it may use:"
            f" {', '.join(map(str, allowed))}"
        )
    daemon_cpu, client_cpu = choose_cores(allowed, lanes=lanes)
    return (None if settings.socket_path is not None else daemon_cpu), client_cpu


def end(settings: Settings, target: Target) -> None:
    """Stop the daemon if it is ours.

    Raises:
        BadRequest: lanes were asked for and the loop answered, so the figures are not a lane's.
        PeerFailed: it did not end as it should.
    """
    daemon = target.own
    if daemon is None:
        return
    if settings.serve.lane_cpus:
        status = ask_status(admin_path_of(Path(daemon.socket_path)))
        if not any(lane.requests for lane in status.lanes):
            raise BadRequest(
                f"--lane-cpu: the loop answered, and no lane did. The daemon said:\n{daemon.said()}"
            )
    daemon.stop()


def choose_client(settings: Settings) -> tuple[LoadGenerator, NativePrograms | None, str]:
    """The generator, the native programs where they could be built, and why it is not the native one (""
    where it
    is).

    Raises:
        BadRequest, MissingDependency: what was asked for cannot be had.
    """
    if settings.client == "python":
        if settings.floor:
            raise BadRequest("--floor is measured with the native client: leave out --client python")
        return PythonLoad(), None, "asked for with --client python; its own work is part of each latency"
    try:
        programs = native.build()
    except MissingDependency as error:
        if settings.client == "cpp" or settings.floor:
            raise
        note = f"there is no native one: {error}. Its own work is part of each latency"
        return PythonLoad(), None, note
    return NativeLoad(programs), programs, ""


@contextmanager
def target_of(settings: Settings, daemon_cpu: int | None, say: Say) -> Iterator[Target]:
    """The daemon to measure: the one that is named, or one of our own while the block runs.

    Raises:
        BadRequest, MissingDependency, PeerFailed: there is none, or none could be started.
    """
    if settings.socket_path is None:
        serve = replace(settings.serve, cpu=daemon_cpu)
        say("starting a daemon: sigd " + " ".join(serve.arguments("SOCKET")))
        with OwnDaemon(serve) as own:
            yield Target(own.socket_path, _granted(settings, own.socket_path), own)
        return
    if settings.floor:
        raise BadRequest(
            "--floor stops the daemon while the floor is measured, which would harm the clients of a running"
            " one: "
            "leave out --socket, and a daemon is started for it"
        )
    try:
        welcome = _granted(settings, settings.socket_path)
    except ConnectFailed as error:
        raise MissingDependency(str(error)) from error
    yield Target(settings.socket_path, welcome, None)


def _granted(settings: Settings, socket_path: str) -> Welcome:
    """What the daemon grants over the transport that is measured; of a ring, slots for all that will be in
    flight."""
    hello = Hello(transport=settings.transport, flags=settings.flags, client_name=_CLIENT_NAME)
    welcome = ask_welcome(socket_path, hello)
    in_flight = settings.in_flight or 1
    if settings.transport is Transport.SHARED_MEMORY and welcome.in_flight_max < in_flight <= RING_SLOTS_MAX:
        slots = 1 << (in_flight - 1).bit_length()
        welcome = ask_welcome(socket_path, replace(hello, ring_slots=slots))
    return welcome


def plans_of(
    settings: Settings, target: Target, client_cpu: int | None, say: Say
) -> tuple[list[LoadPlan], CaptureReader | None]:
    """One plan, or with the floor one for each round; and what has read the capture, where there is one."""
    welcome = target.welcome
    in_flight = settings.in_flight
    if in_flight is None:
        in_flight = 1 if settings.mode is Mode.CLOSED_LOOP else welcome.in_flight_max
    if in_flight > welcome.in_flight_max:
        raise BadRequest(
            f"--in-flight {in_flight} is more than the daemon grants a connection ({welcome.in_flight_max}); "
            + (
                "its ring has no more slots"
                if settings.transport is Transport.SHARED_MEMORY
                else "beyond that it answers BUSY"
            )
        )
    base = LoadPlan(
        socket_path=target.socket_path,
        hello=Hello(
            welcome.features,
            welcome.outputs,
            settings.transport,
            settings.flags,
            ring_slots=welcome.ring_slots,
            client_name=_CLIENT_NAME,
        ),
        frames=np.empty((0, 0), dtype=np.uint8),
        outputs=welcome.outputs,
        connections=settings.connections,
        in_flight=in_flight,
        cpu=client_cpu,
        warmup_ns=round(settings.warmup_s * NS_PER_S),
        seed=settings.seed,
    )
    if settings.mode is Mode.CAPTURE:
        plan, reader = _capture_plan(settings, base, welcome.features, say)
        return [plan], reader
    if settings.history_instruments is None:
        base = replace(base, frames=random_frames(target.socket_path, welcome, settings.seed))
    else:
        base = _with_steps(settings, base, welcome, settings.history_instruments, say)
    parts = ROUNDS if settings.floor else 1
    if parts > 1:
        warmup_ns = max(base.warmup_ns // parts, min(base.warmup_ns, NS_PER_S // 5))
        base = replace(base, warmup_ns=warmup_ns, samples_max=base.samples_max // parts)
    return [_part(settings, base, part, parts) for part in range(parts)], None


def _with_steps(settings: Settings, base: LoadPlan, welcome: Welcome, instruments: int, say: Say) -> LoadPlan:
    """The plan with steps to send, and what each is to be answered with where the model's file is known."""
    if instruments > welcome.history_instruments_max:
        raise BadRequest(
            f"--instruments {instruments} is more than the daemon keeps for a connection"
            f" ({welcome.history_instruments_max}): raise instruments_max in its history table"
        )
    cycle = steps.make_cycle(
        welcome.features, welcome.history_steps, settings.connections, instruments, settings.seed
    )
    expected = None
    model, backend = settings.serve.model, settings.serve.backend
    if settings.socket_path is None and model and Path(model).suffix == ".onnx" and backend != "echo":
        say(f"running {len(cycle.rows):,} whole windows on ONNX Runtime, for the answers to expect")
        expected = steps.expected_answers(cycle, Path(model))
    return replace(base, frames=cycle.frames(), stored=cycle.stored, expected=expected)


def _part(settings: Settings, base: LoadPlan, part: int, parts: int) -> LoadPlan:
    """The plan of one of the equal parts that a run is divided into."""
    count = (
        None if settings.requests is None else settings.requests // parts + (part < settings.requests % parts)
    )
    duration_s = (settings.duration_s or 10.0) / parts
    seed = settings.seed + part
    if settings.mode is Mode.CLOSED_LOOP:
        return replace(base, requests=count or 0, duration_ns=round(duration_s * NS_PER_S), seed=seed)
    if count is not None:
        # A little longer than it takes on average, then cut to the number asked for.
        duration_s = (count + 10 * count**0.5 + 10) / settings.rate_hz
    check_scheduled(settings.rate_hz, duration_s + settings.warmup_s, f"--rate {settings.rate_hz:g}")
    if settings.arrivals == "poisson":
        offsets = schedule.poisson(settings.rate_hz, duration_s, seed)
    else:
        offsets = schedule.constant(settings.rate_hz, duration_s)
    return replace(base, intended_ns=schedule.with_warmup(offsets[:count], base.warmup_ns), seed=seed)


def check_scheduled(rate_hz: float, seconds: float, asked: str) -> None:
    """
    Args:
        rate_hz: requests a second.
        seconds: for so long, the warm-up included.
        asked: the flag that the rate comes from, for the message.

    Raises:
        BadRequest: the schedule would have more send times than a run keeps.
    """
    if rate_hz * seconds > SCHEDULED_MAX:
        raise BadRequest(
            f"{asked} for {seconds:.3g} s would send {rate_hz * seconds:.3g} requests, expected"
            f" {SCHEDULED_MAX:,} at most: choose a lower one, or a shorter --duration or --warmup"
        )


def _capture_plan(
    settings: Settings, base: LoadPlan, features: int, say: Say
) -> tuple[LoadPlan, CaptureReader]:
    assert settings.capture is not None
    say(f"computing the features of {settings.capture.name}")
    arrivals_ns, frames, reader = requests.capture_requests(
        settings.capture, features, salvage=settings.salvage
    )
    offsets, frames = _cut(schedule.of_capture(arrivals_ns, settings.speed), frames, settings)
    gap_s = schedule.mean_gap_ns(offsets) / NS_PER_S
    check_scheduled(1 / gap_s, settings.warmup_s, f"the warm-up of a capture at --speed {settings.speed:g}")
    plan = replace(base, frames=frames, intended_ns=schedule.with_warmup(offsets, base.warmup_ns))
    return plan, reader


def _cut(
    offsets: Int64Array, frames: npt.NDArray[np.uint8], settings: Settings
) -> tuple[Int64Array, npt.NDArray[np.uint8]]:
    """The beginning of a capture, as far as --requests or --duration goes."""
    count = offsets.size if settings.requests is None else min(settings.requests, offsets.size)
    if settings.duration_s is not None:
        count = min(count, max(1, int(np.searchsorted(offsets, round(settings.duration_s * NS_PER_S)))))
    return offsets[:count], frames[:count]


def _rounds(
    settings: Settings,
    target: Target,
    plans: list[LoadPlan],
    generator: LoadGenerator,
    programs: NativePrograms,
    answering_cpu: int | None,
    warmed_up: Callable[[], None],
    say: Say,
) -> list[FloorRound]:
    own = target.own
    if own is None:
        raise BadRequest("--floor needs a daemon of its own: leave out --socket")
    model = settings.serve.model or _shipped_model()
    backend = settings.serve.backend or "auto"
    bare_seconds = max(0.2, _BARE_SHARE * (settings.duration_s or 10.0) / len(plans))
    rounds: list[FloorRound] = []
    with ExitStack() as stack:
        own.pause()
        stack.callback(own.resume)
        bare = stack.enter_context(BareBackend(model, backend, _BATCH_ROWS_MAX, answering_cpu))
        for number, plan in enumerate(plans):
            say(f"round {number + 1} of {len(plans)}: echo, bare backend, sigd")

            def run_sigd(plan: LoadPlan = plan) -> Measurement:
                own.resume()
                try:
                    return generator.run(plan, warmed_up)
                finally:
                    own.pause()

            rounds.append(run_round(plan, generator, programs, bare, answering_cpu, bare_seconds, run_sigd))
    return rounds


def _shipped_model() -> str:
    from sigd.models.zoo import default_model_path

    return str(default_model_path())


def _measuring_line(settings: Settings, plan: LoadPlan) -> str:
    if plan.intended_ns is not None:
        seconds = f"{plan.intended_ns[-1] / NS_PER_S:,.1f} s"
    elif plan.requests:
        seconds = f"{plan.requests:,} requests"
    else:
        seconds = f"{plan.duration_ns / NS_PER_S:g} s"
    return f"warming up for {settings.warmup_s:g} s, then measuring for {seconds}"


class _MemoryWatch:
    """Reads the daemon's resident memory when the warm-up ends, and again when asked."""

    def __init__(self, daemon_pid: int) -> None:
        self._pid = daemon_pid if _is_sigd(daemon_pid) else None
        self._after_warmup: int | None = None

    def warmed_up(self) -> None:
        """The warm-up has ended; only the first call counts."""
        if self._pid is not None and self._after_warmup is None:
            self._after_warmup = _resident_bytes(self._pid)

    def found(self) -> Memory | None:
        """What there was after the warm-up and what there is now."""
        now = _resident_bytes(self._pid) if self._pid is not None else None
        if self._after_warmup is None or now is None:
            return None
        return Memory(self._after_warmup, now)


def _resident_bytes(pid: int) -> int | None:
    try:
        return resident_bytes(pid)
    except OSError:
        return None


def _is_sigd(pid: int) -> bool:
    """Whether that process of this machine is a sigd: at the far end of a tunnel the number means another
    one."""
    try:
        return b"sigd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
