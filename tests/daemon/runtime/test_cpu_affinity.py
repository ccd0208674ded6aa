"""Which cores are left for work beside the loop, and how a thread gets there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sigd.daemon.runtime import cpu_affinity as placement
from sigd.daemon.runtime.cpu_affinity import cores_beside, leave_cores, leave_loop_core


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cores, of which 4 to 6 are isolated."""
    (tmp_path / "online").write_text("0-7\n")
    (tmp_path / "isolated").write_text("4-5,6\n")
    monkeypatch.setattr(placement, "ONLINE", tmp_path / "online")
    monkeypatch.setattr(placement, "ISOLATED", tmp_path / "isolated")
    return tmp_path


@pytest.mark.parametrize(
    ("cpu", "allowed", "cores"),
    [
        (None, {0, 1}, {0, 1}),
        (3, {0, 1, 3}, {0, 1}),
        (5, {0, 1}, {0, 1}),
        (3, {3}, {0, 1, 2, 7}),
        (None, {3}, {0, 1, 2, 7}),
        (7, {7}, {0, 1, 2, 3}),
    ],
)
def test_all_but_the_loops(machine: Path, cpu: int | None, allowed: set[int], cores: set[int]) -> None:
    assert cores_beside(cpu, allowed) == cores


def test_the_loops_own_where_there_is_no_other(machine: Path) -> None:
    (machine / "online").write_text("3\n")
    (machine / "isolated").write_text("\n")
    assert cores_beside(3, {3}) == {3}
    (machine / "online").unlink()
    assert cores_beside(3, {3}) == {3}


@pytest.mark.parametrize(("idle_priority", "policy"), [(False, os.SCHED_OTHER), (True, os.SCHED_IDLE)])
def test_a_thread_steps_aside_and_the_others_stay(idle_priority: bool, policy: int) -> None:
    before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    core = max(before[0])
    found = []

    def inside() -> None:
        leave_loop_core({core}, idle_priority=idle_priority)
        found.append((os.sched_getaffinity(0), os.sched_getscheduler(0)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [({core}, policy)]
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before


@pytest.mark.parametrize(("nice", "after"), [(-20, 0), (0, 0), (7, 7)])
def test_a_thread_gives_up_what_the_process_was_favoured_with(
    monkeypatch: pytest.MonkeyPatch, nice: int, after: int
) -> None:
    given: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "getpriority", lambda *_: nice)
    monkeypatch.setattr(os, "setpriority", lambda *arguments: given.append(arguments))
    leave_loop_core(os.sched_getaffinity(0))
    assert given == [(os.PRIO_PROCESS, 0, after)]


def test_what_is_not_allowed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    monkeypatch.setattr(os, "setpriority", forbidden)
    leave_loop_core({0})


def test_thread_leaves_cores_where_it_has_others() -> None:
    found: list[object] = []

    def leave() -> None:
        mine = sorted(os.sched_getaffinity(0))
        found.append(leave_cores(mine) == set(mine))
        found.append(leave_cores(mine[:1]) == (set(mine[1:]) or set(mine)))
        found.append(os.sched_getaffinity(0) == (set(mine[1:]) or set(mine)))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert found == [True, True, True]
