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

def load(plan: Buffer, instruction_set: str | None = None) -> Engine:
    """Check a plan and make an engine of it.

    Raises:
        ValueError: it is no good plan.
        LookupError: this processor does not have that instruction set.
    """

def instruction_sets() -> list[str]:
    """The builds of the kernels that this processor can run, best first."""
