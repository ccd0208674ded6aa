"""What the process does to itself, each in a process of its own."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sigd.daemon.errors import UsageError
from sigd.daemon.runtime.process import allow_descriptors, lock_memory, pin_to_cpu, warn_of_realtime_spin


def in_a_process(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pinned_to_one_core() -> None:
    core = min(os.sched_getaffinity(0))
    said = in_a_process(
        "import os; from sigd.daemon.runtime.process import pin_to_cpu\n"
        f"pin_to_cpu({core}); print(os.sched_getaffinity(0))"
    )
    assert said == f"{{{core}}}"


@pytest.mark.parametrize("cpu", [1023, 65_535, 2**31, 2**63, 2**70, -1])
def test_a_core_that_is_not_there(cpu: int) -> None:
    if cpu in os.sched_getaffinity(0):
        pytest.skip(f"this machine has a core {cpu}")
    with pytest.raises(UsageError, match=f"cpu {cpu} .*it may use: 0|cpu {cpu} .*it may use: [0-9]"):
        pin_to_cpu(cpu)


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "allowed", "soft_after"),
    [
        (8192, 8192, 1024, 1024, 8192),
        (256, 8192, 1024, 1024, 4160),
        (256, 512, 1024, 112, 512),
        (60, 60, 1024, 1, 60),
    ],
)
def test_descriptors(soft: int, hard: int, asked: int, allowed: int, soft_after: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip(f"this process may not have {hard} open files")
    said = in_a_process(
        "import logging, resource; from sigd.daemon.runtime.process import allow_descriptors\n"
        "logging.basicConfig(format='%(message)s')\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"print(allow_descriptors({asked}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    assert said == f"{allowed} {soft_after}"


def test_too_few_descriptors_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 200))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert allow_descriptors(1024) == 34
    assert "LimitNOFILE" in caplog.text


def test_memory_is_not_locked_where_the_limits_would_make_later_allocations_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8192, 8192))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: pytest.fail("locked"))
    caplog.set_level("INFO")
    assert not lock_memory()
    assert "LimitMEMLOCK" in caplog.text


def test_locked_memory_is_locked() -> None:
    said = in_a_process(
        "from sigd.daemon.runtime.process import lock_memory\n"
        "locked = lock_memory()\n"
        "line = next(l for l in open('/proc/self/status') if l.startswith('VmLck'))\n"
        "print(locked, int(line.split()[1]) > 0)"
    )
    assert said in ("True True", "False False")


def test_frozen_garbage_is_not_looked_at_again() -> None:
    said = in_a_process(
        "import gc; from sigd.daemon.runtime.process import freeze_garbage\n"
        "freeze_garbage(); print(gc.isenabled(), gc.get_freeze_count() > 1000, len(gc.get_objects()) < 100)"
    )
    assert said == "False True True"


def test_overflow_is_no_event() -> None:
    said = in_a_process(
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy as np; from sigd.daemon.runtime.process import ignore_overflow\n"
        "ignore_overflow(); a = np.full(4, 1e30, np.float32); print(a.dot(a), (a - a * np.inf).dot(a))"
    )
    assert said.split()[0] == "inf"


def test_resident_memory_is_that_of_this_process() -> None:
    said = in_a_process(
        "from sigd.daemon.runtime.process import resident_bytes\n"
        "before = resident_bytes(); block = bytearray(64 << 20); print(resident_bytes() - before)"
    )
    assert 60 << 20 < int(said) < 80 << 20


@pytest.mark.parametrize(
    ("policy", "runtime", "said"),
    [
        (os.SCHED_FIFO, "950000\n", "50 ms of every second"),
        (os.SCHED_RR, "950000\n", "50 ms of every second"),
        (os.SCHED_FIFO, "-1\n", "the kernel's own work on this core never runs"),
        (os.SCHED_FIFO, None, "50 ms of every second"),
        (os.SCHED_OTHER, "950000\n", ""),
    ],
)
def test_spinning_at_realtime_priority_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: int, runtime: str | None, said: str
) -> None:
    file = tmp_path / "sched_rt_runtime_us"
    if runtime is not None:
        file.write_text(runtime)
    warn_of_realtime_spin(policy, file)
    assert said in caplog.text
    assert bool(caplog.records) is bool(said)
