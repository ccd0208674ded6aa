"""`sigd doctor` itself: what it prints, what it ends with, what it measures."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from sigd.daemon.commands.doctor import doctor
from sigd.daemon.doctor import hiccups
from sigd.daemon.doctor.examination import examine_cards, examine_host
from sigd.daemon.doctor.finding import Finding, worst
from sigd.daemon.doctor.host import Host
from sigd.daemon.doctor.report import Report, as_json, make_report, show
from sigd.daemon.errors import UsageError
from sigd.daemon.runtime.hiccups import spin

MakeHost = Callable[..., Host]

GOOD = Finding("swap", "ok", "none")
BAD = Finding(
    "governor", "warn", '"powersave" [red]', "It runs slow. " * 20, ("echo " + "x" * 150, "# and more")
)
WORSE = Finding("clock source", "fail", "hpet", "A system call.", ("echo tsc",), "GPU 0")


def shown(findings: Sequence[Finding], width: int = 100, terminal: bool = False) -> str:
    text = io.StringIO()
    show(make_report(3, findings), Console(file=text, width=width, force_terminal=terminal, highlight=False))
    return text.getvalue()


def test_the_report_is_plain_within_its_width_and_its_commands_are_whole_lines() -> None:
    text = shown([GOOD, BAD, WORSE])
    assert "\x1b" not in text
    lines = text.splitlines()
    too_long = [line.strip() for line in lines if len(line.rstrip()) > 100]
    assert too_long == ["echo " + "x" * 150]
    # What a file says is text, not markup.
    assert any('"powersave" [red]' in line for line in lines)
    # The worst comes first in what is to be fixed, and good findings do not come at all.
    to_fix = text[text.index("To fix") :]
    assert to_fix.index("GPU 0 clock source") < to_fix.index("governor")
    assert "swap" not in to_fix
    assert lines[-1] == "1 failed, 1 warnings, 1 good, 0 not looked at"


def test_the_report_of_two_cards_and_a_host_fits_100_columns(
    library: Any, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    host = make_host()
    text = shown(examine_host(host) + examine_cards(host, lambda _: library, runtimes={}), terminal=True)
    assert [line for line in text.splitlines() if line.startswith("\x1b[1m")] == [
        "\x1b[1mhost (for CPU 3)\x1b[0m",
        "\x1b[1mGPU 0\x1b[0m",
        "\x1b[1mGPU 1\x1b[0m",
        "\x1b[1mTo fix\x1b[0m",
    ]


def test_json_holds_every_finding_and_is_read_back() -> None:
    report = make_report(3, [GOOD, BAD, WORSE])
    assert msgspec.json.decode(as_json(report), type=Report) == report
    assert report.verdict == "fail"


def test_the_worst_level_counts() -> None:
    assert worst([]) == "ok"
    assert worst([GOOD, Finding("x", "skip", "")]) == "skip"
    assert worst([GOOD, BAD]) == "warn"
    assert worst([BAD, WORSE]) == "fail"


@pytest.fixture
def machine(make_host: MakeHost, library: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on the prepared machine with its two cards, instead of on this one; returns the recorded
    NVML."""
    monkeypatch.delenv("CXX", raising=False)
    prepared = make_host()
    monkeypatch.setattr(
        "sigd.daemon.commands.doctor.Host", lambda cpu: Host(cpu, prepared.root, prepared.search_path)
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def test_warnings_alone_end_with_0(machine: Any) -> None:
    result = CliRunner().invoke(doctor, ["--expect", "2x RTX 3090"])
    assert result.exit_code == 0
    assert "0 failed, 2 warnings" in result.output
    assert "host (for CPU 6)" in result.output


def test_a_failure_ends_with_1(machine: Any) -> None:
    result = CliRunner().invoke(doctor, ["--expect", "3x RTX 3090", "--json", "--cpu", "3"])
    assert result.exit_code == 1
    report = msgspec.json.decode(result.stdout, type=Report)
    assert report.cpu == 3
    assert [finding.check for finding in report.findings if finding.level == "fail"] == ["cards expected"]


def test_lanes_have_a_table_each(machine: Any) -> None:
    result = CliRunner().invoke(doctor, ["--lane-cpu", "14", "--lane-cpu", "6"])
    assert "host (for CPU 15)" in result.output
    assert "lane on CPU 14" in result.output
    assert "lane on CPU 6" in result.output


@pytest.mark.parametrize(
    ("option", "value"), [("--cpu", "99"), ("--lane-cpu", "99"), ("--expect", "0x RTX 3090")]
)
def test_wrong_usage_is_refused(option: str, value: str, machine: Any) -> None:
    result = CliRunner().invoke(doctor, [option, value])
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert value in str(result.exception)


def test_an_engine_file_that_is_not_there_is_wrong_usage(machine: Any) -> None:
    assert CliRunner().invoke(doctor, ["--engine", "/nonexistent.engine"]).exit_code == 2


def test_on_this_machine_it_runs_and_changes_nothing_about_this_process() -> None:
    before = os.sched_getaffinity(0)
    result = CliRunner().invoke(doctor, ["--json", "--hiccups", "0.01", "--cpu", str(max(before))])
    assert result.exit_code in (0, 1)
    report = msgspec.json.decode(result.stdout, type=Report)
    assert {"clock source", "hiccups"} <= {finding.check for finding in report.findings}
    assert os.sched_getaffinity(0) == before


def clock(gaps_ns: Sequence[int]) -> Callable[[], int]:
    """A clock that goes on by each gap in turn, then by 1 us for ever."""
    times: Iterator[int] = itertools.accumulate(itertools.chain([0], gaps_ns, itertools.repeat(1000)))
    return lambda: next(times)


def test_hiccups_are_counted_by_what_they_exceed_the_budget_by() -> None:
    seen = spin(10_000_000, hiccups.BUDGET_NS + 1, clock([50_000, 150_000, 1_100_000, 100_000]))
    assert seen.worst_ns == 1_100_000
    assert seen.gaps == 2
    assert seen.sum_ns == 150_000 + 1_100_000
    assert seen.spun_ns == 10_000_000
    # Four gaps of 1.4 ms together, and 1 us each for the rest.
    assert seen.readings == 4 + 8600
    assert hiccups.late_share(seen) == pytest.approx(0.105)


@pytest.mark.parametrize(
    ("gaps_ns", "level"),
    [([], "ok"), ([100_000], "ok"), ([150_000], "warn"), ([199_000], "warn"), ([200_000], "fail")],
)
def test_a_machine_that_is_late_for_1_percent_of_all_moments_fails(
    gaps_ns: Sequence[int], level: str
) -> None:
    finding = hiccups.judge(1, spin(10_000_000, hiccups.BUDGET_NS + 1, clock(gaps_ns)))
    assert finding.level == level
    assert bool(finding.why) == (level != "ok")


def test_a_core_that_may_not_be_used_is_not_measured() -> None:
    assert hiccups.measure_on(4095, 0.001) is None
    assert hiccups.judge(4095, None).level == "skip"
