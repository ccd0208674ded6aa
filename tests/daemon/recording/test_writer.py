"""The writer: what it stores, what it does where it cannot, and that the next one goes on where it was
killed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.daemon.recording import segments as segments_module
from sigd.daemon.recording import writer as writer_module
from sigd.daemon.recording.ring import Ring
from sigd.daemon.recording.writer import RETRY_NS, RingFile, recover
from sigd.wire.recording.format import (
    RECORD,
    RING_ERROR_WORD,
    RING_HEAD_WORD,
    RING_TAIL_WORD,
    SEGMENT_HEADER_BYTES,
    Kind,
    RingHeader,
    read_records,
    segment_bytes,
)
from sigd.wire.recording.reader import Damage

if TYPE_CHECKING:
    from tests.daemon.recording.conftest import MakeRecorded, Recorded

RECORD_BYTES = 1024


def write(ring: Ring, number: int) -> bool:
    """One record of RECORD_BYTES that is not looked into; False where it found no room."""
    if not ring.make_room(RECORD_BYTES):
        return False
    body = number.to_bytes(8, "little") * ((RECORD_BYTES - RECORD.size) // 8)
    head = RECORD.pack(RECORD_BYTES, Kind.SESSION, 0, number, 0, 0, 0, 0)
    ring.memory[ring.offset : ring.offset + RECORD_BYTES] = head + body
    ring.advance(RECORD_BYTES)
    return True


def stored(recorded: Recorded) -> list[int]:
    """The numbers of the records that are in the segments, each of which must be whole."""
    numbers = []
    for piece in recorded.recording()._pieces():
        assert not isinstance(piece, Damage), piece
        for record in read_records(piece.records, piece.position):
            assert bytes(record.body) == record.session.to_bytes(8, "little") * (len(record.body) // 8)
            numbers.append(record.session)
    return numbers


def test_what_is_seen_at_one_look_is_stored_at_the_next(make_recorded: MakeRecorded) -> None:
    recorded = make_recorded()
    writer, ring = recorded.writer, recorded.ring
    write(ring, 1)
    writer.look()
    assert stored(recorded) == []
    write(ring, 2)
    writer.look()
    assert stored(recorded) == [1]
    assert writer.behind_bytes == RECORD_BYTES
    writer.look()
    assert stored(recorded) == [1, 2]
    assert writer.behind_bytes == 0


def test_the_ring_goes_round_and_segments_follow_each_other(make_recorded: MakeRecorded) -> None:
    recorded = make_recorded()
    for number in range(100):
        assert write(recorded.ring, number)
        recorded.writer.look()
    recorded.store()
    recorded.segments.close()
    assert stored(recorded) == list(range(100))
    names = sorted(path.name for path in recorded.directory.iterdir())
    assert names == [f"20260101T000000Z-test.{number:06}.sigdrec" for number in range(len(names))]
    assert len(names) == 100 * RECORD_BYTES // recorded.header.stretch_bytes + 1


def test_a_block_is_small_so_that_little_is_lost_with_it(make_recorded: MakeRecorded) -> None:
    recorded = make_recorded(capacity_bytes=1 << 18, stretch_bytes=1 << 20)
    for number in range(200):
        assert write(recorded.ring, number)
    recorded.store()
    assert stored(recorded) == list(range(200))
    (path,) = recorded.directory.iterdir()
    with path.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + 5000)
        file.write(b"\xff\xff")
    found = list(recorded.recording()._pieces())
    assert [isinstance(piece, Damage) for piece in found] == [True, False, False, False]
    whole_bytes = sum(len(piece.records) for piece in found if not isinstance(piece, Damage))
    assert whole_bytes == (200 - 64) * RECORD_BYTES


def test_an_ended_segment_takes_no_more_room_than_it_needs(make_recorded: MakeRecorded) -> None:
    recorded = make_recorded()
    write(recorded.ring, 1)
    recorded.store()
    (path,) = recorded.directory.iterdir()
    assert path.stat().st_size == segment_bytes(recorded.header.stretch_bytes)
    recorded.segments.close()
    assert path.stat().st_size == SEGMENT_HEADER_BYTES + 32 + RECORD_BYTES


@pytest.mark.parametrize("killed", ["before the header", "before it was told", "while a segment was made"])
def test_the_next_writer_goes_on_where_one_was_killed(
    make_recorded: MakeRecorded, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    recorded = make_recorded()

    class Killed(BaseException):
        pass

    def kill(*_: object) -> bytes:
        raise Killed

    write(recorded.ring, 1)
    if killed != "while a segment was made":
        recorded.store()
        write(recorded.ring, 2)
    with monkeypatch.context() as patched:
        if killed == "before the header":
            patched.setattr(segments_module, "block_header", kill)
        elif killed == "before it was told":
            tail = recorded.ring.words[RING_TAIL_WORD]
            recorded.store()
            recorded.ring.words[RING_TAIL_WORD] = tail
        else:
            patched.setattr(os, "pwrite", kill)
        if killed != "before it was told":
            with pytest.raises(Killed):
                recorded.writer.finish()
    fresh = type(recorded)(recorded.directory)
    fresh.memory, fresh.ring, fresh.header = recorded.memory, recorded.ring, recorded.header
    write(fresh.ring, 3)
    assert fresh.new_writer().finish()
    assert stored(fresh) == ([1, 3] if killed == "while a segment was made" else [1, 2, 3])


def test_where_the_disk_is_full_recording_pauses_and_goes_on(
    make_recorded: MakeRecorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = make_recorded()
    ring, writer = recorded.ring, recorded.writer
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setattr(os, "posix_fallocate", full)
        number = 0
        while write(ring, number):
            number += 1
        ring.drop(1)
        for _ in range(3):
            assert not writer.finish()
            recorded.now_ns += RETRY_NS
        assert ring.words[RING_ERROR_WORD] == errno.ENOSPC
        assert list(recorded.directory.iterdir()) == [], "nothing half made is left"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "No space left on device" in caplog.text
    recorded.now_ns += RETRY_NS
    assert writer.finish()
    assert ring.words[RING_ERROR_WORD] == 0
    assert "recording goes on; 1 requests were not recorded" in caplog.text
    assert stored(recorded) == list(range(number))
    assert write(ring, number), "there is room again"


def test_it_is_not_tried_more_often_than_once_a_second(
    make_recorded: MakeRecorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = make_recorded()
    tries = []

    def full(*_: object) -> None:
        tries.append(recorded.now_ns)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for _ in range(40):
        recorded.writer.look()
        recorded.now_ns += RETRY_NS // 20
    assert len(tries) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "sigd-test", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tests.daemon.recording.conftest import Recorded

    recorded = Recorded(small_disk, stretch_bytes=1 << 18)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 19))
    number = 0
    while not recorded.ring.words[RING_ERROR_WORD]:
        assert write(recorded.ring, number)
        number += 1
        recorded.writer.finish()
    assert "No space left on device" in caplog.text
    ballast.unlink()
    recorded.now_ns += RETRY_NS
    recorded.store()
    assert stored(recorded) == list(range(number))


def test_the_oldest_segments_make_room(make_recorded: MakeRecorded) -> None:
    stretch = 1 << 13
    recorded = make_recorded(stretch_bytes=stretch, total_bytes=4 * segment_bytes(stretch))
    for name in ("20250101T000000Z-old.000000.sigdrec", "20250101T000000Z-alive.000000.sigdrec", "other"):
        (recorded.directory / name).write_bytes(bytes(segment_bytes(stretch)))
    (recorded.directory / "20250101T000000Z-alive.ring").symlink_to("/nonexistent/ring")
    for number in range(100):
        write(recorded.ring, number)
        if number % 4 == 3:
            recorded.store()
        sizes = sum(path.stat().st_size for path in recorded.directory.glob("*.sigdrec"))
        assert sizes <= 4 * segment_bytes(stretch)
    names = sorted(path.name for path in recorded.directory.iterdir())
    assert "20250101T000000Z-old.000000.sigdrec" not in names
    assert "20250101T000000Z-alive.000000.sigdrec" in names, "its daemon may still write to it"
    assert "other" in names
    assert len([name for name in names if name.startswith("2026")]) == 3


def test_a_segment_whose_header_is_broken_is_written_anew(
    make_recorded: MakeRecorded, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = make_recorded()
    path = recorded.directory / "20260101T000000Z-test.000000.sigdrec"
    path.write_bytes(b"SIGDREC1" + b"\xee" * 8000)
    write(recorded.ring, 1)
    recorded.store()
    assert stored(recorded) == [1]
    assert "written anew" in caplog.text


@pytest.fixture
def left_behind(make_recorded: MakeRecorded, tmp_path: Path) -> Iterator[tuple[Recorded, Ring, Path]]:
    """A ring as a daemon and its writer leave it when both are killed; some of it is stored."""
    recorded = make_recorded()
    link = recorded.directory / "20260101T000000Z-test.ring"
    ring = Ring.create(
        tmp_path / "memory.ring", RingHeader(1 << 14, 3 << 13, bytes(16), recorded.header.about)
    )
    link.symlink_to(tmp_path / "memory.ring")
    recorded.ring, recorded.memory = ring, ring.memory
    write(ring, 1)
    assert recorded.new_writer().finish()
    write(ring, 2)
    yield recorded, ring, link
    ring.close()


def test_what_killed_daemons_left_behind_is_stored(
    left_behind: tuple[Recorded, Ring, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorded, ring, link = left_behind
    recover(recorded.directory, "another", 1 << 30)
    assert link.is_symlink(), "its daemon lives"
    assert stored(recorded) == [1, 2], "a reader takes the rest from the ring"
    ring.close()
    recover(recorded.directory, link.stem, 1 << 30)
    assert link.is_symlink(), "not its own"
    recover(recorded.directory, "another", 1 << 30)
    assert sorted(path.name for path in recorded.directory.iterdir()) == [
        "20260101T000000Z-test.000000.sigdrec"
    ]
    assert not (recorded.directory.parent / "memory.ring").exists()
    assert stored(recorded) == [1, 2]
    assert "stored 1024 bytes that a killed daemon left there" in caplog.text


def test_a_ring_that_is_gone_with_the_machines_memory_is_said_and_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "x.ring"
    link.symlink_to(tmp_path / "nowhere")
    recover(tmp_path, "another", 1 << 30)
    assert not link.is_symlink()
    assert "is lost" in caplog.text


def test_what_is_no_ring_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.ring").write_bytes(b"something else")
    recover(tmp_path, "another", 1 << 30)
    assert (tmp_path / "x.ring").read_bytes() == b"something else"
    assert "cannot be stored" in caplog.text


def test_what_cannot_be_stored_in_the_end_stays_in_the_ring(
    left_behind: tuple[Recorded, Ring, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded, ring, link = left_behind
    ring.close()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer_module, "LAST_TRIES_NS", 0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        recover(recorded.directory, "another", 1 << 30)
    assert link.is_symlink()
    assert "1024 bytes are not stored" in caplog.text
    recover(recorded.directory, "another", 1 << 30)
    assert not link.is_symlink()
    assert stored(recorded) == [1, 2]


def test_a_ring_has_one_kind_of_writer(left_behind: tuple[Recorded, Ring, Path]) -> None:
    _, ring, link = left_behind
    shared = RingFile(link, fcntl.LOCK_SH)
    with pytest.raises(BlockingIOError):
        RingFile(link, fcntl.LOCK_EX)
    ring.close()
    with pytest.raises(BlockingIOError):
        RingFile(link, fcntl.LOCK_EX)
    shared.close()
    RingFile(link, fcntl.LOCK_EX).close()


def test_what_is_written_is_forced_to_the_disk_at_the_interval(
    make_recorded: MakeRecorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sigd.daemon.recording.writer import Writer

    recorded = make_recorded()
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda _: syncs.append(recorded.now_ns))
    start_ns = recorded.now_ns
    writer = Writer(recorded.memory, recorded.segments, recorded.header, 500, lambda: recorded.now_ns)
    for _ in range(100):
        write(recorded.ring, 1)
        writer.look()
        recorded.now_ns += 100
    assert len(syncs) == pytest.approx(100 * 100 / 500, abs=1)
    assert syncs[0] - start_ns <= 600
    for _ in range(20):
        writer.look()
        recorded.now_ns += 100
    idle = len(syncs)
    for _ in range(20):
        writer.look()
        recorded.now_ns += 100
    assert len(syncs) == idle, "there is nothing to force"
    assert recorded.ring.words[RING_HEAD_WORD] == recorded.ring.head
