"""The load generator in C++ (`native/loadgen.cpp`), as a process that reads a plan file and writes a result
file."""

from __future__ import annotations

import mmap
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sigd.bench import histogram
from sigd.bench.errors import PeerFailed
from sigd.bench.load.contract import (
    GAP,
    HICCUP_BUSY_NS,
    HICCUP_NS,
    LATE_NS,
    SAMPLE,
    STATUS_NAMES,
    LatencyCounts,
    LoadPlan,
    Measurement,
    Violation,
    ViolationKind,
    slowest_of,
)
from sigd.bench.native.build import NativePrograms
from sigd.wire import fields

_PATH_BYTES = 112

#: `PlanHeader` and `ResultHeader` of native/exchange.hpp.
PLAN_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("socket_path", f"S{_PATH_BYTES}"),
        ("hello", f"V{fields.HELLO.frame_bytes}"),
        ("rows", "<u8"),
        ("request_length", "<u8"),
        ("intended", "<u8"),
        ("requests", "<u8"),
        ("duration_ns", "<i8"),
        ("warmup_ns", "<i8"),
        ("stall_ns", "<i8"),
        ("behind_ns", "<i8"),
        ("connections", "<u8"),
        ("in_flight", "<u8"),
        ("cpu", "<i8"),
        ("samples_max", "<u8"),
        ("late_ns", "<i8"),
        ("gap_ns", "<i8"),
        ("busy_gap_ns", "<i8"),
        ("seed", "<u8"),
        ("expected", "<u8"),
        ("tolerance", "<f8"),
        ("stored", "<u8"),
    ]
)
RESULT_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("welcome", f"V{fields.WELCOME.frame_bytes}"),
        ("begin_ns", "<i8"),
        ("last_sent_ns", "<i8"),
        ("last_received_ns", "<i8"),
        ("requests", "<u8"),
        ("sent", "<u8"),
        ("received", "<u8"),
        ("statuses", "<u8", (16,)),
        ("late_sends", "<u8"),
        ("late_worst_ns", "<i8"),
        ("hiccups", "<u8"),
        ("hiccup_worst_ns", "<i8"),
        ("hiccup_sum_ns", "<i8"),
        ("batch_rows_sum", "<u8"),
        ("generation_first", "<u8"),
        ("generation_last", "<u8"),
        ("slowest", "<u8"),
        ("samples", "<u8"),
        ("gaps", "<u8"),
        ("violation", "<u8"),
        ("violation_connection", "<u8"),
        ("violation_expected", "<u8"),
        ("violation_found", "<u8"),
        ("violation_text", "S192"),
    ]
)
assert PLAN_HEADER.itemsize == 352
assert RESULT_HEADER.itemsize == 624

_COUNTED = ("corrected", "uncorrected", "queue", "model", "rest")


class NativeLoad:
    """Measures with one pinned, spinning C++ thread.

    Args:
        peer: how `native/peers.cpp` speaks to what is no sigd, see there; () asks a daemon.
    """

    name = "cpp"

    def __init__(self, programs: NativePrograms, peer: Sequence[str] = ()) -> None:
        self._program = programs.path("peers" if peer else "loadgen")
        self._peer = tuple(peer)

    def run(self, plan: LoadPlan, on_measuring: Callable[[], None]) -> Measurement:
        """See `sigd.bench.load.contract.LoadGenerator`."""
        with tempfile.TemporaryDirectory(prefix="sigd-load-", dir=_memory_directory()) as directory:
            plan_path = Path(directory) / "plan"
            result_path = Path(directory) / "result"
            _write_plan(plan, plan_path)
            _run_process([self._program, str(plan_path), str(result_path), *self._peer], on_measuring)
            intended_span_ns = int(plan.intended_ns[-1]) if plan.intended_ns is not None else 0
            return _read_result(result_path, intended_span_ns)


