"""The rings of a shared-memory region on a memoryview: no I/O, no mapping, no doorbells; those are the
caller's.

Count c of a ring lives in slot c mod ring_slots. A producer writes the slot, then publishes its head; a
consumer reads the head, copies the slot out, then publishes its tail. Frames go in and come out side by side,
as a stream would carry them, so that whatever reads a stream reads a ring. Nothing that the other side wrote
is trusted: its counters are held against ours and against what they were, and a slot is looked at only after
    it has been copied.

Why this may be done in Python, on x86-64 (`why_not_here` says where it may not):

- A counter is read and written as one item of a `memoryview` cast to "Q", an aligned 8-byte move, which the
  processor makes whole. The interpreter neither merges nor reorders such accesses, as a C compiler might.
- x86-64 keeps stores in order, and loads in order. So slot before head, and head before slot, need nothing
  more.
- It may let a load overtake an older store. That matters in one place, before sleeping. A consumer sets its
  flag and then looks at the head once more; a producer publishes its head and then looks at the flag. If both
  stores were still on their way when both loads were done, the consumer would sleep on a frame without a
  doorbell. Between store and load both sides therefore need a full fence. Python has none, but an uncontended
  lock is taken with a locked instruction (`lock cmpxchg`, in glibc's sem_trywait), and on x86-64
  a locked instruction is a full fence: see `make_fence`. The frame is visible before the fence and does not
      wait for it.
"""

from __future__ import annotations

import platform
import struct
import threading
from collections.abc import Callable
from typing import Final

import numpy as np

from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.fields import REGION_HEADER_BYTES, Message
from sigd.wire.framer import check_header, check_length
from sigd.wire.layout import header_word, request_frame_bytes, response_frame_bytes
from sigd.wire.region import OFFSETS, RegionLayout, read_header, violation, write_header

_HEADER_WORD: Final = struct.Struct("<Q")
_read_word = _HEADER_WORD.unpack_from
_U64_BYTES: Final = 8
_U32_BYTES: Final = 4
_FEW_ROWS: Final = 8
"""Up to here rows are cheaper moved one by one; beyond, what NumPy needs to begin with is shared by enough of
them."""

Fence = Callable[[], None]
"""Returns when all stores of this thread before it are visible to all processors."""


