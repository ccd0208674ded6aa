"""The last steps of each instrument, kept so that the newest window is one contiguous piece of memory.

Each step is written twice, `steps` places apart: wherever the ring stands, the last `steps` steps lie side by
side in one of the two halves. Nothing is allocated after the first step of an instrument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from sigd.models.errors import ModelRefused
from sigd.models.reading import HistoryOptions

Float32Array = npt.NDArray[np.float32]

NO_PLACE: Final = -1
_COPIES: Final = 2
_AXES: Final = 2


@dataclass(frozen=True, slots=True)
class Window:
    """What a model looks at: the last `steps` steps of `features` values each.

    Attributes:
        time_axis: 1 where its input is [batch, steps, features], 2 where it is [batch, features, steps].
    """

    steps: int
    features: int
    time_axis: int = 1

    def memory_bytes(self, instruments: int) -> int:
        """What the windows of so many instruments take."""
        return _COPIES * self.steps * self.features * 4 * instruments


def window_of(where: str, input_dims: Sequence[int], options: HistoryOptions) -> Window:
    """The window of a model whose input has these axes besides the batch.

    Args:
        where: the file, for messages.

    Raises:
        ModelRefused: it does not look at steps, or at another number of them.
    """
    if len(input_dims) != _AXES:
        axes = ", ".join(map(str, ("batch", *input_dims)))
        raise ModelRefused(
            f"{where}: its input is [{axes}], expected [batch, steps, features] for history: leave the"
            " history table out, or export the model with a window"
        )
    steps, features = input_dims if options.time_axis == 1 else reversed(input_dims)
    if options.steps not in (0, steps):
        raise ModelRefused(
            f"{where}: looks at {steps} steps, and the history table says {options.steps}: correct it, or"
            " leave steps out"
        )
    return Window(steps, features, options.time_axis)


class SteppedWindows(Protocol):
    """What a backend keeps of each window to answer its newest step without running the whole of it."""

    @property
    def capsule(self) -> object:
        """What C code answers steps by: see `native/engine.h`."""

    def behind(self, place: int, /) -> None:
        """The newest step of the instrument at that place was stored."""

    def answer(self, place: int, into: Float32Array, /) -> bool:
        """Answer the newest step that is stored, float32 (outputs,); False where its window is not whole."""


class InstrumentPlaces:
    """Which place each instrument of one client has, and how many steps of it are there.

    Attributes:
        instruments_max: how many instruments there may be.
        places: by instrument.
    """

    def __init__(self, instruments_max: int, warm_steps: int) -> None:
        """`warm_steps`: with so many steps an instrument is warm."""
        self.instruments_max = instruments_max
        self._warm_steps = warm_steps
        self.places: dict[int, int] = {}
        self._free = list(range(instruments_max - 1, -1, -1))
        self._count = [0] * instruments_max

    @property
    def instruments(self) -> int:
        """How many instruments have a place."""
        return len(self.places)

    @property
    def warming_up(self) -> int:
        """How many of them are not warm."""
        return sum(not self.is_warm(place) for place in self.places.values())

    def has(self, instrument: int) -> bool:
        """Whether an instrument has a place."""
        return instrument in self.places

    def is_warm(self, place: int) -> bool:
        """Whether enough steps are there for an answer."""
        return self._count[place] >= self._warm_steps

    def give_up(self, instrument: int) -> None:
        """Make room: the instrument has no place any more."""
        place = self.places.pop(instrument, NO_PLACE)
        if place != NO_PLACE:
            self._free.append(place)

    def _place(self, instrument: int, reset: bool) -> int:
        """The instrument's place, with no step there where it is new or `reset`; NO_PLACE where no instrument
        more may be had."""
        place = self.places.get(instrument, NO_PLACE)
        if place == NO_PLACE:
            if not self._free:
                return NO_PLACE
            place = self.places[instrument] = self._free.pop()
            self._count[place] = 0
        elif reset:
            self._count[place] = 0
        return place


class StepWindows(InstrumentPlaces):
    """The windows of one client's instruments.

    Attributes:
        window: their shape.
        rows: float32, (instruments_max, 2 * steps, features): step i stands at i % steps, and again `steps`
            further.
        stored: uint64: how many steps were ever stored at each place.
        begin: uint64: how many of them are forgotten.
        stepped: what the backend that serves keeps of them; None where it runs whole windows.
    """

    def __init__(self, window: Window, instruments_max: int) -> None:
        super().__init__(instruments_max, window.steps)
        self.window = window
        # Pages of zeros take no memory until a step is written to them.
        self.rows = np.zeros((instruments_max, _COPIES * window.steps, window.features), np.float32)
        self._flat = self.rows.reshape(instruments_max, -1)
        self.stored = np.zeros(instruments_max, np.uint64)
        self.begin = np.zeros(instruments_max, np.uint64)
        self.stepped: SteppedWindows | None = None
        # Whole numbers of Python, which are quicker than NumPy's.
        self._stored, self._begin = self.stored.data.cast("B").cast("Q"), self.begin.data.cast("B").cast("Q")

    def follow_by(self, stepped: SteppedWindows | None) -> None:
        """From now on a backend keeps that of the windows; it begins with the steps that are there."""
        self.stepped = stepped
        if stepped is not None:
            for place in self.places.values():
                stepped.behind(place)

    def store(self, instrument: int, row: Float32Array, *, reset: bool = False) -> int:
        """Store the newest step of an instrument.

        Args:
            row: float32, shape (features,).
            reset: forget what came before.

        Returns:
            Its place, for `is_warm` and `load`; NO_PLACE where no instrument more may be had, and nothing was
            stored.
        """
        place = self._place(instrument, reset)
        if place == NO_PLACE:
            return NO_PLACE
        steps, stored = self.window.steps, self._stored[place]
        if not self._count[place]:
            self._begin[place] = stored
        at = stored % steps
        own = self.rows[place]
        own[at] = row
        own[at + steps] = row
        self._stored[place] = stored + 1
        self._count[place] = 1
        if self.stepped is not None:
            self.stepped.behind(place)
        return place

    def is_warm(self, place: int) -> bool:
        """Whether all the steps that the model looks at are there; C code stores some of them."""
        return self._stored[place] - self._begin[place] >= self.window.steps

    def load(self, place: int, into: Float32Array) -> None:
        """Copy the newest window to a row of the model's input, float32 (steps * features,)."""
        window = self.window
        first = self._stored[place] % window.steps
        if window.time_axis == 1:
            width = window.features
            into[:] = self._flat[place, first * width : (first + window.steps) * width]
        else:
            into.reshape(window.features, window.steps)[:] = self.rows[place, first : first + window.steps].T
