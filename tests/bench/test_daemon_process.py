"""A daemon that the bench starts ends when the bench does, however it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

START = """
import sys, time
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
daemon = OwnDaemon(ServeOptions(model=sys.argv[1], idle="block"))
print(daemon.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_the_daemon_dies_with_a_bench_that_is_killed(models: ModelMaker) -> None:
    model = models.mlp(4, (8,), 2)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", START, str(model)], stdout=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stdout is not None
        pid = int(bench.stdout.readline())
        os.kill(pid, 0)
        bench.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 30
    while (
        Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
    ):
        assert time.monotonic() < deadline_s, "the daemon outlived its bench"
        time.sleep(0.02)
