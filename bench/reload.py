"""What reloads cost the requests that come meanwhile: an open loop in turns of equal length: at rest, with
reloads, and beside a process that has nothing to do with the daemon and computes as much as a reload does,
with idle priority.

The last is the floor: what the machine makes of one more process. Where cores are few it may be more than the
bar, and the daemon can do nothing about it.

A request counts as "during" where any part of its life, from when it was due to its answer, lies in a reload:
from the question to the daemon until its answer that the new model serves. Every request is kept.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from sigd.bench import histogram, processor_time, verdict
from sigd.bench.daemon_process import OwnDaemon, ServeOptions, ask_welcome
from sigd.bench.errors import BadRequest
from sigd.bench.load import schedule
from sigd.bench.load.contract import LoadGenerator, LoadPlan, Measurement
from sigd.bench.load.plan import plan_for
from sigd.bench.load.schedule import NS_PER_S
from sigd.daemon.admin.client import ask_reload
from sigd.daemon.config.config import admin_path_of
from sigd.daemon.errors import DaemonError
from sigd.models.engine import ENGINE_SUFFIX
from sigd.models.manifest import manifest_path
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

P99_RATIO_MAX: Final = 1.2
_CLIENT_NAME: Final = "sigd bench"
TURN_S: Final = 5.0
_WARMUP_S: Final = 0.3
_PAUSE_S: Final = 0.05
"""Between two reloads."""
_PATIENCE_S: Final = 60.0
COST_RELOADS: Final = 20
"""Before the load, to tell the processor time of one."""
_COST_IDLE_S: Final = 1.0
"""How long the idle daemon is looked at, whose processor time is taken off."""
_COMPUTED_S: Final = 0.018
"""Processor time of one reload with the model that ships with sigd, for the control load where it could not
be told."""
_COMPUTE: Final = """
import os, sys, time
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
for seconds in sys.stdin:
    until = time.process_time() + float(seconds)
    while time.process_time() < until:
        pass
    print(flush=True)
"""
_TURNS_MAX: Final = 100
_MOMENT_S: Final = 0.1
LONG_GAP_NS: Final = 50_000
"""Shorter ones cannot be seen on a time-line."""
_PERCENTS: Final = (50.0, 99.0, 99.9, 100.0)

Say = Callable[[str], None]
Window = tuple[int, int]
"""From and until, on CLOCK_MONOTONIC in ns."""


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        model: the file to serve, and to reload.
        other: a file to reload in turn with it; None is the same one.
        reloads: how many; turns follow each other until there are so many.
        cpu: of the client.
    """

    serve: ServeOptions
    model: Path
    other: Path | None
    transport: Transport
    rate_hz: float
    reloads: int
    cpu: int | None


@dataclass(frozen=True)
class Found:
    """Everything that was found out; latencies in ns, from when a request was due to its answer.

    Attributes:
        measurements: of all turns.
        resting, beside, during: p50, p99, p99.9 and the longest; at rest, while the control load computed,
            during reloads.
        requests: how many, in the same order.
        reloads: how many there were.
        reload_ms: p50 and the longest of the reloads themselves.
        reload_cpu_ms: processor time of one, in the daemon and in the processes that validate, without load;
            None where the kernel does not count, or a reload failed.
        generations: the first that was seen, and the one that is served in the end.
        in_order: no answer named a lower generation than the one before it.
        failures: reasons of reloads that failed.
        moments: of the turns with reloads, one behind the other: (second, p50 us, p99 us) of each tenth of a
            second.
        windows_s: when reloads were under way, on the same axis.
        gaps_s: when the machine stopped the client for LONG_GAP_NS or more, on the same axis.
        by_generation: (generation, p50 us, p99 us) of the answers that name it.
    """

    asked: Asked
    measurements: list[Measurement]
    resting: list[int]
    beside: list[int]
    during: list[int]
    requests: tuple[int, int, int]
    reloads: int
    reload_ms: tuple[float, float]
    reload_cpu_ms: float | None
    generations: tuple[int, int]
    in_order: bool
    failures: list[str]
    moments: list[tuple[float, float, float]]
    windows_s: list[tuple[float, float]]
    gaps_s: list[tuple[float, float]]
    by_generation: list[tuple[int, float, float]]

    @property
    def p99_ratio(self) -> float:
        """How much longer p99 is during reloads."""
        return self.during[1] / max(1, self.resting[1])

    @property
    def floor_ratio(self) -> float:
        """How much longer p99 is while a control load computes."""
        return self.beside[1] / max(1, self.resting[1])

    @property
    def received(self) -> int:
        """Answers."""
        return sum(measurement.received for measurement in self.measurements)

    @property
    def lost(self) -> int:
        """Requests that were never answered."""
        return sum(measurement.lost for measurement in self.measurements)

    def reasons(self) -> list[str]:
        """Why it did not pass; empty where it did."""
        judged = [verdict.judge(measurement, None).reasons for measurement in self.measurements]
        reasons = sorted({*self.failures, *(reason for reasons in judged for reason in reasons)})
        first, last = self.generations
        if not self.in_order:
            reasons.append("an answer named a lower generation than the one before it")
        if last - first != self.reloads:
            reasons.append(f"generation {first} became {last} after {self.reloads} reloads")
        if self.reloads < self.asked.reloads:
            reasons.append(f"{self.reloads} reloads in {_TURNS_MAX} turns, expected {self.asked.reloads}")
        if self.p99_ratio > P99_RATIO_MAX:
            reasons.append(
                f"p99 is {self.p99_ratio:.2f} times as long during reloads, more than {P99_RATIO_MAX}"
            )
        return reasons


