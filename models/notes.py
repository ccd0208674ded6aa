"""What the user of a model should know when it is opened: what it does with NaN, what is not served of it,
what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from sigd.models.onnx.columns import WHOLE_CALL
from sigd.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Note:
    """One fact.

    Attributes:
        text: one sentence, without the model's name.
        is_warning: whether something should be done about it.
    """

    text: str
    is_warning: bool = False


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
    found += [Note(f"does not serve output {name!r}: it {reason}", True) for name, reason in spec.left_out]
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
                "runs one row a call: its batch is fixed to 1, which costs most of its throughput. Free the"
                " batch in the"
                ' export: torch.onnx.export(..., dynamic_shapes=({0: torch.export.Dim("batch")},))',
                True,
            )
        )
    return tuple(found)
