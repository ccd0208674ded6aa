"""What a model file leaves open, and the user decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final


class Missing(StrEnum):
    """What NaN in a request is."""

    AUTO = "auto"
    """A missing value where the graph reads it as one, else refused."""
    NAN = "nan"
    """A missing value, whatever the graph does with it."""
    REFUSE = "refuse"
    """BAD_INPUT."""


@dataclass(frozen=True, slots=True)
class HistoryOptions:
    """That clients may have the history of their instruments kept, and how the model's window lies.

    Attributes:
        steps: that the model looks at; 0 takes the model's.
        time_axis: 1 where the input is [batch, steps, features], 2 where it is [batch, features, steps].
        warm_up_steps: of a model that carries a state from step to step: before so many steps are there its
            answers are withheld.
        states: inputs that are states, and the outputs which are their next values; empty finds them by name
            and shape.
    """

    steps: int = 0
    time_axis: int = 1
    warm_up_steps: int = 0
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a model file leaves open.

    Attributes:
        sizes: of axes that are free, besides the batch: by the axis's name, or as "INPUT.AXIS". An axis 0
            that is given its size makes the whole call one row.
        missing: what NaN in a request is.
        sizes_of_another: whether the sizes were given for another file beside this one: those of axes that
            this one does not have are passed over, as an engine passes over all. Else they are refused.
        history: None where none is kept.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    missing: Missing = Missing.AUTO
    sizes_of_another: bool = False
    history: HistoryOptions | None = None

    def for_another(self) -> ReadOptions:
        """The same for a file in the place of the one that they were given for, or beside it."""
        return replace(self, sizes_of_another=True)


AS_IT_IS: Final = ReadOptions()
"""A file that leaves nothing open."""
