"""Writes a file exactly once: finished and on disk under another name first, then linked to its own.

A link fails where the name exists, so the first writer wins. The same work gives the same
bytes; a second writer with other bytes has found a fault, which is reported and never resolved by
overwriting.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp"
"""The directory of unfinished files, in the output directory: readers of Parquet pass over names with a
dot."""
PARTIAL_SUFFIX: Final = ".partial"
_BLOCK_BYTES: Final = 1 << 20


class NotTheSame(Exception):
    """A file of that name exists and holds other bytes than the same work gave now."""


@contextmanager
def temporary(directory: Path, name: str) -> Iterator[Path]:
    """A path to write to, removed at the end of the block; give it to `commit` within the block."""
    path = directory / f".{name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def commit(path: Path, final: Path) -> str:
    """Give a finished file its name, once its bytes are on disk. Returns its sha256 in hex.

    The name itself may be lost if the machine fails at once; then the piece is not there and runs again.

    Raises:
        NotTheSame: the name is taken by other bytes.
        OSError: the disk is full or broken; nothing has that name then.
    """
    digest = sha256_of(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, final)
    except FileExistsError:
        existing = sha256_of(final)
        if existing != digest:
            raise NotTheSame(
                f"{final} exists with sha256 {existing}, the same work now gave {digest}: one of the two is"
                " wrong; move the file away to have it written anew"
            ) from None
        return digest
    return digest


def commit_bytes(content: bytes, out: Path, final: Path) -> str:
    """Write and commit a small file; as `commit`."""
    with temporary(out / TEMPORARY, final.name) as path:
        path.write_bytes(content)
        return commit(path, final)


def sha256_of(path: Path) -> str:
    """Of the file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
