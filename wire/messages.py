"""The control messages as values, and their bytes. Requests and responses, the millions, have modules of
their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.fields import SCHEMA_ID, SCHEMA_VERSION, Message
from sigd.wire.layout import HEADER_STRUCT, block_struct
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Transport

_STRUCTS = {
    message.template_id: block_struct(message)
    for message in fields.MESSAGES
    if message.frame_bytes is not None
}
REASON_BYTES_MAX = 64
_CLIENT_NAME_BYTES = 24
MODEL_NAME_BYTES = 32

Block = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client asks for. 0 features or outputs take the model's; an empty model_name is the default
    model."""

    features: int = 0
    outputs: int = 0
    transport: int = Transport.STREAM
    flags: int = HelloFlag.NONE
    ring_slots: int = 0
    client_name: str = ""
    model_name: str = ""

    def encode(self) -> bytes:
        """The whole frame, 80 bytes. Names too long for their field are cut at a character's boundary."""
        return _frame(
            fields.HELLO,
            self.features,
            self.outputs,
            self.transport,
            self.flags,
            self.ring_slots,
            fit_utf8(self.client_name, _CLIENT_NAME_BYTES),
            fit_utf8(self.model_name, MODEL_NAME_BYTES),
        )

    @classmethod
    def decode(cls, block: Block) -> Hello:
        """From the bytes after the header. Raises FrameError where it is short or a name is not UTF-8."""
        features, outputs, transport, flags, ring_slots, client, model = _unpack(fields.HELLO, block)
        return cls(
            features,
            outputs,
            transport,
            flags,
            ring_slots,
            _text(client, "client_name"),
            _text(model, "model_name"),
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the daemon granted. Strides and ring_slots are 0 on a stream; the numbers of history where none is
    kept."""

    features: int
    outputs: int
    in_flight_max: int
    model_generation: int
    daemon_pid: int
    clock_ns: int
    model_sha256: bytes
    model_name: str
    transport: int = Transport.STREAM
    flags: int = HelloFlag.NONE
    ring_slots: int = 0
    request_stride: int = 0
    response_stride: int = 0
    history_steps: int = 0
    history_instruments_max: int = 0

    def encode(self) -> bytes:
        """The whole frame, 128 bytes."""
        return _frame(
            fields.WELCOME,
            self.features,
            self.outputs,
            self.in_flight_max,
            self.model_generation,
            self.daemon_pid,
            self.clock_ns,
            self.transport,
            self.flags,
            self.ring_slots,
            self.request_stride,
            self.response_stride,
            self.history_steps,
            self.history_instruments_max,
            self.model_sha256,
            fit_utf8(self.model_name, MODEL_NAME_BYTES),
        )

    @classmethod
    def decode(cls, block: Block) -> Welcome:
        """From the bytes after the header. Raises FrameError where it is short or the name is not UTF-8."""
        (
            features,
            outputs,
            in_flight_max,
            generation,
            pid,
            clock_ns,
            transport,
            flags,
            ring_slots,
            request_stride,
            response_stride,
            history_steps,
            history_instruments_max,
            sha256,
            name,
        ) = _unpack(fields.WELCOME, block)
        return cls(
            features=features,
            outputs=outputs,
            in_flight_max=in_flight_max,
            model_generation=generation,
            daemon_pid=pid,
            clock_ns=clock_ns,
            model_sha256=sha256,
            model_name=_text(name, "model_name"),
            transport=transport,
            flags=flags,
            ring_slots=ring_slots,
            request_stride=request_stride,
            response_stride=response_stride,
            history_steps=history_steps,
            history_instruments_max=history_instruments_max,
        )


@dataclass(frozen=True, slots=True)
class Reject:
    """The daemon's last word on a connection."""

    code: int
    reason: str

    def encode(self) -> bytes:
        """The whole frame, 80 bytes. A reason over 64 bytes is cut at a character's boundary."""
        return _frame(fields.REJECT, self.code, 0, 0, fit_utf8(self.reason, REASON_BYTES_MAX))

    @classmethod
    def decode(cls, block: Block) -> Reject:
        """From the bytes after the header. Raises FrameError where it is short or the reason is not UTF-8."""
        code, _reserved16, _reserved32, reason = _unpack(fields.REJECT, block)
        return cls(code, _text(reason, "reason"))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life; clock_ns is the sender's clock."""

    clock_ns: int

    def encode(self) -> bytes:
        """The whole frame, 16 bytes."""
        return _frame(fields.HEARTBEAT, self.clock_ns)

    @classmethod
    def decode(cls, block: Block) -> Heartbeat:
        """From the bytes after the header. Raises FrameError where it is short."""
        (clock_ns,) = _unpack(fields.HEARTBEAT, block)
        return cls(clock_ns)


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender sends no more requests, or takes no more."""

    code: int = GoodbyeCode.DONE

    def encode(self) -> bytes:
        """The whole frame, 16 bytes."""
        return _frame(fields.GOODBYE, self.code, bytes(6))

    @classmethod
    def decode(cls, block: Block) -> Goodbye:
        """From the bytes after the header. Raises FrameError where it is short."""
        code, _reserved = _unpack(fields.GOODBYE, block)
        return cls(code)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model a generation is. A client asks with digest and name left out.

    Attributes:
        model_generation: in a question, 0 is the current one.
        model_sha256: of the file, 32 bytes; zeros in a question, and where the daemon does not know the
            generation.
        model_name: empty likewise.
    """

    model_generation: int = 0
    model_sha256: bytes = bytes(32)
    model_name: str = ""

    @property
    def known(self) -> bool:
        """Whether the daemon knew the generation."""
        return any(self.model_sha256)

    def encode(self) -> bytes:
        """The whole frame, 80 bytes."""
        return _frame(
            fields.MODEL_INFO,
            self.model_generation,
            0,
            self.model_sha256,
            fit_utf8(self.model_name, MODEL_NAME_BYTES),
        )

    @classmethod
    def decode(cls, block: Block) -> ModelInfo:
        """From the bytes after the header. Raises FrameError where it is short or the name is not UTF-8."""
        generation, _reserved, sha256, name = _unpack(fields.MODEL_INFO, block)
        return cls(generation, sha256, _text(name, "model_name"))


def fit_utf8(text: str, size_bytes: int) -> bytes:
    """UTF-8 of `text`, cut at a character's boundary so that it is at most `size_bytes` long."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= size_bytes:
        return encoded
    return encoded[:size_bytes].decode("utf-8", "ignore").encode()


def _frame(message: Message, *values: object) -> bytes:
    block = _STRUCTS[message.template_id].pack(*values)
    return HEADER_STRUCT.pack(len(block), message.template_id, SCHEMA_ID, SCHEMA_VERSION) + block


def _unpack(message: Message, block: Block) -> tuple[Any, ...]:
    """The known fields of a block; one of a newer version may be longer, and its tail is skipped."""
    layout = _STRUCTS[message.template_id]
    if len(block) < layout.size:
        raise FrameError(
            RejectCode.MALFORMED_FRAME,
            f"{message.name} block of {len(block)} bytes, expected {layout.size}",
        )
    return layout.unpack_from(block)


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError(RejectCode.MALFORMED_FRAME, f"{name} is not UTF-8") from None
