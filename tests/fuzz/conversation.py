"""What a daemon must say to a stream of bytes from its first to its last, by the contract."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from tests.fuzz.streams import REQUEST, RESPONSE, demand, read_stream

HELLO: Final = 1
WELCOME: Final = 2
REJECT: Final = 3
HEARTBEAT: Final = 4
GOODBYE: Final = 5
MODEL_INFO: Final = 6

OK, EXPIRED, BUSY, BAD_INPUT, MODEL_ERROR, CONFLATED, WARMING_UP, STORED = 0, 1, 2, 3, 4, 6, 7, 8


@dataclass(frozen=True)
class Served:
    """What the daemon serves. The outputs of a `doubling` model are twice its first features."""

    features: int
    outputs: int
    model_name: str
    in_flight_max: int
    doubling: bool


@dataclass(frozen=True)
class Due:
    """One frame that the daemon owes: its template, what it answers, and the codes that a Reject may have."""

    template: int
    to: bytes = b""
    codes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Conversation:
    """All that the daemon owes for a stream. `closes`: it then closes by itself, before the client does."""

    due: list[Due]
    closes: bool
    conflates: bool = False


def owed(stream: bytes, served: Served) -> Conversation:
    """What the contract owes to `stream`, the first byte of which is the client's first."""
    greeting = read_stream(stream, None)
    if not greeting.frames:
        if greeting.code:
            return Conversation([_reject(greeting.code)], closes=True)
        return Conversation([], closes=False)
    hello = greeting.frames[0]
    codes, conflates = _refusals(hello, served)
    if codes:
        return Conversation([_reject(*codes)], closes=True)
    due = [Due(WELCOME, hello)]
    rest = read_stream(stream[len(hello) :], served.features)
    for frame in rest.frames:
        template = struct.unpack_from("<H", frame, 2)[0]
        if template == REQUEST:
            due.append(Due(RESPONSE, frame))
        elif template == HEARTBEAT:
            due.append(Due(HEARTBEAT, frame))
        elif template == MODEL_INFO:
            # Its name is text, as every name on the wire.
            if not _is_text(frame[48:80]):
                return Conversation([*due, _reject(1)], closes=True, conflates=conflates)
            due.append(Due(MODEL_INFO, frame))
        elif template == GOODBYE:
            return Conversation([*due, Due(GOODBYE, frame)], closes=True, conflates=conflates)
        else:
            return Conversation([*due, _reject(3)], closes=True, conflates=conflates)
    if rest.code:
        due.append(_reject(rest.code))
    return Conversation(due, closes=bool(rest.code), conflates=conflates)


def _is_text(field: bytes) -> bool:
    try:
        field.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return False
    return True


def _reject(*codes: int) -> Due:
    return Due(REJECT, codes=frozenset(codes))


def _refusals(first: bytes, served: Served) -> tuple[list[int], bool]:
    """Every code that is right for this first frame; none where it is a Hello to welcome. And whether it
    conflates."""
    if struct.unpack_from("<H", first, 2)[0] != HELLO:
        return [3], False
    features, outputs, transport, flags, _slots, client, model = struct.unpack_from("<IIHHI24s32s", first, 8)
    codes = []
    try:
        client.rstrip(b"\0").decode()
        name = model.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return [1], False
    if features not in (0, served.features) or outputs not in (0, served.outputs):
        codes.append(4)
    if name not in ("", served.model_name):
        codes.append(5)
    if transport != 0:
        codes.append(6)
    if flags & 2:
        codes.append(4)
    return codes, bool(flags & 1)


