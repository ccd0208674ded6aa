"""Sessions and their batcher against spoilt streams, beside a client that behaves and must not notice."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tests.fuzz.conversation import Served, check, owed
from tests.fuzz.streams import Failed, chunks, demand

from sigd.daemon.config.limits import Limits
from sigd.daemon.serving.batcher import Batcher
from sigd.daemon.serving.counters import ClientCounters, ModelCounters
from sigd.daemon.serving.session import Session
from sigd.models.spec import ModelSpec
from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.messages import Hello

HELLO_BYTES: Final = 80
WELCOME_BYTES: Final = 128


class DoublingBackend:
    """A model whose outputs are twice its first features; finishes at once, or a round later."""

    name = "doubling"

    def __init__(self, served: Served, batch_rows_max: int, *, synchronous: bool) -> None:
        self.spec = ModelSpec(
            name=served.model_name,
            path=Path("doubling.onnx"),
            sha256=bytes(32),
            input_name="features",
            output_name="outputs",
            features=served.features,
            outputs=served.outputs,
            input_dims=(served.features,),
            output_dims=(served.outputs,),
            batch_rows=None,
            opset=None,
        )
        self.batch_rows_max = batch_rows_max
        self.synchronous = synchronous
        self.inputs: npt.NDArray[np.float32] = np.zeros((batch_rows_max, served.features), np.float32)
        self.outputs: npt.NDArray[np.float32] = np.zeros((batch_rows_max, served.outputs), np.float32)

    def open(self) -> None:
        """It is."""

    def submit(self, rows: int) -> bool:
        self.outputs[:rows] = 2 * self.inputs[:rows, : self.spec.outputs]
        return self.synchronous

    def ready(self) -> bool:
        return True

    def bare_call(self, rows: int) -> Callable[[], object]:
        return lambda: self.submit(rows)

    def close(self) -> None:
        """Nothing to give back."""


class Connection:
    """A session's transport as a list of bytes.

    Attributes:
        said: everything that the session sent.
        finished: it has closed the connection.
        turns: how often it asked for the loop's next round.
    """

    def __init__(self, rig: SessionRig) -> None:
        self._rig = rig
        self.said = bytearray()
        self.finished = False
        self.paused = False
        self.turns = 0
        self.session = Session(self, rig.find_model, rig.client_counters)

    def send(self, data: memoryview | bytes) -> None:
        demand(not self.finished, "sent after the end")
        self.said += data

    def send_descriptors(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        demand(False, "descriptors sent, and no rings were offered")

    def why_no_descriptors(self) -> str:
        return ""

    def finish(self) -> None:
        demand(not self.finished, "finished twice")
        self.finished = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def yield_turn(self) -> None:
        self.turns += 1

    def take_turns(self) -> None:
        """The loop's next round."""
        turns, self.turns = self.turns, 0
        for _ in range(turns):
            self.session.turn(self._rig.tick())

    def deliver(self, data: bytes) -> bytes:
        """Hand over what is taken in one read; what is left."""
        if self.paused or self.finished or not data:
            return data
        room = self.session.writable()
        demand(len(room) > 0, "reading, but no room")
        part = data[: len(room)]
        room[: len(part)] = part
        self.session.arrived(len(part), self._rig.tick())
        return data[len(part) :]


