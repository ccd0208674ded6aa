"""Lanes: native threads (daemon/serving/lane.c) that answer clients of shared memory without Python's lock.

A session is lent to a lane while nothing unusual happens on it. The lane hands it back, and Python takes it
back at any time (`LaneMember.recall`), so each of a session's rings has one owner at any time. What a lane
does not take (see `native_lane.why_no_lane`) is served by the loop, as without lanes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.serving import native_lane
from sigd.daemon.serving.fast_path_ring import EMPTY, Found, RingPoll
from sigd.daemon.transport.doorbell import silence
from sigd.daemon.transport.lane_status import LaneStatus

if TYPE_CHECKING:
    from sigd.daemon.config.config import LaneRealtime
    from sigd.daemon.serving._lane import Member, Model
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.session import Session
    from sigd.wire.ring import RingConsumer, RingProducer

log = logging.getLogger(__name__)

HANDED_FOR: Final = (
    "",
    "header",
    "deadline",
    "features",
    "ring",
    "outputs",
    "late",
    "conflated",
    "bell",
)
"""Why a lane hands a session to Python, by the numbers of lane.h: a frame that is no request, a deadline that
has passed, features that are no numbers, counters of the ring that broke the rules, answers that are no
numbers, an answer past its deadline, requests to conflate, and a bell that the kernel did not ring."""
TAPPED: Final = "its answers are recorded or compared with a shadow's"
"""Why no lane serves a model that one could run."""
_BELL: Final = HANDED_FOR.index("bell")
RECLAIM_S: Final = 0.05
WATCH_S: Final = 1.0
"""A lane that has made no round for so long is stalled."""


class LentRings(Protocol):
    """What a lane needs of a session's rings."""

    def lent(self) -> None:
        """The loop looks at them no more."""

    def taken_back(self) -> None:
        """The loop polls them again."""

    def wake_client(self) -> None:
        """Ring its doorbell."""

    def leave_lane(self) -> None:
        """No lane serves them any more: calls `LaneMember.leave`."""


class LaneMember:
    """One session in a lane.

    Attributes:
        batcher: the session's.
        is_lent: the lane owns its rings.
        rings: which it is lent; until `leave()`.
    """

    __slots__ = ("_lane", "_native", "_requests", "_responses", "_session", "batcher", "is_lent", "rings")

    def __init__(
        self,
        lane: RunningLane,
        native: Member,
        session: Session,
        rings: LentRings,
        requests: RingConsumer,
        responses: RingProducer,
    ) -> None:
        self._lane = lane
        self._native = native
        self._session = session
        self.rings = rings
        self._requests = requests
        self._responses = responses
        self.batcher = session.batcher
        self.is_lent = False

    def lending(self, poll: RingPoll) -> RingPoll:
        """As `poll`, and lends the rings to the lane when they are empty and nothing else keeps them."""
        session, requests = self._session, self._requests

        def poll_or_lend() -> Found:
            if self.is_lent:
                return EMPTY
            found = poll()
            if not found and session.at_rest and requests.words[requests.head_word] == requests.taken:
                self._lend()
            return found

        return poll_or_lend

    def recall(self) -> None:
        """Python owns the rings from now on; waits for the run under way, if any."""
        if not self.is_lent:
            return
        self.is_lent = False
        why = self._native.why
        requests, responses = self._requests, self._responses
        requests.taken, responses.published, responses.tail_seen = self._native.recall()
        requests.awake()
        self.rings.taken_back()
        if why == _BELL:
            self.rings.wake_client()

    def handed_over(self) -> str:
        """Why the lane has handed the rings to Python, which takes them; "" where it has not."""
        if not self.is_lent or self._native.in_lane:
            return ""
        why = HANDED_FOR[self._native.why]
        self.recall()
        return why

    def leave(self) -> None:
        """Nothing is lent any more."""
        self.recall()
        self._lane.remove(self, self._native)
        del self._session, self.rings, self._requests, self._responses

    def _lend(self) -> None:
        self.is_lent = True
        self.rings.lent()
        requests, responses = self._requests, self._responses
        self._native.give(requests.taken, responses.published, responses.tail_seen)


