"""The process that runs one shadow: rows from the ring through the second model, for as long as there is a
daemon.

    python -m sigd.daemon.shadow.process DESCRIPTOR

The descriptor is that of the memory, see `memory`; standard input is a socket to the daemon, which says what
is to be run, and is told whether it can be. The process has nothing that would have to be saved: it may be
killed at any time, the kernel does so when the daemon has ended, and the next one goes on counting where it
stopped.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sigd.daemon.config.choices import LogFormat
from sigd.daemon.runtime.child_process import ignore_signals_to_the_daemon, prefer_oom_kill
from sigd.daemon.runtime.cpu_affinity import leave_loop_core
from sigd.daemon.runtime.logs import start_logging
from sigd.daemon.runtime.process import die_with_parent, ignore_overflow, set_process_name
from sigd.daemon.shadow.comparison import Comparison, Outputs
from sigd.daemon.shadow.memory import map_board, map_ring
from sigd.daemon.shadow.messages import MESSAGE_BYTES_MAX, Opened, Refused, Task, decode_task, encode
from sigd.daemon.shadow.rows import RowReader, Rows
from sigd.daemon.shadow.statistics import Board
from sigd.models.errors import BackendFailed, BackendUnavailable, ModelError, ModelRefused
from sigd.models.gpu.options import GpuOptions
from sigd.models.registry import open_backend
from sigd.models.trusted_file import demand_trust

if TYPE_CHECKING:
    from sigd.models.backend import Backend

log = logging.getLogger(__name__)

LOOK_S: Final = 0.05
"""How often it looks at the ring."""
READY_LOOK_S: Final = 0.0001
_REASON_CHARACTERS_MAX: Final = 4000
_NAME: Final = b"sigd-shadow"


class Runner:
    """Runs rows through a backend and keeps the comparison.

    Args:
        sample: share of the rows, evenly among them.
    """

    def __init__(self, backend: Backend, comparison: Comparison, sample: float) -> None:
        self._backend = backend
        self._comparison = comparison
        self._sample = sample
        self._offered = 0
        self._failure_said = False

    def run(self, rows: Rows) -> None:
        """Compare what is in the sample. Raises BackendFailed where the device cannot go on."""
        features, outputs = rows.features, rows.outputs
        if self._sample < 1:
            chosen = in_sample(self._offered, len(features), self._sample)
            self._offered += len(features)
            features, outputs = features[chosen], outputs[chosen]
            self._comparison.left_out += len(rows.features) - len(features)
        most = self._backend.batch_rows_max
        for first in range(0, len(features), most):
            batch = slice(first, first + most)
            self._run_batch(features[batch], outputs[batch], rows.generation)

    def _run_batch(self, features: Outputs, served: Outputs, generation: int) -> None:
        backend, rows = self._backend, len(features)
        backend.inputs[:rows] = features
        try:
            if not backend.submit(rows):
                while not backend.ready():
                    time.sleep(READY_LOOK_S)
        except BackendFailed as error:
            self._comparison.failed += rows
            if error.fatal:
                raise
            if not self._failure_said:
                self._failure_said = True
                log.error("the shadow failed on a batch, which is said once: %s", error)
            return
        self._comparison.add(served, backend.outputs[:rows].copy(), generation)


def in_sample(first: int, count: int, sample: float) -> npt.NDArray[np.bool_]:
    """Which of `count` rows are in the sample, the first of them being row number `first` of all.

    >>> in_sample(0, 8, 0.25).tolist()
    [False, False, False, True, False, False, False, True]
    """
    edges = np.floor(np.arange(first, first + count + 1) * sample)
    chosen: npt.NDArray[np.bool_] = edges[1:] > edges[:-1]
    return chosen


def open_shadow(task: Task) -> Backend:
    """The backend, of the shape that it must have.

    Raises:
        ModelError: it cannot be run.
    """
    path = Path(os.fsdecode(task.path))
    backend = open_backend(
        path,
        task.backend,
        task.batch_rows_max,
        task.name,
        # One thread, this one: no other would step aside.
        1,
        GpuOptions(task.gpu, task.mapped_io, task.device_timeout_ms),
        task.reading,
    )
    spec = backend.spec
    if (spec.features, spec.outputs) != (task.features, task.outputs):
        backend.close()
        raise ModelRefused(
            f"{path}: {spec.features} features -> {spec.outputs} outputs, expected {task.features} ->"
            f" {task.outputs} as"
            f" {task.served} has, which it is the shadow of"
        )
    return backend


def shadow(memory: int, channel: socket.socket) -> int:
    """See the module; the exit code."""
    task = decode_task(channel.recv(MESSAGE_BYTES_MAX))
    start_logging(logging.INFO, LogFormat(task.log_format), os.environ)
    cores = frozenset(task.cores)
    leave_loop_core(cores, idle_priority=not task.in_hurry)
    if task.demand_trust:
        demand_trust()
    ignore_overflow()
    try:
        backend = open_shadow(task)
    except ModelError as error:
        reason = str(error)[:_REASON_CHARACTERS_MAX]
        channel.send(encode(Refused(reason, isinstance(error, BackendUnavailable))))
        return 0
    leave_loop_core(cores, idle_priority=True)
    board = Board(map_board(memory))
    reader = RowReader(*map_ring(memory), task.features, task.outputs)
    comparison = Comparison(board.read(), task.outputs, backend.spec.output_columns)
    runner = Runner(backend, comparison, task.sample)
    reader.skip_all()
    channel.send(encode(Opened(backend.spec.sha256.hex(), backend.name)))
    while True:
        for rows in reader.look():
            runner.run(rows)
            board.write(comparison.statistics())
        comparison.skipped += reader.take_skipped()
        board.write(comparison.statistics())
        time.sleep(LOOK_S)


def main(arguments: list[str]) -> int:
    """See the module."""
    ignore_signals_to_the_daemon()
    die_with_parent()
    set_process_name(_NAME)
    prefer_oom_kill()
    with socket.socket(fileno=sys.stdin.fileno()) as channel:
        try:
            return shadow(int(arguments[0]), channel)
        except BackendFailed as error:
            log.critical("the shadow's device cannot be used any more: %s", error)
        except ConnectionError:
            # The daemon has ended before anything was said.
            pass
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
