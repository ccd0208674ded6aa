"""The findings as people read them, and as JSON."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sigd.daemon.doctor.finding import LEVELS, Finding, Level, worst

STYLES: Final[dict[Level, str]] = {"ok": "green", "skip": "dim", "warn": "yellow", "fail": "bold red"}
_INDENT = 7


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints.

    Attributes:
        verdict: the worst level of all findings.
        cpu: the CPU that the checks are about.
        findings: in the order of the checks.
    """

    verdict: Level
    cpu: int
    findings: tuple[Finding, ...]


def make_report(cpu: int, findings: Sequence[Finding]) -> Report:
    return Report(worst(findings), cpu, tuple(findings))


def as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report)).decode()


def show(report: Report, console: Console) -> None:
    """A table of all findings for each subject, then what to do about the bad ones, worst first."""
    for subject, findings in itertools.groupby(report.findings, key=lambda finding: finding.subject):
        title = f"{subject} (for CPU {report.cpu})" if subject == "host" else subject
        console.print(Text(title, style="bold"))
        console.print(Padding(_table(list(findings)), (0, 0, 1, 2), expand=False))
    bad = [finding for level in ("fail", "warn") for finding in report.findings if finding.level == level]
    if bad:
        console.print(Text("To fix", style="bold"))
    for finding in bad:
        _show_fixes(finding, console)
    counts = {level: sum(finding.level == level for finding in report.findings) for level in LEVELS}
    console.print(
        f"{counts['fail']} failed, {counts['warn']} warnings, {counts['ok']} good, {counts['skip']} not"
        " looked at"
    )


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.level, style=STYLES[finding.level]), finding.check, Text(finding.what))
    return table


def _show_fixes(finding: Finding, console: Console) -> None:
    subject = "" if finding.subject == "host" else f"{finding.subject} "
    heading = Text.assemble(("  " + finding.level, STYLES[finding.level]), f" {subject}{finding.check}")
    console.print(heading)
    for line in textwrap.wrap(finding.why, console.width - _INDENT):
        console.print(Text(" " * _INDENT + line))
    for command in finding.fix:
        # Never wrapped: a terminal wraps it on the screen, and what is copied is still one line.
        console.print(Text(" " * _INDENT + command, style="cyan"), soft_wrap=True)
    console.print()