class SessionRig:
    """A batcher that serves a neighbour all the while, and one hostile connection after the other."""

    def __init__(self, draw: random.Random, features: int) -> None:
        self._draw = draw
        self._now_ns = 1_000
        self.limits = Limits(in_flight_max=draw.choice((2, 16, 256)))
        outputs = draw.randrange(1, min(features, 10) + 1)
        in_flight_max = self.limits.in_flight_rows((40 + 4 * features + 7) // 8 * 8)
        self.served = Served(features, outputs, "doubling", in_flight_max, doubling=True)
        batch_rows_max = draw.choice((1, 4, 64))
        self.counters = ModelCounters(batch_rows_max)
        self.client_counters = ClientCounters()
        backend = DoublingBackend(self.served, batch_rows_max, synchronous=draw.random() < 0.6)
        self._batcher = Batcher(
            backend,
            self.counters,
            self.tick,
            wake=lambda: None,
            on_fatal=lambda error: None,
            limits=self.limits,
        )
        self._requests = RequestOutbox(features)
        self._neighbour = Connection(self)
        self._neighbour_asked = bytearray(Hello(client_name="neighbour").encode())
        self._neighbour.deliver(bytes(self._neighbour_asked))
        self._asked = 0

    def tick(self) -> int:
        """The clock: it moves at each look."""
        self._now_ns += 1
        return self._now_ns

    def find_model(self, name: str) -> Batcher | None:
        return self._batcher if name in ("", self.served.model_name) else None

    def play(self, stream: bytes) -> int:
        """One hostile connection from its first byte to its end. Returns how many of its frames were
        answered."""
        draw = self._draw
        hostile = Connection(self)
        leaves = draw.random() < 0.2
        neighbour_asks = draw.choice((0, 0.2))
        complete = True
        for chunk in chunks(draw, stream):
            self._deliver(hostile, chunk)
            for _ in range(draw.randrange(3)):
                self._round(hostile)
            if draw.random() < neighbour_asks:
                self._neighbour_asks()
            if leaves and draw.random() < 0.3:
                complete = False
                break
        if complete and not hostile.finished:
            hostile.session.ended(self.tick())
        if complete or draw.random() < 0.5:
            self._rest(hostile)
        demand(hostile.finished or not complete, "the stream has ended, and the connection is still open")
        hostile.session.lost()
        self._neighbour_asks()
        self._rest(None)
        answered = check(bytes(hostile.said), owed(stream, self.served), self.served, complete=complete)
        self._check_neighbour()
        demand(self._batcher.idle, "the batcher still has work")
        demand(self._batcher.pending_rows == 0, f"{self._batcher.pending_rows} rows are pending for ever")
        return answered

    def _deliver(self, hostile: Connection, chunk: bytes) -> None:
        for _ in range(10_000):
            chunk = hostile.deliver(chunk)
            if not chunk or hostile.finished:
                return
            self._round(hostile)
        raise Failed("the session does not read on")

    def _round(self, hostile: Connection | None) -> bool:
        """One round of the loop; True where there is work left or was."""
        connections = [one for one in (hostile, self._neighbour) if one is not None]
        for one in connections:
            one.take_turns()
        # a batch that is done may let a session ask for the next round
        return self._batcher.poll() or any(one.turns for one in connections)

    def _rest(self, hostile: Connection | None) -> None:
        """Rounds until nothing is left to do."""
        for _ in range(10_000):
            if not self._round(hostile):
                return
        raise Failed("the loop does not come to rest")

    def _neighbour_asks(self) -> None:
        values = np.full(self.served.features, self._asked % 1000, np.float32)
        request = bytes(self._requests.encode_single(values, self._asked, self._asked, 0, 7))
        self._asked += 1
        self._neighbour_asked += request
        demand(not self._neighbour.deliver(request), "the neighbour is not read")

    def _check_neighbour(self) -> None:
        conversation = owed(bytes(self._neighbour_asked), self.served)
        said = bytes(self._neighbour.said)
        check(said, conversation, self.served, complete=True)
        # Judged once; what stays is the greeting, so that the next check starts with it.
        del self._neighbour_asked[HELLO_BYTES:]
        del self._neighbour.said[WELCOME_BYTES:]


@contextmanager
def as_in_a_daemon() -> Iterator[None]:
    """NumPy as a daemon sets it; and where a daemon catches an error of its own and logs it, the fuzz loop
    fails."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise (
                record.exc_info[1]
                if record.exc_info and record.exc_info[1]
                else Exception(record.getMessage())
            )

    collector = Collector(logging.ERROR)
    log = logging.getLogger("sigd")
    log.addHandler(collector)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    finally:
        log.removeHandler(collector)


def greeting(draw: random.Random, served: Served) -> bytes:
    """What a hostile client says first: a good Hello, or one with something odd in it."""
    if draw.random() < 0.7:
        return Hello(flags=draw.randrange(2)).encode()
    hello = bytearray(
        Hello(
            features=draw.choice((0, served.features, 5, 2**32 - 1)),
            outputs=draw.choice((0, served.outputs, 9)),
            transport=draw.choice((0, 0, 0, 1, 7)),
            flags=draw.choice((0, 1, 2, 0xFFFF)),
            ring_slots=draw.getrandbits(32),
            client_name=draw.choice(("", "x", "ü" * 12)),
            model_name=draw.choice(("", served.model_name, "other")),
        ).encode()
    )
    if draw.random() < 0.3:
        hello[draw.randrange(len(hello))] ^= 1 << draw.randrange(8)
    return bytes(hello)
