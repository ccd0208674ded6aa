"""What is sent: whole request frames, made before the run, from a capture's features or from seeded random
ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sigd.bench.errors import BadRequest
from sigd.bench.load.schedule import Int64Array
from sigd.models.features.catalogue import FEATURE_COUNT
from sigd.models.onnx.columns import Columns
from sigd.models.rows import drawn_rows
from sigd.wire import fields
from sigd.wire.layout import frame_dtype, header_word

if TYPE_CHECKING:
    from sigd.models.market.capture import CaptureReader

Float32Array = npt.NDArray[np.float32]

#: Random requests are sent over again after this many; 4,096 of 296 bytes stay in the second-level cache.
RANDOM_ROWS = 4096
_INSTRUMENTS = 16


def encode(features: Float32Array, instrument_ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """SignalRequest frames with sequence, client time and deadline 0.

    Args:
        features: float32, shape (rows, n).
        instrument_ids: uint32, shape (rows,).

    Returns:
        uint8, shape (rows, request frame bytes).
    """
    rows, count = features.shape
    layout = frame_dtype(fields.SIGNAL_REQUEST, features=count)
    frames = np.zeros(rows, dtype=layout)
    raw = frames.view(np.uint8).reshape(rows, layout.itemsize)
    header = header_word(fields.SIGNAL_REQUEST.template_id, layout.itemsize)
    raw[:, : fields.HEADER_BYTES] = np.frombuffer(header.to_bytes(8, "little"), dtype=np.uint8)
    frames["instrument_id"] = instrument_ids
    frames["features"] = features
    return raw


def random_frames(
    features: int, seed: int, rows: int = RANDOM_ROWS, columns: Sequence[Columns] = ()
) -> npt.NDArray[np.uint8]:
    """Frames of `sigd.models.rows.drawn_rows`, over a handful of instruments."""
    values = drawn_rows(columns, features, rows, seed)
    return encode(values, (np.arange(rows) % _INSTRUMENTS).astype(np.uint32))


def capture_requests(
    path: Path, model_features: int, *, salvage: bool = False
) -> tuple[Int64Array, npt.NDArray[np.uint8], CaptureReader]:
    """The requests that an engine would have sent while the capture was taken: one for each feature sample.

    Args:
        path: a capture, as `sigd.models.market.capture` reads it.
        model_features: what the served model takes.
        salvage: read what is whole of it.

    Returns:
        (arrivals, frames, reader): int64, shape (requests,), the local receive times in ns; uint8, shape
        (requests, bytes); and what has read them, which knows what is wrong with the capture.

    Raises:
        BadRequest: the capture cannot be read, or the model does not take the features of the market.
    """
    from sigd.models.features import FeatureStream
    from sigd.models.market.capture import CaptureReader
    from sigd.models.market.errors import SALVAGE, CaptureError, MarketError

    if model_features != FEATURE_COUNT:
        raise BadRequest(
            f"--capture makes {FEATURE_COUNT} features from each event, and the model takes {model_features}:"
            " "
            "serve a model of the order book's features, or measure with --rate"
        )
    stream, reader = FeatureStream(), CaptureReader(path, salvage=salvage)
    reader.watch(stream)
    arrivals: list[int] = []
    rows: list[bytes] = []
    try:
        for event in reader:
            if stream.on_event(event):
                arrivals.append(event.receive_ns)
                rows.append(stream.features.tobytes())
    except CaptureError as error:
        raise BadRequest(f"{path}: {error}{SALVAGE if error.salvageable else ''}") from error
    except (OSError, MarketError, ValueError) as error:
        raise BadRequest(f"{path}: {error}") from error
    if not rows:
        raise BadRequest(
            f"{path}: not one event of it gives features; is it longer than the features' windows?"
            + (f" ({reader.faults})" if reader.faults else "")
        )
    features = np.frombuffer(b"".join(rows), dtype=np.float32).reshape(len(rows), FEATURE_COUNT)
    return np.array(arrivals, dtype=np.int64), encode(features, np.zeros(len(rows), dtype=np.uint32)), reader
