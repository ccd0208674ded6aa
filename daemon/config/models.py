"""The models of one daemon as they are configured: one named with `model = "FILE"`, or a `[[model]]` table
for each.

What a table leaves out it takes from the value of the same name at the top of the file, or its flag.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from sigd.daemon.errors import UsageError
from sigd.models.gpu.options import GpuOptions
from sigd.models.reading import HistoryOptions, Missing, ReadOptions

BatchRows = Annotated[int, Meta(ge=1, le=4096)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
LingerUs = Annotated[int, Meta(ge=0, le=1_000_000)]
GpuNumber = Annotated[int, Meta(ge=0, le=255)]
InFlight = Annotated[int, Meta(ge=1, le=65536)]
RowsPending = Annotated[int, Meta(ge=1, le=1 << 24)]


Dims = dict[str, Annotated[int, Meta(ge=1, le=16_777_216)]]


class ShadowTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table [shadow], or [model.shadow] below a `[[model]]`: a second model that runs the same rows.

    Attributes:
        path: its file.
        backend: "auto" goes by the file.
        sample: share of the rows that it runs.
        gpu: for an engine, the number of its GPU; None is the model's own.
    """

    path: Annotated[str, Meta(min_length=1)]
    backend: str = "auto"
    sample: Annotated[float, Meta(gt=0, le=1)] = 1.0
    gpu: GpuNumber | None = None


class HistoryTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table [history], or [model.history] below a `[[model]]`: clients may send one step in each request,
    and the daemon keeps those before it.

    Attributes:
        steps: that the model looks at; 0 takes the model's.
        time_axis: of the model's input: 1 where it is [batch, steps, features], 2 where it is
            [batch, features, steps].
        instruments_max: of each client.
        warm_up_steps: of a model that carries a state: answers before that many steps are withheld.
        states: of such a model, which output is the next value of which input; empty finds them.
    """

    steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    time_axis: Annotated[int, Meta(ge=1, le=2)] = 1
    instruments_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 64
    warm_up_steps: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    states: dict[str, str] = {}

    def options(self) -> HistoryOptions:
        """How the model is read."""
        return HistoryOptions(self.steps, self.time_axis, self.warm_up_steps, self.states)


class ModelTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[model]]`. The first is what a client gets that names none.

    Attributes:
        name: what clients call it; "" is the file's name without its ending.
        path: the model file; "" is the one that ships with sigd.
        shadow: what it is compared with.
        history: what is kept of the instruments of its clients.
    """

    name: str = ""
    path: str = ""
    backend: str | None = None
    batch_rows_max: BatchRows | None = None
    intra_op_threads: Threads | None = None
    linger_us: LingerUs | None = None
    gpu: GpuNumber | None = None
    in_flight_max: InFlight | None = None
    rows_pending_max: RowsPending | None = None
    dims: Dims | None = None
    missing: Missing | None = None
    shadow: ShadowTable | None = None
    history: HistoryTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model with everything worked out; see `Config` for what each value is.

    Attributes:
        name: what clients call it; None is the file's name without its ending.
        path: the model file; None is the one that ships with sigd.
        reading: what the file leaves open.
        shadow: what it is compared with; None where it is not.
        history: what is kept of the instruments of its clients; None where nothing is.
    """

    name: str | None
    path: Path | None
    backend: str
    batch_rows_max: int
    intra_op_threads: int
    linger_us: int
    gpu: GpuOptions
    in_flight_max: int
    rows_pending_max: int
    reading: ReadOptions
    shadow: ShadowTable | None
    history: HistoryTable | None


def check_tables(tables: list[ModelTable]) -> None:
    """Whether the tables go together.

    Raises:
        UsageError: there is none, or two have one name.
    """
    if not tables:
        raise UsageError("model is an empty list, expected a file or at least one [[model]]")
    names = [table.name or Path(table.path).stem for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two models are called {name!r}: give each [[model]] a name of its own")
