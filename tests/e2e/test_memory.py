"""Where memory runs out: at the start with a word, while it serves for new clients, and not for those who are
served."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper, numpy_helper

from sigd.wire.errors import Rejected
from sigd.wire.status import RejectCode, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

MIB = 1 << 20
STEP_BYTES = 48 * MIB
FEATURES = 4096


def large_model(models: ModelMaker) -> Path:
    """64 MiB of weights."""
    wide = numpy_helper.from_array(np.eye(FEATURES, dtype=np.float32), "wide")
    nodes = [helper.make_node("MatMul", ["features", "wide"], ["logits"])]
    return models.graph(nodes, ["N", FEATURES], ["N", FEATURES], [wide])


def address_space(daemon: Daemon) -> int:
    pages = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


@pytest.mark.slow
def test_too_little_memory_for_the_model_ends_the_start_with_3(models: ModelMaker, tmp_path: Path) -> None:
    """Wherever it runs out on the way: in the file, in its parser, in the runtime, in the arrays for a
    batch."""
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--check"]
    command += ["--model", str(large_model(models)), "--socket", str(tmp_path / "s")]
    refused = 0
    limit_bytes = 192 * MIB
    while True:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit_bytes, limit_bytes)),
        )
        if done.returncode == 0:
            break
        assert done.returncode == 3, done
        assert "there is not enough memory to open it" in done.stderr
        assert "Traceback" not in done.stderr
        refused += 1
        limit_bytes += STEP_BYTES
        assert limit_bytes < 4096 * MIB, done
    assert refused >= 4


def test_without_memory_for_another_client_those_that_are_served_are_served_on(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(64)), config={"lock_memory": False})
    row = np.ones(64, np.float32)
    with daemon.connect() as client, ExitStack() as crowd:
        assert client.request(row).status == Status.OK
        limit = (address_space(daemon) + 2 * MIB, resource.RLIM_INFINITY)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, limit)
        with pytest.raises(Rejected, match="no memory for another client") as caught:  # noqa: PT012  one of them is
            for _ in range(900):
                crowd.enter_context(daemon.connect())
        assert caught.value.code == RejectCode.TOO_MANY_CONNECTIONS
        client.send_many([row] * 200)
        assert (client.receive_many(200)["status"] == Status.OK).all()
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, unlimited)
        with daemon.connect() as after:
            assert after.request(row).status == Status.OK
