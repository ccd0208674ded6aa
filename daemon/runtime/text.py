"""Text of clients and of file names, made fit for a terminal, a log, JSON and Prometheus."""

from __future__ import annotations

import os
from pathlib import Path


def printable(text: str) -> str:
    r"""The text with every character that a terminal or a log acts on as an escape sequence.

    >>> printable("engine\n<3>forged")
    'engine\\n<3>forged'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def as_utf8(path: Path | str) -> str:
    r"""A path, or text with one in it, as UTF-8: each byte that is none becomes an escape sequence.

    >>> as_utf8(os.fsdecode(b"model-\xff.onnx"))
    'model-\\xff.onnx'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
