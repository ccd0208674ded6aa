"""What a load generator measured, made up for the tests that judge it."""

from __future__ import annotations

import numpy as np

from sigd.bench import histogram
from sigd.bench.load.contract import SAMPLE, LatencyCounts, Measurement

SECOND = 1_000_000_000


def measured(latency_us: float, signals: int = 1000) -> Measurement:
    return Measurement(
        client="cpp",
        welcome=b"",
        elapsed_ns=SECOND,
        intended_span_ns=0,
        sent_span_ns=SECOND,
        requests=signals,
        sent=signals,
        received=signals,
        statuses=(signals, *[0] * 8),
        late_sends=0,
        late_worst_ns=0,
        hiccups=0,
        hiccup_worst_ns=0,
        hiccup_sum_ns=0,
        batch_rows_sum=signals,
        generation_first=1,
        generation_last=1,
        counts=LatencyCounts(corrected=histogram.count(np.full(signals, round(latency_us * 1000)))),
        samples=np.empty(0, dtype=SAMPLE),
        slowest=np.empty(0, dtype=SAMPLE),
        violation=None,
    )
