"""What a lane in C (lane.c) is given of a batcher and of a session, where it was built.

A lane runs a native engine with scratch memory of its own, beside the loop that may run the same engine: the
answers are the same to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sigd.daemon.serving.fast_path import ONE_ROW_OK, model_fits
from sigd.daemon.serving.native_fast_path import CHUNK_ROWS, ring_places
from sigd.wire import fields
from sigd.wire.layout import header_word, outcome_word, request_frame_bytes, response_frame_bytes
from sigd.wire.status import Status

try:
    from sigd.daemon.serving._lane import Lane, Member, Model
except ImportError:  # there was no compiler
    Lane = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from sigd.daemon.config.config import LaneRealtime
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.row_check import RowCheck
    from sigd.daemon.serving.session import Session
    from sigd.models.backend import Backend
    from sigd.wire.ring import RingConsumer, RingProducer


def is_built() -> bool:
    """Whether this installation has it."""
    return Lane is not None


def open_lane(core: int, spin_ns: int | None, realtime: LaneRealtime | None = None) -> Lane:
    """A lane whose thread does not run yet. Raises OSError where the kernel lacks what it needs."""
    if realtime is None:
        return Lane(core, spin_ns)
    return Lane(core, spin_ns, realtime.priority, realtime.busy_ns_max)


def why_no_lane(batcher: Batcher) -> str:
    """Why no lane runs the batcher's model; "" where one does."""
    return why_not_run(batcher.backend, batcher.row_check, lingers=batcher.lingers)


def why_not_run(backend: Backend, row_check: RowCheck, *, lingers: bool) -> str:
    """As `why_no_lane`, of a model that no batcher serves yet."""
    spec = backend.spec
    if not hasattr(backend, "runner"):
        return f"it runs on {backend.name}, and a lane runs native engines alone"
    if not model_fits(spec, row_check):
        return f"{spec.features} features and {spec.outputs} outputs are too many"
    if row_check.integers:
        return "some of its features must be integers"
    if lingers:
        return "linger_us makes its batches wait"
    return ""


def make_model(lane: Lane, batcher: Batcher) -> Model:
    """What a lane runs for the batcher's sessions, and counts of them."""
    spec = batcher.spec
    given = {
        "features": spec.features,
        "outputs": spec.outputs,
        "takes_nan": int(batcher.row_check.takes_nan),
        "request_header": header_word(fields.SIGNAL_REQUEST.template_id, request_frame_bytes(spec.features)),
        "response_header": header_word(
            fields.SIGNAL_RESPONSE.template_id, response_frame_bytes(spec.outputs)
        ),
        "one_row_ok": ONE_ROW_OK,
        "another_row": outcome_word(0, Status.OK, 2) - ONE_ROW_OK,
    }
    return Model(lane, runner(batcher), batcher.generation << 32, given)


def runner(batcher: Batcher) -> object:
    """The entry into the batcher's engine, with scratch memory for one lane."""
    backend: Any = batcher.backend
    return backend.runner(min(CHUNK_ROWS, batcher.batch_rows_max)).capsule


def make_member(
    model: Model,
    session: Session,
    requests: RingConsumer,
    responses: RingProducer,
    bells: tuple[int, ...],
) -> Member:
    """A session's rings.

    Args:
        bells: the daemon's and the client's.
    """
    daemon_bell, client_bell = bells
    return Member(
        model,
        ring_places(requests, responses)
        | {
            "daemon_sleeping": requests.sleeping,
            "daemon_bell": daemon_bell,
            "client_bell": client_bell,
            "conflate": int(session.conflate),
        },
    )
