"""The text that Prometheus reads, made so that a scrape does not hold up the loop that it runs on.

prometheus-client writes every line: names, labels, escapes, HELP and TYPE. But it takes milliseconds for what
a scrape needs, so it does that once for each set of labels, with NaN for values; a scrape reads the counters
and puts their numbers where NaN stood. Between two steps of it the loop may turn. See
docs/decisions/0010-metrics.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from math import nan
from typing import TYPE_CHECKING, Final

from sigd.daemon.admin.metrics.families import FAMILIES
from sigd.daemon.admin.metrics.family import Family, Kind, Source

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, ...], ...]
"""Of each series of a family."""


class Exposition:
    """Everything that can be scraped."""

    def __init__(self, source: Source, families: Sequence[Family] = FAMILIES) -> None:
        self._source = source
        self._families = families
        self._templates: dict[str, tuple[Labels, str]] = {}

    def prepare(self) -> None:
        """Load the library and write the lines: before a client is served, because it takes tens of
        milliseconds."""
        for family in self._families:
            self._told(family)

    async def scrape(self) -> bytes:
        """The text as of now, or nearly: the loop turns while it is made."""
        parts = []
        for family in self._families:
            parts.append(self._told(family))
            await asyncio.sleep(0)
        return "".join(parts).encode()

    def _told(self, family: Family) -> str:
        series = tuple(family.read(self._source))
        labels = tuple(of_one for of_one, _ in series)
        known, template = self._templates.get(family.name, (None, ""))
        if known != labels:
            template = template_of(family, labels)
            self._templates[family.name] = labels, template
        return template % tuple(value for _, values in series for value in values)


def template_of(family: Family, labels: Labels) -> str:
    """The lines of a family with %s for each value."""
    from prometheus_client import generate_latest

    text = generate_latest(_Lines(family, labels)).decode()
    return text.replace("%", "%%").replace(" NaN\n", " %s\n")


class _Lines:
    """A collector of prometheus-client: one family, whose values are to be filled in."""

    def __init__(self, family: Family, labels: Labels) -> None:
        self._family = family
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        family = self._family
        if family.kind is Kind.HISTOGRAM:
            histogram = HistogramMetricFamily(family.name, family.words, labels=family.labels)
            edges = [f"{bound:g}" for bound in family.bounds]
            for of_one in self._labels:
                histogram.add_metric(of_one, [(edge, nan) for edge in (*edges, "+Inf")], nan)
            yield histogram
            return
        make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
        flat = make(family.name, family.words, labels=family.labels)
        for of_one in self._labels:
            flat.add_metric(of_one, nan)
        yield flat
