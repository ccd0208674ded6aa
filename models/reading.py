"""What a model file leaves open, and the user decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
class ReadOptions:
    """What a model file leaves open.

    Attributes:
        sizes: of axes that are free, besides the batch: by the axis's name, or as "INPUT.AXIS". An axis 0
            that is given its size makes the whole call one row.
        missing: what NaN in a request is.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    missing: Missing = Missing.AUTO


AS_IT_IS: Final = ReadOptions()
"""A file that leaves nothing open."""
