"""How long engines wait for the next answer when the daemon is killed, with systemd's socket and restart.

    sudo .venv/bin/python -m tests.systemd.kill_time
    sudo .venv/bin/python -m tests.systemd.kill_time --kills 50 --suite trixie

Boots the machine of `make test-systemd` with the units as they are installed and engines that ask without a
pause and connect again at once; each kill counts once for each engine, from SIGKILL to its first answer by
the next daemon. In it are the pause before a restart (RestartSec=), the start of Python, and opening and
warming up the model that ships with sigd. Exit code 1: an engine was refused; 3: this machine lacks
something.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from tests.systemd.engine import kill_and_wait_for_all, started_engines, stop_engines
from tests.systemd.machine import Machine
from tests.systemd.prepare import Missing, build_wheel, install_sigd, prepare


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="example: python -m tests.systemd.kill_time --kills 50"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--suite", default="bookworm")
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error("--kills must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="sigd-kill-time-") as folder:
        wheel, console = Path(folder, "wheel"), Path(folder, "console")
        wheel.mkdir()
        console.mkdir()
        try:
            root = prepare(arguments.suite)
            install_sigd(root, build_wheel(wheel))
        except Missing as error:
            print(f"kill_time: {error}", file=sys.stderr)
            return 3
        with Machine(root, console) as machine:
            return measure(machine, arguments.kills)


def measure(machine: Machine, kills: int) -> int:
    """Kill the daemon so often, and say what came of it; the exit code."""
    machine.start_sigd()
    engines = started_engines(machine)
    took_ms = []
    for _ in range(kills):
        took_ms += [took_ns / 1e6 for took_ns in kill_and_wait_for_all(machine, engines)]
    stop_engines(engines)
    refused = [reason for engine in engines for reason in engine.refused]
    print(
        f"from SIGKILL to an engine's next answer, ms: p50 {np.median(took_ms):.0f}, max {max(took_ms):.0f}"
        f" ({kills} kills, {len(engines)} engines, {len(refused)} connections refused)"
    )
    for reason in refused[:3]:
        print(f"refused: {reason}", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
