"""What the user of a model should know when it is opened: what it does with NaN, what is not served of it,
what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sigd.models.backend import AnswersSteps, Backend
from sigd.models.carried_state import CarriedState
from sigd.models.onnx.columns import WHOLE_CALL
from sigd.models.onnx.trees import Trees
from sigd.models.spec import ModelSpec

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Note:
    """One fact.

    Attributes:
        text: one sentence, without the model's name.
        is_warning: whether something should be done about it.
    """

    text: str
    is_warning: bool = False


def how_steps_run(backend: Backend, instruments: int) -> str:
    """Whether a step of a model with a window costs a step or its whole window, and what it takes or why.

    Args:
        backend: open, or loaded.
        instruments: of each client.
    """
    if not isinstance(backend, AnswersSteps):
        return f"{backend.name} runs the whole window of each step"
    if why := backend.why_whole_windows(instruments):
        return f"{backend.name} runs the whole window of each step: {why}"
    size = backend.state_bytes(instruments)
    told = f"{size / _MIB:.1f} MiB" if size >= _MIB else f"{size:,} bytes"
    return f"{backend.name} runs each step from {backend.kept_of_steps()}, which take {told} more"


def notes(spec: ModelSpec) -> tuple[Note, ...]:
    """What there is to say about a model; nothing for one that is served as it is."""
    found = []
    if spec.takes_nan:
        why = spec.reads_missing or "as configured: missing = nan"
        found.append(Note(f"takes NaN for a missing value ({why})"))
    elif spec.reads_missing:
        found.append(
            Note(
                "answers NaN with BAD_INPUT, as configured, though its graph reads NaN as missing"
                f" ({spec.reads_missing})"
            )
        )
    if spec.window is not None:
        each = spec.window.memory_bytes(1)
        found.append(
            Note(
                f"keeps history: {spec.window.steps} steps of {spec.window.features} features, {each:,} bytes"
                " for each instrument of a client"
            )
        )
    if spec.state is not None:
        found.append(
            Note(
                f"carries a state, {states_told(spec.state)}: {spec.state.memory_bytes(1):,} bytes for each"
                " instrument of a client"
            )
        )
    found += [Note(f"does not serve output {name!r}: it {reason}", True) for name, reason in spec.left_out]
    if spec.trees.inexact:
        found.append(Note(thresholds_told(spec.trees), True))
    if spec.input_columns and spec.input_columns[0].batch_axis == WHOLE_CALL:
        found.append(
            Note(
                "runs one row a call: its inputs have no batch axis. An export with a batch axis would answer"
                " many"
                " clients faster",
                True,
            )
        )
    elif spec.batch_rows == 1:
        found.append(
            Note(
                "runs one row a call: its batch is fixed to 1, so that rows which arrive together wait for"
                f" one another. Free the batch in the export: {_freed_batch(spec)}",
                True,
            )
        )
    return tuple(found)


def states_told(state: CarriedState) -> str:
    """Which inputs and outputs are a state, as in "h_in -> h_out [1, 64]"."""
    return ", ".join(f"{one.before} -> {one.after} {list(one.dims)}" for one in state.pairs)


def _freed_batch(spec: ModelSpec) -> str:
    """What to give to torch.onnx.export."""
    axes = ", ".join(f'"{one.name}": {{0: "batch"}}' for one in (*spec.input_columns, *spec.output_columns))
    shapes = "{0: batch}, " * len(spec.input_columns)
    return (
        f'torch.onnx.export(..., dynamic_shapes=({shapes.strip()})) with batch = torch.export.Dim("batch")'
        f" and an example of two rows, or with dynamo=False dynamic_axes={{{axes}}}"
    )


def thresholds_told(trees: Trees) -> str:
    """What float64 thresholds mean for rows of float32, and what to do."""
    return (
        f"{trees.inexact:,} of {trees.thresholds:,} thresholds are no float32: a float64 feature beside one"
        " may fall on its other side, because the wire rounds features to float32. None does in a model that"
        ' was trained on rounded features: X = X.astype("float32")'
    )
