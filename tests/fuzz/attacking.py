"""Attacks, played in a process of their own: what they cost in time and in Python's lock is not their
neighbour's."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Final, Never

from tests.fuzz.ring_attacks import ATTACKS, Attacker

_START: Final = multiprocessing.get_context("fork")
LIVED_ON: Final = -1
"""In place of a Reject code: no code is owed, and the attacker closed."""


class Attacks:
    """Plays attacks one at a time against one daemon; use `open()`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    @classmethod
    @contextmanager
    def open(cls, path: str) -> Iterator[Attacks]:
        """Start the process, and wait until it has connected once."""
        ours, theirs = _START.Pipe()
        process = _START.Process(target=_play, args=(path, theirs), daemon=True)
        process.start()
        try:
            assert ours.recv() is None
            yield cls(ours)
        finally:
            process.kill()
            process.join()

    def start(self, name: str, seed: str) -> None:
        """Connect, do it, wait for the end that is owed, close. The same again with the same seed."""
        self._pipe.send((name, seed))

    def over(self) -> bool:
        """Whether the last one that was started has closed its connection."""
        return self._pipe.poll()

    def code(self) -> int:
        """The Reject code that it ended with, or LIVED_ON; AssertionError where something else was owed."""
        what = self._pipe.recv()
        assert isinstance(what, int), what
        return what


def _play(path: str, pipe: Connection) -> Never:
    with Attacker(path):
        pass
    pipe.send(None)
    while True:
        name, seed = pipe.recv()
        try:
            pipe.send(_attack(path, name, random.Random(seed)))
        except (AssertionError, OSError) as error:
            pipe.send(f"{name}, seed {seed}: {error!r}")


def _attack(path: str, name: str, draw: random.Random) -> int:
    with Attacker(path, draw.choice((2, 4, 16, 256))) as peer:
        owed = ATTACKS[name](peer, draw)
        if owed is None:
            return LIVED_ON
        code = peer.until_closed()
        assert code == owed, f"Reject code {code}, {owed} is owed"
        return code