def why_not_here() -> str:
    """Why the rings cannot be used on this machine; empty where they can."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        return f"shared memory needs the memory ordering of x86-64, and this machine is {machine}"
    return ""


def make_fence() -> Fence:
    """A full fence, see the module. A lock of its own, so that it is never contended and never waits."""
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire(False)
        release()

    return fence


class Region:
    """A region in memory and the four ends of its two rings, two for each side.

    The ends hold on to the memory: it can be unmapped when they and this are gone, or have let go with
    `release()`.

    Attributes:
        layout: where its parts stand.
    """

    def __init__(self, view: memoryview, layout: RegionLayout, fence: Fence | None = None) -> None:
        """Writable bytes with a header, see `create` and `attach`."""
        self.layout = layout
        self._view = view
        self._words = view[:REGION_HEADER_BYTES].cast("Q")
        self._fence = fence if fence is not None else make_fence()

    @classmethod
    def create(cls, view: memoryview, layout: RegionLayout, fence: Fence | None = None) -> Region:
        """Make zeroed memory of layout.region_bytes a region; see `region.write_header`."""
        write_header(view, layout)
        return cls(view, layout, fence)

    @classmethod
    def attach(cls, view: memoryview) -> Region:
        """Take a region that a daemon made; see `region.read_header`."""
        return cls(view, read_header(view))

    def requests_out(self) -> RingProducer:
        """The client's end of the requests."""
        return RingProducer(self, "request", self._fence)

    def requests_in(self) -> RingConsumer:
        """The daemon's end of the requests."""
        return RingConsumer(self, "request", self._fence)

    def responses_out(self) -> RingProducer:
        """The daemon's end of the responses."""
        return RingProducer(self, "response", self._fence)

    def responses_in(self) -> RingConsumer:
        """The client's end of the responses."""
        return RingConsumer(self, "response", self._fence)

    @property
    def daemon_heartbeat_ns(self) -> int:
        """The daemon's clock when it was last seen alive; the daemon sets it at least every 100 ms."""
        return self._words[OFFSETS["daemon_heartbeat_ns"] // _U64_BYTES]

    @daemon_heartbeat_ns.setter
    def daemon_heartbeat_ns(self, now_ns: int) -> None:
        self._words[OFFSETS["daemon_heartbeat_ns"] // _U64_BYTES] = now_ns

    def release(self) -> None:
        """Let go of the memory; nothing else is called after it. The ends let go each for itself, and
        first."""
        self._words.release()
        self._view.release()


class _Ring:
    """What both ends of a ring know.

    Attributes:
        frame_bytes: of one frame, header and padding included.
        ring_slots: how many there are.
        words: the region's first page as u64, for a caller that polls `words[head_word]` in its own loop.
        head_word, tail_word: places in it.
        flags: the same page as u32.
        memory: the whole region.
        slots_offset, stride: where its slots lie, in bytes.
        sleeping: place in it of the consumer's flag.
        fence: to be called between publishing and looking at that flag.
    """

    __slots__ = (
        "_mask",
        "_rows",
        "_slots",
        "fence",
        "flags",
        "frame_bytes",
        "head_word",
        "memory",
        "ring_slots",
        "sleeping",
        "slots_offset",
        "stride",
        "tail_word",
        "words",
    )

    def __init__(self, region: Region, kind: str, fence: Fence) -> None:
        layout = region.layout
        view = region._view
        if kind == "request":
            self.frame_bytes = request_frame_bytes(layout.features)
            self.slots_offset, self.stride = REGION_HEADER_BYTES, layout.request_stride
            consumer = "daemon"
        else:
            self.frame_bytes = response_frame_bytes(layout.outputs)
            self.slots_offset, self.stride = layout.response_offset, layout.response_stride
            consumer = "client"
        self.ring_slots = layout.ring_slots
        self._mask = layout.ring_slots - 1
        self.words = region._words
        self.head_word = OFFSETS[f"{kind}_head"] // _U64_BYTES
        self.tail_word = OFFSETS[f"{kind}_tail"] // _U64_BYTES
        self.flags = view[:REGION_HEADER_BYTES].cast("I")
        self.sleeping = OFFSETS[f"{consumer}_sleeping"] // _U32_BYTES
        self.fence = fence
        self.memory = view
        # A view of each slot, made when it is first used: slicing anew each time costs more than copying the
        # frame.
        self._slots: list[memoryview | None] = [None] * layout.ring_slots
        self._rows = np.ndarray(
            (layout.ring_slots, self.frame_bytes // _U64_BYTES),
            np.uint64,
            view,
            self.slots_offset,
            (self.stride, _U64_BYTES),
        )

    def slot(self, place: int) -> memoryview:
        """The frame in slot `place`, which the other side may write to at any time."""
        view = self._slots[place]
        if view is None:
            offset = self.slots_offset + place * self.stride
            view = self._slots[place] = self.memory[offset : offset + self.frame_bytes]
        return view

    def release(self) -> None:
        """Let go of the memory, even while a traceback still holds on to this; nothing is called
        after it."""
        del self.words, self.flags, self.memory, self._slots, self._rows


class RingProducer(_Ring):
    """The writing end of a ring.

    Attributes:
        published: frames published since the start.
        tail_seen: of those, how many the consumer had taken at the last look.
    """

    __slots__ = ("published", "tail_seen")

    def __init__(self, region: Region, kind: str, fence: Fence) -> None:
        super().__init__(region, kind, fence)
        self.published = 0
        self.tail_seen = 0

    def room(self) -> int:
        """Free slots.

        Raises:
            FrameError: the consumer's counter ran backwards, or says that it took what was never published.
        """
        tail = self.words[self.tail_word]
        if not self.tail_seen <= tail <= self.published:
            raise violation(f"tail at {tail}, expected within {self.tail_seen}..{self.published}")
        self.tail_seen = tail
        return self.ring_slots - self.published + tail

    def publish(self, frames: memoryview | bytes) -> bool:
        """Copy whole frames, side by side, into the next slots and make them visible.

        Returns:
            True where the consumer may be asleep: ring its doorbell.

        Raises:
            ValueError: there is no room for that many, or they are not whole.
            FrameError: as `room`.
        """
        frame_bytes = self.frame_bytes
        head = self.published
        count = len(frames) // frame_bytes
        if count * frame_bytes != len(frames):
            raise ValueError(f"{len(frames)} bytes, expected a multiple of {frame_bytes}")
        after = head + count
        if after - self.tail_seen > self.ring_slots and count > (room := self.room()):
            raise ValueError(f"{count} frames, the ring has room for {room}")
        if count == 1:
            place = head & self._mask
            (self._slots[place] or self.slot(place))[:] = frames
        elif count <= _FEW_ROWS:
            for at in range(0, len(frames), frame_bytes):
                self.slot(head & self._mask)[:] = frames[at : at + frame_bytes]
                head += 1
        else:
            self._scatter(frames, head, count)
        self.published = self.words[self.head_word] = after
        self.fence()
        return self.flags[self.sleeping] != 0

    def _scatter(self, frames: memoryview | bytes, head: int, count: int) -> None:
        rows = np.frombuffer(frames, np.uint64).reshape(count, -1)
        first = head & self._mask
        before_end = min(count, self.ring_slots - first)
        self._rows[first : first + before_end] = rows[:before_end]
        self._rows[: count - before_end] = rows[before_end:]


class RingConsumer(_Ring):
    """The reading end of a ring.

    Attributes:
        taken: frames taken since the start.
        header: of the frames that are expected, as one word.
    """

    __slots__ = ("_head_seen", "_message", "header", "taken")

    def __init__(self, region: Region, kind: str, fence: Fence) -> None:
        super().__init__(region, kind, fence)
        self.taken = 0
        self._head_seen = 0
        self._message: Message = fields.SIGNAL_REQUEST if kind == "request" else fields.SIGNAL_RESPONSE
        self.header = header_word(self._message.template_id, self.frame_bytes)

    def waiting(self) -> int:
        """Frames to take.

        Raises:
            FrameError: the producer's counter ran backwards, or is further ahead than the ring is long.
        """
        head = self.words[self.head_word]
        if not self._head_seen <= head <= self.taken + self.ring_slots or head < self.taken:
            raise self._impossible(head)
        self._head_seen = head
        return head - self.taken

    def _impossible(self, head: int) -> FrameError:
        least = max(self._head_seen, self.taken)
        return violation(f"head at {head}, expected {least}..{self.taken + self.ring_slots}")

    def take(self, into: memoryview, rows_max: int) -> int:
        """Copy the oldest frames side by side to the start of `into`, then free their slots.

        A longer frame of a newer version is cut to what is known, so that all have one length.

        Args:
            into: writable bytes; as many frames are taken as it holds whole.
            rows_max: at most so many.

        Returns:
            How many were taken, possibly 0.

        Raises:
            FrameError: as `waiting`; or a slot holds something else than this ring's frames. Nothing was
            freed.
        """
        taken = self.taken
        head = self.words[self.head_word]
        # A caller that takes frames slot by slot moves `taken` past the head that was seen here last.
        if not self._head_seen <= head <= taken + self.ring_slots or head < taken:
            raise self._impossible(head)
        self._head_seen = head
        count = head - taken
        if count == 1 and rows_max and len(into) >= self.frame_bytes:
            # The common case, and the one that counts: a request that comes alone.
            place = taken & self._mask
            into[: self.frame_bytes] = self._slots[place] or self.slot(place)
            if _read_word(into)[0] != self.header:
                self._accept(into, 0)
        elif count:
            count = min(count, rows_max, len(into) // self.frame_bytes)
            self._copy(into, count)
        taken += count
        self.taken = self.words[self.tail_word] = taken
        return count

    def _copy(self, into: memoryview, count: int) -> None:
        if count > _FEW_ROWS:
            self._gather(into, count)
            return
        for row in range(count):
            at = row * self.frame_bytes
            into[at : at + self.frame_bytes] = self.slot(self.taken + row & self._mask)
            if _read_word(into, at)[0] != self.header:
                self._accept(into, at)

    def _gather(self, into: memoryview, count: int) -> None:
        rows = np.frombuffer(into, np.uint64, count * self.frame_bytes // _U64_BYTES).reshape(count, -1)
        first = self.taken & self._mask
        before_end = min(count, self.ring_slots - first)
        rows[:before_end] = self._rows[first : first + before_end]
        rows[before_end:] = self._rows[: count - before_end]
        for row in np.flatnonzero(rows[:, 0] != self.header).tolist():
            self._accept(into, row * self.frame_bytes)

    def _accept(self, into: memoryview, offset: int) -> None:
        """A frame with another header: cut one of a newer version, refuse anything else."""
        header = check_header(_read_word(into, offset)[0])
        if header.template_id != self._message.template_id:
            raise violation(
                f"template {header.template_id} in a ring of {self._message.name}"
                f" ({self._message.template_id})"
            )
        check_length(self._message.name, header, self.frame_bytes)
        if header.frame_bytes > self.stride:
            raise violation(f"frame of {header.frame_bytes} bytes in a slot of {self.stride}")
        _HEADER_WORD.pack_into(into, offset, self.header)

    def may_sleep(self) -> bool:
        """Say that the doorbell is needed. False where something came meanwhile: do not sleep, take it.

        Either way `awake` comes next, after sleeping until the doorbell rings where this was True.
        """
        self.flags[self.sleeping] = 1
        self.fence()
        return self.words[self.head_word] == self.taken

    def awake(self) -> None:
        """No doorbell is needed any more. One that was rung meanwhile costs a look at an empty ring."""
        self.flags[self.sleeping] = 0
