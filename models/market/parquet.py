"""Market events in Parquet: parsed once, read many times, a batch of columns at a time.

| column | |
| --- | --- |
| kind | int8: 1 quote, 2 trade, 3 depth difference, 4 depth snapshot |
| receive_ns | int64, ascending |
| id | int64: the quote's update, the trade's number, the update at which the book stands afterwards |
| previous_id | int64: of a depth difference, the update that it follows; else 0 |
| price_e8, size_e8 | int64, units of 1e-8: of a trade; of a quote's bid; else 0 |
| ask_price_e8, ask_size_e8 | int64: of a quote; else 0 |
| aggressor | int8: of a trade +1 where the buyer took, -1 where the seller did; else 0 |
| bids | int32: how many of `levels` are bids |
| levels | list of int64: price_e8, size_e8 of each level of a depth message, its bids first; else empty |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from sigd.models.market.batch import DIFF, EVENT_DTYPE, QUOTE, TRADE, EventBatch
from sigd.models.market.errors import CaptureError

_GROUP_EVENTS: Final = 65_536
_COLUMNS: Final = (
    ("kind", "int8"),
    ("receive_ns", "int64"),
    ("id", "int64"),
    ("previous_id", "int64"),
    ("price_e8", "int64"),
    ("size_e8", "int64"),
    ("ask_price_e8", "int64"),
    ("ask_size_e8", "int64"),
    ("aggressor", "int8"),
    ("bids", "int32"),
)


def write_events(path: Path, batches: Iterable[EventBatch], about: dict[bytes, bytes]) -> None:
    """Write a file of events; `about` goes into its metadata.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    schema = _schema(pyarrow)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(_table(pyarrow, schema, batch), row_group_size=_GROUP_EVENTS)
        writer.add_key_value_metadata(about)


def read_about(path: Path) -> dict[bytes, bytes]:
    """The metadata of a file."""
    import pyarrow.parquet

    return dict(pyarrow.parquet.read_metadata(path).metadata or {})


def read_batches(path: Path) -> Iterator[EventBatch]:
    """The events of a file.

    Raises:
        CaptureError: it is missing, cut short or has other columns.
        ImportError: pyarrow is not installed.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = _schema(pyarrow)
            found = file.schema_arrow
            for field in wanted:
                at = found.get_field_index(field.name)
                if at < 0 or not _same_type(found.field(at).type, field.type):
                    there = "is missing" if at < 0 else f"is {found.field(at).type}"
                    raise CaptureError(path.name, 0, f"column {field.name} {there}, expected {field.type}")
            for table in file.iter_batches(_GROUP_EVENTS, columns=wanted.names):
                yield _batch(path, table)
    except FileNotFoundError:
        raise CaptureError(str(path), 0, "No such file; expected a Parquet file of events") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise CaptureError(path.name, 0, f"{error}; expected a Parquet file of events") from error


def _same_type(found: Any, wanted: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_list(wanted):
        return pyarrow.types.is_list(found) and bool(found.value_type == wanted.value_type)
    return bool(found == wanted)


def _schema(arrow: Any) -> Any:
    fields = [arrow.field(name, getattr(arrow, kind)(), nullable=False) for name, kind in _COLUMNS]
    levels = arrow.list_(arrow.field("item", arrow.int64(), nullable=False))
    return arrow.schema([*fields, arrow.field("levels", levels, nullable=False)])


def _table(arrow: Any, schema: Any, batch: EventBatch) -> Any:
    events, values = batch.events, batch.events["values"]
    kind = events["kind"]
    quote, trade, depth = kind == QUOTE, kind == TRADE, kind >= DIFF
    priced = quote | trade
    # Events of the book have their levels in order, so offsets are the ends so far.
    counts = np.where(depth, values[:, 2] - values[:, 0], 0)
    offsets = np.concatenate([[0], np.cumsum(counts)]) * 2
    if offsets[-1] != batch.levels.size:
        raise ValueError("the levels of a batch are not those of its events in their order")
    columns = {
        "kind": kind,
        "receive_ns": events["receive_ns"],
        "id": events["id"],
        "previous_id": events["previous_id"],
        "price_e8": np.where(priced, values[:, 0], 0),
        "size_e8": np.where(priced, values[:, 1], 0),
        "ask_price_e8": np.where(quote, values[:, 2], 0),
        "ask_size_e8": np.where(quote, values[:, 3], 0),
        "aggressor": np.where(trade, values[:, 2], 0),
        "bids": np.where(depth, values[:, 1] - values[:, 0], 0),
    }
    arrays = [arrow.array(columns[name].astype(kind), schema.field(name).type) for name, kind in _COLUMNS]
    levels = arrow.ListArray.from_arrays(
        arrow.array(offsets, arrow.int32()), arrow.array(batch.levels.reshape(-1), arrow.int64())
    )
    return arrow.Table.from_arrays([*arrays, levels.cast(schema.field("levels").type)], schema=schema)


def _batch(path: Path, table: Any) -> EventBatch:
    for column, name in zip(table.columns, table.schema.names, strict=True):
        if column.null_count:
            raise CaptureError(path.name, 0, f"column {name} has nulls, expected a number in each row")
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name, _ in _COLUMNS}
    lists = table.column("levels")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    first = int(offsets[0])
    levels = lists.values.to_numpy()[first : int(offsets[-1])]
    ends = (offsets - first) // 2
    if len(levels) % 2 or ((offsets - first) % 2).any():
        raise CaptureError(
            path.name, 0, "a row of levels has an odd length, expected pairs of price and size"
        )
    events = np.zeros(len(offsets) - 1, EVENT_DTYPE)
    for name in ("kind", "receive_ns", "id", "previous_id"):
        events[name] = columns[name]
    values = events["values"]
    kind = events["kind"]
    quote, trade, depth = kind == QUOTE, kind == TRADE, kind >= DIFF
    values[:, 0] = columns["price_e8"]
    values[:, 1] = columns["size_e8"]
    values[quote, 2] = columns["ask_price_e8"][quote]
    values[quote, 3] = columns["ask_size_e8"][quote]
    values[trade, 2] = columns["aggressor"][trade]
    values[depth, 0] = ends[:-1][depth]
    values[depth, 1] = ends[:-1][depth] + columns["bids"][depth]
    values[depth, 2] = ends[1:][depth]
    known = (
        (kind >= QUOTE) & (kind <= DIFF + 1) & (values[:, 1] <= np.where(depth, values[:, 2], values[:, 1]))
    )
    if not known.all():
        row = int(np.argmin(known))
        raise CaptureError(
            path.name, 0, f"row {row} of a group: kind {kind[row]} or more bids than levels, expected 1 to 4"
        )
    return EventBatch(events, np.ascontiguousarray(levels.reshape(-1, 2)))
