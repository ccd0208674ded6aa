"""Writes what a measurement leaves: a file is there whole, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sigd.bench.errors import MissingDependency


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`; an interrupted or failed write leaves what was there before.

    Raises:
        MissingDependency: the disk is full, or the folder may not be written to.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists() and not path.is_file():
            # A pipe or a device has no half of a file to show.
            path.write_bytes(content)
            return
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            with suppress(OSError):
                aside.unlink()
    except OSError as error:
        raise MissingDependency(
            f"{path} cannot be written: {error.strerror or error}; nothing is left there. Make room, or name"
            " a file"
            " elsewhere, and measure again"
        ) from error