def _memory_directory() -> str | None:
    """A folder in memory, so that no disk writes back pages while the run is measured; None where there is
    none."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() else None


def _run_process(command: list[str], on_measuring: Callable[[], None]) -> None:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if line.strip() == "measuring":
                    on_measuring()
            said = process.stderr.read()
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    if code != 0:
        raise PeerFailed(f"the load generator ended with {code}: {said.strip() or 'no message'}")


def _write_plan(plan: LoadPlan, path: Path) -> None:
    if len(plan.socket_path.encode()) >= 108:
        raise PeerFailed(
            f"the socket path {plan.socket_path} has {len(plan.socket_path.encode())} bytes; Linux takes at"
            " most 107"
        )
    intended = plan.intended_ns if plan.intended_ns is not None else np.empty(0, dtype=np.int64)
    rows, request_length = plan.frames.shape
    header = np.zeros((), dtype=PLAN_HEADER)
    values = {
        "magic": b"SGDPLAN1",
        "socket_path": plan.socket_path.encode(),
        "hello": np.void(plan.hello.encode()),
        "rows": rows,
        "request_length": request_length,
        "intended": intended.size,
        "requests": plan.requests,
        "duration_ns": plan.duration_ns,
        "warmup_ns": plan.warmup_ns,
        "stall_ns": plan.stall_ns,
        "behind_ns": plan.behind_ns,
        "connections": plan.connections,
        "in_flight": plan.in_flight,
        "cpu": -1 if plan.cpu is None else plan.cpu,
        "samples_max": plan.samples_max,
        "late_ns": LATE_NS,
        "gap_ns": HICCUP_NS,
        "busy_gap_ns": HICCUP_BUSY_NS,
        "seed": plan.seed,
        "expected": 0 if plan.expected is None else rows,
        "tolerance": plan.tolerance,
        "stored": plan.stored,
    }
    for name, value in values.items():
        header[name] = value
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(plan.frames).data)
        file.write(np.ascontiguousarray(intended, dtype="<i8").data)
        if plan.expected is not None:
            assert plan.expected.shape == (rows, plan.hello.outputs)
            file.write(np.ascontiguousarray(plan.expected, dtype="<f4").data)


def _read_result(path: Path, intended_span_ns: int) -> Measurement:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        header = np.frombuffer(mapped, dtype=RESULT_HEADER, count=1)[0].copy()
        if header["magic"] != b"SGDRSLT1":
            raise PeerFailed(f"the load generator wrote {bytes(header['magic'])!r}, expected a result file")
        at = RESULT_HEADER.itemsize
        counts = np.frombuffer(mapped, "<u8", histogram.BINS * len(_COUNTED), at)
        counts = counts.reshape(len(_COUNTED), histogram.BINS).astype(np.uint64)
        at += counts.nbytes
        slowest = np.frombuffer(mapped, SAMPLE, int(header["slowest"]), at).copy()
        at += slowest.nbytes
        samples = np.frombuffer(mapped, SAMPLE, int(header["samples"]), at).copy()
        at += samples.nbytes
        gaps = np.frombuffer(mapped, GAP, int(header["gaps"]), at).copy()
    begin_ns = int(header["begin_ns"])
    return Measurement(
        client=NativeLoad.name,
        welcome=bytes(header["welcome"]),
        elapsed_ns=max(0, int(header["last_received_ns"]) - begin_ns),
        intended_span_ns=intended_span_ns,
        sent_span_ns=max(0, int(header["last_sent_ns"]) - begin_ns),
        requests=int(header["requests"]),
        sent=int(header["sent"]),
        received=int(header["received"]),
        statuses=tuple(int(n) for n in header["statuses"][: len(STATUS_NAMES)]),
        late_sends=int(header["late_sends"]),
        late_worst_ns=int(header["late_worst_ns"]),
        hiccups=int(header["hiccups"]),
        hiccup_worst_ns=int(header["hiccup_worst_ns"]),
        hiccup_sum_ns=int(header["hiccup_sum_ns"]),
        batch_rows_sum=int(header["batch_rows_sum"]),
        generation_first=int(header["generation_first"]),
        generation_last=int(header["generation_last"]),
        counts=LatencyCounts(**dict(zip(_COUNTED, counts, strict=True))),
        samples=samples,
        slowest=slowest_of(slowest),
        violation=_violation(header),
        gaps=gaps,
    )


def _violation(header: np.void) -> Violation | None:
    kind = ViolationKind(int(header["violation"]))
    if kind is ViolationKind.NONE:
        return None
    return Violation(
        kind=kind,
        connection=int(header["violation_connection"]),
        expected=int(header["violation_expected"]),
        found=int(header["violation_found"]),
        text=bytes(header["violation_text"]).decode(errors="replace"),
    )