def check(said: bytes, conversation: Conversation, served: Served, *, complete: bool) -> int:
    """The daemon said what it owes, in order, and nothing else; all of it where the stream was read to its
    end.

    Returns how many frames it said.
    """
    reading = read_stream(said, None)
    demand(reading.code == 0, "the daemon sent a frame that is wrong")
    due = conversation.due
    demand(len(reading.frames) <= len(due), f"{len(reading.frames)} frames sent, {len(due)} were due")
    if complete:
        demand(len(reading.frames) == len(due), f"{len(reading.frames)} frames sent, {len(due)} were due")
        demand(len(said) == sum(map(len, reading.frames)), "half a frame at the end")
    answers: list[bytes] = []
    for frame, one in zip(reading.frames, due, strict=False):
        template = struct.unpack_from("<H", frame, 2)[0]
        demand(template == one.template, f"template {template} sent, {one.template} was due")
        if template == RESPONSE:
            answers.append(frame)
            _check_answer(frame, one.to, conversation, served, busy=_is_busy(answers, served.in_flight_max))
        elif template == REJECT:
            code = struct.unpack_from("<H", frame, 8)[0]
            demand(code in one.codes, f"Reject code {code}, expected one of {sorted(one.codes)}")
        elif template == MODEL_INFO:
            (asked,), (told,) = struct.unpack_from("<I", one.to, 8), struct.unpack_from("<I", frame, 8)
            demand(told == asked or not asked, f"told of generation {told}, asked for {asked}")
        elif template == WELCOME:
            *granted, transport, flags = struct.unpack_from("<III20xHH", frame, 8)
            demand(granted == [served.features, served.outputs, served.in_flight_max], "another Welcome")
            demand(
                (transport, flags) == (0, conversation.conflates), "granted something that was not asked for"
            )
    return len(reading.frames)


def _is_busy(answers: list[bytes], in_flight_max: int) -> bool:
    """Whether more than in_flight_max requests were unanswered when the last of these was received.

    The stamps tell: an answer sent later than a request was received was not there yet.
    """
    if len(answers) <= in_flight_max:
        return False
    (received_ns,) = struct.unpack_from("<Q", answers[-1], 24)
    # answers are sent in order, so the one in_flight_max places ahead is the last that had to be out
    (sent_ns,) = struct.unpack_from("<Q", answers[-1 - in_flight_max], 32)
    return bool(sent_ns > received_ns)


def _check_answer(
    frame: bytes, request: bytes, conversation: Conversation, served: Served, *, busy: bool
) -> None:
    sequence, client_ns, deadline_ns, instrument = struct.unpack_from("<QQQI", request, 8)
    echoed = (*struct.unpack_from("<QQ", frame, 8), *struct.unpack_from("<I", frame, 40))
    demand(echoed == (sequence, client_ns, instrument), f"echoed {echoed}, not those of request {sequence}")
    demand(len(frame) == (56 + 4 * served.outputs + 7) // 8 * 8, "an answer of the wrong size")
    received_ns, sent_ns, generation, infer_ns, status, batch_rows = struct.unpack_from(
        "<QQ4xIIHH", frame, 24
    )
    demand(received_ns <= sent_ns, "sent before it was received")
    demand(generation == 1, f"generation {generation}")
    features = np.frombuffer(request, np.float32, served.features, 40)
    outputs = np.frombuffer(frame, np.float32, served.outputs, 56)
    late = 0 < deadline_ns < sent_ns
    if busy:
        allowed = {BUSY}
    elif not np.isfinite(features).all():
        allowed = {BAD_INPUT}
    elif served.doubling and not np.isfinite(2 * features[: served.outputs]).all():
        allowed = {MODEL_ERROR}
    else:
        allowed = {EXPIRED} if late else {OK}
    if not busy:
        allowed |= ({EXPIRED} if late else set()) | ({CONFLATED} if conversation.conflates else set())
    demand(status in allowed, f"request {sequence} got status {status}, expected one of {sorted(allowed)}")
    if status == OK:
        demand(bool(np.isfinite(outputs).all()), "outputs that are no numbers with status OK")
        if served.doubling:
            wanted = 2 * features[: served.outputs]
            demand(outputs.tobytes() == wanted.tobytes(), "outputs of another request")
    else:
        demand(bool(np.isnan(outputs).all()), f"outputs that are numbers with status {status}")
    # an answer that came too late may or may not have run
    ran = status in (OK, MODEL_ERROR) or (status == EXPIRED and batch_rows > 0)
    demand(
        (batch_rows > 0, infer_ns > 0) == (ran, ran), f"status {status} with {batch_rows} rows, {infer_ns} ns"
    )
