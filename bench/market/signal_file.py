"""Signals as a table for other tools: CSV, or Parquet where pyarrow is installed. Written whole or not at
all."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sigd.bench.errors import BadRequest, MissingDependency
from sigd.bench.market.replay import Signals
from sigd.models.training.outcome import CLASSES, classes_of

Columns = dict[str, npt.NDArray[np.generic]]
_SUFFIXES = (".csv", ".parquet")


def check_out(path: Path) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        BadRequest: another ending than .csv or .parquet, or a directory that is not there.
        MissingDependency: Parquet without pyarrow.
    """
    if path.suffix not in _SUFFIXES:
        raise BadRequest(f"{path}: its ending says how to write it, expected one of {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise BadRequest(f"{path}: the directory {path.parent} does not exist")
    if path.suffix == ".parquet":
        _pyarrow()


def columns_of(signals: Signals, horizon_ns: int, flat_bps: float) -> Columns:
    """One row for each signal: what was said, how fast, and what the market then did."""
    answers = signals.answers
    outputs = answers["outputs"]
    moves = signals.moves_bps(horizon_ns)
    columns: Columns = {
        "receive_ns": signals.receive_ns,
        "mid": signals.mid,
        "status": answers["status"],
        "model_generation": answers["model_generation"],
        "batch_rows": answers["batch_rows"],
        "latency_us": signals.latency_ns / 1e3,
        "infer_us": answers["infer_ns"] / 1e3,
    }
    for number in range(outputs.shape[1]):
        columns[f"output_{number}"] = outputs[:, number]
    columns["move_bps"] = moves
    if outputs.shape[1] == len(CLASSES):
        columns["signal"] = signals.classes
        columns["outcome"] = classes_of(moves, flat_bps)
    return columns


def write_table(path: Path, columns: Columns) -> None:
    """Write all or nothing: to a file beside it, which then takes its name.

    Raises:
        MissingDependency: the disk is full, or the folder may not be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".parquet":
            arrow, parquet = _pyarrow()
            parquet.write_table(arrow.table(columns), partial)
        else:
            with partial.open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(columns)
                writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        partial.replace(path)
    except OSError as error:
        raise MissingDependency(
            f"{path} cannot be written: {error.strerror or error}; nothing is left there. Make room, or name"
            " a file elsewhere"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependency(
            "writing Parquet needs pyarrow: pip install 'sigd[parquet]', or write .csv"
        ) from None
    return pyarrow, pyarrow.parquet
