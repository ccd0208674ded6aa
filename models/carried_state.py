"""A state that a model carries from step to step: inputs that are the state before the step, and outputs that
are the state after it. The daemon keeps it for each instrument, and gives it back with the next step.

A new state is zeros, as PyTorch and Keras begin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.models.errors import ModelRefused
from sigd.models.history import NO_PLACE, Float32Array, InstrumentPlaces
from sigd.models.onnx.columns import Columns, side_by_side

_BEFORE: Final = frozenset({"in", "input", "prev", "previous", "past", "old", "last", "initial", "init"})
_AFTER: Final = frozenset({"out", "output", "next", "new", "present", "final", "updated", "n", "t"})
_EXACT: Final = ("float32", "float16", "bfloat16")
"""Types whose every value float32 holds: a state of another type would be rounded between two steps."""
_NUMBERED: Final = {
    _BEFORE: re.compile(r"((?:.* )?[a-z]|.+ )0"),
    _AFTER: re.compile(r"((?:.* )?[a-z]|.+ )n"),
}
"""h0 and hn, h_0 and h_n, as PyTorch's own documentation calls them."""


@dataclass(frozen=True, slots=True)
class StatePair:
    """One tensor of a state.

    Attributes:
        before: the input that reads it.
        after: the output that is its next value.
        dims: its axes without the batch.
    """

    before: str
    after: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CarriedState:
    """Which columns of the model's rows are a step, an answer, and the state before and after.

    Attributes:
        pairs: the tensors of the state.
        step: the columns of one step, by their tensors, as they lie in the model's row.
        answer: the same of an answer.
        before, after: (first, width) of each tensor of the state in the rows of inputs and of outputs.
        warm_up_steps: before so many steps are there, answers are withheld.
    """

    pairs: tuple[StatePair, ...]
    step: tuple[Columns, ...]
    answer: tuple[Columns, ...]
    before: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    warm_up_steps: int = 0

    @property
    def features(self) -> int:
        """Values of one step."""
        return sum(one.width for one in self.step)

    @property
    def outputs(self) -> int:
        """Values of one answer."""
        return sum(one.width for one in self.answer)

    @property
    def width(self) -> int:
        """Values of one state."""
        return sum(width for _, width in self.before)

    def memory_bytes(self, instruments: int) -> int:
        """What the states of so many instruments take."""
        return 4 * self.width * instruments


def carried_state(
    where: str,
    inputs: Sequence[Columns],
    outputs: Sequence[Columns],
    named: Mapping[str, str],
    warm_up_steps: int,
) -> CarriedState | None:
    """The state that a model carries; None where none is named, and none found.

    Args:
        where: the file, for messages.
        inputs, outputs: of the graph, side by side in its rows.
        named: inputs that are states, and the outputs which are their next values; empty finds them.

    Raises:
        ModelRefused: what is named does not fit, or what is found leaves no step or no answer.
    """
    pairs = _named_pairs(where, inputs, outputs, named) if named else _found_pairs(inputs, outputs)
    if not pairs:
        return None
    for before, after in pairs:
        if before.dtype not in _EXACT or after.dtype != before.dtype:
            raise ModelRefused(
                f"{where}: state {before.name!r} is {before.dtype} and {after.name!r} {after.dtype}, expected"
                f" both {' or both '.join(_EXACT)}: cast it inside the model"
            )
    step = tuple(one for one in inputs if one not in [before for before, _ in pairs])
    answer = tuple(one for one in outputs if one not in [after for _, after in pairs])
    if not step or not answer:
        raise ModelRefused(
            f"{where}: all its {'inputs' if not step else 'outputs'} are states, expected one besides: name"
            ' the states in the history table: states = {INPUT = "OUTPUT"}'
        )
    return CarriedState(
        pairs=tuple(StatePair(before.name, after.name, before.dims) for before, after in pairs),
        step=step,
        answer=answer,
        before=tuple((before.first, before.width) for before, _ in pairs),
        after=tuple((after.first, after.width) for _, after in pairs),
        warm_up_steps=warm_up_steps,
    )


def _named_pairs(
    where: str, inputs: Sequence[Columns], outputs: Sequence[Columns], named: Mapping[str, str]
) -> list[tuple[Columns, Columns]]:
    reads, gives = {one.name: one for one in inputs}, {one.name: one for one in outputs}
    for kind, names, known in (("input", named, reads), ("output", named.values(), gives)):
        for name in names:
            if name not in known:
                raise ModelRefused(
                    f"{where}: states names the {kind} {name!r}, expected one of {', '.join(known)}"
                )
    if len(set(named.values())) != len(named):
        raise ModelRefused(f"{where}: states names an output twice, expected one for each input")
    pairs = [(reads[before], gives[after]) for before, after in named.items()]
    for before, after in pairs:
        if before.dims != after.dims:
            raise ModelRefused(
                f"{where}: state {before.name!r} is {list(before.dims)} and {after.name!r}"
                f" {list(after.dims)}, expected one shape"
            )
    return sorted(pairs, key=lambda pair: pair[0].first)


