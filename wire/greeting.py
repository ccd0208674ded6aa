"""Hello and Welcome as the client sees them: what it may ask for, and what it may be granted. No I/O."""

from __future__ import annotations

from sigd.wire import fields
from sigd.wire.errors import ProtocolBroken, Rejected, ShapeError
from sigd.wire.framer import Frame
from sigd.wire.messages import MODEL_NAME_BYTES, Hello, Reject, Welcome


def check_hello(hello: Hello) -> None:
    """Raises ShapeError where Hello cannot carry what is asked; a model's name that is cut would be another's."""
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
    for name, asked, granted in (
        ("features", hello.features, welcome.features),
        ("outputs", hello.outputs, welcome.outputs),
    ):
        if granted == 0 or asked not in (0, granted):
            raise ProtocolBroken(f"asked for {asked or 'any'} {name}, the daemon granted {granted}")
    if welcome.transport != hello.transport:
        raise ProtocolBroken(f"asked for transport {hello.transport}, the daemon granted {welcome.transport}")
    return welcome
