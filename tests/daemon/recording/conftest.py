"""A ring of anonymous memory with a writer that stores when the test says so."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest

from sigd.daemon.recording.ring import Ring
from sigd.daemon.recording.segments import Segments
from sigd.daemon.recording.tap import Taps
from sigd.daemon.recording.writer import Writer
from sigd.wire.recording.format import RING_HEADER_BYTES, RingHeader
from sigd.wire.recording.reader import Damage, Exchanges, Recording, Unread, open_recordings

CAPACITY_BYTES = 1 << 14
STRETCH_BYTES = 3 << 13
ABOUT = b'{"sigd":"0","host":"h","pid":1,"processor":"p","runtimes":{}}'


class Recorded:
    """A ring, its writers, and where it is stored.

    Attributes:
        now_ns: the writer's clock.
    """

    def __init__(
        self,
        directory: Path,
        capacity_bytes: int = CAPACITY_BYTES,
        stretch_bytes: int = STRETCH_BYTES,
        total_bytes: int = 1 << 40,
    ) -> None:
        self.directory = directory
        self.header = RingHeader(capacity_bytes, stretch_bytes, bytes(16), ABOUT)
        self.memory = mmap.mmap(-1, RING_HEADER_BYTES + capacity_bytes)
        self.memory[:RING_HEADER_BYTES] = self.header.encode()
        self.ring = Ring(self.memory, self.header)
        self.taps = Taps(self.ring)
        self.segments = Segments(directory, "20260101T000000Z-test", self.header, total_bytes)
        self.now_ns = 1_000_000_000_000
        self.writer = self.new_writer()

    def new_writer(self) -> Writer:
        """As after the last one was killed."""
        self.writer = Writer(self.memory, self.segments, self.header, 0, lambda: self.now_ns)
        return self.writer

    def store(self) -> None:
        """Everything there is."""
        assert self.writer.finish()

    def recording(self) -> Recording:
        (recording,) = open_recordings(self.directory)
        return recording

    def read(self) -> list[Exchanges | Damage | Unread]:
        """What is stored."""
        return list(self.recording().read())

    def exchanges(self) -> list[Exchanges]:
        """As `read`, where nothing is damaged."""
        found = self.read()
        exchanges = [item for item in found if isinstance(item, Exchanges)]
        assert exchanges == found, found
        return exchanges


MakeRecorded = Callable[..., Recorded]


@pytest.fixture
def make_recorded(tmp_path: Path) -> MakeRecorded:
    """Makes a ring that is stored under the test's own directory."""
    count = iter(range(1000))

    def make(**options: int) -> Recorded:
        directory = tmp_path / f"recordings-{next(count)}"
        directory.mkdir()
        return Recorded(directory, **options)

    return make
