"""Frames that a client may send, and how a test reads the end of its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigd.wire.fields import HEADER_BYTES
from sigd.wire.layout import header_word
from sigd.wire.messages import Heartbeat, Reject

if TYPE_CHECKING:
    from tests.daemon.conftest import FakeClient

HEARTBEAT = Heartbeat(1).encode()


def header(template_id: int, frame_bytes: int, *, schema: int = 91, version: int = 1) -> bytes:
    word = header_word(template_id, frame_bytes, version) & ~(0xFFFF << 32) | schema << 32
    return word.to_bytes(HEADER_BYTES, "little")


def rejected(client: FakeClient) -> Reject:
    """The Reject that ended the connection, after whatever came before it."""
    *_, reject = client.received()
    assert isinstance(reject, Reject)
    assert client.finished
    assert client.session.closed
    assert reject.reason
    return reject
