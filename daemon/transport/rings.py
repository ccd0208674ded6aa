"""The shared-memory transport: a thin shell that moves frames between the rings of a region and a session.

While a session's rings are awake they are polled in every tick of the loop. Asleep they cost nothing:
their client rings a doorbell, which the loop waits for as for a socket. Rings go to sleep when the loop does,
and, where many are open, when nothing has come for a while. See wire.ring for how none of this loses a
wake-up.

A client may write whatever it likes into its region, at any time. Every counter of its is held against ours,
a request is copied before it is looked at, the region cannot be resized, and no system call on what it shares
can wait (see daemon.transport.doorbell). What breaks the rules ends its own session.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sigd.daemon.errors import MissingDependency
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.fast_path_ring import (
    EMPTY,
    HANDED_OVER,
    Found,
    PollRound,
    RingPoll,
    make_poll_round,
    make_ring_poll,
)
from sigd.daemon.transport.doorbell import BellRinger, silence
from sigd.wire.errors import FrameError
from sigd.wire.region import RegionLayout, region_layout
from sigd.wire.ring import Region, make_fence, why_not_here
from sigd.wire.status import RejectCode

if TYPE_CHECKING:
    from sigd.daemon.serving.counters import ClientCounters
    from sigd.daemon.serving.session import Session
    from sigd.daemon.transport.lanes import LaneMember, Lanes

BEAT_S: Final = 0.05
"""How often a region's heartbeat moves; the contract says at least every 0.1 s."""
BEATEN_AT_ONCE: Final = 20
"""A thousand regions are a thousand cache misses, in which no request is answered: past so many, heartbeats
are staggered."""
AWAKE_MAX: Final = 16
"""Of more rings than that not all are polled in every tick: those that were quiet for a beat sleep."""
POLLS: Final = 8
"""Polls of rings that are the only ones awake, in one round of the loop."""
ANSWERED_MAX: Final = 4
"""Requests from them that are answered at once in one round."""
ONLY_CLIENT_POLLS: Final = 128
ONLY_CLIENT_ANSWERED_MAX: Final = 32
"""The same where no other client is connected that the round could be kept from: a quarter of a
millisecond."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SessionRings:
    """The rings of one session. Implements daemon.serving.ports.Rings.

    Attributes:
        layout, descriptors: see daemon.serving.ports.Rings.
        poll, poll_round: see daemon.serving.fast_path_ring.
        awake: polled in every tick.
        stalled: its client does not take its answers, so nothing more is taken from it.
    """

    __slots__ = (
        "_bells",
        "_clock",
        "_host",
        "_member",
        "_memory",
        "_region",
        "_requests",
        "_responses",
        "_session",
        "_taken_at_beat",
        "awake",
        "layout",
        "poll",
        "poll_round",
        "stalled",
    )

    def __init__(self, host: RingHost, session: Session, layout: RegionLayout) -> None:
        """Raises OSError where there is no memory or no descriptor for them."""
        self.layout = layout
        self.awake = False
        self.stalled = False
        self._member: LaneMember | None = None
        self._poll_by(_nothing)
        self._host = host
        self._session = session
        self._clock = host.clock
        self._taken_at_beat = -1
        self._memory = -1
        self._bells: tuple[int, ...] = ()
        try:
            self._bells = (_eventfd(),)
            self._bells += (_eventfd(),)
            self._memory = os.memfd_create("sigd-rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._memory, layout.region_bytes)
            fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _SEALS)
            view = memoryview(
                mmap.mmap(self._memory, layout.region_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
            )
        except OSError:
            self._close_descriptors()
            raise
        self._region = Region.create(view, layout, host.fence)
        self._requests = self._region.requests_in()
        self._responses = self._region.responses_out()
        self.beat(self._clock())

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Region, request doorbell, response doorbell; until `start()`."""
        return (self._memory, *self._bells)

    # -- the session's side

    def start(self) -> None:
        """The client has been told: take what it publishes."""
        os.close(self._memory)
        self._memory = -1
        self._host.add(self, self._bells[0], self._rung)

    def detach(self) -> None:
        """Let go of the batcher's model, and go the batch path until `attach()`."""
        self._poll_by(self._poll_batch_path)
        self._host.poll_anew()

    def attach(self) -> None:
        """Have a fast path to the batcher's model."""
        session = self._session
        if session.history is None and self._member is None and self._host.lanes is not None:
            self._member = self._host.lanes.join(session, self, self._requests, self._responses, self._bells)
        ends = (session, session.batcher, self._requests, self._responses, self.take, self.wake_client)
        if native_fast_path.serves(session):
            self._poll_by(*native_fast_path.make_ring(*ends))
        elif session.history is None:
            self._poll_by(make_ring_poll(*ends))
        else:
            self._poll_by(self._poll_batch_path)
        self._host.poll_anew()

    def take(self, now_ns: int, rows_seen: int) -> bool:
        """Hand what has been published to the session; False where nothing was.

        At most the `rows_seen` requests that were seen before `now_ns`: one that is published after it would
        have been received before it was sent.
        """
        self.recall()
        session = self._session
        inbox = session.inbox
        try:
            # Every request that is taken will need a slot for its answer.
            room = self._responses.room() - inbox.rows
            rows = self._requests.take(inbox.writable(), min(room, max(rows_seen, 1))) if room > 0 else 0
        except FrameError as error:
            session.reject(error.code, error.reason)
            return True
        if not rows:
            self.stalled = room <= 0
            return False
        session.took(rows * inbox.frame_bytes, now_ns)
        return True

    def send(self, data: memoryview) -> None:
        """Publish answers, and wake a client that sleeps."""
        try:
            if self._responses.publish(data):
                self.wake_client()
        except FrameError as error:
            self._session.reject(error.code, error.reason)

    def stop(self) -> None:
        """Poll no more."""
        self.recall()
        self._host.remove(self, self._bells[0])

    def close(self) -> None:
        """Give everything back; the memory is unmapped when the last view of it is gone: now, or when a lane
        is past it."""
        if self._member is not None:
            self.leave_lane()
        self._host.remove(self, self._bells[0])
        self._close_descriptors()
        # A session and its rings hold each other.
        self._poll_by(_nothing)
        del self._session, self._requests, self._responses, self._region

    def _poll_by(self, poll: RingPoll, poll_round: PollRound | None = None) -> None:
        if self._member is not None:
            poll, poll_round = self._member.lending(poll), None
        self.poll, self.poll_round = poll, poll_round or make_poll_round(poll)

    def _poll_batch_path(self) -> Found:
        """As the function of `make_ring_poll`, without a fast path."""
        rows = self._requests.words[self._requests.head_word] - self._requests.taken
        return HANDED_OVER if rows and self.take(self._clock(), rows) else EMPTY

    def _close_descriptors(self) -> None:
        for descriptor in (self._memory, *self._bells):
            if descriptor >= 0:
                os.close(descriptor)
        self._memory, self._bells = -1, ()

    # -- the host's side

    def may_sleep(self) -> bool:
        """From now on the doorbell is needed; False, and it is not, where something has come meanwhile."""
        if self._requests.may_sleep() or self.stalled:
            return True
        self._requests.awake()
        return False

    def lag(self) -> bool:
        """Something has been published that is not taken yet."""
        requests = self._requests
        return requests.words[requests.head_word] != requests.taken

    def quiet(self) -> bool:
        """Nothing was taken between the last two beats."""
        taken = self._requests.taken
        quiet = taken == self._taken_at_beat
        self._taken_at_beat = taken
        return quiet

    def beat(self, now_ns: int) -> None:
        """Show that the daemon lives."""
        self._region.daemon_heartbeat_ns = now_ns

    # -- the lane's side, see daemon.transport.lanes.LentRings

    @property
    def is_lent(self) -> bool:
        """A lane owns them."""
        return self._member is not None and self._member.is_lent

    def lent(self) -> None:
        """The loop looks at them no more."""
        self._host.lend(self, self._bells[0])

    def taken_back(self) -> None:
        """The loop polls them again."""
        self._host.take_back(self, self._bells[0], self._rung)

    def recall(self) -> None:
        """The lane that has them gives them back."""
        if self._member is not None:
            self._member.recall()

    def leave_lane(self) -> None:
        """No lane serves them any more."""
        assert self._member is not None
        self._member.leave()
        self._member = None
        self.detach()

    def wake_client(self) -> None:
        """Ring its doorbell."""
        self._host.ring(self._bells[1])

    def _rung(self) -> None:
        silence(self._bells[0], self._host.counter)
        self._requests.awake()
        self._host.rise(self)


