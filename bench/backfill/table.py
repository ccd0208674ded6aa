"""The Parquet file of a piece: equal rows give equal bytes, and what it was made from is in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from sigd.bench.backfill.score import Columns
from sigd.bench.errors import MissingDependency

if TYPE_CHECKING:
    import pyarrow

METADATA_KEY: Final = b"sigd"


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a file was made from, in its metadata.

    Attributes:
        stamp_sha256: of the stamp.
        input_sha256, input_bytes: of the input's files; one after the other where there are several.
        begins: "first", "converged", or the sha256 of the state that the piece began with.
        tick_e8: the price step, 1e-8.
        events: that were read.
        book_breaks, events_ignored: see `FeatureStream`.
    """

    stamp_sha256: str
    input_sha256: str
    input_bytes: int
    begins: str
    tick_e8: int
    events: int
    book_breaks: int
    events_ignored: int


class Writer:
    """Writes one file; `finish` says what it was made from."""

    def __init__(self, path: Path, instrument: str, outputs: int) -> None:
        arrow, parquet = require_pyarrow()
        self._arrow = arrow
        self._name = arrow.array([instrument], arrow.string())
        self._schema = _schema(arrow, outputs)
        self._writer = parquet.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=["instrument"]
        )

    def write(self, columns: Columns) -> None:
        """One row group."""
        count = len(columns["status"])
        arrays = []
        for field in self._schema:
            if field.name == "instrument":
                indices = np.zeros(count, np.int32)
                arrays.append(self._arrow.DictionaryArray.from_arrays(indices, self._name))
            else:
                # NaN is how NumPy says unknown; readers of tables count nulls instead.
                arrays.append(self._arrow.array(columns[field.name], field.type, from_pandas=field.nullable))
        self._writer.write_table(
            self._arrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=count
        )

    def finish(self, about: About) -> None:
        """Write the metadata and close."""
        self._writer.add_key_value_metadata({METADATA_KEY: msgspec.json.encode(about)})
        self._writer.close()

    def abandon(self) -> None:
        """Close a file that will not be read."""
        self._writer.close()


@contextmanager
def writing(path: Path, instrument: str, outputs: int) -> Iterator[Writer]:
    """A writer that is closed whatever happens."""
    writer = Writer(path, instrument, outputs)
    try:
        yield writer
    except BaseException:
        try:
            writer.abandon()
        except OSError:
            pass  # The disk that refused the rows may refuse the end of the file too.
        raise


def read_about(path: Path) -> tuple[About, int]:
    """What a committed file was made from, and its rows.

    Raises:
        ValueError: it is no file of a backfill.
    """
    _, parquet = require_pyarrow()
    metadata = parquet.read_metadata(path)
    content = (metadata.metadata or {}).get(METADATA_KEY)
    if content is None:
        raise ValueError(f"{path} was not written by sigd backfill")
    return msgspec.json.decode(content, type=About), metadata.num_rows


def _schema(arrow: Any, outputs: int) -> pyarrow.Schema:
    fields = [
        arrow.field("receive_ns", arrow.int64(), nullable=False),
        arrow.field("instrument", arrow.dictionary(arrow.int32(), arrow.string()), nullable=False),
        arrow.field("mid", arrow.float64()),
        arrow.field("status", arrow.uint16(), nullable=False),
        *(arrow.field(f"output_{number}", arrow.float32()) for number in range(outputs)),
        arrow.field("move_bps", arrow.float64()),
    ]
    if outputs == 3:
        fields += [
            arrow.field("signal", arrow.int8(), nullable=False),
            arrow.field("outcome", arrow.int8(), nullable=False),
        ]
    return arrow.schema(fields)


def require_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet.

    Raises:
        MissingDependency: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency(
            "a backfill writes Parquet, which needs pyarrow: pip install 'sigd[backfill]'"
        ) from None
    return pyarrow, pyarrow.parquet
