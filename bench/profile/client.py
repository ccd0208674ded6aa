"""A session over shared memory and its client in one thread: the daemon's own objects, wired as `Service`
wires them."""

from __future__ import annotations

import asyncio
import mmap
from time import monotonic_ns
from typing import TYPE_CHECKING

import numpy as np

from sigd.daemon.serving.batcher import Batcher
from sigd.daemon.serving.counters import ClientCounters, ModelCounters
from sigd.daemon.serving.session import Session
from sigd.daemon.transport.rings import RingHost
from sigd.models.backend import Backend
from sigd.models.errors import BackendFailed
from sigd.models.rows import drawn_rows
from sigd.wire import fields
from sigd.wire.layout import frame_dtype, header_word, response_frame_bytes
from sigd.wire.messages import Hello
from sigd.wire.ring import Region
from sigd.wire.status import Transport

if TYPE_CHECKING:
    from sigd.daemon.serving.ports import SessionTaps
    from sigd.daemon.transport.lanes import Lanes
    from sigd.models.spec import ModelSpec


class _Greeter:
    """The peer of a session whose socket is not used: it keeps the region that comes with the Welcome."""

    region: Region

    def send(self, data: memoryview | bytes) -> None:
        raise AssertionError(f"{len(data)} bytes for the socket, expected none: answers travel in the ring")

    def send_descriptors(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        self.region = Region.attach(memoryview(mmap.mmap(descriptors[0], 0)))

    def why_no_descriptors(self) -> str:
        return ""

    def finish(self) -> None:
        """There is nothing to close."""

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""

    def yield_turn(self) -> None:
        raise AssertionError("nothing was said over the socket")


class ServedClient:
    """One client of one daemon, for use until `close()`.

    Attributes:
        requests, responses: the client's ends of the rings.
        rows_max: the most requests at a time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backend: Backend,
        counters: ModelCounters | None = None,
        taps: SessionTaps | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        """`loop` does not run: `poll` is called by hand."""
        self.batcher = Batcher(
            backend,
            counters or ModelCounters(backend.batch_rows_max),
            monotonic_ns,
            wake=lambda: None,
            on_fatal=_fail,
            taps=taps,
        )
        self.host = RingHost(loop, monotonic_ns, lambda: None, ClientCounters(), lanes)
        peer = _Greeter()
        self.session = Session(peer, lambda _: self.batcher, ClientCounters(), self.host.open)
        hello = Hello(transport=Transport.SHARED_MEMORY, client_name="stages").encode()
        self.session.writable()[: len(hello)] = hello
        self.session.arrived(len(hello), monotonic_ns())
        self.requests, self.responses = peer.region.requests_out(), peer.region.responses_in()
        self.rows_max = min(backend.batch_rows_max, self.session.in_flight_max)
        self.frames = request_frames(backend.spec, self.rows_max)
        self._answers = memoryview(bytearray(self.rows_max * response_frame_bytes(backend.spec.outputs)))

    def poll(self) -> None:
        """What the daemon does in a tick."""
        self.host.poll()
        self.batcher.poll()

    def publish(self, rows: int) -> None:
        """Ask."""
        self.requests.publish(self.frames[: rows * self.requests.frame_bytes])

    def take(self, rows: int) -> None:
        """Take the answers, all of which must be there."""
        taken = self.responses.take(self._answers, self.rows_max)
        assert taken == rows, f"{taken} answers, expected {rows}"

    def close(self) -> None:
        """End the session."""
        self.session.close()
        self.session.lost()
        self.host.close()


def request_frames(spec: ModelSpec, rows: int) -> memoryview:
    """Whole requests of random features, side by side."""
    frames = np.zeros(rows, frame_dtype(fields.SIGNAL_REQUEST, spec.features))
    raw = frames.view(np.uint64).reshape(rows, -1)
    raw[:, 0] = header_word(fields.SIGNAL_REQUEST.template_id, frames.itemsize)
    frames["sequence"] = np.arange(rows)
    frames["features"] = drawn_rows(spec.input_columns, spec.features, rows, seed=0)
    return frames.data.cast("B")


def _fail(failure: BackendFailed) -> None:
    raise failure