class RingHost:
    """All rings of a daemon, and the tick's part of them.

    Attributes:
        clock: CLOCK_MONOTONIC in ns.
        fence: see wire.ring.
        counter: 8 bytes to read a bell's counter into.
        lanes: None where there are none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        wake: Callable[[], None],
        counters: ClientCounters,
        lanes: Lanes | None = None,
    ) -> None:
        """
        Args:
            wake: called when there is something for `poll`.
            counters: which know how many connections are open, with and without rings.
            lanes: which may serve sessions in place of the loop.
        """
        self.clock = clock
        self.lanes = lanes
        self.fence = make_fence()
        self.counter = bytearray(8)
        self._loop = loop
        self._wake = wake
        self._counters = counters
        self._ringer: BellRinger | None = None
        self._open: dict[SessionRings, None] = {}
        # Whose beat is due next, and some that have closed meanwhile.
        self._due: deque[SessionRings] = deque()
        self._awake: tuple[SessionRings, ...] = ()
        self._polls: tuple[RingPoll, ...] = ()
        self._poll_round: PollRound = _NO_ROUND
        self._timer: asyncio.TimerHandle | None = None

    def poll(self) -> bool:
        """For the tick: takes what is in the rings that are awake; True where there was something."""
        polls = self._polls
        if len(polls) != 1:
            busy = False
            for poll in polls:
                if poll():
                    busy = True
            return busy
        # A client that was just answered asks again before a round of the loop would be over. The round also
        # serves the sockets, which wait no longer than for so many requests.
        if self._counters.connections_open == len(self._open):
            return self._poll_round(ONLY_CLIENT_POLLS, ONLY_CLIENT_ANSWERED_MAX) > 0
        return self._poll_round(POLLS, ANSWERED_MAX) > 0

    def open(self, session: Session, ring_slots: int, features: int) -> SessionRings:
        """Rings for a session; see daemon.serving.ports.OpenRings.

        Raises:
            FrameError: there is no shared memory to be had; the reason says why.
        """
        outputs = session.batcher.spec.answer_values
        try:
            refused = why_not_here()
            if refused:
                raise FrameError(RejectCode.TRANSPORT_UNAVAILABLE, refused)
            if self._ringer is None:
                self._ringer = BellRinger()
            return SessionRings(self, session, region_layout(ring_slots, features, outputs))
        except MissingDependency as error:
            raise FrameError(RejectCode.TRANSPORT_UNAVAILABLE, str(error)) from None
        except OSError as error:
            reason = f"no shared memory to be had: {error.strerror}"
            raise FrameError(RejectCode.TRANSPORT_UNAVAILABLE, reason) from None

    def may_sleep(self) -> bool:
        """The tick is about to stop: every ring that is awake goes to sleep, but those for which something
        came."""
        busy = tuple(rings for rings in self._awake if not self._put_to_sleep(rings))
        self._set_awake(busy)
        return not busy

    def close(self) -> None:
        """No rings are open any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ringer is not None:
            self._ringer.close()

    # -- the rings' side

    def add(self, rings: SessionRings, bell: int, rung: Callable[[], None]) -> None:
        """Poll them from now on, and call `rung` when their doorbell rings."""
        self._open[rings] = None
        self._due.append(rings)
        self._loop.add_reader(bell, rung)
        self.rise(rings)
        if self._timer is None:
            self._timer = self._loop.call_later(BEAT_S, self._beat)

    def remove(self, rings: SessionRings, bell: int) -> None:
        """Poll them no more."""
        if rings in self._open:
            del self._open[rings]
            self._loop.remove_reader(bell)
            self._lower(rings)

    def lend(self, rings: SessionRings, bell: int) -> None:
        """A lane looks at them from now on, and at their doorbell."""
        self._loop.remove_reader(bell)
        self._lower(rings)

    def take_back(self, rings: SessionRings, bell: int, rung: Callable[[], None]) -> None:
        """Poll them again."""
        self._loop.add_reader(bell, rung)
        self.rise(rings)

    def rise(self, rings: SessionRings) -> None:
        """Something has come, or may have."""
        if not rings.awake:
            rings.awake = True
            self._set_awake((*self._awake, rings))
            self._wake()

    def poll_anew(self) -> None:
        """A session polls its rings in another way."""
        self._set_awake(self._awake)

    def ring(self, bell: int) -> None:
        """Wake a client."""
        assert self._ringer is not None
        self._ringer.ring(bell)

    # -- inside

    def _put_to_sleep(self, rings: SessionRings) -> bool:
        rings.awake = not rings.may_sleep()
        return not rings.awake

    def _lower(self, rings: SessionRings) -> None:
        rings.awake = False
        self._set_awake(tuple(other for other in self._awake if other is not rings))

    def _set_awake(self, awake: tuple[SessionRings, ...]) -> None:
        self._awake = awake
        self._polls = tuple(rings.poll for rings in awake)
        self._poll_round = awake[0].poll_round if len(awake) == 1 else _NO_ROUND

    def _beat(self) -> None:
        """What has to be done for all rings now and then."""
        now_ns = self.clock()
        for rings in [self._due.popleft() for _ in range(min(len(self._due), BEATEN_AT_ONCE))]:
            if rings in self._open:
                self._due.append(rings)
                self._look_after(rings, now_ns)
        if self._open:
            turns = -(-len(self._due) // BEATEN_AT_ONCE)
            self._timer = self._loop.call_later(BEAT_S / turns, self._beat)
        else:
            self._timer = None
            self._due.clear()

    def _look_after(self, rings: SessionRings, now_ns: int) -> None:
        rings.beat(now_ns)
        if rings.is_lent:
            return
        if rings.stalled or (not rings.awake and rings.lag()):
            # No bell rings when there is room for answers again. Nor does one that its client has broken, or
            # has not come to: a counter that the kernel was made to fill up is an error, after which a loop
            # waits no more.
            rings.stalled = False
            self.rise(rings)
        elif rings.quiet() and rings.awake and len(self._awake) > AWAKE_MAX and rings.may_sleep():
            self._lower(rings)


def _nothing() -> Found:
    """The poll of rings that are not there yet, or any more."""
    return EMPTY


_NO_ROUND: Final = make_poll_round(_nothing)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
