"""Hostile clients of shared memory against a `sigd serve`, beside clients that behave and must not notice.

    python -m tests.fuzz.fuzz_rings [--sessions N] [--idle STRATEGY]

A neighbour asks without a pause from before each attack's Hello until after its connection is closed; between
two attacks it asks as often without one, to tell what the machine does by itself. No answer may take 1 ms of
the daemon's
time: where one did, the same attack is played again, and where every repeat shows it, it is the daemon's
doing. Where there is a C++ compiler, clients built with its sanitizers talk over both transports all the
while, and hold a ledger of every sequence number. In the end every descriptor and every mapping of the daemon
is what it was, and it drains and exits with 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz.attacking import Attacks
from tests.fuzz.neighbour import Asked, Neighbour
from tests.fuzz.ring_attacks import ATTACKS

from sigd.wire.schema.cpp_header import include_dir, package_dir

STALL_US: Final = 1000.0
REPEATS_MAX: Final = 5
"""A machine that takes a millisecond by itself does not do so this often in a row, in the same place."""
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")


@dataclass
class Found:
    """What a run found.

    Attributes:
        beside: the neighbour's requests beside each attack, by its name.
        alone: its requests beside none.
        stalls: attacks beside which an answer took 1 ms of the daemon's time, each time they were played:
            "name, seed".
        repeated: how many were played again, for they did so once.
        codes: how attacks ended: (attack, Reject code or LIVED_ON).
        leaked_descriptors, leaked_mappings: of the daemon, in the end.
        exit_code: of the daemon.
    """

    beside: dict[str, list[Asked]] = field(default_factory=lambda: {name: [] for name in ATTACKS})
    alone: list[Asked] = field(default_factory=list)
    stalls: list[str] = field(default_factory=list)
    repeated: int = 0
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    leaked_descriptors: int = 0
    leaked_mappings: int = 0
    exit_code: int | None = None

    @property
    def harmless(self) -> bool:
        """No client stalled, nothing leaked, and the daemon ended in order."""
        return not self.stalls and (self.leaked_descriptors, self.leaked_mappings, self.exit_code) == (
            0,
            0,
            0,
        )


def run(
    sessions: int, idle: str, seed: int, *, model: Path | None = None, witness: Path | None = None
) -> Found:
    """Play that many attacks in turn, each from a fresh session.

    Args:
        witness: the soak example's executable; it talks over both transports meanwhile.

    Raises:
        AssertionError: the daemon did not give what it owes.
    """
    found = Found()
    with own_daemon(idle, model) as (process, path):
        # What spins keeps a processor; beside the daemon's, another is left for the attacks.
        spin = idle == "spin" and (os.cpu_count() or 1) > 2
        with Neighbour.open(path, process.pid, spin=spin) as neighbour, Attacks.open(path) as attacks:
            _wait_until(lambda: _held(process.pid)[1] == 0)
            before = _held(process.pid)
            with _witnesses(witness, path):
                for number in range(sessions):
                    name = list(ATTACKS)[number % len(ATTACKS)]
                    play(name, f"{seed}/{number}", attacks, neighbour, found)
            found.leaked_descriptors, found.leaked_mappings = _settled(process.pid, before)
        process.send_signal(signal.SIGTERM)
        found.exit_code = process.wait(30)
    return found


def play(name: str, seed: str, attacks: Attacks, neighbour: Neighbour, found: Found) -> None:
    """One attack, again while the machine itself stalls."""
    for repeat in range(1 + REPEATS_MAX):
        asked = _asked_beside(name, seed, attacks, neighbour, found)
        found.beside[name] += asked
        found.alone += [neighbour.ask() for _ in asked]
        if max(asked).own_us < STALL_US:
            return
        if repeat == 0:
            found.repeated += 1
    found.stalls.append(f"{name}, seed {seed}")


def _asked_beside(name: str, seed: str, attacks: Attacks, neighbour: Neighbour, found: Found) -> list[Asked]:
    attacks.start(name, seed)
    asked = [neighbour.ask()]
    while not attacks.over():
        asked.append(neighbour.ask())
    found.codes[name, attacks.code()] += 1
    # What the daemon does after the connection has closed.
    return asked + [neighbour.ask() for _ in range(3)]


@contextmanager
def own_daemon(idle: str, model: Path | None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A daemon of its own and the path of its socket."""
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


@contextmanager
def _witnesses(program: Path | None, path: str) -> Iterator[None]:
    """Clients over both transports, in new sessions now and then; each must account for every number that it
    sent."""
    with ExitStack() as stack:
        running = []
        for transport in ("stream", "shared_memory") if program else ():
            command = [str(program), path, "--transport", transport, "--idle", "block", "--session", "5000"]
            command += ["--in-flight", "2", "--requests", str(10**12)]
            pipe = subprocess.PIPE
            one = stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
            stack.callback(one.kill)
            running.append(one)
        yield
        for one in running:
            assert one.poll() is None, one.communicate()[1][-2000:]
            one.send_signal(signal.SIGINT)
            said, errors = one.communicate(timeout=60)
            assert one.returncode == 0, said + errors[-2000:]


def sanitized_soak(folder: Path) -> Path | None:
    """The soak example built with the sanitizers; None, and why is printed, where it cannot be."""
    program, source = folder / "soak", package_dir() / "examples" / "soak.cpp"
    if shutil.which("g++") is None:
        print("no g++: without clients that are built with sanitizers")
        return None
    command = ["g++", "-std=c++20", *SANITIZERS, "-I", str(include_dir()), "-o", str(program), str(source)]
    done = subprocess.run([*command, "-pthread"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"without clients that are built with sanitizers: {done.stderr.strip().splitlines()[-1]}")
        return None
    return program


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


def _line(name: str, asked: list[Asked]) -> str:
    own = sorted(one.own_us for one in asked) or [0.0]
    p50, p99, most = own[len(own) // 2], own[len(own) * 99 // 100], own[-1]
    whole = max((one.whole_us for one in asked), default=0.0)
    late = sum(time_us >= STALL_US for time_us in own)
    return f"{name:32} {len(asked):9,} {p50:8.1f} {p99:8.1f} {most:9.1f} {late:6} {whole:12.1f}"


def main() -> None:
    """Play, print, and exit with 1 where the neighbour stalled or something leaked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=2_000, help="how many attacks  [default: 2000]")
    parser.add_argument("--idle", choices=["spin", "backoff", "block"], default="backoff")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sigd-witness-") as folder:
        found = run(options.sessions, options.idle, options.seed, witness=sanitized_soak(Path(folder)))
    print(
        "the neighbour's requests; microseconds without what was spent waiting for a processor, and with it"
    )
    print(f"{'beside':32} {'requests':>9} {'p50':>8} {'p99':>8} {'max':>9} {'>1 ms':>6} {'max with it':>12}")
    for name, asked in (("no attack", found.alone), *found.beside.items()):
        print(_line(name, asked))
    print(
        f"{options.sessions} attacks, {found.repeated} played again for an answer that took 1 ms; the same"
        " each time:"
        f" {'; '.join(found.stalls) or 'none'}"
    )
    print(
        f"descriptors left {found.leaked_descriptors}, mappings left {found.leaked_mappings}; the daemon's"
        " exit code"
        f" {found.exit_code}"
    )
    sys.exit(0 if found.harmless else 1)


if __name__ == "__main__":
    main()
