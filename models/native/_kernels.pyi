"""Native engines: plans that are data, run by kernels in C (`module.c`)."""

from typing import final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

__version__: str
"""Of the layout of plans."""

@final
class Engine:
    """A plan that was checked and packed for one instruction set; any number of runners share it."""

    @property
    def features(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def macs(self) -> int:
        """Multiplications for a row, roughly."""

    @property
    def instruction_set(self) -> str: ...
    def runner(self, inputs: npt.NDArray[np.float32], outputs: npt.NDArray[np.float32]) -> Runner:
        """Runs batches between two arrays, (rows, features) and (rows, outputs), which it keeps.

        Raises:
            ValueError: they are of another shape or type.
        """

    def sliding(self, steps: int, time_axis: int = 1) -> Sliding:
        """What answers the newest of so many steps from the states or the columns that it kept.

        Args:
            steps: of a window.
            time_axis: 1 where a row holds step after step, 2 where it holds feature after feature.

        Raises:
            ValueError: the model looks at its steps otherwise, or would do most of a window anew; the message
                says which of its operations does.
        """

@final
class Runner:
    """An engine with the scratch memory of one thread."""

    @property
    def engine(self) -> Engine: ...
    @property
    def capsule(self) -> object:
        """A PyCapsule with a `struct sigd_runner *`: see `engine.h`."""

    def run(self, rows: int, /) -> None:
        """Answer the first `rows` rows of its inputs.

        Raises:
            ValueError: `rows` is out of its range.
        """

@final
class Sliding:
    """An engine that answers step by step, and the queue of windows that are behind (`sliding.h`)."""

    @property
    def place_floats(self) -> int:
        """Floats that are kept of one instrument: a state for each step of a window and the gates of the next
        answer, or rings of columns."""

    @property
    def keeps_columns(self) -> bool:
        """Whether columns are kept, else states."""

    def advance(self) -> bool:
        """Advance some windows that are behind by one step, or prepare the next answer; whether anything was
        left to do."""

    def windows(
        self,
        rows: npt.NDArray[np.float32],
        stored: npt.NDArray[np.uint64],
        begin: npt.NDArray[np.uint64],
        states: npt.NDArray[np.float32],
    ) -> SlidingWindows:
        """The windows of one client's instruments, between arrays which it keeps.

        Args:
            rows: (instruments, 2 * steps, features): step i of an instrument at i % steps, and again `steps`
                further.
            stored: how many steps of each instrument were ever stored.
            begin: how many of them are forgotten.
            states: of instruments * place_floats elements, for it alone.

        Raises:
            ValueError: they are of another size or type.
        """

@final
class SlidingWindows:
    """The windows under way of one client's instruments."""

    @property
    def capsule(self) -> object:
        """A PyCapsule with a `struct sigd_steps *`: see `engine.h`."""

    def behind(self, place: int, /) -> None:
        """The newest step of that instrument was stored: its windows have to take it.

        Raises:
            IndexError: there is no such place.
        """

    def answer(self, place: int, into: npt.NDArray[np.float32], /) -> bool:
        """Answer the newest step that is stored; False where its window is not whole.

        Raises:
            IndexError: there is no such place.
            ValueError: `into` is no float32 array of the model's outputs.
        """

def load(plan: Buffer, instruction_set: str | None = None) -> Engine:
    """Check a plan and make an engine of it.

    Raises:
        ValueError: it is no good plan.
        LookupError: this processor does not have that instruction set.
    """

def instruction_sets() -> list[str]:
    """The builds of the kernels that this processor can run, best first."""
