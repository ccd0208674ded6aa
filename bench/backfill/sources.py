"""What a piece reads: market events as batches from any of the formats, or rows that a daemon has recorded.

Where the plan names a place for parsed events, a source is parsed into Parquet there once and read from it
later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sigd.bench.backfill.commit import commit, sha256_of, temporary
from sigd.bench.backfill.plan import Piece
from sigd.bench.backfill.score import Rows
from sigd.models.market.batch import EventBatch, batches_of
from sigd.models.market.capture import read_capture
from sigd.models.market.dbn import read_dbn
from sigd.models.market.events import MarketEvent
from sigd.models.market.parquet import read_about, read_batches, write_events
from sigd.models.market.tardis import KINDS, read_tardis
from sigd.wire.errors import NoRecording
from sigd.wire.recording.reader import Damage, Unread, open_recordings

_INPUT_KEY: Final = b"sigd_input_sha256"


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a piece as they were when it began.

    Attributes:
        size: of all of them, bytes.
        mtime_ns: of the one that was changed last.
    """

    paths: tuple[Path, ...]
    size: int
    mtime_ns: int

    def sha256(self) -> str:
        """Of the file; of several the digest of their digests. In hex."""
        digests = [sha256_of(path) for path in self.paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def files_of(piece: Piece) -> Files:
    """The files that a piece reads, found on disk.

    Raises:
        OSError: one of them is not there.
    """
    paths: list[Path] = []
    for path in _paths(piece).values():
        path.stat()
        paths += sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    stats = [path.stat() for path in paths]
    return Files(
        tuple(paths),
        sum(stat.st_size for stat in stats),
        max((stat.st_mtime_ns for stat in stats), default=0),
    )


def market_batches(piece: Piece, input_sha256: str) -> Iterator[EventBatch]:
    """The events of a piece's market.

    Raises:
        MarketError: the input is not as its format says.
        OSError: the parsed events cannot be written.
    """
    if piece.format == "parquet":
        return read_batches(Path(piece.path))
    if not piece.parsed:
        return batches_of(market_events(piece))
    parsed = Path(piece.parsed)
    if not parsed.exists() or read_about(parsed).get(_INPUT_KEY) != input_sha256.encode():
        parsed.unlink(missing_ok=True)  # of another input
        parsed.parent.mkdir(parents=True, exist_ok=True)
        with temporary(parsed.parent, parsed.name) as path:
            write_events(path, batches_of(market_events(piece)), {_INPUT_KEY: input_sha256.encode()})
            commit(path, parsed)
    return read_batches(parsed)


def market_events(piece: Piece) -> Iterator[MarketEvent]:
    """The events as objects, straight from the source."""
    paths = _paths(piece)
    if piece.format == "tardis":
        return read_tardis(paths)
    if piece.format == "dbn":
        return read_dbn(paths[""])
    return read_capture(paths[""])


def recorded_rows(piece: Piece) -> Iterator[Rows]:
    """The requests of a recording, in the order in which they were answered; a recording has no market.

    Raises:
        NoRecording: there is none, or a part of it is damaged.
    """
    latest_ns = 0
    for recording in open_recordings(Path(piece.path)):
        for item in recording.read():
            if isinstance(item, Damage | Unread):
                raise NoRecording(f"{item}; sigd inspect {piece.path} shows what can be read")
            times = item.responses["send_time_ns"].astype(np.int64)
            # Clients are answered side by side: their rows stay in the order of the recording.
            times = np.maximum.accumulate(np.maximum(times, latest_ns))
            latest_ns = int(times[-1])
            features = np.ascontiguousarray(item.requests["features"], np.float32)
            yield Rows(times, np.full(len(times), np.nan), features)


def _paths(piece: Piece) -> dict[str, Path]:
    """By their kind, "" where there is one."""
    if piece.format == "tardis":
        return {kind: Path(piece.path.replace("{kind}", kind)) for kind in KINDS}
    return {"": Path(piece.path)}
