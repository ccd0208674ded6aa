"""Pieces in processes of this machine: pipes to each, nothing that listens.

A worker that dies is replaced and its piece runs again; a piece that has lost many workers is failed, since
it is likelier to be their death than its victim.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from sigd.bench.backfill.engines.messages import read_message, write_message
from sigd.bench.backfill.piece import Job, Outcome
from sigd.bench.backfill.plan import Piece

DEATHS_MAX: Final = 10
"""How many workers may die over a piece before it is failed."""
_STOP_TIMEOUT_S: Final = 10.0


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    tasks: BinaryIO
    outcomes: BinaryIO
    piece: Piece | None = None


class LocalEngine:
    """See `Engine`. Starts workers when there is work for them."""

    def __init__(self, job: Job, workers: int) -> None:
        self.in_flight_max = workers
        self._job = job
        self._workers_max = workers
        self._workers: list[_Worker] = []
        self._waiting: deque[Piece] = deque()
        self._deaths: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()

    def submit(self, piece: Piece) -> None:
        """Give the piece to an idle worker or a new one; otherwise it waits for one."""
        self._waiting.append(piece)
        self._give_out()

    def wait(self, timeout_s: float) -> list[Outcome]:
        """What has come in; waits for the first, at most `timeout_s`."""
        found = []
        for key, _ in self._selector.select(timeout_s):
            worker = cast(_Worker, key.data)
            outcome = read_message(worker.outcomes, Outcome)
            if outcome is None:
                outcome = self._died(worker)
            else:
                worker.piece = None
            if outcome is not None:
                found.append(outcome)
        self._give_out()
        return found

    def close(self) -> None:
        """End the workers at once: what they have not committed leaves nothing that counts."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            self._reap(worker)
        self._workers.clear()
        self._selector.close()

    def _give_out(self) -> None:
        while self._waiting:
            idle = next((worker for worker in self._workers if worker.piece is None), None)
            if idle is None:
                if len(self._workers) >= self._workers_max:
                    return
                idle = self._start()
            idle.piece = self._waiting.popleft()
            try:
                write_message(idle.tasks, idle.piece)
            except BrokenPipeError:
                return  # It has died; `wait` sees it and the piece runs again.

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sigd.bench.backfill.engines.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A group of its own: Ctrl-C is for the driver, which ends the workers.
            process_group=0,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        worker = _Worker(process, cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout))
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        try:
            write_message(worker.tasks, self._job)
        except BrokenPipeError:
            pass  # As in `_give_out`.
        return worker

    def _died(self, worker: _Worker) -> Outcome | None:
        """Let another worker run its piece again, or fail the piece."""
        self._selector.unregister(worker.outcomes)
        self._workers.remove(worker)
        code = self._reap(worker)
        piece = worker.piece
        if piece is None:
            return None
        deaths = self._deaths[piece.id] = self._deaths.get(piece.id, 0) + 1
        if deaths < DEATHS_MAX:
            self._waiting.append(piece)
            return None
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Outcome(
            piece=piece.id,
            error=f"{deaths} workers ended over it, the last {how}: is there enough memory for"
            f" {self._workers_max} workers?",
        )

    def _reap(self, worker: _Worker) -> int:
        try:
            code = worker.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        worker.outcomes.close()
        try:
            worker.tasks.close()
        except BrokenPipeError:
            pass  # What was not read yet is lost with it.
        return code
