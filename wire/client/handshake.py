"""Hello and Welcome as the client sees them: what it may ask for, and what it may be granted. No I/O."""

from __future__ import annotations

from sigd.wire import fields
from sigd.wire.errors import ProtocolBroken, Rejected, ShapeError
from sigd.wire.fields import FEATURES_MAX
from sigd.wire.framer import Frame
from sigd.wire.layout import OUTPUTS_MAX
from sigd.wire.messages import MODEL_NAME_BYTES, Hello, Reject, Welcome
from sigd.wire.region import RING_SLOTS_MAX
from sigd.wire.status import HelloFlag, Transport


def check_hello(hello: Hello) -> None:
    """Raises ShapeError where Hello cannot carry what is asked; a model's name that is cut would be
    another's."""
    slots = hello.ring_slots
    if hello.transport == Transport.STREAM and slots:
        raise ShapeError(f"ring_slots of {slots} on a stream, expected 0, or shared memory to be asked for")
    if not 0 <= slots <= RING_SLOTS_MAX or slots & (slots - 1):
        raise ShapeError(
            f"ring_slots of {slots}, expected a power of two within 1..{RING_SLOTS_MAX}, or 0 for the"
            " daemon's own"
        )
    for name, value in (("features", hello.features), ("outputs", hello.outputs)):
        if not 0 <= value < 2**32:
            raise ShapeError(f"{name} of {value}, expected a number within 0..{2**32 - 1}")
    name_bytes = len(hello.model_name.encode("utf-8", "replace"))
    if name_bytes > MODEL_NAME_BYTES:
        raise ShapeError(
            f"model_name {hello.model_name!r} has {name_bytes} bytes, expected at most {MODEL_NAME_BYTES}"
        )


def read_welcome(frame: Frame, hello: Hello) -> Welcome:
    """The daemon's answer to `hello`.

    Raises:
        Rejected: it is a Reject.
        ProtocolBroken: it is neither Welcome nor Reject, or grants what was not asked for.
        FrameError: its block does not decode.
    """
    template_id = frame.header.template_id
    if template_id == fields.REJECT.template_id:
        reject = Reject.decode(frame.block)
        raise Rejected(reject.code, reject.reason)
    if template_id != fields.WELCOME.template_id:
        raise ProtocolBroken(f"the daemon answered Hello with template {template_id}, expected Welcome")
    welcome = Welcome.decode(frame.block)
    for name, asked, granted, most in (
        ("features", hello.features, welcome.features, FEATURES_MAX),
        ("outputs", hello.outputs, welcome.outputs, OUTPUTS_MAX),
    ):
        if not 1 <= granted <= most or asked not in (0, granted):
            raise ProtocolBroken(f"asked for {asked or 'any'} {name}, the daemon granted {granted}")
    if (hello.flags ^ welcome.flags) & HelloFlag.HISTORY:
        wanted = bool(hello.flags & HelloFlag.HISTORY)
        raise ProtocolBroken(f"asked for history: {wanted}, the daemon granted it: {not wanted}")
    if welcome.transport != hello.transport:
        raise ProtocolBroken(f"asked for transport {hello.transport}, the daemon granted {welcome.transport}")
    return welcome
