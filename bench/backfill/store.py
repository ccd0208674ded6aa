"""The output directory: who may write to it, under which stamp, and what is committed in it.

DIR/_manifest.json                          the stamp, written by the first run
DIR/_pieces.jsonl                           one line for each committed piece: rows, digests, input
DIR/symbol=S/date=D/S-D.parquet             the pieces
DIR/_state/S-D.state                        the features' state after a piece, where pieces hand it over
DIR/.tmp                                    unfinished files, while a run goes on
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from sigd.bench.backfill.commit import PARTIAL_SUFFIX, TEMPORARY, commit_bytes
from sigd.bench.backfill.piece import Outcome
from sigd.bench.backfill.plan import Piece
from sigd.bench.backfill.stamp import Stamp
from sigd.bench.errors import BadRequest, MissingDependency


class Store:
    """The output directory of one run, for use in a `with` block.

    Attributes:
        committed: what the index says of committed pieces, by their id.
    """

    def __init__(self, out: Path) -> None:
        """Make the directory and lock it for this run.

        Raises:
            MissingDependency: it cannot be written to.
            BadRequest: another run writes there.
        """
        self.out = out
        self.committed: dict[str, Outcome] = {}
        self._index = out / "_pieces.jsonl"
        self._parsed: set[Path] = set()
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise MissingDependency(f"{out}: cannot be written to: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BadRequest(
                f"{out}: another backfill writes there; wait for it or give another --out"
            ) from None

    def __enter__(self) -> Self:
        self._clear_temporary()
        (self.out / TEMPORARY).mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear_temporary()
        for directory in self._parsed:
            for left in directory.glob(f".*{PARTIAL_SUFFIX}"):
                left.unlink(missing_ok=True)
        os.close(self._lock)

    def open(self, stamp: Stamp, pieces: Iterable[Piece]) -> None:
        """Take this directory into use for these pieces under a stamp, and read what is committed.

        Raises:
            BadRequest: its pieces were made under another stamp, or its files cannot be read.
        """
        self._parsed = {Path(piece.parsed).parent for piece in pieces if piece.parsed}
        manifest = self.out / "_manifest.json"
        try:
            if not manifest.exists():
                content = msgspec.json.format(msgspec.json.encode(stamp)) + b"\n"
                commit_bytes(content, self.out, manifest)
            before = msgspec.json.decode(manifest.read_bytes(), type=Stamp)
        except OSError as error:
            raise BadRequest(f"{manifest}: {error.strerror}") from None
        except msgspec.DecodeError as error:
            raise BadRequest(f"{manifest}: {error}; it is not the manifest of this version of sigd") from None
        if differences := before.differences(stamp):
            raise BadRequest(
                f"{self.out} holds pieces of another stamp, which would differ (there, now):\n  "
                + "\n  ".join(differences)
                + "\ngive another --out, or put back what has changed"
            )
        self._read_index()

    def note(self, outcome: Outcome) -> None:
        """Add a committed piece to the index."""
        self.committed[outcome.piece] = outcome
        with self._index.open("ab") as file:
            file.write(msgspec.json.encode(outcome) + b"\n")

    def is_done(self, piece: Piece) -> bool:
        """Whether the piece is committed and in the index."""
        return piece.id in self.committed and (self.out / piece.output).exists()

    def digest(self, pieces: Iterable[Piece]) -> str:
        """One sha256, in hex, over the files of these pieces, in the order of their names."""
        digest = hashlib.sha256()
        for piece in sorted(pieces, key=lambda piece: piece.output):
            if (outcome := self.committed.get(piece.id)) is not None:
                digest.update(f"{piece.output} {outcome.sha256}\n".encode())
        return digest.hexdigest()

    def _read_index(self) -> None:
        if not self._index.exists():
            return
        content = self._index.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # The run that wrote it was killed in the middle of a line: that piece is found again by its file.
            os.truncate(self._index, len(whole))
        decoder = msgspec.json.Decoder(Outcome)
        for line in whole.splitlines():
            outcome = decoder.decode(line)
            self.committed[outcome.piece] = outcome

    def _clear_temporary(self) -> None:
        shutil.rmtree(self.out / TEMPORARY, ignore_errors=True)
