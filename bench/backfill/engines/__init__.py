"""Where pieces run: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

from typing import Protocol

from sigd.bench.backfill.piece import Outcome
from sigd.bench.backfill.plan import Piece


class Engine(Protocol):
    """Runs `run_piece` somewhere. A piece may run more than once; its commit makes it count once.

    Attributes:
        in_flight_max: more pieces than that submitted and not returned serve no purpose.
    """

    in_flight_max: int

    def submit(self, piece: Piece) -> None:
        """Let it run."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """The outcomes since the last call; waits for the first one, at most `timeout_s`."""

    def close(self) -> None:
        """Stop what runs and leave no process behind."""
