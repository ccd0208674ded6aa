"""What a check found: how bad it is, why it matters for the tail, and the commands that fix it.

Commands are for Ubuntu 24.04. A line of them that begins with # is advice for what no command can do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

Level = Literal["ok", "warn", "fail", "skip"]

LEVELS: Final[tuple[Level, ...]] = ("fail", "warn", "skip", "ok")
"""Worst first. `skip` is what could not be looked at; it says why."""

HOST: Final = "host"


class Finding(msgspec.Struct, frozen=True):
    """One check's verdict on one subject.

    Attributes:
        check: the check's name, the same in every run, for example "clock source".
        level: "fail" makes sigd fail or miss its budget for certain, "warn" costs tail latency now and then.
        what: what was read, in one line.
        why: what that does to the slowest requests; empty where the level is "ok" or "skip".
        fix: shell commands in the order to run them.
        subject: "host", or a card as "GPU 0".
    """

    check: str
    level: Level
    what: str
    why: str = ""
    fix: tuple[str, ...] = ()
    subject: str = HOST


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among the findings; "ok" where there are none."""
    levels = {finding.level for finding in findings}
    return next((level for level in LEVELS if level in levels), "ok")


def boot_parameters(topic: str, *parameters: str) -> tuple[str, ...]:
    """The commands that add kernel parameters for good. Each topic has a file of its own, so that fixing
    twice changes nothing."""
    line = f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(parameters)}"'
    return (
        f"echo '{line}' | sudo tee /etc/default/grub.d/60-sigd-{topic}.cfg",
        "sudo update-grub && sudo reboot",
    )


def sysctl(topic: str, key: str, value: str) -> tuple[str, ...]:
    """The command that sets a kernel variable, now and at every boot."""
    return (f"echo '{key} = {value}' | sudo tee /etc/sysctl.d/60-sigd-{topic}.conf && sudo sysctl --system",)
