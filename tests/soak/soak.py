"""Both transports at once for millions of requests, over a daemon that is killed and started again:
`make soak`.

    python -m tests.soak.soak [--requests N] [--kill-every SECONDS] [--backend NAME]

Two of the C++ client's soak programs, one over the Unix socket and one over shared memory, send half of the
requests each; the daemon is killed with SIGKILL and drained with SIGTERM in turn. Every sequence number must
be answered once and in order, or be counted as lost with the session that it was lost in.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sigd.wire.schema.cpp_header import package_dir

IN_FLIGHT = 64


def build(folder: Path) -> Path:
    """The soak program."""
    program = folder / "soak"
    source = package_dir() / "examples" / "soak.cpp"
    command = [
        os.environ.get("CXX", "c++"),
        "-O2",
        "-std=c++20",
        f"-I{package_dir() / 'include'}",
        str(source),
    ]
    subprocess.run([*command, "-o", str(program), "-pthread"], check=True)
    return program


def start_daemon(path: str, backend: str, log: Path) -> subprocess.Popen[bytes]:
    """A daemon that is ready."""
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--socket", path, "--backend", backend]
    with log.open("ab") as errors:
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
    assert daemon.stdout is not None
    assert daemon.stdout.readline().startswith(b"sigd ready"), log.read_text()
    daemon.stdout.close()
    return daemon


def start_clients(program: Path, path: str, requests: int) -> dict[str, subprocess.Popen[str]]:
    """One for each transport."""
    return {
        transport: subprocess.Popen(
            [
                *(str(program), path, "--transport", transport, "--requests", str(requests // 2)),
                *("--in-flight", str(IN_FLIGHT), "--session", "1000000", "--idle", "backoff"),
                *("--patience", "60"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for transport in ("stream", "shared_memory")
    }


def run(
    requests: int, kill_every_s: float, backend: str, *, ends_max: int | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    """How often the daemon was ended, at most `ends_max` times, and what each client has to say."""
    with tempfile.TemporaryDirectory(prefix="sigd-soak-") as name:
        folder = Path(name)
        path, log = str(folder / "sigd.sock"), folder / "log"
        program = build(folder)
        daemon = start_daemon(path, backend, log)
        clients = start_clients(program, path, requests)
        ends, begun_s = 0, time.monotonic()
        try:
            while any(client.poll() is None for client in clients.values()):
                time.sleep(0.2)
                if ends != ends_max and time.monotonic() - begun_s > kill_every_s:
                    daemon.send_signal(signal.SIGTERM if ends % 2 else signal.SIGKILL)
                    daemon.wait(30)
                    ends += 1
                    daemon = start_daemon(path, backend, log)
                    begun_s = time.monotonic()
        finally:
            daemon.kill()
            daemon.wait()
        return ends, {transport: _said(client) for transport, client in clients.items()}


def _said(client: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = client.communicate(timeout=60)
    said: dict[str, Any] = json.loads(out)
    return said | {"exit_code": client.returncode}


def main() -> None:
    """Run, print, and exit with 1 where a number is not accounted for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000_000, help="over both  [default: 100,000,000]")
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds  [default: 10]")
    parser.add_argument("--backend", default="auto", help="of the daemon  [default: auto]")
    options = parser.parse_args()
    ends, said = run(options.requests, options.kill_every, options.backend)
    good = True
    for transport, tally in said.items():
        accounted = tally["answered"] + tally["lost"]
        good &= tally["exit_code"] == 0 and tally["sent"] == accounted == options.requests // 2
        print(f"{transport}: {json.dumps(tally)}")
    print(f"the daemon was ended {ends} times; every number accounted for: {'yes' if good else 'NO'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
