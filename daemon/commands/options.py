"""What several commands do with their options."""

from __future__ import annotations

from pathlib import Path

from sigd.daemon.errors import MissingDependency


def write_output(path: Path, content: bytes) -> None:
    """Write what --output asks for: a file that is there whole or not at all.

    Raises:
        MissingDependency: the disk is full, or the folder may not be written to.
    """
    from sigd.models.engine import EngineNotWritten, write_whole

    if path.exists() and not path.is_file():
        # A pipe or a device, which has to stay one; what the kernel says of it is told by the command line.
        path.write_bytes(content)
        return
    try:
        write_whole(path, content)
    except EngineNotWritten as error:
        raise MissingDependency(str(error)) from error
