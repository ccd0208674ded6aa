"""The native programs under AddressSanitizer and UBSan: whole runs over both transports, and runs that end
early."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sigd.bench.floor import floor
from sigd.bench.load import schedule
from sigd.bench.load.contract import LoadPlan, Violation, ViolationKind
from sigd.bench.load.native import NativeLoad
from sigd.bench.load.requests import random_frames
from sigd.bench.native.build import INCLUDE, SOURCES, NativePrograms
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

pytestmark = pytest.mark.slow

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")


@pytest.fixture(scope="module")
def sanitized(programs: NativePrograms, tmp_path_factory: pytest.TempPathFactory) -> NativePrograms:
    """The load generator and both echoes, each of which ends with a report at the first finding."""
    folder = tmp_path_factory.mktemp("sanitized")
    (folder / "empty.cpp").write_text("int main() {}\n")
    compile_it = [programs.command, "-std=c++20", *FLAGS, "-I", str(INCLUDE)]

    def compiled(source: Path) -> subprocess.CompletedProcess[str]:
        command = [*compile_it, "-o", str(folder / source.stem), str(source)]
        return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)

    empty = compiled(folder / "empty.cpp")
    if empty.returncode != 0:
        pytest.skip(f"the compiler has no {FLAGS[0]} here: {empty.stderr.strip().splitlines()[-1]}")
    for name in ("loadgen", "echo", "ring_echo"):
        done = compiled(SOURCES / f"{name}.cpp")
        assert done.returncode == 0, done.stderr
    return replace(programs, directory=folder)


@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("loop", ["closed", "open"])
def test_whole_runs_have_nothing_to_report(
    sanitized: NativePrograms, transport: Transport, loop: str
) -> None:
    offsets = schedule.with_warmup(schedule.poisson(10_000, 0.2, seed=1), 10_000_000)
    options: dict[str, Any] = {"requests": 5000} if loop == "closed" else {"intended_ns": offsets}
    slots = 16 if transport is Transport.SHARED_MEMORY else 0
    plan = LoadPlan(
        *("/nowhere", Hello(5, 3, transport, ring_slots=slots), random_frames(5, seed=0, rows=64), 3),
        **options,
        connections=3,
        in_flight=16,
        samples_max=100,
    )
    with floor.echo_server(sanitized, transport, plan.outputs, None) as path:
        measurement = NativeLoad(sanitized).run(replace(plan, socket_path=path), lambda: None)
    assert measurement.violation is None
    assert measurement.received == (5000 if loop == "closed" else int((offsets >= 0).sum()))


@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("fault", ["close_early", "reject", "long", "reject_hello", "stamps_too_long"])
def test_runs_that_end_early_have_nothing_to_report(
    sanitized: NativePrograms, start_peer: Callable[..., Any], transport: Transport, fault: str
) -> None:
    plan = LoadPlan(
        *(start_peer(fault=fault).path, Hello(4, 3, transport), random_frames(4, seed=0, rows=8), 3),
        requests=300,
        in_flight=4,
    )
    violation = NativeLoad(sanitized).run(plan, lambda: None).violation
    assert isinstance(violation, Violation)
    assert violation.kind is not ViolationKind.NONE