def _found_pairs(inputs: Sequence[Columns], outputs: Sequence[Columns]) -> list[tuple[Columns, Columns]]:
    """Inputs and outputs of one name, but for the word that says before or after, and of one shape."""
    pairs = []
    for before in inputs:
        stems = _stems(before.name, _BEFORE)
        same = [
            after
            for after in outputs
            if after.dims == before.dims
            and after.dtype == before.dtype
            and _stems(after.name, _AFTER) & stems
        ]
        rivals = [one for one in inputs if one.dims == before.dims and _stems(one.name, _BEFORE) & stems]
        if len(same) == len(rivals) == 1:
            pairs.append((before, same[0]))
    return pairs


def _stems(name: str, markers: frozenset[str]) -> set[str]:
    """What may be left of a name without what says before or after.

    >>> _stems("lstm.h_in", _BEFORE), _stems("lstm.h_out", _AFTER), _stems("prevHidden", _BEFORE)
    ({'lstm h'}, {'lstm h'}, {'hidden'})
    >>> sorted(_stems("h0", _BEFORE)), sorted(_stems("hn", _AFTER)), sorted(_stems("state_0", _BEFORE))
    (['h', 'h0'], ['h', 'hn'], ['state', 'state 0'])
    """
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    words = " ".join(word for word in re.split(r"[^a-z0-9]+", split) if word and word not in markers)
    numbered = _NUMBERED[markers].fullmatch(words)
    stems = {words, "" if numbered is None else numbered[1].strip()}
    return stems - {""}


class CarriedStates(InstrumentPlaces):
    """The states of one client's instruments.

    Attributes:
        state: what they are.
    """

    def __init__(self, state: CarriedState, instruments_max: int) -> None:
        super().__init__(instruments_max, state.warm_up_steps)
        self.state = state
        # Pages of zeros take no memory until a state is written to them.
        self._states = np.zeros((instruments_max, state.width), np.float32)
        placed = side_by_side(state.step)
        self._step_parts = [
            (slice(own.first, own.first + own.width), slice(one.first, one.first + one.width))
            for own, one in zip(state.step, placed, strict=True)
        ]
        self._before_parts = _parts(state.before)
        self._after_parts = _parts(state.after)

    def anew(self, state: CarriedState) -> CarriedStates:
        """For another model: the same instruments have the same places, and their states begin anew."""
        found = CarriedStates(state, self.instruments_max)
        found.places, found._free = self.places.copy(), self._free.copy()
        return found

    def begin(self, instrument: int, *, reset: bool = False) -> int:
        """A step of an instrument is to run.

        Args:
            reset: its state begins anew.

        Returns:
            Its place, for the other calls; NO_PLACE where no instrument more may be had.
        """
        place = self._place(instrument, reset)
        if place != NO_PLACE:
            if not self._count[place]:
                self._states[place] = 0
            self._count[place] += 1
        return place

    def load(self, place: int, step: Float32Array, into: Float32Array) -> None:
        """Write a step, float32 (features,), and the state before it to a row of the model's input."""
        for row, own in self._step_parts:
            into[row] = step[own]
        state = self._states[place]
        for row, own in self._before_parts:
            into[row] = state[own]

    def keep(self, place: int, outputs: Float32Array) -> None:
        """The step has run: its state after is in this row of the model's output."""
        state = self._states[place]
        for row, own in self._after_parts:
            state[own] = outputs[row]

    def lose(self, place: int) -> None:
        """The step failed, so that there is no state after it: the next one begins anew."""
        self._count[place] = 0


def _parts(columns: Sequence[tuple[int, int]]) -> list[tuple[slice, slice]]:
    """Where each tensor lies in the model's row, and in the state."""
    parts, at = [], 0
    for first, width in columns:
        parts.append((slice(first, first + width), slice(at, at + width)))
        at += width
    return parts


def answer_columns(state: CarriedState) -> slice | npt.NDArray[np.intp]:
    """Which columns of the model's output are the answer."""
    first, width = state.answer[0].first, state.outputs
    if state.answer[-1].first + state.answer[-1].width == first + width:
        return slice(first, first + width)
    return np.concatenate([np.arange(one.first, one.first + one.width) for one in state.answer])
