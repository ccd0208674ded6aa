"""Hostile clients of shared memory against a `sigd serve`, beside a client that behaves and must not notice.

    python -m tests.fuzz.fuzz_rings [--sessions N] [--idle STRATEGY]

After each attack the neighbour's next request is timed, so a daemon that stalled shows; half of its requests follow no
attack, for comparison with what the machine itself does. In the end every descriptor and every mapping of the daemon
is what it was, and it drains and exits with 0.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.ring_attacks import ATTACKS, Attacker

from sigd.wire.client import Client, connect

STALL_US = 1000.0


@dataclass
class Found:
    """What a run found.

    Attributes:
        after_us: how long the neighbour's request took that followed an attack, by attack.
        alone_us: the same where it followed none.
        codes: how attacks ended: (attack, Reject code; 0 none, -1 the session lived on).
        leaked_descriptors, leaked_mappings: of the daemon, in the end.
        exit_code: of the daemon.
    """

    after_us: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ATTACKS})
    alone_us: list[float] = field(default_factory=list)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    leaked_descriptors: int = 0
    leaked_mappings: int = 0
    exit_code: int | None = None


def run(sessions: int, idle: str, seed: int, model: Path | None = None) -> Found:
    """Play that many attacks in turn, each from a fresh session.

    Raises:
        AssertionError: the daemon did not give what it owes.
    """
    found, draw = Found(), random.Random(seed)
    with _daemon(idle, model) as (process, path):
        with connect(path, client_name="neighbour", spin=idle == "spin", timeout_s=30) as neighbour:
            for _ in range(200):
                _ask(neighbour)
            with Attacker(path):
                pass  # what is made for the first rings stays
            _wait_until(lambda: _held(process.pid)[1] == 0)
            before = _held(process.pid)
            for number in range(sessions):
                name = list(ATTACKS)[number % len(ATTACKS)]
                found.alone_us.append(_ask(neighbour))
                found.codes[name, _attack(path, name, draw, neighbour, found)] += 1
            found.leaked_descriptors, found.leaked_mappings = _settled(process.pid, before)
        process.send_signal(signal.SIGTERM)
        found.exit_code = process.wait(30)
    return found


def _attack(path: str, name: str, draw: random.Random, neighbour: Client, found: Found) -> int:
    with Attacker(path, draw.choice((2, 4, 16, 256))) as peer:
        owed = ATTACKS[name](peer, draw)
        found.after_us[name].append(_ask(neighbour))
        if owed is None:
            return -1
        code = peer.until_closed()
        assert code == owed, f"{name}: Reject code {code}, {owed} is owed"
        return code


def _ask(neighbour: Client) -> float:
    start_ns = time.monotonic_ns()
    response = neighbour.request([0.5] * neighbour.welcome.features)
    assert response.ok, response
    return (time.monotonic_ns() - start_ns) / 1000


@contextmanager
def _daemon(idle: str, model: Path | None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with tempfile.TemporaryDirectory(prefix="sigd-rings-") as folder:
        path = str(Path(folder) / "sigd.sock")
        command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--socket", path, "--idle", idle]
        command += ["--model", str(model)] if model else []
        log = Path(folder) / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("sigd ready"), log.read_text()
            yield process, path
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _held(pid: int) -> tuple[int, int]:
    """Descriptors and mappings of regions."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), maps.count("sigd-rings")


def _settled(pid: int, before: tuple[int, int]) -> tuple[int, int]:
    """How many more it holds than before, once the last connections had time to close."""
    _wait_until(lambda: _held(pid) == before)
    now = _held(pid)
    return now[0] - before[0], now[1] - before[1]


def _wait_until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not true() and time.monotonic() < end_s:
        time.sleep(0.05)


def main() -> None:
    """Play, print, and exit with 1 where something leaked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=2_000, help="how many attacks  [default: 2000]")
    parser.add_argument("--idle", choices=["spin", "backoff", "block"], default="backoff")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = run(options.sessions, options.idle, options.seed)
    print(f"{'the neighbour, us':32} {'p50':>8} {'p99':>8} {'max':>9}  over {STALL_US:g} us")
    for name, times in (("after no attack", found.alone_us), *found.after_us.items()):
        ordered = sorted(times) or [0.0]
        late = sum(time_us > STALL_US for time_us in times)
        p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
        print(f"{name:32} {p50:8.1f} {p99:8.1f} {ordered[-1]:9.1f}  {late} of {len(times)}")
    print(
        f"{options.sessions} sessions; descriptors left {found.leaked_descriptors}, mappings left"
        f" {found.leaked_mappings}; the daemon's exit code {found.exit_code}"
    )
    sys.exit(0 if (found.leaked_descriptors, found.leaked_mappings, found.exit_code) == (0, 0, 0) else 1)


if __name__ == "__main__":
    main()
