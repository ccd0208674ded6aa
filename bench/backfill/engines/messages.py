"""What the driver and a worker process tell each other over pipes: MessagePack, each message after its
length."""

from __future__ import annotations

import struct
from typing import BinaryIO, TypeVar

import msgspec

_length = struct.Struct("<I")
T = TypeVar("T")


def write_message(stream: BinaryIO, message: object) -> None:
    """Write one message and flush.

    Raises:
        BrokenPipeError: the other side is gone.
    """
    content = msgspec.msgpack.encode(message)
    stream.write(_length.pack(len(content)) + content)
    stream.flush()


def read_message(stream: BinaryIO, kind: type[T]) -> T | None:
    """The next message; None where the other side is gone, also in the middle of one."""
    head = stream.read(_length.size)
    if len(head) < _length.size:
        return None
    (length,) = _length.unpack(head)
    content = stream.read(length)
    return msgspec.msgpack.decode(content, type=kind) if len(content) == length else None