class RunningLane:
    """One lane, and the sessions that it may be lent.

    Attributes:
        core: of its thread.
        handed_over: how often it has handed a session to Python, by reason.
        is_stalled: it had made no round when `stalled()` was called last.
        stalls: how often that was so.
    """

    def __init__(
        self,
        core: int,
        spin_ns: int | None,
        retired: Callable[[], None],
        realtime: LaneRealtime | None = None,
    ) -> None:
        """
        Args:
            retired: called when its thread may still hold what is needed no more.
            realtime: None for ordinary priority.

        Raises:
            MissingDependency: there can be none.
        """
        self.core = core
        self._retired = retired
        self._priority = 0 if realtime is None else realtime.priority
        self.handed_over: Counter[str] = Counter()
        self._members: dict[LaneMember, None] = {}
        self._models: dict[Batcher, tuple[Model, bool]] = {}
        self.is_stalled = False
        self.stalls = 0
        self._round = -1
        self._yields = 0
        self._yielding = False
        self._counter = bytearray(8)
        try:
            self.native = native_lane.open_lane(core, spin_ns, realtime)
        except OSError as error:
            raise MissingDependency(
                f"{error.strerror}: it needs membarrier and asynchronous I/O; a service may lack the"
                " system calls of @aio and @default, or fs.aio-max-nr is used up. Leave lane_cpu out"
            ) from None

    @property
    def sessions(self) -> int:
        """How many sessions it serves, or would if they were not Python's just now."""
        return len(self._members)

    @property
    def lent(self) -> int:
        """How many sessions it owns."""
        return sum(member.is_lent for member in self._members)

    def start(self) -> None:
        """
        Raises:
            UsageError: this process may not run on its core.
            MissingDependency: it may not have its priority.
        """
        try:
            self.native.start()
        except PermissionError as error:
            limit, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
            raise MissingDependency(
                f"lane_priority {self._priority} is not allowed to this process ({error.strerror}; its limit"
                f" of real-time priority is {limit}). A service needs LimitRTPRIO={self._priority} and"
                f" RestrictRealtime=no (systemctl edit), a container --ulimit rtprio={self._priority}, a"
                " session rtprio in limits.conf. Or leave lane_priority out"
            ) from None
        except OSError as error:
            raise UsageError(
                f"lane_cpu {self.core} is not one that this process may run on ({error.strerror}); the"
                f" machine has {os.cpu_count()} cores"
            ) from None

    def join(
        self,
        session: Session,
        rings: LentRings,
        requests: RingConsumer,
        responses: RingProducer,
        bells: tuple[int, ...],
    ) -> LaneMember | None:
        """Take a session in; None where there is no place."""
        batcher = session.batcher
        known = self._models.get(batcher)
        model = native_lane.make_model(self.native, batcher) if known is None else known[0]
        native = native_lane.make_member(model, session, requests, responses, bells)
        if not self.native.join(native):
            return None
        if known is None:
            self._models[batcher] = model, batcher.row_check.takes_nan
            batcher.counters.lanes.append(model)
        member = LaneMember(self, native, session, rings, requests, responses)
        self._members[member] = None
        return member

    def remove(self, member: LaneMember, native: Member) -> None:
        """Let a session go that belongs to Python."""
        del self._members[member]
        self.native.leave(native)
        batcher = member.batcher
        if not any(other.batcher is batcher for other in self._members):
            batcher.counters.pull()
            batcher.counters.lanes.remove(self._models.pop(batcher)[0])
        self._retired()

    def swap(self, batcher: Batcher) -> None:
        """The batcher has another model."""
        if batcher not in self._models:
            return
        model, takes_nan = self._models[batcher]
        if native_lane.why_no_lane(batcher) or batcher.row_check.takes_nan != takes_nan:
            for member in [member for member in self._members if member.batcher is batcher]:
                member.rings.leave_lane()
        else:
            model.swap(native_lane.runner(batcher), batcher.generation << 32)

    def handed(self) -> None:
        """The bell of its hand-over rings."""
        silence(self.native.handed, self._counter)
        for member in tuple(self._members):
            if why := member.handed_over():
                self.handed_over[why] += 1

    def stalled(self) -> bool:
        """Whether it has made no round since the last call."""
        before, self._round = self._round, self.native.round
        self.is_stalled = before == self._round
        self.stalls += self.is_stalled
        return self.is_stalled

    def say_yields(self) -> None:
        """Say in the log where it has begun to lose its priority, once until it has kept it between two
        calls."""
        before, self._yields = self._yields, self.native.yields
        if self._yields > before and not self._yielding:
            log.warning(
                "the lane on core %d was busy for longer than lane_busy_ms_max, and went on at ordinary"
                " priority for as long: clients ask more than it can answer, or it spins for too long between"
                " their requests (backoff_spin_us)",
                self.core,
            )
        self._yielding = self._yields > before

    def status(self) -> LaneStatus:
        """What it does, and has done."""
        native = self.native
        return LaneStatus(
            core=self.core,
            sessions=self.sessions,
            lent=self.lent,
            handed_over=dict(self.handed_over),
            stalled=self.is_stalled,
            requests=native.answered,
            rounds=native.round,
            asleep=native.asleep,
            stalls=self.stalls,
            priority=self._priority,
            realtime=native.realtime,
            yields=native.yields,
        )


