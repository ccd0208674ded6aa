"""An engine beside a machine: asks without end, and keeps the account of what its daemon did to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from tests.systemd.machine import PATIENCE_S, Machine

from sigd.wire.errors import ConnectFailed, Rejected, SessionClosed

ENGINES = 3
_ON_THEIR_WAY_NS = 20_000_000
"""Answers that a killed daemon has given may still arrive so long; those of the next one take far longer."""


class Engine(threading.Thread):
    """Asks without end; connects again at once where its daemon goes away, and keeps the account.

    Attributes:
        answered_ns: when each answer came.
        generations: those that answered, one after the other.
        statuses: of all answers.
        refused: why a connection could not be had.
        lost: how often its session ended without its doing.
    """

    def __init__(self, machine: Machine) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.answered_ns: list[int] = []
        self.generations: list[int] = []
        self.statuses: set[int] = set()
        self.refused: list[str] = []
        self.lost = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            try:
                with self.machine.connect() as client:
                    row = np.zeros(client.welcome.features, np.float32)
                    while not self.done.is_set():
                        client.send_many([row] * 8)
                        while client.unanswered:
                            self._note(client.receive_many())
            except SessionClosed:
                self.lost += 1
            except (ConnectFailed, Rejected) as error:
                self.refused.append(str(error))

    def _note(self, answers: np.ndarray) -> None:
        self.statuses.update(answers["status"].tolist())
        for generation, _ in groupby(answers["model_generation"].tolist()):
            if self.generations[-1:] != [generation]:
                self.generations.append(generation)
        self.answered_ns += [time.monotonic_ns()] * len(answers)

    def wait_for_answers_after(self, moment_ns: int) -> int:
        """How long it took from then to the first answer, in ns."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not self.answered_ns or self.answered_ns[-1] < moment_ns:
            assert time.monotonic() < deadline_s, self.machine.journal()
            assert self.is_alive()
            time.sleep(0.001)
        return next(answered for answered in self.answered_ns if answered >= moment_ns) - moment_ns


def started_engines(machine: Machine) -> list[Engine]:
    """Some, under way."""
    engines = [Engine(machine) for _ in range(ENGINES)]
    begun_ns = time.monotonic_ns()
    for engine in engines:
        engine.start()
    for engine in engines:
        engine.wait_for_answers_after(begun_ns)
    return engines


def stop_engines(engines: Sequence[Engine]) -> None:
    """All have what they asked for, and are gone."""
    for engine in engines:
        engine.done.set()
    for engine in engines:
        engine.join(PATIENCE_S)
        assert not engine.is_alive()


def kill_and_wait_for_all(machine: Machine, engines: Sequence[Engine]) -> list[int]:
    """Kill the daemon; how long it took from then to each engine's first answer by the next one, in ns."""
    killed_ns = time.monotonic_ns()
    machine.kill_daemon()
    new_ns = time.monotonic_ns() + _ON_THEIR_WAY_NS
    return [engine.wait_for_answers_after(new_ns) + new_ns - killed_ns for engine in engines]
