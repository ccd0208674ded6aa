"""What a Hello asks for against what is served: terms, or the reason why there are none. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.fields import FEATURES_MAX
from sigd.wire.framer import Frame
from sigd.wire.layout import request_frame_bytes
from sigd.wire.messages import Hello, Welcome
from sigd.wire.region import RING_SLOTS_MAX
from sigd.wire.status import HelloFlag, RejectCode, Transport

if TYPE_CHECKING:
    from sigd.daemon.serving.batcher import Batcher
    from sigd.models.history import Window
    from sigd.models.spec import ModelSpec
    from sigd.wire.region import RegionLayout

_TRANSPORTS: Final = ", ".join(f"{transport} ({transport.name.lower()})" for transport in Transport)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client is granted.

    Attributes:
        window: of the history that is kept for it; None where it sends whole rows, or the model carries a
            state.
        history: whether it sends one step in each request.
        in_flight_max: requests that it may have unanswered.
        ring_slots: with shared memory equal to that, a power of two; 0 on a stream.
    """

    batcher: Batcher
    client_name: str
    conflate: bool
    window: Window | None
    history: bool
    in_flight_max: int
    ring_slots: int

    @property
    def features(self) -> int:
        """Values in each request."""
        return _features(self.batcher.spec, self.history)

    def welcome(self, layout: RegionLayout | None, now_ns: int) -> Welcome:
        """The Welcome that grants the terms. `layout` is the region's, None on a stream."""
        spec = self.batcher.spec
        return Welcome(
            features=self.features,
            outputs=spec.answer_values,
            in_flight_max=self.in_flight_max,
            model_generation=self.batcher.generation,
            daemon_pid=self.batcher.limits.daemon_pid,
            clock_ns=now_ns,
            model_sha256=spec.sha256,
            model_name=self.batcher.name,
            transport=Transport.STREAM if layout is None else Transport.SHARED_MEMORY,
            flags=(HelloFlag.CONFLATE if self.conflate else HelloFlag.NONE)
            | (HelloFlag.HISTORY if self.history else HelloFlag.NONE)
            | (HelloFlag.TAKES_NAN if spec.takes_nan else HelloFlag.NONE),
            ring_slots=self.ring_slots,
            request_stride=0 if layout is None else layout.request_stride,
            response_stride=0 if layout is None else layout.response_stride,
            history_steps=0 if self.window is None else self.window.steps,
            history_instruments_max=self.batcher.limits.history_instruments_max if self.history else 0,
        )


def read_hello(first: Frame) -> Hello:
    """What a client asks for with its first frame.

    Raises:
        FrameError: with the code that refuses it.
    """
    if first.header.template_id != fields.HELLO.template_id:
        raise FrameError(
            RejectCode.UNEXPECTED_TEMPLATE,
            f"template {first.header.template_id} came first, expected Hello (1)",
        )
    return Hello.decode(first.block)


def agree(hello: Hello, find_model: Callable[[str], Batcher | None], *, rings_offered: bool) -> Terms:
    """The terms for what is asked.

    Args:
        find_model: gives the batcher that serves a model's name, "" being the default, or None.
        rings_offered: whether shared memory may be had.

    Raises:
        FrameError: with the code that refuses it.
    """
    batcher = find_model(hello.model_name)
    if batcher is None:
        default = find_model("")
        instead = f"{default.name!r} is served, " if default is not None else ""
        raise FrameError(RejectCode.UNKNOWN_MODEL, f"{instead}not {hello.model_name!r}")
    if hello.transport not in tuple(map(int, Transport)):
        raise FrameError(
            RejectCode.TRANSPORT_UNAVAILABLE, f"transport {hello.transport} is not one of {_TRANSPORTS}"
        )
    if hello.transport == Transport.SHARED_MEMORY and not rings_offered:
        raise FrameError(
            RejectCode.TRANSPORT_UNAVAILABLE, "shared memory is not offered here, transport 0 (stream) is"
        )
    spec = batcher.spec
    history = bool(hello.flags & HelloFlag.HISTORY)
    if history and spec.window is None and spec.state is None:
        raise FrameError(
            RejectCode.SHAPE_MISMATCH, "no history is kept for this model: configure [model.history]"
        )
    if spec.state is not None and not history:
        raise FrameError(RejectCode.SHAPE_MISMATCH, "this model carries a state: ask for history")
    features = _features(spec, history)
    if features > FEATURES_MAX:
        raise FrameError(RejectCode.SHAPE_MISMATCH, f"{features} values fit no request: ask for history")
    for name, asked, served in (
        ("features", hello.features, features),
        ("outputs", hello.outputs, spec.answer_values),
    ):
        if asked not in (0, served):
            raise FrameError(RejectCode.SHAPE_MISMATCH, f"{asked} {name}, the model has {served}")
    rows = batcher.limits.in_flight_rows(request_frame_bytes(features))
    slots = _slots(hello.ring_slots, rows) if hello.transport == Transport.SHARED_MEMORY else 0
    # Each step of a state has to run.
    conflate = bool(hello.flags & HelloFlag.CONFLATE) and spec.state is None
    window = spec.window if history else None
    return Terms(batcher, hello.client_name, conflate, window, history, slots or rows, slots)


def _features(spec: ModelSpec, history: bool) -> int:
    """Values in each request."""
    if history and spec.state is not None:
        return spec.state.features
    return spec.window.features if history and spec.window is not None else spec.features


def _slots(asked: int, rows: int) -> int:
    """How many slots each ring gets: what is asked for, as far as `rows` requests may be unanswered; 0 asks
    for all."""
    if asked & (asked - 1):
        raise FrameError(RejectCode.PROTOCOL_VIOLATION, f"ring_slots of {asked} is no power of two")
    most = min(1 << (rows.bit_length() - 1), RING_SLOTS_MAX)
    return min(asked or most, most)