def _demand_built(cores: Sequence[int]) -> None:
    if cores and not native_lane.is_built():
        raise MissingDependency(
            "lane_cpu needs the fast path in C, which is not built: sigd was installed where there is no"
            " C compiler. Install one (apt-get install gcc) and install sigd again, or leave lane_cpu out"
        )


def try_lanes(cores: Sequence[int], spin_ns: int | None, realtime: LaneRealtime | None) -> None:
    """Start each lane, and end it.

    Raises:
        UsageError, MissingDependency: the start of a daemon would end with it.
    """
    _demand_built(cores)
    for core in cores:
        lane = RunningLane(core, spin_ns, lambda: None, realtime)
        lane.start()
        lane.native.stop()


def lane_warnings(cores: Sequence[int], why_not: Mapping[str, str]) -> Iterator[str]:
    """What makes these lanes useless or slow.

    Args:
        why_not: why no lane serves a model, "" where one does, by the model's name.
    """
    if not cores:
        return
    if shared := os.sched_getaffinity(0) & set(cores):
        yield (
            f"core {', '.join(map(str, sorted(shared)))} has a lane, and the loop runs there too:"
            " give the loop another one (cpu)"
        )
    for name, why in why_not.items():
        if why:
            yield f"model {name} is served by the loop, not in a lane: {why}"
    if all(why_not.values()):
        yield "no model is served in a lane, which has nothing to do: leave lane_cpu out"


class Lanes:
    """All lanes of a daemon.

    Attributes:
        stalled: what is wrong with one, as a sentence; "" where all make their rounds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        cores: Sequence[int],
        spin_ns: int | None,
        realtime: LaneRealtime | None = None,
    ) -> None:
        """
        Args:
            spin_ns: how long a lane spins after its last answer before it sleeps; None never sleeps.
            realtime: priority of lanes; None for an ordinary one.

        Raises:
            UsageError, MissingDependency: there can be none.
        """
        _demand_built(cores)
        self.stalled = ""
        self._loop = loop
        self._lanes = [RunningLane(core, spin_ns, self.reclaim, realtime) for core in cores]
        self._reclaiming: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[RunningLane]:
        return iter(self._lanes)

    def start(self) -> None:
        """Raises what the `start` of a lane does."""
        for lane in self._lanes:
            lane.start()
            self._loop.add_reader(lane.native.handed, lane.handed)
        if self._lanes:
            self._watch()

    def close(self) -> None:
        """End all threads; no session is lent any more."""
        for timer in (self._reclaiming, self._watching):
            if timer is not None:
                timer.cancel()
        for lane in self._lanes:
            self._loop.remove_reader(lane.native.handed)
            lane.native.stop()

    def join(
        self,
        session: Session,
        rings: LentRings,
        requests: RingConsumer,
        responses: RingProducer,
        bells: tuple[int, ...],
    ) -> LaneMember | None:
        """Take a session into the lane with the fewest; None where none takes it."""
        if not self._lanes or session.tap is not None or native_lane.why_no_lane(session.batcher):
            return None
        for lane in sorted(self._lanes, key=lambda lane: lane.sessions):
            member = lane.join(session, rings, requests, responses, bells)
            if member is not None:
                return member
        return None

    def swapped(self, batcher: Batcher) -> None:
        """The batcher has another model: lanes run it from now on, or serve its sessions no more."""
        for lane in self._lanes:
            lane.swap(batcher)
        self.reclaim()

    def reclaim(self) -> None:
        """Let go of what lanes do not hold any more, now and later."""
        if sum(lane.native.reclaim() for lane in self._lanes) and self._reclaiming is None:
            self._reclaiming = self._loop.call_later(RECLAIM_S, self._reclaim_again)

    def _reclaim_again(self) -> None:
        self._reclaiming = None
        self.reclaim()

    def _watch(self) -> None:
        stalled = [str(lane.core) for lane in self._lanes if lane.stalled()]
        now = f"the lane on core {', '.join(stalled)} has made no round for {WATCH_S:g} s" if stalled else ""
        if now and not self.stalled:
            log.error("%s: something else takes that core", now)
        self.stalled = now
        for lane in self._lanes:
            lane.say_yields()
        self._watching = self._loop.call_later(WATCH_S, self._watch)
