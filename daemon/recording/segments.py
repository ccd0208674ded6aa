"""The writer's end of the disk: segments are made, written block by block, ended, and the oldest deleted."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Final

from sigd.wire.errors import RecordingDamaged
from sigd.wire.recording.format import (
    BLOCK_HEADER_BYTES,
    RING_SUFFIX,
    SEGMENT_HEADER_BYTES,
    SEGMENT_SUFFIX,
    Block,
    RingHeader,
    SegmentHeader,
    block_header,
    read_blocks,
    segment_bytes,
)

log = logging.getLogger(__name__)

_MODE: Final = 0o640


class Segments:
    """The segments of one recording, written to at the end.

    Args:
        name: of the recording; a segment's number and ending follow it.
        header: of the ring.
        total_bytes: what all segments of the directory may take, other recordings' among them.
    """

    def __init__(self, directory: Path, name: str, header: RingHeader, total_bytes: int) -> None:
        self._directory = directory
        self._name = name
        self._header = header
        self._total_bytes = total_bytes
        self._segment_bytes = segment_bytes(header.stretch_bytes)
        self._descriptor = -1
        self._number = -1
        self._offset = self._position = 0

    def open(self, position: int) -> int:
        """Have the segment that `position` of the stream belongs to: a new one, or one that a writer was
        killed on.

        Returns the position up to which it is written, `position` or more.

        Raises:
            OSError: there is no room, or no right to write there.
        """
        number = position // self._header.stretch_bytes
        if number == self._number:
            return max(position, self._position)
        self.close()
        path = self._path(number)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            found = self._find_end(descriptor, path)
            if found is None:
                self._make(descriptor, number)
                found = SEGMENT_HEADER_BYTES, position
            else:
                # What a writer was killed on is written anew.
                os.ftruncate(descriptor, found[0])
                os.posix_fallocate(descriptor, 0, self._segment_bytes)
        except BaseException:
            if not os.fstat(descriptor).st_size:
                path.unlink()
            os.close(descriptor)
            raise
        self._descriptor, self._number = descriptor, number
        self._offset, self._position = found
        return max(position, self._position)

    def write(self, records: memoryview, position: int) -> None:
        """Append whole records, which start at `position` of the stream and end within the open segment.

        Raises:
            OSError: none of them are written.
        """
        # The header is written last: no reader sees a block that is not whole.
        _write(self._descriptor, records, self._offset + BLOCK_HEADER_BYTES)
        _write(self._descriptor, block_header(records, position, time.time_ns()), self._offset)
        self._offset += BLOCK_HEADER_BYTES + len(records)
        self._position = position + len(records)

    def sync(self) -> None:
        """Wait until the disk has all that was written. Raises OSError."""
        if self._descriptor >= 0:
            os.fdatasync(self._descriptor)

    def close(self, *, discard: bool = False) -> None:
        """End the segment that is open: give back what was allocated for it and not used, or delete it.

        Raises:
            OSError: that could not be done.
        """
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            number, self._number = self._number, -1
            try:
                if discard:
                    self._path(number).unlink()
                    return
                os.ftruncate(descriptor, self._offset)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._name}.{number:06}{SEGMENT_SUFFIX}"

    def _find_end(self, descriptor: int, path: Path) -> tuple[int, int] | None:
        """Offset and position behind the last whole block; None where there is no segment yet."""
        content = os.pread(descriptor, SEGMENT_HEADER_BYTES, 0)
        if not any(content):
            return None
        try:
            header = SegmentHeader.decode(content)
        except RecordingDamaged as error:
            log.error("%s: %s; it is written anew", path, error)
            os.ftruncate(descriptor, 0)
            return None
        offset, position = SEGMENT_HEADER_BYTES, header.position
        size = os.fstat(descriptor).st_size
        for found in read_blocks(lambda at, count: os.pread(descriptor, count, at), size, position):
            if isinstance(found, Block):
                offset, position = found.next_offset, found.end
        return offset, position

    def _make(self, descriptor: int, number: int) -> None:
        self._delete_oldest(self._segment_bytes)
        try:
            os.posix_fallocate(descriptor, 0, self._segment_bytes)
            header = SegmentHeader(
                recording_id=self._header.recording_id,
                number=number,
                stretch_bytes=self._header.stretch_bytes,
                wall_ns=time.time_ns(),
                monotonic_ns=time.monotonic_ns(),
                about=self._header.about,
            )
            _write(descriptor, header.encode(), 0)
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, 0)
            raise
        # The name, too, must survive a loss of power.
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _delete_oldest(self, needed_bytes: int) -> None:
        """Make room for that much within the bound on the directory. Names sort by time."""
        paths = sorted(self._directory.glob(f"*{SEGMENT_SUFFIX}"))
        sizes = {path: path.stat().st_size for path in paths}
        total_bytes = sum(sizes.values()) + needed_bytes
        left = Counter(_recording_of(path) for path in paths)
        for path in paths:
            if total_bytes <= self._total_bytes:
                return
            name = _recording_of(path)
            # Another daemon may still write to the last segment of a recording that has a ring.
            if left[name] == 1 and (self._directory / f"{name}{RING_SUFFIX}").is_symlink():
                continue
            path.unlink(missing_ok=True)
            left[name] -= 1
            total_bytes -= sizes[path]


def _recording_of(path: Path) -> str:
    return path.name.removesuffix(SEGMENT_SUFFIX).rpartition(".")[0]


def _write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of it. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
