"""Sessions in shared memory that come and go by the hundred thousand: `make soak-sessions`.

    python -m tests.soak.sessions [--sessions N] [--backend NAME]

Each asks a few requests and leaves in one of the ways in which clients leave; some are always open beside it.
Looked at
is what a process has when all of them are gone: descriptors, mapped regions and resident memory, of the
daemon and of the process in which the clients were. The first tenth of the sessions is for whatever is made
once.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.soak.soak import start_daemon

from sigd.daemon.admin.client import ask_status
from sigd.daemon.config.config import admin_path_of
from sigd.wire.client import Client, connect
from sigd.wire.status import Status

OPEN_BESIDE = 8
LOOKS = 10
SHORT_LOOKS = 20
PATIENCE_S = 60.0
GROWTH_KIB_MAX = 2048
"""Of resident memory, from the first look to the last: pages that an allocator keeps and what is made once,
not what each session leaves. In 100,000 sessions that is 21 bytes each."""


@dataclass(frozen=True)
class Held:
    """What a process has."""

    descriptors: int
    regions: int
    resident_kib: int


@dataclass(frozen=True)
class Look:
    """Both processes after so many sessions, when none is open."""

    sessions: int
    daemon: Held
    clients: Held


def held_by(pid: int) -> Held:
    """Asked of the kernel. The client that asked for the status may still be leaving: the fewest of a few
    looks count."""
    process = Path("/proc", str(pid))
    descriptors = []
    for _ in range(SHORT_LOOKS):
        descriptors.append(len(os.listdir(process / "fd")))
        time.sleep(0.01)
    pages = int((process / "statm").read_text().split()[1])
    return Held(
        min(descriptors),
        (process / "maps").read_text().count("memfd:"),
        pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    )


def _say_goodbye(client: Client) -> None:
    client.goodbye()


def _close(client: Client) -> None:
    client.close()


def _leave_answers(client: Client) -> None:
    client.send_many(np.zeros((3, client.welcome.features), np.float32))
    client.close()


def _vanish(client: Client) -> None:
    """As a process that was killed: no Goodbye, the socket just ends."""
    # Goodbye is all that the client itself offers.
    client._exchange.talk.closed("gone")
    client.close()


def _break_the_rules(client: Client) -> None:
    # No client of ours writes that.
    requests = client._exchange.carrier._requests  # type: ignore[attr-defined]
    requests.words[requests.head_word] = 2**63
    os.eventfd_write(client._exchange.carrier._request_bell, 1)  # type: ignore[attr-defined]
    client.close()


LEAVE: tuple[Callable[[Client], None], ...] = (
    _say_goodbye,
    _close,
    _leave_answers,
    _vanish,
    _break_the_rules,
)


def come_and_go(path: str, first: int, count: int) -> None:
    """So many sessions, the last of them closed."""
    still_open: deque[tuple[int, Client]] = deque()
    for number in range(first, first + count):
        client = connect(path, shared_memory=True, ring_slots=1 << (number % 7), timeout_s=PATIENCE_S)
        for _ in range(number % 3):
            answer = client.request(np.zeros(client.welcome.features, np.float32))
            assert answer.status == Status.OK, answer
        still_open.append((number, client))
        if len(still_open) > OPEN_BESIDE:
            leaving, client = still_open.popleft()
            LEAVE[leaving % len(LEAVE)](client)
    for leaving, client in still_open:
        LEAVE[leaving % len(LEAVE)](client)


def wait_until_alone(path: str) -> None:
    """Until the daemon has noticed that everybody is gone."""
    end_s = time.monotonic() + PATIENCE_S
    while (open_now := ask_status(admin_path_of(Path(path))).connections_open) > 0:
        assert time.monotonic() < end_s, f"{open_now} connections are still open"
        time.sleep(0.01)


def run(sessions: int, backend: str, say: Callable[[Look], None]) -> list[Look]:
    """What was seen after each tenth of the sessions."""
    with tempfile.TemporaryDirectory(prefix="sigd-soak-") as name:
        path, log = str(Path(name) / "sigd.sock"), Path(name) / "log"
        daemon = start_daemon(path, backend, log)
        try:
            looks = []
            for part in range(LOOKS):
                come_and_go(path, part * sessions // LOOKS, sessions // LOOKS)
                wait_until_alone(path)
                done = (part + 1) * (sessions // LOOKS)
                looks.append(Look(done, held_by(daemon.pid), held_by(os.getpid())))
                say(looks[-1])
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(30) == 0, log.read_text()
        finally:
            _end(daemon)
    return looks


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.kill()
        daemon.wait()


def complaints(looks: list[Look]) -> list[str]:
    """What a process has more of in the end than after the first tenth; a region is one too many at any
    time."""
    found = []
    for who in ("daemon", "clients"):
        first, last = getattr(looks[0], who), getattr(looks[-1], who)
        if last.descriptors > first.descriptors:
            found.append(f"{who}: {last.descriptors} descriptors, {first.descriptors} at first")
        if last.regions:
            found.append(f"{who}: {last.regions} regions are mapped, and no session is open")
        growth_kib = last.resident_kib - first.resident_kib
        if growth_kib > GROWTH_KIB_MAX:
            found.append(f"{who}: {growth_kib} KiB more resident, at most {GROWTH_KIB_MAX} expected")
    return found


def _print(look: Look) -> None:
    print(
        f"{look.sessions:>9,} sessions"
        + "".join(
            f"   {who} {held.descriptors:>3} descriptors, {held.regions} regions, {held.resident_kib:>7,} KiB"
            for who, held in (("daemon", look.daemon), ("clients", look.clients))
        ),
        flush=True,
    )


def main() -> None:
    """Run, print, and exit with 1 where something is left behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=100_000, help="[default: 100,000]")
    parser.add_argument("--backend", default="auto", help="of the daemon  [default: auto]")
    options = parser.parse_args()
    if options.sessions < LOOKS:
        parser.error(f"--sessions {options.sessions}, expected at least {LOOKS}")
    left = complaints(run(options.sessions, options.backend, _print))
    for line in left:
        print(line)
    print(f"nothing is left behind: {'NO' if left else 'yes'}")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
