"""Which samples may be used for what: split by time, with a gap at each edge.

    |---- training ----|gap|-- validation --|gap|------ held out ------|
    0                 56%                  70%                       100%  of the capture's time

A sample looks back over the longest feature window and forward over the horizon. The gap is their sum, so
that no market event is seen by the samples of two parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigd.models.features.catalogue import WINDOWS_NS
from sigd.models.training.samples import Samples

HELD_OUT_FROM = 0.7
VALIDATION_FROM = 0.56
"""Shares of the capture's time, from its first sample to its last."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of one capture, as masks over its samples, and where the edges lie.

    Attributes:
        training, validation, held_out: bool, shape (samples,); disjoint.
        validation_from_ns, held_out_from_ns: receive times of the edges.
        gap_ns: how long before each edge no sample is used.
    """

    training: BoolArray
    validation: BoolArray
    held_out: BoolArray
    validation_from_ns: int
    held_out_from_ns: int
    gap_ns: int


def split_by_time(samples: Samples, horizon_ns: int) -> Split:
    """Split a capture for outcomes over `horizon_ns`."""
    times_ns = samples.receive_ns
    first_ns, last_ns = int(times_ns[0]), int(times_ns[-1])
    validation_from_ns = first_ns + round((last_ns - first_ns) * VALIDATION_FROM)
    held_out_from_ns = first_ns + round((last_ns - first_ns) * HELD_OUT_FROM)
    gap_ns = horizon_ns + WINDOWS_NS[-1]
    return Split(
        training=times_ns < validation_from_ns - gap_ns,
        validation=(times_ns >= validation_from_ns) & (times_ns < held_out_from_ns - gap_ns),
        held_out=times_ns >= held_out_from_ns,
        validation_from_ns=validation_from_ns,
        held_out_from_ns=held_out_from_ns,
        gap_ns=gap_ns,
    )