class Latencies(msgspec.Struct, frozen=True):
    """Of the requests of one kind of turn; times from when one was due to its answer."""

    requests: int
    p50_us: float
    p99_us: float
    p99_9_us: float = msgspec.field(name="p99.9_us")
    max_us: float


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes.

    Attributes:
        cpus: of the daemon and of the client; null where they are on no core of their own.
        reload_cpu_ms: processor time of one reload, in the daemon and in the processes that validate, without
            load; null where it could not be told.
        generations: the first that was seen, and the one that is served in the end.
        in_order: no answer named a lower generation than the one before it.
    """

    reloads: int
    rate_hz: float
    transport: str
    idle: str | None
    cpus: tuple[int | None, int | None]
    at_rest: Latencies
    beside_a_control_load: Latencies
    during_reloads: Latencies
    p99_ratio: float
    p99_floor_ratio: float
    reload_p50_ms: float
    reload_max_ms: float
    reload_cpu_ms: float | None
    lost: int
    generations: tuple[int, int]
    in_order: bool
    reasons: list[str]
    passed: bool


class _Activity:
    """Something that is done again and again beside the load, in a thread of its own, for the length of a
    turn.

    Attributes:
        windows: when it was under way, each time.
    """

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def go_on_until(self, times_max: int, deadline_ns: int) -> None:
        """Once more and once more; the last time ends shortly after the deadline."""
        while len(self.windows) < times_max and time.monotonic_ns() < deadline_ns:
            began_ns = time.monotonic_ns()
            self._once()
            self.windows.append((began_ns, time.monotonic_ns()))
            time.sleep(_PAUSE_S)

    def _once(self) -> None:
        raise NotImplementedError

    @property
    def took_s(self) -> list[float]:
        """How long, each time."""
        return [(until_ns - since_ns) / NS_PER_S for since_ns, until_ns in self.windows]


class _ControlLoad(_Activity):
    """Computes as long as a reload does, in a process that has nothing to do with the daemon.

    Args:
        operator: whose reloads its windows are as long as.
        computed_s: processor time, each time.
    """

    def __init__(self, operator: _Operator, computed_s: float) -> None:
        super().__init__()
        self._operator = operator
        self._computed_s = computed_s
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMPUTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _once(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + statistics.median(self._operator.took_s)
        print(self._computed_s, file=self._process.stdin, flush=True)
        self._process.stdout.readline()
        time.sleep(max(0.0, deadline_s - time.monotonic()))

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.communicate()


class _Operator(_Activity):
    """Asks for reloads.

    Attributes:
        failures: their reasons.
    """

    def __init__(self, admin_socket: Path, files: tuple[Path, Path]) -> None:
        super().__init__()
        self.failures: list[str] = []
        self._admin_socket = admin_socket
        self._files = files

    def _once(self) -> None:
        file = self._files[(len(self.windows) + 1) % 2]
        try:
            reason = ask_reload(self._admin_socket, file, _PATIENCE_S).models[0].error
        except DaemonError as error:
            reason = str(error)
        if reason:
            self.failures.append(reason)


def measure(asked: Asked, generator: LoadGenerator, say: Say) -> Found:
    """Measure. `say` is told what is being done, a line at a time.

    Raises:
        BadRequest: an engine has no manifest beside it.
        PeerFailed: a process that the measurement needs failed.
    """
    with tempfile.TemporaryDirectory(prefix="sigd-reload-") as folder:
        files = (
            _copied(asked.model, Path(folder) / "a"),
            _copied(asked.other or asked.model, Path(folder) / "b"),
        )
        serve = replace(asked.serve, model=str(files[0]))
        say("starting a daemon: sigd " + " ".join(serve.arguments("SOCKET")))
        with OwnDaemon(serve) as daemon, ExitStack() as stack:
            operator = _Operator(admin_path_of(Path(daemon.socket_path)), files)
            say(f"{COST_RELOADS} reloads without load, for their processor time")
            cost_s = _cost_s(daemon.pid, operator)
            control_load = stack.enter_context(closing(_ControlLoad(operator, cost_s or _COMPUTED_S)))
            resting: list[Measurement] = []
            during: list[Measurement] = []
            beside: list[Measurement] = []
            while len(operator.windows) < asked.reloads and len(resting) < _TURNS_MAX:
                say(f"{len(operator.windows)} of {asked.reloads} reloads; {TURN_S:g} s at rest, with, floor")
                plan = _plan(asked, daemon.socket_path, seed=len(resting))
                resting.append(generator.run(plan, _nothing))
                during.append(_run_beside(operator, asked.reloads, plan, generator))
                beside.append(_run_beside(control_load, len(operator.windows), plan, generator))
            generation = ask_welcome(daemon.socket_path, Hello(client_name=_CLIENT_NAME)).model_generation
            daemon.stop()
    found = _found(asked, resting, (beside, control_load), (during, operator), generation)
    return replace(found, reload_cpu_ms=None if cost_s is None else 1000 * cost_s)


def _copied(source: Path, target: Path) -> Path:
    """A model or an engine with its manifest, under the name of `target`."""
    engine = source.suffix == ENGINE_SUFFIX
    copy = target.with_suffix(ENGINE_SUFFIX if engine else ".onnx")
    shutil.copyfile(source, copy)
    if engine:
        try:
            shutil.copyfile(manifest_path(source), manifest_path(copy))
        except FileNotFoundError as error:
            raise BadRequest(
                f"{manifest_path(source)}: no such file: an engine is served with the manifest that was"
                " written beside it; copy both files"
            ) from error
    return copy


def _cost_s(pid: int, operator: _Operator) -> float | None:
    """Processor time of one reload: of the daemon and its child processes, less what they take idle.

    What the reloads of `operator` were is forgotten but for their failures.
    """
    operator.go_on_until(1, time.monotonic_ns() + NS_PER_S)  # the first one sets things up
    at_ns = [time.monotonic_ns()]
    used_ns = [processor_time.used_ns(pid)]
    time.sleep(_COST_IDLE_S)
    at_ns.append(time.monotonic_ns())
    used_ns.append(processor_time.used_ns(pid))
    operator.go_on_until(1 + COST_RELOADS, at_ns[1] + round(_PATIENCE_S * NS_PER_S))
    done = len(operator.windows) - 1
    at_ns.append(time.monotonic_ns())
    used_ns.append(processor_time.used_ns(pid))
    operator.windows.clear()
    if None in used_ns or operator.failures or not done:
        return None
    before, idle, after = (used or 0 for used in used_ns)
    idle_share = (idle - before) / (at_ns[1] - at_ns[0])
    return max(0.0, after - idle - idle_share * (at_ns[2] - at_ns[1])) / done / NS_PER_S


def _run_beside(activity: _Activity, times_max: int, plan: LoadPlan, generator: LoadGenerator) -> Measurement:
    def begin() -> None:
        deadline_ns = time.monotonic_ns() + round(TURN_S * NS_PER_S)
        acting = threading.Thread(target=activity.go_on_until, args=(times_max, deadline_ns))
        threads.append(acting)
        acting.start()

    threads: list[threading.Thread] = []
    measurement = generator.run(plan, begin)
    for acting in threads:
        acting.join()
    return measurement


def _plan(asked: Asked, socket_path: str, seed: int) -> LoadPlan:
    hello = Hello(transport=asked.transport, client_name=_CLIENT_NAME)
    plan, welcome = plan_for(socket_path, hello)
    offsets = schedule.poisson(asked.rate_hz, TURN_S, seed)
    return replace(
        plan,
        intended_ns=schedule.with_warmup(offsets, round(_WARMUP_S * NS_PER_S)),
        warmup_ns=round(_WARMUP_S * NS_PER_S),
        in_flight=welcome.in_flight_max,
        cpu=asked.cpu,
        samples_max=offsets.size,
    )


def _found(
    asked: Asked,
    resting: list[Measurement],
    beside: tuple[list[Measurement], _Activity],
    during: tuple[list[Measurement], _Operator],
    generation: int,
) -> Found:
    operator = during[1]
    at_rest = np.concatenate([measurement.samples for measurement in resting])
    floor, reloading = _under_way(*beside), _under_way(*during)
    measurements = [*resting, *beside[0], *during[0]]
    generations = [
        np.sort(measurement.samples, order="intended_ns")["model_generation"].astype(np.int64)
        for measurement in measurements
    ]
    took_ms = [1000 * seconds for seconds in operator.took_s]
    return Found(
        asked=asked,
        measurements=measurements,
        resting=_percentiles(at_rest),
        beside=_percentiles(floor),
        during=_percentiles(reloading),
        requests=(at_rest.size, floor.size, reloading.size),
        reloads=len(operator.windows),
        reload_ms=(statistics.median(took_ms), max(took_ms)),
        reload_cpu_ms=None,
        generations=(int(resting[0].generation_first), generation),
        in_order=all(bool((np.diff(seen) >= 0).all()) for seen in generations),
        failures=operator.failures,
        **_in_time(*during),
    )


def _in_time(measurements: list[Measurement], activity: _Activity) -> dict[str, Any]:
    """The turns with reloads on one axis in seconds, without what lay between them; and by generation."""
    moments: list[tuple[float, float, float]] = []
    windows: list[tuple[float, float]] = []
    gaps: list[tuple[float, float]] = []
    seconds_before = 0.0
    for measurement in measurements:
        samples = measurement.samples
        begin_ns = int(samples["intended_ns"].min())
        at_s = (samples["intended_ns"] - begin_ns) / NS_PER_S
        for moment in np.unique(np.floor(at_s / _MOMENT_S)):
            p50, p99, _, _ = _percentiles(samples[np.floor(at_s / _MOMENT_S) == moment])
            moments.append((seconds_before + float(moment) * _MOMENT_S, p50 / 1000, p99 / 1000))
        windows += [
            (
                seconds_before + (since_ns - begin_ns) / NS_PER_S,
                seconds_before + (until_ns - begin_ns) / NS_PER_S,
            )
            for since_ns, until_ns in activity.windows
            if begin_ns <= since_ns < begin_ns + TURN_S * NS_PER_S
        ]
        gaps += [
            (ended_s - length_ns / NS_PER_S, ended_s)
            for ended_ns, length_ns in measurement.gaps.tolist()
            if length_ns >= LONG_GAP_NS
            for ended_s in [seconds_before + (ended_ns - begin_ns) / NS_PER_S]
        ]
        seconds_before += TURN_S
    everything = np.concatenate([measurement.samples for measurement in measurements])
    by_generation = []
    for generation in np.unique(everything["model_generation"]):
        p50, p99, _, _ = _percentiles(everything[everything["model_generation"] == generation])
        by_generation.append((int(generation), p50 / 1000, p99 / 1000))
    return {"moments": moments, "windows_s": windows, "gaps_s": gaps, "by_generation": by_generation}


def _under_way(measurements: list[Measurement], activity: _Activity) -> npt.NDArray[np.void]:
    """The requests that met it."""
    return np.concatenate(
        [
            measurement.samples[overlapping(measurement.samples, activity.windows)]
            for measurement in measurements
        ]
    )


def overlapping(samples: npt.NDArray[np.void], windows: list[Window]) -> npt.NDArray[np.bool_]:
    """Which requests were under way at some time in one of the windows, which are in order and apart."""
    since = np.array([window[0] for window in windows], np.int64)
    until = np.array([window[1] for window in windows], np.int64)
    # The first window that ends after the request was due: did it begin before the answer?
    index = np.searchsorted(until, samples["intended_ns"])
    known = index < len(windows)
    met: npt.NDArray[np.bool_] = known.copy()
    met[known] = since[index[known]] <= samples["received_ns"][known]
    return met


def _percentiles(samples: npt.NDArray[np.void]) -> list[int]:
    return histogram.percentiles_ns(
        histogram.count(samples["received_ns"] - samples["intended_ns"]), _PERCENTS
    )


def _nothing() -> None:
    """No client waits for the end of the warm-up."""
