"""A market's events through the features and a running daemon: each signal beside what the market then did.

Replay asks what the signals were worth; how fast they came is told too, counted from the send, but
`sigd bench --capture` is the measurement: it prepares all requests beforehand and counts from the times at
which they were due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigd.models.features import FeatureStream
from sigd.models.market.events import UNITS_PER_ONE, MarketEvent
from sigd.models.training.outcome import FLAT, UNKNOWN, UP, classes_of
from sigd.wire.client import Client
from sigd.wire.errors import ReceiveTimeout
from sigd.wire.status import Status

PROGRESS_EVENTS = 512
_ANSWER_TIMEOUT_S = 10.0
_ROUND_TRIP_SLACK_NS = 200_000
"""Nearer than this to the next send the wait is a spin: a sleep may take longer."""


@dataclass(frozen=True, slots=True)
class Signals:
    """One row for each sample of the features, in order of time.

    Attributes:
        receive_ns: int64, when the event was received, on the capture's clock.
        mid: float64, in the quote currency.
        answers: structured, the fields of SignalResponse (see sigd.wire.layout.frame_dtype).
        latency_ns: int64, from the send of the request to its answer in the client's hands.
        events: how many events there were, samples or not.
        elapsed_s: how long the replay took.
    """

    receive_ns: npt.NDArray[np.int64]
    mid: npt.NDArray[np.float64]
    answers: npt.NDArray[np.void]
    latency_ns: npt.NDArray[np.int64]
    events: int
    elapsed_s: float

    @property
    def by_status(self) -> dict[str, int]:
        """Answers by status, all statuses named."""
        counts = np.bincount(self.answers["status"], minlength=len(Status))
        return {status.name: int(counts[status]) for status in Status}

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The class with the largest output, int64; -1 where the status is not OK."""
        chosen = np.asarray(np.argmax(self.answers["outputs"], axis=1), np.int64)
        chosen[self.answers["status"] != Status.OK] = UNKNOWN
        return chosen

    def moves_bps(self, horizon_ns: int) -> npt.NDArray[np.float64]:
        """How far the mid had moved `horizon_ns` after each sample, in basis points; NaN past the last
        event."""
        due_ns = self.receive_ns + horizon_ns
        at = np.searchsorted(self.receive_ns, due_ns, side="right") - 1
        moves = (self.mid[at] / self.mid - 1) * 1e4
        moves[due_ns > self.receive_ns[-1]] = np.nan
        return moves


class Replayer:
    """Feeds one client. `speed` is in capture seconds a second; None goes as fast as the answers come."""

    def __init__(self, client: Client, speed: float | None) -> None:
        self._client = client
        self._speed = speed
        self._times: list[int] = []
        self._mids: list[float] = []
        self._answers: list[npt.NDArray[np.void]] = []
        self._received: list[tuple[int, int]] = []  # how many answers came together, and when

    def run(
        self,
        events: Iterable[MarketEvent],
        on_progress: Callable[[int, int], None],
        stream: FeatureStream | None = None,
    ) -> Signals:
        """Replay all events; `on_progress` gets (events, samples) now and then. `stream`: where they go; None
        makes one.

        Raises:
            SessionError: the daemon ended the session or did not answer.
            ValueError: not one event gave a sample.
        """
        stream = stream or FeatureStream()
        in_flight_max = self._client.welcome.in_flight_max
        started_ns = time.monotonic_ns()
        first_ns = -1
        count = 0
        for count, event in enumerate(events, 1):
            if first_ns < 0:
                first_ns = event.receive_ns
            if self._speed is not None:
                self._wait_until(started_ns + int((event.receive_ns - first_ns) / self._speed))
            if stream.on_event(event):
                while self._client.unanswered >= in_flight_max:
                    self._take(_ANSWER_TIMEOUT_S)
                self._client.send(stream.features)
                self._times.append(event.receive_ns)
                self._mids.append(stream.mid_e8 / UNITS_PER_ONE)
                if self._speed is None and self._client.unanswered * 2 > in_flight_max:
                    self._take(0)
            if count % PROGRESS_EVENTS == 0:
                on_progress(count, len(self._times))
        while self._client.unanswered:
            self._take(_ANSWER_TIMEOUT_S)
        on_progress(count, len(self._times))
        if not self._times:
            raise ValueError(
                "not one event gave features: is the market's book complete, and longer than 10 s?"
            )
        return self._signals(count, time.monotonic_ns() - started_ns)

    def _wait_until(self, due_ns: int) -> None:
        """Read answers until it is time for the next event."""
        while (left_ns := due_ns - time.monotonic_ns()) > 0:
            if self._client.unanswered:
                self._take(0)
            elif left_ns > _ROUND_TRIP_SLACK_NS:
                time.sleep((left_ns - _ROUND_TRIP_SLACK_NS) / 1e9)

    def _take(self, timeout_s: float) -> None:
        try:
            answers = self._client.receive_many(timeout_s=timeout_s)
        except ReceiveTimeout:
            if timeout_s:
                raise
            return
        self._received.append((len(answers), time.monotonic_ns()))
        self._answers.append(answers)

    def _signals(self, events: int, elapsed_ns: int) -> Signals:
        answers = np.concatenate(self._answers)
        received_ns = np.repeat(
            np.array([at for _, at in self._received], np.int64), [count for count, _ in self._received]
        )
        return Signals(
            receive_ns=np.array(self._times, np.int64),
            mid=np.array(self._mids),
            answers=answers,
            latency_ns=received_ns - answers["client_time_ns"].astype(np.int64),
            events=events,
            elapsed_s=elapsed_ns / 1e9,
        )


@dataclass(frozen=True, slots=True)
class Worth:
    """What signals of three classes were worth, over the samples with an OK answer and a known outcome.

    Attributes:
        confusion: int64, shape (3, 3): rows are outcomes, columns signals; down, flat, up.
        mean_move_bps: float64, shape (3,): mean move of the mid after each signal; NaN where there was none.
    """

    confusion: npt.NDArray[np.int64]
    mean_move_bps: npt.NDArray[np.float64]

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the outcomes that occurred of the share of them that was signalled; 1/3 is a guess."""
        totals = self.confusion.sum(axis=1)
        seen = totals > 0
        return float((np.diag(self.confusion)[seen] / totals[seen]).mean())

    @property
    def accuracy(self) -> float:
        """Share of the signals that came true."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def always_flat_accuracy(self) -> float:
        """What always saying flat would have reached."""
        return float(self.confusion[FLAT].sum() / self.confusion.sum())


def worth_of(signals: Signals, horizon_ns: int, flat_bps: float) -> Worth | None:
    """Signals against outcomes; None where no sample has both."""
    moves = signals.moves_bps(horizon_ns)
    outcomes = classes_of(moves, flat_bps)
    said = signals.classes
    known = (outcomes != UNKNOWN) & (said != UNKNOWN)
    if not known.any():
        return None
    confusion = np.zeros((UP + 1, UP + 1), np.int64)
    np.add.at(confusion, (outcomes[known], said[known]), 1)
    means = [
        float(moves[known & (said == kind)].mean()) if (said[known] == kind).any() else np.nan
        for kind in range(3)
    ]
    return Worth(confusion, np.array(means))
