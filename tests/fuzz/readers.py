"""The readers of the codec against spoilt streams: what they give, and how they end, must be the
contract's."""

from __future__ import annotations

import random

from tests.fuzz.streams import chunks, demand, read_stream

from sigd.wire.errors import FrameError
from sigd.wire.framer import FRAME_BYTES_MAX, Framer
from sigd.wire.inbox import RequestInbox


def fuzz_framer(draw: random.Random, stream: bytes) -> int:
    """A handshake's Framer must give the frames of any kind, then the error. Returns frames looked at."""
    expected = read_stream(stream, None)
    framer = Framer(draw.choice((FRAME_BYTES_MAX, 2 * FRAME_BYTES_MAX)))
    found: list[bytes] = []
    code = 0
    for chunk in chunks(draw, stream):
        while chunk and not code:
            room = framer.writable()
            part = chunk[: len(room)]
            chunk = chunk[len(part) :]
            room[: len(part)] = part
            framer.arrived(len(part))
            try:
                while (one := framer.next_frame()) is not None:
                    found.append(one.block)
            except FrameError as error:
                code = int(error.code)
    demand(code == expected.code, f"the framer ended with code {code}, expected {expected.code}")
    demand(
        found == [whole[8:] for whole in expected.frames], "the framer's frames are not those of the stream"
    )
    return len(found) + bool(code)


def fuzz_inbox(draw: random.Random, stream: bytes, features: int) -> int:
    """RequestInbox must give every request and control frame in order, whole, whenever rows are answered."""
    expected = read_stream(stream, features)
    inbox = RequestInbox(features, draw.choice((1, 4, 64)))
    taken = 0
    code = 0
    now_ns = 0
    for chunk in [*chunks(draw, stream), b""]:
        last = not chunk
        while (chunk or last) and not code:
            room = inbox.writable()
            demand(len(room) > 0 or inbox.rows > 0, "no room, and no answer would make any")
            part = chunk[: len(room)]
            chunk = chunk[len(part) :]
            room[: len(part)] = part
            inbox.arrived(len(part))
            patience = 0 if last or not part else draw.choice((0, 0, 1))
            while True:
                now_ns += 1
                before = inbox.rows
                try:
                    control = inbox.scan(now_ns)
                except FrameError as error:
                    demand(inbox.rows == 0, "the error came before the rows ahead of it were answered")
                    code = int(error.code)
                    break
                check_rows(inbox, expected.frames[taken:], before, now_ns)
                if control is not None:
                    demand(taken < len(expected.frames), "a frame that is not in the stream")
                    demand(control.block == expected.frames[taken][8:], "a control frame is not the stream's")
                    taken += 1
                    continue
                if not inbox.rows or patience:
                    break
                answered = draw.randrange(1, inbox.rows + 1)
                inbox.answered(answered)
                taken += answered
            if last:
                break
    demand(code == expected.code, f"the inbox ended with code {code}, expected {expected.code}")
    demand(taken == len(expected.frames), f"{taken} frames taken, {len(expected.frames)} were sent")
    return taken + bool(code)


def check_rows(inbox: RequestInbox, expected: list[bytes], before: int, now_ns: int) -> None:
    """The rows that became pending are the stream's next requests, bit for bit."""
    demand(inbox.head >= 0 and inbox.rows <= len(expected), "rows that are not in the stream")
    fresh = inbox.rows - before
    if not fresh:
        return
    words = inbox.row_words(before, fresh)
    values = inbox.row_features(before, fresh)
    demand(bool((words[:, 0] == now_ns).all()), "a row's receive time is not that of its scan")
    demand(
        words[:, 1:].tobytes() == b"".join(one[8:] for one in expected[before : inbox.rows]), "other bytes"
    )
    last = expected[inbox.rows - 1]
    demand(values[-1].tobytes() == last[40 : 40 + 4 * inbox.features], "other features")
