"""A capture as arrays: the feature vector of every sample, and the path of the mid that outcomes are read
from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sigd.models.features import FeatureStream
from sigd.models.features.catalogue import FEATURE_COUNT
from sigd.models.market.capture import CaptureReader
from sigd.models.market.errors import CaptureError
from sigd.models.market.events import BestQuote

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_EVENTS_PER_REPORT = 2_000


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one capture, in the order they were received.

    Attributes:
        name: the capture's file name up to its first dot.
        features: float32, shape (samples, 64).
        receive_ns: int64, shape (samples,), when each was received.
        quote_ns: int64, shape (quotes,), when each quote was received.
        quote_mid_e8: float64, shape (quotes,), the mid from that quote on, 1e-8 of the quote currency (half
            units are represented exactly).
    """

    name: str
    features: Float32Array
    receive_ns: Int64Array
    quote_ns: Int64Array
    quote_mid_e8: Float64Array

    def __len__(self) -> int:
        return len(self.receive_ns)

    def mid_e8(self, at_ns: Int64Array) -> Float64Array:
        """The mid in force at each of these times (at or after the first quote)."""
        mids: Float64Array = self.quote_mid_e8[np.searchsorted(self.quote_ns, at_ns, side="right") - 1]
        return mids

    def moves_bps(self, horizon_ns: int, delay_ns: int = 0) -> Float64Array:
        """How far the mid moves from `delay_ns` after each sample to `horizon_ns` after it, in bps; NaN where
        the capture ends before. Only quotes received by then are looked at; a quote received in the same
        nanosecond counts.
        """
        later_ns = self.receive_ns + horizon_ns
        start = self.mid_e8(self.receive_ns + delay_ns)
        moves = 1e4 * (self.mid_e8(later_ns) - start) / start
        moves[later_ns > self.quote_ns[-1]] = np.nan
        return moves


def read_samples(path: Path, report: Callable[[int], None] = lambda events: None) -> Samples:
    """Run a capture through the feature stream.

    Args:
        path: the capture.
        report: told now and then how many events have been read since it was last told.

    Raises:
        CaptureError: the capture cannot be read, gives no sample, or is not whole.
    """
    stream = FeatureStream()
    rows: list[bytes] = []
    receive_ns: list[int] = []
    quote_ns: list[int] = []
    quote_mid_e8: list[float] = []
    reader = CaptureReader(path)
    reader.watch(stream)
    for number, event in enumerate(reader, start=1):
        if stream.on_event(event):
            rows.append(stream.features.tobytes())
            receive_ns.append(event.receive_ns)
        if isinstance(event, BestQuote) and stream.mid_e8:
            quote_ns.append(event.receive_ns)
            quote_mid_e8.append(stream.mid_e8)
        if number % _EVENTS_PER_REPORT == 0:
            report(_EVENTS_PER_REPORT)
    if reader.faults:
        raise CaptureError(
            path.name,
            0,
            f"{reader.faults}, so samples are missing or wrong ({reader.faults.first[0]}); train without it",
        )
    if not rows:
        raise CaptureError(
            path.name,
            0,
            "gives no sample; expected a depth snapshot, quotes and more than ten seconds of them",
        )
    return Samples(
        name=path.name.partition(".")[0],
        features=np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), FEATURE_COUNT),
        receive_ns=np.array(receive_ns, np.int64),
        quote_ns=np.array(quote_ns, np.int64),
        quote_mid_e8=np.array(quote_mid_e8, np.float64),
    )
