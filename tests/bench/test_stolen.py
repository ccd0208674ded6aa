"""Shares of time that were taken away, from the kernel's own counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigd.bench.stolen import Stolen, StolenWatch

SECOND_NS = 1_000_000_000


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "7" / "task" / "7").mkdir(parents=True)
    kernel_says(tmp_path, waited_ns=5, stolen=(100, 100))
    return tmp_path


def kernel_says(proc: Path, waited_ns: int, stolen: tuple[int, int]) -> None:
    (proc / "7" / "task" / "7" / "schedstat").write_text(f"123456 {waited_ns} 42\n")
    cpus = "".join(f"cpu{cpu} 1 2 3 4 5 6 7 {ticks} 0 0\n" for cpu, ticks in enumerate(stolen))
    (proc / "stat").write_text(f"cpu 1 2 3 4 5 6 7 {sum(stolen)} 0 0\n{cpus}intr 5\n")


def test_shares_are_of_the_time_since_the_warm_up(proc: Path) -> None:
    watch = StolenWatch(7, [1], proc)
    watch.warmed_up()
    kernel_says(proc, waited_ns=5 + SECOND_NS // 4, stolen=(200, 150))
    watch.warmed_up()
    found = watch.found(SECOND_NS, SECOND_NS // 10)
    assert found == Stolen(daemon_waited=0.25, hypervisor=0.5, client=0.1)
    assert found.largest == 0.5
    assert StolenWatch(7, [], proc).found(SECOND_NS, 0) == Stolen(), "it has not begun"


def test_what_cannot_be_read_was_not_taken(tmp_path: Path) -> None:
    watch = StolenWatch(None, [0], tmp_path)
    watch.warmed_up()
    assert watch.found(SECOND_NS, 0) == Stolen()


def test_of_lanes_the_one_that_waited_most_counts_and_the_loop_does_not(proc: Path) -> None:
    kernel_says(proc, waited_ns=5, stolen=(0, 0))
    for thread, name, waited_ns in ((7, "python", 0), (8, "sigd-lane", 100), (9, "sigd-lane", 100)):
        folder = proc / "7" / "task" / str(thread)
        folder.mkdir(exist_ok=True)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "schedstat").write_text(f"1 {waited_ns} 1\n")
    watch = StolenWatch(7, [], proc, lanes=True)
    watch.warmed_up()
    for thread, waited_ns in ((7, SECOND_NS), (8, 100 + SECOND_NS // 8), (9, 100 + SECOND_NS // 2)):
        (proc / "7" / "task" / str(thread) / "schedstat").write_text(f"1 {waited_ns} 1\n")
    assert watch.found(SECOND_NS, 0).daemon_waited == 0.5
