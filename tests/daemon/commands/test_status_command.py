"""What took longer than the counters reach is said to have, not shown as their end."""

from __future__ import annotations

from sigd.daemon.admin.messages import LatencyStatus
from sigd.daemon.commands.status import percentiles, shown_percentile
from sigd.daemon.serving.counters import LatencyCounts

# A daemon would have to stand still for seconds to show the same.


def test_a_percentile_beyond_the_bins_says_so() -> None:
    counts = LatencyCounts()
    for _ in range(99):
        counts.add(20_000)
    counts.add(7_061_234_567)
    status = LatencyStatus(counts.sparse(), counts.max_ns)
    assert shown_percentile(status, 50.0) == "20.1"
    assert shown_percentile(status, 99.9) == "> 1.07 s"
    told = percentiles(status)
    assert (told["max_us"], told["longer_than_1073742_us"], told["count"]) == (7_061_234.567, 1, 100)
    assert told["p99.9_us"] == told["max_us"]
